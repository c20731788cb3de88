"""Snapshots of a running shard: when one is due, what they allow the journals to forget, starting from one.

    store --copy--> `ShardSnapshots.write` -> object store -> `kept`: positions that the crossbar tells adjudicators of

What must hold:
- `kept` are positions of KEEP snapshots that are whole in the object store and hold everything that this replica holds:
  only what is below them may leave the journals;
- a replica that does not hold all that its shard is to hold writes none: it would push out better ones;
- a range that this replica is taking over counts as held (`secured`) only once a snapshot has it: until then the shard
  that gives it away keeps it, in its snapshots too;
- one replica of a shard writes at a time, usually: each waits longer than the one before it (rule `due`), and any
  number of them may write all the same.

An object store that is away, full or lying costs time and disk in the journals, nothing else: it is said once a minute,
in the status, and nothing is forgotten meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import structlog

from australis.errors import AustralisError
from australis.journal.positions import pack_positions, unpack_positions
from australis.keyspace import KeyRanges, without
from australis.objects import ObjectError, open_objects
from australis.storage.holdings import Holdings
from australis.storage.shard_snapshots import KEEP, KeyRange, ShardSnapshot, ShardSnapshots, SnapshotStoppedError
from australis.storage.store import Store, StoreError

LEVEL = 1
LOOK_SECONDS = 5.0
SAY_SECONDS = 60.0
STAGGER_SECONDS = 30.0
LEAST_SECONDS = 10.0
"""Between snapshots of one shard, whatever is written."""

UNSECURED_SECONDS = 1.0
"""The same when somebody waits for one."""

log = structlog.get_logger()


def due(*, age: float, records: int, rank: int, every: float, every_records: int, unsecured: bool) -> bool:
    """Is it time for a snapshot?

    `age`: seconds since the newest one was made (infinite: there is none), `records`: applied since, `rank`: how many
    replicas come before this one. `unsecured`: a range waits for it.
    """
    if unsecured:
        return age >= UNSECURED_SECONDS + rank * STAGGER_SECONDS
    if age < min(LEAST_SECONDS, every):
        return False
    if not records:
        return False
    return age >= every + rank * STAGGER_SECONDS or (records >= every_records and rank == 0)


def kept(snapshots: Sequence[ShardSnapshot], held: Sequence[KeyRange]) -> bytes:
    """Positions below which the newest KEEP of these need nothing of the journals; b'' if they need everything."""
    newest = list(snapshots[:KEEP])
    if len(newest) < KEEP or not all(snapshot.covers(held) and snapshot.positions for snapshot in newest):
        return b""
    vectors = [unpack_positions(snapshot.positions) for snapshot in newest]
    journals = set.intersection(*(set(positions) for _, positions in vectors))
    least = {
        journal: min((positions[journal] for _, positions in vectors), key=lambda position: position.sequence)
        for journal in journals
    }
    return pack_positions(min(tau for tau, _ in vectors), least)


class Replica(Protocol):
    """What the keeper needs of its process."""

    store: Store
    holdings: Holdings

    @property
    def records_applied(self) -> int:
        """Since it was started."""

    def placed(self) -> list[KeyRange]:
        """What its shard answers for."""


class SnapshotKeeper:
    """Runs beside the feed of a replica. `rank`: of it among the replicas of its shard."""

    def __init__(
        self,
        url: str,
        cluster: bytes,
        shard: int,
        rank: Callable[[], int],
        working: Path,
        *,
        every: float,
        every_records: int,
    ) -> None:
        self._stop = threading.Event()
        self._opened: ShardSnapshots | None = None
        self._url, self._cluster, self._shard = url, cluster, shard
        self._rank, self._working = rank, working
        self._every, self._every_records = every, every_records
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._found: list[ShardSnapshot] = []
        self._records_then = 0
        self._wrote_at = float("-inf")
        self._said = float("-inf")
        self._wake = asyncio.Event()
        self.kept = b""
        self.written = 0
        self.last_error = ""
        self.seconds = 0.0

    # --------------------------------------------------------------------------------------------------- running

    async def run(self, replica: Replica) -> None:
        """Until cancelled. Raises StoreError: the store itself is damaged."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._thread, self._step, replica)
                self.last_error = ""
            except (ObjectError, OSError, AustralisError) as error:
                if isinstance(error, SnapshotStoppedError):
                    return
                self.last_error = str(error)
                if time.monotonic() - self._said >= SAY_SECONDS:
                    self._said = time.monotonic()
                    log.error("storage.no_snapshot", error=str(error), age=round(self.age(), 1))
            self._wake.clear()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def look_soon(self) -> None:
        """A range was taken over."""
        self._wake.set()

    async def close(self) -> None:
        """Wait for what is being written to stop."""
        self._stop.set()
        await asyncio.get_running_loop().run_in_executor(None, functools.partial(self._thread.shutdown, wait=True))

    @property
    def _snapshots(self) -> ShardSnapshots:
        """Raises ObjectError."""
        if self._opened is None:
            self._opened = ShardSnapshots(open_objects(self._url), self._cluster, self._shard, stop=self._stop)
        return self._opened

    def _step(self, replica: Replica) -> None:
        """In the thread: look at what there is, write one if it is time."""
        self._found = self._snapshots.snapshots()
        holdings = replica.holdings
        records = replica.records_applied - self._records_then
        unsecured = bool(without(holdings.held.list, self.secured_by_newest()))
        placed = replica.placed()
        if not without(placed, holdings.held.list) and due(
            age=min(self.age(), time.monotonic() - self._wrote_at),
            records=records,
            rank=self._rank(),
            every=self._every,
            every_records=self._every_records,
            unsecured=unsecured and replica.store.applied > 0,
        ):
            self._write(replica)
        self.kept = kept(self._found, [*placed, *holdings.held.list])

    def _write(self, replica: Replica) -> None:
        began, before = time.monotonic(), replica.records_applied
        self._wrote_at = began
        try:
            snapshot = self._snapshots.write(replica.store, self._working, None, LEVEL)
        except StoreError as error:
            raise ObjectError(f"cannot copy the store: {error}") from None
        self.seconds = time.monotonic() - began
        if snapshot is None:
            return
        self._records_then = before
        self.written += 1
        self._found = self._snapshots.snapshots()
        log.info(
            "storage.snapshot",
            name=snapshot.name,
            bytes=snapshot.size,
            stored=snapshot.stored,
            seconds=round(self.seconds, 3),
        )

    # -------------------------------------------------------------------------------------------------- questions

    def age(self) -> float:
        """Seconds since the newest snapshot was made."""
        if not self._found:
            return float("inf")
        return max(0.0, time.time() - self._found[0].created)

    def secured_by_newest(self) -> list[KeyRange]:
        """What the newest snapshot holds."""
        return self._found[0].ranges if self._found else []

    def secured(self, held: KeyRanges, placed: Sequence[KeyRange]) -> list[KeyRange]:
        """What of `held` may be called held: all that was given to this shard, and what a snapshot has."""
        unsecured = without(held.list, [*placed, *self.secured_by_newest()])
        return without(held.list, unsecured)

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status` and metrics."""
        age = self.age()
        return {
            "snapshots": len(self._found),
            "snapshot_age": round(age, 1) if age != float("inf") else -1.0,
            "snapshot_bytes": self._found[0].stored if self._found else 0,
            "snapshots_written": self.written,
            "snapshot_error": self.last_error,
        }


def restore(url: str, cluster: bytes, shard: int, directory: Path, stop: threading.Event | None = None) -> bool:
    """Put the newest whole snapshot of the shard into `directory`, in place of what is there; False: there is none.

    Raises ObjectError if the object store does not say, StorageError, SnapshotStoppedError; nothing is changed then.
    """
    restored = ShardSnapshots(open_objects(url), cluster, shard, stop=stop).restore(directory)
    snapshot = restored.snapshot
    if snapshot is None:
        return False
    log.info(
        "storage.restored",
        name=snapshot.name,
        bytes=snapshot.size,
        seconds=round(restored.seconds, 3),
        megabytes_per_second=round(snapshot.size / max(restored.seconds, 1e-6) / 1e6, 1),
        passed_over=len(restored.damaged),
    )
    return True
