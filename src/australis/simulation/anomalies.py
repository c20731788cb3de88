"""The names of what can go wrong, and findings as people read them. Pure.

Names follow Adya, Berenson et al. and Elle where they have one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from australis.simulation.history import Transaction

LISTED = 20  # findings kept per name; the rest is counted


class Name(StrEnum):
    """Kinds of anomalies."""

    G0 = "G0"  # writes of two transactions in opposite orders
    G1A = "G1a"  # aborted read
    G1B = "G1b"  # intermediate read
    G1C = "G1c"  # cycle of ww and wr
    G_SINGLE = "G-single"  # read skew: a cycle with one rw
    LONG_FORK = "long-fork"  # two readers saw two independent writes in opposite orders
    G_NONADJACENT = "G-nonadjacent"  # another cycle without two rw in a row
    G2_ITEM = "G2-item"  # write skew: allowed under snapshot isolation
    LOST_UPDATE = "lost-update"
    STALE_READ = "stale-read"  # one that did not see what was acknowledged before it began
    REAL_TIME = "real-time"  # another cycle that contradicts the order of time
    SESSION = "session"  # one that contradicts a process' own order
    INTERNAL = "internal"  # own writes not seen
    NON_REPEATABLE = "non-repeatable-read"
    INCOMPATIBLE = "incompatible-order"
    DIRTY_UPDATE = "dirty-update"  # a committed write on top of an aborted one
    DUPLICATE = "duplicate"
    GARBAGE = "garbage-read"  # nobody wrote it
    LOST = "lost"  # acknowledged, and gone
    RESURRECTED = "resurrected"  # deleted, acknowledged, and there
    HALF_APPLIED = "half-applied"
    TOTAL = "total"  # the bank's money changed
    NEGATIVE = "negative-balance"
    NOT_UNIQUE = "not-unique"
    FALSE_REFUSAL = "false-refusal"
    ORPHAN = "orphan"


class Level(StrEnum):
    """What is promised. SNAPSHOT is strong snapshot isolation, SERIALIZABLE strict serializability (both respect real
    time); SESSION_SNAPSHOT respects each process' own order only, as reads from a lagging replica do."""

    SNAPSHOT = "snapshot"
    SERIALIZABLE = "serializable"
    SESSION_SNAPSHOT = "session-snapshot"


@dataclass(frozen=True)
class Anomaly:
    """One finding: its name, a text for people, the numbers of the transactions in question."""

    name: Name
    explanation: str
    transactions: tuple[int, ...]


@dataclass
class Findings:
    """All findings on one history, bounded per name."""

    transactions: tuple[Transaction, ...]
    counts: Counter[Name] = field(default_factory=Counter)
    listed: dict[Name, list[Anomaly]] = field(default_factory=dict)

    def add(self, name: Name, explanation: str, *transactions: int) -> None:
        """Note a finding; `{0}`, `{1}` … in the text become the transactions."""
        self.counts[name] += 1
        kept = self.listed.setdefault(name, [])
        if len(kept) < LISTED:
            text = explanation.format(*(self.describe(t) for t in transactions))
            kept.append(Anomaly(name, text, tuple(transactions)))

    def describe(self, number: int) -> str:
        """A transaction in words; times are seconds since the history's begin."""
        one = self.transactions[number]
        zero = self._zero()
        began, ended = (one.invoked - zero) / 1e9, (one.completed - zero) / 1e9
        outcome = "" if one.outcome == "ok" else f", {one.outcome.value}"
        return f"T{number} (process {one.process}, {began:.6f}-{ended:.6f} s{outcome})"

    def _zero(self) -> int:
        if not hasattr(self, "_began"):
            self._began = min((t.invoked for t in self.transactions), default=0)
        return self._began
