/*-------------------------------------------------------------------------
 *
 * peers.c
 *	  The other query processors of this host, as far as catalogs go.
 *
 * A statement is analyzed before its transaction has a snapshot time, and
 * PostgreSQL has no hook in between.  So catalogs must not be behind when the
 * statement arrives: who commits a schema change answers its client only when
 * the other query processors have it, and rings their bells for that.  In the
 * shared page each has four words: the pid of its postmaster, the newest
 * record in its catalogs, its bell, and one that is kept for later use.
 *
 * What must hold: one that is dead is not waited for, and one that does not
 * get on costs PEERS_PATIENCE_MS once, not with every change.  Then, and while
 * a record is on its way, a statement may meet catalogs that are older than
 * the cluster's or change beneath it.  Its snapshot waits for the catalogs
 * (au_tau_start) and its relations are checked (rule Q3); an error of its
 * analysis says nothing, so the client gets 40001 instead and tries again.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/shmem.h"
#include "utils/elog.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#define PEERS_PATIENCE_MS 2000
#define PEERS_LOOK_MS 10

#define WORD_OF(processor, what) ((PageWord) (PAGE_PROCESSORS + 4 * (processor) + (what)))
#define PEER_PID		0
#define PEER_APPLIED	1
#define PEER_BELL		2

typedef struct PeersShared
{
	/* per query processor: the record that it did not apply in time; not waited for until it has */
	pg_atomic_uint64 stalled[AU_PROCESSORS_MAX];
	/* when the newest record of another query processor got into the catalogs */
	pg_atomic_uint64 changed_at;
} PeersShared;

static PeersShared *shared = NULL;
static int64 committed = 0;		/* the record of the transaction that is ending */
static emit_log_hook_type earlier_emit_log_hook = NULL;

Size
au_peers_shmem_size(void)
{
	return MAXALIGN(sizeof(PeersShared));
}

/* AddinShmemInitLock is held. */
void
au_peers_shmem_init(void)
{
	bool		found;

	shared = ShmemInitStruct("australis peers", sizeof(PeersShared), &found);
	if (!found)
	{
		for (int i = 0; i < AU_PROCESSORS_MAX; i++)
			pg_atomic_init_u64(&shared->stalled[i], 0);
		pg_atomic_init_u64(&shared->changed_at, 0);
	}
}

/* -------------------------------------------------------- this one's words */

/* Catalogs are complete: from now on others wait for them. */
void
au_peers_register(void)
{
	au_page_write(WORD_OF(au_processor, PEER_PID), PostmasterPid);
}

/* Record n is in the catalogs.  `by_peer`: it came from the log. */
void
au_peers_applied(int64 n, bool by_peer)
{
	if (by_peer)
		pg_atomic_write_u64(&shared->changed_at, (uint64) GetCurrentTimestamp());
	au_page_write(WORD_OF(au_processor, PEER_APPLIED), n);
	au_page_wake(WORD_OF(au_processor, PEER_APPLIED));
}

/* The bell of this query processor: its value, to be read before looking for work. */
int64
au_peers_bell(void)
{
	return au_page_read(WORD_OF(au_processor, PEER_BELL));
}

/* Sleep until the bell rings after its value was read, a signal comes, or ms have passed. */
void
au_peers_sleep(int64 bell, int ms)
{
	au_page_wait(WORD_OF(au_processor, PEER_BELL), bell, ms);
}

static void
ring(int processor)
{
	au_page_add(WORD_OF(processor, PEER_BELL), 1);
	au_page_wake(WORD_OF(processor, PEER_BELL));
}

/* There is work for those who apply records here. */
void
au_peers_ring(void)
{
	ring(au_processor);
}

/* ---------------------------------------------------------------- the others */

/* Another user's process is none of ours: then the number was given out again. */
static bool
alive(int processor)
{
	int64		pid;

	if (processor == au_processor)
		return false;
	pid = au_page_read(WORD_OF(processor, PEER_PID));
	return pid > 0 && kill((pid_t) pid, 0) == 0;
}

bool
au_peers_exist(void)
{
	if (au_behind_gateway())
		return true;			/* on other hosts */
	for (int i = 0; i < AU_PROCESSORS_MAX; i++)
		if (alive(i))
			return true;
	return false;
}

/* There is something to look at everywhere else. */
void
au_peers_ring_others(void)
{
	for (int i = 0; i < AU_PROCESSORS_MAX; i++)
		if (alive(i))
			ring(i);
}

/* This transaction has committed record n; its end waits for the others. */
void
au_peers_committed(int64 n)
{
	committed = n;
}

/*
 * Locks are released and invalidations sent.  Interrupts are held: whoever
 * cancels now would hear that the commit failed.
 */
static void
after_release(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg)
{
	int64		n = committed;
	TimestampTz deadline;

	if (n == 0 || phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level)
		return;
	committed = 0;
	if (!is_commit)
		return;
	for (int i = 0; i < AU_PROCESSORS_MAX; i++)
		if (alive(i))
			ring(i);
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PEERS_PATIENCE_MS);
	for (int i = 0; i < AU_PROCESSORS_MAX; i++)
	{
		int64		applied;

		if (!alive(i))
			continue;
		if (au_page_read(WORD_OF(i, PEER_APPLIED)) < (int64) pg_atomic_read_u64(&shared->stalled[i]))
			continue;
		while ((applied = au_page_read(WORD_OF(i, PEER_APPLIED))) < n && alive(i))
		{
			if (GetCurrentTimestamp() >= deadline)
			{
				pg_atomic_write_u64(&shared->stalled[i], (uint64) n);
				ereport(LOG,
						(errmsg("query processor %d does not apply catalog changes", i),
						 errdetail("It is at change %lld, the cluster at %lld.", (long long) applied, (long long) n)));
				break;
			}
			au_page_wait(WORD_OF(i, PEER_APPLIED), applied, PEERS_LOOK_MS);
		}
	}
}

/* ------------------------------------------------ errors of stale catalogs */

/* May this error come from catalogs that are not as they seemed? */
static bool
may_be_stale(const ErrorData *error)
{
	if (error->elevel != ERROR)
		return false;
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION:
		case ERRCODE_INVALID_SCHEMA_NAME:
		case ERRCODE_INVALID_CATALOG_NAME:
			return true;
		default:
			/* a deadlock with the one who applies records */
			return error->sqlerrcode == ERRCODE_INTERNAL_ERROR ||
				error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED;
	}
}

static bool
catalogs_moved(void)
{
	Tau			acked;
	int64		ddl;

	if (!au_page_there())
		return false;
	if ((TimestampTz) pg_atomic_read_u64(&shared->changed_at) >= GetCurrentStatementStartTimestamp())
		return true;
	au_page_snapshot(&acked, &ddl);
	return ddl > au_ddl_applied() && au_peers_exist();
}

bool
au_error_is_stale(const ErrorData *error)
{
	return may_be_stale(error) && MyBackendType == B_BACKEND && MyDatabaseId != InvalidOid && catalogs_moved();
}

static void
look_at_error(ErrorData *error)
{
	/* the signal that makes holders of locks give way is PostgreSQL's for standby servers */
	if (error->sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE && error->elevel >= ERROR && error->message &&
		strstr(error->message, "conflict with recovery") != NULL)
	{
		error->message = pstrdup(error->elevel == ERROR ?
								 "schema has been updated by another transaction (OC001)" :
								 "terminating connection: schema has been updated by another transaction (OC001)");
		error->detail = pstrdup("A schema change by another query processor waited for this transaction.");
		error->hint = pstrdup("The transaction might succeed if retried.");
	}
	else if (au_error_is_stale(error))
	{
		error->detail = psprintf("With catalogs that were changing, it failed: %s", error->message);
		error->message = pstrdup("schema has been updated by another transaction, please retry: (OC001)");
		error->hint = NULL;
		error->cursorpos = 0;
		error->sqlerrcode = ERRCODE_T_R_SERIALIZATION_FAILURE;
	}
	if (earlier_emit_log_hook)
		earlier_emit_log_hook(error);
}

void
au_peers_init(void)
{
	RegisterResourceReleaseCallback(after_release, NULL);
	earlier_emit_log_hook = emit_log_hook;
	emit_log_hook = look_at_error;
}
