"""Follows all journals of a cluster: records and heartbeats in, commits in order of time and a watermark out. Pure.

What must hold (rules W1, W2, J1):
- only valid records count, each once;
- a heartbeat counts only for the generation that is current here, once the record that it names has been read: names
  are hashes, since positions in an engine shift after a void;
- a journal that begins is followed from the moment its record is read, so that no watermark passes its beginning; one
  that ends no longer holds the watermark back once its last record has been read.

A journal that says nothing holds the watermark back (W3): nothing here can help that. The caller reads each journal in
its order and may stop at a journal that `is_full`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from australis.crossbar.merge import Merge
from australis.errors import JournalError
from australis.journal.record import START, Entry, Header, Kind, Position
from australis.journal.validity import Validator
from australis.protocol.messages import Heartbeat, JournalBegins, JournalEnds

REMEMBERED = 4096
"""Hashes of records that heartbeats may name; one that names an older record is useless anyway."""

_begins_decoder = msgspec.msgpack.Decoder(JournalBegins)
_ends_decoder = msgspec.msgpack.Decoder(JournalEnds)


class _Journal:
    """One journal, as far as it was read."""

    __slots__ = ("_hashes", "_order", "heartbeat", "last_hash", "source", "taken", "validator")

    def __init__(self, cluster: bytes, source: int, after: Position = START) -> None:
        self.source = source
        self.validator = Validator(cluster, after)
        self.taken = after  # the last record that was given out
        self.heartbeat: Heartbeat | None = None  # of a record that was not read yet; the newest one
        self.last_hash: bytes | None = None  # of the last record, once that is known
        self._hashes: set[bytes] = {after.hash} if after != START else set()
        self._order: deque[bytes] = deque(self._hashes)

    def read(self, entry: Entry) -> None:
        hash = entry.position.hash
        self._hashes.add(hash)
        self._order.append(hash)
        if len(self._order) > REMEMBERED:
            self._hashes.discard(self._order.popleft())

    def has_read(self, hash: bytes) -> bool:
        return hash in self._hashes


class Follower:
    """All journals of a cluster from their first record on, or from where another Follower's `taken` was."""

    def __init__(
        self,
        cluster: bytes,
        system: int,
        journals: list[int],
        start: int = 0,
        limit: int = 10_000,
        positions: Mapping[int, Position] | None = None,
    ) -> None:
        """`journals` exist from the beginning, the system journal among them; nothing is at or below `start`.

        With `positions` everything at or below `start` has been taken, up to these records; they name journals that
        began later, too.
        """
        self._cluster = cluster
        self._system = system
        known = dict.fromkeys(journals, START) | dict(positions or {})
        self._merge: Merge[tuple[int, Entry]] = Merge(len(known), start, limit)
        self._journals = {
            journal: _Journal(cluster, source, after) for source, (journal, after) in enumerate(known.items())
        }

    @property
    def journals(self) -> list[int]:
        """Which journals there are to read."""
        return [journal for journal, state in self._journals.items()]

    @property
    def watermark(self) -> int:
        """Nothing at or below this time will be returned by `take` any more after the next one."""
        return self._merge.watermark

    def position(self, journal: int) -> Position:
        """The last valid record that was read."""
        return self._journals[journal].validator.last

    def has_read(self, journal: int, position: Position) -> bool:
        """Is this one of the records that were read lately, or the beginning?"""
        state = self._journals.get(journal)
        return position == START or (state is not None and state.has_read(position.hash))

    def begin_at(self, journal: int, position: Position) -> None:
        """Nothing of this journal was read: begin behind a record of it."""
        state = self._journals[journal]
        self._journals[journal] = _Journal(self._cluster, state.source, position)

    def generation(self, journal: int) -> int:
        """The generation that is current as far as was read."""
        return self._journals[journal].validator.generation

    @property
    def taken(self) -> dict[int, Position]:
        """Of every journal, the last record that `take` gave out: another Follower may go on behind these."""
        return {journal: state.taken for journal, state in self._journals.items()}

    @property
    def held(self) -> int:
        """Time of the newest record that was read and not given out; 0 if there is none."""
        return self._merge.newest

    def promised(self, journal: int) -> int:
        """Nothing at or below this time comes from this journal any more."""
        return self._merge.promised(self._journals[journal].source)

    def promise(self, journal: int, tau: int) -> None:
        """Somebody who has read as far as we have knows this."""
        self._merge.promise(self._journals[journal].source, tau)

    def is_full(self, journal: int) -> bool:
        """Should this journal not be read on for now?"""
        return self._merge.is_full(self._journals[journal].source)

    def record(self, journal: int, header: Header, hash: bytes, body: bytes) -> None:
        """Take the next record of a journal, valid or not. JournalError if what is valid cannot be."""
        entry = self._journals[journal].validator.add(header, hash, body)
        if entry is not None:
            self._valid(journal, entry)

    def entry(self, journal: int, entry: Entry) -> None:
        """Take the next valid entry, from the journal's owner, which has validated it."""
        validator = self._journals[journal].validator
        validator.last, validator.generation = entry.position, entry.position.generation
        self._valid(journal, entry)

    def _valid(self, journal: int, entry: Entry) -> None:
        state = self._journals[journal]
        state.read(entry)
        if entry.kind == Kind.CLAIM:
            self._merge.promise(state.source, entry.tau)  # F: no earlier generation issued anything above it
        else:
            try:
                self._merge.add(state.source, entry.tau, (journal, entry))
            except ValueError as error:
                raise JournalError(f"journal {journal}, record {entry.position.sequence}: {error}") from None
        if entry.kind == Kind.JOURNAL_BEGINS and journal == self._system:
            self.begins(_begins_decoder.decode(entry.body).journal, entry.tau)
        elif entry.kind == Kind.JOURNAL_ENDS and journal == self._system:
            ends = _ends_decoder.decode(entry.body)
            self._journals[ends.journal].last_hash = ends.hash
            self._end(self._journals[ends.journal])
        pending = state.heartbeat
        if pending is not None:
            self.heartbeat(pending)
        self._end(state)

    def begins(self, journal: int, tau: int) -> None:
        """Follow a journal whose times are all above tau (W2)."""
        if journal not in self._journals:
            self._journals[journal] = _Journal(self._cluster, self._merge.follow(tau))

    def _end(self, state: _Journal) -> None:
        if state.last_hash is not None and state.has_read(state.last_hash):
            self._merge.end(state.source)

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """Take a heartbeat, in any order and any number of times."""
        state = self._journals.get(heartbeat.journal)
        if state is None:
            return
        current = state.validator.generation
        if heartbeat.generation == current and state.has_read(heartbeat.hash):
            self._merge.promise(state.source, heartbeat.h)
            if state.heartbeat is heartbeat:
                state.heartbeat = None
        elif heartbeat.generation >= current:
            kept = state.heartbeat
            if kept is None or (heartbeat.generation, heartbeat.h) > (kept.generation, kept.h):
                state.heartbeat = heartbeat  # its record, or its claim, is still to come

    def take(self) -> list[tuple[int, Entry]]:
        """Return what is complete, in order of time. What holds before the next `record` is `watermark`."""
        taken = self._merge.take()
        for _, (journal, entry) in taken:
            self._journals[journal].taken = entry.position
        return [(tau, entry) for tau, (_, entry) in taken]
