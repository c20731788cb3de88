/*-------------------------------------------------------------------------
 *
 * sequence.c
 *	  Sequences that survive the loss of this server's data directory.
 *
 * PostgreSQL's own sequences do the work, in local pages.  What is durable is
 * a bound per sequence, the value of key (2, database, relfilenumber):
 *
 *	  [bound, is_called, epoch]
 *
 * What must hold: a transaction that drew values commits only after a bound at
 * or beyond them is durable, so a value that a committed transaction or its
 * client knows is never drawn again: a rebuilt sequence starts at its bound.
 * (As in PostgreSQL, a value drawn by a transaction that had not ended when
 * the server crashed may be drawn again.)  A bound lies 1,000 increments ahead,
 * hence costs one commit per 1,000 values; after a clean restart the local
 * pages are newer and there is no gap.
 *
 * setval moves a sequence at once, outside transactions, maybe backwards: then
 * the bound follows with the next epoch (PROTOCOL Q6).  ALTER SEQUENCE and
 * TRUNCATE ... RESTART IDENTITY give the sequence new storage, whose contents
 * are in the DDL record.
 *
 * If the commit service does not answer, the drawing transaction aborts.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_class.h"
#include "catalog/pg_control.h"
#include "catalog/pg_sequence.h"
#include "commands/sequence.h"
#include "common/controldata_utils.h"
#include "common/int.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define SEQUENCE_MAGIC 0x1717	/* SEQ_MAGIC in commands/sequence.c */
#define BOUND_AHEAD 1000		/* increments */
#define SEEN_STEP 100			/* increments between updates of Bound.seen */
#define BOUNDS_MAX 16384		/* cached ones */

typedef struct BoundKey
{
	Oid			database;
	RelFileNumber number;
} BoundKey;

typedef struct Bound
{
	BoundKey	key;
	int64		bound;
	int64		epoch;
	int64		seen;			/* a recent value, met at a commit */
} Bound;

typedef struct SequenceShared
{
	LWLock		lock;			/* protects the table of bounds */
	int			tranche;
	bool		unclean;		/* local pages may be older than the bounds */
} SequenceShared;

static SequenceShared *shared = NULL;
static HTAB *bounds = NULL;

/* ------------------------------------------------------------ shared memory */

Size
au_sequence_shmem_size(void)
{
	return add_size(MAXALIGN(sizeof(SequenceShared)), hash_estimate_size(BOUNDS_MAX, sizeof(Bound)));
}

void
au_sequence_shmem_init(void)
{
	HASHCTL		ctl = {.keysize = sizeof(BoundKey), .entrysize = sizeof(Bound)};
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("australis sequences", sizeof(SequenceShared), &found);
	if (!found)
	{
		bool		crc_ok = false;
		ControlFileData *control;

		shared->tranche = LWLockNewTrancheId();
		LWLockInitialize(&shared->lock, shared->tranche);

		/*
		 * Commits here do not wait for WAL.  After a crash a sequence's page
		 * may be older than what clients have seen.
		 */
		control = get_controlfile(DataDir, &crc_ok);
		shared->unclean = !crc_ok || control->state != DB_SHUTDOWNED;
		pfree(control);
	}
	bounds = ShmemInitHash("australis sequence bounds", BOUNDS_MAX, BOUNDS_MAX, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	LWLockRelease(AddinShmemInitLock);
	LWLockRegisterTranche(shared->tranche, "AustralisSequences");
}

static bool
cache_get(const BoundKey *key, Bound *bound)
{
	Bound	   *entry;

	LWLockAcquire(&shared->lock, LW_SHARED);
	entry = hash_search(bounds, key, HASH_FIND, NULL);
	if (entry)
		*bound = *entry;
	LWLockRelease(&shared->lock);
	return entry != NULL;
}

static void
cache_put(const Bound *bound)
{
	Bound	   *entry;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	entry = hash_search(bounds, &bound->key, HASH_ENTER_NULL, NULL);
	if (entry == NULL)
	{
		/* full: it is only a cache */
		HASH_SEQ_STATUS status;

		hash_seq_init(&status, bounds);
		while ((entry = hash_seq_search(&status)) != NULL)
			(void) hash_search(bounds, &entry->key, HASH_REMOVE, NULL);
		entry = hash_search(bounds, &bound->key, HASH_ENTER_NULL, NULL);
	}
	if (entry)
		*entry = *bound;
	LWLockRelease(&shared->lock);
}

/* ----------------------------------------------------------- local pages */

void
au_sequence_read(Relation rel, int64 *last_value, bool *is_called)
{
	Buffer		buffer = ReadBuffer(rel, 0);
	Page		page;
	ItemId		item;
	Form_pg_sequence_data data;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	if (!ItemIdIsNormal(item))
		elog(ERROR, "sequence \"%s\" has no row", RelationGetRelationName(rel));
	data = (Form_pg_sequence_data) ((char *) PageGetItem(page, item) +
									((HeapTupleHeader) PageGetItem(page, item))->t_hoff);
	*last_value = data->last_value;
	*is_called = data->is_called;
	UnlockReleaseBuffer(buffer);
}

/* As fill_seq_fork_with_data() in commands/sequence.c, for new storage. */
static void
fill_storage(Relation rel, int64 last_value, bool is_called)
{
	Datum		values[SEQ_COL_LASTCOL];
	bool		nulls[SEQ_COL_LASTCOL] = {false};
	HeapTuple	tuple;
	Buffer		buffer;
	Page		page;
	uint32	   *magic;

	values[SEQ_COL_LASTVAL - 1] = Int64GetDatum(last_value);
	values[SEQ_COL_LOG - 1] = Int64GetDatum(0);
	values[SEQ_COL_CALLED - 1] = BoolGetDatum(is_called);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);

	buffer = ExtendBufferedRel(BMR_REL(rel), MAIN_FORKNUM, NULL, EB_LOCK_FIRST | EB_SKIP_EXTENSION_LOCK);
	page = BufferGetPage(buffer);
	PageInit(page, BufferGetPageSize(buffer), sizeof(uint32));
	magic = (uint32 *) PageGetSpecialPointer(page);
	*magic = SEQUENCE_MAGIC;

	/* sequences are never vacuumed: no transaction id may stay in them */
	HeapTupleHeaderSetXmin(tuple->t_data, FrozenTransactionId);
	HeapTupleHeaderSetXminFrozen(tuple->t_data);
	HeapTupleHeaderSetCmin(tuple->t_data, FirstCommandId);
	HeapTupleHeaderSetXmax(tuple->t_data, InvalidTransactionId);
	tuple->t_data->t_infomask |= HEAP_XMAX_INVALID;
	ItemPointerSet(&tuple->t_data->t_ctid, 0, FirstOffsetNumber);

	(void) GetTopTransactionId();
	START_CRIT_SECTION();
	MarkBufferDirty(buffer);
	if (PageAddItem(page, (Item) tuple->t_data, tuple->t_len, InvalidOffsetNumber, false, false) != FirstOffsetNumber)
		elog(ERROR, "failed to add the row of a sequence");
	if (RelationNeedsWAL(rel))
	{
		xl_seq_rec	record = {.locator = rel->rd_locator};
		XLogRecPtr	lsn;

		XLogBeginInsert();
		XLogRegisterBuffer(0, buffer, REGBUF_WILL_INIT);
		XLogRegisterData(&record, sizeof(record));
		XLogRegisterData(tuple->t_data, tuple->t_len);
		lsn = XLogInsert(RM_SEQ_ID, XLOG_SEQ_LOG);
		PageSetLSN(page, lsn);
	}
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
}

/* -------------------------------------------------------- durable bounds */

static void
bound_key(StringInfo buf, const BoundKey *key)
{
	uint32		be;

	au_key_append_relid(buf, AU_SYS_SEQUENCE);
	be = pg_hton32(key->database);
	appendBinaryStringInfo(buf, &be, sizeof(be));
	be = pg_hton32(key->number);
	appendBinaryStringInfo(buf, &be, sizeof(be));
}

/* The durable bound, from storage. */
static bool
read_bound(const BoundKey *key, Bound *bound, bool *is_called)
{
	StringInfoData k,
				batch;
	Tau			acked;
	int64		ddl;
	bool		found;

	initStringInfo(&k);
	initStringInfo(&batch);
	bound_key(&k, key);
	au_page_snapshot(&acked, &ddl);
	found = au_read_key((Bytes) {(uint8 *) k.data, k.len}, acked, &batch);
	if (found)
	{
		KeyEntry	entry;
		MpReader	r;

		(void) au_batch_entry(batch.data, &entry);
		r.p = entry.value.data;
		r.end = r.p + entry.value.len;
		(void) au_mp_read_array(&r);
		bound->key = *key;
		bound->bound = au_mp_read_int(&r);
		*is_called = au_mp_read_bool(&r);
		bound->epoch = au_mp_read_int(&r);
		bound->seen = bound->bound;
	}
	pfree(k.data);
	pfree(batch.data);
	return found;
}

static void
write_bound(const Bound *bound, bool is_called)
{
	StringInfoData k,
				v;

	initStringInfo(&k);
	initStringInfo(&v);
	bound_key(&k, &bound->key);
	au_mp_array(&v, 3);
	au_mp_int(&v, bound->bound);
	au_mp_bool(&v, is_called);
	au_mp_int(&v, bound->epoch);
	au_commit_autonomous((Bytes) {(uint8 *) k.data, k.len}, (Bytes) {(uint8 *) v.data, v.len});
	pfree(k.data);
	pfree(v.data);
}

/* value + n * increment, not beyond the sequence's limits */
static int64
ahead(int64 value, int64 n, Form_pg_sequence seq)
{
	int64		distance;
	int64		result;

	if (pg_mul_s64_overflow(n, seq->seqincrement, &distance) ||
		pg_add_s64_overflow(value, distance, &result))
		return seq->seqincrement > 0 ? seq->seqmax : seq->seqmin;
	return Min(Max(result, seq->seqmin), seq->seqmax);
}

/* Is a later than b in the direction in which the sequence runs? */
static bool
beyond(int64 a, int64 b, Form_pg_sequence seq)
{
	return seq->seqincrement > 0 ? a > b : a < b;
}

typedef enum BoundState
{
	BOUND_FINE,
	BOUND_PASSED,
	BOUND_MOVED_BACK,			/* setval */
} BoundState;

static BoundState
judge(const Bound *bound, int64 value, Form_pg_sequence seq)
{
	if (beyond(value, bound->bound, seq))
		return BOUND_PASSED;

	/*
	 * Two signs of a setval backwards: below what was met at an earlier
	 * commit, and further below the bound than any bound is set ahead.  A
	 * cycling sequence goes back by itself; its bound may stay where it is,
	 * since its values repeat anyway.
	 */
	if (!seq->seqcycle &&
		((beyond(bound->bound, bound->seen, seq) && beyond(bound->seen, value, seq)) ||
		 beyond(bound->bound, ahead(value, BOUND_AHEAD, seq), seq)))
		return BOUND_MOVED_BACK;
	return BOUND_FINE;
}

/* Make sure that what was drawn from this sequence is within its bound. */
static void
secure_sequence(Oid relid)
{
	Relation	rel;
	HeapTuple	tuple;
	FormData_pg_sequence seq;
	BoundKey	key;
	Bound		bound;
	int64		value;
	bool		is_called;
	bool		bound_called;

	/* dropped in this transaction? */
	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(tuple))
		return;
	seq = *(Form_pg_sequence) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);
	rel = try_relation_open(relid, AccessShareLock);
	if (rel == NULL)
		return;

	/* storage made by this transaction: the DDL record carries the value */
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP ||
		rel->rd_createSubid != InvalidSubTransactionId ||
		rel->rd_newRelfilelocatorSubid != InvalidSubTransactionId ||
		rel->rd_firstRelfilelocatorSubid != InvalidSubTransactionId)
	{
		relation_close(rel, AccessShareLock);
		return;
	}

	key.database = rel->rd_locator.dbOid;
	key.number = rel->rd_locator.relNumber;
	au_sequence_read(rel, &value, &is_called);
	if (!cache_get(&key, &bound) || judge(&bound, value, &seq) != BOUND_FINE)
	{
		BoundState	state = BOUND_PASSED;

		/* one at a time; who waited finds the work done */
		LockDatabaseObject(SequenceRelationId, relid, 0, ExclusiveLock);
		au_sequence_read(rel, &value, &is_called);
		if (cache_get(&key, &bound) || read_bound(&key, &bound, &bound_called))
			state = judge(&bound, value, &seq);
		else
		{
			bound.key = key;
			bound.epoch = 0;
		}
		if (state != BOUND_FINE)
		{
			bound.bound = ahead(value, BOUND_AHEAD, &seq);
			if (state == BOUND_MOVED_BACK)
				bound.epoch++;
			/* a setval(..., false) is exact as long as nothing was drawn */
			bound_called = is_called || bound.bound != value;
			write_bound(&bound, bound_called);
		}
		bound.seen = value;
		cache_put(&bound);
		UnlockDatabaseObject(SequenceRelationId, relid, 0, ExclusiveLock);
	}
	else if (beyond(value, ahead(bound.seen, SEEN_STEP, &seq), &seq))
	{
		bound.seen = value;
		cache_put(&bound);
	}
	relation_close(rel, AccessShareLock);
}

/*
 * nextval and setval lock their sequence until the end of the transaction, in
 * a mode that for other relations means DML.
 */
void
au_sequences_before_commit(void)
{
	List	   *sequences;
	ListCell   *lc;

	if (au_ddl_applying || !au_enabled)
		return;
	sequences = au_relations_locked(RowExclusiveLock);
	foreach(lc, sequences)
	{
		if (lfirst_oid(lc) >= FirstNormalObjectId &&
			get_rel_relkind(lfirst_oid(lc)) == RELKIND_SEQUENCE)
			secure_sequence(lfirst_oid(lc));
	}
	list_free(sequences);
}

/*
 * This transaction drops the sequence or gives it new storage: its bound goes
 * with the same commit.
 */
void
au_sequence_forget(RelFileNumber number)
{
	BoundKey	key = {MyDatabaseId, number};
	Bound		bound;
	bool		is_called;
	StringInfoData k;

	if (!cache_get(&key, &bound) && !read_bound(&key, &bound, &is_called))
		return;
	initStringInfo(&k);
	bound_key(&k, &key);
	(void) au_wb_delete((Bytes) {(uint8 *) k.data, k.len}, GetCurrentCommandId(true), LockTupleExclusive, true);
	pfree(k.data);
}

/* ------------------------------------------------------ after loss or rebuild */

/* Called while a DDL record is applied: contents of new storage. */
void
au_sequence_create_storage(Oid relid, int64 last_value, bool is_called)
{
	Relation	rel = relation_open(relid, AccessExclusiveLock);
	BoundKey	key = {rel->rd_locator.dbOid, rel->rd_locator.relNumber};
	Bound		bound;

	/* drawn from since the record was made */
	if (read_bound(&key, &bound, &is_called))
	{
		last_value = bound.bound;
		cache_put(&bound);
	}
	if (RelationGetNumberOfBlocks(rel) == 0)
		fill_storage(rel, last_value, is_called);
	relation_close(rel, NoLock);
}

/* Was this server stopped in a way that may have lost local pages? */
bool
au_sequences_unclean(void)
{
	return shared->unclean;
}

/*
 * Raise the sequences of the current database to their bounds, unless the
 * server was shut down cleanly.
 */
void
au_sequences_restore(void)
{
	Relation	catalog;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *relids = NIL;
	ListCell   *lc;

	if (!au_sequences_unclean())
		return;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	catalog = table_open(SequenceRelationId, AccessShareLock);
	scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		relids = lappend_oid(relids, ((Form_pg_sequence) GETSTRUCT(tuple))->seqrelid);
	systable_endscan(scan);

	foreach(lc, relids)
	{
		Relation	rel = relation_open(lfirst_oid(lc), RowExclusiveLock);
		BoundKey	key = {rel->rd_locator.dbOid, rel->rd_locator.relNumber};
		Bound		bound;
		int64		value;
		bool		is_called;
		bool		bound_called;

		if (rel->rd_rel->relpersistence != RELPERSISTENCE_TEMP && read_bound(&key, &bound, &bound_called))
		{
			HeapTuple	seqtuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(lfirst_oid(lc)));

			if (!HeapTupleIsValid(seqtuple))
				elog(ERROR, "cache lookup failed for sequence %u", lfirst_oid(lc));
			au_sequence_read(rel, &value, &is_called);
			if (beyond(bound.bound, value, (Form_pg_sequence) GETSTRUCT(seqtuple)))
				(void) OidFunctionCall3(F_SETVAL_REGCLASS_INT8_BOOL, ObjectIdGetDatum(lfirst_oid(lc)),
										Int64GetDatum(bound.bound), BoolGetDatum(bound_called));
			ReleaseSysCache(seqtuple);
			cache_put(&bound);
		}
		relation_close(rel, NoLock);
	}
	table_close(catalog, AccessShareLock);
	PopActiveSnapshot();
	CommitTransactionCommand();
}
