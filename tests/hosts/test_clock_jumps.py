"""The product on a host whose clock jumps, forwards and back, under load: isolation and real-time order hold.

Clients run on the same host with the right clock; nothing of the verdict depends on the clock that jumps.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.servers import free_port, temporary_directory
from tests.hosts.network import Host, Network, why_not

JUMPS = (600.0, -600.0, 1200.0, 0.0)  # seconds; the cluster is made at the first


@pytest.fixture
def host() -> Iterator[Host]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Network(1) as network:
        yield network.hosts[0]


@pytest.mark.timeout(240)
def test_clock_jumps_under_load(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_directory("jumps") as directory:
        australis = [sys.executable, "-m", "australis"]
        data = ["--data", str(directory / "data")]
        host.set_clock(JUMPS[0])
        started = host.run([*australis, "start", *data, "--port", str(free_port()), "--detach"], skewed=True)
        assert started.returncode == 0, started.stderr
        try:
            url = host.run([*australis, "url", *data]).stdout.strip()
            for jump in JUMPS[1:]:
                load = host.start(
                    [sys.executable, "-m", "tests.histories", "--transactions", "600", "--dsn", url],
                    stdout=subprocess.PIPE,
                    cwd=Path(__file__).parents[2],
                )
                host.set_clock(jump)
                said, _ = load.communicate()
                with capsys.disabled():
                    print(f"\nclock {jump:+.0f} s\n{said}", end="")
                assert load.returncode == 0
                shown = host.run([sys.executable, "-c", ASK, url])
                assert abs(float(shown.stdout) - jump) < 60, shown.stderr  # the jump did reach the database
        finally:
            host.run([*australis, "stop", *data])


ASK = """
import sys, time, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    print(connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()[0] - time.time())
"""
