/*-------------------------------------------------------------------------
 *
 * index_am.c
 *	  The index access method: handler, insertion, uniqueness, deletion.
 *
 * An index is a range of keys in storage (docs/formats.md §1): the encoded
 * columns, followed by the row key unless the index is unique.  The primary
 * key of a table that is organised by it has no entries; its scans read the
 * table.
 *
 * Must hold: a row version that this transaction sees has exactly one entry
 * in every index whose predicate it satisfies.  The executor inserts entries
 * of new versions through aminsert; nobody tells an access method of
 * deletions, so the table access method calls au_index_delete_entries with
 * the old version first.
 *
 * Uniqueness is checked twice: here against what this transaction sees, and
 * by the adjudicator against concurrent transactions, because entries of a
 * unique index are written with mode UPDATE, checked and recorded.  The
 * entries of a deferrable constraint carry the row key, since duplicates may
 * exist for a while; what makes concurrent ones collide is a lock on their
 * key without the row key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/amapi.h"
#include "access/genam.h"
#include "access/nbtree.h"
#include "access/reloptions.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "commands/vacuum.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "australis.h"
#include "index.h"

#define ENTRY_VERSION	1
#define ENTRY_HEADER	8

FetchedRow	au_fetched_row;

static inline Bytes
as_bytes(StringInfo s)
{
	Bytes		b = {(const uint8 *) s->data, (uint32) s->len};

	return b;
}

/* ----------------------------------------------------------- index shapes */

#define SHAPE_SIZE(nkeys) (offsetof(IndexShape, columns) + (nkeys) * sizeof(KeyColumn))

void
au_index_shape(Relation index, IndexShape *shape)
{
	const IndexShape *cached = index->rd_amcache;
	int			nkeys = IndexRelationGetNumberOfKeyAttributes(index);

	if (likely(cached != NULL))
	{
		memcpy(shape, cached, SHAPE_SIZE(nkeys));
		return;
	}

	shape->nkeys = nkeys;
	shape->cstrings = false;
	shape->deferrable = index->rd_index->indisunique && !index->rd_index->indimmediate;
	shape->unique = index->rd_index->indisunique && !shape->deferrable;
	shape->nulls_distinct = !index->rd_index->indnullsnotdistinct;
	for (int i = 0; i < nkeys; i++)
	{
		Oid			type = index->rd_opcintype[i];

		if (IsPolymorphicType(type) || type == RECORDOID)
			type = TupleDescAttr(RelationGetDescr(index), i)->atttypid;
		au_key_column_init(&shape->columns[i], type,
						   (index->rd_indoption[i] & INDOPTION_DESC) != 0,
						   (index->rd_indoption[i] & INDOPTION_NULLS_FIRST) != 0);
	}
	for (int i = 0; i < RelationGetDescr(index)->natts; i++)
	{
		if (TupleDescAttr(RelationGetDescr(index), i)->atttypid == CSTRINGOID)
			shape->cstrings = true;
	}
	if (index->rd_amcache == NULL)
		index->rd_amcache = MemoryContextAlloc(index->rd_indexcxt, SHAPE_SIZE(nkeys));
	memcpy(index->rd_amcache, shape, SHAPE_SIZE(nkeys));
}

void
au_index_check_supported(Relation index)
{
	IndexShape	shape;

	au_index_shape(index, &shape);
	for (int i = 0; i < shape.nkeys; i++)
	{
		Oid			cmpproc = index_getprocid(index, i + 1, BTORDER_PROC);

		if (!au_key_order_is(&shape.columns[i], cmpproc))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("operator class of index \"%s\" is not supported",
							RelationGetRelationName(index)),
					 errdetail("Column %d of type %s must use the order of its default operator class.",
							   i + 1, format_type_be(shape.columns[i].type))));
		au_key_check_collation(shape.columns[i].type, index->rd_indcollation[i]);
	}
}

/* ---------------------------------------------------------- index entries */

int
au_index_key(StringInfo key, Relation index, const IndexShape *shape,
			 const Datum *values, const bool *isnull, Bytes rowkey, bool *suffixed)
{
	bool		has_null = false;
	int			prefix;

	resetStringInfo(key);
	au_key_append_relid(key, au_relid(index));
	for (int i = 0; i < shape->nkeys; i++)
	{
		au_key_append(key, &shape->columns[i], values[i], isnull[i]);
		has_null |= isnull[i];
	}
	prefix = key->len;
	*suffixed = !shape->unique || (has_null && shape->nulls_distinct);
	if (*suffixed)
		appendBinaryStringInfoNT(key, rowkey.data + 8, rowkey.len - 8);
	au_key_check_length(key, index);
	return prefix;
}

void
au_index_value(StringInfo value, Relation index, const Datum *values, const bool *isnull, Bytes rowkey)
{
	uint16		rowkey_len = (uint16) (rowkey.len - 8);
	int			start = value->len;
	char		header[ENTRY_HEADER] = {0};
	int			used;

	Assert(start % 8 == 0);
	header[0] = ENTRY_VERSION;
	memcpy(header + 2, &rowkey_len, sizeof(rowkey_len));
	appendBinaryStringInfoNT(value, header, ENTRY_HEADER);
	appendBinaryStringInfoNT(value, rowkey.data + 8, rowkey_len);
	used = value->len - start;
	if (used % 8 != 0)
	{
		static const char zeros[8] = {0};

		appendBinaryStringInfoNT(value, zeros, 8 - used % 8);
	}
	au_row_encode(value, RelationGetDescr(index), values, isnull, 0);
}

void
au_index_entry(Relation index, const Datum *values, const bool *isnull,
			   Bytes rowkey, StringInfo key, StringInfo value)
{
	IndexShape	shape;
	bool		suffixed;

	au_index_shape(index, &shape);
	(void) au_index_key(key, index, &shape, values, isnull, rowkey, &suffixed);
	if (value != NULL)
	{
		resetStringInfo(value);
		au_index_value(value, index, values, isnull, rowkey);
	}
}

static inline uint16
entry_rowkey_len(Bytes value)
{
	uint16		len;

	if (value.len < ENTRY_HEADER || value.data[0] != ENTRY_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("unknown index entry (length %u, version %u)",
						value.len, value.len > 0 ? value.data[0] : 0)));
	memcpy(&len, value.data + 2, sizeof(len));
	if (ENTRY_HEADER + TYPEALIGN(8, len) > value.len)
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("index entry is shorter than its header says")));
	return len;
}

Bytes
au_index_value_rowkey(Bytes value)
{
	Bytes		b;

	b.len = entry_rowkey_len(value);
	b.data = value.data + ENTRY_HEADER;
	return b;
}

Bytes
au_index_value_image(Bytes value)
{
	uint32		skip = ENTRY_HEADER + TYPEALIGN(8, entry_rowkey_len(value));
	Bytes		b = {value.data + skip, value.len - skip};

	return b;
}

/* -------------------------------------------------------------- insertion */

/* Does this entry belong to the row with this key? */
static inline bool
entry_is_of_row(Bytes value, Bytes rowkey)
{
	Bytes		own = {rowkey.data + 8, rowkey.len - 8};

	return au_compare_bytes(au_index_value_rowkey(value), own) == 0;
}

/*
 * For SERIALIZABLE: the session learns whether there is an entry from an
 * error that it may catch, or from a success that it may roll back.
 */
static void
note_prefix_read(Bytes prefix)
{
	StringInfoData hi;

	if (XactIsoLevel != XACT_SERIALIZABLE)
		return;
	initStringInfoExt(&hi, prefix.len + 16);
	appendBinaryStringInfo(&hi, (const char *) prefix.data, prefix.len);
	if (!au_key_prefix_successor(&hi))
		elog(ERROR, "index key without a successor");
	au_note_read_range(prefix, as_bytes(&hi));
	pfree(hi.data);
}

/*
 * Nobody conflicts with an entry of an index that is not unique.  With one of
 * a deferrable constraint, readers of a prefix do (note_prefix_read); among
 * several adjudicators its owner has to hear of it for that.
 */
static bool
entries_are_blind(const IndexShape *shape)
{
	return !shape->unique && !(shape->deferrable && au_behind_gateway());
}

static void
raise_duplicate(Relation heap, Relation index, const Datum *values, const bool *isnull, Bytes prefix)
{
	char	   *key_desc = BuildIndexValueDescription(index, values, isnull);

	note_prefix_read(prefix);
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("duplicate key value violates unique constraint \"%s\"",
					RelationGetRelationName(index)),
			 key_desc ? errdetail("Key %s already exists.", key_desc) : 0,
			 errtableconstraint(heap, RelationGetRelationName(index))));
}

/*
 * Is there an entry of another row whose key starts with this prefix?  Sees
 * everything this transaction has written.
 */
static bool
other_row_exists(Bytes prefix, Bytes rowkey)
{
	StringInfoData hi;
	KeyScan    *scan;
	KeyEntry	entry;
	bool		found = false;

	initStringInfoExt(&hi, prefix.len + 16);
	appendBinaryStringInfo(&hi, (const char *) prefix.data, prefix.len);
	if (!au_key_prefix_successor(&hi))
		elog(ERROR, "index key without a successor");
	scan = au_key_scan_begin(prefix, as_bytes(&hi), InvalidCommandId);
	au_key_scan_hint(scan, 2);
	while (!found && au_key_scan_next(scan, ForwardScanDirection, &entry))
		found = !entry_is_of_row(entry.value, rowkey);
	au_key_scan_end(scan);
	pfree(hi.data);
	return found;
}

/* Is there an entry under this key?  Sees everything this transaction wrote. */
static bool
existing_entry(Relation index, Bytes key, KeyEntry *entry)
{
	/* a new index has nothing in storage before its first chunk, or beyond its chunks: no look-up */
	if (au_storage_unpublished(index) &&
		(!au_has_ingested(au_relid(index)) || au_beyond_ingested(au_relid(index), key)))
	{
		WbVersion  *v = au_wb_lookup(key, InvalidCommandId);

		if (v == NULL || v->kind != WB_PUT)
			return false;
		entry->key = v->entry->key;
		entry->value.data = WB_VALUE(v);
		entry->value.len = v->value_len;
		entry->version = v;
		entry->tau = 0;
		return true;
	}
	return au_key_lookup(key, InvalidCommandId, entry);
}

/*
 * The command after which an entry becomes visible is its row's: a function
 * called by the statement may have moved the command counter on meanwhile.
 */
static inline CommandId
entry_cid(const TidTarget *row)
{
	return row->version != NULL ? row->version->cmin : GetCurrentCommandId(true);
}

static bool
au_index_insert(Relation index, Datum *values, bool *isnull, ItemPointer heap_tid, Relation heap,
				IndexUniqueCheck check, bool unchanged, IndexInfo *info)
{
	IndexShape	shape;
	TidTarget	row;
	Bytes		rowkey;
	uint8		rowkey_copy[AU_MAX_KEY];
	StringInfoData key,
				value;
	Bytes		prefix;
	bool		suffixed;
	bool		has_null = false;
	int			prefix_len;
	CommandId	cid;
	bool		result = true;

	if (unlikely(ItemPointerGetOffsetNumberNoCheck(heap_tid) == AU_REFUSED_OFFSET))
		au_report_refused(heap);

	/* the row is the entry, and the table access method checked its key */
	if (au_index_is_primary(heap, index))
		return true;

	au_index_shape(index, &shape);
	if (!au_tid_lookup(heap_tid, &row))
		elog(ERROR, "row (%u,%u) to be indexed in \"%s\" is not known",
			 ItemPointerGetBlockNumberNoCheck(heap_tid), ItemPointerGetOffsetNumberNoCheck(heap_tid),
			 RelationGetRelationName(index));
	cid = entry_cid(&row);
	/* looking for duplicates may give names to other rows */
	memcpy(rowkey_copy, row.key.data, row.key.len);
	rowkey.data = rowkey_copy;
	rowkey.len = row.key.len;

	for (int i = 0; i < shape.nkeys; i++)
		has_null |= isnull[i];
	initStringInfoExt(&key, 128);
	initStringInfoExt(&value, 256);
	prefix_len = au_index_key(&key, index, &shape, values, isnull, rowkey, &suffixed);

	prefix.data = (const uint8 *) key.data;
	prefix.len = (uint32) prefix_len;

	if (shape.deferrable)
	{
		bool		may_conflict = !(has_null && shape.nulls_distinct);

		/* a lock on the prefix that is rolled back leaves no trace of it */
		if (may_conflict && GetCurrentTransactionNestLevel() > 1)
			note_prefix_read(prefix);
		if (check == UNIQUE_CHECK_EXISTING)
		{
			KeyEntry	own;

			/*
			 * A row that was deleted, or moved to another key, since has no
			 * entry here any more; the newer entry has a check of its own.
			 * One that was updated in other columns keeps its entry, and no
			 * other check is coming.
			 */
			if (may_conflict && au_key_lookup(as_bytes(&key), InvalidCommandId, &own) &&
				other_row_exists(prefix, rowkey))
				raise_duplicate(heap, index, values, isnull, prefix);
			goto done;
		}
		if (may_conflict)
		{
			if (check != UNIQUE_CHECK_NO && other_row_exists(prefix, rowkey))
			{
				if (check == UNIQUE_CHECK_YES)
					raise_duplicate(heap, index, values, isnull, prefix);
				result = false;
			}
			au_wb_lock(prefix, LockTupleExclusive);
		}
	}
	else if (shape.unique && !suffixed)
	{
		KeyEntry	existing;

		if (check != UNIQUE_CHECK_NO &&
			existing_entry(index, as_bytes(&key), &existing) &&
			!entry_is_of_row(existing.value, rowkey))
		{
			if (check == UNIQUE_CHECK_YES || check == UNIQUE_CHECK_EXISTING)
				raise_duplicate(heap, index, values, isnull, prefix);

			/*
			 * UNIQUE_CHECK_PARTIAL of ON CONFLICT: the caller takes its row
			 * back.  The entry is the other row's and stays.
			 */
			result = false;
			goto done;
		}
		if (check == UNIQUE_CHECK_EXISTING)
			goto done;
	}

	au_index_value(&value, index, values, isnull, rowkey);
	(void) au_wb_put(as_bytes(&key), as_bytes(&value), cid,
					 shape.unique ? LockTupleExclusive : LockTupleNoKeyExclusive, entries_are_blind(&shape));

done:
	pfree(key.data);
	pfree(value.data);
	return result;
}

/* --------------------------------------------------------------- deletion */

/*
 * What deletion needs to know of a table's indexes.  Kept for the
 * transaction, since building it costs more than using it; dropped as soon as
 * the catalog says that the table or one of its indexes changed.
 */
typedef struct DeleteIndex
{
	Oid			oid;
	IndexInfo  *info;
} DeleteIndex;

typedef struct DeleteCache
{
	Oid			heap;			/* InvalidOid: free */
	RelFileNumber number;
	bool		stale;
	MemoryContext context;
	EState	   *estate;			/* NULL unless there are expressions */
	int			nindexes;
	bool		incomplete;		/* one of them is not valid */
	DeleteIndex *indexes;
	StringInfoData key;
} DeleteCache;

#define DELETE_CACHES 16

static DeleteCache delete_caches[DELETE_CACHES];
static int	delete_cache_victim = 0;
static bool delete_cache_registered = false;

static void
delete_cache_invalidate(Datum arg, Oid relid)
{
	for (int i = 0; i < DELETE_CACHES; i++)
	{
		DeleteCache *c = &delete_caches[i];

		if (!OidIsValid(c->heap))
			continue;
		if (!OidIsValid(relid) || relid == c->heap)
			c->stale = true;
		for (int j = 0; !c->stale && j < c->nindexes; j++)
			c->stale = c->indexes[j].oid == relid;
	}
}

/* The context goes, with the transaction or for a newer one. */
typedef struct DeleteCacheCallback
{
	MemoryContextCallback callback;
	DeleteCache *cache;
	MemoryContext context;
} DeleteCacheCallback;

static void
delete_cache_freed(void *arg)
{
	DeleteCacheCallback *freed = arg;

	if (freed->cache->context == freed->context)
		memset(freed->cache, 0, sizeof(DeleteCache));
}

static DeleteCache *
delete_cache(Relation heap)
{
	DeleteCache *c = NULL;
	DeleteCacheCallback *callback;
	MemoryContext old;
	MemoryContext context;
	List	   *oids;
	ListCell   *lc;
	DeleteIndex *indexes;
	int			nindexes = 0;
	bool		expressions = false;
	bool		incomplete = false;

	for (int i = 0; i < DELETE_CACHES; i++)
	{
		if (delete_caches[i].heap != RelationGetRelid(heap))
			continue;
		c = &delete_caches[i];
		if (!c->stale && c->number == heap->rd_locator.relNumber)
			return c;
		MemoryContextDelete(c->context);
		break;
	}
	if (c == NULL)
	{
		for (int i = 0; i < DELETE_CACHES && c == NULL; i++)
		{
			if (!OidIsValid(delete_caches[i].heap))
				c = &delete_caches[i];
		}
	}
	if (c == NULL)
	{
		c = &delete_caches[delete_cache_victim];
		delete_cache_victim = (delete_cache_victim + 1) % DELETE_CACHES;
		MemoryContextDelete(c->context);
	}
	if (!delete_cache_registered)
	{
		CacheRegisterRelcacheCallback(delete_cache_invalidate, (Datum) 0);
		delete_cache_registered = true;
	}

	/* until it is complete the cache stays free: any step may fail */
	context = AllocSetContextCreate(TopTransactionContext, "index entries to delete", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	callback = palloc0(sizeof(DeleteCacheCallback));
	callback->callback.func = delete_cache_freed;
	callback->callback.arg = callback;
	callback->cache = c;
	callback->context = context;
	MemoryContextRegisterResetCallback(context, &callback->callback);

	oids = RelationGetIndexList(heap);
	indexes = palloc(Max(list_length(oids), 1) * sizeof(DeleteIndex));
	foreach(lc, oids)
	{
		Relation	index = index_open(lfirst_oid(lc), RowExclusiveLock);

		if (au_is_our_index(index) && index->rd_index->indisready && !au_index_is_primary(heap, index))
		{
			DeleteIndex *d = &indexes[nindexes++];

			d->oid = RelationGetRelid(index);
			d->info = BuildIndexInfo(index);
			incomplete |= !index->rd_index->indisvalid;
			expressions |= d->info->ii_Expressions != NIL || d->info->ii_Predicate != NIL;
		}
		index_close(index, NoLock);
	}
	c->estate = expressions ? CreateExecutorState() : NULL;
	initStringInfoExt(&c->key, 256);
	c->indexes = indexes;
	c->nindexes = nindexes;
	c->incomplete = incomplete;
	c->number = heap->rd_locator.relNumber;
	c->stale = false;
	c->context = context;
	c->heap = RelationGetRelid(heap);
	MemoryContextSwitchTo(old);
	return c;
}

/*
 * Is an index of this table maintained but not valid?  Then every update
 * writes the row's entries, whatever columns it changes: who builds the index
 * relies on rows newer than the build's beginning having theirs.
 */
bool
au_index_incomplete(Relation heap)
{
	return heap->rd_rel->relhasindex && delete_cache(heap)->incomplete;
}

static bool
key_is_of_other_row(Bytes key, Bytes rowkey)
{
	KeyEntry	entry;

	return au_key_lookup(key, InvalidCommandId, &entry) && !entry_is_of_row(entry.value, rowkey);
}

void
au_index_delete_entries(Relation heap, TupleTableSlot *oldslot, Bytes rowkey, CommandId cid)
{
	DeleteCache *c;

	if (!heap->rd_rel->relhasindex)
		return;
	c = delete_cache(heap);
	if (c->nindexes == 0)
		return;

	for (int i = 0; i < c->nindexes; i++)
	{
		DeleteIndex *d = &c->indexes[i];
		Relation	index;
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];
		bool		suffixed;
		IndexShape	shape;

		if (c->estate != NULL)
			GetPerTupleExprContext(c->estate)->ecxt_scantuple = oldslot;
		if (d->info->ii_Predicate != NIL)
		{
			if (d->info->ii_PredicateState == NULL)
				d->info->ii_PredicateState = ExecPrepareQual(d->info->ii_Predicate, c->estate);
			if (!ExecQual(d->info->ii_PredicateState, GetPerTupleExprContext(c->estate)))
				continue;
		}
		FormIndexDatum(d->info, oldslot, c->estate, values, isnull);

		/* locked since the cache was built, so the relcache entry suffices */
		index = RelationIdGetRelation(d->oid);
		if (!RelationIsValid(index))
			elog(ERROR, "could not open index with OID %u", d->oid);
		au_index_shape(index, &shape);
		(void) au_index_key(&c->key, index, &shape, values, isnull, rowkey, &suffixed);
		if (unlikely(c->incomplete) && !index->rd_index->indisvalid && shape.unique && !suffixed &&
			key_is_of_other_row(as_bytes(&c->key), rowkey))
		{
			/*
			 * This row has no entry yet, and another one was given its key
			 * since.  The lock is against an entry that the build makes
			 * meanwhile, when the other row is gone.
			 */
			au_wb_lock(as_bytes(&c->key), LockTupleExclusive);
			RelationClose(index);
			continue;
		}
		(void) au_wb_delete(as_bytes(&c->key), cid,
							shape.unique ? LockTupleExclusive : LockTupleNoKeyExclusive, entries_are_blind(&shape));
		RelationClose(index);
	}
	if (c->estate != NULL)
		ResetPerTupleExprContext(c->estate);
}

/* --------------------------------------------------------- vacuum, others */

static IndexBulkDeleteResult *
au_index_bulkdelete(IndexVacuumInfo *info, IndexBulkDeleteResult *stats,
					IndexBulkDeleteCallback callback, void *callback_state)
{
	/* old versions are storage's business; there is nothing dead in here */
	if (stats == NULL)
		stats = palloc0(sizeof(IndexBulkDeleteResult));
	stats->estimated_count = true;
	stats->num_index_tuples = info->num_heap_tuples;
	return stats;
}

static IndexBulkDeleteResult *
au_index_vacuumcleanup(IndexVacuumInfo *info, IndexBulkDeleteResult *stats)
{
	return info->analyze_only ? stats : au_index_bulkdelete(info, stats, NULL, NULL);
}

static bool
au_index_canreturn(Relation index, int attno)
{
	return true;
}

PG_FUNCTION_INFO_V1(au_index_handler);

Datum
au_index_handler(PG_FUNCTION_ARGS)
{
	IndexAmRoutine *am = makeNode(IndexAmRoutine);

	am->amstrategies = BTMaxStrategyNumber;
	am->amsupport = BTNProcs;
	am->amoptsprocnum = BTOPTIONS_PROC;
	am->amcanorder = true;
	am->amcanorderbyop = false;
	am->amcanhash = false;
	am->amconsistentequality = true;
	am->amconsistentordering = true;
	am->amcanbackward = true;
	am->amcanunique = true;
	am->amcanmulticol = true;
	am->amoptionalkey = true;
	am->amsearcharray = true;
	am->amsearchnulls = true;
	am->amstorage = false;
	am->amclusterable = true;
	am->ampredlocks = true;
	am->amcanparallel = false;
	am->amcanbuildparallel = false;
	am->amcaninclude = true;
	am->amusemaintenanceworkmem = false;
	am->amsummarizing = false;
	am->amparallelvacuumoptions = 0;
	am->amkeytype = InvalidOid;

	am->ambuild = au_index_build;
	am->ambuildempty = au_index_buildempty;
	am->aminsert = au_index_insert;
	am->aminsertcleanup = NULL;
	am->ambulkdelete = au_index_bulkdelete;
	am->amvacuumcleanup = au_index_vacuumcleanup;
	am->amcanreturn = au_index_canreturn;
	am->amcostestimate = au_index_costestimate;
	am->amgettreeheight = au_index_gettreeheight;

	/* options, properties and operator classes are those of btree */
	am->amoptions = btoptions;
	am->amproperty = btproperty;
	am->ambuildphasename = btbuildphasename;
	am->amvalidate = btvalidate;
	am->amadjustmembers = btadjustmembers;
	am->ambeginscan = au_index_beginscan;
	am->amrescan = au_index_rescan;
	am->amgettuple = au_index_gettuple;
	am->amgetbitmap = NULL;
	am->amendscan = au_index_endscan;
	am->ammarkpos = au_index_markpos;
	am->amrestrpos = au_index_restrpos;
	am->amestimateparallelscan = NULL;
	am->aminitparallelscan = NULL;
	am->amparallelrescan = NULL;
	am->amtranslatestrategy = bttranslatestrategy;
	am->amtranslatecmptype = bttranslatecmptype;

	PG_RETURN_POINTER(am);
}
