"""DDL by effects: a query processor that is rebuilt from its image and the DDL log has the same catalogs.

Must hold: after the files in `ddl/` ran, the data directory of PostgreSQL can be thrown away; image + log give every
row of every catalog back, OIDs included, in every database, with the contents of every table; sequences hand out no
value twice. Catalog rows that each query processor decides for itself are left out (LOCAL_*, ddl_capture.c says why).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import AustralisCluster, CannotStart, Server

FILES = sorted((Path(__file__).parent / "ddl").glob("*.sql"))
LOCAL_CATALOGS = {"pg_statistic", "pg_statistic_ext_data"}
LOCAL_COLUMNS = {
    "pg_class": {"relpages", "reltuples", "relallvisible", "relallfrozen", "relfrozenxid", "relminmxid"},
    "pg_database": {"datfrozenxid", "datminmxid"},
}
STORAGE = sql.SQL("CASE WHEN oid >= 16384 THEN relfilenode END")  # catalogs have files of their own
TEMPORARY = "^pg_(toast_)?temp_"
READY_SECONDS = 60.0

LOST = "connection to server"

Rows = dict[str, Counter[tuple[object, ...]]]


@pytest.fixture
def cluster() -> Iterator[AustralisCluster]:
    # not below pytest's own directory: only root can enter that, and the cluster drops root
    directory = Path(tempfile.mkdtemp(prefix="australis-ddl-"))
    cluster = AustralisCluster(directory)
    try:
        cluster.start()
        yield cluster
    except (CannotStart, ProgramsMissing) as error:
        if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
            raise
        pytest.skip(f"Australis can't start: {error}")
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


def databases(server: Server) -> list[str]:
    with server.connect() as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1").fetchall()
    return [str(name) for (name,) in rows]


def catalogs(server: Server) -> Rows:
    """All rows of all catalogs of one database, as text."""
    result: Rows = {}
    with server.connect() as connection:
        names = connection.execute(
            "SELECT oid, relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace"
        ).fetchall()
        for oid, name in names:
            if name in LOCAL_CATALOGS:
                continue
            columns = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped"
                " ORDER BY attnum",
                (oid,),
            ).fetchall()
            chosen = [str(c) for (c,) in columns if c not in LOCAL_COLUMNS.get(str(name), set())]
            query = sql.SQL("SELECT {} FROM pg_catalog.{}").format(
                sql.SQL(", ").join(
                    STORAGE if c == "relfilenode" else sql.SQL("{}::text").format(sql.Identifier(c)) for c in chosen
                ),
                sql.Identifier(str(name)),
            )
            if name == "pg_namespace":
                query += sql.SQL(" WHERE nspname !~ {}").format(sql.Literal(TEMPORARY))
            result[str(name)] = Counter(connection.execute(query).fetchall())
    return result


def contents(server: Server) -> dict[str, list[str]]:
    """Rows of every table and materialized view of one database, and the files of its indexes."""
    result: dict[str, list[str]] = {}
    with server.connect() as connection:
        relations = connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm') AND oid >= 16384"
            " AND relpersistence = 'p' AND relispopulated"
        ).fetchall()
        for (name,) in relations:
            rows = connection.execute(sql.SQL(f"SELECT t::text FROM {name} t")).fetchall()
            result[str(name)] = sorted(str(row) for (row,) in rows)
        connection.execute("SELECT pg_relation_size(oid) FROM pg_class WHERE relkind = 'i' AND relpersistence = 'p'")
    return result


def lose_data_directory(cluster: AustralisCluster) -> Server:
    """Stop, throw PostgreSQL's data away, start: image + DDL log."""
    cluster.stop()
    shutil.rmtree(cluster.data / "query_processor" / "data")
    server = cluster.start()
    caught_up(server)
    return server


def caught_up(server: Server) -> int:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        with server.connect() as connection:
            row = connection.execute("SELECT au_catalog_applied()").fetchone()
        assert row is not None
        if int(str(row[0])) >= 0:
            return int(str(row[0]))
        assert time.monotonic() < deadline, "the catalogs are not caught up"
        time.sleep(0.05)  # another process works; there is nothing to wait on


def run_file(server: Server, file: Path) -> list[str]:
    """Run through psql; the errors it printed."""
    done = server.psql("--quiet", f"--file={file}")
    return [line for line in done.stderr.splitlines() if "ERROR:" in line or "FATAL:" in line or LOST in line]


def differences(before: Rows, after: Rows) -> list[str]:
    found: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, Counter()), after.get(name, Counter())
        found += [f"{name}: lost {row}" for row in old - new]
        found += [f"{name}: appeared {row}" for row in new - old]
    return found


def test_catalogs_come_back(cluster: AustralisCluster) -> None:
    server = cluster.server()
    for file in FILES:
        errors = run_file(server, file)
        unexpected = [e for e in errors if not any(known in e for known in EXPECTED_ERRORS)]
        assert not unexpected, unexpected
    applied = caught_up(server)
    names = databases(server)
    before = {name: (catalogs(server.database(name)), contents(server.database(name))) for name in names}

    server = lose_data_directory(cluster)
    assert caught_up(server) == applied
    assert databases(server) == names
    count = 0
    for name in names:
        rows, data = before[name]
        found = differences(rows, catalogs(server.database(name)))
        assert not found, f"{name}: {len(found)} differences, first {found[:10]}"
        assert contents(server.database(name)) == data
        count += sum(sum(rows_of.values()) for rows_of in rows.values())
    print(f"{applied} DDL records, {len(names)} databases, {count} catalog rows, 0 differences")

    # and it goes on from there
    with server.connect() as connection:
        connection.execute("CREATE TABLE afterwards (id serial PRIMARY KEY)")
        connection.execute("INSERT INTO app.serials (v) VALUES (1)")


# What fails in the files on purpose.
EXPECTED_ERRORS = (
    'column "v" of relation "serials" must be declared NOT NULL before identity can be added',
    'column "a" specified more than once',
)


def test_comparison_sees_a_difference(cluster: AustralisCluster) -> None:
    server = cluster.server()
    before = catalogs(server)
    with server.connect() as connection:
        connection.execute("COMMENT ON SCHEMA public IS 'something else'")
    assert differences(before, catalogs(server))


SEQUENCES = """
CREATE SEQUENCE s; CREATE SEQUENCE sd INCREMENT -1; CREATE SEQUENCE sc MAXVALUE 5 CYCLE;
CREATE SEQUENCE cached CACHE 10; CREATE SEQUENCE unused START 42; CREATE SEQUENCE back; CREATE SEQUENCE exact;
CREATE UNLOGGED SEQUENCE unlogged;
CREATE TABLE ser (id serial PRIMARY KEY, x int);
SELECT nextval('unlogged') FROM generate_series(1, 6);
SELECT nextval('s') FROM generate_series(1, 3);
SELECT nextval('sd') FROM generate_series(1, 3);
SELECT nextval('sc') FROM generate_series(1, 7);
SELECT nextval('cached') FROM generate_series(1, 25);
INSERT INTO ser (x) SELECT 1 FROM generate_series(1, 2500);
SELECT setval('s', 5000);
SELECT nextval('back') FROM generate_series(1, 5000);
SELECT setval('back', 10);
SELECT setval('exact', 77, false);
BEGIN; CREATE SEQUENCE in_transaction; SELECT nextval('in_transaction') FROM generate_series(1, 4); COMMIT;
BEGIN; ALTER SEQUENCE s RESTART WITH 9000; ROLLBACK;
"""
VALUES = "SELECT nextval(n::regclass) FROM unnest('{s,sd,cached,unused,back,exact,in_transaction,unlogged}'::text[]) n"


def draw(server: Server) -> list[int]:
    with server.connect() as connection:
        values = [int(str(v)) for (v,) in connection.execute(VALUES).fetchall()]
        row = connection.execute("INSERT INTO ser (x) VALUES (1) RETURNING id").fetchone()
    assert row is not None
    return [*values, int(str(row[0]))]


def kill_postgres(cluster: AustralisCluster) -> Server:
    """The supervisor starts another one, after WAL recovery."""
    pid = int((cluster.data / "query_processor" / "data" / "postmaster.pid").read_text().split()[0])
    subprocess.run(["kill", "-9", str(pid)], check=True)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            server = cluster.server()
            with server.connect() as connection:
                row = connection.execute("SELECT pg_postmaster_start_time() > now() - interval '1 minute'").fetchone()
            caught_up(server)
            now = int((cluster.data / "query_processor" / "data" / "postmaster.pid").read_text().split()[0])
            if row and now != pid:
                return server
        except (psycopg.OperationalError, OSError, ValueError):
            pass  # still starting
        assert time.monotonic() < deadline, "PostgreSQL did not come back"
        time.sleep(0.05)  # another process works; there is nothing to wait on


def test_sequences_survive(cluster: AustralisCluster) -> None:
    server = cluster.server()
    done = server.psql("--quiet", "--set=ON_ERROR_STOP=1", stdin=SEQUENCES)
    assert done.returncode == 0, done.stderr
    directions = [1, -1, 1, 1, 1, 1, 1, 1, 1]

    # a clean restart loses nothing; a session's cached values are lost, as in PostgreSQL
    cluster.stop()
    values = draw(cluster.start())
    assert values == [5001, -4, 31, 42, 11, 77, 5, 7, 2501]

    # kill -9 may lose local pages, losing the data directory loses all: no value comes twice
    for server in (kill_postgres(cluster), lose_data_directory(cluster)):
        later = draw(server)
        assert all((new - old) * sign > 0 for old, new, sign in zip(values, later, directions, strict=True)), (
            values,
            later,
        )
        values = later
