"""Decides whether a run was what it should have been, from everything that the simulator knows.

The journals are read once more, through the product's validity rule as it was before any mutation. They say which
transactions are committed, and when; everything else is compared with that:

- a transaction is in the journals at most once, at a time above its snapshot; times increase in each journal;
- what was acknowledged is there at that time; what was called aborted is not;
- every read at tau_start returned the newest committed version at or below it;
- no two committed transactions with conflicting lock modes on a key overlap; of SERIALIZABLE ones neither what they
  read; no writer of a relation overlaps a change of its schema; DDL records have no gaps;
- what a client was told before another transaction began, that one sees (not asked when clocks break their bound);
- the workloads' own invariants, in every snapshot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from australis.adjudicator.conflict_table import CONFLICTS
from australis.journal.record import START, Entry, Kind
from australis.journal.validity import Validator
from australis.keyspace import SystemRelation, relation_of, relation_prefix
from australis.protocol.messages import MODE_MASK, ModeFlag, WideCommit, decode_values, wide_commit_decoder
from australis.simulation import workloads
from australis.simulation.engine import CLUSTER, Engine
from australis.simulation.roles import Transaction
from australis.simulation.workloads import RELATIONS

_CONFLICTS = tuple(frozenset(map(int, modes)) for modes in CONFLICTS)
_NO_VALUE = int(ModeFlag.LOCK_ONLY | ModeFlag.VALIDATE_ONLY)


@dataclass(slots=True)
class Committed:
    """A transaction of the journals."""

    tau: int
    journal: int
    commit: WideCommit
    values: list[bytes | None]


def read_journals(engines: Iterable[Engine]) -> tuple[list[Committed], list[str]]:
    """Return what is committed, in order of time, and what is wrong with the journals themselves."""
    found: list[Committed] = []
    wrong: list[str] = []
    for engine in engines:
        validator = Validator(CLUSTER, START)
        last = -1
        horizon = 0
        for entry in validator.entries(iter(engine.log)):
            if entry.kind == Kind.CLAIM:
                if entry.tau < max(last, horizon):
                    wrong.append(f"{engine.name}: the claim's floor {entry.tau} is below {max(last, horizon)}")
            elif entry.tau <= last:
                wrong.append(f"{engine.name}: time {entry.tau} follows {last}")
            last, horizon = max(last, entry.tau), entry.horizon
            if entry.kind == Kind.TRANSACTION:
                found.append(_committed(engine, entry))
    found.sort(key=lambda item: (item.tau, item.journal))
    return found, wrong


def _committed(engine: Engine, entry: Entry) -> Committed:
    commit = wide_commit_decoder.decode(entry.body)
    return Committed(entry.tau, engine.journal, commit, decode_values(commit))


class History:
    """All versions of all keys."""

    def __init__(self, committed: list[Committed]) -> None:
        self.times: dict[bytes, list[int]] = {}
        self.values: dict[bytes, list[Any]] = {}
        for item in committed:
            for key, mode, value in zip(item.commit.keys, item.commit.modes, item.values, strict=True):
                if not mode & _NO_VALUE:
                    self.times.setdefault(key, []).append(item.tau)
                    self.values.setdefault(key, []).append(None if value is None else msgspec.msgpack.decode(value))

    def get(self, key: bytes, tau: int) -> Any:
        """The newest version at or below tau; None if there is none."""
        times = self.times.get(key)
        at = bisect_right(times, tau) if times else 0
        return self.values[key][at - 1] if at else None

    def version(self, key: bytes, tau: int) -> int:
        """Time of the newest version at or below tau; 0 if there is none."""
        times = self.times.get(key)
        at = bisect_right(times, tau) if times else 0
        return times[at - 1] if times and at else 0

    def rows(self, lo: bytes, hi: bytes, tau: int) -> dict[bytes, Any]:
        """All rows of a range as of tau."""
        rows = {key: self.get(key, tau) for key in self.times if lo <= key < hi}
        return {key: value for key, value in rows.items() if value is not None}


def judge(engines: list[Engine], transactions: list[Transaction], bounded: bool) -> list[str]:
    """Return what is wrong, a line each; empty if nothing is. `bounded`: the clocks kept their bound."""
    committed, wrong = read_journals(engines)
    by_txid: dict[bytes, Committed] = {}
    for item in committed:
        name = item.commit.txid[-2:].hex()
        if item.commit.txid in by_txid:
            wrong.append(f"{name} is committed twice: at {by_txid[item.commit.txid].tau} and at {item.tau}")
        by_txid[item.commit.txid] = item
        if item.tau <= item.commit.tau_start:
            wrong.append(f"{name} is committed at {item.tau}, not above its snapshot {item.commit.tau_start}")
    history = History(committed)
    wrong += _outcomes(by_txid, transactions)
    wrong += _reads(history, transactions)
    wrong += _conflicts(committed)
    wrong += _schema(committed)
    if bounded:
        wrong += _real_time(by_txid, transactions)
        wrong += _seen_before(history, transactions)
    wrong += _invariants(committed, transactions)
    return wrong


def _outcomes(by_txid: dict[bytes, Committed], transactions: list[Transaction]) -> list[str]:
    wrong = []
    for transaction in transactions:
        item = by_txid.get(transaction.txid)
        name = transaction.txid[-2:].hex()
        if transaction.outcome == "committed" and transaction.plan is not None and transaction.plan.writes:
            if item is None:
                wrong.append(f"{name} was acknowledged at {transaction.tau} and is lost")
            elif item.tau != transaction.tau:
                wrong.append(f"{name} was acknowledged at {transaction.tau} and is committed at {item.tau}")
        elif transaction.outcome == "aborted" and item is not None:
            wrong.append(f"{name} was called aborted ({transaction.detail}) and is committed at {item.tau}")
    return wrong


def _reads(history: History, transactions: list[Transaction]) -> list[str]:
    wrong = []
    for transaction in transactions:
        tau, name = transaction.tau_start, transaction.txid[-2:].hex()
        for key, value in transaction.reads.items():
            expected = history.get(key, tau)
            if value != expected:
                wrong.append(f"{name} read {value!r} of {key.hex()} at {tau}; committed is {expected!r}")
        for (lo, hi), rows in transaction.ranges.items():
            if rows != history.rows(lo, hi, tau):
                wrong.append(
                    f"{name} read {rows} in {lo.hex()}..{hi.hex()} at {tau}; committed is {history.rows(lo, hi, tau)}"
                )
    return wrong


def _conflicts(committed: list[Committed]) -> list[str]:
    """First committer wins: look back from each to its snapshot."""
    wrong = []
    by_key: dict[bytes, list[tuple[int, int]]] = {}
    writes: dict[int, int] = {}
    written: list[tuple[int, list[bytes]]] = []
    for item in committed:
        commit = item.commit
        name = f"{commit.txid[-2:].hex()} ({commit.tau_start}, {item.tau}]"
        for key, mode in zip(commit.keys, commit.modes, strict=True):
            if mode & ModeFlag.BLIND:
                continue
            for tau, other in reversed(by_key.get(key, [])):
                if tau <= commit.tau_start:
                    break
                if other & MODE_MASK in _CONFLICTS[mode & MODE_MASK]:
                    wrong.append(f"{name} with mode {mode} on {key.hex()} overlaps mode {other} at {tau}")
        for lo, hi, _ in commit.checks:
            for tau, keys in reversed(written):
                if tau <= commit.tau_start:
                    break
                if any(lo <= key < hi for key in keys):
                    wrong.append(f"{name} read {lo.hex()}..{hi.hex()}, written at {tau}")
        for relation in commit.scans:
            if writes.get(relation, 0) > commit.tau_start:
                wrong.append(f"{name} scanned relation {relation & 0xFF}, written at {writes[relation]}")
        for key, mode in zip(commit.keys, commit.modes, strict=True):
            if not mode & (ModeFlag.BLIND | ModeFlag.VALIDATE_ONLY):
                by_key.setdefault(key, []).append((item.tau, mode))
        changed = [key for key, mode in zip(commit.keys, commit.modes, strict=True) if not mode & _NO_VALUE]
        written.append((item.tau, changed))
        for key in changed:
            writes[relation_of(key)] = item.tau
    return wrong


def _schema(committed: list[Committed]) -> list[str]:
    """A5 and Q5."""
    wrong = []
    last = 0
    changes: dict[int, int] = {}
    writes: dict[int, int] = {}
    for item in committed:
        commit = item.commit
        name = f"{commit.txid[-2:].hex()} ({commit.tau_start}, {item.tau}]"
        for relation in commit.relations:
            if changes.get(relation, 0) > commit.tau_start:
                wrong.append(f"{name} wrote relation {relation & 0xFF}, whose schema changed at {changes[relation]}")
        if commit.ddl is not None:
            n, changed, depends = commit.ddl
            if n != last + 1:
                wrong.append(f"{name} is DDL record {n} after {last}")
            last = n
            for relation in changed:
                if changes.get(relation, 0) > commit.tau_start:
                    wrong.append(f"{name} changes relation {relation & 0xFF}, changed at {changes[relation]}")
                changes[relation] = item.tau
            for relation in depends:
                if writes.get(relation, 0) > commit.tau_start:
                    wrong.append(f"{name} depends on relation {relation & 0xFF}, written at {writes[relation]}")
        for relation in commit.relations:
            writes[relation] = item.tau
    return wrong


def _real_time(by_txid: dict[bytes, Committed], transactions: list[Transaction]) -> list[str]:
    """Who begins after another has ended sees what that one wrote, and what that one saw."""
    wrong = []
    acknowledged = sorted(
        (transaction.end, transaction.tau, transaction.txid)
        for transaction in transactions
        if transaction.outcome == "committed" and transaction.txid in by_txid
    )
    newest = (0, b"")
    at = 0
    for transaction in sorted(transactions, key=lambda item: item.start):
        while at < len(acknowledged) and acknowledged[at][0] < transaction.start:
            newest = max(newest, acknowledged[at][1:])
            at += 1
        if transaction.tau_start < newest[0]:
            wrong.append(
                f"{transaction.txid[-2:].hex()} began with snapshot {transaction.tau_start} after "
                f"{newest[1][-2:].hex()} was acknowledged at {newest[0]}"
            )
    return wrong


def _seen_before(history: History, transactions: list[Transaction]) -> list[str]:
    """What one transaction saw, those that begin after its end see as well."""
    wrong = []
    seen = sorted(
        (item.end, max((history.version(key, item.tau_start) for key in item.reads), default=0))
        for item in transactions
        if item.outcome in ("committed", "aborted")
    )
    newest = at = 0
    for transaction in sorted(transactions, key=lambda item: item.start):
        while at < len(seen) and seen[at][0] < transaction.start:
            newest = max(newest, seen[at][1])
            at += 1
        if transaction.tau_start < newest:
            wrong.append(
                f"{transaction.txid[-2:].hex()} began with snapshot {transaction.tau_start} "
                f"after a commit at {newest} was seen"
            )
    return wrong


def _invariants(committed: list[Committed], transactions: list[Transaction]) -> list[str]:
    wrong = []
    committed = [item for item in committed if not any(key.endswith(workloads.PROBE) for key in item.commit.keys)]
    history = History(committed)
    accounts = [workloads.row("bank", number) for number in range(workloads.ACCOUNTS)]
    total = workloads.ACCOUNTS * workloads.BALANCE
    for item in committed:
        tau = item.tau
        kinds = {relation_of(key) for key in item.commit.keys}
        if RELATIONS["bank"] in kinds:
            held = [history.get(key, tau) for key in accounts]
            money = sum(workloads.BALANCE if balance is None else balance for balance in held)
            if money != total:
                wrong.append(f"the bank holds {money} at {tau}")
        if RELATIONS["unique"] in kinds:
            rows = history.rows(*workloads.whole("unique"), tau)
            index = history.rows(*workloads.whole("unique_index"), tau)
            if {key[-1]: value for key, value in rows.items()} != {value: key[-1] for key, value in index.items()}:
                wrong.append(f"rows {rows} and unique index {index} differ at {tau}")
        if kinds & {RELATIONS["parent"], RELATIONS["child"]}:
            parents = history.rows(*workloads.whole("parent"), tau)
            for key in history.rows(*workloads.whole("child"), tau):
                if workloads.row("parent", key[-1] // 10) not in parents:
                    wrong.append(f"child {key[-1]} has no parent at {tau}")
        if RELATIONS["doctor"] in kinds:
            on = [history.get(workloads.row("doctor", number), tau) for number in (0, workloads.ROWS - 1)]
            if on == [False, False]:
                wrong.append(f"no doctor is on call at {tau}")
        if RELATIONS["versioned"] in kinds:
            for key, value in zip(item.commit.keys, item.values, strict=True):
                if relation_of(key) == RELATIONS["versioned"] and value is not None:
                    schema = history.get(relation_prefix(SystemRelation.CLUSTER), tau) or 0
                    if msgspec.msgpack.decode(value) != schema:
                        wrong.append(f"a row of schema {msgspec.msgpack.decode(value)} was written at {tau}: {schema}")
    given: set[tuple[int, int]] = set()
    for transaction in transactions:
        if transaction.outcome == "committed" and transaction.plan is not None and transaction.plan.note is not None:
            if transaction.plan.note in given:
                wrong.append(f"the sequence gave {transaction.plan.note} twice")
            given.add(transaction.plan.note)
    return wrong
