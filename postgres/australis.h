/*-------------------------------------------------------------------------
 *
 * australis.h
 *	  What the files of the query processor's extension share.
 *
 * The extension makes an unmodified PostgreSQL 18 a stateless query
 * processor: tables and indexes live in multi-version storage, a transaction
 * reads as of one time (tau_start), keeps its writes in a buffer and sends
 * them to the adjudicator at COMMIT.  One file, one concern:
 *
 *	  settings.c	 GUCs, _PG_init
 *	  shmem.c		 shared memory of this query processor, the shared page
 *	  transaction.c	 tau_start, transaction callbacks, the commit message
 *	  write_buffer.c versions written by this transaction, savepoints
 *	  tid_map.c		 TIDs as names of row versions
 *	  reader.c		 reads from storage: attached (LMDB) and socket drivers
 *	  push_down.c	 conditions and columns that storage looks at for a scan
 *	  key_scan.c	 storage merged with the write buffer, in key order
 *	  key_codec.c	 datums to order-preserving bytes
 *	  row_codec.c	 slots to row images and back
 *	  layout.c		 how a table's rows are keyed; rekey.c: another key later
 *	  table_am.c	 the table access method
 *	  index_am.c	 the index access method (index_scan.c, index_build.c,
 *					 index_cost.c); online_index.c: built under writes; reindex.c
 *	  messages.c	 msgpack, framing; client.c: sockets, waiting
 *	  ddl_capture.c, ddl_apply.c  catalog effects out and in
 *	  statistics.c	 what ANALYZE finds, on all query processors
 *	  sequence.c	 durable bounds of sequences
 *	  peers.c		 catalogs of the other query processors of this host
 *	  object_ids.c	 numbers that no other query processor gives out
 *	  utility.c		 ProcessUtility hook; planner.c: planner hooks;
 *					 schema_locks.c: schema changes wait for each other
 *	  session.c		 taking over a client's socket from the router
 *	  explain.c		 storage reads in EXPLAIN; size_functions.c: relation sizes
 *
 * docs/formats.md defines every byte that leaves this process.
 *
 *-------------------------------------------------------------------------
 */
#ifndef AUSTRALIS_H
#define AUSTRALIS_H

#include "postgres.h"

#include "access/relscan.h"
#include "access/tableam.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "nodes/lockoptions.h"
#include "nodes/nodes.h"
#include "storage/itemptr.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

/* ------------------------------------------------------------------ keys */

typedef uint64 RelId;			/* database oid << 32 | relfilenumber */
typedef int64 Tau;				/* nanoseconds since the Unix epoch */

#define AU_TAU_EMPTY	((Tau) 1)	/* before every commit */

#define AU_SYS_DDL		((RelId) 1)
#define AU_SYS_SEQUENCE ((RelId) 2)
#define AU_SYS_LAYOUT	((RelId) 3)
#define AU_SYS_CLUSTER	((RelId) 4)
#define AU_SYS_STATISTICS ((RelId) 5)

#define AU_PROCESSORS_MAX	16	/* query processors of one host */

#define AU_MAX_KEY		1960	/* bytes, relation id included */
#define AU_HIDDEN_KEY	16

static inline RelId
au_relid(Relation rel)
{
	return ((RelId) rel->rd_locator.dbOid << 32) | rel->rd_locator.relNumber;
}

/* database oid << 32 | table oid: what rule A5 calls a relation */
static inline uint64
au_relation_name(Relation rel)
{
	return ((uint64) rel->rd_locator.dbOid << 32) | RelationGetRelid(rel);
}

/* Bytes somewhere, not owned. */
typedef struct Bytes
{
	const uint8 *data;
	uint32		len;
} Bytes;

static inline int
au_compare_bytes(Bytes a, Bytes b)
{
	int			c = memcmp(a.data, b.data, Min(a.len, b.len));

	return c != 0 ? c : (a.len > b.len) - (a.len < b.len);
}

/* ------------------------------------------------------------- key_codec.c */

typedef struct KeyColumn
{
	Oid			type;			/* type whose encoding is used (opclass input
								 * type, or the column's own when that is
								 * polymorphic); domains looked through */
	int			codec;			/* private to key_codec.c */
	bool		desc;
	bool		nulls_first;
} KeyColumn;

/* Is there an order-preserving encoding for this type? */
extern bool au_key_type_supported(Oid type);

/* Set up a column; ereport 0A000 if the type has no encoding. */
extern void au_key_column_init(KeyColumn *col, Oid type, bool desc, bool nulls_first);

/* Append a relation id (8 bytes BE). */
extern void au_key_append_relid(StringInfo buf, RelId relid);

/* Append one column (marker byte and value). */
extern void au_key_append(StringInfo buf, const KeyColumn *col, Datum value, bool isnull);

/*
 * Append a search value that may have another type of the same operator
 * family (e.g. int8 against an int4 column).  Returns false, appending
 * nothing, if there is no exact encoding: the caller must widen its range and
 * recheck.
 */
extern bool au_key_append_foreign(StringInfo buf, const KeyColumn *col, Datum value, Oid valuetype);

/*
 * Make buf the least key greater than every key that has buf as a prefix;
 * false if there is none (all 0xFF).
 */
extern bool au_key_prefix_successor(StringInfo buf);

/* ereport 54000 if too long */
extern void au_key_check_length(StringInfo buf, Relation rel);

/* ------------------------------------------------------------- row_codec.c */

/* Slot ops of our tables: a minimal tuple with system attributes. */
extern TupleTableSlotOps TTSOpsAustralis;
extern void au_row_init(void);

#define AU_BATCH_HEADER 16		/* in front of a value that was read (docs/formats.md, section 5) */

typedef struct AustralisTupleTableSlot
{
	MinimalTupleTableSlot base;
	uint32		xmin;			/* shown to users (rule Q7) */
	uint32		xmax;
	bool		own;			/* written by the current transaction */
	bool		show_own_xid;	/* core asks whether the row is ours: show the
								 * real xid (see au_tuple_lock) */
	char	   *buffer;			/* reused from row to row, in tts_mcxt */
	Size		capacity;

	/*
	 * Nobody looks at more than the first read_natts attributes, which are the
	 * first read_bytes of a row image without NULLs (planner.c).  0: not even at
	 * system attributes; a row is only counted.
	 */
	int			read_natts;
	uint32		read_bytes;

	/* the filter accepts no row with a key outside of [only_from, only_to); empty: not known (scan_hints.c) */
	Bytes		only_from;
	Bytes		only_to;

	const struct PushDown *push;	/* what storage may do, or NULL */
} AustralisTupleTableSlot;

#define AU_READ_ALL PG_UINT32_MAX

/* The bytes of a row image that hold the first natts attributes, or AU_READ_ALL. */
extern uint32 au_row_prefix(TupleDesc desc, int natts);

/* Append the row image of values/isnull to buf (detoasted, uncompressed). */
extern void au_row_encode(StringInfo buf, TupleDesc desc, const Datum *values, const bool *isnull, uint32 xmin);

/* Row image -> palloc'd minimal tuple in the current context. */
extern MinimalTuple au_row_to_minimal(Bytes image, uint32 *xmin);

/* Store a row image into a slot (any ops; fast for ours). Copies. */
extern void au_row_store(Bytes image, TupleTableSlot *slot, bool own);

/*
 * The same for an entry of a batch, whose header and image header become the
 * tuple's: the slot shows the batch, which must stay until it shows something
 * else, and the entry is none any more but for its key.
 */
extern void au_row_store_in_place(Bytes image, TupleTableSlot *slot);

/* A row that nobody looks at. */
extern void au_row_store_blank(TupleTableSlot *slot);

/* ---------------------------------------------------------- write_buffer.c */

typedef enum WbKind
{
	WB_PUT,						/* key now has value */
	WB_DELETE,					/* key is gone */
	WB_LOCK,					/* row lock: no version, only a mode */
} WbKind;

/* One version of one key, written by this transaction. */
typedef struct WbVersion
{
	struct WbVersion *older;	/* previous version of this key */
	struct WbVersion *written_before;	/* undo list, newest first */
	struct WbEntry *entry;
	CommandId	cmin;
	int			nest_level;		/* GetCurrentTransactionNestLevel() */
	uint8		kind;			/* WbKind */
	uint8		mode;			/* LockTupleMode */
	bool		blind;			/* the adjudicator neither checks nor records */
	bool		replaces;		/* storage has an older version of the key */
	bool		was_locked;		/* a row lock lies below it, or it was locked */
	bool		moved;			/* a deletion: the row went on under another key */
	uint32		value_len;
	/* the value follows, MAXALIGNed; if moved, a pointer to the new version */
} WbVersion;

#define WB_VALUE(v) ((const uint8 *) (v) + MAXALIGN(sizeof(WbVersion)))
#define WB_MOVED_TO(v) (*(WbVersion *const *) WB_VALUE(v))

/* One key this transaction has written or locked. */
typedef struct WbEntry
{
	struct WbRelation *relation;
	WbVersion  *newest;
	Bytes		key;
} WbEntry;

/* All keys of one relation id, in order. */
typedef struct WbRelation WbRelation;

/*
 * Write a version visible to commands after cid.  mode: the row lock mode
 * that the adjudicator checks and records; blind: neither (secondary index
 * entries that a row decides).
 */
extern WbVersion *au_wb_put(Bytes key, Bytes value, CommandId cid, LockTupleMode mode, bool blind);
extern WbVersion *au_wb_delete(Bytes key, CommandId cid, LockTupleMode mode, bool blind);

/* The row of this key was put under another one: version, of the same command. */
extern void au_wb_move(Bytes key, WbVersion *version);

/* Record a row lock (FOR ..., foreign keys, unique guards). */
extern void au_wb_lock(Bytes key, LockTupleMode mode);

/* Newest version of key visible to curcid (cmin < curcid), or NULL. */
extern WbVersion *au_wb_lookup(Bytes key, CommandId curcid);

/* Anything at all written for this relation id? */
extern bool au_wb_has_relation(RelId relid);

/* The relation's buffer or NULL; changes counts every write and flush. */
extern WbRelation *au_wb_relation(RelId relid, bool create);
extern uint64 au_wb_changes(WbRelation *relation);

/*
 * Counts how often the relation's versions were freed (flush): pointers taken
 * before are void, and what they pointed to is in storage.
 */
extern uint64 au_wb_generation(RelId relid);
extern uint64 au_wb_flushes(const WbRelation *relation);

/* First entry at/after (forward) or at/before (backward) key. */
extern WbEntry *au_wb_seek(WbRelation *relation, Bytes key, bool backward, bool equal);

/* Newest version of an entry visible to curcid, locks skipped; or NULL. */
extern WbVersion *au_wb_visible(WbEntry *entry, CommandId curcid);

/* In-order walk over everything, for the commit message and for flushing. */
typedef void (*WbVisitor) (WbEntry *entry, void *arg);
extern void au_wb_walk(WbVisitor visitor, void *arg);
extern void au_wb_walk_relation(WbRelation *relation, WbVisitor visitor, void *arg);

/* Forget a relation's entries; memory goes back (after a flush). */
extern void au_wb_clear_relation(WbRelation *relation);
extern Size au_wb_relation_bytes(WbRelation *relation);

/* Add what this transaction has loaded to storage's figures, for estimates. */
extern void au_wb_estimate(RelId relid, int64 *rows, int64 *bytes);

/*
 * Flushing it was in vain: au_wb_flush_due() says no until it has doubled, or
 * the least running command is another one than running (unless invalid).
 */
extern void au_wb_flush_in_vain(WbRelation *relation, CommandId running);
extern bool au_wb_flush_due(const WbRelation *relation, Size bytes);
extern bool au_wb_is_empty(void);
extern void au_wb_subxact_abort(int nest_level);
extern void au_wb_subxact_commit(int nest_level);
extern void au_wb_reset(void);

/* --------------------------------------------------------------- tid_map.c */

/* What a TID stands for. */
typedef struct TidTarget
{
	Bytes		key;
	WbVersion  *version;		/* NULL: the version in storage as of tau_start */
} TidTarget;

/*
 * The TID of a row version.  keep = false may use a ring whose entries are
 * forgotten after some thousands of further rows.
 */
extern void au_tid_assign(ItemPointer tid, Bytes key, WbVersion *version, bool keep);

/* Look a TID up; false if unknown (or forgotten). */
extern bool au_tid_lookup(ItemPointer tid, TidTarget *target);

extern void au_tid_reset(void);

/* Does the running executor need TIDs to stay valid (ModifyTable, row marks)? */
extern bool au_tid_keep;

/* May it look at ctid (also by a function's query), so that one row version must have one TID? */
extern bool au_tid_compared;

/* Does nobody ever ask for the TIDs of its sequential scans? */
extern bool au_tid_unnamed;

/* Do rows inserted by it need lasting TIDs (MERGE, writable CTEs, RETURNING)? */
extern bool au_tid_keep_inserted;

/*
 * The least curcid of the running executors' snapshots that is above `above`;
 * InvalidCommandId if there is none.
 */
extern CommandId au_next_running_command(int64 above);

/* -------------------------------------------------------------- key_scan.c */

typedef struct KeyEntry
{
	Bytes		key;			/* valid until the next call on this scan */
	Bytes		value;			/* row image or index entry */
	WbVersion  *version;		/* NULL when it comes from storage */
	Tau			tau;			/* of a storage version */
} KeyEntry;

/*
 * The entry of a batch of storage that begins at p (docs/formats.md, section
 * 5); returns where the next one begins.
 */
static inline char *
au_batch_entry(char *p, KeyEntry *entry)
{
	memcpy(&entry->key.len, p, 4);
	memcpy(&entry->value.len, p + 4, 4);
	memcpy(&entry->tau, p + 8, 8);
	entry->value.data = (uint8 *) p + AU_BATCH_HEADER;
	entry->key.data = entry->value.data + TYPEALIGN(8, entry->value.len);
	entry->version = NULL;
	return (char *) entry->key.data + TYPEALIGN(8, entry->key.len);
}

typedef struct KeyScan KeyScan;

/*
 * Scan [lo, hi) as of tau_start and curcid.  Key bytes are copied.  Pass
 * InvalidCommandId as curcid to see everything this transaction wrote
 * (SnapshotDirty, SnapshotSelf, SnapshotAny).
 */
extern KeyScan *au_key_scan_begin(Bytes lo, Bytes hi, CommandId curcid);
extern bool au_key_scan_next(KeyScan *scan, ScanDirection dir, KeyEntry *entry);
extern bool au_key_scan_next_stored(KeyScan *scan, KeyEntry *entry);

/*
 * Of the rows that au_key_scan_next_stored() gives only so many bytes matter; with
 * 0 an entry's value may be NULL.
 */
extern bool au_key_scan_next_bare(KeyScan *scan);
extern void au_key_scan_cut(KeyScan *scan, uint32 prefix);

/* What of stored rows is wanted (push_down.c): bytes that outlive the scan. */
extern void au_key_scan_filter(KeyScan *scan, Bytes filter);
extern bool au_key_scan_backward(const KeyScan *scan);

/* Continue after (forward) or before (backward) key; key itself excluded. */
extern void au_key_scan_seek(KeyScan *scan, Bytes key);

/* Hint: the caller wants about this many rows (LIMIT, point look-ups). */
extern void au_key_scan_hint(KeyScan *scan, int rows);
extern void au_key_scan_end(KeyScan *scan);

/* One key.  The value is valid until the next look-up of this backend. */
extern bool au_key_lookup(Bytes key, CommandId curcid, KeyEntry *entry);

/* What was read from storage, for EXPLAIN. */
typedef struct ReadCounts
{
	uint64		trips;
	uint64		rows;
	uint64		bytes;			/* keys and values, as storage returns them */
} ReadCounts;

/* Count this scan's reads there. */
extern void au_key_scan_count(KeyScan *scan, ReadCounts *counts);

/* What a scan of ours has read so far, rescans included (explain.c) */
extern void au_table_scan_reads(TableScanDesc scan, ReadCounts *total);
extern void au_index_scan_reads(struct IndexScanDescData *scan, ReadCounts *total);
extern void au_index_fetch_reads(struct IndexFetchTableData *fetch, ReadCounts *total);

/* Add what was read to the relation's counters of pg_statio. */
extern void au_count_pages(Relation rel, const ReadCounts *reads, uint64 *counted_bytes);

/* curcid to use under this PostgreSQL snapshot */
extern CommandId au_snapshot_curcid(Snapshot snapshot);

/* ----------------------------------------------------------- scan_hints.c */

struct QueryDesc;
extern void au_hint_scans(struct QueryDesc *query, bool attributes);

/* --------------------------------------------------------------- layout.c */

typedef struct TableLayout
{
	bool		hidden;			/* hidden 16-byte key */
	bool		decided;		/* false: no row was ever written */
	bool		has_primary;	/* the key's index still exists */
	uint64		valid_in;		/* 0, or the only transaction serial it holds in */
	Oid			index_oid;		/* the primary key that organises the rows */
	RelFileNumber index_number;
	int			ncolumns;
	AttrNumber	attnums[INDEX_MAX_KEYS];
	KeyColumn	columns[INDEX_MAX_KEYS];
} TableLayout;

/* Cached in rd_amcache; valid until the next relcache invalidation. */
extern const TableLayout *au_table_layout(Relation rel);

/* Write the layout record if no row was ever written (rule: before the row). */
extern const TableLayout *au_table_layout_decide(Relation rel);

/* Is this index the key of its table's storage (no entries of its own)? */
extern bool au_index_is_primary(Relation heap, Relation index);

/* The row key (with relation id) of a slot of an organised table. */
extern void au_table_key(StringInfo buf, Relation rel, const TableLayout *layout, TupleTableSlot *slot);

/* Is this relation stored by us (our table AM or our index AM, permanent)? */
extern bool au_is_our_table(Relation rel);
extern bool au_is_our_index(Relation rel);

/* fixed oids of our pg_am rows (postgres/bootstrap.sql) */
#define AU_TABLE_AM_OID ((Oid) 9002)
#define AU_INDEX_AM_OID ((Oid) 9403)

/* Rows keyed otherwise than the table's primary key asks for? */
extern bool au_layout_wants_rekey(Relation rel);

/* The index that is the table got another identity. */
extern void au_layout_follow(Relation heap, Relation index);

/* rekey.c: rewrite relid (and its partitions) by a primary key just added */
extern void au_rekey_if_needed(Oid relid);
typedef struct RekeyNotes
{
	LocalTransactionId lxid;
	List	   *lost_column;	/* relations */
	List	   *new_indexes;
} RekeyNotes;

extern RekeyNotes au_rekey_begin_statement(void);
extern void au_rekey_end_statement(RekeyNotes outer);
extern void au_rekey_note_dropped_column(Oid relid);
extern void au_rekey_note_new_index(Oid index);
extern void au_rekey_after_statement(Node *stmt);
extern void au_rekey_announce(Node *stmt);
extern bool au_rekey_replaces_build(Relation heap, Relation index);
extern double au_copy_by_key(Relation old, Relation fresh);

/* ------------------------------------------------- index entries: index_am.c */

/*
 * Key (and value, if value != NULL) of an index entry for a row whose key is
 * rowkey (with relation id).  guard != NULL receives the guard key of a
 * deferrable unique index (see docs/formats.md), else is left empty.
 */
extern void au_index_entry(Relation index, const Datum *values, const bool *isnull,
						   Bytes rowkey, StringInfo key, StringInfo value);

/* Delete all entries of the old row version (called by the table AM). */
extern bool au_index_incomplete(Relation heap);

/* statistics.c: ANALYZE begins to read this table */
extern void au_statistics_note(Relation rel);

extern void au_index_delete_entries(Relation heap, TupleTableSlot *oldslot, Bytes rowkey, CommandId cid);

/* Row key inside an index entry's value (without relation id). */
extern Bytes au_index_value_rowkey(Bytes value);
extern Bytes au_index_value_image(Bytes value);

/*
 * Hand-over from an index scan to index_fetch_tuple: the row that the index
 * scan already holds for this TID.
 */
typedef struct FetchedRow
{
	ItemPointerData tid;
	bool		valid;
	KeyEntry	entry;
} FetchedRow;
extern FetchedRow au_fetched_row;

/*
 * table_am.c: offset of the TID of a row that was not written because its key
 * was there; whoever is asked to index it calls this, which raises the error.
 */
#define AU_REFUSED_OFFSET	PG_UINT16_MAX
pg_noreturn extern void au_report_refused(Relation rel);

/* ------------------------------------------------------------ transaction.c */

/* tau_start of this transaction, taken now if there is none yet. */
extern Tau	au_tau_start(void);
extern void au_newest_snapshot(Tau *acked, int64 *ddl);
extern bool au_has_tau_start(void);

/* Read as of another running transaction's time (exported snapshots). */
extern void au_adopt_tau_start(Tau tau);

/* 16 bytes, new per transaction; xmin derives from it */
extern const uint8 *au_txid(void);
extern uint32 au_xmin(void);

/* Changes with every transaction and every rolled back savepoint. */
extern uint64 au_transaction_serial(void);

/* Rule A5: this transaction writes or locks rows of rel. */
extern void au_note_relation(Relation rel);

/* Rule Q3: 40001/OC001 if rel changed after tau_start. */
extern void au_check_relation_not_ahead(Relation rel);
/* The same for a partitioned table, which has no rows of its own. */
extern void au_check_partitions_not_ahead(Oid relid);

/* SERIALIZABLE: this transaction read the relation. */
extern void au_note_relation_read(Oid relid);

/* SERIALIZABLE: remember a range that was read. */
extern void au_note_read_range(Bytes lo, Bytes hi);
extern void au_note_read_key(Bytes key);

/* A storage id that this transaction's commit makes garbage (DROP DATABASE). */
extern void au_note_storage_dropped(RelId relid);

/*
 * May rows of this storage id be ingested without the adjudicator (rule Q8)?
 * True if the id was created in the current (sub)transaction.
 */
extern bool au_storage_unpublished(Relation rel);

/* As of which time storage is read for this relation id and command. */
extern Tau	au_read_tau(RelId relid, CommandId curcid);

/* Was anything ingested for this storage id in this transaction? */
extern bool au_has_ingested(RelId relid);
extern bool au_beyond_ingested(RelId relid, Bytes key);

/* May parallel workers see what this transaction sees?  They read storage as of tau_start, and nothing else. */
extern bool au_workers_see_all(void);

/* Ingest what is buffered for an unpublished relation when it is much. */
extern void au_flush_if_large(Relation rel);
extern void au_flush_relation(Relation rel);

/*
 * Send rows of an unpublished storage id (docs/formats.md, Ingest).  Durable,
 * and visible to later reads of this transaction, when those happen.
 */
typedef struct IngestEntry
{
	Bytes		key;
	Bytes		value;			/* data NULL: the key goes */
} IngestEntry;
extern void au_ingest(const IngestEntry *entries, int n);

/* Commit only these key/values, at once, outside the current transaction. */
extern void au_commit_autonomous(Bytes key, Bytes value);
extern bool au_commit_compare_and_set(Bytes key, Bytes value, Tau read_at);

/* mode bytes of a commit, docs/formats.md section 6; bits 0-1 are the lock mode */
#define AU_MODE_BLIND		0x04
#define AU_MODE_VALIDATE	0x20

typedef struct BatchEntry
{
	Bytes		key;
	Bytes		value;			/* without data: none */
	uint8		mode;
} BatchEntry;

typedef enum AuBatchOutcome
{
	AU_BATCH_COMMITTED,
	AU_BATCH_CONFLICT,			/* a key was written or locked after the start */
	AU_BATCH_SCHEMA,			/* the relation changed after it */
} AuBatchOutcome;

extern AuBatchOutcome au_commit_batch(const BatchEntry *entries, int n, uint64 relation, Tau start);
extern Tau	au_renew_tau_start(void);

/* ------------------------------------------------------- messages.c, client.c */

/* msgpack writers */
extern void au_mp_array(StringInfo buf, uint32 n);
extern void au_mp_int(StringInfo buf, int64 v);
extern void au_mp_nil(StringInfo buf);
extern void au_mp_bool(StringInfo buf, bool v);
extern void au_mp_bin(StringInfo buf, const void *data, uint32 len);
extern void au_mp_str(StringInfo buf, const char *s);

/* msgpack reader; every function ereports 08P01 on malformed input */
typedef struct MpReader
{
	const uint8 *p;
	const uint8 *end;
} MpReader;
extern uint32 au_mp_read_array(MpReader *r);
extern int64 au_mp_read_int(MpReader *r);
extern bool au_mp_read_nil(MpReader *r);	/* consumes nil, else false */
extern bool au_mp_read_bool(MpReader *r);
extern Bytes au_mp_read_bin(MpReader *r);	/* bin or str */
extern void au_mp_skip(MpReader *r);

/* ereport what an Error message says */
extern void au_check_error(int service, const MpReader *reply);

/* Connections to a service; reconnected on demand, one per backend. */
typedef enum AuService
{
	AU_COMMIT_SERVICE,
	AU_STORAGE_SERVICE,
	AU_NUM_SERVICES
} AuService;

/*
 * Send one framed message (buf without the length prefix) and wait for one
 * reply, honouring interrupts unless they are held.  *reply is valid until
 * the next call.  Returns false if the connection failed (nothing is known of
 * the request's fate); ereports on Error messages.
 */
extern bool au_call(AuService service, StringInfo request, MpReader *reply, int timeout_ms);
extern bool au_send(AuService service, StringInfo request);

/* au_send that connects within the time and raises nothing. */
extern bool au_send_quietly(AuService service, StringInfo request, int timeout_ms);

/* Another request behind those that wait for answers. */
extern bool au_send_more(AuService service, StringInfo request);

/* A message without an answer, on an existing connection; raises nothing. */
extern void au_send_unanswered(AuService service, StringInfo message);

extern void au_connect(AuService service);

/* The same in steps, for the commit conversation (rule Q1). */
typedef enum AuReceive
{
	AU_RECEIVED,
	AU_LOST,					/* connection failed */
	AU_TIMED_OUT,
	AU_CANCEL,					/* a cancel or termination is pending */
} AuReceive;
extern AuReceive au_receive(AuService service, MpReader *reply, int timeout_ms, bool watch_cancel);
extern int64 au_service_generation(AuService service);

/* Changes with every new connection. */
extern uint64 au_connection_number(AuService service);
extern void au_disconnect(AuService service);

/* --------------------------------------------------------------- push_down.c */

/* What storage may do for a scan.  Lives as long as the executor. */
typedef struct PushDown
{
	struct EState *estate;
	struct List *qual;
	Index		varno;
	TupleDesc	desc;
	bool		project;		/* only these columns (attribute numbers) are looked at */
	struct Bitmapset *wanted;
	int			limit;			/* rows that will be asked for if the filter is whole; 0: unknown */
} PushDown;

extern bool au_push_down;
extern Bytes au_push_program(const PushDown *push, bool *whole);
extern const PushDown *au_index_scan_push(const void *keys, Relation heap);	/* scan_hints.c */

/* ------------------------------------------------------------------ reader.c */

/*
 * filter: a program for storage (push_down.c), or without data.  resume: empty,
 * or where the rest begins (ends, if backward), if there is more.
 */

/*
 * Read up to max_rows/max_bytes entries of [lo, hi) as of tau into buf as a
 * batch (docs/formats.md §5).  *more = false when the range is exhausted.
 */
extern void au_read_range(Bytes lo, Bytes hi, bool backward, Tau tau,
						  uint32 max_rows, uint32 max_bytes, StringInfo buf, bool *more);
extern void au_read_range_where(Bytes lo, Bytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes,
								Bytes filter, StringInfo buf, bool *more, StringInfo resume);

/*
 * Ask for it now and take it later, if the driver can: 0 if not.  Taking: false if
 * it was lost, then read.  What a subtransaction asked for is forgotten when it aborts.
 */
extern int64 au_read_ahead(Bytes lo, Bytes hi, bool backward, Tau tau, uint32 max_rows, uint32 max_bytes,
						   Bytes filter);
extern bool au_read_ahead_take(int64 id, StringInfo buf, bool *more, StringInfo resume);
extern void au_read_ahead_cancel(int64 id);
extern void au_read_ahead_forget(int nest_level);

/* Read one key into buf (batch of one entry, or empty); true if found. */
extern void au_read_split(Bytes lo, Bytes hi, uint32 max, StringInfo keys);
extern bool au_read_range_cut(Bytes lo, Bytes hi, Tau tau, uint32 max_rows, uint32 max_bytes, uint32 prefix,
							  Bytes filter, StringInfo buf, bool *more, StringInfo last, uint32 *rows,
							  StringInfo resume);
extern bool au_read_key(Bytes key, Tau tau, StringInfo buf);

/* Read n keys in one trip into buf: found[i] is where the entry of keys[i] begins, or -1. */
extern void au_read_keys(const Bytes *keys, int n, Tau tau, StringInfo buf, int *found);

/* rows and bytes of a storage id, as of the newest applied time */
extern void au_read_stats(RelId relid, int64 *rows, int64 *bytes);
extern void au_read_current_stats(RelId relid, int64 *rows, int64 *bytes);

/* --------------------------------------------- ddl_capture.c, ddl_apply.c */

/*
 * Called in PRE_COMMIT: if this transaction changed catalogs, append the DDL
 * record to buf and fill the lists (of uint64 *, palloc'd) of changed
 * relations and of those whose rows it depends on.  False if nothing changed.
 */
extern bool au_ddl_collect(StringInfo record, List **changed, List **depends);

/* A subtransaction ended at this nest level. */
extern void au_ddl_subxact_end(int level, bool commit);

/* n of the newest DDL record applied in this query processor */
extern int64 au_ddl_applied(void);

/* Write n into the local table of applied records, in this transaction. */
extern void au_ddl_mark_applied(int64 n);

/* Wait until the local catalog contains record n (rule Q5). */
extern void au_ddl_wait_applied(int64 n);

/* After the local commit of record n at tau: publish to other backends. */
extern void au_ddl_committed(int64 n, Tau tau, List *changed);

/* tau of the last change of a relation known here; 0 if long ago */
extern Tau	au_ddl_last_change(uint64 relation_name);

/* No relation changed after this; one load, for the usual case. */
extern Tau	au_ddl_newest_change(void);
extern Size au_ddl_shmem_size(void);
extern void au_ddl_shmem_init(void);

extern Size au_peers_shmem_size(void);
extern void au_peers_shmem_init(void);
extern Size au_statistics_shmem_size(void);
extern void au_statistics_shmem_init(void);
extern void au_statistics_init(void);
extern void au_peers_init(void);
extern void au_ddl_give_way(void);	/* 40001 if this transaction bars the log */
extern void au_ddl_register(void);	/* background worker, from _PG_init */

/* --------------------------------------------------------------- sequence.c */

/* held_locks.c: relations of this database locked in mode; doubles possible */
extern List *au_relations_locked(int mode);

/* Called in PRE_COMMIT and at the end of read-only transactions. */
extern void au_sequences_before_commit(void);

/* Raise local sequences to their durable bounds (after a rebuild or crash). */
extern void au_sequences_restore(void);

/* ----------------------------------------------- hooks installed by _PG_init */
extern void au_utility_init(void);
extern void au_planner_init(void);
extern void au_index_init(void);	/* index_cost.c */
extern void au_explain_init(void);
extern void au_session_init(void);
extern void au_shmem_init(void);
extern void au_transaction_init(void);

/* ----------------------------------------------------------------- shmem.c */

/* The shared page (docs/formats.md §7). */
typedef enum PageWord
{
	PAGE_MAGIC = 0,
	PAGE_GENERATION = 3,
	PAGE_SEQLOCK = 4,
	PAGE_ACKED = 5,
	PAGE_DDL = 6,
	PAGE_APPLIED = 7,
	PAGE_HORIZON = 8,
	PAGE_COMMIT_PID = 9,
	PAGE_STORAGE_PID = 10,
	PAGE_STORE = 11,			/* changes when the store's files are replaced */
	PAGE_SETVALS = 13,			/* counts the setvals of this host's query processors */
	PAGE_GATEWAY = 14,			/* 1: others commit too, so a gateway tells what is the newest time */
	PAGE_PROCESSORS = 64,		/* four words each: peers.c */
	PAGE_SLOTS = 512
} PageWord;

#define PAGE_DISK_FULL	(-1)	/* PAGE_STORAGE_PID: cannot apply before there is space */

extern bool au_page_there(void);
extern bool au_behind_gateway(void);
extern int64 au_page_read(PageWord word);
extern void au_page_wait(PageWord word, int64 seen, int ms);
extern void au_page_write(PageWord word, int64 value);	/* words of this query processor only */
extern void au_page_add(PageWord word, int64 value);
extern void au_page_wake(PageWord word);
extern const uint8 *au_page_cluster(void);	/* 16 bytes */
extern void au_page_snapshot(Tau *acked, int64 *ddl);	/* consistent pair */
extern void au_page_set_slot(Tau tau_start);
extern Tau	au_page_slot_of(int process);
extern Tau	au_page_oldest_snapshot(void);	/* this backend's slot; 0 frees */
extern uint64 au_next_insert_stamp(void);	/* hidden keys: strictly increasing */

/* -------------------------------------------------------------- sequence.c */
#define AU_IDENTITY_VALUE_OID 9023
#define AU_IDENTITY_LOCATION (-9023)	/* marks calls that the planner made; users' have positions or -1 */

extern void au_sequences_inserted(Relation rel);
extern bool au_sequences_copy_begins(Relation rel);
extern void au_sequences_copy_ended(void);

/* ------------------------------------------------------------ object_ids.c */
extern Size au_oids_shmem_size(void);
extern void au_oids_shmem_init(void);
extern void au_oids_ensure(void);	/* before a command that makes objects */
extern void au_oids_check_storage(RelFileNumber number);
extern void au_oids_advance(Oid next);

/* -------------------------------------------------------------- settings.c */
extern char *au_run_directory;	/* sockets and the shared page */
extern char *au_storage_directory;
extern int	au_processor;		/* number among the query processors of this host */
extern int	au_storage_driver;	/* 0 attached, 1 socket */
extern int	au_service_timeout_ms;
extern int	au_write_buffer_limit_kb;
extern bool au_enabled;			/* false while the image is built */

#endif							/* AUSTRALIS_H */
