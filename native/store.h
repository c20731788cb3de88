/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The multi-version store of one storage node, on LMDB 1.0.
 *
 * Shared by the storage process (through native/module.c: one writer) and by
 * every PostgreSQL backend of the host (postgres/reader.c: readers).  It
 * depends on neither Python nor PostgreSQL.  Contents and batches are defined
 * in docs/formats.md, sections 4 and 5.
 *
 * What must hold:
 *	- A version of a key that a read at tau >= horizon needs is in the store.
 *	- Data, applied tau, journal position and statistics change in one LMDB
 *	  transaction (rule S1); applying a record twice changes nothing.
 *	- No function keeps an LMDB transaction open after it has returned, so no
 *	  slow caller pins old pages.
 *	- Nothing is synced except by store_sync (rule S2): after a crash of the
 *	  machine without a clean mark, opening for writing says STORE_UNCLEAN and
 *	  the owner rebuilds the store from snapshot and journal.
 *
 * When the neighbour fails: a full disk or map is STORE_FULL, the transaction
 * is undone and the store stays usable; a killed reader's slot is freed by
 * store_reader_check; a killed writer leaves the last committed state.
 *
 * Functions return a StoreStatus; store_error() has the text of this thread's
 * last failure.  Writing functions serialise themselves and may be called from
 * any thread.  A StoreReader belongs to one thread at a time.  Open a store
 * after fork(), once per process: POSIX locks end when any descriptor of the
 * lock file is closed, so a second open in one process is refused.
 *
 *-------------------------------------------------------------------------
 */
#ifndef AUSTRALIS_STORE_H
#define AUSTRALIS_STORE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum StoreStatus
{
	STORE_OK = 0,
	STORE_TOO_OLD,				/* tau is below the horizon */
	STORE_INTERRUPTED,			/* the interrupt flag was set during a scan */
	STORE_FULL,					/* disk or map full; nothing was changed */
	STORE_DAMAGED,				/* contents contradict themselves: rebuild */
	STORE_UNCLEAN,				/* machine stopped without sync: rebuild */
	STORE_WRONG_CLUSTER,		/* belongs to another cluster or format */
	STORE_ABSENT,				/* nothing there (yet) to read */
	STORE_BUSY,					/* another process writes; all readers in use */
	STORE_MALFORMED,			/* a message to apply, or a filter, is not well-formed */
	STORE_FAILED				/* anything else: see store_error() */
} StoreStatus;

typedef struct Store Store;
typedef struct StoreReader StoreReader;

typedef struct StoreBytes
{
	const void *data;
	size_t		len;
} StoreBytes;

/*
 * Where a batch goes.  reserve makes room for at least `need` bytes in total
 * (cap >= need, data kept) or returns false; it must not longjmp.  Leave it
 * NULL for memory from malloc, to be freed by store_buffer_free.
 */
typedef struct StoreBuffer
{
	uint8_t    *data;
	size_t		len;
	size_t		cap;
	bool		(*reserve) (struct StoreBuffer *buffer, size_t need);
	void	   *context;		/* for reserve */
} StoreBuffer;

extern void store_buffer_free(StoreBuffer *buffer);

/* An entry of a batch, in place (docs/formats.md, section 5). */
typedef struct StoreEntry
{
	uint32_t	key_len;
	uint32_t	value_len;
	int64_t		tau;
	/* value, padding to 8, key, padding to 8 */
} StoreEntry;

#define STORE_NO_VALUE		0xFFFFFFFFu
#define STORE_ALIGN(n)		(((size_t) (n) + 7) & ~(size_t) 7)
#define STORE_ENTRY_VALUE(e) ((const uint8_t *) ((e) + 1))
#define STORE_ENTRY_KEY(e) \
	(STORE_ENTRY_VALUE(e) + ((e)->value_len == STORE_NO_VALUE ? 0 : STORE_ALIGN((e)->value_len)))
#define STORE_ENTRY_SIZE(e) ((size_t) (STORE_ENTRY_KEY(e) - (const uint8_t *) (e)) + STORE_ALIGN((e)->key_len))

#define STORE_MAX_KEY		1960
#define STORE_MAP_SIZE		((size_t) 1 << 40)
#define STORE_MAX_READERS	4096

extern const char *store_error(void);

/* ------------------------------------------------------------ open, close */

/*
 * Open the store in directory `path` for writing; creates both.  map_size 0:
 * the default.  STORE_UNCLEAN, STORE_DAMAGED: nothing is opened, the caller
 * may delete the directory's files and start again.  restored: data.mdb has
 * just been put there from a copy (store_copy), whose own mark says nothing.
 */
extern StoreStatus store_open_writer(const char *path, const uint8_t cluster[16], size_t map_size, bool restored,
									 Store **store);

/*
 * Open for reading beside a writer.  The process needs write permission on
 * the lock file.  STORE_ABSENT until a writer has created the store.
 */
extern StoreStatus store_open_reader(const char *path, const uint8_t cluster[16], Store **store);

/* Closes all readers' slots too; StoreReaders of it must have been closed. */
extern void store_close(Store *store);

/*
 * Has the directory been given other files since we opened ours?  (The owner
 * rebuilt it: close and open again.  Two stat calls, about a microsecond.)
 */
extern bool store_replaced(Store *store);

/* ---------------------------------------------------------------- reading */

extern StoreStatus store_reader_open(Store *store, StoreReader **reader);
extern void store_reader_close(StoreReader *reader);

/* Scans look at *flag now and then and return STORE_INTERRUPTED; or NULL. */
extern void store_reader_interrupt(StoreReader *reader, const volatile sig_atomic_t *flag);

/* Append the version of one key as of tau, if there is one. */
extern StoreStatus store_get(StoreReader *reader, StoreBytes key, int64_t tau, StoreBuffer *batch, bool *found);

/* Append one entry per key, in the order given; missing ones are marked. */
extern StoreStatus store_get_many(StoreReader *reader, const StoreBytes *keys, size_t n, int64_t tau,
								  StoreBuffer *batch);

/*
 * Append entries of [lo, hi) as of tau, from lo upwards or from hi downwards,
 * until max_rows or max_bytes would be exceeded (but one row at least).  An
 * empty hi means no upper end.  *more = false: the range is exhausted; else
 * continue after (before) the last key of the batch.  On STORE_INTERRUPTED the
 * batch is as it was before.
 */
extern StoreStatus store_scan_batch(StoreReader *reader, StoreBytes lo, StoreBytes hi, bool backward, int64_t tau,
									size_t max_rows, size_t max_bytes, StoreBuffer *batch, bool *more);

/* What a scan wants of each entry: the begin of a row image, no key. */
typedef struct StoreCut
{
	size_t		prefix;			/* bytes of row images without NULLs; others come whole; 0: no entries at all */
	size_t		rows;			/* out: how many there are, or would be */
	size_t		last_len;		/* out: the key of the batch's last entry */
	uint8_t		last[STORE_MAX_KEY];
} StoreCut;

/* The same, forward, with entries cut short (their key_len is 0). */
extern StoreStatus store_scan_cut(StoreReader *reader, StoreBytes lo, StoreBytes hi, int64_t tau, size_t max_rows,
								  size_t max_bytes, StoreCut *cut, StoreBuffer *batch, bool *more);

/*
 * What a scan does with row images before it takes them (docs/formats.md,
 * section 5), and how many it may look at.
 */
typedef struct StoreWhere
{
	StoreBytes	program;
	size_t		max_examined;
	size_t		resume_len;		/* out, if there is more: the rest begins here (backward: ends) */
	uint8_t		resume[STORE_MAX_KEY + 1];
} StoreWhere;

/*
 * store_scan_batch() with a filter; max_rows and max_bytes are of what passes
 * it, so that *more may be true for an empty batch.  cut: as for
 * store_scan_cut(), forward only, or NULL.  STORE_MALFORMED: not a filter.
 */
extern StoreStatus store_scan_where(StoreReader *reader, StoreBytes lo, StoreBytes hi, bool backward, int64_t tau,
									size_t max_rows, size_t max_bytes, StoreWhere *where, StoreCut *cut,
									StoreBuffer *batch, bool *more);

/*
 * Append keys that divide [lo, hi) into about equal parts, in order, each as
 * its length (a byte; longer ones are cut) and its bytes: at most max.
 */
extern StoreStatus store_split(StoreReader *reader, StoreBytes lo, StoreBytes hi, size_t max, StoreBuffer *keys);

/* Rows and bytes (keys and values) of relation ids, as of the newest state. */
typedef struct StoreStats
{
	int64_t		rows;
	int64_t		bytes;
} StoreStats;

extern StoreStatus store_stats(StoreReader *reader, const uint64_t *relids, size_t n, StoreStats *stats);

/* A value of the meta database; *found = false if there is none. */
extern StoreStatus store_meta(StoreReader *reader, StoreBytes key, StoreBuffer *value, bool *found);

/* Newest applied tau, and the horizon, in one LMDB transaction. */
extern StoreStatus store_times(StoreReader *reader, int64_t *applied, int64_t *horizon);

/* ---------------------------------------------------------------- writing */

/* One journal record: its tau and its message body (Commit, Ingest, Drop). */
typedef struct StoreRecord
{
	int64_t		tau;
	StoreBytes	body;
} StoreRecord;

/* A meta record of the caller's, as of store_set_meta(). */
typedef struct StoreMeta
{
	StoreBytes	key;
	StoreBytes	value;
} StoreMeta;

/*
 * Apply records, in tau order, in one LMDB transaction.  Those at or below the
 * applied tau are skipped.  Commit messages keep history, Ingest messages do
 * not; Drop messages and `drops` of commits are the caller's to execute, when
 * the horizon allows it.  position.data NULL: keep the recorded one.  `meta`:
 * a meta record to set in the same transaction, or NULL.
 */
extern StoreStatus store_apply(Store *store, const StoreRecord *records, size_t n, StoreBytes position,
							   const StoreMeta *meta);

/*
 * Of records that are applied from now on, keep only keys in these ranges:
 * [lo, hi) in order, each bound as a big-endian u16 length and its bytes.
 * Nothing: everything.  Not for store_apply_feed().
 */
extern StoreStatus store_set_ranges(Store *store, StoreBytes packed);

/* What store_apply_feed() has applied; the rest is of the last record of it. */
typedef struct StoreFed
{
	size_t		records;
	size_t		bytes;
	int64_t		tau;
	uint64_t	sequence;
	uint64_t	generation;
	uint8_t		hash[16];
} StoreFed;

/*
 * feed.c: apply the plain commits at the front of what the feed has sent, as
 * one batch, with the position of the last.  One that writes to a relation in
 * `avoided` (store_message_avoids) is not plain.  records = 0: the first
 * message is something else, or not complete.
 */
extern StoreStatus store_apply_feed(Store *store, StoreBytes received, StoreBytes avoided, StoreFed *fed);

#define STORE_FEED_ENDED (-1)

typedef struct StoreFollowing
{
	int			socket;			/* with a time limit of its own (SO_RCVTIMEO) */
	uint8_t    *buffer;
	size_t		size;
	StoreBytes	avoided;
	int64_t    *applied;		/* the page's word */
	const uint8_t *watched;		/* return after a batch if not 0 */
	int64_t		until;			/* CLOCK_MONOTONIC, ns */

	/* results */
	StoreFed	fed;			/* all batches together, and the last record of them */
	size_t		batches;
	size_t		left;			/* bytes in the buffer that are the caller's to look at */
	int			error;			/* 0, an errno, or STORE_FEED_ENDED */
} StoreFollowing;

/*
 * feed.c: receive, apply and publish plain commits, batch by batch, until
 * something else comes, or it is time.
 */
extern void store_follow_feed(Store *store, StoreFollowing *following);

/* Newest applied tau as the writer knows it. */
extern int64_t store_applied(const Store *store);

/*
 * Undo everything above tau (rule T3); needs history back to tau.  Ingested
 * chunks stay: nothing that was committed names their storage ids.
 */
extern StoreStatus store_rollback(Store *store, int64_t tau);

/*
 * Raise the horizon and remove up to max_entries versions that no read at or
 * above it needs.  *removed < max_entries: done for this horizon.
 */
extern StoreStatus store_collect(Store *store, int64_t horizon, size_t max_entries, size_t *removed);

/* Remove up to max_entries entries of a relation id; *done when none is left. */
extern StoreStatus store_drop(Store *store, uint64_t relid, size_t max_entries, bool *done);

/*
 * Remove up to max_entries keys of [lo, hi) that this store holds no longer
 * (empty: no end); *done when none is left.  The caller refuses reads of them
 * and applies nothing to them.  A later rollback may bring some of them back.
 */
extern StoreStatus store_erase(Store *store, StoreBytes lo, StoreBytes hi, size_t max_entries, bool *done);

/*
 * All versions of the keys in [lo, hi) (empty: no end) that a read at or above
 * the horizon may need, as of one moment: up to about max_bytes of them, at
 * least one key; *next: where to go on, left empty when nothing is left.
 */
extern StoreStatus store_export(StoreReader *reader, StoreBytes lo, StoreBytes hi, size_t max_bytes,
								StoreBuffer *page, StoreBuffer *next, int64_t *applied, int64_t *horizon);

/*
 * Take over such a page, atomically with meta records.  The store must hold no
 * key of [lo, hi), and `applied`, the page's, must not be below this store's:
 * then applying what follows here leads to what the other store has.
 */
extern StoreStatus store_import(Store *store, StoreBytes data, StoreBytes lo, StoreBytes hi, int64_t applied,
								int64_t horizon, const StoreMeta *metas, size_t n);

extern StoreStatus store_set_meta(Store *store, StoreBytes key, StoreBytes value);

/* fsync; clean: also mark the store as complete on disk, until the next write */
extern StoreStatus store_sync(Store *store, bool clean);

/* Write a compact, synced copy of the newest state to a new file. */
extern StoreStatus store_copy(Store *store, const char *file);

/* Free reader slots of processes that are gone; *freed may be NULL. */
extern StoreStatus store_reader_check(Store *store, int *freed);

typedef struct StoreSize
{
	uint64_t	map_size;
	uint64_t	file_pages;		/* ever used */
	uint64_t	free_pages;		/* of those, reusable or about to be */
	uint64_t	page_size;
	uint64_t	main_entries;	/* tombstones included */
	uint64_t	hist_entries;
	uint64_t	readers;		/* slots in use */
} StoreSize;

extern StoreStatus store_size(Store *store, StoreSize *size);

/*
 * Append the relation ids (uint64_t) of a Commit's or Ingest's keys, in their
 * order; one that repeats without another in between counts once.
 */
extern StoreStatus store_message_relations(StoreBytes body, StoreBuffer *relids);

/*
 * Is the body a Commit or Ingest none of whose keys is of a relation in
 * relids (big-endian ids, sorted)?  Without any it is not looked at: true.
 */
extern bool store_message_avoids(StoreBytes body, StoreBytes relids);

#endif							/* AUSTRALIS_STORE_H */
