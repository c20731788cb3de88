"""Clocks: the only place where services read the time (rule T1).

    clock = open_clock("kernel", max_error=50_000_000); earliest, latest = clock.now()

What must hold: the true time lies between earliest and latest as far as the host's own time service knows; neither ever
runs backwards within one process, and the largest time that this process used or was told is a lower bound of latest.
If the kernel's clock jumps back, time stands still here until it has caught up. A clock whose error bound is not known
or above its limit is refused when a process starts, and reported when it becomes so later: transactions then wait
longer, they are never wrong.

Sources: `fixed`, one host, bound 0; `kernel`, the bound that the kernel keeps for whoever disciplines its clock
(adjtimex: NTP daemons set it; an undisciplined clock says 16 s); `chrony`, the bound that chronyd computes.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

import structlog

from australis.errors import AustralisError

Tau = int
"""A time: signed 64-bit nanoseconds since the Unix epoch."""

Source = Literal["fixed", "kernel", "chrony"]

MAX_ERROR = 50_000_000
"""Default limit (ns) of the error bound when a process starts."""

AHEAD = 500_000_000
"""How far (ns) a time that somebody tells us may lie above our latest (rule A3)."""

REFRESH = 1_000_000_000
"""How long (ns) a bound that was read may be used; it grows meanwhile."""

DRIFT_PPM = 500
"""How fast a clock may be off its rate; the kernel assumes the same."""

CHRONY_SECONDS = 2.0

log = structlog.get_logger()


class ClockError(AustralisError):
    """The clock of this host cannot be used; one line that says why."""

    sqlstate = "F0000"


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


class BoundedClock:
    """The kernel's time with an error bound from elsewhere."""

    def __init__(
        self,
        read_bound: Callable[[], int],
        *,
        read_time: Callable[[], int] = time.time_ns,
        read_steady: Callable[[], int] = time.monotonic_ns,
        max_error: int = MAX_ERROR,
    ) -> None:
        """`read_bound` returns nanoseconds and may raise ClockError. Raises ClockError if the bound is too large."""
        self._read_bound, self._read_time, self._read_steady = read_bound, read_time, read_steady
        self._max_error = max_error
        self._earliest = self._latest = 0
        self._bound = read_bound()
        self._read_at = read_steady()
        self._alarmed = False
        if self._bound > max_error:
            raise ClockError(
                f"the clock of this host may be wrong by {self._bound / 1e6:.0f} ms, more than max_clock_error "
                f"({max_error / 1e6:.0f} ms): start a time service (chronyd, ntpd, systemd-timesyncd) and wait for it"
            )

    @property
    def bound(self) -> int:
        """How wrong the clock may be now, in nanoseconds."""
        return self._bound + (self._read_steady() - self._read_at) * DRIFT_PPM // 1_000_000

    def now(self) -> tuple[Tau, Tau]:
        """Return (earliest, latest); neither is ever less than before."""
        if self._read_steady() - self._read_at > REFRESH:
            self._refresh()
        bound, now = self.bound, self._read_time()
        if now - bound > self._earliest:
            self._earliest = now - bound
        if now + bound > self._latest:
            self._latest = now + bound
        return self._earliest, self._latest

    def told(self, tau: Tau) -> None:
        """Somebody used this time: latest is never below it. ClockError if it is too far ahead of ours (T1)."""
        latest = self.now()[1]
        if tau > latest + AHEAD:
            raise ClockError(f"a time {(tau - latest) / 1e6:.0f} ms ahead of this host's clock was not believed")
        self._latest = max(self._latest, tau)

    def _refresh(self) -> None:
        """Read the bound again; without an answer the old one goes on growing."""
        try:
            bound = self._read_bound()
        except ClockError as error:
            self._alarm(str(error))
            return
        self._bound, self._read_at = bound, self._read_steady()
        if bound > self._max_error:
            self._alarm(f"the error bound of the clock is {bound / 1e6:.0f} ms")
        else:
            self._alarmed = False

    def _alarm(self, text: str) -> None:
        if not self._alarmed:
            self._alarmed = True
            log.error("clock.unsure", error=text)


def open_clock(source: Source, max_error: int = MAX_ERROR) -> Clock:
    """Return the clock of this host. Raises ClockError if it is not good enough to be used with others."""
    if source == "fixed":
        return FixedClock()
    if source == "kernel":
        return BoundedClock(kernel_bound, max_error=max_error)
    return BoundedClock(ChronyBound(), max_error=max_error)


# ------------------------------------------------------------------------------------------------------------ kernel


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2)."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", ctypes.c_long * 2),
        ("tick", ctypes.c_long),
        ("more", ctypes.c_long * 20),
    ]


_libc = ctypes.CDLL(None, use_errno=True)


def kernel_bound() -> int:
    """The error bound that the kernel keeps, in nanoseconds; 16 s if nobody disciplines its clock."""
    value = _Timex()
    if _libc.adjtimex(ctypes.byref(value)) < 0:
        raise ClockError("the kernel does not tell the error of its clock (adjtimex)")
    return int(value.maxerror) * 1000


# ------------------------------------------------------------------------------------------------------------ chrony


class ChronyBound:
    """Asks chronyd how wrong the clock may be; later in a thread, so that nobody waits for the answer."""

    def __init__(self, ask: Callable[[], str] | None = None) -> None:
        """`ask` returns a line of `chronyc -c tracking`, or raises ClockError."""
        self._ask = ask if ask is not None else _ask_chrony
        self._answer: int | ClockError = chrony_bound(self._ask())
        self._asking = threading.Lock()
        self._first = True

    def __call__(self) -> int:
        """The newest answer; asks for the next one."""
        answer = self._answer
        if not self._first and self._asking.acquire(blocking=False):
            threading.Thread(target=self._refresh, name="chrony", daemon=True).start()
        self._first = False
        if isinstance(answer, ClockError):
            raise answer
        return answer

    def _refresh(self) -> None:
        try:
            self._answer = chrony_bound(self._ask())
        except ClockError as error:
            self._answer = error
        finally:
            self._asking.release()


def chrony_bound(line: str) -> int:
    """The bound in a line of `chronyc -c tracking`: |offset| + dispersion + delay / 2 to the reference, in ns."""
    fields = line.strip().split(",")
    try:
        offset, delay, dispersion = (abs(float(fields[at])) for at in (4, 10, 11))
        leap = fields[13]
    except (IndexError, ValueError):
        raise ClockError(f"chronyc answered something else: {line.strip()!a}") from None
    if leap == "Not synchronised":
        raise ClockError("chronyd is not synchronised yet")
    return int((offset + dispersion + delay / 2) * 1e9)


def _ask_chrony() -> str:
    try:
        done = subprocess.run(
            ["chronyc", "-c", "tracking"], capture_output=True, text=True, timeout=CHRONY_SECONDS, check=False
        )
    except FileNotFoundError:
        raise ClockError("clock source chrony: there is no program chronyc on this host") from None
    except subprocess.TimeoutExpired:
        raise ClockError("clock source chrony: chronyd does not answer") from None
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())
        raise ClockError(f"clock source chrony: {said or 'chronyc failed'}")
    return done.stdout
