/*-------------------------------------------------------------------------
 *
 * conflicts.h
 *	  Functions of australis._native for deciding commits (conflicts.c, commits.c);
 *	  src/australis/_native.pyi has their signatures.
 *
 *-------------------------------------------------------------------------
 */
#ifndef AUSTRALIS_CONFLICTS_H
#define AUSTRALIS_CONFLICTS_H

#include <Python.h>
#include <stdbool.h>

extern PyObject *newer_key(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
extern PyObject *note_keys(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
extern PyObject *decide_plain(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif							/* AUSTRALIS_CONFLICTS_H */
