"""Places for sessions over a Unix socket: routers of this host ask the pool of query processors that a gateway has.

One connection is one place (docs/formats.md §10). What must hold: a place is given back once, whatever becomes of the
router that had it: its end closes its connections. A router that stops waiting gives up its turn. If this process dies,
so do its query processors and their sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec

from australis.protocol.places import UNREACHABLE, Given, encode_answer
from australis.query_processor.host import Place, ProcessorHost
from australis.router.startup import Refused


class PlaceServer:
    """Call start() once, and close()."""

    def __init__(self, host: ProcessorHost, path: Path) -> None:
        """Listens at `path`."""
        self._host, self._path = host, path
        self._server: asyncio.Server
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises OSError."""
        self._server = await asyncio.start_unix_server(self._accept, self._path, backlog=1024)

    async def close(self) -> None:
        """Give places no more; sessions go on."""
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # it is gone, or we are closing
        finally:
            self._serving.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.ensure_future(reader.read(1))
        waiting = asyncio.ensure_future(self._host.acquire())
        place: Place | None = None
        try:
            await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                return
            answer: msgspec.Struct
            try:
                place = waiting.result()
                answer = Given(str(place.target))
            except Refused as refused:
                answer = Given("", refused.sqlstate, refused.message, refused.detail or "")
            writer.write(encode_answer(answer))
            await writer.drain()
            if place is None:
                return
            if await gone == UNREACHABLE:
                lost, place = place, None
                self._host.unreachable(lost)
        finally:
            gone.cancel()
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError, Refused):
                await asyncio.gather(gone, waiting)
            if place is not None:
                self._host.release(place)
