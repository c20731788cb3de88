"""What every journal engine offers (rule J1); the adjudicator's process and readers use nothing else.

An engine has one owner. `claim` starts a generation; `append` queues a record and returns its position at once,
`flush` starts writing; the engine calls `on_durable(sequence)` when everything up to a sequence is durable, in order
and never again for less, and `on_failed(error)` once when nothing after the last durable sequence can be promised any
more: the owner then stops, and a new generation reads what is there.
"""

from __future__ import annotations

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


class Journal(Protocol):
    """A journal engine."""

    def claim(self) -> Claimed:
        """Become the owner with a generation above all others; durable when this returns."""
        ...

    def append(self, kind: int, flags: int, tau: int, txid: bytes, body: bytes, ddl: int) -> Position:
        """Queue one record behind all others. `ddl` is the number of the last DDL record, this one included."""
        ...

    def flush(self) -> None:
        """Start writing what was appended; may call `on_durable` before it returns."""
        ...

    def tail(self, after: Position) -> Iterator[Entry]:
        """Yield valid, durable entries behind a position until the durable end; PositionGoneError if trimmed."""
        ...

    def trim(self, sequence: int) -> int:
        """Forget whole segments below a sequence; return how many bytes that freed."""
        ...

    def close(self) -> None:
        """Wait for queued records, then release the journal."""
        ...


OnDurable = Callable[[int], None]
OnFailed = Callable[[AustralisError], None]
