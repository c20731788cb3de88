"""One end of a relayed connection: an asyncio protocol that passes bytes to another one like it.

Used where the client's socket can't be handed over: TLS, or by configuration.  Memory is bounded on both sides: what
one transport can't send (its high-water mark, 64 KiB) stops reading from the other, and before join() at most BUFFER
bytes are read.  When a client's plain stream ends, so does the backend's input, but its output still flows
(half-close); when the backend's ends, the client gets what is left and is closed, and is aborted if it doesn't take it
within LINGER.
"""

from __future__ import annotations

import asyncio
from typing import cast

from australis.router.startup import Garbage

BUFFER = 65536
LINGER = 10.0


class RelayEnd(asyncio.Protocol):
    """Reads as a stream until joined to another end, then passes everything on."""

    def __init__(self, *, half_close: bool = False) -> None:
        self._half_close = half_close
        self._transport: asyncio.Transport | None = None
        self._peer: RelayEnd | None = None
        self._received = bytearray()
        self._arrival: asyncio.Future[None] | None = None
        self._ended = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected yet"
        return self._transport

    @property
    def open(self) -> bool:
        """False once closing; then nothing may be written (uvloop raises)."""
        return not self.closed.done() and not self.transport.is_closing()

    async def read_exactly(self, count: int) -> bytes:
        """count bytes; Garbage if the stream ends before.  Only before join(), count at most BUFFER."""
        while len(self._received) < count:
            if self._ended:
                raise Garbage("incomplete startup packet" if self._received else "connection closed")
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    def take_received(self) -> bytes:
        """All that has arrived.  Only before join()."""
        data = bytes(self._received)
        self._received.clear()
        return data

    def join(self, peer: RelayEnd) -> None:
        """From now on pass bytes between the two."""
        for one, other in ((self, peer), (peer, self)):
            one._peer = other
        for one, other in ((self, peer), (peer, self)):
            data = one.take_received()
            if data and other.open:
                other.transport.write(data)
            if one.closed.done():
                other.finish()
            elif one._ended:
                one._pass_end(other)
            elif one.open:
                one.transport.resume_reading()

    def finish(self) -> None:
        """Close when everything is sent, or after LINGER."""
        if not self.closed.done():
            self.transport.close()
            timer = asyncio.get_running_loop().call_later(LINGER, self.transport.abort)
            self.closed.add_done_callback(lambda _: timer.cancel())

    def _pass_end(self, peer: RelayEnd) -> bool:
        """Pass the end of the stream on; True if the other direction goes on."""
        if self._half_close and peer.open and peer.transport.can_write_eof():
            peer.transport.write_eof()
            return True
        self.transport.close()
        return False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are one by behaviour only

    def data_received(self, data: bytes) -> None:
        if self._peer is not None:
            if self._peer.open:
                self._peer.transport.write(data)
            return
        self._received += data
        if len(self._received) >= BUFFER:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return self._half_close if self._peer is None else self._pass_end(self._peer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._wake()
        self.closed.set_result(None)
        if self._peer is not None:
            self._peer.finish()

    def pause_writing(self) -> None:
        if self._peer is not None and self._peer.open:
            self._peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._peer is not None and self._peer.open:
            self._peer.transport.resume_reading()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
