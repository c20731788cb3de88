"""Running the files as pg_regress does, on both servers, and reporting.

Must hold: files run one after the other in the schedule's order in database `regression`, created anew; a file that
hangs is stopped at its time limit; a server that crashed gets time to come back before the next file.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.fixtures.postgres import program
from tests.fixtures.servers import Server
from tests.regression.classify import (
    Block,
    DifferentBlock,
    cut,
    cut_permutations,
    differing_blocks,
    expected_outputs,
)
from tests.regression.source import build_library

DATABASE = "regression"
RETURN_SECONDS = 60.0


@dataclass
class FileResult:
    """One file on the server under test."""

    name: str
    seconds: float
    same_as_expected: bool
    same_as_stock: bool | None  # None: not run on stock
    blocks: int
    different: list[DifferentBlock] = field(default_factory=list)  # from expected
    different_from_stock: list[DifferentBlock] = field(default_factory=list)
    timed_out: bool = False

    @property
    def same(self) -> bool:
        return self.same_as_expected or self.same_as_stock is True

    @property
    def best(self) -> list[DifferentBlock]:
        """The shorter of the two lists: what can't be blamed on the environment."""
        if self.same_as_stock is None or len(self.different) <= len(self.different_from_stock):
            return self.different
        return self.different_from_stock


def environment(server: Server, source: Path, build: Path, library: Path, database: str) -> dict[str, str]:
    """What pg_regress sets for psql."""
    env = server.environment(database)
    for name in ("LC_COLLATE", "LC_CTYPE", "LC_MONETARY", "LC_NUMERIC", "LC_TIME", "LANG", "LANGUAGE", "LC_ALL"):
        env.pop(name, None)
    env.update(
        PG_ABS_SRCDIR=str(source),
        PG_ABS_BUILDDIR=str(build),
        PG_LIBDIR=str(library),
        PG_DLSUFFIX=".so",
        LC_MESSAGES="C",
        PGTZ="America/Los_Angeles",
        PGDATESTYLE="Postgres, MDY",
        PGOPTIONS="-c intervalstyle=postgres_verbose",
    )
    return env


class Side:
    """The suite on one server."""

    def __init__(self, server: Server, source: Path, work: Path, limit: float) -> None:
        self.server = server
        self.source = source
        self.limit = limit
        self.build = work / server.kind
        self.results = self.build / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self.build.chmod(0o777)  # the server, an unprivileged user, writes COPY files here
        self.results.chmod(0o777)
        library = work / "library"
        self.library = library if (library / "regress.so").exists() else build_library(source, library)

    def create_database(self, name: str = DATABASE) -> None:
        """A fresh database with pg_regress's settings, and no roles left of an earlier run."""
        with self.server.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name}")
            connection.execute(f"CREATE DATABASE {name} TEMPLATE=template0")
            for setting in ("lc_messages", "lc_monetary", "lc_numeric", "lc_time"):
                connection.execute(f"ALTER DATABASE {name} SET {setting} TO 'C'")
            connection.execute(f"ALTER DATABASE {name} SET bytea_output TO 'hex'")
            connection.execute(f"ALTER DATABASE {name} SET timezone_abbreviations TO 'Default'")
            roles = connection.execute("SELECT quote_ident(rolname) FROM pg_roles WHERE rolname LIKE 'regress%'")
            for (role,) in roles.fetchall():
                try:
                    connection.execute(f"DROP ROLE {role}")
                except psycopg.Error as error:
                    print(f"{self.server.kind}: left-over role {role} stays: {error}")
            if connection.execute("SELECT 1 FROM pg_tablespace WHERE spcname = 'regress_tblspace'").fetchone():
                connection.execute("DROP TABLESPACE regress_tblspace")

    def wait_until_back(self) -> None:
        """After a crash: until a connection works again."""
        deadline = time.monotonic() + RETURN_SECONDS
        while True:
            try:
                self.server.connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)  # the server is restarting: nothing to wait on

    def run_file(self, name: str) -> tuple[str, float, bool]:
        """Output of one sql file, its seconds, whether the time limit struck."""
        self.wait_until_back()
        env = environment(self.server, self.source, self.build, self.library, DATABASE)
        env["PGAPPNAME"] = f"pg_regress/{name}"
        command = [str(program("psql")), "-X", "-a", "-q", "-d", DATABASE]
        command += ["-v", "HIDE_TABLEAM=on", "-v", "HIDE_TOAST_COMPRESSION=on"]
        return self._run(command, self.source / "sql" / f"{name}.sql", name, env)

    def run_spec(self, name: str) -> tuple[str, float, bool]:
        """Output of one isolation spec."""
        self.wait_until_back()
        env = environment(self.server, self.source, self.build, self.library, "isolation_regression")
        env.pop("PGOPTIONS")
        env["PGAPPNAME"] = f"isolation/{name}"
        command = [str(program("isolationtester")), "dbname=isolation_regression"]
        spec = self.source.parent / "isolation" / "specs" / f"{name}.spec"
        return self._run(command, spec, f"isolation-{name}", env)

    def _run(self, command: list[str], script: Path, name: str, env: Mapping[str, str]) -> tuple[str, float, bool]:
        out_path = self.results / f"{name}.out"
        started = time.monotonic()
        late = False
        with script.open("rb") as stdin, out_path.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=stdin, stdout=out, stderr=subprocess.STDOUT, env=dict(env), cwd=self.build
            )
            try:
                process.wait(self.limit)
            except subprocess.TimeoutExpired:
                late = True
                process.kill()
                process.wait()
        text = out_path.read_bytes().decode(errors="surrogateescape")
        return text, time.monotonic() - started, late


def run_files(names: list[str], side: Side, stock: Side | None, report_only: set[str]) -> list[FileResult]:
    """Run files on the server under test (and on stock first); results for `report_only`."""
    for s in (side, stock):
        if s is not None:
            s.create_database()
    results = []
    for name in names:
        sql_lines = set((side.source / "sql" / f"{name}.sql").read_text(errors="surrogateescape").split("\n"))
        reference = stock.run_file(name)[0] if stock else None
        output, seconds, late = side.run_file(name)
        if name not in report_only:
            continue
        expected = side.source / "expected"
        result = evaluate(name, output, seconds, expected, reference, lambda text, s=sql_lines: cut(text, s))
        result.timed_out = late
        print_line(result)
        results.append(result)
    return results


def run_specs(names: list[str], side: Side, stock: Side | None) -> list[FileResult]:
    """The same for isolation specs; a block is a permutation."""
    for s in (side, stock):
        if s is not None:
            s.create_database("isolation_regression")
    results = []
    for name in names:
        reference = stock.run_spec(name)[0] if stock else None
        output, seconds, late = side.run_spec(name)
        expected = side.source.parent / "isolation" / "expected"
        result = evaluate(name, output, seconds, expected, reference, cut_permutations)
        result.timed_out = late
        print_line(result)
        results.append(result)
    return results


def evaluate(
    name: str, output: str, seconds: float, expected: Path, reference: str | None, cutter: object
) -> FileResult:
    """Compare an output with the best of the expected ones and with stock's."""
    assert callable(cutter)
    blocks: list[Block] = cutter(output)
    candidates = [p.read_bytes().decode(errors="surrogateescape") for p in expected_outputs(expected, name)]
    same = output in candidates
    different: list[DifferentBlock] = []
    if not same and candidates:
        different = min((differing_blocks(cutter(c), blocks, name) for c in candidates), key=len)
    result = FileResult(name, seconds, same, None, len(blocks), different)
    if reference is not None:
        result.same_as_stock = output == reference
        if not result.same_as_stock:
            result.different_from_stock = differing_blocks(cutter(reference), blocks, name)
    return result


def print_line(result: FileResult) -> None:
    mark = "same" if result.same_as_expected else "same as stock" if result.same else "DIFFERENT"
    detail = "" if result.same else f" {len(result.best)} of {result.blocks} answers"
    late = " TIME LIMIT" if result.timed_out else ""
    print(f"  {result.name:24} {mark}{detail}{late} ({result.seconds:.1f} s)", flush=True)


def summary(results: list[FileResult], show: int) -> str:
    """Shares and the classified list."""
    same = sum(r.same for r in results)
    blocks = sum(r.blocks for r in results)
    answers = blocks - sum(0 if r.same else len(r.best) for r in results)
    strict = sum(r.same_as_expected for r in results)
    lines = [
        f"regression: {same} of {len(results)} files identical ({100 * same / max(1, len(results)):.1f} %; {strict} to "
        f"the expected files, the others to stock in this run), {answers} of {blocks} answers identical "
        f"({100 * answers / max(1, blocks):.2f} %)"
    ]
    kinds: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    files: dict[str, Counter[str]] = {}
    for result in results:
        if result.same:
            continue
        for block in result.best:
            kinds[block.kind] += 1
            changed[block.kind] += block.removed + block.added
            files.setdefault(block.kind, Counter())[result.name] += 1
    for kind, count in kinds.most_common():
        where = ", ".join(f"{n} {c}" for n, c in files[kind].most_common(6))
        lines.append(f"  {count:5} answers, {changed[kind]:6} lines: {kind}  [{where}]")
    for result in results:
        for block in [] if result.same else result.best[:show]:
            lines.append(f"--- {result.name}:{block.line} {block.kind}")
            lines += ["  " + line for line in block.echo[-6:]]
            lines += ["  - " + line for line in _only(block.expected, block.actual)[:8]]
            lines += ["  + " + line for line in _only(block.actual, block.expected)[:8]]
    return "\n".join(lines)


def _only(a: tuple[str, ...], b: tuple[str, ...]) -> list[str]:
    rest = Counter(b)
    out = []
    for line in a:
        if rest[line]:
            rest[line] -= 1
        else:
            out.append(line)
    return out


def write_json(results: list[FileResult], path: Path) -> None:
    data = [
        {
            "file": r.name,
            "seconds": round(r.seconds, 2),
            "same_as_expected": r.same_as_expected,
            "same_as_stock": r.same_as_stock,
            "answers": r.blocks,
            "timed_out": r.timed_out,
            "different": [
                {"line": b.line, "kind": b.kind, "removed": b.removed, "added": b.added, "echo": list(b.echo)[-6:]}
                for b in ([] if r.same else r.best)
            ],
        }
        for r in results
    ]
    path.write_text(json.dumps(data, indent=1))
    os.chmod(path, 0o644)
