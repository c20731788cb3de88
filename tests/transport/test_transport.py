"""The transport between processes: greetings, order, refusal of strangers, reconnecting."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from australis import transport
from australis.protocol.frames import FrameDecoder, frame
from australis.protocol.messages import Error, Hello, Status, StatusReply, any_decoder, encode
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


async def answer_to(path: str, data: bytes) -> bytes:
    """What a server says to these bytes before it closes the connection."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


GREETING = frame(encode(who("gateway").greeting()))


@pytest.mark.parametrize(
    ("data", "sqlstate", "words"),
    [
        (b"\xff\xff\xff\xff", "08P01", "the limit is 4096"),  # an oversized greeting
        (frame(b""), "08P01", "not a message"),
        (frame(b"\xc1"), "08P01", "not a message"),
        (frame(encode(Status())), "08P01", "not a message"),  # something else first
        (frame(encode(Hello(2, CLUSTER, "qp", 0))), "08P01", "protocol 2, this service speaks 1"),
        (frame(encode(Hello(1, b"", "qp", 0))), "08004", "another cluster"),
        (frame(encode([1, 1, CLUSTER, 7, 0])), "08P01", "Expected `str`"),
        (GREETING + b"\xff\xff\xff\xff", "08P01", "the limit is"),
        (GREETING + frame(b"garbage"), "08P01", "not a message"),
        (GREETING + frame(encode([250])), "08P01", "not a message"),
    ],
)
def test_bad_bytes_are_refused_in_words(tmp_path: Path, data: bytes, sqlstate: str, words: str) -> None:
    async def body() -> None:
        there = Recorder()
        server, address = await serve(tmp_path, who("adjudicator"), there)
        said = FrameDecoder().feed(await answer_to(address.path, data))
        error = any_decoder.decode(said[-1])
        assert isinstance(error, Error) and error.sqlstate == sqlstate and words in error.message, error
        assert "\n" not in error.message
        # and the server goes on serving others
        here = Recorder()
        link = Link([address], who("gateway"), here)
        link.start()
        assert (await here.events.get())[0] == "connected"
        await link.close()
        await server.close()

    run(body)


def test_random_bytes_never_get_through(tmp_path: Path) -> None:
    async def body() -> None:
        there = Recorder()
        server, address = await serve(tmp_path, who("adjudicator"), there)
        rng = random.Random(5)
        for n in range(300):
            noise = rng.randbytes(rng.randrange(1, 200))
            if n % 3 == 0:
                noise = frame(noise)
            reader, writer = await asyncio.open_unix_connection(address.path)
            writer.write(noise)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        assert there.events.empty()
        await server.close()
        assert not server.connections

    run(body)


def test_who_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "GREETING_SECONDS", 0.05)

    async def body() -> None:
        server, address = await serve(tmp_path, who("adjudicator"), Recorder())
        error = any_decoder.decode(FrameDecoder().feed(await answer_to(address.path, b"\x10"))[0])
        assert isinstance(error, Error) and "no greeting" in error.message
        await server.close()

    run(body)


def test_a_peer_that_does_not_read_is_noticed(tmp_path: Path) -> None:
    async def body() -> None:
        there = Recorder()
        server, address = await serve(tmp_path, who("adjudicator"), there)
        reader, writer = await asyncio.open_unix_connection(address.path)
        writer.write(GREETING)
        assert (await there.events.get())[0] == "connected"
        connection = there.connections[0]
        while not connection.paused:
            connection.send(StatusReply({"text": "x" * 1_000_000}))
        assert await there.events.get() == ("writable", False)
        while connection.paused:
            assert await reader.read(1 << 20)
        assert await there.events.get() == ("writable", True)
        writer.close()
        await server.close()

    run(body)


def test_a_silent_peer_is_left_for_the_next(tmp_path: Path) -> None:
    """It greets and says nothing more; the other one keeps talking."""

    async def body() -> None:
        silent, talking, here = Recorder(), Recorder(), Recorder()
        first = await listen(Address(path=str(tmp_path / "a")), who("crossbar"), lambda: silent)
        second = await listen(Address(path=str(tmp_path / "b")), who("crossbar", generation=9), lambda: talking)
        link = Link([Address(path=str(tmp_path / name)) for name in "ab"], who("gateway"), here, silence=0.2)

        async def talk() -> None:
            while True:
                for connection in talking.connections:
                    connection.send(Status())
                await asyncio.sleep(0.02)  # that is what it does: say something now and then

        talker = asyncio.create_task(talk())
        link.start()
        assert (await here.events.get())[1].generation == 0
        assert (await here.events.get())[0] == "lost"
        assert (await here.events.get())[1].generation == 9
        for _ in range(30):  # for longer than the limit
            assert (await here.events.get())[0] == "received"
        talker.cancel()
        await link.close()
        await first.close()
        await second.close()

    run(body)
