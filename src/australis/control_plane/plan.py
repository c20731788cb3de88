"""From a topology to what each process is told: names, addresses, directories. Pure but for reading nothing.

    configs = plan(topology, cluster, place, secrets)     one RoleConfig per process, in the order of their start

`Place` says where things are: sockets and directories of one machine (`OneMachine`), or hosts named after the processes
(deploy.py). What must hold: names are the same at every start (journals, stores and certificates belong to them), every
process is told of the same map and the same addresses, and what this makes is what `load_role` accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from australis.control_plane.topology import (
    ClockConfig,
    JournalConfig,
    Peers,
    RoleConfig,
    RoleName,
    TlsConfig,
    TopologyFile,
    first_map,
    replica_name,
)
from australis.journal.nats_server import ACCOUNT, SYSTEM
from australis.limits import LIMITS

CONFIG_FILE = "config.json"
"""Of a role, in its directory."""

POSTGRESQL_SOCKET = "postgresql.sock"
PLACES_SOCKET = "places.sock"
"""In a gateway's run directory: the PostgreSQL that serves there, whatever its port is."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One process: `number` as in RoleConfig, `replica` only of storage."""

    role: RoleName
    name: str
    number: int


class Place(Protocol):
    """Where the parts of a cluster are. All paths absolute, all addresses as transport.Address reads them."""

    def address(self, instance: Instance) -> str:
        """Where the others find it."""
        ...

    def nats(self, instance: Instance) -> tuple[str, str]:
        """host:port for clients, host:port for the other servers."""
        ...

    def data(self, instance: Instance) -> str:
        """Its own directory."""
        ...

    def run(self, instance: Instance) -> str:
        """A gateway's run directory."""
        ...

    def tls(self, instance: Instance) -> TlsConfig | None:
        """Its certificate."""
        ...

    def upstreams(self, router: Instance, gateways: list[Instance]) -> list[str]:
        """Where a router finds the PostgreSQL servers, or the gateways that give places in them."""
        ...

    def image(self) -> str:
        """File of the image that gateways share; "" if each has its own."""
        ...

    def objects(self) -> str:
        """URL of the object store if the topology names none; "": none."""
        ...

    def password_file(self, instance: Instance) -> str:
        """Where the password of user admin is."""
        ...

    def port(self, router: Instance) -> int:
        """A router's port."""
        ...

    def hosts(self, router: Instance) -> list[str]:
        """Where a router listens."""
        ...


def instances(topology: TopologyFile) -> list[Instance]:
    """All processes of a topology, in the order of their start."""
    found = [Instance("nats", f"nats-{number}", number) for number in range(topology.nats)]
    found.append(Instance("control", "control", 0))
    found += [
        Instance("adjudicator", f"adjudicator-{number}" + (f"-{candidate}" if candidate else ""), number)
        for number in range(topology.adjudicators)
        for candidate in range(topology.candidates)
    ]
    found += [Instance("crossbar", f"crossbar-{number}", number) for number in range(topology.crossbars)]
    found += [
        Instance("storage", replica_name(shard, replica), shard)
        for shard in range(topology.shards)
        for replica in range(topology.replicas)
    ]
    found += [Instance("gateway", f"gateway-{number}", number) for number in range(topology.query_processors)]
    found += [Instance("router", f"router-{number}", number) for number in range(topology.routers)]
    return found


def plan(topology: TopologyFile, cluster: str, place: Place, secret: str) -> list[RoleConfig]:
    """What each process is told. `cluster`: 32 hexadecimal digits; `secret`: password of NATS servers of our own."""
    everybody = instances(topology)
    of: Callable[[str], list[Instance]] = lambda role: [one for one in everybody if one.role == role]  # noqa: E731
    peers = Peers(
        adjudicators={
            str(number): [place.address(one) for one in of("adjudicator") if one.number == number]
            for number in range(topology.adjudicators)
        },
        crossbars=[place.address(one) for one in of("crossbar")],
        storage={one.name: place.address(one) for one in of("storage")},
        gateways={one.name: place.address(one) for one in of("gateway")},
        control=[place.address(one) for one in of("control")],
    )
    first = first_map(topology.adjudicators, topology.shards, topology.replicas).encode().hex()
    journal = _journal(topology, cluster, place, secret, of("nats"))
    limits = LIMITS[topology.profile]
    clock = ClockConfig(source=topology.clock.source, max_error=round(topology.clock.max_error * 1e9))
    configs = []
    for index, one in enumerate(everybody):
        common = RoleConfig(
            cluster=cluster,
            role=one.role,
            name=one.name,
            number=one.number,
            data=place.data(one),
            profile=topology.profile,
            tls=place.tls(one),
            metrics=f"{_bracketed(topology.metrics.listen)}:{topology.metrics.port + index}"
            if topology.metrics.port and one.role != "nats"
            else "",
            traces=topology.traces,
            log_level=topology.log_level,
        )
        fields = _fields(common)
        if one.role == "nats":
            clients, others = place.nats(one)
            routes = [place.nats(other)[1] for other in of("nats")] if topology.nats > 1 else []
            fields |= {
                "journal": journal,
                "client_address": clients,
                "cluster_address": others if topology.nats > 1 else "",
                "routes": routes,
            }
        elif one.role == "router":
            fields |= {
                "upstreams" if topology.pool is None else "places": place.upstreams(one, of("gateway")),
                "hosts": place.hosts(one),
                "port": place.port(one),
                "run": place.run(one),
                "connections": topology.connections or limits.connections,
                "client_certificate": topology.tls.certificate,
                "client_key": topology.tls.key,
            }
        else:
            fields |= {
                "listen": place.address(one),
                "peers": peers,
                "map": first,
                "journal": journal,
                "clock": clock,
                "retention": topology.retention or limits.retention,
                "rebalance": topology.rebalance,
                "objects": place.objects() if topology.objects is None else topology.objects,
                "snapshot_seconds": topology.snapshot_seconds,
            }
        if one.role == "gateway":
            fields |= {
                "run": place.run(one),
                "connections": topology.connections or limits.connections,
                "pool": topology.pool,
                "password_file": place.password_file(one),
                "image": place.image(),
                "service_timeout": limits.service_timeout,
                "write_buffer": (topology.write_buffer_mb or 0) << 20 or limits.write_buffer,
                "postgresql": topology.postgresql,
            }
        configs.append(RoleConfig(**fields))  # type: ignore[arg-type]  # names and values are those of its fields
    return configs


def upstream_socket(topology: TopologyFile) -> str:
    """Where a gateway's run directory has what routers connect to."""
    return POSTGRESQL_SOCKET if topology.pool is None else PLACES_SOCKET


def _fields(config: RoleConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def _journal(topology: TopologyFile, cluster: str, place: Place, secret: str, servers: list[Instance]) -> JournalConfig:
    section = topology.journal
    if topology.engine == "files":
        return JournalConfig(max_mb=section.max_mb)
    urls, system = section.servers, section.system
    replicas = section.replicas or 3
    if servers:
        urls = [f"nats://{ACCOUNT}:{secret}@{place.nats(one)[0]}" for one in servers]
        system = f"{SYSTEM}:{secret}"
        replicas = section.replicas or (3 if topology.nats >= 3 else 1)
    prefix = section.prefix or f"australis-{cluster[:16]}"
    return JournalConfig(
        engine="nats", servers=urls, system=system, prefix=prefix, replicas=replicas, max_mb=section.max_mb
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class OneMachine:
    """Everything below one data directory; Unix sockets, or loopback TCP with certificates.

    `free_port` names ports for this run; called once for each address.
    """

    def __init__(
        self,
        topology: TopologyFile,
        *,
        roles: Path,
        run: Path,
        password: Path,
        image: Path,
        port: int,
        free_port: Callable[[], int],
        certificates: Callable[[Instance], TlsConfig] | None = None,
    ) -> None:
        self._topology = topology
        self._roles, self._run, self._password, self._image = roles, run, password, image
        self._port, self._free_port = port, free_port
        self._certificates = certificates
        self._ports: dict[str, int] = {}

    def _loopback(self, what: str) -> str:
        if what not in self._ports:
            self._ports[what] = self._free_port()
        return f"127.0.0.1:{self._ports[what]}"

    def address(self, instance: Instance) -> str:
        if self._certificates is not None:
            return self._loopback(instance.name)
        return f"unix:{self._run / instance.name}.sock"

    def nats(self, instance: Instance) -> tuple[str, str]:
        return self._loopback(instance.name), self._loopback(f"{instance.name} cluster")

    def data(self, instance: Instance) -> str:
        return str(self._roles / instance.name)

    def run(self, instance: Instance) -> str:
        return str(self._run / instance.name)

    def tls(self, instance: Instance) -> TlsConfig | None:
        if self._certificates is None or instance.role in ("nats", "router"):
            return None
        return self._certificates(instance)

    def upstreams(self, router: Instance, gateways: list[Instance]) -> list[str]:
        return [f"unix:{self._run / one.name / upstream_socket(self._topology)}" for one in gateways]

    def image(self) -> str:
        return str(self._image)

    def objects(self) -> str:
        return (self._roles.parent / "objects").as_uri()

    def password_file(self, instance: Instance) -> str:
        return str(self._password)

    def port(self, router: Instance) -> int:
        return self._port + router.number

    def hosts(self, router: Instance) -> list[str]:
        return list(self._topology.listen)
