"""Query processors come with sessions and go without them; real processes, real kill -9."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable

import psycopg
import pytest

from tests.pool.conftest import Connection, PoolCluster, eventually, place

Start = Callable[..., PoolCluster]
CHANGES = 230  # more than REFRESH_CHANGES of the launcher


def test_to_none_and_back(start_pool: Start) -> None:
    pool = start_pool({"min": 0, "max": 2, "idle": 0.5})
    with pool.connect() as session:
        session.execute("CREATE TABLE kept (id int PRIMARY KEY)")
        session.execute("INSERT INTO kept VALUES (1)")
    pool.wait_for_none()
    assert pool.postmaster(0) is None and pool.postmaster(1) is None
    state = pool.state()
    assert state["state"] == "ready" and state["direct_port"] == 0 and set(state["services"]) == {"commit"}
    assert "no query processor runs" in pool.cluster.command("status").stdout
    refused = pool.cluster.command("url", "--direct")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "no query processor runs" in refused.stderr
    assert pool.cluster.command("url").stdout.strip() == pool.router.dsn
    done = pool.cluster.command("psql", "-X", "-A", "-t", "-c", "SELECT id FROM kept")
    assert done.stdout.strip() == "1", done.stderr
    pool.wait_for_none()
    with pool.connect() as session:
        with pool.direct(0) as direct:
            assert direct.execute("SELECT id FROM kept").fetchall() == [(1,)]
        assert session.execute("SELECT id FROM kept").fetchall() == [(1,)]
    starts = [one["starts"] for one in pool.state()["processors"]]
    assert starts[0] >= 3 and starts[1] == 0, "always the one that has its catalogs"


def test_grows_with_sessions_and_shrinks(start_pool: Start) -> None:
    pool = start_pool({"min": 0, "max": 3, "sessions": 2, "idle": 0.5})
    sessions = [pool.connect() for _ in range(5)]
    pool.wait_for("ready", "ready", "ready")
    more = [pool.connect() for _ in range(4)]
    places = [place(session) for session in sessions + more]
    assert min(places.count(number) for number in range(3)) >= 2, "new sessions go where the fewest are"
    sessions[0].execute("CREATE TABLE everywhere (id int)")
    for session in sessions + more:
        session.execute("INSERT INTO everywhere VALUES (1)")
    kept = sessions.pop(0)
    for session in sessions + more:
        session.close()
    pool.wait_for("ready", "stopped", "stopped")
    assert kept.execute("SELECT count(*) FROM everywhere").fetchone() == (9,)
    # schema changes do not wait for those that were stopped
    kept.execute("ALTER TABLE everywhere ADD COLUMN more int")
    assert place(pool.connect()) == place(kept), "and new ones find it"
    kept.close()


def test_a_killed_one_loses_only_its_own_sessions(start_pool: Start) -> None:
    pool = start_pool({"min": 1, "max": 2, "sessions": 1, "idle": 300})
    one = pool.connect()
    other: Connection = pool.connect()
    pool.wait_for("ready", "ready")
    while place(other) == place(one):  # it may have come before the second was ready
        other.close()
        other = pool.connect()
    one.execute("CREATE TABLE survivors (id int)")
    victim = pool.postmaster(place(other))
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    one.execute("INSERT INTO survivors VALUES (1)")
    with pytest.raises(psycopg.OperationalError):
        # its process sees the death when it waits for something
        while True:
            other.execute("SELECT 1")
    more = [pool.connect() for _ in range(3)]
    for session in [one, *more]:
        assert session.execute("SELECT id FROM survivors").fetchall() == [(1,)]
    pool.wait_for("ready", "ready")
    assert pool.state()["state"] == "ready"
    for session in [one, *more]:
        session.close()


class Killer(threading.Thread):
    """Kills postmasters of a processor as soon as they appear, `times` times."""

    def __init__(self, pool: PoolCluster, times: int) -> None:
        super().__init__()
        self._pool = pool
        self._times = times
        self.killed: list[int] = []
        self.enough = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self._times and not self.enough.is_set():
            process = self._pool.postmaster(0)
            if process is not None and process not in self.killed:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self.killed.append(process)


def test_killed_while_it_starts(start_pool: Start) -> None:
    """Who waits is served by the next attempt; after three in vain there is an error that says why."""
    pool = start_pool({"min": 0, "max": 1, "idle": 0.5})
    pool.wait_for_none()
    killer = Killer(pool, 1)
    killer.start()
    with pool.connect() as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    killer.join()
    assert pool.state()["processors"][0]["starts"] >= 3
    pool.wait_for_none()
    killer = Killer(pool, 1000)
    killer.start()
    with pytest.raises(psycopg.OperationalError, match="not available") as error:
        pool.connect()
    killer.enough.set()
    killer.join()
    assert "No query processor could be started: postgresql" in str(error.value)
    pool.connect().close()


def test_a_session_that_came_directly_keeps_it(start_pool: Start) -> None:
    pool = start_pool({"min": 0, "max": 1, "idle": 0.3})
    pool.connect().close()
    direct = pool.direct(0)
    eventually(lambda: len(pool.logged("pool.busy")) >= 3, "its end is refused")
    assert direct.execute("SELECT 1").fetchone() == (1,)
    direct.close()
    pool.wait_for_none()


def test_cancel_after_they_came_and_went(start_pool: Start) -> None:
    pool = start_pool({"min": 0, "max": 2, "sessions": 1, "idle": 0.5})
    for _ in range(2):
        sessions = [pool.connect() for _ in range(2)]
        pool.wait_for("ready", "ready")
        sessions += [pool.connect() for _ in range(2)]
        assert {place(session) for session in sessions} == {0, 1}
        for session in sessions:
            failures: list[str | None] = []

            def sleep(session: Connection = session, failures: list[str | None] = failures) -> None:
                try:
                    session.execute("SELECT pg_sleep(60)")
                except psycopg.errors.QueryCanceled as error:
                    failures.append(error.sqlstate)

            thread = threading.Thread(target=sleep)
            thread.start()
            while not failures:  # a request may come before its query
                session.cancel_safe(timeout=10)
                thread.join(0.2)
            thread.join()
            assert failures == ["57014"]
        for session in sessions:
            session.close()
        pool.wait_for_none()


def test_more_than_all_can_have(start_pool: Start) -> None:
    pool = start_pool({"min": 0, "max": 2, "sessions": 2, "idle": 300}, connections=4)
    sessions = [pool.connect() for _ in range(4)]
    with pytest.raises(psycopg.OperationalError, match="sorry, too many clients already"):
        pool.connect()
    sessions.pop().close()
    eventually(lambda: _connects(pool), "a place is free")
    for session in sessions:
        session.close()


def _connects(pool: PoolCluster) -> bool:
    try:
        pool.connect().close()
    except psycopg.OperationalError:
        return False
    return True


def test_the_supervisor_is_killed(start_pool: Start) -> None:
    pool = start_pool({"min": 0, "max": 2, "sessions": 1, "idle": 0.5})
    sessions = [pool.connect() for _ in range(2)]
    pool.wait_for("ready", "ready")
    sessions[0].execute("CREATE TABLE kept (id int)")
    os.kill(pool.state()["pid"], signal.SIGKILL)
    eventually(lambda: pool.postmaster(0) is None and pool.postmaster(1) is None, "nothing outlives it")
    pool.router = pool.cluster.start()
    pool.wait_for_none()
    with pool.connect() as session:
        assert session.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_schema_changes_while_they_come_and_go(start_pool: Start) -> None:
    """Short sessions on a pool that grows and shrinks: conflicts are 40001, everything else is as on one."""
    pool = start_pool({"min": 0, "max": 3, "sessions": 1, "idle": 0.3})
    with pool.connect() as session:
        session.execute("CREATE TABLE counted (id bigserial PRIMARY KEY, turn int)")
    counts: list[int] = []
    wrong: list[str] = []

    def work(number: int) -> None:
        done = 0
        for turn in range(12):
            with pool.router.connect() as session:
                for _ in range(3):
                    try:
                        session.execute("INSERT INTO counted (turn) VALUES (%s)", (turn,))
                        done += 1
                        if number == 0:
                            session.execute(f"ALTER TABLE counted ADD COLUMN c{turn}_{done} int")
                        session.execute("SELECT id, turn FROM counted ORDER BY id DESC LIMIT 3").fetchall()
                    except psycopg.errors.SerializationFailure:
                        if session.broken:
                            break
                    except psycopg.Error as error:
                        wrong.append(f"{type(error).__name__}: {error}")
            if turn % 4 == number:
                eventually(lambda: "stopped" in pool.states() or wrong, "the pool shrinks a little")
        counts.append(done)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert len(counts) == 4
    with pool.connect() as session:
        found = session.execute("SELECT count(*), count(DISTINCT id) FROM counted").fetchone()
    assert found == (sum(counts), sum(counts))
    assert sum(one["starts"] for one in pool.state()["processors"]) >= 3


def test_images_of_later_catalogs(start_pool: Start) -> None:
    """A copy knows what the original knew, draws no value twice, and a damaged image is found."""
    pool = start_pool({"min": 0, "max": 2, "sessions": 2, "idle": 0.5})
    with pool.connect() as session:
        session.execute("CREATE TABLE numbered (id bigserial PRIMARY KEY, place int)")
        session.execute("INSERT INTO numbered (place) SELECT 0 FROM generate_series(1, 50)")
        for change in range(CHANGES):
            session.execute(f"ALTER TABLE numbered ADD COLUMN c{change} int")
    pool.wait_for_none()
    images = pool.cluster.data / "query_processor"
    eventually(lambda: list(images.glob("image-*.tar.crc32c")), "an image of later catalogs")
    with pool.connect() as session, pool.connect() as another, pool.connect() as third:
        pool.wait_for("ready", "ready")
        with pool.connect() as copy:
            assert {place(session), place(copy)} == {0, 1}
            last = copy.execute("SELECT last_value FROM numbered_id_seq").fetchone()
            assert last is not None and int(str(last[0])) >= 50, "a dump of it must not go back"
            for turn in range(5):
                for one in (session, copy, another, third):
                    one.execute("INSERT INTO numbered (place) VALUES (%s)", (place(one),))
                copy.execute(f"ALTER TABLE numbered ADD COLUMN d{turn} int")
            assert copy.execute("SELECT count(*), count(DISTINCT id) FROM numbered").fetchone() == (70, 70)
    (made,) = [line for line in pool.logged("query_processor.prepared") if line["number"] == 1]
    assert made["done"].startswith("rebuilt") and made["change"] > CHANGES
    pool.wait_for_none()

    (image,) = images.glob("image-*.tar")
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        file.write(b"damage")
    shutil.rmtree(pool.directory(0))
    shutil.rmtree(pool.directory(1))
    with pool.connect() as session:
        assert session.execute("SELECT count(d4) FROM numbered").fetchone() == (0,)
    assert pool.logged("image.dropped") and not image.exists()
    assert pool.logged("query_processor.prepared")[-1]["change"] == 0
