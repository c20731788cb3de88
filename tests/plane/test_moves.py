"""Ranges that move between shards while they are read and written: every read is right, whoever answers it."""

from __future__ import annotations

import asyncio
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from australis.keyspace import KEYSPACE_END, KeyRanges
from australis.partition_map import PartitionMap, Range
from australis.protocol.messages import Get, Mode, ModeFlag, Outcome, ReadStatus, Scan
from australis.role_config import RoleConfig
from australis.storage import holdings
from australis.storage.holdings import NOTHING, unpack_ranges
from australis.storage.shard_process import ShardService
from australis.storage.store import pack_ranges
from tests.plane.parts import key, write
from tests.plane.test_storage import ROWS, Plane, run

NONE = b"deleted"


async def until(done: Callable[[], bool]) -> None:
    """Services in this loop tell nobody when they get there: ask after each of its rounds."""
    while not done():  # noqa: ASYNC110
        await asyncio.sleep(0)


def recorded(shard: ShardService) -> list[tuple[bytes, bytes]]:
    """What its store says that it holds."""
    return unpack_ranges(shard.store.meta(holdings.HELD) or b"")


def went_on(shard: ShardService, pages: int, lo: bytes, hi: bytes) -> bool:
    """Has it taken another page, or all?"""
    return shard.keeper.pages > pages or shard.ranges.covers(lo, hi)


class Moving(Plane):
    """A plane whose map changes; the test is its control plane."""

    retention = 300.0

    def role(self, role: str, name: str, number: int = 0) -> RoleConfig:
        return msgspec.structs.replace(super().role(role, name, number), retention=self.retention)

    async def commit(self, keys: list[bytes]) -> int:
        """As there, but some rows are deleted."""
        if self.rng.random() < 0.7:
            return await super().commit(keys)
        while True:
            message = write(keys, values=[None] * len(keys))
            message = msgspec.structs.replace(message, modes=bytes([Mode.UPDATE | ModeFlag.DELETE]) * len(keys))
            reply = await self.asker.commit(self.map.adjudicator(keys[0]), message)
            if reply.outcome == Outcome.COMMITTED:
                for one in keys:
                    self.versions.setdefault(one, []).append((reply.tau, NONE))
                    self.versions[one].sort()
                return int(reply.tau)

    def expected(self, one: bytes, tau: int) -> bytes | None:
        found = super().expected(one, tau)
        return None if found == NONE else found

    def publish(self, partition: PartitionMap) -> None:
        self.map = partition
        for shard in self.shards.values():
            shard.learn_map(partition.encode())

    async def holds(self, shard: int, lo: bytes, hi: bytes) -> None:
        """Until all replicas of the shard do."""
        for name in self.map.replicas[shard]:
            await until(functools.partial(self._covers, name, lo, hi))

    def _covers(self, name: str, lo: bytes, hi: bytes) -> bool:
        return self.shards[name].ranges.covers(lo, hi)

    async def move(self, lo: bytes, hi: bytes, target: int) -> None:
        self.publish(self.map.arriving([Range(lo, hi, target)]))
        await self.holds(target, lo, hi)
        self.publish(self.map.arrived())

    async def left(self) -> None:
        """Until nobody holds what the map gives to others, and nothing of it is on its disk."""

        def done() -> bool:
            return all(
                shard.ranges.list == recorded(shard) == KeyRanges(self.map.placed(shard.config.number)).list
                and not shard.holdings.leaving.list  # after the record: it is there before that changes
                for shard in self.shards.values()
            )

        await until(done)

    async def check_all(self, tau: int) -> None:
        """All replicas that the map names answer for every key."""
        for one in list(self.versions):
            for name in self.map.replicas[self.map.shard(one)]:
                batch = await self.read(self.shards[name], [one], tau)
                value = self.expected(one, tau)
                others = [other for _, other in self.versions[one] if other != value]
                assert value is None or value in batch, (name, one, tau)
                assert not any(other in batch for other in others), (name, one, tau)


@pytest.mark.parametrize(("page_bytes", "retention"), [(1, 300.0), (200, 1.0), (1 << 19, 1.0)])
def test_moves_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_bytes: int, retention: float
) -> None:
    monkeypatch.setattr(Moving, "retention", retention)
    monkeypatch.setattr(holdings, "PAGE_BYTES", page_bytes)
    monkeypatch.setattr(holdings, "ERASE_ENTRIES", 2)

    async def body() -> None:
        plane = Moving(tmp_path, shards=3, replicas=2)
        await plane.start()
        times: list[int] = []
        stop = asyncio.Event()

        async def work() -> None:
            while not stop.is_set():
                times.append(await plane.commit(plane.some_keys()))

        worker = asyncio.create_task(work())
        bounds = sorted(key(table, row) for table in range(4) for row in range(0, ROWS, 5))
        for _ in range(14):
            lo, hi = sorted(plane.rng.sample(bounds, 2))
            target = plane.rng.randrange(3)
            await plane.move(lo, hi, target)
            await plane.check_all(times[-1] if times else 0)
        stop.set()
        await worker
        await plane.check_all(time.time_ns())
        if retention > 60:
            for tau in plane.rng.sample(times, 10):
                await plane.check_all(tau)
        await plane.left()
        now = time.time_ns()
        for shard in plane.shards.values():
            rows = [one for one in plane.versions if shard.ranges.holds(one)]
            live = sum(plane.expected(one, now) is not None for one in rows)
            assert live <= shard.store.size()["main_entries"] <= len(rows)  # the others may be tombstones still
        await plane.stop()

    run(body)


def test_a_replica_that_is_killed_while_it_takes_over_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "PAGE_BYTES", 1)
    monkeypatch.setattr(holdings, "ERASE_ENTRIES", 1)

    async def body() -> None:
        plane = Moving(tmp_path, shards=2)
        await plane.start()
        rows = [key(0, n) for n in range(60)]
        for one in rows:
            await plane.commit([one])
        for lo, hi, target in ((rows[0], rows[59] + b"\xff", 1), (rows[0], rows[30], 0)):
            plane.publish(plane.map.arriving([Range(lo, hi, target)]))
            name = f"storage-{target}-0"
            for _ in range(4):
                shard = plane.shards[name]
                had = shard.keeper.pages
                await until(functools.partial(went_on, shard, had, lo, hi))
                await shard.stop()
                await plane.commit([plane.rng.choice(rows)])
                plane.shards[name] = await plane.start_shard(target, name)
                plane.shards[name].learn_map(plane.map.encode())
            await plane.holds(target, lo, hi)
            plane.publish(plane.map.arrived())
            loser = f"storage-{1 - target}-0"
            await plane.shards[loser].stop()  # while it erases
            plane.shards[loser] = await plane.start_shard(1 - target, loser)
            plane.shards[loser].learn_map(plane.map.encode())
        await plane.check_all(time.time_ns())
        await plane.left()
        await plane.stop()

    run(body)


def test_what_was_left_is_refused_and_a_move_can_be_given_up(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Moving(tmp_path, shards=2)
        await plane.start()
        tau = await plane.commit([key(0, 1), key(0, 2)])
        lo, hi = key(0, 2), key(0, 3)
        plane.publish(plane.map.arriving([Range(lo, hi, 1)]))
        await plane.holds(1, lo, hi)
        plane.publish(plane.map.arriving([]))
        await plane.left()
        await plane.check_all(tau)
        await plane.move(lo, hi, 1)
        await plane.left()
        old = plane.shards["storage-0-0"]
        assert old.get(Get(1, tau, [key(0, 2)])).status == ReadStatus.NOT_HELD
        assert old.get(Get(1, tau, [key(0, 1)])).status == ReadStatus.OK
        assert old.scan(Scan(1, tau, key(0, 0), key(0, 9), False, 1 << 20, 9)).status == ReadStatus.NOT_HELD
        # nothing at all is left
        await plane.move(b"", KEYSPACE_END, 1)
        await plane.left()
        assert old.ranges.list == [] and old.store.size()["main_entries"] == 0
        await plane.commit([key(0, 1)])
        await plane.check_all(time.time_ns())
        assert old.store.size()["main_entries"] == 0
        await plane.shards["storage-0-0"].stop()
        plane.shards["storage-0-0"] = await plane.start_shard(0, "storage-0-0")
        assert plane.shards["storage-0-0"].ranges.list == []
        await plane.stop()

    run(body)


def test_a_replica_is_filled_by_the_other_one(tmp_path: Path) -> None:
    """From nothing, as after a loss with journals that do not reach back."""

    async def body() -> None:
        plane = Moving(tmp_path, shards=2, replicas=2)
        await plane.start()
        for _ in range(60):
            await plane.commit(plane.some_keys())
        name = "storage-0-1"
        await plane.shards[name].stop()
        shutil.rmtree(tmp_path / name / "storage")
        service = ShardService(plane.role("storage", name, 0), attempt=2)
        await service.start()
        plane.shards[name] = service
        for _ in range(30):
            await plane.commit(plane.some_keys())
        for lo, hi in plane.map.placed(0):
            await plane.holds(0, lo, hi)
        assert service.keeper.pages > 0
        tau = await plane.commit(plane.some_keys())
        await plane.check_all(tau)
        # and it goes on after a restart
        await service.stop()
        await plane.commit(plane.some_keys())
        plane.shards[name] = await plane.start_shard(0, name)
        await plane.check_all(time.time_ns())
        await plane.stop()

    run(body)


def test_a_source_that_is_behind_holds_nobody_up(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Moving(tmp_path, shards=2)
        await plane.start()
        await plane.commit([key(0, 1), key(1, 1)])
        source, target = plane.shards["storage-0-0"], plane.shards["storage-1-0"]
        asked: list[int] = []
        fresh = source.when_fresh
        source.when_fresh = lambda tau, then: asked.append(tau)  # type: ignore[method-assign]
        plane.publish(plane.map.arriving([Range(key(0, 0), key(0, 9), 1)]))
        await until(lambda: bool(asked))
        assert not target.writing.locked()
        source.when_fresh = fresh  # type: ignore[method-assign]
        await plane.stop()

    run(body)


def test_packed_ranges() -> None:
    for ranges in ([], NOTHING, [(b"", b"\x01"), (b"\x02" * 300, KEYSPACE_END)]):
        assert unpack_ranges(pack_ranges(ranges)) == ranges
    with pytest.raises(ValueError, match="cut short"):
        unpack_ranges(b"\x00\x05abc")


def test_an_older_map_makes_nobody_leave_anything(tmp_path: Path) -> None:
    """A replica that starts with the map of its file, which is that of the cluster's beginning."""

    async def body() -> None:
        plane = Moving(tmp_path, shards=2)
        first = plane.map
        await plane.start()
        for row in range(5):
            await plane.commit([key(0, row)])
        await plane.move(key(0, 0), key(0, 9), 1)
        await plane.left()
        newest = plane.map
        for number in (0, 1):
            name = f"storage-{number}-0"
            await plane.shards[name].stop()
            plane.map = first
            plane.shards[name] = await plane.start_shard(number, name)
            plane.map = newest
            plane.shards[name].learn_map(first.encode())
        tau = await plane.commit([key(0, 3)])
        await plane.check_all(tau)
        assert all(shard.map.version == newest.version for shard in plane.shards.values())
        assert plane.shards["storage-1-0"].ranges.covers(key(0, 0), key(0, 9))
        await plane.stop()

    run(body)


def test_a_range_that_comes_back_before_it_was_left_stays(tmp_path: Path) -> None:
    """Whoever reports it as held under the map that brings it back must not leave it by the one before."""

    async def body() -> None:
        plane = Moving(tmp_path, shards=2)
        await plane.start()
        await plane.commit([key(0, 1)])
        lo, hi = key(0, 0), key(0, 9)
        await plane.move(lo, hi, 1)
        await plane.left()
        old = plane.shards["storage-1-0"]
        gone = plane.map.arriving([Range(lo, hi, 0)]).arrived()
        back = gone.arriving([Range(lo, hi, 1)])
        old.holdings.map, old.map = gone, back  # it follows the one, and has just heard of the other
        await old.keeper._leave()
        assert old.ranges.covers(lo, hi)
        await plane.stop()

    run(body)
