-- psql's \d family, size functions, statistics views
CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int NOT NULL DEFAULT 5, b text COLLATE "C", c numeric(8,2) CHECK (c > 0), d int GENERATED ALWAYS AS (a * 2) STORED, UNIQUE (a, b));
CREATE INDEX t_b ON t (b DESC NULLS LAST) INCLUDE (c) WHERE a > 3;
CREATE INDEX t_expr ON t (lower(b), (a + 1));
CREATE TABLE kid (id int PRIMARY KEY, tid int REFERENCES t ON DELETE CASCADE DEFERRABLE);
CREATE VIEW v AS SELECT id, b FROM t;
CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n FROM t;
CREATE SEQUENCE sq CYCLE MAXVALUE 10;
CREATE FUNCTION f(x int, OUT y text) LANGUAGE sql AS 'SELECT x::text';
CREATE TYPE en AS ENUM ('a', 'b');
CREATE TYPE co AS (x int, y text);
CREATE DOMAIN dom AS int CHECK (VALUE > 0);
CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION trg();
CREATE RULE ru AS ON UPDATE TO t DO ALSO NOTHING;
CREATE POLICY po ON t USING (a > 0);
CREATE STATISTICS st ON a, b FROM t;
CREATE TABLE part (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (1) TO (5);
CREATE TABLE inh () INHERITS (kid);
COMMENT ON TABLE t IS 'the table';
COMMENT ON COLUMN t.a IS 'a column';
GRANT SELECT ON t TO PUBLIC;
--@ psql \d
--@ psql \d t
--@ psql \d+ t
--@ psql \d kid
--@ psql \d v
--@ psql \d+ v
--@ psql \d m
--@ psql \d sq
--@ psql \d t_b
--@ psql \d t_pkey
--@ psql \d part
--@ psql \d+ part
--@ psql \d part1
--@ psql \d inh
--@ psql \d co
--@ psql \dt
--@ psql \dt t
--@ psql \di
--@ psql \dv
--@ psql \dm
--@ psql \ds
--@ psql \df f
--@ psql \df+ f
--@ psql \sf f
--@ psql \sv v
--@ psql \dT
--@ psql \dD
--@ psql \dp t
--@ psql \dX
--@ psql \dy
--@ psql \dP
--@ psql \dn d_catalog*
--@ psql \dd
--@ psql \dg admin
--@ psql \dA heap
--@ psql \dA btree
--@ psql \dAc btree int4
--@ psql \dAf btree int4
--@ psql \dAo btree integer_ops
--@ psql \dAp btree integer_ops
--@ psql \dC int4
--@ psql \do =
--@ psql \dL
--@ psql \dx
--@ psql \d nope
--@ psql \encoding
INSERT INTO t (a, b, c) SELECT i, 'b' || i, i FROM generate_series(1, 500) i;
VACUUM ANALYZE t;
SELECT pg_relation_size('t') > 0, pg_total_relation_size('t') >= pg_relation_size('t'), pg_indexes_size('t') > 0, pg_table_size('t') > 0;
SELECT pg_relation_size('t_pkey') > 0, pg_size_pretty(pg_database_size(current_database())) <> '';
SELECT reltuples, relpages > 0 FROM pg_class WHERE oid = 't'::regclass;
SELECT relname, relkind, relpersistence, relhasindex, relnatts FROM pg_class WHERE relnamespace = 'd_catalog_psql'::regnamespace ORDER BY relname;
SELECT amname, amtype FROM pg_am WHERE amname IN ('heap', 'btree') ORDER BY 1;
SELECT c.relname, a.amname FROM pg_class c JOIN pg_am a ON c.relam = a.oid WHERE relnamespace = 'd_catalog_psql'::regnamespace ORDER BY 1;
SELECT attname, n_distinct, null_frac, correlation IS NOT NULL FROM pg_stats WHERE schemaname = 'd_catalog_psql' AND tablename = 't' ORDER BY attname;
SELECT schemaname, tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'd_catalog_psql' ORDER BY indexname;
SELECT schemaname, tablename, hasindexes, hastriggers FROM pg_tables WHERE schemaname = 'd_catalog_psql' ORDER BY tablename;
SELECT opcname, opcdefault FROM pg_opclass o JOIN pg_am a ON a.oid = opcmethod WHERE amname = 'btree' AND opcintype = 'int4'::regtype;
SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 't'::regclass ORDER BY conname;
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 't'::regclass AND NOT tgisinternal;
SELECT pg_get_functiondef('f'::regproc);
SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns WHERE table_schema = 'd_catalog_psql' ORDER BY 1, ordinal_position;
SELECT constraint_name, constraint_type FROM information_schema.table_constraints WHERE table_schema = 'd_catalog_psql' AND constraint_type <> 'CHECK' ORDER BY 1;
SELECT table_name, column_name, constraint_name FROM information_schema.key_column_usage WHERE table_schema = 'd_catalog_psql' ORDER BY 1, 3, 2;
SELECT seq_scan IS NOT NULL, n_live_tup >= 0 FROM pg_stat_user_tables WHERE relid = 't'::regclass;
SELECT count(*) FROM pg_stat_user_indexes WHERE relid = 't'::regclass;
SELECT state, query LIKE '%pg_stat_activity%' FROM pg_stat_activity WHERE pid = pg_backend_pid();
SELECT count(*) > 0 FROM pg_locks;
SELECT pg_typeof(pg_current_wal_lsn());
SELECT count(*) FROM pg_settings WHERE name = 'server_version';
SELECT pg_column_size(a), pg_column_size(b) FROM t WHERE id = 1;
SELECT to_regclass('t'), to_regclass('nope'), 't'::regclass;
SELECT indisvalid, indisready, indislive, indimmediate FROM pg_index WHERE indexrelid = 't_pkey'::regclass;
SELECT has_schema_privilege('public', 'd_catalog_psql', 'CREATE'), pg_table_is_visible('t'::regclass);
SELECT current_database(), current_user, current_schema, pg_is_in_recovery();
SELECT datname, pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = current_database();
SELECT obj_description('t'::regclass, 'pg_class');
