"""The native store and the shared page (native/module.c). Formats: docs/formats.md, sections 4, 5 and 7."""

from collections.abc import Iterable, Sequence
from mmap import mmap
from os import PathLike
from typing import Self, final

from typing_extensions import Buffer

MAX_KEY: int

class StoreError(Exception):
    """The store refuses or fails; the message says why."""

class DamagedError(StoreError):
    """The contents cannot be trusted (damage, or the machine stopped before a sync): rebuild from the journal."""

class TooOldError(StoreError):
    """A read or rollback below the horizon."""

class FullError(StoreError):
    """Disk or map full. Nothing was changed and the store stays usable."""

class MalformedError(StoreError):
    """A message to apply, or the filter of a scan, is not well-formed. Nothing was done."""

@final
class Store:
    """Multi-version store in directory ``path``. Thread-safe; calls release the GIL. Open it once per process."""

    def __init__(
        self,
        path: str | PathLike[str],
        cluster: bytes,
        map_size: int = 1 << 40,
        *,
        read_only: bool = False,
        restored: bool = False,
    ) -> None:
        """Open or create it. ``restored``: ``data.mdb`` was just put there from ``copy()``; trust it without its mark.

        Raises DamagedError if it has to be rebuilt, StoreError if another cluster's, in use or (read_only) absent.
        """

    def apply(
        self,
        records: Iterable[tuple[int, Buffer]],
        position: bytes | None = None,
        meta: tuple[str, Buffer] | None = None,
    ) -> None:
        """Apply journal records (τ, body of a Commit, Ingest or Drop message) in τ order.

        Atomically with ``position`` and with ``meta``, the name and value of a record as of ``set_meta``.

        Records at or below ``applied`` are skipped. Drops are not executed: call ``drop`` when the horizon allows it.
        """

    def apply_feed(self, received: Buffer, avoided: Buffer = b"") -> tuple[int, int, int, int, int, bytes] | None:
        """Apply the plain commits at the front of what the feed has sent, as ``apply`` does, in one batch.

        Returns records, bytes, and of the last record τ, sequence, generation and hash. None: the first message is no
        such commit (above ``applied``, without drops, without a key of a relation in ``avoided``: ids as 8 big-endian
        bytes each, sorted) or not complete; nothing was done.
        """

    def follow_feed(
        self,
        socket: int,
        buffer: Buffer,
        avoided: Buffer,
        watched: Buffer,
        page: Page | mmap,
        word: int,
        until: float,
        /,
    ) -> tuple[int, int, int, int, int, int, int, int, bytes]:
        """Receive from the feed, ``apply_feed`` and publish τ in a word of the page, again and again.

        Until something else was received, a batch was applied while the byte ``watched`` is not 0, the socket's time
        limit has passed, or it is ``until`` (``time.monotonic()``). Returns records, bytes, batches, error, left, and
        of the last record τ, sequence, generation and hash. ``error``: 0, an errno, or -1 if the feed ended; ``left``:
        how many bytes of the buffer were received and not applied.
        """

    def ingest(self, tau: int, body: Buffer) -> None:
        """``apply([(tau, body)])``, without moving the position. In order with the other records, like them."""

    def rollback(self, tau: int) -> None:
        """Undo every commit above ``tau`` (not ingested chunks). The position stays; raises TooOldError."""

    def collect(self, horizon: int, max_entries: int) -> int:
        """Raise the horizon, remove at most that many versions no longer needed; fewer removed means done."""

    def drop(self, relid: int, max_entries: int) -> bool:
        """Remove at most that many entries of a relation id; True when none is left."""

    def erase(self, lo: Buffer, hi: Buffer, max_entries: int) -> bool:
        """Remove at most that many keys of [lo, hi) (empty ``hi``: no end) and their stats; True when none is left.

        For a range that this store does not hold any more: nobody may read or apply it. History stays until collected.
        """

    def split(self, lo: Buffer, hi: Buffer, max: int) -> list[bytes]:
        """Return at most that many (and 256) keys, ascending, that cut [lo, hi) into about equal parts.

        Empty: from the first key, to the last one. Keys are cut to 255 bytes.
        """

    def export(self, lo: Buffer, hi: Buffer, max_bytes: int) -> tuple[bytes, bytes, int, int]:
        """Return (page, next, applied, horizon) as of one moment: all versions of the first keys of [lo, hi).

        Empty ``next``: nothing is left; else the key to go on with. Empty bounds: the first key, no end.
        """

    def import_page(
        self,
        page: Buffer,
        lo: Buffer,
        hi: Buffer,
        applied: int,
        horizon: int,
        ranges: Buffer,
        garbage: Buffer,
    ) -> None:
        """Take over a page of ``export`` with keys in [lo, hi), and set the meta records "ranges" and "garbage".

        StoreError, and nothing is changed, if this store holds one of these keys, has applied more than ``applied``, or
        the page is damaged.
        """

    def get_many(self, keys: Sequence[bytes], tau: int) -> bytes:
        """A batch with one entry per key, in that order."""

    def scan(
        self, lo: Buffer, hi: Buffer, backward: bool, tau: int, max_rows: int, max_bytes: int
    ) -> tuple[bytes, bool]:
        """A batch of [lo, hi) (empty ``hi``: no end), and whether the range goes on behind its last key."""

    def scan_where(
        self,
        lo: Buffer,
        hi: Buffer,
        backward: bool,
        tau: int,
        max_rows: int,
        max_bytes: int,
        filter: Buffer,
        max_examined: int,
    ) -> tuple[bytes, bool, bytes]:
        """Of at most `max_examined` rows those that pass; whether there is more; where the rest begins or ends."""

    def stats(self, relids: Sequence[int]) -> list[tuple[int, int]]:
        """(rows, bytes) of each relation id at the newest applied time."""

    def meta(self, key: str | bytes) -> bytes | None: ...
    def set_meta(self, key: str | bytes, value: Buffer) -> None: ...
    def set_ranges(self, packed: Buffer) -> None:
        """Apply only keys in these ranges from now on: each lo and hi as a big-endian u16 length and its bytes."""

    def sync(self, clean: bool = False) -> None:
        """fsync; ``clean`` marks the store as complete on disk until the next write."""

    def copy(self, path: str | PathLike[str]) -> None:
        """Write a compact, synced copy of the newest state to a new file."""

    def reader_check(self) -> int:
        """Free the reader slots of dead processes; returns how many."""

    def size(self) -> dict[str, int]:
        """map_size, file_pages, free_pages, page_size, main_entries, hist_entries, readers (slots ever used)."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    @property
    def applied(self) -> int: ...
    @property
    def horizon(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    @property
    def replaced(self) -> bool:
        """The directory holds another data file than the one that is open."""

@final
class Page:
    """The shared page, mapped."""

def message_relations(body: Buffer, /) -> set[int]:
    """Relation ids of the keys of a Commit or Ingest message; StoreError if it is malformed. Nothing is decoded."""

def newer_key(
    probes: tuple[tuple[dict[bytes, int], ...], ...], keys: list[bytes], modes: bytes, tau: int, /
) -> bytes | None:
    """Return the first key with a time above ``tau`` in one of the dictionaries of its mode byte."""

def note_keys(
    records: tuple[dict[bytes, int] | None, ...],
    written: dict[bytes, int],
    keys: list[bytes],
    modes: bytes,
    tau: int,
    /,
) -> int:
    """Put ``tau`` for every key into the dictionary of its mode byte and for its 8-byte prefix into ``written``.

    Returns the length of all keys together.
    """

def decide_plain(
    state: tuple[
        int,
        dict[bytes, int],
        dict[bytes, int],
        dict[int, int],
        dict[int, int],
        tuple[tuple[dict[bytes, int], ...], ...],
        tuple[dict[bytes, int] | None, ...],
        dict[bytes, int],
    ],
    body: bytes,
    bound: int,
    last: int,
    now: int,
    /,
) -> tuple[int, bytes, list[bytes], bytes, int] | None:
    """Decide a plain Commit (no checks, DDL and drops, few keys) from its bytes if nothing stands against it.

    ``state``: generation, known and pending transactions, last change and last write by relation, then what
    ``newer_key`` and ``note_keys`` take. Snapshots from ``bound`` to ``last`` are looked at. Returns τ, txid, keys,
    modes and the length of all keys, the dictionaries having their traces; None: no decision, and nothing was changed.
    """

def page_open(path: str | PathLike[str], cluster: bytes | None = None) -> Page:
    """Map the page file; with ``cluster`` create it if missing and refuse another cluster's."""

def page_load(page: Page | mmap, word: int, /) -> int:
    """Acquire-load of a 64-bit word; a page may also be a plain mmap of its file."""

def page_store(page: Page | mmap, word: int, value: int, /) -> None:
    """Release-store of a 64-bit word."""

def page_store_acked(page: Page | mmap, acked: int, ddl: int, /) -> None:
    """Store words 5 and 6 as a pair under the sequence lock (one writer)."""

def page_load_acked(page: Page | mmap, /) -> tuple[int, int]:
    """Load words 5 and 6 as a pair."""

def page_wake(page: Page | mmap, word: int, /) -> int:
    """Wake the processes that wait (futex) on the low 32 bits of a word; returns how many."""
