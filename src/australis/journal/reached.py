"""How far a journal has been durable, remembered where a lost journal can't take it along: the loss detector.

A journal on other machines can be deleted, truncated or made anew behind our back, and then its end looks like any end.
So its owner writes down, in the cluster's own directory, the newest record that it reported durable: when it claims the
journal, at most a second after a record, and when it ends. What must hold: an owner whose journal does not hold that
record any more (and was not trimmed beyond it) refuses to start; nobody is rewound silently. The file is replaced
atomically; one that cannot be read is a refusal too.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from australis.errors import JournalError, WrongClusterError
from australis.files import write_atomically
from australis.journal.record import Position

FILE = "reached"


class LostRecordsError(JournalError):
    """The journal lacks records that it acknowledged."""

    sqlstate = "XX001"


class Reached(msgspec.Struct, frozen=True):
    """A record that was durable: its place in the journal and the largest time up to there."""

    cluster: str
    sequence: int
    generation: int
    hash: str
    tau: int

    @property
    def position(self) -> Position:
        """Where it is."""
        return Position(self.sequence, self.generation, bytes.fromhex(self.hash))


def load(directory: Path, cluster: bytes) -> Reached | None:
    """What was written last; None if nothing ever was. Raises JournalError."""
    file = directory / FILE
    try:
        reached = msgspec.json.decode(file.read_bytes(), type=Reached)
        reached.position.pack()
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise JournalError(
            f"{file} cannot be read: {error}; it says how far the journal has been durable. Restore it, or delete it "
            "if the journal is known to be whole"
        ) from None
    if reached.cluster != cluster.hex():
        raise WrongClusterError(f"{file} is of another cluster; restore the right one")
    return reached


def save(directory: Path, cluster: bytes, position: Position, tau: int) -> None:
    """Write it down, durably. Raises OSError."""
    reached = Reached(cluster.hex(), position.sequence, position.generation, position.hash.hex(), tau)
    write_atomically(directory / FILE, msgspec.json.encode(reached), 0o600)


def lost(journal: str, reached: Reached, end: int) -> LostRecordsError:
    """The alarm."""
    what = (
        f"ends at record {end}, but record {reached.sequence} was acknowledged"
        if end < reached.sequence
        else f"holds another record {reached.sequence} than the one that was acknowledged"
    )
    return LostRecordsError(
        f"ALARM: {journal} {what}: committed transactions are lost; restore the journal from a copy, or accept the "
        f"loss by deleting the file {FILE!r} in the cluster's journal directory"
    )
