/*-------------------------------------------------------------------------
 *
 * held_locks.c
 *	  Which relations this transaction has locked in a given mode.
 *
 * PostgreSQL shows a backend's local lock table to assert-enabled builds
 * only, so this reads what the backend has in shared memory: its fast-path
 * slots, then its entries of the main lock table.  In that order: another
 * backend may move a fast-path lock to the main table at any time, never the
 * other way round, so a lock held throughout is seen at least once.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"

/* src/backend/storage/lmgr/lock.c */
#define BITS_PER_SLOT	3
#define FIRST_MODE		1

/* Oids of relations of this database held in mode; may contain doubles. */
List *
au_relations_locked(LOCKMODE mode)
{
	List	   *result = NIL;

	if (mode < FIRST_MODE + BITS_PER_SLOT)
	{
		LWLockAcquire(&MyProc->fpInfoLock, LW_SHARED);
		for (int group = 0; group < FastPathLockGroupsPerBackend; group++)
		{
			uint64		bits = MyProc->fpLockBits[group];

			for (int slot = 0; bits != 0; slot++, bits >>= BITS_PER_SLOT)
			{
				if (bits & (UINT64CONST(1) << (mode - FIRST_MODE)))
					result = lappend_oid(result, MyProc->fpRelId[group * FP_LOCK_SLOTS_PER_GROUP + slot]);
			}
		}
		LWLockRelease(&MyProc->fpInfoLock);
	}

	for (int i = 0; i < NUM_LOCK_PARTITIONS; i++)
	{
		LWLock	   *partition = LockHashPartitionLockByIndex(i);
		dlist_iter	iter;

		/* only others' transfers change it behind our back, and see above */
		if (dlist_is_empty(&MyProc->myProcLocks[i]))
			continue;
		LWLockAcquire(partition, LW_SHARED);
		dlist_foreach(iter, &MyProc->myProcLocks[i])
		{
			PROCLOCK   *held = dlist_container(PROCLOCK, procLink, iter.cur);
			LOCKTAG    *tag = &held->tag.myLock->tag;

			if ((held->holdMask & LOCKBIT_ON(mode)) && tag->locktag_type == LOCKTAG_RELATION &&
				tag->locktag_field1 == MyDatabaseId)
				result = lappend_oid(result, tag->locktag_field2);
		}
		LWLockRelease(partition);
	}
	return result;
}
