"""Candidates and their lease on real servers: real processes that are killed, stopped, cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from australis.adjudicator.lease import TTL_SECONDS
from tests.fixtures.nats import NatsServers, scratch_name

ROOT = Path(__file__).parents[2]
BOUND = TTL_SECONDS + 20.0
"""Seconds; the machine may be busy. Without a time to live nobody would ever follow."""

Candidates = Callable[[str], "Candidate"]


class Candidate:
    """One process."""

    def __init__(self, servers: NatsServers, key: str, holder: str) -> None:
        settings = servers.settings("unused")
        arguments = [",".join(settings.servers), str(settings.replicas), key, holder]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.journal.candidate", *arguments], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert self.line() == "waits"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def says_nothing(self) -> bool:
        """So far."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        try:
            return self.process.stdout.read() is None
        finally:
            os.set_blocking(self.process.stdout.fileno(), True)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@pytest.fixture(params=["nats1", "nats3"])
def candidate(request: pytest.FixtureRequest) -> Iterator[Candidates]:
    """Starts candidates for one lease."""
    servers: NatsServers = request.getfixturevalue("one_server" if request.param == "nats1" else "three_servers")
    key, started = scratch_name(), []

    def start(holder: str) -> Candidate:
        started.append(Candidate(servers, key, holder))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        assert one.process.stdout is not None
        one.process.stdout.close()


def test_a_killed_holder_is_followed(candidate: Candidates) -> None:
    first = candidate("first")
    assert first.line() == "acquired"
    second = candidate("second")
    first.signal(signal.SIGKILL)
    first.process.wait()
    begin = time.monotonic()
    assert second.line() == "acquired"
    assert time.monotonic() - begin < BOUND
    third = candidate("third")
    time.sleep(TTL_SECONDS + 1)  # it is renewed: nobody follows a holder that lives
    assert third.says_nothing()


def test_a_stopped_holder_is_followed_and_learns_it(candidate: Candidates) -> None:
    first = candidate("first")
    assert first.line() == "acquired"
    second = candidate("second")
    first.signal(signal.SIGSTOP)
    begin = time.monotonic()
    assert second.line() == "acquired"
    assert time.monotonic() - begin < BOUND
    first.signal(signal.SIGCONT)
    assert first.line() == "lost"
    assert first.process.wait(BOUND) == 0
    assert second.says_nothing()  # the one that lost it has not given it away


def test_the_same_name_has_its_own_lease_again_at_once(candidate: Candidates) -> None:
    first = candidate("first")
    assert first.line() == "acquired"
    second = candidate("second")
    first.signal(signal.SIGSTOP)  # so that its connection is not seen to end
    again = candidate("first")
    assert again.line() == "acquired"
    assert second.says_nothing()
