"""What committed recently, by key and lock mode (rule A4).

Two structures are kept in step: per mode a dictionary key -> latest commit time, and the commit log, a queue of (time,
keys, modes) in time order. A point is answered by the dictionaries, a range (SERIALIZABLE) by walking the log back to
the reader's snapshot. Blind writes (entries of secondary indexes) are in the log only: points never conflict with
them, ranges do. The memory is bounded: the oldest log entries are merged into per-relation maxima per mode; when there
are too many relations, the maxima are dropped and the floor of the table rises.

What must hold: a conflict that happened is never missed. A reader older than what was merged may be refused for another
key of the same relation (false conflict), and one older than `floor` must be refused altogether by the caller.
"""

from __future__ import annotations

from collections import deque

import msgspec

from australis._native import newer_key, note_keys
from australis.protocol.messages import MODE_MASK, Mode, ModeFlag

CONFLICTS: tuple[tuple[Mode, ...], ...] = (
    # PostgreSQL's row lock conflicts (src/backend/access/heap/heapam.c, tupleLockExtraInfo and the manual's table 13.3)
    (Mode.UPDATE,),
    (Mode.NO_KEY_UPDATE, Mode.UPDATE),
    (Mode.SHARE, Mode.NO_KEY_UPDATE, Mode.UPDATE),
    (Mode.KEY_SHARE, Mode.SHARE, Mode.NO_KEY_UPDATE, Mode.UPDATE),
)
_NO_WRITE = int(ModeFlag.LOCK_ONLY | ModeFlag.VALIDATE_ONLY)
_BLIND_SLOT = 4  # behind the four modes: blind writes, which only ranges conflict with
# mode byte -> slot of the maxima, -1: leaves no trace. A table, since operators of flags cost a call each.
_SLOTS = tuple(
    -1 if mode & ModeFlag.VALIDATE_ONLY else _BLIND_SLOT if mode & ModeFlag.BLIND else mode & MODE_MASK
    for mode in range(256)
)
_MANY = 256
"""Keys from which on a write set is looked at by kinds of keys rather than key by key."""


UNCHECKED = int(ModeFlag.BLIND)
UNRECORDED = int(ModeFlag.BLIND | ModeFlag.VALIDATE_ONLY)

DEFAULT_BYTES = 256 << 20
LARGE_WRITE_SET = 50_000
MAX_RELATIONS = 65_536
RANGE_KEYS = 200_000
_ENTRY_BYTES = 260  # dictionary slot, key object, list slot and their headers, beside the key's own bytes
_LOG_BYTES = 200


class _LogEntry(msgspec.Struct, frozen=True, gc=False):
    tau: int
    keys: list[bytes]
    modes: bytes
    size: int


class ConflictTable:
    """Bounded memory of recent commits."""

    def __init__(self, floor: int, limit: int = DEFAULT_BYTES, max_relations: int = MAX_RELATIONS) -> None:
        self.floor = floor
        self._limit, self._max_relations = limit, max_relations
        self._latest: tuple[dict[bytes, int], ...] = ({}, {}, {}, {})
        # per mode byte: the dictionaries that answer it, and the one that records it
        self._probes: tuple[tuple[dict[bytes, int], ...], ...] = tuple(
            () if mode & UNCHECKED else tuple(self._latest[conflict] for conflict in CONFLICTS[mode & MODE_MASK])
            for mode in range(256)
        )
        self._records = tuple(None if mode & UNRECORDED else self._latest[mode & MODE_MASK] for mode in range(256))
        self._log: deque[_LogEntry] = deque()
        self._merged: dict[bytes, list[int]] = {}  # relation prefix -> latest time per mode
        self.merged_until = floor  # largest time in _merged: newer snapshots need not look there; never below the floor
        self._written: dict[bytes, int] = {}  # relation prefix -> last write (or lock) of any key, for ranges
        self._written_floor = floor
        self.size = 0
        self.dictionaries = self._probes, self._records, self._written
        """For `decide_plain`; never exchanged for others."""

    @property
    def entries(self) -> int:
        """Keys remembered, over all modes."""
        return sum(map(len, self._latest))

    def conflict(self, keys: list[bytes], modes: bytes, tau_start: int) -> bytes | None:
        """Return a key on which a conflicting mode committed after tau_start; None if there is none."""
        if len(keys) < _MANY or self._touches(keys, modes):
            key = newer_key(self._probes, keys, modes, tau_start)
            if key is not None:
                return key
        if tau_start < self.merged_until:
            return self._merged_conflict(keys, modes, tau_start)
        return None

    def _touches(self, keys: list[bytes], modes: bytes) -> bool:
        """Is any of many keys in a dictionary that it may conflict with? One pass in C per mode and dictionary."""
        for mode in set(modes):
            if mode & UNCHECKED:
                continue
            latest = [self._latest[conflict] for conflict in CONFLICTS[mode & MODE_MASK] if self._latest[conflict]]
            if latest:
                same = keys
                if modes.count(mode) < len(modes):
                    same = [key for key, other in zip(keys, modes, strict=True) if other == mode]
                if not all(known.keys().isdisjoint(same) for known in latest):
                    return True
        return False

    def _merged_conflict(self, keys: list[bytes], modes: bytes, tau_start: int) -> bytes | None:
        for prefix, mode in _kinds(keys, modes):
            if mode & UNCHECKED:
                continue
            latest = self._merged.get(prefix)
            if latest is not None:
                for conflict in CONFLICTS[mode & MODE_MASK]:
                    if latest[conflict] > tau_start:
                        return next(key for key in keys if key.startswith(prefix))
        return None

    def range_conflict(self, lo: bytes, hi: bytes, tau_start: int) -> bytes | None:
        """Return a key in [lo, hi) that was written after tau_start; None if there is none.

        Looks at RANGE_KEYS keys at most; if the answer is not among them, the relation's last write decides.
        """
        first = lo[:8]
        if first == hi[:8] and self._written.get(first, self._written_floor) <= tau_start:
            return None
        budget = RANGE_KEYS
        for entry in reversed(self._log):
            if entry.tau <= tau_start:
                break
            for key, mode in zip(entry.keys, entry.modes, strict=True):
                if lo <= key < hi and mode & MODE_MASK >= Mode.NO_KEY_UPDATE and not mode & _NO_WRITE:
                    return key
            budget -= len(entry.keys)
            if budget < 0:
                return lo
        if tau_start < self.merged_until:
            prefixes = [first] if first == hi[:8] else self._merged
            for prefix in prefixes:
                latest = self._merged.get(prefix)
                if latest is not None and first <= prefix < hi and max(latest[Mode.NO_KEY_UPDATE :]) > tau_start:
                    return prefix
        return None

    def record(self, keys: list[bytes], modes: bytes, tau: int) -> None:
        """Remember a commit at tau, which is above all before."""
        if len(keys) > LARGE_WRITE_SET:
            self._merge(keys, modes, tau)
            self._written.update({key[:8]: tau for key in keys})
            return
        self.recorded(keys, modes, tau, note_keys(self._records, self._written, keys, modes, tau))

    def recorded(self, keys: list[bytes], modes: bytes, tau: int, length: int) -> None:
        """Do the rest of `record`: the dictionaries have the keys already, which are `length` bytes long together."""
        size = _LOG_BYTES + len(keys) * _ENTRY_BYTES + length
        if len(self._written) > self._max_relations:
            self._written.clear()
            self._written_floor = tau
        self._log.append(_LogEntry(tau, keys, modes, size))
        self.size += size
        while self.size > self._limit and self._log:
            self._evict()

    def insert(self, keys: list[bytes], modes: bytes, tau: int) -> None:
        """Remember a commit that is heard of late: tau may lie below others' (rule M4), or above (a promise's end)."""
        log = self._log
        if (not log or tau > log[-1].tau) and tau > self.merged_until:
            self.record(keys, modes, tau)
            return
        if len(keys) > LARGE_WRITE_SET or not log or tau <= self.merged_until:
            self._merge(keys, modes, tau)
            for key in keys:
                if self._written.get(key[:8], 0) < tau:
                    self._written[key[:8]] = tau
            return
        length = 0
        for key, mode in zip(keys, modes, strict=True):
            latest = self._records[mode]
            if latest is not None and latest.get(key, 0) < tau:
                latest[key] = tau
            if self._written.get(key[:8], 0) < tau:
                self._written[key[:8]] = tau
            length += len(key)
        at = len(log)
        while at > 0 and log[at - 1].tau > tau:
            at -= 1
        size = _LOG_BYTES + len(keys) * _ENTRY_BYTES + length
        log.insert(at, _LogEntry(tau, keys, modes, size))
        self.size += size
        while self.size > self._limit and self._log:
            self._evict()

    def merge_until(self, tau: int, limit: int) -> bool:
        """Merge up to `limit` commits at or below tau, as no snapshot is older than that; True if more are left."""
        log = self._log
        while limit > 0 and log and log[0].tau <= tau:
            self._evict()
            limit -= 1
        return bool(log and log[0].tau <= tau)

    def _evict(self) -> None:
        """Merge the oldest commit into the per-relation maxima."""
        entry = self._log.popleft()
        self.size -= entry.size
        for key, mode in zip(entry.keys, entry.modes, strict=True):
            latest = self._records[mode]
            if latest is not None and latest.get(key) == entry.tau:
                del latest[key]
        self._merge(entry.keys, entry.modes, entry.tau)

    def _merge(self, keys: list[bytes], modes: bytes, tau: int) -> None:
        merged = self._merged
        for prefix, mode in _kinds(keys, modes):
            slot = _SLOTS[mode]
            if slot < 0:
                continue
            latest = merged.get(prefix)
            if latest is None:
                latest = merged[prefix] = [0, 0, 0, 0, 0]
            if tau > latest[slot]:
                latest[slot] = tau
        if tau > self.merged_until:
            self.merged_until = tau
        if len(merged) > self._max_relations:
            merged.clear()
            self.floor = max(self.floor, self.merged_until)


def _kinds(keys: list[bytes], modes: bytes) -> set[tuple[bytes, int]]:
    """Return relation prefix and mode of all keys, each pair once."""
    if len(keys) >= _MANY and modes.count(modes[0]) == len(modes):
        mode = modes[0]
        return {(prefix, mode) for prefix in {key[:8] for key in keys}}
    return {(key[:8], mode) for key, mode in zip(keys, modes, strict=True)}
