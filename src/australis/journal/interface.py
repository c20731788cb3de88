"""What every journal engine offers (rule J1); the adjudicator's process and readers use nothing else.

An engine has one owner. `claim` starts a generation; `append` queues a record and returns its position at once,
`flush` starts writing; the engine calls `on_durable(sequence)` when everything up to a sequence is durable, in order
and never again for less, and `on_failed(error)` once when nothing after the last durable sequence can be promised any
more: the owner then stops, and a new generation reads what is there. Callbacks come from a thread of the engine, or
from within `flush`. All methods are the owner's thread's, except where it is said.
"""

from __future__ import annotations

import builtins
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from australis.errors import AustralisError
from australis.journal.record import Entry, Position


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claimer found (rule A1).

    `floor` is the largest time before the claim (or H if larger); `ddl` the number of the last DDL record; `known` the
    transactions that are certainly committed with tau > `known_floor`, oldest first.
    """

    generation: int
    position: Position
    floor: int
    ddl: int
    known: list[tuple[bytes, int]]
    known_floor: int


class Fold(Protocol):
    """What a claimer makes of the valid entries that precede its claim; `adjudicator.recovery.Recovery` is one."""

    @property
    def floor(self) -> int:
        """The time and horizon that the claim carries."""
        ...

    def add(self, entry: Entry) -> None:
        """Take the next valid entry."""
        ...

    def claim_body(self) -> builtins.bytes:
        """The body that the claim carries."""
        ...


class Reader(Protocol):
    """Reads a journal forward. In one thread at a time, any but the engine's."""

    @property
    def diverged(self) -> bool:
        """Does the journal hold another record at the position where the reader was asked to begin?"""
        ...

    def read(self, durable: int | None, limit: int) -> list[Entry]:
        """Return valid entries up to a sequence, about `limit` bytes; none: there is no more now.

        Raises JournalError if the journal is damaged, PositionGoneError if it was trimmed meanwhile.
        """
        ...

    def close(self) -> None:
        """Give back what the reader holds."""
        ...


class Journal(Protocol):
    """A journal engine."""

    durable: int
    """The sequence up to which everything is durable."""

    latencies: deque[float]
    """Seconds that the newest writes took."""

    groups: int
    records: int
    bytes: int
    """What this generation has written."""

    @property
    def queued_bytes(self) -> int:
        """Bytes that are appended but not durable."""
        ...

    @property
    def full(self) -> bool:
        """Is there no space at the moment?"""
        ...

    def claim(self) -> Claimed:
        """Become the owner with a generation above all others; durable when this returns.

        An engine that was opened with a `Fold` has given it every entry before the claim, which carries what it says.
        """
        ...

    def admits(self, length: int) -> bool:
        """May a record of this length be appended? False: there is no space; nothing is lost, try again later."""
        ...

    def append(
        self,
        kind: int,
        flags: int,
        tau: int,
        txid: builtins.bytes,
        body: builtins.bytes,
        ddl: int,
        horizon: int = 0,
    ) -> Position:
        """Queue one record behind all others. `ddl` is the number of the last DDL record, this one included."""
        ...

    def flush(self) -> None:
        """Start writing what was appended; may call `on_durable` before it returns."""
        ...

    def reader(self, after: Position) -> Reader:
        """Return a reader behind a position, from any thread; PositionGoneError if trimmed."""
        ...

    def oldest(self) -> Position:
        """Return the position behind which the journal begins; from any thread."""
        ...

    def tail(self, after: Position) -> Iterator[Entry]:
        """Yield valid, durable entries behind a position until the durable end; PositionGoneError if trimmed."""
        ...

    def next_claim(self, generation: int) -> Entry | None:
        """Return the first claim above a generation, if the journal still holds it; from any thread."""
        ...

    def trim(self, sequence: int) -> int:
        """Forget, in whole units, what lies below a sequence; return how many bytes that freed. From any thread."""
        ...

    def size(self) -> tuple[int, int]:
        """Return (bytes, number of units) of the whole journal; from any thread."""
        ...

    def close(self) -> None:
        """Wait for queued records, then release the journal."""
        ...


OnDurable = Callable[[int], None]
OnFailed = Callable[[AustralisError], None]
