"""Query processors come and go; the others serve."""

from __future__ import annotations

import os
import signal
import threading
import time

import psycopg

from tests.crash.victims import children
from tests.processors.conftest import COUNT, Processors, one_host

READY_SECONDS = 60.0
pytestmark = one_host


def wait_restarted(processors: Processors, name: str, restarts: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        service = processors.services()[name]
        if service["restarts"] > restarts and service["serving"]:
            return
        assert time.monotonic() < deadline, service
        time.sleep(0.1)  # another process works; there is nothing to wait on


def _signal(pid: int, number: signal.Signals) -> bool:
    """False if it has ended: workers come and go."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def test_sessions_are_spread(processors: Processors) -> None:
    """The next session goes where the fewest are; so they end up even, in whatever order they end."""
    sessions = [processors.router.connect() for _ in range(3 * COUNT)]
    where = [session.execute("SHOW australis.processor").fetchone() for session in sessions]
    assert {where.count(one) for one in where} == {3}
    for session, place in zip(sessions, where, strict=True):
        if place == ("0",):
            session.close()
    more = [processors.router.connect() for _ in range(3)]
    assert {str(session.execute("SHOW australis.processor").fetchone()) for session in more} == {"('0',)"}
    for session in sessions + more:
        session.close()


def test_cancel_finds_its_query_processor(processors: Processors) -> None:
    sessions = [processors.router.connect() for _ in range(COUNT)]
    failures: list[str | None] = []

    def sleep(session: psycopg.Connection[tuple[object, ...]]) -> None:
        try:
            session.execute("SELECT pg_sleep(60)")
        except psycopg.errors.QueryCanceled as error:
            failures.append(error.sqlstate)

    threads = [threading.Thread(target=sleep, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for number, session in enumerate(sessions):
        while not failures[number:]:  # it may come before its query
            session.cancel_safe(timeout=10)
            threads[number].join(0.2)
    assert failures == ["57014"] * COUNT
    for session in sessions:
        session.close()


def test_a_killed_one_loses_only_its_own_sessions(processors: Processors) -> None:
    sessions = [processors.connect(number) for number in range(COUNT)]
    sessions[0].execute("CREATE TABLE survivors (id int PRIMARY KEY)")
    before = processors.services()["postgresql-2"]
    os.kill(before["pid"], signal.SIGKILL)
    for number in (0, 2):
        sessions[number].execute("INSERT INTO survivors VALUES (%s)", (number,))
        # schema changes do not wait for the dead
        sessions[number].execute(f"ALTER TABLE survivors ADD COLUMN c{number} int")
    with processors.router.connect() as another:  # the router passes over it, or it is back
        assert another.execute("SELECT count(*) FROM survivors").fetchone() == (2,)
    wait_restarted(processors, "postgresql-2", before["restarts"])
    with processors.connect(1) as again:
        assert again.execute("SELECT id, c0, c2 FROM survivors ORDER BY id").fetchall() == [
            (0, None, None),
            (2, None, None),
        ]
    for session in sessions:
        session.close()


def test_a_stopped_one_costs_patience_once(processors: Processors) -> None:
    """Its catalogs fall behind; changes elsewhere go on. When it runs again, it catches up before it answers."""
    with processors.connect(0) as changer, processors.connect(2) as sleeper:
        changer.execute("CREATE TABLE outpaced (id int PRIMARY KEY)")
        sleeper.execute("SELECT * FROM outpaced")
        # all its processes: a postmaster alone cannot be missed by those that are there; it first, so that it makes no
        # more of them
        postmaster = processors.services()["postgresql-3"]["pid"]
        stopped: list[int] = []
        try:
            assert _signal(postmaster, signal.SIGSTOP)
            stopped.append(postmaster)
            stopped += [pid for pid in children(postmaster) if _signal(pid, signal.SIGSTOP)]
            assert len(stopped) > 2
            for turn in range(5):
                changer.execute(f"ALTER TABLE outpaced ADD COLUMN c{turn} int DEFAULT {turn}")
            changer.execute("INSERT INTO outpaced VALUES (1)")
        finally:
            for pid in stopped:
                _signal(pid, signal.SIGCONT)
        while True:
            try:
                found = sleeper.execute("SELECT c0, c4 FROM outpaced").fetchall()
            except psycopg.errors.SerializationFailure:  # analyzed with the old catalogs
                continue
            break
        assert found == [(0, 4)]
