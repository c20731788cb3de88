/*-------------------------------------------------------------------------
 *
 * filter.h
 *	  What a scan wants of row images: conditions on columns, and which
 *	  columns (docs/formats.md, section 5).
 *
 * The program comes from another process.  What must hold: whatever its bytes
 * and those of a row are, nothing outside of them is read.  A program that is
 * not well-formed is refused as a whole; a row that cannot be taken apart
 * passes unchanged: whoever asked looks at it again and finds the damage.  A
 * condition may pass rows that do not fulfil it, and never drops one that does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef AUSTRALIS_FILTER_H
#define AUSTRALIS_FILTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FILTER_VERSION		1
#define FILTER_PROJECT		1	/* flag: only the columns marked as wanted */
#define FILTER_COUNT		2	/* flag: how many rows pass, and the last one's key, instead of rows */
#define FILTER_MAX_COLUMNS	1664
#define FILTER_MAX_NODES	1024
#define FILTER_MAX_DEPTH	16

/* conditions */
#define FILTER_AND			1
#define FILTER_OR			2
#define FILTER_NULL			3
#define FILTER_NOT_NULL		4
#define FILTER_COMPARE		5

/* how values are compared */
#define FILTER_SIGNED		1
#define FILTER_UNSIGNED		2
#define FILTER_FLOAT		3
#define FILTER_BYTES		4

/* operators */
#define FILTER_EQ			0
#define FILTER_NE			1
#define FILTER_LT			2
#define FILTER_LE			3
#define FILTER_GT			4
#define FILTER_GE			5

typedef struct Filter Filter;

/* NULL: not well-formed (*why says what), or no memory (*why is NULL).  The program must outlive the filter. */
extern Filter *filter_compile(const uint8_t *program, size_t len, const char **why);
extern void filter_free(Filter *filter);

/* May this row image fulfil the conditions? */
extern bool filter_passes(Filter *filter, const uint8_t *row, size_t len);

extern bool filter_projects(const Filter *filter);

/* Does a program, well-formed or not, ask for a count? */
extern bool filter_counts(const uint8_t *program, size_t len);

/* Most bytes that filter_project() writes for a row image of len bytes. */
extern size_t filter_room(const Filter *filter, size_t len);

/*
 * Write the row image with only the wanted columns, the others as NULLs, to
 * `to`, which has filter_room() bytes and is aligned to 8.  Returns its length;
 * 0: the row is to be taken as it is.
 */
extern size_t filter_project(Filter *filter, const uint8_t *row, size_t len, uint8_t *to);

#endif							/* AUSTRALIS_FILTER_H */
