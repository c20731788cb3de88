"""A supervisor of its own process, with stub roles: for tests that kill it.

python -m tests.topology.supervise DATA TOPOLOGY
"""

from __future__ import annotations

import sys
from pathlib import Path

from australis.control_plane.embedded import run
from australis.control_plane.layout import DirectoryLock, Layout, create_cluster, prepare_directories, read_cluster
from australis.control_plane.multiprocess import ProcessCluster
from australis.control_plane.topology import RoleConfig, load_topology
from australis.errors import AustralisError


def stub_command(config: RoleConfig, file: Path) -> list[str]:
    """Run the stub instead of the role."""
    return [sys.executable, str(Path(__file__).with_name("stub_role.py")), str(file)]


def main() -> int:
    """Say "ready" when all serve."""
    layout, topology = Layout(Path(sys.argv[1])), load_topology(Path(sys.argv[2]))
    prepare_directories(layout)
    lock = DirectoryLock(layout)
    lock.acquire()
    cluster = read_cluster(layout) or create_cluster(layout, topology.profile)
    try:
        run(
            ProcessCluster(layout, cluster, topology, command=stub_command),
            lambda _: print("ready", flush=True),
            lambda _: None,
        )
    except AustralisError as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
