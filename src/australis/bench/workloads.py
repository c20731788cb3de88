"""What is measured: each workload with the ratio (Australis to PostgreSQL) it must reach.

A rate is transactions per second by pgbench; a duration is the seconds of one statement, its ratio PostgreSQL's time to
Australis's (so that more is better everywhere). Floors are those of the issue that built the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Path = Literal["direct", "router", "tls", "socket"]


@dataclass(frozen=True)
class Workload:
    """One line of the report."""

    name: str
    title: str
    floor: float | None
    script: str = ""  # of pgbench
    builtin: str = ""  # or one of pgbench's own
    scale: int = 0  # needs pgbench's tables at this scale
    clients: int = 8
    path: Path = "direct"
    load: bool = False  # while 1,000 commits a second run
    statement: str = ""  # a duration instead of a rate
    prepare: str = ""  # before each timed statement
    data: bool = False  # the statement reads the rows from its input
    most_extra_ms: float | None = None  # floor on latency: PostgreSQL's plus this
    options: str = ""  # server settings of the client's sessions, on both


POINT = "\\set id random(1, :rows)\nSELECT v FROM bench_rows WHERE id = :id;\n"
SECONDARY = "\\set k random(1, :rows)\nSELECT id, v FROM bench_rows WHERE k = :k;\n"
RANGE = (
    "\\set id random(1, :rows - 1000)\nSELECT sum(k), count(v) FROM bench_rows WHERE id BETWEEN :id AND :id + 999;\n"
)
COUNT = "SELECT count(*) FROM bench_rows;\n"
SUM = "SELECT sum(k) FROM bench_rows;\n"
COMMIT = "\\set id random(1, 10000)\nUPDATE bench_commits SET n = n + 1 WHERE id = :id;\n"
ONE_PROCESS = "-c max_parallel_workers_per_gather=0"
RECREATE = (
    "DROP TABLE IF EXISTS bench_copy; CREATE TABLE bench_copy (id int PRIMARY KEY, k int NOT NULL, v text NOT NULL)"
)

WORKLOADS: tuple[Workload, ...] = (
    Workload("copy", "COPY of the rows", 0.25, statement="COPY bench_copy FROM STDIN", prepare=RECREATE, data=True),
    Workload(
        "create-index",
        "CREATE INDEX on the rows",
        0.2,
        statement="CREATE INDEX bench_new ON bench_rows (k, v)",
        prepare="DROP INDEX IF EXISTS bench_new",
    ),
    Workload("point", "point SELECT by key, 8 clients", 0.8, POINT),
    Workload("point-1", "point SELECT by key, 1 client", None, POINT, clients=1),
    Workload("point-router", "point SELECT through the router", 0.7, POINT, path="router"),
    Workload("secondary", "secondary-index look-up", 0.6, SECONDARY),
    Workload("range", "range of 1,000 rows by index", 0.7, RANGE),
    Workload("count", "count(*)", 0.5, COUNT, clients=1),
    Workload("sum", "sum()", 0.5, SUM, clients=1),
    # PostgreSQL's own default is to read with several processes; this is one against one
    Workload("count-one", "count(*), no parallel workers", None, COUNT, clients=1, options=ONE_PROCESS),
    Workload("sum-one", "sum(), no parallel workers", None, SUM, clients=1, options=ONE_PROCESS),
    Workload("point-load", "point SELECT beside 1,000 commits/s", 0.6, POINT, load=True),
    Workload("secondary-load", "secondary look-up beside 1,000 commits/s", 0.6, SECONDARY, load=True),
    Workload("range-load", "range of 1,000 beside 1,000 commits/s", 0.6, RANGE, load=True),
    Workload("count-load", "count(*) beside 1,000 commits/s", 0.6, COUNT, clients=1, load=True),
    Workload("commit-1", "durable one-row UPDATE, 1 client", None, COMMIT, clients=1, most_extra_ms=0.5),
    Workload("commit-8", "durable one-row UPDATE, 8 clients", None, COMMIT),
    Workload("commit-32", "durable one-row UPDATE, 32 clients", None, COMMIT, clients=32),
    Workload("simple-update", "pgbench -N, scale 20, 8 clients", 0.6, builtin="simple-update", scale=20),
    Workload("tpcb", "TPC-B-like, scale 50, 8 clients", 0.5, builtin="tpcb-like", scale=50),
    Workload("point-tls", "point SELECT through the router, TLS", 0.3, POINT, path="tls"),
    Workload("point-socket", "point SELECT, socket driver", 0.35, POINT, path="socket"),
    Workload("range-socket", "range of 1,000 rows, socket driver", None, RANGE, path="socket"),
)

MEMORY_LIMIT_MB = 250.0
