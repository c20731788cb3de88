-- What: index scans, uniqueness and builds give PostgreSQL's answers. Runs the
-- same on stock PostgreSQL and on ours; the outputs must be equal, line by
-- line. Sequential scans are off, so that every condition goes through an index.
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET timezone = 'Europe/Berlin';
SET client_min_messages = warning;
DROP SCHEMA IF EXISTS index_test CASCADE;
CREATE SCHEMA index_test;
SET search_path = index_test, public;

-- primary key: points, ranges, lists, order
CREATE TABLE p (id int PRIMARY KEY, v text, n numeric);
INSERT INTO p SELECT g, 'v' || g % 10, g / 3.0 FROM generate_series(1, 200) g;
SELECT * FROM p WHERE id = 7;
SELECT * FROM p WHERE id = 700;
SELECT id FROM p WHERE id > 195 ORDER BY id;
SELECT id FROM p WHERE id >= 195 AND id < 198 ORDER BY id;
SELECT id FROM p WHERE id <= 3 ORDER BY id DESC;
SELECT id FROM p WHERE id < 3 OR id > 199 ORDER BY id;
SELECT id FROM p WHERE id IN (5, 3, 3, 900, NULL, 7) ORDER BY id;
SELECT id FROM p WHERE id IN (5, 3, 3, 900, NULL, 7) ORDER BY id DESC;
SELECT id FROM p WHERE id = ANY ('{}'::int[]);
SELECT id FROM p WHERE id = ANY ('{1,2,3}') AND id > 1 ORDER BY id;
SELECT id FROM p WHERE id = ANY ('{1,2,3}') AND id = ANY ('{3,4,2}') ORDER BY id;
SELECT id FROM p WHERE id < ANY ('{2,4,NULL}') ORDER BY id;
SELECT id FROM p WHERE id >= ANY ('{199,200,NULL}') ORDER BY id;
SELECT id FROM p WHERE id > 5 AND id < 5;
SELECT id FROM p WHERE id = 5 AND id = 6;
SELECT id FROM p WHERE id = NULL;
SELECT id FROM p WHERE id IS NULL;
SELECT count(*) FROM p WHERE id IS NOT NULL;
SELECT id FROM p WHERE id = 5::bigint;
SELECT id FROM p WHERE id > 3000000000;
SELECT count(*) FROM p WHERE id < 3000000000;
SELECT id FROM p WHERE id = 70000::smallint::int + 0 OR id = 4::smallint;
SELECT min(id), max(id) FROM p;
SELECT id FROM p ORDER BY id LIMIT 3;
SELECT id FROM p ORDER BY id DESC LIMIT 3 OFFSET 5;
SELECT a.id, b.id FROM p a JOIN p b ON b.id = a.id + 1 WHERE a.id < 4 ORDER BY 1;

-- secondary: duplicates, NULLs, several columns
CREATE TABLE s (id int PRIMARY KEY, a int, b text, c float8, d timestamp);
INSERT INTO s SELECT g, nullif(g % 7, 0), nullif('b' || g % 5, 'b0'), g / 4.0,
  timestamp '2024-03-30 12:00' + g * interval '1 hour' FROM generate_series(1, 150) g;
CREATE INDEX s_ab ON s (a, b DESC NULLS LAST, c);
CREATE INDEX s_d ON s (d);
CREATE INDEX s_c ON s (c DESC) INCLUDE (b);
SELECT count(*), sum(id) FROM s WHERE a = 3;
SELECT count(*), sum(id) FROM s WHERE a IS NULL;
SELECT count(*), sum(id) FROM s WHERE a IS NOT NULL;
SELECT count(*), sum(id) FROM s WHERE a IS NULL AND b IS NULL;
SELECT count(*), sum(id) FROM s WHERE a = 3 AND b = 'b2';
SELECT id FROM s WHERE a = 3 AND b > 'b2' ORDER BY a, b DESC NULLS LAST, c;
SELECT id FROM s WHERE a IN (1, 3) AND b IN ('b1', 'b3') AND c > 10 ORDER BY a, b DESC NULLS LAST, c;
SELECT id FROM s WHERE a IN (1, 3) AND b IN ('b1', 'b3') AND c > 10 ORDER BY a DESC, b NULLS FIRST, c DESC;
SELECT id FROM s WHERE a = 3 AND c < 10 ORDER BY b DESC NULLS LAST, c;
SELECT id FROM s WHERE b = 'b2' AND a > 4 ORDER BY id;
SELECT id FROM s WHERE b = 'b2' ORDER BY id;
SELECT id FROM s WHERE a < 3 AND b IS NULL AND c BETWEEN 3 AND 20 ORDER BY id;
SELECT id FROM s WHERE (a, b) > (5, 'b2') ORDER BY id;
SELECT id FROM s WHERE (a, c) >= (5, 20) ORDER BY id;
SELECT id FROM s WHERE (a, b) < (2, 'b2') ORDER BY id;
SELECT id FROM s WHERE (a, b, c) <= (2, 'b2', 20) ORDER BY id;
SELECT id FROM s WHERE (a, b) = (2, 'b2') ORDER BY id;
SELECT id FROM s WHERE (a, c) > (5, NULL) ORDER BY id;
SELECT id FROM s WHERE (a, c) > (NULL, 5) ORDER BY id;
SELECT id FROM s WHERE c > 30 AND c <= 31::float4 ORDER BY c;
SELECT c, b FROM s WHERE c < 1.3 ORDER BY c DESC;
SELECT count(*) FROM s WHERE c = 'NaN';
SELECT id FROM s WHERE d > timestamptz '2024-03-31 01:30 Europe/Berlin' AND d <= timestamptz '2024-03-31 05:00 Europe/Berlin' ORDER BY d;
SELECT id FROM s WHERE d = timestamptz '2024-03-31 05:00 Europe/Berlin';
SELECT id FROM s WHERE d < date '2024-03-31' ORDER BY d;
SELECT id FROM s WHERE d >= date '2024-04-05' ORDER BY d;
SELECT count(*) FROM s WHERE d < timestamptz 'infinity';
SELECT count(*) FROM s WHERE d < date 'infinity' AND d > date '-infinity';
SELECT count(*) FROM s WHERE d < date '5874897-12-31';
SELECT id FROM s WHERE d = date '2024-04-01';
CREATE TABLE dates (d date PRIMARY KEY, tz timestamptz UNIQUE);
INSERT INTO dates SELECT date '2024-01-01' + g, timestamptz '2024-01-01 00:00 Europe/Berlin' + g * interval '1 day' FROM generate_series(0, 400) g;
INSERT INTO dates VALUES ('infinity', 'infinity'), ('-infinity', '-infinity');
SELECT count(*) FROM dates WHERE d < timestamp '2024-02-01 00:00';
SELECT count(*) FROM dates WHERE d < timestamp '2024-02-01 10:00';
SELECT count(*) FROM dates WHERE d <= timestamp '2024-02-01 10:00';
SELECT count(*) FROM dates WHERE d > timestamp '2024-02-01 10:00';
SELECT count(*) FROM dates WHERE d >= timestamp '2024-02-01 00:00';
SELECT * FROM dates WHERE d = timestamp '2024-02-01 00:00';
SELECT * FROM dates WHERE d = timestamp '2024-02-01 10:00';
SELECT * FROM dates WHERE d IN (date '2024-05-01', date 'infinity') ORDER BY d;
SELECT count(*) FROM dates WHERE d < timestamptz '2024-02-01 00:00 Europe/Berlin';
SELECT count(*) FROM dates WHERE d <= timestamptz '2024-02-01 00:00 Europe/Berlin';
SELECT * FROM dates WHERE d = timestamptz '2024-02-01 00:00 Europe/Berlin';
SELECT * FROM dates WHERE d = timestamptz '-infinity';
SELECT count(*) FROM dates WHERE tz < date '2024-02-01';
SELECT count(*) FROM dates WHERE tz <= timestamp '2024-02-01';
SELECT * FROM dates WHERE tz = timestamp '2024-07-01';

-- text: prefixes, equality with padding and name
CREATE TABLE words (w text, f char(8), n name);
INSERT INTO words SELECT repeat(chr(97 + g % 4), g % 6), chr(97 + g % 4) || repeat(' ', g % 3), 'n' || g % 12 FROM generate_series(0, 60) g;
CREATE INDEX words_w ON words (w);
CREATE INDEX words_f ON words (f);
CREATE INDEX words_n ON words (n);
SELECT w, count(*) FROM words WHERE w LIKE 'bb%' GROUP BY w ORDER BY w;
SELECT w, count(*) FROM words WHERE w ^@ 'cc' GROUP BY w ORDER BY w;
SELECT count(*) FROM words WHERE w = '';
SELECT count(*) FROM words WHERE w > 'c' AND w < 'cccc';
SELECT count(*) FROM words WHERE f = 'a';
SELECT count(*) FROM words WHERE f > 'a  ' AND f <= 'c';
SELECT count(*) FROM words WHERE n = 'n3';
SELECT count(*) FROM words WHERE n = 'n3'::text;
SELECT n, count(*) FROM words WHERE n >= 'n10' AND n < 'n2' GROUP BY n ORDER BY n;
SELECT DISTINCT n FROM words ORDER BY n DESC LIMIT 4;

-- index-only scans, backward
SELECT a, b FROM s WHERE a = 2 ORDER BY a, b DESC NULLS LAST;
SELECT a, b FROM s WHERE a IN (2, 4) ORDER BY a DESC, b NULLS FIRST LIMIT 5;
SELECT c, b FROM s WHERE c BETWEEN 1 AND 3 ORDER BY c;
SELECT id FROM p WHERE id BETWEEN 10 AND 12;

-- cursors: direction changes at and beyond the ends
BEGIN;
DECLARE cur SCROLL CURSOR FOR SELECT id FROM p WHERE id IN (1, 2, 50, 199, 200) OR id IS NULL ORDER BY id;
DECLARE cur2 SCROLL CURSOR FOR SELECT id FROM p WHERE id IN (1, 2, 50, 199, 200) ORDER BY id;
DECLARE cur3 SCROLL CURSOR FOR SELECT id FROM s WHERE a IN (2, 3) AND c < 12 ORDER BY a, b DESC NULLS LAST, c;
FETCH 2 FROM cur2; FETCH BACKWARD 1 FROM cur2; FETCH ALL FROM cur2; FETCH BACKWARD 2 FROM cur2; FETCH FORWARD 1 FROM cur2;
FETCH BACKWARD ALL FROM cur2; FETCH 1 FROM cur2; FETCH LAST FROM cur2; FETCH FIRST FROM cur2; FETCH ABSOLUTE 3 FROM cur2; FETCH RELATIVE -1 FROM cur2;
FETCH 3 FROM cur3; FETCH BACKWARD 2 FROM cur3; FETCH 5 FROM cur3; FETCH ALL FROM cur3; FETCH BACKWARD 3 FROM cur3; MOVE BACKWARD ALL IN cur3; FETCH 2 FROM cur3;
COMMIT;

-- merge joins with mark and restore; nested loops with new keys
SET enable_hashjoin = off; SET enable_nestloop = off;
CREATE TABLE m (k int, x int);
INSERT INTO m SELECT g % 5, g FROM generate_series(1, 30) g;
CREATE INDEX m_k ON m (k);
SELECT count(*), sum(a.x * b.x) FROM m a JOIN m b ON a.k = b.k;
SELECT count(*), sum(a.x * b.id) FROM m a JOIN s b ON a.k = b.a;
SELECT count(*), sum(a.x + b.x) FROM m a JOIN (SELECT * FROM m ORDER BY k DESC) b ON a.k = b.k;
RESET enable_nestloop; SET enable_mergejoin = off;
SELECT count(*), sum(a.x * b.id) FROM m a JOIN s b ON a.k = b.a AND b.c < a.x;
SELECT count(*), sum(b.id) FROM m a JOIN p b ON b.id = a.x;
SELECT count(*), sum(b.id) FROM m a LEFT JOIN p b ON b.id = a.x * 10;
RESET enable_hashjoin; RESET enable_mergejoin;

-- uniqueness: messages, NULLs, expressions, INCLUDE, partial
CREATE TABLE u (id int PRIMARY KEY, a int, b text, c int, UNIQUE (a), CONSTRAINT u_bc UNIQUE NULLS NOT DISTINCT (b, c) INCLUDE (id));
INSERT INTO u VALUES (1, 1, 'x', 1), (2, NULL, 'x', 2), (3, NULL, NULL, 3);
\set VERBOSITY default
\set SHOW_CONTEXT never
INSERT INTO u VALUES (1, 5, 'n', 5);
INSERT INTO u VALUES (4, 1, 'n', 5);
INSERT INTO u VALUES (4, 5, 'x', 1);
INSERT INTO u VALUES (4, 5, NULL, 3);
\set VERBOSITY default
INSERT INTO u VALUES (4, NULL, NULL, 4);
UPDATE u SET a = 1 WHERE id = 2;
UPDATE u SET a = 2 WHERE id = 2;
UPDATE u SET a = a WHERE id = 2;
UPDATE u SET a = NULL WHERE id = 1;
UPDATE u SET a = 1 WHERE id = 2;
UPDATE u SET id = id + 100 WHERE id = 2;
SELECT * FROM u ORDER BY id;
SELECT * FROM u WHERE a = 1;
SELECT * FROM u WHERE a IS NULL ORDER BY id;
SELECT * FROM u WHERE b IS NULL AND c = 3;
DELETE FROM u WHERE a = 1 RETURNING *;
INSERT INTO u VALUES (5, 1, 'q', 1) RETURNING *;
INSERT INTO u VALUES (6, 1, 'r', 1) ON CONFLICT (a) DO UPDATE SET b = excluded.b, c = u.c + 10 RETURNING *;
INSERT INTO u VALUES (6, 1, 'r', 11) ON CONFLICT DO NOTHING RETURNING *;
INSERT INTO u VALUES (6, 7, 'r', 11) ON CONFLICT (b, c) DO NOTHING RETURNING *;
INSERT INTO u VALUES (6, 1, 'r', 99) ON CONFLICT (b, c) DO NOTHING RETURNING *;
INSERT INTO u VALUES (6, 60, 'i', 1), (6, 61, 'j', 1) ON CONFLICT (id) DO UPDATE SET b = 'twice';
SELECT * FROM u WHERE b = 'r' AND c = 11;
CREATE TABLE e (id int PRIMARY KEY, t text, deleted bool DEFAULT false);
CREATE UNIQUE INDEX e_lower ON e (lower(t)) WHERE NOT deleted;
CREATE INDEX e_len ON e (length(t), id DESC);
INSERT INTO e VALUES (1, 'Abc'), (2, 'abc', true), (3, 'ABCD');
INSERT INTO e VALUES (4, 'aBc');
UPDATE e SET deleted = false WHERE id = 2;
UPDATE e SET deleted = true WHERE id = 1;
UPDATE e SET deleted = false WHERE id = 2;
INSERT INTO e VALUES (5, 'ABC') ON CONFLICT (lower(t)) WHERE NOT deleted DO UPDATE SET t = 'was ' || e.t RETURNING *;
CREATE UNIQUE INDEX e_pattern ON e (t text_pattern_ops);
INSERT INTO e VALUES (9, 'ABCD') ON CONFLICT (t text_pattern_ops) DO NOTHING RETURNING *;
INSERT INTO e VALUES (9, 'ABCD') ON CONFLICT (t text_ops) DO NOTHING RETURNING *;
INSERT INTO e VALUES (9, 'ABCD') ON CONFLICT (t COLLATE "C" text_pattern_ops) DO UPDATE SET t = e.t || '!' RETURNING *;
SELECT * FROM e WHERE lower(t) = 'abcd!' AND NOT deleted;
SELECT * FROM e WHERE length(t) > 3 ORDER BY length(t), id DESC;
SELECT id FROM e WHERE length(t) = 3 ORDER BY id DESC;
DELETE FROM e WHERE length(t) = 3;
SELECT id FROM e WHERE length(t) = 3 ORDER BY id DESC;

-- deferrable uniqueness
CREATE TABLE d (id int PRIMARY KEY DEFERRABLE INITIALLY IMMEDIATE, x int UNIQUE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO d SELECT g, g FROM generate_series(1, 5) g;
UPDATE d SET id = id + 1;
UPDATE d SET x = 6 - x;
BEGIN;
INSERT INTO d VALUES (10, 3);
SELECT count(*) FROM d WHERE x = 3;
UPDATE d SET x = 30 WHERE id = 10;
COMMIT;
BEGIN;
INSERT INTO d VALUES (11, 3);
COMMIT;
BEGIN;
INSERT INTO d VALUES (11, 3);
DELETE FROM d WHERE x = 3 AND id <> 11;
SET CONSTRAINTS ALL IMMEDIATE;
COMMIT;
INSERT INTO d VALUES (11, NULL);
INSERT INTO d VALUES (12, NULL), (13, NULL);
UPDATE d SET id = 1 WHERE id = 12;
UPDATE d SET id = 1 WHERE id = 13;
SELECT * FROM d ORDER BY id;
SELECT * FROM d WHERE x >= 2 ORDER BY x;

-- what a statement sees of its own entries; savepoints
BEGIN;
INSERT INTO m SELECT k, x + 1000 FROM m WHERE k = 3;
SELECT count(*) FROM m WHERE k = 3;
SAVEPOINT a;
UPDATE m SET k = k + 1 WHERE k >= 3;
SELECT k, count(*) FROM m WHERE k > 1 GROUP BY k ORDER BY k;
DELETE FROM m WHERE k = 5;
ROLLBACK TO a;
SELECT k, count(*) FROM m WHERE k > 1 GROUP BY k ORDER BY k;
DELETE FROM m WHERE k = 3 AND x > 1000;
SELECT k, count(*) FROM m WHERE k > 1 GROUP BY k ORDER BY k;
ROLLBACK;
SELECT k, count(*) FROM m WHERE k > 1 GROUP BY k ORDER BY k;

-- building on rows; failing builds
CREATE TABLE b (x int, y text);
INSERT INTO b SELECT g % 50, 'y' || g FROM generate_series(1, 3000) g;
CREATE INDEX b_x ON b (x);
CREATE UNIQUE INDEX b_y ON b (y);
\set VERBOSITY default
CREATE UNIQUE INDEX b_bad ON b ((x * 0));
\set VERBOSITY default
CREATE INDEX b_part ON b (y) WHERE x = 7;
SELECT count(*), min(y), max(y) FROM b WHERE x = 7;
SELECT count(*) FROM b WHERE y > 'y2999';
SELECT y FROM b WHERE x = 7 ORDER BY y LIMIT 3;
INSERT INTO b VALUES (1, 'y17');
-- (with both, ours would report the primary key, stock the older index)
DROP INDEX b_y;
ALTER TABLE b ADD PRIMARY KEY (y);
INSERT INTO b VALUES (1, 'y17');
SELECT * FROM b WHERE y = 'y17';
REINDEX TABLE b;
SELECT count(*) FROM b WHERE x = 8;
SELECT * FROM b WHERE y = 'y18';
BEGIN;
CREATE UNIQUE INDEX b_xy ON b (x, y);
INSERT INTO b VALUES (99, 'new');
SELECT * FROM b WHERE x = 99;
ROLLBACK;
SELECT * FROM b WHERE x = 99;
TRUNCATE b;
SELECT * FROM b WHERE x = 7;
INSERT INTO b VALUES (7, 'again');
SELECT * FROM b WHERE x = 7;
SELECT * FROM b WHERE y = 'again';
DROP INDEX b_x;

-- every type: an ascending and a descending index agree with the type's order
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE FUNCTION try_type(type text, inputs text[]) RETURNS TABLE (variant text, op text, total bigint, hash text) LANGUAGE plpgsql AS $$
DECLARE variant_options text; o text; i int;
BEGIN
  FOREACH variant_options IN ARRAY ARRAY['ASC', 'DESC', 'ASC NULLS FIRST', 'DESC NULLS LAST'] LOOP
    EXECUTE format('CREATE TABLE tt (id int, x %s)', type);
    EXECUTE format('INSERT INTO tt SELECT i, t::%s FROM unnest($1) WITH ORDINALITY u(t, i)', type) USING inputs;
    EXECUTE format('CREATE INDEX tt_x ON tt (x %s)', variant_options);
    EXECUTE format('INSERT INTO tt SELECT 100 + i, t::%s FROM unnest($1) WITH ORDINALITY u(t, i)', type) USING inputs;
    FOREACH o IN ARRAY ARRAY['<', '<=', '=', '>=', '>'] LOOP
      variant := variant_options; op := o; total := 0; hash := '';
      FOR i IN 1 .. array_length(inputs, 1) LOOP
        DECLARE n bigint; h text;
        BEGIN
          EXECUTE format('SELECT count(*), string_agg(id::text, '','' ORDER BY id) FROM (SELECT id FROM tt WHERE x %s %L::%s ORDER BY x %s) s',
            o, inputs[i], type, variant_options) INTO n, h;
          total := total + n; hash := md5(hash || coalesce(h, ''));
        END;
      END LOOP;
      RETURN NEXT;
    END LOOP;
    -- order: ties by id don't matter, so show the values
    op := 'order'; total := 0;
    EXECUTE format('SELECT count(*), md5(string_agg(coalesce(x::text, ''NULL''), ''|'')) FROM (SELECT DISTINCT ON (x) x FROM tt ORDER BY x %s, id) s', variant_options) INTO total, hash;
    RETURN NEXT;
    DROP TABLE tt;
  END LOOP;
END $$;
SELECT 'bool' AS type, * FROM try_type('bool', '{t,f,NULL}');
SELECT 'numeric' AS type, * FROM try_type('numeric', '{0,1,1.0,-1,NaN,Infinity,-Infinity,10000,9999.9999,1e-20,NULL}');
SELECT 'float4' AS type, * FROM try_type('float4', '{0,1,-1,NaN,Infinity,-Infinity,1e-20,NULL}');
SELECT 'text' AS type, * FROM try_type('text', ARRAY['', 'a', 'ab', 'abcdefgh', 'abcdefghi', 'é', NULL]);
SELECT 'bytea' AS type, * FROM try_type('bytea', ARRAY['', '\x00', '\x0000', '\xff', '\x0000000000000000', '\x000000000000000000', NULL]);
SELECT 'uuid' AS type, * FROM try_type('uuid', ARRAY['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', NULL]);
SELECT 'interval' AS type, * FROM try_type('interval', ARRAY['0', '1 day', '2 days', '-1 month', 'infinity', NULL]);
SELECT 'timetz' AS type, * FROM try_type('timetz', ARRAY['00:00+00', '12:00+02', '12:00+03', '10:00+00', NULL]);
SELECT 'inet' AS type, * FROM try_type('inet', '{10.0.0.0/8,10.0.0.0,10.1.0.0/16,::1,NULL}');
SELECT 'cidr' AS type, * FROM try_type('cidr', '{10.0.0.0/8,10.0.0.0,10.1.0.0/16,::1,NULL}');
SELECT 'macaddr' AS type, * FROM try_type('macaddr', '{00:00:00:00:00:00,ff:ff:ff:ff:ff:ff,NULL}');
SELECT 'varbit' AS type, * FROM try_type('varbit', ARRAY['', '0', '1', '10', '100000000', NULL]);
SELECT 'mood' AS type, * FROM try_type('mood', '{sad,ok,happy,NULL}');
SELECT 'pair' AS type, * FROM try_type('pair', ARRAY['(1,a)', '(1,)', '(,)', '(2,a)', NULL]);
SELECT 'int[]' AS type, * FROM try_type('int[]', ARRAY['{}', '{1}', '{1,NULL}', '{2}', '{{1}}', NULL]);
SELECT 'text[]' AS type, * FROM try_type('text[]', ARRAY['{}', '{a}', '{a,b}', '{NULL}', NULL]);
SELECT 'int4range' AS type, * FROM try_type('int4range', ARRAY['empty', '[1,2)', '(,)', '[1,)', NULL]);
SELECT 'nummultirange' AS type, * FROM try_type('nummultirange', ARRAY['{}', '{[1,2)}', '{[1,2),[3,4]}', NULL]);
SELECT 'jsonb' AS type, * FROM try_type('jsonb', ARRAY['null', 'true', '1', '"a"', '[]', '[1]', '{}', '{"a": 1}', NULL]);
SELECT 'xid8' AS type, * FROM try_type('xid8', '{0,1,18446744073709551615,NULL}');
SELECT 'pg_lsn' AS type, * FROM try_type('pg_lsn', '{0/0,FFFFFFFF/FFFFFFFF,NULL}');
SELECT 'money' AS type, * FROM try_type('money', '{0,1,-1,NULL}');
SELECT 'tid' AS type, * FROM try_type('tid', ARRAY['(0,1)', '(4294967295,1)', NULL]);
SELECT 'tsvector' AS type, * FROM try_type('tsvector', ARRAY['', 'a', 'b', 'a b', 'a:1', NULL]);
SELECT 'oid' AS type, * FROM try_type('oid', '{0,4294967295,NULL}');
SELECT 'regtype' AS type, * FROM try_type('regtype', '{int4,text,NULL}');
SELECT 'name' AS type, * FROM try_type('name', ARRAY['', 'a', 'ab', NULL]);
SELECT 'char(3)' AS type, * FROM try_type('char(3)', ARRAY['', 'a', 'a ', 'b', NULL]);
SELECT '"char"' AS type, * FROM try_type('"char"', ARRAY['', 'a', '\377', NULL]);

-- whole-row, long keys, what is refused
CREATE TABLE w (a int, b text);
CREATE INDEX w_row ON w ((w.*::text));
INSERT INTO w VALUES (1, 'x'), (2, 'y');
SELECT * FROM w WHERE w.*::text = '(1,x)';
CREATE TABLE long (t text);
CREATE INDEX long_t ON long (t);
INSERT INTO long VALUES (repeat('x', 1600)), (repeat('x', 1601));
SELECT length(t) FROM long WHERE t = repeat('x', 1601);
SELECT length(t) FROM long WHERE t > repeat('x', 1600);
DROP SCHEMA index_test CASCADE;
