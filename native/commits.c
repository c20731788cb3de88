/*-------------------------------------------------------------------------
 *
 * commits.c
 *	  Plain commits, decided from their bytes, for adjudicator/adjudicator.py.
 *
 * Nearly all commits write a few rows, belong to this generation, and conflict
 * with nothing.  What is true of all those together is checked here in one go;
 * for any other, and for every doubt, the answer is None and nothing has been
 * changed: Adjudicator.commit() then decides, and says why.  So this must hold:
 * what is accepted here would be accepted there, with the same time and the
 * same traces in the same dictionaries.
 *
 *-------------------------------------------------------------------------
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "conflicts.h"
#include "msgpack.h"

#define TAG_COMMIT 2			/* protocol/messages.py */
#define COMMIT_FIELDS 13
#define TXID_BYTES 16
#define MIN_KEY 8				/* its relation id */
#define MAX_KEYS 255			/* more are for ConflictTable's ways with large write sets */
#define NIL 0xc0

/* Elements of the tuple that stands for the adjudicator's state */
enum
{
	GENERATION, KNOWN, PENDING, CHANGES, WRITES, PROBES, RECORDS, WRITTEN, STATE_SIZE
};

typedef struct PlainCommit
{
	uint64_t	generation;
	uint64_t	tau_start;
	StoreBytes	txid;
	StoreBytes	modes;
	Mp			keys;			/* at the first of n_keys */
	Mp			relations;		/* at the first of n_relations */
	uint32_t	n_keys;
	uint32_t	n_relations;
} PlainCommit;

/* Bytes, not text: msgspec tells them apart. */
static StoreBytes
mp_bin(Mp *mp)
{
	if (mp->p >= mp->end || *mp->p < 0xc4 || *mp->p > 0xc6)
		mp->bad = true;
	return mp_bytes(mp);
}

/* Is this a well-formed Commit without checks, DDL and drops? */
static bool
parse_plain(const uint8_t *data, size_t len, PlainCommit *c)
{
	Mp			mp = {data, data + len, false};

	if (mp_array(&mp) != COMMIT_FIELDS || mp_uint(&mp) != TAG_COMMIT)
		return false;
	c->generation = mp_uint(&mp);
	c->txid = mp_bin(&mp);
	mp_uint(&mp);				/* attempt */
	c->tau_start = mp_uint(&mp);
	mp_uint(&mp);				/* flags */
	c->n_keys = mp_array(&mp);
	if (mp.bad || c->n_keys > MAX_KEYS)
		return false;
	c->keys = mp;
	for (uint32_t i = 0; i < c->n_keys; i++)
	{
		if (mp_bin(&mp).len < MIN_KEY)
			return false;
	}
	c->modes = mp_bin(&mp);
	if (mp_array(&mp) != c->n_keys)
		return false;
	for (uint32_t i = 0; i < c->n_keys && !mp.bad; i++)
		mp_skip(&mp, 0);
	if (mp_array(&mp) != 0)		/* checks */
		return false;
	c->n_relations = mp_array(&mp);
	c->relations = mp;
	for (uint32_t i = 0; i < c->n_relations && !mp.bad; i++)
	{
		if (mp_uint(&mp) > INT64_MAX)
			return false;
	}
	if (mp_be(&mp, 1) != NIL || mp_array(&mp) != 0)	/* DDL, drops */
		return false;
	return !mp.bad && mp.p == mp.end && c->txid.len == TXID_BYTES && c->modes.len == c->n_keys;
}

static PyObject *
list_keys(const PlainCommit *c)
{
	Mp			mp = c->keys;
	PyObject   *keys = PyList_New(c->n_keys);

	for (uint32_t i = 0; keys != NULL && i < c->n_keys; i++)
	{
		StoreBytes	key = mp_bytes(&mp);
		PyObject   *object = PyBytes_FromStringAndSize((const char *) key.data, key.len);

		if (object == NULL)
			Py_CLEAR(keys);
		else
			PyList_SET_ITEM(keys, i, object);
	}
	return keys;
}

/* 1: a relation has changed since the snapshot; 0: none has; -1: error */
static int
any_changed(const PlainCommit *c, PyObject *changes)
{
	Mp			mp = c->relations;

	if (PyDict_GET_SIZE(changes) == 0)
		return 0;
	for (uint32_t i = 0; i < c->n_relations; i++)
	{
		PyObject   *relation = PyLong_FromUnsignedLongLong(mp_uint(&mp));
		PyObject   *tau = relation ? PyDict_GetItemWithError(changes, relation) : NULL;
		long long	changed = tau ? PyLong_AsLongLong(tau) : 0;

		Py_XDECREF(relation);
		if (PyErr_Occurred())
			return -1;
		if (tau != NULL && changed > (long long) c->tau_start)
			return 1;
	}
	return 0;
}

/* Every relation has been written to at tau. */
static bool
note_relations(const PlainCommit *c, PyObject *writes, PyObject *tau)
{
	Mp			mp = c->relations;

	for (uint32_t i = 0; i < c->n_relations; i++)
	{
		PyObject   *relation = PyLong_FromUnsignedLongLong(mp_uint(&mp));
		int			failed = relation == NULL || PyDict_SetItem(writes, relation, tau) < 0;

		Py_XDECREF(relation);
		if (failed)
			return false;
	}
	return true;
}

/* May it be committed?  1, 0 (not by us) or -1 (error) */
static int
admissible(PyObject *module, PyObject *const *state, const PlainCommit *c, PyObject *txid, PyObject *keys,
		   PyObject *modes)
{
	PyObject   *probe[] = {state[PROBES], keys, modes, NULL};
	PyObject   *newer;
	int			found;

	for (int i = KNOWN; i <= PENDING; i++)
	{
		found = PyDict_Contains(state[i], txid);
		if (found != 0)
			return found < 0 ? -1 : 0;
	}
	found = any_changed(c, state[CHANGES]);
	if (found != 0)
		return found < 0 ? -1 : 0;
	probe[3] = PyLong_FromUnsignedLongLong(c->tau_start);
	if (probe[3] == NULL)
		return -1;
	newer = newer_key(module, probe, 4);
	Py_DECREF(probe[3]);
	if (newer == NULL)
		return -1;
	found = newer == Py_None;
	Py_DECREF(newer);
	return found;
}

/* Leave the traces of a commit at tau; returns the length of its keys. */
static PyObject *
leave_traces(PyObject *module, PyObject *const *state, const PlainCommit *c, PyObject *keys, PyObject *modes,
			 PyObject *tau)
{
	PyObject   *note[] = {state[RECORDS], state[WRITTEN], keys, modes, tau};
	PyObject   *size = note_keys(module, note, 5);

	if (size != NULL && !note_relations(c, state[WRITES], tau))
		Py_CLEAR(size);
	return size;
}

static bool
check_state(PyObject *state)
{
	if (!PyTuple_Check(state) || PyTuple_GET_SIZE(state) != STATE_SIZE)
		return false;
	for (int i = KNOWN; i <= WRITES; i++)
	{
		if (!PyDict_Check(PyTuple_GET_ITEM(state, i)))
			return false;
	}
	return true;
}

PyObject *
decide_plain(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	PlainCommit c;
	long long	generation,
				bound,
				last,
				now;
	PyObject   *const *state;
	PyObject   *txid,
			   *modes,
			   *keys,
			   *tau = NULL,
			   *size = NULL,
			   *result = NULL;
	int			admitted = -1;

	if (nargs != 5 || !check_state(args[0]) || !PyBytes_Check(args[1]))
	{
		PyErr_SetString(PyExc_TypeError, "decide_plain(state, body, bound, last, now)");
		return NULL;
	}
	state = &PyTuple_GET_ITEM(args[0], 0);
	generation = PyLong_AsLongLong(state[GENERATION]);
	bound = PyLong_AsLongLong(args[2]);
	last = PyLong_AsLongLong(args[3]);
	now = PyLong_AsLongLong(args[4]);
	if (PyErr_Occurred())
		return NULL;
	if (!parse_plain((const uint8_t *) PyBytes_AS_STRING(args[1]), PyBytes_GET_SIZE(args[1]), &c) ||
		c.generation != (uint64_t) generation || c.tau_start > INT64_MAX || (int64_t) c.tau_start < bound ||
		(int64_t) c.tau_start > last)
		Py_RETURN_NONE;

	txid = PyBytes_FromStringAndSize((const char *) c.txid.data, c.txid.len);
	modes = PyBytes_FromStringAndSize((const char *) c.modes.data, c.modes.len);
	keys = list_keys(&c);
	if (txid != NULL && modes != NULL && keys != NULL)
		admitted = admissible(module, state, &c, txid, keys, modes);
	if (admitted == 0)
		result = Py_NewRef(Py_None);
	else if (admitted > 0 && (tau = PyLong_FromLongLong(now > last + 1 ? now : last + 1)) != NULL &&
			 (size = leave_traces(module, state, &c, keys, modes, tau)) != NULL)
	{
		result = PyTuple_Pack(5, tau, txid, keys, modes, size);
		/* last: without memory there is no commit, and nothing may wait for its end */
		if (result != NULL && PyDict_SetItem(state[PENDING], txid, tau) < 0)
			Py_CLEAR(result);
	}
	Py_XDECREF(txid);
	Py_XDECREF(modes);
	Py_XDECREF(keys);
	Py_XDECREF(tau);
	Py_XDECREF(size);
	return result;
}
