"""Replicas that write snapshots, and start again from one: lost, damaged, behind; with an object store that fails."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from australis.control_plane.topology import RoleConfig
from australis.storage import shard_keeper
from australis.storage.shard_keeper import SNAPSHOT_BYTES, is_due
from australis.storage.shard_process import ShardService
from australis.storage.store import DATA_FILE
from tests.plane.test_storage import Plane, run

NAME = "storage-0-0"


class Kept(Plane):
    """With an object store, and snapshots as often as something changes."""

    seconds = 0.2

    def role(self, role: str, name: str, number: int = 0) -> RoleConfig:
        config = super().role(role, name, number)
        fields = {field: getattr(config, field) for field in config.__struct_fields__}
        return RoleConfig(**fields | {"objects": f"file://{self.directory}/objects", "snapshot_seconds": self.seconds})

    async def snapshot_of(self, tau: int, name: str = NAME) -> None:
        """There is one that holds everything up to this time."""
        shard = self.shards[name]
        while shard.snapshots.newest_tau < tau:  # noqa: ASYNC110 - another thread writes it
            await asyncio.sleep(0.02)

    async def again(self, name: str = NAME) -> ShardService:
        self.shards[name] = await self.start_shard(0, name)
        return self.shards[name]


def events(logs: Sequence[Mapping[str, object]]) -> list[object]:
    return [entry["event"] for entry in logs]


def damage(objects: Path) -> None:
    """One bit of each part of shard 0."""
    for part in objects.glob("*/shard-0/parts/*/*"):
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.chmod(0o600)
        part.write_bytes(content)


def test_whose_turn() -> None:
    assert is_due(10, 0, 0, 10) and not is_due(9.9, 0, 0, 10)
    assert is_due(15, 0, 1, 10) and not is_due(14.9, 0, 1, 10)
    assert is_due(1, SNAPSHOT_BYTES, 0, 10) and not is_due(0.9, SNAPSHOT_BYTES, 0, 10)
    assert not is_due(2, SNAPSHOT_BYTES, 1, 10) and is_due(2, 2 * SNAPSHOT_BYTES, 1, 10)
    for rank in range(3):  # whatever comes in, the others are not due when the first has just been
        assert not is_due(0.5, SNAPSHOT_BYTES // 2, rank, 10)


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_replica_starts_again_from_a_snapshot(tmp_path: Path, how: str) -> None:
    async def body() -> None:
        plane = Kept(tmp_path)
        await plane.start()
        for _ in range(60):
            tau = await plane.commit(plane.some_keys())
        await plane.check(tau)
        await plane.snapshot_of(plane.shards[NAME].store.applied)
        await plane.shards[NAME].stop()
        if how == "lost":
            shutil.rmtree(tmp_path / NAME / "storage")
        else:
            (tmp_path / NAME / "storage" / DATA_FILE).write_bytes(bytes(8192))
        after = 0
        for _ in range(5):
            after += len(plane.some_keys())
            tau = await plane.commit(plane.some_keys())
        with capture_logs() as logs:
            service = await plane.again()
        assert "storage.snapshot_restored" in events(logs)
        await plane.check(tau)
        await plane.check(time.time_ns())
        assert service.records <= after + 10  # what came after the snapshot, not the 60
        await plane.stop()

    run(body)


def test_killed_in_the_middle_leaves_what_was(tmp_path: Path) -> None:
    """Half a snapshot, and half a restore, count for nothing."""

    async def body() -> None:
        plane = Kept(tmp_path)
        await plane.start()
        tau = await plane.commit(plane.some_keys())
        await plane.check(tau)
        await plane.snapshot_of(plane.shards[NAME].store.applied)
        await plane.shards[NAME].stop()
        for left in ("snapshot", "storage.fetched", "storage.fetched.restoring"):
            (tmp_path / NAME / left).mkdir()
            (tmp_path / NAME / left / DATA_FILE).write_bytes(b"half")
        shutil.rmtree(tmp_path / NAME / "storage")  # killed between removing the old one and putting the new there
        await plane.again()
        await plane.check(tau)
        tau = await plane.commit(plane.some_keys())
        await plane.check(tau)
        await plane.snapshot_of(plane.shards[NAME].store.applied)
        assert not (tmp_path / NAME / "snapshot").exists()
        await plane.stop()

    run(body)


def test_an_object_store_that_lies_or_is_missing(tmp_path: Path) -> None:
    """One line, and the journals instead: never less."""

    async def body() -> None:
        plane = Kept(tmp_path)
        await plane.start()
        for _ in range(20):
            tau = await plane.commit(plane.some_keys())
        await plane.check(tau)
        await plane.snapshot_of(plane.shards[NAME].store.applied)
        await plane.shards[NAME].stop()
        damage(tmp_path / "objects")
        shutil.rmtree(tmp_path / NAME / "storage")
        with capture_logs() as logs:
            await plane.again()
        assert "storage.snapshot_damaged" in events(logs)
        assert "storage.no_snapshot_restored" in events(logs)
        await plane.check(tau)

        await plane.shards[NAME].stop()
        shutil.rmtree(tmp_path / NAME / "storage")
        shutil.rmtree(tmp_path / "objects")
        (tmp_path / "objects").write_bytes(b"no directory")
        with capture_logs() as logs:
            service = await plane.again()
            assert "storage.no_snapshot_restored" in events(logs)
            await plane.check(tau)
            while service.snapshots.failures < 2:  # noqa: ASYNC110 - another thread tries
                await asyncio.sleep(0.02)
        said = [entry["shard"] for entry in logs if entry["event"] == "storage.no_snapshot_written"]
        assert said.count(0) == 1
        assert not service.failed.done()
        await plane.check(await plane.commit(plane.some_keys()))
        await plane.stop()

    run(body)


def test_a_snapshot_that_is_older_than_the_store_does_not_replace_it(tmp_path: Path) -> None:
    async def body() -> None:
        plane = Kept(tmp_path)
        await plane.start()
        tau = await plane.commit(plane.some_keys())
        await plane.check(tau)
        shard = plane.shards[NAME]
        await plane.snapshot_of(shard.store.applied)
        placed = plane.map.placed(0)
        newest = shard.snapshots.newest_tau
        stop = shard.snapshots._stop
        with capture_logs() as logs:
            assert not await shard_keeper.fetch(shard.config, placed, newest, stop)
            assert await shard_keeper.fetch(shard.config, placed, newest - 1, stop)
            assert not await shard_keeper.fetch(shard.config, [(b"", b"\xff" * 8)], 0, stop)  # of more than there is
        assert events(logs)[0] == "storage.no_snapshot_restored"
        await plane.stop()

    run(body)
