"""What kind of difference is this? Outputs of psql -a, cut into statements, compared and sorted into classes.

psql -a echoes the file's lines, so an output is a sequence of (echoed lines, answer). The pairs of expected and actual
output are aligned by their echo; each pair whose answers differ gets one class, the first that applies.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """A statement's echo and what the server said to it."""

    echo: tuple[str, ...]
    answer: tuple[str, ...]


@dataclass(frozen=True)
class DifferentBlock:
    """A statement answered differently."""

    line: int  # in the actual output
    echo: tuple[str, ...]
    expected: tuple[str, ...]
    actual: tuple[str, ...]
    kind: str
    removed: int
    added: int


def cut(output: str, sql_lines: set[str]) -> list[Block]:
    """Blocks of an output; a line that stands in the sql file counts as echo."""
    blocks: list[Block] = []
    echo: list[str] = []
    answer: list[str] = []
    for line in output.split("\n"):
        if line in sql_lines:
            if answer:
                blocks.append(Block(tuple(echo), tuple(answer)))
                echo, answer = [], []
            echo.append(line)
        else:
            answer.append(line)
    blocks.append(Block(tuple(echo), tuple(answer)))
    return blocks


def cut_permutations(output: str) -> list[Block]:
    """Blocks of an isolationtester output: one per permutation."""
    blocks: list[Block] = []
    echo: list[str] = []
    answer: list[str] = []
    for line in output.split("\n"):
        if line.startswith("starting permutation:"):
            blocks.append(Block(tuple(echo), tuple(answer)))
            echo, answer = [line], []
        else:
            answer.append(line)
    blocks.append(Block(tuple(echo), tuple(answer)))
    return blocks


def _has(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda text: compiled.search(text) is not None


_LOST = _has(r"server closed the connection|connection to server (was lost|at .* failed)|PANIC:|TRAP:|terminating conn")
_SERIALIZATION = _has(r"could not serialize access|OC00[01]|change conflicts with another transaction")
_PLAN = _has(r"QUERY PLAN|^\s*EXPLAIN|explain_|Seq Scan|Index (Only )?Scan|Bitmap Heap Scan")
_OTHER_AM = _has(r"access method \"?(gin|gist|hash|brin|spgist)|\b(gin|gist|spgist|brin|hash)\b.*(not supported|index)")
_AM_NAME = _has(r"heap_local|btree_local|australis")
_SYSTEM_COLUMN = _has(r"\b(ctid|xmin|xmax|cmin|cmax|tableoid)\b|\(\d+,\d+\)$")
_REFUSED = _has(r"ERROR:.*(not supported|unsupported|cannot be used|not (yet )?implemented|is disabled)")
_MISSING_OBJECT = _has(r"ERROR:.*(does not exist|already exists|current transaction is aborted|no portal|no unique)")
_DEPENDENT = _has(r"depends on|other objects depend")
_ERROR = _has(r"^(psql:.*)?(ERROR|FATAL):")
_NOTE = re.compile(r"^(NOTICE|WARNING|INFO|HINT|DETAIL|LINE \d+|CONTEXT|\s*\^|LOG|DEBUG)|^\s+\^\s*$")
_NUMBERS = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")
_PARALLEL = _has(r"^\s*(->\s+)?(Gather|Parallel |Finalize |Partial )|Workers Planned|PARTIAL ")
_BITMAP = _has(r"Bitmap (Heap|Index) Scan|BitmapOr|BitmapAnd")
_TID_SCAN = _has(r"Tid (Range )?Scan|TID Cond")
_INDEX_ONLY = _has(r"Index Only Scan")
_KEY_SCAN = _has(r"Index Only Scan using \w+_pkey")


@dataclass(frozen=True)
class Reason:
    """Why answers of this form differ; all patterns given must be found."""

    name: str
    file: str = ""  # names, separated by blanks; empty: any
    echo: str = ""
    expected: str = ""
    actual: str = ""

    def holds(self, file: str, echo: str, expected: str, actual: str) -> bool:
        if self.file and file not in self.file.split():
            return False
        pairs = ((self.echo, echo), (self.expected, expected), (self.actual, actual))
        return all(not pattern or re.search(pattern, text, re.MULTILINE) for pattern, text in pairs)


# What was looked at and found right. Each pattern names the objects of PostgreSQL's files that it is about, so that
# the same difference elsewhere is not taken for explained. Expected and actual: the lines that only one side has.
REASONS = (
    Reason("by design: no TOAST tables (long values stay in the row)", echo=r"toast"),
    Reason("by design: no TOAST tables (long values stay in the row)", expected=r"pg_toast"),
    Reason(
        "by design: locks on the key's index are kept, none on TOAST", echo=r"from my_locks", actual=r"alterlock2?_pkey"
    ),
    Reason("by design: operator classes are copies (other oids in indclass)", echo=r"indclass FROM pg_index"),
    Reason(
        "by design: a failed CONCURRENTLY leaves no invalid index",
        echo=r"concur_(heap|reindex_tab4|reindex_ind5)|concur_index3",
    ),
    Reason("by design: a failed CONCURRENTLY leaves no invalid index", echo=r"parted_isvalid_(tab|idx)"),
    Reason("by design: a failed CONCURRENTLY leaves no invalid index", expected=r"idxpart1?1?_expr_idx\s+\| f"),
    Reason("by design: REINDEX CONCURRENTLY runs as REINDEX", echo=r"REINDEX", expected=r"reindex(ed)? .*concurrently"),
    Reason("by design: REINDEX CONCURRENTLY runs as REINDEX", actual=r"concur_reindex\w*\" has no indexes to reindex"),
    Reason("by design: DETACH CONCURRENTLY runs as DETACH, which needs no CHECK constraint", echo=r"\\d part_rp"),
    Reason(
        "by design: REFRESH CONCURRENTLY runs as REFRESH",
        echo=r"mvtest_(mv|func)\b",
        expected=r"duplicate rows|suitable unique",
    ),
    Reason(
        "by design: REFRESH CONCURRENTLY runs as REFRESH", actual=r"cannot refresh materialized view .*sro_index_mv"
    ),
    Reason("by design: CLUSTER copies without evaluating indexes", echo=r"CLUSTER test_maint", expected=r"NOTICE"),
    Reason("by design: index scans use one process", echo=r"SELECT balk\("),
    Reason("by design: ctid is no place, (0,1) names nothing", echo=r"current_check_(2|cursor)"),
    Reason("follow-up: exclusion constraint refused", echo=r"twoconstraints|deferred_excl|concur_reindex_tab3"),
    Reason("follow-up: exclusion constraint refused", expected=r"EXCLUDE USING"),
    Reason("follow-up: hash index refused", echo=r"idxpart1_tst2|relname LIKE 'guid%'"),
    Reason(
        "row order: another of several offending rows is named",
        echo=r"part_b_10_b_20",
        expected=r"Failing row contains",
    ),
    Reason("documented: ALTER TYPE of a temporary table's key", actual=r"a column of a temporary table that is in"),
    Reason(
        "row order: a window over the table's order",
        echo=r"FROM tenk1 WHERE unique1 < 10|unbounded_syntax_test1b",
        expected=r"^\s*\d",
    ),
    # files beyond the core list
    Reason("by design: EXPLAIN shows storage's work", "explain", actual=r"Storage: trips=|Storage[ -]Trips"),
    Reason("by design: TABLESAMPLE takes runs of rows in key order", "tablesample"),
    Reason("by design: values are never compressed", "compression compression_lz4"),
    Reason("by design: keys have up to 1,960 bytes, uncompressed", "memoize vacuum"),
    Reason("by design: no pages, so no page I/O, no HOT chains and no WAL", "stats", expected=r"^ +[tf1]\b"),
    Reason("by design: estimates of tables never analyzed are exact", "stats", echo=r"table_fillfactor"),
    Reason("by design: rows and entries have other sizes", "reloptions vacuum_parallel join_hash stats_import"),
    Reason("by design: CLUSTER keeps the order of the key", "cluster"),
    Reason("by design: ctid is no place, (0,1) names nothing", "tid tidscan tidrangescan"),
    Reason("by design: no bitmap scans", "amutils"),
    Reason("by design: both btrees have the operators", "opr_sanity", actual=r"^\s*9403 \|"),
    Reason("by design: index scans use one process", "select_parallel"),
    Reason("row order: an updated row stays where its key is", "psql", echo=r"^Susie$|psql_comics|reload_output"),
    Reason("row order: an updated row stays where its key is", "psql", actual=r"^Hobbes$"),
    Reason("follow-up: logical replication refused", "subscription publication"),
    Reason("follow-up: WITHOUT OVERLAPS refused", "without_overlaps"),
    Reason("follow-up: CREATE TABLESPACE refused", "tablespace"),
    Reason("follow-up: other table access method refused", "create_am"),
    Reason("follow-up: other table access method refused", "psql", expected=r"heap_psql|RECORD|tableam_display"),
    Reason("follow-up: other index access method refused", "gist spgist box polygon hash_index incremental_sort"),
    Reason("follow-up: other index access method refused", "replica_identity", expected=r"hash"),
    Reason("follow-up: other index access method refused", "brin brin_bloom brin_multi create_index_spgist"),
    Reason("follow-up: table of create_index left behind", "event_trigger", actual=r"concur_reindex_(ind|tab)"),
    # isolation specs; where nothing is said here, the answers' forms say it (kind_of)
    Reason("documented: PREPARE TRANSACTION is not available", "prepared-transactions prepared-transactions-cic"),
    Reason("documented: NOWAIT and SKIP LOCKED have no effect", "nowait nowait-2 nowait-3 nowait-4 nowait-5"),
    Reason(
        "documented: NOWAIT and SKIP LOCKED have no effect", "skip-locked skip-locked-2 skip-locked-3 skip-locked-4"
    ),
    Reason("documented: track_counts cannot be changed", "stats", actual=r"\"track_counts\" cannot be changed"),
    Reason(
        "by design: DETACH CONCURRENTLY runs as DETACH, which waits and is waited for",
        "detach-partition-concurrently-1 detach-partition-concurrently-2 detach-partition-concurrently-3 "
        "detach-partition-concurrently-4",
    ),
    Reason("by design: REINDEX CONCURRENTLY runs as REINDEX", "reindex-concurrently"),
    Reason("by design: REFRESH CONCURRENTLY runs as REFRESH", "matview-write-skew", actual=r"s2_read: .*<waiting|^$"),
    Reason("by design: no TOAST tables (long values stay in the row)", "reindex-concurrently-toast"),
    Reason("by design: no pages to prune", "horizons", expected=r"^\s+2$", actual=r"^\s+0$"),
    Reason(
        "by design: a lock is decided at COMMIT, and only with something written",
        "lock-committed-keyupdate",
        expected=r"could not serialize|<waiting",
    ),
    Reason(
        "by design: a conflict is found at COMMIT, which the spec never comes to",
        "read-only-anomaly-2 serializable-parallel",
        echo=r"s3c s2wx$",
        expected=r"could not serialize",
    ),
    Reason(
        "by design: no row is waited for, so there is no timeout", "timeouts", expected=r"canceling statement due to"
    ),
    Reason("by design: an INSERT is not speculative", "insert-conflict-specconflict"),
    Reason(
        "documented: one snapshot per transaction",
        "drop-index-concurrently-1 lock-update-delete merge-insert-update fk-snapshot subxid-overflow",
        expected=r"^\((0|1|2) rows?\)",
        actual=r"^\((0|1) rows?\)",
    ),
    Reason("documented: one snapshot per transaction", "ri-trigger", actual=r"child row exists"),
    Reason("documented: one snapshot per transaction", "lock-committed-keyupdate", actual=r"3\|two"),
    Reason("follow-up: other index access method refused", "predicate-gin predicate-gist predicate-hash"),
    Reason("follow-up: view of matview-write-skew left behind", "update-locked-tuple", actual=r"order_summary"),
    Reason("follow-up: view of matview-write-skew left behind", "update-locked-tuple", expected=r"^step s1u1"),
)


_WAITING = _has(r"<waiting \.\.\.>|<\.\.\. completed>")


def kind_of(echo: tuple[str, ...], expected: tuple[str, ...], actual: tuple[str, ...], file: str = "") -> str:
    """The class of one differing answer."""
    removed = list((Counter(expected) - Counter(actual)).elements())
    added = list((Counter(actual) - Counter(expected)).elements())
    statement, gone, new = "\n".join(echo), "\n".join(removed), "\n".join(added)
    if _LOST(new):
        return "CONNECTION LOST"
    for reason in REASONS:
        if (removed or added) and reason.holds(file, statement, gone, new):
            return reason.name
    if not removed and not added:
        return "row order"
    if _SERIALIZATION(gone) and _SERIALIZATION(new):
        return "conflict at commit (40001 in PostgreSQL too)"
    if _WAITING(gone) and not _SERIALIZATION(new):
        return "nothing waits (optimistic)"
    if _SERIALIZATION(new) and not _SERIALIZATION(gone):
        return "conflict at commit (40001)"
    if _AM_NAME(new) or _AM_NAME(gone):
        return "names of access methods"
    if _OTHER_AM(new) or (_ERROR(new) and _OTHER_AM(statement)):
        return "other index access method refused"
    if _REFUSED(new):
        return "refused: " + _message(added)
    if _PLAN(statement) or _PLAN("\n".join(expected)) or _PLAN("\n".join(actual)):
        return _plan_kind(gone, new)
    if _ERROR(new) and not _ERROR(gone):
        return "follow-up: object missing" if _MISSING_OBJECT(new) else "unexpected error: " + _message(added)
    if _ERROR(gone) and not _ERROR(new):
        return "follow-up: object missing" if _MISSING_OBJECT(gone) else "missing error: " + _message(removed)
    if _ERROR(gone) and _ERROR(new):
        return "other error: " + _message(added)
    if _SYSTEM_COLUMN(statement) or _SYSTEM_COLUMN(gone):
        return "ctid, xmin, tableoid"
    if _DEPENDENT(gone) or _DEPENDENT(new):
        return "order of dependent objects"
    if all(_NOTE.match(line) for line in removed + added):
        return "notices, hints, details"
    if not removed or not added:
        return "rows missing" if not added else "rows too many"
    if _mask(removed) == _mask(added):
        return "numbers differ"
    return "other values"


def _plan_kind(gone: str, new: str) -> str:
    """Why a plan has another shape."""
    if _PARALLEL(gone):
        return "plan: index scans use one process"
    if _BITMAP(gone):
        return "plan: no bitmap scans"
    if _TID_SCAN(gone) or _TID_SCAN(new):
        return "plan: ctid is no place"
    if _KEY_SCAN(new):
        return "plan: the index of a primary key holds the whole row"
    if _INDEX_ONLY(gone) and not _INDEX_ONLY(new):
        return "plan: a whole index is not cheaper to read than the table"
    return "plan shape"


def _mask(lines: list[str]) -> list[str]:
    return sorted(re.sub(r"\s+", " ", _NUMBERS.sub("#", line)).strip("-+ ") for line in lines)


def _message(lines: list[str]) -> str:
    for line in lines:
        if match := re.search(r"(?:ERROR|FATAL):\s+(.*)", line):
            return re.sub(r'"[^"]*"', '"…"', _NUMBERS.sub("#", match.group(1)))[:100]
    return ""


def differing_blocks(expected: list[Block], actual: list[Block], file: str = "") -> list[DifferentBlock]:
    """All statements answered differently, aligned by their echo."""
    out: list[DifferentBlock] = []
    lines = [0]
    for block in actual:
        lines.append(lines[-1] + len(block.echo) + len(block.answer))
    for i, j in _align([b.echo for b in expected], [b.echo for b in actual]):
        left = [x for b in expected[i[0] : i[1]] for x in b.answer]
        right = [x for b in actual[j[0] : j[1]] for x in b.answer]
        if left == right and i[1] - i[0] == j[1] - j[0] == 1:
            continue
        echo = tuple(x for b in actual[j[0] : j[1]] for x in b.echo) or tuple(
            x for b in expected[i[0] : i[1]] for x in b.echo
        )
        removed = sum((Counter(left) - Counter(right)).values())
        added = sum((Counter(right) - Counter(left)).values())
        if left != right:
            kind = kind_of(echo, tuple(left), tuple(right), file)
            out.append(DifferentBlock(lines[j[0]] + 1, echo, tuple(left), tuple(right), kind, removed, added))
    return out


Span = tuple[int, int]


def _align(a: list[tuple[str, ...]], b: list[tuple[str, ...]]) -> list[tuple[Span, Span]]:
    if a == b:
        return [((i, i + 1), (i, i + 1)) for i in range(len(a))]
    out: list[tuple[Span, Span]] = []
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            out += [((i, i + 1), (i - i1 + j1, i - i1 + j1 + 1)) for i in range(i1, i2)]
        else:
            out.append(((i1, i2), (j1, j2)))
    return out


def expected_outputs(directory: Path, name: str) -> list[Path]:
    """expected/NAME.out and its alternatives NAME_0.out .. NAME_9.out."""
    paths = [directory / f"{name}.out", *(directory / f"{name}_{i}.out" for i in range(10))]
    return [p for p in paths if p.exists()]
