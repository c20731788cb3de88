-- What: the key codec orders every type exactly as PostgreSQL's btree does.
-- Needs australis.so in dynamic_library_path. Prints one row per type: compared
-- pairs and differences; holds when every "differences" is 0.

SET extra_float_digits = 1;
SET timezone = 'Europe/Berlin';
SET client_min_messages = warning;

DROP SCHEMA IF EXISTS key_test CASCADE;
CREATE SCHEMA key_test;
SET search_path = key_test, public;
CREATE FUNCTION key(anyelement, descending bool, nulls_first bool) RETURNS bytea
  LANGUAGE c IMMUTABLE AS 'australis', 'au_key_debug';

CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
ALTER TYPE mood ADD VALUE 'awful' BEFORE 'sad';
ALTER TYPE mood ADD VALUE 'fine' AFTER 'ok';
CREATE TYPE pair AS (a int, b text);
CREATE TYPE nested AS (p pair, f float8, n numeric);
CREATE DOMAIN short_text AS text CHECK (length(value) < 100);
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");

CREATE FUNCTION compare_all(type text, inputs text[], OUT pairs bigint, OUT differences bigint, OUT example text)
LANGUAGE plpgsql AS $$
DECLARE
  direction record;
BEGIN
  pairs := 0; differences := 0;
  FOR direction IN SELECT d, n FROM (VALUES (false, false), (false, true), (true, false), (true, true)) v(d, n) LOOP
    DECLARE p bigint; f bigint; e text;
    BEGIN
      -- three way comparison by < and >, as btree has it; NULLs by the flag
      EXECUTE format($q$
        WITH v AS MATERIALIZED (
          SELECT i, x, key(x, %2$L, %3$L) AS k
          FROM (SELECT i, t::%1$s AS x FROM unnest($1) WITH ORDINALITY u(t, i)) s),
        c AS (
          SELECT a.x AS ax, b.x AS bx, a.k AS ak, b.k AS bk,
            CASE WHEN a.n AND b.n THEN 0 WHEN a.n THEN %4$s WHEN b.n THEN -(%4$s)
              ELSE %5$s * (CASE WHEN a.x < b.x THEN -1 WHEN a.x > b.x THEN 1 ELSE 0 END) END AS want,
            CASE WHEN a.k < b.k THEN -1 WHEN a.k > b.k THEN 1 ELSE 0 END AS have
          FROM (SELECT *, i > array_length($1, 1) OR ($1)[i] IS NULL AS n FROM v) a,
               (SELECT *, i > array_length($1, 1) OR ($1)[i] IS NULL AS n FROM v) b),
        bad AS (
          SELECT * FROM c
          -- different keys must not be prefixes of each other
          WHERE want <> have OR (ak <> bk AND substr(ak, 1, length(bk)) = bk))
        SELECT (SELECT count(*) FROM c), (SELECT count(*) FROM bad),
          (SELECT format('%%s | %%s | %%s | %%s | want %%s have %%s', ax, bx, ak, bk, want, have) FROM bad LIMIT 1)$q$,
        type, direction.d, direction.n,
        CASE WHEN direction.n THEN -1 ELSE 1 END, CASE WHEN direction.d THEN -1 ELSE 1 END)
      INTO p, f, e USING inputs;
      pairs := pairs + p; differences := differences + f; example := coalesce(example, e);
    END;
  END LOOP;
END $$;

-- Random material, the same in every run.
SELECT setseed(0.42) \g /dev/null
CREATE TABLE random_text AS
  SELECT (SELECT coalesce(string_agg(substr(E'ab\x01\x7f \u00e9zA~', 1 + (random() * 8)::int, 1), ''), '')
          FROM generate_series(1, (random() * 20)::int) WHERE g >= 0) AS t
  FROM generate_series(1, 60) g;

CREATE TABLE cases (type text, inputs text[]);
INSERT INTO cases VALUES
  ('bool', '{t,f,NULL}'),
  ('"char"', ARRAY['', 'a', 'b', 'Z', '\200', '\377', NULL]),
  ('int2', '{0,1,-1,32767,-32768,255,256,-256,NULL}'),
  ('int4', '{0,1,-1,2147483647,-2147483648,255,256,65536,-65537,NULL}'),
  ('int8', '{0,1,-1,9223372036854775807,-9223372036854775808,4294967296,-4294967297,NULL}'),
  ('oid', '{0,1,4294967295,2147483648,2147483647,NULL}'),
  ('regclass', '{pg_type,pg_class,pg_proc,NULL}'),
  ('xid8', '{0,1,18446744073709551615,9223372036854775808,9223372036854775807,NULL}'),
  ('pg_lsn', '{0/0,0/1,FFFFFFFF/FFFFFFFF,80000000/0,7FFFFFFF/FFFFFFFF,NULL}'),
  ('money', '{0,1,-1,92233720368547758.07,-92233720368547758.08,0.01,NULL}'),
  ('float4', '{0,-0,1,-1,NaN,Infinity,-Infinity,1e-45,-1e-45,3.4e38,-3.4e38,1.1,1.10001,NULL}'),
  ('float8', '{0,-0,1,-1,NaN,Infinity,-Infinity,5e-324,-5e-324,1.7e308,-1.7e308,0.1,0.10000000000000001,NULL}'),
  ('numeric', '{0,0.0,-0.00,1,1.0,1.00,-1,-1.0,NaN,Infinity,-Infinity,1.5,1.50001,1.4999,10,100,1000,9999,10000,10001,0.1,0.0001,0.00001,0.00010001,-0.00001,-0.0001,-10000,-9999,-10001,123456789012345678901234567890,123456789012345678901234567890.000000001,1e1000,-1e1000,1e-1000,-1e-1000,1e9000,99999999,100000000,100000001,NULL}'),
  ('text', ARRAY['', 'a', 'ab', 'abcdefg', 'abcdefgh', 'abcdefghi', 'abcdefgh' || E'\x01', E'a\x01', 'b', 'é', 'zzzzzzzzzzzzzzzzzzzzzzzz', 'abcdefghabcdefgh', 'abcdefghabcdefghi', NULL]),
  ('varchar', ARRAY['', 'a', 'a ', 'A', NULL]),
  ('bpchar', ARRAY['', ' ', 'a', 'a ', 'a  b', E'a\x01', 'abcdefgh        ', 'abcdefgh', NULL]),
  ('char(10)', ARRAY['', ' ', 'a', 'a ', 'a  b', E'a\x01', NULL]),
  ('name', ARRAY['', 'a', 'ab', 'abcdefgh', 'abcdefghi', repeat('x', 63), repeat('x', 62), NULL]),
  ('bytea', ARRAY['', '\x00', '\x0000', '\x01', '\xff', '\xffff', '\x0000000000000000', '\x000000000000000000', '\xffffffffffffffff', '\xffffffffffffffffff', '\x00000000000000', NULL]),
  ('short_text', ARRAY['', 'a', 'b', NULL]),
  ('uuid', ARRAY['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '80000000-0000-0000-0000-000000000000', NULL]),
  ('date', '{2000-01-01,1999-12-31,infinity,-infinity,4713-01-01 BC,5874897-12-31,NULL}'),
  ('time', '{00:00,24:00,12:34:56.789012,23:59:59.999999,NULL}'),
  ('timetz', '{00:00+00,24:00+00,12:00+02,10:00+00,14:00+04,12:00-15:59,12:00+15:59,10:00+00:00:01,23:59:59.999999-12,NULL}'),
  ('timestamp', '{2000-01-01,1999-12-31 23:59:59.999999,infinity,-infinity,4713-01-01 BC,294276-12-31 23:59:59.999999,NULL}'),
  ('timestamptz', '{2000-01-01,1999-12-31 23:59:59.999999,infinity,-infinity,4713-01-01 BC,2024-10-27 02:30 Europe/Berlin,NULL}'),
  ('interval', ARRAY['0', '1 day', '24 hours', '30 days', '1 month', '720 hours', '-1 month', '-30 days', '1 microsecond', '-1 microsecond', '178000000 years', '-178000000 years', 'infinity', '-infinity', '1 month -30 days', '2147483647 days', '1 year', '365 days', '360 days', '178000000 years 2147483647 days 2562047788 hours', NULL]),
  ('inet', '{10.0.0.0/8,10.0.0.0,10.0.0.1,10.1.0.0/16,10.0.0.0/16,10.5.0.0/8,0.0.0.0/0,255.255.255.255,1.2.3.4/0,1.2.3.5/0,1.2.3.4/31,1.2.3.5/31,1.2.3.4/1,::,::1,::/0,ffff::/16,ffff:1::/17,2001:db8::1/64,2001:db8::2/64,2001:db8::1,NULL}'),
  ('cidr', '{10.0.0.0/8,10.0.0.0,10.1.0.0/16,10.0.0.0/16,0.0.0.0/0,::/0,ffff::/16,NULL}'),
  ('macaddr', '{00:00:00:00:00:00,ff:ff:ff:ff:ff:ff,80:00:00:00:00:00,08:00:2b:01:02:03,00:00:00:00:00:01,00:00:00:80:00:00,NULL}'),
  ('macaddr8', '{00:00:00:00:00:00:00:00,ff:ff:ff:ff:ff:ff:ff:ff,80:00:00:00:00:00:00:00,08:00:2b:01:02:03:04:05,00:00:00:00:00:00:00:01,NULL}'),
  ('varbit', ARRAY['', '0', '1', '10', '00000000', '000000000', '10000000', '100000000', '1000000001', '11111111', '111111111', repeat('1', 64), repeat('1', 65), repeat('0', 64), repeat('0', 65), NULL]),
  ('bit(9)', ARRAY['000000000', '100000000', '000000001', '111111111', NULL]),
  ('tid', ARRAY['(0,0)', '(0,1)', '(1,0)', '(4294967295,65535)', '(2147483648,1)', '(0,32768)', NULL]),
  ('oidvector', ARRAY['', '1', '2', '1 2', '1 4294967295', '4294967295', '0 0 0', NULL]),
  ('mood', '{sad,ok,happy,awful,fine,NULL}'),
  ('int4[]', ARRAY['{}', '{1}', '{NULL}', '{1,NULL}', '{1,2}', '{NULL,1}', '{1,2,3}', '{{1,2}}', '{{1},{2}}', '[2:3]={1,2}', '[0:1]={1,2}', '{-1}', '{2}', '{{{1}}}', NULL]),
  ('text[]', ARRAY['{}', '{""}', '{a}', '{a,""}', '{a,b}', '{ab}', '{NULL}', '{"a\u0001"}', '{abcdefgh}', '{abcdefgh,a}', NULL]),
  ('numeric[]', ARRAY['{}', '{1.0}', '{1}', '{1.00,NaN}', '{NaN}', '{-1}', NULL]),
  ('mood[]', ARRAY['{}', '{sad}', '{awful}', '{ok,sad}', NULL]),
  ('pair', ARRAY['(1,a)', '(1,b)', '(,a)', '(1,)', '(,)', '(2,)', '(-1,zzz)', '(1,"")', NULL]),
  ('pair[]', ARRAY['{"(1,a)"}', '{"(1,b)"}', '{"(,)"}', '{"(1,a)","(2,)"}', '{}', NULL]),
  ('nested', ARRAY['("(1,a)",1,1.0)', '("(1,a)",1,1.00)', '("(1,a)",NaN,)', '(,,)', '("(,)",,)', '("(2,)",-0,0)', NULL]),
  ('int4range', ARRAY['empty', '(,)', '[1,)', '(,1)', '[1,2)', '[1,3)', '[2,3)', '(,0)', '[-5,5)', NULL]),
  ('numrange', ARRAY['empty', '(,)', '[1,)', '(1,)', '(,1)', '(,1]', '[1,2)', '[1,2]', '(1,2)', '(1,2]', '[1.0,2.00]', '[1,1]', NULL]),
  ('textrange', ARRAY['empty', '(,)', '[a,)', '(a,)', '["",a]', '["",a)', '[ab,b]', NULL]),
  ('tstzrange', ARRAY['empty', '[2000-01-01,infinity)', '[2000-01-01,infinity]', '[2000-01-01,)', '(-infinity,2000-01-01)', '(,2000-01-01)', NULL]),
  ('int4multirange', ARRAY['{}', '{(,)}', '{[1,2)}', '{[1,2),[3,4)}', '{[1,2),[3,5)}', '{[1,)}', '{(,1),[5,6)}', NULL]),
  ('nummultirange', ARRAY['{}', '{[1,2)}', '{[1,2]}', '{(1,2]}', '{[1,2],[3,4]}', NULL]),
  ('jsonb', ARRAY['null', 'true', 'false', '0', '1', '1.0', '-1', '1e400', '""', '"a"', '"b"', '"ab"', '"abcdefgh"', '[]', '[[]]', '[null]', '[1]', '["a"]', '[true]', '[1,2]', '[2]', '[{}]', '{}', '{"a":1}', '{"a":2}', '{"b":1}', '{"aa":1}', '{"a":1,"b":2}', '{"a":1,"c":0}', '{"b":[],"a":{}}', '{"a":[1,{"x":null}]}', '{"a":[1,{"x":1}]}', '[[1],2]', '[[1],[2]]', '[[[]]]', '{"a":null}', '{"":""}', '[null,null]', '["", ""]', NULL]),
  ('tsvector', ARRAY['', 'a', 'b', 'a b', 'a:1', 'a:2', 'a:1A', 'a:1,2', 'a:1B,2', 'ab', 'a:1 b', 'abc:3C', 'abc:3D', NULL]),
  ('tsquery', ARRAY['', 'a', 'b', '!a', 'a & b', 'a | b', 'b & a', 'a <-> b', 'a <2> b', 'a:*', 'a:A', '(a & b) | c', 'a & (b | c)', '!(a & b)', 'abc', '!!a', NULL]);

INSERT INTO cases
  SELECT 'text', array_agg(t) FROM random_text
  UNION ALL SELECT 'bytea', array_agg('\x' || encode(convert_to(t, 'UTF8'), 'hex')) FROM random_text
  UNION ALL SELECT 'bpchar', array_agg(t) FROM random_text
  UNION ALL SELECT 'int4', array_agg(((random() - 0.5) * 4e9)::int8::text) FROM generate_series(1, 40) WHERE true
  UNION ALL SELECT 'int8', array_agg(((random() - 0.5) * 1.8e19)::int8::text) FROM generate_series(1, 60)
  UNION ALL SELECT 'float8', array_agg(((random() - 0.5) * 10 ^ (random() * 600 - 300))::text) FROM generate_series(1, 60)
  UNION ALL SELECT 'float4', array_agg(((random() - 0.5) * 10 ^ (random() * 60 - 30))::float4::text) FROM generate_series(1, 60)
  UNION ALL SELECT 'numeric', array_agg(round(((random() - 0.5) * 10 ^ (random() * 40 - 20))::numeric, (random() * 20)::int)::text) FROM generate_series(1, 80)
  UNION ALL SELECT 'numeric', array_agg(((random() * 6)::int - 3 || '.' || repeat('0', (random() * 6)::int) || (random() * 3)::int)) FROM generate_series(1, 80)
  UNION ALL SELECT 'interval', array_agg(format('%s months %s days %s hours', (random() * 10 - 5)::int, (random() * 60 - 30)::int, (random() * 100 - 50)::int)) FROM generate_series(1, 80)
  UNION ALL SELECT 'timetz', array_agg(format('%s:%s%s', lpad((random() * 23)::int::text, 2, '0'), lpad((random() * 59)::int::text, 2, '0'), to_char((random() * 28 - 14)::int, 'SG00'))) FROM generate_series(1, 60)
  UNION ALL SELECT 'timestamptz', array_agg((timestamptz '2000-01-01' + (random() - 0.5) * interval '100 years')::text) FROM generate_series(1, 60)
  UNION ALL SELECT 'inet', array_agg(format('%s.%s.0.%s/%s', (random() * 3)::int, (random() * 2)::int * 64, (random() * 255)::int, (random() * 32)::int)) FROM generate_series(1, 80)
  UNION ALL SELECT 'uuid', array_agg(gen_random_uuid()::text) FROM generate_series(1, 40)
  UNION ALL SELECT 'varbit', array_agg(b) FROM (SELECT (SELECT coalesce(string_agg((random())::int::text, ''), '') FROM generate_series(1, (random() * 20)::int) WHERE g > 0) AS b FROM generate_series(1, 60) g) s
  UNION ALL SELECT 'int4[]', array_agg(a) FROM (SELECT (SELECT coalesce(array_agg(CASE WHEN random() < 0.2 THEN NULL ELSE (random() * 2)::int END), '{}')::text FROM generate_series(1, (random() * 4)::int) WHERE g > 0) AS a FROM generate_series(1, 60) g) s
  UNION ALL SELECT 'numrange', array_agg(format('%s%s,%s%s', CASE WHEN random() < 0.5 THEN '[' ELSE '(' END, CASE WHEN random() < 0.2 THEN '' ELSE ((random() * 3)::int)::text END, CASE WHEN random() < 0.2 THEN '' ELSE ((random() * 3)::int + 3)::text END, CASE WHEN random() < 0.5 THEN ']' ELSE ')' END)) FROM generate_series(1, 60)
  UNION ALL SELECT 'jsonb', array_agg(j) FROM (SELECT CASE (random() * 5)::int
      WHEN 0 THEN to_jsonb((random() * 3)::int)::text WHEN 1 THEN to_jsonb(substr('abc', 1, (random() * 3)::int))::text
      WHEN 2 THEN (SELECT coalesce(jsonb_agg((random() * 2)::int), '[]')::text FROM generate_series(1, (random() * 3)::int) WHERE g > 0)
      WHEN 3 THEN (SELECT coalesce(jsonb_object_agg(substr('abcd', k, 1 + (random() * 2)::int), (random() * 2)::int), '{}')::text FROM generate_series(1, (random() * 3)::int) k WHERE g > 0)
      WHEN 4 THEN (SELECT coalesce(jsonb_agg(jsonb_build_array((random() * 2)::int)), '[]')::text FROM generate_series(1, (random() * 3)::int) WHERE g > 0)
      ELSE (random() < 0.5)::text END AS j FROM generate_series(1, 80) g) s;

SELECT type, sum(pairs) AS pairs, sum(differences) AS differences, min(example) AS example
FROM cases, compare_all(type, inputs) GROUP BY type ORDER BY type COLLATE "C";

DROP SCHEMA key_test CASCADE;
