"""The differential suite under pytest: one test per file, totals at the end; the harness's own checks first."""

from __future__ import annotations

import pytest

from tests.differential.compare import DocumentedDifferences, compare
from tests.differential.runner import DIFFERENCES, FileReport, run_script, scripts, summary
from tests.differential.script import Action, Compare, parse_script
from tests.differential.session import Outcome, Result
from tests.fixtures.servers import Server

_REPORTS: list[FileReport] = []


@pytest.fixture(scope="module")
def documented() -> DocumentedDifferences:
    return DocumentedDifferences.load(DIFFERENCES)


def test_statements_end_where_psql_ends_them() -> None:
    text = """
SELECT ';' || "a;b" || $q$;$q$ || E'\\';'; /* ; /* nested; */ */ SELECT 2 -- ;
;
CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END;
COPY t FROM stdin;
1;2
\\.
--@ shape
SELECT (SELECT 1; );
"""
    items = parse_script(text)
    assert [i.line for i in items] == [2, 2, 4, 5, 9]
    assert items[3].copy_data == b"1;2\n"
    assert items[4].compare is Compare.SHAPE
    assert all(i.action is Action.STATEMENT for i in items)


def test_rows_are_ordered_only_by_order_by() -> None:
    ordered = {i.text: i.ordered for i in parse_script("SELECT 1 ORDER BY 1; SELECT (SELECT 1 ORDER BY 1); FETCH c;")}
    assert list(ordered.values()) == [True, False, True]


@pytest.mark.parametrize(
    ("aspect", "change"),
    [
        ("rows", {"rows": [(b"2",)]}),
        ("tag", {"tag": "SELECT 2"}),
        ("columns", {"columns": [("b", "23/-1", 0)]}),
        ("kind", {"kind": "command"}),
    ],
)
def test_planted_differences_are_found(aspect: str, change: dict[str, object]) -> None:
    item = parse_script("SELECT a FROM t;")[0]
    good = Result("rows", "SELECT 1", [("a", "23/-1", 0)], [(b"1",)])
    bad = Result(**{**good.__dict__, **change})
    assert compare(item, Outcome([good]), Outcome([good])) == []
    assert [d.aspect for d in compare(item, Outcome([good]), Outcome([bad]))] == [aspect]


def test_planted_error_differences_are_found() -> None:
    item = parse_script("SELECT 1;")[0]
    error = {"sqlstate": "23505", "message": "duplicate key", "detail": "Key (a)=(1) already exists."}
    left = Outcome([Result("error", error=error)], ["NOTICE 00000: x"])
    assert [d.aspect for d in compare(item, left, Outcome([Result("error", error={**error, "sqlstate": "1"})]))] == [
        "kind"
    ]
    other = Outcome([Result("error", error={**error, "detail": "other"})])
    assert [d.aspect for d in compare(item, left, other)] == ["detail", "notices"]


def test_stock_equals_itself(stock: Server) -> None:
    report = run_script("smoke", scripts()["smoke"](), (stock, stock), DocumentedDifferences())
    assert report.statements > 20
    assert not report.found


@pytest.mark.parametrize("name", list(scripts()))
def test_answers_equal_stock(name: str, stock: Server, australis: Server, documented: DocumentedDifferences) -> None:
    report = run_script(name, scripts()[name](), (stock, australis), documented)
    _REPORTS.append(report)
    assert not report.undocumented, "\n" + "\n".join(str(f) for f in report.undocumented[:40])


def test_totals(australis: Server, documented: DocumentedDifferences, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + summary(_REPORTS, documented, complete=len(_REPORTS) == len(scripts())))
