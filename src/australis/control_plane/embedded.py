"""The embedded cluster: all roles on one machine, in two Python processes and PostgreSQL.

    this process     supervisor, storage, router
    commit process   adjudicator, journal
    PostgreSQL       the query processors: a fixed number, or a pool that follows the number of sessions

Start: leftovers -> commit process beside image -> storage -> PostgreSQL -> router. Stop: the reverse. What must
hold: every resource taken is given back on the way out of `run`, whatever fails; a service that dies is restarted
without its neighbours; when this process dies, however, its children die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import structlog

from australis.cluster import open_cluster
from australis.config import FILE_NAME as CONFIG_FILE
from australis.config import Config
from australis.control_plane.layout import Cluster, ClusterError, Layout, prepare_run, remove_run, unusable
from australis.control_plane.processes import Child, end_leftovers, services_of
from australis.control_plane.supervisor import FIRST_DELAY, LONGEST_DELAY, Service
from australis.errors import AustralisError
from australis.limits import LIMITS
from australis.page import PROCESSORS, SharedPage, Word
from australis.process import tune
from australis.query_processor import pool, settings
from australis.query_processor.host import ProcessorHost
from australis.query_processor.installation import Installation
from australis.query_processor.launcher import QueryProcessor, free_port
from australis.router import Router, RouterConfig
from australis.storage.applier import Settings as StorageSettings
from australis.storage.service import StorageService

if TYPE_CHECKING:
    from australis.journal import nats_server  # imported where it is needed: it takes its time

FIRST_PORT = 5432
PORTS_TRIED = 100
PORT_ATTEMPTS = 5
COMMIT_READY = 60.0  # reading a long journal takes time
NATS_READY = 60.0
STORAGE_READY = 60.0
PROCESSOR_WAIT = 30.0  # of a connection, for a query processor; shorter than the time for a login

log = structlog.get_logger()


@dataclass
class Phases:
    """How long each phase of the start took, in milliseconds."""

    taken: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.taken[name] = round((time.monotonic() - begin) * 1000)


class State(msgspec.Struct, kw_only=True):
    """`run/state.json`: what other commands may know about the running cluster without asking it."""

    state: str  # starting, ready, degraded, stopping
    pid: int
    host: str = ""
    port: int = 0
    direct_port: int = 0  # of the first query processor that runs; 0: none does
    direct_ports: list[int] = []  # of all of them, by number; 0 where none runs
    profile: str = "postgres"
    storage_driver: str = "attached"
    started: float = 0.0  # seconds since the Unix epoch
    services: dict[str, dict[str, int | bool | None]] = {}
    phases: dict[str, int] = {}  # milliseconds
    pool: dict[str, int | float] | None = None  # its settings; None: a fixed number of query processors
    processors: list[dict[str, Any]] = []  # ProcessorHost.describe


class EmbeddedCluster:
    """One run of the cluster in `layout`, whose lock the caller holds. Use `running()`."""

    def __init__(
        self,
        layout: Layout,
        cluster: Cluster,
        config: Config,
        installation: Installation,
        *,
        port: int | None = None,
        notice: Callable[[str], None] = print,
    ) -> None:
        """`port` None: the configured one, else 5432 or the next free. `notice` is told what a person should know."""
        self.layout = layout
        self.cluster = cluster
        self.config = config
        self.limits = LIMITS[cluster.profile]
        self.phases = Phases()
        self.router: Router | None = None
        self.storage: StorageService | None = None
        self.processors: ProcessorHost | None = None
        self._services: list[Service] = []
        self._counted = 0, time.monotonic()  # records applied, and when that was
        self._installation = installation
        self._wanted_port = port or config.port
        self._notice = notice
        self._state = State(
            state="starting",
            pid=os.getpid(),
            profile=cluster.profile,
            storage_driver=config.storage_driver,
            started=time.time(),
            direct_ports=[0] * self._pool.maximum,
            pool=msgspec.structs.asdict(config.pool) if config.pool else None,
        )
        self._failed: asyncio.Future[object]

    @property
    def state(self) -> State:
        """A picture of now."""
        return self._state

    @property
    def services(self) -> list[Service]:
        """All that run or should."""
        return self._services + (self.processors.services if self.processors is not None else [])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything; on leaving, stop everything. Raises ClusterError if the start is impossible."""
        begin = time.monotonic()
        self._failed = asyncio.get_running_loop().create_future()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._changed, "stopped")
            await self._start(stack)
            self._changed("ready")
            self.phases.taken["total"] = round((time.monotonic() - begin) * 1000)
            self._changed("ready")
            tune()
            log.info("cluster.ready", port=self._state.port, milliseconds=self.phases.taken)
            yield
            self._changed("stopping")
            log.info("cluster.stopping")
        remove_run(self.layout)
        log.info("cluster.stopped")

    async def wait(self, stop: asyncio.Event) -> None:
        """Return when asked to stop; raises what a background task died of."""
        asked: asyncio.Future[object] = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([asked, self._failed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        if self._failed.done():
            self._failed.result()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        measure = self.phases.measure
        with measure("leftovers"):
            processors = self._query_processors()
            self.processors = processors
            killed = end_leftovers(services_of(self.layout))
            if killed:
                log.warning("cluster.leftovers_killed", processes=killed)
        prepare_run(self.layout)
        self._directory = open_cluster(self.layout.data, self.layout.run)
        self._changed("starting")
        port = self._choose_port()
        router = self._make_router(port, processors)  # a wrong certificate is found before anything starts

        async def image() -> None:
            with measure("image"):
                try:
                    await processors.prepare()
                except OSError as error:
                    raise unusable(self.layout, error) from error

        async with _group() as group:
            preparing = group.create_task(image())
            await self._start_services(stack)
            await preparing
        with measure("postgresql"):
            self._page = SharedPage(self._directory.page, self._directory.cluster, create=False)
            stack.callback(self._page.close)
            for number in range(PROCESSORS):
                self._forget_processor(number)  # of an earlier run
            stack.push_async_callback(self._close_processors, processors)
            await processors.start()
        with measure("router"):
            await self._start_router(stack, router, processors)

    async def _start_services(self, stack: contextlib.AsyncExitStack) -> None:
        """Commit process, then storage, which follows it."""
        if self.config.journal.engine == "nats":
            with self.phases.measure("journal"):
                await self._start_journal(stack)
        with self.phases.measure("commit"):
            await self._start_commit(stack)
        with self.phases.measure("storage"):
            await self._start_storage(stack)

    async def _start_journal(self, stack: contextlib.AsyncExitStack) -> None:
        """Say where the journal is; without configured servers, run one of our own first."""
        from australis.journal import nats_server

        configured = self.config.journal
        stream = configured.stream or f"australis-{self.cluster.cluster[:16]}"
        servers, system, replicas = tuple(configured.servers), configured.system, configured.replicas or 3
        if not servers:
            server = nats_server.Server(
                name=f"australis-{self.cluster.cluster[:16]}",
                directory=self.layout.nats,
                port=free_port(),
                password=hashlib.sha256(self.layout.password().encode()).hexdigest()[:32],
            )
            await self._start_nats(stack, server)
            servers, system, replicas = (server.url,), server.system, 1
        settings = nats_server.NatsSettings(servers, system, stream, replicas, configured.max_mb << 20)
        nats_server.write_settings(self._directory.journal_settings, settings)

    async def _start_nats(self, stack: contextlib.AsyncExitStack, server: nats_server.Server) -> None:
        from australis.journal import nats_server

        try:
            server.write_settings()
        except OSError as error:
            raise unusable(self.layout, error) from error

        async def launch(_: int) -> Child:
            return await Child.spawn(
                "nats", server.command(), self.layout.logs / "nats.log", directory=self.layout.nats, plain=True
            )

        async def ready(child: Child) -> None:
            deadline = time.monotonic() + NATS_READY
            while not await nats_server.probe(server):
                if not child.running or time.monotonic() > deadline:
                    raise ClusterError(f"nats-server: {child.last_words()}")
                await asyncio.sleep(0.02)

        await self._keep(stack, Service("nats", launch, ready, changed=self._changed))

    async def _start_commit(self, stack: contextlib.AsyncExitStack) -> None:
        places = ["--data", str(self.layout.data), "--run", str(self.layout.run)]

        async def launch(_: int) -> Child:
            return await Child.spawn(
                "commit",
                [sys.executable, "-P", "-m", "australis.commit_process", *places, "--parent", str(os.getpid())],
                self.layout.logs / "commit.log",
                directory=self.layout.journal,
            )

        async def ready(child: Child) -> None:
            try:
                async with asyncio.timeout(COMMIT_READY):
                    await child.line('{"ready":true')
            except (TimeoutError, EOFError) as error:
                raise ClusterError(str(error) or f"did not serve within {COMMIT_READY:.0f} s") from error

        await self._keep(stack, Service("commit", launch, ready, changed=self._changed))

    async def _start_storage(self, stack: contextlib.AsyncExitStack) -> None:
        """Storage runs in this process; when it gives up, another instance of it starts."""
        settings = StorageSettings(retention=self.config.retention or self.limits.retention)
        if self.config.snapshot_mb is not None:
            settings = dataclasses.replace(settings, snapshot_bytes=self.config.snapshot_mb << 20)

        async def instance(stack: contextlib.AsyncExitStack) -> StorageService:
            service = StorageService(self._directory, settings)
            await service.start()
            stack.push_async_callback(service.close)
            try:
                async with asyncio.timeout(STORAGE_READY):
                    await service.ready()
            except TimeoutError as error:
                raise ClusterError(f"storage did not catch up within {STORAGE_READY:.0f} s; see its log") from error
            self.storage = service
            return service

        async def keep(service: StorageService) -> None:
            delay = FIRST_DELAY
            while True:
                cause: Exception | str = await asyncio.shield(service.failed)
                log.error("storage.ended", cause=str(cause), again_in=delay)
                await current.aclose()
                while True:
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, LONGEST_DELAY)
                    try:
                        service = await instance(current)
                    except (AustralisError, OSError) as error:
                        await current.aclose()
                        log.error("storage.not_restarted", cause=str(error))
                    else:
                        break

        current = await stack.enter_async_context(contextlib.AsyncExitStack())
        try:
            service = await instance(current)
        except (AustralisError, OSError) as error:
            raise ClusterError(f"storage: {error}") from error
        self._task(stack, keep(service), "keep storage")

    def _query_processors(self) -> ProcessorHost:
        image = self.layout.query_processor / "image.tar"
        password = self.layout.password()
        return ProcessorHost(
            [
                QueryProcessor(self.layout.processor(number), self._installation, password, image=image)
                for number in range(self._pool.maximum)
            ],
            self._pool,
            logs=self.layout.logs,
            configure=self._configure_processor,
            forget=self._forget_processor,
            changed=self._changed,
            watch=self.watch,
        )

    @property
    def _pool(self) -> pool.Settings:
        configured = self.config.pool
        capacity = self._connections
        if configured is None:
            count = self.config.query_processors
            return pool.Settings(
                minimum=count,
                maximum=count,
                sessions=capacity,
                capacity=capacity,
                wait=PROCESSOR_WAIT,
            )
        return pool.Settings(
            minimum=configured.min,
            maximum=configured.max,
            sessions=min(configured.sessions, capacity),
            capacity=capacity,
            idle=configured.idle,
            wait=PROCESSOR_WAIT,
        )

    def _configure_processor(self, number: int, port: int) -> settings.Settings:
        return settings.Settings(
            run=self.layout.run,
            storage=self.layout.storage,
            port=port,
            listen="127.0.0.1",
            processor=number,
            connections=self._connections,
            storage_driver=self.config.storage_driver,
            service_timeout=self.limits.service_timeout,
            write_buffer=(self.config.write_buffer_mb or 0) << 20 or self.limits.write_buffer,
            extra=self.config.postgresql,
        )

    def _forget_processor(self, number: int) -> None:
        """It does not run: no other is to wait for it, also when its process number is given out again."""
        self._page.store(Word.PROCESSORS + 4 * number, 0)

    async def _close_processors(self, processors: ProcessorHost) -> None:
        with self.phases.measure("processors"):
            await processors.close()

    def _make_router(self, port: int, processors: ProcessorHost) -> Router:
        tls = self.config.tls
        config = RouterConfig(
            handover_socket=self.layout.run / "handover.sock",
            hosts=tuple(self.config.listen),
            port=port,
            tls_certificate=self.layout.data / tls.certificate if tls else None,
            tls_key=self.layout.data / tls.key if tls else None,
            handover=self.config.handover,
            max_connections=self._connections,
            max_lifetime=self.limits.connection_life,
        )
        for name, file in (("certificate", config.tls_certificate), ("key", config.tls_key)):
            try:
                if file is not None:
                    file.open("rb").close()
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise ClusterError(
                    f"{CONFIG_FILE}: [tls] {name}: {file}: {reason}; the cluster's user must be able to read this file"
                ) from error
        try:
            return Router(config, processors)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = (str(error) if isinstance(error, ValueError) else getattr(error, "reason", None)) or "no PEM found"
            raise ClusterError(
                f"{CONFIG_FILE}: [tls] {config.tls_certificate} and {config.tls_key} are not a certificate and its "
                f"unencrypted key in PEM format ({reason.lower().replace('_', ' ')}); correct them or remove [tls]"
            ) from error

    async def _start_router(self, stack: contextlib.AsyncExitStack, router: Router, processors: ProcessorHost) -> None:
        """Its port may be taken since it was chosen: then by another one, if nobody asked for this one."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            try:
                await router.start()
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ClusterError(
                        f"cannot listen on {', '.join(self.config.listen)}, port {router.port}: "
                        f"{(error.strerror or str(error)).lower()}; change listen in {CONFIG_FILE}"
                    ) from error
                if self._wanted_port is not None or attempt == PORT_ATTEMPTS:
                    raise ClusterError(
                        f"port {router.port} was taken by another program meanwhile; start again"
                    ) from error
            router = self._make_router(self._choose_port(), processors)
        self.router = router
        stack.push_async_callback(router.close)
        self._state.host, self._state.port = _reachable(self.config.listen[0]), router.port

    def one_line(self) -> str:
        """What happens right now, for a status line."""
        sessions = self.router.status().sessions if self.router is not None else 0
        records = self.storage.applier.records if self.storage is not None else 0
        now = time.monotonic()
        before, then = self._counted
        self._counted = records, now
        rate = max(records - before, 0) / max(now - then, 0.001)
        return f"{sessions} session{'' if sessions == 1 else 's'} · {rate:.0f} commits/s"

    @property
    def _connections(self) -> int:
        return self.config.connections or self.limits.connections

    async def _keep(self, stack: contextlib.AsyncExitStack, service: Service) -> None:
        """Start a service and watch it until the stack unwinds."""
        stack.push_async_callback(service.stop)
        self._services.append(service)
        await service.start()
        self._task(stack, service.watch(), f"watch {service.name}")

    def _task(self, stack: contextlib.AsyncExitStack, body: Coroutine[None, None, None], name: str) -> None:
        """Run `body` beside everything else until the stack unwinds; its error stops the cluster."""
        task = asyncio.create_task(body, name=name)
        self.watch(task)

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        stack.push_async_callback(end)

    def watch(self, task: asyncio.Task[None]) -> None:
        """A background task of ours must not end by an error: that stops the cluster with this error."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None and not self._failed.done():
                self._failed.set_exception(error)

        task.add_done_callback(ended)

    def _choose_port(self) -> int:
        if self._wanted_port is not None:
            if not _port_free(self.config.listen, self._wanted_port):
                raise ClusterError(
                    f"port {self._wanted_port} is in use by another program; choose another with --port, or none at all"
                )
            return self._wanted_port
        for port in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
            if _port_free(self.config.listen, port):
                if port != FIRST_PORT:
                    self._notice(f"port {FIRST_PORT} is in use by another program; using {port}")
                return port
        raise ClusterError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1}; name one with --port")

    def _changed(self, state: str | None = None) -> None:
        """Write run/state.json."""
        if state is not None:
            self._state.state = state
        elif self._state.state in ("ready", "degraded"):
            self._state.state = "ready" if all(service.serving for service in self.services) else "degraded"
        self._state.services = {
            service.name: {"pid": service.pid, "serving": service.serving, "restarts": service.restarts}
            for service in self.services
        }
        if self.processors is not None:
            self._state.direct_ports = self.processors.ports
            self._state.direct_port = next(filter(None, self._state.direct_ports), 0)
            self._state.processors = self.processors.describe()
        self._state.phases = self.phases.taken
        run = self.layout.run
        try:
            (run / "state.new").write_bytes(msgspec.json.encode(self._state))
            (run / "state.new").replace(run / "state.json")
        except OSError as error:  # a full disk must not take the cluster down
            log.error("cluster.state_not_written", cause=str(error))


@contextlib.asynccontextmanager
async def _group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first error itself instead of a group of errors."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors


def _reachable(host: str) -> str:
    """Where a client of this machine connects to what listens on `host`."""
    return {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _port_free(hosts: list[str], port: int) -> bool:
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("" if host == "*" else host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno == errno.EACCES:
                raise ClusterError(f"port {port} needs privileges; choose one above 1023 with --port") from error
            # an address this machine does not have: the router decides whether that matters
    return True


class Runnable(Protocol):
    """A cluster that this process supervises, of either kind."""

    @property
    def state(self) -> State:
        """A picture of now."""
        ...

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Start everything; on leaving, stop everything."""
        ...

    async def wait(self, stop: asyncio.Event) -> None:
        """Return when asked to stop; raises what a background task died of."""
        ...

    def watch(self, task: asyncio.Task[None]) -> None:
        """Stop the cluster when this task ends by an error."""
        ...


_Cluster = TypeVar("_Cluster", bound=Runnable)


def run(cluster: _Cluster, ready: Callable[[_Cluster], None], status: Callable[[_Cluster], None]) -> None:
    """Run until SIGTERM or SIGINT. `ready` is called once, `status` every second. Raises ClusterError."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        starting = asyncio.create_task(_run(cluster, stop, ready, status))
        asked = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done() and cluster.state.state == "starting":
            starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        asked.cancel()

    if sys.platform == "linux":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())


async def _run(
    cluster: _Cluster,
    stop: asyncio.Event,
    ready: Callable[[_Cluster], None],
    status: Callable[[_Cluster], None],
) -> None:
    async with cluster.running():
        ready(cluster)

        async def tell() -> None:
            while True:
                status(cluster)
                await asyncio.sleep(1.0)

        telling = asyncio.create_task(tell())
        cluster.watch(telling)
        try:
            await cluster.wait(stop)
        finally:
            telling.cancel()
