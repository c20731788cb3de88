"""A cluster of many processes on one machine: this process supervises, every role instance is a child of it.

    nats -> control -> adjudicators -> crossbars -> storage -> gateways (each with its PostgreSQL) -> routers

Each role starts when the one before it serves; stop is the reverse. What must hold: what dies is started again with
growing delays, without its neighbours, and what runs and does not answer is killed (liveness.py); when this process
dies its children die with it, and what is left all the same is ended by the next start before anything else; every
child is told everything by one file in its own directory, which is written anew at every start, so that nobody has to
keep it in step with the topology.

`run/supervisor.sock` takes requests of this machine's user, one JSON object per connection: {"restart": [names]}; the
answer is JSON lines, the last of which has "done" or "error".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import structlog

from australis.control_plane import survey
from australis.control_plane.embedded import FIRST_PORT, PORTS_TRIED, Phases, State, _port_free, _reachable
from australis.control_plane.layout import Cluster, ClusterError, Layout, prepare_run, remove_run, unusable
from australis.control_plane.liveness import Watcher
from australis.control_plane.nats_role import server_of
from australis.control_plane.plan import CONFIG_FILE, Instance, OneMachine, plan
from australis.control_plane.processes import Child, end_leftovers, services_of
from australis.control_plane.supervisor import Service
from australis.control_plane.topology import (
    FILE_NAME,
    ROLES,
    RoleConfig,
    TlsConfig,
    TopologyFile,
    encode_role,
)
from australis.errors import AustralisError
from australis.files import read_json, write_atomically
from australis.limits import LIMITS
from australis.process import tune
from australis.query_processor.launcher import free_port

READY_SECONDS = 90.0
"""Reading a long journal takes time."""

STOP_SECONDS = 30.0
PORT_ATTEMPTS = 5
CAUGHT_UP_SECONDS = 60.0
LONGEST_PATH = "/gateway-63/.s.PGSQL.65535"
REQUEST_BYTES = 64 << 10
FIXED = ("profile", "nats", "adjudicators")
"""What a topology cannot change once the cluster is made: journals belong to it."""

GROWING = ("shards", "replicas")
"""What can only become more: ranges and copies move to what is new."""

Command = Callable[[RoleConfig, Path], list[str]]

log = structlog.get_logger()


def role_command(config: RoleConfig, file: Path) -> list[str]:
    """How a role is run."""
    return [sys.executable, "-P", "-m", "australis", "run", config.role, "--config", str(file)]


# ------------------------------------------------------------------------------------------------- which topology


def stored_topology(layout: Layout) -> TopologyFile | None:
    """What the cluster in this directory was last started with; None if it is none of many processes."""
    try:
        content = layout.topology_file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(layout, error) from error
    try:
        return msgspec.json.decode(content, type=TopologyFile)
    except msgspec.MsgspecError as error:
        raise ClusterError(f"{layout.topology_file} is damaged ({error}); put it back from a backup") from None


def store_topology(layout: Layout, topology: TopologyFile) -> None:
    """Say what the cluster is started with (mode 0600: it may hold the password of NATS servers)."""
    try:
        write_atomically(layout.topology_file, msgspec.json.format(msgspec.json.encode(topology)) + b"\n", 0o600)
    except OSError as error:
        raise unusable(layout, error) from error


def check_topology(layout: Layout, cluster: Cluster | None, wanted: TopologyFile) -> None:
    """May this cluster be started with that topology? Raises ClusterError, naming the key that cannot change."""
    before = stored_topology(layout)
    if cluster is None:
        return
    if before is None:
        raise ClusterError(
            f"{layout.data} was made without a topology: dump it and restore it into a new cluster with one"
        )
    for key in FIXED:
        old, new = getattr(before, key), getattr(wanted, key)
        if old != new:
            raise ClusterError(
                f"{layout.data} was made with {key} = {old}, the topology says {new}; this cannot change"
            )
    for key in GROWING:
        old, new = getattr(before, key), getattr(wanted, key)
        if new < old:
            raise ClusterError(
                f"{layout.data} was made with {key} = {old}, the topology says {new}; this can only grow"
            )
    if bool(before.journal.servers) != bool(wanted.journal.servers):
        raise ClusterError(f"{layout.data}: journal.servers: journals cannot move to other servers")


def check_journals_exist(layout: Layout, topology: TopologyFile) -> None:
    """A cluster whose journals are gone must not start with empty ones. Raises ClusterError."""
    held = [role for role in layout.roles.glob("storage-*") if _has_files(role / "storage")]
    if not held or topology.engine != "files":
        return
    for number in range(topology.adjudicators):
        directory = layout.roles / f"adjudicator-{number}" / "journal"
        if not _has_files(directory):
            raise ClusterError(
                f"{directory} holds no segment, and with it what the cluster holds; put it back from a backup "
                "(nothing was changed)"
            )


def _has_files(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


# ------------------------------------------------------------------------------------------------------- the cluster


class ProcessCluster:
    """One run of the cluster in `layout`, whose lock the caller holds. Use `running()`."""

    def __init__(
        self,
        layout: Layout,
        cluster: Cluster,
        topology: TopologyFile,
        *,
        port: int | None = None,
        notice: Callable[[str], None] = print,
        command: Command = role_command,
    ) -> None:
        """`port` None: the configured one, else 5432 or the next free ones. `command` says how a role is run."""
        self.layout, self.cluster, self.topology = layout, cluster, topology
        self.limits = LIMITS[cluster.profile]
        self.phases = Phases()
        self.services: list[Service] = []
        self.configs: dict[str, RoleConfig] = {}
        self._groups: dict[str, list[Service]] = {role: [] for role in ROLES}
        self._wanted_port = port or topology.port
        self._notice, self._command = notice, command
        self._restarting = asyncio.Lock()
        self._state = State(
            state="starting",
            pid=os.getpid(),
            profile=cluster.profile,
            storage_driver="socket",
            started=time.time(),
            direct_ports=[0] * topology.query_processors,
        )
        self._failed: asyncio.Future[object]

    @property
    def state(self) -> State:
        """A picture of now."""
        return self._state

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything; on leaving, stop everything. Raises ClusterError if the start is impossible."""
        begin = time.monotonic()
        self._failed = asyncio.get_running_loop().create_future()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._changed, "stopped")
            await self._start(stack)
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

    def one_line(self) -> str:
        """What there is right now, for a status line."""
        counts = [f"{len(group)} {role}" for role, group in self._groups.items() if group]
        return " · ".join(counts)

    # ---------------------------------------------------------------------------------------------------- start

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        with self.phases.measure("leftovers"):
            killed = await asyncio.to_thread(end_leftovers, services_of(self.layout))
            if killed:
                log.warning("cluster.leftovers_killed", processes=killed)
        prepare_run(self.layout, LONGEST_PATH)
        self._changed("starting")
        try:
            self._write_configs(self._choose_port())
        except OSError as error:
            raise unusable(self.layout, error) from error
        for role in ROLES:
            configs = [config for config in self.configs.values() if config.role == role]
            if configs:
                with self.phases.measure(role):
                    if role == "router":
                        await self._start_routers(stack, configs)
                    else:
                        await self._start_group(stack, role, configs)
        await self._take_requests(stack)
        routers = [config for config in self.configs.values() if config.role == "router"]
        self._state.host, self._state.port = _reachable(routers[0].hosts[0]), routers[0].port

    def _write_configs(self, port: int) -> None:
        layout = self.layout
        layout.roles.mkdir(mode=0o700, exist_ok=True)
        place = OneMachine(
            self.topology,
            roles=layout.roles,
            run=layout.run,
            password=layout.password_file,
            image=layout.query_processor / "image.tar",
            port=port,
            free_port=free_port,
            certificates=self._certificate if self.topology.tls.internal else None,
        )
        if self.topology.tls.internal:
            self._certify(survey.TOOL, survey.TOOL)
        secret = hashlib.sha256(layout.password().encode()).hexdigest()[:32]
        for config in plan(self.topology, self.cluster.cluster, place, secret):
            self.configs[config.name] = config
            Path(config.data).mkdir(mode=0o700, exist_ok=True)
            if config.run:
                Path(config.run).mkdir(mode=0o700, exist_ok=True)
            self._write_config(config)
        store_topology(layout, self.topology)

    def _write_config(self, config: RoleConfig) -> Path:
        file = Path(config.data) / CONFIG_FILE
        write_atomically(file, encode_role(config), 0o600)  # it may hold the password of NATS servers
        return file

    def _certificate(self, instance: Instance) -> TlsConfig:
        """Of a process of the topology."""
        return self._certify(instance.role, instance.name)

    def _certify(self, role: str, name: str) -> TlsConfig:
        """Its certificate by the cluster's own authority; made when it is not there."""
        from australis import certs

        authority, out = self.layout.authority, self.layout.roles / name
        if not (authority / "ca.pem").exists():
            certs.make_authority(authority, self.cluster.id)
        files = certs.Files(out / "ca.pem", out / f"{name}.pem", out / f"{name}.key")
        if files.certificate.exists():
            try:
                certs.contexts(files, self.cluster.id)
            except certs.CertificateError as error:  # expired, or half of it is missing
                log.warning("cluster.certificate_again", name=name, cause=str(error))
                for file in (files.ca, files.certificate, files.key):
                    file.unlink(missing_ok=True)
        if not files.certificate.exists():
            files.key.unlink(missing_ok=True)
            certs.issue(authority, role, name, ["127.0.0.1"], out)
        return TlsConfig(ca=str(files.ca), certificate=str(files.certificate), key=str(files.key))

    async def _start_group(self, stack: contextlib.AsyncExitStack, role: str, configs: list[RoleConfig]) -> None:
        """Start all instances of a role; they end together when the stack unwinds."""
        group = self._groups[role]
        group += [self._service(config) for config in configs]
        self.services += group

        async def stop() -> None:
            await asyncio.gather(*(service.stop() for service in group))

        stack.push_async_callback(stop)
        starting = [asyncio.ensure_future(service.start()) for service in group]
        try:
            done, _ = await asyncio.wait(starting, return_when=asyncio.FIRST_EXCEPTION)
            for one in done:
                one.result()
        finally:
            for one in starting:
                one.cancel()
            await asyncio.wait(starting)
        for service in group:
            self._task(stack, service.watch(), f"watch {service.name}")
            if self.topology.liveness:
                self._task(stack, self._watcher(service).watch(), f"liveness of {service.name}")

    async def _start_routers(self, stack: contextlib.AsyncExitStack, configs: list[RoleConfig]) -> None:
        """Start them; on other ports than chosen before if those are taken by now and nobody asked for them."""
        for attempt in range(PORT_ATTEMPTS):
            if self._wanted_port is None:
                port = self._choose_port()
                configs = [msgspec.structs.replace(one, port=port + one.number) for one in configs]
                for config in configs:
                    self.configs[config.name] = config
                    self._write_config(config)
            try:
                async with contextlib.AsyncExitStack() as group:
                    await self._start_group(group, "router", configs)
                    stack.push_async_exit(group.pop_all())
            except ClusterError as error:
                taken = "in use by another program" in str(error)
                if not taken or self._wanted_port is not None or attempt == PORT_ATTEMPTS - 1:
                    raise
                self.services = [service for service in self.services if service not in self._groups["router"]]
                self._groups["router"] = []
            else:
                first = configs[0].port
                if self._wanted_port is None and first != FIRST_PORT:
                    self._notice(f"port {FIRST_PORT} is in use by another program; using {first}")
                return

    def _watcher(self, service: Service) -> Watcher:
        return Watcher(
            service,
            self.topology.liveness,
            lambda: self.configs[service.name].listen,
            lambda: survey.tool_identity(self.cluster.id, self.layout.roles / survey.TOOL),
        )

    def _service(self, config: RoleConfig) -> Service:
        name = config.name

        async def launch(failures: int) -> Child:
            if config.role == "gateway":
                self._choose_direct_port(name)
            if failures:
                await asyncio.to_thread(end_leftovers, self._leftovers(config))
            current = self.configs[name]
            return await Child.spawn(
                name,
                self._command(current, Path(current.data) / CONFIG_FILE),
                self.layout.logs / f"{name}.log",
                directory=Path(current.data),
                plain=True,
            )

        async def ready(child: Child) -> None:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    if config.role == "nats":
                        await self._nats_ready(child, config)
                    else:
                        await child.line('{"ready":true')
            except (TimeoutError, EOFError) as error:
                raise ClusterError(str(error) or f"did not serve within {READY_SECONDS:.0f} s") from error

        return Service(name, launch, ready, stop_timeout=STOP_SECONDS, changed=self._changed)

    def _leftovers(self, config: RoleConfig) -> dict[Path, bytes]:
        """What of one role may be left: PostgreSQL of a killed gateway."""
        data = Path(config.data)
        return {server / "data": b"postgres" for server in data.glob("postgresql-*")}

    def _choose_direct_port(self, name: str) -> None:
        """Another port for a gateway's PostgreSQL at every start: that of the last one may be taken meanwhile."""
        config = self.configs[name]
        port = free_port()
        self.configs[name] = config = msgspec.structs.replace(config, direct_port=port)
        self._state.direct_ports[config.number] = port
        self._state.direct_port = self._state.direct_ports[0]
        self._write_config(config)

    async def _nats_ready(self, child: Child, config: RoleConfig) -> None:
        from australis.journal.nats_server import probe

        server = server_of(config)
        while not await probe(server):
            if not child.running:
                raise ClusterError(f"nats-server: {child.last_words()}")
            await asyncio.sleep(0.02)  # it says nothing when it is ready

    def _choose_port(self) -> int:
        """The first router's; the others take the next ones."""
        count, hosts = self.topology.routers, self.topology.listen
        if self._wanted_port is not None:
            for port in range(self._wanted_port, self._wanted_port + count):
                if not _port_free(hosts, port):
                    raise ClusterError(
                        f"port {port} is in use by another program; choose another with --port or in {FILE_NAME}"
                    )
            return self._wanted_port
        for first in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
            if all(_port_free(hosts, port) for port in range(first, first + count)):
                return first
        raise ClusterError(f"no free ports from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1}; name one with --port")

    # ---------------------------------------------------------------------------------------------------- restart

    async def restart(self, names: list[str], tell: Callable[[dict[str, Any]], None]) -> None:
        """Restart these (names of instances or roles; none: all), one after the other. Raises ClusterError.

        Each has to serve and to have caught up before the next one ends.
        """
        chosen = self._chosen(names)
        identity = survey.tool_identity(self.cluster.id, self.layout.roles / survey.TOOL)
        if self._restarting.locked():
            raise ClusterError("a rolling restart goes on already")
        async with self._restarting:
            for service in chosen:
                begin = time.monotonic()
                await service.restart()
                served = time.monotonic()
                config = self.configs[service.name]
                try:
                    async with asyncio.timeout(CAUGHT_UP_SECONDS):
                        await survey.caught_up(config, identity)
                except TimeoutError:
                    raise ClusterError(
                        f"{service.name} did not catch up within {CAUGHT_UP_SECONDS:.0f} s; the others were left alone"
                    ) from None
                tell(
                    {
                        "name": service.name,
                        "serves_after": round(served - begin, 3),
                        "caught_up_after": round(time.monotonic() - begin, 3),
                    }
                )

    def _chosen(self, names: list[str]) -> list[Service]:
        order = [service for role in ROLES for service in self._groups[role]]
        if not names:
            return order
        for name in names:
            if name not in self._groups and name not in self.configs:
                raise ClusterError(f"no role or process {name!a}; there are {', '.join(self.configs)}")
        return [one for one in order if one.name in names or self.configs[one.name].role in names]

    async def _take_requests(self, stack: contextlib.AsyncExitStack) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            def tell(content: dict[str, Any]) -> None:
                writer.write(msgspec.json.encode(content) + b"\n")

            try:
                request = msgspec.json.decode(await reader.readline())
                names = request.get("restart") if isinstance(request, dict) else None
                if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                    raise ClusterError('expected a request like {"restart": ["adjudicator"]}')
                await self.restart(names, tell)
                tell({"done": True})
            except (AustralisError, OSError, ValueError, msgspec.MsgspecError) as error:
                tell({"error": str(error)})
            finally:
                writer.close()

        server = await asyncio.start_unix_server(serve, self.layout.run / "supervisor.sock", limit=REQUEST_BYTES)
        stack.callback(server.close)

    # ---------------------------------------------------------------------------------------------------- background

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
        self._state.phases = self.phases.taken
        run = self.layout.run
        try:
            (run / "state.new").write_bytes(msgspec.json.encode(self._state))
            (run / "state.new").replace(run / "state.json")
        except OSError as error:  # a full disk must not take the cluster down
            log.error("cluster.state_not_written", cause=str(error))


def role_configs(layout: Layout) -> list[RoleConfig]:
    """What the processes of the cluster in this directory were last told; those that cannot be read are left out."""
    found = []
    for role in sorted(layout.roles.iterdir()) if layout.roles.is_dir() else []:
        if content := read_json(role / CONFIG_FILE):
            with contextlib.suppress(msgspec.ValidationError):
                found.append(msgspec.convert(content, RoleConfig))
    order = {name: index for index, name in enumerate(ROLES)}
    return sorted(found, key=lambda config: (order[config.role], config.number, config.name))
