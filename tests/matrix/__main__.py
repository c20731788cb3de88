"""`python -m tests.matrix`: start a cluster of many processes, kill and stop each role under load, judge; a table."""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

from tests.matrix.cluster import many_processes
from tests.matrix.moves import moves
from tests.matrix.run import HEADER, ROLES, SMALL, Matrix, rolling_restart, write_json


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--topology", type=Path, help="topology file without port (default: a small one on files)")
    parser.add_argument("--roles", default=",".join(ROLES))
    parser.add_argument("--faults", default="kill -9,SIGSTOP")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--restart", action="store_true", help="restart every role, rolling, instead of faults")
    parser.add_argument(
        "--moves", action="store_true", help="move, split, merge and rebuild what storage holds instead"
    )
    parser.add_argument("--json", type=Path, help="write the report here, too")
    options = parser.parse_args()
    topology = options.topology.read_text() if options.topology else SMALL
    with many_processes(topology) as cluster:
        matrix = Matrix(cluster, clients=options.clients)
        matrix.start()
        print(HEADER, flush=True)
        try:
            for _ in range(options.rounds):
                if options.restart:
                    rolling_restart(matrix)
                    continue
                if options.moves:
                    moves(matrix, 3, tomllib.loads(topology)["shards"])
                    continue
                matrix.all_faults(tuple(options.roles.split(",")), tuple(options.faults.split(",")))
        finally:
            report = matrix.finish()
    print(report)
    if options.json:
        write_json(report, options.json)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
