"""Histories of a model database: clean ones are clean, and each flaw of it is found."""

from __future__ import annotations

import pytest

from australis.simulation.anomalies import Level, Name
from australis.simulation.checker import check
from tests.checker.model import Flaw, Model

LENGTH = 150
SEEDS = 40

EXPECTED: dict[Flaw, set[Name]] = {
    Flaw.VERSION_BACK: {Name.STALE_READ, Name.G_SINGLE},
    Flaw.NO_WRITE_CHECK: {Name.LOST_UPDATE},
    Flaw.LATE_SNAPSHOT: {Name.STALE_READ},
    Flaw.STATEMENT_SNAPSHOT: {Name.LOST_UPDATE, Name.G_SINGLE, Name.NON_REPEATABLE},
    Flaw.SHARDS_APART: {Name.STALE_READ, Name.G_SINGLE},
    Flaw.DIRTY_READ: {Name.G1A, Name.G1B},
    Flaw.OWN_WRITES_HIDDEN: {Name.INTERNAL},
    Flaw.LOST_COMMIT: {Name.LOST},
    Flaw.APPLIED_TWICE: {Name.DUPLICATE},
    Flaw.REFUSED_APPLIED: {Name.G1A, Name.DIRTY_UPDATE},
    Flaw.HALF_APPLIED: {Name.LOST},
    Flaw.EARLY_ANSWER: {Name.STALE_READ},
}


@pytest.mark.parametrize("serializable", [False, True])
def test_what_is_right_is_found_right(serializable: bool) -> None:
    skewed = 0
    for seed in range(4 * SEEDS):
        history = Model(seed, serializable=serializable).run(LENGTH)
        verdict = check(history)
        assert verdict.valid, f"seed {seed}: {verdict}"
        if not serializable:
            skewed += bool(verdict.allowed)
            assert check(history, Level.SERIALIZABLE).names <= {Name.G2_ITEM, Name.REAL_TIME}
    assert serializable or skewed > SEEDS  # write skew is found under snapshot isolation


@pytest.mark.parametrize("flaw", EXPECTED)
def test_flaws_are_found(flaw: Flaw) -> None:
    caught, names = 0, set[Name]()
    for seed in range(SEEDS):
        verdict = check(Model(seed, serializable=False, flaw=flaw).run(LENGTH))
        caught += not verdict.valid
        names |= verdict.names
    assert EXPECTED[flaw] <= names
    assert caught >= SEEDS * 3 // 4


def test_reads_that_are_not_validated_are_found_under_serializable() -> None:
    caught = 0
    for seed in range(SEEDS):
        history = Model(seed, serializable=True, flaw=Flaw.NO_READ_CHECK).run(LENGTH)
        verdict = check(history)
        assert verdict.names <= {Name.G2_ITEM, Name.REAL_TIME}
        assert check(history, Level.SNAPSHOT).valid
        caught += not verdict.valid
    assert caught >= SEEDS * 3 // 4


def test_old_but_consistent_snapshots_are_right_for_sessions() -> None:
    """Lagging snapshots keep snapshot isolation; only the order of time is broken."""
    for seed in range(SEEDS):
        history = Model(seed, serializable=False, flaw=Flaw.LATE_SNAPSHOT).run(LENGTH)
        assert check(history, Level.SESSION_SNAPSHOT).names <= {Name.SESSION, Name.LOST}, seed
