"""`python -m tests.crash --kills 200`: the full run (acceptance line A6)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.crash.run import Run
from tests.crash.victims import AustralisVictim, StockVictim, Victim
from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import AustralisCluster, CannotStart, Server, StockCluster, temporary_directory


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", help="comma-separated: backend, postmaster, commit, supervisor, all")
    parser.add_argument("--driver", help="storage driver: attached or socket")
    parser.add_argument("--direct", action="store_true", help="clients connect without the router")
    parser.add_argument("--stock", action="store_true", help="kill a stock PostgreSQL instead (checks the harness)")
    parser.add_argument("--data", help="use this directory and keep it")
    args = parser.parse_args()
    with temporary_directory("crash") as scratch:
        directory = Path(args.data).resolve() if args.data else scratch
        cluster: AustralisCluster | StockCluster
        try:
            if args.stock:
                cluster = StockCluster(directory)
                server = cluster.start()
                victim: Victim = StockVictim(cluster, server)
            else:
                cluster = AustralisCluster(directory, driver=args.driver)
                server = cluster.start()
                victim = AustralisVictim(cluster)
        except (CannotStart, ProgramsMissing) as error:
            print(error, file=sys.stderr)
            return 2
        try:
            if args.direct:
                server = Server(server.kind, server.direct_dsn or server.dsn)
            targets = tuple(args.targets.split(",")) if args.targets else victim.targets
            report = Run(victim, server, clients=args.clients, seed=args.seed).go(args.kills, targets)
        finally:
            cluster.stop()
    print(report)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
