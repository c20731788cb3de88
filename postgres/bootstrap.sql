-- What an image gets right after initdb: our access methods, under the names
-- that users know.
--
-- Run once in each database of a fresh cluster (template1, template0 and
-- postgres; pg_am and pg_proc are not shared), then opclasses.sql likewise, as
-- the bootstrap superuser with allow_system_table_mods:
--
--     postgres --single -O -j -D DIR template1 < bootstrap.sql
--
-- (-j: a statement ends at a semicolon followed by an empty line.)  The library
-- need not be loaded for that.  Servers that use the image need
-- dynamic_library_path to contain the directory of australis.so, since an
-- image must not depend on where the program is installed.
--
-- What must hold: every row has an oid chosen here, in 9000..9999, which no
-- catalog of PostgreSQL 18 uses; so each query processor's image has the same
-- oids whatever ran before, and pg_dump and psql treat the objects as built in
-- (below 16384).  Everything lives in pg_catalog, so that no tool lists it.
--
-- oids: 9000 au_table_handler, 9001 au_index_handler, 9002 access method heap,
-- 9003 au_catalog_applied, 9010..9018 size functions, 9403 access method btree.

-- PostgreSQL's own methods keep their oids and get other names: catalogs,
-- temporary tables and toast tables go on using them.
UPDATE pg_catalog.pg_am SET amname = 'heap_local' WHERE oid = 2;

UPDATE pg_catalog.pg_am SET amname = 'btree_local' WHERE oid = 403;

INSERT INTO pg_catalog.pg_proc (oid, proname, pronamespace, proowner, prolang, procost, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, prosrc, probin)
    SELECT 9000, 'au_table_handler', pronamespace, proowner, 13, procost, prorows, provariadic, prosupport, prokind,
        prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs, pronargdefaults,
        prorettype, proargtypes, 'au_table_handler', 'australis'
    FROM pg_catalog.pg_proc WHERE oid = 3;

INSERT INTO pg_catalog.pg_proc (oid, proname, pronamespace, proowner, prolang, procost, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, prosrc, probin)
    SELECT 9001, 'au_index_handler', pronamespace, proowner, 13, procost, prorows, provariadic, prosupport, prokind,
        prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs, pronargdefaults,
        prorettype, proargtypes, 'au_index_handler', 'australis'
    FROM pg_catalog.pg_proc WHERE oid = 330;

-- the number of the newest DDL record in this query processor's catalogs; -1
-- while it is still catching up (pronargs and types from pg_backend_pid)
INSERT INTO pg_catalog.pg_proc (oid, proname, pronamespace, proowner, prolang, procost, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, prosrc, probin)
    SELECT 9003, 'au_catalog_applied', pronamespace, proowner, 13, procost, prorows, provariadic, prosupport,
        prokind, prosecdef, proleakproof, proisstrict, proretset, 'v', proparallel, pronargs, pronargdefaults, 20,
        proargtypes, 'au_catalog_applied', 'australis'
    FROM pg_catalog.pg_proc WHERE oid = 2026;

-- Sizes are those of storage (size_functions.c).  PostgreSQL's functions, which
-- count local files, get other names; calls by oid still find them.
UPDATE pg_catalog.pg_proc SET proname = proname || '_local'
    WHERE oid IN (2332, 2325, 2286, 2998, 2997, 2324, 2168, 2322, 2323);

INSERT INTO pg_catalog.pg_proc (oid, proname, pronamespace, proowner, prolang, procost, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, prosrc, probin)
    SELECT n.oid, replace(proname::text, '_local', '')::name, pronamespace, proowner, 13, 1, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, n.src, 'australis'
    FROM pg_catalog.pg_proc p JOIN (VALUES (9010, 2332, 'au_relation_size'), (9011, 2325, 'au_relation_size'),
        (9012, 2286, 'au_total_relation_size'), (9013, 2998, 'au_indexes_size'), (9014, 2997, 'au_table_size'),
        (9015, 2324, 'au_database_size_oid'), (9016, 2168, 'au_database_size_name'),
        (9017, 2322, 'au_tablespace_size_oid'), (9018, 2323, 'au_tablespace_size_name')) AS n (oid, old, src)
        ON p.oid = n.old::oid;

INSERT INTO pg_catalog.pg_description (objoid, classoid, objsubid, description)
    SELECT n.oid, classoid, objsubid, description
    FROM pg_catalog.pg_description d JOIN (VALUES (9010, 2332), (9011, 2325), (9012, 2286), (9013, 2998), (9014, 2997),
        (9015, 2324), (9016, 2168), (9017, 2322), (9018, 2323)) AS n (oid, old)
        ON d.objoid = n.old::oid AND d.classoid = 1255;

-- Sequences are the cluster's (sequence.c).  As above, PostgreSQL's functions get
-- other names; identity columns and calls by oid still find them.
UPDATE pg_catalog.pg_proc SET proname = proname || '_local' WHERE oid IN (1574, 1576, 1765);

INSERT INTO pg_catalog.pg_proc (oid, proname, pronamespace, proowner, prolang, procost, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, prosrc, probin)
    SELECT n.oid, replace(proname::text, '_local', '')::name, pronamespace, proowner, 13, 1, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, n.src, 'australis'
    FROM pg_catalog.pg_proc p JOIN (VALUES (9020, 1574, 'au_nextval'), (9021, 1576, 'au_setval'),
        (9022, 1765, 'au_setval_called')) AS n (oid, old, src) ON p.oid = n.old::oid;

INSERT INTO pg_catalog.pg_proc (oid, proname, pronamespace, proowner, prolang, procost, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, prosrc, probin)
    SELECT 9023, 'au_identity_value', pronamespace, proowner, 13, 1, prorows, provariadic,
        prosupport, prokind, prosecdef, proleakproof, proisstrict, proretset, provolatile, proparallel, pronargs,
        pronargdefaults, prorettype, proargtypes, 'au_identity_value', 'australis'
    FROM pg_catalog.pg_proc WHERE oid = 1574;

INSERT INTO pg_catalog.pg_description (objoid, classoid, objsubid, description)
    SELECT n.oid, classoid, objsubid, description
    FROM pg_catalog.pg_description d JOIN (VALUES (9020, 1574), (9021, 1576), (9022, 1765)) AS n (oid, old)
        ON d.objoid = n.old::oid AND d.classoid = 1255;

INSERT INTO pg_catalog.pg_am (oid, amname, amhandler, amtype) VALUES (9002, 'heap', 9000, 't');

INSERT INTO pg_catalog.pg_am (oid, amname, amhandler, amtype) VALUES (9403, 'btree', 9001, 'i');

-- "applied n" (PROTOCOL Q5) is a comment on our table access method in the
-- shared table of comments: transactional with the catalogs of every database,
-- and seen by no tool, since access methods have no shared comments.
INSERT INTO pg_catalog.pg_shdescription (objoid, classoid, description)
    SELECT 9002, 2601, '0'
    WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_shdescription WHERE objoid = 9002 AND classoid = 2601);

-- (in single-user mode the empty line above ends the statement)
