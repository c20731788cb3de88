"""Random schemas and random statements over them: `python -m tests.differential --random 50 --seed 1000`.

Tables with columns of every type, keys, indexes, constraints, partitions and triggers; writes, reads and schema changes
in transactions with savepoints and exception blocks; at the end all contents. A seed makes the same file every time.

Must hold: no answer depends on the order in which rows are visited, which is another one than in a heap. Hence `id` is
unique in every table, statements that could fail change one row or compare only whether they failed, and a choice
between equal values that print differently (1.0 and 1.00) is never printed.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.differential.generate import TYPES, TypeCase

DIRECTIONS = ("", " DESC", " NULLS FIRST", " DESC NULLS LAST")
SETTINGS = ("seqscan", "sort", "hashjoin", "mergejoin", "nestloop", "hashagg", "indexscan", "memoize", "material")
ACTIONS = ("NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT", "SET NULL (ref)")


@dataclass
class Column:
    """A column the generator may name. `case` is None for helper columns of type int."""

    name: str
    case: TypeCase | None = None
    generated: str = ""  # "", STORED or VIRTUAL
    not_null: bool = False


@dataclass
class Table:
    """What the generator believes of a table."""

    name: str
    columns: list[Column]
    unique_id: bool = False
    key: str = ""  # name of the primary key's constraint
    partitioned: str = ""  # "", range, list, hash
    partitions: list[str] = field(default_factory=list)
    detached: list[tuple[str, str]] = field(default_factory=list)
    indexes: dict[str, str] = field(default_factory=dict)  # name -> keys and WHERE
    constraints: list[str] = field(default_factory=list)
    triggers: list[str] = field(default_factory=list)
    has_ref: bool = False
    triggered: bool = False

    @property
    def typed(self) -> list[Column]:
        return [c for c in self.columns if c.case is not None]

    @property
    def written(self) -> list[Column]:
        return [c for c in self.typed if not c.generated]

    @property
    def keyable(self) -> list[Column]:
        return [c for c in self.columns if c.generated != "VIRTUAL"]


@dataclass
class Model:
    """All tables; copied at BEGIN and SAVEPOINT, put back at ROLLBACK."""

    tables: dict[str, Table] = field(default_factory=dict)


def quoted(value: str, case: TypeCase) -> str:
    """A value as a literal of its type."""
    return "'" + value.replace("'", "''") + "'::" + case.type


class Generator:
    """One file."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.out: list[str] = [f"-- seed {seed}"]
        self.model = Model()
        self.number = 0
        self.next_id = 1
        self.stack: list[tuple[str, Model]] = []  # open transaction ("") and savepoints
        self.cases: dict[str, TypeCase] = {}

    # ---------------------------------------------------------------- pieces

    def name(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}{self.number}"

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def ids(self, count: int) -> int:
        """The first of `count` fresh ids."""
        first = self.next_id
        self.next_id += count
        return first

    def some_id(self) -> int:
        return self.rng.randrange(1, max(2, self.next_id))

    def value(self, case: TypeCase) -> str:
        return quoted(self.rng.choice(case.values), case)

    def new_column(self) -> Column:
        case = self.rng.choice(list(self.cases.values()))
        return Column(self.name("c"), case)

    def table(self) -> Table:
        return self.rng.choice(list(self.model.tables.values()))

    def column_definition(self, column: Column, populated: bool) -> str:
        assert column.case is not None
        text = f"{column.name} {column.case.type}"
        roll = self.rng.random()
        if column.case.name in ("int4", "int8") and roll < 0.3:
            column.generated = self.rng.choice(("STORED", "VIRTUAL"))
            return f"{text} GENERATED ALWAYS AS (id * 3 - 10) {column.generated}"
        if column.case.name == "text" and roll < 0.3:
            column.generated = self.rng.choice(("STORED", "VIRTUAL"))
            return f"{text} GENERATED ALWAYS AS ('g' || (id % 5)) {column.generated}"
        if roll < 0.5:
            text += f" DEFAULT {self.value(column.case)}"
            if roll < 0.25:
                column.not_null = True
                text += " NOT NULL"
        elif roll < 0.55 and not populated:
            column.not_null = True
            text += f" CONSTRAINT {column.name}_nn NOT NULL"
        return text

    def key_columns(self, table: Table, count: int) -> str:
        chosen = self.rng.sample(table.keyable, min(count, len(table.keyable)))
        return ", ".join(c.name + self.rng.choice(DIRECTIONS) for c in chosen)

    def condition(self, table: Table, alias: str = "") -> str:
        prefix = f"{alias}." if alias else ""
        roll = self.rng.random()
        if roll < 0.25 or not table.typed:
            return f"{prefix}id = {self.some_id()}"
        if roll < 0.35:
            low = self.some_id()
            return f"{prefix}id BETWEEN {low} AND {low + self.rng.randrange(8)}"
        if roll < 0.42:
            return f"{prefix}g IN ({self.rng.randrange(4)}, {self.rng.randrange(4)})"
        column = self.rng.choice(table.typed)
        assert column.case is not None
        name, value = prefix + column.name, self.value(column.case)
        if roll < 0.5:
            return f"{name} IS {self.rng.choice(('', 'NOT '))}NULL"
        if roll < 0.58 and column.case.array:
            return f"{name} = ANY (ARRAY[{value}, NULL, {self.value(column.case)}])"
        if roll < 0.66:
            return f"{name} BETWEEN SYMMETRIC {value} AND {self.value(column.case)}"
        if roll < 0.74:
            return f"({name}, {prefix}id) {self.rng.choice(('<', '<=', '>', '>='))} ({value}, {self.some_id()})"
        if roll < 0.80:
            return f"{name} IS {self.rng.choice(('', 'NOT '))}DISTINCT FROM {value}"
        if roll < 0.88:
            return f"{name} {self.rng.choice(('<', '>'))} {value} OR {prefix}id = {self.some_id()}"
        return f"{name} {self.rng.choice(('=', '<', '<=', '>', '>=', '<>'))} {value}"

    def row(self, table: Table, columns: list[Column], number: int) -> str:
        values = [str(number), str(number % 4)]
        if table.has_ref:
            values.append("NULL" if self.chance(0.5) else str(self.some_id()))
        for column in columns:
            assert column.case is not None
            if not column.not_null and self.chance(0.15):
                values.append("NULL")
            else:
                values.append(self.rng.choice((self.value(column.case),) * 5 + ("DEFAULT",)))
        return "(" + ", ".join(values) + ")"

    def target(self, table: Table, columns: list[Column]) -> str:
        names = ["id", "g", *(["ref"] if table.has_ref else []), *(c.name for c in columns)]
        return f"{table.name} ({', '.join(names)})"

    def assignments(self, table: Table) -> str:
        columns = self.rng.sample(table.written, min(len(table.written), self.rng.randrange(1, 3)))
        parts = []
        for column in columns:
            assert column.case is not None
            parts.append(f"{column.name} = {self.rng.choice((self.value(column.case),) * 4 + ('DEFAULT',))}")
        if self.chance(0.2) or not parts:
            parts.append(f"g = {self.rng.randrange(5)}")
        return ", ".join(parts)

    # ------------------------------------------------------------ statements

    def add(self, statement: str) -> None:
        """A statement that may fail. In a transaction only inside an exception block, or all after it would be lost."""
        if self.stack:
            self.out.append(
                f"DO $do$ BEGIN {statement}; EXCEPTION WHEN OTHERS THEN RAISE NOTICE '%', SQLSTATE; END $do$;"
            )
        else:
            self.out.append(f"--@ state\n{statement};")

    def add_returning(self, statement: str, returning: str) -> None:
        """A write whose RETURNING is shown."""
        if self.stack:
            self.out.append(
                "DO $do$ DECLARE x text; BEGIN "
                f"WITH w AS ({statement} RETURNING {returning}) SELECT string_agg(w::text, ' ' ORDER BY w::text) "
                "INTO x FROM w; RAISE NOTICE '%', x; EXCEPTION WHEN OTHERS THEN RAISE NOTICE '%', SQLSTATE; END $do$;"
            )
        else:
            self.out.append(f"--@ state\n{statement} RETURNING {returning};")

    def insert(self) -> None:
        table = self.table()
        columns = [c for c in table.written if c.not_null or self.chance(0.8)]
        target = self.target(table, columns)
        roll = self.rng.random()
        if roll < 0.5:
            count = self.rng.choice((1, 1, 2, 5))
            first = self.ids(count)
            rows = ", ".join(self.row(table, columns, first + i) for i in range(count))
            self.add_returning(f"INSERT INTO {target} VALUES {rows}", "*")
        elif roll < 0.6:
            count = self.rng.choice((10, 60))
            first = self.ids(count)
            values = self.row(table, columns, 0)[1:-1].split(", ", 2)
            rest = ", ".join(["i", "i % 4", *values[2:]]).replace("DEFAULT", "NULL")
            self.add(f"INSERT INTO {target} SELECT {rest} FROM generate_series({first}, {first + count - 1}) i")
        elif roll < 0.7:
            offset = self.ids(self.next_id)
            source = [c.name for c in columns]
            names = ", ".join([f"id + {offset}", "g", *(["ref"] if table.has_ref else []), *source])
            self.add(
                f"INSERT INTO {target} SELECT {names} FROM {table.name} WHERE id < {offset} AND id % 5 = "
                f"{self.rng.randrange(5)}"
            )
        elif table.unique_id:
            number = self.some_id()
            row = self.row(table, columns, number)
            action = self.rng.choice(
                ("DO NOTHING", f"DO UPDATE SET {self.assignments(table)}", "DO UPDATE SET g = EXCLUDED.g + 1")
            )
            where = f" WHERE {self.condition(table, table.name)}" if "UPDATE" in action and self.chance(0.4) else ""
            self.add_returning(
                f"INSERT INTO {target} VALUES {row} ON CONFLICT (id) {action}{where}",
                "OLD.*, NEW.id" if self.chance(0.3) else "*",
            )
        else:
            self.add(f"INSERT INTO {target} VALUES {self.row(table, columns, self.ids(1))}")

    def duplicate(self) -> None:
        """A key that may exist."""
        tables = [t for t in self.model.tables.values() if t.unique_id]
        if tables:
            table = self.rng.choice(tables)
            columns = table.written
            self.add(f"INSERT INTO {self.target(table, columns)} VALUES {self.row(table, columns, self.some_id())}")

    def update(self) -> None:
        table = self.table()
        roll = self.rng.random()
        if roll < 0.65:
            returning = self.rng.choice(("*", "id", "OLD.*, NEW.*", "OLD.g, NEW.g, id"))
            self.add_returning(
                f"UPDATE {table.name} SET {self.assignments(table)} WHERE {self.condition(table)}", returning
            )
        elif roll < 0.8:
            self.add_returning(
                f"UPDATE {table.name} SET id = {self.ids(1)} WHERE id = {self.some_id()}", "OLD.id, NEW.id"
            )
        else:
            other = self.table()
            self.add_returning(
                f"UPDATE {table.name} SET {self.assignments(table)} FROM {other.name} o "
                f"WHERE {table.name}.id = o.id + {self.rng.randrange(3)} AND ({self.condition(other, 'o')})",
                f"{table.name}.id, o.g",
            )

    def delete(self) -> None:
        table = self.table()
        if self.chance(0.7):
            self.add_returning(f"DELETE FROM {table.name} WHERE {self.condition(table)}", "*")
        else:
            other = self.table()
            self.add_returning(
                f"DELETE FROM {table.name} USING {other.name} o WHERE {table.name}.id = o.id + 1 AND "
                f"({self.condition(other, 'o')})",
                f"{table.name}.id",
            )

    def merge(self) -> None:
        table, other = self.table(), self.table()
        columns = table.written
        clauses = []
        if self.chance(0.4):
            clauses.append(f"WHEN MATCHED AND {self.condition(table, 't')} THEN DELETE")
        if self.chance(0.7):
            clauses.append(f"WHEN MATCHED THEN UPDATE SET {self.assignments(table)}")
        if self.chance(0.3):
            clauses.append("WHEN NOT MATCHED BY SOURCE AND t.g = 1 THEN UPDATE SET g = 9")
        names = self.target(table, columns).split(" ", 1)[1]
        if self.chance(0.6) or not clauses:
            offset = self.ids(self.next_id)
            row = self.row(table, columns, 0)[1:-1].split(", ", 1)[1]
            clauses.append(f"WHEN NOT MATCHED THEN INSERT {names} VALUES (s.id + {offset}, {row})")
        low = self.some_id()
        self.add_returning(
            f"MERGE INTO {table.name} t USING (SELECT id, g FROM {other.name} WHERE id BETWEEN {low} AND {low + 6}) s "
            f"ON t.id = s.id {' '.join(clauses)}",
            "merge_action(), t.*" if self.chance(0.5) else "merge_action(), OLD.id, NEW.id",
        )

    def copy_in(self) -> None:
        table = self.table()
        columns = [c for c in table.written if c.case is not None and c.case.name not in ("bytea", "quoted_char")]
        if self.stack or not columns:
            return
        first = self.ids(3)
        names = ", ".join(["id", "g", *(c.name for c in columns)])
        lines = []
        for i in range(3):
            row = [str(first + i), str(i)]
            for column in columns:
                assert column.case is not None
                value = self.rng.choice(column.case.values)
                if not column.not_null and self.chance(0.2):
                    row.append("\\N")
                else:
                    escaped = value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
                    row.append(escaped)
            lines.append("\t".join(row))
        self.out.append(f"--@ state\nCOPY {table.name} ({names}) FROM stdin;\n" + "\n".join(lines) + "\n\\.")

    def select(self) -> None:
        table = self.table()
        condition = self.condition(table)
        keys = self.key_columns(table, self.rng.randrange(3))
        order = ", ".join(filter(None, (keys, "id")))
        roll = self.rng.random()
        if roll < 0.4:
            limit = self.rng.choice(("", "", " LIMIT 5", " LIMIT 4 OFFSET 3"))
            lock = self.rng.choice(("", "", "", " FOR UPDATE", " FOR KEY SHARE"))
            self.out.append(f"SELECT * FROM {table.name} WHERE {condition} ORDER BY {order}{limit}{lock};")
        elif roll < 0.5 and table.typed:
            column = self.rng.choice(table.typed)
            assert column.case is not None
            if column.case.minmax:
                for function in ("min", "max"):
                    self.out.append(
                        f"SELECT id FROM {table.name} WHERE {column.name} = (SELECT {function}({column.name}) "
                        f"FROM {table.name} WHERE {condition}) ORDER BY id;"
                    )
        elif roll < 0.6 and table.typed:
            column = self.rng.choice(table.typed)
            self.out.append(
                f"SELECT count(*), min(id), max(g), sum(count(*)) OVER (ORDER BY {column.name}) FROM {table.name} "
                f"WHERE {condition} GROUP BY {column.name} ORDER BY {column.name}, 2;"
            )
        elif roll < 0.7:
            self.out.append(
                f"SELECT id, row_number() OVER w, lag(id) OVER w FROM {table.name} WINDOW w AS (ORDER BY {order}) "
                f"ORDER BY {order};"
            )
        elif roll < 0.85:
            self.join(table)
        elif roll < 0.93:
            self.cursor(table, order)
        else:
            self.out.append(f"SELECT * FROM {table.name} ORDER BY {order};")

    def join(self, table: Table) -> None:
        other = self.table()
        pairs = [(a, b) for a in table.typed for b in other.typed if a.case is b.case]
        a, b = self.rng.choice(pairs) if pairs else (Column("id"), Column("g"))
        kind = self.rng.choice(("JOIN", "LEFT JOIN", "FULL JOIN", "RIGHT JOIN"))
        self.out.append(
            f"SELECT count(*), sum(a.id), sum(b.id), count(a.id), count(b.id) FROM {table.name} a {kind} "
            f"{other.name} b ON a.{a.name} = b.{b.name};"
        )
        negation = self.rng.choice(("", "NOT "))
        self.out.append(
            f"SELECT a.id FROM {table.name} a WHERE {negation}EXISTS (SELECT 1 FROM {other.name} b "
            f"WHERE a.{a.name} = b.{b.name} AND b.id <> a.id) ORDER BY 1;"
        )

    def cursor(self, table: Table, order: str) -> None:
        if not self.stack:
            return
        name = self.name("cur")
        self.out.append(f"DECLARE {name} SCROLL CURSOR FOR SELECT * FROM {table.name} ORDER BY {order};")
        for _ in range(3):
            step = self.rng.choice(("NEXT", "2", "LAST", "PRIOR", "BACKWARD 2", "FIRST", "RELATIVE -1", "ABSOLUTE 3"))
            self.out.append(f"FETCH {step} FROM {name};")
            if self.chance(0.2):
                self.rng.choice((self.update, self.delete, self.insert))()
        self.out.append(f"CLOSE {name};")
        if self.chance(0.4):
            self.out.append(
                f"DECLARE {name} CURSOR FOR SELECT * FROM {table.name} WHERE id >= {self.some_id()} FOR UPDATE;"
            )
            self.out.append(f"--@ shape\nFETCH 1 FROM {name};")
            self.out.append(f"CLOSE {name};")

    # -------------------------------------------------------- schema changes

    def create_table(self) -> None:
        rng = self.rng
        name = self.name("t")
        table = Table(name, [Column("id", not_null=False), Column("g")])
        definitions = ["id int", "g int DEFAULT 0"]
        for _ in range(rng.randrange(1, 6)):
            column = self.new_column()
            definitions.append(self.column_definition(column, populated=False))
            table.columns.append(column)
        if self.chance(0.25):
            table.partitioned = rng.choice(("range", "list", "hash"))
        parents = [t.name for t in self.model.tables.values() if t.unique_id]
        if parents and self.chance(0.4):
            parent, action = rng.choice(parents), rng.choice(ACTIONS)
            update = rng.choice(ACTIONS[:5])
            table.has_ref = True
            deferred = rng.choice(("", "", " DEFERRABLE INITIALLY DEFERRED"))
            definitions.append("ref int")
            definitions.append(
                f"CONSTRAINT {name}_fk FOREIGN KEY (ref) REFERENCES {parent} (id) ON DELETE {action} ON UPDATE {update}"
                f"{deferred}"
            )
            table.constraints.append(f"{name}_fk")
        rng.shuffle(definitions)
        if not table.partitioned and self.chance(0.75):
            table.key = f"{name}_pkey"
            roll = rng.random()
            candidates = [c for c in table.typed if c.generated != "VIRTUAL"]
            if roll < 0.55 or not candidates:
                definitions.append("PRIMARY KEY (id)")
                table.unique_id = True
            else:
                column = rng.choice(candidates)
                column.not_null = True
                definitions.append(f"PRIMARY KEY ({column.name}, id)")
                if roll < 0.75:
                    definitions.append("UNIQUE (id)")
                    table.unique_id = True
        by = {"": "", "range": " PARTITION BY RANGE (id)", "list": " PARTITION BY LIST (g)",
              "hash": " PARTITION BY HASH (id)"}  # fmt: skip
        if table.partitioned in ("range", "hash") and self.chance(0.6):
            definitions.append("PRIMARY KEY (id)")
            table.key, table.unique_id = f"{name}_pkey", True
        self.out.append(f"CREATE TABLE {name} ({', '.join(definitions)}){by[table.partitioned]};")
        bounds = {
            "range": ("FROM (MINVALUE) TO (20)", "FROM (20) TO (60)", "DEFAULT"),
            "list": ("IN (0, 1)", "IN (2, NULL)", "DEFAULT"),
            "hash": ("WITH (MODULUS 2, REMAINDER 0)", "WITH (MODULUS 2, REMAINDER 1)"),
            "": (),
        }
        for i, bound in enumerate(bounds[table.partitioned]):
            words = bound if bound == "DEFAULT" else f"FOR VALUES {bound}"
            self.out.append(f"CREATE TABLE {name}_{i} PARTITION OF {name} {words};")
            if "DEFAULT" not in bound and table.partitioned != "hash":
                table.partitions.append(f"{name}_{i} {words}")
        self.model.tables[name] = table
        for _ in range(rng.randrange(3)):
            self.create_index(table)
        if self.chance(0.35):
            self.create_trigger(table)

    def create_trigger(self, table: Table) -> None:
        name = self.name("tr")
        kind = self.rng.choice(
            (
                "AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION log_row()",
                "BEFORE INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION change_row()",
                "AFTER UPDATE ON {t} REFERENCING OLD TABLE AS o NEW TABLE AS n "
                "FOR EACH STATEMENT EXECUTE FUNCTION log_tables()",
            )
        )
        self.out.append(f"CREATE TRIGGER {name} {kind.format(t=table.name)};")
        table.triggers.append(name)
        table.triggered = True

    def create_index(self, table: Table | None = None) -> None:
        table = table or self.table()
        name = self.name("i")
        roll = self.rng.random()
        keys = self.key_columns(table, self.rng.randrange(1, 4))
        where = self.rng.choice(("", "", f" WHERE {self.condition(table)}"))
        if "ANY" in where or "SYMMETRIC" in where:
            where = ""
        if roll < 0.15:
            keys = "(id % 7), " + keys
        if roll > 0.8 and "id" not in keys.replace(",", "").split() and not table.partitioned:
            keys += ", id"
            self.add(f"CREATE UNIQUE INDEX {name} ON {table.name} ({keys}) INCLUDE (g){where}")
        else:
            include = " INCLUDE (id)" if self.chance(0.2) else ""
            self.add(f"CREATE INDEX {name} ON {table.name} ({keys}){include}{where}")
        table.indexes[name] = f"{keys}{where}"

    def alter(self) -> None:
        rng, table = self.rng, self.table()
        choice = rng.randrange(15)
        if choice <= 2:
            column = self.new_column()
            definition = self.column_definition(column, populated=True)
            self.out.append(f"ALTER TABLE {table.name} ADD COLUMN {definition};")
            table.columns.append(column)
        elif choice == 3 and len(table.typed) > 1:
            column = rng.choice(table.typed)
            self.add(f"ALTER TABLE {table.name} DROP COLUMN {column.name}")
            table.columns.remove(column)
            self.out.append(
                f"SELECT count(*) FROM pg_index WHERE indrelid = '{table.name}'::regclass AND indisprimary;"
            )
            if table.key:  # perhaps it was in the key
                self.add(f"ALTER TABLE {table.name} DROP CONSTRAINT IF EXISTS {table.key} CASCADE")
                table.key, table.unique_id = "", False
        elif choice == 4 and table.key:
            self.add(f"ALTER TABLE {table.name} DROP CONSTRAINT {table.key} CASCADE")
            table.key, table.unique_id = "", False
        elif choice == 5 and not table.key:
            table.key = self.name("k")
            columns = [c for c in table.typed if c.not_null and c.generated != "VIRTUAL"]
            if columns and self.chance(0.5) and not table.partitioned:
                self.add(
                    f"ALTER TABLE {table.name} ADD CONSTRAINT {table.key} PRIMARY KEY ({rng.choice(columns).name}, id)"
                )
            elif table.partitioned != "list":
                self.add(f"ALTER TABLE {table.name} ADD CONSTRAINT {table.key} PRIMARY KEY (id)")
        elif choice == 6 and table.typed:
            column = rng.choice(table.typed)
            self.add(f"ALTER TABLE {table.name} ALTER COLUMN {column.name} {rng.choice(('SET', 'DROP'))} NOT NULL")
        elif choice == 7 and table.typed:
            column = rng.choice(table.typed)
            new = self.name("c")
            self.add(f"ALTER TABLE {table.name} RENAME COLUMN {column.name} TO {new}")
            for name, words in table.indexes.items():
                table.indexes[name] = re.sub(rf"\b{column.name}\b", new, words)
            column.name = new
        elif choice == 8 and table.written and "text" in self.cases:
            column = rng.choice(table.written)
            self.out.append(f"ALTER TABLE {table.name} ALTER COLUMN {column.name} DROP DEFAULT;")
            self.out.append(f"ALTER TABLE {table.name} ALTER COLUMN {column.name} TYPE text USING {column.name}::text;")
            column.case = self.cases["text"]
        elif choice == 9:
            name = self.name("ck")
            self.add(f"ALTER TABLE {table.name} ADD CONSTRAINT {name} CHECK ({self.condition(table)}) NOT VALID")
            self.add(f"ALTER TABLE {table.name} VALIDATE CONSTRAINT {name}")
            self.add(f"ALTER TABLE {table.name} DROP CONSTRAINT {name}")
        elif choice == 10 and not table.partitioned and table.typed:
            name = self.name("u")
            column = rng.choice(table.keyable)
            nulls = rng.choice(("", "NULLS NOT DISTINCT "))
            self.add(f"ALTER TABLE {table.name} ADD CONSTRAINT {name} UNIQUE {nulls}({column.name}, g)")
            self.add(f"ALTER TABLE {table.name} DROP CONSTRAINT {name}")
        elif choice == 11 and table.partitions:
            partition, words = rng.choice(table.partitions).split(" ", 1)
            self.add(f"ALTER TABLE {table.name} DETACH PARTITION {partition}")
            self.out.append(f"SELECT count(*), sum(id) FROM {partition};")
            self.add(f"ALTER TABLE {table.name} ATTACH PARTITION {partition} {words}")
        elif choice == 12:
            self.rng.choice((self.truncate, self.rewrite))(table)
        elif choice == 13 and table.indexes:
            self.add(f"DROP INDEX IF EXISTS {rng.choice(list(table.indexes))}")
        elif choice == 14 and table.triggers:
            trigger = table.triggers.pop()
            self.add(f"DROP TRIGGER {trigger} ON {table.name}")
        else:
            self.create_index(table)

    def truncate(self, table: Table) -> None:
        if self.chance(0.3):
            self.add(f"TRUNCATE {table.name} CASCADE")

    def rewrite(self, table: Table) -> None:
        if not table.partitioned and not table.triggered:  # PL/pgSQL's plans may keep the old type
            self.add(f"ALTER TABLE {table.name} ALTER COLUMN g TYPE {self.rng.choice(('bigint', 'int', 'smallint'))}")
            if table.key:  # a table without indexes has one on its TOAST table in a heap
                self.add(f"REINDEX TABLE {table.name}")

    def setting(self) -> None:
        name = self.rng.choice(SETTINGS)
        self.out.append(f"SET enable_{name} = {self.rng.choice(('on', 'off', 'off'))};")

    def check(self) -> None:
        """A table read in its own order and through every index."""
        table = self.table()
        self.out.append(f"SELECT * FROM {table.name} ORDER BY id;")

    # ---------------------------------------------------------- transactions

    def transaction(self) -> None:
        rng = self.rng
        if not self.stack:
            self.out.append("BEGIN;")
            self.stack.append(("", copy.deepcopy(self.model)))
            return
        roll = rng.random()
        savepoints = [i for i, (name, _) in enumerate(self.stack) if name]
        if roll < 0.4:
            name = self.name("s")
            self.out.append(f"SAVEPOINT {name};")
            self.stack.append((name, copy.deepcopy(self.model)))
        elif roll < 0.6 and savepoints:
            i = rng.choice(savepoints)
            self.out.append(f"ROLLBACK TO {self.stack[i][0]};")
            self.model = copy.deepcopy(self.stack[i][1])
            del self.stack[i + 1 :]
        elif roll < 0.7 and savepoints:
            i = rng.choice(savepoints)
            self.out.append(f"RELEASE {self.stack[i][0]};")
            del self.stack[i:]
        elif roll < 0.85:
            # a deferred constraint may fail here, so the end must not carry schema changes away: check it first
            self.add("SET CONSTRAINTS ALL IMMEDIATE")
            self.out.append("--@ state\nCOMMIT;")
            self.stack.clear()
        else:
            self.out.append("ROLLBACK;")
            self.model = self.stack[0][1]
            self.stack.clear()

    def text(self, statements: int) -> str:
        names = self.rng.sample([c.name for c in TYPES if c.array], 9)
        self.cases = {c.name: c for c in TYPES if c.name in (*names, "text", "int4")}
        self.out += [case.create for case in self.cases.values() if case.create]
        self.out += PROLOGUE
        for _ in range(3):
            self.create_table()
        for _ in range(4):
            self.insert()
        moves: list[tuple[Callable[[], None], int]] = [
            (self.insert, 20), (self.duplicate, 4), (self.update, 16), (self.delete, 6), (self.merge, 6),
            (self.copy_in, 3), (self.select, 20), (self.alter, 10), (self.transaction, 18), (self.setting, 3),
            (self.check, 4), (self.create_table, 1),
        ]  # fmt: skip
        while len(self.out) < statements:
            self.rng.choices([m for m, _ in moves], [w for _, w in moves])[0]()
        if self.stack:
            self.out.append("--@ state\nCOMMIT;")
        self.out += ["--@ reconnect"]
        for table in self.model.tables.values():
            self.out.append(f"SELECT * FROM {table.name} ORDER BY id;")
            for column in table.columns:
                self.out.append(f"SELECT id FROM {table.name} ORDER BY {column.name}, id;")
        # through every index
        self.out += ["SET enable_seqscan = off;", "SET enable_sort = off;", "SET enable_incremental_sort = off;"]
        for table in self.model.tables.values():
            for words in table.indexes.values():
                keys, _, where = words.partition(" WHERE ")
                where = f" WHERE {where}" if where else ""
                order = ", ".join([keys] if re.search(r"\bid\b(?! %)", keys) else [keys, "id"])
                self.out.append(f"--@ state\nSELECT id FROM {table.name}{where} ORDER BY {order};")
        self.out.append("SELECT * FROM log;")
        self.out.append(
            "SELECT c.relname, conname, pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_class c "
            "ON c.oid = conrelid WHERE c.relnamespace = current_schema()::regnamespace ORDER BY 1, 2;"
        )
        self.out.append(
            "SELECT tablename, replace(indexdef, current_schema() || '.', '') FROM pg_indexes "
            "WHERE schemaname = current_schema() ORDER BY indexname;"
        )
        return "\n".join(self.out) + "\n"


PROLOGUE = [
    "CREATE TABLE log (t name, op text, old text, new text);",
    "CREATE FUNCTION log_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO log VALUES (TG_TABLE_NAME, TG_OP, OLD::text, NEW::text); RETURN NULL; END $$;",
    "CREATE FUNCTION change_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF NEW.id % 11 = 0 THEN RETURN NULL; END IF; IF NEW.g IS NULL THEN NEW.g := 3; END IF; RETURN NEW; END $$;",
    "CREATE FUNCTION log_tables() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log "
    "SELECT TG_TABLE_NAME, 'TABLES', (SELECT string_agg(o::text, ' ' ORDER BY o::text) FROM o), "
    "(SELECT string_agg(n::text, ' ' ORDER BY n::text) FROM n); RETURN NULL; END $$;",
]


def random_schema_script(seed: int, statements: int) -> str:
    """The file of a seed."""
    return Generator(seed).text(statements)
