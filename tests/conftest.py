"""Fixtures shared by all harnesses.

`stock` and `australis` are servers for the whole session, started on first use. A server that can't start skips the
tests that need it, with the reason printed; AUSTRALIS_TEST_REQUIRE=1 (CI) makes that a failure instead.
`any_server` runs a test on both. Environment: AUSTRALIS_STORAGE_DRIVER (attached | socket) chooses the storage driver,
AUSTRALIS_TEST_DSN names a running cluster to use instead of starting one, AUSTRALIS_TEST_KEEP=1 keeps directories,
AUSTRALIS_TEST_TOPOLOGY="adjudicators=2,shards=2" makes it a cluster of many processes (tests/fixtures/plane.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import CannotStart, Server, australis_server, stock_server


def _serve(manager: AbstractContextManager[Server], what: str) -> Iterator[Server]:
    try:
        server = manager.__enter__()
    except (CannotStart, ProgramsMissing) as error:
        if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
            pytest.fail(f"{what} can't start: {error}")
        pytest.skip(f"{what} can't start: {error}")
    try:
        yield server
    finally:
        manager.__exit__(None, None, None)


@pytest.fixture(scope="session")
def stock() -> Iterator[Server]:
    yield from _serve(stock_server(), "stock PostgreSQL")


@pytest.fixture(scope="session")
def australis() -> Iterator[Server]:
    yield from _serve(australis_server(), "Australis")


@pytest.fixture(params=["stock", "australis"])
def any_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def schema(any_server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """A schema of this test's own on `any_server`; dropped afterwards."""
    name = "t_" + re.sub(r"\W+", "_", request.node.name)[:40].lower()
    drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name))
    with any_server.connect() as connection:
        connection.execute(drop)
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    yield name
    try:
        with any_server.connect() as connection:
            connection.execute(drop)
    except psycopg.OperationalError as error:  # the server died in the test, which has reported it
        print(f"schema {name} not dropped: {error}")
