-- Image build, after bootstrap.sql: our index access method (oid 9403) gets
-- copies of all of btree's operator families and classes, so that everything
-- that can be indexed by btree_local can be indexed by us under the name
-- btree. New oid = old oid + 4026531840 (0xF0000000), far above every oid that
-- initdb assigns and the same in every image. Runs once in each database of the
-- image; a second run fails on the unique indexes.

INSERT INTO pg_catalog.pg_opfamily (oid, opfmethod, opfname, opfnamespace, opfowner)
SELECT (oid::bigint + 4026531840)::oid, 9403, opfname, opfnamespace, opfowner
FROM pg_catalog.pg_opfamily WHERE opfmethod = 403;

INSERT INTO pg_catalog.pg_opclass
  (oid, opcmethod, opcname, opcnamespace, opcowner, opcfamily, opcintype, opcdefault, opckeytype)
SELECT (oid::bigint + 4026531840)::oid, 9403, opcname, opcnamespace, opcowner,
       (opcfamily::bigint + 4026531840)::oid, opcintype, opcdefault, opckeytype
FROM pg_catalog.pg_opclass WHERE opcmethod = 403;

INSERT INTO pg_catalog.pg_amproc (oid, amprocfamily, amproclefttype, amprocrighttype, amprocnum, amproc)
SELECT (p.oid::bigint + 4026531840)::oid, (p.amprocfamily::bigint + 4026531840)::oid,
       p.amproclefttype, p.amprocrighttype, p.amprocnum, p.amproc
FROM pg_catalog.pg_amproc p JOIN pg_catalog.pg_opfamily f ON f.oid = p.amprocfamily
WHERE f.opfmethod = 403;

-- Last: with these rows the planner asks our handler, and the library need not
-- be loaded here.
INSERT INTO pg_catalog.pg_amop
  (oid, amopfamily, amoplefttype, amoprighttype, amopstrategy, amoppurpose, amopopr, amopmethod, amopsortfamily)
SELECT (oid::bigint + 4026531840)::oid, (amopfamily::bigint + 4026531840)::oid, amoplefttype, amoprighttype,
       amopstrategy, amoppurpose, amopopr, 9403,
       CASE WHEN amopsortfamily = 0 THEN 0::oid ELSE (amopsortfamily::bigint + 4026531840)::oid END
FROM pg_catalog.pg_amop WHERE amopmethod = 403;

-- (in single-user mode the empty line above ends the statement)
