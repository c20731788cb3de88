"""Who may log in: a count of sessions and a token bucket for new ones.  Time comes in as an argument; no effects.

Refusals are PostgreSQL's 53300 for the count and 53400 for the rate.
"""

from __future__ import annotations

from australis.router.startup import Refused


class Admission:
    """max_connections sessions at a time; rate new ones per second on average, burst of them at once."""

    def __init__(self, max_connections: int, rate: float | None, burst: int) -> None:
        self._max_connections = max_connections
        self._rate = rate
        self._burst = float(burst)
        self._level = float(burst)
        self._filled_at: float | None = None
        self.sessions = 0
        """Sessions entered and not left."""

    def enter(self, now: float) -> None:
        """Admit one session or raise Refused.  now: seconds of a clock that never runs backwards."""
        if self.sessions >= self._max_connections:
            raise Refused("53300", "sorry, too many clients already")
        if self._rate is not None:
            if self._filled_at is not None:
                self._level = min(self._burst, self._level + (now - self._filled_at) * self._rate)
            self._filled_at = now
            if self._level < 1.0:
                raise Refused("53400", "unable to accept connection, rate exceeded")
            self._level -= 1.0
        self.sessions += 1

    def leave(self) -> None:
        assert self.sessions > 0, "a session left that never entered"
        self.sessions -= 1
