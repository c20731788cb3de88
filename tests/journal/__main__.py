"""Many rounds of faults against real servers: python -m tests.journal --rounds N

Ends with one line that says what was done, or with what was wrong and status 1. A round takes about 10 seconds.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.fixtures.nats import nats_servers
from tests.journal.rounds import FAULTS_ONE, FAULTS_THREE, Rounds


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="tests.journal", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="faults in a row")
    parser.add_argument("--servers", type=int, default=3, choices=(1, 3), help="NATS servers")
    parser.add_argument("--seed", type=int, default=1, help="which faults, which records")
    options = parser.parse_args()
    choose = random.Random(options.seed)
    faults = [choose.choice(FAULTS_THREE if options.servers == 3 else FAULTS_ONE) for _ in range(options.rounds)]
    with tempfile.TemporaryDirectory(prefix="au-journal-") as name:
        directory = Path(name)
        with nats_servers(directory / "servers", options.servers) as servers:
            rounds = Rounds(directory, servers, options.seed)
            try:
                rounds.run(faults)
            except AssertionError as error:
                print(f"FAILED (seed {options.seed}): {error}", file=sys.stderr)
                raise
            print(f"{options.rounds} rounds, seed {options.seed}: {rounds.summary()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
