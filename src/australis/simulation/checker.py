"""Does a history keep what its isolation level promises? `check` is pure; `python -m australis.simulation.checker
FILE` judges a stored history again (exit code 1: anomalies, 2: no history).

Operations may be mixed in one history; lists and registers share one graph, so that a cycle may lead through both.
What is an anomaly depends on the level (`Level`): under snapshot isolation write skew (G2-item) is found and listed as
allowed.

Soundness: nothing is reported that a correct database could have shown, given that the history keeps the rules of
history.py. Completeness: every cycle of the edges that are known leads to at least one report, since components are
computed exactly; witnesses are the shortest that a bounded search found.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from australis.simulation.anomalies import LISTED, Anomaly, Findings, Level, Name
from australis.simulation.cycles import (
    DATA,
    KIND_NAMES,
    REAL_TIME,
    RW,
    SESSION,
    WR,
    WW,
    Cycle,
    Edge,
    Key,
    View,
    has_adjacent_anti_dependencies,
)
from australis.simulation.dependencies import REGISTER, Dependencies, show
from australis.simulation.history import (
    Append,
    Get,
    History,
    HistoryError,
    Outcome,
    Read,
    Transaction,
    Write,
    decode,
)
from australis.simulation.invariants import check_bank, check_rows


@dataclass(frozen=True)
class Verdict:
    """What was found. `counts` holds all names; `anomalies` and `allowed` at most LISTED of each."""

    level: Level
    outcomes: Counter[Outcome]
    counts: Counter[Name]
    anomalies: tuple[Anomaly, ...]
    allowed: tuple[Anomaly, ...]

    @property
    def valid(self) -> bool:
        return not self.anomalies

    @property
    def names(self) -> set[Name]:
        """Names of the anomalies, allowed ones excluded."""
        return {a.name for a in self.anomalies}

    def __str__(self) -> str:
        lines = [
            f"{self.level.value}: {sum(self.outcomes.values())} transactions"
            f" ({', '.join(f'{o.value} {self.outcomes[o]}' for o in Outcome)}),"
            f" {self._counted(self.anomalies) or 'no anomalies'}"
            + (f" (allowed: {self._counted(self.allowed)})" if self.allowed else "")
        ]
        lines += [f"{a.name.value}: {a.explanation}" for a in self.anomalies]
        return "\n".join(lines)

    def _counted(self, anomalies: tuple[Anomaly, ...]) -> str:
        names = sorted({a.name for a in anomalies})
        return ", ".join(f"{n.value} {self.counts[n]}" for n in names)


def check(history: History, level: Level | None = None) -> Verdict:
    """Judge a history, at its own level if none is given. HistoryError if it breaks the rules of history.py."""
    try:
        level = level or Level(history.level)
    except ValueError:
        raise HistoryError(f"unknown level {history.level!r}; there are {', '.join(Level)}") from None
    findings = Findings(history.transactions)
    check_bank(history, findings)
    check_rows(history, findings)
    dependencies = Dependencies(history.transactions, findings, real_time=level is not Level.SESSION_SNAPSHOT)
    if level is Level.SESSION_SNAPSHOT:
        dependencies.add_sessions()
    _Search(dependencies, findings, level).run()
    allowed = set() if level is Level.SERIALIZABLE else {Name.G2_ITEM}
    listed = [a for name in Name for a in findings.listed.get(name, ())]
    return Verdict(
        level,
        Counter(t.outcome for t in history.transactions),
        findings.counts,
        tuple(a for a in listed if a.name not in allowed),
        tuple(a for a in listed if a.name in allowed),
    )


class _Search:
    """All cycles of one graph, from the worst to the merely unserializable."""

    def __init__(self, dependencies: Dependencies, findings: Findings, level: Level) -> None:
        self._dependencies = dependencies
        self._graph = dependencies.graph
        self._findings = findings
        self._level = level
        self._told: set[tuple[Name, frozenset[int]]] = {
            (a.name, frozenset(a.transactions)) for found in findings.listed.values() for a in found
        }

    def run(self) -> None:
        order = SESSION if self._level is Level.SESSION_SNAPSHOT else REAL_TIME
        committed = [n for n, yes in enumerate(self._dependencies.committed) if yes]
        everything = View(self._graph, DATA | order, committed, split=False)
        suspects = everything.cyclic()
        if not suspects:  # the usual case: one pass
            return
        data = View(self._graph, DATA, suspects, split=False).cyclic()
        self._report(View(self._graph, WW, data, split=False), WW)
        self._report(View(self._graph, WW | WR, data, split=False), WR)
        forbidden = View(self._graph, DATA, data, split=True)
        self._report(forbidden, RW)
        self._report(View(self._graph, DATA, data, split=False), RW, has_adjacent_anti_dependencies)
        timed = View(self._graph, DATA | order, suspects, split=True)
        self._report(timed, order)
        if self._level is Level.SERIALIZABLE:
            self._report(everything, order, has_adjacent_anti_dependencies)

    def _report(self, view: View, wanted: int, accept: Callable[[Cycle], bool] = lambda _: True) -> None:
        for cycle in view.witnesses(wanted, accept):
            name = self._classify(cycle)
            transactions = tuple(edge.source for edge in cycle)
            if (name, frozenset(transactions)) in self._told or self._findings.counts[name] >= LISTED:
                continue
            self._told.add((name, frozenset(transactions)))
            self._findings.add(name, self._explain(cycle), *transactions)

    def _classify(self, cycle: Cycle) -> Name:
        kinds = Counter(edge.kind for edge in cycle)
        if kinds[SESSION]:
            return Name.SESSION
        if kinds[REAL_TIME]:
            keys = {edge.key for edge in cycle if edge.kind != REAL_TIME}
            stale = kinds[RW] == 1 and not kinds[WR] and len(keys) == 1
            return Name.STALE_READ if stale else Name.REAL_TIME
        if not kinds[RW]:
            return Name.G1C if kinds[WR] else Name.G0
        if has_adjacent_anti_dependencies(cycle):
            return self._lost_update(cycle) or Name.G2_ITEM
        if kinds[RW] == 1:
            return self._lost_update(cycle) or Name.G_SINGLE
        before = dict(zip(cycle, (cycle[-1], *cycle[:-1]), strict=True))
        forked = all(before[edge].kind == WR for edge in cycle if edge.kind == RW)
        return Name.LONG_FORK if forked else Name.G_NONADJACENT

    def _lost_update(self, cycle: Cycle) -> Name | None:
        """All about one key, which everybody in the cycle wrote?"""
        keys = {edge.key for edge in cycle}
        if len(keys) > 1 or any(edge.kind == WR for edge in cycle):
            return None
        (key,) = keys
        wrote = all(self._writes(edge.source, key) for edge in cycle)
        return Name.LOST_UPDATE if wrote else None

    def _writes(self, number: int, key: Key | None) -> bool:
        operations = self._dependencies.transactions[number].operations
        kind = Write if key and key[0] == REGISTER else Append
        return any(isinstance(o, kind) and key is not None and o.key == key[1] for o in operations)

    # ------------------------------------------------------------------ in words

    def _explain(self, cycle: Cycle) -> str:
        lines = [f"a cycle of {len(cycle)}:"]
        for i, edge in enumerate(cycle):
            following = (i + 1) % len(cycle)
            lines.append(f"  {{{i}}} before {{{following}}} ({KIND_NAMES[edge.kind]}): {self._because(edge)}")
        return "\n".join(lines)

    def _because(self, edge: Edge) -> str:
        one, other = self._transaction(edge.source), self._transaction(edge.target)
        a, b = f"T{edge.source}", f"T{edge.target}"
        if edge.key is None:
            micros = (other.invoked - one.completed) / 1e3
            return f"{a} was acknowledged {micros:,.0f} µs before {b} began"
        what = f"{edge.key[0]} {edge.key[1]}"
        match edge.kind:
            case _ if edge.kind == WW:
                return (
                    f"{a} wrote {show(_written(one, edge.key))} to {what} before {b} wrote"
                    f" {show(_written(other, edge.key))}"
                )
            case _ if edge.kind == WR:
                return f"{b} read {_read(other, edge.key)} from {what}, with {show(_written(one, edge.key))} of {a}"
            case _:
                return f"{a} read {_read(one, edge.key)} from {what}, without {show(_written(other, edge.key))} of {b}"

    def _transaction(self, number: int) -> Transaction:
        return self._dependencies.transactions[number]


def _written(one: Transaction, key: Key) -> list[int]:
    kind = Write if key[0] == REGISTER else Append
    return [o.value for o in one.operations if isinstance(o, kind) and o.key == key[1]]


def _read(one: Transaction, key: Key) -> str:
    for operation in one.operations:
        if key[0] == REGISTER and isinstance(operation, Get) and operation.key == key[1]:
            return "nothing" if operation.value is None else str(operation.value)
        if key[0] != REGISTER and isinstance(operation, Read) and operation.key == key[1]:
            return show(operation.values)
    return "nothing"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m australis.simulation.checker", description=(__doc__ or "")[:80])
    parser.add_argument("file", type=Path)
    parser.add_argument("--level", choices=[level.value for level in Level], help="default: the history's own")
    parsed = parser.parse_args(arguments)
    try:
        verdict = check(decode(parsed.file.read_bytes()), Level(parsed.level) if parsed.level else None)
    except (OSError, HistoryError) as error:
        print(f"{parsed.file}: {error}", file=sys.stderr)
        return 2
    print(verdict)
    return 0 if verdict.valid else 1


if __name__ == "__main__":
    sys.exit(main())
