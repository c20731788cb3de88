"""Where PostgreSQL's test files are, and what they need built.

The files are third-party source and are never part of this repository: PG_REGRESS_DIR (or --source) names
`src/test/regress` of an unpacked PostgreSQL 18 source tree; the isolation specs lie beside it. `regress.so`, which a
few files load, is compiled from there into a temporary directory with the headers of the installed server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.fixtures.postgres import library_directory, server_include_directory

HOW_TO_OBTAIN = (
    "PostgreSQL's regression files are not here: set PG_REGRESS_DIR to src/test/regress of an unpacked PostgreSQL 18 "
    "source tree (on Debian: `apt-get source postgresql-18` with the suite that has it, then unpack the .orig.tar)"
)

# The files of the acceptance line A4, wildcards expanded against the schedule.
_CORE = (
    "select select_into select_distinct select_distinct_on select_implicit select_having insert insert_conflict "
    "update delete join aggregates subselect union case with window numeric int2 int4 int8 float4 float8 text "
    "strings date time timetz timestamp timestamptz interval horology uuid json jsonb arrays enum domain rangetypes "
    "multirangetypes prepare portals portals_p2 transactions triggers foreign_key create_table create_table_like "
    "alter_table sequence identity generated_stored generated_virtual matview merge plpgsql copy copy2 copydml "
    "copyselect truncate constraints create_index index_including btree_index select_views rules rowsecurity "
    "privileges partition_join partition_prune partition_aggregate partition_info char varchar name boolean "
    "groupingsets returning rowtypes create_view updatable_views inherit namespace limit plancache temp indexing "
    "fast_default "
)
CORE = _CORE.split()

# Files that others need (comments in parallel_schedule).
NEEDS = {
    "multirangetypes": ["rangetypes"],
    "geometry": ["point", "lseg", "line", "box", "path", "polygon", "circle"],
    "horology": ["date", "time", "timetz", "timestamp", "timestamptz", "interval"],
    "aggregates": ["create_aggregate"],
    "copy2": ["create_type"],
    "join": ["create_misc"],
    "psql": ["create_am"],
    "select_parallel": ["create_misc"],
    "select_views": ["create_view"],
    "portals_p2": ["portals"],
    "rules": ["create_index", "create_misc", "create_view"],
    "sanity_check": ["create_index"],
    "triggers": ["create_misc"],
    "select": ["create_index", "create_misc"],
}
# Read the indexes of create_index, as most of the later groups do.
_NEEDS_CREATE_INDEX = (
    "subselect union case join aggregates transactions portals arrays btree_index update delete namespace "
    "privileges matview rowsecurity groupingsets merge limit plancache select_distinct select_into select_having "
    "window with select_views rules inherit incremental_sort partition_join partition_aggregate partition_prune "
    "copy2 returning rowtypes "
)
NEEDS_CREATE_INDEX = _NEEDS_CREATE_INDEX.split()


class SourceMissing(RuntimeError):
    """PostgreSQL's test files are not available."""


def regress_directory(named: str | None = None) -> Path:
    path = named or os.environ.get("PG_REGRESS_DIR")
    if not path:
        raise SourceMissing(HOW_TO_OBTAIN)
    directory = Path(path).resolve()
    if not (directory / "sql" / "test_setup.sql").exists():
        raise SourceMissing(f"{directory} holds no PostgreSQL 18 regression files. {HOW_TO_OBTAIN}")
    return directory


def schedule(directory: Path) -> list[list[str]]:
    """Groups of parallel_schedule, in order."""
    groups = []
    for line in (directory / "parallel_schedule").read_text().splitlines():
        if line.startswith("test:"):
            groups.append(line[5:].split())
    return groups


def with_needs(directory: Path, wanted: list[str]) -> list[str]:
    """The wanted files and what they need, in the schedule's order, test_setup first."""
    order = [name for group in schedule(directory) for name in group]
    known = {p.stem for p in (directory / "sql").glob("*.sql")}
    if unknown := [w for w in wanted if w not in known]:
        raise ValueError(f"no such regression files: {', '.join(unknown)}")
    needed = set()
    todo = ["test_setup", *wanted]
    while todo:
        name = todo.pop()
        if name in needed:
            continue
        needed.add(name)
        todo += NEEDS.get(name, [])
        if name in NEEDS_CREATE_INDEX:
            todo.append("create_index")
    return [n for n in order if n in needed] + sorted(needed - set(order))


def build_library(source: Path, target: Path) -> Path:
    """A directory with regress.so, refint.so and autoinc.so (what PG_LIBDIR names)."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("refint.so", "autoinc.so"):
        shutil.copy(library_directory() / name, target / name)
    command = ["gcc", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-fwrapv", "-w"]
    command += [f"-I{server_include_directory()}", str(source / "regress.c"), "-o", str(target / "regress.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SourceMissing(f"regress.so could not be compiled: {done.stderr.strip()[-500:]}")
    return target
