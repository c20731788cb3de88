"""Garbage on every port, wrong passwords, wrong databases: refused in bounded time, and the cluster serves on."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import stat
import struct
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.fixtures.servers import Server

WAIT = 15.0


def listening_ports(server: Server) -> list[int]:
    """The ports of the cluster: the router's and the query processor's."""
    return sorted({urlsplit(url).port or 0 for url in (server.dsn, server.direct_dsn) if url})


def garbage(seed: int) -> list[tuple[str, bytes]]:
    rng = random.Random(seed)
    return [
        ("nothing", b""),
        ("one byte", b"\x00"),
        ("random", rng.randbytes(1000)),
        ("much random", rng.randbytes(1 << 20)),
        ("zeros", bytes(100_000)),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("TLS hello", bytes.fromhex("1603010200010001fc0303") + rng.randbytes(500)),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("length zero", struct.pack(">I", 0)),
        ("negative length", struct.pack(">i", -5) + b"abc"),
        ("huge length", struct.pack(">II", 0x7FFFFFFF, 196608) + b"user\0admin\0"),
        ("short startup", struct.pack(">II", 8, 196608)),
        ("unknown protocol", struct.pack(">II", 8, 4 << 16)),
        ("no terminator", struct.pack(">II", 20, 196608) + b"user\0admin\0x"),
        ("SSLRequest, then garbage", struct.pack(">II", 8, 80877103) + rng.randbytes(300)),
        ("GSSENCRequest, then garbage", struct.pack(">II", 8, 80877104) + rng.randbytes(300)),
        ("cancel of nobody", struct.pack(">IIII", 16, 80877102, 12345, 67890)),
        ("cancel, long key", struct.pack(">III", 300, 80877102, 1) + rng.randbytes(288)),
        ("many parameters", startup({f"p{i}": "x" * 50 for i in range(300)})),
        ("garbage for a password", startup({"user": "admin", "database": "postgres"}) + b"p" + rng.randbytes(400)),
        ("query before login", startup({"user": "admin"}) + b"Q" + struct.pack(">I", 13) + b"SELECT 1\0"),
    ]


def startup(parameters: dict[str, str]) -> bytes:
    body = b"".join(f"{k}\0{v}\0".encode() for k, v in parameters.items()) + b"\0"
    return struct.pack(">II", len(body) + 8, 196608) + body


def answer(port: int, data: bytes) -> bytes:
    """Send, half-close, read what comes until the server closes; bounded in time and size."""
    out = b""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as s, contextlib.suppress(ConnectionError):
        s.sendall(data)
        try:
            s.shutdown(socket.SHUT_WR)
        except OSError as error:  # the server has closed already
            if error.errno != errno.ENOTCONN:
                raise
        while (chunk := s.recv(65536)) and len(out) < 1 << 20:
            out += chunk
    return out


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [name for name, _ in garbage(1)])
def test_garbage(name: str, australis: Server) -> None:
    data = dict(garbage(1))[name]
    for port in listening_ports(australis):
        said = answer(port, data)
        assert b"Traceback" not in said
        assert len(said) < 100_000
    with australis.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def send_garbage(path: Path, data: bytes) -> None:
    """To a stream or packet socket; until it closes, or for a second (a service may wait for the rest of a frame)."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as s:
            s.settimeout(1.0)
            try:
                s.connect(str(path))
            except OSError as error:
                if error.errno == errno.EPROTOTYPE:
                    continue
                raise
            with contextlib.suppress(ConnectionError, TimeoutError):
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
            return


def test_garbage_on_unix_sockets(australis: Server) -> None:
    """The services' sockets are for the cluster's own user; their owner sends garbage, and all goes on."""
    with australis.connect() as connection:
        row = connection.execute("SHOW australis.run_directory").fetchone()
    assert row is not None
    tried = 0
    for entry in Path(str(row[0])).iterdir():
        if not stat.S_ISSOCK(entry.stat().st_mode):
            continue
        for data in (b"\xff" * 64, random.Random(3).randbytes(5000), struct.pack("<I", 0xFFFFFFFF) + b"x"):
            send_garbage(entry, data)
        tried += 1
    assert tried >= 2
    with australis.connect() as connection:
        connection.execute("CREATE TEMP TABLE after_garbage (a int)")
        connection.execute("CREATE TABLE IF NOT EXISTS after_garbage_too (a int PRIMARY KEY)")
        connection.execute("INSERT INTO after_garbage_too VALUES (1)")
        assert connection.execute("SELECT count(*) FROM after_garbage_too").fetchone() == (1,)
        connection.execute("DROP TABLE after_garbage_too")


@pytest.mark.parametrize("path", ["router", "direct"])
@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"password": "wrong"}, "password authentication failed for user"),
        ({"password": ""}, "password"),
        ({"user": "nobody_here", "password": "x"}, "password authentication failed for user|does not exist"),
        ({"dbname": "no_such_database"}, 'database "no_such_database" does not exist'),
        ({"options": "-c nonsense_setting=1"}, "unrecognized configuration parameter"),
        ({"options": "-c work_mem=lots"}, "invalid value for parameter"),
    ],
)
def test_wrong_login(path: str, change: dict[str, str], pattern: str, australis: Server) -> None:
    url = australis.direct_dsn if path == "direct" else australis.dsn
    info = psycopg.conninfo.make_conninfo(url, **change, connect_timeout=10)
    with pytest.raises(psycopg.OperationalError, match=pattern):
        psycopg.connect(info)
    with australis.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_many_half_open_connections(australis: Server) -> None:
    """Connections that never say anything do not keep others out."""
    port = listening_ports(australis)[-1] if len(listening_ports(australis)) == 1 else urlsplit(australis.dsn).port
    assert port is not None
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=WAIT))
        with australis.connect() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_broken_messages_after_login(australis: Server) -> None:
    """A logged-in client that sends nonsense loses its session, nobody else does."""
    with australis.connect() as other:
        with australis.connect() as victim:
            raw = socket.socket(fileno=os.dup(victim.fileno()))
            raw.sendall(b"\xfe\xff\xff\xff\xff" + bytes(100))
            with pytest.raises(psycopg.OperationalError):
                victim.execute("SELECT 1")
            raw.close()
        assert other.execute("SELECT 1").fetchone() == (1,)
