"""Bad input to the roles of a cluster of many processes: one clear line each, and the neighbours go on.

`pytest -v tests/bad_input/test_roles.py` prints the table; topology files, role files, certificates and frames have
their own in tests/topology/test_files.py, tests/secure/test_certs.py and tests/transport/test_transport.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from australis.control_plane.layout import Layout
from australis.control_plane.multiprocess import role_configs
from australis.control_plane.topology import RoleConfig
from australis.protocol.frames import FrameDecoder, frame
from australis.protocol.messages import PROTOCOL_VERSION, Error, Hello, any_decoder, encode
from australis.transport import Identity
from tests.fixtures.servers import CannotStart, temporary_directory
from tests.matrix.cluster import ManyProcesses, many_processes

TOPOLOGY = "adjudicators = 2\ncrossbars = 1\nshards = 1\nreplicas = 1\nquery_processors = 1\n"
NAMES = ["control", "adjudicator-0", "adjudicator-1", "crossbar-0", "storage-0-0", "gateway-0"]
WAIT = 20.0
KEPT = 100
"""Rows that must be there whatever is sent."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ManyProcesses]:
    try:
        with many_processes(TOPOLOGY) as one:
            with psycopg.connect(one.routers[0].dsn, autocommit=True) as connection:
                connection.execute("CREATE TABLE kept (a int PRIMARY KEY)")
                connection.execute(f"INSERT INTO kept SELECT g FROM generate_series(1, {KEPT}) g")
            yield one
    except CannotStart as error:
        if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


def config_of(cluster: ManyProcesses, name: str) -> RoleConfig:
    return next(config for config in role_configs(Layout(cluster.cluster.data)) if config.name == name)


def serves_on(cluster: ManyProcesses, before: dict[str, int]) -> None:
    """The same processes, and all that was written; a commit goes through."""
    with psycopg.connect(cluster.routers[0].dsn, autocommit=True) as connection:
        connection.execute("UPDATE kept SET a = a")
        assert connection.execute("SELECT count(*), sum(a) FROM kept").fetchone() == (KEPT, KEPT * (KEPT + 1) // 2)
    assert cluster.services() == before


def answers(config: RoleConfig, data: bytes) -> list[Any]:
    """All that the role says until it closes the connection."""
    said, decoder = [], FrameDecoder(1 << 24)
    with socket.socket(socket.AF_UNIX if config.listen.startswith("unix:") else socket.AF_INET) as client:
        client.settimeout(WAIT)
        client.connect(config.listen.removeprefix("unix:"))
        client.sendall(data)
        try:
            while received := client.recv(1 << 16):
                said += [any_decoder.decode(body) for body in decoder.feed(received)]
        except ConnectionError:
            pass
    return said


def greeting(config: RoleConfig) -> bytes:
    return frame(encode(Identity(bytes.fromhex(config.cluster), "status", "status").greeting()))


BAD: dict[str, tuple[Callable[[RoleConfig], bytes], str, str]] = {
    "an oversized greeting": (lambda _: b"\xff\xff\xff\xff", "08P01", "the limit is"),
    "garbage": (lambda _: frame(b"\xc1garbage"), "08P01", "not a message"),
    "another protocol version": (
        lambda config: frame(encode(Hello(PROTOCOL_VERSION + 1, bytes.fromhex(config.cluster), "status", 0))),
        "08P01",
        f"this service speaks {PROTOCOL_VERSION}",
    ),
    "another cluster": (lambda _: frame(encode(Hello(PROTOCOL_VERSION, b"x" * 16, "status", 0))), "08004", "cluster"),
    "an oversized frame": (lambda config: greeting(config) + b"\xff\xff\xff\xff", "08P01", "the limit is"),
    "garbage after the greeting": (lambda config: greeting(config) + frame(b"\xc1"), "08P01", "not a message"),
    "an unknown message": (lambda config: greeting(config) + frame(encode([250])), "08P01", "not a message"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", NAMES)
def test_bad_bytes_on_every_port(name: str, what: str, cluster: ManyProcesses) -> None:
    before = cluster.services()
    make, sqlstate, words = BAD[what]
    config = config_of(cluster, name)
    error = answers(config, make(config))[-1]
    assert isinstance(error, Error), error
    assert error.sqlstate == sqlstate
    assert words in error.message and "\n" not in error.message
    serves_on(cluster, before)


def run_role(cluster: ManyProcesses, config: RoleConfig, change: dict[str, Any], directory: Path) -> str:
    """Run a role as the cluster does, told something else; its last line."""
    running = Path("/proc") / str(cluster.services()[config.name])
    environment = dict(item.split("=", 1) for item in (running / "environ").read_text().split("\0") if "=" in item)
    command = (running / "cmdline").read_text().split("\0")[:-1]
    file = directory / "role.json"
    original = json.loads(Path(command[-1]).read_bytes())
    file.write_text(json.dumps({**original, **change}))
    directory.chmod(0o755)
    file.chmod(0o644)
    owner = running.stat()
    done = subprocess.run(
        [*command[:-1], str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=config.data,
        env=environment,
        user=owner.st_uid if os.geteuid() == 0 else None,
        group=owner.st_gid if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
    )
    assert done.returncode not in (0, None) and "Traceback" not in done.stderr, done
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "blue"}, "colour"),
        ({"role": "oracle"}, "role"),
        ({"number": -1}, "number"),
        ({"map": "00"}, "map"),
        ({"cluster": "xyz"}, "cluster"),
        ({"listen": "nowhere"}, "nowhere"),
        ({"data": "/nonexistent/directory"}, "/nonexistent"),
    ],
)
@pytest.mark.parametrize("name", ["adjudicator-1", "crossbar-0", "storage-0-0", "control"])
def test_what_a_role_is_told(name: str, change: dict[str, Any], words: str, cluster: ManyProcesses) -> None:
    before = cluster.services()
    with temporary_directory("role") as directory:
        assert words in run_role(cluster, config_of(cluster, name), change, directory)
    serves_on(cluster, before)


@pytest.mark.parametrize(
    ("name", "held", "words"),
    [
        ("adjudicator-1", "journal/*.segment", "belongs to cluster"),
        ("storage-0-0", "storage/data.mdb", "belongs to another cluster"),
    ],
)
def test_a_directory_of_another_cluster(name: str, held: str, words: str, cluster: ManyProcesses) -> None:
    """Refused, and left as it is."""
    before = cluster.services()
    config = config_of(cluster, name)
    with temporary_directory("other") as directory:
        data = directory / "data"
        subprocess.run(["cp", "-a", config.data, str(data)], check=True)
        files = {file: file.read_bytes() for file in data.glob(held)}
        assert files
        change = {"cluster": "ab" * 16, "data": str(data), "listen": f"unix:{data}/socket"}
        assert words in run_role(cluster, config, change, directory)
        assert {file: file.read_bytes() for file in data.glob(held)} == files
    serves_on(cluster, before)
