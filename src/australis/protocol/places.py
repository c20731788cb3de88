"""What is said about a place for a session, between a router and a gateway's pool (docs/formats.md §10)."""

from __future__ import annotations

import msgspec

from australis.errors import ProtocolError

UNREACHABLE = b"u"
"""From the router: nobody listens there; the place is given back with that."""

LINE_BYTES = 4096


class Given(msgspec.Struct, frozen=True):
    """The answer to a connection: where the query processor listens, or ("") why there is none."""

    target: str
    sqlstate: str = ""
    message: str = ""
    detail: str = ""


def encode_answer(answer: msgspec.Struct) -> bytes:
    """One line."""
    return msgspec.json.encode(answer) + b"\n"


def decode_answer(line: bytes) -> Given:
    """Raises ProtocolError."""
    try:
        given = msgspec.json.decode(line, type=Given)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"not a place: {error}") from error
    if bool(given.target) == bool(given.sqlstate):
        raise ProtocolError("neither a place nor a refusal")
    return given
