/*-------------------------------------------------------------------------
 *
 * index.h
 *	  What the files of the index access method share (index_am.c,
 *	  index_scan.c, index_build.c, index_cost.c) and their view of
 *	  key_codec.c.
 *
 * Must hold: an index entry's key is a function of the index columns (and,
 * where docs/formats.md says so, of the row key) only, so that the entry of a
 * row version can be computed again to delete it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef AUSTRALIS_INDEX_H
#define AUSTRALIS_INDEX_H

#include "australis.h"

#include "access/amapi.h"
#include "access/genam.h"
#include "nodes/execnodes.h"

/* ------------------------------------------------------------ key_codec.c */

/* How the encoding of a search value of another type bounds a column. */
typedef enum KeyMatch
{
	KEY_EXACT,					/* low = high = the value's place */
	KEY_BETWEEN,				/* no column value equals it; low = high = the
								 * greatest column value below */
	KEY_WIDE,					/* somewhere in [low, high]: recheck */
	KEY_UNKNOWN,				/* nothing appended: no bound */
} KeyMatch;

/*
 * Like au_key_append_foreign, but says more: low and high (two buffers with
 * the same content before) get the encodings that bound the value from below
 * and above in the order of values, whatever DESC says.
 */
extern KeyMatch au_key_append_search(StringInfo low, StringInfo high, const KeyColumn *col,
									 Datum value, Oid valuetype);

/*
 * ereport 0A000 unless values of this type under this collation sort by
 * bytes (collation C).
 */
extern void au_key_check_collation(Oid type, Oid collation);

/* Is cmpproc, a btree support function 1, the order that col encodes? */
extern bool au_key_order_is(const KeyColumn *col, Oid cmpproc);

/* ------------------------------------------------------------- index_am.c */

/*
 * Everything about an index that does not change while it exists.  Cached in
 * rd_amcache, which an invalidation frees: work on a copy.
 */
typedef struct IndexShape
{
	int			nkeys;			/* key columns, without INCLUDE columns */
	bool		unique;			/* entries are keyed by the columns alone */
	bool		deferrable;		/* unique, but entries carry the row key */
	bool		nulls_distinct;
	bool		cstrings;		/* has a name column, which pg_index types as
								 * cstring */
	KeyColumn	columns[INDEX_MAX_KEYS];	/* only nkeys of them are copied */
} IndexShape;

extern void au_index_shape(Relation index, IndexShape *shape);

/*
 * Key of an entry in key, which is reset first: relation id, key columns and,
 * where docs/formats.md says so, the row key.  Returns the length without the
 * row key.
 */
extern int	au_index_key(StringInfo key, Relation index, const IndexShape *shape,
						 const Datum *values, const bool *isnull, Bytes rowkey, bool *suffixed);

/* Value of an entry, appended. */
extern void au_index_value(StringInfo value, Relation index, const Datum *values, const bool *isnull,
						   Bytes rowkey);

/* 0A000 unless the index's operator classes and collations sort by our keys. */
extern void au_index_check_supported(Relation index);

/* ----------------------------------------------------------- index_scan.c */
extern IndexScanDesc au_index_beginscan(Relation index, int nkeys, int norderbys);
extern void au_index_rescan(IndexScanDesc scan, ScanKey keys, int nkeys, ScanKey orderbys, int norderbys);
extern bool au_index_gettuple(IndexScanDesc scan, ScanDirection dir);
extern void au_index_endscan(IndexScanDesc scan);
extern void au_index_markpos(IndexScanDesc scan);
extern void au_index_restrpos(IndexScanDesc scan);

/* ---------------------------------------------------------- index_build.c */
extern IndexBuildResult *au_index_build(Relation heap, Relation index, struct IndexInfo *info);
extern void au_index_buildempty(Relation index);

/* ----------------------------------------------------------- index_cost.c */
extern void au_index_costestimate(struct PlannerInfo *root, struct IndexPath *path, double loop_count,
								  Cost *startup, Cost *total, Selectivity *selectivity,
								  double *correlation, double *pages);
extern int	au_index_gettreeheight(Relation index);

#endif							/* AUSTRALIS_INDEX_H */
