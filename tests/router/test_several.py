"""Several routers for the same query processors, query processors of other hosts, and a router that leaves."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest

from tests.router.conftest import PASSWORD, Backend, StartRouter, eventually


def test_two_routers_hand_over_to_one_query_processor(
    start_router: StartRouter, backend: Backend, directory: Path
) -> None:
    routers = [start_router(number=number, handover_socket=directory / f"h{number}.sock") for number in range(2)]
    sessions = [router.connect() for router in routers for _ in range(3)]
    for session in sessions:
        assert session.execute("SELECT current_user").fetchone() == ("admin",)
    for router in routers:
        status = router.status()
        assert (status["sessions"], status["relayed"]) == (3, 0)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        routers[1].connect(password="wrong")
    # the directory of the query processor is emptied: the links are made again
    for number in range(2):
        (backend.run / f"handover-{number:02d}.sock").unlink()
    sessions.append(routers[1].connect())
    assert sessions[-1].execute("SELECT 1").fetchone() == (1,)
    for session in sessions:
        session.close()
    for router in routers:
        eventually(router.idle, "all sessions have ended")


def test_a_router_that_leaves_takes_no_session_with_it(
    start_router: StartRouter, backend: Backend, directory: Path
) -> None:
    router = start_router(number=7, handover_socket=directory / "h7.sock")
    with router.connect() as session:
        session.execute("SELECT 1")
        router.leave()
        assert session.execute("SELECT 2").fetchone() == (2,)
    with pytest.raises(psycopg.OperationalError):
        router.connect()


def test_a_query_processor_of_another_host(
    start_router: StartRouter, backend: Backend, directory: Path, certificate: tuple[Path, Path]
) -> None:
    gone = "127.0.0.1:1"  # nobody listens; passed over
    router = start_router(
        upstreams=(gone, f"127.0.0.1:{backend.cluster.port}"),
        handover_socket=directory / "h8.sock",
        tls_certificate=certificate[0],
        tls_key=certificate[1],
    )
    for sslmode in ("disable", "require"):
        with router.connect(user="joan", sslmode=sslmode) as session:
            assert session.execute("SELECT current_user").fetchone() == ("joan",)
            eventually(lambda: router.status()["sessions"] == 1, "it is counted")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                router.connect(user="joan", password=PASSWORD + "x", sslmode=sslmode)
        eventually(router.idle, "the session has ended")


def test_cancel_reaches_a_query_processor_of_another_host(
    start_router: StartRouter, backend: Backend, directory: Path
) -> None:
    router = start_router(upstreams=(f"127.0.0.1:{backend.cluster.port}",), handover_socket=directory / "h9.sock")
    with router.connect() as session:
        running = threading.Event()

        def cancel() -> None:
            running.wait()
            eventually(lambda: _active(backend), "the statement runs")
            session.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        running.set()
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("SELECT pg_sleep(600)")
        canceller.join()
        assert session.execute("SELECT 1").fetchone() == (1,)


def _active(backend: Backend) -> bool:
    with backend.maintenance() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(600)%'"
            " AND pid <> pg_backend_pid()"
        ).fetchone()
    return row is not None and row[0] == 1
