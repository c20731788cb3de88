"""A cluster in one process, for tests of gateways: real adjudicators' decisions, journals that only live in memory.

    python -m tests.gateway.peer CONFIG.json      (a RoleConfig; serves all adjudicators, the crossbar and the replicas)

Every address that the configuration names is served. The journal is durable at once, the crossbar merges what the
adjudicators append and promise, one store serves all replicas.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from australis.adjudicator.node import Append, Effect, Node, Reply, Send
from australis.adjudicator.recovery import RangeSet, Recovery
from australis.clock import FixedClock
from australis.control_plane.topology import RoleConfig, load_role
from australis.crossbar.merge import Merge
from australis.journal.record import Kind, Position
from australis.keyspace import relation_prefix
from australis.process import announce
from australis.protocol.messages import (
    Commit,
    Drop,
    FeedStatus,
    Get,
    GetReply,
    Heartbeat,
    HeartbeatRequest,
    Ingest,
    ReadStatus,
    Scan,
    ScanReply,
    ShardRecord,
    ShardStart,
    ShardSubscribe,
    Stats,
    StatsReply,
    WantWatermark,
    Watermark,
    any_decoder,
    wide_commit_decoder,
)
from australis.storage.store import open_store
from australis.transport import Address, Connection, Identity, listen


class Peer:
    """All of it."""

    def __init__(self, config: RoleConfig) -> None:
        self.config = config
        self.clock = FixedClock()
        self.map = config.partition_map
        self.loop = asyncio.get_running_loop()
        self.merge: Merge[tuple[int, int, bytes, bytes]] = Merge(len(self.map.adjudicators), 0)
        self.nodes = {number: Adjudicator(self, number) for number in self.map.adjudicators}
        directory = Path(config.data).parent / "peer"
        self.store = open_store(directory, config.cluster_id)
        self.applied = 1
        self.subscribers: dict[Connection, list[tuple[bytes, bytes]]] = {}
        self.waiting: list[tuple[int, Callable[[], None]]] = []

    def identity(self, role: str, name: str, generation: int = 0) -> Identity:
        return Identity(self.config.cluster_id, role, name, lambda: generation)

    async def start(self) -> None:
        peers = self.config.peers
        for number, addresses in peers.adjudicators.items():
            node = self.nodes[int(number)]
            identity = self.identity("adjudicator", f"adjudicator-{number}", 1)
            await listen(Address.parse(addresses[0]), identity, lambda node=node: node)  # type: ignore[misc]
        for address in peers.crossbars:
            await listen(Address.parse(address), self.identity("crossbar", "crossbar-0"), lambda: Crossbar(self))
        for shard in self.map.shards:
            ranges = RangeSet([(item.lo, item.hi) for item in self.map.placement if item.owner == shard.id])
            for name in shard.replicas:
                identity = self.identity("storage", name)
                await listen(
                    Address.parse(peers.storage[name]),
                    identity,
                    lambda ranges=ranges: Replica(self, ranges),  # type: ignore[misc]
                )

    # -------------------------------------------------------------------------------------------------- crossbar

    def want(self, tau: int) -> None:
        for node in self.nodes.values():
            node.beat(tau)

    def promised(self, number: int, h: int) -> None:
        self.merge.promise(number, h)
        self.advance()

    def added(self, number: int, item: Append) -> None:
        self.merge.add(number, item.tau, (item.kind, item.flags, item.txid, item.body))
        self.advance()

    def advance(self) -> None:
        watermark = self.merge.watermark
        for tau, (kind, flags, txid, body) in self.merge.take():
            if kind in (Kind.TRANSACTION, Kind.INGEST):
                self.store.apply([(tau, body)], b"here")
            if kind == Kind.TRANSACTION:
                keys = wide_commit_decoder.decode(body).keys
                for connection, ranges in self.subscribers.items():
                    if any(lo <= key < hi for lo, hi in ranges for key in keys):
                        connection.send(ShardRecord(kind, flags, tau, txid, body))
        if watermark <= self.applied:
            return
        self.applied = watermark
        for connection in self.subscribers:
            connection.send(Watermark(watermark))
        ready = [then for tau, then in self.waiting if tau <= watermark]
        self.waiting = [item for item in self.waiting if item[0] > watermark]
        for then in ready:
            then()

    def when(self, tau: int, then: Callable[[], None]) -> None:
        if self.applied >= tau:
            then()
        else:
            self.waiting.append((tau, then))
            self.want(tau)


class Handler:
    def connected(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...

    def writable(self, connection: Connection, yes: bool) -> None: ...


class Adjudicator(Handler):
    """Hosts a Node whose journal is durable at once."""

    def __init__(self, peer: Peer, number: int) -> None:
        self.peer, self.number = peer, number
        claim = Position(1, 1, bytes(16))
        self.node = Node(number, Recovery(peer.map.owned(number)).claimed(claim), peer.map)
        self.sequence = 1
        self.timer: asyncio.TimerHandle | None = None

    def received(self, connection: Connection, body: bytes) -> None:
        message = any_decoder.decode(body)
        now = self.peer.clock.now()
        if isinstance(message, Commit):
            commit = wide_commit_decoder.decode(body)
            self.carry_out(self.node.commit(connection, commit, body, now))
        elif isinstance(message, Ingest):
            self.carry_out(self.node.ingest(connection, message, body, now))
        elif isinstance(message, Drop):
            self.carry_out(self.node.drop(body, now))
        else:
            self.carry_out(self.node.receive(connection, message, now))  # type: ignore[arg-type]

    def beat(self, tau: int) -> None:
        self.carry_out(self.node.receive(self, HeartbeatRequest(tau), self.peer.clock.now()))

    def carry_out(self, effects: list[Effect]) -> None:
        positions = []
        appended = []
        for effect in effects:
            if isinstance(effect, Append):
                self.sequence += 1
                positions.append(Position(self.sequence, 1, self.sequence.to_bytes(16, "big")))
                appended.append(effect)
            elif isinstance(effect, Reply):
                if isinstance(effect.message, Heartbeat) and effect.client is self:
                    self.peer.promised(self.number, effect.message.h)
                elif isinstance(effect.client, Connection):
                    effect.client.send(effect.message)
                elif isinstance(effect.client, Adjudicator):
                    effect.client.tell(self, effect.message)
            elif isinstance(effect, Send):
                self.peer.nodes[effect.to].tell(self, effect.message)
        if positions:
            self.peer.loop.call_soon(self.durable, positions, appended)
        due = self.node.wake_at
        if due is not None:
            if self.timer is not None:
                self.timer.cancel()
            delay = max(due - self.peer.clock.now()[0], 0) / 1e9
            self.timer = self.peer.loop.call_later(delay, self.wake)

    def tell(self, source: Adjudicator, message: Any) -> None:
        def deliver() -> None:
            self.carry_out(self.node.receive(source, message, self.peer.clock.now()))

        self.peer.loop.call_soon(deliver)

    def wake(self) -> None:
        self.timer = None
        self.carry_out(self.node.wake(self.peer.clock.now()))

    def durable(self, positions: list[Position], appended: list[Append]) -> None:
        for item in appended:
            self.peer.added(self.number, item)
        self.carry_out(self.node.durable(positions, self.peer.clock.now()))


class Crossbar(Handler):
    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def received(self, connection: Connection, body: bytes) -> None:
        message = any_decoder.decode(body)
        if isinstance(message, ShardSubscribe):
            connection.send(ShardStart(FeedStatus.OK, self.peer.applied))
            self.peer.subscribers[connection] = message.ranges
        elif isinstance(message, WantWatermark):
            if self.peer.applied >= message.tau:
                connection.send(Watermark(self.peer.applied))
            else:
                self.peer.want(message.tau)

    def lost(self, connection: Connection) -> None:
        self.peer.subscribers.pop(connection, None)


class Replica(Handler):
    def __init__(self, peer: Peer, ranges: RangeSet) -> None:
        self.peer, self.ranges = peer, ranges

    def received(self, connection: Connection, body: bytes) -> None:
        message = any_decoder.decode(body)
        peer, store = self.peer, self.peer.store
        if isinstance(message, Get):
            if not all(map(self.ranges.holds, message.keys)):
                connection.send(GetReply(message.id, ReadStatus.NOT_HELD, b""))
                return
            peer.when(
                message.tau,
                lambda: connection.send(GetReply(message.id, ReadStatus.OK, store.get_many(message.keys, message.tau))),
            )
        elif isinstance(message, Scan):
            if not self.ranges.covers(message.lo, message.hi):
                connection.send(ScanReply(message.id, ReadStatus.NOT_HELD, False, b""))
                return

            def scan() -> None:
                limits = max(message.max_rows, 1), max(message.max_bytes, 1)
                batch, more = store.scan(message.lo, message.hi, message.backward, message.tau, *limits)
                connection.send(ScanReply(message.id, ReadStatus.OK, more, batch))

            peer.when(message.tau, scan)
        elif isinstance(message, Stats):
            # one store for all: each relation is counted where it begins
            asked = [relation for relation in message.relations if self.ranges.holds(relation_prefix(relation))]

            def count() -> None:
                stats = [(relation, *value) for relation, value in zip(asked, store.stats(asked), strict=True)]
                connection.send(StatsReply(message.id, stats))

            peer.when(message.tau, count)


async def main(path: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    peer = Peer(load_role(path))
    await peer.start()
    announce(service="peer")
    await stop.wait()
    peer.store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
