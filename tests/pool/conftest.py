"""Clusters whose query processors come and go."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import AustralisCluster, CannotStart, Server, temporary_directory

SECONDS = 60.0
Connection = psycopg.Connection[tuple[object, ...]]


def eventually(condition: Callable[[], object], what: str) -> None:
    """Poll: it happens in another process, which cannot notify us."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.02)


@dataclass
class PoolCluster:
    """A running cluster with a pool."""

    cluster: AustralisCluster
    router: Server
    opened: list[Connection] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.cluster.data / "run" / "state.json").read_text())
        return content

    def states(self) -> list[str]:
        return [one["state"] for one in self.state()["processors"]]

    def wait_for(self, *states: str) -> None:
        """Until so many processors are in these states, in whatever order."""
        eventually(lambda: sorted(self.states()) == sorted(states), f"{states}, but {self.states()}")

    def wait_for_none(self) -> None:
        self.wait_for(*["stopped"] * len(self.states()))

    def connect(self) -> Connection:
        return self._opened(self.router)

    def direct(self, number: int) -> Connection:
        port = self.state()["direct_ports"][number]
        server = Server("australis", self.router.dsn.replace(f":{self.router.port}/", f":{port}/"))
        return self._opened(server)

    def _opened(self, server: Server) -> Connection:
        self.opened.append(server.connect())
        return self.opened[-1]

    def stop(self) -> None:
        for connection in self.opened:
            connection.close()
        self.cluster.stop()

    def directory(self, number: int) -> Path:
        base = self.cluster.data / "query_processor"
        return (base if number == 0 else base / str(number + 1)) / "data"

    def postmaster(self, number: int) -> int | None:
        """Its process, as soon as there is one."""
        for name in os.listdir("/proc"):
            try:
                if (
                    name.isdigit()
                    and os.readlink(f"/proc/{name}/cwd") == str(self.directory(number))
                    and str(self.directory(number)).encode() in Path(f"/proc/{name}/cmdline").read_bytes()
                    and b"bound_exec" not in Path(f"/proc/{name}/cmdline").read_bytes()
                ):
                    return int(name)
            except OSError:  # gone meanwhile
                continue
        return None

    def logged(self, *events: str) -> list[dict[str, Any]]:
        """Lines of the supervisor's log with one of these events, in order."""
        lines = (self.cluster.data / "logs" / "supervisor.log").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line.get("event") in events]


def start(directory: Path, pool: dict[str, object], **settings: object) -> PoolCluster:
    cluster = AustralisCluster(directory, settings={**settings, "pool": pool})
    return PoolCluster(cluster, cluster.start())


@pytest.fixture
def start_pool() -> Iterator[Callable[..., PoolCluster]]:
    """Starts clusters, and stops them in the end."""
    running: list[PoolCluster] = []
    with temporary_directory("pool") as directory:

        def begin(pool: dict[str, object], **settings: object) -> PoolCluster:
            try:
                running.append(start(directory / str(len(running)), pool, **settings))
            except (CannotStart, ProgramsMissing) as error:
                pytest.skip(f"Australis can't start: {error}")
            return running[-1]

        try:
            yield begin
        finally:
            for one in running:
                one.stop()


def place(connection: Connection) -> int:
    """The number of the query processor that a session is on."""
    row = connection.execute("SHOW australis.processor").fetchone()
    assert row is not None
    return int(str(row[0]))
