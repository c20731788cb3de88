"""Files in memory that can lose power: what the journal's durability is tested against.

Every file has two contents: what a reader of the page cache sees, and what is on the disk. `write_synced` moves the
new sectors to the disk before it returns, so losing power within it leaves any subset of them. Faults are armed by
number of operation; the layer is deterministic for a seed.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Sequence
from pathlib import Path

SECTOR = 512


class PowerLossError(OSError):
    """The machine is off: nothing works any more until `reboot`."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "power lost")


class _File:
    def __init__(self, size: int) -> None:
        self.cache = bytearray(size)
        self.disk = bytearray(size)


class MemoryFiles:
    """A FileLayer for tests."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.files: dict[Path, _File] = {}
        self.disk_names: dict[Path, _File] = {}  # what a reboot finds
        self.operations = 0
        self.power_loss_at = -1  # number of the operation within which power is lost
        self.write_error_at = -1  # number of the operation that fails with EIO, its bytes perhaps in the cache only
        self.space = 1 << 40  # bytes that may still be created
        self.off = False
        self._fds: dict[int, _File] = {}
        self._next_fd = 100
        self._mutex = threading.RLock()
        self.locked = False

    def _operation(self) -> bool:
        """Count an operation; True if power is lost within it."""
        if self.off:
            raise PowerLossError
        self.operations += 1
        return self.operations == self.power_loss_at

    def _lose_power(self) -> PowerLossError:
        self.off = True
        return PowerLossError()

    def reboot(self) -> None:
        """Start again with what is on the disk; removed and new names may or may not have made it."""
        with self._mutex:
            for path in set(self.files) - set(self.disk_names):
                if self.random.random() < 0.5:
                    self.disk_names[path] = self.files[path]
            for path in set(self.disk_names) - set(self.files):
                if self.random.random() < 0.5:
                    del self.disk_names[path]
            self.files = dict(self.disk_names)
            for file in self.files.values():
                file.cache = bytearray(file.disk)
            self.off = self.locked = False
            self.power_loss_at = self.write_error_at = -1
            self._fds.clear()

    def kill(self) -> None:
        """The process is killed: the page cache stays."""
        with self._mutex:
            self.off = self.locked = False
            self.power_loss_at = self.write_error_at = -1
            self._fds.clear()

    # ------------------------------------------------------------------------------------------------- FileLayer

    def names(self, directory: Path) -> list[str]:
        with self._mutex:
            return sorted(path.name for path in self.files if path.parent == directory)

    def size(self, path: Path) -> int:
        with self._mutex:
            return len(self.files[path].cache)

    def free(self, directory: Path) -> int:
        with self._mutex:
            return self.space

    def create_zeroed(self, path: Path, size: int) -> None:
        with self._mutex:
            if self._operation():
                raise self._lose_power()
            if size > self.space:
                raise OSError(errno.ENOSPC, "no space")
            self.space -= size
            self.files[path] = _File(size)

    def open(self, path: Path) -> int:
        with self._mutex:
            if path not in self.files:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self._next_fd += 1
            self._fds[self._next_fd] = self.files[path]
            return self._next_fd

    def close(self, fd: int) -> None:
        with self._mutex:
            self._fds.pop(fd, None)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        with self._mutex:
            return bytes(self._fds[fd].cache[offset : offset + length])

    def write_synced(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> None:
        with self._mutex:
            data = b"".join(buffers)
            lost = self._operation()
            file = self._fds[fd]
            assert offset + len(data) <= len(file.cache), "the journal never extends a file"
            file.cache[offset : offset + len(data)] = data
            failing = self.operations == self.write_error_at
            if lost or failing:
                # any subset of the sectors may have arrived, in any order
                for start in range(offset - offset % SECTOR, offset + len(data), SECTOR):
                    if self.random.random() < 0.5:
                        file.disk[start : start + SECTOR] = file.cache[start : start + SECTOR]
                if lost:
                    raise self._lose_power()
                raise OSError(errno.EIO, "write failed")
            file.disk[offset : offset + len(data)] = data

    def sync(self, fd: int) -> None:
        with self._mutex:
            if self._operation():
                raise self._lose_power()
            # after a failed sync the kernel thinks its pages are clean: syncing again changes nothing

    def rename(self, old: Path, new: Path) -> None:
        with self._mutex:
            lost = self._operation()
            file = self.files.pop(old)
            self.files[new] = file
            if lost and self.random.random() < 0.5:
                raise self._lose_power()
            self.disk_names.pop(old, None)
            self.disk_names[new] = file
            if lost:
                raise self._lose_power()

    def remove(self, path: Path) -> None:
        with self._mutex:
            if self._operation():
                raise self._lose_power()
            self.space += len(self.files[path].cache)
            del self.files[path]

    def lock(self, path: Path) -> int:
        with self._mutex:
            if self.locked:
                raise BlockingIOError
            self.locked = True
            self.files.setdefault(path, _File(0))
            return self.open(path)
