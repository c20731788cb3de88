/*-------------------------------------------------------------------------
 *
 * reindex.c
 *	  REINDEX TABLE, SCHEMA and DATABASE: one index after the other.
 *
 * Each index is a REINDEX INDEX of its own, in transactions of its own, so a
 * statement about many large tables is not one transaction that everybody
 * waits for and that the first conflict takes back.  Where others write the
 * tables, on this query processor or on others, that is the CONCURRENTLY form
 * (online_index.c): an index that is building is completed, others are copied.
 * Deferrable constraints' indexes cannot be copied and are built in one
 * transaction, which is refused (40001) if rows are written elsewhere
 * meanwhile.  The primary key is the table itself: nothing is to be done.
 *
 * What must hold: rights are checked as PostgreSQL does, before anything is
 * done; what was dropped meanwhile is passed over.  If one index fails, the
 * statement ends there; those before it are done.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "australis.h"
#include "ddl.h"
#include "index.h"
#include "online_index.h"

/* May its indexes be made again, one by one? */
static bool
is_candidate(Oid relid, char kind, char persistence)
{
	return (kind == RELKIND_RELATION || kind == RELKIND_MATVIEW) && relid >= FirstNormalObjectId &&
		!isTempOrTempToastNamespace(get_rel_namespace(relid)) && persistence != RELPERSISTENCE_TEMP;
}

/* The tables of a schema, or of this database (schema 0). */
static List *
tables_in(Oid schema)
{
	Relation	rel = table_open(RelationRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	HeapTuple	tuple;
	List	   *tables = NIL;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);

		if ((schema == InvalidOid || form->relnamespace == schema) &&
			is_candidate(form->oid, form->relkind, form->relpersistence))
			tables = lappend_oid(tables, form->oid);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return tables;
}

/*
 * The tables that the statement is about.  False: it is PostgreSQL's, which
 * also says what is wrong with it.
 */
static bool
find_tables(ReindexStmt *stmt, List **tables)
{
	Oid			schema = InvalidOid;

	*tables = NIL;
	if (stmt->kind == REINDEX_OBJECT_TABLE && stmt->relation != NULL)
	{
		Oid			relid = RangeVarGetRelidExtended(stmt->relation, AccessShareLock, RVR_MISSING_OK,
													 RangeVarCallbackMaintainsTable, NULL);
		char		kind;

		if (!OidIsValid(relid))
			return false;
		kind = get_rel_relkind(relid);
		if (is_candidate(relid, kind, get_rel_persistence(relid)))
			*tables = list_make1_oid(relid);
		else if (kind == RELKIND_PARTITIONED_TABLE && get_rel_persistence(relid) != RELPERSISTENCE_TEMP)
		{
			foreach_oid(part, find_all_inheritors(relid, AccessShareLock, NULL))
				if (is_candidate(part, get_rel_relkind(part), get_rel_persistence(part)))
					*tables = lappend_oid(*tables, part);
		}
		else
			return false;
		return true;
	}
	if (stmt->kind == REINDEX_OBJECT_SCHEMA && stmt->name != NULL)
	{
		schema = get_namespace_oid(stmt->name, true);
		if (!OidIsValid(schema) || isTempNamespace(schema) || IsCatalogNamespace(schema) ||
			(!object_ownercheck(NamespaceRelationId, schema, GetUserId()) &&
			 !has_privs_of_role(GetUserId(), ROLE_PG_MAINTAIN)))
			return false;
	}
	else if (stmt->kind == REINDEX_OBJECT_DATABASE)
	{
		if ((stmt->name != NULL && get_database_oid(stmt->name, true) != MyDatabaseId) ||
			(!object_ownercheck(DatabaseRelationId, MyDatabaseId, GetUserId()) &&
			 !has_privs_of_role(GetUserId(), ROLE_PG_MAINTAIN)))
			return false;
	}
	else
		return false;
	*tables = tables_in(schema);
	return true;
}

/* The next index's statement, or NULL: it is gone, or there is nothing to do. */
static ReindexStmt *
statement_of(Oid index, List *params, bool concurrent)
{
	ReindexStmt *stmt;
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool		primary;
	char	   *name = get_rel_name(index);

	if (!HeapTupleIsValid(tuple))
		return NULL;
	primary = ((Form_pg_index) GETSTRUCT(tuple))->indisprimary;
	ReleaseSysCache(tuple);
	if (name == NULL || (primary && get_rel_relam(index) == AU_INDEX_AM_OID))
		return NULL;

	stmt = makeNode(ReindexStmt);
	stmt->kind = REINDEX_OBJECT_INDEX;
	stmt->relation = makeRangeVar(get_namespace_name(get_rel_namespace(index)), name, -1);
	foreach_node(DefElem, option, params)
	{
		if (strcmp(option->defname, "concurrently") != 0)
			stmt->params = lappend(stmt->params, copyObject(option));
	}
	if (concurrent)
		stmt->params = lappend(stmt->params, makeDefElem("concurrently", (Node *) makeBoolean(true), -1));
	return stmt;
}

bool
au_reindex_each(ReindexStmt *stmt, bool top_level, void (*run) (Node *, void *), void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	MemoryContext old;
	List	   *tables;
	List	   *indexes = NIL;
	List	   *params;
	bool		concurrent = false;

	if (PortalContext == NULL || IsInTransactionBlock(top_level))
		return false;
	foreach_node(DefElem, option, stmt->params)
	{
		if (strcmp(option->defname, "concurrently") == 0)
			concurrent = defGetBoolean(option);
		else if (strcmp(option->defname, "verbose") != 0)
			return false;
	}
	concurrent = concurrent || au_peers_exist();
	if (!find_tables(stmt, &tables))
		return false;

	context = AllocSetContextCreate(PortalContext, "reindex", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	foreach_oid(table, tables)
	{
		Relation	rel = try_table_open(table, AccessShareLock);

		if (rel == NULL)
			continue;
		indexes = list_concat(indexes, RelationGetIndexList(rel));
		table_close(rel, AccessShareLock);
	}
	params = copyObject(stmt->params);
	MemoryContextSwitchTo(old);

	foreach_oid(index, indexes)
	{
		ReindexStmt *one;

		if (ActiveSnapshotSet())
			PopActiveSnapshot();
		CommitTransactionCommand();
		StartTransactionCommand();
		/* whoever runs it comes back to where it began, after transactions of its own */
		MemoryContextSwitchTo(context);
		CHECK_FOR_INTERRUPTS();
		PushActiveSnapshot(GetTransactionSnapshot());
		one = statement_of(index, params, concurrent);
		if (one != NULL)
			run((Node *) one, arg);
		/* the portal has forgotten its snapshot with its first transaction, and pops none */
		if (ActiveSnapshotSet())
			PopActiveSnapshot();
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	return true;
}
