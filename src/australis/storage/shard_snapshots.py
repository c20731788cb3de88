"""Snapshots of shards in an object store, and starting from one (rules S2, S3).

    <cluster>/shard-<n>/manifests/<tau>-<nonce>.json    what a snapshot is; its presence in a listing makes it count
    <cluster>/shard-<n>/parts/<tau>-<nonce>/00000.zst   the compact copy of the store in pieces, each compressed
    <cluster>/shard-<n>/newest                          name of the last manifest: a hint for listings that lag

Written in this order: the parts, each read once more; the manifest, read once more; the hint. What must hold: whatever
a listed manifest names was read back intact before it was listed; the journals are trimmed only below the positions of
the newest KEEP manifests that a listing shows (`ShardSnapshots.needed`), so one damaged snapshot never loses anything;
a manifest is deleted before its parts, and only when KEEP newer ones are intact; names hold a nonce, so any number of
replicas may write at once and a late request of a dead one overwrites nothing.

If the store of objects is away or refuses, the error is raised and nothing counts that did not count before; a restore
falls back to an older snapshot only for one that is damaged, and says so. Memory: WINDOW parts at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
import zstandard

from australis._native import Store as NativeStore
from australis.errors import StorageError
from australis.keyspace import KEYSPACE_END, without
from australis.objects import (
    ConflictError,
    DamagedObjectError,
    MissingObjectError,
    ObjectError,
    ObjectStore,
    Stored,
    checksum,
)
from australis.storage.holdings import HELD, unpack_ranges
from australis.storage.store import DATA_FILE, Store, open_store

FORMAT = 2
"""1 is the directory of the embedded cluster (snapshots.py)."""

KEEP = 2
PART_BYTES = 8 << 20
WINDOW = 4
"""Parts that are on their way at once."""

COMPRESSION_LEVEL = 1
MAX_MANIFEST = 16 << 20
RELISTED = 5
"""How often a restore looks again when what it was reading is deleted, because newer ones came."""

ERASE_ENTRIES = 20_000
"""Keys that one transaction of the store removes."""

KeyRange = tuple[bytes, bytes]
EVERYTHING: list[KeyRange] = [(b"", KEYSPACE_END)]

_TAU_DIGITS = 20
_MARK = "crc32c:"

Work = TypeVar("Work")
Result = TypeVar("Result")

log = structlog.get_logger()


class SnapshotStoppedError(StorageError):
    """The process is ending: what was written is removed or will be by the next snapshot."""

    sqlstate = "57P01"


class _Part(msgspec.Struct, frozen=True, array_like=True):
    """A piece of the copy: bytes in the file, and of the object."""

    key: str
    length: int
    size: int
    checksum: int


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    level: int
    cluster: str
    shard: int
    name: str
    tau: int
    positions: str
    ranges: list[tuple[str, str]]
    size: int
    checksum: int
    parts: list[_Part]
    previous: str
    created: float


@dataclass(frozen=True, slots=True)
class ShardSnapshot:
    """A snapshot that counts."""

    name: str
    shard: int
    tau: int
    positions: bytes
    """Where its journals were (what the store had recorded): opaque here."""
    ranges: list[KeyRange]
    level: int
    size: int
    stored: int
    """Bytes of the copy, and of its parts."""
    previous: str
    created: float
    """Seconds since the epoch, by the clock of who made it."""
    _manifest: _Manifest = field(repr=False)

    def covers(self, ranges: Sequence[KeyRange]) -> bool:
        """Holds it all keys of these ranges?"""
        return not without(ranges, self.ranges)


@dataclass(frozen=True, slots=True)
class Damage:
    """A snapshot that does not count, and why."""

    name: str
    error: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore found: the snapshot it used (None: there is none), and those that it had to pass over."""

    snapshot: ShardSnapshot | None
    damaged: list[Damage]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Found:
    snapshots: list[ShardSnapshot]  # newest first
    damaged: list[Damage]
    listed: set[str]


class ShardSnapshots:
    """The snapshots of one shard. Its methods block: call them in a thread; `stop` ends them early."""

    def __init__(
        self,
        objects: ObjectStore,
        cluster: bytes,
        shard: int,
        *,
        stop: threading.Event | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._objects, self._cluster, self._shard = objects, cluster, shard
        self._stop = stop if stop is not None else threading.Event()
        self._part_bytes = part_bytes
        self._folder = f"{cluster.hex()}/shard-{shard}"

    # ------------------------------------------------------------------------------------------------------- looking

    def snapshots(self) -> list[ShardSnapshot]:
        """All that count, newest first. ObjectError if the store does not say."""
        return self._find().snapshots

    def needed(self) -> list[bytes]:
        """Positions that the journals must be kept from; empty: from their beginning (S3)."""
        found = self._find()
        kept = [snapshot for snapshot in found.snapshots if snapshot.name in found.listed][:KEEP]
        return [snapshot.positions for snapshot in kept] if len(kept) == KEEP else []

    def _find(self) -> _Found:
        """By the listing, the hint, and what each manifest says came before it."""
        prefix = f"{self._folder}/manifests/"
        names = [
            entry.key.removeprefix(prefix).removesuffix(".json")
            for entry in self._objects.list(prefix)
            if entry.key.endswith(".json")
        ]
        listed = set(names)
        with contextlib.suppress(MissingObjectError, DamagedObjectError, UnicodeDecodeError):  # only a hint
            names.append(self._objects.get(f"{self._folder}/newest", limit=200)[0].decode("ascii"))
        found: dict[str, ShardSnapshot] = {}
        damaged: list[Damage] = []
        seen: set[str] = set()
        while names:
            name = names.pop()
            if name in seen or not _is_name(name):
                continue
            seen.add(name)
            try:
                snapshot = self._read_manifest(name)
            except MissingObjectError:
                continue  # deleted meanwhile, or the hint of one that was
            except DamagedObjectError as error:
                damaged.append(Damage(name, str(error)))
                continue
            found[name] = snapshot
            if snapshot.previous:
                names.append(snapshot.previous)
        ordered = sorted(found.values(), key=lambda snapshot: (snapshot.tau, snapshot.name), reverse=True)
        return _Found(ordered, damaged, listed)

    def _manifest_key(self, name: str) -> str:
        return f"{self._folder}/manifests/{name}.json"

    def _read_manifest(self, name: str) -> ShardSnapshot:
        key = self._manifest_key(name)
        where = f"{self._objects.url}/{key}"
        content = self._objects.get(key, limit=MAX_MANIFEST)[0]
        body, _, mark = content.removesuffix(b"\n").rpartition(b"\n")
        if not mark.startswith(_MARK.encode()) or mark != _check_line(body):
            raise DamagedObjectError(f"{where} has other bytes than were written (checksum)")
        try:
            kind = msgspec.json.decode(body, type=dict[str, object]).get("format")
            if kind != FORMAT:
                raise StorageError(f"{where}: a snapshot of format {kind}, this program knows {FORMAT}")
            manifest = msgspec.json.decode(body, type=_Manifest)
            snapshot = _snapshot(manifest)
        except (msgspec.MsgspecError, ValueError) as error:
            raise DamagedObjectError(f"{where} is not a manifest: {error}") from None
        if (manifest.cluster, manifest.shard, manifest.name) != (self._cluster.hex(), self._shard, name):
            raise DamagedObjectError(f"{where} is the manifest of another snapshot: {manifest.name}")
        return snapshot

    # ------------------------------------------------------------------------------------------------------- writing

    def write(
        self,
        store: Store,
        working: Path,
        ranges: Sequence[KeyRange] | None,
        level: int,
        acknowledged: Callable[[int, bytes], bool] = lambda tau, positions: True,
    ) -> ShardSnapshot | None:
        """Write one and delete what is not needed any more; None if it must not count.

        `ranges` None: those that the store says it holds (holdings.py). `working`: a directory of our own for the copy,
        emptied first. `acknowledged(tau, positions)` waits until
        everything in the copy is known to be in the journals. Raises StoreError, ObjectError, StorageError, OSError;
        what was written is then removed, as far as the store of objects lets us.
        """
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(mode=0o700, parents=True)
        written: list[str] = []
        name = ""
        try:
            file = working / DATA_FILE
            store.copy(str(file))
            tau, positions, held = _state_of(working, self._cluster)
            if ranges is None:
                ranges = held
            if not acknowledged(tau, positions):
                return None
            previous = self._find().snapshots
            name = f"{max(tau, 0):0{_TAU_DIGITS}}-{secrets.token_hex(8)}"
            parts, size, value = self._write_parts(file, name, written)
            manifest = _Manifest(
                format=FORMAT,
                level=level,
                cluster=self._cluster.hex(),
                shard=self._shard,
                name=name,
                tau=tau,
                positions=positions.hex(),
                ranges=[(lo.hex(), hi.hex()) for lo, hi in ranges],
                size=size,
                checksum=value,
                parts=parts,
                previous=previous[0].name if previous else "",
                created=time.time(),
            )
            body = msgspec.json.encode(manifest)
            key = self._manifest_key(name)
            written.append(key)
            self._put_and_read(key, body + b"\n" + _check_line(body) + b"\n")
        except BaseException as error:
            self._remove(reversed(written))  # the manifest first
            if isinstance(error, MissingObjectError) and len(self._newer(name)) >= KEEP:
                return None  # others were faster, and have swept ours away
            raise
        finally:
            shutil.rmtree(working)
        # from here on it counts
        self._objects.put(f"{self._folder}/newest", name.encode("ascii"))
        self.sweep()
        return _snapshot(manifest)

    def _newer(self, name: str) -> list[ShardSnapshot]:
        return [snapshot for snapshot in self._find().snapshots if snapshot.name > name]

    def _write_parts(self, file: Path, name: str, written: list[str]) -> tuple[list[_Part], int, int]:
        """All parts of a file; also its size and CRC-32C."""
        size = value = 0

        def jobs() -> Iterator[tuple[str, bytes]]:
            nonlocal size, value
            with file.open("rb") as content:
                while data := content.read(self._part_bytes):
                    key = f"{self._folder}/parts/{name}/{len(written):05}.zst"
                    written.append(key)
                    size += len(data)
                    value = checksum(data, value)
                    yield key, data

        def job(work: tuple[str, bytes]) -> _Part:
            key, data = work
            packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(data)
            self._put_and_read(key, packed)
            return _Part(key, len(data), len(packed), checksum(packed))

        parts = [*self._pipelined(job, jobs())]
        return parts, size, value

    def _put_and_read(self, key: str, data: bytes) -> None:
        # A conflict is with our own earlier attempt, whose answer was lost. Whether it is will be seen.
        with contextlib.suppress(ConflictError):
            self._objects.put(key, data, if_absent=True)
        self._objects.get(key, Stored.of(data))

    def _pipelined(self, job: Callable[[Work], Result], works: Iterable[Work]) -> Generator[Result, None, None]:
        """Results in order of the work, WINDOW of it at once; the first error ends it, after what runs has ended."""
        running: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(WINDOW, thread_name_prefix="snapshot") as threads:
            try:
                for work in works:
                    if self._stop.is_set():
                        raise SnapshotStoppedError(f"snapshots of shard {self._shard}: stopped")
                    running.append(threads.submit(job, work))
                    if len(running) >= WINDOW:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()

    def _remove(self, keys: Iterable[str]) -> None:
        """Of a snapshot that failed; what stays is removed by the sweep of a later one."""
        try:
            for key in keys:
                self._objects.delete(key)
        except ObjectError as error:
            log.warning("storage.snapshot_leftover", shard=self._shard, error=str(error))

    def sweep(self) -> int:
        """Delete what is older than the newest KEEP intact snapshots; returns how many objects. ObjectError."""
        found = self._find()
        kept = [snapshot for snapshot in found.snapshots if snapshot.name in found.listed][:KEEP]
        if len(kept) < KEEP:
            return 0
        oldest = kept[-1].name
        needed = {
            part.key for snapshot in found.snapshots if snapshot.name >= oldest for part in snapshot._manifest.parts
        }
        removed = 0
        for name in sorted(found.listed):
            if name < oldest and _is_name(name):
                self._objects.delete(self._manifest_key(name))
                removed += 1
        prefix = f"{self._folder}/parts/"
        for entry in self._objects.list(prefix):
            name = entry.key.removeprefix(prefix).partition("/")[0]
            if name < oldest and _is_name(name) and entry.key not in needed:
                self._objects.delete(entry.key)
                removed += 1
        return removed

    # ----------------------------------------------------------------------------------------------------- restoring

    def restore(self, directory: Path, ranges: Sequence[KeyRange] | None = None) -> Restored:
        """Replace the store's files in `directory` by the newest intact snapshot that holds `ranges` (None: any).

        What the snapshot holds beside `ranges` is removed from the copy before it takes its place. Open it with
        `restored=True`. Without any snapshot the directory is empty afterwards. ObjectError if the store of objects
        is away: an older snapshot would be no answer to that.
        """
        began = time.monotonic()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        working = directory.with_name(f"{directory.name}.restoring")
        shutil.rmtree(working, ignore_errors=True)
        damaged: list[Damage] = []
        try:
            chosen = self._fetch_newest(working, ranges, damaged)
            for path in directory.iterdir():
                path.unlink()
            if chosen is not None:
                os.rename(working / DATA_FILE, directory / DATA_FILE)
                _sync_directory(directory)
        finally:
            shutil.rmtree(working, ignore_errors=True)
        return Restored(chosen, damaged, time.monotonic() - began)

    def _fetch_newest(
        self, working: Path, ranges: Sequence[KeyRange] | None, damaged: list[Damage]
    ) -> ShardSnapshot | None:
        """The newest intact snapshot, in `working`; others that should have been are added to `damaged`."""
        reported: set[str] = set()

        def report(damage: Damage) -> None:
            if damage.name not in reported:
                reported.add(damage.name)
                damaged.append(damage)
                log.error("storage.snapshot_damaged", shard=self._shard, snapshot=damage.name, error=damage.error)

        for _ in range(RELISTED):
            found = self._find()
            for damage in found.damaged:
                report(damage)
            deleted = False
            for snapshot in found.snapshots:
                if snapshot.name in reported or (ranges is not None and not snapshot.covers(ranges)):
                    continue
                shutil.rmtree(working, ignore_errors=True)
                working.mkdir(mode=0o700)
                try:
                    self._fetch(snapshot, working / DATA_FILE)
                except (DamagedObjectError, MissingObjectError) as error:
                    if isinstance(error, MissingObjectError) and not self._exists(snapshot.name):
                        deleted = True  # since there are newer ones
                        break
                    report(Damage(snapshot.name, str(error)))
                    continue
                if ranges is not None and without(snapshot.ranges, ranges):
                    cut(working, self._cluster, ranges, self._stop)
                return snapshot
            if not deleted:
                return None
        raise StorageError(f"shard {self._shard}: snapshots are deleted faster than they can be restored")

    def _exists(self, name: str) -> bool:
        try:
            self._read_manifest(name)
        except MissingObjectError:
            return False
        return True

    def _fetch(self, snapshot: ShardSnapshot, file: Path) -> None:
        """Parts into a file, each checked, and the whole too."""
        manifest = snapshot._manifest

        def job(part: _Part) -> bytes:
            packed = self._objects.get(part.key, Stored(part.size, part.checksum))[0]
            try:
                return zstandard.ZstdDecompressor().decompress(packed, max_output_size=part.length)
            except zstandard.ZstdError as error:
                raise DamagedObjectError(f"{self._objects.url}/{part.key}: {error}") from None

        size = value = 0
        with file.open("xb") as target, contextlib.closing(self._pipelined(job, manifest.parts)) as pieces:
            os.fchmod(target.fileno(), 0o600)
            for data in pieces:
                target.write(data)
                size += len(data)
                value = checksum(data, value)
        if (size, value) != (manifest.size, manifest.checksum):
            raise DamagedObjectError(
                f"{self._objects.url}/{self._manifest_key(snapshot.name)}: its parts are not the copy it describes"
            )


def cut(directory: Path, cluster: bytes, ranges: Sequence[KeyRange], stop: threading.Event | None = None) -> None:
    """Remove from the restored, closed store in `directory` what is outside of `ranges`. StoreError, StorageError."""
    store = open_store(directory, cluster, restored=True)
    try:
        erase_outside(store, ranges, stop)
        store.sync(True)
    finally:
        store.close()


def erase_outside(store: Store, ranges: Sequence[KeyRange], stop: threading.Event | None = None) -> None:
    """Remove what is outside of `ranges`, which nobody reads, in bounded transactions; after a crash again."""
    for lo, hi in without(EVERYTHING, ranges):
        while not store.erase(lo, hi, ERASE_ENTRIES):
            if stop is not None and stop.is_set():
                raise SnapshotStoppedError("stopped while a store was cut to its ranges")


def _snapshot(manifest: _Manifest) -> ShardSnapshot:
    """ValueError if its texts are not in hexadecimal."""
    return ShardSnapshot(
        manifest.name,
        manifest.shard,
        manifest.tau,
        bytes.fromhex(manifest.positions),
        [(bytes.fromhex(lo), bytes.fromhex(hi)) for lo, hi in manifest.ranges],
        manifest.level,
        manifest.size,
        sum(part.size for part in manifest.parts),
        manifest.previous,
        manifest.created,
        manifest,
    )


def _state_of(directory: Path, cluster: bytes) -> tuple[int, bytes, list[KeyRange]]:
    """Applied time, journal positions and ranges of a copy; leaves nothing but the copy behind."""
    copy = NativeStore(str(directory), cluster, read_only=True)
    try:
        return copy.applied, copy.meta("position") or b"", unpack_ranges(copy.meta(HELD) or b"")
    finally:
        copy.close()
        for name in os.listdir(directory):
            if name != DATA_FILE:
                (directory / name).unlink()


def _check_line(body: bytes) -> bytes:
    return f"{_MARK}{checksum(body):08x}".encode()


def _is_name(name: str) -> bool:
    tau, _, nonce = name.partition("-")
    return len(tau) == _TAU_DIGITS and tau.isascii() and tau.isdigit() and len(nonce) == 16 and nonce.isalnum()


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
