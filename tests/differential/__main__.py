"""`python -m tests.differential [--dsn-a URL] [--dsn-b URL] [--files a,b | --random N]`: run the suite from the shell.

Without --dsn-a a stock PostgreSQL is started; without --dsn-b an Australis cluster (or, with --self, a second stock
server: the harness's own check, which must find no difference).
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from tests.differential.compare import DocumentedDifferences
from tests.differential.runner import DIFFERENCES, random_scripts, run_all, run_texts, scripts, summary
from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import CannotStart, Server, australis_server, stock_server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    parser.add_argument("--dsn-a", help="URL of the oracle (default: start stock PostgreSQL)")
    parser.add_argument("--dsn-b", help="URL of the server under test (default: start Australis)")
    parser.add_argument("--self", action="store_true", help="compare stock with stock")
    parser.add_argument("--files", help="comma-separated names (default: all)")
    parser.add_argument("--random", type=int, metavar="N", help="random schemas and scans of N seeds instead of files")
    parser.add_argument("--seed", type=int, default=1000, help="the first of them (default: 1000)")
    parser.add_argument("--statements", type=int, default=400, help="statements in each")
    parser.add_argument("--list", action="store_true", help="list the files and their numbers of statements")
    args = parser.parse_args()
    available = scripts()
    names = args.files.split(",") if args.files else list(available)
    if unknown := [n for n in names if n not in available]:
        parser.error(f"unknown files: {', '.join(unknown)}; known: {', '.join(available)}")
    if args.list:
        from tests.differential.script import parse_script

        counts = {n: sum(i.counts for i in parse_script(available[n]())) for n in names}
        for name, count in counts.items():
            print(f"{count:6} {name}")
        print(f"{sum(counts.values()):6} statements in {len(names)} files")
        return 0
    documented = DocumentedDifferences([]) if args.self else DocumentedDifferences.load(DIFFERENCES)
    with ExitStack() as stack:
        try:
            a = Server("stock", args.dsn_a) if args.dsn_a else stack.enter_context(stock_server())
            if args.dsn_b:
                b = Server("australis", args.dsn_b)
            else:
                b = stack.enter_context(stock_server() if args.self else australis_server())
        except (CannotStart, ProgramsMissing) as error:
            print(error, file=sys.stderr)
            return 2
        if args.random:
            reports = run_texts(random_scripts(args.seed, args.random, args.statements), (a, b), documented)
        else:
            reports = run_all(names, (a, b), documented)
    print(summary(reports, documented, complete=not (args.files or args.random)))
    return 1 if any(r.undocumented for r in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
