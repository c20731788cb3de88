"""Holding the database to what its clients were told. Pure: rows and outcomes in, findings out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.crash.load import START_BALANCE, Outcome


@dataclass
class Findings:
    """What a check found; all lists are empty when all is well."""

    lost: list[str] = field(default_factory=list)  # acknowledged, not there
    ghosts: list[str] = field(default_factory=list)  # refused, but there
    half: list[str] = field(default_factory=list)  # there in part, or twice
    unknown_committed: int = 0
    unknown_absent: int = 0

    @property
    def good(self) -> bool:
        return not (self.lost or self.ghosts or self.half)

    def __str__(self) -> str:
        shown = [f"{name}: {'; '.join(items[:5])}" for name, items in self.lists() if items]
        return " | ".join(shown) or "all there"

    def lists(self) -> list[tuple[str, list[str]]]:
        return [("lost", self.lost), ("ghosts", self.ghosts), ("half-applied", self.half)]


@dataclass(frozen=True)
class State:
    """What the database holds."""

    balances: Mapping[int, int]
    history: Sequence[tuple[int, int, int, int, int]]  # client, seq, src, dst, amount
    log: Sequence[tuple[int, int, int, int]]  # key, version, client, seq
    history_by_index: Mapping[int, int]  # src -> sum(amount) as the secondary index sees it


def check(state: State, outcomes: Mapping[int, Mapping[int, Outcome]]) -> Findings:
    """Compare the state with every client's outcomes."""
    out = Findings()
    there = Counter([(c, s) for c, s, *_ in state.history] + [(c, s) for _, _, c, s in state.log])
    for client, of_client in outcomes.items():
        for seq, outcome in of_client.items():
            count = there.pop((client, seq), 0)
            if count > 1:
                out.half.append(f"{client}/{seq} is there {count} times")
            match outcome:
                case Outcome.ACKNOWLEDGED if count == 0:
                    out.lost.append(f"{client}/{seq}")
                case Outcome.REFUSED if count:
                    out.ghosts.append(f"{client}/{seq}")
                case Outcome.UNKNOWN if count:
                    out.unknown_committed += 1
                case Outcome.UNKNOWN:
                    out.unknown_absent += 1
                case _:
                    pass
    out.ghosts += [f"{c}/{s} was never sent" for c, s in there]
    _check_balances(state, out)
    _check_log(state, out)
    return out


def _check_balances(state: State, out: Findings) -> None:
    expected = dict.fromkeys(state.balances, START_BALANCE)
    sent: Counter[int] = Counter()
    for _, _, src, dst, amount in state.history:
        expected[src] = expected.get(src, 0) - amount
        expected[dst] = expected.get(dst, 0) + amount
        sent[src] += amount
    for account, balance in state.balances.items():
        if balance != expected[account]:
            out.half.append(f"account {account} holds {balance}, its history says {expected[account]}")
    for account in set(sent) | set(state.history_by_index):
        if sent[account] != state.history_by_index.get(account, 0):
            out.half.append(f"account {account}: the secondary index disagrees with the table")


def _check_log(state: State, out: Findings) -> None:
    versions: dict[int, list[int]] = {}
    for key, version, _, _ in state.log:
        versions.setdefault(key, []).append(version)
    for key, found in versions.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            out.half.append(f"key {key} has versions with gaps or twins")
