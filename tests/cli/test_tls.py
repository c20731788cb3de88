"""Encrypted connections to the product, as docs/configuration.md says, and every way to get the files wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.cli.conftest import Australis, stop_all

pytestmark = pytest.mark.timeout(180)

CONFIGURATION = '[tls]\ncertificate = "server.crt"\nkey = "server.key"\n'


def openssl(*arguments: str | Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl program to make a certificate")
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True)


def make_certificate(data: Path) -> None:
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost", "-keyout", data / "server.key", "-out", data / "server.crt"),
    )


@pytest.fixture
def configured(directory: Path) -> Iterator[Australis]:
    """A directory with a configuration and its certificate, before the first start."""
    command = Australis(directory / "data")
    command.data.mkdir()
    (command.data / "australis.toml").write_text(CONFIGURATION)
    make_certificate(command.data)
    yield command
    stop_all(command)


def connect(command: Australis, **how: str) -> psycopg.Connection[tuple[object, ...]]:
    url = urlsplit(command("url").stdout.strip())
    parameters: dict[str, Any] = {
        "host": "localhost",
        "hostaddr": "127.0.0.1",
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": "postgres",
        "sslrootcert": str(command.data / "server.crt"),
        **how,
    }
    return psycopg.connect(**parameters)


def test_encrypted(configured: Australis) -> None:
    configured("start", "--detach")
    ways: list[dict[str, str]] = [
        {"sslmode": "require"},
        {"sslmode": "verify-full"},
        {"sslmode": "verify-full", "sslnegotiation": "direct"},
        {"sslmode": "verify-full", "channel_binding": "prefer", "min_protocol_version": "3.2"},
    ]
    for how in ways:
        with connect(configured, **how) as connection:
            assert connection.pgconn.ssl_in_use
            row = connection.execute(
                "SELECT host(client_addr), client_port > 0 FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            ).fetchone()
            assert row == ("127.0.0.1", True)
    with connect(configured, sslmode="disable") as connection:
        assert not connection.pgconn.ssl_in_use
    with pytest.raises(psycopg.OperationalError, match="channel binding is required"):
        connect(configured, sslmode="require", channel_binding="require")
    configured("destroy", "--yes")
    assert sorted(os.listdir(configured.data)) == ["australis.toml", "server.crt", "server.key"]
    configured("start", "--detach")  # once more, with what was kept


def nothing_there(data: Path) -> None:
    (data / "server.crt").unlink()


def a_directory(data: Path) -> None:
    (data / "server.crt").unlink()
    (data / "server.crt").mkdir()


def no_pem(data: Path) -> None:
    (data / "server.crt").write_text("certificate")


def anothers_key(data: Path) -> None:
    certificate = (data / "server.crt").read_bytes()
    make_certificate(data)
    (data / "server.crt").write_bytes(certificate)


def encrypted_key(data: Path) -> None:
    key = data / "server.key"
    openssl("rsa", "-aes256", "-passout", "pass:secret", "-in", key, "-out", key)


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (nothing_there, "server.crt: no such file or directory"),
        (a_directory, "server.crt: is a directory"),
        (no_pem, "no pem found"),
        (anothers_key, "key values mismatch"),
        (encrypted_key, "the key is encrypted"),
    ],
)
def test_wrong_files(configured: Australis, mistake: Callable[[Path], None], expected: str) -> None:
    mistake(configured.data)
    message = configured.refused("start")
    assert "[tls]" in message and expected in message
    assert configured.status()["state"] == "stopped"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")
def test_key_of_root(configured: Australis) -> None:
    configured("start", "--detach")
    configured("stop")
    os.chown(configured.data / "server.key", 0, 0)
    (configured.data / "server.key").chmod(0o600)
    assert "server.key: permission denied; the cluster's user must be able to read" in configured.refused("start")
