"""`australis check`: is what lies on the disk of a stopped cluster whole, and does storage agree with the journal?

Read-only. What must hold: every problem is one line that names the place; what the next start mends by itself (a store
that will be rebuilt, an image that will be made again) is a note, not a problem.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from australis.cluster import open_cluster
from australis.config import load
from australis.control_plane.layout import Layout
from australis.journal.reached import load as load_reached
from australis.query_processor import image
from australis.storage.check import check_storage
from australis.storage.snapshots import intact, list_snapshots


@dataclass
class Findings:
    """Lines for people, and how many of them are problems."""

    lines: list[str] = field(default_factory=list)
    bad: int = 0


def check(layout: Layout) -> Findings:
    """Check journal, store, snapshots and image of a stopped cluster whose lock the caller holds."""
    if load(layout.data).journal.engine == "nats":
        return _without_journal(layout)
    report = check_storage(open_cluster(layout.data))
    journal = report.journal
    findings = Findings()
    say = findings.lines.append
    say(
        f"journal: {journal.records} records ({journal.transactions} transactions) in {journal.segments} segments "
        f"({journal.bytes >> 20} MB), generation {journal.generation}"
    )
    left = f", {report.not_compared} older ones not" if report.not_compared else ""
    say(f"storage: applied up to {report.applied}; {report.compared} keys compared with the journal{left}")
    say(f"snapshots: {report.snapshots}")
    for note in report.notes:
        say(f"note: {note}")
    if not image.whole(layout.query_processor / "image.tar"):
        say("note: the query processor's image is missing or damaged; it will be made again at the next start")
    for problem in report.problems:
        say(f"PROBLEM: {problem}")
    findings.bad = len(report.problems)
    return findings


def _without_journal(layout: Layout) -> Findings:
    """The journal is on NATS servers, and those do not run now: what can be said without it."""
    findings = Findings()
    say = findings.lines.append
    cluster = open_cluster(layout.data)
    for snapshot in list_snapshots(layout.snapshots, cluster.cluster):
        if not intact(snapshot.file, snapshot.checksum):
            say(f"PROBLEM: {snapshot.file} fails its checksum: delete {snapshot.directory}")
            findings.bad += 1
    reached = load_reached(layout.journal, cluster.cluster)
    say(f"journal: on NATS servers, durable at least up to record {reached.sequence if reached else 0}")
    say("note: it is read, and all of it checked, at the next start; storage was not compared with it")
    return findings
