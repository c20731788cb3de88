/*-------------------------------------------------------------------------
 *
 * scan_hints.c
 *	  What a scan need not read.
 *
 * Only the plan knows how much of its rows a scan has to read, and which keys
 * its filter lets through: PostgreSQL reads the few pages of a small table
 * whatever they hold, so its planner prefers a sequential scan even where the
 * filter is `key = value`.  Here that is one look-up instead of all rows.  The
 * plan stays as it is; before it runs, the scan's slot is told, and carries it
 * to table_am.c.
 *
 * Must hold: a scan with hints returns every row that its filter accepts, and
 * the filter is evaluated for each row returned.  Only the clauses that come
 * first in a filter count: whatever comes later (it may have side effects) is
 * evaluated for the same rows as without the hint.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/sysattr.h"
#include "executor/executor.h"
#include "catalog/pg_type.h"
#include "index.h"
#include "lib/ilist.h"
#include "nodes/nodeFuncs.h"
#include "nodes/params.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

/* How many attributes of a scanned row expressions look at: the highest. */
typedef struct Reads
{
	List	   *outer;			/* what OUTER_VARs stand for, or NIL */
	int			natts;
	bool		system;			/* also system attributes */
	Bitmapset  *attnums;
} Reads;

static void
note_attribute(Reads *reads, const Var *var)
{
	if (var->varattno == 0)
		reads->natts = MaxTupleAttributeNumber; /* the whole row */
	else if (var->varattno < 0)
		reads->system = true;
	else
	{
		reads->natts = Max(reads->natts, var->varattno);
		reads->attnums = bms_add_member(reads->attnums, var->varattno);
	}
}

static bool
find_reads(Node *node, void *context)
{
	Reads	   *reads = context;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		if (var->varno == OUTER_VAR && reads->outer != NIL)
		{
			TargetEntry *entry = list_nth_node(TargetEntry, reads->outer, var->varattno - 1);

			if (!IsA(entry->expr, Var))
				reads->natts = MaxTupleAttributeNumber;
			else
				note_attribute(reads, (Var *) entry->expr);
		}
		else
			note_attribute(reads, var);
		return false;
	}
	return expression_tree_walker(node, find_reads, context);
}

/* Is it worth the work of storage to leave out all other columns? */
static bool
saves_bytes(PlanState *node, TupleDesc desc, const Bitmapset *wanted)
{
	Oid			relid = RelationGetRelid(((ScanState *) node)->ss_currentRelation);
	int32		saved = 0;
	int			last = 0;

	for (int i = -1; (i = bms_next_member(wanted, i)) >= 0;)
		last = i;
	for (int attnum = 1; attnum <= desc->natts; attnum++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);
		int32		width;

		if (bms_is_member(attnum, wanted) || att->attisdropped)
			continue;
		width = att->attlen > 0 ? att->attlen : get_attavgwidth(relid, attnum);
		saved += width > 0 ? width : get_typavgwidth(att->atttypid, att->atttypmod);
	}
	/* a bitmap may come in, and the driver that copies anyway has little to win */
	return saved >= (au_storage_driver == 0 ? 1024 : 16) + last / 8;
}

/*
 * Tell the slots of sequential scans how much of a row anybody looks at, where
 * that is certain: the scan projects, or an aggregate is right above it.
 */
static void
hint_attributes(PlanState *node, PlanState *parent, AustralisTupleTableSlot *slot, PushDown *push)
{
	TupleDesc	desc = slot->base.base.tts_tupleDescriptor;
	Reads		reads = {0};

	(void) find_reads((Node *) node->plan->qual, &reads);
	if (node->ps_ProjInfo)
		(void) find_reads((Node *) node->plan->targetlist, &reads);
	else if (parent && IsA(parent, AggState) && outerPlanState(parent) == node)
	{
		Agg		   *agg = (Agg *) parent->plan;

		reads.outer = node->plan->targetlist;
		if (reads.outer != NIL)
		{
			(void) find_reads((Node *) agg->plan.targetlist, &reads);
			(void) find_reads((Node *) agg->plan.qual, &reads);
			if (agg->numCols > 0 || agg->groupingSets != NIL || agg->chain != NIL)
				reads.natts = MaxTupleAttributeNumber;
		}
	}
	else
		reads.natts = MaxTupleAttributeNumber;
	if (!IsA(node, SeqScanState))
	{
		/* index_scan.c looks at the columns of the index */
		Form_pg_index index = ((IndexScanState *) node)->iss_RelationDesc->rd_index;

		if (reads.natts > desc->natts)
			return;
		for (int i = 0; i < index->indnatts; i++)
		{
			if (index->indkey.values[i] <= 0)
				return;			/* not the table's own key */
			reads.attnums = bms_add_member(reads.attnums, index->indkey.values[i]);
		}
		(void) find_reads((Node *) ((IndexScan *) node->plan)->indexqualorig, &reads);
		push->wanted = reads.attnums;
		push->project = saves_bytes(node, desc, reads.attnums);
	}
	else if (reads.natts <= desc->natts)
	{
		slot->read_bytes = reads.natts == 0 && !reads.system ? 0 : au_row_prefix(desc, reads.natts);
		if (slot->read_bytes != AU_READ_ALL)
			slot->read_natts = reads.natts;
		if (au_storage_driver != 0 || slot->read_bytes == AU_READ_ALL)
		{
			push->wanted = reads.attnums;
			push->project = saves_bytes(node, desc, reads.attnums);
		}
	}
}

/*
 * The value of a constant or of a parameter of the whole statement; false if it
 * is neither, NULL, or of another type.
 */
static bool
fixed_value(Expr *expr, Oid type, EState *estate, Datum *value)
{
	if (IsA(expr, Const))
	{
		Const	   *constant = (Const *) expr;

		*value = constant->constvalue;
		return !constant->constisnull && constant->consttype == type;
	}
	if (IsA(expr, Param) && ((Param *) expr)->paramkind == PARAM_EXTERN)
	{
		ParamListInfo params = estate->es_param_list_info;
		int			id = ((Param *) expr)->paramid;
		ParamExternData *given;
		ParamExternData workspace;

		if (params == NULL || id <= 0 || id > params->numParams)
			return false;
		/* speculative: the scan may never run, and then nobody may have assigned the parameter */
		given = params->paramFetch ? params->paramFetch(params, id, true, &workspace) : &params->params[id - 1];
		*value = given->value;
		return !given->isnull && given->ptype == type;
	}
	return false;
}

/* A clause `column = value`. */
typedef struct Equality
{
	AttrNumber	attnum;
	Oid			opno;
	Oid			type;
	Oid			collation;
	Datum		value;
} Equality;

static bool
is_equality(Expr *clause, Index varno, EState *estate, Equality *equality)
{
	OpExpr	   *op = (OpExpr *) clause;
	Var		   *var;
	Expr	   *other;

	if (!IsA(clause, OpExpr) || list_length(op->args) != 2)
		return false;
	var = linitial(op->args);
	other = lsecond(op->args);
	if (!IsA(var, Var))
	{
		var = lsecond(op->args);
		other = linitial(op->args);
	}
	if (!IsA(var, Var) || var->varno != varno || !AttributeNumberIsValid(var->varattno) ||
		lookup_type_cache(var->vartype, TYPECACHE_EQ_OPR)->eq_opr != op->opno)
		return false;
	equality->attnum = var->varattno;
	equality->opno = op->opno;
	equality->type = var->vartype;
	equality->collation = op->inputcollid;
	return fixed_value(other, var->vartype, estate, &equality->value);
}

/* Append the key's column if rows that are equal by this clause have equal keys, and no other rows have those. */
static bool
append_equal(StringInfo key, const Equality *equality, const KeyColumn *column)
{
	StringInfoData high;
	KeyMatch	match;
	int			length = key->len;

	if (equality->type != column->type ||
		!au_key_order_is(column, lookup_type_cache(column->type, TYPECACHE_CMP_PROC)->cmp_proc) ||
		(OidIsValid(equality->collation) && !get_collation_isdeterministic(equality->collation)))
		return false;
	initStringInfoExt(&high, key->maxlen);
	appendBinaryStringInfo(&high, key->data, key->len);
	match = au_key_append_search(key, &high, column, equality->value, InvalidOid);
	pfree(high.data);
	if (match == KEY_EXACT && key->len < AU_MAX_KEY)
		return true;
	key->len = length;
	return false;
}

/* Tell the slot between which keys the rows are that the filter accepts. */
static void
hint_keys(ScanState *scan, AustralisTupleTableSlot *slot, EState *estate)
{
	TableLayout layout;
	Equality	equalities[INDEX_MAX_KEYS];
	int			n = 0;
	int			columns = 0;
	StringInfoData from,
				to;

	/* comparisons have no side effects: they may be evaluated for fewer rows */
	foreach_ptr(Expr, clause, scan->ps.plan->qual)
	{
		if (n == INDEX_MAX_KEYS ||
			!is_equality(clause, ((Scan *) scan->ps.plan)->scanrelid, estate, &equalities[n]))
			break;
		n++;
	}
	if (n == 0)
		return;
	/* a copy: looking up types may accept invalidations */
	layout = *au_table_layout(scan->ss_currentRelation);
	/* without its primary key a row keeps its place when columns change */
	if (layout.hidden || !layout.decided || !layout.has_primary)
		return;

	initStringInfoExt(&from, 64);
	au_key_append_relid(&from, au_relid(scan->ss_currentRelation));
	for (bool found = true; found && columns < layout.ncolumns;)
	{
		found = false;
		for (int i = 0; i < n && !found; i++)
			found = equalities[i].attnum == layout.attnums[columns] &&
				append_equal(&from, &equalities[i], &layout.columns[columns]);
		if (found)
			columns++;
	}
	if (columns == 0)
		return;
	initStringInfoExt(&to, from.len + 1);
	appendBinaryStringInfo(&to, from.data, from.len);
	if (!au_key_prefix_successor(&to))
		return;
	slot->only_from = (Bytes) {(const uint8 *) from.data, from.len};
	slot->only_to = (Bytes) {(const uint8 *) to.data, to.len};
}

/* How many rows a LIMIT right above asks for; 0: unknown, or very many. */
static int
limit_above(PlanState *parent, EState *estate)
{
	Limit	   *limit;
	Datum		count;
	Datum		offset = Int64GetDatum(0);
	int64		rows;

	if (parent == NULL || !IsA(parent, LimitState))
		return 0;
	limit = (Limit *) parent->plan;
	if (limit->limitCount == NULL || limit->limitOption != LIMIT_OPTION_COUNT ||
		!fixed_value((Expr *) limit->limitCount, INT8OID, estate, &count) ||
		(limit->limitOffset != NULL && !fixed_value((Expr *) limit->limitOffset, INT8OID, estate, &offset)))
		return 0;
	rows = DatumGetInt64(count);
	if (rows <= 0 || rows > 100000 || DatumGetInt64(offset) < 0 || DatumGetInt64(offset) > 100000)
		return 0;
	return (int) (rows + DatumGetInt64(offset));
}

/*
 * In one's own process a filter only saves what happens to rows that it drops,
 * and costs for the others.
 */
static bool
filter_pays(PlanState *node)
{
	double		rows = ((ScanState *) node)->ss_currentRelation->rd_rel->reltuples;

	/* of a parallel scan the plan says what one process returns */
	return au_storage_driver != 0 || rows <= 0 ||
		node->plan->plan_rows < rows / (node->plan->parallel_aware ? 10 : 4);
}

/* What storage may do for a scan whose rows come into this slot. */
static PushDown *
make_push(PlanState *node, PlanState *parent, EState *estate, AustralisTupleTableSlot *slot, bool attributes)
{
	PushDown   *push = palloc0_object(PushDown);

	push->estate = estate;
	push->qual = filter_pays(node) ? node->plan->qual : NIL;
	push->varno = ((Scan *) node->plan)->scanrelid;
	push->desc = slot->base.base.tts_tupleDescriptor;
	if (push->qual == node->plan->qual)
		push->limit = limit_above(parent, estate);
	if (attributes)
		hint_attributes(node, parent, slot, push);
	return push;
}

/*
 * Index scans of running executors, by their scan keys, which is what an index
 * access method is given.  Most look up single keys: what storage may do is
 * found out when a range is read.
 */
typedef struct HintedScan
{
	dlist_node	node;
	const void *keys;
	IndexScanState *scan;
	PlanState  *parent;
	bool		attributes;
	PushDown   *push;
	MemoryContextCallback ended;
} HintedScan;

static dlist_head hinted_scans = DLIST_STATIC_INIT(hinted_scans);

static void
hinted_scan_ended(void *arg)
{
	dlist_delete(&((HintedScan *) arg)->node);
}

/* In the executor's memory, as the scan keys are: both go together. */
static void
hint_index_scan(IndexScanState *scan, PlanState *parent, EState *estate, bool attributes)
{
	HintedScan *hinted = palloc0_object(HintedScan);

	hinted->keys = scan->iss_ScanKeys;
	hinted->scan = scan;
	hinted->parent = parent;
	hinted->attributes = attributes;
	hinted->ended.func = hinted_scan_ended;
	hinted->ended.arg = hinted;
	dlist_push_head(&hinted_scans, &hinted->node);
	MemoryContextRegisterResetCallback(estate->es_query_cxt, &hinted->ended);
}

/* What storage may do for the scan of a table's own key with these scan keys; or NULL. */
const PushDown *
au_index_scan_push(const void *keys, Relation heap)
{
	dlist_iter	iter;

	dlist_foreach(iter, &hinted_scans)
	{
		HintedScan *hinted = dlist_container(HintedScan, node, iter.cur);
		IndexScanState *scan = hinted->scan;

		if (hinted->keys != keys || scan->ss.ss_currentRelation != heap)
			continue;
		if (hinted->push == NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(scan->ss.ps.state->es_query_cxt);

			hinted->push = make_push(&scan->ss.ps, hinted->parent, scan->ss.ps.state,
									 (AustralisTupleTableSlot *) scan->ss.ss_ScanTupleSlot, hinted->attributes);
			MemoryContextSwitchTo(old);
		}
		return hinted->push;
	}
	return NULL;
}

typedef struct Hints
{
	EState	   *estate;
	PlanState  *parent;
	bool		attributes;
} Hints;

static bool
hint_scan(PlanState *node, void *context)
{
	Hints	   *hints = context;
	Hints		below = *hints;

	if (node == NULL)
		return false;
	if (IsA(node, SeqScanState) && ((ScanState *) node)->ss_ScanTupleSlot->tts_ops == &TTSOpsAustralis)
	{
		AustralisTupleTableSlot *slot = (AustralisTupleTableSlot *) ((ScanState *) node)->ss_ScanTupleSlot;
		PushDown   *push = make_push(node, hints->parent, hints->estate, slot, hints->attributes);

		if (push->qual != NIL || push->project || push->limit > 0)
			slot->push = push;
		hint_keys((ScanState *) node, slot, hints->estate);
	}
	else if (IsA(node, IndexScanState) && ((ScanState *) node)->ss_ScanTupleSlot->tts_ops == &TTSOpsAustralis &&
			 ((IndexScanState *) node)->iss_RelationDesc != NULL)
		hint_index_scan((IndexScanState *) node, hints->parent, hints->estate, hints->attributes);
	below.parent = node;
	return planstate_tree_walker(node, hint_scan, &below);
}

/* `attributes`: nobody asks for names of rows, so not all of a row has to be read. */
void
au_hint_scans(QueryDesc *query, bool attributes)
{
	Hints		hints = {query->estate, NULL, attributes};
	MemoryContext old = MemoryContextSwitchTo(query->estate->es_query_cxt);

	(void) hint_scan(query->planstate, &hints);
	MemoryContextSwitchTo(old);
}
