"""The thread that follows the journal: receive, apply, publish (rules T3, S1-S4).

One blocking socket, one loop: whatever arrived while the last batch was applied is the next batch. Between batches, in
bounded slices, it collects old versions, deletes garbage storage ids and starts snapshots. What must hold:
- the page's applied time is published after the store has committed it, and never while a subscription is not settled:
  what an ended generation fed but never journaled is undone first;
- a batch is applied completely or not at all, in the journal's order;
- nothing is lost by a crash here: the position is in the store, in the same transaction as the data.

If the commit process goes away: reconnect, for ever, at growing intervals. If the disk is full: the batch is tried
again until there is space; commits go on meanwhile, readers of newer times wait and time out. If the store is damaged,
deleted or from another boot: rebuild it from snapshot + journal. Anything else ends the thread and is reported to the
service.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from australis.clock import Clock
from australis.cluster import ClusterDirectory
from australis.crossbar.merge import Merge
from australis.errors import AustralisError, ProtocolError, StorageError
from australis.journal.record import START, Kind, Position
from australis.page import DISK_FULL, SharedPage, Word
from australis.protocol.frames import FrameDecoder, frame
from australis.protocol.messages import (
    PROTOCOL_VERSION,
    Applied,
    Error,
    FeedRecord,
    FeedStart,
    FeedStatus,
    Hello,
    Subscribe,
    Trim,
    encode,
)
from australis.storage import horizon as horizons
from australis.storage.garbage import Garbage
from australis.storage.snapshots import intact, list_snapshots, restore, trim_position, write_snapshot
from australis.storage.store import DATA_FILE, DamagedError, FullError, Store, StoreError, open_store

RECEIVE_BYTES = 1 << 20
BATCH_RECORDS = 4096
POLL_SECONDS = 0.1
REPORT_SECONDS = 0.25
COLLECT_ENTRIES = 1000
COLLECT_ENTRIES_BESIDE = 200
GARBAGE_PATIENCE = 600 * horizons.SECOND
"""How long behind its horizon deleted tables may take space while commits come in; then they are as urgent as those."""

COLLECT_BUSY_SECONDS = 0.01
COLLECT_BESIDE_SECONDS = 0.05  # what is left of deleted tables, while commits come in
COLLECT_IDLE_SECONDS = 1.0
FULL_RETRY_SECONDS = 0.5
RECONNECT_SECONDS = (0.01, 0.02, 0.05, 0.1)
ANSWER_SECONDS = 15.0
SNAPSHOT_BYTES = 256 << 20
SNAPSHOT_WAIT_SECONDS = 30.0
SNAPSHOT_RETRY_SECONDS = 60.0

_FEED_ENDED = "the commit process closed the feed"

log = structlog.get_logger()

_Feed = Hello | FeedStart | FeedRecord | Error
_decoder: msgspec.msgpack.Decoder[_Feed] = msgspec.msgpack.Decoder(_Feed)


@dataclass(frozen=True, slots=True)
class Settings:
    """How long versions are kept (seconds) and after how many bytes of journal a snapshot is written."""

    retention: float = horizons.RETENTION / horizons.SECOND
    cap: float = horizons.CAP / horizons.SECOND
    snapshot_bytes: int = SNAPSHOT_BYTES


class _StoppedError(Exception):
    """The service is closing."""


class _RebuiltError(Exception):
    """The store was replaced; subscribe again from its position."""


class Applier:
    """Owns the store and its thread."""

    def __init__(
        self,
        directory: ClusterDirectory,
        page: SharedPage,
        clock: Clock,
        settings: Settings,
        on_applied: Callable[[], None],
        on_failed: Callable[[Exception], None],
    ) -> None:
        """`on_applied` is called in the thread after a batch if `watched` is set."""
        self._directory, self._page, self._clock, self._settings = directory, page, clock, settings
        self._on_applied, self._on_failed = on_applied, on_failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage-applier", daemon=True)
        self._snapshotting: threading.Thread | None = None
        self._snapshot_covers: int | None = None  # bytes of the journal in a new snapshot, said by its thread
        self._trim_to = 0
        self._restored_nothing = False  # to rebuild the store once more would end the same
        self._damage: str | None = None  # found by the snapshot thread
        self._next_snapshot = 0.0
        self._bytes_since_snapshot = 0
        self.store: Store | None = None
        self._watched = bytearray(1)  # read without the lock of the interpreter
        self._watched_lock = threading.Lock()
        self.state = "starting"
        self.generation = 0
        self.position = START
        self.records = self.batches = self.rebuilds = self.snapshots = 0
        self.garbage = 0
        self._records_collected = 0  # `records` when garbage was last collected

    # ------------------------------------------------------------------------------------------------ life cycle

    def start(self) -> None:
        """Start the thread; it opens or rebuilds the store first."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following, mark the store as clean and close it. Blocks."""
        self._stop.set()
        self._thread.join()  # at the latest when its receive times out

    @property
    def watched(self) -> bool:
        """Does somebody want to hear of every batch?"""
        return bool(self._watched[0])

    @watched.setter
    def watched(self, value: bool) -> None:
        with self._watched_lock:  # a fence: whoever sets this looks at what is applied afterwards
            self._watched[0] = value

    @property
    def alive(self) -> bool:
        """Is the thread running?"""
        return self._thread.is_alive()

    @property
    def snapshot_running(self) -> bool:
        """Is a snapshot being written?"""
        running = self._snapshotting
        return running is not None and running.is_alive()

    def _run(self) -> None:
        try:
            self._open()
            failures = 0
            while not self._stop.is_set():
                try:
                    self._follow()
                except (OSError, EOFError) as error:
                    self._check_files()
                    if self.state != "connecting":
                        failures = 0
                        log.info("storage.feed_lost", error=str(error))
                    self.state = "connecting"
                    self._stop.wait(RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS) - 1)])
                    failures += 1
                except _RebuiltError:
                    continue
            self._close(clean=True)
        except _StoppedError:
            self._close(clean=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, the service ends with it
            self.state = "failed"
            self._page.store(Word.STORAGE_PID, 0)
            self._close(clean=False)
            self._on_failed(error)

    def _open(self) -> None:
        """Open the store; restore it if it is missing, damaged or from another boot (S2)."""
        directory = self._directory
        self._publish(0)  # readers wait until it is known what the store holds
        started = time.monotonic()
        snapshot = None
        reason = "missing"
        if (directory.storage / DATA_FILE).exists():
            try:
                self._use(open_store(directory.storage, directory.cluster))
                return
            except DamagedError as error:
                reason = str(error)
        self.state = "restoring"
        snapshot = restore(directory.snapshots, directory.storage, directory.cluster)
        self._restored_nothing = snapshot is None
        self._use(open_store(directory.storage, directory.cluster, restored=snapshot is not None))
        if snapshot is not None or reason != "missing":
            self.rebuilds += 1
            log.info(
                "storage.rebuilt",
                reason=reason,
                snapshot=snapshot.directory.name if snapshot is not None else "none",
                seconds=round(time.monotonic() - started, 3),
            )

    def _use(self, store: Store) -> None:
        saved = store.meta("position")
        self.position = Position.unpack(saved) if saved else START
        self._garbage = Garbage(store)
        self.store = store
        store.reader_check()
        self._page.store(Word.STORE, self._page.load(Word.STORE) + 1)

    def _close(self, *, clean: bool) -> None:
        if self._snapshotting is not None:
            self._snapshotting.join()
        store, self.store = self.store, None
        if store is not None:
            if clean:
                store.sync(True)
            store.close()

    def _rebuild(self, reason: str) -> None:
        """Throw the store away and start from the newest snapshot."""
        log.warning("storage.rebuilding", reason=reason)
        self._close(clean=False)
        self._damage = None  # it was of the store that is no more
        self.state = "restoring"
        try:
            (self._directory.storage / DATA_FILE).unlink(missing_ok=True)
            self._open()
        except OSError as error:
            raise StorageError(f"cannot rebuild the store in {self._directory.storage}: {error.strerror}") from error

    def _check_files(self) -> None:
        """Has somebody deleted the store's files? Then readers that come now find nothing: rebuild."""
        if self.store is not None and self.store.replaced:
            self._rebuild("the store's file was deleted or exchanged")

    # ---------------------------------------------------------------------------------------------------- follow

    def _follow(self) -> None:
        """Subscribe, then apply until the connection ends."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as feed:
            feed.settimeout(ANSWER_SECONDS)
            feed.connect(str(self._directory.commit_socket))
            decoder = FrameDecoder()
            pending = self._subscribe(feed, decoder)
            self.state = "following"
            # One journal today; the merge orders the records of several (W2) and checks the order of one.
            merge: Merge[FeedRecord] = Merge(1, max(0, self._require().applied), 1 << 30)
            feed.settimeout(None)
            # a timeout of the kernel's: a Python one would cost a second system call per batch
            feed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(POLL_SECONDS * 1e6)))
            feed.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(ANSWER_SECONDS), 0))
            buffer = bytearray(RECEIVE_BYTES)
            view = memoryview(buffer)
            self._next_collect = self._next_report = 0.0
            while not self._stop.is_set():
                if pending:
                    self._take(feed, merge, pending)
                self._chores(feed)
                pending = []
                if decoder.pending or self._garbage.concerned:  # a frame that has begun is the decoder's
                    received = self._receive(feed, view)
                    taken = 0
                else:
                    received = self._follow_plain(feed, merge, view)
                    taken = self._take_plain(merge, view[:received]) if received else 0
                if taken < received:
                    pending = decoder.feed(bytes(view[taken:received]))

    def _subscribe(self, feed: socket.socket, decoder: FrameDecoder) -> list[bytes]:
        """Say where we are, undo what never happened, publish; return bodies that came with the answer."""
        store = self._require()
        feed.sendall(frame(encode(Hello(PROTOCOL_VERSION, self._directory.cluster, "storage", 0))))
        feed.sendall(frame(encode(Subscribe(*self.position, store.applied))))
        bodies: list[bytes] = []
        start: FeedStart | None = None
        while start is None:
            received = feed.recv(1 << 16)
            if not received:
                raise EOFError(_FEED_ENDED)
            bodies += decoder.feed(received)
            while bodies and start is None:
                message = _decoder.decode(bodies.pop(0))
                if isinstance(message, Error):
                    raise StorageError(f"the commit process refuses to feed storage: {message.message}")
                if isinstance(message, FeedStart):
                    start = message
        if start.status != FeedStatus.OK:
            self._start_over(FeedStatus(start.status))
        if start.rollback >= 0:
            self._undo(store, start)
        self.generation = start.generation
        self._publish(store.applied)
        self._page.store(Word.HORIZON, store.horizon)
        self._applied()
        self._trim_to = trim_position(self._directory.snapshots, self._directory.cluster)
        if not self.snapshot_running:
            self._snapshot_covers = None  # counted here
        # so that a journal that many short runs have written is bounded too
        covered = self._settings.snapshot_bytes * len(
            list_snapshots(self._directory.snapshots, self._directory.cluster)
        )
        self._bytes_since_snapshot = max(0, start.journal_bytes - covered)
        log.info("storage.following", generation=start.generation, sequence=self.position.sequence)
        return bodies

    def _undo(self, store: Store, start: FeedStart) -> None:
        """Discard what was fed but never journaled (T3)."""
        snapshots = list_snapshots(self._directory.snapshots, self._directory.cluster)
        if snapshots and snapshots[0].tau > start.rollback:
            raise StorageError(
                "the journal ends before the newest snapshot of storage, so its last segments are missing: restore "
                "them from a copy, or restore the cluster from a backup"
            )
        self._publish(min(self._page.load(Word.APPLIED), start.rollback))
        if store.applied > start.rollback:
            log.info("storage.rollback", applied=store.applied, to=start.rollback)
            self._persist(functools.partial(store.rollback, start.rollback))
        self.position = Position(start.sequence, start.record_generation, start.hash)
        undone = self._garbage.rolled_back(start.rollback)
        self._persist(functools.partial(store.apply, [], self.position.pack(), undone))

    def _start_over(self, status: FeedStatus) -> None:
        """Our position is not in the journal: go back to a snapshot, or give up if that is where we are."""
        snapshots = list_snapshots(self._directory.snapshots, self._directory.cluster)
        fresh = self.position in {START, *(snapshot.position for snapshot in snapshots)}
        if fresh and self.position == (snapshots[0].position if snapshots else START):
            raise StorageError(
                "the journal does not reach back to the newest snapshot of storage: restore the missing journal "
                "segments or snapshots from a copy"
            )
        if self._restored_nothing and snapshots:
            raise StorageError(
                f"all snapshots in {self._directory.snapshots} are damaged, and the journal does not reach back to the "
                "beginning: restore a snapshot from a copy, or restore the cluster from a backup"
            )
        self._rebuild(f"the journal does not hold our position ({status.name.lower()})")
        raise _RebuiltError

    def _require(self) -> Store:
        if self.store is None:
            raise _StoppedError
        return self.store

    # ----------------------------------------------------------------------------------------------------- apply

    def _receive(self, feed: socket.socket, view: memoryview) -> int:
        """Receive into the buffer; returns how much, 0 if nothing comes for the moment."""
        try:
            received = feed.recv_into(view)
        except BlockingIOError:
            return 0
        if not received:
            raise EOFError(_FEED_ENDED)
        return received

    def _follow_plain(self, feed: socket.socket, merge: Merge[FeedRecord], view: memoryview) -> int:
        """Apply what comes as long as it is plain commits; returns the bytes in the buffer that are not applied.

        That is what storage does all day, and it does it without Python: this returns when something else has come, or
        it is time for a chore.
        """
        until = min(self._next_collect, self._next_report, time.monotonic() + POLL_SECONDS)
        records, taken, batches, error, left, tau, sequence, generation, hash = self._require().follow_feed(
            feed.fileno(), view, self._garbage.avoided, self._watched, self._page.map, Word.APPLIED, until
        )
        if records:
            self.batches += batches
            self._note_plain(merge, records, taken, tau, Position(sequence, generation, hash))
        self._applied()
        if error:
            raise EOFError(_FEED_ENDED) if error < 0 else OSError(error, os.strerror(error))
        return left

    def _note_plain(self, merge: Merge[FeedRecord], records: int, taken: int, tau: int, position: Position) -> None:
        merge.promise(0, tau)
        self.position = position
        self.records += records
        self._bytes_since_snapshot += taken

    def _take_plain(self, merge: Merge[FeedRecord], received: memoryview) -> int:
        """Apply the plain commits that come first; returns their bytes. Everything else is for `_take`.

        After `_follow_plain` there are none, unless the store is full or damaged: `_persist` deals with that.
        """
        store = self._require()
        fed: tuple[int, int, int, int, int, bytes] | None = None

        def write() -> None:
            nonlocal fed
            fed = store.apply_feed(received, self._garbage.avoided)

        self._persist(write)
        if fed is None:
            return 0
        records, taken, tau, sequence, generation, hash = fed
        self._publish(tau)
        self.batches += 1
        self._note_plain(merge, records, taken, tau, Position(sequence, generation, hash))
        self._applied()
        return taken

    def _take(self, feed: socket.socket, merge: Merge[FeedRecord], bodies: list[bytes]) -> None:
        """Apply messages of the feed, in bounded batches."""
        for start in range(0, len(bodies), BATCH_RECORDS):
            records: list[FeedRecord] = []
            for body in bodies[start : start + BATCH_RECORDS]:
                message = _decoder.decode(body)
                if isinstance(message, FeedRecord):
                    records.append(message)
                    self._bytes_since_snapshot += len(body)
                elif isinstance(message, Error):
                    raise EOFError(f"the feed ended: {message.message}")
                else:
                    raise ProtocolError("the feed sent something that is not a record")
            if records:
                self._apply(feed, records, merge)

    def _apply(self, feed: socket.socket, records: list[FeedRecord], merge: Merge[FeedRecord]) -> None:
        """Apply one batch, or several if something in it has to happen in between."""
        garbage = self._garbage
        while records:
            cut = garbage.cut(records)
            if cut == 0:
                self._persist(functools.partial(garbage.purge, records[0]))
                continue
            self._apply_batch(feed, records[:cut], merge)
            records = records[cut:] if cut is not None else []

    def _apply_batch(self, feed: socket.socket, records: list[FeedRecord], merge: Merge[FeedRecord]) -> None:
        store, garbage = self._require(), self._garbage
        batch: list[tuple[int, bytes]] = []
        chunks = False
        applied = store.applied
        for record in records:
            # a claim's tau is the floor: everything at or below it is there already
            if record.kind != Kind.CLAIM and record.tau > applied:
                merge.add(0, record.tau, record)
        for tau, record in merge.take():
            batch.append((tau, record.body))
            if record.kind == Kind.INGEST:
                chunks = True
        last = records[-1]
        position = Position(last.sequence, last.generation, last.hash)

        noted = garbage.note(records)
        self._persist(functools.partial(store.apply, batch, position.pack(), noted))
        self.position = position
        self._publish(store.applied)
        self.records += len(records)
        self.batches += 1
        if chunks:
            self._report(feed)
        self._applied()

    def _persist(self, write: Callable[[], None]) -> None:
        """Write to the store, waiting while the disk is full; `write` may be called again after it failed."""
        while True:
            try:
                write()
                break
            except FullError as error:
                if self.state != "disk full":
                    log.error("storage.disk_full", error=str(error))
                self.state = "disk full"
                self._page.store(Word.STORAGE_PID, DISK_FULL)
                if self._stop.wait(FULL_RETRY_SECONDS):
                    raise _StoppedError from None
            except DamagedError as error:
                self._has_space()
                self._rebuild(str(error))
                raise _RebuiltError from None
        self._has_space()

    def _has_space(self) -> None:
        if self.state == "disk full":
            self.state = "following"
            self._page.store(Word.STORAGE_PID, os.getpid())

    def _publish(self, applied: int) -> None:
        """Say on the page what the store holds, and wake the backends that wait for it."""
        self._page.store(Word.APPLIED, applied)
        self._page.wake(Word.APPLIED)

    def _applied(self) -> None:
        if self.watched:
            self._on_applied()

    def _report(self, feed: socket.socket) -> None:
        store = self._require()
        feed.sendall(frame(encode(Applied(self.position.sequence, store.applied))))

    # ---------------------------------------------------------------------------------------------------- chores

    def _chores(self, feed: socket.socket) -> None:
        """What has to be done now and then; every call is bounded."""
        now = time.monotonic()
        if now >= self._next_collect:
            pause = self._collect()
            self._next_collect = time.monotonic() + pause
        if now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            self._report(feed)
            if self._trim_to:
                feed.sendall(frame(encode(Trim(self._trim_to))))
                self._trim_to = 0
            if self._damage is not None:
                reason, self._damage = self._damage, None
                self._rebuild(reason)
                raise _RebuiltError
            if self._require().replaced:
                self._rebuild("the store's file was deleted or exchanged")
                raise _RebuiltError
            self._maybe_snapshot(now)

    def _collect(self) -> float:
        """Raise the horizon, remove a slice of what is below it; seconds until the next one."""
        store, page, settings = self._require(), self._page, self._settings
        wanted = horizons.horizon(
            self._clock.now()[0],
            page.load(Word.ACKED),
            page.oldest_slot(),
            store.horizon,
            int(settings.retention * horizons.SECOND),
            int(settings.cap * horizons.SECOND),
        )
        page.store(Word.HORIZON, wanted)  # before anything is removed
        try:
            busy = store.collect(wanted, COLLECT_ENTRIES) >= COLLECT_ENTRIES
            beside = self._garbage_entries(wanted)
            left = self._garbage.collect(wanted, beside)
        except FullError:
            return COLLECT_IDLE_SECONDS  # deleting needs space too; applying will say that the disk is full
        except DamagedError as error:
            self._rebuild(str(error))
            raise _RebuiltError from None
        self.garbage = len(self._garbage)
        if busy or (left and beside == COLLECT_ENTRIES):
            return COLLECT_BUSY_SECONDS
        return COLLECT_BESIDE_SECONDS if left else COLLECT_IDLE_SECONDS

    def _garbage_entries(self, horizon: int) -> int:
        """How much of deleted tables to remove now: a little while commits are applied (they wait meanwhile)."""
        before, self._records_collected = self._records_collected, self.records
        oldest = self._garbage.waits_since()
        if self.records == before or (oldest is not None and oldest < horizon - GARBAGE_PATIENCE):
            return COLLECT_ENTRIES
        return COLLECT_ENTRIES_BESIDE

    def _maybe_snapshot(self, now: float) -> None:
        running = self._snapshotting
        if running is not None:
            if running.is_alive():
                return
            self._snapshotting = None
            if self._snapshot_covers is not None:
                self._bytes_since_snapshot -= self._snapshot_covers
                self._snapshot_covers = None
                self._next_snapshot = 0.0
                self._trim_to = trim_position(self._directory.snapshots, self._directory.cluster)
        size = self._require().size()
        used = (size["file_pages"] - size["free_pages"]) * size["page_size"]
        # copying a large store for every 256 MB of journal would cost more than the journal it frees
        if self._bytes_since_snapshot < max(self._settings.snapshot_bytes, used // 2) or now < self._next_snapshot:
            return
        self._next_snapshot = now + SNAPSHOT_RETRY_SECONDS
        self._snapshotting = threading.Thread(
            target=self._snapshot,
            args=(self._require(), self._bytes_since_snapshot),
            name="storage-snapshot",
            daemon=True,
        )
        self._snapshotting.start()

    def _snapshot(self, store: Store, covered: int) -> None:
        """Snapshot thread."""
        directory = self._directory
        started = time.monotonic()
        try:
            snapshot = write_snapshot(store, directory.snapshots, directory.cluster, self._acknowledged)
        except (OSError, StoreError, AustralisError) as error:
            log.error("storage.snapshot_failed", error=str(error))
            if isinstance(error, DamagedError) and any(
                intact(other.file, other.checksum) for other in list_snapshots(directory.snapshots, directory.cluster)
            ):
                self._damage = str(error)  # reading finds it too; a rebuild ends that, and the growth of the journal
            return
        if snapshot is None:
            log.info("storage.snapshot_discarded")
            return
        self._snapshot_covers = covered
        self.snapshots += 1
        log.info(
            "storage.snapshot",
            tau=snapshot.tau,
            bytes=snapshot.size,
            seconds=round(time.monotonic() - started, 3),
        )

    def _acknowledged(self, tau: int, position: Position) -> bool:
        """Wait until everything up to tau is durable in the generation that fed it; False if it ended before."""
        deadline = time.monotonic() + SNAPSHOT_WAIT_SECONDS
        while time.monotonic() < deadline:
            if position.generation != self.generation or self.generation != self._page.load(Word.GENERATION):
                return False
            if self._page.load(Word.ACKED) >= tau:
                return True
            if self._stop.wait(0.01):
                return False
        return False
