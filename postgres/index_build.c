/*-------------------------------------------------------------------------
 *
 * index_build.c
 *	  CREATE INDEX, REINDEX, and what ALTER TABLE makes of them, in one
 *	  transaction.  (online_index.c builds while rows are written.)
 *
 * Rows are read through the table access method, their entries sorted on
 * disk within maintenance_work_mem, and written in key order.  A new index
 * has a new storage id that nobody else can see before the DDL commits, so
 * the entries go to storage in chunks past the adjudicator (rule Q8); what an
 * aborted build leaves is garbage of that storage id.
 *
 * Must hold: nothing is kept in memory but one chunk and what the sort
 * bounds; duplicates of a unique index are found after the sort, where equal
 * keys are neighbours.  If storage fails in between, au_ingest raises the
 * error and the statement, hence the transaction, fails.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtree.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "commands/progress.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/backend_progress.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplesort.h"

#include "australis.h"
#include "index.h"
#include "online_index.h"

#define CHUNK_BYTES		(8 * 1024 * 1024)
#define CHUNK_ENTRIES	65536

#define BYTEA_LESS_OPERATOR 1957	/* bytea < bytea, C order */

/*
 * What is sorted: key, value, and a trailer that says where they part.  No
 * key is a prefix of another, so the order of the whole is that of the keys.
 *
 * The sort's abbreviated keys are the first 8 bytes, so these had better
 * differ: the relation id is left out and so is the first column's marker.
 * Entries whose first column is NULL are therefore sorted on their own; they
 * come before or after all others.
 */
typedef struct SortTrailer
{
	uint16		key_len;
	uint16		unique_len;		/* leading bytes that must be unique */
	bool		must_be_unique;
} SortTrailer;

#define SKIPPED_LEN 9

typedef struct BuildState
{
	Relation	heap;
	Relation	index;
	IndexShape	shape;
	Tuplesortstate *sort;
	Tuplesortstate *null_sort;	/* made when it is needed */
	MemoryContext context;
	MemoryContext row_context;
	StringInfoData key;
	StringInfoData item;
	double		entries;
} BuildState;

static Tuplesortstate *
begin_sort(BuildState *b, int work_mem)
{
	MemoryContext old = MemoryContextSwitchTo(b->context);
	Tuplesortstate *sort = tuplesort_begin_datum(BYTEAOID, BYTEA_LESS_OPERATOR, InvalidOid, false,
												 work_mem, NULL, TUPLESORT_NONE);

	MemoryContextSwitchTo(old);
	return sort;
}

static void
build_callback(Relation index, ItemPointer tid, Datum *values, bool *isnull, bool alive, void *arg)
{
	BuildState *b = arg;
	MemoryContext old = MemoryContextSwitchTo(b->row_context);
	TidTarget	row;
	bool		suffixed;
	bool		has_null = false;
	int			prefix;
	SortTrailer trailer = {0};
	struct varlena *datum;
	const char *key;
	char	   *p;
	Size		size;

	if (!au_tid_lookup(tid, &row))
		elog(ERROR, "row (%u,%u) to be indexed in \"%s\" is not known",
			 ItemPointerGetBlockNumberNoCheck(tid), ItemPointerGetOffsetNumberNoCheck(tid),
			 RelationGetRelationName(index));
	for (int i = 0; i < b->shape.nkeys; i++)
		has_null |= isnull[i];

	prefix = au_index_key(&b->key, index, &b->shape, values, isnull, row.key, &suffixed);
	key = b->key.data + SKIPPED_LEN;
	trailer.key_len = (uint16) (b->key.len - SKIPPED_LEN);
	if ((b->shape.unique || b->shape.deferrable) && !(has_null && b->shape.nulls_distinct))
	{
		trailer.unique_len = (uint16) (prefix - SKIPPED_LEN);
		trailer.must_be_unique = true;
	}

	/* the value is built at a multiple of 8, then moved up to the key */
	resetStringInfo(&b->item);
	au_index_value(&b->item, index, values, isnull, row.key);
	size = VARHDRSZ + trailer.key_len + b->item.len + sizeof(trailer);
	datum = palloc(size);
	SET_VARSIZE(datum, size);
	p = VARDATA(datum);
	memcpy(p, key, trailer.key_len);
	memcpy(p + trailer.key_len, b->item.data, b->item.len);
	memcpy(p + trailer.key_len + b->item.len, &trailer, sizeof(trailer));
	if (isnull[0] && b->null_sort == NULL)
		b->null_sort = begin_sort(b, Max(maintenance_work_mem / 8, 64));
	tuplesort_putdatum(isnull[0] ? b->null_sort : b->sort, PointerGetDatum(datum), false);
	b->entries += 1;

	MemoryContextSwitchTo(old);
	MemoryContextReset(b->row_context);
}

/* A chunk of entries, copied, that goes out in one piece. */
typedef struct Chunk
{
	MemoryContext context;
	IngestEntry *entries;
	int			n;
	Size		bytes;
	double		flushed;		/* entries in chunks before */
	bool		ingest;
	bool		any_unique;		/* a key that must be unique came before */
} Chunk;

static void
flush_chunk(Chunk *chunk)
{
	if (chunk->n == 0)
		return;
	if (chunk->ingest)
		(void) au_ingest(chunk->entries, chunk->n);
	else
	{
		for (int i = 0; i < chunk->n; i++)
			(void) au_wb_put(chunk->entries[i].key, chunk->entries[i].value,
							 GetCurrentCommandId(true), LockTupleExclusive, true);
	}
	chunk->flushed += chunk->n;
	pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE, (int64) chunk->flushed);
	MemoryContextReset(chunk->context);
	chunk->n = 0;
	chunk->bytes = 0;
}

static void
raise_not_unique(BuildState *b, Bytes value)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(b->index), &TTSOpsAustralis);
	char	   *key_desc;

	au_row_store(au_index_value_image(value), slot, false);
	slot_getallattrs(slot);
	key_desc = BuildIndexValueDescription(b->index, slot->tts_values, slot->tts_isnull);
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("could not create unique index \"%s\"", RelationGetRelationName(b->index)),
			 key_desc ? errdetail("Key %s is duplicated.", key_desc) : errdetail("Duplicate keys exist."),
			 errtableconstraint(b->heap, RelationGetRelationName(b->index))));
}

/* Write out one of the sorts; nothing is duplicated across the two. */
static void
write_sorted(BuildState *b, Tuplesortstate *sort, Chunk *chunk, bool null_first_column)
{
	StringInfoData last;		/* unique part of the previous key */
	Datum		datum;
	bool		isnull;
	StringInfoData skipped;		/* what was left out of all these keys */

	initStringInfo(&last);
	initStringInfo(&skipped);
	au_key_append_relid(&skipped, au_relid(b->index));
	if (null_first_column)
		au_key_append(&skipped, &b->shape.columns[0], (Datum) 0, true);
	else
		appendStringInfoChar(&skipped, 0x02);
	Assert(skipped.len == SKIPPED_LEN);

	tuplesort_performsort(sort);
	pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, PROGRESS_BTREE_PHASE_LEAF_LOAD);
	while (tuplesort_getdatum(sort, true, false, &datum, &isnull, NULL))
	{
		struct varlena *item = (struct varlena *) DatumGetPointer(datum);
		const uint8 *data = (const uint8 *) VARDATA_ANY(item);
		uint32		len = VARSIZE_ANY_EXHDR(item);
		SortTrailer trailer;
		IngestEntry *e;
		uint8	   *copy;
		Size		value_at;

		CHECK_FOR_INTERRUPTS();
		len -= sizeof(trailer);
		memcpy(&trailer, data + len, sizeof(trailer));

		/* the copy keeps the value at a multiple of 8 */
		value_at = TYPEALIGN(8, SKIPPED_LEN + trailer.key_len);
		copy = MemoryContextAlloc(chunk->context, value_at + len - trailer.key_len);
		e = &chunk->entries[chunk->n++];
		e->key.data = copy;
		e->key.len = SKIPPED_LEN + trailer.key_len;
		memcpy(copy, skipped.data, SKIPPED_LEN);
		memcpy(copy + SKIPPED_LEN, data, trailer.key_len);
		e->value.data = copy + value_at;
		e->value.len = len - trailer.key_len;
		memcpy(copy + value_at, data + trailer.key_len, e->value.len);
		chunk->bytes += e->key.len + e->value.len;

		if (trailer.must_be_unique)
		{
			if (last.len == trailer.unique_len && chunk->any_unique &&
				memcmp(last.data, data, last.len) == 0)
				raise_not_unique(b, e->value);
			resetStringInfo(&last);
			appendBinaryStringInfo(&last, (const char *) data, trailer.unique_len);
			chunk->any_unique = true;
		}

		if (chunk->n == CHUNK_ENTRIES || chunk->bytes >= CHUNK_BYTES)
			flush_chunk(chunk);
	}
	chunk->any_unique = false;
	tuplesort_end(sort);
	pfree(last.data);
	pfree(skipped.data);
}

static void
write_entries(BuildState *b)
{
	Chunk		chunk = {0};
	bool		nulls_first = b->shape.columns[0].nulls_first;

	chunk.context = BumpContextCreate(CurrentMemoryContext, "index build chunk", 0,
									  1024 * 1024, 1024 * 1024);
	chunk.entries = palloc_array(IngestEntry, CHUNK_ENTRIES);
	chunk.ingest = au_storage_unpublished(b->index);
	if (b->null_sort != NULL && nulls_first)
		write_sorted(b, b->null_sort, &chunk, true);
	write_sorted(b, b->sort, &chunk, false);
	if (b->null_sort != NULL && !nulls_first)
		write_sorted(b, b->null_sort, &chunk, true);
	flush_chunk(&chunk);
	MemoryContextDelete(chunk.context);
	pfree(chunk.entries);
}

IndexBuildResult *
au_index_build(Relation heap, Relation index, IndexInfo *info)
{
	IndexBuildResult *result = palloc0(sizeof(IndexBuildResult));
	BuildState	b = {0};
	MemoryContext context;
	MemoryContext old;

	au_index_check_supported(index);

	if (au_index_is_primary(heap, index) || au_rekey_replaces_build(heap, index))
	{
		/* the table is, or will be, its own primary key; leave its statistics alone */
		au_layout_follow(heap, index);
		result->heap_tuples = heap->rd_rel->reltuples;
		result->index_tuples = heap->rd_rel->reltuples;
		return result;
	}

	if (au_online_index_deferred(index, info))
	{
		/* nobody reads it yet, and rows get their entries later */
		result->heap_tuples = heap->rd_rel->reltuples;
		result->index_tuples = Max(heap->rd_rel->reltuples, 0);
		return result;
	}

	context = AllocSetContextCreate(CurrentMemoryContext, "index build", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	b.heap = heap;
	b.index = index;
	au_index_shape(index, &b.shape);
	b.row_context = AllocSetContextCreate(context, "index build row", ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&b.key);
	initStringInfo(&b.item);

	pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, PROGRESS_BTREE_PHASE_INDEXBUILD_TABLESCAN);
	b.context = context;
	b.sort = begin_sort(&b, maintenance_work_mem);
	MemoryContextSwitchTo(old);

	result->heap_tuples = table_index_build_scan(heap, index, info, true, true, build_callback, &b, NULL);
	result->index_tuples = b.entries;
	pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_TOTAL, (int64) b.entries);

	pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, PROGRESS_BTREE_PHASE_PERFORMSORT_1);
	old = MemoryContextSwitchTo(context);
	write_entries(&b);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return result;
}

void
au_index_buildempty(Relation index)
{
	/* nothing exists until the first entry */
}
