"""SERIALIZABLE finds write skew through every kind of read; REPEATABLE READ lets it pass.

Two transactions read what the other one then writes, without a row in common. Under SERIALIZABLE one of them must fail
with 40001 whatever access path the reads take; under REPEATABLE READ (snapshot isolation) both commit.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.fixtures.servers import Server

SETUP = """
DROP SCHEMA IF EXISTS ser CASCADE; CREATE SCHEMA ser; SET search_path = ser;
CREATE TABLE keyed (id int PRIMARY KEY, g int, v int); CREATE INDEX ON keyed (g);
INSERT INTO keyed SELECT i, i % 3, 0 FROM generate_series(1, 30) i;
CREATE TABLE keyless (g int, v int); CREATE INDEX ON keyless (g);
CREATE TABLE uniq (u int UNIQUE, v int); INSERT INTO uniq VALUES (1, 0), (2, 0);
CREATE TABLE late (u int UNIQUE DEFERRABLE); INSERT INTO late VALUES (1), (2);
"""
PATHS = {
    "any": "",
    "index": "SET enable_seqscan = off",
    "sequential": "SET enable_indexscan = off; SET enable_indexonlyscan = off",
}
# read, write; {me} and {other} are 1 and 2, or 2 and 1
CASES = {
    "sum": ("SELECT sum(v) FROM keyed", "UPDATE keyed SET v = v + 1 WHERE id = {me}"),
    "count of matches": ("SELECT count(*) FROM keyed WHERE v = 0", "UPDATE keyed SET v = 1 WHERE id = {me}"),
    "one key": ("SELECT v FROM keyed WHERE id = {other}", "UPDATE keyed SET v = v + 1 WHERE id = {me}"),
    "empty range": (
        "SELECT count(*) FROM keyed WHERE id BETWEEN 100 AND 200",
        "INSERT INTO keyed VALUES (150 + {me}, 0, 0)",
    ),
    "absent key": ("SELECT v FROM keyed WHERE id = 150 + {other}", "INSERT INTO keyed VALUES (150 + {me}, 0, 0)"),
    "list": ("SELECT count(*) FROM keyed WHERE id IN (150, 151)", "INSERT INTO keyed VALUES (149 + {me}, 0, 0)"),
    "secondary index": ("SELECT count(*) FROM keyed WHERE g = 7", "INSERT INTO keyed VALUES (300 + {me}, 7, 0)"),
    "index only": ("SELECT g FROM keyed WHERE g > 6", "UPDATE keyed SET g = 8 WHERE id = {me}"),
    "exists": (
        "SELECT EXISTS (SELECT FROM keyed WHERE id = 150 + {other})",
        "INSERT INTO keyed VALUES (150 + {me}, 0, 0)",
    ),
    "join": (
        "SELECT count(*) FROM keyed a JOIN keyed b ON a.id = b.v WHERE a.id > 100",
        "INSERT INTO keyed VALUES (100 + {me}, 0, 101)",
    ),
    "maximum": ("SELECT max(id) FROM keyed", "INSERT INTO keyed VALUES (1000 + {me}, 0, 0)"),
    "table without key": ("SELECT count(*) FROM keyless", "INSERT INTO keyless VALUES ({me}, 0)"),
    "its index": ("SELECT count(*) FROM keyless WHERE g = 5", "INSERT INTO keyless VALUES (5, 0)"),
    "not in": (
        "SELECT count(*) FROM keyed WHERE id NOT IN (SELECT g FROM keyless)",
        "INSERT INTO keyless VALUES ({me}, 0)",
    ),
    "unique key": ("SELECT v FROM uniq WHERE u = {other}", "UPDATE uniq SET v = v + 1 WHERE u = {me}"),
    "unique range": (
        "SELECT count(*) FROM uniq WHERE u BETWEEN 100 AND 200",
        "INSERT INTO uniq VALUES (150 + {me}, 0)",
    ),
    # what an INSERT says about a key, though nothing of it is left: by an error that is caught ...
    "duplicate key": (
        """DO $$ BEGIN INSERT INTO keyed VALUES ({other});
        EXCEPTION WHEN unique_violation THEN NULL; END $$""",
        "DELETE FROM keyed WHERE id = {me}",
    ),
    "duplicate unique key": (
        """DO $$ BEGIN INSERT INTO uniq VALUES ({other});
        EXCEPTION WHEN unique_violation THEN NULL; END $$""",
        "DELETE FROM uniq WHERE u = {me}",
    ),
    "duplicate deferrable key": (
        """DO $$ BEGIN INSERT INTO late VALUES ({other});
        EXCEPTION WHEN unique_violation THEN NULL; END $$""",
        "DELETE FROM late WHERE u = {me}",
    ),
    "key moved to a duplicate": (
        """DO $$ BEGIN UPDATE keyed SET id = {other} WHERE id = 10 + {me};
        EXCEPTION WHEN unique_violation THEN NULL; END $$""",
        "DELETE FROM keyed WHERE id = {me}",
    ),
    # ... or by a success that is rolled back
    "absent key, rolled back": (
        """SAVEPOINT s; INSERT INTO keyed VALUES (150 + {other}); ROLLBACK TO s""",
        "INSERT INTO keyed VALUES (150 + {me})",
    ),
    "absent unique key, rolled back": (
        """SAVEPOINT s; INSERT INTO uniq VALUES (150 + {other}); ROLLBACK TO s""",
        "INSERT INTO uniq VALUES (150 + {me})",
    ),
    "absent deferrable key, rolled back": (
        """SAVEPOINT s; INSERT INTO late VALUES (150 + {other}); ROLLBACK TO s""",
        "INSERT INTO late VALUES (150 + {me})",
    ),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ"])
@pytest.mark.parametrize("case", CASES)
def test_write_skew(australis: Server, case: str, level: str, path: str) -> None:
    read, write = CASES[case]
    outcomes: list[str | None] = []
    with australis.connect() as one, australis.connect() as two:
        one.execute(SETUP.encode())
        two.execute("SET search_path = ser")
        sessions = ((one, 1, 2), (two, 2, 1))
        for session, me, other in sessions:
            if PATHS[path]:
                session.execute(PATHS[path].encode())
            session.execute(f"BEGIN ISOLATION LEVEL {level}".encode())
            session.execute(read.format(me=me, other=other).encode())
        for session, me, other in sessions:
            session.execute(write.format(me=me, other=other).encode())
        for session, _, _ in sessions:
            try:
                session.execute("COMMIT")
                outcomes.append(None)
            except psycopg.Error as error:
                outcomes.append(error.sqlstate)
        one.execute("DROP SCHEMA ser CASCADE")
    assert outcomes == [None, "40001" if level == "SERIALIZABLE" else None]


@pytest.mark.parametrize(
    ("read", "change"),
    [
        ("SELECT count(*) FROM parted WHERE k = 5", "ALTER TABLE parted ATTACH PARTITION ready FOR VALUES IN (5)"),
        ("SELECT count(*) FROM parted", "ALTER TABLE parted ATTACH PARTITION ready FOR VALUES IN (5)"),
        ("SELECT count(*) FROM keyless", "ALTER TABLE heir INHERIT keyless"),
    ],
)
def test_table_grown_beside_a_reader(australis: Server, read: str, change: str) -> None:
    """ATTACH PARTITION and INHERIT add rows without writing any, and do not wait for readers."""
    with australis.connect() as one, australis.connect() as two:
        one.execute(SETUP.encode())
        one.execute(
            """CREATE TABLE parted (k int) PARTITION BY LIST (k);
            CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
            CREATE TABLE ready (k int); INSERT INTO ready VALUES (5);
            CREATE TABLE heir (g int, v int); INSERT INTO heir VALUES (5, 5)"""
        )
        two.execute("SET search_path = ser")
        one.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        two.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        one.execute(read.encode())
        two.execute("SELECT count(*) FROM uniq")
        two.execute(change.encode())
        one.execute("INSERT INTO uniq VALUES (3, 0)")
        two.execute("COMMIT")
        with pytest.raises(psycopg.errors.SerializationFailure, match="OC001"):
            one.execute("COMMIT")
        one.execute("DROP SCHEMA ser CASCADE")


def test_planning_is_no_read(australis: Server) -> None:
    """For a condition beyond the statistics the planner looks for the end of the index, which somebody may move."""
    with australis.connect() as one, australis.connect() as two:
        one.execute(SETUP.encode())
        one.execute("ANALYZE keyed")
        two.execute("SET search_path = ser")
        one.execute("SET enable_seqscan = off")
        one.execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT v FROM keyed WHERE id = 5")
        one.execute("EXPLAIN SELECT * FROM keyed WHERE id > 29; EXPLAIN SELECT * FROM keyed WHERE g > 2")
        two.execute("INSERT INTO keyed VALUES (40, 9, 0)")
        one.execute("INSERT INTO keyless VALUES (1, 1)")
        one.execute("COMMIT")
        one.execute("DROP SCHEMA ser CASCADE")
