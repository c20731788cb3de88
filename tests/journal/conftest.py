"""Servers for the whole run, a fresh journal for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.nats import NatsServers, nats_servers
from tests.journal.engines import Engine, FilesEngine, NatsEngine


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    """One NATS server, which nobody may harm."""
    with nats_servers(tmp_path_factory.mktemp("nats1"), 1) as servers:
        yield servers


@pytest.fixture(scope="session")
def three_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    """Three NATS servers; who kills or stops one starts it again."""
    with nats_servers(tmp_path_factory.mktemp("nats3"), 3) as servers:
        yield servers


@pytest.fixture(params=["files", "nats1", "nats3"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """Every engine."""
    if request.param == "files":
        return FilesEngine(tmp_path)
    return NatsEngine(tmp_path, request.getfixturevalue("one_server" if request.param == "nats1" else "three_servers"))
