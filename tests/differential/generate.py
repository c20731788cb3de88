"""Generated test files: the same questions over every type, with edge values; index options; joins; random DML.

Everything is deterministic (fixed seeds): a difference found once is found again, and its line number means the same.
"""

from __future__ import annotations

import itertools
import random
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

OPERATORS = ("=", "<", "<=", ">", ">=", "<>")


@dataclass(frozen=True)
class TypeCase:
    """A type as column and key. `values`: literals (without quotes), edges first; `create`: what defines it."""

    name: str
    type: str
    values: list[str]
    create: str = ""
    probes: int = 5  # how many of the values are compared against
    minmax: bool = True
    array: bool = True


def _quote(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _load_types() -> tuple[list[TypeCase], list[TypeCase]]:
    """The types of types.toml: those with a key order, and those that can only be stored."""
    data = tomllib.loads((Path(__file__).parent / "types.toml").read_text())
    keyed, stored = ([TypeCase(**entry) for entry in data[kind]] for kind in ("keyed", "stored"))
    return keyed, stored


TYPES, STORED_ONLY = _load_types()


def type_script(case: TypeCase) -> str:
    """Storage, key order, look-ups, ranges, conflicts and copies of one type."""
    t = case.type
    out: list[str] = []
    add = out.append
    if case.create:
        add(case.create)
    cast = f"::{t}" if case.name == "composite" else ""  # a bare literal against a record is not resolved
    literals = [_quote(v) + cast for v in case.values]
    add(f"CREATE TABLE k (id int PRIMARY KEY, v {t});")
    rows = ", ".join(f"({i}, {lit})" for i, lit in enumerate([*literals, "NULL", *literals[:3], "NULL"], 1))
    add(f"INSERT INTO k VALUES {rows};")
    add("SELECT id, v FROM k ORDER BY id;")
    add("SELECT id, v FROM k ORDER BY v, id;")
    add("CREATE INDEX k_asc ON k (v);")
    add("CREATE INDEX k_desc ON k (v DESC NULLS LAST, id DESC);")
    add("CREATE INDEX k_nf ON k (v NULLS FIRST, id);")
    add(f"CREATE TABLE pk (v {t} PRIMARY KEY, n int);")
    for i, literal in enumerate(literals):
        add(f"INSERT INTO pk VALUES ({literal}, {i}) ON CONFLICT (v) DO UPDATE SET n = pk.n * 100 + EXCLUDED.n;")
    add("SELECT * FROM pk ORDER BY n;")
    add("INSERT INTO pk VALUES (NULL, 1);")
    add(f"INSERT INTO pk VALUES ({literals[0]}, -1);")
    for setting in ("enable_seqscan", "enable_sort", "enable_bitmapscan"):
        add(f"SET {setting} = off;")
    for order in ("v, id", "v DESC, id DESC", "v NULLS FIRST, id", "v DESC NULLS LAST, id DESC"):
        add(f"SELECT id, v FROM k ORDER BY {order};")
    add("SELECT v, n FROM pk ORDER BY v;")
    add("SELECT v, n FROM pk ORDER BY v DESC;")
    add("SELECT v, n FROM pk ORDER BY v DESC LIMIT 2;")
    for literal in literals[: case.probes]:
        for operator in OPERATORS:
            add(f"SELECT id FROM k WHERE v {operator} {literal} ORDER BY id;")
        add(f"SELECT n FROM pk WHERE v = {literal};")
        add(f"SELECT v, id FROM k WHERE (v, id) > ({literal}, 2) ORDER BY v, id;")
    a, b = literals[0], literals[min(2, len(literals) - 1)]
    add(f"SELECT id FROM k WHERE v BETWEEN {a} AND {b} ORDER BY id;")
    add(f"SELECT id FROM k WHERE v BETWEEN SYMMETRIC {a} AND {b} ORDER BY v DESC, id DESC;")
    add(f"SELECT id FROM k WHERE v IN ({', '.join(literals[:4])}) ORDER BY v, id;")
    add(f"SELECT n FROM pk WHERE v IN ({', '.join(reversed(literals[:4]))}) ORDER BY v;")
    if case.array:
        add(f"SELECT id FROM k WHERE v = ANY (ARRAY[{a}, NULL, {b}]::{t}[]) ORDER BY v, id;")
        add(f"SELECT id FROM k WHERE v >= ALL (ARRAY[{a}, {b}]::{t}[]) ORDER BY id;")
    add("SELECT id FROM k WHERE v IS NULL ORDER BY id;")
    add("SELECT count(*), count(v), count(DISTINCT v) FROM k WHERE v IS NOT NULL;")
    if case.minmax:
        add("SELECT min(v), max(v) FROM k;")
        add(f"SELECT max(v) FROM pk WHERE v < {literals[-1]};")
    add("SELECT v, count(*) FROM k GROUP BY v ORDER BY v;")
    add("SELECT a.id, b.id FROM k a JOIN k b ON a.v = b.v WHERE a.id < b.id ORDER BY 1, 2;")
    add("SET enable_hashjoin = off;")
    add("SET enable_nestloop = off;")
    add("SELECT a.id, p.n FROM k a JOIN pk p ON a.v = p.v ORDER BY 1, 2;")
    add("RESET enable_nestloop;")
    add("SELECT id, v, lag(v) OVER w, rank() OVER w FROM k WINDOW w AS (ORDER BY v) ORDER BY v, id;")
    add("--@ binary\nSELECT id, v FROM k ORDER BY id;")
    add(f"--@ params [{_json(case.values[0])}]\nSELECT id FROM k WHERE v = $1 ORDER BY id;")
    add(f"--@ params [{_json(case.values[-1])}]\nSELECT id FROM k WHERE v >= $1 ORDER BY id;")
    for options in ("", " WITH (FORMAT csv, HEADER)", " WITH (FORMAT binary)"):
        add(f"COPY (SELECT * FROM k ORDER BY id) TO stdout{options};")
    add("BEGIN;")
    add(f"DELETE FROM pk WHERE v = {b};")
    add(f"UPDATE k SET v = {b} WHERE id = 1 RETURNING *;")
    add("SELECT id FROM k WHERE v = " + b + " ORDER BY id;")
    add("SELECT n FROM pk ORDER BY v;")
    add(f"INSERT INTO pk VALUES ({b}, 77);")
    add("SELECT n FROM pk WHERE v = " + b + ";")
    add("ROLLBACK;")
    add(f"UPDATE pk SET v = {a} WHERE v = {literals[-1]};")
    add("DELETE FROM k WHERE v IS NULL RETURNING id;")
    add(f"DELETE FROM k WHERE v > {a} RETURNING id, v;")
    add("SELECT id, v FROM k ORDER BY v DESC, id;")
    add("ALTER TABLE k ADD COLUMN w " + t + " DEFAULT " + a + ";")
    add("SELECT * FROM k ORDER BY id;")
    return "\n".join(out) + "\n"


def stored_script() -> str:
    """Types that can only be stored."""
    out = []
    for case in STORED_ONLY:
        literals = [_quote(v) for v in case.values]
        rows = ", ".join(f"({i}, {lit})" for i, lit in enumerate([*literals, "NULL"], 1))
        out.append(f"CREATE TABLE s_{case.name} (id int PRIMARY KEY, v {case.type}, t text);")
        out.append(f"INSERT INTO s_{case.name} VALUES {rows};")
        out.append(f"SELECT id, v FROM s_{case.name} ORDER BY id;")
        out.append(f"--@ binary\nSELECT id, v FROM s_{case.name} ORDER BY id;")
        out.append(f"UPDATE s_{case.name} SET v = {literals[0]}, t = 'x' WHERE id = 1 RETURNING *;")
        out.append(f"COPY (SELECT * FROM s_{case.name} ORDER BY id) TO stdout;")
        out.append(f"CREATE INDEX ON s_{case.name} (v);")
        out.append(f"CREATE TABLE sp_{case.name} (v {case.type} PRIMARY KEY);")
    return "\n".join(out) + "\n"


def _json(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def index_options_script() -> str:
    """Two- and three-column indexes with every combination of direction and NULL placement, in every order."""
    out = [
        "CREATE TABLE m (a int, b text, c numeric, id serial PRIMARY KEY);",
        "INSERT INTO m (a, b, c) SELECT CASE WHEN i % 7 = 0 THEN NULL ELSE i % 5 END, "
        "CASE WHEN i % 6 = 0 THEN NULL ELSE chr(97 + i % 4) END, CASE WHEN i % 11 = 0 THEN NULL ELSE (i % 3) / 2.0 END "
        "FROM generate_series(1, 120) i;",
        "SET enable_seqscan = off;",
        "SET enable_sort = off;",
        "SET enable_incremental_sort = off;",
    ]
    options = ("ASC NULLS LAST", "ASC NULLS FIRST", "DESC NULLS FIRST", "DESC NULLS LAST")
    for n, (x, y) in enumerate(itertools.product(options, options)):
        out.append(f"CREATE INDEX m_{n} ON m (a {x}, b {y}, id);")
        out.append(f"SELECT a, b, id FROM m ORDER BY a {x}, b {y}, id;")
        out.append(f"SELECT a, b, id FROM m ORDER BY a {_reverse(x)}, b {_reverse(y)}, id DESC LIMIT 25;")
        out.append(f"SELECT a, b, id FROM m WHERE a = {n % 5} AND b >= 'b' ORDER BY a {x}, b {y}, id;")
        out.append(f"SELECT a, b, id FROM m WHERE a IN (1, 3) AND b IS NULL ORDER BY a {x}, b {y}, id;")
        out.append(f"SELECT a, b, id FROM m WHERE a IS NULL AND b < 'c' ORDER BY a {x}, b {y}, id;")
        out.append(f"SELECT a, b, id FROM m WHERE (a, b) >= (2, 'b') ORDER BY a {x}, b {y}, id;")
        out.append(f"SELECT max(b), min(b) FROM m WHERE a = {n % 5};")
        out.append(f"DROP INDEX m_{n};")
    for n, (x, y, z) in enumerate(itertools.product(("ASC", "DESC"), repeat=3)):
        out.append(f"CREATE UNIQUE INDEX u_{n} ON m (c {x}, a {y}, b {z}, id);")
        out.append(f"SELECT c, a, b, id FROM m ORDER BY c {x}, a {y}, b {z}, id LIMIT 40;")
        out.append(f"SELECT c, a, b, id FROM m WHERE c = 0.5 AND a > 1 ORDER BY c {x}, a {y}, b {z}, id;")
        out.append("SELECT c, a, b, id FROM m WHERE c = ANY ('{0,1}') AND a = ANY ('{1,2,NULL}') ORDER BY id;")
        out.append(f"DROP INDEX u_{n};")
    return "\n".join(out) + "\n"


def _reverse(option: str) -> str:
    swap = {"ASC": "DESC", "DESC": "ASC", "FIRST": "LAST", "LAST": "FIRST"}
    return " ".join(swap.get(word, word) for word in option.split())


CROSS_TYPES = (
    ("int2", "int4", "1"), ("int2", "int8", "-5"), ("int4", "int2", "1"), ("int4", "int8", "3000000000"),
    ("int4", "int8", "-1"), ("int8", "int2", "1"), ("int8", "int4", "-5"), ("int4", "numeric", "1.5"),
    ("int8", "float8", "0.5"), ("float4", "float8", "1.5"), ("float8", "float4", "1.5"), ("float8", "float4", "NaN"),
    ("float4", "float8", "0.1"), ("numeric", "int4", "1"), ("date", "timestamp", "2000-01-01 00:00:00"),
    ("date", "timestamp", "2000-01-01 12:00:00"), ("date", "timestamptz", "2000-01-01 08:00:00+00"),
    ("timestamp", "date", "2000-01-01"), ("timestamp", "timestamptz", "2000-01-01 08:00:00+00"),
    ("timestamptz", "date", "2000-01-01"), ("timestamptz", "timestamp", "2000-01-01 00:00:00"),
    ("text", "name", "abc"), ("name", "text", "abc"), ("varchar", "text", "abc"), ("bpchar", "text", "abc "),
    ("oid", "int8", "4294967295"), ("oid", "regclass", "pg_class"), ("inet", "cidr", "10.0.0.0/8"),
    ("date", "timestamp", "infinity"), ("date", "timestamptz", "-infinity"),
)  # fmt: skip

CROSS_VALUES = {
    "int2": ("-5", "0", "1", "32767"), "int4": ("-5", "0", "1", "2", "2147483647"),
    "int8": ("-5", "0", "1", "3000000000"), "float4": ("-1", "0.1", "1.5", "NaN"),
    "float8": ("-1", "0.1", "0.10000000149011612", "1.5", "NaN"), "numeric": ("1", "1.0", "1.5", "NaN"),
    "date": ("1999-12-31", "2000-01-01", "2000-01-02", "infinity", "-infinity"),
    "timestamp": ("1999-12-31 12:00", "2000-01-01", "2000-01-01 12:00", "infinity"),
    "timestamptz": ("1999-12-31 12:00+00", "2000-01-01 08:00+00", "2000-01-01", "infinity"),
    "text": ("abc", "ab", "abcd", ""), "name": ("abc", "ab", "abcd", ""), "varchar": ("abc", "ab", "abc "),
    "bpchar": ("abc", "ab", "abcd"), "oid": ("0", "1259", "4294967295"),
    "inet": ("10.0.0.0/8", "10.1.2.3", "192.168.0.1"),
}  # fmt: skip


def cross_type_script() -> str:
    """Index conditions whose value has another type than the key."""
    out = ["SET enable_seqscan = off;"]
    for n, (column, other, probe) in enumerate(CROSS_TYPES):
        rows = ", ".join(f"({_quote(v)})" for v in CROSS_VALUES[column])
        out.append(f"CREATE TABLE x{n} (v {column} PRIMARY KEY);")
        out.append(f"INSERT INTO x{n} VALUES {rows};")
        for operator in OPERATORS:
            out.append(f"SELECT v FROM x{n} WHERE v {operator} {_quote(probe)}::{other} ORDER BY v;")
        out.append(f"SELECT v FROM x{n} WHERE v IN ({_quote(probe)}::{other}, {_quote(probe)}::{other}) ORDER BY v;")
    return "\n".join(out) + "\n"


def arithmetic_script() -> str:
    """Operators over stored columns of every pair of number types, overflows and divisions by zero included."""
    kinds = ("int2", "int4", "int8", "numeric", "float4", "float8")
    columns = ", ".join(f"c_{k} {k}" for k in kinds)
    out = [f"CREATE TABLE n (id int PRIMARY KEY, {columns});"]
    for i, v in enumerate(("1", "-1", "0", "7", "-32768", "100"), 1):
        out.append(f"INSERT INTO n VALUES ({i}, {', '.join([v] * len(kinds))});")
    for a, b in itertools.product(kinds, kinds):
        out.append(f"SELECT id, c_{a} + c_{b}, c_{a} - c_{b} FROM n WHERE id < 5 ORDER BY id;")
        out.append(f"SELECT n.id, m.id FROM n JOIN n m ON n.c_{a} = m.c_{b} ORDER BY 1, 2;")
        out.append(f"SELECT id, c_{a} / c_{b} FROM n WHERE id <> 3 ORDER BY id;")
        out.append(f"SELECT c_{a} / c_{b} FROM n WHERE id = 3;")
        out.append(f"UPDATE n SET c_{a} = c_{a} * c_{b} WHERE id = 5;")
    for a in kinds:
        out.append(f"SELECT sum(c_{a}), avg(c_{a}), stddev(c_{a}), min(c_{a}), max(c_{a}) FROM n;")
    return "\n".join(out) + "\n"


def join_script() -> str:
    """Every join kind with every join method over indexed tables, with duplicates and NULLs."""
    out = [
        "CREATE TABLE l (id int PRIMARY KEY, k int, t text);",
        "CREATE TABLE r (id int PRIMARY KEY, k int, t text);",
        "INSERT INTO l SELECT i, CASE WHEN i % 9 = 0 THEN NULL ELSE i % 17 END, "
        "'l' || i % 4 FROM generate_series(1, 60) i;",
        "INSERT INTO r SELECT i, CASE WHEN i % 8 = 0 THEN NULL ELSE i % 13 END, "
        "'l' || i % 5 FROM generate_series(1, 50) i;",
        "CREATE INDEX l_k ON l (k);",
        "CREATE INDEX r_k ON r (k, t);",
        "ANALYZE l;",
        "ANALYZE r;",
    ]
    kinds = ("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
    conditions = ("l.k = r.k", "l.k = r.k AND l.t = r.t", "l.id = r.id", "l.id = r.k")
    for method in ("nestloop", "mergejoin", "hashjoin"):
        for other in ("nestloop", "mergejoin", "hashjoin"):
            out.append(f"SET enable_{other} = {'on' if other == method else 'off'};")
        for kind, condition in itertools.product(kinds, conditions):
            out.append(f"SELECT count(*), sum(l.id), sum(r.id), count(l.t), count(r.t) FROM l {kind} r ON {condition};")
        for condition in conditions:
            out.append(f"SELECT l.id FROM l WHERE EXISTS (SELECT 1 FROM r WHERE {condition}) ORDER BY 1;")
            out.append(f"SELECT l.id FROM l WHERE NOT EXISTS (SELECT 1 FROM r WHERE {condition}) ORDER BY 1;")
            out.append(
                f"SELECT l.id, x.id FROM l, LATERAL (SELECT r.id FROM r WHERE {condition} ORDER BY r.id LIMIT 1) x "
                "ORDER BY 1;"
            )
    out.append("SELECT l.id, r.id FROM l CROSS JOIN r WHERE l.id + r.id = 30 ORDER BY 1;")
    out.append("SELECT * FROM l NATURAL JOIN r ORDER BY id;")
    out.append("SELECT id, l.k, r.k FROM l JOIN r USING (id) ORDER BY id;")
    return "\n".join(out) + "\n"


def random_dml_script(seed: int, statements: int) -> str:
    """Random writes over indexed tables in transactions with savepoints, read back through every index."""
    rng = random.Random(seed)
    out = [
        "CREATE TABLE q (id int PRIMARY KEY, a int, b text, c numeric DEFAULT 0);",
        "CREATE INDEX q_a ON q (a);",
        "CREATE UNIQUE INDEX q_b ON q (b);",
        "CREATE INDEX q_ca ON q (c DESC, a) INCLUDE (b) WHERE a IS NOT NULL;",
        "CREATE INDEX q_e ON q ((a % 5), lower(b));",
        "CREATE TABLE h (a int, b text);",
        "CREATE INDEX h_a ON h (a, b DESC);",
    ]
    reads = (
        "SELECT * FROM q ORDER BY id;",
        "SELECT id, a FROM q WHERE a BETWEEN {x} AND {y} ORDER BY a, id;",
        "SELECT id, b FROM q WHERE b > '{s}' ORDER BY b LIMIT 5;",
        "SELECT c, a, b FROM q WHERE a IS NOT NULL ORDER BY c DESC, a, b;",
        "SELECT id FROM q WHERE a % 5 = 2 ORDER BY id;",
        "SELECT a, count(*), sum(c) FROM q GROUP BY a ORDER BY a;",
        "SELECT a, b FROM h WHERE a > {x} ORDER BY a, b DESC;",
        "SELECT count(*), sum(a), min(b), max(b) FROM h;",
        "SELECT q.id, h.b FROM q JOIN h ON q.a = h.a ORDER BY 1, 2;",
    )
    writes = (
        "INSERT INTO q (id, a, b) VALUES ({k}, {x}, '{s}');",
        "INSERT INTO q (id, a, b) VALUES ({k}, {x}, '{s}'), ({k2}, NULL, '{s2}') ON CONFLICT DO NOTHING;",
        "INSERT INTO q (id, a, b) VALUES ({k}, {x}, '{s}') "
        "ON CONFLICT (id) DO UPDATE SET a = q.a + EXCLUDED.a, c = q.c + 1 RETURNING *;",
        "INSERT INTO q (id, a, b) VALUES ({k}, {y}, '{s}') "
        "ON CONFLICT (b) DO UPDATE SET a = EXCLUDED.a WHERE q.a < {x};",
        "INSERT INTO h SELECT i, 'r' || i % 3 FROM generate_series({x}, {y}) i;",
        "UPDATE q SET a = a + 1 WHERE a = {x};",
        "UPDATE q SET id = id + 1000 WHERE id = {k} RETURNING id;",
        "UPDATE q SET b = b || 'x' WHERE id BETWEEN {k} AND {k} + 3;",
        "UPDATE q SET c = c + {x}, a = NULLIF(a, {y});",
        "UPDATE h SET a = a * 2 WHERE a < {x};",
        "UPDATE q SET a = h.a FROM h WHERE q.id = h.a AND h.b = 'r1';",
        "DELETE FROM q WHERE id = {k} RETURNING *;",
        "DELETE FROM q WHERE a > {y} + 20;",
        "DELETE FROM h WHERE a % 7 = {x} % 7;",
        "DELETE FROM h USING q WHERE h.a = q.a AND q.id = {k};",
    )
    depth: list[str] = []
    open_transaction = False
    for n in range(statements):
        roll = rng.random()
        if not open_transaction and roll < 0.15:
            out.append("BEGIN;")
            open_transaction = True
        elif open_transaction and roll < 0.08:
            out.append(rng.choice(("COMMIT;", "ROLLBACK;")))
            open_transaction, depth = False, []
        elif open_transaction and roll < 0.16:
            depth.append(f"s{n}")
            out.append(f"SAVEPOINT s{n};")
        elif open_transaction and depth and roll < 0.26:
            name = depth[rng.randrange(len(depth))]
            del depth[depth.index(name) + 1 :]
            out.append(f"ROLLBACK TO {name};")
        elif open_transaction and depth and roll < 0.30:
            name = depth[rng.randrange(len(depth))]
            del depth[depth.index(name) :]
            out.append(f"RELEASE {name};")
        else:
            template = rng.choice(reads if roll > 0.65 else writes)
            x = rng.randrange(20)
            values = {"k": rng.randrange(30), "k2": rng.randrange(30), "x": x, "y": x + rng.randrange(8)}
            strings = {"s": f"v{rng.randrange(40):02}", "s2": f"V{rng.randrange(40):02}"}
            out.append(template.format(**values, **strings))
    out.append("COMMIT;" if open_transaction else "SELECT 1;")
    out += [read.format(x=0, y=1000, s="") for read in reads]
    return "\n".join(out) + "\n"


def generated_scripts() -> dict[str, Callable[[], str]]:
    """Name -> maker of the file's text."""
    out: dict[str, Callable[[], str]] = {}
    for case in TYPES:
        out[f"type_{case.name}"] = partial(type_script, case)
    out["types_stored"] = stored_script
    out["index_options"] = index_options_script
    out["cross_types"] = cross_type_script
    out["arithmetic"] = arithmetic_script
    out["joins"] = join_script
    for seed in _SEEDS:
        out[f"random_dml_{seed}"] = partial(random_dml_script, seed, 150)
    return out


_SEEDS: Iterable[int] = (1, 2, 3, 4)
