/*-------------------------------------------------------------------------
 *
 * write_buffer.c
 *	  What the current transaction has written: versions per key, in order.
 *
 * Per relation id the entries are in key order: those that came in ascending
 * order in an array (inserts into tables with hidden keys, loads in key
 * order), the others in a red-black tree.  An entry holds its versions newest
 * first, each stamped with the command that wrote it, so
 * that a command never sees its own writes (cmin < curcid).  Row locks are
 * versions without a value.  All versions of the transaction hang on one list
 * in the order of writing; rolling back to a savepoint takes them off its
 * head, and because an entry's versions are in the same order, each is its
 * entry's newest then.
 *
 * Memory lives in one bump context per relation id, so that a relation whose
 * rows were flushed (rule Q8) gives all of it back.  It is bounded by
 * australis.write_buffer_limit.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/xact.h"
#include "lib/rbtree.h"
#include "port/pg_bswap.h"
#include "utils/memutils.h"

typedef struct WbNode
{
	RBTNode		node;
	WbEntry		entry;
} WbNode;

struct WbRelation
{
	RelId		relid;
	RBTree	   *tree;			/* NULL until a key comes out of order */
	WbEntry   **run;			/* ascending */
	Size		nrun;
	Size		max_run;
	MemoryContext context;
	WbRelation *next;
	uint64		changes;
	uint64		flushes;
	Size		bytes;
	Size		next_flush;		/* not before it is that large ... */
	CommandId	vain_while;		/* or this command, unless invalid, has ended */
	int64		puts;			/* keys first written by a put, for estimates */
	int64		put_bytes;
};

static MemoryContext wb_context = NULL;
static WbRelation *relations = NULL;	/* short list: relations written */
static WbRelation *last_relation = NULL;	/* cache of the last found */
static WbVersion *newest_written = NULL;	/* head of the undo list */
static Size total_bytes = 0;

static inline RelId
key_relid(Bytes key)
{
	uint64		v;

	Assert(key.len >= 8);
	memcpy(&v, key.data, 8);
	return pg_ntoh64(v);
}

static int
compare_nodes(const RBTNode *a, const RBTNode *b, void *arg)
{
	return au_compare_bytes(((const WbNode *) a)->entry.key, ((const WbNode *) b)->entry.key);
}

static void
combine_nodes(RBTNode *existing, const RBTNode *newdata, void *arg)
{
	/* the entry is there: nothing to combine */
}

static RBTNode *
alloc_node(void *arg)
{
	return MemoryContextAlloc(((WbRelation *) arg)->context, sizeof(WbNode));
}

static void
free_node(RBTNode *x, void *arg)
{
	/* bump memory: given back when the relation is cleared */
}

static void
make_tree(WbRelation *r)
{
	MemoryContext old = MemoryContextSwitchTo(r->context);

	r->tree = rbt_create(sizeof(WbNode), compare_nodes, combine_nodes, alloc_node, free_node, r);
	MemoryContextSwitchTo(old);
}

WbRelation *
au_wb_relation(RelId relid, bool create)
{
	WbRelation *r;

	if (last_relation && last_relation->relid == relid)
		return last_relation;
	for (r = relations; r; r = r->next)
	{
		if (r->relid == relid)
		{
			last_relation = r;
			return r;
		}
	}
	if (!create)
		return NULL;
	if (wb_context == NULL)
		wb_context = AllocSetContextCreate(TopTransactionContext, "write buffer", ALLOCSET_DEFAULT_SIZES);
	r = MemoryContextAllocZero(wb_context, sizeof(WbRelation));
	r->relid = relid;
	r->vain_while = InvalidCommandId;
	/* small blocks first: most transactions write a row or two */
	r->context = BumpContextCreate(wb_context, "write buffer of a relation", 0, 1024, 1024 * 1024);
	r->next = relations;
	relations = r;
	last_relation = r;
	return r;
}

uint64
au_wb_changes(WbRelation *relation)
{
	return relation->changes;
}

uint64
au_wb_generation(RelId relid)
{
	WbRelation *r = au_wb_relation(relid, false);

	return r ? r->flushes : 0;
}

uint64
au_wb_flushes(const WbRelation *relation)
{
	return relation->flushes;
}

bool
au_wb_has_relation(RelId relid)
{
	WbRelation *r = au_wb_relation(relid, false);

	return r != NULL && (r->nrun > 0 || r->tree != NULL);
}

bool
au_wb_is_empty(void)
{
	return newest_written == NULL;
}

Size
au_wb_relation_bytes(WbRelation *relation)
{
	return relation->bytes;
}

void
au_wb_flush_in_vain(WbRelation *relation, CommandId running)
{
	relation->next_flush = relation->bytes * 2;
	relation->vain_while = running;
}

bool
au_wb_flush_due(const WbRelation *relation, Size bytes)
{
	if (relation->bytes <= bytes)
		return false;
	if (relation->bytes > relation->next_flush)
		return true;
	return relation->vain_while != InvalidCommandId && au_next_running_command(-1) != relation->vain_while;
}

/*
 * A put may be new or replace a stored row.  Where there are more of them than
 * stored rows, a load that has not been committed, they count as new.
 */
void
au_wb_estimate(RelId relid, int64 *rows, int64 *bytes)
{
	WbRelation *r = newest_written != NULL ? au_wb_relation(relid, false) : NULL;

	if (r != NULL && r->puts > *rows)
	{
		*rows += r->puts;
		*bytes += r->put_bytes;
	}
}

static void
account(WbRelation *r, Size bytes)
{
	r->bytes += bytes;
	total_bytes += bytes;
	if (total_bytes / 1024 > (Size) au_write_buffer_limit_kb)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction writes more than australis.write_buffer_limit (%d kB)",
						au_write_buffer_limit_kb),
				 errhint("Split the work into several transactions.")));
}

/* Number of entries of the run that are below key (or equal to it, if so asked). */
static Size
run_below(WbRelation *r, Bytes key, bool or_equal)
{
	Size		lo = 0;
	Size		hi = r->nrun;

	while (lo < hi)
	{
		Size		mid = (lo + hi) / 2;
		int			c = au_compare_bytes(r->run[mid]->key, key);

		if (c < 0 || (or_equal && c == 0))
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static WbEntry *
find_entry(WbRelation *r, Bytes key)
{
	if (r->nrun > 0 && au_compare_bytes(r->run[r->nrun - 1]->key, key) >= 0)
	{
		WbEntry    *e = r->run[run_below(r, key, false)];

		if (au_compare_bytes(e->key, key) == 0)
			return e;
	}
	if (r->tree)
	{
		WbNode		probe;
		WbNode	   *found;

		probe.entry.key = key;
		found = (WbNode *) rbt_find(r->tree, &probe.node);
		return found ? &found->entry : NULL;
	}
	return NULL;
}

static WbEntry *
get_entry(Bytes key)
{
	WbRelation *r = au_wb_relation(key_relid(key), true);
	WbEntry    *e = find_entry(r, key);
	uint8	   *copy;

	r->changes++;
	if (e != NULL)
		return e;

	account(r, sizeof(WbNode) + key.len);
	copy = MemoryContextAlloc(r->context, key.len);
	memcpy(copy, key.data, key.len);
	if (r->nrun == 0 || au_compare_bytes(r->run[r->nrun - 1]->key, key) < 0)
	{
		if (r->nrun == r->max_run)
		{
			Size		n = Max(r->max_run * 2, 8);

			r->run = r->run ? repalloc_huge(r->run, sizeof(WbEntry *) * n)
				: MemoryContextAlloc(wb_context, sizeof(WbEntry *) * n);
			r->max_run = n;
		}
		e = MemoryContextAlloc(r->context, sizeof(WbEntry));
		r->run[r->nrun++] = e;
	}
	else
	{
		WbNode		probe;
		bool		isnew;

		if (r->tree == NULL)
			make_tree(r);
		probe.entry.key.data = copy;
		probe.entry.key.len = key.len;
		e = &((WbNode *) rbt_insert(r->tree, &probe.node, &isnew))->entry;
	}
	e->relation = r;
	e->newest = NULL;
	e->key.data = copy;
	e->key.len = key.len;
	return e;
}

static WbVersion *
add_version(Bytes key, Bytes value, WbKind kind, CommandId cid, LockTupleMode mode, bool blind)
{
	WbEntry    *e = get_entry(key);
	Size		size = MAXALIGN(sizeof(WbVersion)) + value.len;
	WbVersion  *v;

	account(e->relation, size);
	if (kind == WB_PUT && e->newest == NULL)
	{
		e->relation->puts++;
		e->relation->put_bytes += key.len + value.len;
	}
	v = MemoryContextAllocExtended(e->relation->context, size, MCXT_ALLOC_HUGE);
	v->older = e->newest;
	v->entry = e;
	v->cmin = cid;
	v->nest_level = GetCurrentTransactionNestLevel();
	v->kind = kind;
	v->mode = mode;
	v->blind = blind;
	v->replaces = false;
	v->was_locked = v->older && (v->older->kind == WB_LOCK || v->older->was_locked);
	v->moved = false;
	v->value_len = value.len;
	if (value.len > 0)
		memcpy((uint8 *) WB_VALUE(v), value.data, value.len);
	v->written_before = newest_written;
	newest_written = v;
	e->newest = v;
	return v;
}

WbVersion *
au_wb_put(Bytes key, Bytes value, CommandId cid, LockTupleMode mode, bool blind)
{
	return add_version(key, value, WB_PUT, cid, mode, blind);
}

WbVersion *
au_wb_delete(Bytes key, CommandId cid, LockTupleMode mode, bool blind)
{
	Bytes		none = {NULL, 0};

	return add_version(key, none, WB_DELETE, cid, mode, blind);
}

void
au_wb_move(Bytes key, WbVersion *version)
{
	Bytes		pointer = {(const uint8 *) &version, sizeof(version)};
	WbVersion  *v = add_version(key, pointer, WB_DELETE, version->cmin, LockTupleExclusive, false);

	v->moved = true;
	v->value_len = 0;			/* it is nobody else's */
}

void
au_wb_lock(Bytes key, LockTupleMode mode)
{
	WbRelation *r = au_wb_relation(key_relid(key), false);
	Bytes		none = {NULL, 0};

	if (r != NULL)
	{
		WbEntry    *e = find_entry(r, key);

		/* already held as strongly: loops that lock the same parent row */
		for (WbVersion *v = e ? e->newest : NULL; v; v = v->older)
		{
			if (!v->blind && v->mode >= mode)
			{
				e->newest->was_locked = true;	/* for xmax of the next version */
				return;
			}
		}
	}
	(void) add_version(key, none, WB_LOCK, FirstCommandId, mode, false);
}

WbVersion *
au_wb_visible(WbEntry *entry, CommandId curcid)
{
	for (WbVersion *v = entry->newest; v; v = v->older)
	{
		if (v->kind != WB_LOCK && v->cmin < curcid)
			return v;
	}
	return NULL;
}

WbVersion *
au_wb_lookup(Bytes key, CommandId curcid)
{
	WbRelation *r = au_wb_relation(key_relid(key), false);
	WbEntry    *e = r ? find_entry(r, key) : NULL;

	return e ? au_wb_visible(e, curcid) : NULL;
}

WbEntry *
au_wb_seek(WbRelation *relation, Bytes key, bool backward, bool equal)
{
	WbEntry    *in_run = NULL;
	WbEntry    *in_tree = NULL;

	if (relation->nrun > 0)
	{
		if (backward)
		{
			Size		n = run_below(relation, key, equal);

			if (n > 0)
				in_run = relation->run[n - 1];
		}
		else
		{
			Size		n = run_below(relation, key, !equal);

			if (n < relation->nrun)
				in_run = relation->run[n];
		}
	}
	if (relation->tree)
	{
		WbNode		probe;
		WbNode	   *found;

		probe.entry.key = key;
		found = (WbNode *) (backward ? rbt_find_less(relation->tree, &probe.node, equal)
							: rbt_find_great(relation->tree, &probe.node, equal));
		in_tree = found ? &found->entry : NULL;
	}
	if (in_run == NULL)
		return in_tree;
	if (in_tree == NULL)
		return in_run;
	return (au_compare_bytes(in_run->key, in_tree->key) < 0) == !backward ? in_run : in_tree;
}

void
au_wb_walk_relation(WbRelation *relation, WbVisitor visitor, void *arg)
{
	RBTreeIterator iter;
	WbNode	   *node = NULL;
	Size		i = 0;

	if (relation->tree)
	{
		rbt_begin_iterate(relation->tree, LeftRightWalk, &iter);
		node = (WbNode *) rbt_iterate(&iter);
	}
	while (i < relation->nrun || node != NULL)
	{
		if (node == NULL ||
			(i < relation->nrun && au_compare_bytes(relation->run[i]->key, node->entry.key) < 0))
			visitor(relation->run[i++], arg);
		else
		{
			visitor(&node->entry, arg);
			node = (WbNode *) rbt_iterate(&iter);
		}
	}
}

void
au_wb_walk(WbVisitor visitor, void *arg)
{
	for (WbRelation *r = relations; r; r = r->next)
		au_wb_walk_relation(r, visitor, arg);
}

void
au_wb_clear_relation(WbRelation *relation)
{
	WbVersion **link = &newest_written;

	/* take its versions off the undo list: their memory goes */
	while (*link)
	{
		if ((*link)->entry->relation == relation)
			*link = (*link)->written_before;
		else
			link = &(*link)->written_before;
	}
	MemoryContextReset(relation->context);
	relation->tree = NULL;
	relation->nrun = 0;
	total_bytes -= relation->bytes;
	relation->bytes = 0;
	relation->puts = 0;
	relation->put_bytes = 0;
	relation->next_flush = 0;
	relation->vain_while = InvalidCommandId;
	relation->changes++;
	relation->flushes++;
	/* it may point into what is gone */
	au_fetched_row.valid = false;
}

void
au_wb_subxact_abort(int nest_level)
{
	while (newest_written && newest_written->nest_level >= nest_level)
	{
		WbVersion  *v = newest_written;

		/*
		 * For SERIALIZABLE: that it could be written told the session that no
		 * other row had this key, and it may act on that.
		 */
		if (v->kind == WB_PUT && !v->blind)
			au_note_read_key(v->entry->key);
		Assert(v->entry->newest == v);
		v->entry->newest = v->older;
		v->entry->relation->changes++;
		newest_written = v->written_before;
	}
}

void
au_wb_subxact_commit(int nest_level)
{
	for (WbVersion *v = newest_written; v && v->nest_level >= nest_level; v = v->written_before)
		v->nest_level = nest_level - 1;
}

void
au_wb_reset(void)
{
	if (wb_context)
	{
		MemoryContextDelete(wb_context);
		wb_context = NULL;
	}
	relations = NULL;
	last_relation = NULL;
	newest_written = NULL;
	total_bytes = 0;
}
