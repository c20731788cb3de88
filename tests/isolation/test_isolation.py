"""The interleavings under pytest, on both servers; the table of results is printed at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fixtures.servers import Server
from tests.isolation.cases import CASES
from tests.isolation.player import Case, play, problems
from tests.isolation.table import Line, result_table

_LINES: list[Line] = []


def _id(case: Case) -> str:
    return f"{case.group}-{case.name}-{case.level}".replace(" ", "_")


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_interleaving(case: Case, any_server: Server) -> None:
    line = Line(case, any_server.kind, None, ["could not be played"])
    _LINES.append(line)
    line.played = play(case, any_server, "isolation_case")
    line.problems = problems(case, line.played, any_server.kind)
    assert not line.problems


def test_a_wrong_expectation_is_noticed(stock: Server) -> None:
    case = next(c for c in CASES if c.name == "P4 lost update" and c.level == "REPEATABLE READ")
    played = play(case, stock, "isolation_self")
    assert problems(case, played, "stock") == []
    assert problems(replace(case, outcome={"1": "commit", "2": "commit"}, stock={}), played, "stock")
    assert problems(replace(case, results=("(1, 12) (2, 20)",)), played, "stock")


def test_results_table(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + result_table(_LINES))
