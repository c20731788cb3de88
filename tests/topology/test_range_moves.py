"""What the control plane publishes: only what the new owner confirmed, or what all owners say."""

from __future__ import annotations

from australis.control_plane.range_moves import Alarm, Answer, Ask, Effect, MapKeeper, Publish
from australis.control_plane.topology import first_map
from australis.keyspace import KEYSPACE_END
from australis.partition_map import PartitionMap, Range, Shard
from australis.protocol.messages import MoveRange, MoveReply, OwnedRanges, OwnedRangesReply

A, B = b"\x40" + bytes(7), b"\x80" + bytes(7)


def _map() -> PartitionMap:
    keys = [Range(b"", A, 0), Range(A, B, 1), Range(B, KEYSPACE_END, 0)]
    return PartitionMap(1, [0, 1, 2], keys, [Shard(0, ["s"])], [Range(b"", KEYSPACE_END, 0)])


def _answer(keeper: MapKeeper, effects: list[Effect], owned: dict[int, list[tuple[bytes, bytes]]]) -> list[Effect]:
    """Let every adjudicator say what it owns."""
    made: list[Effect] = []
    for effect in effects:
        assert isinstance(effect, Ask) and isinstance(effect.message, OwnedRanges)
        reply = OwnedRangesReply(effect.message.id, owned.get(effect.adjudicator, []))
        made += keeper.received(effect.adjudicator, reply)
    return made


TRUE = {0: [(b"", A), (B, KEYSPACE_END)], 1: [(A, B)]}


def _sure() -> MapKeeper:
    keeper = MapKeeper(_map())
    assert _answer(keeper, keeper.reconcile(), TRUE) == []
    assert keeper.sure and keeper.map.version == 1
    return keeper


def test_nothing_moves_before_the_map_is_known_to_be_true() -> None:
    keeper = MapKeeper(_map())
    [answer] = keeper.move("me", MoveRange(1, b"", A, 1))
    assert isinstance(answer, Answer) and "being compared" in answer.error


def test_published_once_the_new_owner_confirmed() -> None:
    keeper = _sure()
    [ask] = keeper.move("me", MoveRange(9, b"", KEYSPACE_END, 2))
    assert isinstance(ask, Ask) and isinstance(ask.message, MoveRange)
    assert (ask.adjudicator, ask.message.lo, ask.message.hi) == (0, b"", A)
    assert keeper.map.version == 1
    versions, owners = [], [ask.adjudicator]
    effects: list[Effect] = [ask]
    while isinstance(last := effects[-1], Ask):
        effects = keeper.received(last.adjudicator, MoveReply(last.message.id, ""))
        assert isinstance(effects[0], Publish)
        versions.append(effects[0].map.version)
        if isinstance(effects[-1], Ask):
            owners.append(effects[-1].adjudicator)
    assert owners == [0, 1, 0] and versions == [2, 3, 4]
    assert effects[-1] == Answer("me", 9, "")
    assert [item.owner for item in keeper.map.keys] == [2]
    assert not keeper.busy


def test_a_refusal_in_the_middle_keeps_what_was_moved_and_compares() -> None:
    keeper = _sure()
    [first] = keeper.move("me", MoveRange(9, b"", B, 2))
    assert isinstance(first, Ask)
    _, second = keeper.received(0, MoveReply(first.message.id, ""))
    assert isinstance(second, Ask)
    effects = keeper.received(1, MoveReply(second.message.id, "adjudicator 1 does not own all of this range"))
    assert isinstance(effects[0], Answer) and effects[0].error.startswith("1 of 2 ranges were moved, then")
    assert not keeper.sure
    assert keeper.map.adjudicator(b"") == 2
    # the truth: it had been moved, too
    made = _answer(keeper, effects[1:], {0: [(B, KEYSPACE_END)], 2: [(b"", B)]})
    assert isinstance(made[0], Alarm) and isinstance(made[1], Publish)
    assert keeper.sure and keeper.map.adjudicator(A) == 2 and keeper.map.version == 3


def test_a_lost_answer_is_asked_for() -> None:
    for happened in (False, True):
        keeper = _sure()
        [ask] = keeper.move("me", MoveRange(9, A, B, 2))
        effects = keeper.lost(1)
        assert isinstance(effects[0], Answer) and "is being asked" in effects[0].error
        assert isinstance(ask, Ask)
        assert keeper.received(1, MoveReply(ask.message.id, "")) == [], "late answers count no more"
        owned = {0: TRUE[0], 2: TRUE[1]} if happened else TRUE
        made = _answer(keeper, effects[1:], owned)
        assert keeper.map.adjudicator(A) == (2 if happened else 1)
        assert any(isinstance(effect, Publish) for effect in made) is happened


def test_a_range_on_its_way_is_waited_for() -> None:
    keeper = MapKeeper(_map())
    made = _answer(keeper, keeper.reconcile(), {0: TRUE[0]})
    assert [type(effect) for effect in made] == [Alarm] and not keeper.sure and keeper.map.version == 1
    assert not keeper.busy
    made = _answer(keeper, keeper.reconcile(), {0: TRUE[0], 2: TRUE[1]})
    assert keeper.sure and keeper.map.adjudicator(A) == 2


def test_silence_ends_a_move_and_a_comparison() -> None:
    keeper = _sure()
    keeper.move("me", MoveRange(9, A, B, 2))
    effects = keeper.expired()
    assert isinstance(effects[0], Answer) and "did not answer in time" in effects[0].error
    assert keeper.busy
    assert keeper.expired() == [] and not keeper.busy and not keeper.sure


def test_what_is_refused_at_once() -> None:
    keeper = _sure()
    for message, text in (
        (MoveRange(1, A, B, 7), "there is no adjudicator 7"),
        (MoveRange(1, B, A, 2), "is empty or outside"),
        (MoveRange(1, A, KEYSPACE_END + b"x", 2), "is empty or outside"),
    ):
        [answer] = keeper.move("me", message)
        assert isinstance(answer, Answer) and text in answer.error
    assert keeper.move("me", MoveRange(4, A, B, 1)) == [Answer("me", 4, "")], "it is there already"
    keeper.move("me", MoveRange(5, A, B, 2))
    [answer] = keeper.move("you", MoveRange(6, A, B, 0))
    assert isinstance(answer, Answer) and "another move is under way" in answer.error


def test_the_first_map_is_true_for_those_who_got_it() -> None:
    owners = first_map(3, 1, 1)
    keeper = MapKeeper(owners)
    assert _answer(keeper, keeper.reconcile(), {number: owners.owned(number) for number in range(3)}) == []
    assert keeper.sure
