"""Keys and indexes against stock PostgreSQL, which is the oracle throughout.

The `.sql` files are for psql: `index.sql` and `plans.sql` print the same on both servers, `keys.sql` compares the key
codec with the type's own order inside one server. The random test asks one server the same question twice, with and
without the index, while half of the rows are uncommitted.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.servers import Server

HERE = Path(__file__).parent


def _output(server: Server, file: str) -> list[str]:
    """What psql prints for a file, statements included."""
    path = HERE / file
    done = server.psql("--echo-all", "--file", str(path))
    # psql names the file in messages; so does it on both servers, but a diff reads better without
    return [line.replace(str(path), file) for line in (done.stdout + done.stderr).splitlines()]


@pytest.mark.parametrize("file", ["index.sql", "plans.sql"])
def test_same_output_as_stock_postgresql(stock: Server, australis: Server, file: str) -> None:
    assert _output(australis, file) == _output(stock, file)


def test_keys_sort_as_their_types(australis: Server) -> None:
    done = australis.psql("--quiet", "--no-align", "--tuples-only", "--file", str(HERE / "keys.sql"))
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert len(rows) > 50
    assert [row for row in rows if row[2] != "0"] == []


def test_keys_are_those_of_the_vectors(australis: Server) -> None:
    vectors = json.loads((HERE.parent / "vectors" / "keys.json").read_text())["columns"]
    assert len(vectors) > 100
    with australis.connect(autocommit=False) as connection:
        connection.execute(
            "CREATE FUNCTION pg_temp.key(anyelement, bool, bool) RETURNS bytea"
            " LANGUAGE c AS 'australis', 'au_key_debug'"
        )
        for vector in vectors:
            ask = sql.SQL("SELECT encode(pg_temp.key(%s::{}, %s, %s), 'hex')").format(sql.SQL(vector["type"]))
            key = connection.execute(ask, (vector["value"], vector["descending"], vector["nulls_first"])).fetchone()
            assert key == (vector["key"],), vector
        connection.rollback()


COLUMNS = ("a", "b", "c", "d")
TYPES = {"a": "int", "b": "text", "c": "float8", "d": "timestamp"}


def _value(rng: random.Random, column: str) -> str:
    """A literal, sometimes of another type of the same operator family."""
    match column:
        case "a":
            return rng.choice(["{}", "{}::bigint", "{}::smallint"]).format(rng.randint(-1, 6))
        case "b":
            return rng.choice(["''", "'a'", "'aa'", "'ab'", "'b'", "'abcdefgh'", "'abcdefghi'", "'a'::name"])
        case "c":
            return rng.choice(["-1", "0", "0.5", "2", "'NaN'", "'infinity'", "0.1::float4", "'-infinity'::float8"])
        case _:
            day = rng.randint(1, 6)
            return rng.choice(
                [
                    f"timestamp '2024-03-{day + 25} 01:30'",
                    f"date '2024-03-{day + 25}'",
                    f"timestamptz '2024-03-{day + 25} 02:30+01'",
                    "date 'infinity'",
                ]
            )


def _condition(rng: random.Random) -> str:
    column = rng.choice(COLUMNS)
    operator = rng.choice(["=", "=", "<", "<=", ">", ">="])
    match rng.randint(0, 7):
        case 0:
            return f"{column} IS {rng.choice(['', 'NOT '])}NULL"
        case 1:
            values = ", ".join(_value(rng, column) for _ in range(rng.randint(1, 4)))
            return f"{column} IN ({values}, NULL)"
        case 2:
            values = ", ".join(f"({_value(rng, column)})::{TYPES[column]}" for _ in range(rng.randint(0, 4)))
            return f"{column} {operator} ANY (ARRAY[{values}]::{TYPES[column]}[])"
        case 3:
            columns = rng.sample(COLUMNS, 2) if rng.random() < 0.4 else list(COLUMNS[:2])
            values = ", ".join(rng.choice([_value(rng, x), _value(rng, x), "NULL"]) for x in columns)
            return f"({', '.join(columns)}) {rng.choice(['<', '<=', '>', '>='])} ({values})"
        case _:
            return f"{column} {operator} {_value(rng, column)}"


def _random_row(rng: random.Random, number: int) -> tuple[object, ...]:
    return (
        number,
        rng.choice([None, -1, 0, 1, 2, 3, 5]),
        rng.choice([None, "", "a", "aa", "ab", "b", "abcdefgh", "abcdefghi"]),
        rng.choice([None, -1.0, 0.0, 0.5, 2.0, float("nan"), float("inf"), float("-inf")]),
        rng.choice([None, "2024-03-28 01:30", "2024-03-31 02:30", "2024-03-31 03:30", "2024-03-29", "infinity"]),
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_conditions(australis: Server, seed: int) -> None:
    # only ours: btree itself errs where clocks are set back and a timestamp meets a timestamptz
    rng = random.Random(seed)
    directions = [rng.choice(["", " DESC"]) + rng.choice(["", " NULLS FIRST", " NULLS LAST"]) for _ in COLUMNS]
    columns = list(COLUMNS)
    rng.shuffle(columns)
    order = ", ".join(column + direction for column, direction in zip(columns, directions, strict=True))
    backward = ", ".join(
        column
        + (" DESC" if "DESC" not in direction else "")
        + (
            " NULLS LAST"
            if ("FIRST" in direction) or ("DESC" in direction and "LAST" not in direction)
            else " NULLS FIRST"
        )
        for column, direction in zip(columns, directions, strict=True)
    )
    with australis.connect(autocommit=False) as connection:
        connection.execute("DROP SCHEMA IF EXISTS random_conditions CASCADE")
        connection.execute("CREATE SCHEMA random_conditions")
        connection.execute("SET search_path = random_conditions")
        connection.execute("SET timezone = 'Europe/Berlin'")
        connection.execute("SET enable_bitmapscan = off")
        connection.execute("CREATE TABLE r (id int PRIMARY KEY, a int, b text, c float8, d timestamp)")
        connection.execute(f"CREATE INDEX r_x ON r ({order})")
        insert = "INSERT INTO r VALUES (%s, %s, %s, %s, %s)"
        with connection.cursor() as cursor:
            cursor.executemany(insert, [_random_row(rng, n) for n in range(300)])
        connection.commit()
        with connection.cursor() as cursor:
            cursor.executemany(insert, [_random_row(rng, n) for n in range(300, 500)])
        connection.execute("DELETE FROM r WHERE id % 7 = 3")
        connection.execute("UPDATE r SET a = a + 1 WHERE id % 5 = 1")
        connection.execute("SAVEPOINT s")
        connection.execute("UPDATE r SET b = 'b' WHERE id % 3 = 1")
        connection.execute("DELETE FROM r WHERE id > 450")
        connection.execute("ROLLBACK TO s")
        for _ in range(120):
            where = " AND ".join(_condition(rng) for _ in range(rng.randint(1, 3)))
            ordering = rng.choice([order, backward])
            ask = f"SELECT {{}} FROM r WHERE {where} ORDER BY {ordering}, id"
            question = ask.format("id, a, b, c, d::text")
            # without "id" the order comes from the index alone, and index-only scans are possible
            only = f"SELECT a, b, c, d::text FROM r WHERE {where} ORDER BY {ordering}"
            assert _ask(connection, question, index=True) == _ask(connection, question, index=False), question
            assert _ask(connection, only, index=True) == _ask(connection, only, index=False), only


def _ask(connection: psycopg.Connection[tuple[object, ...]], question: str, *, index: bool) -> list[str]:
    connection.execute(f"SET LOCAL enable_seqscan = {'off' if index else 'on'}")
    connection.execute(f"SET LOCAL enable_indexscan = {'on' if index else 'off'}")
    connection.execute(f"SET LOCAL enable_indexonlyscan = {'on' if index else 'off'}")
    connection.execute(f"SET LOCAL enable_sort = {'off' if index else 'on'}")
    return [str(row) for row in connection.execute(question)]
