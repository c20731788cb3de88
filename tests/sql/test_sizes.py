"""Sizes, statistics and EXPLAIN of what lies in storage.

Must hold: figures are there as soon as a load is committed (storage may still be applying it), and inside the
transaction that loads; EXPLAIN shows storage's work only when ANALYZE and BUFFERS are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import psycopg
import pytest

from tests.fixtures.servers import Server

ROWS = 5000
Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def connection(australis: Server) -> Iterator[Connection]:
    with australis.connect() as connected:
        connected.execute("DROP TABLE IF EXISTS sized, sized_parent")
        connected.execute("CREATE TABLE sized (id int PRIMARY KEY, grp int, note text)")
        connected.execute("CREATE INDEX sized_grp ON sized (grp)")
        connected.execute(f"INSERT INTO sized SELECT i, i % 10, 'note ' || i FROM generate_series(1, {ROWS}) i")
        yield connected
        connected.execute("DROP TABLE IF EXISTS sized, sized_parent")


def _value(connection: Connection, query: str) -> object:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def _number(connection: Connection, query: str) -> int:
    value = _value(connection, query)
    assert isinstance(value, int)
    return value


def _plan(connection: Connection, query: str, options: str) -> str:
    return "\n".join(str(row[0]) for row in connection.execute(f"EXPLAIN ({options}) {query}"))


def test_sizes_are_those_of_storage(connection: Connection) -> None:
    table = _number(connection, "SELECT pg_relation_size('sized')")
    index = _number(connection, "SELECT pg_relation_size('sized_grp')")
    key = _number(connection, "SELECT pg_relation_size('sized_pkey')")
    page = 8192
    assert table >= ROWS * 20
    assert index >= ROWS * 20
    assert key == page
    assert all(size % page == 0 for size in (table, index))
    assert _number(connection, "SELECT pg_table_size('sized')") == table
    assert _number(connection, "SELECT pg_indexes_size('sized')") == index + key
    assert _number(connection, "SELECT pg_total_relation_size('sized')") == table + index + key
    assert _number(connection, "SELECT pg_relation_size('sized', 'fsm')") == 0
    assert _number(connection, "SELECT pg_database_size(current_database())") > table + index
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="invalid fork name"):
        connection.execute("SELECT pg_relation_size('sized', 'nope')")


def test_sizes_of_what_is_not_in_storage(connection: Connection) -> None:
    connection.execute("CREATE TABLE sized_parent (a int PRIMARY KEY) PARTITION BY RANGE (a)")
    connection.execute("CREATE TEMP TABLE sized_temp AS SELECT generate_series(1, 1000) AS a")
    assert _number(connection, "SELECT pg_total_relation_size('sized_parent')") == 0
    assert _number(connection, "SELECT pg_relation_size('sized_temp')") > 0
    assert _number(connection, "SELECT pg_relation_size('pg_class')") > 0
    assert _value(connection, "SELECT pg_relation_size(1)") is None


def test_explain_shows_trips_rows_and_bytes(connection: Connection) -> None:
    query = "SELECT * FROM sized WHERE id BETWEEN 1 AND 100"
    plan = _plan(connection, query, "ANALYZE, BUFFERS")
    found = re.search(r"Storage: trips=(\d+) rows=(\d+) bytes=(\d+) kB", plan)
    assert found is not None, plan
    assert int(found[1]) >= 1
    assert int(found[2]) == 100
    assert int(found[3]) >= 1
    assert "Storage" not in _plan(connection, query, "ANALYZE, BUFFERS OFF")
    assert "Storage" not in _plan(connection, query, "BUFFERS")
    data = _value(connection, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}")
    plans = json.loads(data) if isinstance(data, str) else data
    assert isinstance(plans, list)
    assert plans[0]["Plan"]["Storage Rows"] == 100


def test_rows_of_the_own_transaction_take_no_trip(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("UPDATE sized SET note = 'mine' WHERE id = 1")
        plan = _plan(connection, "SELECT * FROM sized WHERE id = 1", "ANALYZE, BUFFERS")
    assert "Storage: trips=0 rows=0 bytes=0 kB" in plan


def test_vacuum_analyze_right_after_a_load(connection: Connection) -> None:
    for _ in range(5):
        connection.execute("TRUNCATE sized")
        connection.execute(f"INSERT INTO sized SELECT i, i % 10, 'n' FROM generate_series(1, {ROWS}) i")
        connection.execute("VACUUM ANALYZE sized")
        assert _value(connection, "SELECT reltuples FROM pg_class WHERE relname = 'sized'") == ROWS
        assert _number(connection, "SELECT count(*) FROM pg_stats WHERE tablename = 'sized'") == 3


def test_estimates_in_the_loading_transaction(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("CREATE TABLE sized_parent (a int PRIMARY KEY, b int)")
        connection.execute(f"INSERT INTO sized_parent SELECT i, i % 10 FROM generate_series(1, {ROWS}) i")
        connection.execute("ANALYZE sized_parent")
        plan = _plan(connection, "SELECT * FROM sized_parent WHERE b = 3", "COSTS")
        rows = re.search(r"rows=(\d+)", plan)
        assert rows is not None
        assert ROWS // 20 < int(rows[1]) < ROWS // 5
        assert "Index Scan using sized_parent_pkey" in _plan(
            connection, "SELECT * FROM sized_parent WHERE a = 3", "COSTS"
        )
