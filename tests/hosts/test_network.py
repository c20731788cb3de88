"""The hosts themselves: they reach each other, can be cut off and healed, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.network import PREFIX, Host, Network, Unavailable, clear_left_behind, why_not

PROBE = [sys.executable, str(Path(__file__).with_name("probe.py"))]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Network(3) as network:
        yield network


class Listener:
    """Prints what arrives at a host, in order."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._process = host.start([*PROBE, "listen"], stdout=subprocess.PIPE)
        assert self.next() == "ready"

    def next(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def send(source: Host, target: Host, text: str) -> None:
    done = source.run([*PROBE, "send", target.address, text])
    assert done.returncode == 0, done.stderr  # a cut is silent


@pytest.fixture
def listeners(network: Network) -> Iterator[list[Listener]]:
    out = [Listener(host) for host in network.hosts]
    yield out
    network.heal()
    for listener in out:
        listener.stop()


def test_hosts_reach_each_other(network: Network, listeners: list[Listener]) -> None:
    for listener in listeners:
        for source in network.hosts:
            send(source, listener.host, f"from {source.name}")
            assert listener.next() == f"from {source.name}"


def test_hosts_reach_nothing_else(network: Network) -> None:
    routes = network.hosts[0].run(["ip", "route"]).stdout
    assert "default" not in routes


def test_a_cut_and_its_healing(network: Network, listeners: list[Listener]) -> None:
    one, two, three = network.hosts
    at_one, at_two, at_three = listeners
    network.cut(one, two)
    send(one, two, "lost")
    send(two, one, "lost")
    send(one, three, "by the way")
    assert at_three.next() == "by the way"
    send(three, two, "from three")
    assert at_two.next() == "from three"
    network.heal()
    send(one, two, "again")
    send(two, one, "back")
    assert (at_two.next(), at_one.next()) == ("again", "back")


def test_a_cut_in_one_direction(network: Network, listeners: list[Listener]) -> None:
    one, two, _ = network.hosts
    at_one, at_two, _ = listeners
    network.cut(one, two, one_way=True)
    send(one, two, "lost")
    send(two, one, "arrives")
    assert at_one.next() == "arrives"
    network.heal()
    send(one, two, "again")
    assert at_two.next() == "again"


def test_an_isolated_host(network: Network, listeners: list[Listener]) -> None:
    one, two, three = network.hosts
    network.isolate(one)
    for other in (two, three):
        send(one, other, "lost")
        send(other, one, "lost")
    send(two, three, "the rest goes on")
    assert listeners[2].next() == "the rest goes on"
    network.heal()
    send(two, one, "again")
    assert listeners[0].next() == "again"


def test_a_connection_survives_a_short_cut(network: Network) -> None:
    one, two, _ = network.hosts
    server = two.start([*PROBE, "serve"], stdout=subprocess.PIPE)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    client = one.start([*PROBE, "talk", two.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with server, client:
        assert client.stdin is not None and client.stdout is not None

        def say(text: str) -> None:
            assert client.stdin is not None
            client.stdin.write(text + "\n")
            client.stdin.flush()

        say("before")
        assert client.stdout.readline() == "before\n"
        network.cut(one, two)
        say("meanwhile")
        network.heal()
        assert client.stdout.readline() == "meanwhile\n"
        client.stdin.close()
    assert (client.returncode, server.returncode) == (0, 0)


def test_a_clock_that_is_off_and_jumps(network: Network) -> None:
    host, other, _ = network.hosts
    process = host.start([*PROBE, "clocks"], skewed=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None and process.stdout is not None
        for clock in (0.0, 3600.5, -3600.5):
            host.set_clock(clock)
            before = (time.time(), time.monotonic())
            process.stdin.write("now\n")
            process.stdin.flush()
            real, monotonic = map(float, process.stdout.readline().split())
            after = (time.time(), time.monotonic())
            assert before[0] + clock - 0.001 <= real <= after[0] + clock + 0.001
            assert before[1] <= monotonic <= after[1]
        process.stdin.close()
    assert process.returncode == 0
    asked = other.run([*PROBE, "clocks", "once"], skewed=True)  # its own clock is right
    assert before[0] <= float(asked.stdout.split()[0]) <= time.time(), asked.stderr
    host.set_clock(0)


def test_a_delay(network: Network) -> None:
    one, two, _ = network.hosts
    try:
        network.delay(one, 1.0)
    except Unavailable as error:
        pytest.skip(str(error))
    assert "delay 1ms" in one.run(["tc", "qdisc", "show", "dev", "eth0"]).stdout
    network.delay(one, 0)
    assert "netem" not in one.run(["tc", "qdisc", "show", "dev", "eth0"]).stdout
    assert "netem" not in two.run(["tc", "qdisc", "show", "dev", "eth0"]).stdout


def namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return [line.split(" ")[0] for line in listed.splitlines()]


def test_nothing_is_left(network: Network) -> None:
    with Network(2) as other:
        assert len([n for n in namespaces() if n.startswith(other.hosts[0].name[:-2])]) == 3
        process = other.hosts[0].start(["sh", "-c", "echo there; exec sleep 600"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as said:
            assert said.readline().strip() in ("there", b"there")  # before, it is on its way
        assert process.pid in other.hosts[0].processes()
    assert process.wait() == -9
    assert not [n for n in namespaces() if n.startswith(other.hosts[0].name[:-2])]


def test_what_a_killed_run_left_is_cleared(network: Network) -> None:
    program = (
        "import os, subprocess; from tests.hosts.network import Network; n = Network(2); n.__enter__();"
        "quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"  # they outlive who waits for our output
        "p = n.hosts[0].start(['sleep', '600'], **quiet); print(os.getpid(), p.pid, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=False)
    maker, sleeper = done.stdout.split()
    left = f"{PREFIX}-{maker}-"
    assert len([n for n in namespaces() if n.startswith(left)]) == 3
    clear_left_behind()
    assert not [n for n in namespaces() if n.startswith(left)]
    stat = Path(f"/proc/{sleeper}/stat")
    assert not stat.exists() or " Z " in stat.read_text()
    assert network.hosts[0].name in namespaces()  # who lives is left alone
    assert str(os.getpid()) in network.hosts[0].name
