"""Framing: a message on a stream is its length (u32, little-endian) and its bytes.

What must hold: a length above the bound is refused before any of its bytes is kept (ProtocolError); the decoder copies
each body once and keeps at most one incomplete frame. It has no socket, so it is tested byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from australis.errors import ProtocolError

MAX_FRAME = 1_342_177_280
"""Largest message: the query processor's largest write buffer (1 GiB) and its keys."""

_LENGTH = struct.Struct("<I")
pack_length = _LENGTH.pack


def frame(body: bytes) -> bytes:
    """Return the body with its length in front."""
    return _LENGTH.pack(len(body)) + body


def frames(bodies: Iterable[bytes]) -> bytes:
    """Return several frames as one string of bytes."""
    return b"".join([frame(body) for body in bodies])


class FrameDecoder:
    """Cuts a stream of bytes into message bodies."""

    __slots__ = ("_buffer", "_limit", "_need")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._need = 4  # bytes that the buffer must hold before another frame can be complete

    @property
    def pending(self) -> int:
        """Bytes kept of an incomplete frame."""
        return len(self._buffer)

    @property
    def expected(self) -> int:
        """Length of the frame that is arriving, with its header; 4 if not known yet."""
        return self._need

    def rest(self) -> bytes:
        """Take the bytes of an incomplete frame out."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._need = 4
        return rest

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes, return the bodies that are complete now."""
        buffer = self._buffer
        if not buffer:
            # the common case: data holds exactly one frame or some whole frames; nothing is kept
            source: bytes | bytearray = data
        else:
            buffer += data
            if len(buffer) < self._need:
                return []
            source = buffer
        bodies: list[bytes] = []
        at, end = 0, len(source)
        need = 4
        unpack = _LENGTH.unpack_from
        while end - at >= 4:
            length = unpack(source, at)[0]
            if length > self._limit:
                raise ProtocolError(f"message of {length} bytes; the limit is {self._limit}")
            need = length + 4
            if end - at < need:
                break
            if source is data:
                bodies.append(data[at + 4 : at + need])
            else:
                with memoryview(source) as view:  # one copy, not two: a frame may be large
                    bodies.append(bytes(view[at + 4 : at + need]))
            at += need
            need = 4
        self._need = need
        if source is buffer:
            if at:
                del buffer[:at]
        elif at < end:
            buffer += memoryview(data)[at:]
        return bodies
