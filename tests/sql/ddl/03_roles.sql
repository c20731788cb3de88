-- Shared catalogs: roles, grants, settings, ownership, databases; default privileges.
CREATE ROLE reader;
CREATE ROLE writer LOGIN PASSWORD 'secret' CONNECTION LIMIT 5 VALID UNTIL '2040-01-01';
CREATE USER owner_u CREATEDB CREATEROLE;
CREATE GROUP staff ROLE writer ADMIN owner_u;
ALTER ROLE reader RENAME TO readers;
ALTER ROLE writer PASSWORD 'changed' NOLOGIN;
ALTER ROLE writer SET work_mem = '8MB';
ALTER ROLE writer IN DATABASE postgres SET search_path = app, public;
ALTER ROLE writer RESET work_mem;
ALTER ROLE ALL SET statement_timeout = '1h';
ALTER ROLE ALL RESET statement_timeout;
GRANT readers TO writer WITH ADMIN OPTION;
GRANT pg_read_all_data TO readers;
REVOKE readers FROM writer;
CREATE TABLE owned (id int PRIMARY KEY, b text);
ALTER TABLE owned OWNER TO owner_u;
GRANT SELECT, INSERT (b) ON owned TO readers, writer;
GRANT ALL ON SCHEMA public TO owner_u;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA app TO readers;
GRANT SELECT ON ALL TABLES IN SCHEMA app TO readers WITH GRANT OPTION;
REVOKE SELECT ON app.child FROM readers;
GRANT EXECUTE ON FUNCTION increment(int) TO readers;
GRANT CREATE ON DATABASE postgres TO owner_u;
GRANT SET ON PARAMETER work_mem TO writer;
GRANT SELECT ON pg_catalog.pg_authid TO readers;
REVOKE SELECT ON pg_catalog.pg_authid FROM readers;
GRANT SELECT (rolname) ON pg_catalog.pg_authid TO readers;
ALTER DEFAULT PRIVILEGES FOR ROLE owner_u IN SCHEMA public GRANT SELECT ON TABLES TO readers;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
SET ROLE owner_u;
CREATE TABLE made_by_owner (a int PRIMARY KEY);
RESET ROLE;
REASSIGN OWNED BY owner_u TO CURRENT_USER;
DROP OWNED BY writer;
CREATE ROLE short_lived;
DROP ROLE short_lived;
-- databases
ALTER DATABASE postgres SET lock_timeout = '5s';
ALTER DATABASE postgres RESET lock_timeout;
CREATE DATABASE second OWNER owner_u CONNECTION LIMIT 20;
CREATE DATABASE third TEMPLATE template0 ENCODING 'SQL_ASCII' IS_TEMPLATE true ALLOW_CONNECTIONS true;
ALTER DATABASE third RENAME TO third_db;
ALTER DATABASE second OWNER TO CURRENT_USER;
ALTER DATABASE second SET work_mem = '9MB';
COMMENT ON DATABASE second IS 'the second';
\c second
CREATE TABLE in_second (id serial PRIMARY KEY, t text);
INSERT INTO in_second (t) SELECT 'x' || g FROM generate_series(1, 10) g;
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE ROLE from_second;
GRANT SELECT ON in_second TO from_second;
\c postgres
CREATE TABLE between_databases (a int);
CREATE DATABASE cloned TEMPLATE second;
\c cloned
INSERT INTO in_second (t) VALUES ('in the clone');
ALTER TABLE in_second ADD COLUMN u int DEFAULT 1;
\c postgres
CREATE DATABASE doomed;
\c doomed
CREATE TABLE x (a int PRIMARY KEY);
INSERT INTO x VALUES (1);
\c postgres
DROP DATABASE doomed;
ALTER DATABASE third_db IS_TEMPLATE false;
DROP DATABASE third_db WITH (FORCE);
-- DML on catalogs
SET allow_system_table_mods = on;
UPDATE pg_catalog.pg_proc SET procost = 77 WHERE proname = 'increment';
INSERT INTO pg_catalog.pg_description VALUES ('owned'::regclass, 'pg_class'::regclass, 0, 'by hand');
DELETE FROM pg_catalog.pg_description WHERE description = 'by hand';
RESET allow_system_table_mods;
-- large objects
SELECT lo_from_bytea(70000, 'some bytes');
SELECT lo_put(70000, 4, 'other');
SELECT lo_create(70001);
SELECT lo_unlink(70001);
GRANT SELECT ON LARGE OBJECT 70000 TO readers;
