"""The checker against exhaustive search: tiny histories, every order in which they could have been executed.

Version orders are complete (a final read shows everything), so the checker must be exact: valid if and only if some
execution under the level explains the history. Unknown transactions may be executed or not.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from itertools import permutations

import pytest

from australis.simulation.anomalies import Level
from australis.simulation.checker import check
from australis.simulation.history import Append, History, Operation, Outcome, Read, Transaction

KEYS = 3
CASES = int(os.environ.get("AUSTRALIS_TEST_TINY", "1500"))


def tiny(rng: random.Random) -> History:
    """Three or four transactions that read arbitrary versions, and a final read."""
    size = rng.choice((3, 3, 4))
    writes = [
        {k: [10 * i + k + 100 * n for n in range(rng.choice((1, 1, 2)))] for k in range(KEYS) if rng.random() < 0.45}
        for i in range(size)
    ]
    unknown = [rng.random() < 0.15 for _ in range(size)]
    lists: list[list[tuple[int, ...]]] = []  # per key its versions
    common = rng.sample(range(size), size)
    for key in range(KEYS):
        versions: list[tuple[int, ...]] = [()]
        for i in common if rng.random() < 0.8 else rng.sample(range(size), size):
            if key in writes[i] and not (unknown[i] and rng.random() < 0.4):
                versions.append((*versions[-1], *writes[i][key]))
        lists.append(versions)
    transactions = []
    for i in range(size):
        operations: list[Operation] = []
        for key in rng.sample(range(KEYS), KEYS):
            own = writes[i].get(key, [])
            if rng.random() < 0.6:
                outside = [v for v in rng.choice(lists[key]) if v not in own]
                before = rng.choice((0, len(own)))
                operations += [Append(key, v) for v in own[:before]]
                operations.append(Read(key, (*outside, *own[:before])))
                operations += [Append(key, v) for v in own[before:]]
            else:
                operations += [Append(key, v) for v in own]
        invoked = rng.randrange(8)
        outcome = Outcome.UNKNOWN if unknown[i] else Outcome.OK
        transactions.append(Transaction(i, invoked, invoked + rng.randrange(1, 8), outcome, tuple(operations)))
    last = tuple(Read(key, lists[key][-1]) for key in range(KEYS))
    return History((*transactions, Transaction(99, 100, 101, Outcome.OK, last, final=True)))


def executed(history: History) -> list[Transaction]:
    """Without unknown ones of which nothing is there in the end."""
    shown = {v for o in history.transactions[-1].operations if isinstance(o, Read) for v in o.values}
    return [
        t
        for t in history.transactions
        if t.outcome is Outcome.OK or any(isinstance(o, Append) and o.value in shown for o in t.operations)
    ]


def answers(one: Transaction, state: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]] | None:
    """What the transaction leaves if alone on this state; None if it would have read something else."""
    seen = dict(state)
    for operation in one.operations:
        if isinstance(operation, Append):
            seen[operation.key] = (*seen.get(operation.key, ()), operation.value)
        elif isinstance(operation, Read) and seen.get(operation.key, ()) != operation.values:
            return None
    return seen


def precedes(one: Transaction, other: Transaction) -> bool:
    return one.outcome is Outcome.OK and one.completed < other.invoked


def serializable(history: History) -> bool:
    for order in permutations(executed(history)):
        state: dict[int, tuple[int, ...]] = {}
        for i, one in enumerate(order):
            if any(precedes(later, one) for later in order[i + 1 :]):
                break
            left = answers(one, state)
            if left is None:
                break
            state = left
        else:
            return True
    return False


def written(one: Transaction) -> set[int]:
    return {o.key for o in one.operations if isinstance(o, Append)}


def possible_under_snapshot_isolation(history: History) -> bool:
    transactions = executed(history)
    return _play(transactions, {}, frozenset(range(len(transactions))), {}, set())


def _play(
    transactions: list[Transaction],
    state: dict[int, tuple[int, ...]],
    waiting: frozenset[int],
    open_: dict[int, dict[int, tuple[int, ...]]],  # running: what they will leave
    stale: set[tuple[int, int]],  # (running, key): somebody else committed to it
) -> bool:
    """Is there a way to go on? Starts any transaction, or commits a running one that conflicts with nobody."""
    if not waiting and not open_:
        return True
    for i in waiting:
        one = transactions[i]
        if any(precedes(transactions[j], one) for j in (*waiting, *open_) if j != i):
            continue
        left = answers(one, state)
        if left is not None and _play(transactions, state, waiting - {i}, {**open_, i: left}, stale):
            return True
    for i in open_:
        keys = written(transactions[i])
        if any((i, key) in stale for key in keys):
            continue
        rest = {j: left for j, left in open_.items() if j != i}
        state_after = {**state, **{key: open_[i][key] for key in keys}}
        if _play(transactions, state_after, waiting, rest, stale | {(j, key) for j in rest for key in keys}):
            return True
    return False


def cases() -> Iterator[tuple[int, History]]:
    for seed in range(CASES):
        yield seed, tiny(random.Random(seed))


@pytest.mark.parametrize("level", [Level.SNAPSHOT, Level.SERIALIZABLE])
def test_valid_if_and_only_if_some_execution_explains_it(level: Level) -> None:
    oracle = serializable if level is Level.SERIALIZABLE else possible_under_snapshot_isolation
    seen: Counter[bool] = Counter()
    for seed, history in cases():
        expected = oracle(history)
        seen[expected] += 1
        verdict = check(history, level)
        assert verdict.valid == expected, f"seed {seed}: {history.transactions}\n{verdict}"
    assert min(seen[True], seen[False]) > CASES // 20, seen
