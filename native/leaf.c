/*-------------------------------------------------------------------------
 *
 * leaf.c
 *	  LMDB, with a look into its pages.
 *
 * mdb_cursor_get() costs more per entry of a scan than all else that reading
 * one needs.  The nodes of a page lie side by side, and a cursor knows its page:
 * this file hands them out together.  LMDB keeps the layout to itself, so its
 * source (one pinned release, build_extension.py) is part of this file.
 *
 * Its branch pages also tell where a range can be divided into equal parts.
 *
 * What must hold: anything that is not a plain node within its page is left
 * to mdb_cursor_get(), which knows overflow pages and reports damage.
 *
 *-------------------------------------------------------------------------
 */
#include <limits.h>
#include <stdbool.h>

/*
 * LMDB writes adjacent pages together, IOV_MAX at most.  Linux 6.16 and later
 * caches what is written together as one folio, and walks all blocks of a
 * folio at every later write of one page: 64 pages, as LMDB would have it,
 * made a commit's page writes take three times as long.
 */
#undef IOV_MAX
#define IOV_MAX 4

#include "mdb.c"				/* found with -isystem: its warnings are not ours */

#include "leaf.h"

#define AHEAD 8					/* nodes */
#define LINE 64					/* bytes of a cache line: the value begins in the second one, if not in the first */

/* The page that comes after this one, which may lie anywhere. */
static inline void
prefetch_next(const MDB_cursor *cursor)
{
	const MDB_env *env = cursor->mc_txn->mt_env;
	unsigned	top = cursor->mc_top;

	if (top > 0 && cursor->mc_ki[top - 1] + 1u < NUMKEYS(cursor->mc_pg[top - 1]))
	{
		pgno_t		number = NODEPGNO(NODEPTR(cursor->mc_pg[top - 1], cursor->mc_ki[top - 1] + 1));

		if (number < cursor->mc_txn->mt_next_pgno)
		{
			const char *next = env->me_map + env->me_psize * number;

			__builtin_prefetch(next);
			__builtin_prefetch(next + LINE);
			__builtin_prefetch(next + env->me_psize - LINE);
			__builtin_prefetch(next + env->me_psize - 2 * LINE);
		}
	}
}

size_t
leaf_rest(MDB_cursor *cursor, LeafNode *nodes, size_t max)
{
	const char *page;
	const char *end;
	unsigned	index;
	unsigned	last;
	size_t		n = 0;

	if ((cursor->mc_flags & (C_INITIALIZED | C_EOF | C_DEL)) != C_INITIALIZED)
		return 0;
	page = (const char *) cursor->mc_pg[cursor->mc_top];
	if (!IS_LEAF(page) || IS_LEAF2(page))
		return 0;
	end = page + cursor->mc_txn->mt_env->me_psize;
	last = NUMKEYS(page);
	prefetch_next(cursor);
	for (index = cursor->mc_ki[cursor->mc_top] + 1; index < last && n < max; index++)
	{
		const MDB_node *node = NODEPTR(page, index);
		LeafNode   *out = &nodes[n];

		/* pages of a large table are in memory, but in no cache */
		if (index + AHEAD < last)
		{
			const char *ahead = (const char *) NODEPTR(page, index + AHEAD);

			__builtin_prefetch(ahead);
			__builtin_prefetch(ahead + LINE);
		}
		if ((const char *) node + NODESIZE > end || node->mn_flags != 0)
			break;
		out->key = NODEKEY(node);
		out->key_len = NODEKSZ(node);
		out->data.mv_size = NODEDSZ(node);
		out->data.mv_data = NODEDATA(node);
		if ((const char *) out->data.mv_data + out->data.mv_size > end)
			break;
		n++;
	}
	cursor->mc_ki[cursor->mc_top] += n;
	return n;
}

static inline bool
on_leaf(const MDB_cursor *cursor)
{
	const MDB_page *page = cursor->mc_pg[cursor->mc_top];

	return (cursor->mc_flags & (C_INITIALIZED | C_EOF | C_DEL)) == C_INITIALIZED && IS_LEAF(page) && !IS_LEAF2(page);
}

/* A plain node within its page, or false. */
static inline bool
plain_node(const MDB_node *node, const char *end, LeafNode *out)
{
	if ((const char *) node + NODESIZE > end || node->mn_flags != 0)
		return false;
	out->key = NODEKEY(node);
	out->key_len = NODEKSZ(node);
	out->data.mv_size = NODEDSZ(node);
	out->data.mv_data = NODEDATA(node);
	return (const char *) out->data.mv_data + out->data.mv_size <= end;
}

bool
leaf_last(MDB_cursor *cursor, LeafNode *node)
{
	const MDB_page *page = cursor->mc_pg[cursor->mc_top];

	return on_leaf(cursor) && NUMKEYS(page) > 0 &&
		plain_node(NODEPTR(page, NUMKEYS(page) - 1), (const char *) page + cursor->mc_txn->mt_env->me_psize, node);
}

size_t
leaf_count(MDB_cursor *cursor, int64_t tau, uint8_t counted, uint8_t most, size_t max, LeafNode *last)
{
	const MDB_page *page = cursor->mc_pg[cursor->mc_top];
	const char *end = (const char *) page + cursor->mc_txn->mt_env->me_psize;
	unsigned	keys;
	unsigned	index;
	size_t		n = 0;

	if (!on_leaf(cursor))
		return 0;
	prefetch_next(cursor);
	keys = NUMKEYS(page);
	for (index = cursor->mc_ki[cursor->mc_top] + 1u; index < keys && n < max; index++)
	{
		LeafNode	node;
		int64_t		time;
		const uint8_t *value;

		if (index + AHEAD < keys)
		{
			const char *ahead = (const char *) NODEPTR(page, index + AHEAD);

			__builtin_prefetch(ahead);
			__builtin_prefetch(ahead + LINE / 2);	/* where the value begins, of short keys */
		}
		if (!plain_node(NODEPTR(page, index), end, &node) || node.data.mv_size <= sizeof(time))
			break;
		value = node.data.mv_data;
		memcpy(&time, value, sizeof(time));
		if (time > tau || value[sizeof(time)] > most)
			break;
		if (value[sizeof(time)] == counted)
		{
			*last = node;
			n++;
		}
	}
	cursor->mc_ki[cursor->mc_top] = (indx_t) (index - 1);
	return n;
}

#define SPLIT_PAGES 1024		/* branch pages of one level that are looked at */
#define SPLIT_KEYS 32768

/* A page and the key where it begins, if that lies within the range. */
typedef struct SplitPage
{
	pgno_t		number;
	MDB_val		begin;
} SplitPage;

typedef struct Split
{
	const MDB_val *lo;
	const MDB_val *hi;
	MDB_val    *keys;
	size_t		nkeys;
	SplitPage  *below;			/* children of the level's pages */
	size_t		nbelow;
} Split;

static int
compare(const MDB_val *a, const MDB_val *b)
{
	int			order = memcmp(a->mv_data, b->mv_data, a->mv_size < b->mv_size ? a->mv_size : b->mv_size);

	return order != 0 ? order : (a->mv_size > b->mv_size) - (a->mv_size < b->mv_size);
}

/* Take the separators of a branch page that lie in the range, and its children that overlap it. */
static bool
split_page(Split *split, MDB_page *page, const MDB_val *begin)
{
	unsigned	n = NUMKEYS(page);
	MDB_val		child = *begin;

	for (unsigned i = 0; i < n; i++)
	{
		MDB_node   *node = NODEPTR(page, i);
		MDB_val		key = {NODEKSZ(node), NODEKEY(node)};

		if (i > 0)
		{
			if (split->hi->mv_size > 0 && compare(&key, split->hi) >= 0)
				break;
			child = key;
		}
		if (i + 1 < n)
		{
			MDB_node   *next = NODEPTR(page, i + 1);
			MDB_val		end = {NODEKSZ(next), NODEKEY(next)};

			if (compare(&end, split->lo) <= 0)
				continue;
		}
		if (split->nkeys == SPLIT_KEYS || split->nbelow == SPLIT_KEYS)
			return false;
		if (child.mv_size > 0 && compare(&child, split->lo) > 0)
			split->keys[split->nkeys++] = child;
		else
			child.mv_size = 0;
		split->below[split->nbelow++] = (SplitPage) {NODEPGNO(node), child};
	}
	return true;
}

int
leaf_split(MDB_cursor *cursor, const MDB_val *lo, const MDB_val *hi, MDB_val *keys, size_t max, size_t *n)
{
	unsigned	depth = cursor->mc_db->md_depth;
	SplitPage  *pages = malloc(SPLIT_KEYS * sizeof(SplitPage));
	SplitPage  *below = malloc(SPLIT_KEYS * sizeof(SplitPage));
	MDB_val    *found = malloc(SPLIT_KEYS * sizeof(MDB_val));
	size_t		npages = 1;
	size_t		nfound = 0;
	int			rc = pages && below && found ? 0 : ENOMEM;

	*n = 0;
	if (rc == 0)
		pages[0] = (SplitPage) {cursor->mc_db->md_root, {0, NULL}};
	/* down to the pages above the leaves, or until there are enough */
	for (unsigned level = 0; rc == 0 && level + 1 < depth && nfound < max && npages <= SPLIT_PAGES; level++)
	{
		Split		split = {lo, hi, found, 0, below, 0};
		bool		all = true;

		for (size_t i = 0; rc == 0 && all && i < npages; i++)
		{
			MDB_page   *page;

			rc = MDB_PAGE_GET(cursor, pages[i].number, 1, &page);
			if (rc == 0 && !IS_BRANCH(page))
				rc = MDB_CORRUPTED;
			if (rc == 0)
				all = split_page(&split, page, &pages[i].begin);
		}
		if (!all)
			break;
		nfound = split.nkeys;
		npages = split.nbelow;
		below = pages;
		pages = split.below;
	}
	for (size_t i = 0; rc == 0 && i < nfound && *n < max; i++)
	{
		/* evenly: the last of each run */
		if ((i + 1) * (max < nfound ? max : nfound) / nfound > *n)
			keys[(*n)++] = found[i];
	}
	free(pages);
	free(below);
	free(found);
	return rc;
}
