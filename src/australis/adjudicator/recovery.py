"""What a new generation finds in its journal (rules A1, A2, W4): valid entries in, one value out. Pure.

What must hold: `floor` is at least everything that older generations issued or bound: every time, the last H, and the
floors of ranges that were acquired. Which ranges are owned follows from the journal alone. A claim carries all of that,
and so does a checkpoint (a record of H with a body), so that a journal may be trimmed up to any of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

import msgspec

from australis.adjudicator.adjudicator import KNOWN_LIMIT
from australis.errors import JournalError
from australis.journal.record import START, Entry, Kind, Position, RecordFlag
from australis.keyspace import KEYSPACE_END, SystemRelation, relation_prefix
from australis.protocol.messages import Drop, RangeMove, relations_of, wide_commit_decoder

KeyRange = tuple[bytes, bytes]
DDL_RANGE = relation_prefix(SystemRelation.DDL)

_drop_decoder = msgspec.msgpack.Decoder(Drop)
_move_decoder = msgspec.msgpack.Decoder(RangeMove)


class ClaimBody(msgspec.Struct, frozen=True, array_like=True):
    """The body of a claim, and of a checkpoint: what earlier records said about ranges, floors and DDL."""

    ddl: int
    ranges: list[KeyRange]
    released: list[RangeMove]
    acquired: dict[int, int]
    floor: int = 0


_claim_decoder = msgspec.msgpack.Decoder(ClaimBody)


@dataclass(frozen=True, slots=True)
class Recovered:
    """The state at a claim. `known` are commits above `known_floor`, oldest first; `acquired` maps a source to the time
    of its last move that arrived here, `released` holds the last move to each target: it may still have to be told."""

    generation: int
    position: Position
    floor: int
    ddl: int
    known: list[tuple[bytes, int]]
    known_floor: int
    ranges: list[KeyRange]
    released: dict[int, RangeMove]
    acquired: dict[int, int]
    unpublished: list[int] = field(default_factory=list)
    """Storage ids with chunks whose transactions have not committed, and cannot any more."""


class Recovery:
    """Folds the valid entries of one adjudicator's journal."""

    def __init__(self, ranges: list[KeyRange], born: int = 0, known_limit: int = KNOWN_LIMIT) -> None:
        """`ranges`: what the adjudicator owned when its journal began, at time `born` (rule W2)."""
        self.ranges = RangeSet(ranges)
        self.position = START
        self.horizon = 0
        self.last = born
        self.ddl = 0
        self._move_floor = 0
        self._known: deque[tuple[bytes, int]] = deque()
        self._known_floor = 0
        self._known_limit = known_limit
        self._released: dict[int, RangeMove] = {}
        self._acquired: dict[int, int] = {}
        self._chunks: dict[bytes, set[int]] = {}

    def add(self, entry: Entry) -> None:
        """Take the next valid entry. JournalError if its body is not what its kind promises."""
        if self.position == START and entry.previous != START:
            self._known_floor = entry.tau  # trimmed: what was committed before is not known, so not denied either (Q2)
        self.position = entry.position
        self.horizon = entry.horizon
        self.last = max(self.last, entry.tau)
        kind = entry.kind
        try:
            if kind == Kind.TRANSACTION:
                self._chunks.pop(entry.txid, None)
                self._known.append((entry.txid, entry.tau))
                if len(self._known) > self._known_limit:
                    self._known_floor = self._known.popleft()[1]
                if entry.flags & RecordFlag.DDL:
                    ddl = wide_commit_decoder.decode(entry.body).ddl
                    if ddl is not None:
                        self.ddl = ddl[0]
            elif kind == Kind.INGEST:
                self._chunks.setdefault(entry.txid, set()).update(relations_of(entry.body))
            elif kind == Kind.DROP:
                dropped = _drop_decoder.decode(entry.body).relations
                for relations in self._chunks.values():
                    relations.difference_update(dropped)
            elif kind == Kind.RELEASE:
                move = _move_decoder.decode(entry.body)
                self.ranges.remove(move.lo, move.hi)
                sequence, _, hash = entry.position
                self._released[move.target] = msgspec.structs.replace(move, sequence=sequence, hash=hash)
            elif kind == Kind.ACQUIRE:
                move = _move_decoder.decode(entry.body)
                self.ranges.add(move.lo, move.hi)
                self._move_floor = max(self._move_floor, move.floor)
                self._acquired[move.source] = move.tau
                self.ddl = max(self.ddl, move.ddl)
            elif kind in (Kind.CLAIM, Kind.HORIZON) and entry.body:
                self._claimed(_claim_decoder.decode(entry.body))
        except msgspec.MsgspecError as error:
            raise JournalError(f"record {entry.position.sequence} of the journal cannot be read: {error}") from None

    def _claimed(self, body: ClaimBody) -> None:
        self.ranges = RangeSet(body.ranges)
        self.ddl = body.ddl
        self._released = {move.target: move for move in body.released}
        self._acquired = dict(body.acquired)
        self._move_floor = max(self._move_floor, body.floor)

    @property
    def floor(self) -> int:
        """F of a generation that claims now (rule A1). Also what its claim carries as time and as H."""
        return max(self.horizon, self.last, self._move_floor)

    def claim_body(self) -> bytes:
        """The body of a claim that is appended now."""
        released = list(self._released.values())
        return msgspec.msgpack.encode(
            ClaimBody(self.ddl, self.ranges.list(), released, self._acquired, self._move_floor)
        )

    def claimed(self, claim: Position) -> Recovered:
        """Return the state for the generation whose claim is at this position, directly behind the last entry."""
        return Recovered(
            claim.generation,
            claim,
            self.floor,
            self.ddl,
            list(self._known),
            self._known_floor,
            self.ranges.list(),
            dict(self._released),
            dict(self._acquired),
            sorted({relation for relations in self._chunks.values() for relation in relations}),
        )


_ABOVE_ALL = KEYSPACE_END + b"\xff"


class RangeSet:
    """Disjoint key ranges, in order; adjacent ones are one."""

    def __init__(self, ranges: list[KeyRange]) -> None:
        self._ranges: list[KeyRange] = []
        for lo, hi in ranges:
            self.add(lo, hi)

    def list(self) -> list[KeyRange]:
        """All ranges."""
        return list(self._ranges)

    def holds(self, key: bytes) -> bool:
        """Is this key in a range?"""
        at = bisect_right(self._ranges, (key, _ABOVE_ALL)) - 1
        return at >= 0 and key < self._ranges[at][1]

    def covers(self, lo: bytes, hi: bytes) -> bool:
        """Is all of [lo, hi) in one range (adjacent ones being one)?"""
        at = bisect_right(self._ranges, (lo, _ABOVE_ALL)) - 1
        return lo >= hi or (at >= 0 and hi <= self._ranges[at][1])

    def add(self, lo: bytes, hi: bytes) -> None:
        """Add [lo, hi)."""
        kept = []
        for start, end in self._ranges:
            if end < lo or start > hi:
                kept.append((start, end))
            else:
                lo, hi = min(lo, start), max(hi, end)
        kept.append((lo, min(hi, KEYSPACE_END)))
        self._ranges = sorted(kept)

    def remove(self, lo: bytes, hi: bytes) -> None:
        """Take [lo, hi) out."""
        kept = []
        for start, end in self._ranges:
            kept += [piece for piece in ((start, min(end, lo)), (max(start, hi), end)) if piece[0] < piece[1]]
        self._ranges = kept
