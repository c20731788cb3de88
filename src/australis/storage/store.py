"""What the storage service needs of a store; `australis._native.Store` implements it (docs/formats.md §4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from mmap import mmap
from pathlib import Path
from typing import Protocol

from australis._native import DamagedError, FullError, MalformedError, StoreError, TooOldError
from australis._native import Store as NativeStore

DATA_FILE = "data.mdb"


class Store(Protocol):
    """One writer, any number of readers; every method may be called from any thread."""

    def apply(
        self,
        records: Iterable[tuple[int, bytes]],
        position: bytes | None = None,
        meta: tuple[str, bytes] | None = None,
    ) -> None:
        """Apply records in time order, atomically with the position (S1) and a record about the store."""
        ...

    def apply_feed(self, received: memoryview, avoided: bytes) -> tuple[int, int, int, int, int, bytes] | None:
        """Apply the plain commits at the front of what was received, which write to none of those; None: no such."""
        ...

    def follow_feed(
        self,
        socket: int,
        buffer: memoryview,
        avoided: bytes,
        watched: bytearray,
        page: mmap,
        word: int,
        until: float,
        /,
    ) -> tuple[int, int, int, int, int, int, int, int, bytes]:
        """Receive, apply and publish plain commits until there is something else to do."""
        ...

    def rollback(self, tau: int) -> None:
        """Undo all commits above tau (T3)."""
        ...

    def collect(self, horizon: int, max_entries: int) -> int:
        """Raise the horizon and remove versions that nobody needs; fewer than asked for: done."""
        ...

    def drop(self, relid: int, max_entries: int) -> bool:
        """Remove entries of a storage id; True: none left."""
        ...

    def erase(self, lo: bytes, hi: bytes, max_entries: int) -> bool:
        """Remove keys of a range that is not held any more; True: none left."""
        ...

    def split(self, lo: bytes, hi: bytes, max: int, /) -> list[bytes]:
        """Keys that cut a range into about equal parts."""
        ...

    def export(self, lo: bytes, hi: bytes, max_bytes: int, /) -> tuple[bytes, bytes, int, int]:
        """All versions of the first keys of a range: a page, where to go on (b'': the end), applied, horizon."""
        ...

    def import_page(
        self, page: bytes, lo: bytes, hi: bytes, applied: int, horizon: int, ranges: bytes, garbage: bytes, /
    ) -> None:
        """Take over a page of keys in [lo, hi), none of which is here, with the records "ranges" and "garbage"."""
        ...

    def get_many(self, keys: Sequence[bytes], tau: int) -> bytes:
        """Read keys."""
        ...

    def scan(self, lo: bytes, hi: bytes, backward: bool, tau: int, max_rows: int, max_bytes: int) -> tuple[bytes, bool]:
        """Read a range."""
        ...

    def scan_where(
        self,
        lo: bytes,
        hi: bytes,
        backward: bool,
        tau: int,
        max_rows: int,
        max_bytes: int,
        filter: bytes,
        max_examined: int,
    ) -> tuple[bytes, bool, bytes]:
        """Read what a filter (docs/formats.md §5) lets through, and where to go on; MalformedError if it is none."""
        ...

    def stats(self, relids: Sequence[int]) -> list[tuple[int, int]]:
        """Rows and bytes."""
        ...

    def meta(self, key: str) -> bytes | None:
        """Read a record about the store."""
        ...

    def set_meta(self, key: str, value: bytes) -> None:
        """Write a record about the store."""
        ...

    def set_ranges(self, packed: bytes) -> None:
        """Apply only keys in these ranges from now on (`pack_ranges`)."""
        ...

    def sync(self, clean: bool = False) -> None:
        """Make the files durable; `clean` says that they are whole (S2)."""
        ...

    def copy(self, path: str | Path) -> None:
        """Write a compact copy."""
        ...

    def reader_check(self) -> int:
        """Free what dead readers held."""
        ...

    def size(self) -> dict[str, int]:
        """Sizes in pages and entries."""
        ...

    def close(self) -> None:
        """Close."""
        ...

    @property
    def applied(self) -> int:
        """Newest applied time."""
        ...

    @property
    def horizon(self) -> int:
        """Reads below are refused."""
        ...

    @property
    def replaced(self) -> bool:
        """Was the file below us deleted or exchanged?"""
        ...


def pack_ranges(ranges: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Ranges [lo, hi) as `Store.set_ranges` takes them."""
    return b"".join(len(bound).to_bytes(2, "big") + bound for lo_and_hi in sorted(ranges) for bound in lo_and_hi)


def open_store(directory: Path, cluster: bytes, *, restored: bool = False) -> Store:
    """Open or create; DamagedError if it must be rebuilt."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return NativeStore(str(directory), cluster, restored=restored)


__all__ = [
    "DATA_FILE",
    "DamagedError",
    "FullError",
    "MalformedError",
    "Store",
    "StoreError",
    "TooOldError",
    "open_store",
    "pack_ranges",
]
