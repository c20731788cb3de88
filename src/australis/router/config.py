"""What a router is told at its start; nothing of it changes later.

All times are seconds, all paths absolute or relative to the working directory.  Invalid values raise ValueError here,
so that a running router never meets one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from australis.transport import Address

Upstream = Path | Address
"""A Unix socket of this host, or a TCP address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    upstreams: tuple[Upstream, ...] = ()
    """Query processors' postmasters: Unix sockets, or TCP addresses of other hosts, which authenticate by themselves.
    One that is not there is passed over; it may come back.  Empty: the router is given a placement instead."""
    handover_socket: Path
    """Where backends present their token: `handover.sock` in the run directory, if `number` is None."""
    number: int | None = None
    """Of one of several routers: backends look for `handover-<number>.sock` beside their postmaster's socket, where the
    router puts links to its own."""
    hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    """Addresses to listen on; a loopback address that this machine does not have is left out, another is an error."""
    port: int = 5432
    """TCP port; 0 takes a free one."""
    unix_socket: Path | None = None
    """Where clients connect on this machine; psql expects the name `.s.PGSQL.<port>`."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    """PEM files.  Without them SSLRequest is answered with N."""
    handover: bool = True
    """False relays every session."""
    max_connections: int = 100
    """Sessions at a time, logins included; beyond, 53300.  Keep it below the query processor's own max_connections."""
    max_pending: int = 1000
    """Connections that have not yet sent a startup packet; beyond, 53300 without reading anything."""
    max_logins: int = 32
    """Sessions that the query processor is asked to start at the same time; the others wait."""
    connection_rate: float | None = None
    """New sessions per second, refilling a bucket of connection_burst; beyond, 53400.  None: no limit."""
    connection_burst: int = 1000
    login_timeout: float = 60.0
    """From accept to hand-over; PostgreSQL's authentication_timeout runs anew from there."""
    max_lifetime: float | None = None
    """Life of a session; then its backend is told to end it (57P01).  None: no limit."""
    close_timeout: float = 5.0
    """How long close() waits for sessions to end."""

    def __post_init__(self) -> None:
        if self.number is not None and not 0 <= self.number <= 99:
            raise ValueError(f"number must be between 0 and 99, not {self.number}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, not {self.port}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        for name in ("max_connections", "max_pending", "max_logins", "connection_burst"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("connection_rate", "login_timeout", "max_lifetime", "close_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
