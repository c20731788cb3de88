"""Virtual time, clocks that are wrong, and a network that loses, delays, doubles and reorders."""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

US = 1_000
MS = 1_000_000
BEGIN = 1_000 * MS
"""Virtual time starts here; times are nanoseconds."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad a run is. Probabilities per message; times in ns."""

    loss: float
    double: float
    delay: int  # a usual one is uniform up to this
    late: float  # probability of a delay of up to 30 ms
    takeover: int  # mean time between take-overs; 0: none
    pause: float  # probability of a pause instead of a kill at a take-over, and beside
    error: int  # bound of the clocks' error
    drift: int  # how far clocks are really off; beyond `error` the clocks violate their bound
    slow_disk: float
    stray: int  # mean time between records of deposed owners that land; 0: none
    moves: int  # mean time between range moves; 0: none
    think: float  # probability that a session waits before it commits
    sessions: int


class World:
    """The event queue. Whatever has to happen later is put there."""

    def __init__(self, seed: int, faults: Faults, trace: list[str] | None = None) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.calm = False  # no faults any more
        self.now = BEGIN
        self.events = 0
        self.digest = 0
        self.trace = trace
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._cuts: dict[tuple[str, str], int] = {}

    def at(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do something after a delay."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, action, arguments))

    def run(self, until: int) -> None:
        """Let time pass."""
        queue = self._queue
        pop = heapq.heappop
        while queue and queue[0][0] <= until:
            self.now, _, action, arguments = pop(queue)
            self.events += 1
            action(*arguments)
        self.now = until

    def note(self, text: str) -> None:
        """Add a line to the trace, of which `digest` is the check sum."""
        self.digest = zlib.crc32(text.encode(), self.digest)
        if self.trace is not None:
            self.trace.append(f"{(self.now - BEGIN) / MS:10.4f} {text}")

    def chance(self, probability: float) -> bool:
        """Does a fault of this probability happen now?"""
        return not self.calm and probability > 0 and self.rng.random() < probability

    def delay(self) -> int:
        """How long a message takes."""
        if self.chance(self.faults.late):
            return int(self.rng.random() * 30 * MS)
        most = self.faults.delay if not self.calm else min(self.faults.delay, 500 * US)  # well below T
        return 50 * US + int(self.rng.random() * most)

    def cut(self, one: str, other: str, until: int) -> None:
        """No message between these two until then."""
        self._cuts[one, other] = self._cuts[other, one] = until

    def reaches(self, one: str, other: str) -> bool:
        """Would a message sent now arrive?"""
        if self._cuts and not self.calm and self._cuts.get((one, other), 0) > self.now:
            return False
        return not self.chance(self.faults.loss)


class HostClock:
    """A clock with an error, which jumps; `now` never goes backwards (rule T1)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._least = (0, 0)
        self.offset = 0
        self.jump()

    def jump(self) -> None:
        """Another error, up to the drift."""
        faults = self._world.faults
        drift = min(faults.drift, faults.error) if self._world.calm else faults.drift
        rng = self._world.rng
        # mostly at the edge of what is allowed: that is where order gets lost
        self.offset = rng.choice((-drift, drift, rng.randint(-drift, drift)))

    def now(self) -> tuple[int, int]:
        """(earliest, latest)."""
        time, error = self._world.now + self.offset, self._world.faults.error
        earliest, latest = self._least
        self._least = max(earliest, time - error), max(latest, time + error)
        return self._least


class Process:
    """Something with a clock that gets messages, can be killed and can be paused."""

    def __init__(self, world: World, name: str, clock: HostClock | None = None) -> None:
        self.world, self.name = world, name
        self.clock = clock if clock is not None else HostClock(world)
        self.alive = True
        self.paused_until = 0

    def kill(self) -> None:
        """End at once."""
        self.world.note(f"{self.name} killed")
        self.alive = False

    def pause(self, time: int) -> None:
        """Stop for a while, as SIGSTOP does; the clock goes on."""
        self.world.note(f"{self.name} paused for {time / MS:.1f} ms")
        self.paused_until = self.world.now + time

    def later(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        """A timer of this process."""
        self.world.at(delay, self.enter, action, *arguments)

    def enter(self, action: Callable[..., None], *arguments: Any) -> None:
        """Run something inside this process, if it lives and when it is not paused."""
        if not self.alive:
            return
        world = self.world
        if self.paused_until > world.now:
            world.at(self.paused_until - world.now, self.enter, action, *arguments)
        else:
            action(*arguments)

    def send(self, to: Process, message: object) -> None:
        """Send a message; it may be lost, late, doubled."""
        world = self.world
        if world.trace is not None:
            world.trace.append(f"{(world.now - BEGIN) / MS:10.4f} {self.name} -> {to.name}: {describe(message)}")
        if not world.reaches(self.name, to.name):
            return
        world.at(world.delay(), to.enter, to.receive, self, message)
        if world.chance(world.faults.double):
            world.at(world.delay() + int(world.rng.random() * 20 * MS), to.enter, to.receive, self, message)

    def receive(self, source: Process, message: Any) -> None:
        """Take a message."""
        raise NotImplementedError


def describe(message: object) -> str:
    """A line for the trace."""
    if isinstance(message, bytes):
        from australis.protocol.messages import wide_commit_decoder

        message = wide_commit_decoder.decode(message)
    text = type(message).__name__
    for name in ("txid", "attempt", "ballot", "outcome", "generation", "tau_start", "tau", "tau_max", "h"):
        value = getattr(message, name, None)
        if value is not None:
            text += f" {name}={value[-2:].hex() if isinstance(value, bytes) else value}"
    return text
