/*-------------------------------------------------------------------------
 *
 * planner.c
 *	  What planner and executor are told about our tables.
 *
 * A parallel worker reads storage as of its leader's tau_start, but has neither
 * the write buffer nor the TIDs of its leader.  So plans are parallel only while
 * the transaction has written nothing, and if nobody asks for a TID; and a
 * parallel plan that runs after a write runs without workers.
 *
 * TIDs name row versions only while the transaction remembers them.  Most
 * plans never look one up again and let them be forgotten; plans that modify
 * or lock rows, or show ctids (one row has one, however often it is read), need
 * them kept, and so does the row that a cursor stands on (WHERE CURRENT OF).  What must hold: au_tid_keep says what
 * the executor that is running now needs, also after an error in a nested one.
 *
 * The snapshots of running executors are remembered: a flush of the write
 * buffer must not show their scans rows of later commands.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/parallel.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "lib/ilist.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/pathnodes.h"
#include "nodes/plannodes.h"
#include "nodes/primnodes.h"
#include "optimizer/planner.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * What the planner hook says to the executor hooks travels in bits of
 * PlannedStmt.jitFlags that PostgreSQL does not use: it has no other place that
 * is copied and cached with a plan.
 */
#define PLAN_HAS_CTID		(1 << 30)
#define PLAN_OF_CURSOR		(1 << 29)
#define PLAN_WITHOUT_TIDS	(1 << 28)

/* An executor between start and end, in its own memory. */
typedef struct RunningQuery
{
	dlist_node	node;
	CommandId	curcid;
	MemoryContextCallback ended;
} RunningQuery;

static dlist_head running = DLIST_STATIC_INIT(running);

static planner_hook_type prev_planner = NULL;
static ExecutorStart_hook_type prev_start = NULL;
static ExecutorRun_hook_type prev_run = NULL;
static ExecutorFinish_hook_type prev_finish = NULL;

/* SELECT pg_export_snapshot(), as pg_dump says it */
static bool
exports_snapshot(const Query *query)
{
	if (query->commandType != CMD_SELECT || query->jointree->fromlist != NIL)
		return false;
	foreach_node(TargetEntry, entry, query->targetList)
	{
		if (IsA(entry->expr, FuncExpr) && ((FuncExpr *) entry->expr)->funcid == F_PG_EXPORT_SNAPSHOT)
			return true;
	}
	return false;
}

/* Is some row's ctid asked for? */
static bool
mentions_ctid(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
		return ((Var *) node)->varattno == SelfItemPointerAttributeNumber;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, mentions_ctid, context, 0);
	return expression_tree_walker(node, mentions_ctid, context);
}

/*
 * May something that is not in the tree yet ask for a ctid?  The body of a
 * set-returning SQL function comes into it when it is planned.
 */
static bool
has_hidden_query(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		return rte->rtekind == RTE_FUNCTION &&
			expression_tree_walker((Node *) rte->functions, has_hidden_query, context);
	}
	if (IsA(node, FuncExpr))
	{
		FuncExpr   *call = (FuncExpr *) node;

		return call->funcretset && call->funcid >= FirstNormalObjectId;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, has_hidden_query, context, QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, has_hidden_query, context);
}

static bool any_reads_ctid(const List *plans);

/*
 * Does a finished plan read a ctid?  Every one that is looked at anywhere comes
 * out of a scan: by its target list, its filter or its TIDs.
 */
static bool
plan_reads_ctid(const Plan *plan)
{
	if (plan == NULL)
		return false;
	if (IsA(plan, TidScan) || IsA(plan, TidRangeScan) || mentions_ctid((Node *) plan->targetlist, NULL) ||
		mentions_ctid((Node *) plan->qual, NULL))
		return true;
	if (IsA(plan, Append) && any_reads_ctid(((const Append *) plan)->appendplans))
		return true;
	if (IsA(plan, MergeAppend) && any_reads_ctid(((const MergeAppend *) plan)->mergeplans))
		return true;
	if (IsA(plan, SubqueryScan) && plan_reads_ctid(((const SubqueryScan *) plan)->subplan))
		return true;
	return plan_reads_ctid(plan->lefttree) || plan_reads_ctid(plan->righttree);
}

static bool
any_reads_ctid(const List *plans)
{
	foreach_ptr(Plan, plan, plans)
	{
		if (plan_reads_ctid(plan))
			return true;
	}
	return false;
}

static bool
has_identity(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, NextValueExpr))
		return true;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, has_identity, context, 0);
	return expression_tree_walker(node, has_identity, context);
}

/* Identity columns draw their values by a call of our function (sequence.c). */
static Node *
draw_by_call(Node *node, void *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, NextValueExpr))
	{
		NextValueExpr *next = (NextValueExpr *) node;
		Const	   *sequence = makeConst(REGCLASSOID, -1, InvalidOid, sizeof(Oid), ObjectIdGetDatum(next->seqid),
										 false, true);
		FuncExpr   *call = makeFuncExpr(AU_IDENTITY_VALUE_OID, INT8OID, list_make1(sequence), InvalidOid, InvalidOid,
										COERCE_EXPLICIT_CALL);

		call->location = AU_IDENTITY_LOCATION;
		if (next->typeId == INT8OID)
			return (Node *) call;
		return (Node *) makeFuncExpr(next->typeId == INT4OID ? F_INT4_INT8 : F_INT2_INT8, next->typeId,
									 list_make1(call), InvalidOid, InvalidOid, COERCE_IMPLICIT_CAST);
	}
	if (IsA(node, Query))
		return (Node *) query_tree_mutator((Query *) node, draw_by_call, context, 0);
	return expression_tree_mutator(node, draw_by_call, context);
}

static PlannedStmt *
plan(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	PlannedStmt *result;
	int			flags = 0;
	bool		hidden = false;

	if (au_enabled)
	{
		/* before the first record is applied even names mean nothing */
		au_ddl_wait_applied(0);

		/* whoever imports the snapshot takes this transaction's time */
		if (exports_snapshot(parse))
			(void) au_tau_start();
		if (parse->commandType != CMD_UTILITY && has_identity((Node *) parse, NULL) &&
			SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(AU_IDENTITY_VALUE_OID)))
			parse = (Query *) draw_by_call((Node *) parse, NULL);
		if (mentions_ctid((Node *) parse, NULL))
			flags |= PLAN_HAS_CTID;
		/* what DECLARE CURSOR and PL/pgSQL's OPEN plan with */
		if (cursor_options & CURSOR_OPT_FAST_PLAN)
			flags |= PLAN_OF_CURSOR;
		hidden = has_hidden_query((Node *) parse, NULL);
		if (flags == 0 && !hidden)
			flags |= PLAN_WITHOUT_TIDS;
		if (flags != PLAN_WITHOUT_TIDS || au_storage_driver != 0 || !au_workers_see_all())
			cursor_options &= ~CURSOR_OPT_PARALLEL_OK;
	}
	if (prev_planner)
		result = prev_planner(parse, query_string, cursor_options, params);
	else
		result = standard_planner(parse, query_string, cursor_options, params);
	if (hidden && (plan_reads_ctid(result->planTree) || any_reads_ctid(result->subplans)))
		flags |= PLAN_HAS_CTID;
	result->jitFlags |= flags;
	return result;
}

/* Does this plan come back to rows by TID? */
static inline bool
needs_tids(const PlannedStmt *stmt)
{
	return stmt->commandType == CMD_UPDATE || stmt->commandType == CMD_DELETE ||
		stmt->commandType == CMD_MERGE || stmt->rowMarks != NIL || stmt->hasModifyingCTE ||
		(stmt->jitFlags & PLAN_HAS_CTID) != 0;
}

/* Also to rows that it inserted itself? */
static inline bool
needs_inserted_tids(const PlannedStmt *stmt)
{
	return stmt->commandType == CMD_MERGE || stmt->hasModifyingCTE || stmt->hasReturning;
}

/*
 * WHERE CURRENT OF comes back to the row that a cursor's scan stands on, after
 * any number of other rows: let its name last.
 */
static bool
keep_position(PlanState *node, void *context)
{
	ItemPointer tid = NULL;
	TidTarget	target;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_SeqScanState:
		case T_IndexScanState:
		case T_TidScanState:
			{
				ScanState  *scan = (ScanState *) node;

				if (scan->ss_currentRelation && au_is_our_table(scan->ss_currentRelation) &&
					!TupIsNull(scan->ss_ScanTupleSlot))
					tid = &scan->ss_ScanTupleSlot->tts_tid;
				break;
			}
		case T_IndexOnlyScanState:
			{
				IndexOnlyScanState *scan = (IndexOnlyScanState *) node;

				if (au_is_our_table(scan->ss.ss_currentRelation) && scan->ioss_ScanDesc &&
					!TupIsNull(scan->ss.ss_ScanTupleSlot))
					tid = &scan->ioss_ScanDesc->xs_heaptid;
				break;
			}
		default:
			break;
	}
	if (tid && ItemPointerIsValid(tid) && au_tid_lookup(tid, &target))
	{
		uint8		key[AU_MAX_KEY];
		Bytes		copy = {key, target.key.len};

		memcpy(key, target.key.data, target.key.len);
		au_tid_assign(tid, copy, target.version, true);
	}
	return planstate_tree_walker(node, keep_position, context);
}

static void
query_ended(void *arg)
{
	dlist_delete(&((RunningQuery *) arg)->node);
}

/*
 * Scans check the tables that they read (rule Q3).  A table that was detached
 * or dropped since tau_start is not scanned any more; only its parent tells
 * that the snapshot has more rows.  Under SERIALIZABLE what is read must be
 * unchanged at COMMIT too: ATTACH PARTITION and INHERIT do not wait for
 * readers.
 */
static void
check_relations(QueryDesc *query)
{
	PlannedStmt *stmt = query->plannedstmt;
	Bitmapset  *children = NULL;
	int			rti = 0;

	if (XactIsoLevel == XACT_SERIALIZABLE)
	{
		foreach_node(AppendRelInfo, child, stmt->appendRelations)
			children = bms_add_member(children, child->child_relid);
	}
	foreach_node(RangeTblEntry, rte, stmt->rtable)
	{
		rti++;
		if (rte->rtekind != RTE_RELATION || rte->relid < FirstNormalObjectId)
			continue;
		/* rows are not read for a plain INSERT */
		if (stmt->commandType == CMD_INSERT && list_member_int(stmt->resultRelations, rti))
			continue;
		if (rte->relkind == RELKIND_PARTITIONED_TABLE)
			au_check_partitions_not_ahead(rte->relid);
		else if (rte->relkind != RELKIND_RELATION && rte->relkind != RELKIND_MATVIEW)
			continue;
		/* a partition's parent stands for it */
		if (XactIsoLevel == XACT_SERIALIZABLE &&
			(rte->relkind == RELKIND_PARTITIONED_TABLE || !bms_is_member(rti, children)) &&
			get_rel_persistence(rte->relid) != RELPERSISTENCE_TEMP)
			au_note_relation_read(rte->relid);
	}
	bms_free(children);
}

static void
start(QueryDesc *query, int eflags)
{
	if (au_enabled && !(eflags & EXEC_FLAG_EXPLAIN_ONLY))
		check_relations(query);
	if (prev_start)
		prev_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
	/* a worker's scans begin before its executor runs */
	if (IsParallelWorker())
		au_tid_unnamed = (query->plannedstmt->jitFlags & PLAN_WITHOUT_TIDS) != 0;
	if (au_enabled && !(eflags & EXEC_FLAG_EXPLAIN_ONLY))
		au_hint_scans(query, (query->plannedstmt->jitFlags & PLAN_WITHOUT_TIDS) != 0);
	if (query->snapshot && query->snapshot->snapshot_type == SNAPSHOT_MVCC && !(eflags & EXEC_FLAG_EXPLAIN_ONLY))
	{
		RunningQuery *r = MemoryContextAlloc(query->estate->es_query_cxt, sizeof(RunningQuery));

		r->curcid = query->snapshot->curcid;
		r->ended.func = query_ended;
		r->ended.arg = r;
		dlist_push_head(&running, &r->node);
		MemoryContextRegisterResetCallback(query->estate->es_query_cxt, &r->ended);

		/* a good moment: of this command itself nothing is written yet */
		foreach_ptr(ResultRelInfo, target, query->estate->es_opened_result_relations)
		{
			if (au_is_our_table(target->ri_RelationDesc))
				au_flush_if_large(target->ri_RelationDesc);
		}
	}
}

CommandId
au_next_running_command(int64 above)
{
	CommandId	next = InvalidCommandId;
	dlist_iter	iter;

	dlist_foreach(iter, &running)
	{
		RunningQuery *r = dlist_container(RunningQuery, node, iter.cur);

		if (r->curcid > above)
			next = Min(next, r->curcid);
	}
	return next;
}

static void
run(QueryDesc *query, ScanDirection direction, uint64 count)
{
	bool		kept = au_tid_keep;
	bool		kept_inserted = au_tid_keep_inserted;
	bool		compared = au_tid_compared;
	bool		unnamed = au_tid_unnamed;

	au_ddl_give_way();
	if (query->plannedstmt->parallelModeNeeded && au_enabled && !IsParallelWorker())
	{
		if (au_workers_see_all())
			(void) au_tau_start();	/* workers read as of it */
		else
		{
			PlannedStmt *serial = MemoryContextAlloc(query->estate->es_query_cxt, sizeof(PlannedStmt));

			*serial = *query->plannedstmt;
			serial->parallelModeNeeded = false;
			query->plannedstmt = serial;
		}
	}
	au_tid_keep = needs_tids(query->plannedstmt);
	au_tid_keep_inserted = needs_inserted_tids(query->plannedstmt);
	au_tid_compared = (query->plannedstmt->jitFlags & PLAN_WITHOUT_TIDS) == 0;
	au_tid_unnamed = !au_tid_keep && (query->plannedstmt->jitFlags & PLAN_WITHOUT_TIDS) != 0;
	PG_TRY();
	{
		if (prev_run)
			prev_run(query, direction, count);
		else
			standard_ExecutorRun(query, direction, count);
		if (unlikely(query->plannedstmt->jitFlags & PLAN_OF_CURSOR) && !au_tid_keep)
			(void) keep_position(query->planstate, NULL);
	}
	PG_FINALLY();
	{
		au_tid_unnamed = unnamed;
		au_tid_keep = kept;
		au_tid_keep_inserted = kept_inserted;
		au_tid_compared = compared;
	}
	PG_END_TRY();
}

/* Writable CTEs are run to their end here. */
static void
finish(QueryDesc *query)
{
	bool		kept = au_tid_keep;
	bool		kept_inserted = au_tid_keep_inserted;
	bool		compared = au_tid_compared;

	au_tid_keep = needs_tids(query->plannedstmt);
	au_tid_keep_inserted = needs_inserted_tids(query->plannedstmt);
	au_tid_compared = (query->plannedstmt->jitFlags & PLAN_WITHOUT_TIDS) == 0;
	PG_TRY();
	{
		if (prev_finish)
			prev_finish(query);
		else
			standard_ExecutorFinish(query);
	}
	PG_FINALLY();
	{
		au_tid_keep = kept;
		au_tid_keep_inserted = kept_inserted;
		au_tid_compared = compared;
	}
	PG_END_TRY();
}

void
au_planner_init(void)
{
	prev_planner = planner_hook;
	planner_hook = plan;
	prev_start = ExecutorStart_hook;
	ExecutorStart_hook = start;
	prev_run = ExecutorRun_hook;
	ExecutorRun_hook = run;
	prev_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = finish;
}
