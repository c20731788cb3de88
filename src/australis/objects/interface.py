"""What an object store does for us, and its errors. Two drivers; one contract test (tests/objects/test_contract.py).

Keys are paths of names made of letters, digits, `.`, `_` and `-`, joined by `/`, at most MAX_KEY bytes; no name begins
with a dot. What must hold: an object appears whole or not at all, and stays as it is until it is put again or deleted;
what put() returned for is durable; nobody holds more than a few pieces of PIECE bytes of an object in memory. Bytes
that come back are compared with what their reader expects (`Stored`): an object store that lies is an error, never an
answer.

Calls block, so they belong into a thread; each ends within the driver's time limit, its own retries of idempotent
requests included. Each failure is one of the errors below, in one line, and leaves nothing half-done behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import crc32c

from australis.errors import AustralisError

MAX_KEY = 512
PIECE = 8 << 20
"""Bytes of a stream that are in memory at once."""

MAX_OBJECT = 64 << 20
"""Objects that may be read or written in one piece, at most."""

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]+")


class ObjectError(AustralisError):
    """Base of the errors of object stores."""

    sqlstate = "58030"


class InvalidObjectUrlError(ObjectError):
    """Not the URL of an object store, or not a key."""

    sqlstate = "22023"


class MissingObjectError(ObjectError):
    """There is no such object."""

    sqlstate = "58P01"


class ConflictError(ObjectError):
    """A conditional put found another object, or another version, than its condition says. Nothing was changed.

    Also when an earlier attempt of the same call arrived and its answer was lost: who must know reads the object.
    """

    sqlstate = "55000"


class DamagedObjectError(ObjectError):
    """What came back is not what was written."""

    sqlstate = "XX001"


class UnreachableError(ObjectError):
    """The store does not answer, fails, or is not there. A put may have happened or not."""


class DeniedError(ObjectError):
    """The store refuses us: credentials or permissions."""

    sqlstate = "42501"


class StoreFullError(ObjectError):
    """No space left. Nothing was stored."""

    sqlstate = "53100"


@dataclass(frozen=True, slots=True)
class Stored:
    """What an object must look like when it is read: size in bytes, CRC-32C."""

    size: int
    checksum: int

    @staticmethod
    def of(data: bytes) -> Stored:
        """Of these bytes."""
        return Stored(len(data), checksum(data))


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing."""

    key: str
    size: int


class ObjectStore(Protocol):
    """A place for objects; methods may be called from any thread. Every method raises ObjectError's kinds only."""

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        ...

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None) -> str:
        """Store at most MAX_OBJECT bytes; returns the version.

        `if_absent`: ConflictError if there is such an object; `if_version`: ConflictError unless it has this version.
        """
        ...

    def put_stream(self, key: str, pieces: Iterable[bytes]) -> Stored:
        """Store an object of any size, unconditionally; it appears when the last piece has arrived.

        If `pieces` raises, nothing is stored and its error goes on to the caller.
        """
        ...

    def get(self, key: str, expected: Stored | None = None, *, limit: int = MAX_OBJECT) -> tuple[bytes, str]:
        """Return a whole object and its version; DamagedObjectError if it is not as expected or above the limit."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; DamagedObjectError if the object is shorter. Nothing checks them."""
        ...

    def get_stream(self, key: str, expected: Stored | None = None) -> Iterator[bytes]:
        """Return an object in pieces of at most PIECE bytes; DamagedObjectError at its end if not as expected."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below the folder `prefix`, in order of keys; may lag behind puts and deletes of others."""
        ...

    def delete(self, key: str) -> None:
        """Delete; that it is not there is no error."""
        ...


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """CRC-32C of bytes, or going on from `before`."""
    return int(crc32c.crc32c(data, before))


def check_key(key: str) -> str:
    """Return the key; InvalidObjectUrlError unless it is one."""
    if len(key) > MAX_KEY or not all(_NAME.fullmatch(name) for name in key.split("/")):
        raise InvalidObjectUrlError(f"{key[:80]!r} is not the key of an object")
    return key


def check_size(where: str, size: int, limit: int = MAX_OBJECT) -> None:
    """Raise StoreFullError unless an object of this size may be put in one piece."""
    if size > limit:
        raise StoreFullError(f"{where}: {size} bytes are too many for one piece, at most {limit}")


def verify(where: str, data: bytes, expected: Stored | None) -> None:
    """Raise DamagedObjectError unless these are the bytes that were stored."""
    if expected is None:
        return
    if len(data) != expected.size:
        raise DamagedObjectError(f"{where} has {len(data)} bytes instead of {expected.size}")
    if checksum(data) != expected.checksum:
        raise DamagedObjectError(f"{where} has other bytes than were written (checksum)")


def verified(where: str, pieces: Iterator[bytes], expected: Stored | None) -> Iterator[bytes]:
    """Hand pieces on, and raise DamagedObjectError at the end (or as soon as it is too long) if they are others."""
    size = value = 0
    for piece in pieces:
        size += len(piece)
        value = checksum(piece, value)
        if expected is not None and size > expected.size:
            raise DamagedObjectError(f"{where} has more than {expected.size} bytes")
        yield piece
    if expected is None:
        return
    if size != expected.size:
        raise DamagedObjectError(f"{where} has {size} bytes instead of {expected.size}")
    if value != expected.checksum:
        raise DamagedObjectError(f"{where} has other bytes than were written (checksum)")
