"""When to move a range between shards, and which one: by size and by heat. Pure.

A shard's load is the larger of its share of the bytes and of its share of the operations, 1 being its fair share. What
must hold: nothing moves while loads are within `tolerance` of each other or below what is worth it; what is moved at
most halves the difference, so that nothing moves back; the number of pieces stays bounded: when there are many, the
smallest piece goes to its neighbour's shard (a merge) before anything is split.
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
    by_bytes = _imbalance({shard: float(load.bytes_held) for shard, load in loads.items()})
    by_rate = _imbalance({shard: load.rate for shard, load in loads.items()})
    choices: list[tuple[float, int, int, Sequence[bytes], float]] = []
    if loads[by_bytes.most].bytes_held >= settings.min_bytes:
        choices.append((by_bytes.spread, by_bytes.most, by_bytes.least, loads[by_bytes.most].samples, by_bytes.part))
    if loads[by_rate.most].rate >= settings.min_rate:
        choices.append((by_rate.spread, by_rate.most, by_rate.least, loads[by_rate.most].heat, by_rate.part))
    for spread, source, target, keys, part in sorted(choices, key=lambda choice: choice[0], reverse=True):
        if spread > settings.tolerance and (found := _cut(partition, source, target, sorted(keys), part)):
            return found
    return None


@dataclass(frozen=True, slots=True)
class _Imbalance:
    most: int
    least: int
    spread: float
    """Difference of the two, 1 being a fair share."""
    part: float
    """Of what `most` has, half of the difference."""


def _imbalance(values: Mapping[int, float]) -> _Imbalance:
    most = max(values, key=lambda shard: (values[shard], -shard))
    least = min(values, key=lambda shard: (values[shard], shard))
    fair = sum(values.values()) / len(values)
    difference = values[most] - values[least]
    return _Imbalance(most, least, difference / fair if fair else 0.0, difference / 2 / values[most] if fair else 0.0)


def _cut(partition: PartitionMap, source: int, target: int, keys: Sequence[bytes], part: float) -> Range | None:
    """A run of the source's keys that is about that part of them: whole pieces if possible, next to the target's."""
    pieces = [item for item in partition.placement if item.owner == source]
    counts = [bisect_left(keys, item.hi) - bisect_left(keys, item.lo) for item in pieces]
    wanted = int(part * len(keys))
    if wanted < 1:
        return None
    whole = [(count, item) for count, item in zip(counts, pieces, strict=True) if wanted / 2 < count <= wanted]
    if whole:
        item = max(whole, key=lambda found: found[0])[1]
        return Range(item.lo, item.hi, target)
    count, item = max(zip(counts, pieces, strict=True), key=lambda found: found[0])
    if count <= 1:
        return None  # one key, or one place, has it all: cutting does not help
    first = bisect_left(keys, item.lo)
    inside = keys[first : first + count]
    wanted = min(wanted, count - 1)
    if _neighbour(partition, item.lo) == target:
        bound = inside[wanted]
        return Range(item.lo, bound, target) if item.lo < bound else None
    bound = inside[count - wanted]
    return Range(bound, item.hi, target) if item.lo < bound < item.hi else None


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
