/*-------------------------------------------------------------------------
 *
 * tid_map.c
 *	  TIDs as names of row versions.
 *
 * PostgreSQL knows a row version by 48 bits; ours is a key and a version.  A
 * scan that hands out a row gives it a number and remembers what the number
 * stands for.  Two rings of memory:
 *
 *	  kept		 while a statement modifies or locks rows; grows to a bound,
 *				 beyond which the oldest names are forgotten.  Hashed if the
 *				 statement looks at ctid, so that the same row version has
 *				 the same TID in all its scans (self-joins on ctid), and
 *				 from FEW_NAMES on, so that scanning rows again and again
 *				 takes no memory
 *	  passing	 otherwise: some thousands of the last rows, enough for
 *				 whatever looks a row up right after seeing it
 *
 * Numbers are never reused and start at a random place per backend, so a TID
 * of another transaction or session names nothing rather than another row.
 * What a number stood for is checked on look-up: a forgotten one is unknown.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "port/pg_bswap.h"
#include "utils/memutils.h"

#define OFFSETS_PER_BLOCK	200
#define PASSING_ENTRIES		8192	/* a power of two */
#define KEPT_MIN_ENTRIES	64
#define KEPT_MAX_ENTRIES	(8 * 1024 * 1024)
#define INLINE_KEY			48
#define FEW_NAMES			1024	/* of a transaction: not worth a hash, and their memory is used again */
#define NOT_HASHED			PG_UINT32_MAX

/* ring numbers above this bit are of the kept ring */
#define KEPT_BIT			(UINT64CONST(1) << 38)
#define NUMBER_MASK			(KEPT_BIT - 1)

typedef struct TidEntry
{
	uint64		number;			/* 0: unused */
	WbVersion  *version;
	uint64		wb_generation;
	uint32		hash;
	uint32		next;			/* kept: next entry of the bucket + 1, or NOT_HASHED */
	uint32		key_len;
	uint32		key_capacity;	/* of key_far */
	uint8	   *key_far;		/* keys longer than INLINE_KEY */
	uint8		key[INLINE_KEY];
} TidEntry;

bool		au_tid_keep = false;
bool		au_tid_compared = false;
bool		au_tid_unnamed = false;
bool		au_tid_keep_inserted = false;

static uint64 next_passing = 0;
static uint64 next_kept = 0;

static TidEntry *passing = NULL;
static uint64 passing_first = 0;	/* number of the first name of this transaction */

static MemoryContext kept_context = NULL;
static TidEntry *kept = NULL;
static uint32 kept_entries = 0;
static uint64 kept_first = 0;	/* number of the first name of this life */
static uint32 *buckets = NULL;	/* entry index + 1 */
static uint32 nbuckets = 0;

static void
start_numbers(void)
{
	next_passing = pg_prng_uint64_range(&pg_global_prng_state, 1, NUMBER_MASK / 2);
	next_kept = pg_prng_uint64_range(&pg_global_prng_state, 1, NUMBER_MASK / 2);
}

static inline void
number_to_tid(uint64 number, ItemPointer tid)
{
	ItemPointerSet(tid, (BlockNumber) (number / OFFSETS_PER_BLOCK),
				   (OffsetNumber) (1 + number % OFFSETS_PER_BLOCK));
}

static inline uint64
tid_to_number(ItemPointer tid)
{
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(tid);

	if (offset < 1 || offset > OFFSETS_PER_BLOCK)
		return 0;
	return (uint64) ItemPointerGetBlockNumberNoCheck(tid) * OFFSETS_PER_BLOCK + (offset - 1);
}

/* How often the key's relation had been flushed when a version was named. */
static inline uint64
generation_of(Bytes key, const WbVersion *version)
{
	uint64		relid;

	if (version == NULL)
		return 0;
	memcpy(&relid, key.data, 8);
	return au_wb_generation(pg_ntoh64(relid));
}

static inline const uint8 *
entry_key(TidEntry *e)
{
	return e->key_len <= INLINE_KEY ? e->key : e->key_far;
}

static void
fill(TidEntry *e, MemoryContext context, uint64 number, Bytes key, WbVersion *version)
{
	uint8	   *to = e->key;

	if (key.len > INLINE_KEY)
	{
		if (e->key_capacity < key.len)
		{
			if (e->key_far)
				pfree(e->key_far);
			e->key_far = NULL;
			e->key_capacity = 0;
			e->key_far = MemoryContextAlloc(context, key.len);
			e->key_capacity = key.len;
		}
		to = e->key_far;
	}
	memcpy(to, key.data, key.len);
	e->key_len = key.len;
	e->number = number;
	e->version = version;
	e->wb_generation = generation_of(key, version);
}

static uint32
hash_name(Bytes key, WbVersion *version)
{
	return hash_combine(hash_bytes(key.data, key.len),
						murmurhash32((uint32) ((uintptr_t) version >> 4)));
}

static void
unlink_entry(uint32 index)
{
	uint32	   *link = &buckets[kept[index].hash & (nbuckets - 1)];

	if (kept[index].next == NOT_HASHED)
		return;
	while (*link != index + 1)
		link = &kept[*link - 1].next;
	*link = kept[index].next;
}

static void
rehash(uint32 n)
{
	uint32	   *more = MemoryContextAllocExtended(kept_context, sizeof(uint32) * n,
											  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);

	if (buckets)
		pfree(buckets);
	buckets = more;
	nbuckets = n;
}

static void
assign_kept(ItemPointer tid, Bytes key, WbVersion *version)
{
	uint32		h = 0;
	uint32		index;
	TidEntry   *e;
	uint64		used = kept ? next_kept - kept_first : 0;
	bool		hashed = au_tid_compared || used >= FEW_NAMES;

	if (kept == NULL)
	{
		if (kept_context == NULL)
			kept_context = AllocSetContextCreate(TopMemoryContext, "row version names", ALLOCSET_DEFAULT_SIZES);
		rehash(KEPT_MIN_ENTRIES);
		/* last: whoever finds it finds the buckets, also after running out of memory */
		kept = MemoryContextAllocExtended(kept_context, sizeof(TidEntry) * KEPT_MIN_ENTRIES,
										  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		kept_entries = KEPT_MIN_ENTRIES;
		kept_first = next_kept;
	}

	if (hashed)
		h = hash_name(key, version);
	for (uint32 i = hashed ? buckets[h & (nbuckets - 1)] : 0; i != 0; i = kept[i - 1].next)
	{
		e = &kept[i - 1];
		if (e->hash == h && e->version == version && e->key_len == key.len &&
			e->wb_generation == generation_of(key, version) &&
			memcmp(entry_key(e), key.data, key.len) == 0)
		{
			number_to_tid(e->number | KEPT_BIT, tid);
			return;
		}
	}

	if (used >= kept_entries && kept_entries < KEPT_MAX_ENTRIES)
	{
		/* entries keep their index: number - kept_first, until the ring wraps */
		uint32		n = kept_entries * 2;

		kept = repalloc_huge(kept, sizeof(TidEntry) * n);
		memset(kept + kept_entries, 0, sizeof(TidEntry) * (n - kept_entries));
		kept_entries = n;
		rehash(n);
		for (uint32 i = 0; i < used; i++)
		{
			if (kept[i].next == NOT_HASHED)
				continue;
			kept[i].next = buckets[kept[i].hash & (nbuckets - 1)];
			buckets[kept[i].hash & (nbuckets - 1)] = i + 1;
		}
	}
	index = (uint32) (used % kept_entries);
	e = &kept[index];
	if (e->number != 0)
		unlink_entry(index);
	fill(e, kept_context, next_kept, key, version);
	e->hash = h;
	if (hashed)
	{
		e->next = buckets[h & (nbuckets - 1)];
		buckets[h & (nbuckets - 1)] = index + 1;
	}
	else
		e->next = NOT_HASHED;
	number_to_tid(next_kept | KEPT_BIT, tid);
	next_kept++;
}

void
au_tid_assign(ItemPointer tid, Bytes key, WbVersion *version, bool keep)
{
	TidEntry   *e;

	if (unlikely(next_passing == 0))
		start_numbers();
	if (keep)
	{
		assign_kept(tid, key, version);
		return;
	}
	if (unlikely(passing == NULL))
		passing = MemoryContextAllocZero(TopMemoryContext, sizeof(TidEntry) * PASSING_ENTRIES);
	e = &passing[next_passing & (PASSING_ENTRIES - 1)];
	fill(e, TopMemoryContext, next_passing, key, version);
	number_to_tid(next_passing, tid);
	next_passing++;
}

bool
au_tid_lookup(ItemPointer tid, TidTarget *target)
{
	uint64		number = tid_to_number(tid);
	TidEntry   *e;

	if (number & KEPT_BIT)
	{
		number &= NUMBER_MASK;
		if (kept == NULL || number < kept_first || number >= next_kept)
			return false;
		e = &kept[(number - kept_first) % kept_entries];
	}
	else
	{
		if (passing == NULL || number < passing_first)
			return false;
		e = &passing[number & (PASSING_ENTRIES - 1)];
	}
	if (e->number != number || number == 0)
		return false;
	target->key.data = entry_key(e);
	target->key.len = e->key_len;
	/* after a flush the version is in storage */
	if (e->version && e->wb_generation != generation_of(target->key, e->version))
		e->version = NULL;
	target->version = e->version;
	return true;
}

void
au_tid_reset(void)
{
	uint64		used = kept ? next_kept - kept_first : 0;

	if (kept && used <= FEW_NAMES)
	{
		bool		hashed = false;

		for (uint64 i = 0; i < used; i++)
		{
			hashed |= kept[i].next != NOT_HASHED;
			kept[i].number = 0;
		}
		if (hashed)
			memset(buckets, 0, sizeof(uint32) * nbuckets);
		kept_first = next_kept;
	}
	else if (kept_context)
	{
		MemoryContextDelete(kept_context);
		kept_context = NULL;
		kept = NULL;
		buckets = NULL;
		kept_entries = 0;
		nbuckets = 0;
	}
	/* names of the ended transaction stand for nothing */
	passing_first = next_passing;
}
