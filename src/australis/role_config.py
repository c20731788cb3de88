"""What one process of a cluster is told at its start: the file of a role.

    config = load_role(Path("adjudicator-0/config.json"))   JSON, made by control_plane/plan.py

What must hold: a key that is unknown, of the wrong type or in conflict with another is a one-line error that names file
and key, before anything is started or changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from australis.config import OWN_SETTINGS, ConfigError, Megabytes, Pool, pool_mistake
from australis.limits import Profile
from australis.partition_map import MapError, PartitionMap
from australis.transport import Address, AddressError, Identity

ROLES = ("nats", "control", "adjudicator", "crossbar", "storage", "gateway", "router")
"""In the order in which they start."""

RoleName = Literal["nats", "control", "adjudicator", "crossbar", "storage", "gateway", "router"]
Settings = dict[str, str | int | float | bool]
"""Settings of PostgreSQL."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


# ----------------------------------------------------------------------------------------------------- what roles get


class Peers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the others are (Address texts). An adjudicator may have several addresses: of its candidates."""

    adjudicators: dict[str, list[str]] = {}  # number -> addresses
    crossbars: list[str] = []
    storage: dict[str, str] = {}  # name of the replica, as in the map -> address
    gateways: dict[str, str] = {}  # name -> address
    control: list[str] = []


class JournalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where journals are: files of each adjudicator, or streams `<prefix>-<number>` on NATS servers.

    `servers` are URLs with user and password, `system` is "user:password" of their system account.
    """

    engine: Literal["files", "nats"] = "files"
    servers: list[str] = []
    system: str = ""
    prefix: str = ""
    replicas: Literal[1, 3, 5] = 3
    max_mb: Megabytes = 4096  # commits are refused when a stream is that large


class ClockConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The source of time (clock.py); `max_error` in ns is the largest error bound with which a process starts."""

    source: Literal["fixed", "kernel", "chrony"] = "fixed"
    max_error: Annotated[int, msgspec.Meta(ge=0)] = 50_000_000


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files: the authority's certificate, and this process's own certificate and key (`australis certs`)."""

    ca: str
    certificate: str
    key: str


class TraceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where traces go (an OTLP/HTTP endpoint): of one transaction in `every`."""

    endpoint: str
    every: Annotated[int, msgspec.Meta(ge=1)] = 100


class RoleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that one process is told. Sizes in bytes, times in seconds unless a name says otherwise."""

    cluster: str  # 32 hexadecimal digits
    role: RoleName
    name: str  # unique in the cluster, the same for ever: adjudicator-0, storage-2-1 (shard 2, replica 1), gateway-0
    number: Annotated[int, msgspec.Meta(ge=0)] = 0  # of the adjudicator or shard; else counts instances of the role
    listen: str = ""  # where the others find it (Address text)
    data: str  # its own directory: exists, private, of the user that it runs as
    run: str = ""  # gateway: directory of commit.sock, storage.sock, the page and PostgreSQL's socket
    profile: Profile = "postgres"
    peers: Peers = Peers()
    map: str = ""  # the first PartitionMap (version 1), encoded, in hexadecimal
    journal: JournalConfig = JournalConfig()
    clock: ClockConfig = ClockConfig()
    tls: TlsConfig | None = None  # None: whoever reaches the address is trusted
    metrics: str = ""  # where Prometheus asks (host:port); "" for nowhere
    traces: TraceConfig | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    retention: Annotated[float, msgspec.Meta(ge=1)] = 300.0  # storage: how long versions are kept for open snapshots
    rebalance: bool = True  # control: even out the loads of shards
    objects: str = ""  # storage: URL of the object store for snapshots; empty: none, and journals are never trimmed
    snapshot_seconds: Annotated[float, msgspec.Meta(gt=0)] = 300.0  # storage: between snapshots of a shard

    # gateway
    processors: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1  # PostgreSQL servers on this host
    pool: Pool | None = None  # instead: they come with sessions and go when they are idle
    connections: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200
    password_file: str = ""  # holds the password of user admin
    image: str = ""  # file of the data directories' image, which gateways of one host share; "" for one of its own
    direct_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0  # PostgreSQL's own TCP port; 0 takes a free one
    service_timeout: float = 10.0
    write_buffer: int = 1 << 30
    postgresql: Settings = {}

    # router
    upstreams: list[str] = []  # sockets (unix:PATH) or addresses of PostgreSQL servers
    places: list[str] = []  # instead: sockets (unix:PATH) where gateways with a pool give places
    hosts: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1", "::1"])
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    client_certificate: str = ""  # PEM files for clients' TLS
    client_key: str = ""

    # nats
    client_address: str = ""  # host:port
    cluster_address: str = ""
    routes: list[str] = []  # the other servers' cluster addresses

    @property
    def cluster_id(self) -> bytes:
        """The cluster's 16 bytes."""
        return bytes.fromhex(self.cluster)

    @property
    def partition_map(self) -> PartitionMap:
        """The first map. Raises MapError."""
        try:
            return PartitionMap.decode(bytes.fromhex(self.map))
        except ValueError as error:
            raise MapError(f"not a partition map: {error}") from None


def encode_role(config: RoleConfig) -> bytes:
    """The content of a role's file; what is at its default is left out."""
    plain = msgspec.to_builtins(config)
    default = msgspec.to_builtins(RoleConfig(cluster="", role="control", name="", data=""))
    kept = {name: value for name, value in plain.items() if name in ("role",) or value != default[name]}
    return msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n"


def load_role(path: Path) -> RoleConfig:
    """Read a role's file. Raises ConfigError: one line that names file and key."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=RoleConfig)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {in_words(str(error))}{hint(str(error), RoleConfig, ROLE_SECTIONS)}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    for key, mistake in _role_mistakes(config):
        raise ConfigError(f"{path}: {key}: {mistake}")
    return config


def _role_mistakes(config: RoleConfig) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it)."""
    if not re.fullmatch(r"[0-9a-f]{32}", config.cluster):
        yield "cluster", f"expected 32 hexadecimal digits, got {config.cluster!a}"
    if not re.fullmatch(_NAME, config.name):
        yield "name", f"expected letters, digits, '.', '_' and '-', got {config.name!a}"
    for key in ("data", "run"):
        value = getattr(config, key)
        if (value or key == "data") and not value.startswith("/"):
            yield key, f"expected an absolute path, got {value!a}"
    yield from _address_mistakes(config)
    role = config.role
    if role in ("adjudicator", "crossbar", "storage", "gateway", "control"):
        if not config.listen:
            yield "listen", f"role {role} needs an address"
        if not config.map:
            yield "map", f"role {role} needs the first partition map"
        try:
            owners = config.partition_map
        except MapError as error:
            yield "map", str(error)
            return
        number = str(config.number)
        if role == "adjudicator" and config.number not in owners.adjudicators:
            yield "number", f"the map knows no adjudicator {number}"
        if role == "storage" and config.name not in owners.replicas.get(config.number, ()):
            yield "name", f"the map knows no replica {config.name} of shard {number}"
        for adjudicator in owners.adjudicators:
            if not config.peers.adjudicators.get(str(adjudicator)):
                yield "peers.adjudicators", f"no address of adjudicator {adjudicator}, which the map names"
        for replica in (name for names in owners.replicas.values() for name in names):
            if replica not in config.peers.storage:
                yield "peers.storage", f"no address of {replica}, which the map names"
    if role == "gateway":
        for key in ("run", "password_file"):
            if not getattr(config, key):
                yield key, "role gateway needs it"
    if role == "router" and bool(config.upstreams) == bool(config.places):
        yield "upstreams", "role router needs at least one, or places"
    if config.pool is not None and (mistake := pool_mistake(config.pool)):
        yield "pool", mistake
    if bool(config.client_certificate) != bool(config.client_key):
        yield "client_key", "client_certificate and client_key belong together"
    if mistake := setting_mistake(config.postgresql):
        yield "postgresql", mistake
    journal = config.journal
    if role in ("adjudicator", "crossbar", "control") and journal.engine == "nats" and not journal.servers:
        yield "journal.servers", "engine nats needs servers"
    if journal.engine == "nats" and not re.fullmatch(r"[A-Za-z0-9_-]{1,48}", journal.prefix):
        yield "journal.prefix", f"expected letters, digits, - and _, got {journal.prefix!a}"


def _address_mistakes(config: RoleConfig) -> Iterator[tuple[str, str]]:
    peers = config.peers
    places = [("listen", config.listen)] if config.listen else []
    places += [("metrics", config.metrics)] if config.metrics else []
    places += [(f"peers.adjudicators.{number}", text) for number, texts in peers.adjudicators.items() for text in texts]
    places += [("peers.crossbars", text) for text in peers.crossbars]
    places += [(f"peers.storage.{name}", text) for name, text in peers.storage.items()]
    places += [(f"peers.gateways.{name}", text) for name, text in peers.gateways.items()]
    places += [("peers.control", text) for text in peers.control]
    places += [("upstreams", text) for text in config.upstreams]
    for text in config.places:
        if not text.startswith("unix:/"):
            yield "places", f"expected unix:PATH, got {text!a}"
    for key, text in places:
        try:
            Address.parse(text)
        except AddressError as error:
            yield key, str(error)
    for number in peers.adjudicators:
        if not number.isascii() or not number.isdigit():
            yield "peers.adjudicators", f"expected numbers of adjudicators, got {number!a}"


def identity_of(config: RoleConfig, generation: Callable[[], int] = lambda: 0) -> Identity:
    """Who this process is to others. Raises CertificateError if its certificates cannot be used."""
    if config.tls is None:
        return Identity(config.cluster_id, config.role, config.name, generation)
    from australis.certs import Files, contexts, peer_check

    server, client = contexts(
        Files(Path(config.tls.ca), Path(config.tls.certificate), Path(config.tls.key)), config.cluster_id
    )
    return Identity(
        config.cluster_id,
        config.role,
        config.name,
        generation,
        server_tls=server,
        client_tls=client,
        check_peer=peer_check(config.cluster_id),
    )


def setting_mistake(settings: Settings) -> str:
    """What is wrong with settings of PostgreSQL; empty if nothing is."""
    for name, setting in settings.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?", name):
            return f"{name!a} is no name of a setting"
        if isinstance(setting, str) and any(ord(letter) < 32 for letter in setting):
            return f"{name}: control characters are not possible here"
        if name.lower() in OWN_SETTINGS or name.lower().startswith("australis."):
            return f"{name} is set by Australis itself; remove it"
    return ""


def hint(message: str, kind: type[msgspec.Struct], sections: Mapping[str, type[msgspec.Struct]]) -> str:
    """Known keys of the section of the struct `kind`, or the values that a key may have, to msgspec's `message`."""
    path = message.partition(" - at `$")[2].rstrip("`").lstrip(".").split(".")
    section = sections.get(path[0], kind)
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    if "unknown field" in message:
        return f" (known keys: {', '.join(fields)})"
    field = fields.get(path[-1])
    choices = _literals(field.type) if field is not None else ()
    return f", must be one of {', '.join(map(str, choices))}" if choices and "nvalid enum" in message else ""


ROLE_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "peers": Peers,
    "journal": JournalConfig,
    "clock": ClockConfig,
    "pool": Pool,
    "tls": TlsConfig,
    "traces": TraceConfig,
}


def _literals(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    for part in get_args(kind):
        if found := _literals(part):
            return found
    return ()


def in_words(message: str) -> str:
    """Turn msgspec's "Expected `int | null`, got `str` - at `$.port`" into "port: expected int, got str"."""
    text, _, path = message.partition(" - at `$")
    text = text.replace("Object contains unknown field", "unknown key").replace(" | null", "")
    text = text.replace("Object missing required field", "missing key")
    text = text.replace("`", '"' if "key" in text or "enum value" in text else "")
    where = f"{path.rstrip('`').lstrip('.')}: " if path.rstrip("`") else ""
    return where + text[0].lower() + text[1:]
