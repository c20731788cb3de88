"""The commit process: adjudicator, journal and the sending end of the feed, behind one Unix socket.

    python -m australis.commit_process --data DIR

The path of a COMMIT: `_Connection.data_received` -> `CommitService.commit_plain`, or `commit` if it is not plain ->
adjudicator (decides, at once) -> journal (queued) -> end of the loop's round: feed (sent), journal (one synced write)
-> `_completed`: shared page, answer.

What must hold:
- nothing is answered COMMITTED before it is durable; the page shows a time before its client hears of it (rule T3);
- the largest issued time is in the page before storage is fed, so that a later generation starts above it;
- every queue is bounded: beyond that requests are refused before they are decided (rule Q10).

If the journal fails, this process ends with one line; clients see the connection close and do not know the outcome of
what was in flight. If storage is away, commits go on; chunks of bulk loads wait for it. If a client goes away, its
undecided chunks are made garbage (rule Q8).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import cast

import msgspec

from australis.adjudicator.adjudicator import Action, Adjudicator
from australis.clock import Clock, FixedClock
from australis.cluster import ClusterDirectory, open_cluster
from australis.crossbar.feed import Framed, RecentRecords, frame_record
from australis.errors import AustralisError, JournalError, PositionGoneError, ProtocolError
from australis.journal.files import FIRST_SEGMENT_BYTES, SEGMENT_BYTES, FilesJournal
from australis.journal.interface import Claimed, Journal, Reader
from australis.journal.record import NO_TXID, Kind, Position, RecordFlag
from australis.page import SharedPage, Word
from australis.process import announce, die_with_parent, run, tune
from australis.protocol.frames import FrameDecoder, frame
from australis.protocol.messages import (
    PROTOCOL_VERSION,
    Applied,
    Commit,
    CommitReply,
    Drop,
    Error,
    FeedStart,
    FeedStatus,
    Hello,
    Ingest,
    IngestReply,
    Outcome,
    Resolve,
    ResolveReply,
    Status,
    StatusReply,
    Subscribe,
    Trim,
    check_commit,
    check_ingest,
    client_decoder,
    encode,
    relations_of,
)

MAX_PENDING = 20_000
"""Records that may be undurable at once."""

MAX_PENDING_BYTES = 256 << 20
LARGE_FRAME = 8 << 20
LARGE_BUDGET = 2 << 30
"""Bytes of large messages that may be in memory at once; the next one is not read until there is room."""

FEED_CHUNK = 1 << 20
FEED_HIGH_WATER = 8 << 20
STOP_SECONDS = 10.0
TIDY_SECONDS = 5.0
TIDY_COMMITS = 1000
"""Memory of commits that no living snapshot is older than is given back in slices of so many commits."""

SNAPSHOT_GRACE = 30_000_000_000
"""Nanoseconds for which a snapshot may be in use before its backend's slot shows it."""

_FULL = "nothing was changed; free space on the disk of the journal and retry"
_OVERLOAD = "the commit service is overloaded; nothing was changed, please retry"
_STOPPING = "the commit service is shutting down; nothing was changed, please retry"


def _outcome(obstacle: str) -> Outcome:
    """How a request ends that this obstacle bars."""
    return Outcome.DISK_FULL if obstacle is _FULL else Outcome.REFUSED


class _Waiting(msgspec.Struct, frozen=True, gc=False):
    """A record that is not durable yet and what to do when it is."""

    sequence: int
    tau: int
    ddl: int
    kind: int
    txid: bytes
    chunk: int
    connection: _Connection | None
    budget: int


class CommitService:
    """One generation of adjudicator and journal, serving clients and the feed."""

    def __init__(
        self,
        directory: ClusterDirectory,
        *,
        clock: Clock | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        first_segment_bytes: int = FIRST_SEGMENT_BYTES,
    ) -> None:
        self._directory = directory
        self.journal: Journal
        self._clock = clock if clock is not None else FixedClock()
        self._segment_sizes = segment_bytes, first_segment_bytes
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.failed: asyncio.Future[AustralisError] = self._loop.create_future()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._subscribers: list[_Subscriber] = []
        self._waiting: deque[_Waiting] = deque()  # appended, not durable
        self._unapplied: deque[_Waiting] = deque()  # chunks that are durable, but not applied
        self._fresh: list[Framed] = []  # appended in this round of the loop, not sent to subscribers yet
        self._flush_scheduled = self._completion_scheduled = False
        self._stopping = False
        self._drained: asyncio.Event | None = None
        self._large_budget = LARGE_BUDGET
        self._large_waiting: deque[_Connection] = deque()
        self._commits = self._ingests = self._acked = 0
        self._applied = 0
        self._started = time.monotonic()
        self._rate = 0.0
        self._rate_at = self._started, 0

    # ------------------------------------------------------------------------------------------------ life cycle

    async def start(self) -> None:
        """Claim the journal and serve. Raises AustralisError with the reason if that is not possible."""
        directory = self._directory
        directory.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.page = page = SharedPage(directory.page, directory.cluster)
        claimed = await self._claim()
        journal = self.journal
        acked = page.load(Word.ACKED)
        if acked > claimed.floor:
            journal.close()
            raise JournalError(
                f"ALARM: the journal in {self._journal_place} ends at {claimed.floor}, but {acked} was acknowledged: "
                f"commits are missing; restore the journal from a copy, or accept the loss by deleting {directory.page}"
            )
        issued = max(claimed.floor, page.load(Word.ISSUED))
        self.adjudicator = Adjudicator(
            claimed.generation, claimed.floor, issued, claimed.ddl, claimed.known, claimed.known_floor
        )
        self._acked_tau, self._acked_ddl = claimed.floor, claimed.ddl
        self._newest = claimed.position
        self._flushed = claimed.position.sequence  # the newest record when subscribers were last sent something
        self._recent = RecentRecords(claimed.position.sequence - 1)
        claim = claimed.position
        self._recent.add(
            frame_record(claim.sequence, claim.generation, claim.hash, Kind.CLAIM, 0, claimed.floor, NO_TXID, b""),
            claim.sequence,
        )
        page.store(Word.GENERATION, claimed.generation)
        page.publish(claimed.floor, claimed.ddl)
        socket = directory.commit_socket
        socket.unlink(missing_ok=True)  # a predecessor may have been killed; the journal's lock says that it is gone
        self._server = await self._loop.create_unix_server(lambda: _Connection(self), str(socket), backlog=512)
        os.chmod(socket, 0o600)
        page.store(Word.COMMIT_PID, os.getpid())
        self._loop.call_later(TIDY_SECONDS, self._tidy)

    async def _claim(self) -> Claimed:
        """Open the journal and become its owner."""
        directory = self._directory
        settings = directory.journal_settings
        if settings.exists():
            from australis.journal.nats import NatsJournal
            from australis.journal.nats_server import read_settings

            where = read_settings(settings)
            self._journal_place = f"stream {where.stream}"

            def claim() -> tuple[Journal, Claimed]:
                journal = NatsJournal(
                    where, directory.cluster, self._journal_durable, self._journal_failed, directory=directory.journal
                )
                try:
                    return journal, journal.claim()
                except BaseException:
                    journal.close()
                    raise

            # takes as long as the servers take to answer; meanwhile we can be told to stop
            self.journal, claimed = await self._loop.run_in_executor(None, claim)
            return claimed
        self._journal_place = str(directory.journal)
        self.journal = journal = FilesJournal(
            directory.journal,
            directory.cluster,
            self._journal_durable,
            self._journal_failed,
            segment_bytes=self._segment_sizes[0],
            first_segment_bytes=self._segment_sizes[1],
        )
        return journal.claim()

    def _tidy(self) -> None:
        """Forget single keys that no transaction can conflict with any more; a wrong slot costs a false conflict."""
        if self._stopping:
            return
        oldest = self.page.oldest_slot()
        until = self._clock.now()[0] - SNAPSHOT_GRACE
        more = self.adjudicator.table.merge_until(min(until, oldest) if oldest is not None else until, TIDY_COMMITS)
        self._loop.call_later(0.02 if more else TIDY_SECONDS, self._tidy)

    async def stop(self) -> None:
        """Refuse what is new, finish what is decided, close."""
        self._stopping = True
        self.page.store(Word.COMMIT_PID, 0)
        if self._server is not None:
            self._server.close()
        self._flush()
        await self._loop.run_in_executor(None, self.journal.close)
        self._completed()
        for connection in list(self._connections):
            connection.transport.close()
        if self._connections:
            self._drained = asyncio.Event()  # transports flush their buffers first
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drained.wait(), STOP_SECONDS)
        for connection in list(self._connections):
            connection.transport.abort()
        self._directory.commit_socket.unlink(missing_ok=True)

    def _journal_failed(self, error: AustralisError) -> None:
        """Called in a thread of the journal."""

        def fail() -> None:
            if not self.failed.done():
                self.page.store(Word.COMMIT_PID, 0)
                self.failed.set_result(error)

        self._loop.call_soon_threadsafe(fail)

    # ------------------------------------------------------------------------------------------------- decisions

    def commit_plain(self, connection: _Connection, body: bytes, budget: int) -> bool:
        """Decide a message that is a plain commit with nothing against it; False: it is not, nothing was done."""
        if self._obstacle(len(body)) is not None:
            return False
        decided = self.adjudicator.commit_plain(body, self._clock.now()[0])
        if decided is None:
            return False
        self._accepted(connection, 0, *decided, body, budget)
        return True

    def _accepted(self, connection: _Connection, flags: int, tau: int, txid: bytes, body: bytes, budget: int) -> None:
        """Append a commit that was decided."""
        position = self.journal.append(Kind.TRANSACTION, flags, tau, txid, body, self.adjudicator.ddl)
        self._appended(position, Kind.TRANSACTION, flags, tau, txid, body, 0, connection, budget)
        if connection.unpublished:
            connection.unpublished.pop(txid, None)
        self._commits += 1

    def commit(self, connection: _Connection, commit: Commit, body: bytes, budget: int) -> bool:
        """Decide a commit; True if it was appended (the budget is then given back when it is durable)."""
        check_commit(commit)
        adjudicator = self.adjudicator
        obstacle = self._obstacle(len(body))
        if obstacle is None:
            verdict = adjudicator.commit(commit, self._clock.now()[0])
        else:
            verdict = adjudicator.refuse(commit.txid, obstacle, _outcome(obstacle))
        action = verdict.action
        if action is Action.APPEND:
            flags = (RecordFlag.DDL if commit.ddl is not None else 0) | (RecordFlag.DROPS if commit.drops else 0)
            self._accepted(connection, flags, verdict.tau, commit.txid, body, budget)
            return True
        if action is Action.REPLY:
            connection.send(CommitReply(commit.txid, verdict.outcome, verdict.tau, verdict.detail))
            if verdict.outcome is not Outcome.COMMITTED and commit.txid in connection.unpublished:
                self._abandon(connection, commit.txid)
        elif action is Action.UNKNOWN:
            connection.send(Error("08007", verdict.detail))
        return False

    def _obstacle(self, length: int) -> str | None:
        """Why nothing can be taken right now (rule Q10)."""
        if self._stopping or self.failed.done():
            return _STOPPING
        if len(self._waiting) >= MAX_PENDING:
            return _OVERLOAD
        queued = self.journal.queued_bytes
        if queued and queued + length > MAX_PENDING_BYTES:
            return _OVERLOAD
        if not self.journal.admits(length):
            return _FULL
        return None

    def ingest(self, connection: _Connection, ingest: Ingest, body: bytes, budget: int) -> bool:
        """Append a chunk of unpublished rows (rule Q8); True if it was appended."""
        check_ingest(ingest)
        relations = relations_of(body)
        obstacle = self._obstacle(len(body))
        if obstacle is None:
            obstacle = self.adjudicator.ingest_refusal(ingest.txid, ingest.generation)
        if obstacle is not None:
            connection.send(IngestReply(ingest.txid, ingest.seq, _outcome(obstacle), 0))
            return False
        connection.unpublished.setdefault(ingest.txid, set()).update(relations)
        tau = self.adjudicator.stamp(self._clock.now()[0])
        position = self.journal.append(Kind.INGEST, 0, tau, ingest.txid, body, self.adjudicator.ddl)
        self._appended(position, Kind.INGEST, 0, tau, ingest.txid, body, ingest.seq, connection, budget)
        self._ingests += 1
        return True

    def drop(self, body: bytes) -> None:
        """Make storage ids of an aborted transaction garbage. If the disk is full they stay: harmless, only space."""
        if self._obstacle(len(body)) is None:
            tau = self.adjudicator.stamp(self._clock.now()[0])
            position = self.journal.append(Kind.DROP, 0, tau, NO_TXID, body, self.adjudicator.ddl)
            self._appended(position, Kind.DROP, 0, tau, NO_TXID, body, 0, None, 0)

    def _abandon(self, connection: _Connection, txid: bytes) -> None:
        """Chunks of a transaction that certainly never commits are garbage."""
        relations = connection.unpublished.pop(txid)
        if relations:
            self.drop(encode(Drop(sorted(relations))))

    def resolve(self, connection: _Connection, resolve: Resolve) -> None:
        """Answer the fate of a transaction (rule Q2)."""
        outcome, tau = self.adjudicator.resolve(resolve.txid, resolve.tau_start, resolve.generation)
        connection.send(ResolveReply(resolve.txid, outcome, tau))

    def _appended(
        self,
        position: Position,
        kind: int,
        flags: int,
        tau: int,
        txid: bytes,
        body: bytes,
        chunk: int,
        connection: _Connection | None,
        budget: int,
    ) -> None:
        self._newest = position
        self.page.store(Word.ISSUED, tau)  # before storage can see any of it
        self._waiting.append(
            _Waiting(position.sequence, tau, self.adjudicator.ddl, kind, txid, chunk, connection, budget)
        )
        record = frame_record(position.sequence, position.generation, position.hash, kind, flags, tau, txid, body)
        self._recent.add(record, self.journal.durable)
        if self._subscribers:
            self._fresh.append(record)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what was appended in this round to subscribers that keep up."""
        self._flush_scheduled = False
        before, self._flushed = self._flushed, self._newest.sequence
        fresh, self._fresh = self._fresh, []
        if fresh:
            for subscriber in self._subscribers:
                subscriber.push(fresh, before)
            # The loop sends what was written to transports before it runs this: applying overlaps the synced write.
            self._loop.call_soon(self._write)
        else:
            self._write()

    def _write(self) -> None:
        """Let the journal write what was appended in this round."""
        self.journal.flush()
        if not self._completion_scheduled:
            self._completed()

    # ------------------------------------------------------------------------------------------------- durability

    def _journal_durable(self, sequence: int) -> None:
        """Called after each group: in the journal's writer thread, or in our own within `flush`."""
        if threading.get_ident() == self._thread:
            return  # _write looks itself
        if not self._completion_scheduled:
            # The flag is cleared before the journal's sequence is read, so no group is left behind.
            self._completion_scheduled = True
            self._loop.call_soon_threadsafe(self._completed)

    def _completed(self) -> None:
        """Publish and answer everything that is durable, in order."""
        self._completion_scheduled = False
        durable = self.journal.durable
        waiting = self._waiting
        done: list[_Waiting] = []
        while waiting and waiting[0].sequence <= durable:
            done.append(waiting.popleft())
        if not done:
            return
        self._acked_tau, self._acked_ddl = done[-1].tau, done[-1].ddl
        self.page.publish(self._acked_tau, self._acked_ddl)
        self._acked += len(done)
        transaction = self.adjudicator.durable
        for item in done:
            if item.kind == Kind.TRANSACTION:
                transaction(item.txid)
                if item.connection is not None:
                    item.connection.send(CommitReply(item.txid, Outcome.COMMITTED, item.tau, ""))
            elif item.kind == Kind.INGEST:
                self._unapplied.append(item)
            if item.budget:
                self.give_back(item.budget)
        if self._unapplied:
            self._answer_chunks()

    def _answer_chunks(self) -> None:
        """A chunk is answered when its writer can read it: durable and applied."""
        unapplied = self._unapplied
        while unapplied and unapplied[0].tau <= self._applied:
            item = unapplied.popleft()
            if item.connection is not None:
                item.connection.send(IngestReply(item.txid, item.chunk, Outcome.COMMITTED, item.tau))

    # ------------------------------------------------------------------------------------------------------ feed

    async def subscribe(self, connection: _Connection, request: Subscribe) -> None:
        """Answer a subscription and start feeding it."""
        start, after = await self._feed_start(request)
        connection.send(start)
        if start.status == FeedStatus.OK and connection in self._connections:
            subscriber = _Subscriber(self, connection, after)
            connection.subscriber = subscriber
            self._subscribers.append(subscriber)
            subscriber.pump()

    async def _feed_start(self, request: Subscribe) -> tuple[FeedStart, Position]:
        """Decide where a subscriber goes on (rule T3: and what it must discard first)."""
        generation = self.adjudicator.generation
        position = Position(request.sequence, request.generation, request.hash)

        def answer(status: FeedStatus, after: Position = position, rollback: int = -1) -> tuple[FeedStart, Position]:
            return FeedStart(status, generation, rollback, *after, self.journal.size()[0]), after

        if position.generation > generation or position.sequence > self._newest.sequence + (1 << 40):
            return answer(FeedStatus.DIVERGED)
        if position.generation == generation:
            # fed by this very process: all of it is in the journal's queue at least
            return answer(FeedStatus.OK if position.sequence <= self._newest.sequence else FeedStatus.DIVERGED)
        try:
            claim = await self._loop.run_in_executor(None, self.journal.next_claim, position.generation)
        except PositionGoneError:
            return answer(FeedStatus.GONE)
        if claim is None:
            return answer(FeedStatus.GONE)
        if position.sequence >= claim.position.sequence:
            # It was fed records of a generation that ended before they were journaled. All of those are above the
            # next generation's floor, which its claim carries.
            return answer(FeedStatus.OK, claim.previous, claim.tau)
        if position.sequence == claim.previous.sequence and position != claim.previous:
            return answer(FeedStatus.OK if position.sequence == 0 else FeedStatus.DIVERGED)
        return answer(FeedStatus.OK)

    def applied(self, message: Applied) -> None:
        """Storage has applied everything up to a time."""
        self._applied = message.tau
        if self._unapplied:
            self._answer_chunks()

    def trim(self, sequence: int) -> None:
        """Storage no longer needs records up to a sequence."""
        future = self._loop.run_in_executor(None, self.journal.trim, min(sequence, self.journal.durable))

        def done(result: asyncio.Future[int]) -> None:
            error = result.exception()
            if error is not None:
                self._journal_failed(JournalError(f"cannot trim the journal: {error}"))

        future.add_done_callback(done)

    # ------------------------------------------------------------------------------------------------ connections

    def connected(self, connection: _Connection) -> None:
        """A client has connected."""
        self._connections.add(connection)

    def disconnected(self, connection: _Connection) -> None:
        """A client is gone: what it ingested and didn't publish is garbage."""
        self._connections.discard(connection)
        if self._drained is not None and not self._connections:
            self._drained.set()
        if connection.subscriber is not None:
            self._subscribers.remove(connection.subscriber)
            connection.subscriber.close()
        for txid in list(connection.unpublished):
            if not self.adjudicator.committed(txid):
                self.adjudicator.kill(txid)
                self._abandon(connection, txid)
        if connection in self._large_waiting:
            self._large_waiting.remove(connection)

    def take_budget(self, connection: _Connection, size: int) -> bool:
        """May a large message be read now? If not, the connection is called when it may."""
        if self._large_budget >= size or self._large_budget == LARGE_BUDGET:
            self._large_budget -= size
            return True
        self._large_waiting.append(connection)
        return False

    def give_back(self, size: int) -> None:
        """A large message is done with."""
        self._large_budget += size
        while self._large_waiting:
            connection = self._large_waiting[0]
            if self._large_budget < connection.large_frame and self._large_budget != LARGE_BUDGET:
                return
            self._large_waiting.popleft()
            self._large_budget -= connection.large_frame
            connection.granted()

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status`; times in seconds unless the name says otherwise."""
        now, journal, adjudicator = time.monotonic(), self.journal, self.adjudicator
        since, before = self._rate_at
        if now - since >= 0.5:
            self._rate = (self._acked - before) / (now - since)
            self._rate_at = now, self._acked
        latencies = sorted(journal.latencies)
        size, segments = journal.size()
        return {
            "pid": os.getpid(),
            "uptime": now - self._started,
            "generation": adjudicator.generation,
            "floor_tau": adjudicator.floor,
            "last_tau": adjudicator.last,
            "acked_tau": self._acked_tau,
            "ddl": self._acked_ddl,
            "commits": adjudicator.commits,
            "conflicts": adjudicator.conflicts,
            "schema_conflicts": adjudicator.schema_conflicts,
            "refusals": adjudicator.refusals,
            "ingested_chunks": self._ingests,
            "commits_per_second": self._rate,
            "pending": len(self._waiting),
            "queued_bytes": journal.queued_bytes,
            "unapplied_chunks": len(self._unapplied),
            "connections": len(self._connections),
            "subscribers": len(self._subscribers),
            "table_keys": adjudicator.table.entries,
            "table_bytes": adjudicator.table.size,
            "journal_records": journal.records,
            "journal_groups": journal.groups,
            "journal_written_bytes": journal.bytes,
            "journal_size": size,
            "journal_segments": segments,
            "journal_sequence": journal.durable,
            "journal_full": int(journal.full),
            "write_p50": latencies[len(latencies) // 2] if latencies else 0.0,
            "write_p99": latencies[len(latencies) * 99 // 100] if latencies else 0.0,
            "applied_tau": self.page.load(Word.APPLIED),
            "applied_lag": max(0, self._acked_tau - self.page.load(Word.APPLIED)) / 1e9,
            "horizon_tau": self.page.load(Word.HORIZON),
        }


class _Subscriber:
    """Feeds one connection: from memory if it keeps up, else from the journal."""

    def __init__(self, service: CommitService, connection: _Connection, after: Position) -> None:
        self._service, self._connection = service, connection
        self._last = after.sequence
        self._after = after
        self._reader: Reader | None = None
        self._reading = False
        self._closed = False
        self.paused = False

    def push(self, records: list[Framed], before: int) -> None:
        """Send new records if nothing older is outstanding; `before` is the record in front of them."""
        if self.paused or self._reading or self._closed:
            return
        if self._last == before:
            self._send(records)
        else:
            self.pump()

    def _send(self, records: list[Framed], *, read: bool = False) -> None:
        """Send the records behind `_after`, which were read from the journal or come from memory."""
        self._last, self._after = records[-1].sequence, records[-1].position
        if not read and self._reader is not None:
            self._reader.close()  # it is behind now; the next one begins at `_after`
            self._reader = None
        if len(records) == 1:
            buffers: tuple[bytes, ...] | list[bytes] = records[0].buffers
        else:
            buffers = [buffer for record in records for buffer in record.buffers]
        self._connection.transport.writelines(buffers)

    def pump(self) -> None:
        """Send what is there until the connection has enough."""
        recent = self._service._recent
        while not (self.paused or self._reading or self._closed):
            if not recent.covers(self._last):
                self._read()
                return
            records = recent.behind(self._last, FEED_CHUNK)
            if not records:
                return
            self._send(records)

    def _read(self) -> None:
        """Read a chunk of the journal in another thread."""
        self._reading = True
        service = self._service

        def read() -> list[Framed]:
            if self._reader is None:
                self._reader = service.journal.reader(self._after)
            entries = self._reader.read(service.journal.durable, FEED_CHUNK)
            if self._reader.diverged:
                raise JournalError("the subscriber's position is not in the journal")
            return [frame_record(*e.position, e.kind, e.flags, e.tau, e.txid, e.body) for e in entries]

        future = service._loop.run_in_executor(None, read)
        future.add_done_callback(self._read_done)

    def _read_done(self, future: asyncio.Future[list[Framed]]) -> None:
        self._reading = False
        error = future.exception()
        if isinstance(error, PositionGoneError):
            self._connection.fail("55000", f"feed: {error}")
        elif error is not None:
            print(f"commit: feed: {error}", file=sys.stderr)
            self._connection.fail("58030", f"feed: {error}")
        elif not self._closed:
            records = future.result()
            if records:
                self._send(records, read=True)
            elif not self._service._recent.covers(self._last):
                # the rest of the range up to the buffer held no entry (parts, skipped records)
                self._last = self._service._recent.base
            self.pump()
        if self._closed:
            self.close()

    def close(self) -> None:
        """The connection is gone."""
        self._closed = True
        if self._reader is not None and not self._reading:
            self._reader.close()
            self._reader = None


class _Connection(asyncio.Protocol):
    """One client: decodes frames and hands messages to the service."""

    __slots__ = (
        "_budget",
        "_decoder",
        "_failing",
        "_service",
        "large_frame",
        "subscriber",
        "transport",
        "unpublished",
    )

    transport: asyncio.Transport

    def __init__(self, service: CommitService) -> None:
        self._service = service
        self._decoder = FrameDecoder()
        self._budget = 0  # granted for the large frame that is arriving
        self._failing = False
        self.large_frame = 0
        self.subscriber: _Subscriber | None = None
        self.unpublished: dict[bytes, set[int]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        transport = self.transport
        transport.set_write_buffer_limits(FEED_HIGH_WATER)
        self._service.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything."""
        self._service.disconnected(self)
        if self._budget:
            self._service.give_back(self._budget)
            self._budget = 0

    def pause_writing(self) -> None:
        """The peer is slow."""
        if self.subscriber is not None:
            self.subscriber.paused = True

    def resume_writing(self) -> None:
        """The peer has caught up."""
        if self.subscriber is not None:
            self.subscriber.paused = False
            self.subscriber.pump()

    def send(self, message: msgspec.Struct) -> None:
        """Send one message; to a peer that is gone, nothing."""
        if not self.transport.is_closing():
            self.transport.write(frame(encode(message)))

    def fail(self, sqlstate: str, message: str) -> None:
        """Tell the peer what is wrong and close."""
        self._failing = True
        self.send(Error(sqlstate, message))
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Handle the messages that are complete."""
        if self._failing:
            return
        try:
            for body in self._decoder.feed(data):
                self._handle(body)
            expected = self._decoder.expected
            if expected > LARGE_FRAME and not self._budget and not self.large_frame:
                self._large(expected)
        except msgspec.MsgspecError as error:
            self.fail("08P01", f"not a message of the protocol: {error}")
        except ProtocolError as error:
            self.fail(error.sqlstate, str(error))

    def _large(self, size: int) -> None:
        """A large message is arriving: go on reading it when there is memory for it."""
        self.large_frame = size
        if self._service.take_budget(self, size):
            self._budget, self.large_frame = size, 0
        else:
            self.transport.pause_reading()

    def granted(self) -> None:
        """There is memory for the large message."""
        self._budget, self.large_frame = self.large_frame, 0
        self.transport.resume_reading()

    def _handle(self, body: bytes) -> None:
        service = self._service
        budget = self._budget
        if service.commit_plain(self, body, budget):
            self._budget = 0
            return
        message = client_decoder.decode(body)
        kind = type(message)
        self._budget = 0
        kept = False
        if kind is Commit:
            assert isinstance(message, Commit)
            kept = service.commit(self, message, body, budget)
        elif isinstance(message, Ingest):
            kept = service.ingest(self, message, body, budget)
        elif isinstance(message, Resolve):
            service.resolve(self, message)
        elif isinstance(message, Drop):
            service.drop(body)
        elif isinstance(message, Applied):
            service.applied(message)
        elif isinstance(message, Hello):
            self._hello(message)
        elif isinstance(message, Status):
            self.send(StatusReply(service.status()))
        elif isinstance(message, Trim):
            service.trim(message.sequence)
        elif isinstance(message, Subscribe):
            if self.subscriber is not None:
                raise ProtocolError("already subscribed")
            task = asyncio.ensure_future(service.subscribe(self, message))
            task.add_done_callback(self._subscribed)
        if budget and not kept:
            service.give_back(budget)

    def _subscribed(self, task: asyncio.Task[None]) -> None:
        error = task.exception()
        if error is not None:
            print(f"commit: feed: {error}", file=sys.stderr)
            self.fail("58030", f"feed: {error}")

    def _hello(self, hello: Hello) -> None:
        service = self._service
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(f"protocol {hello.protocol}, this service speaks {PROTOCOL_VERSION}")
        if hello.cluster != service._directory.cluster:
            self.fail("08004", "this is another cluster")
            return
        self.send(Hello(PROTOCOL_VERSION, hello.cluster, "commit", service.adjudicator.generation))


async def serve(directory: ClusterDirectory, segment_bytes: int, first_segment_bytes: int) -> None:
    """Run the commit service until SIGTERM or a failure (raised)."""
    service = CommitService(directory, segment_bytes=segment_bytes, first_segment_bytes=first_segment_bytes)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await service.start()
    tune()
    announce(service="commit", generation=service.adjudicator.generation, floor=service.adjudicator.floor)
    service.failed.add_done_callback(lambda _: stop.set())
    await stop.wait()
    await service.stop()
    if service.failed.done():
        raise service.failed.result()


def main() -> int:
    """Command line of the commit process."""
    parser = argparse.ArgumentParser(prog="australis.commit_process", description="Adjudicator and journal.")
    parser.add_argument("--data", type=Path, required=True, help="the cluster's data directory")
    parser.add_argument("--run", type=Path, help="directory of sockets and the shared page (default: DATA/run)")
    parser.add_argument("--parent", type=int, help="end when this process, our parent, ends (default: whoever it is)")
    parser.add_argument("--segment-bytes", type=int, default=SEGMENT_BYTES, help="size of a journal segment")
    parser.add_argument("--first-segment-bytes", type=int, default=FIRST_SEGMENT_BYTES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    die_with_parent(options.parent)

    async def body() -> None:
        directory = open_cluster(options.data, options.run)
        await serve(directory, options.segment_bytes, options.first_segment_bytes)

    return run(body, "commit")


if __name__ == "__main__":
    raise SystemExit(main())
