"""Snapshots of a cluster of many processes: a replica that lost its store under load, and a start without any store."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.servers import CannotStart, temporary_directory
from tests.topology.test_cluster import Cluster

TOPOLOGY = """
adjudicators = 1
crossbars = 1
shards = 2
replicas = 1
query_processors = 1
routers = 1
connections = 20
rebalance = false
snapshot_seconds = 1
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with temporary_directory("kept") as directory:
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
            one.cluster.stop()


def _storage(cluster: Cluster) -> dict[str, dict[str, Any]]:
    status = cluster.status()
    return {name: one for name, one in status["roles"].items() if one.get("role") == "storage" and "pid" in one}


def _restored(data: Path) -> int:
    """How many restores the log tells of."""
    files = [file for file in (data / "data" / "logs").rglob("*") if file.is_file()]
    return sum(file.read_text(errors="replace").count("storage.restored") for file in files)


def test_stores_that_are_lost_come_back_from_snapshots(cluster: Cluster) -> None:
    data = cluster.cluster.directory
    roles = next(data.rglob("roles"))
    with cluster.connect() as connection:
        connection.execute("CREATE TABLE t (a int PRIMARY KEY, b int)")
        connection.execute("INSERT INTO t SELECT g, 0 FROM generate_series(1, 500) g")
    ending = threading.Event()
    sums: list[int] = []
    wrong: list[psycopg.Error] = []

    def load() -> None:
        """Adds one to every row again and again; what was acknowledged is counted."""
        with cluster.connect() as connection:
            while not ending.is_set():
                try:
                    connection.execute("UPDATE t SET b = b + 1")
                except psycopg.Error as error:
                    if error.sqlstate not in ("40001", "57P03"):
                        wrong.append(error)
                        return
                else:
                    sums.append(1)

    worker = threading.Thread(target=load)
    worker.start()
    try:
        for name in ("storage-0-0", "storage-1-0"):
            before, until = len(sums), time.monotonic() + 60
            while True:
                found = _storage(cluster).get(name)
                if found is not None and found.get("snapshots_written", 0) > 0 and len(sums) > before + 3:
                    break
                assert worker.is_alive() and not wrong and time.monotonic() < until, found
                time.sleep(0.2)
            (folder,) = roles.parent.glob(f"objects/*/shard-{name[8]}/manifests")
            assert list(folder.iterdir())
            os.kill(found["pid"], signal.SIGKILL)  # also in the middle of a snapshot: they are written all the time
            shutil.rmtree(roles / name / "storage", ignore_errors=True)
    finally:
        ending.set()
        worker.join(120)
    assert not worker.is_alive() and not wrong

    def check() -> None:
        with cluster.connect() as connection:
            assert connection.execute("SELECT count(*), min(b) = max(b) FROM t").fetchone() == (500, True)
            row = connection.execute("SELECT b FROM t WHERE a = 7").fetchone()
            assert row is not None and row[0] >= len(sums)

    check()
    # all stores are lost at once, as on a machine that starts again
    cluster.cluster.stop()
    for store in roles.glob("storage-*/storage"):
        shutil.rmtree(store)
    cluster.start()
    check()
    assert _restored(data) >= 2
