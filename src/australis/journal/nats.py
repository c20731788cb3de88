"""The engine "nats" of the journal: a stream of NATS JetStream, replicated and synced before it answers (rules J1, J2).

    append -> flush -> pipeline.py (decides) -> up to 4 messages on their way -> answers, or reading -> on_durable

One stream per journal. Its owner is whoever's claim is the last in it: a claim is appended with the expectation that
the stream ends where the claimer has read to, and recognised by its nonce when it is read back. What must hold:
- nothing here decides what counts: `validity.py` does, for the owner as for every reader. The engine's comparison of
  places is an optimisation, not the fence;
- callbacks come from the thread of this journal, which runs an event loop of its own: requests to the servers never
  wait for the owner, nor the owner for them;
- a journal that ends before what it acknowledged is refused (`reached.py`).

While no server leads the stream (an election takes 4 to 9 seconds), appends wait; after a minute without progress the
owner is told that it failed, ends, and a new generation reads what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from nats.js.api import StreamInfo

from australis.errors import (
    AustralisError,
    FencedError,
    JournalError,
    PositionGoneError,
    WrongClusterError,
)
from australis.journal import reached as reached_mark
from australis.journal.interface import Claimed, Fold, OnDurable, OnFailed
from australis.journal.message import PART_BYTES, PREAMBLE_BYTES, Queued, Summary, pack_message
from australis.journal.nats_server import NatsSettings, check_servers, check_stream, stream_config
from australis.journal.pipeline import Durable, Effect, Failed, Pipeline, Read, Refusal, Send
from australis.journal.record import (
    HEADER_BYTES,
    START,
    Entry,
    Kind,
    Position,
    encode_record,
)
from australis.journal.stream import (
    READ_BYTES,
    Mark,
    StreamClient,
    StreamGoneError,
    StreamScan,
    UnavailableError,
    size_of,
)

OPEN_SECONDS = 45.0
"""How long servers may take to answer before a journal cannot be opened or claimed."""

CLOSE_SECONDS = 8.0
RETRY_SECONDS = 0.1
MARK_BYTES = 1 << 20
MARK_MESSAGES = 256
"""How far apart remembered places of the stream are at most."""

KNOWN = 200_000
"""Transactions at the end of the journal that are remembered when it is claimed."""

NOTE_SECONDS = 1.0
LATENCIES = 1024
OVERHEAD = HEADER_BYTES + PREAMBLE_BYTES + 256
"""What a record may cost in the stream beside its body."""

_T = TypeVar("_T")


class NatsJournal:
    """A journal on NATS servers; implements `interface.Journal`."""

    def __init__(
        self,
        settings: NatsSettings,
        cluster: bytes,
        on_durable: OnDurable,
        on_failed: OnFailed,
        *,
        directory: Path | None = None,
        check: bool = True,
        part_bytes: int = PART_BYTES,
        patience: float = OPEN_SECONDS,
        fold: Fold | None = None,
    ) -> None:
        """Connect, check the servers and the stream, create it if this is the first time, and read it.

        `directory` is where the cluster remembers how far the journal has been durable. Raises UnavailableError,
        UnsafeServerError, WrongClusterError, LostRecordsError, StreamDamagedError.
        """
        self._settings, self._cluster = settings, cluster
        self._on_durable, self._on_failed = on_durable, on_failed
        self._directory = directory
        self._part_bytes = part_bytes
        self._patience = patience
        self._fold = fold
        self._batch: list[Queued] = []  # appended, not flushed; the owner's thread only
        self._queued_bytes = 0  # the owner's thread adds,
        self._written_off = 0  # ours adds; each under the lock of the interpreter
        self._next = START
        self.durable = 0
        self.latencies: deque[float] = deque(maxlen=LATENCIES)
        self.groups = self.records = self.bytes = 0
        # the lines below belong to the journal's thread, except that others copy the two lists
        self._marks: list[Mark] = []
        self._claims: list[Entry] = []
        self._known: deque[tuple[bytes, int]] = deque()
        self._known_floor = 0
        self._stored_bytes = 0
        self._since_mark = 0, 0  # messages, bytes
        self._durable_at = START
        self._pipeline: Pipeline | None = None
        self._outbox: deque[Send] = deque()
        self._wake = asyncio.Event()
        self._quiet = asyncio.Event()  # nothing is queued, or it failed
        self._claim_answer: asyncio.Future[int | Refusal] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._said = ""  # the last refusal, for the error
        self._tau = 0
        self._closing = False
        self._noted = START
        self._noting = threading.Lock()  # the noter's thread and the one that closes write the same file
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._client = StreamClient(settings, self._answered)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="journal-nats", daemon=True)
        self._thread.start()
        try:
            self._call(self._open(check))
        except BaseException:
            self._end()
            raise

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run something in the journal's thread, from any other."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        """Close the connection, end the thread."""

        async def finish() -> None:
            self._closing = True
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._client.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:  # of the connection
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)  # transports close in the next round

        try:
            self._call(finish())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error if isinstance(error, AustralisError) else JournalError(f"the journal failed: {error!r}"))

    # ------------------------------------------------------------------------------------------------------ opening

    async def _patiently(self, what: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Ask again while the servers do not answer, as long as that may take."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return await what()
            except UnavailableError:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _open(self, check: bool) -> None:
        settings = self._settings
        reached = reached_mark.load(self._directory, self._cluster) if self._directory is not None else None
        await self._patiently(lambda: self._client.open(self._disconnected))
        if check:
            await check_servers(settings)
        if reached is None:
            info = await self._patiently(lambda: self._client.create(stream_config(settings, self._cluster)))
        else:
            try:
                info = await self._patiently(self._client.info)
            except StreamGoneError:
                raise reached_mark.lost(f"stream {settings.stream}", reached, 0) from None
        self._check(info)
        self._reached = reached
        self._scan = StreamScan(settings.stream, self._cluster, None, watched=reached.position if reached else None)
        await self._catch_up(info)
        self._check_reached()
        self.durable = self._scan.last.sequence

    def _check(self, info: StreamInfo) -> None:
        owner = (info.config.metadata or {}).get("australis.cluster")
        if owner != self._cluster.hex():
            raise WrongClusterError(
                f"stream {self._settings.stream} belongs to {f'cluster {owner}' if owner else 'no cluster'}; "
                "name another in [journal] stream"
            )
        check_stream(info.config, self._settings)

    async def _catch_up(self, info: StreamInfo) -> None:
        """Read on to where the stream's leader says that it ends."""
        end = info.state.last_seq
        if info.state.messages == 0 and self._scan.first is None:
            if end != 0:
                raise reached_mark.LostRecordsError(
                    f"ALARM: stream {self._settings.stream} is empty, but had {end} messages; restore it from a copy"
                )
            self._marks = [Mark(0, START)]
        first = self._scan.place or max(0, info.state.first_seq - 1)
        place = first
        while place < end:
            messages = await self._patiently(functools.partial(self._read_some, place))
            for place, payload in messages:
                self._scanned(place, payload)
        self._stored_bytes = info.state.bytes

    async def _read_some(self, after: int) -> list[tuple[int, bytes]]:
        """Messages behind a place that are there for certain: a replica that lags is asked again."""
        messages = await self._client.read(after)
        if not messages:
            raise UnavailableError(f"stream {self._settings.stream}: no replica has message {after + 1}")
        return messages

    def _scanned(self, place: int, payload: bytes) -> None:
        """Take one message while opening."""
        scan = self._scan
        before = scan.last
        began = scan.first is None
        for entry in scan.add(place, payload):
            self._remember(entry)
        if began:
            assert scan.first is not None
            self._marks = [scan.first]
            if scan.first.position != START:
                self._known.clear()  # what was before it is not known, so begin behind its times
                self._known_floor = scan.summary.tau
        if scan.last != before:
            self._mark(place, scan.last, 1, len(payload))

    def _remember(self, entry: Entry) -> None:
        if self._fold is not None and self._pipeline is None:
            self._fold.add(entry)
        if entry.kind == Kind.CLAIM:
            self._claims.append(entry)
        elif entry.kind == Kind.TRANSACTION:
            self._known.append((entry.txid, entry.tau))
            if len(self._known) > KNOWN:
                self._known_floor = self._known.popleft()[1]

    def _mark(self, place: int, position: Position, messages: int, size: int) -> None:
        """Remember places now and then."""
        count, total = self._since_mark
        count, total = count + messages, total + size
        if count >= MARK_MESSAGES or total >= MARK_BYTES:
            self._marks.append(Mark(place, position))
            count = total = 0
        self._since_mark = count, total

    def _check_reached(self) -> None:
        """Rule of the loss detector: what was acknowledged must be there, or have been trimmed."""
        reached, scan = self._reached, self._scan
        if reached is None or scan.met:
            return
        if scan.first is not None and not scan.diverged and scan.first.position.sequence > reached.sequence:
            return  # trimmed beyond it
        raise reached_mark.lost(f"stream {self._settings.stream}", reached, scan.last.sequence)

    # -------------------------------------------------------------------------------------------------------- claim

    def claim(self) -> Claimed:
        """Start a generation (rule A1); its claim is durable and was read back on return.

        Raises UnavailableError when the servers don't answer in time, FencedError if another claim came right after.
        """
        claimed = self._call(self._claim())
        self._next = claimed.position
        return claimed

    async def _claim(self) -> Claimed:
        scan = self._scan
        deadline = time.monotonic() + self._patience
        highest = 0
        while True:
            await self._catch_up(await self._patiently(self._client.info))
            self._check_reached()
            before = scan.summary
            floor = max(before.tau, before.horizon)
            horizon, body = 0, b""
            if self._fold is not None:
                floor = horizon = max(floor, self._fold.floor)
                body = self._fold.claim_body()
            highest = max(highest, scan.last.generation)
            nonce = os.urandom(16)
            position = scan.last
            record = encode_record(
                Kind.CLAIM,
                0,
                self._cluster,
                highest + 1,
                position.sequence + 1,
                position.hash,
                horizon,
                floor,
                nonce,
                body,
            )
            claim = Position(position.sequence + 1, highest + 1, record.hash)
            queued = Queued(record.header, body, claim, floor, before.ddl)
            payload, summary = pack_message([queued], position.generation, before)
            place = scan.place + 1
            await self._settle(place, nonce.hex(), payload)
            entry = scan.claim
            if entry is not None and entry.txid == nonce:
                break
            if any(other.txid == nonce for other in self._claims):
                raise FencedError("another process has claimed the journal at the same time")
            if time.monotonic() >= deadline:
                raise JournalError("the journal could not be claimed: others append all the time")
        self._claimed(claim, place, summary, nonce)
        return Claimed(claim.generation, claim, floor, before.ddl, list(self._known), self._known_floor)

    async def _settle(self, place: int, message_id: str, payload: bytes) -> None:
        """Append the message at a place, and read what is there in the end: it, or something else."""
        deadline = time.monotonic() + self._patience
        while self._scan.place < place:
            self._claim_answer = self._loop.create_future()
            try:
                await self._client.append(0, message_id, place - 1, payload)
                async with asyncio.timeout(2.0):
                    await self._claim_answer
            except (UnavailableError, TimeoutError):
                pass  # it may be there nevertheless: look
            await self._catch_up(await self._patiently(self._client.info))
            if self._scan.place < place:
                if time.monotonic() >= deadline:
                    raise UnavailableError(f"the journal could not be claimed: {self._said or 'no answer'}")
                await asyncio.sleep(RETRY_SECONDS)

    def _claimed(self, claim: Position, place: int, summary: Summary, nonce: bytes) -> None:
        scan = self._scan
        self._tau = summary.tau
        self._pipeline = Pipeline(self._cluster, nonce.hex(), claim, scan.place, summary, place)
        self._durable_at = claim
        self.durable = claim.sequence
        self._marks.append(Mark(place, claim))
        self._note_reached()
        self._spawn(self._sender())
        self._spawn(self._noter())

    # ------------------------------------------------------------------------------------------------------- append

    def append(self, kind: int, flags: int, tau: int, txid: bytes, body: bytes, ddl: int, horizon: int = 0) -> Position:
        """Queue one record; large bodies become data parts in front of it (rule J3)."""
        last = self._next
        sequence, hash, generation = last.sequence, last.hash, last.generation
        parts = 0
        rest: bytes | memoryview = body
        if len(body) > self._part_bytes:
            view = memoryview(body)
            parts = (len(body) - 1) // self._part_bytes
            for part in range(parts):
                piece = view[part * self._part_bytes : (part + 1) * self._part_bytes]
                sequence += 1
                record = encode_record(Kind.PART, 0, self._cluster, generation, sequence, hash, 0, 0, txid, piece, part)
                hash = record.hash
                # neither tau nor ddl of the transaction is true before its last record
                self._queue(Queued(record.header, piece, Position(sequence, generation, hash), 0, 0))
            rest = view[parts * self._part_bytes :]
        sequence += 1
        record = encode_record(
            kind, flags, self._cluster, generation, sequence, hash, horizon, tau, txid, rest, parts, parts
        )
        self._next = position = Position(sequence, generation, record.hash)
        self._queue(Queued(record.header, rest, position, tau, ddl))
        return position

    def _queue(self, record: Queued) -> None:
        self._queued_bytes += len(record.body) + OVERHEAD
        self._batch.append(record)

    def flush(self) -> None:
        """Hand over what was appended. From the owner's thread only."""
        if self._batch:
            batch, self._batch = self._batch, []
            self._loop.call_soon_threadsafe(self._submit, batch)

    @property
    def queued_bytes(self) -> int:
        """Bytes that are appended but not durable."""
        return self._queued_bytes - self._written_off

    @property
    def full(self) -> bool:
        """Has the stream no space for more at the moment?"""
        return self._pipeline is not None and self._pipeline.full

    def admits(self, length: int) -> bool:
        """May a record of this length be appended? False: the stream is full; nothing is lost, try again later."""
        records = 1 + length // self._part_bytes
        beyond = self._stored_bytes + self.queued_bytes + length + records * OVERHEAD
        return not self.full and beyond <= self._settings.max_bytes

    # ------------------------------------------------------------------------------------ effects, in our own thread

    def _submit(self, batch: list[Queued]) -> None:
        pipeline = self._pipeline
        assert pipeline is not None, "claim comes first"
        if not pipeline.failed:
            self._quiet.clear()
            self._act(pipeline.submit(batch, time.monotonic()))

    def _answered(self, number: int, answer: int | Refusal, text: str) -> None:
        if text:
            self._said = text
        pipeline = self._pipeline
        if pipeline is None or number == 0:
            if self._claim_answer is not None and not self._claim_answer.done():
                self._claim_answer.set_result(answer)
            return
        now = time.monotonic()
        self._act(
            pipeline.stored(number, answer, now) if isinstance(answer, int) else pipeline.refused(number, answer, now)
        )

    def _disconnected(self) -> None:
        if self._pipeline is not None:
            self._act(self._pipeline.disconnected())

    def _act(self, effects: list[Effect]) -> None:
        """Carry out what the pipeline decided."""
        pipeline = self._pipeline
        assert pipeline is not None
        for effect in effects:
            if isinstance(effect, Send):
                self._outbox.append(effect)
                self._wake.set()
            elif isinstance(effect, Durable):
                self._durable(effect)
            elif isinstance(effect, Read):
                self._outbox.clear()  # void; it will be sent again if need be
                self._spawn(self._resolve(effect.after))
            else:
                self._pipeline_failed(effect)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if pipeline.idle:
            self._quiet.set()
        due = pipeline.due()
        if due is not None and not self._closing:
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._pipeline is not None:
            self._act(self._pipeline.tick(time.monotonic()))

    async def _sender(self) -> None:
        """Send messages in order."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                send = self._outbox.popleft()
                try:
                    await self._client.append(send.number, send.message_id, send.expected, send.payload)
                except UnavailableError as error:
                    self._answered(send.number, Refusal.UNAVAILABLE, str(error))

    async def _resolve(self, after: int) -> None:
        """Read what is behind a place."""
        pipeline = self._pipeline
        assert pipeline is not None
        messages: list[tuple[int, bytes]] = []
        try:
            info = await self._client.info()
            end, place = info.state.last_seq, after
            while place < end:
                some = await self._read_some(place)
                messages += some
                place = some[-1][0]
        except UnavailableError as error:
            self._said = str(error)
            self._act(pipeline.unreadable(time.monotonic()))
            return
        except (StreamGoneError, PositionGoneError) as error:
            self._failed(JournalError(f"ALARM: {error}, but the journal was in use: records are lost"))
            return
        self._act(pipeline.read(messages, max(end, place), time.monotonic()))

    def _durable(self, effect: Durable) -> None:
        pipeline = self._pipeline
        assert pipeline is not None
        self.records += effect.sequence - self.durable
        self.groups += effect.messages
        self.bytes += effect.bytes
        self._written_off += effect.body_bytes + (effect.sequence - self.durable) * OVERHEAD
        self._stored_bytes += effect.bytes + effect.messages * 256
        self._tau = max(self._tau, effect.tau)
        if effect.seconds is not None:
            self.latencies.append(effect.seconds)
        self.durable = effect.sequence
        self._durable_at = pipeline.confirmed
        self._mark(pipeline.confirmed_place, pipeline.confirmed, effect.messages, effect.bytes)
        self._on_durable(effect.sequence)

    def _pipeline_failed(self, effect: Failed) -> None:
        cause = f"the journal {self._settings.stream}: {effect.cause}"
        if effect.fenced:
            self._failed(FencedError(cause))
        else:
            self._failed(JournalError(f"{cause}{f' ({self._said})' if self._said else ''}"))

    def _failed(self, error: AustralisError) -> None:
        """Tell the owner, once."""
        if not self._closing:
            self._closing = True
            self._quiet.set()
            self._on_failed(error)

    # ---------------------------------------------------------------------------------------------- loss detector

    async def _noter(self) -> None:
        """Write down how far the journal is durable, every second in which that changed."""
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            if self._noted != self._durable_at:
                position, tau = self._durable_at, self._tau
                await self._loop.run_in_executor(None, self._note, position, tau)

    def _note_reached(self) -> None:
        self._note(self._durable_at, self._tau)

    def _note(self, position: Position, tau: int) -> None:
        if self._directory is None:
            return
        with self._noting:
            if position.sequence < self._noted.sequence:
                return  # somebody faster has written a later one
            try:
                reached_mark.save(self._directory, self._cluster, position, tau)
            except OSError as error:
                raise JournalError(f"cannot write {self._directory / reached_mark.FILE}: {error.strerror}") from None
            self._noted = position

    # ------------------------------------------------------------------------------------------------------ reading

    def reader(self, after: Position) -> NatsReader:
        """Return a reader behind a position, for use in any one thread but the journal's own."""
        return NatsReader(self, after)

    def oldest(self) -> Position:
        """Return the position behind which the stream begins, as far as is known."""
        return self._marks[0].position

    def tail(self, after: Position) -> Iterator[Entry]:
        """Yield entries behind a position up to what is durable now."""
        reader = self.reader(after)
        durable = self.durable
        while entries := reader.read(durable, 1 << 20):
            yield from entries

    def start_for(self, after: Position) -> Mark:
        """The last remembered place at or before a position; PositionGoneError if the journal begins behind it."""
        marks = list(self._marks)
        index = bisect_right(marks, after.sequence, key=lambda mark: mark.position.sequence)
        if index == 0:
            raise PositionGoneError(f"the journal no longer reaches back to record {after.sequence}")
        return marks[index - 1]

    def next_claim(self, generation: int) -> Entry | None:
        """Return the first claim above a generation, if the journal still holds it."""
        marks, claims = list(self._marks), list(self._claims)
        if not marks or marks[0].position.generation > generation:
            return None
        return next((claim for claim in claims if claim.position.generation > generation), None)

    def trim(self, sequence: int) -> int:
        """Purge the messages whose records are all at or below a sequence; any thread may call it.

        The first message that stays is one that counts, as readers begin there.
        """
        return self._call(self._trim(sequence))

    async def _trim(self, sequence: int) -> int:
        index = bisect_right(self._marks, sequence, key=lambda mark: mark.position.sequence)
        while index and self._marks[index - 1].place == 0:
            index -= 1
        if index == 0:
            return 0
        mark = self._marks[index - 1]
        try:
            before = (await self._client.info()).state.bytes
            await self._client.purge_below(mark.place)
            self._stored_bytes = (await self._client.info()).state.bytes
        except UnavailableError:
            return 0  # storage asks again when it has its next snapshot
        del self._marks[: index - 1]
        self._claims = [c for c in self._claims if c.position.sequence >= mark.position.sequence]
        return max(0, before - self._stored_bytes)

    def size(self) -> tuple[int, int]:
        """Return (bytes of the stream, 1)."""
        return self._stored_bytes, 1

    def close(self) -> None:
        """Wait for queued records, as long as that may take; then let go of the journal."""
        if self._pipeline is not None:
            self.flush()
            self._call(self._drain())
        pipeline = self._pipeline
        try:
            if pipeline is not None and not pipeline.failed:
                self._note_reached()
        finally:
            self._end()

    async def _drain(self) -> None:
        pipeline = self._pipeline
        assert pipeline is not None
        if not (pipeline.idle or pipeline.failed or self._closing):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._quiet.wait()


class NatsReader:
    """Yields valid entries behind a position; comes back for more. Not for two threads at once."""

    def __init__(self, journal: NatsJournal, after: Position) -> None:
        self._journal = journal
        self._scan = StreamScan(journal._settings.stream, journal._cluster, journal.start_for(after), after)

    @property
    def diverged(self) -> bool:
        """Does the journal hold another record at the position?"""
        return self._scan.diverged

    def read(self, durable: int | None, limit: int) -> list[Entry]:
        """Return entries up to sequence `durable` (None: all there is), about `limit` bytes of them.

        An empty list means that nothing more is there now. Raises StreamDamagedError, PositionGoneError,
        UnavailableError.
        """
        return self._journal._call(self._read(durable, limit))

    async def _read(self, durable: int | None, limit: int) -> list[Entry]:
        entries: list[Entry] = []
        size = 0
        scan, client = self._scan, self._journal._client
        while size < limit:
            if durable is not None and scan.last.sequence >= durable:
                break
            if durable is None:
                messages = await client.read(scan.place, min(READ_BYTES, max(limit, 1)))
                if not messages:
                    break
            else:  # more is there for certain
                messages = await self._journal._patiently(functools.partial(self._journal._read_some, scan.place))
            for place, payload in messages:
                found = scan.add(place, payload)
                entries += found
                size += size_of(found)
        return entries

    def close(self) -> None:
        """Nothing is held between reads."""
