-- the extended protocol, prepared statements, pipelines
CREATE TABLE t (id int PRIMARY KEY, v text, n numeric, ts timestamptz);
INSERT INTO t SELECT i, 'v' || i, i / 2.0, timestamptz '2020-01-01 00:00+00' + i * interval '1 hour' FROM generate_series(1, 20) i;
CREATE INDEX t_v ON t (v);
--@ params ["3"]
SELECT * FROM t WHERE id = $1;
--@ params ["3", "5"]
SELECT * FROM t WHERE id BETWEEN $1 AND $2 ORDER BY id;
--@ params [null]
SELECT * FROM t WHERE id = $1;
--@ params ["abc"]
SELECT * FROM t WHERE id = $1;
--@ params ["{1,2,99}"]
SELECT id FROM t WHERE id = ANY ($1::int[]) ORDER BY id;
--@ params ["100", "new", "1.5"]
INSERT INTO t VALUES ($1, $2, $3) RETURNING *;
--@ params ["100", "changed"]
UPDATE t SET v = $2 WHERE id = $1;
--@ params ["100"]
DELETE FROM t WHERE id = $1 RETURNING v;
--@ binary
SELECT * FROM t WHERE id < 3 ORDER BY id;
--@ params ["2"]
--@ binary
SELECT n, ts, v FROM t WHERE id = $1;
--@ params []
SELECT 1; SELECT 2;
--@ params ["1"]
SELECT $1 + 1;
--@ params ["1"]
SELECT $1::int + $2;
--@ prepare byid
SELECT v FROM t WHERE id = $1;
--@ execute byid ["1"]
--@ execute byid ["2"]
--@ execute byid ["3"]
--@ execute byid ["4"]
--@ execute byid ["5"]
--@ execute byid ["6"]
--@ execute byid ["7"]
--@ execute byid [null]
--@ execute byid ["x"]
--@ binary
--@ execute byid ["8"]
--@ execute nope ["8"]
--@ prepare byid
SELECT 1;
--@ prepare ins
INSERT INTO t (id, v) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v RETURNING id, v;
--@ execute ins ["50", "a"]
--@ execute ins ["50", "b"]
--@ prepare rng
SELECT id FROM t WHERE v >= $1 AND v < $2 ORDER BY v;
--@ execute rng ["v1", "v2"]
--@ execute rng ["v3", "v9"]
ALTER TABLE t ADD COLUMN extra int DEFAULT 1;
--@ execute byid ["1"]
--@ prepare allcols
SELECT * FROM t WHERE id = $1;
--@ execute allcols ["1"]
ALTER TABLE t DROP COLUMN extra;
--@ execute allcols ["1"]
DROP INDEX t_v;
--@ execute rng ["v1", "v2"]
TRUNCATE t;
--@ execute byid ["1"]
INSERT INTO t (id, v) VALUES (1, 'after truncate');
--@ execute byid ["1"]
DEALLOCATE byid;
--@ execute byid ["1"]
PREPARE p (int, text) AS INSERT INTO t (id, v) VALUES ($1, $2) RETURNING *;
EXECUTE p (2, 'two');
EXECUTE p (2, 'two');
EXECUTE p (3, 'three');
EXECUTE p (4);
PREPARE q AS SELECT count(*) FROM t WHERE id > $1;
EXECUTE q (0);
EXECUTE q (1);
EXECUTE q (2);
EXECUTE q (0);
EXECUTE q (0);
EXECUTE q (0);
EXECUTE q (0);
SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements WHERE name IN ('p', 'q') ORDER BY name;
SET plan_cache_mode = force_generic_plan;
EXECUTE q (1);
SET plan_cache_mode = force_custom_plan;
EXECUTE q (1);
RESET plan_cache_mode;
CREATE TABLE ctas_ex AS EXECUTE q (0);
SELECT * FROM ctas_ex;
DEALLOCATE q;
EXECUTE q (0);
DEALLOCATE ALL;
SELECT count(*) FROM pg_prepared_statements;
-- several statements in one message: one implicit transaction
--@ pipeline
INSERT INTO t (id, v) VALUES (200, 'p1');
--@ params ["201"]
INSERT INTO t (id, v) VALUES ($1, 'p2') RETURNING id;
SELECT count(*) FROM t WHERE id >= 200;
--@ sync
INSERT INTO t (id, v) VALUES (202, 'p3');
INSERT INTO t (id, v) VALUES (202, 'duplicate');
INSERT INTO t (id, v) VALUES (203, 'skipped');
--@ sync
SELECT id FROM t WHERE id >= 200 ORDER BY id;
--@ end
--@ pipeline
BEGIN;
INSERT INTO t (id, v) VALUES (300, 'x');
--@ sync
SELECT 1 / 0;
--@ sync
SELECT 'still aborted';
--@ sync
ROLLBACK;
--@ end
SELECT count(*) FROM t WHERE id = 300;
--@ pipeline
--@ prepare pp
SELECT v FROM t WHERE id = $1;
--@ execute pp ["200"]
--@ execute pp ["201"]
--@ sync
CREATE TABLE inpipe (a int PRIMARY KEY);
INSERT INTO inpipe VALUES (1);
SELECT * FROM inpipe;
--@ end
SELECT * FROM inpipe;

--@ any-order
DO $$ BEGIN NULL; END $$;
SELECT ;
SET standard_conforming_strings = on;
BEGIN; DECLARE c CURSOR FOR SELECT id FROM t ORDER BY id; FETCH 2 FROM c; COMMIT;
SHOW server_version;
SELECT current_setting('server_version_num'), version() LIKE 'PostgreSQL 18%';
SHOW transaction_isolation;
SELECT pg_typeof(id), pg_typeof(v), pg_typeof(n), pg_typeof(ts) FROM t LIMIT 1;
DISCARD ALL;
SELECT current_schema();
SET search_path = d_protocol;
--@ message
INSERT INTO t (id, v) VALUES (400, 'm1'); INSERT INTO t (id, v) VALUES (401, 'm2'); SELECT count(*) FROM t WHERE id >= 400;
--@ end
--@ message
INSERT INTO t (id, v) VALUES (402, 'm3'); INSERT INTO t (id, v) VALUES (402, 'dup'); SELECT 'not reached';
--@ end
SELECT id FROM t WHERE id >= 400 ORDER BY id;
--@ message
INSERT INTO t (id, v) VALUES (403, 'a'); COMMIT; INSERT INTO t (id, v) VALUES (404, 'b'); SELECT 1 / 0;
--@ end
SELECT id FROM t WHERE id >= 403 ORDER BY id;
--@ message
BEGIN; INSERT INTO t (id, v) VALUES (405, 'a'); COMMIT; BEGIN; INSERT INTO t (id, v) VALUES (406, 'a'); ROLLBACK;
--@ end
SELECT id FROM t WHERE id >= 405 ORDER BY id;
--@ message
CREATE TABLE imp (a int PRIMARY KEY); INSERT INTO imp VALUES (1); ALTER TABLE imp ADD COLUMN b int DEFAULT 2; SELECT * FROM imp; DROP TABLE imp; SELECT 1 / 0
--@ end
SELECT * FROM imp;
