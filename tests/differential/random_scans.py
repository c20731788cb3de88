"""Random index scans: `python -m tests.differential --random 50 --seed 1000` (with the random schemas).

Must hold: as in random_schemas.py, no answer depends on the order in which rows are visited.
"""

from __future__ import annotations

import random
import re

from tests.differential.generate import TYPES, TypeCase
from tests.differential.random_schemas import DIRECTIONS, quoted

CROSS = {
    "int2": ("int2", "int4", "int8"), "int4": ("int2", "int4", "int8"), "int8": ("int2", "int4", "int8"),
    "float4": ("float4", "float8"), "float8": ("float4", "float8"),
    "date": ("date", "timestamp", "timestamptz"), "timestamp": ("date", "timestamp", "timestamptz"),
    "timestamptz": ("date", "timestamp", "timestamptz"), "text": ("text", "name"), "name": ("text", "name"),
}  # fmt: skip


STEPS = ("NEXT", "3", "LAST", "PRIOR", "BACKWARD 2", "FIRST", "RELATIVE 0", "ABSOLUTE -2")


class ScanGenerator:
    """Conditions of every form over multi-column keys with duplicates and NULLs, own uncommitted rows among them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.out = [f"-- seed {seed}"]
        pool = [c for c in TYPES if c.array]
        self.columns = [(f"c{i}", case) for i, case in enumerate(self.rng.choices(pool, k=3))]
        size = self.rng.randrange(2, 6)
        self.domain = {name: self.rng.sample(case.values, min(size, len(case.values))) for name, case in self.columns}
        self.focus: dict[str, str] = {}  # what most conditions of a query are about, or few would match together
        self.next_id = 1
        self.big = self.rng.random() < 0.3
        self.ascending = self.rng.random() < 0.5  # all columns of all indexes
        self.opened = False  # a transaction
        self.loaded = 2  # ids below were there at first

    def value(self, name: str, case: TypeCase, cross: bool = True) -> str:
        value = self.rng.choice(case.values if self.rng.random() < 0.2 else self.domain[name])
        if name in self.focus and self.rng.random() < 0.7:
            value = self.focus[name]
        text = quoted(value, case)
        others = CROSS.get(case.name)
        # times at the ends of a type's range: whether the cast fails depends on the plan
        if cross and others and self.rng.random() < 0.4 and not re.search("5874897|294276|4713", value):
            return f"{text}::{self.rng.choice(others)}"
        return text

    def row(self) -> str:
        values = [str(self.next_id)]
        self.next_id += 1
        for name, case in self.columns:
            null = self.rng.random() < 0.2
            values.append("NULL" if null else quoted(self.rng.choice(self.domain[name]), case))
        return "(" + ", ".join(values) + ")"

    def condition(self) -> str:
        rng = self.rng
        name, case = rng.choice(self.columns)
        operator = rng.choice(("=", "=", "<", "<=", ">", ">="))
        roll = rng.random()
        if roll < 0.35:
            return f"{name} {operator} {self.value(name, case)}"
        if roll < 0.45:
            return f"{name} IS {rng.choice(('', 'NOT '))}NULL"
        if roll < 0.60:
            values = [self.value(name, case, cross=False) for _ in range(rng.randrange(1, 4))]
            if rng.random() < 0.3:
                values.append("NULL")
            rng.shuffle(values)
            return f"{name} {operator} ANY (ARRAY[{', '.join(values)}]::{case.type}[])"
        if roll < 0.70:
            values = [self.value(name, case, cross=False) for _ in range(2)]
            return f"{name} {rng.choice(('=', '<', '>='))} ALL (ARRAY[{', '.join(values)}]::{case.type}[])"
        if roll < 0.9:
            members = rng.sample(self.columns, rng.randrange(2, 4))
            if rng.random() < 0.7:
                members.sort(key=self.columns.index)
            left = [n for n, _ in members]
            right = [self.value(n, c) if rng.random() < 0.93 else f"NULL::{c.type}" for n, c in members]
            if rng.random() < 0.4:
                left.append("id")
                right.append(str(self.an_id()))
            return f"({', '.join(left)}) {rng.choice(('<', '<=', '>', '>=', '='))} ({', '.join(right)})"
        if roll < 0.95:
            return f"id {operator} {self.an_id()}"
        if case.name in ("text", "name", "varchar"):
            prefix = rng.choice(self.domain[name])[:2].replace("'", "''").replace("\\", "")
            return f"{name} LIKE '{prefix}%'"
        return f"{name} BETWEEN {self.value(name, case)} AND {self.value(name, case)}"

    def where(self) -> str:
        self.focus = {name: self.rng.choice(values) for name, values in self.domain.items()}
        conditions = [self.condition() for _ in range(self.rng.randrange(1, 5))]
        return " AND ".join(conditions) if self.rng.random() < 0.9 else " OR ".join(conditions[:2])

    def index(self) -> str:
        members = self.rng.sample(self.columns, self.rng.randrange(1, 4))
        keys = [name + self.rng.choice(("", " NULLS FIRST") if self.ascending else DIRECTIONS) for name, _ in members]
        keys.insert(
            self.rng.randrange(1, len(keys) + 1), "id" if self.ascending else self.rng.choice(("id", "id DESC"))
        )
        return ", ".join(keys)

    def order(self) -> str:
        members = self.rng.sample(self.columns, self.rng.randrange(3))
        keys = [name + self.rng.choice(DIRECTIONS) for name, _ in members]
        return ", ".join([*keys, self.rng.choice(("id", "id DESC"))])

    def an_id(self) -> int:
        return self.rng.randrange(1, self.loaded if self.rng.random() < 0.8 else self.next_id)

    # ------------------------------------------------------------ statements

    def add(self, statement: str) -> None:
        self.out.append(f"--@ state\n{statement};")

    def add_alone(self, statement: str, keep: float = 0.0) -> None:
        """A statement that may fail: a failure costs the open transaction nothing. With a probability it stays."""
        if self.opened:
            self.out.append("SAVEPOINT s;")
        self.add(statement)
        if self.opened:
            self.add("RELEASE s" if self.rng.random() < keep else "ROLLBACK TO s")

    def fill(self, table: str) -> None:
        rows = ", ".join(self.row() for _ in range(60))
        self.out.append(f"INSERT INTO {table} VALUES {rows};")
        if self.big:  # more than one trip to storage
            first, count = self.next_id, self.rng.randrange(500, 4000)
            self.next_id += count
            choices = []
            for n, (name, case) in enumerate(self.columns):
                values = ["NULL", *(quoted(v, case) for v in self.domain[name])]
                choices.append(f"(ARRAY[{', '.join(values)}])[1 + (i * {7 + n * 4} / {1 + n}) % {len(values)}]")
            self.out.append(
                f"INSERT INTO {table} SELECT i, {', '.join(choices)} "
                f"FROM generate_series({first}, {first + count - 1}) i;"
            )
        self.loaded = self.next_id

    def write(self, table: str) -> None:
        name, case = self.rng.choice(self.columns)
        low = self.an_id()
        value = self.value(name, case, cross=False)
        forms = [
            f"INSERT INTO {table} VALUES {self.row()}, {self.row()}",
            f"DELETE FROM {table} WHERE id = {low}",
            f"UPDATE {table} SET {name} = {value} WHERE id BETWEEN {low} AND {low + self.rng.randrange(60)}",
            f"UPDATE {table} SET {name} = {value} WHERE {self.where()}",
            f"DELETE FROM {table} WHERE ({self.where()}) AND id % 5 = 0",
        ]
        if self.next_id < 100_000_000:
            columns = ", ".join(n for n, _ in self.columns)
            forms.append(
                f"INSERT INTO {table} SELECT id + {self.next_id}, {columns} FROM {table} "
                f"WHERE ({self.where()}) AND id < {self.next_id} AND id % 3 = 0"
            )
            self.next_id *= 2
        self.add_alone(self.rng.choice(forms), keep=0.6)

    def cursor(self, table: str) -> None:
        self.out.append("SAVEPOINT s;")
        self.add(f"DECLARE c SCROLL CURSOR FOR SELECT id FROM {table} WHERE {self.where()} ORDER BY {self.order()}")
        for _ in range(6):
            self.add(f"FETCH {self.rng.choice(STEPS)} FROM c")
        self.out.append("ROLLBACK TO s;")

    def join(self) -> None:
        rng = self.rng
        name, _ = rng.choice(self.columns)
        method = rng.choice(("mergejoin", "nestloop"))
        for other in ("mergejoin", "nestloop", "hashjoin"):
            self.out.append(f"SET enable_{other} = {'on' if other == method else 'off'};")
        extra = rng.choice(("", f" AND a.{self.columns[0][0]} = b.{self.columns[0][0]}", " AND a.id < b.id"))
        where = " WHERE a.id < 30" if self.big else ""
        self.add_alone(
            f"SELECT count(*), sum(a.id), sum(b.id) FROM a {rng.choice(('JOIN', 'LEFT JOIN'))} b "
            f"ON a.{name} = b.{name}{extra}{where}"
        )

    def lateral(self) -> None:
        """Conditions whose values come from another row."""
        rng = self.rng
        conditions = []
        for _ in range(rng.randrange(1, 3)):
            members = rng.sample(self.columns, rng.randrange(1, 4))
            operator = rng.choice(("=", "<", "<=", ">", ">="))
            name, case = members[0]
            # PostgreSQL 18 loses rows when it repeats such a comparison over columns that are DESC
            if len(members) > 1 and self.ascending:
                left, right = (", ".join([*(f"{t}.{n}" for n, _ in members), f"{t}.id"]) for t in "ba")
                conditions.append(f"({left}) {rng.choice(('<', '<=', '>', '>='))} ({right})")
            elif rng.random() < 0.4:
                values = f"a.{name}, NULL, {self.value(name, case, cross=False)}"
                conditions.append(f"b.{name} {operator} ANY (ARRAY[{values}]::{case.type}[])")
            else:
                conditions.append(f"b.{name} {operator} a.{name}")
        self.add_alone(
            "SELECT a.id, x.id FROM a CROSS JOIN LATERAL (SELECT b.id FROM b "
            f"WHERE {' AND '.join(conditions)} ORDER BY {self.order()} LIMIT 3) x WHERE a.id < 40 ORDER BY 1, 2"
        )

    def extreme(self, table: str) -> None:
        name, case = self.rng.choice(self.columns)
        if case.minmax:
            for function in ("min", "max"):
                self.add_alone(
                    f"SELECT id FROM {table} WHERE {name} = (SELECT {function}({name}) "
                    f"FROM {table} WHERE {self.where()}) ORDER BY id LIMIT 50"
                )

    def select(self, table: str) -> None:
        limit = self.rng.choice(("", "", f" LIMIT {self.rng.randrange(1, 6)}", " FOR UPDATE"))
        query = f"SELECT * FROM {table} WHERE {self.where()} ORDER BY {self.order()}{limit}"
        if self.big:
            query = f"SELECT count(*), md5(string_agg(q::text, ' ')) FROM ({query}) q"
        self.add_alone(query)

    def text(self, statements: int) -> str:
        rng = self.rng
        self.out += list({case.create: None for _, case in self.columns if case.create})
        columns = ", ".join(f"{name} {case.type}" for name, case in self.columns)
        for table in ("a", "b"):
            self.out.append(f"CREATE TABLE {table} (id int NOT NULL, {columns});")
            self.fill(table)
            for _ in range(2):
                self.out.append(f"CREATE INDEX ON {table} ({self.index()});")
        key = rng.choice(self.columns)[0]
        self.out.append(f"DELETE FROM a WHERE {key} IS NULL;")
        self.out.append(f"ALTER TABLE a ADD PRIMARY KEY ({key}, id);")
        self.out.append("SET enable_seqscan = off;")
        while len(self.out) < statements:
            roll = rng.random()
            table = rng.choice(("a", "b"))
            if roll < 0.06:
                self.out.append("SET enable_sort = " + rng.choice(("on;", "off;")))
            elif roll < 0.12:
                self.add(rng.choice(("COMMIT", "ROLLBACK")) if self.opened else "BEGIN")
                self.opened = not self.opened
            elif roll < 0.3:
                self.write(table)
            elif roll < 0.36:
                if self.opened:
                    self.cursor(table)
            elif roll < 0.42:
                self.join()
            elif roll < 0.5:
                self.lateral()
            elif roll < 0.56:
                self.extreme(table)
            else:
                self.select(table)
        return "\n".join(self.out) + "\n"


def random_scan_script(seed: int, statements: int) -> str:
    """The file of a seed."""
    return ScanGenerator(seed).text(statements)
