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

Clocks: the kernel offsets none but the monotonic and boot clocks per namespace, so what is started with `skewed=True`
gets clock.c preloaded, which shifts what programs read as real time; `set_clock` moves it, also while they run. (Not
libfaketime: with its release 0.9.10 every time.sleep of Python fails with EINVAL once the monotonic clock is to be
left alone.) Programs that don't ask the C library for the time, as those in Go, keep the right time. Delays need the
kernel's netem.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import tempfile
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


@dataclass(frozen=True)
class Host:
    """One host. `name` is its namespace, `address` its IPv4 address among the others, `clock` the file of its clock's
    error."""

    name: str
    address: str
    clock: Path

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` here (it becomes the command itself: same pid)."""
        return ["ip", "netns", "exec", self.name, *command]

    def set_clock(self, seconds: float) -> None:
        """From now on the real time of what was started `skewed` is so much off."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("=q", round(seconds * 1e9)))  # 8 bytes in place: readers have it mapped

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment of a program with this host's clock."""
        env = dict(base if base is not None else os.environ)
        env.update(LD_PRELOAD=str(self.clock.with_name("clock.so")), AUSTRALIS_TEST_CLOCK=str(self.clock))
        return env

    def run(
        self, command: Sequence[str], *, skewed: bool = False, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; output captured."""
        return subprocess.run(
            self.command(command),
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self.environment() if skewed else None,
            timeout=timeout,
        )

    def start(self, command: Sequence[str], *, skewed: bool = False, **popen: Any) -> subprocess.Popen[str]:
        """Start and go on; killed when the network is left. `popen`: arguments of subprocess.Popen."""
        popen.setdefault("stdin", subprocess.DEVNULL)
        if skewed:
            popen["env"] = self.environment(popen.get("env"))
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
        self._stem, self._size = stem, hosts
        self.hosts: list[Host] = []
        self._files: tempfile.TemporaryDirectory[str] | None = None
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
        self._files = tempfile.TemporaryDirectory(prefix="au-hosts-")
        directory = Path(self._files.name)
        directory.chmod(0o755)  # servers drop root
        _compile(Path(__file__).with_name("clock.c"), directory / "clock.so")
        for number in range(1, self._size + 1):
            clock = directory / f"clock{number}"
            clock.write_bytes(bytes(8))
            self.hosts.append(Host(f"{self._stem}-{number}", f"{SUBNET}.{number}", clock))
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
        if self._files is not None:
            self._files.cleanup()

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


def _compile(source: Path, library: Path) -> None:
    if shutil.which("gcc") is None:
        raise Unavailable("gcc not found")
    done = subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)


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
