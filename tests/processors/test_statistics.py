"""ANALYZE on one query processor is known on all, without being in anybody's way."""

from __future__ import annotations

import os
import signal
import threading
import time

import psycopg

from tests.processors.conftest import COUNT, Connection, Processors

PATIENCE_SECONDS = 60.0

Statistics = tuple[object, ...]


def statistics(session: Connection, table: str) -> Statistics:
    """Everything that ANALYZE leaves, and what a plan makes of it."""
    columns = session.execute(
        "SELECT tablename, attname, inherited, null_frac, avg_width, n_distinct, most_common_vals::text,"
        " most_common_freqs, histogram_bounds::text, correlation, most_common_elems::text, range_bounds_histogram::text"
        f" FROM pg_stats WHERE tablename LIKE '{table}%' ORDER BY 1, 2, 3"
    ).fetchall()
    extended = session.execute(
        "SELECT statistics_name, inherited, n_distinct::text, dependencies::text, most_common_vals::text"
        f" FROM pg_stats_ext WHERE tablename = '{table}' ORDER BY 1, 2"
    ).fetchall()
    sizes = session.execute(
        f"SELECT relname, relpages, reltuples FROM pg_class WHERE relname LIKE '{table}%' AND relkind <> 'p' ORDER BY 1"
    ).fetchall()
    plans = [
        session.execute(f"EXPLAIN SELECT * FROM {table} WHERE {where}").fetchall()
        for where in ("true", "a = 3", "a < 50 AND b > 'b3'", "a = 7 AND c = 7")
    ]
    return columns, extended, sizes, plans


def wait_for(processors: Processors, number: int, table: str, wanted: Statistics) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with processors.connect(number) as session:
            found = statistics(session, table)
        if found == wanted:
            return
        assert time.monotonic() < deadline, (found, wanted)
        time.sleep(0.05)  # another process works; there is nothing to wait on


def fill(session: Connection, table: str) -> None:
    session.execute(f"DROP TABLE IF EXISTS {table} CASCADE")
    session.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, a int, b text, c int, d int[])")
    session.execute(f"CREATE INDEX {table}_upper ON {table} (upper(b))")
    session.execute(f"CREATE STATISTICS {table}_ac ON a, c FROM {table}")
    session.execute(
        f"INSERT INTO {table} SELECT g, g % 100, 'b' || g, g % 100, ARRAY[g % 5] FROM generate_series(1, 5000) g"
    )


def test_analyze_is_known_everywhere(processors: Processors) -> None:
    for number in range(COUNT):
        with processors.connect(number) as session:
            fill(session, "known")
            session.execute("ANALYZE known")
            wanted = statistics(session, "known")
        assert wanted[0] and wanted[1]
        for other in range(COUNT):
            wait_for(processors, other, "known", wanted)
        with processors.connect((number + 1) % COUNT) as session:
            session.execute("UPDATE known SET a = 3")
            session.execute("ANALYZE known (a)")  # the other columns stay as they are
            wanted = statistics(session, "known")
        for other in range(COUNT):
            wait_for(processors, other, "known", wanted)
            with processors.connect(other) as session:
                assert session.execute(
                    "SELECT last_analyze IS NOT NULL FROM pg_stat_user_tables WHERE relname = 'known'"
                ).fetchone() == (True,)


def test_partitions(processors: Processors) -> None:
    with processors.connect(0) as session:
        session.execute("DROP TABLE IF EXISTS parted")
        session.execute("CREATE TABLE parted (id int, a int, b text, c int) PARTITION BY RANGE (id)")
        session.execute("CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000)")
        session.execute("CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (1000) TO (2000)")
        session.execute("INSERT INTO parted SELECT g, g % 7, 'b' || g, g FROM generate_series(1, 1999) g")
        session.execute("ANALYZE parted")
        wanted = statistics(session, "parted")
    assert {row[:1] for row in wanted[0]} == {("parted",), ("parted_1",), ("parted_2",)}  # type: ignore[attr-defined]
    for number in range(COUNT):
        wait_for(processors, number, "parted", wanted)


def test_a_restarted_one_has_them(processors: Processors) -> None:
    with processors.connect(0) as session:
        fill(session, "lasting")
        session.execute("ANALYZE lasting")
        wanted = statistics(session, "lasting")
    before = processors.postmaster(1)
    os.kill(before, signal.SIGKILL)
    with processors.connect(0) as session:
        session.execute("UPDATE lasting SET c = 1")
        session.execute("ANALYZE lasting")
        wanted = statistics(session, "lasting")
    processors.wait_restarted(1, before)
    wait_for(processors, 1, "lasting", wanted)


def test_nobody_is_in_the_way(processors: Processors) -> None:
    """Writers, readers with old snapshots and schema changes elsewhere do not notice."""
    with processors.connect(0) as session:
        fill(session, "busy")
        fill(session, "side")
    stop = threading.Event()
    errors: list[str] = []
    counts = [0, 0]

    def analyze() -> None:
        with processors.connect(0) as session:
            while not stop.is_set():
                session.execute("ANALYZE busy")
                counts[0] += 1

    def change() -> None:
        with processors.connect(1) as session:
            while not stop.is_set():
                session.execute(f"CREATE TABLE passing_by_{counts[1]} (id int)")
                session.execute(f"DROP TABLE passing_by_{counts[1]}")
                counts[1] += 1

    def guard(body: object) -> None:
        try:
            body()  # type: ignore[operator]
        except psycopg.Error as error:
            errors.append(f"{error.sqlstate} {error}")

    threads = [threading.Thread(target=guard, args=(body,)) for body in (analyze, change)]
    for thread in threads:
        thread.start()
    with processors.connect(2) as writer, processors.connect(1) as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        total = reader.execute("SELECT count(*), sum(a) FROM side").fetchone()
        for turn in range(200):
            with writer.transaction():
                writer.execute("UPDATE busy SET a = a + 1 WHERE id = %s", (turn + 1,))
                writer.execute("INSERT INTO busy VALUES (%s, 1, 'new', 1)", (10_000 + turn,))
            if turn % 20 == 0:
                assert reader.execute("SELECT count(*), sum(a) FROM side").fetchone() == total
                reader.execute("SELECT count(*) FROM busy")
        reader.execute("COMMIT")
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert counts[0] > 5 and counts[1] > 5
    with processors.connect(0) as session:
        session.execute("ANALYZE busy")
        wanted = statistics(session, "busy")
    for number in range(COUNT):
        wait_for(processors, number, "busy", wanted)


def test_columns_that_change(processors: Processors) -> None:
    """What was gathered for a column is not taken for another one; what is dropped leaves nothing."""
    with processors.connect(0) as session:
        fill(session, "turned")
        session.execute("ANALYZE turned")
        session.execute("ALTER TABLE turned ALTER COLUMN a TYPE text")
        session.execute("ALTER TABLE turned DROP COLUMN d")
    before = processors.postmaster(2)
    os.kill(before, signal.SIGKILL)
    processors.wait_restarted(2, before)
    with processors.connect(2) as session:
        session.execute("SELECT * FROM turned WHERE a = '3'")
        session.execute("ANALYZE turned")
        session.execute("DROP TABLE turned")
        session.execute("CREATE DATABASE passing")
        with processors.server(2).database("passing").connect() as other:
            other.execute("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g")
            other.execute("ANALYZE t")
        session.execute("DROP DATABASE passing")
    with processors.connect(1) as session:
        assert session.execute("SELECT count(*) FROM pg_stats WHERE tablename = 'turned'").fetchone() == (0,)
