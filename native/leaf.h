/*-------------------------------------------------------------------------
 *
 * leaf.h
 *	  The nodes of the leaf page that an LMDB cursor stands on.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LEAF_H
#define LEAF_H

#include <stddef.h>
#include <stdint.h>

#include "lmdb.h"

#define LEAF_NODES 128

typedef struct LeafNode
{
	const uint8_t *key;
	size_t		key_len;
	MDB_val		data;
} LeafNode;

/*
 * Move the cursor forward over nodes of its page, at most max, and return how
 * many and where they are.  Fewer than there are (or none) is a valid answer:
 * mdb_cursor_get(MDB_NEXT) goes on from there.  Valid as long as the read
 * transaction.
 */
extern size_t leaf_rest(MDB_cursor *cursor, LeafNode *nodes, size_t max);

/*
 * Keys strictly between lo and hi (empty: no end), in order, that divide what
 * lies there into parts of about the same number of pages: at most max, none
 * if it is little.  They come from branch pages, so no entry need have such a
 * key.  Valid as long as the read transaction.  Returns an LMDB error, or 0.
 */
extern int	leaf_split(MDB_cursor *cursor, const MDB_val *lo, const MDB_val *hi, MDB_val *keys, size_t max,
					   size_t *n);

#endif
