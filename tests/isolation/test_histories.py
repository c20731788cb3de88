"""Random short histories against what their isolation level allows.

Two or three transactions of a few random statements each are interleaved step by step; nothing waits, so one thread
plays them all. Statements fail, are caught by savepoints, or are rolled back to one, and what they said counts too.

SERIALIZABLE: the committed ones, run one after the other in some order, give the same answers and the same tables.
REPEATABLE READ: every transaction answers as if alone on its snapshot; a commit leaves exactly the changes that it
makes there; no row that it changes was changed by another one since. In both: no constraint is ever violated.

Seeds are fixed, and so are the histories; a failure prints its own.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psycopg
import pytest

from tests.fixtures.servers import Server

Connection = psycopg.Connection[tuple[object, ...]]
State = dict[str, tuple[str, ...]]  # table -> its rows as text, sorted
Change = tuple[dict[tuple[str, str], str | None], dict[str, tuple[Counter[str], Counter[str]]]]

SCHEMA = "history"
ROUNDS = 60
SETUP = f"""
DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}; SET search_path = {SCHEMA};
CREATE TABLE snapshot ();
CREATE TABLE a (id int PRIMARY KEY, g int, v int); CREATE INDEX ON a (g, v); CREATE INDEX ON a (v) WHERE v > 2;
CREATE TABLE u (id int PRIMARY KEY, x int UNIQUE, y int, z int, UNIQUE NULLS NOT DISTINCT (z));
CREATE UNIQUE INDEX ON u (y) WHERE y > 0; CREATE UNIQUE INDEX ON u ((x / 2)) WHERE id > 2;
CREATE TABLE late (id int PRIMARY KEY, x int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE p (id int PRIMARY KEY, w int UNIQUE, n int);
CREATE TABLE cc (id int PRIMARY KEY, pid int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE sn (id int PRIMARY KEY, pid int REFERENCES p ON DELETE SET NULL ON UPDATE SET NULL);
CREATE TABLE na (id int PRIMARY KEY, pid int REFERENCES p);
CREATE TABLE fd (id int PRIMARY KEY, pid int REFERENCES p DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE c2 (id int PRIMARY KEY, pid int REFERENCES cc ON DELETE CASCADE);
CREATE TABLE e (id int PRIMARY KEY, pid int REFERENCES e ON DELETE CASCADE);
CREATE TABLE h (m int, n int); CREATE INDEX ON h (m);
CREATE TABLE q (k int PRIMARY KEY, v int) PARTITION BY RANGE (k); CREATE INDEX ON q (v);
CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (1) TO (3); CREATE TABLE qd PARTITION OF q DEFAULT;
CREATE TABLE tg (id int PRIMARY KEY, g int, v int); CREATE TABLE agg (g int PRIMARY KEY, n int);
CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP <> 'INSERT' THEN UPDATE agg SET n = n - 1 WHERE g = OLD.g; END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO agg VALUES (NEW.g, 1) ON CONFLICT (g) DO UPDATE SET n = agg.n + 1;
    END IF;
    RETURN NULL; END $$;
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON tg FOR EACH ROW EXECUTE FUNCTION count_rows();
"""
ROWS = """
INSERT INTO a VALUES (1, 1, 1), (2, 1, 3), (3, 2, 0); INSERT INTO u VALUES (1, 1, 1, 1), (2, 2, -1, NULL);
INSERT INTO late VALUES (1, 1), (2, 2); INSERT INTO p VALUES (1, 1, 0), (2, 2, 0), (3, 3, 0);
INSERT INTO cc VALUES (1, 1); INSERT INTO sn VALUES (1, 1); INSERT INTO na VALUES (1, 2); INSERT INTO fd VALUES (1, 3);
INSERT INTO c2 VALUES (1, 1); INSERT INTO e VALUES (1, NULL), (2, 1), (3, 2); INSERT INTO h VALUES (1, 1), (2, 2);
INSERT INTO q VALUES (1, 1), (3, 3); INSERT INTO tg VALUES (1, 1, 1), (2, 1, 2);
"""
TABLES = ("p", "cc", "a", "u", "late", "sn", "na", "fd", "c2", "e", "h", "q", "tg", "agg")
KEYLESS = ("h",)
REFERENCES = (("cc", "p"), ("sn", "p"), ("na", "p"), ("fd", "p"), ("c2", "cc"), ("e", "e"))
UNIQUE = (("u", "x", "x > 0"), ("u", "z", "true"), ("u", "y", "y > 0"), ("u", "x / 2", "id > 2"), ("late", "x", "true"))
VIOLATIONS = " UNION ALL ".join(
    [
        f"SELECT '{c}', id FROM {c} c WHERE NOT EXISTS (SELECT FROM {p} WHERE id = c.pid) AND pid > 0"
        for c, p in REFERENCES
    ]
    + [
        f"SELECT '{t} {x}', count(*)::int FROM {t} WHERE {where} AND {x} IS NOT NULL GROUP BY {x} HAVING count(*) > 1"
        for t, x, where in UNIQUE
    ]
    + ["SELECT 'agg', g FROM agg WHERE n <> (SELECT count(*) FROM tg WHERE tg.g = agg.g)"]
)

# {n}: a small number, {x}: the same or NULL
STATEMENTS = {
    "rows": (
        "SELECT count(*) FROM a", "SELECT v FROM a WHERE id = {n}", "SELECT id, v FROM a WHERE g = {n}",
        "SELECT count(*) FROM a WHERE v > 2", "SELECT max(id), min(id) FROM a",
        "SELECT id FROM a WHERE id IN ({n}, {n})",
        "SELECT id FROM a WHERE id > {n} ORDER BY id LIMIT 1", "SELECT max(v) FROM a WHERE g = {n}",
        "SELECT a.id, b.id FROM a JOIN a b ON a.id = b.g", "SELECT id FROM a WHERE g = {n} FOR UPDATE SKIP LOCKED",
        "SELECT v FROM a WHERE id = {n} FOR SHARE", "INSERT INTO a VALUES ({n}, {n}, {n})",
        "UPDATE a SET v = v + 1 WHERE id = {n}", "UPDATE a SET v = {n} WHERE g = {n}",
        "UPDATE a SET id = {n} WHERE id = {n}",
        "DELETE FROM a WHERE id = {n}", "DELETE FROM a WHERE g = {n}",
        "INSERT INTO a SELECT {n}, count(*), sum(v) FROM a WHERE g = {n}",
        "INSERT INTO a VALUES ({n}, {n}, {n}) ON CONFLICT (id) DO UPDATE SET v = a.v + excluded.v RETURNING a.v",
        "MERGE INTO a USING (VALUES ({n})) s(x) ON id = x WHEN MATCHED AND v > 3 THEN DELETE "
        "WHEN MATCHED THEN UPDATE SET v = v + 1 WHEN NOT MATCHED THEN INSERT VALUES (x, 1, 1)",
        "SELECT * FROM h WHERE m = {n}", "SELECT count(*) FROM h", "INSERT INTO h VALUES ({n}, {n})",
        "DELETE FROM h WHERE m = {n}", "UPDATE h SET n = n + 1 WHERE m = {n}", "UPDATE h SET m = {n} WHERE m = {n}",
    ),
    "unique keys": (
        "SELECT id FROM u WHERE x = {n}", "SELECT id FROM u WHERE z IS NULL", "SELECT count(*) FROM u WHERE y > 0",
        "INSERT INTO u VALUES ({n}, {x}, {x}, {x})", "INSERT INTO u VALUES ({n}, {x}, {x}, {x}) ON CONFLICT DO NOTHING",
        "INSERT INTO u VALUES ({n}, {n}, {x}, {n}) ON CONFLICT (x) DO UPDATE SET y = -excluded.id",
        "INSERT INTO u VALUES ({n}, {n}, {n}, {n}) ON CONFLICT (y) WHERE y > 0 DO UPDATE SET z = excluded.z",
        "UPDATE u SET x = {x} WHERE id = {n}", "UPDATE u SET x = x + 1 WHERE id = {n}", "DELETE FROM u WHERE x = {n}",
        "UPDATE u SET y = {x}, z = {x} WHERE id = {n}", "UPDATE u SET id = {n} WHERE x = {n}",
        "DELETE FROM u WHERE id = {n}",
        "UPDATE late SET x = 3 - x", "INSERT INTO late VALUES ({n}, {n})", "UPDATE late SET x = {n} WHERE id = {n}",
        "DELETE FROM late WHERE x = {n}", "SELECT id FROM late WHERE x = {n}",
    ),
    "foreign keys": (
        "SELECT id FROM p WHERE NOT EXISTS (SELECT FROM cc WHERE pid = p.id)", "DELETE FROM p WHERE id = {n}",
        "SELECT id FROM p WHERE id = {n} FOR KEY SHARE", "INSERT INTO p VALUES ({n}, {n}, 0)",
        "SELECT count(*) FROM sn WHERE pid = {n}",
        "UPDATE p SET id = {n} WHERE id = {n}", "UPDATE p SET n = n + 1 WHERE id = {n}", "DELETE FROM p WHERE w = {n}",
        *(f"INSERT INTO {t} VALUES ({{n}}, {{x}})" for t, _ in REFERENCES),
        *(f"UPDATE {t} SET pid = {{x}} WHERE id = {{n}}" for t, _ in REFERENCES),
        *(f"DELETE FROM {t} WHERE id = {{n}}" for t in ("na", "fd", "e")), "UPDATE e SET id = {n} WHERE id = {n}",
    ),
    "partitions and triggers": (
        "SELECT v FROM q WHERE k = {n}", "SELECT count(*) FROM q WHERE k < {n}", "SELECT k FROM q WHERE v = {n}",
        "SELECT count(*) FROM q", "INSERT INTO q VALUES ({n}, {n})", "UPDATE q SET k = {n} WHERE k = {n}",
        "UPDATE q SET v = v + 1 WHERE k = {n}", "DELETE FROM q WHERE k = {n}", "DELETE FROM q WHERE v = {n}",
        "INSERT INTO q VALUES ({n}, {n}) ON CONFLICT (k) DO UPDATE SET v = q.v + 10", "SELECT n FROM agg WHERE g = {n}",
        "INSERT INTO tg VALUES ({n}, {n}, {n})", "UPDATE tg SET v = v + 1 WHERE id = {n}",
        "UPDATE tg SET g = {n} WHERE id = {n}", "DELETE FROM tg WHERE id = {n}", "DELETE FROM tg WHERE g = {n}",
        "SELECT g, count(*) FROM tg GROUP BY g",
    ),
}  # fmt: skip
PATHS = ("SET enable_seqscan = off", "SET enable_indexscan = off; SET enable_indexonlyscan = off", "SELECT 1")
DATA_ERRORS = ("23505", "23503", "21000")


@dataclass
class Transaction:
    """Statements, each "plain", "try" (an error is rolled back to a savepoint) or "undo" (everything is)."""

    steps: list[tuple[str, str]]
    answers: list[object] = field(default_factory=list)
    snapshot: int | None = None  # how many had committed
    end: str | None = None  # "commit" or an SQLSTATE


def transactions(choose: random.Random, statements: Sequence[str]) -> list[Transaction]:
    def fill(text: str) -> str:
        while "{" in text:
            text = text.replace("{n}", str(choose.randint(1, 4)), 1)
            text = text.replace("{x}", str(choose.choice(["NULL", 1, 2, 3])), 1)
        return text

    def step() -> tuple[str, str]:
        return choose.choices(("plain", "try", "undo"), (40, 53, 7))[0], fill(choose.choice(statements))

    return [Transaction([step() for _ in range(choose.randint(1, 4))]) for _ in range(choose.choice((2, 2, 3)))]


def interleaving(choose: random.Random, played: list[Transaction]) -> list[tuple[int, int]]:
    """(transaction, step); step -1 takes the snapshot, the one after the last is COMMIT."""
    left = {i: list(range(-1, len(t.steps) + 1)) for i, t in enumerate(played)}
    order = [(i, left[i].pop(0)) for i in left] if choose.random() < 0.6 else []
    while any(left.values()):
        i = choose.choice([i for i, steps in left.items() if steps])
        order.append((i, left[i].pop(0)))
    return order


def answer(connection: Connection, how: str, statement: str) -> object:
    if how != "plain":
        connection.execute("SAVEPOINT s")
    try:
        cursor = connection.execute(statement.encode())
        result: object = sorted(map(str, cursor.fetchall())) if cursor.description else cursor.rowcount
    except psycopg.Error as error:
        if how == "plain" or error.sqlstate not in DATA_ERRORS:
            raise
        connection.execute("ROLLBACK TO s")
        return error.sqlstate
    if how == "undo":
        connection.execute("ROLLBACK TO s")
    return result


class Tables:
    """The tables' contents, seen and set from outside, where foreign keys and triggers do not run; and sessions."""

    def __init__(self, server: Server) -> None:
        self.connection = server.connect()
        self.connection.prepare_threshold = None
        self.connection.execute(SETUP.encode())
        self.connection.execute(ROWS.encode())
        self.connection.execute("SET session_replication_role = replica")
        self.sessions = [server.connect() for _ in range(4)]
        for session in self.sessions:
            session.prepare_threshold = None
            session.execute(f"SET search_path = {SCHEMA}".encode())

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        self.connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())
        self.connection.close()

    def state(self) -> State:
        parts = (f"(SELECT array_agg(r::text ORDER BY r::text) FROM {t} r)" for t in TABLES)
        row = self.connection.execute(f"SELECT {', '.join(parts)}".encode()).fetchone()
        assert row is not None
        return {t: tuple(rows) if isinstance(rows, list) else () for t, rows in zip(TABLES, row, strict=True)}

    def load(self, state: State) -> None:
        now = self.state()
        work = ["BEGIN"]
        for table in TABLES:
            if now[table] != state[table]:
                work.append(f"DELETE FROM {table}")
                work += [f"INSERT INTO {table} SELECT ('{row}'::{table}).*" for row in state[table]]
        self.connection.execute("; ".join([*work, "COMMIT"]).encode())


def change(before: State, after: State) -> Change:
    """Rows by their keys, and those of tables without one as bags: what came, what went."""

    def by_key(state: State) -> dict[tuple[str, str], str]:
        return {(t, row[1:].split(",")[0]): row for t in TABLES if t not in KEYLESS for row in state[t]}

    old, new = by_key(before), by_key(after)
    bags = {t: (Counter(after[t]) - Counter(before[t]), Counter(before[t]) - Counter(after[t])) for t in KEYLESS}
    return {key: new.get(key) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}, bags


def play(tables: Tables, level: str, choose: random.Random, statements: Sequence[str]) -> None:
    played = transactions(choose, statements)
    order = interleaving(choose, played)
    states, commits = [tables.state()], list[int]()
    for session in tables.sessions:
        session.execute(f"RESET ALL; SET search_path = {SCHEMA}; {choose.choice(PATHS)}".encode())
    for i, step in order:
        one, session = played[i], tables.sessions[i]
        if one.end is not None:
            continue
        try:
            if step < 0:
                session.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM snapshot".encode())
                one.snapshot = len(commits)
            elif step < len(one.steps):
                one.answers.append(answer(session, *one.steps[step]))
            else:
                session.execute("COMMIT")
                one.end = "commit"
                commits.append(i)
                states.append(tables.state())
        except psycopg.Error as error:
            session.rollback()
            one.end = error.sqlstate
            assert one.end in (*DATA_ERRORS, "40001"), error
    history = f"{level}: {played} in order {order}, committed {commits}"
    assert tables.state() == states[-1], history
    assert tables.connection.execute(VIOLATIONS.encode()).fetchall() == [], history
    check = check_serial if level == "SERIALIZABLE" else check_snapshot
    problem = check(Alone(tables, tables.sessions[-1], level), played, commits, states)
    assert not problem, f"{problem}: {history}"
    tables.load(states[0])


@dataclass
class Alone:
    """Runs a transaction with nobody beside it."""

    tables: Tables
    session: Connection
    level: str

    def run(self, one: Transaction) -> tuple[str | None, list[object]]:
        answers: list[object] = []
        try:
            self.session.execute(f"BEGIN ISOLATION LEVEL {self.level}".encode())
            answers += [answer(self.session, *step) for step in one.steps]  # complete, or the transaction failed
            self.session.execute("COMMIT")
        except psycopg.Error as error:
            self.session.rollback()
            return error.sqlstate, answers
        return "commit", answers


def check_serial(alone: Alone, played: list[Transaction], commits: list[int], states: list[State]) -> str:
    for order in itertools.permutations(commits):
        alone.tables.load(states[0])
        if all(alone.run(played[i]) == ("commit", played[i].answers) for i in order) and (
            alone.tables.state() == states[-1]
        ):
            return ""
    return "not serializable"


def check_snapshot(alone: Alone, played: list[Transaction], commits: list[int], states: list[State]) -> str:
    for i in commits:
        one = played[i]
        assert one.snapshot is not None
        before, at, after = states[one.snapshot], states[commits.index(i)], states[commits.index(i) + 1]
        alone.tables.load(before)
        if alone.run(one) != ("commit", one.answers):
            return f"transaction {i} answered unlike alone on its snapshot"
        made = change(before, alone.tables.state())
        if change(at, after) != made:
            return f"transaction {i} changed {change(at, after)} instead of {made}"
        if both := made[0].keys() & change(before, at)[0].keys():
            return f"transaction {i} changed {both}, which others changed since its snapshot"
    return ""


@pytest.fixture(scope="module")
def tables(australis: Server) -> Iterator[Tables]:
    out = Tables(australis)
    yield out
    out.close()


@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ"])
@pytest.mark.parametrize("about", STATEMENTS)
def test_histories(about: str, level: str, tables: Tables) -> None:
    choose = random.Random(f"{about} {level}")
    for _ in range(ROUNDS):
        play(tables, level, choose, STATEMENTS[about])


def test_an_anomaly_is_noticed(tables: Tables) -> None:
    """Write skew, which REPEATABLE READ allows, is not serializable."""
    read = ("plain", "SELECT count(*) FROM a WHERE v = 0")
    played = [Transaction([read, ("plain", f"UPDATE a SET v = 0 WHERE id = {i}")], snapshot=0) for i in (1, 2)]
    states = [tables.state()]
    for step in range(2):
        for session, one in zip(tables.sessions, played, strict=False):
            if step == 0:
                session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            one.answers.append(answer(session, *one.steps[step]))
    for session in tables.sessions[:2]:
        session.execute("COMMIT")
        states.append(tables.state())
    alone = tables.sessions[-1]
    assert check_snapshot(Alone(tables, alone, "REPEATABLE READ"), played, [0, 1], states) == ""
    assert check_serial(Alone(tables, alone, "SERIALIZABLE"), played, [0, 1], states) == "not serializable"
    tables.load(states[0])
