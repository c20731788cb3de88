"""Adjudicators for tests: real services on real sockets and journals, in the test's loop or in processes."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from australis.adjudicator.process import AdjudicatorConfig, AdjudicatorService
from australis.clock import FixedClock
from australis.keyspace import KEYSPACE_END, relation_prefix
from australis.partition_map import PartitionMap, Range, Shard
from australis.protocol.messages import AnyMessage, Error, Mode, WideCommit, any_decoder
from australis.transport import Address, Connection, Identity, Link

CLUSTER = b"k" * 16
UPDATE, BLIND = int(Mode.UPDATE), 4
RELATION = 5 << 32 | 16384


def key(relation: int, n: int) -> bytes:
    """Row n of the relation-th table."""
    return relation_prefix(RELATION + relation) + n.to_bytes(8, "big")


def partition(adjudicators: int, shards: int = 1, replicas: int = 1) -> PartitionMap:
    """Table t belongs to adjudicator t % adjudicators (of the first 16), everything else to 0; shards likewise."""

    def deal(owners: int) -> list[Range]:
        bounds = [b"", *(relation_prefix(RELATION + n) for n in range(1, 16)), KEYSPACE_END]
        return [Range(bounds[n], bounds[n + 1], n % owners) for n in range(16)]

    return PartitionMap(
        1,
        range(adjudicators),
        deal(adjudicators),
        [Shard(s, [f"storage-{s}-{r}" for r in range(replicas)]) for s in range(shards)],
        deal(shards),
    )


def identity(role: str, name: str = "") -> Identity:
    return Identity(CLUSTER, role, name or role)


def configs(directory: Path, adjudicators: int, **changes: Any) -> list[AdjudicatorConfig]:
    """Configurations of all adjudicators of a cluster on Unix sockets in `directory`."""
    addresses = {n: [Address(path=str(directory / f"a{n}.sock"))] for n in range(adjudicators)}
    made = []
    for number in range(adjudicators):
        data = directory / f"adjudicator-{number}"
        data.mkdir(parents=True, exist_ok=True)
        config = AdjudicatorConfig(
            number,
            CLUSTER,
            f"adjudicator-{number}",
            addresses[number][0],
            data,
            addresses,
            [],
            partition(adjudicators),
            FixedClock(),
            identity("adjudicator", f"adjudicator-{number}"),
        )
        made.append(replace(config, **changes))
    return made


class Asker:
    """A gateway of sorts: sends messages to adjudicators and waits for answers by (type, txid)."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self._waiting: dict[tuple[str, bytes], asyncio.Future[Any]] = {}
        self._up = asyncio.Event()

    def link(self, number: int, address: Address) -> None:
        self.links[number] = link = Link([address], identity("gateway"), self, wanted=lambda peer: peer.generation > 0)
        link.start()

    async def up(self) -> None:
        """Return when all links are there."""
        while not all(link.connection for link in self.links.values()):
            self._up.clear()
            await self._up.wait()

    def connected(self, connection: Connection) -> None:
        self._up.set()

    def received(self, connection: Connection, body: bytes) -> None:
        message: AnyMessage = any_decoder.decode(body)
        if isinstance(message, Error):
            connection.refusal = message.message
        future = self._waiting.pop((type(message).__name__, getattr(message, "txid", b"")), None)
        if future is not None and not future.done():
            future.set_result(message)

    def lost(self, connection: Connection) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError(connection.refusal))
        self._waiting.clear()

    def writable(self, connection: Connection, yes: bool) -> None:
        pass

    async def ask(self, number: int, message: Any, answer: str) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting[answer, getattr(message, "txid", b"")] = future
        if not self.links[number].send(message):
            raise ConnectionResetError
        return await future

    async def commit(self, leader: int, commit: WideCommit) -> Any:
        commit = msgspec.structs.replace(commit, leader=leader, generation=self.links[leader].generation)
        return await self.ask(leader, commit, "CommitReply")

    async def close(self) -> None:
        for link in self.links.values():
            await link.close()


def write(keys: list[bytes], tau_start: int | None = None, values: list[bytes | None] | None = None) -> WideCommit:
    """A commit that updates these keys."""
    return WideCommit(
        0,
        os.urandom(16),
        1,
        time.time_ns() if tau_start is None else tau_start,
        0,
        keys,
        bytes([UPDATE]) * len(keys),
        msgspec.Raw(msgspec.msgpack.encode(values if values is not None else [b"v"] * len(keys))),
        [],
        sorted({int.from_bytes(one[:8], "big") for one in keys}),
        None,
        [],
    )


async def start(config: AdjudicatorConfig) -> AdjudicatorService:
    service = AdjudicatorService(config)
    await service.start()
    return service
