"""Role router: where clients connect; passes each to one of the query processors (server.py does all of it).

What must hold: a router that ends takes no session with it that a query processor has already (SIGTERM: it stops to
listen, lets logins finish and waits a moment for what it relays); one that is killed costs only what it relays and who
was just logging in. A query processor that is gone is passed over until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from australis.errors import AustralisError
from australis.metrics import Metrics
from australis.process import announce
from australis.router import Router, RouterConfig
from australis.router.gateway_places import GatewayPlaces
from australis.transport import Address

if TYPE_CHECKING:
    from australis.role_config import RoleConfig

LEAVE_SECONDS = 5.0

log = structlog.get_logger(__name__)


class RouterError(AustralisError):
    """It cannot listen, or its certificate cannot be used; one line."""


async def serve(config: RoleConfig, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises RouterError."""
    try:
        places = GatewayPlaces([Path(text.removeprefix("unix:")) for text in config.places])
        router = Router(router_config(config), places if config.places else None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = str(error) if isinstance(error, ValueError) else (getattr(error, "reason", None) or error.strerror)
        raise RouterError(f"{config.client_certificate}, {config.client_key}: {reason}") from error
    try:
        await router.start()
    except OSError as error:
        where = f"{', '.join(config.hosts)}, port {config.port}"
        if error.errno == errno.EADDRINUSE:
            raise RouterError(f"port {config.port} is in use by another program") from error
        raise RouterError(f"cannot listen on {where}: {(error.strerror or str(error)).lower()}") from error

    def status() -> dict[str, int | float | str]:
        now = router.status()
        return {"sessions": now.sessions, "relayed": now.relayed, "pending": now.pending, "port": router.port}

    metrics = Metrics("router", config.name, status)
    server = metrics.serve(Address.parse(config.metrics)) if config.metrics else None
    announce(service="router", port=router.port)
    log.info("router.serves", port=router.port, upstreams=len(config.upstreams))
    try:
        while not stop.is_set():
            metrics.refresh()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await stop.wait()
    finally:
        await router.leave(LEAVE_SECONDS)
        if server is not None:
            server.close()


def router_config(config: RoleConfig) -> RouterConfig:
    """Raises ValueError."""
    upstreams = [Address.parse(text) for text in config.upstreams]
    return RouterConfig(
        upstreams=tuple(Path(one.path) if one.path else one for one in upstreams),
        handover_socket=Path(config.run or config.data) / "handover.sock",
        number=config.number,
        hosts=tuple(config.hosts),
        port=config.port,
        tls_certificate=Path(config.client_certificate) if config.client_certificate else None,
        tls_key=Path(config.client_key) if config.client_key else None,
        max_connections=config.connections * len(config.places or upstreams),
    )
