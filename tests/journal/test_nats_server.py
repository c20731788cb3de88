"""Servers and streams that would lose records are refused, with one line that names the setting."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType

from australis.errors import AustralisError
from australis.journal.nats import NatsJournal
from australis.journal.nats_server import (
    NatsSettings,
    Server,
    UnsafeServerError,
    check_server,
    check_servers,
    check_stream,
    connect,
    stream_config,
)
from tests.fixtures.nats import NatsServers, scratch_name
from tests.journal.owner import CLUSTER

SETTINGS = NatsSettings(("nats://127.0.0.1:1",), "system:x", "J", 3)
GOOD: dict[str, Any] = {
    "server_name": "n1",
    "version": "2.15.1",
    "max_payload": 8 << 20,
    "jetstream": {"config": {"sync_always": True}},
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": "2.14.9"}, "version 2.14.9 is older than 2.15.1"),
        ({"version": "2.9"}, "version"),
        ({"version": ""}, "version unknown"),
        ({"jetstream": {"config": {"sync_interval": 1}}}, "sync_interval"),
        ({"jetstream": {"config": {"sync_always": False}}}, "sync_interval"),
        ({"max_payload": 1 << 20}, "max_payload"),
    ],
)
def test_a_servers_settings(change: dict[str, Any], named: str) -> None:
    check_server("n1", GOOD)
    check_server("n1", {**GOOD, "version": "2.16.0-dev"})
    check_server("leaf", {"version": "2.15.1", "jetstream": {}})
    with pytest.raises(UnsafeServerError, match=f"NATS server n1: {named}"):
        check_server("n1", {**GOOD, **change})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("storage", StorageType.MEMORY),
        ("discard", DiscardPolicy.OLD),
        ("retention", RetentionPolicy.WORK_QUEUE),
        ("max_age", 3600.0),
        ("max_msgs", 1000),
        ("max_msgs_per_subject", 1),
        ("max_bytes", -1),
        ("max_msg_size", 1 << 20),
        ("deny_delete", False),
        ("deny_purge", True),
        ("allow_direct", False),
        ("allow_rollup_hdrs", True),
        ("allow_msg_ttl", True),
        ("no_ack", True),
        ("sealed", True),
        ("persist_mode", "async"),
        ("subjects", ["other"]),
        ("num_replicas", 1),
    ],
)
def test_an_altered_stream(name: str, value: object) -> None:
    check_stream(stream_config(SETTINGS, CLUSTER), SETTINGS)
    config = stream_config(SETTINGS, CLUSTER)
    setattr(config, name, value)
    with pytest.raises(UnsafeServerError, match=f"stream J: {name} is "):
        check_stream(config, SETTINGS)


@pytest.mark.parametrize("count", [1, 3])
def test_our_own_servers_are_fine(request: pytest.FixtureRequest, count: int) -> None:
    servers: NatsServers = request.getfixturevalue("one_server" if count == 1 else "three_servers")
    asyncio.run(check_servers(servers.settings(scratch_name())))


@pytest.mark.parametrize("replicas", [0, 2, 4])
def test_too_few_replicas(replicas: int) -> None:
    with pytest.raises(UnsafeServerError, match="replicas"):
        asyncio.run(check_servers(dataclasses.replace(SETTINGS, replicas=replicas)))


def test_who_may_not_ask_is_refused(one_server: NatsServers) -> None:
    """A server whose settings cannot be seen is not trusted."""
    settings = one_server.settings(scratch_name())
    user = f"australis:{one_server.servers[0].password}"
    with pytest.raises(UnsafeServerError, match="system account"):
        asyncio.run(check_servers(dataclasses.replace(settings, system=user)))
    with pytest.raises(AustralisError, match="cannot ask the NATS servers for their settings as user 'system'"):
        asyncio.run(check_servers(dataclasses.replace(settings, system="system:wrong")))


def test_a_real_server_that_does_not_sync(tmp_path: Path) -> None:
    """The journal is not opened, and no stream is made."""
    servers = NatsServers(tmp_path, 1)
    server = servers.servers[0]
    good = server.settings()
    assert "sync_interval: always" in good

    class Careless(Server):
        def settings(self) -> str:
            return good.replace("  sync_interval: always\n", "")

    fields = {field.name: getattr(server, field.name) for field in dataclasses.fields(server)}
    servers.servers[0] = Careless(**fields)
    try:
        servers.start()
        settings = servers.settings("J")
        with pytest.raises(UnsafeServerError, match="NATS server n1: sync_interval is not always"):
            NatsJournal(settings, CLUSTER, lambda _: None, lambda _: None)

        async def streams() -> int:
            client = await connect(settings.servers)
            count = (await client.jetstream().account_info()).streams
            await client.close()
            return count

        assert asyncio.run(streams()) == 0
    finally:
        servers.close()


def test_a_stream_that_was_altered_behind_our_back(one_server: NatsServers) -> None:
    settings = one_server.settings(scratch_name())
    journal = NatsJournal(settings, CLUSTER, lambda _: None, lambda _: None)
    journal.close()

    async def alter() -> None:
        client = await connect(settings.servers)
        config = stream_config(settings, CLUSTER)
        config.discard = DiscardPolicy.OLD
        await client.jetstream(timeout=5).update_stream(config)
        await client.close()

    asyncio.run(alter())
    with pytest.raises(UnsafeServerError, match="discard is old, must be new"):
        NatsJournal(settings, CLUSTER, lambda _: None, lambda _: None)


def test_nobody_there() -> None:
    with pytest.raises(AustralisError, match="cannot reach the NATS servers"):
        NatsJournal(SETTINGS, CLUSTER, lambda _: None, lambda _: None, patience=0.1)
