"""When a replica writes a snapshot to the object store, and starting again from one.

    `SnapshotWriter.run` --a thread--> `ShardSnapshots.write`        as long as the replica follows
    `fetch`, `take` <-- a store that is new, damaged, or behind what the journals still have

What must hold:
- a snapshot is written only of a store that holds all that the map places in its shard, and leaves nothing at that
  time, so whoever starts from it lacks nothing that it says to hold;
- a store that exists is replaced only by a whole snapshot of a later time that covers what is wanted;
- who writes is decided without asking anybody (`is_due`): the replica of rank r waits r halves longer than the first,
  and any snapshot that appears starts the wait of all again. Two at the same time cost work and nothing else.

If the object store is away, full or lies, one line says so, nothing counts that did not count before, and the next
turn tries again; the replica goes on to follow and to answer. A restore then begins with the journals instead, and if
these do not reach back the replica ends: it never answers with less.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from australis.errors import StorageError
from australis.feature_level import NEWEST
from australis.objects import ObjectError, ObjectStore, open_objects
from australis.partition_map import PartitionMap
from australis.storage.holdings import Holdings
from australis.storage.shard_snapshots import KeyRange, ShardSnapshots, SnapshotStoppedError, missing
from australis.storage.store import Store, StoreError

if TYPE_CHECKING:
    from australis.control_plane.topology import RoleConfig

SNAPSHOT_BYTES = 256 << 20
"""After so many bytes of records the next one comes early: after EARLY of the time."""

EARLY = 0.1
TURNS = 20
"""How often in the time between two snapshots a replica looks whether there is a newer one."""

MIN_TURN_SECONDS, MAX_TURN_SECONDS = 0.05, 30.0
COMPLAIN_SECONDS = 60.0

log = structlog.get_logger()


def is_due(age: float, taken: int, rank: int, seconds: float) -> bool:
    """Is it this replica's turn?

    `age` in seconds: of the newest snapshot, or how long there was none; `taken`: bytes of records since it was seen;
    `rank`: among the shard's replicas; `seconds`: between two snapshots.
    """
    patience = 1 + rank / 2
    return age >= seconds * patience or (taken >= SNAPSHOT_BYTES * patience and age >= seconds * EARLY * patience)


class Replica(Protocol):
    """What `SnapshotWriter` needs of its process."""

    config: RoleConfig
    map: PartitionMap
    store: Store
    holdings: Holdings
    state: str
    bytes_applied: int


class SnapshotWriter:
    """Runs beside the feed of a replica. Without an object store it does nothing."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._stop = threading.Event()
        self._objects: ObjectStore | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shard-snapshot")
        self._seen, self._seen_bytes, self._since = "", 0, time.monotonic()
        self._complained = -COMPLAIN_SECONDS
        self.written = self.failures = 0
        self.newest_tau = 0
        self.newest_created = 0.0
        self.bytes_per_second = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        config = self._replica.config
        if not config.objects:
            return
        pause = min(MAX_TURN_SECONDS, max(MIN_TURN_SECONDS, config.snapshot_seconds / TURNS))
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(pause)
            try:
                await loop.run_in_executor(self._thread, self._turn)
            except SnapshotStoppedError:
                return
            except (ObjectError, StorageError, StoreError, OSError) as error:
                self.failures += 1
                if time.monotonic() - self._complained > COMPLAIN_SECONDS:
                    self._complained = time.monotonic()
                    log.error("storage.no_snapshot_written", shard=config.number, error=str(error))

    async def close(self) -> None:
        """End what runs; then the store may be closed."""
        self._stop.set()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    def _turn(self) -> None:
        """In our thread: look, and write if it is our turn."""
        replica, config = self._replica, self._replica.config
        if self._stop.is_set():
            raise SnapshotStoppedError("stopped")
        if self._objects is None:
            self._objects = open_objects(config.objects)
        snapshots = ShardSnapshots(self._objects, config.cluster_id, config.number, stop=self._stop)
        found = snapshots.snapshots()
        newest = found[0] if found else None
        if newest is not None and newest.name != self._seen:
            self._seen, self._seen_bytes = newest.name, replica.bytes_applied
            self.newest_tau, self.newest_created = newest.tau, newest.created
        held = replica.holdings.held.list
        if replica.state != "following" or not self._whole():
            return
        if newest is not None and replica.store.applied <= newest.tau and newest.covers(held):
            return  # nothing has changed
        names = sorted(replica.map.replicas.get(config.number, (config.name,)))
        rank = names.index(config.name) if config.name in names else len(names)
        age = time.time() - newest.created if newest is not None else time.monotonic() - self._since
        taken = replica.bytes_applied - self._seen_bytes
        if newest is not None and not newest.covers(held):
            taken = max(taken, SNAPSHOT_BYTES * (1 + rank))  # ranges were taken over: early
        if not is_due(age, taken, rank, config.snapshot_seconds):
            return
        began = time.monotonic()
        written = snapshots.write(
            replica.store,
            Path(config.data) / "snapshot",
            held,
            NEWEST,
            # what it says to hold, it held all the time
            lambda tau, positions: replica.holdings.held.list == held and self._whole(),
        )
        if written is not None:
            seconds = time.monotonic() - began
            self.written += 1
            self.bytes_per_second = written.size / max(seconds, 1e-9)
            log.info("storage.snapshot", name=written.name, bytes=written.size, seconds=round(seconds, 3))

    def _whole(self) -> bool:
        """Does the store hold all that the map places here, and is it leaving nothing?"""
        replica = self._replica
        placed = replica.map.placed(replica.config.number)
        held = replica.holdings.held.list
        return bool(held) and not replica.holdings.leaving.list and not missing(held, placed)

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status` and metrics."""
        return {
            "snapshots_written": self.written,
            "snapshot_failures": self.failures,
            "snapshot_tau": self.newest_tau,
            "snapshot_age": max(0.0, time.time() - self.newest_created) if self.newest_created else -1.0,
        }


async def fetch(config: RoleConfig, ranges: Sequence[KeyRange], above: int, stop: threading.Event) -> bool:
    """Bring the newest whole snapshot that covers `ranges`, later than `above`, beside the store: `take` replaces it.

    False if there is none or the object store is away; a line says which.
    """
    return await asyncio.get_running_loop().run_in_executor(
        None, functools.partial(_fetch, config, ranges, above, stop)
    )


def _fetch(config: RoleConfig, ranges: Sequence[KeyRange], above: int, stop: threading.Event) -> bool:
    beside = _beside(config)
    try:
        snapshots = ShardSnapshots(open_objects(config.objects), config.cluster_id, config.number, stop=stop)
        result = snapshots.restore(beside, ranges, cutting=False)
    except SnapshotStoppedError:
        return False
    except (ObjectError, StorageError, StoreError, OSError) as error:
        log.error("storage.no_snapshot_restored", error=str(error))
        return False
    snapshot = result.snapshot
    if snapshot is None or snapshot.tau <= above:
        shutil.rmtree(beside, ignore_errors=True)
        if snapshot is not None or result.damaged:
            reason = "older than the store" if snapshot is not None else "all of them are damaged"
            log.error("storage.no_snapshot_restored", error=f"no snapshot helps: {reason}")
        return False
    log.info(
        "storage.snapshot_restored",
        name=snapshot.name,
        bytes=snapshot.size,
        seconds=round(result.seconds, 3),
        megabytes_per_second=round(snapshot.size / 1e6 / max(result.seconds, 1e-9), 1),
    )
    return True


def take(config: RoleConfig, directory: Path) -> None:
    """Put what was fetched in the place of the store, which is closed. OSError.

    Killed in between, there is no store, and the next start fetches again.
    """
    if directory.exists():
        shutil.rmtree(directory)
    os.rename(_beside(config), directory)


def _beside(config: RoleConfig) -> Path:
    return Path(config.data) / "storage.fetched"
