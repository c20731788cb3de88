"""A whole cluster whose journal is on NATS: what was committed survives the end of every process."""

from __future__ import annotations

import os
import re
import signal
import time

from tests.fixtures.servers import AustralisCluster, temporary_directory


def pids(cluster: AustralisCluster) -> dict[str, int]:
    """The processes of a running cluster: its services, and the supervisor as "storage"."""
    text = cluster.command("status").stdout
    found = {name: int(pid) for name, pid in re.findall(r"^(\w+) +serving, pid (\d+)", text, re.MULTILINE)}
    supervisor = re.search(r"^storage says +pid (\d+)", text, re.MULTILINE)
    assert supervisor is not None, text
    return {**found, "storage": int(supervisor[1])}


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_commits_survive_kill_9_of_everything() -> None:
    with temporary_directory("nats") as directory:
        cluster = AustralisCluster(directory)
        cluster.data.mkdir(parents=True)
        (cluster.data / "australis.toml").write_text('[journal]\nengine = "nats"\n')
        try:
            server = cluster.start()
            with server.connect() as connection:
                connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
                connection.execute("INSERT INTO t SELECT generate_series(1, 1000)")
                # the server alone: commits wait until it is back, and go on in the same session
                os.kill(pids(cluster)["nats"], signal.SIGKILL)
                connection.execute("INSERT INTO t VALUES (1001)")
            processes = pids(cluster)
            assert set(processes) == {"nats", "commit", "postgresql", "storage"}
            for pid in processes.values():
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while not all(ended(pid) for pid in processes.values()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            server = cluster.start()
            with server.connect() as connection:
                assert connection.execute("SELECT count(*), max(id) FROM t").fetchone() == (1001, 1001)
                connection.execute("INSERT INTO t VALUES (1002)")
            cluster.stop()
            # another engine would begin with an empty journal
            (cluster.data / "australis.toml").write_text("")
            refused = cluster.command("start", "--port", str(cluster.port), "--detach")
            assert refused.returncode != 0
            assert "is of engine nats" in refused.stderr
        finally:
            cluster.stop()
