/*-------------------------------------------------------------------------
 *
 * ddl.h
 *	  What capture and apply of DDL records share.
 *
 * A DDL record is the effect of a transaction on the catalogs: the rows that
 * it deleted and those that it inserted, with their oids.  msgpack:
 *
 *	  [1, catalog version, database oid, next oid, tags,
 *	   effects, sequences, databases, changed]
 *
 *	  effect	[catalog oid, 0 = delete, natts | flags << 16, bin]
 *				[catalog oid, 1 = insert, natts | flags << 16, bin]
 *				bin: a heap tuple from its null bitmap on, as PostgreSQL lays it
 *				out on x86-64 and arm64; nothing in it is out of line.  flags: 1
 *				has NULLs, 2 has variable width.  A deleted row has only the
 *				columns that identify it; the others are NULL.
 *	  sequence	[relation oid, last value, is called]: contents of a sequence's
 *				new storage
 *	  database	[0 = drop, oid] or [1 = create, oid, template's oid]
 *	  changed	relation names (database oid << 32 | relation oid), rule A5
 *
 * The record is the value of key (1, n), n as 8 bytes BE.
 *
 *-------------------------------------------------------------------------
 */
#ifndef AUSTRALIS_DDL_H
#define AUSTRALIS_DDL_H

#include "australis.h"

#include "access/htup.h"
#include "nodes/nodes.h"

#define DDL_RECORD_VERSION 1
#define DDL_RECORD_FIELDS 9
#define DDL_RECORD_LIMIT (64 * 1024 * 1024)

#define DDL_DELETE 0
#define DDL_INSERT 1

#define DDL_HAS_NULLS 1
#define DDL_HAS_VARWIDTH 2

#define DDL_DROP_DATABASE 0
#define DDL_CREATE_DATABASE 1

/* Is the content of this catalog local to each query processor? */
extern bool au_ddl_catalog_is_local(Oid catalog);

/* Columns of pg_class and pg_database that each query processor decides. */
extern HeapTuple au_ddl_keep_local_columns(Relation catalog, HeapTuple tuple, HeapTuple local);

/* Columns that identify a row of this catalog. */
extern int	au_ddl_identity(Relation catalog, Oid *index, AttrNumber *attnums);

/* utility.c tells what the transaction runs; kept until its end */
extern void au_ddl_note_statement(const char *tag);
extern void au_ddl_note_template(Oid database, Oid template_oid);
extern void au_ddl_capture_init(void);

/* true in a process that applies records: its effects are not captured */
extern bool au_ddl_applying;

/* Held by the one transaction that is committing or applying DDL. */
extern void au_ddl_lock(void);
extern void au_ddl_unlock(void);

/* schema_locks.c: wait for others that change the same relations */
extern void au_schema_lock(Node *stmt);

/* peers.c */
extern void au_peers_register(void);
extern void au_peers_applied(int64 n, bool by_peer);
extern int64 au_peers_bell(void);
extern void au_peers_sleep(int64 bell, int ms);
extern void au_peers_ring(void);
extern bool au_peers_exist(void);
/* Is this error one of catalogs that changed meanwhile (the client is told OC001)? */
extern bool au_error_is_stale(const ErrorData *error);
extern void au_peers_committed(int64 n);

extern void au_peers_ring_others(void);

/* a heap tuple in a record: [natts | flags << 16, bin] */
extern void au_ddl_encode_tuple(StringInfo buf, HeapTuple tuple);
extern HeapTuple au_ddl_decode_tuple(Relation rel, int shape, Bytes data);

struct BackgroundWorker;
extern void au_ddl_set_library(struct BackgroundWorker *worker);

/* statistics.c */
extern void au_statistics_before_commit(void);
extern void au_statistics_forget(Oid relid);
extern void au_statistics_forget_database(Oid database);
extern void au_statistics_look(void);

/* sequence.c */
extern void au_sequence_read(Relation rel, int64 *last_value, bool *is_called);
extern void au_sequence_create_storage(Oid relid, int64 last_value, bool is_called);
extern void au_sequence_forget(RelFileNumber number);
extern bool au_sequences_unclean(void);
extern void au_sequences_ring(void);
extern Size au_sequence_shmem_size(void);
extern void au_sequence_shmem_init(void);

#endif							/* AUSTRALIS_DDL_H */
