"""The storage service: the applier's thread, and reads for query processors that do not map the store themselves.

    service = StorageService(directory); await service.start(); await service.ready(); ...; await service.close()

Runs inside any asyncio loop. What must hold: a read as of tau is answered when everything at or below tau is applied,
or refused (NOT_FRESH after a time limit, BELOW_HORIZON); it is never answered with less. Requests of one connection
are answered in the order in which they arrived; a client that does not read its answers is not read from.

If the store is being rebuilt, reads wait like for freshness. If the applier fails for good, `failed` is done with the
error and every read is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import msgspec
import structlog

from australis.clock import Clock, FixedClock
from australis.cluster import ClusterDirectory
from australis.errors import ProtocolError, StorageError
from australis.page import SharedPage, Word
from australis.protocol.frames import FrameDecoder, frame
from australis.protocol.messages import (
    PROTOCOL_VERSION,
    Error,
    Get,
    GetReply,
    Hello,
    ReadStatus,
    Scan,
    ScanReply,
    Stats,
    StatsReply,
    Status,
    StatusReply,
    encode,
    read_decoder,
)
from australis.storage.applier import Applier, Settings
from australis.storage.scans import INLINE_ROWS, answer_scan
from australis.storage.store import StoreError, TooOldError

FRESH_SECONDS = 10.0
BEFORE_EVERYTHING = 1  # the snapshot time of a transaction while nothing was ever committed
READ_THREADS = 2
MAX_REQUEST = 64 << 20
MAX_QUEUED = 1000
WRITE_HIGH_WATER = 16 << 20

log = structlog.get_logger()


class StorageService:
    """Storage of one host."""

    def __init__(
        self,
        directory: ClusterDirectory,
        settings: Settings | None = None,
        clock: Clock | None = None,
        *,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        self._directory = directory
        self._settings = settings if settings is not None else Settings()
        self._clock = clock if clock is not None else FixedClock()
        self.fresh_seconds = fresh_seconds
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[Exception] = self._loop.create_future()
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()
        self.executor = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="storage-read")
        self._waiters: list[tuple[int, int, asyncio.Future[bool]]] = []  # (tau, number, done)
        self._numbers = itertools.count()
        self.gets = self.scans = 0
        self._started = time.monotonic()

    async def start(self) -> None:
        """Start the applier and listen. Raises AustralisError, OSError."""
        directory = self._directory
        directory.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.page = SharedPage(directory.page, directory.cluster)
        self.applier = Applier(
            directory,
            self.page,
            self._clock,
            self._settings,
            self._applier_applied,
            self._applier_failed,
        )
        self.applier.start()
        socket = directory.storage_socket
        socket.unlink(missing_ok=True)
        self._server = await self._loop.create_unix_server(lambda: _Connection(self), str(socket), backlog=512)
        os.chmod(socket, 0o600)
        self.page.store(Word.STORAGE_PID, os.getpid())

    async def ready(self) -> None:
        """Wait until everything that was acknowledged by now can be read; raises what made the applier fail."""
        while True:
            if self.failed.done():
                raise self.failed.result()
            if self.applier.state == "disk full":
                raise StorageError(f"{self._directory.storage}: no space left on the disk; free some and start again")
            acked = self.page.load(Word.ACKED)
            if self.applier.state == "following" and self.applied() >= acked:
                return
            # the commit process may not be there yet: what we wait for is not an event of this process
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Stop; the store is marked as clean."""
        self.page.store(Word.STORAGE_PID, 0)
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await self._loop.run_in_executor(None, self.applier.stop)
        self.page.store(Word.STORAGE_PID, 0)  # until then it may have met a full disk, or space
        self.executor.shutdown(wait=True)
        self._directory.storage_socket.unlink(missing_ok=True)
        self.page.close()

    def _applier_applied(self) -> None:
        """Called in the applier's thread."""
        self._loop.call_soon_threadsafe(self._wake)

    def _applier_failed(self, error: Exception) -> None:
        """Called in the applier's thread."""

        def fail() -> None:
            log.error("storage.failed", error=str(error))
            if not self.failed.done():
                self.failed.set_result(error)

        self._loop.call_soon_threadsafe(fail)

    # ---------------------------------------------------------------------------------------------------- freshness

    def applied(self) -> int:
        """Newest time that can be read; 0 while that is not known."""
        return self.page.load(Word.APPLIED)

    async def fresh(self, tau: int) -> bool:
        """Wait until everything at or below tau is applied; False after the time limit."""
        if self.applied() >= tau:
            return True
        if tau <= BEFORE_EVERYTHING and self.applier.state == "following":
            return True  # in a cluster that never committed anything no applied time is known, and none is needed
        done: asyncio.Future[bool] = self._loop.create_future()
        heapq.heappush(self._waiters, (tau, next(self._numbers), done))
        self.applier.watched = True
        self._wake()  # it may have been applied between the look and the request to be woken
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(done, self.fresh_seconds)
        return False

    def _wake(self) -> None:
        applied = self.applied()
        while self._waiters and (self._waiters[0][0] <= applied or self._waiters[0][2].done()):
            _, _, done = heapq.heappop(self._waiters)
            if not done.done():
                done.set_result(True)
        if not self._waiters:
            self.applier.watched = False

    # -------------------------------------------------------------------------------------------------------- reads

    def get(self, request: Get) -> GetReply:
        """Answer a Get whose time is applied."""
        self.gets += 1
        store = self.applier.store
        try:
            if store is None:
                return GetReply(request.id, ReadStatus.NOT_FRESH, b"")
            return GetReply(request.id, ReadStatus.OK, store.get_many(request.keys, request.tau))
        except TooOldError:
            return GetReply(request.id, ReadStatus.BELOW_HORIZON, b"")
        except StoreError as error:
            log.error("storage.read_failed", error=str(error))
            return GetReply(request.id, ReadStatus.ERROR, b"")

    def scan(self, request: Scan) -> ScanReply:
        """Answer a Scan whose time is applied; may run in any thread."""
        self.scans += 1
        store = self.applier.store
        if store is None:
            return ScanReply(request.id, ReadStatus.NOT_FRESH, False, b"")
        return answer_scan(store, request)

    def stats(self, request: Stats) -> StatsReply:
        """Rows and bytes per storage id, of the newest applied state."""
        store = self.applier.store
        values = store.stats(request.relations) if store is not None else []
        return StatsReply(
            request.id,
            [(relation, *value) for relation, value in zip(request.relations, values, strict=False)],
        )

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status`."""
        applier, page = self.applier, self.page
        status: dict[str, int | float | str] = {
            "pid": os.getpid(),
            "uptime": time.monotonic() - self._started,
            "state": applier.state,
            "generation": applier.generation,
            "sequence": applier.position.sequence,
            "applied_tau": self.applied(),
            "horizon_tau": page.load(Word.HORIZON),
            "lag": max(0, page.load(Word.ACKED) - self.applied()) / 1e9,
            "records": applier.records,
            "batches": applier.batches,
            "rebuilds": applier.rebuilds,
            "snapshots": applier.snapshots,
            "snapshot_running": int(applier.snapshot_running),
            "garbage_relations": applier.garbage,
            "connections": len(self.connections),
            "gets": self.gets,
            "scans": self.scans,
        }
        store = applier.store
        if store is not None:
            size = store.size()
            status.update(
                store_bytes=size["file_pages"] * size["page_size"],
                store_free_bytes=size["free_pages"] * size["page_size"],
                main_entries=size["main_entries"],
                history_entries=size["hist_entries"],
            )
        return status


class _Connection(asyncio.Protocol):
    """One reader over the socket."""

    transport: asyncio.Transport

    def __init__(self, service: StorageService) -> None:
        self._service = service
        self._decoder = FrameDecoder(MAX_REQUEST)
        self._queue: deque[Get | Scan] = deque()  # behind one that had to wait, so that answers keep their order
        self._task: asyncio.Task[None] | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(WRITE_HIGH_WATER)
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was asked."""
        self._service.connections.discard(self)
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client does not read its answers: take no more questions."""
        self.transport.pause_reading()
        self._paused = True

    def resume_writing(self) -> None:
        """The client reads again."""
        self._paused = False
        if len(self._queue) < MAX_QUEUED:
            self.transport.resume_reading()

    def send(self, message: msgspec.Struct) -> None:
        """Send one message; to a client that is gone, nothing."""
        if not self.transport.is_closing():
            self.transport.write(frame(encode(message)))

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are complete."""
        try:
            for body in self._decoder.feed(data):
                self._handle(body)
        except msgspec.MsgspecError as error:
            self._fail("08P01", f"not a message of the protocol: {error}")
        except ProtocolError as error:
            self._fail(error.sqlstate, str(error))
        if len(self._queue) >= MAX_QUEUED:
            self.transport.pause_reading()

    def _fail(self, sqlstate: str, message: str) -> None:
        self.send(Error(sqlstate, message))
        self.transport.close()

    def _handle(self, body: bytes) -> None:
        message = read_decoder.decode(body)
        service = self._service
        if isinstance(message, Get):
            if self._task is None and service.applied() >= message.tau:
                self.send(service.get(message))
            else:
                self._later(message)
        elif isinstance(message, Scan):
            if self._task is None and message.max_rows <= INLINE_ROWS and service.applied() >= message.tau:
                self.send(service.scan(message))
            else:
                self._later(message)
        elif isinstance(message, Stats):
            self.send(service.stats(message))
        elif isinstance(message, Status):
            self.send(StatusReply(service.status()))
        else:
            self._hello(message)

    def _hello(self, hello: Hello) -> None:
        service = self._service
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(f"protocol {hello.protocol}, this service speaks {PROTOCOL_VERSION}")
        if hello.cluster != service._directory.cluster:
            self._fail("08004", "this is another cluster")
            return
        self.send(Hello(PROTOCOL_VERSION, hello.cluster, "storage", service.applier.generation))

    def _later(self, request: Get | Scan) -> None:
        self._queue.append(request)
        if self._task is None:
            self._task = asyncio.ensure_future(self._work())
            self._task.add_done_callback(self._worked)

    async def _work(self) -> None:
        """Answer queued requests one after the other."""
        service = self._service
        while self._queue:
            request = self._queue.popleft()
            fresh = await service.fresh(request.tau)
            if isinstance(request, Get):
                self.send(service.get(request) if fresh else GetReply(request.id, ReadStatus.NOT_FRESH, b""))
            elif not fresh:
                self.send(ScanReply(request.id, ReadStatus.NOT_FRESH, False, b""))
            else:
                answer: Callable[[Scan], ScanReply] = service.scan
                self.send(await service._loop.run_in_executor(service.executor, answer, request))
        if not self._paused:
            self.transport.resume_reading()

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("storage.read_failed", error=str(error))
            self._fail("58030", str(error))
        elif self._queue:
            self._task = asyncio.ensure_future(self._work())
            self._task.add_done_callback(self._worked)
