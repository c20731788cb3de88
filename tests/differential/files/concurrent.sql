-- two sessions in one thread: nothing here blocks on stock PostgreSQL either
CREATE TABLE t (id int PRIMARY KEY, v int);
INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i;
--@ session a
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT sum(v) FROM t;
--@ session b
UPDATE t SET v = 1 WHERE id = 1;
INSERT INTO t VALUES (11, 5);
DELETE FROM t WHERE id = 2;
--@ session a
SELECT sum(v), count(*) FROM t;
SELECT * FROM t WHERE id = 1;
SELECT * FROM t WHERE id IN (2, 11) ORDER BY id;
COMMIT;
SELECT sum(v), count(*) FROM t;
--@ session a
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT v FROM t WHERE id = 3;
--@ session b
UPDATE t SET v = 30 WHERE id = 3;
--@ session a
SAVEPOINT s;
SELECT v FROM t WHERE id = 3;
UPDATE t SET v = 7 WHERE id = 4;
COMMIT;
SELECT id, v FROM t WHERE id IN (3, 4) ORDER BY id;
--@ session a
BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;
SELECT count(*) FROM t;
--@ session b
DELETE FROM t;
--@ session a
ROLLBACK;
SELECT count(*) FROM t;
--@ session b
INSERT INTO t VALUES (1, 1), (2, 2), (3, 3);
BEGIN;
UPDATE t SET v = 100 WHERE id = 1;
--@ session a
SELECT v FROM t WHERE id = 1;
--@ session b
COMMIT;
--@ session a
SELECT v FROM t WHERE id = 1;
-- read your own writes across sessions, prepared statements see DDL of the other session
PREPARE p AS SELECT * FROM t WHERE id = $1;
EXECUTE p (1);
--@ session b
CREATE INDEX t_v ON t (v);
ALTER TABLE t ADD COLUMN w text DEFAULT 'new';
--@ session a
EXECUTE p (1);
SELECT * FROM t ORDER BY id;
DEALLOCATE p;
--@ session b
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
--@ session a
SELECT f();
--@ session b
CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2';
--@ session a
SELECT f();
--@ session b
DROP FUNCTION f;
--@ session a
SELECT f();
SELECT nextval('nope');
--@ session b
CREATE SEQUENCE s;
SELECT nextval('s');
--@ session a
SELECT nextval('s');
--@ session b
BEGIN;
SELECT nextval('s');
--@ session a
SELECT nextval('s');
--@ session b
ROLLBACK;
--@ session a
SELECT pg_advisory_lock(7), pg_try_advisory_lock(8);
--@ session b
SELECT pg_try_advisory_lock(9);
SELECT pg_advisory_unlock(9), pg_advisory_unlock(10);
--@ session a
SELECT pg_advisory_unlock_all();
--@ session a
SET statement_timeout = '50ms';
SELECT pg_sleep(5);
RESET statement_timeout;
BEGIN;
SET LOCAL statement_timeout = '50ms';
INSERT INTO t SELECT i, i FROM generate_series(1000, 2000) i;
SELECT pg_sleep(5);
ROLLBACK;
SELECT count(*) FROM t WHERE id >= 1000;
SET idle_in_transaction_session_timeout = '1h';
SELECT pg_backend_pid() > 0;
--@ session b
SELECT pg_cancel_backend(pg_backend_pid());
SELECT 1;
