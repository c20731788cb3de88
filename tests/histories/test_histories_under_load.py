"""Short runs: the product and stock PostgreSQL under the same loads, also while processes die; and the harness itself
held to databases that lie, hang and go away.

Stock PostgreSQL is the oracle for the checker: READ COMMITTED must show its anomalies, REPEATABLE READ write skew only,
SERIALIZABLE nothing. Runs are bounded in transactions; abort rates are printed side by side.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql

from australis.simulation import checker
from australis.simulation.anomalies import Name
from australis.simulation.history import Outcome
from tests.crash.victims import AustralisVictim, StockVictim, Victim
from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import (
    AustralisCluster,
    CannotStart,
    Server,
    StockCluster,
    free_port,
    stock_server,
    temporary_directory,
)
from tests.histories.__main__ import main as command
from tests.histories.run import Report, Run, outcome_at_commit
from tests.histories.workloads import WORKLOADS

TRANSACTIONS = int(os.environ.get("AUSTRALIS_TEST_HISTORY", "1200"))
ATTEMPTS = 5  # runs until a database that may show an anomaly has shown it


@pytest.fixture(scope="module")
def quick_stock() -> Iterator[Server]:
    """Stock PostgreSQL that looks for deadlocks at once: the loads have many."""
    try:
        with stock_server(settings={"deadlock_timeout": "10ms"}) as server:
            yield server
    except (CannotStart, ProgramsMissing) as error:
        if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
            raise
        pytest.skip(str(error))


def load(server: Server, workload: str, level: str, *, seed: int = 1, limit: int = TRANSACTIONS) -> Report:
    return Run(workload, level, [server.dsn], clients=6, seed=seed, limit=limit).start().finish()


@pytest.mark.parametrize("level", ["repeatable-read", "serializable"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_same_verdict_as_stock(
    workload: str, level: str, quick_stock: Server, australis: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = {server.kind: load(server, workload, level) for server in (quick_stock, australis)}
    with capsys.disabled():
        for kind, report in reports.items():
            print(f"\n{kind:>9} {report}", end="")
    for kind, report in reports.items():
        assert report.good, f"{kind} {report}"
        assert report.verdict.outcomes[Outcome.OK] > TRANSACTIONS // 10
        assert not report.verdict.outcomes[Outcome.UNKNOWN]
        assert {a.name for a in report.verdict.allowed} <= {Name.G2_ITEM}


def forget(report: Report) -> None:
    """Remove a stored history that was bad on purpose."""
    if report.stored is not None:
        report.stored.unlink()
        report.stored.parent.rmdir()


def until_shown(server: Server, workload: str, level: str, wanted: set[Name]) -> set[Name]:
    """What runs with different seeds found, allowed or not, until it is all there."""
    found: set[Name] = set()
    for seed in range(ATTEMPTS):
        report = load(server, workload, level, seed=seed)
        found |= {a.name for a in (*report.verdict.anomalies, *report.verdict.allowed)}
        forget(report)
        if wanted <= found:
            break
    return found


@pytest.mark.parametrize(
    ("workload", "wanted"),
    [
        ("append", {Name.LOST_UPDATE, Name.G_SINGLE}),
        ("register", {Name.LOST_UPDATE}),
        ("bank", {Name.TOTAL}),
        ("unique", {Name.NON_REPEATABLE}),
    ],
)
def test_read_committed_shows_what_it_allows(workload: str, wanted: set[Name], quick_stock: Server) -> None:
    assert wanted <= until_shown(quick_stock, workload, "read-committed", wanted)


@pytest.mark.parametrize("kind", ["stock", "australis"])
def test_repeatable_read_shows_write_skew(kind: str, quick_stock: Server, australis: Server) -> None:
    server = quick_stock if kind == "stock" else australis
    assert until_shown(server, "append", "repeatable-read", {Name.G2_ITEM}) == {Name.G2_ITEM}


# ---------------------------------------------------------------------- while processes die


@contextlib.contextmanager
def victim_of(kind: str) -> Iterator[tuple[Victim, Server]]:
    with temporary_directory("histories") as directory:
        cluster: StockCluster | AustralisCluster
        cluster = StockCluster(directory) if kind == "stock" else AustralisCluster(directory)
        try:
            try:
                server = cluster.start()
            except (CannotStart, ProgramsMissing) as error:
                if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
                    raise
                pytest.skip(str(error))
            yield (
                StockVictim(cluster, server) if isinstance(cluster, StockCluster) else AustralisVictim(cluster),
                server,
            )
        finally:
            cluster.stop()


def more(run: Run, transactions: int = 150) -> None:
    """Wait until so many more have committed."""
    before = run.committed()
    wait_for(lambda: run.committed() >= before + transactions)


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():  # bounded by the test's own timeout
        pause.wait(0.02)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workload", ["append", "bank"])
@pytest.mark.parametrize("kind", ["stock", "australis"])
def test_kills_in_the_middle(kind: str, workload: str, capsys: pytest.CaptureFixture[str]) -> None:
    with victim_of(kind) as (victim, server):
        run = Run(workload, "repeatable-read", [server.dsn], clients=5).start()
        for target in victim.targets:
            more(run)
            assert victim.kill(target, random.Random(1))
            victim.revive(target)
        more(run)
        report = run.stop()
    with capsys.disabled():
        print(f"\n{kind:>9} killed {', '.join(victim.targets)}: {report}", end="")
    assert report.good, str(report)


# ---------------------------------------------------------------------- the harness itself


@pytest.mark.parametrize(
    ("sqlstate", "alive", "outcome"),
    [
        (None, False, Outcome.UNKNOWN),
        ("08007", True, Outcome.UNKNOWN),
        ("08006", False, Outcome.UNKNOWN),
        ("40003", True, Outcome.UNKNOWN),
        ("57P01", False, Outcome.UNKNOWN),
        ("XX000", True, Outcome.UNKNOWN),
        ("57P03", False, Outcome.UNKNOWN),
        ("57P03", True, Outcome.FAIL),
        ("57014", True, Outcome.FAIL),
        ("40001", True, Outcome.FAIL),
        ("40001", False, Outcome.FAIL),
        ("23505", True, Outcome.FAIL),
        ("53200", True, Outcome.FAIL),
    ],
)
def test_what_an_error_at_commit_means(sqlstate: str | None, alive: bool, outcome: Outcome) -> None:
    assert outcome_at_commit(sqlstate, alive) is outcome


LIES = {
    "append": (
        "list0",
        "IF random() < 0.05 THEN NEW.v := OLD.v; END IF; RETURN NEW",
        {Name.LOST, Name.STALE_READ, Name.INTERNAL},
    ),
    "register": ("register", "IF random() < 0.05 THEN NEW.v := OLD.v; END IF; RETURN NEW", {Name.STALE_READ}),
    "bank": ("account", "IF random() < 0.05 THEN NEW.balance := NEW.balance + 1; END IF; RETURN NEW", {Name.TOTAL}),
    "unique": ("item", "IF random() < 0.2 THEN NEW.row := OLD.row; END IF; RETURN NEW", {Name.LOST, Name.STALE_READ}),
}


@pytest.mark.parametrize("workload", LIES)
def test_a_database_that_lies_is_found_out(workload: str, quick_stock: Server) -> None:
    """A trigger changes a few rows behind the clients' backs."""
    table, body, wanted = LIES[workload]
    run = Run(workload, "repeatable-read", [quick_stock.dsn], clients=4, limit=TRANSACTIONS).start()
    with quick_stock.connect() as owner:
        owner.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(run.schema)))
        owner.execute(
            f"CREATE FUNCTION lie() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$;"
            f"CREATE TRIGGER lie BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION lie()".encode()
        )
    report = run.finish()
    assert report.verdict.names & wanted, str(report)
    assert report.stored is not None
    assert checker.main([str(report.stored)]) == 1
    forget(report)


@pytest.mark.timeout(180)
def test_clients_that_hear_nothing_are_cut_off(quick_stock: Server) -> None:
    clients = 4
    run = Run("append", "repeatable-read", [quick_stock.dsn], clients=clients, patience=2.0).start()
    more(run)
    with quick_stock.connect() as owner:
        found = owner.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'histories'").fetchall()
    # one more, perhaps: the session that made the tables may not have ended yet, and nobody misses it
    stopped = [int(str(pid)) for (pid,) in found]
    missed = len(run.backends() & set(stopped))  # of a client that is just connecting there is none yet
    assert missed
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: run.lost_connections() >= missed)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    more(run)
    report = run.stop()
    assert report.good, str(report)


def test_the_command(quick_stock: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--workload", "all", "--transactions", "100", "--clients", "2", "--dsn", quick_stock.dsn]
    assert command([*arguments, "--dsn", quick_stock.dsn, "--keep", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for workload in WORKLOADS:
        assert f"{workload} repeatable-read: " in out
    assert out.count("anomalies 0") == len(WORKLOADS)
    files = list(tmp_path.iterdir())
    assert len(files) == len(WORKLOADS)
    for file in files:
        assert checker.main([str(file)]) == 0
    names = [file.stem for file in files]
    with quick_stock.connect() as owner:
        left = owner.execute("SELECT count(*) FROM pg_namespace WHERE nspname = ANY(%s)", (names,)).fetchone()
    assert left == (0,)


def test_a_query_processor_that_is_away_in_the_end_is_a_problem(
    quick_stock: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"postgresql://admin@127.0.0.1:{free_port()}/postgres"
    arguments = ["--workload", "bank", "--transactions", "100", "--clients", "2", "--heal", "0.5"]
    assert command([*arguments, "--dsn", quick_stock.dsn, "--dsn", nobody]) == 2
    assert "problem: no final read through DSN 2" in capsys.readouterr().out
    assert command([*arguments, "--dsn", nobody]) == 2
    assert "the tables could not be created" in capsys.readouterr().err


def test_an_unknown_level_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["--level", "chaos", "--dsn", "x"])
    assert ended.value.code == 2
    assert "invalid choice: 'chaos'" in capsys.readouterr().err
