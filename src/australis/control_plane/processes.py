"""Child processes: started bound to our life, their output bounded, and what an earlier run left behind.

What must hold: no child outlives the supervisor (bound_exec.py), a child's output can neither fill the disk nor block
it, and before a cluster starts no process of an earlier run works in its directory. The directory's lock, held by the
caller, is what makes killing such leftovers safe: there is no other supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import logging.handlers
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGKILL, Signals
from typing import cast

import msgspec
import structlog

from australis.control_plane.layout import ClusterError, Layout
from australis.logs import FILE_BYTES, KEPT_FILES
from australis.page import PROCESSORS

BOUND_EXEC = str(Path(__file__).with_name("bound_exec.py"))
LINE_BYTES = 16 << 10  # longer lines are cut into pieces
BUSY_SECONDS, PAUSE_SECONDS = 0.01, 0.05  # output that comes more often than the first is read after the second
KEPT_LINES = 20
LEFTOVER_SECONDS = 10.0

log = structlog.get_logger()


class Child:
    """A running child. Create with `spawn`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, output: _Output) -> None:
        self.name = name
        self.started = time.monotonic()
        self._process = process
        self._output = output

    @classmethod
    async def spawn(
        cls,
        name: str,
        command: Sequence[str],
        file: Path,
        *,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        death_signal: Signals = SIGKILL,
        plain: bool = False,
    ) -> Child:
        """Start `command` in `directory`; its stdout and stderr go to the bounded log `file`.

        `plain` keeps the lines as they are (they carry their time); else they become JSON like our own.
        """
        reading, writing = os.pipe()
        _, output = await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Output(_output_log(name, file, plain=plain)), io.FileIO(reading, "rb")
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", BOUND_EXEC, str(os.getpid()), str(int(death_signal)), *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=environment,
                cwd=directory,
                # Control-C at the terminal is for the supervisor alone.
                start_new_session=True,
            )
        finally:
            os.close(writing)
        return cls(name, process, output)

    @property
    def last_lines(self) -> deque[str]:
        """The newest lines of output."""
        return self._output.last_lines

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Exit status (negative: the signal), once all output has been read."""
        status = await self._process.wait()
        with contextlib.suppress(TimeoutError):  # a grandchild may hold the pipe a little longer
            await asyncio.wait_for(asyncio.shield(self._output.ended), 1.0)
        return status

    def signal(self, number: Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self, number: Signals, seconds: float) -> int:
        """Ask with `number`, insist with SIGKILL after `seconds`."""
        self.signal(number)
        try:
            return await asyncio.wait_for(self.wait(), seconds)
        except TimeoutError:
            log.error("child.killed", child=self.name, pid=self.pid, after=seconds)
            self.signal(SIGKILL)
            return await self.wait()

    async def line(self, prefix: str) -> str:
        """The first line of output that starts with `prefix`; EOFError when the output ends without one."""
        while True:
            for text in self.last_lines:
                if text.startswith(prefix):
                    return text
            if self._output.ended.done():
                raise EOFError(self.last_words())
            self._output.news.clear()
            await self._output.news.wait()

    def last_words(self) -> str:
        """The line that says best why the child ended."""
        lines = [line.removeprefix(f"{self.name}: ") for line in self.last_lines]
        for index in range(len(lines) - 1, -1, -1):
            for mark in ("FATAL:", "PANIC:", "error:"):
                _, found, cause = lines[index].partition(mark)
                if found and "contains errors" in cause and index > 0:  # PostgreSQL names the setting a line before
                    return lines[index - 1].partition("LOG:")[2].strip() or cause.strip()
                if found:
                    return cause.strip()
        return lines[-1] if lines else "it said nothing"


class _Output(asyncio.Protocol):
    """Reads what a child says, and logs it with one write per reading."""

    _transport: asyncio.ReadTransport

    def __init__(self, log: logging.Logger) -> None:
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._log = log
        self._rest = b""
        self._read_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.ReadTransport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LINE_BYTES:
            lines.append(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        self._keep(lines)
        # PostgreSQL writes for every failed statement: to wake up for each would cost commits a few percent.
        before, self._read_at = self._read_at, self._loop.time()
        if self._read_at - before < BUSY_SECONDS:
            self._transport.pause_reading()
            self._loop.call_later(PAUSE_SECONDS, self._transport.resume_reading)

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep([self._rest] if self._rest else [])
        self.ended.set_result(None)
        self.news.set()

    def _keep(self, lines: list[bytes]) -> None:
        if lines:
            texts = [line.decode(errors="replace") for line in lines]
            self.last_lines.extend(texts)
            self._log.info("%s", "\n".join(texts))
            self.news.set()


def _output_log(name: str, file: Path, *, plain: bool) -> logging.Logger:
    """A logger for the lines of a child, into a rotating file."""
    logger = logging.getLogger(f"australis.output.{name}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.handlers.RotatingFileHandler(
            file, maxBytes=FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8", delay=True
        )
        if not plain:
            handler.setFormatter(_JsonLine())
        logger.addHandler(handler)
    return logger


class _JsonLine(logging.Formatter):
    """Lines of output as structlog would write them."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, tz=UTC).isoformat().replace("+00:00", "Z")
        return "\n".join(
            msgspec.json.encode({"event": line, "level": "info", "timestamp": when}).decode()
            for line in record.getMessage().split("\n")
        )


def _left_in(directory: Path, program: bytes) -> list[int]:
    """Processes of this user that work in exactly this directory and whose command line contains `program`."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if os.readlink(f"/proc/{name}/cwd").removesuffix(" (deleted)") != str(directory):
                continue
            if program in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def services_of(layout: Layout) -> dict[Path, bytes]:
    """Where each supervised process works, and a word of its command line."""
    servers = {layout.processor(number) / "data": b"postgres" for number in range(PROCESSORS)}
    found = {**servers, layout.journal: b"australis", layout.nats: b"nats-server"}
    if layout.roles.is_dir():
        for role in layout.roles.iterdir():
            found[role] = b"nats-server" if role.name.startswith("nats-") else b"australis"
            found |= {server / "data": b"postgres" for server in role.glob("postgresql-*")}
    return found


def end_leftovers(programs: Mapping[Path, bytes]) -> int:
    """Kill what an earlier run left: processes working in a directory with that text in their command line.

    Returns how many there were; raises ClusterError if one will not die. People's shells and editors are spared.
    """
    deadline = time.monotonic() + LEFTOVER_SECONDS
    killed: set[int] = set()
    while left := [pid for directory, program in programs.items() for pid in _left_in(directory, program)]:
        if time.monotonic() > deadline:
            raise ClusterError(f"process {left[0]} of an earlier run does not end; end it and start again")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
            killed.add(pid)
        _wait_for_end(left, min(deadline - time.monotonic(), 1.0))
    return len(killed)


def _wait_for_end(pids: Sequence[int], timeout: float) -> None:
    """Wait until these processes, which need not be our children, are gone; at most `timeout` seconds."""
    import select

    poll = select.poll()
    open_fds: set[int] = set()
    deadline = time.monotonic() + timeout
    try:
        for pid in pids:
            with contextlib.suppress(OSError):
                fd = os.pidfd_open(pid)
                open_fds.add(fd)
                poll.register(fd, select.POLLIN)
        while open_fds and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                os.close(fd)
                open_fds.discard(fd)
    finally:
        for fd in open_fds:
            os.close(fd)
