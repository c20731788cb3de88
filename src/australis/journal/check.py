"""Offline check of a journal: every byte that counts is read, nothing is changed.

What must hold: the result names every problem in one line with its place. A torn tail is no problem: it is what a crash
leaves, and the next start cuts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from australis.errors import AustralisError
from australis.journal.file_layer import OsFiles
from australis.journal.record import START, Entry, Kind, Position
from australis.journal.segments import SegmentReader, check_end, check_reached, list_segments, read_end

_CHUNK = 4 << 20


@dataclass
class JournalReport:
    """What the check found."""

    segments: int = 0
    bytes: int = 0
    records: int = 0
    transactions: int = 0
    generation: int = 0
    first: Position = START
    last: Position = START
    last_tau: int = 0
    problems: list[str] = field(default_factory=list)


def check_journal(directory: Path, cluster: bytes, on_entry: Callable[[Entry], None] | None = None) -> JournalReport:
    """Read the whole journal of a stopped cluster; `on_entry` sees every valid entry, in order."""
    report = JournalReport()
    layer = OsFiles()
    if not directory.exists():
        report.problems.append(f"{directory} does not exist: there is no journal")
        return report
    reader: SegmentReader | None = None
    try:
        segments = list_segments(layer, directory, cluster)
        reached = read_end(layer, directory, cluster)
        report.segments = len(segments)
        report.bytes = sum(layer.size(segment.path) for segment in segments)
        if not segments:
            report.problems.append(f"{directory} holds no journal segment")
            return report
        report.first = segments[0].start.position
        report.last_tau = segments[0].start.tau
        reader = SegmentReader(layer, directory, cluster, report.first, thorough=True)
        while entries := reader.read(None, _CHUNK):
            for entry in entries:
                report.records += 1
                report.transactions += entry.kind == Kind.TRANSACTION
                if entry.kind != Kind.CLAIM and entry.tau <= report.last_tau:
                    report.problems.append(
                        f"record {entry.position.sequence}: time {entry.tau} is not above {report.last_tau} before it"
                    )
                report.last_tau = max(report.last_tau, entry.tau)
                if on_entry is not None:
                    on_entry(entry)
        check_end(reader.scanner, reader.segment, None)
        check_reached(reached, reader.segment.id, reader.scanner.offset, reader.last.sequence)
        if reader.skipped:
            report.problems.append(f"{reader.skipped} records are not in the chain")
        report.last = reader.last
        report.generation = reader.last.generation
    except (AustralisError, OSError) as error:
        report.problems.append(str(error))
    finally:
        if reader is not None:
            reader.close()
    return report
