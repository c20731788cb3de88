"""What every role process shows of itself: metrics and traces, as its configuration says.

    async with observed(config, service.status) as seen: seen.metrics, seen.traces

What must hold: without `metrics` and `traces` in the configuration nothing is listened on, nothing is sent and nothing
but a comparison is spent; a port that cannot be had ends the start of the process with one line.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from australis.certs import Files
from australis.metrics import Metrics, Status
from australis.role_config import RoleConfig
from australis.traces import Traces, TraceSettings, open_traces
from australis.transport import Address

REFRESH_SECONDS = 1.0


@dataclass(frozen=True)
class Observed:
    """`measured`: is anybody to be shown latencies?"""

    metrics: Metrics
    traces: Traces
    measured: bool


@contextlib.asynccontextmanager
async def observed(config: RoleConfig, status: Callable[[], Status]) -> AsyncIterator[Observed]:
    """Serve the metrics port and open the traces for as long as the context lasts. Raises AustralisError."""
    metrics = Metrics(config.role, config.name, status)
    settings = TraceSettings(config.traces.endpoint, config.traces.every) if config.traces is not None else None
    traces = open_traces(settings, config.role, config.name)
    if not config.metrics:
        try:
            yield Observed(metrics, traces, False)
        finally:
            await asyncio.to_thread(traces.close)
        return
    tls = config.tls
    files = Files(Path(tls.ca), Path(tls.certificate), Path(tls.key)) if tls is not None else None
    server = metrics.serve(Address.parse(config.metrics), files)

    async def refresh() -> None:
        while True:
            metrics.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    task = asyncio.create_task(refresh())
    try:
        yield Observed(metrics, traces, True)
    finally:
        task.cancel()
        await asyncio.to_thread(server.close)
        await asyncio.to_thread(traces.close)
