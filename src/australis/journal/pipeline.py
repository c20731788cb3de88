"""What the owner of a journal on NATS does with answers, silence and what it reads: rule J2. Pure.

Records in, messages out; answers, read results and the time in, effects out. No socket, no clock, no task: the edge
(`nats.py`) or a simulator carries the effects out and comes back with what happened.

    flowing     up to WINDOW messages are on their way to predicted places; what is stored is durable in prefix order
        | an answer that is not "stored where predicted", or none in time: everything later is void
    reading     the stream is read from behind the last place that is known to the end (effect Read)
        | own records that count: durable · a higher claim: fenced, for good · all else counts for nobody
    waiting     if that brought nothing new, for a moment
        | then the same records go again, in order, behind what was read: flowing

What must hold:
- a sequence is reported durable when the engine stored its message where it was predicted, after all before it, or when
  it was read there as a record that counts (`validity.py` decides); never twice, never for less;
- the same records are sent to the same place under the same message id as long as that place is free, and to another
  place only after what took it was read: a place is taken once and for ever, so the old copy can land nowhere;
- a copy that lands late nevertheless (the engine's comparison is an optimisation, not the fence) does not count, as its
  previous hash is not that of the last record that counts;
- after Failed there is no effect any more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from australis.errors import ProtocolError
from australis.journal.message import MESSAGE_BYTES, PREAMBLE_BYTES, Queued, Summary, pack_message, unpack_message
from australis.journal.record import Kind, Position
from australis.journal.validity import Validator

WINDOW = 4
ANSWER_SECONDS = 2.0
"""After so long an answer is not expected any more."""

STALL_SECONDS = 60.0
"""After so long without any progress the owner gives up: an election takes 4 to 9 s."""

PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)
FULL_PAUSE = 0.5


class Refusal(Enum):
    """Why the engine did not store a message, as far as that matters here."""

    PLACE_TAKEN = "wrong last sequence"
    FULL = "no space"
    UNAVAILABLE = "not now"


@dataclass(frozen=True, slots=True)
class Send:
    """Append a message if the last sequence of the stream is `expected`; the answer names `number`."""

    number: int
    message_id: str
    expected: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Read:
    """Read all messages behind a sequence of the stream, up to an end not older than this request."""

    after: int


@dataclass(frozen=True, slots=True)
class Durable:
    """Everything up to a record's sequence is durable; the rest is about what was not reported before.

    `tau` is the largest time in it, `seconds` how long the last message took (None: it was found by reading).
    """

    sequence: int
    messages: int
    bytes: int
    body_bytes: int
    tau: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing that is not reported durable can be promised any more. `fenced`: by a higher claim."""

    fenced: bool
    cause: str


Effect = Send | Read | Durable | Failed


class _Mode(Enum):
    FLOWING = 1
    READING = 2
    WAITING = 3
    FAILED = 4


@dataclass(slots=True)
class _Flight:
    """A message with its place; `number` is that of the newest attempt to send it."""

    payload: bytes
    records: list[Queued]
    place: int = 0
    number: int = 0
    sent: float = 0.0
    stored: bool = False

    @property
    def last(self) -> Position:
        return self.records[-1].position


@dataclass(slots=True)
class Pipeline:
    """One generation's appends. All times are seconds of one monotonic clock."""

    cluster: bytes
    owner: str
    """Unique to this generation of this owner (the nonce of its claim): part of message ids."""

    confirmed: Position
    """The last durable record: at first the claim."""

    place: int
    """The stream's sequence up to which everything is known: at first that of the claim's message."""

    summary: Summary
    confirmed_place: int = 0
    """The place of the message that ends with `confirmed`."""

    window: int = WINDOW
    message_bytes: int = MESSAGE_BYTES
    answer_seconds: float = ANSWER_SECONDS
    stall_seconds: float = STALL_SECONDS
    full: bool = False
    """Did the engine refuse the last message for want of space?"""

    voids: int = 0
    """Messages that were read and do not count."""

    resends: int = 0
    _mode: _Mode = _Mode.FLOWING
    _queue: deque[Queued] = field(default_factory=deque)
    _flights: deque[_Flight] = field(default_factory=deque)
    _by_number: dict[int, _Flight] = field(default_factory=dict)
    _number: int = 0
    _progress: float = 0.0
    _resume: float = 0.0
    _attempts: int = 0
    _rested: bool = False  # waited since something was sent last

    # ---------------------------------------------------------------------------------------------------- inputs

    def submit(self, records: list[Queued], now: float) -> list[Effect]:
        """Take records that follow those submitted before; send what may be sent."""
        if self.idle:
            self._progress = now
        self._queue.extend(records)
        return self._send(now) if self._mode is _Mode.FLOWING else []

    def stored(self, number: int, place: int, now: float) -> list[Effect]:
        """The engine stored the message of an attempt at a place (or had done so before)."""
        flight = self._by_number.get(number)
        if flight is None or self._mode is not _Mode.FLOWING:
            return []  # void: what is there will be read
        if place != flight.place:
            return self._trouble()
        flight.stored = True
        self.full = False
        return self._confirm(now) + self._send(now)

    def refused(self, number: int, reason: Refusal, now: float) -> list[Effect]:
        """The engine did not store the message of an attempt (an earlier copy of it may be stored all the same)."""
        if number not in self._by_number or self._mode is not _Mode.FLOWING:
            return []
        if reason is Refusal.FULL:
            self.full = True
            self._progress = now  # waiting for space is no stall
        return self._trouble()

    def disconnected(self) -> list[Effect]:
        """Answers to what was sent so far are lost."""
        return self._trouble() if self._mode is _Mode.FLOWING and self._flights else []

    def read(self, messages: list[tuple[int, bytes]], end: int, now: float) -> list[Effect]:
        """The answer to Read: (sequence, payload) of every message behind `after` up to `end`, the stream's end."""
        if self._mode is not _Mode.READING:
            return []
        known, known_place = self.confirmed, self.confirmed_place
        validator = Validator(self.cluster, known)
        own: dict[bytes, Position] = {r.position.hash: r.position for f in self._flights for r in f.records}
        expected = self.place
        for place, payload in messages:
            expected += 1
            if place != expected:
                return self._fail(False, f"message {expected} of the stream is missing, {place} is there")
            try:
                message = unpack_message(payload)
            except ProtocolError as error:
                return self._fail(False, f"message {place} of the stream is damaged: {error}")
            before = validator.last
            for header, hash, body in message.records:
                validator.add(header, hash, body)
                if header.kind == Kind.CLAIM and validator.generation > known.generation:
                    effects = self._found(known, known_place, now)
                    cause = f"generation {validator.generation} has taken over the journal"
                    return effects + self._fail(True, cause)
                if validator.last.hash == hash and validator.last != known:
                    if hash not in own:
                        return self._fail(False, f"message {place} holds a record of our generation that is not ours")
                    known, known_place = validator.last, place
            self.voids += validator.last == before
        if end < self.place:
            return self._fail(False, f"the stream ends at {end}, but {self.place} was acknowledged")
        if expected != end:
            return self._fail(False, f"the stream ends at {end}, but was read to {expected}")
        news = end > self.place
        self.place = end
        effects = self._found(known, known_place, now)
        if not self._flights:
            self._mode = _Mode.FLOWING
            return effects + self._send(now)
        if news:
            self._attempts = 0
        if (news and not self.full) or self._rested:
            return effects + self._resend(now)
        return effects + self._wait(now)

    def unreadable(self, now: float) -> list[Effect]:
        """Read failed."""
        return self._wait(now) if self._mode is _Mode.READING else []

    def tick(self, now: float) -> list[Effect]:
        """Time passes; to be called at `due()` at the latest."""
        if self._mode is _Mode.FAILED:
            return []
        if not self.idle and now - self._progress >= self.stall_seconds and not self.full:
            return self._fail(False, f"nothing could be stored for {self.stall_seconds:.0f} s")
        if self._mode is _Mode.WAITING and now >= self._resume:
            self._mode, self._rested = _Mode.READING, True
            return [Read(self.place)]
        if self._mode is _Mode.FLOWING and any(
            not flight.stored and now - flight.sent >= self.answer_seconds for flight in self._flights
        ):
            return self._trouble()
        return []

    def due(self) -> float | None:
        """When `tick` is needed next; None: not before another input."""
        if self._mode is _Mode.FAILED or self.idle:
            return None
        stall = self._progress + self.stall_seconds
        if self._mode is _Mode.WAITING:
            return min(self._resume, stall) if not self.full else self._resume
        waiting = [flight.sent + self.answer_seconds for flight in self._flights if not flight.stored]
        return min([stall, *waiting]) if self._mode is _Mode.FLOWING else stall

    @property
    def idle(self) -> bool:
        """Is everything that was submitted durable?"""
        return not self._flights and not self._queue

    @property
    def failed(self) -> bool:
        """Has it failed?"""
        return self._mode is _Mode.FAILED

    # --------------------------------------------------------------------------------------------------- effects

    def _send(self, now: float) -> list[Effect]:
        """Send queued records while the window has room."""
        effects: list[Effect] = []
        while self._queue and len(self._flights) < self.window:
            records = [self._queue.popleft()]
            size = PREAMBLE_BYTES + records[0].size
            while self._queue and size + self._queue[0].size <= self.message_bytes:
                size += self._queue[0].size
                records.append(self._queue.popleft())
            payload, self.summary = pack_message(records, self.confirmed.generation, self.summary)
            flight = _Flight(payload, records)
            place = self._flights[-1].place + 1 if self._flights else self.place + 1
            self._flights.append(flight)
            effects.append(self._launch(flight, place, now))
        return effects

    def _launch(self, flight: _Flight, place: int, now: float) -> Send:
        self._number += 1
        self._by_number.pop(flight.number, None)
        flight.place, flight.number, flight.sent, flight.stored = place, self._number, now, False
        self._by_number[flight.number] = flight
        message_id = f"{self.owner}.{flight.records[0].position.sequence}.{place}"
        return Send(flight.number, message_id, place - 1, flight.payload)

    def _resend(self, now: float) -> list[Effect]:
        self._mode, self._rested = _Mode.FLOWING, False
        effects: list[Effect] = []
        for index, flight in enumerate(self._flights):
            self.resends += 1
            effects.append(self._launch(flight, self.place + 1 + index, now))
        return effects + self._send(now)

    def _confirm(self, now: float) -> list[Effect]:
        """Report what is stored in prefix order."""
        done: list[_Flight] = []
        while self._flights and self._flights[0].stored:
            done.append(self._flights.popleft())
        if not done:
            return []
        self.place = done[-1].place
        return [self._settled(done, done[-1].last, self.place, now, now - done[-1].sent)]

    def _settled(self, done: list[_Flight], last: Position, place: int, now: float, seconds: float | None) -> Durable:
        size = body = tau = 0
        for flight in done:
            del self._by_number[flight.number]
            size += len(flight.payload)
            body += sum([len(record.body) for record in flight.records])
            tau = max([tau, *[record.tau for record in flight.records]])
        self.confirmed, self.confirmed_place = last, place
        self._progress, self._attempts = now, 0
        return Durable(last.sequence, len(done), size, body, tau, seconds)

    def _found(self, known: Position, place: int, now: float) -> list[Effect]:
        """Report what was read as own records that count: whole messages always."""
        if known == self.confirmed:
            return []
        done: list[_Flight] = []
        while self._flights and self._flights[0].last.sequence <= known.sequence:
            done.append(self._flights.popleft())
        self.full = False
        return [self._settled(done, known, place, now, None)]

    def _trouble(self) -> list[Effect]:
        self._mode = _Mode.READING
        return [Read(self.place)]

    def _wait(self, now: float) -> list[Effect]:
        """Wait, then read again: what was unreadable, or places that were free, may have changed by then."""
        pause = FULL_PAUSE if self.full else PAUSES[min(self._attempts, len(PAUSES) - 1)]
        self._attempts += 1
        self._mode, self._resume = _Mode.WAITING, now + pause
        return []

    def _fail(self, fenced: bool, cause: str) -> list[Effect]:
        self._mode = _Mode.FAILED
        return [Failed(fenced, cause)]
