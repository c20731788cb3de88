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

#include "access/xact.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

#include "filter.h"
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
#define READ_REFUSED	5

/* rows that a filtered batch may look at: as storage/scans.py */
#define EXAMINED_PER_ROW	16
#define LEAST_EXAMINED	1024
#define MAX_EXAMINED	65536

#define ERRCODE_SNAPSHOT_TOO_OLD_ MAKE_SQLSTATE('7', '2', '0', '0', '0')

static Store *store = NULL;
static StoreReader *reader = NULL;
static bool exit_registered = false;
static Tau	fresh = 0;			/* storage is known to have applied this */
static int64 opened = 0;		/* which store: PAGE_STORE when we opened it */
static int64 request_id = 0;
static bool asking = false;		/* an answer is due that nobody waits for any more */

/* What was asked for ahead of time, by several scans. */
#define READ_AHEADS 4

typedef struct ReadAhead
{
	int64		id;				/* of the request; 0: free */
	uint64		connection;		/* it was sent on */
	int			nest_level;
	bool		wanted;
	bool		arrived;
	StringInfoData answer;
} ReadAhead;

static ReadAhead aheads[READ_AHEADS];

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
check_reply(MpReader *reply, int tag, int64 id)
{
	int64		status;

	if (au_mp_read_array(reply) < 4 || au_mp_read_int(reply) != tag ||
		au_mp_read_int(reply) != id)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("unexpected answer from the storage service")));
	status = au_mp_read_int(reply);
	if (status == READ_OK)
		return;
	if (status == READ_TOO_OLD)
		report_store(STORE_TOO_OLD);
	if (status == READ_STALE)
		report_stale();
	if (status == READ_REFUSED)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the storage service refused the filter of a scan"),
				 errhint("\"SET australis.push_down = off\" reads without filters.")));
	ereport(ERROR, (errcode(ERRCODE_IO_ERROR), errmsg("the storage service could not read")));
}

static void
free_ahead(ReadAhead *ahead)
{
	ahead->id = 0;
	ahead->wanted = ahead->arrived = false;
	if (ahead->answer.data)
		pfree(ahead->answer.data);
	ahead->answer.data = NULL;
}

/* Is an answer still to come on the connection?  Forgets those that were lost with another one. */
static bool
answers_due(void)
{
	uint64		connection = au_connection_number(AU_STORAGE_SERVICE);
	bool		due = false;

	for (int i = 0; i < READ_AHEADS; i++)
	{
		ReadAhead  *ahead = &aheads[i];

		if (ahead->id == 0 || ahead->arrived)
			continue;
		if (ahead->connection != connection || au_service_generation(AU_STORAGE_SERVICE) < 0)
			free_ahead(ahead);
		else
			due = true;
	}
	return due;
}

/* Send a request, also behind others whose answers are due. */
static bool
send_request(StringInfo msg)
{
	bool		due;
	bool		sent;

	if (asking)
	{
		/* an error has come between: what arrives now would be taken for something else */
		au_disconnect(AU_STORAGE_SERVICE);
		asking = false;
	}
	due = answers_due();
	asking = true;				/* an error may leave half of it sent */
	sent = due ? au_send_more(AU_STORAGE_SERVICE, msg) : au_send(AU_STORAGE_SERVICE, msg);
	asking = false;
	return sent;
}

/*
 * Wait for the answer to this request, and keep those that come before it for
 * whoever wants them.  false: the connection is lost.
 */
static bool
receive_answer(int64 id, MpReader *reply)
{
	for (;;)
	{
		MpReader	look;
		int64		which;
		ReadAhead  *ahead = NULL;
		AuReceive	got = au_receive(AU_STORAGE_SERVICE, reply, au_service_timeout_ms, false);

		if (got != AU_RECEIVED)
		{
			au_disconnect(AU_STORAGE_SERVICE);
			return false;
		}
		au_check_error(AU_STORAGE_SERVICE, reply);
		look = *reply;
		if (au_mp_read_array(&look) < 2)
			return true;
		(void) au_mp_read_int(&look);
		which = au_mp_read_int(&look);
		if (which == id)
			return true;
		for (int i = 0; i < READ_AHEADS; i++)
		{
			if (aheads[i].id == which)
				ahead = &aheads[i];
		}
		if (ahead == NULL)
			return true;		/* the caller refuses it */
		if (ahead->wanted)
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

			initStringInfoExt(&ahead->answer, reply->end - reply->p + 1);
			appendBinaryStringInfoNT(&ahead->answer, reply->p, reply->end - reply->p);
			MemoryContextSwitchTo(old);
			ahead->arrived = true;
		}
		else
			free_ahead(ahead);
	}
}

static void
ask(StringInfo msg, MpReader *reply)
{
	/* a read may be repeated; an idle connection may have died with the service's last life */
	for (int attempt = 0; attempt < 4; attempt++)
	{
		bool		answered = false;

		if (!send_request(msg))
			continue;
		asking = true;
		answered = receive_answer(request_id, reply);
		asking = false;
		if (answered)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_CANNOT_CONNECT_NOW),
			 errmsg("the storage service is not available")));
}

static StoreStatus
scan_attached(StoreReader *r, StoreBytes lo, StoreBytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes,
			  StoreWhere *where, StoreCut *cut, StoreBuffer *batch, bool *more)
{
	if (where)
		return store_scan_where(r, lo, hi, backward, tau, max_rows, max_bytes, where, cut, batch, more);
	if (cut)
		return store_scan_cut(r, lo, hi, tau, max_rows, max_bytes, cut, batch, more);
	return store_scan_batch(r, lo, hi, backward, tau, max_rows, max_bytes, batch, more);
}

static void
read_attached(Bytes lo, Bytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes, Bytes filter,
			  StoreCut *cut, StringInfo buf, bool *more, StringInfo resume)
{
	static StoreWhere filtered;
	StoreWhere *where = NULL;
	StoreBuffer batch;
	StoreBytes	l = {lo.data, lo.len};
	StoreBytes	h = {hi.data, hi.len};
	StoreStatus status;

	if (filter.data)
	{
		where = &filtered;
		where->program = (StoreBytes) {filter.data, filter.len};
		where->max_examined = Max(LEAST_EXAMINED, Min(max_rows * EXAMINED_PER_ROW, MAX_EXAMINED));
		where->resume_len = 0;
	}
	pgBufferUsage.shared_blks_hit++;	/* EXPLAIN (BUFFERS): a trip to storage */
	for (;;)
	{
		StoreReader *r;

		wait_fresh(tau);
		r = attached();
		into(&batch, buf);
		status = scan_attached(r, l, h, backward, tau, max_rows, max_bytes, where, cut, &batch, more);
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
			status = scan_attached(r, l, h, backward, tau, max_rows, max_bytes, where, cut, &batch, more);
			store_reader_interrupt(r, &InterruptPending);
			break;
		}
	}
	if (status != STORE_OK)
		report_store(status);
	done(&batch, buf);
	if (where && *more)
		appendBinaryStringInfo(resume, (const char *) where->resume, (int) where->resume_len);
}

/* Let storage count the rows, of which it may look at more than it would send. */
static bool
count_range(Bytes lo, Bytes hi, Tau tau, uint32 max_rows, uint32 max_bytes, bool *more, StringInfo last, uint32 *rows,
			StringInfo resume)
{
	static const uint8 program[] = {FILTER_VERSION, FILTER_COUNT, 0, 0};
	StringInfoData answer;
	uint64		counted = 0;

	initStringInfo(&answer);
	au_read_range_where(lo, hi, false, tau, Min(max_rows * EXAMINED_PER_ROW, MAX_EXAMINED), max_bytes,
						(Bytes) {program, sizeof(program)}, &answer, more, resume);
	resetStringInfo(last);
	if (answer.len >= 8)
	{
		memcpy(&counted, answer.data, 8);
		appendBinaryStringInfo(last, answer.data + 8, answer.len - 8);
	}
	*rows = (uint32) counted;
	pfree(answer.data);
	return true;
}

/*
 * A forward scan that wants the first `prefix` bytes of row images without
 * NULLs (0: to know how many rows there are, which may be more than max_rows),
 * and no keys but the last one.
 * false: this driver cannot.
 */
bool
au_read_range_cut(Bytes lo, Bytes hi, Tau tau, uint32 max_rows, uint32 max_bytes, uint32 prefix,
				  Bytes filter, StringInfo buf, bool *more, StringInfo last, uint32 *rows, StringInfo resume)
{
	static StoreCut cut;

	if (au_storage_driver != 0)
		return prefix == 0 && au_push_down && count_range(lo, hi, tau, max_rows, max_bytes, more, last, rows, resume);
	cut.prefix = prefix;
	cut.last_len = 0;
	read_attached(lo, hi, false, tau, max_rows, max_bytes, filter, &cut, buf, more, resume);
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
	au_read_range_where(lo, hi, backward, tau, max_rows, max_bytes, (Bytes) {NULL, 0}, buf, more, NULL);
}

static void
form_scan(StringInfo msg, Bytes lo, Bytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes, Bytes filter)
{
	pgBufferUsage.shared_blks_hit++;
	initStringInfo(msg);
	au_mp_array(msg, filter.data ? 9 : 8);
	au_mp_int(msg, TAG_SCAN);
	au_mp_int(msg, ++request_id);
	au_mp_int(msg, tau);
	au_mp_bin(msg, lo.data, lo.len);
	au_mp_bin(msg, hi.data, hi.len);
	au_mp_bool(msg, backward);
	au_mp_int(msg, max_bytes);
	au_mp_int(msg, max_rows);
	if (filter.data)
		au_mp_bin(msg, filter.data, filter.len);
}

static void
take_scan(MpReader *reply, int64 id, StringInfo buf, bool *more, StringInfo resume)
{
	MpReader	all = *reply;
	uint32		n = au_mp_read_array(&all);
	Bytes		b;

	check_reply(reply, TAG_SCAN + 1, id);
	*more = au_mp_read_bool(reply);
	b = au_mp_read_bin(reply);
	appendBinaryStringInfo(buf, (const char *) b.data, b.len);
	if (n > 5 && resume)
	{
		b = au_mp_read_bin(reply);
		if (b.len > 0)
			appendBinaryStringInfo(resume, (const char *) b.data, b.len);
	}
}

void
au_read_range_where(Bytes lo, Bytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes, Bytes filter,
					StringInfo buf, bool *more, StringInfo resume)
{
	if (au_storage_driver == 0)
		read_attached(lo, hi, backward, tau, max_rows, max_bytes, filter, NULL, buf, more, resume);
	else
	{
		StringInfoData msg;
		MpReader	reply;

		form_scan(&msg, lo, hi, backward, tau, max_rows, max_bytes, filter);
		ask(&msg, &reply);
		take_scan(&reply, request_id, buf, more, resume);
		pfree(msg.data);
	}
}

int64
au_read_ahead(Bytes lo, Bytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes, Bytes filter)
{
	StringInfoData msg;
	ReadAhead  *ahead = NULL;
	bool		sent;

	if (au_storage_driver == 0 || !au_push_down)
		return 0;
	(void) answers_due();
	for (int i = 0; i < READ_AHEADS && ahead == NULL; i++)
	{
		if (aheads[i].id == 0)
			ahead = &aheads[i];
	}
	if (ahead == NULL || au_service_generation(AU_STORAGE_SERVICE) < 0)
		return 0;
	form_scan(&msg, lo, hi, backward, tau, max_rows, max_bytes, filter);
	sent = send_request(&msg);
	pfree(msg.data);
	if (!sent)
		return 0;
	ahead->id = request_id;
	ahead->connection = au_connection_number(AU_STORAGE_SERVICE);
	ahead->nest_level = GetCurrentTransactionNestLevel();
	ahead->wanted = true;
	ahead->arrived = false;
	return ahead->id;
}

static ReadAhead *
find_ahead(int64 id)
{
	if (id == 0)
		return NULL;
	for (int i = 0; i < READ_AHEADS; i++)
	{
		if (aheads[i].id == id)
			return &aheads[i];
	}
	return NULL;
}

bool
au_read_ahead_take(int64 id, StringInfo buf, bool *more, StringInfo resume)
{
	ReadAhead  *ahead;
	MpReader	reply;

	(void) answers_due();
	ahead = find_ahead(id);
	if (ahead == NULL || !ahead->wanted || asking)
		return false;
	if (!ahead->arrived)
	{
		bool		answered;

		asking = true;
		answered = receive_answer(id, &reply);
		asking = false;
		free_ahead(ahead);
		if (!answered)
			return false;
		take_scan(&reply, id, buf, more, resume);
		return true;
	}
	reply.p = (const uint8 *) ahead->answer.data;
	reply.end = reply.p + ahead->answer.len;
	ahead->wanted = false;		/* should it hold an error, it goes with the transaction */
	take_scan(&reply, id, buf, more, resume);
	free_ahead(ahead);
	return true;
}

void
au_read_ahead_cancel(int64 id)
{
	ReadAhead  *ahead = find_ahead(id);

	if (ahead == NULL)
		return;
	ahead->wanted = false;
	if (ahead->arrived)
		free_ahead(ahead);
}

void
au_read_ahead_forget(int nest_level)
{
	for (int i = 0; i < READ_AHEADS; i++)
	{
		if (aheads[i].id != 0 && aheads[i].nest_level >= nest_level)
			au_read_ahead_cancel(aheads[i].id);
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
		check_reply(&reply, TAG_GET + 1, request_id);
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
	check_reply(&reply, TAG_GET + 1, request_id);
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
