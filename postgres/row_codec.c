/*-------------------------------------------------------------------------
 *
 * row_codec.c
 *	  Row images (docs/formats.md, section 2) and the slots they are read into.
 *
 * A row image is laid out so that it becomes a minimal tuple by writing a
 * header in front of a copy of its data area.  Scans copy anyway, from the
 * storage node's mapping or its socket, so this costs nothing, and all of
 * PostgreSQL's code for forming and taking apart tuples applies: lazily
 * deformed attributes, cached offsets, values missing since ADD COLUMN.
 *
 * The slot is a minimal-tuple slot that also knows system attributes and keeps
 * its memory from row to row.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/xact.h"
#include "utils/expandeddatum.h"
#include "utils/memutils.h"

#define ROW_VERSION		1
#define ROW_HAS_NULL	1
#define ROW_HAS_VAR		2
#define ROW_HEADER		8

TupleTableSlotOps TTSOpsAustralis;

/* reused scratch space for encoding, grown as needed */
static char *scratch = NULL;
static Size scratch_size = 0;

static char *
get_scratch(Size size)
{
	if (size > scratch_size)
	{
		if (scratch)
			pfree(scratch);
		scratch = NULL;
		scratch_size = 0;
		size = Max(size * 2, 8192);
		scratch = MemoryContextAllocExtended(TopMemoryContext, size, MCXT_ALLOC_HUGE);
		scratch_size = size;
	}
	else if (scratch_size > 16 * 1024 * 1024 && size < 1024 * 1024)
	{
		/* one huge row must not pin its memory for ever */
		pfree(scratch);
		scratch_size = 1024 * 1024;
		scratch = MemoryContextAlloc(TopMemoryContext, scratch_size);
	}
	return scratch;
}

void
au_row_encode(StringInfo buf, TupleDesc desc, const Datum *values, const bool *isnull, uint32 xmin)
{
	Datum	   *flat = NULL;
	void	  **detoasted = NULL;
	int			ndetoasted = 0;
	bool		hasnull = false;
	Size		data_size;
	Size		data_off;
	uint8	   *p;
	uint16		infomask = 0;
	uint16		natts = desc->natts;

	for (int i = 0; i < desc->natts; i++)
	{
		if (isnull[i])
			hasnull = true;
		else if (TupleDescCompactAttr(desc, i)->attlen == -1)
		{
			struct varlena *v = (struct varlena *) DatumGetPointer(values[i]);

			if (VARATT_IS_EXTERNAL(v) || VARATT_IS_COMPRESSED(v))
			{
				if (flat == NULL)
				{
					flat = palloc(sizeof(Datum) * desc->natts);
					memcpy(flat, values, sizeof(Datum) * desc->natts);
					detoasted = palloc(sizeof(void *) * desc->natts);
				}
				flat[i] = PointerGetDatum(detoast_attr(v));
				detoasted[ndetoasted++] = DatumGetPointer(flat[i]);
			}
		}
	}
	if (flat)
		values = flat;

	data_size = heap_compute_data_size(desc, values, isnull);
	data_off = MAXALIGN(ROW_HEADER + (hasnull ? BITMAPLEN(natts) : 0));
	if (data_off + data_size > MaxAllocSize - 4096)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row is too big: size %zu", data_off + data_size)));

	p = (uint8 *) get_scratch(data_off + data_size);
	memset(p, 0, data_off + data_size);
	heap_fill_tuple(desc, values, isnull, (char *) p + data_off, data_size, &infomask,
					hasnull ? p + ROW_HEADER : NULL);
	p[0] = ROW_VERSION;
	p[1] = (hasnull ? ROW_HAS_NULL : 0) | ((infomask & HEAP_HASVARWIDTH) ? ROW_HAS_VAR : 0);
	memcpy(p + 2, &natts, 2);
	memcpy(p + 4, &xmin, 4);
	appendBinaryStringInfo(buf, (char *) p, (int) (data_off + data_size));

	for (int i = 0; i < ndetoasted; i++)
		pfree(detoasted[i]);
	if (flat)
	{
		pfree(flat);
		pfree(detoasted);
	}
}

typedef struct RowHeader
{
	uint16		natts;
	uint32		xmin;
	bool		hasnull;
	bool		hasvar;
	Size		bitmap_len;
	Size		data_off;		/* in the image */
	Size		data_len;
	Size		hoff;			/* of the heap tuple */
	Size		minimal_len;
} RowHeader;

static inline void
parse_header(Bytes image, RowHeader *h)
{
	if (image.len < ROW_HEADER || image.data[0] != ROW_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("unknown row image (length %u, version %u)",
						image.len, image.len > 0 ? image.data[0] : 0)));
	memcpy(&h->natts, image.data + 2, 2);
	memcpy(&h->xmin, image.data + 4, 4);
	h->hasnull = (image.data[1] & ROW_HAS_NULL) != 0;
	h->hasvar = (image.data[1] & ROW_HAS_VAR) != 0;
	h->bitmap_len = h->hasnull ? BITMAPLEN(h->natts) : 0;
	h->data_off = MAXALIGN(ROW_HEADER + h->bitmap_len);
	if (h->data_off > image.len)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("row image is shorter than its header says")));
	h->data_len = image.len - h->data_off;
	h->hoff = MAXALIGN(SizeofHeapTupleHeader + h->bitmap_len);
	h->minimal_len = h->hoff - MINIMAL_TUPLE_OFFSET + h->data_len;
}

static inline void
fill_minimal(MinimalTuple mtup, Bytes image, const RowHeader *h)
{
	/* the padding too: core compares whole tuples byte by byte */
	memset(mtup, 0, h->hoff - MINIMAL_TUPLE_OFFSET);
	mtup->t_len = (uint32) h->minimal_len;
	mtup->t_hoff = (uint8) h->hoff;
	mtup->t_infomask2 = h->natts;
	mtup->t_infomask = (h->hasnull ? HEAP_HASNULL : 0) | (h->hasvar ? HEAP_HASVARWIDTH : 0);
	if (h->bitmap_len)
		memcpy(mtup->t_bits, image.data + ROW_HEADER, h->bitmap_len);
	memcpy((char *) mtup + h->hoff - MINIMAL_TUPLE_OFFSET, image.data + h->data_off, h->data_len);
}

MinimalTuple
au_row_to_minimal(Bytes image, uint32 *xmin)
{
	RowHeader	h;
	MinimalTuple mtup;

	parse_header(image, &h);
	mtup = palloc(h.minimal_len);
	fill_minimal(mtup, image, &h);
	if (xmin)
		*xmin = h.xmin;
	return mtup;
}

/* Make a cleared slot present mtup. */
static inline void
store_minimal(TupleTableSlot *slot, MinimalTuple mtup)
{
	MinimalTupleTableSlot *mslot = (MinimalTupleTableSlot *) slot;

	mslot->mintuple = mtup;
	mslot->minhdr.t_len = mtup->t_len + MINIMAL_TUPLE_OFFSET;
	mslot->minhdr.t_data = (HeapTupleHeader) ((char *) mtup - MINIMAL_TUPLE_OFFSET);
	mslot->tuple = &mslot->minhdr;
	mslot->off = 0;
	slot->tts_flags &= ~TTS_FLAG_EMPTY;
	slot->tts_nvalid = 0;
}

void
au_row_store(Bytes image, TupleTableSlot *slot, bool own)
{
	AustralisTupleTableSlot *aslot = (AustralisTupleTableSlot *) slot;
	RowHeader	h;
	MinimalTuple mtup;

	if (slot->tts_ops != &TTSOpsAustralis)
	{
		ExecForceStoreMinimalTuple(au_row_to_minimal(image, NULL), slot, true);
		return;
	}

	parse_header(image, &h);
	ExecClearTuple(slot);
	if (h.minimal_len > aslot->capacity)
	{
		Size		size = Max(h.minimal_len + h.minimal_len / 4, 256);

		if (aslot->buffer)
			pfree(aslot->buffer);
		aslot->buffer = NULL;
		aslot->capacity = 0;
		aslot->buffer = MemoryContextAlloc(slot->tts_mcxt, size);
		aslot->capacity = size;
	}
	mtup = (MinimalTuple) aslot->buffer;
	fill_minimal(mtup, image, &h);

	store_minimal(slot, mtup);
	aslot->xmin = h.xmin;
	aslot->xmax = InvalidTransactionId;
	aslot->own = own;
	aslot->show_own_xid = false;
}

uint32
au_row_prefix(TupleDesc desc, int natts)
{
	uint32		size = 0;

	for (int i = 0; i < natts; i++)
	{
		CompactAttribute *att = TupleDescCompactAttr(desc, i);

		if (att->attlen <= 0)
			return AU_READ_ALL;
		size = att_nominal_alignby(size, att->attalignby) + att->attlen;
	}
	return ROW_HEADER + size;
}

/*
 * The entry's header (16 bytes) and the image's (8) have the size of a heap
 * tuple's header without NULLs, and the number of attributes is where that has
 * it.
 */
void
au_row_store_in_place(Bytes image, TupleTableSlot *slot)
{
	AustralisTupleTableSlot *aslot = (AustralisTupleTableSlot *) slot;
	HeapTupleHeader tuple = (HeapTupleHeader) (image.data - AU_BATCH_HEADER);
	MinimalTuple mtup = (MinimalTuple) ((char *) tuple + MINIMAL_TUPLE_OFFSET);
	uint32		xmin;

	StaticAssertStmt(MAXALIGN(SizeofHeapTupleHeader) == AU_BATCH_HEADER + ROW_HEADER,
					 "a tuple's header takes the place of the two");
	StaticAssertStmt(offsetof(HeapTupleHeaderData, t_infomask2) == AU_BATCH_HEADER + 2,
					 "the number of attributes is where it is");
	if (slot->tts_ops != &TTSOpsAustralis || image.len < ROW_HEADER || image.data[0] != ROW_VERSION ||
		(image.data[1] & ROW_HAS_NULL) != 0)
	{
		au_row_store(image, slot, false);
		return;
	}
	if (TTS_SHOULDFREE(slot))
		ExecClearTuple(slot);
	memcpy(&xmin, image.data + 4, 4);
	if (HeapTupleHeaderGetNatts(tuple) > aslot->read_natts)
		HeapTupleHeaderSetNatts(tuple, aslot->read_natts);	/* the others may have been left in storage */
	tuple->t_infomask = (image.data[1] & ROW_HAS_VAR) ? HEAP_HASVARWIDTH : 0;
	tuple->t_hoff = AU_BATCH_HEADER + ROW_HEADER;
	tuple->t_bits[0] = 0;		/* padding: core compares whole tuples byte by byte */
	memset((char *) mtup + sizeof(mtup->t_len), 0, offsetof(MinimalTupleData, t_infomask2) - sizeof(mtup->t_len));
	mtup->t_len = AU_BATCH_HEADER + image.len - MINIMAL_TUPLE_OFFSET;
	store_minimal(slot, mtup);
	aslot->xmin = xmin;
	aslot->xmax = InvalidTransactionId;
	aslot->own = false;
	aslot->show_own_xid = false;
}

void
au_row_store_blank(TupleTableSlot *slot)
{
	/* one for all slots; whoever wants to keep it copies it */
	static union
	{
		HeapTupleHeaderData header;
		char		space[AU_BATCH_HEADER + ROW_HEADER];
	}			blank = {0};
	MinimalTuple mtup = (MinimalTuple) (blank.space + MINIMAL_TUPLE_OFFSET);

	if (((MinimalTupleTableSlot *) slot)->mintuple == mtup && !TTS_EMPTY(slot))
		return;
	mtup->t_len = sizeof(blank.space) - MINIMAL_TUPLE_OFFSET;
	mtup->t_hoff = sizeof(blank.space);
	ExecClearTuple(slot);
	store_minimal(slot, mtup);
}

static void
au_slot_init(TupleTableSlot *slot)
{
	AustralisTupleTableSlot *aslot = (AustralisTupleTableSlot *) slot;

	TTSOpsMinimalTuple.init(slot);
	aslot->read_natts = MaxTupleAttributeNumber;
	aslot->read_bytes = AU_READ_ALL;
	aslot->push = NULL;
	aslot->buffer = NULL;
	aslot->capacity = 0;
	aslot->xmin = FrozenTransactionId;
	aslot->xmax = InvalidTransactionId;
	aslot->own = false;
	aslot->show_own_xid = false;
}

static void
au_slot_release(TupleTableSlot *slot)
{
	AustralisTupleTableSlot *aslot = (AustralisTupleTableSlot *) slot;

	if (aslot->buffer)
		pfree(aslot->buffer);
	aslot->buffer = NULL;
	aslot->capacity = 0;
}

static Datum
au_slot_getsysattr(TupleTableSlot *slot, int attnum, bool *isnull)
{
	AustralisTupleTableSlot *aslot = (AustralisTupleTableSlot *) slot;

	*isnull = false;
	switch (attnum)
	{
		case MinTransactionIdAttributeNumber:
			if (aslot->show_own_xid)
				return TransactionIdGetDatum(GetCurrentTransactionId());
			return TransactionIdGetDatum(aslot->xmin);
		case MaxTransactionIdAttributeNumber:
			return TransactionIdGetDatum(aslot->xmax);
		case MinCommandIdAttributeNumber:
		case MaxCommandIdAttributeNumber:
			return CommandIdGetDatum(FirstCommandId);
	}
	elog(ERROR, "invalid system attribute number %d", attnum);
	return 0;					/* keep compiler quiet */
}

static bool
au_slot_is_current(TupleTableSlot *slot)
{
	return ((AustralisTupleTableSlot *) slot)->own;
}

static void
au_slot_copy(TupleTableSlot *dst, TupleTableSlot *src)
{
	AustralisTupleTableSlot *adst = (AustralisTupleTableSlot *) dst;
	ItemPointerData tid = src->tts_tid;
	MemoryContext old = MemoryContextSwitchTo(dst->tts_mcxt);
	MinimalTuple mtup = ExecCopySlotMinimalTuple(src);

	MemoryContextSwitchTo(old);
	ExecClearTuple(dst);
	store_minimal(dst, mtup);
	dst->tts_flags |= TTS_FLAG_SHOULDFREE;
	dst->tts_tid = tid;
	dst->tts_tableOid = src->tts_tableOid;
	if (src->tts_ops == &TTSOpsAustralis)
	{
		AustralisTupleTableSlot *asrc = (AustralisTupleTableSlot *) src;

		adst->xmin = asrc->xmin;
		adst->xmax = asrc->xmax;
		adst->own = asrc->own;
		adst->show_own_xid = asrc->show_own_xid;
	}
}

/* ANALYZE sorts its sample by t_self; triggers may look at it. */
static HeapTuple
au_slot_copy_heap_tuple(TupleTableSlot *slot)
{
	HeapTuple	tuple = TTSOpsMinimalTuple.copy_heap_tuple(slot);

	tuple->t_self = slot->tts_tid;
	tuple->t_tableOid = slot->tts_tableOid;
	return tuple;
}

void
au_row_init(void)
{
	TTSOpsAustralis = TTSOpsMinimalTuple;
	*(size_t *) &TTSOpsAustralis.base_slot_size = sizeof(AustralisTupleTableSlot);
	TTSOpsAustralis.init = au_slot_init;
	TTSOpsAustralis.release = au_slot_release;
	TTSOpsAustralis.getsysattr = au_slot_getsysattr;
	TTSOpsAustralis.is_current_xact_tuple = au_slot_is_current;
	TTSOpsAustralis.copyslot = au_slot_copy;
	TTSOpsAustralis.copy_heap_tuple = au_slot_copy_heap_tuple;
}
