"""`python -m tests.pool`: from an idle cluster without query processors to the first answer, by phase (acceptance B9).

    warm      the data directory of the one that was stopped is there
    copied    it is gone: a copy of the newest image
    killed    it was killed: PostgreSQL's crash recovery first

Each round waits until no PostgreSQL runs, connects through the router and runs a query. `connect` and `query` are what
the client measures; the phases in between are the host's: files (data directory), process (fork and exec), server
(until it lets sessions in), catalogs (schema changes that it has to replay), session (the rest: log-in of the client).
Status 1 if the median of a kind is not below the limit. Copies do not count: they are made when a pool grows, which no
connection waits for, and when a data directory was lost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

from australis.query_processor.launcher import REFRESH_CHANGES
from tests.fixtures.servers import temporary_directory
from tests.pool.conftest import PoolCluster, eventually, start

PHASES = ("files", "process", "server", "catalogs", "session", "connect", "query")
Prepare = Callable[[PoolCluster], None]


def warm(pool: PoolCluster) -> None:
    """Nothing to prepare."""


def copied(pool: PoolCluster) -> None:
    # what is done with its files while it is stopped comes to an end first
    eventually(lambda: pool.logged("service.ended", "query_processor.clean")[-1]["event"] != "service.ended", "clean")
    if pool.state()["processors"][0]["change"] > REFRESH_CHANGES:
        images = pool.cluster.data / "query_processor"
        eventually(lambda: list(images.glob("image-*.tar")), "an image of its catalogs")
    shutil.rmtree(pool.directory(0))


def killed(pool: PoolCluster) -> None:
    pool.connect().close()
    pool.wait_for("ready")
    postmaster = pool.postmaster(0)
    assert postmaster is not None
    os.kill(postmaster, signal.SIGKILL)


KINDS: dict[str, Prepare] = {"warm": warm, "copied": copied, "killed": killed}


def measure(pool: PoolCluster, prepare: Prepare) -> dict[str, float]:
    """Milliseconds by phase of one round."""
    pool.wait_for_none()
    prepare(pool)
    pool.wait_for_none()
    begin = time.perf_counter()
    with pool.router.connect() as session:
        connected = time.perf_counter()
        session.execute("SELECT count(*) FROM few").fetchone()
        answered = time.perf_counter()
    phases: dict[str, float] = dict(pool.state()["processors"][0]["phases"])
    connect = (connected - begin) * 1000
    phases |= {"session": max(connect - sum(phases.values()), 0.0), "connect": connect}
    return phases | {"query": (answered - connected) * 1000}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.pool", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--changes", type=int, default=0, help="schema changes to make before")
    parser.add_argument("--limit", type=float, default=1000.0, help="milliseconds")
    options = parser.parse_args()
    slow = []
    print(f"{'kind':<8} {'':<7}" + "".join(f"{phase:>10}" for phase in PHASES) + f"{'together':>10}   (milliseconds)")
    with temporary_directory("pool") as directory:
        pool = start(directory, {"min": 0, "max": 1, "idle": 0.2})
        try:
            with pool.connect() as session:
                session.execute("CREATE TABLE few (id int PRIMARY KEY)")
                session.execute("INSERT INTO few SELECT generate_series(1, 100)")
                for change in range(options.changes):
                    session.execute(f"CREATE TABLE t{change} (id int PRIMARY KEY, name text)")
            for kind, prepare in KINDS.items():
                columns: dict[str, list[float]] = defaultdict(list)
                for _ in range(options.rounds):
                    phases = measure(pool, prepare)
                    for phase, taken in phases.items():
                        columns[phase].append(taken)
                    columns["together"].append(phases["connect"] + phases["query"])
                for name, summary in (("median", statistics.median), ("max", max)):
                    row = [summary(columns[phase]) for phase in (*PHASES, "together")]
                    print(f"{kind:<8} {name:<7}" + "".join(f"{taken:>10.0f}" for taken in row), flush=True)
                if prepare is not copied and statistics.median(columns["together"]) >= options.limit:
                    slow.append(kind)
        finally:
            pool.stop()
    print(f"{options.rounds} rounds each, load of the machine {os.getloadavg()[0]:.1f}")
    for kind in slow:
        print(f"TOO SLOW: {kind} is not below {options.limit:.0f} ms")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
