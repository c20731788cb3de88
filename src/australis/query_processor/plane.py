"""Decisions of a gateway between the query processors of one host and a cluster of many adjudicators and shards. Pure.

    Timeline   as of which time may be read now (T2), and what waits for the watermark
    Commits    who leads a commit, what became of it, bulk loads (M1, A6, Q2, Q8, Q10)
    Reads      which replicas answer a read: split by shard, retried, hedged
    Barrier    a schema change is told to its client when all hosts have it

Messages and time in, effects out; times of the cluster are `now` = (earliest, latest) in nanoseconds, time limits are
`at`, seconds of a monotonic clock. What must hold:
- a snapshot is no older than any commit that was told to anybody before it was asked for, and is only answered when
  everything at or below it is known, down to the newest schema change;
- what was submitted to an adjudicator and not answered is resolved, never guessed: only "killed" is a refusal;
- a silent adjudicator, replica or host costs waiting that is bounded; everything is bounded.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import msgspec

from australis.keyspace import SystemRelation, relation_prefix
from australis.partition_map import PartitionMap
from australis.protocol.messages import (
    CatalogWait,
    CommitReply,
    Drop,
    Error,
    Get,
    GetReply,
    Ingest,
    IngestReply,
    ModeFlag,
    Outcome,
    ReadStatus,
    Resolve,
    ResolveReply,
    Scan,
    ScanReply,
    SnapshotReply,
    Stats,
    StatsReply,
    WideCommit,
    check_commit,
)

Client = Hashable
"""A connection of a query processor, as its host knows it."""

Now = tuple[int, int]

PATIENCE = 9.0
"""Seconds that a request waits in the gateway; query processors wait a little longer (`service_timeout`)."""

REMEMBERED = 200_000
"""Transactions whose leader is remembered for those who ask what became of them."""

MAX_OPEN = 20_000
STALE_RETRIES = 3
STALE_SECONDS = 1.0
RESOLVE_SECONDS = 0.02
FORGET_SECONDS = 60.0

STALE_DETAIL = "a key belongs to another adjudicator"
"""How an adjudicator's refusal begins when the map that a commit went by is not its."""

_OVERLOAD = "the gateway is overloaded; nothing was changed, please retry"
_AWAY = "the adjudicator went away before it had decided; nothing was changed, please retry"

_SEQUENCES = relation_prefix(SystemRelation.SEQUENCES)


class Send(msgspec.Struct, frozen=True, gc=False):
    """To an adjudicator; lost if there is no connection."""

    to: int
    message: msgspec.Struct


class Ask(msgspec.Struct, frozen=True, gc=False):
    """To a replica of a shard."""

    replica: str
    message: msgspec.Struct


class Answer(msgspec.Struct, frozen=True, gc=False):
    """To a query processor, once the own earliest has reached tau (A6)."""

    client: Client
    message: msgspec.Struct
    tau: int = 0


class Want(msgspec.Struct, frozen=True, gc=False):
    """To the crossbar: somebody waits for this watermark."""

    tau: int


class Publish(msgspec.Struct, frozen=True, gc=False):
    """Into the shared page, before anything else is told: what this host has heard of."""

    tau: int
    ddl: int


class Decision(msgspec.Struct, frozen=True, gc=False):
    """A commit has ended; `client` None: nobody waits for it any more."""

    client: Client
    commit: WideCommit
    reply: CommitReply
    budget: int


class Loaded(msgspec.Struct, frozen=True, gc=False):
    """A chunk is durable, or was refused; tell the client when it can be read."""

    client: Client
    reply: IngestReply
    budget: int


class TellPeer(msgspec.Struct, frozen=True, gc=False):
    """To another gateway."""

    peer: str
    message: msgspec.Struct


class Local(msgspec.Struct, frozen=True, gc=False):
    """Tell `client`, another gateway, when the query processors here have applied record n."""

    client: Client
    id: int
    n: int


Effect = Send | Ask | Answer | Want | Publish | Decision | Loaded | TellPeer | Local


# ------------------------------------------------------------------------------------------------------------ snapshots


class _Asked(msgspec.Struct, frozen=True, gc=False):
    client: Client
    id: int
    at: float


class Timeline:
    """What is known of the cluster's time: a watermark of the subscription to the log of schema changes.

    Those who want a snapshot while one is being determined share the next one.
    """

    def __init__(self, *, rounds: int = 2, limit: int = 20_000) -> None:
        self.live = False
        self.watermark = 0
        self.ddl = 0
        self._base = 0  # number of the last schema change before those in _records
        self._records: deque[tuple[int, int]] = deque()
        self._next: list[_Asked] = []
        self._rounds: deque[tuple[int, list[_Asked]]] = deque()
        self._max_rounds, self._limit = rounds, limit
        self._waiting: list[tuple[int, int, Effect]] = []
        self._numbers = itertools.count()
        self.snapshots = self.rounds = 0

    @property
    def waiting(self) -> int:
        """How many snapshots are asked for and not answered."""
        return len(self._next) + sum(len(asked) for _, asked in self._rounds)

    def ask(self, client: Client, id: int, now: Now, at: float) -> list[Effect]:
        """Somebody wants a snapshot."""
        if self.waiting >= self._limit:
            return [Answer(client, Error("57P03", "too many transactions wait for a snapshot; please retry"))]
        self._next.append(_Asked(client, id, at))
        return self._start(now)

    def when(self, tau: int, effect: Effect) -> list[Effect]:
        """Do something once everything at or below tau is known here."""
        if self.live and self.watermark >= tau:
            return [effect]
        heapq.heappush(self._waiting, (tau, next(self._numbers), effect))
        return [Want(tau)] if self.live else []

    def begin(self, tau: int, ddl: int, now: Now) -> list[Effect]:
        """A subscription has begun: what is at or below tau is known, with `ddl` as the newest schema change."""
        self.live = True
        self._records.clear()
        self._base = self.ddl = max(ddl, self.ddl)
        effects = self.reached(tau, now)
        if self._waiting:
            effects.append(Want(max(wanted for wanted, _, _ in self._waiting)))
        return effects

    def broken(self) -> None:
        """The subscription has ended: who waits, waits for the next one."""
        self.live = False
        again = [asked for _, group in self._rounds for asked in group]
        self._next = again + self._next
        self._rounds.clear()

    def record(self, tau: int, n: int) -> None:
        """A schema change."""
        if n > self.ddl:
            self._records.append((tau, n))
            self.ddl = n
            if len(self._records) > 1000:
                self._base = self._records.popleft()[1]

    def reached(self, tau: int, now: Now) -> list[Effect]:
        """Everything at or below tau is known."""
        self.watermark = max(self.watermark, tau)
        effects: list[Effect] = [Publish(self.watermark, self.ddl)]
        rounds = self._rounds
        while rounds and rounds[0][0] <= self.watermark:
            time, group = rounds.popleft()
            n = self.ddl_at(time)
            effects += [Answer(asked.client, SnapshotReply(asked.id, time, n), time) for asked in group]
            self.snapshots += len(group)
        while self._waiting and self._waiting[0][0] <= self.watermark:
            effects.append(heapq.heappop(self._waiting)[2])
        return effects + self._start(now)

    def ddl_at(self, tau: int) -> int:
        """Number of the last schema change at or below tau."""
        n = self._base
        for time, number in self._records:
            if time > tau:
                break
            n = number
        return n

    def _start(self, now: Now) -> list[Effect]:
        if not self._next or not self.live or len(self._rounds) >= self._max_rounds:
            return []
        tau = now[1]
        if self._rounds and self._rounds[-1][0] >= tau:
            self._rounds[-1][1].extend(self._next)  # the same moment
            self._next = []
            return []
        self._rounds.append((tau, self._next))
        self._next = []
        self.rounds += 1
        if self.watermark >= tau:
            return self.reached(self.watermark, now)
        return [Want(tau)]

    def forget(self, client: Client) -> None:
        """This client is gone."""
        self._next = [asked for asked in self._next if asked.client != client]

    def wake(self, at: float) -> list[Effect]:
        """Refuse who has waited for too long."""
        limit = at - PATIENCE
        late: list[_Asked] = []

        def left(group: list[_Asked]) -> list[_Asked]:
            late.extend(asked for asked in group if asked.at <= limit)
            return [asked for asked in group if asked.at > limit]

        if any(group and group[0].at <= limit for _, group in self._rounds):
            self._rounds = deque((tau, left(group)) for tau, group in self._rounds)
        if self._next and self._next[0].at <= limit:
            self._next = left(self._next)
        text = "no new snapshot can be taken: an adjudicator or its journal does not answer; please retry"
        return [Answer(asked.client, Error("57P03", text)) for asked in late]


# -------------------------------------------------------------------------------------------------------------- commits


@dataclass(slots=True, eq=False)
class _Open:
    """A commit that is not decided, as far as is known here."""

    client: Client
    commit: WideCommit
    at: float
    budget: int
    leader: int = -1
    generation: int = 0  # that it was submitted to; 0: to none
    lost: bool = False  # the connection that it was submitted on ended
    due: float = 0.0
    refusal: CommitReply | None = None  # by an adjudicator that is not the owner: a newer map may know who is
    refused_by: int = -1
    retries: int = 0
    askers: list[Client] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Load:
    """Chunks of a transaction."""

    client: Client
    number: int
    relations: set[int] = field(default_factory=set)
    held: deque[tuple[Ingest, int, float]] = field(default_factory=deque)
    outstanding: OrderedDict[int, int] = field(default_factory=OrderedDict)  # seq -> budget


@dataclass(slots=True, eq=False)
class _Survey:
    """Nobody here knows who led a transaction: all are asked, and prove with their answer that they are the owners."""

    tau_start: int
    at: float
    askers: list[Client]
    killed: set[int] = field(default_factory=set)


class Commits:
    """Routes what query processors want decided."""

    def __init__(self, partition: PartitionMap, *, limit: int = MAX_OPEN, remembered: int = REMEMBERED) -> None:
        self.map = partition
        self.serving: dict[int, int] = {}  # adjudicator -> generation, while there is a connection
        self._limit, self._remembered = limit, remembered
        self._open: dict[bytes, _Open] = {}
        self._of_client: dict[Client, set[bytes]] = {}
        self._leaders: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # (number, generation); (-1, 0): killed
        self._asking: dict[bytes, tuple[int, list[Client]]] = {}  # known leader, but not open: (tau_start, who asks)
        self._surveys: dict[bytes, _Survey] = {}
        self._loads: dict[bytes, _Load] = {}
        self.commits = self.refusals = self.learned = 0
        self._out: list[Effect] = []

    @property
    def open(self) -> int:
        """Commits that are not decided."""
        return len(self._open)

    def is_own(self, txid: bytes) -> bool:
        """Did this transaction come through here?"""
        return txid in self._leaders

    # ------------------------------------------------------------------------------------------------ submission

    def leader(self, commit: WideCommit) -> int:
        """M1, Q5: the owner of the system range for schema changes, else of most keys."""
        if commit.ddl is not None:
            return self.map.system
        owner_of = self.map.adjudicator
        if len(commit.keys) == 1:
            return owner_of(commit.keys[0])
        counts: dict[int, int] = {}
        blind: dict[int, int] = {}
        for key, mode in zip(commit.keys, commit.modes, strict=True):
            owner = owner_of(key)
            group = blind if mode & ModeFlag.BLIND else counts
            group[owner] = group.get(owner, 0) + 1
        chosen = counts or blind
        # of equals the one of the first key, so that they share the work
        return max(chosen, key=chosen.__getitem__) if chosen else self.map.system

    def commit(self, client: Client, commit: WideCommit, budget: int, at: float) -> list[Effect]:
        """A commit request; `budget` comes back with its Decision. ProtocolError if it is none."""
        check_commit(commit)
        txid = commit.txid
        item = _Open(client, commit, at, budget)
        if self._leaders.get(txid) == (-1, 0):
            self._end(item, CommitReply(txid, Outcome.REFUSED, 0, "this transaction was given up before"))
        elif txid in self._open or txid in self._leaders:
            self._end(item, None)  # a copy: the first one is answered
        elif len(self._open) >= self._limit:
            self._refuse(item, Outcome.REFUSED, _OVERLOAD)
        else:
            self._open[txid] = item
            self._of_client.setdefault(client, set()).add(txid)
            self._submit(item)
        return self._take()

    def _submit(self, item: _Open) -> None:
        commit = item.commit
        item.leader = self.leader(commit)
        generation = self.serving.get(item.leader, 0)
        if generation == 0:
            return  # held until it serves
        item.generation = generation
        self._remember(commit.txid, (item.leader, generation))
        self._out.append(Send(item.leader, msgspec.structs.replace(commit, generation=generation, leader=item.leader)))

    def _remember(self, txid: bytes, who: tuple[int, int]) -> None:
        self._leaders[txid] = who
        self._leaders.move_to_end(txid)
        if len(self._leaders) > self._remembered:
            self._leaders.popitem(last=False)

    # ------------------------------------------------------------------------------------------------- outcomes

    def reply(self, number: int, reply: CommitReply, at: float) -> list[Effect]:
        """An adjudicator's answer."""
        item = self._open.get(reply.txid)
        if item is None or item.leader != number or item.generation == 0:
            return []
        stale = reply.outcome == Outcome.REFUSED and reply.detail.startswith(STALE_DETAIL)
        if stale and item.retries < STALE_RETRIES and not item.askers:
            # certainly refused by that one, for ever; another one may still be asked
            item.retries += 1
            item.generation, item.lost = 0, False
            item.refusal, item.refused_by, item.due = reply, number, at + STALE_SECONDS
            self._try_other_owner(item)
        else:
            self._end(item, reply)
        return self._take()

    def _try_other_owner(self, item: _Open) -> None:
        if self.leader(item.commit) != item.refused_by:
            item.refusal = None
            self._submit(item)

    def new_map(self, partition: PartitionMap) -> list[Effect]:
        """The control plane has a newer map."""
        if partition.version > self.map.version:
            self.map = partition
            for item in list(self._open.values()):
                if item.refusal is not None:
                    self._try_other_owner(item)
                elif item.generation == 0:
                    self._submit(item)
        return self._take()

    def _end(self, item: _Open, reply: CommitReply | None, *, told: bool = False) -> None:
        """It is decided; None: it is not known how. `told`: the client has had an answer."""
        txid = item.commit.txid
        if self._open.get(txid) is item:
            del self._open[txid]
            mine = self._of_client.get(item.client)
            if mine is not None:
                mine.discard(txid)
                if not mine:
                    del self._of_client[item.client]
        if reply is None:
            self._out.append(Decision(None, item.commit, CommitReply(txid, Outcome.PENDING, 0, ""), item.budget))
            return
        committed = reply.outcome == Outcome.COMMITTED
        if committed:
            self.commits += 1
            self._loads.pop(txid, None)
        else:
            self.refusals += 1
            if item.generation == 0:
                self._remember(txid, (-1, 0))
            self._garbage(txid)
        self._out.append(Decision(None if told else item.client, item.commit, reply, item.budget))
        for asker in item.askers:
            outcome = Outcome.COMMITTED if committed else Outcome.KILLED
            self._out.append(Answer(asker, ResolveReply(txid, outcome, reply.tau), reply.tau))

    def _refuse(self, item: _Open, outcome: Outcome, detail: str, *, told: bool = False) -> None:
        """Certainly not committed: it was submitted to nobody."""
        item.generation = 0
        self._end(item, CommitReply(item.commit.txid, outcome, 0, detail), told=told)

    # ---------------------------------------------------------------------------------------------- adjudicators

    def up(self, number: int, generation: int) -> list[Effect]:
        """There is a connection to an adjudicator that serves."""
        self.serving[number] = generation
        for item in list(self._open.values()):
            if item.refusal is None and item.generation == 0 and item.leader == number:
                self._submit(item)
            elif item.leader == number and item.lost:
                self._ask_fate(item)
        for txid, (tau_start, _) in self._asking.items():
            leader, submitted = self._leaders.get(txid, (-1, 0))
            if leader == number:
                self._out.append(Send(number, Resolve(txid, tau_start, submitted, number)))
        for txid, survey in self._surveys.items():
            self._survey(txid, survey, number)
        for txid, load in self._loads.items():
            if load.number == number:
                self._chunks(txid, load)
        return self._take()

    def down(self, number: int) -> list[Effect]:
        """The connection is lost, and what was sent on it perhaps."""
        self.serving.pop(number, None)
        for item in self._open.values():
            if item.leader == number and item.generation:
                item.lost = True
        for txid, load in list(self._loads.items()):
            if load.number == number:
                for seq, budget in load.outstanding.items():
                    refused = IngestReply(txid, seq, Outcome.REFUSED, 0)
                    self._out.append(Loaded(load.client, refused, budget))
                load.outstanding.clear()
        return self._take()

    def _ask_fate(self, item: _Open) -> None:
        commit = item.commit
        message = Resolve(commit.txid, commit.tau_start, item.generation, item.leader)
        self._out.append(Send(item.leader, message))

    # --------------------------------------------------------------------------------------------------- resolve

    def resolve(self, client: Client, message: Resolve, at: float) -> list[Effect]:
        """A query processor asks what became of its transaction (Q2)."""
        txid = message.txid
        item = self._open.get(txid)
        known = self._leaders.get(txid)
        if item is not None and item.generation == 0:
            item.askers.append(client)
            self._refuse(item, Outcome.REFUSED, _AWAY)
        elif item is not None:
            if client not in item.askers:
                item.askers.append(client)
            if item.leader in self.serving:
                self._ask_fate(item)
        elif known == (-1, 0):
            self._out.append(Answer(client, ResolveReply(txid, Outcome.KILLED, 0)))
        elif known is not None:
            _, askers = self._asking.setdefault(txid, (message.tau_start, []))
            if client not in askers:
                askers.append(client)
            if known[0] in self.serving:
                self._out.append(Send(known[0], Resolve(txid, message.tau_start, known[1], known[0])))
        elif message.tau_start < 0 or len(self._surveys) >= self._limit:
            self._out.append(Answer(client, ResolveReply(txid, Outcome.PENDING, 0)))
        else:
            survey = self._surveys.get(txid)
            if survey is None:
                survey = self._surveys[txid] = _Survey(message.tau_start, at, [])
            if client not in survey.askers:
                survey.askers.append(client)
            for number in self.map.adjudicators:
                self._survey(txid, survey, number)
        return self._take()

    def _survey(self, txid: bytes, survey: _Survey, number: int) -> None:
        generation = self.serving.get(number, 0)
        if generation and number not in survey.killed:
            self._out.append(Send(number, Resolve(txid, survey.tau_start, generation, number, True)))

    def resolved(self, number: int, reply: ResolveReply, at: float) -> list[Effect]:
        """An adjudicator says what became of a transaction."""
        txid, outcome = reply.txid, reply.outcome
        self.learned += outcome != Outcome.PENDING
        item = self._open.get(txid)
        if item is not None and item.leader == number and item.generation:
            if outcome == Outcome.COMMITTED:
                self._end(item, CommitReply(txid, Outcome.COMMITTED, reply.tau, ""))
            elif outcome == Outcome.KILLED:
                self._end(item, CommitReply(txid, Outcome.REFUSED, 0, _AWAY))
            else:
                self._out += [Answer(asker, reply) for asker in item.askers]
                item.askers.clear()
                item.due = at + RESOLVE_SECONDS
            return self._take()
        asked = self._asking.pop(txid, None)
        if asked is not None:
            self._out += [Answer(asker, reply, reply.tau) for asker in asked[1]]
            if outcome == Outcome.KILLED:
                self._garbage(txid)
        survey = self._surveys.get(txid)
        if survey is not None:
            if outcome == Outcome.KILLED:
                survey.killed.add(number)
            if outcome != Outcome.KILLED or survey.killed >= set(self.map.adjudicators):
                del self._surveys[txid]
                self._out += [Answer(asker, reply, reply.tau) for asker in survey.askers]
                if outcome == Outcome.KILLED:
                    self._remember(txid, (-1, 0))
        return self._take()

    # ------------------------------------------------------------------------------------------------ bulk loads

    def ingest(self, client: Client, ingest: Ingest, relations: set[int], budget: int, at: float) -> list[Effect]:
        """A chunk of rows that nobody can read yet (Q8); the owner of the system range leads what publishes it."""
        txid = ingest.txid
        load = self._loads.get(txid)
        if load is None:
            load = self._loads[txid] = _Load(client, self.map.system)
        load.relations |= relations
        load.held.append((ingest, budget, at))
        self._chunks(txid, load)
        return self._take()

    def _chunks(self, txid: bytes, load: _Load) -> None:
        generation = self.serving.get(load.number, 0)
        while load.held and generation:
            ingest, budget, _ = load.held.popleft()
            load.outstanding[ingest.seq] = budget
            self._out.append(Send(load.number, msgspec.structs.replace(ingest, generation=generation)))

    def ingested(self, number: int, reply: IngestReply) -> list[Effect]:
        """A chunk is durable, or was refused."""
        load = self._loads.get(reply.txid)
        if load is not None and load.number == number and reply.seq in load.outstanding:
            self._out.append(Loaded(load.client, reply, load.outstanding.pop(reply.seq)))
        return self._take()

    def drop(self, message: Drop) -> list[Effect]:
        """Storage ids that a transaction left behind."""
        return [Send(self.map.system, message)]

    def _garbage(self, txid: bytes) -> None:
        """What was loaded for a transaction that never commits."""
        load = self._loads.pop(txid, None)
        if load is None:
            return
        self._out += [
            Loaded(None, IngestReply(txid, ingest.seq, Outcome.REFUSED, 0), budget) for ingest, budget, _ in load.held
        ]
        self._out += [
            Loaded(None, IngestReply(txid, seq, Outcome.REFUSED, 0), budget) for seq, budget in load.outstanding.items()
        ]
        if load.relations:
            self._out.append(Send(self.map.system, Drop(sorted(load.relations))))

    # ------------------------------------------------------------------------------------------------ life cycle

    def gone(self, client: Client) -> list[Effect]:
        """A query processor's connection has ended."""
        for txid in list(self._of_client.pop(client, ())):
            item = self._open[txid]
            item.client = None
            if item.generation == 0:
                self._refuse(item, Outcome.REFUSED, _AWAY)
        for txid, load in list(self._loads.items()):
            if load.client == client:
                load.client = None
                if txid not in self._open and txid not in self._leaders:
                    self._remember(txid, (-1, 0))
                    self._garbage(txid)
        for _, askers in self._asking.values():
            if client in askers:
                askers.remove(client)
        return self._take()

    def wake(self, at: float) -> list[Effect]:
        """Do what is due; a few times a second."""
        for item in list(self._open.values()):
            if item.refusal is not None:
                if item.due <= at:
                    self._end(item, item.refusal)
            elif item.generation == 0:
                if at - item.at > PATIENCE:
                    # the client asks what became of it, and hears that it was given up
                    text = f"adjudicator {item.leader} does not serve; nothing was changed, please retry"
                    self._out.append(Answer(item.client, Error("57P03", text)))
                    self._refuse(item, Outcome.REFUSED, text, told=True)
            elif item.lost and item.due <= at and item.leader in self.serving:
                item.due = at + RESOLVE_SECONDS
                self._ask_fate(item)
            elif at - item.at > FORGET_SECONDS:
                self._end(item, None)  # who wants to know asks; its leader is remembered
                self._loads.pop(item.commit.txid, None)
        for txid, survey in list(self._surveys.items()):
            if at - survey.at > PATIENCE:
                del self._surveys[txid]
                self._out += [Answer(asker, ResolveReply(txid, Outcome.PENDING, 0)) for asker in survey.askers]
        for txid, load in list(self._loads.items()):
            if load.held and at - load.held[0][2] > PATIENCE:
                ingest, budget, _ = load.held.popleft()
                self._out.append(Loaded(load.client, IngestReply(txid, ingest.seq, Outcome.REFUSED, 0), budget))
        while len(self._asking) > self._limit:
            self._asking.pop(next(iter(self._asking)))
        return self._take()

    def _take(self) -> list[Effect]:
        out, self._out = self._out, []
        return out


# ---------------------------------------------------------------------------------------------------------------- reads

FIRST_HEDGE = 0.05
LEAST_HEDGE, LONGEST_HEDGE = 0.005, 1.0
MEASURED = 128
RETRY_SECONDS = 0.02
AVOID_SECONDS, LONGEST_AVOIDED = 1.0, 30.0
HEDGE_AGAIN = 1.0
NO_VALUE = 0xFFFFFFFF
_ENTRY = struct.Struct("<IIq")

Request = Get | Scan | Stats
Reply = GetReply | ScanReply | StatsReply


class _Replica:
    """How a replica has answered lately."""

    __slots__ = ("_count", "_p95", "_pause", "_taken", "avoid_until", "outstanding", "usual")

    def __init__(self) -> None:
        self._taken: deque[float] = deque(maxlen=MEASURED)
        self._count = 0
        self._p95 = FIRST_HEDGE
        self.usual = 0.0
        self.outstanding = 0
        self.avoid_until = 0.0
        self._pause = AVOID_SECONDS

    def failed(self, at: float) -> None:
        """It did not answer, or could not: it gets another chance later, each time later."""
        if self.avoid_until <= at:
            self.avoid_until = at + self._pause
            self._pause = min(2 * self._pause, LONGEST_AVOIDED)

    def measured(self, seconds: float) -> None:
        self._pause = AVOID_SECONDS
        self._taken.append(seconds)
        self.usual += (seconds - self.usual) / 16
        self._count += 1
        if self._count % 32 == 0 or len(self._taken) == 16:
            ordered = sorted(self._taken)
            self._p95 = ordered[len(ordered) * 95 // 100]

    @property
    def p95(self) -> float:
        return self._p95


@dataclass(slots=True, eq=False)
class _Part:
    """What one shard is asked."""

    read: _Read
    shard: int
    request: Request
    attempts: dict[int, str] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    failure: int = ReadStatus.NOT_FRESH
    hedges: int = 0
    due: float = 0.0
    reply: Reply | None = None


@dataclass(slots=True, eq=False)
class _Read:
    """What a client asked."""

    client: Client
    request: Request
    at: float
    version: int = 0
    parts: list[_Part] = field(default_factory=list)
    left: int = 0
    rest: deque[tuple[int, bytes, bytes]] = field(default_factory=deque)  # pieces of a scan still to come
    rows: dict[bytes, int] = field(default_factory=dict)
    done: bool = False


class Reads:
    """Answers reads by asking the shards that hold the keys."""

    def __init__(self, partition: PartitionMap, *, limit: int = 50_000) -> None:
        self.map = partition
        self._replicas: dict[str, _Replica] = {}
        self._up: set[str] = set()
        self._ids = itertools.count(1)
        self._attempts: dict[int, tuple[_Part, str, float]] = {}
        self._timers: list[tuple[float, int, _Part]] = []
        self._timer_numbers = itertools.count()
        self._limit = limit
        self.open = 0
        self.reads = self.hedged = self.retried = self.refused = 0
        self._out: list[Effect] = []

    # --------------------------------------------------------------------------------------------------- requests

    def ask(self, client: Client, request: Request, at: float) -> list[Effect]:
        """A query processor wants to read; exactly one Answer follows."""
        read = _Read(client, request, at)
        self.reads += 1
        self.open += 1
        if self.open > self._limit:
            self._fail(read, ReadStatus.NOT_FRESH)
        else:
            self._plan(read, at)
        return self._take()

    def _plan(self, read: _Read, at: float) -> None:
        """Cut it by shard, by the map of now."""
        request, partition = read.request, self.map
        for part in read.parts:
            self._forget(part)
        read.version = partition.version
        read.parts, read.rest = [], deque()
        if isinstance(request, Get):
            shares: dict[int, list[bytes]] = {}
            for key in request.keys:
                shares.setdefault(partition.shard(key), []).append(key)
            read.parts = [
                _Part(read, shard, msgspec.structs.replace(request, keys=keys)) for shard, keys in shares.items()
            ]
        elif isinstance(request, Scan):
            pieces = partition.shard_pieces(request.lo, request.hi)
            if request.backward:
                pieces.reverse()
            read.rest = deque((piece.owner, piece.lo, piece.hi) for piece in pieces)
            if read.rest:
                read.parts = [self._next_piece(read)]
        else:
            read.parts = [_Part(read, shard.id, request) for shard in partition.shards]
        read.left = len(read.parts)
        if not read.parts:
            self._finish(read, _empty(request))
        for part in read.parts:
            self._dispatch(part, at)

    def _next_piece(self, read: _Read) -> _Part:
        shard, lo, hi = read.rest.popleft()
        assert isinstance(read.request, Scan), "only scans have pieces"
        return _Part(read, shard, msgspec.structs.replace(read.request, lo=lo, hi=hi))

    def _choose(self, part: _Part, at: float) -> str | None:
        """The nearest replica that was not asked yet and did not fail just now."""
        best: tuple[bool, float, str] | None = None
        for name in self.map.replicas.get(part.shard, ()):
            if name in part.tried or name not in self._up:
                continue
            state = self._replicas[name]
            score = (state.avoid_until > at, state.usual * (1 + state.outstanding), name)
            if best is None or score < best:
                best = score
        return best[2] if best is not None else None

    def _dispatch(self, part: _Part, at: float) -> None:
        """Ask a replica; if there is none, a little later again."""
        name = self._choose(part, at)
        if name is None:
            if not part.attempts:
                part.tried.clear()
                self._timer(part, at + RETRY_SECONDS)
            return
        id = next(self._ids)
        part.tried.add(name)
        part.attempts[id] = name
        self._attempts[id] = part, name, at
        self._replicas[name].outstanding += 1
        self._out.append(Ask(name, msgspec.structs.replace(part.request, id=id)))
        delay = HEDGE_AGAIN if part.hedges else self._hedge_delay(part)
        self._timer(part, at + delay)

    def _hedge_delay(self, part: _Part) -> float:
        slowest = max(self._replicas[name].p95 for name in part.attempts.values())
        return min(max(slowest, LEAST_HEDGE), LONGEST_HEDGE)

    def _timer(self, part: _Part, due: float) -> None:
        part.due = due
        heapq.heappush(self._timers, (due, next(self._timer_numbers), part))

    @property
    def wake_at(self) -> float | None:
        """When `wake` has something to do."""
        return self._timers[0][0] if self._timers else None

    def wake(self, at: float) -> list[Effect]:
        """Hedge, retry, give up."""
        timers = self._timers
        while timers and timers[0][0] <= at:
            due, _, part = heapq.heappop(timers)
            read = part.read
            if read.done or part.reply is not None or part.due != due or part not in read.parts:
                continue
            if at - read.at > PATIENCE:
                self._fail(read, part.failure)
            elif part.attempts:
                self._hedge(part, at)
            elif self.map.version != read.version:
                self._plan(read, at)
            else:
                self._dispatch(part, at)
        return self._take()

    def _hedge(self, part: _Part, at: float) -> None:
        for name in part.attempts.values():
            self._replicas[name].failed(at)
        if self._choose(part, at) is None:
            self._timer(part, at + HEDGE_AGAIN)  # nobody else to ask
            return
        part.hedges += 1
        self.hedged += 1
        self._dispatch(part, at)

    # ---------------------------------------------------------------------------------------------------- answers

    def reply(self, replica: str, reply: Reply, at: float) -> list[Effect]:
        """A replica answers."""
        attempt = self._attempts.pop(reply.id, None)
        if attempt is None or attempt[1] != replica:
            return []
        part, name, asked = attempt
        state = self._replicas[name]
        state.outstanding -= 1
        del part.attempts[reply.id]
        read = part.read
        status = reply.status if not isinstance(reply, StatsReply) else ReadStatus.OK
        if status == ReadStatus.OK:
            state.measured(at - asked)
        if status == ReadStatus.OK:
            self._forget(part)
            self._answered(part, reply, at)
        elif status == ReadStatus.NOT_HELD:
            self.retried += 1
            if self.map.version != read.version:
                self._plan(read, at)
            elif not part.attempts:
                part.failure = ReadStatus.NOT_FRESH
                self._again(part, at)
        else:
            self.retried += 1
            part.failure = status
            if status == ReadStatus.REFUSED:
                self._fail(read, status)
                return self._take()
            if status != ReadStatus.BELOW_HORIZON:
                state.failed(at)
            if not part.attempts:
                if self._choose(part, at) is not None:
                    self._dispatch(part, at)
                elif status == ReadStatus.NOT_FRESH and not self._all_tried(part):
                    self._again(part, at)
                else:
                    self._fail(read, status)
        return self._take()

    def _all_tried(self, part: _Part) -> bool:
        return part.tried >= set(self.map.replicas.get(part.shard, ()))

    def _again(self, part: _Part, at: float) -> None:
        """Another one, or, if all were asked, from the beginning after a pause."""
        if self._choose(part, at) is not None:
            self._dispatch(part, at)
        else:
            part.tried.clear()
            self._timer(part, at + RETRY_SECONDS)

    def _answered(self, part: _Part, reply: Reply, at: float) -> None:
        part.reply = reply
        read = part.read
        request = read.request
        if isinstance(reply, ScanReply):
            assert isinstance(request, Scan), "the answer to Scan"
            if not reply.batch and not reply.more and read.rest:
                read.parts = [self._next_piece(read)]
                self._dispatch(read.parts[0], at)
                return
            resume = reply.resume if reply.more else b""
            if not reply.more and read.rest:
                _, lo, hi = read.rest[0]
                resume = hi if request.backward else lo
            more = reply.more or bool(read.rest)
            self._finish(read, ScanReply(request.id, ReadStatus.OK, more, reply.batch, resume))
            return
        read.left -= 1
        if read.left == 0:
            self._finish(read, _merged(read.request, [part.reply for part in read.parts]))

    def _fail(self, read: _Read, status: int) -> None:
        self.refused += 1
        request = read.request
        if isinstance(request, Get):
            self._finish(read, GetReply(request.id, status, b""))
        elif isinstance(request, Scan):
            self._finish(read, ScanReply(request.id, status, False, b""))
        else:
            self._finish(read, StatsReply(request.id, []))

    def _finish(self, read: _Read, reply: Reply) -> None:
        if not read.done:
            read.done = True
            self.open -= 1
            for part in read.parts:
                self._forget(part)
            self._out.append(Answer(read.client, reply))

    def _forget(self, part: _Part) -> None:
        """Answers of those who were asked too are not waited for; a slow one is remembered as such."""
        for id in part.attempts:
            attempt = self._attempts.pop(id, None)
            if attempt is not None:
                self._replicas[attempt[1]].outstanding -= 1
        part.attempts.clear()

    # ---------------------------------------------------------------------------------------------------- changes

    def up(self, replica: str, at: float) -> list[Effect]:
        """There is a connection to a replica."""
        self._replicas.setdefault(replica, _Replica())
        self._up.add(replica)
        return self.wake(at)

    def down(self, replica: str, at: float) -> list[Effect]:
        """The connection is lost: what was asked on it is asked elsewhere."""
        self._up.discard(replica)
        for id, (part, name, _) in list(self._attempts.items()):
            if name == replica:
                del self._attempts[id]
                part.attempts.pop(id, None)
                self._replicas[name].outstanding -= 1
                self.retried += 1
                if not part.attempts:
                    self._again(part, at)
        return self._take()

    def new_map(self, partition: PartitionMap) -> None:
        """Reads that were sent to the wrong shard go by it from now on."""
        if partition.version > self.map.version:
            self.map = partition

    def forget(self, client: Client) -> None:
        """This client is gone: its answers go nowhere."""

    def _take(self) -> list[Effect]:
        out, self._out = self._out, []
        return out


def _empty(request: Request) -> Reply:
    if isinstance(request, Get):
        return GetReply(request.id, ReadStatus.OK, b"")
    if isinstance(request, Scan):
        return ScanReply(request.id, ReadStatus.OK, False, b"")
    return StatsReply(request.id, [])


def _merged(request: Request, replies: list[Reply | None]) -> Reply:
    """Put the shards' answers together, in the order of the question."""
    if isinstance(request, Stats):
        rows: dict[int, tuple[int, int]] = dict.fromkeys(request.relations, (0, 0))
        for reply in replies:
            assert isinstance(reply, StatsReply), "the answer to Stats"
            for relation, count, size in reply.stats:
                before = rows.get(relation, (0, 0))
                rows[relation] = before[0] + count, before[1] + size
        return StatsReply(request.id, [(relation, *values) for relation, values in rows.items()])
    assert isinstance(request, Get), "scans are answered piece by piece"
    if len(replies) == 1:
        reply = replies[0]
        assert isinstance(reply, GetReply), "the answer to Get"
        return GetReply(request.id, reply.status, reply.batch)
    found: dict[bytes, bytes] = {}
    for reply in replies:
        assert isinstance(reply, GetReply), "the answer to Get"
        for key, entry in entries(reply.batch):
            found[key] = entry
    missing = _ENTRY.pack(0, NO_VALUE, 0)
    return GetReply(request.id, ReadStatus.OK, b"".join([found.get(key, missing) for key in request.keys]))


def entries(batch: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Cut a batch (docs/formats.md §5) into (key, entry with its padding); missing keys are left out."""
    at = 0
    while at < len(batch):
        key_length, value_length, _ = _ENTRY.unpack_from(batch, at)
        if value_length == NO_VALUE:
            at += _ENTRY.size
            continue
        key_at = at + _ENTRY.size + (value_length + 7 & ~7)
        end = key_at + (key_length + 7 & ~7)
        yield batch[key_at : key_at + key_length], batch[at:end]
        at = end


# -------------------------------------------------------------------------------------------------------------- barrier

BARRIER_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class _Wait:
    client: Client
    reply: CommitReply
    at: float
    peers: set[str]


class Barrier:
    """Holds the answer of a schema change (or a sequence's record) until the other hosts have it.

    A host that does not get on costs BARRIER_SECONDS once, not with every change: then it is passed over until it
    has answered.
    """

    def __init__(self) -> None:
        self._peers: set[str] = set()
        self._stalled: set[str] = set()
        self._waits: dict[int, _Wait] = {}
        self._ids = itertools.count(1)

    def up(self, peer: str) -> None:
        """There is a connection to another gateway."""
        self._peers.add(peer)
        self._stalled.discard(peer)

    def down(self, peer: str) -> list[Effect]:
        """It is gone."""
        self._peers.discard(peer)
        effects: list[Effect] = []
        for id in list(self._waits):
            effects += self.done(peer, id)
        return effects

    def begin(self, client: Client, reply: CommitReply, n: int, at: float) -> list[Effect]:
        """Ask the others; n 0: only that they have heard of everything up to the commit."""
        asked = self._peers - self._stalled
        if not asked:
            return [Answer(client, reply, reply.tau)]
        id = next(self._ids)
        self._waits[id] = _Wait(client, reply, at, set(asked))
        return [TellPeer(peer, CatalogWait(id, n, reply.tau)) for peer in sorted(self._peers)]

    def done(self, peer: str, id: int) -> list[Effect]:
        """One of them has it."""
        self._stalled.discard(peer)
        wait = self._waits.get(id)
        if wait is None:
            return []
        wait.peers.discard(peer)
        if wait.peers:
            return []
        del self._waits[id]
        return [Answer(wait.client, wait.reply, wait.reply.tau)]

    def wake(self, at: float) -> list[Effect]:
        """Wait no longer for those who do not get on."""
        effects: list[Effect] = []
        for id, wait in list(self._waits.items()):
            if at - wait.at >= BARRIER_SECONDS:
                self._stalled |= wait.peers
                del self._waits[id]
                effects.append(Answer(wait.client, wait.reply, wait.reply.tau))
        return effects


def touches_sequences(commit: WideCommit) -> bool:
    """Does it write a sequence's record?"""
    return any(key.startswith(_SEQUENCES) for key in commit.keys)
