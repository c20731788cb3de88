"""A stock PostgreSQL with `postgres/session.c` and nothing else, and routers in processes of their own in front of it.

Must hold: whatever is started is stopped; PostgreSQL and routers run as the same unprivileged user, as in the product,
because a backend and its router check each other's.  Every router must end with nothing left in its event loop.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.postgres import server_include_directory
from tests.fixtures.servers import StockCluster, unprivileged

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PASSWORD = "correct horse"
FLAGS = ("-O2", "-g", "-fPIC", "-shared", "-fno-strict-aliasing", "-fwrapv", "-Wall", "-Wextra", "-Werror")
NOISE = ("-Wno-unused-parameter", "-Wno-sign-compare")  # PostgreSQL's own headers


def eventually(condition: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Poll: what is waited for happens in another process, which can't notify us."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Reachable for the unprivileged user, unlike pytest's own temporary directories."""
    path = Path(tempfile.mkdtemp(prefix="router-", dir="/tmp"))
    path.chmod(0o755)
    if (ids := unprivileged()) is not None:
        os.chown(path, *ids)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@dataclass
class Backend:
    """The query processor behind the router."""

    cluster: StockCluster

    @property
    def run(self) -> Path:
        return self.cluster.directory

    @property
    def upstream(self) -> Path:
        return self.run / f".s.PGSQL.{self.cluster.port}"

    def maintenance(self) -> psycopg.Connection[tuple[Any, ...]]:
        """By the Unix socket, without a token: as the cluster's own user, whose right it is."""
        return psycopg.connect(
            host=str(self.run), port=self.cluster.port, user="admin", dbname="postgres", autocommit=True
        )

    def backends(self) -> int:
        with self.maintenance() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
        assert row is not None
        return int(row[0])


def start_backend(where: Path) -> Backend:
    module = where.parent / "session_only.so"
    if not module.exists():
        sources = [str(HERE / "session_only.c"), str(ROOT / "postgres" / "session.c")]
        include = [f"-I{server_include_directory()}", f"-I{ROOT / 'postgres'}"]
        subprocess.run(["gcc", *FLAGS, *NOISE, *include, *sources, "-o", str(module)], check=True)
    cluster = StockCluster(
        where,
        settings={
            "shared_preload_libraries": str(module),
            "australis.run_directory": str(where),
            "unix_socket_permissions": "0777",
            "max_connections": "100",
            "log_min_messages": "warning",
            "password_encryption": "scram-sha-256",
        },
    )
    cluster.start()
    backend = Backend(cluster)
    with backend.maintenance() as connection:
        connection.execute(f"ALTER ROLE admin PASSWORD '{PASSWORD}'")
        connection.execute(f"CREATE ROLE joan LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("CREATE ROLE nologin PASSWORD 'x'")
        connection.execute("CREATE ROLE without_password LOGIN")
        connection.execute("SET password_encryption = 'md5'")
        connection.execute(f"CREATE ROLE old LOGIN PASSWORD '{PASSWORD}'")
        (where / "data" / "pg_hba.conf").write_text(
            "local all,replication all trust\nhost all,replication all 127.0.0.1/32 scram-sha-256\n"
        )
        connection.execute("SELECT pg_reload_conf()")
    return backend


@pytest.fixture(scope="session")
def backend(directory: Path) -> Iterator[Backend]:
    backend = start_backend(directory / "qp")
    yield backend
    backend.cluster.stop()


@pytest.fixture(scope="session")
def certificate(directory: Path) -> tuple[Path, Path]:
    """Self-signed; certificate and key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl program to make a certificate")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    if (ids := unprivileged()) is not None:
        os.chown(key, *ids)
    return certificate, key


class RouterProcess:
    """A router; `serve_router.py` says what it answers."""

    def __init__(self, settings: dict[str, Any], loop: str, log: Path) -> None:
        self.settings = settings
        self.log = log
        # it drops privileges itself: an unprivileged user may not be able to start this interpreter
        ids = [str(one) for one in unprivileged() or ()]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "serve_router.py"), json.dumps(settings, default=str), loop, *ids],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.kill()
            raise AssertionError(f"the router did not start:\n{log.read_text()[-2000:]}")
        self.port = int(line)

    def _ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the router died:\n{self.log.read_text()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def status(self) -> dict[str, Any]:
        return self._ask("status")

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def idle(self) -> bool:
        status = self.status()
        return bool(status["pending"] == status["sessions"] == status["relayed"] == 0)

    def close(self) -> None:
        """Nothing may be left in the event loop, and nothing may have gone wrong unseen."""
        self._ask("close")
        assert self.process.wait(15) == 0, self.log.read_text()
        self._pipes()

    def leave(self) -> None:
        """End without the sessions that were handed over."""
        self._ask("leave")
        assert self.process.wait(15) == 0, self.log.read_text()
        self._pipes()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._pipes()

    def _pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def dsn(self, **more: object) -> str:
        parameters: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "admin",
            "password": PASSWORD,
            "dbname": "postgres",
            "connect_timeout": 20,
            **more,
        }
        return psycopg.conninfo.make_conninfo("", **parameters)

    def connect(self, **more: object) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.dsn(**more), autocommit=True)

    def raw(self, *, tls: bool) -> socket.socket:
        """A raw connection that is ready for its startup packet, encrypted or not."""
        sock = self.socket()
        if not tls:
            return sock
        try:
            sock.sendall((8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"))
            assert sock.recv(1) == b"S"
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return context.wrap_socket(sock)  # takes the descriptor over
        except BaseException:
            sock.close()
            raise

    def socket(self) -> socket.socket:
        """A raw TCP connection; every wait on it is bounded."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


StartRouter = Callable[..., RouterProcess]


@pytest.fixture
def start_router(backend: Backend, directory: Path) -> Iterator[StartRouter]:
    """Start routers with settings of RouterConfig; they are closed, and must close cleanly, at the end of the test."""
    started: list[RouterProcess] = []

    def start(loop: str = "uvloop", **settings: Any) -> RouterProcess:
        router = RouterProcess(
            {"upstreams": (backend.upstream,), "handover_socket": backend.run / "handover.sock", "port": 0, **settings},
            loop,
            directory / "router.log",
        )
        started.append(router)
        return router

    yield start
    try:
        for router in started:
            if router.process.poll() is None:
                router.close()
    finally:
        for router in started:
            router.kill()
