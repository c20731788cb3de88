"""What this adjudicator has promised to leaders, itself included, and not heard the end of (rules M1-M5, A4).

A promise is an entry at tau_max beside the conflict table: requests with a snapshot below tau_max conflict with it,
others pass. It has no timer: it stays until its outcome, or until it is taken out as old and becomes an entry of the
table at tau_max. What must hold: whatever was promised is either here or in the table, at tau_max or at its commit's
time.
"""

from __future__ import annotations

from dataclasses import dataclass

from australis.adjudicator.conflict_table import CONFLICTS
from australis.protocol.messages import MODE_MASK, Mode, ModeFlag, Prepare

FOREVER = (1 << 63) - 1
"""tau_max of the leader's promise to itself: it ends with the attempt."""

_MODE_CONFLICTS = tuple(frozenset(int(mode) for mode in modes) for modes in CONFLICTS)
_NO_WRITE = int(ModeFlag.LOCK_ONLY | ModeFlag.VALIDATE_ONLY)

Name = tuple[bytes, int]
"""(txid, attempt)."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What was promised, from tau up to tau_max."""

    share: Prepare
    tau: int
    tau_max: int


def writes(mode: int) -> bool:
    """Does this mode byte change the row, so that whoever read it must know?"""
    return mode & MODE_MASK >= Mode.NO_KEY_UPDATE and not mode & _NO_WRITE


class Promises:
    """Open promises by name and by key; oldest first."""

    def __init__(self) -> None:
        self.open: dict[Name, Promise] = {}
        self._by_key: dict[bytes, dict[Name, int]] = {}
        self._wide: dict[Name, Promise] = {}  # those with ranges or relations
        self._attempt: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.open)

    def add(self, promise: Promise) -> None:
        """Enter a promise; there must be none of the same transaction."""
        share = promise.share
        name = share.txid, share.attempt
        self.open[name] = promise
        for key, mode in zip(share.keys, share.modes, strict=True):
            self._by_key.setdefault(key, {})[name] = mode
        self._attempt[share.txid] = share.attempt
        if share.checks or share.relations or share.changed or share.depends or share.scans:
            self._wide[name] = promise

    def remove(self, name: Name) -> Promise | None:
        """Take a promise out; None if there is no such promise."""
        promise = self.open.pop(name, None)
        if promise is None:
            return None
        del self._attempt[name[0]]
        self._wide.pop(name, None)
        for key in promise.share.keys:
            holders = self._by_key.get(key)
            if holders is not None:
                holders.pop(name, None)
                if not holders:
                    del self._by_key[key]
        return promise

    def attempt(self, txid: bytes) -> int | None:
        """Which attempt of a transaction has a promise here; None if none has."""
        return self._attempt.get(txid)

    def oldest(self) -> Name | None:
        """Name of the promise to a leader that is open for longest; None if there are only the own ones."""
        return next((name for name, promise in self.open.items() if promise.tau_max != FOREVER), None)

    def conflict(self, share: Prepare) -> bool:
        """Does anything in share conflict with an open promise of another transaction?"""
        if not self.open:
            return False
        txid, tau_start = share.txid, share.tau_start
        for key, mode in zip(share.keys, share.modes, strict=True):
            holders = self._by_key.get(key)
            if holders:
                conflicting = _MODE_CONFLICTS[mode & MODE_MASK]
                for name, held in holders.items():
                    if held & MODE_MASK in conflicting and name[0] != txid and self.open[name].tau_max > tau_start:
                        return True
        if share.checks:
            for name, promise in self.open.items():
                if name[0] != txid and promise.tau_max > tau_start and _written_in(promise.share, share):
                    return True
        for name, promise in self._wide.items():
            if name[0] == txid or promise.tau_max <= tau_start:
                continue
            other = promise.share
            if other.checks and _written_in(share, other):
                return True
            if relations_conflict(share, other) or relations_conflict(other, share):
                return True
        return False


def _written_in(writer: Prepare, reader: Prepare) -> bool:
    """Does writer change a key in a range that reader has read?"""
    for key, mode in zip(writer.keys, writer.modes, strict=True):
        if writes(mode):
            for lo, hi, _ in reader.checks:
                if lo <= key < hi:
                    return True
    return False


def relations_conflict(one: Prepare, other: Prepare) -> bool:
    """Does one change a relation that other uses, or touch rows that other depends on?

    A promised write stops DDL of its relation (it may get the later time), though a committed one does not (A5).
    """
    if one.changed:
        for relation in one.changed:
            if relation in other.relations or relation in other.changed:
                return True
    if one.relations and (other.depends or other.scans):
        for relation in one.relations:
            if relation in other.depends or relation in other.scans:
                return True
    return False
