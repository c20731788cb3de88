"""The query processors of a gateway's host as a pool: they come with sessions and go when they are idle.

    router -- places.sock --> PlaceServer -> ProcessorHost -> PostgreSQL

What must hold: a query processor that has ended is nobody's to wait for: its word in the page is cleared. The image is
this gateway's own, as the pool writes new ones. If this process dies its query processors die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from australis.control_plane.processes import end_leftovers
from australis.page import PROCESSORS, Word
from australis.query_processor import installation, pool, settings
from australis.query_processor.host import ProcessorHost
from australis.query_processor.launcher import QueryProcessor
from australis.query_processor.places import PlaceServer

if TYPE_CHECKING:
    from australis.config import Pool
    from australis.page import SharedPage
    from australis.role_config import RoleConfig

log = structlog.get_logger()

PLACES_SOCKET = "places.sock"
PROCESSOR_WAIT = 30.0
"""Seconds that a connection waits for a query processor; shorter than the time for a login."""


class PooledProcessors:
    """See the module; the gateway uses it as it uses a fixed number of them."""

    def __init__(
        self,
        config: RoleConfig,
        configured: Pool,
        password: str,
        page: Callable[[], SharedPage],
        watch: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """`watch`: for each background task; its error is a mistake. `page` is there once the gateway has started."""
        self._config, self._data, self._page = config, Path(config.data), page
        installed = installation.find()
        image = self._data / "image.tar"
        self.host = ProcessorHost(
            [
                QueryProcessor(self._directory(number), installed, password, image=image)
                for number in range(configured.max)
            ],
            pool.Settings(
                minimum=configured.min,
                maximum=configured.max,
                sessions=min(configured.sessions, config.connections),
                capacity=config.connections,
                idle=configured.idle,
                wait=PROCESSOR_WAIT,
            ),
            logs=self._data / "logs",
            configure=self._configure,
            forget=self._forget,
            changed=lambda: None,
            watch=watch,
        )
        self._places = PlaceServer(self.host, Path(config.run) / PLACES_SOCKET)

    @property
    def ports(self) -> list[int]:
        """Of direct connections; 0 where none runs."""
        return self.host.ports

    def _directory(self, number: int) -> Path:
        return self._data / f"postgresql-{number}"

    def end_leftovers(self) -> None:
        """Nothing of an earlier run works here any more. Blocking."""
        killed = end_leftovers({self._directory(number) / "data": b"postgres" for number in range(PROCESSORS)})
        if killed:
            log.warning("gateway.leftovers_killed", processes=killed)

    async def prepare(self) -> None:
        """Make the image and the first data directory."""
        await self.host.prepare()

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start those that always run, and listen to routers. Raises ClusterError."""
        (self._data / "logs").mkdir(mode=0o700, exist_ok=True)
        stack.push_async_callback(self.host.close)
        await self.host.start()
        await self._places.start()
        stack.push_async_callback(self._places.close)

    def _configure(self, number: int, port: int) -> settings.Settings:
        config = self._config
        return settings.Settings(
            run=Path(config.run),
            storage=self._data / "no-storage",
            port=port,
            listen="127.0.0.1",
            processor=number,
            connections=config.connections,
            storage_driver="socket",
            service_timeout=config.service_timeout,
            write_buffer=config.write_buffer,
            extra=config.postgresql,
        )

    def _forget(self, number: int) -> None:
        self._page().store(Word.PROCESSORS + 4 * number, 0)

    def status(self) -> dict[str, int | float | str]:
        """Numbers for `australis status`."""
        states = [one["state"] for one in self.host.describe()]
        return {
            "processors_ready": states.count("ready"),
            "processor_starts": sum(one["starts"] for one in self.host.describe()),
        }
