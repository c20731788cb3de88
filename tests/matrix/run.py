"""Every role x {kill -9, SIGSTOP for 10 s} under load: what clients see, how long it takes, and that nothing is lost.

The load: transfers and per-key histories of tests/crash, every outcome remembered, and the list-append workload of
tests/histories with its checker. Both run through all routers, for the whole run.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.crash.check import check
from tests.crash.load import SCHEMA, Client
from tests.crash.run import read_state
from tests.histories.run import Run as History
from tests.matrix.cluster import ManyProcesses, Probe

SMALL = """\
nats = 0
adjudicators = 2
crossbars = 2
shards = 2
replicas = 2
query_processors = 2
routers = 2
"""
ROLES = ("router", "gateway", "postgresql", "adjudicator", "crossbar", "storage", "control", "nats")
STOP_SECONDS = 10.0
HEAL_SECONDS = 90.0
QUIET_SECONDS = 2.0


@dataclass
class Row:
    """One fault. Times in seconds: the longest silence of writes and reads, and until every process served again."""

    role: str
    instance: str
    fault: str
    writes_silent: float = 0.0
    reads_silent: float = 0.0
    whole_again: float = 0.0
    acknowledged: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    def __str__(self) -> str:
        told = ", ".join(f"{state} {n}" for state, n in sorted(self.errors.items())) or "none"
        problem = f"  PROBLEM: {self.problem}" if self.problem else ""
        return (
            f"{self.role:<12} {self.instance:<14} {self.fault:<10} {self.writes_silent:8.2f} {self.reads_silent:8.2f} "
            f"{self.whole_again:8.2f} {self.acknowledged:8}  {told}{problem}"
        )


HEADER = f"{'role':<12} {'instance':<14} {'fault':<10} {'writes':>8} {'reads':>8} {'whole':>8} {'acked':>8}  errors"


@dataclass
class Report:
    """All faults of a run."""

    topology: str
    rows: list[Row] = field(default_factory=list)
    lost: int = 0
    ghosts: int = 0
    half: int = 0
    findings: list[str] = field(default_factory=list)
    acknowledged: int = 0
    unknown: int = 0
    histories: str = ""
    anomalies: int = 0

    @property
    def good(self) -> bool:
        wrong = self.lost or self.ghosts or self.half or self.findings or self.anomalies
        return not wrong and not any(row.problem for row in self.rows)

    def __str__(self) -> str:
        return "\n".join(
            [
                HEADER,
                *map(str, self.rows),
                f"{self.acknowledged} acknowledged, {self.unknown} unknown: "
                f"{self.lost} lost, {self.ghosts} refused but there, {self.half} half-applied",
                *self.findings,
                self.histories,
            ]
        )


class Matrix:
    """A cluster under load and faults."""

    def __init__(self, cluster: ManyProcesses, *, clients: int = 4, histories: int = 3, say: bool = True) -> None:
        self.cluster = cluster
        self.report = Report(cluster.topology.read_text())
        self._say = say
        dsns = itertools.count()
        routers = cluster.routers
        self.clients = [Client(n, lambda: routers[next(dsns) % len(routers)], 11) for n in range(clients)]
        self._probes = [Probe(routers, writes=True), Probe(routers[::-1], writes=False)]
        self._histories = histories
        self._history: History | None = None
        self._counted: Counter[str] = Counter()
        self._acknowledged = 0

    def start(self) -> None:
        """Make the tables and start the load."""
        with self.cluster.routers[0].connect() as connection:
            for statement in SCHEMA:
                connection.execute(statement.encode())
        if self._histories:
            self._history = History(
                "append",
                "repeatable-read",
                [server.dsn for server in self.cluster.routers],
                clients=self._histories,
                seed=3,
                seconds=86_400.0,
                limit=None,
                patience=60.0,
                heal=120.0,
                keep=None,
            ).start()
        for thread in (*self.clients, *self._probes):
            thread.start()
        time.sleep(QUIET_SECONDS)  # load before the first fault; its instant is arbitrary

    def strike(self, role: str, instance: str, fault: str) -> Row:
        """One fault, until all is well again."""
        row = Row(role, instance, fault)
        self._note(None)
        pid = self.cluster.postmaster(instance) if role == "postgresql" else self.cluster.services()[instance]
        began = time.monotonic()
        if fault == "kill -9":
            self.cluster.signal(pid, signal.SIGKILL)
        else:
            self.cluster.pause(pid, STOP_SECONDS).join()
        after = time.monotonic()
        try:
            self._whole(instance, pid, fault == "kill -9" and role != "postgresql", after)
            row.whole_again = time.monotonic() - after
            for probe in self._probes:
                if not probe.waits_until_after(time.monotonic(), HEAL_SECONDS):
                    row.problem = f"no success of the {probe.name} within {HEAL_SECONDS:.0f} s"
        except Exception as error:  # noqa: BLE001 (it is reported)
            row.problem = str(error)
        time.sleep(QUIET_SECONDS)
        now = time.monotonic()
        row.writes_silent = self._probes[0].longest_silence(began, now)
        row.reads_silent = self._probes[1].longest_silence(began, now)
        self._note(row)
        failed = [client for client in self.clients if client.failure is not None]
        if failed:
            row.problem = f"{failed[0].name}: {failed[0].failure!r}"
        self.report.rows.append(row)
        if self._say:
            print(row, flush=True)
        return row

    def _whole(self, instance: str, pid: int, killed: bool, since: float) -> None:
        """Wait until the instance serves, under another pid if it was killed."""
        deadline = since + HEAL_SECONDS
        while time.monotonic() < deadline:
            self.cluster.wait_serving()
            if not killed or self.cluster.services()[instance] not in (0, pid):
                return
            time.sleep(0.02)  # the supervisor has not noticed yet: nothing to wait on
        raise TimeoutError(f"{instance} did not come back")

    def _note(self, row: Row | None) -> None:
        errors: Counter[str] = Counter()
        acknowledged = 0
        for client in self.clients:
            errors.update(dict(client.counts.errors))
            acknowledged += client.counts.acknowledged
            errors["40001"] += client.counts.conflicts
        if row is not None:
            row.errors = {state: n for state, n in (errors - self._counted).items() if n}
            row.acknowledged = acknowledged - self._acknowledged
        self._counted, self._acknowledged = errors, acknowledged

    def finish(self) -> Report:
        """Stop the load and judge."""
        report = self.report
        for probe in self._probes:
            probe.end()
        for client in self.clients:
            client.stop()
        for thread in (*self.clients, *self._probes):
            thread.join(90)
        for client in self.clients:
            if client.failure is not None:
                report.findings.append(f"{client.name} failed: {client.failure!r}")
            report.acknowledged += client.counts.acknowledged
            report.unknown += client.counts.unknown
        for server in self.cluster.routers:
            found = check(read_state(server), {client.number: dict(client.outcomes) for client in self.clients})
            report.lost = max(report.lost, len(found.lost))
            report.ghosts = max(report.ghosts, len(found.ghosts))
            report.half = max(report.half, len(found.half))
            if not found.good:
                report.findings.append(str(found))
        if self._history is not None:
            self._history.stopping.set()
            verdict = self._history.finish()
            report.histories = str(verdict)
            report.anomalies = 0 if verdict.verdict.valid else max(1, len(verdict.verdict.anomalies))
        return report

    def all_faults(self, roles: tuple[str, ...], faults: tuple[str, ...]) -> None:
        """One instance of each role after the other."""
        for role in roles:
            wanted = "gateway" if role == "postgresql" else role
            names = [name for name in self.cluster.services() if name == wanted or name.startswith(f"{wanted}-")]
            for number, fault in enumerate(faults):
                if names:
                    self.strike(role, names[number % len(names)], fault)


def write_json(report: Report, file: Path) -> None:
    """For tables and comparisons."""
    file.write_text(json.dumps({**asdict(report), "good": report.good}, indent=1) + "\n")


def say(text: str) -> None:
    """To the person who waits."""
    print(text, file=sys.stderr, flush=True)


def rolling_restart(matrix: Matrix) -> list[Row]:
    """`australis restart --rolling`, one role after the other, under the same load."""
    rows = []
    cluster = matrix.cluster
    for role in ("control", "crossbar", "storage", "adjudicator", "gateway", "router"):
        row = Row(role, "all", "restart")
        matrix._note(None)
        began = time.monotonic()
        done = cluster.cluster.command("restart", "--rolling", "--data", str(cluster.cluster.data), role, timeout=300)
        row.whole_again = time.monotonic() - began
        if done.returncode != 0:
            row.problem = done.stderr.strip()[-300:]
        for probe in matrix._probes:
            if not probe.waits_until_after(time.monotonic(), HEAL_SECONDS):
                row.problem = f"no success of the {probe.name} within {HEAL_SECONDS:.0f} s"
        now = time.monotonic()
        row.writes_silent = matrix._probes[0].longest_silence(began, now)
        row.reads_silent = matrix._probes[1].longest_silence(began, now)
        matrix._note(row)
        matrix.report.rows.append(row)
        print(row, flush=True)
        rows.append(row)
    return rows
