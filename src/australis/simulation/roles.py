"""The processes of a simulated cluster around the product's decision code."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from australis.adjudicator import node as adjudicating
from australis.adjudicator.node import Append, Effect, Node, Reply, Send, Settings
from australis.adjudicator.recovery import KeyRange, RangeSet, Recovery
from australis.crossbar import follower as following
from australis.journal import validity
from australis.journal.record import START, Kind, Position, encode_record
from australis.partition_map import PartitionMap
from australis.protocol.messages import (
    CommitReply,
    Heartbeat,
    HeartbeatRequest,
    JournalBegins,
    ModeFlag,
    Outcome,
    RangeAcquired,
    RangeMove,
    Resolve,
    ResolveReply,
    WideCommit,
    decode_values,
    encode,
    wide_commit_decoder,
)
from australis.simulation.engine import CLUSTER, TIMEOUT, Engine, Stored, Writer
from australis.simulation.world import MS, HostClock, Process, World

T = 8 * MS
SETTINGS = Settings(vote=T, hold=40 * MS, resend=10 * MS, open=64, promises=64, parked=16, readers=64, floors=3)
_NO_VALUE = int(ModeFlag.LOCK_ONLY | ModeFlag.VALIDATE_ONLY)
READ_LIMIT = 150 * MS
"""How long a read waits for the watermark before it fails (W3)."""


class Cluster:
    """What everybody may look up: who serves, and the newest map."""

    def __init__(self, world: World, partition: PartitionMap) -> None:
        self.world = world
        self.map = partition
        self.system = partition.system
        self.engines: dict[int, Engine] = {}
        self.serving: dict[int, AdjudicatorProcess] = {}
        self.born: dict[int, int] = {}  # journal -> time of its beginning
        self.first_ranges = {number: partition.owned(number) for number in partition.adjudicators}
        self.shards: dict[int, list[ShardProcess]] = {}
        self.viewers: list[Viewer] = []
        self.processes = 0

    def serves(self, process: AdjudicatorProcess) -> None:
        """A generation serves; others hear of it at different times."""
        number = process.number
        if number in self.serving and self.serving[number].generation > process.generation:
            return
        self.serving[number] = process
        rng = self.world.rng
        for viewer in self.viewers:
            delay = int(rng.random() * 60 * MS) if rng.random() < 0.6 else 0
            self.world.at(delay, viewer.learn_owner, number, process)


class Viewer(Process):
    """A process that knows who serves, or did a moment ago."""

    def __init__(self, cluster: Cluster, name: str, clock: HostClock | None = None) -> None:
        super().__init__(cluster.world, name, clock)
        self.cluster = cluster
        self.serving = dict(cluster.serving)
        self.served: dict[int, AdjudicatorProcess] = {}  # who did before
        cluster.viewers.append(self)

    def kill(self) -> None:
        """End at once."""
        super().kill()
        if self in self.cluster.viewers:
            self.cluster.viewers.remove(self)

    def learn_owner(self, number: int, process: AdjudicatorProcess) -> None:
        """Somebody says who serves."""
        known = self.serving.get(number)
        if known is None or known.generation < process.generation:
            self.serving[number] = process
            if known is not None:
                self.served[number] = known


class AdjudicatorProcess(Viewer):
    """Hosts one generation of a Node: claims the journal, then serves."""

    def __init__(self, cluster: Cluster, number: int, clock: HostClock) -> None:
        cluster.processes += 1
        super().__init__(cluster, f"a{number}.{cluster.processes}", clock)
        self.number = number
        self.engine = cluster.engines[number]
        self.node: Node | None = None
        self._nonce = cluster.processes.to_bytes(16, "big")
        self._writer: Writer | None = None
        self._wake_at = 0
        self._claiming = 0
        self._over = False  # another generation owns the journal
        self._claim_again()

    # ------------------------------------------------------------------------------------------------ claiming

    def _claim_again(self) -> None:
        if self.node is None and not self._over:
            self._claiming += 1
            self.engine.read(self, 0, self._look_for_claim)
            self.later(2 * TIMEOUT, self._claim_timeout, self._claiming)

    def _claim_timeout(self, claiming: int) -> None:
        if claiming == self._claiming:
            self._claim_again()

    def _look_for_claim(self, _: int, records: list[Stored]) -> None:
        """A claim is recognised by its nonce, never by its number."""
        if self.node is not None or self._over:
            return
        recovery = self._recovery()
        validator = validity.Validator(CLUSTER, START)
        mine: tuple[Recovery, Position] | None = None
        for header, hash, body in records:
            entry = validator.add(header, hash, body)
            if entry is None:
                continue
            if entry.kind == Kind.CLAIM and entry.txid == self._nonce:
                mine = recovery, entry.position
                break
            recovery.add(entry)
        if mine is not None:
            if any(header.kind == Kind.CLAIM and header.generation > mine[1].generation for header, _, _ in records):
                self.kill()
                return
            self._serve(recovery, mine[1], records)
            return
        generation = validator.generation + 1
        last, floor = recovery.position, recovery.floor
        record = encode_record(
            Kind.CLAIM, 0, CLUSTER, generation, last.sequence + 1, last.hash, floor, floor, self._nonce,
            recovery.claim_body(),
        )  # fmt: skip
        self.engine.append(self, len(records), record, lambda stored, length: self._claim_again())

    def _recovery(self) -> Recovery:
        cluster = self.cluster
        return Recovery(cluster.first_ranges.get(self.number, []), cluster.born.get(self.number, 0))

    def _serve(self, recovery: Recovery, claim: Position, records: list[Stored]) -> None:
        length = next(
            index
            for index, (header, _, _) in enumerate(records)
            if header.kind == Kind.CLAIM and header.txid == self._nonce
        )
        self._claiming += 1
        self.node = adjudicating.Node(self.number, recovery.claimed(claim), self.cluster.map, SETTINGS)
        self._writer = Writer(self, self.engine, claim, length + 1, self._durable, self._deposed)
        self.serving[self.number] = self
        self.cluster.serves(self)
        self.world.note(f"{self.name} serves generation {claim.generation} floor {self.node.core.floor}")
        self._carry_out(self.node.start(self.clock.now()))

    @property
    def generation(self) -> int:
        """0 while it does not serve."""
        return self.node.generation if self.node is not None else 0

    # ------------------------------------------------------------------------------------------------- serving

    def receive(self, source: Process, message: Any) -> None:
        """Hand a message to the node."""
        node = self.node
        if node is None:
            return
        now = self.clock.now()
        if isinstance(message, bytes):
            self._carry_out(node.commit(source, wide_commit_decoder.decode(message), message, now))
        elif isinstance(message, CommitReply | Heartbeat | ResolveReply | JournalBegins):
            raise AssertionError(f"{self.name} got {message}")
        else:
            self._carry_out(node.receive(source, message, now))

    def _durable(self, positions: list[Position]) -> None:
        assert self.node is not None, "only a serving process writes"
        self._carry_out(self.node.durable(positions, self.clock.now()))

    def _deposed(self) -> None:
        """As the process does: nobody is answered any more, whoever waits asks the next owner."""
        self.world.note(f"{self.name} deposed")
        self.node, self._over = None, True

    def _wake(self, at: int) -> None:
        if at == self._wake_at and self.node is not None:
            self._wake_at = 0
            self._carry_out(self.node.wake(self.clock.now()))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Append):
                assert self._writer is not None, "it serves"
                self._writer.append(effect.kind, effect.flags, effect.tau, effect.horizon, effect.txid, effect.body)
            elif isinstance(effect, Reply):
                assert isinstance(effect.client, Process), "clients are processes here"
                if isinstance(effect.message, Heartbeat):
                    h, latest = effect.message.h, self.clock.now()[1]
                    assert h <= latest, f"W1: {self.name} promises {h}, its clock says {latest}"
                self.send(effect.client, effect.message)
            elif isinstance(effect, Send):
                to = self.serving.get(effect.to)
                if to is not None:
                    self.send(to, effect.message)
            else:
                self.world.note(f"{self.name} alarm")
        assert self.node is not None, "effects come from it"
        due = self.node.wake_at
        if due is not None:
            at = self.world.now + max(due - self.clock.now()[0], 0) + 1
            if self._wake_at == 0 or at < self._wake_at:
                self._wake_at = at
                self.later(at - self.world.now, self._wake, at)

    # ---------------------------------------------------------------------------------------- the control plane

    def release(self, lo: bytes, hi: bytes, target: int) -> None:
        """Move a range; the newest map says so a little later."""
        if self.node is None:
            return
        refusal, effects = self.node.release(lo, hi, target, self.clock.now())
        self.world.note(f"{self.name} releases {lo.hex()}..{hi.hex()} to {target}: {refusal or 'begun'}")
        self._carry_out(effects)
        if not refusal:
            self.world.at(1 * MS, self._publish, lo, hi, target, 500)

    def _publish(self, lo: bytes, hi: bytes, target: int, tries: int) -> None:
        """The map follows the journals: once the new owner says that it is, not before."""
        cluster = self.cluster
        owner = cluster.serving.get(target)
        if owner is None or owner.node is None or not owner.node.ranges.covers(lo, hi):
            if tries:
                self.world.at(1 * MS, self._publish, lo, hi, target, tries - 1)
            return
        cluster.map = cluster.map.moved(lo, hi, target)
        for process in list(cluster.serving.values()):
            if process.node is not None:
                self.world.at(int(self.world.rng.random() * 4 * MS), process.learn_map, cluster.map)

    def learn_map(self, partition: PartitionMap) -> None:
        """A newer map has arrived."""
        if self.node is not None and partition.version > self.node.map.version:
            self.node.map = partition

    def hand_over(self) -> None:
        """Planned end."""
        if self.node is not None:
            self._carry_out(self.node.hand_over(self.clock.now()))

    def announce(self, control: Process, journal: int) -> None:
        """Write down that another journal begins."""
        if self.node is not None:
            self._carry_out(self.node.begin_journal(control, journal, self.clock.now()))


# --------------------------------------------------------------------------------------------------------- storage


class Read(msgspec.Struct, frozen=True, gc=False):
    """Read keys and whole ranges as of tau."""

    id: int
    tau: int
    keys: list[bytes]
    ranges: list[KeyRange]


class ReadReply(msgspec.Struct, frozen=True, gc=False):
    """Values by key; of ranges, the keys that exist. Nothing else is ever answered, only later (S1, W3).

    `newest`: the largest time of a version (tombstones too) that decided about any of it.
    """

    id: int
    newest: int
    values: dict[bytes, bytes | None]
    ranges: dict[KeyRange, dict[bytes, bytes]]


class ShardProcess(Viewer):
    """A replica of a shard, fed by a crossbar of its own."""

    def __init__(self, cluster: Cluster, number: int, ranges: list[KeyRange]) -> None:
        cluster.processes += 1
        super().__init__(cluster, f"s{number}.{cluster.processes}")
        self._ranges = RangeSet(ranges)
        self.versions: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self.applied = 0
        self._reads: list[tuple[Process, Read, int]] = []
        self._asking = False
        self._restart()

    def _restart(self) -> None:
        cluster = self.cluster
        self.follower = following.Follower(CLUSTER, cluster.system, sorted(cluster.first_ranges))
        self._read_to: dict[int, int] = {}
        self._follow_new()

    def _follow_new(self) -> None:
        for journal in self.follower.journals:
            if journal not in self._read_to:
                self._read_to[journal] = 0
                engine = self.cluster.engines[journal]
                if self._notified not in engine.subscribers:
                    engine.subscribers.append(self._notified)
                self._pull(engine, len(engine.log))

    def lose_unsynced(self) -> None:
        """Crash: what is left is the state of some earlier moment, data and applied time alike (S1)."""
        back = self.applied - int(self.world.rng.random() * 30 * MS)
        self.world.note(f"{self.name} loses what it applied above {back}")
        self.roll_back(back)
        self._restart()

    def roll_back(self, tau: int) -> None:
        """The file as it was when it had applied tau."""
        self.applied = max(0, min(self.applied, tau))
        for versions in self.versions.values():
            while versions and versions[-1][0] > self.applied:
                versions.pop()

    def _notified(self, engine: Engine) -> None:
        world = self.world
        delay = world.delay()
        if world.chance(0.03):
            delay += int(world.rng.random() * 20 * MS)
        self.later(delay, self._pull, engine, len(engine.log))

    def _pull(self, engine: Engine, until: int) -> None:
        """Records arrive in the order of their journal."""
        journal = engine.journal
        start = self._read_to.get(journal)
        if start is None or start >= until:
            return
        self._read_to[journal] = until
        for header, hash, body in engine.log[start:until]:
            self.follower.record(journal, header, hash, body)
        if len(self._read_to) < len(self.follower.journals):
            self._follow_new()
        self._apply()

    def _apply(self) -> None:
        follower = self.follower
        for tau, entry in follower.take():
            if entry.kind == Kind.TRANSACTION and tau > self.applied:
                self._write(tau, entry.body)
        watermark = follower.watermark
        if watermark > self.applied:
            self.applied = watermark
            if self._reads:
                waiting, self._reads = self._reads, []
                for source, read, deadline in waiting:
                    self._serve(source, read, deadline)

    def _write(self, tau: int, body: bytes) -> None:
        commit = wide_commit_decoder.decode(body)
        for key, mode, value in zip(commit.keys, commit.modes, decode_values(commit), strict=True):
            if not mode & _NO_VALUE and self._ranges.holds(key):
                versions = self.versions.setdefault(key, [])
                if not versions or versions[-1][0] < tau:
                    versions.append((tau, value))

    def receive(self, source: Process, message: Any) -> None:
        """Reads and heartbeats."""
        if isinstance(message, Read):
            self._serve(source, message, self.world.now + READ_LIMIT)
        elif isinstance(message, Heartbeat):
            self.follower.heartbeat(message)
            self._apply()

    def _serve(self, source: Process, read: Read, deadline: int) -> None:
        if self.applied < read.tau:
            if self.world.now < deadline and len(self._reads) < 100:
                self._reads.append((source, read, deadline))
                if not self._asking:
                    self._ask()
            return
        values, newest = self._get(read.keys, read.tau)
        ranges = {}
        for lo, hi in read.ranges:
            found, time = self._get(sorted(key for key in self.versions if lo <= key < hi), read.tau)
            ranges[lo, hi] = {key: value for key, value in found.items() if value is not None}
            newest = max(newest, time)
        self.send(source, ReadReply(read.id, newest, values, ranges))

    def _get(self, keys: list[bytes], tau: int) -> tuple[dict[bytes, bytes | None], int]:
        values: dict[bytes, bytes | None] = {}
        newest = 0
        for key in keys:
            values[key] = None
            for at, value in reversed(self.versions.get(key, ())):
                if at <= tau:
                    values[key] = value
                    newest = max(newest, at)
                    break
        return values, newest

    def _ask(self) -> None:
        """Somebody waits: ask all adjudicators for heartbeats, until nobody waits any more."""
        now = self.world.now
        self._reads = [item for item in self._reads if item[2] > now]
        self._asking = bool(self._reads)
        if not self._asking:
            return
        wanted = max(read.tau for _, read, _ in self._reads)
        for journal in self.follower.journals:
            serving = self.serving.get(journal)
            if serving is not None:
                self.send(serving, HeartbeatRequest(wanted))
        self.later(6 * MS, self._ask)


# ------------------------------------------------------------------------------------------------- query processor


@dataclass(slots=True)
class Ask:
    """What a transaction wants to read; the generator gets back (values by key, rows by range)."""

    keys: list[bytes] = field(default_factory=list)
    ranges: list[KeyRange] = field(default_factory=list)


@dataclass(slots=True)
class Plan:
    """How a transaction ends: what it commits. Nothing to write: nothing is sent (A7)."""

    writes: list[tuple[bytes, int, Any]] = field(default_factory=list)  # key, mode byte, value
    checks: list[tuple[bytes, bytes, int]] = field(default_factory=list)
    relations: list[int] = field(default_factory=list)
    ddl: tuple[int, list[int], list[int]] | None = None
    scans: list[int] = field(default_factory=list)
    parts: list[KeyRange] = field(default_factory=list)
    note: Any = None  # for the oracle of the workload


Got = tuple[dict[bytes, Any], dict[KeyRange, dict[bytes, Any]]]
Script = Generator[Ask, Got, Plan]


@dataclass(slots=True)
class Transaction:
    """What the oracle knows of one transaction. `outcome`: committed, aborted, unknown, or open at the end."""

    txid: bytes
    process: str
    workload: str
    start: int
    tau_start: int = 0
    end: int = 0
    outcome: str = "open"
    detail: str = ""
    tau: int = 0
    reads: dict[bytes, Any] = field(default_factory=dict)
    ranges: dict[KeyRange, dict[bytes, Any]] = field(default_factory=dict)
    plan: Plan | None = None


class Session(Viewer):
    """One session of a query processor: transactions one after the other."""

    def __init__(
        self,
        cluster: Cluster,
        number: int,
        clock: HostClock,
        scripts: Callable[[Session], tuple[str, Script]],
        transactions: int,
        history: list[Transaction],
    ) -> None:
        super().__init__(cluster, f"q{number}", clock)
        self.number = number
        self.history = history
        self.map = cluster.map
        self.told = 0  # largest commit time this session was told
        self.left = transactions
        self._scripts = scripts
        self._count = 0
        self._reads = 0
        self._waiting: dict[int, tuple[Any, Read]] = {}
        self._newest = 0  # largest time of a version that the transaction has seen
        self._values: dict[bytes, Any] = {}
        self._rows: dict[KeyRange, dict[bytes, Any]] = {}
        self._script: Script | None = None
        self._leader = 0
        self._generation = 0
        self.transaction: Transaction | None = None
        self._idle()

    def _idle(self) -> None:
        self.transaction = None
        if self.left > 0:
            self.left -= 1
            self.later(int(self.world.rng.random() * 8 * MS), self._begin)

    def _begin(self) -> None:
        self._count += 1
        # random bytes at the end: they decide how long the leader pauses between attempts
        txid = self.number.to_bytes(4, "big") + self._count.to_bytes(4, "big") + self.world.rng.randbytes(8)
        name, self._script = self._scripts(self)
        transaction = Transaction(txid, self.name, name, self.world.now)
        transaction.tau_start = self.snapshot_time()
        self._newest = 0
        self.transaction = transaction
        self.history.append(transaction)
        self.world.note(f"{self.name} begins {name} {txid[-2:].hex()} tau_start {transaction.tau_start}")
        self._go_on(None)

    def snapshot_time(self) -> int:
        """T2: the own latest, and never below what the session was told."""
        return max(self.clock.now()[1], self.told)

    def _go_on(self, got: Got | None) -> None:
        assert self._script is not None, "a transaction runs"
        try:
            ask = next(self._script) if got is None else self._script.send(got)
        except StopIteration as end:
            self._commit(end.value)
            return
        self._values, self._rows = {}, {}
        self._waiting.clear()
        shares: dict[int, Read] = {}
        transaction = self.transaction
        assert transaction is not None, "a transaction runs"
        for key in ask.keys:
            self._share(shares, self.map.shard(key), transaction.tau_start).keys.append(key)
        for lo, hi in ask.ranges:
            for piece in self.map.shard_pieces(lo, hi):
                self._share(shares, piece.owner, transaction.tau_start).ranges.append((piece.lo, piece.hi))
        for shard, read in shares.items():
            self._waiting[read.id] = shard, read
            self._send_read(shard, read)
        self.later(READ_LIMIT, self._read_failed, transaction, self._reads)

    def _share(self, shares: dict[int, Read], shard: int, tau: int) -> Read:
        if shard not in shares:
            self._reads += 1
            shares[shard] = Read(self._reads, tau, [], [])
        return shares[shard]

    def _send_read(self, shard: int, read: Read) -> None:
        """Ask one of the replicas; another one if there is no answer in time."""
        if read.id in self._waiting:
            self.send(self.world.rng.choice(self.cluster.shards[shard]), read)
            self.later(20 * MS, self._send_read, shard, read)

    def _read_failed(self, transaction: Transaction, reads: int) -> None:
        if self.transaction is transaction and self._waiting and reads == self._reads:
            self._waiting.clear()
            self._finish("aborted", 0, "no fresh snapshot in time")

    def receive(self, source: Process, message: Any) -> None:
        """Answers of shards and adjudicators."""
        transaction = self.transaction
        if isinstance(message, ReadReply):
            if self._waiting.pop(message.id, None) is not None:
                for key, value in message.values.items():
                    self._values[key] = None if value is None else msgspec.msgpack.decode(value)
                for span, rows in message.ranges.items():
                    self._rows[span] = {key: msgspec.msgpack.decode(value) for key, value in rows.items()}
                self._newest = max(self._newest, message.newest)
                if not self._waiting and transaction is not None:
                    transaction.reads.update(self._values)
                    transaction.ranges.update(self._rows)
                    self._go_on((self._values, self._rows))
        elif transaction is None or transaction.plan is None or message.txid != transaction.txid:
            return
        elif isinstance(message, CommitReply):
            self.answered(transaction, message)
        elif isinstance(message, ResolveReply):
            self._resolved(transaction, message)

    def answered(self, transaction: Transaction, message: CommitReply) -> None:
        """The outcome of a commit."""
        if message.outcome == Outcome.COMMITTED:
            self._committed(transaction, message.tau)
        else:
            if message.outcome == Outcome.REFUSED:
                self.map = self.cluster.map
            self._finish("aborted", 0, message.detail)

    def _commit(self, plan: Plan) -> None:
        transaction = self.transaction
        assert transaction is not None, "a transaction runs"
        if self.world.chance(self.world.faults.think):  # somebody thinks before COMMIT
            self.later(int(self.world.rng.random() * 25 * MS), self._send_commit, transaction, plan)
        else:
            self._send_commit(transaction, plan)

    def _send_commit(self, transaction: Transaction, plan: Plan) -> None:
        transaction.plan = plan
        if self.world.chance(0.5):
            self.map = self.cluster.map
        if not plan.writes:
            self._finish("committed", 0, "read only")
            return
        leader = self._choose(plan)
        serving = self.serving.get(leader)
        if serving is None:
            self._finish("aborted", 0, "no adjudicator")
            return
        self._leader, self._generation = leader, serving.generation
        commit = WideCommit(
            serving.generation,
            transaction.txid,
            1,
            transaction.tau_start,
            0,
            [key for key, _, _ in plan.writes],
            bytes(mode for _, mode, _ in plan.writes),
            msgspec.Raw(
                msgspec.msgpack.encode(
                    [
                        None if mode & (_NO_VALUE | ModeFlag.DELETE) else msgspec.msgpack.encode(value)
                        for _, mode, value in plan.writes
                    ]
                )
            ),
            plan.checks,
            plan.relations,
            plan.ddl,
            [],
            plan.scans,
            plan.parts,
            leader,
        )
        body = encode(commit)
        self.send(serving, body)
        if self.world.chance(self.world.faults.double):  # a copy that finds its way to whoever serves then
            self.later(int(self.world.rng.random() * 60 * MS), self._echo, body)
        self.later((25 if not self.world.calm else 100) * MS, self._resolve, transaction, 0)

    def _echo(self, body: bytes) -> None:
        serving = self.serving.get(self._leader)
        if serving is not None:
            self.send(serving, body)

    def _choose(self, plan: Plan) -> int:
        """M1: the owner of most keys; of the system range when there is DDL."""
        if plan.ddl is not None:
            return self.map.system
        counts: dict[int, int] = {}
        for key, mode, _ in plan.writes:
            if not mode & ModeFlag.BLIND:
                owner = self.map.adjudicator(key)
                counts[owner] = counts.get(owner, 0) + 1
        return max(sorted(counts), key=lambda owner: counts[owner])

    def _resolve(self, transaction: Transaction, tries: int) -> None:
        if transaction is not self.transaction or transaction.outcome != "open":
            return
        if tries == 8 and not self.world.calm:
            self._finish("unknown", 0, "08007")
            return
        serving = self.serving.get(self._leader)
        if self._leader in self.served and self.world.chance(0.1):
            serving = self.served[self._leader]  # somebody told us wrong
        if serving is not None:
            self.send(serving, Resolve(transaction.txid, transaction.tau_start, self._generation, self._leader))
        self.later(15 * MS, self._resolve, transaction, tries + 1)

    def _resolved(self, transaction: Transaction, message: ResolveReply) -> None:
        if message.outcome == Outcome.COMMITTED:
            self._committed(transaction, message.tau)
        elif message.outcome == Outcome.KILLED:
            self._finish("aborted", 0, "killed")

    def _committed(self, transaction: Transaction, tau: int) -> None:
        """A6: the client hears of it once the own earliest has reached its time."""
        if transaction.outcome != "open":
            return
        wait = self.must_wait(tau)
        if wait > 0:
            self.later(wait, self._committed, transaction, tau)
            return
        self.told = max(self.told, tau)
        self._finish("committed", tau, "")

    def must_wait(self, tau: int) -> int:
        """How long until the client may be told of a commit at tau."""
        return tau - self.clock.now()[0]

    def must_wait_seen(self, tau: int) -> int:
        """How long until the client may be told of something read at tau."""
        return tau - self.clock.now()[0]

    def _finish_seen(self, transaction: Transaction, outcome: str, tau: int, detail: str) -> None:
        if transaction is self.transaction:
            self._finish(outcome, tau, detail)

    def _finish(self, outcome: str, tau: int, detail: str) -> None:
        """A transaction ends for its client once the own earliest has reached all that it saw.

        Like A6 for writers: a commit may be visible to a fast clock's snapshot before it is to a slow one's, so who has
        seen it must not say so earlier. (W1 alone allows h up to an adjudicator's latest.)
        """
        transaction = self.transaction
        if transaction is None or transaction.outcome != "open":
            return
        wait = self.must_wait_seen(self._newest)
        if wait > 0:
            self.later(wait, self._finish_seen, transaction, outcome, tau, detail)
            return
        transaction.outcome, transaction.tau, transaction.detail = outcome, tau, detail
        transaction.end = self.world.now
        self.world.note(f"{self.name} {outcome} {transaction.txid[-2:].hex()} tau {tau} {detail}")
        self._script = None
        self._idle()


__all__ = ["AdjudicatorProcess", "Cluster", "RangeAcquired", "RangeMove", "Session", "ShardProcess"]
