"""One replica of one shard as a process: follows a crossbar, keeps its ranges in a store, answers reads as of a time.

    crossbar --ShardRecord, Watermark--> `_Feed` -> queue -> `_apply_all` (a thread writes) -> waiting reads
    gateways --Get, Scan, Stats--> `_Reader` -> store

What must hold:
- a read as of tau is answered when everything at or below tau is applied, or refused (NOT_FRESH after a time limit,
  BELOW_HORIZON, NOT_HELD); it is never answered with less;
- a batch and the positions from which a crossbar would go on are written in one transaction of the store (S1); only
  keys of ranges that this replica holds are kept (holdings.py);
- memory is bounded: a feed that comes faster than it is applied, and a reader who does not read, stop being read from.

If its crossbar goes away, the next one is asked; reads of what is applied go on. If the disk is full, applying waits
for space. If the store is missing, damaged or from another boot, it is made again from the newest snapshot in the
object store (shard_keeper.py) and the journals behind it, and if those do not reach back, from another replica of the
shard; without one the process says so and ends. Nothing of it is durable by itself: that is the journals' duty.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog
from prometheus_client import Histogram

from australis.clock import Clock, open_clock
from australis.errors import AustralisError, StorageError
from australis.keyspace import KeyRanges, without
from australis.observe import observed
from australis.partition_map import PartitionMap
from australis.protocol.messages import (
    Error,
    Export,
    ExportReply,
    FeedRecord,
    FeedStatus,
    Get,
    GetMap,
    GetReply,
    MapReply,
    OldestSnapshot,
    ReadStatus,
    Scan,
    ScanReply,
    ShardApplied,
    ShardHeld,
    ShardRecord,
    ShardStart,
    ShardSubscribe,
    Stats,
    StatsReply,
    Status,
    StatusReply,
    WantWatermark,
    Watermark,
)
from australis.role_config import RoleConfig, identity_of
from australis.storage import horizon as horizons
from australis.storage.garbage import Garbage
from australis.storage.holdings import Holdings, RangeKeeper
from australis.storage.scans import INLINE_ROWS, answer_scan
from australis.storage.shard_keeper import SnapshotKeeper, restore
from australis.storage.shard_snapshots import SnapshotStoppedError
from australis.storage.store import (
    DATA_FILE,
    DamagedError,
    FullError,
    Store,
    StoreError,
    TooOldError,
    open_store,
)
from australis.transport import Address, Connection, Identity, Link, Server, listen

FRESH_SECONDS = 10.0
READ_THREADS = 2
MAX_REQUEST = 64 << 20
MAX_WAITING = 10_000
QUEUE_BYTES = 64 << 20
BATCH_RECORDS = 4096
REPORT_SECONDS = 1.0
SILENCE_SECONDS = 1.5
"""A crossbar says something four times a second."""

COLLECT_ENTRIES = 1000
COLLECT_BUSY_SECONDS, COLLECT_IDLE_SECONDS = 0.05, 1.0
FULL_RETRY_SECONDS = 0.5
NOBODY = (1 << 63) - 1
FIRST_MAP_SECONDS = 5.0
"""How long a new replica waits for the control plane to say what it is to hold."""

FROM_NOW = -1
"""Time of a store that has nothing yet: feed it what is new."""

MAX_EXPORT = 4 << 20
SNAPSHOT_RECORDS = 1_000_000
"""Applied since the last snapshot, before its time has come."""

HEAT_EVERY, HEAT_KEYS = 32, 64
SAMPLES, SAMPLE_SECONDS = 32, 5.0

log = structlog.get_logger()

_Fed = ShardStart | ShardRecord | Watermark | Error
_feed_decoder: msgspec.msgpack.Decoder[_Fed] = msgspec.msgpack.Decoder(_Fed)
_Asked = Get | Scan | Stats | Status | OldestSnapshot | Export
_ask_decoder: msgspec.msgpack.Decoder[_Asked] = msgspec.msgpack.Decoder(_Asked)
_control_decoder: msgspec.msgpack.Decoder[MapReply | GetMap] = msgspec.msgpack.Decoder(MapReply | GetMap)


class ShardService:
    """See the module."""

    def __init__(self, config: RoleConfig, *, attempt: int = 0) -> None:
        """Opens or makes the store. Raises AustralisError.

        `attempt` 1: the journals do not reach back to where the store was; 2: nor to where the newest snapshot was.
        """
        from_now = attempt > 1 or (attempt == 1 and not config.objects)  # an empty one, that others fill
        self.attempt = attempt
        self.config = config
        self.cluster = config.cluster_id
        self.clock: Clock = open_clock(config.clock.source, config.clock.max_error)
        self.identity: Identity = identity_of(config)
        self.map = PartitionMap.decode(bytes.fromhex(config.map))
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[Exception] = self._loop.create_future()
        self.directory = Path(config.data) / "storage"
        self.rebuilds = attempt
        self.store: Store = self._open()
        self.holdings = Holdings(self.store)
        if self.holdings.map is not None and self.holdings.map.version > self.map.version:
            self.map = self.holdings.map
        self.garbage = Garbage(self.store)
        if from_now:
            self.holdings.keep(KeyRanges([]))
        elif self.holdings.known:
            self.holdings.apply_to(self.holdings.held)
        self.start_over = False  # end, and begin with another store
        self.snapshots = self._snapshot_keeper() if config.objects else None
        self.keeper = RangeKeeper(self)
        self.writing = asyncio.Lock()
        self.applied = 0  # a watermark: everything at or below it is in the store, and can be read
        self.positions = self.store.meta("position") or b""
        self.state = "connecting"
        self._subscribed = KeyRanges([])
        self._heat: deque[bytes] = deque(maxlen=HEAT_KEYS)
        self._samples: tuple[float, list[bytes]] = -SAMPLE_SECONDS, []
        self._first_map = asyncio.Event()
        self.executor = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="shard-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shard-write")
        self._stopping = threading.Event()  # ends the writer's wait for space
        self._queue: deque[ShardRecord | Watermark] = deque()
        self._queued_bytes = 0
        self._more = asyncio.Event()
        self._waiting: list[tuple[int, int, float, Callable[[bool], None]]] = []
        self._numbers = itertools.count()
        self._oldest: dict[_Reader, int] = {}
        self._feed = _Feed(self)
        self._link: Link
        self._control: Link | None = None
        self._server: Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted = 0
        self.gets = self.scans = self.records = self.batches = 0
        self.wait_seconds: Histogram | None = None
        self._started = time.monotonic()

    # ------------------------------------------------------------------------------------------------ life cycle

    def _open(self) -> Store:
        """What `prepare` left (S2). Raises StorageError: it is another cluster's, or cannot be opened."""
        try:
            store = open_store(self.directory, self.cluster)
        except StoreError as error:
            raise StorageError(str(error)) from error
        store.reader_check()
        return store

    def _snapshot_keeper(self) -> SnapshotKeeper:
        config = self.config

        def rank() -> int:
            names = self.map.replicas.get(config.number, ())
            return names.index(config.name) if config.name in names else len(names)

        return SnapshotKeeper(
            config.objects,
            self.cluster,
            config.number,
            rank,
            Path(config.data) / "snapshot",
            every=config.snapshot_seconds,
            every_records=SNAPSHOT_RECORDS,
        )

    def placed(self) -> list[tuple[bytes, bytes]]:
        """What its shard answers for."""
        return self.map.placed(self.config.number)

    @property
    def records_applied(self) -> int:
        """Since it was started."""
        return self.records

    async def start(self) -> None:
        """Follow and serve. Raises OSError, AddressError."""
        peers = self.config.peers
        if peers.control:
            self._control = Link([Address.parse(text) for text in peers.control], self.identity, _Control(self))
            self._control.start()
        if not self.holdings.known:
            await self._begin_holding()
        crossbars = [Address.parse(text) for text in peers.crossbars]
        # replicas of a shard begin with different crossbars, so that they share the work
        first = (self.config.number + sum(self.config.name.encode())) % len(crossbars)
        self._link = Link(crossbars[first:] + crossbars[:first], self.identity, self._feed, silence=SILENCE_SECONDS)
        self._link.start()
        self._tasks = [
            asyncio.create_task(self._run(self.keeper.run())),
            *([asyncio.create_task(self._run(self.snapshots.run(self)))] if self.snapshots is not None else []),
            asyncio.create_task(self._run(self._apply_all())),
            asyncio.create_task(self._run(self._collect())),
            asyncio.create_task(self._run(self._report())),
        ]
        self._server = await listen(
            Address.parse(self.config.listen), self.identity, lambda: _Reader(self), limit=MAX_REQUEST
        )

    async def _begin_holding(self) -> None:
        """A store without the record is new, or was made before ranges could move: it holds what its shard does."""
        if self.store.applied == 0 and self._control is not None:
            try:
                async with asyncio.timeout(FIRST_MAP_SECONDS):
                    await self._first_map.wait()
            except TimeoutError:
                log.warning("storage.no_newest_map", version=self.map.version)
        self.holdings.keep(KeyRanges(self.map.placed(self.config.number)))

    @property
    def ranges(self) -> KeyRanges:
        """What can be read here."""
        return self.holdings.held

    @property
    def reached(self) -> int:
        """Everything at or below this time was applied, and maybe more."""
        return max(self.applied, self.store.applied)

    def gone(self) -> None:
        """The journals do not reach back to where this store is."""
        others = len(self.map.replicas.get(self.config.number, ())) > 1
        snapshot = bool(self.config.objects) and self.attempt == 0
        self.start_over = snapshot or (others and self.attempt < 2)
        what = "restore a snapshot"
        if self.start_over:
            what = "the newest snapshot replaces it" if snapshot else "another replica will fill it"
        self.fail(
            StorageError(f"the journals do not reach back to {self.store.applied}, where this replica is: {what}")
        )

    async def _run(self, work: object) -> None:
        """A task whose failure is the service's."""
        try:
            await work  # type: ignore[misc]
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the service ends with it
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End with this error."""
        self.state = "failed"
        if not self.failed.done():
            log.error("storage.failed", error=str(error))
            self.failed.set_result(error)

    async def stop(self) -> None:
        """Stop; the store is marked as clean unless it failed."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.snapshots is not None:
            await self.snapshots.close()
        await self._link.close()
        if self._control is not None:
            await self._control.close()
        if self._server is not None:
            await self._server.close()
        self.executor.shutdown(wait=True)
        self._writer.shutdown(wait=True)
        try:
            if not self.failed.done():
                self.store.sync(True)
        finally:
            self.store.close()

    # ------------------------------------------------------------------------------------------------------ feed

    def subscription(self) -> ShardSubscribe:
        """Where we are."""
        self._subscribed = KeyRanges([*self.ranges.list, *self.map.wanted(self.config.number)])
        new = not self.ranges.list and not self.positions and self.reached == 0
        return ShardSubscribe(
            self.config.name, self._subscribed.list, FROM_NOW if new else self.reached, self.positions
        )

    def subscribed_to(self, ranges: list[tuple[bytes, bytes]]) -> bool:
        """Does the feed that runs now cover them?"""
        return self.state != "connecting" and not without(ranges, self._subscribed.list)

    def subscribe_again(self) -> None:
        """With what the map wants now."""
        self.state = "connecting"
        self._feed.end()

    def fed(self, message: ShardRecord | Watermark, size: int) -> None:
        """Take what the crossbar sent, in its order."""
        self._queue.append(message)
        self._queued_bytes += size
        if self._queued_bytes > QUEUE_BYTES:
            self._feed.pause()
        self._more.set()

    def forget_queue(self) -> None:
        """The connection that this came by has ended: what is not applied comes again."""
        self._queue.clear()
        self._queued_bytes = 0

    async def _apply_all(self) -> None:
        """Apply batch after batch."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._queue:
                feed = self._feed.number
                records: list[FeedRecord] = []
                mark: Watermark | None = None
                positions = b""
                while self._queue and len(records) < BATCH_RECORDS:
                    message = self._queue.popleft()
                    if isinstance(message, Watermark):
                        mark = message
                        positions = message.positions or positions
                    else:
                        if positions:  # they are those of a moment before this record
                            self._queue.appendleft(message)
                            break
                        records.append(
                            FeedRecord(0, 0, b"", message.kind, message.flags, message.tau, message.txid, message.body)
                        )
                        self._queued_bytes -= len(message.body)
                if records or positions:
                    async with self.writing:
                        if self._feed.number != feed:
                            break  # what is in the queue now is of a new feed
                        await self._loop.run_in_executor(self._writer, self._apply, records, positions)
                    self.records += len(records)
                    self.batches += 1
                if positions:
                    self.positions = positions
                if mark is not None:
                    self._advance(mark.tau)
                self._feed.resume(self._queued_bytes < QUEUE_BYTES // 2)

    def _advance(self, tau: int) -> None:
        """Everything at or below tau can be read now."""
        if tau <= self.applied:
            return
        self.applied = tau
        waiting = self._waiting
        while waiting and waiting[0][0] <= tau:
            _, _, until, then = heapq.heappop(waiting)
            if self.wait_seconds is not None:
                self.wait_seconds.observe(FRESH_SECONDS - (until - time.monotonic()))
            then(True)
        if self._wanted <= tau:
            self._wanted = 0
            if waiting:
                self._want(max(item[0] for item in waiting))

    def started(self, tau: int) -> None:
        """A crossbar feeds us everything above tau."""
        self.state = "following"
        self._wanted = 0
        self._advance(tau)
        self.keeper.changed()
        if self._waiting:
            self._want(max(item[0] for item in self._waiting))

    def _apply(self, records: list[FeedRecord], positions: bytes) -> None:
        """In the writer's thread: one batch, or several if a storage id has to be cleared in between."""
        garbage = self.garbage
        while True:
            cut = garbage.cut(records)
            if cut == 0:
                self._persist(functools.partial(garbage.purge, records[0]))
                cut = garbage.cut(records)
            if cut == 0:
                continue
            part, records = (records, []) if cut is None else (records[:cut], records[cut:])
            noted = garbage.note(part)
            batch = [(record.tau, record.body) for record in part]
            at = positions if positions and not records else None  # b"" would take the store's away
            self._persist(functools.partial(self.store.apply, batch, at, noted))
            if not records:
                return

    async def write(self, work: Callable[[], None]) -> None:
        """In the writer's thread, waiting while the disk is full; `writing` is held."""
        await self._loop.run_in_executor(self._writer, self._persist, work)

    def _persist(self, write: Callable[[], None]) -> None:
        """Write, waiting while the disk is full."""
        while True:
            try:
                write()
            except FullError as error:
                if self.state != "disk full":
                    log.error("storage.disk_full", error=str(error))
                self.state = "disk full"
                # space comes from somebody else
                if self.failed.done() or self._stopping.wait(FULL_RETRY_SECONDS):
                    raise
            else:
                break
        if self.state == "disk full":
            self.state = "following"

    # -------------------------------------------------------------------------------------------------- freshness

    def when_fresh(self, tau: int, then: Callable[[bool], None]) -> None:
        """Call `then` with True once everything at or below tau is applied; with False after the time limit."""
        if tau <= self.applied:
            if self.wait_seconds is not None:
                self.wait_seconds.observe(0.0)
            then(True)
        elif len(self._waiting) >= MAX_WAITING:
            then(False)
        else:
            heapq.heappush(self._waiting, (tau, next(self._numbers), time.monotonic() + FRESH_SECONDS, then))
            self._want(tau)

    def _want(self, tau: int) -> None:
        if tau > self._wanted and self._link.send(WantWatermark(tau)):
            self._wanted = tau

    def _give_up(self) -> None:
        """Who has waited for too long is told."""
        now = time.monotonic()
        late = [item for item in self._waiting if item[2] <= now]
        if late:
            self._waiting = [item for item in self._waiting if item[2] > now]
            heapq.heapify(self._waiting)
            for item in late:
                item[3](False)

    # ------------------------------------------------------------------------------------------------------ reads

    def get(self, request: Get) -> GetReply:
        """Answer a Get whose time is applied."""
        self.gets += 1
        if self.gets % HEAT_EVERY == 0 and request.keys:
            self._heat.append(request.keys[0])
        if not all(map(self.ranges.holds, request.keys)):
            return GetReply(request.id, ReadStatus.NOT_HELD, b"")
        try:
            return GetReply(request.id, ReadStatus.OK, self.store.get_many(request.keys, request.tau))
        except TooOldError:
            return GetReply(request.id, ReadStatus.BELOW_HORIZON, b"")
        except StoreError as error:
            log.error("storage.read_failed", error=str(error))
            return GetReply(request.id, ReadStatus.ERROR, b"")

    def scan(self, request: Scan) -> ScanReply:
        """Answer a Scan whose time is applied; may run in any thread."""
        self.scans += 1
        if self.scans % HEAT_EVERY == 0:
            self._heat.append(request.lo)
        if not self.ranges.covers(request.lo, request.hi):
            return ScanReply(request.id, ReadStatus.NOT_HELD, False, b"")
        reply = answer_scan(self.store, request)
        if reply.status == ReadStatus.OK and not self.ranges.covers(request.lo, request.hi):
            return ScanReply(request.id, ReadStatus.NOT_HELD, False, b"")  # left meanwhile: some of it may be erased
        return reply

    def export(self, request: Export) -> ExportReply:
        """Answer an Export whose time is applied; in any thread."""

        def refused(status: ReadStatus) -> ExportReply:
            return ExportReply(request.id, status, 0, 0, b"", b"", b"")

        applied, garbage = self.applied, self.garbage.exported()  # before the page: it holds all of that
        try:
            page, following, newest, horizon = self.store.export(
                request.lo, request.hi, max(1, min(request.max_bytes, MAX_EXPORT))
            )
        except StoreError as error:
            log.error("storage.read_failed", error=str(error))
            return refused(ReadStatus.ERROR)
        if not self.ranges.covers(request.lo, request.hi):
            return refused(ReadStatus.NOT_HELD)
        return ExportReply(request.id, ReadStatus.OK, max(applied, newest), horizon, following, garbage, page)

    def stats(self, request: Stats) -> StatsReply:
        """Rows and bytes of this shard's part of storage ids."""
        values = self.store.stats(request.relations)
        return StatsReply(
            request.id, [(relation, *value) for relation, value in zip(request.relations, values, strict=True)]
        )

    # ----------------------------------------------------------------------------------------------------- chores

    def reads_from(self, reader: _Reader, tau: int | None) -> None:
        """A gateway says what its sessions still read; None: it is gone."""
        if tau is None:
            self._oldest.pop(reader, None)
        else:
            self._oldest[reader] = tau

    async def _collect(self) -> None:
        """Raise the horizon, remove a slice of what is below it."""
        while True:
            async with self.writing:
                pause = await self._loop.run_in_executor(self._writer, self._collect_some)
            await asyncio.sleep(pause)

    def _collect_some(self) -> float:
        if self.applied == 0:
            return COLLECT_IDLE_SECONDS
        oldest = min(self._oldest.values(), default=NOBODY)
        wanted = horizons.horizon(
            self.clock.now()[0],
            self.applied,
            oldest if oldest != NOBODY else None,
            self.store.horizon,
            int(self.config.retention * horizons.SECOND),
        )
        try:
            busy = self.store.collect(wanted, COLLECT_ENTRIES) >= COLLECT_ENTRIES
            left = self.garbage.collect(wanted, COLLECT_ENTRIES)
        except FullError:
            return COLLECT_IDLE_SECONDS  # deleting needs space too; applying will say that the disk is full
        return COLLECT_BUSY_SECONDS if busy or left else COLLECT_IDLE_SECONDS

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._give_up()
            self._link.send(ShardApplied(self.applied, self.snapshots.kept if self.snapshots is not None else b""))
            if self._secured() != self.ranges.list and self.snapshots is not None:
                self.snapshots.look_soon()
            if self._control is not None:
                self._control.send(await self._loop.run_in_executor(self.executor, self._load))
            if self.store.replaced:
                raise StorageError(f"{self.directory}: the store's file was deleted or exchanged")

    def _secured(self) -> list[tuple[bytes, bytes]]:
        """What may be called held (shard_keeper.py)."""
        if self.snapshots is None:
            return self.ranges.list
        return self.snapshots.secured(self.ranges, self.map.placed(self.config.number))

    def _load(self) -> ShardHeld:
        """For the control plane; in a thread."""
        now = time.monotonic()
        if now - self._samples[0] >= SAMPLE_SECONDS:
            self._samples = now, self.store.split(b"", b"", SAMPLES)
        size = self.store.size()
        return ShardHeld(
            self.config.name,
            self.config.number,
            self.map.version,
            self._secured() if self.state == "following" else [],
            (size["file_pages"] - size["free_pages"]) * size["page_size"],
            self.gets + self.scans + self.records,
            self._samples[1],
            list(self._heat),
        )

    def learn_map(self, encoded: bytes) -> int:
        """The control plane has a newer map; returns the version of ours."""
        partition = PartitionMap.decode(encoded)
        if partition.version > self.map.version:
            self.map = partition
            self.keeper.changed()
        self._first_map.set()
        return self.map.version

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status` and metrics."""
        size = self.store.size()
        return {
            "role": "storage",
            "shard": self.config.number,
            "pid": os.getpid(),
            "uptime": time.monotonic() - self._started,
            "state": self.state,
            "applied_tau": self.applied,
            "horizon_tau": self.store.horizon,
            "lag": max(0, time.time_ns() - self.applied) / 1e9 if self.applied else -1.0,
            "map_version": self.map.version,
            "ranges": len(self.ranges.list),
            "pages_taken": self.keeper.pages,
            "bytes_taken": self.keeper.bytes_taken,
            "waiting_for": self.keeper.waiting_for,
            "records": self.records,
            "batches": self.batches,
            "rebuilds": self.rebuilds,
            "queued_bytes": self._queued_bytes,
            "waiting_reads": len(self._waiting),
            "garbage_relations": len(self.garbage),
            **(self.snapshots.status() if self.snapshots is not None else {}),
            "gets": self.gets,
            "scans": self.scans,
            "store_bytes": size["file_pages"] * size["page_size"],
            "store_free_bytes": size["free_pages"] * size["page_size"],
            "main_entries": size["main_entries"],
            "history_entries": size["hist_entries"],
        }


class _Feed:
    """The link to a crossbar."""

    def __init__(self, service: ShardService) -> None:
        self._service = service
        self._connection: Connection | None = None
        self._paused = False
        self.number = 0  # of feeds so far

    def connected(self, connection: Connection) -> None:
        """Subscribe from where we are."""
        self._connection, self._paused = connection, False
        self.number += 1
        self._service.forget_queue()
        connection.send(self._service.subscription())

    def received(self, connection: Connection, body: bytes) -> None:
        """A record or a watermark, mostly."""
        message = _feed_decoder.decode(body)
        service = self._service
        if isinstance(message, ShardRecord):
            service.fed(message, len(message.body))
        elif isinstance(message, Watermark):
            service.fed(message, 0)
        elif isinstance(message, ShardStart):
            if message.status == FeedStatus.OK:
                service.started(message.tau)
            elif message.status == FeedStatus.DIVERGED:
                # nothing is thrown away: what is here may be all that is left of what a journal has lost
                service.fail(
                    StorageError(
                        f"ALARM: a journal does not hold what this replica has applied up to {service.store.applied}; "
                        f"the crossbar's log says which. If the journals are whole, remove {service.directory} and it "
                        "is filled anew"
                    )
                )
            else:
                service.gone()
        else:
            connection.refusal = message.message

    def lost(self, connection: Connection) -> None:
        """Another crossbar, or this one again."""
        self._connection = None
        if self._service.state == "following":
            self._service.state = "connecting"

    def writable(self, connection: Connection, yes: bool) -> None:
        """What we send is small."""

    def end(self) -> None:
        """Connect again."""
        if self._connection is not None:
            self._connection.close()

    def pause(self) -> None:
        """More has come than was applied."""
        if self._connection is not None and not self._paused:
            self._paused = True
            self._connection.pause_reading()

    def resume(self, room: bool) -> None:
        """There may be room again."""
        if room and self._paused and self._connection is not None:
            self._paused = False
            self._connection.resume_reading()


class _Reader:
    """A gateway's connection, or a tool's. Answers come when they can be given, in any order: requests have ids."""

    connection: Connection

    def __init__(self, service: ShardService) -> None:
        self._service = service
        self._here = False

    def connected(self, connection: Connection) -> None:
        """Both have greeted."""
        self.connection, self._here = connection, True

    def received(self, connection: Connection, body: bytes) -> None:
        """Answer, now or when everything up to its time is applied."""
        message = _ask_decoder.decode(body)
        service = self._service
        if isinstance(message, Get):
            if message.tau <= service.applied:
                connection.send(service.get(message))
            else:
                service.when_fresh(message.tau, functools.partial(self._get, message))
        elif isinstance(message, Scan):
            service.when_fresh(message.tau, functools.partial(self._scan, message))
        elif isinstance(message, Stats):
            service.when_fresh(message.tau, functools.partial(self._stats, message))
        elif isinstance(message, Export):
            service.when_fresh(message.tau, functools.partial(self._export, message))
        elif isinstance(message, OldestSnapshot):
            service.reads_from(self, message.tau)
        else:
            connection.send(StatusReply(service.status()))

    def _get(self, request: Get, fresh: bool) -> None:
        if self._here:
            reply = self._service.get(request) if fresh else GetReply(request.id, ReadStatus.NOT_FRESH, b"")
            self.connection.send(reply)

    def _stats(self, request: Stats, fresh: bool) -> None:
        """Estimates: in the end those of an older state will do."""
        if self._here:
            self.connection.send(self._service.stats(request))

    def _scan(self, request: Scan, fresh: bool) -> None:
        service = self._service
        if not self._here:
            return
        if not fresh:
            self.connection.send(ScanReply(request.id, ReadStatus.NOT_FRESH, False, b""))
        elif request.max_rows <= INLINE_ROWS:
            self.connection.send(service.scan(request))
        else:
            future = service._loop.run_in_executor(service.executor, service.scan, request)
            future.add_done_callback(self._scanned)

    def _export(self, request: Export, fresh: bool) -> None:
        service = self._service
        if not self._here:
            return
        if not fresh:
            self.connection.send(ExportReply(request.id, ReadStatus.NOT_FRESH, 0, 0, b"", b"", b""))
        else:
            future = service._loop.run_in_executor(service.executor, service.export, request)
            future.add_done_callback(self._scanned)

    def _scanned(self, future: asyncio.Future[ScanReply] | asyncio.Future[ExportReply]) -> None:
        if self._here:
            self.connection.send(future.result())

    def lost(self, connection: Connection) -> None:
        """Nobody waits any more."""
        self._here = False
        self._service.reads_from(self, None)

    def writable(self, connection: Connection, yes: bool) -> None:
        """Answers are not read: take no more questions."""
        if yes:
            connection.resume_reading()
        else:
            connection.pause_reading()


class _Control:
    """The link to the control plane: the newest map."""

    def __init__(self, service: ShardService) -> None:
        self._service = service

    def connected(self, connection: Connection) -> None:
        """Ask for what is newer; the first time for what there is."""
        service = self._service
        connection.send(GetMap(service.map.version if service._first_map.is_set() else 0))

    def received(self, connection: Connection, body: bytes) -> None:
        """A newer map; ask for the next one. Or a question: ours is newer."""
        message = _control_decoder.decode(body)
        if isinstance(message, MapReply):
            connection.send(GetMap(self._service.learn_map(message.map)))
        else:
            connection.send(MapReply(self._service.map.encode()))

    def lost(self, connection: Connection) -> None:
        """The map that we have goes on to serve."""

    def writable(self, connection: Connection, yes: bool) -> None:
        """Nothing of size is sent."""


async def serve(config: RoleConfig, stop: asyncio.Event) -> None:
    """Run a replica until `stop` is set; raises what it failed of."""
    attempt = 0
    while await _prepared(config, stop, attempt) and not await _serve(config, stop, attempt):
        attempt += 1
        log.warning("storage.starting_over", name=config.name, attempt=attempt)


async def _prepared(config: RoleConfig, stop: asyncio.Event, attempt: int) -> bool:
    """Have a store to open in its directory; False: it was stopped meanwhile. In a thread, as this may take long."""
    ended = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(prepare, config, attempt, ended))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        ended.set()
        await work
    except SnapshotStoppedError:
        return False
    finally:
        stopped.cancel()
    return not stop.is_set()


def prepare(config: RoleConfig, attempt: int, ended: threading.Event) -> None:
    """Leave a store or none in the directory: a whole one, the newest snapshot, or (attempt 2) one that others fill.

    `attempt` 1: the journals do not reach back to the store that is there; it stays until a snapshot has replaced it.
    Raises ObjectError then, StorageError; SnapshotStoppedError once `ended` is set.
    """
    directory = Path(config.data) / "storage"
    file = directory / DATA_FILE
    if attempt == 0 and file.exists():
        try:
            open_store(directory, config.cluster_id).close()
        except DamagedError as error:
            log.warning("storage.rebuilding", reason=str(error))
            file.unlink(missing_ok=True)
        except StoreError as error:
            raise StorageError(str(error)) from error
        else:
            return
    found = False
    if config.objects and attempt < 2:
        try:
            found = restore(config.objects, config.cluster_id, config.number, directory, ended)
        except SnapshotStoppedError:
            raise
        except AustralisError as error:
            if attempt:
                raise
            # nothing is lost: the journals say if they do not reach back
            log.error("storage.no_restore", error=str(error))
    if found:
        store = open_store(directory, config.cluster_id, restored=True)
        store.sync(True)
        store.close()
    else:
        file.unlink(missing_ok=True)


async def _serve(config: RoleConfig, stop: asyncio.Event, attempt: int) -> bool:
    """True: it was stopped; False: it has to start over, with an empty store."""
    from australis.process import announce

    service = ShardService(config, attempt=attempt)
    over = asyncio.Event()
    service.failed.add_done_callback(lambda _: over.set())
    await service.start()
    announce(service="storage", name=config.name, shard=config.number)
    ended = asyncio.create_task(_either(stop, over))
    try:
        async with observed(config, service.status) as seen:
            if seen.measured:
                service.wait_seconds = seen.metrics.histogram("read_wait_seconds", "Until a read's time was applied")
            await ended
    finally:
        ended.cancel()
        await service.stop()
    if service.failed.done():
        if service.start_over and not stop.is_set():
            return False
        error = service.failed.result()
        raise error if isinstance(error, AustralisError | OSError) else StorageError(f"storage failed: {error!r}")
    return True


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    """Return once one of them is set."""
    waits = [asyncio.create_task(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
