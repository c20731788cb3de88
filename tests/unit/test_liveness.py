"""When a silent child is killed: pure decisions, in seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from australis.control_plane.liveness import LONGEST_FACTOR, LOOK_SECONDS, Look, Silence, look_at
from australis.control_plane.supervisor import STABLE_AFTER


class Child:
    """A child that is looked at every LOOK_SECONDS; `machine` says how much of that it waited for a processor."""

    def __init__(self, limit: float = 3.0, *, asked: bool = True) -> None:
        self.silence = Silence(limit)
        self.asked = asked
        self.now = 100.0
        self.delayed = 0.0
        self.pid = 7

    def look(self, seconds: float, *, stopped: bool = False, waits: float = 0.0, late: float = 0.0) -> float:
        """Look for that long; the time after which it was too much, or 0."""
        begin = self.now
        while self.now - begin < seconds:
            self.now += LOOK_SECONDS + late
            self.delayed += waits * (LOOK_SECONDS + late)
            if self.silence.too_long(Look(self.pid, stopped, self.delayed), self.now, late):
                return self.now - begin
        return 0.0

    def settle(self) -> None:
        """It is seen, and asked."""
        self.look(LOOK_SECONDS)
        if self.asked:
            self.silence.question()


def test_a_silent_child_is_found_and_one_that_answers_is_not() -> None:
    child = Child()
    child.settle()
    assert 3.0 <= child.look(10) <= 3.5
    child = Child()
    for _ in range(20):
        child.silence.question()
        assert child.look(2.5) == 0
        child.silence.heard()
        assert child.look(10) == 0  # nobody asks


def test_a_child_that_waits_for_a_processor_is_not_silent() -> None:
    child = Child()
    child.settle()
    assert child.look(60, waits=1.0) == 0
    child = Child()
    child.settle()
    assert 6.0 <= child.look(60, waits=0.5) <= 6.5  # an endless loop on a busy machine: later, but found


def test_looks_that_come_late_prove_nothing() -> None:
    child = Child()
    child.settle()
    assert child.look(40, late=5.0) == 0


def test_a_new_process_begins_anew_and_gets_longer_after_a_kill() -> None:
    child = Child()
    child.settle()
    lasted = []
    for _ in range(5):
        lasted.append(child.look(60))
        child.silence.ended()
        child.pid += 1
        child.settle()
    assert [round(seconds) for seconds in lasted] == [3, 6, 12, 24, 24]
    assert child.silence.factor == LONGEST_FACTOR
    for _ in range(int(STABLE_AFTER)):
        child.silence.heard()
        child.look(1)
    assert child.silence.factor == 1


def test_who_is_not_asked_is_found_only_when_stopped() -> None:
    child = Child(asked=False)
    child.settle()
    assert child.look(60) == 0
    assert 3.0 <= child.look(10, stopped=True) <= 3.5


def test_what_the_kernel_says() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        look = look_at(child.pid)
        assert look is not None and not look.stopped
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        look = look_at(child.pid)
        assert look is not None and look.stopped
        child.kill()
    assert look_at(child.pid) is None
