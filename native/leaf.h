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

#endif
