"""The files engine of the journal: segments on a local disk, one writer thread, group commit (rule J4).

    append -> flush -> one group = all that is queued (bounded) -> one synced write -> on_durable

The write happens in the caller of `flush` while the disk is quick and the group small, else in the writer thread: on a
quick disk waking a thread and being woken by it costs several times what the write costs, and what arrives meanwhile
waits in the sockets and is the next group either way; on a slow one the owner must go on deciding (rule A6). What must
hold:
- a group is written only after the previous one is durable, so acknowledgements are in prefix order by construction;
- after any error of a write or sync nothing is written again: `on_failed` is called once and the owner must end. The
  only error that is waited out is "no space for another segment": then nothing of the group was written yet;
- the directory belongs to one process (an open-file-description lock).

A segment that is about to be needed is prepared by a second thread (writing zeros takes longer than a commit may), and
trimmed segments are recycled. The first segment is small, so that a new cluster starts at once.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from australis.errors import (
    AustralisError,
    JournalError,
    JournalFullError,
    JournalLockedError,
)
from australis.journal.file_layer import FileLayer, OsFiles
from australis.journal.interface import Claimed, Fold, OnDurable, OnFailed
from australis.journal.record import (
    HEADER,
    HEADER_BYTES,
    Entry,
    Kind,
    Position,
    crc32c,
    encode_record,
)
from australis.journal.segments import (
    BLOCK,
    EMPTY,
    END,
    GROUP_BYTES,
    SECTOR,
    SPARE,
    Group,
    Segment,
    SegmentReader,
    SegmentScanner,
    State,
    Verified,
    align,
    check_end,
    check_reached,
    encode_end,
    encode_group_header,
    encode_segment_header,
    group_records,
    list_segments,
    read_end,
    records_of,
    segment_name,
    verify_groups,
)

SEGMENT_BYTES = 64 << 20
FIRST_SEGMENT_BYTES = 4 << 20
PART_BYTES = 1 << 20
GROUP_LIMIT = 2 << 20
GROUP_RECORDS = 1000
JOIN_LIMIT = 1 << 18
KNOWN_GROUPS = 20_000
"""Groups at the end of a segment whose transactions are remembered when the journal is opened."""

SPARES = 2
FULL_RETRY_SECONDS = 0.5
LATENCIES = 1024
INLINE_BYTES = 1 << 17
INLINE_SECONDS = 0.005
"""Largest group, and slowest (moving average) write, that the caller of flush does itself."""

OVERHEAD = HEADER_BYTES + GROUP_BYTES + SECTOR
"""What a record may cost on disk beside its body."""

LARGE_BYTES = 1 << 20
"""From this length on a record may need several segments."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class _Queued(msgspec.Struct, frozen=True, gc=False):
    header: bytes
    body: bytes | memoryview
    position: Position
    tau: int
    ddl: int


class FilesJournal:
    """A journal in a directory of this machine; implements `interface.Journal`."""

    def __init__(
        self,
        directory: Path,
        cluster: bytes,
        on_durable: OnDurable,
        on_failed: OnFailed,
        *,
        layer: FileLayer | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        first_segment_bytes: int = FIRST_SEGMENT_BYTES,
        fold: Fold | None = None,
    ) -> None:
        """Lock and read the journal. The callbacks run in the writer thread, or within `flush`.

        Raises JournalLockedError, JournalDamagedError, JournalFullError, WrongClusterError; nothing is changed then,
        except that a torn tail is overwritten later.
        """
        self._directory, self._cluster = directory, cluster
        self._cluster_crc = crc32c(cluster)
        self._on_durable, self._on_failed = on_durable, on_failed
        self._layer = layer if layer is not None else OsFiles()
        self._segment_bytes = segment_bytes
        smallest = min(segment_bytes, first_segment_bytes)
        self._part_bytes = min(PART_BYTES, smallest // 4)
        self._group_limit = min(GROUP_LIMIT, smallest // 2)
        self._generation = 0
        self._fold = fold
        self._claim: Entry | None = None
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._batch: list[_Queued] = []  # appended, not flushed; the owner's thread only
        self._batch_bytes = 0
        self._handed_over = 0  # last sequence given to the writer thread
        self._latency = 0.0  # moving average
        self._lock = threading.Condition()  # protects the four lines below
        self._spares: list[Path] = []
        self._preparing = False
        self._stopping = False
        self._segments: list[Segment] = []
        self._full = False
        self._failed: AustralisError | None = None
        self._queued_bytes = 0  # loop thread adds, writer thread subtracts, under the lock of the interpreter
        self._written_off = 0
        self.latencies: deque[float] = deque(maxlen=LATENCIES)
        self.groups = self.records = self.bytes = 0
        self._writer: threading.Thread | None = None
        self._preparer: threading.Thread | None = None
        self._fd = self._end_fd = -1
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._lock_fd = self._layer.lock(directory / "lock")
        except BlockingIOError:
            raise JournalLockedError(f"{directory} is in use by another process; stop that cluster first") from None
        try:
            self._open(first_segment_bytes)
        except BaseException:
            self._layer.close(self._lock_fd)
            raise

    # ------------------------------------------------------------------------------------------------- recovery

    def _open(self, first_segment_bytes: int) -> None:
        for name in self._layer.names(self._directory):
            path = self._directory / name
            if name.startswith(SPARE):
                if self._layer.size(path) == self._segment_bytes and len(self._spares) < SPARES:
                    self._spares.append(path)
                else:
                    self._layer.remove(path)
        self._segments = list_segments(self._layer, self._directory, self._cluster)
        reached = read_end(self._layer, self._directory, self._cluster)
        if not self._segments:
            check_reached(reached, 0, 0, 0)
            try:
                self._create_end()
                self._layer.create_zeroed(self._directory / f"{SPARE}first", first_segment_bytes)
            except OSError as error:
                raise self._cannot_create(error) from None
            self._state = EMPTY
            self._number = 1
            self._known: deque[tuple[bytes, int]] = deque()
            self._known_floor = 0
            self._activate(self._directory / f"{SPARE}first")
        else:
            self._recover()
            check_reached(reached, self._segments[-1].id, self._offset, self._state.position.sequence)
            try:
                self._create_end()
            except OSError as error:
                raise self._cannot_create(error) from None
        self.durable = self._state.position.sequence
        self._next = self._state.position

    def _recover(self) -> None:
        """Verify every group, find the end, make it durable, and learn the state there (rules A1, J4)."""
        self._known = deque()
        recent = self._segments[-2:]
        self._known_floor = recent[0].start.tau
        self._state = recent[0].start
        last: tuple[Segment, Group] | None = None
        for index, segment in enumerate(self._segments):
            fd = self._layer.open(segment.path)
            try:
                data = self._layer.read(fd, segment.size, 0)
            finally:
                self._layer.close(fd)
            groups = verify_groups(data, segment, self._cluster)
            number = segment.first_group + len(groups.offsets)
            scanner = SegmentScanner(self._layer, segment, self._cluster, groups.end, number, data)
            try:
                check_end(scanner, segment, self._segments[index + 1] if index + 1 < len(self._segments) else None)
                if segment.id >= recent[0].id and groups.offsets:
                    self._remember(data, groups)
                    scanner.offset, scanner.number = groups.offsets[-1], number - 1
                    group = scanner.next()
                    assert group is not None
                    last = segment, group
            finally:
                scanner.close()
            self._offset, self._number = groups.end, number
        current = self._segments[-1]
        if last is not None:
            segment, group = last
            for header, hash, _ in records_of(segment, group):
                position = Position(header.sequence, header.generation, hash)
            self._state = State(position, group.tau, group.horizon, group.ddl)
            # After a failed sync the page cache may show bytes that never reached the disk: write the last group
            # again, and only then build on it. Identical bytes, so a crash in between is harmless.
            fd = self._layer.open(segment.path)
            try:
                self._layer.write_synced(
                    fd, [self._layer.read(fd, group.end - group.offset, group.offset)], group.offset
                )
                self._layer.sync(fd)
            finally:
                self._layer.close(fd)
        self._fd = self._layer.open(current.path)
        self._layer.sync(self._fd)
        self._size = current.size

    def _remember(self, data: bytes, groups: Verified) -> None:
        """Collect the newest transactions for `resolve` (rule Q2); the groups' CRCs vouch for them."""
        first = max(0, len(groups.offsets) - KNOWN_GROUPS)
        if first:
            self._known.clear()
            self._known_floor = groups.taus[first - 1]
        unpack = HEADER.unpack_from
        for offset in groups.offsets[first:]:
            at = offset + GROUP_BYTES
            for _ in range(group_records(data, offset)):
                fields = unpack(data, at)
                if fields[2] == Kind.TRANSACTION:
                    self._known.append((fields[10], fields[9]))
                at += HEADER_BYTES + fields[11]

    def claim(self) -> Claimed:
        """Start a generation (rule A1); durable on return, then the writer thread runs.

        Raises JournalFullError if there is no space for another segment.
        """
        state = self._state
        generation = max(state.position.generation, self._generation) + 1
        floor = max(state.tau, state.horizon)
        horizon, body = 0, b""
        if self._fold is not None:
            for entry in self.tail(self._segments[0].start.position):
                self._fold.add(entry)
            floor = horizon = max(floor, self._fold.floor)
            body = self._fold.claim_body()
        nonce = os.urandom(16)  # by which a claimer recognises its own claim
        record = encode_record(
            Kind.CLAIM,
            0,
            self._cluster,
            generation,
            state.position.sequence + 1,
            state.position.hash,
            horizon,
            floor,
            nonce,
            body,
        )
        self._generation = generation
        position = Position(state.position.sequence + 1, generation, record.hash)
        if not self._fits(GROUP_BYTES + HEADER_BYTES + len(body)):
            self._create_spare()
        try:
            self._write([_Queued(record.header, body, position, floor, state.ddl)])
            self._note_end()
        except OSError as error:
            raise self._write_error(error) from None
        self._next = position
        self.durable = position.sequence
        self._claim = Entry(state.position, position, Kind.CLAIM, 0, floor, horizon, nonce, body)
        self._writer = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._writer.start()
        return Claimed(generation, position, floor, state.ddl, list(self._known), self._known_floor)

    # ---------------------------------------------------------------------------------------------------- append

    def append(self, kind: int, flags: int, tau: int, txid: bytes, body: bytes, ddl: int, horizon: int = 0) -> Position:
        """Queue one record; large bodies become data parts in front of it (rule J3)."""
        last = self._next
        sequence, hash, generation = last.sequence, last.hash, last.generation
        parts = 0
        rest: bytes | memoryview = body
        if len(body) > self._part_bytes:
            view = memoryview(body)
            count = (len(body) - 1) // self._part_bytes
            for parts in range(count):
                piece = view[parts * self._part_bytes : (parts + 1) * self._part_bytes]
                sequence += 1
                record = encode_record(
                    Kind.PART, 0, self._cluster, generation, sequence, hash, 0, 0, txid, piece, parts
                )
                hash = record.hash
                self._queued_bytes += len(piece) + OVERHEAD
                # neither tau nor ddl of the transaction is true before its last record
                self._batch.append(_Queued(record.header, piece, Position(sequence, generation, hash), 0, 0))
                self._batch_bytes += len(piece)
            parts = count
            rest = view[count * self._part_bytes :]
        sequence += 1
        record = encode_record(
            kind, flags, self._cluster, generation, sequence, hash, horizon, tau, txid, rest, parts, parts
        )
        self._next = position = Position(sequence, generation, record.hash)
        self._queued_bytes += len(rest) + OVERHEAD
        self._batch.append(_Queued(record.header, rest, position, tau, ddl))
        self._batch_bytes += len(rest)
        return position

    def flush(self) -> None:
        """Write what was appended, or let the writer thread do it. From the owner's thread only."""
        batch = self._batch
        if not batch or self._failed is not None:
            return
        length = self._batch_bytes + HEADER_BYTES * len(batch)
        self._batch, self._batch_bytes = [], 0
        if (
            self._handed_over <= self.durable
            and length <= INLINE_BYTES
            and len(batch) <= GROUP_RECORDS
            and self._latency < INLINE_SECONDS
            and self._fits(GROUP_BYTES + length)
        ):
            try:
                self._write_group(batch)
            except OSError as error:
                self._fail(self._write_error(error))
            return
        self._latency *= 0.99  # so that a disk that was slow once is tried again
        self._handed_over = batch[-1].position.sequence
        for item in batch:
            self._queue.put(item)

    @property
    def queued_bytes(self) -> int:
        """Bytes that are appended but not durable."""
        return self._queued_bytes - self._written_off

    @property
    def full(self) -> bool:
        """No space for another segment at the moment."""
        return self._full

    def admits(self, length: int) -> bool:
        """May a record of this length be appended? False: the disk is full; nothing is lost, try again later.

        While space is short only what surely fits into the current segment is admitted, and a large record only if
        there is space for all of its segments, so that no decided transaction has to wait for space.
        """
        if not self._full and length < LARGE_BYTES:
            return True
        records = 1 + length // self._part_bytes
        beyond = self._offset + self.queued_bytes + length + records * OVERHEAD + SECTOR - self._size
        if beyond <= 0:
            return True
        if self._full:
            return False
        usable = self._segment_bytes - BLOCK - self._part_bytes - OVERHEAD  # the next part may not fit in what is left
        segments = -(-beyond // usable) - len(self._spares)
        return segments <= 0 or segments * self._segment_bytes <= self._layer.free(self._directory)

    # ---------------------------------------------------------------------------------------------------- writer

    def _run(self) -> None:
        """Writer thread: write groups until told to stop or until something fails."""
        get, more = self._queue.get, self._queue.get_nowait
        stop = False
        try:
            held: _Queued | None = None
            while not stop:
                first = held if held is not None else get()
                held = None
                if first is None:
                    return
                group = [first]
                size = len(first.body) + HEADER_BYTES
                while len(group) < GROUP_RECORDS:
                    try:
                        item = more()
                    except queue.Empty:
                        break
                    if item is None:
                        stop = True
                        break
                    size += len(item.body) + HEADER_BYTES
                    if size > self._group_limit:
                        held = item
                        break
                    group.append(item)
                self._write_group(group)
        except OSError as error:
            self._fail(self._write_error(error))
        except AustralisError as error:
            self._fail(error)
        except Exception as error:  # a bug here must not leave commits waiting for ever
            self._fail(JournalError(f"the journal's writer failed: {error!r}"))
            raise

    def _write_group(self, group: list[_Queued]) -> None:
        """Write a group and say so: in the writer thread, or in the owner's while that one has nothing to do."""
        started = time.perf_counter()
        self._write(group)
        taken = time.perf_counter() - started
        self.latencies.append(taken)
        self._latency += (taken - self._latency) / 16
        self._written_off += sum([len(item.body) for item in group]) + OVERHEAD * len(group)
        self.durable = group[-1].position.sequence
        self._on_durable(self.durable)

    def _write_error(self, error: OSError) -> AustralisError:
        return JournalError(f"cannot write the journal in {self._directory}: {error.strerror}")

    def _fail(self, error: AustralisError) -> None:
        with self._lock:
            self._failed = error
        self._on_failed(error)

    def _fits(self, length: int) -> bool:
        return align(self._offset + length) <= self._size

    def _write(self, group: list[_Queued]) -> None:
        """Write one group, durable on return; moves to the next segment if it doesn't fit."""
        length = sum([len(item.body) for item in group]) + HEADER_BYTES * len(group)
        if not self._fits(GROUP_BYTES + length):
            self._activate(self._take_spare())
        tau, ddl, horizon = self._state.tau, self._state.ddl, self._state.horizon
        buffers: list[bytes | memoryview] = [b""]
        for item in group:
            buffers.append(item.header)
            buffers.append(item.body)
            if item.tau > tau:
                tau = item.tau
            if item.ddl > ddl:
                ddl = item.ddl
        if length <= JOIN_LIMIT:
            payload = b"".join(buffers)
            crc = crc32c(payload, self._cluster_crc)
            buffers = [b"", payload]
        else:
            crc = self._cluster_crc
            for buffer in buffers:
                crc = crc32c(buffer, crc)
        last = group[-1].position
        buffers[0] = encode_group_header(
            self._cluster_crc,
            self._segments[-1].id,
            self._offset,
            self._number,
            last.generation,
            group[0].position.sequence,
            (tau, horizon, ddl),
            length,
            len(group),
            crc,
        )
        end = align(self._offset + GROUP_BYTES + length)
        padding = end - self._offset - GROUP_BYTES - length
        if padding:
            buffers.append(bytes(padding))
        self._layer.write_synced(self._fd, buffers, self._offset)
        self._offset = end
        self._number += 1
        self._state = State(last, tau, horizon, ddl)
        self.groups += 1
        self.records += len(group)
        self.bytes += length
        if end * 2 > self._size and not self._spares and not self._preparing:
            self._prepare()

    def _activate(self, spare: Path) -> None:
        """Make a prepared file the current segment."""
        id = self._segments[-1].id + 1 if self._segments else 1
        path = self._directory / segment_name(id)
        size = self._layer.size(spare)
        fd = self._layer.open(spare)
        try:
            header = encode_segment_header(id, self._cluster, size, self._number, self._state)
            self._layer.write_synced(fd, [header], 0)
            self._layer.rename(spare, path)
        except BaseException:
            self._layer.close(fd)
            raise
        if self._fd >= 0:
            self._layer.close(self._fd)
        self._fd, self._offset, self._size = fd, BLOCK, size
        with self._lock:
            self._segments.append(Segment(id, path, size, self._number, self._state))
        self._note_end()

    def _create_end(self) -> None:
        """Have the file `end`, and open it."""
        path = self._directory / END
        if END not in self._layer.names(self._directory) or self._layer.size(path) < SECTOR:
            new = self._directory / f"{END}.new"
            self._layer.create_zeroed(new, SECTOR)
            self._layer.rename(new, path)
        self._end_fd = self._layer.open(path)

    def _note_end(self) -> None:
        """Write down how far the journal reaches by now."""
        content = encode_end(self._cluster, self._segments[-1].id, self._state.position.sequence)
        self._layer.write_synced(self._end_fd, [content], 0)

    # ------------------------------------------------------------------------------------------------- segments

    def _cannot_create(self, error: OSError) -> AustralisError:
        if error.errno in _NO_SPACE:
            return JournalFullError(f"no space for a journal segment in {self._directory}; free space on this disk")
        return JournalError(f"cannot create a journal segment in {self._directory}: {error.strerror}")

    def _create_spare(self) -> None:
        """Create a spare now (before the threads run)."""
        if self._spares:
            return
        path = self._directory / f"{SPARE}new"
        try:
            self._layer.create_zeroed(path, self._segment_bytes)
        except OSError as error:
            raise self._cannot_create(error) from None
        self._spares.append(path)

    def _take_spare(self) -> Path:
        """Return a prepared file; waits while the disk is full, as nothing of the group is written yet."""
        with self._lock:
            while not self._spares:
                if self._failed is not None:
                    raise self._failed
                if self._stopping and self._full:
                    raise JournalFullError(f"no space for a journal segment in {self._directory}; free space")
                if not self._preparing:
                    self._prepare_locked()
                self._lock.wait()
            return self._spares.pop(0)

    def _prepare(self) -> None:
        with self._lock:
            self._prepare_locked()

    def _prepare_locked(self) -> None:
        if self._preparing:
            return
        self._preparing = True
        self._preparer = threading.Thread(target=self._prepare_spare, name="journal-preparer", daemon=True)
        self._preparer.start()

    def _prepare_spare(self) -> None:
        """Preparer thread: create one spare, trying again while the disk is full."""
        path = self._directory / f"{SPARE}{time.monotonic_ns():x}"
        while True:
            try:
                self._layer.create_zeroed(path, self._segment_bytes)
                break
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    failure = self._cannot_create(error)
                    with self._lock:
                        self._failed = failure
                        self._preparing = False
                        self._lock.notify_all()
                    self._on_failed(failure)
                    return
            with self._lock:
                self._full = True
                if self._spares or self._stopping:  # trimming gave us one back
                    self._full = not self._spares
                    self._preparing = False
                    self._lock.notify_all()
                    return
                self._lock.wait(FULL_RETRY_SECONDS)
        with self._lock:
            self._spares.append(path)
            self._full = False
            self._preparing = False
            self._lock.notify_all()

    def trim(self, sequence: int) -> int:
        """Recycle or remove segments whose records are all at or below a sequence; any thread may call it."""
        freed = 0
        with self._lock:
            while len(self._segments) > 1 and self._segments[1].start.position.sequence <= sequence:
                segment = self._segments[0]
                if segment.size == self._segment_bytes and len(self._spares) < SPARES:
                    spare = self._directory / f"{SPARE}{segment.id:x}"
                    self._layer.rename(segment.path, spare)
                    self._spares.append(spare)
                    self._full = False
                    self._lock.notify_all()
                else:
                    self._layer.remove(segment.path)
                freed += segment.size
                del self._segments[0]
        return freed

    # --------------------------------------------------------------------------------------------------- reading

    def reader(self, after: Position) -> SegmentReader:
        """Return a reader behind a position, for use in any one thread; bound it by `durable`."""
        return SegmentReader(self._layer, self._directory, self._cluster, after)

    def oldest(self) -> Position:
        """Return the position behind which the oldest segment begins."""
        with self._lock:
            return self._segments[0].start.position

    def tail(self, after: Position) -> Iterator[Entry]:
        """Yield entries behind a position up to what is durable now."""
        reader = self.reader(after)
        try:
            durable = self.durable
            while entries := reader.read(durable, 1 << 20):
                yield from entries
        finally:
            reader.close()

    def next_claim(self, generation: int) -> Entry | None:
        """Return the first claim above a generation, if the journal still holds it (rule T3: where to roll back to)."""
        with self._lock:
            segments = list(self._segments)
        # the last segment that begins at or below the generation is where the next claim may first appear
        start = [s for s in segments if s.start.position.generation <= generation]
        if not start:
            return None
        if generation == self._generation - 1:
            return self._claim  # what storage asks after a restart: nothing to read
        for entry in self.tail(start[-1].start.position):
            if entry.kind == Kind.CLAIM and entry.position.generation > generation:
                return entry
        return None

    def size(self) -> tuple[int, int]:
        """Return (bytes of segments, number of segments)."""
        with self._lock:
            return sum(segment.size for segment in self._segments), len(self._segments)

    def close(self) -> None:
        """Write what is queued, stop the threads, release the lock."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        if self._writer is not None:
            self.flush()
            self._queue.put(None)
            self._writer.join()
        if self._preparer is not None:
            self._preparer.join()
        try:
            if self._writer is not None and self._failed is None:
                self._note_end()
        except OSError as error:
            raise self._write_error(error) from None
        finally:
            for fd in (self._fd, self._end_fd, self._lock_fd):
                if fd >= 0:
                    self._layer.close(fd)
            self._fd = self._end_fd = -1
