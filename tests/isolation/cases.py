"""The interleavings of cases.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.isolation.player import Case, steps

TWO_ROWS = "SELECT id, value FROM t ORDER BY id"


def load() -> list[Case]:
    """Every case once per isolation level."""
    data = tomllib.loads((Path(__file__).parent / "cases.toml").read_text())
    return [
        Case(
            group=entry["group"],
            name=entry["name"],
            level=level,
            setup=data["setups"][entry.get("setup", "two_rows")],
            steps=steps(entry["steps"]),
            outcome=entry["outcome"],
            final=entry.get("final", TWO_ROWS),
            results=tuple(entry["results"]),
            stock=entry.get("stock", {}),
            stock_results=tuple(entry.get("stock_results", [])),
            waits=entry.get("waits", False),
        )
        for entry in data["case"]
        for level in entry["levels"]
    ]


CASES = load()
