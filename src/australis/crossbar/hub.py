"""What a crossbar does with what it reads: who gets which record, when to ask for heartbeats, who must catch up. Pure.

Its host passes entries and heartbeats of all journals and the subscribers' messages, with the time; the hub answers
with effects. What must hold:
- a subscriber gets everything that concerns its ranges above where it was, once, in order of time, and a watermark only
  after all records at or below it;
- the positions in a watermark are those from which another crossbar would go on with exactly what is above it;
- memory is bounded: records beyond `keep` bytes are forgotten, and whoever still needs one of them is told to catch up
  (the host reads the journals again for it); a subscriber that does not read is not written to.

A journal that is silent holds the watermark back, not what is complete (rule W3). Heartbeats are asked for when
somebody waits, one request per journal at a time: those who come meanwhile are in the next one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable

import msgspec

from australis.crossbar.follower import Follower
from australis.journal.positions import pack_positions, unpack_positions
from australis.journal.record import Entry, Kind, Position, RecordFlag
from australis.keyspace import relation_prefix
from australis.protocol.frames import frame
from australis.protocol.messages import (
    FeedStatus,
    Heartbeat,
    HeartbeatRequest,
    ShardApplied,
    ShardRecord,
    ShardStart,
    ShardSubscribe,
    WantWatermark,
    Watermark,
    encode,
    relations_of,
)

MILLISECOND = 1_000_000
KEEP_BYTES = 64 << 20
POSITIONS_RECORDS, POSITIONS_NS = 1000, 1000 * MILLISECOND
"""How often a watermark carries positions."""

ASK_AGAIN_NS = 250 * MILLISECOND
"""When a heartbeat that was asked for is asked for again: the request may have gone with a connection."""

NOTHING_MORE = -1

_FED = frozenset({Kind.TRANSACTION, Kind.INGEST, Kind.DROP})


class Record(msgspec.Struct, frozen=True, gc=False):
    """A merged record as subscribers get it; `relations` None: it concerns everybody."""

    tau: int
    relations: tuple[int, ...] | None
    frame: bytes


def fed(tau: int, entry: Entry) -> Record | None:
    """Make the message of a record; None: it is nothing for subscribers."""
    if entry.kind not in _FED:
        return None
    message = ShardRecord(entry.kind, entry.flags, tau, entry.txid, entry.body)
    everybody = entry.kind == Kind.DROP or entry.flags & RecordFlag.DROPS
    relations = None if everybody else tuple(relations_of(entry.body))
    return Record(tau, relations, frame(encode(message)))


class Ranges:
    """Which relations lie, at least partly, in a subscriber's ranges; remembers its answers."""

    def __init__(self, ranges: list[tuple[bytes, bytes]]) -> None:
        self._ranges = sorted(ranges)
        self._bounds = [lo for lo, _ in self._ranges]
        self._known: dict[int, bool] = {}

    def concern(self, relation: int) -> bool:
        """Does this relation have keys here?"""
        known = self._known.get(relation)
        if known is None:
            lo, hi = relation_prefix(relation), relation_prefix(relation) + b"\xff" * 8
            at = bisect_right(self._bounds, hi) - 1
            known = at >= 0 and self._ranges[at][1] > lo
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[relation] = known
        return known

    def concerned(self, record: Record) -> bool:
        """Does the record go to the subscriber?"""
        return record.relations is None or any(map(self.concern, record.relations))


class Subscriber:
    """One subscriber, as the hub knows it. `write` sends bytes; the host sets `paused` while nobody reads them."""

    def __init__(self, name: str, ranges: list[tuple[bytes, bytes]], write: Callable[[bytes], None]) -> None:
        self.name, self.ranges, self.write = name, Ranges(ranges), write
        self.paused = False
        self.live = False
        self.next = 0  # number of the next record of the live buffer
        self.sent = 0  # watermark
        self.wanted = 0
        self.placed = False  # does the subscriber have the positions of what was sent?
        self._records = 0
        self._positions_at = 0

    def record(self, record: Record) -> bool:
        """Send it if it concerns the subscriber, who may be ahead of a hub that was just started."""
        if record.tau > self.sent and self.ranges.concerned(record):
            self.write(record.frame)
            self._records += 1
            return True
        return False

    def watermark(self, tau: int, positions: Callable[[], bytes], now: int) -> None:
        """Everything at or below tau has been sent."""
        packed = b""
        if self._records >= POSITIONS_RECORDS or now - self._positions_at >= POSITIONS_NS:
            packed = positions()
            self._records, self._positions_at = 0, now
        self.placed = bool(packed)
        self.sent = tau
        if self.wanted <= tau:
            self.wanted = 0
        self.write(frame(encode(Watermark(tau, packed))))


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Effect: ask the adjudicator of a journal for a heartbeat."""

    journal: int
    message: HeartbeatRequest


class CatchUp(msgspec.Struct, frozen=True, gc=False):
    """Effect: read the journals again for a subscriber, from `positions`, and `join` when it has come to the hub's."""

    subscriber: Subscriber
    applied: int
    positions: dict[int, Position]


Effect = Ask | CatchUp


class Hub:
    """The live end of all journals, and who listens to it."""

    def __init__(self, follower: Follower, start: int = 0, keep: int = KEEP_BYTES) -> None:
        """`start`: everything at or below it was taken before; `follower` begins behind it."""
        self.follower = follower
        self._cut: set[int] = set()  # journals whose beginning is not there any more, before their first record
        self.subscribers: list[Subscriber] = []
        self._keep = keep
        self._records: deque[Record] = deque()
        self._first = 0  # number of the first record in the buffer
        self._size = 0
        self.base = start  # time of the newest record that is not here: whoever has less must catch up
        self.watermark = follower.watermark
        self._asked: dict[int, tuple[int, int]] = {}  # journal -> (tau, when)
        self._kept: dict[str, dict[int, Position]] = {}
        self._diverged: dict[int, set[str]] = {}  # journal -> replicas that hold what it does not
        self.sent = 0

    # --------------------------------------------------------------------------------------------------- journals

    def entry(self, journal: int, entry: Entry) -> None:
        """The next valid entry of a journal, from its owner."""
        if journal in self._cut:
            self._cut.discard(journal)
            self.base = max(self.base, entry.tau)
        self.follower.entry(journal, entry)

    def cut(self, journal: int) -> None:
        """A journal does not reach back to its beginning: what comes next is the first that there is."""
        self._cut.add(journal)

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """A heartbeat: the next may be asked for."""
        asked = self._asked.get(heartbeat.journal)
        if asked is not None and heartbeat.h >= asked[0]:
            del self._asked[heartbeat.journal]
        self.follower.heartbeat(heartbeat)

    def disconnected(self, journal: int) -> None:
        """What was asked of it will not be answered."""
        self._asked.pop(journal, None)

    def pump(self, now: int) -> list[Effect]:
        """Give out what is complete, ask for what somebody waits for. To be called after anything has come."""
        for tau, entry in self.follower.take():
            record = fed(tau, entry)
            if record is not None:
                self._records.append(record)
                self._size += len(record.frame)
        effects: list[Effect] = []
        self.watermark = self.follower.watermark
        for subscriber in self.subscribers:
            if subscriber.live and not subscriber.paused:
                self._serve(subscriber, now)
        self._forget(effects)
        self._ask(now, effects)
        return effects

    def _serve(self, subscriber: Subscriber, now: int) -> None:
        """Send what is new to one subscriber, as far as it reads."""
        first, records = self._first, self._records
        end = first + len(records)
        if subscriber.next < end:
            start = subscriber.next
            # the common case is a few records at the end: a deque is cheap to index there
            for number in range(start, end):
                if subscriber.record(records[number - first]):
                    self.sent += 1
                subscriber.next = number + 1
                if subscriber.paused:
                    return
        if subscriber.sent < self.watermark:
            subscriber.watermark(self.watermark, self._positions, now)

    def _positions(self) -> bytes:
        return pack_positions(self.watermark, self.follower.taken)

    def _forget(self, effects: list[Effect]) -> None:
        """Keep the buffer bounded; whoever is behind its new beginning has to catch up once it reads again."""
        while self._size > self._keep and self._records:
            record = self._records.popleft()
            self._size -= len(record.frame)
            self._first += 1
            self.base = record.tau
        for subscriber in self.subscribers:
            if subscriber.live and subscriber.next < self._first:
                subscriber.live = False
                # it knows what it has applied, we do not: it subscribes again
                effects.append(CatchUp(subscriber, NOTHING_MORE, {}))

    def _ask(self, now: int, effects: list[Effect]) -> None:
        wanted = max((subscriber.wanted for subscriber in self.subscribers), default=0)
        if self.subscribers:
            wanted = max(wanted, self.follower.held)
        if not wanted:
            return
        for journal in self.follower.journals:
            if self.follower.promised(journal) >= wanted:
                continue
            asked = self._asked.get(journal)
            if asked is None or now - asked[1] >= ASK_AGAIN_NS:
                self._asked[journal] = wanted, now
                effects.append(Ask(journal, HeartbeatRequest(wanted)))

    def place(self, subscriber: Subscriber) -> bytes:
        """Positions of everything that was sent, if it does not have them; b'' if it has, or they are not known now."""
        if not subscriber.live or subscriber.placed or subscriber.sent != self.watermark:
            return b""
        subscriber.placed = True
        return self._positions()

    @property
    def asking(self) -> bool:
        """Is somebody waiting for heartbeats, so that `pump` is to be called again in a while?"""
        return bool(self._asked)

    # ------------------------------------------------------------------------------------------------ subscribers

    def subscribe(self, subscriber: Subscriber, request: ShardSubscribe) -> list[Effect]:
        """Begin to feed a subscriber, from memory or by catching up. Raises ProtocolError."""
        self.subscribers.append(subscriber)
        for witnesses in self._diverged.values():
            witnesses.discard(subscriber.name)  # it is found again if that is still so
        if request.applied == NOTHING_MORE:
            subscriber.next = self._first + len(self._records)
            return self._join(subscriber, self.watermark)
        start, positions = unpack_positions(request.positions) if request.positions else (0, {})
        seen = all(self.follower.has_read(journal, position) for journal, position in positions.items())
        if request.applied >= self.base and not self._cut and seen:
            # all that it does not have is here, and what it has was read here: a journal that lost its end is noticed
            # by reading it from where the subscriber is
            subscriber.next = self._first + sum(record.tau <= request.applied for record in self._records)
            return self._join(subscriber, request.applied)
        return [CatchUp(subscriber, start, positions)]

    def diverged(self, name: str, journal: int, replicas: list[str]) -> list[str]:
        """A subscriber holds something that this journal does not. Returns who says so if that is the journal's fault.

        One replica may be wrong; two that are the same way, or the only one of the cluster, say that records are lost.
        """
        witnesses = self._diverged.setdefault(journal, set())
        witnesses.intersection_update(replicas)
        if name in replicas:
            witnesses.add(name)
        return sorted(witnesses) if len(witnesses) >= min(2, max(len(replicas), 1)) else []

    @property
    def diverged_replicas(self) -> set[str]:
        """Who was refused and has not been fed since."""
        return set().union(*self._diverged.values())

    def _join(self, subscriber: Subscriber, tau: int) -> list[Effect]:
        subscriber.live, subscriber.sent = True, tau
        subscriber.write(frame(encode(ShardStart(FeedStatus.OK, tau))))
        return []

    def join(self, subscriber: Subscriber, tau: int) -> bool:
        """A subscriber that caught up has everything up to tau. False: the hub has forgotten what follows; go on."""
        if subscriber not in self.subscribers:
            return True
        if tau < self.base:
            return False
        subscriber.next = self._first + sum(record.tau <= tau for record in self._records)
        subscriber.live = True
        return True

    def want(self, subscriber: Subscriber, message: WantWatermark) -> None:
        """Somebody reads at this time there."""
        if message.tau > subscriber.sent:
            subscriber.wanted = max(subscriber.wanted, message.tau)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """It is gone."""
        if subscriber in self.subscribers:
            self.subscribers.remove(subscriber)

    # --------------------------------------------------------------------------------------------------- trimming

    def applied(self, name: str, message: ShardApplied) -> None:
        """What a replica still needs of the journals."""
        if message.kept:
            self._kept[name] = unpack_positions(message.kept)[1]

    def unsaid(self, shards: list[list[str]]) -> list[int]:
        """Which of these shards have not said yet what they need: nothing is forgotten before they do."""
        return [at for at, replicas in enumerate(shards) if not any(name in self._kept for name in replicas)]

    def trims(self, shards: list[list[str]]) -> dict[int, int]:
        """Up to which sequence each journal may be forgotten, if every shard has said so; `shards`: their replicas.

        The replicas of a shard have its snapshots in common, and one that is behind begins with them: the farthest
        counts.
        """
        kept: list[dict[int, Position]] = []
        for replicas in shards:
            said = [self._kept[name] for name in replicas if name in self._kept]
            if not said:
                return {}
            farthest: dict[int, Position] = {}
            for positions in said:
                for journal, position in positions.items():
                    if journal not in farthest or position.sequence > farthest[journal].sequence:
                        farthest[journal] = position
            kept.append(farthest)
        if not kept:
            return {}
        return {
            journal: min(positions[journal].sequence for positions in kept)
            for journal in self.follower.journals
            if all(journal in positions for positions in kept)
        }


class Replay:
    """Reads the journals again for one subscriber, until it has what the hub had when this began."""

    def __init__(self, subscriber: Subscriber, follower: Follower, hub: Hub) -> None:
        """`follower` begins where the subscriber is."""
        self.subscriber, self.follower, self._hub = subscriber, follower, hub
        self._target: dict[int, Position] = {}
        self._until = 0
        self._reached: set[int] = set()
        self._begun: set[int] = set()  # journals whose owner holds the record that the subscriber is at
        self._aim()

    def _aim(self) -> None:
        """Where the hub is now is where we are going."""
        self._target, self._until = self._hub.follower.taken, self._hub.watermark
        self._reached = set()
        for journal, position in self._target.items():
            self.follower.begins(journal, 0)
            if position.sequence <= self.follower.position(journal).sequence:
                self._arrived(journal)

    def _arrived(self, journal: int) -> None:
        self._reached.add(journal)
        self.follower.promise(journal, self._until)

    def began(self, journal: int, now: int) -> bool:
        """The owner feeds this journal from where the subscriber is. True: the subscriber is live, and this is over."""
        self._begun.add(journal)
        return self.pump(now)

    def entry(self, journal: int, entry: Entry, now: int) -> bool:
        """The next valid entry of a journal. True: the subscriber is live, and this is over."""
        self.follower.entry(journal, entry)
        target = self._target.get(journal)
        if target is not None and journal not in self._reached and entry.position.sequence >= target.sequence:
            self._arrived(journal)
        return self.pump(now)

    def pump(self, now: int) -> bool:
        """Give out what is complete."""
        follower, subscriber = self.follower, self.subscriber
        given = False
        for tau, item in follower.take():
            record = fed(tau, item)
            if record is not None:
                subscriber.record(record)
            given = True
        if given or follower.watermark > subscriber.sent:
            tau = max(follower.watermark, subscriber.sent)
            subscriber.watermark(tau, lambda: pack_positions(follower.watermark, follower.taken), now)
        if len(self._reached) < len(self._target) or not self._begun.issuperset(self._target):
            return False
        if self._hub.join(subscriber, follower.watermark):
            return True
        self._aim()
        return False
