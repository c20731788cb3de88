"""Deployment files for a topology: systemd units, a compose file, a Helm chart; `australis deploy KIND`.

    OUT/deployment.json    which cluster this is, and the password of its own NATS servers; kept when generated again
    OUT/password           of user admin
    OUT/authority/         with tls.internal: who signs certificates; keep it private
    OUT/<kind>/...         files of that kind; each instance's directory holds its config.json (and certificates)

All of it is made from the plan that `australis start --topology` uses, so it cannot drift from what roles read. What
must hold: what is generated twice is the same, every config.json is one that `load_role` accepts, and names, addresses
and certificates fit together. A router shares its host (in containers: its pod, or its process namespace) with the
gateways whose PostgreSQL it passes clients to, because it hands sockets over: router r has gateways r, r + routers, ...
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from australis.config import ConfigError
from australis.control_plane.plan import CONFIG_FILE, Instance, plan, upstream_socket
from australis.control_plane.topology import RoleConfig, TlsConfig, TopologyFile, encode_role
from australis.files import write_atomically

KINDS = ("systemd", "compose", "helm")
CONFIG_DIRECTORY, DATA_DIRECTORY, RUN_DIRECTORY = "/etc/australis", "/var/lib/australis", "/run/australis"
IMAGE = "australis:latest"
UID = 65532  # of the image's user
STORED = ("nats", "adjudicator", "storage", "control")
"""Roles whose directory must outlive them; crossbars and gateways make theirs again."""

PORTS = {"control": 4100, "adjudicator": 4600, "crossbar": 4110, "storage": 6300, "gateway": 5000, "nats": 4222}
NATS_CLUSTER_PORT = 6222

CLIENT_PORT = 5432


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """Content of deployment.json."""

    cluster: str
    secret: str


@dataclass(frozen=True, slots=True)
class Hosts:
    """A place for each process on hosts of a network: `host` says on which; ports are the same everywhere."""

    topology: TopologyFile
    host: Callable[[Instance], str]

    def _index(self, instance: Instance) -> int:
        if instance.role == "adjudicator":
            candidate = instance.name.removeprefix(f"adjudicator-{instance.number}").lstrip("-")
            return instance.number * self.topology.candidates + int(candidate or 0)
        if instance.role != "storage":
            return instance.number
        return instance.number * self.topology.replicas + int(instance.name.rpartition("-")[2])

    def address(self, instance: Instance) -> str:
        return f"{_bracketed(self.host(instance))}:{PORTS[instance.role] + self._index(instance)}"

    def nats(self, instance: Instance) -> tuple[str, str]:
        host, number = _bracketed(self.host(instance)), instance.number
        return f"{host}:{PORTS['nats'] + number}", f"{host}:{NATS_CLUSTER_PORT + number}"

    def data(self, instance: Instance) -> str:
        return f"{DATA_DIRECTORY}/{instance.name}"

    def run(self, instance: Instance) -> str:
        return f"{RUN_DIRECTORY}/{instance.name}"

    def tls(self, instance: Instance) -> TlsConfig | None:
        if not self.topology.tls.internal or instance.role in ("nats", "router"):
            return None
        where = f"{CONFIG_DIRECTORY}/{instance.name}"
        return TlsConfig(
            ca=f"{where}/ca.pem", certificate=f"{where}/{instance.name}.pem", key=f"{where}/{instance.name}.key"
        )

    def upstreams(self, router: Instance, gateways: list[Instance]) -> list[str]:
        routers = self.topology.routers
        own = [one for one in gateways if one.number % routers == router.number] or [
            gateways[router.number % len(gateways)]
        ]
        return [f"unix:{self.run(one)}/{upstream_socket(self.topology)}" for one in own]

    def image(self) -> str:
        return ""

    def objects(self) -> str:
        return ""  # a directory of one host is no place for it

    def password_file(self, instance: Instance) -> str:
        return f"{CONFIG_DIRECTORY}/{instance.name}/password"

    def port(self, router: Instance) -> int:
        return (self.topology.port or CLIENT_PORT) + router.number

    def hosts(self, router: Instance) -> list[str]:
        return ["*"]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def generate(kind: str, topology: TopologyFile, out: Path, hosts: Mapping[str, str]) -> list[Path]:
    """Write the files of one kind below `out`; returns them. `hosts`: name or role -> host (systemd only).

    Raises ConfigError, CertificateError or OSError.
    """
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = _identity(out)
    if kind == "systemd":
        place = Hosts(topology, lambda one: hosts.get(one.name, hosts.get(one.role, "127.0.0.1")))
    elif kind == "compose":
        place = Hosts(topology, lambda one: _router_of(topology, one) if one.role == "gateway" else one.name)
    else:
        place = Hosts(topology, lambda one: _router_of(topology, one) if one.role == "gateway" else one.name)
    configs = plan(topology, identity.cluster, place, identity.secret)
    for name in hosts:
        if name not in {one.name for one in configs} | {one.role for one in configs}:
            raise ConfigError(f"--host {name}=...: no such role or process")
    files = _configurations(topology, configs, place, out, out / kind)
    maker = {"systemd": _systemd, "compose": _compose, "helm": _helm}[kind]
    for path, content in maker(topology, configs):
        file = out / kind / path
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        files.append(file)
    return files


def _identity(out: Path) -> Deployment:
    file = out / "deployment.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Deployment)
    except FileNotFoundError:
        made = Deployment(cluster=secrets.token_hex(16), secret=secrets.token_hex(16))
        write_atomically(file, msgspec.json.format(msgspec.json.encode(made)) + b"\n", 0o600)
        return made
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file}: {error}; put it back, or choose another directory") from None


def _router_of(topology: TopologyFile, gateway: Instance) -> str:
    return f"router-{gateway.number % topology.routers}"


def _configurations(
    topology: TopologyFile, configs: list[RoleConfig], place: Hosts, out: Path, directory: Path
) -> list[Path]:
    """config.json of each instance, the password where it is needed, and certificates."""
    password = out / "password"
    if not password.exists():
        write_atomically(password, (secrets.token_urlsafe(18) + "\n").encode(), 0o600)
    authority = out / "authority"
    if topology.tls.internal:
        from australis import certs

        if not (authority / "ca.pem").exists():
            certs.make_authority(authority, bytes.fromhex(configs[0].cluster))
    files = []
    for config in configs:
        where = directory / "config" / config.name
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(where / CONFIG_FILE, encode_role(config), 0o600)
        files.append(where / CONFIG_FILE)
        if config.role == "gateway":
            write_atomically(where / "password", password.read_bytes(), 0o600)
        if config.tls is not None and not (where / f"{config.name}.pem").exists():
            host = place.host(Instance(config.role, config.name, config.number))
            certs.issue(authority, config.role, config.name, [host], where)
    return files


# ------------------------------------------------------------------------------------------------------------ systemd


def _systemd(topology: TopologyFile, configs: list[RoleConfig]) -> Iterable[tuple[str, str]]:
    """One unit per role as a template for its instances, and a target for all."""
    roles = list(dict.fromkeys(config.role for config in configs))
    units = [f"australis-{config.role}@{config.name}.service" for config in configs]
    yield (
        "australis.target",
        _unit(
            {
                "Unit": [("Description", "Australis: all processes of this host"), ("Wants", " ".join(units))],
                "Install": [("WantedBy", "multi-user.target")],
            }
        ),
    )
    for role in roles:
        service = [
            ("Type", "exec"),
            ("User", "australis"),
            ("ExecStart", f"/usr/bin/env australis run {role} --config {CONFIG_DIRECTORY}/%i/{CONFIG_FILE}"),
            ("Restart", "always"),
            ("RestartSec", "1s"),
            ("KillMode", "mixed"),
            ("TimeoutStopSec", "60s"),
            ("LimitNOFILE", "65536"),
            ("StateDirectory", "australis/%i"),
            ("StateDirectoryMode", "0700"),
            ("RuntimeDirectory", "australis/%i"),
            ("RuntimeDirectoryMode", "0700"),
            ("NoNewPrivileges", "yes"),
            ("ProtectSystem", "strict"),
            ("ProtectHome", "yes"),
            ("PrivateTmp", "no" if role in ("gateway", "router") else "yes"),
        ]
        if role in ("gateway", "router"):
            service.append(("RuntimeDirectoryPreserve", "restart"))  # the other role of the host works in it, too
            service.append(("ReadWritePaths", f"-{RUN_DIRECTORY}"))
        yield (
            f"australis-{role}@.service",
            _unit(
                {
                    "Unit": [
                        ("Description", f"Australis {role} %i"),
                        ("After", "network-online.target"),
                        ("Wants", "network-online.target"),
                        ("StartLimitIntervalSec", "0"),
                        ("PartOf", "australis.target"),
                    ],
                    "Service": service,
                    "Install": [("WantedBy", "australis.target")],
                }
            ),
        )


def _unit(sections: Mapping[str, list[tuple[str, str]]]) -> str:
    lines = ["# Written by `australis deploy systemd`."]
    for section, settings in sections.items():
        lines += [f"[{section}]", *(f"{name}={value}" for name, value in settings), ""]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ compose


def _compose(topology: TopologyFile, configs: list[RoleConfig]) -> Iterable[tuple[str, str]]:
    services: dict[str, Any] = {}
    volumes: dict[str, Any] = {}
    for config in configs:
        name = config.name
        service: dict[str, Any] = {
            "image": "${AUSTRALIS_IMAGE:-" + IMAGE + "}",
            "command": _command(config),
            "restart": "always",
            "stop_grace_period": "60s",
            "user": f"{UID}:{UID}",
            "volumes": [f"./config/{name}:{CONFIG_DIRECTORY}/{name}:ro", f"{name}:{DATA_DIRECTORY}/{name}"],
        }
        volumes[name] = {}
        if config.role == "gateway":
            router = f"router-{config.number % topology.routers}"
            # one network and process namespace: the router hands over its sockets and watches the sessions
            service |= {"network_mode": f"service:{router}", "pid": f"service:{router}"}
            service["volumes"].append(f"run-{router}:{RUN_DIRECTORY}")
        else:
            service["hostname"] = name
        if config.role == "router":
            service["volumes"].append(f"run-{name}:{RUN_DIRECTORY}")
            service["ports"] = [f"{config.port}:{config.port}"]
            volumes[f"run-{name}"] = {}
        services[name] = service
    yield (
        "compose.yaml",
        "# Written by `australis deploy compose`.\n"
        + _yaml({"name": "australis", "services": services, "volumes": volumes}),
    )


def _command(config: RoleConfig) -> list[str]:
    return ["australis", "run", config.role, "--config", f"{CONFIG_DIRECTORY}/{config.name}/{CONFIG_FILE}"]


# --------------------------------------------------------------------------------------------------------------- helm


def _helm(topology: TopologyFile, configs: list[RoleConfig]) -> Iterable[tuple[str, str]]:
    """A chart with one StatefulSet of one pod per process; gateways are in their router's pod."""
    yield (
        "Chart.yaml",
        _yaml(
            {
                "apiVersion": "v2",
                "name": "australis",
                "description": "Australis, an open distributed SQL database",
                "type": "application",
                "version": "0.1.0",
            }
        ),
    )
    roles = list(dict.fromkeys(config.role for config in configs))
    yield (
        "values.yaml",
        _yaml(
            {
                "image": IMAGE,
                "storageClassName": "",
                "size": {role: "10Gi" for role in roles if role in STORED},
                "resources": {role: {"requests": {"cpu": "500m", "memory": "512Mi"}} for role in roles},
            }
        ),
    )
    gateways = [config for config in configs if config.role == "gateway"]
    for config in configs:
        if config.role == "gateway":
            continue
        inside = [config]
        if config.role == "router":
            inside += [one for one in gateways if one.number % topology.routers == config.number]
        documents = [_secret(one) for one in inside]
        documents += [_headless(config, inside), _stateful(config, inside)]
        yield (
            f"templates/{config.name}.yaml",
            "# Written by `australis deploy helm`.\n" + "---\n".join(_yaml(document) for document in documents),
        )
    yield (
        "templates/clients.yaml",
        "# Written by `australis deploy helm`.\n"
        + _yaml(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "australis"},
                "spec": {
                    "selector": {"app": "australis", "role": "router"},
                    "ports": [{"name": "postgresql", "port": CLIENT_PORT, "targetPort": "clients"}],
                },
            }
        ),
    )


def _secret(config: RoleConfig) -> dict[str, Any]:
    """The instance's files; Helm reads them from the chart's directory."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{config.name}-config"},
        "data": '{{- (.Files.Glob "config/' + config.name + '/*").AsSecrets | nindent 2 }}',
    }


def _labels(config: RoleConfig) -> dict[str, str]:
    return {"app": "australis", "role": config.role, "instance": config.name}


def _headless(config: RoleConfig, inside: list[RoleConfig]) -> dict[str, Any]:
    """Gives the pod its name; also before it is ready: the others connect as it starts."""
    ports = [{"name": name, "port": port} for name, port in _ports(inside)]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": config.name, "labels": _labels(config)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": _labels(config),
            "ports": ports,
        },
    }


def _ports(inside: list[RoleConfig]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for config in inside:
        if config.role == "router":
            found.append(("clients", config.port))
        elif config.role == "nats":
            found.append(("nats", int(config.client_address.rpartition(":")[2])))
            if config.cluster_address:
                found.append(("routes", int(config.cluster_address.rpartition(":")[2])))
        else:
            found.append((config.name[:15], int(config.listen.rpartition(":")[2])))
    return found


def _stateful(config: RoleConfig, inside: list[RoleConfig]) -> dict[str, Any]:
    containers = []
    for one in inside:
        mounts = [
            {"name": f"config-{one.name}", "mountPath": f"{CONFIG_DIRECTORY}/{one.name}", "readOnly": True},
            {"name": f"data-{one.name}", "mountPath": f"{DATA_DIRECTORY}/{one.name}"},
        ]
        if config.role == "router":
            mounts.append({"name": "run", "mountPath": RUN_DIRECTORY})
        containers.append(
            {
                "name": one.name,
                "image": "{{ .Values.image }}",
                "command": _command(one),
                "ports": [{"name": name, "containerPort": port} for name, port in _ports([one])],
                "resources": "{{ toJson .Values.resources." + one.role + " }}",
                "volumeMounts": mounts,
            }
        )
    volumes: list[dict[str, Any]] = [
        {"name": f"config-{one.name}", "secret": {"secretName": f"{one.name}-config", "defaultMode": 0o440}}
        for one in inside
    ]
    claims = []
    for one in inside:
        if one.role in STORED:
            claims.append(
                {
                    "metadata": {"name": f"data-{one.name}"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "storageClassName": "{{ .Values.storageClassName }}",
                        "resources": {"requests": {"storage": "{{ .Values.size." + one.role + " }}"}},
                    },
                }
            )
        else:
            volumes.append({"name": f"data-{one.name}", "emptyDir": {}})
    if config.role == "router":
        volumes.append({"name": "run", "emptyDir": {}})
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": config.name, "labels": _labels(config)},
        "spec": {
            "replicas": 1,
            "serviceName": config.name,
            "selector": {"matchLabels": _labels(config)},
            "template": {
                "metadata": {"labels": _labels(config)},
                "spec": {
                    # the name under which it listens is that of its service
                    "terminationGracePeriodSeconds": 60,
                    "shareProcessNamespace": config.role == "router",
                    "securityContext": {"runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID},
                    "containers": containers,
                    "volumes": volumes,
                },
            },
            "volumeClaimTemplates": claims,
        },
    }


# --------------------------------------------------------------------------------------------------------------- yaml


def _yaml(content: Any, indent: int = 0) -> str:
    """YAML of plain values; texts are quoted, template expressions of Helm are left as they are."""
    space = "  " * indent
    if isinstance(content, dict) and content:
        lines = []
        for key, value in content.items():
            if isinstance(value, dict | list) and value:
                lines.append(f"{space}{key}:\n{_yaml(value, indent + 1)}")
            else:
                lines.append(f"{space}{key}: {_scalar(value)}\n")
        return "".join(lines)
    if isinstance(content, list) and content:
        lines = []
        for value in content:
            if isinstance(value, dict | list) and value:
                body = _yaml(value, indent + 1)
                lines.append(f"{space}- {body[2 * (indent + 1) :]}")
            else:
                lines.append(f"{space}- {_scalar(value)}\n")
        return "".join(lines)
    return f"{space}{_scalar(content)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and value.startswith("{{") and ("toJson" in value or value.startswith("{{-")):
        return value
    return json.dumps(value)
