"""Moves of ranges between shards as the control plane decides them, and when it begins one by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from australis.control_plane.range_moves import Answer, MapKeeper, Publish
from australis.control_plane.rebalance import Load, Settings, plan
from australis.control_plane.shard_moves import AWAY_NS, FRESH_NS, LIMIT_NS, SECOND, ShardMover, grown
from australis.keyspace import KEYSPACE_END, KeyRanges
from australis.partition_map import MapError, PartitionMap, Range, Shard
from australis.protocol.messages import MoveShard, ShardHeld

QUIET = Settings(enabled=False)


def a_map(shards: int = 2, replicas: int = 2, pieces: int = 4) -> PartitionMap:
    bounds = [b"", *(bytes([n]) for n in range(1, pieces)), KEYSPACE_END]
    return PartitionMap(
        1,
        [0],
        [Range(b"", KEYSPACE_END, 0)],
        [Shard(s, [f"r{s}-{n}" for n in range(replicas)]) for s in range(shards)],
        [Range(bounds[n], bounds[n + 1], n % shards) for n in range(pieces)],
    )


def report(mover: ShardMover, name: str, held: list[tuple[bytes, bytes]], version: int | None = None) -> ShardHeld:
    newest = mover.keeper.map.version if version is None else version
    return ShardHeld(name, int(name[1]), newest, held, 0, 0, [], [])


def published(effects: Sequence[object]) -> list[PartitionMap]:
    return [effect.map for effect in effects if isinstance(effect, Publish)]


def answers(effects: Sequence[object]) -> list[str]:
    return [effect.error for effect in effects if isinstance(effect, Answer)]


def test_a_move_ends_when_all_replicas_hold_it() -> None:
    mover = ShardMover(MapKeeper(a_map()), QUIET)
    effects = mover.move("me", MoveShard(7, b"", b"\x02", 1), 0)
    (begun,) = published(effects)
    assert [(item.lo, item.hi, item.owner) for item in begun.incoming] == [(b"", b"\x01", 1)]
    assert begun.shard(b"\x00\x05") == 0
    assert begun.wanted(1) == [*begun.placed(1), (b"", b"\x01")]
    assert PartitionMap.decode(begun.encode()).incoming == begun.incoming
    held = begun.wanted(1)
    assert mover.held(report(mover, "r1-0", held), 10) == []
    assert mover.held(report(mover, "r1-1", begun.placed(1)), 20) == []  # not yet
    assert mover.held(report(mover, "r1-1", held, begun.version - 1), 30) == []  # of another time, maybe
    effects = mover.held(report(mover, "r1-1", held), 40)
    (done,) = published(effects)
    assert answers(effects) == [""]
    assert done.shard(b"\x00\x05") == 1 and done.incoming == () and done.version == begun.version + 1
    assert KeyRanges(done.placed(1)).covers(b"", b"\x02")


def test_a_replica_that_is_away_is_not_waited_for_for_ever() -> None:
    mover = ShardMover(MapKeeper(a_map()), QUIET)
    mover.move("me", MoveShard(7, b"", b"\x01", 1), SECOND)
    held = mover.keeper.map.wanted(1)
    at = SECOND + AWAY_NS - 1
    assert mover.held(report(mover, "r1-0", held), at) == []
    assert mover.tick(at) == []
    assert published(mover.tick(at + 2)) and not mover.busy


def test_nobody_who_holds_it_means_no_end_but_giving_up() -> None:
    mover = ShardMover(MapKeeper(a_map()), QUIET)
    (begun,) = published(mover.move("me", MoveShard(7, b"", b"\x01", 1), SECOND))
    assert mover.tick(SECOND + LIMIT_NS) == []
    effects = mover.tick(SECOND + LIMIT_NS + 1)
    (back,) = published(effects)
    assert back.incoming == () and back.placement == begun.placement and back.version > begun.version
    assert "did not take over" in answers(effects)[0]


def test_a_control_plane_that_starts_again_goes_on() -> None:
    first = ShardMover(MapKeeper(a_map()), QUIET)
    (begun,) = published(first.move("me", MoveShard(7, b"", b"\x01", 1), 0))
    second = ShardMover(MapKeeper(PartitionMap.decode(begun.encode())), QUIET)
    assert second.tick(100 * SECOND) == []
    for name in ("r1-0", "r1-1"):
        effects = second.held(report(second, name, begun.wanted(1)), 101 * SECOND)
    assert published(effects)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (MoveShard(1, b"", b"\x01", 9), "no shard 9"),
        (MoveShard(1, b"\x02", b"\x01", 1), "empty"),
        (MoveShard(1, b"\x02", KEYSPACE_END + b"\x01", 1), "outside"),
    ],
)
def test_what_cannot_be_is_refused(message: MoveShard, cause: str) -> None:
    mover = ShardMover(MapKeeper(a_map()), QUIET)
    assert cause in answers(mover.move("me", message, 0))[0]
    assert mover.keeper.map.version == 1


def test_one_at_a_time_and_nothing_to_do() -> None:
    mover = ShardMover(MapKeeper(a_map()), QUIET)
    assert answers(mover.move("me", MoveShard(1, b"", b"\x01", 0), 0)) == [""]
    assert answers(mover.move("me", MoveShard(2, b"", b"\x01", 1), 0)) == []
    assert "try again" in answers(mover.move("you", MoveShard(3, b"", b"\x01", 1), 0))[0]
    mover.gone("me")
    for name in ("r1-0", "r1-1"):
        effects = mover.held(report(mover, name, mover.keeper.map.wanted(1)), 1)
    assert published(effects) and answers(effects) == []


def test_a_range_of_a_map_moves_of_both_kinds_are_kept() -> None:
    begun = a_map().arriving([Range(b"\x01", b"\x02", 0)])
    assert begun.moved(b"", b"\x01", 0).incoming == begun.incoming
    for bad in (
        [Range(b"", b"\x01", 7)],
        [Range(b"\x01", b"\x01", 0)],
        [Range(b"", b"\x02", 0), Range(b"\x01", b"\x03", 1)],
    ):
        with pytest.raises(MapError):
            a_map().arriving(bad)


def test_a_map_that_was_lost_comes_back_from_whoever_follows_it() -> None:
    keeper = MapKeeper(a_map())
    newer = a_map().arriving([Range(b"", b"\x01", 1)]).arrived()
    assert published(keeper.learned(newer)) == [newer] and not keeper.sure
    assert keeper.map is newer and keeper.learned(newer) == [] == keeper.learned(a_map())


def test_who_asked_for_a_move_that_a_newer_map_does_not_know_is_told() -> None:
    mover = ShardMover(MapKeeper(a_map()), QUIET)
    mover.move("me", MoveShard(7, b"", b"\x01", 1), SECOND)
    newer = a_map()
    for _ in range(3):
        newer = newer.arriving([Range(b"", b"\x01", 1)]).arrived()
    mover.keeper.learned(newer)
    assert "replaced by a newer one" in answers(mover.tick(2 * SECOND))[0]
    assert mover.tick(3 * SECOND) == []


def test_a_topology_that_has_grown() -> None:
    current, wider = a_map(2, 1), a_map(3, 2)
    grew = grown(current, wider)
    assert grew.version == 2 and grew.placement == current.placement
    assert grew.replicas == {0: ("r0-0", "r0-1"), 1: ("r1-0", "r1-1"), 2: ("r2-0", "r2-1")}
    assert grown(grew, wider) is grew and grown(grew, current) is grew


# ---------------------------------------------------------------------------------------------------------- the planner


class World:
    """Keys with sizes and heat, and what shards would report of them."""

    def __init__(self, seed: int, shards: int, skew: float) -> None:
        self.rng = random.Random(seed)
        self.map = a_map(shards, 1, shards * 4)
        top = shards * 4
        self.keys = sorted(
            bytes([min(int(top * self.rng.random() ** skew), 254)]) + self.rng.randbytes(4) for _ in range(4000)
        )
        self.hot = sorted(self.rng.choices(self.keys[: len(self.keys) // 8], k=2000))

    def loads(self) -> dict[int, Load]:
        loads = {}
        for shard in self.map.shards:
            ranges = KeyRanges(self.map.placed(shard.id))
            mine = [key for key in self.keys if ranges.holds(key)]
            hot = [key for key in self.hot if ranges.holds(key)]
            step = max(1, len(mine) // 32)
            heat = sorted(self.rng.sample(hot, min(64, len(hot))))
            loads[shard.id] = Load(len(mine) << 20, len(hot) * 10.0, mine[::step], heat)
        return loads

    def spread(self) -> float:
        loads = self.loads().values()
        sizes, rates = sum(load.bytes_held for load in loads), sum(load.rate for load in loads)
        shares = [(load.bytes_held / sizes + load.rate / rates) / 2 * len(loads) for load in loads]
        return max(shares) - min(shares)


@pytest.mark.parametrize("seed", range(12))
def test_loads_even_out_and_then_nothing_moves(seed: int) -> None:
    world = World(seed, 2 + seed % 4, 1 + seed % 3)
    for moves in range(200):  # noqa: B007
        wanted = plan(world.map, world.loads(), Settings())
        if wanted is None:
            break
        assert world.map.shard(wanted.lo) != wanted.owner
        world.map = world.map.arriving([wanted]).arrived()
    assert moves < 60
    assert world.spread() < 0.7


def test_nothing_moves_without_need() -> None:
    world = World(1, 4, 1)
    assert plan(world.map, world.loads(), Settings(enabled=False)) is None
    assert plan(world.map, world.loads(), Settings(min_bytes=1 << 60, min_rate=1e12)) is None
    assert plan(a_map(1), {0: Load(1 << 40, 1e9, [b"\x01"], [b"\x01"])}, Settings()) is None
    # all of it at one key: cutting does not help
    one = Load(1 << 40, 1e9, [b"\x00\x01"], [b"\x00\x01"] * 64)
    none = Load(0, 0.0, [], [])
    assert plan(a_map(2, 1, 2), {0: one, 1: none}, Settings()) is None


def test_too_many_pieces_are_joined() -> None:
    pieces = a_map(2, 1, 200)
    even = {shard: Load(1 << 20, 1.0, [], []) for shard in (0, 1)}
    settings = Settings(max_pieces=50)
    for _ in range(300):
        wanted = plan(pieces, even, settings)
        if wanted is None:
            break
        pieces = pieces.arriving([wanted]).arrived()
    assert len(pieces.placement) <= 50


def test_the_mover_begins_and_rests() -> None:
    mover = ShardMover(MapKeeper(a_map(2, 1, 2)), Settings(min_bytes=1))
    at = 1000 * SECOND
    samples = [b"\x00" + bytes([n]) for n in range(32)]

    def seen(shard: int, size: int, now: int) -> list[object]:
        newest = mover.keeper.map
        return list(
            mover.held(ShardHeld(f"r{shard}-0", shard, newest.version, newest.wanted(shard), size, 0, samples, []), now)
        )

    assert mover.tick(at) == []  # nothing is known of the shards
    seen(0, 1 << 30, at)
    assert mover.tick(at) == []
    seen(1, 1 << 10, at)
    (begun,) = published(mover.tick(at))
    assert [item.owner for item in begun.incoming] == [1]
    (done,) = published(seen(1, 1 << 29, at + 1))
    assert done.incoming == () and mover.tick(at + 2) == []
    assert mover.tick(at + FRESH_NS * 100) == []  # no news of anybody
