"""Running a test file on two servers and reporting what differs.

Must hold: a file runs in a schema of its own (`d_<file>`), dropped before it starts, in the same order on both sides;
nothing of one file is needed by another. A server that dies costs the file, not the run.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.differential.compare import Difference, Documented, DocumentedDifferences, compare
from tests.differential.generate import generated_scripts
from tests.differential.random_scans import random_scan_script
from tests.differential.random_schemas import random_schema_script
from tests.differential.script import Action, Item, parse_script
from tests.differential.session import ConnectionLost, Outcome, Result, Row, Session
from tests.fixtures.servers import Server

HERE = Path(__file__).parent
FILES = HERE / "files"
DIFFERENCES = HERE / "differences.toml"
STATEMENT_TIMEOUT = "30s"


@dataclass
class Found:
    """A difference at a place in a file."""

    file: str
    item: Item
    difference: Difference
    documented: Documented | None

    def __str__(self) -> str:
        statement = " ".join(self.item.text.split())
        mark = f"documented: {self.documented.reason}" if self.documented else "DIFFERENT"
        return (
            f"{self.file}:{self.item.line}: {mark}: {self.difference.aspect}\n    {statement[:300]}\n"
            f"    A: {self.difference.left[:500]}\n    B: {self.difference.right[:500]}"
        )


@dataclass
class FileReport:
    """What a file's run showed."""

    file: str
    statements: int = 0
    found: list[Found] = field(default_factory=list)
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def undocumented(self) -> list[Found]:
        return [f for f in self.found if f.documented is None]

    @property
    def differing_statements(self) -> int:
        return len({f.item.line for f in self.undocumented})


def random_scripts(seed: int, count: int, statements: int) -> dict[str, Callable[[], str]]:
    """Random files of `count` seeds."""
    out: dict[str, Callable[[], str]] = {}
    for number in range(seed, seed + count):
        out[f"random_schemas_{number}"] = partial(random_schema_script, number, statements)
        out[f"random_scans_{number}"] = partial(random_scan_script, number, statements)
    return out


def scripts() -> dict[str, Callable[[], str]]:
    """All test files by name: the written ones and the generated ones."""
    out: dict[str, Callable[[], str]] = {}
    for path in sorted(FILES.glob("*.sql")):
        out[path.stem] = path.read_text
    return out | generated_scripts() | random_scripts(1, 4, 250)


def run_script(name: str, text: str, servers: tuple[Server, Server], documented: DocumentedDifferences) -> FileReport:
    """Run one file on both servers and compare."""
    items = parse_script(text)
    report = FileReport(name, sum(item.counts for item in items))
    started = time.monotonic()
    left = play(name, items, servers[0])
    middle = time.monotonic()
    right = play(name, items, servers[1])
    report.seconds = (middle - started, time.monotonic() - middle)
    for item, a, b in zip(items, left, right, strict=True):
        if a is None or b is None:
            continue
        for difference in compare(item, a, b):
            report.found.append(Found(name, item, difference, documented.find(name, item, difference)))
    return report


def play(name: str, items: list[Item], server: Server) -> list[Outcome | None]:
    """Run all items on one server; None for items without an outcome."""
    schema = "d_" + re.sub(r"\W", "_", name)
    prelude = [
        f"SET search_path = {schema}, public",
        "SET timezone = 'America/Los_Angeles'",
        "SET datestyle = 'ISO, MDY'",
        "SET intervalstyle = 'postgres'",
        "SET client_encoding = 'UTF8'",
        f"SET statement_timeout = '{STATEMENT_TIMEOUT}'",
    ]
    sessions: dict[str, Session] = {}
    out: list[Outcome | None] = [None] * len(items)
    try:
        _fresh_schema(server, schema)
        player = _Player(server, schema, prelude, sessions)
        player.play(items, out)
    except ConnectionLost as error:
        lost = Outcome([Result("lost", error={"message": str(error)})])
        out = [lost if o is None and item.counts else o for item, o in zip(items, out, strict=True)]
    finally:
        for session in sessions.values():
            session.close()
    return out


def _fresh_schema(server: Server, schema: str) -> None:
    owner = Session(server, ["SET client_min_messages = error"])
    try:
        for statement in (f"DROP SCHEMA IF EXISTS {schema} CASCADE", f"CREATE SCHEMA {schema}"):
            for result in owner.simple(statement.encode(), None).results:
                if result.error:
                    raise ConnectionLost(f"{statement}: {result.error.get('message')}")
    finally:
        owner.close()


class _Player:
    def __init__(self, server: Server, schema: str, prelude: list[str], sessions: dict[str, Session]) -> None:
        self.server = server
        self.schema = schema
        self.prelude = prelude
        self.sessions = sessions
        self.variables: dict[str, str] = {}
        self.session = self._session("main")

    def _session(self, name: str) -> Session:
        if name not in self.sessions:
            self.sessions[name] = Session(self.server, self.prelude)
        return self.sessions[name]

    def _fill(self, text: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda m: self.variables.get(m.group(1), m.group(0)), text)

    def play(self, items: list[Item], out: list[Outcome | None]) -> None:
        i = 0
        while i < len(items):
            item = items[i]
            match item.action:
                case Action.SESSION:
                    self.session = self._session(item.text)
                case Action.RECONNECT:
                    self.session.close()
                case Action.PSQL:
                    out[i] = self._psql(self._fill(item.text))
                case Action.PIPELINE:
                    end = next(j for j in range(i, len(items)) if items[j].action is Action.END)
                    inside = items[i + 1 : end]
                    outcomes = self.session.pipeline([(x, self._fill(x.text)) for x in inside])
                    places = [j for j in range(i + 1, end) if items[j].action is not Action.SYNC]
                    for place, outcome in zip(places, outcomes, strict=False):
                        out[place] = outcome
                    for place in places[len(outcomes) :]:
                        out[place] = Outcome([Result("lost")])
                    i = end
                case _:
                    outcome = self.session.run(item, self._fill(item.text))
                    out[i] = outcome
                    if item.save and outcome.results and outcome.results[0].rows:
                        value = outcome.results[0].rows[0][0]
                        self.variables[item.save] = "" if value is None else value.decode()
            i += 1

    def _psql(self, command: str) -> Outcome:
        options = f"-csearch_path={self.schema},public -cstatement_timeout={STATEMENT_TIMEOUT}"
        try:
            done = self.server.psql("-c", command, timeout=60, env={"PGOPTIONS": options})
        except subprocess.TimeoutExpired:
            return Outcome([Result("hang")])
        lines = done.stdout.splitlines() + done.stderr.splitlines()
        rows: list[Row] = [(line.encode(errors="surrogateescape"),) for line in lines]
        return Outcome([Result(f"psql exit {done.returncode}", rows=rows)])


def run_all(
    names: Iterable[str], servers: tuple[Server, Server], documented: DocumentedDifferences, *, verbose: bool = True
) -> list[FileReport]:
    """Run files by name, printing differences as they are found."""
    available = scripts()
    return run_texts({name: available[name] for name in names}, servers, documented, verbose=verbose)


def run_texts(
    texts: Mapping[str, Callable[[], str]],
    servers: tuple[Server, Server],
    documented: DocumentedDifferences,
    *,
    verbose: bool = True,
) -> list[FileReport]:
    """Run these files, printing differences as they are found."""
    reports = []
    for name, make in texts.items():
        report = run_script(name, make(), servers, documented)
        reports.append(report)
        if verbose:
            for found in report.found:
                if found.documented is None:
                    print(found)
            print(
                f"{name}: {report.statements} statements, {report.differing_statements} differ, "
                f"{len(report.found) - len(report.undocumented)} documented "
                f"({report.seconds[0]:.1f} s / {report.seconds[1]:.1f} s)",
                flush=True,
            )
    return reports


def summary(reports: list[FileReport], documented: DocumentedDifferences, *, complete: bool) -> str:
    """The totals in a few lines."""
    statements = sum(r.statements for r in reports)
    differing = sum(r.differing_statements for r in reports)
    used = [d for d in documented.entries if d.used]
    lines = [
        f"differential: {len(reports)} files, {statements} statements, {differing} with undocumented differences, "
        f"{len(used)} documented differences in use"
    ]
    lines += [f"  documented ({d.used}x): {d.reason}" for d in used]
    if complete:
        lines += [f"  stale documented difference: {d.reason}" for d in documented.entries if not d.used]
    return "\n".join(lines)
