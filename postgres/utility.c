/*-------------------------------------------------------------------------
 *
 * utility.c
 *	  Utility statements: what is done differently, and what is refused.
 *
 * Most statements run as PostgreSQL wrote them; their effects are captured at
 * commit (ddl_capture.c).  Here
 *	  - temporary tables and their indexes get PostgreSQL's own access methods,
 *	  - indexes are built while rows are written (online_index.c); other
 *		CONCURRENTLY forms run as their plain forms,
 *	  - operator classes for btree are made for both btrees,
 *	  - databases are cloned and dropped together with their rows in storage,
 *	  - statements whose effect could not be the same on every query processor
 *		are refused with 0A000.
 * docs/sql.md lists the differences with their reasons.
 *
 * What must hold: no permanent relation uses another access method than ours,
 * no temporary one uses ours.  ddl_capture.c checks the first again for
 * whatever reaches the catalogs on other ways.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"
#include "online_index.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/partition.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_index.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_opfamily.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/cmdtag.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define LOCAL_TABLE_AM "heap_local"
#define LOCAL_INDEX_AM "btree_local"
#define TABLE_AM "heap"
#define INDEX_AM "btree"

/* postgres/opclasses.sql: oids of the copies of btree's families and classes */
#define COPIED_OPCLASS_FIRST ((Oid) 9100)
#define COPIED_OPCLASS_END ((Oid) 9400)

#define COPY_BATCH_BYTES (4 * 1024 * 1024)
#define COPY_BATCH_ROWS 20000

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type prev_object_access = NULL;

/* ------------------------------------------------------------------ refusals */

static void
refuse(const char *what, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s not supported", what),
			 errdetail_internal("%s", why)));
}

/* -------------------------------------------------------- temporary relations */

/* Will a relation created under this name be temporary? */
static bool
creates_temp(RangeVar *name)
{
	List	   *path;

	if (name->relpersistence == RELPERSISTENCE_TEMP)
		return true;
	if (name->schemaname)
	{
		Oid			nsp;

		if (strcmp(name->schemaname, "pg_temp") == 0)
			return true;
		nsp = get_namespace_oid(name->schemaname, true);
		return OidIsValid(nsp) && isTempNamespace(nsp);
	}
	/* SET search_path = pg_temp makes CREATE TABLE temporary */
	if (strstr(namespace_search_path, "pg_temp") == NULL)
		return false;
	path = fetch_search_path(false);
	return path != NIL && isTempNamespace(linitial_oid(path));
}

static bool
is_temp(RangeVar *name)
{
	Oid			relid = name ? RangeVarGetRelid(name, NoLock, true) : InvalidOid;

	return OidIsValid(relid) && get_rel_persistence(relid) == RELPERSISTENCE_TEMP;
}

static void
refuse_table_am(const char *name)
{
	Oid			am = name ? get_table_am_oid(name, true) : InvalidOid;

	if (OidIsValid(am) && am != AU_TABLE_AM_OID)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("access method \"%s\" is not supported for tables", name),
				 errdetail("Its rows would live in this query processor only."),
				 errhint("Use the access method \"%s\".", TABLE_AM)));
}

static void
refuse_index_am(const char *name)
{
	Oid			am = name ? get_index_am_oid(name, true) : InvalidOid;

	if (OidIsValid(am) && am != AU_INDEX_AM_OID)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("access method \"%s\" is not supported for indexes", name),
				 errhint("Use the access method \"%s\".", INDEX_AM)));
}

static char *
temp_table_am(char *name)
{
	if (name == NULL)
		return strcmp(default_table_access_method, TABLE_AM) == 0 ? LOCAL_TABLE_AM : NULL;
	return strcmp(name, TABLE_AM) == 0 ? LOCAL_TABLE_AM : name;
}

static char *
temp_index_am(char *name)
{
	return name == NULL || strcmp(name, INDEX_AM) == 0 ? LOCAL_INDEX_AM : name;
}

static void
check_constraint(Constraint *constraint, bool temp)
{
	if (temp)
	{
		if (constraint->contype == CONSTR_PRIMARY || constraint->contype == CONSTR_UNIQUE)
		{
			if (!constraint->without_overlaps)
				constraint->access_method = temp_index_am(constraint->access_method);
		}
		else if (constraint->contype == CONSTR_EXCLUSION)
			constraint->access_method = temp_index_am(constraint->access_method);
		return;
	}
	if (constraint->contype == CONSTR_EXCLUSION)
		refuse("exclusion constraints are", "A conflict between two transactions could not be recognized at COMMIT.");
	if (constraint->without_overlaps)
		refuse("WITHOUT OVERLAPS is", "A conflict between two transactions could not be recognized at COMMIT.");
}

static void
check_elements(List *elements, bool temp)
{
	ListCell   *lc;
	ListCell   *lk;

	foreach(lc, elements)
	{
		if (IsA(lfirst(lc), Constraint))
			check_constraint(lfirst(lc), temp);
		else if (IsA(lfirst(lc), ColumnDef))
			foreach(lk, ((ColumnDef *) lfirst(lc))->constraints)
				check_constraint(lfirst(lk), temp);
	}
}

static void
create_table(CreateStmt *stmt)
{
	bool		temp = creates_temp(stmt->relation);

	if (temp)
	{
		/* a partition takes the method of its parent */
		if (stmt->partbound == NULL || stmt->accessMethod)
			stmt->accessMethod = temp_table_am(stmt->accessMethod);
	}
	else
		refuse_table_am(stmt->accessMethod);
	check_elements(stmt->tableElts, temp);
	check_elements(stmt->constraints, temp);
}

static void
create_table_as(CreateTableAsStmt *stmt)
{
	IntoClause *into = stmt->into;

	if (creates_temp(into->rel))
		into->accessMethod = temp_table_am(into->accessMethod);
	else
		refuse_table_am(into->accessMethod);
}

static void
alter_table(AlterTableStmt *stmt, bool top_level)
{
	bool		temp = is_temp(stmt->relation);
	ListCell   *lc;
	ListCell   *lk;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst(lc);

		switch (cmd->subtype)
		{
			case AT_AddConstraint:
				check_constraint((Constraint *) cmd->def, temp);
				break;
			case AT_AddColumn:
				foreach(lk, ((ColumnDef *) cmd->def)->constraints)
					check_constraint(lfirst(lk), temp);
				break;
			case AT_SetAccessMethod:
				if (temp)
					cmd->name = temp_table_am(cmd->name);
				else
					refuse_table_am(cmd->name);
				break;
			case AT_DetachPartition:
				{
					PartitionCmd *partition = (PartitionCmd *) cmd->def;

					if (partition->concurrent)
					{
						Oid			parent = RangeVarGetRelid(stmt->relation, NoLock, true);

						/* with a default partition PostgreSQL refuses it */
						PreventInTransactionBlock(top_level, "ALTER TABLE ... DETACH CONCURRENTLY");
						if (!OidIsValid(parent) || !OidIsValid(get_default_partition_oid(parent)))
							partition->concurrent = false;
					}
					break;
				}
			default:
				break;
		}
	}
}

static void
create_index(IndexStmt *stmt, bool top_level)
{
	Oid			relid = RangeVarGetRelid(stmt->relation, NoLock, true);

	if (OidIsValid(relid) && get_rel_persistence(relid) == RELPERSISTENCE_TEMP)
	{
		stmt->accessMethod = temp_index_am(stmt->accessMethod);
		return;
	}

	/* the method of an index of a temporary table, through LIKE */
	if (stmt->accessMethod && strcmp(stmt->accessMethod, LOCAL_INDEX_AM) == 0 && !top_level)
		stmt->accessMethod = INDEX_AM;
	if (stmt->excludeOpNames != NIL)
		refuse("exclusion constraints are", "A conflict between two transactions could not be recognized at COMMIT.");
	refuse_index_am(stmt->accessMethod);

	/* PostgreSQL's own refusal for partitioned tables is kept */
	if (stmt->concurrent)
		PreventInTransactionBlock(top_level, "CREATE INDEX CONCURRENTLY");
}

static void
reindex(ReindexStmt *stmt, bool top_level)
{
	ListCell   *lc;

	foreach(lc, stmt->params)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, "concurrently") != 0)
			continue;
		if (defGetBoolean(option))
		{
			PreventInTransactionBlock(top_level, "REINDEX CONCURRENTLY");
			/* PostgreSQL refuses it for catalogs */
			if (stmt->kind == REINDEX_OBJECT_SYSTEM ||
				(stmt->relation && IsCatalogRelationOid(RangeVarGetRelid(stmt->relation, NoLock, true))))
				continue;
			if (au_online_index_can_copy(stmt) || OidIsValid(au_online_index_to_complete(stmt, top_level)))
				continue;
		}
		stmt->params = foreach_delete_current(stmt->params, lc);
	}
}

static void
drop_concurrently(DropStmt *stmt, bool top_level)
{
	Oid			relid;

	PreventInTransactionBlock(top_level, "DROP INDEX CONCURRENTLY");

	/* PostgreSQL says what is wrong with these */
	if (list_length(stmt->objects) != 1 || stmt->behavior == DROP_CASCADE)
		return;
	relid = RangeVarGetRelid(makeRangeVarFromNameList(linitial(stmt->objects)), NoLock, true);
	if (OidIsValid(relid) && get_rel_relkind(relid) != RELKIND_PARTITIONED_INDEX)
		stmt->concurrent = false;
}

/*
 * REFRESH ... CONCURRENTLY finds what changed by joining row identifiers
 * across statements, which name nothing here: it runs as the plain form, and
 * readers wait for it.  The conditions that PostgreSQL sets stay.
 */
static void
refresh_concurrently(RefreshMatViewStmt *stmt)
{
	Oid			relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	Relation	rel;
	ListCell   *lc;
	bool		usable = false;
	bool		populated;

	if (!OidIsValid(relid) || stmt->skipData || get_rel_relkind(relid) != RELKIND_MATVIEW)
		return;
	rel = relation_open(relid, AccessShareLock);
	populated = RelationIsPopulated(rel);
	if (populated)
	{
		foreach(lc, RelationGetIndexList(rel))
		{
			Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
			Form_pg_index form = index->rd_index;
			bool		plain = heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL);

			/*
			 * As is_usable_unique_index() in matview.c.  Not by looking at
			 * predicates and expressions themselves: that would run functions
			 * of the view's owner as the current user.
			 */
			for (int i = 0; i < form->indnatts; i++)
				plain &= form->indkey.values[i] > 0;
			if (form->indisunique && form->indimmediate && form->indisvalid && plain)
				usable = true;
			index_close(index, AccessShareLock);
		}
	}
	else
		usable = true;			/* PostgreSQL refuses it */
	relation_close(rel, AccessShareLock);

	/* PostgreSQL says it when somebody else owns the view */
	if (pg_class_aclcheck(relid, GetUserId(), ACL_MAINTAIN) != ACLCHECK_OK)
		return;
	if (!usable)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot refresh materialized view \"%s\" concurrently",
						quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid))),
				 errhint("Create a unique index with no WHERE clause on one or more columns of the materialized view.")));
	if (populated)
		stmt->concurrent = false;
}

/* ---------------------------------------------- operator classes for both btrees */

static bool
is_btree(const char *amname)
{
	return strcmp(amname, INDEX_AM) == 0;
}

/* btree's operator class or family of which ours is a copy */
static Oid
built_in_twin(Oid classid, Oid oid)
{
	bool		family = classid == OperatorFamilyRelationId;
	HeapTuple	tuple = SearchSysCache1(family ? OPFAMILYOID : CLAOID, ObjectIdGetDatum(oid));
	NameData	name;
	Oid			nsp;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for %s %u", family ? "opfamily" : "opclass", oid);
	if (family)
	{
		name = ((Form_pg_opfamily) GETSTRUCT(tuple))->opfname;
		nsp = ((Form_pg_opfamily) GETSTRUCT(tuple))->opfnamespace;
	}
	else
	{
		name = ((Form_pg_opclass) GETSTRUCT(tuple))->opcname;
		nsp = ((Form_pg_opclass) GETSTRUCT(tuple))->opcnamespace;
	}
	ReleaseSysCache(tuple);
	if (family)
		return GetSysCacheOid3(OPFAMILYAMNAMENSP, Anum_pg_opfamily_oid, ObjectIdGetDatum(BTREE_AM_OID),
							   NameGetDatum(&name), ObjectIdGetDatum(nsp));
	return GetSysCacheOid3(CLAAMNAMENSP, Anum_pg_opclass_oid, ObjectIdGetDatum(BTREE_AM_OID),
						   NameGetDatum(&name), ObjectIdGetDatum(nsp));
}

/*
 * The local btree's copy of one of our operator classes or families: of built-in
 * ones by name, of others by an internal dependency.
 */
static Oid
twin_of(Oid classid, Oid oid)
{
	Relation	rel;
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			twin = InvalidOid;

	if (oid >= COPIED_OPCLASS_FIRST && oid < COPIED_OPCLASS_END)
		return built_in_twin(classid, oid);
	rel = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(classid));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(oid));
	scan = systable_beginscan(rel, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend dep = (Form_pg_depend) GETSTRUCT(tuple);

		if (dep->classid == classid && dep->deptype == DEPENDENCY_INTERNAL)
			twin = dep->objid;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return twin;
}

static void
bind_twin(Oid classid, Oid twin, Oid original)
{
	ObjectAddress depender;
	ObjectAddress referenced;

	ObjectAddressSet(depender, classid, twin);
	ObjectAddressSet(referenced, classid, original);
	recordDependencyOn(&depender, &referenced, DEPENDENCY_INTERNAL);
	CommandCounterIncrement();
}

/*
 * Copies live in pg_catalog, where pg_dump leaves them alone, under the same
 * name if that is free.  They are no members of an extension: it could not move
 * to another schema with them, and drops them with its own.
 */
static List *
twin_name(int cache, const char *name, Oid original)
{
	char	   *free_name = pstrdup(name);

	if (SearchSysCacheExists3(cache, ObjectIdGetDatum(BTREE_AM_OID), CStringGetDatum(free_name),
							  ObjectIdGetDatum(PG_CATALOG_NAMESPACE)))
		free_name = psprintf("%.*s_%u", NAMEDATALEN - 12, name, original);
	return list_make2(makeString("pg_catalog"), makeString(free_name));
}

static List *
family_name(Oid family)
{
	HeapTuple	tuple = SearchSysCache1(OPFAMILYOID, ObjectIdGetDatum(family));
	Form_pg_opfamily form;
	List	   *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator family %u", family);
	form = (Form_pg_opfamily) GETSTRUCT(tuple);
	name = list_make2(makeString(get_namespace_name(form->opfnamespace)),
					  makeString(pstrdup(NameStr(form->opfname))));
	ReleaseSysCache(tuple);
	return name;
}

static Oid
twin_family(Oid family)
{
	Oid			twin = twin_of(OperatorFamilyRelationId, family);
	CreateOpFamilyStmt *stmt;
	bool		in_extension = creating_extension;

	if (OidIsValid(twin))
		return twin;
	stmt = makeNode(CreateOpFamilyStmt);
	stmt->opfamilyname = twin_name(OPFAMILYAMNAMENSP, strVal(lsecond(family_name(family))), family);
	stmt->amname = LOCAL_INDEX_AM;
	creating_extension = false;
	twin = DefineOpFamily(stmt).objectId;
	creating_extension = in_extension;
	bind_twin(OperatorFamilyRelationId, twin, family);
	return twin;
}

/* After the statement was executed for our btree: the same for the local one. */
static void
copy_to_local_btree(Node *parsetree)
{
	CommandCounterIncrement();
	switch (nodeTag(parsetree))
	{
		case T_CreateOpFamilyStmt:
			{
				CreateOpFamilyStmt *stmt = (CreateOpFamilyStmt *) parsetree;

				if (is_btree(stmt->amname))
					(void) twin_family(get_opfamily_oid(AU_INDEX_AM_OID, stmt->opfamilyname, false));
				break;
			}
		case T_CreateOpClassStmt:
			{
				CreateOpClassStmt *stmt = (CreateOpClassStmt *) parsetree;
				CreateOpClassStmt *copy;
				Oid			original;
				Oid			twin;
				bool		in_extension = creating_extension;

				if (!is_btree(stmt->amname))
					break;
				original = get_opclass_oid(AU_INDEX_AM_OID, stmt->opclassname, false);
				copy = copyObject(stmt);
				copy->amname = LOCAL_INDEX_AM;
				copy->opfamilyname = family_name(twin_family(get_opclass_family(original)));
				copy->opclassname = twin_name(CLAAMNAMENSP, strVal(llast(stmt->opclassname)), original);
				creating_extension = false;
				twin = DefineOpClass(copy).objectId;
				creating_extension = in_extension;
				bind_twin(OperatorClassRelationId, twin, original);
				break;
			}
		case T_AlterOpFamilyStmt:
			{
				AlterOpFamilyStmt *stmt = (AlterOpFamilyStmt *) parsetree;
				AlterOpFamilyStmt *copy;

				if (!is_btree(stmt->amname))
					break;
				copy = copyObject(stmt);
				copy->amname = LOCAL_INDEX_AM;
				copy->opfamilyname = family_name(twin_family(get_opfamily_oid(AU_INDEX_AM_OID,
																			  stmt->opfamilyname, false)));
				(void) AlterOpFamily(copy);
				break;
			}
		default:
			break;
	}
}

/* ------------------------------------------------------------------ databases */

static const char *
template_of(CreatedbStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, "template") == 0 && option->arg)
			return defGetString(option);
	}
	return "template1";
}

static void
database_range(StringInfo lo, StringInfo hi, Oid database)
{
	resetStringInfo(lo);
	resetStringInfo(hi);
	au_key_append_relid(lo, (RelId) database << 32);
	au_key_append_relid(hi, ((RelId) database + 1) << 32);
}

static inline Bytes
bytes_of(StringInfo s)
{
	return (Bytes) {(const uint8 *) s->data, (uint32) s->len};
}

/*
 * The template's catalogs were copied with their relfilenumbers; give each of
 * them its rows, under the new database's ids.  Nobody can read those before
 * the catalog row of the database is committed, so they are ingested (rule Q8)
 * chunk by chunk.
 */
static void
copy_database_rows(Oid from, Oid to)
{
	StringInfoData lo,
				hi,
				batch;
	Tau			tau = au_tau_start();
	bool		more = true;
	uint32		prefix = pg_hton32(to);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "database copy", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	RelId		last = 0;

	initStringInfo(&lo);
	initStringInfo(&hi);
	database_range(&lo, &hi, from);
	MemoryContextSwitchTo(old);
	while (more)
	{
		MemoryContext chunk = AllocSetContextCreate(context, "database copy chunk", ALLOCSET_DEFAULT_SIZES);
		IngestEntry *entries;
		int			n = 0;
		uint8	   *p,
				   *end;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(chunk);
		initStringInfo(&batch);
		au_read_range(bytes_of(&lo), bytes_of(&hi), false, tau, COPY_BATCH_ROWS, COPY_BATCH_BYTES, &batch, &more);
		if (batch.len == 0)
		{
			MemoryContextSwitchTo(old);
			break;
		}
		entries = palloc_array(IngestEntry, COPY_BATCH_ROWS);
		p = (uint8 *) batch.data;
		end = p + batch.len;
		while (p < end && n < COPY_BATCH_ROWS)
		{
			KeyEntry	entry;
			uint8	   *key;
			RelId		relid;

			p = (uint8 *) au_batch_entry((char *) p, &entry);
			key = (uint8 *) entry.key.data;
			entries[n].value = entry.value;
			entries[n].key = entry.key;

			/* where to go on: just behind the last key read */
			resetStringInfo(&lo);
			appendBinaryStringInfo(&lo, key, entry.key.len);
			appendStringInfoCharMacro(&lo, '\0');

			memcpy(&relid, key, 8);
			memcpy(key, &prefix, 4);
			relid = pg_ntoh64(relid);
			if (relid != last)
			{
				/* how the rows are keyed, docs/formats.md section 3 */
				StringInfoData layout,
							found;
				RelId		be = pg_hton64(relid);

				initStringInfo(&layout);
				initStringInfo(&found);
				au_key_append_relid(&layout, AU_SYS_LAYOUT);
				appendBinaryStringInfo(&layout, &be, 8);
				if (au_read_key(bytes_of(&layout), tau, &found))
				{
					(void) au_batch_entry(found.data, &entry);
					memcpy(layout.data + 8, &prefix, 4);
					au_wb_put(bytes_of(&layout), entry.value, GetCurrentCommandId(true), LockTupleExclusive, true);
				}
				last = relid;
			}
			n++;
		}
		(void) au_ingest(entries, n);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(chunk);
	}
	MemoryContextDelete(context);
}

/* What a dropped database had in storage is garbage at commit. */
static void
drop_database_rows(Oid database)
{
	StringInfoData lo,
				hi,
				batch;
	Tau			tau = au_tau_start();
	bool		more;

	initStringInfo(&lo);
	initStringInfo(&hi);
	initStringInfo(&batch);
	au_statistics_forget_database(database);
	database_range(&lo, &hi, database);
	for (;;)
	{
		RelId		relid;
		KeyEntry	entry;

		CHECK_FOR_INTERRUPTS();
		resetStringInfo(&batch);
		au_read_range(bytes_of(&lo), bytes_of(&hi), false, tau, 1, COPY_BATCH_BYTES, &batch, &more);
		if (batch.len == 0)
			break;
		(void) au_batch_entry(batch.data, &entry);
		memcpy(&relid, entry.key.data, 8);
		relid = pg_ntoh64(relid);
		au_note_storage_dropped(relid);
		resetStringInfo(&lo);
		au_key_append_relid(&lo, relid + 1);
	}
}

/* --------------------------------------------------------------------- hooks */

/* Rewrite what runs in another form, refuse what cannot be done. */
/* True: au_sequences_copy_ended is to be called when it has ended. */
static bool
prepare_statement(Node *stmt, bool top_level)
{
	bool		counted = false;

	switch (nodeTag(stmt))
	{
		case T_CreateStmt:
			create_table((CreateStmt *) stmt);
			break;
		case T_CreateTableAsStmt:
			create_table_as((CreateTableAsStmt *) stmt);
			break;
		case T_ExplainStmt:
			{
				Query	   *query = castNode(Query, ((ExplainStmt *) stmt)->query);

				if (query->commandType == CMD_UTILITY && IsA(query->utilityStmt, CreateTableAsStmt))
					create_table_as((CreateTableAsStmt *) query->utilityStmt);
				break;
			}
		case T_AlterTableStmt:
			alter_table((AlterTableStmt *) stmt, top_level);
			break;
		case T_IndexStmt:
			create_index((IndexStmt *) stmt, top_level);
			break;
		case T_ReindexStmt:
			reindex((ReindexStmt *) stmt, top_level);
			break;
		case T_DropStmt:
			if (((DropStmt *) stmt)->concurrent)
				drop_concurrently((DropStmt *) stmt, top_level);
			break;
		case T_RefreshMatViewStmt:
			if (((RefreshMatViewStmt *) stmt)->concurrent)
				refresh_concurrently((RefreshMatViewStmt *) stmt);
			break;
		case T_CopyStmt:
			if (((CopyStmt *) stmt)->is_from && ((CopyStmt *) stmt)->relation != NULL)
			{
				Relation	rel = table_openrv_extended(((CopyStmt *) stmt)->relation, RowExclusiveLock, true);

				if (rel != NULL)
				{
					counted = au_sequences_copy_begins(rel);
					table_close(rel, NoLock);
				}
			}
			break;
		case T_TransactionStmt:
			if (((TransactionStmt *) stmt)->kind == TRANS_STMT_PREPARE && max_prepared_xacts > 0 &&
				IsTransactionBlock() && TransactionIdIsValid(GetTopTransactionIdIfAny()))
				refuse("PREPARE TRANSACTION of a transaction that changed something is",
					   "A commit is decided once, at COMMIT.");
			break;
		case T_CreateTableSpaceStmt:
			refuse("CREATE TABLESPACE is", "Rows live in the cluster's storage, not in files of this server.");
			break;
		case T_AlterSystemStmt:
			refuse("ALTER SYSTEM is", "Query processors keep no settings of their own; use the cluster's configuration, ALTER DATABASE or ALTER ROLE.");
			break;
		case T_CreatePublicationStmt:
		case T_AlterPublicationStmt:
			refuse("logical replication is", "Changes of tables are in the cluster's journal, not in this server's WAL.");
			break;
		case T_CreateSubscriptionStmt:
		case T_AlterSubscriptionStmt:
			refuse("logical replication is", "Every query processor would apply the subscription.");
			break;
		default:
			break;
	}
	return counted;
}

/*
 * After SET TRANSACTION SNAPSHOT: PostgreSQL's snapshot is for catalogs; rows
 * are read as of tau_start, which the exporting backend keeps in its slot of
 * the shared page.  Its number is the first part of the snapshot's name.
 */
static void
import_snapshot(VariableSetStmt *set)
{
	const char *name = strVal(&linitial_node(A_Const, set->args)->val);
	unsigned int procno;
	unsigned int lxid;
	unsigned int number;
	Tau			tau;

	if (sscanf(name, "%08X-%08X-%u", &procno, &lxid, &number) != 3)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid snapshot identifier: \"%s\"", name)));
	tau = procno < ProcGlobal->allProcCount ? au_page_slot_of(procno) : 0;
	if (tau != 0)
	{
		au_adopt_tau_start(tau);

		/* still that very transaction, hence its time and not a later one's */
		if (GetPGProcByNumber(procno)->vxid.lxid == lxid &&
			au_page_slot_of(procno) == tau)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("could not import the requested snapshot"),
			 errdetail("The transaction that exported it is not running anymore, or had not read anything.")));
}

/* Can this statement change catalogs? */
static bool
changes_catalogs(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_TruncateStmt:
		case T_ReindexStmt:
			return true;
		default:
			return GetCommandLogLevel(stmt) == LOGSTMT_DDL;
	}
}

static void
go_on(PlannedStmt *pstmt, const char *query, bool read_only, ProcessUtilityContext context,
	  ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *completion)
{
	if (prev_process_utility)
		prev_process_utility(pstmt, query, read_only, context, params, env, dest, completion);
	else
		standard_ProcessUtility(pstmt, query, read_only, context, params, env, dest, completion);
}

/* (not inline: the compiler would fear for the caller's variables) */
static pg_noinline void
run_copy(PlannedStmt *pstmt, const char *query, bool read_only, ProcessUtilityContext context,
		 ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *completion)
{
	PG_TRY();
	{
		go_on(pstmt, query, read_only, context, params, env, dest, completion);
	}
	PG_CATCH();
	{
		au_sequences_copy_ended();
		PG_RE_THROW();
	}
	PG_END_TRY();
	au_sequences_copy_ended();
}

typedef struct Statement
{
	PlannedStmt *pstmt;
	const char *query;
	bool		read_only;
	ProcessUtilityContext context;
	ParamListInfo params;
	QueryEnvironment *env;
	DestReceiver *dest;
	QueryCompletion *completion;
} Statement;

static void
run_statement(void *arg)
{
	Statement  *s = arg;

	go_on(s->pstmt, s->query, s->read_only, s->context, s->params, s->env, s->dest, s->completion);
}

static bool
is_concurrent(ReindexStmt *stmt)
{
	foreach_node(DefElem, option, stmt->params)
	{
		if (strcmp(option->defname, "concurrently") == 0)
			return defGetBoolean(option);
	}
	return false;
}

static void run_utility(PlannedStmt *pstmt, const char *query, bool read_only, ProcessUtilityContext context,
						ParamListInfo params, QueryEnvironment *env, DestReceiver *dest,
						QueryCompletion *completion);

/* One of the statements that a statement is made of. */
static void
run_one(Node *stmt, void *arg)
{
	Statement  *s = arg;
	PlannedStmt *pstmt = makeNode(PlannedStmt);

	pstmt->commandType = CMD_UTILITY;
	pstmt->utilityStmt = stmt;
	pstmt->stmt_location = s->pstmt->stmt_location;
	pstmt->stmt_len = s->pstmt->stmt_len;
	run_utility(pstmt, s->query, false, PROCESS_UTILITY_TOPLEVEL, s->params, s->env, None_Receiver, NULL);
}

/* Statements that become several transactions; false: this is none. */
static bool
run_online(Statement *s, bool top_level)
{
	Node	   *stmt = s->pstmt->utilityStmt;
	Oid			index;

	if (IsA(stmt, IndexStmt) && au_online_index_wanted((IndexStmt *) stmt, top_level))
	{
		au_online_index_create((IndexStmt *) stmt, run_statement, s);
		return true;
	}
	if (IsA(stmt, ReindexStmt))
	{
		index = au_online_index_to_complete((ReindexStmt *) stmt, top_level);
		if (OidIsValid(index))
		{
			au_online_index_complete(index, is_concurrent((ReindexStmt *) stmt));
			return true;
		}
	}
	return false;
}

static void
run_utility(PlannedStmt *pstmt, const char *query, bool read_only, ProcessUtilityContext context,
			ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *completion)
{
	Node	   *stmt = pstmt->utilityStmt;
	bool		top_level = context == PROCESS_UTILITY_TOPLEVEL;
	Oid			dropped_database = InvalidOid;
	bool		counted_copy = false;

	/* of the executor that calls us from a function: it says nothing of our scans */
	au_tid_unnamed = false;

	if (!au_enabled)
	{
		go_on(pstmt, query, read_only, context, params, env, dest, completion);
		return;
	}

	if (!IsAbortedTransactionBlockState() &&
		(changes_catalogs(stmt) || IsA(stmt, ExplainStmt) || IsA(stmt, VacuumStmt)))
		au_oids_ensure();
	if (!IsAbortedTransactionBlockState() && IsA(stmt, ReindexStmt))
	{
		Statement	s = {pstmt, query, read_only, context, params, env, dest, completion};

		if (au_reindex_each((ReindexStmt *) stmt, top_level, run_one, &s))
			return;
	}
	if (changes_catalogs(stmt) || IsA(stmt, ExplainStmt))
	{
		/* plans and functions keep their trees */
		if (read_only)
		{
			pstmt = copyObject(pstmt);
			stmt = pstmt->utilityStmt;
			read_only = false;
		}
		if (!IsA(stmt, ExplainStmt) && !IsAbortedTransactionBlockState())
		{
			if (context != PROCESS_UTILITY_SUBCOMMAND)
				au_schema_lock(stmt);
			/* what it is checked against at COMMIT */
			(void) au_tau_start();
			au_ddl_note_statement(GetCommandTagName(CreateCommandTag(stmt)));
			au_rekey_announce(stmt);
		}
	}
	if (!IsAbortedTransactionBlockState())
	{
		counted_copy = prepare_statement(stmt, top_level);
		if (IsA(stmt, DropdbStmt) || IsA(stmt, CreatedbStmt))
		{
			/*
			 * Their files change before COMMIT.  Being the only one with DDL,
			 * and having seen the commit service, the COMMIT will not be
			 * refused; if that service dies right now, DROP DATABASE can be
			 * repeated, as after a crash of PostgreSQL.
			 */
			if (au_page_read(PAGE_COMMIT_PID) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_CANNOT_CONNECT_NOW),
						 errmsg("the commit service is not available")));
			au_ddl_lock();
		}
		if (IsA(stmt, DropdbStmt))
			dropped_database = get_database_oid(((DropdbStmt *) stmt)->dbname, true);
	}

	if (!IsAbortedTransactionBlockState() && (IsA(stmt, IndexStmt) || IsA(stmt, ReindexStmt)))
	{
		Statement	s = {pstmt, query, read_only, context, params, env, dest, completion};

		if (run_online(&s, top_level))
			return;
	}

	if (counted_copy)
		run_copy(pstmt, query, read_only, context, params, env, dest, completion);
	else
		go_on(pstmt, query, read_only, context, params, env, dest, completion);

	switch (nodeTag(stmt))
	{
		case T_CreateOpFamilyStmt:
		case T_CreateOpClassStmt:
		case T_AlterOpFamilyStmt:
			copy_to_local_btree(stmt);
			break;
		case T_AlterTableStmt:
			if (((AlterTableStmt *) stmt)->objtype == OBJECT_TABLE)
			{
				Oid			relid = RangeVarGetRelid(((AlterTableStmt *) stmt)->relation, NoLock, true);

				if (OidIsValid(relid))
					au_rekey_if_needed(relid);
			}
			break;
		case T_CreatedbStmt:
			{
				Oid			from = get_database_oid(template_of((CreatedbStmt *) stmt), false);
				Oid			to;

				CommandCounterIncrement();
				to = get_database_oid(((CreatedbStmt *) stmt)->dbname, false);
				au_ddl_note_template(to, from);
				copy_database_rows(from, to);
				break;
			}
		case T_VariableSetStmt:
			if (((VariableSetStmt *) stmt)->kind == VAR_SET_MULTI &&
				strcmp(((VariableSetStmt *) stmt)->name, "TRANSACTION SNAPSHOT") == 0)
				import_snapshot((VariableSetStmt *) stmt);
			break;
		case T_DropdbStmt:
			if (OidIsValid(dropped_database))
				drop_database_rows(dropped_database);
			break;
		default:
			break;
	}
	if (changes_catalogs(stmt))
		au_rekey_after_statement(stmt);
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *completion)
{
	RekeyNotes	outer = au_rekey_begin_statement();

	PG_TRY();
	{
		run_utility(pstmt, query, read_only, context, params, env, dest, completion);
	}
	PG_FINALLY();
	{
		au_rekey_end_statement(outer);
	}
	PG_END_TRY();
}

/* The last line: whatever statement made it, look at the relation itself. */
static void
check_new_relation(Oid relid)
{
	Relation	rel = table_open(RelationRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, ClassOidIndexId, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_class cls = (Form_pg_class) GETSTRUCT(tuple);
		bool		index = cls->relkind == RELKIND_INDEX || cls->relkind == RELKIND_PARTITIONED_INDEX;

		if (cls->relpersistence == RELPERSISTENCE_TEMP && cls->relam == AU_INDEX_AM_OID)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot change the type of a column of a temporary table that is in a PRIMARY KEY or UNIQUE constraint"),
					 errhint("Drop the constraint first and add it again.")));
		if (cls->relpersistence != RELPERSISTENCE_TEMP && index && cls->relam != AU_INDEX_AM_OID &&
			cls->relnamespace != PG_TOAST_NAMESPACE)
			refuse_index_am(get_am_name(cls->relam));
		if (cls->relkind == RELKIND_INDEX && cls->relam == AU_INDEX_AM_OID)
			au_rekey_note_new_index(relid);
		if (index && cls->relam == AU_INDEX_AM_OID)
			au_online_index_created(relid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

static void
object_access(ObjectAccessType access, Oid classid, Oid objid, int subid, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classid, objid, subid, arg);
	if (access == OAT_POST_CREATE && classid == RelationRelationId && subid == 0 && au_enabled &&
		objid >= FirstNormalObjectId)
		check_new_relation(objid);
	if (access == OAT_DROP && classid == RelationRelationId && subid > 0 && au_enabled)
		au_rekey_note_dropped_column(objid);
}

void
au_utility_init(void)
{
	au_ddl_capture_init();
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
}
