"""Records of a journal: the header that every engine writes (rule J3).

A record is a header of 108 bytes and a body. Little-endian:

    magic u32 | version u16 | kind u8 | flags u8 | cluster 16 | generation u64 | sequence u64 | previous hash 16 |
    H i64 | tau i64 | txid 16 | body length u32 | part u32 | parts u32 | CRC-32C u32 | reserved u32

`sequence` counts the records of the journal from 1 without gaps, data parts included. `previous hash` is the hash
(BLAKE2b, 16 bytes) of the previous record's header; as the header contains the CRC of header and body, the chain binds
all content. H is the horizon of rule A2 (0 in the embedded mode). `parts` > 0 in the record with tau: that many records
of kind PART with the same txid precede it immediately; the body is all their bodies and its own, joined.

What must hold: the CRC covers header (with a zero CRC field) and body; a record that fails it never leaves this module
as a record.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

import crc32c as _crc32c
import msgspec

from australis.errors import ProtocolError

HEADER = struct.Struct("<IHBB16sQQ16sqq16sIIIII")
HEADER_BYTES = HEADER.size
MAGIC = 0x4A535541  # "AUSJ"
VERSION = 1
_CRC_AT = HEADER_BYTES - 8
NO_HASH = bytes(16)
NO_TXID = bytes(16)

crc32c = _crc32c.crc32c


class Kind(IntEnum):
    """What a record is."""

    CLAIM = 1
    TRANSACTION = 2
    INGEST = 3
    DROP = 4
    PART = 5
    # of adjudicators among several; to storage they say nothing but their time
    HORIZON = 6  # carries H (rule A2)
    RELEASE = 7  # body RangeMove: from here on another adjudicator decides about the range (rule W4)
    ACQUIRE = 8  # body RangeMove: from here on this one does
    JOURNAL_BEGINS = 9  # body JournalBegins, in the system journal (rule W2)
    JOURNAL_ENDS = 10  # body JournalEnds


class RecordFlag(IntFlag):
    """What a reader can know of a record without decoding its body."""

    DDL = 0x01  # the commit has a DDL record
    DROPS = 0x02  # the commit names storage ids to delete


class Position(NamedTuple):
    """A place in a journal: the record that was read last (rule J1)."""

    sequence: int
    generation: int
    hash: bytes

    def pack(self) -> bytes:
        """32 bytes, as storage keeps it."""
        return _POSITION.pack(self.sequence, self.generation, self.hash)

    @staticmethod
    def unpack(data: bytes) -> Position:
        """Reverse of pack; ValueError if these are not 32 bytes."""
        if len(data) != _POSITION.size:
            raise ValueError(f"a journal position has {_POSITION.size} bytes, not {len(data)}")
        return Position(*_POSITION.unpack(data))


_POSITION = struct.Struct("<QQ16s")
START = Position(0, 0, NO_HASH)


class Header(NamedTuple):
    """A decoded record header, in the order of its bytes."""

    kind: int
    flags: int
    cluster: bytes
    generation: int
    sequence: int
    previous: bytes
    horizon: int
    tau: int
    txid: bytes
    length: int
    part: int
    parts: int
    crc: int


class Entry(NamedTuple):
    """A valid record as readers see it: parts joined, with its place and that of the record before."""

    previous: Position
    position: Position
    kind: int
    flags: int
    tau: int
    horizon: int
    txid: bytes
    body: bytes


class EncodedRecord(msgspec.Struct, frozen=True, gc=False):
    """Bytes of a record, ready to be written, and the hash that the next one refers to."""

    header: bytes
    body: bytes | memoryview
    hash: bytes


def header_hash(header: bytes | memoryview) -> bytes:
    """Return the hash of a record's header, which the next record names."""
    return hashlib.blake2b(header, digest_size=16).digest()


_pack = HEADER.pack
_CRC = struct.Struct("<I")


def encode_record(
    kind: int,
    flags: int,
    cluster: bytes,
    generation: int,
    sequence: int,
    previous: bytes,
    horizon: int,
    tau: int,
    txid: bytes,
    body: bytes | memoryview,
    part: int = 0,
    parts: int = 0,
) -> EncodedRecord:
    """Encode one record."""
    blank = _pack(
        MAGIC,
        VERSION,
        kind,
        flags,
        cluster,
        generation,
        sequence,
        previous,
        horizon,
        tau,
        txid,
        len(body),
        part,
        parts,
        0,
        0,
    )
    crc = crc32c(body, crc32c(blank))
    header = blank[:_CRC_AT] + _CRC.pack(crc) + blank[_CRC_AT + 4 :]
    return EncodedRecord(header, body, hashlib.blake2b(header, digest_size=16).digest())


def decode_header(data: bytes | memoryview, at: int = 0) -> Header:
    """Decode a header; ProtocolError if these bytes are none. Does not check the CRC."""
    if len(data) - at < HEADER_BYTES:
        raise ProtocolError("record header cut short")
    magic, version, *fields = HEADER.unpack_from(data, at)
    if magic != MAGIC:
        raise ProtocolError("no record header here")
    if version != VERSION:
        raise ProtocolError(f"record format {version}, this program knows {VERSION}")
    return Header._make(fields[:-1])


def check_crc(header: bytes | memoryview, body: bytes | memoryview) -> bool:
    """Does the CRC in the header fit header and body?"""
    blank = bytearray(header)
    stored = _CRC.unpack_from(blank, _CRC_AT)[0]
    blank[_CRC_AT : _CRC_AT + 4] = b"\0\0\0\0"
    return bool(crc32c(body, crc32c(bytes(blank))) == stored)
