"""pg8000: a driver of its own, extended protocol throughout, text formats; types, COPY, errors, transactions."""

from __future__ import annotations

import datetime as dt
import io
import sys
import uuid
from decimal import Decimal
from urllib.parse import unquote, urlsplit

import pg8000.native


def main(url: str) -> None:
    parts = urlsplit(url)
    connection = pg8000.native.Connection(
        unquote(parts.username or ""),
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 5432,
        password=unquote(parts.password or "") or None,
        database=parts.path.lstrip("/"),
    )
    run = connection.run
    run("DROP TABLE IF EXISTS pg8000_item")
    run(
        "CREATE TABLE pg8000_item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE,"
        " price numeric(10, 3), made timestamptz, key uuid, tags text[], data jsonb, raw bytea)"
    )
    for n in range(5):
        made = dt.datetime(2024, 1, n + 1, tzinfo=dt.UTC)
        row = run(
            "INSERT INTO pg8000_item (name, price, made, key, tags, data, raw)"
            " VALUES (:name, :price, :made, :key, :tags, :data, :raw) RETURNING id",
            name=f"item {n}", price=Decimal(n) / 8, made=made, key=uuid.UUID(int=n), tags=["a", f'"{n}"'],
            data={"n": [n, None]}, raw=bytes([0, n, 255]),
        )  # fmt: skip
        print("inserted", row)
    for row in run("SELECT * FROM pg8000_item ORDER BY id"):
        print(row)
    print("columns", [(c["name"], c["type_oid"]) for c in connection.columns or ()])
    copied = io.StringIO()
    run("COPY (SELECT id, name FROM pg8000_item ORDER BY id) TO STDOUT WITH (FORMAT csv)", stream=copied)
    print("copied", copied.getvalue().split())
    run("COPY pg8000_item (name) FROM STDIN", stream=io.StringIO("from copy 1\nfrom copy 2\n"))
    print("count", run("SELECT count(*), row_count FROM pg8000_item, (SELECT 1 AS row_count) x GROUP BY 2"))
    run("BEGIN")
    run("UPDATE pg8000_item SET price = price + 1")
    print("updated", connection.row_count)
    run("ROLLBACK")
    try:
        run("INSERT INTO pg8000_item (name) VALUES ('item 1')")
    except pg8000.native.DatabaseError as error:
        print("refused", error.args[0]["C"], error.args[0]["n"])
    statement = connection.prepare("SELECT name FROM pg8000_item WHERE id = :id")
    print("prepared", [statement.run(id=i) for i in (1, 2, 99)])
    statement.close()
    run("DROP TABLE pg8000_item")
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
