"""Clients, backends and processes that misbehave: nothing leaks, nothing crashes, and whoever can be told is told.

Each test ends with the router closing cleanly (the fixture checks its event loop), and most compare its descriptors,
tasks and memory with those before.
"""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.router.conftest import Backend, RouterProcess, StartRouter, eventually, start_backend

V3 = (3 << 16).to_bytes(4, "big")
SSL_REQUEST = b"\0\0\0\x08" + (80877103).to_bytes(4, "big")
GSS_REQUEST = b"\0\0\0\x08" + (80877104).to_bytes(4, "big")


def startup(**parameters: str) -> bytes:
    pairs = {"user": "admin", "database": "postgres", **parameters}
    body = V3 + b"".join(f"{k}\0{v}\0".encode() for k, v in pairs.items()) + b"\0"
    return (len(body) + 4).to_bytes(4, "big") + body


def everything(sock: socket.socket) -> bytes:
    """What arrives until the peer closes; a reset is an end, too."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            data += part
    return data


@contextlib.contextmanager
def unchanged(router: RouterProcess) -> Iterator[None]:
    """Descriptors and tasks come back to what they were."""
    eventually(router.idle, "idle before")
    before = router.status()

    def same() -> bool:
        now = router.status()
        return all(now[name] == before[name] for name in ("pending", "sessions", "relayed", "tasks", "descriptors"))

    yield
    eventually(same, f"as before: {before}", 30)
    assert router.status()["lost"] == []


@pytest.fixture(params=["uvloop", "asyncio"])
def router(request: pytest.FixtureRequest, start_router: StartRouter, certificate: tuple[Path, Path]) -> RouterProcess:
    return start_router(request.param, tls_certificate=certificate[0], tls_key=certificate[1])


# clients


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0\0\0\0",
        b"\0\0\0\x04",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff" + b"x" * 100_000,
        (10_005).to_bytes(4, "big") + V3 + b"x" * 9_997,
        b"\x16\x03\x01\x02\x00" + b"\0" * 600,
        b"\0\0\0\x10" + (80877102).to_bytes(4, "big") + b"\0\0\0\x01\0\0\0\x01",
        b"\0\0\0\x0c" + (80877102).to_bytes(4, "big") + b"\0\0\0\x01",
        SSL_REQUEST + b"not a handshake at all" * 10,
    ],
)
def test_garbage_is_closed_or_refused(router: RouterProcess, data: bytes) -> None:
    with unchanged(router):
        for _ in range(20):
            with router.socket() as sock:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    sock.sendall(data)
                answer = everything(sock)
                assert answer[:1] in (b"", b"E", b"S", b"\x15"), answer  # nothing, an error, TLS and its alert


def test_malformed_parameters_are_refused(router: RouterProcess) -> None:
    with unchanged(router), router.socket() as sock:
        body = V3 + b"user\0admin"
        sock.sendall((len(body) + 4).to_bytes(4, "big") + body)
        answer = everything(sock)
    assert b"C08P01\0" in answer
    assert b"Minvalid startup packet layout: expected terminator as last byte\0" in answer


def test_other_protocols(router: RouterProcess) -> None:
    for code, start in (((2 << 16), b"EFATAL:  unsupported"), ((4 << 16), b"E\0\0\0")):
        with router.socket() as sock:
            sock.sendall(b"\0\0\0\x09" + code.to_bytes(4, "big") + b"\0")
            answer = everything(sock)
            assert answer.startswith(start)
            assert f"unsupported frontend protocol {code >> 16}.0".encode() in answer


def test_no_user(router: RouterProcess) -> None:
    """An error from before the hand-over is PostgreSQL's own and passed on."""
    with unchanged(router), router.socket() as sock:
        sock.sendall(b"\0\0\0\x09" + V3 + b"\0")
        assert b"Mno PostgreSQL user name specified in startup packet\0" in everything(sock)


def test_encryption_is_negotiated_in_any_order(start_router: StartRouter) -> None:
    router = start_router()
    for first, second in ((SSL_REQUEST, GSS_REQUEST), (GSS_REQUEST, SSL_REQUEST)):
        with router.socket() as sock:
            sock.sendall(first)
            assert sock.recv(1) == b"N"
            sock.sendall(second)
            assert sock.recv(1) == b"N"
            sock.sendall(first)
            assert b"unsupported frontend protocol 1234." in everything(sock)


def test_plain_text_behind_a_tls_request_is_refused(router: RouterProcess) -> None:
    with unchanged(router), router.socket() as sock:
        sock.sendall(SSL_REQUEST + startup())
        assert b"Mreceived unencrypted data after SSL request\0" in everything(sock)


def test_direct_tls_needs_alpn(router: RouterProcess) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with unchanged(router), router.socket() as raw, context.wrap_socket(raw) as sock:
        sock.sendall(startup())
        assert sock.recv(100) == b""
    context.set_alpn_protocols(["postgresql"])
    with unchanged(router), router.socket() as raw, context.wrap_socket(raw) as sock:
        sock.sendall(startup())
        assert b"SCRAM-SHA-256\0" in sock.recv(100)


def test_ten_megabytes_of_garbage(router: RouterProcess) -> None:
    before = router.memory()
    with unchanged(router):
        for first in (b"", SSL_REQUEST):
            for _ in range(5):
                with router.socket() as sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    sock.sendall(first + random.Random(1).randbytes(10_000_000))
    assert router.memory() < before + 20_000_000


def test_ten_megabytes_instead_of_a_password(router: RouterProcess) -> None:
    with unchanged(router), router.socket() as sock:
        sock.sendall(startup())
        assert b"SCRAM-SHA-256" in sock.recv(100)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(b"p\x7f\xff\xff\xff" + b"x" * 10_000_000)
        everything(sock)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_on_every_socket(router: RouterProcess, backend: Backend, seed: int) -> None:
    numbers = random.Random(seed)
    kinds: tuple[Callable[[], socket.socket], ...] = (
        router.socket,
        lambda: _unix(backend.run / "handover.sock", socket.SOCK_SEQPACKET),
        lambda: _unix(backend.upstream, socket.SOCK_STREAM),
    )
    with unchanged(router):
        for connect in kinds:
            for _ in range(30):
                with connect() as sock:
                    sock.settimeout(0.05)
                    with contextlib.suppress(OSError):
                        start = numbers.choice([b"", startup(), b"AUH1", b"AUH1" + b"0" * 32, SSL_REQUEST])
                        sock.sendall(start + numbers.randbytes(numbers.randrange(200)))
                        sock.recv(1000)
    with router.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def _unix(path: Path, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.connect(str(path))
    return sock


def test_slow_and_silent_clients_are_dropped(start_router: StartRouter, certificate: tuple[Path, Path]) -> None:
    router = start_router(login_timeout=1.0, tls_certificate=certificate[0], tls_key=certificate[1])
    with unchanged(router):
        silent, half, tls, loris = (router.socket() for _ in range(4))
        half.sendall(startup()[:20])
        tls.sendall(SSL_REQUEST)
        with pytest.raises(OSError):
            for byte in startup() * 10:
                loris.sendall(bytes([byte]))
                time.sleep(0.05)  # being slow is the attack
        for sock in (silent, half, loris):
            assert everything(sock) == b""
        assert everything(tls) in (b"S", b"S\x15\x03\x03\x00\x02\x02\x28")
        for sock in (silent, half, tls, loris):
            sock.close()


def test_silent_clients_are_bounded(start_router: StartRouter) -> None:
    router = start_router(max_pending=10)
    with unchanged(router):
        silent = [router.socket() for _ in range(10)]
        eventually(lambda: router.status()["pending"] == 10, "all are waiting")
        with pytest.raises(psycopg.OperationalError):
            router.connect(sslmode="disable")
        for sock in silent:
            sock.close()
    router.connect().close()


def test_too_many_sessions(start_router: StartRouter, certificate: tuple[Path, Path]) -> None:
    router = start_router(max_connections=3, tls_certificate=certificate[0], tls_key=certificate[1])
    with unchanged(router):
        held = [router.connect(sslmode=how) for how in ("disable", "require", "disable")]
        for how in ("disable", "require"):
            with pytest.raises(psycopg.OperationalError, match="FATAL:  sorry, too many clients already"):
                router.connect(sslmode=how)
        held.pop().close()
        eventually(lambda: router.status()["sessions"] == 2, "one has left")
        held.append(router.connect())
        for connection in held:
            connection.close()


def test_too_fast(start_router: StartRouter) -> None:
    router = start_router(connection_rate=0.01, connection_burst=2)
    router.connect().close()
    router.connect().close()
    with pytest.raises(psycopg.OperationalError, match="rate exceeded"):
        router.connect()


def test_thousands_come_and_go(router: RouterProcess, backend: Backend) -> None:
    """Connect and vanish at every stage of a login, with and without a reset."""
    numbers = random.Random(7)
    router.connect().close()
    memory = router.memory()
    stages = (b"", b"\0", SSL_REQUEST, SSL_REQUEST + b"\x16\x03\x01", startup()[:9], startup())
    with unchanged(router):
        for i in range(3000):
            # a started backend costs milliseconds of this machine: one in ten is enough
            stage = stages[numbers.randrange(len(stages))] if i % 10 == 0 else stages[numbers.randrange(5)]
            with router.socket() as sock:
                if i % 3 == 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(OSError):
                    sock.sendall(stage)
    eventually(lambda: backend.backends() == 0, "all backends have noticed", 60)
    assert router.memory() < memory + 20_000_000


def test_hundreds_of_sessions(start_router: StartRouter, certificate: tuple[Path, Path], backend: Backend) -> None:
    router = start_router(max_logins=8, tls_certificate=certificate[0], tls_key=certificate[1])
    failed: list[str] = []

    def client(how: str) -> None:
        for _ in range(15):
            try:
                with router.connect(sslmode=how) as connection:
                    connection.execute("SELECT 1")
            except psycopg.Error as error:
                failed.append(str(error))

    with unchanged(router):
        threads = [threading.Thread(target=client, args=(("disable", "require")[i % 2],)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("how", ["disable", "require"])
def test_a_client_that_does_not_read(
    loop: str, how: str, start_router: StartRouter, certificate: tuple[Path, Path], backend: Backend
) -> None:
    """Backpressure: a relay buffers no more than its marks, the backend waits."""
    router = start_router(loop, handover=False, tls_certificate=certificate[0], tls_key=certificate[1])
    router.connect(sslmode=how).close()
    before = router.memory()
    with unchanged(router), router.connect(sslmode=how) as connection:
        connection.pgconn.send_query(b"SELECT repeat('x', 1000000) FROM generate_series(1, 200)")

        def waits_to_write() -> bool:
            with backend.maintenance() as other:
                row = other.execute(
                    "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", (connection.info.backend_pid,)
                ).fetchone()
            return row == ("ClientWrite",)

        eventually(waits_to_write, "the backend waits for its client")
        assert router.memory() < before + 20_000_000
        connection.pgconn.finish()
    eventually(lambda: backend.backends() == 0, "the backend is gone")


def test_half_close(start_router: StartRouter) -> None:
    """A client that only says that it has nothing more to say still gets its answers, as from PostgreSQL."""
    for handover in (True, False):
        router = start_router(handover=handover)
        with unchanged(router), router.socket() as sock:
            sock.sendall(startup())
            sock.shutdown(socket.SHUT_WR)
            assert b"SCRAM-SHA-256\0" in everything(sock)
        router.close()


# the query processor


def test_postgresql_down_and_back(directory: Path, start_router: StartRouter, certificate: tuple[Path, Path]) -> None:
    own = start_backend(directory / "another")
    try:
        router = start_router(
            upstreams=(own.upstream,),
            handover_socket=own.run / "handover.sock",
            tls_certificate=certificate[0],
            tls_key=certificate[1],
        )
        with unchanged(router):
            router.connect().close()
            own.cluster.stop()
            for how in ("disable", "require"):
                # at once: the client's patience is shorter than the router's with those that log in
                with pytest.raises(psycopg.OperationalError, match="FATAL:  the database system is not available"):
                    router.connect(sslmode=how)
            # its fixture knocks by TCP, without a password
            (own.run / "data" / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
            own.cluster.start()
            for how in ("disable", "require"):
                router.connect(sslmode=how).close()
    finally:
        own.cluster.stop()


class FakePostmaster:
    """Listens where PostgreSQL would and treats each login as the test says."""

    def __init__(self, where: Path, behave: Callable[[socket.socket, str, Path], None]) -> None:
        self.upstream = where / ".s.PGSQL.1"
        self.handover = where / "handover.sock"
        self._behave = behave
        self.failures: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.upstream))
        self.upstream.chmod(0o777)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                sock, _ = self._listener.accept()
                with sock:
                    length = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
                    fields = sock.recv(length - 4, socket.MSG_WAITALL)[4:].split(b"\0")
                    try:
                        assert fields[0] == b"australis.session_token"
                        self._behave(sock, fields[1].decode(), self.handover)
                    except (AssertionError, OSError) as error:
                        self.failures.append(error)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.upstream.unlink()


def present(handover: Path, token: str) -> tuple[socket.socket, bytes, list[int]]:
    sock = _unix(handover, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    sock.sendall(b"AUH1" + token.encode())
    data, control, _flags, _address = sock.recvmsg(100, socket.CMSG_SPACE(4))
    descriptors = array.array("i")
    for _level, _kind, rights in control:
        descriptors.frombytes(rights)
    return sock, data, list(descriptors)


def dies_at_once(sock: socket.socket, token: str, handover: Path) -> None:
    pass


def dies_with_the_descriptor(sock: socket.socket, token: str, handover: Path) -> None:
    control, data, descriptors = present(handover, token)
    assert (data, len(descriptors)) == (b"H", 1)
    control.close()
    os.close(descriptors[0])


def presents_its_token_twice(sock: socket.socket, token: str, handover: Path) -> None:
    control, data, descriptors = present(handover, token)
    assert data == b"H"
    other, answer, nothing = present(handover, token)
    assert (answer, nothing) == (b"N", [])
    other.close()
    control.sendall(b"something else")
    control.close()
    os.close(descriptors[0])


def trusts_anyone(sock: socket.socket, token: str, handover: Path) -> None:
    """PostgreSQL without our extension."""
    sock.sendall(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")
    sock.settimeout(2)
    with contextlib.suppress(TimeoutError):
        assert sock.recv(1) == b"", "a client came through that nobody has asked for a password"


@pytest.mark.parametrize("handover", [True, False])
def test_a_query_processor_without_its_hook_lets_nobody_in(
    handover: bool, start_router: StartRouter, directory: Path
) -> None:
    where = directory / f"trusting-{handover}"
    where.mkdir()
    where.chmod(0o777)
    fake = FakePostmaster(where, trusts_anyone)
    try:
        router = start_router(
            upstreams=(fake.upstream,), handover_socket=fake.handover, handover=handover, login_timeout=1.0
        )
        with unchanged(router), router.socket() as sock:
            sock.sendall(startup() + b"Q\0\0\0\x0dSELECT 1\0")
            assert everything(sock)[:1] in (b"E", b"")
    finally:
        fake.close()
    assert fake.failures == []


@pytest.mark.parametrize("behave", [dies_at_once, dies_with_the_descriptor, presents_its_token_twice])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_backend_that_dies_during_the_hand_over(
    behave: Any, loop: str, start_router: StartRouter, directory: Path
) -> None:
    where = directory / f"fake-{behave.__name__}-{loop}"
    where.mkdir()
    where.chmod(0o777)
    fake = FakePostmaster(where, behave)
    try:
        router = start_router(loop, upstreams=(fake.upstream,), handover_socket=fake.handover)
        # at once: the client's patience is shorter than the router's with those that log in
        unavailable = pytest.raises(psycopg.OperationalError, match="FATAL:  the database system is not available")
        with unchanged(router), unavailable:
            router.connect()
    finally:
        fake.close()
    assert fake.failures == []


@pytest.mark.parametrize("how", ["handed over", "relayed"])
def test_a_query_processor_that_hangs(how: str, start_router: StartRouter, directory: Path) -> None:
    done = threading.Event()

    def hang(sock: socket.socket, token: str, handover: Path) -> None:
        done.wait(30)

    where = directory / f"hanging-{how[:3]}"
    where.mkdir()
    where.chmod(0o777)
    fake = FakePostmaster(where, hang)
    try:
        router = start_router(
            upstreams=(fake.upstream,), handover_socket=fake.handover, login_timeout=1.0, handover=how == "handed over"
        )
        with unchanged(router):
            with pytest.raises(psycopg.OperationalError):
                router.connect()
            # meanwhile a second one waits for its turn, and leaves before
            with router.socket() as sock:
                sock.sendall(startup())
            done.set()
    finally:
        done.set()
        fake.close()
