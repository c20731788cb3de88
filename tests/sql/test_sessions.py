"""What sessions do beside tables, compared with stock PostgreSQL statement by statement: LISTEN/NOTIFY, advisory locks,
LOCK TABLE, large objects, two-phase commit, exported snapshots, cursors WITH HOLD, and what poolers send (DISCARD,
RESET).

Each case is a script of (session, statement); answers and SQLSTATEs must be equal on both servers.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.servers import Server

SETUP = """
DROP TABLE IF EXISTS public.sessions_t; CREATE TABLE public.sessions_t (a int PRIMARY KEY, b text);
INSERT INTO public.sessions_t SELECT g, g FROM generate_series(1, 100) g;
"""

CASES: dict[str, Sequence[str]] = {
    "notify at commit": [
        "b: LISTEN ch", "a: BEGIN", "a: INSERT INTO sessions_t VALUES (1000, 'n')", "a: NOTIFY ch, 'one'",
        "a: COMMIT", "b: notified", "a: BEGIN", "a: NOTIFY ch, 'two'", "a: ROLLBACK",
        "a: SELECT pg_notify('ch', 'three')",
        "b: notified", "b: SELECT pg_listening_channels()", "b: UNLISTEN *", "b: SELECT pg_listening_channels()",
    ],
    "advisory locks": [
        "a: SELECT pg_advisory_lock(7)", "b: SELECT pg_try_advisory_lock(7)", "b: SET lock_timeout = '100ms'",
        "b: SELECT pg_advisory_lock(7)", "a: SELECT pg_advisory_unlock(7)", "b: SELECT pg_try_advisory_lock(7)",
        "b: BEGIN", "b: SELECT pg_advisory_xact_lock(9)", "a: SELECT pg_try_advisory_xact_lock(9)", "b: COMMIT",
        "a: SELECT pg_try_advisory_xact_lock(9)", "b: SELECT pg_advisory_unlock_all()",
        "a: SELECT pg_try_advisory_lock(7)",
    ],
    "lock table": [
        "a: BEGIN", "a: LOCK TABLE sessions_t IN ACCESS EXCLUSIVE MODE", "b: BEGIN",
        "b: LOCK TABLE sessions_t IN ACCESS SHARE MODE NOWAIT", "b: ROLLBACK", "b: SET lock_timeout = '100ms'",
        "b: SELECT count(*) FROM sessions_t", "a: COMMIT", "b: SELECT count(*) FROM sessions_t",
        "a: LOCK TABLE sessions_t",
    ],
    "large objects": [
        "a: SELECT lo_from_bytea(4242, 'hello')", "b: SELECT lo_get(4242)", "a: SELECT lo_put(4242, 2, 'LL')",
        "b: SELECT lo_get(4242)", "a: BEGIN", "a: SELECT lo_open(4242, 393216)", "a: SELECT lowrite(0, 'abc')",
        "a: SELECT lo_lseek(0, 0, 0)", "a: SELECT loread(0, 10)", "a: SELECT lo_truncate(0, 2)", "a: ROLLBACK",
        "b: SELECT lo_get(4242)", "a: SELECT lo_unlink(4242)", "b: SELECT lo_get(4242)",
    ],
    "two-phase commit": [
        "a: BEGIN", "a: INSERT INTO sessions_t VALUES (2000)", "a: PREPARE TRANSACTION 'x'", "a: ROLLBACK",
        "a: SELECT count(*) FROM sessions_t", "a: COMMIT PREPARED 'x'", "a: ROLLBACK PREPARED 'x'",
        "a: SELECT * FROM pg_prepared_xacts",
    ],
    "exported snapshots": [
        "a: BEGIN ISOLATION LEVEL REPEATABLE READ", "a: export", "b: INSERT INTO sessions_t VALUES (3000)",
        "b: BEGIN ISOLATION LEVEL REPEATABLE READ", "b: import", "b: SELECT count(*) FROM sessions_t", "b: COMMIT",
        "b: SELECT count(*) FROM sessions_t", "a: SELECT count(*) FROM sessions_t",
        "b: BEGIN ISOLATION LEVEL READ COMMITTED", "b: import", "b: ROLLBACK",
        "b: BEGIN ISOLATION LEVEL REPEATABLE READ", "b: SELECT 1", "b: import", "b: ROLLBACK", "a: COMMIT",
        "b: BEGIN ISOLATION LEVEL REPEATABLE READ", "b: import", "b: ROLLBACK",
    ],
    "cursors": [
        "a: BEGIN", "a: DECLARE h SCROLL CURSOR WITH HOLD FOR SELECT a FROM sessions_t ORDER BY a", "a: FETCH 3 FROM h",
        "a: UPDATE sessions_t SET b = 'x' WHERE a < 5", "a: COMMIT", "b: DELETE FROM sessions_t WHERE a < 50",
        "a: FETCH 3 FROM h", "a: MOVE ABSOLUTE 60 IN h", "a: FETCH BACKWARD 2 FROM h", "a: CLOSE h",
        "a: DECLARE n CURSOR FOR SELECT 1", "a: BEGIN",
        "a: DECLARE u CURSOR FOR SELECT * FROM sessions_t WHERE a > 90 ORDER BY a FOR UPDATE", "a: FETCH 2 FROM u",
        "a: UPDATE sessions_t SET b = 'current' WHERE CURRENT OF u", "a: COMMIT",
        "a: SELECT * FROM sessions_t WHERE b = 'current'",
    ],
    "poolers": [
        "a: CREATE TEMP TABLE tt (x int)", "a: SET search_path = pg_catalog", "a: PREPARE p AS SELECT 1",
        "a: DECLARE hh CURSOR WITH HOLD FOR SELECT a FROM public.sessions_t", "a: LISTEN z",
        "a: SELECT pg_advisory_lock(3)",
        "a: SET ROLE pg_read_all_data", "a: DISCARD ALL", "a: SHOW search_path",
        "a: SELECT current_user = session_user",
        "a: EXECUTE p", "a: TABLE tt", "a: FETCH hh", "a: SELECT pg_listening_channels()",
        "b: SELECT pg_try_advisory_lock(3)",
        "a: CREATE TEMP TABLE tt (x int PRIMARY KEY)", "a: INSERT INTO tt VALUES (1)", "a: DISCARD TEMP", "a: TABLE tt",
        "a: DISCARD SEQUENCES", "a: DISCARD PLANS", "a: SET statement_timeout = '3s'", "a: RESET ALL",
        "a: SHOW statement_timeout", "a: BEGIN", "a: DISCARD ALL", "a: ROLLBACK", "a: RESET SESSION AUTHORIZATION",
        "a: SELECT count(*) FROM sessions_t",
    ],
}  # fmt: skip


def play(server: Server, steps: Sequence[str]) -> list[tuple[str, object]]:
    seen: list[tuple[str, object]] = []
    snapshot = ""
    with server.connect() as one, server.connect() as two:
        one.execute(SETUP.encode())
        for step in steps:
            name, statement = step.split(": ", 1)
            session = one if name == "a" else two
            if statement == "notified":
                seen.append((step, [n.payload for n in session.notifies(timeout=10, stop_after=1)]))
                continue
            query: bytes | sql.Composed = statement.encode()
            if statement == "import":
                query = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot)
            elif statement == "export":
                row = session.execute("SELECT pg_export_snapshot()").fetchone()
                assert row is not None
                snapshot = str(row[0])
                continue
            try:
                cursor = session.execute(query)
                seen.append((step, cursor.fetchall() if cursor.description else cursor.statusmessage))
            except psycopg.Error as error:
                # the message about a snapshot that is gone names its file
                message = None if statement == "import" else error.diag.message_primary
                seen.append((step, (error.sqlstate, message)))
        one.execute("ROLLBACK; RESET ALL; DROP TABLE public.sessions_t")
    return seen


@pytest.mark.parametrize("case", CASES)
def test_same_as_stock(case: str, stock: Server, australis: Server) -> None:
    assert play(australis, CASES[case]) == play(stock, CASES[case])
