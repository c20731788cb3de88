-- Names of row versions (ctid) within one transaction: few and many of them, looked at or not, in any order.
CREATE TABLE named (id int PRIMARY KEY, g int NOT NULL, n int NOT NULL);
INSERT INTO named SELECT i, i % 7, 0 FROM generate_series(1, 3000) i;
CREATE TABLE few (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO few SELECT i, 0 FROM generate_series(1, 50) i;

-- names not looked at, then compared, in the same transaction
BEGIN;
UPDATE few SET n = n + 1 WHERE id = 7;
UPDATE few SET n = n + 1 WHERE n = 0 AND id < 20;
SELECT count(*) FROM few a JOIN few b ON a.ctid = b.ctid;
SELECT count(*) FROM few a JOIN few b ON a.ctid = b.ctid WHERE a.id <> b.id;
UPDATE few a SET n = 10 FROM few b WHERE a.ctid = b.ctid AND b.id = 3;
DELETE FROM few WHERE ctid IN (SELECT ctid FROM few WHERE id IN (8, 9));
UPDATE few SET n = n + 1;
SELECT sum(n), count(*) FROM few;
COMMIT;
SELECT * FROM few ORDER BY id LIMIT 12;

-- the same inner rows over and over, below and above the number of names that need no hash
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET enable_material = off;
SET enable_memoize = off;
BEGIN;
UPDATE few f SET n = f.n + 100 FROM named x WHERE x.g = f.id % 7 AND x.id BETWEEN 100 AND 160;
SELECT sum(n) FROM few;
UPDATE named x SET n = n + 1 FROM few f WHERE f.id = x.g;
SELECT g, sum(n), count(*) FROM named GROUP BY g ORDER BY g;
UPDATE named x SET n = n + 1 FROM few f WHERE f.id = x.g AND x.ctid = (SELECT y.ctid FROM named y WHERE y.id = x.id) AND x.id < 50;
SELECT sum(n) FROM named;
SELECT count(*) FROM named a JOIN named b ON a.ctid = b.ctid AND a.id < 30 AND b.id < 30;
ROLLBACK;
SELECT sum(n) FROM named;
RESET enable_hashjoin;
RESET enable_mergejoin;
RESET enable_material;
RESET enable_memoize;

-- who looks at ctid may come into the plan only when a function is planned with it
CREATE FUNCTION same_rows() RETURNS SETOF bigint LANGUAGE sql STABLE AS
  'SELECT count(*) FROM few a JOIN few b ON a.ctid = b.ctid';
BEGIN;
UPDATE few SET n = c FROM same_rows() c WHERE id < 3;
SELECT * FROM few WHERE id < 4 ORDER BY id;
ROLLBACK;
SELECT * FROM same_rows();
SELECT s.* FROM generate_series(1, 3) g, LATERAL (SELECT * FROM same_rows() c WHERE c > g) s;
SELECT (SELECT max(c) FROM same_rows() c), * FROM few WHERE id < 3 ORDER BY id;
CREATE FUNCTION rows_named(tid) RETURNS SETOF int LANGUAGE sql STABLE AS
  'SELECT id FROM few WHERE ctid = $1 UNION ALL SELECT id FROM named WHERE id < 0';
SELECT f.id, r FROM few f, LATERAL rows_named(f.ctid) r WHERE f.id < 5 ORDER BY 1;
CREATE FUNCTION names() RETURNS SETOF tid LANGUAGE sql STABLE AS 'SELECT ctid FROM few WHERE id < 20';
SELECT count(*), count(DISTINCT c) FROM names() c;
SELECT count(*) FROM names() a JOIN names() b ON a = b;
DROP FUNCTION same_rows(), rows_named(tid), names();

-- a row matched twice is updated once
BEGIN;
UPDATE few SET n = 0;
UPDATE few f SET n = f.n + 1 FROM generate_series(1, 3) s WHERE f.id <= 5;
SELECT sum(n) FROM few;
MERGE INTO few f USING (VALUES (1), (1)) v (id) ON f.id = v.id WHEN MATCHED THEN UPDATE SET n = 5;
ROLLBACK;

-- cursors keep their place while others give out names
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM few ORDER BY id FOR UPDATE;
FETCH 2 FROM c;
UPDATE named SET n = n + 1 WHERE id <= 2000;
UPDATE few SET n = -1 WHERE CURRENT OF c;
FETCH 1 FROM c;
DELETE FROM few WHERE CURRENT OF c;
SELECT * FROM few ORDER BY id LIMIT 4;
COMMIT;

-- triggers and deferred checks come back to rows after many names
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
INSERT INTO parent SELECT generate_series(1, 10);
INSERT INTO child SELECT i, i FROM generate_series(1, 10) i;
BEGIN;
UPDATE child SET p = 11 WHERE id = 4;
UPDATE named SET n = n + 1;
INSERT INTO parent VALUES (11);
DELETE FROM parent WHERE id = 4;
COMMIT;
BEGIN;
UPDATE child SET p = 4 WHERE id = 4;
UPDATE named SET n = n + 1;
COMMIT;
SELECT * FROM child ORDER BY id;
DROP TABLE child, parent, named, few;
