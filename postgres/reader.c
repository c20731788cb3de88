/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  Reads from storage as of a time: one interface, two drivers.
 *
 *	  attached	the storage node's LMDB file, read in this process
 *	  socket	the storage node answers
 *
 * Both return the same batches (docs/formats.md, section 5), copied into the
 * caller's memory.  A read never answers stale: it waits until storage has
 * applied everything up to its time, cancellable, and fails with 57P03 when
 * that does not happen within the service timeout.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "executor/instrument.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

#include "store.h"

#define TAG_GET			20
#define TAG_SCAN		22
#define TAG_STATS		24

#define FRESH_SPINS		50		/* looks at the page before sleeping */
#define FULL_WAIT_MS	2000	/* for space on the disk of storage */
#define FRESH_WAIT_MS	10		/* sleeping, look for interrupts at least this often */

#define READ_OK		0
#define READ_TOO_OLD	1
#define READ_STALE	2

#define ERRCODE_SNAPSHOT_TOO_OLD_ MAKE_SQLSTATE('7', '2', '0', '0', '0')

static Store *store = NULL;
static StoreReader *reader = NULL;
static bool exit_registered = false;
static Tau	fresh = 0;			/* storage is known to have applied this */
static int64 opened = 0;		/* which store: PAGE_STORE when we opened it */
static int64 request_id = 0;

static void
close_store(int code, Datum arg)
{
	if (reader)
		store_reader_close(reader);
	if (store)
		store_close(store);
	reader = NULL;
	store = NULL;
}

pg_noreturn static void
report_store(StoreStatus status)
{
	switch (status)
	{
		case STORE_TOO_OLD:
			ereport(ERROR,
					(errcode(ERRCODE_SNAPSHOT_TOO_OLD_),
					 errmsg("snapshot too old"),
					 errdetail("The row versions that this transaction reads are no longer kept.")));
			break;
		case STORE_ABSENT:
		case STORE_BUSY:
			ereport(ERROR,
					(errcode(ERRCODE_CANNOT_CONNECT_NOW),
					 errmsg("the storage service is not available"),
					 errdetail("%s", store_error())));
			break;
		case STORE_DAMAGED:
		case STORE_WRONG_CLUSTER:
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("storage cannot be read: %s", store_error()),
					 errhint("Stop the cluster, remove its directory \"storage\" and start it again: "
							 "it is made again from the newest snapshot and the journal.")));
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_IO_ERROR),
					 errmsg("storage cannot be read: %s", store_error())));
	}
	pg_unreachable();
}

/* The attached store, opened once per backend, after the fork. */
static StoreReader *
attached(void)
{
	instr_time	start,
				now;
	StoreStatus status;

	if (reader)
		return reader;
	if (!exit_registered)
	{
		on_proc_exit(close_store, 0);
		exit_registered = true;
	}
	INSTR_TIME_SET_CURRENT(start);
	for (;;)
	{
		opened = au_page_read(PAGE_STORE);
		status = store_open_reader(au_storage_directory, au_page_cluster(), &store);
		if (status == STORE_OK)
			break;
		store = NULL;
		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_SUBTRACT(now, start);
		if (status != STORE_ABSENT || INSTR_TIME_GET_MILLISEC(now) > au_service_timeout_ms)
			report_store(status);
		CHECK_FOR_INTERRUPTS();
		pg_usleep(1000);
	}
	status = store_reader_open(store, &reader);
	if (status != STORE_OK)
	{
		reader = NULL;
		store_close(store);
		store = NULL;
		report_store(status);
	}
	store_reader_interrupt(reader, &InterruptPending);
	return reader;
}

static bool
storage_is_full(void)
{
	return au_page_read(PAGE_STORAGE_PID) == PAGE_DISK_FULL;
}

pg_noreturn static void
report_stale(void)
{
	if (storage_is_full())
		ereport(ERROR,
				(errcode(ERRCODE_DISK_FULL),
				 errmsg("the disk of storage is full"),
				 errdetail("What was committed last cannot be read before there is space."),
				 errhint("Free space and try again.")));
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("the storage service is not available"),
			 errdetail("It has not applied the newest commits in time."),
			 errhint("It is restarted automatically; try again. \"australis status\" tells more.")));
}

/*
 * Wait until storage has applied everything at or below tau.  Usually it has:
 * the apply overlaps the journal write.
 */
static void
wait_fresh(Tau tau)
{
	instr_time	start,
				now;
	Tau			applied;
	int			spins = 0;

	/*
	 * The owner may have rebuilt the store: the file that we have mapped would
	 * stay as it was for ever.
	 */
	if (store && au_page_read(PAGE_STORE) != opened)
	{
		close_store(0, 0);
		fresh = 0;
	}
	if (tau <= fresh || tau == AU_TAU_EMPTY)
		return;
	INSTR_TIME_SET_ZERO(start);
	while ((applied = (Tau) au_page_read(PAGE_APPLIED)) < tau)
	{
		if (++spins < FRESH_SPINS)
		{
			pg_spin_delay();
			continue;
		}
		INSTR_TIME_SET_CURRENT(now);
		if (INSTR_TIME_IS_ZERO(start))
			start = now;
		INSTR_TIME_SUBTRACT(now, start);
		if (INSTR_TIME_GET_MILLISEC(now) > (storage_is_full() ? FULL_WAIT_MS : au_service_timeout_ms))
			report_stale();
		CHECK_FOR_INTERRUPTS();
		au_page_wait(PAGE_APPLIED, applied, FRESH_WAIT_MS);
	}
	fresh = tau;
}

static bool
reserve(StoreBuffer *buffer, size_t need)
{
	StringInfo	buf = buffer->context;
	size_t		size = Max((size_t) buf->maxlen * 2, need + 1);
	char	   *p;

	if (need + 1 > MaxAllocSize)
		return false;
	size = Min(size, MaxAllocSize);
	p = repalloc_extended(buf->data, size, MCXT_ALLOC_NO_OOM);
	if (p == NULL)
		return false;
	buf->data = p;
	buf->maxlen = (int) size;
	buffer->data = (uint8_t *) p;
	buffer->cap = size - 1;
	return true;
}

static inline void
into(StoreBuffer *buffer, StringInfo buf)
{
	buffer->data = (uint8_t *) buf->data;
	buffer->len = buf->len;
	buffer->cap = buf->maxlen - 1;
	buffer->reserve = reserve;
	buffer->context = buf;
}

static inline void
done(StoreBuffer *buffer, StringInfo buf)
{
	buf->len = (int) buffer->len;
	buf->data[buf->len] = '\0';
}

/* Check id and status of a reply; leaves the reader at what follows. */
static void
check_reply(MpReader *reply, int tag)
{
	int64		status;

	if (au_mp_read_array(reply) < 4 || au_mp_read_int(reply) != tag ||
		au_mp_read_int(reply) != request_id)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer from the storage service")));
	status = au_mp_read_int(reply);
	if (status == READ_OK)
		return;
	if (status == READ_TOO_OLD)
		report_store(STORE_TOO_OLD);
	if (status == READ_STALE)
		report_stale();
	ereport(ERROR, (errcode(ERRCODE_IO_ERROR), errmsg("the storage service could not read")));
}

static void
ask(StringInfo msg, MpReader *reply)
{
	/* a read may be repeated */
	for (int attempt = 0; attempt < 3; attempt++)
	{
		if (au_call(AU_STORAGE_SERVICE, msg, reply, au_service_timeout_ms))
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("the storage service is not available")));
}

static StoreStatus
scan_attached(StoreReader *r, StoreBytes lo, StoreBytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes,
			  StoreCut *cut, StoreBuffer *batch, bool *more)
{
	if (cut)
		return store_scan_cut(r, lo, hi, tau, max_rows, max_bytes, cut, batch, more);
	return store_scan_batch(r, lo, hi, backward, tau, max_rows, max_bytes, batch, more);
}

static void
read_attached(Bytes lo, Bytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes, StoreCut *cut,
			  StringInfo buf, bool *more)
{
	StoreBuffer batch;
	StoreBytes	l = {lo.data, lo.len};
	StoreBytes	h = {hi.data, hi.len};
	StoreStatus status;

	pgBufferUsage.shared_blks_hit++;	/* EXPLAIN (BUFFERS): a trip to storage */
	for (;;)
	{
		StoreReader *r;

		wait_fresh(tau);
		r = attached();
		into(&batch, buf);
		status = scan_attached(r, l, h, backward, tau, max_rows, max_bytes, cut, &batch, more);
		if (unlikely(au_page_read(PAGE_STORE) != opened))
			continue;
		if (status != STORE_INTERRUPTED)
			break;
		CHECK_FOR_INTERRUPTS();
		if (InterruptPending)
		{
			/* held, or nothing that stops us: read on undisturbed */
			store_reader_interrupt(r, NULL);
			into(&batch, buf);
			status = scan_attached(r, l, h, backward, tau, max_rows, max_bytes, cut, &batch, more);
			store_reader_interrupt(r, &InterruptPending);
			break;
		}
	}
	if (status != STORE_OK)
		report_store(status);
	done(&batch, buf);
}

/*
 * A forward scan that wants the first `prefix` bytes of row images without
 * NULLs (0: to know how many rows there are), and no keys but the last one.
 * false: this driver cannot.
 */
bool
au_read_range_cut(Bytes lo, Bytes hi, Tau tau, uint32 max_rows, uint32 max_bytes, uint32 prefix,
				  StringInfo buf, bool *more, StringInfo last, uint32 *rows)
{
	static StoreCut cut;

	if (au_storage_driver != 0)
		return false;
	cut.prefix = prefix;
	cut.last_len = 0;
	read_attached(lo, hi, false, tau, max_rows, max_bytes, &cut, buf, more);
	resetStringInfo(last);
	appendBinaryStringInfo(last, cut.last, cut.last_len);
	*rows = (uint32) cut.rows;
	return true;
}

/*
 * Append keys that divide [lo, hi) into about equal parts, as store_split()
 * does; none with a driver that cannot tell.
 */
void
au_read_split(Bytes lo, Bytes hi, uint32 max, StringInfo keys)
{
	StoreStatus status;

	if (au_storage_driver != 0)
		return;
	do
	{
		StoreReader *r = attached();
		StoreBuffer buffer;

		into(&buffer, keys);
		status = store_split(r, (StoreBytes) {lo.data, lo.len}, (StoreBytes) {hi.data, hi.len}, max, &buffer);
		if (status == STORE_OK)
			done(&buffer, keys);
	} while (unlikely(au_page_read(PAGE_STORE) != opened));
	if (status != STORE_OK)
		report_store(status);
}

void
au_read_range(Bytes lo, Bytes hi, bool backward, Tau tau,
			  uint32 max_rows, uint32 max_bytes, StringInfo buf, bool *more)
{
	if (au_storage_driver == 0)
		read_attached(lo, hi, backward, tau, max_rows, max_bytes, NULL, buf, more);
	else
	{
		StringInfoData msg;
		MpReader	reply;
		Bytes		b;

		pgBufferUsage.shared_blks_hit++;
		initStringInfo(&msg);
		au_mp_array(&msg, 8);
		au_mp_int(&msg, TAG_SCAN);
		au_mp_int(&msg, ++request_id);
		au_mp_int(&msg, tau);
		au_mp_bin(&msg, lo.data, lo.len);
		au_mp_bin(&msg, hi.data, hi.len);
		au_mp_bool(&msg, backward);
		au_mp_int(&msg, max_bytes);
		au_mp_int(&msg, max_rows);
		ask(&msg, &reply);
		check_reply(&reply, TAG_SCAN + 1);
		*more = au_mp_read_bool(&reply);
		b = au_mp_read_bin(&reply);
		appendBinaryStringInfo(buf, (const char *) b.data, b.len);
		pfree(msg.data);
	}
}

bool
au_read_key(Bytes key, Tau tau, StringInfo buf)
{
	pgBufferUsage.shared_blks_hit++;
	if (au_storage_driver == 0)
	{
		StoreBuffer batch;
		StoreBytes	k = {key.data, key.len};
		StoreStatus status;
		bool		found = false;

		do
		{
			/* a store replaced during the read may have been incomplete */
			wait_fresh(tau);
			into(&batch, buf);
			found = false;
			status = store_get(attached(), k, tau, &batch, &found);
		} while (unlikely(au_page_read(PAGE_STORE) != opened));
		if (status != STORE_OK)
			report_store(status);
		done(&batch, buf);
		return found;
	}
	else
	{
		StringInfoData msg;
		MpReader	reply;
		Bytes		b;
		uint32		vlen;

		initStringInfo(&msg);
		au_mp_array(&msg, 4);
		au_mp_int(&msg, TAG_GET);
		au_mp_int(&msg, ++request_id);
		au_mp_int(&msg, tau);
		au_mp_array(&msg, 1);
		au_mp_bin(&msg, key.data, key.len);
		ask(&msg, &reply);
		check_reply(&reply, TAG_GET + 1);
		b = au_mp_read_bin(&reply);
		pfree(msg.data);
		if (b.len < 16)
			return false;
		memcpy(&vlen, b.data + 4, 4);
		if (vlen == STORE_NO_VALUE)
			return false;
		appendBinaryStringInfo(buf, (const char *) b.data, b.len);
		return true;
	}
}

static void
read_keys_attached(const Bytes *keys, int n, Tau tau, StringInfo buf, int *found)
{
	StringInfoData one;

	initStringInfo(&one);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		resetStringInfo(&one);
		found[i] = -1;
		if (!au_read_key(keys[i], tau, &one))
			continue;
		found[i] = buf->len;
		appendBinaryStringInfo(buf, one.data, one.len);
	}
	pfree(one.data);
}

void
au_read_keys(const Bytes *keys, int n, Tau tau, StringInfo buf, int *found)
{
	StringInfoData msg;
	MpReader	reply;
	Bytes		b;
	uint32		at = 0;

	resetStringInfo(buf);
	if (au_storage_driver == 0)
	{
		read_keys_attached(keys, n, tau, buf, found);
		return;
	}
	pgBufferUsage.shared_blks_hit++;
	initStringInfo(&msg);
	au_mp_array(&msg, 4);
	au_mp_int(&msg, TAG_GET);
	au_mp_int(&msg, ++request_id);
	au_mp_int(&msg, tau);
	au_mp_array(&msg, (uint32) n);
	for (int i = 0; i < n; i++)
		au_mp_bin(&msg, keys[i].data, keys[i].len);
	ask(&msg, &reply);
	check_reply(&reply, TAG_GET + 1);
	b = au_mp_read_bin(&reply);
	pfree(msg.data);
	appendBinaryStringInfo(buf, (const char *) b.data, b.len);
	for (int i = 0; i < n; i++)
	{
		uint32		klen = 0,
					vlen = STORE_NO_VALUE;
		uint64		size = 16;

		if (at + size <= b.len)
		{
			memcpy(&klen, buf->data + at, 4);
			memcpy(&vlen, buf->data + at + 4, 4);
			if (vlen != STORE_NO_VALUE)
				size += TYPEALIGN(8, (uint64) vlen) + TYPEALIGN(8, (uint64) klen);
		}
		if (at + size > b.len)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer from the storage service")));
		found[i] = vlen == STORE_NO_VALUE ? -1 : (int) at;
		at += (uint32) size;
	}
}

/*
 * Rows and bytes of a relation as storage has them.  Everything that this
 * transaction would read is counted: VACUUM ANALYZE right after a load must
 * not find the table empty because storage is still applying it.
 */
void
au_read_stats(RelId relid, int64 *rows, int64 *bytes)
{
	Tau			tau = au_has_tau_start() ? au_tau_start() : (Tau) au_page_read(PAGE_ACKED);

	*rows = 0;
	*bytes = 0;
	wait_fresh(tau);
	if (au_storage_driver == 0)
	{
		StoreStats	stats;
		uint64_t	id = relid;
		StoreStatus status = store_stats(attached(), &id, 1, &stats);

		if (status != STORE_OK)
			report_store(status);
		*rows = stats.rows;
		*bytes = stats.bytes;
	}
	else
	{
		StringInfoData msg;
		MpReader	reply;

		initStringInfo(&msg);
		au_mp_array(&msg, 4);
		au_mp_int(&msg, TAG_STATS);
		au_mp_int(&msg, ++request_id);
		au_mp_array(&msg, 1);
		au_mp_int(&msg, (int64) relid);
		au_mp_int(&msg, tau);
		ask(&msg, &reply);
		if (au_mp_read_array(&reply) < 3 || au_mp_read_int(&reply) != TAG_STATS + 1 ||
			au_mp_read_int(&reply) != request_id)
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer from the storage service")));
		if (au_mp_read_array(&reply) == 1)
		{
			(void) au_mp_read_array(&reply);
			au_mp_skip(&reply);
			*rows = au_mp_read_int(&reply);
			*bytes = au_mp_read_int(&reply);
		}
		pfree(msg.data);
	}
}

/*
 * The same, with everything that was committed before.  Behind a gateway the
 * page only knows what this host has heard of, which is good enough to plan
 * by.
 */
void
au_read_current_stats(RelId relid, int64 *rows, int64 *bytes)
{
	if (au_behind_gateway())
		(void) au_tau_start();
	au_read_stats(relid, rows, bytes);
}
