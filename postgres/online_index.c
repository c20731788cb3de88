/*-------------------------------------------------------------------------
 *
 * online_index.c
 *	  Indexes that are built while rows are written, on any query processor.
 *
 * An index has two states beside "not there" (rule Q9):
 *
 *	  building	indisready, not indisvalid: all writers maintain it, nobody
 *				reads it.  Committed by a first DDL record; who wrote the table
 *				with an older catalog is refused at COMMIT (rule A5).
 *	  valid		committed by a second DDL record, after every row has its entry.
 *
 * In between the rows are read in key order and their entries committed in
 * batches, each beside the running transaction and as of its own snapshot
 * time.  A batch validates SHARE on every row that it indexes: if one was
 * changed or deleted since it was read, the batch is refused as a whole and
 * read again, so no entry is missed and none outlives its row.  Rows written
 * after the first snapshot have their entries from their writers, which write
 * them with every update while the index is not valid (au_index_incomplete),
 * and are passed over: a row can refuse a batch once, not for ever.
 *
 * CREATE INDEX runs as PostgreSQL's own statement, for locks, rights, event
 * triggers and catalogs, with a build that does nothing; when it has ended,
 * and before its changes are committed, the index is marked as not valid, and
 * the rows follow in transactions of this file.  They hold locks for one batch
 * at a time, so schema changes of the table, from anywhere, get in between.
 * REINDEX INDEX CONCURRENTLY is PostgreSQL's: the rows go into the copy at the
 * place of its second scan, with the table locked against schema changes.
 *
 * What must hold: an index becomes valid only after a pass over the whole
 * table with no other storage of table or index in between.  Whatever fails,
 * or dies, in the middle leaves an index that is building: REINDEX INDEX goes
 * through the table again and completes it, DROP INDEX removes it.  A plain
 * CREATE INDEX that fails drops it by itself.  If the commit service goes away
 * the batch is tried again a bounded number of times; its entries may have
 * been committed, which does no harm.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/nbtree.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "commands/defrem.h"
#include "commands/progress.h"
#include "commands/vacuum.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/pmsignal.h"
#include "utils/acl.h"
#include "utils/backend_progress.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "index.h"
#include "online_index.h"

#define BATCH_ROWS		1024
#define BATCH_BYTES		(1024 * 1024)
#define READ_KEYS		256		/* of other entries, in one trip */
#define BATCH_ATTEMPTS	100		/* of one batch, which gets smaller and smaller */
#define STATE_ATTEMPTS	100		/* of a change of the state */
#define PAUSE_MS		2		/* between attempts: the other's commit becomes durable */

/* One build, over all its transactions. */
typedef struct Build
{
	Oid			heap;
	Oid			index;
	char	   *name;
	const char *tag;			/* of the statement, for DDL records */
	int64		command;		/* PROGRESS_CREATEIDX_COMMAND_... */
	MemoryContext context;		/* outlives transactions */
	RelFileNumber heap_number;	/* storage that the pass is about; 0: none yet */
	RelFileNumber index_number;
	StringInfoData position;	/* where the next batch begins */
	Tau			since;			/* newer rows have their entries */
	int			rows;			/* of the next batch */
	int			failures;		/* of this batch */
	int64		done;			/* rows looked at */
	int64		entries;		/* of the index, about */
	int64		total;
	int64		blocks;
	List	   *parents;		/* indexes of partitioned tables, which this one's builds make valid */
	int			parts;			/* indexes to be built, and built */
	int			parts_done;
} Build;

typedef enum Step
{
	STEP_ON,					/* more to do */
	STEP_AGAIN,					/* refused, nothing happened */
	STEP_END,					/* the table's end */
} Step;

/* PostgreSQL's statement runs: its builds do nothing, and what it creates is kept here */
static bool deferring = false;
static Oid	deferred_heap = InvalidOid;
static MemoryContext deferred_context = NULL;
static List *created = NIL;

static inline Bytes
as_bytes(StringInfo s)
{
	Bytes		b = {(const uint8 *) s->data, (uint32) s->len};

	return b;
}

static void
copy_to(StringInfo to, Bytes from)
{
	resetStringInfo(to);
	appendBinaryStringInfoNT(to, (const char *) from.data, from.len);
}

/* ------------------------------------------------------------------- batches */

/* An entry of the index, as it is put together. */
typedef struct NewEntry
{
	Bytes		key;
	Bytes		value;
	bool		unique;			/* nobody else may have this key */
} NewEntry;

static int
compare_entries(const void *a, const void *b)
{
	return au_compare_bytes(((const NewEntry *) a)->key, ((const NewEntry *) b)->key);
}

static void
raise_not_unique(Relation heap, Relation index, Bytes value)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(index), &TTSOpsAustralis);
	char	   *key_desc;

	au_row_store(au_index_value_image(value), slot, false);
	slot_getallattrs(slot);
	key_desc = BuildIndexValueDescription(index, slot->tts_values, slot->tts_isnull);
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("could not create unique index \"%s\"", RelationGetRelationName(index)),
			 key_desc ? errdetail("Key %s is duplicated.", key_desc) : errdetail("Duplicate keys exist."),
			 errtableconstraint(heap, RelationGetRelationName(index))));
}

/* Duplicates among the batch, and with entries that are there as of tau. */
static void
check_unique(Relation heap, Relation index, NewEntry *entries, int n, Tau tau)
{
	StringInfoData batch;
	Bytes	   *keys = palloc_array(Bytes, n);
	NewEntry  **of = palloc_array(NewEntry *, n);
	int		   *found = palloc_array(int, n);
	int			nkeys = 0;

	initStringInfo(&batch);
	qsort(entries, n, sizeof(NewEntry), compare_entries);
	for (int i = 0; i < n; i++)
	{
		if (!entries[i].unique)
			continue;
		if (i > 0 && au_compare_bytes(entries[i - 1].key, entries[i].key) == 0)
			raise_not_unique(heap, index, entries[i].value);
		of[nkeys] = &entries[i];
		keys[nkeys++] = entries[i].key;
	}
	for (int first = 0; first < nkeys; first += READ_KEYS)
	{
		int			some = Min(READ_KEYS, nkeys - first);

		au_read_keys(keys + first, some, tau, &batch, found);
		for (int i = 0; i < some; i++)
		{
			KeyEntry	other;

			if (found[i] < 0)
				continue;
			(void) au_batch_entry(batch.data + found[i], &other);
			if (au_compare_bytes(au_index_value_rowkey(other.value),
								 au_index_value_rowkey(of[first + i]->value)) != 0)
				raise_not_unique(heap, index, of[first + i]->value);
		}
	}
}

static Bytes
copy_bytes(StringInfo s)
{
	uint8	   *copy = palloc(Max(s->len, 1));

	memcpy(copy, s->data, s->len);
	return (Bytes) {copy, (uint32) s->len};
}

/*
 * Read rows from b->position on, as of tau, and commit their entries.  The
 * position moves only if that went well.
 */
static Step
index_batch(Build *b, Relation heap, Relation index, IndexInfo *info, Tau tau)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "index build batch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	EState	   *estate = CreateExecutorState();
	TupleTableSlot *slot = table_slot_create(heap, NULL);
	ExprContext *econtext = GetPerTupleExprContext(estate);
	ExprState  *predicate;
	IndexShape	shape;
	StringInfoData hi,
				rows,
				key,
				value;
	BatchEntry *batch;
	NewEntry   *entries;
	int			n = 0,
				nrows = 0,
				kept = 0;
	Bytes		last = {NULL, 0};
	bool		more;
	AuBatchOutcome outcome = AU_BATCH_COMMITTED;
	Step		step;

	au_index_shape(index, &shape);
	initStringInfo(&hi);
	initStringInfo(&rows);
	initStringInfo(&key);
	initStringInfo(&value);
	au_key_append_relid(&hi, au_relid(heap) + 1);
	econtext->ecxt_scantuple = slot;
	predicate = ExecPrepareQual(info->ii_Predicate, estate);
	batch = palloc_array(BatchEntry, 2 * b->rows);
	entries = palloc_array(NewEntry, b->rows);

	au_read_range(as_bytes(&b->position), as_bytes(&hi), false, tau, b->rows, BATCH_BYTES, &rows, &more);
	for (char *p = rows.data; p < rows.data + rows.len && nrows < b->rows;)
	{
		KeyEntry	row;
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];
		bool		suffixed;

		p = au_batch_entry(p, &row);
		last = row.key;
		nrows++;
		if (row.tau > b->since)
		{
			kept += predicate == NULL;
			continue;
		}
		MemoryContextReset(econtext->ecxt_per_tuple_memory);
		au_row_store(row.value, slot, false);
		slot->tts_tableOid = RelationGetRelid(heap);
		if (predicate && !ExecQual(predicate, econtext))
			continue;
		FormIndexDatum(info, slot, estate, values, isnull);
		(void) au_index_key(&key, index, &shape, values, isnull, row.key, &suffixed);
		resetStringInfo(&value);
		au_index_value(&value, index, values, isnull, row.key);
		entries[n].key = copy_bytes(&key);
		entries[n].value = copy_bytes(&value);
		entries[n].unique = shape.unique && !suffixed;
		batch[n].key = row.key;
		batch[n].value = (Bytes) {NULL, 0};
		batch[n].mode = LockTupleShare | AU_MODE_VALIDATE;
		n++;
	}
	if (n > 0)
	{
		if (shape.unique)
			check_unique(heap, index, entries, n, tau);
		for (int i = 0; i < n; i++)
		{
			batch[n + i].key = entries[i].key;
			batch[n + i].value = entries[i].value;
			batch[n + i].mode = shape.unique ? LockTupleExclusive : LockTupleNoKeyExclusive | AU_MODE_BLIND;
		}
		outcome = au_commit_batch(batch, 2 * n, au_relation_name(heap), tau);
	}
	if (outcome == AU_BATCH_COMMITTED)
	{
		if (nrows > 0)
		{
			copy_to(&b->position, last);
			appendStringInfoCharMacro(&b->position, '\0');
		}
		b->done += nrows;
		b->entries += n + kept;
		b->failures = 0;
		b->rows = Min(b->rows * 2, BATCH_ROWS);
		step = more ? STEP_ON : STEP_END;
	}
	else
	{
		if (++b->failures >= BATCH_ATTEMPTS)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not build index \"%s\": rows are locked or changed all the time", b->name),
					 errhint("REINDEX INDEX completes the index.")));
		b->rows = Max(b->rows / 4, 1);
		step = STEP_AGAIN;
	}
	info->ii_ExpressionsState = NIL;
	info->ii_PredicateState = NULL;
	ExecDropSingleTupleTableSlot(slot);
	FreeExecutorState(estate);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return step;
}

/* The same, with the rights of the table's owner, as PostgreSQL builds indexes. */
static Step
index_batch_as_owner(Build *b, Relation heap, Relation index, IndexInfo *info, Tau tau)
{
	Oid			user;
	int			security;
	int			gucs;
	Step		step;

	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(heap->rd_rel->relowner, security | SECURITY_RESTRICTED_OPERATION);
	gucs = NewGUCNestLevel();
	RestrictSearchPath();
	step = index_batch(b, heap, index, info, tau);
	AtEOXact_GUC(false, gucs);
	SetUserIdAndSecContext(user, security);
	return step;
}

/* ------------------------------------------------------------------ progress */

static void
report_position(Build *b)
{
	int64		blocks = b->total > 0 ? (int64) ((double) b->blocks * b->done / b->total) : 0;

	pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE, b->done);
	pgstat_progress_update_param(PROGRESS_SCAN_BLOCKS_DONE, Min(blocks, b->blocks));
}

/* Begin at the first row; newer rows than tau have their entries. */
static void
begin_pass(Build *b, Relation heap, Relation index, Tau tau)
{
	int64		bytes;

	resetStringInfo(&b->position);
	au_key_append_relid(&b->position, au_relid(heap));
	b->heap_number = heap->rd_locator.relNumber;
	b->index_number = index->rd_locator.relNumber;
	b->since = tau;
	b->done = 0;
	b->entries = 0;
	au_read_stats(au_relid(heap), &b->total, &bytes);
	b->blocks = (bytes + BLCKSZ - 1) / BLCKSZ;
}

/* An error ends the report; so it is made anew. */
static void
report(Build *b)
{
	const int	params[] = {
		PROGRESS_CREATEIDX_COMMAND, PROGRESS_CREATEIDX_INDEX_OID, PROGRESS_CREATEIDX_ACCESS_METHOD_OID,
		PROGRESS_CREATEIDX_PHASE, PROGRESS_CREATEIDX_SUBPHASE, PROGRESS_CREATEIDX_TUPLES_TOTAL,
		PROGRESS_SCAN_BLOCKS_TOTAL, PROGRESS_CREATEIDX_PARTITIONS_TOTAL, PROGRESS_CREATEIDX_PARTITIONS_DONE
	};
	const int64 values[] = {
		b->command, b->index, AU_INDEX_AM_OID,
		PROGRESS_CREATEIDX_PHASE_BUILD, PROGRESS_BTREE_PHASE_INDEXBUILD_TABLESCAN, b->total,
		b->blocks, b->parts, b->parts_done
	};

	pgstat_progress_start_command(PROGRESS_COMMAND_CREATE_INDEX, b->heap);
	pgstat_progress_update_multi_param(lengthof(params), params, values);
	report_position(b);
}

/* ------------------------------------------------------------ the transactions */

static void
init_build(Build *b, MemoryContext context, Oid heap, Oid index, const char *tag, int64 command)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	memset(b, 0, sizeof(Build));
	b->context = context;
	b->heap = heap;
	b->index = index;
	b->name = get_rel_name(index);
	b->tag = tag;
	b->command = command;
	b->rows = BATCH_ROWS;
	initStringInfo(&b->position);
	MemoryContextSwitchTo(old);
}

/* Open both; false: the index is valid already. */
static bool
open_both(Build *b, LOCKMODE mode, Relation *heap, Relation *index)
{
	*heap = try_table_open(b->heap, mode);
	*index = *heap ? try_index_open(b->index, RowExclusiveLock) : NULL;
	if (*index == NULL || !(*index)->rd_index->indisready)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("index \"%s\" was dropped while it was built", b->name)));
	return !(*index)->rd_index->indisvalid;
}

/* One batch, in a transaction of its own. */
static Step
step_batch(Build *b)
{
	Relation	heap;
	Relation	index;
	Step		step = STEP_END;

	/* what a writer locks: schema changes wait for a batch, not for the build */
	if (open_both(b, RowExclusiveLock, &heap, &index))
	{
		Tau			tau = au_tau_start();

		au_check_relation_not_ahead(heap);
		if (b->heap_number != heap->rd_locator.relNumber || b->index_number != index->rd_locator.relNumber)
		{
			begin_pass(b, heap, index, tau);
			report(b);
		}
		PushActiveSnapshot(GetTransactionSnapshot());
		step = index_batch_as_owner(b, heap, index, BuildIndexInfo(index), tau);
		PopActiveSnapshot();
		report_position(b);
	}
	index_close(index, NoLock);
	table_close(heap, NoLock);
	return step;
}

static void
update_size(Relation rel, int64 rows)
{
	vac_update_relstats(rel, RelationGetNumberOfBlocks(rel), (double) rows, rel->rd_rel->relallvisible,
						rel->rd_rel->relallfrozen, rel->rd_rel->relhasindex,
						InvalidTransactionId, InvalidMultiXactId, NULL, NULL, true);
}

/* STEP_AGAIN: the table was given other storage since the pass. */
static Step
step_valid(Build *b)
{
	Relation	heap;
	Relation	index;
	Step		step = STEP_END;

	if (open_both(b, ShareUpdateExclusiveLock, &heap, &index))
	{
		(void) au_tau_start();
		au_check_relation_not_ahead(heap);
		if (b->heap_number != heap->rd_locator.relNumber || b->index_number != index->rd_locator.relNumber)
			step = STEP_AGAIN;
		else
		{
			au_ddl_note_statement(b->tag);
			index_set_state_flags(b->index, INDEX_CREATE_SET_VALID);
			CacheInvalidateRelcache(heap);
			/* what was counted, as PostgreSQL's builds do */
			if (b->done > 0)
			{
				update_size(heap, b->done);
				update_size(index, b->entries);
			}
		}
	}
	index_close(index, NoLock);
	table_close(heap, NoLock);
	return step;
}

/* All indexes below these are valid. */
static Step
step_parents_valid(Build *b)
{
	foreach_oid(oid, b->parents)
	{
		Oid			heap = IndexGetRelation(oid, true);
		HeapTuple	tuple;
		bool		valid = true;

		if (!OidIsValid(heap))
			continue;			/* dropped */
		LockRelationOid(heap, ShareUpdateExclusiveLock);
		(void) au_tau_start();
		tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(oid));
		if (HeapTupleIsValid(tuple))
		{
			valid = ((Form_pg_index) GETSTRUCT(tuple))->indisvalid;
			ReleaseSysCache(tuple);
		}
		if (valid)
			continue;
		au_ddl_note_statement(b->tag);
		index_set_state_flags(oid, INDEX_CREATE_SET_VALID);
		CacheInvalidateRelcacheByRelid(heap);
	}
	return STEP_END;
}

/* Remove what a plain CREATE INDEX leaves when it fails. */
static Step
step_drop(Build *b)
{
	Relation	heap = try_table_open(b->heap, AccessExclusiveLock);

	if (heap != NULL)
	{
		(void) au_tau_start();
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(b->index)))
		{
			ObjectAddress object;

			au_ddl_note_statement(b->tag);
			ObjectAddressSet(object, RelationRelationId, b->index);
			PushActiveSnapshot(GetTransactionSnapshot());
			performDeletion(&object, DROP_RESTRICT, PERFORM_DELETION_INTERNAL);
			PopActiveSnapshot();
		}
		table_close(heap, NoLock);
	}
	return STEP_END;
}

/* Can the same be tried again? */
static bool
may_pass(const ErrorData *error)
{
	int			sqlstate = error->sqlerrcode;

	return sqlstate == ERRCODE_T_R_SERIALIZATION_FAILURE || sqlstate == ERRCODE_CANNOT_CONNECT_NOW ||
		sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED || au_error_is_stale(error);
}

/*
 * Do it and commit.  Begins and ends at the beginning of a transaction.  NULL
 * or the error, which the transaction has ended with.
 */
static pg_noinline ErrorData *
try_step(Build *b, Step (*work) (Build *), Step *step)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		*step = work(b);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(b->context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(b->context);
	StartTransactionCommand();
	return error;
}

/* Until it is done; the error that it cannot be done for, or NULL. */
static ErrorData *
insist(Build *b, Step (*work) (Build *), Step *step)
{
	for (int attempt = 1;; attempt++)
	{
		ErrorData  *error;

		/* catalogs of a server whose postmaster is gone are nobody's any more */
		if (!PostmasterIsAlive())
			proc_exit(1);
		error = try_step(b, work, step);
		if (error == NULL || !may_pass(error) || attempt >= STATE_ATTEMPTS)
			return error;
		FreeErrorData(error);
		/* progress has ended with the transaction */
		report(b);
		au_page_wait(PAGE_ACKED, au_page_read(PAGE_ACKED), PAUSE_MS);
	}
}

/* The index is building, and that is committed. */
static ErrorData *
complete(Build *b)
{
	ErrorData  *error;
	Step		step;

	report(b);
	for (;;)
	{
		do
		{
			error = insist(b, step_batch, &step);
			if (error != NULL)
				return error;
			if (step == STEP_AGAIN)
				au_page_wait(PAGE_ACKED, au_page_read(PAGE_ACKED), PAUSE_MS);
		} while (step != STEP_END);
		error = insist(b, step_valid, &step);
		if (error != NULL || step == STEP_END)
			return error;
	}
}

/* The statement's transaction: commit it, and begin another. */
static void
next_transaction(void)
{
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	StartTransactionCommand();
}

/* NULL or the error, with the transaction as it is then. */
static pg_noinline ErrorData *
try_next_transaction(MemoryContext context)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		next_transaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	return error;
}

static MemoryContext
build_context(void)
{
	return AllocSetContextCreate(PortalContext, "online index build", ALLOCSET_SMALL_SIZES);
}

static void
finish(Build *b, MemoryContext caller)
{
	pgstat_progress_end_command();
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(b->context);
}

/* ------------------------------------------------------------- the statements */

bool
au_online_index_wanted(IndexStmt *stmt, bool top_level)
{
	Oid			relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	char		kind;

	if (!OidIsValid(relid) || relid < FirstNormalObjectId || get_rel_persistence(relid) == RELPERSISTENCE_TEMP ||
		PortalContext == NULL)
		return false;
	kind = get_rel_relkind(relid);
	if (kind != RELKIND_RELATION && kind != RELKIND_MATVIEW &&
		(kind != RELKIND_PARTITIONED_TABLE || stmt->concurrent))
		return false;
	/* alone on its query processor, the plain form has a lock that keeps all writers out */
	return stmt->concurrent || (!IsInTransactionBlock(top_level) && au_peers_exist());
}

bool
au_online_index_deferred(Relation index, IndexInfo *info)
{
	/* of CONCURRENTLY's two scans the second one does it all */
	return info->ii_Concurrent || (deferring && list_member_oid(created, RelationGetRelid(index)));
}

/* The statement's table, or a partition of it. */
static bool
is_deferred(Oid heap)
{
	return heap == deferred_heap ||
		(get_rel_relispartition(heap) && list_member_oid(get_partition_ancestors(heap), deferred_heap));
}

void
au_online_index_created(Oid index)
{
	Relation	rel = table_open(IndexRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		ready = true;

	/* no command has ended since the row was written */
	ScanKeyInit(&key, Anum_pg_index_indexrelid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(index));
	scan = systable_beginscan(rel, IndexRelidIndexId, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);

		ready = form->indisready;
		if (deferring && is_deferred(form->indrelid))
		{
			MemoryContext old = MemoryContextSwitchTo(deferred_context);

			created = lappend_oid(created, index);
			MemoryContextSwitchTo(old);
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	/*
	 * CONCURRENTLY makes an index ready after a first scan, which there is not
	 * here: writers maintain it from its beginning.  What PostgreSQL does next
	 * is to make its rows visible, as this does.
	 */
	if (!ready)
	{
		CommandCounterIncrement();
		index_set_state_flags(index, INDEX_CREATE_SET_READY);
	}
}

/* NULL or the error, with the transaction as it is then. */
static pg_noinline ErrorData *
run_deferred(Oid heap, MemoryContext context, void (*statement) (void *), void *arg)
{
	ErrorData  *volatile error = NULL;

	deferring = true;
	deferred_heap = heap;
	deferred_context = context;
	created = NIL;
	PG_TRY();
	{
		statement(arg);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	deferring = false;
	return error;
}

/*
 * CONCURRENTLY is several transactions of PostgreSQL's; only the first one
 * matters here.  If a later one lost to a schema change, there is the index,
 * building, and the rest follows as if nothing had happened.
 */
static void
go_on_if_begun(ErrorData *error, bool concurrent)
{
	HeapTuple	tuple;
	bool		begun = false;

	if (!concurrent || created == NIL || !may_pass(error))
		ThrowErrorData(error);
	AbortCurrentTransaction();
	StartTransactionCommand();
	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(linitial_oid(created)));
	if (HeapTupleIsValid(tuple))
	{
		begun = ((Form_pg_index) GETSTRUCT(tuple))->indisready;
		ReleaseSysCache(tuple);
	}
	if (!begun)
		ThrowErrorData(error);
	FreeErrorData(error);
}

/* Take back that it is valid; false: it was not. */
static bool
make_invalid(Oid index)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool		valid;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for index %u", index);
	valid = ((Form_pg_index) GETSTRUCT(tuple))->indisvalid;
	ReleaseSysCache(tuple);
	if (valid)
		index_set_state_flags(index, INDEX_DROP_CLEAR_VALID);
	return valid;
}

void
au_online_index_create(IndexStmt *stmt, void (*statement) (void *), void *arg)
{
	bool		concurrent = stmt->concurrent;
	int64		command = concurrent ? PROGRESS_CREATEIDX_COMMAND_CREATE_CONCURRENTLY :
		PROGRESS_CREATEIDX_COMMAND_CREATE;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = build_context();
	MemoryContext old;
	List	   *builds = NIL;
	Build		root;
	ErrorData  *error = NULL;
	Step		step;

	error = run_deferred(RangeVarGetRelid(stmt->relation, NoLock, true), context, statement, arg);
	if (error != NULL)
	{
		go_on_if_begun(error, concurrent);
		error = NULL;
	}
	if (created == NIL)
	{
		MemoryContextDelete(context);
		return;					/* IF NOT EXISTS */
	}
	CommandCounterIncrement();
	/* the first is the statement's own, those of partitions follow */
	init_build(&root, context, IndexGetRelation(linitial_oid(created), false), linitial_oid(created),
			   "CREATE INDEX", command);
	old = MemoryContextSwitchTo(context);
	foreach_oid(index, created)
	{
		bool		valid = make_invalid(index);

		if (get_rel_relkind(index) == RELKIND_INDEX)
		{
			Build	   *b = palloc_object(Build);

			init_build(b, context, IndexGetRelation(index, false), index, root.tag, command);
			builds = lappend(builds, b);
		}
		else if (valid)
			root.parents = lappend_oid(root.parents, index);
	}
	MemoryContextSwitchTo(old);
	error = try_next_transaction(context);
	if (error != NULL)
		go_on_if_begun(error, concurrent);
	error = NULL;
	MemoryContextSwitchTo(context);
	foreach_ptr(Build, b, builds)
	{
		b->parts = root.parents != NIL ? list_length(builds) : 0;
		b->parts_done = foreach_current_index(b);
		error = complete(b);
		if (error != NULL)
			break;
	}
	if (error == NULL && root.parents != NIL)
		error = insist(&root, step_parents_valid, &step);
	if (error != NULL)
	{
		if (!concurrent)
		{
			ErrorData  *more = insist(&root, step_drop, &step);

			if (more != NULL)
				ereport(WARNING,
						(errmsg("index \"%s\" is left invalid: %s", root.name, more->message),
						 errhint("DROP INDEX removes it.")));
		}
		ThrowErrorData(error);
	}
	finish(&root, caller);
}

/* The index that REINDEX is to complete, or 0. */
Oid
au_online_index_to_complete(ReindexStmt *stmt, bool top_level)
{
	Oid			index;
	HeapTuple	tuple;
	bool		building = false;

	if (stmt->kind != REINDEX_OBJECT_INDEX || stmt->relation == NULL || PortalContext == NULL ||
		IsInTransactionBlock(top_level))
		return InvalidOid;
	index = RangeVarGetRelid(stmt->relation, NoLock, true);
	if (!OidIsValid(index) || get_rel_relkind(index) != RELKIND_INDEX || get_rel_relam(index) != AU_INDEX_AM_OID)
		return InvalidOid;
	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);

		building = form->indislive && form->indisready && !form->indisvalid && !form->indisprimary &&
			form->indimmediate && pg_class_aclcheck(form->indrelid, GetUserId(), ACL_MAINTAIN) == ACLCHECK_OK;
		ReleaseSysCache(tuple);
	}
	return building ? index : InvalidOid;
}

void
au_online_index_complete(Oid index, bool concurrent)
{
	MemoryContext caller = CurrentMemoryContext;
	Build		b;
	ErrorData  *error;

	init_build(&b, build_context(), IndexGetRelation(index, false), index, "REINDEX",
			   concurrent ? PROGRESS_CREATEIDX_COMMAND_REINDEX_CONCURRENTLY : PROGRESS_CREATEIDX_COMMAND_REINDEX);
	next_transaction();
	MemoryContextSwitchTo(b.context);
	error = complete(&b);
	if (error != NULL)
		ThrowErrorData(error);
	finish(&b, caller);
}

/*
 * Can REINDEX INDEX CONCURRENTLY build a copy of this one?  Not of one that is
 * its table's storage, and a copy of a deferrable constraint's has other keys.
 */
bool
au_online_index_can_copy(ReindexStmt *stmt)
{
	Oid			index;
	HeapTuple	tuple;
	bool		can = false;

	if (stmt->kind != REINDEX_OBJECT_INDEX || stmt->relation == NULL)
		return false;
	index = RangeVarGetRelid(stmt->relation, NoLock, true);
	if (!OidIsValid(index) || get_rel_relkind(index) != RELKIND_INDEX || get_rel_relam(index) != AU_INDEX_AM_OID)
		return false;
	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);

		can = !form->indisprimary && form->indimmediate && form->indisvalid;
		ReleaseSysCache(tuple);
	}
	return can;
}

/* PostgreSQL's second scan of a concurrent build; the relations are locked. */
void
au_online_index_validate(Relation heap, Relation index, IndexInfo *info)
{
	Build		b;
	Step		step;

	if (deferring && list_member_oid(created, RelationGetRelid(index)))
		return;
	init_build(&b, CurrentMemoryContext, RelationGetRelid(heap), RelationGetRelid(index), "REINDEX", 0);
	begin_pass(&b, heap, index, au_renew_tau_start());
	pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_TOTAL, b.total);
	pgstat_progress_update_param(PROGRESS_SCAN_BLOCKS_TOTAL, b.blocks);
	do
	{
		CHECK_FOR_INTERRUPTS();
		step = index_batch_as_owner(&b, heap, index, info, au_renew_tau_start());
		report_position(&b);
		if (step == STEP_AGAIN)
			au_page_wait(PAGE_ACKED, au_page_read(PAGE_ACKED), PAUSE_MS);
	} while (step != STEP_END);
}
