"""The shared page: what processes of one host tell each other without a message (docs/formats.md §7, rule T3).

What must hold: every word is written with one aligned 64-bit store, by one process (the commit service words 1-6, 9 and
12, the storage service 7, 8, 10 and 11, a backend its slot). Words 5-6 are read as a pair under the sequence lock.
If the file is missing it is created; readers never see a partly initialised page because the magic is stored last.
"""

from __future__ import annotations

import mmap
import os
import struct
from enum import IntEnum
from pathlib import Path
from typing import Protocol, cast

from australis.errors import WrongClusterError

SLOTS = 1024
PAGE_BYTES = 4096 + SLOTS * 16
MAGIC = int.from_bytes(b"AUSPAGE1", "little", signed=True)


class Word(IntEnum):
    """Words of the page; `postgres/australis.h` has the same list."""

    MAGIC = 0
    CLUSTER = 1
    GENERATION = 3
    SEQLOCK = 4
    ACKED = 5
    DDL = 6
    APPLIED = 7
    HORIZON = 8
    COMMIT_PID = 9
    STORAGE_PID = 10
    STORE = 11  # incarnation of the store's files: another value = reopen them
    ISSUED = 12  # largest commit time ever issued; above everything that storage was fed
    SLOTS = 512


class _NativePage(Protocol):
    def page_open(self, path: str, create: bool) -> mmap.mmap: ...
    def page_store(self, page: object, word: int, value: int) -> None: ...
    def page_load(self, page: object, word: int) -> int: ...


def _native() -> _NativePage | None:
    try:
        from australis import _native as module
    except ImportError:  # not compiled (a checkout without build): the fallback below stores words with memcpy
        return None
    return cast(_NativePage, module)


class SharedPage:
    """The mapped page of one cluster."""

    def __init__(self, path: Path, cluster: bytes, *, create: bool = True) -> None:
        """Map the page; create it if it is missing. Raises WrongClusterError if it is another cluster's."""
        if create and not path.exists():
            self._initialise(path, cluster)
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size != PAGE_BYTES:
                raise WrongClusterError(f"{path} is not a shared page; stop the cluster and delete this file")
            self._map = mmap.mmap(file.fileno(), PAGE_BYTES)
        self._words = memoryview(self._map).cast("q")
        native = _native()
        self._store = native.page_store if native is not None else None
        self._load = native.page_load if native is not None else None
        if self.load(Word.MAGIC) != MAGIC or bytes(self._map[8:24]) != cluster:
            raise WrongClusterError(f"{path} belongs to another cluster; stop the cluster and delete this file")

    @staticmethod
    def _initialise(path: Path, cluster: bytes) -> None:
        # Two processes may start at once: each writes its own file, the first link wins and both map that one.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        content = struct.pack("<q16s", MAGIC, cluster)
        temporary.write_bytes(content + bytes(PAGE_BYTES - len(content)))
        try:
            os.link(temporary, path)
        except FileExistsError:
            return  # the other process was first
        finally:
            temporary.unlink()

    def load(self, word: int) -> int:
        """Read one word."""
        if self._load is not None:
            return self._load(self._map, word)
        return self._words[word]

    def store(self, word: int, value: int) -> None:
        """Write one word."""
        if self._store is not None:
            self._store(self._map, word, value)
        else:
            self._words[word] = value

    def publish(self, acked: int, ddl: int) -> None:
        """Write the last acknowledged time and DDL record as a pair. For the commit service only."""
        lock = self.load(Word.SEQLOCK) | 1  # a predecessor may have died while it was odd
        self.store(Word.SEQLOCK, lock)
        self.store(Word.ACKED, acked)
        self.store(Word.DDL, ddl)
        self.store(Word.SEQLOCK, lock + 1)

    def oldest_slot(self) -> int | None:
        """Return the oldest tau_start in use by a living process; None if there is none."""
        words = self._words[Word.SLOTS : Word.SLOTS + 2 * SLOTS].tolist()
        oldest: int | None = None
        for tau, pid in zip(words[::2], words[1::2], strict=True):
            if tau > 0 and (oldest is None or tau < oldest) and process_lives(pid):
                oldest = tau
        return oldest

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
        self._map.close()


def process_lives(pid: int) -> bool:
    """Is there a process with this id on this host?"""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
