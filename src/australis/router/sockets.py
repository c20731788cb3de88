"""Waiting on raw, non-blocking sockets from asyncio, without buffering a byte.

A client's descriptor can only be handed over while nothing of its stream was read beyond what was asked for.  asyncio's
transports and streams read ahead, so the router's login phase uses these few functions.  Every loop that has
add_reader() will do (asyncio's selector loop, uvloop).
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from australis.router.startup import Garbage

if TYPE_CHECKING:
    from australis.router.config import Upstream

CONNECT_TIMEOUT = 5.0
CONNECT_RETRY = 0.005
LINGER = 1.0
LINGER_BYTES = 1 << 16


async def wait_readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


async def wait_writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock.fileno(), _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def receive(sock: socket.socket, limit: int) -> bytes:
    """At least one and at most limit bytes; b"" at the end of the stream."""
    while True:
        try:
            return sock.recv(limit)
        except (BlockingIOError, InterruptedError):
            await wait_readable(sock)


async def peek(sock: socket.socket) -> bytes:
    """The next byte, left where it is; b"" at the end of the stream."""
    while True:
        try:
            return sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            await wait_readable(sock)


def has_pending_data(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except (BlockingIOError, InterruptedError):
        return False


async def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """count bytes; Garbage if the stream ends before."""
    data = bytearray()
    while len(data) < count:
        part = await receive(sock, count - len(data))
        if not part:
            raise Garbage("incomplete startup packet" if data else "connection closed")
        data += part
    return bytes(data)


async def send_all(sock: socket.socket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[sock.send(left) :]
        except (BlockingIOError, InterruptedError):
            await wait_writable(sock)


async def connect_unix(path: str) -> socket.socket:
    """Connect to a Unix stream socket; OSError if nobody listens.

    A full backlog makes a non-blocking connect fail with EAGAIN, and there is nothing to wait on: try again until
    cancelled, that is, until the caller's timeout.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                await asyncio.sleep(CONNECT_RETRY)
    except BaseException:
        sock.close()
        raise


async def connect(upstream: Upstream) -> socket.socket:
    """Connect to a Unix socket or a TCP address; OSError if nobody listens, or over TCP nobody answers in time."""
    if isinstance(upstream, Path):
        return await connect_unix(str(upstream))
    if upstream.path:
        return await connect_unix(upstream.path)
    loop = asyncio.get_running_loop()
    cause = OSError(f"{upstream}: no such host")
    # bytes, and no sock_connect of uvloop's: for text they need a codec that a process without privileges may not reach
    host = upstream.host.encode()
    for family, _, _, _, address in await loop.getaddrinfo(host, upstream.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                try:
                    sock.connect(address)
                except BlockingIOError:
                    await wait_writable(sock)
                if error_number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error_number, os.strerror(error_number))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except TimeoutError:
            sock.close()
            cause = OSError(f"{upstream}: no answer within {CONNECT_TIMEOUT:.0f} s")
        except OSError as error:
            sock.close()
            cause = error
        except BaseException:
            sock.close()
            raise
    raise cause


async def close_gently(sock: socket.socket) -> None:
    """Close so that what was sent last arrives.

    Closing a socket with unread bytes makes TCP reset the connection, and a reset can overtake the last message; so
    read on, for LINGER seconds and LINGER_BYTES at most.
    """
    limit = LINGER_BYTES
    try:
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LINGER):
            while limit > 0 and (data := await receive(sock, 8192)):
                limit -= len(data)
    except (OSError, TimeoutError):
        pass  # the peer is gone or doesn't care: nothing more to deliver
    finally:
        sock.close()
