"""Hosts in network namespaces, joined by a bridge: run commands in them, cut them off from each other, heal.

    with Network(3) as network:
        one, two, three = network.hosts
        server = one.start(["australis", "run", …])      # reachable at one.address from the other hosts
        network.cut(one, two)                             # both ways; `one_way=True`: from the first to the second only
        network.heal()

Must hold: nothing of it is visible in the machine's own network (the bridge lives in a namespace of its own); whatever
a network has made is gone when it is left, processes included; what a killed test run left behind is cleared by the
next one (names carry the pid of their maker). `why_not()` says why this machine can't have any: tests skip with that
reason.

A cut is silent, as a broken cable is: the sender's neighbour table gets a permanent entry for the other with a
hardware address that nobody has. It needs no packet filter. Frames that are on their way arrive.

Clocks: the kernel offsets none but the monotonic and boot clocks per namespace, so `clock` (seconds) preloads
libfaketime (Debian: libfaketime), which shifts what programs read as real time, of the whole tree of processes; the
monotonic clock stays. AUSTRALIS_TEST_FAKETIME names its library if it is elsewhere. Delays need the kernel's netem.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PREFIX = "australis-test"
NOBODY = "02:00:00:00:00:01"  # a locally administered address that no interface gets
SUBNET = "10.213.0"
FAKETIME_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")

_numbers = count()


class Unavailable(RuntimeError):
    """This machine lacks what is asked for; the message is for people."""


def _ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode and check:
        raise Unavailable(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@cache
def why_not() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip not found: install iproute2"
    try:
        with Network(2):
            return None
    except Unavailable as error:
        return f"no network namespaces here: {error}"


@cache
def faketime() -> Path:
    """libfaketime for programs with threads. Unavailable says what to install."""
    named = os.environ.get("AUSTRALIS_TEST_FAKETIME")
    found = [Path(named)] if named else []
    for folder in FAKETIME_FOLDERS:
        found += sorted(Path(folder).glob("**/faketime/libfaketimeMT.so.1"))
    for path in found:
        if path.exists():
            return path
    raise Unavailable("libfaketime not found: install libfaketime, or set AUSTRALIS_TEST_FAKETIME=<library>")


@dataclass(frozen=True)
class Host:
    """One host. `name` is its namespace, `address` its IPv4 address among the others."""

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` here (it becomes the command itself: same pid)."""
        return ["ip", "netns", "exec", self.name, *command]

    def environment(self, clock: float = 0.0, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment of a program whose real time is `clock` seconds off. Unavailable without libfaketime."""
        env = dict(base if base is not None else os.environ)
        if clock:
            env.update(LD_PRELOAD=str(faketime()), FAKETIME=f"{clock:+f}", FAKETIME_DONT_FAKE_MONOTONIC="1")
        return env

    def run(
        self, command: Sequence[str], *, clock: float = 0.0, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; output captured."""
        return subprocess.run(
            self.command(command),
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self.environment(clock),
            timeout=timeout,
        )

    def start(self, command: Sequence[str], *, clock: float = 0.0, **popen: Any) -> subprocess.Popen[str]:
        """Start and go on; killed when the network is left. `popen`: arguments of subprocess.Popen."""
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen.setdefault("env", self.environment(clock))
        return subprocess.Popen(self.command(command), text=True, **popen)

    def processes(self) -> list[int]:
        """Pids of everything that runs here."""
        return [int(pid) for pid in _ip("netns", "pids", self.name, check=False).split()]


class Network:
    """A few hosts (at most 200) that reach each other, and nothing else."""

    def __init__(self, hosts: int) -> None:
        if not 1 <= hosts <= 200:
            raise ValueError(f"{hosts} hosts")
        stem = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._switch = f"{stem}-switch"
        self.hosts = [Host(f"{stem}-{n}", f"{SUBNET}.{n}") for n in range(1, hosts + 1)]
        self._cut: set[tuple[Host, Host]] = set()

    def __enter__(self) -> Self:
        clear_left_behind()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for number, host in enumerate(self.hosts, 1):
            port = f"port{number}"
            _ip("netns", "add", host.name)
            _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        for host in self.hosts:
            _remove(host.name)
        _remove(self._switch)

    # ------------------------------------------------------------------ faults

    def cut(self, one: Host, other: Host, *, one_way: bool = False) -> None:
        """Nothing gets from one to the other any more; nor back, unless `one_way`."""
        for source, target in ((one, other),) if one_way else ((one, other), (other, one)):
            _ip(
                "-n",
                source.name,
                "neigh",
                "replace",
                target.address,
                "lladdr",
                NOBODY,
                "dev",
                "eth0",
                "nud",
                "permanent",
            )
            self._cut.add((source, target))

    def partition(self, *groups: Sequence[Host]) -> None:
        """Hosts of different groups don't reach each other; what was cut inside a group stays cut."""
        for some, others in combinations(groups, 2):
            for one in some:
                for other in others:
                    self.cut(one, other)

    def isolate(self, host: Host) -> None:
        """Cut one host off from all others."""
        self.partition([host], [other for other in self.hosts if other != host])

    def heal(self) -> None:
        """Undo all cuts."""
        for source, target in self._cut:
            _ip("-n", source.name, "neigh", "del", target.address, "dev", "eth0")
        self._cut.clear()

    def delay(self, host: Host, milliseconds: float) -> None:
        """Everything that this host sends takes so much longer; 0: as usual. Unavailable without the kernel's netem."""
        if shutil.which("tc") is None:
            raise Unavailable("tc not found: install iproute2")
        change = ["replace", "dev", "eth0", "root", "netem", "delay", f"{milliseconds}ms"]
        if not milliseconds:
            change = ["delete", "dev", "eth0", "root"]
        done = host.run(["tc", "qdisc", *change])
        if done.returncode:
            raise Unavailable(f"the kernel has no netem: {done.stderr.strip()}")


def _namespaces() -> Iterator[str]:
    for line in _ip("netns", "list").splitlines():
        name = line.split(" ")[0]
        if name.startswith(PREFIX + "-"):
            yield name


def clear_left_behind() -> None:
    """Remove what test runs made that are dead by now."""
    for name in _namespaces():
        pid = name.removeprefix(PREFIX + "-").split("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _remove(name)


def _remove(name: str) -> None:
    """Kill what runs in a namespace of ours, and delete it; nothing if there is none."""
    if name not in _namespaces():
        return
    while pids := _ip("netns", "pids", name, check=False).split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if all(_is_dead(int(pid)) for pid in pids):  # somebody's zombies: they hold nothing
            break
    _ip("netns", "delete", name)


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True
