"""`python -m tests.regression [--dsn URL] [--files select,insert | --core | --all] [--specs all|a,b]`.

Runs PostgreSQL's regression files (PG_REGRESS_DIR or --source) on the server under test and on stock PostgreSQL.
Without --dsn an Australis cluster is started (with --self: a second stock server). Outputs are kept in --work, one
directory per server kind, to be read with diff.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import CannotStart, Server, australis_server, stock_server
from tests.regression.runner import Side, run_files, run_specs, summary, write_json
from tests.regression.source import CORE, SourceMissing, regress_directory, schedule, with_needs

STOCK_SETTINGS = {"max_prepared_transactions": "2"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.regression")
    parser.add_argument("--dsn", help="URL of the server under test (default: start Australis)")
    parser.add_argument("--stock-dsn", help="URL of a stock server (default: start one)")
    parser.add_argument("--no-stock", action="store_true", help="compare with the expected files only")
    parser.add_argument("--self", action="store_true", help="the server under test is a second stock server")
    parser.add_argument("--source", help="src/test/regress of PostgreSQL 18 (default: PG_REGRESS_DIR)")
    parser.add_argument("--files", help="comma-separated names")
    parser.add_argument("--core", action="store_true", help="the files of acceptance line A4 (default)")
    parser.add_argument("--all", action="store_true", help="the whole parallel_schedule")
    parser.add_argument("--specs", help="isolation specs instead: all, or comma-separated names")
    parser.add_argument("--work", help="directory for outputs (default: a temporary one, printed)")
    parser.add_argument("--json", help="write the results there")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds per file")
    parser.add_argument("--show", type=int, default=0, help="print up to this many differing answers per file")
    args = parser.parse_args()
    with ExitStack() as stack:
        try:
            source = regress_directory(args.source)
            stock = None
            if args.stock_dsn:
                stock = Server("stock", args.stock_dsn)
            elif not args.no_stock:
                stock = stack.enter_context(stock_server(settings=STOCK_SETTINGS))
            if args.dsn:
                server = Server("australis", args.dsn)
            elif args.self:
                second = stack.enter_context(stock_server(settings=STOCK_SETTINGS))
                server = Server("australis", second.dsn)
            else:
                server = stack.enter_context(australis_server())
            work = Path(args.work or tempfile.mkdtemp(prefix="au-regress-")).resolve()
            work.mkdir(parents=True, exist_ok=True)
            work.chmod(0o755)
            side = Side(server, source, work, args.limit)
            other = Side(stock, source, work, args.limit) if stock else None
        except (CannotStart, ProgramsMissing, SourceMissing) as error:
            print(error, file=sys.stderr)
            return 2
        print(f"outputs: {work}")
        if args.specs:
            known = [p.stem for p in sorted((source.parent / "isolation" / "specs").glob("*.spec"))]
            results = run_specs(known if args.specs == "all" else args.specs.split(","), side, other)
        else:
            if args.files:
                wanted = args.files.split(",")
            elif args.all:
                wanted = [n for group in schedule(source) for n in group if n != "test_setup"]
            else:
                wanted = CORE
            results = run_files(with_needs(source, wanted), side, other, set(wanted))
    print(summary(results, args.show))
    if args.json:
        write_json(results, Path(args.json))
    return 0 if all(r.same for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
