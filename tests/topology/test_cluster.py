"""A cluster of many processes as a user has it: one command, SQL through routers, kills, moves, a rolling restart."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.servers import AustralisCluster, CannotStart, free_port, temporary_directory

TOPOLOGY = """
adjudicators = 2
crossbars = 1
shards = 2
replicas = 1
query_processors = 2
routers = 2
connections = 30
"""
RETRYABLE = ("40001", "40P01")


class Cluster:
    """Driven through its command line."""

    def __init__(self, directory: Path, topology: str = TOPOLOGY) -> None:
        self.cluster = AustralisCluster(directory)
        self.port = _two_free_ports()
        (directory / "topology.toml").write_text(topology)

    def start(self) -> None:
        arguments = ["--topology", str(self.cluster.directory / "topology.toml"), "--port", str(self.port), "--detach"]
        done = self.cluster.command("start", *arguments, timeout=180)
        if done.returncode:
            raise CannotStart(done.stderr)

    def run(self, *arguments: str) -> str:
        done = self.cluster.command(*arguments, timeout=180)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def connect(self, router: int = 0) -> psycopg.Connection[tuple[Any, ...]]:
        dsn = self.cluster.server().dsn.replace(f":{self.port}/", f":{self.port + router}/")
        return psycopg.connect(dsn, autocommit=True, connect_timeout=30)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json"))
        return found


def _two_free_ports() -> int:
    """The first of two that nobody uses now."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 1))
            return port


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with temporary_directory("many") as directory:
        one = Cluster(directory)
        try:
            one.start()
        except CannotStart as error:
            if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
                pytest.fail(str(error))
            pytest.skip(str(error))
        try:
            yield one
        finally:
            one.cluster.stop()


def _gateway(connection: psycopg.Connection[tuple[Any, ...]]) -> str:
    row = connection.execute("SHOW australis.run_directory").fetchone()
    assert row is not None
    return Path(str(row[0])).name


def test_two_routers_and_two_query_processors_are_one_database(cluster: Cluster) -> None:
    with cluster.connect(0) as first, cluster.connect(0) as second, cluster.connect(1) as third:
        assert {_gateway(first), _gateway(second)} == {"gateway-0", "gateway-1"}
        for number in range(4):  # on stripes of both adjudicators
            first.execute(f"CREATE TABLE t{number} (a int PRIMARY KEY, b int)")
            second.execute(f"INSERT INTO t{number} SELECT g, 0 FROM generate_series(1, 100) g")
            for connection in (first, second, third):
                assert connection.execute(f"SELECT count(*), sum(a) FROM t{number}").fetchone() == (100, 5050)
        with second.transaction():
            for number in range(4):
                second.execute(f"UPDATE t{number} SET b = b + 1 WHERE a = 1")
        for connection in (first, second, third):
            assert connection.execute(
                "SELECT t0.b + t1.b + t2.b + t3.b FROM t0, t1, t2, t3 WHERE t0.a = 1 "
                "AND t1.a = 1 AND t2.a = 1 AND t3.a = 1"
            ).fetchone() == (4,)
    status = cluster.status()
    assert status["state"] == "ready" and status["warnings"] == []
    assert set(status["map"]["adjudicators"]) == {"0", "1"}
    commits = [status["roles"][f"adjudicator-{number}"]["last_tau"] for number in range(2)]
    assert all(tau > 0 for tau in commits), "both took part"


class _Transfers(threading.Thread):
    """Moves amounts between tables of both adjudicators until told to stop; counts what it was told."""

    def __init__(self, cluster: Cluster, router: int) -> None:
        super().__init__()
        self.cluster, self.router = cluster, router
        self.acknowledged = self.retried = self.lost = 0
        self.unexpected: list[str] = []
        self.over = threading.Event()
        self.progress = threading.Condition()

    def run(self) -> None:
        connection = None
        while not self.over.is_set():
            try:
                if connection is None or connection.closed:
                    connection = self.cluster.connect(self.router)
                with connection.transaction():
                    connection.execute("UPDATE t0 SET b = b - 1 WHERE a = %s", (10 + self.router,))
                    connection.execute("UPDATE t1 SET b = b + 1 WHERE a = %s", (10 + self.router,))
                with self.progress:
                    self.acknowledged += 1
                    self.progress.notify_all()
            except psycopg.Error as error:
                if error.sqlstate in RETRYABLE:
                    self.retried += 1
                elif isinstance(error, psycopg.OperationalError):
                    self.lost += 1  # the connection, or an outcome that nobody knows
                    if connection is not None:
                        connection.close()
                else:
                    self.unexpected.append(f"{error.sqlstate} {error}")
        if connection is not None:
            connection.close()

    def more(self, count: int) -> None:
        """Wait until so many more were acknowledged."""
        with self.progress:
            wanted = self.acknowledged + count
            assert self.progress.wait_for(lambda: self.acknowledged >= wanted, 60), self.unexpected


def _sums(cluster: Cluster) -> tuple[int, int]:
    with cluster.connect() as connection:
        row = connection.execute("SELECT (SELECT sum(b) FROM t0), (SELECT sum(b) FROM t1)").fetchone()
        assert row is not None
        return int(row[0]), int(row[1])


def _finish(cluster: Cluster, before: tuple[int, int], threads: list[_Transfers]) -> int:
    """Stop; nothing that was acknowledged is missing, nothing half-done. Returns losses of connections."""
    for thread in threads:
        thread.over.set()
    for thread in threads:
        thread.join(60)
        assert not thread.unexpected
    first, second = _sums(cluster)
    moved = second - before[1]
    assert first - before[0] == -moved, "a transfer was done by half"
    acknowledged = sum(thread.acknowledged for thread in threads)
    lost = sum(thread.lost for thread in threads)
    assert acknowledged <= moved <= acknowledged + lost
    return lost


def test_a_rolling_restart_fails_no_commit(cluster: Cluster) -> None:
    before = _sums(cluster)
    threads = [_Transfers(cluster, router) for router in range(2)]
    for thread in threads:
        thread.start()
    try:
        threads[0].more(3)
        cluster.run("restart", "--rolling", "control", "adjudicator", "crossbar", "storage", "router")
        threads[0].more(3)
    finally:
        for thread in threads:
            thread.over.set()
    assert _finish(cluster, before, threads) == 0
    services = cluster.status()["services"]
    assert all(services[name]["restarts"] == (0 if name.startswith("gateway") else 1) for name in services)


def test_ranges_move_under_load(cluster: Cluster) -> None:
    before = _sums(cluster)
    owners = cluster.status()["map"]["adjudicators"]
    lo, hi = next(piece for piece in owners["1"] if piece[0].startswith("0000000500"))
    threads = [_Transfers(cluster, router) for router in range(2)]
    for thread in threads:
        thread.start()
    try:
        for target in (0, 1, 0):
            threads[0].more(3)
            cluster.run("move", "--lo", lo, "--hi", hi, "--to", str(target))
            newest = cluster.status()["map"]
            pieces = newest["adjudicators"][str(target)]
            assert any(piece[0] <= lo and hi <= piece[1] for piece in pieces)
        threads[0].more(3)
    finally:
        for thread in threads:
            thread.over.set()
    assert _finish(cluster, before, threads) == 0


def test_ranges_move_between_shards_under_load(cluster: Cluster) -> None:
    before = _sums(cluster)
    holders = cluster.status()["map"]["shards"]
    lo, hi = next(piece for piece in holders["1"] if piece[0].startswith("0000000500"))
    threads = [_Transfers(cluster, router) for router in range(2)]
    for thread in threads:
        thread.start()
    try:
        for target in (0, 1, 0):
            threads[0].more(3)
            cluster.run("move", "--shard", "--lo", lo, "--hi", hi, "--to", str(target))
            pieces = cluster.status()["map"]["shards"][str(target)]
            assert any(piece[0] <= lo and hi <= piece[1] for piece in pieces)
        threads[0].more(3)
    finally:
        for thread in threads:
            thread.over.set()
    assert _finish(cluster, before, threads) == 0
    done = cluster.cluster.command("move", "--shard", "--lo", lo, "--hi", hi, "--to", "7")
    assert done.returncode == 1 and "there is no shard 7" in done.stderr


@pytest.mark.parametrize("name", ["adjudicator-1", "storage-1-0", "crossbar-0", "control", "gateway-1", "router-1"])
def test_kills(cluster: Cluster, name: str) -> None:
    before = _sums(cluster)
    service = cluster.status()["services"][name]
    threads = [_Transfers(cluster, router) for router in range(2)]
    for thread in threads:
        thread.start()
    try:
        threads[0].more(3)
        os.kill(service["pid"], signal.SIGKILL)
        for thread in threads:
            thread.more(3)
    finally:
        for thread in threads:
            thread.over.set()
    _finish(cluster, before, threads)
    deadline = time.monotonic() + 60
    while cluster.status()["services"][name]["restarts"] != service["restarts"] + 1:
        assert time.monotonic() < deadline, f"{name} was not started again"  # the load may go on without it


def test_stop_and_start_keep_everything(cluster: Cluster) -> None:
    before = _sums(cluster)
    cluster.run("stop")
    assert cluster.cluster.command("status").returncode == 3
    cluster.start()
    assert _sums(cluster) == before
    done = cluster.cluster.command("start", "--detach")
    assert done.returncode == 1 and "is in use by a running cluster" in done.stderr


def test_more_shards_and_replicas(cluster: Cluster) -> None:
    """A topology file that says more of them; ranges go to the new shard, and it answers alone."""
    before = _sums(cluster)
    file = cluster.cluster.directory / "topology.toml"
    cluster.run("stop")
    file.write_text(TOPOLOGY.replace("shards = 2", "shards = 3").replace("replicas = 1", "replicas = 2"))
    cluster.start()
    assert _sums(cluster) == before
    newest = cluster.status()["map"]
    assert newest["shards"]["2"] == [] and newest["replicas"]["2"] == ["storage-2-0", "storage-2-1"]
    threads = [_Transfers(cluster, router) for router in range(2)]
    for thread in threads:
        thread.start()
    try:
        cluster.run("move", "--shard", "--lo", "", "--hi", "ff" * 8, "--to", "2")
        threads[0].more(3)
    finally:
        for thread in threads:
            thread.over.set()
    _finish(cluster, before, threads)
    after = _sums(cluster)
    newest = cluster.status()["map"]["shards"]
    assert [newest["0"], newest["1"]] == [[], []]
    for number in (0, 1):
        for replica in (0, 1):
            pid = cluster.status()["services"][f"storage-{number}-{replica}"]["pid"]
            os.kill(pid, signal.SIGSTOP)
            try:
                assert _sums(cluster) == after
            finally:
                os.kill(pid, signal.SIGCONT)


def test_one_line_for_what_cannot_be(cluster: Cluster, tmp_path: Path) -> None:
    file = cluster.cluster.directory / "other.toml"
    file.write_text("adjudicators = 3\n")
    cluster.run("stop")
    try:
        done = cluster.cluster.command("start", "--topology", str(file), "--detach")
        assert done.returncode == 1
        assert (
            done.stderr.strip()
            .splitlines()[-1]
            .endswith("was made with adjudicators = 2, the topology says 3; this cannot change")
        )
        file.write_text("adjudicator = 3\n")
        done = cluster.cluster.command("start", "--topology", str(file), "--detach")
        assert done.returncode == 1 and f'{file}: unknown key "adjudicator"' in done.stderr
    finally:
        cluster.start()
