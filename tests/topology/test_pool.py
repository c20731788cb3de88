"""Gateways whose query processors come with sessions and go when they are idle, down to none."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.servers import CannotStart, temporary_directory
from tests.topology.test_cluster import Cluster

TOPOLOGY = """
query_processors = 2
routers = 1
connections = 30

[pool]
min = 0
max = 2
sessions = 2
idle = 0.5
"""
PATIENCE = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with temporary_directory("pooled") as directory:
        one = Cluster(directory, TOPOLOGY)
        try:
            one.start()
        except CannotStart as error:
            if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
                pytest.fail(str(error))
            pytest.skip(str(error))
        try:
            yield one
        finally:
            one.cluster.command("stop")


def postmasters(cluster: Cluster) -> set[int]:
    """Process ids of PostgreSQL servers."""
    found = set()
    for file in Path(cluster.cluster.data).glob("roles/gateway-*/postgresql-*/data/postmaster.pid"):
        try:
            pid = int(file.read_text().split("\n")[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            continue
        found.add(pid)
    return found


def wait_for_count(cluster: Cluster, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(postmasters(cluster)) != count:
        assert time.monotonic() < deadline, postmasters(cluster)
        time.sleep(0.05)  # other processes work; there is nothing to wait on


def waited(cluster: Cluster) -> list[int]:
    """Milliseconds for which connections waited for a query processor, as gateways tell."""
    found = []
    for file in Path(cluster.cluster.data).glob("logs/gateway-*.log"):
        found += [int(n) for n in re.findall(r'"milliseconds": (\d+), "event": "pool.waited"', file.read_text())]
    return found


def test_to_none_and_back(cluster: Cluster) -> None:
    with cluster.connect() as session:
        session.execute("CREATE TABLE kept (id int PRIMARY KEY, v int)")
        session.execute("INSERT INTO kept VALUES (1, 0)")
    for turn in range(3):
        wait_for_count(cluster, 0)
        began = time.monotonic()
        with cluster.connect() as session:
            assert session.execute("SELECT v FROM kept").fetchone() == (turn,)
            print(f"{1000 * (time.monotonic() - began):.0f} ms from connecting to the first answer")
            session.execute("UPDATE kept SET v = v + 1")
            # a schema change is not to wait for those that do not run
            session.execute(f"ALTER TABLE kept ADD COLUMN c{turn} int DEFAULT {turn}")
    print(sorted(waited(cluster)), "ms waited for a query processor")


def test_they_grow_with_sessions_and_are_one(cluster: Cluster) -> None:
    sessions = []
    for number in range(8):
        session = cluster.connect()
        session.execute("CREATE TABLE IF NOT EXISTS grown (id int PRIMARY KEY)")
        session.execute("INSERT INTO grown VALUES (%s)", (number,))
        sessions.append(session)
    wait_for_count(cluster, 4)
    for session in sessions:
        assert session.execute("SELECT count(*) FROM grown").fetchone() == (8,)
    sessions[0].execute("ALTER TABLE grown ADD COLUMN v int DEFAULT 7")
    for session in sessions:
        assert session.execute("SELECT sum(v) FROM grown").fetchone() == (56,)
        session.cancel()  # finds its way, and nothing to cancel
    for session in sessions:
        session.close()
    wait_for_count(cluster, 0)


def test_a_killed_one_loses_its_own_sessions(cluster: Cluster) -> None:
    first, second = cluster.connect(), cluster.connect()  # of two gateways
    victim = first.execute("SELECT pg_read_file('postmaster.pid')").fetchone()
    assert victim is not None
    os.kill(int(str(victim[0]).split("\n")[0]), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    with pytest.raises(psycopg.OperationalError):
        while time.monotonic() < deadline:  # a backend that is busy sees it at its next wait
            first.execute("SELECT 1")
    assert second.execute("SELECT 1").fetchone() == (1,)
    with cluster.connect() as again:
        assert again.execute("SELECT 1").fetchone() == (1,)
    second.close()
    first.close()


def test_more_sessions_than_there_may_be(cluster: Cluster) -> None:
    """Beyond what starts another one they share what there is."""
    sessions = [cluster.connect() for _ in range(20)]
    assert {session.execute("SELECT 1").fetchone() for session in sessions} == {(1,)}
    assert len(postmasters(cluster)) <= 4
    for session in sessions:
        session.close()


def test_a_killed_gateway_takes_its_query_processors_and_comes_back(cluster: Cluster) -> None:
    with cluster.connect() as first, cluster.connect() as second:
        for session in (first, second):
            session.execute("CREATE TABLE IF NOT EXISTS lasting (id int)")
        services = cluster.status()["services"]
        os.kill(services["gateway-0"]["pid"], signal.SIGKILL)
        lost = 0
        deadline = time.monotonic() + PATIENCE
        while not lost and time.monotonic() < deadline:
            for session in (first, second):
                try:
                    session.execute("SELECT 1")
                except psycopg.OperationalError:
                    lost += 1
        assert lost == 1
    for _ in range(4):  # also while it is not there, and when it is again
        with cluster.connect() as session:
            assert session.execute("SELECT count(*) FROM lasting").fetchone() == (0,)
    while cluster.status()["services"]["gateway-0"]["pid"] in (0, services["gateway-0"]["pid"]):
        assert time.monotonic() < deadline
    sessions = [cluster.connect() for _ in range(4)]
    assert [session.execute("SELECT count(*) FROM lasting").fetchone() for session in sessions] == 4 * [(0,)]
    for session in sessions:
        session.close()
    wait_for_count(cluster, 0)
