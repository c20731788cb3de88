"""Tables that are filled *and changed* in the transaction that creates them: they go to storage as they grow (rule Q8).

Everything is compared with stock PostgreSQL: the rows at the end, what an open cursor sees meanwhile, and what deferred
triggers are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest

from tests.fixtures.servers import Server, australis_server

Connection = psycopg.Connection[tuple[object, ...]]

TABLE = """
CREATE TABLE load_t (id int PRIMARY KEY, n int, pad text);
CREATE INDEX load_n ON load_t (n);
"""
SUMMARY = (
    "SELECT count(*), sum(id)::bigint, sum(n)::bigint, sum(length(pad)),"
    " md5(string_agg(id || '/' || n, ',' ORDER BY id))"
)


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """A cluster whose transactions may not buffer more than 48 MB."""
    with australis_server(settings={"write_buffer_mb": 48}) as server:
        yield server


def summary(connection: Connection) -> list[tuple[object, ...]]:
    rows = connection.execute((SUMMARY + " FROM load_t").encode()).fetchall()
    rows += connection.execute("SELECT count(*), sum(id)::bigint FROM load_t WHERE n BETWEEN 5 AND 40").fetchall()
    return rows


def fill(connection: Connection, first: int, rows: int = 8000) -> None:
    connection.execute(
        "INSERT INTO load_t SELECT g, g %% 100, repeat('x', 1000) FROM generate_series(%s::int, %s) g",
        (first, first + rows - 1),
    )


def rounds(connection: Connection) -> Sequence[object]:
    """Several times the buffer's size, in statements that insert, update, delete and insert again."""
    seen: list[object] = []
    with connection.transaction():
        connection.execute(TABLE.encode())
        for number in range(12):
            fill(connection, number * 8000)
            connection.execute("UPDATE load_t SET n = n + 1 WHERE id %% 7 = %s", (number % 7,))
            connection.execute("UPDATE load_t SET id = -id - 1 WHERE id %% 1000 = %s", (number,))
            connection.execute("DELETE FROM load_t WHERE id %% 50 = %s", (number,))
            if number % 4 == 3:
                seen += summary(connection)
    return seen + summary(connection)


def cursor(connection: Connection) -> Sequence[object]:
    """A cursor opened in between sees its own past."""
    with connection.transaction():
        connection.execute(TABLE.encode())
        fill(connection, 0)
        fill(connection, 8000)
        connection.execute("UPDATE load_t SET n = -1 WHERE id < 100")
        connection.execute("DECLARE past CURSOR FOR SELECT id, n FROM load_t ORDER BY id")
        seen: list[object] = list(connection.execute("FETCH 50 FROM past"))
        connection.execute("UPDATE load_t SET n = -2 WHERE id < 200")
        connection.execute("DELETE FROM load_t WHERE id BETWEEN 150 AND 160")
        fill(connection, 16000)
        fill(connection, 24000)
        seen += connection.execute("FETCH 200 FROM past")
        connection.execute("CLOSE past")
        fill(connection, 32000)
        connection.execute("INSERT INTO load_t VALUES (155, 0, 'again')")
    return seen + summary(connection)


def deferred(connection: Connection) -> Sequence[object]:
    """Deferred triggers hear of the versions of their time."""
    with connection.transaction():
        connection.execute(TABLE.encode())
        connection.execute("CREATE TABLE load_heard (was int, is_now int)")
        connection.execute(
            "CREATE FUNCTION load_hear() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN INSERT INTO load_heard VALUES (old.n, new.n); RETURN NULL; END$$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER load_hears AFTER UPDATE ON load_t DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION load_hear()"
        )
        fill(connection, 0)
        connection.execute("UPDATE load_t SET n = n + 1000 WHERE id < 20")
        connection.execute("UPDATE load_t SET n = n + 1000 WHERE id < 10")
        fill(connection, 8000)
        fill(connection, 16000)
        connection.execute("DELETE FROM load_t WHERE id = 15")
    return list(connection.execute("SELECT * FROM load_heard ORDER BY 1, 2")) + summary(connection)


def savepoints(connection: Connection) -> Sequence[object]:
    """What is rolled back never was, also when it was much."""
    with connection.transaction():
        connection.execute("SAVEPOINT a")
        connection.execute(TABLE.encode())
        fill(connection, 0)
        connection.execute("UPDATE load_t SET n = 1")
        fill(connection, 8000)
        fill(connection, 16000)
        connection.execute("ROLLBACK TO a")
        connection.execute(TABLE.encode())
        fill(connection, 0)
        connection.execute("DELETE FROM load_t WHERE id < 4000")
        fill(connection, 8000)
        connection.execute("SAVEPOINT b")
        connection.execute("UPDATE load_t SET n = 7 WHERE id < 9000")
        connection.execute("ROLLBACK TO b")
        fill(connection, 0, 4000)
        fill(connection, 16000)
    return summary(connection)


def functions(connection: Connection) -> Sequence[object]:
    """A loop over a query that changes what it reads and loads more."""
    with connection.transaction():
        connection.execute(TABLE.encode())
        fill(connection, 0)
        fill(connection, 8000)
        connection.execute("UPDATE load_t SET n = 3 WHERE id % 3 = 0")
        connection.execute(
            "DO $$DECLARE r record; BEGIN FOR r IN SELECT * FROM load_t WHERE id < 9000 ORDER BY id LOOP"
            " UPDATE load_t SET n = n + 1 WHERE id = r.id + 1;"
            " IF r.id % 3 = 0 THEN INSERT INTO load_t VALUES (r.id + 100000, r.n, r.pad); END IF;"
            " END LOOP; END$$"
        )
        connection.execute("UPDATE load_t a SET n = b.n FROM load_t b WHERE b.id = a.id + 100000")
        fill(connection, 16000)
    return summary(connection)


def upserts(connection: Connection) -> Sequence[object]:
    """ON CONFLICT tells inserted rows from updated ones, and notices a row that it would change twice."""
    seen: list[object] = []
    upsert = (
        "INSERT INTO load_t SELECT g %% {modulo}, g, repeat('y', 1000) FROM generate_series(%s::int, %s) g"
        " ON CONFLICT (id) DO UPDATE SET n = excluded.n RETURNING xmax = 0"
    )
    with connection.transaction():
        connection.execute(TABLE.encode())
        for number in range(8):
            rows = connection.execute(upsert.format(modulo=1000000).encode(), (number * 6000, number * 6000 + 8999))
            seen.append([row[0] for row in rows].count(True))
        with pytest.raises(psycopg.errors.CardinalityViolation), connection.transaction():
            connection.execute(upsert.format(modulo=10000).encode(), (50000, 60500))
        seen += summary(connection)
    return seen + summary(connection)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("story", [rounds, cursor, deferred, savepoints, functions, upserts])
def test_same_as_stock(story: Callable[[Connection], Sequence[object]], stock: Server, small: Server) -> None:
    answers: list[Sequence[object]] = []
    for server in (stock, small):
        with server.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS load_t, load_heard")
            connection.execute("DROP FUNCTION IF EXISTS load_hear")
            answers.append(story(connection))
            # another session reads the same
            with server.connect() as other:
                assert summary(other) == summary(connection)
            connection.execute("DROP TABLE IF EXISTS load_t, load_heard")
            connection.execute("DROP FUNCTION IF EXISTS load_hear")
    assert answers[1] == answers[0]
