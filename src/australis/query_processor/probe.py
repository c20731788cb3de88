"""Asks a query processor whether it serves: one login and one query over its Unix socket.

A tiny client of PostgreSQL's protocol 3.0, for a socket where the server trusts us; drivers are for users. What must
hold: an answer "ready" means that a session was admitted and a statement ran, hence that catalogs are caught up.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

from australis.errors import AustralisError

MAX_MESSAGE = 1 << 20


class NotReadyError(AustralisError):
    """The server refused or could not be reached; carries its message and SQLSTATE where there is one."""

    def __init__(self, message: str, sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate  # "" when no server answered


async def query(socket: Path, sql: str, *, user: str = "admin", database: str = "postgres") -> list[list[str | None]]:
    """Run one statement, return its rows as text. Raises NotReadyError; cancel it to bound its time."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError as error:
        raise NotReadyError(f"{socket}: {error.strerror or error}") from error
    try:
        parameters = b"".join(
            text.encode() + b"\0"
            for text in ("user", user, "database", database, "application_name", "australis supervisor")
        )
        writer.write(struct.pack("!II", len(parameters) + 9, 3 << 16) + parameters + b"\0")
        await _until_ready(reader)
        text = sql.encode() + b"\0"
        writer.write(b"Q" + struct.pack("!I", len(text) + 4) + text)
        rows = await _until_ready(reader)
        writer.write(b"X\0\0\0\4")
        await writer.drain()
        return rows
    except (OSError, EOFError, struct.error) as error:
        raise NotReadyError(f"{socket}: connection lost ({error or type(error).__name__})") from error
    finally:
        writer.close()


async def _until_ready(reader: asyncio.StreamReader) -> list[list[str | None]]:
    rows: list[list[str | None]] = []
    while True:
        kind, length = struct.unpack("!cI", await reader.readexactly(5))
        if length < 4 or length > MAX_MESSAGE:
            raise NotReadyError(f"message of {length} bytes: not a PostgreSQL server?")
        body = await reader.readexactly(length - 4)
        if kind == b"E":
            fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
            raise NotReadyError(fields.get(b"M", "unknown error"), fields.get(b"C", ""))
        if kind == b"R" and struct.unpack("!I", body[:4])[0] != 0:
            raise NotReadyError("the server asks for a password on its private socket")
        if kind == b"D":
            rows.append(_row(body))
        if kind == b"Z":
            return rows


def _row(body: bytes) -> list[str | None]:
    (count,) = struct.unpack_from("!H", body)
    position = 2
    values: list[str | None] = []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, position)
        position += 4
        values.append(None if length < 0 else body[position : position + length].decode(errors="replace"))
        position += max(length, 0)
    return values
