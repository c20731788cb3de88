"""What each profile allows: limits as data, never as code.

`postgres` allows all that PostgreSQL and the engine can do. `dsql` is accepted by the launcher and recorded in the
cluster; its own limits (write-set size, session life, refused statements) are a later piece of work, so until then it
runs with the same numbers. A process reads its limits once, at start.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Profile = Literal["postgres", "dsql"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one cluster. Sizes in bytes, times in seconds; None means no limit."""

    write_buffer: int = 1 << 30  # one transaction's writes in a backend; 54000 beyond
    connections: int = 200  # sessions of the cluster; 53300 beyond
    connection_life: float | None = None  # age at which a session is ended
    service_timeout: float = 10.0  # how long a backend waits for a service before it says so
    retention: float = 300.0  # how long superseded versions are kept for open snapshots


LIMITS: Final[dict[Profile, Limits]] = {
    "postgres": Limits(),
    "dsql": Limits(),
}
