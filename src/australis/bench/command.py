"""The options and the whole run."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from australis.bench import machine, report
from australis.bench.pgbench import Client, ClientFailed, Figures, parse
from australis.bench.servers import STOCK_SETTINGS, Australis, BenchError, Stock, environment, program, psql
from australis.bench.workloads import COMMIT, MEMORY_LIMIT_MB, WORKLOADS, Workload
from australis.errors import AustralisError

COMMITS_PER_SECOND = 1000
QUICK_ROWS, ROWS = 100_000, 1_000_000


@dataclass
class Result:
    """A workload's rounds. `stock` and `australis` are rates (1/s) or seconds, one per round."""

    workload: Workload
    unit: str
    stock: list[float] = field(default_factory=list)
    australis: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    latency_ms: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    abort_share: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    background: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))  # commits/s achieved
    error: str = ""

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def extra_ms(self) -> float | None:
        """Australis's median latency minus PostgreSQL's."""
        a, b = self.latency_ms
        return statistics.median(b) - statistics.median(a) if a and b else None

    @property
    def reached(self) -> bool | None:
        """None where no floor is set."""
        w = self.workload
        if self.error:
            return None if w.floor is None and w.most_extra_ms is None else False
        if w.most_extra_ms is not None:
            return self.extra_ms is not None and self.extra_ms <= w.most_extra_ms
        return None if w.floor is None else self.ratio is not None and self.ratio >= w.floor


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; 0 when it ran (whatever it showed), 1 when it could not."""
    options = _parser().parse_args(arguments)
    chosen = _chosen(options.workloads)
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)  # now: half an hour later would be late
        if options.data is not None:
            Path(options.data).mkdir(parents=True, exist_ok=True)
        base = Path(tempfile.mkdtemp(prefix="au-bench-", dir=options.data))
        base.chmod(0o755)
    except OSError as error:
        print(f"Error: {error.filename}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return 1
    bench = Bench(base, options.quick, options.rounds, options.seconds, options.rows)
    try:
        bench.run(chosen)
    except (AustralisError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    finally:
        bench.close(keep=options.keep)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    document = bench.document()
    (out / f"bench-{stamp}.json").write_text(json.dumps(document, indent=1) + "\n")
    table = report.table(bench.results, document)
    (out / f"bench-{stamp}.txt").write_text(table + "\n")
    (out / f"bench-{stamp}.svg").write_text(report.svg(bench.results, document))
    print(table)
    print(f"written: {out / f'bench-{stamp}'}.json, .txt, .svg")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="australis bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows, short rounds: a first impression in minutes")
    parser.add_argument(
        "--workloads", help="comma-separated names; default: all: " + ", ".join(w.name for w in WORKLOADS)
    )
    parser.add_argument("--rounds", type=_positive, help="rounds per workload (default 5, quick 2)")
    parser.add_argument("--seconds", type=_positive, help="seconds per round and server (default 10, quick 2)")
    rows = f"rows of the table read from (default {ROWS}, quick {QUICK_ROWS})"
    parser.add_argument("--rows", type=_positive, help=rows)
    parser.add_argument("--data", help="where the servers' directories are made (the disk that is measured)")
    parser.add_argument("--out", default=".", help="directory for bench-*.json, .txt, .svg (default: here)")
    parser.add_argument("--keep", action="store_true", help="keep the servers' directories")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _chosen(names: str | None) -> list[Workload]:
    if not names:
        return list(WORKLOADS)
    known = {w.name: w for w in WORKLOADS}
    wanted = names.split(",")
    if unknown := [n for n in wanted if n not in known]:
        raise SystemExit(f"Error: unknown workloads: {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[n] for n in wanted]


class Bench:
    """Both servers, their data, the rounds."""

    def __init__(self, base: Path, quick: bool, rounds: int | None, seconds: float | None, rows: int | None) -> None:
        self.base = base
        self.quick = quick
        self.rounds = rounds or (2 if quick else 5)
        self.seconds = seconds or (2.0 if quick else 10.0)
        self.rows = rows or (QUICK_ROWS if quick else ROWS)
        self.stock = Stock(base / "stock")
        self.australis = Australis(base / "australis")
        self.results: list[Result] = []
        self.disk: list[dict[str, float]] = []
        self.memory_mb: float | None = None
        self.start_seconds: dict[str, float] = {}
        self._path = "direct"
        self._scale = 0
        self._scripts: dict[str, Path] = {}

    # ------------------------------------------------------------------ set-up

    def run(self, workloads: list[Workload]) -> None:
        self.disk.append(machine.disk_latency(self.base))
        for server in (self.stock, self.australis):
            started = time.monotonic()
            server.start()
            self.start_seconds[server.name] = time.monotonic() - started
        self.memory_mb = machine.proportional_memory(self.australis.supervisor_pid())
        self._load()
        for workload in workloads:
            result = Result(workload, "s" if workload.statement else "1/s")
            self.results.append(result)
            try:
                self._measure(workload, result)
            except (ClientFailed, BenchError, subprocess.TimeoutExpired) as error:
                result.error = " ".join(str(error).split())[-200:]
            print(report.line(result), flush=True)
        self.disk.append(machine.disk_latency(self.base))

    def close(self, *, keep: bool) -> None:
        for server in (self.australis, self.stock):
            try:
                server.stop()
            except BenchError as error:
                print(f"Error: {error}", file=sys.stderr)
        if keep:
            print(f"kept: {self.base}")
        else:
            shutil.rmtree(self.base, ignore_errors=True)

    def _load(self) -> None:
        rows = self.base / "rows.tsv"
        with rows.open("w") as out:
            # k visits every number once, far from the order of id (a unit modulo the number of rows)
            step = next(s for s in (618_033, 618_037, 7_919) if _coprime(s, self.rows))
            for n in range(1, self.rows + 1):
                out.write(f"{n}\t{n * step % self.rows + 1}\tvalue of row {n:0>40}\n")
        for url in (self.stock.url, self.australis.direct_url):
            psql(url, "CREATE TABLE bench_rows (id int PRIMARY KEY, k int NOT NULL, v text NOT NULL)")
            psql(url, "COPY bench_rows FROM STDIN", stdin=rows)
            psql(url, "CREATE INDEX bench_rows_k ON bench_rows (k)")
            psql(url, "CREATE TABLE bench_commits (id int PRIMARY KEY, n bigint NOT NULL)")
            psql(url, "INSERT INTO bench_commits SELECT i, 0 FROM generate_series(1, 10000) i")
            psql(url, "VACUUM ANALYZE bench_rows")
            psql(url, "VACUUM ANALYZE bench_commits")
        self._settle()

    def _tables(self, scale: int) -> None:
        """pgbench's own tables at a scale, on both."""
        if scale == self._scale or not scale:
            return
        wanted = max(1, scale // 10) if self.quick else scale
        for url in (self.stock.url, self.australis.direct_url):
            done = subprocess.run(
                [program("pgbench"), "-i", "-q", "-s", str(wanted)],
                env=environment(url),
                capture_output=True,
                text=True,
                timeout=3600,
                check=False,
            )
            if done.returncode:
                raise BenchError(f"pgbench -i: {done.stderr.strip()[-300:]}")
        self._scale = scale
        self._settle()

    def _settle(self) -> None:
        """Let both write what loading left to be written: nothing of it is to be measured."""
        psql(self.stock.url, "CHECKPOINT")
        self.australis.settle()

    def _script(self, text: str) -> Path:
        if text not in self._scripts:
            path = self.base / f"script-{len(self._scripts)}.sql"
            path.write_text(text)
            self._scripts[text] = path
        return self._scripts[text]

    def _switch(self, path: str) -> dict[str, str]:
        """Have Australis run as the path needs it; more environment for the client."""
        driver = "socket" if path == "socket" else "attached"
        certificate = self._certificate() if path == "tls" else None
        if self.australis.driver != driver or self.australis.certificate != certificate:
            self.australis.restart(driver=driver, certificate=certificate)
        if path != "tls":
            return {}
        return {"PGSSLMODE": "require", "LD_PRELOAD": _libpq_with_tls()}

    def _certificate(self) -> tuple[Path, Path]:
        chain, key = self.base / "tls.crt", self.base / "tls.key"
        if not chain.exists():
            if shutil.which("openssl") is None:
                raise BenchError("TLS needs the program openssl to make a certificate")
            command = [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ]
            command += ["-keyout", str(key), "-out", str(chain)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchError(f"openssl: {done.stderr.strip()[-200:]}")
            key.chmod(0o644)  # read by the unprivileged user; this key guards nothing
        return chain, key

    # ------------------------------------------------------------- measurements

    def _measure(self, workload: Workload, result: Result) -> None:
        extra = self._switch(workload.path)
        self._tables(workload.scale)
        url = self.australis.url if workload.path in ("router", "tls") else self.australis.direct_url
        for number in range(self.rounds):
            sides = [("stock", self.stock.url, {}), ("australis", url, extra)]
            for name, target, more in sides if number % 2 == 0 else reversed(sides):
                mine = 0 if name == "stock" else 1
                values = result.stock if name == "stock" else result.australis
                if workload.statement:
                    values.append(self._time(workload, target))
                else:
                    figures = self._rate(workload, target, more, result.background[mine])
                    values.append(figures.tps)
                    result.latency_ms[mine].append(figures.latency_ms)
                    result.abort_share[mine].append(figures.abort_share)
            a, b = result.stock[-1], result.australis[-1]
            result.ratios.append(a / b if workload.statement else b / a)

    def _time(self, workload: Workload, url: str) -> float:
        if workload.prepare:
            psql(url, workload.prepare)
        started = time.perf_counter()
        psql(url, workload.statement, stdin=self.base / "rows.tsv" if workload.data else None)
        return time.perf_counter() - started

    def _rate(self, workload: Workload, url: str, extra: dict[str, str], achieved: list[float]) -> Figures:
        settings = {"PGOPTIONS": workload.options} if workload.options else {}
        client = Client(program("pgbench"), environment(url, {**extra, **settings}))
        variables = {} if workload.builtin else {"rows": self.rows}
        script = None if workload.builtin else self._script(workload.script)
        command = client.command(
            script,
            clients=workload.clients,
            seconds=self.seconds,
            builtin=workload.builtin or None,
            variables=variables,
        )
        if not workload.load:
            return client.run(command, self.seconds)
        beside = client.background(
            client.command(self._script(COMMIT), clients=8, seconds=self.seconds + 1, rate=COMMITS_PER_SECOND)
        )
        try:
            return client.run(command, self.seconds)
        finally:
            out, err = beside.communicate(timeout=self.seconds + 120)
            if beside.returncode:
                raise ClientFailed(f"the commits beside failed: {err.strip()[-200:]}")
            achieved.append(parse(out).tps)

    def document(self) -> dict[str, object]:
        """Everything, for JSON."""
        return {
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": machine.description(),
            "postgresql": psql_version(),
            "stock_settings": STOCK_SETTINGS,
            "rows": self.rows,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "quick": self.quick,
            "disk_latency_ms": {"before": self.disk[0], "after": self.disk[-1]},
            "idle_memory_mb": self.memory_mb,
            "idle_memory_limit_mb": MEMORY_LIMIT_MB,
            "first_start_seconds": self.start_seconds,
            "workloads": [
                {
                    **asdict(r),
                    "ratio": r.ratio,
                    "extra_ms": r.extra_ms,
                    "reached": r.reached,
                }
                for r in self.results
            ],
        }


def psql_version() -> str:
    done = subprocess.run([program("postgres"), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def _libpq_with_tls() -> str:
    """The wheel's libpq has no TLS; psycopg's binary package brings one that has."""
    import importlib.util

    spec = importlib.util.find_spec("psycopg_binary")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for library in Path(place).parent.glob("psycopg_binary.libs/libpq-*.so*"):
            return str(library)
    raise BenchError("TLS needs a libpq with OpenSSL: pip install 'psycopg[binary]'")
