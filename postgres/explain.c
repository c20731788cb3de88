/*-------------------------------------------------------------------------
 *
 * explain.c
 *	  What a scan read from storage, in EXPLAIN (ANALYZE, BUFFERS).
 *
 * Each scan of a relation of ours counts its reads in its own descriptor
 * (ReadCounts); here they are printed, before the executor ends and with it
 * the descriptors.  Trips: requests to storage, answered in this process by
 * the attached driver or over the socket.  Rows: entries of tables and indexes
 * that the scan took.  Bytes: what was transferred, read ahead included.
 *
 * What must hold: nothing is printed without both options, so that plans
 * compare with PostgreSQL's.  Own uncommitted rows are not read from storage
 * and not counted.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "commands/explain.h"
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#include "nodes/execnodes.h"

static explain_per_node_hook_type prev_per_node = NULL;

static bool
add_index_scan(IndexScanDesc scan, ReadCounts *total)
{
	bool		ours = false;

	if (scan == NULL)
		return false;
	if (scan->indexRelation->rd_rel->relam == AU_INDEX_AM_OID)
	{
		au_index_scan_reads(scan, total);
		ours = true;
	}
	if (scan->xs_heapfetch != NULL && scan->heapRelation->rd_rel->relam == AU_TABLE_AM_OID)
	{
		au_index_fetch_reads(scan->xs_heapfetch, total);
		ours = true;
	}
	return ours;
}

static bool
reads_of(PlanState *state, ReadCounts *total)
{
	TableScanDesc scan;

	switch (nodeTag(state))
	{
		case T_SeqScanState:
		case T_SampleScanState:
			scan = ((ScanState *) state)->ss_currentScanDesc;
			if (scan == NULL || scan->rs_rd->rd_rel->relam != AU_TABLE_AM_OID)
				return false;
			au_table_scan_reads(scan, total);
			return true;
		case T_IndexScanState:
			return add_index_scan(((IndexScanState *) state)->iss_ScanDesc, total);
		case T_IndexOnlyScanState:
			return add_index_scan(((IndexOnlyScanState *) state)->ioss_ScanDesc, total);
		default:
			return false;
	}
}

static void
explain_node(PlanState *state, List *ancestors, const char *relationship, const char *plan_name, ExplainState *es)
{
	ReadCounts	total = {0};

	if (prev_per_node)
		prev_per_node(state, ancestors, relationship, plan_name, es);
	if (!es->analyze || !es->buffers || !reads_of(state, &total))
		return;
	if (es->format == EXPLAIN_FORMAT_TEXT)
	{
		ExplainIndentText(es);
		appendStringInfo(es->str, "Storage: trips=" UINT64_FORMAT " rows=" UINT64_FORMAT " bytes=" UINT64_FORMAT " kB\n",
						 total.trips, total.rows, (total.bytes + 1023) / 1024);
	}
	else
	{
		ExplainPropertyUInteger("Storage Trips", NULL, total.trips, es);
		ExplainPropertyUInteger("Storage Rows", NULL, total.rows, es);
		ExplainPropertyUInteger("Storage Bytes", "B", total.bytes, es);
	}
}

void
au_explain_init(void)
{
	prev_per_node = explain_per_node_hook;
	explain_per_node_hook = explain_node;
}
