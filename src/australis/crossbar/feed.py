"""The sending end of a feed: recent records in memory, older ones from the journal.

What must hold: a subscriber gets every valid record behind its position once, in order. Records that are not durable
yet are in the buffer and are sent at once (rule T3: applying overlaps the journal's write), so the buffer never drops
them; durable ones leave it when it is over its bound, and a slow subscriber then reads the journal. Nothing here waits
for a subscriber.
"""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from australis.journal.record import START, Position
from australis.protocol.frames import pack_length
from australis.protocol.messages import encode

BUFFER_BYTES = 8 << 20
_INLINE = 1 << 16
_RECORD_TAG = 42


class Framed(msgspec.Struct, frozen=True, gc=False):
    """A record as it goes over the wire."""

    sequence: int
    size: int
    buffers: tuple[bytes, ...]
    position: Position


def frame_record(
    sequence: int, generation: int, hash: bytes, kind: int, flags: int, tau: int, txid: bytes, body: bytes
) -> Framed:
    """Encode a FeedRecord message; a large body is referred to, not copied."""
    fields = encode((_RECORD_TAG, sequence, generation, hash, kind, flags, tau, txid))
    length = len(body)
    # the array of eight becomes one of nine whose last element is the body, as msgpack bin 32
    head = b"".join((pack_length(len(fields) + 5 + length), b"\x99", fields[1:], b"\xc6", length.to_bytes(4, "big")))
    if length <= _INLINE:
        return Framed(sequence, len(head) + length, (head + body,), Position(sequence, generation, hash))
    return Framed(sequence, len(head) + length, (head, body), Position(sequence, generation, hash))


class RecentRecords:
    """The records behind `base`, up to the newest."""

    def __init__(self, base: int, limit: int = BUFFER_BYTES) -> None:
        """`base`: sequence of the record before the first one that will be added."""
        self.base = base
        self._limit = limit
        self._slack = limit // 16  # shrinking a little for every record would cost more than the memory is worth
        self._sequences: list[int] = []
        self._records: list[Framed] = []
        self._first = 0  # index of the oldest one that is kept; the lists are compacted now and then
        self.size = 0

    def add(self, record: Framed, durable: int) -> None:
        """Keep the newest record; drop durable ones beyond the bound."""
        self._sequences.append(record.sequence)
        self._records.append(record)
        self.size += record.size
        if self.size > self._limit + self._slack:
            self._shrink(durable)

    def _shrink(self, durable: int) -> None:
        first, records = self._first, self._records
        while self.size > self._limit and first < len(records) and records[first].sequence <= durable:
            self.size -= records[first].size
            self.base = records[first].sequence
            records[first] = _DROPPED
            first += 1
        self._first = first
        if first > 1024 and first * 2 > len(records):
            del self._sequences[:first], self._records[:first]
            self._first = 0

    @property
    def newest(self) -> int:
        """Sequence of the newest record; of the one before the first if there is none."""
        return self._sequences[-1] if self._sequences else self.base

    def covers(self, after: int) -> bool:
        """Is everything behind this sequence here?"""
        return after >= self.base

    def behind(self, after: int, limit: int) -> list[Framed]:
        """Return about `limit` bytes of records behind a sequence (which must be covered)."""
        index = max(bisect_right(self._sequences, after), self._first)
        taken: list[Framed] = []
        size = 0
        for at in range(index, len(self._records)):
            record = self._records[at]
            taken.append(record)
            size += record.size
            if size >= limit:
                break
        return taken


_DROPPED = Framed(0, 0, (), START)
