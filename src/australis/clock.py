"""Clocks: the only place where services read the time (rule T1).

What must hold: a clock never runs backwards within one process; the largest time that this host used or was told is a
lower bound. If the kernel's clock jumps back, time stands still here until it has caught up.
"""

from __future__ import annotations

import time
from typing import Protocol

Tau = int
"""A time: signed 64-bit nanoseconds since the Unix epoch."""


class Clock(Protocol):
    """A clock with an error bound."""

    def now(self) -> tuple[Tau, Tau]:
        """Return (earliest, latest): the true time lies between them."""
        ...


class FixedClock:
    """The clock of one host, error bound 0 (source `fixed` of rule T1)."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def now(self) -> tuple[Tau, Tau]:
        """Return the same time twice; never less than before."""
        now = time.time_ns()
        if now > self._last:
            self._last = now
        return self._last, self._last
