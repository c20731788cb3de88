"""Keeps a service's process running: starts it, waits until it serves, restarts it when it dies.

What must hold: a service that has served once is started again for as long as the cluster runs, at a bounded rate (0.1
s doubling to 5 s between attempts), and its neighbours are not restarted for it. A service that cannot start for the
first time ends the start of the cluster with its own reason. Nothing is restarted once `stop` has begun.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

import structlog

from australis.control_plane.layout import ClusterError
from australis.control_plane.processes import Child
from australis.errors import AustralisError

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
STABLE_AFTER = 30.0  # a life this long makes earlier failures forgotten

log = structlog.get_logger()


class Service:
    """One supervised process.

    `launch(failures)` spawns it; `failures` counts the attempts since it last served well. `ready(child)` returns once
    it serves, or raises AustralisError.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[int], Awaitable[Child]],
        ready: Callable[[Child], Awaitable[None]],
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout: float = 10.0,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.serving = False
        self._launch = launch
        self._ready = ready
        self._stop_signal = stop_signal
        self._stop_timeout = stop_timeout
        self._changed = changed
        self._child: Child | None = None
        self._restarting: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def judged_pid(self) -> int | None:
        """The process, while it is expected to answer: it has served and is not told to end."""
        return self.pid if self.serving and self._restarting is None else None

    def kill(self) -> None:
        """It runs and does not answer: end it; whoever watches starts it again."""
        if self._child is not None and self._child.running:
            self._child.signal(signal.SIGKILL)

    async def start(self, failures: int = 0) -> None:
        """First start. Raises ClusterError with the service's own reason; the process is not left running then."""
        await self._attempt(failures)

    async def watch(self) -> None:
        """Restart the process whenever it ends; returns only by cancellation."""
        failures = 0
        while True:
            assert self._child is not None, "start comes first"
            await self.ended(expected=lambda: self._restarting is not None)
            lived = time.monotonic() - self._child.started
            failures = 0 if lived >= STABLE_AFTER or self._restarting is not None else failures + 1
            while True:
                if failures > 1:
                    await asyncio.sleep(min(FIRST_DELAY * 2 ** (failures - 2), LONGEST_DELAY))
                try:
                    await self._attempt(failures)
                except ClusterError as error:
                    failures += 1
                    log.error("service.not_restarted", service=self.name, attempt=failures, cause=str(error))
                else:
                    break
            self.restarts += 1
            self._changed()
            if self._restarting is not None and not self._restarting.done():
                self._restarting.set_result(None)

    async def restart(self) -> None:
        """End the process as at a stop and start it again; returns once it serves. It must be watched meanwhile."""
        if self._restarting is not None:
            raise ClusterError(f"{self.name} is being restarted already")
        self._restarting = asyncio.get_running_loop().create_future()
        try:
            if self._child is not None and self._child.running:
                await self._child.stop(self._stop_signal, self._stop_timeout)
            await self._restarting
        finally:
            self._restarting = None

    async def ended(self, *, expected: Callable[[], bool] = lambda: False) -> str:
        """Wait for the end of the process; returns why it ended, in words. `expected`: was it told to end?"""
        child = self._child
        assert child is not None, "start comes first"
        status = await child.wait()
        self._set_serving(False)
        said = child.last_words()
        lived = round(time.monotonic() - child.started, 1)
        tell = log.info if expected() else log.error
        tell("service.ended", service=self.name, status=status, lived=lived, said=said)
        return f"signal {-status}" if status < 0 else f"status {status}: {said}" if status else ""

    def ask_to_end(self, number: signal.Signals) -> None:
        """Send a signal after which it may take as long as it needs."""
        if self._child is not None and self._child.running:
            self._child.signal(number)

    async def stop(self) -> int | None:
        """End the process, politely first; watching must have ended. Exit status; None if it did not run any more."""
        self._set_serving(False)
        if self._child is not None and self._child.running:
            status = await self._child.stop(self._stop_signal, self._stop_timeout)
            log.info("service.stopped", service=self.name, status=status)
            return status
        return None

    async def _attempt(self, failures: int) -> None:
        begin = time.monotonic()
        try:
            child = self._child = await self._launch(failures)
        except (AustralisError, OSError) as error:
            raise ClusterError(f"{self.name}: {error}") from error
        ended = asyncio.ensure_future(child.wait())
        serves = asyncio.ensure_future(self._ready(child))
        try:
            await asyncio.wait({ended, serves}, return_when=asyncio.FIRST_COMPLETED)
            if not serves.done() or serves.exception() is not None:
                cause = child.last_words() if ended.done() else str(serves.exception())
                raise ClusterError(f"{self.name}: {cause}")
        except BaseException:
            await child.stop(signal.SIGKILL, 5.0)
            raise
        finally:
            for task in (ended, serves):
                task.cancel()
            await asyncio.gather(ended, serves, return_exceptions=True)
        self._set_serving(True)
        log.info("service.serving", service=self.name, pid=child.pid, seconds=round(time.monotonic() - begin, 3))

    def _set_serving(self, serving: bool) -> None:
        if serving != self.serving:
            self.serving = serving
            self._changed()
