/*-------------------------------------------------------------------------
 *
 * msgpack.h
 *	  Reading msgpack: only what our messages contain.
 *
 * Must hold: every step checks the end.  What is not there, or is something
 * else, makes `bad` true and reads as 0 or nothing; so the caller may look at
 * `bad` once, after many steps.
 *
 *-------------------------------------------------------------------------
 */
#ifndef AUSTRALIS_MSGPACK_H
#define AUSTRALIS_MSGPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store.h"

#define MSGPACK_DEPTH 16

typedef struct Mp
{
	const uint8_t *p;
	const uint8_t *end;
	bool		bad;
} Mp;

static inline uint64_t
mp_be(Mp *mp, unsigned n)
{
	uint64_t	v = 0;

	if ((size_t) (mp->end - mp->p) < n)
	{
		mp->bad = true;
		return 0;
	}
	while (n-- > 0)
		v = v << 8 | *mp->p++;
	return v;
}

static inline uint32_t
mp_array(Mp *mp)
{
	uint8_t		b = mp_be(mp, 1);
	uint32_t	n;

	if ((b & 0xf0) == 0x90)
		n = b & 0x0f;
	else if (b == 0xdc)
		n = mp_be(mp, 2);
	else if (b == 0xdd)
		n = mp_be(mp, 4);
	else
	{
		mp->bad = true;
		return 0;
	}
	/* every element takes a byte at least: refuses absurd lengths early */
	if (n > (size_t) (mp->end - mp->p))
		mp->bad = true;
	return mp->bad ? 0 : n;
}

static inline StoreBytes
mp_bytes(Mp *mp)
{
	uint8_t		b = mp_be(mp, 1);
	StoreBytes	r = {NULL, 0};

	if ((b & 0xe0) == 0xa0)
		r.len = b & 0x1f;
	else if (b == 0xc4 || b == 0xd9)
		r.len = mp_be(mp, 1);
	else if (b == 0xc5 || b == 0xda)
		r.len = mp_be(mp, 2);
	else if (b == 0xc6 || b == 0xdb)
		r.len = mp_be(mp, 4);
	else
		mp->bad = true;
	if (mp->bad || r.len > (size_t) (mp->end - mp->p))
	{
		mp->bad = true;
		r.len = 0;
		return r;
	}
	r.data = mp->p;
	mp->p += r.len;
	return r;
}

static inline void
mp_skip(Mp *mp, int depth)
{
	uint8_t		b;
	size_t		n = 0,
				items = 0;

	if (depth > MSGPACK_DEPTH)
		mp->bad = true;
	b = mp_be(mp, 1);
	if (mp->bad || b <= 0x7f || b >= 0xe0 || b == 0xc0 || b == 0xc2 || b == 0xc3)
		return;
	if (b <= 0x8f)
		items = 2 * (b & 0x0f);
	else if (b <= 0x9f)
		items = b & 0x0f;
	else if (b <= 0xbf)
		n = b & 0x1f;
	else
		switch (b)
		{
			case 0xc4:
			case 0xd9:
				n = mp_be(mp, 1);
				break;
			case 0xc5:
			case 0xda:
				n = mp_be(mp, 2);
				break;
			case 0xc6:
			case 0xdb:
				n = mp_be(mp, 4);
				break;
			case 0xcc:
			case 0xd0:
				n = 1;
				break;
			case 0xcd:
			case 0xd1:
				n = 2;
				break;
			case 0xca:
			case 0xce:
			case 0xd2:
				n = 4;
				break;
			case 0xcb:
			case 0xcf:
			case 0xd3:
				n = 8;
				break;
			case 0xdc:
				items = mp_be(mp, 2);
				break;
			case 0xdd:
				items = mp_be(mp, 4);
				break;
			case 0xde:
				items = 2 * mp_be(mp, 2);
				break;
			case 0xdf:
				items = 2 * mp_be(mp, 4);
				break;
			default:			/* ext types: no message has them */
				mp->bad = true;
				return;
		}
	if (n > (size_t) (mp->end - mp->p))
	{
		mp->bad = true;
		return;
	}
	mp->p += n;
	while (items-- > 0 && !mp->bad)
		mp_skip(mp, depth + 1);
}

/* An integer that is not negative. */
static inline uint64_t
mp_uint(Mp *mp)
{
	uint8_t		b = mp_be(mp, 1);

	if (b <= 0x7f)
		return b;
	if (b >= 0xcc && b <= 0xcf)
		return mp_be(mp, 1u << (b - 0xcc));
	mp->bad = true;
	return 0;
}

#endif							/* AUSTRALIS_MSGPACK_H */
