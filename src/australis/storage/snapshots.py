"""Snapshots of the store, and starting again from one (rules S2, S3).

    <snapshots>/<tau>/data.mdb        compact copy of the store
    <snapshots>/<tau>/manifest.json   what it is; its presence makes the snapshot count

A snapshot is written under another name, synced, read once more, checked against the journal (all of it must have been
acknowledged), and only then renamed and listed. What must hold: the journal is trimmed only below the second newest
manifest, so one damaged snapshot never loses anything; a snapshot whose checksum fails is passed over when restoring.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from australis._native import Store as NativeStore
from australis.errors import StorageError
from australis.files import file_crc32c, write_atomically
from australis.journal.record import Position
from australis.storage.store import DATA_FILE, Store

FORMAT = 1
KEEP = 2
MANIFEST = "manifest.json"
_WRITING = ".writing"
_CRC = "crc32c:"

log = structlog.get_logger()


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    cluster: str
    tau: int
    position: str
    size: int
    checksum: str
    created: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that counts."""

    directory: Path
    tau: int
    position: Position
    size: int
    checksum: str

    @property
    def file(self) -> Path:
        """The copy of the store."""
        return self.directory / DATA_FILE


def checksum(file: Path) -> str:
    """CRC-32C of a file, by the processor's instruction: a snapshot must not take the time of commits."""
    return f"{_CRC}{file_crc32c(file):08x}"


def intact(file: Path, recorded: str) -> bool:
    """Has the file the checksum of its manifest? (The first snapshots had a BLAKE2b.)"""
    if recorded.startswith(_CRC):
        return checksum(file) == recorded
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).hexdigest() == recorded


def list_snapshots(directory: Path, cluster: bytes) -> list[Snapshot]:
    """All snapshots of this cluster with a readable manifest, newest first."""
    found: list[Snapshot] = []
    if not directory.exists():
        return found
    for entry in directory.iterdir():
        file = entry / MANIFEST
        if entry.name.endswith(_WRITING) or not file.exists():
            continue
        try:
            manifest = msgspec.json.decode(file.read_bytes(), type=_Manifest)
            position = Position.unpack(bytes.fromhex(manifest.position))
        except (msgspec.MsgspecError, ValueError) as error:
            log.warning("storage.manifest_damaged", manifest=str(file), error=str(error))
            continue
        if manifest.format == FORMAT and manifest.cluster == cluster.hex():
            found.append(Snapshot(entry, manifest.tau, position, manifest.size, manifest.checksum))
    return sorted(found, key=lambda snapshot: (snapshot.position.sequence, snapshot.tau), reverse=True)


def trim_position(directory: Path, cluster: bytes) -> int:
    """Sequence up to which the journal is no longer needed (S3)."""
    snapshots = list_snapshots(directory, cluster)
    return snapshots[KEEP - 1].position.sequence if len(snapshots) >= KEEP else 0


def write_snapshot(
    store: Store, directory: Path, cluster: bytes, acknowledged: Callable[[int, Position], bool]
) -> Snapshot | None:
    """Write one and remove those beyond the newest two; None if it must not count.

    `acknowledged(tau, position)` waits until everything in the copy is known to be in the journal. Raises OSError and
    StoreError; what was written is then removed again.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for leftover in directory.glob(f"*{_WRITING}"):  # of one that was killed; only one is written at a time
        shutil.rmtree(leftover)
    working = directory / f"{time.time_ns()}{_WRITING}"
    working.mkdir(mode=0o700)
    try:
        file = working / DATA_FILE
        store.copy(str(file))
        written = checksum(file)
        tau, position = _state_of(working, cluster)
        if position is None or not acknowledged(tau, position):
            return None
        size = file.stat().st_size
        # what the page cache says proves little, but it catches a copy that another program has written to
        if checksum(file) != written:
            raise StorageError(f"{file} changed after it was written")
        manifest = _Manifest(
            format=FORMAT,
            cluster=cluster.hex(),
            tau=tau,
            position=position.pack().hex(),
            size=size,
            checksum=written,
            created=time.time(),
        )
        write_atomically(working / MANIFEST, msgspec.json.encode(manifest), 0o600)
        target = directory / str(tau)
        if target.exists():
            shutil.rmtree(target)  # the same time again, after a restore
        os.rename(working, target)
        _sync_directory(directory)
    finally:
        if working.exists():
            shutil.rmtree(working)
    for old in list_snapshots(directory, cluster)[KEEP:]:
        shutil.rmtree(old.directory)
    return Snapshot(target, tau, position, size, written)


def _state_of(directory: Path, cluster: bytes) -> tuple[int, Position | None]:
    """Applied time and journal position of a copy."""
    copy = NativeStore(str(directory), cluster, read_only=True)
    try:
        saved = copy.meta("position")
        return copy.applied, Position.unpack(saved) if saved else None
    finally:
        copy.close()
        for name in os.listdir(directory):
            if name != DATA_FILE:
                (directory / name).unlink()


def restore(snapshots: Path, storage: Path, cluster: bytes) -> Snapshot | None:
    """Replace the store's files by the newest snapshot that is whole; by nothing if there is none."""
    storage.mkdir(mode=0o700, parents=True, exist_ok=True)
    if snapshots.exists():
        for leftover in snapshots.glob(f"*{_WRITING}"):
            shutil.rmtree(leftover)
    chosen: Snapshot | None = None
    copy = storage / "restoring"
    for snapshot in list_snapshots(snapshots, cluster):
        try:
            shutil.copyfile(snapshot.file, copy)
            if intact(copy, snapshot.checksum):
                chosen = snapshot
                break
            log.error("storage.snapshot_damaged", snapshot=str(snapshot.directory), error="checksum")
        except OSError as error:
            log.error("storage.snapshot_damaged", snapshot=str(snapshot.directory), error=str(error))
    for name in os.listdir(storage):
        if name != copy.name:
            (storage / name).unlink()
    if chosen is None:
        copy.unlink(missing_ok=True)
    else:
        os.rename(copy, storage / DATA_FILE)
    return chosen


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
