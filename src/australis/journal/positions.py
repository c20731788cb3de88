"""Where all journals are at one moment, as bytes: what a watermark carries, a store records and a snapshot keeps.

Made by crossbars. A subscriber hands it back as it is; who decides what journals may forget (storage/shard_keeper.py)
reads it.
"""

from __future__ import annotations

import msgspec

from australis.errors import ProtocolError
from australis.journal.record import Position


def pack_positions(tau: int, positions: dict[int, Position]) -> bytes:
    """A vector of positions at which everything up to tau was taken and nothing else."""
    return msgspec.msgpack.encode((tau, {journal: position.pack() for journal, position in positions.items()}))


def unpack_positions(data: bytes) -> tuple[int, dict[int, Position]]:
    """Reverse of pack_positions; ProtocolError if these bytes are none."""
    try:
        tau, packed = msgspec.msgpack.decode(data, type=tuple[int, dict[int, bytes]])
        return tau, {journal: Position.unpack(position) for journal, position in packed.items()}
    except (msgspec.MsgspecError, ValueError, ProtocolError) as error:
        raise ProtocolError(f"not a vector of positions: {error}") from None
