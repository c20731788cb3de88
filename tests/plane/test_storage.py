"""Adjudicators, a crossbar and shards together: reads as of any time are what was committed by then."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from australis.control_plane.topology import Peers, RoleConfig
from australis.crossbar import process as crossbar
from australis.crossbar.process import CrossbarService
from australis.files import write_atomically
from australis.journal.positions import unpack_positions
from australis.protocol.messages import Get, Outcome, ReadStatus, Scan
from australis.storage.shard_process import ShardService
from australis.transport import Link
from tests.plane.parts import CLUSTER, Asker, configs, key, partition, start, write

ROWS = 12


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 90))


class Plane:
    """Everything but gateways, in this process, on Unix sockets in `directory`."""

    def __init__(self, directory: Path, adjudicators: int = 2, shards: int = 2, replicas: int = 1) -> None:
        self.directory = directory
        self.map = partition(adjudicators, shards, replicas)
        self.adjudicator_configs = configs(directory, adjudicators, map=self.map)
        self.peers = Peers(
            adjudicators={str(n): [str(config.listen)] for n, config in enumerate(self.adjudicator_configs)},
            crossbars=[f"unix:{directory}/crossbar.sock"],
            storage={name: f"unix:{directory}/{name}.sock" for shard in self.map.shards for name in shard.replicas},
        )
        self.asker = Asker()
        self.versions: dict[bytes, list[tuple[int, bytes]]] = {}  # what was acknowledged
        self.rng = random.Random(7)
        self._id = 0

    def role(self, role: str, name: str, number: int = 0) -> RoleConfig:
        data = self.directory / name
        data.mkdir(exist_ok=True)
        return RoleConfig(
            cluster=CLUSTER.hex(),
            role=role,  # type: ignore[arg-type]
            name=name,
            number=number,
            listen=f"unix:{self.directory}/{name}.sock",
            data=str(data),
            peers=self.peers,
            map=self.map.encode().hex(),
        )

    async def start(self) -> None:
        self.adjudicators = [await start(config) for config in self.adjudicator_configs]
        await self.start_crossbar()
        self.shards = {
            name: await self.start_shard(shard.id, name) for shard in self.map.shards for name in shard.replicas
        }
        for number, config in enumerate(self.adjudicator_configs):
            self.asker.link(number, config.listen)
        await self.asker.up()

    async def start_crossbar(self) -> None:
        self.crossbar = CrossbarService(crossbar.configured(self.role("crossbar", "crossbar")))
        await self.crossbar.start()

    async def start_shard(self, number: int, name: str) -> ShardService:
        service = ShardService(self.role("storage", name, number))
        await service.start()
        return service

    async def stop(self) -> None:
        await self.asker.close()
        for shard in self.shards.values():
            await shard.stop()
        await self.crossbar.stop()
        for adjudicator in self.adjudicators:
            await adjudicator.stop()

    async def commit(self, keys: list[bytes]) -> int:
        """Commit new values of these keys; returns its time."""
        leader = self.map.adjudicator(keys[0])
        while True:
            value = self.rng.randbytes(8)
            reply = await self.asker.commit(leader, write(keys, values=[value] * len(keys)))
            if reply.outcome == Outcome.COMMITTED:
                for one in keys:
                    self.versions.setdefault(one, []).append((reply.tau, value))
                    self.versions[one].sort()
                return int(reply.tau)

    def expected(self, one: bytes, tau: int) -> bytes | None:
        older = [value for at, value in self.versions.get(one, []) if at <= tau]
        return older[-1] if older else None

    async def read(self, shard: ShardService, keys: list[bytes], tau: int) -> bytes:
        self._id += 1
        loop = asyncio.get_running_loop()
        fresh: asyncio.Future[bool] = loop.create_future()
        shard.when_fresh(tau, fresh.set_result)
        assert await fresh, "not fresh in time"
        reply = shard.get(Get(self._id, tau, keys))
        assert reply.status == ReadStatus.OK
        return reply.batch

    async def check(self, tau: int) -> None:
        """Every replica answers as of tau what was committed by then."""
        for shard in self.shards.values():
            keys = [one for one in self.versions if shard.ranges.holds(one)]
            for one in keys:
                batch = await self.read(shard, [one], tau)
                value = self.expected(one, tau)
                others = [other for _, other in self.versions[one] if other != value]
                assert value is None or value in batch, (one, tau, value, batch)
                assert not any(other in batch for other in others), (one, tau, value, batch)

    def some_keys(self) -> list[bytes]:
        count = self.rng.choice((1, 1, 2, 3))
        return sorted({key(self.rng.randrange(4), self.rng.randrange(ROWS)) for _ in range(count)})


def test_reads_as_of_any_time(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Plane(tmp_path)
        await plane.start()
        times = [await plane.commit(plane.some_keys()) for _ in range(60)]
        await plane.check(time.time_ns())  # a fresh snapshot, behind an idle journal too
        for tau in plane.rng.sample(times, 10):
            await plane.check(tau)
        await plane.stop()

    run(body)


def test_shards_refuse_what_is_not_theirs(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Plane(tmp_path)
        await plane.start()
        tau = await plane.commit([key(0, 1), key(1, 1)])
        await plane.check(tau)
        shard = plane.shards["storage-0-0"]
        assert shard.get(Get(1, tau, [key(1, 1)])).status == ReadStatus.NOT_HELD
        lo, hi = key(0, 0), key(1, 5)
        assert shard.scan(Scan(2, tau, lo, hi, False, 1 << 20, 100)).status == ReadStatus.NOT_HELD
        await plane.stop()

    run(body)


@pytest.mark.parametrize("keep_positions", [True, False])
def test_everything_restarts_in_any_order(tmp_path: Path, keep_positions: bool) -> None:
    async def body() -> None:
        plane = Plane(tmp_path, replicas=2)
        await plane.start()
        for turn in range(12):
            for _ in range(15):
                await plane.commit(plane.some_keys())
            what = plane.rng.choice(("crossbar", "shard", "adjudicator", "lost shard"))
            if what == "crossbar":
                await plane.crossbar.stop()
                if not keep_positions:
                    (tmp_path / "crossbar" / "positions").unlink(missing_ok=True)
                await plane.start_crossbar()
            elif what == "adjudicator":
                number = plane.rng.randrange(2)
                await plane.asker.links[number].close()
                await plane.adjudicators[number].stop()
                plane.adjudicators[number] = await start(plane.adjudicator_configs[number])
                plane.asker.link(number, plane.adjudicator_configs[number].listen)
                await plane.asker.up()
            else:
                name = plane.rng.choice(sorted(plane.shards))
                number = plane.shards[name].config.number
                await plane.shards[name].stop()
                if what == "lost shard":
                    shutil.rmtree(tmp_path / name / "storage")
                await plane.commit(plane.some_keys())
                plane.shards[name] = await plane.start_shard(number, name)
            if turn % 3 == 2:
                await plane.check(time.time_ns())
        await plane.check(time.time_ns())
        await plane.stop()

    run(body)


def test_connections_that_break_cost_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Plane(tmp_path)
        await plane.start()
        for turn in range(40):
            for _ in range(5):
                await plane.commit(plane.some_keys())
            for server in (plane.adjudicators[turn % 2]._server, plane.crossbar._server):
                assert server is not None
                for connection in list(server.connections):
                    if connection.peer is not None and connection.peer.role != "gateway":
                        connection.transport.abort()
            await plane.check(time.time_ns())
        assert not plane.crossbar.failed.done()
        await plane.stop()

    run(body)


def test_a_crossbar_that_falls_behind_reads_on_where_it_was(tmp_path: Path) -> None:
    """From the journal, once the adjudicator's memory no longer holds what is next; nothing is sent twice."""

    async def body() -> None:
        plane = Plane(tmp_path, adjudicators=1, shards=1)
        await plane.start()
        for _ in range(3):
            await plane.commit([key(0, 1)])
        await plane.check(time.time_ns())
        tail = plane.crossbar.tails[0]
        for _ in range(2):
            tail.pause()
            big = write([key(1, 1)], values=[bytes(1 << 20)])
            for n in range(24):
                assert (await plane.asker.commit(0, write([key(1, n)], values=[bytes(1 << 20)]))).outcome == 0, big
                await plane.commit([key(0, 1)])
            tail.resume()
            await plane.check(time.time_ns())
        assert not plane.crossbar.failed.done()
        await plane.stop()

    run(body)


@pytest.mark.parametrize("crossbar_restarts", [False, True])
def test_a_journal_that_lost_its_end_is_an_alarm(tmp_path: Path, crossbar_restarts: bool) -> None:
    """What was applied is not in the journal any more: refused, loudly, whoever remembers it."""

    async def body() -> None:
        plane = Plane(tmp_path, adjudicators=1, shards=1)
        await plane.start()
        await plane.commit([key(0, 1)])
        await plane.check(time.time_ns())
        config = plane.adjudicator_configs[0]
        await plane.asker.close()
        await plane.adjudicators[0].stop()
        shutil.copytree(config.data / "journal", tmp_path / "copy")
        plane.adjudicators[0] = await start(config)
        plane.asker = Asker()
        plane.asker.link(0, config.listen)
        await plane.asker.up()
        for n in range(5):
            last = await plane.commit([key(0, n)])
        await plane.check(time.time_ns())
        shard = plane.shards["storage-0-0"]
        while not shard.positions or unpack_positions(shard.positions)[0] < last:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # they come a moment after the records
        await plane.asker.close()
        await plane.adjudicators[0].stop()
        if crossbar_restarts:
            await plane.crossbar.stop()
            (tmp_path / "crossbar" / "positions").unlink()
        shutil.rmtree(config.data / "journal")
        shutil.copytree(tmp_path / "copy", config.data / "journal")
        plane.adjudicators[0] = await start(config)
        if crossbar_restarts:
            await plane.start_crossbar()
        error = await plane.crossbar.failed
        assert "ALARM: journal 0 does not hold record" in str(error)
        await plane.stop()

    run(body)


@pytest.mark.parametrize("ahead", [1, 2])
def test_one_diverged_replica_is_refused_and_two_accuse_the_journal(tmp_path: Path, ahead: int) -> None:
    """A journal is put back as it was: whoever had applied more is refused; the crossbar goes on for the others."""

    async def body() -> None:
        plane = Plane(tmp_path, adjudicators=1, shards=1, replicas=2)
        await plane.start()
        await plane.commit([key(0, 1)])
        await plane.check(time.time_ns())
        config = plane.adjudicator_configs[0]
        for name in list(plane.shards)[ahead:]:
            await plane.shards.pop(name).stop()
        await plane.asker.close()
        await plane.adjudicators[0].stop()
        shutil.copytree(config.data / "journal", tmp_path / "copy")
        before = dict(plane.versions)

        async def again() -> None:
            plane.adjudicators[0] = await start(config)
            plane.asker = Asker()
            plane.asker.link(0, config.listen)
            await plane.asker.up()

        await again()
        last = await plane.commit([key(0, 2)])
        await plane.check(time.time_ns())
        while not all(s.positions and unpack_positions(s.positions)[0] >= last for s in plane.shards.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # they come a moment after the records
        diverged = list(plane.shards)
        for shard in plane.shards.values():
            await shard.stop()
        await plane.crossbar.stop()
        (tmp_path / "crossbar" / "positions").unlink()
        await plane.asker.close()
        await plane.adjudicators[0].stop()
        shutil.rmtree(config.data / "journal")
        shutil.copytree(tmp_path / "copy", config.data / "journal")
        await again()
        await plane.start_crossbar()
        plane.versions = before
        plane.shards = {name: await plane.start_shard(0, name) for name in ("storage-0-0", "storage-0-1")}
        for name in diverged:
            assert "ALARM: a journal does not hold" in str(await plane.shards[name].failed)
        if ahead == 2:
            error = await plane.crossbar.failed
            assert "ALARM: journal 0 does not hold record" in str(error)
            assert "storage-0-0 and storage-0-1" in str(error)
        else:
            await plane.shards.pop(diverged[0]).stop()
            await plane.commit([key(0, 3)])
            await plane.check(time.time_ns())
            assert not plane.crossbar.failed.done()
            assert plane.crossbar.status()["refused_replicas"] == 1
        await plane.stop()

    run(body)


def test_journals_that_begin_are_followed_once_their_address_is_known(tmp_path: Path) -> None:
    """Without it the crossbar waits and says so; with it a replica that is catching up meanwhile reads them, too."""

    async def body() -> None:
        plane = Plane(tmp_path, adjudicators=2, shards=1, replicas=2)
        await plane.start()
        await plane.commit([key(0, 1)])
        await plane.check(time.time_ns())
        late = plane.shards.pop("storage-0-1")
        await late.stop()
        hub = plane.crossbar.hub
        hub._keep = 0  # who catches up finds nothing in memory, and has to read on to where the journals are by then
        await plane.commit([key(0, 2)])
        await plane.check(time.time_ns())
        held: list[tuple[crossbar._Tail, list[Any]]] = []
        begin = crossbar._Tail.start

        def hold(tail: crossbar._Tail, addresses: list[Any]) -> None:
            if tail._follower is hub.follower:
                begin(tail, addresses)
            else:
                tail._link = Link(addresses, tail._service.config.identity, tail)
                held.append((tail, addresses))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crossbar._Tail, "start", hold)
            plane.shards["storage-0-1"] = await plane.start_shard(0, "storage-0-1")
            while len(held) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        system = plane.adjudicators[0]
        assert system.node is not None
        system._carry_out(system.node.begin_journal("control", 2, system.config.clock.now()))
        while 2 not in hub.follower.journals:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert plane.crossbar.unaddressed == {2}
        assert plane.crossbar.status()["state"] == "connecting"
        assert not plane.crossbar.failed.done()
        newcomer = configs(tmp_path, 3, map=plane.map, born=hub.follower.promised(2))[2]
        plane.adjudicators.append(await start(newcomer))
        plane.crossbar.config.adjudicators[2] = [newcomer.listen]
        plane.crossbar.unaddressed.clear()
        await plane.commit([key(1, 3)])
        await plane.read(plane.shards["storage-0-0"], [key(1, 3)], time.time_ns())
        for tail, addresses in held:
            begin(tail, addresses)
        await plane.check(time.time_ns())
        while hub.subscribers and not all(subscriber.live for subscriber in hub.subscribers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await plane.stop()

    run(body)


def test_a_crossbar_without_space_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its positions are a hint; they are written again when there is space."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        tried, noted = asyncio.Event(), asyncio.Event()
        full = True

        def disk(file: Path, content: bytes) -> None:
            if full:
                loop.call_soon_threadsafe(tried.set)
                raise OSError(errno.ENOSPC, "No space left on device")
            write_atomically(file, content)
            loop.call_soon_threadsafe(noted.set)

        monkeypatch.setattr(crossbar, "write_atomically", disk)
        plane = Plane(tmp_path, adjudicators=1, shards=1)
        await plane.start()
        await plane.commit([key(0, 1)])
        await tried.wait()
        await plane.commit([key(0, 2)])
        await plane.check(time.time_ns())
        full = False
        await plane.commit([key(0, 3)])
        await noted.wait()
        assert unpack_positions((tmp_path / "crossbar" / "positions").read_bytes())[1][0].sequence > 0
        await plane.stop()

    run(body)
