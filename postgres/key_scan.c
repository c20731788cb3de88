/*-------------------------------------------------------------------------
 *
 * key_scan.c
 *	  Storage as of tau_start merged with this transaction's own writes.
 *
 * A scan is defined by its last key, not by a cursor: rows come from storage
 * in batches that are copied out, the next batch starts beyond the last key,
 * and the write buffer is entered by key whenever it changed.  So nothing is
 * pinned between calls, and a scan may be reversed, moved or left alone for
 * hours.  When the write buffer was flushed to storage meanwhile (rule Q8), the
 * batch is read again: it does not have what the buffer has no more.  For one key the newest own version visible to the command wins; an
 * own deletion hides the stored row.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/memutils.h"

#define FIRST_BATCH_ROWS	48
#define MAX_BATCH_ROWS		4096
#define CUT_BATCH_ROWS		1024	/* rows of which little is read stay in the nearest cache */
#define MAX_BATCH_BYTES		(256 * 1024)

struct KeyScan
{
	StringInfoData lo;
	StringInfoData hi;
	CommandId	curcid;
	RelId		relid;
	MemoryContext context;

	/* last key returned or sought: in the batch (last_offset >= 0) or copied */
	StringInfoData last;
	int			last_offset;
	bool		started;		/* is there a last key? */
	bool		backward;
	bool		ended;			/* ran off the end in the current direction */

	StringInfoData batch;
	int			offset;			/* of the next entry in batch */
	int			consumed;		/* of the entry before it */
	bool		have_batch;
	bool		more;			/* storage has more beyond the batch */
	uint32		batch_rows;
	StringInfoData fetched_to;	/* last key of the batch */
	StringInfoData resume;		/* not empty: where the rest begins (backward: ends) */
	Bytes		filter;			/* for storage (push_down.c), or without data */
	int			fetches;		/* batches one after the other */

	/* the batch after this one has been asked for, with these bounds */
	int64		ahead;			/* 0: it has not */
	Tau			ahead_tau;
	bool		ahead_backward;
	StringInfoData ahead_from;

	uint32		prefix;			/* bytes of rows that matter, AU_READ_ALL: all */
	bool		batch_cut;		/* the batch has no keys, but fetched_to */
	uint32		taken;			/* entries taken from it */
	uint32		bare_rows;		/* instead of entries: rows that are left of it */
	StringInfoData fetched_from;	/* and where it begins */

	WbRelation *wb;
	uint64		wb_flushes;		/* the batch is as of so many */
	uint64		wb_changes;		/* what wb_next was found in: see wb_state() */
	WbEntry    *wb_next;		/* NULL: none */
	bool		wb_valid;

	ReadCounts *counts;			/* where to count reads */
};

/* of scans that nobody asks about */
static ReadCounts uncounted;

static inline Bytes
as_bytes(StringInfo s)
{
	Bytes		b = {(const uint8 *) s->data, (uint32) s->len};

	return b;
}

KeyScan *
au_key_scan_begin(Bytes lo, Bytes hi, CommandId curcid)
{
	KeyScan    *s = palloc0(sizeof(KeyScan));
	uint64		relid;

	s->context = CurrentMemoryContext;
	initStringInfoExt(&s->lo, lo.len + 16);
	appendBinaryStringInfo(&s->lo, lo.data, lo.len);
	initStringInfoExt(&s->hi, hi.len + 16);
	appendBinaryStringInfo(&s->hi, hi.data, hi.len);
	memcpy(&relid, lo.data, 8);
	s->relid = pg_ntoh64(relid);
	s->curcid = curcid;
	s->wb = au_wb_relation(s->relid, false);
	s->wb_flushes = s->wb ? au_wb_flushes(s->wb) : 0;
	s->batch_rows = FIRST_BATCH_ROWS;
	s->last_offset = -1;
	s->counts = &uncounted;
	s->prefix = AU_READ_ALL;
	return s;
}

void
au_key_scan_count(KeyScan *scan, ReadCounts *counts)
{
	scan->counts = counts;
}

void
au_key_scan_hint(KeyScan *scan, int rows)
{
	scan->batch_rows = Max(1, Min(rows, MAX_BATCH_ROWS));
}

void
au_key_scan_filter(KeyScan *scan, Bytes filter)
{
	scan->filter = filter;
}

static void
forget_ahead(KeyScan *s)
{
	if (s->ahead != 0)
		au_read_ahead_cancel(s->ahead);
	s->ahead = 0;
}

void
au_key_scan_end(KeyScan *scan)
{
	forget_ahead(scan);
	if (scan->resume.data)
		pfree(scan->resume.data);
	if (scan->ahead_from.data)
		pfree(scan->ahead_from.data);
	pfree(scan->lo.data);
	pfree(scan->hi.data);
	if (scan->last.data)
		pfree(scan->last.data);
	if (scan->batch.data)
		pfree(scan->batch.data);
	if (scan->fetched_to.data)
		pfree(scan->fetched_to.data);
	if (scan->fetched_from.data)
		pfree(scan->fetched_from.data);
	pfree(scan);
}

static void
remember(KeyScan *s, StringInfo to, Bytes key)
{
	if (to->data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(s->context);

		initStringInfoExt(to, key.len + 16);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(to);
	appendBinaryStringInfo(to, key.data, key.len);
}

static inline Bytes
key_at(KeyScan *s, int offset)
{
	KeyEntry	e;

	(void) au_batch_entry(s->batch.data + offset, &e);
	return e.key;
}

/*
 * The key of the entry of a cut batch that was taken last: read the range again,
 * with keys.  The snapshot is the same, so the entries are.
 */
static void
recover_last_key(KeyScan *s)
{
	StringInfoData batch;
	Bytes		lo = as_bytes(&s->fetched_from);
	uint32		left = s->taken;
	StringInfoData from = {0};

	initStringInfo(&batch);
	remember(s, &s->last, lo);
	while (left > 0)
	{
		bool		more;

		resetStringInfo(&batch);
		resetStringInfo(&s->resume);
		au_read_range_where(lo, as_bytes(&s->hi), false, au_read_tau(s->relid, s->curcid), left, MAX_BATCH_BYTES,
							s->filter, &batch, &more, &s->resume);
		if (batch.len == 0 && more && s->resume.len > 0)
		{
			/* none of those passes the filter */
			remember(s, &from, as_bytes(&s->resume));
			lo = as_bytes(&from);
			continue;
		}
		if (batch.len == 0)
			elog(ERROR, "rows read before are not in storage");
		for (char *p = batch.data; p < batch.data + batch.len; left--)
		{
			KeyEntry	e;

			p = au_batch_entry(p, &e);
			remember(s, &s->last, e.key);
		}
		lo = as_bytes(&s->last);
		lo.len++;				/* the NUL of StringInfo */
	}
	resetStringInfo(&s->resume);
	if (from.data)
		pfree(from.data);
	pfree(batch.data);
}

/* The last key, kept apart from the batch. */
static Bytes
last_key(KeyScan *s)
{
	if (s->last_offset >= 0 && s->batch_cut)
	{
		s->last_offset = -1;
		recover_last_key(s);
	}
	else if (s->last_offset >= 0)
	{
		remember(s, &s->last, key_at(s, s->last_offset));
		s->last_offset = -1;
	}
	return as_bytes(&s->last);
}

void
au_key_scan_seek(KeyScan *scan, Bytes key)
{
	remember(scan, &scan->last, key);
	scan->last_offset = -1;
	scan->started = true;
	scan->ended = false;
	scan->have_batch = false;
	scan->wb_valid = false;
}

/* The batch goes on where storage says. */
static inline bool
resumes(KeyScan *s)
{
	return s->more && s->resume.len > 0;
}

/* Read the batch [lo, hi), which may have been asked for already. */
static void
read_batch(KeyScan *s, Bytes lo, Bytes hi, Tau tau)
{
	if (s->ahead != 0)
	{
		int64		ahead = s->ahead;

		if (s->ahead_tau == tau && s->ahead_backward == s->backward &&
			au_compare_bytes(s->backward ? hi : lo, as_bytes(&s->ahead_from)) == 0)
		{
			s->ahead = 0;
			if (au_read_ahead_take(ahead, &s->batch, &s->more, &s->resume))
				return;
			resetStringInfo(&s->batch);
			resetStringInfo(&s->resume);
		}
		else
			forget_ahead(s);
	}
	au_read_range_where(lo, hi, s->backward, tau, s->batch_rows, MAX_BATCH_BYTES, s->filter, &s->batch, &s->more,
						&s->resume);
}

/* Ask for the batch after this one, unless it is early: few rows may be wanted. */
static void
read_ahead(KeyScan *s, Tau tau)
{
	Bytes		from;

	if (!s->more || s->fetches < 2 || s->ahead != 0)
		return;
	if (s->resume.len > 0)
		remember(s, &s->ahead_from, as_bytes(&s->resume));
	else
	{
		KeyEntry	e = {0};
		char	   *p = s->batch.data;

		if (s->batch.len == 0)
			return;
		while (p < s->batch.data + s->batch.len)
			p = au_batch_entry(p, &e);
		remember(s, &s->ahead_from, e.key);
		if (!s->backward)
			appendStringInfoChar(&s->ahead_from, '\0');
	}
	from = as_bytes(&s->ahead_from);
	s->ahead_tau = tau;
	s->ahead_backward = s->backward;
	s->ahead = au_read_ahead(s->backward ? as_bytes(&s->lo) : from, s->backward ? from : as_bytes(&s->hi), s->backward,
							 tau, Min(s->batch_rows * 4, MAX_BATCH_ROWS), MAX_BATCH_BYTES, s->filter);
}

/* Fetch the next batch: beyond the previous one, or from the last key. */
static void
fetch(KeyScan *s)
{
	Bytes		lo = as_bytes(&s->lo);
	Bytes		hi = as_bytes(&s->hi);
	Bytes		from;
	bool		bounded = false;
	bool		exact = false;

	if (s->have_batch)
	{
		/* all of it was consumed */
		if (s->batch_cut && s->taken > 0)
		{
			remember(s, &s->last, as_bytes(&s->fetched_to));
			s->last_offset = -1;
		}
		else if (s->batch.len > 0)
		{
			(void) last_key(s);
			remember(s, &s->fetched_to, key_at(s, s->consumed));
		}
		exact = resumes(s);
		if (exact)
			remember(s, &s->fetched_to, as_bytes(&s->resume));
		from = as_bytes(&s->fetched_to);
		bounded = true;
		s->fetches++;
		s->batch_rows = Min(s->batch_rows * 4, MAX_BATCH_ROWS);
	}
	else
	{
		s->fetches = 1;
		if (s->started)
		{
			from = last_key(s);
			bounded = true;
		}
	}
	if (bounded)
	{
		if (s->backward)
			hi = from;
		else
		{
			/* strictly after `from`: its successor; the NUL of StringInfo */
			lo.data = from.data;
			lo.len = exact ? from.len : from.len + 1;
		}
	}
	if (s->batch.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(s->context);

		initStringInfo(&s->batch);
		initStringInfoExt(&s->resume, 64);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&s->resume);
	resetStringInfo(&s->batch);
	s->offset = 0;
	s->more = false;
	s->batch_cut = false;
	s->bare_rows = 0;
	if (au_compare_bytes(lo, hi) < 0)
	{
		Tau			tau = au_read_tau(s->relid, s->curcid);

		if (s->prefix != AU_READ_ALL && !s->backward && au_wb_is_empty())
		{
			remember(s, &s->fetched_from, lo);
			if (s->fetched_to.data == NULL)
				remember(s, &s->fetched_to, lo);
			s->batch_cut = au_read_range_cut(as_bytes(&s->fetched_from), hi, tau,
											 s->prefix > 0 ? Min(s->batch_rows, CUT_BATCH_ROWS) : s->batch_rows,
											 MAX_BATCH_BYTES,
											 s->prefix, s->filter, &s->batch, &s->more, &s->fetched_to, &s->bare_rows,
											 &s->resume);
			if (!s->batch_cut || s->prefix > 0)
				s->bare_rows = 0;
			s->taken = 0;
		}
		if (!s->batch_cut)
		{
			read_batch(s, lo, hi, tau);
			read_ahead(s, tau);
		}
		s->counts->trips++;
		s->counts->bytes += s->batch.len;
	}
	s->have_batch = true;
}

/* The next stored entry, not consumed; false at the end. */
static inline bool
peek_storage(KeyScan *s, KeyEntry *e, int *next_offset)
{
	while (!s->have_batch || s->offset >= s->batch.len)
	{
		if (s->have_batch && !s->more)
			return false;
		CHECK_FOR_INTERRUPTS();	/* a filter may let nothing through for long */
		fetch(s);
	}
	*next_offset = au_batch_entry(s->batch.data + s->offset, e) - s->batch.data;
	return true;
}

/*
 * The same for a scan that goes forward while the transaction has written
 * nothing, as most do: only storage is looked at.
 */
bool
au_key_scan_next_stored(KeyScan *s, KeyEntry *entry)
{
	int			next_offset;

	Assert(au_wb_is_empty() && !s->backward);
	if (s->ended)
		return false;
	if (s->prefix == 0 && (!s->have_batch || (s->batch_cut && s->bare_rows == 0 && s->more)))
		fetch(s);
	if (s->bare_rows > 0 && s->have_batch)
	{
		s->bare_rows--;
		s->last_offset = 0;
		s->taken++;
		s->started = true;
		s->counts->rows++;
		entry->value.data = NULL;
		return true;
	}
	if (!peek_storage(s, entry, &next_offset))
	{
		s->ended = true;
		return false;
	}
	s->last_offset = s->consumed = s->offset;
	s->offset = next_offset;
	s->taken++;
	s->started = true;
	s->counts->rows++;
	return true;
}

/*
 * Go over one more row of which only is known that it is there, as the one
 * before it; false: ask au_key_scan_next_stored().
 */
bool
au_key_scan_next_bare(KeyScan *s)
{
	if (s->bare_rows == 0 || !s->have_batch || s->ended || s->backward || !au_wb_is_empty())
		return false;
	s->bare_rows--;
	s->taken++;
	s->counts->rows++;
	return true;
}

void
au_key_scan_cut(KeyScan *s, uint32 prefix)
{
	s->prefix = prefix;
}

bool
au_key_scan_backward(const KeyScan *s)
{
	return s->backward;
}

/*
 * What makes wb_next void.  Versions written while a scan runs have a cmin at
 * or above its curcid, so they change nothing for it: only a flush, which
 * frees entries, does.  A scan that sees everything is moved by any change.
 */
static inline uint64
wb_state(KeyScan *s)
{
	return s->curcid == InvalidCommandId ? au_wb_changes(s->wb) : au_wb_flushes(s->wb);
}

/* The next own entry that this command sees (deletions included), or NULL. */
static WbEntry *
peek_buffer(KeyScan *s, WbVersion **version)
{
	if (s->wb == NULL)
	{
		s->wb = au_wb_relation(s->relid, false);
		if (s->wb == NULL)
			return NULL;
		s->wb_valid = false;
	}
	if (!s->wb_valid || s->wb_changes != wb_state(s))
	{
		Bytes		from;
		bool		equal = false;

		if (s->started)
			from = last_key(s);
		else
		{
			from = s->backward ? as_bytes(&s->hi) : as_bytes(&s->lo);
			equal = !s->backward;
		}
		s->wb_next = au_wb_seek(s->wb, from, s->backward, equal);
		s->wb_changes = wb_state(s);
		s->wb_valid = true;
	}
	while (s->wb_next)
	{
		WbEntry    *e = s->wb_next;
		int			c;

		c = s->backward ? au_compare_bytes(e->key, as_bytes(&s->lo)) < 0
			: au_compare_bytes(e->key, as_bytes(&s->hi)) >= 0;
		if (c)
			return NULL;
		*version = au_wb_visible(e, s->curcid);
		if (*version)
			return e;
		s->wb_next = au_wb_seek(s->wb, e->key, s->backward, false);
	}
	return NULL;
}

bool
au_key_scan_next(KeyScan *scan, ScanDirection dir, KeyEntry *entry)
{
	bool		backward = ScanDirectionIsBackward(dir);

	if (backward != scan->backward)
	{
		/* from behind the end the last row comes again */
		if (scan->ended)
			scan->started = false;
		else if (scan->started)
			(void) last_key(scan);
		scan->ended = false;
		scan->backward = backward;
		scan->have_batch = false;
		scan->wb_valid = false;
	}
	else if (scan->ended)
		return false;

	if (unlikely(scan->batch_cut && scan->have_batch))
	{
		/* the rest is read with keys and whole */
		if (scan->started)
			(void) last_key(scan);
		scan->have_batch = false;
	}
	if (scan->wb && unlikely(scan->wb_flushes != au_wb_flushes(scan->wb)))
	{
		if (scan->started)
			(void) last_key(scan);
		scan->have_batch = false;
		scan->wb_flushes = au_wb_flushes(scan->wb);
	}

	for (;;)
	{
		KeyEntry	stored;
		int			next_offset = 0;
		bool		have_stored = peek_storage(scan, &stored, &next_offset);
		WbVersion  *version = NULL;
		WbEntry    *own = peek_buffer(scan, &version);
		int			c;

		if (own == NULL)
		{
			if (!have_stored)
			{
				scan->ended = true;
				return false;
			}
			scan->last_offset = scan->consumed = scan->offset;
			scan->offset = next_offset;
			scan->counts->rows++;
			*entry = stored;
			scan->started = true;
			return true;
		}
		c = have_stored ? au_compare_bytes(own->key, stored.key) : -1;
		if (have_stored && backward && c != 0)
			c = -c;
		if (have_stored && c > 0)
		{
			scan->last_offset = scan->consumed = scan->offset;
			scan->offset = next_offset;
			scan->counts->rows++;
			*entry = stored;
			scan->started = true;
			return true;
		}
		if (have_stored && c == 0)
		{
			/* the own version hides it */
			scan->consumed = scan->offset;
			scan->offset = next_offset;
			scan->counts->rows++;
		}

		remember(scan, &scan->last, own->key);
		scan->last_offset = -1;
		scan->started = true;
		scan->wb_next = au_wb_seek(scan->wb, own->key, backward, false);
		if (version->kind == WB_DELETE)
			continue;
		entry->key = own->key;
		entry->value.data = WB_VALUE(version);
		entry->value.len = version->value_len;
		entry->version = version;
		entry->tau = 0;
		return true;
	}
}

/*
 * One key.  Reads of single keys are the most frequent of all: no scan, no
 * allocation.
 */
bool
au_key_lookup(Bytes key, CommandId curcid, KeyEntry *entry)
{
	static StringInfoData buf = {0};
	WbVersion  *v = au_wb_is_empty() ? NULL : au_wb_lookup(key, curcid);
	uint64		relid;

	if (v)
	{
		if (v->kind == WB_DELETE)
			return false;
		entry->key = v->entry->key;
		entry->value.data = WB_VALUE(v);
		entry->value.len = v->value_len;
		entry->version = v;
		entry->tau = 0;
		return true;
	}

	if (buf.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&buf);
		MemoryContextSwitchTo(old);
	}
	else if (buf.maxlen > 16 * 1024 * 1024)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		pfree(buf.data);
		initStringInfo(&buf);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&buf);
	memcpy(&relid, key.data, 8);
	if (!au_read_key(key, au_read_tau(pg_ntoh64(relid), curcid), &buf))
		return false;
	(void) au_batch_entry(buf.data, entry);
	return true;
}

CommandId
au_snapshot_curcid(Snapshot snapshot)
{
	if (snapshot == NULL || snapshot->snapshot_type != SNAPSHOT_MVCC)
		return InvalidCommandId;
	return snapshot->curcid;
}
