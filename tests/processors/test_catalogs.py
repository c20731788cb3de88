"""Schema changes on one query processor, as the others see them (PROTOCOL Q3-Q5).

Must hold: what a client was told is there is there for every other client, on whichever query processor; with the same
object ids and storage ids. Of changes at the same time one wins and the others are told to try again (40001); nothing
else surprises anybody.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from tests.processors.conftest import COUNT, Processors
from tests.sql.test_ddl_effects import FILES, catalogs, databases, differences, run_file

SCHEMA_CHANGED = "OC001"


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_catalogs_are_the_same_everywhere(processors: Processors, file: Path) -> None:
    """Every file of schema changes runs on another query processor than the one before; all end up with its rows."""
    number = FILES.index(file) % COUNT
    run_file(processors.server(number), file)
    names = databases(processors.server(number))
    assert names == databases(processors.server((number + 1) % COUNT))
    for name in names:
        here = catalogs(processors.server(number).database(name))
        for other in range(COUNT):
            if other != number:
                assert not differences(here, catalogs(processors.server(other).database(name)))


def test_a_change_is_there_when_its_client_is_told(processors: Processors) -> None:
    """The first statement of a session elsewhere finds it, analysis included; so does an open session's next one."""
    sessions = [processors.connect(number) for number in range(COUNT)]
    sessions[0].execute("CREATE TABLE visible (id int PRIMARY KEY)")
    sessions[0].execute("INSERT INTO visible VALUES (1)")
    for turn in range(60):
        changer, reader = sessions[turn % COUNT], sessions[(turn + 1) % COUNT]
        changer.execute(f"ALTER TABLE visible ADD COLUMN c{turn} int DEFAULT {turn}")
        assert reader.execute(f"SELECT c{turn} FROM visible").fetchall() == [(turn,)]
        changer.execute(f"CREATE FUNCTION f{turn}() RETURNS int LANGUAGE sql AS 'SELECT {turn}'")
        assert reader.execute(f"SELECT f{turn}()").fetchall() == [(turn,)]
        changer.execute(f"ALTER TABLE visible DROP COLUMN c{turn}")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            reader.execute(f"SELECT c{turn} FROM visible")
    for session in sessions:
        session.close()


def test_prepared_statements_follow(processors: Processors) -> None:
    with processors.connect(0) as changer, processors.connect(1) as reader:
        changer.execute("CREATE TABLE prepared (id int PRIMARY KEY, v int)")
        changer.execute("INSERT INTO prepared VALUES (1, 10)")
        for value in range(20):
            assert reader.execute("SELECT v FROM prepared WHERE id = %s", (1,), prepare=True).fetchone() == (
                10 if value == 0 else value - 1,
            )
            changer.execute("DROP TABLE prepared")
            changer.execute("CREATE TABLE prepared (id int PRIMARY KEY, v int)")
            changer.execute("INSERT INTO prepared VALUES (1, %s)", (value,))


def test_of_concurrent_changes_one_wins(processors: Processors) -> None:
    """Each round all change the schema at once; who fails is told 40001, tries again and gets through."""
    errors: Counter[str] = Counter()
    made: list[str] = []
    barrier = threading.Barrier(COUNT)

    def change(number: int) -> None:
        with processors.connect(number) as session:
            barrier.wait(30)
            for turn in range(15):
                name = f"concurrent_{number}_{turn}"
                while True:
                    try:
                        session.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
                        break
                    except psycopg.Error as error:
                        errors[f"{error.sqlstate} {SCHEMA_CHANGED in str(error)}"] += 1
                        assert error.sqlstate == "40001", error
                session.execute(f"INSERT INTO {name} VALUES (1, '{name}')")
                made.append(name)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(made) == COUNT * 15, errors
    assert set(errors) <= {"40001 True"}
    for number in range(COUNT):
        with processors.connect(number) as session:
            for name in made:
                assert session.execute(f"SELECT v FROM {name}").fetchall() == [(name,)]


def test_temporary_tables_take_no_numbers_of_others(processors: Processors) -> None:
    """Local objects lie in the same catalogs as those that arrive: their ids must be different for good."""
    sessions = [processors.connect(number) for number in range(COUNT)]
    for session in sessions:
        for turn in range(30):
            session.execute(f"CREATE TEMP TABLE local_{turn} (id int PRIMARY KEY, v text)")
    for turn in range(30):
        sessions[turn % COUNT].execute(f"CREATE TABLE shared_{turn} (id int PRIMARY KEY, v text)")
    for session in sessions:
        query = "SELECT count(*) FROM pg_class WHERE relname LIKE 'shared\\_%' AND relkind = 'r'"
        assert session.execute(query).fetchone() == (30,)
        session.close()


def test_what_came_to_nothing_elsewhere_is_not_seen(processors: Processors) -> None:
    """Rows that a rolled-back transaction loaded lie in storage for a while: under ids that nobody else takes."""
    sessions = [processors.connect(number) for number in range(COUNT)]
    generator = random.Random(5)
    for turn in range(12):
        loser, winner = generator.sample(sessions, 2)
        loser.execute("BEGIN")
        loser.execute(f"CREATE TABLE loaded_{turn} AS SELECT g FROM generate_series(1, 20000) g")
        winner.execute("BEGIN")
        winner.execute(f"CREATE TABLE loaded_{turn} AS SELECT g FROM generate_series(1, 10) g")
        loser.execute("ROLLBACK")
        winner.execute("COMMIT")
        for session in sessions:
            assert session.execute(f"SELECT count(*) FROM loaded_{turn}").fetchone() == (10,)
    for session in sessions:
        session.close()


def test_a_holder_of_locks_gives_way(processors: Processors) -> None:
    """Q4: an idle transaction elsewhere must not keep a schema change away; it ends with 40001."""
    with processors.connect(0) as changer, processors.connect(1) as holder:
        changer.execute("CREATE TABLE held (id int PRIMARY KEY)")
        holder.execute("BEGIN")
        holder.execute("SELECT * FROM held")
        changer.execute("ALTER TABLE held ADD COLUMN v int")
        while True:
            try:
                with processors.connect(1) as reader:
                    assert reader.execute("SELECT v FROM held").fetchall() == []
                break
            except psycopg.errors.SerializationFailure:
                continue  # it came while the change still waited for the holder, and gave way like the holder
        with pytest.raises(psycopg.Error) as failure:
            holder.execute("SELECT * FROM held")
        assert failure.value.sqlstate in ("40001", None)  # None: the session was ended while it was idle


def test_old_snapshots_meet_no_new_table(processors: Processors) -> None:
    """Q3: a transaction that reads as of before TRUNCATE must not find the new, empty storage."""
    with processors.connect(0) as changer, processors.connect(1) as reader:
        changer.execute("CREATE TABLE kept (id int PRIMARY KEY)")
        changer.execute("CREATE TABLE other (id int PRIMARY KEY)")
        changer.execute("INSERT INTO kept VALUES (1)")
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT * FROM other")  # takes the snapshot
        changer.execute("TRUNCATE kept")
        with pytest.raises(psycopg.errors.SerializationFailure, match=SCHEMA_CHANGED):
            reader.execute("SELECT * FROM kept")
        reader.execute("ROLLBACK")
