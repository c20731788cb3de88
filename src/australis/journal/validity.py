"""Which records of a journal count: rules J1 and J3, decided here and nowhere else.

A record is valid if its cluster is ours, its generation is the current one (the highest claim so far) and its
previous hash is that of the last valid record; a claim is valid if its generation is higher than the current one
(whatever its claimer had read: it fences by its place). Everything else is skipped completely. A valid record with
parts counts only if its parts directly precede it. Recovery, feeds, storage and `check` all read through this class,
so that no two of them can disagree.
"""

from __future__ import annotations

from collections.abc import Iterator

from australis.journal.record import Entry, Header, Kind, Position


class Validator:
    """Turns records in journal order into valid entries."""

    __slots__ = ("_cluster", "_inside", "_parts", "_parts_txid", "generation", "last", "skipped")

    def __init__(self, cluster: bytes, last: Position) -> None:
        """Start behind the record at `last` (whose generation is the current one)."""
        self._cluster = cluster
        self.last = last
        self.generation = last.generation
        self.skipped = 0
        self._parts: list[bytes] = []
        self._parts_txid = b""
        self._inside = last.sequence > 0  # perhaps we start among the parts of a record: then it is not ours to give

    def add(self, header: Header, hash: bytes, body: bytes) -> Entry | None:
        """Take the next record; return the entry it completes, or None (a part, or not valid)."""
        if header.cluster != self._cluster:
            self.skipped += 1
            return None
        if header.kind == Kind.CLAIM:
            if header.generation <= self.generation:
                self.skipped += 1
                return None
            self.generation = header.generation
        elif header.generation != self.generation or header.previous != self.last.hash:
            self.skipped += 1
            return None
        previous = self.last
        position = Position(header.sequence, header.generation, hash)
        self.last = position
        if header.kind == Kind.PART:
            self._inside = self._inside and header.part > 0
            if header.part == 0 or header.txid != self._parts_txid:
                self._parts = []
            if header.part == len(self._parts):
                self._parts.append(body)
                self._parts_txid = header.txid
            return None
        parts, self._parts = self._parts, []
        inside, self._inside = self._inside, False
        if header.parts:
            if len(parts) != header.parts or header.txid != self._parts_txid:
                # an incomplete set cannot be followed by its last record: the owner chains all parts before it
                self.skipped += not inside
                return None
            body = b"".join([*parts, body])
        return Entry(previous, position, header.kind, header.flags, header.tau, header.horizon, header.txid, body)

    def entries(self, records: Iterator[tuple[Header, bytes, bytes]]) -> Iterator[Entry]:
        """Filter a stream of (header, hash, body)."""
        for header, hash, body in records:
            entry = self.add(header, hash, body)
            if entry is not None:
                yield entry
