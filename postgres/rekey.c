/*-------------------------------------------------------------------------
 *
 * rekey.c
 *	  Give a table the keys that its primary key asks for.
 *
 * pg_dump and pgbench add primary keys after the data.  The rows have hidden
 * keys then, and every look-up by the primary key costs two reads.  So after
 * a statement that gave a table a new primary key, its rows are copied into a
 * new storage id that is organised by it: PostgreSQL's own table rewrite, as
 * in VACUUM FULL, with our access method at both ends.  It happens in the
 * transaction of the statement and rolls back with it; the new storage id is
 * filled in chunks beside the adjudicator (rule Q8).
 *
 * The copy sorts the rows by their new key, on disk within
 * maintenance_work_mem: storage likes runs in order, and duplicates are
 * neighbours.  So a statement that does nothing but add a primary key leaves
 * the building of its index out (au_rekey_replaces_build): those entries would
 * be thrown away by the copy.  What must hold: between the index that was left
 * empty and the copy nothing reads through it, and a copy that does not happen
 * is an error.
 *
 * The same copy serves tables whose keys contain values of a composite type
 * that got or lost a column, by whatever statement: the old keys have no bytes
 * for it, or too many.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/cluster.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "tcop/cmdtag.h"
#include "tcop/utility.h"
#include "utils/evtcache.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/tuplesort.h"

#include "index.h"

#define CHUNK_BYTES		(8 * 1024 * 1024)
#define CHUNK_ENTRIES	65536
#define BYTEA_LESS_OPERATOR 1957	/* bytea < bytea, C order */

/* What the statement that runs has done so far; statements nest. */
static RekeyNotes noted;

/*
 * The sort compares by a row's first 8 bytes where it can, so what all keys
 * begin with is left out: the relation id and the first column's marker (no
 * column of a primary key is NULL).
 */
#define SKIPPED_LEN 9

/* The running statement that adds a primary key and does nothing else. */
static struct
{
	Oid			relid;
	SubTransactionId subid;
	uint64		serial;
	int			pending;		/* indexes left empty, tables to be copied */
}			adding = {0};

static bool
adding_now(void)
{
	return OidIsValid(adding.relid) && adding.subid == GetCurrentSubTransactionId() &&
		adding.serial == au_transaction_serial();
}

/* Before a statement: is it of that kind? */
void
au_rekey_announce(Node *stmt)
{
	AlterTableStmt *alter = (AlterTableStmt *) stmt;
	AlterTableCmd *cmd;
	Constraint *constraint;

	if (!IsA(stmt, AlterTableStmt) || alter->objtype != OBJECT_TABLE || list_length(alter->cmds) != 1)
		return;
	cmd = linitial_node(AlterTableCmd, alter->cmds);
	if (cmd->subtype != AT_AddConstraint || !IsA(cmd->def, Constraint))
		return;
	constraint = (Constraint *) cmd->def;
	if (constraint->contype != CONSTR_PRIMARY || constraint->indexname != NULL)
		return;

	/* their functions run before the copy and could read */
	if (EventCacheLookup(EVT_DDLCommandEnd) != NIL)
		return;
	adding.relid = RangeVarGetRelid(alter->relation, NoLock, true);
	adding.subid = GetCurrentSubTransactionId();
	adding.serial = au_transaction_serial();
	adding.pending = 0;
}

/* May the building of this index be left to the copy that follows? */
bool
au_rekey_replaces_build(Relation heap, Relation index)
{
	const TableLayout *layout;

	if (!adding_now() || !index->rd_index->indisprimary || !index->rd_index->indimmediate)
		return false;
	if (RelationGetRelid(heap) != adding.relid &&
		(!heap->rd_rel->relispartition ||
		 !list_member_oid(get_partition_ancestors(RelationGetRelid(heap)), adding.relid)))
		return false;
	layout = au_table_layout(heap);
	if (!layout->decided || layout->has_primary)
		return false;
	adding.pending++;
	return true;
}

/* What CREATE UNIQUE INDEX says. */
pg_noreturn static void
report_not_unique(Relation heap, const TableLayout *layout, Bytes row)
{
	Relation	index = index_open(layout->index_oid, NoLock);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(heap), &TTSOpsAustralis);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	char	   *key_desc;

	au_row_store(row, slot, false);
	for (int i = 0; i < layout->ncolumns; i++)
		values[i] = slot_getattr(slot, layout->attnums[i], &isnull[i]);
	key_desc = BuildIndexValueDescription(index, values, isnull);
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("could not create unique index \"%s\"", RelationGetRelationName(index)),
			 key_desc ? errdetail("Key %s is duplicated.", key_desc) : errdetail("Duplicate keys exist."),
			 errtableconstraint(heap, RelationGetRelationName(index))));
}

/* Send a chunk; the storage id is this transaction's own. */
static void
write_chunk(const IngestEntry *entries, int n, bool ingest)
{
	if (ingest && n > 0)
		au_ingest(entries, n);
	for (int i = 0; i < n && !ingest; i++)
		(void) au_wb_put(entries[i].key, entries[i].value, GetCurrentCommandId(true), LockTupleExclusive, false);
}

/*
 * Copy all rows of old into the new, empty storage of fresh, which is keyed by
 * a primary key.  Returns how many.
 */
double
au_copy_by_key(Relation old, Relation fresh)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "copy by key", ALLOCSET_DEFAULT_SIZES);
	MemoryContext row_context = AllocSetContextCreate(context, "copy by key row", ALLOCSET_DEFAULT_SIZES);
	MemoryContext chunk_context;
	MemoryContext outer = MemoryContextSwitchTo(context);
	Tuplesortstate *sort = tuplesort_begin_datum(BYTEAOID, BYTEA_LESS_OPERATOR, InvalidOid, false,
												 maintenance_work_mem, NULL, TUPLESORT_NONE);
	TableScanDesc scan = old->rd_tableam->scan_begin(old, SnapshotAny, 0, NULL, NULL, 0);
	TupleTableSlot *slot = table_slot_create(old, NULL);
	TupleTableSlot *copy = table_slot_create(fresh, NULL);
	TupleDesc	desc = RelationGetDescr(fresh);
	const TableLayout *layout = NULL;
	StringInfoData key,
				row,
				last;
	IngestEntry *entries;
	Size		bytes = 0;
	int			n = 0;
	double		rows = 0;
	bool		ingest = au_storage_unpublished(fresh);
	Datum		datum;
	bool		isnull;
	char		skipped[SKIPPED_LEN];

	initStringInfo(&key);
	initStringInfo(&row);
	initStringInfo(&last);
	while (old->rd_tableam->scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		struct varlena *item;
		uint16		key_len;
		char	   *p;
		Size		size;

		CHECK_FOR_INTERRUPTS();
		if (layout == NULL)
			layout = au_table_layout_decide(fresh);
		MemoryContextSwitchTo(row_context);
		slot_getallattrs(slot);
		ExecClearTuple(copy);
		memcpy(copy->tts_values, slot->tts_values, sizeof(Datum) * desc->natts);
		memcpy(copy->tts_isnull, slot->tts_isnull, sizeof(bool) * desc->natts);
		/* dropped columns take no space */
		for (int i = 0; i < desc->natts; i++)
		{
			if (TupleDescCompactAttr(desc, i)->attisdropped)
				copy->tts_isnull[i] = true;
		}
		ExecStoreVirtualTuple(copy);
		au_table_key(&key, fresh, layout, copy);
		if (rows == 0)
			memcpy(skipped, key.data, SKIPPED_LEN);
		else if (memcmp(skipped, key.data, SKIPPED_LEN) != 0)
			elog(ERROR, "unexpected key of a row of \"%s\"", RelationGetRelationName(old));
		resetStringInfo(&row);
		au_row_encode(&row, desc, copy->tts_values, copy->tts_isnull, au_xmin());

		key_len = (uint16) (key.len - SKIPPED_LEN);
		size = VARHDRSZ + key_len + row.len + sizeof(key_len);
		item = palloc(size);
		SET_VARSIZE(item, size);
		p = VARDATA(item);
		memcpy(p, key.data + SKIPPED_LEN, key_len);
		memcpy(p + key_len, row.data, row.len);
		memcpy(p + key_len + row.len, &key_len, sizeof(key_len));
		tuplesort_putdatum(sort, PointerGetDatum(item), false);
		rows += 1;
		MemoryContextSwitchTo(context);
		MemoryContextReset(row_context);
	}
	old->rd_tableam->scan_end(scan);

	chunk_context = BumpContextCreate(context, "copy by key chunk", 0, 1024 * 1024, 1024 * 1024);
	entries = palloc_array(IngestEntry, CHUNK_ENTRIES);
	tuplesort_performsort(sort);
	while (rows > 0 && tuplesort_getdatum(sort, true, false, &datum, &isnull, NULL))
	{
		struct varlena *item = (struct varlena *) DatumGetPointer(datum);
		const uint8 *data = (const uint8 *) VARDATA_ANY(item);
		uint32		len = VARSIZE_ANY_EXHDR(item) - sizeof(uint16);
		IngestEntry *e = &entries[n++];
		uint16		key_len;
		uint8	   *bytes_of_entry;
		Size		value_at;

		CHECK_FOR_INTERRUPTS();
		memcpy(&key_len, data + len, sizeof(key_len));

		/* the copy keeps the row at a multiple of 8 */
		value_at = TYPEALIGN(8, SKIPPED_LEN + key_len);
		bytes_of_entry = MemoryContextAlloc(chunk_context, value_at + len - key_len);
		memcpy(bytes_of_entry, skipped, SKIPPED_LEN);
		memcpy(bytes_of_entry + SKIPPED_LEN, data, key_len);
		memcpy(bytes_of_entry + value_at, data + key_len, len - key_len);
		e->key = (Bytes) {bytes_of_entry, SKIPPED_LEN + key_len};
		e->value = (Bytes) {bytes_of_entry + value_at, len - key_len};
		bytes += e->key.len + e->value.len;

		if (last.len == key_len && memcmp(last.data, data, key_len) == 0)
			report_not_unique(old, layout, e->value);
		resetStringInfo(&last);
		appendBinaryStringInfo(&last, (const char *) data, key_len);

		if (n == CHUNK_ENTRIES || bytes >= CHUNK_BYTES)
		{
			write_chunk(entries, n, ingest);
			MemoryContextReset(chunk_context);
			n = 0;
			bytes = 0;
		}
	}
	write_chunk(entries, n, ingest);
	tuplesort_end(sort);
	ExecDropSingleTupleTableSlot(slot);
	ExecDropSingleTupleTableSlot(copy);
	MemoryContextSwitchTo(outer);
	MemoryContextDelete(context);
	return rows;
}

/* Is the column in a key of the table? */
static bool
column_is_in_key(Oid relid, AttrNumber attno)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	bool		found = false;

	if (au_is_our_table(rel))
	{
		foreach_oid(oid, RelationGetIndexList(rel))
		{
			Relation	index = index_open(oid, AccessShareLock);

			for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
				found |= index->rd_index->indkey.values[i] == attno;
			index_close(index, AccessShareLock);
		}
	}
	relation_close(rel, AccessShareLock);
	return found;
}

/* The tables that have values of the type, or of a type made of it, in a key. */
static void
collect_tables_keyed_by(Oid type, List **tables, List **seen)
{
	Relation	depend;
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	check_stack_depth();
	if (!OidIsValid(type) || list_member_oid(*seen, type))
		return;
	*seen = lappend_oid(*seen, type);
	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(TypeRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(type));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend d = (Form_pg_depend) GETSTRUCT(tuple);
		char		kind;

		if (d->classid == TypeRelationId)
			collect_tables_keyed_by(d->objid, tables, seen);	/* array, domain, range */
		if (d->classid != RelationRelationId)
			continue;
		kind = get_rel_relkind(d->objid);
		if (kind == RELKIND_INDEX)
			*tables = list_append_unique_oid(*tables, IndexGetRelation(d->objid, false));
		else
		{
			if ((kind == RELKIND_RELATION || kind == RELKIND_MATVIEW) && d->objsubid > 0 &&
				column_is_in_key(d->objid, d->objsubid))
				*tables = list_append_unique_oid(*tables, d->objid);
			collect_tables_keyed_by(get_rel_type_id(d->objid), tables, seen);
		}
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
}

/* A statement begins; the caller puts back what this returns when it has ended, by an error too. */
RekeyNotes
au_rekey_begin_statement(void)
{
	RekeyNotes	outer = noted;

	noted = (RekeyNotes) {0};
	return outer;
}

void
au_rekey_end_statement(RekeyNotes outer)
{
	noted = outer;
}

static List *
note(List *list, Oid oid)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	if (noted.lxid != MyProc->vxid.lxid)
	{
		noted = (RekeyNotes) {.lxid = MyProc->vxid.lxid};
		list = NIL;
	}
	list = list_append_unique_oid(list, oid);
	MemoryContextSwitchTo(old);
	return list;
}

/*
 * A column of a relation is being dropped, by whatever statement: ALTER, or the
 * DROP of what the column is made of.  The copy waits for the statement's end.
 */
void
au_rekey_note_dropped_column(Oid relid)
{
	noted.lost_column = note(noted.lost_column, relid);
}

/* It may be a primary key under a new oid (au_layout_follow). */
void
au_rekey_note_new_index(Oid index)
{
	noted.new_indexes = note(noted.new_indexes, index);
}

static void
follow_indexes(List *indexes)
{
	foreach_oid(oid, indexes)
	{
		Oid			relid = IndexGetRelation(oid, true);
		Relation	rel;
		Relation	index;

		if (!OidIsValid(relid))
			continue;			/* dropped again */
		rel = table_open(relid, AccessShareLock);
		index = index_open(oid, AccessShareLock);
		if (au_is_our_table(rel))
			au_layout_follow(rel, index);
		index_close(index, NoLock);
		table_close(rel, NoLock);
	}
}

/* Called after every statement that may have changed the catalogs. */
void
au_rekey_after_statement(Node *stmt)
{
	List	   *tables = NIL;
	List	   *seen = NIL;

	if (noted.lxid != MyProc->vxid.lxid)
		noted = (RekeyNotes) {0};	/* the statement has committed in between */
	follow_indexes(noted.new_indexes);
	foreach_oid(oid, noted.lost_column)
		collect_tables_keyed_by(get_rel_type_id(oid), &tables, &seen);

	if (IsA(stmt, AlterTableStmt))
	{
		AlterTableStmt *alter = (AlterTableStmt *) stmt;
		bool		added = false;
		Oid			relid = InvalidOid;

		foreach_node(AlterTableCmd, command, alter->cmds)
			added |= command->subtype == AT_AddColumn;
		if (added && (alter->objtype == OBJECT_TABLE || alter->objtype == OBJECT_TYPE))
			relid = RangeVarGetRelid(alter->relation, NoLock, true);
		if (OidIsValid(relid))
			foreach_oid(oid, find_all_inheritors(relid, NoLock, NULL))
				collect_tables_keyed_by(get_rel_type_id(oid), &tables, &seen);
	}

	foreach_oid(oid, tables)
	{
		ClusterParams params = {0};
		Relation	rel = table_open(oid, AccessExclusiveLock);

		if (au_is_our_table(rel))
		{
			CheckTableNotInUse(rel, GetCommandTagName(CreateCommandTag(stmt)));
			cluster_rel(rel, InvalidOid, &params);	/* closes it */
			CommandCounterIncrement();
		}
		else
			table_close(rel, NoLock);
	}
}

/* Called after a statement that may have added a primary key to relid. */
void
au_rekey_if_needed(Oid relid)
{
	List	   *oids = find_all_inheritors(relid, NoLock, NULL);

	foreach_oid(oid, oids)
	{
		char		kind = get_rel_relkind(oid);
		Relation	rel;
		ClusterParams params = {0};

		if (kind != RELKIND_RELATION && kind != RELKIND_MATVIEW)
			continue;
		/* the statement that added the key holds this lock already */
		if (!CheckRelationOidLockedByMe(oid, AccessExclusiveLock, true) &&
			!CheckRelationOidLockedByMe(oid, ShareRowExclusiveLock, true))
			continue;
		rel = table_open(oid, NoLock);
		if (!au_is_our_table(rel) || !au_layout_wants_rekey(rel))
		{
			table_close(rel, NoLock);
			continue;
		}
		LockRelationOid(oid, AccessExclusiveLock);
		/* closes the relation */
		cluster_rel(rel, InvalidOid, &params);
		CommandCounterIncrement();
		if (adding_now())
			adding.pending--;
	}
	list_free(oids);
	if (adding_now())
	{
		if (adding.pending > 0)
			elog(ERROR, "rows of a table with a new primary key were not copied");
		adding.relid = InvalidOid;
	}
}
