"""Places from the pools of gateways on this host (query_processor/places.py).

What must hold: a place is a connection to its gateway, held as long as the session lasts. A gateway that is not there,
or has no place, is passed over; the client hears of the last refusal only if all of them refuse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from australis.errors import ProtocolError
from australis.protocol.places import LINE_BYTES, UNREACHABLE, decode_answer
from australis.router.config import Upstream
from australis.router.startup import Refused


@dataclass(eq=False, frozen=True, slots=True)
class _Place:
    target: Path
    gateway: Path
    writer: asyncio.StreamWriter


class GatewayPlaces:
    """A session goes where the fewest from here are; how many query processors run there is its gateway's business."""

    def __init__(self, gateways: Sequence[Path]) -> None:
        """`gateways`: their sockets."""
        self._sessions = dict.fromkeys(gateways, 0)  # logins included
        self._places: set[_Place] = set()

    async def acquire(self, avoid: Sequence[_Place] = ()) -> _Place:
        refused = Refused("57P03", "the database system is not available", "No gateway can be reached.")
        for gateway in sorted(self._sessions, key=self._sessions.__getitem__):
            self._sessions[gateway] += 1  # before anything is waited for: others choose meanwhile
            place: _Place | None = None
            try:
                place = await _ask(gateway)
                self._places.add(place)
                return place
            except Refused as refusal:
                refused = refusal
            except (OSError, ProtocolError):
                continue
            finally:
                if place is None:
                    self._sessions[gateway] -= 1
        raise refused

    def release(self, place: _Place) -> None:
        self._sessions[place.gateway] -= 1
        self._places.discard(place)
        place.writer.close()

    def unreachable(self, place: _Place) -> None:
        place.writer.write(UNREACHABLE)
        self.release(place)

    def sockets(self) -> Sequence[Upstream]:
        return list({place.target for place in self._places})


async def _ask(gateway: Path) -> _Place:
    """Raises Refused, OSError, ProtocolError."""
    reader, writer = await asyncio.open_unix_connection(gateway, limit=LINE_BYTES)
    kept = False
    try:
        try:
            given = decode_answer(await reader.readuntil(b"\n"))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ProtocolError("the gateway ended, or says something else") from error
        if given.sqlstate:
            raise Refused(given.sqlstate, given.message, given.detail or None)
        kept = True
        return _Place(Path(given.target), gateway, writer)
    finally:
        if not kept:
            writer.close()
