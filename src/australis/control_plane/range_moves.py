"""Which adjudicator owns what, as the control plane publishes it: decisions about range moves. Pure.

    keeper = MapKeeper(map); effects = keeper.reconcile() ... keeper.received(number, answer) ... keeper.move(...)

The truth about ownership is in the adjudicators' journals (rule W4); the map is a hint that has to become true again
soon. What must hold:
- a new map is published only when the new owner has confirmed, or when all adjudicators have said what they own and
  that covers the keyspace exactly;
- after a start, and after any request whose outcome is not known, nothing is moved before the map is known to be true;
- one move at a time, as pieces of one owner each; a piece that was moved is published at once and stays moved when a
  later one fails.

An adjudicator that does not answer stops moves and comparisons, nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from australis.keyspace import KEYSPACE_END
from australis.partition_map import MapError, PartitionMap, Range
from australis.protocol.messages import MoveRange, MoveReply, OwnedRanges, OwnedRangesReply

Client = Hashable
"""Where an answer goes."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this to an adjudicator; the answer comes to `received`, or `lost` is called."""

    adjudicator: int
    message: MoveRange | OwnedRanges


@dataclass(frozen=True, slots=True)
class Publish:
    """Make this map durable, then tell everybody."""

    map: PartitionMap


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell a client what became of its move; `error` '' if it was done."""

    client: Client
    id: int
    error: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Say this in the log."""

    text: str


Effect = Ask | Publish | Answer | Alarm


@dataclass(slots=True)
class _Move:
    client: Client
    id: int
    target: int
    pieces: list[Range]
    asked: int = 0  # id of the request that is open
    moved: int = 0


@dataclass(slots=True)
class _Comparison:
    id: int
    owned: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)


class MapKeeper:
    """The newest map and what is being done to it. Call `reconcile` first, and again while not `sure`."""

    def __init__(self, newest: PartitionMap) -> None:
        self.map = newest
        self.sure = False
        self.moves = self.failures = 0
        self._move: _Move | None = None
        self._comparison: _Comparison | None = None
        self._ids = 0

    @property
    def busy(self) -> bool:
        """Is an answer of an adjudicator waited for?"""
        return self._move is not None or self._comparison is not None

    # ------------------------------------------------------------------------------------------------ compare

    def learned(self, newer: PartitionMap) -> list[Effect]:
        """Somebody follows a map that we don't have: ours was lost. It counts, and is compared with the journals."""
        if newer.version <= self.map.version:
            return []
        self.map = newer
        self.sure = False
        return [Alarm(f"a map of version {newer.version} was published before: it counts"), Publish(newer)]

    def reconcile(self) -> list[Effect]:
        """Ask all adjudicators what they own, unless a move is under way."""
        if self._move is not None:
            return []
        self.sure = False
        self._comparison = _Comparison(self._id())
        return [Ask(number, OwnedRanges(self._comparison.id)) for number in self.map.adjudicators]

    def _owned(self, adjudicator: int, reply: OwnedRangesReply) -> list[Effect]:
        comparison = self._comparison
        if comparison is None or reply.id != comparison.id:
            return []
        comparison.owned[adjudicator] = reply.ranges
        if len(comparison.owned) < len(self.map.adjudicators):
            return []
        self._comparison = None
        ranges = [Range(lo, hi, number) for number, owned in comparison.owned.items() for lo, hi in owned]
        try:
            now = self.map
            true = PartitionMap(
                now.version + 1, now.adjudicators, _joined(ranges), now.shards, now.placement, now.incoming
            )
        except MapError as error:  # a range is on its way; or a journal was put back from an old copy
            return [Alarm(f"the adjudicators' ranges do not fit together yet: {error}")]
        self.sure = True
        if true.keys == tuple(_joined(list(now.keys))):
            return []
        self.map = true
        return [Alarm(f"the map was behind the journals: version {true.version}"), Publish(true)]

    # ------------------------------------------------------------------------------------------------ move

    def move(self, client: Client, message: MoveRange) -> list[Effect]:
        """Give [lo, hi) to an adjudicator, whoever owns it now."""
        refusal = ""
        if message.target not in self.map.adjudicators:
            refusal = f"there is no adjudicator {message.target}"
        elif not message.lo < message.hi <= KEYSPACE_END:
            refusal = f"the range {message.lo.hex()}..{message.hi.hex()} is empty or outside the keyspace"
        elif self._move is not None:
            refusal = "another move is under way; try again"
        elif not self.sure:
            refusal = "the map is being compared with the journals; try again"
        if refusal:
            return [Answer(client, message.id, refusal)]
        pieces = [piece for piece in self.map.pieces(message.lo, message.hi) if piece.owner != message.target]
        self._move = _Move(client, message.id, message.target, pieces)
        return self._next()

    def _next(self) -> list[Effect]:
        move = self._move
        assert move is not None, "a move is under way"
        if not move.pieces:
            self._move = None
            self.moves += 1
            return [Answer(move.client, move.id, "")]
        piece = move.pieces[0]
        move.asked = self._id()
        return [Ask(piece.owner, MoveRange(move.asked, piece.lo, piece.hi, move.target))]

    def _moved(self, adjudicator: int, reply: MoveReply) -> list[Effect]:
        move = self._move
        if move is None or reply.id != move.asked or adjudicator != move.pieces[0].owner:
            return []
        if reply.error:
            # refused by one that does not own it: our map may be old
            return self._fail(f"adjudicator {adjudicator}: {reply.error}")
        piece = move.pieces.pop(0)
        move.moved += 1
        self.map = self.map.moved(piece.lo, piece.hi, move.target)
        return [Publish(self.map), *self._next()]

    def _fail(self, cause: str) -> list[Effect]:
        move = self._move
        assert move is not None, "a move is under way"
        self._move = None
        self.failures += 1
        done = f"{move.moved} of {move.moved + len(move.pieces)} ranges were moved, then " if move.moved else ""
        return [Answer(move.client, move.id, done + cause), *self.reconcile()]

    # ------------------------------------------------------------------------------------------------ from outside

    def received(self, adjudicator: int, message: MoveReply | OwnedRangesReply) -> list[Effect]:
        """An adjudicator answers."""
        if isinstance(message, MoveReply):
            return self._moved(adjudicator, message)
        return self._owned(adjudicator, message)

    def lost(self, adjudicator: int) -> list[Effect]:
        """The connection to this adjudicator ended (or there was none to ask it by)."""
        move, comparison = self._move, self._comparison
        if move is not None and move.pieces and move.pieces[0].owner == adjudicator:
            return self._fail(f"adjudicator {adjudicator} went away: whether the range was moved is being asked")
        if comparison is not None and adjudicator not in comparison.owned:
            self._comparison = None
        return []

    def expired(self) -> list[Effect]:
        """Too long without an answer."""
        self._comparison = None
        if self._move is None:
            return []
        owner = self._move.pieces[0].owner
        return self._fail(f"adjudicator {owner} did not answer in time: whether the range was moved is being asked")

    def _id(self) -> int:
        self._ids += 1
        return self._ids


def _joined(ranges: list[Range]) -> list[Range]:
    joined: list[Range] = []
    for item in sorted(ranges, key=lambda item: item.lo):
        if joined and joined[-1].owner == item.owner and joined[-1].hi == item.lo:
            joined[-1] = Range(joined[-1].lo, item.hi, item.owner)
        else:
            joined.append(item)
    return joined
