"""One adjudicator among several as a process: claims its journal, then serves a `Node` over the transport.

The path of a COMMIT: `_Client.received` -> `AdjudicatorService.request` -> `Node.commit` (decides, or asks other
adjudicators) -> Append: journal (queued) -> end of the loop's round: one synced write -> `_completed` -> `Node.durable`
-> Reply: answer. Effects are carried out here and decided there.

What must hold:
- nobody is answered by a process that does not own its journal: until the claim is durable its greetings say generation
  0, and links pass over it;
- effects are carried out in the order in which they were decided; records are appended in that order;
- what crossbars are fed is durable (other journals' records may already be applied, so nothing can be taken back);
- every queue is bounded: beyond that requests are refused before they are decided (rule Q10).

If the journal has another owner, or fails in any other way, nobody is answered: whoever waits resolves with the
successor (rule Q2). Connections close, and the process ends with one line; its supervisor starts it again, as a
candidate. Without its peers, transactions of its own go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog
from prometheus_client import Histogram

from australis.adjudicator.lease import Lease
from australis.adjudicator.node import Alarm, Append, Effect, Node, Reply, Send, Settings
from australis.adjudicator.recovery import Recovery
from australis.clock import Clock, open_clock
from australis.crossbar.feed import Framed, RecentRecords, frame_record
from australis.errors import (
    AustralisError,
    JournalError,
    JournalLockedError,
    PositionGoneError,
    ProtocolError,
)
from australis.journal.files import FilesJournal
from australis.journal.interface import Claimed, Journal, Reader
from australis.journal.nats_server import NatsSettings
from australis.journal.record import Kind, Position
from australis.keyspace import relation_of
from australis.metrics import TopCounter
from australis.observe import Observed, observed
from australis.partition_map import PartitionMap
from australis.protocol.messages import (
    Abandon,
    Applied,
    CommitReply,
    Decided,
    Drop,
    FeedStart,
    FeedStatus,
    GetMap,
    Greeting,
    HeartbeatRequest,
    Ingest,
    IngestReply,
    MapReply,
    MoveRange,
    MoveReply,
    Outcome,
    OwnedRanges,
    OwnedRangesReply,
    Prepare,
    RangeAcquired,
    RangeMove,
    Resolve,
    Status,
    StatusReply,
    Subscribe,
    Trim,
    Vote,
    check_commit,
    check_ingest,
    encode,
    relations_of,
    wide_commit_decoder,
)
from australis.role_config import RoleConfig, identity_of
from australis.traces import NoTraces
from australis.transport import Address, Connection, Identity, Link, Server, listen

DEPOSED_SECONDS = 30.0
"""Within that time an adjudicator has noticed that another candidate serves."""

MAX_PENDING = 20_000
"""Records that may be undurable at once."""

MAX_PENDING_BYTES = 256 << 20
FEED_CHUNK = 1 << 20
LOCK_SECONDS = 0.1
STOP_SECONDS = 5.0
TIDY_SECONDS = 5.0
TIDY_COMMITS = 1000
SNAPSHOT_AGE = 300_000_000_000
"""Nanoseconds after which no living snapshot is expected; older entries of the table merge."""

_FULL = "nothing was changed; free space on the disk of the journal and retry"
_OVERLOAD = "the adjudicator is overloaded; nothing was changed, please retry"
_COMMIT = 2

log = structlog.get_logger()

_Other = (
    Resolve
    | Prepare
    | Vote
    | Abandon
    | Decided
    | HeartbeatRequest
    | RangeMove
    | RangeAcquired
    | Ingest
    | Drop
    | Subscribe
    | Applied
    | Trim
    | Status
    | MoveRange
    | OwnedRanges
)
_decoder: msgspec.msgpack.Decoder[_Other] = msgspec.msgpack.Decoder(_Other)
_ToNode = Resolve | Prepare | Vote | Abandon | Decided | HeartbeatRequest | RangeMove | RangeAcquired
_answer_decoder: msgspec.msgpack.Decoder[Vote | RangeAcquired | MapReply] = msgspec.msgpack.Decoder(
    Vote | RangeAcquired | MapReply
)


@dataclass(frozen=True)
class AdjudicatorConfig:
    """What one adjudicator is told. `nats` None: engine files, in `data`/journal."""

    number: int
    cluster: bytes
    name: str
    listen: Address
    data: Path
    peers: dict[int, list[Address]]  # of the other adjudicators
    control: list[Address]
    map: PartitionMap
    clock: Clock
    identity: Identity
    nats: NatsSettings | None = None
    candidates: bool = False  # may other processes serve this number, too? Then a lease says which (engine nats)
    born: int = 0  # the time at which its journal began, if it is not one of the first (rule W2)
    settings: Settings = field(default_factory=Settings)


class _Waiting(msgspec.Struct, frozen=True, gc=False):
    """A record that is not durable yet, as crossbars are to get it."""

    position: Position
    kind: int
    flags: int
    tau: int
    txid: bytes
    body: bytes


class AdjudicatorService:
    """One generation, and the candidate before it."""

    def __init__(self, config: AdjudicatorConfig) -> None:
        self.config = config
        self.journal: Journal
        self.node: Node | None = None
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[AustralisError] = self._loop.create_future()
        self._server: Server | None = None
        self._waiting: deque[_Waiting] = deque()
        self._flush_scheduled = self._completion_scheduled = False
        self._links: dict[int, Link] = {}
        self._control: Link | None = None
        self._recent: RecentRecords
        self._newer_since: float | None = None  # since when subscribers come who have read of a newer generation
        self._subscribers: list[_Subscriber] = []
        self._clients: set[_Client] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._wake_at = 0.0
        self._moves: list[tuple[_Client, MoveRange]] = []  # not confirmed
        self._checkpoint = 0  # sequence of the newest record that the journal may be trimmed up to
        self._checkpointing = False
        self._stopping = False
        self._started = time.monotonic()
        self._acked = self._ingests = 0
        self._last_alarm = ""
        self.listening = asyncio.Event()  # as a candidate that may wait for long
        self._lease: Lease | None = None
        self._seen: Observed | None = None
        self._arrived: dict[bytes, int] = {}
        self._commit_seconds: Histogram
        self._conflicts: TopCounter
        self._rate = 0.0
        self._rate_at = self._started, 0

    # ------------------------------------------------------------------------------------------------ life cycle

    async def start(self) -> None:
        """Listen, wait until the journal is ours, serve. Raises AustralisError."""
        config = self.config
        identity = config.identity
        served = Identity(
            identity.cluster,
            identity.role,
            identity.name,
            lambda: self.node.generation if self.node is not None else 0,
            identity.server_tls,
            identity.client_tls,
            identity.check_peer,
        )
        self._server = await listen(config.listen, served, lambda: _Client(self))
        if config.candidates and config.nats is not None:
            self.listening.set()
            self._lease = lease = Lease(config.nats, f"adjudicator-{config.number}", config.name)
            await lease.acquire()
            lease.lost.add_done_callback(lambda lost: self._journal_failed(lost.result()))
        initial = config.map.owned(config.number) if config.born == 0 else []
        recovery = Recovery(initial, config.born)
        claimed = await self._claim(recovery)
        self.node = node = Node(config.number, recovery.claimed(claimed.position), config.map, config.settings)
        claim = claimed.position
        self._checkpoint = claim.sequence
        # the claim is where crossbars learn of the new generation and its floor
        self._recent = RecentRecords(claim.sequence - 1)
        self._recent.add(
            frame_record(*claim, Kind.CLAIM, 0, node.core.floor, bytes(16), recovery.claim_body()), claim.sequence
        )
        for number, addresses in config.peers.items():
            if number != config.number:
                self._links[number] = Link(addresses, served, _Peer(self), wanted=_serves)
                self._links[number].start()
        if config.control:
            self._control = Link(config.control, served, _Control(self))
            self._control.start()
        self._carry_out(node.start(config.clock.now()))
        self._loop.call_later(TIDY_SECONDS, self._tidy)

    async def _claim(self, recovery: Recovery) -> Claimed:
        while True:
            try:
                return await self._loop.run_in_executor(None, self._open_and_claim, recovery)
            except JournalLockedError:
                await asyncio.sleep(LOCK_SECONDS)  # another process serves; a lock cannot be waited for with a limit

    def _open_and_claim(self, recovery: Recovery) -> Claimed:
        """In a thread: reading a journal takes time."""
        config = self.config
        if config.nats is not None:
            from australis.journal.nats import NatsJournal

            journal: Journal = NatsJournal(
                config.nats,
                config.cluster,
                self._journal_durable,
                self._journal_failed,
                directory=config.data / "journal",
                fold=recovery,
            )
        else:
            journal = FilesJournal(
                config.data / "journal", config.cluster, self._journal_durable, self._journal_failed, fold=recovery
            )
        try:
            claimed = journal.claim()
        except BaseException:
            journal.close()
            raise
        self.journal = journal
        return claimed

    def _tidy(self) -> None:
        """Merge what is older than any snapshot; a snapshot that is older still meets false conflicts only."""
        node = self.node
        if self._stopping or node is None:
            return
        until = self.config.clock.now()[0] - SNAPSHOT_AGE
        more = node.core.table.merge_until(until, TIDY_COMMITS)
        self._loop.call_later(0.02 if more else TIDY_SECONDS, self._tidy)

    async def stop(self) -> None:
        """Hand over: refuse what is not decided, finish what is, say a smaller horizon (rule A2)."""
        self._stopping = True
        node = self.node
        if node is not None and not self.failed.done():
            self._carry_out(node.hand_over(self.config.clock.now()))
            self._flush()
            await self._loop.run_in_executor(None, self.journal.close)
            self._completed()
        elif node is not None:
            with contextlib.suppress(AustralisError):  # it has failed before, and that is what is reported
                await self._loop.run_in_executor(None, self.journal.close)
        if self._wake is not None:
            self._wake.cancel()
        for link in [*self._links.values(), *([self._control] if self._control is not None else [])]:
            await link.close()
        for subscriber in list(self._subscribers):
            subscriber.close()
        if self._lease is not None:
            await self._lease.close()
        await self._close_connections()

    async def _close_connections(self) -> None:
        """Let the transports write their last answers, for a while."""
        server = self._server
        if server is None:
            return
        for connection in list(server.connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while any(  # noqa: ASYNC110
                    connection.transport.get_write_buffer_size() for connection in server.connections
                ):
                    await asyncio.sleep(0.005)  # the kernel takes the bytes; nobody tells
        await server.close()

    def _journal_failed(self, error: AustralisError) -> None:
        """In a thread of the journal."""

        def fail() -> None:
            if not self.failed.done():
                log.error("journal.failed", error=str(error))
                self._completed()  # what was said to be durable before is
                # nobody else is answered: of what was sent and not acknowledged a successor may have read anything
                self.failed.set_result(error)

        self._loop.call_soon_threadsafe(fail)

    # ------------------------------------------------------------------------------------------------- messages

    def received(self, client: _Client, body: bytes) -> None:
        """A message of a gateway, another adjudicator, a crossbar or the control plane."""
        node = self.node
        if node is None:
            raise ProtocolError("this adjudicator does not serve")
        now = self.config.clock.now()
        if _tag(body) == _COMMIT:
            self._commit(client, node, body, now)
            return
        message = _decoder.decode(body)
        if isinstance(message, _ToNode):
            self._carry_out(node.receive(client, message, now))
        elif isinstance(message, Ingest):
            self._ingest(client, node, message, body, now)
        elif isinstance(message, Drop):
            client.dropped(message.relations)
            if self._obstacle(len(body)) is None:
                self._carry_out(node.drop(body, now))
        elif isinstance(message, Status):
            client.connection.send(StatusReply(self.status()))
        elif isinstance(message, Subscribe):
            client.subscribe(message)
        elif isinstance(message, Trim):
            self._trim(message.sequence)
        elif isinstance(message, OwnedRanges):
            client.connection.send(OwnedRangesReply(message.id, node.ranges.list()))
        elif isinstance(message, MoveRange):
            refusal, effects = node.release(message.lo, message.hi, message.target, now)
            if refusal:
                client.connection.send(MoveReply(message.id, refusal))
            else:
                self._moves.append((client, message))
            self._carry_out(effects)

    def _commit(self, client: _Client, node: Node, body: bytes, now: tuple[int, int]) -> None:
        commit = wide_commit_decoder.decode(body)
        check_commit(commit)
        obstacle = self._obstacle(len(body))
        if obstacle is not None:
            outcome = Outcome.DISK_FULL if obstacle is _FULL else Outcome.REFUSED
            self._carry_out(node.refuse(client, commit.txid, outcome, obstacle))
            return
        client.unpublished.pop(commit.txid, None)
        if self._seen is not None:
            if len(self._arrived) >= MAX_PENDING:
                self._arrived.clear()  # of requests that were never answered
            self._arrived[commit.txid] = time.time_ns()
        self._carry_out(node.commit(client, commit, body, now))

    def _ingest(self, client: _Client, node: Node, ingest: Ingest, body: bytes, now: tuple[int, int]) -> None:
        check_ingest(ingest)
        relations = relations_of(body)
        obstacle = self._obstacle(len(body))
        if obstacle is not None:
            outcome = Outcome.DISK_FULL if obstacle is _FULL else Outcome.REFUSED
            client.connection.send(IngestReply(ingest.txid, ingest.seq, outcome, 0))
            return
        client.unpublished.setdefault(ingest.txid, set()).update(relations)
        self._ingests += 1
        self._carry_out(node.ingest(client, ingest, body, now))

    def _obstacle(self, length: int) -> str | None:
        """Why nothing can be taken right now (rule Q10)."""
        if len(self._waiting) >= MAX_PENDING:
            return _OVERLOAD
        queued = self.journal.queued_bytes
        if queued and queued + length > MAX_PENDING_BYTES:
            return _OVERLOAD
        return None if self.journal.admits(length) else _FULL

    def disconnected(self, client: _Client) -> None:
        """What it sent in chunks and did not publish never will be."""
        self._clients.discard(client)
        node = self.node
        if node is None or self.failed.done() or self._stopping:
            return
        for txid, relations in client.unpublished.items():
            if node.abandon(txid):
                body = encode(Drop(sorted(relations)))
                if self._obstacle(len(body)) is None:
                    self._carry_out(node.drop(body, self.config.clock.now()))
        client.unpublished.clear()

    # -------------------------------------------------------------------------------------------------- effects

    def _carry_out(self, effects: list[Effect]) -> None:
        node = self.node
        assert node is not None, "effects come from it"
        appended = False
        for effect in effects:
            if isinstance(effect, Append):
                self._append(effect, node)
                appended = True
            elif isinstance(effect, Reply):
                client = effect.client
                if isinstance(client, _Client) and client.here:
                    client.connection.send(effect.message)
                if self._seen is not None:
                    self._answered(effect.message, node, self._seen)
            elif isinstance(effect, Send):
                link = self._links.get(effect.to)
                if link is not None:
                    link.send(effect.message)
            elif isinstance(effect, Alarm) and effect.text != self._last_alarm:
                self._last_alarm = effect.text
                log.error("adjudicator.alarm", text=effect.text)
        if appended and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        self._schedule(node)
        if self._moves:
            self._confirm_moves(node)

    def observe(self, seen: Observed) -> None:
        """Show latencies and conflicts from now on."""
        if not seen.measured and isinstance(seen.traces, NoTraces):
            return
        self._commit_seconds = seen.metrics.histogram("commit_seconds", "From the arrival of a commit to its answer")
        self._conflicts = seen.metrics.by_relation("conflicts_by_relation", "Conflicts found here, by storage id")
        self._seen = seen

    def _answered(self, message: msgspec.Struct, node: Node, seen: Observed) -> None:
        """Statistics of an answer that was given."""
        if isinstance(message, CommitReply):
            arrived = self._arrived.pop(message.txid, 0)
            now = time.time_ns()
            if arrived:
                self._commit_seconds.observe((now - arrived) / 1e9)
                if seen.traces.wants(message.txid):
                    outcome = Outcome(message.outcome).name.lower()
                    seen.traces.span("adjudicate", message.txid, arrived, now, outcome=outcome)
        if isinstance(message, CommitReply | Vote) and node.conflicted:
            self._conflicts.add(relation_of(node.conflicted))
            node.conflicted = b""

    def _append(self, effect: Append, node: Node) -> None:
        position = self.journal.append(
            effect.kind, effect.flags, effect.tau, effect.txid, effect.body, node.core.ddl, effect.horizon
        )
        self._waiting.append(_Waiting(position, effect.kind, effect.flags, effect.tau, effect.txid, effect.body))

    def _schedule(self, node: Node) -> None:
        due = node.wake_at
        if due is None or self._stopping:
            return
        wait = max(due - self.config.clock.now()[0], 0) / 1e9
        at = self._loop.time() + wait
        if self._wake is not None:
            if self._wake_at <= at:
                return
            self._wake.cancel()
        self._wake_at = at  # uvloop's handle does not tell if it is due at once
        self._wake = self._loop.call_later(wait, self._awake)

    def _awake(self) -> None:
        self._wake = None
        if self.node is not None and not self.failed.done():
            self._carry_out(self.node.wake(self.config.clock.now()))

    def _confirm_moves(self, node: Node) -> None:
        left = []
        for client, move in self._moves:
            if node.releasing(move.target):
                left.append((client, move))
            elif client.here:
                client.connection.send(MoveReply(move.id, ""))
        self._moves = left

    # ------------------------------------------------------------------------------------------------ durability

    def _flush(self) -> None:
        self._flush_scheduled = False
        self.journal.flush()
        if not self._completion_scheduled:
            self._completed()

    def _journal_durable(self, sequence: int) -> None:
        """In a thread of the journal, or within `flush`."""
        if not self._completion_scheduled:
            self._completion_scheduled = True
            self._loop.call_soon_threadsafe(self._completed)

    def _completed(self) -> None:
        """Everything that is durable by now: feed it, answer it."""
        self._completion_scheduled = False
        node = self.node
        if node is None or self.failed.done():
            return
        durable, waiting = self.journal.durable, self._waiting
        done: list[_Waiting] = []
        while waiting and waiting[0].position.sequence <= durable:
            done.append(waiting.popleft())
        if not done:
            return
        before = self._recent.newest
        fresh = []
        for item in done:
            record = frame_record(*item.position, item.kind, item.flags, item.tau, item.txid, item.body)
            self._recent.add(record, item.position.sequence)
            fresh.append(record)
            if item.kind == Kind.HORIZON and item.body:
                self._checkpoint, self._checkpointing = item.position.sequence, False
        self._acked += len(done)
        for subscriber in self._subscribers:
            subscriber.push(fresh, before)
        self._carry_out(node.durable([item.position for item in done], self.config.clock.now()))

    def _trim(self, sequence: int) -> None:
        """Forget what crossbars no longer need, up to a record that says what a claim would."""
        node = self.node
        if node is None or not sequence:
            return
        loading = any(other.unpublished for other in self._clients)  # chunks are not in a checkpoint
        if self._checkpoint <= sequence and not self._checkpointing and not loading:
            self._checkpointing = True
            effects = node.checkpoint(self.config.clock.now())
            self._checkpointing = bool(effects)
            self._carry_out(effects)
        # what is above an older checkpoint goes when the crossbar asks again
        future = self._loop.run_in_executor(None, self.journal.trim, min(sequence, self._checkpoint - 1))

        def done(result: asyncio.Future[int]) -> None:
            error = result.exception()
            if error is not None:
                self._journal_failed(JournalError(f"cannot trim the journal: {error}"))

        future.add_done_callback(done)

    # ------------------------------------------------------------------------------------------------------ feed

    def _may_be_deposed(self) -> bool:
        """Whoever has read of a newer generation has it of another candidate, who serves now: we just don't know yet.

        But not for long: else the journal has lost its end.
        """
        if not self.config.candidates:
            return False
        if self._newer_since is None:
            self._newer_since = time.monotonic()
        return time.monotonic() - self._newer_since < DEPOSED_SECONDS

    def feed_start(self, request: Subscribe) -> tuple[FeedStart, Position]:
        """Where a crossbar goes on; in a thread."""
        assert self.node is not None, "it serves"
        generation = self.node.generation
        position = Position(request.sequence, request.generation, request.hash)

        def answer(status: FeedStatus) -> tuple[FeedStart, Position]:
            at = self.journal.oldest() if status == FeedStatus.GONE else position
            return FeedStart(status, generation, -1, *at, self.journal.size()[0]), position

        if position.generation > generation and self._may_be_deposed():
            raise JournalError(f"the subscriber has read of generation {position.generation}, this is {generation}")
        if position.generation > generation or position.sequence > self.journal.durable:
            return answer(FeedStatus.DIVERGED)
        try:
            reader = self.journal.reader(position)
        except PositionGoneError:
            return answer(FeedStatus.GONE)
        try:
            reader.read(self.journal.durable, 1)
            return answer(FeedStatus.DIVERGED if reader.diverged else FeedStatus.OK)
        except PositionGoneError:
            return answer(FeedStatus.GONE)
        finally:
            reader.close()

    def learn_map(self, encoded: bytes) -> None:
        """The control plane has a newer map."""
        partition = PartitionMap.decode(encoded)
        if self.node is not None and partition.version > self.node.map.version:
            self.node.map = partition

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status` and metrics."""
        node, journal = self.node, self.journal
        assert node is not None, "it serves"
        core, now = node.core, time.monotonic()
        since, before = self._rate_at
        if now - since >= 0.5:
            self._rate = (self._acked - before) / (now - since)
            self._rate_at = now, self._acked
        latencies = sorted(journal.latencies)
        size, segments = journal.size()
        return {
            "role": "adjudicator",
            "number": node.me,
            "pid": os.getpid(),
            "uptime": now - self._started,
            "state": "stopping" if self._stopping else "serving",
            "generation": node.generation,
            "floor_tau": core.floor,
            "last_tau": core.last,
            "horizon_tau": node.horizon,
            "ddl": core.ddl,
            "map_version": node.map.version,
            "ranges": " ".join(f"{lo.hex() or '-'}..{hi.hex()}" for lo, hi in node.ranges.list()),
            "commits": core.commits,
            "conflicts": core.conflicts,
            "schema_conflicts": core.schema_conflicts,
            "refusals": core.refusals,
            "ingested_chunks": self._ingests,
            "promises": len(node.promises),
            "undecided": node.undecided,
            "records_per_second": self._rate,
            "pending": len(self._waiting),
            "queued_bytes": journal.queued_bytes,
            "connections": len(self._clients),
            "subscribers": len(self._subscribers),
            "peers_up": sum(link.connection is not None for link in self._links.values()),
            "peers": len(self._links),
            "table_keys": core.table.entries,
            "table_bytes": core.table.size,
            "journal_records": journal.records,
            "journal_groups": journal.groups,
            "journal_written_bytes": journal.bytes,
            "journal_size": size,
            "journal_segments": segments,
            "journal_sequence": journal.durable,
            "journal_full": int(journal.full),
            "write_p50": latencies[len(latencies) // 2] if latencies else 0.0,
            "write_p99": latencies[len(latencies) * 99 // 100] if latencies else 0.0,
        }


def _tag(body: bytes) -> int:
    """The tag of a message that may have more than 15 elements; -1 if it has none."""
    at = 3 if body[:1] == b"\xdc" else 1
    return body[at] if len(body) > at else -1


def _serves(peer: Greeting) -> bool:
    return peer.role == "adjudicator" and peer.generation > 0


class _Client:
    """An accepted connection; also what a Node knows a client by."""

    connection: Connection

    def __init__(self, service: AdjudicatorService) -> None:
        self._service = service
        self.here = False
        self.unpublished: dict[bytes, set[int]] = {}
        self.subscriber: _Subscriber | None = None

    def connected(self, connection: Connection) -> None:
        """Both have greeted."""
        self.connection, self.here = connection, True
        self._service._clients.add(self)

    def received(self, connection: Connection, body: bytes) -> None:
        """Hand it on; after a failure nobody is answered any more."""
        if not self._service.failed.done():
            self._service.received(self, body)

    def lost(self, connection: Connection) -> None:
        """It is over."""
        self.here = False
        if self.subscriber is not None:
            self.subscriber.close()
        self._service.disconnected(self)

    def writable(self, connection: Connection, yes: bool) -> None:
        """A crossbar is slow, or no longer."""
        if self.subscriber is not None:
            self.subscriber.paused = not yes
            if yes:
                self.subscriber.pump()

    def dropped(self, relations: list[int]) -> None:
        """What it sent in chunks is garbage by its own word."""
        for left in self.unpublished.values():
            left.difference_update(relations)
        self.unpublished = {txid: left for txid, left in self.unpublished.items() if left}

    def subscribe(self, request: Subscribe) -> None:
        """Begin to feed."""
        if self.subscriber is not None:
            raise ProtocolError("already subscribed")
        self.subscriber = subscriber = _Subscriber(self._service, self)
        subscriber.begin(request)


class _Peer:
    """The link to another adjudicator: its answers come back here."""

    def __init__(self, service: AdjudicatorService) -> None:
        self._service = service

    def connected(self, connection: Connection) -> None:
        """Nothing to say first."""

    def received(self, connection: Connection, body: bytes) -> None:
        """A vote, or that a range has arrived."""
        service = self._service
        message = _answer_decoder.decode(body)
        if service.node is not None and not service.failed.done() and isinstance(message, Vote | RangeAcquired):
            service._carry_out(service.node.receive(None, message, service.config.clock.now()))

    def lost(self, connection: Connection) -> None:
        """Attempts end by their timers."""

    def writable(self, connection: Connection, yes: bool) -> None:
        """Messages between adjudicators are few and small."""


class _Control:
    """The link to the control plane: the newest map."""

    def __init__(self, service: AdjudicatorService) -> None:
        self._service = service

    def connected(self, connection: Connection) -> None:
        """Ask for what is newer."""
        node = self._service.node
        if node is not None:
            connection.send(GetMap(node.map.version))

    def received(self, connection: Connection, body: bytes) -> None:
        """A newer map; ask for the next one."""
        message = _answer_decoder.decode(body)
        if isinstance(message, MapReply):
            self._service.learn_map(message.map)
            self.connected(connection)

    def lost(self, connection: Connection) -> None:
        """The map that we have goes on to serve."""

    def writable(self, connection: Connection, yes: bool) -> None:
        """Nothing of size is sent."""


class _Subscriber:
    """Feeds one crossbar: from memory if it keeps up, else from the journal."""

    def __init__(self, service: AdjudicatorService, client: _Client) -> None:
        self._service, self._client = service, client
        self._last = 0
        self._after: Position
        self._reader: Reader | None = None
        self._reading = True  # until it is known where to begin
        self._closed = False
        self.paused = False

    def begin(self, request: Subscribe) -> None:
        """Answer the subscription."""
        service = self._service
        future = service._loop.run_in_executor(None, service.feed_start, request)
        future.add_done_callback(self._begun)

    def _begun(self, future: asyncio.Future[tuple[FeedStart, Position]]) -> None:
        self._reading = False
        error = future.exception()
        if self._closed or not self._client.here:
            return
        if error is not None:
            self._fail(error)
            return
        start, self._after = future.result()
        self._client.connection.send(start)
        if start.status == FeedStatus.OK:
            self._last = self._after.sequence
            self._service._subscribers.append(self)
            self.pump()

    def _fail(self, error: BaseException) -> None:
        sqlstate = "55000" if isinstance(error, PositionGoneError) else "58030"
        log.error("feed.failed", error=str(error))
        self._client.connection.fail(sqlstate, f"feed: {error}")

    def push(self, records: list[Framed], before: int) -> None:
        """Send new records if nothing older is outstanding; `before` is the record in front of them."""
        if self.paused or self._reading or self._closed:
            return
        if self._last == before:
            self._send(records)
        else:
            self.pump()

    def _send(self, records: list[Framed], *, read: bool = False) -> None:
        """Send the records behind `_after`, which were read from the journal or come from memory."""
        self._last, self._after = records[-1].sequence, records[-1].position
        if not read and self._reader is not None:
            self._reader.close()  # it is behind now; the next one begins at `_after`
            self._reader = None
        transport = self._client.connection.transport
        if not transport.is_closing():
            transport.writelines([buffer for record in records for buffer in record.buffers])

    def pump(self) -> None:
        """Send what is there until the connection has enough."""
        recent = self._service._recent
        while not (self.paused or self._reading or self._closed):
            if not recent.covers(self._last):
                self._read()
                return
            records = recent.behind(self._last, FEED_CHUNK)
            if not records:
                return
            self._send(records)

    def _read(self) -> None:
        self._reading = True
        service = self._service

        def read() -> list[Framed]:
            if self._reader is None:
                self._reader = service.journal.reader(self._after)
            entries = self._reader.read(service.journal.durable, FEED_CHUNK)
            if self._reader.diverged:
                raise JournalError("the subscriber's position is not in the journal")
            return [frame_record(*e.position, e.kind, e.flags, e.tau, e.txid, e.body) for e in entries]

        future = service._loop.run_in_executor(None, read)
        future.add_done_callback(self._read_done)

    def _read_done(self, future: asyncio.Future[list[Framed]]) -> None:
        self._reading = False
        error = future.exception()
        if self._closed or not self._client.here:
            self.close()
            return
        if error is not None:
            self._fail(error)
            return
        records = future.result()
        if records:
            self._send(records, read=True)
        elif not self._service._recent.covers(self._last):
            # the rest of the range up to the buffer held no entry (parts, skipped records)
            self._last = self._service._recent.base
        self.pump()

    def close(self) -> None:
        """The connection is gone."""
        self._closed = True
        if self in self._service._subscribers:
            self._service._subscribers.remove(self)
        if self._reader is not None and not self._reading:
            self._reader.close()
            self._reader = None


def configured(role: RoleConfig) -> AdjudicatorConfig:
    """What a role's file says to an adjudicator. Raises AustralisError."""
    nats = None
    if role.journal.engine == "nats":
        journal = role.journal
        nats = NatsSettings(
            tuple(journal.servers),
            journal.system,
            f"{journal.prefix}-{role.number}",
            journal.replicas,
            journal.max_mb << 20,
        )
    return AdjudicatorConfig(
        role.number,
        role.cluster_id,
        role.name,
        Address.parse(role.listen),
        Path(role.data),
        {
            int(number): [Address.parse(text) for text in addresses]
            for number, addresses in role.peers.adjudicators.items()
        },
        [Address.parse(text) for text in role.peers.control],
        PartitionMap.decode(bytes.fromhex(role.map)),
        open_clock(role.clock.source, role.clock.max_error),
        identity_of(role),
        nats,
        len(role.peers.adjudicators.get(str(role.number), [])) > 1,
    )


async def serve(role: RoleConfig, stop: asyncio.Event) -> None:
    """Run one adjudicator until `stop` is set; raises what it failed of."""
    from australis.process import announce

    config = configured(role)
    service = AdjudicatorService(config)
    candidate = False

    def ready(generation: int, floor: int) -> None:
        announce(service="adjudicator", number=config.number, generation=generation, floor=floor)

    starting = asyncio.ensure_future(service.start())
    waiting = asyncio.ensure_future(service.listening.wait())
    asked = asyncio.ensure_future(stop.wait())
    service.failed.add_done_callback(lambda _: stop.set())
    try:
        await asyncio.wait([starting, waiting, asked], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() and not starting.done():
            candidate = True
            ready(0, 0)  # it is there, and will serve when it is needed
            await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            assert service.node is not None, "it has started"
            if candidate:
                log.info("adjudicator.serves", number=config.number, generation=service.node.generation)
            else:
                ready(service.node.generation, service.node.core.floor)
            async with observed(role, service.status) as seen:
                service.observe(seen)
                await asked
    finally:
        starting.cancel()
        waiting.cancel()
        asked.cancel()
        await service.stop()
    if service.failed.done():
        raise service.failed.result()
