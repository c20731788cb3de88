"""The shared page: what processes of one host tell each other without a message (docs/formats.md §7, rule T3).

What must hold: every word is written with one aligned 64-bit store, by one process (the commit service words 1-6, 9 and
12, the storage service 7, 8, 10 and 11, a query processor its own four, a backend its slot), but for counters, which
many add to (13 and the third of a query processor's). Words 5-6 are read as a pair under the sequence lock.
If the file is missing it is created; readers never see a partly initialised page because the magic is stored last.
"""

from __future__ import annotations

import mmap
import os
import struct
from enum import IntEnum
from pathlib import Path

from australis._native import page_load, page_store, page_store_acked, page_wake
from australis.errors import WrongClusterError

PROCESSORS = 16
"""Query processors that one host can have."""

SLOTS = 1024
"""Slots of each of them."""

PAGE_BYTES = 4096 + PROCESSORS * SLOTS * 16
_BYTES_OF_ONE = 4096 + SLOTS * 16
"""Pages of earlier versions have room for one query processor; the rest is the same."""

MAGIC = int.from_bytes(b"AUSPAGE1", "little", signed=True)


DISK_FULL = -1
"""In STORAGE_PID: storage cannot apply before there is space."""


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
    SETVALS = 13  # counted by query processors
    GATEWAY = 14  # 1: a gateway runs this host's part of a cluster of several
    PROCESSORS = 64  # four words per query processor, written by it; others add to the third
    SLOTS = 512


class SharedPage:
    """The mapped page of one cluster."""

    def __init__(self, path: Path, cluster: bytes, *, create: bool = True) -> None:
        """Map the page; create it if it is missing. Raises WrongClusterError if it is another cluster's."""
        if create and not path.exists():
            self._initialise(path, cluster)
        with path.open("r+b") as file:
            if create and os.fstat(file.fileno()).st_size == _BYTES_OF_ONE:
                os.posix_fallocate(file.fileno(), 0, PAGE_BYTES)
            if os.fstat(file.fileno()).st_size != PAGE_BYTES:
                raise WrongClusterError(f"{path} is not a shared page; stop the cluster and delete this file")
            self.map = mmap.mmap(file.fileno(), PAGE_BYTES)
            """For native functions that publish by themselves."""
        self._words = memoryview(self.map).cast("q")
        if self.load(Word.MAGIC) != MAGIC or bytes(self.map[8:24]) != cluster:
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
        return page_load(self.map, word)

    def store(self, word: int, value: int) -> None:
        """Write one word."""
        page_store(self.map, word, value)

    def wake(self, word: int) -> None:
        """Wake the processes that sleep until this word changes (`au_page_wait` in postgres/shmem.c)."""
        page_wake(self.map, word)

    def publish(self, acked: int, ddl: int) -> None:
        """Write the last acknowledged time and DDL record as a pair. For the commit service only."""
        page_store_acked(self.map, acked, ddl)

    def oldest_slot(self) -> int | None:
        """Return the oldest tau_start in use by a living process; None if there is none."""
        oldest: int | None = None
        for first in range(Word.SLOTS, Word.SLOTS + PROCESSORS * 2 * SLOTS, 2 * SLOTS):
            used = len(self._words[first : first + 2 * SLOTS].tobytes().rstrip(b"\0"))  # few have ever been
            words = self._words[first : first + 2 * ((used + 15) // 16)].tolist()
            for tau, pid in zip(words[::2], words[1::2], strict=True):
                if tau > 0 and (oldest is None or tau < oldest) and process_lives(pid):
                    oldest = tau
        return oldest

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
        self.map.close()


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
