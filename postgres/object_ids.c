/*-------------------------------------------------------------------------
 *
 * object_ids.c
 *	  Object ids and storage ids that no other query processor gives out.
 *
 * PostgreSQL numbers new objects and new relation files from one counter of
 * the server.  Every query processor has such a counter, so each takes its
 * numbers from blocks of the cluster: key (4, "oid") holds the first number
 * that belongs to nobody, and a block is taken by moving it, in a transaction
 * of its own that is checked against others doing the same.
 *
 * Two things need it.  Rows may lie in storage under a storage id before its
 * transaction commits, and after it came to nothing (rule Q8): another
 * transaction must not find them under its own.  And objects that only this
 * server has, like temporary tables, share catalogs with those that arrive in
 * DDL records.  (What is in DDL records is safe anyway: record n is made on
 * catalogs that have n - 1.)
 *
 * A block is taken before the first statement that may need numbers and when
 * few are left of the last.  It ends with the server: 2^32 numbers are half a
 * million blocks, then they begin again; PostgreSQL passes over numbers in
 * use.  If the commit service does not answer, the statement fails.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include "access/transam.h"
#include "catalog/pg_am.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#define BLOCK_IDS	8192
#define LOW_IDS		1024		/* more than one command takes between two looks at what is left */
#define TRIES		2000		/* each means that another query processor took a block meanwhile */

typedef struct IdBlock
{
	Oid			lo;
	Oid			hi;				/* exclusive; 0: there is none */
} IdBlock;

typedef struct ObjectIds
{
	/* protected by OidGenLock, like the counter itself */
	IdBlock		current;
	IdBlock		earlier;		/* a number of it may still be on its way into a catalog */
} ObjectIds;

static ObjectIds *shared = NULL;

Size
au_oids_shmem_size(void)
{
	return MAXALIGN(sizeof(ObjectIds));
}

/* AddinShmemInitLock is held. */
void
au_oids_shmem_init(void)
{
	bool		found;

	shared = ShmemInitStruct("australis object ids", sizeof(ObjectIds), &found);
	if (!found)
		memset(shared, 0, sizeof(*shared));
}

static inline bool
contains(const IdBlock *block, Oid id)
{
	return block->lo <= id && id < block->hi;
}

static bool
enough_left(void)
{
	Oid			next;
	bool		enough;

	LWLockAcquire(OidGenLock, LW_SHARED);
	next = TransamVariables->nextOid;
	enough = contains(&shared->current, next) && shared->current.hi - next >= LOW_IDS;
	LWLockRelease(OidGenLock);
	return enough;
}

/* Move the cluster's counter by one block; false: somebody else did. */
static bool
take_block(void)
{
	StringInfoData key,
				value,
				batch;
	Tau			acked;
	int64		ddl;
	int64		lo;
	bool		taken;

	initStringInfo(&key);
	initStringInfo(&value);
	initStringInfo(&batch);
	au_key_append_relid(&key, AU_SYS_CLUSTER);
	appendBinaryStringInfo(&key, "oid", 3);
	au_newest_snapshot(&acked, &ddl);
	acked = Max(acked, AU_TAU_EMPTY);
	if (au_read_key((Bytes) {(uint8 *) key.data, key.len}, acked, &batch))
	{
		KeyEntry	entry;
		MpReader	r;

		(void) au_batch_entry(batch.data, &entry);
		r = (MpReader) {entry.value.data, entry.value.data + entry.value.len};
		lo = au_mp_read_int(&r);
	}
	else
	{
		/* the first block: behind what this server's catalogs and storage know */
		LWLockAcquire(OidGenLock, LW_SHARED);
		lo = TransamVariables->nextOid;
		LWLockRelease(OidGenLock);
	}
	if (lo < FirstNormalObjectId || lo > (int64) PG_UINT32_MAX - BLOCK_IDS)
		lo = FirstNormalObjectId;
	au_mp_int(&value, lo + BLOCK_IDS);
	taken = au_commit_compare_and_set((Bytes) {(uint8 *) key.data, key.len},
									  (Bytes) {(uint8 *) value.data, value.len}, acked);
	if (taken)
	{
		LWLockAcquire(OidGenLock, LW_EXCLUSIVE);
		shared->earlier = shared->current;
		shared->current = (IdBlock) {(Oid) lo, (Oid) (lo + BLOCK_IDS)};
		TransamVariables->nextOid = (Oid) lo;
		TransamVariables->oidCount = 0; /* log it with the next allocation */
		LWLockRelease(OidGenLock);
	}
	pfree(key.data);
	pfree(value.data);
	pfree(batch.data);
	return taken;
}

/* A command is about to make objects: there must be numbers for it. */
void
au_oids_ensure(void)
{
	if (!au_enabled || au_ddl_applying || enough_left())
		return;
	LockSharedObject(AccessMethodRelationId, InvalidOid, 1, ExclusiveLock);
	for (int tries = 0; !enough_left(); tries++)
	{
		CHECK_FOR_INTERRUPTS();
		if (tries >= TRIES)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not get object identifiers from the cluster"),
					 errhint("The transaction might succeed if retried.")));
		(void) take_block();
	}
	UnlockSharedObject(AccessMethodRelationId, InvalidOid, 1, ExclusiveLock);
}

/* New storage has this number: it must be ours alone. */
void
au_oids_check_storage(RelFileNumber number)
{
	bool		ours;

	if (!au_enabled || au_ddl_applying)
		return;
	LWLockAcquire(OidGenLock, LW_SHARED);
	ours = contains(&shared->current, number) || contains(&shared->earlier, number);
	LWLockRelease(OidGenLock);
	au_oids_ensure();
	if (!ours)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("this command needed more object identifiers than were reserved for it"),
				 errhint("The transaction might succeed if retried.")));
}

/* Records and storage know numbers below this.  Blocks of the cluster lie above them anyway. */
void
au_oids_advance(Oid next)
{
	LWLockAcquire(OidGenLock, LW_EXCLUSIVE);
	if (shared->current.hi == 0 && TransamVariables->nextOid < next)
	{
		TransamVariables->nextOid = next;
		TransamVariables->oidCount = 0; /* log it with the next allocation */
	}
	LWLockRelease(OidGenLock);
}
