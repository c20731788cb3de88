-- The least that must work: one table, every DML verb, rollback.
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, NULL);
SELECT * FROM t ORDER BY id;
SELECT * FROM t;
SELECT v FROM t WHERE id = 2;
UPDATE t SET v = 'zwei' WHERE id = 2 RETURNING *;
DELETE FROM t WHERE id = 3;
INSERT INTO t VALUES (1, 'again');
SELECT count(*), min(id), max(v) FROM t;
BEGIN;
INSERT INTO t VALUES (10, 'ten');
SELECT * FROM t ORDER BY id DESC;
ROLLBACK;
SELECT * FROM t ORDER BY id;
CREATE INDEX t_v ON t (v);
SELECT * FROM t WHERE v = 'zwei';
--@ params ["2"]
SELECT * FROM t WHERE id = $1;
--@ psql \d t
COPY t FROM stdin;
20	twenty
21	\N
\.
COPY t TO stdout;
DROP TABLE t;
SELECT * FROM t;
--@ pipeline
CREATE TABLE p (a int PRIMARY KEY);
--@ params ["1"]
INSERT INTO p VALUES ($1) RETURNING a;
INSERT INTO p VALUES (1);
SELECT 'skipped';
--@ sync
SELECT count(*) FROM p;
--@ end
