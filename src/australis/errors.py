"""Errors that services raise.

Every error says in one line what happened and, where somebody can act on it, what to do. Nothing here is caught to be
ignored: a process that meets one either answers it to its client or ends with that line.
"""

from __future__ import annotations


class AustralisError(Exception):
    """Base of all own errors; `str()` is one line for a person, `sqlstate` what a SQL client should see."""

    sqlstate = "XX000"


class ProtocolError(AustralisError):
    """A peer sent bytes that are not a message of the protocol."""

    sqlstate = "08P01"


class WrongClusterError(AustralisError):
    """A peer or a directory belongs to another cluster, or to a format that this program does not know."""

    sqlstate = "08004"


class JournalError(AustralisError):
    """The journal cannot go on; the process that owns it must stop and read it again (rule J4)."""

    sqlstate = "58030"


class JournalDamagedError(JournalError):
    """Bytes of the journal that were acknowledged are not what was written.

    `segment` and `offset` say where. Never repaired by guessing.
    """

    sqlstate = "XX001"

    def __init__(self, segment: str, offset: int, cause: str) -> None:
        self.segment, self.offset, self.cause = segment, offset, cause
        super().__init__(
            f"journal segment {segment} is damaged at byte {offset}: {cause}; "
            "restore this file from a copy, or restore the cluster from a backup"
        )


class FencedError(JournalError):
    """Another generation has taken over the journal: nothing more of ours counts."""

    sqlstate = "57P01"


class JournalLockedError(JournalError):
    """Another process writes this journal."""

    sqlstate = "55006"


class JournalFullError(JournalError):
    """No space for another journal segment. Nothing was written, so the caller may try again."""

    sqlstate = "53100"


class PositionGoneError(JournalError):
    """The journal was trimmed beyond the position asked for."""


class StorageError(AustralisError):
    """Storage cannot serve."""

    sqlstate = "58030"
