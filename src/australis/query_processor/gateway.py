"""The gateway: one process per host of query processors; it runs PostgreSQL and speaks to the cluster for it.

    PostgreSQL -- commit.sock, storage.sock, page --> gateway --> adjudicators, crossbars, storage replicas
                                                         \\--> the other gateways, control plane

Towards PostgreSQL it is both services of the embedded cluster (docs/formats.md §6, §7) and answers Snapshot as well;
what it decides is in `plane`, this is the edge: sockets, page, timers, processes. What must hold:
- the page shows a time before anybody is told of it; its word GATEWAY is set before PostgreSQL starts;
- nothing of a time is told to a client before the own clock's earliest has reached it (A6);
- answers on a connection keep the order of its requests; large messages are read when there is memory for them.

If this process dies its query processors die with it, and only their sessions. If an adjudicator, a crossbar or a
replica is away, requests wait (cancellable) for another or for its return, then fail with 57P03. Leftovers of a run
that was killed are ended before the next one begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import heapq
import itertools
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import structlog
from prometheus_client import Histogram

from australis.clock import Clock, open_clock
from australis.control_plane.layout import ClusterError
from australis.control_plane.processes import Child, end_leftovers
from australis.control_plane.supervisor import Service
from australis.errors import AustralisError, ProtocolError
from australis.files import write_atomically
from australis.journal.record import Kind
from australis.keyspace import SystemRelation, relation_range
from australis.observe import Observed, observed
from australis.page import PROCESSORS, SharedPage, Word, process_lives
from australis.partition_map import PartitionMap
from australis.process import announce
from australis.protocol.messages import (
    CatalogDone,
    CatalogWait,
    CommitReply,
    Drop,
    Error,
    FeedStatus,
    Get,
    GetMap,
    GetReply,
    Hello,
    Ingest,
    IngestReply,
    MapReply,
    OldestSnapshot,
    Outcome,
    ReadStatus,
    Resolve,
    ResolveReply,
    Scan,
    ScanReply,
    ShardRecord,
    ShardStart,
    ShardSubscribe,
    Snapshot,
    SnapshotReply,
    Stats,
    StatsReply,
    Status,
    StatusReply,
    WantWatermark,
    Watermark,
    WideCommit,
    check_ingest,
    relations_of,
    wide_commit_decoder,
)
from australis.query_processor import installation, settings
from australis.query_processor.gateway_pool import PooledProcessors
from australis.query_processor.launcher import QueryProcessor, free_port
from australis.query_processor.plane import (
    Answer,
    Ask,
    Barrier,
    Client,
    Commits,
    Decision,
    Effect,
    Loaded,
    Local,
    Publish,
    Reads,
    Send,
    TellPeer,
    Timeline,
    Want,
    entries,
    touches_sequences,
)
from australis.role_config import RoleConfig, identity_of
from australis.traces import NoTraces
from australis.transport import Address, Connection, Identity, Link, Server, listen

LARGE_BUDGET = 1 << 30
"""Bytes of large messages that may be in memory at once; the next one is not read until there is room."""

MAX_QUEUED = 1000
"""Reads of one connection that are not answered."""

TICK_SECONDS = 0.05
APPLIED_POLL_SECONDS = 0.002
CATALOG_SECONDS = 5.0
OLDEST_SECONDS = 1.0
SNAPSHOT_GRACE = 5
"""Seconds for which a snapshot may be in use before its backend's slot shows it."""

LIVE_SECONDS = 120.0
POSTGRESQL_READY = 60.0
REBUILD_AFTER = 2

DDL_RANGE = relation_range(SystemRelation.DDL)
SEQUENCE_RANGE = relation_range(SystemRelation.SEQUENCES)

log = structlog.get_logger()

QueryMessage = Hello | WideCommit | Resolve | Ingest | Drop | Snapshot | Status
_query_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    Resolve | Ingest | Drop | Snapshot | Status | WideCommit
)
_read_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Get | Scan | Stats | Status)
_adjudicator_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    CommitReply | ResolveReply | IngestReply | Error | StatusReply
)
_replica_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    GetReply | ScanReply | StatsReply | Error | StatusReply
)
MAX_ASKED = 10_000
CROSSBAR_SILENCE = 1.5
"""Seconds after which a crossbar that says nothing is left: it says something four times a second."""

_crossbar_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    ShardStart | ShardRecord | Watermark | Error | StatusReply
)
_peer_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    CatalogWait | CatalogDone | Status | StatusReply | Error
)
_control_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(MapReply | Error | StatusReply)


class _Asker(Protocol):
    """Whoever is answered: a connection of a backend, or ourselves."""

    def answer(self, message: msgspec.Struct) -> None: ...


class Gateway:
    """The services of one host, without PostgreSQL itself."""

    def __init__(self, config: RoleConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.cluster = config.cluster_id
        self.clock: Clock = clock if clock is not None else open_clock(config.clock.source, config.clock.max_error)
        self.run = Path(config.run)
        self.map: PartitionMap = config.partition_map
        self.timeline = Timeline()
        self.commits = Commits(self.map)
        self.reads = Reads(self.map)
        self.barrier = Barrier()
        self.live = asyncio.Event()
        self.failed: asyncio.Future[AustralisError] = asyncio.get_running_loop().create_future()
        self.page: SharedPage
        self.generation = 0
        self._loop = asyncio.get_running_loop()
        self._links: list[Link] = []
        self._servers: list[Server] = []
        self._adjudicators: dict[int, Link] = {}
        self._replicas: dict[str, Link] = {}
        self._peers: dict[str, Link] = {}
        self._seen: Observed | None = None
        self._asked: dict[object, int] = {}  # commit or snapshot -> when, in ns
        self._seconds: dict[type[msgspec.Struct], Histogram] = {}
        self._crossbar: _Subscription
        self._held: list[tuple[int, int, Client, msgspec.Struct]] = []  # until the clock's earliest has reached a time
        self._numbers = itertools.count()
        self._held_timer: asyncio.TimerHandle | None = None
        self._reads_timer: asyncio.TimerHandle | None = None
        self._reads_at = 0.0
        self._locals: list[tuple[Connection, int, int, float]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._budget = LARGE_BUDGET
        self._large: deque[_QueryClient] = deque()
        self._rung = -1
        self._closing = False
        self._watermarks: deque[int] = deque(maxlen=SNAPSHOT_GRACE)
        self._started = time.monotonic()
        self.more_status: Callable[[], dict[str, int | float | str]] = dict

    # ------------------------------------------------------------------------------------------------ life cycle

    async def start(self) -> None:
        """Connect to everybody and listen. Raises AustralisError, OSError."""
        config = self.config
        self.generation = _count_start(Path(config.data))
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.page = SharedPage(self.run / "page", self.cluster)
        self.page.store(Word.GENERATION, self.generation)
        self.page.store(Word.GATEWAY, 1)
        identity = identity_of(config)
        peers = config.peers
        for number, addresses in peers.adjudicators.items():
            link = self._link(addresses, identity, _Adjudicator(self, int(number)), serving=True)
            self._adjudicators[int(number)] = link
        for name, address in peers.storage.items():
            self._replicas[name] = self._link([address], identity, _Replica(self, name))
        for name, address in peers.gateways.items():
            if name != config.name:
                self._peers[name] = self._link([address], identity, _Peer(self, name))
        self._crossbar = _Subscription(self)
        self._crossbar.link = self._link(
            _turned(peers.crossbars, config.number), identity, self._crossbar, silence=CROSSBAR_SILENCE
        )
        if peers.control:
            self._link(peers.control, identity, _Control(self))
        if config.listen:
            self._servers.append(await listen(Address.parse(config.listen), identity, lambda: _FromPeer(self)))
        for name, role, accept in (
            ("commit.sock", "commit", lambda: _QueryClient(self)),
            ("storage.sock", "storage", lambda: _ReadClient(self)),
        ):
            local = Identity(self.cluster, role, config.name, lambda: self.generation)
            place = Address(path=str(self.run / name))
            self._servers.append(await listen(place, local, accept, large=_arriving))
        self.background(self._tick(), "gateway timers")
        self.background(self._report_oldest(), "gateway oldest snapshot")

    def _link(
        self,
        addresses: list[str],
        identity: Identity,
        handler: Any,
        *,
        serving: bool = False,
        silence: float | None = None,
    ) -> Link:
        wanted: Callable[[Any], bool] = (lambda peer: peer.generation != 0) if serving else (lambda peer: True)
        link = Link([Address.parse(text) for text in addresses], identity, handler, wanted=wanted, silence=silence)
        self._links.append(link)
        link.start()
        return link

    def background(self, body: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run beside everything else until the end; an error ends the gateway."""
        task = asyncio.create_task(body, name=name)
        self._tasks.append(task)
        self.watch(task)
        return task

    def watch(self, task: asyncio.Task[None]) -> None:
        """An error of this task ends the gateway."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
                log.error("gateway.failed", task=task.get_name(), error=repr(error))
                self.failed.set_result(AustralisError(f"{task.get_name()}: {error!r}"))

        task.add_done_callback(ended)

    async def close(self) -> None:
        """Stop."""
        self.serves(False)
        self._closing = True
        self.page.store(Word.STORAGE_PID, 0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.close()
        for link in self._links:
            await link.close()
        for timer in (self._held_timer, self._reads_timer):
            if timer is not None:
                timer.cancel()
        for name in ("commit.sock", "storage.sock"):
            (self.run / name).unlink(missing_ok=True)
        self.page.close()

    # ------------------------------------------------------------------------------------------------------ time

    def now(self) -> tuple[int, int]:
        """Of the clock."""
        return self.clock.now()

    @property
    def at(self) -> float:
        """Of time limits."""
        return self._loop.time()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            at = self.at
            self.carry_out(self.timeline.wake(at))
            self.carry_out(self.commits.wake(at))
            self.carry_out(self.barrier.wake(at))

    async def _report_oldest(self) -> None:
        """Tell storage which versions are still read here (S4)."""
        while True:
            await asyncio.sleep(OLDEST_SECONDS)
            if not self.timeline.live:
                continue
            self._watermarks.append(self.timeline.watermark)
            oldest = self.page.oldest_slot()
            oldest = min(oldest, self._watermarks[0]) if oldest is not None else self._watermarks[0]
            for link in self._replicas.values():
                link.send(OldestSnapshot(oldest))

    # --------------------------------------------------------------------------------------------------- effects

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Do what was decided, in order."""
        for effect in effects:
            if isinstance(effect, Answer):
                self.answer(effect.client, effect.message, effect.tau)
            elif isinstance(effect, Ask):
                link = self._replicas.get(effect.replica)
                if link is not None:
                    link.send(effect.message)
            elif isinstance(effect, Send):
                adjudicator = self._adjudicators.get(effect.to)  # a newer map may name one that we do not know
                if adjudicator is not None:
                    adjudicator.send(effect.message)
            elif isinstance(effect, Want):
                self._crossbar.want(effect.tau)
            elif isinstance(effect, Publish):
                self._publish(effect.tau, effect.ddl)
            elif isinstance(effect, Decision):
                self._decided(effect)
            elif isinstance(effect, Loaded):
                self.give_back(effect.budget)
                if effect.client is not None:
                    reply = effect.reply
                    told = Answer(effect.client, reply, reply.tau)
                    self.carry_out(self.timeline.when(reply.tau, told) if reply.tau else [told])
            elif isinstance(effect, TellPeer):
                if not self._peers[effect.peer].send(effect.message):
                    self.carry_out(self.barrier.down(effect.peer))
            else:
                assert isinstance(effect.client, Connection), "another gateway asks over one"
                self._locals.append((effect.client, effect.id, effect.n, self.at))
                if len(self._locals) == 1:
                    self._look_at_processors()
        self._schedule_reads()

    def answer(self, client: Client, message: msgspec.Struct, tau: int) -> None:
        """Answer, once our clock says that it is later than tau everywhere (A6)."""
        if client is None:
            return
        if tau and tau > self.clock.now()[0]:
            heapq.heappush(self._held, (tau, next(self._numbers), client, message))
            self._schedule_held()
            return
        if self._seen is not None:
            self._answered(client, message, self._seen)
        cast(_Asker, client).answer(message)

    def observe(self, seen: Observed) -> None:
        """Show latencies and traces from now on."""
        if not seen.measured and isinstance(seen.traces, NoTraces):
            return
        self._seconds = {
            CommitReply: seen.metrics.histogram("commit_seconds", "From a backend's COMMIT to its answer"),
            SnapshotReply: seen.metrics.histogram("snapshot_seconds", "Until a transaction has its snapshot"),
        }
        self._seen = seen

    def asked(self, client: Client, message: WideCommit | Snapshot) -> None:
        """A backend waits for an answer; its latency is of interest."""
        if self._seen is None:
            return
        if len(self._asked) >= MAX_ASKED:
            self._asked.clear()  # of backends that went away
        name = message.txid if isinstance(message, WideCommit) else (client, message.id)
        self._asked[name] = time.time_ns()

    def _answered(self, client: Client, message: msgspec.Struct, seen: Observed) -> None:
        if not isinstance(message, CommitReply | SnapshotReply):
            return
        name = message.txid if isinstance(message, CommitReply) else (client, message.id)
        asked, now = self._asked.pop(name, 0), time.time_ns()
        if asked:
            self._seconds[type(message)].observe((now - asked) / 1e9)
            if isinstance(message, CommitReply) and seen.traces.wants(message.txid):
                outcome = Outcome(message.outcome).name.lower()
                seen.traces.span("commit", message.txid, asked, now, outcome=outcome)

    def _schedule_held(self) -> None:
        if self._held_timer is None and self._held:
            wait = max(self._held[0][0] - self.clock.now()[0], 0) / 1e9
            self._held_timer = self._loop.call_later(wait, self._answer_held)

    def _answer_held(self) -> None:
        self._held_timer = None
        earliest = self.clock.now()[0]
        while self._held and self._held[0][0] <= earliest:
            _, _, client, message = heapq.heappop(self._held)
            cast(_Asker, client).answer(message)
        self._schedule_held()

    def _schedule_reads(self) -> None:
        due = self.reads.wake_at
        if due is None or (self._reads_timer is not None and self._reads_at <= due):
            return
        if self._reads_timer is not None:
            self._reads_timer.cancel()
        self._reads_at = due
        self._reads_timer = self._loop.call_at(due, self._wake_reads)

    def _wake_reads(self) -> None:
        self._reads_timer = None
        self.carry_out(self.reads.wake(self.at))

    def _publish(self, tau: int, ddl: int) -> None:
        """Into the page: first what storage can be asked for, then what is committed."""
        page = self.page
        page.store(Word.APPLIED, tau)
        page.publish(tau, ddl)
        page.wake(Word.APPLIED)
        if ddl > self._rung:
            self._rung = ddl
            self._ring(2)
        if not self.live.is_set():
            page.store(Word.STORAGE_PID, os.getpid())
            self.serves(True)
            self.live.set()

    def serves(self, yes: bool) -> None:
        """Tell query processors whether the cluster can be asked at all."""
        if not self._closing:
            self.page.store(Word.COMMIT_PID, os.getpid() if yes else 0)

    def _ring(self, word: int) -> None:
        """Wake who applies schema changes. Any other value will do, and backends write it too."""
        for number in range(PROCESSORS):
            at = Word.PROCESSORS + 4 * number + word
            self.page.store(at, time.time_ns())
            self.page.wake(at)

    def sequences_changed(self) -> None:
        """Another host wrote a sequence's record: whoever draws looks at it again."""
        self.page.store(Word.SETVALS, time.time_ns())

    def _decided(self, decision: Decision) -> None:
        self.give_back(decision.budget)
        reply, commit = decision.reply, decision.commit
        if decision.client is None:
            return
        if reply.outcome == Outcome.COMMITTED and (commit.ddl is not None or touches_sequences(commit)):
            n = commit.ddl[0] if commit.ddl is not None else 0
            self.carry_out(self.barrier.begin(decision.client, reply, n, self.at))
        else:
            self.answer(decision.client, reply, reply.tau)

    # -------------------------------------------------------------------------------------------- other gateways

    def _look_at_processors(self) -> None:
        """Tell other gateways when the query processors here have their record. The page cannot call us."""
        page = self.page
        applied = [
            page.load(Word.PROCESSORS + 4 * number + 1)
            for number in range(PROCESSORS)
            if process_lives(page.load(Word.PROCESSORS + 4 * number))
        ]
        least = min(applied) if applied else None
        left = []
        for connection, id, n, since in self._locals:
            if least is None or n <= least:
                connection.send(CatalogDone(id))
            elif self.at - since < CATALOG_SECONDS:
                left.append((connection, id, n, since))
        self._locals = left
        if left:
            self._loop.call_later(APPLIED_POLL_SECONDS, self._look_at_processors)

    def new_map(self, encoded: bytes) -> None:
        """The control plane has a map for us."""
        partition = PartitionMap.decode(encoded)
        if partition.version <= self.map.version:
            return
        log.info("gateway.map", version=partition.version)
        self.map = partition
        self.reads.new_map(partition)
        self.carry_out(self.commits.new_map(partition))

    # ----------------------------------------------------------------------------------------------------- memory

    def take_budget(self, client: _QueryClient, size: int) -> bool:
        """May a large message be read now? If not, the client is called when it may."""
        if self._budget >= size or self._budget == LARGE_BUDGET:
            self._budget -= size
            return True
        self._large.append(client)
        return False

    def give_back(self, size: int) -> None:
        """A large message is done with."""
        if not size:
            return
        self._budget += size
        while self._large:
            client = self._large[0]
            if self._budget < client.arriving and self._budget != LARGE_BUDGET:
                return
            self._large.popleft()
            self._budget -= client.arriving
            client.granted()

    def leave(self, client: _QueryClient) -> None:
        """It no longer waits for memory."""
        if client in self._large:
            self._large.remove(client)

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status`."""
        timeline, commits, reads = self.timeline, self.commits, self.reads
        return {
            "pid": os.getpid(),
            "uptime": time.monotonic() - self._started,
            "generation": self.generation,
            "live": int(timeline.live),
            "watermark_tau": timeline.watermark,
            "watermark_lag": max(0, self.now()[0] - timeline.watermark) / 1e9,
            "ddl": timeline.ddl,
            "map_version": self.map.version,
            "snapshots": timeline.snapshots,
            "snapshot_rounds": timeline.rounds,
            "snapshots_waiting": timeline.waiting,
            "commits": commits.commits,
            "refusals": commits.refusals,
            "resolved": commits.learned,
            "commits_open": commits.open,
            "adjudicators": len(commits.serving),
            "reads": reads.reads,
            "reads_open": reads.open,
            "hedged": reads.hedged,
            "retried": reads.retried,
            "reads_refused": reads.refused,
            **self.more_status(),
        }


def _turned(addresses: list[str], number: int) -> list[str]:
    """Begin with another one than the other gateways do."""
    first = number % len(addresses) if addresses else 0
    return addresses[first:] + addresses[:first]


def _count_start(data: Path) -> int:
    """How often a gateway has begun on this directory, this time included."""
    file = data / "starts"
    try:
        count = int(file.read_text(encoding="ascii"))
    except FileNotFoundError:
        count = 0
    except ValueError:
        raise ClusterError(f"{file} is damaged; remove it") from None
    write_atomically(file, str(count + 1).encode(), 0o600)
    return count + 1


# ------------------------------------------------------------------------------------------------ towards the cluster


class _Handler:
    """What most connections do not care about."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def connected(self, connection: Connection) -> None:
        """Both sides have greeted."""

    def lost(self, connection: Connection) -> None:
        """It is over."""

    def writable(self, connection: Connection, yes: bool) -> None:
        """What is sent is bounded elsewhere: by open commits and reads."""


class _Adjudicator(_Handler):
    def __init__(self, gateway: Gateway, number: int) -> None:
        super().__init__(gateway)
        self._number = number

    def connected(self, connection: Connection) -> None:
        self.gateway.carry_out(self.gateway.commits.up(self._number, connection.generation))

    def lost(self, connection: Connection) -> None:
        self.gateway.carry_out(self.gateway.commits.down(self._number))

    def received(self, connection: Connection, body: bytes) -> None:
        message = _adjudicator_decoder.decode(body)
        commits, at = self.gateway.commits, self.gateway.at
        if isinstance(message, CommitReply):
            self.gateway.carry_out(commits.reply(self._number, message, at))
        elif isinstance(message, ResolveReply):
            self.gateway.carry_out(commits.resolved(self._number, message, at))
        elif isinstance(message, IngestReply):
            self.gateway.carry_out(commits.ingested(self._number, message))
        elif isinstance(message, Error):
            log.warning("gateway.adjudicator_complains", number=self._number, error=message.message)


class _Replica(_Handler):
    def __init__(self, gateway: Gateway, name: str) -> None:
        super().__init__(gateway)
        self._name = name

    def connected(self, connection: Connection) -> None:
        self.gateway.carry_out(self.gateway.reads.up(self._name, self.gateway.at))

    def lost(self, connection: Connection) -> None:
        self.gateway.carry_out(self.gateway.reads.down(self._name, self.gateway.at))

    def received(self, connection: Connection, body: bytes) -> None:
        message = _replica_decoder.decode(body)
        if isinstance(message, GetReply | ScanReply | StatsReply):
            self.gateway.carry_out(self.gateway.reads.reply(self._name, message, self.gateway.at))
        elif isinstance(message, Error):
            log.warning("gateway.storage_complains", replica=self._name, error=message.message)


class _Peer(_Handler):
    """Our connection to another gateway."""

    def __init__(self, gateway: Gateway, name: str) -> None:
        super().__init__(gateway)
        self._name = name

    def connected(self, connection: Connection) -> None:
        self.gateway.barrier.up(self._name)

    def lost(self, connection: Connection) -> None:
        self.gateway.carry_out(self.gateway.barrier.down(self._name))

    def received(self, connection: Connection, body: bytes) -> None:
        message = _peer_decoder.decode(body)
        if isinstance(message, CatalogDone):
            self.gateway.carry_out(self.gateway.barrier.done(self._name, message.id))


class _FromPeer(_Handler):
    """A connection that another gateway, or a tool, made to us."""

    def received(self, connection: Connection, body: bytes) -> None:
        message = _peer_decoder.decode(body)
        gateway = self.gateway
        if isinstance(message, CatalogWait):
            wanted = Local(connection, message.id, message.n)
            gateway.carry_out(gateway.timeline.when(message.tau, wanted))
        elif isinstance(message, Status):
            connection.send(StatusReply(gateway.status()))


class _Control(_Handler):
    def connected(self, connection: Connection) -> None:
        connection.send(GetMap(self.gateway.map.version))

    def received(self, connection: Connection, body: bytes) -> None:
        message = _control_decoder.decode(body)
        if isinstance(message, MapReply):
            self.gateway.new_map(message.map)
            connection.send(GetMap(self.gateway.map.version))


class _Subscription(_Handler):
    """The log of schema changes, sequences' records, and with them the watermark of the cluster.

    A new subscription begins with what is new; the number of the last schema change is then read from storage.
    """

    link: Link

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self._known = False  # that number
        self._early: list[tuple[int, int]] = []  # schema changes, and the watermark, that came before it
        self._early_watermark = 0
        self._start = 0
        self._round = 0

    def want(self, tau: int) -> None:
        """Somebody waits for a watermark."""
        self.link.send(WantWatermark(tau))

    def connected(self, connection: Connection) -> None:
        self._round += 1
        self._known, self._early, self._early_watermark = False, [], 0
        ranges = [DDL_RANGE, SEQUENCE_RANGE]
        connection.send(ShardSubscribe(self.gateway.config.name, ranges, -1, b""))

    def lost(self, connection: Connection) -> None:
        self._round += 1
        self.gateway.timeline.broken()
        self.gateway.serves(False)

    def received(self, connection: Connection, body: bytes) -> None:
        message = _crossbar_decoder.decode(body)
        if isinstance(message, ShardStart):
            if message.status != FeedStatus.OK:
                connection.fail("55000", f"crossbar refuses the subscription: status {message.status}")
                return
            self._start = max(message.tau, 1)
            self._scan(self._round)
        elif isinstance(message, Watermark):
            if self._known:
                self.gateway.carry_out(self.gateway.timeline.reached(message.tau, self.gateway.now()))
            else:
                self._early_watermark = message.tau
        elif isinstance(message, ShardRecord):
            if message.kind == Kind.TRANSACTION:
                self._committed(message)
        elif isinstance(message, Error):
            log.warning("gateway.crossbar_complains", error=message.message)

    def _committed(self, record: ShardRecord) -> None:
        commit = wide_commit_decoder.decode(record.body)
        gateway = self.gateway
        if commit.ddl is not None and self._known:
            gateway.timeline.record(record.tau, commit.ddl[0])
        elif commit.ddl is not None:
            self._early.append((record.tau, commit.ddl[0]))
        if not gateway.commits.is_own(record.txid) and touches_sequences(commit):
            gateway.sequences_changed()

    def _scan(self, round: int) -> None:
        """Read the newest schema change as of the beginning of the subscription."""
        scan = Scan(round, self._start, *DDL_RANGE, True, 1 << 20, 1)
        self.gateway.carry_out(self.gateway.reads.ask(self, scan, self.gateway.at))

    def answer(self, message: msgspec.Struct) -> None:
        """What was read."""
        assert isinstance(message, ScanReply), "it was a scan"
        if message.id != self._round or self._known:
            return  # of a subscription that has ended
        if message.status != ReadStatus.OK:
            log.warning("gateway.catalog_unknown", status=message.status)
            self.gateway._loop.call_later(0.1, self._scan, message.id)
            return
        n = 0
        for key, _ in entries(message.batch):
            n = int.from_bytes(key[8:16], "big")
        self._known = True
        gateway = self.gateway
        gateway.sequences_changed()
        gateway.carry_out(gateway.timeline.begin(self._start, n, gateway.now()))
        gateway.serves(True)
        for tau, number in self._early:
            gateway.timeline.record(tau, number)
        if self._early_watermark:
            gateway.carry_out(gateway.timeline.reached(self._early_watermark, gateway.now()))
        self._early = []


# ---------------------------------------------------------------------------------------------- towards PostgreSQL


def _arriving(connection: Connection, size: int) -> None:
    handler = connection.handler
    if isinstance(handler, _QueryClient):
        handler.large(size)


class _QueryClient(_Handler):
    """A backend's connection to what it knows as the commit service."""

    connection: Connection

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self.arriving = 0  # size of the large message that waits for memory
        self._granted = 0
        self._chunks: deque[tuple[bytes, int]] = deque()  # in the order of asking
        self._chunk_replies: dict[tuple[bytes, int], IngestReply] = {}

    def connected(self, connection: Connection) -> None:
        self.connection = connection

    def large(self, size: int) -> None:
        """A large message is arriving."""
        if self._granted or self.arriving:
            return
        self.arriving = size
        if self.gateway.take_budget(self, size):
            self._granted, self.arriving = size, 0
        else:
            self.connection.pause_reading()

    def granted(self) -> None:
        """There is memory for it."""
        self._granted, self.arriving = self.arriving, 0
        self.connection.resume_reading()

    def writable(self, connection: Connection, yes: bool) -> None:
        """A backend that does not read its answers asks no more."""
        if not yes:
            connection.pause_reading()
        elif not self.arriving:
            connection.resume_reading()

    def received(self, connection: Connection, body: bytes) -> None:
        message = _query_decoder.decode(body)
        gateway = self.gateway
        commits, at = gateway.commits, gateway.at
        budget, self._granted = self._granted, 0
        if isinstance(message, WideCommit):
            gateway.asked(self, message)
            gateway.carry_out(commits.commit(self, message, budget, at))
        elif isinstance(message, Snapshot):
            gateway.asked(self, message)
            gateway.carry_out(gateway.timeline.ask(self, message.id, gateway.now(), at))
        elif isinstance(message, Ingest):
            check_ingest(message)
            self._chunks.append((message.txid, message.seq))
            gateway.carry_out(commits.ingest(self, message, relations_of(body), budget, at))
        else:
            gateway.give_back(budget)
            if isinstance(message, Resolve):
                gateway.carry_out(commits.resolve(self, message, at))
            elif isinstance(message, Drop):
                gateway.carry_out(commits.drop(message))
            else:
                connection.send(StatusReply(gateway.status()))

    def answer(self, message: msgspec.Struct) -> None:
        """Send it; answers to chunks in the order of the chunks."""
        if not isinstance(message, IngestReply):
            self.connection.send(message)
            return
        self._chunk_replies[message.txid, message.seq] = message
        while self._chunks and self._chunks[0] in self._chunk_replies:
            self.connection.send(self._chunk_replies.pop(self._chunks.popleft()))

    def lost(self, connection: Connection) -> None:
        gateway = self.gateway
        gateway.leave(self)
        budget, self._granted = self._granted, 0
        gateway.give_back(budget)
        gateway.timeline.forget(self)
        gateway.carry_out(gateway.commits.gone(self))


class _ReadClient(_Handler):
    """A backend's connection to what it knows as the storage service."""

    connection: Connection

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self._order: deque[int] = deque()
        self._replies: dict[int, msgspec.Struct] = {}
        self._full = self._paused = False

    def connected(self, connection: Connection) -> None:
        self.connection = connection

    def writable(self, connection: Connection, yes: bool) -> None:
        """A client that does not read its answers asks no more."""
        self._paused = not yes
        self._pace()

    def _pace(self) -> None:
        if self._paused or self._full:
            self.connection.pause_reading()
        else:
            self.connection.resume_reading()

    def received(self, connection: Connection, body: bytes) -> None:
        message = _read_decoder.decode(body)
        gateway = self.gateway
        if isinstance(message, Status):
            connection.send(StatusReply(gateway.status()))
            return
        if message.id in self._replies or message.id in self._order:
            raise ProtocolError("two reads with the same id")
        self._order.append(message.id)
        if len(self._order) >= MAX_QUEUED and not self._full:
            self._full = True
            self._pace()
        gateway.carry_out(gateway.reads.ask(self, message, gateway.at))

    def answer(self, message: msgspec.Struct) -> None:
        """Send it when those before it are sent."""
        assert isinstance(message, GetReply | ScanReply | StatsReply), "answers to reads"
        order = self._order
        if len(order) == 1 and order[0] == message.id:
            order.popleft()
            self.connection.send(message)
        else:
            self._replies[message.id] = message
            while order and order[0] in self._replies:
                self.connection.send(self._replies.pop(order.popleft()))
        if self._full and len(order) < MAX_QUEUED // 2:
            self._full = False
            self._pace()


# -------------------------------------------------------------------------------------------------------- PostgreSQL


class Processors:
    """The query processors of this host, supervised."""

    def __init__(self, config: RoleConfig, gateway: Gateway) -> None:
        self._config, self._gateway = config, gateway
        self._data = Path(config.data)
        self.ports: list[int] = [0] * config.processors
        self.services: list[Service] = []
        installed = installation.find()
        password = _password(config)
        image = Path(config.image) if config.image else self._data / "image.tar"
        self._processors = [
            QueryProcessor(self._directory(number), installed, password, image=image)
            for number in range(config.processors)
        ]

    def _directory(self, number: int) -> Path:
        return self._data / f"postgresql-{number}"

    def end_leftovers(self) -> None:
        """Nothing of an earlier run works here any more. Blocking."""
        killed = end_leftovers({self._directory(number) / "data": b"postgres" for number in range(PROCESSORS)})
        if killed:
            log.warning("gateway.leftovers_killed", processes=killed)

    async def prepare(self) -> None:
        """Make the data directories; one gateway at a time if they share an image."""
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        with _locked(self._processors[0].image.with_suffix(".lock"), wait=True):
            for number, processor in enumerate(self._processors):
                done = processor.prepare()
                log.info("query_processor.prepared", number=number, done=done)

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start all; they end as the stack unwinds. Raises ClusterError."""
        (self._data / "logs").mkdir(mode=0o700, exist_ok=True)
        for number, processor in enumerate(self._processors):
            await self._start(stack, number, processor)

    async def _start(self, stack: contextlib.AsyncExitStack, number: int, processor: QueryProcessor) -> None:
        config = self._config
        name = "postgresql" if number == 0 else f"postgresql-{number + 1}"
        upstream = Path(config.run) / f"{name}.sock"

        async def launch(failures: int) -> Child:
            upstream.unlink(missing_ok=True)
            port = config.direct_port + number if config.direct_port else free_port()
            self.ports[number] = port
            if failures:
                ended = await asyncio.to_thread(end_leftovers, {processor.data: b"postgres"})
                done = await asyncio.to_thread(processor.prepare, rebuild=failures >= REBUILD_AFTER)
                log.warning("query_processor.again", attempt=failures, leftovers=ended, done=done)
            processor.configure(
                settings.Settings(
                    run=Path(config.run),
                    storage=self._data / "no-storage",
                    port=port,
                    listen="127.0.0.1",
                    processor=number,
                    connections=config.connections,
                    storage_driver="socket",
                    service_timeout=config.service_timeout,
                    write_buffer=config.write_buffer,
                    extra=config.postgresql,
                )
            )
            return await Child.spawn(
                name,
                processor.command(),
                self._data / "logs" / f"{name}.log",
                directory=processor.data,
                environment=processor.environment(),
                death_signal=processor.death_signal,
                plain=True,
            )

        async def ready(_: Child) -> None:
            await processor.wait_ready(POSTGRESQL_READY)
            temporary = upstream.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(processor.socket.name)
            temporary.replace(upstream)
            log.info("query_processor.serves", number=number, port=self.ports[number])

        service = Service(name, launch, ready, stop_signal=processor.stop_signal, stop_timeout=30.0)
        self.services.append(service)

        watching: list[asyncio.Task[None]] = []

        async def end() -> None:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            if await service.stop() == 0:
                await asyncio.to_thread(processor.mark_clean)
            else:
                await asyncio.to_thread(end_leftovers, {processor.data: b"postgres"})

        stack.push_async_callback(end)
        try:
            await service.start()
        except ClusterError as error:
            if processor.fresh:
                raise
            log.error("query_processor.rebuilt", cause=str(error))
            await service.start(REBUILD_AFTER)
        watching.append(self._gateway.background(service.watch(), f"watch {name}"))


def _password(config: RoleConfig) -> str:
    file = Path(config.password_file) if config.password_file else Path(config.data) / "password"
    try:
        password = file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if config.password_file:
            raise ClusterError(f"{file} is missing: it holds the password of user admin") from None
        password = secrets.token_urlsafe(18)
        write_atomically(file, (password + "\n").encode(), mode=0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"{file} cannot be read: {error}") from error
    if not password:
        raise ClusterError(f"{file} is empty: it holds the password of user admin")
    return password


@contextlib.contextmanager
def _locked(file: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock that the kernel releases with us. Raises ClusterError if another process has it, unless `wait`."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ClusterError(f"{file.parent} is in use by another gateway; stop it first") from None
        yield
    finally:
        os.close(fd)


def _prepare_run(run: Path) -> None:
    """An empty directory for sockets and page: nobody of an earlier run lives."""
    longest = len(os.fsencode(run)) + len("/.s.PGSQL.65535")
    if longest > 107:
        raise ClusterError(f"{run}: too long for the path of a socket; choose a shorter run directory")
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(run, 0o700)
    for left in os.scandir(run):
        if not left.is_dir(follow_symlinks=False):
            os.unlink(left.path)


async def serve(config: RoleConfig, stop: asyncio.Event) -> None:
    """Run a gateway until `stop`. Raises AustralisError with one line when it cannot go on."""
    data = Path(config.data)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_locked(data / "lock"))
        gateway = Gateway(config)
        processors = _processors(config, gateway)
        await asyncio.to_thread(processors.end_leftovers)
        _prepare_run(Path(config.run))
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        stack.callback(stopped.cancel)
        await gateway.start()
        stack.push_async_callback(gateway.close)
        preparing = asyncio.ensure_future(processors.prepare())
        starting: asyncio.Future[Any] = asyncio.ensure_future(_start_processors(stack, gateway, processors, preparing))
        failed: asyncio.Future[Any] = gateway.failed
        await asyncio.wait({starting, stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        if not stop.is_set() and not gateway.failed.done():
            announce(service="gateway", name=config.name, port=processors.ports[0], generation=gateway.generation)
            gateway.observe(await stack.enter_async_context(observed(config, gateway.status)))
            await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        if gateway.failed.done():
            raise gateway.failed.result()


def _processors(config: RoleConfig, gateway: Gateway) -> Processors | PooledProcessors:
    if config.pool is None:
        return Processors(config, gateway)
    pooled = PooledProcessors(config, config.pool, _password(config), lambda: gateway.page, gateway.watch)
    gateway.more_status = pooled.status
    return pooled


async def _start_processors(
    stack: contextlib.AsyncExitStack,
    gateway: Gateway,
    processors: Processors | PooledProcessors,
    preparing: asyncio.Future[None],
) -> None:
    await preparing
    try:
        async with asyncio.timeout(LIVE_SECONDS):
            await gateway.live.wait()
    except TimeoutError:
        raise ClusterError(
            f"no crossbar and storage tell this gateway of the cluster's state within {LIVE_SECONDS:.0f} s"
        ) from None
    await processors.start(stack)
