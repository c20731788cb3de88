"""The pool of query processors under virtual time: its decisions against a host that starts, fails, kills and stalls.

    python -m australis.simulation.pool --seeds 1000

A seed chooses settings, how connections come and how long sessions last, and what goes wrong. The world keeps its own
account of what runs and who has which session, and raises `Broken` at the first effect that must not be.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from australis.query_processor import pool
from australis.query_processor.pool import Check, Effect, Give, Pool, Refuse, Settings, Start, State, Stop

QUIET = 100_000.0
"""Seconds that a pool gets at the end to come to rest."""


class Broken(AssertionError):
    """An invariant does not hold; the message says which and when."""


@dataclass
class _Real:
    """A processor as it is, whatever the pool thinks."""

    state: State = State.STOPPED
    life: int = 0
    sessions: set[int] = field(default_factory=set)
    idle_since: float = 0.0
    failures: int = 0


class World:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        maximum = rng.choice([1, 2, 3, 5])
        fixed = rng.random() < 0.2
        sessions = rng.choice([1, 2, 5, 20])
        self.settings = Settings(
            minimum=maximum if fixed else rng.randint(0, min(maximum, 2)),
            maximum=maximum,
            sessions=sessions,
            capacity=sessions * rng.choice([1, 2, 10]),
            idle=math.inf if fixed else rng.choice([0.5, 5.0, 100.0]),
            wait=rng.choice([1.0, 10.0, 30.0]),
            queue=rng.choice([1, 3, 100]),
        )
        self.pool = Pool(self.settings)
        self.now = 0.0
        self.faults = rng.choice([0.0, 0.05, 0.4])
        self.real = [_Real() for _ in range(maximum)]
        self.waiting: dict[int, float] = {}
        self.answered: set[int] = set()
        self.given = self.refused = self.starts = self.stops = 0
        self._events: list[tuple[float, int, Callable[[], list[Effect] | None]]] = []
        self._order = itertools.count()
        self._tickets = itertools.count(1)

    def run(self, connections: int = 200) -> None:
        """Come, be served, go; then rest."""
        rng = self.rng
        at = 0.0
        for _ in range(connections):
            at += rng.expovariate(rng.choice([0.05, 2.0, 50.0]))
            self._later(at, self._connect)
        self._take(self.pool.open(0.0))
        self._until(at)
        self.faults = 0.0
        self._until(at + QUIET)
        self._must(not self.waiting, "somebody still waits")
        self._must(
            self._running() == self.settings.minimum or self.settings.idle == math.inf, "it did not come to rest"
        )
        self._must(self.pool.next_tick(self.now) is None, "time still has something to do")

    def _until(self, end: float) -> None:
        turns = 0
        while True:
            tick = self.pool.next_tick(self.now)
            event = self._events[0][0] if self._events else math.inf
            at = min(event, math.inf if tick is None else tick)
            if at > end:
                self.now = end
                return
            turns = turns + 1 if at == self.now else 0
            self._must(turns < 1000, "time does not pass")
            self.now = at
            if event <= at:
                effects = heapq.heappop(self._events)[2]()
                if effects is not None:
                    self._take(effects)
            else:
                self._take(self.pool.tick(self.now))

    def _later(self, at: float, what: Callable[[], list[Effect] | None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), what))

    def _must(self, holds: bool, what: str) -> None:
        if not holds:
            raise Broken(f"at {self.now:.3f}: {what}; {self.settings}; {self.pool.processors}")

    def _running(self) -> int:
        return sum(one.state in (State.STARTING, State.READY) for one in self.real)

    # connections

    def _connect(self) -> list[Effect]:
        ticket = next(self._tickets)
        self.waiting[ticket] = self.now
        if self.rng.random() < 0.1:
            self._later(self.now + self.rng.uniform(0, 2 * self.settings.wait), lambda: self._give_up(ticket))
        return self.pool.wanted(self.now, ticket)

    def _give_up(self, ticket: int) -> list[Effect] | None:
        if self.waiting.pop(ticket, None) is None:
            return None
        return self.pool.gave_up(self.now, ticket)

    def _leave(self, ticket: int, number: int, life: int, unreachable: bool = False) -> list[Effect]:
        real = self.real[number]
        if real.life == life:
            real.sessions.discard(ticket)
            real.idle_since = self.now
        tell = self.pool.unreachable if unreachable else self.pool.ended
        return tell(self.now, number, life)

    # what the host does

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Start():
                    self._start(effect)
                case Stop(number, life):
                    self._stop(number, life)
                case Check(number, life):
                    self._later(self.now + self.rng.uniform(0, 5), lambda n=number, x=life: self._checked(n, x))  # type: ignore[misc]
                case Give():
                    self._give(effect)
                case Refuse(ticket, sqlstate, _, _):
                    self._answer(ticket)
                    self.refused += 1
                    full = all(
                        one.state is State.READY and len(one.sessions) >= self.settings.capacity for one in self.real
                    )
                    if sqlstate == "53300":
                        self._must(full or len(self.waiting) >= self.settings.queue, "refused without need")
        self._look()

    def _answer(self, ticket: int) -> None:
        asked = self.waiting.pop(ticket, None)
        self._must(asked is not None and ticket not in self.answered, f"ticket {ticket} was not waiting")
        assert asked is not None
        self._must(self.now - asked <= self.settings.wait + 1e-6, f"ticket {ticket} waited {self.now - asked:.3f} s")
        self.answered.add(ticket)

    def _give(self, give: Give) -> None:
        self._answer(give.ticket)
        real = self.real[give.number]
        self._must(real.state is State.READY and real.life == give.life, "given one that does not serve")
        self._must(len(real.sessions) < self.settings.capacity, "given one that is full")
        real.sessions.add(give.ticket)
        self.given += 1
        unreachable = self.rng.random() < self.faults / 4
        lasts = 0.0 if unreachable else self.rng.expovariate(self.rng.choice([0.01, 1.0, 100.0]))
        self._later(self.now + lasts, lambda: self._leave(give.ticket, give.number, give.life, unreachable=unreachable))

    def _start(self, start: Start) -> None:
        real = self.real[start.number]
        self._must(real.state is State.STOPPED and real.life == start.life, "started what runs")
        self._must(start.failures == real.failures, f"{start.failures} failures were {real.failures}")
        real.state = State.STARTING
        self.starts += 1
        self._must(self._running() <= self.settings.maximum, "too many run")
        took = self.rng.choice([0.01, 0.2, 3.0])
        if self.rng.random() < self.faults:
            self._later(self.now + took, lambda: self._die(start.number, start.life))
        else:
            self._later(self.now + took, lambda: self._ready(start.number, start.life))

    def _ready(self, number: int, life: int) -> list[Effect]:
        real = self.real[number]
        real.state = State.READY
        real.idle_since = self.now
        if self.rng.random() < self.faults:
            self._later(self.now + self.rng.expovariate(0.1), lambda: self._die(number, life))
        return self.pool.ready(self.now, number, life)

    def _die(self, number: int, life: int) -> list[Effect] | None:
        real = self.real[number]
        if real.life != life or real.state is State.STOPPED:
            return None
        stable = real.state is State.READY and self.now - self.pool.processors[number].started >= pool.STABLE_AFTER
        real.failures = 0 if stable else real.failures + 1
        self._end(real)
        return self.pool.died(self.now, number, life, "killed")

    def _end(self, real: _Real) -> None:
        real.state = State.STOPPED
        real.life += 1
        real.sessions.clear()

    def _stop(self, number: int, life: int) -> None:
        real = self.real[number]
        self._must(real.state is State.READY and real.life == life, "stopped what does not serve")
        self._must(not real.sessions, "stopped one with sessions")
        self._must(self.now - real.idle_since >= self.settings.idle - 1e-6, "stopped before its time")
        ready = sum(one.state is State.READY for one in self.real)
        self._must(ready > self.settings.minimum, "stopped one of the minimum")
        real.state = State.DRAINING
        self.stops += 1
        took = self.rng.choice([0.01, 0.2, 3.0])
        end = self._refuse_to_stop if self.rng.random() < max(self.faults, 0.01) else self._stopped
        self._later(self.now + took, lambda: end(number, life))

    def _refuse_to_stop(self, number: int, life: int) -> list[Effect] | None:
        real = self.real[number]
        if real.life != life:
            return None
        real.state, real.idle_since = State.READY, self.now
        return self.pool.busy(self.now, number, life)

    def _stopped(self, number: int, life: int) -> list[Effect] | None:
        real = self.real[number]
        if real.life != life:
            return None
        real.failures = 0
        self._end(real)
        return self.pool.stopped(self.now, number, life, self.rng.randrange(100))

    def _checked(self, number: int, life: int) -> list[Effect] | None:
        if self.rng.random() < 0.5:
            return self.pool.reachable(self.now, number, life)
        return self._die(number, life)

    # what must hold between any two events

    def _look(self) -> None:
        for real, one in zip(self.real, self.pool.processors, strict=True):
            self._must(real.state is one.state and real.life == one.life, "the pool is wrong about a processor")
            self._must(len(real.sessions) == one.sessions, "the pool is wrong about sessions")
        self._must(len(self.waiting) <= self.settings.queue, "too many wait")
        free = any(
            one.state is State.READY and one.reachable and one.sessions < self.settings.capacity
            for one in self.pool.processors
        )
        self._must(not (self.waiting and free), "somebody waits although one is free")
        stopped = [one for one in self.pool.processors if one.state is State.STOPPED and one.not_before <= self.now]
        needed = max(self.settings.minimum, 1 if self.waiting else 0)
        self._must(self._running() >= min(needed, self._running() + len(stopped)), "fewer run than must")


def main() -> int:
    parser = argparse.ArgumentParser(prog="australis.simulation.pool", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    options = parser.parse_args()
    given = refused = starts = stops = 0
    for seed in range(options.first, options.first + options.seeds):
        world = World(seed)
        try:
            world.run()
        except Broken as error:
            print(f"seed {seed}: {error}\nreplay: python -m australis.simulation.pool --seeds 1 --from {seed}")
            return 1
        given, refused = given + world.given, refused + world.refused
        starts, stops = starts + world.starts, stops + world.stops
    print(f"{options.seeds} seeds: {given} sessions, {refused} refusals, {starts} starts, {stops} stops: nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
