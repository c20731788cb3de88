"""Gateways with PostgreSQL in front of real adjudicators, crossbars and shards; every role is killed under load."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.fixtures.plane import PlaneCluster, plane
from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import CannotStart
from tests.gateway.load import Bank

ROLES = ["storage-0-0", "crossbar-0", "adjudicator-1", "adjudicator-0", "gateway-1", "postgresql"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[PlaneCluster]:
    try:
        with plane(adjudicators=2, shards=2, replicas=2, crossbars=2, gateways=2) as running:
            yield running
    except (CannotStart, ProgramsMissing) as error:
        if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
            raise
        pytest.skip(f"the cluster can't start: {error}")


@pytest.fixture(scope="module")
def bank(cluster: PlaneCluster) -> Bank:
    bank = Bank([cluster.server(0), cluster.server(1)])
    bank.create()
    return bank


def test_commits_of_one_host_are_read_on_the_other_at_once(cluster: PlaneCluster) -> None:
    with cluster.server(0).connect() as here, cluster.server(1).connect() as there:
        here.execute("CREATE TABLE seen (id int PRIMARY KEY, v int)")
        here.execute("INSERT INTO seen VALUES (1, 0)")
        for value in range(50):
            writer, reader = (here, there) if value % 2 else (there, here)
            writer.execute("UPDATE seen SET v = %s", (value,))
            assert reader.execute("SELECT v FROM seen").fetchone() == (value,)


def test_schema_changes_are_there_when_their_client_is_told(cluster: PlaneCluster) -> None:
    with cluster.server(0).connect() as here, cluster.server(1).connect() as there:
        here.execute("CREATE TABLE shape (id int PRIMARY KEY)")
        for turn in range(10):
            writer, reader = (here, there) if turn % 2 else (there, here)
            writer.execute(f"ALTER TABLE shape ADD COLUMN c{turn} int DEFAULT {turn}")
            assert reader.execute(f"SELECT count(c{turn}) FROM shape").fetchone() == (0,)


def test_object_identifiers_and_sequences_are_the_clusters(cluster: PlaneCluster) -> None:
    with cluster.server(0).connect() as here, cluster.server(1).connect() as there:
        here.execute("CREATE SEQUENCE numbers")
        drawn = [
            session.execute("SELECT nextval('numbers')").fetchone() for _ in range(20) for session in (here, there)
        ]
        assert len(set(drawn)) == len(drawn)
        here.execute("SELECT setval('numbers', 100000)")
        assert (there.execute("SELECT nextval('numbers')").fetchone() or (0,))[0] > 100000  # type: ignore[operator]
        oids = set()
        for number in range(6):
            session = (here, there)[number % 2]
            session.execute(f"CREATE TABLE o{number} (id int)")
            oids.add(session.execute(f"SELECT 'o{number}'::regclass::oid").fetchone())
        assert len(oids) == 6


def test_a_bulk_load_is_there_everywhere_or_not_at_all(cluster: PlaneCluster) -> None:
    with cluster.server(0).connect(autocommit=False) as here, cluster.server(1).connect() as there:
        here.execute("CREATE TABLE bulk (id int PRIMARY KEY, t text)")
        here.execute("INSERT INTO bulk SELECT i, repeat('x', 200) FROM generate_series(1, 150000) i")
        assert here.execute("SELECT count(*) FROM bulk").fetchone() == (150000,)
        here.commit()
        assert there.execute("SELECT count(*), sum(length(t)) FROM bulk").fetchone() == (150000, 30000000)


def test_write_skew_across_adjudicators_is_refused(cluster: PlaneCluster) -> None:
    with cluster.server(0).connect() as here, cluster.server(1).connect() as there:
        for number in range(8):
            here.execute(f"CREATE TABLE skew{number} (id int, v int)")
            here.execute(f"INSERT INTO skew{number} VALUES (1, 1)")
        for first in range(8):
            second = (first + 3) % 8
            for session in (here, there):
                session.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
                session.execute(f"SELECT count(*) FROM skew{first}").fetchall()
                session.execute(f"SELECT count(*) FROM skew{second}").fetchall()
            here.execute(f"INSERT INTO skew{first} VALUES (2, 2)")
            there.execute(f"INSERT INTO skew{second} VALUES (2, 2)")
            here.execute("COMMIT")
            with pytest.raises(psycopg.errors.SerializationFailure):
                there.execute("COMMIT")


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_killed_under_load(cluster: PlaneCluster, bank: Bank, role: str) -> None:
    with bank:
        bank.go_on(5)
        if role == "postgresql":
            file = cluster.directory / "gateway-1" / "postgresql-0" / "data" / "postmaster.pid"
            os.kill(int(file.read_text().split()[0]), signal.SIGKILL)
        else:
            cluster.kill(role)
            if role.startswith("adjudicator"):  # the others wait for it
                cluster.start_role(role)
        seconds = bank.go_on(5, [0, 1])
        print(f"{role} killed: first commit on the other host after {seconds:.2f} s")
        if role not in ("postgresql", "adjudicator-0", "adjudicator-1"):
            cluster.start_role(role)
            cluster.wait_ready(role)
        bank.go_on(5)
    bank.check()


def test_a_stopped_replica_costs_no_failed_read(cluster: PlaneCluster) -> None:
    """SIGSTOP: its connections stay; reads are hedged and then go to the other one."""
    with cluster.server(0).connect() as connection:
        connection.execute("CREATE TABLE hedged (id int PRIMARY KEY)")
        connection.execute("INSERT INTO hedged SELECT generate_series(1, 1000)")
        stopped = ["storage-0-1", "storage-1-1"]
        try:
            for name in stopped:
                cluster.processes[name].send_signal(signal.SIGSTOP)
            for number in range(1, 201):
                assert connection.execute("SELECT id FROM hedged WHERE id = %s", (number,)).fetchone() == (number,)
            assert connection.execute("SELECT count(*) FROM hedged").fetchone() == (1000,)
        finally:
            for name in stopped:
                cluster.processes[name].send_signal(signal.SIGCONT)


def test_without_an_adjudicator_writers_wait_cancellable_and_open_snapshots_go_on(cluster: PlaneCluster) -> None:
    with cluster.server(0).connect() as reader, cluster.server(0).connect() as writer:
        reader.execute("CREATE TABLE open (id int PRIMARY KEY)")
        reader.execute("INSERT INTO open SELECT generate_series(1, 10)")
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert reader.execute("SELECT count(*) FROM open").fetchone() == (10,)
        cluster.kill("adjudicator-1")
        writer.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            writer.execute("INSERT INTO open VALUES (11)")
        assert reader.execute("SELECT count(*) FROM open").fetchone() == (10,)
        writer.execute("SET statement_timeout = 0")
        with pytest.raises(psycopg.errors.CannotConnectNow):
            writer.execute("SELECT count(*) FROM open")
        cluster.start_role("adjudicator-1")
        cluster.wait_ready("adjudicator-1")
        writer.execute("INSERT INTO open VALUES (12)")
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM open").fetchone() == (11,)


def test_index_builds_beside_schema_changes_elsewhere(cluster: PlaneCluster) -> None:
    """Several transactions each, some of them without a snapshot: none may bar those who apply the other's changes."""
    stop = threading.Event()
    failures: list[str] = []
    changed = 0

    def change() -> None:
        nonlocal changed
        with cluster.server(1).connect() as session:
            while not stop.is_set():
                try:
                    session.execute("CREATE TABLE IF NOT EXISTS passing (id int)")
                    session.execute("DROP TABLE IF EXISTS passing")
                    changed += 1
                except psycopg.errors.SerializationFailure:
                    continue
                except psycopg.Error as error:
                    failures.append(f"{error.sqlstate} {error}")

    with cluster.server(0).connect() as session:
        session.execute("CREATE TABLE built AS SELECT g AS a FROM generate_series(1, 10) g")
        thread = threading.Thread(target=change)
        thread.start()
        made = refused = 0
        try:
            while made < 40:
                try:
                    session.execute("DROP INDEX IF EXISTS built_a")
                except psycopg.errors.SerializationFailure:
                    continue
                try:
                    session.execute("CREATE INDEX CONCURRENTLY built_a ON built (a)")
                except psycopg.errors.SerializationFailure:
                    refused += 1  # its first step, as any schema change: there is nothing left of it
                    assert session.execute("SELECT FROM pg_class WHERE relname = 'built_a'").fetchone() is None
                    continue
                made += 1
                valid = session.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'built_a'::regclass")
                assert valid.fetchone() == (True,)
        finally:
            stop.set()
            thread.join(60)
        print(made, "made", refused, "refused", changed, "changes elsewhere")
        session.execute("DROP TABLE built")
    assert not failures
    assert changed
