"""The two servers of a comparison, each started as its users start it.

Stock PostgreSQL: the same binaries, fsync on, default settings but for shared_buffers (a quarter of it would be usual;
the value is written into the report). Australis: `australis start` in a fresh directory.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from australis.errors import AustralisError
from australis.query_processor import installation

STOCK_SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
}
START_SECONDS = 60.0
SETTLE_SECONDS = 300.0


class BenchError(AustralisError):
    """The comparison cannot go on; one line."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def program(name: str) -> str:
    return installation.find(extension=False).program(name)


def environment(url: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """PG* variables for this URL; all others of PG* are removed."""
    parts = urlsplit(url)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    env.update(
        PGHOST=parts.hostname or "127.0.0.1",
        PGPORT=str(parts.port or 5432),
        PGUSER=unquote(parts.username or "admin"),
        PGDATABASE=unquote(parts.path.lstrip("/")) or "postgres",
        PGSSLMODE="disable",
    )
    if parts.password:
        env["PGPASSWORD"] = unquote(parts.password)
    env.update(extra or {})
    return env


def psql(url: str, statement: str, *, stdin: Path | None = None, timeout: float = 1800) -> str:
    """Run statements with psql; output without decoration. Raises BenchError."""
    with stdin.open("rb") if stdin else open(os.devnull, "rb") as source:
        done = subprocess.run(
            [program("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement],
            env=environment(url),
            stdin=source,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    if done.returncode:
        raise BenchError(f"{statement[:80]}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


@dataclass
class Stock:
    """PostgreSQL 18 as it is, durable."""

    directory: Path
    settings: Mapping[str, str] = field(default_factory=lambda: dict(STOCK_SETTINGS))
    url: str = ""
    _process: subprocess.Popen[bytes] | None = None
    name: str = "PostgreSQL"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        user, group, groups = _identity()
        if user is not None:
            os.chown(self.directory, user, group or 0)
        data = self.directory / "data"
        command = [program("initdb"), "-D", str(data), "-U", "admin", "-A", "trust", "--locale=C", "-E", "UTF8"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.directory,
            user=user,
            group=group,
            extra_groups=groups,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"initdb failed: {done.stderr.strip()[-300:]}")
        port = free_port()
        options = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            **self.settings,
        }
        server = [program("postgres"), "-D", str(data)]
        for key, value in options.items():
            server += ["-c", f"{key}={value}"]
        log = self.directory / "log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                server,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                user=user,
                group=group,
                extra_groups=groups,
            )
        self.url = f"postgresql://admin@127.0.0.1:{port}/postgres"
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psql(self.url, "SELECT 1")
                return
            except BenchError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"stock PostgreSQL did not start: {log.read_text()[-300:]}") from error
                time.sleep(0.1)  # a starting process: nothing to wait on

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(10)
        self._process = None


@dataclass
class Australis:
    """An embedded cluster, driven by its command line. `driver` and `tls` need a restart to change."""

    directory: Path
    url: str = ""
    direct_url: str = ""
    driver: str = "attached"
    certificate: tuple[Path, Path] | None = None
    name: str = "Australis"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.certificate:
            chain, key = self.certificate
            text = f'[tls]\ncertificate = "{chain}"\nkey = "{key}"\n'
            (self.directory / "data" / "australis.toml").write_text(text)
        self._command("start", "--port", str(free_port()), "--detach")
        self.url = self._command("url").splitlines()[-1]
        self.direct_url = self._command("url", "--direct").splitlines()[-1]

    def stop(self) -> None:
        if (self.directory / "data").exists():
            self._command("stop")

    def settle(self) -> None:
        """Wait until storage has applied everything and writes no snapshot. Raises BenchError."""
        deadline = time.monotonic() + SETTLE_SECONDS
        quiet = 0
        while quiet < 2 and time.monotonic() < deadline:
            time.sleep(0.5)  # longer than the interval at which storage looks whether a snapshot is due
            storage = json.loads(self._command("status", "--json"))["storage"]
            busy = storage["snapshot_running"] or storage["lag"] > 0
            quiet = 0 if busy else quiet + 1
        if quiet < 2:
            raise BenchError(f"Australis did not finish writing what was loaded within {SETTLE_SECONDS:.0f} s")

    def restart(self, *, driver: str = "attached", certificate: tuple[Path, Path] | None = None) -> None:
        self.stop()
        self.driver, self.certificate = driver, certificate
        (self.directory / "data" / "australis.toml").unlink(missing_ok=True)
        self.start()

    def supervisor_pid(self) -> int:
        """The process that all others descend from; published as word 10 of the shared page."""
        page = (self.directory / "data" / "run" / "page").read_bytes()
        return int.from_bytes(page[80:88], "little")

    def _command(self, verb: str, *arguments: str) -> str:
        command = [sys.executable, "-m", "australis", verb, "--data", str(self.directory / "data"), *arguments]
        log = self.directory / "command-output"
        with log.open("wb") as out:  # a pipe would be kept open by the detached cluster
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "AUSTRALIS_STORAGE_DRIVER": self.driver},
                cwd=self.directory,
                timeout=120,
                check=False,
            )
        said = log.read_text().strip()
        if done.returncode:
            raise BenchError(f"australis {verb} failed: {said[-300:]}")
        return said


def _identity() -> tuple[int | None, int | None, list[int] | None]:
    """Root can't run PostgreSQL: an unprivileged user then."""
    if os.geteuid() != 0:
        return None, None, None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid, []
    raise BenchError("running as root, and there is no unprivileged user (postgres, nobody) to run PostgreSQL as")
