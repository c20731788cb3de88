/*-------------------------------------------------------------------------
 *
 * statistics.c
 *	  What ANALYZE finds on one query processor, on all of them.
 *
 * Statistics are no schema: whoever plans with old ones gets right answers.
 * So they are no DDL records, which would make transactions fail and compete
 * for numbers, but ordinary keys of a system relation, written blind by the
 * transaction that ran ANALYZE (docs/formats.md section 1): one key per table,
 * with all its rows of pg_statistic and pg_statistic_ext_data and the sizes of
 * itself and its indexes; and one per database, which tells by its time whether
 * there is anything new.  Nothing conflicts with them; the later ANALYZE wins.
 *
 * On each query processor the catalog supervisor (ddl_apply.c) looks at the
 * databases' keys when its bell rings and twice a second, and starts a worker
 * for a database that has news; at the server's start everything is news.
 * The worker never waits for a lock: of a table that is busy it lets go, and
 * comes again later.
 *
 * What must hold: local rows of a table are replaced as a whole, in one local
 * transaction, and a row is left out if its column is gone or has another type
 * here.  A worker that fails is started again after STATISTICS_RETRY_MS; until
 * then plans are made with what there is.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include "access/genam.h"
#include "access/heaptoast.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catversion.h"
#include "catalog/indexing.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_database.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_statistic_ext_data.h"
#include "commands/vacuum.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define STATISTICS_VERSION 1
#define STATISTICS_LIMIT (16 * 1024 * 1024) /* of one table */
#define STATISTICS_RETRY_MS 5000
#define READ_ROWS 16
#define READ_BYTES (1024 * 1024)
#define DROP_ROWS 1000

typedef struct StatisticsShared
{
	int64		origin;			/* of this server, until it starts again */
	/* the worker's order and its result */
	Tau			since;
	Tau			until;
	bool		done;
} StatisticsShared;

static StatisticsShared *shared = NULL;

/* this transaction has analyzed these; valid while noted_lxid is its id */
static LocalTransactionId noted_lxid = InvalidLocalTransactionId;
static List *noted = NIL;		/* in TopTransactionContext */
static bool written = false;	/* it has keys of ours */

/* the supervisor's: what it has loaded */
typedef struct Loaded
{
	Oid			database;
	Tau			tau;
} Loaded;

static List *loaded = NIL;		/* of Loaded *, in TopMemoryContext */
static BackgroundWorkerHandle *worker_handle = NULL;
static Loaded *worker_for = NULL;
static TimestampTz not_before = 0;

PGDLLEXPORT void au_statistics_worker_main(Datum arg);

Size
au_statistics_shmem_size(void)
{
	return MAXALIGN(sizeof(StatisticsShared));
}

/* AddinShmemInitLock is held. */
void
au_statistics_shmem_init(void)
{
	bool		found;

	shared = ShmemInitStruct("australis statistics", sizeof(StatisticsShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(StatisticsShared));
		if (!pg_strong_random(&shared->origin, sizeof(shared->origin)))
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not get random bytes")));
	}
}

/* relid 0: the database's own key */
static void
statistics_key(StringInfo key, Oid database, Oid relid)
{
	uint64		name = pg_hton64((uint64) database << 32 | relid);

	resetStringInfo(key);
	au_key_append_relid(key, AU_SYS_STATISTICS);
	appendBinaryStringInfo(key, &name, sizeof(name));
}

static inline Bytes
as_bytes(StringInfo s)
{
	Bytes		b = {(const uint8 *) s->data, (uint32) s->len};

	return b;
}

/* ------------------------------------------------------------------- writing */

/* ANALYZE is about to read this table. */
void
au_statistics_note(Relation rel)
{
	MemoryContext old;

	if (!au_enabled || !au_is_our_table(rel))
		return;
	if (noted_lxid != MyProc->vxid.lxid)
	{
		noted_lxid = MyProc->vxid.lxid;
		noted = NIL;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	noted = list_append_unique_oid(noted, RelationGetRelid(rel));
	MemoryContextSwitchTo(old);
}

/* What the table's rows say of tables above it: ANALYZE of those reads this one. */
static List *
with_parents(List *relids)
{
	List	   *all = list_copy(relids);
	Relation	rel = table_open(InheritsRelationId, AccessShareLock);

	for (int i = 0; i < list_length(all); i++)
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key, Anum_pg_inherits_inhrelid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(list_nth_oid(all, i)));
		scan = systable_beginscan(rel, InheritsRelidSeqnoIndexId, true, NULL, 1, &key);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
			all = list_append_unique_oid(all, ((Form_pg_inherits) GETSTRUCT(tuple))->inhparent);
		systable_endscan(scan);
	}
	table_close(rel, AccessShareLock);
	return all;
}

/* Rows of a catalog whose first column is this oid: their number and [type, shape, bin, ...] */
static uint32
append_rows(StringInfo buf, Oid catalog, Oid index, Oid oid)
{
	Relation	rel = table_open(catalog, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	uint32		n = 0;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(oid));
	scan = systable_beginscan(rel, index, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Oid			type = InvalidOid;

		if (catalog == StatisticRelationId)
			type = get_atttype(oid, ((Form_pg_statistic) GETSTRUCT(tuple))->staattnum);
		if (HeapTupleHasExternal(tuple))
			tuple = toast_flatten_tuple(tuple, RelationGetDescr(rel));
		au_mp_array(buf, 3);
		au_mp_int(buf, type);
		au_ddl_encode_tuple(buf, tuple);
		n++;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return n;
}

static void
append_counted(StringInfo to, StringInfo rows, uint32 n)
{
	au_mp_array(to, n);
	appendBinaryStringInfo(to, rows->data, rows->len);
}

static void
append_size(StringInfo buf, Relation rel)
{
	float4		tuples = rel->rd_rel->reltuples;

	au_mp_array(buf, 4);
	au_mp_int(buf, RelationGetRelid(rel));
	au_mp_int(buf, rel->rd_rel->relpages);
	au_mp_bin(buf, &tuples, sizeof(tuples));
	au_mp_int(buf, rel->rd_rel->relallvisible);
}

/*
 * [version, catalog version, origin, rows of pg_statistic, rows of
 * pg_statistic_ext_data, [relation oid, pages, rows as float4, pages all
 * visible] of the table and its indexes]
 */
static void
encode_statistics(StringInfo buf, Relation rel)
{
	List	   *indexes = rel->rd_rel->relhasindex ? RelationGetIndexList(rel) : NIL;
	StringInfoData rows;
	uint32		n;

	initStringInfo(&rows);
	au_mp_array(buf, 6);
	au_mp_int(buf, STATISTICS_VERSION);
	au_mp_int(buf, CATALOG_VERSION_NO);
	au_mp_int(buf, shared->origin);

	n = append_rows(&rows, StatisticRelationId, StatisticRelidAttnumInhIndexId, RelationGetRelid(rel));
	foreach_oid(index, indexes)
		n += append_rows(&rows, StatisticRelationId, StatisticRelidAttnumInhIndexId, index);
	append_counted(buf, &rows, n);

	resetStringInfo(&rows);
	n = 0;
	foreach_oid(extended, RelationGetStatExtList(rel))
		n += append_rows(&rows, StatisticExtDataRelationId, StatisticExtDataStxoidInhIndexId, extended);
	append_counted(buf, &rows, n);

	au_mp_array(buf, 1 + list_length(indexes));
	append_size(buf, rel);
	foreach_oid(oid, indexes)
	{
		Relation	index = index_open(oid, AccessShareLock);

		append_size(buf, index);
		index_close(index, NoLock);
	}
	pfree(rows.data);
}

/* PRE_COMMIT: what this transaction's ANALYZE has found goes with its commit. */
void
au_statistics_before_commit(void)
{
	StringInfoData key;
	StringInfoData value;

	written = false;
	if (noted_lxid != MyProc->vxid.lxid || noted == NIL || au_ddl_applying)
		return;
	CommandCounterIncrement();
	initStringInfo(&key);
	initStringInfo(&value);
	/* values may be out of line */
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach_oid(relid, with_parents(noted))
	{
		Relation	rel = try_relation_open(relid, AccessShareLock);

		if (rel == NULL)
			continue;			/* dropped in the same transaction */
		resetStringInfo(&value);
		encode_statistics(&value, rel);
		relation_close(rel, NoLock);
		if (value.len > STATISTICS_LIMIT)
		{
			ereport(LOG,
					(errmsg("statistics of table \"%s\" stay on this query processor", get_rel_name(relid)),
					 errdetail("They are larger than %d MB.", STATISTICS_LIMIT / (1024 * 1024))));
			continue;
		}
		statistics_key(&key, MyDatabaseId, relid);
		(void) au_wb_put(as_bytes(&key), as_bytes(&value), GetCurrentCommandId(true),
						 LockTupleNoKeyExclusive, true);
		written = true;
	}
	PopActiveSnapshot();
	noted = NIL;
	if (written)
	{
		resetStringInfo(&value);
		au_mp_int(&value, STATISTICS_VERSION);
		statistics_key(&key, MyDatabaseId, InvalidOid);
		(void) au_wb_put(as_bytes(&key), as_bytes(&value), GetCurrentCommandId(true),
						 LockTupleNoKeyExclusive, true);
	}
	pfree(key.data);
	pfree(value.data);
}

/* The table is dropped at COMMIT. */
void
au_statistics_forget(Oid relid)
{
	StringInfoData key;
	StringInfoData found;

	initStringInfo(&key);
	initStringInfo(&found);
	statistics_key(&key, MyDatabaseId, relid);
	if (au_read_key(as_bytes(&key), au_tau_start(), &found))
		(void) au_wb_delete(as_bytes(&key), GetCurrentCommandId(true), LockTupleNoKeyExclusive, true);
	pfree(key.data);
	pfree(found.data);
}

/* The database is dropped at COMMIT. */
void
au_statistics_forget_database(Oid database)
{
	StringInfoData lo,
				hi,
				batch;
	bool		more = true;

	initStringInfo(&lo);
	initStringInfo(&hi);
	initStringInfo(&batch);
	statistics_key(&lo, database, InvalidOid);
	statistics_key(&hi, database + 1, InvalidOid);
	while (more)
	{
		CHECK_FOR_INTERRUPTS();
		resetStringInfo(&batch);
		au_read_range(as_bytes(&lo), as_bytes(&hi), false, au_tau_start(), DROP_ROWS, READ_BYTES, &batch, &more);
		if (batch.len == 0)
			break;
		for (char *p = batch.data; p < batch.data + batch.len;)
		{
			KeyEntry	entry;

			p = au_batch_entry(p, &entry);
			(void) au_wb_delete(entry.key, GetCurrentCommandId(true), LockTupleNoKeyExclusive, true);
			resetStringInfo(&lo);
			appendBinaryStringInfo(&lo, (const char *) entry.key.data, entry.key.len);
			appendStringInfoCharMacro(&lo, '\0');
		}
	}
	pfree(lo.data);
	pfree(hi.data);
	pfree(batch.data);
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && written)
		au_peers_ring_others();
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		written = false;
}

void
au_statistics_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
}

/* ------------------------------------------------------------------- loading */

static void
delete_rows(Relation rel, Oid index, Oid oid)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(oid));
	scan = systable_beginscan(rel, index, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		CatalogTupleDelete(rel, &tuple->t_self);
	systable_endscan(scan);
}

/* Rows of other columns than there are here, or of types that these do not have, stay out. */
static bool
row_fits(Oid catalog, HeapTuple tuple, Oid type, List *owners)
{
	if (catalog == StatisticRelationId)
	{
		Form_pg_statistic form = (Form_pg_statistic) GETSTRUCT(tuple);
		HeapTuple	att;
		bool		fits = false;

		if (!list_member_oid(owners, form->starelid))
			return false;
		att = SearchSysCache2(ATTNUM, ObjectIdGetDatum(form->starelid), Int16GetDatum(form->staattnum));
		if (HeapTupleIsValid(att))
		{
			fits = !((Form_pg_attribute) GETSTRUCT(att))->attisdropped &&
				((Form_pg_attribute) GETSTRUCT(att))->atttypid == type;
			ReleaseSysCache(att);
		}
		return fits;
	}
	return list_member_oid(owners, ((Form_pg_statistic_ext_data) GETSTRUCT(tuple))->stxoid);
}

/* Put the rows in the place of those that the owners have. */
static void
replace_rows(MpReader *r, Oid catalog, Oid index, List *owners)
{
	Relation	rel = table_open(catalog, RowExclusiveLock);
	CatalogIndexState indexes = CatalogOpenIndexes(rel);
	uint32		n = au_mp_read_array(r);

	foreach_oid(owner, owners)
		delete_rows(rel, index, owner);
	for (uint32 i = 0; i < n; i++)
	{
		Oid			type;
		int			shape;
		HeapTuple	tuple;

		(void) au_mp_read_array(r);
		type = (Oid) au_mp_read_int(r);
		shape = (int) au_mp_read_int(r);
		tuple = au_ddl_decode_tuple(rel, shape, au_mp_read_bin(r));
		if (row_fits(catalog, tuple, type, owners))
			CatalogTupleInsertWithInfo(rel, tuple, indexes);
	}
	CatalogCloseIndexes(indexes);
	table_close(rel, NoLock);
}

static void
read_sizes(MpReader *r, Relation rel, List *indexes)
{
	uint32		n = au_mp_read_array(r);

	for (uint32 i = 0; i < n; i++)
	{
		Relation	of = NULL;
		Oid			relid;
		int64		pages;
		int64		visible;
		Bytes		tuples;
		float4		rows = -1;

		(void) au_mp_read_array(r);
		relid = (Oid) au_mp_read_int(r);
		pages = au_mp_read_int(r);
		tuples = au_mp_read_bin(r);
		visible = au_mp_read_int(r);
		if (tuples.len == sizeof(rows))
			memcpy(&rows, tuples.data, sizeof(rows));
		if (relid == RelationGetRelid(rel))
			of = rel;
		else if (list_member_oid(indexes, relid))
			of = index_open(relid, AccessShareLock);
		if (of == NULL)
			continue;
		vac_update_relstats(of, (BlockNumber) pages, rows, (BlockNumber) visible, 0, of->rd_rel->relhasindex,
							InvalidTransactionId, InvalidMultiXactId, NULL, NULL, true);
		if (of != rel)
			index_close(of, NoLock);
		else if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
			/* autovacuum here need not do it again */
			pgstat_report_analyze(rel, (PgStat_Counter) Max(rows, 0), 0, true, GetCurrentTimestamp());
	}
}

/* In a transaction.  False: the table is busy. */
static bool
load(Oid relid, Bytes value)
{
	MpReader	r = {value.data, value.data + value.len};
	Relation	rel;
	List	   *indexes;

	if (au_mp_read_array(&r) < 6 || au_mp_read_int(&r) != STATISTICS_VERSION ||
		au_mp_read_int(&r) != CATALOG_VERSION_NO || au_mp_read_int(&r) == shared->origin)
		return true;			/* ours, or of another version: plans do without */
	if (!ConditionalLockRelationOid(relid, ShareUpdateExclusiveLock))
		return false;
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
		return true;
	indexes = rel->rd_rel->relhasindex ? RelationGetIndexList(rel) : NIL;
	replace_rows(&r, StatisticRelationId, StatisticRelidAttnumInhIndexId, lcons_oid(relid, list_copy(indexes)));
	replace_rows(&r, StatisticExtDataRelationId, StatisticExtDataStxoidInhIndexId, RelationGetStatExtList(rel));
	read_sizes(&r, rel, indexes);
	relation_close(rel, NoLock);
	return true;
}

void
au_statistics_worker_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);
	Tau			since = shared->since;
	Tau			until = shared->until;
	MemoryContext context;
	StringInfoData lo,
				hi;
	bool		more = true;
	bool		all = true;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	au_ddl_applying = true;
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid,
											  BGWORKER_BYPASS_ALLOWCONN | BGWORKER_BYPASS_ROLELOGINCHECK);
	initStringInfo(&lo);
	initStringInfo(&hi);
	statistics_key(&lo, database, 1);
	statistics_key(&hi, database + 1, InvalidOid);
	context = AllocSetContextCreate(TopMemoryContext, "statistics", ALLOCSET_DEFAULT_SIZES);
	while (more)
	{
		StringInfoData batch;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);
		StartTransactionCommand();
		(void) au_tau_start();	/* waits for the catalogs */
		MemoryContextSwitchTo(context);
		initStringInfo(&batch);
		au_read_range(as_bytes(&lo), as_bytes(&hi), false, Max(until, au_tau_start()), READ_ROWS, READ_BYTES,
					  &batch, &more);
		CommitTransactionCommand();
		for (char *p = batch.data; p < batch.data + batch.len;)
		{
			KeyEntry	entry;
			uint64		name;

			p = au_batch_entry(p, &entry);
			resetStringInfo(&lo);
			appendBinaryStringInfo(&lo, (const char *) entry.key.data, entry.key.len);
			appendStringInfoCharMacro(&lo, '\0');
			if (entry.tau <= since || entry.key.len != 16)
				continue;
			memcpy(&name, entry.key.data + 8, 8);
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
			all &= load((Oid) pg_ntoh64(name), entry.value);
			PopActiveSnapshot();
			CommitTransactionCommand();
			MemoryContextSwitchTo(context);
		}
	}
	shared->done = all;
	proc_exit(0);
}

static Loaded *
loaded_of(Oid database)
{
	Loaded	   *l;
	MemoryContext old;

	foreach_ptr(Loaded, known, loaded)
	{
		if (known->database == database)
			return known;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	l = palloc0_object(Loaded);
	l->database = database;
	loaded = lappend(loaded, l);
	MemoryContextSwitchTo(old);
	return l;
}

/* A database with news, and their time; NULL: none */
static Loaded *
find_news(Tau *tau)
{
	MemoryContext caller = CurrentMemoryContext;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	StringInfoData key;
	StringInfoData found;
	Loaded	   *news = NULL;
	Tau			acked;
	int64		ddl;

	au_page_snapshot(&acked, &ddl);
	StartTransactionCommand();
	initStringInfo(&key);
	initStringInfo(&found);
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (news == NULL && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_database db = (Form_pg_database) GETSTRUCT(tuple);
		KeyEntry	entry;

		if (database_is_invalid_form(db))
			continue;
		statistics_key(&key, db->oid, InvalidOid);
		resetStringInfo(&found);
		if (!au_read_key(as_bytes(&key), acked, &found))
			continue;
		(void) au_batch_entry(found.data, &entry);
		if (entry.tau > loaded_of(db->oid)->tau)
		{
			news = loaded_of(db->oid);
			*tau = entry.tau;
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return news;
}

/* The supervisor's part; never waits. */
void
au_statistics_look(void)
{
	BackgroundWorker worker = {0};
	MemoryContext old;
	pid_t		pid;
	Tau			tau;

	if (worker_handle != NULL)
	{
		if (GetBackgroundWorkerPid(worker_handle, &pid) != BGWH_STOPPED)
			return;
		if (shared->done)
			worker_for->tau = shared->until;
		else
			not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STATISTICS_RETRY_MS);
		pfree(worker_handle);
		worker_handle = NULL;
	}
	if (GetCurrentTimestamp() < not_before)
		return;
	worker_for = find_news(&tau);
	if (worker_for == NULL)
		return;
	shared->since = worker_for->tau;
	shared->until = tau;
	shared->done = false;
	strlcpy(worker.bgw_name, "australis statistics", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "australis statistics", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	au_ddl_set_library(&worker);
	strlcpy(worker.bgw_function_name, "au_statistics_worker_main", BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(worker_for->database);
	worker.bgw_notify_pid = MyProcPid;
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!RegisterDynamicBackgroundWorker(&worker, &worker_handle))
	{
		worker_handle = NULL;
		not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STATISTICS_RETRY_MS);
	}
	MemoryContextSwitchTo(old);
}
