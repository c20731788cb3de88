"""A journal engine with compare-and-append, and the writer that drives it (rules J1, J2).

The engine behaves like a replicated stream (facts: TRAP 1): an append "behind record n" succeeds whoever sends it,
acknowledgements get lost or late, requests that are not synced when the engine fails are gone. So records of a deposed
owner do land behind a claim; only the validity rule keeps them out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from australis.journal import validity
from australis.journal.record import EncodedRecord, Header, Kind, Position, decode_header, encode_record
from australis.simulation.world import MS, US, Process, World

CLUSTER = bytes(range(16))
Stored = tuple[Header, bytes, bytes]

WINDOW = 4
TIMEOUT = 12 * MS

OnAppended = Callable[[bool, int], None]
OnRead = Callable[[int, list[Stored]], None]


class Engine:
    """One stream."""

    def __init__(self, world: World, journal: int) -> None:
        self.world, self.journal = world, journal
        self.name = f"journal{journal}"
        self.log: list[Stored] = []
        self.subscribers: list[Callable[[Engine], None]] = []
        self._epoch = 0
        self._free_at = 0
        self._arrival: dict[str, int] = {}

    def crash(self) -> None:
        """Lose what was not synced."""
        self.world.note(f"{self.name} crashed")
        self._epoch += 1

    def stray(self) -> None:
        """A copy of an earlier record lands once more: a deposed owner's prediction came true (TRAP 1)."""
        if self.log:
            header, hash, body = self.world.rng.choice(self.log[-8:])
            self.world.note(f"{self.name}[{len(self.log)}] stray copy of tau {header.tau}")
            self.log.append((header, hash, body))
            for subscriber in self.subscribers:
                subscriber(self)

    def append(self, writer: Process, expected: int, record: EncodedRecord, done: OnAppended) -> None:
        """Append behind the record number `expected`, if that is still the last one."""
        world = self.world
        if not world.reaches(writer.name, self.name):
            return
        arrival = world.now + world.delay()
        if not world.chance(0.1):  # one connection: in order, mostly
            arrival = max(arrival, self._arrival.get(writer.name, 0) + 1)
            self._arrival[writer.name] = arrival
        world.at(arrival - world.now, self._arrived, writer, expected, record, done)

    def _arrived(self, writer: Process, expected: int, record: EncodedRecord, done: OnAppended) -> None:
        world = self.world
        sync = 200 * US if not world.chance(world.faults.slow_disk) else int(world.rng.random() * 20 * MS)
        self._free_at = max(self._free_at, world.now) + sync
        world.at(self._free_at - world.now, self._synced, self._epoch, writer, expected, record, done)

    def _synced(self, epoch: int, writer: Process, expected: int, record: EncodedRecord, done: OnAppended) -> None:
        if epoch != self._epoch:
            return
        world = self.world
        stored = expected == len(self.log)
        if stored:
            header = decode_header(record.header)
            self.log.append((header, record.hash, bytes(record.body)))
            world.note(
                f"{self.name}[{expected}] {Kind(header.kind).name} generation {header.generation} tau {header.tau} "
                f"H {header.horizon} txid {header.txid[-2:].hex()} by {writer.name}"
            )
            for subscriber in self.subscribers:
                subscriber(self)
        if world.reaches(self.name, writer.name):
            world.at(world.delay(), writer.enter, done, stored, len(self.log))

    def read(self, reader: Process, after: int, done: OnRead) -> None:
        """Read everything behind a record number; no answer if a message is lost."""
        world = self.world
        if world.reaches(reader.name, self.name):
            world.at(world.delay(), self._read, reader, after, done)

    def _read(self, reader: Process, after: int, done: OnRead) -> None:
        world = self.world
        if world.reaches(self.name, reader.name):
            world.at(world.delay(), reader.enter, done, after, self.log[after:])


@dataclass(slots=True)
class _Queued:
    record: EncodedRecord
    position: Position
    acked: bool = False


class Writer:
    """The owner's end of a journal: pipelined appends, acknowledged in prefix order (J2)."""

    def __init__(
        self,
        process: Process,
        engine: Engine,
        claim: Position,
        length: int,
        on_durable: Callable[[list[Position]], None],
        on_deposed: Callable[[], None],
    ) -> None:
        """`length`: records in the engine up to and with the claim."""
        self._process, self._engine = process, engine
        self._generation = claim.generation
        self._last = claim  # of the queue's end
        self._confirmed = claim  # last durable own record
        self._read_to = length  # engine records up to here were read or are known
        self._base = length  # engine's length in front of the first queued record, as far as is known
        self._queue: deque[_Queued] = deque()
        self._sent = 0  # how many of the queue are on their way
        self._round = 0
        # After a failure one record at a time, until one is stored: records sent behind one that fails land where the
        # next round expects its first, so that pipelined rounds could chase each other for ever.
        self._window = WINDOW
        self._reading = False
        self._checked = 0
        self.stopped = False
        self._on_durable, self._on_deposed = on_durable, on_deposed

    def append(self, kind: int, flags: int, tau: int, horizon: int, txid: bytes, body: bytes) -> None:
        """Queue one record."""
        if self.stopped:
            return
        last = self._last
        sequence = last.sequence + 1
        record = encode_record(kind, flags, CLUSTER, self._generation, sequence, last.hash, horizon, tau, txid, body)
        self._last = Position(sequence, self._generation, record.hash)
        self._queue.append(_Queued(record, self._last))
        self._pump()

    def _pump(self) -> None:
        if self._reading or self.stopped:
            return
        queue = self._queue
        while self._sent < min(len(queue), self._window):
            item = queue[self._sent]
            self._engine.append(self._process, self._base + self._sent, item.record, self._answer(item, self._round))
            self._sent += 1
            self._process.later(TIMEOUT, self._timeout, item, self._round)

    def _answer(self, item: _Queued, sent_in: int) -> OnAppended:
        def answer(stored: bool, length: int) -> None:
            self.answered(item, sent_in, stored)

        return answer

    def answered(self, item: _Queued, sent_in: int, stored: bool) -> None:
        """The engine has answered an append of a round; a round ends with its first error."""
        if sent_in != self._round or self.stopped:
            return
        if not stored:
            self._look()
            return
        item.acked = True
        self._window = WINDOW
        self._release()
        self._pump()

    def _release(self) -> None:
        """Acknowledge the prefix."""
        durable: list[Position] = []
        while self._queue and self._queue[0].acked:
            self._confirm(durable)
            self._sent -= 1
            self._base += 1
            self._read_to = self._base
        if durable:
            self._on_durable(durable)

    def _confirm(self, durable: list[Position]) -> None:
        self._confirmed = self._queue.popleft().position
        durable.append(self._confirmed)

    def _timeout(self, item: _Queued, sent_in: int) -> None:
        if sent_in == self._round and not self.stopped and not item.acked and item in self._queue:
            self._look()

    def _look(self) -> None:
        """Something is unknown: read on from the last own position."""
        self._round += 1
        self._window = 1
        self._reading = True
        self._ask(self._round)

    def _ask(self, asked_in: int) -> None:
        if asked_in == self._round and self._reading and not self.stopped:
            self._engine.read(self._process, self._read_to, lambda after, records: self._seen(asked_in, after, records))
            self._process.later(TIMEOUT, self._ask, asked_in)

    def _seen(self, asked_in: int, after: int, records: list[Stored]) -> None:
        if asked_in != self._round or not self._reading or self.stopped:
            return
        validator = validity.Validator(CLUSTER, self._confirmed)
        durable: list[Position] = []
        deposed = False
        for header, hash, body in records:
            entry = validator.add(header, hash, body)
            if entry is None:
                continue
            if entry.kind == Kind.CLAIM:
                deposed = True
                break
            assert self._queue[0].record.hash == hash, "only our own records continue our chain"
            self._confirm(durable)
        if deposed:
            self.stopped = True
        else:
            self._read_to = self._base = after + len(records)
            self._sent = 0
            for item in self._queue:
                item.acked = False
            self._reading = False
        if durable:
            self._on_durable(durable)
        if deposed:
            self._on_deposed()
        else:
            self._pump()
