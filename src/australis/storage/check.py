"""Offline check of storage against the journal: nothing is changed.

For every key that the journal still holds (the last million of them), the store must have its newest version at or
below the applied time, byte for byte. The journal itself is checked on the way.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass, field

from australis._native import Store as NativeStore
from australis.cluster import ClusterDirectory
from australis.journal.check import JournalReport, check_journal
from australis.journal.record import Entry, Kind, Position
from australis.keyspace import relation_of
from australis.protocol.messages import (
    Commit,
    Drop,
    Ingest,
    ModeFlag,
    client_decoder,
    decode_keys,
    decode_values,
    relations_of,
)
from australis.storage.snapshots import intact, list_snapshots
from australis.storage.store import DATA_FILE, StoreError

MAX_KEYS = 1_000_000
_BATCH = 1000
_ENTRY = struct.Struct("<IIq")
_NO_VALUE = 0xFFFFFFFF
_MAX_PROBLEMS = 20


@dataclass
class StorageReport:
    """What the check found."""

    journal: JournalReport
    applied: int = 0
    compared: int = 0
    not_compared: int = 0
    snapshots: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Newest:
    """Newest version per key, as the journal says: (time, hash of the value or None for a tombstone)."""

    def __init__(self, until: int) -> None:
        self.until = until
        # in the order of last writes; a plain dictionary is slow to give up its first keys
        self.keys: OrderedDict[bytes, tuple[int, bytes | None]] = OrderedDict()
        self.dropped: set[int] = set()
        self.unpublished: dict[bytes, set[int]] = {}
        self.forgotten = 0

    def add(self, entry: Entry) -> None:
        if entry.kind == Kind.CLAIM or entry.tau > self.until:
            return
        message = client_decoder.decode(entry.body)
        if isinstance(message, Drop):
            self.dropped.update(message.relations)
        elif isinstance(message, Commit | Ingest):
            if isinstance(message, Commit):
                self.dropped.update(message.drops)
                self.unpublished.pop(entry.txid, None)
            else:
                self.unpublished.setdefault(entry.txid, set()).update(relations_of(entry.body))
            values = decode_values(message)
            for key, mode, value in zip(decode_keys(message), message.modes, values, strict=True):
                if mode & (ModeFlag.LOCK_ONLY | ModeFlag.VALIDATE_ONLY):
                    continue
                gone = mode & ModeFlag.DELETE or value is None
                self.keys[key] = entry.tau, None if gone else _digest(value or b"")
                self.keys.move_to_end(key)
            while len(self.keys) > MAX_KEYS:
                self.forgotten += 1
                self.keys.popitem(last=False)


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


def check_storage(directory: ClusterDirectory) -> StorageReport:
    """Check journal, store and snapshots of a stopped cluster."""
    store: NativeStore | None = None
    note = ""
    if (directory.storage / DATA_FILE).exists():
        try:
            store = NativeStore(str(directory.storage), directory.cluster, read_only=True)
        except StoreError as error:
            note = f"the store cannot be read ({error}); it will be rebuilt at the next start"
    else:
        note = "there is no store; it will be rebuilt at the next start"
    newest = _Newest(store.applied if store is not None else 0)
    reached = 0
    if store is not None:
        try:
            saved = store.meta("position")
        except StoreError:  # comparing it with the journal says what is wrong
            saved = None
        reached = Position.unpack(saved).sequence if saved else 0
    report = StorageReport(check_journal(directory.journal, directory.cluster, newest.add))
    report.problems += report.journal.problems
    if note:
        report.notes.append(note)
    if store is not None:
        found = len(report.problems)
        try:
            _compare(store, newest, report)
        except StoreError as error:
            report.problems.append(f"the store cannot be read: {error}")
        finally:
            store.close()
        if len(report.problems) > found and not report.journal.problems:
            report.notes.append(f"remove {directory.storage}: the next start makes it again, from snapshot and journal")
    snapshots = list_snapshots(directory.snapshots, directory.cluster)
    whole = 0
    for other in sorted(directory.snapshots.iterdir()) if directory.snapshots.exists() else ():
        if other not in {snapshot.directory for snapshot in snapshots}:
            report.notes.append(f"{other} is no snapshot, or its manifest is missing or damaged: delete it")
    for snapshot in snapshots:
        report.snapshots += 1
        if snapshot.position.sequence > report.journal.last.sequence and not report.journal.problems:
            report.problems.append(f"the journal ends before {snapshot.directory}: its last segments are missing")
        try:
            if not intact(snapshot.file, snapshot.checksum):
                report.problems.append(f"{snapshot.file} fails its checksum: delete {snapshot.directory}")
            elif snapshot.position.sequence >= report.journal.first.sequence:
                whole += 1
        except OSError as error:
            report.problems.append(f"{snapshot.file}: {error.strerror}")
    if not whole and report.journal.first.sequence > 0 and not report.journal.problems:
        lost = f"no whole snapshot reaches up to the journal's first record {report.journal.first.sequence}"
        if reached < report.journal.first.sequence:
            report.problems.append(f"{lost}, nor does the store: what came before is lost unless you have a copy")
        else:
            report.notes.append(f"{lost}: without the store, what came before would be lost")
    return report


def _compare(store: NativeStore, newest: _Newest, report: StorageReport) -> None:
    report.applied = store.applied
    report.not_compared = newest.forgotten
    last = report.journal.last_tau
    if store.applied > last and not report.journal.problems:
        report.notes.append("storage holds commits that were never acknowledged; they are undone at the next start")
    gone = newest.dropped.union(*newest.unpublished.values())  # they may or may not be there any more
    keys = [key for key in newest.keys if relation_of(key) not in gone]
    for start in range(0, len(keys), _BATCH):
        chunk = keys[start : start + _BATCH]
        batch = store.get_many(chunk, min(store.applied, last))
        at = 0
        for key in chunk:
            key_length, value_length, tau = _ENTRY.unpack_from(batch, at)
            at += _ENTRY.size
            wanted_tau, wanted = newest.keys[key]
            report.compared += 1
            if value_length == _NO_VALUE:
                if wanted is not None:
                    _problem(report, f"key {key.hex()} of {wanted_tau} is not in the store")
                continue
            value = batch[at : at + value_length]
            at += (value_length + 7 & ~7) + (key_length + 7 & ~7)
            if wanted is None:
                _problem(report, f"key {key.hex()} was deleted at {wanted_tau}, but the store has a version of {tau}")
            elif tau == wanted_tau and _digest(value) != wanted:
                _problem(report, f"key {key.hex()}: the store's value of {tau} is not the journal's")
            elif tau != wanted_tau:
                _problem(report, f"key {key.hex()}: the journal's newest version is of {wanted_tau}, the store's {tau}")


def _problem(report: StorageReport, line: str) -> None:
    if len(report.problems) < _MAX_PROBLEMS:
        report.problems.append(line)
