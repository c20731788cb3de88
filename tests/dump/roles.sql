-- Roles that rich.sql needs; they belong to the cluster, not to a database, and are made again by every run.
CREATE ROLE r_reader NOLOGIN CONNECTION LIMIT 5;
CREATE ROLE r_writer LOGIN PASSWORD 'x' VALID UNTIL '2099-01-01' INHERIT NOREPLICATION;
CREATE ROLE r_admin CREATEROLE CREATEDB BYPASSRLS;
GRANT r_reader TO r_writer WITH ADMIN OPTION;
GRANT r_writer TO r_admin WITH INHERIT FALSE, SET TRUE;
ALTER ROLE r_writer SET search_path = 'app', "Odd Name";
ALTER ROLE r_reader IN DATABASE postgres SET statement_timeout = '5s';
COMMENT ON ROLE r_reader IS 'reads';
