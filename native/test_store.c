/*-------------------------------------------------------------------------
 *
 * test_store.c
 *	  The store under address and undefined-behaviour sanitizers.
 *
 *	make -C postgres check
 *
 * Runs a long random history against a plain model that keeps every version
 * of every key, then feeds the store damaged messages, filters and rows.  What it is for is the
 * memory: tests/unit/test_native_store.py checks more of the behaviour.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "filter.h"
#include "store.h"

#define KEYS 200
#define STEPS 1500
#define VERSIONS (STEPS + 1)

static const uint8_t cluster[16] = "sixteen bytes!!!";

#define CHECK(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, store_error()); \
			abort(); \
		} \
	} while (0)

/* Deterministic, so that a failure can be repeated. */
static uint64_t seed = 88172645463325252ULL;

static uint32_t
pick(uint32_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t) (seed >> 11) % n;
}

/* ------------------------------------------------------------ the model */

typedef struct Change
{
	int64_t		tau;
	bool		exists;
	uint32_t	len;			/* of the value */
	uint8_t		fill;
} Change;

static Change changes[KEYS][VERSIONS];
static int	n_changes[KEYS];

static const Change *
model_at(int key, int64_t tau)
{
	int			i;

	for (i = n_changes[key]; i-- > 0;)
		if (changes[key][i].tau <= tau)
			return changes[key][i].exists ? &changes[key][i] : NULL;
	return NULL;
}

static void
model_rollback(int64_t tau)
{
	int			key;

	for (key = 0; key < KEYS; key++)
		while (n_changes[key] > 0 && changes[key][n_changes[key] - 1].tau > tau)
			n_changes[key]--;
}

/* --------------------------------------------------------------- messages */

static StoreBuffer message;

static void
raw(const void *data, size_t len)
{
	if (message.len + len > message.cap)
	{
		message.cap = (message.len + len) * 2;
		message.data = realloc(message.data, message.cap);
		CHECK(message.data);
	}
	if (len > 0)
		memcpy(message.data + message.len, data, len);
	message.len += len;
}

static void
byte(uint8_t b)
{
	raw(&b, 1);
}

static void
length(uint8_t tag, uint32_t n)
{
	uint8_t		b[5] = {tag, n >> 24, n >> 16, n >> 8, n};

	raw(b, 5);
}

static size_t
make_key(int key, uint8_t out[64])
{
	/* two relations, keys of different lengths, some a prefix of others */
	size_t		len = 9 + key % 40;

	memset(out, 0, 64);
	out[3] = 5;
	out[7] = key % 2 ? 7 : 9;
	out[8] = key / 8;
	memset(out + 9, 'a' + key % 8, len - 9);
	return len;
}

typedef struct Put
{
	int			key;
	bool		exists;
	uint32_t	len;
	uint8_t		fill;
} Put;

static void
commit_message(const Put *puts, uint32_t n)
{
	uint8_t		key[64];
	uint32_t	i;

	message.len = 0;
	byte(0x9d);					/* 13 fields */
	byte(2);
	byte(0);
	length(0xc6, 3);
	raw("txn", 3);
	byte(1);
	byte(0xcf);
	raw("12345678", 8);
	byte(0);
	length(0xdd, n);
	for (i = 0; i < n; i++)
	{
		size_t		len = make_key(puts[i].key, key);

		byte(0xc4);
		byte(len);
		raw(key, len);
	}
	length(0xc6, n);
	for (i = 0; i < n; i++)
		byte(puts[i].exists ? 3 : 0x13);
	length(0xdd, n);
	for (i = 0; i < n; i++)
	{
		uint32_t	j;

		if (!puts[i].exists)
		{
			byte(0xc0);
			continue;
		}
		length(0xc6, puts[i].len);
		for (j = 0; j < puts[i].len; j++)
			byte(puts[i].fill);
	}
	byte(0x90);
	byte(0x90);
	byte(0xc0);
	byte(0x90);
}

/* ----------------------------------------------------------------- checks */

static void
check_entry(const StoreEntry *entry, const Change *change)
{
	uint32_t	i;

	CHECK(entry->tau == change->tau && entry->value_len == change->len);
	for (i = 0; i < entry->value_len; i++)
		CHECK(STORE_ENTRY_VALUE(entry)[i] == change->fill);
}

/* A scan that wants little of each entry meets as many, whatever ends its batches. */
static void
check_cut(StoreReader *reader, int64_t tau, int present)
{
	StoreBuffer batch = {0};
	StoreCut	cut = {.prefix = pick(40)};
	uint8_t		from[STORE_MAX_KEY + 1] = {0};
	size_t		from_len = 0;
	int			rows = 0;

	for (bool more = true; more;)
	{
		const uint8_t *p;

		batch.len = 0;
		CHECK(store_scan_cut(reader, (StoreBytes) {from, from_len}, (StoreBytes) {NULL, 0}, tau, 1 + pick(50),
							 1 + pick(2000), &cut, &batch, &more) == STORE_OK);
		if (cut.prefix == 0)
		{
			CHECK(batch.len == 0 && (!more || cut.rows > 0));
			rows += cut.rows;
		}
		for (p = batch.data; p < batch.data + batch.len; rows++)
		{
			const StoreEntry *entry = (const StoreEntry *) p;

			/* the second byte of a row image says whether it has NULLs */
			CHECK(entry->key_len == 0);
			if (entry->value_len > cut.prefix)
				CHECK((STORE_ENTRY_VALUE(entry)[1] & 1) != 0);
			p += STORE_ENTRY_SIZE(entry);
		}
		CHECK(p == batch.data + batch.len && (!more || cut.rows > 0));
		memcpy(from, cut.last, cut.last_len);
		from[cut.last_len] = 0;
		from_len = cut.last_len + 1;
	}
	CHECK(rows == present);
	store_buffer_free(&batch);
}

static void
check_all(StoreReader *reader, int64_t tau)
{
	StoreBuffer batch = {0};
	StoreBytes	keys[KEYS];
	static uint8_t names[KEYS][64];
	uint8_t		lo[64] = {0};
	const uint8_t *p;
	int			present = 0;
	int			key;
	bool		more = true;
	bool		backward;
	bool		found;

	for (key = 0; key < KEYS; key++)
	{
		keys[key].len = make_key(key, names[key]);
		keys[key].data = names[key];
	}
	CHECK(store_get_many(reader, keys, KEYS, tau, &batch) == STORE_OK);
	p = batch.data;
	for (key = 0; key < KEYS; key++)
	{
		const StoreEntry *entry = (const StoreEntry *) p;
		const Change *change = model_at(key, tau);

		if (change)
		{
			check_entry(entry, change);
			present++;
		}
		else
			CHECK(entry->value_len == STORE_NO_VALUE && entry->key_len == 0);
		p += STORE_ENTRY_SIZE(entry);
	}
	CHECK(p == batch.data + batch.len);

	key = pick(KEYS);
	batch.len = 0;
	CHECK(store_get(reader, keys[key], tau, &batch, &found) == STORE_OK);
	CHECK(found == (model_at(key, tau) != NULL) && found == (batch.len > 0));

	for (backward = false;; backward = true)
	{
		StoreBytes	from = {lo, 0};
		StoreBytes	to = {NULL, 0};
		uint8_t		last[64];
		int			rows = 0;

		for (more = true; more;)
		{
			batch.len = 0;
			CHECK(store_scan_batch(reader, from, to, backward, tau, 1 + pick(50), 1 + pick(20000), &batch,
								   &more) == STORE_OK);
			for (p = batch.data; p < batch.data + batch.len; rows++)
			{
				const StoreEntry *entry = (const StoreEntry *) p;

				memcpy(last, STORE_ENTRY_KEY(entry), entry->key_len);
				if (backward)
				{
					to.data = last;
					to.len = entry->key_len;
				}
				else
				{
					last[entry->key_len] = 0;
					from.data = last;
					from.len = entry->key_len + 1;
				}
				p += STORE_ENTRY_SIZE(entry);
			}
			CHECK(p == batch.data + batch.len && (!more || batch.len > 0));
		}
		CHECK(rows == present);
		if (backward)
			break;
	}
	check_cut(reader, tau, present);
	store_buffer_free(&batch);
}

static void
check_stats(StoreReader *reader, int64_t tau)
{
	uint64_t	relids[2] = {(uint64_t) 5 << 32 | 9, (uint64_t) 5 << 32 | 7};
	StoreStats	stats[2];
	StoreStats	expected[2] = {{0, 0}, {0, 0}};
	uint8_t		name[64];
	int			key;

	for (key = 0; key < KEYS; key++)
	{
		const Change *change = model_at(key, tau);

		if (change)
		{
			expected[key % 2].rows++;
			expected[key % 2].bytes += make_key(key, name) + change->len;
		}
	}
	CHECK(store_stats(reader, relids, 2, stats) == STORE_OK);
	CHECK(memcmp(stats, expected, sizeof(stats)) == 0);
}

/* Every prefix and many corruptions of a message: refused or applied, never worse. */
static void
check_malformed(Store *store, int64_t tau)
{
	Put			puts[3] = {{1, true, 5, 1}, {2, false, 0, 0}, {3, true, 300, 2}};
	StoreBytes	nowhere = {NULL, 0};
	size_t		i;
	uint8_t    *copy;
	size_t		len;

	commit_message(puts, 3);
	len = message.len;
	for (i = 0; i < len; i++)
	{
		/* an exact allocation, so that a read beyond it is noticed */
		StoreRecord record = {tau, {NULL, i}};

		copy = malloc(i ? i : 1);
		CHECK(copy);
		memcpy(copy, message.data, i);
		record.body.data = copy;
		if (i < len - 4)
			CHECK(store_apply(store, &record, 1, nowhere, NULL) == STORE_MALFORMED);
		free(copy);
	}
	for (i = 0; i < 20000; i++)
	{
		StoreRecord record = {tau + 1 + (int64_t) i, {NULL, len}};
		int			n;

		copy = malloc(len);
		CHECK(copy);
		memcpy(copy, message.data, len);
		for (n = 1 + pick(3); n > 0; n--)
			copy[pick(len)] = pick(256);
		record.body.data = copy;
		CHECK(store_apply(store, &record, 1, nowhere, NULL) != STORE_DAMAGED);
		free(copy);
	}
}

/* Bytes of their own, so that a look beyond either end is seen. */
static uint8_t *
own_copy(const uint8_t *data, size_t len)
{
	uint8_t    *copy = malloc(len > 0 ? len : 1);

	CHECK(copy != NULL);
	memcpy(copy, data, len);
	return copy;
}

/* Filters and rows, some well-formed but for a few bytes, some cut short. */
static void
check_filters(void)
{
	static const uint8_t program[] = {
		1, 1, 4, 0, 4, 0, 4, 1, 0xFF, 0xFF, 4, 1, 0xFE, 0xFF, 1, 0, 8, 0, 8, 1,
		1, 2, 0, 2, 3, 0,
		5, 0, 0, 1, 2, 8, 0, 5, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0, 4, 0, 2, 0, 'a', 'b', 5, 3, 0, 3, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		4, 2, 0
	};
	static const uint8_t row[] = {
		1, 3, 4, 0, 7, 0, 0, 0, 0x0F, 0, 0, 0, 0, 0, 0, 0,
		9, 0, 0, 0, 7, 'a', 'b', 'x', 'y', 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8
	};
	int			compiled = 0,
				projected = 0;

	for (int i = 0; i < 200000; i++)
	{
		uint8_t		p[sizeof(program)],
					r[sizeof(row)];
		size_t		p_len = sizeof(p),
					r_len = sizeof(r);
		uint8_t    *own_program,
				   *own_row;
		const char *why;
		Filter	   *filter;

		memcpy(p, program, sizeof(p));
		memcpy(r, row, sizeof(r));
		for (uint32_t n = pick(3); n > 0; n--)
			p[pick(sizeof(p))] = (uint8_t) pick(256);
		for (uint32_t n = pick(4); n > 0; n--)
			r[pick(sizeof(r))] = (uint8_t) (pick(2) ? pick(256) : pick(8));
		if (pick(4) == 0)
			p_len = pick(sizeof(p) + 1);
		if (pick(4) == 0)
			r_len = pick(sizeof(r) + 1);
		own_program = own_copy(p, p_len);
		own_row = own_copy(r, r_len);
		filter = filter_compile(own_program, p_len, &why);
		if (filter != NULL)
		{
			size_t		room = filter_room(filter, r_len);
			uint8_t    *to = malloc(room);
			size_t		len;

			CHECK(to != NULL);
			(void) filter_passes(filter, own_row, r_len);
			len = filter_project(filter, own_row, r_len, to);
			CHECK(len <= room);
			compiled++;
			projected += len > 0;
			free(to);
			filter_free(filter);
		}
		else
			CHECK(why != NULL);
		free(own_program);
		free(own_row);
	}
	CHECK(compiled > 20000 && projected > 5000);
}

int
main(void)
{
	char		directory[] = "/tmp/australis-store-XXXXXX";
	char		command[64];
	Store	   *store;
	StoreReader *reader;
	int64_t		tau = 1000;
	int64_t		horizon = 0;
	int			step;

	CHECK(mkdtemp(directory));
	CHECK(store_open_writer(directory, cluster, (size_t) 1 << 30, false, &store) == STORE_OK);
	CHECK(store_reader_open(store, &reader) == STORE_OK);
	for (step = 0; step < STEPS; step++)
	{
		Put			puts[20];
		StoreRecord records[4];
		StoreBytes	position = {"position", 8};
		uint8_t    *bodies[4];
		uint32_t	n_records = 1 + pick(4);
		uint32_t	r;

		for (r = 0; r < n_records; r++)
		{
			bool		used[KEYS] = {false};
			uint32_t	n = 0,
						i,
						wanted = 1 + pick(20);

			tau += 1 + pick(5);
			for (i = 0; i < wanted; i++)
			{
				int			key = pick(KEYS);
				Put		   *put = &puts[n];
				Change		change;

				if (used[key])
					continue;
				used[key] = true;
				put->key = key;
				put->exists = pick(4) > 0;
				put->len = pick(30) ? pick(150) : pick(9000);
				put->fill = pick(256);
				n++;
				if (!put->exists && !model_at(key, tau))
					continue;	/* deletes nothing: keeps no version */
				change.tau = tau;
				change.exists = put->exists;
				change.len = put->len;
				change.fill = put->fill;
				CHECK(n_changes[key] < VERSIONS);
				changes[key][n_changes[key]++] = change;
			}
			commit_message(puts, n);
			bodies[r] = malloc(message.len);
			CHECK(bodies[r]);
			memcpy(bodies[r], message.data, message.len);
			records[r].tau = tau;
			records[r].body.data = bodies[r];
			records[r].body.len = message.len;
		}
		CHECK(store_apply(store, records, n_records, position, NULL) == STORE_OK);
		if (pick(3) == 0)
			CHECK(store_apply(store, records, n_records, position, NULL) == STORE_OK);
		for (r = 0; r < n_records; r++)
			free(bodies[r]);
		CHECK(store_applied(store) == tau);
		if (pick(10) == 0)
		{
			int64_t		to = horizon + pick(tau - horizon + 1);

			to = to > tau - 30 ? to : tau - 30;
			CHECK(store_rollback(store, to) == STORE_OK);
			model_rollback(to);
			tau = to;
		}
		if (pick(10) == 0)
		{
			size_t		removed;

			horizon = tau - pick(100);
			do
				CHECK(store_collect(store, horizon, 50, &removed) == STORE_OK);
			while (removed == 50);
			CHECK(store_times(reader, &(int64_t){0}, &horizon) == STORE_OK);
		}
		if (pick(5) == 0)
		{
			check_all(reader, tau);
			check_all(reader, horizon + pick(tau - horizon + 1));
			check_stats(reader, tau);
		}
	}
	check_malformed(store, tau + 1);
	{
		bool		done = false;
		StoreSize	size;

		while (!done)
			CHECK(store_drop(store, (uint64_t) 5 << 32 | 7, 10, &done) == STORE_OK);
		CHECK(store_size(store, &size) == STORE_OK);
	}
	CHECK(store_sync(store, true) == STORE_OK);
	store_reader_close(reader);
	store_close(store);
	CHECK(store_open_writer(directory, cluster, 0, false, &store) == STORE_OK);
	store_close(store);
	store_buffer_free(&message);
	snprintf(command, sizeof(command), "rm -r '%s'", directory);
	CHECK(system(command) == 0);
	check_filters();
	puts("native/test_store: passed");
	return 0;
}
