-- Sequential scans that read only the columns that are looked at, and rows shown where they were read

CREATE TABLE sc (id int PRIMARY KEY, a smallint NOT NULL, b bigint NOT NULL, c bool NOT NULL, t text, d int, n numeric);
INSERT INTO sc SELECT i, i % 7, i * 10, i % 3 = 0, CASE WHEN i % 5 > 0 THEN repeat('x', i % 50) END,
       nullif(i % 11, 0), i / 3.0 FROM generate_series(1, 9000) i;
SELECT count(*) FROM sc;
SELECT count(*), count(t), count(d), sum(a), sum(b), sum(id), bool_or(c), min(b), max(a) FROM sc;
SELECT count(*) FILTER (WHERE c), sum(b) FILTER (WHERE a = 3), count(*) FROM sc;
SELECT count(*) FROM sc WHERE a = 3;
SELECT sum(id) FROM sc WHERE b % 20 = 0 AND c;
SELECT count(*) FROM sc WHERE t IS NULL;
SELECT a, count(*) FROM sc GROUP BY a ORDER BY a;
SELECT c, a, sum(b) FROM sc GROUP BY GROUPING SETS ((c), (a), ()) ORDER BY c, a;
SELECT count(DISTINCT a), string_agg(DISTINCT a::text, ',' ORDER BY a::text) FROM sc;
SELECT count(sc) FROM sc;
SELECT count(sc.*), max(tableoid::regclass::text) FROM sc;
SELECT sum(length(t)), max(length(sc::text)) FROM sc;
SELECT id + 1, c FROM sc WHERE id < 4 OR id > 8998 ORDER BY 1;
SELECT b FROM sc ORDER BY b DESC LIMIT 3;
SELECT a, row_number() OVER (ORDER BY b) FROM sc ORDER BY b LIMIT 3;
SELECT (SELECT count(*) FROM sc x WHERE x.a < y.a) FROM (VALUES (2), (5)) y(a);
SELECT count(*) FROM sc x, sc y WHERE x.b = y.b + 10;
SELECT count(*) FROM sc x JOIN LATERAL (SELECT sum(z.a) s FROM (SELECT * FROM sc LIMIT 5) z WHERE z.b > x.b) l ON true;
SELECT sum(a) FROM (SELECT a FROM sc UNION ALL SELECT b FROM sc) u;
SELECT max(s) FROM (SELECT sum(b) s FROM sc GROUP BY a HAVING count(*) > 10) q;

-- columns that came, went and are computed
ALTER TABLE sc ADD COLUMN e int NOT NULL DEFAULT 5;
SELECT sum(e), count(*) FROM sc;
INSERT INTO sc VALUES (10000, 1, 1, true, 'new', 1, 1, 77);
SELECT sum(e), max(e), sum(a) FROM sc;
ALTER TABLE sc DROP COLUMN b;
SELECT sum(a), sum(e), bool_and(c), count(*) FROM sc;
UPDATE sc SET e = e + 1 WHERE id % 2 = 0;
SELECT sum(e), sum(id), count(*) FROM sc;
CREATE TABLE walked AS SELECT id, a FROM sc WHERE id < 20 ORDER BY id;
ALTER TABLE sc ADD COLUMN g int GENERATED ALWAYS AS (a * 2) STORED, ADD COLUMN v int GENERATED ALWAYS AS (a * 3) VIRTUAL;
SELECT sum(g), sum(v), sum(a) FROM sc;
CREATE TABLE virtual_first (v int GENERATED ALWAYS AS (k + 1) VIRTUAL, k int PRIMARY KEY);
INSERT INTO virtual_first (k) SELECT generate_series(1, 100);
SELECT sum(v), sum(k), count(*) FROM virtual_first;
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
SELECT count(*) FROM no_columns;
SELECT * FROM no_columns;

-- rows written while the scan runs, by functions that it calls
CREATE TABLE audit (n int);
CREATE FUNCTION noted(i int) RETURNS int LANGUAGE plpgsql VOLATILE AS
$$BEGIN IF i % 2500 = 0 THEN INSERT INTO audit VALUES (i); END IF; RETURN i; END$$;
SELECT sum(noted(id)), count(*) FROM sc;
SELECT n FROM audit ORDER BY n;
CREATE FUNCTION doubled(i int) RETURNS int LANGUAGE plpgsql VOLATILE AS
$$BEGIN IF i % 3000 = 0 THEN INSERT INTO sc (id, a, c, d) VALUES (i + 100000, 1, true, 1); DELETE FROM sc WHERE id = i + 1;
  UPDATE sc SET a = 99 WHERE id = i + 2; END IF; RETURN i; END$$;
BEGIN;
SELECT sum(doubled(id)), sum(a), count(*) FROM sc;
SELECT sum(a), count(*), max(id) FROM sc;
ROLLBACK;
SELECT sum(a), count(*), max(id) FROM sc;
CREATE FUNCTION changes_schema(i int) RETURNS int LANGUAGE plpgsql VOLATILE AS
$$BEGIN IF i = 5000 THEN CREATE TABLE made AS SELECT id, t FROM sc; ALTER TABLE made ADD PRIMARY KEY (id);
  ALTER TABLE made ALTER id TYPE bigint; END IF; RETURN i; END$$;
SELECT sum(changes_schema(id)), count(*) FROM sc;
SELECT count(*), sum(length(t)), sum(id) FROM made;

-- names of rows in functions that become part of the query
CREATE FUNCTION tids() RETURNS TABLE (c tid, i int) LANGUAGE sql STABLE AS 'SELECT ctid, id FROM sc';
SELECT count(*), count(DISTINCT c) FROM tids() WHERE i < 50;
SELECT count(*) FROM sc WHERE ctid = ANY (ARRAY(SELECT c FROM tids() WHERE i IN (3, 4)));

-- cursors, both ways
BEGIN;
DECLARE k SCROLL CURSOR FOR SELECT id, a FROM walked;
FETCH 3 FROM k;
FETCH BACKWARD 2 FROM k;
FETCH LAST FROM k;
FETCH PRIOR FROM k;
COMMIT;
BEGIN;
DECLARE k CURSOR FOR SELECT id, a FROM walked;
FETCH 2 FROM k;
UPDATE walked SET a = 50 WHERE CURRENT OF k;
FETCH 1 FROM k;
DELETE FROM walked WHERE CURRENT OF k;
SELECT id, a FROM walked WHERE id < 5 ORDER BY id;
ROLLBACK;
CREATE TABLE copied AS SELECT * FROM sc;
INSERT INTO copied SELECT * FROM copied;
SELECT count(*), sum(a), sum(g), sum(e) FROM copied;
COPY (SELECT id, a FROM sc WHERE id < 4) TO STDOUT;
EXPLAIN (COSTS OFF, VERBOSE) SELECT count(*) FROM sc;
DROP TABLE sc, walked, audit, no_columns, virtual_first, made, copied;
DROP FUNCTION noted, doubled, changes_schema, tids;
