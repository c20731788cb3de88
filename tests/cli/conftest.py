"""A cluster of a test's own, driven through the command line alone.

Must hold: whatever a test starts is gone afterwards, also when it fails. Started by root the cluster runs as another
user, so directories lie where that user can go (not below pytest's own, which are closed).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

COMMAND_SECONDS = 90.0


@dataclass
class Australis:
    """The command `australis` on one data directory."""

    data: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "australis", command, "--data", str(self.data), *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            env={**os.environ, **self.environment},
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"australis {command}: {done.stderr}\n{self.log()}")
        return done

    def refused(self, command: str, *arguments: str) -> str:
        """The one line of a command that must fail."""
        done = self(command, *arguments, check=False)
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr, done.stderr
        lines = [line for line in done.stderr.splitlines() if line]
        assert lines[-1].startswith("Error: "), lines
        return lines[-1].removeprefix("Error: ")

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self("status", "--json", check=False).stdout)
        return content

    def sql(self, statement: str) -> str:
        return self("psql", "--direct", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement).stdout.strip()

    def log(self) -> str:
        return "\n".join(file.read_text()[-4000:] for file in sorted(self.data.glob("logs/*.log")))

    def pids(self) -> dict[str, int]:
        """Pids of the supervisor and of its services."""
        content = self.status()
        return {"supervisor": content["pid"]} | {
            name: service["pid"] for name, service in content["services"].items() if service["pid"]
        }


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory that every user can reach."""
    path = Path(tempfile.mkdtemp(prefix="australis-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def australis_command(directory: Path) -> Iterator[Australis]:
    """A cluster not yet made, on plain PostgreSQL: what is tested is the launcher, not the engine."""
    command = Australis(directory / "data", {"AUSTRALIS_TEST_PLAIN": "1"})
    yield command
    stop_all(command)


def stop_all(command: Australis) -> None:
    """Stop the cluster, by force if need be."""
    lock = command.data / "lock"
    if lock.exists() and command("stop", check=False).returncode != 0:
        content = lock.read_text().strip()
        if content:
            os.kill(int(content), signal.SIGKILL)


@pytest.fixture
def running(australis_command: Australis) -> Australis:
    """A cluster that runs."""
    australis_command("start", "--detach")
    return australis_command
