/*-------------------------------------------------------------------------
 *
 * online_index.h
 *	  What utility.c and the access methods call of online_index.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef AUSTRALIS_ONLINE_INDEX_H
#define AUSTRALIS_ONLINE_INDEX_H

#include "australis.h"

#include "nodes/execnodes.h"
#include "nodes/parsenodes.h"

/* Is this CREATE INDEX to be run by au_online_index_create? */
extern bool au_online_index_wanted(IndexStmt *stmt, bool top_level);

/*
 * Run PostgreSQL's statement, then build the index in transactions of their
 * own.  The statement's tree may be gone afterwards.
 */
extern void au_online_index_create(IndexStmt *stmt, void (*statement) (void *), void *arg);

/* The index that this REINDEX completes (au_online_index_complete), or 0. */
extern Oid	au_online_index_to_complete(ReindexStmt *stmt, bool top_level);
extern void au_online_index_complete(Oid index, bool concurrent);

/*
 * REINDEX TABLE, SCHEMA or DATABASE as a REINDEX INDEX for each index, given
 * to `run`, in transactions of its own (reindex.c).  False: it is none, or is
 * to be run as it is.
 */
extern bool au_reindex_each(ReindexStmt *stmt, bool top_level, void (*run) (Node *, void *), void *arg);

/* Can this run as PostgreSQL's REINDEX INDEX CONCURRENTLY? */
extern bool au_online_index_can_copy(ReindexStmt *stmt);

/* An index was created: from object_access_hook. */
extern void au_online_index_created(Oid index);

/* Is the build that PostgreSQL asks for not to be done now? */
extern bool au_online_index_deferred(Relation index, IndexInfo *info);

extern void au_online_index_validate(Relation heap, Relation index, IndexInfo *info);

#endif							/* AUSTRALIS_ONLINE_INDEX_H */
