"""Filters, columns, limits and reading ahead at storage, next to stock PostgreSQL.

Must hold: whatever storage is asked to drop or to leave out, answers are those of PostgreSQL and those without it
(australis.push_down = off), also for rows that the transaction has changed. Storage sends less, or it is for nothing.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.types.string import TextLoader

from australis.control_plane.topology import DATABASE, FIRST_RELATION, first_map, replica_name
from australis.keyspace import KEYSPACE_END
from australis.partition_map import PartitionMap, Range
from tests.fixtures import plane
from tests.fixtures.servers import Server, australis_server

Connection = psycopg.Connection[tuple[object, ...]]

COLUMNS = {
    "a": ("int2", ["-5", "0", "1", "7", "32767"]),
    "b": ("int4", ["-2147483648", "0", "1", "7", "100000"]),
    "c": ("int8", ["-9223372036854775808", "0", "7", "5000000000"]),
    "d": ("bool", ["true", "false"]),
    "e": ("text", ["''", "'a'", "'ab'", "'b'", "repeat('x', 150)", "repeat('long', 600)", "'ä'"]),
    "f": ("date", ["'2020-01-01'", "'2024-02-29'", "'-infinity'", "'infinity'"]),
    "g": ("timestamptz", ["'2020-01-01 00:00+00'", "'2024-02-29 12:34:56.789+00'", "'infinity'"]),
    "h": ("float8", ["'NaN'", "'-0'", "0", "1.5", "'-Infinity'"]),
    "i": ("float4", ["'NaN'", "0.1", "1.5", "-3"]),
    "j": ("uuid", ["'00000000-0000-0000-0000-000000000001'", "'ffffffff-0000-0000-0000-000000000001'"]),
    "k": ("varchar(20)", ["''", "'a'", "'B'", "'zz top'"]),
    "l": ("bytea", ["'\\x'", "'\\x00ff'", "'\\x01'"]),
    "m": ("timestamp", ["'2020-01-01 00:00'", "'1999-12-31 23:59:59'"]),
    "n": ("numeric", ["0", "1.50", "'NaN'", "-12345678901234567890.5"]),
    "o": ("char(5)", ["'a'", "'b '", "''"]),
    "p": ("oid", ["0", "1", "4294967295"]),
}
KINDS = {"a": ("int2", "int4", "int8"), "b": ("int2", "int4", "int8"), "c": ("int2", "int4", "int8")}
SMALL = ["0", "1", "7", "-5"]
OPERATORS = ["=", "<>", "<", "<=", ">", ">="]


class Generator:
    """Rows, changes, conditions and queries."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def value(self, column: str) -> str:
        kind, values = COLUMNS[column]
        value = self.rng.choice(values)
        return f"'{value}'::{kind}" if value[0] in "-0123456789" else f"{value}::{kind}"

    def row(self, id: int) -> str:
        values = ["NULL" if self.rng.random() < 0.15 else self.value(column) for column in COLUMNS]
        return f"({id}, {', '.join(values)})"

    def leaf(self) -> str:
        rng = self.rng
        column = rng.choice(list(COLUMNS))
        kind = rng.randrange(9)
        if kind == 0:
            return f"{column} IS {rng.choice(['', 'NOT '])}NULL"
        if kind == 1:
            values = ", ".join(self.value(column) for _ in range(rng.randrange(1, 4)))
            return f"{column} {rng.choice(['', 'NOT '])}IN ({values}{rng.choice(['', ', NULL'])})"
        if kind == 2:
            return rng.choice(["d", "NOT d", "d IS TRUE", "d IS FALSE", "d IS NOT TRUE", "d IS UNKNOWN"])
        if kind == 3:
            column = rng.choice(list(KINDS))
            value = f"'{rng.choice(SMALL)}'::{rng.choice(KINDS[column])}"
            return f"{value} {rng.choice(OPERATORS)} {column}" if rng.random() < 0.5 else f"{column} < {value}"
        if kind == 4:
            other = rng.choice([c for c in COLUMNS if COLUMNS[c][0] == COLUMNS[column][0]])
            return f"{column} {rng.choice(OPERATORS)} {other}"
        if kind == 5:
            value = f"{rng.choice(['1.5', '0.1'])}::{rng.choice(['float4', 'float8'])}"
            return f"{rng.choice(['h', 'i'])} {rng.choice(OPERATORS)} {value}"
        if kind == 6:
            return f"length(e) {rng.choice(OPERATORS)} {rng.randrange(3)}"
        if kind == 7:
            return f"id % {rng.randrange(2, 9)} = {rng.randrange(2)}"
        return f"{column} {rng.choice(OPERATORS)} {self.value(column)}"

    def condition(self, depth: int = 0) -> str:
        if depth < 3 and self.rng.random() < 0.45:
            parts = [self.condition(depth + 1) for _ in range(self.rng.randrange(2, 4))]
            return "(" + self.rng.choice([" AND ", " OR "]).join(parts) + ")"
        leaf = self.leaf()
        return f"NOT ({leaf})" if self.rng.random() < 0.1 else leaf

    def query(self) -> str:
        rng = self.rng
        where = self.condition()
        columns = rng.sample(["id", *COLUMNS], rng.randrange(1, 4))
        listed = ", ".join(columns)
        kind = rng.randrange(7)
        if kind == 0:
            return f"SELECT count(*), min({columns[0]}::text), max(id) FROM pushed WHERE {where}"
        if kind == 1:
            return f"SELECT * FROM pushed WHERE {where} ORDER BY id"
        if kind == 2:
            return f"SELECT count(*) FROM (SELECT {listed} FROM pushed WHERE {where} LIMIT {rng.randrange(1, 300)}) s"
        if kind == 3:
            few = "(SELECT b FROM pushed_few) f"
            return f"SELECT id FROM (SELECT * FROM pushed WHERE {where}) p JOIN {few} USING (b) ORDER BY 1"
        if kind == 4:
            counted = "(SELECT count(*) FROM pushed p WHERE p.b = f.b AND p.c >= f.b)"
            return f"SELECT f.id, {counted} FROM pushed_few f ORDER BY 1"
        if kind == 5:
            keys = f"id BETWEEN {rng.randrange(200)} AND {rng.randrange(500)}"
            return f"SELECT id, {listed} FROM pushed WHERE {keys} AND {where} ORDER BY id DESC"
        return f"SELECT id, {listed} FROM pushed WHERE {where} ORDER BY id"

    def change(self, ids: int) -> str:
        rng = self.rng
        column = rng.choice(list(COLUMNS))
        kind = rng.randrange(4)
        if kind == 0:
            return f"DELETE FROM pushed WHERE id % 17 = {rng.randrange(17)} AND {self.condition()}"
        if kind == 1:
            conflict = f"ON CONFLICT (id) DO UPDATE SET {column} = excluded.{column}"
            return f"INSERT INTO pushed VALUES {self.row(rng.randrange(ids, ids + 200))} {conflict}"
        value = "NULL" if rng.random() < 0.2 else self.value(column)
        return f"UPDATE pushed SET {column} = {value} WHERE {self.condition()} AND id % 5 = {rng.randrange(5)}"


def _execute(connection: Connection, statement: str) -> psycopg.Cursor[tuple[object, ...]]:
    return connection.execute(statement.encode())


def _answer(connection: Connection, query: str) -> list[tuple[object, ...]]:
    return [tuple(str(value) for value in row) for row in _execute(connection, query)]


def _prepare(connection: Connection, generator: Generator, rows: int) -> None:
    _execute(connection, "DROP TABLE IF EXISTS pushed, pushed_few")
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in COLUMNS.items() if name not in ("p",))
    _execute(connection, f"CREATE TABLE pushed (id int PRIMARY KEY, {columns})")
    _execute(connection, "CREATE TABLE pushed_few (id int PRIMARY KEY, b int)")
    _execute(connection, "INSERT INTO pushed_few VALUES (1, 1), (2, 7), (3, NULL), (4, 100000), (5, 3)")
    # rows without the last column, and with one that is gone
    first = [re.sub(r", [^,]*\)$", ")", generator.row(id)) for id in range(rows // 3)]
    _execute(connection, f"INSERT INTO pushed VALUES {', '.join(first)}")
    _execute(connection, "ALTER TABLE pushed ADD COLUMN gone int DEFAULT 3")
    _execute(connection, "ALTER TABLE pushed ADD COLUMN p oid DEFAULT 1")
    _execute(connection, "ALTER TABLE pushed DROP COLUMN gone")
    rest = [generator.row(id) for id in range(rows // 3, rows)]
    _execute(connection, f"INSERT INTO pushed VALUES {', '.join(rest)}")


@pytest.fixture(scope="module", params=["attached", "socket"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with australis_server(driver=request.param) as started:
        yield started


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_postgresql(server: Server, stock: Server, seed: int) -> None:
    with server.connect() as ours, stock.connect() as theirs:
        for connection in (ours, theirs):
            for kind in ("date", "timestamp", "timestamptz"):  # Python has no infinity of them
                connection.adapters.register_loader(kind, TextLoader)
            _prepare(connection, Generator(seed), 600)
            if seed % 2:
                _execute(connection, "ANALYZE pushed")
            if seed % 3 == 0:
                _execute(connection, "SET enable_indexscan = off")
        generator = Generator(1000 + seed)
        opened = False
        for step in range(120):
            if generator.rng.random() < 0.12:
                word = "ROLLBACK" if opened and generator.rng.random() < 0.5 else "COMMIT" if opened else "BEGIN"
                opened = not opened
                for connection in (ours, theirs):
                    _execute(connection, word)
            if generator.rng.random() < 0.25:
                statement = generator.change(600)
                counts = [_execute(connection, statement).rowcount for connection in (ours, theirs)]
                assert counts[0] == counts[1], f"seed {seed}, step {step}: {statement}"
                continue
            query = generator.query()
            expected = _answer(theirs, query)
            assert _answer(ours, query) == expected, f"seed {seed}, step {step}: {query}"
            _execute(ours, "SET australis.push_down = off")
            assert _answer(ours, query) == expected, f"seed {seed}, step {step}, off: {query}"
            _execute(ours, "SET australis.push_down = on")
        if opened:
            _execute(ours, "ROLLBACK")
        _execute(ours, "DROP TABLE pushed, pushed_few")


def _storage(connection: Connection, query: str) -> tuple[int, int, int]:
    """Trips, rows, kB."""
    plan = "\n".join(str(row[0]) for row in _execute(connection, f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {query}"))
    found = re.search(r"Storage: trips=(\d+) rows=(\d+) bytes=(\d+) kB", plan)
    assert found, plan
    return int(found[1]), int(found[2]), int(found[3])


@pytest.fixture
def wide(server: Server) -> Iterator[Connection]:
    with server.connect() as connection:
        _execute(connection, "DROP TABLE IF EXISTS wide")
        _execute(connection, "CREATE TABLE wide (id int PRIMARY KEY, grp int, note text, tail int)")
        _execute(
            connection, "INSERT INTO wide SELECT i, i % 1000, repeat('x', 1200), i FROM generate_series(1, 20000) i"
        )
        _execute(connection, "ANALYZE wide")
        yield connection
        _execute(connection, "ROLLBACK")
        _execute(connection, "DROP TABLE wide")


def test_storage_sends_only_what_passes(wide: Connection) -> None:
    query = "SELECT sum(tail) FROM wide WHERE grp = 7"
    trips, rows, size = _storage(wide, query)
    assert rows == 20 and size <= 2, "rows that pass, and of them the columns that are asked for"
    _execute(wide, "SET australis.push_down = off")
    off = _storage(wide, query)
    assert off[1] == 20000 and off[2] > 10000 and trips < off[0]


def test_a_limit_is_what_storage_is_asked_for(wide: Connection) -> None:
    assert _storage(wide, "SELECT note FROM wide LIMIT 3")[:2] == (1, 3)
    assert _storage(wide, "SELECT note FROM wide WHERE grp = 7 LIMIT 1")[:2] == (1, 1)
    assert _storage(wide, "SELECT note FROM wide WHERE grp = 7 LIMIT 2 OFFSET 1")[1] == 3


def test_scans_of_the_primary_key_too(wide: Connection) -> None:
    query = "SELECT sum(tail) FROM wide WHERE id BETWEEN 1 AND 5000 AND grp = 7"
    assert "Index Scan" in str(_answer(wide, f"EXPLAIN {query}"))
    _, rows, size = _storage(wide, query)
    assert rows == 5 and size <= 1
    assert _answer(wide, query) == [("10035",)]
    query = "SELECT id FROM wide WHERE grp > 990 ORDER BY id DESC LIMIT 5"
    assert _storage(wide, query)[1] == 5
    assert _answer(wide, query) == [("19999",), ("19998",), ("19997",), ("19996",), ("19995",)]


def test_rows_are_counted_where_they_are(wide: Connection) -> None:
    trips, rows, size = _storage(wide, "SELECT count(*) FROM wide")
    assert rows == 20000 and size <= 1 and trips < 10
    assert _answer(wide, "SELECT count(*) FROM wide") == [("20000",)]
    _execute(wide, "BEGIN")
    _execute(wide, "DELETE FROM wide WHERE id < 11")
    _execute(wide, "INSERT INTO wide VALUES (-1, 0, '', 0)")
    assert _answer(wide, "SELECT count(*) FROM wide") == [("19991",)]
    _execute(wide, "COMMIT")
    assert _answer(wide, "SELECT count(*), (SELECT count(*) FROM wide) FROM wide") == [("19991", "19991")]


def test_own_writes_are_judged_from_the_buffer(wide: Connection) -> None:
    _execute(wide, "BEGIN")
    _execute(wide, "UPDATE wide SET grp = -1 WHERE id IN (7, 1500)")
    _execute(wide, "UPDATE wide SET grp = 7 WHERE id = 20000")
    _execute(wide, "DELETE FROM wide WHERE id = 1007")
    rows = _answer(wide, "SELECT id FROM wide WHERE grp = 7 ORDER BY id")
    assert [int(str(row[0])) for row in rows] == [*range(2007, 20000, 1000), 20000]
    assert _answer(wide, "SELECT id FROM wide WHERE grp < 0 ORDER BY id") == [("7",), ("1500",)]
    _execute(wide, "ROLLBACK")
    assert len(_answer(wide, "SELECT id FROM wide WHERE grp = 7")) == 20


def test_scans_that_stop_early_leave_nothing_behind(wide: Connection) -> None:
    """LIMIT, errors, rolled back savepoints, cursors beside each other: later answers belong to later questions."""
    for attempt in range(10):
        _execute(wide, "BEGIN")
        _execute(wide, "DECLARE one CURSOR FOR SELECT id, note FROM wide")
        _execute(wide, "DECLARE two CURSOR FOR SELECT id, note FROM wide WHERE grp < 900")
        for start in range(attempt, 400, 100):
            _execute(wide, "SAVEPOINT s")
            _execute(wide, "MOVE 300 FROM one")
            _execute(wide, f"SELECT count(*) FROM (SELECT note FROM wide LIMIT {1500 + start}) s")
            with pytest.raises(psycopg.errors.DivisionByZero):
                _execute(wide, f"SELECT sum(1 / (tail - {1000 + 10 * start})), max(note) FROM wide")
            _execute(wide, "ROLLBACK TO s")
            _execute(wide, "MOVE 200 FROM two")
        rest = len(_answer(wide, "FETCH ALL FROM one"))
        assert rest == 20000 - 300 * len(range(attempt, 400, 100)), "savepoints do not move cursors back"
        assert _answer(wide, "SELECT count(*), sum(tail) FROM wide WHERE note IS NOT NULL") == [("20000", "200010000")]
        _execute(wide, "COMMIT")


def test_the_next_batch_is_asked_for_ahead(wide: Connection) -> None:
    """EXPLAIN's buffers are what was asked for, its trips what was taken: batches of 48, 192 and 768 rows."""
    if _answer(wide, "SHOW australis.storage_driver") == [("attached",)]:
        pytest.skip("nothing to overlap with")
    query = "SELECT id FROM wide WHERE id % 1 = 0 LIMIT {}"
    for rows, trips, asked in ((1, 1, 1), (40, 1, 1), (100, 2, 3), (300, 3, 4)):
        plan = str(_answer(wide, "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) " + query.format(rows)))
        assert f"Buffers: shared hit={asked}" in plan and f"trips={trips} " in plan, plan
        assert len(_answer(wide, query.format(rows))) == rows


def test_cancelled_scans_leave_nothing_behind(wide: Connection) -> None:
    for _ in range(20):
        with pytest.raises(psycopg.errors.QueryCanceled):
            _execute(wide, "SET statement_timeout = 3; SELECT count(md5(note || id)) FROM wide, generate_series(1, 50)")
        _execute(wide, "SET statement_timeout = 0")
        assert _answer(wide, "SELECT count(*), sum(tail), max(length(note)) FROM wide") == [
            ("20000", "200010000", "1200")
        ]


def test_a_replica_dies_while_a_batch_is_on_its_way() -> None:
    with plane.plane(adjudicators=1, shards=2, replicas=2) as many, many.server().connect() as connection:
        _execute(connection, "CREATE TABLE wide (id int PRIMARY KEY, grp int, note text)")
        _execute(connection, "INSERT INTO wide SELECT i, i % 10, repeat('x', 900) FROM generate_series(1, 20000) i")
        _execute(connection, "BEGIN")
        for condition in ("true", "grp < 5"):
            _execute(connection, f"DECLARE c CURSOR FOR SELECT id, note FROM wide WHERE {condition}")
            rows = _answer(connection, "FETCH 300 FROM c")
            for shard in range(2):
                if condition == "true":
                    many.kill(replica_name(shard, 0))
            rows += _answer(connection, "FETCH ALL FROM c")
            expected = [i for i in range(1, 20001) if condition == "true" or i % 10 < 5]
            assert [int(str(row[0])) for row in rows] == expected
            _execute(connection, "CLOSE c")
        _execute(connection, "COMMIT")


def _cut_in_three(adjudicators: int, shards: int, replicas: int) -> PartitionMap:
    """Every relation on three shards: those with an id (int, the key) below 6,000, below 12,000, and the others."""
    partition = first_map(adjudicators, shards, replicas)
    first = DATABASE << 32 | FIRST_RELATION
    bounds = [b""]
    for relation in range(first, first + 400):
        for number in (None, 6000, 12000):
            key = relation.to_bytes(8, "big")
            bounds.append(key if number is None else key + b"\x02" + (number + (1 << 63)).to_bytes(8, "big"))
    ranges = [Range(lo, hi, index % 3) for index, (lo, hi) in enumerate(itertools.pairwise([*bounds, KEYSPACE_END]))]
    return PartitionMap(1, partition.adjudicators, partition.keys, partition.shards, ranges)


def test_a_scan_over_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane, "first_map", _cut_in_three)
    with plane.plane(shards=3) as many, many.server().connect() as connection:
        _execute(connection, "CREATE TABLE wide (id int PRIMARY KEY, grp int, note text)")
        filenode = int(str(_answer(connection, "SELECT pg_relation_filenode('wide')")[0][0]))
        assert FIRST_RELATION <= filenode < FIRST_RELATION + 400, "it is on three shards"
        _execute(connection, "INSERT INTO wide SELECT i, i % 1000, repeat('x', 300) FROM generate_series(1, 20000) i")
        _execute(connection, "ANALYZE wide")
        for push in ("on", "off"):
            _execute(connection, f"SET australis.push_down = {push}")
            _execute(connection, "BEGIN")
            for writes in (0, 2):
                if writes:
                    _execute(connection, "UPDATE wide SET grp = 7 WHERE id IN (5999, 6000)")
                rows = [int(str(row[0])) for row in _answer(connection, "SELECT id FROM wide WHERE grp = 7")]
                assert rows == sorted([*range(7, 20000, 1000), *([5999, 6000] if writes else [])])
                backward = _answer(connection, "SELECT id FROM wide WHERE grp = 7 ORDER BY id DESC")
                assert [int(str(row[0])) for row in backward] == rows[::-1]
                assert _answer(connection, "SELECT count(*) FROM wide") == [("20000",)]
                everything = _answer(connection, "SELECT id, note FROM wide")
                assert [int(str(row[0])) for row in everything] == list(range(1, 20001))
                limited = _answer(connection, "SELECT id FROM wide WHERE id > 5900 AND grp < 500 LIMIT 300")
                assert [int(str(row[0])) for row in limited] == [
                    i for i in range(5901, 8000) if i % 1000 < 500 or i in ([5999, 6000] if writes else [])
                ][:300]
            _execute(connection, "ROLLBACK")


def test_conditions_keep_their_order(wide: Connection) -> None:
    """What has side effects is evaluated for the same rows as without a filter."""
    _execute(
        wide,
        "CREATE OR REPLACE FUNCTION pushed_note(int) RETURNS bool LANGUAGE plpgsql VOLATILE COST 0.0001 AS "
        "$$BEGIN PERFORM set_config('x.seen', (current_setting('x.seen')::int + 1)::text, false); RETURN true; END$$",
    )
    for setting in ("on", "off"):
        _execute(wide, f"SET australis.push_down = {setting}")
        _execute(wide, "SET x.seen = 0")
        assert _answer(wide, "SELECT count(*) FROM wide WHERE pushed_note(id) AND grp = 7") == [("20",)]
        assert _answer(wide, "SHOW x.seen") == [("20000",)]
    _execute(wide, "DROP FUNCTION pushed_note")


def test_prepared_statements_and_rescans_take_new_values(wide: Connection) -> None:
    _execute(wide, "SET plan_cache_mode = force_generic_plan")
    _execute(wide, "PREPARE p(int, text) AS SELECT count(*) FROM wide WHERE grp = $1 AND note <> $2")
    assert _answer(wide, "EXECUTE p(7, 'y')") == [("20",)]
    assert _answer(wide, "EXECUTE p(8, repeat('x', 1200))") == [("0",)]
    assert _answer(wide, "EXECUTE p(NULL, 'y')") == [("0",)]
    _execute(wide, "SET enable_material = off")
    _execute(wide, "SET enable_hashjoin = off")
    _execute(wide, "SET enable_mergejoin = off")
    query = "SELECT v, (SELECT count(*) FROM wide WHERE grp = v) FROM (VALUES (1), (NULL), (5000), (3)) x(v) ORDER BY v"
    assert _answer(wide, query) == [("1", "20"), ("3", "20"), ("5000", "0"), ("None", "0")]


def test_rows_that_are_locked_are_those_that_pass(wide: Connection) -> None:
    _execute(wide, "BEGIN")
    assert len(_answer(wide, "SELECT id FROM wide WHERE grp = 7 FOR UPDATE")) == 20
    assert _execute(wide, "UPDATE wide SET tail = 0 WHERE grp = 7").rowcount == 20
    _execute(wide, "COMMIT")
    assert _answer(wide, "SELECT sum(tail) FROM wide WHERE grp = 7") == [("0",)]
