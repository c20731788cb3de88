/*-------------------------------------------------------------------------
 *
 * conflicts.c
 *	  The loops over a commit's keys for adjudicator/conflict_table.py.
 *
 * The table itself, and what conflicts with what, is Python's: dictionaries
 * key -> latest commit time, chosen by a key's mode byte.  Only the looks into
 * them are here, since they are made for every key of every commit.
 *
 * What must hold: nothing is remembered here between calls, and no reference
 * to a key or time is kept but by the dictionaries.
 *
 *-------------------------------------------------------------------------
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#include "conflicts.h"

#define MODES 256
#define PREFIX_BYTES 8			/* a key begins with its relation id */

/* keys: a list, and modes: bytes, with one element for each other; chosen: a tuple with an element per mode byte */
static bool
check_keys(PyObject *chosen, PyObject *keys, PyObject *modes)
{
	if (!PyTuple_Check(chosen) || PyTuple_GET_SIZE(chosen) != MODES || !PyList_Check(keys) || !PyBytes_Check(modes))
	{
		PyErr_SetString(PyExc_TypeError, "a tuple of 256, a list of keys and their modes expected");
		return false;
	}
	if (PyList_GET_SIZE(keys) != PyBytes_GET_SIZE(modes))
	{
		PyErr_SetString(PyExc_ValueError, "every key has one mode");
		return false;
	}
	return true;
}

PyObject *
newer_key(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	long long	after;

	if (nargs != 4 || !check_keys(args[0], args[1], args[2]))
	{
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_TypeError, "newer_key(probes, keys, modes, tau)");
		return NULL;
	}
	after = PyLong_AsLongLong(args[3]);
	if (after == -1 && PyErr_Occurred())
		return NULL;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[1]); i++)
	{
		PyObject   *key = PyList_GET_ITEM(args[1], i);
		PyObject   *probes = PyTuple_GET_ITEM(args[0], (uint8_t) PyBytes_AS_STRING(args[2])[i]);

		if (!PyTuple_Check(probes))
		{
			PyErr_SetString(PyExc_TypeError, "a tuple of dictionaries per mode expected");
			return NULL;
		}
		for (Py_ssize_t j = 0; j < PyTuple_GET_SIZE(probes); j++)
		{
			PyObject   *tau = PyDict_GetItemWithError(PyTuple_GET_ITEM(probes, j), key);
			long long	latest;

			if (tau == NULL)
			{
				if (PyErr_Occurred())
					return NULL;
				continue;
			}
			latest = PyLong_AsLongLong(tau);
			if (latest == -1 && PyErr_Occurred())
				return NULL;
			if (latest > after)
				return Py_NewRef(key);
		}
	}
	Py_RETURN_NONE;
}

PyObject *
note_keys(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	PyObject   *written,
			   *tau;
	char		last[PREFIX_BYTES];
	bool		any = false;
	Py_ssize_t	size = 0;

	if (nargs != 5 || !check_keys(args[0], args[2], args[3]) || !PyDict_Check(args[1]))
	{
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_TypeError, "note_keys(records, written, keys, modes, tau)");
		return NULL;
	}
	written = args[1];
	tau = args[4];
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[2]); i++)
	{
		PyObject   *key = PyList_GET_ITEM(args[2], i);
		PyObject   *latest = PyTuple_GET_ITEM(args[0], (uint8_t) PyBytes_AS_STRING(args[3])[i]);

		if (!PyBytes_Check(key) || PyBytes_GET_SIZE(key) < PREFIX_BYTES)
		{
			PyErr_SetString(PyExc_ValueError, "a key begins with a relation id");
			return NULL;
		}
		if (latest != Py_None && PyDict_SetItem(latest, key, tau) < 0)
			return NULL;
		size += PyBytes_GET_SIZE(key);
		/* the keys of one relation mostly come together */
		if (!any || memcmp(last, PyBytes_AS_STRING(key), PREFIX_BYTES) != 0)
		{
			PyObject   *prefix = PyBytes_FromStringAndSize(PyBytes_AS_STRING(key), PREFIX_BYTES);
			int			failed = prefix == NULL || PyDict_SetItem(written, prefix, tau) < 0;

			Py_XDECREF(prefix);
			if (failed)
				return NULL;
			memcpy(last, PyBytes_AS_STRING(key), PREFIX_BYTES);
			any = true;
		}
	}
	return PyLong_FromSsize_t(size);
}
