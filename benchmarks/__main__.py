"""`python -m benchmarks`: the same as `australis bench`, results into benchmarks/results."""

from __future__ import annotations

import sys
from pathlib import Path

from australis.bench import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(a == "--out" or a.startswith("--out=") for a in arguments):
        arguments += ["--out", str(Path(__file__).parent / "results")]
    sys.exit(main(arguments))
