/*-------------------------------------------------------------------------
 *
 * planner.c
 *	  What planner and executor are told about our tables.
 *
 * Parallel plans are off: a worker has neither the write buffer nor the TIDs
 * of its leader, so it would see other rows.
 *
 * TIDs name row versions only while the transaction remembers them.  Most
 * plans never look one up again and let them be forgotten; plans that modify
 * or lock rows need them kept, and so do those that show them: one row has one
 * ctid, however often it is read.  What must hold: au_tid_keep says what the
 * executor that is running now needs, also after an error in a nested one.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/sysattr.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "nodes/plannodes.h"
#include "nodes/primnodes.h"
#include "optimizer/planner.h"
#include "utils/fmgroids.h"

/* in PlannedStmt.jitFlags, which has no room for others to be told */
#define PLAN_SHOWS_TIDS (1 << 30)

static planner_hook_type prev_planner = NULL;
static ExecutorRun_hook_type prev_run = NULL;
static ExecutorFinish_hook_type prev_finish = NULL;

/* SELECT pg_export_snapshot(), as pg_dump says it */
static bool
exports_snapshot(const Query *query)
{
	if (!IsolationUsesXactSnapshot() || query->commandType != CMD_SELECT || query->jointree->fromlist != NIL)
		return false;
	foreach_node(TargetEntry, entry, query->targetList)
	{
		if (IsA(entry->expr, FuncExpr) && ((FuncExpr *) entry->expr)->funcid == F_PG_EXPORT_SNAPSHOT)
			return true;
	}
	return false;
}

static bool
shows_tids(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
		return ((Var *) node)->varattno == SelfItemPointerAttributeNumber;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, shows_tids, context, 0);
	return expression_tree_walker(node, shows_tids, context);
}

static PlannedStmt *
plan(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	bool		tids = au_enabled && shows_tids((Node *) parse, NULL);
	PlannedStmt *result;

	if (au_enabled)
	{
		cursor_options &= ~CURSOR_OPT_PARALLEL_OK;

		/* before the first record is applied even names mean nothing */
		au_ddl_wait_applied(0);

		/* whoever imports the snapshot takes this transaction's time */
		if (exports_snapshot(parse))
			(void) au_tau_start();
	}
	if (prev_planner)
		result = prev_planner(parse, query_string, cursor_options, params);
	else
		result = standard_planner(parse, query_string, cursor_options, params);
	if (tids)
		result->jitFlags |= PLAN_SHOWS_TIDS;
	return result;
}

/* Does this plan come back to rows by TID? */
static inline bool
needs_tids(const PlannedStmt *stmt)
{
	return stmt->commandType == CMD_UPDATE || stmt->commandType == CMD_DELETE ||
		stmt->commandType == CMD_MERGE || stmt->rowMarks != NIL || stmt->hasModifyingCTE ||
		(stmt->jitFlags & PLAN_SHOWS_TIDS) != 0;
}

/* Also to rows that it inserted itself? */
static inline bool
needs_inserted_tids(const PlannedStmt *stmt)
{
	return stmt->commandType == CMD_MERGE || stmt->hasModifyingCTE || stmt->hasReturning;
}

static void
run(QueryDesc *query, ScanDirection direction, uint64 count)
{
	bool		kept = au_tid_keep;
	bool		kept_inserted = au_tid_keep_inserted;

	au_tid_keep = needs_tids(query->plannedstmt);
	au_tid_keep_inserted = needs_inserted_tids(query->plannedstmt);
	PG_TRY();
	{
		if (prev_run)
			prev_run(query, direction, count);
		else
			standard_ExecutorRun(query, direction, count);
	}
	PG_FINALLY();
	{
		au_tid_keep = kept;
		au_tid_keep_inserted = kept_inserted;
	}
	PG_END_TRY();
}

/* Writable CTEs are run to their end here. */
static void
finish(QueryDesc *query)
{
	bool		kept = au_tid_keep;
	bool		kept_inserted = au_tid_keep_inserted;

	au_tid_keep = needs_tids(query->plannedstmt);
	au_tid_keep_inserted = needs_inserted_tids(query->plannedstmt);
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
	}
	PG_END_TRY();
}

void
au_planner_init(void)
{
	prev_planner = planner_hook;
	planner_hook = plan;
	prev_run = ExecutorRun_hook;
	ExecutorRun_hook = run;
	prev_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = finish;
}
