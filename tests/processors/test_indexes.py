"""Indexes are made while rows are written on every query processor (PROTOCOL Q8, Q9, A5)."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import AustralisCluster, CannotStart, temporary_directory
from tests.processors.conftest import COUNT, Processors
from tests.processors.indexes import INDEXES, ROWS, SETUP, TABLE, Connection, Writers, check, differences, states

WRITERS = 2 * COUNT
MANY = 60_000
"""Rows of which an index takes so long that it can be met in the middle."""


@pytest.fixture(scope="module")
def single() -> Iterator[Processors]:
    with temporary_directory("single") as directory:
        cluster = AustralisCluster(directory, settings={"query_processors": 1})
        try:
            yield Processors(cluster, cluster.start())
        except (CannotStart, ProgramsMissing) as error:
            pytest.skip(f"Australis can't start: {error}")
        finally:
            cluster.stop()


def make(session: Connection, name: str, how: str = "CONCURRENTLY") -> None:
    session.execute(INDEXES[name][0].format(how=how))


def create_all(processors: Processors, count: int, seed: int) -> None:
    """Make, rebuild, drop and make again every index, on one query processor after the other, at the first attempt."""
    with processors.connect(0) as session:
        session.execute(SETUP)
    names = list(INDEXES)
    with Writers(lambda number: processors.connect(number % count), 2 * count, seed) as writers:
        for turn, how in enumerate(("CONCURRENTLY", "", "CONCURRENTLY")):
            for at, name in enumerate(names):
                with processors.connect((at + turn) % count) as session:
                    make(session, name, how)
            check(processors.connect, count, names)
            for at, name in enumerate(names):
                with processors.connect((at + turn + 1) % count) as session:
                    session.execute(f"REINDEX INDEX CONCURRENTLY {name}")
            check(processors.connect, count, names)
            if turn < 2:
                for at, name in enumerate(names):
                    with processors.connect((at + turn + 2) % count) as session:
                        session.execute(f"DROP INDEX {name}")
    print(writers.written, writers.retries)
    assert len(writers.written) == 2 * count
    check(processors.connect, count, names)
    for number in range(count):
        with processors.connect(number) as session:
            assert set(states(session)) == set(names)


def test_indexes_under_writes(processors: Processors) -> None:
    create_all(processors, COUNT, 1)


def test_indexes_under_writes_with_one_query_processor(single: Processors) -> None:
    create_all(single, 1, 2)


def build_meanwhile_changed(processors: Processors, columns: int) -> tuple[int, list[str]]:
    """Build grown_a on one query processor while another changes the table; how many changes, and what failed."""
    done = threading.Event()
    failures: list[str] = []

    def build() -> None:
        try:
            with processors.connect(0) as session:
                session.execute("CREATE INDEX CONCURRENTLY grown_a ON grown (a)")
        except psycopg.Error as error:
            failures.append(str(error))
        done.set()

    thread = threading.Thread(target=build)
    thread.start()
    changed = 0
    with processors.connect(1) as session:
        # of its first step and another schema change at the same time one would lose, which is not what this is about
        while not done.is_set() and not states(session, "grown"):
            pass
        while not done.is_set() and changed < 5:
            name = columns + changed
            try:
                session.execute(f"ALTER TABLE grown ADD COLUMN IF NOT EXISTS c{name} int DEFAULT {name}")
                session.execute(f"INSERT INTO grown VALUES (-{name + 1})")
            except psycopg.errors.SerializationFailure:
                continue
            changed += 1
    thread.join(120)
    return changed, failures


def test_schema_changes_of_the_table_get_in_between(processors: Processors) -> None:
    """The build holds no lock from batch to batch, and goes on with the new table."""
    with processors.connect(0) as session:
        session.execute(
            f"DROP TABLE IF EXISTS grown; CREATE TABLE grown AS SELECT g AS a FROM generate_series(1, {MANY}) g"
        )
        for turn in range(20):  # it may be done before anything has changed
            session.execute("DROP INDEX IF EXISTS grown_a")
            changed, failures = build_meanwhile_changed(processors, 5 * turn)
            if changed:
                break
        assert changed
        # not even when its last step and a change elsewhere came at the same time
        assert not failures
    for number in range(COUNT):
        with processors.connect(number) as session:
            assert states(session, "grown") == {"grown_a": (True, True)}
            assert not differences(session, "grown_a", "a", "true", "grown")


def met_in_the_middle(session: Connection, pid: int, rows: int) -> bool:
    """Wait until that backend has indexed so many rows; False if it has ended before."""
    while True:
        found = session.execute(
            "SELECT command, phase, tuples_done, tuples_total, blocks_done, blocks_total, index_relid::regclass::text"
            " FROM pg_stat_progress_create_index WHERE pid = %s AND phase LIKE 'building index%%' AND tuples_total > 0",
            (pid,),
        ).fetchone()
        if found is not None:
            command, phase, done, total, blocks_done, blocks_total, name = found
            assert phase == "building index: scanning table"
            assert name == "victim_a"
            assert int(str(blocks_done)) <= int(str(blocks_total))
            if int(str(done)) > rows:
                assert str(command) in ("CREATE INDEX CONCURRENTLY", "CREATE INDEX", "REINDEX", "REINDEX CONCURRENTLY")
                assert int(str(total)) >= MANY // 2
                return True
        if session.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() != ("active",):
            return False


@pytest.mark.parametrize("what", ["backend", "query processor"])
def test_a_killed_build_is_completed_by_reindex(processors: Processors, what: str) -> None:
    """Whoever dies in the middle leaves an index that is maintained and not read; REINDEX INDEX goes through again."""
    generator = random.Random(3)
    with processors.connect(0) as session:
        session.execute("DROP TABLE IF EXISTS victim")
        session.execute("CREATE TABLE victim (id int PRIMARY KEY, a int, b text)")
        session.execute(f"INSERT INTO victim SELECT g, g % 1000, 'b' FROM generate_series(1, {MANY}) g")
    met = 0
    create = "CREATE INDEX {} victim_a ON victim (a) INCLUDE (id)"
    statements = [create.format("CONCURRENTLY"), "REINDEX INDEX victim_a", create.format("")]
    statements += ["REINDEX INDEX CONCURRENTLY victim_a", create.format("CONCURRENTLY"), create.format("")]
    for statement in statements:
        with processors.connect(0) as session:
            if statement.startswith("REINDEX") and states(session, "victim") != {"victim_a": (True, False)}:
                continue  # the one before was too fast to be met
        builder = processors.connect(2)
        pid = builder.info.backend_pid

        def build(builder: Connection = builder, statement: str = statement) -> None:
            try:
                builder.execute(statement)
            except psycopg.OperationalError as error:
                assert error.sqlstate in (None, "57P01", "57P02")

        if statement.startswith("CREATE"):
            with processors.connect(0) as session:
                session.execute("DROP INDEX IF EXISTS victim_a")
        with processors.connect(2) as watcher:
            before = processors.postmaster(2)
            thread = threading.Thread(target=build)
            thread.start()
            killed = met_in_the_middle(watcher, pid, generator.randrange(1000, MANY // 3))
            if killed:
                met += 1
                os.kill(pid if what == "backend" else before, signal.SIGKILL)
        thread.join(60)
        assert not thread.is_alive()
        builder.close()
        if not killed:
            continue
        wait_restarted_or_back(processors, what, before)
        for number in range(COUNT):
            with processors.connect(number) as session:
                assert states(session, "victim") == {"victim_a": (True, False)}
                session.execute("UPDATE victim SET a = a + 1 WHERE id %% 1000 = %s", (number,))
                session.execute("DELETE FROM victim WHERE id %% 1000 = %s", (10 + number,))
                session.execute("INSERT INTO victim VALUES (%s, 5, 'c')", (MANY + 10 * met + number,))
    assert met
    with processors.connect(1) as session:
        session.execute("REINDEX INDEX victim_a")
    for number in range(COUNT):
        with processors.connect(number) as session:
            assert states(session, "victim") == {"victim_a": (True, True)}
            assert not differences(session, "victim_a", "a, id", "true", "victim")


def wait_restarted_or_back(processors: Processors, what: str, postmaster: int) -> None:
    """After SIGKILL of a backend its postmaster starts all others again; after its own it is started."""
    if what == "query processor":
        processors.wait_restarted(2, postmaster)
        return
    while True:
        try:
            with processors.connect(2) as session:
                session.execute("SELECT count(*) FROM victim")
                return
        except psycopg.OperationalError:
            continue


def test_duplicates(processors: Processors) -> None:
    """The plain form leaves nothing; the concurrent one an index that is enforced, and that REINDEX completes."""
    with processors.connect(0) as session:
        session.execute("DROP TABLE IF EXISTS twins")
        session.execute("CREATE TABLE twins (id int PRIMARY KEY, k int)")
        session.execute("INSERT INTO twins VALUES (1, 1), (2, 1), (3, 3), (4, 4), (5, NULL), (6, NULL)")
        with pytest.raises(psycopg.errors.UniqueViolation, match='could not create unique index "twins_k"'):
            session.execute("CREATE UNIQUE INDEX twins_k ON twins (k)")
        assert states(session, "twins") == {}
        with pytest.raises(psycopg.errors.UniqueViolation, match=r"Key \(k\)=\(1\) is duplicated"):
            session.execute("CREATE UNIQUE INDEX CONCURRENTLY twins_k ON twins (k)")
    with processors.connect(1) as session:
        assert states(session, "twins") == {"twins_k": (True, False)}
        # row 3 has no entry yet, so another row may take its key; then the key is taken, whatever becomes of row 3
        session.execute("INSERT INTO twins VALUES (7, 3)")
        session.execute("DELETE FROM twins WHERE id = 3")
        with pytest.raises(psycopg.errors.UniqueViolation):
            session.execute("INSERT INTO twins VALUES (8, 3)")
        session.execute("INSERT INTO twins VALUES (9, 4)")
        session.execute("UPDATE twins SET k = 40 WHERE id = 4")
        with pytest.raises(psycopg.errors.UniqueViolation):
            session.execute("INSERT INTO twins VALUES (10, 4)")
    with processors.connect(2) as session:
        with pytest.raises(psycopg.errors.UniqueViolation, match=r"Key \(k\)=\(1\) is duplicated"):
            session.execute("REINDEX INDEX twins_k")
        assert states(session, "twins") == {"twins_k": (True, False)}
        session.execute("UPDATE twins SET k = 2 WHERE id = 2")
        session.execute("REINDEX INDEX CONCURRENTLY twins_k")
    for number in range(COUNT):
        with processors.connect(number) as session:
            assert states(session, "twins") == {"twins_k": (True, True)}
            assert not differences(session, "twins_k", "k", "true", "twins")
            found = session.execute("SELECT id, k FROM twins ORDER BY id").fetchall()
            assert found == [(1, 1), (2, 2), (4, 40), (5, None), (6, None), (7, 3), (9, 4)]
            with pytest.raises(psycopg.errors.UniqueViolation):
                session.execute("INSERT INTO twins VALUES (11, 3)")
    with processors.connect(0) as session:
        session.execute("INSERT INTO twins VALUES (12, 12)")
        session.execute("DROP INDEX twins_k")
        session.execute("INSERT INTO twins VALUES (13, 12)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            session.execute("CREATE UNIQUE INDEX CONCURRENTLY twins_k ON twins (k)")
        session.execute("DROP INDEX twins_k")
        assert states(session, "twins") == {}


def test_concurrent_writers_of_one_key(processors: Processors) -> None:
    """While a unique index is made, what the writers were told holds: no key is there twice, none is lost."""
    with processors.connect(0) as session:
        session.execute(SETUP)
    stop = threading.Event()
    wrong: list[str] = []

    def write(number: int) -> None:
        """Move its own rows to keys that others want too."""
        generator = random.Random(number)
        with processors.connect(number) as session:
            while not stop.is_set():
                row = generator.randrange(number + 1, ROWS, COUNT)
                try:
                    session.execute(
                        f"UPDATE {TABLE} SET serial = %s WHERE id = %s", (generator.randint(1, 2 * ROWS), row)
                    )
                except (psycopg.errors.SerializationFailure, psycopg.errors.UniqueViolation):
                    continue
                except psycopg.Error as error:
                    wrong.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(COUNT)]
    with processors.connect(0) as session:
        for thread in threads:
            thread.start()
        built = True
        try:
            session.execute(f"CREATE UNIQUE INDEX CONCURRENTLY keys ON {TABLE} (serial)")
        except psycopg.errors.UniqueViolation:
            built = False
        stop.set()
        for thread in threads:
            thread.join(60)
        if not built:
            session.execute(
                f"UPDATE {TABLE} SET serial = 10 * {ROWS} + id WHERE id IN (SELECT id FROM"
                f" (SELECT id, row_number() OVER (PARTITION BY serial) AS n FROM {TABLE}) x WHERE n > 1)"
            )
            session.execute("REINDEX INDEX keys")
    assert not wrong
    for number in range(COUNT):
        with processors.connect(number) as session:
            assert not differences(session, "keys", "serial", "true")
            counts = session.execute(f"SELECT count(*), count(DISTINCT serial) FROM {TABLE}").fetchone()
            assert counts == (ROWS, ROWS)


def test_refused_in_a_transaction(processors: Processors) -> None:
    with processors.connect(0) as session:
        session.execute("CREATE TABLE inside (a int)")
        session.execute("BEGIN")
        with pytest.raises(psycopg.errors.ActiveSqlTransaction):
            session.execute("CREATE INDEX CONCURRENTLY inside_a ON inside (a)")
        session.execute("ROLLBACK")
        # the plain form is one transaction there, as ever
        session.execute("BEGIN")
        session.execute("INSERT INTO inside VALUES (1)")
        session.execute("CREATE INDEX inside_a ON inside (a)")
        session.execute("ROLLBACK")
        assert states(session, "inside") == {}
        session.execute("BEGIN")
        session.execute("INSERT INTO inside VALUES (2)")
        session.execute("CREATE INDEX inside_a ON inside (a)")
        session.execute("COMMIT")
        assert not differences(session, "inside_a", "a", "true", "inside")
        session.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS inside_a ON inside (a)")
        session.execute("DROP TABLE inside")


@pytest.mark.parametrize("how", ["", "CONCURRENTLY"])
def test_cancelled(processors: Processors, how: str) -> None:
    """A cancelled plain CREATE INDEX leaves nothing, a concurrent one an index that is building."""
    with processors.connect(0) as watcher:
        watcher.execute("DROP TABLE IF EXISTS long; CREATE TABLE long (a int)")
        watcher.execute(f"INSERT INTO long SELECT g FROM generate_series(1, {MANY}) g")
        for _ in range(20):  # it may be done before it is cancelled
            watcher.execute("DROP INDEX IF EXISTS long_a")
            with processors.connect(0) as session:
                pid = session.info.backend_pid
                ended: list[str | None] = []

                def build(session: Connection = session, ended: list[str | None] = ended) -> None:
                    try:
                        session.execute(f"CREATE INDEX {how} long_a ON long (a)".encode())
                        ended.append(None)
                    except psycopg.Error as error:
                        ended.append(error.sqlstate)

                thread = threading.Thread(target=build)
                thread.start()
                seen = "SELECT 1 FROM pg_stat_progress_create_index WHERE pid = %s AND tuples_done > 0"
                while not ended and watcher.execute(seen, (pid,)).fetchone() is None:
                    pass
                watcher.execute("SELECT pg_cancel_backend(%s)", (pid,))
                thread.join(120)
            if ended == ["57014"]:
                break
        assert ended == ["57014"]
        assert states(watcher, "long") == ({"long_a": (True, False)} if how else {})
        watcher.execute("DROP TABLE long")


def test_partitioned_table_under_writes(processors: Processors) -> None:
    """The plain form, on a table of partitions: all of its indexes become valid, or none is left."""
    with processors.connect(0) as session:
        session.execute("CREATE TABLE parts (id int, a int) PARTITION BY RANGE (id)")
        session.execute("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (5000)")
        session.execute(
            "CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (5000) TO (10001) PARTITION BY LIST (a)"
        )
        session.execute("CREATE TABLE parts_2_rest PARTITION OF parts_2 DEFAULT")
        session.execute("INSERT INTO parts SELECT g, g % 100 FROM generate_series(1, 10000) g")
    stop = threading.Event()
    wrong: list[str] = []
    turns = [0] * COUNT

    def write(number: int) -> None:
        generator = random.Random(number)
        with processors.connect(number) as session:
            while not stop.is_set():
                try:
                    session.execute(
                        "UPDATE parts SET a = %s WHERE id = %s", (generator.randint(0, 99), generator.randint(1, 10000))
                    )
                    turns[number] += 1
                except psycopg.errors.SerializationFailure:
                    continue
                except psycopg.Error as error:
                    wrong.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(COUNT)]
    for thread in threads:
        thread.start()
    with processors.connect(1) as session:
        session.execute("CREATE INDEX parts_a ON parts (a) INCLUDE (id)")
    with processors.connect(2) as session:
        session.execute("CREATE UNIQUE INDEX parts_id ON parts (id, a)")
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert all(turns)
    for number in range(COUNT):
        with processors.connect(number) as session:
            found = session.execute(
                "SELECT indexrelid::regclass::text, indisvalid FROM pg_index"
                " WHERE indexrelid::regclass::text LIKE 'parts%'"
            ).fetchall()
            assert {(name, True) for name, _ in found} == set(found)
            for partition in ("parts_1", "parts_2_rest"):
                wrong += differences(session, f"{partition}_a_id_idx", "a, id", "true", partition)
    assert not wrong
    with processors.connect(0) as session:
        session.execute("DROP INDEX parts_id")
        session.execute("INSERT INTO parts SELECT * FROM parts WHERE id = 7000")
        with pytest.raises(psycopg.errors.UniqueViolation):
            session.execute("CREATE UNIQUE INDEX parts_id ON parts (id, a)")
        assert session.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'parts%id_a_idx'").fetchone() == (0,)
        session.execute("DROP TABLE parts")


@pytest.mark.parametrize("what", ["TABLE stock", "TABLE CONCURRENTLY stock", "SCHEMA public", "DATABASE"])
def test_reindex_of_many_goes_index_by_index_under_writes(processors: Processors, what: str) -> None:
    """At the first attempt, beside writers on all query processors; an index that is building becomes valid too."""
    with processors.connect(0) as session:
        session.execute(SETUP)
        names = ["plain", "one", "part"]
        for name in names:
            make(session, name, "")
        session.execute("CREATE TABLE IF NOT EXISTS other (a int); CREATE INDEX IF NOT EXISTS other_a ON other (a)")
        numbers = files(session)
        session.execute("INSERT INTO stock VALUES (-1, 1, 'b', 1), (-2, 1, 'b', 1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            session.execute("CREATE UNIQUE INDEX CONCURRENTLY twice ON stock (abs(a - 1), b) WHERE id < 0")
        session.execute("DELETE FROM stock WHERE id = -2")
    with Writers(processors.connect, COUNT, 5) as writers, processors.connect(1) as session:
        session.execute(f"REINDEX {what}")
    assert len(writers.written) == COUNT
    check(processors.connect, COUNT, names)
    for number in range(COUNT):
        with processors.connect(number) as session:
            assert set(states(session)) == {*names, "twice"}
            assert states(session)["twice"] == (True, True)
            now = files(session)
            assert all(now[name] != numbers[name] for name in names)
            assert now["stock_pkey"] == numbers["stock_pkey"]
            assert (now["other_a"] != numbers["other_a"]) is ("stock" not in what)


def files(session: Connection) -> dict[str, object]:
    """Index -> file number."""
    found = session.execute("SELECT relname, relfilenode FROM pg_class WHERE relkind = 'i' AND oid >= 16384")
    return {str(name): number for name, number in found}


def test_reindex_of_many_without_others(processors: Processors) -> None:
    """Deferrable constraints are built again too; rights are those of PostgreSQL; in a block it is one transaction."""
    with processors.connect(0) as session:
        session.execute("CREATE SCHEMA several; SET search_path = several")
        session.execute("CREATE TABLE t (id int PRIMARY KEY, a int UNIQUE DEFERRABLE, b int)")
        session.execute("CREATE TABLE p (id int, a int) PARTITION BY RANGE (id)")
        session.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)")
        session.execute("CREATE INDEX ON p (a)")
        session.execute("INSERT INTO t SELECT g, g, g FROM generate_series(1, 100) g; INSERT INTO p VALUES (1, 2)")
        before = files(session)
        session.execute("REINDEX TABLE t")
        after = files(session)
        assert after["t_a_key"] != before["t_a_key"]
        assert session.execute("SELECT count(*) FROM t WHERE a BETWEEN 11 AND 20").fetchone() == (10,)
        session.execute("REINDEX TABLE p")
        assert files(session)["p1_a_idx"] != before["p1_a_idx"]
        session.execute("BEGIN; REINDEX TABLE t; ROLLBACK")
        assert files(session)["t_a_key"] == after["t_a_key"]
        session.execute("BEGIN")
        with pytest.raises(psycopg.errors.ActiveSqlTransaction):
            session.execute("REINDEX SCHEMA several")
        session.execute("ROLLBACK")
        with pytest.raises(psycopg.errors.UndefinedTable):
            session.execute("REINDEX TABLE nowhere")
        with pytest.raises(psycopg.errors.InvalidSchemaName):
            session.execute("REINDEX SCHEMA nowhere")
        session.execute("DROP ROLE IF EXISTS stranger; CREATE ROLE stranger; GRANT USAGE ON SCHEMA several TO stranger")
        session.execute("SET ROLE stranger")
        for statement in ("REINDEX TABLE t", "REINDEX SCHEMA several", "REINDEX DATABASE"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(statement)
        session.execute("RESET ROLE; DROP SCHEMA several CASCADE; DROP ROLE stranger")
