/*-------------------------------------------------------------------------
 *
 * index_cost.c
 *	  What the planner is told about an index.
 *
 * The formula is btree's, so that plans look like PostgreSQL's; it wants a
 * size in pages, which storage does not have.  So the pages are those that a
 * btree with the same entries would have: number of entries from storage,
 * width from the columns' statistics.
 *
 * Through the socket driver every row of a secondary index is a round trip of
 * its own, however well the heap is correlated with the index: there the
 * correlation is told to be none, which charges a random page per row.
 *
 * Three places know btree by its oid.  Row comparisons, (a, b) > (x, y), are
 * matched to its indexes only, so the planner's description of ours says
 * btree.  LIKE is matched to text_pattern_ops and bpchar_pattern_ops, and a
 * boolean column as a condition to bool_ops, by the oids of btree's families, so
 * the description has those.  And ON CONFLICT (a text_pattern_ops) is parsed to btree's operator
 * class, which becomes our copy of it before planning.
 *
 * If storage's figures can't be had, planning fails with its error, as the
 * query would.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/itup.h"
#include "access/relation.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_type.h"
#include "nodes/pathnodes.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/plancat.h"
#include "optimizer/planner.h"
#include "parser/parsetree.h"
#include "storage/bufpage.h"
#include "utils/builtins.h"
#include "utils/index_selfuncs.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "australis.h"
#include "index.h"

/*
 * Statistics of storage, remembered for a second, and not beyond the
 * transaction where they can be read without a message.
 */
typedef struct CachedStats
{
	RelId		relid;
	TimestampTz until;
	uint64		serial;
	int64		rows;
} CachedStats;

#define CACHED_STATS 256
static CachedStats cached_stats[CACHED_STATS];

static double
entries_of(RelId relid)
{
	CachedStats *c = &cached_stats[(relid ^ (relid >> 32)) % CACHED_STATS];
	TimestampTz now = GetCurrentTimestamp();
	int64		rows;
	int64		bytes = 0;

	if (c->relid != relid || now >= c->until || now < c->until - USECS_PER_SEC ||
		(au_storage_driver == 0 && c->serial != au_transaction_serial()))
	{
		c->relid = 0;
		au_read_stats(relid, &c->rows, &bytes);
		c->relid = relid;
		c->serial = au_transaction_serial();
		c->until = now + USECS_PER_SEC;
	}
	rows = c->rows;
	au_wb_estimate(relid, &rows, &bytes);
	return (double) Max(rows, 0);
}

/* Width of an index tuple of btree, line pointer included. */
static double
entry_width(Relation index, Relation heap)
{
	double		width = 0;

	for (int i = 0; i < RelationGetDescr(index)->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(index), i);
		AttrNumber	heap_att = index->rd_index->indkey.values[i];
		int32		w = 0;

		if (att->attlen > 0)
			w = att->attlen;
		else if (heap_att > 0)
			w = get_attavgwidth(RelationGetRelid(heap), heap_att);
		if (w <= 0)
			w = get_typavgwidth(att->atttypid, att->atttypmod);
		width += w;
	}
	return MAXALIGN((Size) width + sizeof(IndexTupleData)) + sizeof(ItemIdData);
}

typedef struct IndexSize
{
	bool		primary;
	double		entries;
	double		pages;
	int			height;
} IndexSize;

static void
estimate_size(Relation index, IndexSize *size)
{
	/* callers hold a lock on the table */
	Relation	heap = relation_open(index->rd_index->indrelid, NoLock);
	double		width = entry_width(index, heap);
	double		usable = (BLCKSZ - SizeOfPageHeaderData - 16) * 0.9;
	double		level;

	size->primary = au_index_is_primary(heap, index);
	size->entries = entries_of(au_relid(size->primary ? heap : index));
	relation_close(heap, NoLock);

	/* a btree has a meta page; each level has a page per so many below it */
	size->pages = 1;
	size->height = 0;
	if (size->entries > 0)
	{
		double		fanout = Max(floor(usable / width), 2.0);

		level = ceil(size->entries / fanout);
		size->pages += level;
		while (level > 1)
		{
			level = ceil(level / fanout);
			size->pages += level;
			size->height++;
		}
	}
}

int
au_index_gettreeheight(Relation index)
{
	IndexSize	size;

	estimate_size(index, &size);
	return size.height;
}

void
au_index_costestimate(PlannerInfo *root, IndexPath *path, double loop_count,
					  Cost *startup, Cost *total, Selectivity *selectivity,
					  double *correlation, double *pages)
{
	IndexOptInfo *info = path->indexinfo;
	bool		primary = false;

	if (!info->hypothetical)
	{
		Relation	index = relation_open(info->indexoid, NoLock);
		IndexSize	size;

		estimate_size(index, &size);
		relation_close(index, NoLock);
		primary = size.primary;
		info->pages = (BlockNumber) Min(size.pages, MaxBlockNumber);
		info->tree_height = size.height;
		if (info->indpred != NIL)
			info->tuples = Min(size.entries, info->rel->tuples);
	}

	btcostestimate(root, path, loop_count, startup, total, selectivity, correlation, pages);

	if (!primary && au_storage_driver != 0)
		*correlation = 0;

	/*
	 * Reading a whole index instead of the table saves nothing here: rows and
	 * entries come from storage alike, and an entry must still be made into a
	 * tuple.
	 */
	if (path->indexclauses == NIL && path->path.pathtype == T_IndexOnlyScan)
		*total += info->rel->pages * seq_page_cost + info->tuples * cpu_operator_cost * 4;
}

/* ------------------------------------------------ where the oid is known */

static get_relation_info_hook_type prev_relation_info = NULL;
static planner_hook_type prev_planner = NULL;

#define KNOWN_FAMILIES 3

/* btree's oid of our copies of these families, the family else */
static Oid
known_family(Oid family)
{
	static const Oid known[KNOWN_FAMILIES] = {TEXT_PATTERN_BTREE_FAM_OID, BPCHAR_PATTERN_BTREE_FAM_OID,
	BOOL_BTREE_FAM_OID};
	static Oid	copies[KNOWN_FAMILIES] = {InvalidOid, InvalidOid, InvalidOid};

	for (int i = 0; i < KNOWN_FAMILIES; i++)
	{
		/* the same in all databases: looked up once */
		if (!OidIsValid(copies[i]))
		{
			NameData	name;

			namestrcpy(&name, get_opfamily_name(known[i], false));
			copies[i] = GetSysCacheOid3(OPFAMILYAMNAMENSP, Anum_pg_opfamily_oid, ObjectIdGetDatum(AU_INDEX_AM_OID),
										NameGetDatum(&name), ObjectIdGetDatum(PG_CATALOG_NAMESPACE));
		}
		if (family == copies[i] && OidIsValid(family))
			return known[i];
	}
	return family;
}

static void
relation_info(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel)
{
	if (prev_relation_info)
		prev_relation_info(root, relid, inhparent, rel);
	foreach_node(IndexOptInfo, info, rel->indexlist)
	{
		if (info->relam != AU_INDEX_AM_OID)
			continue;
		info->relam = BTREE_AM_OID;
		for (int i = 0; i < info->nkeycolumns; i++)
		{
			if (info->opcintype[i] == TEXTOID || info->opcintype[i] == BPCHAROID || info->opcintype[i] == BOOLOID)
				info->opfamily[i] = known_family(info->opfamily[i]);
		}
	}
}

/* Our operator class for btree's, by name; itself if there is none. */
static Oid
own_opclass(Oid opclass)
{
	HeapTuple	tup = SearchSysCache1(CLAOID, ObjectIdGetDatum(opclass));
	Form_pg_opclass form;
	Oid			own = InvalidOid;

	if (!HeapTupleIsValid(tup))
		return opclass;
	form = (Form_pg_opclass) GETSTRUCT(tup);
	if (form->opcmethod == BTREE_AM_OID)
		own = GetSysCacheOid3(CLAAMNAMENSP, Anum_pg_opclass_oid,
							  ObjectIdGetDatum(AU_INDEX_AM_OID),
							  NameGetDatum(&form->opcname),
							  ObjectIdGetDatum(form->opcnamespace));
	ReleaseSysCache(tup);
	return OidIsValid(own) ? own : opclass;
}

static void
map_arbiters(Query *query)
{
	if (query->onConflict != NULL && query->onConflict->arbiterElems != NIL)
	{
		RangeTblEntry *target = rt_fetch(query->resultRelation, query->rtable);

		/* indexes of temporary tables are btree's own */
		if (get_rel_persistence(target->relid) != RELPERSISTENCE_TEMP)
		{
			foreach_node(InferenceElem, elem, query->onConflict->arbiterElems)
			{
				if (OidIsValid(elem->inferopclass))
					elem->inferopclass = own_opclass(elem->inferopclass);
			}
		}
	}
	foreach_node(CommonTableExpr, cte, query->cteList)
	{
		if (IsA(cte->ctequery, Query))
			map_arbiters((Query *) cte->ctequery);
	}
}

static PlannedStmt *
plan_with_own_opclasses(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	map_arbiters(parse);
	if (prev_planner)
		return prev_planner(parse, query_string, cursor_options, params);
	return standard_planner(parse, query_string, cursor_options, params);
}

void
au_index_init(void)
{
	prev_relation_info = get_relation_info_hook;
	get_relation_info_hook = relation_info;
	prev_planner = planner_hook;
	planner_hook = plan_with_own_opclasses;
}
