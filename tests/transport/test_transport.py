"""The transport between processes: greetings, order, refusal of strangers, reconnecting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from australis.protocol.frames import frame
from australis.protocol.messages import Hello, Status, StatusReply, any_decoder, encode
from australis.transport import Address, AddressError, Connection, Identity, Link, Server, listen

CLUSTER = b"c" * 16


class Recorder:
    """Notes what happens; answers Status."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.connections: list[Connection] = []

    def connected(self, connection: Connection) -> None:
        self.connections.append(connection)
        assert connection.peer is not None
        self.events.put_nowait(("connected", connection.peer))

    def received(self, connection: Connection, body: bytes) -> None:
        message = any_decoder.decode(body)
        self.events.put_nowait(("received", message))
        if isinstance(message, Status):
            connection.send(StatusReply({"ok": 1}))

    def lost(self, connection: Connection) -> None:
        self.events.put_nowait(("lost", connection.refusal))

    def writable(self, connection: Connection, yes: bool) -> None:
        self.events.put_nowait(("writable", yes))


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 30))


def who(role: str, cluster: bytes = CLUSTER, generation: int = 0) -> Identity:
    return Identity(cluster, role, f"{role}-1", lambda: generation)


async def serve(path: Path, identity: Identity, recorder: Recorder) -> tuple[Server, Address]:
    address = Address(path=str(path / "s"))
    return await listen(address, identity, lambda: recorder), address


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "unix:"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(text)


@pytest.mark.parametrize("text", ["127.0.0.1:5", "[::1]:65535", "unix:/a/b"])
def test_addresses(text: str) -> None:
    assert str(Address.parse(text)) == text


def test_both_sides_know_each_other_and_messages_arrive(tmp_path: Path) -> None:
    async def body() -> None:
        there, here = Recorder(), Recorder()
        server, address = await serve(tmp_path, who("adjudicator", generation=7), there)
        link = Link([address], who("gateway"), here)
        assert not link.send(Status())  # there is no connection yet, and it is said
        link.start()
        what, greeting = await here.events.get()
        assert (what, greeting.role, greeting.generation) == ("connected", "adjudicator", 7)
        assert link.generation == 7
        assert link.send(Status())
        assert (await there.events.get())[1].name == "gateway-1"
        assert await there.events.get() == ("received", Status())
        assert await here.events.get() == ("received", StatusReply({"ok": 1}))
        await link.close()
        assert (await there.events.get())[0] == "lost"
        await server.close()

    run(body)


def test_a_stranger_is_told_and_left(tmp_path: Path) -> None:
    async def body() -> None:
        there, here = Recorder(), Recorder()
        server, address = await serve(tmp_path, who("adjudicator"), there)
        reader, writer = await asyncio.open_unix_connection(address.path)
        writer.write(frame(encode(Hello(1, b"x" * 16, "qp", 0))))
        answer = await reader.read()  # until it is closed
        assert any_decoder.decode(answer[4:]).sqlstate == "08004"  # type: ignore[union-attr]
        writer.close()
        reader, writer = await asyncio.open_unix_connection(address.path)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert any_decoder.decode((await reader.read())[4:]).sqlstate == "08P01"  # type: ignore[union-attr]
        writer.close()
        link = Link([address], who("gateway", b"x" * 16), here)
        link.start()
        while "another cluster" not in link.last_error:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # polling the progress of another task
        await link.close()
        await server.close()
        assert there.events.empty() and here.events.empty()

    run(body)


def test_a_link_comes_back_and_finds_who_serves(tmp_path: Path) -> None:
    async def body() -> None:
        idle, serving, here = Recorder(), Recorder(), Recorder()
        first = await listen(Address(path=str(tmp_path / "a")), who("adjudicator"), lambda: idle)
        second = await listen(Address(path=str(tmp_path / "b")), who("adjudicator", generation=3), lambda: serving)
        addresses = [Address(path=str(tmp_path / name)) for name in "ab"]
        link = Link(addresses, who("gateway"), here, wanted=lambda peer: peer.generation > 0)
        link.start()
        assert (await here.events.get())[1].generation == 3
        serving.connections[0].transport.abort()
        assert (await here.events.get())[0] == "lost"
        assert (await here.events.get())[0] == "connected"
        await link.close()
        await first.close()
        await second.close()

    run(body)
