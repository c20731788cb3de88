"""A multi-version database in memory, played step by step from a seed: what the checker's verdicts are tried on.

It executes interleaved transactions on lists and registers under snapshot isolation or serializability (first committer
wins; SERIALIZABLE validates reads too), in virtual time. `flaw` breaks one rule; each must be found by the checker.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from australis.simulation.history import Append, Get, History, Operation, Outcome, Read, Transaction, Write

T = TypeVar("T")

KEYS = 4
PROCESSES = 6
STEP = 1_000_000  # nanoseconds at most between two steps


class Flaw(StrEnum):
    """One rule that the model breaks."""

    NONE = "none"
    VERSION_BACK = "a read is one version old now and then"
    NO_WRITE_CHECK = "first committer wins is off"
    NO_READ_CHECK = "SERIALIZABLE does not validate reads"
    LATE_SNAPSHOT = "snapshots lag behind acknowledged commits"
    STATEMENT_SNAPSHOT = "every statement has its own snapshot"
    SHARDS_APART = "two shards apply commits at different times"
    DIRTY_READ = "uncommitted appends are visible"
    OWN_WRITES_HIDDEN = "a transaction does not see its own writes"
    LOST_COMMIT = "an acknowledged commit is dropped now and then"
    APPLIED_TWICE = "a commit is applied twice now and then"
    REFUSED_APPLIED = "a refused commit is applied now and then"
    HALF_APPLIED = "only the first key of a commit is applied now and then"
    EARLY_ANSWER = "commits are acknowledged before they are visible"


@dataclass
class _Open:
    process: int
    invoked: int
    snapshot: int
    script: list[Operation]
    done: list[Operation] = field(default_factory=list)
    lists: dict[int, list[int]] = field(default_factory=dict)  # own appends
    registers: dict[int, int] = field(default_factory=dict)  # own writes
    read: set[tuple[str, int]] = field(default_factory=set)


class Model:
    """One run; `history()` after `run()`."""

    def __init__(self, seed: int, *, serializable: bool, flaw: Flaw = Flaw.NONE, unknown: float = 0.03) -> None:
        self._random = random.Random(seed)
        self._serializable = serializable
        self._flaw = flaw
        self._unknown = unknown
        self._now = 1_000
        self._count = 0  # commits so far; a snapshot is such a number
        self._value = 0
        self._lists: dict[int, list[tuple[int, tuple[int, ...]]]] = {k: [(0, ())] for k in range(KEYS)}
        self._registers: dict[int, list[tuple[int, int | None]]] = {k: [(0, None)] for k in range(KEYS)}
        self._open: list[_Open | None] = [None] * PROCESSES
        self._names = list(range(PROCESSES))  # an unknown outcome ends a process
        self._late: list[tuple[int, _Open]] = []  # unknown outcomes that commit later
        self._shards: list[int] = [0, 0]
        self._told: list[Transaction] = []
        self._hidden = 0

    def run(self, transactions: int) -> History:
        """Play until so many have ended, then read everything once more."""
        while len(self._told) < transactions:
            self._tick()
            self._step(self._random.randrange(PROCESSES))
        for _, one in self._late:
            self._apply(one, self._writes(one))
        self._shards = [self._count, self._count]
        self._hidden = self._count
        self._tick()
        final = tuple(Read(k, self._lists[k][-1][1]) for k in range(KEYS))
        gets = tuple(Get(k, self._registers[k][-1][1]) for k in range(KEYS))
        self._told.append(Transaction(10_000, self._now, self._now + 5, Outcome.OK, (*final, *gets), final=True))
        return History(tuple(self._told), "serializable" if self._serializable else "snapshot")

    def _tick(self) -> None:
        self._now += self._random.randrange(1, STEP)

    def _step(self, process: int) -> None:
        if self._late and self._random.random() < 0.1:
            _, one = self._late.pop(0)
            if not self._conflicts(one):
                self._apply(one, self._writes(one))
        self._shards = [self._count if self._random.random() < 0.1 else s for s in self._shards]
        if self._random.random() < 0.4:
            self._hidden = self._count
        running = self._open[process]
        if running is None:
            self._open[process] = self._begin(process)
        elif running.script:
            self._operate(running, running.script.pop(0))
        else:
            self._open[process] = None
            self._commit(running, process)

    def _begin(self, process: int) -> _Open:
        script: list[Operation] = []
        for _ in range(self._random.randrange(1, 5)):
            key = self._random.randrange(KEYS)
            match self._random.randrange(6):
                case 0 | 1:
                    self._value += 1
                    script.append(Append(key, self._value))
                case 2 | 3:
                    script.append(Read(key, ()))
                case 4:
                    self._value += 1
                    script.append(Write(key, self._value))
                case _:
                    script.append(Get(key, None))
        lagging = self._flaw is Flaw.LATE_SNAPSHOT and self._random.random() < 0.3
        snapshot = max(0, self._count - 2) if lagging else self._count
        if self._flaw is Flaw.EARLY_ANSWER:
            snapshot = self._hidden
        return _Open(self._names[process], self._now, snapshot, script)

    def _at(self, one: _Open, key: int) -> int:
        match self._flaw:
            case Flaw.STATEMENT_SNAPSHOT:
                return self._count
            case Flaw.SHARDS_APART:
                return min(one.snapshot, self._shards[key % 2])
            case _:
                return one.snapshot

    def _operate(self, one: _Open, operation: Operation) -> None:
        hidden = self._flaw is Flaw.OWN_WRITES_HIDDEN
        match operation:
            case Append(key, value):
                one.lists.setdefault(key, []).append(value)
                one.done.append(operation)
            case Write(key, value):
                one.registers[key] = value
                one.done.append(operation)
            case Read(key, _):
                one.read.add(("list", key))
                values = self._version(self._lists[key], self._at(one, key))
                if self._flaw is Flaw.DIRTY_READ:
                    for other in self._open:
                        if other is not None and other is not one:
                            values += tuple(v for v in other.lists.get(key, ()) if v not in values)
                own = () if hidden else tuple(one.lists.get(key, ()))
                one.done.append(Read(key, values + own))
            case Get(key, _):
                one.read.add(("register", key))
                value_read = self._version(self._registers[key], self._at(one, key))
                if key in one.registers and not hidden:
                    value_read = one.registers[key]
                one.done.append(Get(key, value_read))
            case _:
                raise AssertionError(operation)

    def _version(self, versions: list[tuple[int, T]], at: int) -> T:
        place = max(i for i, (time, _) in enumerate(versions) if time <= at)
        if self._flaw is Flaw.VERSION_BACK and place and self._random.random() < 0.2:
            place -= 1
        return versions[place][1]

    def _conflicts(self, one: _Open) -> bool:
        if self._flaw is Flaw.NO_WRITE_CHECK:
            return False
        touched: set[tuple[str, int]] = {("list", k) for k in one.lists} | {("register", k) for k in one.registers}
        if self._serializable and self._flaw is not Flaw.NO_READ_CHECK and touched:
            touched |= one.read
        latest = {("list", k): v[-1][0] for k, v in self._lists.items()}
        latest |= {("register", k): v[-1][0] for k, v in self._registers.items()}
        since = self._count if self._flaw is Flaw.STATEMENT_SNAPSHOT else one.snapshot
        return any(latest[key] > since for key in touched)

    @staticmethod
    def _writes(one: _Open) -> list[tuple[str, int]]:
        return [("list", k) for k in one.lists] + [("register", k) for k in one.registers]

    def _apply(self, one: _Open, keys: list[tuple[str, int]]) -> None:
        self._count += 1
        for kind, key in keys:
            if kind == "list":
                before = self._lists[key][-1][1]
                self._lists[key].append((self._count, before + tuple(one.lists[key])))
            else:
                self._registers[key].append((self._count, one.registers[key]))

    def _commit(self, one: _Open, process: int) -> None:
        keys = self._writes(one)
        refused = bool(keys) and self._conflicts(one)
        flawed = self._random.random() < 0.1
        if keys and self._random.random() < self._unknown:
            self._end(one, Outcome.UNKNOWN)
            self._names[process] += PROCESSES
            if not refused and self._random.random() < 0.5:
                self._late.append((self._now, one))
            return
        if refused:
            if flawed and self._flaw is Flaw.REFUSED_APPLIED:
                self._apply(one, keys)
            self._end(one, Outcome.FAIL)
            return
        if keys and not (flawed and self._flaw is Flaw.LOST_COMMIT):
            half = flawed and self._flaw is Flaw.HALF_APPLIED
            self._apply(one, keys[:1] if half else keys)
            if flawed and self._flaw is Flaw.APPLIED_TWICE:
                self._apply(one, keys)
        self._end(one, Outcome.OK)

    def _end(self, one: _Open, outcome: Outcome) -> None:
        self._tick()
        self._told.append(Transaction(one.process, one.invoked, self._now, outcome, tuple(one.done)))
