"""The first packets of a PostgreSQL connection: bytes in, a request out; no sockets.

Mirrors ProcessStartupPacket() in PostgreSQL's src/backend/tcop/backend_startup.c: what that accepts is accepted here,
what it closes silently is `Garbage` here, what it answers with FATAL is `Refused`.  One thing more is refused: a client
that names the token parameter.  A startup packet is rebuilt from its parsed parameters, never copied, so that nothing
in it can hide or displace the token.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_PACKET = 10_000
"""MAX_STARTUP_PACKET_LENGTH: body after the length word.  The token's share comes on top of a client's own packet, so a
client may use TOKEN_ROOM less."""

TOKEN_PARAMETER = b"australis.session_token"
TOKEN_LENGTH = 32
TOKEN_ROOM = len(TOKEN_PARAMETER) + TOKEN_LENGTH + 2

TLS_HANDSHAKE = 0x16
"""First byte of a TLS record; no startup packet begins with it (it would be 350 MB long)."""

_CANCEL = (1234 << 16) | 5678
_SSL = (1234 << 16) | 5679
_GSS = (1234 << 16) | 5680
_MAX_CANCEL_KEY = 256


class Garbage(Exception):
    """Not a PostgreSQL client; the connection is closed without an answer."""


class Refused(Exception):
    """The client gets FATAL with this SQLSTATE and message, then the connection is closed."""

    def __init__(self, sqlstate: str, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail

    def packet(self) -> bytes:
        return error_response(self.sqlstate, self.message, self.detail)


class UnsupportedProtocol(Refused):
    """A protocol other than 3; clients of protocol 2 understand an older form of the message."""

    def __init__(self, protocol: int) -> None:
        major, minor = protocol >> 16, protocol & 0xFFFF
        super().__init__("0A000", f"unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")
        self._major = major

    def packet(self) -> bytes:
        if self._major < 3:
            return b"EFATAL:  " + self.message.encode() + b"\n\0"
        return super().packet()


@dataclass(frozen=True, slots=True)
class EncryptionRequest:
    """SSLRequest or GSSENCRequest."""

    tls: bool


@dataclass(frozen=True, slots=True)
class CancelRequest:
    packet: bytes
    """The whole packet, length word included, to be forwarded as it is."""


@dataclass(frozen=True, slots=True)
class Startup:
    protocol: int
    parameters: tuple[tuple[bytes, bytes], ...]

    def packet(self, token: str = "") -> bytes:
        """The packet for the query processor; the token, if there is one, comes first."""
        pairs = ((TOKEN_PARAMETER, token.encode("ascii")), *self.parameters) if token else self.parameters
        body = self.protocol.to_bytes(4, "big") + b"".join(k + b"\0" + v + b"\0" for k, v in pairs) + b"\0"
        return (len(body) + 4).to_bytes(4, "big") + body


Request = EncryptionRequest | CancelRequest | Startup


def body_length(header: bytes) -> int:
    """Length of the body that follows a 4-byte length word; Garbage if no client would send it."""
    length = int.from_bytes(header, "big") - 4
    if not 4 <= length <= MAX_PACKET - TOKEN_ROOM:
        raise Garbage("invalid length of startup packet")
    return length


def parse(body: bytes, *, tls_asked: bool, gss_asked: bool) -> Request:
    """Parse the body of a first packet (without its length word).

    tls_asked, gss_asked: whether that request was already answered; a second one is no request but an unknown protocol,
    as in PostgreSQL.
    """
    code = int.from_bytes(body[:4], "big")
    if code == _CANCEL:
        if not 8 < len(body) <= 8 + _MAX_CANCEL_KEY:
            raise Garbage("invalid length of cancel request packet")
        return CancelRequest((len(body) + 4).to_bytes(4, "big") + body)
    if code == _SSL and not tls_asked:
        return EncryptionRequest(tls=True)
    if code == _GSS and not gss_asked:
        return EncryptionRequest(tls=False)
    if code >> 16 != 3:
        raise UnsupportedProtocol(code)
    return Startup(code, _parameters(body))


def _parameters(body: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Name and value pairs after the protocol number, each ended by a zero byte, and one zero byte more at the end."""
    fields = body[4:].split(b"\0")
    # "n\0v\0\0" splits into n, v, "", "": an even number, ended by the terminator and the nothing behind it
    if len(fields) < 2 or len(fields) % 2 != 0 or fields[-1] or fields[-2] or not all(fields[:-2:2]):
        raise Refused("08P01", "invalid startup packet layout: expected terminator as last byte")
    pairs = tuple(zip(fields[:-2:2], fields[1:-2:2], strict=True))
    for name, _ in pairs:
        if name.lower() == TOKEN_PARAMETER:
            raise Refused("42501", f'parameter "{TOKEN_PARAMETER.decode()}" cannot be set')
    return pairs


def error_response(sqlstate: str, message: str, detail: str | None = None) -> bytes:
    """An ErrorResponse of severity FATAL."""
    fields = [b"SFATAL", b"VFATAL", b"C" + sqlstate.encode(), b"M" + message.encode()]
    if detail is not None:
        fields.append(b"D" + detail.encode())
    body = b"\0".join(fields) + b"\0\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body
