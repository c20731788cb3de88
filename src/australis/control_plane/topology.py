"""What a cluster of many processes consists of: the file that a user writes.

    topology = load_topology(Path("topology.toml"))     TOML, counts of roles (docs/topology.md)

`plan.py` makes from it what each process is told (role_config.py, whose names are here too for those who make such
files). What must hold: a key that is unknown, of the wrong type or in conflict with another is a one-line error that
names file and key, before anything is started or changed; the first partition map is a function of the counts alone, so
that every process that is told of the same topology has the same map.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from australis.config import ConfigError, Megabytes, Pool, Port, pool_mistake
from australis.keyspace import KEYSPACE_END, RELATION_BYTES
from australis.limits import Profile
from australis.objects.url import url_mistake
from australis.partition_map import PartitionMap, Range, Shard
from australis.role_config import (
    ROLES as ROLES,
)
from australis.role_config import (
    ClockConfig as ClockConfig,
)
from australis.role_config import (
    JournalConfig as JournalConfig,
)
from australis.role_config import (
    Peers as Peers,
)
from australis.role_config import (
    RoleConfig as RoleConfig,
)
from australis.role_config import (
    RoleName as RoleName,
)
from australis.role_config import (
    Settings,
    TraceConfig,
    hint,
    in_words,
    setting_mistake,
)
from australis.role_config import (
    TlsConfig as TlsConfig,
)
from australis.role_config import (
    encode_role as encode_role,
)
from australis.role_config import (
    identity_of as identity_of,
)
from australis.role_config import (
    load_role as load_role,
)

FILE_NAME = "topology.toml"

Count = Annotated[int, msgspec.Meta(ge=1, le=64)]


# ---------------------------------------------------------------------------------------------------- what users write


class ClockSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`max_error` in seconds."""

    source: Literal["fixed", "kernel", "chrony"] = "fixed"
    max_error: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.05


class TlsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`internal`: mutual TLS between all processes, with an authority of the cluster's own (needs TCP).

    `certificate`, `key`: for encrypted client connections at the routers.
    """

    internal: bool = False
    certificate: str = ""
    key: str = ""


class JournalSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Servers that run elsewhere, instead of `nats = N` of the cluster's own; and sizes."""

    servers: list[str] = []
    system: str = ""
    prefix: str = ""
    replicas: Literal[1, 3, 5] | None = None
    max_mb: Megabytes = 4096


class MetricsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """HTTP ports for Prometheus: the first process gets `port`, the others the next ones. 0: none."""

    listen: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65000)] = 0


class TopologyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of each role. Times in seconds, sizes in megabytes."""

    profile: Profile = "postgres"
    nats: Literal[0, 1, 3, 5] = 0  # servers of the cluster's own; 0: journals in files
    adjudicators: Count = 1
    candidates: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1  # processes that may serve each of them; needs NATS
    crossbars: Count = 1
    shards: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    replicas: Annotated[int, msgspec.Meta(ge=1, le=7)] = 1
    query_processors: Count = 1  # each a gateway with one PostgreSQL, or
    pool: Pool | None = None  # each a gateway with as many as are needed
    routers: Count = 1
    port: Port | None = None  # of the first router, the others take the next; None: 5432, or the next free ones
    listen: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["127.0.0.1", "::1"]
    )
    connections: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None  # of each query processor
    retention: Annotated[float, msgspec.Meta(ge=1)] | None = None
    rebalance: bool = True  # move ranges between shards by their sizes and loads
    objects: str | None = None  # URL of the object store for snapshots of shards; None: a directory of the cluster
    snapshot_seconds: Annotated[float, msgspec.Meta(gt=0)] = 300.0  # between snapshots of a shard
    liveness: Annotated[float, msgspec.Meta(ge=0)] = (
        3.0  # how long a process may be silent before it is killed; 0: ever
    )
    write_buffer_mb: Megabytes | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    clock: ClockSection = ClockSection()
    tls: TlsSection = TlsSection()
    journal: JournalSection = JournalSection()
    metrics: MetricsSection = MetricsSection()
    traces: TraceConfig | None = None
    postgresql: Settings = {}

    @property
    def engine(self) -> Literal["files", "nats"]:
        """Of the journals."""
        return "nats" if self.nats or self.journal.servers else "files"


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "clock": ClockSection,
    "tls": TlsSection,
    "journal": JournalSection,
    "pool": Pool,
    "metrics": MetricsSection,
    "traces": TraceConfig,
}


def load_topology(path: Path) -> TopologyFile:
    """Read a user's file. Raises ConfigError: one line that names file and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    return parse_topology(text, path)


def parse_topology(text: str, path: Path) -> TopologyFile:
    """Parse the content of a user's file; `path` is for errors, and where relative paths in it begin."""
    try:
        topology = msgspec.convert(tomllib.loads(text), TopologyFile)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {in_words(str(error))}{hint(str(error), TopologyFile, SECTIONS)}") from None
    for key, mistake in _topology_mistakes(topology):
        raise ConfigError(f"{path}: {key}: {mistake}")
    here = path.absolute().parent
    tls = topology.tls
    if tls.certificate:
        tls = msgspec.structs.replace(tls, certificate=str(here / tls.certificate), key=str(here / tls.key))
    return msgspec.structs.replace(topology, tls=tls)


def _topology_mistakes(topology: TopologyFile) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it)."""
    for host in topology.listen:
        if not host or not host.isprintable():
            yield "listen", f"expected hosts, got {host!a}"
    if topology.port is not None and topology.port + topology.routers - 1 > 65535:
        yield "port", f"{topology.routers} routers need ports up to {topology.port + topology.routers - 1}"
    if topology.objects and (mistake := url_mistake(topology.objects)):
        yield "objects", mistake
    for key, value in (("retention", topology.retention), ("clock.max_error", topology.clock.max_error)):
        if value is not None and not math.isfinite(value):
            yield key, f"expected a number of seconds, got {value}"
    journal = topology.journal
    if topology.nats and journal.servers:
        yield "nats", f"{topology.nats} servers of the cluster's own, and journal.servers elsewhere: choose one"
    for server in journal.servers:
        if not re.fullmatch(r"(nats|tls)://([^@/\s]+@)?[^@/\s]+", server):
            yield "journal.servers", f"expected nats://user:password@host:port, got {server!a}"
    if bool(journal.servers) != bool(journal.system):
        missing = "system" if journal.servers else "servers"
        yield f"journal.{missing}", "missing: servers and the user of their system account belong together"
    if journal.system and not re.fullmatch(r"[^:@/\s]+:[^@/\s]+", journal.system):
        yield "journal.system", "expected user:password"
    if journal.prefix and not re.fullmatch(r"[A-Za-z0-9_-]{1,48}", journal.prefix):
        yield "journal.prefix", "expected letters, digits, - and _"
    if topology.engine == "files":
        for key in ("prefix", "replicas"):
            if getattr(journal, key):
                yield f"journal.{key}", "needs nats = 1, 3 or 5, or journal.servers"
    if topology.engine == "files" and topology.candidates > 1:
        yield "candidates", "journals in files have one adjudicator each: needs nats = 1, 3 or 5, or journal.servers"
    if topology.nats and (journal.replicas or 1) > topology.nats:
        yield "journal.replicas", f"{journal.replicas} replicas need as many servers, nats = {topology.nats}"
    tls = topology.tls
    if bool(tls.certificate) != bool(tls.key):
        yield f"tls.{'key' if tls.certificate else 'certificate'}", "missing: certificate and key belong together"
    if topology.pool is not None and (mistake := pool_mistake(topology.pool)):
        yield "pool", mistake
    if topology.metrics.port and not topology.metrics.listen:
        yield "metrics.listen", "expected a host"
    if topology.traces is not None and not re.match(r"https?://.", topology.traces.endpoint):
        yield "traces.endpoint", f"expected a URL, got {topology.traces.endpoint!a}"
    if mistake := setting_mistake(topology.postgresql):
        yield "postgresql", mistake


# ----------------------------------------------------------------------------------------------- the first partition

DATABASE = 5
"""PostgreSQL's oid of database postgres, the first one."""

FIRST_RELATION = 16384
"""Smallest oid and relfilenumber of what users make."""

STRIPES = ((32, 8), (32, 64), (32, 1024), (16, 32768))
"""(how many stripes, relfilenumbers in each), from FIRST_RELATION on: a new cluster's tables are small numbers close to
each other, and a table with its row type, TOAST and key takes about as many as the narrowest stripe has."""

DATABASE_STRIPES = ((32, 1), (16, 64), (16, 4096))
"""The same for oids of databases that users make."""


def _stripe_bounds() -> list[bytes]:
    """Where one stripe ends and the next begins, above the relations of the system."""
    bounds = [1 << 32]
    for first, stripes, shift in ((DATABASE << 32 | FIRST_RELATION, STRIPES, 0), (0, DATABASE_STRIPES, 32)):
        at = first if shift == 0 else FIRST_RELATION << 32
        for count, width in stripes:
            for _ in range(count):
                bounds.append(at)
                at += width << shift
        bounds.append(at)
    return [bound.to_bytes(RELATION_BYTES, "big") for bound in bounds]


def striped(owners: list[int]) -> list[Range]:
    """Ranges of the whole keyspace: system relations with the first owner, those of users in turn with all of them."""
    ranges: list[Range] = []
    bounds = [b"", *_stripe_bounds(), KEYSPACE_END]
    for index, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        owner = owners[0] if index == 0 else owners[(index - 1) % len(owners)]
        if ranges and ranges[-1].owner == owner:
            ranges[-1] = Range(ranges[-1].lo, hi, owner)
        else:
            ranges.append(Range(lo, hi, owner))
    return ranges


def replica_name(shard: int, replica: int) -> str:
    """Name of a storage process."""
    return f"storage-{shard}-{replica}"


def first_map(adjudicators: int, shards: int, replicas: int) -> PartitionMap:
    """Version 1: every relation has an owner and a shard, tables made one after the other have different ones."""
    numbers = list(range(adjudicators))
    places = [Shard(shard, [replica_name(shard, number) for number in range(replicas)]) for shard in range(shards)]
    return PartitionMap(1, numbers, striped(numbers), places, striped([shard.id for shard in places]))
