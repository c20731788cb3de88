"""Messages of the journal engine nats: several records in one, behind a preamble (docs/formats.md §4).

A message is 64 bytes and then whole records, one after the other. Little-endian:

    magic u32 | version u16 | reserved u16 | first sequence u64 | generation u64 | previous generation u64 | tau i64 |
    H i64 | ddl u64 | records u32 | CRC-32C of the preamble with a zero CRC field u32

The preamble says what a reader needs who begins here: the number and the generation of the record before the first
one, and the largest time, the horizon and the last DDL record of all the journal up to the end of this message (if the
message counts). What must hold: bytes that are not exactly what was written never leave this module as records.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from australis.errors import ProtocolError
from australis.journal.record import (
    HEADER_BYTES,
    Header,
    Kind,
    Position,
    check_crc,
    crc32c,
    decode_header,
    header_hash,
)

_PREAMBLE = struct.Struct("<IHHQQQqqQII")
PREAMBLE_BYTES = _PREAMBLE.size
MAGIC = 0x4D535541  # "AUSM"
VERSION = 1
_CRC = struct.Struct("<I")

MESSAGE_BYTES = 1 << 20
"""Size up to which records are packed into one message."""

PART_BYTES = MESSAGE_BYTES - PREAMBLE_BYTES - HEADER_BYTES
"""Largest body of one record; longer ones are split (rule J3)."""


class Queued(msgspec.Struct, frozen=True, gc=False):
    """A record on its way into the journal: its bytes, its place, and what is true once it is there."""

    header: bytes
    body: bytes | memoryview
    position: Position
    tau: int
    ddl: int

    @property
    def size(self) -> int:
        """Bytes in a message."""
        return len(self.header) + len(self.body)


class Summary(NamedTuple):
    """The state of a journal at some record: largest tau, horizon (rule A2), last DDL record."""

    tau: int = 0
    horizon: int = 0
    ddl: int = 0


class Message(NamedTuple):
    """A decoded message."""

    first: int
    generation: int
    previous_generation: int
    summary: Summary
    records: list[tuple[Header, bytes, bytes]]

    @property
    def before(self) -> Position:
        """Where the record before the first one is, if this message counts."""
        return Position(self.first - 1, self.previous_generation, self.records[0][0].previous)

    @property
    def last(self) -> Position:
        """Where the last record is, if this message counts."""
        header, hash, _ = self.records[-1]
        return Position(header.sequence, header.generation, hash)


def pack_message(records: list[Queued], previous_generation: int, before: Summary) -> tuple[bytes, Summary]:
    """Encode records that follow each other; returns the bytes and the state behind them."""
    tau, horizon, ddl = before
    pieces: list[bytes | memoryview] = [b""]
    for record in records:
        pieces.append(record.header)
        pieces.append(record.body)
        tau = max(tau, record.tau)
        ddl = max(ddl, record.ddl)
    first = records[0].position
    blank = _PREAMBLE.pack(
        MAGIC,
        VERSION,
        0,
        first.sequence,
        first.generation,
        previous_generation,
        tau,
        horizon,
        ddl,
        len(records),
        0,
    )
    pieces[0] = blank[:-4] + _CRC.pack(crc32c(blank))
    return b"".join(pieces), Summary(tau, horizon, ddl)


def unpack_message(data: bytes) -> Message:
    """Decode and check a message; ProtocolError says what is wrong with it."""
    if len(data) < PREAMBLE_BYTES:
        raise ProtocolError("shorter than a preamble")
    magic, version, _, first, generation, previous, tau, horizon, ddl, count, crc = _PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError("not a message of a journal")
    if version != VERSION:
        raise ProtocolError(f"message format {version}, this program knows {VERSION}")
    if crc32c(data[: PREAMBLE_BYTES - 4] + b"\0\0\0\0") != crc:
        raise ProtocolError("the preamble fails its checksum")
    records: list[tuple[Header, bytes, bytes]] = []
    at = PREAMBLE_BYTES
    for index in range(count):
        header = decode_header(data, at)
        raw, start = data[at : at + HEADER_BYTES], at + HEADER_BYTES
        body = data[start : start + header.length]
        if len(body) != header.length or not check_crc(raw, body):
            raise ProtocolError(f"record {index} fails its checksum")
        if header.sequence != first + index or header.generation != generation:
            raise ProtocolError(f"record {index} is not the one that the preamble announces")
        records.append((header, header_hash(raw), body))
        at = start + header.length
    if at != len(data) or not records:
        raise ProtocolError("more or fewer bytes than its records have")
    if records[0][0].kind != Kind.CLAIM and previous != generation:
        raise ProtocolError("the preamble contradicts the first record")
    return Message(first, generation, previous, Summary(tau, horizon, ddl), records)
