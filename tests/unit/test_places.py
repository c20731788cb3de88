"""Places of a gateway's pool over its socket: each is given back once, whatever becomes of who had it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from australis.errors import ProtocolError
from australis.protocol.places import decode_answer
from australis.query_processor.host import Place
from australis.query_processor.places import PlaceServer
from australis.router.gateway_places import GatewayPlaces
from australis.router.startup import Refused


class Host:
    """What the pool's host does, by hand."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[Place]] = asyncio.Queue()
        self.back: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def acquire(self, avoid: Sequence[Place] = ()) -> Place:
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(future)
        try:
            return await future
        except asyncio.CancelledError:
            self.back.put_nowait(("gave up", 0))
            raise

    def release(self, place: Place) -> None:
        self.back.put_nowait(("released", place.number))

    def unreachable(self, place: Place) -> None:
        self.back.put_nowait(("unreachable", place.number))


def run(body: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await body()

    asyncio.run(bounded())


async def serving(host: Host, path: Path) -> PlaceServer:
    server = PlaceServer(host, path)  # type: ignore[arg-type]
    await server.start()
    return server


def test_given_and_given_back(tmp_path: Path) -> None:
    async def body() -> None:
        host = Host()
        server = await serving(host, tmp_path / "s")
        places = GatewayPlaces([tmp_path / "s"])
        for number, end in ((1, places.release), (2, places.unreachable)):
            asking = asyncio.ensure_future(places.acquire())
            (await host.asked.get()).set_result(Place(tmp_path / "postgresql", number, 1))
            place = await asking
            assert list(places.sockets()) == [place.target] == [tmp_path / "postgresql"]
            end(place)
            assert list(places.sockets()) == []
        assert [await host.back.get(), await host.back.get()] == [("released", 1), ("unreachable", 2)]
        # a router that dies gives up its turn, and back what it has
        waiting = asyncio.ensure_future(places.acquire())
        await host.asked.get()
        waiting.cancel()
        assert await host.back.get() == ("gave up", 0)
        asking = asyncio.ensure_future(places.acquire())
        (await host.asked.get()).set_result(Place(tmp_path / "postgresql", 3, 1))
        (await asking).writer.transport.abort()
        assert await host.back.get() == ("released", 3)
        await server.close()
        assert host.back.empty() and not (tmp_path / "s").exists()

    run(body)


def test_one_that_refuses_or_is_gone_is_passed_over(tmp_path: Path) -> None:
    async def body() -> None:
        async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"x" * 10_000)
            writer.close()

        first, second = Host(), Host()
        servers = [await serving(first, tmp_path / "1"), await serving(second, tmp_path / "2")]
        broken = await asyncio.start_unix_server(garbage, tmp_path / "0")
        places = GatewayPlaces([tmp_path / "gone", tmp_path / "0", tmp_path / "1", tmp_path / "2"])
        asking = asyncio.ensure_future(places.acquire())
        (await first.asked.get()).set_exception(Refused("57P03", "cannot start", "no memory"))
        (await second.asked.get()).set_result(Place(tmp_path / "postgresql", 4, 1))
        place = await asking
        assert place.gateway == tmp_path / "2"
        asking = asyncio.ensure_future(places.acquire())
        for host in (first, second):
            (await host.asked.get()).set_exception(Refused("53300", "too many", (host is second and "last") or None))
        with pytest.raises(Refused) as refused:
            await asking
        assert (refused.value.sqlstate, refused.value.message, refused.value.detail) == ("53300", "too many", "last")
        for server in servers:
            await server.close()
        broken.close()
        with pytest.raises(Refused, match="the database system is not available"):
            await places.acquire()
        places.release(place)

    run(body)


@pytest.mark.parametrize("line", [b"", b"{}", b'{"target": ""}', b'{"target": "x", "sqlstate": "57P03"}', b"[1"])
def test_lines_that_mean_nothing(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(line)
