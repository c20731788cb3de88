"""Role nats: a NATS server of the cluster's own, as its configuration says; journal/nats_server.py has the settings."""

from __future__ import annotations

from pathlib import Path

from australis.control_plane.topology import RoleConfig
from australis.journal.nats_server import Server
from australis.transport import Address


def server_of(config: RoleConfig) -> Server:
    """The server's name, directory and addresses. Its name stays with its directory: Raft counts on it."""
    clients = Address.parse(config.client_address)
    others = Address.parse(config.cluster_address) if config.cluster_address else None
    return Server(
        name=f"{config.journal.prefix}-{config.number}",
        directory=Path(config.data),
        port=clients.port,
        password=config.journal.system.partition(":")[2],
        host=clients.host,
        cluster_port=others.port if others is not None else None,
        routes=tuple(config.routes),
    )
