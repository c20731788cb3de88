-- Loads, savepoints, TRUNCATE and triggers in the transaction that made the table: its rows go to storage in chunks
-- (rule Q8) behind running scans, cursors and queued trigger events, which must not notice. And names of rows (ctid)
-- beyond what a scan remembers.
-- flush in the middle of a scan of the same table
BEGIN; CREATE TABLE h(a int, b text);
INSERT INTO h SELECT g, repeat('x',100) FROM generate_series(1,40000) g;
INSERT INTO h SELECT * FROM h;
SELECT count(*), count(distinct a) FROM h;
INSERT INTO h SELECT * FROM h;
SELECT count(*), count(distinct a) FROM h;
COMMIT;
SELECT count(*), count(distinct a) FROM h;
-- cursor over it while flushed twice
BEGIN; CREATE TABLE h2(a int, b text);
INSERT INTO h2 SELECT g, repeat('x',100) FROM generate_series(1,40000) g;
DECLARE c CURSOR FOR SELECT a FROM h2;
MOVE 10 IN c;
INSERT INTO h2 SELECT g, repeat('x',100) FROM generate_series(100001,200000) g;
INSERT INTO h2 SELECT g, repeat('x',100) FROM generate_series(200001,300000) g;
INSERT INTO h2 SELECT g, repeat('x',100) FROM generate_series(300001,400000) g;
MOVE ALL IN c;
SELECT count(*) FROM h2;
COMMIT;
SELECT count(*) FROM h2;
-- truncate in place with secondary indexes
BEGIN; CREATE TABLE tr(id int primary key, u int unique, v int); CREATE INDEX ON tr(v);
INSERT INTO tr VALUES (1,1,1),(2,2,2);
TRUNCATE tr;
INSERT INTO tr VALUES (1,2,5),(3,1,7);
SET LOCAL enable_seqscan=off;
SELECT * FROM tr WHERE v=1; SELECT * FROM tr WHERE v BETWEEN 0 AND 9 ORDER BY v; SELECT u FROM tr WHERE u>0 ORDER BY u;
COMMIT;
SET enable_seqscan=off;
SELECT * FROM tr WHERE v=1; SELECT * FROM tr WHERE v BETWEEN 0 AND 9 ORDER BY v; SELECT v FROM tr WHERE v>0 ORDER BY v;  SELECT u FROM tr WHERE u>0 ORDER BY u;
RESET enable_seqscan;
BEGIN; CREATE TABLE tr2(id int, u int unique, v int);
INSERT INTO tr2 VALUES (1,1,1),(2,2,2);
TRUNCATE tr2;
INSERT INTO tr2 VALUES (1,1,5),(3,2,7);
COMMIT;
SELECT * FROM tr2;
-- temp table on commit
BEGIN; CREATE TEMP TABLE t1(col int PRIMARY KEY) ON COMMIT DELETE ROWS; CREATE TEMP TABLE t2(col int REFERENCES t1); COMMIT;
-- self joins on ctid
CREATE TABLE big(a int primary key, b int); INSERT INTO big SELECT g,g FROM generate_series(1,30000) g;
SELECT count(*) FROM big a JOIN big b ON a.ctid=b.ctid;
SET enable_hashjoin=off; SELECT count(*) FROM big a JOIN big b ON a.ctid=b.ctid;
SET enable_mergejoin=off; SELECT count(*) FROM big a JOIN big b ON a.ctid=b.ctid;
RESET ALL;
SELECT count(distinct ctid) FROM big;
SELECT count(*) FROM big WHERE ctid IN (SELECT ctid FROM big WHERE a<100);
DELETE FROM big WHERE ctid = ANY(ARRAY(SELECT ctid FROM big WHERE a<=10));
SELECT count(*) FROM big;
DELETE FROM big a USING (SELECT min(ctid) AS m FROM big) x WHERE a.ctid=x.m;
-- where current of after other scans
BEGIN; DECLARE c CURSOR FOR SELECT * FROM big; FETCH 1 FROM c; SELECT count(*) FROM big; UPDATE big SET b=-1 WHERE CURRENT OF c; ROLLBACK;
-- current of after own update
BEGIN; DECLARE c CURSOR FOR SELECT * FROM big WHERE a=20 FOR UPDATE; FETCH 1 FROM c; UPDATE big SET b=-1 WHERE a=20; UPDATE big SET b=b-1 WHERE CURRENT OF c; SELECT * FROM big WHERE a=20;
SAVEPOINT s; UPDATE big SET b=b-1 WHERE CURRENT OF c; ROLLBACK TO s; UPDATE big SET b=b-10 WHERE CURRENT OF c; SELECT * FROM big WHERE a=20; DELETE FROM big WHERE CURRENT OF c; UPDATE big SET b=b-10 WHERE CURRENT OF c; ROLLBACK;
CREATE TABLE perm(a int primary key, b int);
BEGIN; INSERT INTO perm VALUES (1,1); CREATE TEMP TABLE t1(col int PRIMARY KEY) ON COMMIT DELETE ROWS; CREATE TEMP TABLE t2(col int REFERENCES t1); COMMIT;
SELECT * FROM perm;
BEGIN; INSERT INTO perm VALUES (2,1); CREATE TEMP TABLE t3(col int PRIMARY KEY) ON COMMIT DROP; INSERT INTO t3 VALUES (1); CREATE TEMP TABLE t4(col int PRIMARY KEY) ON COMMIT DELETE ROWS; INSERT INTO t4 VALUES (1); COMMIT;
SELECT * FROM perm; SELECT * FROM t3; SELECT * FROM t4;
INSERT INTO t4 VALUES (5); SELECT * FROM t4;
BEGIN; INSERT INTO perm VALUES (3,1); CREATE TEMP TABLE t5(col int) ON COMMIT DROP; CREATE FUNCTION ft5(t5) RETURNS int LANGUAGE sql AS 'select 1'; COMMIT;
SELECT count(*) FROM pg_proc WHERE proname='ft5';
-- AFTER trigger on one table whose trigger loads another new one
CREATE TABLE src(a int primary key, b text); CREATE TABLE log1(n int, old text, new text);
CREATE OR REPLACE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO bulk SELECT g, repeat('y',1000) FROM generate_series(1,20000) g; INSERT INTO log1 VALUES (NEW.a, OLD.b, NEW.b); RETURN NULL; END $$;
CREATE TRIGGER t AFTER UPDATE ON src FOR EACH ROW EXECUTE FUNCTION trg();
INSERT INTO src SELECT g, 'v'||g FROM generate_series(1,5) g;
BEGIN; CREATE TABLE bulk(a int, b text); INSERT INTO src VALUES (6,'v6'); UPDATE src SET b=b||'x'; SELECT * FROM log1 ORDER BY 1; SELECT count(*) FROM bulk;
UPDATE src SET b=b||'x' WHERE a=6; SELECT * FROM src ORDER BY 1; COMMIT;
SELECT count(*) FROM bulk; DROP TABLE bulk;
-- BEFORE trigger that loads
CREATE OR REPLACE FUNCTION trg2() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO bulk SELECT g, repeat('y',1000) FROM generate_series(1,20000) g; RETURN NEW; END $$;
CREATE TRIGGER t2 BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION trg2(); DROP TRIGGER t ON src;
BEGIN; CREATE TABLE bulk(a int, b text); UPDATE src SET b='p'; UPDATE src SET b='q'; SELECT * FROM src ORDER BY 1; DELETE FROM src WHERE b='q'; SELECT count(*) FROM src; COMMIT; DROP TABLE bulk;
-- deletes in a new table, then more rows: time
BEGIN; CREATE TABLE q(a int primary key, b text); INSERT INTO q SELECT g, repeat('x',200) FROM generate_series(1,100000) g; DELETE FROM q WHERE a=7; INSERT INTO q SELECT g, repeat('x',10) FROM generate_series(200001,300000) g; SAVEPOINT a; INSERT INTO q SELECT g, 'z' FROM generate_series(300001,300005) g; ROLLBACK TO a; UPDATE q SET b='u' WHERE a<100; INSERT INTO q SELECT g, repeat('x',200) FROM generate_series(400001,500000) g; SELECT count(*), sum(a) FROM q; COMMIT; SELECT count(*), sum(a) FROM q; DROP TABLE q;
-- old values of deferred triggers across flushes
TRUNCATE log1;
CREATE OR REPLACE FUNCTION trg3() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log1 VALUES (NEW.a, left(OLD.b,3), left(NEW.b,3)); RETURN NULL; END $$;
BEGIN; CREATE TABLE dl(a int primary key, b text); CREATE CONSTRAINT TRIGGER t AFTER UPDATE ON dl DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION trg3();
INSERT INTO dl SELECT g, repeat('x',1000) FROM generate_series(1,20000) g; UPDATE dl SET b='new' WHERE a<4; INSERT INTO dl SELECT g, repeat('x',1000) FROM generate_series(20001,50000) g; UPDATE dl SET b='ne2' WHERE a=2; COMMIT;
SELECT * FROM log1 ORDER BY 1,2,3;
SELECT count(*), sum(length(b)) FROM dl;
-- same row updated often
CREATE TABLE ctr(a int primary key, n int); INSERT INTO ctr VALUES (1,0);
DO $$ BEGIN FOR i IN 1..20000 LOOP UPDATE ctr SET n=n+1 WHERE a=1; END LOOP; END $$; SELECT * FROM ctr;
INSERT INTO ctr VALUES (1,5),(2,5) ON CONFLICT (a) DO UPDATE SET n=excluded.n RETURNING a, n, xmax<>0 AS updated;
-- savepoints and loads
BEGIN; SAVEPOINT a; CREATE TABLE sl(a int primary key, b text); INSERT INTO sl SELECT g, repeat('x',1000) FROM generate_series(1,30000) g; ROLLBACK TO a; CREATE TABLE sl(a int primary key, b text); INSERT INTO sl SELECT g, repeat('x',1000) FROM generate_series(1,30000) g; SAVEPOINT b; DELETE FROM sl WHERE a % 2 = 0; INSERT INTO sl SELECT g, repeat('x',1000) FROM generate_series(30001,60000) g; SELECT count(*) FROM sl; ROLLBACK TO b; SELECT count(*) FROM sl; SAVEPOINT c; TRUNCATE sl; INSERT INTO sl SELECT g, repeat('x',1000) FROM generate_series(1,20000) g; SELECT count(*) FROM sl; ROLLBACK TO c; SELECT count(*) FROM sl; INSERT INTO sl SELECT g, repeat('x',1000) FROM generate_series(30001,60000) g; SELECT count(*) FROM sl; COMMIT; SELECT count(*), min(a), max(a) FROM sl;
BEGIN; TRUNCATE sl; INSERT INTO sl SELECT g, repeat('x',1000) FROM generate_series(1,20000) g; SAVEPOINT a; TRUNCATE sl; INSERT INTO sl VALUES (1,'x'); ROLLBACK TO a; INSERT INTO sl SELECT g, repeat('x',1000) FROM generate_series(20001,40000) g; INSERT INTO sl VALUES (5,'dup'); ROLLBACK; SELECT count(*) FROM sl;
BEGIN; INSERT INTO sl VALUES (100000,'k'); DELETE FROM sl WHERE a=1; ALTER TABLE sl ALTER a TYPE bigint; SELECT count(*) FROM sl; ALTER TABLE sl ADD c int DEFAULT (random()*0)::int; UPDATE sl SET c=1 WHERE a=2; ALTER TABLE sl DROP CONSTRAINT sl_pkey; INSERT INTO sl VALUES (2,'k2'); SELECT count(*) FROM sl WHERE a=2; DELETE FROM sl WHERE a=2; ALTER TABLE sl ADD PRIMARY KEY (a); INSERT INTO sl VALUES (3,'d'); ROLLBACK;
SELECT count(*) FROM sl;
DROP TABLE h, h2, tr, tr2, big, perm, src, log1, dl, ctr, sl CASCADE; DROP TABLE t4; DROP FUNCTION trg, trg2, trg3;
