"""`python -m benchmarks.scale --out DIR`: what a commit and a read cost in every role, with 1 to 8 of each.

On one machine this shows cost, not speed: microseconds of processor time per transaction in each role, from /proc,
while pgbench runs with few clients. A commit writes one row of one of 16 tables, which belong to all adjudicators and
shards in turn; `two owners` writes rows of two tables. Writes scale.json and scale.png; docs/scale.md has the model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from australis.bench import servers
from australis.bench.pgbench import Client, ClientFailed, Figures

TABLES = 16
ROWS = 1000
ROLES = ("router", "postgresql", "gateway", "adjudicator", "crossbar", "storage", "control", "supervisor")
ONE_AT_A_TIME = [
    (1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 2, 1), (1, 4, 1), (1, 8, 1), (1, 1, 2), (1, 1, 4), (1, 1, 8),
    (2, 2, 2), (4, 4, 4), (8, 8, 8),
]  # fmt: skip
"""Adjudicators, shards, query processors."""

SCRIPTS = {
    "commit": "\\set t random(1, 16)\n\\set id random(1, 1000)\nUPDATE scale_:t SET n = n + 1 WHERE id = :id;\n",
    "two owners": (
        "\\set t random(1, 8)\n\\set u random(9, 16)\n\\set id random(1, 1000)\nBEGIN;\n"
        "UPDATE scale_:t SET n = n + 1 WHERE id = :id;\nUPDATE scale_:u SET n = n + 1 WHERE id = :id;\nCOMMIT;\n"
    ),
    "read": "\\set t random(1, 16)\n\\set id random(1, 1000)\nSELECT n FROM scale_:t WHERE id = :id;\n",
}


@dataclass
class Measured:
    """One script on one cluster; microseconds of processor time per transaction that succeeded."""

    adjudicators: int
    shards: int
    processors: int
    script: str
    tps: float
    latency_ms: float
    aborted: float
    transactions: int
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.cpu.values())


def ticks(pid: int) -> int:
    """Processor time of a process, in clock ticks; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def children(pid: int) -> list[int]:
    """All processes below one."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found, at = [pid], 0
    while at < len(found):
        found += parents.get(found[at], [])
        at += 1
    return found[1:]


class Cluster:
    """A cluster of many processes, started by the command that users have."""

    def __init__(self, directory: Path, adjudicators: int, shards: int, processors: int) -> None:
        self.data = directory / "data"
        self.port = servers.free_port()
        self.file = directory / "topology.toml"
        self.file.write_text(
            f"port = {self.port}\nadjudicators = {adjudicators}\nshards = {shards}\n"
            f"query_processors = {processors}\nconnections = 40\n"
        )
        self.url = ""

    def _command(self, *arguments: str, timeout: float = 240) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "australis", *arguments, "--data", str(self.data)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise ClientFailed(done.stderr.strip()[-500:])
        return done.stdout.strip()

    def start(self) -> None:
        self.url = self._command("start", "--topology", str(self.file), "--detach").splitlines()[-1]

    def stop(self) -> None:
        self._command("stop", timeout=120)

    def pids(self) -> dict[str, list[int]]:
        """By role; PostgreSQL's are the gateways' children, now."""
        state = json.loads((self.data / "run" / "state.json").read_bytes())
        found: dict[str, list[int]] = {role: [] for role in ROLES}
        found["supervisor"].append(int(state["pid"]))
        for name, service in state["services"].items():
            found[name.split("-")[0]].append(int(service["pid"]))
        for gateway in found["gateway"]:
            found["postgresql"] += children(gateway)
        return found


def measure(
    cluster: Cluster, client: Client, script: str, shape: tuple[int, int, int], clients: int, seconds: float
) -> Measured:
    """Run one script; sessions are open before the counting begins, so that starting them is not counted."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "script.sql"
        file.write_text(SCRIPTS[script])
        command = client.command(file, clients=clients, seconds=seconds)
        command[command.index("-M") + 1] = "simple"  # table names are variables
        running = client.background(command)
        assert running.stdout is not None and running.stderr is not None
        # pgbench's sessions are PostgreSQL's processes, which begin now: their whole life is counted
        before = {role: {pid: ticks(pid) for pid in pids} for role, pids in cluster.pids().items()}
        after: dict[str, dict[int, int]] = {role: dict(times) for role, times in before.items()}
        while running.poll() is None:
            for role, pids in cluster.pids().items():
                for pid in pids:
                    after[role][pid] = max(after[role].get(pid, 0), ticks(pid))
            try:
                running.wait(0.25)
            except subprocess.TimeoutExpired:
                continue
        output, said = running.communicate()
        if running.returncode:
            raise ClientFailed(said.strip()[-400:])
    figures = figures_of(output)
    done = max(1, figures.transactions)
    per_tick = 1e6 / os.sysconf("SC_CLK_TCK")
    cpu = {
        role: sum(time - before[role].get(pid, 0) for pid, time in times.items()) * per_tick / done
        for role, times in after.items()
    }
    return Measured(*shape, script, figures.tps, figures.latency_ms, figures.abort_share, figures.transactions, cpu)


def figures_of(output: str) -> Figures:
    from australis.bench.pgbench import parse

    return parse(output)


def run(shapes: list[tuple[int, int, int]], clients: int, seconds: float) -> list[Measured]:
    """All scripts on a fresh cluster of each shape."""
    results: list[Measured] = []
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="australis-scale-") as directory:
            Path(directory).chmod(0o755)
            cluster = Cluster(Path(directory), *shape)
            cluster.start()
            try:
                for table in range(1, TABLES + 1):
                    servers.psql(cluster.url, f"CREATE TABLE scale_{table} (id int PRIMARY KEY, n bigint NOT NULL)")
                    servers.psql(
                        cluster.url, f"INSERT INTO scale_{table} SELECT i, 0 FROM generate_series(1, {ROWS}) i"
                    )
                client = Client(servers.program("pgbench"), servers.environment(cluster.url))
                for script in SCRIPTS:
                    one = measure(cluster, client, script, shape, clients, seconds)
                    results.append(one)
                    print(line(one), flush=True)
            finally:
                cluster.stop()
    return results


def header() -> str:
    roles = "".join(f"{role[:11]:>12}" for role in ROLES)
    return f"{'A':>2} {'S':>2} {'Q':>2} {'script':<11}{'tps':>8}{'ms':>8}{'aborted':>9}{roles}{'total µs':>12}"


def line(one: Measured) -> str:
    """A row of the table."""
    cpu = "".join(f"{one.cpu.get(role, 0):12.0f}" for role in ROLES)
    return (
        f"{one.adjudicators:>2} {one.shards:>2} {one.processors:>2} {one.script:<11}{one.tps:8.0f}{one.latency_ms:8.2f}"
        f"{one.aborted:9.1%}{cpu}{one.total:12.0f}"
    )


def plot(results: list[Measured], file: Path) -> None:
    """Stacked cost per transaction."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(SCRIPTS), 1, figsize=(11, 10), sharex=True)
    for axis, script in zip(axes, SCRIPTS, strict=True):
        some = [one for one in results if one.script == script]
        names = [f"{one.adjudicators}·{one.shards}·{one.processors}" for one in some]
        bottom = [0.0] * len(some)
        for role in ROLES:
            values = [one.cpu.get(role, 0.0) for one in some]
            axis.bar(names, values, bottom=bottom, label=role)
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
        axis.set_ylabel(f"{script}\nµs of CPU each")
    axes[0].legend(ncols=4, fontsize=8)
    axes[-1].set_xlabel("adjudicators · shards · query processors")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for scale.json and scale.png")
    parser.add_argument("--seconds", type=float, default=6.0, help="per script and shape")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--shapes", help='e.g. "1,1,1 2,2,2": adjudicators, shards, query processors')
    options = parser.parse_args()
    shapes = ONE_AT_A_TIME
    if options.shapes:
        shapes = [tuple(map(int, shape.split(","))) for shape in options.shapes.split()]  # type: ignore[misc]
    options.out.mkdir(parents=True, exist_ok=True)
    print(header(), flush=True)
    results = run(shapes, options.clients, options.seconds)
    document = {
        "processors": os.cpu_count(),
        "clients": options.clients,
        "seconds": options.seconds,
        "results": [asdict(one) for one in results],
    }
    (options.out / "scale.json").write_text(json.dumps(document, indent=1) + "\n")
    try:
        plot(results, options.out / "scale.png")
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'australis[bench]')", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
