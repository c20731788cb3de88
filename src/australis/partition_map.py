"""Which adjudicator decides about a key, and which shard holds it: one immutable, versioned value. Pure.

What must hold: the ranges of both kinds cover the keyspace without hole or overlap, and every owner, shard and replica
that they name is declared; a map that breaks this cannot be built or decoded (MapError). The map is a hint: an
adjudicator refuses keys that it does not own, storage refuses keys that it does not hold, and whoever is refused
fetches the newest map and tries again. The truth about ownership is in the journals (rule W4).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from australis.errors import AustralisError
from australis.keyspace import KEYSPACE_END, SystemRelation, relation_prefix, relation_range

FORMAT = 1


class MapError(AustralisError):
    """A partition map that no cluster can have."""

    sqlstate = "22023"


class Range(msgspec.Struct, frozen=True, array_like=True):
    """Keys in [lo, hi) belong to `owner`: an adjudicator or a shard. The last hi is KEYSPACE_END."""

    lo: bytes
    hi: bytes
    owner: int


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """A shard and the names of its replicas, at least one."""

    id: int
    replicas: list[str]


class _Encoded(msgspec.Struct, frozen=True, array_like=True):
    format: int
    version: int
    adjudicators: list[int]
    keys: list[Range]
    shards: list[Shard]
    placement: list[Range]
    incoming: list[Range] = []


class PartitionMap:
    """`keys`: ranges of adjudicators, `placement`: ranges of shards; both sorted by lo.

    `incoming`: ranges that shards are taking over and do not answer for yet.
    """

    __slots__ = (
        "_key_bounds",
        "_place_bounds",
        "adjudicators",
        "incoming",
        "keys",
        "placement",
        "replicas",
        "shards",
        "version",
    )

    def __init__(
        self,
        version: int,
        adjudicators: Sequence[int],
        keys: Sequence[Range],
        shards: Sequence[Shard],
        placement: Sequence[Range],
        incoming: Sequence[Range] = (),
    ) -> None:
        """Raises MapError with what is wrong."""
        if version < 1:
            raise MapError(f"partition map: version {version} is not positive")
        self.version = version
        self.adjudicators = tuple(adjudicators)
        self.shards = tuple(shards)
        self.replicas = {shard.id: tuple(shard.replicas) for shard in shards}
        _distinct("adjudicator", adjudicators)
        _distinct("shard", [shard.id for shard in shards])
        for shard in shards:
            if not shard.replicas:
                raise MapError(f"partition map: shard {shard.id} has no replica")
        _distinct("replica", [replica for shard in shards for replica in shard.replicas])
        self.keys = _covering("adjudicator", keys, set(adjudicators))
        self.placement = _covering("shard", placement, set(self.replicas))
        self.incoming = _apart(incoming, set(self.replicas))
        self._key_bounds = [item.lo for item in self.keys]
        self._place_bounds = [item.lo for item in self.placement]

    # --------------------------------------------------------------------------------------------------- look up

    def adjudicator(self, key: bytes) -> int:
        """Who decides about this key."""
        return self.keys[bisect_right(self._key_bounds, key) - 1].owner

    def shard(self, key: bytes) -> int:
        """Which shard holds this key."""
        return self.placement[bisect_right(self._place_bounds, key) - 1].owner

    @property
    def system(self) -> int:
        """Owner of the DDL log; its journal says which journals there are (rules Q5, W2)."""
        return self.adjudicator(relation_prefix(SystemRelation.DDL))

    def pieces(self, lo: bytes, hi: bytes) -> list[Range]:
        """Cut [lo, hi) by adjudicator, in key order; nothing if it is empty."""
        return _pieces(self.keys, self._key_bounds, lo, hi)

    def shard_pieces(self, lo: bytes, hi: bytes) -> list[Range]:
        """Cut [lo, hi) by shard, in key order."""
        return _pieces(self.placement, self._place_bounds, lo, hi)

    def owned(self, adjudicator: int) -> list[tuple[bytes, bytes]]:
        """Ranges of one adjudicator."""
        return [(item.lo, item.hi) for item in self.keys if item.owner == adjudicator]

    def placed(self, shard: int) -> list[tuple[bytes, bytes]]:
        """Ranges that a shard answers for."""
        return [(item.lo, item.hi) for item in self.placement if item.owner == shard]

    def wanted(self, shard: int) -> list[tuple[bytes, bytes]]:
        """Ranges that a shard answers for or is taking over."""
        return self.placed(shard) + [(item.lo, item.hi) for item in self.incoming if item.owner == shard]

    def relation_owners(self, storage_ids: Iterable[int]) -> set[int]:
        """Owners of parts of a relation, given the storage ids of its table and indexes (rule A5)."""
        return {piece.owner for storage in storage_ids for piece in self.pieces(*relation_range(storage))}

    # --------------------------------------------------------------------------------------------------- changes

    def moved(self, lo: bytes, hi: bytes, owner: int) -> PartitionMap:
        """Return the next version, in which [lo, hi) belongs to adjudicator `owner`. MapError if it can't."""
        if not lo < hi:
            raise MapError(f"partition map: the range {_text(lo)}..{_text(hi)} is empty")
        keys = _replaced(self.keys, self._key_bounds, [Range(lo, hi, owner)])
        return self._next(keys=keys)

    def arriving(self, ranges: Sequence[Range]) -> PartitionMap:
        """Return the next version, in which shards (`owner`) are taking over these ranges. MapError if they can't."""
        return self._next(incoming=ranges)

    def arrived(self) -> PartitionMap:
        """Return the next version, in which shards answer for what they were taking over."""
        return self._next(placement=_replaced(self.placement, self._place_bounds, self.incoming), incoming=())

    def with_shards(self, shards: Sequence[Shard]) -> PartitionMap:
        """Return the next version, with these shards and replicas; those that hold ranges must be among them."""
        return self._next(shards=shards)

    def _next(
        self,
        *,
        keys: Sequence[Range] | None = None,
        shards: Sequence[Shard] | None = None,
        placement: Sequence[Range] | None = None,
        incoming: Sequence[Range] | None = None,
    ) -> PartitionMap:
        return PartitionMap(
            self.version + 1,
            self.adjudicators,
            self.keys if keys is None else keys,
            self.shards if shards is None else shards,
            self.placement if placement is None else placement,
            self.incoming if incoming is None else incoming,
        )

    # ----------------------------------------------------------------------------------------------------- bytes

    def encode(self) -> bytes:
        """As msgpack."""
        return msgspec.msgpack.encode(
            _Encoded(
                FORMAT,
                self.version,
                list(self.adjudicators),
                list(self.keys),
                list(self.shards),
                list(self.placement),
                list(self.incoming),
            )
        )

    @staticmethod
    def decode(data: bytes) -> PartitionMap:
        """Reverse of encode. MapError if these bytes are no map, or no valid one."""
        try:
            encoded = msgspec.msgpack.decode(data, type=_Encoded)
        except msgspec.MsgspecError as error:
            raise MapError(f"not a partition map: {error}") from None
        if encoded.format != FORMAT:
            raise MapError(f"partition map of format {encoded.format}, this program knows {FORMAT}")
        return PartitionMap(
            encoded.version, encoded.adjudicators, encoded.keys, encoded.shards, encoded.placement, encoded.incoming
        )


def _distinct(what: str, names: Sequence[int] | Sequence[str]) -> None:
    if not names:
        raise MapError(f"partition map: no {what}")
    seen: set[int | str] = set()
    for name in names:
        if name in seen:
            raise MapError(f"partition map: {what} {name} is declared twice")
        seen.add(name)


def _covering(what: str, ranges: Sequence[Range], known: set[int]) -> tuple[Range, ...]:
    """Sort ranges and make sure that they cover the keyspace exactly."""
    at = b""
    ordered = sorted(ranges, key=lambda item: item.lo)
    for item in ordered:
        if item.owner not in known:
            raise MapError(f"partition map: {_text(item.lo)}..{_text(item.hi)} belongs to unknown {what} {item.owner}")
        if not item.lo < item.hi:
            raise MapError(f"partition map: the range {_text(item.lo)}..{_text(item.hi)} of {what}s is empty")
        if item.lo > at:
            raise MapError(f"partition map: no {what} for keys from {_text(at)} to {_text(item.lo)}")
        if item.lo < at:
            raise MapError(f"partition map: two {what}s for keys from {_text(item.lo)} to {_text(min(at, item.hi))}")
        at = item.hi
    if at != KEYSPACE_END:
        raise MapError(f"partition map: the {what}s' ranges end at {_text(at)}, not at {_text(KEYSPACE_END)}")
    return tuple(ordered)


def _apart(ranges: Sequence[Range], known: set[int]) -> tuple[Range, ...]:
    """Sort ranges that shards take over, and make sure that no two overlap."""
    ordered = sorted(ranges, key=lambda item: item.lo)
    for item in ordered:
        if item.owner not in known:
            raise MapError(f"partition map: {_text(item.lo)}..{_text(item.hi)} goes to unknown shard {item.owner}")
        if not item.lo < item.hi <= KEYSPACE_END:
            raise MapError(f"partition map: the range {_text(item.lo)}..{_text(item.hi)} cannot be taken over")
    for left, right in pairwise(ordered):
        if right.lo < left.hi:
            raise MapError(f"partition map: two shards take over keys from {_text(right.lo)}")
    return tuple(ordered)


def _replaced(ranges: tuple[Range, ...], bounds: list[bytes], changes: Sequence[Range]) -> list[Range]:
    """Return ranges that cover the keyspace, with new owners for some keys; neighbours of one owner are joined."""
    parts: list[Range] = []
    at = b""
    for change in sorted(changes, key=lambda item: item.lo):
        parts += [*_pieces(ranges, bounds, at, change.lo), change]
        at = change.hi
    parts += _pieces(ranges, bounds, at, KEYSPACE_END)
    joined: list[Range] = []
    for part in parts:
        if joined and joined[-1].owner == part.owner:
            joined[-1] = Range(joined[-1].lo, part.hi, part.owner)
        else:
            joined.append(part)
    return joined


def _pieces(ranges: tuple[Range, ...], bounds: list[bytes], lo: bytes, hi: bytes) -> list[Range]:
    pieces: list[Range] = []
    at = max(bisect_right(bounds, lo) - 1, 0)
    while at < len(ranges) and ranges[at].lo < hi:
        item = ranges[at]
        start, end = max(lo, item.lo), min(hi, item.hi)
        if start < end:
            pieces.append(Range(start, end, item.owner))
        at += 1
    return pieces


def _text(key: bytes) -> str:
    return key.hex() or "the beginning"
