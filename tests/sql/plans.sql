-- What: the planner chooses the plans for our indexes that it chooses for
-- btree's. Same output on stock PostgreSQL and on ours, except Bitmap scans,
-- which ours does not have (they are off here).
SET enable_bitmapscan = off;
SET max_parallel_workers_per_gather = 0;
SET client_min_messages = warning;
DROP SCHEMA IF EXISTS plan_test CASCADE;
CREATE SCHEMA plan_test;
SET search_path = plan_test;
CREATE TABLE tiny (id int PRIMARY KEY, v text);
INSERT INTO tiny SELECT g, 'v' || g FROM generate_series(1, 5) g;
CREATE TABLE big (id int PRIMARY KEY, a int, b text, c int);
INSERT INTO big SELECT g, g % 100, md5(g::text), g / 10 FROM generate_series(1, 10000) g;
CREATE INDEX big_a ON big (a);
CREATE INDEX big_bc ON big (b, c);
CREATE INDEX big_c ON big (c) WHERE a = 1;
CREATE UNIQUE INDEX big_lower ON big (lower(b));
\set QUIET on
\set e 'EXPLAIN (COSTS OFF)'
:e SELECT * FROM tiny WHERE id = 1;
:e SELECT * FROM tiny;
:e SELECT * FROM big WHERE id = 1;
:e SELECT * FROM big WHERE id BETWEEN 1 AND 100;
ANALYZE tiny;
ANALYZE big;
:e SELECT * FROM tiny WHERE id = 1;
:e SELECT * FROM tiny ORDER BY id;
:e SELECT * FROM big WHERE id = 1;
:e SELECT * FROM big WHERE id BETWEEN 1 AND 100;
:e SELECT * FROM big WHERE id < 9000;
:e SELECT * FROM big WHERE id IN (1, 2, 3);
:e SELECT * FROM big ORDER BY id LIMIT 10;
:e SELECT * FROM big ORDER BY id DESC LIMIT 10;
:e SELECT min(id), max(id) FROM big;
:e SELECT * FROM big WHERE b = 'x';
:e SELECT * FROM big WHERE b LIKE 'ab%';
:e SELECT * FROM big WHERE b = 'x' AND c > 5;
:e SELECT * FROM big WHERE lower(b) = 'x';
:e SELECT * FROM big WHERE a = 1 AND c = 7;
:e SELECT b, c FROM big WHERE b > 'ff';
:e SELECT * FROM big x JOIN tiny t ON t.id = x.id;
:e SELECT * FROM big x JOIN tiny t ON t.id = x.a;
:e SELECT * FROM tiny t LEFT JOIN big x ON x.id = t.id * 100;
:e SELECT t.* FROM tiny t LEFT JOIN big x ON x.id = t.id;
:e SELECT count(*) FROM big x JOIN big y USING (id);
:e SELECT DISTINCT a FROM big;
:e SELECT * FROM big ORDER BY a, id LIMIT 5;
:e UPDATE big SET c = 1 WHERE id = 5;
:e DELETE FROM big WHERE b = 'x';
:e SELECT * FROM big WHERE (b, c) > ('fff', 5) ORDER BY b, c LIMIT 5;
EXPLAIN SELECT * FROM big WHERE id = 1;
EXPLAIN SELECT * FROM big WHERE id BETWEEN 1 AND 100;
EXPLAIN SELECT * FROM big WHERE b = 'x';
DROP SCHEMA plan_test CASCADE;
