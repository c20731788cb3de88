"""Notices children that run and do not answer: stopped by a signal, in an endless loop, hung.

A child that has said that it serves is asked for its status once a second over one connection; any answer, a refusal
included, comes from its event loop and counts. Roles that do not speak our protocol (routers, NATS servers) are only
looked at: is the process stopped (state T of proc(5); a debugger's is t, and is left alone)?

What must hold: nobody is killed for the machine being busy. What counts as silence is the time since a question
less what the child's main thread spent waiting for a processor (proc's schedstat) and less what this process itself was
late; there must have been several looks; and whoever was killed gets twice as long next time, up to eight times, until
it has lived for long. A child that is starting, stopping or being restarted is not judged: reading a long journal takes
time, and that has its own limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from australis.asker import Asker
from australis.control_plane.supervisor import STABLE_AFTER, Service
from australis.errors import AustralisError
from australis.protocol.messages import Status
from australis.transport import Address, Identity

ASK_SECONDS = 1.0
LOOK_SECONDS = 0.25
LOOKS = 4
"""In silence, before anything is done about it."""

LONGEST_FACTOR = 8

log = structlog.get_logger()


@dataclass
class Look:
    """What was seen of a process; times in seconds. `delayed`: its main thread's waits for a processor so far."""

    pid: int
    stopped: bool
    delayed: float


def look_at(pid: int) -> Look | None:
    """Ask the kernel; None if the process is gone."""
    process = Path("/proc") / str(pid)
    try:
        state = (process / "stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return None
    try:
        delayed = int((process / "schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError):  # a kernel without it: nothing is subtracted
        delayed = 0.0
    return Look(pid, state == b"T", delayed)


class Silence:
    """Decides about one child. Pure: looks, answers and times in."""

    def __init__(self, limit: float) -> None:
        """`limit`: seconds of silence."""
        self._limit = limit
        self._pid = 0
        self._since = self._began = 0.0
        self._delayed = self._late = 0.0
        self._looks = self._answers = 0
        self._outstanding = False
        self.factor = 1

    def question(self) -> None:
        """It is asked now. Silence begins with a question: in between nobody expects a word."""
        self._outstanding = True

    def heard(self) -> None:
        """It has answered."""
        self._answers += 1
        self._outstanding = False

    def too_long(self, look: Look, now: float, late: float) -> float:
        """Seconds of silence if that is too much, else 0. `late`: how much later than planned this look comes."""
        if look.pid != self._pid:
            self._pid, self._began, self._answers, self._outstanding = look.pid, now, 1, False
        elif now - self._began >= STABLE_AFTER:
            self.factor = 1
        if self._answers or not (self._outstanding or look.stopped):
            self._since, self._delayed, self._late = now, look.delayed, 0.0
            self._looks = self._answers = 0
            return 0.0
        self._looks += 1
        self._late += late
        silent = now - self._since - (look.delayed - self._delayed) - self._late
        return silent if self._looks >= LOOKS and silent >= self._limit * self.factor else 0.0

    def ended(self) -> None:
        """It is killed for it."""
        self.factor = min(2 * self.factor, LONGEST_FACTOR)


class Watcher:
    """Asks and looks at one service's process, and kills it when it is silent for too long. Run `watch`."""

    def __init__(
        self, service: Service, limit: float, listen: Callable[[], str], identity: Callable[[], Identity]
    ) -> None:
        """`listen`: where it answers (Address text), "" for a role that is only looked at."""
        self._service, self._listen, self._identity = service, listen, identity
        self._silence = Silence(limit)

    async def watch(self) -> None:
        """Returns only by cancellation."""
        asking = asyncio.create_task(self._ask()) if self._listen() else None
        loop = asyncio.get_running_loop()
        try:
            while True:
                due = loop.time() + LOOK_SECONDS
                await asyncio.sleep(LOOK_SECONDS)
                if asking is not None and asking.done():
                    asking.result()
                now = loop.time()
                pid = self._service.judged_pid
                look = look_at(pid) if pid is not None else None
                if look is None:
                    self._silence.heard()
                    continue
                silent = self._silence.too_long(look, now, now - due)
                if silent:
                    self._silence.ended()
                    log.error("service.silent", service=self._service.name, pid=pid, seconds=round(silent, 1))
                    self._service.kill()
        finally:
            if asking is not None:
                asking.cancel()
                await asyncio.wait([asking])

    async def _ask(self) -> None:
        """Ask for ever; a question of which no answer comes is waited for, until the process or we end."""
        while True:
            pid = self._service.judged_pid
            if pid is not None:
                conversation = asyncio.create_task(self._converse(pid))
                try:
                    while not conversation.done() and self._service.judged_pid == pid:
                        await asyncio.wait([conversation], timeout=ASK_SECONDS)
                finally:
                    conversation.cancel()
                    await asyncio.wait([conversation])
            await asyncio.sleep(ASK_SECONDS)

    async def _converse(self, pid: int) -> None:
        self._silence.question()
        try:
            async with Asker.open(Address.parse(self._listen()), self._identity()) as asker:
                self._silence.heard()
                serves = asker.connection.generation > 0 or not self._service.name.startswith("adjudicator")
                while serves and self._service.judged_pid == pid:  # a candidate greets, and no more
                    self._silence.question()
                    await asker.ask(Status())
                    self._silence.heard()
                    await asyncio.sleep(ASK_SECONDS)
        except BlockingIOError:
            pass  # its backlog is full: no answer
        except (OSError, AustralisError):
            self._silence.heard()  # it refuses, or has just ended; whether it should run is for others to judge
