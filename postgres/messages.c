/*-------------------------------------------------------------------------
 *
 * messages.c
 *	  The subset of msgpack that the services speak.
 *
 * Writers append the shortest form of each value.  Readers check every length
 * against the end of the message and raise 08P01 on anything malformed, so
 * that a damaged or foreign message can never be half-understood.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "port/pg_bswap.h"

static void
put_u8(StringInfo buf, uint8 v)
{
	appendStringInfoCharMacro(buf, (char) v);
}

static void
put_u16(StringInfo buf, uint16 v)
{
	v = pg_hton16(v);
	appendBinaryStringInfoNT(buf, &v, sizeof(v));
}

static void
put_u32(StringInfo buf, uint32 v)
{
	v = pg_hton32(v);
	appendBinaryStringInfoNT(buf, &v, sizeof(v));
}

static void
put_u64(StringInfo buf, uint64 v)
{
	v = pg_hton64(v);
	appendBinaryStringInfoNT(buf, &v, sizeof(v));
}

void
au_mp_array(StringInfo buf, uint32 n)
{
	if (n < 16)
		put_u8(buf, 0x90 | n);
	else if (n <= PG_UINT16_MAX)
	{
		put_u8(buf, 0xdc);
		put_u16(buf, n);
	}
	else
	{
		put_u8(buf, 0xdd);
		put_u32(buf, n);
	}
}

void
au_mp_int(StringInfo buf, int64 v)
{
	if (v >= 0)
	{
		if (v < 128)
			put_u8(buf, (uint8) v);
		else if (v <= PG_UINT8_MAX)
		{
			put_u8(buf, 0xcc);
			put_u8(buf, (uint8) v);
		}
		else if (v <= PG_UINT16_MAX)
		{
			put_u8(buf, 0xcd);
			put_u16(buf, (uint16) v);
		}
		else if (v <= PG_UINT32_MAX)
		{
			put_u8(buf, 0xce);
			put_u32(buf, (uint32) v);
		}
		else
		{
			put_u8(buf, 0xcf);
			put_u64(buf, (uint64) v);
		}
	}
	else if (v >= -32)
		put_u8(buf, (uint8) v);
	else
	{
		put_u8(buf, 0xd3);
		put_u64(buf, (uint64) v);
	}
}

void
au_mp_nil(StringInfo buf)
{
	put_u8(buf, 0xc0);
}

void
au_mp_bool(StringInfo buf, bool v)
{
	put_u8(buf, v ? 0xc3 : 0xc2);
}

void
au_mp_bin(StringInfo buf, const void *data, uint32 len)
{
	if (len <= PG_UINT8_MAX)
	{
		put_u8(buf, 0xc4);
		put_u8(buf, (uint8) len);
	}
	else if (len <= PG_UINT16_MAX)
	{
		put_u8(buf, 0xc5);
		put_u16(buf, (uint16) len);
	}
	else
	{
		put_u8(buf, 0xc6);
		put_u32(buf, len);
	}
	appendBinaryStringInfoNT(buf, data, len);
}

void
au_mp_str(StringInfo buf, const char *s)
{
	size_t		len = strlen(s);

	if (len < 32)
		put_u8(buf, 0xa0 | (uint8) len);
	else if (len <= PG_UINT16_MAX)
	{
		put_u8(buf, 0xda);
		put_u16(buf, (uint16) len);
	}
	else
	{
		put_u8(buf, 0xdb);
		put_u32(buf, (uint32) len);
	}
	appendBinaryStringInfoNT(buf, s, (int) len);
}

pg_noreturn static void
malformed(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("malformed message from a cluster service: %s", what)));
}

static const uint8 *
take(MpReader *r, size_t n)
{
	const uint8 *p = r->p;

	if ((size_t) (r->end - r->p) < n)
		malformed("truncated");
	r->p += n;
	return p;
}

static uint64
take_be(MpReader *r, int n)
{
	const uint8 *p = take(r, n);
	uint64		v = 0;

	for (int i = 0; i < n; i++)
		v = v << 8 | p[i];
	return v;
}

uint32
au_mp_read_array(MpReader *r)
{
	uint8		t = *take(r, 1);

	if ((t & 0xf0) == 0x90)
		return t & 0x0f;
	if (t == 0xdc)
		return (uint32) take_be(r, 2);
	if (t == 0xdd)
		return (uint32) take_be(r, 4);
	malformed("array expected");
}

int64
au_mp_read_int(MpReader *r)
{
	uint8		t = *take(r, 1);

	if (t < 0x80)
		return t;
	if (t >= 0xe0)
		return (int8) t;
	switch (t)
	{
		case 0xcc:
			return (int64) take_be(r, 1);
		case 0xcd:
			return (int64) take_be(r, 2);
		case 0xce:
			return (int64) take_be(r, 4);
		case 0xcf:
			return (int64) take_be(r, 8);
		case 0xd0:
			return (int8) take_be(r, 1);
		case 0xd1:
			return (int16) take_be(r, 2);
		case 0xd2:
			return (int32) take_be(r, 4);
		case 0xd3:
			return (int64) take_be(r, 8);
	}
	malformed("integer expected");
}

bool
au_mp_read_nil(MpReader *r)
{
	if (r->p < r->end && *r->p == 0xc0)
	{
		r->p++;
		return true;
	}
	return false;
}

bool
au_mp_read_bool(MpReader *r)
{
	uint8		t = *take(r, 1);

	if (t == 0xc3)
		return true;
	if (t == 0xc2)
		return false;
	malformed("boolean expected");
}

Bytes
au_mp_read_bin(MpReader *r)
{
	uint8		t = *take(r, 1);
	Bytes		b;

	if ((t & 0xe0) == 0xa0)
		b.len = t & 0x1f;
	else if (t == 0xc4 || t == 0xd9)
		b.len = (uint32) take_be(r, 1);
	else if (t == 0xc5 || t == 0xda)
		b.len = (uint32) take_be(r, 2);
	else if (t == 0xc6 || t == 0xdb)
		b.len = (uint32) take_be(r, 4);
	else
		malformed("bytes expected");
	b.data = take(r, b.len);
	return b;
}

static void
skip_one(MpReader *r, int depth)
{
	uint8		t;
	uint64		n;

	if (depth > 16)
		malformed("nested too deeply");
	if (r->p >= r->end)
		malformed("truncated");
	t = *r->p;
	if (t < 0x80 || t >= 0xe0 || (t >= 0xcc && t <= 0xd3))
		(void) au_mp_read_int(r);
	else if (t == 0xc0 || t == 0xc2 || t == 0xc3)
		r->p++;
	else if ((t & 0xe0) == 0xa0 || (t >= 0xc4 && t <= 0xc6) || (t >= 0xd9 && t <= 0xdb))
		(void) au_mp_read_bin(r);
	else if (t == 0xca)
		(void) take(r, 5);
	else if (t == 0xcb)
		(void) take(r, 9);
	else if ((t & 0xf0) == 0x90 || t == 0xdc || t == 0xdd)
	{
		n = au_mp_read_array(r);
		while (n-- > 0)
			skip_one(r, depth + 1);
	}
	else if ((t & 0xf0) == 0x80 || t == 0xde || t == 0xdf)
	{
		r->p++;
		n = t == 0xde ? take_be(r, 2) : t == 0xdf ? take_be(r, 4) : (uint64) (t & 0x0f);
		for (n *= 2; n > 0; n--)
			skip_one(r, depth + 1);
	}
	else
		malformed("unknown type");
}

void
au_mp_skip(MpReader *r)
{
	skip_one(r, 0);
}
