"""`python -m tests.steady --minutes N --rate R`: a steady load, and whether anything grows under it (A8).

A fresh cluster with a short retention and a small snapshot threshold; pgbench at a bounded rate updates, inserts and
deletes (the number of rows stays the same), beside it a reader that holds its snapshot for a while now and then, and a
session that makes, fills and drops tables (so that the catalogs of the query processor have something to forget).
Every few seconds a sample: disk by directory, proportional memory of all processes, old versions, lag. In the end
`bounds.judge` says what grew; exit status 1 then.

What must hold: the load itself is bounded (pgbench's --rate; a helper that is late skips, it never queues). If a helper
or pgbench fails, the run ends with its message.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from australis.control_plane.report import memory
from tests.fixtures.postgres import ProgramsMissing, program
from tests.fixtures.servers import AustralisCluster, CannotStart, Server, temporary_directory
from tests.steady.bounds import HEADER, Sample, judge, summary

ACCOUNTS = 20_000
SCHEMA = f"""
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, touched timestamptz, note text);
CREATE INDEX account_touched ON account (touched);
CREATE TABLE event (id bigserial PRIMARY KEY, account int NOT NULL, delta int, at timestamptz DEFAULT now(), pad text);
CREATE INDEX event_account ON event (account);
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent SELECT generate_series(1, 500);
INSERT INTO account SELECT i, 0, now(), repeat('x', 60) FROM generate_series(1, {ACCOUNTS}) i;
INSERT INTO event (account, delta, pad)
  SELECT 1 + i % {ACCOUNTS}, 0, repeat('y', 60) FROM generate_series(1, {ACCOUNTS}) i;
"""
# One row of `event` in, one out: the oldest of this client's part.
SCRIPT = f"""
\\set account random(1, {ACCOUNTS})
\\set delta random(-500, 500)
BEGIN;
UPDATE account SET balance = balance + :delta, touched = now() WHERE id = :account;
INSERT INTO event (account, delta, pad) VALUES (:account, :delta, repeat('z', 60));
DELETE FROM event WHERE id = (SELECT id FROM event WHERE account = :account ORDER BY id LIMIT 1);
COMMIT;
"""
# Keys to another table than the load's: a foreign key changes both sides, and readers of both would start again.
CHURN = (
    "CREATE TABLE churn (id int PRIMARY KEY, a text DEFAULT 'x', b int REFERENCES parent)",
    "CREATE INDEX churn_a ON churn (a)",
    "INSERT INTO churn SELECT i, repeat('c', 20), i FROM generate_series(1, 500) i",
    "ALTER TABLE churn ADD COLUMN c int",
    "TRUNCATE churn",
    "DROP TABLE churn",
    "CREATE TEMP TABLE scratch ON COMMIT DROP AS SELECT i FROM generate_series(1, 100) i",
)
CATALOG_BYTES = """
SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c
WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'
"""
CHURNS_PER_SESSION = 100
SERIALIZATION_FAILURES = ("40001", "40P01")


@dataclass
class Load:
    """Helpers beside pgbench; each in a thread that ends when `stop` is set."""

    server: Server
    stop: threading.Event = field(default_factory=threading.Event)
    reader_since: float = 0.0
    errors: list[str] = field(default_factory=list)
    schema_changes: int = 0
    aborted: int = 0

    def guard(self, name: str, body: object) -> threading.Thread:
        """Run a method in a thread; what it raises ends the run."""

        def run() -> None:
            try:
                assert callable(body)
                body()
            except (psycopg.Error, AssertionError) as error:
                self.errors.append(f"{name}: {type(error).__name__}: {error}")
                self.stop.set()

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def reader(self, every: float, holds: float) -> None:
        """Hold one snapshot for a while; what it reads must not change meanwhile."""
        with self.server.connect() as connection:
            while not self.stop.wait(every):
                with connection.transaction():
                    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    self.reader_since = time.monotonic()
                    query = "SELECT count(*), sum(balance) FROM account"
                    first = connection.execute(query).fetchone()
                    self.stop.wait(holds)
                    assert connection.execute(query).fetchone() == first, "a snapshot changed while it was open"
                self.reader_since = 0.0

    def churn(self, every: float) -> None:
        """Make and drop tables, in a new session now and then: PostgreSQL keeps a plan per foreign key it has seen."""
        while not self.stop.is_set():
            with self.server.connect() as connection:
                self._churn(connection, every)

    def _churn(self, connection: psycopg.Connection[tuple[object, ...]], every: float) -> None:
        for _ in range(CHURNS_PER_SESSION):
            if self.stop.wait(every):
                break
            for statement in CHURN:
                for _ in range(100):
                    try:
                        connection.execute(statement)
                        self.schema_changes += 1
                        break
                    except psycopg.Error as error:
                        if error.sqlstate not in SERIALIZATION_FAILURES:
                            raise
                        self.aborted += 1


def directory_size(path: Path) -> int:
    """Bytes on disk (holes don't count)."""
    total = 0
    for entry in path.rglob("*"):
        try:
            total += entry.lstat().st_blocks * 512
        except OSError:  # files come and go
            continue
    return total


def look(
    cluster: AustralisCluster, monitor: psycopg.Connection[tuple[object, ...]], load: Load, began: float
) -> Sample:
    """Take one sample. Raises CannotStart when the cluster says that something is wrong."""
    done = cluster.command("status", "--json")
    if done.returncode:
        raise CannotStart(f"australis status: {done.stdout.strip()[-300:]} {done.stderr.strip()[-300:]}")
    status = json.loads(done.stdout)
    commit, storage = status["commit"], status["storage"]
    for answer in (commit, storage):
        if "error" in answer:
            raise CannotStart(f"a service does not answer: {answer['error']}")
    (catalog,) = monitor.execute(CATALOG_BYTES).fetchone() or (0,)
    since = load.reader_since
    return Sample(
        time=time.monotonic() - began,
        commits=int(commit["commits"]),
        journal=directory_size(cluster.data / "journal"),
        storage=directory_size(cluster.data / "storage"),
        snapshots=directory_size(cluster.data / "snapshots"),
        query_processor=directory_size(cluster.data / "query_processor"),
        pss=sum(memory([int(status["pid"])]).values()) << 10,
        history=int(storage["history_entries"]),
        rows=int(storage["main_entries"]),
        lag=float(storage["lag"]),
        catalog=int(str(catalog)),
        reader=time.monotonic() - since if since else 0.0,
    )


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """The whole run; returns the exit status."""
    settings = {"retention": arguments.retention, "snapshot_mb": arguments.snapshot_mb}
    cluster = AustralisCluster(directory, settings=settings)
    server = cluster.start()
    samples: list[Sample] = []
    try:
        with server.connect() as connection:
            connection.execute(SCHEMA)
        script = directory / "steady.sql"
        script.write_text(SCRIPT)
        seconds = round(arguments.minutes * 60)
        command = [str(program("pgbench")), "-n", "-M", "prepared", "-c", str(arguments.clients), "-j", "1"]
        command += ["-T", str(seconds), "-R", str(arguments.rate), "--max-tries=50", "-f", str(script)]
        output = directory / "pgbench.out"
        load = Load(server)
        threads = [
            load.guard("reader", lambda: load.reader(arguments.reader_every, arguments.reader_holds)),
            load.guard("churn", lambda: load.churn(arguments.churn_every)),
        ]
        with output.open("w") as out:
            bench = subprocess.Popen(command, env=server.environment(), stdout=out, stderr=subprocess.STDOUT)
        try:
            with server.connect() as monitor:
                began = time.monotonic()
                for number in itertools.count():
                    sample = look(cluster, monitor, load, began)
                    samples.append(sample)
                    if number % 20 == 0:
                        print(HEADER)
                    print(sample.row(), flush=True)
                    next_at = began + (number + 1) * arguments.sample
                    if load.stop.wait(max(0.0, next_at - time.monotonic())) or bench.poll() is not None:
                        break
        finally:
            load.stop.set()
            if bench.poll() is None:
                bench.terminate()
            bench.wait(30)
            for thread in threads:
                thread.join(60)
        print(output.read_text().strip()[-900:])
        print(f"{load.schema_changes} statements of DDL, {load.aborted} tried again")
        complaints = load.errors + judge(samples, arguments.snapshot_mb << 20)
        if bench.returncode:
            complaints.append(f"pgbench ended with {bench.returncode}")
    finally:
        cluster.stop()
    print(summary(samples))
    for complaint in complaints:
        print(f"NOT STEADY: {complaint}")
    if not complaints:
        print("steady: nothing grew")
    return 1 if complaints else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.steady", description="Does anything grow under a load?")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--rate", type=float, default=300, help="transactions per second")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--retention", type=int, default=10, help="seconds that old versions are kept")
    parser.add_argument("--snapshot-mb", type=int, default=32, help="journal between two snapshots")
    parser.add_argument("--sample", type=float, default=5, help="seconds between two samples")
    parser.add_argument("--reader-every", type=float, default=60, help="seconds between two long readers")
    parser.add_argument("--reader-holds", type=float, default=15, help="seconds that one holds its snapshot")
    parser.add_argument("--churn-every", type=float, default=3, help="seconds between two rounds of DDL")
    parser.add_argument("--data", help="use this directory and keep it")
    arguments = parser.parse_args()
    with temporary_directory("steady") as scratch:
        try:
            return run(arguments, Path(arguments.data).resolve() if arguments.data else scratch)
        except (CannotStart, ProgramsMissing, psycopg.Error) as error:
            print(error, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
