"""Northwind on both servers (acceptance line A2).

The dump is not part of this repository: AUSTRALIS_NORTHWIND names the file, else it is looked for in
../shared/data/northwind beside the repository; without it the tests are skipped with that reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.script import Item, parse_script
from tests.fixtures.servers import Server

REPOSITORY = Path(__file__).parents[2]
DATABASE = "northwind_test"
QUERIES = parse_script((Path(__file__).parent / "queries.sql").read_text())
TABLES = 14


def dump() -> Path:
    named = os.environ.get("AUSTRALIS_NORTHWIND")
    path = Path(named) if named else REPOSITORY.parent / "shared" / "data" / "northwind" / "northwind.sql"
    if not path.exists():
        pytest.skip(f"no Northwind dump: {path} (set AUSTRALIS_NORTHWIND)")
    return path


def load(server: Server) -> tuple[Server, str]:
    """A fresh database with the dump in it, and what psql said."""
    with server.connect() as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {DATABASE}")
        connection.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
    target = server.database(DATABASE)
    said = target.psql("-q", "-f", str(dump()), timeout=120)
    assert said.returncode == 0, said.stderr
    return target, said.stdout + said.stderr


@pytest.fixture(scope="module")
def both(stock: Server, australis: Server) -> Iterator[tuple[Server, Server]]:
    loaded = [load(server) for server in (stock, australis)]
    assert loaded[0][1] == loaded[1][1]
    yield loaded[0][0], loaded[1][0]
    for server in (stock, australis):
        with server.connect() as connection:
            connection.execute(f"DROP DATABASE {DATABASE}")


def answers(server: Server, query: str) -> tuple[list[str], list[tuple[object, ...]]]:
    with server.connect() as connection:
        cursor = connection.execute(query.encode())
        assert cursor.description is not None
        return [c.name for c in cursor.description], cursor.fetchall()


def test_there_are_twenty_queries() -> None:
    assert len(QUERIES) == 20


def test_all_rows_are_there(both: tuple[Server, Server]) -> None:
    with both[0].connect() as connection:
        tables = [str(r[0]) for r in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    assert len(tables) == TABLES
    for table in tables:
        query = f"SELECT * FROM {table} t ORDER BY t::text"
        assert answers(both[0], query) == answers(both[1], query), table


@pytest.mark.parametrize("item", QUERIES, ids=[f"query-{n}" for n in range(1, len(QUERIES) + 1)])
def test_query(item: Item, both: tuple[Server, Server]) -> None:
    expected = answers(both[0], item.text)
    assert expected[1], "a query without rows shows nothing"
    assert answers(both[1], item.text) == expected


def test_dump_round_trip(both: tuple[Server, Server], stock: Server, tmp_path: Path) -> None:
    """pg_dump of Australis restores into stock PostgreSQL, and gives the same dump there."""
    import subprocess

    from tests.fixtures.postgres import program

    def pg_dump(server: Server) -> str:
        done = subprocess.run(
            [str(program("pg_dump")), "--no-sync"],
            env=server.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return "\n".join(
            line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
        )

    ours = pg_dump(both[1])
    with stock.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS northwind_back")
        connection.execute("CREATE DATABASE northwind_back TEMPLATE template0")
    back = stock.database("northwind_back")
    script = tmp_path / "dump.sql"
    script.write_text(ours)
    restored = back.psql("-q", "-v", "ON_ERROR_STOP=1", "-f", str(script))
    assert restored.returncode == 0, restored.stderr
    again = pg_dump(back)
    with stock.connect() as connection:
        connection.execute("DROP DATABASE northwind_back")

    def parts(text: str) -> list[str]:
        return sorted(text.splitlines())  # a dump keeps the order of storage within a table

    assert parts(again) == parts(ours)
    assert parts(pg_dump(both[0])) == parts(ours)
