"""Every kind of row lock and write beside every other one: who conflicts is PostgreSQL's table of row lock modes.

Two transactions with snapshots older than both touch the same row, and each writes something else besides. The first
to COMMIT wins; the second one fails with 40001 exactly if the modes of the two conflict.
"""

from __future__ import annotations

import psycopg

from tests.fixtures.servers import Server

SETUP = """
DROP SCHEMA IF EXISTS locks CASCADE; CREATE SCHEMA locks; SET search_path = locks;
CREATE TABLE p (id int PRIMARY KEY, u int UNIQUE, n int, e int); CREATE UNIQUE INDEX ON p (abs(e));
CREATE TABLE c (id int PRIMARY KEY, pid int REFERENCES p, pu int REFERENCES p (u));
CREATE TABLE other (a int PRIMARY KEY);
"""
AGAIN = """
BEGIN; DELETE FROM c; DELETE FROM p; DELETE FROM other; INSERT INTO p VALUES (1, 1, 0, 1), (2, 2, 0, 2); COMMIT
"""
KEY_SHARE, SHARE, NO_KEY_UPDATE, UPDATE = range(4)
CONFLICTS = {(3, 3), (3, 2), (3, 1), (3, 0), (2, 2), (2, 1)}
# statement ({me}: 1 or 2) -> the mode that PostgreSQL takes on row 1; None: a read
STATEMENTS = {
    "SELECT FROM p WHERE id = 1": None,
    "INSERT INTO p VALUES (1, 1, 1, 1) ON CONFLICT (id) DO NOTHING": None,
    "SELECT FROM p WHERE id = 1 FOR KEY SHARE": KEY_SHARE,
    "INSERT INTO c VALUES ({me}, 1, NULL)": KEY_SHARE,
    "INSERT INTO c VALUES ({me}, NULL, 1)": KEY_SHARE,
    "SELECT FROM p WHERE id = 1 FOR SHARE": SHARE,
    "SELECT FROM (SELECT id FROM p WHERE id = 1 FOR SHARE) x": SHARE,
    "SELECT FROM p WHERE id = 1 FOR NO KEY UPDATE": NO_KEY_UPDATE,
    "UPDATE p SET n = n + 1 WHERE id = 1": NO_KEY_UPDATE,
    "UPDATE p SET u = u WHERE id = 1": NO_KEY_UPDATE,
    "UPDATE p SET e = 7 WHERE id = 1": NO_KEY_UPDATE,
    "INSERT INTO p VALUES (1, 1, 1, 1) ON CONFLICT (id) DO UPDATE SET n = 9": NO_KEY_UPDATE,
    "MERGE INTO p USING (VALUES (1)) v(x) ON x = id WHEN MATCHED THEN UPDATE SET n = 3": NO_KEY_UPDATE,
    "SELECT FROM p WHERE id = 1 FOR UPDATE": UPDATE,
    "SELECT FROM p JOIN (VALUES (1)) v(x) ON x = id FOR UPDATE OF p": UPDATE,
    "SELECT FROM p ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED": UPDATE,
    "UPDATE p SET u = 50 WHERE id = 1": UPDATE,
    "UPDATE p SET id = 60 WHERE id = 1": UPDATE,
    "DELETE FROM p WHERE id = 1": UPDATE,
}


def test_all_pairs(australis: Server) -> None:
    wrong = []
    with australis.connect() as owner, australis.connect() as one, australis.connect() as two:
        owner.execute(SETUP.encode())
        for session in (one, two):
            session.execute("SET search_path = locks")
        for first, mode in STATEMENTS.items():
            for second, other in STATEMENTS.items():
                owner.execute(AGAIN.encode())
                for session in (one, two):
                    session.execute("BEGIN; SELECT FROM other")
                for me, session, statement in ((1, one, first), (2, two, second)):
                    session.execute(statement.format(me=me).encode())
                    session.execute(f"INSERT INTO other VALUES ({me})".encode())
                one.execute("COMMIT")
                conflict = mode is not None and other is not None and (max(mode, other), min(mode, other)) in CONFLICTS
                try:
                    two.execute("COMMIT")
                    failed = False
                except psycopg.errors.SerializationFailure:
                    failed = True
                if failed != conflict:
                    wrong.append(f"{first} | {second}: {'conflict' if failed else 'no conflict'}")
        owner.execute("DROP SCHEMA locks CASCADE")
    assert not wrong, "\n".join(wrong)
