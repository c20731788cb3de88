-- A schema with every kind of object that can be dumped here, and rows in all of its tables.
-- Loaded by test_dump.py into stock PostgreSQL and into Australis; dumps of both must be equal, whatever way they came.
SET client_min_messages = warning;

-- extensions
CREATE SCHEMA ext;
CREATE EXTENSION citext WITH SCHEMA ext;
CREATE EXTENSION hstore WITH SCHEMA ext;
CREATE EXTENSION pg_trgm WITH SCHEMA ext;
CREATE EXTENSION vector WITH SCHEMA ext;
CREATE EXTENSION ltree WITH SCHEMA ext;
CREATE EXTENSION isn WITH SCHEMA ext;
CREATE EXTENSION intarray WITH SCHEMA ext;
CREATE EXTENSION cube WITH SCHEMA ext;
CREATE EXTENSION seg WITH SCHEMA ext;
CREATE EXTENSION unaccent WITH SCHEMA ext;
CREATE EXTENSION fuzzystrmatch WITH SCHEMA ext;
CREATE EXTENSION tablefunc WITH SCHEMA ext;
COMMENT ON EXTENSION citext IS 'our own words';

CREATE SCHEMA app;
COMMENT ON SCHEMA app IS 'the application''s "schema"';
CREATE SCHEMA "Odd Name";
SET search_path = app, ext, public;

-- types
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
ALTER TYPE mood ADD VALUE 'meh' BEFORE 'ok';
ALTER TYPE mood ADD VALUE 'ecstatic' AFTER 'happy';
COMMENT ON TYPE mood IS 'how it feels';
CREATE TYPE address AS (street text, number integer, tags text[]);
CREATE TYPE nested AS (home address, moods mood[]);
COMMENT ON COLUMN address.street IS 'without number';
CREATE DOMAIN positive AS integer DEFAULT 1 CONSTRAINT above_zero CHECK (VALUE > 0);
CREATE DOMAIN email AS citext CHECK (VALUE ~ '^[^@]+@[^@]+$');
CREATE DOMAIN required AS text NOT NULL;
CREATE DOMAIN matrix AS integer[] CHECK (array_ndims(VALUE) = 2);
COMMENT ON CONSTRAINT above_zero ON DOMAIN positive IS 'one and more';
CREATE TYPE floatrange AS RANGE (subtype = float8, subtype_diff = float8mi, multirange_type_name = floatmulti);
CREATE TYPE shell;

-- functions, procedures, aggregates, operators, casts
CREATE FUNCTION add_em(a integer, b integer DEFAULT 2) RETURNS integer LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN a + b;
CREATE FUNCTION body_text(VARIADIC parts text[]) RETURNS text LANGUAGE sql STABLE AS $$ SELECT array_to_string(parts, '-') $$;
CREATE FUNCTION rows_of(n integer) RETURNS TABLE (i integer, half numeric) LANGUAGE plpgsql ROWS 10 COST 5
    SET work_mem = '1MB' AS $f$
BEGIN
    RETURN QUERY SELECT g, g / 2.0 FROM generate_series(1, n) g;
EXCEPTION WHEN division_by_zero THEN
    RAISE NOTICE 'never';
END
$f$;
CREATE FUNCTION definer(OUT who text, INOUT x integer) LANGUAGE plpgsql SECURITY DEFINER LEAKPROOF AS
    'BEGIN who := current_user; x := x + 1; END';
COMMENT ON FUNCTION add_em(integer, integer) IS 'adds';
CREATE PROCEDURE nothing(INOUT n integer) LANGUAGE sql BEGIN ATOMIC SELECT n + 1; END;
CREATE AGGREGATE product(numeric) (sfunc = numeric_mul, stype = numeric, initcond = '1');
CREATE AGGREGATE my_sum(integer) (sfunc = int4pl, stype = integer, initcond = '0', msfunc = int4pl, minvfunc = int4mi,
    mstype = integer, minitcond = '0');
CREATE AGGREGATE my_rank(VARIADIC "any" ORDER BY VARIADIC "any") (sfunc = ordered_set_transition_multi, stype = internal,
    finalfunc = rank_final, finalfunc_extra, hypothetical);
CREATE FUNCTION close_to(integer, integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT abs($1 - $2) < 3';
CREATE OPERATOR ~~~ (FUNCTION = close_to, LEFTARG = integer, RIGHTARG = integer, COMMUTATOR = ~~~);
CREATE FUNCTION address_of(text) RETURNS address LANGUAGE sql IMMUTABLE AS $$ SELECT ROW($1, 0, NULL)::app.address $$;
CREATE CAST (text AS address) WITH FUNCTION address_of(text) AS ASSIGNMENT;
CREATE COLLATION plain FROM "C";
CREATE CONVERSION my_conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TEXT SEARCH CONFIGURATION my_search (COPY = english);
CREATE TEXT SEARCH DICTIONARY my_dictionary (TEMPLATE = simple, stopwords = english);
ALTER TEXT SEARCH CONFIGURATION my_search ALTER MAPPING FOR asciiword WITH my_dictionary, english_stem;

-- sequences with odd settings
CREATE SEQUENCE down AS smallint INCREMENT BY -3 MINVALUE -300 MAXVALUE 0 START WITH -9 CACHE 7 CYCLE;
CREATE SEQUENCE untouched START WITH 500;
CREATE SEQUENCE far MAXVALUE 9223372036854775807 START WITH 9223372036854775000;
CREATE SEQUENCE uncalled;
SELECT nextval('down'), nextval('far'), setval('uncalled', 77, false);
CREATE UNLOGGED SEQUENCE fleeting;

-- tables: identity, serial, generated, defaults, all constraints
CREATE TABLE person (
    id bigint GENERATED ALWAYS AS IDENTITY (START WITH 10 INCREMENT BY 5) PRIMARY KEY,
    name required COLLATE "C",
    nick text DEFAULT 'it''s "quoted" \ back' CHECK (length(nick) < 100),
    mail email UNIQUE,
    feels mood DEFAULT 'ok',
    home address,
    deep nested,
    upper_name text GENERATED ALWAYS AS (upper(name)) STORED,
    plain integer DEFAULT 4,
    twice integer GENERATED ALWAYS AS (plain * 2) VIRTUAL,
    n positive,
    born date CONSTRAINT sane_date CHECK (born > '1800-01-01'),
    settings hstore,
    details jsonb DEFAULT '{"a": [1, 2, null]}',
    embedding vector(3),
    path ltree,
    boss bigint REFERENCES person ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED,
    to_drop integer,
    CONSTRAINT name_and_mail UNIQUE NULLS NOT DISTINCT (name, mail) INCLUDE (n)
);
ALTER TABLE person DROP COLUMN to_drop;
ALTER TABLE person ADD COLUMN later timestamptz NOT NULL DEFAULT '2024-02-29 12:00:00.123456+00';
ALTER TABLE person ALTER COLUMN details SET STORAGE EXTERNAL, ALTER COLUMN nick SET STATISTICS 500,
    ALTER COLUMN nick SET (n_distinct = -0.5), ALTER COLUMN details SET COMPRESSION pglz;
ALTER TABLE person SET (fillfactor = 70, autovacuum_enabled = false);
COMMENT ON TABLE person IS 'people';
COMMENT ON COLUMN person.nick IS E'line one\nline two \\ backslash';
COMMENT ON CONSTRAINT name_and_mail ON person IS 'together';
CREATE INDEX person_partial ON person (n DESC NULLS LAST, lower(name) text_pattern_ops) WHERE feels <> 'sad';
CREATE UNIQUE INDEX person_expression ON person ((details ->> 'k'), id) INCLUDE (nick);
CREATE INDEX person_opclass ON person USING btree (name text_pattern_ops DESC, mail);
COMMENT ON INDEX person_partial IS 'some';
CREATE INDEX person_range ON person ((int4range(n, n + 10))) WITH (fillfactor = 50);
ALTER INDEX person_expression ALTER COLUMN 1 SET STATISTICS 300;
ALTER TABLE person CLUSTER ON person_pkey;
CREATE STATISTICS person_stats (ndistinct, dependencies, mcv) ON name, n FROM person;
CREATE STATISTICS person_expr ON (lower(name)), (n + 1) FROM person;
ALTER STATISTICS person_stats SET STATISTICS 50;
COMMENT ON STATISTICS person_stats IS 'together';
INSERT INTO person (name, nick, mail, feels, home, deep, n, born, settings, details, embedding, path, boss)
SELECT 'name ' || i, CASE WHEN i % 7 = 0 THEN NULL ELSE E'tab\there, newline\nthere, backslash \\ ' || i END,
       CASE WHEN i % 5 > 0 THEN 'P' || i || '@Example.org' END, (enum_range(NULL::mood))[1 + i % 5],
       ROW('street ' || i, i, ARRAY['x', NULL, '"q"'])::address,
       ROW(ROW('in', i, '{}')::address, ARRAY['sad', 'happy']::mood[])::nested, i,
       date '1990-01-01' + i, hstore('k', i::text), jsonb_build_object('k', i, 'l', jsonb_build_array(i, NULL, 'é')),
       ARRAY[i, i / 2.0, -1]::vector, ('top.l' || i)::ltree, CASE WHEN i > 3 THEN 10 + 5 * (i % 3) END
FROM generate_series(1, 200) i;

CREATE TABLE "Odd Name"."Table ""x""" ("Col umn" serial PRIMARY KEY, "select" smallserial, "Ümlaut" bigserial, "a.b" text);
INSERT INTO "Odd Name"."Table ""x""" ("a.b") VALUES ('\.'), (''), (NULL), (E'\\N'), (E'\r\n'), ('–'), (E'\x01\x7f');

-- every type
CREATE TABLE types (
    b boolean, i2 smallint, i4 integer, i8 bigint, f4 real, f8 double precision, n numeric, n2 numeric(20, 5), m money,
    c char(5), v varchar(9), t text, by bytea, d date, ti time(3), tz timetz, ts timestamp, tsz timestamptz(2), iv interval,
    iv2 interval day to second(2), u uuid, ip inet, ci cidr, ma macaddr, ma8 macaddr8, bi bit(5), vb bit varying(9), j json,
    jb jsonb, x xml, p point, l line, ls lseg, bx box, pa path, po polygon, ci2 circle, tv tsvector, tq tsquery, o oid,
    rc regclass, rt regtype, ia integer[], ta text[][], r4 int4range, r8 int8range, nr numrange, tr tsrange, dr daterange,
    mr int4multirange, fr floatrange, fm floatmulti, mo mood, dm matrix, lsn pg_lsn, xi xid8, ct citext, cu cube, se seg,
    isbn isbn13, jp jsonpath, na name, "char" "char"
);
INSERT INTO types DEFAULT VALUES;
INSERT INTO types (b, i2, i4, i8, f4, f8, n, n2, m, c, v, t, by, d, ti, tz, ts, tsz, iv, iv2, u, ip, ci, ma, ma8, bi, vb, j, jb, p,
    l, ls, bx, pa, po, ci2, tv, tq, o, rc, rt, ia, ta, r4, r8, nr, tr, dr, mr, fr, fm, mo, dm, lsn, xi, ct, cu, se, isbn, jp, na, "char")
VALUES (true, -32768, 2147483647, -9223372036854775808, 'NaN', '-Infinity', 'NaN', 123456789012345.67891, '$1,234.56', 'ab',
    'äöü', E'a\tb', '\x00ff5c', 'infinity', '23:59:59.999', '24:00:00+14:59', '-infinity', '4713-01-01 BC', '1 mon -3 days 04:05:06.7',
    '3 04:05:06.789', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '::1/64', '10/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
    B'10101', B'1', '{"a" :  1, "a":2}', '{"z":1,"a":[{}]}', '(1,-0)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1)]',
    '((0,0),(1,1),(1,0))', '<(1,2),3>', 'a:1A fat:2 cat', 'a & !b | c:*', 4294967295, 'app.person', 'app.mood',
    '[0:2]={1,NULL,3}', '{{a,"b c"},{NULL,"NULL"}}', '[1,5)', 'empty', '(,1.5]', '["2024-01-01 00:00",)', '[2024-01-01,2024-02-01)',
    '{[1,2),[5,9)}', '[1.5,2.5)', '{[1,2),(3,4]}', 'ecstatic', '{{1,2},{3,4}}', '16/B374D848', '18446744073709551615', 'CiText',
    '(1,2),(3,4)', '1.5 .. 2', '978-0-393-04002-9', '$.a[*] ? (@ > 1)', 'a name', 'x'),
    (false, 0, 0, 0, 0, 5e-324, 1e-300, -0.00001, '-$0.01', '', '', '', '', '0001-01-01', '0:0', '0:0-12', '294276-12-31', 'epoch',
    '-178000000 years', '0', '00000000-0000-0000-0000-000000000000', '0.0.0.0', '::/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00',
    B'00000', B'', '[]', 'null', '(0,0)', '{0,1,0}', '[(0,0),(0,0)]', '(0,0),(0,0)', '((0,0))', '((0,0))', '<(0,0),0>', '', '', 0,
    '-', '-', '{}', '{}', '(,)', '(,5)', 'empty', '(,)', '(,)', '{}', '(,)', '{}', 'sad', NULL, '0/0', '0', '', '0', '0',
    NULL, '$', '', '');
INSERT INTO types (t, by, n, jb) SELECT repeat('large é ', 40000), decode(repeat('00ff10', 60000), 'hex'),
    ('1' || repeat('0', 900))::numeric + 1, jsonb_build_object('k', repeat('x', 300000));

-- keys of several types
CREATE TABLE key_kinds (
    t text, n numeric, u uuid, ts timestamptz, m mood, a integer[], PRIMARY KEY (t, n, u),
    UNIQUE (ts, m), UNIQUE (a) DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO key_kinds SELECT 'k' || i % 10, i / 3.0, md5(i::text)::uuid, timestamptz '2024-01-01' + i * interval '1 hour',
    (enum_range(NULL::mood))[1 + i % 5], ARRAY[i, -i] FROM generate_series(1, 300) i;

-- foreign keys: circular, deferrable, all actions, composite, MATCH FULL, partly NOT VALID, to a unique key
CREATE TABLE left_side (id integer PRIMARY KEY, other integer);
CREATE TABLE right_side (id integer PRIMARY KEY, other integer REFERENCES left_side DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE left_side ADD CONSTRAINT to_right FOREIGN KEY (other) REFERENCES right_side ON UPDATE CASCADE ON DELETE CASCADE
    DEFERRABLE INITIALLY IMMEDIATE;
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO left_side SELECT i, 101 - i FROM generate_series(1, 100) i;
INSERT INTO right_side SELECT i, i FROM generate_series(1, 100) i;
COMMIT;
CREATE TABLE key_user (
    t text DEFAULT 'none', n numeric, u uuid, ts timestamptz, m mood,
    FOREIGN KEY (t, n, u) REFERENCES key_kinds MATCH FULL ON DELETE SET NULL,
    CONSTRAINT by_unique FOREIGN KEY (ts, m) REFERENCES key_kinds (ts, m) ON UPDATE SET DEFAULT ON DELETE NO ACTION NOT VALID,
    CHECK (n IS NULL OR n > 0) NO INHERIT
);
INSERT INTO key_user SELECT t, n, u, ts, m FROM key_kinds WHERE n > 20;
ALTER TABLE key_user ADD CONSTRAINT unenforced CHECK (n < 5) NOT ENFORCED;
CREATE INDEX ON key_user (ts);

-- partitions: range, list, hash, nested, default, another column order, a detached and an attached one
CREATE TABLE event (id bigint GENERATED BY DEFAULT AS IDENTITY, at date NOT NULL, kind text NOT NULL, body text,
    PRIMARY KEY (id, at, kind)) PARTITION BY RANGE (at);
CREATE TABLE event_2023 PARTITION OF event FOR VALUES FROM (MINVALUE) TO ('2024-01-01');
CREATE TABLE event_2024 PARTITION OF event (body DEFAULT 'of 2024') FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')
    PARTITION BY LIST (kind);
CREATE TABLE event_2024_a PARTITION OF event_2024 FOR VALUES IN ('a', 'b');
CREATE TABLE event_2024_rest PARTITION OF event_2024 DEFAULT PARTITION BY HASH (id);
CREATE TABLE event_2024_h0 PARTITION OF event_2024_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE event_2024_h1 PARTITION OF event_2024_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE event_default (body text, kind text NOT NULL, gone integer, id bigint NOT NULL, at date NOT NULL);
ALTER TABLE event_default DROP COLUMN gone;
ALTER TABLE event ATTACH PARTITION event_default DEFAULT;
CREATE INDEX event_body ON event (body, at DESC);
CREATE INDEX event_local ON event_2024_a (lower(body));
INSERT INTO event (at, kind, body) SELECT date '2023-06-01' + i, chr(97 + i % 5), 'body ' || i FROM generate_series(1, 900) i;
CREATE TABLE event_note (id bigint, at date, kind text, note text, FOREIGN KEY (id, at, kind) REFERENCES event ON DELETE CASCADE);
INSERT INTO event_note SELECT id, at, kind, 'note' FROM event WHERE id % 10 = 0;

-- inheritance, typed table, unlogged, table of one column, of none
CREATE TABLE base (id integer, what text DEFAULT 'base', CHECK (id > 0));
CREATE TABLE child (extra text, CHECK (id < 1000) NO INHERIT) INHERITS (base);
CREATE TABLE grandchild (what text DEFAULT 'grand') INHERITS (child);
INSERT INTO base VALUES (1); INSERT INTO child VALUES (2, 'child', 'x'); INSERT INTO grandchild VALUES (3);
CREATE TABLE typed OF address (number WITH OPTIONS DEFAULT 7, PRIMARY KEY (number));
INSERT INTO typed VALUES ('s', 1), ('t', 2);
CREATE UNLOGGED TABLE quick (a integer PRIMARY KEY, b text);
INSERT INTO quick SELECT i, 'q' FROM generate_series(1, 50) i;
CREATE TABLE lonely (x text);
INSERT INTO lonely SELECT 'same' FROM generate_series(1, 30);
CREATE TABLE nothing ();
CREATE TABLE replica (a integer NOT NULL, b integer NOT NULL);
CREATE UNIQUE INDEX replica_key ON replica (b);
ALTER TABLE replica REPLICA IDENTITY USING INDEX replica_key;
ALTER TABLE lonely REPLICA IDENTITY FULL;

-- views, materialized views, rules
CREATE VIEW happy_people AS SELECT id, name, mail FROM person WHERE feels > 'ok' WITH CASCADED CHECK OPTION;
CREATE VIEW barrier WITH (security_barrier, security_invoker) AS SELECT * FROM happy_people WHERE id > 50;
CREATE RECURSIVE VIEW chain (id, depth) AS SELECT id, 1 FROM person WHERE boss IS NULL
    UNION ALL SELECT p.id, c.depth + 1 FROM person p JOIN chain c ON p.boss = c.id WHERE c.depth < 4;
COMMENT ON VIEW happy_people IS 'feel well';
ALTER VIEW happy_people ALTER COLUMN name SET DEFAULT 'somebody';
CREATE MATERIALIZED VIEW per_mood AS SELECT feels, count(*) AS n, sum(p.n) AS total FROM person p GROUP BY feels;
CREATE UNIQUE INDEX per_mood_key ON per_mood (feels);
CREATE MATERIALIZED VIEW on_it AS SELECT feels FROM per_mood WHERE n > 1;
CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS one WITH NO DATA;
CREATE VIEW writable AS SELECT x FROM lonely;
CREATE RULE writable_insert AS ON INSERT TO writable WHERE new.x <> 'rule' DO ALSO INSERT INTO base (id) VALUES (9);
CREATE RULE no_delete AS ON DELETE TO base WHERE old.id = 1 DO INSTEAD NOTHING;
ALTER TABLE base DISABLE RULE no_delete;
COMMENT ON RULE no_delete ON base IS 'kept';
-- depend on each other only through a rule
CREATE VIEW view_a AS SELECT 1 AS a, 2 AS b;
CREATE VIEW view_b AS SELECT a FROM view_a;
CREATE OR REPLACE VIEW view_a AS SELECT a, 2 AS b FROM (SELECT 1 AS a) s;

-- triggers
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF TG_OP <> 'DELETE' THEN NEW.later := 'epoch'; RETURN NEW; END IF; RETURN OLD; END $$;
CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER touch_it BEFORE UPDATE OF nick, n ON person FOR EACH ROW WHEN (old.nick IS DISTINCT FROM new.nick) EXECUTE FUNCTION touch();
CREATE TRIGGER many AFTER INSERT ON person REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION noop('a', 'b''c');
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON left_side DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION noop();
CREATE TRIGGER on_event AFTER INSERT ON event FOR EACH ROW EXECUTE FUNCTION noop();
ALTER TABLE event_2023 DISABLE TRIGGER on_event;
CREATE TRIGGER instead INSTEAD OF UPDATE ON writable FOR EACH ROW EXECUTE FUNCTION noop();
CREATE TRIGGER cleared BEFORE TRUNCATE ON lonely EXECUTE FUNCTION noop();
ALTER TABLE person ENABLE ALWAYS TRIGGER touch_it;
COMMENT ON TRIGGER touch_it ON person IS 'time of change';
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER watch ON ddl_command_end WHEN TAG IN ('CREATE VIEW', 'DROP VIEW') EXECUTE FUNCTION on_ddl();
ALTER EVENT TRIGGER watch DISABLE;

-- operator class and family of our own, used by an index
CREATE FUNCTION int_back(integer, integer) RETURNS integer LANGUAGE sql IMMUTABLE STRICT AS 'SELECT btint4cmp($2, $1)';
CREATE OPERATOR FAMILY spare USING btree;

-- roles, grants, policies (roles r_* exist in the cluster already)
ALTER TABLE person ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON person AS RESTRICTIVE FOR SELECT TO r_reader USING (n > 0);
CREATE POLICY writers ON person FOR ALL TO r_writer, r_admin USING (true) WITH CHECK (n < 1000);
COMMENT ON POLICY writers ON person IS 'may';
ALTER TABLE lonely FORCE ROW LEVEL SECURITY;
GRANT USAGE ON SCHEMA app TO r_reader;
GRANT SELECT, INSERT (name, nick), UPDATE (nick) ON person TO r_reader WITH GRANT OPTION;
GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO r_writer;
GRANT EXECUTE ON FUNCTION add_em(integer, integer) TO r_reader;
REVOKE EXECUTE ON FUNCTION add_em(integer, integer) FROM PUBLIC;
GRANT USAGE ON TYPE mood TO r_reader;
REVOKE ALL ON TABLE lonely FROM PUBLIC;
GRANT MAINTAIN, TRUNCATE, REFERENCES, TRIGGER ON lonely TO r_writer;
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO r_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE r_writer REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER TABLE base OWNER TO r_writer;
ALTER FUNCTION body_text(text[]) OWNER TO r_admin;
ALTER TYPE address OWNER TO r_admin;
ALTER SEQUENCE untouched OWNER TO r_writer;

-- foreign data: catalogs only
CREATE FOREIGN DATA WRAPPER nowhere OPTIONS (a 'b');
CREATE SERVER away FOREIGN DATA WRAPPER nowhere OPTIONS (host 'x');
CREATE USER MAPPING FOR r_reader SERVER away OPTIONS (password 'secret');
CREATE FOREIGN TABLE distant (id integer OPTIONS (c 'd') NOT NULL, t text) SERVER away OPTIONS (t 'u');

-- large objects
SELECT lo_from_bytea(70001, decode(repeat('0123456789abcdef', 3000), 'hex'));
SELECT lo_create(70002);
GRANT SELECT ON LARGE OBJECT 70001 TO r_reader;
COMMENT ON LARGE OBJECT 70001 IS 'a large one';

ALTER DATABASE :"DBNAME" SET work_mem = '7MB';
ANALYZE;
