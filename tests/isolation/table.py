"""The table of results."""

from __future__ import annotations

from dataclasses import dataclass

from tests.isolation.player import Case, Played


@dataclass
class Line:
    """One case on one server."""

    case: Case
    kind: str
    played: Played | None
    problems: list[str]


SHORT = {"READ COMMITTED": "RC", "REPEATABLE READ": "RR", "SERIALIZABLE": "SER"}


def result_table(lines: list[Line]) -> str:
    """One row per case, servers side by side."""
    kinds = list(dict.fromkeys(line.kind for line in lines))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for line in lines:
        key = (line.case.group, line.case.name, SHORT[line.case.level])
        rows.setdefault(key, {})[line.kind] = _cell(line)
    width = max((len(k[1]) for k in rows), default=10)
    out = [f"{'case':{width}} {'':3}  " + "".join(f"{k:34}" for k in kinds)]
    group = ""
    for (where, name, level), cells in rows.items():
        if where != group:
            out.append(f"-- {where}")
            group = where
        out.append(f"{name:{width}} {level:3}  " + "".join(f"{cells.get(k, ''):34}" for k in kinds).rstrip())
    for kind in kinds:
        of_kind = [line for line in lines if line.kind == kind]
        good = sum(not line.problems for line in of_kind)
        out.append(f"{kind}: {good} of {len(of_kind)} cases as expected")
    return "\n".join(out)


def _cell(line: Line) -> str:
    if line.played is None:
        return "FAILED"
    ends = " ".join(f"{s}:{e}" for s, e in sorted(line.played.ends.items()))
    marks = (" (waited)" if line.played.waited else "") + (" UNEXPECTED" if line.problems else "")
    return ends + marks
