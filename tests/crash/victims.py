"""What can be killed, and how it comes back.

Pids come from where the processes themselves publish them: the shared page (docs/formats.md §7) and postmaster.pid;
only pids of this cluster's own processes are ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.fixtures.servers import AustralisCluster, CannotStart, Server, StockCluster

COMMIT_WORD, STORAGE_WORD = 9, 10
ORPHAN_SECONDS = 30.0


class Victim(Protocol):
    """A cluster whose processes can be killed."""

    targets: tuple[str, ...]

    def kill(self, target: str, rng: random.Random) -> list[int]:
        """Kill, returning the pids; empty if the target has no process at the moment."""

    def revive(self, target: str) -> Server:
        """Start again what does not come back by itself; where to connect afterwards."""


def _kill(pids: list[int]) -> list[int]:
    killed = []
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        except ProcessLookupError:
            continue
    return killed


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def gone(pids: Iterable[int], deadline: float) -> bool:
    """Wait until these processes have ended and their parents know; False when monotonic `deadline` came first."""
    for pid in pids:
        while _alive(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)  # not our children: nothing to wait on
    return True


def _postmaster(data: Path) -> int | None:
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    return pid if _alive(pid) else None


def children(pid: int | None) -> list[int]:
    """Processes whose parent this is."""
    out = []
    for stat in Path("/proc").glob("[0-9]*/stat") if pid is not None else ():
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            out.append(int(stat.parent.name))
    return out


def _client_backends(pid: int | None) -> list[int]:
    out = []
    for child in children(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if title.startswith(b"postgres: admin "):
            out.append(child)
    return out


def _working_in(directory: Path) -> list[int]:
    """Processes with this working directory: a server's own, also those whose parent is gone."""
    out = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or it is somebody else's
            if (process / "cwd").readlink() == directory:
                out.append(int(process.name))
    return out


@dataclass
class AustralisVictim:
    """All processes of an embedded cluster."""

    cluster: AustralisCluster
    targets: tuple[str, ...] = ("backend", "postmaster", "commit", "supervisor", "all")

    def _page(self, word: int) -> int | None:
        try:
            raw = (self.cluster.data / "run" / "page").read_bytes()[word * 8 : word * 8 + 8]
        except FileNotFoundError:
            return None
        pid = struct.unpack("<q", raw)[0] if len(raw) == 8 else 0
        return pid if pid > 0 and _alive(pid) else None

    def kill(self, target: str, rng: random.Random) -> list[int]:
        postmaster = _postmaster(self.cluster.data / "query_processor" / "data")
        commit, supervisor = self._page(COMMIT_WORD), self._page(STORAGE_WORD)
        match target:
            case "backend":
                backends = _client_backends(postmaster)
                chosen = [rng.choice(backends)] if backends else []
            case "postmaster":
                chosen = [postmaster] if postmaster else []
            case "commit":
                chosen = [commit] if commit else []
            case "supervisor":
                chosen = [supervisor] if supervisor else []
            case _:
                chosen = [p for p in (supervisor, commit, postmaster, *children(postmaster)) if p]
                rng.shuffle(chosen)
        return _kill(chosen)

    def revive(self, target: str) -> Server:
        return self.cluster.start() if target in ("supervisor", "all") else self.cluster.server()


@dataclass
class StockVictim:
    """Stock PostgreSQL: the harness's own check (its fsync is off, but killed processes lose no written page)."""

    cluster: StockCluster
    server: Server
    targets: tuple[str, ...] = ("backend", "postmaster")

    def kill(self, target: str, rng: random.Random) -> list[int]:
        postmaster = _postmaster(self.cluster.directory / "data")
        if target == "backend":
            backends = _client_backends(postmaster)
            return _kill([rng.choice(backends)] if backends else [])
        return _kill([postmaster] if postmaster else [])

    def revive(self, target: str) -> Server:
        if target == "postmaster":
            self.cluster.stop()
            # PostgreSQL refuses to start where orphans of the last postmaster still hold its shared memory
            if not gone(_working_in(self.cluster.directory / "data"), time.monotonic() + ORPHAN_SECONDS):
                raise CannotStart(f"backends outlived their postmaster by {ORPHAN_SECONDS:.0f} s")
            self.server = self.cluster.start()
        return self.server
