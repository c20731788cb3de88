/*-------------------------------------------------------------------------
 *
 * index_scan.c
 *	  Index scans: search conditions to ranges of keys, and walking them.
 *
 * The conditions on the leading columns become a list of disjoint byte
 * ranges [lo, hi) in key order: equality, IN lists and IS NULL multiply
 * prefixes, the first column with an inequality closes them.  What the ranges
 * don't express exactly (later columns, row comparisons with NULLs,
 * timestamptz against timestamp) is a filter, evaluated here on the entry, so
 * a scan returns exactly the rows that qualify, in index order, and never asks
 * for a recheck.
 *
 * Must hold: ranges are sorted and don't overlap, so that forward and
 * backward scans, reversals and mark/restore need only the number of the
 * range and the last key.  The scan of a primary key reads the table itself
 * and hands the row over (au_fetched_row).
 *
 * If storage fails, the read raises the error; nothing here holds anything
 * that an abort would not release.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/itup.h"
#include "access/nbtree.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "australis.h"
#include "index.h"

/* Beyond so many ranges an IN list is one range and a filter. */
#define MAX_RANGES	16384

typedef struct ScanRange
{
	Bytes		lo;
	Bytes		hi;				/* unused for a point */
	bool		point;			/* lo is the only key in it */
} ScanRange;

/* A row image without columns (docs/formats.md §2). */
static const uint8 empty_row[8] = {1};

/* A condition that the ranges don't express. */
typedef struct ScanFilter
{
	ScanKey		key;
	int			nelems;			/* of an array */
	Datum	   *elems;
} ScanFilter;

typedef enum PointState
{
	POINT_BEFORE,
	POINT_ON,
	POINT_AFTER,
} PointState;

typedef struct AuScan
{
	IndexShape	shape;
	bool		primary;		/* scan of the table's own key */
	bool		whole_heap_noted;

	MemoryContext context;		/* ranges and filters; reset by rescan */
	int			nranges;
	ScanRange  *ranges;
	ScanRange	single;			/* of the commonest case */
	int			nfilters;
	ScanFilter *filters;
	const void *given_keys;		/* by the executor: names the scan for scan_hints.c */
	bool		pushed;			/* program and limit are those of this rescan */
	Bytes		program;		/* for storage (push_down.c) */
	int			limit;			/* so many rows will be asked for, 0: unknown */
	CommandId	curcid;
	bool		counted;		/* in pgstat */
	ReadCounts	reads;			/* rescans included */
	uint64		counted_bytes;	/* of them, in pg_statio */

	/* where we are */
	int			current;		/* range number; -1 or nranges: off the end */
	bool		open;			/* in the range, else in front of it */
	KeyScan    *scan;
	PointState	point;
	Bytes		last_key;		/* valid while open and something was returned */

	/* mark */
	int			mark_current;
	bool		mark_open;
	PointState	mark_point;
	bool		mark_has_key;
	StringInfoData mark_key;

	StringInfoData rowkey;		/* of the row that a secondary entry names */
	TupleTableSlot *slot;		/* index entry, or the row of a primary index */
	bool		slot_filled;
	MemoryContext tuple_context;	/* index tuples formed for the caller */
} AuScan;

static inline Bytes
as_bytes(StringInfo s)
{
	Bytes		b = {(const uint8 *) s->data, (uint32) s->len};

	return b;
}

/* ------------------------------------------------- conditions to ranges */

/* What the conditions say of one column; all bytes include the marker. */
typedef struct ColumnBounds
{
	bool		has_lo;
	bool		has_hi;
	StringInfoData lo;			/* inclusive */
	StringInfoData hi;			/* exclusive */
	int			npoints;		/* -1: none given */
	Bytes	   *points;			/* sorted */
} ColumnBounds;

static void
copy_bytes(StringInfo to, Bytes from)
{
	if (to->data == NULL)
		initStringInfoExt(to, from.len + 16);
	resetStringInfo(to);
	appendBinaryStringInfo(to, (const char *) from.data, from.len);
}

static void
raise_lo(ColumnBounds *b, Bytes lo)
{
	if (b->has_lo && au_compare_bytes(lo, as_bytes(&b->lo)) <= 0)
		return;
	copy_bytes(&b->lo, lo);
	b->has_lo = true;
}

static void
lower_hi(ColumnBounds *b, Bytes hi)
{
	if (b->has_hi && au_compare_bytes(hi, as_bytes(&b->hi)) >= 0)
		return;
	copy_bytes(&b->hi, hi);
	b->has_hi = true;
}

static Bytes
successor(StringInfo s)
{
	/* markers are small: there always is one */
	if (!au_key_prefix_successor(s))
		elog(ERROR, "index key without a successor");
	return as_bytes(s);
}

/* Only non-NULL values: those with marker 2. */
static void
bound_not_null(ColumnBounds *b)
{
	static const uint8 value_marker[1] = {0x02};
	static const uint8 next_marker[1] = {0x03};
	Bytes		lo = {value_marker, 1};
	Bytes		hi = {next_marker, 1};

	raise_lo(b, lo);
	lower_hi(b, hi);
}

static int
compare_points(const void *a, const void *b)
{
	return au_compare_bytes(*(const Bytes *) a, *(const Bytes *) b);
}

/* Only these values.  Sorts points; keeps what was there already. */
static void
bound_points(ColumnBounds *b, Bytes *points, int n)
{
	int			kept = 0;

	qsort(points, n, sizeof(Bytes), compare_points);
	for (int i = 0; i < n; i++)
	{
		if (kept > 0 && au_compare_bytes(points[kept - 1], points[i]) == 0)
			continue;
		if (b->npoints >= 0 &&
			(b->npoints == 0 ||
			 bsearch(&points[i], b->points, b->npoints, sizeof(Bytes), compare_points) == NULL))
			continue;
		points[kept++] = points[i];
	}
	b->points = points;
	b->npoints = kept;
}

/*
 * The column compares as strategy says with the value at (or, by match,
 * about) low..high.  The buffers are used up.  False if the condition must be
 * checked row by row too.
 */
static bool
bound_operator(ColumnBounds *b, const KeyColumn *col, StrategyNumber strategy, KeyMatch match,
			   StringInfo low, StringInfo high)
{
	bool		less = strategy == BTLessStrategyNumber || strategy == BTLessEqualStrategyNumber;
	bool		inclusive;

	bound_not_null(b);
	if (match == KEY_UNKNOWN)
		return false;
	if (strategy == BTEqualStrategyNumber)
	{
		Bytes	   *point;

		if (match == KEY_WIDE)
		{
			raise_lo(b, as_bytes(col->desc ? high : low));
			lower_hi(b, successor(col->desc ? low : high));
			return false;
		}
		point = palloc(sizeof(Bytes));
		point->data = (const uint8 *) low->data;
		point->len = low->len;
		bound_points(b, point, match == KEY_EXACT ? 1 : 0);
		return true;
	}

	/* low is the greatest value below: "less" includes it, "greater" does not */
	if (match == KEY_BETWEEN)
		inclusive = less;
	else if (match == KEY_WIDE)
		inclusive = true;
	else
		inclusive = strategy == BTLessEqualStrategyNumber || strategy == BTGreaterEqualStrategyNumber;

	if (less != col->desc)
	{
		/* an end: < ascending, > descending */
		StringInfo	at = less ? high : low;

		lower_hi(b, inclusive ? successor(at) : as_bytes(at));
	}
	else
	{
		StringInfo	at = less ? high : low;

		raise_lo(b, inclusive ? as_bytes(at) : successor(at));
	}
	return match != KEY_WIDE;
}

static Oid
search_type(Relation index, ScanKey key, const KeyColumn *col)
{
	/* the operator class's own input type is encoded as the column is */
	if (key->sk_subtype == index->rd_opcintype[key->sk_attno - 1] || key->sk_subtype == RECORDOID)
		return col->type;
	return key->sk_subtype;
}

static KeyMatch
encode_search(StringInfo low, StringInfo high, const KeyColumn *col, Datum value, Oid type)
{
	initStringInfoExt(low, 64);
	initStringInfoExt(high, 64);
	return au_key_append_search(low, high, col, value, type);
}

/* column op ANY (array).  *empty if nothing can match. */
static bool
bound_array(ColumnBounds *b, const KeyColumn *col, ScanKey key, Oid type, ScanFilter *filter, bool *empty)
{
	ArrayType  *array = DatumGetArrayTypeP(key->sk_argument);
	int16		typlen;
	bool		typbyval;
	char		typalign;
	Datum	   *elems;
	bool	   *nulls;
	int			nelems;
	int			n = 0;
	bool		exact = true;
	Bytes	   *points;
	int			npoints = 0;

	get_typlenbyvalalign(ARR_ELEMTYPE(array), &typlen, &typbyval, &typalign);
	deconstruct_array(array, ARR_ELEMTYPE(array), typlen, typbyval, typalign, &elems, &nulls, &nelems);
	for (int i = 0; i < nelems; i++)
	{
		if (!nulls[i])
			elems[n++] = elems[i];
	}
	filter->nelems = n;
	filter->elems = elems;
	if (n == 0)
	{
		*empty = true;
		return true;
	}

	points = palloc_array(Bytes, n);
	for (int i = 0; i < n; i++)
	{
		StringInfoData low,
					high;
		KeyMatch	match = encode_search(&low, &high, col, elems[i], type);

		if (match == KEY_BETWEEN && key->sk_strategy == BTEqualStrategyNumber)
			continue;
		if (match != KEY_EXACT)
		{
			exact = false;
			break;
		}
		points[npoints++] = as_bytes(&low);
	}
	bound_not_null(b);
	if (!exact)
		return false;
	if (key->sk_strategy == BTEqualStrategyNumber)
	{
		bound_points(b, points, npoints);
		if (npoints == 0)
			*empty = true;
		return true;
	}
	else
	{
		/* any of: the loosest one decides */
		bool		less = key->sk_strategy == BTLessStrategyNumber ||
			key->sk_strategy == BTLessEqualStrategyNumber;
		Bytes		loosest = points[0];
		StringInfoData at;

		for (int i = 1; i < npoints; i++)
		{
			int			c = au_compare_bytes(points[i], loosest);

			if ((less != col->desc) ? c > 0 : c < 0)
				loosest = points[i];
		}
		initStringInfoExt(&at, loosest.len + 16);
		appendBinaryStringInfo(&at, (const char *) loosest.data, loosest.len);
		return bound_operator(b, col, key->sk_strategy, KEY_EXACT, &at, &at);
	}
}

/*
 * ROW(a, b, ...) op ROW(x, y, ...).  As far as the members are consecutive
 * columns in one direction they bound the range together; rows with NULLs in
 * it are left to the filter.
 */
static void
bound_row(ColumnBounds *b, Relation index, const IndexShape *shape, ScanKey header, bool *empty)
{
	ScanKey		member = (ScanKey) DatumGetPointer(header->sk_argument);
	const KeyColumn *first = &shape->columns[header->sk_attno - 1];
	StringInfoData low,
				high;
	StrategyNumber strategy = header->sk_strategy;
	bool		less = strategy == BTLessStrategyNumber || strategy == BTLessEqualStrategyNumber;
	KeyMatch	match = KEY_UNKNOWN;
	bool		whole = false;
	AttrNumber	attno = header->sk_attno;

	if (member->sk_flags & SK_ISNULL)
	{
		*empty = true;
		return;
	}
	initStringInfoExt(&low, 128);
	initStringInfoExt(&high, 128);
	for (;;)
	{
		const KeyColumn *col = &shape->columns[attno - 1];
		int			low_start = low.len;
		int			high_start = high.len;
		KeyMatch	m;

		if (member->sk_attno != attno || col->desc != first->desc || (member->sk_flags & SK_ISNULL))
			break;
		m = au_key_append_search(&low, &high, col, member->sk_argument, search_type(index, member, col));
		if (m != KEY_EXACT && match != KEY_UNKNOWN)
		{
			/* keep to the members before it */
			low.len = low_start;
			high.len = high_start;
			break;
		}
		match = m;
		if (m != KEY_EXACT)
			break;
		if (member->sk_flags & SK_ROW_END)
		{
			whole = true;
			break;
		}
		member++;
		attno++;
		if (attno > shape->nkeys)
			break;
	}
	/* if members are missing, equality in the others may still qualify */
	if (!whole)
		strategy = less ? BTLessEqualStrategyNumber : BTGreaterEqualStrategyNumber;
	(void) bound_operator(b, first, strategy, match, &low, &high);
}

/* One condition on one column.  True if the bounds express it fully. */
static bool
bound_key(ColumnBounds *b, Relation index, const IndexShape *shape, ScanKey key, ScanFilter *filter,
		  bool *empty)
{
	const KeyColumn *col = &shape->columns[key->sk_attno - 1];
	StringInfoData low,
				high;
	KeyMatch	match;

	if (key->sk_flags & SK_SEARCHNULL)
	{
		Bytes	   *point = palloc(sizeof(Bytes));
		StringInfoData null;

		initStringInfoExt(&null, 16);
		au_key_append(&null, col, (Datum) 0, true);
		*point = as_bytes(&null);
		bound_points(b, point, 1);
		return true;
	}
	if (key->sk_flags & SK_SEARCHNOTNULL)
	{
		bound_not_null(b);
		return true;
	}
	if (key->sk_flags & SK_ROW_HEADER)
	{
		bound_row(b, index, shape, key, empty);
		return false;
	}
	if (key->sk_flags & SK_ISNULL)
	{
		*empty = true;			/* btree's operators are strict */
		return true;
	}
	if (key->sk_flags & SK_SEARCHARRAY)
		return bound_array(b, col, key, search_type(index, key, col), filter, empty);

	match = encode_search(&low, &high, col, key->sk_argument, search_type(index, key, col));
	return bound_operator(b, col, key->sk_strategy, match, &low, &high);
}

static Bytes
concat(Bytes a, Bytes b)
{
	uint8	   *data = palloc(a.len + b.len + 1);
	Bytes		r = {data, a.len + b.len};

	memcpy(data, a.data, a.len);
	memcpy(data + a.len, b.data, b.len);
	return r;
}

static Bytes
successor_of(Bytes prefix)
{
	StringInfoData s;

	initStringInfoExt(&s, prefix.len + 16);
	appendBinaryStringInfo(&s, (const char *) prefix.data, prefix.len);
	return successor(&s);
}

/*
 * Fill so->ranges and so->filters from the scan keys.
 */
static void
build_ranges(IndexScanDesc scan, AuScan *so)
{
	Relation	index = scan->indexRelation;
	const IndexShape *shape = &so->shape;
	RelId		relid = au_relid(so->primary ? scan->heapRelation : index);
	MemoryContext old = MemoryContextSwitchTo(so->context);
	StringInfoData start;
	Bytes	   *prefixes;
	Bytes		first_prefix;
	int			nprefixes = 1;
	bool		empty = false;
	int			column;
	bool		closed = false; /* ranges are made */
	bool		exact = true;	/* prefixes say all about their columns */
	bool		nulls = false;	/* some prefix has a NULL in it */
	ScanFilter *filters = NULL;
	int			nkeys = scan->numberOfKeys;

	so->nfilters = 0;
	so->nranges = 0;
	so->ranges = NULL;
	initStringInfoExt(&start, 64);
	au_key_append_relid(&start, relid);
	first_prefix = as_bytes(&start);
	prefixes = &first_prefix;
	if (nkeys > 0)
		filters = palloc_array(ScanFilter, nkeys);

	for (column = 0; column < shape->nkeys && !closed && !empty; column++)
	{
		ColumnBounds b = {0};
		bool		any = false;

		b.npoints = -1;
		for (int i = 0; i < nkeys && !empty; i++)
		{
			ScanKey		key = &scan->keyData[i];
			ScanFilter	filter = {key, 0, NULL};

			if (key->sk_attno != column + 1)
				continue;
			any = true;
			if (!bound_key(&b, index, shape, key, &filter, &empty))
				filters[so->nfilters++] = filter;
		}
		if (empty || !any)
			break;

		if (b.npoints >= 0)
		{
			Bytes	   *product;
			int			n = 0;

			for (int i = 0; i < b.npoints; i++)
			{
				/* a row comparison's bound goes on with later columns: left to its filter */
				bool		undecided = b.has_lo && b.points[i].len < b.lo.len &&
					memcmp(b.points[i].data, b.lo.data, b.points[i].len) == 0;

				if (b.has_lo && !undecided && au_compare_bytes(b.points[i], as_bytes(&b.lo)) < 0)
					continue;
				if (b.has_hi && au_compare_bytes(b.points[i], as_bytes(&b.hi)) >= 0)
					continue;
				b.points[n++] = b.points[i];
			}
			b.npoints = n;
			if (n == 0)
			{
				empty = true;
				break;
			}
			if ((int64) n * nprefixes <= MAX_RANGES)
			{
				for (int i = 0; i < n; i++)
					nulls |= b.points[i].data[0] != 0x02;
				if (n == 1 && nprefixes == 1)
				{
					appendBinaryStringInfoNT(&start, b.points[0].data, b.points[0].len);
					first_prefix = as_bytes(&start);
					continue;
				}
				product = palloc_array(Bytes, n * nprefixes);
				for (int i = 0; i < nprefixes; i++)
				{
					for (int j = 0; j < n; j++)
						product[i * n + j] = concat(prefixes[i], b.points[j]);
				}
				prefixes = product;
				nprefixes = n * nprefixes;
				continue;
			}
			/* too many: from the first to the last, and filter */
			raise_lo(&b, b.points[0]);
			lower_hi(&b, successor_of(b.points[n - 1]));
			for (int i = 0; i < nkeys; i++)
			{
				ScanKey		key = &scan->keyData[i];
				ScanFilter	filter = {key, 0, NULL};
				ColumnBounds unused = {0};
				bool		present = false;

				if (key->sk_attno != column + 1 || (key->sk_flags & (SK_SEARCHNULL | SK_SEARCHNOTNULL)))
					continue;
				for (int j = 0; j < so->nfilters; j++)
					present |= filters[j].key == key;
				if (present)
					continue;
				unused.npoints = -1;
				(void) bound_key(&unused, index, shape, key, &filter, &empty);
				filters[so->nfilters++] = filter;
			}
		}

		closed = true;
		if (!b.has_lo && !b.has_hi)
		{
			/* nothing but filters */
			closed = false;
			exact = false;
			column++;
			break;
		}
		if (b.has_lo && b.has_hi && au_compare_bytes(as_bytes(&b.lo), as_bytes(&b.hi)) >= 0)
		{
			empty = true;
			break;
		}
		so->ranges = nprefixes == 1 ? &so->single : palloc_array(ScanRange, nprefixes);
		for (int i = 0; i < nprefixes; i++)
		{
			ScanRange  *r = &so->ranges[i];

			r->lo = b.has_lo ? concat(prefixes[i], as_bytes(&b.lo)) : prefixes[i];
			r->hi = b.has_hi ? concat(prefixes[i], as_bytes(&b.hi)) : successor_of(prefixes[i]);
			r->point = false;
		}
		so->nranges = nprefixes;
	}

	if (!empty)
	{
		/* conditions on later columns, which the loop has not seen */
		for (int i = 0; i < nkeys && !empty; i++)
		{
			ScanKey		key = &scan->keyData[i];
			ScanFilter	filter = {key, 0, NULL};
			ColumnBounds unused = {0};

			if (key->sk_attno <= column)
				continue;
			unused.npoints = -1;
			/* for its array, and whether it can match at all */
			(void) bound_key(&unused, index, shape, key, &filter, &empty);
			filters[so->nfilters++] = filter;
		}
	}

	if (empty)
		so->nranges = 0;
	else if (!closed)
	{
		bool		unique = so->primary || shape->unique;
		bool		all = exact && column == shape->nkeys;

		so->ranges = nprefixes == 1 ? &so->single : palloc_array(ScanRange, nprefixes);
		for (int i = 0; i < nprefixes; i++)
		{
			ScanRange  *r = &so->ranges[i];

			r->lo = prefixes[i];
			r->point = unique && all && !(nulls && shape->nulls_distinct);
			if (!r->point)
				r->hi = successor_of(prefixes[i]);
		}
		so->nranges = nprefixes;
	}
	so->filters = filters;
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------- filters */

static void
fill_slot(IndexScanDesc scan, AuScan *so, const KeyEntry *entry)
{
	if (so->slot_filled)
		return;
	if (so->slot == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(so));

		so->slot = MakeSingleTupleTableSlot(RelationGetDescr(so->primary ? scan->heapRelation
															 : scan->indexRelation),
											&TTSOpsAustralis);
		MemoryContextSwitchTo(old);
	}
	au_row_store(so->primary ? entry->value : au_index_value_image(entry->value), so->slot,
				 entry->version != NULL);
	so->slot_filled = true;
}

/* Value of an index column of the current entry; fill_slot() first. */
static inline Datum
index_column(IndexScanDesc scan, AuScan *so, AttrNumber attno, bool *isnull)
{
	if (so->primary)
		attno = scan->indexRelation->rd_index->indkey.values[attno - 1];
	return slot_getattr(so->slot, attno, isnull);
}

static bool
row_matches(IndexScanDesc scan, AuScan *so, ScanKey header)
{
	ScanKey		member = (ScanKey) DatumGetPointer(header->sk_argument);
	int32		c;

	for (;;)
	{
		bool		isnull;
		Datum		value;

		if (member->sk_flags & SK_ISNULL)
			return false;
		value = index_column(scan, so, member->sk_attno, &isnull);
		if (isnull)
			return false;
		c = DatumGetInt32(FunctionCall2Coll(&member->sk_func, member->sk_collation,
											value, member->sk_argument));
		if (c != 0 || (member->sk_flags & SK_ROW_END))
			break;
		member++;
	}
	/* the deciding member's operator counts: < where the row says <= */
	switch (member->sk_strategy)
	{
		case BTLessStrategyNumber:
			return c < 0;
		case BTLessEqualStrategyNumber:
			return c <= 0;
		case BTGreaterEqualStrategyNumber:
			return c >= 0;
		case BTGreaterStrategyNumber:
			return c > 0;
		default:
			elog(ERROR, "unexpected strategy number %d", member->sk_strategy);
	}
}

static bool
filters_match(IndexScanDesc scan, AuScan *so)
{
	for (int i = 0; i < so->nfilters; i++)
	{
		ScanFilter *f = &so->filters[i];
		ScanKey		key = f->key;
		bool		isnull;
		Datum		value;

		if (key->sk_flags & SK_ROW_HEADER)
		{
			if (!row_matches(scan, so, key))
				return false;
			continue;
		}
		value = index_column(scan, so, key->sk_attno, &isnull);
		if (key->sk_flags & SK_SEARCHNULL)
		{
			if (!isnull)
				return false;
		}
		else if (isnull)
			return false;
		else if (key->sk_flags & SK_SEARCHNOTNULL)
			continue;
		else if (key->sk_flags & SK_SEARCHARRAY)
		{
			bool		any = false;

			for (int j = 0; j < f->nelems && !any; j++)
				any = DatumGetBool(FunctionCall2Coll(&key->sk_func, key->sk_collation, value, f->elems[j]));
			if (!any)
				return false;
		}
		else if (!DatumGetBool(FunctionCall2Coll(&key->sk_func, key->sk_collation, value, key->sk_argument)))
			return false;
	}
	return true;
}

/* ---------------------------------------------------------------- walking */

/* SERIALIZABLE: what this scan reads must not change before it commits. */
static void
note_read(IndexScanDesc scan, AuScan *so, const ScanRange *range)
{
	/* the planner looks for the ends of an index: no answer depends on it */
	if (scan->xs_snapshot->snapshot_type == SNAPSHOT_NON_VACUUMABLE)
		return;
	if (so->primary || so->shape.unique)
	{
		if (range->point)
			au_note_read_key(range->lo);
		else
			au_note_read_range(range->lo, range->hi);
	}
	else if (!so->whole_heap_noted)
	{
		/* entries of other indexes are not recorded: any write counts (M5) */
		RelId		heap = au_relid(scan->heapRelation);
		StringInfoData lo,
					hi;

		initStringInfo(&lo);
		initStringInfo(&hi);
		au_key_append_relid(&lo, heap);
		au_key_append_relid(&hi, heap + 1);
		au_note_read_range(as_bytes(&lo), as_bytes(&hi));
		pfree(lo.data);
		pfree(hi.data);
		so->whole_heap_noted = true;
	}
}

static void
leave_range(AuScan *so)
{
	if (so->scan != NULL)
	{
		au_key_scan_end(so->scan);
		so->scan = NULL;
	}
	so->open = false;
}

/* What storage may do for this scan; found out once for every rescan. */
static void
push_down(IndexScanDesc scan, AuScan *so)
{
	const PushDown *push;
	bool		whole;
	MemoryContext old;

	so->pushed = true;
	so->program = (Bytes) {NULL, 0};
	so->limit = 0;
	if (!so->primary || so->given_keys == NULL || scan->xs_want_itup || !au_push_down)
		return;
	push = au_index_scan_push(so->given_keys, scan->heapRelation);
	if (push == NULL)
		return;
	old = MemoryContextSwitchTo(so->context);
	so->program = au_push_program(push, &whole);
	MemoryContextSwitchTo(old);
	if (whole && so->nfilters == 0)
		so->limit = push->limit;
}

static void
enter_range(IndexScanDesc scan, AuScan *so, bool backward)
{
	ScanRange  *range = &so->ranges[so->current];

	if (range->point)
		so->point = backward ? POINT_AFTER : POINT_BEFORE;
	else
	{
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(so));

		so->scan = au_key_scan_begin(range->lo, range->hi, so->curcid);
		au_key_scan_count(so->scan, &so->reads);
		if (!so->pushed)
			push_down(scan, so);
		au_key_scan_filter(so->scan, so->program);
		if (so->limit > 0)
			au_key_scan_hint(so->scan, so->limit);
		MemoryContextSwitchTo(old);
	}
	so->open = true;
	so->last_key.data = NULL;
	if (scan->instrument)
		scan->instrument->nsearches++;
	if (unlikely(IsolationIsSerializable()))
		note_read(scan, so, range);
}

static bool
next_entry(IndexScanDesc scan, AuScan *so, ScanDirection dir, KeyEntry *entry)
{
	bool		backward = ScanDirectionIsBackward(dir);

	for (;;)
	{
		ScanRange  *range;

		if (!so->open)
		{
			if (backward ? so->current >= so->nranges : so->current < 0)
				so->current += backward ? -1 : 1;
			if (so->current < 0 || so->current >= so->nranges)
				return false;
			enter_range(scan, so, backward);
		}
		range = &so->ranges[so->current];
		if (!range->point)
		{
			if (au_key_scan_next(so->scan, dir, entry))
			{
				so->last_key = entry->key;
				return true;
			}
		}
		else if (so->point == (backward ? POINT_AFTER : POINT_BEFORE))
		{
			bool		found;

			so->point = POINT_ON;
			found = au_key_lookup(range->lo, so->curcid, entry);
			if (!found)
				so->reads.trips++;
			else if (entry->version == NULL)
			{
				so->reads.trips++;
				so->reads.rows++;
				so->reads.bytes += entry->key.len + entry->value.len;
			}
			if (found)
			{
				so->last_key = entry->key;
				return true;
			}
		}
		leave_range(so);
		so->current += backward ? -1 : 1;
		if (so->current < 0 || so->current >= so->nranges)
			return false;
		CHECK_FOR_INTERRUPTS();
	}
}

/* ------------------------------------------------------------- results */

/*
 * The row that a secondary entry names.  False if it was deleted by a later
 * command than the entry's (cannot be; the table access method deletes both).
 */
static bool
name_row(IndexScanDesc scan, AuScan *so, const KeyEntry *entry)
{
	Bytes		rowkey = au_index_value_rowkey(entry->value);
	WbVersion  *version = NULL;

	so->rowkey.len = 8;			/* the table's relation id stays */
	appendBinaryStringInfoNT(&so->rowkey, rowkey.data, rowkey.len);
	if (!au_wb_is_empty())
	{
		version = au_wb_lookup(as_bytes(&so->rowkey), so->curcid);
		if (version != NULL && version->kind == WB_DELETE)
			return false;
	}
	au_tid_assign(&scan->xs_heaptid, as_bytes(&so->rowkey), version, au_tid_keep);
	return true;
}

/* An index tuple for index-only scans. */
static void
return_tuple(IndexScanDesc scan, AuScan *so)
{
	TupleDesc	desc = RelationGetDescr(scan->indexRelation);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	bool		planner = scan->xs_snapshot->snapshot_type == SNAPSHOT_NON_VACUUMABLE;
	MemoryContext old;

	scan->xs_itup = NULL;
	scan->xs_hitup = NULL;

	/*
	 * The slot's tuple is in the index's form already.  Index tuples proper
	 * are needed by the planner's look at the end of an index, and where the
	 * executor expects name columns as cstrings.
	 */
	if (!so->primary && !so->shape.cstrings && !planner)
	{
		scan->xs_hitup = ((MinimalTupleTableSlot *) so->slot)->tuple;
		scan->xs_hitupdesc = desc;
		return;
	}

	if (so->tuple_context == NULL)
		so->tuple_context = AllocSetContextCreate(GetMemoryChunkContext(so), "index tuple",
												  ALLOCSET_SMALL_SIZES);
	MemoryContextReset(so->tuple_context);
	old = MemoryContextSwitchTo(so->tuple_context);
	for (int i = 0; i < desc->natts; i++)
	{
		/* INCLUDE columns may be too wide for an index tuple; nobody asks */
		if (planner && i >= so->shape.nkeys)
		{
			values[i] = (Datum) 0;
			isnull[i] = true;
		}
		else
			values[i] = index_column(scan, so, i + 1, &isnull[i]);
	}
	if (planner || so->shape.cstrings)
	{
		scan->xs_itup = index_form_tuple(desc, values, isnull);
		scan->xs_itupdesc = desc;
	}
	else
	{
		scan->xs_hitup = heap_form_tuple(desc, values, isnull);
		scan->xs_hitupdesc = desc;
	}
	MemoryContextSwitchTo(old);
}

void
au_index_scan_reads(IndexScanDesc scan, ReadCounts *total)
{
	const ReadCounts *reads = &((AuScan *) scan->opaque)->reads;

	total->trips += reads->trips;
	total->rows += reads->rows;
	total->bytes += reads->bytes;
}

/* ------------------------------------------------------- access method API */

IndexScanDesc
au_index_beginscan(Relation index, int nkeys, int norderbys)
{
	IndexScanDesc scan = RelationGetIndexScan(index, nkeys, norderbys);
	AuScan	   *so = palloc0(sizeof(AuScan));

	Assert(norderbys == 0);
	au_index_shape(index, &so->shape);
	so->context = AllocSetContextCreate(CurrentMemoryContext, "index scan ranges", ALLOCSET_SMALL_SIZES);
	scan->xs_itupdesc = RelationGetDescr(index);
	scan->opaque = so;
	return scan;
}

void
au_index_rescan(IndexScanDesc scan, ScanKey keys, int nkeys, ScanKey orderbys, int norderbys)
{
	AuScan	   *so = scan->opaque;
	bool		primary;

	if (keys != NULL && scan->numberOfKeys > 0)
		memcpy(scan->keyData, keys, scan->numberOfKeys * sizeof(ScanKeyData));

	au_fetched_row.valid = false;
	leave_range(so);
	so->mark_open = false;
	so->mark_has_key = false;
	so->mark_current = 0;
	so->counted = false;
	so->current = 0;
	so->given_keys = keys;
	so->pushed = false;
	so->program = (Bytes) {NULL, 0};
	primary = au_index_is_primary(scan->heapRelation, scan->indexRelation);
	if (so->slot != NULL && primary != so->primary)
	{
		/* the table's first rows were written meanwhile */
		ExecDropSingleTupleTableSlot(so->slot);
		so->slot = NULL;
	}
	so->primary = primary;
	so->curcid = au_snapshot_curcid(scan->xs_snapshot);
	if (so->rowkey.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(so));

		initStringInfoExt(&so->rowkey, 128);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&so->rowkey);
	au_key_append_relid(&so->rowkey, au_relid(scan->heapRelation));
	MemoryContextReset(so->context);
	build_ranges(scan, so);
}

bool
au_index_gettuple(IndexScanDesc scan, ScanDirection dir)
{
	AuScan	   *so = scan->opaque;
	KeyEntry	entry;

	if (!so->counted)
	{
		pgstat_count_index_scan(scan->indexRelation);
		so->counted = true;
		/* a scan that was not started before starts at the end it runs from */
		if (ScanDirectionIsBackward(dir) && !so->open && so->current == 0)
			so->current = so->nranges;
	}

	/* ranges are exact together with the filters */
	scan->xs_recheck = false;
	au_fetched_row.valid = false;

	while (next_entry(scan, so, dir, &entry))
	{
		so->slot_filled = false;
		if (so->nfilters > 0)
		{
			fill_slot(scan, so, &entry);
			if (!filters_match(scan, so))
			{
				CHECK_FOR_INTERRUPTS();
				continue;
			}
		}
		if (so->primary)
		{
			au_tid_assign(&scan->xs_heaptid, entry.key, entry.version, au_tid_keep);
			au_fetched_row.tid = scan->xs_heaptid;
			au_fetched_row.entry = entry;
			au_fetched_row.valid = true;
		}
		else
		{
			if (!name_row(scan, so, &entry))
				continue;
			/* the row of a unique entry is read by key, also if never fetched */
			if (unlikely(IsolationIsSerializable()) && !so->whole_heap_noted &&
				scan->xs_snapshot->snapshot_type != SNAPSHOT_NON_VACUUMABLE)
				au_note_read_key(as_bytes(&so->rowkey));
		}
		if (scan->xs_want_itup)
		{
			fill_slot(scan, so, &entry);
			return_tuple(scan, so);
			if (!so->primary)
			{
				/*
				 * The executor asks the table whether the row is visible,
				 * and looks at nothing in it.  An entry that we see has a
				 * row that we see: hand over one without columns.
				 */
				au_fetched_row.tid = scan->xs_heaptid;
				au_fetched_row.entry.key = as_bytes(&so->rowkey);
				au_fetched_row.entry.value.data = empty_row;
				au_fetched_row.entry.value.len = sizeof(empty_row);
				au_fetched_row.entry.version = NULL;
				au_fetched_row.entry.tau = entry.tau;
				au_fetched_row.valid = true;
			}
		}
		return true;
	}
	return false;
}

void
au_index_endscan(IndexScanDesc scan)
{
	AuScan	   *so = scan->opaque;

	/* what it points to goes */
	au_fetched_row.valid = false;
	au_count_pages(scan->indexRelation, &so->reads, &so->counted_bytes);
	leave_range(so);
	if (so->slot != NULL)
		ExecDropSingleTupleTableSlot(so->slot);
	if (so->tuple_context != NULL)
		MemoryContextDelete(so->tuple_context);
	MemoryContextDelete(so->context);
	if (so->rowkey.data != NULL)
		pfree(so->rowkey.data);
	if (so->mark_key.data != NULL)
		pfree(so->mark_key.data);
	pfree(so);
}

void
au_index_markpos(IndexScanDesc scan)
{
	AuScan	   *so = scan->opaque;

	so->mark_current = so->current;
	so->mark_open = so->open;
	so->mark_point = so->point;
	so->mark_has_key = false;
	if (so->open && so->last_key.data != NULL && !so->ranges[so->current].point)
	{
		if (so->mark_key.data == NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(so));

			initStringInfoExt(&so->mark_key, so->last_key.len + 16);
			MemoryContextSwitchTo(old);
		}
		copy_bytes(&so->mark_key, so->last_key);
		so->mark_has_key = true;
	}
}

void
au_index_restrpos(IndexScanDesc scan)
{
	AuScan	   *so = scan->opaque;
	bool		reusable = so->open && so->mark_open && so->current == so->mark_current &&
		(so->mark_has_key || so->ranges[so->current].point);

	if (!reusable)
	{
		leave_range(so);
		so->current = so->mark_current;
		if (!so->mark_open)
			return;
		enter_range(scan, so, false);
	}
	so->last_key.data = NULL;
	if (so->ranges[so->current].point)
		so->point = so->mark_point;
	else if (so->mark_has_key)
	{
		au_key_scan_seek(so->scan, as_bytes(&so->mark_key));
		so->last_key = as_bytes(&so->mark_key);
	}
}
