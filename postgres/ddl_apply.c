/*-------------------------------------------------------------------------
 *
 * ddl_apply.c
 *	  DDL records into the local catalogs, and what backends know of them.
 *
 * This query processor's catalogs are a copy: image + records 1..n.  Records
 * of its own transactions are applied by those transactions themselves; the
 * rest (after a rebuild from the image, or when a backend died between the
 * adjudicator's yes and its local commit) by background workers:
 *
 *	  supervisor	no database; starts an applier whenever a record is missing
 *					(peers.c has the bell that wakes it)
 *	  applier		connected to one database; applies the records made there
 *					and ends when the next one is another database's
 *
 * What must hold: record n is applied after n - 1 and in one local transaction
 * with the number n itself, which is kept as the shared comment on our table
 * access method (see bootstrap.sql).  The DDL lock makes commit and apply
 * exclude each other, so the applier waits for the backend that is committing
 * n, and applies n itself if that one failed (PROTOCOL Q5).
 *
 * If storage does not answer, the applier ends with an error and is started
 * again; clients wait in au_ddl_wait_applied until its time limit.  If the local
 * catalogs are damaged, waiting does not help and nothing in them is worth a
 * repair: the server stops, and the launcher makes it again from its image.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include <dlfcn.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/catversion.h"
#include "catalog/heap.h"
#include "catalog/indexing.h"
#include "catalog/pg_am.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_index.h"
#include "catalog/pg_shdepend.h"
#include "catalog/pg_shdescription.h"
#include "catalog/storage.h"
#include "catalog/storage_xlog.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "port/pg_bswap.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "storage/smgr.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "utils/wait_event.h"

#define CHANGES_MAX 32768	/* relations whose last change is remembered */
#define READ_ROWS 256			/* records per read of the log */
#define READ_BYTES (4 * 1024 * 1024)
#define BATCH_RECORDS 256		/* records per local transaction */
#define BATCH_LOCKS 2000
#define LOCK_PATIENCE_MS 100	/* PROTOCOL Q4 */
#define LOCK_LOOK_MS 10
#define WATCH_MS 30				/* between looks at what the applier waits for */
#define IDLE_PATIENCE_MS 1000	/* the same for transactions between two statements */
#define RETRY_MS 200			/* pause after a failed applier, doubled each time */
#define RETRY_MAX_MS 5000
#define SERVICES_POLL_MS 20		/* while the cluster's services start */
#define SLEEP_MS 500			/* between looks at signals, for who waits for the bell */
#define LINGER_MS 1000			/* an applier waits this long for another record */
#define INTERNAL_ERRORS_MAX 3	/* in a row; then the local catalogs are thought to be the reason */
#define CAUSE_BYTES 256

typedef enum ApplierResult
{
	APPLIER_FAILED,
	APPLIER_DONE,				/* nothing left */
	APPLIER_DATABASE			/* the next record is another database's */
} ApplierResult;

typedef struct DdlShared
{
	LWLock		lock;			/* protects the table of changes */
	int			tranche;
	pg_atomic_uint64 applied;	/* newest applied record; -1 unknown */
	pg_atomic_uint32 caught_up;
	pg_atomic_uint64 newest_change; /* tau of the newest change of any relation */
	Tau			forgotten;		/* no relation left out changed after this */
	ConditionVariable advanced;

	/* the supervisor and its applier */
	ApplierResult result;
	Oid			next_database;

	/* database << 32 | relation that the applier has waited for long enough; 0 none */
	pg_atomic_uint64 barred;
	uint32		internal_errors;	/* in a row */
	char		cause[CAUSE_BYTES]; /* why the last attempt failed, for people */
} DdlShared;

typedef struct Change
{
	uint64		relation;
	Tau			tau;
} Change;

static DdlShared *shared = NULL;
static HTAB *changes = NULL;
static emit_log_hook_type earlier_emit_log_hook = NULL;

PGDLLEXPORT void au_catalog_supervisor_main(Datum arg);
PGDLLEXPORT void au_catalog_applier_main(Datum arg);
PG_FUNCTION_INFO_V1(au_catalog_applied);

/* ------------------------------------------------------------ shared memory */

Size
au_ddl_shmem_size(void)
{
	Size		size = MAXALIGN(sizeof(DdlShared));

	size = add_size(size, hash_estimate_size(CHANGES_MAX, sizeof(Change)));
	return add_size(size, au_sequence_shmem_size());
}

void
au_ddl_shmem_init(void)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64), .entrysize = sizeof(Change)};
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("australis catalog", sizeof(DdlShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(*shared));
		shared->tranche = LWLockNewTrancheId();
		LWLockInitialize(&shared->lock, shared->tranche);
		pg_atomic_init_u64(&shared->applied, (uint64) -1);
		pg_atomic_init_u64(&shared->newest_change, 0);
		pg_atomic_init_u32(&shared->caught_up, 0);
		pg_atomic_init_u64(&shared->barred, 0);
		ConditionVariableInit(&shared->advanced);
	}
	changes = ShmemInitHash("australis changes", CHANGES_MAX, CHANGES_MAX, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	LWLockRelease(AddinShmemInitLock);
	LWLockRegisterTranche(shared->tranche, "AustralisCatalog");
	au_sequence_shmem_init();
}

int64
au_ddl_applied(void)
{
	int64		n = (int64) pg_atomic_read_u64(&shared->applied);

	pg_read_barrier();
	return n;
}

static void
set_applied(int64 n)
{
	pg_write_barrier();
	pg_atomic_write_u64(&shared->applied, (uint64) n);
	ConditionVariableBroadcast(&shared->advanced);
	if (pg_atomic_read_u32(&shared->caught_up) != 0)
		au_peers_applied(n, au_ddl_applying);
}

/* SQL: au_catalog_applied() */
Datum
au_catalog_applied(PG_FUNCTION_ARGS)
{
	if (shared == NULL || !au_enabled || pg_atomic_read_u32(&shared->caught_up) == 0)
		PG_RETURN_INT64(-1);
	PG_RETURN_INT64(au_ddl_applied());
}


void
au_ddl_wait_applied(int64 n)
{
	TimestampTz deadline;

	if (au_ddl_applying || (au_ddl_applied() >= n && pg_atomic_read_u32(&shared->caught_up) != 0))
		return;

	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), au_service_timeout_ms);
	ConditionVariablePrepareToSleep(&shared->advanced);
	while (au_ddl_applied() < n || pg_atomic_read_u32(&shared->caught_up) == 0)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

		if (left <= 0)
		{
			ConditionVariableCancelSleep();
			if (pg_atomic_read_u32(&shared->caught_up) == 0)
			{
				char		cause[CAUSE_BYTES];

				memcpy(cause, shared->cause, sizeof(cause));
				cause[sizeof(cause) - 1] = '\0';
				ereport(ERROR,
						(errcode(ERRCODE_CANNOT_CONNECT_NOW),
						 errmsg("this query processor is still building its catalogs"),
						 cause[0] != '\0' ?
						 errdetail("It has applied catalog change %lld; its last attempt failed: %s",
								   (long long) au_ddl_applied(), cause) :
						 errdetail("It has applied catalog change %lld.", (long long) au_ddl_applied())));
			}
			ereport(ERROR,
					(errcode(ERRCODE_CANNOT_CONNECT_NOW),
					 errmsg("the catalogs of this query processor are not up to date"),
					 errdetail("It has applied catalog change %lld, the cluster is at %lld.",
							   (long long) au_ddl_applied(), (long long) n),
					 errhint("Try again; if that persists, look at the query processor's log.")));
		}
		au_peers_ring();
		(void) ConditionVariableTimedSleep(&shared->advanced, left, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/* ------------------------------------------------- last changes of relations */

/* Forget what changed at or before tau.  Whoever started before that is told that everything changed. */
static void
forget_changes(Tau tau)
{
	HASH_SEQ_STATUS status;
	Change	   *old;

	hash_seq_init(&status, changes);
	while ((old = hash_seq_search(&status)) != NULL)
	{
		if (old->tau > tau)
			continue;
		shared->forgotten = Max(shared->forgotten, old->tau);
		(void) hash_search(changes, &old->relation, HASH_REMOVE, NULL);
	}
}

static void
note_changes(const uint64 *names, int count, Tau tau)
{
	if (count == 0)
		return;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < count; i++)
	{
		Change	   *change = hash_search(changes, &names[i], HASH_ENTER_NULL, NULL);

		if (change == NULL)
		{
			/* full: first what matters to nobody, else all */
			forget_changes(au_page_oldest_snapshot());
			if (hash_get_num_entries(changes) > CHANGES_MAX / 2)
				forget_changes(INT64_MAX);
			change = hash_search(changes, &names[i], HASH_ENTER_NULL, NULL);
		}
		if (change)
			change->tau = tau;
	}
	if ((uint64) tau > pg_atomic_read_u64(&shared->newest_change))
		pg_atomic_write_u64(&shared->newest_change, (uint64) tau);
	LWLockRelease(&shared->lock);
}

Tau
au_ddl_newest_change(void)
{
	return (Tau) pg_atomic_read_u64(&shared->newest_change);
}

Tau
au_ddl_last_change(uint64 relation_name)
{
	Change	   *change;
	Tau			tau;

	LWLockAcquire(&shared->lock, LW_SHARED);
	change = hash_search(changes, &relation_name, HASH_FIND, NULL);
	tau = change ? Max(change->tau, shared->forgotten) : shared->forgotten;
	LWLockRelease(&shared->lock);
	return tau;
}

void
au_ddl_committed(int64 n, Tau tau, List *changed)
{
	uint64		names[64];
	int			count = 0;
	ListCell   *lc;

	/* the changes first: whoever sees n must see them */
	foreach(lc, changed)
	{
		names[count++] = *(uint64 *) lfirst(lc);
		if (count == lengthof(names))
		{
			note_changes(names, count, tau);
			count = 0;
		}
	}
	note_changes(names, count, tau);
	if (n > au_ddl_applied())
		set_applied(n);
	au_peers_committed(n);
}

/* ------------------------------------------------------ the number of records */

static HeapTuple
find_applied(Relation rel)
{
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key[0], Anum_pg_shdescription_objoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(AU_TABLE_AM_OID));
	ScanKeyInit(&key[1], Anum_pg_shdescription_classoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(AccessMethodRelationId));
	scan = systable_beginscan(rel, SharedDescriptionObjIndexId, true, NULL, 2, key);
	tuple = systable_getnext(scan);
	if (!HeapTupleIsValid(tuple))
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("this server's catalogs were not made for Australis"),
				 errhint("Create the data directory from an image (see postgres/bootstrap.sql).")));
	tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

static int64
read_applied(void)
{
	Relation	rel = table_open(SharedDescriptionRelationId, AccessShareLock);
	HeapTuple	tuple = find_applied(rel);
	bool		isnull;
	Datum		d = heap_getattr(tuple, Anum_pg_shdescription_description, RelationGetDescr(rel), &isnull);
	int64		n = pg_strtoint64(TextDatumGetCString(d));

	table_close(rel, AccessShareLock);
	return n;
}

void
au_ddl_mark_applied(int64 n)
{
	Relation	rel = table_open(SharedDescriptionRelationId, RowExclusiveLock);
	HeapTuple	tuple = find_applied(rel);
	Datum		values[Natts_pg_shdescription] = {0};
	bool		nulls[Natts_pg_shdescription] = {0};
	bool		replace[Natts_pg_shdescription] = {0};
	char		text[32];
	HeapTuple	new_tuple;

	snprintf(text, sizeof(text), INT64_FORMAT, n);
	values[Anum_pg_shdescription_description - 1] = CStringGetTextDatum(text);
	replace[Anum_pg_shdescription_description - 1] = true;
	new_tuple = heap_modify_tuple(tuple, RelationGetDescr(rel), values, nulls, replace);
	/* PRE_COMMIT has none; heap wants one for tables that could have toast */
	PushActiveSnapshot(GetTransactionSnapshot());
	CatalogTupleUpdate(rel, &tuple->t_self, new_tuple);
	PopActiveSnapshot();
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

/* ------------------------------------------------------------------ applying */

typedef struct EffectIn
{
	Oid			catalog;
	int			op;
	int			shape;			/* natts | flags << 16 */
	Bytes		data;
} EffectIn;

typedef struct SequenceIn
{
	Oid			relid;
	int64		last_value;
	bool		is_called;
} SequenceIn;

typedef struct RecordIn
{
	Oid			database;
	Oid			next_oid;
	uint32		neffects;
	EffectIn   *effects;
	uint32		nsequences;
	SequenceIn *sequences;
	uint32		ndatabases;
	struct
	{
		int			op;
		Oid			oid;
		Oid			template_oid;
	}		   *databases;
	uint32		nchanged;
	uint64	   *changed;
} RecordIn;

/*
 * Records that are applied in one local transaction: while catching up many of
 * them, which spares most of the files of relations that do not last.
 */
typedef struct Batch
{
	bool		open;
	int64		n;				/* the newest record in it */
	int			records;
	uint32		locks;			/* an upper bound */
	List	   *storage;		/* pg_class rows with new storage */
	List	   *sequences;		/* SequenceIn *, likewise */
	List	   *changes;		/* ChangesIn * */
} Batch;

typedef struct ChangesIn
{
	uint64	   *names;
	uint32		count;
	Tau			tau;
} ChangesIn;

/* Before anything is palloc'd: an element takes at least one byte. */
static uint32
read_count(MpReader *r)
{
	uint32		n = au_mp_read_array(r);

	if (n > (uint64) (r->end - r->p))
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed DDL record")));
	return n;
}

static Oid
read_header(MpReader *r, int64 n)
{
	uint32		fields = au_mp_read_array(r);
	int64		version = au_mp_read_int(r);
	int64		catversion;

	if (version != DDL_RECORD_VERSION || fields < DDL_RECORD_FIELDS)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("DDL record %lld has format %lld, this program knows %d", (long long) n,
						(long long) version, DDL_RECORD_VERSION)));
	catversion = au_mp_read_int(r);
	if (catversion != CATALOG_VERSION_NO)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("DDL record %lld was made by a PostgreSQL with catalog version %lld, this one has %d",
						(long long) n, (long long) catversion, CATALOG_VERSION_NO)));
	return (Oid) au_mp_read_int(r);
}

static void
read_record(RecordIn *in, Bytes value, int64 n)
{
	MpReader	r = {value.data, value.data + value.len};

	in->database = read_header(&r, n);
	in->next_oid = (Oid) au_mp_read_int(&r);
	au_mp_skip(&r);				/* tags */

	in->neffects = read_count(&r);
	in->effects = palloc_array(EffectIn, in->neffects + 1);
	for (uint32 i = 0; i < in->neffects; i++)
	{
		EffectIn   *e = &in->effects[i];

		(void) au_mp_read_array(&r);
		e->catalog = (Oid) au_mp_read_int(&r);
		e->op = (int) au_mp_read_int(&r);
		e->shape = (int) au_mp_read_int(&r);
		e->data = au_mp_read_bin(&r);
	}

	in->nsequences = read_count(&r);
	in->sequences = palloc_array(SequenceIn, in->nsequences + 1);
	for (uint32 i = 0; i < in->nsequences; i++)
	{
		(void) au_mp_read_array(&r);
		in->sequences[i].relid = (Oid) au_mp_read_int(&r);
		in->sequences[i].last_value = au_mp_read_int(&r);
		in->sequences[i].is_called = au_mp_read_bool(&r);
	}

	in->ndatabases = read_count(&r);
	in->databases = palloc(sizeof(*in->databases) * (in->ndatabases + 1));
	for (uint32 i = 0; i < in->ndatabases; i++)
	{
		uint32		fields = au_mp_read_array(&r);

		in->databases[i].op = (int) au_mp_read_int(&r);
		in->databases[i].oid = (Oid) au_mp_read_int(&r);
		in->databases[i].template_oid = fields > 2 ? (Oid) au_mp_read_int(&r) : InvalidOid;
	}

	in->nchanged = read_count(&r);
	in->changed = palloc_array(uint64, in->nchanged + 1);
	for (uint32 i = 0; i < in->nchanged; i++)
		in->changed[i] = (uint64) au_mp_read_int(&r);
}

/* The tuple of an effect, with an aligned copy of its bytes. */
static HeapTuple
effect_tuple(EffectIn *e, Relation rel)
{
	int			natts = e->shape & 0xFFFF;
	int			flags = e->shape >> 16;
	Size		off = offsetof(HeapTupleHeaderData, t_bits);
	HeapTuple	tuple;
	HeapTupleHeader header;

	if (natts > RelationGetNumberOfAttributes(rel) || natts <= 0)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed row in a DDL record")));
	tuple = palloc0(HEAPTUPLESIZE + off + e->data.len);
	tuple->t_data = header = (HeapTupleHeader) ((char *) tuple + HEAPTUPLESIZE);
	tuple->t_len = off + e->data.len;
	tuple->t_tableOid = RelationGetRelid(rel);
	ItemPointerSetInvalid(&tuple->t_self);
	memcpy((char *) header + off, e->data.data, e->data.len);
	HeapTupleHeaderSetNatts(header, natts);
	header->t_infomask |= ((flags & DDL_HAS_NULLS) ? HEAP_HASNULL : 0) |
		((flags & DDL_HAS_VARWIDTH) ? HEAP_HASVARWIDTH : 0);
	header->t_hoff = MAXALIGN(off + ((flags & DDL_HAS_NULLS) ? BITMAPLEN(natts) : 0));
	if (header->t_hoff > tuple->t_len)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed row in a DDL record")));
	HeapTupleHeaderSetDatumLength(header, tuple->t_len);
	HeapTupleHeaderSetTypeId(header, RelationGetDescr(rel)->tdtypeid);
	HeapTupleHeaderSetTypMod(header, RelationGetDescr(rel)->tdtypmod);
	return tuple;
}

HeapTuple
au_ddl_decode_tuple(Relation rel, int shape, Bytes data)
{
	EffectIn	effect = {.shape = shape, .data = data};

	return effect_tuple(&effect, rel);
}

/* The local row that has the identity of tuple; NULL if there is none. */
static HeapTuple
find_row(Relation rel, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(rel);
	AttrNumber	attnums[MaxHeapAttributeNumber];
	Oid			index;
	int			nident = au_ddl_identity(rel, &index, attnums);
	ScanKeyData keys[INDEX_MAX_KEYS];
	int			nkeys = 0;
	Relation	irel = index_open(index, AccessShareLock);
	SysScanDesc scan;
	HeapTuple	found = NULL;
	HeapTuple	candidate;

	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(irel); i++)
	{
		AttrNumber	attnum = irel->rd_index->indkey.values[i];
		Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);
		TypeCacheEntry *type = lookup_type_cache(att->atttypid, TYPECACHE_EQ_OPR_FINFO);
		bool		isnull;
		Datum		value = heap_getattr(tuple, attnum, desc, &isnull);

		if (isnull)
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed row in a DDL record")));
		ScanKeyEntryInitialize(&keys[nkeys++], 0, attnum, BTEqualStrategyNumber, InvalidOid,
							   att->attcollation, type->eq_opr_finfo.fn_oid, value);
	}
	index_close(irel, AccessShareLock);

	scan = systable_beginscan(rel, index, true, NULL, nkeys, keys);
	while (found == NULL && HeapTupleIsValid(candidate = systable_getnext(scan)))
	{
		HeapTupleHeader header = candidate->t_data;
		bool		same = true;

		/* one of several equal rows (pg_depend) that is deleted already */
		if (!(header->t_infomask & HEAP_XMAX_INVALID) && !HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask) &&
			TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(header)))
			continue;
		for (int i = 0; same && i < nident; i++)
		{
			Form_pg_attribute att = TupleDescAttr(desc, attnums[i] - 1);
			bool		null1,
						null2;
			Datum		v1 = heap_getattr(tuple, attnums[i], desc, &null1);
			Datum		v2 = heap_getattr(candidate, attnums[i], desc, &null2);

			/* variable-width keys were compared by the index */
			same = null1 == null2 &&
				(null1 || att->attlen < 0 || datumIsEqual(v1, v2, att->attbyval, att->attlen));
		}
		if (same)
			found = heap_copytuple(candidate);
	}
	systable_endscan(scan);
	return found;
}

/*
 * An applier has waited long enough for a lock that this transaction holds.
 * To be called when a statement begins.
 */
void
au_ddl_give_way(void)
{
	uint64		barred;

	if (shared == NULL || au_ddl_applying)
		return;
	barred = pg_atomic_read_u64(&shared->barred);
	if (likely(barred == 0) || (Oid) (barred >> 32) != MyDatabaseId ||
		!CheckRelationOidLockedByMe((Oid) barred, AccessShareLock, true))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("schema has been updated by another transaction (OC001)"),
			 errdetail("A change of relation %u by another query processor waits for this transaction.", (Oid) barred),
			 errhint("The transaction might succeed if retried.")));
}

/* Files of relations that are gone or got new storage. */
static void
drop_storage(Oid relid)
{
	Relation	rel = relation_open(relid, NoLock);

	if (RELKIND_HAS_STORAGE(rel->rd_rel->relkind) && OidIsValid(rel->rd_rel->relfilenode))
		RelationDropStorage(rel);
	relation_close(rel, NoLock);
}

/*
 * PostgreSQL wants a file for every relation with storage.  Not through
 * RELPERSISTENCE_PERMANENT: that promises WAL can be skipped for relations
 * that the relation cache knows as new, and it does not know these.
 */
static void
create_storage(Form_pg_class cls)
{
	RelFileLocator locator;

	locator.spcOid = OidIsValid(cls->reltablespace) ? cls->reltablespace : MyDatabaseTableSpace;
	locator.dbOid = MyDatabaseId;
	locator.relNumber = cls->relfilenode;
	/* a crash may have left it from an earlier attempt */
	if (smgrexists(smgropen(locator, INVALID_PROC_NUMBER), MAIN_FORKNUM))
		return;
	smgrclose(RelationCreateStorage(locator, RELPERSISTENCE_UNLOGGED, true));
	log_smgrcreate(&locator, MAIN_FORKNUM);
}

/* index_update_stats() set this in place, so no version of the row tells. */
static void
set_has_index(Oid relid)
{
	Relation	rel;
	ScanKeyData key;
	HeapTuple	tuple;
	void	   *state;

	rel = table_open(RelationRelationId, RowExclusiveLock);
	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	systable_inplace_update_begin(rel, ClassOidIndexId, true, NULL, 1, &key, &tuple, &state);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_class cls = (Form_pg_class) GETSTRUCT(tuple);

		if (cls->relhasindex)
			systable_inplace_update_cancel(state);
		else
		{
			cls->relhasindex = true;
			systable_inplace_update_finish(state, tuple);
		}
		heap_freetuple(tuple);
	}
	table_close(rel, RowExclusiveLock);
}

/*
 * If the record created this database: make it from its template, as of this
 * record too, with the options of its catalog row.
 */
static bool
create_database(RecordIn *in, HeapTuple row)
{
	Form_pg_database db = (Form_pg_database) GETSTRUCT(row);
	Oid			oid = db->oid;
	Oid			template_oid = InvalidOid;
	CreatedbStmt *stmt = makeNode(CreatedbStmt);
	ParseState *pstate;
	char	   *template_name;

	for (uint32 i = 0; i < in->ndatabases; i++)
		if (in->databases[i].oid == oid && in->databases[i].op == DDL_CREATE_DATABASE)
			template_oid = in->databases[i].template_oid;
	if (!OidIsValid(template_oid))
		return false;

	template_name = get_database_name(template_oid);
	if (template_name == NULL)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("template database %u does not exist", template_oid)));
	pstate = make_parsestate(NULL);
	stmt->dbname = pstrdup(NameStr(db->datname));
	stmt->options = list_make4(makeDefElem("oid", (Node *) makeInteger((int) oid), -1),
							   makeDefElem("template", (Node *) makeString(template_name), -1),
							   makeDefElem("owner", (Node *) makeString(GetUserNameFromId(db->datdba, false)), -1),
							   makeDefElem("encoding", (Node *) makeString(pstrdup(pg_encoding_to_char(db->encoding))), -1));
	(void) createdb(pstate, stmt);
	free_parsestate(pstate);
	CommandCounterIncrement();
	return true;
}

static void
apply_effects(RecordIn *in, Batch *batch)
{
	List	   *heaps = NIL;	/* tables that got an index */
	ListCell   *lc;
	uint32		i;

	/*
	 * Lock what exists and is about to change, before anything is changed.
	 * The record lists deletions first.
	 */
	for (i = 0; i < in->nchanged; i++)
	{
		Oid			relid = (Oid) in->changed[i];

		if ((Oid) (in->changed[i] >> 32) == MyDatabaseId)
			LockRelationOid(relid, AccessExclusiveLock);	/* watch_applier clears the way */
	}

	for (i = 0; i < in->ndatabases; i++)
		if (in->databases[i].op == DDL_DROP_DATABASE)
		{
			char	   *name = get_database_name(in->databases[i].oid);

			if (name)
				dropdb(name, false, true);
		}

	for (i = 0; i < in->neffects; )
	{
		Oid			catalog = in->effects[i].catalog;
		int			op = in->effects[i].op;
		Relation	rel;
		CatalogIndexState indexes = NULL;

		if (!IsCatalogRelationOid(catalog))
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed DDL record: no catalog %u", catalog)));
		rel = table_open(catalog, RowExclusiveLock);
		if (op == DDL_INSERT)
			indexes = CatalogOpenIndexes(rel);

		for (; i < in->neffects && in->effects[i].catalog == catalog && in->effects[i].op == op; i++)
		{
			HeapTuple	tuple = effect_tuple(&in->effects[i], rel);

			if (op == DDL_DELETE)
			{
				HeapTuple	local = find_row(rel, tuple);

				if (local == NULL)
					ereport(ERROR,
							(errcode(ERRCODE_DATA_CORRUPTED),
							 errmsg("a row of catalog \"%s\" that a DDL record deletes is not there",
									RelationGetRelationName(rel)),
							 errhint("This query processor's catalogs have diverged; rebuild it from its image.")));

				/* an insert of the same row decides what becomes of its storage */
				if (catalog == RelationRelationId)
				{
					Form_pg_class old = (Form_pg_class) GETSTRUCT(local);
					bool		keep = false;

					for (uint32 j = i + 1; !keep && j < in->neffects; j++)
						if (in->effects[j].catalog == catalog && in->effects[j].op == DDL_INSERT)
						{
							HeapTuple	next = effect_tuple(&in->effects[j], rel);
							Form_pg_class cls = (Form_pg_class) GETSTRUCT(next);

							if (cls->oid == old->oid)
							{
								keep = cls->relfilenode == old->relfilenode || old->oid < FirstNormalObjectId;
								break;
							}
							heap_freetuple(next);
						}
					if (!keep)
						drop_storage(old->oid);
				}
				if (catalog == DatabaseRelationId)
					LockTuple(rel, &local->t_self, InplaceUpdateTupleLock);
				CatalogTupleDelete(rel, &local->t_self);
				if (catalog == DatabaseRelationId)
					UnlockTuple(rel, &local->t_self, InplaceUpdateTupleLock);
				continue;
			}

			if (catalog == DatabaseRelationId && create_database(in, tuple))
			{
				HeapTuple	local = find_row(rel, tuple);

				/* options that CREATE DATABASE was not told */
				au_ddl_keep_local_columns(rel, tuple, local);
				LockTuple(rel, &local->t_self, InplaceUpdateTupleLock);
				CatalogTupleUpdateWithInfo(rel, &local->t_self, tuple, indexes);
				UnlockTuple(rel, &local->t_self, InplaceUpdateTupleLock);
				continue;
			}

			CatalogTupleInsertWithInfo(rel, tuple, indexes);
			if (catalog == RelationRelationId)
				batch->storage = lappend(batch->storage, tuple);
			else if (catalog == IndexRelationId)
				heaps = list_append_unique_oid(heaps, ((Form_pg_index) GETSTRUCT(tuple))->indrelid);
		}
		if (indexes)
			CatalogCloseIndexes(indexes);
		table_close(rel, NoLock);
	}
	CommandCounterIncrement();

	for (i = 0; i < in->nsequences; i++)
		batch->sequences = lappend(batch->sequences, &in->sequences[i]);
	foreach(lc, heaps)
		set_has_index(lfirst_oid(lc));

	/*
	 * Invalidations that catalog rows do not imply (a policy, a partition's
	 * bound), and statistics, which are local.
	 */
	for (i = 0; i < in->nchanged; i++)
	{
		Oid			relid = (Oid) in->changed[i];
		HeapTuple	tuple;

		if ((Oid) (in->changed[i] >> 32) != MyDatabaseId)
			continue;
		tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
		if (HeapTupleIsValid(tuple))
		{
			CacheInvalidateRelcacheByTuple(tuple);
			ReleaseSysCache(tuple);
		}
		else
			RemoveStatistics(relid, 0);
	}
}

static void
error_context(void *arg)
{
	errcontext("applying DDL record %lld", (long long) *(int64 *) arg);
}

/* Files of the relations that are still there after all records of the batch. */
static void
create_files(Batch *batch)
{
	ListCell   *lc;

	foreach(lc, batch->storage)
	{
		Form_pg_class cls = (Form_pg_class) GETSTRUCT((HeapTuple) lfirst(lc));
		HeapTuple	now;
		bool		current;

		if (!RELKIND_HAS_STORAGE(cls->relkind) || !OidIsValid(cls->relfilenode) || cls->oid < FirstNormalObjectId)
			continue;
		now = SearchSysCache1(RELOID, ObjectIdGetDatum(cls->oid));
		current = HeapTupleIsValid(now) && ((Form_pg_class) GETSTRUCT(now))->relfilenode == cls->relfilenode;
		if (HeapTupleIsValid(now))
			ReleaseSysCache(now);
		if (current)
			create_storage(cls);
	}
	/* a later entry is for newer storage of the same sequence */
	for (int i = list_length(batch->sequences) - 1; i >= 0; i--)
	{
		SequenceIn *sequence = list_nth(batch->sequences, i);

		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(sequence->relid)))
			au_sequence_create_storage(sequence->relid, sequence->last_value, sequence->is_called);
	}
}

/* Commit the records of the batch. */
static void
end_batch(Batch *batch)
{
	ErrorContextCallback callback = {.previous = error_context_stack, .callback = error_context, .arg = &batch->n};
	ListCell   *lc;

	if (!batch->open)
		return;
	error_context_stack = &callback;
	create_files(batch);
	au_ddl_mark_applied(batch->n);
	PopActiveSnapshot();
	ForceSyncCommit();

	/*
	 * Published before the local commit: nobody can take a snapshot at n
	 * before set_applied below, and a relation that looks changed too early
	 * only costs a retry.
	 */
	foreach(lc, batch->changes)
	{
		ChangesIn  *changed = lfirst(lc);

		note_changes(changed->names, changed->count, changed->tau);
	}
	CommitTransactionCommand();
	error_context_stack = callback.previous;
	set_applied(batch->n);
	elog(DEBUG1, "applied DDL record %lld", (long long) batch->n);
	memset(batch, 0, sizeof(*batch));
}

/* Everything of the record is allocated in context, which outlives the batch. */
static void
apply_record(Batch *batch, MemoryContext context, int64 n, Tau tau, Bytes value)
{
	ErrorContextCallback callback = {.previous = error_context_stack, .callback = error_context, .arg = &n};
	RecordIn	in = {0};
	ChangesIn  *changed;

	error_context_stack = &callback;
	if (!batch->open)
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		au_ddl_lock();
		if (au_ddl_applied() >= n)
		{
			/* the transaction that made it got through meanwhile */
			PopActiveSnapshot();
			CommitTransactionCommand();
			error_context_stack = callback.previous;
			return;
		}
		batch->open = true;
	}
	MemoryContextSwitchTo(context);
	read_record(&in, value, n);

	/* files of a template must be there, and its catalogs committed */
	if (in.ndatabases > 0 && batch->records > 0)
	{
		error_context_stack = callback.previous;
		end_batch(batch);
		apply_record(batch, context, n, tau, value);
		return;
	}

	batch->n = n;
	batch->records++;
	batch->locks += in.nchanged;
	apply_effects(&in, batch);
	au_oids_advance(in.next_oid);
	changed = palloc_object(ChangesIn);
	*changed = (ChangesIn) {in.changed, in.nchanged, tau};
	batch->changes = lappend(batch->changes, changed);
	error_context_stack = callback.previous;

	if (pg_atomic_read_u32(&shared->caught_up) != 0 || in.ndatabases > 0 ||
		batch->records >= BATCH_RECORDS || batch->locks >= BATCH_LOCKS)
		end_batch(batch);
}

/*
 * Storage ids of tables must never be used twice: rows of a transaction that
 * came to nothing may still lie in storage when its oid is forgotten with the
 * data directory.
 */
static void
skip_used_storage_ids(Tau tau)
{
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Oid			database = ((Form_pg_database) GETSTRUCT(tuple))->oid;
		StringInfoData lo,
					hi,
					buf;
		bool		more;
		uint32		number;
		KeyEntry	entry;

		initStringInfo(&lo);
		initStringInfo(&hi);
		initStringInfo(&buf);
		au_key_append_relid(&lo, (RelId) database << 32);
		au_key_append_relid(&hi, ((RelId) database + 1) << 32);
		au_read_range((Bytes) {(uint8 *) lo.data, lo.len}, (Bytes) {(uint8 *) hi.data, hi.len},
					  true, tau, 1, READ_BYTES, &buf, &more);
		if (buf.len == 0)
			continue;
		/* key: database oid BE4, relfilenumber BE4, ... */
		(void) au_batch_entry(buf.data, &entry);
		memcpy(&number, entry.key.data + 4, 4);
		number = pg_ntoh32(number);
		if (number < PG_UINT32_MAX)
			au_oids_advance(number + 1);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* Apply what this database's applier can; tells the supervisor what is next. */
static ApplierResult
apply_available(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "DDL apply", ALLOCSET_DEFAULT_SIZES);
	StringInfoData lo,
				hi,
				buf;
	Tau			acked;
	int64		ddl;

	for (;;)
	{
		Batch		batch = {0};
		bool		more;
		int64		n;
		uint8	   *p,
				   *end;
		uint64		be;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		initStringInfo(&lo);
		initStringInfo(&hi);
		initStringInfo(&buf);
		au_page_snapshot(&acked, &ddl);
		au_key_append_relid(&lo, AU_SYS_DDL);
		be = pg_hton64((uint64) au_ddl_applied() + 1);
		appendBinaryStringInfo(&lo, &be, sizeof(be));
		au_key_append_relid(&hi, AU_SYS_DDL + 1);

		StartTransactionCommand();
		MemoryContextSwitchTo(context);
		au_read_range((Bytes) {(uint8 *) lo.data, lo.len}, (Bytes) {(uint8 *) hi.data, hi.len},
					  false, acked, READ_ROWS, READ_BYTES, &buf, &more);
		if (buf.len == 0 && pg_atomic_read_u32(&shared->caught_up) == 0)
			skip_used_storage_ids(acked);
		CommitTransactionCommand();
		if (buf.len == 0)
		{
			if (au_ddl_applied() < ddl)
				ereport(ERROR,
						(errcode(ERRCODE_DATA_CORRUPTED),
						 errmsg("DDL record %lld is not in storage", (long long) au_ddl_applied() + 1),
						 errdetail("The cluster is at record %lld.", (long long) ddl)));
			break;
		}

		p = (uint8 *) buf.data;
		end = p + buf.len;
		while (p < end)
		{
			KeyEntry	entry;
			Tau			tau;
			Bytes		value;
			MpReader	r;

			p = (uint8 *) au_batch_entry((char *) p, &entry);
			tau = entry.tau;
			value = entry.value;
			if (entry.key.len != 16)
				ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed key in the DDL log")));
			memcpy(&be, entry.key.data + 8, 8);
			n = (int64) pg_ntoh64(be);

			if (n <= au_ddl_applied())
				continue;
			if (n != (batch.open ? batch.n : au_ddl_applied()) + 1)
				ereport(ERROR,
						(errcode(ERRCODE_DATA_CORRUPTED),
						 errmsg("DDL record %lld is missing", (long long) au_ddl_applied() + 1)));
			r = (MpReader) {value.data, value.data + value.len};
			shared->next_database = read_header(&r, n);
			if (shared->next_database != MyDatabaseId)
			{
				end_batch(&batch);
				MemoryContextSwitchTo(TopMemoryContext);
				MemoryContextDelete(context);
				return APPLIER_DATABASE;
			}
			apply_record(&batch, context, n, tau, value);
			MemoryContextSwitchTo(context);
		}
		end_batch(&batch);
	}
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextDelete(context);

	if (pg_atomic_read_u32(&shared->caught_up) == 0)
	{
		/* snapshots taken from now on see all that was applied so far */
		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		shared->forgotten = Max(shared->forgotten, acked);
		LWLockRelease(&shared->lock);
		au_sequences_restore();
	}
	return APPLIER_DONE;
}

/* ------------------------------------------------------------------- workers */

/*
 * A worker is about to end by this error.  Does it say that the local catalogs
 * are damaged?  Internal errors may have passing causes, for a while.
 */
static bool
says_damage(int sqlstate)
{
	switch (sqlstate)
	{
		case ERRCODE_DATA_CORRUPTED:
		case ERRCODE_INDEX_CORRUPTED:
		case ERRCODE_UNDEFINED_FILE:
			return true;
		case ERRCODE_INTERNAL_ERROR:
			return ++shared->internal_errors >= INTERNAL_ERRORS_MAX;
		default:
			return false;
	}
}

static void
note_failure(ErrorData *error)
{
	if (error->elevel >= ERROR && !proc_exit_inprogress)
	{
		/* no lock: an error may come while it is held, and a torn text is only read by people */
		strlcpy(shared->cause, error->message ? error->message : "", CAUSE_BYTES);
		if (says_damage(error->sqlerrcode))
		{
			write_stderr("FATAL:  the catalogs of this query processor are damaged: %s\n", shared->cause);
			kill(PostmasterPid, SIGQUIT);
		}
	}
	if (earlier_emit_log_hook)
		earlier_emit_log_hook(error);
}

static void
watch_failures(void)
{
	earlier_emit_log_hook = emit_log_hook;
	emit_log_hook = note_failure;
}

/* The newest record of the cluster. */
static int64
newest_record(void)
{
	Tau			acked;
	int64		ddl;

	au_page_snapshot(&acked, &ddl);
	return ddl;
}

/*
 * Where schemas change on other query processors, the next record is likely to
 * follow soon, and starting a worker takes longer than applying it.  Not too
 * long: DROP DATABASE waits for us.
 */
static bool
more_comes(void)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LINGER_MS);

	if (pg_atomic_read_u32(&shared->caught_up) == 0 || !au_peers_exist())
		return false;
	for (;;)
	{
		int64		bell = au_peers_bell();
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

		CHECK_FOR_INTERRUPTS();
		if (newest_record() > au_ddl_applied())
			return true;
		if (left <= 0)
			return false;
		au_peers_sleep(bell, (int) Min(left, SLEEP_MS));
	}
}

void
au_catalog_applier_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);

	pqsignal(SIGTERM, die);
	watch_failures();
	BackgroundWorkerUnblockSignals();
	au_ddl_applying = true;
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid,
											  BGWORKER_BYPASS_ALLOWCONN | BGWORKER_BYPASS_ROLELOGINCHECK);
	if (au_ddl_applied() < 0)
	{
		StartTransactionCommand();
		set_applied(read_applied());
		CommitTransactionCommand();
	}
	do
		shared->result = apply_available();
	while (shared->result == APPLIER_DONE && more_comes());
	proc_exit(0);
}

/*
 * All databases, postgres first unless somebody dropped it.  The supervisor has
 * no database, so pg_database is all that it can read.
 */
static List *
all_databases(void)
{
	MemoryContext caller = CurrentMemoryContext;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *oids = NIL;

	StartTransactionCommand();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_database db = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old;

		if (database_is_invalid_form(db))
			continue;
		old = MemoryContextSwitchTo(caller);
		oids = db->oid == PostgresDbOid ? lcons_oid(db->oid, oids) : lappend_oid(oids, db->oid);
		MemoryContextSwitchTo(old);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return oids;
}

/* Our own file, as it was loaded: images do not depend on where that is. */
void
au_ddl_set_library(BackgroundWorker *worker)
{
	Dl_info		info;

	if (dladdr((void *) au_ddl_register, &info) == 0 || info.dli_fname == NULL)
		elog(ERROR, "could not find the path of the library");
	strlcpy(worker->bgw_library_name, info.dli_fname, MAXPGPATH);
}

static bool
between_statements(ProcNumber process)
{
	PgBackendStatus *status = pgstat_get_beentry_by_proc_number(process);

	return status != NULL && status->st_state == STATE_IDLEINTRANSACTION;
}

/* Does the process wait for a lock that others are to give way for?  Then which. */
static bool
waited_for(pid_t pid, LOCKTAG *tag, LOCKMODE *mode)
{
	BlockedProcsData *blocked = GetBlockerStatusData(pid);
	bool		waits = false;

	for (int i = 0; i < blocked->nlocks && !waits; i++)
	{
		LockInstanceData *lock = &blocked->locks[i];

		/* who commits a record has the DDL lock, and has it for a short time */
		if (lock->pid != pid || lock->waitLockMode == NoLock ||
			(lock->locktag.locktag_type == LOCKTAG_OBJECT &&
			 lock->locktag.locktag_field2 == AccessMethodRelationId))
			continue;
		*tag = lock->locktag;
		*mode = lock->waitLockMode;
		waits = true;
	}
	return waits;
}

/*
 * PROTOCOL Q4: the applier never waits long for local locks, of relations that
 * change or of transactions that changed the same rows of catalogs; their
 * holders give way.  (It queues like everybody, so that those who come later
 * wait behind it.)  A transaction between two statements can only be told by
 * ending its session, so it gets some time to come with its next statement,
 * which then fails (au_ddl_give_way).  Returns whether the applier waits.
 */
static bool
clear_way(pid_t applier, LOCKTAG *before, TimestampTz *since)
{
	VirtualTransactionId *holders;
	LOCKTAG		tag;
	LOCKMODE	mode;
	long		waited;

	if (!waited_for(applier, &tag, &mode))
	{
		memset(before, 0, sizeof(*before));
		pg_atomic_write_u64(&shared->barred, 0);
		return false;
	}
	if (memcmp(before, &tag, sizeof(tag)) != 0)
	{
		*before = tag;
		*since = GetCurrentTimestamp();
	}
	waited = TimestampDifferenceMilliseconds(*since, GetCurrentTimestamp());
	if (waited < LOCK_PATIENCE_MS)
		return true;
	if (tag.locktag_type == LOCKTAG_RELATION)
		pg_atomic_write_u64(&shared->barred, (uint64) tag.locktag_field1 << 32 | tag.locktag_field2);
	/* SQLSTATE 40001 for a statement, the end of an idle session */
	for (holders = GetLockConflicts(&tag, mode, NULL); VirtualTransactionIdIsValid(*holders); holders++)
		if (waited >= IDLE_PATIENCE_MS || !between_statements(holders->procNumber))
			(void) CancelVirtualTransaction(*holders, PROCSIG_RECOVERY_CONFLICT_LOCK);
	return true;
}

/* Wait until the applier has ended, and see to it that it gets on. */
static void
watch_applier(BackgroundWorkerHandle *handle)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "applier's locks", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	LOCKTAG		tag = {0};
	TimestampTz since = 0;
	pid_t		pid;
	BgwHandleStatus status;

	while ((status = GetBackgroundWorkerPid(handle, &pid)) != BGWH_STOPPED)
	{
		bool		waits = status == BGWH_STARTED && clear_way(pid, &tag, &since);

		MemoryContextReset(context);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 waits ? LOCK_LOOK_MS : WATCH_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pg_atomic_write_u64(&shared->barred, 0);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

static bool
run_applier(Oid database)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;

	strlcpy(worker.bgw_name, "australis catalog applier", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "australis catalog applier", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	au_ddl_set_library(&worker);
	strlcpy(worker.bgw_function_name, "au_catalog_applier_main", BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = MyProcPid;

	shared->result = APPLIER_FAILED;
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		ereport(LOG,
				(errmsg("no background worker is free to apply catalog changes"),
				 errhint("Raise max_worker_processes.")));
		return false;
	}
	watch_applier(handle);
	return shared->result != APPLIER_FAILED;
}

/* An applier that cannot read would only fail and fill the log. */
static bool
services_there(void)
{
	return au_page_read(PAGE_COMMIT_PID) != 0 && au_page_read(PAGE_STORAGE_PID) > 0;
}

/*
 * Apply all that there is.  False: try again later.
 */
static bool
catch_up(void)
{
	List	   *databases = all_databases();
	bool		first = pg_atomic_read_u32(&shared->caught_up) == 0;
	Oid			database = databases ? linitial_oid(databases) : InvalidOid;
	ListCell   *lc;

	do
	{
		if (!run_applier(database))
			return false;
		database = shared->next_database;
	} while (shared->result == APPLIER_DATABASE);

	if (first)
	{
		/* after a crash, and in a copy, the sequences of every database may be behind; at change 0 there are none */
		if (au_sequences_unclean() && au_ddl_applied() > 0)
			foreach(lc, all_databases())
				if (!run_applier(lfirst_oid(lc)))
				return false;
		au_sequences_ring();
		au_peers_applied(au_ddl_applied(), false);
		au_peers_register();
		pg_atomic_write_u32(&shared->caught_up, 1);
		ConditionVariableBroadcast(&shared->advanced);
		ereport(LOG, (errmsg("catalogs are at change %lld", (long long) au_ddl_applied())));
	}
	return true;
}

void
au_catalog_supervisor_main(Datum arg)
{
	MemoryContext context;
	long		retry = RETRY_MS;

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	watch_failures();
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	context = AllocSetContextCreate(TopMemoryContext, "catalog supervisor", ALLOCSET_DEFAULT_SIZES);

	while (!ShutdownRequestPending)
	{
		int64		bell = 0;
		long		timeout = SERVICES_POLL_MS;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (au_page_there())
		{
			bell = au_peers_bell();
			if (pg_atomic_read_u32(&shared->caught_up) != 0 && newest_record() <= au_ddl_applied())
			{
				timeout = 0;
				if (services_there())
					au_statistics_look();
			}
			else if (services_there())
			{
				MemoryContextReset(context);
				MemoryContextSwitchTo(context);
				if (catch_up())
				{
					retry = RETRY_MS;
					shared->internal_errors = 0;
					shared->cause[0] = '\0';
					timeout = 0;
				}
				else
				{
					timeout = retry;
					retry = Min(retry * 2, RETRY_MAX_MS);
				}
			}
		}
		if (timeout == 0)
			au_peers_sleep(bell, SLEEP_MS);
		/* after a failure nobody hurries us */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT, timeout, PG_WAIT_EXTENSION);
	}
	proc_exit(0);
}

void
au_ddl_register(void)
{
	BackgroundWorker worker = {0};

	strlcpy(worker.bgw_name, "australis catalog supervisor", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "australis catalog supervisor", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	au_ddl_set_library(&worker);
	strlcpy(worker.bgw_function_name, "au_catalog_supervisor_main", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}
