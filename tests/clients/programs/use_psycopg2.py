"""psycopg2: simple protocol, named cursors, execute_values, LISTEN, SERIALIZABLE, large objects, a connection pool."""

from __future__ import annotations

import io
import select
import sys

import psycopg2
import psycopg2.extras
import psycopg2.pool
from psycopg2 import errors


def main(url: str) -> None:
    connection = psycopg2.connect(url)
    cursor = connection.cursor()
    cursor.execute(
        "DROP TABLE IF EXISTS psycopg2_item; CREATE TABLE psycopg2_item (id int PRIMARY KEY, v text, j jsonb)"
    )
    rows = [(n, f"v{n}", psycopg2.extras.Json({"n": n})) for n in range(500)]
    psycopg2.extras.execute_values(cursor, "INSERT INTO psycopg2_item VALUES %s", rows, page_size=100)
    connection.commit()
    with connection.cursor("named") as named:
        named.itersize = 50
        named.execute("SELECT id FROM psycopg2_item ORDER BY id")
        print("streamed", sum(row[0] for row in named))
    connection.commit()
    cursor.execute("SELECT j FROM psycopg2_item WHERE j @> %s", (psycopg2.extras.Json({"n": 7}),))
    print("json", cursor.fetchall())
    cursor.copy_expert("COPY psycopg2_item FROM STDIN", io.StringIO("1000\tcopied\t{}\n"))
    out = io.StringIO()
    cursor.copy_expert("COPY (SELECT * FROM psycopg2_item WHERE id > 497 ORDER BY id) TO STDOUT", out)
    print("copy", out.getvalue().splitlines())
    connection.commit()
    with connection, connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as named_rows:
        named_rows.execute("UPDATE psycopg2_item SET v = 'new' WHERE id < 3 RETURNING id, v")
        print("updated", [dict(row) for row in named_rows])
    try:
        cursor.execute("INSERT INTO psycopg2_item VALUES (1, 'twice')")
    except errors.UniqueViolation as error:
        connection.rollback()
        print("refused", error.diag.constraint_name)
    connection.set_session(isolation_level="SERIALIZABLE", readonly=True)
    cursor.execute("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")
    print("session", cursor.fetchone())
    connection.rollback()
    connection.set_session(isolation_level="READ COMMITTED", readonly=False, autocommit=True)
    cursor.execute("LISTEN psycopg2_channel")
    with psycopg2.connect(url) as other, other.cursor() as sender:
        sender.execute("NOTIFY psycopg2_channel, 'hello'")
    other.close()
    select.select([connection], [], [], 10)
    connection.poll()
    print("notified", [(n.channel, n.payload) for n in connection.notifies])
    connection.autocommit = False
    large = connection.lobject(0, "wb")
    large.write(b"large object")
    number = large.oid
    large.close()
    connection.commit()
    print("large", connection.lobject(number, "rb").read())
    connection.lobject(number).unlink()
    connection.commit()
    pool = psycopg2.pool.ThreadedConnectionPool(1, 3, url)
    taken = [pool.getconn() for _ in range(3)]
    for one in taken:
        with one.cursor() as pooled:
            pooled.execute("SELECT count(*) FROM psycopg2_item")
            print("pool", pooled.fetchone())
        pool.putconn(one)
    pool.closeall()
    cursor.execute("DROP TABLE psycopg2_item")
    connection.commit()
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
