"""Crash runs short enough for CI, and the checker held to planted damage."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.crash.check import State, check
from tests.crash.load import START_BALANCE, Client, Outcome
from tests.crash.run import Run
from tests.crash.victims import AustralisVictim, StockVictim
from tests.fixtures.servers import AustralisCluster, CannotStart, Server, StockCluster, temporary_directory

KILLS = int(os.environ.get("AUSTRALIS_TEST_KILLS", "10"))

LOGGED_IN = b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I"
"""AuthenticationOk, ReadyForQuery."""

GOOD = State({1: START_BALANCE - 5, 2: START_BALANCE + 5}, [(0, 1, 1, 2, 5)], [(7, 1, 0, 2)], {1: 5})
TOLD: Mapping[int, Mapping[int, Outcome]] = {0: {1: Outcome.ACKNOWLEDGED, 2: Outcome.UNKNOWN, 3: Outcome.REFUSED}}


def test_the_checker_accepts_what_is_right() -> None:
    assert check(GOOD, TOLD).good
    assert check(replace(GOOD, log=[]), TOLD).good  # the unknown one did not commit


@pytest.mark.parametrize(
    ("damaged", "finding"),
    [
        (replace(GOOD, balances={1: START_BALANCE, 2: START_BALANCE}, history=[], history_by_index={}), "lost"),
        (replace(GOOD, history=[*GOOD.history, (0, 3, 1, 2, 0)]), "ghosts"),
        (replace(GOOD, history=[*GOOD.history, (0, 9, 1, 2, 0)]), "ghosts"),
        (replace(GOOD, balances={1: START_BALANCE, 2: START_BALANCE + 5}), "half"),
        (replace(GOOD, history=[*GOOD.history, *GOOD.history]), "half"),
        (replace(GOOD, log=[(7, 2, 0, 2)]), "half"),
        (replace(GOOD, history_by_index={1: 4}), "half"),
    ],
)
def test_the_checker_finds_planted_damage(damaged: State, finding: str) -> None:
    assert getattr(check(damaged, TOLD), finding)


@pytest.mark.timeout(180)
def test_the_harness_finds_nothing_wrong_with_stock(capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_directory("crash") as directory:
        cluster = StockCluster(directory)
        try:
            server = cluster.start()
            report = Run(StockVictim(cluster, server), server, clients=3, seed=2).go(4, StockVictim.targets, say=False)
        finally:
            cluster.stop()
    with capsys.disabled():
        print(f"\nstock {report}")
    assert report.good, str(report)


def test_a_client_survives_a_session_that_breaks_at_its_first_statement() -> None:
    """Where a backend that is killed between login and the first answer leaves its client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)  # a client that died does not connect
        port = listener.getsockname()[1]
        client = Client(0, lambda: Server("stock", f"postgresql://admin@127.0.0.1:{port}/postgres?sslmode=disable"), 1)
        client.start()
        try:
            for _ in range(2):  # the second one shows that it came back
                session, _address = listener.accept()
                with session:
                    session.recv(4096)  # the startup message
                    session.sendall(LOGGED_IN)
                    assert b"statement_timeout" in session.recv(4096)
            client.pause()
        finally:
            client.stop()
            listener.close()
            client.join()
    assert client.failure is None
    assert client.counts.errors["connection lost"] >= 2


@pytest.mark.timeout(60 + 30 * KILLS)
def test_kills_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_directory("crash") as directory:
        cluster = AustralisCluster(directory, driver=os.environ.get("AUSTRALIS_STORAGE_DRIVER"))
        try:
            try:
                server = cluster.start()
            except CannotStart as error:
                if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
                    raise
                pytest.skip(str(error))
            victim = AustralisVictim(cluster)
            report = Run(victim, server, clients=4, seed=1).go(KILLS, victim.targets, say=False)
        finally:
            cluster.stop()
    with capsys.disabled():
        print(f"\n{report}")
    assert report.good, str(report)
