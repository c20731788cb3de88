/*-------------------------------------------------------------------------
 *
 * size_functions.c
 *	  pg_relation_size() and its kin, counting what storage holds.
 *
 * PostgreSQL's functions look at local files, where our relations are empty.
 * bootstrap.sql gives them other names (..._local) and makes these functions
 * of the old names.  A relation of ours is as large as its keys and values in
 * storage, in whole pages; everything else (catalogs, temporary tables,
 * relations without storage) is left to PostgreSQL's functions.
 *
 * What must hold: the index by which a table is organised has no entries of
 * its own, so that pg_total_relation_size() counts no row twice.  Every index
 * counts at least one page, as btree's first: no index is of size 0.
 * What the own transaction loads is counted, what others have not committed is
 * not, unless it was ingested.
 *
 * If storage does not answer, the function fails with its error.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/genam.h"
#include "access/relation.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_tablespace.h"
#include "commands/dbcommands.h"
#include "commands/tablespace.h"
#include "common/relpath.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/relcache.h"


static int64
stored_bytes(RelId relid)
{
	int64		rows;
	int64		bytes;

	au_read_current_stats(relid, &rows, &bytes);
	au_wb_estimate(relid, &rows, &bytes);
	return (Max(bytes, 0) + BLCKSZ - 1) / BLCKSZ * BLCKSZ;
}

/* Everything that storage holds of relations from first up to end. */
static int64
stored_range(RelId first, RelId end)
{
	StringInfoData lo,
				hi,
				batch;
	Tau			tau = au_tau_start();
	int64		total = 0;

	initStringInfo(&lo);
	initStringInfo(&hi);
	initStringInfo(&batch);
	au_key_append_relid(&lo, first);
	au_key_append_relid(&hi, end);
	for (;;)
	{
		RelId		relid;
		KeyEntry	entry;
		bool		more;

		/* the first key of each relation, then on to the next relation */
		CHECK_FOR_INTERRUPTS();
		resetStringInfo(&batch);
		au_read_range((Bytes) {(const uint8 *) lo.data, (uint32) lo.len},
					  (Bytes) {(const uint8 *) hi.data, (uint32) hi.len},
					  false, tau, 1, 1, &batch, &more);
		if (batch.len == 0)
			break;
		(void) au_batch_entry(batch.data, &entry);
		memcpy(&relid, entry.key.data, 8);
		relid = pg_ntoh64(relid);
		total += stored_bytes(relid);
		resetStringInfo(&lo);
		au_key_append_relid(&lo, relid + 1);
	}
	pfree(lo.data);
	pfree(hi.data);
	pfree(batch.data);
	return total;
}

static int64
stored_size(Relation rel)
{
	if (rel->rd_rel->relkind == RELKIND_INDEX)
	{
		Relation	heap = try_relation_open(rel->rd_index->indrelid, AccessShareLock);
		bool		primary = heap != NULL && au_index_is_primary(heap, rel);

		if (heap)
			relation_close(heap, AccessShareLock);
		return primary ? BLCKSZ : Max(stored_bytes(au_relid(rel)), BLCKSZ);
	}
	return stored_bytes(au_relid(rel));
}

static bool
is_ours(Relation rel)
{
	return au_enabled && (au_is_our_table(rel) || (rel->rd_rel->relkind == RELKIND_INDEX && au_is_our_index(rel)));
}

static int64
indexes_size(Relation rel)
{
	int64		total = 0;

	if (!is_ours(rel))
		return DatumGetInt64(DirectFunctionCall1(pg_indexes_size, ObjectIdGetDatum(RelationGetRelid(rel))));
	if (rel->rd_rel->relhasindex)
	{
		List	   *indexes = RelationGetIndexList(rel);

		foreach_oid(oid, indexes)
		{
			Relation	index = relation_open(oid, AccessShareLock);

			if (is_ours(index))
				total += stored_size(index);
			relation_close(index, AccessShareLock);
		}
		list_free(indexes);
	}
	return total;
}

static int64
table_size(Relation rel)
{
	if (!is_ours(rel))
		return DatumGetInt64(DirectFunctionCall1(pg_table_size, ObjectIdGetDatum(RelationGetRelid(rel))));
	return stored_size(rel);
}

PG_FUNCTION_INFO_V1(au_relation_size);

Datum
au_relation_size(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	text	   *fork = PG_NARGS() > 1 ? PG_GETARG_TEXT_PP(1) : cstring_to_text("main");
	Relation	rel = try_relation_open(relid, AccessShareLock);
	int64		size;

	/* gone meanwhile, as in PostgreSQL */
	if (rel == NULL)
		PG_RETURN_NULL();
	if (!is_ours(rel))
		size = DatumGetInt64(DirectFunctionCall2(pg_relation_size, ObjectIdGetDatum(relid), PointerGetDatum(fork)));
	else if (forkname_to_number(text_to_cstring(fork)) == MAIN_FORKNUM)
		size = stored_size(rel);
	else
		size = 0;
	relation_close(rel, AccessShareLock);
	PG_RETURN_INT64(size);
}

PG_FUNCTION_INFO_V1(au_table_size);

Datum
au_table_size(PG_FUNCTION_ARGS)
{
	Relation	rel = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	int64		size;

	if (rel == NULL)
		PG_RETURN_NULL();
	size = table_size(rel);
	relation_close(rel, AccessShareLock);
	PG_RETURN_INT64(size);
}

PG_FUNCTION_INFO_V1(au_indexes_size);

Datum
au_indexes_size(PG_FUNCTION_ARGS)
{
	Relation	rel = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	int64		size;

	if (rel == NULL)
		PG_RETURN_NULL();
	size = indexes_size(rel);
	relation_close(rel, AccessShareLock);
	PG_RETURN_INT64(size);
}

PG_FUNCTION_INFO_V1(au_total_relation_size);

Datum
au_total_relation_size(PG_FUNCTION_ARGS)
{
	Relation	rel = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	int64		size;

	if (rel == NULL)
		PG_RETURN_NULL();
	size = table_size(rel) + indexes_size(rel);
	relation_close(rel, AccessShareLock);
	PG_RETURN_INT64(size);
}

/* The local part by PostgreSQL's function, which also checks permissions. */
static bool
local_size(PGFunction function, Oid oid, int64 *size)
{
	LOCAL_FCINFO(fcinfo, 1);

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = ObjectIdGetDatum(oid);
	fcinfo->args[0].isnull = false;
	*size = DatumGetInt64(function(fcinfo));
	return !fcinfo->isnull;
}

static Datum
database_size(FunctionCallInfo fcinfo, Oid database)
{
	int64		size;

	if (!local_size(pg_database_size_oid, database, &size))
		PG_RETURN_NULL();
	if (au_enabled)
		size += stored_range((RelId) database << 32, ((RelId) database + 1) << 32);
	PG_RETURN_INT64(size);
}

PG_FUNCTION_INFO_V1(au_database_size_oid);

Datum
au_database_size_oid(PG_FUNCTION_ARGS)
{
	return database_size(fcinfo, PG_GETARG_OID(0));
}

PG_FUNCTION_INFO_V1(au_database_size_name);

Datum
au_database_size_name(PG_FUNCTION_ARGS)
{
	return database_size(fcinfo, get_database_oid(NameStr(*PG_GETARG_NAME(0)), false));
}

/* All rows are in the default tablespace. */
static Datum
tablespace_size(FunctionCallInfo fcinfo, Oid tablespace)
{
	int64		size;

	if (!local_size(pg_tablespace_size_oid, tablespace, &size))
		PG_RETURN_NULL();
	if (au_enabled && tablespace == DEFAULTTABLESPACE_OID)
		size += stored_range((RelId) 1 << 32, PG_UINT64_MAX);
	PG_RETURN_INT64(size);
}

PG_FUNCTION_INFO_V1(au_tablespace_size_oid);

Datum
au_tablespace_size_oid(PG_FUNCTION_ARGS)
{
	return tablespace_size(fcinfo, PG_GETARG_OID(0));
}

PG_FUNCTION_INFO_V1(au_tablespace_size_name);

Datum
au_tablespace_size_name(PG_FUNCTION_ARGS)
{
	return tablespace_size(fcinfo, get_tablespace_oid(NameStr(*PG_GETARG_NAME(0)), false));
}
