"""`python -m tests.isolation [--dsn URL] [--case PATTERN] [--stock-only]`: the table of results from the shell."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import ExitStack

import psycopg

from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import CannotStart, Server, australis_server, stock_server
from tests.isolation.cases import CASES
from tests.isolation.player import play, problems
from tests.isolation.table import Line, result_table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.isolation")
    parser.add_argument("--dsn", help="URL of Australis (default: start one)")
    parser.add_argument("--case", default="", help="regular expression on the names")
    parser.add_argument("--stock-only", action="store_true")
    args = parser.parse_args()
    chosen = [c for c in CASES if re.search(args.case, f"{c.group} {c.name} {c.level}")]
    lines: list[Line] = []
    with ExitStack() as stack:
        try:
            servers = [stack.enter_context(stock_server())]
            if not args.stock_only:
                running = Server("australis", args.dsn) if args.dsn else stack.enter_context(australis_server())
                servers.append(running)
        except (CannotStart, ProgramsMissing) as error:
            print(error, file=sys.stderr)
            return 2
        for case in chosen:
            for server in servers:
                try:
                    played = play(case, server, "isolation_case")
                    lines.append(Line(case, server.kind, played, problems(case, played, server.kind)))
                except (psycopg.Error, TimeoutError) as error:
                    lines.append(Line(case, server.kind, None, [f"could not be played: {error}"]))
                for problem in lines[-1].problems:
                    print(f"{server.kind}: {case.name} {case.level}: {problem}", flush=True)
    print(result_table(lines))
    return 1 if any(line.problems for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
