"""Deployment files: what is written can be read by those who will, and every role accepts its configuration."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from australis import certs
from australis.cli import main
from australis.control_plane.topology import RoleConfig, load_role
from australis.transport import Address

TOPOLOGY = """
nats = 3
adjudicators = 3
crossbars = 2
shards = 2
replicas = 2
query_processors = 3
routers = 2
[tls]
internal = true
"""


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("deploy") / "topology.toml"
    file.write_text(TOPOLOGY)
    return file


def _deploy(kind: str, topology: Path, out: Path, *more: str) -> Path:
    result = CliRunner().invoke(main, ["deploy", kind, "--topology", str(topology), "--out", str(out), *more])
    assert result.exit_code == 0, result.output
    return out / kind


def _configs(directory: Path) -> dict[str, RoleConfig]:
    found = {path.parent.name: load_role(path) for path in directory.glob("config/*/config.json")}
    assert all(name == config.name for name, config in found.items())
    assert len(found) == 3 + 1 + 3 + 2 + 4 + 3 + 2
    assert len({config.cluster for config in found.values()}) == 1
    return found


def _documents(file: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(file.read_text())


def test_systemd(topology: Path, tmp_path: Path) -> None:
    directory = _deploy("systemd", topology, tmp_path, "--host", "storage=10.0.0.2", "--host", "control=db1.example")
    configs = _configs(directory)
    assert configs["storage-1-1"].listen == "10.0.0.2:6303"
    assert configs["adjudicator-0"].peers.control == ["db1.example:4100"]
    units = {}
    for file in directory.glob("*.service"):
        parser = configparser.RawConfigParser(strict=True)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys are case-sensitive
        parser.read(file)
        units[file.name.removeprefix("australis-").removesuffix("@.service")] = parser
    assert set(units) == {config.role for config in configs.values()}
    for role, unit in units.items():
        command = unit["Service"]["ExecStart"]
        assert command == f"/usr/bin/env australis run {role} --config /etc/australis/%i/config.json"
        assert unit["Service"]["User"] == "australis"
    for config in configs.values():
        assert config.data == f"/var/lib/australis/{config.name}"
    target = (directory / "australis.target").read_text()
    assert all(f"australis-{config.role}@{config.name}.service" in target for config in configs.values())
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", str(directory / "australis.target")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        ours = [line for line in done.stderr.splitlines() if "australis" in line and "not executable" not in line]
        assert not [line for line in ours if "Unknown" in line or "Failed to parse" in line], done.stderr


def test_compose(topology: Path, tmp_path: Path) -> None:
    directory = _deploy("compose", topology, tmp_path)
    configs = _configs(directory)
    compose = yaml.safe_load((directory / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == set(configs)
    for name, service in services.items():
        config = configs[name]
        assert service["command"] == ["australis", "run", config.role, "--config", f"/etc/australis/{name}/config.json"]
        mounts = dict(text.split(":")[:2] for text in service["volumes"])
        assert (directory / next(source for source in mounts if source.startswith("./"))).is_dir()
        assert all(source in compose["volumes"] for source in mounts if not source.startswith("./"))
        assert config.data in mounts.values()
        if config.listen:
            # found under the name of the container whose network it is in
            host = Address.parse(config.listen).host
            assert host == service.get("network_mode", f"service:{name}").removeprefix("service:")
    for config in configs.values():
        if config.role == "router":
            for upstream in config.upstreams:
                gateway = Path(Address.parse(upstream).path).parent.name
                assert services[gateway]["pid"] == f"service:{config.name}"
    reached = [Path(Address.parse(one).path).parent.name for c in configs.values() for one in c.upstreams]
    assert sorted(reached) == ["gateway-0", "gateway-1", "gateway-2"]


def _rendered(file: Path, values: dict[str, Any], chart: Path) -> list[dict[str, Any]]:
    """What Helm makes of our few expressions."""

    def expression(match: re.Match[str]) -> str:
        text = match[1].strip("- ")
        if found := re.fullmatch(r'\(\.Files\.Glob "(config/[^"]+/\*)"\)\.AsSecrets \| nindent 2', text):
            files = list(chart.glob(found[1]))
            assert files
            return "{" + ", ".join(f'"{one.name}": "x"' for one in files) + "}"
        found = re.fullmatch(r"(?:toJson )?\.Values\.([a-zA-Z.]+)", text)
        assert found, text
        value: Any = values
        for part in found[1].split("."):
            value = value[part]
        return yaml.safe_dump(value, default_flow_style=True).strip() if "toJson" in text else str(value)

    return list(yaml.safe_load_all(re.sub(r"\{\{(.*?)\}\}", expression, file.read_text())))


def test_helm(topology: Path, tmp_path: Path) -> None:
    directory = _deploy("helm", topology, tmp_path)
    configs = _configs(directory)
    chart = yaml.safe_load((directory / "Chart.yaml").read_text())
    assert chart["apiVersion"] == "v2" and chart["name"] == "australis"
    values = yaml.safe_load((directory / "values.yaml").read_text())
    containers: dict[str, tuple[str, dict[str, Any]]] = {}
    names = set()
    for file in sorted((directory / "templates").glob("*.yaml")):
        for document in _rendered(file, values, directory):
            assert document["apiVersion"] and document["metadata"]["name"]
            key = (document["kind"], document["metadata"]["name"])
            assert key not in names
            names.add(key)
            if document["kind"] == "StatefulSet":
                pod = document["spec"]["template"]["spec"]
                volumes = {one["name"] for one in pod["volumes"]}
                volumes |= {one["metadata"]["name"] for one in document["spec"]["volumeClaimTemplates"]}
                for container in pod["containers"]:
                    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
                    containers[container["name"]] = document["metadata"]["name"], container
    assert set(containers) == set(configs)
    for name, (pod, container) in containers.items():
        config = configs[name]
        assert ("Secret", f"{name}-config") in names
        assert ("Service", pod) in names
        assert container["command"][:3] == ["australis", "run", config.role]
        if config.listen:
            assert Address.parse(config.listen).host == pod
    assert ("Service", "australis") in names


def test_certificates_are_for_the_hosts(topology: Path, tmp_path: Path) -> None:
    directory = _deploy("compose", topology, tmp_path)
    config = directory / "config" / "storage-0-1"
    assert "hosts storage-0-1," in certs.describe(config / "storage-0-1.pem")
    files = certs.Files(config / "ca.pem", config / "storage-0-1.pem", config / "storage-0-1.key")
    certs.contexts(files, bytes.fromhex(load_role(config / "config.json").cluster))
    assert (tmp_path / "authority" / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (config / "config.json").stat().st_mode & 0o777 == 0o600


def test_twice_is_the_same(topology: Path, tmp_path: Path) -> None:
    for kind in ("systemd", "compose", "helm"):
        directory = _deploy(kind, topology, tmp_path)
        first = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        _deploy(kind, topology, tmp_path)
        assert first == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_mistakes(topology: Path, tmp_path: Path) -> None:
    def say(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["deploy", *arguments, "--topology", str(topology), "--out", str(tmp_path)])
        assert result.exit_code != 0
        return result.output

    assert "--host king=...: no such role or process" in say("systemd", "--host", "king=x")
    assert "--host NAME=HOST is for systemd" in say("helm", "--host", "control=x")
    (tmp_path / "deployment.json").write_text("{")
    assert "put it back, or choose another directory" in say("compose")
