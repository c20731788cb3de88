"""postgresql.conf and pg_hba.conf of a query processor.

What must hold: a query processor is disposable (nothing is synced, WAL is minimal), takes little memory when idle, and
is reachable without password only through the socket in the run directory, which is private to the cluster's user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from australis.query_processor.installation import Installation

# Backends beyond the clients' share: the catalog worker, probes of the supervisor, ANALYZE on behalf of nobody.
RESERVED_CONNECTIONS = 10

CONFIG_FILE = "postgresql.conf"
HBA = """\
# Written by Australis at every start.
# The socket lies in a directory that only this cluster's user can enter; the router's sessions come
# through it and are authenticated by the extension.
local all all trust
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256
"""

# Why: durability is the journal's; a lost data directory comes back from image and DDL log.
DISPOSABLE: Mapping[str, str | int | float | bool] = {
    "fsync": False,
    "synchronous_commit": False,
    "full_page_writes": False,
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_replication_slots": 0,
    "archive_mode": False,
    "min_wal_size": "4MB",
    "max_wal_size": "32MB",
    "checkpoint_timeout": "15min",
    "wal_buffers": "256kB",
}

# Only catalogs and temporary tables live in local storage: small caches, one gentle vacuum worker.
SMALL: Mapping[str, str | int | float | bool] = {
    "shared_buffers": "32MB",
    # half of the workers: the others apply catalog changes
    "max_parallel_workers": 4,
    "max_parallel_maintenance_workers": 0,
    "max_worker_processes": 8,
    "min_dynamic_shared_memory": "4MB",  # for parallel queries, sparing them files
    "max_logical_replication_workers": 0,
    "io_method": "sync",
    "jit": False,
    "autovacuum": True,
    "autovacuum_max_workers": 1,
    "autovacuum_worker_slots": 2,
    "autovacuum_naptime": "1min",
    "autovacuum_vacuum_cost_delay": "5ms",
    # in files below the data directory: leftovers of a killed server vanish with it
    "dynamic_shared_memory_type": "mmap",
}

LOGGING: Mapping[str, str | int | float | bool] = {
    "logging_collector": False,
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_min_messages": "warning",
    "log_startup_progress_interval": 0,
    "log_checkpoints": False,
}


# What initdb writes into its own postgresql.conf, which ours replaces.
AS_INITDB: Mapping[str, str | int | float | bool] = {
    "timezone": "UTC",
    "log_timezone": "UTC",
    "datestyle": "iso, mdy",
    "default_text_search_config": "pg_catalog.english",
}


@dataclass(frozen=True)
class Settings:
    """What differs from one query processor to another."""

    run: Path  # sockets and the shared page
    storage: Path
    port: int  # names the Unix socket, and is the TCP port when `listen` is set
    listen: str = ""  # addresses of the direct port; "" for none
    connections: int = 200
    processor: int = 0  # number among the query processors of this host
    storage_driver: str = "attached"
    service_timeout: float = 10.0  # seconds
    write_buffer: int = 1 << 30  # bytes
    extra: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def render(settings: Settings, installation: Installation) -> str:
    """Text of postgresql.conf."""
    own: dict[str, str | int | float | bool] = {
        "listen_addresses": settings.listen,
        "port": settings.port,
        "unix_socket_directories": str(settings.run),
        "unix_socket_permissions": "0700",
        "max_connections": settings.connections + RESERVED_CONNECTIONS,
        "password_encryption": "scram-sha-256",
    }
    if installation.extension is not None:
        own |= {
            "shared_preload_libraries": str(installation.library),
            "dynamic_library_path": f"{installation.extension}:$libdir",
            "australis.run_directory": str(settings.run),
            "australis.storage_directory": str(settings.storage),
            "australis.processor": settings.processor,
            "australis.storage_driver": settings.storage_driver,
            "australis.service_timeout": f"{int(settings.service_timeout * 1000)}ms",
            "australis.write_buffer_limit": f"{settings.write_buffer >> 10}kB",
        }
    blocks = [DISPOSABLE, SMALL, LOGGING, AS_INITDB, settings.extra, own]
    lines = ["# Written by Australis at every start; settings of yours belong into australis.toml, [postgresql]."]
    for block in blocks:
        lines += [f"{name} = {literal(value)}" for name, value in block.items()]
    return "\n".join(lines) + "\n"


def literal(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"
    return str(value)
