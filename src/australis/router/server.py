"""The router itself: listeners, the login of one client, the sessions and their ends.

One task per connection that logs in; none for a session that was handed over.  A login goes
accept → startup packet → admission → query processor → hand-over (or relay), and every step has a bound: connections
without a startup packet, sessions, logins in the query processor's hands, and the time of it all.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from australis.router import sockets
from australis.router.admission import Admission
from australis.router.handover import HandoverListener, Session, Ticket, bind_unix
from australis.router.placement import FixedUpstreams, Place, Placement
from australis.router.relay import RelayEnd
from australis.router.startup import (
    TLS_HANDSHAKE,
    CancelRequest,
    EncryptionRequest,
    Garbage,
    Refused,
    Startup,
    body_length,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from australis.router.config import RouterConfig, Upstream

log = structlog.get_logger(__name__)

ACCEPT_BATCH = 64
ACCEPT_PAUSE = 0.1
CANCEL_TIMEOUT = 5.0
UPSTREAM_READ = 16384
AUTHENTICATION = b"R"
"""What a backend that did not ask for its client would say next: it would trust anyone."""

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class RouterStatus:
    pending: int
    """Connections that have not logged in yet."""
    sessions: int
    """Sessions, logins included that were admitted."""
    relayed: int
    """Of these, how many pass their bytes through this process."""


class Router:
    """Call start() once, and close() when it succeeded."""

    def __init__(self, config: RouterConfig, placement: Placement | None = None) -> None:
        """placement: where query processors come from; None: config.upstreams.

        Raises OSError or ssl.SSLError if the certificate can't be loaded, ValueError if there can't be sessions.
        """
        if placement is None and not config.upstreams:
            raise ValueError("a router needs a query processor")
        self.config = config
        self._placement: Placement = FixedUpstreams(config.upstreams) if placement is None else placement
        self._tls = _tls_context(config)
        self._admission = Admission(config.max_connections, config.connection_rate, config.connection_burst)
        self._login_slots = asyncio.Semaphore(config.max_logins)
        self._handover = HandoverListener(
            config.handover_socket, self._session_started, self._session_ended, config.number
        )
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._sessions: dict[Session, asyncio.TimerHandle | None] = {}
        self._relays: set[RelayEnd] = set()
        self._no_sessions = asyncio.Event()
        self._no_sessions.set()
        self._closing = False
        self.port = config.port
        """The TCP port in use, once started."""

    async def start(self) -> None:
        """Listen.  OSError (EADDRINUSE, EADDRNOTAVAIL, EACCES ...) if that is impossible; then nothing is left open."""
        self._loop = asyncio.get_running_loop()
        try:
            for family, address in _addresses(self.config.hosts):
                listener = self._listen(family, address)
                if listener is not None:
                    self._listeners.append(listener)
                    self.port = listener.getsockname()[1]
        except OSError:
            self._close_listeners()
            raise
        try:
            self._handover.start()
            if self.config.unix_socket is not None:
                self._listeners.append(bind_unix(self.config.unix_socket, socket.SOCK_STREAM, 0o777))
        except OSError:
            self._handover.close()
            self._close_listeners()
            raise
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 3 * self.config.max_connections + self.config.max_pending
        if soft != resource.RLIM_INFINITY and soft < needed:
            log.warning("few file descriptors", limit=soft, needed=needed)

    async def close(self) -> None:
        """Stop listening, end the logins (57P03) and the sessions (57P01); returns within about close_timeout."""
        self._closing = True
        self._close_listeners()
        if self.config.unix_socket is not None:
            self.config.unix_socket.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.config.close_timeout)
        for session in list(self._sessions):
            session.terminate()
        relays = [relay.closed for relay in self._relays]
        with suppress(TimeoutError):  # what is left is left to the query processor's own end
            async with asyncio.timeout(self.config.close_timeout):
                await self._no_sessions.wait()
                if relays:
                    await asyncio.wait(relays)
        for relay in list(self._relays):
            relay.transport.abort()
        for session in list(self._sessions):
            session.forget()
        self._handover.close()

    async def leave(self, seconds: float) -> None:
        """Stop listening and let sessions go on: those handed over live without us, for the others we wait this long.

        Then as close(), but for the sessions that were handed over, which nobody ends.
        """
        self._close_listeners()
        if self.config.unix_socket is not None:
            self.config.unix_socket.unlink(missing_ok=True)
        waiting = {*self._tasks, *(relay.closed for relay in self._relays)}
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)
        if not self._relays:
            for session in list(self._sessions):
                session.forget()
        await self.close()

    def status(self) -> RouterStatus:
        return RouterStatus(self._pending, self._admission.sessions, len(self._relays))

    # listening

    def _listen(self, family: socket.AddressFamily, address: str) -> socket.socket | None:
        """None: this machine has no such loopback address (IPv6 switched off)."""
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            if family == socket.AF_INET6:
                return None
            raise
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, self.port))
            sock.listen(4096)
        except OSError as error:
            sock.close()
            if address == "::1" and error.errno == errno.EADDRNOTAVAIL:
                return None
            raise
        return sock

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                client, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                # the connection stays in the backlog: a level-triggered loop would spin on it
                log.error("connections not accepted", error=str(error))
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(ACCEPT_PAUSE, self._resume, listener)
                return
            client.setblocking(False)
            if self._pending >= self.config.max_pending:
                with suppress(OSError):  # it may be gone; it gets no more than this try
                    client.send(Refused("53300", "sorry, too many clients already").packet())
                client.close()
                continue
            self._pending += 1
            task = self._loop.create_task(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._served)

    def _resume(self, listener: socket.socket) -> None:
        if not self._closing:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pending -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("login failed", exc_info=error)

    # one connection

    async def _serve(self, client: socket.socket) -> None:
        login = _Login(client)
        try:
            async with asyncio.timeout(self.config.login_timeout):
                request = await self._first_request(login)
                if isinstance(request, CancelRequest):
                    await self._forward_cancel(request)
                    await login.close()
                else:
                    await self._log_in(login, request)
        except Garbage as error:
            log.debug("connection closed", reason=str(error))
            await login.close()
        except Refused as error:
            await login.refuse(error)
        except TimeoutError:
            log.debug("connection closed", reason="login timeout, or the client has gone")
            login.abort()
        except OSError as error:
            log.debug("connection closed", reason=str(error))
            login.abort()
        except asyncio.CancelledError:
            if login.startup_received:
                login.last_words(Refused("57P03", "the database system is shutting down").packet())
            login.abort()
            raise
        except BaseException:
            login.abort()
            raise

    async def _first_request(self, login: _Login) -> CancelRequest | Startup:
        """Negotiate encryption; return what the client wants."""
        assert login.client is not None
        tcp = login.client.family != socket.AF_UNIX
        if self._tls is not None and tcp and await sockets.peek(login.client) == bytes([TLS_HANDSHAKE]):
            await self._start_tls(login)
            # as PostgreSQL: without ALPN it could be another protocol that an attacker redirected here
            if login.end is None or login.end.transport.get_extra_info("ssl_object").selected_alpn_protocol() is None:
                raise Garbage("direct TLS without ALPN")
        tls_asked = gss_asked = login.end is not None
        while True:
            body = await login.read_exactly(body_length(await login.read_exactly(4)))
            request = parse(body, tls_asked=tls_asked, gss_asked=gss_asked)
            if not isinstance(request, EncryptionRequest):
                login.startup_received = isinstance(request, Startup)
                return request
            if request.tls and self._tls is not None and tcp:
                if sockets.has_pending_data(login.client):
                    raise Refused("08P01", "received unencrypted data after SSL request")
                await sockets.send_all(login.client, b"S")
                await self._start_tls(login)
                tls_asked = gss_asked = True
            else:
                await login.send(b"N")
                tls_asked |= request.tls
                gss_asked |= not request.tls

    async def _start_tls(self, login: _Login) -> None:
        assert login.client is not None
        assert self._tls is not None
        login.address = _address(login.client)
        client, login.client = login.client, None
        try:
            end = RelayEnd()  # uvloop returns another protocol than that of the factory
            await self._loop.connect_accepted_socket(
                lambda: end, client, ssl=self._tls, ssl_handshake_timeout=self.config.login_timeout
            )
        except BaseException:
            client.close()
            raise
        self._adopt(login, end)

    def _adopt(self, login: _Login, end: RelayEnd) -> None:
        login.end = end
        self._relays.add(end)
        end.closed.add_done_callback(lambda _: self._relays.discard(end))

    async def _forward_cancel(self, request: CancelRequest) -> None:
        """A query processor knows its backends' keys itself, and passes over others.

        Their closing says that they have read the request.
        """

        async def forward(target: Upstream) -> None:
            with suppress(OSError, TimeoutError):  # a cancel request is never answered, not even with an error
                async with asyncio.timeout(CANCEL_TIMEOUT):
                    upstream = await sockets.connect(target)
                    try:
                        await sockets.send_all(upstream, request.packet)
                        while await sockets.receive(upstream, UPSTREAM_READ):
                            pass
                    finally:
                        upstream.close()

        await asyncio.gather(*map(forward, self._placement.sockets()))

    async def _log_in(self, login: _Login, startup: Startup) -> None:
        self._admission.enter(self._loop.time())
        self._no_sessions.clear()
        try:
            upstream = await self._connect_upstream(login)
            assert login.place is not None
            if not isinstance(login.place.target, Path):
                await self._pass_on(login, startup, login.place, upstream)
            elif login.end is None and self.config.handover:
                await self._hand_over(login, startup, login.place, upstream)
            else:
                await self._relay(login, startup, login.place, upstream)
        finally:
            if login.ticket is not None:
                self._handover.revoke(login.ticket)
            if not login.passed_on and (login.ticket is None or login.ticket.session is None):
                self._left(login.place)
            if login.has_slot:
                self._login_slots.release()

    async def _connect_upstream(self, login: _Login) -> socket.socket:
        """A connection to the query processor of a place that can be reached; takes a login's slot."""
        passed: list[Place] = []
        while True:
            # the place first: who waits for one shall not keep others from logging in where one is
            async with asyncio.timeout(None) as waiting:
                with login.watched(lambda: waiting.reschedule(0.0)):
                    place = login.place = await self._placement.acquire(passed)
            await self._login_slots.acquire()
            login.has_slot = True
            try:
                return await sockets.connect(place.target)
            except OSError as error:
                log.warning("query processor not reachable", error=str(error))
                login.place = None
                self._placement.unreachable(place)
                passed.append(place)
                self._login_slots.release()
                login.has_slot = False

    async def _hand_over(self, login: _Login, startup: Startup, place: Place, upstream: socket.socket) -> None:
        """Start a backend and let it take the client; until then its words are passed on."""
        client = login.client
        assert client is not None
        heard = False

        def pass_on() -> None:
            nonlocal heard
            while True:
                try:
                    data = upstream.recv(UPSTREAM_READ)
                except (BlockingIOError, InterruptedError):
                    return
                except OSError:
                    data = b""
                if not data:
                    self._loop.remove_reader(upstream.fileno())
                    ticket.upstream_closed()
                    return
                if data.startswith(AUTHENTICATION):
                    log.error("query processor without its session hook")
                    self._loop.remove_reader(upstream.fileno())
                    ticket.fail()
                    return
                heard = True
                with suppress(OSError):  # the client may be gone; the backend will notice it, too
                    client.send(data)

        ticket = login.ticket = self._handover.issue(place, client=client, before=pass_on)
        try:
            await sockets.send_all(upstream, startup.packet(ticket.token))
            self._loop.add_reader(upstream.fileno(), pass_on)
            session = await ticket.taken
        except ConnectionError as error:
            raise _unavailable("The query processor closed the connection.") from error
        finally:
            self._loop.remove_reader(upstream.fileno())
            upstream.close()
        if session is not None:
            login.abort()  # only our copy of the descriptor
        elif heard:
            await login.close()
        else:
            raise _unavailable("The query processor closed the connection.")

    async def _relay(self, login: _Login, startup: Startup, place: Place, upstream: socket.socket) -> None:
        """Start a backend and pass bytes between it and the client."""
        client_end, backend = await self._both_ends(login, upstream)
        try:
            ticket = login.ticket = self._handover.issue(place, address=login.address)
            backend.closed.add_done_callback(lambda _: ticket.upstream_closed())
            client_end.closed.add_done_callback(lambda _: backend.finish())
            backend.transport.write(startup.packet(ticket.token))
            # the two are joined only now that the backend is known to authenticate its client
            session = await ticket.taken
        except BaseException:
            backend.finish()
            raise
        if session is not None:
            backend.join(client_end)
            return
        words = backend.take_received()
        backend.finish()
        if not words or words.startswith(AUTHENTICATION):
            raise _unavailable("The query processor closed the connection.")
        login.last_words(words)
        await login.close()

    async def _both_ends(self, login: _Login, upstream: socket.socket) -> tuple[RelayEnd, RelayEnd]:
        """The client's and the query processor's; owns both sockets from the beginning on."""
        try:
            if login.end is None:
                client, login.client = login.client, None
                assert client is not None
                login.address = _address(client)
                try:
                    end = RelayEnd(half_close=True)
                    await self._loop.connect_accepted_socket(lambda: end, client)
                except BaseException:
                    client.close()
                    raise
                self._adopt(login, end)
            backend = RelayEnd()
            if upstream.family == socket.AF_UNIX:
                await self._loop.create_unix_connection(lambda: backend, sock=upstream)
            else:
                await self._loop.create_connection(lambda: backend, sock=upstream)
        except BaseException:
            upstream.close()
            raise
        assert login.end is not None
        return login.end, backend

    async def _pass_on(self, login: _Login, startup: Startup, place: Place, upstream: socket.socket) -> None:
        """A query processor of another host: it authenticates its client by itself, through us."""
        client_end, backend = await self._both_ends(login, upstream)
        lifetime = self.config.max_lifetime
        timer = None if lifetime is None else self._loop.call_later(lifetime, backend.finish)

        def ended(_: object) -> None:
            if timer is not None:
                timer.cancel()
            self._left(place)

        login.passed_on = True
        backend.closed.add_done_callback(ended)
        client_end.closed.add_done_callback(lambda _: backend.finish())
        backend.transport.write(startup.packet())
        backend.join(client_end)

    # sessions

    def _session_started(self, session: Session) -> None:
        lifetime = self.config.max_lifetime
        self._sessions[session] = None if lifetime is None else self._loop.call_later(lifetime, session.terminate)

    def _session_ended(self, session: Session) -> None:
        timer = self._sessions.pop(session)
        if timer is not None:
            timer.cancel()
        self._left(session.upstream)

    def _left(self, place: Place | None) -> None:
        """A session at this place ended, or a login (None: it has none)."""
        if place is not None:
            self._placement.release(place)
        self._admission.leave()
        if self._admission.sessions == 0:
            self._no_sessions.set()


class _Login:
    """A client during its login: a raw socket, or a relay end once TLS or a relay has begun."""

    def __init__(self, client: socket.socket) -> None:
        self.client: socket.socket | None = client
        self.end: RelayEnd | None = None
        self.address: tuple[str, int] | None = None
        self.ticket: Ticket | None = None
        self.place: Place | None = None
        self.has_slot = False
        self.passed_on = False
        self.startup_received = False

    async def read_exactly(self, count: int) -> bytes:
        if self.end is not None:
            return await self.end.read_exactly(count)
        assert self.client is not None
        return await sockets.receive_exactly(self.client, count)

    async def send(self, data: bytes) -> None:
        if self.client is not None:
            await sockets.send_all(self.client, data)
        else:
            self.last_words(data)

    @contextmanager
    def watched(self, gone: Callable[[], None]) -> Iterator[None]:
        """Call `gone` if the client closes its connection meanwhile. A client that says something has not."""
        if self.end is not None:
            closed = self.end.closed

            def told(_: asyncio.Future[None]) -> None:
                gone()

            closed.add_done_callback(told)
            try:
                yield
            finally:
                closed.remove_done_callback(told)
            return
        client = self.client
        assert client is not None
        loop = asyncio.get_running_loop()

        def readable() -> None:
            loop.remove_reader(client.fileno())
            try:
                ended = not client.recv(1, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                loop.add_reader(client.fileno(), readable)
                return
            except OSError:
                ended = True
            if ended:
                gone()

        loop.add_reader(client.fileno(), readable)
        try:
            yield
        finally:
            loop.remove_reader(client.fileno())

    async def refuse(self, error: Refused) -> None:
        self.last_words(error.packet())
        await self.close()

    def last_words(self, data: bytes) -> None:
        """Send without waiting."""
        if self.end is not None:
            if self.end.open:
                self.end.transport.write(data)
        elif self.client is not None:
            with suppress(OSError):  # the client may be gone
                self.client.send(data)

    async def close(self) -> None:
        """Close when everything sent has arrived, or after a while."""
        if self.end is not None:
            self.end.finish()
        elif self.client is not None:
            client, self.client = self.client, None
            await sockets.close_gently(client)

    def abort(self) -> None:
        if self.end is not None:
            self.end.finish()
        elif self.client is not None:
            self.client.close()
            self.client = None


def _addresses(hosts: tuple[str, ...]) -> list[tuple[socket.AddressFamily, str]]:
    """Resolve host names, "*" to all addresses, IPv4 first."""
    found: dict[tuple[socket.AddressFamily, str], None] = {}
    for host in hosts:
        # bytes: for text, Python imports its IDNA codec, which a process that dropped privileges may not reach
        name = None if host == "*" else host.encode()
        for family, _, _, _, address in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            found[(family, str(address[0]))] = None
    return sorted(found, key=lambda one: one[0] != socket.AF_INET)


def _unavailable(detail: str) -> Refused:
    return Refused("57P03", "the database system is not available", detail)


def _address(client: socket.socket) -> tuple[str, int] | None:
    """Numeric address and port of a TCP client."""
    if client.family == socket.AF_UNIX:
        return None
    host, port = socket.getnameinfo(client.getpeername(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return host, int(port)


def _no_password() -> str:
    """Asked for an encrypted key's; the default is to ask the terminal."""
    raise ValueError("the key is encrypted")


def _tls_context(config: RouterConfig) -> ssl.SSLContext | None:
    """As PostgreSQL sets up its own: TLS 1.2 at least, no tickets, no renegotiation, no compression."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    context.load_cert_chain(config.tls_certificate, config.tls_key, password=_no_password)
    context.set_alpn_protocols(["postgresql"])
    return context
