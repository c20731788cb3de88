"""Comparing two outcomes of one statement, and the documented differences.

A difference is (aspect, left, right); aspects: kind, tag, columns, rows, sqlstate, message, detail, hint, context,
position, object (names in the error), notices. `differences.toml` documents the accepted ones, each with a reason;
an entry that matches nothing in a full run is reported as stale, so that the file can only shrink honestly.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.differential.script import Compare, Item
from tests.differential.session import Outcome, Result

_OBJECT = ("schema", "table", "column", "datatype", "constraint")
_SHOWN = 400


@dataclass(frozen=True)
class Difference:
    """One aspect in which two outcomes differ."""

    aspect: str
    left: str
    right: str


@dataclass
class Documented:
    """An accepted difference. `statement` and `right` are regular expressions (searched); empty matches all."""

    reason: str
    aspects: list[str]
    file: str = ""
    statement: str = ""
    right: str = ""
    processors: bool = False  # only where sessions are on different query processors
    used: int = 0

    def covers(self, file: str, item: Item, difference: Difference) -> bool:
        return (
            difference.aspect in self.aspects
            and (not self.file or re.fullmatch(self.file, file) is not None)
            and re.search(self.statement, item.text, re.IGNORECASE | re.DOTALL) is not None
            and re.search(self.right, difference.right, re.DOTALL) is not None
        )


def _query_processors(topology: str) -> int:
    """How many the cluster under test has, as AUSTRALIS_TEST_TOPOLOGY says."""
    if topology.endswith(".toml"):
        return int(tomllib.loads(Path(topology).read_text()).get("query_processors", 1))
    counts = dict(item.split("=") for item in topology.split(",") if item)
    return int(counts.get("gateways", "1")) * int(counts.get("processors", "1"))


@dataclass
class DocumentedDifferences:
    entries: list[Documented] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> DocumentedDifferences:
        data = tomllib.loads(path.read_text())
        several = _query_processors(os.environ.get("AUSTRALIS_TEST_TOPOLOGY", "")) > 1
        entries = [Documented(**entry) for entry in data.get("difference", [])]
        return cls([entry for entry in entries if several or not entry.processors])

    def find(self, file: str, item: Item, difference: Difference) -> Documented | None:
        for entry in self.entries:
            if entry.covers(file, item, difference):
                entry.used += 1
                return entry
        return None


def compare(item: Item, left: Outcome, right: Outcome) -> list[Difference]:
    """What differs between the two outcomes, as far as the item wants it compared."""
    if item.compare is Compare.NOTHING:
        return []
    out: list[Difference] = []
    kinds = [" ".join(_kind(r) for r in o.results) for o in (left, right)]
    if kinds[0] != kinds[1] or len(left.results) != len(right.results):
        return [Difference("kind", _summary(left), _summary(right))]
    for a, b in zip(left.results, right.results, strict=True):
        out += _compare_results(item, a, b)
    if item.compare is Compare.ALL and left.notices != right.notices:
        out.append(Difference("notices", " | ".join(left.notices), " | ".join(right.notices)))
    return out


def _kind(result: Result) -> str:
    return f"error:{result.error.get('sqlstate')}" if result.kind == "error" else result.kind


def _summary(outcome: Outcome) -> str:
    parts = []
    for r in outcome.results:
        if r.error:
            parts.append(f"{r.kind} {r.error.get('sqlstate', '')} {r.error.get('message', '')}")
        else:
            parts.append(f"{r.kind} {r.tag}" + (f" {_show(r)}" if r.rows else ""))
    return " ; ".join(parts)[:_SHOWN] or "nothing"


def _show(result: Result) -> str:
    rows = [", ".join("NULL" if v is None else v.decode(errors="backslashreplace") for v in row) for row in result.rows]
    return ("(" + ") (".join(rows) + ")")[:_SHOWN]


def _error(result: Result, aspect: str) -> str:
    value = result.error.get(aspect, "")
    # which process of a parallel query meets the error is chance
    return re.sub(r"\n?^parallel worker$", "", value, flags=re.MULTILINE) if aspect == "context" else value


def _compare_results(item: Item, a: Result, b: Result) -> list[Difference]:
    if item.compare is Compare.SMOKE:
        return []
    out: list[Difference] = []
    if item.compare is Compare.STATE and (a.error or b.error):
        return []
    if a.error or b.error:
        for aspect in ("message", "detail", "hint", "context", "position"):
            left_error, right_error = _error(a, aspect), _error(b, aspect)
            if left_error != right_error and (item.compare is Compare.ALL or aspect == "message"):
                out.append(Difference(aspect, left_error, right_error))
        names = [
            re.sub(r"pg_temp_\d+", "pg_temp", " ".join(f"{k}={e[k]}" for k in _OBJECT if k in e))
            for e in (a.error, b.error)
        ]
        if names[0] != names[1]:
            out.append(Difference("object", names[0], names[1]))
        return out
    if item.compare in (Compare.ALL, Compare.STATE) and a.tag != b.tag:
        out.append(Difference("tag", a.tag, b.tag))
    if a.columns != b.columns:
        out.append(Difference("columns", str(a.columns), str(b.columns)))
    if item.compare is Compare.SHAPE:
        return out
    if item.ordered:
        if a.rows != b.rows:
            out.append(Difference("rows", *_first_differing_rows(a, b)))
    elif (left := Counter(a.rows)) != (right := Counter(b.rows)):
        only_left = Result("rows", rows=list((left - right).elements()))
        only_right = Result("rows", rows=list((right - left).elements()))
        counts = (f"{len(a.rows)} rows, only here: ", f"{len(b.rows)} rows, only here: ")
        out.append(Difference("rows", counts[0] + _show(only_left), counts[1] + _show(only_right)))
    return out


def _first_differing_rows(a: Result, b: Result) -> tuple[str, str]:
    i = 0
    while i < min(len(a.rows), len(b.rows)) and a.rows[i] == b.rows[i]:
        i += 1
    shown = [f"{len(r.rows)} rows, from row {i + 1}: " + _show(Result("rows", rows=r.rows[i : i + 4])) for r in (a, b)]
    return shown[0], shown[1]
