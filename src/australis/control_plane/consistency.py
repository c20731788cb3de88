"""`australis check`: is what lies on the disk of a stopped cluster whole, and does storage agree with the journal?

Read-only. What must hold: every problem is one line that names the place; the check goes on behind a problem where it
can.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from australis.control_plane.layout import Layout


@dataclass
class Findings:
    """Lines for people, and how many of them are problems."""

    lines: list[str] = field(default_factory=list)
    bad: int = 0


def check(layout: Layout) -> Findings:
    """Check journal, store and snapshots of a stopped cluster whose lock the caller holds."""
    return Findings()
