"""When to move a range between shards, and which one: by size and by heat. Pure.

A shard's load is the mean of its share of the bytes and of its share of the operations, 1 being a fair share; what is
below a minimum everywhere does not count. What must hold: nothing moves while loads are within `tolerance` of each
other; what is moved is at most half of the difference of the two shards, so that every move makes the loads more even
and nothing moves back; the number of pieces stays bounded: when there are too many, the one with the fewest keys goes
to its neighbour's shard (a merge) before anything is split.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from australis.partition_map import PartitionMap, Range


@dataclass(frozen=True, slots=True)
class Settings:
    """`enabled`: move anything at all; `min_bytes`, `min_rate`: of the fullest or busiest shard, below which not."""

    enabled: bool = True
    tolerance: float = 0.6
    min_bytes: int = 256 << 20
    min_rate: float = 2000.0
    max_pieces: int = 512


@dataclass(frozen=True, slots=True)
class Load:
    """Of one shard. `samples` cut its keys into parts of about the same size, `heat` are keys that were asked for."""

    bytes_held: int
    rate: float
    samples: Sequence[bytes]
    heat: Sequence[bytes]


def plan(partition: PartitionMap, loads: Mapping[int, Load], settings: Settings) -> Range | None:
    """Return what to move now (`owner`: where to); None: nothing."""
    if not settings.enabled or len(loads) < 2:
        return None
    if merge := _merge(partition, loads, settings):
        return merge
    weights = _weights(loads, settings)
    totals = {shard: sum(weight for _, weight in keys) for shard, keys in weights.items()}
    most = max(totals, key=lambda shard: (totals[shard], -shard))
    least = min(totals, key=lambda shard: (totals[shard], shard))
    difference = totals[most] - totals[least]
    if difference <= settings.tolerance:
        return None
    return _cut(partition, most, least, weights[most], difference / 2)


_Weighted = list[tuple[bytes, float]]
"""Keys, each once and in order, and what share of a shard's load is at or behind them."""


def _weights(loads: Mapping[int, Load], settings: Settings) -> dict[int, _Weighted]:
    sizes = {shard: float(load.bytes_held) for shard, load in loads.items()}
    rates = {shard: load.rate for shard, load in loads.items()}
    counted = [
        (values, keys)
        for values, least, keys in (
            (sizes, settings.min_bytes, {shard: load.samples for shard, load in loads.items()}),
            (rates, settings.min_rate, {shard: load.heat for shard, load in loads.items()}),
        )
        if max(values.values()) >= max(least, 1)
    ]
    weights: dict[int, _Weighted] = {}
    for shard in loads:
        found: dict[bytes, float] = {}
        for values, keys in counted:
            share = values[shard] * len(values) / sum(values.values()) / len(counted)
            for key in keys[shard] or [b""]:
                found[key] = found.get(key, 0.0) + share / max(len(keys[shard]), 1)
        weights[shard] = sorted(found.items())
    return weights


def _cut(partition: PartitionMap, source: int, target: int, keys: _Weighted, wanted: float) -> Range | None:
    """A range of the source's with about that much of its load, not more: a whole piece if possible."""
    bounds = [key for key, _ in keys]
    pieces: list[tuple[float, Range, _Weighted]] = []
    for item in partition.placement:
        if item.owner == source:
            inside = keys[bisect_left(bounds, item.lo) : bisect_left(bounds, item.hi)]
            pieces.append((sum(weight for _, weight in inside), item, inside))
    whole = [(weight, item.lo, item.hi) for weight, item, _ in pieces if wanted / 2 < weight <= wanted]
    if whole:
        _, lo, hi = max(whole)
        return Range(lo, hi, target)
    best: tuple[float, Range] | None = None
    for _, item, inside in pieces:
        for found in (_front(item, inside, wanted), _back(item, inside, wanted)):
            # of two that are about alike, the one that joins what the target has
            if found is not None:
                joins = _neighbour(partition, found[1].lo) == target
                score = found[0] * (1.1 if joins else 1.0)
                if best is None or score > best[0]:
                    best = score, Range(found[1].lo, found[1].hi, target)
    return best[1] if best is not None else None


def _front(item: Range, keys: _Weighted, wanted: float) -> tuple[float, Range] | None:
    """As many of a piece's first keys as are wanted."""
    weight = 0.0
    for key, more in keys:
        if weight + more > wanted:
            return (weight, Range(item.lo, key, item.owner)) if weight > 0 and item.lo < key else None
        weight += more
    return None


def _back(item: Range, keys: _Weighted, wanted: float) -> tuple[float, Range] | None:
    """As many of its last ones."""
    weight, lo = 0.0, item.hi
    for key, more in reversed(keys):
        if weight + more > wanted:
            break
        weight, lo = weight + more, key
    return (weight, Range(lo, item.hi, item.owner)) if item.lo < lo < item.hi else None


def _neighbour(partition: PartitionMap, lo: bytes) -> int | None:
    """Who holds what ends where this begins."""
    return next((item.owner for item in partition.placement if item.hi == lo), None)


def _merge(partition: PartitionMap, loads: Mapping[int, Load], settings: Settings) -> Range | None:
    """With too many pieces, the one with the fewest keys goes to the shard of the piece before it."""
    pieces = partition.placement
    if len(pieces) <= settings.max_pieces:
        return None
    least: tuple[int, int] | None = None
    for index, item in enumerate(pieces[1:], start=1):
        samples = sorted(loads[item.owner].samples)
        count = bisect_left(samples, item.hi) - bisect_left(samples, item.lo)
        if least is None or count < least[0]:
            least = count, index
    if least is None:
        return None
    item = pieces[least[1]]
    return Range(item.lo, item.hi, pieces[least[1] - 1].owner)
