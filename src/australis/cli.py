"""The command `australis`: what a person or a script does with a cluster on this machine.

What must hold: an error that somebody can act on is one line on stderr and exit status 1, without a traceback; `url`
prints nothing but the connection string on stdout; no command changes a directory that is not a cluster's. Heavy
imports happen inside the commands that need them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from australis.certs_command import certs
from australis.control_plane.layout import (
    OWN_NAMES,
    Cluster,
    ClusterError,
    DirectoryLock,
    Layout,
    check_journal_exists,
    create_cluster,
    holder,
    prepare_directories,
    read_cluster,
    remove_run,
)
from australis.errors import AustralisError
from australis.files import read_json
from australis.limits import LIMITS

if TYPE_CHECKING:
    from australis.control_plane.embedded import EmbeddedCluster
    from australis.control_plane.multiprocess import ProcessCluster
    from australis.control_plane.topology import TopologyFile
    from australis.limits import Profile

DATA_VARIABLE = "AUSTRALIS_DATA"
TOPOLOGY_VARIABLE = "AUSTRALIS_TOPOLOGY"  # content of a topology, for ourselves as another user
DEFAULT_DATA = "australis-data"
SYSTEM_DATA = Path("/var/lib/australis")
STOP_SECONDS = 60.0
SHARD_MOVE_SECONDS = 1800.0
MOVE_SECONDS = 60.0
PSQL_KEEPS = ("PGOPTIONS", "PGAPPNAME", "PGCLIENTENCODING", "PGTZ", "PGDATESTYLE", "PGCONNECT_TIMEOUT")
NOT_RUNNING = 3  # exit status of `status`, as of init scripts


class _Commands(click.Group):
    """Turns our errors into one line, and lists commands in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AustralisError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


class _Directory(click.Path):
    """A directory's path; the empty one (a variable that a script forgot to set) is a mistake, not here."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a directory", param, ctx)
        if "\n" in os.fspath(value):
            self.fail("PostgreSQL cannot use a path with a line break; name another directory", param, ctx)
        try:
            os.fspath(value).encode("utf-8")
        except UnicodeEncodeError:
            self.fail("this path is not UTF-8; name another directory", param, ctx)
        return super().convert(value, param, ctx)


data_option = click.option(
    "--data",
    type=_Directory(path_type=Path),
    metavar="DIR",
    help=f"Directory of the cluster (default ./{DEFAULT_DATA}).",
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="australis", prog_name="australis")
def main() -> None:
    """A distributed SQL database: PostgreSQL on optimistic transactions with a durable journal."""


# ------------------------------------------------------------------------------------------------------------ start


@main.command()
@data_option
@click.option("--port", type=click.IntRange(1, 65535), help="Port for clients (default 5432, else the next free one).")
@click.option("--profile", type=click.Choice(sorted(LIMITS)), help="What SQL and limits apply (default postgres).")
@click.option(
    "--topology",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run a cluster of many processes: how many of each role (docs/topology.md).",
)
@click.option("--detach", is_flag=True, help="Return as soon as the cluster serves; `australis stop` ends it.")
@click.option("--ready-fd", type=int, hidden=True, help="Where to write a line when ready; set by --detach.")
def start(
    data: Path | None,
    port: int | None,
    profile: Profile | None,
    topology: Path | None,
    detach: bool,
    ready_fd: int | None,
) -> None:
    """Start the cluster; the first start makes it."""
    from australis.config import load
    from australis.control_plane import privileges

    layout = _layout(data)
    cluster = read_cluster(layout)
    wanted = _topology(layout, cluster, topology, profile)
    config = load(layout.data)
    if cluster is not None and profile is not None and cluster.profile != profile:
        raise ClusterError(
            f"{layout.data} was made with profile {cluster.profile}; start without --profile or elsewhere"
        )
    if holder(layout) is not None:
        DirectoryLock(layout).acquire()  # says who holds it
    if cluster is not None and wanted is None:
        check_journal_exists(layout, config.journal.engine)
    if data is None and layout.data.parent.parent == SYSTEM_DATA.parent and not os.environ.get(DATA_VARIABLE):
        click.echo(f"the cluster's user cannot go to {Path.cwd()}: its directory is {layout.data}", err=True)
    arguments = ["start", "--data", str(layout.data)]
    arguments += ["--port", str(port)] if port else []
    arguments += ["--profile", profile] if profile else []
    if detach:
        _detach(layout, arguments)
        return
    if privileges.is_root():
        privileges.drop(layout, arguments + (["--ready-fd", str(ready_fd)] if ready_fd is not None else []))
    if wanted is not None:
        _serve_topology(layout, port, wanted, ready_fd)
    else:
        _serve(layout, port, profile, ready_fd)


def _topology(
    layout: Layout, cluster: Cluster | None, file: Path | None, profile: Profile | None
) -> TopologyFile | None:
    """The topology to start, if it is a cluster of many processes; also told to ourselves as another user."""
    passed = os.environ.pop(TOPOLOGY_VARIABLE, None)
    if file is None and passed is None and not layout.topology_file.exists():
        return None
    import msgspec

    from australis.control_plane import multiprocess, topology

    if passed is not None:
        wanted = msgspec.json.decode(passed, type=topology.TopologyFile)
    elif file is not None:
        wanted = topology.load_topology(file)
    else:
        stored = multiprocess.stored_topology(layout)
        assert stored is not None, "the file exists"
        wanted = stored
    if profile is not None and profile != wanted.profile:
        raise ClusterError(f"--profile {profile}: the topology says profile {wanted.profile}")
    multiprocess.check_topology(layout, cluster, wanted)
    multiprocess.check_journals_exist(layout, wanted)
    # not as an argument: it may hold the password of NATS servers
    os.environ[TOPOLOGY_VARIABLE] = msgspec.json.encode(wanted).decode()
    return wanted


def _serve_topology(layout: Layout, port: int | None, wanted: TopologyFile, ready_fd: int | None) -> None:
    """Run a cluster of many processes until it is told to stop; this process supervises."""
    del os.environ[TOPOLOGY_VARIABLE]
    os.umask(0o077)
    prepare_directories(layout)
    lock = DirectoryLock(layout)
    lock.acquire()

    from australis import logs
    from australis.control_plane.embedded import run
    from australis.control_plane.multiprocess import ProcessCluster, store_topology

    cluster = read_cluster(layout)
    first = cluster is None
    if cluster is None:
        store_topology(layout, wanted)  # before cluster.json, which says that this is complete
        cluster = _create(layout, wanted.profile)
    logs.configure(layout.logs / "supervisor.log", level=wanted.log_level, process="supervisor")
    screen = _Screen(layout, cluster, ready_fd)
    screen.hello(first)
    run(
        ProcessCluster(layout, cluster, wanted, port=port, notice=screen.say),
        screen.ready,
        screen.status,
    )
    screen.goodbye()
    lock.release()


def _serve(layout: Layout, port: int | None, profile: Profile | None, ready_fd: int | None) -> None:
    """Run the cluster in this process until it is told to stop."""
    os.umask(0o077)
    prepare_directories(layout)
    lock = DirectoryLock(layout)
    lock.acquire()

    from australis import logs
    from australis.config import load
    from australis.control_plane.embedded import EmbeddedCluster, run
    from australis.query_processor.installation import find

    config = load(layout.data)
    installation = find()
    cluster = read_cluster(layout)
    first = cluster is None
    if cluster is None:
        cluster = _create(layout, profile or "postgres")
    logs.configure(layout.logs / "supervisor.log", level=config.log_level, process="supervisor")
    screen = _Screen(layout, cluster, ready_fd)
    screen.hello(first)
    run(
        EmbeddedCluster(layout, cluster, config, installation, port=port, notice=screen.say),
        screen.ready,
        screen.status,
    )
    screen.goodbye()
    lock.release()


def _create(layout: Layout, profile: Profile) -> Cluster:
    from australis.control_plane.layout import unusable

    try:
        return create_cluster(layout, profile)
    except OSError as error:
        raise unusable(layout, error) from error


class _Screen:
    """What a person sees of a running cluster: a few lines, then one that is kept up to date on a terminal."""

    def __init__(self, layout: Layout, cluster: Cluster, ready_fd: int | None) -> None:
        self._layout = layout
        self._cluster = cluster
        self._ready_fd = ready_fd
        if ready_fd is not None:
            os.set_inheritable(ready_fd, False)  # whoever reads it waits for our end, not for our children's
        self._live = sys.stderr.isatty() and ready_fd is None
        self._line = ""
        self._state = ""

    def say(self, text: str) -> None:
        self._clear()
        click.echo(text, err=True)

    def hello(self, first: bool) -> None:
        if self._cluster.profile == "dsql":
            self.say("profile dsql: accepted, but its limits and refusals are not enforced by this version")
        if first:
            self.say(f"making a new cluster in {self._layout.data}")

    def ready(self, cluster: EmbeddedCluster | ProcessCluster) -> None:
        if self._ready_fd is not None:
            # From here on nobody reads our stderr; the parent gives up its end when it has read all.
            errors = os.open(self._layout.logs / "supervisor.stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(errors, 2)
            os.close(errors)
            os.write(self._ready_fd, b"ready\n")
            os.close(self._ready_fd)
            return
        click.echo(_url(self._layout, cluster.state.host, cluster.state.port))
        self.say(f"ready after {cluster.phases.taken['total'] / 1000:.1f} s; Control-C stops it")

    def status(self, cluster: EmbeddedCluster | ProcessCluster) -> None:
        state = cluster.state.state
        down = [service.name for service in cluster.services if not service.serving]
        line = f"{state}: {', '.join(down)} not serving" if down else f"{state} · {cluster.one_line()}"
        if self._live:
            if line != self._line:
                self._clear()
                self._line = line[: shutil.get_terminal_size().columns - 1]
                click.echo(self._line, err=True, nl=False)
        elif self._ready_fd is None and (state != self._state and self._state):
            self.say(line)
        self._state = state

    def goodbye(self) -> None:
        if self._ready_fd is None:
            self.say("stopped")

    def _clear(self) -> None:
        if self._line:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._line = ""


def _detach(layout: Layout, arguments: list[str]) -> None:
    """Start the cluster in a session of its own; return once it is ready, or fail with what it said."""
    from australis.control_plane import privileges

    # as root: what `drop` would do, without starting Python once more for it
    service = privileges.prepare(layout) if privileges.is_root() else None
    program = service.program if service else sys.executable
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [program, "-P", "-m", "australis", *arguments, "--ready-fd", str(writer)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[writer] if service is None or service.in_use is None else [writer, service.in_use],
        start_new_session=True,
        cwd=layout.data if service else None,
        env=service.environment if service else None,
        user=service.user.pw_uid if service else None,
        group=service.user.pw_gid if service else None,
        extra_groups=[] if service else None,
    )
    os.close(writer)
    assert process.stderr is not None
    try:
        ready = os.read(reader, 16)  # ends with the process at the latest
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        raise
    said = process.stderr.read().decode(errors="replace").strip()
    if not ready:
        process.wait()
        lines = said.splitlines()
        killed = not lines or not lines[-1].startswith("Error: ")
        cause = f"the cluster's process was ended; see {layout.logs}" if killed else lines.pop()
        for notice in lines:
            click.echo(notice, err=True)
        raise ClusterError(cause.removeprefix("Error: "))
    if said:
        click.echo(said, err=True)
    state = _state(layout)
    click.echo(_url(layout, str(state["host"]), int(state["port"])))


# ------------------------------------------------------------------------------------------------------------- stop


@main.command()
@data_option
def stop(data: Path | None) -> None:
    """Stop the cluster; returns when it has ended."""
    layout = _existing(data)
    pid = holder(layout)
    if pid is None:
        click.echo("not running", err=True)
        return
    if not _end(layout, pid, signal.SIGTERM, STOP_SECONDS):
        raise ClusterError(f"process {pid} does not end within {STOP_SECONDS:.0f} s; kill -9 {pid} is safe")
    click.echo("stopped", err=True)


def _end(layout: Layout, pid: int, number: signal.Signals, timeout: float) -> bool:
    """Signal the supervisor and wait for its end; True when it has ended."""
    if pid == 0:
        raise ClusterError(f"{layout.data} is being started at this moment; try again")
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if holder(layout) != pid:  # ended between the two: the handle may be of another process
            return True
        signal.pidfd_send_signal(handle, number)
        ended, _, _ = select.select([handle], [], [], timeout)
        return bool(ended)
    except PermissionError as error:
        raise ClusterError(f"process {pid} belongs to another user; stop it as that user or as root") from error
    finally:
        os.close(handle)


@main.command()
@data_option
@click.option("--rolling", is_flag=True, help="One process after the other; the cluster goes on meanwhile.")
@click.argument("names", nargs=-1, metavar="[ROLE|NAME]...")
def restart(data: Path | None, rolling: bool, names: tuple[str, ...]) -> None:
    """Restart processes of a cluster of many (default: all), each once the one before has caught up."""
    from australis.control_plane.supervisor_client import request

    layout = _existing(data)
    if not rolling:
        raise click.UsageError("say --rolling; to restart the whole cluster at once, stop and start it")
    if not layout.topology_file.exists():
        raise ClusterError(f"{layout.data} has one process of each kind: stop and start it")
    _running(layout)
    for answer in request(layout.run / "supervisor.sock", {"restart": list(names)}):
        click.echo(f"{answer['name']}: serves after {answer['serves_after']:.1f} s", err=True)


@main.command(name="move")
@data_option
@click.option("--relation", metavar="DATABASE/RELFILENUMBER", help="All of a table or index.")
@click.option("--lo", metavar="HEX", help="First key of the range.")
@click.option("--hi", metavar="HEX", help="End of the range, not part of it.")
@click.option("--to", "target", type=int, required=True, help="Number of the adjudicator or shard that takes it.")
@click.option("--shard", is_flag=True, help="Move what storage holds: --to is a shard.")
def move(data: Path | None, relation: str | None, lo: str | None, hi: str | None, target: int, shard: bool) -> None:
    """Move a key range to another adjudicator, or with --shard to another shard; reads and writes go on meanwhile."""
    import asyncio

    from australis.control_plane import survey
    from australis.control_plane.multiprocess import role_configs
    from australis.keyspace import relation_id, relation_range
    from australis.protocol.messages import MoveRange, MoveShard

    layout = _existing(data)
    _running(layout)
    try:
        if relation is not None and lo is None and hi is None:
            database, _, number = relation.partition("/")
            first, end = relation_range(relation_id(int(database), int(number)))
        elif relation is None and lo is not None and hi is not None:
            first, end = bytes.fromhex(lo), bytes.fromhex(hi)
        else:
            raise click.UsageError("name a range: --relation, or --lo and --hi")
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"not a range of keys: {error}") from error
    places = [config.listen for config in role_configs(layout) if config.role == "control"]
    identity = survey.tool_identity(_cluster(layout).id, layout.roles / survey.TOOL)
    request: MoveRange | MoveShard = MoveShard(1, first, end, target) if shard else MoveRange(1, first, end, target)
    seconds = SHARD_MOVE_SECONDS if shard else MOVE_SECONDS
    refusal = asyncio.run(survey.move_range(places, identity, request, seconds))
    if refusal:
        raise ClusterError(refusal)
    click.echo("moved", err=True)


@main.command()
@click.argument("kind", type=click.Choice(["systemd", "compose", "helm"]))
@click.option("--topology", type=click.Path(path_type=Path), required=True, metavar="FILE", help="What to deploy.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where files go.")
@click.option("--host", "hosts", multiple=True, metavar="NAME=HOST", help="systemd: where a process or role runs.")
def deploy(kind: str, topology: Path, out: Path, hosts: tuple[str, ...]) -> None:
    """Write deployment files for a cluster on several hosts (docs/topology.md)."""
    from australis.control_plane.deploy import generate
    from australis.control_plane.topology import load_topology

    chosen = dict(text.partition("=")[::2] for text in hosts)
    if not all(chosen.values()) or (hosts and kind != "systemd"):
        raise click.UsageError("--host NAME=HOST is for systemd; containers have their own names")
    try:
        files = generate(kind, load_topology(topology), out, chosen)
    except OSError as error:
        raise ClusterError(f"{error.filename or out}: {(error.strerror or str(error)).lower()}") from error
    click.echo(f"{len(files)} files in {out / kind}; they hold passwords and keys", err=True)


@main.command(name="run")
@click.argument("role")
@click.option("--config", "file", type=click.Path(path_type=Path), required=True, metavar="FILE")
def run_command(role: str, file: Path) -> None:
    """Run one ROLE of a cluster of many processes on this host (docs/topology.md)."""
    from australis.control_plane.run_role import run_role
    from australis.control_plane.topology import ROLES

    if role not in ROLES:
        raise click.UsageError(f"no role {role!a}; roles are {', '.join(ROLES)}")
    sys.exit(run_role(role, file))


# ----------------------------------------------------------------------------------------------------------- status


@main.command()
@data_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(data: Path | None, as_json: bool) -> None:
    """Show how the cluster is. Exit status 3 when it does not run."""
    from australis.control_plane import report

    layout = _existing(data)
    content = report.collect(layout, _cluster(layout), running=holder(layout) is not None)
    click.echo(report.as_json(content) if as_json else report.as_table(content))
    if content["state"] == "stopped":
        sys.exit(NOT_RUNNING)


@main.command()
@data_option
@click.option("--direct", is_flag=True, help="Of the query processor, without the router.")
def url(data: Path | None, direct: bool) -> None:
    """Print the connection string."""
    layout = _existing(data)
    state = _running(layout)
    if direct:
        click.echo(_url(layout, "127.0.0.1", _direct_port(state)))
    else:
        click.echo(_url(layout, str(state["host"]), int(state["port"])))


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@data_option
@click.option("--direct", is_flag=True, help="To the query processor, without the router.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql(data: Path | None, direct: bool, arguments: tuple[str, ...]) -> None:
    """Open psql as admin; further arguments are psql's."""
    from australis.query_processor.installation import find

    layout = _existing(data)
    state = _running(layout)
    program = find(extension=False).program("psql")
    environment = {
        "PGHOST": "127.0.0.1" if direct else str(state["host"]),
        "PGPORT": str(_direct_port(state) if direct else state["port"]),
        "PGUSER": "admin",
        "PGDATABASE": "postgres",
        "PGPASSWORD": layout.password(),
    }
    # PGSERVICE, PGSSLMODE and the like are about some other server
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name in PSQL_KEEPS}
    os.execve(program, [program, *arguments], kept | environment)


@main.command()
@data_option
@click.argument("name", required=False)
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=100, show_default=True, help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines.")
def logs(data: Path | None, name: str | None, lines: int, follow: bool) -> None:
    """Show the logs, or only that of NAME (supervisor, commit, postgresql)."""
    from australis.control_plane import log_reader

    for line in log_reader.read(_existing(data).logs, name, lines, follow=follow):
        click.echo(line)


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Compare with stock PostgreSQL on this machine; writes JSON, a table and an SVG."""
    try:
        from australis.bench import main as run
    except ImportError as error:
        raise ClusterError(f"the benchmarks are not installed ({error}); pip install '.[bench]'") from error
    sys.exit(run(list(arguments)))


@main.command()
@data_option
def check(data: Path | None) -> None:
    """Check a stopped cluster: journal, storage, and whether they agree."""
    from australis.control_plane import privileges

    layout = _existing(data)
    _cluster(layout)
    if holder(layout) is not None:
        raise ClusterError(f"{layout.data} is in use; stop it first: australis stop --data {layout.data}")
    if layout.topology_file.exists():
        raise ClusterError("a cluster of many processes is not checked yet; its processes check what they read")
    if privileges.is_root():
        privileges.drop(layout, ["check", "--data", str(layout.data)])
    lock = DirectoryLock(layout)
    lock.acquire()

    from australis.control_plane import consistency

    findings = consistency.check(layout)
    for line in findings.lines:
        click.echo(line)
    lock.release()
    if findings.bad:
        raise ClusterError(f"{findings.bad} problem(s) found in {layout.data}")


@main.command()
@data_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def destroy(data: Path | None, yes: bool) -> None:
    """Stop the cluster and delete it with everything in it."""
    layout = _existing(data)
    if not yes:
        click.confirm(f"Delete the cluster in {layout.data} and all its data?", abort=True, err=True)
    pid = holder(layout)
    # Nothing of it is needed any more, so it need not end politely.
    if pid is not None and not _end(layout, pid, signal.SIGTERM, 10.0):
        _end(layout, pid, signal.SIGKILL, 10.0)
    lock = DirectoryLock(layout)
    lock.acquire()

    from australis.control_plane.processes import end_leftovers, services_of
    from australis.page import PROCESSORS
    from australis.query_processor.launcher import free_shared_memory

    end_leftovers(services_of(layout))
    for number in range(PROCESSORS):
        free_shared_memory(layout.processor(number) / "data")
    for server in layout.roles.glob("*/postgresql-*"):
        free_shared_memory(server / "data")
    remove_run(layout)
    for name in sorted(OWN_NAMES - {"australis.toml", "cluster.json", "lock"}):
        _remove(layout.data / name)
    # Last: as long as these are there, the directory is known to be ours.
    _remove(layout.cluster_file)
    _remove(layout.lock_file)
    lock.release()
    try:
        layout.data.resolve().rmdir()
        if layout.data.is_symlink():
            layout.data.unlink()
    except OSError as error:
        kept = "it holds files that are not the cluster's" if error.errno == errno.ENOTEMPTY else error.strerror
        click.echo(f"kept {layout.data}: {kept}", err=True)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ClusterError(f"{error.filename or path}: {(error.strerror or str(error)).lower()}") from error


# ----------------------------------------------------------------------------------------------------------- common


main.add_command(certs)


def _layout(data: Path | None) -> Layout:
    """The directory meant: --data, AUSTRALIS_DATA, ./australis-data.

    Root may stand where the service user cannot go; then the default is a directory of the system's, named after here.
    """
    if data is not None:
        return Layout(data)
    if os.environ.get(DATA_VARIABLE):
        return Layout(Path(os.environ[DATA_VARIABLE]))
    try:
        layout = Layout(Path(DEFAULT_DATA))
    except FileNotFoundError as error:
        raise ClusterError("the working directory is no more; go elsewhere or name a directory with --data") from error
    if os.geteuid() == 0 and not layout.cluster_file.exists():
        from australis.control_plane import privileges

        if not privileges.can_reach(privileges.service_user(layout), layout.data):
            here = Path.cwd()
            key = hashlib.sha256(os.fsencode(here)).hexdigest()[:8]
            return Layout(SYSTEM_DATA / f"{here.name or 'root'}-{key}")
    return layout


def _existing(data: Path | None) -> Layout:
    layout = _layout(data)
    try:
        if layout.cluster_file.exists() or layout.lock_file.exists():
            return layout
    except OSError as error:
        raise ClusterError(f"{layout.data}: {(error.strerror or str(error)).lower()}; run as its owner") from error
    raise ClusterError(f"no cluster in {layout.data}; make one: australis start --data {layout.data}")


def _cluster(layout: Layout) -> Cluster:
    cluster = read_cluster(layout)
    if cluster is None:
        raise ClusterError(f"no cluster in {layout.data}; make one: australis start --data {layout.data}")
    return cluster


def _state(layout: Layout) -> dict[str, Any]:
    return read_json(layout.run / "state.json")


def _running(layout: Layout) -> dict[str, Any]:
    """State of the running cluster; waits a moment for one that is just starting."""
    deadline = time.monotonic() + 5.0
    while True:
        if holder(layout) is None:
            raise ClusterError(f"the cluster in {layout.data} does not run; australis start --data {layout.data}")
        state = _state(layout)
        if state.get("port"):
            return state
        if time.monotonic() > deadline:
            raise ClusterError(f"the cluster in {layout.data} is still starting; see australis logs")
        time.sleep(0.05)


def _direct_port(state: dict[str, Any]) -> int:
    port = int(state["direct_port"])
    if not port:
        raise ClusterError("no query processor runs at this moment; a connection without --direct starts one")
    return port


def _url(layout: Layout, host: str, port: int) -> str:
    where = f"[{host}]" if ":" in host else host
    return f"postgresql://admin:{quote(layout.password(), safe='')}@{where}:{port}/postgres"
