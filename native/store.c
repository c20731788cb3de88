/*-------------------------------------------------------------------------
 *
 * store.c
 *	  The multi-version store of one storage node, on LMDB 1.0.
 *
 * store.h has the contract, docs/formats.md (sections 4 and 5) the bytes.
 *
 * Three LMDB databases.  `main` maps a key to its newest version, `hist` maps
 * (tau that superseded, key) to the version that was superseded, `meta` holds
 * what must change together with them.  So:
 *
 *	- a scan at the newest tau walks `main` only, at LMDB's own speed;
 *	- an older version of a key is found by following its chain: the version
 *	  in `main` has a tau, which with the key names the entry of `hist` that
 *	  holds the version before, which has a tau, and so on;
 *	- `hist` is written at its end, in tau order.  Undoing everything above a
 *	  tau walks it backwards from the end, collecting garbage drops its front.
 *
 * A tombstone in `main` always has its entry in `hist` (it superseded
 * something: deleting nothing is skipped), so garbage collection meets every
 * tombstone exactly when it drops that entry.
 *
 * LMDB options: no MDB_WRITEMAP (a full disk must be an error of write(), not
 * a SIGBUS at some later store instruction); MDB_NOSYNC, since durability is
 * the journal's; MDB_NOTLS, because readers are objects, not threads.  Read
 * ahead stays on: scans of cold tables gain more from it than point reads of
 * cold pages lose.
 *
 *-------------------------------------------------------------------------
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "filter.h"
#include "leaf.h"
#include "lmdb.h"
#include "msgpack.h"
#include "store.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the formats are little-endian and so is this code"
#endif

#define FORMAT_VERSION "australis-store 1"
#define VERSION_HEADER 9		/* tau, flags */
#define FLAG_VALUE 0
#define FLAG_TOMBSTONE 1
#define FLAG_NONE 2				/* in hist: nothing was superseded */
#define ROW_HAS_NULL 1			/* in the second byte of a row image (docs/formats.md, section 2) */

#define BOOT_ID_LEN 36
#define MAX_POSITION 16384
#define MAX_PATH 4096
#define MAX_OPEN 16				/* stores open in one process */

/* Look at the interrupt flag once per this many entries of a scan. */
#define INTERRUPT_EVERY 1024

/* A copy is written, and synced, in pieces of this many bytes. */
#define COPY_PIECE ((size_t) 1 << 20)
#define COPY_SYNC ((size_t) 8 << 20)

/* Superseded versions held in memory before they go to hist. */
#define PENDING_BYTES ((size_t) 16 << 20)
#define PENDING_ITEMS 65536

struct Store
{
	MDB_env    *env;
	MDB_dbi		main;
	MDB_dbi		hist;
	MDB_dbi		meta;
	bool		writer;
	char		path[MAX_PATH];
	ino_t		data_inode;		/* of the files that are open */
	ino_t		lock_inode;
	int			slot;			/* in open_stores */
	int			lock_fd;		/* the writer's lock on the data file */

	/* the rest is the writer's, under lock */
	pthread_mutex_t lock;
	bool		clean;			/* the mark on disk says so */
	int64_t		applied;
	int64_t		horizon;
	uint8_t		cluster[16];
	uint8_t		position[MAX_POSITION];
	size_t		position_len;
	uint8_t    *ranges;			/* what store_set_ranges() was given, NULL: everything */
	StoreBytes *bounds;			/* lo and hi of each range, in order, into `ranges` */
	size_t		nranges;
};

struct StoreReader
{
	Store	   *store;
	MDB_txn    *txn;			/* reset between calls */
	MDB_cursor *cursor;			/* on main */
	const volatile sig_atomic_t *interrupt;
	size_t		horizon_txn;	/* LMDB transaction that `horizon` is of */
	int64_t		horizon;
};

/* ------------------------------------------------------------ small things */

static __thread char error_text[512];

const char *
store_error(void)
{
	return error_text;
}

static StoreStatus __attribute__((format(printf, 2, 3)))
fail(StoreStatus status, const char *format,...)
{
	va_list		args;

	va_start(args, format);
	vsnprintf(error_text, sizeof(error_text), format, args);
	va_end(args);
	return status;
}

/* What an LMDB or system error code means to our caller. */
static StoreStatus
lmdb_fail(int rc, const char *what)
{
	switch (rc)
	{
		case ENOSPC:
		case EDQUOT:
		case EFBIG:
		case MDB_SHORT_WRITE:	/* a regular file takes less only when the disk is full */
			return fail(STORE_FULL, "%s: no space left for the store (%s)", what, mdb_strerror(rc));
		case MDB_MAP_FULL:
			return fail(STORE_FULL, "%s: the store has reached its map size", what);
		case MDB_READERS_FULL:
			return fail(STORE_BUSY, "%s: all %d reader slots are in use", what, STORE_MAX_READERS);
		case MDB_CORRUPTED:
		case MDB_PAGE_NOTFOUND:
		case MDB_INVALID:
		case MDB_BAD_CHECKSUM:
			return fail(STORE_DAMAGED, "%s: the store is damaged (%s)", what, mdb_strerror(rc));
		case MDB_VERSION_MISMATCH:
			return fail(STORE_WRONG_CLUSTER, "%s: the store has another format (%s)", what, mdb_strerror(rc));
		case MDB_PANIC:
			return fail(STORE_FAILED, "%s: an earlier write error disabled the store; open it again", what);
		default:
			return fail(STORE_FAILED, "%s: %s", what, mdb_strerror(rc));
	}
}

static inline int64_t
load64(const void *p)
{
	int64_t		v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static inline uint64_t
load_be64(const void *p)
{
	uint64_t	v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap64(v);
}

static inline void
store64(void *p, int64_t v)
{
	memcpy(p, &v, sizeof(v));
}

static inline void
store_be64(void *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	memcpy(p, &v, sizeof(v));
}

static inline int
compare(const void *a, size_t a_len, const void *b, size_t b_len)
{
	int			c = memcmp(a, b, a_len < b_len ? a_len : b_len);

	return c != 0 ? c : (a_len > b_len) - (a_len < b_len);
}

/* CRC-32C, four bits at a time: the records it covers are tiny. */
static uint32_t
crc32c(uint32_t crc, const void *data, size_t len)
{
	static const uint32_t table[16] = {
		0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
		0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75
	};
	const uint8_t *p = data;

	crc = ~crc;
	while (len-- > 0)
	{
		crc ^= *p++;
		crc = (crc >> 4) ^ table[crc & 15];
		crc = (crc >> 4) ^ table[crc & 15];
	}
	return ~crc;
}

static MDB_val
val(const void *data, size_t len)
{
	MDB_val		v;

	v.mv_data = (void *) data;
	v.mv_size = len;
	return v;
}

/* A version as main and hist hold it. */
typedef struct Version
{
	int64_t		tau;
	uint8_t		flags;
	const uint8_t *value;
	size_t		len;
} Version;

static inline bool
parse_version(const MDB_val *data, Version *version)
{
	const uint8_t *p = data->mv_data;

	if (data->mv_size < VERSION_HEADER || p[8] > FLAG_NONE)
		return false;
	version->tau = load64(p);
	version->flags = p[8];
	version->value = p + VERSION_HEADER;
	version->len = data->mv_size - VERSION_HEADER;
	return true;
}

static StoreStatus
bad_version(void)
{
	return fail(STORE_DAMAGED, "a version in the store is not well-formed");
}

/* ----------------------------------------------------------------- buffers */

void
store_buffer_free(StoreBuffer *buffer)
{
	free(buffer->data);
	memset(buffer, 0, sizeof(*buffer));
}

static bool
make_room(StoreBuffer *buffer, size_t more)
{
	size_t		need = buffer->len + more;
	size_t		cap;
	uint8_t    *data;

	if (need <= buffer->cap)
		return true;
	if (buffer->reserve)
		return buffer->reserve(buffer, need) && buffer->cap >= need;
	cap = buffer->cap < 512 ? 1024 : buffer->cap * 2;
	if (cap < need)
		cap = need;
	data = realloc(buffer->data, cap);
	if (!data)
		return false;
	buffer->data = data;
	buffer->cap = cap;
	return true;
}

static inline size_t
entry_size(size_t key_len, size_t value_len)
{
	return sizeof(StoreEntry) + STORE_ALIGN(key_len) + STORE_ALIGN(value_len);
}

/*
 * Copy and pad with zeros to a multiple of 8.  Keys and rows are mostly short:
 * words cost less than a call.
 */
static inline void
put_padded(uint8_t *p, const uint8_t *data, size_t len)
{
	if (len <= 256)
	{
		uint64_t	word;
		uint32_t	half = 0;
		uint16_t	quarter = 0;

		for (; len >= 8; len -= 8, p += 8, data += 8)
		{
			memcpy(&word, data, 8);
			memcpy(p, &word, 8);
		}
		if (len == 0)
			return;
		word = 0;
		if (len & 1)
			word = data[len - 1];
		if (len & 2)
		{
			memcpy(&quarter, data + (len & 4), 2);
			word = (word << 16) | quarter;
		}
		if (len & 4)
		{
			memcpy(&half, data, 4);
			word = (word << 32) | half;
		}
		memcpy(p, &word, 8);
	}
	else
	{
		if (len % 8 != 0)
			memset(p + STORE_ALIGN(len) - 8, 0, 8);
		memcpy(p, data, len);
	}
}

static inline StoreStatus
append_entry(StoreBuffer *batch, const uint8_t *key, size_t key_len, const Version *version)
{
	StoreEntry	head;
	size_t		size = entry_size(key_len, version->len);
	uint8_t    *p;

	if (!make_room(batch, size))
		return fail(STORE_FAILED, "out of memory for a batch of %zu bytes", batch->len + size);
	head.key_len = key_len;
	head.value_len = version->len;
	head.tau = version->tau;
	p = batch->data + batch->len;
	memcpy(p, &head, sizeof(head));
	p += sizeof(head);
	put_padded(p, version->value, version->len);
	put_padded(p + STORE_ALIGN(version->len), key, key_len);
	batch->len += size;
	return STORE_OK;
}

static StoreStatus
append_missing(StoreBuffer *batch)
{
	StoreEntry	head = {0, STORE_NO_VALUE, 0};

	if (!make_room(batch, sizeof(head)))
		return fail(STORE_FAILED, "out of memory for a batch of %zu bytes", batch->len + sizeof(head));
	memcpy(batch->data + batch->len, &head, sizeof(head));
	batch->len += sizeof(head);
	return STORE_OK;
}

/* -------------------------------------------------------------------- meta */

static int
meta_get(MDB_txn *txn, MDB_dbi meta, const char *name, MDB_val *value)
{
	MDB_val		key = val(name, strlen(name));

	return mdb_get(txn, meta, &key, value);
}

static int
meta_put(MDB_txn *txn, MDB_dbi meta, const char *name, const void *data, size_t len)
{
	MDB_val		key = val(name, strlen(name));
	MDB_val		value = val(data, len);

	return mdb_put(txn, meta, &key, &value, 0);
}

/* What must agree in meta: a damaged or half-foreign file is noticed at open. */
static uint32_t
meta_check(const Store *store, int64_t applied, int64_t horizon, const void *position, size_t position_len)
{
	uint32_t	crc = crc32c(0, FORMAT_VERSION, sizeof(FORMAT_VERSION) - 1);

	crc = crc32c(crc, store->cluster, sizeof(store->cluster));
	crc = crc32c(crc, &applied, sizeof(applied));
	crc = crc32c(crc, &horizon, sizeof(horizon));
	return crc32c(crc, position, position_len);
}

/* Write applied tau, horizon and position with their checksum. */
static int
meta_put_state(Store *store, MDB_txn *txn, int64_t applied, int64_t horizon, const void *position, size_t position_len)
{
	uint32_t	crc = meta_check(store, applied, horizon, position, position_len);
	int			rc = 0;

	if (applied != store->applied)
		rc = meta_put(txn, store->meta, "applied", &applied, sizeof(applied));
	if (rc == 0 && horizon != store->horizon)
		rc = meta_put(txn, store->meta, "horizon", &horizon, sizeof(horizon));
	if (rc == 0 && position != store->position)
		rc = meta_put(txn, store->meta, "position", position, position_len);
	if (rc == 0)
		rc = meta_put(txn, store->meta, "check", &crc, sizeof(crc));
	return rc;
}

/* After the commit of what meta_put_state wrote. */
static void
keep_state(Store *store, int64_t applied, int64_t horizon, const void *position, size_t position_len)
{
	__atomic_store_n(&store->applied, applied, __ATOMIC_RELEASE);
	store->horizon = horizon;
	if (position != store->position)
	{
		memcpy(store->position, position, position_len);
		store->position_len = position_len;
	}
}

static void
boot_mark(char mark[BOOT_ID_LEN + 1], bool clean)
{
	int			fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t		n = fd >= 0 ? read(fd, mark, BOOT_ID_LEN) : -1;

	/* Without a boot id every opening counts as another boot: safe. */
	if (n != BOOT_ID_LEN)
		memset(mark, '?', BOOT_ID_LEN);
	if (fd >= 0)
		close(fd);
	mark[BOOT_ID_LEN] = clean ? 1 : 0;
}

/* ------------------------------------------------------------ open, close */

static struct
{
	bool		used;
	dev_t		device;
	ino_t		inode;
}			open_stores[MAX_OPEN];
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;

/* Enter the directory into the process's list: LMDB allows one open each. */
static StoreStatus
enter_open_list(Store *store)
{
	struct stat st;
	int			i,
				unused = -1;

	if (stat(store->path, &st) != 0)
		return errno == ENOENT ? fail(STORE_ABSENT, "there is no store at %s", store->path) :
			fail(STORE_FAILED, "%s: %s", store->path, strerror(errno));
	pthread_mutex_lock(&open_lock);
	for (i = 0; i < MAX_OPEN; i++)
	{
		if (!open_stores[i].used)
			unused = unused < 0 ? i : unused;
		else if (open_stores[i].device == st.st_dev && open_stores[i].inode == st.st_ino)
		{
			pthread_mutex_unlock(&open_lock);
			return fail(STORE_BUSY, "%s is open in this process already", store->path);
		}
	}
	if (unused >= 0)
	{
		open_stores[unused].used = true;
		open_stores[unused].device = st.st_dev;
		open_stores[unused].inode = st.st_ino;
	}
	pthread_mutex_unlock(&open_lock);
	store->slot = unused;
	return unused >= 0 ? STORE_OK : fail(STORE_BUSY, "more than %d stores open in this process", MAX_OPEN);
}

void
store_close(Store *store)
{
	if (!store)
		return;
	if (store->env)
		mdb_env_close(store->env);
	if (store->lock_fd >= 0)
		close(store->lock_fd);
	if (store->slot >= 0)
	{
		pthread_mutex_lock(&open_lock);
		open_stores[store->slot].used = false;
		pthread_mutex_unlock(&open_lock);
	}
	pthread_mutex_destroy(&store->lock);
	free(store->bounds);
	free(store->ranges);
	free(store);
}

static Store *
new_store(const char *path, const uint8_t cluster[16], bool writer)
{
	Store	   *store = calloc(1, sizeof(Store));

	if (!store)
		return NULL;
	store->slot = -1;
	store->lock_fd = -1;
	store->writer = writer;
	if (snprintf(store->path, sizeof(store->path), "%s", path) >= (int) sizeof(store->path))
		store->path[0] = '\0';	/* does not exist: every open says so */
	memcpy(store->cluster, cluster, 16);
	pthread_mutex_init(&store->lock, NULL);
	return store;
}

static StoreStatus
file_stat(const Store *store, const char *file, struct stat *st)
{
	char		name[MAX_PATH + 16];

	snprintf(name, sizeof(name), "%s/%s", store->path, file);
	if (stat(name, st) != 0)
		return errno == ENOENT ? fail(STORE_ABSENT, "there is no store at %s", store->path) :
			fail(STORE_FAILED, "%s: %s", name, strerror(errno));
	return STORE_OK;
}

/* Remember which files are open, for store_replaced. */
static StoreStatus
note_files(Store *store)
{
	struct stat data,
				lock;
	StoreStatus status = file_stat(store, "data.mdb", &data);

	if (status != STORE_OK)
		return status;
	store->data_inode = data.st_ino;
	status = file_stat(store, "lock.mdb", &lock);
	/* a copy may come without one: opening makes it */
	store->lock_inode = status == STORE_OK ? lock.st_ino : 0;
	return status == STORE_ABSENT ? STORE_OK : status;
}

/*
 * LMDB takes the number of the newest transaction from the lock file while any
 * process has that open, and chooses between the two meta pages by it.  If the
 * data file was replaced below living readers, the lock file speaks of the old
 * one, and LMDB may pick a meta page of the new one that is empty: silently
 * nothing there.  So compare them.  A writer that was killed in between is no
 * such case: taking its lock over makes them agree.
 */
static StoreStatus
lock_file_matches(Store *store, bool *matches)
{
	MDB_txn    *txn;
	MDB_envinfo info;
	int			rc = mdb_txn_begin(store->env, NULL, store->writer ? 0 : MDB_RDONLY, &txn);
	size_t		id;

	if (rc != 0)
		return lmdb_fail(rc, store->path);
	id = mdb_txn_id(txn);
	/* after the id: a writer may be busy while a reader opens */
	rc = mdb_env_info(store->env, &info);
	mdb_txn_abort(txn);
	if (rc != 0)
		return lmdb_fail(rc, store->path);
	*matches = store->writer ? id == info.me_last_txnid + 1 : id <= info.me_last_txnid;
	return STORE_OK;
}

static StoreStatus
open_env(Store *store, size_t map_size, unsigned flags)
{
	int			rc;

	rc = mdb_env_create(&store->env);
	if (rc == 0)
		rc = mdb_env_set_maxdbs(store->env, 3);
	if (rc == 0)
		rc = mdb_env_set_maxreaders(store->env, STORE_MAX_READERS);
	if (rc == 0 && map_size > 0)
		rc = mdb_env_set_mapsize(store->env, map_size);
	if (rc == 0)
		rc = mdb_env_open(store->env, store->path, flags | MDB_NOTLS, 0600);
	if (rc != 0)
		return lmdb_fail(rc, store->path);
	if (mdb_env_get_maxkeysize(store->env) < 8 + STORE_MAX_KEY)
		return fail(STORE_FAILED, "%s: LMDB takes keys of %d bytes only", store->path,
					mdb_env_get_maxkeysize(store->env));
	return STORE_OK;
}

static int
open_databases(Store *store, MDB_txn *txn, unsigned flags)
{
	int			rc = mdb_dbi_open(txn, "main", flags, &store->main);

	if (rc == 0)
		rc = mdb_dbi_open(txn, "hist", flags, &store->hist);
	if (rc == 0)
		rc = mdb_dbi_open(txn, "meta", flags, &store->meta);
	return rc;
}

/* Is this a store of ours, of this cluster, and does its meta agree? */
static StoreStatus
verify_meta(Store *store, MDB_txn *txn)
{
	MDB_val		v;
	uint32_t	crc;

	if (meta_get(txn, store->meta, "format", &v) != 0)
		return fail(STORE_DAMAGED, "%s: the store has no format record", store->path);
	if (compare(v.mv_data, v.mv_size, FORMAT_VERSION, sizeof(FORMAT_VERSION) - 1) != 0)
		return fail(STORE_WRONG_CLUSTER, "%s: format is \"%.*s\", this program reads \"%s\"", store->path,
					(int) (v.mv_size > 100 ? 100 : v.mv_size), (char *) v.mv_data, FORMAT_VERSION);
	if (meta_get(txn, store->meta, "cluster", &v) != 0 || v.mv_size != 16)
		return fail(STORE_DAMAGED, "%s: the store has no cluster record", store->path);
	if (memcmp(v.mv_data, store->cluster, 16) != 0)
		return fail(STORE_WRONG_CLUSTER, "%s: the store belongs to another cluster", store->path);
	if (meta_get(txn, store->meta, "applied", &v) != 0 || v.mv_size != 8)
		return fail(STORE_DAMAGED, "%s: the store has no applied time", store->path);
	store->applied = load64(v.mv_data);
	if (meta_get(txn, store->meta, "horizon", &v) != 0 || v.mv_size != 8)
		return fail(STORE_DAMAGED, "%s: the store has no horizon", store->path);
	store->horizon = load64(v.mv_data);
	if (meta_get(txn, store->meta, "position", &v) != 0 || v.mv_size > MAX_POSITION)
		return fail(STORE_DAMAGED, "%s: the store has no journal position", store->path);
	memcpy(store->position, v.mv_data, v.mv_size);
	store->position_len = v.mv_size;
	crc = meta_check(store, store->applied, store->horizon, store->position, store->position_len);
	if (meta_get(txn, store->meta, "check", &v) != 0 || v.mv_size != sizeof(crc) ||
		memcmp(v.mv_data, &crc, sizeof(crc)) != 0)
		return fail(STORE_DAMAGED, "%s: checksum of the store's records does not match", store->path);
	return STORE_OK;
}

/* First opening: records of an empty store. */
static int
initialise(Store *store, MDB_txn *txn)
{
	char		mark[BOOT_ID_LEN + 1];
	int64_t		zero = 0;
	uint32_t	crc = meta_check(store, 0, 0, "", 0);
	int			rc;

	boot_mark(mark, false);
	rc = meta_put(txn, store->meta, "format", FORMAT_VERSION, sizeof(FORMAT_VERSION) - 1);
	if (rc == 0)
		rc = meta_put(txn, store->meta, "cluster", store->cluster, sizeof(store->cluster));
	if (rc == 0)
		rc = meta_put(txn, store->meta, "boot", mark, sizeof(mark));
	if (rc == 0)
		rc = meta_put(txn, store->meta, "applied", &zero, sizeof(zero));
	if (rc == 0)
		rc = meta_put(txn, store->meta, "horizon", &zero, sizeof(zero));
	if (rc == 0)
		rc = meta_put(txn, store->meta, "position", "", 0);
	if (rc == 0)
		rc = meta_put(txn, store->meta, "check", &crc, sizeof(crc));
	return rc;
}

/*
 * Rule S2: may the contents be trusted?  Yes if written under this boot (the
 * page cache survived every process) or marked clean after a sync.
 */
static StoreStatus
verify_boot(Store *store, MDB_txn *txn, bool restored)
{
	char		mark[BOOT_ID_LEN + 1];
	MDB_val		v;
	const char *found;
	int			rc;

	if (meta_get(txn, store->meta, "boot", &v) != 0 || v.mv_size != sizeof(mark))
		return fail(STORE_DAMAGED, "%s: the store has no boot mark", store->path);
	found = v.mv_data;
	boot_mark(mark, false);
	if (restored)
	{
		rc = meta_put(txn, store->meta, "boot", mark, sizeof(mark));
		return rc == 0 ? STORE_OK : lmdb_fail(rc, store->path);
	}
	store->clean = found[BOOT_ID_LEN] == 1;
	if (!store->clean && (mark[0] == '?' || memcmp(mark, found, BOOT_ID_LEN) != 0))
		return fail(STORE_UNCLEAN, "%s: the machine stopped before the store was on disk", store->path);
	return STORE_OK;
}

static StoreStatus
load_store(Store *store, bool restored)
{
	MDB_txn    *txn;
	MDB_stat	st;
	StoreStatus status = STORE_OK;
	int			rc;

	rc = mdb_txn_begin(store->env, NULL, store->writer ? 0 : MDB_RDONLY, &txn);
	if (rc != 0)
		return lmdb_fail(rc, store->path);
	rc = open_databases(store, txn, store->writer ? MDB_CREATE : 0);
	if (rc == MDB_NOTFOUND)
		status = fail(STORE_ABSENT, "the store at %s is not initialised yet", store->path);
	else if (rc == 0)
		rc = mdb_stat(txn, store->meta, &st);
	if (rc == 0 && st.ms_entries == 0 && store->writer)
		rc = initialise(store, txn);
	else if (rc == 0)
	{
		status = verify_meta(store, txn);
		if (status == STORE_OK && store->writer)
			status = verify_boot(store, txn, restored);
	}
	if (status == STORE_OK && rc != 0)
		status = lmdb_fail(rc, store->path);
	if (status != STORE_OK)
	{
		mdb_txn_abort(txn);
		return status;
	}
	rc = mdb_txn_commit(txn);
	return rc == 0 ? STORE_OK : lmdb_fail(rc, store->path);
}

StoreStatus
store_open_writer(const char *path, const uint8_t cluster[16], size_t map_size, bool restored, Store **result)
{
	Store	   *store = new_store(path, cluster, true);
	StoreStatus status = STORE_OK;
	char		name[MAX_PATH + 16];
	bool		matches = true;
	struct flock lock = {.l_type = F_WRLCK,.l_whence = SEEK_SET,.l_start = 0,.l_len = 1};

	*result = NULL;
	if (!store)
		return fail(STORE_FAILED, "out of memory");
	if (mkdir(path, 0700) != 0 && errno != EEXIST)
		status = fail(errno == ENOSPC ? STORE_FULL : STORE_FAILED, "cannot create %s: %s", path, strerror(errno));
	if (status == STORE_OK)
		status = enter_open_list(store);

	/*
	 * One writer: a lock on the data file.  It belongs to the open file, not
	 * to the process, so LMDB's own descriptors do not disturb it.  The file
	 * is left to LMDB to create, which initialises it when it is empty.
	 */
	if (status == STORE_OK)
	{
		snprintf(name, sizeof(name), "%s/data.mdb", path);
		store->lock_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (store->lock_fd < 0)
			status = fail(errno == ENOSPC ? STORE_FULL : STORE_FAILED, "cannot open %s: %s", name, strerror(errno));
		else if (fcntl(store->lock_fd, F_OFD_SETLK, &lock) != 0)
			status = fail(STORE_BUSY, "another process writes to the store at %s", path);
	}
	if (status == STORE_OK)
		status = open_env(store, map_size > 0 ? map_size : STORE_MAP_SIZE, MDB_NOSYNC | MDB_NOMETASYNC);
	if (status == STORE_OK)
		status = lock_file_matches(store, &matches);
	if (status == STORE_OK && !matches)
	{
		/* readers of the old data file keep the old lock file */
		mdb_env_close(store->env);
		store->env = NULL;
		snprintf(name, sizeof(name), "%s/lock.mdb", path);
		if (unlink(name) != 0)
			status = fail(STORE_FAILED, "cannot remove %s: %s", name, strerror(errno));
		else
			status = open_env(store, map_size > 0 ? map_size : STORE_MAP_SIZE, MDB_NOSYNC | MDB_NOMETASYNC);
	}
	if (status == STORE_OK)
		status = load_store(store, restored);
	if (status == STORE_OK)
		status = note_files(store);
	if (status != STORE_OK)
	{
		store_close(store);
		return status;
	}
	*result = store;
	return STORE_OK;
}

StoreStatus
store_open_reader(const char *path, const uint8_t cluster[16], Store **result)
{
	Store	   *store = new_store(path, cluster, false);
	StoreStatus status;
	struct stat st;
	bool		matches = true;

	*result = NULL;
	if (!store)
		return fail(STORE_FAILED, "out of memory");
	status = enter_open_list(store);
	if (status == STORE_OK)
		status = file_stat(store, "data.mdb", &st);
	/* a writer creates the file empty and then writes both meta pages */
	if (status == STORE_OK && st.st_size < 8192)
		status = fail(STORE_ABSENT, "the store at %s is not initialised yet", path);
	/* before opening: files replaced meanwhile then differ from these */
	if (status == STORE_OK)
		status = note_files(store);
	if (status == STORE_OK)
		status = open_env(store, 0, MDB_RDONLY);
	if (status == STORE_OK && store->lock_inode == 0)
		status = note_files(store);
	if (status == STORE_OK)
		status = lock_file_matches(store, &matches);
	if (status == STORE_OK && (!matches || store_replaced(store)))
		status = fail(STORE_ABSENT, "the store at %s is being replaced", path);
	if (status == STORE_OK)
		status = load_store(store, false);
	if (status != STORE_OK)
	{
		store_close(store);
		return status;
	}
	*result = store;
	return STORE_OK;
}

bool
store_replaced(Store *store)
{
	struct stat st;

	if (file_stat(store, "data.mdb", &st) != STORE_OK || st.st_ino != store->data_inode)
		return true;
	return file_stat(store, "lock.mdb", &st) != STORE_OK || st.st_ino != store->lock_inode;
}

/* ---------------------------------------------------------------- reading */

StoreStatus
store_reader_open(Store *store, StoreReader **result)
{
	StoreReader *reader = calloc(1, sizeof(StoreReader));
	int			rc;

	*result = NULL;
	if (!reader)
		return fail(STORE_FAILED, "out of memory");
	reader->store = store;
	rc = mdb_txn_begin(store->env, NULL, MDB_RDONLY, &reader->txn);
	if (rc == MDB_READERS_FULL)
	{
		/* slots of killed processes may be among them */
		int			dead;

		rc = mdb_reader_check(store->env, &dead);
		if (rc == 0)
			rc = mdb_txn_begin(store->env, NULL, MDB_RDONLY, &reader->txn);
	}
	if (rc == 0)
		rc = mdb_cursor_open(reader->txn, store->main, &reader->cursor);
	if (rc != 0)
	{
		if (reader->txn)
			mdb_txn_abort(reader->txn);
		free(reader);
		return lmdb_fail(rc, "cannot read the store");
	}
	mdb_txn_reset(reader->txn);
	*result = reader;
	return STORE_OK;
}

void
store_reader_close(StoreReader *reader)
{
	if (!reader)
		return;
	mdb_cursor_close(reader->cursor);
	mdb_txn_abort(reader->txn);
	free(reader);
}

void
store_reader_interrupt(StoreReader *reader, const volatile sig_atomic_t *flag)
{
	reader->interrupt = flag;
}

/*
 * LMDB takes a reader's roots from one of two meta pages after it has chosen a
 * transaction.  When the reader is held up in between while the writer commits
 * twice, that page is of a newer transaction or half of it, and LMDB 1.0 calls
 * the pages that it then meets damaged.  The page was what it should be if its
 * transaction is still the newest one afterwards.
 *
 * A writer that was stopped between its meta page and the word that says so
 * leaves the next transaction there for good: after some attempts that will do,
 * since it then is not writing the page that we read.
 */
#define RENEW_ATTEMPTS 200

static StoreStatus
read_begin(StoreReader *reader)
{
	MDB_env    *env = reader->store->env;
	MDB_envinfo info;
	int			rc = 0;
	int			i;

	for (i = 0; i < 2 * RENEW_ATTEMPTS; i++)
	{
		rc = mdb_txn_renew(reader->txn);
		if (rc == MDB_MAP_RESIZED)
		{
			/* the writer was opened with a larger map: take over its size */
			rc = mdb_env_set_mapsize(env, 0);
			if (rc == 0)
				rc = mdb_txn_renew(reader->txn);
		}
		if (rc != 0)
			continue;			/* also of a page that was half written */
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		rc = mdb_env_info(env, &info);
		if (rc == 0 && info.me_last_txnid <= mdb_txn_id(reader->txn) + (i >= RENEW_ATTEMPTS))
			return STORE_OK;
		mdb_txn_reset(reader->txn);
	}
	return rc != 0 ? lmdb_fail(rc, "cannot read the store") :
		fail(STORE_BUSY, "the store changes too fast to be read");
}

static inline void
read_end(StoreReader *reader)
{
	mdb_txn_reset(reader->txn);
}

/*
 * Begin a read as of tau.  The horizon is checked in the transaction that
 * reads (rule S4), so that garbage collection cannot come in between.
 */
static StoreStatus
read_begin_at(StoreReader *reader, int64_t tau)
{
	StoreStatus status = read_begin(reader);
	size_t		id;

	if (status != STORE_OK)
		return status;
	id = mdb_txn_id(reader->txn);
	if (reader->horizon_txn != id)
	{
		MDB_val		v;
		int			rc = meta_get(reader->txn, reader->store->meta, "horizon", &v);

		if (rc != 0 || v.mv_size != 8)
		{
			read_end(reader);
			return rc != 0 ? lmdb_fail(rc, "horizon") : fail(STORE_DAMAGED, "the store's horizon is damaged");
		}
		reader->horizon = load64(v.mv_data);
		reader->horizon_txn = id;
	}
	if (tau < reader->horizon)
	{
		read_end(reader);
		return fail(STORE_TOO_OLD, "snapshot too old: %lld is below the horizon %lld", (long long) tau,
					(long long) reader->horizon);
	}
	return STORE_OK;
}

/*
 * From the newest version of a key to the one as of tau.  *found = false: the
 * key did not exist then.
 */
static StoreStatus
version_at(StoreReader *reader, const void *key, size_t key_len, int64_t tau, Version *version, bool *found)
{
	uint8_t		name[8 + STORE_MAX_KEY];
	MDB_val		k,
				v;

	*found = false;
	if (version->tau > tau)
	{
		if (key_len > STORE_MAX_KEY)
			return bad_version();
		memcpy(name + 8, key, key_len);
		do
		{
			int64_t		newer = version->tau;
			int			rc;

			store_be64(name, newer);
			k = val(name, 8 + key_len);
			rc = mdb_get(reader->txn, reader->store->hist, &k, &v);
			if (rc == MDB_NOTFOUND)
				return STORE_OK;
			if (rc != 0)
				return lmdb_fail(rc, "history");
			if (!parse_version(&v, version))
				return bad_version();
			if (version->flags == FLAG_NONE)
				return STORE_OK;
			if (version->tau >= newer)
				return fail(STORE_DAMAGED, "the history of a key goes in circles");
		} while (version->tau > tau);
	}
	*found = version->flags == FLAG_VALUE;
	return STORE_OK;
}

/* One key within an open read. */
static StoreStatus
get_one(StoreReader *reader, StoreBytes key, int64_t tau, StoreBuffer *batch, bool *found)
{
	MDB_val		k = val(key.data, key.len);
	MDB_val		v;
	Version		version;
	StoreStatus status;
	int			rc;

	*found = false;
	if (key.len == 0 || key.len > STORE_MAX_KEY)
		return STORE_OK;
	rc = mdb_get(reader->txn, reader->store->main, &k, &v);
	if (rc == MDB_NOTFOUND)
		return STORE_OK;
	if (rc != 0)
		return lmdb_fail(rc, "cannot read the store");
	if (!parse_version(&v, &version))
		return bad_version();
	status = version_at(reader, key.data, key.len, tau, &version, found);
	if (status == STORE_OK && *found)
		status = append_entry(batch, key.data, key.len, &version);
	return status;
}

StoreStatus
store_get(StoreReader *reader, StoreBytes key, int64_t tau, StoreBuffer *batch, bool *found)
{
	StoreStatus status = read_begin_at(reader, tau);

	*found = false;
	if (status != STORE_OK)
		return status;
	status = get_one(reader, key, tau, batch, found);
	read_end(reader);
	return status;
}

StoreStatus
store_get_many(StoreReader *reader, const StoreBytes *keys, size_t n, int64_t tau, StoreBuffer *batch)
{
	StoreStatus status = read_begin_at(reader, tau);
	size_t		start = batch->len;
	size_t		i;

	if (status != STORE_OK)
		return status;
	for (i = 0; i < n && status == STORE_OK; i++)
	{
		bool		found;

		status = get_one(reader, keys[i], tau, batch, &found);
		if (status == STORE_OK && !found)
			status = append_missing(batch);
	}
	read_end(reader);
	if (status != STORE_OK)
		batch->len = start;
	return status;
}

/* What a scan has been asked for and how far it is. */
typedef struct Scan
{
	StoreReader *reader;
	StoreBytes	lo;
	StoreBytes	hi;
	uint64_t	hi_prefix;		/* of a bound of 8 bytes: ends of relations are */
	bool		backward;
	int64_t		tau;
	size_t		max_rows;
	size_t		max_bytes;
	StoreCut   *cut;			/* or NULL */
	StoreWhere *where;			/* or NULL */
	Filter	   *filter;
	size_t		considered;		/* rows, of where->max_examined */
	StoreBytes	last;			/* key of the last entry taken, on its page; for cut */
	StoreBuffer *batch;
	size_t		start;
	size_t		rows;
	unsigned	examined;
	bool		more;
	StoreStatus status;
} Scan;

/* The scan ends in front of this key. */
static void
scan_pause(Scan *scan, const uint8_t *key, size_t key_len)
{
	StoreWhere *where = scan->where;

	scan->more = true;
	if (where == NULL)
		return;
	if (key_len > STORE_MAX_KEY)
	{
		scan->status = bad_version();
		return;
	}
	memcpy(where->resume, key, key_len);
	where->resume[key_len] = 0;
	where->resume_len = scan->backward ? key_len + 1 : key_len;	/* an upper end is exclusive */
}

/* Append an entry with only the columns that the filter wants. */
static StoreStatus
append_projected(Scan *scan, const uint8_t *key, size_t key_len, const Version *version)
{
	StoreBuffer *batch = scan->batch;
	StoreEntry	head = {.key_len = (uint32_t) key_len, .tau = version->tau};
	size_t		room = filter_room(scan->filter, version->len);
	uint8_t    *p;
	size_t		len;

	if (!make_room(batch, sizeof(StoreEntry) + room + STORE_ALIGN(key_len) + 8))
		return fail(STORE_FAILED, "out of memory");
	p = batch->data + batch->len;
	len = filter_project(scan->filter, version->value, version->len, p + sizeof(StoreEntry));
	if (len == 0)
		return append_entry(batch, key, key_len, version);
	head.value_len = (uint32_t) len;
	memcpy(p, &head, sizeof(head));
	p += sizeof(head);
	memset(p + len, 0, STORE_ALIGN(len) - len);
	put_padded(p + STORE_ALIGN(len), key, key_len);
	batch->len += entry_size(key_len, len);
	return STORE_OK;
}

/* Is the key beyond the end of a scan? */
static inline bool
scan_beyond(const Scan *scan, const uint8_t *key, size_t key_len)
{
	if (scan->backward)
		return compare(key, key_len, scan->lo.data, scan->lo.len) < 0;
	if (scan->hi.len == 8 && key_len >= 8)
		return load_be64(key) >= scan->hi_prefix;
	return scan->hi.len > 0 && compare(key, key_len, scan->hi.data, scan->hi.len) >= 0;
}

/*
 * Take a version into the batch if it is to be seen; false: the scan ends.
 * inside: the key is known not to be beyond the end.
 */
static inline bool
scan_take(Scan *scan, const uint8_t *key, size_t key_len, const MDB_val *data, bool inside)
{
	Version		version;
	size_t		taken_len;
	bool		found;

	if (!inside && scan_beyond(scan, key, key_len))
		return false;
	if (scan->rows >= scan->max_rows || (scan->where && scan->considered >= scan->where->max_examined))
	{
		scan_pause(scan, key, key_len);
		return false;
	}
	scan->considered++;
	if (++scan->examined % INTERRUPT_EVERY == 0 && scan->reader->interrupt && *scan->reader->interrupt)
	{
		scan->status = fail(STORE_INTERRUPTED, "interrupted");
		return false;
	}
	if (!parse_version(data, &version))
	{
		scan->status = bad_version();
		return false;
	}
	if (version.tau <= scan->tau)
		found = version.flags == FLAG_VALUE;
	else if ((scan->status = version_at(scan->reader, key, key_len, scan->tau, &version, &found)) != STORE_OK)
		return false;
	if (!found)
		return true;
	if (scan->filter && !filter_passes(scan->filter, version.value, version.len))
		return true;
	taken_len = key_len;
	if (scan->cut)
	{
		if (key_len > STORE_MAX_KEY)
		{
			scan->status = bad_version();
			return false;
		}
		if (scan->cut->prefix == 0)
		{
			scan->last = (StoreBytes) {key, key_len};
			scan->rows++;
			return true;
		}
		if (version.len > scan->cut->prefix && version.len >= 2 && (version.value[1] & ROW_HAS_NULL) == 0)
			version.len = scan->cut->prefix;
		taken_len = 0;
	}
	if (scan->rows > 0 && scan->batch->len - scan->start + entry_size(taken_len, version.len) > scan->max_bytes)
	{
		scan_pause(scan, key, key_len);
		return false;
	}
	if (scan->filter && filter_projects(scan->filter) && !scan->cut)
		scan->status = append_projected(scan, key, taken_len, &version);
	else
		scan->status = append_entry(scan->batch, key, taken_len, &version);
	scan->last = (StoreBytes) {key, key_len};
	scan->rows++;
	return scan->status == STORE_OK;
}

/*
 * Count what follows on the cursor's page, if all of it is inside the range;
 * what is later than tau, or damaged, is left to scan_take().  false: the scan
 * ends with an error.
 */
static inline bool
scan_count(Scan *scan, MDB_cursor *cursor)
{
	LeafNode	last;
	size_t		n;

	if (!leaf_last(cursor, &last) || scan_beyond(scan, last.key, last.key_len))
		return true;
	n = leaf_count(cursor, scan->tau, FLAG_VALUE, FLAG_NONE, scan->max_rows - scan->rows, &last);
	if (n > 0)
	{
		if (last.key_len > STORE_MAX_KEY)
		{
			scan->status = bad_version();
			return false;
		}
		scan->last = (StoreBytes) {last.key, last.key_len};
		scan->rows += n;
	}
	return true;
}

/* Go over the range; returns LMDB's last code. */
static int
scan_range(Scan *scan, MDB_cursor *cursor)
{
	MDB_cursor_op step = scan->backward ? MDB_PREV : MDB_NEXT;
	MDB_val		k = val(scan->lo.data, scan->lo.len);
	MDB_val		v;
	LeafNode	nodes[LEAF_NODES];
	int			rc;

	if (!scan->backward)
		rc = mdb_cursor_get(cursor, &k, &v, scan->lo.len > 0 ? MDB_SET_RANGE : MDB_FIRST);
	else
	{
		rc = MDB_NOTFOUND;
		if (scan->hi.len > 0)
		{
			k = val(scan->hi.data, scan->hi.len);
			rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
			if (rc == 0)
				rc = mdb_cursor_get(cursor, &k, &v, MDB_PREV);
			else if (rc == MDB_NOTFOUND)
				rc = mdb_cursor_get(cursor, &k, &v, MDB_LAST);
		}
		else
			rc = mdb_cursor_get(cursor, &k, &v, MDB_LAST);
	}
	for (; rc == 0; rc = mdb_cursor_get(cursor, &k, &v, step))
	{
		size_t		n;

		if (!scan_take(scan, k.mv_data, k.mv_size, &v, false))
			break;
		if (scan->backward)
			continue;
		/* what follows on the same page, without a call for each */
		if (scan->cut && scan->cut->prefix == 0 && !scan->filter)
		{
			if (!scan_count(scan, cursor))
				return 0;
			continue;
		}
		n = scan->max_rows - scan->rows;
		n = leaf_rest(cursor, nodes, n < LEAF_NODES ? n : LEAF_NODES);
		if (n > 0)
		{
			bool		inside = !scan_beyond(scan, nodes[n - 1].key, nodes[n - 1].key_len);

			for (size_t i = 0; i < n; i++)
			{
				if (!scan_take(scan, nodes[i].key, nodes[i].key_len, &nodes[i].data, inside))
					return 0;
			}
		}
	}
	return rc;
}

static StoreStatus
scan_batch(StoreReader *reader, StoreBytes lo, StoreBytes hi, bool backward, int64_t tau, size_t max_rows,
		   size_t max_bytes, StoreWhere *where, StoreCut *cut, StoreBuffer *batch, bool *more)
{
	Scan		scan = {
		.reader = reader, .lo = lo, .hi = hi, .backward = backward, .tau = tau, .max_rows = max_rows,
		.max_bytes = max_bytes, .where = where, .cut = cut, .batch = batch, .start = batch->len, .status = STORE_OK
	};
	StoreStatus status;
	int			rc;

	*more = false;
	if (where)
	{
		const char *why;

		where->resume_len = 0;
		scan.filter = filter_compile(where->program.data, where->program.len, &why);
		if (scan.filter == NULL)
			return why ? fail(STORE_MALFORMED, "the filter of a scan is not well-formed: %s", why)
				: fail(STORE_FAILED, "out of memory");
	}
	status = read_begin_at(reader, tau);
	if (status != STORE_OK)
	{
		filter_free(scan.filter);
		return status;
	}
	if (hi.len == 8)
		scan.hi_prefix = load_be64(hi.data);
	rc = mdb_cursor_renew(reader->txn, reader->cursor);
	if (rc == 0)
		rc = scan_range(&scan, reader->cursor);
	if (rc != 0 && rc != MDB_NOTFOUND)
		scan.status = lmdb_fail(rc, "cannot read the store");
	if (cut)
		cut->rows = scan.rows;
	if (cut && scan.rows > 0)
	{
		cut->last_len = scan.last.len;
		memcpy(cut->last, scan.last.data, scan.last.len);
	}
	read_end(reader);
	filter_free(scan.filter);
	if (scan.status != STORE_OK)
		batch->len = scan.start;
	*more = scan.more;
	return scan.status;
}

StoreStatus
store_scan_batch(StoreReader *reader, StoreBytes lo, StoreBytes hi, bool backward, int64_t tau,
				 size_t max_rows, size_t max_bytes, StoreBuffer *batch, bool *more)
{
	return scan_batch(reader, lo, hi, backward, tau, max_rows, max_bytes, NULL, NULL, batch, more);
}

StoreStatus
store_scan_cut(StoreReader *reader, StoreBytes lo, StoreBytes hi, int64_t tau, size_t max_rows,
			   size_t max_bytes, StoreCut *cut, StoreBuffer *batch, bool *more)
{
	return scan_batch(reader, lo, hi, false, tau, max_rows, max_bytes, NULL, cut, batch, more);
}

StoreStatus
store_scan_where(StoreReader *reader, StoreBytes lo, StoreBytes hi, bool backward, int64_t tau, size_t max_rows,
				 size_t max_bytes, StoreWhere *where, StoreCut *cut, StoreBuffer *batch, bool *more)
{
	return scan_batch(reader, lo, hi, backward, tau, max_rows, max_bytes, where, cut, batch, more);
}

#define SPLIT_MAX 256
#define SPLIT_KEY_MAX UINT8_MAX

StoreStatus
store_split(StoreReader *reader, StoreBytes lo, StoreBytes hi, size_t max, StoreBuffer *keys)
{
	MDB_val		found[SPLIT_MAX];
	MDB_val		from = val(lo.data, lo.len);
	MDB_val		to = val(hi.data, hi.len);
	size_t		n = 0;
	StoreStatus status = read_begin(reader);
	int			rc;

	if (status != STORE_OK)
		return status;
	rc = mdb_cursor_renew(reader->txn, reader->cursor);
	if (rc == 0)
	{
		MDB_val		k = from;
		MDB_val		v;

		/* it learns where the tree's root is now */
		rc = mdb_cursor_get(reader->cursor, &k, &v, MDB_SET_RANGE);
	}
	if (rc == MDB_NOTFOUND)
		rc = 0;
	else if (rc == 0)
		rc = leaf_split(reader->cursor, &from, &to, found, max < SPLIT_MAX ? max : SPLIT_MAX, &n);
	for (size_t i = 0; rc == 0 && i < n; i++)
	{
		uint8_t		len = found[i].mv_size < SPLIT_KEY_MAX ? found[i].mv_size : SPLIT_KEY_MAX;

		if (!make_room(keys, 1 + (size_t) len))
		{
			status = fail(STORE_FAILED, "out of memory for %zu bytes", keys->len);
			break;
		}
		keys->data[keys->len] = len;
		memcpy(keys->data + keys->len + 1, found[i].mv_data, len);
		keys->len += 1 + (size_t) len;
	}
	read_end(reader);
	return rc == 0 ? status : lmdb_fail(rc, "cannot read the store");
}

#define STATS_KEY_LEN 14

static void
stats_key(uint8_t key[STATS_KEY_LEN], uint64_t relid)
{
	memcpy(key, "stats/", 6);
	store_be64(key + 6, relid);
}

static int
stats_get(MDB_txn *txn, MDB_dbi meta, uint64_t relid, StoreStats *stats)
{
	uint8_t		name[STATS_KEY_LEN];
	MDB_val		k = val(name, sizeof(name));
	MDB_val		v;
	int			rc;

	stats_key(name, relid);
	memset(stats, 0, sizeof(*stats));
	rc = mdb_get(txn, meta, &k, &v);
	if (rc == 0 && v.mv_size == 16)
	{
		stats->rows = load64(v.mv_data);
		stats->bytes = load64((uint8_t *) v.mv_data + 8);
	}
	return rc == MDB_NOTFOUND ? 0 : rc;
}

StoreStatus
store_stats(StoreReader *reader, const uint64_t *relids, size_t n, StoreStats *stats)
{
	StoreStatus status = read_begin(reader);
	size_t		i;
	int			rc = 0;

	if (status != STORE_OK)
		return status;
	for (i = 0; i < n && rc == 0; i++)
		rc = stats_get(reader->txn, reader->store->meta, relids[i], &stats[i]);
	read_end(reader);
	return rc == 0 ? STORE_OK : lmdb_fail(rc, "statistics");
}

StoreStatus
store_meta(StoreReader *reader, StoreBytes key, StoreBuffer *value, bool *found)
{
	StoreStatus status = read_begin(reader);
	MDB_val		k = val(key.data, key.len);
	MDB_val		v;
	int			rc;

	*found = false;
	if (status != STORE_OK)
		return status;
	rc = mdb_get(reader->txn, reader->store->meta, &k, &v);
	if (rc == 0)
	{
		if (make_room(value, v.mv_size))
		{
			memcpy(value->data + value->len, v.mv_data, v.mv_size);
			value->len += v.mv_size;
			*found = true;
		}
		else
			status = fail(STORE_FAILED, "out of memory for %zu bytes", v.mv_size);
	}
	else if (rc != MDB_NOTFOUND && rc != MDB_BAD_VALSIZE)
		status = lmdb_fail(rc, "meta");
	read_end(reader);
	return status;
}

StoreStatus
store_times(StoreReader *reader, int64_t *applied, int64_t *horizon)
{
	StoreStatus status = read_begin_at(reader, INT64_MAX);
	MDB_val		v;
	int			rc;

	if (status != STORE_OK)
		return status;
	rc = meta_get(reader->txn, reader->store->meta, "applied", &v);
	if (rc != 0)
		status = lmdb_fail(rc, "applied time");
	else if (v.mv_size != 8)
		status = fail(STORE_DAMAGED, "the store's applied time is damaged");
	else
		*applied = load64(v.mv_data);
	*horizon = reader->horizon;
	read_end(reader);
	return status;
}

/* ----------------------------------------------------- messages to apply */

/* One key to write. */
typedef struct Write
{
	const uint8_t *key;
	const uint8_t *value;
	int64_t		tau;
	uint32_t	key_len;
	uint32_t	value_len;
	uint32_t	number;			/* order within the batch */
	bool		tombstone;
	bool		ingested;		/* keeps no history */
} Write;

typedef struct WriteList
{
	Write	   *items;
	size_t		n;
	size_t		cap;
	bool		sorted;
} WriteList;

#define TAG_COMMIT 2
#define TAG_INGEST 6
#define TAG_DROP 8
#define MODE_LOCK_ONLY 0x08
#define MODE_DELETE 0x10
#define MODE_VALIDATE 0x20

static int
compare_writes(const void *left, const void *right)
{
	const Write *a = left;
	const Write *b = right;
	int			c = compare(a->key, a->key_len, b->key, b->key_len);

	if (c == 0)
		c = (a->tau > b->tau) - (a->tau < b->tau);
	return c != 0 ? c : (a->number > b->number) - (a->number < b->number);
}

static StoreStatus
malformed(const char *what)
{
	return fail(STORE_MALFORMED, "a journal record cannot be applied: %s", what);
}

/* Move to the keys of a Commit or Ingest: their number, and which of both. */
static StoreStatus
find_keys(Mp *mp, uint32_t *n, uint64_t *tag)
{
	uint32_t	fields = mp_array(mp);
	uint32_t	i;

	*tag = mp_be(mp, 1);
	*n = 0;
	if (mp->bad || fields == 0)
		return malformed("not a message");
	if (*tag == TAG_DROP)
		return STORE_OK;
	if (*tag != TAG_COMMIT && *tag != TAG_INGEST)
		return malformed("neither Commit nor Ingest nor Drop");
	if (fields < (*tag == TAG_INGEST ? 7 : 9))
		return malformed("too few fields");
	for (i = 0; i < (*tag == TAG_INGEST ? 3 : 5); i++)
		mp_skip(mp, 0);
	*n = mp_array(mp);
	return mp->bad ? malformed("bad keys") : STORE_OK;
}

StoreStatus
store_message_relations(StoreBytes body, StoreBuffer *relids)
{
	Mp			keys = {body.data, (const uint8_t *) body.data + body.len, false};
	uint32_t	n,
				i;
	uint64_t	tag,
				last = 0;
	StoreStatus status = find_keys(&keys, &n, &tag);

	for (i = 0; i < n && status == STORE_OK; i++)
	{
		StoreBytes	key = mp_bytes(&keys);
		uint64_t	relid;

		if (keys.bad || key.len < 8)
			return malformed("key of a length that keys do not have");
		relid = load_be64(key.data);
		if (i > 0 && relid == last)
			continue;
		last = relid;
		if (!make_room(relids, sizeof(relid)))
			return fail(STORE_FAILED, "out of memory");
		memcpy(relids->data + relids->len, &relid, sizeof(relid));
		relids->len += sizeof(relid);
	}
	return status;
}

static int
compare_relids(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(uint64_t));
}

bool
store_message_avoids(StoreBytes body, StoreBytes relids)
{
	Mp			keys = {body.data, (const uint8_t *) body.data + body.len, false};
	const uint8_t *last = NULL;
	uint32_t	n,
				i;
	uint64_t	tag;

	if (relids.len == 0)
		return true;
	if (find_keys(&keys, &n, &tag) != STORE_OK)
		return false;
	for (i = 0; i < n; i++)
	{
		StoreBytes	key = mp_bytes(&keys);

		if (keys.bad || key.len < 8)
			return false;
		if (last != NULL && memcmp(last, key.data, 8) == 0)
			continue;
		last = key.data;
		if (bsearch(last, relids.data, relids.len / sizeof(uint64_t), sizeof(uint64_t), compare_relids))
			return false;
	}
	return true;
}

/* Add the writes of one message body to the list. */
static StoreStatus
collect_writes(WriteList *list, int64_t tau, StoreBytes body)
{
	Mp			keys = {body.data, (const uint8_t *) body.data + body.len, false};
	Mp			values;
	StoreBytes	modes;
	uint32_t	n,
				i;
	uint64_t	tag;
	bool		ingested;
	StoreStatus status = find_keys(&keys, &n, &tag);

	if (status != STORE_OK || tag == TAG_DROP)
		return status;
	ingested = tag == TAG_INGEST;

	/* keys and values are read side by side, so find the values first */
	values = keys;
	for (i = 0; i < n && !values.bad; i++)
		mp_bytes(&values);
	modes = mp_bytes(&values);
	if (values.bad)
		return malformed("bad keys or modes");
	if (modes.len != n || mp_array(&values) != n || values.bad)
		return malformed("keys, modes and values differ in number");

	if (list->n + n > list->cap)
	{
		size_t		cap = list->cap * 2 > list->n + n ? list->cap * 2 : list->n + n;
		Write	   *items = realloc(list->items, cap * sizeof(Write));

		if (!items)
			return fail(STORE_FAILED, "out of memory for %zu writes", cap);
		list->items = items;
		list->cap = cap;
	}
	for (i = 0; i < n; i++)
	{
		uint8_t		mode = ((const uint8_t *) modes.data)[i];
		StoreBytes	key = mp_bytes(&keys);
		StoreBytes	value = {NULL, 0};
		bool		nil = values.p < values.end && *values.p == 0xc0;
		Write	   *w;

		if (nil)
			values.p++;
		else
			value = mp_bytes(&values);
		if (values.bad)
			return malformed("bad value");
		if (mode & (MODE_LOCK_ONLY | MODE_VALIDATE))
			continue;
		if (key.len < 8 || key.len > STORE_MAX_KEY)
			return malformed("key of a length that keys do not have");
		if (nil && !(mode & MODE_DELETE))
			return malformed("write without a value");
		w = &list->items[list->n];
		w->key = key.data;
		w->key_len = key.len;
		w->value = value.data;
		w->value_len = value.len;
		w->tau = tau;
		w->number = list->n;
		w->tombstone = (mode & MODE_DELETE) != 0;
		w->ingested = ingested;
		if (list->n > 0 && list->sorted && compare_writes(w - 1, w) > 0)
			list->sorted = false;
		list->n++;
	}
	return STORE_OK;
}

/* ---------------------------------------------------------------- writing */

/*
 * A version that was superseded, until it goes to hist: main is written in
 * key order, hist in (tau, key) order.
 */
typedef struct Pending
{
	const Write *write;			/* what superseded it */
	int64_t		tau;
	uint8_t		flags;
	size_t		offset;			/* of its value in the arena */
	size_t		len;
} Pending;

/* A write transaction with what belongs to it. */
typedef struct Writing
{
	Store	   *store;
	MDB_txn    *txn;
	MDB_cursor *main;
	MDB_cursor *hist;

	Pending    *pending;
	size_t		n_pending;
	size_t		cap_pending;
	StoreBuffer arena;

	/* statistics of the relation id at hand; keys come sorted */
	uint64_t	relid;
	StoreStats	delta;
	bool		has_delta;
} Writing;

/* The caller holds store->lock. */
static StoreStatus
write_begin(Writing *w, Store *store)
{
	int			rc;

	memset(w, 0, sizeof(*w));
	w->store = store;
	if (!store->writer)
		return fail(STORE_FAILED, "the store was opened for reading");
	if (store->clean)
	{
		/*
		 * The mark must be gone from the disk before anything of this write
		 * can get there.
		 */
		char		mark[BOOT_ID_LEN + 1];

		boot_mark(mark, false);
		rc = mdb_txn_begin(store->env, NULL, 0, &w->txn);
		if (rc == 0)
		{
			rc = meta_put(w->txn, store->meta, "boot", mark, sizeof(mark));
			if (rc == 0)
				rc = mdb_txn_commit(w->txn);
			else
				mdb_txn_abort(w->txn);
		}
		if (rc == 0)
			rc = mdb_env_sync(store->env, 1);
		if (rc != 0)
			return lmdb_fail(rc, "cannot remove the store's clean mark");
		store->clean = false;
	}
	rc = mdb_txn_begin(store->env, NULL, 0, &w->txn);
	if (rc != 0)
		return lmdb_fail(rc, "cannot write to the store");
	rc = mdb_cursor_open(w->txn, store->main, &w->main);
	if (rc == 0)
		rc = mdb_cursor_open(w->txn, store->hist, &w->hist);
	if (rc != 0)
	{
		if (w->main)
			mdb_cursor_close(w->main);
		mdb_txn_abort(w->txn);
		return lmdb_fail(rc, "cannot write to the store");
	}
	return STORE_OK;
}

/* Commit, or abort when status is not STORE_OK; returns the final status. */
static StoreStatus
write_end(Writing *w, StoreStatus status)
{
	mdb_cursor_close(w->main);
	mdb_cursor_close(w->hist);
	free(w->pending);
	free(w->arena.data);
	if (status != STORE_OK)
	{
		mdb_txn_abort(w->txn);
		return status;
	}
	else
	{
		int			rc = mdb_txn_commit(w->txn);

		return rc == 0 ? STORE_OK : lmdb_fail(rc, "cannot write to the store");
	}
}

static int
flush_stats(Writing *w)
{
	uint8_t		name[STATS_KEY_LEN];
	MDB_val		k = val(name, sizeof(name));
	MDB_val		v;
	StoreStats	stats;
	int64_t		image[2];
	int			rc;

	if (!w->has_delta)
		return 0;
	w->has_delta = false;
	if (w->delta.rows == 0 && w->delta.bytes == 0)
		return 0;
	rc = stats_get(w->txn, w->store->meta, w->relid, &stats);
	if (rc != 0)
		return rc;
	image[0] = stats.rows + w->delta.rows;
	image[1] = stats.bytes + w->delta.bytes;
	stats_key(name, w->relid);
	v = val(image, sizeof(image));
	return mdb_put(w->txn, w->store->meta, &k, &v, 0);
}

static int
count(Writing *w, const void *key, size_t key_len, int rows, size_t value_len)
{
	uint64_t	relid = load_be64(key);
	int			rc = 0;

	if (!w->has_delta || w->relid != relid)
	{
		rc = flush_stats(w);
		w->relid = relid;
		memset(&w->delta, 0, sizeof(w->delta));
		w->has_delta = true;
	}
	w->delta.rows += rows;
	w->delta.bytes += rows * (int64_t) (key_len + value_len);
	return rc;
}

static int
compare_pending(const void *left, const void *right)
{
	const Write *a = ((const Pending *) left)->write;
	const Write *b = ((const Pending *) right)->write;

	if (a->tau != b->tau)
		return a->tau > b->tau ? 1 : -1;
	return compare(a->key, a->key_len, b->key, b->key_len);
}

/* Put a version at (superseder, key) in hist, by appending if it is last. */
static int
put_hist(Writing *w, int64_t superseder, const void *key, size_t key_len, int64_t tau, uint8_t flags,
		 const void *value, size_t len)
{
	uint8_t		name[8 + STORE_MAX_KEY];
	MDB_val		k = val(name, 8 + key_len);
	MDB_val		v = val(NULL, VERSION_HEADER + len);
	uint8_t    *p;
	int			rc;

	store_be64(name, superseder);
	memcpy(name + 8, key, key_len);
	rc = mdb_cursor_put(w->hist, &k, &v, MDB_APPEND | MDB_RESERVE);
	if (rc == MDB_KEYEXIST)
	{
		v = val(NULL, VERSION_HEADER + len);
		rc = mdb_cursor_put(w->hist, &k, &v, MDB_RESERVE);
	}
	if (rc != 0)
		return rc;
	p = v.mv_data;
	store64(p, tau);
	p[8] = flags;
	if (len > 0)
		memcpy(p + VERSION_HEADER, value, len);
	return 0;
}

static int
flush_pending(Writing *w)
{
	size_t		i;
	int			rc = 0;

	for (i = 1; i < w->n_pending; i++)
		if (compare_pending(&w->pending[i - 1], &w->pending[i]) > 0)
		{
			qsort(w->pending, w->n_pending, sizeof(Pending), compare_pending);
			break;
		}
	for (i = 0; i < w->n_pending && rc == 0; i++)
	{
		const Pending *p = &w->pending[i];

		rc = put_hist(w, p->write->tau, p->write->key, p->write->key_len, p->tau, p->flags,
					  w->arena.data + p->offset, p->len);
	}
	w->n_pending = 0;
	w->arena.len = 0;
	return rc;
}

/* Remember that `write` superseded `old` (NULL: nothing). */
static int
add_pending(Writing *w, const Write *write, const Version *old)
{
	Pending    *p;

	if (w->n_pending == w->cap_pending)
	{
		size_t		cap = w->cap_pending ? w->cap_pending * 2 : 16;
		Pending    *items = realloc(w->pending, cap * sizeof(Pending));

		if (!items)
			return ENOMEM;
		w->pending = items;
		w->cap_pending = cap;
	}
	if (old && !make_room(&w->arena, old->len))
		return ENOMEM;
	p = &w->pending[w->n_pending++];
	p->write = write;
	p->tau = old ? old->tau : 0;
	p->flags = old ? old->flags : FLAG_NONE;
	p->offset = w->arena.len;
	p->len = old ? old->len : 0;
	if (old && old->len > 0)
	{
		memcpy(w->arena.data + w->arena.len, old->value, old->len);
		w->arena.len += old->len;
	}
	return 0;
}

/* Bring one write into main; its superseded version becomes pending. */
static StoreStatus
apply_write(Writing *w, const Write *write, bool *flush)
{
	MDB_val		k = val(write->key, write->key_len);
	size_t		size = VERSION_HEADER + write->value_len;
	MDB_val		v = val(NULL, size);
	Version		old;
	bool		exists;
	uint8_t    *p;
	int			rc;

	/* Insert at once if the key is new: one descent of the tree, not two. */
	if (write->tombstone)
	{
		rc = mdb_cursor_get(w->main, &k, &v, MDB_SET);
		if (rc == MDB_NOTFOUND)
			return STORE_OK;
		exists = true;
	}
	else
	{
		rc = mdb_cursor_put(w->main, &k, &v, MDB_NOOVERWRITE | MDB_RESERVE);
		exists = rc == MDB_KEYEXIST;
		if (exists)
			rc = 0;
	}
	if (rc != 0)
		return lmdb_fail(rc, "cannot write to the store");

	if (exists)
	{
		if (!parse_version(&v, &old))
			return bad_version();
		if (old.tau >= write->tau && !(write->ingested && old.tau == write->tau))
			return STORE_OK;
		if (write->tombstone && old.flags == FLAG_TOMBSTONE)
			return STORE_OK;
		if (!write->ingested)
			rc = add_pending(w, write, &old);
		if (rc == 0 && old.flags == FLAG_VALUE)
			rc = count(w, write->key, write->key_len, -1, old.len);
		if (rc == 0 && write->tombstone && write->ingested)
		{
			rc = mdb_cursor_del(w->main, 0);
			return rc == 0 ? STORE_OK : lmdb_fail(rc, "cannot write to the store");
		}
		if (rc == 0)
		{
			k = val(write->key, write->key_len);
			v = val(NULL, write->tombstone ? VERSION_HEADER : size);
			rc = mdb_cursor_put(w->main, &k, &v, MDB_CURRENT | MDB_RESERVE);
		}
	}
	if (rc != 0)
		return lmdb_fail(rc, "cannot write to the store");

	p = v.mv_data;
	store64(p, write->tau);
	p[8] = write->tombstone ? FLAG_TOMBSTONE : FLAG_VALUE;
	if (!write->tombstone)
	{
		if (write->value_len > 0)
			memcpy(p + VERSION_HEADER, write->value, write->value_len);
		rc = count(w, write->key, write->key_len, 1, write->value_len);
	}
	if (rc == 0 && !exists && !write->ingested)
		rc = add_pending(w, write, NULL);
	if (rc != 0)
		return lmdb_fail(rc, "cannot write to the store");
	*flush = w->n_pending >= PENDING_ITEMS || w->arena.len >= PENDING_BYTES;
	return STORE_OK;
}

/* May callers set this meta record? */
static StoreStatus
check_meta_key(StoreBytes key)
{
	static const char *const reserved[] = {"format", "cluster", "boot", "applied", "horizon", "position", "check"};
	size_t		i;

	for (i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++)
		if (compare(key.data, key.len, reserved[i], strlen(reserved[i])) == 0)
			return fail(STORE_FAILED, "meta record \"%s\" is the store's own", reserved[i]);
	if (key.len == 0 || key.len > STORE_MAX_KEY || (key.len >= 6 && memcmp(key.data, "stats/", 6) == 0))
		return fail(STORE_FAILED, "this name is not for meta records");
	return STORE_OK;
}

/* Ranges as u16 length and bytes (big-endian) of each lo and hi. */
StoreStatus
store_set_ranges(Store *store, StoreBytes packed)
{
	const uint8_t *data = packed.data;
	uint8_t    *copy = NULL;
	StoreBytes *bounds = NULL;
	size_t		n = 0,
				at,
				i;

	for (at = 0; at < packed.len; n++)
	{
		size_t		len = at + 2 <= packed.len ? (size_t) data[at] << 8 | data[at + 1] : packed.len;

		if (at + 2 > packed.len || len > packed.len - at - 2)
			return fail(STORE_MALFORMED, "ranges of keys that are cut short");
		at += 2 + len;
	}
	if (n % 2 != 0)
		return fail(STORE_MALFORMED, "a range of keys without an end");
	if (n > 0)
	{
		copy = malloc(packed.len);
		bounds = malloc(n * sizeof(StoreBytes));
		if (!copy || !bounds)
		{
			free(copy);
			free(bounds);
			return fail(STORE_FAILED, "out of memory");
		}
		memcpy(copy, data, packed.len);
		for (at = 0, i = 0; i < n; i++)
		{
			size_t		len = (size_t) copy[at] << 8 | copy[at + 1];

			bounds[i] = (StoreBytes) {copy + at + 2, len};
			at += 2 + len;
		}
	}
	pthread_mutex_lock(&store->lock);
	free(store->ranges);
	free(store->bounds);
	store->ranges = copy;
	store->bounds = bounds;
	store->nranges = n / 2;
	pthread_mutex_unlock(&store->lock);
	return STORE_OK;
}

static int
compare_bytes(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
	int			cmp = memcmp(a, b, a_len < b_len ? a_len : b_len);

	return cmp != 0 ? cmp : (a_len > b_len) - (a_len < b_len);
}

/* Is a key one of ours? The last range that begins at or below it says so. */
static bool
in_ranges(const Store *store, const Write *write)
{
	size_t		low = 0,
				high = store->nranges;

	while (low < high)
	{
		size_t		middle = (low + high) / 2;
		StoreBytes	lo = store->bounds[2 * middle];

		if (compare_bytes(lo.data, lo.len, write->key, write->key_len) <= 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == 0)
		return false;
	return compare_bytes(write->key, write->key_len,
						 store->bounds[2 * low - 1].data, store->bounds[2 * low - 1].len) < 0;
}

/* Leave out what belongs to other shards. */
static void
keep_ours(const Store *store, WriteList *list)
{
	size_t		kept = 0;

	if (!store->bounds)
		return;
	for (size_t i = 0; i < list->n; i++)
		if (in_ranges(store, &list->items[i]))
			list->items[kept++] = list->items[i];
	list->n = kept;
}

StoreStatus
store_apply(Store *store, const StoreRecord *records, size_t n, StoreBytes position, const StoreMeta *meta)
{
	WriteList	list = {.sorted = true};
	Writing		w;
	StoreStatus status = STORE_OK;
	int64_t		applied;
	const void *new_position;
	size_t		new_position_len;
	size_t		i;

	if (position.data && position.len > MAX_POSITION)
		return fail(STORE_FAILED, "a journal position of %zu bytes", position.len);
	if (meta && (status = check_meta_key(meta->key)) != STORE_OK)
		return status;
	pthread_mutex_lock(&store->lock);
	applied = store->applied;
	for (i = 0; i < n && status == STORE_OK; i++)
	{
		if (records[i].tau <= applied)
		{
			/* rule S1; but records out of order would be lost silently */
			if (applied != store->applied)
				status = fail(STORE_MALFORMED, "records to apply are not in the order of their times");
			continue;
		}
		status = collect_writes(&list, records[i].tau, records[i].body);
		applied = records[i].tau;
	}
	if (status != STORE_OK || (applied == store->applied && !position.data && !meta))
	{
		pthread_mutex_unlock(&store->lock);
		free(list.items);
		return status;
	}
	new_position = position.data ? position.data : store->position;
	new_position_len = position.data ? position.len : store->position_len;
	keep_ours(store, &list);
	if (!list.sorted)
		qsort(list.items, list.n, sizeof(Write), compare_writes);

	status = write_begin(&w, store);
	if (status == STORE_OK)
	{
		int			rc = 0;

		for (i = 0; i < list.n && status == STORE_OK; i++)
		{
			bool		flush = false;

			status = apply_write(&w, &list.items[i], &flush);
			if (status == STORE_OK && flush && (rc = flush_pending(&w)) != 0)
				status = lmdb_fail(rc, "cannot write to the store");
		}
		if (status == STORE_OK)
		{
			rc = flush_pending(&w);
			if (rc == 0)
				rc = flush_stats(&w);
			if (rc == 0 && meta)
			{
				MDB_val		k = val(meta->key.data, meta->key.len);
				MDB_val		v = val(meta->value.data, meta->value.len);

				rc = mdb_put(w.txn, store->meta, &k, &v, 0);
			}
			if (rc == 0)
				rc = meta_put_state(store, w.txn, applied, store->horizon, new_position, new_position_len);
			if (rc != 0)
				status = lmdb_fail(rc, "cannot write to the store");
		}
		status = write_end(&w, status);
		if (status == STORE_OK)
			keep_state(store, applied, store->horizon, new_position, new_position_len);
	}
	pthread_mutex_unlock(&store->lock);
	free(list.items);
	return status;
}

int64_t
store_applied(const Store *store)
{
	return __atomic_load_n(&store->applied, __ATOMIC_ACQUIRE);
}

/* Make `version` (NULL: nothing) the newest one of a key. */
static StoreStatus
restore_version(Writing *w, const uint8_t *key, size_t key_len, const Version *version)
{
	MDB_val		k = val(key, key_len);
	MDB_val		v;
	Version		current;
	uint8_t    *p;
	int			rc = mdb_cursor_get(w->main, &k, &v, MDB_SET);

	if (rc == 0)
	{
		if (!parse_version(&v, &current))
			return bad_version();
		if (current.flags == FLAG_VALUE)
			rc = count(w, key, key_len, -1, current.len);
		if (rc == 0 && !version)
			rc = mdb_cursor_del(w->main, 0);
	}
	else if (rc == MDB_NOTFOUND)
		rc = 0;
	if (rc == 0 && version)
	{
		k = val(key, key_len);
		v = val(NULL, VERSION_HEADER + version->len);
		rc = mdb_cursor_put(w->main, &k, &v, MDB_RESERVE);
		if (rc == 0)
		{
			p = v.mv_data;
			store64(p, version->tau);
			p[8] = version->flags;
			if (version->len > 0)
				memcpy(p + VERSION_HEADER, version->value, version->len);
			if (version->flags == FLAG_VALUE)
				rc = count(w, key, key_len, 1, version->len);
		}
	}
	return rc == 0 ? STORE_OK : lmdb_fail(rc, "cannot undo");
}

StoreStatus
store_rollback(Store *store, int64_t tau)
{
	Writing		w;
	StoreStatus status;
	StoreBuffer old = {0};
	int			rc = 0;

	pthread_mutex_lock(&store->lock);
	if (tau >= store->applied)
	{
		pthread_mutex_unlock(&store->lock);
		return STORE_OK;
	}
	if (tau < store->horizon)
	{
		status = fail(STORE_TOO_OLD, "cannot undo to %lld: history reaches back to %lld only", (long long) tau,
					  (long long) store->horizon);
		pthread_mutex_unlock(&store->lock);
		return status;
	}
	status = write_begin(&w, store);
	if (status != STORE_OK)
	{
		pthread_mutex_unlock(&store->lock);
		return status;
	}
	while (status == STORE_OK)
	{
		MDB_val		k,
					v;
		Version		version;
		uint8_t		key[STORE_MAX_KEY];
		size_t		key_len;

		rc = mdb_cursor_get(w.hist, &k, &v, MDB_LAST);
		if (rc != 0)
			break;
		if (k.mv_size < 16 || k.mv_size > 8 + STORE_MAX_KEY || !parse_version(&v, &version))
		{
			status = bad_version();
			break;
		}
		if ((int64_t) load_be64(k.mv_data) <= tau)
			break;
		/* pages may move under writes: copy first */
		key_len = k.mv_size - 8;
		memcpy(key, (uint8_t *) k.mv_data + 8, key_len);
		old.len = 0;
		if (!make_room(&old, version.len + 1))
		{
			status = fail(STORE_FAILED, "out of memory");
			break;
		}
		memcpy(old.data, version.value, version.len);
		version.value = old.data;
		rc = mdb_cursor_del(w.hist, 0);
		if (rc != 0)
			break;

		/*
		 * A tombstone at or below the horizon stays away: its own entry of hist
		 * may be gone, and then nothing would ever remove it.
		 */
		status = restore_version(&w, key, key_len, version.flags == FLAG_NONE ||
								 (version.flags == FLAG_TOMBSTONE && version.tau <= store->horizon) ? NULL : &version);
	}
	if (status == STORE_OK && rc == MDB_NOTFOUND)
		rc = 0;
	if (status == STORE_OK && rc == 0)
		rc = flush_stats(&w);
	if (status == STORE_OK && rc == 0)
		rc = meta_put_state(store, w.txn, tau, store->horizon, store->position, store->position_len);
	if (status == STORE_OK && rc != 0)
		status = lmdb_fail(rc, "cannot undo");
	status = write_end(&w, status);
	if (status == STORE_OK)
		keep_state(store, tau, store->horizon, store->position, store->position_len);
	pthread_mutex_unlock(&store->lock);
	free(old.data);
	return status;
}

StoreStatus
store_collect(Store *store, int64_t horizon, size_t max_entries, size_t *removed)
{
	Writing		w;
	StoreStatus status = STORE_OK;
	int			rc = 0;

	*removed = 0;
	pthread_mutex_lock(&store->lock);
	if (horizon < store->horizon)
		horizon = store->horizon;
	status = write_begin(&w, store);
	if (status != STORE_OK)
	{
		pthread_mutex_unlock(&store->lock);
		return status;
	}
	while (*removed < max_entries)
	{
		MDB_val		k,
					v;
		Version		version;
		int64_t		superseder;

		rc = mdb_cursor_get(w.hist, &k, &v, MDB_FIRST);
		if (rc != 0)
			break;
		if (k.mv_size < 16 || !parse_version(&v, &version))
		{
			status = bad_version();
			break;
		}
		superseder = (int64_t) load_be64(k.mv_data);
		if (superseder > horizon)
			break;
		if (version.flags == FLAG_VALUE)
		{
			/* was it superseded by a tombstone that is still the newest? */
			MDB_val		main_key = val((uint8_t *) k.mv_data + 8, k.mv_size - 8);

			rc = mdb_cursor_get(w.main, &main_key, &v, MDB_SET);
			if (rc == 0)
			{
				if (!parse_version(&v, &version))
				{
					status = bad_version();
					break;
				}
				if (version.flags == FLAG_TOMBSTONE && version.tau == superseder)
					rc = mdb_cursor_del(w.main, 0);
			}
			else if (rc == MDB_NOTFOUND)
				rc = 0;
		}
		if (rc == 0)
			rc = mdb_cursor_del(w.hist, 0);
		if (rc != 0)
			break;
		(*removed)++;
	}
	if (status == STORE_OK && rc == MDB_NOTFOUND)
		rc = 0;
	if (status == STORE_OK && rc == 0 && horizon != store->horizon)
		rc = meta_put_state(store, w.txn, store->applied, horizon, store->position, store->position_len);
	if (status == STORE_OK && rc != 0)
		status = lmdb_fail(rc, "cannot collect garbage");
	status = write_end(&w, status);
	if (status == STORE_OK)
		keep_state(store, store->applied, horizon, store->position, store->position_len);
	else
		*removed = 0;
	pthread_mutex_unlock(&store->lock);
	return status;
}

StoreStatus
store_drop(Store *store, uint64_t relid, size_t max_entries, bool *done)
{
	Writing		w;
	StoreStatus status;
	uint8_t		prefix[8];
	uint8_t		name[STATS_KEY_LEN];
	size_t		removed = 0;
	MDB_val		k,
				v;
	int			rc = 0;

	*done = false;
	pthread_mutex_lock(&store->lock);
	status = write_begin(&w, store);
	if (status != STORE_OK)
	{
		pthread_mutex_unlock(&store->lock);
		return status;
	}
	store_be64(prefix, relid);
	while (removed < max_entries)
	{
		k = val(prefix, sizeof(prefix));
		rc = mdb_cursor_get(w.main, &k, &v, MDB_SET_RANGE);
		if (rc == 0 && (k.mv_size < 8 || memcmp(k.mv_data, prefix, 8) != 0))
			rc = MDB_NOTFOUND;
		if (rc == 0)
			rc = mdb_cursor_del(w.main, 0);
		if (rc != 0)
			break;
		removed++;
	}
	if (rc == MDB_NOTFOUND)
	{
		*done = true;
		rc = 0;
	}
	if (rc == 0)
	{
		stats_key(name, relid);
		k = val(name, sizeof(name));
		rc = mdb_del(w.txn, store->meta, &k, NULL);
		if (rc == MDB_NOTFOUND)
			rc = 0;
	}
	if (rc != 0)
		status = lmdb_fail(rc, "cannot drop");
	status = write_end(&w, status);
	if (status != STORE_OK)
		*done = false;
	pthread_mutex_unlock(&store->lock);
	return status;
}

/*
 * Their history stays until garbage collection meets it: nobody reads these
 * keys any more, and an entry of hist whose key is not in main is skipped.
 */
StoreStatus
store_erase(Store *store, StoreBytes lo, StoreBytes hi, size_t max_entries, bool *done)
{
	Writing		w;
	StoreStatus status;
	size_t		removed = 0;
	int			rc = 0;

	*done = false;
	if (lo.len > STORE_MAX_KEY || hi.len > STORE_MAX_KEY)
		return fail(STORE_FAILED, "a key of %zu bytes", lo.len > hi.len ? lo.len : hi.len);
	pthread_mutex_lock(&store->lock);
	status = write_begin(&w, store);
	if (status != STORE_OK)
	{
		pthread_mutex_unlock(&store->lock);
		return status;
	}
	while (removed < max_entries)
	{
		MDB_val		k = val(lo.data, lo.len);
		MDB_val		v;
		Version		version;

		rc = mdb_cursor_get(w.main, &k, &v, lo.len > 0 ? MDB_SET_RANGE : MDB_FIRST);
		if (rc == 0 && hi.len > 0 && compare(k.mv_data, k.mv_size, hi.data, hi.len) >= 0)
			rc = MDB_NOTFOUND;
		if (rc != 0)
			break;
		if (!parse_version(&v, &version))
		{
			status = bad_version();
			break;
		}
		if (version.flags == FLAG_VALUE)
			rc = count(&w, k.mv_data, k.mv_size, -1, version.len);
		if (rc == 0)
			rc = mdb_cursor_del(w.main, 0);
		if (rc != 0)
			break;
		removed++;
	}
	if (status == STORE_OK && rc == MDB_NOTFOUND)
	{
		*done = true;
		rc = 0;
	}
	if (status == STORE_OK && rc == 0)
		rc = flush_stats(&w);
	if (status == STORE_OK && rc != 0)
		status = lmdb_fail(rc, "cannot erase");
	status = write_end(&w, status);
	if (status != STORE_OK)
		*done = false;
	pthread_mutex_unlock(&store->lock);
	return status;
}

/*
 * A page of versions: per key u32 length, u32 versions, the key, then from the
 * newest to the oldest i64 tau, u8 flags, u32 length, value.
 */
#define PAGE_KEY_HEADER 8
#define PAGE_VERSION_HEADER 13

static bool
page_put(StoreBuffer *page, const void *data, size_t len)
{
	if (!make_room(page, len))
		return false;
	memcpy(page->data + page->len, data, len);
	page->len += len;
	return true;
}

static bool
page_put_version(StoreBuffer *page, const Version *version)
{
	uint8_t		header[PAGE_VERSION_HEADER];
	uint32_t	len = (uint32_t) version->len;

	store64(header, version->tau);
	header[8] = version->flags;
	memcpy(header + 9, &len, 4);
	return page_put(page, header, sizeof(header)) && page_put(page, version->value, version->len);
}

/* One key of main with all its versions that a read at or above the horizon may need. */
static StoreStatus
export_key(StoreReader *reader, const MDB_val *key, Version version, int64_t horizon, StoreBuffer *page)
{
	size_t		at = page->len;
	uint32_t	header[2] = {(uint32_t) key->mv_size, 0};
	uint8_t		name[8 + STORE_MAX_KEY];

	if (key->mv_size > STORE_MAX_KEY)
		return bad_version();
	memcpy(name + 8, key->mv_data, key->mv_size);
	if (!page_put(page, header, sizeof(header)) || !page_put(page, key->mv_data, key->mv_size))
		return fail(STORE_FAILED, "out of memory");
	for (;;)
	{
		int64_t		newer = version.tau;
		MDB_val		k = val(name, 8 + key->mv_size);
		MDB_val		v;
		int			rc;

		if (!page_put_version(page, &version))
			return fail(STORE_FAILED, "out of memory");
		header[1]++;
		if (version.flags == FLAG_NONE || version.tau <= horizon)
			break;
		store_be64(name, newer);
		rc = mdb_get(reader->txn, reader->store->hist, &k, &v);
		if (rc == MDB_NOTFOUND)
			break;
		if (rc != 0)
			return lmdb_fail(rc, "history");
		if (!parse_version(&v, &version))
			return bad_version();
		if (version.flags != FLAG_NONE && version.tau >= newer)
			return fail(STORE_DAMAGED, "the history of a key goes in circles");
	}
	memcpy(page->data + at, header, sizeof(header));
	return STORE_OK;
}

StoreStatus
store_export(StoreReader *reader, StoreBytes lo, StoreBytes hi, size_t max_bytes, StoreBuffer *page, StoreBuffer *next,
			 int64_t *applied, int64_t *horizon)
{
	StoreStatus status = read_begin(reader);
	size_t		start = page->len;
	MDB_val		k = val(lo.data, lo.len);
	MDB_val		v;
	int			rc;

	if (status != STORE_OK)
		return status;
	rc = meta_get(reader->txn, reader->store->meta, "applied", &v);
	if (rc == 0 && v.mv_size == 8)
	{
		*applied = load64(v.mv_data);
		rc = meta_get(reader->txn, reader->store->meta, "horizon", &v);
	}
	if (rc == 0 && v.mv_size == 8)
		*horizon = load64(v.mv_data);
	else if (rc == 0)
		status = fail(STORE_DAMAGED, "the store's times are damaged");
	if (rc == 0)
		rc = mdb_cursor_renew(reader->txn, reader->cursor);
	if (rc == 0)
		rc = mdb_cursor_get(reader->cursor, &k, &v, lo.len > 0 ? MDB_SET_RANGE : MDB_FIRST);
	while (rc == 0 && status == STORE_OK)
	{
		Version		version;

		if (hi.len > 0 && compare(k.mv_data, k.mv_size, hi.data, hi.len) >= 0)
			break;
		if (page->len - start >= max_bytes)
		{
			if (!page_put(next, k.mv_data, k.mv_size))
				status = fail(STORE_FAILED, "out of memory");
			break;
		}
		if (!parse_version(&v, &version))
			status = bad_version();
		/* a tombstone that nobody can see would never be collected there */
		else if (version.flags != FLAG_TOMBSTONE || version.tau > *horizon)
			status = export_key(reader, &k, version, *horizon, page);
		if (status == STORE_OK)
			rc = mdb_cursor_get(reader->cursor, &k, &v, MDB_NEXT);
	}
	if (status == STORE_OK && rc != 0 && rc != MDB_NOTFOUND)
		status = lmdb_fail(rc, "cannot read the store");
	read_end(reader);
	if (status != STORE_OK)
		page->len = start;
	return status;
}

/* What is left of a page. */
typedef struct Page
{
	const uint8_t *at;
	size_t		left;
} Page;

static const uint8_t *
page_take(Page *page, size_t len)
{
	const uint8_t *taken = page->at;

	if (len > page->left)
		return NULL;
	page->at += len;
	page->left -= len;
	return taken;
}

static StoreStatus
import_key(Writing *w, Page *page, StoreBytes lo, StoreBytes hi, StoreBytes *last)
{
	const uint8_t *header = page_take(page, PAGE_KEY_HEADER);
	uint32_t	counts[2];
	const uint8_t *key;
	int64_t		newer = INT64_MAX;

	if (!header)
		return malformed("a page of versions that is cut short");
	memcpy(counts, header, sizeof(counts));
	key = page_take(page, counts[0]);
	if (!key || counts[0] == 0 || counts[0] > STORE_MAX_KEY || counts[1] == 0)
		return malformed("a page of versions with a key that is none");
	if (compare(key, counts[0], lo.data, lo.len) < 0 ||
		(hi.len > 0 && compare(key, counts[0], hi.data, hi.len) >= 0) ||
		(last->data && compare(key, counts[0], last->data, last->len) <= 0))
		return malformed("a page of versions with a key outside of its range or order");
	*last = (StoreBytes) {key, counts[0]};
	for (uint32_t i = 0; i < counts[1]; i++)
	{
		Version		version;
		uint32_t	len;
		int			rc;

		header = page_take(page, PAGE_VERSION_HEADER);
		if (!header)
			return malformed("a page of versions that is cut short");
		memcpy(&len, header + 9, 4);
		version.tau = load64(header);
		version.flags = header[8];
		version.len = len;
		version.value = page_take(page, len);
		if (!version.value || version.flags > FLAG_NONE || (i == 0 && version.flags == FLAG_NONE) ||
			(version.flags != FLAG_NONE && version.tau >= newer))
			return malformed("a page of versions with one that cannot be");
		if (i > 0)
			rc = put_hist(w, newer, key, counts[0], version.tau, version.flags, version.value, version.len);
		else
		{
			MDB_val		k = val(key, counts[0]);
			MDB_val		v = val(NULL, VERSION_HEADER + version.len);

			rc = mdb_cursor_put(w->main, &k, &v, MDB_NOOVERWRITE | MDB_RESERVE);
			if (rc == MDB_KEYEXIST)
				return fail(STORE_FAILED, "the store holds keys of a range that it is to take over");
			if (rc == 0)
			{
				uint8_t    *p = v.mv_data;

				store64(p, version.tau);
				p[8] = version.flags;
				if (len > 0)
					memcpy(p + VERSION_HEADER, version.value, len);
				if (version.flags == FLAG_VALUE)
					rc = count(w, key, counts[0], 1, version.len);
			}
		}
		if (rc != 0)
			return lmdb_fail(rc, "cannot take over a range");
		newer = version.tau;
	}
	return STORE_OK;
}

StoreStatus
store_import(Store *store, StoreBytes data, StoreBytes lo, StoreBytes hi, int64_t applied, int64_t horizon,
			 const StoreMeta *metas, size_t n)
{
	Writing		w;
	Page		page = {data.data, data.len};
	StoreBytes	last = {0};
	StoreStatus status = STORE_OK;

	for (size_t i = 0; i < n; i++)
		if ((status = check_meta_key(metas[i].key)) != STORE_OK)
			return status;
	pthread_mutex_lock(&store->lock);
	if (applied < store->applied)
		status = fail(STORE_FAILED, "versions as of %lld for a store that has applied %lld", (long long) applied,
					  (long long) store->applied);
	if (status == STORE_OK)
		status = write_begin(&w, store);
	if (status == STORE_OK)
	{
		int			rc = 0;

		if (horizon < store->horizon)
			horizon = store->horizon;
		while (page.left > 0 && status == STORE_OK)
			status = import_key(&w, &page, lo, hi, &last);
		if (status == STORE_OK)
		{
			rc = flush_stats(&w);
			for (size_t i = 0; i < n && rc == 0; i++)
			{
				MDB_val		k = val(metas[i].key.data, metas[i].key.len);
				MDB_val		v = val(metas[i].value.data, metas[i].value.len);

				rc = mdb_put(w.txn, store->meta, &k, &v, 0);
			}
			if (rc == 0)
				rc = meta_put_state(store, w.txn, store->applied, horizon, store->position, store->position_len);
			if (rc != 0)
				status = lmdb_fail(rc, "cannot take over a range");
		}
		status = write_end(&w, status);
		if (status == STORE_OK)
			keep_state(store, store->applied, horizon, store->position, store->position_len);
	}
	pthread_mutex_unlock(&store->lock);
	return status;
}

StoreStatus
store_set_meta(Store *store, StoreBytes key, StoreBytes value)
{
	Writing		w;
	StoreStatus status;
	MDB_val		k = val(key.data, key.len);
	MDB_val		v = val(value.data, value.len);
	int			rc;

	if ((status = check_meta_key(key)) != STORE_OK)
		return status;
	pthread_mutex_lock(&store->lock);
	status = write_begin(&w, store);
	if (status == STORE_OK)
	{
		rc = mdb_put(w.txn, store->meta, &k, &v, 0);
		status = write_end(&w, rc == 0 ? STORE_OK : lmdb_fail(rc, "meta"));
	}
	pthread_mutex_unlock(&store->lock);
	return status;
}

StoreStatus
store_sync(Store *store, bool clean)
{
	char		mark[BOOT_ID_LEN + 1];
	MDB_txn    *txn;
	int			rc;

	pthread_mutex_lock(&store->lock);
	if (!store->writer)
	{
		pthread_mutex_unlock(&store->lock);
		return fail(STORE_FAILED, "the store was opened for reading");
	}
	rc = mdb_env_sync(store->env, 1);
	if (rc == 0 && clean && !store->clean)
	{
		/* the mark goes to disk only after everything it vouches for */
		boot_mark(mark, true);
		rc = mdb_txn_begin(store->env, NULL, 0, &txn);
		if (rc == 0)
		{
			rc = meta_put(txn, store->meta, "boot", mark, sizeof(mark));
			if (rc == 0)
				rc = mdb_txn_commit(txn);
			else
				mdb_txn_abort(txn);
		}
		if (rc == 0)
		{
			store->clean = true;
			rc = mdb_env_sync(store->env, 1);
		}
	}
	pthread_mutex_unlock(&store->lock);
	return rc == 0 ? STORE_OK : lmdb_fail(rc, "cannot sync the store");
}

/* LMDB's end of a copy: it writes the pages that are in use, one after the other. */
typedef struct Copying
{
	MDB_env    *env;
	int			fd;				/* closed at the end */
	int			rc;
} Copying;

static void *
copy_pages(void *arg)
{
	Copying    *copying = arg;

	copying->rc = mdb_env_copyfd2(copying->env, copying->fd, MDB_CP_COMPACT);
	close(copying->fd);
	return NULL;
}

static int
write_all(int fd, const uint8_t *data, size_t len)
{
	while (len > 0)
	{
		ssize_t		n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? errno : ENOSPC;
		data += n;
		len -= (size_t) n;
	}
	return 0;
}

/*
 * Write what comes from a pipe, syncing piece by piece: a copy that were synced
 * at its end would make every commit of the same disk wait for all of it.
 */
static int
write_copy(int from, int to)
{
	uint8_t    *piece = malloc(COPY_PIECE);
	size_t		unsynced = 0;
	int			rc = piece ? 0 : ENOMEM;

	while (rc == 0)
	{
		ssize_t		n = read(from, piece, COPY_PIECE);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			rc = n < 0 ? errno : 0;
			break;
		}
		rc = write_all(to, piece, (size_t) n);
		unsynced += (size_t) n;
		if (rc == 0 && unsynced >= COPY_SYNC)
		{
			rc = fdatasync(to) != 0 ? errno : 0;
			unsynced = 0;
		}
	}
	if (rc == 0 && fsync(to) != 0)
		rc = errno;
	free(piece);
	return rc;
}

StoreStatus
store_copy(Store *store, const char *file)
{
	Copying		copying = {.env = store->env};
	pthread_t	thread;
	int			ends[2];
	int			fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int			rc;

	if (fd < 0)
		return fail(errno == ENOSPC ? STORE_FULL : STORE_FAILED, "cannot create %s: %s", file, strerror(errno));
	rc = pipe2(ends, O_CLOEXEC) != 0 ? errno : 0;
	if (rc == 0)
	{
		(void) fcntl(ends[1], F_SETPIPE_SZ, COPY_PIECE);	/* only faster */
		copying.fd = ends[1];
		rc = pthread_create(&thread, NULL, copy_pages, &copying);
		if (rc == 0)
		{
			rc = write_copy(ends[0], fd);
			close(ends[0]);		/* if writing failed, LMDB's next write does too (it blocks SIGPIPE) */
			pthread_join(thread, NULL);
			if (rc == 0)
				rc = copying.rc;
		}
		else
		{
			close(ends[0]);
			close(ends[1]);
		}
	}
	if (close(fd) != 0 && rc == 0)
		rc = errno;
	if (rc != 0)
	{
		unlink(file);
		return lmdb_fail(rc, file);
	}
	return STORE_OK;
}

StoreStatus
store_reader_check(Store *store, int *freed)
{
	int			dead = 0;
	int			rc = mdb_reader_check(store->env, &dead);

	if (freed)
		*freed = dead;
	return rc == 0 ? STORE_OK : lmdb_fail(rc, "readers");
}

StoreStatus
store_size(Store *store, StoreSize *size)
{
	MDB_envinfo info;
	MDB_stat	stats[3];
	MDB_dbi		databases[3] = {store->main, store->hist, store->meta};
	MDB_txn    *txn;
	uint64_t	used = 2;
	int			i,
				rc;

	memset(size, 0, sizeof(*size));
	rc = mdb_txn_begin(store->env, NULL, MDB_RDONLY, &txn);
	if (rc != 0)
		return lmdb_fail(rc, "size");
	rc = mdb_env_info(store->env, &info);
	for (i = 0; i < 3 && rc == 0; i++)
	{
		rc = mdb_stat(txn, databases[i], &stats[i]);
		used += stats[i].ms_branch_pages + stats[i].ms_leaf_pages + stats[i].ms_overflow_pages;
	}
	mdb_txn_abort(txn);
	if (rc != 0)
		return lmdb_fail(rc, "size");
	size->map_size = info.me_mapsize;
	size->file_pages = info.me_last_pgno + 1;
	size->free_pages = size->file_pages > used ? size->file_pages - used : 0;
	size->page_size = stats[0].ms_psize;
	size->main_entries = stats[0].ms_entries;
	size->hist_entries = stats[1].ms_entries;
	size->readers = info.me_numreaders;
	return STORE_OK;
}
