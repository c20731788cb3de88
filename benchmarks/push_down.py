"""What filters, columns, limits and reading ahead at storage are worth.

    python -m benchmarks.push_down [attached|socket]

Each query runs with `australis.push_down` off and on in turn, in one session and process;
printed are the medians and their ratio.
AUSTRALIS_TEST_TOPOLOGY measures a cluster of many processes instead.
"""

from __future__ import annotations

import statistics
import sys
import time

from tests.fixtures.servers import australis_server

ROWS = 200_000
QUERIES = [
    ("1 of 1,000 rows, by an int", "SELECT sum(amount) FROM t WHERE grp = 7"),
    ("1 of 1,000 rows, all columns", "SELECT * FROM t WHERE grp = 7"),
    ("no row, by a text", "SELECT id FROM t WHERE name = 'nobody'"),
    ("half of the rows, three columns", "SELECT count(amount), max(grp) FROM t WHERE grp < 500"),
    ("all rows, one column of wide rows", "SELECT sum(amount) FROM t"),
    ("all rows, all columns", "SELECT count(t.*::text) FROM t"),
    ("count(*)", "SELECT count(*) FROM t"),
    ("10% of the keys, 1 of 1,000", "SELECT sum(amount) FROM t WHERE id BETWEEN 1000 AND 21000 AND grp = 7"),
    ("LIMIT 1", "SELECT * FROM t LIMIT 1"),
    ("LIMIT 1 of 1 in 1,000", "SELECT * FROM t WHERE grp = 999 LIMIT 1"),
    ("LIMIT 1000", "SELECT * FROM t LIMIT 1000"),
]


def main() -> None:
    driver = sys.argv[1] if len(sys.argv) > 1 else None
    with australis_server(driver=driver) as server, server.connect() as connection:

        def execute(statement: str) -> float:
            before = time.perf_counter()
            result = connection.execute(statement.encode())
            if result.description:
                result.fetchall()
            return time.perf_counter() - before

        execute("CREATE TABLE t (id int PRIMARY KEY, name text, grp int, note text, amount int8)")
        execute(
            "INSERT INTO t SELECT i, 'name ' || i, i % 1000, repeat(md5(i::text), 8), i"
            f" FROM generate_series(1, {ROWS}) i"
        )
        execute("ANALYZE t")
        execute("SET max_parallel_workers_per_gather = 0")
        print(
            f"| {driver or 'default'}: {ROWS} rows of about 300 bytes | off, ms | on, ms | off / on |",
            "|---|---|---|---|",
            sep="\n",
        )
        for what, query in QUERIES:
            taken: dict[str, list[float]] = {"off": [], "on": []}
            for _ in range(7):
                for setting, times in taken.items():
                    execute(f"SET australis.push_down = {setting}")
                    times.append(execute(query))
            off, on = (statistics.median(times) * 1000 for times in taken.values())
            print(f"| {what} | {off:.1f} | {on:.1f} | {off / on:.1f} |", flush=True)


if __name__ == "__main__":
    main()
