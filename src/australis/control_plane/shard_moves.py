"""Which shard holds what: moves of ranges between shards, as the control plane does them. Pure.

    mover.move(client, MoveShard) / rebalance.plan(...) -> map with `incoming` -> replicas take over and report
    -> all of them hold it -> map in which the new shard answers -> the old one leaves the range

What must hold:
- a range is given to a shard only when its replicas have said that they hold all of it (one that is away for longer
  than AWAY_NS is not waited for, as long as another one holds it), so that somebody can always answer;
- a move that is under way is in the map, so whoever runs this next goes on with it;
- one move at a time; one that does not come to an end within LIMIT_NS is given up: the target leaves what it took, and
  nobody ever asked it for that.

A stale map costs a reader one retry (NOT_HELD), never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from australis.control_plane.range_moves import Alarm, Answer, Client, Effect, MapKeeper, Publish
from australis.control_plane.rebalance import Load, Settings, plan
from australis.keyspace import KEYSPACE_END, without
from australis.partition_map import MapError, PartitionMap, Range, Shard
from australis.protocol.messages import MoveShard, ShardHeld

SECOND = 1_000_000_000
FRESH_NS = 5 * SECOND
AWAY_NS = 30 * SECOND
LIMIT_NS = 1800 * SECOND
PAUSE_NS = 20 * SECOND
"""Between moves of our own: loads have to settle first."""


@dataclass(slots=True)
class _Seen:
    report: ShardHeld
    at: int
    rate: float = 0.0


@dataclass(slots=True)
class ShardMover:
    """Beside the keeper of the map, whose map it changes. Times are monotonic nanoseconds."""

    keeper: MapKeeper
    settings: Settings = field(default_factory=Settings)
    moves: int = 0
    failures: int = 0
    _reports: dict[str, _Seen] = field(default_factory=dict)
    _client: tuple[Client, int] | None = None
    _since: int = 0
    _rest_until: int = 0

    @property
    def busy(self) -> bool:
        """Is a range on its way?"""
        return bool(self.keeper.map.incoming)

    # --------------------------------------------------------------------------------------------------- requests

    def move(self, client: Client, message: MoveShard, at: int) -> list[Effect]:
        """Give [lo, hi) to a shard, whoever holds it now; the answer comes when it is done."""
        current = self.keeper.map
        refusal = ""
        if message.target not in current.replicas:
            refusal = f"there is no shard {message.target}"
        elif not message.lo < message.hi <= KEYSPACE_END:
            refusal = f"the range {message.lo.hex()}..{message.hi.hex()} is empty or outside the keyspace"
        elif self.busy:
            refusal = "another range is being moved between shards; try again"
        if refusal:
            return [Answer(client, message.id, refusal)]
        pieces = [
            Range(piece.lo, piece.hi, message.target)
            for piece in current.shard_pieces(message.lo, message.hi)
            if piece.owner != message.target
        ]
        if not pieces:
            return [Answer(client, message.id, "")]
        self._client = client, message.id
        return self._begin(pieces, at)

    def _begin(self, pieces: Sequence[Range], at: int) -> list[Effect]:
        self._since = at
        self.keeper.map = self.keeper.map.arriving(pieces)
        return [Publish(self.keeper.map)]

    def gone(self, client: Client) -> None:
        """Who asked is gone; its move goes on."""
        if self._client is not None and self._client[0] == client:
            self._client = None

    # ---------------------------------------------------------------------------------------------------- reports

    def held(self, report: ShardHeld, at: int) -> list[Effect]:
        """A replica says what it holds."""
        before = self._reports.get(report.name)
        rate = 0.0
        if before is not None and at > before.at and report.operations >= before.report.operations:
            now = (report.operations - before.report.operations) * SECOND / (at - before.at)
            rate = before.rate + (now - before.rate) / 4
        if report.name in self.keeper.map.replicas.get(report.shard, ()):
            self._reports[report.name] = _Seen(report, at, rate)
        return self._complete(at) if self.busy else []

    def _complete(self, at: int) -> list[Effect]:
        current = self.keeper.map
        for item in current.incoming:
            holding = 0
            for name in current.replicas[item.owner]:
                seen = self._reports.get(name)
                away = at - (seen.at if seen is not None else self._since) > AWAY_NS
                if seen is None or at - seen.at > FRESH_NS:
                    if not away:
                        return []
                elif seen.report.version < current.version or without([(item.lo, item.hi)], seen.report.held):
                    return []
                else:
                    holding += 1
            if holding == 0:
                return []
        self.keeper.map = current.arrived()
        self.moves += 1
        self._rest_until = at + PAUSE_NS
        return [Publish(self.keeper.map), *self._answer("")]

    def _answer(self, error: str) -> list[Effect]:
        client, self._client = self._client, None
        return [Answer(client[0], client[1], error)] if client is not None else []

    # ------------------------------------------------------------------------------------------------------ time

    def tick(self, at: int) -> list[Effect]:
        """A few times a second: finish, give up, or begin what evens out loads."""
        if self.busy:
            if self._since == 0:  # begun by a former run of ours
                self._since = at
            done = self._complete(at)
            if done or at - self._since <= LIMIT_NS:
                return done
            targets = sorted({item.owner for item in self.keeper.map.incoming})
            text = f"shards {targets} did not take over what they were to within {LIMIT_NS // SECOND} s"
            self.keeper.map = self.keeper.map.arriving([])
            self.failures += 1
            self._rest_until = at + PAUSE_NS
            return [Alarm(text + "; given up"), Publish(self.keeper.map), *self._answer(text)]
        if self._client is not None:  # our map was lost, and that of the others does not know of the move
            return self._answer("the map was replaced by a newer one; try again")
        if at < self._rest_until:
            return []
        loads = self.loads(at)
        if loads is None:
            return []
        wanted = plan(self.keeper.map, loads, self.settings)
        if wanted is None:
            return []
        try:
            begun = self._begin([wanted], at)
        except MapError as error:
            return [Alarm(f"a move that was planned cannot be: {error}")]
        return [Alarm(f"evening out: a range goes to shard {wanted.owner}"), *begun]

    def loads(self, at: int) -> dict[int, Load] | None:
        """Of every shard, as its replicas say; None while one has not been heard of lately."""
        loads: dict[int, Load] = {}
        for shard in self.keeper.map.shards:
            fresh = [
                seen
                for name in shard.replicas
                if (seen := self._reports.get(name)) is not None and at - seen.at <= FRESH_NS
            ]
            if not fresh:
                return None
            largest = max(fresh, key=lambda seen: seen.report.bytes_held)
            loads[shard.id] = Load(
                largest.report.bytes_held,
                sum(seen.rate for seen in fresh),
                largest.report.samples,
                sorted(key for seen in fresh for key in seen.report.heat),
            )
        return loads


def grown(current: PartitionMap, first: PartitionMap) -> PartitionMap:
    """Return the map with the shards and replicas that a topology (`first`) has beyond it; the same if it has none."""
    shards: dict[int, list[str]] = {shard.id: list(shard.replicas) for shard in current.shards}
    changed = False
    for shard in first.shards:
        known = shards.setdefault(shard.id, [])
        new = [name for name in shard.replicas if name not in known]
        known += new
        changed = changed or bool(new)
    return (
        current.with_shards([Shard(number, names) for number, names in sorted(shards.items())]) if changed else current
    )
