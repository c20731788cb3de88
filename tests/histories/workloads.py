"""What clients do: transactions on lists, registers, a bank, unique keys and foreign keys, noted as they are done.

Rules for notes (see australis.simulation.history): a write is noted before its statement is sent, since nobody knows
what became of it if the connection breaks; what a statement turns out not to have done is taken away again; a read is
noted with its answer. Clients share a workload: what it keeps between transactions is a hint only, never part of the
history.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar

import psycopg
from psycopg import errors

from australis.simulation.history import (
    Append,
    Balances,
    Constraint,
    Delete,
    Get,
    Insert,
    Operation,
    Read,
    Refused,
    Rows,
    Transfer,
    Write,
)

Connection = psycopg.Connection[tuple[object, ...]]
Notes = list[Operation]


class Workload(ABC):
    """One kind of load. `schema` creates its tables; the rest goes into the history."""

    name: ClassVar[str]
    constraints: ClassVar[tuple[Constraint, ...]] = ()

    def __init__(self, *schema: str) -> None:
        self.schema = schema
        self.total = 0
        self.opening: dict[int, int] = {}

    @abstractmethod
    def play(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        """The statements of one transaction; errors of the database are the caller's."""

    @abstractmethod
    def alone(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        """One statement that is a transaction of its own."""

    @abstractmethod
    def read_all(self, connection: Connection, notes: Notes) -> None:
        """Everything, inside a transaction, when the load has ended."""


def rows(connection: Connection, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return connection.execute(query.encode(), parameters or None).fetchall()


def number(value: object) -> int:
    """An integer column."""
    return int(str(value))


class Lists(Workload):
    """Lists in three tables; keys are used for some fifty appends, then replaced by fresh ones."""

    name = "append"
    TABLES = 3
    ACTIVE = 8
    LENGTH = 50

    def __init__(self) -> None:
        super().__init__(
            *(
                statement
                for n in range(self.TABLES)
                for statement in (
                    f"CREATE TABLE list{n} (k bigint PRIMARY KEY, other bigint NOT NULL, v bigint[] NOT NULL)",
                    f"CREATE INDEX ON list{n} (other)",
                )
            )
        )
        self._values = count(1)
        self._fresh = count(self.ACTIVE)
        self._active = list(range(self.ACTIVE))

    def _key(self, rng: random.Random) -> int:
        return self._active[rng.randrange(self.ACTIVE)]

    def _grown(self, key: int, length: int) -> None:
        if length >= self.LENGTH and key in self._active[:]:
            for place, active in enumerate(self._active):  # twice at the same time does no harm
                if active == key:
                    self._active[place] = next(self._fresh)

    def _append(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        key, value = self._key(rng), next(self._values)
        table = f"list{key % self.TABLES}"
        notes.append(Append(key, value))
        if rng.random() < 0.5:
            changed = connection.execute(f"UPDATE {table} SET v = v || %s::bigint WHERE k = %s".encode(), (value, key))
            if changed.rowcount:
                return
        connection.execute(
            f"INSERT INTO {table} AS t VALUES (%(k)s, %(k)s, ARRAY[%(v)s::bigint])"
            " ON CONFLICT (k) DO UPDATE SET v = t.v || EXCLUDED.v".encode(),
            {"k": key, "v": value},
        )

    def _read(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        key = self._key(rng)
        table, column = f"list{key % self.TABLES}", rng.choice(("k", "k", "other"))
        row = connection.execute(f"SELECT v FROM {table} WHERE {column} = %s".encode(), (key,)).fetchone()
        self._note(key, row[0] if row else (), notes)

    def _note(self, key: int, values: object, notes: Notes) -> None:
        assert isinstance(values, list | tuple)
        notes.append(Read(key, tuple(values)))
        self._grown(key, len(values))

    def play(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        for _ in range(rng.randrange(1, 5)):
            (self._append if rng.random() < 0.5 else self._read)(connection, rng, notes)

    def alone(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        if rng.random() < 0.5:
            key, value = self._key(rng), next(self._values)
            notes.append(Append(key, value))
            connection.execute(
                f"INSERT INTO list{key % self.TABLES} AS t VALUES (%(k)s, %(k)s, ARRAY[%(v)s::bigint])"
                " ON CONFLICT (k) DO UPDATE SET v = t.v || EXCLUDED.v".encode(),
                {"k": key, "v": value},
            )
            return
        table = rng.randrange(self.TABLES)
        keys = sorted(k for k in set(self._active) if k % self.TABLES == table)
        found = dict(rows(connection, f"SELECT k, v FROM list{table} WHERE k = ANY(%s)", keys))
        for key in keys:
            self._note(key, found.get(key, ()), notes)

    def read_all(self, connection: Connection, notes: Notes) -> None:
        found: dict[object, object] = {}
        for table in range(self.TABLES):
            found |= dict(rows(connection, f"SELECT k, v FROM list{table}"))
        for key in range(max(self._active) + 1):
            self._note(key, found.get(key, ()), notes)


class Registers(Workload):
    """Single values, replaced blindly or after they were read."""

    name = "register"
    KEYS = 12

    def __init__(self) -> None:
        super().__init__(
            "CREATE TABLE register (k bigint PRIMARY KEY, other bigint NOT NULL, v bigint NOT NULL)",
            "CREATE INDEX ON register (other) INCLUDE (v)",
        )
        self._values = count(1)

    def _write(self, connection: Connection, key: int, notes: Notes) -> None:
        value = next(self._values)
        notes.append(Write(key, value))
        connection.execute(
            "INSERT INTO register VALUES (%(k)s, %(k)s, %(v)s) ON CONFLICT (k) DO UPDATE SET v = EXCLUDED.v",
            {"k": key, "v": value},
        )

    def _get(self, connection: Connection, rng: random.Random, key: int, notes: Notes) -> None:
        column = rng.choice(("k", "other"))
        row = connection.execute(f"SELECT v FROM register WHERE {column} = %s".encode(), (key,)).fetchone()
        notes.append(Get(key, number(row[0]) if row else None))

    def play(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        for _ in range(rng.randrange(1, 4)):
            key = rng.randrange(self.KEYS)
            what = rng.randrange(3)
            if what:
                self._get(connection, rng, key, notes)
            if what < 2:
                self._write(connection, key, notes)

    def alone(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        if rng.random() < 0.5:
            self._write(connection, rng.randrange(self.KEYS), notes)
        else:
            self.read_all(connection, notes)

    def read_all(self, connection: Connection, notes: Notes) -> None:
        found = dict(rows(connection, "SELECT k, v FROM register"))
        notes += [Get(key, number(found[key]) if key in found else None) for key in range(self.KEYS)]


class Bank(Workload):
    """Transfers between accounts, each with a row of its own; balances are read in several ways."""

    name = "bank"
    ACCOUNTS = 8
    EACH = 100

    def __init__(self) -> None:
        super().__init__(
            "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL)",
            "CREATE TABLE transfer (number bigint PRIMARY KEY, source bigint, destination bigint, amount bigint)",
            f"INSERT INTO account SELECT i, {self.EACH} FROM generate_series(0, {self.ACCOUNTS - 1}) i",
        )
        self.total = self.ACCOUNTS * self.EACH
        self.opening = dict.fromkeys(range(self.ACCOUNTS), self.EACH)
        self._numbers = count(1)

    def play(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        if rng.random() < 0.3:
            self._balances(connection, rng, notes)
            return
        source, destination = rng.sample(range(self.ACCOUNTS), 2)
        amount = rng.randrange(1, 30)
        row = connection.execute("SELECT balance FROM account WHERE id = %s", (source,)).fetchone()
        if row is None or number(row[0]) < amount:
            return
        notes.append(Transfer(next(self._numbers), source, destination, amount))
        made = notes[-1]
        assert isinstance(made, Transfer)
        connection.execute("UPDATE account SET balance = %s WHERE id = %s", (number(row[0]) - amount, source))
        connection.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, destination))
        connection.execute("INSERT INTO transfer VALUES (%s, %s, %s, %s)", (made.number, source, destination, amount))

    def _balances(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        found: dict[int, int] = {}
        for ids in ([i for i in range(self.ACCOUNTS) if i % 3 == part] for part in rng.sample(range(3), 3)):
            some = rows(connection, "SELECT id, balance FROM account WHERE id = ANY(%s)", ids)
            found |= {number(i): number(b) for i, b in some}
        notes.append(Balances(found))

    def alone(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        found = rows(connection, "SELECT id, balance FROM account")
        notes.append(Balances({number(i): number(b) for i, b in found}))

    def read_all(self, connection: Connection, notes: Notes) -> None:
        accounts = rows(connection, "SELECT id, balance FROM account")
        transfers = rows(connection, "SELECT number FROM transfer")
        notes.append(
            Balances({number(i): number(b) for i, b in accounts}, tuple(number(n) for (n,) in transfers)),
        )


class Unique(Workload):
    """Rows that come and go under a few unique keys."""

    name = "unique"
    KEYS = 30
    constraints = (Constraint("item"),)

    def __init__(self) -> None:
        super().__init__("CREATE TABLE item (row bigint PRIMARY KEY, k bigint NOT NULL UNIQUE)")
        self._rows = count(1)

    def _insert(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        row, key = next(self._rows), rng.randrange(self.KEYS)
        notes.append(Insert("item", row, key))
        clause = rng.choice(("", "", "ON CONFLICT DO NOTHING", "ON CONFLICT (k) DO NOTHING"))
        try:
            done = connection.execute(f"INSERT INTO item VALUES (%s, %s) {clause}".encode(), (row, key))
        except errors.UniqueViolation:
            notes.append(Refused("item", key))
            raise
        if not done.rowcount:
            notes.pop()

    def _delete(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        found = connection.execute("SELECT row FROM item WHERE k = %s", (rng.randrange(self.KEYS),)).fetchone()
        if found is None:
            return
        notes.append(Delete("item", number(found[0])))
        if not connection.execute("DELETE FROM item WHERE row = %s", found).rowcount:
            notes.pop()

    def _replace(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        found = connection.execute("SELECT row FROM item WHERE k = %s", (rng.randrange(self.KEYS),)).fetchone()
        if found is None:
            return
        row, key = next(self._rows), rng.randrange(self.KEYS)
        notes += [Delete("item", number(found[0])), Insert("item", row, key)]
        try:
            done = connection.execute("UPDATE item SET row = %s, k = %s WHERE row = %s", (row, key, found[0]))
        except errors.UniqueViolation:
            notes.append(Refused("item", key))
            raise
        if not done.rowcount:
            del notes[-2:]

    def play(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        what = rng.random()
        if what < 0.15:
            self.read_all(connection, notes)
        elif what < 0.6:
            self._insert(connection, rng, notes)
        elif what < 0.8:
            self._delete(connection, rng, notes)
        else:
            self._replace(connection, rng, notes)

    def alone(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        self._insert(connection, rng, notes)

    def read_all(self, connection: Connection, notes: Notes) -> None:
        for path, off in (("table", "enable_indexscan"), ("index", "enable_seqscan")):
            connection.execute(f"SET LOCAL {off} = off".encode())
            found = rows(connection, "SELECT row, k FROM item ORDER BY k")
            connection.execute(f"SET LOCAL {off} = on".encode())
            notes.append(Rows("item", tuple((number(r), number(k)) for r, k in found), path))


class ForeignKeys(Workload):
    """Parents and children that come and go."""

    name = "foreign-key"
    KNOWN = 25
    constraints = (Constraint("child", "parent"),)

    def __init__(self) -> None:
        super().__init__(
            "CREATE TABLE parent (row bigint PRIMARY KEY)",
            "CREATE TABLE child (row bigint PRIMARY KEY, parent bigint NOT NULL REFERENCES parent)",
            "CREATE INDEX ON child (parent)",
        )
        self._rows = count(1)
        self._parents: deque[int] = deque([0], maxlen=self.KNOWN)
        self._children: deque[int] = deque([0], maxlen=2 * self.KNOWN)

    def play(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        what = rng.random()
        if what < 0.15:
            self.read_all(connection, notes)
        elif what < 0.3:
            self.alone(connection, rng, notes)
        elif what < 0.6:
            row, parent = next(self._rows), rng.choice(tuple(self._parents))
            notes.append(Insert("child", row, parent))
            connection.execute("INSERT INTO child VALUES (%s, %s)", (row, parent))
            self._children.append(row)
        elif what < 0.8:
            self._delete(connection, "child", rng.choice(tuple(self._children)), notes)
        else:
            parent = rng.choice(tuple(self._parents))
            for (child,) in rows(connection, "SELECT row FROM child WHERE parent = %s", parent):
                self._delete(connection, "child", number(child), notes)
            self._delete(connection, "parent", parent, notes)

    @staticmethod
    def _delete(connection: Connection, table: str, row: int, notes: Notes) -> None:
        notes.append(Delete(table, row))
        if not connection.execute(f"DELETE FROM {table} WHERE row = %s".encode(), (row,)).rowcount:
            notes.pop()

    def alone(self, connection: Connection, rng: random.Random, notes: Notes) -> None:
        row = next(self._rows)
        notes.append(Insert("parent", row, 0))
        connection.execute("INSERT INTO parent VALUES (%s)", (row,))
        self._parents.append(row)

    def read_all(self, connection: Connection, notes: Notes) -> None:
        parents = rows(connection, "SELECT row FROM parent")
        children = rows(connection, "SELECT row, parent FROM child")
        notes.append(Rows("parent", tuple((number(row), 0) for (row,) in parents)))
        notes.append(Rows("child", tuple((number(row), number(parent)) for row, parent in children)))


WORKLOADS: dict[str, Callable[[], Workload]] = {w.name: w for w in (Lists, Registers, Bank, Unique, ForeignKeys)}
