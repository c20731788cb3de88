"""Schema changes under load on a cluster of its own: prints one line; status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import sys

from tests.fixtures.servers import AustralisCluster, temporary_directory
from tests.processors.conftest import Processors
from tests.processors.load import Load


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.processors", description="Schema changes under load.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--processors", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with temporary_directory("processors") as directory:
        cluster = AustralisCluster(directory, settings={"query_processors": options.processors})
        try:
            processors = Processors(cluster, cluster.start())
            load = Load(
                lambda number: processors.connect(number % options.processors),
                options.processors,
                options.clients,
                options.seed,
            )
            result = load.run(options.seconds)
        finally:
            cluster.stop()
    for wrong in result.wrong[:20]:
        print(f"WRONG: {wrong}")
    print(f"{options.clients} clients on {options.processors} query processors: {result.line()}")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
