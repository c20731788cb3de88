"""A connection of which somebody waits for answers, one request after the other: tools, the control plane, storage.

What must hold: an answer is that to the last request, or an exception; who gives up closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from australis.errors import AustralisError
from australis.protocol.messages import Error, any_decoder
from australis.transport import Address, Connection, Identity


class AskError(AustralisError):
    """A process did not answer as it should; one line that says how."""


class Asker:
    """A connection on which requests are answered in order. Use `open`."""

    def __init__(self) -> None:
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._messages: asyncio.Queue[Any] = asyncio.Queue(256)
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """Once it is there."""
        assert self._connection is not None, "open() makes it"
        return self._connection

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, address: Address, identity: Identity) -> AsyncIterator[Asker]:
        """A connection, closed at the end. Raises AskError or OSError."""
        loop = asyncio.get_running_loop()
        asker = cls()

        def make() -> Connection:
            asker._connection = Connection(identity, asker, greets_first=True, ended=asker._over)
            return asker._connection

        if address.path:
            await loop.create_unix_connection(make, address.path)
        else:
            await loop.create_connection(
                make,
                address.host,
                address.port,
                ssl=identity.client_tls,
                server_hostname=address.host if identity.client_tls is not None else None,
            )
        try:
            await asker._greeted
            yield asker
        finally:
            asker.connection.transport.abort()

    async def ask(self, *messages: Any) -> Any:
        """Send; return the next message that comes. Raises AskError."""
        for message in messages:
            self.connection.send(message)
        answer = await self._messages.get()
        if isinstance(answer, Error):
            raise AskError(answer.message)
        return answer

    def _over(self, _: Connection, reason: str) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(AskError(reason or "the connection was closed"))
        elif not self._messages.full():
            self._messages.put_nowait(Error("08006", reason or "the connection was closed"))

    def connected(self, connection: Connection) -> None:
        self._greeted.set_result(None)

    def received(self, connection: Connection, body: bytes) -> None:
        if self._messages.full():
            raise AskError("it says more than it was asked")
        self._messages.put_nowait(any_decoder.decode(body))

    def lost(self, connection: Connection) -> None:
        """`_over` has the reason."""

    def writable(self, connection: Connection, yes: bool) -> None:
        """Requests are few and small."""
