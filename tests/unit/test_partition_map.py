"""The partition map: look-ups, pieces, and every map that no cluster can have."""

from __future__ import annotations

import random

import msgspec
import pytest

from australis.keyspace import KEYSPACE_END, relation_id, relation_prefix, relation_range
from australis.partition_map import MapError, PartitionMap, Range, Shard

TABLE, INDEX = relation_id(5, 1), relation_id(5, 2)
MIDDLE = relation_prefix(TABLE) + b"\x80"


def example() -> PartitionMap:
    return PartitionMap(
        3,
        [0, 1, 7],
        [
            Range(b"", MIDDLE, 0),
            Range(MIDDLE, relation_prefix(INDEX), 7),
            Range(relation_prefix(INDEX), KEYSPACE_END, 0),
        ],
        [Shard(0, ["a", "b"]), Shard(1, ["c"])],
        [Range(b"", MIDDLE, 1), Range(MIDDLE, KEYSPACE_END, 0)],
    )


def test_look_up() -> None:
    partition = example()
    assert partition.adjudicator(relation_prefix(TABLE)) == 0
    assert partition.adjudicator(MIDDLE) == 7
    assert partition.adjudicator(MIDDLE + b"\xff") == 7
    assert partition.adjudicator(relation_prefix(INDEX)) == 0
    assert partition.shard(MIDDLE) == 0
    assert partition.system == 0
    assert partition.relation_owners([TABLE]) == {0, 7}
    assert partition.relation_owners([INDEX]) == {0}
    assert partition.owned(1) == []


def test_pieces_cover_a_range_exactly() -> None:
    partition = example()
    lo, hi = relation_range(TABLE)
    assert [(piece.lo, piece.hi, piece.owner) for piece in partition.pieces(lo, hi)] == [
        (lo, MIDDLE, 0),
        (MIDDLE, hi, 7),
    ]
    assert partition.pieces(hi, hi) == []
    assert [piece.owner for piece in partition.shard_pieces(b"", KEYSPACE_END)] == [1, 0]


def test_bytes() -> None:
    partition = example()
    again = PartitionMap.decode(partition.encode())
    assert (again.version, again.keys, again.placement, again.shards, again.adjudicators) == (
        partition.version,
        partition.keys,
        partition.placement,
        partition.shards,
        partition.adjudicators,
    )


def test_moves_keep_the_keyspace_covered() -> None:
    rng = random.Random(1)
    partition = example()
    points = [b"", relation_prefix(TABLE), MIDDLE, relation_prefix(INDEX), relation_prefix(INDEX) + b"x", KEYSPACE_END]
    for _ in range(200):
        lo, hi = sorted(rng.sample(points, 2))
        owner = rng.choice(partition.adjudicators)
        moved = partition.moved(lo, hi, owner)
        assert moved.version == partition.version + 1
        for key in points[:-1]:
            assert moved.adjudicator(key) == (owner if lo <= key < hi else partition.adjudicator(key))
        assert all(left.owner != right.owner for left, right in zip(moved.keys, moved.keys[1:], strict=False))
        partition = moved


ADJUDICATORS = [0, 1]
KEYS = [Range(b"", MIDDLE, 0), Range(MIDDLE, KEYSPACE_END, 1)]
SHARDS = [Shard(0, ["a"])]
PLACEMENT = [Range(b"", KEYSPACE_END, 0)]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": 0}, "version 0"),
        ({"adjudicators": []}, "no adjudicator"),
        ({"adjudicators": [0, 1, 1]}, "adjudicator 1 is declared twice"),
        ({"keys": KEYS[:1]}, "ranges end at"),
        ({"keys": KEYS[1:]}, "no adjudicator for keys from the beginning"),
        ({"keys": [KEYS[0], Range(MIDDLE + b"\0", KEYSPACE_END, 1)]}, "no adjudicator for keys from"),
        ({"keys": [*KEYS, Range(MIDDLE, MIDDLE + b"\0", 0)]}, "two adjudicators for keys"),
        ({"keys": [KEYS[0], Range(MIDDLE, KEYSPACE_END, 2)]}, "unknown adjudicator 2"),
        ({"keys": [*KEYS, Range(MIDDLE, MIDDLE, 1)]}, "is empty"),
        ({"keys": [KEYS[0], Range(MIDDLE, KEYSPACE_END + b"\0", 1)]}, "ranges end at"),
        ({"shards": [Shard(0, [])]}, "shard 0 has no replica"),
        ({"shards": [Shard(0, ["a"]), Shard(1, ["a"])]}, "replica a is declared twice"),
        ({"placement": [Range(b"", KEYSPACE_END, 4)]}, "unknown shard 4"),
        ({"placement": []}, "the shards' ranges end at"),
    ],
)
def test_impossible_maps_are_refused(changes: dict[str, object], error: str) -> None:
    fields = {
        "version": 1,
        "adjudicators": ADJUDICATORS,
        "keys": KEYS,
        "shards": SHARDS,
        "placement": PLACEMENT,
    } | changes
    with pytest.raises(MapError, match=error) as caught:
        PartitionMap(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    # the same through bytes
    data = [1, *(msgspec.to_builtins(fields[name], builtin_types=(bytes,)) for name in fields)]
    with pytest.raises(MapError, match=error):
        PartitionMap.decode(msgspec.msgpack.encode(data))


def test_garbage_is_refused() -> None:
    with pytest.raises(MapError, match="not a partition map"):
        PartitionMap.decode(b"\xc1")
    with pytest.raises(MapError, match="format 2"):
        PartitionMap.decode(msgspec.msgpack.encode([2, 1, [], [], [], []]))
    with pytest.raises(MapError, match="is empty"):
        example().moved(MIDDLE, MIDDLE, 1)
