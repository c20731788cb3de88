"""The pool's decisions, one by one, under a clock of our own; then random runs, and rules broken on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from australis.query_processor.pool import (
    ATTEMPTS,
    LONGEST_DELAY,
    Check,
    Effect,
    Give,
    Pool,
    Processor,
    Refuse,
    Settings,
    Start,
    State,
    Stop,
)
from australis.simulation.pool import Broken, World

SEEDS = 300


def make(**changes: Any) -> Pool:
    values = {"minimum": 0, "maximum": 3, "sessions": 2, "capacity": 4, "idle": 10.0, "wait": 30.0, "queue": 5}
    return Pool(Settings(**(values | changes)))


def serving(pool: Pool, now: float = 0.0) -> Pool:
    """All that were started are ready."""
    for one in pool.processors:
        if one.state is State.STARTING:
            pool.ready(now, one.number, one.life)
    return pool


def opened(**changes: Any) -> Pool:
    pool = make(**changes)
    pool.open(0.0)
    return serving(pool)


def where(effects: list[Effect]) -> list[int]:
    return [effect.number for effect in effects if isinstance(effect, Give)]


def test_opens_one_even_if_none_must_run() -> None:
    assert make().open(0.0) == [Start(0, 0, 0)]
    assert make(minimum=2).open(0.0) == [Start(0, 0, 0), Start(1, 0, 0)]


def test_to_none_and_back() -> None:
    pool = opened()
    assert pool.next_tick(0.0) == 10.0
    assert pool.tick(9.9) == []
    assert pool.tick(10.0) == [Stop(0, 0)]
    assert pool.stopped(10.1, 0, 0, 7) == []
    assert pool.next_tick(10.1) is None, "an empty pool needs no time"
    assert pool.wanted(50.0, 1) == [Start(0, 1, 0)]
    assert pool.ready(50.2, 0, 1) == [Give(1, 0, 1)]
    assert pool.next_tick(50.2) is None, "with a session it is not idle"
    pool.ended(60.0, 0, 1)
    assert pool.next_tick(60.0) == 70.0


def test_the_one_with_the_newest_catalogs_starts() -> None:
    pool = make()
    for one, version in zip(pool.processors, (3, 9, 9), strict=True):
        one.version = version
    assert pool.wanted(0.0, 1) == [Start(1, 0, 0)]


def test_grows_beyond_sessions_and_goes_on_serving() -> None:
    pool = opened()
    assert pool.wanted(1.0, 1) == [Give(1, 0, 0)]
    assert pool.wanted(1.0, 2) == [Give(2, 0, 0)]
    assert pool.wanted(1.0, 3) == [Give(3, 0, 0), Start(1, 0, 0)], "the third does not wait for it"
    assert pool.ready(2.0, 1, 0) == []
    assert where(pool.wanted(2.0, 4)) == [1]


def test_fills_few_so_that_others_become_idle() -> None:
    pool = opened()
    for ticket in (1, 2, 3):
        pool.wanted(1.0, ticket)
    pool.ready(1.0, 1, 0)
    pool.ended(2.0, 0, 0)
    pool.ended(2.0, 0, 0)  # one is left on 0, none on 1
    assert where(pool.wanted(3.0, 4)) == [0]
    assert pool.tick(11.0) == [Stop(1, 0)]


def test_a_fixed_number_is_spread_evenly() -> None:
    pool = opened(minimum=3, sessions=100, capacity=100, idle=math.inf)
    given = [where(pool.wanted(0.0, ticket))[0] for ticket in range(9)]
    assert given == [0, 1, 2] * 3
    for _ in range(3):
        pool.ended(1.0, 0, 0)
    assert [where(pool.wanted(1.0, ticket))[0] for ticket in range(10, 13)] == [0, 0, 0]


def test_full() -> None:
    pool = opened(maximum=1)
    for ticket in range(4):
        assert where(pool.wanted(0.0, ticket)) == [0]
    assert pool.wanted(0.0, 4) == [Refuse(4, "53300", "sorry, too many clients already")]
    pool.ended(0.0, 0, 0)
    assert where(pool.wanted(0.0, 5)) == [0]


def test_the_queue_is_bounded() -> None:
    pool = make(queue=2)
    pool.wanted(0.0, 1)
    pool.wanted(0.0, 2)
    (refused,) = pool.wanted(0.0, 3)
    assert isinstance(refused, Refuse) and refused.sqlstate == "53300"
    pool.gave_up(0.0, 1)
    assert pool.wanted(0.0, 4) == []
    assert [effect for effect in pool.ready(1.0, 0, 0) if isinstance(effect, Give)] == [Give(2, 0, 0), Give(4, 0, 0)]


def test_waiting_ends() -> None:
    pool = make(wait=5.0)
    pool.wanted(0.0, 1)
    assert pool.next_tick(0.0) == 5.0
    (refused,) = pool.tick(5.0)
    assert isinstance(refused, Refuse) and refused.sqlstate == "57P03" and "within 5 s" in str(refused.detail)


def test_who_waits_gets_another_attempt_and_then_the_cause() -> None:
    pool = make(maximum=1)
    pool.wanted(0.0, 1)
    assert pool.died(0.1, 0, 0, "signal 9") == [Start(0, 1, 1)]
    assert pool.died(0.2, 0, 1, "signal 9") == [], "now there is a pause"
    at = pool.next_tick(0.2)
    assert at == pytest.approx(0.3)
    assert at is not None and pool.tick(at) == [Start(0, 2, 2)]
    (refused,) = pool.died(1.0, 0, 2, "no space left")
    assert isinstance(refused, Refuse) and refused.sqlstate == "57P03"
    assert "no space left" in str(refused.detail) and pool.processors[0].failures == ATTEMPTS
    assert pool.next_tick(1.0) is None, "without need nothing is tried"


def test_another_one_is_tried_first() -> None:
    pool = make()
    pool.wanted(0.0, 1)
    assert pool.died(0.1, 0, 0, "x") == [Start(1, 0, 0)]
    assert pool.ready(0.2, 1, 0) == [Give(1, 1, 0)]


def test_pauses_grow_to_a_limit() -> None:
    pool = make(minimum=1, maximum=1)
    pool.open(0.0)
    now, pauses = 0.0, []
    for life in range(12):
        now += 0.01
        if not pool.died(now, 0, life, "x"):
            at = pool.next_tick(now)
            assert at is not None
            pauses.append(at - now)
            now = at
            assert pool.tick(now) == [Start(0, life + 1, life + 1)]
    assert pauses == pytest.approx(sorted(pauses)) and pauses[-1] == pytest.approx(LONGEST_DELAY)


def test_one_that_died_is_replaced_only_if_needed() -> None:
    pool = opened(minimum=1)
    for ticket in (1, 2, 3):
        pool.wanted(1.0, ticket)
    pool.ready(1.0, 1, 0)
    pool.ended(2.0, 0, 0)  # two sessions on 0 now need one processor
    assert pool.died(3.0, 1, 0, "killed") == []
    assert pool.died(4.0, 0, 0, "killed") == [Start(2, 0, 0)], "the minimum"


def test_news_of_an_earlier_life_is_ignored() -> None:
    pool = opened(minimum=1, maximum=1)
    pool.wanted(0.0, 1)
    pool.died(1.0, 0, 0, "killed")
    pool.ready(2.0, 0, 1)
    pool.wanted(2.0, 2)
    assert pool.ended(3.0, 0, 0) == [] and pool.processors[0].sessions == 1
    assert pool.died(3.0, 0, 0, "killed") == [] and pool.processors[0].state is State.READY


def test_a_connection_comes_while_it_drains() -> None:
    pool = opened(maximum=1)
    assert pool.tick(10.0) == [Stop(0, 0)]
    assert pool.wanted(10.0, 1) == []
    assert pool.stopped(10.1, 0, 0, 1) == [Start(0, 1, 0)]
    assert pool.ready(10.2, 0, 1) == [Give(1, 0, 1)]


def test_busy_goes_on_serving() -> None:
    pool = opened(maximum=1)
    pool.tick(10.0)
    pool.wanted(10.0, 1)
    assert pool.busy(10.1, 0, 0) == [Give(1, 0, 0)]


def test_unreachable_is_looked_at_and_passed_over() -> None:
    pool = opened(minimum=2, maximum=2)
    assert pool.wanted(0.0, 1) == [Give(1, 0, 0)]
    assert pool.unreachable(0.0, 0, 0) == [Check(0, 0)]
    assert pool.wanted(0.0, 1) == [Give(1, 1, 0)]
    pool.reachable(1.0, 0, 0)
    assert pool.wanted(1.0, 2) == [Give(2, 0, 0)]


@pytest.mark.parametrize(
    "wrong", [{"minimum": 4}, {"maximum": 0}, {"sessions": 0}, {"sessions": 5}, {"idle": 0}, {"wait": 0}, {"queue": 0}]
)
def test_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        make(**wrong)


# ------------------------------------------------------------------------------------------------ under virtual time


def test_random_runs() -> None:
    """`python -m australis.simulation.pool --seeds N` runs more."""
    done = [World(seed) for seed in range(SEEDS)]
    for world in done:
        world.run()
    assert sum(world.stops for world in done) > SEEDS and sum(world.refused for world in done) > SEEDS


def _always_idle(pool: Pool) -> list[Processor]:
    return [one for one in pool.processors if one.state is State.READY]


def _anything(pool: Pool) -> Processor | None:
    return next((one for one in pool.processors if one.state is not State.STOPPED), None)


def _overfull(pool: Pool) -> Processor | None:
    return next((one for one in pool.processors if one.state is State.READY), None)


def _any_life(pool: Pool, number: int, life: int) -> Processor | None:
    return pool.processors[number]


def _nothing(*_: object) -> None:
    return None


BROKEN: dict[str, tuple[str, Callable[..., object], str]] = {
    "idle is not asked for sessions": ("_idle", _always_idle, "stopped one with sessions"),
    "given whatever its state": ("_choose", _anything, "given one that does not serve"),
    "capacity is ignored": ("_choose", _overfull, "given one that is full"),
    "lives are ignored": ("_known", _any_life, "wrong about|never came"),
    "never shrinks": ("_shrink", _nothing, "time does not pass|come to rest"),
    "waiting has no end": ("tick", lambda pool, now: pool._done(now), "time does not pass|waited"),
    "the minimum is forgotten": (
        "_needed",
        lambda pool, n: min(-(-n // 2), pool.settings.maximum),
        "fewer run|of the mi",
    ),
    "no pause is kept": ("next_tick", lambda pool, now: None, "still waits|waited|come to rest"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, replacement, said = BROKEN[name]
    monkeypatch.setattr(Pool, attribute, replacement)
    with pytest.raises((Broken, AssertionError), match=said):
        for seed in range(SEEDS):
            World(seed).run()
