/*-------------------------------------------------------------------------
 *
 * sequence.c
 *	  Sequences that survive the loss of this server's data directory.
 *
 * PostgreSQL's own sequences do the work, in local pages; every query processor
 * has its own.  What is durable is a record per sequence, the value of key
 * (2, database, relfilenumber):
 *
 *	  [bound, is_called, epoch, owner, lo]
 *
 * All values up to the bound belong to some query processor; those from lo to
 * the bound are the owner's, who was the last to move the bound.  A query
 * processor draws only from a range of its own.  When that is used up it moves
 * the bound by at least 1,000 increments: from the end of its own range if it
 * is still the owner, so that there is no gap, else it takes a new range behind
 * the bound, and its local page moves there.  Moving is compare-and-set.  When
 * its answer is lost, the record says what became of it: a range whose lo is
 * not the one we know is not the one our page is in.
 *
 * nextval and setval are ours (bootstrap.sql), and so is what identity columns
 * draw by (planner.c).  COPY fills identity columns by an expression of
 * PostgreSQL's own, for a thousand rows before it inserts the first: so there
 * has to be enough in the range for all that are running; if that was not
 * enough, their transactions fail.  Whatever else draws
 * (calls by oid) is found out at COMMIT: values out of range are added to it if
 * nobody has moved the bound meanwhile, else the transaction fails.
 *
 * What must hold: a transaction that drew values commits only when they are
 * within a durable range of this query processor; so no two committed
 * transactions have the same value, and a rebuilt sequence, which starts at
 * the bound, never repeats one that a committed transaction or its client
 * knows.  (As in PostgreSQL, a value drawn by a transaction that had not ended
 * when the server crashed may be drawn again.)  After a clean restart the
 * query processor is still the owner, and there is no gap.
 *
 * setval moves a sequence at once, outside transactions, maybe backwards: it
 * writes the next epoch, and rings for all query processors of the host, who
 * look at the record before they draw on (PROTOCOL Q6).  ALTER SEQUENCE and
 * TRUNCATE ... RESTART IDENTITY give the sequence new storage, whose contents
 * are in the DDL record.
 *
 * If the commit service does not answer, the drawing transaction aborts.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_class.h"
#include "catalog/pg_control.h"
#include "catalog/dependency.h"
#include "catalog/pg_sequence.h"
#include "common/file_perm.h"
#include "commands/sequence.h"
#include "common/controldata_utils.h"
#include "common/int.h"
#include "miscadmin.h"
#include "nodes/primnodes.h"
#include "port/pg_bswap.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define SEQUENCE_MAGIC 0x1717	/* SEQ_MAGIC in commands/sequence.c */
#define BOUND_AHEAD 1000		/* increments */
#define COPY_ROWS 1000			/* that COPY gives values before the first is inserted */
#define TRIES 2000				/* each means that another query processor moved the bound meanwhile */
#define OWNER_FILE "australis_sequences"	/* in the data directory: who we are */
#define BOUNDS_MAX 16384		/* cached ones */

typedef struct BoundKey
{
	Oid			database;
	RelFileNumber number;
} BoundKey;

typedef struct Bound
{
	BoundKey	key;
	int64		bound;
	int64		epoch;
	int64		owner;
	int64		lo;				/* begin of our range; it ends at the bound */
	bool		has_lo;			/* false: read from a record of an earlier version */
	int64		checked;		/* setvals of the host when the record was looked at */
} Bound;

typedef struct SequenceShared
{
	LWLock		lock;			/* protects the table of bounds */
	int			tranche;
	bool		unclean;		/* local pages may be older than the bounds */
	int64		owner;			/* of ranges; another one when pages were lost */
	pg_atomic_uint64 overruns;	/* how often values beyond a range were met that could not be added to it */
	pg_atomic_uint32 copies;	/* COPY into tables with identity columns, that are running */
} SequenceShared;

static SequenceShared *shared = NULL;
static HTAB *bounds = NULL;
static int	copying = 0;		/* COPY of this session, nested by triggers */
static LocalTransactionId copied_in = InvalidLocalTransactionId; /* the last transaction with one, */
static uint64 overruns_before = 0;	/* and what it began with */

/* ------------------------------------------------------------ shared memory */

Size
au_sequence_shmem_size(void)
{
	return add_size(MAXALIGN(sizeof(SequenceShared)), hash_estimate_size(BOUNDS_MAX, sizeof(Bound)));
}

/* A name for this data directory's local pages. */
static int64
who_are_we(bool anew)
{
	int64		owner = 0;
	int			fd = open(OWNER_FILE, O_RDONLY | O_CLOEXEC);

	if (fd >= 0)
	{
		if (anew || read(fd, &owner, sizeof(owner)) != sizeof(owner))
			owner = 0;
		close(fd);
	}
	if (owner > 0)
		return owner;
	if (!pg_strong_random(&owner, sizeof(owner)))
		elog(FATAL, "could not get random bytes");
	owner = (owner & PG_INT64_MAX) | 1;
	fd = open(OWNER_FILE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, pg_file_create_mode);
	if (fd < 0 || write(fd, &owner, sizeof(owner)) != sizeof(owner))
		ereport(FATAL, (errcode_for_file_access(), errmsg("could not write file \"%s\": %m", OWNER_FILE)));
	close(fd);
	return owner;
}

void
au_sequence_shmem_init(void)
{
	HASHCTL		ctl = {.keysize = sizeof(BoundKey), .entrysize = sizeof(Bound)};
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("australis sequences", sizeof(SequenceShared), &found);
	if (!found)
	{
		bool		crc_ok = false;
		ControlFileData *control;

		shared->tranche = LWLockNewTrancheId();
		LWLockInitialize(&shared->lock, shared->tranche);

		/*
		 * Commits here do not wait for WAL.  After a crash a sequence's page
		 * may be older than what clients have seen; and so in a copy of
		 * another's data directory, which comes without a name.
		 */
		control = get_controlfile(DataDir, &crc_ok);
		shared->unclean = !crc_ok || control->state != DB_SHUTDOWNED || access(OWNER_FILE, F_OK) != 0;
		pfree(control);
		shared->owner = who_are_we(shared->unclean);
		pg_atomic_init_u32(&shared->copies, 0);
		pg_atomic_init_u64(&shared->overruns, 0);
	}
	bounds = ShmemInitHash("australis sequence bounds", BOUNDS_MAX, BOUNDS_MAX, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	LWLockRelease(AddinShmemInitLock);
	LWLockRegisterTranche(shared->tranche, "AustralisSequences");
}

static bool
cache_get(const BoundKey *key, Bound *bound)
{
	Bound	   *entry;

	LWLockAcquire(&shared->lock, LW_SHARED);
	entry = hash_search(bounds, key, HASH_FIND, NULL);
	if (entry)
		*bound = *entry;
	LWLockRelease(&shared->lock);
	return entry != NULL;
}

static void
cache_put(const Bound *bound)
{
	Bound	   *entry;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	entry = hash_search(bounds, &bound->key, HASH_ENTER_NULL, NULL);
	if (entry == NULL)
	{
		/* full: it is only a cache */
		HASH_SEQ_STATUS status;

		hash_seq_init(&status, bounds);
		while ((entry = hash_seq_search(&status)) != NULL)
			(void) hash_search(bounds, &entry->key, HASH_REMOVE, NULL);
		entry = hash_search(bounds, &bound->key, HASH_ENTER_NULL, NULL);
	}
	if (entry)
		*entry = *bound;
	LWLockRelease(&shared->lock);
}

/* ----------------------------------------------------------- local pages */

void
au_sequence_read(Relation rel, int64 *last_value, bool *is_called)
{
	Buffer		buffer = ReadBuffer(rel, 0);
	Page		page;
	ItemId		item;
	Form_pg_sequence_data data;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	if (!ItemIdIsNormal(item))
		elog(ERROR, "sequence \"%s\" has no row", RelationGetRelationName(rel));
	data = (Form_pg_sequence_data) ((char *) PageGetItem(page, item) +
									((HeapTupleHeader) PageGetItem(page, item))->t_hoff);
	*last_value = data->last_value;
	*is_called = data->is_called;
	UnlockReleaseBuffer(buffer);
}

/* As fill_seq_fork_with_data() in commands/sequence.c, for new storage. */
static void
fill_storage(Relation rel, int64 last_value, bool is_called)
{
	Datum		values[SEQ_COL_LASTCOL];
	bool		nulls[SEQ_COL_LASTCOL] = {false};
	HeapTuple	tuple;
	Buffer		buffer;
	Page		page;
	uint32	   *magic;

	values[SEQ_COL_LASTVAL - 1] = Int64GetDatum(last_value);
	values[SEQ_COL_LOG - 1] = Int64GetDatum(0);
	values[SEQ_COL_CALLED - 1] = BoolGetDatum(is_called);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);

	buffer = ExtendBufferedRel(BMR_REL(rel), MAIN_FORKNUM, NULL, EB_LOCK_FIRST | EB_SKIP_EXTENSION_LOCK);
	page = BufferGetPage(buffer);
	PageInit(page, BufferGetPageSize(buffer), sizeof(uint32));
	magic = (uint32 *) PageGetSpecialPointer(page);
	*magic = SEQUENCE_MAGIC;

	/* sequences are never vacuumed: no transaction id may stay in them */
	HeapTupleHeaderSetXmin(tuple->t_data, FrozenTransactionId);
	HeapTupleHeaderSetXminFrozen(tuple->t_data);
	HeapTupleHeaderSetCmin(tuple->t_data, FirstCommandId);
	HeapTupleHeaderSetXmax(tuple->t_data, InvalidTransactionId);
	tuple->t_data->t_infomask |= HEAP_XMAX_INVALID;
	ItemPointerSet(&tuple->t_data->t_ctid, 0, FirstOffsetNumber);

	(void) GetTopTransactionId();
	START_CRIT_SECTION();
	MarkBufferDirty(buffer);
	if (PageAddItem(page, (Item) tuple->t_data, tuple->t_len, InvalidOffsetNumber, false, false) != FirstOffsetNumber)
		elog(ERROR, "failed to add the row of a sequence");
	if (RelationNeedsWAL(rel))
	{
		xl_seq_rec	record = {.locator = rel->rd_locator};
		XLogRecPtr	lsn;

		XLogBeginInsert();
		XLogRegisterBuffer(0, buffer, REGBUF_WILL_INIT);
		XLogRegisterData(&record, sizeof(record));
		XLogRegisterData(tuple->t_data, tuple->t_len);
		lsn = XLogInsert(RM_SEQ_ID, XLOG_SEQ_LOG);
		PageSetLSN(page, lsn);
	}
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
}

/* -------------------------------------------------------- durable bounds */

static void
bound_key(StringInfo buf, const BoundKey *key)
{
	uint32		be;

	au_key_append_relid(buf, AU_SYS_SEQUENCE);
	be = pg_hton32(key->database);
	appendBinaryStringInfo(buf, &be, sizeof(be));
	be = pg_hton32(key->number);
	appendBinaryStringInfo(buf, &be, sizeof(be));
}

/* The durable record, from storage; *at is when it was read. */
static bool
read_record(const BoundKey *key, Bound *bound, bool *is_called, Tau *at)
{
	StringInfoData k,
				batch;
	Tau			acked;
	int64		ddl;
	bool		found;

	initStringInfo(&k);
	initStringInfo(&batch);
	bound_key(&k, key);
	au_newest_snapshot(&acked, &ddl);
	*at = acked = Max(acked, AU_TAU_EMPTY);
	found = au_read_key((Bytes) {(uint8 *) k.data, k.len}, acked, &batch);
	if (found)
	{
		KeyEntry	entry;
		MpReader	r;
		int			fields;

		(void) au_batch_entry(batch.data, &entry);
		r.p = entry.value.data;
		r.end = r.p + entry.value.len;
		fields = au_mp_read_array(&r);
		bound->key = *key;
		bound->bound = au_mp_read_int(&r);
		*is_called = au_mp_read_bool(&r);
		bound->epoch = au_mp_read_int(&r);
		/* of a version with one query processor */
		bound->owner = fields > 3 ? au_mp_read_int(&r) : au_processor == 0 ? shared->owner : 0;
		if (fields > 4)
			bound->lo = au_mp_read_int(&r);
		bound->has_lo = fields > 4;
		bound->checked = 0;
	}
	pfree(k.data);
	pfree(batch.data);
	return found;
}

static bool
read_bound(const BoundKey *key, Bound *bound, bool *is_called)
{
	Tau			at;

	return read_record(key, bound, is_called, &at);
}

/* Make it the durable record; false: that has changed since `read_at`. */
static bool
write_record(const Bound *bound, bool is_called, Tau read_at)
{
	StringInfoData k,
				v;
	bool		written;

	initStringInfo(&k);
	initStringInfo(&v);
	bound_key(&k, &bound->key);
	au_mp_array(&v, 5);
	au_mp_int(&v, bound->bound);
	au_mp_bool(&v, is_called);
	au_mp_int(&v, bound->epoch);
	au_mp_int(&v, bound->owner);
	au_mp_int(&v, bound->lo);
	written = au_commit_compare_and_set((Bytes) {(uint8 *) k.data, k.len}, (Bytes) {(uint8 *) v.data, v.len},
										read_at);
	pfree(k.data);
	pfree(v.data);
	return written;
}

/* value + n * increment, not beyond the sequence's limits */
static int64
ahead(int64 value, int64 n, Form_pg_sequence seq)
{
	int64		distance;
	int64		result;

	if (pg_mul_s64_overflow(n, seq->seqincrement, &distance) ||
		pg_add_s64_overflow(value, distance, &result))
		return seq->seqincrement > 0 ? seq->seqmax : seq->seqmin;
	return Min(Max(result, seq->seqmin), seq->seqmax);
}

/* Is a later than b in the direction in which the sequence runs? */
static bool
beyond(int64 a, int64 b, Form_pg_sequence seq)
{
	return seq->seqincrement > 0 ? a > b : a < b;
}

/* Are the next `need` values of a sequence that stands here within the range?  0: is the last one? */
static bool
within(const Bound *bound, int64 value, bool is_called, int64 need, Form_pg_sequence seq)
{
	if (need > 0)
		value = ahead(value, is_called ? need : need - 1, seq);
	else if (!is_called)
		return true;
	return !beyond(bound->lo, value, seq) && !beyond(value, bound->bound, seq);
}

/* Open a sequence that has a record.  NULL: it is gone, temporary, or its storage is this transaction's. */
static Relation
open_shared(Oid relid, FormData_pg_sequence *seq)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(relid));
	Relation	rel;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	*seq = *(Form_pg_sequence) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);
	rel = try_relation_open(relid, AccessShareLock);
	if (rel == NULL)
		return NULL;
	/* storage made by this transaction: the DDL record carries the value */
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP ||
		rel->rd_createSubid != InvalidSubTransactionId ||
		rel->rd_newRelfilelocatorSubid != InvalidSubTransactionId ||
		rel->rd_firstRelfilelocatorSubid != InvalidSubTransactionId)
	{
		relation_close(rel, AccessShareLock);
		return NULL;
	}
	return rel;
}

/*
 * Set the local page, as do_setval() in commands/sequence.c, but for rights
 * (who may draw need not have that of setting) and the session's currval.  If
 * it stands beyond our range (`known`), somebody has drawn what is not ours:
 * noted while the page is locked, for those who draw without looking.
 */
static void
set_page(Relation rel, int64 value, bool is_called, const Bound *known, Form_pg_sequence seq)
{
	Buffer		buffer;
	Page		page;
	ItemId		item;
	HeapTupleHeader tuple;
	Form_pg_sequence_data data;

	if (RelationNeedsWAL(rel))
		(void) GetTopTransactionId();
	buffer = ReadBuffer(rel, 0);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	if (!ItemIdIsNormal(item))
		elog(ERROR, "sequence \"%s\" has no row", RelationGetRelationName(rel));
	tuple = (HeapTupleHeader) PageGetItem(page, item);
	data = (Form_pg_sequence_data) ((char *) tuple + tuple->t_hoff);
	if (known && data->is_called && beyond(data->last_value, known->bound, seq))
		(void) pg_atomic_fetch_add_u64(&shared->overruns, 1);

	START_CRIT_SECTION();
	data->last_value = value;
	data->is_called = is_called;
	data->log_cnt = 0;
	MarkBufferDirty(buffer);
	if (RelationNeedsWAL(rel))
	{
		xl_seq_rec	record = {.locator = rel->rd_locator};
		XLogRecPtr	lsn;

		XLogBeginInsert();
		XLogRegisterBuffer(0, buffer, REGBUF_WILL_INIT);
		XLogRegisterData(&record, sizeof(record));
		XLogRegisterData(tuple, ItemIdGetLength(item));
		lsn = XLogInsert(RM_SEQ_ID, XLOG_SEQ_LOG);
		PageSetLSN(page, lsn);
	}
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
}

/*
 * Is the range that the record says is ours the one that our page is in?  With
 * nothing known (after a restart) the page has to lie in it.
 */
static bool
in_record(const Bound *record, const Bound *known, int64 value, Form_pg_sequence seq)
{
	if (known)
		return record->epoch == known->epoch && (!record->has_lo || record->lo == known->lo);
	return !record->has_lo || (!beyond(record->lo, value, seq) && !beyond(value, record->bound, seq));
}

static void
report_busy(Relation rel)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not get values of sequence \"%s\" from the cluster", RelationGetRelationName(rel)),
			 errhint("The transaction might succeed if retried.")));
}

static void
report_lost(Relation rel)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("values of sequence \"%s\" were taken by another query processor", RelationGetRelationName(rel)),
			 errhint("The transaction might succeed if retried.")));
}

/*
 * The next `need` values that are drawn from this sequence shall be ours.  0:
 * what was drawn must be, at COMMIT; ERROR if it is somebody else's.  False: it
 * is not shared with anybody.
 */
static bool
ensure(Oid relid, int64 need, BoundKey *its_key, Form_pg_sequence its)
{
	FormData_pg_sequence seq;
	Relation	rel = open_shared(relid, &seq);
	BoundKey	key;
	Bound		known;
	int64		value;
	bool		is_called;

	if (rel == NULL)
		return false;
	key.database = rel->rd_locator.dbOid;
	key.number = rel->rd_locator.relNumber;
	if (its)
		*its = seq;
	if (its_key)
		*its_key = key;
	if (need > 0)
	{
		uint32		copies = pg_atomic_read_u32(&shared->copies);

		/* each of them draws without looking until its next batch */
		if (copies > 0)
			need += COPY_ROWS * (2 * (int64) copies + 1);
	}
	need *= seq.seqcache;
	au_sequence_read(rel, &value, &is_called);
	if (cache_get(&key, &known) && known.owner == shared->owner &&
		(need == 0 || known.checked == au_page_read(PAGE_SETVALS)) &&
		within(&known, value, is_called, need, &seq))
	{
		relation_close(rel, AccessShareLock);
		return true;
	}

	/* one at a time; who waited finds the work done */
	LockDatabaseObject(SequenceRelationId, relid, 0, ExclusiveLock);
	for (int tries = 0;; tries++)
	{
		Bound		record;
		Bound		ours;
		bool		have;
		bool		found;
		bool		record_called = true;
		bool		moves = false;
		bool		lost = false;
		bool		set_back = false;
		int64		setvals = au_page_read(PAGE_SETVALS);
		Tau			read_at;

		CHECK_FOR_INTERRUPTS();
		if (tries >= TRIES)
			report_busy(rel);
		au_sequence_read(rel, &value, &is_called);
		have = cache_get(&key, &known) && known.owner == shared->owner;
		found = read_record(&key, &record, &record_called, &read_at);
		ours = (Bound) {.key = key, .owner = shared->owner, .checked = setvals, .lo = value};
		if (!found)
			ours.bound = ahead(value, need + BOUND_AHEAD, &seq);
		else
		{
			bool		same = record.owner == shared->owner && in_record(&record, have ? &known : NULL, value, &seq);

			ours.epoch = record.epoch;
			if (have && record.epoch == known.epoch)
				ours.lo = known.lo;
			else if (same && record.has_lo)
				ours.lo = record.lo;
			ours.bound = same ? record.bound : have ? known.bound : value;
			if ((same || (have && record.epoch == known.epoch)) && within(&ours, value, is_called, need, &seq))
			{
				cache_put(&ours);
				break;
			}
			if (same && !beyond(ours.lo, value, &seq))
				ours.bound = ahead(value, need + BOUND_AHEAD, &seq);
			else if (same)
			{
				/* it has begun again, or was set by PostgreSQL's own setval */
				ours.lo = value;
				ours.bound = ahead(value, need + BOUND_AHEAD, &seq);
				if (!seq.seqcycle)
				{
					ours.epoch++;
					set_back = true;
				}
			}
			else
			{
				int64		next = record_called ? ahead(record.bound, 1, &seq) : record.bound;

				lost = need == 0;
				if (record_called && next == record.bound)
				{
					if (!seq.seqcycle)
					{
						/* all values are given away: the next draw shall say so */
						if (value != record.bound || !is_called)
						{
							set_page(rel, record.bound, true, have ? &known : NULL, &seq);
						}
						if (lost)
							report_lost(rel);
						break;
					}
					next = seq.seqincrement > 0 ? seq.seqmin : seq.seqmax;
				}
				moves = true;
				ours.lo = next;
				ours.bound = ahead(next, need + BOUND_AHEAD, &seq);
			}
		}
		if (!write_record(&ours, true, read_at))
			continue;
		if (moves)
			set_page(rel, ours.lo, false, have ? &known : NULL, &seq);
		if (set_back)
		{
			au_page_add(PAGE_SETVALS, 1);
			ours.checked = au_page_read(PAGE_SETVALS);
		}
		cache_put(&ours);
		if (lost)
			report_lost(rel);
		break;
	}
	UnlockDatabaseObject(SequenceRelationId, relid, 0, ExclusiveLock);
	relation_close(rel, AccessShareLock);
	return true;
}

/* ------------------------------------------------------- drawing and setting */

PG_FUNCTION_INFO_V1(au_nextval);
PG_FUNCTION_INFO_V1(au_identity_value);
PG_FUNCTION_INFO_V1(au_setval);
PG_FUNCTION_INFO_V1(au_setval_called);

/*
 * Between the look at what is left and the draw others may have drawn it, and
 * a session may have values of an earlier range (CACHE): hence the look at the
 * value itself.  One that is not ours is nobody's loss.
 */
static int64
draw(Oid relid, bool check_rights)
{
	if (!au_enabled || XactReadOnly || get_rel_relkind(relid) != RELKIND_SEQUENCE ||
		(check_rights &&		/* who may not draw shall not make us take a range */
		 pg_class_aclcheck(relid, GetUserId(), ACL_USAGE | ACL_UPDATE) != ACLCHECK_OK))
		return nextval_internal(relid, check_rights);
	for (;;)
	{
		FormData_pg_sequence seq;
		BoundKey	key;
		Bound		bound;
		bool		is_shared = ensure(relid, 1, &key, &seq);
		int64		value = nextval_internal(relid, check_rights);

		if (!is_shared || (cache_get(&key, &bound) && bound.owner == shared->owner &&
						   !beyond(bound.lo, value, &seq) && !beyond(value, bound.bound, &seq)))
			return value;
		/* it begins again: now values repeat anyway */
		if (seq.seqcycle && value == (seq.seqincrement > 0 ? seq.seqmin : seq.seqmax))
			return value;
		CHECK_FOR_INTERRUPTS();
	}
}

/* SQL: nextval(regclass) */
Datum
au_nextval(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(draw(PG_GETARG_OID(0), true));
}

/* What an identity column draws by: its owner's right is enough.  Only the planner makes such calls. */
Datum
au_identity_value(PG_FUNCTION_ARGS)
{
	Node	   *call = fcinfo->flinfo->fn_expr;

	if (call == NULL || !IsA(call, FuncExpr) || ((FuncExpr *) call)->location != AU_IDENTITY_LOCATION)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", "au_identity_value")));
	PG_RETURN_INT64(draw(PG_GETARG_OID(0), false));
}

static pg_noinline bool
write_and_ring(const Bound *bound, bool is_called, Tau read_at)
{
	bool		written;

	PG_TRY();
	{
		written = write_record(bound, is_called, read_at);
	}
	PG_CATCH();
	{
		au_page_add(PAGE_SETVALS, 1);	/* it may have come about */
		PG_RE_THROW();
	}
	PG_END_TRY();
	au_page_add(PAGE_SETVALS, 1);
	return written;
}

/*
 * setval: the local page, then what everybody goes by.  Nobody takes a range
 * in between.  Others hear of it whatever becomes of us, but for the end of the
 * server, which rings when it is back (au_sequences_ring).
 */
static Datum
set_sequence(FunctionCallInfo fcinfo, Oid function)
{
	Oid			relid = PG_GETARG_OID(0);
	FormData_pg_sequence seq;
	Relation	rel = NULL;
	Datum		result;

	/* who may not set it gets PostgreSQL's error and no lock */
	if (au_enabled && !XactReadOnly && get_rel_relkind(relid) == RELKIND_SEQUENCE &&
		pg_class_aclcheck(relid, GetUserId(), ACL_UPDATE) == ACLCHECK_OK)
		rel = open_shared(relid, &seq);
	if (rel)
		LockDatabaseObject(SequenceRelationId, relid, 0, ExclusiveLock);
	result = PG_NARGS() == 2 ?
		OidFunctionCall2(function, PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)) :
		OidFunctionCall3(function, PG_GETARG_DATUM(0), PG_GETARG_DATUM(1), PG_GETARG_DATUM(2));
	if (rel == NULL)
		return result;

	for (int tries = 0;; tries++)
	{
		BoundKey	key = {rel->rd_locator.dbOid, rel->rd_locator.relNumber};
		Bound		record;
		Bound		ours;
		int64		value;
		bool		is_called;
		bool		record_called;
		bool		found;
		Tau			read_at;

		CHECK_FOR_INTERRUPTS();
		if (tries >= TRIES)
			report_busy(rel);
		au_sequence_read(rel, &value, &is_called);
		found = read_record(&key, &record, &record_called, &read_at);
		ours = (Bound) {.key = key, .owner = shared->owner, .lo = value,
		.bound = ahead(value, BOUND_AHEAD, &seq),.epoch = found ? record.epoch + 1 : 1};
		/* exact as long as nothing was drawn */
		if (!write_and_ring(&ours, is_called || ours.bound != value, read_at))
			continue;
		ours.checked = au_page_read(PAGE_SETVALS);
		cache_put(&ours);
		break;
	}
	UnlockDatabaseObject(SequenceRelationId, relid, 0, ExclusiveLock);
	relation_close(rel, AccessShareLock);
	return result;
}

/* A setval may have been cut off by the end of this server before others heard of it. */
void
au_sequences_ring(void)
{
	au_page_add(PAGE_SETVALS, 1);
}

/* SQL: setval(regclass, bigint) */
Datum
au_setval(PG_FUNCTION_ARGS)
{
	return set_sequence(fcinfo, F_SETVAL_REGCLASS_INT8);
}

/* SQL: setval(regclass, bigint, boolean) */
Datum
au_setval_called(PG_FUNCTION_ARGS)
{
	return set_sequence(fcinfo, F_SETVAL_REGCLASS_INT8_BOOL);
}

static bool
has_identity(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
		if (TupleDescAttr(desc, i)->attidentity != '\0' && !TupleDescAttr(desc, i)->attisdropped)
			return true;
	return false;
}

/* COPY is about to give values to the next rows of this table. */
static void
reserve(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, i);

		if (attr->attidentity != '\0' && !attr->attisdropped)
		{
			Oid			sequence = getIdentitySequence(rel, attr->attnum, true);

			if (OidIsValid(sequence))
				(void) ensure(sequence, 1, NULL, NULL);
		}
	}
}

/* Rows were inserted, perhaps by COPY. */
void
au_sequences_inserted(Relation rel)
{
	if (copying > 0 && has_identity(rel))
		reserve(rel);
}

/* COPY into this table begins.  True: au_sequences_copy_ended is to be called. */
bool
au_sequences_copy_begins(Relation rel)
{
	if (!au_enabled || XactReadOnly || rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP || !has_identity(rel) ||
		(pg_class_aclcheck(RelationGetRelid(rel), GetUserId(), ACL_INSERT) != ACLCHECK_OK &&
		 pg_attribute_aclcheck_all(RelationGetRelid(rel), GetUserId(), ACL_INSERT, ACLMASK_ANY) != ACLCHECK_OK))
		return false;
	if (copied_in != MyProc->vxid.lxid)
	{
		copied_in = MyProc->vxid.lxid;
		overruns_before = pg_atomic_read_u64(&shared->overruns);
	}
	(void) pg_atomic_fetch_add_u32(&shared->copies, 1);
	copying++;
	PG_TRY();
	{
		reserve(rel);
	}
	PG_CATCH();
	{
		au_sequences_copy_ended();
		PG_RE_THROW();
	}
	PG_END_TRY();
	return true;
}

/* (Not after the end of the session in the middle: then ranges are a bit longer.) */
void
au_sequences_copy_ended(void)
{
	copying--;
	(void) pg_atomic_fetch_sub_u32(&shared->copies, 1);
}

/*
 * nextval and setval lock their sequence until the end of the transaction, in
 * a mode that for other relations means DML.
 */
void
au_sequences_before_commit(void)
{
	List	   *sequences;
	ListCell   *lc;

	if (au_ddl_applying || !au_enabled)
		return;
	sequences = au_relations_locked(RowExclusiveLock);
	foreach(lc, sequences)
	{
		if (lfirst_oid(lc) >= FirstNormalObjectId &&
			get_rel_relkind(lfirst_oid(lc)) == RELKIND_SEQUENCE)
			(void) ensure(lfirst_oid(lc), 0, NULL, NULL);
	}
	list_free(sequences);

	/*
	 * Rows that COPY drew for and did not insert (WHERE) are in no reserve.
	 * When the page was moved on meanwhile, what it had run over cannot be
	 * seen there any more.
	 */
	if (copied_in == MyProc->vxid.lxid && overruns_before != pg_atomic_read_u64(&shared->overruns))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("values of a sequence were taken by another query processor"),
				 errhint("The transaction might succeed if retried.")));
}

/*
 * This transaction drops the sequence or gives it new storage: its bound goes
 * with the same commit.
 */
void
au_sequence_forget(RelFileNumber number)
{
	BoundKey	key = {MyDatabaseId, number};
	Bound		bound;
	bool		is_called;
	StringInfoData k;

	if (!cache_get(&key, &bound) && !read_bound(&key, &bound, &is_called))
		return;
	initStringInfo(&k);
	bound_key(&k, &key);
	(void) au_wb_delete((Bytes) {(uint8 *) k.data, k.len}, GetCurrentCommandId(true), LockTupleExclusive, true);
	pfree(k.data);
}

/* ------------------------------------------------------ after loss or rebuild */

/* Called while a DDL record is applied: contents of new storage. */
void
au_sequence_create_storage(Oid relid, int64 last_value, bool is_called)
{
	Relation	rel = relation_open(relid, AccessExclusiveLock);
	BoundKey	key = {rel->rd_locator.dbOid, rel->rd_locator.relNumber};
	Bound		bound;

	/* drawn from since the record was made */
	if (read_bound(&key, &bound, &is_called))
	{
		last_value = bound.bound;
		cache_put(&bound);
	}
	if (RelationGetNumberOfBlocks(rel) == 0)
		fill_storage(rel, last_value, is_called);
	relation_close(rel, NoLock);
}

/* Was this server stopped in a way that may have lost local pages? */
bool
au_sequences_unclean(void)
{
	return shared->unclean;
}

/*
 * Raise the sequences of the current database to their bounds, unless the
 * server was shut down cleanly.
 */
void
au_sequences_restore(void)
{
	Relation	catalog;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *relids = NIL;
	ListCell   *lc;

	if (!au_sequences_unclean())
		return;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	catalog = table_open(SequenceRelationId, AccessShareLock);
	scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		relids = lappend_oid(relids, ((Form_pg_sequence) GETSTRUCT(tuple))->seqrelid);
	systable_endscan(scan);

	foreach(lc, relids)
	{
		Relation	rel = relation_open(lfirst_oid(lc), RowExclusiveLock);
		BoundKey	key = {rel->rd_locator.dbOid, rel->rd_locator.relNumber};
		Bound		bound;
		int64		value;
		bool		is_called;
		bool		bound_called;

		if (rel->rd_rel->relpersistence != RELPERSISTENCE_TEMP && read_bound(&key, &bound, &bound_called))
		{
			HeapTuple	seqtuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(lfirst_oid(lc)));

			if (!HeapTupleIsValid(seqtuple))
				elog(ERROR, "cache lookup failed for sequence %u", lfirst_oid(lc));
			au_sequence_read(rel, &value, &is_called);
			if (beyond(bound.bound, value, (Form_pg_sequence) GETSTRUCT(seqtuple)))
				(void) OidFunctionCall3(F_SETVAL_REGCLASS_INT8_BOOL, ObjectIdGetDatum(lfirst_oid(lc)),
										Int64GetDatum(bound.bound), BoolGetDatum(bound_called));
			ReleaseSysCache(seqtuple);
			cache_put(&bound);
		}
		relation_close(rel, NoLock);
	}
	table_close(catalog, AccessShareLock);
	PopActiveSnapshot();
	CommitTransactionCommand();
}
