"""Which query processor a session gets.

The router asks for a place, connects there, and gives the place back when the session has ended; or says that nobody
listened there and asks again. `FixedUpstreams` knows a fixed set of them; a pool starts and stops them
(`query_processor/host.py`).

What must hold: every place is given back once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from australis.router.startup import Refused

if TYPE_CHECKING:
    from australis.router.config import Upstream


class Place(Protocol):
    """A query processor for one session; equal only to itself."""

    @property
    def target(self) -> Upstream:
        """Where its postmaster listens."""


class Placement(Protocol):
    """Where places come from. The places of one are not given to another."""

    async def acquire(self, avoid: Sequence[Any] = ()) -> Any:
        """A place, now or when there is one; `avoid`: those that this login could not reach. Raises Refused."""

    def release(self, place: Any) -> None:
        """The session has ended, or the login came to nothing."""

    def unreachable(self, place: Any) -> None:
        """As release: nobody listens there."""

    def sockets(self) -> Sequence[Upstream]:
        """All query processors that may have sessions."""


@dataclass(eq=False, frozen=True, slots=True)
class _Upstream:
    target: Upstream


class FixedUpstreams:
    """Always the same ones: a session gets the one with the fewest. One that cannot be reached is passed over."""

    def __init__(self, targets: Sequence[Upstream]) -> None:
        self._upstreams = [_Upstream(target) for target in targets]
        self._sessions = dict.fromkeys(self._upstreams, 0)  # logins included

    async def acquire(self, avoid: Sequence[_Upstream] = ()) -> _Upstream:
        left = [one for one in self._upstreams if one not in avoid]
        if not left:
            raise Refused("57P03", "the database system is not available", "The query processor cannot be reached.")
        chosen = min(left, key=self._sessions.__getitem__)
        self._sessions[chosen] += 1  # before anything is waited for: others choose meanwhile
        return chosen

    def release(self, place: _Upstream) -> None:
        self._sessions[place] -= 1

    def unreachable(self, place: _Upstream) -> None:
        self.release(place)

    def sockets(self) -> Sequence[Upstream]:
        return [one.target for one in self._upstreams]
