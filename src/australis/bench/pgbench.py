"""One run of pgbench, and what it said."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class ClientFailed(RuntimeError):
    """pgbench could not do its work."""


@dataclass(frozen=True)
class Figures:
    """Of one run. Failed transactions gave up after their last try; retries are tries beyond the first."""

    tps: float
    latency_ms: float
    transactions: int
    failed: int
    retries: int

    @property
    def abort_share(self) -> float:
        """Aborted tries per try."""
        aborted = self.retries + self.failed
        return aborted / max(1, self.transactions + aborted)


_NUMBER = r"([0-9.]+)"


def parse(output: str) -> Figures:
    """Read pgbench's summary. Raises ClientFailed if there is none."""

    def number(pattern: str, default: float | None = None) -> float:
        match = re.search(pattern, output)
        if match:
            return float(match.group(1))
        if default is None:
            raise ClientFailed(f"no {pattern!r} in pgbench's output: {output[-300:]}")
        return default

    return Figures(
        tps=number(rf"tps = {_NUMBER}"),
        latency_ms=number(rf"latency average = {_NUMBER} ms"),
        transactions=int(number(r"number of transactions actually processed: (\d+)")),
        failed=int(number(r"number of failed transactions: (\d+)", 0)),
        retries=int(number(r"total number of retries: (\d+)", 0)),
    )


@dataclass(frozen=True)
class Client:
    """How pgbench reaches a server."""

    program: str
    environment: Mapping[str, str]

    def command(
        self,
        script: Path | None,
        *,
        clients: int,
        seconds: float,
        builtin: str | None = None,
        rate: float | None = None,
        variables: Mapping[str, int] | None = None,
    ) -> list[str]:
        threads = min(clients, os.cpu_count() or 1)
        command = [self.program, "-n", "-M", "prepared", "-c", str(clients), "-j", str(threads)]
        command += ["-T", str(max(1, round(seconds))), "--max-tries=100", "--random-seed=1"]
        if builtin:
            command += ["-b", builtin]
        elif script is not None:
            command += ["-f", str(script)]
        if rate:
            command += ["-R", str(rate)]
        for name, value in (variables or {}).items():
            command += ["-D", f"{name}={value}"]
        return command

    def run(self, command: list[str], seconds: float) -> Figures:
        try:
            done = subprocess.run(
                command,
                env=dict(self.environment),
                capture_output=True,
                text=True,
                timeout=seconds + 120,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClientFailed("pgbench did not end") from error
        if done.returncode:
            raise ClientFailed((done.stderr.strip() or done.stdout.strip())[-400:])
        return parse(done.stdout)

    def background(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=dict(self.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
