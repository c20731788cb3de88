"""`python -m tests.matrix.hosts`: a cluster on three hosts (network namespaces), mutual TLS between them, partitions.

Every process is `australis run <role> --config FILE` on its host, NATS servers (one per host, three replicas) carry the
journals. Clients are on a fourth host, which reaches all of them at any time, also those that are cut off from each
other. The histories of tests/histories run meanwhile and are judged at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

from australis.certs import issue, make_authority
from australis.control_plane.plan import CONFIG_FILE, POSTGRESQL_SOCKET, Instance, plan
from australis.control_plane.topology import RoleConfig, TlsConfig, TopologyFile, encode_role
from tests.fixtures.plane import _program
from tests.fixtures.servers import CannotStart, temporary_directory, unprivileged
from tests.hosts.network import Host, Network, Unavailable, why_not

HOSTS = 3
READY_SECONDS = 120.0
REPOSITORY = Path(__file__).parents[2]


class OnHosts:
    """A Place: which host a process is on, and where its files are."""

    def __init__(self, hosts: list[Host], directory: Path) -> None:
        self._hosts, self._directory = hosts, directory
        self._ports: dict[str, int] = {}

    def host(self, instance: Instance) -> Host:
        """Replicas of a shard are on different hosts, as are candidates for an adjudicator, crossbars, gateways."""
        replica = int(instance.name.rsplit("-", 1)[1]) if instance.name.count("-") == 2 else 0
        return self._hosts[(instance.number + replica) % HOSTS]

    def _address(self, instance: Instance, what: str = "") -> str:
        port = self._ports.setdefault(instance.name + what, 7000 + len(self._ports))
        return f"{self.host(instance).address}:{port}"

    def address(self, instance: Instance) -> str:
        return self._address(instance)

    def nats(self, instance: Instance) -> tuple[str, str]:
        return self._address(instance), self._address(instance, " cluster")

    def data(self, instance: Instance) -> str:
        return str(self._directory / instance.name)

    def run(self, instance: Instance) -> str:
        return str(self._directory / f"run-{instance.number}-{instance.role[0]}")

    def tls(self, instance: Instance) -> TlsConfig | None:
        if instance.role in ("nats", "router"):
            return None
        files = issue(self._directory / "ca", instance.role, instance.name, [self.host(instance).address])
        return TlsConfig(ca=str(files.ca), certificate=str(files.certificate), key=str(files.key))

    def upstreams(self, router: Instance, gateways: list[Instance]) -> list[str]:
        return [f"unix:{self.run(one)}/{POSTGRESQL_SOCKET}" for one in gateways if one.number == router.number]

    def image(self) -> str:
        return str(self._directory / "image.tar")

    def objects(self) -> str:
        return (self._directory / "objects").as_uri()  # all hosts have this directory

    def password_file(self, instance: Instance) -> str:
        return str(self._directory / "password")

    def port(self, router: Instance) -> int:
        return 5432

    def hosts(self, router: Instance) -> list[str]:
        return [self._hosts[router.number].address]


class HostCluster:
    """The running cluster."""

    def __init__(self, network: Network, directory: Path, topology: TopologyFile) -> None:
        self.network = network
        self.hosts, self.client = network.hosts[:HOSTS], network.hosts[HOSTS]
        self.directory = directory
        self.cluster = os.urandom(16)
        directory.mkdir(mode=0o755)
        make_authority(directory / "ca", self.cluster)
        (directory / "password").write_text("secret\n")
        place = OnHosts(self.hosts, directory)
        self.configs = plan(topology, self.cluster.hex(), place, "secret")
        self.places = {
            config.name: place.host(Instance(config.role, config.name, config.number)) for config in self.configs
        }
        self._identity = unprivileged()
        self._python, self._environment, self._in_use = _program()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        for config in self.configs:
            self._write(config)
        if self._identity is not None:
            for path in [directory, *directory.rglob("*")]:
                os.chown(path, *self._identity)

    def _write(self, config: RoleConfig) -> None:
        Path(config.data).mkdir(mode=0o700)
        (Path(config.data) / CONFIG_FILE).write_bytes(encode_role(config))

    def start(self) -> None:
        """Everything, in the order of the plan."""
        roles = list(dict.fromkeys(config.role for config in self.configs))
        for role in roles:
            names = [config.name for config in self.configs if config.role == role]
            for name in names:
                self._start(role, name)
            for name in names:
                self._ready(name)

    def _start(self, role: str, name: str) -> None:
        become: list[str] = []
        if self._identity is not None:
            user, group = self._identity
            become = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
        file = self.directory / name / CONFIG_FILE
        command = [*become, self._python, "-P", "-m", "australis", "run", role, "--config", str(file)]
        with (self.directory / f"{name}.log").open("a") as log:
            self._processes[name] = self.places[name].start(
                command, env=self._environment, stdout=subprocess.PIPE, stderr=log, cwd=self.directory
            )

    def _ready(self, name: str) -> None:
        if name.startswith("nats"):
            return  # it says nothing; whoever needs it waits for it
        process = self._processes[name]
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            ready = selector.select(READY_SECONDS) and process.stdout.readline()
        if not ready or not json.loads(ready).get("ready"):
            said = (self.directory / f"{name}.log").read_text().strip().splitlines()[-3:]
            raise CannotStart(f"{name}: {' | '.join(said)}")

    def stop(self) -> None:
        """End everything; the namespaces' end would do it, too."""
        for process in reversed(self._processes.values()):
            process.terminate()
        for name, process in self._processes.items():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                print(f"{name} did not end", file=sys.stderr)
                process.kill()
                process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
        if self._in_use is not None:
            os.close(self._in_use)

    @property
    def dsns(self) -> list[str]:
        """One per host."""
        return [f"postgresql://admin:secret@{host.address}:5432/postgres" for host in self.hosts]

    def sql(self, statement: str) -> None:
        """From the clients' host."""
        code = f"import psycopg; psycopg.connect({self.dsns[0]!r}, autocommit=True).execute({statement!r})"
        done = self.client.run([sys.executable, "-c", code])
        if done.returncode:
            raise CannotStart(done.stderr.strip().splitlines()[-1])

    def load(self, workload: str, seconds: float, clients: int, log: Path) -> subprocess.Popen[str]:
        """Histories from the clients' host; ends with 0 if there is nothing wrong in them."""
        command = [sys.executable, "-m", "tests.histories", "--workload", workload, "--seconds", str(seconds)]
        command += ["--clients", str(clients), "--patience", "60", "--heal", "120"]
        for dsn in self.dsns:
            command += ["--dsn", dsn]
        with log.open("w") as out:
            return self.client.start(command, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT)


def faults(network: Network, seconds: float) -> list[tuple[str, float]]:
    """What is done to the network, and for how long."""
    return [
        ("isolate host 3", seconds),
        ("isolate host 1", seconds),
        ("1 -> 2 one way", seconds),
        ("1 | 2 | 3", seconds),
        ("isolate host 2", seconds),
    ]


def strike(network: Network, fault: str) -> None:
    one, two, three = network.hosts[:HOSTS]
    match fault:
        case "1 | 2 | 3":
            network.partition([one], [two], [three])
        case "1 -> 2 one way":
            network.cut(one, two, one_way=True)
        case _:
            alone = network.hosts[int(fault[-1]) - 1]
            network.partition([alone], [other for other in (one, two, three) if other is not alone])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix.hosts", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each partition")
    parser.add_argument("--pause", type=float, default=12.0, help="between two of them")
    parser.add_argument("--nats", type=int, default=3, choices=(0, 3))
    parser.add_argument("--workloads", default="append,bank,unique")
    parser.add_argument("--clients", type=int, default=3, help="per workload")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return 0
    topology = TopologyFile(
        nats=options.nats,
        adjudicators=2,
        candidates=2 if options.nats else 1,
        crossbars=3,
        shards=2,
        replicas=2,
        query_processors=3,
        routers=3,
    )
    good = True
    with temporary_directory("hosts") as directory, Network(HOSTS + 1) as network:
        cluster = HostCluster(network, directory / "c", topology)
        try:
            cluster.start()
            cluster.sql("CREATE TABLE probe (id int PRIMARY KEY, n bigint)")
            plan_of_faults = faults(network, options.seconds)
            total = 5 + len(plan_of_faults) * (options.seconds + options.pause)
            logs = {name: directory / f"{name}.txt" for name in options.workloads.split(",")}
            loads = [cluster.load(name, total, options.clients, log) for name, log in logs.items()]
            probe_log = directory / "probe.txt"
            with probe_log.open("w") as out:
                probe = cluster.client.start(
                    [sys.executable, "-m", "tests.matrix.probe", *cluster.dsns], cwd=REPOSITORY, stdout=out
                )
            time.sleep(5)  # load before the first fault
            windows = []
            for fault, seconds in plan_of_faults:
                began = time.monotonic()
                strike(network, fault)
                time.sleep(seconds)
                network.heal()
                healed = time.monotonic()
                time.sleep(options.pause)
                windows.append((fault, began, healed, time.monotonic()))
            for load in loads:
                good &= load.wait(300) == 0
            probe.kill()
            probe.wait()
            times = [float(line) for line in probe_log.read_text().splitlines() if line.strip()]
            print(f"{'fault':<18} {'writes succeeded meanwhile':>28} {'first write after healing (s)':>32}")
            for fault, began, healed, _ in windows:
                during = sum(began + 1 < at < healed for at in times)
                after = next((at - healed for at in times if at > healed), None)
                print(f"{fault:<18} {during:>28} {'none' if after is None else f'{after:.2f}':>32}")
                good &= after is not None
            for log in logs.values():
                print(log.read_text().strip())
        except Unavailable as error:
            print(f"skipped: {error}", file=sys.stderr)
            return 0
        finally:
            cluster.stop()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
