"""PostgreSQL's regression files under pytest: a few of them, and the classifier held to planted differences.

The whole suite with its report is `python -m tests.regression --core` (and `--specs all`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fixtures.servers import Server
from tests.regression.classify import Block, cut, differing_blocks, kind_of
from tests.regression.runner import FileResult, Side, run_files, run_specs, summary
from tests.regression.source import SourceMissing, regress_directory, with_needs

# Isolation specs of all kinds that take a second or less; the others differ for the same reasons.
SPECS = [
    "aborted-keyrevoke", "create-trigger", "delete-abort-savept", "detach-partition-concurrently-3", "fk-contention",
    "fk-partitioned-2", "fk-snapshot", "index-only-scan", "insert-conflict-do-nothing-2", "insert-conflict-do-update-2",
    "lock-committed-keyupdate", "lock-update-delete", "merge-insert-update", "merge-update", "nowait",
    "partition-concurrent-attach", "partition-key-update-4", "ri-trigger", "simple-write-skew", "skip-locked",
    "sequence-ddl", "truncate-conflict", "tuplelock-conflict", "update-conflict-out", "vacuum-conflict",
]  # fmt: skip
FILES = ["select", "insert", "update", "delete", "insert_conflict", "transactions", "uuid", "numeric", "prepare"]


@pytest.mark.parametrize(
    ("statement", "expected", "actual", "kind"),
    [
        ("SELECT a", (" 1", " 2"), (" 2", " 1"), "row order"),
        ("EXPLAIN SELECT 1", (" Seq Scan",), (" Index Scan",), "plan shape"),
        ("SELECT 1", (" 1",), ("server closed the connection unexpectedly",), "CONNECTION LOST"),
        ("SELECT 1", (" 1",), ("ERROR:  could not serialize access",), "conflict at commit (40001)"),
        (
            "CREATE INDEX",
            ("x",),
            ('ERROR:  access method "gin" is not supported',),
            "other index access method refused",
        ),
        ("SELECT 1", (" 1",), ("ERROR:  boom 7",), "unexpected error: boom #"),
        ("SELECT 1", ("ERROR:  boom",), (" 1",), "missing error: boom"),
        ("SELECT 1", (" 1",), (" 2",), "numbers differ"),
        ("SELECT 1", (" a", " b"), (" a",), "rows missing"),
        ("SELECT ctid", (" (0,1)",), (" (0,9)",), "ctid, xmin, tableoid"),
    ],
)
def test_classes(statement: str, expected: tuple[str, ...], actual: tuple[str, ...], kind: str) -> None:
    assert kind_of((statement,), expected, actual) == kind


def test_only_the_statement_that_differs_is_reported() -> None:
    sql = {"SELECT 1;", "SELECT 2;", "SELECT 3;"}
    expected = cut("SELECT 1;\n 1\nSELECT 2;\n 2\nSELECT 3;\n 3\n", sql)
    actual = cut("SELECT 1;\n 1\nSELECT 2;\n 7\nSELECT 3;\n 3\n", sql)
    different = differing_blocks(expected, actual)
    assert [(d.echo, d.removed, d.added) for d in different] == [(("SELECT 2;",), 1, 1)]
    assert differing_blocks(expected, expected) == []


def test_a_lost_tail_is_reported_once() -> None:
    expected = [Block(("a",), ("1",)), Block(("b",), ("2",)), Block(("c",), ("3",))]
    different = differing_blocks(expected, [Block(("a",), ("server closed the connection",))])
    assert [d.kind for d in different] == ["CONNECTION LOST", "rows missing"]


@pytest.mark.timeout(300)
def test_core_files(stock: Server, australis: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every difference of these files is of a class with a reason; nothing crashes or hangs."""
    try:
        source = regress_directory()
    except SourceMissing as error:
        pytest.skip(str(error))
    for directory in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(directory, 0o755)
    names = with_needs(source, FILES)
    side, other = (Side(server, source, tmp_path, limit=120) for server in (australis, stock))
    results = run_files(names, side, other, set(FILES))
    with capsys.disabled():
        print("\n" + summary(results, show=0))
    explained = ("row order", "plan", "ctid, xmin", "by design", "documented", "follow-up", "other index access method")
    assert not unexplained(results, (*explained, "refused: exclusion"))


def unexplained(results: list[FileResult], explained: tuple[str, ...]) -> list[str]:
    late = [f"{r.name}: time limit" for r in results if r.timed_out]
    blocks = [(r.name, b) for r in results if not r.same for b in r.best]
    return late + [f"{n}:{b.line} {b.kind}" for n, b in blocks if not b.kind.startswith(explained)]


@pytest.mark.timeout(300)
def test_isolation_specs(stock: Server, australis: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same of isolation specs: what differs is that nobody waits, one snapshot, or a conflict found at COMMIT."""
    try:
        source = regress_directory()
    except SourceMissing as error:
        pytest.skip(str(error))
    for directory in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(directory, 0o755)
    side, other = (Side(server, source, tmp_path, limit=60) for server in (australis, stock))
    results = run_specs(SPECS, side, other)
    with capsys.disabled():
        print("\n" + summary(results, show=0))
    explained = ("row order", "by design", "documented", "follow-up", "conflict at commit", "nothing waits")
    assert not unexplained(results, explained)
