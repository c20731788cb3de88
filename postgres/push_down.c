/*-------------------------------------------------------------------------
 *
 * push_down.c
 *	  What storage may do for a scan: drop rows, leave out columns.
 *
 * The conditions of a scan that compare a column with a constant or with a
 * parameter, where storage can compare as PostgreSQL does, become a filter
 * (docs/formats.md, section 5), made again for every rescan.  The executor
 * evaluates the whole condition anyway.
 *
 * Must hold: the filter lets every row through that the conditions accept.
 * Only conditions that come first count: whatever comes behind one that stays
 * here (it may have side effects, or fail) is evaluated for the same rows as
 * without a filter.  Rows that this transaction has written are not filtered:
 * key_scan.c takes them from the write buffer.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "catalog/pg_type.h"
#include "filter.h"
#include "nodes/execnodes.h"
#include "nodes/nodeFuncs.h"
#include "nodes/params.h"
#include "utils/array.h"
#include "utils/cash.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/pg_locale.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#define MAX_ELEMENTS	256		/* of an array that a column is compared with */
#define MAX_CONSTANT	2000
#define MAX_PROGRAM		(32 * 1024)

bool		au_push_down = true;

typedef struct Builder
{
	StringInfo	program;
	EState	   *estate;
	Index		varno;
	TupleDesc	desc;
	int			nodes;
	int			ncolumns;		/* that conditions name */
} Builder;

static bool push_clause(Builder *b, Node *clause, int depth);

static inline void
put16(StringInfo s, uint16 v)
{
	appendBinaryStringInfoNT(s, &v, sizeof(v));
}

static bool
put_node(Builder *b, uint8 what, uint16 argument)
{
	if (++b->nodes > FILTER_MAX_NODES || b->program->len > MAX_PROGRAM)
		return false;
	appendStringInfoCharMacro(b->program, (char) what);
	put16(b->program, argument);
	return true;
}

/* A column of the scanned table itself, with the type that it has for operators; 0 if it is something else. */
static AttrNumber
column_of(const Builder *b, Node *node, Oid *type)
{
	Var		   *var = (Var *) node;

	while (node && IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	var = (Var *) node;
	if (node == NULL || !IsA(node, Var) || var->varno != b->varno || var->varlevelsup != 0 ||
		var->varattno <= 0 || var->varattno > b->desc->natts || var->varreturningtype != VAR_RETURNING_DEFAULT)
		return 0;
	*type = getBaseType(var->vartype);
	return var->varattno;
}

/* The value of a constant, or of a parameter that is known when a scan begins. */
static bool
known_value(const Builder *b, Node *node, Oid *type, Datum *value, bool *isnull)
{
	while (node && IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	if (node && IsA(node, Const))
	{
		Const	   *constant = (Const *) node;

		*type = constant->consttype;
		*value = constant->constvalue;
		*isnull = constant->constisnull;
		return true;
	}
	if (node && IsA(node, Param))
	{
		Param	   *param = (Param *) node;

		*type = param->paramtype;
		if (param->paramkind == PARAM_EXTERN)
		{
			ParamListInfo params = b->estate->es_param_list_info;
			ParamExternData *given;
			ParamExternData workspace;

			if (params == NULL || param->paramid <= 0 || param->paramid > params->numParams)
				return false;
			given = params->paramFetch ? params->paramFetch(params, param->paramid, true, &workspace)
				: &params->params[param->paramid - 1];
			*value = given->value;
			*isnull = given->isnull;
			return given->ptype == param->paramtype;
		}
		if (param->paramkind == PARAM_EXEC)
		{
			ParamExecData *given = &b->estate->es_param_exec_vals[param->paramid];

			/* one that a subquery gives is not computed for us: it might not be needed */
			if (given->execPlan != NULL)
				return false;
			*value = given->value;
			*isnull = given->isnull;
			return true;
		}
	}
	return false;
}

static inline bool
is_string(Oid type)
{
	return type == TEXTOID || type == VARCHAROID;
}

/* Append kind, operator and constant; false: storage does not compare this. */
static bool
put_constant(Builder *b, Oid type, int op, Datum value)
{
	int64		number;
	uint8		kind = FILTER_SIGNED;
	const void *bytes = &number;
	uint32		len = 8;

	switch (type)
	{
		case INT2OID:
			number = DatumGetInt16(value);
			break;
		case INT4OID:
			number = DatumGetInt32(value);
			break;
		case INT8OID:
			number = DatumGetInt64(value);
			break;
		case CASHOID:
			number = DatumGetCash(value);
			break;
		case DATEOID:
			number = DatumGetDateADT(value);
			break;
		case TIMEOID:
			number = DatumGetTimeADT(value);
			break;
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			number = DatumGetTimestamp(value);
			break;
		case BOOLOID:
			number = DatumGetBool(value) ? 1 : 0;
			kind = FILTER_UNSIGNED;
			break;
		case CHAROID:
			number = (uint8) DatumGetChar(value);
			kind = FILTER_UNSIGNED;
			break;
		case OIDOID:
			number = DatumGetObjectId(value);
			kind = FILTER_UNSIGNED;
			break;
		case FLOAT4OID:
		case FLOAT8OID:
			{
				double		real = type == FLOAT4OID ? (double) DatumGetFloat4(value) : DatumGetFloat8(value);

				memcpy(&number, &real, 8);
				kind = FILTER_FLOAT;
				break;
			}
		case UUIDOID:
			bytes = DatumGetUUIDP(value)->data;
			len = UUID_LEN;
			kind = FILTER_BYTES;
			break;
		case TEXTOID:
		case VARCHAROID:
		case BYTEAOID:
			{
				struct varlena *v = PG_DETOAST_DATUM_PACKED(value);

				bytes = VARDATA_ANY(v);
				len = VARSIZE_ANY_EXHDR(v);
				kind = FILTER_BYTES;
				break;
			}
		default:
			return false;
	}
	if (len > MAX_CONSTANT)
		return false;
	appendStringInfoCharMacro(b->program, (char) kind);
	appendStringInfoCharMacro(b->program, (char) op);
	put16(b->program, len);
	appendBinaryStringInfoNT(b->program, bytes, len);
	return true;
}

/* Does storage compare a column of this type with such a constant as this operator does? */
static bool
same_comparison(Oid column, Oid constant, Oid opno, Oid collation, int *op)
{
	static const int8 ops[] = {-1, FILTER_LT, FILTER_LE, FILTER_EQ, FILTER_GE, FILTER_GT};
	Oid			family = lookup_type_cache(column, TYPECACHE_BTREE_OPFAMILY)->btree_opf;
	Oid			left,
				right;
	int			strategy;

	op_input_types(opno, &left, &right);
	if (is_string(column))
	{
		if (!is_string(constant) || !is_string(left) || !is_string(right))
			return false;
	}
	else if (left != column || right != constant)
		return false;
	else if (column == FLOAT4OID || column == FLOAT8OID)
	{
		if (constant != FLOAT4OID && constant != FLOAT8OID)
			return false;
	}
	else if (column == INT2OID || column == INT4OID || column == INT8OID)
	{
		if (constant != INT2OID && constant != INT4OID && constant != INT8OID)
			return false;
	}
	else if (column != constant)
		return false;
	if (!OidIsValid(family))
		return false;
	strategy = get_op_opfamily_strategy(opno, family);
	if (strategy >= 1 && strategy <= 5)
		*op = ops[strategy];
	else
	{
		Oid			negator = get_negator(opno);

		if (!OidIsValid(negator) || get_op_opfamily_strategy(negator, family) != BTEqualStrategyNumber)
			return false;
		*op = FILTER_NE;
	}
	if (is_string(column))
	{
		if (!OidIsValid(collation) || !get_collation_isdeterministic(collation))
			return false;
		if (*op != FILTER_EQ && *op != FILTER_NE && !pg_newlocale_from_collation(collation)->collate_is_c)
			return false;
	}
	return true;
}

static bool
put_comparison(Builder *b, AttrNumber column, Oid type, int op, Datum value)
{
	if (!put_node(b, FILTER_COMPARE, column - 1) || !put_constant(b, type, op, value))
		return false;
	b->ncolumns = Max(b->ncolumns, column);
	return true;
}

static bool
push_operator(Builder *b, OpExpr *clause)
{
	Node	   *left,
			   *right;
	Oid			opno = clause->opno;
	Oid			type,
				other;
	AttrNumber	column;
	Datum		value;
	bool		isnull;
	int			op;

	if (list_length(clause->args) != 2)
		return false;
	left = linitial(clause->args);
	right = lsecond(clause->args);
	column = column_of(b, left, &type);
	if (column == 0)
	{
		column = column_of(b, right, &type);
		right = left;
		opno = get_commutator(opno);
	}
	if (column == 0 || !OidIsValid(opno) || !known_value(b, right, &other, &value, &isnull) ||
		!same_comparison(type, getBaseType(other), opno, clause->inputcollid, &op))
		return false;
	if (isnull)
		return put_node(b, FILTER_OR, 0);	/* comparisons with NULL are not true */
	return put_comparison(b, column, getBaseType(other), op, value);
}

static bool
push_array(Builder *b, ScalarArrayOpExpr *clause)
{
	Oid			type,
				other,
				element;
	AttrNumber	column = column_of(b, linitial(clause->args), &type);
	Datum		value;
	Datum	   *values;
	bool	   *nulls;
	bool		isnull;
	int			op;
	int			n,
				present = 0;
	int16		length;
	bool		by_value;
	char		alignment;
	ArrayType  *array;

	if (column == 0 || !known_value(b, lsecond(clause->args), &other, &value, &isnull))
		return false;
	element = get_base_element_type(other);
	if (!OidIsValid(element) || !same_comparison(type, getBaseType(element), clause->opno, clause->inputcollid, &op))
		return false;
	if (isnull)
		return put_node(b, FILTER_OR, 0);
	array = DatumGetArrayTypeP(value);
	if (ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)) > MAX_ELEMENTS)
		return false;
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &length, &by_value, &alignment);
	deconstruct_array(array, ARR_ELEMTYPE(array), length, by_value, alignment, &values, &nulls, &n);
	for (int i = 0; i < n; i++)
		present += !nulls[i];
	if (!put_node(b, clause->useOr ? FILTER_OR : FILTER_AND, present))
		return false;
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i] && !put_comparison(b, column, getBaseType(element), op, values[i]))
			return false;
	}
	return true;
}

/* A boolean column that is, or is not. */
static bool
push_boolean(Builder *b, Node *node, bool value)
{
	Oid			type;
	AttrNumber	column = column_of(b, node, &type);

	return column != 0 && type == BOOLOID && put_comparison(b, column, BOOLOID, FILTER_EQ, BoolGetDatum(value));
}

static bool
push_clause(Builder *b, Node *clause, int depth)
{
	if (depth >= FILTER_MAX_DEPTH - 1)
		return false;
	switch (nodeTag(clause))
	{
		case T_OpExpr:
			return push_operator(b, (OpExpr *) clause);
		case T_ScalarArrayOpExpr:
			return push_array(b, (ScalarArrayOpExpr *) clause);
		case T_Var:
			return push_boolean(b, clause, true);
		case T_BooleanTest:
			{
				BooleanTest *test = (BooleanTest *) clause;

				if (test->booltesttype != IS_TRUE && test->booltesttype != IS_FALSE)
					return false;
				return push_boolean(b, (Node *) test->arg, test->booltesttype == IS_TRUE);
			}
		case T_NullTest:
			{
				NullTest   *test = (NullTest *) clause;
				Oid			type;
				AttrNumber	column = column_of(b, (Node *) test->arg, &type);

				if (column == 0 || test->argisrow)
					return false;
				b->ncolumns = Max(b->ncolumns, column);
				return put_node(b, test->nulltesttype == IS_NULL ? FILTER_NULL : FILTER_NOT_NULL, column - 1);
			}
		case T_BoolExpr:
			{
				BoolExpr   *expr = (BoolExpr *) clause;

				if (expr->boolop == NOT_EXPR)
					return push_boolean(b, linitial(expr->args), false);
				if (!put_node(b, expr->boolop == AND_EXPR ? FILTER_AND : FILTER_OR, list_length(expr->args)))
					return false;
				foreach_ptr(Node, arg, expr->args)
				{
					if (!push_clause(b, arg, depth + 1))
						return false;
				}
				return true;
			}
		default:
			return false;
	}
}

/*
 * The filter of a scan, in the current memory context; without data if storage
 * has nothing to do.  *whole: it says all that the conditions say.
 */
Bytes
au_push_program(const PushDown *push, bool *whole)
{
	StringInfoData conditions;
	StringInfoData program;
	Builder		b = {.program = &conditions, .estate = push->estate, .varno = push->varno, .desc = push->desc};
	uint16		pushed = 0;
	uint16		ncolumns;

	*whole = push->qual == NIL && au_push_down;
	if (!au_push_down)
		return (Bytes) {NULL, 0};
	initStringInfo(&conditions);
	foreach_ptr(Node, clause, push->qual)
	{
		int			length = conditions.len;
		int			nodes = b.nodes;

		if (!push_clause(&b, clause, 2))
		{
			conditions.len = length;
			b.nodes = nodes;
			*whole = false;
			break;
		}
		pushed++;
		*whole = true;
	}
	ncolumns = b.ncolumns;
	if (push->project)
	{
		for (int i = -1; (i = bms_next_member(push->wanted, i)) >= 0;)
			ncolumns = Max(ncolumns, i);
	}
	if (pushed == 0 && !push->project)
	{
		pfree(conditions.data);
		return (Bytes) {NULL, 0};
	}
	initStringInfoExt(&program, 64 + ncolumns * 4 + conditions.len);
	appendStringInfoChar(&program, FILTER_VERSION);
	appendStringInfoChar(&program, push->project ? FILTER_PROJECT : 0);
	put16(&program, ncolumns);
	for (int i = 0; i < ncolumns; i++)
	{
		CompactAttribute *att = TupleDescCompactAttr(push->desc, i);

		put16(&program, (uint16) att->attlen);
		appendStringInfoChar(&program, (char) att->attalignby);
		appendStringInfoChar(&program, push->project && bms_is_member(i + 1, push->wanted));
	}
	if (pushed > 0)
	{
		appendStringInfoChar(&program, FILTER_AND);
		put16(&program, pushed);
		appendBinaryStringInfo(&program, conditions.data, conditions.len);
	}
	pfree(conditions.data);
	return (Bytes) {(const uint8 *) program.data, (uint32) program.len};
}
