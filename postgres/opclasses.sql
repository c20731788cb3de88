-- (in single-user mode the empty line above ends the statement)
-- Image build, after bootstrap.sql: our index access method (oid 9403) gets
-- copies of all of btree's operator families and classes, so that everything
-- that can be indexed by btree_local can be indexed by us under the name
-- btree. Families get the oids from 9100 on, classes those from 9200 on, in the
-- order of btree's oids: below 12000, so that they count as pinned and no index has a
-- dependency on them, as on btree's. Operators and functions in them: old oid +
-- 4026531840 (0xF0000000), far above every oid that initdb assigns. All are the
-- same in every image. Runs once in each database of the image; a second run
-- fails on the unique indexes.

INSERT INTO pg_catalog.pg_opfamily (oid, opfmethod, opfname, opfnamespace, opfowner)
SELECT (9099 + row_number() OVER (ORDER BY oid))::int::oid, 9403, opfname, opfnamespace, opfowner
FROM pg_catalog.pg_opfamily f WHERE opfmethod = 403 ORDER BY f.ctid;

INSERT INTO pg_catalog.pg_opclass
  (oid, opcmethod, opcname, opcnamespace, opcowner, opcfamily, opcintype, opcdefault, opckeytype)
SELECT (9199 + row_number() OVER (ORDER BY c.oid))::int::oid, 9403, opcname, opcnamespace, opcowner,
       n.oid, opcintype, opcdefault, opckeytype
FROM pg_catalog.pg_opclass c JOIN pg_catalog.pg_opfamily f ON f.oid = c.opcfamily
     JOIN pg_catalog.pg_opfamily n ON n.opfmethod = 9403 AND n.opfname = f.opfname AND n.opfnamespace = f.opfnamespace
WHERE c.opcmethod = 403 ORDER BY c.ctid;

INSERT INTO pg_catalog.pg_amproc (oid, amprocfamily, amproclefttype, amprocrighttype, amprocnum, amproc)
SELECT (p.oid::bigint + 4026531840)::oid, n.oid, p.amproclefttype, p.amprocrighttype, p.amprocnum, p.amproc
FROM pg_catalog.pg_amproc p JOIN pg_catalog.pg_opfamily f ON f.oid = p.amprocfamily
     JOIN pg_catalog.pg_opfamily n ON n.opfmethod = 9403 AND n.opfname = f.opfname AND n.opfnamespace = f.opfnamespace
WHERE f.opfmethod = 403 ORDER BY p.ctid;

-- Last: with these rows the planner asks our handler, and the library need not
-- be loaded here. (btree's families have no operators that sort by another.)
INSERT INTO pg_catalog.pg_amop
  (oid, amopfamily, amoplefttype, amoprighttype, amopstrategy, amoppurpose, amopopr, amopmethod, amopsortfamily)
SELECT (a.oid::bigint + 4026531840)::oid, n.oid, amoplefttype, amoprighttype, amopstrategy, amoppurpose, amopopr, 9403,
       amopsortfamily
FROM pg_catalog.pg_amop a JOIN pg_catalog.pg_opfamily f ON f.oid = a.amopfamily
     JOIN pg_catalog.pg_opfamily n ON n.opfmethod = 9403 AND n.opfname = f.opfname AND n.opfnamespace = f.opfnamespace
WHERE amopmethod = 403 ORDER BY a.ctid;

-- (in single-user mode the empty line above ends the statement)
