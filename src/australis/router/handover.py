"""The router's end of `handover.sock`: tokens out, descriptors out, the ends of sessions in.

A backend connects, presents its token and gets the client's descriptor or the client's address; `postgres/session.c`
has the other end and describes the messages.  The connection then stays open as long as the backend lives: its end of
file is how the router learns that a session is over, and while there is none, the peer's process id is that backend's.

What must hold: a token is good once, and only while its login waits; only processes of our own user (or root) are
listened to; the router keeps its copy of a client's descriptor until the backend has said that it took it, so that a
backend that dies in between costs the client an error message, not a silent end.  A backend that connects and says
nothing is dropped after TAKE_TIMEOUT.
"""

from __future__ import annotations

import array
import asyncio
import os
import secrets
import signal
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from australis.router.startup import TOKEN_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from australis.router.placement import Place

log = structlog.get_logger(__name__)

MAGIC = b"AUH1"
TAKE_TIMEOUT = 10.0
MAX_WAITING = 1024
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Session:
    """A backend that took its client: watched until it ends."""

    def __init__(self, control: socket.socket, pid: int, upstream: Place, on_end: Callable[[Session], None]) -> None:
        self.pid = pid
        self.upstream = upstream
        self._control = control
        self._on_end: Callable[[Session], None] | None = on_end
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data = self._control.recv(1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # reset: the backend is gone
        if not data:
            self.forget()

    def forget(self) -> None:
        """Stop watching; the session counts as ended."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            on_end(self)

    def terminate(self) -> None:
        """Tell the backend to end the session (57P01); its end arrives as for any other."""
        if self._on_end is None:
            return
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return  # it is ending by itself
        try:
            # The number may have a new owner only if the backend died before pidfd_open; then its socket is closed.
            try:
                ended = not self._control.recv(1, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                ended = False
            if not ended:
                signal.pidfd_send_signal(process, signal.SIGTERM)
        except ProcessLookupError:
            pass  # between the two lines above
        except OSError as error:
            log.warning("session not terminated", pid=self.pid, error=str(error))
        finally:
            os.close(process)


class Ticket:
    """One login's claim on a backend.

    taken resolves to the Session once the backend has the client, or to None when the backend has failed before that.
    session says the same without waiting, so that a login that is cancelled at that moment loses nothing.
    """

    def __init__(
        self,
        upstream: Place,
        client: socket.socket | None,
        address: tuple[str, int] | None,
        before: Callable[[], None],
        router: str = "",
    ) -> None:
        self.token = router + secrets.token_hex(TOKEN_LENGTH // 2)[len(router) :]
        self.upstream = upstream
        self.client = client
        self.address = address
        self.before = before
        self.presented = False
        self.session: Session | None = None
        self.taken: asyncio.Future[Session | None] = asyncio.get_running_loop().create_future()

    def upstream_closed(self) -> None:
        """The backend's first socket is closed: a failure, unless the backend has our answer and changed sockets."""
        if not self.presented:
            self.fail()

    def fail(self) -> None:
        if not self.taken.done():
            self.taken.set_result(None)


@dataclass(slots=True)
class _Waiting:
    """A backend that has connected and not yet taken its client."""

    timer: asyncio.TimerHandle
    ticket: Ticket | None = None


class HandoverListener:
    """Listens on the hand-over socket from start() to close()."""

    def __init__(
        self,
        path: Path,
        on_start: Callable[[Session], None],
        on_end: Callable[[Session], None],
        number: int | None = None,
    ) -> None:
        """`number` of one of several routers: its tokens say so (session.c), and its socket has other names, too."""
        self._path = path
        self._router = "" if number is None else f"r{number:02d}"
        self._link = "" if number is None else f"handover-{number:02d}.sock"
        self._on_start = on_start
        self._on_end = on_end
        self._tickets: dict[str, Ticket] = {}
        self._waiting: dict[socket.socket, _Waiting] = {}
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """OSError if the socket can't be bound or another process answers on it."""
        self._loop = asyncio.get_running_loop()
        self._listener = bind_unix(self._path, socket.SOCK_SEQPACKET, 0o600)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = None
        self._path.unlink(missing_ok=True)
        for control in list(self._waiting):
            self._drop(control)
        for ticket in list(self._tickets.values()):
            self.revoke(ticket)

    def issue(
        self,
        upstream: Place,
        *,
        client: socket.socket | None = None,
        address: tuple[str, int] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> Ticket:
        """A token for one backend of the query processor at this place.

        It is answered with client's descriptor, or without one with "relay" and the address (None: by Unix socket).
        before() is called just before the descriptor leaves: what the backend wrote to its first socket goes first.
        """
        if self._link:
            assert isinstance(upstream.target, Path), "those of other hosts present no tokens"
            self._make_link(upstream.target.with_name(self._link))
        ticket = Ticket(upstream, client, address, before, self._router)
        self._tickets[ticket.token] = ticket
        return ticket

    def _make_link(self, link: Path) -> None:
        """Be found beside the postmaster's socket (whose directory may have been emptied meanwhile). Raises OSError."""
        try:
            if os.readlink(link) == str(self._path):
                return
            link.unlink()
        except FileNotFoundError:
            pass
        link.symlink_to(self._path)

    def revoke(self, ticket: Ticket) -> None:
        """The login is over, one way or the other."""
        self._tickets.pop(ticket.token, None)
        ticket.fail()

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(64):
            try:
                control, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # out of descriptors: backends time out and clients are told; sessions that end free some
                log.error("hand-over connection not accepted", error=str(error))
                return
            control.setblocking(False)
            pid, uid, _gid = peer_credentials(control)
            if uid not in (0, os.geteuid()) or len(self._waiting) >= MAX_WAITING:
                log.warning("hand-over connection refused", pid=pid, uid=uid)
                control.close()
                continue
            self._waiting[control] = _Waiting(self._loop.call_later(TAKE_TIMEOUT, self._drop, control))
            self._loop.add_reader(control.fileno(), self._present, control, pid)

    def _drop(self, control: socket.socket) -> None:
        waiting = self._waiting.pop(control)
        waiting.timer.cancel()
        self._loop.remove_reader(control.fileno())
        control.close()
        if waiting.ticket is not None:
            waiting.ticket.fail()

    def _present(self, control: socket.socket, pid: int) -> None:
        """First message of a backend: its token."""
        try:
            message = control.recv(len(MAGIC) + TOKEN_LENGTH + 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            message = b""
        token = message.removeprefix(MAGIC).decode("ascii", "replace") if message.startswith(MAGIC) else ""
        ticket = self._tickets.pop(token, None)
        if ticket is None:
            if message:
                log.warning("unknown session token presented", pid=pid)
                with suppress(OSError):  # the peer may be gone, and is refused anyway
                    control.send(b"N")
            self._drop(control)
            return
        self._waiting[control].ticket = ticket
        try:
            if ticket.client is not None:
                ticket.before()
                rights = array.array("i", [ticket.client.fileno()])
                control.sendmsg([b"H"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            else:
                host, port = ticket.address or ("", "")
                control.send(b"R%s\0%s\0" % (host.encode(), str(port).encode()))
        except OSError as error:
            log.warning("client not handed over", pid=pid, error=str(error))
            self._drop(control)
            return
        ticket.presented = True
        self._loop.add_reader(control.fileno(), self._confirm, control, pid, ticket)

    def _confirm(self, control: socket.socket, pid: int, ticket: Ticket) -> None:
        """Second message of a backend: it has the client."""
        try:
            message = control.recv(2)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            message = b""
        if message == b"T" and not ticket.taken.done():
            self._waiting.pop(control).timer.cancel()
            ticket.session = Session(control, pid, ticket.upstream, self._on_end)
            self._on_start(ticket.session)
            ticket.taken.set_result(ticket.session)
        else:
            self._drop(control)


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of a Unix socket's peer."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid


def bind_unix(path: Path, kind: int, mode: int) -> socket.socket:
    """A listening, non-blocking Unix socket; replaces one that a dead process has left.

    Raises OSError: EADDRINUSE if a living process listens there.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        try:
            sock.bind(str(path))
        except OSError:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise
            with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
                else:
                    raise
            sock.bind(str(path))
        path.chmod(mode)
        sock.listen(4096)
    except BaseException:
        sock.close()
        raise
    return sock
