"""Histories of a bank, of unique keys and of foreign keys, held to what must always be true. Pure.

Bank: every snapshot holds the same total and nothing below zero; with the numbers of the transfers it also explains
every balance. Rows: what is there was inserted by somebody who may have committed; what was acknowledged before the
snapshot began is there, and what was deleted is not; constraints hold in every snapshot. Unknown outcomes may have
happened or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from australis.simulation.anomalies import Findings, Name
from australis.simulation.history import (
    Balances,
    Delete,
    History,
    HistoryError,
    Insert,
    Outcome,
    Refused,
    Rows,
    Transfer,
)


def check_bank(history: History, findings: Findings) -> None:
    """All `Balances` of committed transactions."""
    transfers: dict[int, tuple[int, Transfer]] = {}
    for number, one in enumerate(history.transactions):
        for operation in one.operations:
            if isinstance(operation, Transfer) and transfers.setdefault(operation.number, (number, operation)) != (
                number,
                operation,
            ):
                raise HistoryError(f"transfer {operation.number} is there twice")
    for number, one in enumerate(history.transactions):
        if one.outcome is not Outcome.OK or any(isinstance(o, Transfer) for o in one.operations):
            continue
        for operation in one.operations:
            if isinstance(operation, Balances):
                _check_balances(history, findings, number, operation, transfers)


def _check_balances(
    history: History, findings: Findings, number: int, read: Balances, transfers: dict[int, tuple[int, Transfer]]
) -> None:
    total = sum(read.accounts.values())
    if total != history.total:
        findings.add(Name.TOTAL, f"{{0}} read balances of {total} in all instead of {history.total}", number)
    for account, balance in read.accounts.items():
        if balance < 0:
            findings.add(Name.NEGATIVE, f"{{0}} read a balance of {balance} in account {account}", number)
    if read.transfers is None:
        return
    invoked = history.transactions[number].invoked
    expected = dict(history.opening)
    for transfer, count in Counter(read.transfers).items():
        if count > 1:
            findings.add(Name.DUPLICATE, f"{{0}} read transfer {transfer} {count} times", number)
        if transfer not in transfers:
            findings.add(Name.GARBAGE, f"{{0}} read transfer {transfer}, which nobody made", number)
            continue
        writer, made = transfers[transfer]
        if history.transactions[writer].outcome is Outcome.FAIL:
            findings.add(Name.G1A, f"{{0}} read transfer {transfer} of {{1}}, which did not commit", number, writer)
        expected[made.source] -= made.amount
        expected[made.destination] += made.amount
    there = set(read.transfers)
    for transfer, (writer, _) in transfers.items():
        one = history.transactions[writer]
        if one.outcome is Outcome.OK and one.completed < invoked and transfer not in there:
            name = Name.LOST if history.transactions[number].final else Name.STALE_READ
            findings.add(name, f"{{0}} did not read transfer {transfer} of {{1}}, acknowledged before", number, writer)
    wrong = {a: (b, expected.get(a, 0)) for a, b in read.accounts.items() if b != expected.get(a, 0)}
    if wrong:
        told = ", ".join(f"account {a} holds {b} instead of {e}" for a, (b, e) in sorted(wrong.items())[:4])
        findings.add(Name.HALF_APPLIED, f"{{0}} read balances that its transfers do not explain: {told}", number)


@dataclass
class _Life:
    """A row: who inserted it, who deleted it (several may have tried)."""

    inserted: int
    deleted: list[int]


def check_rows(history: History, findings: Findings) -> None:
    """All `Rows` of committed transactions that only read, and all `Refused`."""
    lives: dict[tuple[str, int], _Life] = {}
    inserts: dict[tuple[str, int], list[int]] = defaultdict(list)  # by reference
    deletes: list[tuple[tuple[str, int], int]] = []
    for number, one in enumerate(history.transactions):
        for operation in one.operations:
            if isinstance(operation, Insert):
                row = (operation.table, operation.row)
                if row in lives:
                    raise HistoryError(f"row {operation.row} of {operation.table} is inserted twice")
                lives[row] = _Life(number, [])
                inserts[operation.table, operation.reference].append(number)
            elif isinstance(operation, Delete):
                deletes.append(((operation.table, operation.row), number))
    for row, number in deletes:
        if row in lives and history.transactions[number].outcome is not Outcome.FAIL:
            lives[row].deleted.append(number)
    settled = _Settled(history, lives)
    for number, one in enumerate(history.transactions):
        _check_refusals(history, findings, number, inserts)
        if one.outcome is Outcome.OK and not any(isinstance(o, Insert | Delete) for o in one.operations):
            tables: dict[str, dict[int, int]] = {}
            for operation in one.operations:
                if isinstance(operation, Rows):
                    _check_lives(history, findings, number, operation, lives, settled)
                    _check_paths(findings, number, operation, tables)
            _check_constraints(history, findings, number, tables)


class _Settled:
    """Rows whose insert was acknowledged, in that order, so that a snapshot looks at those it must hold only."""

    def __init__(self, history: History, lives: dict[tuple[str, int], _Life]) -> None:
        self.by_table: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for (table, row), life in lives.items():
            one = history.transactions[life.inserted]
            if one.outcome is Outcome.OK:
                self.by_table[table].append((one.completed, row))
        for rows in self.by_table.values():
            rows.sort()


def _check_lives(
    history: History,
    findings: Findings,
    number: int,
    read: Rows,
    lives: dict[tuple[str, int], _Life],
    settled: _Settled,
) -> None:
    one = history.transactions[number]
    how = f"{read.table}{' by ' + read.path if read.path else ''}"
    there = {row for row, _ in read.rows}
    for row in there:
        life = lives.get((read.table, row))
        if life is None:
            findings.add(Name.GARBAGE, f"{{0}} read row {row} of {how}, which nobody inserted", number)
            continue
        if history.transactions[life.inserted].outcome is Outcome.FAIL:
            findings.add(Name.G1A, f"{{0}} read row {row} of {how}, which {{1}} did not commit", number, life.inserted)
        for deleter in life.deleted:
            other = history.transactions[deleter]
            if other.outcome is Outcome.OK and other.completed < one.invoked:
                findings.add(
                    Name.RESURRECTED, f"{{0}} read row {row} of {how}, deleted by {{1}} before", number, deleter
                )
    for completed, row in settled.by_table[read.table]:
        if completed >= one.invoked:
            break
        life = lives[read.table, row]
        if row not in there and not any(history.transactions[d].invoked < one.completed for d in life.deleted):
            name = Name.LOST if one.final else Name.STALE_READ
            findings.add(
                name, f"{{0}} did not read row {row} of {how}, inserted by {{1}} before", number, life.inserted
            )


def _check_paths(findings: Findings, number: int, read: Rows, tables: dict[str, dict[int, int]]) -> None:
    rows = dict(read.rows)
    if len(rows) != len(read.rows):
        findings.add(Name.DUPLICATE, f"{{0}} read a row of {read.table} more than once by {read.path}", number)
    known = tables.setdefault(read.table, rows)
    if known != rows:
        odd = sorted(set(known.items()) ^ set(rows.items()))[:4]
        findings.add(
            Name.NON_REPEATABLE,
            f"{{0}} read {read.table} in two ways with different rows, the last by {read.path}: {odd}",
            number,
        )


def _check_constraints(history: History, findings: Findings, number: int, tables: dict[str, dict[int, int]]) -> None:
    for constraint in history.constraints:
        rows = tables.get(constraint.table)
        if rows is None:
            continue
        if constraint.parent:
            parents = tables.get(constraint.parent)
            for row, reference in rows.items() if parents is not None else ():
                if parents is not None and reference not in parents:
                    findings.add(
                        Name.ORPHAN,
                        f"{{0}} read row {row} of {constraint.table} without row {reference} of {constraint.parent}",
                        number,
                    )
            continue
        for reference, count in Counter(rows.values()).items():
            if count > 1:
                twins = sorted(row for row, other in rows.items() if other == reference)
                findings.add(
                    Name.NOT_UNIQUE, f"{{0}} read key {reference} of {constraint.table} in rows {twins}", number
                )


def _check_refusals(
    history: History, findings: Findings, number: int, inserts: dict[tuple[str, int], list[int]]
) -> None:
    one = history.transactions[number]
    for operation in one.operations:
        if isinstance(operation, Refused) and not any(
            history.transactions[n].outcome is not Outcome.FAIL and history.transactions[n].invoked < one.completed
            for n in inserts[operation.table, operation.reference]
            if n != number
        ):
            findings.add(
                Name.FALSE_REFUSAL,
                f"{{0}} was refused key {operation.reference} of {operation.table}, which nobody else had",
                number,
            )
