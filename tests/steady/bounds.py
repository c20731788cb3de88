"""Samples of a steady run and what must hold for them: pure, tested without a cluster.

A figure is bounded when the second half of the run does not lie above the first by more than noise: what grows with
the number of commits doubles from one half to the other, however slowly it does. The beginning does not count (caches
fill, the first snapshots are still to come), neither does what only a long reader holds back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import mean, median

from australis.adjudicator.adjudicator import KNOWN_LIMIT

WARM_UP = 0.3
"""Share of the run that is not judged."""

ENOUGH = 8
"""Samples that can be judged."""


@dataclass(frozen=True)
class Sample:
    """One look at the cluster. Sizes in bytes; lag, time and reader in seconds."""

    time: float
    commits: int
    journal: int
    storage: int
    snapshots: int
    query_processor: int
    pss: int
    history: int
    rows: int
    lag: float
    catalog: int
    reader: float
    """Age of the oldest snapshot that the load itself holds."""

    def row(self) -> str:
        megabytes = [self.journal, self.storage, self.snapshots, self.query_processor, self.catalog, self.pss]
        sizes = " ".join(f"{size / 1e6:>8.1f}" for size in megabytes)
        return (
            f"{self.time:>6.0f} {self.commits:>9} {sizes} {self.history:>9} {self.rows:>9} "
            f"{self.lag * 1e3:>8.1f} {self.reader:>6.0f}"
        )


HEADER = (
    "  time   commits  journal  storage snapshot       qp  catalog      pss   history      rows      lag reader\n"
    "     s                 MB       MB       MB       MB       MB       MB   entries   entries       ms      s"
)


@dataclass(frozen=True)
class Bound:
    """One figure that must not grow: by `share` of itself and by `least`, whichever is larger."""

    name: str
    share: float
    least: float
    of: Callable[[Sample], float]


def bounds(snapshot_bytes: int) -> list[Bound]:
    """What is judged. Sizes that move in steps (segments, snapshots) may be one step off."""
    return [
        Bound("journal", 0.2, 64 << 20, lambda s: s.journal),
        Bound("storage", 0.2, 8 << 20, lambda s: s.storage),
        Bound("snapshots", 0.3, max(snapshot_bytes // 2, 8 << 20), lambda s: s.snapshots),
        Bound("query processor", 0.2, 20 << 20, lambda s: s.query_processor),
        Bound("catalogs", 0.2, 2 << 20, lambda s: s.catalog),
        Bound("memory", 0.08, 12 << 20, lambda s: s.pss),
        Bound("history", 0.3, 5000, lambda s: s.history),
        Bound("lag", 0.5, 0.05, lambda s: s.lag),
    ]


def judge(samples: Sequence[Sample], snapshot_bytes: int) -> list[str]:
    """What grew, in words; nothing when nothing did."""
    judged = [s for s in samples if s.time >= samples[-1].time * WARM_UP] if samples else []
    # the adjudicator's memory of ended transactions is bounded by number: it must have filled to be judged
    full = [s for s in judged if s.commits >= KNOWN_LIMIT * 1.02]
    if len(full) >= ENOUGH:
        judged = full
    if len(judged) < ENOUGH:
        return [f"only {len(judged)} samples after the warm-up: too short a run to judge"]
    half = len(judged) // 2
    complaints = []
    for bound in bounds(snapshot_bytes):
        # the middle: one long reader or one snapshot being written is no trend
        early, late = median(map(bound.of, judged[:half])), median(map(bound.of, judged[half:]))
        if late - early > max(bound.share * early, bound.least):
            complaints.append(f"{bound.name} grew from {early:,.3f} to {late:,.3f} (middle of either half)")
    if judged[-1].commits <= judged[0].commits:
        complaints.append("nothing was committed")
    return complaints


def summary(samples: Sequence[Sample]) -> str:
    """Mean of every figure in thirds of the run, so that a trend can be seen."""
    third = max(1, len(samples) // 3)
    parts = [samples[:third], samples[third : 2 * third], samples[2 * third :]]
    lines = ["mean of thirds of the run:"]
    for field in fields(Sample):
        if field.name not in ("time", "commits"):
            values = [mean(float(getattr(s, field.name)) for s in part) for part in parts if part]
            lines.append(f"  {field.name:<16}" + "".join(f"{value:>18,.3f}" for value in values))
    return "\n".join(lines)
