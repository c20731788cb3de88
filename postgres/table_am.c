/*-------------------------------------------------------------------------
 *
 * table_am.c
 *	  The table access method.
 *
 * Reads merge storage as of tau_start with the write buffer; writes go to the
 * buffer and nowhere else, so nothing here ever waits for another
 * transaction: conflicts are decided at COMMIT.  A TID names a row version
 * (tid_map.c).
 *
 * The executor inserts index entries of new row versions through the index
 * access method; no index access method ever hears of a deletion, so this one
 * takes the entries of old versions out.  A primary key that organises the
 * table has no entries: its uniqueness is checked here.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"
#include "online_index.h"

#include "access/genam.h"
#include "access/multixact.h"
#include "access/tsmapi.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/storage.h"
#include "catalog/storage_xlog.h"
#include "commands/progress.h"
#include "commands/vacuum.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "storage/read_stream.h"
#include "storage/smgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define SAMPLE_ROWS_PER_BLOCK 64

static const TableAmRoutine table_methods;

static inline Bytes
as_bytes(StringInfo s)
{
	Bytes		b = {(const uint8 *) s->data, (uint32) s->len};

	return b;
}

/* Buffers reused from row to row; no row outlives the next one in them. */
static StringInfo
scratch(int which)
{
	static StringInfoData buffers[4];
	StringInfo	buf = &buffers[which];

	if (buf->data == NULL || buf->maxlen > 16 * 1024 * 1024)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		if (buf->data)
			pfree(buf->data);
		initStringInfo(buf);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(buf);
	return buf;
}

#define SCRATCH_KEY		0
#define SCRATCH_ROW		1
#define SCRATCH_OLD		2
#define SCRATCH_OLDKEY	3

static const TupleTableSlotOps *
slot_callbacks(Relation rel)
{
	return &TTSOpsAustralis;
}

/* Put a found entry into a slot, with its TID. */
static void
store_entry(Relation rel, const KeyEntry *entry, TupleTableSlot *slot)
{
	au_row_store(entry->value, slot, entry->version != NULL);
	au_tid_assign(&slot->tts_tid, entry->key, entry->version, au_tid_keep);
	slot->tts_tableOid = RelationGetRelid(rel);
}

/* ------------------------------------------------------------------ scans */

#define PARALLEL_PARTS 64
#define PARALLEL_KEY_BYTES 2048

/*
 * A scan by several processes: each takes the next part of the table until
 * there is none.  In shared memory, as what PostgreSQL puts behind it.
 */
typedef struct ParallelScan
{
	ParallelTableScanDescData base;
	pg_atomic_uint32 next;
	uint32		nparts;
	uint8		keys[PARALLEL_KEY_BYTES];	/* where parts but the first begin: length (a byte) and bytes of each */
} ParallelScan;

typedef struct ScanDesc
{
	TableScanDescData base;
	KeyScan    *scan;			/* NULL: of no part yet, or no more */
	bool		started;
	bool		unnamed;		/* its rows need no TIDs */
	const PushDown *push;		/* for storage, or NULL */
	Bytes		filter;			/* made of it for this scan or rescan */
	TupleTableSlot *blank;		/* holds the last row, of which only is known that it is there */
	ReadCounts	reads;			/* rescans included */
	uint64		counted_bytes;	/* of them, in pg_statio */
	/* ANALYZE */
	bool		analyze_started;
	double		row_weight;
	/* TABLESAMPLE */
	BlockNumber sample_block;	/* block being sampled */
	BlockNumber sample_position;	/* block that the scan is in */
	OffsetNumber sample_offset; /* last row of the block seen */
	bool		sample_started;
	bool		sample_end;
} ScanDesc;

static void
relation_range(Relation rel, StringInfo lo, StringInfo hi)
{
	initStringInfoExt(lo, 16);
	initStringInfoExt(hi, 16);
	au_key_append_relid(lo, au_relid(rel));
	au_key_append_relid(hi, au_relid(rel) + 1);
}

static Size
parallelscan_estimate(Relation rel)
{
	return MAXALIGN(sizeof(ParallelScan));
}

static Size
parallelscan_initialize(Relation rel, ParallelTableScanDesc pscan)
{
	ParallelScan *shared = (ParallelScan *) pscan;
	StringInfoData lo,
				hi,
				keys;
	int			used = 0;

	shared->base.phs_locator = rel->rd_locator;
	shared->base.phs_syncscan = false;
	pg_atomic_init_u32(&shared->next, 0);
	shared->nparts = 1;
	relation_range(rel, &lo, &hi);
	initStringInfo(&keys);
	au_read_split(as_bytes(&lo), as_bytes(&hi), PARALLEL_PARTS - 1, &keys);
	while (used < keys.len && used + 1 + (uint8) keys.data[used] <= PARALLEL_KEY_BYTES)
	{
		used += 1 + (uint8) keys.data[used];
		shared->nparts++;
	}
	memcpy(shared->keys, keys.data, used);
	pfree(lo.data);
	pfree(hi.data);
	pfree(keys.data);
	return MAXALIGN(sizeof(ParallelScan));
}

static void
parallelscan_reinitialize(Relation rel, ParallelTableScanDesc pscan)
{
	pg_atomic_write_u32(&((ParallelScan *) pscan)->next, 0);
}

/* Whoever asks for the first row may do so in a context that is reset before the second. */
static void
read_range(ScanDesc *scan, Bytes lo, Bytes hi)
{
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(scan));

	scan->scan = au_key_scan_begin(lo, hi, au_snapshot_curcid(scan->base.rs_snapshot));
	au_key_scan_count(scan->scan, &scan->reads);
	if (scan->push && scan->filter.data == NULL)
	{
		bool		whole;

		scan->filter = au_push_program(scan->push, &whole);
		if (whole && scan->push->limit > 0)
			au_key_scan_hint(scan->scan, scan->push->limit);
	}
	au_key_scan_filter(scan->scan, scan->filter);
	MemoryContextSwitchTo(old);
}

/* Begin with the next part that nobody has taken; false: there is none. */
static bool
take_part(ScanDesc *scan)
{
	ParallelScan *shared = (ParallelScan *) scan->base.rs_parallel;
	uint32		part = pg_atomic_fetch_add_u32(&shared->next, 1);
	const uint8 *key = shared->keys;
	StringInfoData lo,
				hi;

	if (part >= shared->nparts)
	{
		pg_atomic_fetch_sub_u32(&shared->next, 1);	/* it must not overflow */
		return false;
	}
	relation_range(scan->base.rs_rd, &lo, &hi);
	for (uint32 i = 1; i < part; i++)
		key += 1 + key[0];
	if (part > 0)
	{
		resetStringInfo(&lo);
		appendBinaryStringInfo(&lo, key + 1, key[0]);
		key += 1 + key[0];
	}
	if (part + 1 < shared->nparts)
	{
		resetStringInfo(&hi);
		appendBinaryStringInfo(&hi, key + 1, key[0]);
	}
	read_range(scan, as_bytes(&lo), as_bytes(&hi));
	pfree(lo.data);
	pfree(hi.data);
	return true;
}

static void
end_scan(ScanDesc *scan)
{
	if (scan->scan)
		au_key_scan_end(scan->scan);
	scan->scan = NULL;
	scan->blank = NULL;
}

/* Begin to read the whole table, or what the slot knows to be enough of it. */
static void
start_scan(ScanDesc *scan, const TupleTableSlot *slot)
{
	const AustralisTupleTableSlot *aslot = (const AustralisTupleTableSlot *) slot;

	scan->started = true;
	scan->push = slot != NULL && slot->tts_ops == &TTSOpsAustralis ? aslot->push : NULL;
	if (scan->base.rs_parallel)
		return;					/* see take_part() */
	if (slot != NULL && slot->tts_ops == &TTSOpsAustralis && aslot->only_from.len > 0)
	{
		au_note_read_range(aslot->only_from, aslot->only_to);
		read_range(scan, aslot->only_from, aslot->only_to);
	}
	else
	{
		StringInfoData lo,
					hi;

		relation_range(scan->base.rs_rd, &lo, &hi);
		au_note_read_range(as_bytes(&lo), as_bytes(&hi));
		read_range(scan, as_bytes(&lo), as_bytes(&hi));
		pfree(lo.data);
		pfree(hi.data);
	}
}

static TableScanDesc
scan_begin(Relation rel, Snapshot snapshot, int nkeys, struct ScanKeyData *key,
		   ParallelTableScanDesc pscan, uint32 flags)
{
	ScanDesc   *scan = palloc0(sizeof(ScanDesc));

	au_check_relation_not_ahead(rel);
	RelationIncrementReferenceCount(rel);
	scan->base.rs_rd = rel;
	scan->base.rs_snapshot = snapshot;
	scan->base.rs_nkeys = nkeys;
	scan->base.rs_flags = flags;
	scan->base.rs_parallel = pscan;
	if (flags & (SO_TYPE_SEQSCAN | SO_TYPE_SAMPLESCAN))
		pgstat_count_heap_scan(rel);
	if (flags & SO_TYPE_ANALYZE)
		au_statistics_note(rel);
	scan->unnamed = au_tid_unnamed && (flags & SO_TYPE_SEQSCAN) != 0;
	/* a sequential scan begins with its first row: the slot for it may say that less has to be read */
	if (!(flags & SO_TYPE_SEQSCAN))
		start_scan(scan, NULL);
	return &scan->base;
}

static void
scan_end(TableScanDesc sscan)
{
	ScanDesc   *scan = (ScanDesc *) sscan;

	au_count_pages(sscan->rs_rd, &scan->reads, &scan->counted_bytes);
	end_scan(scan);
	if (scan->filter.data)
		pfree((void *) scan->filter.data);
	RelationDecrementReferenceCount(sscan->rs_rd);
	if (sscan->rs_flags & SO_TEMP_SNAPSHOT)
		UnregisterSnapshot(sscan->rs_snapshot);
	pfree(scan);
}

static void
scan_rescan(TableScanDesc sscan, struct ScanKeyData *key, bool set_params,
			bool allow_strat, bool allow_sync, bool allow_pagemode)
{
	ScanDesc   *scan = (ScanDesc *) sscan;

	end_scan(scan);
	scan->started = false;
	if (scan->filter.data)
		pfree((void *) scan->filter.data);
	scan->filter.data = NULL;
	if (!(sscan->rs_flags & SO_TYPE_SEQSCAN))
		start_scan(scan, NULL);
	scan->sample_block = scan->sample_position = 0;
	scan->sample_offset = InvalidOffsetNumber;
	scan->sample_started = false;
	scan->sample_end = false;
	if (sscan->rs_flags & SO_TYPE_SEQSCAN)
		pgstat_count_heap_scan(sscan->rs_rd);
}

/* The next row of a table, or of a part of it. */
static inline bool
next_row(ScanDesc *scan, ScanDirection direction, TupleTableSlot *slot)
{
	KeyEntry	entry;
	bool		in_place = scan->unnamed && au_wb_is_empty() && ScanDirectionIsForward(direction) &&
		!au_key_scan_backward(scan->scan);

	if (in_place && slot->tts_ops == &TTSOpsAustralis)
		au_key_scan_cut(scan->scan, ((AustralisTupleTableSlot *) slot)->read_bytes);
	if (!(in_place ? au_key_scan_next_stored(scan->scan, &entry) : au_key_scan_next(scan->scan, direction, &entry)))
		return false;
	if (in_place)
	{
		if (entry.value.data == NULL)
		{
			au_row_store_blank(slot);
			scan->blank = slot;
		}
		else
			au_row_store_in_place(entry.value, slot);
		ItemPointerSetInvalid(&slot->tts_tid);
	}
	else
		store_entry(scan->base.rs_rd, &entry, slot);
	pgstat_count_heap_getnext(scan->base.rs_rd);
	return true;
}

static bool
scan_getnextslot(TableScanDesc sscan, ScanDirection direction, TupleTableSlot *slot)
{
	ScanDesc   *scan = (ScanDesc *) sscan;

	if (scan->blank == slot && !TTS_EMPTY(slot) && ScanDirectionIsForward(direction) &&
		au_key_scan_next_bare(scan->scan))
	{
		pgstat_count_heap_getnext(sscan->rs_rd);
		return true;
	}
	scan->blank = NULL;
	if (unlikely(!scan->started))
		start_scan(scan, slot);
	if (likely(scan->scan != NULL) && next_row(scan, direction, slot))
		return true;
	if (sscan->rs_parallel)
	{
		end_scan(scan);
		while (take_part(scan))
		{
			if (next_row(scan, direction, slot))
				return true;
			end_scan(scan);
		}
	}
	ExecClearTuple(slot);
	return false;
}

/*
 * For pg_statio: what was read since counted_bytes, as pages, which were not
 * read from disk as far as we know.
 */
void
au_count_pages(Relation rel, const ReadCounts *reads, uint64 *counted_bytes)
{
	uint64		pages = (reads->bytes - *counted_bytes + BLCKSZ - 1) / BLCKSZ;

	*counted_bytes = reads->bytes;
	if (pages > 0 && pgstat_should_count_relation(rel))
	{
		rel->pgstat_info->counts.blocks_fetched += pages;
		rel->pgstat_info->counts.blocks_hit += pages;
	}
}

void
au_table_scan_reads(TableScanDesc scan, ReadCounts *total)
{
	const ReadCounts *reads = &((ScanDesc *) scan)->reads;

	total->trips += reads->trips;
	total->rows += reads->rows;
	total->bytes += reads->bytes;
}

/* ------------------------------------------------------- look-ups by TID */

typedef struct IndexFetch
{
	IndexFetchTableData base;
	ReadCounts	reads;
	uint64		counted_bytes;
} IndexFetch;

static IndexFetchTableData *
index_fetch_begin(Relation rel)
{
	IndexFetch *fetch = palloc0(sizeof(IndexFetch));

	au_check_relation_not_ahead(rel);
	fetch->base.rel = rel;
	return &fetch->base;
}

void
au_index_fetch_reads(IndexFetchTableData *fetch, ReadCounts *total)
{
	const ReadCounts *reads = &((IndexFetch *) fetch)->reads;

	total->trips += reads->trips;
	total->rows += reads->rows;
	total->bytes += reads->bytes;
}

static void
index_fetch_reset(IndexFetchTableData *fetch)
{
}

static void
index_fetch_end(IndexFetchTableData *fetch)
{
	au_count_pages(fetch->rel, &((IndexFetch *) fetch)->reads, &((IndexFetch *) fetch)->counted_bytes);
	pfree(fetch);
}

/* reads that belong to no scan */
static ReadCounts uncounted;

/* Fill the slot with exactly the version that a TID names. */
static bool
fetch_target(Relation rel, ItemPointer tid, const TidTarget *target, TupleTableSlot *slot, ReadCounts *reads)
{
	Bytes		image;
	ItemPointerData saved = *tid;	/* tid may be the slot's */

	if (target->version)
	{
		if (target->version->kind != WB_PUT)
			return false;
		image.data = WB_VALUE(target->version);
		image.len = target->version->value_len;
	}
	else
	{
		StringInfo	buf = scratch(SCRATCH_OLD);
		KeyEntry	entry;

		reads->trips++;
		if (!au_read_key(target->key, au_read_tau(au_relid(rel), InvalidCommandId), buf))
			return false;
		reads->rows++;
		reads->bytes += buf->len;
		(void) au_batch_entry(buf->data, &entry);
		image = entry.value;
	}
	au_row_store(image, slot, target->version != NULL);
	slot->tts_tid = saved;
	slot->tts_tableOid = RelationGetRelid(rel);
	return true;
}

static bool
index_fetch_tuple(IndexFetchTableData *fetch, ItemPointer tid, Snapshot snapshot,
				  TupleTableSlot *slot, bool *call_again, bool *all_dead)
{
	TidTarget	target;

	*call_again = false;
	if (all_dead)
		*all_dead = false;
	if (snapshot && snapshot->snapshot_type == SNAPSHOT_DIRTY)
	{
		snapshot->xmin = snapshot->xmax = InvalidTransactionId;
		snapshot->speculativeToken = 0;
	}
	if (au_fetched_row.valid && ItemPointerEquals(&au_fetched_row.tid, tid))
	{
		ItemPointerData saved = *tid;

		au_row_store(au_fetched_row.entry.value, slot, au_fetched_row.entry.version != NULL);
		slot->tts_tid = saved;
		slot->tts_tableOid = RelationGetRelid(fetch->rel);
		return true;
	}
	if (!au_tid_lookup(tid, &target))
		return false;
	return fetch_target(fetch->rel, tid, &target, slot, &((IndexFetch *) fetch)->reads);
}

static bool
tuple_fetch_row_version(Relation rel, ItemPointer tid, Snapshot snapshot, TupleTableSlot *slot)
{
	TidTarget	target;

	if (!au_tid_lookup(tid, &target))
		return false;
	if (snapshot->snapshot_type == SNAPSHOT_MVCC || snapshot->snapshot_type == SNAPSHOT_SELF)
	{
		/* is it the version that the snapshot sees? */
		WbVersion  *seen = au_wb_lookup(target.key, au_snapshot_curcid(snapshot));

		if (seen != target.version)
			return false;
	}
	return fetch_target(rel, tid, &target, slot, &uncounted);
}

static bool
tuple_tid_valid(TableScanDesc scan, ItemPointer tid)
{
	TidTarget	target;

	return au_tid_lookup(tid, &target);
}

static void
tuple_get_latest_tid(TableScanDesc sscan, ItemPointer tid)
{
	TidTarget	target;
	CommandId	curcid = au_snapshot_curcid(sscan->rs_snapshot);
	WbVersion  *from;
	WbVersion  *latest;
	Bytes		key;

	if (!au_tid_lookup(tid, &target))
		return;
	from = target.version;
	key = target.key;
	for (;;)
	{
		WbVersion  *deleted = NULL;

		/* the first deletion after it ended its life under this key */
		latest = au_wb_lookup(key, curcid);
		for (WbVersion *v = latest; v != NULL && v != from; v = v->older)
		{
			if (v->kind == WB_DELETE)
				deleted = v;
		}
		if (deleted == NULL)
			break;
		if (!deleted->moved)
			return;				/* a row that came later is another one */
		from = WB_MOVED_TO(deleted);
		key = from->entry->key;
	}
	if (latest != NULL && latest != target.version)
		au_tid_assign(tid, latest->entry->key, latest, true);
}

static bool
tuple_satisfies_snapshot(Relation rel, TupleTableSlot *slot, Snapshot snapshot)
{
	TidTarget	target;

	/* a scan only ever shows what its snapshot sees */
	if (snapshot->snapshot_type == SNAPSHOT_MVCC || !au_tid_lookup(&slot->tts_tid, &target))
		return true;

	/* SnapshotSelf: foreign keys ask whether a version is still the newest */
	return au_wb_lookup(target.key, InvalidCommandId) == target.version;
}

static TransactionId
index_delete_tuples(Relation rel, TM_IndexDeleteOp *delstate)
{
	elog(ERROR, "index entries are never cleaned up here");
	return InvalidTransactionId;
}

/* ----------------------------------------------------------------- writes */

static inline bool
has_other_indexes(Relation rel, const TableLayout *layout)
{
	List	   *indexes;
	int			n;
	/* opening catalogs may bring an invalidation, and free the layout */
	Oid			primary = layout->has_primary ? layout->index_oid : InvalidOid;

	if (!rel->rd_rel->relhasindex)
		return false;
	indexes = RelationGetIndexList(rel);
	n = list_length(indexes);
	if (n == 1 && linitial_oid(indexes) == primary)
		n = 0;
	list_free(indexes);
	return n > 0;
}

/* 23505 for the primary key that organises rel, worded as btree's. */
pg_noreturn static void
report_duplicate(Relation rel, const TableLayout *layout, TupleTableSlot *slot)
{
	Relation	index = index_open(layout->index_oid, NoLock);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	char	   *description;

	for (int i = 0; i < layout->ncolumns; i++)
		values[i] = slot_getattr(slot, layout->attnums[i], &isnull[i]);
	description = BuildIndexValueDescription(index, values, isnull);
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("duplicate key value violates unique constraint \"%s\"",
					RelationGetRelationName(index)),
			 description ? errdetail("Key %s already exists.", description) : 0,
			 errtableconstraint(rel, RelationGetRelationName(index))));
}

/*
 * Is a row with this key there?  Three answers come without a look-up in
 * storage: the key is in the write buffer; the storage id is this
 * transaction's and nothing of it has been ingested; or the key lies behind
 * the last key that storage had at tau_start, which after some rows of a load
 * in key order is worth one backward read to know.
 */
#define LOOKUPS_BEFORE_LAST_KEY 8

static bool
key_exists(Relation rel, Bytes key)
{
	static uint64 known_serial = 0;
	static RelId known_relid = 0;
	static int	lookups = 0;
	static bool have_last = false;
	static StringInfoData last = {0};
	RelId		relid = au_relid(rel);
	KeyEntry	entry;
	WbVersion  *v = au_wb_lookup(key, InvalidCommandId);

	if (v != NULL)
		return v->kind == WB_PUT;
	if (au_has_ingested(relid))
		return !au_beyond_ingested(relid, key) && au_key_lookup(key, InvalidCommandId, &entry);
	if (au_storage_unpublished(rel))
		return false;

	if (known_serial != au_transaction_serial() || known_relid != relid)
	{
		known_serial = au_transaction_serial();
		known_relid = relid;
		lookups = 0;
		have_last = false;
	}
	if (have_last && au_compare_bytes(key, as_bytes(&last)) > 0)
		return false;
	if (!have_last && ++lookups == LOOKUPS_BEFORE_LAST_KEY)
	{
		StringInfoData lo,
					hi,
					batch;
		bool		more;
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		if (last.data == NULL)
			initStringInfo(&last);
		MemoryContextSwitchTo(old);
		resetStringInfo(&last);
		relation_range(rel, &lo, &hi);
		initStringInfo(&batch);
		au_read_range(as_bytes(&lo), as_bytes(&hi), true, au_read_tau(relid, InvalidCommandId), 1, 1, &batch, &more);
		if (batch.len > 0)
		{
			KeyEntry	entry;

			(void) au_batch_entry(batch.data, &entry);
			appendBinaryStringInfo(&last, entry.key.data, entry.key.len);
		}
		have_last = true;
		pfree(batch.data);
		pfree(lo.data);
		pfree(hi.data);
		if (au_compare_bytes(key, as_bytes(&last)) > 0)
			return false;
	}
	return au_key_lookup(key, InvalidCommandId, &entry);
}

/* System attributes of a row version just written. */
static void
mark_written(TupleTableSlot *slot, WbVersion *version)
{
	AustralisTupleTableSlot *aslot = (AustralisTupleTableSlot *) slot;

	if (slot->tts_ops != &TTSOpsAustralis)
		return;
	aslot->xmin = au_xmin();
	aslot->xmax = InvalidTransactionId;
	aslot->own = true;
	aslot->show_own_xid = false;

	/*
	 * A version made from a row that this transaction had locked carries the
	 * locker: people tell INSERT from UPDATE in ON CONFLICT by xmax = 0.
	 */
	if (version->was_locked)
		aslot->xmax = aslot->xmin;
}

/* Does anything look this relation's new rows up by TID later? */
static inline bool
tids_needed(Relation rel)
{
	return rel->trigdesc != NULL || au_tid_keep_inserted;
}

/*
 * Write the row, or return false if its key is there.
 */
static bool
insert_row(Relation rel, TupleTableSlot *slot, CommandId cid)
{
	const TableLayout *layout = au_table_layout_decide(rel);
	StringInfo	key = scratch(SCRATCH_KEY);
	StringInfo	row = scratch(SCRATCH_ROW);
	WbVersion  *version;
	bool		keyed = !layout->hidden && layout->has_primary;

	au_note_relation(rel);
	slot_getallattrs(slot);
	au_table_key(key, rel, layout, slot);
	if (keyed && key_exists(rel, as_bytes(key)))
	{
		/* the error will say that the row is there: a read, if it is caught */
		au_note_read_key(as_bytes(key));
		return false;
	}
	au_row_encode(row, RelationGetDescr(rel), slot->tts_values, slot->tts_isnull, au_xmin());

	/*
	 * Nobody else can know a hidden key before we commit: nothing to check
	 * and nothing to record.  But among several adjudicators the owner hears
	 * of a row only by its key: it has to know that the table was written, for
	 * schema changes (rule A5) and SERIALIZABLE readers.
	 */
	version = au_wb_put(as_bytes(key), as_bytes(row), cid, LockTupleExclusive, !keyed && !au_behind_gateway());
	au_tid_assign(&slot->tts_tid, as_bytes(key), version, tids_needed(rel));
	slot->tts_tableOid = RelationGetRelid(rel);
	mark_written(slot, version);
	return true;
}

static void
tuple_insert(Relation rel, TupleTableSlot *slot, CommandId cid, int options,
			 struct BulkInsertStateData *bistate)
{
	au_check_relation_not_ahead(rel);
	if (!insert_row(rel, slot, cid))
		report_duplicate(rel, au_table_layout(rel), slot);
	pgstat_count_heap_insert(rel, 1);
	au_sequences_inserted(rel);
	au_flush_if_large(rel);
}

static void
tuple_insert_speculative(Relation rel, TupleTableSlot *slot, CommandId cid, int options,
						 struct BulkInsertStateData *bistate, uint32 specToken)
{
	au_check_relation_not_ahead(rel);
	if (!insert_row(rel, slot, cid))
		report_duplicate(rel, au_table_layout(rel), slot);
	pgstat_count_heap_insert(rel, 1);
}

static void
tuple_complete_speculative(Relation rel, TupleTableSlot *slot, uint32 specToken, bool succeeded)
{
	TidTarget	target;

	if (succeeded)
		return;
	/* an arbiter found a duplicate after all: the row was never there */
	if (!au_tid_lookup(&slot->tts_tid, &target) || target.version == NULL)
		elog(ERROR, "speculatively inserted row is gone");
	(void) au_wb_delete(target.key, target.version->cmin, LockTupleExclusive, false);
}

/*
 * The row of a batch whose key was there.  COPY knows whose line it was only
 * while it writes index entries, row by row, so the row gets a TID that names
 * nothing, and the error is raised when its entries are asked for.
 */
static struct
{
	TupleTableSlot *slot;
	Oid			relid;
	uint64		serial;
}			refused = {0};

void
au_report_refused(Relation rel)
{
	TupleTableSlot *slot = refused.slot;

	refused.slot = NULL;
	if (slot == NULL || refused.relid != RelationGetRelid(rel) || refused.serial != au_transaction_serial())
		elog(ERROR, "no row of table \"%s\" was refused", RelationGetRelationName(rel));
	report_duplicate(rel, au_table_layout(rel), slot);
}

static void
multi_insert(Relation rel, TupleTableSlot **slots, int nslots, CommandId cid, int options,
			 struct BulkInsertStateData *bistate)
{
	au_check_relation_not_ahead(rel);
	refused.slot = NULL;
	for (int i = 0; i < nslots; i++)
	{
		if (!insert_row(rel, slots[i], cid))
		{
			ItemPointerSet(&slots[i]->tts_tid, 0, AU_REFUSED_OFFSET);
			refused.slot = slots[i];
			refused.relid = RelationGetRelid(rel);
			refused.serial = au_transaction_serial();
			return;
		}
	}
	pgstat_count_heap_insert(rel, nslots);
	au_sequences_inserted(rel);

	/*
	 * COPY writes the index entries after this call and fires AFTER triggers
	 * at the end: names stay valid across a flush, since they hold keys.
	 */
	au_flush_if_large(rel);
}

/*
 * What the target of an UPDATE, DELETE or lock is for this command: TM_Ok, or
 * touched by this transaction since the snapshot.
 */
static TM_Result
check_target(Relation rel, ItemPointer tid, CommandId cid, TidTarget *target, TM_FailureData *tmfd)
{
	WbVersion  *newest;

	if (!au_tid_lookup(tid, target))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the row version named by this ctid is not known any more"),
				 errdetail("A statement can modify or lock rows out of the %d million that it saw last.", 8)));
	newest = au_wb_lookup(target->key, InvalidCommandId);
	if (newest != target->version)
	{
		/* modified by this transaction since */
		tmfd->ctid = *tid;
		tmfd->cmax = newest ? newest->cmin : InvalidCommandId;
		if (newest == NULL || newest->cmin < cid)
			return TM_Invisible;
		/* MERGE asks whether it was us */
		tmfd->xmax = GetCurrentTransactionId();
		return TM_SelfModified;
	}
	if (newest && newest->cmin >= cid)
		return TM_Invisible;	/* made by this very command */
	return TM_Ok;
}

/* The old version, for index maintenance. */
static void
fetch_old(Relation rel, ItemPointer tid, const TidTarget *target, TupleTableSlot *slot)
{
	if (!fetch_target(rel, tid, target, slot, &uncounted))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("row of table \"%s\" is missing from storage", RelationGetRelationName(rel))));
}

static TM_Result
tuple_delete(Relation rel, ItemPointer tid, CommandId cid, Snapshot snapshot, Snapshot crosscheck,
			 bool wait, TM_FailureData *tmfd, bool changingPart)
{
	TidTarget	target;
	TM_Result	result;
	StringInfo	key;
	const TableLayout *layout;

	au_check_relation_not_ahead(rel);
	result = check_target(rel, tid, cid, &target, tmfd);
	if (result != TM_Ok)
		return result;
	au_note_relation(rel);
	layout = au_table_layout(rel);
	key = scratch(SCRATCH_OLDKEY);
	appendBinaryStringInfo(key, target.key.data, target.key.len);
	target.key = as_bytes(key);
	if (has_other_indexes(rel, layout))
	{
		TupleTableSlot *old = table_slot_create(rel, NULL);

		fetch_old(rel, tid, &target, old);
		au_index_delete_entries(rel, old, as_bytes(key), cid);
		ExecDropSingleTupleTableSlot(old);
	}
	(void) au_wb_delete(as_bytes(key), cid, LockTupleExclusive, false);
	pgstat_count_heap_delete(rel);
	return TM_Ok;
}

/* Do two versions differ in any of these attributes? */
static bool
attributes_differ(Relation rel, Bitmapset *attrs, TupleTableSlot *a, TupleTableSlot *b)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			i = -1;

	while ((i = bms_next_member(attrs, i)) >= 0)
	{
		AttrNumber	attno = i + FirstLowInvalidHeapAttributeNumber;
		CompactAttribute *att;
		Datum		va,
					vb;
		bool		na,
					nb;

		if (attno == 0)
			return true;		/* whole-row reference: assume it does */
		if (attno < 0)
		{
			if (attno != TableOidAttributeNumber)
				return true;
			continue;
		}
		att = TupleDescCompactAttr(desc, attno - 1);
		va = slot_getattr(a, attno, &na);
		vb = slot_getattr(b, attno, &nb);
		if (na != nb)
			return true;
		if (!na && !datum_image_eq(va, vb, att->attbyval, att->attlen))
			return true;
	}
	return false;
}

static TM_Result
tuple_update(Relation rel, ItemPointer otid, TupleTableSlot *slot, CommandId cid, Snapshot snapshot,
			 Snapshot crosscheck, bool wait, TM_FailureData *tmfd, LockTupleMode *lockmode,
			 TU_UpdateIndexes *update_indexes)
{
	TidTarget	target;
	TM_Result	result;
	const TableLayout *layout;
	StringInfo	key,
				oldkey,
				row;
	WbVersion  *version;
	bool		moved = false;
	bool		other_indexes;
	bool		key_columns = false;
	LockTupleMode mode;

	au_check_relation_not_ahead(rel);
	result = check_target(rel, otid, cid, &target, tmfd);
	if (result != TM_Ok)
	{
		*lockmode = LockTupleExclusive;
		*update_indexes = TU_None;
		return result;
	}
	au_note_relation(rel);
	layout = au_table_layout(rel);
	oldkey = scratch(SCRATCH_OLDKEY);
	appendBinaryStringInfo(oldkey, target.key.data, target.key.len);
	target.key = as_bytes(oldkey);

	/* a new key only if the table is organised by columns that changed */
	key = scratch(SCRATCH_KEY);
	slot_getallattrs(slot);
	if (layout->hidden)
		appendBinaryStringInfo(key, oldkey->data, oldkey->len);
	else
	{
		au_table_key(key, rel, layout, slot);
		if (layout->has_primary)
			moved = key->len != oldkey->len || memcmp(key->data, oldkey->data, key->len) != 0;
		else
		{
			/* old columns without a primary key: the hidden part never moves */
			resetStringInfo(key);
			appendBinaryStringInfo(key, oldkey->data, oldkey->len);
		}
		if (moved && key_exists(rel, as_bytes(key)))
		{
			au_note_read_key(as_bytes(key));	/* the error says so */
			report_duplicate(rel, layout, slot);
		}
		key_columns = moved;
	}

	other_indexes = has_other_indexes(rel, layout);
	*update_indexes = TU_None;
	if (other_indexes)
	{
		TupleTableSlot *old = table_slot_create(rel, NULL);
		Bitmapset  *attrs = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_HOT_BLOCKING);
		Bitmapset  *keys = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_KEY);

		fetch_old(rel, otid, &target, old);
		if (!key_columns)
			key_columns = attributes_differ(rel, keys, old, slot);
		if (moved || attributes_differ(rel, attrs, old, slot) || au_index_incomplete(rel))
		{
			au_index_delete_entries(rel, old, as_bytes(oldkey), cid);
			*update_indexes = TU_All;
		}
		bms_free(attrs);
		bms_free(keys);
		ExecDropSingleTupleTableSlot(old);
	}
	mode = key_columns ? LockTupleExclusive : LockTupleNoKeyExclusive;
	*lockmode = mode;

	row = scratch(SCRATCH_ROW);
	au_row_encode(row, RelationGetDescr(rel), slot->tts_values, slot->tts_isnull, au_xmin());
	version = au_wb_put(as_bytes(key), as_bytes(row), cid, mode, false);
	if (moved)
		au_wb_move(as_bytes(oldkey), version);
	version->replaces = !moved && target.version == NULL;
	au_tid_assign(&slot->tts_tid, as_bytes(key), version, true);
	slot->tts_tableOid = RelationGetRelid(rel);
	mark_written(slot, version);
	pgstat_count_heap_update(rel, *update_indexes == TU_None, false);
	return TM_Ok;
}

static TM_Result
tuple_lock(Relation rel, ItemPointer tid, Snapshot snapshot, TupleTableSlot *slot, CommandId cid,
		   LockTupleMode mode, LockWaitPolicy wait_policy, uint8 flags, TM_FailureData *tmfd)
{
	TidTarget	target;
	TM_Result	result;
	StringInfo	key;

	au_check_relation_not_ahead(rel);
	tmfd->traversed = false;
	result = check_target(rel, tid, cid, &target, tmfd);
	key = scratch(SCRATCH_OLDKEY);
	appendBinaryStringInfo(key, target.key.data, target.key.len);
	target.key = as_bytes(key);
	if (result == TM_Invisible && target.version != NULL)
	{
		/* ON CONFLICT asks whose row it is: show the real xid */
		if (fetch_target(rel, tid, &target, slot, &uncounted) && slot->tts_ops == &TTSOpsAustralis)
			((AustralisTupleTableSlot *) slot)->show_own_xid = true;
		return result;
	}
	if (result != TM_Ok)
		return result;
	if (!fetch_target(rel, tid, &target, slot, &uncounted))
		return TM_Deleted;
	au_note_relation(rel);
	au_wb_lock(as_bytes(key), mode);
	return TM_Ok;
}

static void
finish_bulk_insert(Relation rel, int options)
{
	/* nobody asked for its entries: the row must not get lost */
	if (refused.slot != NULL && refused.relid == RelationGetRelid(rel) &&
		refused.serial == au_transaction_serial())
		au_report_refused(rel);
}

/* -------------------------------------------------------------------- DDL */

static void
relation_set_new_filelocator(Relation rel, const RelFileLocator *newrlocator, char persistence,
							 TransactionId *freezeXid, MultiXactId *minmulti)
{
	SMgrRelation srel;

	/* no xids in our rows: nothing to freeze, ever */
	*freezeXid = InvalidTransactionId;
	*minmulti = InvalidMultiXactId;

	au_oids_check_storage(newrlocator->relNumber);

	/* PostgreSQL expects an empty file, and deletes it with the relation */
	srel = RelationCreateStorage(*newrlocator, persistence, true);
	if (persistence == RELPERSISTENCE_UNLOGGED)
		smgrcreate(srel, INIT_FORKNUM, false);
	smgrclose(srel);
}

static void
delete_all_keys(Relation rel)
{
	StringInfoData lo,
				hi;
	KeyScan    *scan;
	KeyEntry	entry;

	relation_range(rel, &lo, &hi);
	scan = au_key_scan_begin(as_bytes(&lo), as_bytes(&hi), InvalidCommandId);
	while (au_key_scan_next(scan, ForwardScanDirection, &entry))
	{
		StringInfo	key = scratch(SCRATCH_OLDKEY);

		CHECK_FOR_INTERRUPTS();
		appendBinaryStringInfo(key, entry.key.data, entry.key.len);
		(void) au_wb_delete(as_bytes(key), GetCurrentCommandId(true), LockTupleExclusive, true);
	}
	au_key_scan_end(scan);
	pfree(lo.data);
	pfree(hi.data);
}

/*
 * Only for a storage id of this subtransaction: its rows were never seen.
 * PostgreSQL empties the indexes' files itself and builds them again, on no
 * rows: that leaves entries in storage alone.
 */
static void
relation_nontransactional_truncate(Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);

	delete_all_keys(rel);
	foreach_oid(oid, indexes)
	{
		Relation	index = index_open(oid, AccessExclusiveLock);

		if (au_is_our_index(index))
			delete_all_keys(index);
		index_close(index, NoLock);
	}
	list_free(indexes);
}

static void
relation_copy_data(Relation rel, const RelFileLocator *newrlocator)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("tables of the cluster cannot be moved to another tablespace")));
}

static void
relation_copy_for_cluster(Relation OldTable, Relation NewTable, Relation OldIndex, bool use_sort,
						  TransactionId OldestXmin, TransactionId *xid_cutoff, MultiXactId *multi_cutoff,
						  double *num_tuples, double *tups_vacuumed, double *tups_recently_dead)
{
	TableScanDesc scan;
	TupleTableSlot *slot;
	TupleTableSlot *copy;

	*tups_vacuumed = 0;
	*tups_recently_dead = 0;
	if (au_table_layout(NewTable)->has_primary)
	{
		*num_tuples = au_copy_by_key(OldTable, NewTable);
		return;
	}
	scan = scan_begin(OldTable, SnapshotAny, 0, NULL, NULL, 0);
	slot = table_slot_create(OldTable, NULL);
	copy = table_slot_create(NewTable, NULL);
	*num_tuples = 0;
	while (scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(slot);
		ExecClearTuple(copy);
		memcpy(copy->tts_values, slot->tts_values, sizeof(Datum) * slot->tts_tupleDescriptor->natts);
		memcpy(copy->tts_isnull, slot->tts_isnull, sizeof(bool) * slot->tts_tupleDescriptor->natts);
		/* dropped columns take no space */
		for (int i = 0; i < slot->tts_tupleDescriptor->natts; i++)
		{
			if (TupleDescCompactAttr(slot->tts_tupleDescriptor, i)->attisdropped)
				copy->tts_isnull[i] = true;
		}
		ExecStoreVirtualTuple(copy);
		if (!insert_row(NewTable, copy, GetCurrentCommandId(true)))
			report_duplicate(NewTable, au_table_layout(NewTable), copy);
		au_flush_if_large(NewTable);
		*num_tuples += 1;
	}
	au_flush_relation(NewTable);
	ExecDropSingleTupleTableSlot(slot);
	ExecDropSingleTupleTableSlot(copy);
	scan_end(scan);
}

static void
relation_vacuum(Relation rel, struct VacuumParams *params, BufferAccessStrategy bstrategy)
{
	/* storage collects old versions by itself; keep the planner's counts fresh */
	BlockNumber pages;
	double		tuples;
	double		allvis;
	int64		rows;
	int64		bytes;
	TransactionId frozen = InvalidTransactionId;
	bool		frozen_updated,
				minmulti_updated;

	au_read_current_stats(au_relid(rel), &rows, &bytes);
	pages = RelationGetNumberOfBlocks(rel);
	tuples = (double) rows;
	allvis = pages;
	/* a rewrite leaves a relfrozenxid behind: there is nothing to freeze */
	if (TransactionIdIsNormal(rel->rd_rel->relfrozenxid))
		frozen = GetOldestNonRemovableTransactionId(rel);
	vac_update_relstats(rel, pages, tuples, (BlockNumber) allvis, 0, rel->rd_rel->relhasindex,
						frozen, InvalidMultiXactId, &frozen_updated, &minmulti_updated, false);
	pgstat_report_vacuum(RelationGetRelid(rel), rel->rd_rel->relisshared, tuples, 0, GetCurrentTimestamp());
}

/*
 * ANALYZE pulls block numbers from a stream.  We take them all at once, then
 * show every row: PostgreSQL samples by reservoir.  What it computes from the
 * share of blocks read is put right by the weight of a row.
 */
static bool
scan_analyze_next_block(TableScanDesc sscan, ReadStream *stream)
{
	ScanDesc   *scan = (ScanDesc *) sscan;
	BlockNumber sampled = 0;
	BlockNumber total;
	BufferAccessStrategy strategy;

	if (scan->analyze_started)
		return false;
	while (read_stream_next_block(stream, &strategy) != InvalidBlockNumber)
		sampled++;
	scan->analyze_started = true;
	total = RelationGetNumberOfBlocks(sscan->rs_rd);
	scan->row_weight = total > 0 ? (double) sampled / total : 1.0;
	return sampled > 0;
}

static bool
scan_analyze_next_tuple(TableScanDesc sscan, TransactionId OldestXmin, double *liverows,
						double *deadrows, TupleTableSlot *slot)
{
	ScanDesc   *scan = (ScanDesc *) sscan;

	if (!scan_getnextslot(sscan, ForwardScanDirection, slot))
		return false;
	*liverows += scan->row_weight;
	return true;
}

static double
index_build_range_scan(Relation heap, Relation index, struct IndexInfo *info, bool allow_sync,
					   bool anyvisible, bool progress, BlockNumber start_blockno, BlockNumber numblocks,
					   IndexBuildCallback callback, void *callback_state, TableScanDesc sscan)
{
	EState	   *estate = CreateExecutorState();
	ExprContext *econtext = GetPerTupleExprContext(estate);
	TupleTableSlot *slot = table_slot_create(heap, NULL);
	ExprState  *predicate;
	double		rows = 0;
	TableScanDesc scan;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	bool		kept = au_tid_keep;

	econtext->ecxt_scantuple = slot;
	predicate = ExecPrepareQual(info->ii_Predicate, estate);
	au_tid_keep = false;
	scan = scan_begin(heap, SnapshotAny, 0, NULL, NULL, 0);
	PG_TRY();
	{
		while (scan_getnextslot(scan, ForwardScanDirection, slot))
		{
			CHECK_FOR_INTERRUPTS();
			rows += 1;
			MemoryContextReset(econtext->ecxt_per_tuple_memory);
			if (predicate && !ExecQual(predicate, econtext))
				continue;
			FormIndexDatum(info, slot, estate, values, isnull);
			callback(index, &slot->tts_tid, values, isnull, true, callback_state);
			if (progress && ((int64) rows & 1023) == 0)
				pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE, (int64) rows);
		}
	}
	PG_FINALLY();
	{
		au_tid_keep = kept;
	}
	PG_END_TRY();
	scan_end(scan);
	ExecDropSingleTupleTableSlot(slot);
	FreeExecutorState(estate);
	info->ii_ExpressionsState = NIL;
	info->ii_PredicateState = NULL;
	return rows;
}

static void
index_validate_scan(Relation heap, Relation index, struct IndexInfo *info, Snapshot snapshot,
					struct ValidateIndexState *state)
{
	au_online_index_validate(heap, index, info);
}

/* --------------------------------------------------------------- estimates */

static uint64
relation_size(Relation rel, ForkNumber fork)
{
	int64		rows;
	int64		bytes;

	if (fork != MAIN_FORKNUM && fork != InvalidForkNumber)
		return 0;
	au_read_current_stats(au_relid(rel), &rows, &bytes);
	au_wb_estimate(au_relid(rel), &rows, &bytes);
	/* whole pages, as everything that asks expects */
	return (uint64) (bytes + BLCKSZ - 1) / BLCKSZ * BLCKSZ;
}

static bool
relation_needs_toast_table(Relation rel)
{
	return false;
}

static Oid
relation_toast_am(Relation rel)
{
	return HEAP_TABLE_AM_OID;
}

static void
relation_estimate_size(Relation rel, int32 *attr_widths, BlockNumber *pages, double *tuples, double *allvisfrac)
{
	/* as for a heap, so that plans come out alike */
	table_block_relation_estimate_size(rel, attr_widths, pages, tuples, allvisfrac,
									   MAXALIGN(SizeofHeapTupleHeader) + sizeof(ItemIdData),
									   BLCKSZ - SizeOfPageHeaderData);

	/*
	 * Never analyzed, a heap's rows are guessed from its pages.  Ours may hold
	 * long values, which a heap has elsewhere, and know no fillfactor; but
	 * storage knows how many rows there are.  The guess for small tables stays.
	 */
	if (rel->rd_rel->reltuples < 0 && *pages > 10)
	{
		int64		rows;
		int64		bytes;

		au_read_stats(au_relid(rel), &rows, &bytes);
		au_wb_estimate(au_relid(rel), &rows, &bytes);
		*tuples = (double) Max(rows, 0);
	}
	*allvisfrac = 1.0;
}

/* ------------------------------------------------------------ TABLESAMPLE */

static bool
scan_sample_next_block(TableScanDesc sscan, struct SampleScanState *state)
{
	ScanDesc   *scan = (ScanDesc *) sscan;
	TsmRoutine *tsm = state->tsmroutine;
	int64		rows;
	int64		bytes;
	BlockNumber nblocks;
	BlockNumber block;

	au_read_current_stats(au_relid(sscan->rs_rd), &rows, &bytes);
	nblocks = (BlockNumber) (rows / SAMPLE_ROWS_PER_BLOCK + 1);
	if (tsm->NextSampleBlock)
	{
		block = tsm->NextSampleBlock(state, nblocks);
		if (!BlockNumberIsValid(block))
			return false;
	}
	else
	{
		if (scan->sample_end)
			return false;
		block = scan->sample_started ? scan->sample_block + 1 : 0;
	}
	CHECK_FOR_INTERRUPTS();
	scan->sample_started = true;
	scan->sample_block = block;
	/* a "block" is a run of rows in key order; skip those before it */
	while (scan->sample_position < block)
	{
		KeyEntry	entry;

		for (int i = scan->sample_offset; i < SAMPLE_ROWS_PER_BLOCK; i++)
		{
			if (!au_key_scan_next(scan->scan, ForwardScanDirection, &entry))
			{
				scan->sample_end = true;
				return false;
			}
		}
		CHECK_FOR_INTERRUPTS();
		scan->sample_position++;
		scan->sample_offset = 0;
	}
	return true;
}

static bool
scan_sample_next_tuple(TableScanDesc sscan, struct SampleScanState *state, TupleTableSlot *slot)
{
	ScanDesc   *scan = (ScanDesc *) sscan;
	TsmRoutine *tsm = state->tsmroutine;

	for (;;)
	{
		OffsetNumber offset = tsm->NextSampleTuple(state, scan->sample_block, SAMPLE_ROWS_PER_BLOCK);
		KeyEntry	entry;
		bool		found = false;

		if (!OffsetNumberIsValid(offset))
		{
			ExecClearTuple(slot);
			return false;
		}
		while (scan->sample_offset < offset)
		{
			if (!au_key_scan_next(scan->scan, ForwardScanDirection, &entry))
			{
				scan->sample_end = true;
				ExecClearTuple(slot);
				return false;
			}
			scan->sample_offset++;
			found = true;
		}
		if (found)
		{
			store_entry(sscan->rs_rd, &entry, slot);
			pgstat_count_heap_getnext(sscan->rs_rd);
			return true;
		}
	}
}

static const TableAmRoutine table_methods = {
	.type = T_TableAmRoutine,

	.slot_callbacks = slot_callbacks,

	.scan_begin = scan_begin,
	.scan_end = scan_end,
	.scan_rescan = scan_rescan,
	.scan_getnextslot = scan_getnextslot,

	.parallelscan_estimate = parallelscan_estimate,
	.parallelscan_initialize = parallelscan_initialize,
	.parallelscan_reinitialize = parallelscan_reinitialize,

	.index_fetch_begin = index_fetch_begin,
	.index_fetch_reset = index_fetch_reset,
	.index_fetch_end = index_fetch_end,
	.index_fetch_tuple = index_fetch_tuple,

	.tuple_fetch_row_version = tuple_fetch_row_version,
	.tuple_tid_valid = tuple_tid_valid,
	.tuple_get_latest_tid = tuple_get_latest_tid,
	.tuple_satisfies_snapshot = tuple_satisfies_snapshot,
	.index_delete_tuples = index_delete_tuples,

	.tuple_insert = tuple_insert,
	.tuple_insert_speculative = tuple_insert_speculative,
	.tuple_complete_speculative = tuple_complete_speculative,
	.multi_insert = multi_insert,
	.tuple_delete = tuple_delete,
	.tuple_update = tuple_update,
	.tuple_lock = tuple_lock,
	.finish_bulk_insert = finish_bulk_insert,

	.relation_set_new_filelocator = relation_set_new_filelocator,
	.relation_nontransactional_truncate = relation_nontransactional_truncate,
	.relation_copy_data = relation_copy_data,
	.relation_copy_for_cluster = relation_copy_for_cluster,
	.relation_vacuum = relation_vacuum,
	.scan_analyze_next_block = scan_analyze_next_block,
	.scan_analyze_next_tuple = scan_analyze_next_tuple,
	.index_build_range_scan = index_build_range_scan,
	.index_validate_scan = index_validate_scan,

	.relation_size = relation_size,
	.relation_needs_toast_table = relation_needs_toast_table,
	.relation_toast_am = relation_toast_am,

	.relation_estimate_size = relation_estimate_size,

	/* no scan_bitmap_next_tuple: the planner makes no bitmap plans */
	.scan_sample_next_block = scan_sample_next_block,
	.scan_sample_next_tuple = scan_sample_next_tuple,
};

PG_FUNCTION_INFO_V1(au_table_handler);

Datum
au_table_handler(PG_FUNCTION_ARGS)
{
	PG_RETURN_POINTER(&table_methods);
}
