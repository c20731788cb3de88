/*-------------------------------------------------------------------------
 *
 * leaf.h
 *	  The nodes of the leaf page that an LMDB cursor stands on.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LEAF_H
#define LEAF_H

#include <stdbool.h>
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

/* The last node of the cursor's page; false: it is none that leaf_rest() knows. */
extern bool leaf_last(MDB_cursor *cursor, LeafNode *node);

/*
 * As leaf_rest(), but only count: values that begin with a little-endian time
 * not above tau and a byte `counted`.  Stops in front of a node that is later
 * than tau or whose byte is above `most`, and when max are counted; *last is
 * the last node that was counted, if any was.
 */
extern size_t leaf_count(MDB_cursor *cursor, int64_t tau, uint8_t counted, uint8_t most, size_t max, LeafNode *last);

/*
 * Keys strictly between lo and hi (empty: no end), in order, that divide what
 * lies there into parts of about the same number of pages: at most max, none
 * if it is little.  They come from branch pages, so no entry need have such a
 * key.  Valid as long as the read transaction.  Returns an LMDB error, or 0.
 */
extern int	leaf_split(MDB_cursor *cursor, const MDB_val *lo, const MDB_val *hi, MDB_val *keys, size_t max,
					   size_t *n);

#endif
