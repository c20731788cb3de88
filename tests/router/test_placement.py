"""Where sessions are placed, and what becomes of those that wait for a place."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from australis.router import Router, RouterConfig
from australis.router.placement import FixedUpstreams
from australis.router.startup import Refused

STARTUP = struct.pack("!II", 20, 3 << 16) + b"user\0admin\0\0"


def test_fixed_ones_are_filled_evenly_and_passed_over() -> None:
    async def run() -> None:
        placement = FixedUpstreams([Path("a"), Path("b")])
        one, other = await placement.acquire(), await placement.acquire()
        assert [one.target, other.target] == [Path("a"), Path("b")]
        placement.release(other)
        third = await placement.acquire()
        assert third is other
        placement.unreachable(third)
        assert await placement.acquire([third]) is one
        with pytest.raises(Refused) as error:
            await placement.acquire([one, other])
        assert error.value.sqlstate == "57P03"

    asyncio.run(run())


class Nowhere:
    """A placement that has no place yet; tells when somebody waits and when he has given up."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.gave_up = asyncio.Event()
        self.refuse: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def acquire(self, avoid: Sequence[Any] = ()) -> Any:
        self.waiting.set()
        try:
            return await asyncio.shield(self.refuse)
        except asyncio.CancelledError:
            self.gave_up.set()
            raise

    def release(self, place: Any) -> None:
        raise AssertionError("there was none")

    unreachable = release

    def sockets(self) -> Sequence[Path]:
        return []


@pytest.mark.parametrize("impatient", [False, True])
def test_a_client_that_goes_does_not_wait_on(tmp_path: Path, impatient: bool) -> None:
    async def run() -> None:
        placement = Nowhere()
        config = RouterConfig(handover_socket=tmp_path / "h", hosts=("127.0.0.1",), port=0)
        router = Router(config, placement)
        await router.start()
        try:
            async with asyncio.timeout(20):
                client = socket.create_connection(("127.0.0.1", router.port))
                client.sendall(STARTUP)
                await placement.waiting.wait()
                assert router.status().sessions == 1
                if impatient:  # it says something before it was asked: that is no end
                    client.sendall(b"p")
                    placement.refuse.set_exception(Refused("57P03", "no"))
                    client.setblocking(False)
                    answer = await asyncio.get_running_loop().sock_recv(client, 100)
                    assert answer[:1] == b"E" and not placement.gave_up.is_set()
                    client.close()
                else:
                    client.close()
                    await placement.gave_up.wait()
                    placement.refuse.cancel()
        finally:
            await router.close()
        assert router.status().sessions == 0

    asyncio.run(run())
