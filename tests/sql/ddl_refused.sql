-- What is refused, and what runs in another form (docs/sql.md). Expected output: ddl_refused.out.
\set VERBOSITY default
CREATE TABLE r (id int PRIMARY KEY, t text, p point, j jsonb, tr tsrange);
-- other index methods
CREATE INDEX ON r USING gin (j);
CREATE INDEX ON r USING gist (p);
CREATE INDEX ON r USING hash (t);
CREATE INDEX ON r USING brin (id);
CREATE INDEX ON r USING spgist (p);
CREATE INDEX ON r USING nowhere (id);
CREATE INDEX ON r USING btree_local (id);
CREATE TABLE ex (a int, EXCLUDE USING btree (a WITH =));
CREATE TABLE ex (tr tsrange, EXCLUDE USING gist (tr WITH &&));
ALTER TABLE r ADD EXCLUDE USING gist (tr WITH &&);
CREATE TABLE ex (a int4range, tr tsrange, PRIMARY KEY (a, tr WITHOUT OVERLAPS));
-- other table methods
CREATE TABLE l (a int) USING heap_local;
CREATE TABLE l AS SELECT 1 AS a;
ALTER TABLE l SET ACCESS METHOD heap_local;
SET default_table_access_method = heap_local;
CREATE TABLE l2 (a int);
RESET default_table_access_method;
CREATE TABLE u USING heap AS SELECT 1 AS a;
-- unlogged relations stay what they are, in the cluster's storage
CREATE UNLOGGED TABLE un (a int PRIMARY KEY, s serial);
INSERT INTO un SELECT generate_series(1, 3);
ALTER TABLE un SET LOGGED;
SELECT * FROM un;
ALTER TABLE un SET UNLOGGED;
INSERT INTO un VALUES (4);
SELECT * FROM un ORDER BY a DESC;
CREATE INDEX ON un USING hash (a);
SELECT relname, relpersistence, amname FROM pg_class c LEFT JOIN pg_am a ON a.oid = relam WHERE relname LIKE 'un%' ORDER BY 1;
-- server-wide things
CREATE TABLESPACE ts LOCATION '/nowhere';
CREATE TABLE intbs (a int) TABLESPACE nowhere;
CREATE TABLE intbs (a int) TABLESPACE pg_default;
ALTER SYSTEM SET work_mem = '1MB';
CREATE PUBLICATION pub FOR ALL TABLES;
CREATE SUBSCRIPTION sub CONNECTION 'host=nowhere' PUBLICATION pub WITH (connect = false);
BEGIN;
CREATE TABLE prepared (a int);
PREPARE TRANSACTION 'x';
ROLLBACK;
SET track_counts = off;
-- CONCURRENTLY in a transaction block, and its own conditions
BEGIN;
CREATE INDEX CONCURRENTLY ON r (t);
ROLLBACK;
BEGIN;
REINDEX TABLE CONCURRENTLY r;
ROLLBACK;
BEGIN;
DROP INDEX CONCURRENTLY r_pkey;
ROLLBACK;
CREATE INDEX CONCURRENTLY r_t ON r (t);
REINDEX (CONCURRENTLY) INDEX r_t;
REINDEX (CONCURRENTLY FALSE) INDEX r_t;
DROP INDEX CONCURRENTLY r_t, r_pkey;
DROP INDEX CONCURRENTLY r_t;
CREATE TABLE pt (a int) PARTITION BY RANGE (a);
CREATE INDEX CONCURRENTLY ON pt (a);
CREATE MATERIALIZED VIEW mv AS SELECT 1 AS a;
REFRESH MATERIALIZED VIEW CONCURRENTLY mv;
CREATE UNIQUE INDEX ON mv (a);
REFRESH MATERIALIZED VIEW CONCURRENTLY mv;
REFRESH MATERIALIZED VIEW CONCURRENTLY mv WITH NO DATA;
REFRESH MATERIALIZED VIEW mv WITH NO DATA;
REFRESH MATERIALIZED VIEW CONCURRENTLY mv;
-- temporary relations use PostgreSQL's own methods, whatever the way
CREATE TEMP TABLE tt (id int PRIMARY KEY, t text UNIQUE, p point) USING heap;
CREATE INDEX ON tt USING gist (p);
CREATE INDEX ON tt USING btree (t DESC);
ALTER TABLE tt ADD COLUMN z int UNIQUE;
ALTER TABLE tt ADD CONSTRAINT ex EXCLUDE (id WITH =);
CREATE TEMP TABLE tt2 (LIKE r INCLUDING ALL);
CREATE TEMP TABLE tt3 AS SELECT 1 AS a;
SELECT c.relname, a.amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE relpersistence = 't' AND relnamespace = pg_my_temp_schema() ORDER BY 1;
ALTER TABLE tt ALTER COLUMN id TYPE bigint;
ALTER TABLE tt ALTER COLUMN p TYPE text;
INSERT INTO tt SELECT g, g::text, NULL, g FROM generate_series(1, 10) g;
SELECT count(*) FROM tt WHERE id = 5 AND t = '5';
SELECT c.relname FROM pg_class c WHERE relam IN (2, 403) AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace;
-- too many enum labels between two others would need other positions
CREATE TYPE many AS ENUM ('a', 'z');
CREATE TYPE unused AS ENUM ('a', 'z');
CREATE TABLE uses_many (m many[] PRIMARY KEY);
DO $$ BEGIN FOR i IN 1..30 LOOP EXECUTE format('ALTER TYPE unused ADD VALUE %L AFTER ''a''', 'l' || i); END LOOP; END $$;
DO $$ BEGIN FOR i IN 1..30 LOOP EXECUTE format('ALTER TYPE many ADD VALUE %L AFTER ''a''', 'l' || i); END LOOP; END $$;
