CREATE TABLE t (id int PRIMARY KEY, v int);
INSERT INTO t SELECT i, i FROM generate_series(1, 10) i;
SELECT tableoid::regclass, count(*) FROM t GROUP BY 1;
SELECT count(DISTINCT ctid) FROM t;
SELECT count(*) FROM t WHERE ctid = ctid;
SELECT count(*) FROM t WHERE ctid IS NULL;
WITH x AS (SELECT ctid FROM t WHERE id = 3) UPDATE t SET v = 33 FROM x WHERE t.ctid = x.ctid RETURNING id, v;
DELETE FROM t WHERE ctid = (SELECT ctid FROM t WHERE id = 4) RETURNING id;
DELETE FROM t WHERE ctid = ANY (ARRAY(SELECT ctid FROM t WHERE id IN (5, 6))) RETURNING id;
SELECT id FROM t ORDER BY id;
SELECT pg_typeof(ctid), pg_typeof(xmin), pg_typeof(xmax), pg_typeof(cmin), pg_typeof(tableoid) FROM t LIMIT 1;
-- xmin as a row version: optimistic locking as ORMs do it
--@ save version
SELECT xmin FROM t WHERE id = 1;
UPDATE t SET v = v + 1 WHERE id = 1 AND xmin = '${version}'::xid RETURNING v;
UPDATE t SET v = v + 1 WHERE id = 1 AND xmin = '${version}'::xid RETURNING v;
--@ save version2
SELECT xmin FROM t WHERE id = 1;
SELECT '${version}' <> '${version2}' AS changed;
SELECT xmin = '${version2}'::xid AS same FROM t WHERE id = 1;
--@ session other
UPDATE t SET v = 100 WHERE id = 1 AND xmin = '${version2}'::xid RETURNING v;
--@ session main
UPDATE t SET v = 200 WHERE id = 1 AND xmin = '${version2}'::xid RETURNING v;
SELECT v FROM t WHERE id = 1;
INSERT INTO t VALUES (50, 50);
--@ save v50
SELECT xmin FROM t WHERE id = 50;
UPDATE t SET v = 51 WHERE id = 51 AND xmin = '${v50}'::xid;
DELETE FROM t WHERE id = 50 AND xmin = '${v50}'::xid RETURNING id;
SELECT count(DISTINCT xmin::text) FROM t WHERE id BETWEEN 7 AND 9;
BEGIN;
UPDATE t SET v = 1 WHERE id IN (7, 8);
SELECT count(DISTINCT xmin::text) FROM t WHERE id IN (7, 8);
SELECT (SELECT xmin::text FROM t WHERE id = 7) = (SELECT xmin::text FROM t WHERE id = 9) AS same_as_untouched;
ROLLBACK;
SELECT xmin <> 0, xmax = 0 FROM t WHERE id = 1;
INSERT INTO t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET v = 0 RETURNING xmax <> 0 AS was_update;
INSERT INTO t VALUES (60, 1) ON CONFLICT (id) DO UPDATE SET v = 0 RETURNING xmax <> 0 AS was_update;
SELECT txid_current() > 0, pg_current_xact_id()::text::bigint > 0;
SELECT txid_current_if_assigned() IS NULL;
BEGIN;
--@ save tx
SELECT txid_current();
SELECT txid_current() = ${tx} AS stable;
COMMIT;
SELECT txid_current() > ${tx} AS grows;
SELECT txid_status(${tx});
--@ smoke
SELECT age(xmin) >= 0 FROM t WHERE id = 1;
UPDATE t SET ctid = '(0,1)';
SELECT t.ctid, t.xmin FROM nope t;
SELECT ctid FROM (SELECT * FROM t) x;
SELECT count(*) FROM t a JOIN t b ON a.ctid = b.ctid;
--@ smoke
SELECT * FROM t WHERE ctid >= '(0,1)';
--@ smoke
SELECT * FROM t WHERE ctid = '(0,1)';
