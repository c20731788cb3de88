"""Random interleavings under load, checked afterwards: what no interleaving may produce, whatever the timing.

Each test runs several threads for a bounded number of transactions; 40001 is retried by the client, as every client of
a snapshot-isolation database does. Bounded in work, not in time; seeds are fixed, the interleaving is not.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors, sql

from tests.fixtures.servers import Server

THREADS = 6
ROUNDS = 60
ACCOUNTS = 12

Connection = psycopg.Connection[tuple[object, ...]]


def transact(connection: Connection, work: Callable[[Connection], None], attempts: int = 200) -> bool:
    """Run work as one transaction, again after a conflict; False if refused for another reason of the data."""
    for _ in range(attempts):
        try:
            with connection.transaction():
                work(connection)
            return True
        except (errors.SerializationFailure, errors.DeadlockDetected):
            continue
        except errors.IntegrityError:
            return False
    raise AssertionError(f"no success in {attempts} attempts")


def together(server: Server, schema: str, work: Callable[[Connection, random.Random, int], None]) -> None:
    """Run work in THREADS threads; the first failure fails the test."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            with server.connect() as connection:
                use(connection, schema)
                barrier.wait(30)
                work(connection, random.Random(number), number)
        except BaseException as error:  # noqa: BLE001 (handed to the test's thread)
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


def use(connection: Connection, schema: str) -> None:
    connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema)))
    connection.execute("SET default_transaction_isolation = 'repeatable read'")


def value(connection: Connection, query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.timeout(180)
def test_transfers_keep_the_sum_and_every_snapshot_sees_it(any_server: Server, schema: str) -> None:
    with any_server.connect() as owner:
        use(owner, schema)
        owner.execute("CREATE TABLE acc (id int PRIMARY KEY, bal int NOT NULL)")
        owner.execute("INSERT INTO acc SELECT i, 100 FROM generate_series(1, %s) i", (ACCOUNTS,))

    def work(connection: Connection, rng: random.Random, number: int) -> None:
        for _ in range(ROUNDS):
            a, b = rng.sample(range(1, ACCOUNTS + 1), 2)

            def move(c: Connection, a: int = a, b: int = b) -> None:
                c.execute("UPDATE acc SET bal = bal - 1 WHERE id = %s", (a,))
                c.execute("UPDATE acc SET bal = bal + 1 WHERE id = %s", (b,))

            transact(connection, move)
            assert value(connection, "SELECT sum(bal) FROM acc") == 100 * ACCOUNTS

    together(any_server, schema, work)
    with any_server.connect() as owner:
        use(owner, schema)
        assert value(owner, "SELECT sum(bal) FROM acc") == 100 * ACCOUNTS


@pytest.mark.timeout(180)
def test_counters_lose_no_update(any_server: Server, schema: str) -> None:
    with any_server.connect() as owner:
        use(owner, schema)
        owner.execute("CREATE TABLE n (id int PRIMARY KEY, v int NOT NULL)")
        owner.execute("INSERT INTO n VALUES (1, 0), (2, 0)")

    def work(connection: Connection, rng: random.Random, number: int) -> None:
        for _ in range(ROUNDS // 2):
            key = rng.choice((1, 2))

            def bump(c: Connection, key: int = key) -> None:
                row = c.execute("SELECT v FROM n WHERE id = %s", (key,)).fetchone()
                assert row is not None
                c.execute("UPDATE n SET v = %s WHERE id = %s", (int(str(row[0])) + 1, key))

            transact(connection, bump, attempts=2000)

    together(any_server, schema, work)
    with any_server.connect() as owner:
        use(owner, schema)
        assert value(owner, "SELECT sum(v) FROM n") == THREADS * (ROUNDS // 2)


@pytest.mark.timeout(180)
def test_foreign_keys_have_no_orphans(any_server: Server, schema: str) -> None:
    with any_server.connect() as owner:
        use(owner, schema)
        owner.execute("CREATE TABLE p (id int PRIMARY KEY)")
        owner.execute("CREATE TABLE c (id serial PRIMARY KEY, pid int NOT NULL REFERENCES p)")
        owner.execute("CREATE TABLE k (id serial PRIMARY KEY, pid int REFERENCES p ON DELETE CASCADE)")
        owner.execute("INSERT INTO p SELECT generate_series(1, 8)")

    def work(connection: Connection, rng: random.Random, number: int) -> None:
        for _ in range(ROUNDS):
            key = rng.randrange(1, 9)
            statements = (
                ["DELETE FROM c WHERE pid = %s", "DELETE FROM p WHERE id = %s"],
                ["INSERT INTO p VALUES (%s) ON CONFLICT DO NOTHING"],
                ["INSERT INTO c (pid) VALUES (%s)"],
                ["INSERT INTO k (pid) VALUES (%s)"],
            )[rng.randrange(4)]

            def act(c: Connection, key: int = key, statements: list[str] = statements) -> None:
                for statement in statements:
                    c.execute(statement.encode(), (key,))

            transact(connection, act)

    together(any_server, schema, work)
    with any_server.connect() as owner:
        use(owner, schema)
        for child in ("c", "k"):
            assert value(owner, f"SELECT count(*) FROM {child} x LEFT JOIN p ON p.id = x.pid WHERE p.id IS NULL") == 0


@pytest.mark.timeout(180)
def test_unique_keys_stay_unique(any_server: Server, schema: str) -> None:
    with any_server.connect() as owner:
        use(owner, schema)
        owner.execute("CREATE TABLE u (id serial PRIMARY KEY, k int UNIQUE, e text)")
        owner.execute("CREATE UNIQUE INDEX u_e ON u (lower(e)) WHERE k > 5")

    def work(connection: Connection, rng: random.Random, number: int) -> None:
        for _ in range(ROUNDS):
            key, new = rng.randrange(12), rng.randrange(12)
            statement = rng.choice(
                (
                    "INSERT INTO u (k, e) VALUES (%(k)s, chr(97 + %(n)s))",
                    "UPDATE u SET k = %(n)s WHERE k = %(k)s",
                    "DELETE FROM u WHERE k = %(k)s",
                    "INSERT INTO u (k, e) VALUES (%(k)s, chr(65 + %(n)s)) ON CONFLICT (k) DO UPDATE SET e = EXCLUDED.e",
                )
            )
            arguments = {"k": key, "n": new}

            def act(c: Connection, statement: str = statement, arguments: dict[str, int] = arguments) -> None:
                c.execute(statement.encode(), arguments)

            transact(connection, act)

    together(any_server, schema, work)
    with any_server.connect() as owner:
        use(owner, schema)
        assert value(owner, "SELECT count(*) - count(DISTINCT k) FROM u") == 0
        assert value(owner, "SELECT count(*) - count(DISTINCT lower(e)) FROM u WHERE k > 5 AND e IS NOT NULL") == 0
        owner.execute("SET enable_seqscan = off")
        by_index = owner.execute("SELECT id, k FROM u ORDER BY k, id").fetchall()
        owner.execute("SET enable_indexscan = off")
        owner.execute("SET enable_indexonlyscan = off")
        owner.execute("SET enable_seqscan = on")
        assert by_index == owner.execute("SELECT id, k FROM u ORDER BY k, id").fetchall()


@pytest.mark.timeout(180)
def test_long_fork_never_happens(any_server: Server, schema: str) -> None:
    """Readers of many counters, each written alone: any two snapshots must be comparable."""
    keys = 4
    with any_server.connect() as owner:
        use(owner, schema)
        owner.execute("CREATE TABLE f (id int PRIMARY KEY, v int NOT NULL)")
        owner.execute("INSERT INTO f SELECT i, 0 FROM generate_series(0, %s) i", (keys - 1,))
    seen: list[tuple[int, ...]] = []

    def work(connection: Connection, rng: random.Random, number: int) -> None:
        for _ in range(ROUNDS * 2):
            if number < keys:
                connection.execute("UPDATE f SET v = v + 1 WHERE id = %s", (number,))
            else:
                with connection.transaction():  # one statement per key: the snapshot must hold between them
                    order = rng.sample(range(keys), keys)
                    got = {k: value(connection, f"SELECT v FROM f WHERE id = {k}") for k in order}
                seen.append(tuple(int(str(got[k])) for k in range(keys)))

    together(any_server, schema, work)
    for a in seen:
        for b in seen:
            assert all(x <= y for x, y in zip(a, b, strict=True)) or all(x >= y for x, y in zip(a, b, strict=True))


@pytest.mark.timeout(180)
def test_serializable_keeps_one_doctor_on_call(any_server: Server, schema: str) -> None:
    with any_server.connect() as owner:
        use(owner, schema)
        owner.execute("CREATE TABLE d (id int PRIMARY KEY, ward int NOT NULL, on_call bool NOT NULL)")
        owner.execute("CREATE INDEX d_ward ON d (ward)")
        owner.execute("INSERT INTO d SELECT i, i % 3, true FROM generate_series(1, 12) i")

    def work(connection: Connection, rng: random.Random, number: int) -> None:
        connection.execute("SET default_transaction_isolation = 'serializable'")
        for _ in range(ROUNDS // 2):
            doctor = rng.randrange(1, 13)

            def toggle(c: Connection, doctor: int = doctor) -> None:
                row = c.execute("SELECT ward, on_call FROM d WHERE id = %s", (doctor,)).fetchone()
                assert row is not None
                others = value(c, f"SELECT count(*) FROM d WHERE ward = {row[0]} AND on_call AND id <> {doctor}")
                if not row[1] or int(str(others)) >= 1:
                    c.execute("UPDATE d SET on_call = NOT on_call WHERE id = %s", (doctor,))

            def look(c: Connection) -> None:
                assert value(c, "SELECT count(DISTINCT ward) FROM d WHERE on_call") == 3

            transact(connection, toggle, attempts=2000)
            transact(connection, look, attempts=2000)  # a reader, too, may be told to try again

    together(any_server, schema, work)
