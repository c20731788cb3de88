"""Connections between the processes of a cluster: framed messages over TCP (TLS if configured) or Unix sockets.

    server = await listen("127.0.0.1:4101", identity, lambda connection: handler)
    link = Link(["127.0.0.1:4101"], identity, handler); link.start(); link.send(message); await link.close()

A connection begins with a Greeting from each side; whoever is of another cluster, speaks another protocol or is no
stranger's guest is told so in one Error message and disconnected. What must hold:
- a handler hears `received` only after both greetings, in the order of sending, and `lost` exactly once, last;
- nothing is sent twice: what was written to a connection that broke may or may not have arrived, and the layer above
  decides what that means;
- memory is bounded: a message is limited, an unfinished greeting has a time limit, and a handler is told (`paused`)
  when its peer does not read, so that it stops producing; `Link.send` refuses while there is no connection.

A peer that vanishes without a word (a partition) is noticed by TCP: probes after 2 s, unacknowledged data after 5 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import msgspec
import structlog

from australis.errors import AustralisError, ProtocolError
from australis.protocol.frames import MAX_FRAME, FrameDecoder, frame
from australis.protocol.messages import PROTOCOL_VERSION, Error, Greeting, encode

GREETING_SECONDS = 10.0
GREETING_BYTES = 4096
HIGH_WATER = 8 << 20
LARGE_FRAME = 8 << 20
CONNECT_SECONDS = 5.0
RECONNECT_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
PROBE_SECONDS, UNACKNOWLEDGED_MS = 2, 5000

log = structlog.get_logger()

_first_decoder: msgspec.msgpack.Decoder[Greeting | Error] = msgspec.msgpack.Decoder(Greeting | Error)


class AddressError(AustralisError):
    """Not an address; the message says which text and what is expected."""

    sqlstate = "22023"


@dataclass(frozen=True, slots=True)
class Address:
    """`host:port`, `[v6]:port` or `unix:/path`."""

    host: str = ""
    port: int = 0
    path: str = ""

    @staticmethod
    def parse(text: str) -> Address:
        """Raises AddressError."""
        if text.startswith("unix:") and len(text) > 5:
            return Address(path=text[5:])
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise AddressError(f"expected host:port or unix:PATH, got {text!a}")
        return Address(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Identity:
    """Who we are to others. `tls` is None where everybody who can connect is trusted (Unix sockets, one machine)."""

    cluster: bytes
    role: str
    name: str = ""
    generation: Callable[[], int] = lambda: 0
    """Said in greetings; of an adjudicator that serves its generation, else 0."""
    server_tls: ssl.SSLContext | None = None
    client_tls: ssl.SSLContext | None = None
    check_peer: Callable[[Greeting, ssl.SSLObject | None], str] = lambda greeting, tls: ""
    """Why this peer is refused; '' if it is not."""

    def greeting(self) -> Greeting:
        """The first message of a connection."""
        return Greeting(PROTOCOL_VERSION, self.cluster, self.role, self.generation(), self.name)


class Handler(Protocol):
    """What a process does with a connection."""

    def connected(self, connection: Connection) -> None:
        """Both sides have greeted."""

    def received(self, connection: Connection, body: bytes) -> None:
        """A message; an error of ours or of msgspec's that is raised is told to the peer, and the connection closed."""

    def lost(self, connection: Connection) -> None:
        """It is over."""

    def writable(self, connection: Connection, yes: bool) -> None:
        """The peer does not read (no), or reads again (yes)."""


class Connection(asyncio.Protocol):
    """One connection, either end."""

    transport: asyncio.Transport

    def __init__(
        self,
        identity: Identity,
        handler: Handler,
        *,
        greets_first: bool,
        begun: Callable[[Connection], None] | None = None,
        ended: Callable[[Connection, str], None] | None = None,
        limit: int = MAX_FRAME,
        large: Callable[[Connection, int], None] | None = None,
    ) -> None:
        self.identity, self.handler = identity, handler
        self.peer: Greeting | None = None
        self.paused = False
        self.heard = 0.0  # when something came, in the loop's time
        self._listening = True
        self.refusal = ""  # what the peer said, or what we said, before it was closed
        self._greets_first = greets_first
        self._begun, self._ended = begun, ended
        self._limit = limit
        self._large = large
        self._decoder = FrameDecoder(GREETING_BYTES)
        self._clock = asyncio.get_running_loop().time
        self._timer: asyncio.TimerHandle | None = None

    @property
    def generation(self) -> int:
        """Of the peer, as it said when the connection began."""
        return self.peer.generation if self.peer is not None else 0

    # ------------------------------------------------------------------------------------------------- for handlers

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; to a peer that is gone, nothing."""
        self.send_body(encode(message))

    def send_body(self, body: bytes) -> None:
        """Send the bytes of a message."""
        if not self.transport.is_closing():
            self.transport.write(frame(body))

    def fail(self, sqlstate: str, text: str) -> None:
        """Tell the peer what is wrong and close."""
        self.refusal = self.refusal or text
        self.send(Error(sqlstate, text))
        self.close()

    def close(self) -> None:
        """Close once what was sent is written."""
        self.transport.close()

    def pause_reading(self) -> None:
        """Take no more messages for now."""
        self._listening = False
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take messages again."""
        self._listening, self.heard = True, self._clock()
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def silent_for(self, seconds: float) -> bool:
        """Has the peer said nothing for so long, though we listen?"""
        return self._listening and self._clock() - self.heard > seconds

    # ------------------------------------------------------------------------------------------------- of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are, or wait for the other to do so."""
        self.transport = cast(asyncio.Transport, transport)
        self.heard = asyncio.get_running_loop().time()
        self.transport.set_write_buffer_limits(HIGH_WATER)
        if self._begun is not None:  # not before: after a failed TLS handshake nothing would end it
            self._begun(self)
        _keep_alive(self.transport.get_extra_info("socket"))
        self._timer = asyncio.get_running_loop().call_later(GREETING_SECONDS, self._silent)
        if self._greets_first:
            self.send(self.identity.greeting())

    def _silent(self) -> None:
        self.fail("08P01", f"no greeting within {GREETING_SECONDS:.0f} s")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler, once."""
        if self._timer is not None:
            self._timer.cancel()
        if self.peer is not None:
            self.handler.lost(self)
        if self._ended is not None:
            self._ended(self, self.refusal or (str(exc) if exc is not None else ""))

    def pause_writing(self) -> None:
        """The peer does not read."""
        self.paused = True
        if self.peer is not None:
            self.handler.writable(self, False)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self.paused = False
        if self.peer is not None:
            self.handler.writable(self, True)

    def data_received(self, data: bytes) -> None:
        """Hand over the messages that are complete."""
        if self.transport.is_closing():
            return
        self.heard = self._clock()
        try:
            bodies = self._decoder.feed(data)
            if self.peer is None and bodies:
                self._greeted(bodies.pop(0))
                rest, self._decoder = self._decoder, FrameDecoder(self._limit)
                bodies += self._decoder.feed(rest.rest())
            received = self.handler.received
            for body in bodies:
                if self.transport.is_closing():
                    return
                received(self, body)
            if self._large is not None and self._decoder.expected > LARGE_FRAME:
                self._large(self, self._decoder.expected)
        except msgspec.MsgspecError as error:
            self.fail("08P01", f"not a message of the protocol: {error}")
        except AustralisError as error:
            self.fail(error.sqlstate, str(error))

    def _greeted(self, body: bytes) -> None:
        message = _first_decoder.decode(body)
        if isinstance(message, Error):
            self.refusal = message.message
            self.close()
            raise _RefusedError(message.message)
        identity = self.identity
        if message.protocol != PROTOCOL_VERSION:
            raise ProtocolError(f"protocol {message.protocol}, this service speaks {PROTOCOL_VERSION}")
        if message.cluster != identity.cluster:
            raise _StrangerError(f"this is another cluster ({identity.cluster.hex()})")
        refused = identity.check_peer(message, self.transport.get_extra_info("ssl_object"))
        if refused:
            raise _StrangerError(refused)
        assert self._timer is not None, "set when the connection was made"
        self._timer.cancel()
        self._timer = None
        if not self._greets_first:
            self.send(identity.greeting())
        self.peer = message
        self.handler.connected(self)


class _StrangerError(AustralisError):
    sqlstate = "08004"


class _RefusedError(AustralisError):
    sqlstate = "08004"


def _keep_alive(sock: socket.socket | None) -> None:
    """Notice a peer that vanished without a word."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", PROBE_SECONDS), ("TCP_KEEPINTVL", PROBE_SECONDS), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


class Server:
    """A listening socket and its connections."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def close(self) -> None:
        """Accept no more, end every connection."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        while self.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the loop tells them in its next round


async def listen(
    address: Address,
    identity: Identity,
    accept: Callable[[], Handler],
    *,
    limit: int = MAX_FRAME,
    backlog: int = 512,
    large: Callable[[Connection, int], None] | None = None,
) -> Server:
    """Serve `address`; `accept` makes (or names) the handler of a new connection. Raises OSError.

    `large` is told, perhaps several times, that a message of more than LARGE_FRAME bytes is arriving; it may pause the
    connection until there is memory for it.
    """
    server = Server()

    def ended(connection: Connection, _: str) -> None:
        server.connections.discard(connection)

    def make() -> Connection:
        return Connection(
            identity,
            accept(),
            greets_first=False,
            begun=server.connections.add,
            ended=ended,
            limit=limit,
            large=large,
        )

    loop = asyncio.get_running_loop()
    if address.path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address.path)
        server._server = await loop.create_unix_server(make, address.path, backlog=backlog)
        os.chmod(address.path, 0o600)
    else:
        server._server = await loop.create_server(
            make, address.host, address.port, ssl=identity.server_tls, backlog=backlog, reuse_address=True
        )
    return server


class Link:
    """Keeps a connection to one of several addresses where the same service may be, for ever."""

    def __init__(
        self,
        addresses: list[Address],
        identity: Identity,
        handler: Handler,
        *,
        wanted: Callable[[Greeting], bool] = lambda greeting: True,
        limit: int = MAX_FRAME,
        silence: float | None = None,
    ) -> None:
        """`wanted` says whether a peer is the one to stay with (a candidate that does not serve is not).

        A peer that promises to say something now and then is left after `silence` seconds without a word.
        """
        if not addresses:
            raise AddressError("a link needs an address")
        self._addresses, self._identity, self._handler = addresses, identity, handler
        self._wanted, self._limit, self._silence = wanted, limit, silence
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._over: asyncio.Future[str] | None = None
        self.last_error = ""

    @property
    def connection(self) -> Connection | None:
        """The connection, once both sides have greeted; None while there is none."""
        connection = self._connection
        return connection if connection is not None and connection.peer is not None else None

    @property
    def generation(self) -> int:
        """The peer's; 0 while there is no connection."""
        connection = self.connection
        return connection.generation if connection is not None else 0

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.create_task(self._keep(), name=f"link to {self._addresses[0]}")

    def send(self, message: msgspec.Struct) -> bool:
        """Send if there is a connection; False: nothing was sent."""
        connection = self.connection
        if connection is None or connection.transport.is_closing():
            return False
        connection.send(message)
        return True

    async def close(self) -> None:
        """Give up."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._connection is not None:
            self._connection.transport.abort()

    async def _keep(self) -> None:
        failures = 0
        while True:
            address = self._addresses[failures % len(self._addresses)]
            error = await self._attempt(address)
            if error is None:
                failures = 0
            elif error != self.last_error:
                self.last_error = error
                log.info("link.down", to=str(address), error=error)
            failures += 1
            await asyncio.sleep(RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS)) - 1])

    async def _attempt(self, address: Address) -> str | None:
        """One connection, until it ends; None if it was a good one, else why there was none."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[str] = loop.create_future()
        was_good = False

        def ended(connection: Connection, error: str) -> None:
            nonlocal was_good
            was_good = connection.peer is not None and self._wanted(connection.peer)
            if not over.done():
                over.set_result(error or "the connection was closed")

        def begun(connection: Connection) -> None:
            self._connection = connection  # now: its handler may want to send before connecting is said to be over

        def make() -> Connection:
            handler = _Chosen(self._handler, self._wanted)
            return Connection(self._identity, handler, greets_first=True, begun=begun, ended=ended, limit=self._limit)

        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if address.path:
                    await loop.create_unix_connection(make, address.path)
                else:
                    await loop.create_connection(
                        make,
                        address.host,
                        address.port,
                        ssl=self._identity.client_tls,
                        server_hostname=address.host if self._identity.client_tls is not None else None,
                    )
        except (OSError, ssl.SSLError, TimeoutError) as error:
            return str(error) or "no answer"
        if self._silence is not None:
            await self._listen(over, self._silence)
        ending = await over
        self._connection = None
        return None if was_good else ending

    async def _listen(self, over: asyncio.Future[str], silence: float) -> None:
        """Leave a peer that is silent: stopped, or cut off without a word."""
        while not over.done():
            await asyncio.wait([over], timeout=silence / 2)
            connection = self._connection
            if not over.done() and connection is not None and connection.silent_for(silence):
                connection.refusal = f"silent for {silence:.0f} s"
                connection.transport.abort()


class _Chosen:
    """Passes on what comes from a peer that is wanted; leaves the others."""

    def __init__(self, handler: Handler, wanted: Callable[[Greeting], bool]) -> None:
        self._handler, self._wanted = handler, wanted
        self._yes = False

    def connected(self, connection: Connection) -> None:
        assert connection.peer is not None, "both sides have greeted"
        self._yes = self._wanted(connection.peer)
        if self._yes:
            self._handler.connected(connection)
        else:
            connection.refusal = "it does not serve"
            connection.close()

    def received(self, connection: Connection, body: bytes) -> None:
        if self._yes:
            self._handler.received(connection, body)

    def lost(self, connection: Connection) -> None:
        if self._yes:
            self._handler.lost(connection)

    def writable(self, connection: Connection, yes: bool) -> None:
        if self._yes:
            self._handler.writable(connection, yes)
