"""A crossbar as a process: follows all journals, merges them, feeds storage replicas and gateways.

    adjudicators --FeedRecord, Heartbeat--> `_Tail` -> `Hub` -> `_Client` --ShardRecord, Watermark--> subscribers

Decisions are in `hub.py`. What must hold: nothing is kept that another crossbar could not find out: this process may
die at any moment, and its subscribers go on elsewhere from the positions that they hold; a journal that is read faster
than it can be merged, and a subscriber that does not read, stop being read and written; one that is away is fed again
from the journals, without the others noticing.

`data`/positions says where all journals had been read to a moment ago, so that a restart need not begin at the
beginning; it is a hint. An adjudicator that is away holds the watermark back (rule W3) until it is back, and so does a
journal that begins and whose address this process was not told (an alarm: restart it with the new configuration).

A journal that ends before what was read of it is an alarm, and the process ends: nothing is rewound silently. A replica
that holds what a journal does not is refused with an alarm, and the others are fed as before; when a second one (or the
only one) says the same of that journal, it is the journal that is wrong.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from australis.crossbar.follower import Follower
from australis.crossbar.hub import (
    ASK_AGAIN_NS,
    NOTHING_MORE,
    Ask,
    CatchUp,
    Effect,
    Hub,
    Replay,
    Subscriber,
)
from australis.errors import AustralisError, JournalError, ProtocolError
from australis.files import write_atomically
from australis.journal.positions import pack_positions, unpack_positions
from australis.journal.record import START, Entry, Position
from australis.observe import observed
from australis.partition_map import PartitionMap
from australis.protocol.messages import (
    Error,
    FeedRecord,
    FeedStart,
    FeedStatus,
    GetMap,
    Greeting,
    Heartbeat,
    HeartbeatRequest,
    MapReply,
    ShardApplied,
    ShardStart,
    ShardSubscribe,
    Status,
    StatusReply,
    Subscribe,
    Trim,
    WantWatermark,
    Watermark,
)
from australis.role_config import RoleConfig, identity_of
from australis.transport import Address, Connection, Identity, Link, Server, listen

POSITIONS_SECONDS = 1.0
TRIM_SECONDS = 5.0
TRIM_ALARM_SECONDS = 1800.0
"""How long a shard may have no snapshots before it is said, and how often it is said again."""

KEEP_ALIVE_SECONDS = 0.25
SEND_BYTES = 256 << 10

log = structlog.get_logger()

_FromJournal = FeedStart | FeedRecord | Heartbeat | Error
_journal_decoder: msgspec.msgpack.Decoder[_FromJournal] = msgspec.msgpack.Decoder(_FromJournal)
_FromSubscriber = ShardSubscribe | WantWatermark | ShardApplied | Status
_client_decoder: msgspec.msgpack.Decoder[_FromSubscriber] = msgspec.msgpack.Decoder(_FromSubscriber)
_map_decoder: msgspec.msgpack.Decoder[MapReply] = msgspec.msgpack.Decoder(MapReply)


@dataclass(frozen=True)
class CrossbarConfig:
    """What a crossbar is told."""

    cluster: bytes
    name: str
    listen: Address
    data: Path
    adjudicators: dict[int, list[Address]]
    control: list[Address]
    map: PartitionMap
    identity: Identity
    keep_bytes: int = field(default=64 << 20)


class LostRecordsError(JournalError):
    """A journal ends before what was read of it."""

    sqlstate = "XX001"


def _lost(journal: int, position: Position, witness: str) -> LostRecordsError:
    return LostRecordsError(
        f"ALARM: journal {journal} does not hold record {position.sequence}, which {witness} read from it: committed "
        "transactions are missing; restore the journal from a copy, or accept the loss by rebuilding storage from it"
    )


class CrossbarService:
    """The live hub and its connections."""

    def __init__(self, config: CrossbarConfig) -> None:
        self.config = config
        self.map = config.map
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[AustralisError] = self._loop.create_future()
        positions, start = self._remembered()
        follower = Follower(config.cluster, config.map.system, sorted(config.adjudicators), start, positions=positions)
        self.hub = Hub(follower, start, config.keep_bytes)
        self.tails: dict[int, _Tail] = {}
        self.unaddressed: set[int] = set()  # journals that have begun and cannot be followed
        self.clients: set[_Client] = set()
        self._server: Server | None = None
        self._control: Link | None = None
        self._pumping = self._unnoted = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.trim_waits_for: list[int] = []
        self.forget = False  # the positions that were noted
        self._started = time.monotonic()
        self.records = 0

    # ------------------------------------------------------------------------------------------------ life cycle

    def _remembered(self) -> tuple[dict[int, Position], int]:
        file = self.config.data / "positions"
        try:
            start, positions = unpack_positions(file.read_bytes())
            return positions, start
        except FileNotFoundError:
            return {}, 0
        except ProtocolError as error:
            log.warning("crossbar.positions_unreadable", file=str(file), error=str(error))
            return {}, 0

    async def start(self) -> None:
        """Follow the journals and listen. Raises OSError."""
        config = self.config
        for journal in self.hub.follower.journals:
            self._follow(journal)
        if config.control:
            self._control = Link(config.control, config.identity, _Control(self))
            self._control.start()
        self._server = await listen(config.listen, config.identity, lambda: _Client(self))
        self._tasks = [
            asyncio.create_task(self._remember()),
            asyncio.create_task(self._trim()),
            asyncio.create_task(self._keep_alive()),
        ]

    def _follow(self, journal: int) -> None:
        addresses = self.config.adjudicators.get(journal)
        if addresses is not None:
            self.tails[journal] = tail = _Tail(self, journal, self.hub.follower, self._live_entry, self.fail)
            tail.start(addresses)
        elif journal not in self.unaddressed:
            self.unaddressed.add(journal)
            log.error(
                "crossbar.alarm",
                text=f"journal {journal} has begun, but no address of its adjudicator is configured: nothing newer is "
                "readable through this crossbar until it is restarted with one",
            )

    async def stop(self) -> None:
        """End all connections; what was read is noted."""
        for task in self._tasks:
            task.cancel()
        for tail in self.tails.values():
            await tail.close()
        if self._control is not None:
            await self._control.close()
        if self._server is not None:
            await self._server.close()
        for client in list(self.clients):
            await client.end()
        if self._timer is not None:
            self._timer.cancel()
        await self._note_positions()

    def fail(self, error: AustralisError) -> None:
        """Nothing can be promised any more."""
        if not self.failed.done():
            log.error("crossbar.failed", error=str(error))
            self.failed.set_result(error)

    def diverged(self, name: str, journal: int, position: Position) -> None:
        """A replica is at a record that the journal does not hold."""
        log.error(
            "crossbar.alarm",
            text=f"ALARM: {name} is at record {position.sequence} of journal {journal}, which does not hold it: the "
            "replica is refused",
        )
        replicas = [replica for shard in self.map.shards for replica in shard.replicas]
        witnesses = self.hub.diverged(name, journal, replicas)
        if witnesses:
            self.fail(_lost(journal, position, " and ".join(witnesses)))

    async def _note_positions(self) -> None:
        """They are a hint: without space the old ones stay, and a restart reads more."""
        if self.forget:
            (self.config.data / "positions").unlink(missing_ok=True)
            return
        content = pack_positions(self.hub.watermark, self.hub.follower.taken)
        try:
            await self._loop.run_in_executor(None, write_atomically, self.config.data / "positions", content)
        except OSError as error:
            if not self._unnoted:
                log.error("crossbar.positions_not_written", cause=str(error))
            self._unnoted = True
        else:
            self._unnoted = False

    async def _remember(self) -> None:
        noted = self.hub.watermark
        while True:
            await asyncio.sleep(POSITIONS_SECONDS)
            if self.hub.watermark != noted:
                noted = self.hub.watermark
                await self._note_positions()

    async def _keep_alive(self) -> None:
        """Say something to every subscriber, so that it knows that we live although the journals are silent."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            for client in list(self.clients):
                client.keep_alive()

    async def _trim(self) -> None:
        """Tell adjudicators what no replica needs any more."""
        told: dict[int, int] = {}
        alarmed = time.monotonic()
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            # a shard without ranges has nothing that a journal could be needed for
            holding = {item.owner for item in (*self.map.placement, *self.map.incoming)}
            held = [shard for shard in self.map.shards if shard.id in holding]
            shards = [shard.replicas for shard in held]
            self.trim_waits_for = [held[at].id for at in self.hub.unsaid(shards)]
            if self.trim_waits_for and time.monotonic() - alarmed >= TRIM_ALARM_SECONDS:
                alarmed = time.monotonic()
                log.warning("crossbar.journals_grow", shards_without_snapshots=self.trim_waits_for)
            for journal, sequence in self.hub.trims(shards).items():
                tail = self.tails.get(journal)
                if sequence > told.get(journal, 0) and tail is not None and tail.send(Trim(sequence)):
                    told[journal] = sequence

    # -------------------------------------------------------------------------------------------------- journals

    def _live_entry(self, journal: int, entry: Entry) -> None:
        self.records += 1
        self.hub.entry(journal, entry)
        self.pump_soon()

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """From an adjudicator."""
        self.hub.heartbeat(heartbeat)
        self.pump_soon()

    def pump_soon(self) -> None:
        """After everything that has come in this round of the loop."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        hub = self.hub
        try:
            effects = hub.pump(time.monotonic_ns())
            for journal in hub.follower.journals:
                if journal not in self.tails:
                    self._follow(journal)
        except AustralisError as error:
            self.fail(error)
            return
        for client in self.clients:
            client.write_out()
        for tail in self.tails.values():
            tail.resume()
        self.carry_out(effects)
        if hub.asking and self._timer is None:
            self._timer = self._loop.call_later(ASK_AGAIN_NS / 1e9, self._ask_again)

    def _ask_again(self) -> None:
        self._timer = None
        self.pump_soon()

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the hub wants."""
        for effect in effects:
            if isinstance(effect, Ask):
                tail = self.tails.get(effect.journal)
                if tail is None or not tail.send(effect.message):
                    self.hub.disconnected(effect.journal)
            else:
                for client in self.clients:
                    if client.subscriber is effect.subscriber:
                        client.catch_up(effect)

    def learn_map(self, encoded: bytes) -> int:
        """The control plane has a newer map; returns the version of ours."""
        partition = PartitionMap.decode(encoded)
        if partition.version > self.map.version:
            self.map = partition
        return self.map.version

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status` and metrics."""
        hub = self.hub
        follower = hub.follower
        status: dict[str, int | float | str] = {
            "role": "crossbar",
            "pid": os.getpid(),
            "uptime": time.monotonic() - self._started,
            "state": "following"
            if not self.unaddressed and all(tail.following for tail in self.tails.values())
            else "connecting",
            "watermark": hub.watermark,
            "lag": max(0, time.time_ns() - hub.watermark) / 1e9,
            "journals": len(follower.journals),
            "subscribers": len(hub.subscribers),
            "trim_waits_for": ",".join(map(str, self.trim_waits_for)),
            "refused_replicas": len(hub.diverged_replicas),
            "catching_up": sum(not subscriber.live for subscriber in hub.subscribers),
            "records": self.records,
            "records_sent": hub.sent,
        }
        for journal in follower.journals:
            status[f"journal_{journal}_sequence"] = follower.position(journal).sequence
        return status


class _Tail:
    """Reads one journal from its adjudicator, for the hub or for one subscriber that catches up."""

    def __init__(
        self,
        service: CrossbarService,
        journal: int,
        follower: Follower,
        entry: Callable[[int, Entry], None],
        failed: Callable[[AustralisError], None],
    ) -> None:
        self._service, self.journal, self._follower, self._entry = service, journal, follower, entry
        self._failed = failed
        self._link: Link
        self._paused = False
        self._cut = False
        self.following = False
        self.began: Callable[[int], None] | None = None  # whom to tell that the owner feeds us from where we are
        self.gone: Callable[[], None] | None = None  # what to do if the journal does not reach back far enough
        self.diverged: Callable[[int, Position], None] | None = None  # and if it does not hold where we are

    def start(self, addresses: list[Address]) -> None:
        """Connect, and go on connecting."""
        self._link = Link(addresses, self._service.config.identity, self, wanted=_serves)
        self._link.start()

    async def close(self) -> None:
        """Read no more."""
        await self._link.close()

    def send(self, message: HeartbeatRequest | Trim) -> bool:
        """To the adjudicator, if it is there."""
        return self._link.send(message)

    def resume(self) -> None:
        """There may be room again."""
        connection = self._link.connection
        if self._paused and connection is not None and not self._follower.is_full(self.journal):
            self._paused = False
            connection.resume_reading()

    def pause(self) -> None:
        """Somebody else's room is used up."""
        connection = self._link.connection
        if connection is not None and not self._paused:
            self._paused = True
            connection.pause_reading()

    def connected(self, connection: Connection) -> None:
        """Say where we are."""
        self._paused = self.following = False
        connection.send(Subscribe(*self._follower.position(self.journal), self._follower.watermark))

    def received(self, connection: Connection, body: bytes) -> None:
        """A record, mostly."""
        message = _journal_decoder.decode(body)
        if isinstance(message, FeedRecord):
            entry = Entry(
                START,
                Position(message.sequence, message.generation, message.hash),
                message.kind,
                message.flags,
                message.tau,
                0,
                message.txid,
                message.body,
            )
            try:
                self._entry(self.journal, entry)
            except JournalError as error:
                self._failed(error)
                return
            if self._follower.is_full(self.journal):
                self.pause()
        elif isinstance(message, Heartbeat):
            self._service.heartbeat(message)
        elif isinstance(message, FeedStart):
            self._begin(connection, message)
        else:
            connection.refusal = message.message

    def _begin(self, connection: Connection, start: FeedStart) -> None:
        if start.status == FeedStatus.OK:
            self.following = True
            if self.began is not None:
                self.began(self.journal)
            self._service.pump_soon()
            return
        position = self._follower.position(self.journal)
        if start.status == FeedStatus.DIVERGED:
            if self.diverged is not None:
                self.diverged(self.journal, position)
            else:
                self._failed(_lost(self.journal, position, "this crossbar"))
        elif self.gone is not None:
            self.gone()
        elif position == START and start.sequence > 0:
            # only its newest part is there: begin with that
            self._service.hub.cut(self.journal)
            self._follower.begin_at(self.journal, Position(start.sequence, start.record_generation, start.hash))
            self.connected(connection)
        else:
            self._service.forget = True  # what it noted is too old: it begins anew, where the journals do
            self._failed(
                JournalError(f"journal {self.journal} was trimmed beyond record {position.sequence}, which is next")
            )

    def lost(self, connection: Connection) -> None:
        """Ask again what was asked, once it is back."""
        self.following = False
        if self._follower is self._service.hub.follower:
            self._service.hub.disconnected(self.journal)

    def writable(self, connection: Connection, yes: bool) -> None:
        """Requests are small."""


class _Client:
    """One subscriber's connection."""

    connection: Connection

    def __init__(self, service: CrossbarService) -> None:
        self._service = service
        self.subscriber: Subscriber | None = None
        self._out: list[bytes] = []
        self._size = 0
        self._replay: Replay | None = None
        self._tails: dict[int, _Tail] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._name = ""

    def connected(self, connection: Connection) -> None:
        """Wait for its subscription."""
        self.connection = connection
        self._service.clients.add(self)

    def received(self, connection: Connection, body: bytes) -> None:
        """A message of the subscriber."""
        message = _client_decoder.decode(body)
        service, hub = self._service, self._service.hub
        if isinstance(message, Status):
            connection.send(StatusReply(service.status()))
        elif isinstance(message, ShardSubscribe):
            if self.subscriber is not None:
                raise ProtocolError("already subscribed")
            self._name = message.name
            self.subscriber = Subscriber(message.name, message.ranges, self._write)
            service.carry_out(hub.subscribe(self.subscriber, message))
            service.pump_soon()
        elif self.subscriber is None:
            raise ProtocolError("subscribe first")
        elif isinstance(message, WantWatermark):
            hub.want(self.subscriber, message)
            service.pump_soon()
        else:
            hub.applied(self._name, message)

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        self._size += len(data)
        if self._size >= SEND_BYTES:
            self.write_out()

    def write_out(self) -> None:
        """Give the transport what was collected."""
        if self._out:
            out, self._out, self._size = self._out, [], 0
            if not self.connection.transport.is_closing():
                self.connection.transport.writelines(out)

    def keep_alive(self) -> None:
        """Repeat the last watermark if nothing else was sent, with the positions that belong to it."""
        subscriber = self.subscriber
        if subscriber is not None and not subscriber.paused and not self._out and (subscriber.live or self._replay):
            self.connection.send(Watermark(subscriber.sent, self._service.hub.place(subscriber)))

    def writable(self, connection: Connection, yes: bool) -> None:
        """It does not read, or reads again."""
        if self.subscriber is None:
            return
        self.subscriber.paused = not yes
        for tail in self._tails.values():
            if yes:
                tail.resume()
            else:
                tail.pause()
        if yes:
            self._service.pump_soon()

    def lost(self, connection: Connection) -> None:
        """Forget it."""
        self._service.clients.discard(self)
        if self.subscriber is not None:
            self._service.hub.unsubscribe(self.subscriber)
        self._end_soon()

    # ---------------------------------------------------------------------------------------------------- catch up

    def catch_up(self, effect: CatchUp) -> None:
        """Feed it from the journals until it is where the hub is."""
        service = self._service
        if effect.applied == NOTHING_MORE:
            self.connection.fail("55000", "the subscriber was too slow; subscribe again")
            return
        hub, config = service.hub, service.config
        follower = Follower(
            config.cluster,
            config.map.system,
            sorted(config.adjudicators),
            effect.applied,
            positions=effect.positions,
        )
        effect.subscriber.sent = effect.applied
        self._started = False
        self._applied = effect.applied
        self._replay = replay = Replay(effect.subscriber, follower, hub)
        log.info("crossbar.catching_up", name=self._name, applied=effect.applied)
        self._follow(replay.follower)
        self.connection.send(ShardStart(FeedStatus.OK, effect.applied))

    def _follow(self, follower: Follower) -> None:
        """Read every journal that there is by now: some begin meanwhile."""
        service = self._service
        for journal in follower.journals:
            addresses = service.config.adjudicators.get(journal)
            if journal not in self._tails and addresses is not None:
                self._tails[journal] = tail = _Tail(service, journal, follower, self._replay_entry, self._refuse)
                tail.began, tail.gone, tail.diverged = self._replay_began, self._gone, self._diverged
                tail.start(addresses)

    def _replay_entry(self, journal: int, entry: Entry) -> None:
        replay = self._replay
        self._replayed(replay is not None and replay.entry(journal, entry, time.monotonic_ns()))

    def _replay_began(self, journal: int) -> None:
        """There may be nothing to read."""
        replay = self._replay
        self._replayed(replay is not None and replay.began(journal, time.monotonic_ns()))

    def _replayed(self, over: bool) -> None:
        if over:
            self._replay = None
            self.write_out()
            log.info("crossbar.caught_up", name=self._name)
            self._end_soon()
            self._service.pump_soon()
        else:
            if self._size:
                self.write_out()
            if self._replay is not None:
                self._follow(self._replay.follower)
        for tail in self._tails.values():
            tail.resume()

    def _gone(self) -> None:
        """The journals do not reach back to where it is."""
        self._end_replay(FeedStatus.GONE)

    def _diverged(self, journal: int, position: Position) -> None:
        """It holds something that a journal does not."""
        if self._end_replay(FeedStatus.DIVERGED):
            self._service.diverged(self._name, journal, position)

    def _refuse(self, error: AustralisError) -> None:
        """Where it says that it is cannot be right: what follows there does not follow in time."""
        if self._end_replay(FeedStatus.DIVERGED):
            log.error("crossbar.alarm", text=f"ALARM: {self._name} is refused: {error}")

    def _end_replay(self, status: FeedStatus) -> bool:
        if self._replay is None:
            return False
        self._replay = None
        self.connection.send(ShardStart(status, 0))
        self.connection.close()
        return True

    def _end_soon(self) -> None:
        task = asyncio.ensure_future(self.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def end(self) -> None:
        """Close what reads journals for it."""
        tails, self._tails = self._tails, {}
        self._replay = None
        for tail in tails.values():
            await tail.close()


class _Control:
    """The link to the control plane: the newest map."""

    def __init__(self, service: CrossbarService) -> None:
        self._service = service

    def connected(self, connection: Connection) -> None:
        """Ask for what is newer."""
        connection.send(GetMap(self._service.map.version))

    def received(self, connection: Connection, body: bytes) -> None:
        """A newer map; ask for the next one."""
        connection.send(GetMap(self._service.learn_map(_map_decoder.decode(body).map)))

    def lost(self, connection: Connection) -> None:
        """The map that we have goes on to serve."""

    def writable(self, connection: Connection, yes: bool) -> None:
        """Nothing of size is sent."""


def _serves(peer: Greeting) -> bool:
    return peer.role == "adjudicator" and peer.generation > 0


def configured(role: RoleConfig) -> CrossbarConfig:
    """What a role's file says to a crossbar. Raises AustralisError."""
    return CrossbarConfig(
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
        identity_of(role),
    )


async def serve(role: RoleConfig, stop: asyncio.Event) -> None:
    """Run a crossbar until `stop` is set; raises what it failed of."""
    from australis.process import announce

    config = configured(role)
    service = CrossbarService(config)
    await service.start()
    announce(service="crossbar", name=config.name)
    service.failed.add_done_callback(lambda _: stop.set())
    try:
        async with observed(role, service.status):
            await stop.wait()
    finally:
        await service.stop()
    if service.failed.done():
        raise service.failed.result()
