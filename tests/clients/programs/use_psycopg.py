"""psycopg 3: parameters, binary results, COPY, pipelines, server-side cursors, types, retry of conflicts, errors."""

from __future__ import annotations

import datetime as dt
import decimal
import sys
import uuid

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg.types.range import Range


def main(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS psy_item, psy_tag CASCADE")
        connection.execute("DROP TYPE IF EXISTS psy_mood")
        connection.execute("CREATE TYPE psy_mood AS ENUM ('low', 'high')")
        connection.execute(
            "CREATE TABLE psy_item (id uuid PRIMARY KEY, n int, price numeric, at timestamptz, data jsonb, tags text[],"
            " span int4range, raw bytea, mood psy_mood, day date)"
        )
        connection.execute("CREATE TABLE psy_tag (id int PRIMARY KEY, item uuid REFERENCES psy_item ON DELETE CASCADE)")
        connection.execute("CREATE INDEX ON psy_item (n, at)")
    with psycopg.connect(url, row_factory=dict_row) as connection:
        fill(connection)
        read(connection)
        transactions(connection)
        copy(connection)
        conflict(url)
        connection.execute("DROP TABLE psy_item, psy_tag, psy_log")
        connection.execute("DROP TYPE psy_mood")


def key(n: int) -> uuid.UUID:
    return uuid.UUID(int=n)


def fill(connection: psycopg.Connection[dict[str, object]]) -> None:
    rows = [
        (
            key(n), n, decimal.Decimal(n) / 4, dt.datetime(2024, 1, n, tzinfo=dt.UTC), Jsonb({"n": n, "x": [None, n]}),
            ["a", f"t{n}"], Range(n, n + 5), bytes([n, 0, 255]), "low" if n % 2 else "high", dt.date(2024, 2, n),
        )
        for n in range(1, 21)
    ]  # fmt: skip
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO psy_item VALUES ({', '.join(['%s'] * 10)})", rows)
        print("inserted", cursor.rowcount)
        cursor.executemany(
            "INSERT INTO psy_tag VALUES (%s, %s) RETURNING id", [(1, key(1)), (2, key(2))], returning=True
        )
        print("returning", cursor.fetchall())
    connection.commit()


def read(connection: psycopg.Connection[dict[str, object]]) -> None:
    for binary in (False, True):
        for row in connection.execute("SELECT * FROM psy_item WHERE n < %s ORDER BY n", (4,), binary=binary):
            print("row", {k: str(v) for k, v in row.items()})
    for n in range(8):  # beyond the threshold of automatic preparation
        found = connection.execute("SELECT price FROM psy_item WHERE id = %s", (key(n),), prepare=True).fetchone()
        print("prepared", n, found)
    with connection.cursor(name="scan") as cursor:
        cursor.itersize = 7
        print("server cursor", sum(int(str(r["n"])) for r in cursor.execute("SELECT n FROM psy_item ORDER BY n")))
    with connection.cursor(name="scroll", scrollable=True) as cursor:
        cursor.execute("SELECT n FROM psy_item ORDER BY at")
        cursor.scroll(10)
        print("scrolled", cursor.fetchone())
        cursor.scroll(-5)
        print("scrolled", cursor.fetchmany(2))
    with connection.pipeline():
        first = connection.execute("SELECT count(*) AS c FROM psy_item")
        connection.execute("UPDATE psy_item SET n = n + 100 WHERE n = %s", (20,))
        second = connection.execute("SELECT max(n) AS m FROM psy_item")
        print("pipeline", first.fetchone(), second.fetchone())
    connection.commit()


def transactions(connection: psycopg.Connection[dict[str, object]]) -> None:
    try:
        with connection.transaction():
            connection.execute("DELETE FROM psy_item WHERE n < 3")
            with connection.transaction() as inner:
                connection.execute("DELETE FROM psy_item")
                raise psycopg.Rollback(inner)
            print("kept", connection.execute("SELECT count(*) AS c FROM psy_item").fetchone())
            connection.execute("INSERT INTO psy_tag VALUES (9, %s)", (key(999),))
    except errors.ForeignKeyViolation as error:
        print("refused", error.sqlstate, error.diag.constraint_name)
    print("tags", connection.execute("SELECT id FROM psy_tag ORDER BY id").fetchall())
    for statement in ("INSERT INTO psy_item (id) SELECT id FROM psy_item LIMIT 1", "SELECT 1/0", "SELECT nothing"):
        try:
            with connection.transaction():
                connection.execute(statement.encode())
        except psycopg.Error as error:
            print("error", type(error).__name__, error.sqlstate)
    connection.execute("CREATE TABLE psy_log (n int, line text)")
    connection.commit()


def copy(connection: psycopg.Connection[dict[str, object]]) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY psy_log FROM STDIN") as into:
        for n in range(1000):
            into.write_row((n, f"line\t{n}\\"))
    with connection.cursor() as cursor, cursor.copy("COPY psy_log FROM STDIN (FORMAT binary)") as into:
        into.set_types(["int4", "text"])
        into.write_row((1000, "binary"))
    with connection.cursor() as cursor, cursor.copy("COPY (SELECT * FROM psy_log ORDER BY n) TO STDOUT") as out:
        lines = list(out.rows())
    print("copied", len(lines), lines[0], lines[-1])
    connection.commit()


def conflict(url: str) -> None:
    """Two sessions change one row; the second gets 40001 and succeeds when it tries again."""
    level = psycopg.IsolationLevel.REPEATABLE_READ
    attempts = 0
    with psycopg.connect(url) as one, psycopg.connect(url) as two:
        one.isolation_level = two.isolation_level = level
        while True:
            attempts += 1
            try:
                two.execute("SELECT n FROM psy_item WHERE id = %s", (key(5),))
                if attempts == 1:
                    one.execute("UPDATE psy_item SET n = n + 1000 WHERE id = %s", (key(5),))
                    one.commit()
                two.execute("UPDATE psy_item SET n = n + 1000 WHERE id = %s", (key(5),))
                two.commit()
                break
            except errors.SerializationFailure as error:
                print("conflict", error.sqlstate)
                two.rollback()
        print("attempts", attempts, one.execute("SELECT n FROM psy_item WHERE id = %s", (key(5),)).fetchone())


if __name__ == "__main__":
    main(sys.argv[1])
