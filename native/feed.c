/*-------------------------------------------------------------------------
 *
 * feed.c
 *	  Plain commits, from the bytes of the feed straight into the store.
 *
 * Nearly all that storage receives are commits that need no decision: they
 * follow what is applied, make no storage id garbage and write to none that is.
 * Those at the front of what was received are applied here, as one batch;
 * whatever else comes is left to the Python side (storage/applier.py), which
 * knows every kind of record.
 *
 * store_follow_feed() goes on doing so with what a socket receives, since that
 * is all that storage does for most of its life.
 *
 * What must hold: a record that is not exactly such a commit is not touched,
 * and ends the batch in front of it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "msgpack.h"
#include "store.h"

#define LENGTH_BYTES 4			/* in front of every message (protocol/frames.py) */
#define TAG_RECORD 42			/* FeedRecord (protocol/messages.py) */
#define RECORD_FIELDS 9
#define KIND_TRANSACTION 2		/* journal/record.py */
#define FLAG_DROPS 0x02
#define HASH_BYTES 16
#define TXID_BYTES 16
#define MAX_RECORDS 4096

/* Parse the FeedRecord in a frame; false: it is not a plain commit above `after` that leaves `avoided` alone. */
static bool
plain_commit(const uint8_t *frame, size_t len, int64_t after, StoreBytes avoided, StoreRecord *record, StoreFed *fed)
{
	Mp			mp = {frame, frame + len, false};
	uint64_t	sequence,
				generation,
				kind,
				flags,
				tau;
	StoreBytes	hash,
				txid,
				body;

	if (mp_array(&mp) != RECORD_FIELDS || mp_uint(&mp) != TAG_RECORD)
		return false;
	sequence = mp_uint(&mp);
	generation = mp_uint(&mp);
	hash = mp_bytes(&mp);
	kind = mp_uint(&mp);
	flags = mp_uint(&mp);
	tau = mp_uint(&mp);
	txid = mp_bytes(&mp);
	body = mp_bytes(&mp);
	if (mp.bad || mp.p != mp.end || kind != KIND_TRANSACTION || (flags & FLAG_DROPS) || tau > INT64_MAX ||
		(int64_t) tau <= after || hash.len != HASH_BYTES || txid.len != TXID_BYTES ||
		!store_message_avoids(body, avoided))
		return false;
	record->tau = tau;
	record->body = body;
	fed->sequence = sequence;
	fed->generation = generation;
	memcpy(fed->hash, hash.data, HASH_BYTES);
	fed->tau = tau;
	return true;
}

StoreStatus
store_apply_feed(Store *store, StoreBytes received, StoreBytes avoided, StoreFed *fed)
{
	const uint8_t *data = received.data;
	StoreRecord few[64];
	StoreRecord *records = few;
	size_t		room = sizeof(few) / sizeof(few[0]);
	int64_t		after = store_applied(store);
	uint8_t		position[2 * sizeof(uint64_t) + HASH_BYTES];
	StoreBytes	at = {position, sizeof(position)};
	StoreStatus status;

	memset(fed, 0, sizeof(*fed));
	while (received.len - fed->bytes >= LENGTH_BYTES && fed->records < MAX_RECORDS)
	{
		const uint8_t *frame = data + fed->bytes;
		size_t		len = frame[0] | frame[1] << 8 | frame[2] << 16 | (size_t) frame[3] << 24;

		if (received.len - fed->bytes - LENGTH_BYTES < len)
			break;
		if (fed->records == room)
		{
			StoreRecord *more = malloc(MAX_RECORDS * sizeof(StoreRecord));

			if (more == NULL)
				break;			/* a smaller batch */
			memcpy(more, few, sizeof(few));
			records = more;
			room = MAX_RECORDS;
		}
		if (!plain_commit(frame + LENGTH_BYTES, len, after, avoided, &records[fed->records], fed))
			break;
		after = fed->tau;
		fed->records++;
		fed->bytes += LENGTH_BYTES + len;
	}
	/* little-endian, as record.py packs a Position */
	memcpy(position, &fed->sequence, sizeof(uint64_t));
	memcpy(position + sizeof(uint64_t), &fed->generation, sizeof(uint64_t));
	memcpy(position + 2 * sizeof(uint64_t), fed->hash, HASH_BYTES);
	status = fed->records > 0 ? store_apply(store, records, fed->records, at, NULL) : STORE_OK;
	if (records != few)
		free(records);
	return status;
}

static int64_t
monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Say on the page what is applied, and wake the backends that wait for it; then look whether we are watched. */
static bool
publish(StoreFollowing *f, int64_t tau)
{
	__atomic_store_n(f->applied, tau, __ATOMIC_RELEASE);
	(void) syscall(SYS_futex, f->applied, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(f->watched, __ATOMIC_RELAXED) != 0;
}

void
store_follow_feed(Store *store, StoreFollowing *f)
{
	f->left = f->batches = 0;
	f->error = 0;
	memset(&f->fed, 0, sizeof(f->fed));
	do							/* however late it is: a chore that takes long must not stop what is applied */
	{
		ssize_t		n = recv(f->socket, f->buffer, f->size, 0);
		StoreFed	fed;

		if (n <= 0)
		{
			/* an interruption or the socket's own time limit: there is something else to do */
			if (n == 0)
				f->error = STORE_FEED_ENDED;
			else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
				f->error = errno;
			return;
		}
		f->left = (size_t) n;
		/* on an error nothing was applied: whoever does it next meets the same one, and knows what to do */
		if (store_apply_feed(store, (StoreBytes) {f->buffer, (size_t) n}, f->avoided, &fed) != STORE_OK ||
			fed.records == 0)
			return;
		f->batches++;
		fed.records += f->fed.records;
		n -= (ssize_t) fed.bytes;
		memmove(f->buffer, f->buffer + fed.bytes, (size_t) n);
		f->left = (size_t) n;
		fed.bytes += f->fed.bytes;
		f->fed = fed;
		if (publish(f, fed.tau) || n > 0)
			return;
	} while (monotonic_ns() < f->until);
}
