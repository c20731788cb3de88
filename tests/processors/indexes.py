"""Writers of one table while its indexes are made, dropped and made again; and a checker of what is in an index.

The checker reads every index of a table by itself and compares it with the table, on one snapshot: an entry that is
missing, and one that is left of a row that is gone or has other values, both show.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import psycopg

Connection = psycopg.Connection[tuple[object, ...]]
Connect = Callable[[int], Connection]

ROWS = 6000
TABLE = "stock"
SETUP = f"""
DROP TABLE IF EXISTS {TABLE};
CREATE TABLE {TABLE} (id int PRIMARY KEY, a int, b text, serial int);
INSERT INTO {TABLE} SELECT g, g % 100, 'b' || g, g FROM generate_series(1, {ROWS}) g;
"""

INDEXES = {
    "plain": ("CREATE INDEX {how} plain ON stock (a) INCLUDE (id)", "a, id", "true"),
    "hot": ("CREATE INDEX {how} hot ON stock (serial DESC) INCLUDE (id)", "serial, id", "true"),
    "one": ("CREATE UNIQUE INDEX {how} one ON stock (id, a)", "id, a", "true"),
    "part": ("CREATE INDEX {how} part ON stock (b) INCLUDE (id) WHERE a < 50", "b, id", "a < 50"),
    "made": ("CREATE INDEX {how} made ON stock (upper(b), a) INCLUDE (id)", "upper(b), a, id", "true"),
}
"""name -> (statement, what is compared, rows that are in it)"""


class Writers:
    """`count` sessions that write the table until the block ends; 40001 is the one error that may come."""

    def __init__(self, connect: Connect, count: int, seed: int = 1) -> None:
        """`connect(n)` opens a session of writer n."""
        self._connect, self._seed = connect, seed
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guard, args=(n,)) for n in range(count)]
        self._lock = threading.Lock()
        self.written: Counter[int] = Counter()
        self.retries: Counter[str] = Counter()
        self.wrong: list[str] = []

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads)
            assert not self.wrong, self.wrong[:5]

    def _guard(self, number: int) -> None:
        try:
            self._write(number, random.Random(f"{self._seed} {number}"))
        except Exception as error:  # noqa: BLE001 - a thread must not die unheard
            self.wrong.append(f"writer {number}: {type(error).__name__} {error}"[:400])

    def _write(self, number: int, random: random.Random) -> None:
        session = self._connect(number)
        serial = number * 1_000_000
        while not self._stop.is_set():
            serial += 1
            row = random.randint(1, ROWS + ROWS // 4)
            hot = random.randint(1, 5)
            statements = random.choice(
                (
                    [f"UPDATE {TABLE} SET a = {random.randint(0, 99)} WHERE id = {row}"],
                    [f"UPDATE {TABLE} SET serial = {serial} WHERE id = {hot}"],
                    [f"UPDATE {TABLE} SET b = b || 'x' WHERE id BETWEEN {row} AND {row + 5}"],
                    [f"DELETE FROM {TABLE} WHERE id = {row}"],
                    [f"INSERT INTO {TABLE} VALUES ({row}, {row % 100}, 'new', {serial}) ON CONFLICT DO NOTHING"],
                    [
                        f"DELETE FROM {TABLE} WHERE id = {row}",
                        f"INSERT INTO {TABLE} VALUES ({row}, 7, 'again', {serial})",
                        f"UPDATE {TABLE} SET a = 8 WHERE id = {row}",
                    ],
                )
            )
            try:
                with session.transaction():
                    for statement in statements:
                        session.execute(statement)
            except psycopg.Error as error:
                if session.closed and error.sqlstate in (None, "40001", "57P01", "57P02", "57P03"):
                    # its query processor was killed, or a schema change ended it while it was idle in a transaction
                    session = self._reconnect(number)
                elif error.sqlstate != "40001":
                    raise
                with self._lock:
                    self.retries[str(error.sqlstate)] += 1
            else:
                with self._lock:
                    self.written[number] += 1
        session.close()

    def _reconnect(self, number: int) -> Connection:
        while True:
            try:
                return self._connect(number)
            except psycopg.OperationalError:
                if self._stop.wait(0.1):  # another process starts; there is nothing to wait on
                    return self._connect(number)


def states(session: Connection, table: str = TABLE) -> dict[str, tuple[object, object]]:
    """Index name -> (ready, valid), without the primary key."""
    found = session.execute(
        "SELECT c.relname, i.indisready, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        f" WHERE i.indrelid = '{table}'::regclass AND NOT i.indisprimary"
    )
    return {str(name): (ready, valid) for name, ready, valid in found}


ATTEMPTS = 10


def differences(session: Connection, index: str, columns: str, where: str, table: str = TABLE) -> list[str]:
    """What a scan of the index and one of the table do not have in common, on one snapshot; in both orders."""
    found: list[str] = []
    order = [columns.split(",")[0]]
    if "(" in order[0]:
        order = [columns[: columns.index(")") + 1]]
    if index == "one":
        order = ["id", "a"]  # the primary key has the first order too
    with session.transaction():
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.execute("SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off")
        query = f"SELECT {columns} FROM {table} WHERE {where}"
        plan = session.execute(f"EXPLAIN {query}").fetchall()
        assert "Seq Scan" in str(plan), plan
        rows = Counter(session.execute(query).fetchall())
        session.execute(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off"
        )
        session.execute("SET LOCAL enable_indexscan = on; SET LOCAL enable_indexonlyscan = on")
        for direction in ("", " DESC"):
            by = ", ".join(column + direction for column in order)
            query = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {by}"
            plan = session.execute(f"EXPLAIN {query}").fetchall()
            assert f"using {index} " in str(plan), plan
            entries = Counter(session.execute(query).fetchall())
            found += [f"{index}{direction}: no entry {one}" for one in (rows - entries)]
            found += [f"{index}{direction}: left over {one}" for one in (entries - rows)]
    return found


def check(connect: Connect, count: int, names: list[str]) -> None:
    """Compare these indexes with the table on each of `count` query processors."""
    for number in range(count):
        with connect(number) as session:
            valid = states(session)
            for name in names:
                assert valid[name] == (True, True)
                _, columns, where = INDEXES[name]
                for attempt in range(ATTEMPTS):
                    try:
                        wrong = differences(session, name, columns, where)
                        break
                    except psycopg.errors.SerializationFailure as error:
                        # this processor hears of the last change just now, and the transaction is in its way
                        assert "(OC001)" in str(error) and attempt + 1 < ATTEMPTS
                assert not wrong, (number, len(wrong), wrong[:5])
