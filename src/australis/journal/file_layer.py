"""The operations on files that the journal's durability rests on, as an interface.

What must hold: `write_synced` returns only when the bytes are durable; every other method says what it promises. Tests
put a layer with lost writes, torn writes and full disks in its place. Errors are OSError, as the kernel said them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

type_buffers = Sequence[bytes | memoryview]


class FileLayer(Protocol):
    """Files of one directory."""

    def names(self, directory: Path) -> list[str]:
        """Names in the directory, sorted."""
        ...

    def size(self, path: Path) -> int:
        """Bytes of the file."""
        ...

    def free(self, directory: Path) -> int:
        """Bytes that may still be written on the directory's disk, as far as is known."""
        ...

    def create_zeroed(self, path: Path, size: int) -> None:
        """Create a file of zeros, written and synced (not its name)."""
        ...

    def open(self, path: Path) -> int:
        """Open for reading and writing."""
        ...

    def close(self, fd: int) -> None:
        """Close."""
        ...

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Read up to length bytes."""
        ...

    def write_synced(self, fd: int, buffers: type_buffers, offset: int) -> None:
        """Write all buffers one after the other and make them durable."""
        ...

    def sync(self, fd: int) -> None:
        """Make everything written to the file durable."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Rename within the directory and make the names durable."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file (the removal itself need not be durable)."""
        ...

    def lock(self, path: Path) -> int:
        """Take the lock file for this process; BlockingIOError if another one has it."""
        ...


_IOV_MAX = 1000
_ZEROS = bytes(1 << 20)
# struct flock of 64-bit Linux: type, whence, start, len, pid
_FLOCK = struct.Struct("hhqqi4x")


class OsFiles:
    """The operating system's files."""

    def __init__(self, *, dsync: bool = True) -> None:
        """`dsync=False` uses fdatasync after each write even where RWF_DSYNC exists."""
        self._dsync = dsync and hasattr(os, "RWF_DSYNC")

    def names(self, directory: Path) -> list[str]:
        """List the directory."""
        return sorted(os.listdir(directory))

    def size(self, path: Path) -> int:
        """Return the file's size."""
        return path.stat().st_size

    def free(self, directory: Path) -> int:
        """Return the free space of the file system; quotas are not seen."""
        disk = os.statvfs(directory)
        return disk.f_bavail * disk.f_frsize

    def create_zeroed(self, path: Path, size: int) -> None:
        """Write zeros rather than fallocate: unwritten extents would cost metadata at every later write.

        Synced piece by piece: commits that are written meanwhile wait for one piece at most, not for all of it.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            at = 0
            while at < size:
                at += os.pwrite(fd, memoryview(_ZEROS)[: size - at], at)
                os.fdatasync(fd)
            os.fsync(fd)
        except OSError:
            os.unlink(path)  # half a segment must not keep the disk full
            raise
        finally:
            os.close(fd)

    def open(self, path: Path) -> int:
        """Open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close."""
        os.close(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Read up to length bytes; short only at the end of the file."""
        chunks: list[bytes] = []
        while length > 0:
            chunk = os.pread(fd, length, offset)
            if not chunk:
                break
            chunks.append(chunk)
            length -= len(chunk)
            offset += len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def write_synced(self, fd: int, buffers: type_buffers, offset: int) -> None:
        """Write with RWF_DSYNC where the file system knows it, else fdatasync afterwards."""
        for start in range(0, len(buffers), _IOV_MAX):
            offset = self._write_some(fd, buffers[start : start + _IOV_MAX], offset)
        if not self._dsync:
            os.fdatasync(fd)

    def _write_some(self, fd: int, buffers: type_buffers, offset: int) -> int:
        total = sum(map(len, buffers))
        try:
            written = os.pwritev(fd, buffers, offset, os.RWF_DSYNC if self._dsync else 0)
        except OSError as error:
            if self._dsync and error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._dsync = False  # nothing was written: the flag is checked first
                return self._write_some(fd, buffers, offset)
            raise
        end = offset + total
        offset += written
        if offset < end:
            # a short write is no error yet: the rest either goes through or says what is wrong
            rest = memoryview(b"".join(buffers))[written:]
            while rest:
                written = os.pwritev(fd, [rest], offset, os.RWF_DSYNC if self._dsync else 0)
                rest = rest[written:]
                offset += written
        return end

    def sync(self, fd: int) -> None:
        """fdatasync."""
        os.fdatasync(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Rename, then sync the directory."""
        os.rename(old, new)
        fd = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove(self, path: Path) -> None:
        """Unlink."""
        os.unlink(path)

    def lock(self, path: Path) -> int:
        """Open-file-description lock: it ends with this process, however it ends."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError:
            os.close(fd)
            raise
        return fd
