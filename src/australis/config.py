"""The configuration file `<data>/australis.toml`: few keys, each optional, each checked before anything starts.

What must hold: a key that is unknown or of the wrong type is a one-line error that names file and key; nothing has been
changed on disk by then. Values given on the command line win over the file, the file over the defaults.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import msgspec

from australis.errors import AustralisError
from australis.page import PROCESSORS

FILE_NAME = "australis.toml"
DRIVER_VARIABLE = "AUSTRALIS_STORAGE_DRIVER"

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Megabytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]

# Settings of PostgreSQL that the launcher owns: changing them would break the cluster, not tune it.
OWN_SETTINGS = frozenset(
    {
        "data_directory",
        "fsync",
        "hba_file",
        "ident_file",
        "external_pid_file",
        "listen_addresses",
        "port",
        "unix_socket_directories",
        "shared_preload_libraries",
        "dynamic_library_path",
        "wal_level",
        "max_wal_senders",
        "max_connections",
        "max_prepared_transactions",
        "archive_mode",
        "primary_conninfo",
        "default_table_access_method",
        "logging_collector",
        "log_destination",
        "ssl",
    }
)


class ConfigError(AustralisError):
    """The configuration file cannot be used; the message is one line and says what to change."""


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Certificate chain and private key (PEM files) for encrypted client connections."""

    certificate: str
    key: str


class Journal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where committed transactions are kept: in files of this machine, or in a stream on NATS servers.

    Engine nats without `servers` runs one server of the cluster's own, for development: as durable as files, slower.
    `servers` are URLs with user and password, `system` is "user:password" of their system account.
    """

    engine: Literal["files", "nats"] = "files"
    servers: list[str] = []
    system: str = ""
    stream: str = ""  # default: named after the cluster
    replicas: Literal[1, 3, 5] | None = None  # default: 3, or 1 with a server of our own
    max_mb: Megabytes = 4096  # commits are refused when the stream is that large


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Query processors that come with sessions and go when they are idle, instead of a fixed number of them."""

    min: Annotated[int, msgspec.Meta(ge=0, le=PROCESSORS)] = 0
    max: Annotated[int, msgspec.Meta(ge=1, le=PROCESSORS)] = 4
    sessions: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50  # of each; more than that start another one
    idle: Annotated[float, msgspec.Meta(gt=0)] = 300.0  # seconds without a session after which one is stopped


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All keys of the file. Times in seconds, sizes in megabytes."""

    port: Port | None = None  # None: 5432, or the next free one
    listen: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["127.0.0.1", "::1"]
    )
    connections: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    query_processors: Annotated[int, msgspec.Meta(ge=1, le=PROCESSORS)] = 1  # PostgreSQL servers
    pool: Pool | None = None
    storage_driver: Literal["attached", "socket"] = "attached"
    write_buffer_mb: Megabytes | None = None
    retention: Annotated[float, msgspec.Meta(ge=1)] | None = None
    snapshot_mb: Megabytes | None = None  # journal between two snapshots of storage
    handover: bool = True  # give client sockets to the backend instead of relaying bytes
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tls: Tls | None = None
    journal: Journal = Journal()
    postgresql: dict[str, str | int | float | bool] = {}  # more settings for postgresql.conf

    @property
    def files(self) -> set[str]:
        """Names in the data directory that the configuration refers to."""
        paths = (Path(self.tls.certificate), Path(self.tls.key)) if self.tls else ()
        return {part for path in paths for part in path.parts[:1]}


def load(directory: Path) -> Config:
    """Read `australis.toml` in `directory`; defaults when there is none.

    The environment variable `AUSTRALIS_STORAGE_DRIVER` wins over the file (tests run on both drivers).
    Raises ConfigError.
    """
    file = directory / FILE_NAME
    content: dict[str, object] = {}
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file}: not a regular file; correct it or remove it")
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); correct it or remove the file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}; correct it or remove the file") from error
    driver = os.environ.get(DRIVER_VARIABLE)
    if driver:
        content["storage_driver"] = driver
    try:
        config = msgspec.convert(content, Config)
    except msgspec.ValidationError as error:
        section: type[msgspec.Struct] = Config
        for name, its_section in (("journal", Journal), ("pool", Pool)):
            if f"`$.{name}" in str(error):
                section = its_section
        known = ", ".join(field.name for field in msgspec.structs.fields(section))
        hint = f" (known keys: {known})" if "unknown field" in str(error) else _choices(str(error))
        raise ConfigError(f"{file}: {_in_words(str(error))}{hint}") from error
    for name, value in [("listen", host) for host in config.listen] + _texts(config):
        if not value or not value.isprintable():
            raise ConfigError(f"{file}: {name}: expected printable text, got {value!a}")
    if config.retention is not None and not math.isfinite(config.retention):
        raise ConfigError(f"{file}: retention: expected a number of seconds, got {config.retention}")
    if wrong := _journal_mistake(config.journal):
        raise ConfigError(f"{file}: [journal] {wrong}")
    if config.pool is not None and (wrong := _pool_mistake(config, "query_processors" in content)):
        raise ConfigError(f"{file}: [pool] {wrong}")
    for name, setting in config.postgresql.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?", name):
            raise ConfigError(f"{file}: [postgresql] {name!a} is no name of a setting")
        if isinstance(setting, str) and any(ord(letter) < 32 for letter in setting):
            raise ConfigError(f"{file}: [postgresql] {name}: control characters are not possible here")
        if name.lower() in OWN_SETTINGS or name.lower().startswith("australis."):
            raise ConfigError(f"{file}: [postgresql] {name} is set by Australis itself; remove it")
    return config


def _journal_mistake(journal: Journal) -> str:
    """What is wrong with the section; empty if nothing is."""
    if journal.engine == "files":
        for name in ("servers", "system", "stream", "replicas"):
            if getattr(journal, name):
                return f'{name} needs engine = "nats"'
        return ""
    for server in journal.servers:
        if not re.fullmatch(r"(nats|tls)://([^@/\s]+@)?[^@/\s]+", server):
            return f"servers: expected nats://user:password@host:port, got {server!a}"
    if bool(journal.servers) != bool(journal.system):
        missing = "system" if journal.servers else "servers"
        return f"{missing} is missing: servers and the user of their system account belong together"
    if journal.system and not re.fullmatch(r"[^:@/\s]+:[^@/\s]+", journal.system):
        return "system: expected user:password"
    if journal.stream and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", journal.stream):
        return "stream: expected letters, digits, - and _"
    if not journal.servers and (journal.replicas or 1) > 1:
        return f"replicas = {journal.replicas} needs servers"
    return ""


def pool_mistake(pool: Pool) -> str:
    """What is wrong with a pool by itself; empty if nothing is."""
    if pool.min > pool.max:
        return f"min = {pool.min} is more than max = {pool.max}"
    if not math.isfinite(pool.idle):
        return f"idle: expected a number of seconds, got {pool.idle}"
    return ""


def _pool_mistake(config: Config, fixed: bool) -> str:
    """What is wrong with the section; empty if nothing is."""
    assert config.pool is not None
    if fixed:
        return "and query_processors exclude each other; remove one of them"
    if mistake := pool_mistake(config.pool):
        return mistake
    if config.connections is not None and config.pool.sessions > config.connections:
        return f"sessions = {config.pool.sessions} is more than connections = {config.connections} of the whole cluster"
    return ""


def _texts(config: Config) -> list[tuple[str, str]]:
    return [("[tls] certificate", config.tls.certificate), ("[tls] key", config.tls.key)] if config.tls else []


def _choices(message: str) -> str:
    """What a key with a fixed set of values may be: ", must be one of ..."; empty for other keys."""
    key = message.partition(" - at `$.")[2].rstrip("`")
    for field in (*msgspec.structs.fields(Config), *msgspec.structs.fields(Journal)):
        if field.name == key.removeprefix("journal.") and get_origin(field.type) is Literal:
            return ", must be one of " + ", ".join(str(value) for value in get_args(field.type))
    return ""


def _in_words(message: str) -> str:
    """Turn msgspec's "Expected `int | null`, got `str` - at `$.port`" into "port: expected int, got str"."""
    text, _, path = message.partition(" - at `$.")
    text = text.replace("Object contains unknown field", "unknown key").replace(" | null", "")
    if "unknown key" in text or "enum value" in text or "required field" in text:
        text = text.replace("`", '"')
    where = f"{path.rstrip('`')}: " if path else ""
    return where + text[0].lower() + text[1:].replace("`", "")
