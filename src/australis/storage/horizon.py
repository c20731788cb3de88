"""Down to which time versions are kept (rule S4): pure.

The horizon is what nobody reads below: retention, the oldest snapshot in use, never above what is acknowledged (what is
not may have to be undone), and never further back than the cap, however old a snapshot in use is.
"""

from __future__ import annotations

SECOND = 1_000_000_000
RETENTION = 300 * SECOND
CAP = 3600 * SECOND


def horizon(now: int, acked: int, oldest: int | None, before: int, retention: int = RETENTION, cap: int = CAP) -> int:
    """Return the new horizon; all times in nanoseconds, `before` the present one."""
    wanted = min(now - retention, acked)
    if oldest is not None and oldest < wanted:
        wanted = max(oldest, min(now - cap, wanted))
    return max(before, wanted)
