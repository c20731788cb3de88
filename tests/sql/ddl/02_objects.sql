-- Types, functions, operators, triggers, rules, policies, text search, foreign data.
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
ALTER TYPE mood ADD VALUE 'great' AFTER 'happy';
ALTER TYPE mood ADD VALUE 'meh' BEFORE 'ok';
ALTER TYPE mood RENAME VALUE 'great' TO 'excellent';
CREATE TYPE pair AS (a int, b text);
ALTER TYPE pair ADD ATTRIBUTE c numeric;
ALTER TYPE pair ALTER ATTRIBUTE c TYPE text;
ALTER TYPE pair DROP ATTRIBUTE c;
ALTER TYPE pair RENAME ATTRIBUTE b TO bb;
CREATE DOMAIN positive AS int DEFAULT 1 CHECK (VALUE > 0);
CREATE TABLE domains (id int PRIMARY KEY, p positive, m mood, pr pair);
INSERT INTO domains VALUES (1, 5, 'ok', '(1,x)');
ALTER DOMAIN positive ADD CONSTRAINT small CHECK (VALUE < 1000) NOT VALID;
ALTER DOMAIN positive VALIDATE CONSTRAINT small;
ALTER DOMAIN positive ADD CONSTRAINT not_seven CHECK (VALUE <> 7);
ALTER DOMAIN positive SET DEFAULT 3;
ALTER DOMAIN positive DROP CONSTRAINT not_seven;
ALTER DOMAIN positive SET NOT NULL;
CREATE DOMAIN nested AS positive CHECK (VALUE % 2 = 0);
CREATE TYPE floatspan AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TYPE shell;
CREATE FUNCTION add_one(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
CREATE OR REPLACE FUNCTION add_one(int) RETURNS int LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN $1 + 1;
CREATE FUNCTION atomic_body(x int) RETURNS int BEGIN ATOMIC SELECT p FROM domains WHERE id = x; END;
CREATE FUNCTION long_body() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'x'; /* filler filler filler */ END $$;
DO $do$
BEGIN
    -- large and hard to compress: its row goes out of line in the catalog
    EXECUTE format('CREATE FUNCTION big_body() RETURNS text LANGUAGE sql AS %L',
        'SELECT ''' || (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) i) || '''');
END $do$;
CREATE OR REPLACE FUNCTION long_body() RETURNS text LANGUAGE plpgsql SET search_path = public AS $$ BEGIN RETURN 'y'; END $$;
ALTER FUNCTION add_one(int) RENAME TO increment;
ALTER FUNCTION increment(int) COST 10;
ALTER FUNCTION long_body() SECURITY DEFINER;
CREATE PROCEDURE do_it(INOUT n int) LANGUAGE plpgsql AS $$ BEGIN n := n + 1; END $$;
CREATE AGGREGATE product(float8) (SFUNC = float8mul, STYPE = float8, INITCOND = '1');
CREATE FUNCTION pair_lt(pair, pair) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.a < $2.a';
CREATE FUNCTION pair_le(pair, pair) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.a <= $2.a';
CREATE FUNCTION pair_eq(pair, pair) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.a = $2.a';
CREATE FUNCTION pair_ge(pair, pair) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.a >= $2.a';
CREATE FUNCTION pair_gt(pair, pair) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.a > $2.a';
CREATE FUNCTION pair_cmp(pair, pair) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1.a - $2.a';
CREATE OPERATOR <| (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_lt, COMMUTATOR = |>, NEGATOR = >=|);
CREATE OPERATOR <=| (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_le);
CREATE OPERATOR =| (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_eq, COMMUTATOR = =|, MERGES, HASHES);
CREATE OPERATOR >=| (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_ge, NEGATOR = <|);
CREATE OPERATOR |> (LEFTARG = pair, RIGHTARG = pair, FUNCTION = pair_gt, COMMUTATOR = <|);
ALTER OPERATOR <| (pair, pair) SET (RESTRICT = scalarltsel);
CREATE OPERATOR FAMILY pair_family USING btree;
CREATE OPERATOR CLASS pair_ops FOR TYPE pair USING btree FAMILY pair_family AS
    OPERATOR 1 <|, OPERATOR 2 <=|, OPERATOR 3 =|, OPERATOR 4 >=|, OPERATOR 5 |>, FUNCTION 1 pair_cmp(pair, pair);
ALTER OPERATOR FAMILY pair_family USING btree ADD FUNCTION 2 (pair, pair) btint4sortsupport(internal);
CREATE OPERATOR CLASS pair_ops2 FOR TYPE pair USING btree AS
    OPERATOR 1 <|, OPERATOR 2 <=|, OPERATOR 3 =|, OPERATOR 4 >=|, OPERATOR 5 |>, FUNCTION 1 pair_cmp(pair, pair);
ALTER OPERATOR CLASS pair_ops2 USING btree RENAME TO pair_ops3;
DROP OPERATOR CLASS pair_ops3 USING btree;
CREATE CAST (pair AS text) WITH INOUT AS ASSIGNMENT;
CREATE COLLATION c_like (LOCALE = 'C');
CREATE CONVERSION my_conv FOR 'UTF8' TO 'LATIN1' FROM utf8_to_iso8859_1;
-- triggers, rules, policies
CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER before_all BEFORE INSERT OR UPDATE ON domains FOR EACH ROW EXECUTE FUNCTION trg();
CREATE TRIGGER transition AFTER INSERT ON domains REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION trg();
CREATE CONSTRAINT TRIGGER deferred AFTER DELETE ON domains DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION trg();
ALTER TRIGGER before_all ON domains RENAME TO before_any;
ALTER TABLE domains DISABLE TRIGGER before_any;
ALTER TABLE domains ENABLE ALWAYS TRIGGER before_any;
DROP TRIGGER transition ON domains;
CREATE RULE no_delete AS ON DELETE TO domains DO INSTEAD NOTHING;
ALTER RULE no_delete ON domains RENAME TO never_delete;
ALTER TABLE domains DISABLE RULE never_delete;
ALTER TABLE domains ENABLE ROW LEVEL SECURITY;
ALTER TABLE domains FORCE ROW LEVEL SECURITY;
CREATE POLICY few0 ON domains FOR SELECT USING (id > 0);
CREATE POLICY writes ON domains AS RESTRICTIVE FOR ALL TO public USING (true) WITH CHECK (id < 100);
ALTER POLICY few0 ON domains USING (id > 1);
ALTER POLICY few0 ON domains RENAME TO few;
DROP POLICY writes ON domains;
CREATE FUNCTION ddl_seen() RETURNS event_trigger LANGUAGE plpgsql AS $$
    DECLARE r record; BEGIN FOR r IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP PERFORM r.objid; END LOOP; END $$;
CREATE EVENT TRIGGER watch ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION ddl_seen();
CREATE TABLE watched (a int);
ALTER EVENT TRIGGER watch DISABLE;
DROP EVENT TRIGGER watch;
CREATE STATISTICS st (ndistinct, dependencies, mcv) ON id, m FROM domains;
CREATE STATISTICS st_expr ON (id + 1), (id % 10) FROM domains;
ALTER STATISTICS st SET STATISTICS 100;
ANALYZE domains;
DROP STATISTICS st_expr;
-- text search
CREATE TEXT SEARCH DICTIONARY dict (TEMPLATE = simple, STOPWORDS = english);
CREATE TEXT SEARCH CONFIGURATION conf (COPY = english);
ALTER TEXT SEARCH CONFIGURATION conf ALTER MAPPING FOR asciiword WITH dict, english_stem;
ALTER TEXT SEARCH DICTIONARY dict (ACCEPT = false);
CREATE TEXT SEARCH PARSER pars (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype);
-- foreign data, languages, transforms
CREATE FOREIGN DATA WRAPPER wrap;
CREATE SERVER srv FOREIGN DATA WRAPPER wrap OPTIONS (host 'nowhere');
CREATE USER MAPPING FOR CURRENT_USER SERVER srv OPTIONS (user 'x');
CREATE FOREIGN TABLE ft (a int, b text) SERVER srv OPTIONS (t 'u');
ALTER FOREIGN TABLE ft ADD COLUMN c int;
ALTER SERVER srv OPTIONS (SET host 'somewhere');
DROP FOREIGN TABLE ft;
CREATE ACCESS METHOD mine TYPE INDEX HANDLER bthandler;
-- extensions
CREATE SCHEMA ext;
CREATE EXTENSION citext SCHEMA ext;
CREATE EXTENSION hstore;
CREATE EXTENSION pg_trgm;
CREATE EXTENSION intarray;
CREATE EXTENSION unaccent;
CREATE EXTENSION seg;
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION ltree;
CREATE EXTENSION cube;
CREATE EXTENSION isn;
ALTER EXTENSION hstore SET SCHEMA ext;
ALTER EXTENSION hstore ADD FUNCTION increment(int);
ALTER EXTENSION hstore DROP FUNCTION increment(int);
CREATE TABLE uses_ext (c ext.citext PRIMARY KEY, h ext.hstore, l ltree);
INSERT INTO uses_ext VALUES ('Abc', 'a=>1', 'x.y');
DROP EXTENSION isn;
DROP EXTENSION cube CASCADE;
-- comments
COMMENT ON TABLE domains IS 'a table';
COMMENT ON COLUMN domains.p IS 'a column';
COMMENT ON TYPE mood IS 'a type';
COMMENT ON FUNCTION increment(int) IS 'a function';
COMMENT ON SCHEMA ext IS 'a schema';
COMMENT ON DATABASE postgres IS 'the database';
COMMENT ON TABLE domains IS 'another text';
COMMENT ON COLUMN domains.p IS NULL;
COMMENT ON CONSTRAINT domains_pkey ON domains IS 'key';
COMMENT ON TRIGGER before_any ON domains IS 'trigger';
-- in a DO block, with a subtransaction that fails
DO $$
BEGIN
    CREATE TABLE by_do (a int PRIMARY KEY, b int);
    BEGIN
        CREATE TABLE by_do_lost (a int);
        ALTER TABLE by_do ADD COLUMN lost int;
        RAISE EXCEPTION 'undo';
    EXCEPTION WHEN raise_exception THEN
        CREATE TABLE by_do_handler (a int);
    END;
    FOR i IN 1..5 LOOP
        EXECUTE format('CREATE TABLE by_loop_%s (x int, y text)', i);
    END LOOP;
    DROP TABLE by_loop_3;
END $$;
-- dropping what depends
DROP TYPE shell;
DROP FUNCTION trg() CASCADE;
DROP DOMAIN nested;
ALTER TABLE domains DROP COLUMN pr;
DROP OPERATOR FAMILY pair_family USING btree CASCADE;
DROP TYPE pair CASCADE;
DROP SERVER srv CASCADE;
