"""A primary key added after the data, as pg_dump and pgbench do it: rows are copied into the order of the key.

The statements run on stock PostgreSQL and on Australis; results and errors must be equal (messages, details and
constraint names included), whatever the copy does inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest

from tests.fixtures.servers import Server

SETUP = """
DROP SCHEMA IF EXISTS keys_after CASCADE; CREATE SCHEMA keys_after; SET search_path = keys_after;
CREATE TABLE t (a int, b text, gone int, c numeric);
INSERT INTO t SELECT (g * 7919) % 10007, 'text ' || g % 100, g, g / 7.0 FROM generate_series(1, 5000) g;
ALTER TABLE t DROP COLUMN gone;
CREATE INDEX t_c ON t (c);
CREATE TABLE p (a int, b int) PARTITION BY HASH (a);
CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO p SELECT g, g FROM generate_series(1, 1000) g;
"""
SUMS = "SELECT count(*), sum(a), min(b), max(c) FROM t"

CASES: dict[str, Sequence[str]] = {
    "plain": ["ALTER TABLE t ADD PRIMARY KEY (a)", SUMS, "SELECT * FROM t WHERE a = 77", "INSERT INTO t VALUES (77)"],
    "more columns": [
        "ALTER TABLE t ADD CONSTRAINT k PRIMARY KEY (b, a)",
        SUMS,
        "SELECT b, a FROM t ORDER BY b DESC, a LIMIT 3",
    ],
    # one duplicate: which of several is named is a matter of the sort
    "duplicate, then repaired": [
        "INSERT INTO t VALUES (77, 'again', 1)",
        "ALTER TABLE t ADD PRIMARY KEY (a)",
        "DELETE FROM t WHERE b = 'again'",
        "ALTER TABLE t ADD PRIMARY KEY (a)",
        "SELECT count(*) FROM t WHERE a = 77",
    ],
    "nulls": ["INSERT INTO t VALUES (NULL, 'x', 1)", "ALTER TABLE t ADD PRIMARY KEY (a)", SUMS],
    "rolled back": [
        "BEGIN",
        "ALTER TABLE t ADD PRIMARY KEY (a)",
        SUMS,
        "ROLLBACK",
        SUMS,
        "INSERT INTO t VALUES (77, '', 0)",
    ],
    "savepoint": [
        "BEGIN",
        "INSERT INTO t VALUES (77, 'twice', 1)",
        "SAVEPOINT s",
        "ALTER TABLE t ADD PRIMARY KEY (a)",
        "ROLLBACK TO s",
        "DELETE FROM t WHERE b = 'twice'",
        "ALTER TABLE t ADD PRIMARY KEY (a)",
        "UPDATE t SET c = 5 WHERE a = 77",
        "COMMIT",
        "SELECT * FROM t WHERE a = 77",
    ],
    "two statements in one": [
        "ALTER TABLE t ADD PRIMARY KEY (a), ADD COLUMN up int, ADD FOREIGN KEY (up) REFERENCES t (a)",
        "UPDATE t SET up = a WHERE a < 100",
        SUMS,
        "DELETE FROM t WHERE a = 5",
        "UPDATE t SET up = -1 WHERE a = 5",
    ],
    "using an index": [
        "CREATE UNIQUE INDEX u ON t (a)",
        "ALTER TABLE t ADD CONSTRAINT k PRIMARY KEY USING INDEX u",
        SUMS,
    ],
    "another key": [
        "ALTER TABLE t ADD PRIMARY KEY (a)",
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (c)",
        SUMS,
    ],
    "partitions": ["ALTER TABLE p ADD PRIMARY KEY (a)", "SELECT * FROM p WHERE a = 5", "INSERT INTO p VALUES (5, 5)"],
    "partition's duplicates": [
        "INSERT INTO p VALUES (5, 6)",
        "ALTER TABLE p ADD PRIMARY KEY (a)",
        "SELECT sum(b) FROM p",
    ],
    "event trigger reads": [
        "CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM 1 FROM keys_after.t WHERE a = 77; IF NOT FOUND THEN RAISE 'not there'; END IF; END $$",
        "CREATE EVENT TRIGGER keys_after_look ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION look()",
        "SET enable_seqscan = off",
        "ALTER TABLE t ADD PRIMARY KEY (a)",
        "DROP EVENT TRIGGER keys_after_look",
        SUMS,
    ],
    "in a function": [
        "DO $$ BEGIN INSERT INTO t VALUES (77, 'twice', 1); BEGIN ALTER TABLE t ADD PRIMARY KEY (a); "
        "EXCEPTION WHEN unique_violation THEN DELETE FROM t WHERE b = 'twice'; END; "
        "ALTER TABLE t ADD PRIMARY KEY (a); END $$",
        SUMS,
        "SELECT * FROM t WHERE a = 77",
    ],
    "rewritten again": ["ALTER TABLE t ADD PRIMARY KEY (a)", "VACUUM FULL t", "CLUSTER t USING t_c", SUMS],
}


def play(server: Server, statements: Sequence[str]) -> list[object]:
    seen: list[object] = []
    with server.connect() as connection:
        connection.execute(SETUP.encode())
        for statement in statements:
            try:
                cursor = connection.execute(statement.encode())
                seen.append(cursor.fetchall() if cursor.description else cursor.rowcount)
            except psycopg.Error as error:
                diag = error.diag
                seen.append((diag.sqlstate, diag.message_primary, diag.message_detail, diag.constraint_name))
        connection.execute("DROP SCHEMA keys_after CASCADE")
    return seen


@pytest.mark.parametrize("case", CASES)
def test_same_as_stock(case: str, stock: Server, australis: Server) -> None:
    assert play(australis, CASES[case]) == play(stock, CASES[case])
