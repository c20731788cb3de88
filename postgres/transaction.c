/*-------------------------------------------------------------------------
 *
 * transaction.c
 *	  A transaction's snapshot time and its commit.
 *
 * tau_start is taken from the shared page when the transaction first reads or
 * writes (rule T3) and kept to its end.  Everything written waits in the
 * write buffer.  At PRE_COMMIT, after deferred triggers and after every other
 * library's callback, one Commit message goes to the adjudicator:
 *
 *	  refused		-> ERROR here, PostgreSQL rolls back, nothing happened
 *	  committed		-> PostgreSQL commits locally (catalogs, temporary tables)
 *	  no answer		-> resolve(txid): committed, or killed for good (rule Q2)
 *	  no answer to that either -> FATAL 08007: the outcome is unknown
 *
 * From sending the message to the local commit interrupts are held (rule Q1);
 * a cancel that arrives meanwhile turns into resolve(txid).  Transactions that
 * wrote nothing send nothing (rule A7).
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include <limits.h>
#include <time.h>

#include "access/genam.h"
#include "access/parallel.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/storage.h"
#include "commands/async.h"
#include "commands/tablecmds.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

/* tags and outcomes, docs/formats.md section 6 */
#define TAG_COMMIT			2
#define TAG_COMMIT_REPLY	3
#define TAG_RESOLVE			4
#define TAG_RESOLVE_REPLY	5
#define TAG_INGEST			6
#define TAG_INGEST_REPLY	7
#define TAG_DROP			8
#define TAG_ERROR			9
#define TAG_SNAPSHOT		50
#define TAG_SNAPSHOT_REPLY	51

#define OUTCOME_COMMITTED	0
#define OUTCOME_CONFLICT	1
#define OUTCOME_SCHEMA		2
#define OUTCOME_REFUSED		3
#define OUTCOME_TOO_LARGE	4
#define OUTCOME_PENDING		5
#define OUTCOME_KILLED		6
#define OUTCOME_DISK_FULL	7

#define MODE_BLIND			0x04
#define MODE_LOCK_ONLY		0x08
#define MODE_DELETE			0x10

#define INGEST_CHUNK_BYTES	(8 * 1024 * 1024)
#define FLUSH_BYTES			(16 * 1024 * 1024)
#define INGEST_WINDOW		3	/* chunks on their way to the journal */
#define MAX_READ_RANGES		10000
#define COMPARE_AND_SET_PAUSE_MS 2

/*
 * What was ingested for a storage id created in this transaction: at tau it
 * has rows of commands up to cid.  Newest first; in every relation's part of
 * the list both decrease.
 */
typedef struct Ingested
{
	RelId		relid;
	CommandId	cid;
	Tau			tau;
	struct Ingested *next;
} Ingested;

/*
 * A storage id created in this transaction that has chunks in storage, and the
 * nesting level of the (sub)transaction whose it is now; 0: it rolled back.
 */
typedef struct IngestedStorage
{
	uint64		relid;			/* first: lists of these are also lists of uint64 * */
	int			level;
	Bytes		least;			/* of all keys in its chunks */
	Bytes		greatest;
} IngestedStorage;

typedef enum CommitState
{
	COMMIT_NONE,
	COMMIT_SENT,				/* the outcome is unknown */
	COMMIT_DECIDED,				/* the adjudicator said yes */
} CommitState;

static Tau	tau_start = 0;
static uint8 txid[16];
static bool have_txid = false;
static uint64 txid_counter = 0;
static uint64 txid_random = 0;
static int	txid_pid = 0;
static uint64 serial = 1;

static MemoryContext xact_context = NULL;
static List *noted_relations = NIL; /* of uint64 * */
static List *ingested_relids = NIL; /* of IngestedStorage * */
static List *dropped_relids = NIL;	/* of uint64 *; beside PostgreSQL's own list */
static Ingested *ingested = NULL;
static int64 ingest_seq = 0;
static int64 snapshot_id = 0;
static uint64 ingest_connection = 0;	/* 0: nothing sent */

/* chunks sent and not acknowledged yet, oldest first */
static struct
{
	RelId		relid;
	CommandId	cid;
	int64		seq;
}			in_flight[INGEST_WINDOW + 1];
static int	nin_flight = 0;

static void ingest_wait(int most);

/* SERIALIZABLE */
typedef struct ReadRange
{
	Bytes		lo;
	Bytes		hi;
} ReadRange;
static ReadRange *read_ranges = NULL;
static int	nread_ranges = 0;
static int	max_read_ranges = 0;
static ReadRange last_range = {0};

static CommitState commit_state = COMMIT_NONE;
static bool holding_interrupts = false;
static int64 ddl_n = 0;
static Tau	ddl_tau = 0;
static List *ddl_changed = NIL;
static int	notify_queue_pages = 0; /* 0: not changed */
static uint32 wait_event = 0;

static MemoryContext
get_context(void)
{
	if (xact_context == NULL)
		xact_context = AllocSetContextCreate(TopTransactionContext, "australis transaction",
											 ALLOCSET_SMALL_SIZES);
	return xact_context;
}

static inline Bytes
as_bytes(StringInfo s)
{
	Bytes		b = {(const uint8 *) s->data, (uint32) s->len};

	return b;
}

uint64
au_transaction_serial(void)
{
	return serial;
}

/* ---------------------------------------------------------------- snapshot */

/*
 * A time at or above every commit that anybody has been told of, and the
 * newest DDL record at that time.  On one host the shared page knows; behind a
 * gateway that is a question to all adjudicators (rule T2), which one that is
 * silent delays (rule W3): cancellable, and an error in the end.
 */
void
au_newest_snapshot(Tau *acked, int64 *ddl)
{
	StringInfoData msg;
	MpReader	reply;
	int64		id;

	if (!au_behind_gateway())
	{
		au_page_snapshot(acked, ddl);
		return;
	}
	ingest_wait(0);				/* answers come in order */
	initStringInfo(&msg);
	au_mp_array(&msg, 2);
	au_mp_int(&msg, TAG_SNAPSHOT);
	id = ++snapshot_id;
	au_mp_int(&msg, id);
	if (!au_call(AU_COMMIT_SERVICE, &msg, &reply, au_service_timeout_ms))
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the commit service is not available")));
	if (au_mp_read_array(&reply) < 4 || au_mp_read_int(&reply) != TAG_SNAPSHOT_REPLY ||
		au_mp_read_int(&reply) != id)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer to a snapshot")));
	*acked = au_mp_read_int(&reply);
	*ddl = au_mp_read_int(&reply);
	pfree(msg.data);
}

Tau
au_tau_start(void)
{
	if (tau_start == 0 && IsParallelWorker())
	{
		/* the leader waits for us; so storage keeps what both read */
		Tau			of_leader = au_page_slot_of(GetNumberFromPGProc(MyProc->lockGroupLeader));

		if (of_leader == 0)
			elog(ERROR, "the leader of this parallel worker has no snapshot time");
		au_page_set_slot(of_leader);
		tau_start = of_leader;
	}
	if (tau_start == 0)
	{
		Tau			acked;
		int64		ddl;

		au_newest_snapshot(&acked, &ddl);
		/* nothing was ever committed: any time is as good */
		acked = Max(acked, AU_TAU_EMPTY);
		au_page_set_slot(acked);
		tau_start = acked;
		/* rule Q5: the catalog must not be behind the snapshot */
		au_ddl_wait_applied(ddl);
	}
	return tau_start;
}

/*
 * SET TRANSACTION SNAPSHOT: read as of the time of a transaction that is still
 * running.  The caller checks afterwards that it still does, since only then
 * storage has kept the versions for both.
 */
void
au_adopt_tau_start(Tau tau)
{
	if (tau_start != 0 && tau_start != tau)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("SET TRANSACTION SNAPSHOT must be called before any query")));
	au_page_set_slot(tau);
	tau_start = tau;
}

bool
au_has_tau_start(void)
{
	return tau_start != 0;
}

const uint8 *
au_txid(void)
{
	if (!have_txid)
	{
		uint64		n;

		if (txid_pid != MyProcPid)
		{
			if (!pg_strong_random(&txid_random, sizeof(txid_random)))
				ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not get random bytes")));
			txid_pid = MyProcPid;
		}
		n = ++txid_counter;
		memcpy(txid, &txid_random, 8);
		n = pg_hton64(n);
		memcpy(txid + 8, &n, 8);
		have_txid = true;
	}
	return txid;
}

uint32
au_xmin(void)
{
	uint32		x = hash_bytes(au_txid(), 16);

	return x < FirstNormalTransactionId ? x + FirstNormalTransactionId : x;
}

/*
 * Nothing of this transaction is anywhere but in storage as of tau_start; and
 * what is read need not be noted, since workers could not.
 */
bool
au_workers_see_all(void)
{
	return au_wb_is_empty() && ingested_relids == NIL && XactIsoLevel != XACT_SERIALIZABLE;
}

/* ------------------------------------------------------------------ notes */

static bool
list_has(List *list, uint64 v)
{
	ListCell   *lc;

	foreach(lc, list)
	{
		if (*(uint64 *) lfirst(lc) == v)
			return true;
	}
	return false;
}

static List *
list_add(List *list, uint64 v)
{
	MemoryContext old = MemoryContextSwitchTo(get_context());
	uint64	   *p = palloc(sizeof(uint64));

	*p = v;
	list = lappend(list, p);
	MemoryContextSwitchTo(old);
	return list;
}

void
au_note_relation(Relation rel)
{
	uint64		name = au_relation_name(rel);

	if (noted_relations && *(uint64 *) llast(noted_relations) == name)
		return;
	if (!list_has(noted_relations, name))
		noted_relations = list_add(noted_relations, name);
}

/*
 * SERIALIZABLE: the relation must be unchanged at COMMIT.  The adjudicator
 * keeps one list for that and for writes, so a change that depends on rows
 * may be refused for this reader; never one accepted that should not be.
 */
void
au_note_relation_read(Oid relid)
{
	uint64		name = (uint64) MyDatabaseId << 32 | relid;

	if (!list_has(noted_relations, name))
		noted_relations = list_add(noted_relations, name);
}

static void
check_not_ahead(uint64 name, const char *relname)
{
	if (tau_start == 0)
		return;					/* taken after the catalog was read */
	if (au_ddl_last_change(name) > tau_start)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("schema has been updated by another transaction (OC001)"),
				 relname ? errdetail("Table \"%s\" changed after this transaction started.", relname) : 0,
				 errhint("The transaction might succeed if retried.")));
}

void
au_check_relation_not_ahead(Relation rel)
{
	check_not_ahead(au_relation_name(rel), RelationGetRelationName(rel));
}

void
au_check_partitions_not_ahead(Oid relid)
{
	if (tau_start != 0)
		check_not_ahead((uint64) MyDatabaseId << 32 | relid, get_rel_name(relid));
}

void
au_note_read_range(Bytes lo, Bytes hi)
{
	MemoryContext old;

	if (XactIsoLevel != XACT_SERIALIZABLE)
		return;
	if (nread_ranges > 0 && au_compare_bytes(last_range.lo, lo) == 0 && au_compare_bytes(last_range.hi, hi) == 0)
		return;
	if (nread_ranges >= MAX_READ_RANGES)
	{
		/*
		 * Bounded: from here on every range stands for its whole relation.
		 * That may refuse transactions that were serializable, never accept
		 * one that was not.
		 */
		uint64		relid;
		uint8		whole[16];
		Bytes		wlo,
					whi;

		memcpy(&relid, lo.data, 8);
		memcpy(whole, &relid, 8);
		relid = pg_hton64(pg_ntoh64(relid) + 1);
		memcpy(whole + 8, &relid, 8);
		wlo.data = whole;
		wlo.len = 8;
		whi.data = whole + 8;
		whi.len = 8;
		for (int i = nread_ranges - 1; i >= MAX_READ_RANGES; i--)
		{
			if (au_compare_bytes(read_ranges[i].lo, wlo) == 0)
				return;
		}
		lo = wlo;
		hi = whi;
	}
	old = MemoryContextSwitchTo(get_context());
	if (nread_ranges >= max_read_ranges)
	{
		max_read_ranges = Max(32, max_read_ranges * 2);
		read_ranges = read_ranges ? repalloc(read_ranges, sizeof(ReadRange) * max_read_ranges)
			: palloc(sizeof(ReadRange) * max_read_ranges);
	}
	{
		uint8	   *copy = palloc(lo.len + hi.len);
		ReadRange  *r = &read_ranges[nread_ranges++];

		memcpy(copy, lo.data, lo.len);
		memcpy(copy + lo.len, hi.data, hi.len);
		r->lo.data = copy;
		r->lo.len = lo.len;
		r->hi.data = copy + lo.len;
		r->hi.len = hi.len;
		last_range = *r;
	}
	MemoryContextSwitchTo(old);
}

void
au_note_read_key(Bytes key)
{
	uint8		hi[AU_MAX_KEY + 16];
	Bytes		after = {hi, key.len + 1};

	if (XactIsoLevel != XACT_SERIALIZABLE || key.len > AU_MAX_KEY)
		return;
	memcpy(hi, key.data, key.len);
	hi[key.len] = 0;
	au_note_read_range(key, after);
}

void
au_note_storage_dropped(RelId relid)
{
	dropped_relids = list_add(dropped_relids, relid);
}

/* -------------------------------------------------------- unpublished storage */

bool
au_storage_unpublished(Relation rel)
{
	SubTransactionId sub = GetCurrentSubTransactionId();

	/*
	 * Only in the very subtransaction that created the storage id: if that
	 * rolls back, the id goes with everything ingested for it.
	 */
	if (rel->rd_newRelfilelocatorSubid != InvalidSubTransactionId)
		return rel->rd_newRelfilelocatorSubid == sub;
	return rel->rd_createSubid == sub;
}

Tau
au_read_tau(RelId relid, CommandId curcid)
{
	if (nin_flight > 0)
		ingest_wait(0);
	for (Ingested *i = ingested; i; i = i->next)
	{
		if (i->relid == relid && i->cid < curcid)
			return Max(i->tau, au_tau_start());
	}
	return au_tau_start();
}

bool
au_has_ingested(RelId relid)
{
	return list_has(ingested_relids, relid);
}

/*
 * Is this key in none of the chunks, for all keys in them lie on one side of
 * it?  Who loads in the order of keys need not ask storage about each.
 */
bool
au_beyond_ingested(RelId relid, Bytes key)
{
	foreach_ptr(IngestedStorage, storage, ingested_relids)
	{
		if (storage->relid == relid)
			return au_compare_bytes(key, storage->greatest) > 0 || au_compare_bytes(key, storage->least) < 0;
	}
	return false;
}

static void
keep_key(Bytes *kept, Bytes key)
{
	uint8	   *copy = MemoryContextAlloc(get_context(), key.len);

	memcpy(copy, key.data, key.len);
	if (kept->data)
		pfree((void *) kept->data);
	kept->data = copy;
	kept->len = key.len;
}

static void
note_keys(IngestedStorage *storage, const IngestEntry *entries, int n)
{
	Bytes		least = entries[0].key,
				greatest = entries[0].key;

	for (int i = 1; i < n; i++)
	{
		if (au_compare_bytes(entries[i].key, least) < 0)
			least = entries[i].key;
		if (au_compare_bytes(entries[i].key, greatest) > 0)
			greatest = entries[i].key;
	}
	if (storage->least.data == NULL || au_compare_bytes(least, storage->least) < 0)
		keep_key(&storage->least, least);
	if (storage->greatest.data == NULL || au_compare_bytes(greatest, storage->greatest) > 0)
		keep_key(&storage->greatest, greatest);
}

static void
note_storage_ingested(RelId relid, const IngestEntry *entries, int n)
{
	IngestedStorage *storage;
	MemoryContext old;

	foreach_ptr(IngestedStorage, known, ingested_relids)
	{
		if (known->relid != relid)
			continue;
		if (known->level == 0)
			elog(ERROR, "a storage id was given out twice in one transaction");
		note_keys(known, entries, n);
		return;
	}
	old = MemoryContextSwitchTo(get_context());
	storage = palloc0(sizeof(IngestedStorage));
	storage->relid = relid;
	storage->level = GetCurrentTransactionNestLevel();
	note_keys(storage, entries, n);
	ingested_relids = lappend(ingested_relids, storage);
	MemoryContextSwitchTo(old);
}

/* The subtransaction at this level has ended. */
static void
ingested_subxact_end(int level, bool committed)
{
	foreach_ptr(IngestedStorage, storage, ingested_relids)
	{
		if (storage->level >= level)
			storage->level = committed ? level - 1 : 0;
	}
}

static void
note_ingested(RelId relid, CommandId cid, Tau tau)
{
	Ingested   *i;

	for (i = ingested; i; i = i->next)
	{
		if (i->relid == relid)
			break;
	}
	if (i == NULL || cid > i->cid)
	{
		i = MemoryContextAllocZero(get_context(), sizeof(Ingested));
		i->relid = relid;
		i->cid = cid;
		i->next = ingested;
		ingested = i;
	}
	i->tau = tau;
}

static void
report_disk_full(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DISK_FULL),
			 errmsg("the disk of the journal is full"),
			 errdetail("The transaction has changed nothing."),
			 errhint("Free space and try again.")));
}

static void
read_ingest_reply(MpReader *reply)
{
	Bytes		id;
	int64		seq;
	int64		outcome;
	Tau			tau;

	if (au_mp_read_array(reply) < 5 || au_mp_read_int(reply) != TAG_INGEST_REPLY)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer to a chunk of rows")));
	id = au_mp_read_bin(reply);
	seq = au_mp_read_int(reply);
	outcome = au_mp_read_int(reply);
	tau = au_mp_read_int(reply);
	if (id.len != 16 || memcmp(id.data, txid, 16) != 0 || seq != in_flight[0].seq)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer to a chunk of rows")));
	if (outcome == OUTCOME_DISK_FULL)
		report_disk_full();
	if (outcome != OUTCOME_COMMITTED)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the commit service refused a chunk of rows"),
				 errhint("The transaction might succeed if retried.")));
	note_ingested(in_flight[0].relid, in_flight[0].cid, tau);
}

/* Take answers until at most `most` chunks are on their way. */
static void
ingest_wait(int most)
{
	while (nin_flight > most)
	{
		MpReader	reply;

		PG_TRY();
		{
			if (au_receive(AU_COMMIT_SERVICE, &reply, Max(au_service_timeout_ms, 60000), false) != AU_RECEIVED)
				ereport(ERROR,
						(errcode(ERRCODE_CANNOT_CONNECT_NOW),
						 errmsg("the commit service went away while rows were loaded"),
						 errhint("The transaction is rolled back; try again.")));
			read_ingest_reply(&reply);
		}
		PG_CATCH();
		{
			/* the other answers are void, and with the connection all chunks */
			nin_flight = 0;
			au_disconnect(AU_COMMIT_SERVICE);
			PG_RE_THROW();
		}
		PG_END_TRY();
		nin_flight--;
		memmove(&in_flight[0], &in_flight[1], sizeof(in_flight[0]) * nin_flight);
	}
}

/*
 * What was ingested on a connection becomes garbage with it, unless the
 * transaction has committed.  An error about that may have been rolled back
 * to a savepoint; the rows are gone all the same.
 */
static void
check_ingest_connection(void)
{
	if (ingest_connection != 0 && ingest_connection != au_connection_number(AU_COMMIT_SERVICE))
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the commit service went away while rows were loaded"),
				 errhint("The transaction is rolled back; try again.")));
}

/* Send a chunk; while it is journaled and applied the next one is made. */
static void
ingest_chunk(const IngestEntry *entries, int n, CommandId cid)
{
	StringInfoData msg;
	uint64		relid;
	uint8	   *modes = palloc(n);
	bool		sent;

	for (int i = 0; i < n; i++)
		modes[i] = LockTupleExclusive | MODE_BLIND | (entries[i].value.data ? 0 : MODE_DELETE);
	initStringInfoExt(&msg, INGEST_CHUNK_BYTES + INGEST_CHUNK_BYTES / 4);
	au_mp_array(&msg, 7);
	au_mp_int(&msg, TAG_INGEST);
	if (nin_flight == 0)
		au_connect(AU_COMMIT_SERVICE);
	check_ingest_connection();
	ingest_connection = au_connection_number(AU_COMMIT_SERVICE);
	au_mp_int(&msg, au_service_generation(AU_COMMIT_SERVICE));
	au_mp_bin(&msg, au_txid(), 16);
	au_mp_int(&msg, ++ingest_seq);
	au_mp_array(&msg, n);
	for (int i = 0; i < n; i++)
		au_mp_bin(&msg, entries[i].key.data, entries[i].key.len);
	au_mp_bin(&msg, modes, n);
	au_mp_array(&msg, n);
	for (int i = 0; i < n; i++)
	{
		if (entries[i].value.data)
			au_mp_bin(&msg, entries[i].value.data, entries[i].value.len);
		else
			au_mp_nil(&msg);
	}
	pfree(modes);

	memcpy(&relid, entries[0].key.data, 8);
	sent = nin_flight == 0 ? au_send(AU_COMMIT_SERVICE, &msg) : au_send_more(AU_COMMIT_SERVICE, &msg);
	pfree(msg.data);
	in_flight[nin_flight].relid = pg_ntoh64(relid);
	in_flight[nin_flight].cid = cid;
	in_flight[nin_flight].seq = ingest_seq;
	nin_flight++;
	/* garbage of an abort includes what is on its way */
	note_storage_ingested(pg_ntoh64(relid), entries, n);
	ingest_wait(sent ? INGEST_WINDOW : 0);
}

void
au_ingest(const IngestEntry *entries, int n)
{
	int			from = 0;

	/* before anything of ours: tau_start <= every chunk's time */
	(void) au_tau_start();
	while (from < n)
	{
		Size		bytes = 0;
		int			count = 0;

		while (from + count < n && (count == 0 || bytes < INGEST_CHUNK_BYTES))
		{
			bytes += entries[from + count].key.len + entries[from + count].value.len;
			count++;
		}
		ingest_chunk(entries + from, count, GetCurrentCommandId(false));
		from += count;
	}
}

typedef struct FlushState
{
	RelId		relid;
	IngestEntry *entries;
	int			n;
	int			max;
	bool		history;		/* is there more than a first version of a key? */
	bool		in_use;			/* ... that a running command may tell apart */
	int64		running;		/* the least of those */
	int64		first;			/* commands of this pass: first <= cmin < end */
	int64		end;
	CommandId	cid;
} FlushState;

static void
flush_check(WbEntry *entry, void *arg)
{
	FlushState *f = arg;
	WbVersion  *newest = au_wb_visible(entry, InvalidCommandId);
	bool		history;

	/* rolled back, or locked only, which nobody else can ask about */
	if (newest == NULL)
		return;
	f->max++;
	history = newest->kind != WB_PUT || newest->replaces;
	for (WbVersion *v = newest->older; v && !history; v = v->older)
		history = v->kind != WB_LOCK;
	if (!history)
		return;

	/*
	 * Ingested rows have none.  What ended commands made of a row is one
	 * version for all who run.
	 */
	f->history = true;
	if (newest->cmin >= f->running)
		f->in_use = true;
}

static void
flush_collect(WbEntry *entry, void *arg)
{
	FlushState *f = arg;
	WbVersion  *v = au_wb_visible(entry, InvalidCommandId);

	if (v == NULL || v->cmin < f->first || v->cmin >= f->end)
		return;
	if (v->kind == WB_DELETE && !au_has_ingested(f->relid))
		return;					/* never got to storage */
	f->cid = Max(f->cid, v->cmin);
	f->entries[f->n].key = entry->key;
	f->entries[f->n].value.data = v->kind == WB_DELETE ? NULL : WB_VALUE(v);
	f->entries[f->n].value.len = v->value_len;
	f->n++;
}

/*
 * May triggers of the table still ask for versions that ended commands made?
 * Deferred ones, or those of COPY, which is no running command of the executor
 * and fires them at its end.
 */
static bool
triggers_to_come(Relation table, const FlushState *f)
{
	return table != NULL && table->trigdesc != NULL &&
		(f->running == InvalidCommandId || AfterTriggerPendingOnRel(RelationGetRelid(table)));
}

/* table: what relid is, or is an index of; NULL when all triggers have been fired */
static void
flush_relid(RelId relid, Relation table)
{
	WbRelation *r = au_wb_relation(relid, false);
	FlushState	f = {0};

	if (r == NULL)
		return;
	f.relid = relid;
	f.running = au_next_running_command(-1);
	au_wb_walk_relation(r, flush_check, &f);
	if (f.max == 0 || f.in_use || (f.history && triggers_to_come(table, &f)))
	{
		au_wb_flush_in_vain(r, f.in_use ? (CommandId) f.running : InvalidCommandId);
		return;
	}
	(void) au_tau_start();
	f.entries = MemoryContextAllocExtended(CurrentMemoryContext, sizeof(IngestEntry) * f.max, MCXT_ALLOC_HUGE);

	/*
	 * In the order of commands, apart where a running one's snapshot parts
	 * them: its scans must see the older ones only.
	 */
	for (f.end = -1; f.end < (int64) InvalidCommandId;)
	{
		int			from = 0;

		f.n = 0;
		f.first = Max(f.end, 0);
		f.end = au_next_running_command(f.end);
		f.cid = 0;
		au_wb_walk_relation(r, flush_collect, &f);
		while (from < f.n)
		{
			Size		bytes = 0;
			int			count = 0;

			while (from + count < f.n && (count == 0 || bytes < INGEST_CHUNK_BYTES))
			{
				bytes += f.entries[from + count].key.len + f.entries[from + count].value.len;
				count++;
			}
			ingest_chunk(f.entries + from, count, f.cid);
			from += count;
		}
	}
	pfree(f.entries);
	au_wb_clear_relation(r);
}

void
au_flush_relation(Relation rel)
{
	if (au_storage_unpublished(rel))
		flush_relid(au_relid(rel), rel);
}

void
au_flush_if_large(Relation rel)
{
	WbRelation *r = au_wb_relation(au_relid(rel), false);

	if (r == NULL || !au_wb_flush_due(r, FLUSH_BYTES) || !au_storage_unpublished(rel))
		return;
	flush_relid(au_relid(rel), rel);
	if (rel->rd_rel->relhasindex)
	{
		List	   *indexes = RelationGetIndexList(rel);

		foreach_oid(oid, indexes)
		{
			Relation	index = index_open(oid, NoLock);

			if (au_is_our_index(index) && au_storage_unpublished(index))
				flush_relid(au_relid(index), rel);
			index_close(index, NoLock);
		}
		list_free(indexes);
	}
}

/* --------------------------------------------------------- commit message */

typedef struct CommitBuild
{
	StringInfoData keys;
	StringInfoData modes;
	StringInfoData values;
	int64		n;
	bool		writes;
} CommitBuild;

static void
build_entry(WbEntry *entry, void *arg)
{
	CommitBuild *b = arg;
	WbVersion  *newest = NULL;
	uint8		mode = 0;
	bool		recorded = false;

	if (entry->newest == NULL)
		return;					/* all rolled back */
	for (WbVersion *v = entry->newest; v; v = v->older)
	{
		if (newest == NULL && v->kind != WB_LOCK)
			newest = v;
		recorded |= !v->blind;
		/* of blind writes too: SERIALIZABLE readers' ranges conflict with them */
		mode = Max(mode, v->mode);
	}
	if ((Size) b->keys.len + (Size) b->values.len + entry->key.len +
		(newest ? newest->value_len : 0) > MaxAllocSize - 64 * 1024 * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction is too large to commit"),
				 errdetail("One commit carries at most %d MB.", (int) (MaxAllocSize / 1024 / 1024) - 64),
				 errhint("Split the work into several transactions, or load into a table created or truncated in the same transaction.")));
	if (!recorded)
		mode |= MODE_BLIND;
	au_mp_bin(&b->keys, entry->key.data, entry->key.len);
	if (newest == NULL)
	{
		mode |= MODE_LOCK_ONLY;
		au_mp_nil(&b->values);
	}
	else if (newest->kind == WB_DELETE)
	{
		mode |= MODE_DELETE;
		au_mp_nil(&b->values);
		b->writes = true;
	}
	else
	{
		au_mp_bin(&b->values, WB_VALUE(newest), newest->value_len);
		b->writes = true;
	}
	appendStringInfoCharMacro(&b->modes, (char) mode);
	b->n++;
}

static void
append_names(StringInfo msg, List *names)
{
	ListCell   *lc;

	au_mp_array(msg, list_length(names));
	foreach(lc, names)
		au_mp_int(msg, (int64) *(uint64 *) lfirst(lc));
}

/* Storage ids whose files PostgreSQL will delete at commit, and those that rolled back with a subtransaction. */
static void
append_drops(StringInfo msg)
{
	RelFileLocator *files;
	int			n = smgrGetPendingDeletes(true, &files);
	int			rolled_back = 0;

	foreach_ptr(IngestedStorage, storage, ingested_relids)
		rolled_back += storage->level == 0;
	au_mp_array(msg, n + rolled_back + list_length(dropped_relids));
	foreach_ptr(IngestedStorage, storage, ingested_relids)
	{
		if (storage->level == 0)
			au_mp_int(msg, (int64) storage->relid);
	}
	foreach_ptr(uint64, relid, dropped_relids)
		au_mp_int(msg, (int64) *relid);
	for (int i = 0; i < n; i++)
		au_mp_int(msg, (int64) (((uint64) files[i].dbOid << 32) | files[i].relNumber));
}

static void
begin_commit_message(StringInfo msg, int64 generation, Tau start)
{
	au_mp_array(msg, 13);
	au_mp_int(msg, TAG_COMMIT);
	au_mp_int(msg, generation);
	au_mp_bin(msg, au_txid(), 16);
	au_mp_int(msg, 1);			/* attempt */
	au_mp_int(msg, start);
	au_mp_int(msg, XactIsoLevel == XACT_SERIALIZABLE ? 1 : 0);
}

/* Ask what became of the transaction; false if nobody can be asked in time. */
static bool
send_resolve(int timeout_ms)
{
	StringInfoData msg;
	bool		sent;

	initStringInfo(&msg);
	au_mp_array(&msg, 3);
	au_mp_int(&msg, TAG_RESOLVE);
	au_mp_bin(&msg, txid, 16);
	au_mp_int(&msg, tau_start);
	sent = au_send_quietly(AU_COMMIT_SERVICE, &msg, timeout_ms);
	pfree(msg.data);
	return sent;
}

pg_noreturn static void
report_unknown(void)
{
	ereport(FATAL,
			(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
			 errmsg("the outcome of the transaction is unknown"),
			 errdetail("The commit service did not answer in time; the transaction may or may not have been committed."),
			 errhint("Check whether its effects are there before repeating it.")));
}

pg_noreturn static void
report_refusal(int64 outcome, Bytes detail)
{
	if (outcome == OUTCOME_CONFLICT)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("change conflicts with another transaction (OC000)"),
				 errhint("The transaction might succeed if retried.")));
	if (outcome == OUTCOME_SCHEMA)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("schema has been updated by another transaction (OC001)"),
				 errhint("The transaction might succeed if retried.")));
	if (outcome == OUTCOME_TOO_LARGE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction is too large to commit"),
				 detail.len ? errdetail("%.*s", (int) detail.len, (const char *) detail.data) : 0));
	if (outcome == OUTCOME_DISK_FULL)
		report_disk_full();
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("the commit service refused the transaction"),
			 detail.len ? errdetail("%.*s", (int) detail.len, (const char *) detail.data) : 0,
			 errhint("The transaction might succeed if retried.")));
}

/* What asking has brought. */
typedef enum Answer
{
	ANSWER_NONE,				/* lost, late or not understood */
	ANSWER_CANCEL,				/* a cancel came instead */
	ANSWER_COMMITTED,
	ANSWER_REFUSED,
	ANSWER_PENDING,
	ANSWER_KILLED,
	ANSWER_ERROR,				/* the service complains */
} Answer;

typedef struct Told
{
	Answer		answer;
	Tau			tau;			/* ANSWER_COMMITTED */
	int64		outcome;		/* ANSWER_REFUSED: why */
	int			sqlstate;		/* ANSWER_ERROR */
	Bytes		detail;			/* valid until the next call to the service */
} Told;

/* Take a message in; false if it belongs to an older conversation.  Raises 08P01. */
static bool
read_answer(MpReader *reply, Told *told)
{
	uint32		fields = au_mp_read_array(reply);
	int64		tag = au_mp_read_int(reply);
	Bytes		id;
	int64		outcome;
	Tau			tau;

	if (tag == TAG_ERROR && fields >= 3)
	{
		Bytes		state = au_mp_read_bin(reply);

		told->sqlstate = state.len != 5 ? ERRCODE_INTERNAL_ERROR
			: MAKE_SQLSTATE(state.data[0], state.data[1], state.data[2], state.data[3], state.data[4]);
		told->detail = au_mp_read_bin(reply);
		told->answer = ANSWER_ERROR;
		return true;
	}
	if ((tag != TAG_COMMIT_REPLY && tag != TAG_RESOLVE_REPLY) || fields < 4)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer to a commit")));
	id = au_mp_read_bin(reply);
	outcome = au_mp_read_int(reply);
	tau = au_mp_read_int(reply);
	if (id.len != 16 || memcmp(id.data, txid, 16) != 0)
		return false;
	if (outcome == OUTCOME_COMMITTED && tau > tau_start)
	{
		told->tau = tau;
		told->answer = ANSWER_COMMITTED;
	}
	else if (tag == TAG_COMMIT_REPLY &&
			 ((outcome >= OUTCOME_CONFLICT && outcome <= OUTCOME_TOO_LARGE) || outcome == OUTCOME_DISK_FULL))
	{
		if (fields >= 5)
			told->detail = au_mp_read_bin(reply);
		told->outcome = outcome;
		told->answer = ANSWER_REFUSED;
	}
	else if (tag == TAG_RESOLVE_REPLY && outcome == OUTCOME_PENDING)
		told->answer = ANSWER_PENDING;
	else if (tag == TAG_RESOLVE_REPLY && outcome == OUTCOME_KILLED)
		told->answer = ANSWER_KILLED;
	else
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected outcome of a commit")));
	return true;
}

/*
 * Send the commit, or (NULL) resolve, and take the answer.  Raises nothing:
 * what goes wrong here, the lack of memory included, says nothing about the
 * outcome, so it is logged and no answer.
 */
static void
ask(StringInfo commit, int timeout_ms, Told *told)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		held = InterruptHoldoffCount;

	memset(told, 0, sizeof(Told));
	PG_TRY();
	{
		TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
		bool		sent = commit ? au_send_quietly(AU_COMMIT_SERVICE, commit, timeout_ms) : send_resolve(timeout_ms);
		AuReceive	got = AU_LOST;
		bool		ours = false;

		while (sent && !ours)
		{
			MpReader	reply;
			int64		left = (until - GetCurrentTimestamp()) / 1000;

			got = au_receive(AU_COMMIT_SERVICE, &reply, (int) Max(left, 0), commit != NULL);
			if (got != AU_RECEIVED)
				break;
			ours = read_answer(&reply, told);
		}
		if (got == AU_CANCEL)
			told->answer = ANSWER_CANCEL;
		else if (told->answer == ANSWER_NONE)
			au_disconnect(AU_COMMIT_SERVICE);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		InterruptHoldoffCount = held;	/* the error has reset it */
		MemoryContextSwitchTo(context);
		au_disconnect(AU_COMMIT_SERVICE);
		memset(told, 0, sizeof(Told));
		error = CopyErrorData();
		FlushErrorState();
		error->elevel = LOG;
		ThrowErrorData(error);
		FreeErrorData(error);
	}
	PG_END_TRY();
}

/*
 * Rules Q1 and Q2.  Returns the commit time, or raises an error when the
 * transaction certainly did not commit, or ends the session when nobody
 * knows.
 */
static Tau
converse(StringInfo msg)
{
	TimestampTz give_up;
	bool		resolving = false;
	bool		cancelled = false;
	int			sqlstate = 0;
	char		complaint[256] = "";
	Told		told;

	au_connect(AU_COMMIT_SERVICE);
	if (wait_event == 0)
		wait_event = WaitEventExtensionNew("AustralisResolve");

	HOLD_INTERRUPTS();
	holding_interrupts = true;
	commit_state = COMMIT_SENT;
	give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 2 * (int64) au_service_timeout_ms);

	/* from here on nothing may be raised but an outcome that is known */
	for (;;)
	{
		int64		left = (give_up - GetCurrentTimestamp()) / 1000;

		ask(resolving ? NULL : msg, (int) Max(Min(left, au_service_timeout_ms), 10), &told);
		if (told.answer == ANSWER_COMMITTED)
		{
			commit_state = COMMIT_DECIDED;
			if (resolving)
				au_disconnect(AU_COMMIT_SERVICE);	/* another reply may follow */
			return told.tau;
		}
		if (told.answer == ANSWER_REFUSED || told.answer == ANSWER_KILLED)
			break;
		if (told.answer == ANSWER_CANCEL)
			cancelled = true;
		if (told.answer == ANSWER_ERROR && !resolving)
		{
			/* it says so before it accepts a commit, but only "killed" is a proof */
			sqlstate = told.sqlstate;
			snprintf(complaint, sizeof(complaint), "%.*s", (int) told.detail.len, (const char *) told.detail.data);
			au_disconnect(AU_COMMIT_SERVICE);
		}
		if (GetCurrentTimestamp() >= give_up)
			report_unknown();
		if (resolving)
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, wait_event);
			ResetLatch(MyLatch);
		}
		resolving = true;
	}

	/* certainly not committed */
	commit_state = COMMIT_NONE;
	holding_interrupts = false;
	RESUME_INTERRUPTS();
	if (told.answer == ANSWER_REFUSED)
		report_refusal(told.outcome, told.detail);
	au_disconnect(AU_COMMIT_SERVICE);	/* another reply may follow */
	if (sqlstate != 0)
		ereport(ERROR, (errcode(sqlstate), errmsg("%s", complaint)));
	if (cancelled)
	{
		CHECK_FOR_INTERRUPTS();
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement due to user request")));
	}
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("the transaction did not reach the commit service"),
			 errhint("The transaction might succeed if retried.")));
}

/*
 * PostgreSQL queues notifications after our callback, and fails there if the
 * queue is full.  It must do so before the decision; after it, there is room.
 */
static void
notify_before_decision(void)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool pending = false;

	/* async.c tells no other way whether there is anything to do */
	PG_TRY();
	{
		AtPrepare_Notify();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		pending = true;
	}
	PG_END_TRY();
	if (!pending)
		return;

	/* what PreCommit_Notify() will take: an xid, and the lock of those who notify */
	(void) GetCurrentTransactionId();
	LockSharedObject(DatabaseRelationId, InvalidOid, 0, AccessExclusiveLock);
	if (DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, (Datum) 0)) >= 1.0)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many notifications in the NOTIFY queue")));
	if (notify_queue_pages == 0)
		notify_queue_pages = max_notify_queue_pages;
}

/* The transaction has ended, or will not. */
static void
notify_limit_again(void)
{
	if (notify_queue_pages != 0)
		max_notify_queue_pages = notify_queue_pages;
	notify_queue_pages = 0;
}

/* Tell storage that what a transaction ingested and will not publish is garbage. */
static void
send_garbage(void)
{
	StringInfoData msg;

	if (ingested_relids == NIL || au_service_generation(AU_COMMIT_SERVICE) < 0)
		return;
	initStringInfo(&msg);
	au_mp_array(&msg, 2);
	au_mp_int(&msg, TAG_DROP);
	append_names(&msg, ingested_relids);
	au_send_unanswered(AU_COMMIT_SERVICE, &msg);
}

static void
pre_commit(void)
{
	StringInfoData msg;
	StringInfoData ddl_record;
	List	   *depends = NIL;
	CommitBuild b = {0};
	bool		has_ddl;
	Tau			tau;

	au_sequences_before_commit();

	/*
	 * PostgreSQL does this after us.  It may fail, or drop more than a
	 * temporary table: before the decision it may do both.  The second time
	 * there is nothing left to do, since the flag says that all are empty.
	 */
	if (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE)
	{
		PreCommit_on_commit_actions();
		MyXactFlags &= ~XACT_FLAGS_ACCESSEDTEMPNAMESPACE;
	}

	au_statistics_before_commit();
	initStringInfo(&ddl_record);
	has_ddl = au_ddl_collect(&ddl_record, &ddl_changed, &depends);
	if (!has_ddl && au_wb_is_empty())
	{
		pfree(ddl_record.data);
		/* no catalog knows of a storage id that is new */
		ingest_wait(0);
		send_garbage();
		return;
	}

	/* whatever was bulk-loaded goes the cheap way to its end */
	foreach_ptr(IngestedStorage, storage, ingested_relids)
		flush_relid(storage->relid, NULL);

	ingest_wait(0);

	(void) au_tau_start();
	initStringInfo(&b.keys);
	initStringInfo(&b.modes);
	initStringInfo(&b.values);
	au_wb_walk(build_entry, &b);
	if (!has_ddl && !b.writes)
	{
		send_garbage();
		return;					/* rule A7; memory goes with the transaction */
	}

	if (has_ddl)
	{
		StringInfoData key;
		LOCKTAG		tag;
		uint64		n;

		/*
		 * One DDL commit at a time on this query processor, so that sessions
		 * with unrelated DDL do not compete for the same number.
		 */
		SET_LOCKTAG_ADVISORY(tag, 0, 0x41555354, 0x5241, 7);
		(void) LockAcquire(&tag, ExclusiveLock, false, false);
		ddl_n = au_ddl_applied() + 1;
		au_ddl_mark_applied(ddl_n);
		ForceSyncCommit();

		initStringInfo(&key);
		au_key_append_relid(&key, AU_SYS_DDL);
		n = pg_hton64((uint64) ddl_n);
		appendBinaryStringInfo(&key, &n, 8);
		au_mp_bin(&b.keys, key.data, key.len);
		appendStringInfoCharMacro(&b.modes, LockTupleExclusive);
		au_mp_bin(&b.values, ddl_record.data, ddl_record.len);
		b.n++;
	}

	au_connect(AU_COMMIT_SERVICE);
	check_ingest_connection();
	initStringInfo(&msg);
	begin_commit_message(&msg, au_service_generation(AU_COMMIT_SERVICE), tau_start);
	au_mp_array(&msg, (uint32) b.n);
	appendBinaryStringInfo(&msg, b.keys.data, b.keys.len);
	au_mp_bin(&msg, b.modes.data, b.modes.len);
	au_mp_array(&msg, (uint32) b.n);
	appendBinaryStringInfo(&msg, b.values.data, b.values.len);
	if (XactIsoLevel == XACT_SERIALIZABLE)
	{
		au_mp_array(&msg, nread_ranges);
		for (int i = 0; i < nread_ranges; i++)
		{
			au_mp_array(&msg, 3);
			au_mp_bin(&msg, read_ranges[i].lo.data, read_ranges[i].lo.len);
			au_mp_bin(&msg, read_ranges[i].hi.data, read_ranges[i].hi.len);
			au_mp_int(&msg, LockTupleShare);
		}
	}
	else
		au_mp_array(&msg, 0);
	append_names(&msg, noted_relations);
	if (has_ddl)
	{
		au_mp_array(&msg, 3);
		au_mp_int(&msg, ddl_n);
		append_names(&msg, ddl_changed);
		append_names(&msg, depends);
	}
	else
		au_mp_nil(&msg);
	append_drops(&msg);

	/* what PostgreSQL does after us and may fail, or nothing is left to do */
	smgrDoPendingSyncs(true, false);
	notify_before_decision();

	tau = converse(&msg);
	if (notify_queue_pages != 0)
		max_notify_queue_pages = INT_MAX;
	ddl_tau = tau;
	if (msg.maxlen > 1024 * 1024)
	{
		pfree(msg.data);
		pfree(b.keys.data);
		pfree(b.values.data);
	}
}

/* The answer to a commit of its own; anything else is of an older conversation. */
static int64
receive_own_outcome(const uint8 *id)
{
	for (;;)
	{
		MpReader	reply;
		Bytes		of;
		int64		outcome;

		if (au_receive(AU_COMMIT_SERVICE, &reply, au_service_timeout_ms, false) != AU_RECEIVED)
			ereport(ERROR,
					(errcode(ERRCODE_CANNOT_CONNECT_NOW),
					 errmsg("the commit service is not available")));
		if (au_mp_read_array(&reply) < 4 || au_mp_read_int(&reply) != TAG_COMMIT_REPLY)
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer to a commit")));
		of = au_mp_read_bin(&reply);
		outcome = au_mp_read_int(&reply);
		if (of.len == 16 && memcmp(of.data, id, 16) == 0)
			return outcome;
	}
}

/*
 * Commit these entries as a transaction of their own, beside the running one,
 * as of `start`; relation (0: none) is the name of the one that must not have
 * changed since (rule A5).  Raises an error if the outcome is not known, so
 * the entries must be such that committing them twice does no harm.
 */
AuBatchOutcome
au_commit_batch(const BatchEntry *entries, int n, uint64 relation, Tau start)
{
	StringInfoData msg;
	uint8		saved[16];
	uint8		own[16];
	bool		had = have_txid;
	int64		outcome;

	ingest_wait(0);
	au_connect(AU_COMMIT_SERVICE);
	initStringInfo(&msg);
	/* nothing may fail until it is back: chunks were sent under it */
	memcpy(saved, txid, 16);
	have_txid = false;
	begin_commit_message(&msg, au_service_generation(AU_COMMIT_SERVICE), start);
	memcpy(own, txid, 16);
	memcpy(txid, saved, 16);
	have_txid = had;
	au_mp_array(&msg, n);
	for (int i = 0; i < n; i++)
		au_mp_bin(&msg, entries[i].key.data, entries[i].key.len);
	{
		uint8	   *modes = palloc(n);

		for (int i = 0; i < n; i++)
			modes[i] = entries[i].mode;
		au_mp_bin(&msg, modes, n);
		pfree(modes);
	}
	au_mp_array(&msg, n);
	for (int i = 0; i < n; i++)
	{
		if (entries[i].value.data)
			au_mp_bin(&msg, entries[i].value.data, entries[i].value.len);
		else
			au_mp_nil(&msg);
	}
	au_mp_array(&msg, 0);		/* checks */
	au_mp_array(&msg, relation != 0 ? 1 : 0);
	if (relation != 0)
		au_mp_int(&msg, (int64) relation);
	au_mp_nil(&msg);			/* ddl */
	au_mp_array(&msg, 0);		/* drops */

	PG_TRY();
	{
		/* an idle connection may have died with the service's last life */
		if (!au_send(AU_COMMIT_SERVICE, &msg) && !au_send(AU_COMMIT_SERVICE, &msg))
			ereport(ERROR,
					(errcode(ERRCODE_CANNOT_CONNECT_NOW),
					 errmsg("the commit service is not available")));
		outcome = receive_own_outcome(own);
	}
	PG_CATCH();
	{
		/* an answer may still come */
		au_disconnect(AU_COMMIT_SERVICE);
		PG_RE_THROW();
	}
	PG_END_TRY();
	pfree(msg.data);
	switch (outcome)
	{
		case OUTCOME_COMMITTED:
			return AU_BATCH_COMMITTED;
		case OUTCOME_CONFLICT:
			return AU_BATCH_CONFLICT;
		case OUTCOME_SCHEMA:
			return AU_BATCH_SCHEMA;
		case OUTCOME_DISK_FULL:
			report_disk_full();
			break;
		default:
			break;
	}
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("the commit service refused the transaction"),
			 errhint("The transaction might succeed if retried.")));
}

/*
 * Read as of now from here on.  Only for who looks at storage by himself: no
 * snapshot of PostgreSQL's moves with it.
 */
Tau
au_renew_tau_start(void)
{
	if (!au_wb_is_empty() || ingested_relids != NIL)
		elog(ERROR, "the snapshot time of a transaction that has written cannot be renewed");
	tau_start = 0;
	return au_tau_start();
}

/* Commit one key by itself.  False: it conflicts with a commit after `start`. */
static bool
commit_alone(Bytes key, Bytes value, uint8 mode, Tau start)
{
	BatchEntry	entry = {key, value, mode};

	return au_commit_batch(&entry, 1, 0, start) == AU_BATCH_COMMITTED;
}

/* Write one key, whatever it holds, in a transaction of its own. */
void
au_commit_autonomous(Bytes key, Bytes value)
{
	Tau			acked;
	int64		ddl;

	au_newest_snapshot(&acked, &ddl);
	/* blind: nothing conflicts with it */
	(void) commit_alone(key, value, LockTupleNoKeyExclusive | MODE_BLIND, Max(acked, AU_TAU_EMPTY));
}

/*
 * The same, unless the key was written after `read_at`, when the caller read
 * it; then false, and nothing happened.  The caller tries again, so this gives
 * the other's commit some time to become durable: before, nobody can read it.
 */
bool
au_commit_compare_and_set(Bytes key, Bytes value, Tau read_at)
{
	if (commit_alone(key, value, LockTupleNoKeyExclusive, read_at))
		return true;
	au_page_wait(PAGE_ACKED, read_at, COMPARE_AND_SET_PAUSE_MS);
	return false;
}

static void
end_transaction(void)
{
	if (tau_start != 0)
		au_page_set_slot(0);
	tau_start = 0;
	have_txid = false;
	serial++;
	au_wb_reset();
	au_tid_reset();
	au_read_ahead_forget(0);
	au_fetched_row.valid = false;
	xact_context = NULL;		/* went with TopTransactionContext */
	noted_relations = NIL;
	ingested_relids = NIL;
	dropped_relids = NIL;
	ingested = NULL;
	nin_flight = 0;
	ingest_connection = 0;
	read_ranges = NULL;
	nread_ranges = max_read_ranges = 0;
	commit_state = COMMIT_NONE;
	ddl_n = 0;
	ddl_changed = NIL;
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (au_enabled)
				pre_commit();
			break;
		case XACT_EVENT_PRE_PREPARE:
			/* with none allowed PostgreSQL says so itself */
			if (max_prepared_xacts > 0 && !au_wb_is_empty())
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has written tables of the cluster")));
			break;
		case XACT_EVENT_COMMIT:
			notify_limit_again();
			if (ddl_n != 0)
				au_ddl_committed(ddl_n, ddl_tau, ddl_changed);
			if (holding_interrupts)
			{
				holding_interrupts = false;
				RESUME_INTERRUPTS();
			}
			end_transaction();
			break;
		case XACT_EVENT_ABORT:
			holding_interrupts = false; /* an error has reset the count */
			notify_limit_again();
			if (commit_state == COMMIT_SENT && !proc_exit_inprogress)
			{
				/* converse() lets nothing escape; were it otherwise ... */
				commit_state = COMMIT_NONE;
				ingested_relids = NIL;
				report_unknown();
			}
			if (commit_state == COMMIT_DECIDED)
			{
				/*
				 * Rule Q1.  The cluster has committed and we could not.  The
				 * client must not hear of an abort, and local catalogs must
				 * be made again from the log: restart the server.
				 */
				ereport(PANIC,
						(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
						 errmsg("local commit failed after the cluster had committed")));
			}
			/* it may have committed: then these are no garbage */
			if (commit_state == COMMIT_NONE)
				send_garbage();
			end_transaction();
			break;
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			end_transaction();
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	switch (event)
	{
		case SUBXACT_EVENT_ABORT_SUB:
			au_wb_subxact_abort(GetCurrentTransactionNestLevel());
			au_read_ahead_forget(GetCurrentTransactionNestLevel());
			au_ddl_subxact_end(GetCurrentTransactionNestLevel(), false);
			ingested_subxact_end(GetCurrentTransactionNestLevel(), false);
			serial++;
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			au_wb_subxact_commit(GetCurrentTransactionNestLevel());
			au_ddl_subxact_end(GetCurrentTransactionNestLevel(), true);
			ingested_subxact_end(GetCurrentTransactionNestLevel(), true);
			break;
		default:
			break;
	}
}

void
au_transaction_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
