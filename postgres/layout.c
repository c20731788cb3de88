/*-------------------------------------------------------------------------
 *
 * layout.c
 *	  How the rows of a table are keyed.
 *
 * A table with a primary key (immediate, all key types encodable) when its
 * first row is written is organised by it: the row's key is the primary key,
 * and the primary key's index has no entries of its own.  Any other table has
 * hidden keys in insertion order.  The choice belongs to the storage id and
 * never changes while that lives; it is recorded next to the data (system
 * relation 3), with the identity of that index, so that neither adding nor
 * dropping a primary key later can make stored keys mean something else:
 *
 *	  - a primary key added to rows with hidden keys is an ordinary unique
 *		index until the table is rewritten;
 *	  - after its primary key was dropped, rows of an organised table get the
 *		old columns plus a hidden key, which can collide with nothing.
 *
 * A table being rewritten (pg_class.relrewrite) is keyed as the table that it
 * is going to replace.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_opclass.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/proc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#define LAYOUT_VERSION 1

bool
au_is_our_table(Relation rel)
{
	return rel->rd_rel->relam == AU_TABLE_AM_OID;
}

bool
au_is_our_index(Relation rel)
{
	return rel->rd_rel->relam == AU_INDEX_AM_OID;
}

/* The type whose encoding an index column uses. */
static Oid
index_column_type(Relation index, int i)
{
	Oid			type = index->rd_opcintype[i];

	if (IsPolymorphicType(type) || type == RECORDOID)
		type = TupleDescAttr(RelationGetDescr(index), i)->atttypid;
	return type;
}

/*
 * The primary key that organises rel when its first row is written now, or
 * nothing.
 */
static void
layout_from_primary_key(Relation rel, TableLayout *layout)
{
	Relation	owner = rel;
	Relation	index;
	Oid			index_oid;

	layout->hidden = true;
	layout->decided = false;
	layout->has_primary = false;
	layout->index_oid = InvalidOid;
	layout->index_number = InvalidRelFileNumber;
	layout->ncolumns = 0;

	if (OidIsValid(rel->rd_rel->relrewrite))
		owner = relation_open(rel->rd_rel->relrewrite, NoLock);
	if (!owner->rd_rel->relhasindex)
		goto done;
	index_oid = RelationGetPrimaryKeyIndex(owner, false);
	if (!OidIsValid(index_oid))
		goto done;
	index = index_open(index_oid, AccessShareLock);
	if (au_is_our_index(index) && index->rd_index->indimmediate)
	{
		bool		usable = true;

		for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		{
			Oid			type = index_column_type(index, i);

			if (!au_key_type_supported(type))
			{
				usable = false;
				break;
			}
			layout->attnums[i] = index->rd_index->indkey.values[i];
			au_key_column_init(&layout->columns[i], type,
							   (index->rd_indoption[i] & INDOPTION_DESC) != 0,
							   (index->rd_indoption[i] & INDOPTION_NULLS_FIRST) != 0);
		}
		if (usable)
		{
			layout->hidden = false;
			layout->has_primary = true;
			layout->index_oid = index_oid;
			layout->index_number = index->rd_locator.relNumber;
			layout->ncolumns = IndexRelationGetNumberOfKeyAttributes(index);
		}
	}
	index_close(index, NoLock);
done:
	if (owner != rel)
		relation_close(owner, NoLock);
}

static void
layout_key(StringInfo key, RelId relid)
{
	uint64		be = pg_hton64(relid);

	au_key_append_relid(key, AU_SYS_LAYOUT);
	appendBinaryStringInfo(key, &be, 8);
}

static inline Bytes
as_bytes(StringInfo s)
{
	Bytes		b = {(const uint8 *) s->data, (uint32) s->len};

	return b;
}

/* Does an index with this identity still organise the table? */
static bool
primary_still_there(Relation rel, TableLayout *layout)
{
	Relation	owner = rel;
	Relation	index;
	Oid			index_oid;
	bool		result = false;

	if (OidIsValid(rel->rd_rel->relrewrite))
		owner = relation_open(rel->rd_rel->relrewrite, NoLock);
	index_oid = owner->rd_rel->relhasindex ? RelationGetPrimaryKeyIndex(owner, false) : InvalidOid;
	if (OidIsValid(index_oid))
	{
		index = index_open(index_oid, AccessShareLock);
		result = (index_oid == layout->index_oid ||
				  index->rd_locator.relNumber == layout->index_number) &&
			IndexRelationGetNumberOfKeyAttributes(index) == layout->ncolumns;
		for (int i = 0; result && i < layout->ncolumns; i++)
			result = index->rd_index->indkey.values[i] == layout->attnums[i];
		if (result)
		{
			/* an ALTER TYPE that kept the file gives it a new oid */
			layout->index_oid = index_oid;
			layout->index_number = index->rd_locator.relNumber;
		}
		index_close(index, NoLock);
	}
	if (owner != rel)
		relation_close(owner, NoLock);
	return result;
}

static bool
layout_from_record(Relation rel, TableLayout *layout)
{
	StringInfoData key;
	KeyEntry	entry;
	MpReader	r;
	bool		found;

	initStringInfo(&key);
	layout_key(&key, au_relid(rel));
	found = au_key_lookup(as_bytes(&key), InvalidCommandId, &entry);
	if (found)
	{
		uint32		n;

		r.p = entry.value.data;
		r.end = r.p + entry.value.len;
		n = au_mp_read_array(&r);
		if (n < 5 || au_mp_read_int(&r) != LAYOUT_VERSION)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("unknown layout record of table \"%s\"", RelationGetRelationName(rel))));
		layout->hidden = au_mp_read_int(&r) == 0;
		layout->ncolumns = (int) au_mp_read_array(&r);
		if (layout->ncolumns > INDEX_MAX_KEYS)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("unknown layout record of table \"%s\"", RelationGetRelationName(rel))));
		for (int i = 0; i < layout->ncolumns; i++)
		{
			Oid			type;
			bool		desc;
			bool		nulls_first;

			(void) au_mp_read_array(&r);
			layout->attnums[i] = (AttrNumber) au_mp_read_int(&r);
			type = (Oid) au_mp_read_int(&r);
			desc = au_mp_read_bool(&r);
			nulls_first = au_mp_read_bool(&r);
			au_key_column_init(&layout->columns[i], type, desc, nulls_first);
		}
		layout->index_oid = (Oid) au_mp_read_int(&r);
		layout->index_number = (RelFileNumber) au_mp_read_int(&r);
		layout->decided = true;
		/* a record of our own holds only as long as it is not rolled back */
		layout->valid_in = entry.version ? au_transaction_serial() : 0;
		layout->has_primary = !layout->hidden && primary_still_there(rel, layout);
	}
	pfree(key.data);
	return found;
}

const TableLayout *
au_table_layout(Relation rel)
{
	TableLayout layout;
	TableLayout *cached;

	cached = rel->rd_amcache;
	if (cached && (cached->valid_in == 0 || cached->valid_in == au_transaction_serial()))
		return cached;
	memset(&layout, 0, sizeof(layout));
	if (!layout_from_record(rel, &layout))
	{
		/*
		 * Not decided yet: another transaction may do it, so this is not
		 * cached.
		 */
		static TableLayout undecided;

		layout_from_primary_key(rel, &layout);
		undecided = layout;
		return &undecided;
	}
	/* opening the index may have brought an invalidation, and freed it */
	cached = rel->rd_amcache;
	if (cached == NULL)
		cached = MemoryContextAlloc(CacheMemoryContext, sizeof(TableLayout));
	*cached = layout;
	rel->rd_amcache = cached;
	return cached;
}

/*
 * Blind: whoever writes it at the same time comes to the same answer, since the
 * catalog must not change in between (rule A5).
 */
static void
write_record(Relation rel, const TableLayout *layout)
{
	StringInfoData key,
				value;

	initStringInfo(&key);
	initStringInfo(&value);
	layout_key(&key, au_relid(rel));
	au_mp_array(&value, 5);
	au_mp_int(&value, LAYOUT_VERSION);
	au_mp_int(&value, layout->hidden ? 0 : 1);
	au_mp_array(&value, layout->ncolumns);
	for (int i = 0; i < layout->ncolumns; i++)
	{
		au_mp_array(&value, 4);
		au_mp_int(&value, layout->attnums[i]);
		au_mp_int(&value, layout->columns[i].type);
		au_mp_bool(&value, layout->columns[i].desc);
		au_mp_bool(&value, layout->columns[i].nulls_first);
	}
	au_mp_int(&value, layout->index_oid);
	au_mp_int(&value, layout->index_number);
	(void) au_wb_put(as_bytes(&key), as_bytes(&value), FirstCommandId, LockTupleNoKeyExclusive, true);
	pfree(key.data);
	pfree(value.data);
}

const TableLayout *
au_table_layout_decide(Relation rel)
{
	const TableLayout *layout = au_table_layout(rel);

	if (layout->decided)
		return layout;
	write_record(rel, layout);

	/* now it is found, in the buffer */
	return au_table_layout(rel);
}

/*
 * An ALTER TYPE that keeps the index's file gives it a new oid, a REINDEX gives
 * it a new file: the record must follow each, or after both of them nothing
 * tells that this index is the table itself.
 */
void
au_layout_follow(Relation heap, Relation index)
{
	TableLayout layout;

	if (!au_index_is_primary(heap, index))
		return;
	layout = *au_table_layout(heap);
	if (!layout.decided)
		return;
	layout.index_oid = RelationGetRelid(index);
	layout.index_number = index->rd_locator.relNumber;
	write_record(heap, &layout);
	/* what is cached may be of the record as it was, also in other sessions */
	CacheInvalidateRelcache(heap);
}

bool
au_index_is_primary(Relation heap, Relation index)
{
	const TableLayout *layout;

	if (!index->rd_index->indisprimary || !index->rd_index->indimmediate)
		return false;
	layout = au_table_layout(heap);
	return !layout->hidden && layout->has_primary &&
		(layout->index_oid == RelationGetRelid(index) ||
		 layout->index_number == index->rd_locator.relNumber);
}

void
au_table_key(StringInfo buf, Relation rel, const TableLayout *layout, TupleTableSlot *slot)
{
	resetStringInfo(buf);
	au_key_append_relid(buf, au_relid(rel));
	if (!layout->hidden)
	{
		for (int i = 0; i < layout->ncolumns; i++)
		{
			bool		isnull;
			Datum		value = slot_getattr(slot, layout->attnums[i], &isnull);

			au_key_append(buf, &layout->columns[i], value, isnull);
		}
	}
	if (layout->hidden || !layout->has_primary)
	{
		uint64		stamp = pg_hton64(au_next_insert_stamp());
		uint64		where = pg_hton64(((uint64) (au_processor + 1) << 32) | (uint32) MyProcNumber);

		appendBinaryStringInfo(buf, &stamp, 8);
		appendBinaryStringInfo(buf, &where, 8);
	}
	au_key_check_length(buf, rel);
}

/*
 * Are there rows with other keys than the table's primary key would give
 * them?
 */
bool
au_layout_wants_rekey(Relation rel)
{
	TableLayout now = *au_table_layout(rel);
	TableLayout wanted;

	if (!now.decided || now.has_primary)
		return false;
	memset(&wanted, 0, sizeof(wanted));
	layout_from_primary_key(rel, &wanted);
	return !wanted.hidden;
}
