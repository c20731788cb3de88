"""The feature level of a cluster: which formats are written, so that versions can be mixed while they are exchanged.

A program of level n reads formats of levels n-1 and n, and writes those of the level that the cluster's record names.
So a rolling upgrade is: exchange the programs one by one, then raise the level, after which formats of n appear.

    record = FeatureLevel()                              level 1, as a new cluster is
    check(record, SUPPORTED, "storage-2-1")              a role that starts; FeatureLevelError is its last line
    record = begin(record)                               write this down first: who starts now must read the next level
    record = finish(record, announced)                   then ask all that live; raised if every one can read it

What must hold: the level never falls, rises by one, and nobody who lives cannot read it. A role announces its levels
before it reads the record, and the record says that it is being raised before announcements are asked for: whoever
was not asked has seen the record. All of it is pure; the record and the announcements live in the key-value store
(control_plane/coordination.py), where a change needs the revision that it was made from. If that is away, nobody
starts and nothing is raised; who runs goes on.

What carries the level, and what changes with it: docs/formats.md, section 12.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from australis.errors import AustralisError

RECORD_KEY = "feature-level"
"""Where the record is; announcements are at `levels.<role instance>`, with a time to live."""

NEWEST = 1
"""The level of this program."""


class FeatureLevelError(AustralisError):
    """This program and the cluster's level do not go together."""

    sqlstate = "0A000"


class Levels(msgspec.Struct, frozen=True, array_like=True):
    """What a program can read: levels oldest to newest."""

    oldest: int
    newest: int

    def reads(self, level: int) -> bool:
        """Is it one of them?"""
        return self.oldest <= level <= self.newest


SUPPORTED = Levels(max(1, NEWEST - 1), NEWEST)
"""What this program can read."""


class FeatureLevel(msgspec.Struct, frozen=True, array_like=True):
    """The cluster's record: formats of `level` are written; `target` is `level`, or the next one while it is raised."""

    level: int = 1
    target: int = 1

    def encode(self) -> bytes:
        """As msgpack."""
        return msgspec.msgpack.encode(self)


def decode(data: bytes) -> FeatureLevel:
    """Reverse of encode; FeatureLevelError if these bytes are no such record."""
    try:
        record = msgspec.msgpack.decode(data, type=FeatureLevel)
    except msgspec.MsgspecError as error:
        raise FeatureLevelError(f"the cluster's feature level is not readable: {error}") from None
    if record.level < 1 or record.target not in (record.level, record.level + 1):
        raise FeatureLevelError(f"the cluster's feature level {record.level} with target {record.target} cannot be")
    return record


def check(record: FeatureLevel, levels: Levels, role: str) -> None:
    """Raise FeatureLevelError unless a role that reads these levels may start."""
    for level in (record.level, record.target):
        if level > levels.newest:
            raise FeatureLevelError(
                f"{role}: the cluster writes formats of level {level}, this program reads up to {levels.newest}; "
                "start a newer version"
            )
        if level < levels.oldest:
            raise FeatureLevelError(
                f"{role}: the cluster writes formats of level {level}, this program reads {levels.oldest} and later; "
                f"raise the cluster's level first, with a version that reads both"
            )


def begin(record: FeatureLevel) -> FeatureLevel:
    """Return the record that says that the level is being raised; the same if it says so already."""
    return FeatureLevel(record.level, record.level + 1)


def blocked_by(record: FeatureLevel, announced: Mapping[str, Levels]) -> list[str]:
    """Return who cannot read the level that is being raised to, in order of names."""
    return sorted(name for name, levels in announced.items() if not levels.reads(record.target))


def finish(record: FeatureLevel, announced: Mapping[str, Levels]) -> FeatureLevel:
    """Return the raised record if all that live can read it; else the one before (nothing is raised then).

    `announced`: of every role that lives, asked for after the record of `begin` was written.
    """
    if not announced or blocked_by(record, announced):
        return FeatureLevel(record.level, record.level)
    return FeatureLevel(record.target, record.target)
