"""`python -m tests.histories`: load, verdict, one line per workload; exit code 1: anomalies, 2: could not be judged."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.histories.run import LEVELS, NoDatabase, Run
from tests.histories.workloads import WORKLOADS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=__doc__)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--level", choices=list(LEVELS), default="repeatable-read")
    parser.add_argument("--seconds", type=float, default=10.0, help="per workload")
    parser.add_argument("--transactions", type=int, help="per workload, at most (roughly)")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--dsn", action="append", required=True, help="of each query processor")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for an answer")
    parser.add_argument("--heal", type=float, default=60.0, help="seconds to wait for a database that is away")
    parser.add_argument("--keep", type=Path, help="directory for all histories; default: bad ones, in a temporary one")
    args = parser.parse_args(arguments)
    code = 0
    for workload in WORKLOADS if args.workload == "all" else [args.workload]:
        run = Run(
            workload,
            args.level,
            args.dsn,
            clients=args.clients,
            seed=args.seed,
            seconds=args.seconds,
            limit=args.transactions,
            patience=args.patience,
            heal=args.heal,
            keep=args.keep,
        )
        try:
            report = run.start().finish()
        except NoDatabase as error:
            print(f"{workload} {args.level}: {error}", file=sys.stderr)
            return 2
        print(report, flush=True)
        if not report.verdict.valid:
            code = 1
        elif report.problems and code == 0:
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(main())
