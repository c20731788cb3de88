/*-------------------------------------------------------------------------
 *
 * key_codec.c
 *	  Datums to bytes whose memcmp order is PostgreSQL's btree order.
 *
 * Must hold, for every type: encode(a) < encode(b) iff the type's default
 * btree comparison says a < b; equal values have equal bytes (numeric 1.0 and
 * 1.00, interval '1 day' and '24 hours'); and no encoding is a prefix of
 * another one of the same column, so that columns can be put one after the
 * other and DESC can be had by inverting bytes.  docs/formats.md §1 fixes the
 * common types; for the others this file is the reference:
 *
 *	  "char", bool		1 byte
 *	  pg_lsn, xid8		8 bytes BE, unsigned
 *	  uuid, macaddr, macaddr8	as they are
 *	  tid				block BE4, offset BE2
 *	  timetz			time in UTC like an integer, zone like an int4
 *	  interval			span in microseconds, 16 bytes BE, sign flipped
 *	  numeric			class (1 -inf, 2 negative, 3 zero, 4 positive, 5 +inf,
 *						6 NaN); then weight of the first base-10000 digit BE2
 *						sign flipped, digits + 1 BE2 each, 0 BE2; the latter
 *						three inverted when negative
 *	  inet, cidr		family, network address, prefix length, address
 *	  bit, varbit		byte string, number of bits in the last byte
 *	  oidvector			number of elements BE4, elements BE4
 *	  enum				enumsortorder like a float4, 4 bytes
 *	  arrays			elements (2 value, 3 NULL, end: 1), number of
 *						dimensions, their lengths and lower bounds BE4
 *	  composite types	columns (2 value, 3 NULL)
 *	  ranges			0 empty; 1, lower bound, upper bound.  Bound: 0
 *						unbounded below, 1 value and inclusiveness, 2
 *						unbounded above
 *	  multiranges		ranges (1, lower, upper), 0
 *	  jsonb				type (1 null, 2 string, 3 numeric, 4 boolean, 5 array,
 *						6 object), then by type
 *	  tsvector, tsquery	field by field, in the order of their comparisons
 *	  citext			the lower-case string
 *	  ltree				labels, each ended by 1; 0
 *	  isn's types		like an int8
 *
 * Comparisons that depend on more than the value (collations other than C)
 * and types without an entry here are refused with 0A000, never guessed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>
#include <sys/socket.h>

#include "access/htup_details.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "tsearch/ts_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/cash.h"
#include "utils/date.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/formatting.h"
#include "utils/inet.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/multirangetypes.h"
#include "utils/numeric.h"
#include "utils/pg_locale.h"
#include "utils/pg_lsn.h"
#include "utils/rangetypes.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/uuid.h"
#include "utils/varbit.h"
#include "utils/xid8.h"

#include "australis.h"
#include "index.h"

typedef enum KeyCodec
{
	CODEC_NONE = 0,
	CODEC_BOOL,
	CODEC_CHAR,
	CODEC_INT2,
	CODEC_INT4,
	CODEC_INT8,					/* int8, money, time */
	CODEC_OID,
	CODEC_UINT8,				/* xid8, pg_lsn */
	CODEC_FLOAT4,
	CODEC_FLOAT8,
	CODEC_NUMERIC,
	CODEC_TEXT,
	CODEC_BPCHAR,
	CODEC_NAME,
	CODEC_BYTEA,
	CODEC_UUID,
	CODEC_MACADDR,
	CODEC_MACADDR8,
	CODEC_DATE,
	CODEC_TIMESTAMP,
	CODEC_TIMESTAMPTZ,
	CODEC_TIMETZ,
	CODEC_INTERVAL,
	CODEC_INET,
	CODEC_VARBIT,
	CODEC_TID,
	CODEC_OIDVECTOR,
	CODEC_TSVECTOR,
	CODEC_TSQUERY,
	CODEC_ENUM,
	CODEC_ARRAY,
	CODEC_RECORD,
	CODEC_RANGE,
	CODEC_MULTIRANGE,
	CODEC_JSONB,
	CODEC_CITEXT,
	CODEC_LTREE,
} KeyCodec;

#define MARK_NULL_FIRST 0x01
#define MARK_VALUE		0x02
#define MARK_NULL_LAST	0x03

/* inside arrays: end < value < NULL, as array_cmp has it */
#define ELEMENT_END		0x01
#define ELEMENT_VALUE	0x02
#define ELEMENT_NULL	0x03

static void encode(StringInfo buf, KeyCodec codec, Oid type, Datum value);

/* ----------------------------------------------------------- which codec */

static KeyCodec
codec_of_builtin(Oid type)
{
	switch (type)
	{
		case BOOLOID:
			return CODEC_BOOL;
		case CHAROID:
			return CODEC_CHAR;
		case INT2OID:
			return CODEC_INT2;
		case INT4OID:
			return CODEC_INT4;
		case INT8OID:
		case MONEYOID:
		case TIMEOID:
			return CODEC_INT8;
		case OIDOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
			return CODEC_OID;
		case XID8OID:
		case PG_LSNOID:
			return CODEC_UINT8;
		case FLOAT4OID:
			return CODEC_FLOAT4;
		case FLOAT8OID:
			return CODEC_FLOAT8;
		case NUMERICOID:
			return CODEC_NUMERIC;
		case TEXTOID:
		case VARCHAROID:
			return CODEC_TEXT;
		case BPCHAROID:
			return CODEC_BPCHAR;
		case NAMEOID:
			return CODEC_NAME;
		case BYTEAOID:
			return CODEC_BYTEA;
		case UUIDOID:
			return CODEC_UUID;
		case MACADDROID:
			return CODEC_MACADDR;
		case MACADDR8OID:
			return CODEC_MACADDR8;
		case DATEOID:
			return CODEC_DATE;
		case TIMESTAMPOID:
			return CODEC_TIMESTAMP;
		case TIMESTAMPTZOID:
			return CODEC_TIMESTAMPTZ;
		case TIMETZOID:
			return CODEC_TIMETZ;
		case INTERVALOID:
			return CODEC_INTERVAL;
		case INETOID:
		case CIDROID:
			return CODEC_INET;
		case BITOID:
		case VARBITOID:
			return CODEC_VARBIT;
		case TIDOID:
			return CODEC_TID;
		case OIDVECTOROID:
			return CODEC_OIDVECTOR;
		case TSVECTOROID:
			return CODEC_TSVECTOR;
		case TSQUERYOID:
			return CODEC_TSQUERY;
		case JSONBOID:
			return CODEC_JSONB;
		case RECORDOID:
			return CODEC_RECORD;
		case INT4RANGEOID:
		case INT8RANGEOID:
		case NUMRANGEOID:
		case DATERANGEOID:
		case TSRANGEOID:
		case TSTZRANGEOID:
			return CODEC_RANGE;
		case INT4MULTIRANGEOID:
		case INT8MULTIRANGEOID:
		case NUMMULTIRANGEOID:
		case DATEMULTIRANGEOID:
		case TSMULTIRANGEOID:
		case TSTZMULTIRANGEOID:
			return CODEC_MULTIRANGE;
		default:
			return CODEC_NONE;
	}
}

/*
 * Types of extensions are known by their default comparison, since they may
 * have any name and live in any schema.
 */
static KeyCodec
codec_of_extension(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_CMP_PROC);
	HeapTuple	tup;
	Datum		source;
	char	   *symbol;
	KeyCodec	codec = CODEC_NONE;

	if (!OidIsValid(entry->cmp_proc))
		return CODEC_NONE;
	tup = SearchSysCache1(PROCOID, ObjectIdGetDatum(entry->cmp_proc));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for function %u", entry->cmp_proc);
	source = SysCacheGetAttrNotNull(PROCOID, tup, Anum_pg_proc_prosrc);
	symbol = TextDatumGetCString(source);
	switch (((Form_pg_proc) GETSTRUCT(tup))->prolang)
	{
		case INTERNALlanguageId:
			/* isn: numbers with a prefix */
			if (strcmp(symbol, "btint8cmp") == 0 && entry->typbyval && entry->typlen == 8)
				codec = CODEC_INT8;
			break;
		case ClanguageId:
			if (strcmp(symbol, "citext_cmp") == 0)
				codec = CODEC_CITEXT;
			else if (strcmp(symbol, "ltree_cmp") == 0)
				codec = CODEC_LTREE;
			break;
		default:
			break;
	}
	pfree(symbol);
	ReleaseSysCache(tup);
	return codec;
}

/* Codec of a type, domains looked through; *type becomes the base type. */
static KeyCodec
codec_of(Oid *type)
{
	KeyCodec	codec = codec_of_builtin(*type);
	HeapTuple	tup;
	Form_pg_type typ;

	if (codec != CODEC_NONE || !OidIsValid(*type))
		return codec;

	tup = SearchSysCache1(TYPEOID, ObjectIdGetDatum(*type));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for type %u", *type);
	typ = (Form_pg_type) GETSTRUCT(tup);
	switch (typ->typtype)
	{
		case TYPTYPE_DOMAIN:
			*type = getBaseType(*type);
			codec = codec_of(type);
			break;
		case TYPTYPE_ENUM:
			codec = CODEC_ENUM;
			break;
		case TYPTYPE_COMPOSITE:
			codec = CODEC_RECORD;
			break;
		case TYPTYPE_RANGE:
			codec = CODEC_RANGE;
			break;
		case TYPTYPE_MULTIRANGE:
			codec = CODEC_MULTIRANGE;
			break;
		case TYPTYPE_BASE:
			if (IsTrueArrayType(typ))
				codec = CODEC_ARRAY;
			else if (*type >= FirstNormalObjectId)
				codec = codec_of_extension(*type);
			break;
		default:
			break;
	}
	ReleaseSysCache(tup);
	return codec;
}

/*
 * Is the type supported, with everything that it is made of?  If collation
 * matters (check_collation), strings inside must sort by bytes.  Returns
 * false, and the offending type or collation, if not.
 */
static bool
type_supported(Oid type, bool check_collation, Oid collation, Oid *bad_type, Oid *bad_collation)
{
	KeyCodec	codec;

	check_stack_depth();
	codec = codec_of(&type);

	switch (codec)
	{
		case CODEC_NONE:
			*bad_type = type;
			return false;

		case CODEC_TEXT:
		case CODEC_BPCHAR:
		case CODEC_CITEXT:
			if (check_collation && OidIsValid(collation))
			{
				pg_locale_t locale = pg_newlocale_from_collation(collation);

				if (!locale->collate_is_c || !locale->deterministic)
				{
					*bad_collation = collation;
					return false;
				}
			}
			return true;

		case CODEC_ARRAY:
			return type_supported(get_base_element_type(type), check_collation, collation,
								  bad_type, bad_collation);

		case CODEC_MULTIRANGE:
			return type_supported(get_multirange_range(type), check_collation, collation,
								  bad_type, bad_collation);

		case CODEC_RANGE:
			{
				TypeCacheEntry *range = lookup_type_cache(type, TYPECACHE_RANGE_INFO);
				TypeCacheEntry *sub;

				if (range->rngelemtype == NULL)
					elog(ERROR, "type %u is not a range type", type);

				/*
				 * The range may be declared with another operator class than
				 * its subtype's default; its order is not ours then.
				 */
				sub = lookup_type_cache(range->rngelemtype->type_id, TYPECACHE_CMP_PROC);
				if (sub->cmp_proc != range->rng_cmp_proc_finfo.fn_oid)
				{
					*bad_type = type;
					return false;
				}
				return type_supported(range->rngelemtype->type_id, check_collation,
									  range->rng_collation, bad_type, bad_collation);
			}

		case CODEC_RECORD:
			{
				TupleDesc	desc;
				bool		ok = true;

				/* anonymous: known only from the value */
				if (type == RECORDOID)
					return true;
				desc = lookup_rowtype_tupdesc(type, -1);
				for (int i = 0; ok && i < desc->natts; i++)
				{
					Form_pg_attribute att = TupleDescAttr(desc, i);

					if (!att->attisdropped)
						ok = type_supported(att->atttypid, check_collation, att->attcollation,
											bad_type, bad_collation);
				}
				ReleaseTupleDesc(desc);
				return ok;
			}

		default:
			return true;
	}
}

bool
au_key_type_supported(Oid type)
{
	Oid			bad_type,
				bad_collation;

	return type_supported(type, false, InvalidOid, &bad_type, &bad_collation);
}

void
au_key_check_collation(Oid type, Oid collation)
{
	Oid			bad_type = InvalidOid;
	Oid			bad_collation = InvalidOid;

	if (type_supported(type, true, collation, &bad_type, &bad_collation))
		return;
	if (OidIsValid(bad_collation))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("collation \"%s\" is not supported in an index", get_collation_name(bad_collation)),
				 errdetail("Keys are ordered by bytes: only collations that sort like \"C\" can be indexed.")));
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("type %s is not supported as a key", format_type_be(bad_type))));
}

void
au_key_column_init(KeyColumn *col, Oid type, bool desc, bool nulls_first)
{
	Oid			bad_type = InvalidOid;
	Oid			bad_collation = InvalidOid;

	col->type = type;
	col->codec = codec_of(&col->type);
	col->desc = desc;
	col->nulls_first = nulls_first;

	if (!type_supported(col->type, false, InvalidOid, &bad_type, &bad_collation))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("type %s is not supported as a key", format_type_be(bad_type))));
}

bool
au_key_order_is(const KeyColumn *col, Oid cmpproc)
{
	TypeCacheEntry *entry;

	switch (col->codec)
	{
		case CODEC_TEXT:
			return cmpproc == F_BTTEXTCMP || cmpproc == F_BTTEXT_PATTERN_CMP;
		case CODEC_BPCHAR:
			return cmpproc == F_BPCHARCMP || cmpproc == F_BTBPCHAR_PATTERN_CMP;
		case CODEC_RECORD:
			return cmpproc == F_BTRECORDCMP;
		default:
			entry = lookup_type_cache(col->type, TYPECACHE_CMP_PROC);
			return entry->cmp_proc == cmpproc;
	}
}

/* ------------------------------------------------------------ primitives */

static inline void
put_bytes(StringInfo buf, const void *data, uint32 len)
{
	appendBinaryStringInfoNT(buf, data, len);
}

static inline void
put_byte(StringInfo buf, uint8 b)
{
	enlargeStringInfo(buf, 1);
	buf->data[buf->len++] = (char) b;
}

static inline void
put_be16(StringInfo buf, uint16 v)
{
	v = pg_hton16(v);
	put_bytes(buf, &v, sizeof(v));
}

static inline void
put_be32(StringInfo buf, uint32 v)
{
	v = pg_hton32(v);
	put_bytes(buf, &v, sizeof(v));
}

static inline void
put_be64(StringInfo buf, uint64 v)
{
	v = pg_hton64(v);
	put_bytes(buf, &v, sizeof(v));
}

static inline void
put_int4(StringInfo buf, int32 v)
{
	put_be32(buf, (uint32) v ^ 0x80000000U);
}

static inline void
put_int8(StringInfo buf, int64 v)
{
	put_be64(buf, (uint64) v ^ UINT64CONST(0x8000000000000000));
}

static void
put_float8(StringInfo buf, float8 v)
{
	uint64		bits;

	if (isnan(v))
		bits = PG_UINT64_MAX;
	else
	{
		if (v == 0)
			v = 0;				/* -0 = +0 */
		memcpy(&bits, &v, sizeof(bits));
		if (bits & UINT64CONST(0x8000000000000000))
			bits = ~bits;
		else
			bits |= UINT64CONST(0x8000000000000000);
	}
	put_be64(buf, bits);
}

/*
 * The labels of ltree's format: their number, then each with its length, all
 * aligned.  Neither byte that ends something occurs in a label.
 */
static void
put_ltree(StringInfo buf, Datum value)
{
	struct varlena *v = PG_DETOAST_DATUM(value);
	const char *level = (const char *) v + MAXALIGN(VARHDRSZ + sizeof(uint16));
	uint16		nlevels;
	uint16		len;

	memcpy(&nlevels, (const char *) v + VARHDRSZ, sizeof(nlevels));
	for (int i = 0; i < nlevels; i++)
	{
		memcpy(&len, level, sizeof(len));
		put_bytes(buf, level + sizeof(len), len);
		put_byte(buf, 1);
		level += MAXALIGN(sizeof(len) + len);
	}
	put_byte(buf, 0);
	if ((Pointer) v != DatumGetPointer(value))
		pfree(v);
}

/* Groups of 8 bytes and a count; see docs/formats.md. */
static void
put_string(StringInfo buf, const char *data, uint32 len)
{
	uint32		groups = len / 8 + 1;
	char	   *p;

	enlargeStringInfo(buf, groups * 9);
	p = buf->data + buf->len;
	while (len >= 8)
	{
		memcpy(p, data, 8);
		p[8] = 8;
		p += 9;
		data += 8;
		len -= 8;
	}
	memset(p, 0, 8);
	memcpy(p, data, len);
	p[8] = (char) len;
	p += 9;
	buf->len = p - buf->data;
}

static inline void
invert(StringInfo buf, int from)
{
	for (int i = from; i < buf->len; i++)
		buf->data[i] = (char) ~buf->data[i];
}

/* ------------------------------------------------------- the larger types */

/*
 * The bits of a numeric's header, from numeric.c (the on-disk format, which
 * pg_upgrade has kept since 9.1).
 */
#define NUMERIC_SIGN_MASK	0xC000
#define NUMERIC_NEG			0x4000
#define NUMERIC_SHORT		0x8000
#define NUMERIC_SPECIAL		0xC000
#define NUMERIC_EXT_SIGN_MASK 0xF000
#define NUMERIC_NAN			0xC000
#define NUMERIC_PINF		0xD000
#define NUMERIC_NINF		0xF000
#define NUMERIC_SHORT_SIGN_MASK 0x2000
#define NUMERIC_SHORT_WEIGHT_SIGN_MASK 0x0040
#define NUMERIC_SHORT_WEIGHT_MASK 0x003F

static void
put_numeric(StringInfo buf, Datum value)
{
	struct varlena *num = PG_DETOAST_DATUM_PACKED(value);
	const char *p = VARDATA_ANY(num);
	int			len = VARSIZE_ANY_EXHDR(num);
	uint16		header;
	bool		negative;
	int			weight;
	int			ndigits;
	int			start;

	memcpy(&header, p, sizeof(header));
	p += sizeof(header);
	len -= sizeof(header);

	if ((header & NUMERIC_SIGN_MASK) == NUMERIC_SPECIAL)
	{
		uint16		kind = header & NUMERIC_EXT_SIGN_MASK;

		put_byte(buf, kind == NUMERIC_NINF ? 1 : kind == NUMERIC_PINF ? 5 : 6);
		goto done;
	}
	if (header & NUMERIC_SHORT)
	{
		negative = (header & NUMERIC_SHORT_SIGN_MASK) != 0;
		weight = (header & NUMERIC_SHORT_WEIGHT_SIGN_MASK) ? ~NUMERIC_SHORT_WEIGHT_MASK : 0;
		weight |= header & NUMERIC_SHORT_WEIGHT_MASK;
	}
	else
	{
		int16		w;

		negative = (header & NUMERIC_SIGN_MASK) == NUMERIC_NEG;
		memcpy(&w, p, sizeof(w));
		weight = w;
		p += sizeof(w);
		len -= sizeof(w);
	}

	/* Stored digits have no zeros at either end, by numeric.c's convention. */
	ndigits = len / sizeof(int16);
	if (ndigits == 0)
	{
		put_byte(buf, 3);
		goto done;
	}
	put_byte(buf, negative ? 2 : 4);
	start = buf->len;
	put_be16(buf, (uint16) (weight + 0x8000));
	for (int i = 0; i < ndigits; i++)
	{
		int16		digit;

		memcpy(&digit, p + i * sizeof(int16), sizeof(digit));
		put_be16(buf, (uint16) (digit + 1));
	}
	put_be16(buf, 0);
	if (negative)
		invert(buf, start);

done:
	if ((Pointer) num != DatumGetPointer(value))
		pfree(num);
}

static void
put_interval(StringInfo buf, const Interval *v)
{
	int128		span = (int128) v->time;

	span += ((int128) v->month * 30 + v->day) * USECS_PER_DAY;
	put_be64(buf, (uint64) (int64) (span >> 64) ^ UINT64CONST(0x8000000000000000));
	put_be64(buf, (uint64) span);
}

/* network_cmp_internal: network part, prefix length, whole address */
static void
put_inet(StringInfo buf, Datum value)
{
	struct varlena *packed = PG_DETOAST_DATUM_PACKED(value);
	const inet_struct *in = (const inet_struct *) VARDATA_ANY(packed);
	int			nbytes = in->family == PGSQL_AF_INET ? 4 : 16;
	uint8		net[16];
	int			bits = in->bits;

	memcpy(net, in->ipaddr, nbytes);
	for (int i = 0; i < nbytes; i++)
	{
		if (bits >= (i + 1) * 8)
			continue;
		if (bits <= i * 8)
			net[i] = 0;
		else
			net[i] &= (uint8) (0xFF << (8 - (bits - i * 8)));
	}
	put_byte(buf, in->family);
	put_bytes(buf, net, nbytes);
	put_byte(buf, in->bits);
	put_bytes(buf, in->ipaddr, nbytes);

	if ((Pointer) packed != DatumGetPointer(value))
		pfree(packed);
}

static void
put_enum(StringInfo buf, Oid value)
{
	HeapTuple	tup = SearchSysCache1(ENUMOID, ObjectIdGetDatum(value));
	float4		order;
	uint32		bits;

	if (!HeapTupleIsValid(tup))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid internal value for enum: %u", value)));
	order = ((Form_pg_enum) GETSTRUCT(tup))->enumsortorder;
	ReleaseSysCache(tup);

	if (order == 0)
		order = 0;
	memcpy(&bits, &order, sizeof(bits));
	put_be32(buf, (bits & 0x80000000U) ? ~bits : (bits | 0x80000000U));
}

static void
put_array(StringInfo buf, Datum value)
{
	ArrayType  *arr = DatumGetArrayTypeP(value);
	Oid			elemtype = ARR_ELEMTYPE(arr);
	Oid			basetype = elemtype;
	KeyCodec	codec = codec_of(&basetype);
	int			ndim = ARR_NDIM(arr);
	int16		typlen;
	bool		typbyval;
	char		typalign;
	Datum	   *elems;
	bool	   *nulls;
	int			nelems;

	get_typlenbyvalalign(elemtype, &typlen, &typbyval, &typalign);
	deconstruct_array(arr, elemtype, typlen, typbyval, typalign, &elems, &nulls, &nelems);
	for (int i = 0; i < nelems; i++)
	{
		if (nulls[i])
			put_byte(buf, ELEMENT_NULL);
		else
		{
			put_byte(buf, ELEMENT_VALUE);
			encode(buf, codec, basetype, elems[i]);
		}
	}
	put_byte(buf, ELEMENT_END);
	put_byte(buf, (uint8) ndim);
	for (int i = 0; i < ndim; i++)
		put_int4(buf, ARR_DIMS(arr)[i]);
	for (int i = 0; i < ndim; i++)
		put_int4(buf, ARR_LBOUND(arr)[i]);

	pfree(elems);
	pfree(nulls);
	if ((Pointer) arr != DatumGetPointer(value))
		pfree(arr);
}

static void
put_record(StringInfo buf, Datum value)
{
	HeapTupleHeader rec = DatumGetHeapTupleHeader(value);
	TupleDesc	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(rec),
											  HeapTupleHeaderGetTypMod(rec));
	HeapTupleData tuple;
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));

	tuple.t_len = HeapTupleHeaderGetDatumLength(rec);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = rec;
	heap_deform_tuple(&tuple, desc, values, nulls);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		if (nulls[i])
			put_byte(buf, ELEMENT_NULL);
		else
		{
			Oid			type = att->atttypid;
			KeyCodec	codec = codec_of(&type);

			put_byte(buf, ELEMENT_VALUE);
			encode(buf, codec, type, values[i]);
		}
	}

	pfree(values);
	pfree(nulls);
	ReleaseTupleDesc(desc);
	if ((Pointer) rec != DatumGetPointer(value))
		pfree(rec);
}

static void
put_bound(StringInfo buf, const RangeBound *bound, KeyCodec codec, Oid type)
{
	if (bound->infinite)
	{
		put_byte(buf, bound->lower ? 0 : 2);
		return;
	}
	put_byte(buf, 1);
	encode(buf, codec, type, bound->val);
	/* lower: [ before (; upper: ) before ] */
	put_byte(buf, bound->lower == bound->inclusive ? 0 : 1);
}

static void
put_range(StringInfo buf, Datum value)
{
	RangeType  *range = DatumGetRangeTypeP(value);
	TypeCacheEntry *cache = lookup_type_cache(RangeTypeGetOid(range), TYPECACHE_RANGE_INFO);
	RangeBound	lower,
				upper;
	bool		empty;

	range_deserialize(cache, range, &lower, &upper, &empty);
	if (empty)
		put_byte(buf, 0);
	else
	{
		Oid			type = cache->rngelemtype->type_id;
		KeyCodec	codec = codec_of(&type);

		put_byte(buf, 1);
		put_bound(buf, &lower, codec, type);
		put_bound(buf, &upper, codec, type);
	}
	if ((Pointer) range != DatumGetPointer(value))
		pfree(range);
}

static void
put_multirange(StringInfo buf, Datum value)
{
	MultirangeType *mr = DatumGetMultirangeTypeP(value);
	TypeCacheEntry *cache = lookup_type_cache(MultirangeTypeGetOid(mr), TYPECACHE_MULTIRANGE_INFO);
	Oid			type = cache->rngtype->rngelemtype->type_id;
	KeyCodec	codec = codec_of(&type);

	for (uint32 i = 0; i < mr->rangeCount; i++)
	{
		RangeBound	lower,
					upper;

		multirange_get_bounds(cache->rngtype, mr, i, &lower, &upper);
		put_byte(buf, 1);
		put_bound(buf, &lower, codec, type);
		put_bound(buf, &upper, codec, type);
	}
	put_byte(buf, 0);
	if ((Pointer) mr != DatumGetPointer(value))
		pfree(mr);
}

/*
 * compareJsonbContainers walks both documents token by token; as containers
 * of different sizes differ at their opening token, the walk itself is an
 * order-preserving encoding.  Its anomaly (an empty array at top level sorts
 * before scalars, which are arrays of one element there) comes with it.
 */
static void
put_jsonb(StringInfo buf, Datum value)
{
	Jsonb	   *jb = DatumGetJsonbP(value);
	JsonbIterator *it = JsonbIteratorInit(&jb->root);
	JsonbValue	v;
	JsonbIteratorToken token;

	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		switch (token)
		{
			case WJB_BEGIN_ARRAY:
				put_byte(buf, 5);
				put_be32(buf, v.val.array.nElems);
				put_byte(buf, v.val.array.rawScalar ? 0 : 1);
				break;
			case WJB_BEGIN_OBJECT:
				put_byte(buf, 6);
				put_be32(buf, v.val.object.nPairs);
				break;
			case WJB_KEY:
				put_string(buf, v.val.string.val, v.val.string.len);
				break;
			case WJB_VALUE:
			case WJB_ELEM:
				switch (v.type)
				{
					case jbvNull:
						put_byte(buf, 1);
						break;
					case jbvString:
						put_byte(buf, 2);
						put_string(buf, v.val.string.val, v.val.string.len);
						break;
					case jbvNumeric:
						put_byte(buf, 3);
						put_numeric(buf, NumericGetDatum(v.val.numeric));
						break;
					case jbvBool:
						put_byte(buf, 4);
						put_byte(buf, v.val.boolean ? 1 : 0);
						break;
					default:
						elog(ERROR, "unexpected jsonb value type %d", (int) v.type);
				}
				break;
			default:
				break;			/* ends of containers */
		}
	}
	if ((Pointer) jb != DatumGetPointer(value))
		pfree(jb);
}

/* silly_cmp_tsvector: sizes first, then entry by entry, much of it reversed */
static void
put_tsvector(StringInfo buf, Datum value)
{
	TSVector	v = DatumGetTSVector(value);
	WordEntry  *entry = ARRPTR(v);

	put_be32(buf, VARSIZE(v));
	put_be32(buf, v->size);
	for (int i = 0; i < v->size; i++, entry++)
	{
		put_byte(buf, entry->haspos ? 0 : 1);
		put_string(buf, STRPTR(v) + entry->pos, entry->len);
		if (entry->haspos)
		{
			int			npos = POSDATALEN(v, entry);
			WordEntryPos *pos = POSDATAPTR(v, entry);

			put_be16(buf, (uint16) ~npos);
			for (int j = 0; j < npos; j++)
				put_be16(buf, (uint16) ~(WEP_GETPOS(pos[j]) << 2 | WEP_GETWEIGHT(pos[j])));
		}
	}
	if ((Pointer) v != DatumGetPointer(value))
		pfree(v);
}

/* QTNodeCompare, reversed in everything but the words */
static void
put_tsquery_node(StringInfo buf, const QueryItem *item, const char *operands)
{
	check_stack_depth();
	put_byte(buf, (uint8) ~item->type);
	if (item->type == QI_OPR)
	{
		const QueryOperator *op = &item->qoperator;

		put_byte(buf, (uint8) ~op->oper);
		put_tsquery_node(buf, item + 1, operands);
		if (op->oper != OP_NOT)
			put_tsquery_node(buf, item + op->left, operands);
		if (op->oper == OP_PHRASE)
			put_be16(buf, (uint16) ~((uint16) op->distance ^ 0x8000));
	}
	else
	{
		const QueryOperand *val = &item->qoperand;

		put_be32(buf, ~((uint32) val->valcrc ^ 0x80000000U));
		put_string(buf, operands + val->distance, val->length);
	}
}

static void
put_tsquery(StringInfo buf, Datum value)
{
	TSQuery		q = (TSQuery) PG_DETOAST_DATUM(value);

	put_be32(buf, q->size);
	put_be32(buf, VARSIZE(q));
	if (q->size > 0)
		put_tsquery_node(buf, GETQUERY(q), GETOPERAND(q));
	if ((Pointer) q != DatumGetPointer(value))
		pfree(q);
}

/* ------------------------------------------------------------- all of them */

static void
encode(StringInfo buf, KeyCodec codec, Oid type, Datum value)
{
	switch (codec)
	{
		case CODEC_BOOL:
			put_byte(buf, DatumGetBool(value) ? 1 : 0);
			break;
		case CODEC_CHAR:
			put_byte(buf, (uint8) DatumGetChar(value));
			break;
		case CODEC_INT2:
			put_int8(buf, DatumGetInt16(value));
			break;
		case CODEC_INT4:
		case CODEC_DATE:
			put_int8(buf, DatumGetInt32(value));
			break;
		case CODEC_INT8:
		case CODEC_TIMESTAMP:
		case CODEC_TIMESTAMPTZ:
			put_int8(buf, DatumGetInt64(value));
			break;
		case CODEC_OID:
			put_int8(buf, (int64) DatumGetObjectId(value));
			break;
		case CODEC_UINT8:
			put_be64(buf, DatumGetUInt64(value));
			break;
		case CODEC_FLOAT4:
			put_float8(buf, DatumGetFloat4(value));
			break;
		case CODEC_FLOAT8:
			put_float8(buf, DatumGetFloat8(value));
			break;
		case CODEC_NUMERIC:
			put_numeric(buf, value);
			break;
		case CODEC_TEXT:
		case CODEC_BYTEA:
		case CODEC_BPCHAR:
		case CODEC_CITEXT:
			{
				struct varlena *s = PG_DETOAST_DATUM_PACKED(value);
				const char *data = VARDATA_ANY(s);
				int			len = VARSIZE_ANY_EXHDR(s);

				if (codec == CODEC_BPCHAR)
				{
					while (len > 0 && data[len - 1] == ' ')
						len--;
				}
				if (codec == CODEC_CITEXT)
				{
					/* as citext_cmp does it */
					char	   *lower = str_tolower(data, len, DEFAULT_COLLATION_OID);

					put_string(buf, lower, strlen(lower));
					pfree(lower);
				}
				else
					put_string(buf, data, len);
				if ((Pointer) s != DatumGetPointer(value))
					pfree(s);
				break;
			}
		case CODEC_NAME:
			{
				const char *s = DatumGetCString(value);

				put_string(buf, s, strnlen(s, NAMEDATALEN));
				break;
			}
		case CODEC_LTREE:
			put_ltree(buf, value);
			break;
		case CODEC_UUID:
			put_bytes(buf, DatumGetUUIDP(value)->data, UUID_LEN);
			break;
		case CODEC_MACADDR:
			put_bytes(buf, DatumGetMacaddrP(value), 6);
			break;
		case CODEC_MACADDR8:
			put_bytes(buf, DatumGetMacaddr8P(value), 8);
			break;
		case CODEC_TIMETZ:
			{
				const TimeTzADT *t = DatumGetTimeTzADTP(value);

				put_int8(buf, t->time + t->zone * USECS_PER_SEC);
				put_int4(buf, t->zone);
				break;
			}
		case CODEC_INTERVAL:
			put_interval(buf, DatumGetIntervalP(value));
			break;
		case CODEC_INET:
			put_inet(buf, value);
			break;
		case CODEC_VARBIT:
			{
				VarBit	   *bits = DatumGetVarBitP(value);
				int			nbytes = VARBITBYTES(bits);

				put_string(buf, (const char *) VARBITS(bits), nbytes);
				put_byte(buf, nbytes == 0 ? 0 : VARBITLEN(bits) - (nbytes - 1) * BITS_PER_BYTE);
				if ((Pointer) bits != DatumGetPointer(value))
					pfree(bits);
				break;
			}
		case CODEC_TID:
			{
				ItemPointer tid = (ItemPointer) DatumGetPointer(value);

				put_be32(buf, ItemPointerGetBlockNumberNoCheck(tid));
				put_be16(buf, ItemPointerGetOffsetNumberNoCheck(tid));
				break;
			}
		case CODEC_OIDVECTOR:
			{
				oidvector  *v = (oidvector *) PG_DETOAST_DATUM(value);

				put_be32(buf, v->dim1);
				for (int i = 0; i < v->dim1; i++)
					put_be32(buf, v->values[i]);
				if ((Pointer) v != DatumGetPointer(value))
					pfree(v);
				break;
			}
		case CODEC_TSVECTOR:
			put_tsvector(buf, value);
			break;
		case CODEC_TSQUERY:
			put_tsquery(buf, value);
			break;
		case CODEC_ENUM:
			put_enum(buf, DatumGetObjectId(value));
			break;
		case CODEC_ARRAY:
			check_stack_depth();
			put_array(buf, value);
			break;
		case CODEC_RECORD:
			check_stack_depth();
			put_record(buf, value);
			break;
		case CODEC_RANGE:
			check_stack_depth();
			put_range(buf, value);
			break;
		case CODEC_MULTIRANGE:
			check_stack_depth();
			put_multirange(buf, value);
			break;
		case CODEC_JSONB:
			put_jsonb(buf, value);
			break;
		case CODEC_NONE:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("type %s is not supported as a key", format_type_be(type))));
	}
}

static void
append_as(StringInfo buf, const KeyColumn *col, KeyCodec codec, Datum value)
{
	int			start;

	put_byte(buf, MARK_VALUE);
	start = buf->len;
	encode(buf, codec, col->type, value);
	if (col->desc)
		invert(buf, start);
}

void
au_key_append_relid(StringInfo buf, RelId relid)
{
	put_be64(buf, relid);
}

void
au_key_append(StringInfo buf, const KeyColumn *col, Datum value, bool isnull)
{
	if (isnull)
		put_byte(buf, col->nulls_first ? MARK_NULL_FIRST : MARK_NULL_LAST);
	else
		append_as(buf, col, col->codec, value);
}

/* -------------------------------------------------- values of other types */

static KeyMatch
append_both(StringInfo low, StringInfo high, const KeyColumn *col, KeyCodec codec, Datum value)
{
	append_as(low, col, codec, value);
	append_as(high, col, codec, value);
	return KEY_EXACT;
}

static void
append_integer(StringInfo buf, const KeyColumn *col, int64 v)
{
	append_as(buf, col, CODEC_INT8, Int64GetDatum(v));
}

/* The day that a finite timestamp lies in. */
static int64
floor_day(Timestamp ts)
{
	int64		day = ts / USECS_PER_DAY;

	return ts % USECS_PER_DAY < 0 ? day - 1 : day;
}

/*
 * The family of date and time types compares date with timestamp exactly
 * (midnight), and either with timestamptz through the session's time zone.
 * That conversion is not even monotonic where clocks are set back, so a
 * timestamptz only says within a day where the column's value may be.
 */
static KeyMatch
append_datetime(StringInfo low, StringInfo high, const KeyColumn *col, Datum value, KeyCodec from)
{
	if (from == CODEC_DATE)
	{
		DateADT		date = DatumGetDateADT(value);
		int			overflow;
		Timestamp	ts;

		if (col->codec == CODEC_TIMESTAMP)
			ts = date2timestamp_opt_overflow(date, &overflow);
		else
			ts = date2timestamptz_opt_overflow(date, &overflow);
		if (overflow != 0)
		{
			/* beyond every finite timestamp, but not infinite */
			ts = overflow > 0 ? END_TIMESTAMP - 1 : MIN_TIMESTAMP - 1;
			append_integer(low, col, ts);
			append_integer(high, col, ts);
			return KEY_BETWEEN;
		}
		append_integer(low, col, ts);
		append_integer(high, col, ts);
		return KEY_EXACT;
	}
	else
	{
		Timestamp	ts = DatumGetTimestamp(value);
		bool		infinite = TIMESTAMP_NOT_FINITE(ts);
		int64		infinity = TIMESTAMP_IS_NOBEGIN(ts) ? DATEVAL_NOBEGIN : DATEVAL_NOEND;

		if (col->codec == CODEC_DATE)
		{
			if (infinite)
			{
				append_integer(low, col, infinity);
				append_integer(high, col, infinity);
				return KEY_EXACT;
			}
			if (from == CODEC_TIMESTAMP)
			{
				append_integer(low, col, floor_day(ts));
				append_integer(high, col, floor_day(ts));
				return ts % USECS_PER_DAY == 0 ? KEY_EXACT : KEY_BETWEEN;
			}
			append_integer(low, col, floor_day(ts) - 2);
			append_integer(high, col, floor_day(ts) + 2);
			return KEY_WIDE;
		}
		if (col->codec == CODEC_TIMESTAMPTZ)
		{
			/* timestamp against a timestamptz column */
			int			overflow;
			TimestampTz tz = timestamp2timestamptz_opt_overflow(ts, &overflow);

			if (overflow != 0)
			{
				tz = overflow > 0 ? END_TIMESTAMP - 1 : MIN_TIMESTAMP - 1;
				append_integer(low, col, tz);
				append_integer(high, col, tz);
				return KEY_BETWEEN;
			}
			append_integer(low, col, tz);
			append_integer(high, col, tz);
			return KEY_EXACT;
		}
		/* timestamptz against a timestamp column */
		if (infinite)
		{
			append_integer(low, col, ts);
			append_integer(high, col, ts);
			return KEY_EXACT;
		}
		/* finite timestamps are far from the ends of int64 */
		append_integer(low, col, ts - 2 * USECS_PER_DAY);
		append_integer(high, col, ts + 2 * USECS_PER_DAY);
		return KEY_WIDE;
	}
}

KeyMatch
au_key_append_search(StringInfo low, StringInfo high, const KeyColumn *col, Datum value, Oid valuetype)
{
	KeyCodec	from;

	if (!OidIsValid(valuetype) || valuetype == col->type || IsPolymorphicType(valuetype))
		return append_both(low, high, col, col->codec, value);

	from = codec_of(&valuetype);
	switch ((KeyCodec) col->codec)
	{
		case CODEC_INT2:
		case CODEC_INT4:
		case CODEC_INT8:
			/* (the other types with codec INT8 have no cross-type operators) */
			if (from == CODEC_INT2 || from == CODEC_INT4 || from == CODEC_INT8)
				return append_both(low, high, col, from, value);
			break;
		case CODEC_FLOAT4:
		case CODEC_FLOAT8:
			if (from == CODEC_FLOAT4 || from == CODEC_FLOAT8)
				return append_both(low, high, col, from, value);
			break;
		case CODEC_TEXT:
		case CODEC_NAME:
			if (from == CODEC_TEXT || from == CODEC_NAME)
				return append_both(low, high, col, from, value);
			break;
		case CODEC_DATE:
		case CODEC_TIMESTAMP:
		case CODEC_TIMESTAMPTZ:
			if (from == col->codec)
				return append_both(low, high, col, from, value);
			if (from == CODEC_DATE || from == CODEC_TIMESTAMP || from == CODEC_TIMESTAMPTZ)
				return append_datetime(low, high, col, value, from);
			break;
		default:
			if (from == col->codec)
				return append_both(low, high, col, col->codec, value);
			break;
	}
	return KEY_UNKNOWN;
}

bool
au_key_append_foreign(StringInfo buf, const KeyColumn *col, Datum value, Oid valuetype)
{
	StringInfoData other;
	int			start = buf->len;
	KeyMatch	match;

	initStringInfo(&other);
	match = au_key_append_search(buf, &other, col, value, valuetype);
	pfree(other.data);
	if (match == KEY_EXACT)
		return true;
	buf->len = start;
	return false;
}

/* ------------------------------------------------------------------ others */

bool
au_key_prefix_successor(StringInfo buf)
{
	while (buf->len > 0)
	{
		uint8		last = (uint8) buf->data[buf->len - 1];

		if (last != 0xFF)
		{
			buf->data[buf->len - 1] = (char) (last + 1);
			return true;
		}
		buf->len--;
	}
	return false;
}

void
au_key_check_length(StringInfo buf, Relation rel)
{
	if (buf->len > AU_MAX_KEY)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("key of %d bytes exceeds the maximum of %d for \"%s\"",
						buf->len, AU_MAX_KEY, RelationGetRelationName(rel)),
				 errhint("Values of up to about 1,700 bytes in all can be indexed; consider an index on a hash of the value.")));
}

PG_FUNCTION_INFO_V1(au_key_debug);

/*
 * au_key_debug(value anyelement, descending bool, nulls_first bool) → bytea
 * The encoding of one column, for tests.
 */
Datum
au_key_debug(PG_FUNCTION_ARGS)
{
	Oid			type = get_fn_expr_argtype(fcinfo->flinfo, 0);
	KeyColumn	col;
	StringInfoData buf;
	bytea	   *result;

	if (!OidIsValid(type))
		elog(ERROR, "could not determine input type");
	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("direction and place of NULLs must not be null")));
	au_key_column_init(&col, type, PG_GETARG_BOOL(1), PG_GETARG_BOOL(2));
	initStringInfo(&buf);
	au_key_append(&buf, &col, PG_ARGISNULL(0) ? (Datum) 0 : PG_GETARG_DATUM(0), PG_ARGISNULL(0));
	result = palloc(VARHDRSZ + buf.len);
	SET_VARSIZE(result, VARHDRSZ + buf.len);
	memcpy(VARDATA(result), buf.data, buf.len);
	PG_RETURN_BYTEA_P(result);
}
