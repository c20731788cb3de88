/*-------------------------------------------------------------------------
 *
 * module.c
 *	  australis._native: the store (store.h) and the shared page for Python.
 *
 * Signatures and their meaning are in src/australis/_native.pyi.
 *
 * What must hold: the GIL is released around everything that may take longer
 * than a few microseconds, so that a bulk load never stalls the event loop;
 * a Store may be used from several threads, and close() waits for them.  The
 * words of the page are read and written with one access each, release and
 * acquire, since PostgreSQL backends look at them at any moment.
 *
 * When the neighbour fails: errors of the store become exceptions by their
 * kind (DamagedError: rebuild; FullError: nothing was changed, try again when
 * there is room; TooOldError: below the horizon).
 *
 *-------------------------------------------------------------------------
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "conflicts.h"
#include "filter.h"
#include "store.h"

static PyObject *StoreError;
static PyObject *DamagedError;
static PyObject *TooOldError;
static PyObject *FullError;
static PyObject *MalformedError;

static PyObject *
raise_status(StoreStatus status)
{
	PyObject   *type = StoreError;

	if (status == STORE_DAMAGED || status == STORE_UNCLEAN)
		type = DamagedError;
	else if (status == STORE_TOO_OLD)
		type = TooOldError;
	else if (status == STORE_FULL)
		type = FullError;
	else if (status == STORE_MALFORMED)
		type = MalformedError;
	PyErr_SetString(type, store_error());
	return NULL;
}

/* ------------------------------------------------------------------- Store */

#define MAX_IDLE_READERS 64		/* more threads than that open theirs anew */
#define KEPT_BUFFER (1 << 20)	/* bytes that an idle reader may hold */

typedef struct Reader
{
	StoreReader *reader;
	StoreBuffer buffer;
} Reader;

typedef struct
{
	PyObject_HEAD
	Store	   *store;			/* NULL when closed */
	pthread_rwlock_t open;		/* held for reading during every call */
	pthread_mutex_t readers_lock;
	Reader		idle[MAX_IDLE_READERS];
	int			n_idle;
	bool		locks_made;
} StoreObject;

/*
 * Enter a call: GIL released, store certain to stay open.  ENTER and LEAVE
 * bracket a block, as Py_BEGIN_ALLOW_THREADS does.
 */
#define ENTER(self) \
	{ \
		bool		closed_; \
		Py_BEGIN_ALLOW_THREADS \
		pthread_rwlock_rdlock(&(self)->open); \
		closed_ = (self)->store == NULL; \
		if (!closed_) \
		{

#define LEAVE(self) \
		} \
		pthread_rwlock_unlock(&(self)->open); \
		Py_END_ALLOW_THREADS \
		if (closed_) \
		{ \
			PyErr_SetString(StoreError, "the store is closed"); \
			goto failed; \
		} \
	}

static StoreStatus
take_reader(StoreObject *self, Reader *reader)
{
	bool		got = false;

	pthread_mutex_lock(&self->readers_lock);
	if (self->n_idle > 0)
	{
		*reader = self->idle[--self->n_idle];
		got = true;
	}
	pthread_mutex_unlock(&self->readers_lock);
	if (got)
		return STORE_OK;
	memset(reader, 0, sizeof(*reader));
	return store_reader_open(self->store, &reader->reader);
}

/* With the buffer's contents no longer needed. */
static void
give_reader(StoreObject *self, Reader *reader)
{
	bool		kept = false;

	if (!reader->reader)
		return;
	if (reader->buffer.cap > KEPT_BUFFER)
		store_buffer_free(&reader->buffer);
	reader->buffer.len = 0;
	pthread_mutex_lock(&self->readers_lock);
	if (self->store && self->n_idle < MAX_IDLE_READERS)
	{
		self->idle[self->n_idle++] = *reader;
		kept = true;
	}
	pthread_mutex_unlock(&self->readers_lock);
	if (!kept)
	{
		store_reader_close(reader->reader);
		store_buffer_free(&reader->buffer);
	}
}

/*
 * Readers go back while the store is held open; the bytes object is made
 * afterwards, from the buffer that was taken out.
 */
static StoreBuffer
keep_buffer(Reader *reader)
{
	StoreBuffer buffer = reader->buffer;

	memset(&reader->buffer, 0, sizeof(reader->buffer));
	return buffer;
}

static PyObject *
buffer_to_bytes(StoreBuffer *buffer)
{
	PyObject   *bytes = PyBytes_FromStringAndSize((char *) buffer->data, buffer->len);

	store_buffer_free(buffer);
	return bytes;
}

static int
store_init(StoreObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"path", "cluster", "map_size", "read_only", "restored", NULL};
	PyObject   *path = NULL;
	const char *cluster;
	Py_ssize_t	cluster_len;
	unsigned long long map_size = STORE_MAP_SIZE;
	int			read_only = 0;
	int			restored = 0;
	Store	   *store = NULL;
	StoreStatus status;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&y#|K$pp", names, PyUnicode_FSConverter, &path, &cluster,
									 &cluster_len, &map_size, &read_only, &restored))
		return -1;
	if (self->locks_made)
	{
		Py_DECREF(path);
		PyErr_SetString(StoreError, "a Store is opened once");
		return -1;
	}
	if (cluster_len != 16)
	{
		Py_DECREF(path);
		PyErr_SetString(PyExc_ValueError, "a cluster id has 16 bytes");
		return -1;
	}
	Py_BEGIN_ALLOW_THREADS
	if (read_only)
		status = store_open_reader(PyBytes_AS_STRING(path), (const uint8_t *) cluster, &store);
	else
		status = store_open_writer(PyBytes_AS_STRING(path), (const uint8_t *) cluster, map_size, restored, &store);
	Py_END_ALLOW_THREADS
	Py_DECREF(path);
	if (status != STORE_OK)
	{
		raise_status(status);
		return -1;
	}
	pthread_rwlock_init(&self->open, NULL);
	pthread_mutex_init(&self->readers_lock, NULL);
	self->locks_made = true;
	self->store = store;
	return 0;
}

static void
store_shut(StoreObject *self)
{
	int			i;

	pthread_rwlock_wrlock(&self->open);
	if (self->store)
	{
		for (i = 0; i < self->n_idle; i++)
		{
			store_reader_close(self->idle[i].reader);
			store_buffer_free(&self->idle[i].buffer);
		}
		self->n_idle = 0;
		store_close(self->store);
		self->store = NULL;
	}
	pthread_rwlock_unlock(&self->open);
}

static PyObject *
py_close(StoreObject *self, PyObject *unused)
{
	if (self->locks_made)
	{
		Py_BEGIN_ALLOW_THREADS
		store_shut(self);
		Py_END_ALLOW_THREADS
	}
	Py_RETURN_NONE;
}

static PyObject *
py_enter(PyObject *self, PyObject *unused)
{
	return Py_NewRef(self);
}

static PyObject *
py_exit(StoreObject *self, PyObject *unused)
{
	return py_close(self, NULL);
}

static void
store_dealloc(StoreObject *self)
{
	if (self->locks_made)
	{
		store_shut(self);
		pthread_rwlock_destroy(&self->open);
		pthread_mutex_destroy(&self->readers_lock);
	}
	Py_TYPE(self)->tp_free((PyObject *) self);
}

static bool
check_open(StoreObject *self)
{
	if (self->locks_made)
		return true;
	PyErr_SetString(StoreError, "the store is not open");
	return false;
}

/* records: [(tau, body)] to an array; the views keep the bodies in place. */
typedef struct Records
{
	PyObject   *sequence;
	StoreRecord *items;
	Py_buffer  *views;
	Py_ssize_t	n;
} Records;

static void
free_records(Records *records)
{
	Py_ssize_t	i;

	for (i = 0; i < records->n; i++)
		PyBuffer_Release(&records->views[i]);
	PyMem_Free(records->items);
	PyMem_Free(records->views);
	Py_XDECREF(records->sequence);
}

static bool
parse_records(PyObject *argument, Records *records)
{
	Py_ssize_t	i,
				n;

	memset(records, 0, sizeof(*records));
	records->sequence = PySequence_Tuple(argument);
	if (!records->sequence)
		return false;
	n = PyTuple_GET_SIZE(records->sequence);
	records->items = PyMem_Calloc(n + 1, sizeof(StoreRecord));
	records->views = PyMem_Calloc(n + 1, sizeof(Py_buffer));
	if (!records->items || !records->views)
	{
		PyErr_NoMemory();
		return false;
	}
	for (i = 0; i < n; i++)
	{
		PyObject   *item = PyTuple_GET_ITEM(records->sequence, i);
		long long	tau;

		if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2)
		{
			PyErr_SetString(PyExc_TypeError, "a record is a tuple (tau, body)");
			return false;
		}
		tau = PyLong_AsLongLong(PyTuple_GET_ITEM(item, 0));
		if (tau == -1 && PyErr_Occurred())
			return false;
		if (PyObject_GetBuffer(PyTuple_GET_ITEM(item, 1), &records->views[i], PyBUF_SIMPLE) < 0)
			return false;
		records->n++;
		records->items[i].tau = tau;
		records->items[i].body.data = records->views[i].buf;
		records->items[i].body.len = records->views[i].len;
	}
	return true;
}

/* Names of meta records may be given as str or bytes. */
static bool
meta_name(PyObject *argument, StoreBytes *name)
{
	Py_ssize_t	len;

	if (PyUnicode_Check(argument))
	{
		name->data = PyUnicode_AsUTF8AndSize(argument, &len);
		name->len = len;
		return name->data != NULL;
	}
	if (PyBytes_Check(argument))
	{
		name->data = PyBytes_AS_STRING(argument);
		name->len = PyBytes_GET_SIZE(argument);
		return true;
	}
	PyErr_SetString(PyExc_TypeError, "a meta record's name is str or bytes");
	return false;
}

static PyObject *
py_apply(StoreObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"records", "position", "meta", NULL};
	PyObject   *argument;
	PyObject   *set = Py_None;
	PyObject   *key = NULL;
	Py_buffer	position = {0};
	Py_buffer	value = {0};
	StoreMeta	meta;
	Records		records = {0};
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) ||
		!PyArg_ParseTupleAndKeywords(args, kwargs, "O|z*O", names, &argument, &position, &set))
		return NULL;
	if (set != Py_None && !PyTuple_Check(set))
	{
		PyErr_SetString(PyExc_TypeError, "a meta record is a tuple (name, value)");
		goto failed;
	}
	if (set != Py_None && (!PyArg_ParseTuple(set, "Oy*", &key, &value) || !meta_name(key, &meta.key)))
		goto failed;
	if (parse_records(argument, &records))
	{
		ENTER(self)
		StoreBytes	at = {position.buf, position.len};

		meta.value = (StoreBytes) {value.buf, value.len};
		status = store_apply(self->store, records.items, records.n, at, key ? &meta : NULL);
		LEAVE(self)
		result = status == STORE_OK ? Py_NewRef(Py_None) : raise_status(status);
	}
failed:
	free_records(&records);
	if (position.obj)
		PyBuffer_Release(&position);
	if (value.obj)
		PyBuffer_Release(&value);
	return result;
}

static PyObject *
py_apply_feed(StoreObject *self, PyObject *args)
{
	Py_buffer	received;
	Py_buffer	avoided = {0};
	StoreFed	fed;
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*|y*", &received, &avoided))
		return NULL;
	if (avoided.len % 8 != 0)
	{
		PyErr_SetString(PyExc_ValueError, "relation ids of 8 bytes each expected");
		goto failed;
	}
	ENTER(self)
	status = store_apply_feed(self->store, (StoreBytes) {received.buf, received.len},
							  (StoreBytes) {avoided.buf, avoided.len}, &fed);
	LEAVE(self)
	if (status != STORE_OK)
		raise_status(status);
	else if (fed.records == 0)
		result = Py_NewRef(Py_None);
	else
		result = Py_BuildValue("nnLKKy#", (Py_ssize_t) fed.records, (Py_ssize_t) fed.bytes, (long long) fed.tau,
							   (unsigned long long) fed.sequence, (unsigned long long) fed.generation,
							   (const char *) fed.hash, (Py_ssize_t) sizeof(fed.hash));
failed:
	PyBuffer_Release(&received);
	if (avoided.obj)
		PyBuffer_Release(&avoided);
	return result;
}

static int64_t *page_word(PyObject *page, PyObject *number, Py_buffer *view);

static PyObject *
py_follow_feed(StoreObject *self, PyObject *args)
{
	StoreFollowing f = {0};
	Py_buffer	buffer;
	Py_buffer	avoided;
	Py_buffer	watched;
	Py_buffer	page = {0};
	PyObject   *page_object;
	PyObject   *word;
	PyObject   *result = NULL;
	double		until;

	if (!check_open(self) || !PyArg_ParseTuple(args, "iw*y*y*OOd", &f.socket, &buffer, &avoided, &watched,
											   &page_object, &word, &until))
		return NULL;
	f.applied = page_word(page_object, word, &page);
	if (f.applied == NULL)
		goto failed;
	if (avoided.len % 8 != 0 || watched.len < 1 || buffer.len < 1)
	{
		PyErr_SetString(PyExc_ValueError, "a buffer, relation ids of 8 bytes each and a flag expected");
		goto failed;
	}
	f.buffer = buffer.buf;
	f.size = (size_t) buffer.len;
	f.avoided = (StoreBytes) {avoided.buf, (size_t) avoided.len};
	f.watched = watched.buf;
	f.until = (int64_t) (until * 1e9);
	ENTER(self)
	store_follow_feed(self->store, &f);
	LEAVE(self)
	result = Py_BuildValue("nnninLKKy#", (Py_ssize_t) f.fed.records, (Py_ssize_t) f.fed.bytes, (Py_ssize_t) f.batches,
						   f.error, (Py_ssize_t) f.left, (long long) f.fed.tau,
						   (unsigned long long) f.fed.sequence, (unsigned long long) f.fed.generation,
						   (const char *) f.fed.hash, (Py_ssize_t) sizeof(f.fed.hash));
failed:
	if (page.obj)
		PyBuffer_Release(&page);
	PyBuffer_Release(&watched);
	PyBuffer_Release(&avoided);
	PyBuffer_Release(&buffer);
	return result;
}

static PyObject *
py_ingest(StoreObject *self, PyObject *args)
{
	long long	tau;
	Py_buffer	body;
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) || !PyArg_ParseTuple(args, "Ly*", &tau, &body))
		return NULL;
	ENTER(self)
	StoreRecord record = {tau, {body.buf, body.len}};
	StoreBytes	nowhere = {NULL, 0};

	status = store_apply(self->store, &record, 1, nowhere, NULL);
	LEAVE(self)
	result = status == STORE_OK ? Py_NewRef(Py_None) : raise_status(status);
failed:
	PyBuffer_Release(&body);
	return result;
}

static PyObject *
py_rollback(StoreObject *self, PyObject *args)
{
	long long	tau;
	StoreStatus status = STORE_OK;

	if (!check_open(self) || !PyArg_ParseTuple(args, "L", &tau))
		return NULL;
	ENTER(self)
	status = store_rollback(self->store, tau);
	LEAVE(self)
	if (status == STORE_OK)
		Py_RETURN_NONE;
	return raise_status(status);
failed:
	return NULL;
}

static PyObject *
py_collect(StoreObject *self, PyObject *args)
{
	long long	horizon;
	Py_ssize_t	max_entries;
	size_t		removed = 0;
	StoreStatus status = STORE_OK;

	if (!check_open(self) || !PyArg_ParseTuple(args, "Ln", &horizon, &max_entries))
		return NULL;
	ENTER(self)
	status = store_collect(self->store, horizon, max_entries > 0 ? max_entries : 0, &removed);
	LEAVE(self)
	if (status == STORE_OK)
		return PyLong_FromSize_t(removed);
	return raise_status(status);
failed:
	return NULL;
}

static PyObject *
py_drop(StoreObject *self, PyObject *args)
{
	unsigned long long relid;
	Py_ssize_t	max_entries;
	bool		done = false;
	StoreStatus status = STORE_OK;

	if (!check_open(self) || !PyArg_ParseTuple(args, "Kn", &relid, &max_entries))
		return NULL;
	ENTER(self)
	status = store_drop(self->store, relid, max_entries > 0 ? max_entries : 0, &done);
	LEAVE(self)
	if (status == STORE_OK)
		return PyBool_FromLong(done);
	return raise_status(status);
failed:
	return NULL;
}

static PyObject *
py_erase(StoreObject *self, PyObject *args)
{
	Py_buffer	lo,
				hi;
	Py_ssize_t	max_entries;
	bool		done = false;
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*y*n", &lo, &hi, &max_entries))
		return NULL;
	ENTER(self)
	status = store_erase(self->store, (StoreBytes) {lo.buf, lo.len}, (StoreBytes) {hi.buf, hi.len},
						 max_entries > 0 ? max_entries : 0, &done);
	LEAVE(self)
	result = status == STORE_OK ? PyBool_FromLong(done) : raise_status(status);
failed:
	PyBuffer_Release(&lo);
	PyBuffer_Release(&hi);
	return result;
}

static PyObject *
py_export(StoreObject *self, PyObject *args)
{
	Py_buffer	lo,
				hi;
	Py_ssize_t	max;
	StoreBuffer page = {0};
	StoreBuffer next = {0};
	int64_t		applied = 0;
	int64_t		horizon = 0;
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*y*n", &lo, &hi, &max))
		return NULL;
	ENTER(self)
	Reader		reader;

	status = take_reader(self, &reader);
	if (status == STORE_OK)
	{
		status = store_export(reader.reader, (StoreBytes) {lo.buf, lo.len}, (StoreBytes) {hi.buf, hi.len},
							  max > 0 ? max : 0, &reader.buffer, &next, &applied, &horizon);
		page = keep_buffer(&reader);
		give_reader(self, &reader);
	}
	LEAVE(self)
	if (status != STORE_OK)
		raise_status(status);
	else
		result = Py_BuildValue("y#y#LL", page.data ? (char *) page.data : "", (Py_ssize_t) page.len,
							   next.data ? (char *) next.data : "", (Py_ssize_t) next.len, (long long) applied,
							   (long long) horizon);
failed:
	store_buffer_free(&page);
	store_buffer_free(&next);
	PyBuffer_Release(&lo);
	PyBuffer_Release(&hi);
	return result;
}

static PyObject *
py_import(StoreObject *self, PyObject *args)
{
	Py_buffer	data,
				lo,
				hi,
				ranges,
				garbage;
	long long	applied,
				horizon;
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) ||
		!PyArg_ParseTuple(args, "y*y*y*LLy*y*", &data, &lo, &hi, &applied, &horizon, &ranges, &garbage))
		return NULL;
	ENTER(self)
	StoreMeta	metas[2] = {
		{{"ranges", strlen("ranges")}, {ranges.buf, ranges.len}},
		{{"garbage", strlen("garbage")}, {garbage.buf, garbage.len}},
	};

	status = store_import(self->store, (StoreBytes) {data.buf, data.len}, (StoreBytes) {lo.buf, lo.len},
						  (StoreBytes) {hi.buf, hi.len}, applied, horizon, metas, 2);
	LEAVE(self)
	result = status == STORE_OK ? Py_NewRef(Py_None) : raise_status(status);
failed:
	PyBuffer_Release(&data);
	PyBuffer_Release(&lo);
	PyBuffer_Release(&hi);
	PyBuffer_Release(&ranges);
	PyBuffer_Release(&garbage);
	return result;
}

static PyObject *
py_split(StoreObject *self, PyObject *args)
{
	Py_buffer	lo,
				hi;
	Py_ssize_t	max;
	StoreBuffer buffer = {0};
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*y*n", &lo, &hi, &max))
		return NULL;
	ENTER(self)
	Reader		reader;

	status = take_reader(self, &reader);
	if (status == STORE_OK)
	{
		/* below and above every key, which begins with the id of a relation */
		StoreBytes	from = {(const uint8_t *) "", 1};
		StoreBytes	to = {(const uint8_t *) "\xff\xff\xff\xff\xff\xff\xff\xff", 8};

		if (lo.len > 0)
			from = (StoreBytes) {lo.buf, lo.len};
		if (hi.len > 0)
			to = (StoreBytes) {hi.buf, hi.len};
		status = store_split(reader.reader, from, to, max > 0 ? max : 0, &reader.buffer);
		buffer = keep_buffer(&reader);
		give_reader(self, &reader);
	}
	LEAVE(self)
	if (status != STORE_OK)
		raise_status(status);
	else
	{
		result = PyList_New(0);
		for (size_t at = 0; result && at < buffer.len; at += 1 + buffer.data[at])
		{
			PyObject   *key = PyBytes_FromStringAndSize((char *) buffer.data + at + 1, buffer.data[at]);

			if (!key || PyList_Append(result, key) != 0)
				Py_CLEAR(result);
			Py_XDECREF(key);
		}
	}
failed:
	store_buffer_free(&buffer);
	PyBuffer_Release(&lo);
	PyBuffer_Release(&hi);
	return result;
}

static PyObject *
py_get_many(StoreObject *self, PyObject *args)
{
	PyObject   *argument;
	PyObject   *sequence;
	PyObject   *result = NULL;
	StoreBytes *keys = NULL;
	StoreBuffer buffer = {0};
	long long	tau;
	Py_ssize_t	i,
				n;
	StoreStatus status = STORE_OK;

	if (!check_open(self) || !PyArg_ParseTuple(args, "OL", &argument, &tau))
		return NULL;
	sequence = PySequence_Tuple(argument);
	if (!sequence)
		return NULL;
	n = PyTuple_GET_SIZE(sequence);
	keys = PyMem_Calloc(n + 1, sizeof(StoreBytes));
	if (!keys)
	{
		PyErr_NoMemory();
		goto failed;
	}
	for (i = 0; i < n; i++)
	{
		PyObject   *key = PyTuple_GET_ITEM(sequence, i);

		if (!PyBytes_Check(key))
		{
			PyErr_SetString(PyExc_TypeError, "keys are bytes");
			goto failed;
		}
		keys[i].data = PyBytes_AS_STRING(key);
		keys[i].len = PyBytes_GET_SIZE(key);
	}
	ENTER(self)
	Reader		reader;

	status = take_reader(self, &reader);
	if (status == STORE_OK)
	{
		status = store_get_many(reader.reader, keys, n, tau, &reader.buffer);
		buffer = keep_buffer(&reader);
		give_reader(self, &reader);
	}
	LEAVE(self)
	if (status == STORE_OK)
		result = buffer_to_bytes(&buffer);
	else
		raise_status(status);
failed:
	store_buffer_free(&buffer);
	PyMem_Free(keys);
	Py_DECREF(sequence);
	return result;
}

/* scan(lo, hi, backward, tau, max_rows, max_bytes[, filter, max_examined]) -> (batch, more[, resume]) */
static PyObject *
py_scan(StoreObject *self, PyObject *args)
{
	Py_buffer	lo,
				hi,
				program = {0};
	int			backward;
	long long	tau;
	Py_ssize_t	max_rows,
				max_bytes,
				max_examined = PY_SSIZE_T_MAX;
	StoreBuffer buffer = {0};
	StoreWhere	where;
	StoreCut	count;
	bool		counts;
	bool		more = false;
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) ||
		!PyArg_ParseTuple(args, "y*y*pLnn|y*n", &lo, &hi, &backward, &tau, &max_rows, &max_bytes, &program,
						  &max_examined))
		return NULL;
	where.program = (StoreBytes) {program.buf, program.len};
	where.max_examined = max_examined > 0 ? max_examined : 1;
	where.resume_len = 0;
	counts = program.obj && !backward && filter_counts(program.buf, program.len);
	count.prefix = 0;
	count.rows = 0;
	count.last_len = 0;
	ENTER(self)
	StoreBytes	from = {lo.buf, lo.len};
	StoreBytes	to = {hi.buf, hi.len};
	Reader		reader;

	status = take_reader(self, &reader);
	if (status == STORE_OK)
	{
		if (program.obj)
			status = store_scan_where(reader.reader, from, to, backward, tau, max_rows > 0 ? max_rows : 0,
									  max_bytes > 0 ? max_bytes : 0, &where, counts ? &count : NULL,
									  &reader.buffer, &more);
		else
			status = store_scan_batch(reader.reader, from, to, backward, tau, max_rows > 0 ? max_rows : 0,
									  max_bytes > 0 ? max_bytes : 0, &reader.buffer, &more);
		buffer = keep_buffer(&reader);
		give_reader(self, &reader);
	}
	LEAVE(self)
	if (status == STORE_OK)
	{
		PyObject   *bytes;

		if (counts && count.rows > 0)
		{
			uint8_t		counted[8 + STORE_MAX_KEY];
			uint64_t	rows = count.rows;

			memcpy(counted, &rows, 8);
			memcpy(counted + 8, count.last, count.last_len);
			bytes = PyBytes_FromStringAndSize((const char *) counted, (Py_ssize_t) (8 + count.last_len));
		}
		else
			bytes = buffer_to_bytes(&buffer);
		if (bytes && program.obj)
			result = Py_BuildValue("(NOy#)", bytes, more ? Py_True : Py_False, (const char *) where.resume,
								   (Py_ssize_t) (more ? where.resume_len : 0));
		else if (bytes)
			result = Py_BuildValue("(NO)", bytes, more ? Py_True : Py_False);
	}
	else
		raise_status(status);
failed:
	store_buffer_free(&buffer);
	PyBuffer_Release(&lo);
	PyBuffer_Release(&hi);
	PyBuffer_Release(&program);
	return result;
}

static PyObject *
py_stats(StoreObject *self, PyObject *argument)
{
	PyObject   *sequence;
	PyObject   *result = NULL;
	uint64_t   *relids = NULL;
	StoreStats *stats = NULL;
	Py_ssize_t	i,
				n;
	StoreStatus status = STORE_OK;

	if (!check_open(self))
		return NULL;
	sequence = PySequence_Tuple(argument);
	if (!sequence)
		return NULL;
	n = PyTuple_GET_SIZE(sequence);
	relids = PyMem_Calloc(n + 1, sizeof(uint64_t));
	stats = PyMem_Calloc(n + 1, sizeof(StoreStats));
	if (!relids || !stats)
	{
		PyErr_NoMemory();
		goto failed;
	}
	for (i = 0; i < n; i++)
	{
		relids[i] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(sequence, i));
		if (PyErr_Occurred())
			goto failed;
	}
	ENTER(self)
	Reader		reader;

	status = take_reader(self, &reader);
	if (status == STORE_OK)
	{
		status = store_stats(reader.reader, relids, n, stats);
		give_reader(self, &reader);
	}
	LEAVE(self)
	if (status != STORE_OK)
	{
		raise_status(status);
		goto failed;
	}
	result = PyList_New(n);
	for (i = 0; result && i < n; i++)
	{
		PyObject   *pair = Py_BuildValue("(LL)", (long long) stats[i].rows, (long long) stats[i].bytes);

		if (!pair)
			Py_CLEAR(result);
		else
			PyList_SET_ITEM(result, i, pair);
	}
failed:
	PyMem_Free(relids);
	PyMem_Free(stats);
	Py_DECREF(sequence);
	return result;
}

static PyObject *
py_meta(StoreObject *self, PyObject *argument)
{
	StoreBytes	name;
	StoreBuffer buffer = {0};
	bool		found = false;
	StoreStatus status = STORE_OK;
	PyObject   *result;

	if (!check_open(self) || !meta_name(argument, &name))
		return NULL;
	ENTER(self)
	Reader		reader;

	status = take_reader(self, &reader);
	if (status == STORE_OK)
	{
		status = store_meta(reader.reader, name, &buffer, &found);
		give_reader(self, &reader);
	}
	LEAVE(self)
	if (status != STORE_OK)
		raise_status(status);
	else if (!found)
		Py_RETURN_NONE;
	else
	{
		result = buffer_to_bytes(&buffer);
		return result;
	}
failed:
	store_buffer_free(&buffer);
	return NULL;
}

static PyObject *
py_set_meta(StoreObject *self, PyObject *args)
{
	PyObject   *key;
	Py_buffer	value;
	StoreBytes	name;
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) || !PyArg_ParseTuple(args, "Oy*", &key, &value))
		return NULL;
	if (!meta_name(key, &name))
		goto failed;
	ENTER(self)
	StoreBytes	content = {value.buf, value.len};

	status = store_set_meta(self->store, name, content);
	LEAVE(self)
	result = status == STORE_OK ? Py_NewRef(Py_None) : raise_status(status);
failed:
	PyBuffer_Release(&value);
	return result;
}

static PyObject *
py_set_ranges(StoreObject *self, PyObject *args)
{
	Py_buffer	packed;
	PyObject   *result = NULL;
	StoreStatus status = STORE_OK;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &packed))
		return NULL;
	ENTER(self)
	StoreBytes	ranges = {packed.buf, packed.len};

	status = store_set_ranges(self->store, ranges);
	LEAVE(self)
	result = status == STORE_OK ? Py_NewRef(Py_None) : raise_status(status);
failed:
	PyBuffer_Release(&packed);
	return result;
}

static PyObject *
py_sync(StoreObject *self, PyObject *args)
{
	int			clean = 0;
	StoreStatus status = STORE_OK;

	if (!check_open(self) || !PyArg_ParseTuple(args, "|p", &clean))
		return NULL;
	ENTER(self)
	status = store_sync(self->store, clean);
	LEAVE(self)
	if (status == STORE_OK)
		Py_RETURN_NONE;
	return raise_status(status);
failed:
	return NULL;
}

static PyObject *
py_copy(StoreObject *self, PyObject *args)
{
	PyObject   *path;
	StoreStatus status = STORE_OK;
	PyObject   *result = NULL;

	if (!check_open(self) || !PyArg_ParseTuple(args, "O&", PyUnicode_FSConverter, &path))
		return NULL;
	ENTER(self)
	status = store_copy(self->store, PyBytes_AS_STRING(path));
	LEAVE(self)
	result = status == STORE_OK ? Py_NewRef(Py_None) : raise_status(status);
failed:
	Py_DECREF(path);
	return result;
}

static PyObject *
py_reader_check(StoreObject *self, PyObject *unused)
{
	int			freed = 0;
	StoreStatus status = STORE_OK;

	if (!check_open(self))
		return NULL;
	ENTER(self)
	status = store_reader_check(self->store, &freed);
	LEAVE(self)
	if (status == STORE_OK)
		return PyLong_FromLong(freed);
	return raise_status(status);
failed:
	return NULL;
}

static PyObject *
py_size(StoreObject *self, PyObject *unused)
{
	StoreSize	size;
	StoreStatus status = STORE_OK;

	if (!check_open(self))
		return NULL;
	ENTER(self)
	status = store_size(self->store, &size);
	LEAVE(self)
	if (status == STORE_OK)
		return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K}",
							 "map_size", size.map_size, "file_pages", size.file_pages,
							 "free_pages", size.free_pages, "page_size", size.page_size,
							 "main_entries", size.main_entries, "hist_entries", size.hist_entries,
							 "readers", size.readers);
	return raise_status(status);
failed:
	return NULL;
}

/* applied and horizon: as of the newest committed state */
static PyObject *
read_times(StoreObject *self, bool horizon_wanted)
{
	int64_t		applied = 0;
	int64_t		horizon = 0;
	StoreStatus status = STORE_OK;

	if (!check_open(self))
		return NULL;
	ENTER(self)
	Reader		reader;

	status = take_reader(self, &reader);
	if (status == STORE_OK)
	{
		status = store_times(reader.reader, &applied, &horizon);
		give_reader(self, &reader);
	}
	LEAVE(self)
	if (status == STORE_OK)
		return PyLong_FromLongLong(horizon_wanted ? horizon : applied);
	return raise_status(status);
failed:
	return NULL;
}

static PyObject *
get_applied(StoreObject *self, void *unused)
{
	return read_times(self, false);
}

static PyObject *
get_horizon(StoreObject *self, void *unused)
{
	return read_times(self, true);
}

static PyObject *
get_closed(StoreObject *self, void *unused)
{
	return PyBool_FromLong(self->store == NULL);
}

static PyObject *
get_replaced(StoreObject *self, void *unused)
{
	bool		replaced = false;

	if (!check_open(self))
		return NULL;
	ENTER(self)
	replaced = store_replaced(self->store);
	LEAVE(self)
	return PyBool_FromLong(replaced);
failed:
	return NULL;
}

static PyMethodDef store_methods[] = {
	{"apply", (PyCFunction) (void (*) (void)) py_apply, METH_VARARGS | METH_KEYWORDS, NULL},
	{"apply_feed", (PyCFunction) py_apply_feed, METH_VARARGS, NULL},
	{"follow_feed", (PyCFunction) py_follow_feed, METH_VARARGS, NULL},
	{"ingest", (PyCFunction) py_ingest, METH_VARARGS, NULL},
	{"rollback", (PyCFunction) py_rollback, METH_VARARGS, NULL},
	{"collect", (PyCFunction) py_collect, METH_VARARGS, NULL},
	{"drop", (PyCFunction) py_drop, METH_VARARGS, NULL},
	{"erase", (PyCFunction) py_erase, METH_VARARGS, NULL},
	{"export", (PyCFunction) py_export, METH_VARARGS, NULL},
	{"import_page", (PyCFunction) py_import, METH_VARARGS, NULL},
	{"split", (PyCFunction) py_split, METH_VARARGS, NULL},
	{"get_many", (PyCFunction) py_get_many, METH_VARARGS, NULL},
	{"scan", (PyCFunction) py_scan, METH_VARARGS, NULL},
	{"scan_where", (PyCFunction) py_scan, METH_VARARGS, NULL},
	{"stats", (PyCFunction) py_stats, METH_O, NULL},
	{"meta", (PyCFunction) py_meta, METH_O, NULL},
	{"set_meta", (PyCFunction) py_set_meta, METH_VARARGS, NULL},
	{"set_ranges", (PyCFunction) py_set_ranges, METH_VARARGS, NULL},
	{"sync", (PyCFunction) py_sync, METH_VARARGS, NULL},
	{"copy", (PyCFunction) py_copy, METH_VARARGS, NULL},
	{"reader_check", (PyCFunction) py_reader_check, METH_NOARGS, NULL},
	{"size", (PyCFunction) py_size, METH_NOARGS, NULL},
	{"close", (PyCFunction) py_close, METH_NOARGS, NULL},
	{"__enter__", py_enter, METH_NOARGS, NULL},
	{"__exit__", (PyCFunction) py_exit, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL}
};

static PyGetSetDef store_properties[] = {
	{"applied", (getter) get_applied, NULL, NULL, NULL},
	{"horizon", (getter) get_horizon, NULL, NULL, NULL},
	{"closed", (getter) get_closed, NULL, NULL, NULL},
	{"replaced", (getter) get_replaced, NULL, NULL, NULL},
	{NULL, NULL, NULL, NULL, NULL}
};

static PyTypeObject StoreType = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "australis._native.Store",
	.tp_basicsize = sizeof(StoreObject),
	.tp_dealloc = (destructor) store_dealloc,
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_methods = store_methods,
	.tp_getset = store_properties,
	.tp_init = (initproc) store_init,
	.tp_new = PyType_GenericNew,
};

/* -------------------------------------------------------------------- Page */

#define PAGE_BYTES (4096 + 16 * 1024 * 16)	/* 16 query processors, 1,024 slots each */
#define PAGE_WORDS (PAGE_BYTES / 8)
#define PAGE_MAGIC_BYTES "AUSPAGE1"
#define WORD_SEQLOCK 4
#define WORD_ACKED 5
#define WORD_DDL 6
#define SEQLOCK_TRIES 100000

typedef struct
{
	PyObject_HEAD
	int64_t    *words;
} PageObject;

static void
page_dealloc(PageObject *self)
{
	if (self->words)
		munmap(self->words, PAGE_BYTES);
	Py_TYPE(self)->tp_free((PyObject *) self);
}

static PyTypeObject PageType = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "australis._native.Page",
	.tp_basicsize = sizeof(PageObject),
	.tp_dealloc = (destructor) page_dealloc,
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
};

/*
 * Make a page file under another name and link it to its own in one step, so
 * that nobody maps a page without its header.  EEXIST: another was faster.
 */
static int
create_page(const char *path, const uint8_t cluster[16])
{
	char		temporary[PATH_MAX];
	int			fd,
				rc = 0;

	if (snprintf(temporary, sizeof(temporary), "%s.%ld", path, (long) getpid()) >= (int) sizeof(temporary))
		return ENAMETOOLONG;
	fd = open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno;
	/* allocate it: a full disk must not be a SIGBUS of a later store */
	rc = posix_fallocate(fd, 0, PAGE_BYTES);
	if (rc == 0 && (pwrite(fd, PAGE_MAGIC_BYTES, 8, 0) != 8 || pwrite(fd, cluster, 16, 8) != 16))
		rc = errno ? errno : EIO;
	if (close(fd) != 0 && rc == 0)
		rc = errno;
	if (rc == 0 && link(temporary, path) != 0 && errno != EEXIST)
		rc = errno;
	unlink(temporary);
	return rc;
}

static PyObject *
page_open(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"path", "cluster", NULL};
	PyObject   *path_bytes;
	const char *path;
	const char *cluster = NULL;
	Py_ssize_t	cluster_len = 0;
	struct stat st;
	PageObject *page = NULL;
	void	   *map;
	int			fd;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|z#", names, PyUnicode_FSConverter, &path_bytes, &cluster,
									 &cluster_len))
		return NULL;
	path = PyBytes_AS_STRING(path_bytes);
	if (cluster && cluster_len != 16)
	{
		PyErr_SetString(PyExc_ValueError, "a cluster id has 16 bytes");
		Py_DECREF(path_bytes);
		return NULL;
	}
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && cluster)
	{
		int			rc = create_page(path, (const uint8_t *) cluster);

		errno = rc;
		if (rc == 0)
			fd = open(path, O_RDWR | O_CLOEXEC);
	}
	if (fd < 0 || fstat(fd, &st) != 0)
	{
		PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
		goto failed;
	}
	if (st.st_size != PAGE_BYTES)
	{
		PyErr_Format(StoreError, "%s is not a shared page: it has %lld bytes", path, (long long) st.st_size);
		goto failed;
	}
	map = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
	{
		PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
		goto failed;
	}
	page = PyObject_New(PageObject, &PageType);
	if (!page)
	{
		munmap(map, PAGE_BYTES);
		goto failed;
	}
	page->words = map;
	if (memcmp(map, PAGE_MAGIC_BYTES, 8) != 0)
	{
		PyErr_Format(StoreError, "%s is not a shared page", path);
		Py_CLEAR(page);
	}
	else if (cluster && memcmp((char *) map + 8, cluster, 16) != 0)
	{
		PyErr_Format(StoreError, "%s belongs to another cluster", path);
		Py_CLEAR(page);
	}
failed:
	if (fd >= 0)
		close(fd);
	Py_DECREF(path_bytes);
	return (PyObject *) page;
}

/*
 * The words of a Page, or of anything writable with the buffer protocol (an
 * mmap of the page file).  Such a view must be released by the caller.
 */
static int64_t *
page_words(PyObject *page, Py_buffer *view)
{
	view->obj = NULL;
	if (Py_TYPE(page) == &PageType)
		return ((PageObject *) page)->words;
	if (PyObject_GetBuffer(page, view, PyBUF_WRITABLE) < 0)
		return NULL;
	if (view->len == PAGE_BYTES && ((uintptr_t) view->buf & 7) == 0)
		return view->buf;
	PyBuffer_Release(view);
	PyErr_SetString(PyExc_ValueError, "not a shared page");
	return NULL;
}

static int64_t *
page_word(PyObject *page, PyObject *number, Py_buffer *view)
{
	Py_ssize_t	n = PyLong_AsSsize_t(number);
	int64_t    *words;

	if (n == -1 && PyErr_Occurred())
		return NULL;
	if (n < 0 || n >= PAGE_WORDS)
	{
		PyErr_Format(PyExc_IndexError, "a page has words 0 to %d", PAGE_WORDS - 1);
		return NULL;
	}
	words = page_words(page, view);
	return words ? words + n : NULL;
}

static inline void
page_done(Py_buffer *view)
{
	if (view->obj)
		PyBuffer_Release(view);
}

static bool
argument_count(Py_ssize_t given, Py_ssize_t wanted)
{
	if (given == wanted)
		return true;
	PyErr_Format(PyExc_TypeError, "%zd arguments expected, %zd given", wanted, given);
	return false;
}

static PyObject *
page_load(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	Py_buffer	view;
	int64_t    *word;
	int64_t		value;

	if (!argument_count(n, 2) || !(word = page_word(args[0], args[1], &view)))
		return NULL;
	value = __atomic_load_n(word, __ATOMIC_ACQUIRE);
	page_done(&view);
	return PyLong_FromLongLong(value);
}

static PyObject *
page_store(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	Py_buffer	view;
	int64_t    *word;
	long long	value;

	if (!argument_count(n, 3))
		return NULL;
	value = PyLong_AsLongLong(args[2]);
	if (value == -1 && PyErr_Occurred())
		return NULL;
	if (!(word = page_word(args[0], args[1], &view)))
		return NULL;
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
	page_done(&view);
	Py_RETURN_NONE;
}

/* Words 5 and 6 together, under the sequence lock in word 4. */
static PyObject *
page_store_acked(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	Py_buffer	view;
	int64_t    *words;
	int64_t		sequence;
	long long	acked,
				ddl;

	if (!argument_count(n, 3))
		return NULL;
	acked = PyLong_AsLongLong(args[1]);
	if (acked == -1 && PyErr_Occurred())
		return NULL;
	ddl = PyLong_AsLongLong(args[2]);
	if (ddl == -1 && PyErr_Occurred())
		return NULL;
	if (!(words = page_words(args[0], &view)))
		return NULL;
	/* odd already: a writer was killed in between; this write heals it */
	sequence = __atomic_load_n(&words[WORD_SEQLOCK], __ATOMIC_RELAXED) | 1;
	__atomic_store_n(&words[WORD_SEQLOCK], sequence, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&words[WORD_ACKED], acked, __ATOMIC_RELAXED);
	__atomic_store_n(&words[WORD_DDL], ddl, __ATOMIC_RELAXED);
	__atomic_store_n(&words[WORD_SEQLOCK], sequence + 1, __ATOMIC_RELEASE);
	page_done(&view);
	Py_RETURN_NONE;
}

static PyObject *
page_load_acked(PyObject *module, PyObject *page)
{
	Py_buffer	view;
	int64_t    *words;
	int			tries;

	if (!(words = page_words(page, &view)))
		return NULL;
	for (tries = 0; tries < SEQLOCK_TRIES; tries++)
	{
		int64_t		before = __atomic_load_n(&words[WORD_SEQLOCK], __ATOMIC_ACQUIRE);
		int64_t		acked = __atomic_load_n(&words[WORD_ACKED], __ATOMIC_RELAXED);
		int64_t		ddl = __atomic_load_n(&words[WORD_DDL], __ATOMIC_RELAXED);

		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if ((before & 1) == 0 && before == __atomic_load_n(&words[WORD_SEQLOCK], __ATOMIC_RELAXED))
		{
			page_done(&view);
			return Py_BuildValue("(LL)", (long long) acked, (long long) ddl);
		}
	}
	page_done(&view);
	PyErr_SetString(StoreError, "the page's writer stopped in the middle of a write");
	return NULL;
}

/* Wake processes that futex-wait on the low half of a word. */
static PyObject *
page_wake(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
	Py_buffer	view;
	int64_t    *word;
	long		woken;

	if (!argument_count(n, 2) || !(word = page_word(args[0], args[1], &view)))
		return NULL;
	/* it cannot fail on a valid address, and wakes nobody when nobody waits */
	woken = syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	page_done(&view);
	return PyLong_FromLong(woken);
}

/* ---------------------------------------------------------------- messages */

/* Which relation ids a message writes to: services need no more of most. */
static PyObject *
message_relations(PyObject *module, PyObject *argument)
{
	Py_buffer	body;
	StoreBuffer relids = {0};
	StoreStatus status;
	PyObject   *result = NULL;
	size_t		at;

	if (PyObject_GetBuffer(argument, &body, PyBUF_SIMPLE) < 0)
		return NULL;
	status = store_message_relations((StoreBytes) {body.buf, body.len}, &relids);
	PyBuffer_Release(&body);
	if (status != STORE_OK)
		raise_status(status);
	else
		result = PySet_New(NULL);
	for (at = 0; result && at < relids.len; at += sizeof(uint64_t))
	{
		uint64_t	relid;
		PyObject   *item;

		memcpy(&relid, relids.data + at, sizeof(relid));
		item = PyLong_FromUnsignedLongLong(relid);
		if (!item || PySet_Add(result, item) < 0)
			Py_CLEAR(result);
		Py_XDECREF(item);
	}
	store_buffer_free(&relids);
	return result;
}

/* ------------------------------------------------------------------ module */

static PyMethodDef functions[] = {
	{"page_open", (PyCFunction) (void (*) (void)) page_open, METH_VARARGS | METH_KEYWORDS, NULL},
	{"page_load", (PyCFunction) (void (*) (void)) page_load, METH_FASTCALL, NULL},
	{"page_store", (PyCFunction) (void (*) (void)) page_store, METH_FASTCALL, NULL},
	{"page_store_acked", (PyCFunction) (void (*) (void)) page_store_acked, METH_FASTCALL, NULL},
	{"page_load_acked", page_load_acked, METH_O, NULL},
	{"page_wake", (PyCFunction) (void (*) (void)) page_wake, METH_FASTCALL, NULL},
	{"message_relations", message_relations, METH_O, NULL},
	{"newer_key", (PyCFunction) (void (*) (void)) newer_key, METH_FASTCALL, NULL},
	{"note_keys", (PyCFunction) (void (*) (void)) note_keys, METH_FASTCALL, NULL},
	{"decide_plain", (PyCFunction) (void (*) (void)) decide_plain, METH_FASTCALL, NULL},
	{NULL, NULL, 0, NULL}
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "australis._native",
	.m_size = -1,
	.m_methods = functions,
};

static PyObject *
new_exception(PyObject *module, const char *name, PyObject *base)
{
	char		full[64];
	PyObject   *type;

	snprintf(full, sizeof(full), "australis._native.%s", name);
	type = PyErr_NewException(full, base, NULL);
	if (type && PyModule_AddObjectRef(module, name, type) < 0)
		Py_CLEAR(type);
	return type;
}

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC
PyInit__native(void)
{
	PyObject   *module;

	if (PyType_Ready(&StoreType) < 0 || PyType_Ready(&PageType) < 0)
		return NULL;
	module = PyModule_Create(&definition);
	if (!module)
		return NULL;
	if (!(StoreError = new_exception(module, "StoreError", PyExc_Exception)) ||
		!(DamagedError = new_exception(module, "DamagedError", StoreError)) ||
		!(TooOldError = new_exception(module, "TooOldError", StoreError)) ||
		!(FullError = new_exception(module, "FullError", StoreError)) ||
		!(MalformedError = new_exception(module, "MalformedError", StoreError)) ||
		PyModule_AddObjectRef(module, "Store", (PyObject *) &StoreType) < 0 ||
		PyModule_AddObjectRef(module, "Page", (PyObject *) &PageType) < 0 ||
		PyModule_AddIntConstant(module, "MAX_KEY", STORE_MAX_KEY) < 0)
	{
		Py_DECREF(module);
		return NULL;
	}
	return module;
}
