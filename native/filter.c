/*-------------------------------------------------------------------------
 *
 * filter.c
 *	  Conditions on row images, and parts of them: see filter.h.
 *
 * Conditions have no negation, so what is unknown (a column that the row was
 * written without, a value that cannot be reached) counts as true, and NULL as
 * false.  Compiled once per batch; columns are located in order, as far as a
 * condition asks for them, and from constant offsets where no NULL and no
 * variable width comes before.
 *
 *-------------------------------------------------------------------------
 */
#include "filter.h"

#include <stdlib.h>
#include <string.h>

#define ROW_VERSION		1
#define ROW_HAS_NULL	1
#define ROW_HEADER		8
#define ALIGN8(n)		(((size_t) (n) + 7) & ~(size_t) 7)

typedef struct Column
{
	int16_t		length;
	uint8_t		align;
	bool		wanted;
	int32_t		offset;			/* in rows without NULLs; -1: varies */
} Column;

typedef struct Node
{
	uint8_t		what;
	uint8_t		kind;
	uint8_t		op;
	uint16_t	column;
	uint16_t	len;
	uint32_t	end;			/* the node after this and all below it */
	const uint8_t *bytes;
	int64_t		number;
	double		real;
} Node;

typedef enum Place
{
	PLACE_VALUE,
	PLACE_NULL,
	PLACE_UNKNOWN,				/* not in the image, or it is damaged */
} Place;

struct Filter
{
	bool		project;
	uint32_t	ncolumns;
	uint32_t	nwanted;		/* columns up to the last wanted one */
	uint32_t	nnodes;
	Column	   *columns;
	Node	   *nodes;

	/* the row at hand */
	const uint8_t *bitmap;		/* NULL: no NULLs */
	const uint8_t *data;
	size_t		data_len;
	uint32_t	natts;
	uint32_t	located;		/* so many columns */
	bool		broken;			/* after those nothing can be located */
	size_t		next;			/* offset behind them */
	uint32_t   *at;				/* offset of each */
	uint32_t   *size;			/* with its header */
};

typedef struct Input
{
	const uint8_t *p;
	const uint8_t *end;
	const char *why;
} Input;

static uint32_t
take(Input *in, int bytes)
{
	uint32_t	value = 0;

	if (in->end - in->p < bytes)
	{
		in->why = "it is cut short";
		in->p = in->end;
		return 0;
	}
	memcpy(&value, in->p, bytes);
	in->p += bytes;
	return value;
}

static bool
comparable(const Column *column, const Node *node)
{
	switch (node->kind)
	{
		case FILTER_SIGNED:
			return node->len == 8 && (column->length == 1 || column->length == 2 || column->length == 4 ||
									  column->length == 8);
		case FILTER_UNSIGNED:
			return node->len == 8 && (column->length == 1 || column->length == 2 || column->length == 4 ||
									  column->length == 8);
		case FILTER_FLOAT:
			return node->len == 8 && (column->length == 4 || column->length == 8);
		case FILTER_BYTES:
			return column->length == -1 || column->length == node->len;
		default:
			return false;
	}
}

/* Read one condition and what is below it. */
static void
parse(Filter *f, Input *in, int depth)
{
	Node	   *node;
	uint32_t	n;

	if (depth > FILTER_MAX_DEPTH || f->nnodes == FILTER_MAX_NODES)
	{
		in->why = "it has too many conditions";
		return;
	}
	node = &f->nodes[f->nnodes++];
	memset(node, 0, sizeof(*node));
	node->what = take(in, 1);
	n = take(in, 2);
	switch (node->what)
	{
		case FILTER_AND:
		case FILTER_OR:
			for (; n > 0 && in->why == NULL; n--)
				parse(f, in, depth + 1);
			break;
		case FILTER_NULL:
		case FILTER_NOT_NULL:
		case FILTER_COMPARE:
			if (n >= f->ncolumns)
			{
				in->why = "it names a column that it does not describe";
				return;
			}
			node->column = n;
			if (node->what != FILTER_COMPARE)
				break;
			node->kind = take(in, 1);
			node->op = take(in, 1);
			node->len = take(in, 2);
			if (in->why != NULL)
				return;
			if (in->end - in->p < node->len)
			{
				in->why = "it is cut short";
				return;
			}
			node->bytes = in->p;
			in->p += node->len;
			if (!comparable(&f->columns[n], node) || node->op > FILTER_GE)
			{
				in->why = "it compares what cannot be compared";
				return;
			}
			if (node->len == 8)
			{
				memcpy(&node->number, node->bytes, 8);
				memcpy(&node->real, node->bytes, 8);
			}
			break;
		default:
			in->why = "it has an unknown condition";
			return;
	}
	node->end = f->nnodes;
}

Filter *
filter_compile(const uint8_t *program, size_t len, const char **why)
{
	Input		in = {program, program + len, NULL};
	uint32_t	version,
				flags,
				ncolumns;
	size_t		most_nodes;
	size_t		offset = 0;
	bool		fixed = true;
	Filter	   *f;

	version = take(&in, 1);
	flags = take(&in, 1);
	ncolumns = take(&in, 2);
	*why = in.why;
	if (in.why == NULL && (version != FILTER_VERSION || (flags & ~(FILTER_PROJECT | FILTER_COUNT)) != 0))
		*why = "it is of another version";
	else if (in.why == NULL && (ncolumns > FILTER_MAX_COLUMNS || (size_t) (in.end - in.p) < (size_t) ncolumns * 4))
		*why = "its columns are cut short";
	if (*why)
		return NULL;
	most_nodes = (size_t) (in.end - in.p) / 3 + 1;
	if (most_nodes > FILTER_MAX_NODES)
		most_nodes = FILTER_MAX_NODES;
	f = malloc(sizeof(Filter) + most_nodes * sizeof(Node) + ncolumns * (sizeof(Column) + 2 * sizeof(uint32_t)) + 64);
	if (f == NULL)
		return NULL;
	memset(f, 0, sizeof(*f));
	f->project = (flags & FILTER_PROJECT) != 0;
	f->ncolumns = ncolumns;
	f->nodes = (Node *) (f + 1);
	f->columns = (Column *) (f->nodes + most_nodes);
	f->at = (uint32_t *) (f->columns + ncolumns);
	f->size = f->at + ncolumns;
	for (uint32_t i = 0; i < ncolumns; i++)
	{
		Column	   *c = &f->columns[i];

		c->length = (int16_t) take(&in, 2);
		c->align = take(&in, 1);
		c->wanted = take(&in, 1) != 0;
		if (c->length == 0 || c->length < -2 ||
			(c->align != 1 && c->align != 2 && c->align != 4 && c->align != 8))
		{
			in.why = "it describes an impossible column";
			break;
		}
		if (c->wanted)
			f->nwanted = i + 1;
		if (c->length < 0)
			fixed = false;
		c->offset = -1;
		if (fixed)
		{
			offset = (offset + c->align - 1) & ~(size_t) (c->align - 1);
			c->offset = (int32_t) offset;
			offset += c->length;
		}
	}
	if (in.why == NULL && in.p < in.end)
		parse(f, &in, 1);
	if (in.why == NULL && in.p < in.end)
		in.why = "something follows its end";
	if (in.why != NULL)
	{
		*why = in.why;
		free(f);
		return NULL;
	}
	return f;
}

void
filter_free(Filter *filter)
{
	free(filter);
}

bool
filter_projects(const Filter *filter)
{
	return filter->project;
}

bool
filter_counts(const uint8_t *program, size_t len)
{
	return len >= 2 && (program[1] & FILTER_COUNT) != 0;
}

/* Make a row the one at hand; false: it is none that we can take apart. */
static bool
enter(Filter *f, const uint8_t *row, size_t len)
{
	uint16_t	natts;
	size_t		data_off = ROW_HEADER;

	if (len < ROW_HEADER || row[0] != ROW_VERSION)
		return false;
	memcpy(&natts, row + 2, 2);
	f->bitmap = NULL;
	if (row[1] & ROW_HAS_NULL)
	{
		f->bitmap = row + ROW_HEADER;
		data_off = ALIGN8(ROW_HEADER + (natts + 7) / 8);
		if (data_off > len)
			return false;
	}
	f->data = row + data_off;
	f->data_len = len - data_off;
	f->natts = natts;
	f->located = 0;
	f->next = 0;
	f->broken = false;
	return true;
}

static inline bool
is_null(const Filter *f, uint32_t column)
{
	return f->bitmap && (f->bitmap[column / 8] & (1 << (column % 8))) == 0;
}

/* Locate columns up to this one; false: it cannot be reached. */
static bool
locate(Filter *f, uint32_t column)
{
	while (f->located <= column)
	{
		const Column *c = &f->columns[f->located];
		size_t		at = f->next;
		size_t		size;

		if (f->broken || f->located >= f->natts)
			return false;
		if (is_null(f, f->located))
		{
			f->at[f->located] = f->size[f->located] = 0;
			f->located++;
			continue;
		}
		/* a short header is not aligned; padding is zero */
		if (c->length != -1 || (at < f->data_len && f->data[at] == 0))
			at = (at + c->align - 1) & ~(size_t) (c->align - 1);
		f->broken = true;
		if (at > f->data_len)
			return false;
		if (c->length > 0)
			size = c->length;
		else if (c->length == -1)
		{
			uint32_t	header;

			if (at >= f->data_len || f->data[at] == 1)
				return false;	/* out of line: not in our images */
			if (f->data[at] & 1)
				size = f->data[at] >> 1;
			else
			{
				if (f->data_len - at < 4)
					return false;
				memcpy(&header, f->data + at, 4);
				if (header & 2)
					return false;	/* compressed: neither */
				size = header >> 2;
				if (size < 4)
					return false;
			}
		}
		else
		{
			const uint8_t *nul = memchr(f->data + at, 0, f->data_len - at);

			if (nul == NULL)
				return false;
			size = nul - (f->data + at) + 1;
		}
		if (size > f->data_len - at)
			return false;
		f->broken = false;
		f->at[f->located] = (uint32_t) at;
		f->size[f->located] = (uint32_t) size;
		f->located++;
		f->next = at + size;
	}
	return true;
}

/* A column's value, without the header of a variable width. */
static inline Place
value_of(Filter *f, uint32_t column, const uint8_t **value, size_t *len)
{
	const Column *c = &f->columns[column];

	if (column >= f->natts)
		return PLACE_UNKNOWN;
	if (is_null(f, column))
		return PLACE_NULL;
	if (f->bitmap == NULL && c->offset >= 0)
	{
		if ((size_t) c->offset + c->length > f->data_len)
			return PLACE_UNKNOWN;
		*value = f->data + c->offset;
		*len = c->length;
		return PLACE_VALUE;
	}
	if (!locate(f, column))
		return PLACE_UNKNOWN;
	*value = f->data + f->at[column];
	*len = f->size[column];
	if (c->length == -1)
	{
		size_t		header = (**value & 1) ? 1 : 4;

		*value += header;
		*len -= header;
	}
	return PLACE_VALUE;
}

static inline int
compare_signed(const uint8_t *value, size_t len, int64_t with)
{
	int64_t		a = 0;

	if (len == 8)
		memcpy(&a, value, 8);
	else if (len == 4)
	{
		int32_t		v;

		memcpy(&v, value, 4);
		a = v;
	}
	else if (len == 2)
	{
		int16_t		v;

		memcpy(&v, value, 2);
		a = v;
	}
	else
		a = (int8_t) *value;
	return (a > with) - (a < with);
}

static inline int
compare_unsigned(const uint8_t *value, size_t len, uint64_t with)
{
	uint64_t	a = 0;

	memcpy(&a, value, len);
	return (a > with) - (a < with);
}

/* As PostgreSQL: NaN is the greatest, and equal to itself. */
static inline int
compare_float(const uint8_t *value, size_t len, double with)
{
	double		a;

	if (len == 4)
	{
		float		v;

		memcpy(&v, value, 4);
		a = v;
	}
	else
		memcpy(&a, value, 8);
	if (a != a || with != with)
		return (a != a) - (with != with);
	return (a > with) - (a < with);
}

static bool
compare(Filter *f, const Node *node)
{
	const uint8_t *value;
	size_t		len;
	Place		place = value_of(f, node->column, &value, &len);
	int			c;

	if (place != PLACE_VALUE)
		return place == PLACE_UNKNOWN;
	switch (node->kind)
	{
		case FILTER_SIGNED:
			c = compare_signed(value, len, node->number);
			break;
		case FILTER_UNSIGNED:
			c = compare_unsigned(value, len, (uint64_t) node->number);
			break;
		case FILTER_FLOAT:
			c = compare_float(value, len, node->real);
			break;
		default:
			if (node->op <= FILTER_NE && len != node->len)
				return node->op == FILTER_NE;
			c = memcmp(value, node->bytes, len < node->len ? len : node->len);
			if (c == 0)
				c = (len > node->len) - (len < node->len);
			break;
	}
	switch (node->op)
	{
		case FILTER_EQ:
			return c == 0;
		case FILTER_NE:
			return c != 0;
		case FILTER_LT:
			return c < 0;
		case FILTER_LE:
			return c <= 0;
		case FILTER_GT:
			return c > 0;
		default:
			return c >= 0;
	}
}

static bool
holds(Filter *f, uint32_t at)
{
	const Node *node = &f->nodes[at];

	switch (node->what)
	{
		case FILTER_AND:
			for (uint32_t child = at + 1; child < node->end; child = f->nodes[child].end)
			{
				if (!holds(f, child))
					return false;
			}
			return true;
		case FILTER_OR:
			for (uint32_t child = at + 1; child < node->end; child = f->nodes[child].end)
			{
				if (holds(f, child))
					return true;
			}
			return false;
		case FILTER_NULL:
			return node->column >= f->natts || is_null(f, node->column);
		case FILTER_NOT_NULL:
			return node->column >= f->natts || !is_null(f, node->column);
		default:
			return compare(f, node);
	}
}

bool
filter_passes(Filter *f, const uint8_t *row, size_t len)
{
	if (f->nnodes == 0 || !enter(f, row, len))
		return true;
	return holds(f, 0);
}

size_t
filter_room(const Filter *f, size_t len)
{
	/* a bitmap that was not there, and padding in front of what is aligned otherwise */
	return ALIGN8(len + FILTER_MAX_COLUMNS / 8 + 16 + (size_t) f->nwanted * 8);
}

size_t
filter_project(Filter *f, const uint8_t *row, size_t len, uint8_t *to)
{
	uint32_t	natts;
	size_t		data_off;
	size_t		used = 0;
	uint8_t    *data;

	if (!f->project || !enter(f, row, len))
		return 0;
	natts = f->natts < f->nwanted ? f->natts : f->nwanted;
	if (natts > 0 && !locate(f, natts - 1))
		return 0;
	data_off = ALIGN8(ROW_HEADER + (natts + 7) / 8);
	memcpy(to, row, ROW_HEADER);
	memset(to + ROW_HEADER, 0, data_off - ROW_HEADER);
	to[1] |= ROW_HAS_NULL;
	to[2] = natts & 0xFF;
	to[3] = natts >> 8;
	data = to + data_off;
	for (uint32_t i = 0; i < natts; i++)
	{
		const Column *c = &f->columns[i];
		const uint8_t *value = f->data + f->at[i];

		if (!c->wanted || is_null(f, i))
			continue;
		to[ROW_HEADER + i / 8] |= 1 << (i % 8);
		if (c->length != -1 || (*value & 1) == 0)
		{
			while (used % c->align != 0)
				data[used++] = 0;
		}
		memcpy(data + used, value, f->size[i]);
		used += f->size[i];
	}
	return data_off + used;
}
