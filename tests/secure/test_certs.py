"""Certificates of a cluster, and mutual TLS between its processes on real sockets: strangers get nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from australis.certs import CertificateError, Files, contexts, describe, issue, make_authority, peer_check
from australis.cli import main
from australis.query_processor.launcher import free_port
from australis.transport import Address, Identity, Link, listen
from tests.transport.test_transport import Recorder

CLUSTER, OTHER = b"c" * 16, b"o" * 16


def identity(files: Files, role: str, name: str, cluster: bytes = CLUSTER) -> Identity:
    server, client = contexts(files, cluster)
    return Identity(
        cluster, role, name, lambda: 1, server_tls=server, client_tls=client, check_peer=peer_check(cluster)
    )


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    make_authority(tmp_path / "ca", CLUSTER)
    return tmp_path / "ca"


def files(authority: Path, role: str, name: str, hosts: tuple[str, ...] = ("127.0.0.1",)) -> Files:
    return issue(authority, role, name, hosts)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 30))


async def met(server: Identity, client: Identity) -> tuple[bool, str]:
    """Do these two come together? And what the client was told."""
    there, here = Recorder(), Recorder()
    address = Address("127.0.0.1", free_port())
    serving = await listen(address, server, lambda: there)
    link = Link([address], client, here)
    link.start()
    try:
        while here.events.empty() and not link.last_error:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # polling the progress of another task
        return not here.events.empty() and not there.events.empty(), link.last_error
    finally:
        await link.close()
        await serving.close()


def test_two_processes_of_a_cluster_meet(authority: Path) -> None:
    server = identity(files(authority, "adjudicator", "adjudicator-0"), "adjudicator", "adjudicator-0")
    client = identity(files(authority, "gateway", "gateway-a"), "gateway", "gateway-a")
    run(lambda: _expect(server, client, True, ""))


async def _expect(server: Identity, client: Identity, together: bool, said: str) -> None:
    got, error = await met(server, client)
    assert got is together, error
    assert said in error


def test_a_certificate_for_another_role_or_name_opens_nothing(authority: Path) -> None:
    server = identity(files(authority, "adjudicator", "adjudicator-0"), "adjudicator", "adjudicator-0")
    mine = files(authority, "storage", "storage-0-0")
    run(lambda: _expect(server, identity(mine, "gateway", "storage-0-0"), False, "not for australis://"))
    run(lambda: _expect(server, identity(mine, "storage", "storage-0-1"), False, "not for australis://"))
    # and the other way round: a server that is not what it says
    run(lambda: _expect(identity(mine, "adjudicator", "adjudicator-0"), server, False, "not for australis://"))


def test_strangers_are_refused(authority: Path, tmp_path: Path) -> None:
    server = identity(files(authority, "adjudicator", "adjudicator-0"), "adjudicator", "adjudicator-0")
    make_authority(tmp_path / "other", OTHER)
    stranger = identity(issue(tmp_path / "other", "gateway", "g", ["127.0.0.1"]), "gateway", "g", OTHER)
    run(lambda: _expect(server, stranger, False, "certificate"))
    # the right authority, no certificate of one's own
    bare = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    run(lambda: _expect(server, replace(server, client_tls=bare), False, ""))
    # no TLS at all: nothing of the protocol is answered
    run(lambda: _plain_gets_nothing(server))
    # a host that its certificate does not name
    elsewhere = identity(files(authority, "crossbar", "x", ("127.0.0.9",)), "crossbar", "x")
    run(lambda: _expect(elsewhere, server, False, "certificate"))


async def _plain_gets_nothing(server: Identity) -> None:
    there = Recorder()
    address = Address("127.0.0.1", free_port())
    serving = await listen(address, server, lambda: there)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"\x40\0\0\0" + bytes(64))
    with contextlib.suppress(ConnectionError):
        answer = await reader.read()
        assert not answer or answer[0] == 0x15  # a TLS alert
    writer.close()
    await serving.close()
    assert there.events.empty()


def damage(path: Path, how: Callable[[bytes], bytes]) -> None:
    path.write_bytes(how(path.read_bytes()))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f, other: f.key.unlink(), "cannot be read"),
        (lambda f, other: f.ca.unlink(), "cannot be read"),
        (lambda f, other: damage(f.certificate, lambda b: b[:100]), "not a certificate in PEM format"),
        (lambda f, other: damage(f.key, lambda b: b"nothing"), "not an unencrypted private key"),
        (lambda f, other: f.key.write_bytes(other.key.read_bytes()), "is not the key of"),
        (lambda f, other: f.certificate.write_bytes(other.certificate.read_bytes()), "was not issued by"),
        (lambda f, other: f.ca.write_bytes(other.ca.read_bytes()), "another cluster"),
        (lambda f, other: f.ca.write_bytes(f.certificate.read_bytes()), "not the certificate of a cluster's authority"),
    ],
)
def test_files_that_are_wrong_are_named(
    authority: Path, tmp_path: Path, spoil: Callable[[Files, Files], None], said: str
) -> None:
    mine = files(authority, "storage", "s")
    make_authority(tmp_path / "other", OTHER)
    spoil(mine, issue(tmp_path / "other", "storage", "s", ["127.0.0.1"]))
    with pytest.raises(CertificateError, match=said) as caught:
        contexts(mine, CLUSTER)
    assert "\n" not in str(caught.value)


def test_keys_are_private_and_nothing_is_overwritten(authority: Path) -> None:
    mine = files(authority, "storage", "s")
    before = mine.key.read_bytes()
    assert mine.key.stat().st_mode & 0o777 == 0o600
    assert (authority / "ca.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(CertificateError, match="exists"):
        files(authority, "storage", "s")
    with pytest.raises(CertificateError, match="exists"):
        make_authority(authority, CLUSTER)
    assert mine.key.read_bytes() == before


@pytest.mark.parametrize(
    ("role", "name", "hosts", "said"),
    [
        ("king", "a", ["h"], "no role"),
        ("storage", "../a", ["h"], "no name of a process"),
        ("storage", "", ["h"], "no name of a process"),
        ("storage", "a", ["a b"], "no name or address"),
        ("storage", "a", [""], "no name or address"),
    ],
)
def test_what_cannot_be_issued(authority: Path, role: str, name: str, hosts: list[str], said: str) -> None:
    with pytest.raises(CertificateError, match=said):
        issue(authority, role, name, hosts)


def test_the_command(tmp_path: Path) -> None:
    run = CliRunner().invoke
    made = run(main, ["certs", "init", "--out", str(tmp_path / "ca")])
    assert made.exit_code == 0 and len(bytes.fromhex(made.output.strip())) == 16
    issued = run(
        main,
        [
            "certs",
            "issue",
            "--ca",
            str(tmp_path / "ca"),
            "storage",
            "storage-0-0",
            "--host",
            "::1",
            "--host",
            "db.local",
        ],
    )
    assert issued.exit_code == 0, issued.output
    assert "hosts ::1, db.local" in describe(tmp_path / "ca" / "storage-0-0.pem")
    again = run(main, ["certs", "issue", "--ca", str(tmp_path / "ca"), "storage", "storage-0-0", "--host", "::1"])
    assert again.exit_code == 1 and "exists" in again.output
    wrong = run(main, ["certs", "init", "--out", str(tmp_path / "x"), "--cluster", "12"])
    assert wrong.exit_code == 1 and "32 hex digits" in wrong.output
