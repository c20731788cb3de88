"""The supervisor of many processes, with stubs in the place of roles: real processes, real kills."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from australis.control_plane import survey
from australis.control_plane.layout import ClusterError, Layout, read_cluster
from australis.control_plane.multiprocess import check_journals_exist, check_topology, role_configs, stored_topology
from australis.control_plane.supervisor_client import request
from australis.control_plane.topology import TopologyFile, load_role
from australis.files import read_json

ROOT = Path(__file__).parents[2]
SMALL = "adjudicators = 2\nshards = 2\nquery_processors = 1\n"
NAMES = [
    "control",
    "adjudicator-0",
    "adjudicator-1",
    "crossbar-0",
    "storage-0-0",
    "storage-1-0",
    "gateway-0",
    "router-0",
]
SECONDS = 60.0


class Supervised:
    """A running supervisor."""

    def __init__(self, data: Path, topology: Path) -> None:
        self.layout = Layout(data)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.topology.supervise", str(data), str(topology)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            if text.startswith(("ready", "error:")):
                return text.strip()
        return "ended"

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self.layout.run / "state.json")

    def pid(self, name: str) -> int:
        return int(self.state["services"][name]["pid"])

    def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the state file says so; it is replaced by each change."""
        import time

        deadline = time.monotonic() + SECONDS
        while not true(state := self.state):
            assert time.monotonic() < deadline, state
            time.sleep(0.01)  # nothing to wait on: another process writes it
        return state

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


@contextmanager
def supervised(directory: Path, topology: str = SMALL) -> Iterator[Supervised]:
    file = directory / "topology.toml"
    file.write_text(topology)
    one = Supervised(directory / "data", file)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        if one.process.stdout is not None:
            one.process.stdout.close()


def _ended(pids: list[int]) -> None:
    """Wait until none of these processes lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                assert select.select([handle], [], [], SECONDS)[0], f"process {pid} lives on"
            finally:
                os.close(handle)


def test_start_and_stop(tmp_path: Path) -> None:
    with supervised(tmp_path) as one:
        assert one.line() == "ready"
        state = one.state
        assert state["state"] == "ready"
        assert list(state["services"]) == NAMES
        assert [config.name for config in role_configs(one.layout)] == NAMES
        pids = [service["pid"] for service in state["services"].values()]
        assert one.stop() == 0
        _ended(pids)
        for name in NAMES:
            assert (one.layout.roles / name / "ended").read_text() == "cleanly\n", name
        assert not (one.layout.data / "run").exists()
    with supervised(tmp_path) as one:  # again, in the same directory
        assert one.line() == "ready"
        assert one.stop() == 0


def test_a_killed_role_is_started_again_without_its_neighbours(tmp_path: Path) -> None:
    with supervised(tmp_path) as one:
        assert one.line() == "ready"
        before = {name: one.pid(name) for name in NAMES}
        for name in ("adjudicator-1", "storage-1-0", "router-0", "control"):
            os.kill(before[name], signal.SIGKILL)
            state = one.until(lambda state, name=name: state["services"][name]["restarts"] == 1)  # type: ignore[misc]
            assert state["services"][name]["pid"] != before[name]
        one.until(lambda state: bool(state["state"] == "ready"))
        for name in ("adjudicator-0", "crossbar-0", "gateway-0"):
            assert one.pid(name) == before[name]
        assert one.stop() == 0


def test_a_silent_role_is_killed_and_started_again(tmp_path: Path) -> None:
    """Stopped, or in an endless loop: both for roles that are asked; a router is only looked at."""
    with supervised(tmp_path, SMALL + "liveness = 1.0\n") as one:
        assert one.line() == "ready"
        before = {name: one.pid(name) for name in NAMES}
        for name in ("adjudicator-1", "storage-1-0", "router-0"):
            os.kill(before[name], signal.SIGSTOP)
        (one.layout.roles / "crossbar-0" / "loop").touch()  # at its next question
        for name in ("adjudicator-1", "storage-1-0", "router-0", "crossbar-0"):
            state = one.until(lambda state, name=name: state["services"][name]["restarts"] == 1)  # type: ignore[misc]
            assert state["services"][name]["pid"] != before[name]
        one.until(lambda state: bool(state["state"] == "ready"))
        for name in ("adjudicator-0", "control", "gateway-0", "storage-0-0"):
            assert one.pid(name) == before[name]
            assert one.state["services"][name]["restarts"] == 0
        assert one.stop() == 0


def test_children_die_with_their_supervisor_and_a_new_one_starts(tmp_path: Path) -> None:
    with supervised(tmp_path) as one:
        assert one.line() == "ready"
        pids = [one.pid(name) for name in NAMES]
        one.process.kill()
        one.process.wait()
        _ended(pids)
    with supervised(tmp_path) as one:
        assert one.line() == "ready"
        assert one.stop() == 0


def test_leftovers_are_ended_before_anything_starts(tmp_path: Path) -> None:
    with supervised(tmp_path) as one:
        assert one.line() == "ready"
        assert one.stop() == 0
    directory = tmp_path / "data" / "roles" / "adjudicator-0"
    server = tmp_path / "data" / "roles" / "gateway-0" / "postgresql-0" / "data"
    server.mkdir(parents=True)
    left = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # australis"], cwd=directory),
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # postgres"], cwd=server),
    ]
    try:
        with supervised(tmp_path) as one:
            assert one.line() == "ready"
            assert [process.wait(SECONDS) for process in left] == [-signal.SIGKILL] * 2
            assert one.stop() == 0
    finally:
        for process in left:
            process.kill()
            process.wait()


def test_a_role_that_cannot_start_stops_all_with_its_reason(tmp_path: Path) -> None:
    refusing = tmp_path / "data" / "roles" / "storage-1-0"
    refusing.mkdir(parents=True)
    (refusing / "refuse").write_text("its store is damaged")
    with supervised(tmp_path) as one:
        assert one.line() == "error: storage-1-0: its store is damaged"
        assert one.process.wait(SECONDS) == 1
        started = [one.layout.roles / name for name in ("control", "adjudicator-0", "crossbar-0")]
        assert all((role / "ended").exists() for role in started)


def test_rolling_restart(tmp_path: Path) -> None:
    with supervised(tmp_path) as one:
        assert one.line() == "ready"
        before = {name: one.pid(name) for name in NAMES}
        socket = one.layout.run / "supervisor.sock"
        done = [answer["name"] for answer in request(socket, {"restart": ["storage", "adjudicator-1"]})]
        assert done == ["adjudicator-1", "storage-0-0", "storage-1-0"]
        for name in NAMES:
            assert (one.pid(name) != before[name]) is (name in done), name
        assert len(list(request(socket, {"restart": []}))) == len(NAMES)
        with pytest.raises(ClusterError, match="no role or process 'king'; there are control, adjudicator-0"):
            list(request(socket, {"restart": ["king"]}))
        mistakes: list[dict[str, Any]] = [{"restart": "all"}, {"stop": []}]
        for wrong in mistakes:
            with pytest.raises(ClusterError, match="expected a request like"):
                list(request(socket, wrong))
        assert one.stop() == 0


def test_status_names_who_does_not_answer(tmp_path: Path) -> None:
    import asyncio

    with supervised(tmp_path) as one:
        assert one.line() == "ready"
        cluster = read_cluster(one.layout)
        assert cluster is not None
        places = {config.name: config.listen for config in role_configs(one.layout) if config.listen}
        stopped = one.pid("storage-0-0")
        os.kill(stopped, signal.SIGSTOP)
        try:
            identity = survey.tool_identity(cluster.id, one.layout.roles / "status")
            answers = asyncio.run(survey.statuses(places, identity, 0.5))
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert {name for name, answer in answers.items() if "error" in answer} == {"storage-0-0"}
        assert answers["storage-0-0"]["error"] == "no answer in time"
        assert answers["adjudicator-1"] == {"generation": 1, "role": "adjudicator", "number": 1}
        stranger = survey.tool_identity(bytes(16), one.layout.roles / "status")
        answers = asyncio.run(survey.statuses({"control": places["control"]}, stranger, 5.0))
        assert "another cluster" in str(answers["control"]["error"])
        assert one.stop() == 0


def test_mutual_tls_between_all(tmp_path: Path) -> None:
    import asyncio

    with supervised(tmp_path, SMALL + "[tls]\ninternal = true\n") as one:
        assert one.line() == "ready"
        cluster = read_cluster(one.layout)
        assert cluster is not None
        configs = role_configs(one.layout)
        places = {config.name: config.listen for config in configs if config.listen}
        assert all(place.startswith("127.0.0.1:") for place in places.values())
        for config in configs:
            load_role(Path(config.data) / "config.json")
        identity = survey.tool_identity(cluster.id, one.layout.roles / "status")
        assert identity.client_tls is not None
        answers = asyncio.run(survey.statuses(places, identity, 10.0))
        assert not [answer for answer in answers.values() if "error" in answer], answers
        plain = survey.tool_identity(cluster.id, one.layout.roles / "nobody")
        answers = asyncio.run(survey.statuses(places, plain, 5.0))
        assert all("error" in answer for answer in answers.values())
        assert one.stop() == 0


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"adjudicators": 3}, "was made with adjudicators = 2, the topology says 3; this cannot change"),
    ({"shards": 1}, "was made with shards = 2, the topology says 1; this can only grow"),
    ({"nats": 1}, "was made with nats = 0, the topology says 1"),
    ({"profile": "dsql"}, "was made with profile = postgres, the topology says dsql"),
]


def test_what_a_topology_cannot_change(tmp_path: Path) -> None:
    import msgspec

    with supervised(tmp_path) as one:
        assert one.line() == "ready"
        assert one.stop() == 0
        layout = one.layout
    before, cluster = stored_topology(layout), read_cluster(layout)
    assert isinstance(before, TopologyFile) and cluster is not None
    for change, expected in CHANGES:
        with pytest.raises(ClusterError, match=expected):
            check_topology(layout, cluster, msgspec.structs.replace(before, **change))
    check_topology(layout, cluster, msgspec.structs.replace(before, routers=3, crossbars=1, query_processors=4))
    check_topology(layout, cluster, msgspec.structs.replace(before, shards=5, replicas=3))
    # journals that are gone, while storage holds what came from them
    store = layout.roles / "storage-0-0" / "storage"
    store.mkdir()
    (store / "data.mdb").touch()
    with pytest.raises(ClusterError, match=r"adjudicator-0/journal holds no segment"):
        check_journals_exist(layout, before)
    layout.topology_file.unlink()
    with pytest.raises(ClusterError, match="was made without a topology"):
        check_topology(layout, cluster, before)
    layout.topology_file.write_text("{")
    with pytest.raises(ClusterError, match="is damaged"):
        check_topology(layout, cluster, before)
