"""A cluster of many processes that `australis start --topology` runs, and signals for its processes.

Only pids that the cluster itself publishes (`run/state.json`) are ever signalled.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psycopg

from tests.fixtures.servers import AustralisCluster, CannotStart, Server, free_port, temporary_directory

SERVING_SECONDS = 90.0


@dataclass
class ManyProcesses:
    """The running cluster."""

    cluster: AustralisCluster
    topology: Path
    routers: list[Server]

    def services(self) -> dict[str, int]:
        """Pid of every process, by name; of the supervisor too."""
        state = json.loads((self.cluster.data / "run" / "state.json").read_bytes())
        found = {name: int(service["pid"] or 0) for name, service in state["services"].items()}
        return {**found, "supervisor": int(state["pid"])}

    def names(self, role: str) -> list[str]:
        """Instances of a role."""
        return [name for name in self.services() if name.rsplit("-", 1)[0] == role or name.startswith(f"{role}-")]

    def postmaster(self, gateway: str) -> int:
        """Pid of the PostgreSQL server of a gateway."""
        files = sorted(self.cluster.data.glob(f"**/{gateway}/**/postmaster.pid"))
        return int(files[0].read_text().split()[0]) if files else 0

    def wait_serving(self, seconds: float = SERVING_SECONDS) -> None:
        """Return when all processes serve."""
        deadline = time.monotonic() + seconds
        while True:
            state = json.loads((self.cluster.data / "run" / "state.json").read_bytes())
            away = [name for name, service in state["services"].items() if not service["serving"]]
            if not away:
                return
            if time.monotonic() > deadline:
                raise CannotStart(f"not serving again: {', '.join(away)}")
            time.sleep(0.05)  # another process's file: nothing to wait on

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to one of the processes."""
        assert pid in self.services().values() or pid > 1
        os.kill(pid, number)

    def pause(self, pid: int, seconds: float) -> threading.Timer:
        """SIGSTOP now, SIGCONT after so many seconds."""
        self.signal(pid, signal.SIGSTOP)

        def go_on() -> None:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                return

        timer = threading.Timer(seconds, go_on)
        timer.daemon = True
        timer.start()
        return timer


@contextmanager
def many_processes(topology: str) -> Iterator[ManyProcesses]:
    """Start a cluster; `topology` is the content of its file, without the port."""
    with temporary_directory("topology") as directory:
        file = directory / "topology.toml"
        port = free_port()
        file.write_text(f"port = {port}\n{topology}")
        file.chmod(0o644)
        cluster = AustralisCluster(directory)
        started = cluster.command(
            "start", "--topology", str(file), "--data", str(cluster.data), "--detach", timeout=240
        )
        if started.returncode != 0:
            raise CannotStart(started.stderr.strip()[-2000:])
        try:
            url = started.stdout.strip().splitlines()[-1]
            routers = int(
                next((line.split("=")[1] for line in topology.splitlines() if line.startswith("routers")), "1")
            )
            servers = [Server("australis", url.replace(f":{port}/", f":{port + number}/")) for number in range(routers)]
            yield ManyProcesses(cluster, file, servers)
        finally:
            cluster.command("stop", "--data", str(cluster.data), timeout=120)


class Probe(threading.Thread):
    """Writes (or reads) one row again and again through any router; notes when that succeeded."""

    def __init__(self, servers: list[Server], *, writes: bool) -> None:
        super().__init__(name="write probe" if writes else "read probe", daemon=True)
        self._servers, self._writes = servers, writes
        self._ended = threading.Event()
        self.successes: list[float] = []

    def run(self) -> None:
        at = 0
        statement = "UPDATE crash_probe SET n = n + 1" if self._writes else "SELECT n FROM crash_probe"
        while not self._ended.is_set():
            at += 1
            try:
                with psycopg.connect(
                    self._servers[at % len(self._servers)].dsn, connect_timeout=2, autocommit=True
                ) as connection:
                    connection.execute("SET statement_timeout = '4s'")
                    while not self._ended.is_set():
                        connection.execute(statement)
                        self.successes.append(time.monotonic())
                        self._ended.wait(0.01)
            except psycopg.Error:
                self._ended.wait(0.02)

    def end(self) -> None:
        """Stop."""
        self._ended.set()

    def longest_silence(self, since: float, until: float) -> float:
        """The longest time without a success in a window, in seconds."""
        inside = [at for at in self.successes if since <= at <= until]
        before = [at for at in self.successes if at < since]
        times = [max(before) if before else since, *inside, until]
        return max(after - earlier for earlier, after in pairwise(times))

    def waits_until_after(self, moment: float, seconds: float) -> bool:
        """Wait for a success after a moment."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.successes and self.successes[-1] > moment:
                return True
            time.sleep(0.02)  # another thread's list: nothing to wait on
        return False
