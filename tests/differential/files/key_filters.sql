-- Sequential scans whose filter says `key = value` read those keys only: the
-- same rows, the same errors and side effects as if they had read the table.
SET enable_indexscan = off;
SET enable_indexonlyscan = off;
SET enable_bitmapscan = off;

CREATE TABLE one (id int PRIMARY KEY, n int);
INSERT INTO one SELECT i, i * 10 FROM generate_series(-20, 40) i;
CREATE TABLE two (a int, b text, c numeric, n int, PRIMARY KEY (a, b, c));
INSERT INTO two SELECT a, 'b' || b, c, a + b + c FROM generate_series(1, 4) a, generate_series(1, 4) b, generate_series(1, 4) c;

SELECT * FROM one WHERE id = 7;
SELECT * FROM one WHERE 7 = id;
SELECT * FROM one WHERE id = -20 OR id = 40 ORDER BY id;
SELECT * FROM one WHERE id = 7 AND n = 70;
SELECT * FROM one WHERE n = 70 AND id = 7;
SELECT * FROM one WHERE id = 7 AND id = 8;
SELECT * FROM one WHERE id = 7 AND id = 7;
SELECT * FROM one WHERE id = 7::bigint;
SELECT * FROM one WHERE id = 7.0;
SELECT * FROM one WHERE id = NULL;
SELECT * FROM one WHERE id = 1000;
SELECT count(*), sum(n) FROM one WHERE id = 7;
SELECT count(*) FROM one WHERE id = 70;
SELECT * FROM two WHERE a = 2 AND b = 'b3' AND c = 4;
SELECT * FROM two WHERE c = 4.000 AND b = 'b3' AND a = 2;
SELECT * FROM two WHERE a = 2 AND c = 4 ORDER BY b;
SELECT * FROM two WHERE b = 'b3' AND c = 4 ORDER BY a;
SELECT * FROM two WHERE a = 2 AND n = 5 ORDER BY b, c;
SELECT * FROM two WHERE a = 2 AND b > 'b2' ORDER BY b, c;
SELECT * FROM two WHERE (a, b) = (2, 'b3') ORDER BY c;
SELECT * FROM two WHERE a = 2 AND b = 'b3' AND c = 'NaN';
SELECT ctid = ctid AS same, a FROM two WHERE a = 2 AND b = 'b3' AND c = 4;

-- parameters
PREPARE by_id(int) AS SELECT * FROM one WHERE id = $1;
EXECUTE by_id(3);
EXECUTE by_id(NULL);
EXECUTE by_id(41);
SET plan_cache_mode = force_generic_plan;
EXECUTE by_id(3);
EXECUTE by_id(4);
EXECUTE by_id(NULL);
PREPARE by_two(numeric, text, int) AS SELECT * FROM two WHERE c = $1 AND b = $2 AND a = $3;
EXECUTE by_two(1, 'b1', 1);
EXECUTE by_two(4.00, 'b4', 4);
EXECUTE by_two(4.01, 'b4', 4);
EXECUTE by_two(4, repeat('b', 5000), 4);
PREPARE change(int, int) AS UPDATE one SET n = $2 WHERE id = $1 RETURNING *;
EXECUTE change(3, 5);
EXECUTE change(99, 5);
PREPARE remove(int) AS DELETE FROM one WHERE id = $1 RETURNING *;
EXECUTE remove(4);
EXECUTE remove(4);
RESET plan_cache_mode;
SELECT count(*), sum(n) FROM one;

-- what the transaction has written itself
BEGIN;
INSERT INTO one VALUES (100, 1);
SELECT * FROM one WHERE id = 100;
UPDATE one SET id = 101 WHERE id = 100;
SELECT * FROM one WHERE id = 100;
SELECT * FROM one WHERE id = 101;
DELETE FROM one WHERE id = 5;
SELECT * FROM one WHERE id = 5;
SAVEPOINT s;
UPDATE one SET n = -1 WHERE id = 6;
SELECT * FROM one WHERE id = 6;
ROLLBACK TO s;
SELECT * FROM one WHERE id = 6;
UPDATE one SET id = id + 1000 WHERE id = 6 RETURNING *;
WITH gone AS (DELETE FROM one WHERE id = 7 RETURNING *), come AS (INSERT INTO one SELECT id + 2000, n FROM gone RETURNING *)
  SELECT * FROM come, one WHERE one.id = 7;
MERGE INTO one USING (VALUES (8), (9)) v (id) ON one.id = v.id AND one.id = 8 WHEN MATCHED THEN UPDATE SET n = 0
  WHEN NOT MATCHED THEN DO NOTHING;
SELECT * FROM one WHERE id IN (8, 9) ORDER BY id;
ROLLBACK;

-- read again and again
SELECT g, (SELECT n FROM one WHERE id = g) FROM generate_series(1, 3) g;
SELECT g, (SELECT n FROM one WHERE id = 2) FROM generate_series(1, 3) g;
SELECT g, s.n FROM generate_series(1, 3) g, LATERAL (SELECT n + g AS n FROM one WHERE id = 2 OFFSET 0) s;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET enable_material = off;
SELECT a.id, b.id FROM one a JOIN one b ON a.n = b.n WHERE a.id = 9;
SELECT a.id, b.n FROM one a JOIN one b ON a.id = b.id WHERE a.id = 9 AND b.id = 9;
SELECT * FROM one a WHERE id = 9 AND EXISTS (SELECT FROM one b WHERE b.id = 10 AND b.n > a.n);
RESET enable_hashjoin;
RESET enable_mergejoin;
RESET enable_material;

-- cursors, in both directions
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT * FROM two WHERE a = 3 AND b = 'b2';
FETCH 2 FROM c;
FETCH BACKWARD 1 FROM c;
FETCH ALL FROM c;
FETCH BACKWARD ALL FROM c;
FETCH LAST FROM c;
DECLARE d CURSOR FOR SELECT * FROM one WHERE id = 11 FOR UPDATE;
FETCH 1 FROM d;
UPDATE one SET n = n + 1 WHERE CURRENT OF d;
SELECT * FROM one WHERE id = 11;
ROLLBACK;

-- PL/pgSQL: variables that change while a loop runs
DO $$
DECLARE
  x int := 3;
  r record;
BEGIN
  FOR r IN SELECT * FROM one WHERE id = x LOOP
    x := x + 1;
    RAISE NOTICE '% %', r.id, x;
  END LOOP;
  FOR i IN 10 .. 12 LOOP
    SELECT * INTO r FROM one WHERE id = i;
    UPDATE one SET n = n + i WHERE id = i;
    RAISE NOTICE '% %', r.n, (SELECT n FROM one WHERE id = i);
  END LOOP;
  x := NULL;
  SELECT * INTO r FROM one WHERE id = x;
  RAISE NOTICE '%', r;
END $$;

-- side effects before and after the key's clause, and errors
CREATE FUNCTION seen(int) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS 'BEGIN RAISE NOTICE ''seen %'', $1; RETURN true; END';
CREATE FUNCTION late(int) RETURNS bool LANGUAGE plpgsql COST 1000 AS 'BEGIN RAISE NOTICE ''late %'', $1; RETURN true; END';
CREATE TABLE small AS SELECT * FROM one WHERE id BETWEEN 1 AND 3;
ALTER TABLE small ADD PRIMARY KEY (id);
SELECT * FROM small WHERE seen(n) AND id = 2;
SELECT * FROM small WHERE late(n) AND id = 2;
SELECT * FROM small WHERE id = 2 AND 10 / (id - 2) = 1;
SELECT * FROM small WHERE 10 / (id - 2) = 1 AND id = 1;
CREATE VIEW careful WITH (security_barrier) AS SELECT * FROM small WHERE n > 10;
SELECT * FROM careful WHERE seen(n) AND id = 2;
SELECT * FROM careful WHERE id = 2;
DROP VIEW careful;

-- equalities that are not the key's
CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE texts (t text COLLATE "C" PRIMARY KEY);
INSERT INTO texts VALUES ('a'), ('A'), ('b'), (''), (' ');
SELECT * FROM texts WHERE t = 'a' COLLATE folded ORDER BY t;
SELECT * FROM texts WHERE t = 'a';
SELECT * FROM texts WHERE t = '';
SELECT * FROM texts WHERE t = 'a'::varchar;
SELECT * FROM texts WHERE t = 'a'::name;
SELECT * FROM texts WHERE t LIKE 'a';
CREATE TABLE patterns (t text COLLATE "C");
INSERT INTO patterns SELECT * FROM texts;
CREATE UNIQUE INDEX patterns_t ON patterns (t text_pattern_ops);
SELECT * FROM patterns WHERE t = 'a';
DROP TABLE texts, patterns;
DROP COLLATION folded;
CREATE TABLE rows (r numrange PRIMARY KEY);
CREATE TYPE pair AS (x int, y numeric);
CREATE TABLE pairs (p pair PRIMARY KEY);
INSERT INTO pairs VALUES ((1, 1.0)), ((1, 2.00)), ((2, NULL));
SELECT * FROM pairs WHERE p = (1, 1.000)::pair;
SELECT * FROM pairs WHERE p *= (1, 1.000)::pair;
SELECT * FROM pairs WHERE p = (2, NULL)::pair;
INSERT INTO rows VALUES ('[1,2)'), ('empty'), ('(,)');
SELECT * FROM rows WHERE r = '[1.0,2.00)';
SELECT * FROM rows WHERE r = 'empty';
DROP TABLE rows, pairs;
DROP TYPE pair;

-- types whose equal values look different, or that have odd ones
CREATE TABLE floats (f float8 PRIMARY KEY);
INSERT INTO floats VALUES ('-0'), (1), ('NaN'), ('Infinity'), ('-Infinity');
SELECT * FROM floats WHERE f = 0;
SELECT * FROM floats WHERE f = '-0';
SELECT * FROM floats WHERE f = 'NaN';
SELECT * FROM floats WHERE f = 1::float4;
SELECT * FROM floats WHERE f = '-Infinity';
CREATE TABLE numerics (n numeric PRIMARY KEY);
INSERT INTO numerics VALUES (1.0), (2.50), ('NaN'), ('Infinity'), (0.00);
SELECT * FROM numerics WHERE n = 1;
SELECT * FROM numerics WHERE n = 2.5000;
SELECT * FROM numerics WHERE n = -0.0;
SELECT * FROM numerics WHERE n = 'NaN';
CREATE TABLE chars (c char(5) COLLATE "C" PRIMARY KEY, v varchar(5));
INSERT INTO chars VALUES ('a', 'a'), ('a b', 'b');
SELECT c, v FROM chars WHERE c = 'a';
SELECT c, v FROM chars WHERE c = 'a   ';
SELECT c, v FROM chars WHERE c = 'a   '::text;
CREATE TABLE intervals (i interval PRIMARY KEY);
INSERT INTO intervals VALUES ('1 month'), ('1 day'), ('0');
SELECT * FROM intervals WHERE i = '30 days';
SELECT * FROM intervals WHERE i = '24:00:00';
CREATE TABLE arrays (a int[] PRIMARY KEY);
INSERT INTO arrays VALUES ('{}'), ('{1,2}'), ('{1,NULL}'), ('[2:3]={1,2}');
SELECT * FROM arrays WHERE a = '{1,2}';
SELECT * FROM arrays WHERE a = '[2:3]={1,2}';
SELECT * FROM arrays WHERE a = '{1,NULL}';
SELECT * FROM arrays WHERE a = '{}';
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE others (m mood, p positive, d date, u uuid, n int, PRIMARY KEY (m, p, d, u));
INSERT INTO others SELECT m, p, d, '00000000-0000-0000-0000-000000000001', p
  FROM unnest('{sad,glad}'::mood[]) m, generate_series(1, 3) p, unnest('{2024-02-29,infinity}'::date[]) d;
SELECT * FROM others WHERE m = 'sad' AND p = 2 AND d = '2024-02-29' AND u = '00000000-0000-0000-0000-000000000001';
SELECT * FROM others WHERE m = 'glad' AND p = 3::positive ORDER BY d;
SELECT * FROM others WHERE m = 'glad' AND d = 'infinity' ORDER BY p;
SELECT * FROM others WHERE m = 'sad' AND p = 2 AND d = '2024-02-29'::timestamp;
DROP TABLE floats, numerics, chars, intervals, arrays, others;
DROP DOMAIN positive;
DROP TYPE mood;

-- keys that come, change and go
CREATE TABLE moving (a int, b int);
INSERT INTO moving SELECT i % 5, i FROM generate_series(1, 20) i;
SELECT * FROM moving WHERE a = 2 ORDER BY b;
ALTER TABLE moving ADD PRIMARY KEY (a, b);
SELECT * FROM moving WHERE a = 2 ORDER BY b;
ALTER TABLE moving ALTER a TYPE bigint;
SELECT * FROM moving WHERE a = 2 ORDER BY b;
SELECT * FROM moving WHERE a = 2::bigint AND b = 7;
ALTER TABLE moving DROP CONSTRAINT moving_pkey;
INSERT INTO moving VALUES (2, 7);
SELECT * FROM moving WHERE a = 2 ORDER BY b;
ALTER TABLE moving RENAME b TO c;
SELECT * FROM moving WHERE c = 7 AND a = 2::bigint;
ALTER TABLE moving DROP a;
SELECT * FROM moving WHERE c = 7;
DROP TABLE moving;
CREATE TABLE reversed (a int, b int, n int);
CREATE UNIQUE INDEX reversed_key ON reversed (b DESC, a DESC NULLS LAST);
ALTER TABLE reversed ALTER a SET NOT NULL, ALTER b SET NOT NULL;
INSERT INTO reversed SELECT i, i % 3, i FROM generate_series(1, 9) i;
SELECT * FROM reversed WHERE b = 1 ORDER BY a;
SELECT * FROM reversed WHERE b = 1 AND a = 4;
DROP TABLE reversed;

-- partitions and inheritance
CREATE TABLE parts (k int, p int, n int, PRIMARY KEY (k, p)) PARTITION BY LIST (p);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parts_2 (n int, p int NOT NULL, gone int, k int NOT NULL);
ALTER TABLE parts_2 DROP gone;
ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES IN (2);
INSERT INTO parts SELECT k, p, k * p FROM generate_series(1, 5) k, generate_series(1, 2) p;
SELECT * FROM parts WHERE k = 3 ORDER BY p;
SELECT * FROM parts WHERE k = 3 AND p = 2;
UPDATE parts SET n = n + 1 WHERE k = 3 RETURNING *;
UPDATE parts SET p = 2 WHERE k = 5 AND p = 1;
DELETE FROM parts WHERE k = 5 AND p = 2 RETURNING *;
UPDATE parts SET p = 2 WHERE k = 5 AND p = 1 RETURNING *;
DROP TABLE parts;

-- policies come first
CREATE ROLE key_filters_reader;
CREATE TABLE secret (id int PRIMARY KEY, owner text, n int);
INSERT INTO secret SELECT i, CASE WHEN i % 2 = 0 THEN 'key_filters_reader' ELSE 'other' END, i FROM generate_series(1, 6) i;
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON secret USING (owner = current_user AND seen(id));
GRANT SELECT, UPDATE ON secret TO key_filters_reader;
SET ROLE key_filters_reader;
SELECT * FROM secret WHERE id = 2;
SELECT * FROM secret WHERE id = 3;
UPDATE secret SET n = 0 WHERE id = 4 RETURNING *;
RESET ROLE;
DROP TABLE secret;
DROP ROLE key_filters_reader;

-- serializable: what is read is noted
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM one WHERE id = 12;
SELECT * FROM one WHERE id = 500;
UPDATE one SET n = 1 WHERE id = 12;
COMMIT;
SELECT * FROM one WHERE id = 12;
DROP TABLE one, two, small;
DROP FUNCTION seen(int), late(int);

-- a parameter of a scan that does not run may have no value yet: nobody may ask for it
CREATE TABLE kf_flag (flag boolean);
CREATE TABLE kf_lazy (id int PRIMARY KEY, v text);
INSERT INTO kf_lazy VALUES (1, 'one'), (2, 'two');
INSERT INTO kf_flag VALUES (true);
CREATE FUNCTION kf_lazily(known boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  r record;
  x text;
BEGIN
  IF known THEN
    SELECT 2 AS id INTO r;
  END IF;
  x := (SELECT CASE WHEN s.flag THEN (SELECT v FROM kf_lazy WHERE id = r.id) END FROM kf_flag s);
  RETURN coalesce(x, 'nothing');
END $$;
SET enable_indexscan = off;
SET enable_bitmapscan = off;
SELECT kf_lazily(true);
UPDATE kf_flag SET flag = false;
SELECT kf_lazily(true);
SELECT kf_lazily(false);
UPDATE kf_flag SET flag = true;
SELECT kf_lazily(false);
SELECT kf_lazily(true);
RESET enable_indexscan;
RESET enable_bitmapscan;
