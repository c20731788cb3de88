"""Pure parts on fixed input; a real, tiny comparison of stock with itself is `test_one_round`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from australis.bench import command, report
from australis.bench.command import Result
from australis.bench.pgbench import ClientFailed, parse
from australis.bench.workloads import WORKLOADS
from tests.fixtures.servers import Server

OUTPUT = """
transaction type: <builtin: TPC-B (sort of)>
number of transactions actually processed: 1000
number of failed transactions: 10 (0.990%)
number of transactions retried: 150 (14.851%)
total number of retries: 300
latency average = 2.345 ms
initial connection time = 10.1 ms
tps = 812.345678 (without initial connection time)
"""

DOCUMENT = {
    "when": "2026-01-01T00:00:00+0000",
    "machine": {"cpu": "a <fast> & small one", "cores": 2, "memory_gib": 4},
    "postgresql": "postgres (PostgreSQL) 18.6",
    "rows": 1000,
    "rounds": 3,
    "seconds": 1.0,
    "disk_latency_ms": {"before": {"p50": 0.1, "p99": 1.0}, "after": {"p50": 0.1, "p99": 1.0}},
    "idle_memory_mb": 100.0,
    "idle_memory_limit_mb": 250.0,
    "first_start_seconds": {"Australis": 1.0},
}


def results() -> list[Result]:
    point, copy, commit, failed = (
        next(w for w in WORKLOADS if w.name == n) for n in ("point", "copy", "commit-1", "tpcb")
    )
    return [
        Result(point, "1/s", [100, 100, 100], [50, 90, 70], [0.5, 0.9, 0.7]),
        Result(copy, "s", [1.0], [2.0], [0.5]),
        Result(commit, "1/s", [1000], [800], [0.8], latency_ms=([1.0], [1.4])),
        Result(failed, "1/s", error="could not <connect>"),
    ]


def test_pgbench_is_read() -> None:
    figures = parse(OUTPUT)
    assert (figures.tps, figures.latency_ms, figures.failed, figures.retries) == (812.345678, 2.345, 10, 300)
    assert figures.abort_share == pytest.approx(310 / 1310)
    with pytest.raises(ClientFailed):
        parse("pgbench: error: connection refused")


def test_median_of_ratios_decides() -> None:
    point, copy, commit, failed = results()
    assert (point.ratio, point.reached) == (0.7, False)
    assert copy.reached is True
    assert commit.extra_ms == pytest.approx(0.4)
    assert commit.reached is True
    assert failed.reached is False


def test_table_and_picture() -> None:
    table = report.table(results(), DOCUMENT)
    assert "BELOW" in table
    assert "failed: could not <connect>" in table
    assert "+0.40 ms" in table
    picture = ET.fromstring(report.svg(results(), DOCUMENT))
    texts = [e.text or "" for e in picture.iter() if e.tag.endswith("text")]
    assert any("0.70" in t for t in texts)
    assert any("could not <connect>" in t for t in texts)


def test_unknown_workloads_are_named() -> None:
    with pytest.raises(SystemExit, match="nope"):
        command.main(["--workloads", "nope"])


@pytest.mark.timeout(180)
def test_one_round(australis: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command as a user runs it, as short as it can be (`australis` only says whether the product can start)."""
    chosen = "point,copy,commit-1"
    options = ["--quick", "--rounds", "1", "--seconds", "1", "--rows", "5000", "--workloads", chosen]
    assert command.main([*options, "--out", str(tmp_path)]) == 0
    document = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [w["workload"]["name"] for w in document["workloads"]] == chosen.split(",")
    assert all(w["ratio"] > 0 and not w["error"] for w in document["workloads"])
    assert "point SELECT" in capsys.readouterr().out
    ET.parse(next(tmp_path.glob("*.svg")))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "not a positive number"),
        (["--rows", "many"], "invalid"),
        (["--workloads", "nope"], "unknown workloads: nope"),
        (["--data", "/proc/nowhere/here"], "/proc/nowhere"),
        (["--out", "/dev/null/here"], "not a directory"),
    ],
)
def test_bad_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused in one line and before anything is measured."""
    message = ""
    try:
        assert command.main(arguments) == 1
    except SystemExit as error:
        message = str(error)
    assert said in message + capsys.readouterr().err
