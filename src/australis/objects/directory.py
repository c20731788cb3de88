"""Objects as files below a directory: on this machine, or mounted.

An object is written under a hidden name, synced, read once more, given its name by link or rename, and the directory
is synced. What must hold: a crash leaves the old object or the new one, and never a name without its bytes. Hidden
files of writers that were killed are removed when the store is opened: a living one holds a lock on its own.

If the disk is full or fails, the call says so and removes what it had written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from australis.objects.interface import (
    MAX_OBJECT,
    PIECE,
    ConflictError,
    DamagedObjectError,
    DeniedError,
    Entry,
    InvalidObjectUrlError,
    MissingObjectError,
    ObjectError,
    Stored,
    StoreFullError,
    UnreachableError,
    check_key,
    check_size,
    checksum,
    verified,
    verify,
)

_WRITING = ".writing-"
_LOCK = ".lock"
_ATTEMPTS = 100


class DirectoryStore:
    """A directory; it is made if only its last component is missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with self._errors("open", ""):
            try:
                root.mkdir(mode=0o700)
            except FileExistsError:
                if not root.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            except FileNotFoundError:
                raise UnreachableError(f"{self.url}: the directory {root.parent} does not exist") from None
            else:
                _sync(root.parent)
            self._sweep()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"file://{self._root}"

    # ------------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None) -> str:
        """Store; returns the version."""
        check_size(f"{self.url}/{key}", len(data))
        with self._errors("put", key):
            return self._put(key, [data], if_absent, if_version)[1]

    def put_stream(self, key: str, pieces: Iterable[bytes]) -> Stored:
        """Store an object of any size."""
        # errors of `pieces` itself are the caller's; they must not look like errors of this store
        return self._put(key, pieces, False, None)[0]

    def _put(self, key: str, pieces: Iterable[bytes], if_absent: bool, if_version: str | None) -> tuple[Stored, str]:
        target = self._path(key)
        with self._errors("put", key):
            fd, working = self._create(target.parent)
        named = False
        try:
            size = value = 0
            for piece in pieces:
                with self._errors("put", key):
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(fd, view) :]
                size += len(piece)
                value = checksum(piece, value)
            stored = Stored(size, value)
            with self._errors("put", key):
                os.fsync(fd)
                self._read_once_more(fd, key, stored)
                if if_absent:
                    os.link(working, target)
                elif if_version is not None:
                    with self._only_one():
                        if self._version(target) != if_version:
                            raise FileExistsError(errno.EEXIST, "another version")
                        os.rename(working, target)
                        named = True
                else:
                    os.rename(working, target)
                    named = True
                _sync(target.parent)
                return stored, _version_of(os.fstat(fd))
        finally:
            if not named:
                working.unlink(missing_ok=True)
            os.close(fd)

    def _create(self, folder: Path) -> tuple[int, Path]:
        """Make a hidden file that is locked by us, in a folder that is there and durable."""
        if not self._root.is_dir():  # a mount that is away, perhaps: never made anew in silence
            raise UnreachableError(f"{self.url}: the directory does not exist any more")
        for _ in range(_ATTEMPTS):
            missing = [folder]
            while not missing[-1].is_dir() and missing[-1] != self._root:
                missing.append(missing[-1].parent)
            working = folder / f"{_WRITING}{secrets.token_hex(8)}"
            try:
                for parent in reversed(missing[:-1]):
                    parent.mkdir(mode=0o700, exist_ok=True)
                    _sync(parent.parent)
                fd = os.open(working, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # somebody deleted the last object of a folder, and so the folder
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd, working
            os.close(fd)  # somebody who opened the store took it for a leftover before we had locked it
        raise UnreachableError(f"{self.url}: the folder {folder} disappears again and again")

    def _read_once_more(self, fd: int, key: str, stored: Stored) -> None:
        """From the disk where the system can, else from its cache."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at = value = 0
        while block := os.pread(fd, 1 << 20, at):
            at += len(block)
            value = checksum(block, value)
        if Stored(at, value) != stored:
            raise DamagedObjectError(f"{self.url}/{key}: the disk gives other bytes back than were written")

    def delete(self, key: str) -> None:
        """Delete; folders that become empty go too."""
        path = self._path(key)
        with self._errors("delete", key):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            folder = path.parent
            while True:
                try:
                    _sync(folder)
                    if folder == self._root:
                        return
                    folder.rmdir()
                except FileNotFoundError:
                    pass  # somebody else's delete was faster
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        return
                    raise
                folder = folder.parent

    def _sweep(self) -> None:
        """Remove what killed writers left."""
        for folder, _, names in os.walk(self._root):
            for name in names:
                if not name.startswith(_WRITING):
                    continue
                path = Path(folder, name)
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                except BlockingIOError:
                    pass  # its writer lives
                finally:
                    os.close(fd)

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """Between comparing a version and replacing it."""
        fd = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # ------------------------------------------------------------------------------------------------------- reading

    def get(self, key: str, expected: Stored | None = None, *, limit: int = MAX_OBJECT) -> tuple[bytes, str]:
        """A whole object and its version."""
        where = f"{self.url}/{key}"
        with self._errors("get", key), self._path(key).open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size > limit:
                raise DamagedObjectError(f"{where} has {status.st_size} bytes, more than the {limit} it may have")
            data = file.read(limit + 1)
        verify(where, data, expected)
        return data, _version_of(status)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Some bytes of an object."""
        _check_range(start, length)
        with self._errors("get", key), self._path(key).open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise DamagedObjectError(f"{self.url}/{key} ends before byte {start + length}")
        return data

    def get_stream(self, key: str, expected: Stored | None = None) -> Iterator[bytes]:
        """An object in pieces."""
        return verified(f"{self.url}/{key}", self._pieces(key), expected)

    def _pieces(self, key: str) -> Iterator[bytes]:
        with self._errors("get", key):
            file = self._path(key).open("rb")
        with file:
            while True:
                with self._errors("get", key):
                    piece = file.read(PIECE)
                if not piece:
                    return
                yield piece

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below a folder."""
        prefix = prefix.rstrip("/")
        start = self._path(prefix) if prefix else self._root
        with self._errors("list", prefix):
            if not self._root.is_dir():
                raise UnreachableError(f"{self.url}: the directory does not exist any more")
        entries: list[Entry] = []
        folders = [start]
        with self._errors("list", prefix):
            while folders:
                folder = folders.pop()
                try:
                    with os.scandir(folder) as found:
                        for item in found:
                            if item.name.startswith("."):
                                continue
                            if item.is_dir(follow_symlinks=False):
                                folders.append(Path(item.path))
                                continue
                            try:
                                size = item.stat().st_size
                            except FileNotFoundError:
                                continue  # deleted meanwhile
                            entries.append(Entry(str(Path(item.path).relative_to(self._root)), size))
                except (FileNotFoundError, NotADirectoryError):
                    continue  # nothing was ever put there, or it was deleted meanwhile
        entries.sort(key=lambda entry: entry.key)
        return iter(entries)

    # ------------------------------------------------------------------------------------------------------- helpers

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @staticmethod
    def _version(path: Path) -> str | None:
        try:
            return _version_of(path.stat())
        except FileNotFoundError:
            return None

    @contextmanager
    def _errors(self, what: str, key: str) -> Iterator[None]:
        """Say in our own words what the system said."""
        try:
            yield
        except ObjectError:
            raise
        except OSError as error:
            where = f"{self.url}/{key}" if key else self.url
            raise _translate(error)(f"{where}: cannot {what}: {error.strerror or error}") from None


def _translate(error: OSError) -> type[ObjectError]:
    match error.errno:
        case errno.ENOENT:
            return MissingObjectError
        case errno.EEXIST:
            return ConflictError
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return StoreFullError
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return DeniedError
        case errno.ENAMETOOLONG:
            return InvalidObjectUrlError
        case _:
            return UnreachableError


def _version_of(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _check_range(start: int, length: int) -> None:
    if start < 0 or not 0 <= length <= MAX_OBJECT:
        raise InvalidObjectUrlError(f"bytes {start} + {length} are no range of an object")


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
