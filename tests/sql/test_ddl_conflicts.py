"""Schema changes against concurrent transactions (PROTOCOL A5, Q3): OC001 where the schema moved under a transaction,
OC000 where a schema change depends on rows that moved, and neither where nothing of both is touched.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.fixtures.servers import Server

SETUP = """
DROP SCHEMA IF EXISTS ddlc CASCADE; CREATE SCHEMA ddlc; SET search_path = ddlc;
CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t SELECT g, g FROM generate_series(1, 10) g;
CREATE TABLE p (id int PRIMARY KEY); INSERT INTO p SELECT generate_series(1, 5);
CREATE TABLE other (a int);
CREATE DOMAIN d AS int; CREATE TABLE dt (x d, id int PRIMARY KEY);
CREATE TABLE part (k int) PARTITION BY LIST (k); CREATE TABLE part_d PARTITION OF part DEFAULT;
CREATE TABLE part_1 (k int);
CREATE TABLE up (a int); CREATE TABLE down () INHERITS (up);
"""
SCHEMA = ("40001", "OC001")
ROWS = ("40001", "OC000")

Result = tuple[str | None, str]


@pytest.fixture
def sessions(australis: Server) -> Iterator[tuple[psycopg.Connection[tuple[object, ...]], ...]]:
    with australis.connect() as one, australis.connect() as two:
        one.execute(SETUP.encode())
        two.execute("SET search_path = ddlc; SET lock_timeout = '5s'")
        yield one, two
        one.rollback()
        one.execute("DROP SCHEMA IF EXISTS ddlc CASCADE")


def attempt(connection: psycopg.Connection[tuple[object, ...]], statements: str) -> Result:
    """(SQLSTATE, message) of the first failure, or (None, "")."""
    try:
        connection.execute(statements.encode())
    except psycopg.Error as error:
        return error.sqlstate, str(error).splitlines()[0]
    return None, ""


def check(result: Result, expected: tuple[str, str] | None) -> None:
    if expected is None:
        assert result == (None, ""), result
    else:
        assert result[0] == expected[0] and expected[1] in result[1], result


@pytest.mark.parametrize(
    ("change", "statement", "expected"),
    [
        ("ALTER TABLE t ADD COLUMN z int", "INSERT INTO t VALUES (100, 1)", SCHEMA),
        ("ALTER TABLE t ADD COLUMN z int", "INSERT INTO p VALUES (100)", None),
        ("CREATE INDEX ON t (b)", "UPDATE t SET b = 1 WHERE a = 1", SCHEMA),
        ("TRUNCATE t", "SELECT count(*) FROM t", SCHEMA),
        ("GRANT SELECT ON t TO PUBLIC", "UPDATE t SET b = 1 WHERE a = 1", SCHEMA),
        ("COMMENT ON TABLE t IS 'x'", "UPDATE t SET b = 1 WHERE a = 1", None),
        ("ANALYZE t", "UPDATE t SET b = 1 WHERE a = 1", None),
        ("VACUUM t", "UPDATE t SET b = 1 WHERE a = 1", None),
        ("CREATE TABLE c (id int REFERENCES p)", "DELETE FROM p WHERE id = 1", SCHEMA),
        ("DROP TABLE t", "INSERT INTO t VALUES (100, 1)", ("42P01", "does not exist")),
        ("ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES IN (1)", "INSERT INTO part_d VALUES (2)", SCHEMA),
        # what is no part of the table any more is part of the old snapshot
        ("ALTER TABLE part DETACH PARTITION part_d", "SELECT count(*) FROM part", SCHEMA),
        ("DROP TABLE part_d", "SELECT count(*) FROM part", SCHEMA),
        ("DROP TABLE part_d", "UPDATE part SET k = k", SCHEMA),
        ("DROP TABLE part_d", "CREATE TABLE copied AS SELECT * FROM part", SCHEMA),
        ("ALTER TABLE down NO INHERIT up", "SELECT count(*) FROM up", SCHEMA),
        ("DROP TABLE down", "SELECT count(*) FROM up", SCHEMA),
        # the new definition is used at once, and the old snapshot is refused at COMMIT
        ("ALTER DOMAIN d ADD CHECK (value > 0)", "INSERT INTO dt VALUES (1, 1)", SCHEMA),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "INSERT INTO t VALUES (100, f())", None),
    ],
)
def test_schema_moved_under_a_transaction(
    sessions: tuple[psycopg.Connection[tuple[object, ...]], ...],
    change: str,
    statement: str,
    expected: tuple[str, str] | None,
) -> None:
    one, two = sessions
    one.execute("BEGIN; SELECT FROM other")  # takes the snapshot
    check(attempt(two, change), None)
    result = attempt(one, statement)
    if result[0] is None:
        result = attempt(one, "COMMIT")
    check(result, expected)


@pytest.mark.parametrize(
    ("write", "change", "expected"),
    [
        ("INSERT INTO t VALUES (50, -1)", "ALTER TABLE t ADD CHECK (b > 0)", ROWS),
        ("INSERT INTO t VALUES (50, -1)", "ALTER TABLE t ADD CHECK (b > 0) NOT VALID", None),
        ("INSERT INTO t VALUES (50, 1)", "CREATE UNIQUE INDEX ON t (b)", ROWS),
        ("INSERT INTO t VALUES (50, NULL)", "ALTER TABLE t ALTER b SET NOT NULL", ROWS),
        ("INSERT INTO t VALUES (50, 1)", "ALTER TABLE t ALTER b TYPE bigint", ROWS),
        ("INSERT INTO t VALUES (50, 1)", "REINDEX TABLE t", ROWS),
        ("INSERT INTO t VALUES (50, 1)", "ALTER TABLE t ADD COLUMN q int DEFAULT 3", None),
        ("INSERT INTO t VALUES (50, 1)", "ALTER TABLE t RENAME b TO c", None),
        ("INSERT INTO t VALUES (50, 1)", "TRUNCATE t", None),
        ("INSERT INTO t VALUES (50, 1)", "DROP TABLE t", None),
        ("INSERT INTO dt VALUES (-1, 1)", "ALTER DOMAIN d ADD CHECK (value > 0)", ROWS),
        ("INSERT INTO dt VALUES (-1, 1)", "ALTER DOMAIN d ADD CHECK (value > 0) NOT VALID", None),
        ("INSERT INTO part VALUES (1)", "ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES IN (1)", ROWS),
        ("INSERT INTO part VALUES (2)", "CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2)", ROWS),
        # an empty table beside a busy parent ...
        ("DELETE FROM p WHERE id = 1", "CREATE TABLE c (id int REFERENCES p)", None),
        # ... and one whose rows were checked against the parent's
        (
            "DELETE FROM p WHERE id = 1",
            "CREATE TABLE c (id int); INSERT INTO c VALUES (1); ALTER TABLE c ADD FOREIGN KEY (id) REFERENCES p",
            ROWS,
        ),
        ("DELETE FROM p WHERE id = 1", "ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES p NOT VALID", None),
        ("INSERT INTO t VALUES (50, 1)", "CREATE TABLE copied AS SELECT * FROM t", None),
    ],
)
def test_change_that_depends_on_rows(
    sessions: tuple[psycopg.Connection[tuple[object, ...]], ...],
    write: str,
    change: str,
    expected: tuple[str, str] | None,
) -> None:
    one, two = sessions
    one.execute("BEGIN; SELECT FROM other")  # takes the snapshot
    check(attempt(two, write), None)
    result = attempt(one, change)
    if result[0] is None:
        result = attempt(one, "COMMIT")
    check(result, expected)


def test_two_changes_at_once(sessions: tuple[psycopg.Connection[tuple[object, ...]], ...]) -> None:
    """Unrelated changes do not disturb each other, whatever the order of their commits."""
    one, two = sessions
    one.execute("BEGIN; CREATE TABLE n1 (a int PRIMARY KEY)")
    two.execute("BEGIN; CREATE TABLE n2 (a int PRIMARY KEY)")
    check(attempt(two, "COMMIT"), None)
    check(attempt(one, "COMMIT"), None)
    one.execute("INSERT INTO n1 VALUES (1)")
    one.execute("INSERT INTO n2 VALUES (1)")


def test_rolled_back_change_leaves_nothing(sessions: tuple[psycopg.Connection[tuple[object, ...]], ...]) -> None:
    one, two = sessions
    before = one.execute("SELECT au_catalog_applied()").fetchone()
    one.execute("BEGIN; CREATE TABLE gone (a int PRIMARY KEY); INSERT INTO gone VALUES (1); ROLLBACK")
    one.execute("CREATE TEMP TABLE mine (a serial PRIMARY KEY)")
    one.execute("ANALYZE t")
    one.execute("VACUUM t")
    assert one.execute("SELECT au_catalog_applied()").fetchone() == before
    check(attempt(two, "SELECT FROM gone"), ("42P01", "does not exist"))
