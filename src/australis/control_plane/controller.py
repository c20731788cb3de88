"""Role control: keeps the newest partition map, tells it to whoever asks, moves ranges of adjudicators and shards.

Beside the data path: everything goes on without it, with the map that each process has. What must hold: a map is
durable here before anybody is told of it, versions only grow, and what is published is true (range_moves.py decides
about adjudicators, shard_moves.py about shards).

The map is a file in its directory; with engine nats also a key of the cluster's key-value store, so that the role may
start again on another host: the newer of the two counts. If that store is away, maps are published all the same and
written there when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import msgspec
import nats.errors
import structlog

from australis.control_plane.coordination import NatsCoordination
from australis.control_plane.range_moves import Alarm, Answer, Ask, Effect, MapKeeper, Publish
from australis.control_plane.rebalance import Settings
from australis.control_plane.shard_moves import ShardMover, grown
from australis.control_plane.topology import RoleConfig, identity_of
from australis.errors import AustralisError, WrongClusterError
from australis.files import write_atomically
from australis.journal.nats_server import connect
from australis.metrics import Metrics
from australis.partition_map import MapError, PartitionMap
from australis.process import announce
from australis.protocol.messages import (
    Error,
    GetMap,
    MapReply,
    MoveRange,
    MoveReply,
    MoveShard,
    OwnedRangesReply,
    ShardHeld,
    Status,
    StatusReply,
)
from australis.transport import Address, Connection, Link, listen

FILE = "map"
KEY = "map"
TICK_SECONDS = 0.5
MOVE_SECONDS = 30.0
MAX_WAITING = 4096
STORE_SECONDS = 5.0

log = structlog.get_logger()

_Request = GetMap | MoveRange | MoveShard | ShardHeld | MapReply | Status
_request_decoder: msgspec.msgpack.Decoder[_Request] = msgspec.msgpack.Decoder(_Request)
_answer_decoder: msgspec.msgpack.Decoder[MoveReply | OwnedRangesReply | Error] = msgspec.msgpack.Decoder(
    MoveReply | OwnedRangesReply | Error
)


class ControlError(AustralisError):
    """A request that is refused; one line."""

    sqlstate = "53300"


def newest_map(*found: PartitionMap) -> PartitionMap:
    """The one with the highest version."""
    return max(found, key=lambda one: one.version)


def read_map(file: Path) -> PartitionMap | None:
    """What was last published from this directory. Raises WrongClusterError if it is damaged."""
    try:
        return PartitionMap.decode(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, MapError) as error:
        raise WrongClusterError(
            f"{file}: {error}; remove it: the map is then made again from what the adjudicators own"
        ) from None


class Controller:
    """One instance of the role."""

    def __init__(self, config: RoleConfig) -> None:
        """Raises what reading the map raises."""
        self.config = config
        self._file = Path(config.data) / FILE
        first = config.partition_map
        self.keeper = MapKeeper(newest_map(first, read_map(self._file) or first))
        self.mover = ShardMover(self.keeper, Settings(enabled=config.rebalance))
        self._waiting: dict[Connection, int] = {}  # GetMap that is not answered: version that it has
        self._published = self.keeper.map
        self._asked_at = 0.0
        self._store: NatsCoordination | None = None
        self._stored = 0  # version in the key-value store
        self._links: dict[int, Link] = {}
        self._last_alarm = ""
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    # ------------------------------------------------------------------------------------------------ life cycle

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        config = self.config
        identity = identity_of(config)
        await self._open_store()
        self._grow()
        server = await listen(Address.parse(config.listen), identity, lambda: _Client(self))
        for number in self.keeper.map.adjudicators:
            addresses = [Address.parse(text) for text in config.peers.adjudicators[str(number)]]
            link = Link(addresses, identity, _Adjudicator(self, number), wanted=lambda peer: peer.generation > 0)
            link.start()
            self._links[number] = link
        metrics = Metrics("control", config.name, self.status)
        exporter = metrics.serve(Address.parse(config.metrics)) if config.metrics else None
        announce(service="control", version=self.keeper.map.version)
        try:
            while not stop.is_set() and not self.failed.done():
                metrics.refresh()
                self._tick()
                await self._write_store()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await stop.wait()
            if self.failed.done():
                raise self.failed.result()
        finally:
            if exporter is not None:
                exporter.close()
            for link in self._links.values():
                await link.close()
            await server.close()

    def _grow(self) -> None:
        """The topology may have more shards and replicas than when the map was made."""
        current = self.keeper.map
        wider = grown(current, self.config.partition_map)
        if wider is not current:
            self.keeper.map = wider
            self.carry_out([Publish(wider)])

    def _tick(self) -> None:
        keeper = self.keeper
        self.carry_out(self.mover.tick(time.monotonic_ns()))
        if keeper.busy:
            if time.monotonic() - self._asked_at > MOVE_SECONDS:
                self.carry_out(keeper.expired())
        elif not keeper.sure and all(link.connection is not None for link in self._links.values()):
            self.carry_out(keeper.reconcile())

    # ------------------------------------------------------------------------------------------------ effects

    def carry_out(self, effects: list[Effect]) -> None:
        """In their order; a map that cannot be made durable ends this process before anybody hears of it."""
        for effect in effects:
            if isinstance(effect, Ask):
                self._asked_at = time.monotonic()
                if not self._links[effect.adjudicator].send(effect.message):
                    self.carry_out(self.keeper.lost(effect.adjudicator))
            elif isinstance(effect, Publish):
                try:
                    write_atomically(self._file, effect.map.encode(), 0o600)
                except OSError as error:
                    if not self.failed.done():
                        self.failed.set_result(ControlError(f"{self._file}: {error.strerror or error}"))
                    return
                self._publish(effect.map)
            elif isinstance(effect, Answer):
                assert isinstance(effect.client, Connection), "who asked is a connection"
                effect.client.send(MoveReply(effect.id, effect.error))
            elif isinstance(effect, Alarm) and effect.text != self._last_alarm:
                self._last_alarm = effect.text
                log.warning("control.ranges", text=effect.text)

    def _publish(self, newest: PartitionMap) -> None:
        self._published = newest
        log.info("control.map", version=newest.version, ranges=len(newest.keys))
        waiting, self._waiting = self._waiting, {}
        for connection, version in waiting.items():
            self.ask(connection, version)

    # ------------------------------------------------------------------------------------------------ requests

    def ask(self, connection: Connection, version: int) -> None:
        """GetMap: answer now if there is a newer one, else when there is."""
        if version < self._published.version:
            connection.send(MapReply(self._published.encode()))
        elif len(self._waiting) >= MAX_WAITING and connection not in self._waiting:
            raise ControlError(f"{MAX_WAITING} processes wait for a map already")
        else:
            self._waiting[connection] = version

    def move(self, connection: Connection, message: MoveRange) -> None:
        """MoveRange of a tool."""
        log.info("control.move", lo=message.lo.hex(), hi=message.hi.hex(), target=message.target)
        self.carry_out(self.keeper.move(connection, message))

    def move_shard(self, connection: Connection, message: MoveShard) -> None:
        """MoveShard of a tool."""
        log.info("control.move_shard", lo=message.lo.hex(), hi=message.hi.hex(), target=message.target)
        self.carry_out(self.mover.move(connection, message, time.monotonic_ns()))

    def held(self, connection: Connection, message: ShardHeld) -> None:
        """A replica says what it holds."""
        if message.version > self.keeper.map.version:
            connection.send(GetMap(self.keeper.map.version))
        else:
            self.carry_out(self.mover.held(message, time.monotonic_ns()))

    def learn(self, message: MapReply) -> None:
        """A replica has a newer map than we do."""
        self.carry_out(self.keeper.learned(PartitionMap.decode(message.map)))

    def gone(self, connection: Connection) -> None:
        """Who asked is gone; a move goes on all the same."""
        self.mover.gone(connection)
        self._waiting.pop(connection, None)

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status` and metrics."""
        keeper = self.keeper
        return {
            "role": "control",
            "map_version": self._published.version,
            "adjudicators": len(self._published.adjudicators),
            "adjudicators_connected": sum(link.connection is not None for link in self._links.values()),
            "shards": len(self._published.shards),
            "ranges": len(self._published.keys),
            "map_is_true": int(keeper.sure),
            "moves": keeper.moves,
            "moves_failed": keeper.failures,
            "shard_ranges": len(self._published.placement),
            "shard_ranges_on_their_way": len(self._published.incoming),
            "shard_moves": self.mover.moves,
            "shard_moves_failed": self.mover.failures,
            "waiting": len(self._waiting),
        }

    # ------------------------------------------------------------------------------------------------ key-value store

    async def _open_store(self) -> None:
        """Find the newest map there. Without the store we start with our own."""
        journal = self.config.journal
        if journal.engine != "nats":
            return
        try:
            async with asyncio.timeout(STORE_SECONDS):
                client = await connect(tuple(journal.servers), name=self.config.name)
                self._store = await NatsCoordination.open(client, journal.replicas)
                record = await self._store.get(KEY)
        except (AustralisError, OSError, TimeoutError, nats.errors.Error) as error:
            log.warning("control.store_away", error=str(error))
            return
        if record is not None:
            found = PartitionMap.decode(record.value)
            self._stored = found.version
            if found.version > self.keeper.map.version:
                self.keeper.map = self._published = found

    async def _write_store(self) -> None:
        """Copy the map there if it is newer."""
        newest = self._published
        if self.config.journal.engine != "nats" or self._stored >= newest.version:
            return
        if self._store is None:
            await self._open_store()
        if self._store is None:
            return
        try:
            async with asyncio.timeout(STORE_SECONDS):
                record = await self._store.get(KEY)
                if record is None:
                    done = await self._store.create(KEY, newest.encode())
                elif PartitionMap.decode(record.value).version < newest.version:
                    done = await self._store.update(KEY, newest.encode(), record.revision)
                else:
                    done = record.revision
        except (AustralisError, TimeoutError) as error:
            log.warning("control.store_away", error=str(error))
            return
        if done is not None:
            self._stored = newest.version


class _Client:
    """Whoever asks for maps and moves."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def connected(self, connection: Connection) -> None:
        """It asks."""

    def received(self, connection: Connection, body: bytes) -> None:
        message = _request_decoder.decode(body)
        if isinstance(message, GetMap):
            self._controller.ask(connection, message.version)
        elif isinstance(message, MoveRange):
            self._controller.move(connection, message)
        elif isinstance(message, MoveShard):
            self._controller.move_shard(connection, message)
        elif isinstance(message, ShardHeld):
            self._controller.held(connection, message)
        elif isinstance(message, MapReply):
            self._controller.learn(message)
        else:
            connection.send(StatusReply(self._controller.status()))

    def lost(self, connection: Connection) -> None:
        self._controller.gone(connection)

    def writable(self, connection: Connection, yes: bool) -> None:
        """One answer per request: whoever does not read gets no second one."""
        if yes:
            connection.resume_reading()
        else:
            connection.pause_reading()


class _Adjudicator:
    """Answers of one adjudicator."""

    def __init__(self, controller: Controller, number: int) -> None:
        self._controller, self._number = controller, number

    def connected(self, connection: Connection) -> None:
        """Asked at the next tick, if it has to be."""

    def received(self, connection: Connection, body: bytes) -> None:
        message = _answer_decoder.decode(body)
        if isinstance(message, Error):
            log.warning("control.adjudicator", number=self._number, error=message.message)
            return
        controller = self._controller
        controller.carry_out(controller.keeper.received(self._number, message))

    def lost(self, connection: Connection) -> None:
        controller = self._controller
        controller.carry_out(controller.keeper.lost(self._number))

    def writable(self, connection: Connection, yes: bool) -> None:
        """One small request at a time."""


async def serve(config: RoleConfig, stop: asyncio.Event) -> None:
    """Run the role until `stop` is set."""
    await Controller(config).run(stop)
