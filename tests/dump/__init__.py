"""Round trips of pg_dump, pg_dumpall and pg_restore between stock PostgreSQL and Australis."""
