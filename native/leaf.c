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
 * What must hold: anything that is not a plain node within its page is left
 * to mdb_cursor_get(), which knows overflow pages and reports damage.
 *
 *-------------------------------------------------------------------------
 */
#include <limits.h>

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
