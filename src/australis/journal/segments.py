"""Segments of the files engine: their bytes, and how they are read (rule J4).

A journal directory holds segments `<id, 16 hex digits>.segment`, numbered without gaps, and spare files. A segment is
pre-zeroed (or recycled: then old groups of another segment id lie in it) and begins with a header block of 4,096 bytes:

    magic 8 | format u32 | CRC-32C u32 | cluster 16 | id u64 | size u64 | first group u64 |
    state before its first record: sequence u64, generation u64, hash 16, tau i64, H i64, ddl i64

Groups follow, each at a multiple of 512 bytes (so that a torn write of one never touches an acknowledged one):

    magic 8 | segment id u64 | offset u64 | number u64 | generation u64 | first sequence u64 |
    state after it: tau i64, H i64, ddl i64 | payload bytes u32 | records u32 | payload CRC-32C u32 | header CRC-32C u32

and then its records (record.py), without gaps. A group starts only after the previous one is durable, and never spans
segments. All CRCs but that of the header block are seeded with the cluster id.

The file `end` (512 bytes: magic 8 | CRC-32C u32 | segment id u64 | sequence u64) says how far the journal reached when
it was last opened, closed, or got another segment. It is a lower bound, and without it nothing is missing: it tells a
journal whose last segments were lost from one that ends there.

What must hold: reading ends at the first group that is not whole. If a later whole group exists anywhere, acknowledged
bytes were changed: JournalDamagedError with segment and offset. Otherwise it is the torn tail of a write that was never
acknowledged, and all of that group is cut.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from australis.errors import JournalDamagedError, PositionGoneError, ProtocolError, WrongClusterError
from australis.journal.file_layer import FileLayer
from australis.journal.record import (
    HEADER_BYTES,
    NO_HASH,
    Entry,
    Header,
    Position,
    check_crc,
    crc32c,
    decode_header,
    header_hash,
)
from australis.journal.validity import Validator

BLOCK = 4096
SECTOR = 512
SEGMENT_MAGIC = b"AUSJSEG1"
GROUP_MAGIC = b"AUSGROUP"
FORMAT = 1
SUFFIX = ".segment"
SPARE = "spare-"
END = "end"
END_MAGIC = b"AUSJEND1"

_END = struct.Struct("<8sIQQ")
_SEGMENT = struct.Struct("<8sII16sQQQQQ16sqqq")
_GROUP = struct.Struct("<8sQQQQQqqqIIII")
GROUP_BYTES = _GROUP.size
_GROUP_CRC_AT = GROUP_BYTES - 4
_WINDOW = 4 << 20
_LIST_RETRIES = 10


class State(msgspec.Struct, frozen=True, gc=False):
    """What is true at a place of the journal: the last record, and the largest times and numbers up to it."""

    position: Position
    tau: int
    horizon: int
    ddl: int


EMPTY = State(Position(0, 0, NO_HASH), 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment and the state before its first record."""

    id: int
    path: Path
    size: int
    first_group: int
    start: State


class Group(NamedTuple):
    """A whole group."""

    offset: int
    number: int
    generation: int
    first_sequence: int
    tau: int
    horizon: int
    ddl: int
    records: int
    payload: memoryview

    @property
    def end(self) -> int:
        """Where the next group starts."""
        return align(self.offset + GROUP_BYTES + len(self.payload))


def align(offset: int) -> int:
    """Round up to a sector."""
    return (offset + SECTOR - 1) & -SECTOR


def segment_name(id: int) -> str:
    """File name of a segment."""
    return f"{id:016x}{SUFFIX}"


def encode_segment_header(id: int, cluster: bytes, size: int, first_group: int, start: State) -> bytes:
    """Encode the header block."""

    def pack(crc: int) -> bytes:
        position = start.position
        return _SEGMENT.pack(
            SEGMENT_MAGIC,
            FORMAT,
            crc,
            cluster,
            id,
            size,
            first_group,
            position.sequence,
            position.generation,
            position.hash,
            start.tau,
            start.horizon,
            start.ddl,
        )

    head = pack(crc32c(pack(0)))
    return head + bytes(BLOCK - len(head))


def read_segment_header(path: Path, data: bytes, cluster: bytes) -> Segment:
    """Decode a header block; raises JournalDamagedError or WrongClusterError."""
    if len(data) < _SEGMENT.size or data[:8] != SEGMENT_MAGIC:
        raise JournalDamagedError(path.name, 0, "no segment header")
    (_, format, crc, owner, id, size, first_group, sequence, generation, hash, tau, horizon, ddl) = (
        _SEGMENT.unpack_from(data)
    )
    if format != FORMAT:
        raise WrongClusterError(f"{path} has journal format {format}, this program knows {FORMAT}")
    blank = bytearray(data[: _SEGMENT.size])
    blank[12:16] = b"\0\0\0\0"
    if crc32c(bytes(blank)) != crc:
        raise JournalDamagedError(path.name, 0, "the segment header fails its checksum")
    if owner != cluster:
        raise WrongClusterError(f"{path} belongs to cluster {owner.hex()}, not to {cluster.hex()}")
    if path.name != segment_name(id):
        raise JournalDamagedError(path.name, 0, f"the file contains segment {id:016x}")
    return Segment(id, path, size, first_group, State(Position(sequence, generation, hash), tau, horizon, ddl))


def encode_group_header(
    cluster_crc: int,
    segment: int,
    offset: int,
    number: int,
    generation: int,
    first_sequence: int,
    after: tuple[int, int, int],
    length: int,
    count: int,
    payload_crc: int,
) -> bytes:
    """Encode a group header; `after` is (tau, H, ddl) behind the group."""
    blank = _GROUP.pack(
        GROUP_MAGIC, segment, offset, number, generation, first_sequence, *after, length, count, payload_crc, 0
    )
    return blank[:_GROUP_CRC_AT] + crc32c(blank[:_GROUP_CRC_AT], cluster_crc).to_bytes(4, "little")


def list_segments(layer: FileLayer, directory: Path, cluster: bytes) -> list[Segment]:
    """Read all segment headers, oldest first; raises JournalDamagedError if one is missing in between."""
    for _ in range(_LIST_RETRIES):
        try:
            return _list_segments(layer, directory, cluster)
        except FileNotFoundError:  # the owner trimmed one between listing and opening: names of now
            continue
    raise PositionGoneError(f"{directory} changes faster than it can be listed")


def _list_segments(layer: FileLayer, directory: Path, cluster: bytes) -> list[Segment]:
    segments: list[Segment] = []
    for name in layer.names(directory):
        if not name.endswith(SUFFIX):
            continue
        path = directory / name
        fd = layer.open(path)
        try:
            segment = read_segment_header(path, layer.read(fd, BLOCK, 0), cluster)
        finally:
            layer.close(fd)
        size = layer.size(path)
        if size < segment.size:
            raise JournalDamagedError(name, size, f"the file ends here instead of at byte {segment.size}")
        segments.append(segment)
    for before, after in itertools.pairwise(segments):
        if after.id != before.id + 1:
            raise JournalDamagedError(segment_name(before.id + 1), 0, "the segment is missing")
    return segments


def encode_end(cluster: bytes, segment: int, sequence: int) -> bytes:
    """Encode the content of `end`."""
    crc = crc32c(_END.pack(END_MAGIC, 0, segment, sequence), crc32c(cluster))
    data = _END.pack(END_MAGIC, crc, segment, sequence)
    return data + bytes(SECTOR - len(data))


def read_end(layer: FileLayer, directory: Path, cluster: bytes) -> tuple[int, int]:
    """Read (segment id, sequence) that the journal is known to have reached; zeros if nothing is known."""
    if END not in layer.names(directory):
        return 0, 0
    fd = layer.open(directory / END)
    try:
        data = layer.read(fd, _END.size, 0)
    finally:
        layer.close(fd)
    if len(data) < _END.size:
        return 0, 0
    _, _, segment, sequence = _END.unpack(data)
    return (segment, sequence) if encode_end(cluster, segment, sequence).startswith(data) else (0, 0)


def check_reached(reached: tuple[int, int], segment: int, offset: int, sequence: int) -> None:
    """Compare what `end` says with where the journal ends; raises JournalDamagedError if something was lost."""
    if segment < reached[0]:
        raise JournalDamagedError(segment_name(reached[0]), 0, "the segment is missing")
    if sequence < reached[1]:
        raise JournalDamagedError(
            segment_name(segment), offset, f"the journal ends with record {sequence}, but it had {reached[1]}"
        )


class SegmentScanner:
    """Reads the groups of one segment in order, from a window of its bytes."""

    def __init__(
        self,
        layer: FileLayer,
        segment: Segment,
        cluster: bytes,
        offset: int = BLOCK,
        number: int | None = None,
        data: bytes = b"",
    ) -> None:
        """Start at the group `number` at `offset` (the first one). `data`: all bytes, if they were just read."""
        self._layer = layer
        self._segment = segment
        self._cluster_crc = crc32c(cluster)
        self._fd = layer.open(segment.path)
        self._data = data
        self._window = data
        self._window_at = 0
        self._window_bytes = 1 << 18  # grows to _WINDOW: a tail usually wants little
        self.offset = offset
        self.number = segment.first_group if number is None else number

    def close(self) -> None:
        """Close the file."""
        self._layer.close(self._fd)

    def _load(self, offset: int, length: int, *, fresh: bool = False) -> int:
        """Have these bytes in the window if the file has them; return where they begin in it."""
        start = offset - self._window_at
        if fresh or start < 0 or start + length > len(self._window):
            self._window = self._layer.read(self._fd, max(length, self._window_bytes), offset)
            self._window_at = offset
            self._window_bytes = min(self._window_bytes * 2, _WINDOW)
            return 0
        return start

    def next(self, *, fresh: bool = False) -> Group | None:
        """Return the group at `offset` and step behind it; None if there is no whole group.

        `fresh` reads the bytes again: for a tail that comes back after the owner has written more.
        """
        group = self._group_at(self.offset, fresh=fresh)
        if group is None or group.number != self.number:
            return None
        self.offset = (self.offset + GROUP_BYTES + len(group.payload) + SECTOR - 1) & -SECTOR
        self.number += 1
        return group

    def _group_at(self, offset: int, *, fresh: bool = False) -> Group | None:
        if offset + GROUP_BYTES > self._segment.size:
            return None
        at = self._load(offset, GROUP_BYTES, fresh=fresh)
        if len(self._window) < at + GROUP_BYTES:
            return None
        (magic, segment, place, number, generation, first, tau, horizon, ddl, length, count, payload_crc, crc) = (
            _GROUP.unpack_from(self._window, at)
        )
        if magic != GROUP_MAGIC or segment != self._segment.id or place != offset:
            return None
        if crc32c(self._window[at : at + _GROUP_CRC_AT], self._cluster_crc) != crc:
            return None
        at = self._load(offset, GROUP_BYTES + length) + GROUP_BYTES
        payload = memoryview(self._window)[at : at + length]
        if len(payload) != length or crc32c(payload, self._cluster_crc) != payload_crc:
            return None
        return Group(offset, number, generation, first, tau, horizon, ddl, count, payload)

    def later_group(self) -> Group | None:
        """Search behind `offset` for any whole group of this segment that is not older than the one expected."""
        needle = GROUP_MAGIC + self._segment.id.to_bytes(8, "little")
        at = self.offset + SECTOR
        while at < self._segment.size:
            if self._data:
                chunk, start, at = self._data, at, 0
            else:
                chunk, start = self._layer.read(self._fd, _WINDOW, at), 0
            if not chunk:
                return None
            found = chunk.find(needle, start)
            while found >= 0:
                if (at + found) % SECTOR == 0:
                    group = self._group_at(at + found)
                    if group is not None and group.number >= self.number:
                        return group
                found = chunk.find(needle, found + 1)
            at += len(chunk)
        return None


@dataclass(frozen=True, slots=True)
class Verified:
    """Whole groups of a segment, one after the other from its start: where each is, and the state behind it."""

    offsets: list[int]
    taus: list[int]
    end: int
    """Offset behind the last whole group."""


def verify_groups(data: bytes, segment: Segment, cluster: bytes) -> Verified:
    """Check all groups of a segment whose bytes are `data`.

    The same rules as SegmentScanner's in one tight loop: opening a journal reads up to a million groups.
    """
    seed = crc32c(cluster)
    view = memoryview(data)
    unpack, size, id, number, at = _GROUP.unpack_from, len(data), segment.id, segment.first_group, BLOCK
    offsets: list[int] = []
    taus: list[int] = []
    while at + GROUP_BYTES <= size:
        magic, owner, offset, group, _, _, tau, _, _, length, _, payload_crc, crc = unpack(data, at)
        start = at + GROUP_BYTES
        end = start + length
        if (
            magic != GROUP_MAGIC
            or owner != id
            or offset != at
            or group != number
            or crc32c(view[at : start - 4], seed) != crc
            or end > size
            or crc32c(view[start:end], seed) != payload_crc
        ):
            break
        offsets.append(at)
        taus.append(tau)
        number += 1
        at = (end + SECTOR - 1) & -SECTOR
    return Verified(offsets, taus, at)


def group_records(data: bytes, offset: int) -> int:
    """Number of records of the (verified) group at an offset."""
    return int(_GROUP.unpack_from(data, offset)[10])


def check_end(scanner: SegmentScanner, segment: Segment, following: Segment | None) -> None:
    """Decide what the end of a segment's groups is (rule J4); raises JournalDamagedError unless it may end here."""
    if following is not None and following.first_group == scanner.number:
        return
    if following is not None:
        raise JournalDamagedError(
            segment.path.name, scanner.offset, f"group {scanner.number} is not whole, but a later segment exists"
        )
    later = scanner.later_group()
    if later is not None:
        raise JournalDamagedError(
            segment.path.name,
            scanner.offset,
            f"group {scanner.number} is not whole, but the later group {later.number} at byte {later.offset} is",
        )


def records_of(segment: Segment, group: Group, *, thorough: bool = False) -> Iterator[tuple[Header, bytes, bytes]]:
    """Yield (header, hash, body) of a group. Its CRC vouches for the bytes; `thorough` checks each record's too."""
    at = 0
    payload = bytes(group.payload)
    for _ in range(group.records):
        place = group.offset + GROUP_BYTES + at
        try:
            header = decode_header(payload, at)
        except ProtocolError as error:
            raise JournalDamagedError(segment.path.name, place, str(error)) from None
        start = at + HEADER_BYTES
        raw, body = payload[at:start], payload[start : start + header.length]
        if len(body) != header.length or (thorough and not check_crc(raw, body)):
            raise JournalDamagedError(segment.path.name, place, "a record fails its checksum in a whole group")
        yield header, header_hash(raw), body
        at = start + header.length


class SegmentReader:
    """Yields valid entries behind a position; comes back for more after the owner has written it.

    Reads files only, so it also serves offline checks. Not for two threads at once.
    """

    def __init__(
        self, layer: FileLayer, directory: Path, cluster: bytes, after: Position, *, thorough: bool = False
    ) -> None:
        """Find the segment to start in; raises PositionGoneError if the journal begins behind the position."""
        self._layer, self._directory, self._cluster = layer, directory, cluster
        segments = list_segments(layer, directory, cluster)
        candidates = [segment for segment in segments if segment.start.position.sequence <= after.sequence]
        if not candidates:
            raise PositionGoneError(f"the journal no longer reaches back to record {after.sequence}")
        self.segment = candidates[-1]
        self._after = after
        self._thorough = thorough
        self.scanner = SegmentScanner(layer, self.segment, cluster)
        self._validator = Validator(cluster, self.segment.start.position)
        self.diverged = self.segment.start.position.sequence == after.sequence and self.segment.start.position != after
        self.read_bytes = 0

    @property
    def skipped(self) -> int:
        """Records that do not count (rule J1)."""
        return self._validator.skipped

    @property
    def last(self) -> Position:
        """The last valid record that was read."""
        return self._validator.last

    def close(self) -> None:
        """Close the file."""
        self.scanner.close()

    def read(self, durable: int | None, limit: int) -> list[Entry]:
        """Return entries up to sequence `durable` (None: all there is), about `limit` bytes of them.

        An empty list means that nothing more is there now. Raises JournalDamagedError, PositionGoneError.
        """
        entries: list[Entry] = []
        size = 0
        while size < limit or not entries:  # parts alone are no entry: go on to the record that they belong to
            position = self._validator.last
            if durable is not None and position.sequence >= durable:
                break
            group = self.scanner.next() or self.scanner.next(fresh=True)
            if group is None:
                if not self._next_segment():
                    break
                continue
            for header, hash, body in records_of(self.segment, group, thorough=self._thorough):
                entry = self._validator.add(header, hash, body)
                if header.sequence == self._after.sequence and hash != self._after.hash:
                    self.diverged = True
                size += HEADER_BYTES + len(body)
                if entry is not None and header.sequence > self._after.sequence:
                    entries.append(entry)
        self.read_bytes += size
        return entries

    def _next_segment(self) -> bool:
        segments = list_segments(self._layer, self._directory, self._cluster)
        following = next((segment for segment in segments if segment.id == self.segment.id + 1), None)
        if not any(segment.id == self.segment.id for segment in segments):
            # recycled while it was being read: what failed to parse may be another segment's bytes
            raise PositionGoneError(f"the journal was trimmed behind record {self._validator.last.sequence}")
        if following is None:
            return False
        check_end(self.scanner, self.segment, following)
        self.scanner.close()
        self.segment = following
        self.scanner = SegmentScanner(self._layer, following, self._cluster)
        return True
