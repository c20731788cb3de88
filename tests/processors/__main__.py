"""Schema changes under load on a cluster of its own: prints one line; status 1 if anything was wrong.

With `--topology adjudicators=2,shards=2` each query processor has a gateway of its own, in a cluster of many processes.
"""

from __future__ import annotations

import argparse
import sys

from tests.fixtures.plane import plane, topology_of
from tests.fixtures.servers import AustralisCluster, temporary_directory
from tests.processors.conftest import OfHosts, Processors
from tests.processors.load import Load, Result


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.processors", description="Schema changes under load.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--processors", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--topology")
    options = parser.parse_args()
    result = run(options)
    for wrong in result.wrong[:20]:
        print(f"WRONG: {wrong}")
    where = f" of {options.topology}" if options.topology else ""
    print(f"{options.clients} clients on {options.processors} query processors{where}: {result.line()}")
    return 1 if result.wrong else 0


def run(options: argparse.Namespace) -> Result:
    """Start a cluster, load it, stop it."""
    if options.topology:
        with plane(**{**topology_of(options.topology), "gateways": options.processors}) as many:
            return load(OfHosts(many), options)
    with temporary_directory("processors") as directory:
        cluster = AustralisCluster(directory, settings={"query_processors": options.processors})
        try:
            return load(Processors(cluster, cluster.start()), options)
        finally:
            cluster.stop()


def load(processors: Processors, options: argparse.Namespace) -> Result:
    """Clients and changers, spread over the query processors."""
    count = options.processors
    return Load(lambda number: processors.connect(number % count), count, options.clients, options.seed).run(
        options.seconds
    )


if __name__ == "__main__":
    sys.exit(main())
