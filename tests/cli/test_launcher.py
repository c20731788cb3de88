"""Life of a cluster through the command line: start, stop, kill -9, refusals. On plain PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest

from australis.config import Config
from australis.control_plane import log_reader
from australis.control_plane.embedded import EmbeddedCluster
from australis.control_plane.layout import Cluster, ClusterError, Layout
from australis.query_processor.host import ProcessorHost
from australis.query_processor.installation import Installation
from australis.router.placement import FixedUpstreams
from tests.cli.conftest import Australis
from tests.fixtures.servers import free_port

pytestmark = pytest.mark.timeout(180)
PATIENCE = 20.0


def wait_gone(pids: list[int]) -> None:
    """Wait for the end of processes that are not our children (zombies count as gone)."""
    deadline = time.monotonic() + PATIENCE
    for pid in pids:
        while lives(pid):
            assert time.monotonic() < deadline, f"process {pid} lives on"
            time.sleep(0.01)  # polling: there is no event for the end of another's child


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_status(command: Australis, service: str, restarts: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        content = command.status()
        state = content.get("services", {}).get(service, {})
        if state.get("serving") and state.get("restarts", 0) >= restarts:
            return
        assert time.monotonic() < deadline, content
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    below: dict[int, list[int]] = {}
    for line in done.stdout.splitlines():
        child, parent = map(int, line.split())
        below.setdefault(parent, []).append(child)
    found, waiting = [], [pid]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def test_life(australis_command: Australis) -> None:
    command = australis_command
    started = command("start", "--detach")
    url = started.stdout.strip()
    assert url.startswith("postgresql://admin:") and url.endswith("/postgres")
    assert command("url").stdout == url + "\n"
    assert command("url", "--direct").stdout != url + "\n"
    assert command.sql("CREATE TABLE kept (i int); INSERT INTO kept VALUES (1); SELECT i FROM kept") == "1"
    content = command.status()
    assert content["state"] == "ready"
    if os.geteuid() == 0:
        for pid in (content["pid"], *descendants(content["pid"])):
            assert os.stat(f"/proc/{pid}").st_uid != 0, "nothing of the cluster runs as root"
    table = command("status").stdout
    assert "ready" in table and "postgresql" in table
    assert "is in use by a running cluster" in command.refused("start")
    assert "is in use" in command.refused("check")
    command("stop")
    assert command("status", check=False).returncode == 3
    assert "does not run" in command.refused("url")
    assert command("stop").stderr == "not running\n"
    command("start", "--detach")
    assert command.sql("SELECT i FROM kept") == "1"
    assert "cluster.ready" in command("logs", "supervisor").stdout
    command("destroy", "--yes")
    assert not command.data.exists()


def test_supervisor_killed(running: Australis) -> None:
    """Nothing outlives a supervisor that was killed, and the next start works."""
    pid = running.pids()["supervisor"]
    family = descendants(pid)
    assert len(family) >= 3
    os.kill(pid, signal.SIGKILL)
    wait_gone([pid, *family])
    assert running.status()["state"] == "stopped"
    running("start", "--detach")
    assert running.sql("SELECT 1") == "1"


def test_everything_killed_at_once(running: Australis) -> None:
    running.sql("SET synchronous_commit = on; CREATE TABLE kept AS SELECT 1 AS i")
    pid = running.pids()["supervisor"]
    for victim in (pid, *descendants(pid)):
        if lives(victim):
            os.kill(victim, signal.SIGKILL)
    running("start", "--detach")
    assert running.sql("SELECT i FROM kept") == "1"


def test_postmaster_killed(running: Australis) -> None:
    running("start", "--detach", check=False)
    before = running.pids()
    os.kill(before["postgresql"], signal.SIGKILL)
    wait_status(running, "postgresql", 1)
    assert running.sql("SELECT 1") == "1"
    after = running.pids()
    assert after["postgresql"] != before["postgresql"] and after["supervisor"] == before["supervisor"]


@pytest.mark.parametrize("damage", ["missing", "control", "other boot", "emptied"])
def test_data_directory_is_rebuilt(running: Australis, damage: str) -> None:
    running("stop")
    data = running.data / "query_processor" / "data"
    if damage == "missing":
        subprocess.run(["rm", "-r", str(data)], check=True)
    elif damage == "control":
        (data / "global" / "pg_control").write_bytes(b"\0" * 8192)
    elif damage == "emptied":
        subprocess.run(["rm", "-r", str(data / "base")], check=True)
    else:
        (data / "left-by-the-other-boot").write_text("")
        mark = running.data / "query_processor" / "boot.json"
        mark.write_text(json.dumps(json.loads(mark.read_text()) | {"boot": "another", "clean": False}))
    running("start", "--detach")
    assert running.sql("SELECT 1") == "1"
    assert not (data / "left-by-the-other-boot").exists()


def test_clean_stop_survives_a_reboot(running: Australis) -> None:
    running.sql("CREATE TABLE kept AS SELECT 1 AS i")
    running("stop")
    mark = running.data / "query_processor" / "boot.json"
    content = json.loads(mark.read_text())
    assert content["clean"]
    mark.write_text(json.dumps(content | {"boot": "another"}))
    running("start", "--detach")
    assert running.sql("SELECT i FROM kept") == "1"


def test_damaged_image_is_made_again(running: Australis) -> None:
    running("stop")
    with (running.data / "query_processor" / "image.tar").open("r+b") as image:
        image.seek(1_000_000)
        image.write(b"x" * 1000)
    running("start", "--detach")
    assert running.sql("SELECT 1") == "1"


def test_port_taken(australis_command: Australis) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = australis_command.refused("start", "--port", str(port))
        assert f"port {port} is in use by another program; choose another with --port" in message
        assert australis_command.status()["state"] == "stopped"


def test_default_port_taken(australis_command: Australis) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 5432))
            other.listen()
        except OSError:
            pass  # somebody else has it: just as well
        started = australis_command("start", "--detach")
        assert "port 5432 is in use by another program; using 54" in started.stderr
        assert ":54" in started.stdout


@pytest.mark.parametrize("asked", [True, False])
def test_a_port_that_is_taken_before_it_is_used(directory: Path, asked: bool) -> None:
    """Seconds pass between the choice and its use, in which another cluster may come."""
    made = Cluster(format=1, cluster="ab" * 16, profile="postgres", postgresql=18, created="")
    installation = cast(Installation, None)  # no server of it is started
    processors = cast(ProcessorHost, FixedUpstreams([directory / "nobody.sock"]))
    wanted = free_port() if asked else None
    said: list[str] = []
    cluster = EmbeddedCluster(Layout(directory), made, Config(), installation, port=wanted, notice=said.append)
    cluster.layout.run.mkdir()

    async def start() -> int:
        chosen = cluster._choose_port()
        router = cluster._make_router(chosen, processors)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(socket.create_server(("127.0.0.1", chosen)))
            await cluster._start_router(stack, router, processors)
            assert cluster.router is not None
            assert cluster.router.port != chosen
            return cluster.router.port

    if asked:
        with pytest.raises(ClusterError, match=f"port {wanted} was taken by another program meanwhile"):
            asyncio.run(start())
    else:
        port = asyncio.run(start())
        assert said[-1] == f"port 5432 is in use by another program; using {port}"


def test_profile_is_for_life(australis_command: Australis) -> None:
    started = australis_command("start", "--detach", "--profile", "dsql")
    assert "profile dsql" in started.stderr
    australis_command("stop")
    assert "was made with profile dsql" in australis_command.refused("start", "--profile", "postgres")
    australis_command("start", "--detach")
    assert australis_command.status()["profile"] == "dsql"


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_damaged_cluster_file(running: Australis, content: str) -> None:
    running("stop")
    (running.data / "cluster.json").write_text(content)
    assert "is damaged" in running.refused("start")
    assert "is damaged" in running.refused("status")


def test_mistake_in_the_configuration(australis_command: Australis) -> None:
    australis_command.data.mkdir()
    (australis_command.data / "australis.toml").write_text("prot = 1\n")
    assert 'unknown key "prot"' in australis_command.refused("start")
    assert os.listdir(australis_command.data) == ["australis.toml"]


def test_wrong_setting_of_postgresql(australis_command: Australis) -> None:
    """PostgreSQL's own complaint is what the user sees."""
    australis_command.data.mkdir()
    (australis_command.data / "australis.toml").write_text('[postgresql]\nwork_mem = "much"\n')
    assert "work_mem" in australis_command.refused("start")


def test_long_path(directory: Path) -> None:
    command = Australis(directory / ("d" * 60) / ("e" * 60), {"AUSTRALIS_TEST_PLAIN": "1"})
    try:
        command("start", "--detach")
        assert command.sql("SELECT 1") == "1"
    finally:
        command("destroy", "--yes")
    assert not command.data.exists()


def test_odd_path(directory: Path) -> None:
    """No character of a path reaches a shell."""
    command = Australis(directory / "a $HOME 'b' \"c\" `id` \\ %d é", {"AUSTRALIS_TEST_PLAIN": "1"})
    try:
        command("start", "--detach")
        assert command.sql("SELECT 1") == "1"
    finally:
        command("destroy", "--yes")
    assert not command.data.exists()


@pytest.mark.parametrize("name", ["", "a\nb"])
def test_path_that_is_none(directory: Path, name: str) -> None:
    """An empty one is a variable that a script forgot to set; PostgreSQL's own files have paths as lines."""
    done = subprocess.run(
        [sys.executable, "-m", "australis", "start", "--data", name],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Invalid value for '--data'" in done.stderr
    assert os.listdir(directory) == []


def test_link_to_a_directory(directory: Path) -> None:
    (directory / "real").mkdir()
    (directory / "link").symlink_to("real")
    command = Australis(directory / "link", {"AUSTRALIS_TEST_PLAIN": "1"})
    command("start", "--detach")
    assert command.sql("SELECT 1") == "1"
    assert command("destroy", "--yes").stderr == ""
    assert os.listdir(directory) == []


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "::"])
def test_url_of_all_addresses(australis_command: Australis, host: str) -> None:
    australis_command.data.mkdir()
    (australis_command.data / "australis.toml").write_text(f'listen = ["{host}"]\n')
    url = australis_command("start", "--detach").stdout
    assert ("@[::1]:" if host == "::" else "@127.0.0.1:") in url


@pytest.mark.parametrize("host", ["no-such-host.invalid", "täst", "192.0.2.1"])
def test_address_that_is_not_ours(australis_command: Australis, host: str) -> None:
    australis_command.data.mkdir()
    (australis_command.data / "australis.toml").write_text(f'listen = ["{host}"]\n')
    message = australis_command.refused("start")
    assert f"cannot listen on {host}" in message and "change listen in australis.toml" in message


def test_psql_ignores_the_environment_of_other_servers(running: Australis) -> None:
    running.environment |= {"PGSERVICE": "other", "PGSSLMODE": "require", "PGHOSTADDR": "192.0.2.1", "PGUSER": "joe"}
    running.environment |= {"PGOPTIONS": "-c work_mem=3MB"}
    assert (
        running("psql", "--direct", "-XAtc", "SELECT current_user, current_setting('work_mem')").stdout == "admin|3MB\n"
    )


def test_followed_logs_are_rotated_and_destroyed(directory: Path) -> None:
    logs = directory / "logs"
    logs.mkdir()
    file = logs / "supervisor.log"
    file.write_text("first\n")
    lines = log_reader.read(logs, None, 10, follow=True)
    assert next(lines).split() == ["supervisor", "first"]
    file.rename(logs / "supervisor.log.1")
    with (logs / "supervisor.log.1").open("a") as old:
        old.write("second\n")
    assert next(lines).split() == ["supervisor", "second"]  # while there is no new file yet
    file.write_text("third\n")
    assert next(lines).split() == ["supervisor", "third"]
    shutil.rmtree(logs)
    assert list(lines) == []


def test_foreground_ends_with_its_terminal(australis_command: Australis) -> None:
    """Control-C stops the cluster; the first line on stdout is the connection string."""
    with subprocess.Popen(
        [sys.executable, "-m", "australis", "start", "--data", str(australis_command.data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **australis_command.environment},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("postgresql://admin:")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read().splitlines()[-1] == "stopped"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")
def test_root_names_an_unreachable_directory(australis_command: Australis, directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    message = Australis(closed / "data", australis_command.environment).refused("start")
    assert "cannot get there; name a directory elsewhere" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")
def test_root_default_directory_is_reachable(directory: Path) -> None:
    """In a directory that is closed to others, the default moves to the system's place for data."""
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-m", "australis", "status"], cwd=closed, capture_output=True, text=True, check=False
    )
    assert "no cluster in /var/lib/australis/closed-" in done.stderr
