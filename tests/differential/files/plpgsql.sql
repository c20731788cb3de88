CREATE TABLE acc (id int PRIMARY KEY, owner text NOT NULL UNIQUE, bal numeric CHECK (bal >= 0));
INSERT INTO acc VALUES (1, 'ann', 100), (2, 'bob', 50), (3, 'cid', 0);
CREATE FUNCTION transfer(src int, dst int, amt numeric) RETURNS text LANGUAGE plpgsql AS $$
DECLARE left_over numeric;
BEGIN
  UPDATE acc SET bal = bal - amt WHERE id = src RETURNING bal INTO left_over;
  IF NOT FOUND THEN RAISE EXCEPTION 'no account %', src USING ERRCODE = 'P0002', HINT = 'look again', DETAIL = 'd'; END IF;
  UPDATE acc SET bal = bal + amt WHERE id = dst;
  RETURN format('left %s', left_over);
EXCEPTION
  WHEN check_violation THEN RETURN 'refused: ' || SQLERRM;
END $$;
SELECT transfer(1, 2, 30);
SELECT transfer(2, 1, 1000);
SELECT transfer(9, 1, 1);
SELECT * FROM acc ORDER BY id;
CREATE FUNCTION tryinsert(i int, o text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE state text; cons text; det text; tab text;
BEGIN
  INSERT INTO acc VALUES (i, o, 1);
  RETURN 'ok';
EXCEPTION WHEN unique_violation OR not_null_violation THEN
  GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, cons = CONSTRAINT_NAME, det = PG_EXCEPTION_DETAIL, tab = TABLE_NAME;
  RETURN concat_ws('|', state, cons, det, tab);
END $$;
SELECT tryinsert(1, 'x');
SELECT tryinsert(4, 'ann');
SELECT tryinsert(4, NULL);
SELECT tryinsert(4, 'dan');
CREATE FUNCTION loops() RETURNS TABLE (k int, s text) LANGUAGE plpgsql AS $$
DECLARE r acc%ROWTYPE; n acc.bal%TYPE; arr int[] := '{}'; x int;
BEGIN
  FOR r IN SELECT * FROM acc ORDER BY id LOOP k := r.id; s := r.owner; RETURN NEXT; arr := arr || r.id; END LOOP;
  FOREACH x IN ARRAY arr LOOP k := -x; s := NULL; RETURN NEXT; END LOOP;
  FOR i IN REVERSE 3..1 BY 2 LOOP k := i; s := 'rev'; RETURN NEXT; END LOOP;
  RETURN QUERY SELECT id + 100, upper(owner) FROM acc WHERE bal > 1 ORDER BY id;
  RETURN QUERY EXECUTE 'SELECT id + $1, owner FROM acc ORDER BY id LIMIT 1' USING 1000;
  WHILE x > 2 LOOP x := x - 1; CONTINUE WHEN x = 3; k := x; s := 'while'; RETURN NEXT; END LOOP;
END $$;
SELECT * FROM loops();
CREATE FUNCTION dyn(tab text, OUT n bigint, OUT m int) LANGUAGE plpgsql AS $$ BEGIN EXECUTE format('SELECT count(*), max(id) FROM %I', tab) INTO n, m; END $$;
SELECT * FROM dyn('acc');
SELECT * FROM dyn('no such');
CREATE FUNCTION strict_into(i int) RETURNS text LANGUAGE plpgsql AS $$ DECLARE o text; BEGIN SELECT owner INTO STRICT o FROM acc WHERE id >= i; RETURN o; EXCEPTION WHEN no_data_found THEN RETURN 'none'; WHEN too_many_rows THEN RETURN 'many'; END $$;
SELECT strict_into(1), strict_into(4), strict_into(99);
CREATE FUNCTION sees() RETURNS text LANGUAGE plpgsql VOLATILE AS $$ DECLARE a int; b int; BEGIN SELECT count(*) INTO a FROM acc; INSERT INTO acc VALUES (50, 'fifty', 0); SELECT count(*) INTO b FROM acc; RETURN a || ' ' || b; END $$;
SELECT sees();
CREATE FUNCTION cnt_stable() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM acc';
CREATE FUNCTION cnt_volatile() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT count(*) FROM acc';
INSERT INTO acc SELECT 60 + i, 'c' || cnt_stable(), cnt_stable() FROM generate_series(1, 1) i RETURNING bal;
INSERT INTO acc SELECT 70 + i, 'v' || i || cnt_volatile(), cnt_volatile() FROM generate_series(1, 3) i RETURNING bal;
UPDATE acc SET bal = cnt_stable() WHERE id > 70 RETURNING bal;
DELETE FROM acc WHERE id > 60 AND cnt_stable() > 5 RETURNING id;
CREATE FUNCTION multi() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE tmp_x (a int) ON COMMIT DROP; INSERT INTO tmp_x SELECT id FROM acc; UPDATE acc SET bal = bal + 1 WHERE id IN (SELECT a FROM tmp_x); DROP TABLE tmp_x; END $$;
SELECT multi();
SELECT sum(bal) FROM acc;
CREATE FUNCTION nested_exc() RETURNS text LANGUAGE plpgsql AS $$
DECLARE res text := '';
BEGIN
  BEGIN
    INSERT INTO acc VALUES (80, 'eighty', 1);
    BEGIN
      INSERT INTO acc VALUES (81, 'eightyone', 1);
      RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN res := res || 'inner ';
    END;
    INSERT INTO acc VALUES (82, 'eightytwo', -1);
  EXCEPTION WHEN OTHERS THEN res := res || SQLSTATE;
  END;
  RETURN res || (SELECT count(*) FROM acc WHERE id >= 80);
END $$;
SELECT nested_exc();
DO $$ BEGIN RAISE NOTICE 'rows %', (SELECT count(*) FROM acc); RAISE WARNING 'w' USING DETAIL = 'dd'; RAISE INFO 'i'; END $$;
DO $$ BEGIN ASSERT (SELECT count(*) FROM acc) = 0, 'not empty'; END $$;
DO $$ DECLARE c int; BEGIN UPDATE acc SET bal = 0 WHERE id < 3; GET DIAGNOSTICS c = ROW_COUNT; RAISE NOTICE 'rc %', c; END $$;
CREATE FUNCTION fact(n int) RETURNS numeric LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN CASE WHEN n <= 1 THEN 1 ELSE n * fact(n - 1) END; END $$;
SELECT fact(20);
CREATE FUNCTION sqlbody(a int, b int DEFAULT 10) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT a + b; END;
SELECT sqlbody(1), sqlbody(1, 2), sqlbody(b => 5, a => 1);
CREATE FUNCTION ins(o text) RETURNS acc LANGUAGE sql AS $$ INSERT INTO acc VALUES ((SELECT max(id) + 1 FROM acc), o, 5) RETURNING * $$;
SELECT * FROM ins('sqlfn');
SELECT (ins('sqlfn2')).owner;
CREATE FUNCTION variadic_sum(VARIADIC xs int[]) RETURNS bigint LANGUAGE sql AS 'SELECT sum(x) FROM unnest(xs) x';
SELECT variadic_sum(1, 2, 3), variadic_sum(VARIADIC ARRAY[4, 5]);
CREATE FUNCTION poly(a anyelement, b anyelement) RETURNS anyarray LANGUAGE sql AS 'SELECT ARRAY[a, b]';
SELECT poly(1, 2), poly('a'::text, 'b');
CREATE PROCEDURE p_inout(INOUT x int, y int) LANGUAGE plpgsql AS $$ BEGIN x := x * y; END $$;
CALL p_inout(3, 4);
CREATE OR REPLACE FUNCTION sqlbody(a int, b int DEFAULT 10) RETURNS int LANGUAGE sql AS 'SELECT a * b';
SELECT sqlbody(2);
DROP FUNCTION sqlbody;
SELECT sqlbody(2);
CREATE FUNCTION secdef() RETURNS text LANGUAGE sql SECURITY DEFINER SET work_mem = '5MB' AS 'SELECT current_setting(''work_mem'')';
SELECT secdef();
CREATE AGGREGATE prod(numeric) (SFUNC = numeric_mul, STYPE = numeric, INITCOND = '1');
SELECT prod(id) FROM acc WHERE id < 5;
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq, COMMUTATOR = ===);
SELECT id FROM acc WHERE id === 2;
CREATE CAST (acc AS text) WITH INOUT;
SELECT acc::text FROM acc WHERE id = 2;
