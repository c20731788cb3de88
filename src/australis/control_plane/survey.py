"""Asking the processes of a cluster how they are: for `australis status`, the control plane and rolling restarts.

What must hold: one that does not answer costs its own time limit and nobody else's, and is named with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from australis.asker import Asker
from australis.control_plane.topology import RoleConfig
from australis.errors import AustralisError
from australis.keyspace import RELATION_BYTES
from australis.partition_map import PartitionMap, Range
from australis.protocol.messages import (
    Get,
    GetMap,
    GetReply,
    MapReply,
    MoveRange,
    MoveReply,
    MoveShard,
    ReadStatus,
    ShardSubscribe,
    Status,
    StatusReply,
    WantWatermark,
    Watermark,
)
from australis.transport import Address, Identity

ASK_SECONDS = 1.0
RETRY_SECONDS = 0.05

TOOL = "status"
"""Role and name of tools."""

Answer = dict[str, int | float | str]


async def statuses(places: Mapping[str, str], identity: Identity, seconds: float = ASK_SECONDS) -> dict[str, Answer]:
    """Status of each (name -> address); {"error": why} of one that does not answer in time."""

    async def one(place: str) -> Answer:
        try:
            async with asyncio.timeout(seconds), Asker.open(Address.parse(place), identity) as asker:
                while not isinstance(reply := await asker.ask(Status()), StatusReply):
                    pass
                generation = asker.connection.generation
                return {"generation": generation, **reply.status} if generation else dict(reply.status)
        except TimeoutError:
            return {"error": "no answer in time"}
        except (OSError, AustralisError) as error:
            return {"error": str(error) or type(error).__name__}

    answers = await asyncio.gather(*(one(place) for place in places.values()))
    return dict(zip(places, answers, strict=True))


async def overview(
    places: Mapping[str, str], configs: Sequence[RoleConfig], identity: Identity, seconds: float = ASK_SECONDS
) -> tuple[dict[str, Answer], dict[str, Any]]:
    """Status of all, and the newest map: of the control plane, or the first one if that does not answer."""
    answers, newest = await asyncio.gather(statuses(places, identity, seconds), _newest_map(configs, identity, seconds))
    return answers, describe(newest) if newest is not None else {}


async def _newest_map(configs: Sequence[RoleConfig], identity: Identity, seconds: float) -> PartitionMap | None:
    for config in configs:
        if config.role == "control":
            try:
                async with asyncio.timeout(seconds), Asker.open(Address.parse(config.listen), identity) as asker:
                    reply = await asker.ask(GetMap(0))
                    if isinstance(reply, MapReply):
                        return PartitionMap.decode(reply.map)
            except (OSError, AustralisError, TimeoutError):
                pass  # it is named among those that do not answer
            return config.partition_map
    return None


def describe(newest: PartitionMap) -> dict[str, Any]:
    """Owners and their ranges, keys in hexadecimal."""

    def ranges(items: Sequence[Range]) -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for item in items:
            found.setdefault(str(item.owner), []).append((item.lo.hex(), item.hi.hex()))
        return dict(sorted(found.items(), key=lambda one: int(one[0])))

    return {
        "version": newest.version,
        "adjudicators": {str(number): [] for number in newest.adjudicators} | ranges(newest.keys),
        "shards": {str(shard.id): [] for shard in newest.shards} | ranges(newest.placement),
        "replicas": {str(shard.id): list(shard.replicas) for shard in newest.shards},
    }


async def move_range(places: Sequence[str], identity: Identity, request: MoveRange | MoveShard, seconds: float) -> str:
    """Ask the control plane at the first place that answers to move a range; why it was not ('': it was)."""
    cause = "no control plane"
    for place in places:
        try:
            async with asyncio.timeout(seconds), Asker.open(Address.parse(place), identity) as asker:
                reply = await asker.ask(request)
                if isinstance(reply, MoveReply):
                    return reply.error
                cause = f"the control plane answered {type(reply).__name__}"
        except TimeoutError:
            return f"the control plane did not answer within {seconds:.0f} s: see australis status"
        except (OSError, AustralisError) as error:
            cause = str(error)
    return cause


def places_of(config: RoleConfig) -> dict[str, str]:
    """Name -> address of all that a process knows of; a candidate's name carries its address's index."""
    peers = config.peers
    found: dict[str, str] = {}
    for index, address in enumerate(peers.control):
        found["control" if index == 0 else f"control-{index}"] = address
    for number, addresses in peers.adjudicators.items():
        for index, address in enumerate(addresses):
            found[f"adjudicator-{number}" if index == 0 else f"adjudicator-{number}-{index}"] = address
    for index, address in enumerate(peers.crossbars):
        found[f"crossbar-{index}"] = address
    return found | peers.storage | peers.gateways


def tool_identity(cluster: bytes, directory: Path) -> Identity:
    """Who a tool is; `directory` holds its certificate (status.pem), if the cluster has TLS between processes."""
    if not (directory / f"{TOOL}.pem").exists():
        return Identity(cluster, TOOL, TOOL)
    from australis.certs import Files, contexts, peer_check

    server, client = contexts(
        Files(directory / "ca.pem", directory / f"{TOOL}.pem", directory / f"{TOOL}.key"), cluster
    )
    return Identity(cluster, TOOL, TOOL, server_tls=server, client_tls=client, check_peer=peer_check(cluster))


async def caught_up(config: RoleConfig, identity: Identity, clock: Callable[[], int] = time.time_ns) -> None:
    """Return once this process, which serves, does so up to now. Raises nothing: cancel it.

    An adjudicator serves its generation, a crossbar's watermark and a storage replica's reads reach the present; after
    the restart of a NATS server all replicas of all streams are current again.
    """
    role = config.role
    if role == "nats":
        await _replicated(config)
    if role not in ("adjudicator", "crossbar", "storage"):
        return  # serving is all there is
    wanted = clock()
    while True:
        with contextlib.suppress(OSError, AustralisError):
            if role == "adjudicator":  # it, or another candidate
                for place in config.peers.adjudicators[str(config.number)]:
                    with contextlib.suppress(OSError, AustralisError):
                        async with Asker.open(Address.parse(place), identity) as asker:
                            if asker.connection.generation:
                                return
                await asyncio.sleep(RETRY_SECONDS)
                continue
            async with Asker.open(Address.parse(config.listen), identity) as asker:
                if role == "crossbar":
                    key = b"\0" * RELATION_BYTES
                    subscribe = ShardSubscribe("status", [(key, key + b"\0")], -1, b"")
                    answer = await asker.ask(subscribe, WantWatermark(wanted))
                    while not (isinstance(answer, Watermark) and answer.tau >= wanted):
                        answer = await asker.ask()
                    return
                lo = next(item.lo for item in config.partition_map.placement if item.owner == config.number)
                answer = await asker.ask(Get(1, wanted, [lo.ljust(RELATION_BYTES + 1, b"\0")]))
                if isinstance(answer, GetReply) and answer.status in (ReadStatus.OK, ReadStatus.NOT_HELD):
                    return
        await asyncio.sleep(RETRY_SECONDS)


async def _replicated(config: RoleConfig) -> None:
    """Return once every stream has a leader and all its replicas have what it has."""
    import nats.errors
    from nats.js.errors import Error as JetStreamError

    from australis.journal.nats_server import ANSWER_SECONDS, connect

    while True:
        try:
            client = await connect(tuple(config.journal.servers), attempts=1)
            try:
                streams = await client.jetstream(timeout=ANSWER_SECONDS).streams_info()
            finally:
                await client.close()
            clusters = [stream.cluster for stream in streams if stream.cluster is not None]
            if all(one.leader and all(peer.current for peer in one.replicas or []) for one in clusters):
                return
        except (OSError, TimeoutError, nats.errors.Error, JetStreamError):
            pass  # no leader yet
        await asyncio.sleep(RETRY_SECONDS)
