"""Dumps made of one server and loaded into another are equal to dumps of the original (acceptance: both directions).

rich.sql is loaded into stock PostgreSQL and into Australis. Every format then goes from stock to Australis, from
Australis to stock and from Australis to Australis. What pg_dump says of the copy must be what it says of stock's
original: the whole schema text, and the rows of every table. Must hold: rows are compared as sets, since a heap keeps
insertion order and our tables that of their key; nothing else is left out but the random token of \\restrict.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.postgres import program
from tests.fixtures.servers import Server

HERE = Path(__file__).parent
ROLES = ("r_admin", "r_writer", "r_reader")
SECONDS = 60

# what stock PostgreSQL says, too, to DROP ... IF EXISTS of a partition's primary key
CLEAN_NOISE = "cannot drop inherited constraint"


def run(server: Server, name: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Output byte for byte: text mode would turn a carriage return in a row into a line feed."""
    done = subprocess.run(
        [str(program(name)), *arguments],
        input=(stdin or "").encode(errors="surrogateescape"),
        capture_output=True,
        timeout=SECONDS,
        check=False,
        env=server.environment(),
    )
    out, err = (text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def must(server: Server, name: str, *arguments: str, stdin: str | None = None) -> str:
    done = run(server, name, *arguments, stdin=stdin)
    assert done.returncode == 0, f"{name} on {server.kind}: {done.stderr[-2000:]}"
    return done.stdout


def fresh(server: Server, name: str) -> Server:
    with server.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    return server.database(name)


def normal(dump: str) -> list[str]:
    """Lines of a plain dump, rows of each COPY sorted."""
    lines: list[str] = []
    rows: list[str] | None = None
    for line in dump.split("\n"):
        if line.startswith(("\\restrict", "\\unrestrict")):
            continue
        if rows is not None:
            if line == "\\.":
                lines += [*sorted(rows), line]
                rows = None
            else:
                rows.append(line)
            continue
        lines.append(line)
        if line.startswith("COPY ") and line.endswith("FROM stdin;"):
            rows = []
    return lines


def drop_roles(server: Server) -> None:
    with server.connect() as connection:
        for role in ROLES:
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


@dataclass(frozen=True)
class Rich:
    """Both servers with rich.sql in a database of that name."""

    stock: Server
    australis: Server
    reference: list[str]  # stock's dump, normalised

    def of(self, kind: str) -> Server:
        return self.stock if kind == "stock" else self.australis


@pytest.fixture(scope="module")
def rich(stock: Server, australis: Server) -> Iterator[Rich]:
    databases: list[Server] = []
    for server in (stock, australis):
        with server.connect() as connection:
            for name in ("rich", "copy"):
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        drop_roles(server)
        must(server, "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", str(HERE / "roles.sql"))
        database = fresh(server, "rich")
        must(database, "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f", str(HERE / "rich.sql"))
        databases.append(database)
    yield Rich(databases[0], databases[1], normal(must(databases[0], "pg_dump")))
    for server in (stock, australis):
        with server.connect() as connection:
            for name in ("rich", "copy"):
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        drop_roles(server)


def psql_load(target: Server, script: str, *arguments: str) -> None:
    must(target, "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", *arguments, stdin=script)


def plain(source: Server, target: Server, directory: Path) -> None:
    psql_load(target, must(source, "pg_dump"))


def inserts(source: Server, target: Server, directory: Path) -> None:
    psql_load(target, must(source, "pg_dump", "--inserts", "--rows-per-insert=50"), "-1")


def custom(source: Server, target: Server, directory: Path) -> None:
    file = str(directory / "custom")
    must(source, "pg_dump", "-Fc", "-f", file)
    must(target, "pg_restore", "-1", "-d", target.environment()["PGDATABASE"], file)


def directory_jobs(source: Server, target: Server, directory: Path) -> None:
    folder = str(directory / "folder")
    must(source, "pg_dump", "-Fd", "-j", "2", "-f", folder)
    # Jobs that attach indexes of partitions deadlock now and then on stock PostgreSQL: its own race, not ours to test.
    jobs = "1" if target.kind == "stock" else "4"
    must(target, "pg_restore", "-j", jobs, "-d", target.environment()["PGDATABASE"], folder)


def sections(source: Server, target: Server, directory: Path) -> None:
    """Schema first, then the rows into tables that have their keys, indexes and foreign keys already."""
    psql_load(target, must(source, "pg_dump", "--schema-only"), "-1")
    rows = must(source, "pg_dump", "--data-only")
    refresh = "REFRESH MATERIALIZED VIEW app.per_mood; REFRESH MATERIALIZED VIEW app.on_it;"  # no part of --data-only
    psql_load(target, "SET session_replication_role = replica;\n" + rows + refresh, "-1")


def clean_over_old(source: Server, target: Server, directory: Path) -> None:
    """Twice into the same database: the second one drops everything first."""
    psql_load(target, must(source, "pg_dump"))
    script = must(source, "pg_dump", "--clean", "--if-exists", "--column-inserts")
    done = run(target, "psql", "-Xq", "-o", "/dev/null", stdin=script)
    errors = [line for line in done.stderr.splitlines() if "ERROR" in line and CLEAN_NOISE not in line]
    assert not errors, errors[:5]


WAYS = {way.__name__: way for way in (plain, inserts, custom, directory_jobs, sections, clean_over_old)}
DIRECTIONS = (("stock", "australis"), ("australis", "stock"), ("australis", "australis"))


def assert_same(got: list[str], expected: list[str]) -> None:
    if got == expected:
        return
    missing = sorted(set(expected) - set(got))[:10]
    extra = sorted(set(got) - set(expected))[:10]
    pytest.fail(f"missing {missing}\nextra {extra}\n{len(expected)} lines expected, {len(got)} found")


def test_both_dump_alike(rich: Rich) -> None:
    assert_same(normal(must(rich.australis, "pg_dump")), rich.reference)


@pytest.mark.timeout(3 * SECONDS)
@pytest.mark.parametrize(
    ("way", "direction"),
    [
        pytest.param(way, direction, id=f"{way}-{direction[0]}-to-{direction[1]}")
        for way in WAYS
        for direction in DIRECTIONS
        if direction[0] != direction[1] or way in ("plain", "directory_jobs")  # within Australis: the fullest two
    ],
)
def test_round_trip(rich: Rich, way: str, direction: tuple[str, str], tmp_path: Path) -> None:
    source, target = rich.of(direction[0]), fresh(rich.of(direction[1]).database("postgres"), "copy")
    WAYS[way](source, target, tmp_path)
    assert_same(normal(must(target, "pg_dump")), rich.reference)


def test_dumpall(rich: Rich) -> None:
    """Roles, memberships, settings, and every database; passwords have salts of their own."""
    dumps = [
        must(server, "pg_dumpall", "--no-role-passwords", "--roles-only") for server in (rich.stock, rich.australis)
    ]
    assert_same(normal(dumps[1]), normal(dumps[0]))
    dumps = []
    for server in (rich.stock, rich.australis):
        # what other tests left in other databases of the servers is not this test's business
        with server.connect() as connection:
            others = connection.execute(
                "SELECT datname FROM pg_database WHERE datname <> 'rich' AND NOT datistemplate"
            ).fetchall()
        dumps.append(
            must(
                server,
                "pg_dumpall",
                "--no-role-passwords",
                "--schema-only",
                *(f'--exclude-database="{name}"' for (name,) in others),
            )
        )
    assert_same(normal(dumps[1]), normal(dumps[0]))


def test_psql_describes_alike(rich: Rich) -> None:
    commands = "\n".join(
        ["\\d+ app.*", '\\d+ "Odd Name".*']
        + [f"\\{name} app.*" for name in ("dp", "do+", "df+", "da", "dC", "dD+", "dT+", "di", "ds", "dm", "dv+", "dX")]
        + ["\\dn+", "\\du+ r_*", "\\drg r_*", "\\drds r_*", "\\ddp", "\\dx", "\\dx+ citext", "\\dy", "\\det+", "\\des+"]
        + [
            "\\dew+",
            "\\deu",
            "\\dF+ app.*",
            "\\dFd app.*",
            "\\dc app.*",
            "\\dO app.*",
            "\\dL",
            "\\dP app.*",
            "\\dt app.*",
        ]
        + ["\\dl", "\\sf app.rows_of", "\\sv app.chain", "\\dAc btree int*", "\\dAo btree int*_ops"]
    )
    texts = []
    for server in (rich.stock, rich.australis):
        done = run(server, "psql", "-X", stdin=commands)
        assert done.stderr == "", done.stderr[:1000]
        # oids in partition constraints differ
        texts.append(
            re.sub(r"satisfies_hash_partition\('\d+'", "satisfies_hash_partition('x'", done.stdout).splitlines()
        )
    assert_same(texts[1], texts[0])


BANK_ACCOUNTS = 200
BANK_TOTAL = BANK_ACCOUNTS * 100
DUMPS = 3


def transfer(dsn: str, seed: int, stop: threading.Event, done: list[int]) -> None:
    """Move money between two of four tables until told to stop; the sum over all never changes."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        n = seed
        while not stop.is_set():
            n = (n * 1103515245 + 12345) % 2**31
            one, two = n % 4, (n >> 8) % 4
            try:
                with connection.transaction():
                    account = (n >> 12) % (BANK_ACCOUNTS // 4)
                    connection.execute(f"UPDATE bank_{one} SET amount = amount - 7 WHERE id = %s", (account,))
                    connection.execute(f"UPDATE bank_{two} SET amount = amount + 7 WHERE id = %s", (account,))
            except psycopg.errors.SerializationFailure:
                continue
            done.append(n)


@pytest.mark.timeout(3 * SECONDS)
def test_parallel_dump_is_one_snapshot(australis: Server, stock: Server, tmp_path: Path) -> None:
    source = fresh(australis, "bank")
    with source.connect() as connection:
        for i in range(4):
            connection.execute(f"CREATE TABLE bank_{i} (id int PRIMARY KEY, amount int, filler text)")
            numbers = f"generate_series(0, {BANK_ACCOUNTS // 4 - 1})"
            connection.execute(f"INSERT INTO bank_{i} SELECT g, 100, repeat('x', 2000) FROM {numbers} g")
    stop, done = threading.Event(), list[int]()
    threads = [threading.Thread(target=transfer, args=(source.dsn, seed, stop, done)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        sums = []
        for round_number in range(DUMPS):
            before = len(done)
            folder = str(tmp_path / str(round_number))
            must(source, "pg_dump", "-Fd", "-j", "4", "-f", folder)
            assert len(done) > before, "the dump must have had company"
            target = fresh(stock, "bank")
            must(target, "pg_restore", "-j", "4", "-d", "bank", folder)
            with target.connect() as connection:
                union = " UNION ALL ".join(f"SELECT amount FROM bank_{i}" for i in range(4))
                row = connection.execute(f"SELECT sum(amount) FROM ({union}) t").fetchone()
                assert row is not None
                sums.append(row[0])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for server in (australis, stock):
            with server.connect() as connection:
                connection.execute("DROP DATABASE IF EXISTS bank WITH (FORCE)")
    assert sums == [BANK_TOTAL] * DUMPS


def test_snapshot_is_refused_when_its_transaction_is_over(any_server: Server) -> None:
    with any_server.connect(autocommit=False) as one, any_server.connect(autocommit=False) as two:
        exported = one.execute("SELECT pg_export_snapshot()").fetchone()
        assert exported is not None
        two.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        two.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exported[0])))
        two.rollback()
        one.rollback()
        two.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(psycopg.errors.UndefinedObject):  # its file is gone
            two.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exported[0])))


def test_schema_changes_of_one_table_wait_for_each_other(any_server: Server) -> None:
    """What pg_restore -j does: indexes, triggers and grants of one table from several connections at once."""
    with any_server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS crowd")
        connection.execute("CREATE TABLE crowd (a int, b int)")
        connection.execute("INSERT INTO crowd SELECT g, g FROM generate_series(1, 2000) g")
    errors: list[str] = []

    def make(number: int) -> None:
        with any_server.connect() as own:
            for i in range(4):
                try:
                    own.execute(f"CREATE INDEX crowd_{number}_{i} ON crowd (a, b)")
                    own.execute(f"ALTER TABLE crowd ADD CONSTRAINT positive_{number}_{i} CHECK (a > 0)")
                except psycopg.Error as error:
                    errors.append(str(error))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with any_server.connect() as connection:
        found = connection.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'crowd'").fetchone()
        assert found == (16,)
        connection.execute("DROP TABLE crowd")
