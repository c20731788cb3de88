"""Snapshots of shards that run: journals are trimmed behind them, replicas start from them; nothing is missed."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from pathlib import Path

import msgspec
import pytest

from australis.crossbar import process as crossbar
from australis.journal.files import FilesJournal
from australis.journal.positions import pack_positions, unpack_positions
from australis.journal.record import Position
from australis.keyspace import KEYSPACE_END
from australis.objects import ObjectError
from australis.partition_map import Range
from australis.role_config import RoleConfig
from australis.storage import shard_keeper, shard_process
from australis.storage.shard_keeper import due, kept
from australis.storage.shard_process import ShardService
from australis.storage.shard_snapshots import ShardSnapshot, ShardSnapshots, SnapshotStoppedError
from tests.plane.parts import key
from tests.plane.test_moves import Moving, until
from tests.plane.test_storage import run


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_keeper, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(shard_keeper, "UNSECURED_SECONDS", 0.05)
    monkeypatch.setattr(shard_keeper, "STAGGER_SECONDS", 0.1)
    monkeypatch.setattr(shard_process, "REPORT_SECONDS", 0.05)
    monkeypatch.setattr(crossbar, "TRIM_SECONDS", 0.1)
    sizes = FilesJournal.__init__.__kwdefaults__  # segments are trimmed as a whole
    assert sizes is not None
    monkeypatch.setitem(sizes, "segment_bytes", 1 << 14)
    monkeypatch.setitem(sizes, "first_segment_bytes", 1 << 14)


class Kept(Moving):
    """A plane with an object store."""

    def role(self, role: str, name: str, number: int = 0) -> RoleConfig:
        return msgspec.structs.replace(
            super().role(role, name, number), objects=f"file://{self.directory}/objects", snapshot_seconds=0.2
        )

    def oldest(self, number: int) -> int:
        """First sequence of a journal."""
        journal = self.adjudicators[number].journal
        return int(journal.oldest().sequence)

    async def trimmed(self) -> None:
        """Write until both journals have lost their beginning."""
        while not all(self.oldest(number) for number in (0, 1)):
            for _ in range(20):
                await self.commit(self.some_keys())

    async def start_shard(self, number: int, name: str) -> ShardService:
        """As `serve` does."""
        shard_process.prepare(self.role("storage", name, number), 0, threading.Event())
        return await super().start_shard(number, name)

    async def lose(self, name: str) -> None:
        await self.shards[name].stop()
        shutil.rmtree(self.directory / name / "storage")


def test_after_a_loss_of_everything_that_storage_had(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Kept(tmp_path, replicas=2)
        await plane.start()
        for _ in range(40):
            await plane.commit(plane.some_keys())
        await plane.trimmed()
        assert plane.crossbar.status()["trim_waits_for"] == ""
        for name in sorted(plane.shards):
            await plane.lose(name)
        await plane.commit(plane.some_keys())
        for name in sorted(plane.shards):
            plane.shards[name] = await plane.start_shard(int(name.split("-")[1]), name)
            assert plane.shards[name].store.applied > 0  # from a snapshot
        tau = await plane.commit(plane.some_keys())
        await plane.check_all(tau)
        # a crossbar that knows nothing begins where the journals do
        await plane.crossbar.stop()
        (tmp_path / "crossbar" / "positions").unlink()
        await plane.start_crossbar()
        tau = await plane.commit(plane.some_keys())
        await plane.check_all(tau)
        await plane.stop()

    run(body)


def test_a_range_that_moved_is_in_a_snapshot_before_it_is_given_away(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Kept(tmp_path)
        await plane.start()
        for row in range(12):
            await plane.commit([key(0, row)])
        await plane.trimmed()
        lo, hi = key(0, 0), key(0, 99)
        plane.publish(plane.map.arriving([Range(lo, hi, 1)]))
        target = plane.shards["storage-1-0"]
        await until(lambda: any(a <= lo and hi <= b for a, b in target._load().held))
        snapshots = ShardSnapshots(target.snapshots._snapshots._objects, target.cluster, 1).snapshots()  # type: ignore[union-attr]
        assert snapshots[0].covers([(lo, hi)])
        plane.publish(plane.map.arrived())
        await plane.left()
        await plane.commit(plane.some_keys())
        for name in sorted(plane.shards):
            await plane.lose(name)
        for name in sorted(plane.shards):
            plane.shards[name] = await plane.start_shard(int(name.split("-")[1]), name)
        tau = await plane.commit(plane.some_keys())
        await plane.check_all(tau)
        await plane.stop()

    run(body)


def test_a_replica_that_was_away_for_long_starts_over(tmp_path: Path) -> None:
    """Its own store is older than the journals: `serve` goes on with the newest snapshot, without anybody's help."""

    async def body() -> None:
        plane = Kept(tmp_path, replicas=2)
        await plane.start()
        for _ in range(30):
            await plane.commit(plane.some_keys())
        name = "storage-0-1"
        old = plane.shards[name]
        await until(lambda: old.positions != b"")
        await old.stop()
        at = {journal: position.sequence for journal, position in unpack_positions(old.positions)[1].items()}
        while not all(plane.oldest(number) > at.get(number, 0) for number in (0, 1)):
            await plane.commit(plane.some_keys())
        await plane.crossbar.stop()  # it has all of it in its memory
        await plane.start_crossbar()
        stop = asyncio.Event()
        config = plane.role("storage", name, 0)
        started: list[ShardService] = []
        original = ShardService.start

        async def start(self: ShardService) -> None:
            started.append(self)
            await original(self)

        ShardService.start = start  # type: ignore[method-assign]
        try:
            serving = asyncio.create_task(shard_process.serve(config, stop))
            await until(lambda: len(started) == 2 and started[1].state == "following")
            plane.shards[name] = started[1]
            tau = await plane.commit(plane.some_keys())
            await plane.check_all(tau)
            del plane.shards[name]
            stop.set()
            await serving
        finally:
            ShardService.start = original  # type: ignore[method-assign]
        await plane.stop()

    run(body)


def test_a_crossbar_that_was_away_for_long_begins_anew(tmp_path: Path) -> None:
    """Where it was has been trimmed: it says so and ends once, and its next start begins where the journals do."""

    async def body() -> None:
        plane = Kept(tmp_path)
        await plane.start()
        await plane.commit(plane.some_keys())
        await plane.check_all(time.time_ns())
        await plane.crossbar.stop()
        old = (tmp_path / "crossbar" / "positions").read_bytes()
        await plane.start_crossbar()
        await plane.trimmed()
        await plane.crossbar.stop()
        (tmp_path / "crossbar" / "positions").write_bytes(old)
        await plane.start_crossbar()
        assert "trimmed beyond" in str(await plane.crossbar.failed)
        await plane.crossbar.stop()
        await plane.start_crossbar()
        tau = await plane.commit(plane.some_keys())
        await plane.check_all(tau)
        assert not plane.crossbar.failed.done()
        await plane.stop()

    run(body)


def test_a_stale_store_stays_until_a_snapshot_has_replaced_it(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Kept(tmp_path)
        await plane.start()
        await plane.commit([key(0, 1)])
        await plane.trimmed()
        await plane.shards["storage-0-0"].stop()
        config = plane.role("storage", "storage-0-0", 0)
        file = tmp_path / "storage-0-0" / "storage" / "data.mdb"
        before = file.read_bytes()
        away = msgspec.structs.replace(config, objects=f"file://{tmp_path}/crossbar/positions/none")
        with pytest.raises(ObjectError):
            shard_process.prepare(away, 1, threading.Event())
        assert file.read_bytes() == before
        ended = threading.Event()
        ended.set()
        with pytest.raises(SnapshotStoppedError):
            shard_process.prepare(config, 1, ended)
        assert file.read_bytes() == before
        # a damaged one goes, with or without an object store that answers
        for objects, restored in ((away.objects, False), (config.objects, True)):
            file.write_bytes(b"no store")
            shard_process.prepare(msgspec.structs.replace(config, objects=objects), 0, threading.Event())
            assert file.exists() == restored
        plane.shards["storage-0-0"] = await plane.start_shard(0, "storage-0-0")
        await plane.check_all(time.time_ns())
        await plane.stop()

    run(body)


def test_without_an_object_store_that_works_nothing_is_trimmed(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Kept(tmp_path)
        (tmp_path / "objects").write_text("a file, not a directory")
        await plane.start()
        for _ in range(30):
            await plane.commit(plane.some_keys())
        await until(lambda: all(shard.status()["snapshot_error"] != "" for shard in plane.shards.values()))
        await until(lambda: plane.crossbar.status()["trim_waits_for"] == "0,1")
        assert [plane.oldest(number) for number in (0, 1)] == [0, 0]
        await plane.check_all(time.time_ns())
        await plane.lose("storage-0-0")
        plane.shards["storage-0-0"] = await plane.start_shard(0, "storage-0-0")
        await plane.check_all(time.time_ns())
        await plane.stop()

    run(body)


def a_snapshot(tau: int, sequences: dict[int, int], hi: bytes = KEYSPACE_END) -> ShardSnapshot:
    positions = {journal: Position(sequence, 1, b"h" * 16) for journal, sequence in sequences.items()}
    return ShardSnapshot(
        f"{tau:020}-x",
        0,
        tau,
        pack_positions(tau, positions),
        [(b"", hi)],
        1,
        0,
        0,
        "",
        0.0,
        None,  # type: ignore[arg-type]
    )


def test_what_may_be_forgotten() -> None:
    everything = [(b"", KEYSPACE_END)]
    newest, older = a_snapshot(20, {0: 9, 1: 4, 2: 1}), a_snapshot(10, {0: 5, 1: 4})
    tau, positions = unpack_positions(kept([newest, older, a_snapshot(1, {0: 1})], everything))
    assert (tau, {journal: position.sequence for journal, position in positions.items()}) == (10, {0: 5, 1: 4})
    assert kept([newest], everything) == b""
    assert kept([newest, a_snapshot(10, {0: 5}, b"\x10")], everything) == b""
    assert kept([newest, a_snapshot(10, {0: 5}, b"\x10")], [(b"", b"\x05")]) != b""


def test_when_a_snapshot_is_due() -> None:
    def is_due(age: float, records: int = 1, rank: int = 0, unsecured: bool = False) -> bool:
        return due(age=age, records=records, rank=rank, every=300, every_records=1000, unsecured=unsecured)

    assert is_due(float("inf")) and is_due(300.0)
    assert not is_due(299.0) and not is_due(400.0, records=0) and not is_due(300.0, rank=1)
    assert is_due(300.0 + shard_keeper.STAGGER_SECONDS, rank=1)
    assert is_due(20.0, records=1000) and not is_due(20.0, records=1000, rank=1) and not is_due(5.0, records=9999)
    assert is_due(2.0, records=0, unsecured=True) and not is_due(0.01, unsecured=True)
