"""A cluster with three query processors, each reachable by itself."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from tests.fixtures.plane import PlaneCluster, plane, topology_of
from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import AustralisCluster, CannotStart, Server, temporary_directory

COUNT = 3
READY_SECONDS = 60.0
Connection = psycopg.Connection[tuple[object, ...]]

one_host = pytest.mark.skipif(
    "AUSTRALIS_TEST_TOPOLOGY" in os.environ, reason="looks at the services of a cluster on one host"
)


def service_name(number: int) -> str:
    """What `australis status` calls a query processor."""
    return "postgresql" if number == 0 else f"postgresql-{number + 1}"


@dataclass
class Processors:
    """A running cluster; `router` leads to any of its query processors."""

    cluster: AustralisCluster
    router: Server

    def ports(self) -> list[int]:
        """Their own ports; another after a restart."""
        ports: list[int] = json.loads((self.cluster.data / "run" / "state.json").read_text())["direct_ports"]
        return ports

    def server(self, number: int) -> Server:
        """One of them as a server of its own."""
        return Server("australis", self.router.dsn.replace(f":{self.router.port}/", f":{self.ports()[number]}/"))

    def connect(self, number: int) -> Connection:
        """A session of one of them."""
        return self.server(number).connect()

    def postmaster(self, number: int) -> int:
        """Process id of one of them."""
        return self.services()[service_name(number)]["pid"]

    def wait_restarted(self, number: int, pid: int) -> None:
        """Until another postmaster than `pid` serves in its place."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            service = self.services()[service_name(number)]
            if service["pid"] != pid and service["serving"]:
                return
            assert time.monotonic() < deadline, service
            time.sleep(0.1)  # another process works; there is nothing to wait on

    def services(self) -> dict[str, dict[str, int]]:
        services: dict[str, dict[str, int]] = json.loads(self.cluster.command("status", "--json").stdout)["services"]
        return services


class OfHosts(Processors):
    """Each behind a gateway of its own, as on hosts of their own."""

    def __init__(self, cluster: PlaneCluster) -> None:
        self.plane = cluster
        self.cluster = None  # type: ignore[assignment]
        self.router = cluster.server(0)

    def ports(self) -> list[int]:
        return self.plane.ports

    def postmaster(self, number: int) -> int:
        return self._postmaster(number) or 0

    def wait_restarted(self, number: int, pid: int) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self._postmaster(number) not in (None, pid):
                with contextlib.suppress(psycopg.OperationalError), self.connect(number):
                    return
            assert time.monotonic() < deadline, f"gateway-{number}"
            time.sleep(0.1)  # another process works; there is nothing to wait on

    def _postmaster(self, number: int) -> int | None:
        file = self.plane.directory / f"gateway-{number}" / "postgresql-0" / "data" / "postmaster.pid"
        try:
            return int(file.read_text().split("\n")[0])
        except (FileNotFoundError, ValueError):
            return None  # none runs, or it is just being written


@pytest.fixture(scope="module")
def processors() -> Iterator[Processors]:
    topology = os.environ.get("AUSTRALIS_TEST_TOPOLOGY")
    if topology:
        with plane(**{**topology_of(topology), "gateways": COUNT}) as many:
            yield OfHosts(many)
        return
    with temporary_directory("processors") as directory:
        cluster = AustralisCluster(directory, settings={"query_processors": COUNT})
        try:
            yield Processors(cluster, cluster.start())
        except (CannotStart, ProgramsMissing) as error:
            if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
                raise
            pytest.skip(f"Australis can't start: {error}")
        finally:
            cluster.stop()
