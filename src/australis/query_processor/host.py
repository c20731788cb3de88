"""The query processors of one host: carries out what the pool decides, and tells it what happened.

    acquire -> pool -> start: prepare, configure, spawn, wait until it answers -> place -> release
               pool -> stop: is it in use? -> smart shutdown -> sync, image

Whoever places sessions (the router) asks for a place and gives it back; a process with a router or a gateway of its own
can use this as the embedded cluster does.

What must hold: no session is ended but by its query processor's death or by `close`: to shrink, a server is only asked
to end when nobody uses it, in a way that lets sessions go on that come at that moment. A processor is told dead only
when no process works in its data directory. No server is started on files that are being copied or synced. A place
that was given is given back once, also when its waiter is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from australis.control_plane.layout import ClusterError
from australis.control_plane.processes import Child, end_leftovers
from australis.control_plane.supervisor import Service
from australis.errors import AustralisError
from australis.query_processor import pool
from australis.query_processor.launcher import QueryProcessor, free_port
from australis.query_processor.pool import State
from australis.query_processor.probe import NotReadyError
from australis.query_processor.settings import Settings
from australis.router.startup import Refused

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
USE_SECONDS = 5.0  # for the question whether anybody uses a server
REBUILD_AFTER = 2  # attempts that failed before the data directory is thought to be the reason

log = structlog.get_logger()


@dataclass(eq=False, frozen=True, slots=True)
class Place:
    """A processor for one session."""

    target: Path  # where its server listens
    number: int
    life: int


@dataclass(eq=False, slots=True)
class _Slot:
    number: int
    processor: QueryProcessor
    service: Service
    port: int = 0  # of direct connections; 0 while none are possible
    starts: int = 0
    phases: dict[str, int] = field(default_factory=dict)  # milliseconds of the last start
    draining: bool = False  # was told to end
    died: bool = False  # since it was last ready
    prepared: bool = False  # its files were made ready for the next start
    abandon: threading.Event = field(default_factory=threading.Event)  # what is done with its files while it is stopped
    free: asyncio.Event = field(default_factory=asyncio.Event)  # nothing is


class ProcessorHost:
    """Call start() once, and close() after it, whatever came of it."""

    def __init__(
        self,
        processors: Sequence[QueryProcessor],
        settings: pool.Settings,
        *,
        logs: Path,
        configure: Callable[[int, int], Settings],
        forget: Callable[[int], None],
        changed: Callable[[], None],
        watch: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """`configure(number, port)` gives a server's settings. `forget(number)` is called when it has ended.

        `changed` is called when a state has changed, and `watch` for each background task: its error is a mistake.
        """
        assert len(processors) == settings.maximum
        self._pool = pool.Pool(settings)
        self._logs = logs
        self._configure = configure
        self._forget = forget
        self._changed = changed
        self._watch = watch
        self._slots = [self._slot(number, processor) for number, processor in enumerate(processors)]
        self._tickets = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Place]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._housekeeping: set[asyncio.Task[None]] = set()
        self._imaging = False
        self._preparing = asyncio.Lock()
        self._closing = False

    # what others see

    @property
    def services(self) -> list[Service]:
        """Of those that serve or should."""
        return [slot.service for slot in self._shown()]

    @property
    def ports(self) -> list[int]:
        """For direct connections, by number; 0: it does not run."""
        return [slot.port for slot in self._slots]

    def sockets(self) -> list[Path]:
        """Where servers listen now."""
        return [slot.processor.socket for slot in self._slots if slot.port]

    def describe(self) -> list[dict[str, Any]]:
        """Each processor, for people."""
        return [
            {
                "number": one.number,
                "state": one.state.value,
                "starts": slot.starts,
                "change": slot.processor.version,
                "phases": slot.phases,
                **({"cause": one.cause} if one.cause else {}),
            }
            for one, slot in zip(self._pool.processors, self._slots, strict=True)
        ]

    # life

    async def prepare(self) -> None:
        """Make the files of the first ones ready; the image too, if it is missing. Raises ImageError and OSError."""
        for slot in self._slots[: max(self._pool.settings.minimum, 1)]:
            await self._prepare(slot, 0)
            slot.prepared = True

    async def start(self) -> None:
        """Start the first ones. Raises ClusterError with PostgreSQL's reason if one of them cannot start."""
        self._loop = asyncio.get_running_loop()
        async with _group() as group:
            for effect in self._pool.open(self._loop.time()):
                assert isinstance(effect, pool.Start)
                group.create_task(self._open(self._slots[effect.number], effect.life))

    async def close(self) -> None:
        """End all servers, with the sessions that are left."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Refused("57P03", "the database system is shutting down"))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._housekeeping:
            await asyncio.wait(self._housekeeping)
        async with _group() as group:
            for slot in self._slots:
                group.create_task(self._close(slot))

    async def _close(self, slot: _Slot) -> None:
        if slot.starts == 0:
            return
        status = await slot.service.stop()
        slot.port = 0
        if status == 0:
            self._forget(slot.number)
            slot.abandon.clear()
            await self._keep_house(slot)
        elif killed := await asyncio.to_thread(end_leftovers, {slot.processor.data: b"postgres"}):
            # a killed server's processes see it only when they wait for something
            log.warning("query_processor.leftovers_killed", processes=killed)

    # places for sessions

    async def acquire(self, avoid: Sequence[Place] = ()) -> Place:
        """A place for a session; give it back with `release`. Raises Refused; cancel it to give up."""
        if self._closing:
            raise Refused("57P03", "the database system is shutting down")
        ticket = next(self._tickets)
        future: asyncio.Future[Place] = self._loop.create_future()
        self._waiting[ticket] = future
        self._carry_out(self._pool.wanted(self._loop.time(), ticket))
        begin = None if future.done() else time.monotonic()
        try:
            return await future
        except asyncio.CancelledError:
            if ticket in self._waiting:
                self._carry_out(self._pool.gave_up(self._loop.time(), ticket))
            elif future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            raise
        finally:
            self._waiting.pop(ticket, None)
            if begin is not None:
                log.info("pool.waited", milliseconds=round((time.monotonic() - begin) * 1000))

    def release(self, place: Place) -> None:
        """The session of this place has ended."""
        self._carry_out(self._pool.ended(self._loop.time(), place.number, place.life))

    def unreachable(self, place: Place) -> None:
        """Gives it back because nobody listens there."""
        self._carry_out(self._pool.unreachable(self._loop.time(), place.number, place.life))

    # effects

    def _carry_out(self, effects: list[pool.Effect]) -> None:
        if self._closing:
            return
        for effect in effects:
            match effect:
                case pool.Start(number, life, failures):
                    slot = self._slots[number]
                    slot.abandon.set()
                    self._task(self._live(slot, life, failures), f"query processor {number}")
                case pool.Stop(number, life):
                    self._task(self._drain(self._slots[number], life), f"drain query processor {number}")
                case pool.Check(number, life):
                    self._task(self._check(self._slots[number], life), f"check query processor {number}")
                case pool.Give(ticket, number, life):
                    self._answer(ticket, Place(self._slots[number].processor.socket, number, life))
                case pool.Refuse(ticket, sqlstate, message, detail):
                    future = self._waiting.pop(ticket)
                    if not future.done():
                        future.set_exception(Refused(sqlstate, message, detail))
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        at = self._pool.next_tick(now)
        self._timer = None if at is None else self._loop.call_at(at, self._tick)
        if any(isinstance(effect, pool.Start | pool.Stop) for effect in effects):
            self._changed()

    def _answer(self, ticket: int, place: Place) -> None:
        future = self._waiting.pop(ticket)
        if future.done():  # cancelled, and its task has not run yet: nobody will give it back
            self._loop.call_soon(self.release, place)
        else:
            future.set_result(place)

    def _tick(self) -> None:
        self._timer = None
        self._carry_out(self._pool.tick(self._loop.time()))

    def _task(self, body: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(body, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._watch(task)

    # one processor

    def _slot(self, number: int, processor: QueryProcessor) -> _Slot:
        name = "postgresql" if number == 0 else f"postgresql-{number + 1}"

        async def launch(failures: int) -> Child:
            slot = self._slots[number]
            slot.phases = {}
            with _measured(slot, "files"):
                if not slot.prepared:
                    await self._prepare(slot, failures)
                slot.prepared = False
                port = free_port()
                processor.configure(self._configure(number, port))
            slot.port = port
            slot.starts += 1
            with _measured(slot, "process"):
                return await Child.spawn(
                    name,
                    processor.command(),
                    self._logs / f"{name}.log",
                    directory=processor.data,
                    environment=processor.environment(),
                    death_signal=processor.death_signal,
                    plain=True,
                )

        async def ready(_: Child) -> None:
            slot = self._slots[number]
            begin = time.monotonic()
            answered: list[float] = []
            await processor.wait_ready(READY_SECONDS, answered=lambda: answered.append(time.monotonic()))
            slot.phases["server"] = round((answered[0] - begin) * 1000)
            slot.phases["catalogs"] = round((time.monotonic() - answered[0]) * 1000)

        service = Service(
            name,
            launch,
            ready,
            stop_signal=processor.stop_signal,
            stop_timeout=STOP_SECONDS,
            changed=self._changed,
        )
        slot = _Slot(number, processor, service)
        slot.free.set()
        return slot

    async def _prepare(self, slot: _Slot, failures: int) -> None:
        async with self._preparing:  # one of them makes the image if it is missing
            done = await asyncio.to_thread(
                slot.processor.prepare,
                rebuild=failures >= REBUILD_AFTER,
                first_image=failures > REBUILD_AFTER,
                trusted=slot.starts > 0,
            )
        change = slot.processor.version
        log.info("query_processor.prepared", number=slot.number, attempt=failures, done=done, change=change)

    def _shown(self) -> list[_Slot]:
        """Those that serve or should; one that is only starting or stopping is not missed. All of a fixed number."""
        settings = self._pool.settings
        fixed = settings.minimum == settings.maximum
        return [slot for slot in self._slots if fixed or slot.service.serving or self._fails(slot)]

    def _fails(self, slot: _Slot) -> bool:
        """Has it died, and nothing serves in its place yet?"""
        ready = sum(one.state is State.READY for one in self._pool.processors)
        return slot.died and ready < self._pool.wanted_processors

    async def _open(self, slot: _Slot, life: int) -> None:
        """The first start; it ends the start of the cluster if it fails."""
        try:
            await slot.service.start()
        except ClusterError as error:
            if slot.processor.fresh:
                raise
            # It was fine by its marks and still does not start. Nothing in it is worth a second thought.
            log.error("query_processor.rebuilt", cause=str(error))
            await self._end_leftovers(slot)
            await slot.service.start(REBUILD_AFTER)
        self._task(self._serve(slot, life), f"query processor {slot.number}")

    async def _live(self, slot: _Slot, life: int, failures: int) -> None:
        """From a start to the end of the process."""
        await slot.free.wait()
        slot.draining = False
        try:
            await slot.service.start(failures)
        except ClusterError as error:
            log.error("service.not_restarted", service=slot.service.name, attempt=failures, cause=str(error))
            await self._died(slot, life, str(error))
            return
        if slot.died:
            slot.service.restarts += 1
        await self._serve(slot, life)

    async def _serve(self, slot: _Slot, life: int) -> None:
        slot.died = False
        self._carry_out(self._pool.ready(self._loop.time(), slot.number, life))
        self._changed()
        log.info("pool.ready", number=slot.number, milliseconds=slot.phases)
        said = await slot.service.ended(expected=lambda: slot.draining)
        slot.port = 0
        if said or not slot.draining:
            await self._died(slot, life, said or "it was told to end by somebody else")
            return
        self._forget(slot.number)
        slot.free.clear()
        slot.abandon.clear()
        keeping = asyncio.create_task(self._keep_house(slot), name=f"files of query processor {slot.number}")
        self._housekeeping.add(keeping)
        keeping.add_done_callback(self._housekeeping.discard)
        self._watch(keeping)
        self._carry_out(self._pool.stopped(self._loop.time(), slot.number, life, slot.processor.version))
        self._changed()

    async def _died(self, slot: _Slot, life: int, cause: str) -> None:
        slot.port = 0
        slot.died = True
        await self._end_leftovers(slot)
        self._forget(slot.number)
        self._carry_out(self._pool.died(self._loop.time(), slot.number, life, cause))
        self._changed()

    async def _end_leftovers(self, slot: _Slot) -> None:
        if killed := await asyncio.to_thread(end_leftovers, {slot.processor.data: b"postgres"}):
            log.warning("query_processor.leftovers_killed", processes=killed)

    async def _drain(self, slot: _Slot, life: int) -> None:
        try:
            async with asyncio.timeout(USE_SECONDS):
                used = await slot.processor.in_use()
        except (NotReadyError, TimeoutError) as error:
            log.warning("query_processor.not_drained", number=slot.number, cause=str(error) or "no answer")
            used = 1
        if self._pool.processors[slot.number].life != life:
            return
        if used or self._pool.waiting:
            log.info("pool.busy", number=slot.number, used=used, waiting=self._pool.waiting)
            self._carry_out(self._pool.busy(self._loop.time(), slot.number, life))
            self._changed()
            return
        slot.draining = True
        slot.service.ask_to_end(slot.processor.drain_signal)

    async def _check(self, slot: _Slot, life: int) -> None:
        try:
            await slot.processor.wait_ready(USE_SECONDS)
        except NotReadyError as error:
            log.error("query_processor.unreachable", number=slot.number, cause=str(error))
            await slot.service.stop()  # its end is told by who waits for it
        else:
            self._carry_out(self._pool.reachable(self._loop.time(), slot.number, life))

    async def _keep_house(self, slot: _Slot) -> None:
        """After a clean end: make its files safe for the next boot, and an image of them now and then."""
        copied = threading.Event()

        def take() -> None:
            try:
                slot.processor.take_image(slot.abandon, copied)
            finally:
                copied.set()

        try:
            if await asyncio.to_thread(slot.processor.mark_clean, slot.abandon) and not self._imaging:
                self._imaging = True
                taking = asyncio.create_task(asyncio.to_thread(take))
                try:
                    await asyncio.to_thread(copied.wait)
                    slot.free.set()
                    await taking
                finally:
                    self._imaging = False
        except (AustralisError, OSError) as error:  # the next start of it may take longer
            log.error("query_processor.not_kept", number=slot.number, cause=str(error))
        finally:
            slot.free.set()


@contextlib.contextmanager
def _measured(slot: _Slot, phase: str) -> Iterator[None]:
    begin = time.monotonic()
    try:
        yield
    finally:
        slot.phases[phase] = round((time.monotonic() - begin) * 1000)


@contextlib.asynccontextmanager
async def _group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first error itself instead of a group of errors."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
