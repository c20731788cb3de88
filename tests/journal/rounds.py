"""Rounds of faults under load: servers killed and stopped, answers lost, rivals; one oracle for all of it.

A round keeps one owner appending while a fault happens and is repaired, and requires that appending goes on afterwards.
A rival takes over by claiming; the old owner must then say that it was fenced. Everything is checked at the end of each
round: by a fresh reader, against all that all owners of this journal were ever told.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from australis.errors import FencedError
from tests.fixtures.nats import NatsServers, Relay, relay
from tests.journal.engines import NatsEngine
from tests.journal.owner import History, Owner, check

FAULTS_ONE = ("kill", "stop", "lost answers", "rival")
FAULTS_THREE = (
    "kill leader",
    "kill all",
    "stop leader",
    "kill follower",
    "lost answers",
    "rival",
    "rival, leader dead",
)
STOPPED_SECONDS = 10.0
"""How long a stopped leader stays so: long enough for another to be elected, then it comes back as a zombie."""


@dataclass
class Rounds:
    """A journal on servers, and what its owners did in all rounds."""

    directory: Path
    servers: NatsServers
    seed: int = 0
    say: Callable[[str], None] = print
    stalls: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from each fault until something was durable again."""

    def __post_init__(self) -> None:
        self.engine = NatsEngine(self.directory, self.servers)
        self.engine.max_bytes = 1 << 30
        self.history = History(seed=self.seed)
        self._relays: list[Relay] = []

    def run(self, faults: list[str]) -> None:
        """One round per fault."""
        import contextlib

        with contextlib.ExitStack() as stack:
            self._relays = [stack.enter_context(relay(server.port)) for server in self.servers.servers]
            owner = self._owner()
            for fault in faults:
                owner = self._round(owner, fault)
            owner.close()
        self._check()

    def _owner(self) -> Owner:
        self.engine.ports = [between.port for between in self._relays]
        owner = self.engine.owner(self.history)
        self.engine.ports = None
        return owner

    def _round(self, owner: Owner, fault: str) -> Owner:
        going = threading.Event()
        going.set()
        load = threading.Thread(target=owner.run, args=(going.is_set,))
        load.start()
        try:
            self._wait_more(owner)
            started = time.monotonic()
            durable = owner.durable
            rival = self._fault(fault)
            if rival is None:
                self._wait_more(owner, durable)
                self.stalls.setdefault(fault, []).append(time.monotonic() - started)
                self._wait_more(owner)
        finally:
            going.clear()
            load.join()
        if rival is not None:
            error = owner.wait_failed()
            assert isinstance(error, FencedError), error
            owner.close()
            owner = rival
        else:
            owner.wait()
        self._check()
        return owner

    def _wait_more(self, owner: Owner, than: int | None = None) -> None:
        """Until more is durable than before, by some records."""
        wanted = (owner.durable if than is None else than) + 20
        owner.append(b"to have one more")
        owner.wait(wanted) if owner.appended[-1].position.sequence >= wanted else self._spin(owner, wanted)

    @staticmethod
    def _spin(owner: Owner, wanted: int) -> None:
        deadline = time.monotonic() + 90
        while owner.durable < wanted:
            assert owner.failure is None, owner.failure
            assert time.monotonic() < deadline, "appending does not go on"
            time.sleep(0.01)

    def _fault(self, fault: str) -> Owner | None:
        """Let it happen, and repair it; returns the rival if there is one."""
        servers, stream = self.servers, self.engine.stream
        if fault in ("kill", "kill all"):
            servers.kill()
            servers.start()
        elif fault == "stop":
            servers.signal(0, signal.SIGSTOP)
            time.sleep(3)  # what is tested is being stopped for some time
            servers.signal(0, signal.SIGCONT)
        elif fault == "kill leader":
            leader = servers.leader(stream)
            servers.kill(leader)
            servers.leader(stream)
            servers.start(leader)
        elif fault == "kill follower":
            follower = (servers.leader(stream) + 1) % len(servers.servers)
            servers.kill(follower)
            servers.start(follower)
        elif fault == "stop leader":
            leader = servers.leader(stream)
            servers.signal(leader, signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)
            servers.signal(leader, signal.SIGCONT)
        elif fault == "lost answers":
            for between in self._relays:
                between.swallow()
            time.sleep(0.1)
            for between in self._relays:
                between.cut()
        elif fault == "rival":
            return self._owner()
        elif fault == "rival, leader dead":
            leader = servers.leader(stream)
            servers.kill(leader)
            try:
                return self._owner()
            finally:
                servers.start(leader)
        else:
            raise ValueError(fault)
        return None

    def _check(self) -> None:
        self.engine.ports = None
        check(self.history, self.engine.read())

    def summary(self) -> str:
        """What was done, in a line."""
        owners = self.history.owners
        durable = sum(sum(1 for one in owner.appended if one.position.sequence <= owner.durable) for owner in owners)
        appended = sum(len(owner.appended) for owner in owners)
        stalls = ", ".join(
            f"{fault} {min(seconds):.1f}-{max(seconds):.1f} s" for fault, seconds in sorted(self.stalls.items())
        )
        return (
            f"{self.engine.name}: {len(owners)} owners appended {appended} records, {durable} reported durable, "
            f"0 lost, 0 twice, 0 after fencing; goes on after {stalls}"
        )
