"""How many query processors run, and which one a connection gets: decisions only.

Messages and time in, effects out; `host.py` carries them out. A processor goes

    stopped -> starting -> ready -> draining -> stopped        died: from anywhere to stopped

and each start is another life of it: news of an earlier life is ignored.

What must hold:
- one with a session, or with a connection on its way to one, is never asked to stop; one that is asked may still
  refuse (`busy`), for there may be sessions that did not come through here;
- every waiting connection is answered once: with a processor, or with a refusal when its time is over or when starting
  has failed ATTEMPTS times in a row and nothing else is there; no more than `queue` wait;
- a processor that died is started again only when it is needed; after the second failure in a row with a growing pause;
- nothing flaps: one is stopped only after `idle` seconds without a session while fewer would do, so a processor is not
  started for load more often than that.

New sessions fill as few processors as `sessions` for each allows, evenly, and beyond that all of them; so when load
falls the others become idle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0  # between attempts to start one that failed, from the second failure
STABLE_AFTER = 30.0  # a life this long makes earlier failures forgotten
ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times in seconds. `minimum` of `maximum` processors always run."""

    minimum: int
    maximum: int
    sessions: int  # of each processor, beyond which another one is started
    capacity: int  # sessions that one can have
    idle: float = math.inf
    wait: float = 30.0  # of a connection, for a processor
    queue: int = 1000  # connections that may wait

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum or self.maximum < 1:
            raise ValueError(f"between 0 and {self.maximum} processors must be the minimum, not {self.minimum}")
        if not 1 <= self.sessions <= self.capacity:
            raise ValueError(f"sessions must be between 1 and {self.capacity}, not {self.sessions}")
        if not (self.idle > 0 and self.wait > 0 and self.queue > 0):
            raise ValueError("idle, wait and queue must be positive")


class State(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Start:
    """Start a processor; `failures` counts what went wrong with it in a row. Answer with `ready` or `died`."""

    number: int
    life: int
    failures: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End a processor without ending sessions. Answer with `stopped`, `busy` or `died`."""

    number: int
    life: int


@dataclass(frozen=True, slots=True)
class Check:
    """It could not be connected to. Answer with `reachable` or `died`."""

    number: int
    life: int


@dataclass(frozen=True, slots=True)
class Give:
    """The connection gets this processor; answer with `ended` or `unreachable`."""

    ticket: int
    number: int
    life: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The connection gets FATAL with this SQLSTATE."""

    ticket: int
    sqlstate: str
    message: str
    detail: str | None = None


Effect = Start | Stop | Check | Give | Refuse


@dataclass(slots=True)
class Processor:
    """One processor. For others to read."""

    number: int
    state: State = State.STOPPED
    life: int = 0
    sessions: int = 0
    since: float = 0.0  # without sessions
    started: float = 0.0
    reachable: bool = True
    failures: int = 0  # in a row
    not_before: float = 0.0
    version: int = -1  # its catalogs are at least at this schema change; -1: unknown
    cause: str = ""  # of its last failure


@dataclass(slots=True)
class Pool:
    """The decisions. Times are of one clock that never runs backwards."""

    settings: Settings
    processors: list[Processor] = field(init=False)
    _waiting: dict[int, float] = field(init=False, default_factory=dict)  # ticket: its deadline, oldest first
    _effects: list[Effect] = field(init=False, default_factory=list)
    _failed: int = field(init=False, default=0)  # starts in a row, of any processor

    def __post_init__(self) -> None:
        self.processors = [Processor(number) for number in range(self.settings.maximum)]

    @property
    def waiting(self) -> int:
        """Connections without a processor."""
        return len(self._waiting)

    @property
    def wanted_processors(self) -> int:
        """How many should run now."""
        return self._needed(self._sessions + self.waiting)

    # messages

    def wanted(self, now: float, ticket: int) -> list[Effect]:
        """A connection wants a processor; `ticket` is its name."""
        self._waiting[ticket] = now + self.settings.wait
        self._serve(now)
        if ticket in self._waiting:
            if all(one.state is State.READY and one.sessions >= self.settings.capacity for one in self.processors):
                self._refuse(ticket, "53300", "sorry, too many clients already")
            elif self.waiting > self.settings.queue:
                self._refuse(ticket, "53300", "sorry, too many clients already", "Too many wait for a query processor.")
        return self._done(now)

    def gave_up(self, now: float, ticket: int) -> list[Effect]:
        """It does not want any more, and was not answered."""
        del self._waiting[ticket]
        return self._done(now)

    def ended(self, now: float, number: int, life: int) -> list[Effect]:
        """A session that was given to this processor ended, or came to nothing."""
        processor = self._known(number, life)
        if processor is not None:
            self._left(now, processor)
        return self._done(now)

    def unreachable(self, now: float, number: int, life: int) -> list[Effect]:
        """As `ended`, because no connection to the processor was possible."""
        processor = self._known(number, life)
        if processor is not None:
            self._left(now, processor)
            if processor.reachable and processor.state is State.READY:
                processor.reachable = False
                self._effects.append(Check(number, life))
        return self._done(now)

    def reachable(self, now: float, number: int, life: int) -> list[Effect]:
        """It answers again."""
        processor = self._known(number, life)
        if processor is not None:
            processor.reachable = True
        return self._done(now)

    def ready(self, now: float, number: int, life: int) -> list[Effect]:
        """It serves."""
        processor = self._known(number, life)
        if processor is not None and processor.state is State.STARTING:
            processor.state = State.READY
            processor.since = processor.started = now
            processor.cause = ""
            self._failed = 0
        return self._done(now)

    def busy(self, now: float, number: int, life: int) -> list[Effect]:
        """It was not stopped: somebody works with it."""
        processor = self._known(number, life)
        if processor is not None and processor.state is State.DRAINING:
            processor.state = State.READY
            processor.since = now
        return self._done(now)

    def stopped(self, now: float, number: int, life: int, version: int) -> list[Effect]:
        """It has ended as it was told to, with catalogs at this schema change (-1: unknown)."""
        processor = self._known(number, life)
        if processor is not None:
            self._end(processor)
            processor.failures = 0
            processor.version = version
        return self._done(now)

    def died(self, now: float, number: int, life: int, cause: str) -> list[Effect]:
        """It has ended by itself, or could not be started. Nothing of it runs any more."""
        processor = self._known(number, life)
        if processor is not None:
            self._failed += processor.state is State.STARTING
            lasted = processor.state is State.READY and now - processor.started >= STABLE_AFTER
            processor.failures = 0 if lasted else processor.failures + 1
            processor.cause = cause
            self._end(processor)
            if processor.failures > 1:
                pause = min(FIRST_DELAY * 2.0 ** min(processor.failures - 2, 30), LONGEST_DELAY)
                processor.not_before = now + pause
            if self._failed >= ATTEMPTS and all(one.state is State.STOPPED for one in self.processors):
                for ticket in list(self._waiting):
                    self._refuse(ticket, "57P03", "the database system is not available", self._why())
        return self._done(now)

    def open(self, now: float) -> list[Effect]:
        """Start what is to run from the beginning: one at least, which shows that it can."""
        self._grow(now, max(self.settings.minimum, 1))
        return self._done(now)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        for ticket, deadline in list(self._waiting.items()):
            if deadline <= now:
                self._refuse(ticket, "57P03", "the database system is not available", self._why())
        return self._done(now)

    def next_tick(self, now: float) -> float | None:
        """When `tick` has something to do if nothing else happens before; None: never."""
        times = list(self._waiting.values())[:1]
        if self._surplus() > 0 and not self._waiting:
            times += [one.since + self.settings.idle for one in self._idle()]
        if self._running() < self.wanted_processors:
            times += [one.not_before for one in self.processors if one.state is State.STOPPED]
        times = [time for time in times if time < math.inf]
        return max(min(times), now) if times else None

    # decisions

    @property
    def _sessions(self) -> int:
        return sum(one.sessions for one in self.processors)

    def _needed(self, sessions: int) -> int:
        return min(max(-(-sessions // self.settings.sessions), self.settings.minimum), self.settings.maximum)

    def _running(self) -> int:
        return sum(one.state in (State.STARTING, State.READY) for one in self.processors)

    def _known(self, number: int, life: int) -> Processor | None:
        processor = self.processors[number]
        return processor if processor.life == life else None

    def _left(self, now: float, processor: Processor) -> None:
        assert processor.sessions > 0, "a session left that never came"
        processor.sessions -= 1
        processor.since = now

    def _end(self, processor: Processor) -> None:
        processor.state = State.STOPPED
        processor.life += 1
        processor.sessions = 0
        processor.reachable = True

    def _choose(self) -> Processor | None:
        """Where the next session goes."""
        candidates = [
            one
            for one in self.processors
            if one.state is State.READY and one.reachable and one.sessions < self.settings.capacity
        ]
        candidates.sort(key=lambda one: (-one.sessions, one.number))
        kept = candidates[: self._needed(self._sessions + 1)]
        return min(kept, key=lambda one: (one.sessions, one.number), default=None)

    def _serve(self, now: float) -> None:
        for ticket in list(self._waiting):
            processor = self._choose()
            if processor is None:
                break
            del self._waiting[ticket]
            processor.sessions += 1
            self._effects.append(Give(ticket, processor.number, processor.life))

    def _refuse(self, ticket: int, sqlstate: str, message: str, detail: str | None = None) -> None:
        del self._waiting[ticket]
        self._effects.append(Refuse(ticket, sqlstate, message, detail))

    def _why(self) -> str:
        causes = [one.cause for one in self.processors if one.failures and one.cause]
        if causes:
            return f"No query processor could be started: {causes[0]}"
        return f"No query processor was ready within {self.settings.wait:.0f} s."

    def _grow(self, now: float, needed: int) -> None:
        """Those with fewer failures first, then those with newer catalogs."""
        stopped = [one for one in self.processors if one.state is State.STOPPED and one.not_before <= now]
        stopped.sort(key=lambda one: (one.failures, -one.version, one.number))
        for processor in stopped[: max(needed - self._running(), 0)]:
            processor.state = State.STARTING
            self._effects.append(Start(processor.number, processor.life, processor.failures))

    def _idle(self) -> list[Processor]:
        return [one for one in self.processors if one.state is State.READY and one.sessions == 0 and one.reachable]

    def _surplus(self) -> int:
        return sum(one.state is State.READY for one in self.processors) - self.wanted_processors

    def _shrink(self, now: float) -> None:
        if self._waiting:
            return
        surplus = self._surplus()
        over = [one for one in self._idle() if one.since + self.settings.idle <= now]
        over.sort(key=lambda one: (one.since, -one.number))
        for processor in over[: max(surplus, 0)]:
            processor.state = State.DRAINING
            self._effects.append(Stop(processor.number, processor.life))

    def _done(self, now: float) -> list[Effect]:
        self._serve(now)
        self._grow(now, self.wanted_processors)
        self._shrink(now)
        effects, self._effects = self._effects, []
        return effects
