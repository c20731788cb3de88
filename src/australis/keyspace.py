"""The keyspace: relation ids, key prefixes, and row images decoded in Python (docs/formats.md §1-2).

Keys are opaque to the services except for their first 8 bytes. Decoding of row images serves tools, change feeds and
tests; the path of reads and commits never calls it. The encoders of query processors are in `postgres/key_codec.c` and
`postgres/row_codec.c`; the test vectors in `tests/vectors` bind both sides.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

RELATION_BYTES = 8
MAX_KEY = 1960
KEYSPACE_END = b"\xff" * RELATION_BYTES
"""Above every key: relation id 2^64 - 1 is never given."""


class SystemRelation(IntEnum):
    """Relation ids below 2^32: records of the cluster itself."""

    DDL = 1
    SEQUENCES = 2
    LAYOUTS = 3
    CLUSTER = 4
    STATISTICS = 5


class KeyRanges:
    """A set of key ranges [lo, hi); adjacent ones are one."""

    def __init__(self, ranges: Iterable[tuple[bytes, bytes]]) -> None:
        self.list: list[tuple[bytes, bytes]] = []
        for lo, hi in sorted(ranges):
            if self.list and self.list[-1][1] >= lo:
                self.list[-1] = self.list[-1][0], max(hi, self.list[-1][1])
            else:
                self.list.append((lo, hi))
        self._bounds = [lo for lo, _ in self.list]

    def holds(self, key: bytes) -> bool:
        """Is this key in one of them?"""
        at = bisect_right(self._bounds, key) - 1
        return at >= 0 and key < self.list[at][1]

    def covers(self, lo: bytes, hi: bytes) -> bool:
        """Is all of [lo, hi) in one of them?"""
        at = bisect_right(self._bounds, lo) - 1
        return lo >= hi or (at >= 0 and hi <= self.list[at][1])


def without(ranges: Iterable[tuple[bytes, bytes]], taken: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the parts of `ranges` that are in none of `taken`, in order."""
    gaps: list[tuple[bytes, bytes]] = []
    holes = KeyRanges(taken).list
    for lo, hi in KeyRanges(ranges).list:
        at = lo
        for left, right in holes:
            if right <= at:
                continue
            if left >= hi:
                break
            if at < left:
                gaps.append((at, left))
            at = right
        if at < hi:
            gaps.append((at, hi))
    return gaps


def relation_id(database: int, relfilenumber: int) -> int:
    """Return the storage id of a table or index."""
    return database << 32 | relfilenumber


def relation_prefix(relation: int) -> bytes:
    """Return the first bytes of every key of a relation."""
    return relation.to_bytes(RELATION_BYTES, "big")


def relation_of(key: bytes) -> int:
    """Return the relation id of a key."""
    return int.from_bytes(key[:RELATION_BYTES], "big")


def relation_range(relation: int) -> tuple[bytes, bytes]:
    """Return [lo, hi) of all keys of a relation."""
    lo = relation_prefix(relation)
    successor = prefix_successor(lo)
    if successor is None:
        raise ValueError(f"relation {relation} has no successor")
    return lo, successor


def prefix_successor(prefix: bytes) -> bytes | None:
    """Return the least key above every key that starts with prefix; None if all bytes are 0xFF."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    return stripped[:-1] + bytes([stripped[-1] + 1])


def ddl_key(n: int) -> bytes:
    """Return the key of DDL record n."""
    return relation_prefix(SystemRelation.DDL) + n.to_bytes(8, "big")


def sequence_key(database: int, relfilenumber: int) -> bytes:
    """Return the key of a sequence's record."""
    return relation_prefix(SystemRelation.SEQUENCES) + struct.pack(">II", database, relfilenumber)


def layout_key(relation: int) -> bytes:
    """Return the key of a table's layout."""
    return relation_prefix(SystemRelation.LAYOUTS) + relation_prefix(relation)


def cluster_key(name: str) -> bytes:
    """Return the key of a cluster record."""
    return relation_prefix(SystemRelation.CLUSTER) + name.encode()


@dataclass(frozen=True, slots=True)
class Column:
    """Physical shape of a column: `length` > 0 fixed bytes, -1 variable width, -2 C string; `align` 1, 2, 4 or 8."""

    length: int
    align: int


@dataclass(frozen=True, slots=True)
class RowImage:
    """A decoded row image: raw little-endian bytes per column (variable width without its header), None for NULL."""

    xmin: int
    columns: list[bytes | None]


_ROW_HEADER = struct.Struct("<BBHI")
ROW_VERSION = 1
ROW_HAS_NULLS = 1
ROW_HAS_VARWIDTH = 2


def decode_row(image: bytes, columns: list[Column]) -> RowImage:
    """Decode a row image; fewer columns in the image than asked for are returned as such (missing at the end).

    Raises ValueError on anything that is not a row image of these columns.
    """
    if len(image) < _ROW_HEADER.size:
        raise ValueError("row image shorter than its header")
    version, flags, natts, xmin = _ROW_HEADER.unpack_from(image)
    if version != ROW_VERSION:
        raise ValueError(f"row image version {version}, this program knows {ROW_VERSION}")
    if natts > len(columns):
        raise ValueError(f"row image has {natts} columns, the table {len(columns)}")
    at = _ROW_HEADER.size
    bitmap = b""
    if flags & ROW_HAS_NULLS:
        bitmap = image[at : at + (natts + 7) // 8]
        at += len(bitmap)
    base = (at + 7) & ~7
    data = image[base:]
    values: list[bytes | None] = []
    offset = 0
    for index in range(natts):
        column = columns[index]
        if bitmap and not bitmap[index >> 3] >> (index & 7) & 1:
            values.append(None)
            continue
        if column.length == -1:
            value, offset = _varlena(data, offset, column.align)
        elif column.length == -2:
            offset = _aligned(offset, column.align)
            end = data.index(b"\0", offset)
            value, offset = data[offset:end], end + 1
        else:
            offset = _aligned(offset, column.align)
            value = data[offset : offset + column.length]
            if len(value) != column.length:
                raise ValueError("row image ends within a column")
            offset += column.length
        values.append(value)
    return RowImage(xmin, values)


def encode_row(columns: list[Column], values: list[bytes | None], xmin: int) -> bytes:
    """Encode a row image as query processors do: for tests and tools."""
    data = bytearray()
    flags = 0
    bitmap = bytearray((len(values) + 7) // 8)
    for index, (column, value) in enumerate(zip(columns, values, strict=True)):
        if value is None:
            flags |= ROW_HAS_NULLS
            continue
        bitmap[index >> 3] |= 1 << (index & 7)
        if column.length == -1:
            flags |= ROW_HAS_VARWIDTH
            if len(value) <= 126:
                data.append((len(value) + 1) << 1 | 1)
            else:
                data += bytes(_aligned(len(data), column.align) - len(data))
                data += struct.pack("<I", (len(value) + 4) << 2)
        else:
            data += bytes(_aligned(len(data), column.align) - len(data))
        data += value
        if column.length == -2:
            data.append(0)
    head = bytearray(_ROW_HEADER.pack(ROW_VERSION, flags, len(values), xmin))
    if flags & ROW_HAS_NULLS:
        head += bitmap
    head += bytes(_aligned(len(head), 8) - len(head))
    return bytes(head + data)


def _aligned(offset: int, align: int) -> int:
    return (offset + align - 1) & -align


def _varlena(data: bytes, offset: int, align: int) -> tuple[bytes, int]:
    """Cut a value with PostgreSQL's 1-byte or 4-byte header (src/include/varatt.h)."""
    if offset >= len(data):
        raise ValueError("row image ends within a column")
    if data[offset] & 1:
        end = offset + (data[offset] >> 1)
        value = data[offset + 1 : end]
    else:
        offset = _aligned(offset, align)
        if len(data) < offset + 4:
            raise ValueError("row image ends within a column")
        end = offset + (struct.unpack_from("<I", data, offset)[0] >> 2)
        value = data[offset + 4 : end]
    if end > len(data) or end <= offset:
        raise ValueError("row image ends within a column")
    return value, end
