"""Leases and records: both implementations, one suite. A lease is a hint, the journal's claim is the fence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from australis.control_plane.coordination import Coordination, LocalCoordination, NatsCoordination
from australis.journal.nats_server import connect
from tests.fixtures.nats import NatsServers, scratch_name

Body = Callable[[Coordination, Coordination], Awaitable[None]]


@pytest.fixture(params=["local", "nats1", "nats3"])
def run(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Run a body with two users of one store."""

    servers: NatsServers | None = None
    if request.param != "local":
        servers = request.getfixturevalue("one_server" if request.param == "nats1" else "three_servers")

    async def local(body: Body) -> None:
        store = LocalCoordination()
        await body(store, store)

    async def remote(body: Body) -> None:
        assert servers is not None
        settings = servers.settings("unused")
        clients = [await connect(settings.servers) for _ in range(2)]
        name = scratch_name()
        try:
            first, second = [await NatsCoordination.open(client, settings.replicas, name) for client in clients]
            await body(first, second)
        finally:
            for client in clients:
                await client.close()

    return lambda body: asyncio.run(local(body) if request.param == "local" else remote(body))


def test_one_creates_and_who_knows_the_revision_changes(run: Callable[[Body], None]) -> None:
    async def body(a: Coordination, b: Coordination) -> None:
        assert await b.get("lease") is None
        first = await a.create("lease", b"a", 60)
        assert first is not None
        assert await b.create("lease", b"b", 60) is None
        second = await a.update("lease", b"a", first, 60)
        assert second is not None and second > first
        assert await b.update("lease", b"b", first, 60) is None
        found = await b.get("lease")
        assert found is not None and (found.value, found.revision) == (b"a", second)
        assert not await a.release("lease", first)
        assert await a.release("lease", second)
        assert await b.get("lease") is None
        assert await b.create("lease", b"b", 60) is not None

    run(body)


def test_a_lease_runs_out(run: Callable[[Body], None]) -> None:
    async def body(a: Coordination, b: Coordination) -> None:
        revision = await a.create("lease", b"a", 1)
        assert revision is not None
        deadline = time.monotonic() + 30
        while await b.get("lease") is not None:
            assert time.monotonic() < deadline, "it never ran out"
            await asyncio.sleep(0.05)
        assert await a.update("lease", b"a", revision, 60) is None
        assert await b.create("lease", b"b", 60) is not None

    run(body)
