"""Every kind of schema change whose outcome depends on rows, beside a writer, in every order of their steps.

The oracle is serial execution: the final state (rows, constraints, partitions, every index) must be that of the
committed ones of the two run one after the other, in either order. An orphan, a duplicate, a violated constraint, a
lost or revived row is a state that no serial order gives. Where it is determined, it is checked who must lose: a
change that depends on rows loses with OC000 to a writer that committed after its snapshot, and one that does not
depend on them commits.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.servers import Server

Connection = psycopg.Connection[tuple[object, ...]]

SCHEMA = "ddlw"
SETUP = """
CREATE TABLE other (a int);
CREATE TABLE t (a int PRIMARY KEY, b int, c int);
INSERT INTO t SELECT g, g, g FROM generate_series(1, 5) g;
CREATE TABLE p (id int PRIMARY KEY, u int UNIQUE);
INSERT INTO p SELECT g, g FROM generate_series(1, 5) g;
CREATE TABLE k (id int PRIMARY KEY, pid int);
INSERT INTO k VALUES (1, 1), (2, 2);
"""
PARTITIONED = """
CREATE TABLE part (k int, v int) PARTITION BY LIST (k);
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1); CREATE TABLE part_d PARTITION OF part DEFAULT;
CREATE TABLE part_2 (k int, v int);
INSERT INTO part VALUES (1, 1), (9, 9);
"""
DEEP = """
CREATE TABLE deep (k int, v int) PARTITION BY LIST (k);
CREATE TABLE deep_2 (k int, v int) PARTITION BY RANGE (v);
CREATE TABLE deep_2a PARTITION OF deep_2 FOR VALUES FROM (0) TO (10);
CREATE TABLE deep_d PARTITION OF deep DEFAULT PARTITION BY RANGE (v);
CREATE TABLE deep_d0 PARTITION OF deep_d FOR VALUES FROM (0) TO (10);
INSERT INTO deep VALUES (8, 8);
"""
REFERENCED = """
CREATE TABLE rp (a int PRIMARY KEY) PARTITION BY RANGE (a);
CREATE TABLE rp_1 PARTITION OF rp FOR VALUES FROM (0) TO (10);
CREATE TABLE rp_2 PARTITION OF rp FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (a);
CREATE TABLE rp_2a PARTITION OF rp_2 FOR VALUES FROM (10) TO (15);
CREATE TABLE rp_n (a int PRIMARY KEY); INSERT INTO rp_n VALUES (25);
INSERT INTO rp VALUES (1), (11);
CREATE TABLE rf (id int PRIMARY KEY, a int REFERENCES rp);
"""
REFERENCED_BY_PARTITIONS = REFERENCED.replace(
    "CREATE TABLE rf (id int PRIMARY KEY, a int REFERENCES rp);",
    """CREATE TABLE rf (id int, a int REFERENCES rp) PARTITION BY RANGE (id);
    CREATE TABLE rf_1 PARTITION OF rf FOR VALUES FROM (0) TO (10);""",
)
DOMAIN = """
CREATE DOMAIN d AS int; CREATE TABLE dt (id int PRIMARY KEY, x d); INSERT INTO dt VALUES (1, 1);
"""
VIRTUAL = """
CREATE TABLE g (id int PRIMARY KEY, b int, v int GENERATED ALWAYS AS (id) VIRTUAL NOT NULL);
INSERT INTO g VALUES (1, 1);
"""
INHERITED = """
CREATE TABLE kid () INHERITS (t); INSERT INTO kid VALUES (10, 10, 10);
"""
MATVIEW = "CREATE MATERIALIZED VIEW mv AS SELECT a, b FROM t;"


@dataclass(frozen=True)
class Case:
    """A writer beside a change; `depends`: the change must lose to a writer that committed after its snapshot."""

    write: str
    change: str
    depends: bool
    setup: str = ""


CASES = {
    "check": Case("INSERT INTO t VALUES (6, -1)", "ALTER TABLE t ADD CHECK (b > 0)", True),
    "check, update": Case("UPDATE t SET b = -1 WHERE a = 2", "ALTER TABLE t ADD CHECK (b > 0)", True),
    "check not valid": Case("INSERT INTO t VALUES (6, -1)", "ALTER TABLE t ADD CHECK (b > 0) NOT VALID", False),
    "check validated": Case(
        "UPDATE t SET b = 0 WHERE a = 2",
        "ALTER TABLE t VALIDATE CONSTRAINT x",
        True,
        "ALTER TABLE t ADD CONSTRAINT x CHECK (b >= 0) NOT VALID;",
    ),
    "check in children": Case("INSERT INTO kid VALUES (11, -1)", "ALTER TABLE t ADD CHECK (b > 0)", True, INHERITED),
    "check in partitions": Case(
        "INSERT INTO part VALUES (1, -1)", "ALTER TABLE part ADD CHECK (v > 0)", True, PARTITIONED
    ),
    "check dropped": Case(
        "INSERT INTO t VALUES (6, 6)",
        "ALTER TABLE t DROP CONSTRAINT x",
        False,
        "ALTER TABLE t ADD CONSTRAINT x CHECK (b > 0);",
    ),
    "not null": Case("INSERT INTO t VALUES (6, NULL)", "ALTER TABLE t ALTER b SET NOT NULL", True),
    "not null, update": Case("UPDATE t SET b = NULL", "ALTER TABLE t ALTER b SET NOT NULL", True),
    "not null in partitions": Case(
        "INSERT INTO part VALUES (1, NULL)", "ALTER TABLE part ALTER v SET NOT NULL", True, PARTITIONED
    ),
    "not null validated": Case(
        "UPDATE t SET b = 0 WHERE a = 2",
        "ALTER TABLE t VALIDATE CONSTRAINT x",
        True,
        "ALTER TABLE t ADD CONSTRAINT x NOT NULL b NOT VALID;",
    ),
    "not null dropped": Case(
        "INSERT INTO t VALUES (6, 6)",
        "ALTER TABLE t ALTER b DROP NOT NULL",
        False,
        "ALTER TABLE t ALTER b SET NOT NULL;",
    ),
    "virtual column": Case(
        "INSERT INTO g VALUES (2, NULL)", "ALTER TABLE g ALTER v SET EXPRESSION AS (b)", True, VIRTUAL
    ),
    "virtual column added": Case(
        "INSERT INTO t VALUES (6, NULL)", "ALTER TABLE t ADD v int GENERATED ALWAYS AS (b) VIRTUAL NOT NULL", True
    ),
    "primary key": Case(
        "INSERT INTO n VALUES (1)",
        "ALTER TABLE n ADD PRIMARY KEY (x)",
        True,
        "CREATE TABLE n (x int); INSERT INTO n VALUES (1);",
    ),
    "primary key using index": Case(
        "INSERT INTO n VALUES (2), (NULL)",
        "ALTER TABLE n ADD PRIMARY KEY USING INDEX ni",
        True,
        "CREATE TABLE n (x int); INSERT INTO n VALUES (1); CREATE UNIQUE INDEX ni ON n (x);",
    ),
    "unique": Case("INSERT INTO t VALUES (6, 1)", "ALTER TABLE t ADD UNIQUE (b)", True),
    "unique deferrable": Case(
        "UPDATE t SET b = 1 WHERE a = 2", "ALTER TABLE t ADD UNIQUE (b) DEFERRABLE INITIALLY DEFERRED", True
    ),
    "unique index": Case("INSERT INTO t VALUES (6, 1)", "CREATE UNIQUE INDEX ui ON t (b)", True),
    "unique partial": Case("UPDATE t SET c = 0", "CREATE UNIQUE INDEX ui ON t ((1)) WHERE c = 0", True),
    "unique expression": Case("INSERT INTO t VALUES (6, -1)", "CREATE UNIQUE INDEX ui ON t (abs(b))", True),
    "nulls not distinct": Case(
        "INSERT INTO t VALUES (6, NULL), (7, 7)",
        "CREATE UNIQUE INDEX ui ON t (b) NULLS NOT DISTINCT",
        True,
        "UPDATE t SET b = NULL WHERE a = 1;",
    ),
    "unique in partitions": Case(
        "INSERT INTO part VALUES (1, 1)", "ALTER TABLE part ADD UNIQUE (k, v)", True, PARTITIONED
    ),
    "index": Case("INSERT INTO t VALUES (6, 6)", "CREATE INDEX ti ON t (b)", True),
    "index, update": Case("UPDATE t SET b = 77 WHERE a = 1", "CREATE INDEX ti ON t (b)", True),
    "index, delete": Case("DELETE FROM t WHERE a = 1", "CREATE INDEX ti ON t (b)", True),
    "index in partitions": Case("INSERT INTO part VALUES (1, 7)", "CREATE INDEX pi ON part (v)", True, PARTITIONED),
    "index dropped": Case("UPDATE t SET b = 77 WHERE a = 1", "DROP INDEX ti", False, "CREATE INDEX ti ON t (b);"),
    "reindex": Case("UPDATE t SET b = 77 WHERE a = 1", "REINDEX TABLE t", True, "CREATE INDEX ti ON t (b);"),
    "cluster": Case("UPDATE t SET b = 77 WHERE a = 1", "CLUSTER t USING ti", True, "CREATE INDEX ti ON t (b);"),
    "type": Case("INSERT INTO t VALUES (6, 6)", "ALTER TABLE t ALTER b TYPE bigint", True),
    "type using": Case(
        "UPDATE t SET b = 0 WHERE a = 1", "ALTER TABLE t ALTER b TYPE text USING (10 / nullif(b, 0))::text", True
    ),
    "type without rewrite": Case(
        "INSERT INTO v VALUES (2, 'b')",
        "ALTER TABLE v ALTER x TYPE varchar(20)",
        False,
        "CREATE TABLE v (id int PRIMARY KEY, x varchar(5));",
    ),
    "type of a key": Case("INSERT INTO t VALUES (6, 6)", "ALTER TABLE t ALTER a TYPE bigint", True),
    "type of a referenced key": Case(
        "INSERT INTO k VALUES (3, 3)",
        "ALTER TABLE p ALTER id TYPE bigint",
        True,
        "ALTER TABLE k ADD FOREIGN KEY (pid) REFERENCES p;",
    ),
    "rewrite after a truncate that was rolled back": Case(
        "INSERT INTO t VALUES (6, 6)", "SAVEPOINT s; TRUNCATE t; ROLLBACK TO s; ALTER TABLE t ALTER b TYPE bigint", True
    ),
    "reindex after a truncate that was rolled back": Case(
        "INSERT INTO t VALUES (6, 6)",
        "SAVEPOINT s; TRUNCATE t; ROLLBACK TO s; REINDEX INDEX ti",
        True,
        "CREATE INDEX ti ON t (b);",
    ),
    "rewrite before a truncate": Case(
        "INSERT INTO t VALUES (6, 6)", "ALTER TABLE t ALTER b TYPE bigint; TRUNCATE t", False
    ),
    "column": Case("INSERT INTO t VALUES (6, 6)", "ALTER TABLE t ADD q int DEFAULT 3", False),
    "column with volatile default": Case(
        "INSERT INTO t VALUES (6, 6)", "ALTER TABLE t ADD q int DEFAULT (random() * 0)", True
    ),
    "column with a default that reads": Case(
        "INSERT INTO t VALUES (6, 6)",
        "ALTER TABLE t ADD q int DEFAULT f()",
        True,
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 0 * count(*)::int FROM ddlw.t';",
    ),
    "stored column": Case(
        "UPDATE t SET b = 0 WHERE a = 1", "ALTER TABLE t ADD q int GENERATED ALWAYS AS (b + 1) STORED", True
    ),
    "serial column": Case("INSERT INTO t VALUES (6, 6)", "ALTER TABLE t ADD q int GENERATED ALWAYS AS IDENTITY", True),
    "column dropped": Case("UPDATE t SET c = 0", "ALTER TABLE t DROP b", False),
    "unlogged": Case("INSERT INTO t VALUES (6, 6)", "ALTER TABLE t SET UNLOGGED", True),
    "truncate": Case("INSERT INTO t VALUES (6, 6)", "TRUNCATE t", False),
    "truncate cascade": Case(
        "INSERT INTO k VALUES (3, 3)", "TRUNCATE p CASCADE", False, "ALTER TABLE k ADD FOREIGN KEY (pid) REFERENCES p;"
    ),
    "drop": Case("INSERT INTO t VALUES (6, 6)", "DROP TABLE t", False),
    "drop of a referenced table": Case(
        "INSERT INTO k VALUES (4, 4)",
        "DROP TABLE p CASCADE",
        False,
        "ALTER TABLE k ADD FOREIGN KEY (pid) REFERENCES p;",
    ),
    "foreign key, child inserted": Case(
        "INSERT INTO k VALUES (3, 99)", "ALTER TABLE k ADD FOREIGN KEY (pid) REFERENCES p", True
    ),
    "foreign key, parent deleted": Case(
        "DELETE FROM p WHERE id = 1", "ALTER TABLE k ADD FOREIGN KEY (pid) REFERENCES p", True
    ),
    "foreign key, parent's key changed": Case(
        "UPDATE p SET id = 100 WHERE id = 1", "ALTER TABLE k ADD FOREIGN KEY (pid) REFERENCES p ON UPDATE CASCADE", True
    ),
    "foreign key to a unique column": Case(
        "UPDATE p SET u = 100 WHERE id = 1", "ALTER TABLE k ADD FOREIGN KEY (pid) REFERENCES p (u)", True
    ),
    "foreign key to itself": Case(
        "UPDATE t SET c = 99 WHERE a = 1", "ALTER TABLE t ADD FOREIGN KEY (c) REFERENCES t", True
    ),
    "foreign key validated": Case(
        "INSERT INTO k VALUES (3, 3)",
        "ALTER TABLE k VALIDATE CONSTRAINT x",
        True,
        "ALTER TABLE k ADD CONSTRAINT x FOREIGN KEY (pid) REFERENCES p NOT VALID;",
    ),
    "foreign key enforced": Case(
        "INSERT INTO k VALUES (3, 99)",
        "ALTER TABLE k ALTER CONSTRAINT x ENFORCED",
        True,
        "ALTER TABLE k ADD CONSTRAINT x FOREIGN KEY (pid) REFERENCES p NOT ENFORCED;",
    ),
    "foreign key enforced, parent deleted": Case(
        "DELETE FROM p WHERE id = 1",
        "ALTER TABLE k ALTER CONSTRAINT x ENFORCED",
        True,
        "ALTER TABLE k ADD CONSTRAINT x FOREIGN KEY (pid) REFERENCES p NOT ENFORCED;",
    ),
    "foreign key of a new table with rows": Case(
        "DELETE FROM p WHERE id = 1",
        "CREATE TABLE n AS SELECT 1 AS x; ALTER TABLE n ADD FOREIGN KEY (x) REFERENCES p",
        True,
    ),
    "foreign key of a new table, rows after it": Case(
        "DELETE FROM p WHERE id = 1", "CREATE TABLE n (x int REFERENCES p); INSERT INTO n VALUES (1)", True
    ),
    "foreign key of a new empty table": Case(
        "DELETE FROM p WHERE id = 1", "CREATE TABLE n (x int REFERENCES p)", False
    ),
    "foreign key dropped": Case(
        "INSERT INTO k VALUES (3, 3)",
        "ALTER TABLE k DROP CONSTRAINT x",
        False,
        "ALTER TABLE k ADD CONSTRAINT x FOREIGN KEY (pid) REFERENCES p;",
    ),
    "foreign key to partitions": Case(
        "DELETE FROM rp WHERE a = 1",
        "INSERT INTO k2 VALUES (1); ALTER TABLE k2 ADD FOREIGN KEY (a) REFERENCES rp",
        True,
        REFERENCED + "CREATE TABLE k2 (a int);",
    ),
    "attach, row of the default partition": Case(
        "INSERT INTO part VALUES (2, 2)",
        "ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2)",
        True,
        PARTITIONED,
    ),
    "attach, row of the new partition": Case(
        "INSERT INTO part_2 VALUES (3, 3)",
        "ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2)",
        True,
        PARTITIONED,
    ),
    "attach of a partitioned table": Case(
        "INSERT INTO deep_2a VALUES (3, 3)", "ALTER TABLE deep ATTACH PARTITION deep_2 FOR VALUES IN (2)", True, DEEP
    ),
    "attach, row of a partitioned default": Case(
        "INSERT INTO deep VALUES (2, 2)", "ALTER TABLE deep ATTACH PARTITION deep_2 FOR VALUES IN (2)", True, DEEP
    ),
    "attach of the default partition": Case(
        "INSERT INTO part_d VALUES (1, 7)",
        "ALTER TABLE part ATTACH PARTITION part_d DEFAULT",
        True,
        PARTITIONED + "ALTER TABLE part DETACH PARTITION part_d;",
    ),
    "new partition beside the default": Case(
        "INSERT INTO part VALUES (2, 2)", "CREATE TABLE part_n PARTITION OF part FOR VALUES IN (2)", True, PARTITIONED
    ),
    "attach to a referencing table": Case(
        "INSERT INTO rf_n VALUES (11, 77)",
        "ALTER TABLE rf ATTACH PARTITION rf_n FOR VALUES FROM (10) TO (20)",
        True,
        REFERENCED_BY_PARTITIONS + "CREATE TABLE rf_n (id int, a int);",
    ),
    "attach to a referencing table, parent deleted": Case(
        "DELETE FROM rp WHERE a = 1",
        "ALTER TABLE rf ATTACH PARTITION rf_n FOR VALUES FROM (10) TO (20)",
        True,
        REFERENCED_BY_PARTITIONS + "CREATE TABLE rf_n (id int, a int); INSERT INTO rf_n VALUES (11, 1);",
    ),
    "detach": Case("INSERT INTO part VALUES (1, 7)", "ALTER TABLE part DETACH PARTITION part_1", False, PARTITIONED),
    "detach of the default": Case(
        "INSERT INTO part VALUES (7, 7)", "ALTER TABLE part DETACH PARTITION part_d", False, PARTITIONED
    ),
    "detach of a referenced partition": Case(
        "INSERT INTO rf VALUES (1, 1)", "ALTER TABLE rp DETACH PARTITION rp_1", True, REFERENCED
    ),
    "detach of a referenced partition, update": Case(
        "UPDATE rf SET a = 1",
        "ALTER TABLE rp DETACH PARTITION rp_1",
        True,
        REFERENCED + "INSERT INTO rf VALUES (1, 11);",
    ),
    "detach of a referenced tree": Case(
        "INSERT INTO rf VALUES (1, 11)", "ALTER TABLE rp DETACH PARTITION rp_2", True, REFERENCED
    ),
    "detach below a referenced tree": Case(
        "INSERT INTO rf VALUES (1, 11)", "ALTER TABLE rp_2 DETACH PARTITION rp_2a", True, REFERENCED
    ),
    "detach of a referenced partition, referencing partitions": Case(
        "INSERT INTO rf VALUES (1, 1)", "ALTER TABLE rp DETACH PARTITION rp_1", True, REFERENCED_BY_PARTITIONS
    ),
    "new partition of a referenced table": Case(
        "INSERT INTO rf VALUES (1, 1)",
        "CREATE TABLE rp_3 PARTITION OF rp FOR VALUES FROM (20) TO (30)",
        False,
        REFERENCED,
    ),
    "attach to a referenced table": Case(
        "INSERT INTO rf VALUES (1, 1)",
        "ALTER TABLE rp ATTACH PARTITION rp_n FOR VALUES FROM (20) TO (30)",
        False,
        REFERENCED,
    ),
    "detach from a referencing table": Case(
        "INSERT INTO rf VALUES (1, 1)", "ALTER TABLE rf DETACH PARTITION rf_1", False, REFERENCED_BY_PARTITIONS
    ),
    "partition dropped": Case("INSERT INTO part VALUES (1, 7)", "DROP TABLE part_1", False, PARTITIONED),
    "domain check": Case("INSERT INTO dt VALUES (2, -1)", "ALTER DOMAIN d ADD CHECK (value > 0)", True, DOMAIN),
    "domain over the domain": Case(
        "INSERT INTO dt2 VALUES (2, -1)",
        "ALTER DOMAIN d ADD CHECK (value > 0)",
        True,
        "CREATE DOMAIN d AS int; CREATE DOMAIN e AS d; CREATE TABLE dt2 (id int PRIMARY KEY, x e);",
    ),
    "domain not null": Case(
        "INSERT INTO dt2 VALUES (2, NULL)",
        "ALTER DOMAIN d SET NOT NULL",
        True,
        "CREATE DOMAIN d AS int; CREATE TABLE dt2 (id int PRIMARY KEY, x d);",
    ),
    "domain check dropped": Case(
        "INSERT INTO dt2 VALUES (2, 2)",
        "ALTER DOMAIN d DROP CONSTRAINT x",
        False,
        "CREATE DOMAIN d AS int CONSTRAINT x CHECK (value > 0); CREATE TABLE dt2 (id int PRIMARY KEY, x d);",
    ),
    "materialized view": Case("INSERT INTO t VALUES (6, 6)", "CREATE MATERIALIZED VIEW mv AS SELECT a FROM t", False),
    "materialized view refreshed": Case("INSERT INTO t VALUES (6, 6)", "REFRESH MATERIALIZED VIEW mv", False, MATVIEW),
    "table as": Case("INSERT INTO t VALUES (6, 6)", "CREATE TABLE copied AS SELECT * FROM t", False),
    "trigger": Case(
        "INSERT INTO t VALUES (6, 6)",
        "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION tf()",
        False,
        "CREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.b = 1000; RETURN NEW; END';",
    ),
    "inherit": Case(
        "INSERT INTO kid VALUES (11, 11)", "ALTER TABLE kid INHERIT t", False, "CREATE TABLE kid (LIKE t);"
    ),
}


def attempt(connection: Connection, statements: str) -> str:
    """Nothing, or SQLSTATE and message of the first failure; the transaction is then rolled back."""
    try:
        connection.execute(statements.encode())
    except psycopg.Error as error:
        connection.rollback()
        return f"{error.sqlstate} {str(error).splitlines()[0]}"
    return ""


def transaction(connection: Connection, statements: str) -> str:
    return attempt(connection, f"BEGIN; {statements}; COMMIT")


def set_up(connection: Connection, case: Case) -> None:
    name = sql.Identifier(SCHEMA)
    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
    connection.execute(f"SET search_path = {SCHEMA}; {SETUP} {case.setup}".encode())


def texts(connection: Connection, query: str) -> list[str]:
    return sorted(str(row[0]) for row in connection.execute(query.encode()).fetchall())


def state(connection: Connection) -> dict[str, list[str]]:
    """Everything in the schema that a change or a writer could leave behind."""
    out = {
        "constraints": texts(
            connection,
            f"""SELECT concat_ws(' ', conrelid::regclass, confrelid::regclass, pg_get_constraintdef(oid), convalidated)
            FROM pg_constraint WHERE connamespace = '{SCHEMA}'::regnamespace""",
        ),
        "relations": texts(
            connection,
            f"""SELECT concat_ws(' ', relname, relkind, relispartition, pg_get_expr(relpartbound, oid), relpersistence)
            FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace AND relkind <> 'c'""",
        ),
        "triggers": texts(connection, "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"),
        "columns": texts(
            connection,
            f"""SELECT concat_ws(' ', attrelid::regclass, attname, format_type(atttypid, atttypmod))
            FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
            WHERE relnamespace = '{SCHEMA}'::regnamespace AND relkind IN ('r', 'p', 'm') AND attnum > 0""",
        ),
    }
    tables = f"SELECT relname FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace AND relkind IN ('r', 'm')"
    for table in texts(connection, tables):
        connection.execute("SET enable_seqscan = on; SET enable_indexscan = off; SET enable_indexonlyscan = off")
        out[table] = texts(connection, f"SELECT x::text FROM ONLY {table} x")
        for column in texts(
            connection,
            f"""SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
            WHERE indrelid = '{table}'::regclass AND indnatts = 1 AND indpred IS NULL""",
        ):
            order = f"SELECT array_agg(v::text)::text FROM (SELECT {column} v FROM ONLY {table} ORDER BY v) x"
            connection.execute("SET enable_seqscan = on; SET enable_indexscan = off; SET enable_indexonlyscan = off")
            by_table = texts(connection, order)
            connection.execute("SET enable_seqscan = off; SET enable_indexscan = on; SET enable_indexonlyscan = on")
            assert texts(connection, order) == by_table, f"index of {table}.{column}"
    connection.execute("RESET enable_seqscan; RESET enable_indexscan; RESET enable_indexonlyscan")
    return out


def serial_states(connection: Connection, case: Case) -> dict[tuple[bool, bool], list[dict[str, list[str]]]]:
    out: dict[tuple[bool, bool], list[dict[str, list[str]]]] = {}
    for order in ((case.write,), (case.change,), (case.write, case.change), (case.change, case.write), ()):
        set_up(connection, case)
        done = {statement: not transaction(connection, statement) for statement in order}
        if all(done.values()):
            key = (done.get(case.write, False), done.get(case.change, False))
            out.setdefault(key, []).append(state(connection))
    return out


def snapshot_first(server: Server, first: str, second: str) -> tuple[str, str, bool]:
    """The second one's snapshot is older than the first one's commit: (what first said, what second said)."""
    with server.connect() as one, server.connect() as two:
        for connection in (one, two):
            connection.execute(f"SET search_path = {SCHEMA}".encode())
        two.execute("BEGIN; SELECT FROM other")
        said = transaction(one, first)
        return said, attempt(two, f"{second}; COMMIT"), False


def while_open(server: Server, first: str, second: str, snapshot: bool) -> tuple[str, str, bool]:
    """The second one starts before the first one commits, and waits for it if it must.

    Returns what they said, and whether the second one ended without waiting, hence before the first.
    """
    said: list[str] = []
    with server.connect() as one, server.connect() as two, server.connect() as watch:
        for connection in (one, two):
            connection.execute(f"SET search_path = {SCHEMA}".encode())
        if snapshot:
            two.execute("BEGIN; SELECT FROM other")
        one.execute(f"BEGIN; {first}".encode())
        work = f"{second}; COMMIT" if snapshot else f"BEGIN; {second}; COMMIT"
        thread = threading.Thread(target=lambda: said.append(attempt(two, work)))
        thread.start()
        waiting = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        while thread.is_alive() and watch.execute(waiting, [two.info.backend_pid]).fetchone() != (True,):
            thread.join(0.01)
        overtaken = not thread.is_alive()
        ended = attempt(one, "COMMIT")
        thread.join()
    return ended, said[0], overtaken


ORDERS = ("snapshot before commit", "open", "open, snapshot before")


@pytest.mark.parametrize("case", CASES)
def test_change_beside_writer(case: str, australis: Server) -> None:
    """Six orders: who begins, and whether the other waits for it, or took its snapshot before it committed."""
    it = CASES[case]
    with australis.connect() as owner:
        owner.prepare_threshold = None  # tables change their columns
        allowed = serial_states(owner, it)
        problems = []
        for order in ORDERS:
            for writer_first in (True, False):
                set_up(owner, it)
                first, second = (it.write, it.change) if writer_first else (it.change, it.write)
                if order == ORDERS[0]:
                    said = snapshot_first(australis, first, second)
                else:
                    said = while_open(australis, first, second, order == ORDERS[2])
                earlier, later = said[:2] if not said[2] else said[1::-1]
                wrote, changed = said[:2] if writer_first else said[1::-1]
                where = f"{order}, {'writer' if writer_first else 'change'} first: writer {wrote!r}, change {changed!r}"
                if state(owner) not in allowed.get((not wrote, not changed), []):
                    problems.append(f"{where}: no serial order gives {state(owner)}")
                if earlier:
                    problems.append(f"{where}: the first to commit failed")
                if order != ORDERS[1] and writer_first != said[2] and bool(changed) != it.depends:
                    problems.append(f"{where}: who must lose")
                if later.startswith(("XX", "40P01")) or (later.startswith("40001") and "(OC00" not in later):
                    problems.append(where)
        owner.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(SCHEMA)))
    assert not problems, "\n".join(problems)
