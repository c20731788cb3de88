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
                right.append(str(rng.randrange(1, self.next_id)))
            return f"({', '.join(left)}) {rng.choice(('<', '<=', '>', '>=', '='))} ({', '.join(right)})"
        if roll < 0.95:
            return f"id {operator} {rng.randrange(1, self.next_id)}"
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
        keys = [name + self.rng.choice(DIRECTIONS) for name, _ in members]
        keys.insert(self.rng.randrange(1, len(keys) + 1), "id" + self.rng.choice(("", " DESC")))
        return ", ".join(keys)

    def order(self) -> str:
        members = self.rng.sample(self.columns, self.rng.randrange(3))
        return ", ".join(
            [*(name + self.rng.choice(DIRECTIONS) for name, _ in members), f"id{self.rng.choice(('', ' DESC'))}"]
        )

    def text(self, statements: int) -> str:
        rng, add = self.rng, self.out.append
        for create in {case.create: None for _, case in self.columns if case.create}:
            add(create)
        columns = ", ".join(f"{name} {case.type}" for name, case in self.columns)
        for table in ("a", "b"):
            add(f"CREATE TABLE {table} (id int NOT NULL, {columns});")
            add(f"INSERT INTO {table} VALUES {', '.join(self.row() for _ in range(60))};")
            for _ in range(2):
                add(f"CREATE INDEX ON {table} ({self.index()});")
        key = rng.choice(self.columns)[0]
        add(f"DELETE FROM a WHERE {key} IS NULL;")
        add(f"ALTER TABLE a ADD PRIMARY KEY ({key}, id);")
        add("SET enable_seqscan = off;")
        opened = False
        while len(self.out) < statements:
            roll = rng.random()
            table = rng.choice(("a", "b"))
            order = self.order()
            if roll < 0.06:
                add("SET enable_sort = " + rng.choice(("on;", "off;")))
            elif roll < 0.12:
                add("--@ state\n" + ("ROLLBACK;" if rng.random() < 0.5 else "COMMIT;") if opened else "BEGIN;")
                opened = not opened
            elif roll < 0.3:
                if opened:
                    add("SAVEPOINT s;")
                add(
                    "--@ state\n"
                    + rng.choice(
                        (
                            f"INSERT INTO {table} VALUES {self.row()}, {self.row()};",
                            f"DELETE FROM {table} WHERE id = {rng.randrange(1, self.next_id)};",
                            f"UPDATE {table} SET {key} = {self.value(key, dict(self.columns)[key], cross=False)} "
                            f"WHERE id BETWEEN {rng.randrange(1, self.next_id)} AND {rng.randrange(1, self.next_id)};",
                        )
                    )
                )
                if opened:
                    add("ROLLBACK TO s;" if rng.random() < 0.4 else "--@ state\nRELEASE s;")
            elif roll < 0.36 and opened:
                add("SAVEPOINT s;")
                add(f"DECLARE c SCROLL CURSOR FOR SELECT id FROM {table} WHERE {self.where()} ORDER BY {order};")
                for _ in range(6):
                    step = rng.choice(
                        ("NEXT", "3", "LAST", "PRIOR", "BACKWARD 2", "FIRST", "RELATIVE 0", "ABSOLUTE -2")
                    )
                    add(f"--@ state\nFETCH {step} FROM c;")
                add("ROLLBACK TO s;")
            elif roll < 0.45:
                name, case = rng.choice(self.columns)
                method = rng.choice(("mergejoin", "nestloop"))
                for other in ("mergejoin", "nestloop", "hashjoin"):
                    add(f"SET enable_{other} = {'on' if other == method else 'off'};")
                extra = rng.choice(("", f" AND a.{self.columns[0][0]} = b.{self.columns[0][0]}", " AND a.id < b.id"))
                kind = rng.choice(("JOIN", "LEFT JOIN", "JOIN"))
                add(f"--@ state\nSELECT a.id, b.id FROM a {kind} b ON a.{name} = b.{name}{extra} ORDER BY 1, 2;")
            elif roll < 0.52:
                name, case = rng.choice(self.columns)
                if case.minmax:
                    for function in ("min", "max"):
                        add(
                            f"--@ state\nSELECT id FROM {table} WHERE {name} = (SELECT {function}({name}) "
                            f"FROM {table} WHERE {self.where()}) ORDER BY id;"
                        )
            else:
                if opened:
                    add("SAVEPOINT s;")
                limit = rng.choice(("", "", f" LIMIT {rng.randrange(1, 6)}"))
                add(f"--@ state\nSELECT * FROM {table} WHERE {self.where()} ORDER BY {order}{limit};")
                if opened:
                    add("ROLLBACK TO s;")
        return "\n".join(self.out) + "\n"


def random_scan_script(seed: int, statements: int) -> str:
    """The file of a seed."""
    return ScanGenerator(seed).text(statements)
