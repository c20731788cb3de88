"""Clocks with error bounds: never backwards, never surer than their source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from australis.clock import (
    AHEAD,
    REFRESH,
    BoundedClock,
    ChronyBound,
    ClockError,
    FixedClock,
    chrony_bound,
    kernel_bound,
    open_clock,
)

MS = 1_000_000
TRACKING = "A9FEA97B,169.254.169.123,4,1732700000.1,0.000012,-0.00001,0.00002,-3.1,0.001,0.02,0.0004,0.0003,16.2,Normal"


class Host:
    """A host's clock and its time service, as the test wants them."""

    def __init__(self) -> None:
        self.time, self.steady = 10**18, 5 * 10**9
        self.bound: int | None = MS

    def read_bound(self) -> int:
        if self.bound is None:
            raise ClockError("gone")
        return self.bound

    def clock(self, max_error: int = 50 * MS) -> BoundedClock:
        return BoundedClock(
            self.read_bound, read_time=lambda: self.time, read_steady=lambda: self.steady, max_error=max_error
        )


def test_the_bound_is_around_the_time() -> None:
    host = Host()
    assert host.clock().now() == (10**18 - MS, 10**18 + MS)


def test_an_unsure_clock_is_refused_at_the_start() -> None:
    host = Host()
    host.bound = 51 * MS
    with pytest.raises(ClockError, match="51 ms, more than max_clock_error"):
        host.clock()
    host.bound = None
    with pytest.raises(ClockError, match="gone"):
        host.clock()


def test_a_time_service_that_is_silent_makes_the_bound_grow() -> None:
    host = Host()
    clock = host.clock()
    host.bound = None
    host.time += 100 * 10**9
    host.steady += 100 * 10**9
    earliest, latest = clock.now()
    assert latest - earliest == 2 * (MS + 100 * 10**9 * 500 // 10**6)
    host.bound = 2 * MS
    assert clock.now()[0] == host.time - 2 * MS


def test_what_others_say_raises_latest_but_not_far() -> None:
    host = Host()
    clock = host.clock()
    latest = clock.now()[1]
    clock.told(latest + AHEAD)
    assert clock.now()[1] == latest + AHEAD
    with pytest.raises(ClockError, match="not believed"):
        clock.told(latest + 3 * AHEAD)


@given(
    st.lists(
        st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 3 * REFRESH), st.none() | st.integers(0, 10**10)),
        max_size=20,
    )
)
def test_it_never_runs_backwards_and_holds_the_true_time(steps: list[tuple[int, int, int | None]]) -> None:
    """Whatever the kernel's clock does within its bound; the steady clock is the true one here."""
    host = Host()
    clock = host.clock()
    true = host.time
    before = clock.now()
    for wish, passed, bound in steps:
        true += passed
        host.steady += passed
        host.bound = bound
        known = clock.bound if bound is None else bound
        host.time = true + max(-known, min(known, wish))
        if bound is not None:
            host.steady += REFRESH + 1  # it is read again
            true += REFRESH + 1
            host.time += REFRESH + 1
        now = clock.now()
        assert now[0] >= before[0] and now[1] >= before[1] and now[0] <= now[1]
        assert now[0] <= true
        before = now


def test_chrony_answers() -> None:
    assert chrony_bound(TRACKING) == pytest.approx((0.000012 + 0.0003 + 0.0002) * 1e9, abs=1)
    with pytest.raises(ClockError, match="not synchronised"):
        chrony_bound(TRACKING.replace("Normal", "Not synchronised"))
    for wrong in ("", "506 Cannot talk to daemon", TRACKING.replace("0.0003", "x")):
        with pytest.raises(ClockError, match="something else"):
            chrony_bound(wrong)


def test_chrony_is_asked_without_waiting() -> None:
    answers = [TRACKING]
    bound = ChronyBound(lambda: answers[-1])
    first = bound()
    answers.append("nothing")
    assert bound() == first  # the newest answer that there is; the next one is being fetched


def test_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    assert isinstance(open_clock("fixed"), FixedClock)
    assert kernel_bound() > 0
    assert open_clock("kernel", max_error=kernel_bound() * 2).now()[0] > 0
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClockError, match="no program chronyc"):
        open_clock("chrony")
