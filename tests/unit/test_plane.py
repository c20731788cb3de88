"""A gateway's decisions: snapshots, who leads, what became of it, which replica, who has to have a schema change."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from australis.keyspace import KEYSPACE_END, SystemRelation, relation_prefix
from australis.partition_map import PartitionMap, Range, Shard
from australis.protocol.messages import (
    CatalogWait,
    CommitReply,
    Drop,
    Error,
    Get,
    GetReply,
    Ingest,
    IngestReply,
    Mode,
    ModeFlag,
    Outcome,
    ReadStatus,
    Resolve,
    ResolveReply,
    Scan,
    ScanReply,
    SnapshotReply,
    Stats,
    StatsReply,
    WideCommit,
)
from australis.query_processor.plane import (
    AVOID_SECONDS,
    BARRIER_SECONDS,
    FIRST_HEDGE,
    PATIENCE,
    RETRY_SECONDS,
    STALE_DETAIL,
    STALE_SECONDS,
    Answer,
    Ask,
    Barrier,
    Commits,
    Decision,
    Effect,
    Loaded,
    Publish,
    Reads,
    Send,
    TellPeer,
    Timeline,
    Want,
    touches_sequences,
)

SPLIT = relation_prefix(5 << 32 | 20000)
LOW, HIGH = relation_prefix(5 << 32 | 16384), relation_prefix(5 << 32 | 30000)
UPDATE, BLIND = int(Mode.UPDATE), int(ModeFlag.BLIND)


def partition(version: int = 1, owners: tuple[int, int] = (0, 1), replicas: int = 2) -> PartitionMap:
    """Two adjudicators, two shards, cut at SPLIT."""

    def cut(first: int, second: int) -> list[Range]:
        return [Range(b"", SPLIT, first), Range(SPLIT, KEYSPACE_END, second)]

    shards = [Shard(number, [f"s{number}-{replica}" for replica in range(replicas)]) for number in (0, 1)]
    return PartitionMap(version, [0, 1], cut(*owners), shards, cut(0, 1))


def commit(
    keys: list[bytes],
    *,
    txid: int = 1,
    modes: list[int] | None = None,
    ddl: tuple[int, list[int], list[int]] | None = None,
) -> WideCommit:
    values = msgspec.Raw(msgspec.msgpack.encode([b"v"] * len(keys)))
    given = bytes(modes if modes is not None else [UPDATE] * len(keys))
    return WideCommit(9, txid.to_bytes(16, "big"), 1, 50, 0, keys, given, values, [], [], ddl, [])


def of(effects: list[Effect], kind: type[Any]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def only(effects: list[Effect]) -> Any:
    (effect,) = effects
    return effect


def sent(effects: list[Effect], kind: type[Any]) -> list[tuple[int, Any]]:
    return [(effect.to, effect.message) for effect in of(effects, Send) if isinstance(effect.message, kind)]


# ------------------------------------------------------------------------------------------------------------ snapshots


def test_those_who_ask_while_one_is_determined_share_the_next_snapshot() -> None:
    timeline = Timeline(rounds=1)
    timeline.begin(10, 3, (10, 10))
    assert timeline.ask("a", 1, (100, 105), 0.0) == [Want(105)]
    assert timeline.ask("b", 2, (110, 115), 0.0) == []
    assert timeline.ask("c", 3, (120, 125), 0.0) == []
    effects = timeline.reached(107, (130, 135))
    assert effects == [Publish(107, 3), Answer("a", SnapshotReply(1, 105, 3), 105), Want(135)]
    effects = timeline.reached(135, (140, 145))
    assert [answer.client for answer in of(effects, Answer)] == ["b", "c"]
    assert {answer.message.tau for answer in of(effects, Answer)} == {135}, "never below what they might have been told"


def test_a_snapshot_names_the_last_schema_change_at_its_time() -> None:
    timeline = Timeline()
    timeline.begin(10, 3, (10, 10))
    timeline.ask("a", 1, (100, 100), 0.0)
    timeline.record(90, 4)
    timeline.record(101, 5)
    effects = timeline.reached(120, (130, 130))
    assert effects == [Publish(120, 5), Answer("a", SnapshotReply(1, 100, 4), 100)]


def test_without_a_subscription_snapshots_wait_and_are_taken_anew() -> None:
    timeline = Timeline()
    assert timeline.ask("a", 1, (100, 100), 0.0) == []
    assert timeline.begin(50, 3, (200, 200)) == [Publish(50, 3), Want(200)]
    timeline.broken()
    assert timeline.reached(50, (300, 300)) == [Publish(50, 3)]
    effects = timeline.begin(400, 7, (350, 350))
    assert of(effects, Answer) == [Answer("a", SnapshotReply(1, 350, 7), 350)]


def test_a_snapshot_that_takes_too_long_is_refused() -> None:
    timeline = Timeline()
    timeline.begin(10, 0, (10, 10))
    timeline.ask("a", 1, (100, 100), 1.0)
    assert timeline.wake(1.0 + PATIENCE - 0.1) == []
    answer = only(timeline.wake(1.0 + PATIENCE))
    assert isinstance(answer, Answer) and isinstance(answer.message, Error) and answer.message.sqlstate == "57P03"
    assert timeline.waiting == 0


def test_what_waits_for_the_watermark() -> None:
    timeline = Timeline()
    done = Answer("x", Drop([]))
    assert timeline.when(70, done) == []
    assert timeline.begin(50, 0, (60, 60)) == [Publish(50, 0), Want(70)]
    assert timeline.when(40, done) == [done]
    assert timeline.reached(70, (80, 80)) == [Publish(70, 0), done]


# -------------------------------------------------------------------------------------------------------------- commits


def serving(**options: Any) -> Commits:
    commits = Commits(partition(), **options)
    commits.up(0, 3)
    commits.up(1, 8)
    return commits


@pytest.mark.parametrize(
    ("request_", "leader"),
    [
        (commit([LOW]), 0),
        (commit([HIGH]), 1),
        (commit([LOW, HIGH, HIGH + b"x"]), 1),
        (commit([LOW, HIGH]), 0),
        (commit([HIGH, LOW]), 1),
        (commit([LOW, HIGH, HIGH + b"x"], modes=[UPDATE, BLIND, BLIND]), 0),
        (commit([HIGH], modes=[BLIND]), 1),
        (commit([HIGH, HIGH + b"x"], ddl=(1, [], [])), 0),
    ],
)
def test_the_owner_of_most_keys_leads(request_: WideCommit, leader: int) -> None:
    effects = serving().commit("c", request_, 0, 0.0)
    ((to, message),) = sent(effects, WideCommit)
    assert to == message.leader == leader
    assert message.generation == (3, 8)[leader]
    assert message.values == request_.values


def test_the_answer_comes_back_with_the_budget() -> None:
    commits = serving()
    request = commit([HIGH])
    commits.commit("c", request, 77, 0.0)
    reply = CommitReply(request.txid, Outcome.COMMITTED, 99, "")
    assert commits.reply(0, reply, 0.0) == [], "that one was not asked"
    assert commits.reply(1, reply, 0.0) == [Decision("c", request, reply, 77)]
    assert commits.reply(1, reply, 0.0) == []
    assert commits.open == 0


def test_a_commit_waits_for_its_leader_and_is_given_up_with_certainty() -> None:
    commits = Commits(partition())
    request = commit([LOW])
    assert commits.commit("c", request, 5, 0.0) == []
    ((_, message),) = sent(commits.up(0, 4), WideCommit)
    assert message.generation == 4

    other = commit([HIGH], txid=2)
    commits.commit("c", other, 5, 1.0)
    effects = commits.wake(1.0 + PATIENCE + 0.1)
    (told,) = of(effects, Answer)
    assert told.client == "c" and told.message.sqlstate == "57P03"
    assert of(effects, Decision)[0].budget == 5
    assert commits.up(1, 1) == [], "it is not submitted afterwards"
    answer = only(commits.resolve("c", Resolve(other.txid, 50), 2.0))
    assert answer == Answer("c", ResolveReply(other.txid, Outcome.KILLED, 0))
    commits.gone("c")


def test_a_cancel_before_submission_kills() -> None:
    commits = Commits(partition())
    request = commit([LOW])
    commits.commit("c", request, 0, 0.0)
    effects = commits.resolve("c", Resolve(request.txid, 50), 0.0)
    assert of(effects, Answer) == [Answer("c", ResolveReply(request.txid, Outcome.KILLED, 0))]
    assert commits.up(0, 1) == []
    again = only(commits.commit("c", request, 0, 0.0))
    assert isinstance(again, Decision) and again.reply.outcome == Outcome.REFUSED


def test_after_a_lost_connection_the_fate_is_asked_for_and_never_guessed() -> None:
    commits = serving()
    first, second, third = (commit([LOW], txid=number) for number in (1, 2, 3))
    for request in (first, second, third):
        commits.commit("c", request, 0, 0.0)
    assert commits.down(0) == []
    asked = sent(commits.up(0, 4), Resolve)
    assert [(to, message.txid, message.generation) for to, message in asked] == [
        (0, request.txid, 3) for request in (first, second, third)
    ]
    yes = only(commits.resolved(0, ResolveReply(first.txid, Outcome.COMMITTED, 60), 1.0))
    assert yes.reply == CommitReply(first.txid, Outcome.COMMITTED, 60, "")
    no = only(commits.resolved(0, ResolveReply(second.txid, Outcome.KILLED, 0), 1.0))
    assert no.reply.outcome == Outcome.REFUSED
    assert commits.resolved(0, ResolveReply(third.txid, Outcome.PENDING, 0), 1.0) == []
    assert commits.wake(1.01) == []
    assert [message.txid for _, message in sent(commits.wake(1.03), Resolve)] == [third.txid]


def test_a_resolve_goes_to_the_leader_with_the_generation_it_was_submitted_to() -> None:
    commits = serving()
    request = commit([HIGH])
    commits.commit("c", request, 0, 0.0)
    ((to, message),) = sent(commits.resolve("d", Resolve(request.txid, 50), 0.0), Resolve)
    assert (to, message.generation, message.leader) == (1, 8, 1)
    effects = commits.resolved(1, ResolveReply(request.txid, Outcome.PENDING, 0), 0.0)
    assert effects == [Answer("d", ResolveReply(request.txid, Outcome.PENDING, 0))]
    commits.resolve("d", Resolve(request.txid, 50), 0.0)
    effects = commits.reply(1, CommitReply(request.txid, Outcome.COMMITTED, 70, ""), 0.0)
    assert of(effects, Answer) == [Answer("d", ResolveReply(request.txid, Outcome.COMMITTED, 70), 70)]
    # long after it was answered, somebody who missed the answer still gets it from there
    ((to, message),) = sent(commits.resolve("e", Resolve(request.txid, 50), 0.0), Resolve)
    assert (to, message.generation) == (1, 8)
    effects = commits.resolved(1, ResolveReply(request.txid, Outcome.COMMITTED, 70), 0.0)
    assert effects == [Answer("e", ResolveReply(request.txid, Outcome.COMMITTED, 70), 70)]


def test_a_stranger_is_killed_only_if_all_owners_say_so_and_prove_it() -> None:
    commits = Commits(partition())
    commits.up(0, 3)
    txid = b"s" * 16
    ((to, message),) = sent(commits.resolve("c", Resolve(txid, 50), 0.0), Resolve)
    assert to == 0 and message.prove
    assert commits.resolved(0, ResolveReply(txid, Outcome.KILLED, 0), 0.0) == []
    ((to, message),) = sent(commits.up(1, 8), Resolve)
    assert to == 1 and message.prove
    assert commits.resolved(1, ResolveReply(txid, Outcome.KILLED, 0), 0.0) == [
        Answer("c", ResolveReply(txid, Outcome.KILLED, 0), 0)
    ]
    other = b"t" * 16
    commits.resolve("c", Resolve(other, 50), 0.0)
    commits.resolved(0, ResolveReply(other, Outcome.KILLED, 0), 0.0)
    effects = commits.resolved(1, ResolveReply(other, Outcome.COMMITTED, 66), 0.0)
    assert effects == [Answer("c", ResolveReply(other, Outcome.COMMITTED, 66), 66)]


def test_an_old_map_costs_one_more_try() -> None:
    commits = serving()
    request = commit([HIGH])
    commits.commit("c", request, 0, 0.0)
    stale = CommitReply(request.txid, Outcome.REFUSED, 0, f"{STALE_DETAIL}: ...")
    assert commits.reply(1, stale, 0.0) == []
    ((to, message),) = sent(commits.new_map(partition(2, (0, 0))), WideCommit)
    assert (to, message.generation) == (0, 3)
    done = only(commits.reply(0, CommitReply(request.txid, Outcome.COMMITTED, 60, ""), 0.0))
    assert done.reply.outcome == Outcome.COMMITTED

    late = commit([HIGH], txid=2)
    commits.commit("c", late, 0, 0.0)
    commits.reply(0, CommitReply(late.txid, Outcome.REFUSED, 0, f"{STALE_DETAIL}: ..."), 0.0)
    assert commits.wake(STALE_SECONDS - 0.1) == []
    refused = only(commits.wake(STALE_SECONDS))
    assert refused.reply.outcome == Outcome.REFUSED


def test_too_many_commits_are_refused_before_submission() -> None:
    commits = serving(limit=1)
    commits.commit("c", commit([LOW]), 0, 0.0)
    effects = commits.commit("c", commit([LOW], txid=2), 3, 0.0)
    assert not of(effects, Send)
    refused = only(effects)
    assert refused.reply.outcome == Outcome.REFUSED and refused.budget == 3


def chunk(txid: int, seq: int) -> Ingest:
    raw = msgspec.Raw(msgspec.msgpack.encode([LOW + b"k"]))
    return Ingest(1, txid.to_bytes(16, "big"), seq, raw, bytes([UPDATE | BLIND]), raw)


def test_chunks_go_to_the_owner_of_the_system_range_and_become_garbage_with_their_client() -> None:
    commits = serving()
    ((to, message),) = sent(commits.ingest("c", chunk(1, 1), {7}, 9, 0.0), Ingest)
    assert (to, message.generation) == (0, 3)
    reply = IngestReply(message.txid, 1, Outcome.COMMITTED, 60)
    assert commits.ingested(0, reply) == [Loaded("c", reply, 9)]
    commits.ingest("c", chunk(1, 2), {8}, 9, 0.0)
    effects = commits.gone("c")
    assert of(effects, Loaded)[0].budget == 9, "memory comes back for what was on its way"
    assert sent(effects, Drop) == [(0, Drop([7, 8]))]


def test_chunks_of_a_commit_are_no_garbage_and_those_on_a_lost_connection_are_refused() -> None:
    commits = serving()
    commits.ingest("c", chunk(1, 1), {7}, 0, 0.0)
    request = commit([LOW], ddl=(1, [], []))
    commits.ingested(0, IngestReply(request.txid, 1, Outcome.COMMITTED, 60))
    commits.commit("c", request, 0, 0.0)
    commits.reply(0, CommitReply(request.txid, Outcome.COMMITTED, 70, ""), 0.0)
    assert commits.gone("c") == []
    commits.ingest("d", chunk(2, 1), {7}, 4, 0.0)
    refused = only(commits.down(0))
    assert isinstance(refused, Loaded) and refused.reply.outcome == Outcome.REFUSED and refused.budget == 4


# ---------------------------------------------------------------------------------------------------------------- reads


def reading(replicas: int = 2) -> Reads:
    reads = Reads(partition(replicas=replicas))
    for shard in (0, 1):
        for replica in range(replicas):
            reads.up(f"s{shard}-{replica}", 0.0)
    return reads


def entry(key: bytes, value: bytes = b"v", tau: int = 5) -> bytes:
    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 8)

    return struct.pack("<IIq", len(key), len(value), tau) + pad(value) + pad(key)


MISSING = struct.pack("<IIq", 0, 0xFFFFFFFF, 0)


def test_a_read_of_one_shard_is_passed_on() -> None:
    reads = reading()
    (ask,) = of(reads.ask("c", Get(4, 60, [LOW]), 0.0), Ask)
    assert ask.replica in ("s0-0", "s0-1")
    answer = only(reads.reply(ask.replica, GetReply(ask.message.id, ReadStatus.OK, entry(LOW)), 0.1))
    assert answer == Answer("c", GetReply(4, ReadStatus.OK, entry(LOW)))
    assert reads.open == 0


def test_keys_of_several_shards_come_back_in_their_order() -> None:
    reads = reading()
    keys = [HIGH, LOW, HIGH + b"2", LOW + b"2"]
    asks = {ask.replica[:2]: ask for ask in of(reads.ask("c", Get(4, 60, keys), 0.0), Ask)}
    assert asks["s0"].message.keys == [LOW, LOW + b"2"]
    low = GetReply(asks["s0"].message.id, ReadStatus.OK, entry(LOW) + MISSING)
    high = GetReply(asks["s1"].message.id, ReadStatus.OK, entry(HIGH) + entry(HIGH + b"2", b"longer than eight"))
    assert reads.reply(asks["s0"].replica, low, 0.1) == []
    answer = only(reads.reply(asks["s1"].replica, high, 0.1))
    batch = entry(HIGH) + entry(LOW) + entry(HIGH + b"2", b"longer than eight") + MISSING
    assert answer == Answer("c", GetReply(4, ReadStatus.OK, batch))


@pytest.mark.parametrize("backward", [False, True])
def test_a_scan_goes_from_shard_to_shard_in_key_order(backward: bool) -> None:
    reads = reading()
    scan = Scan(4, 60, LOW, HIGH, backward, 1000, 10)
    first, second = ("s1", "s0") if backward else ("s0", "s1")
    (ask,) = of(reads.ask("c", scan, 0.0), Ask)
    assert ask.replica.startswith(first)
    assert (ask.message.lo, ask.message.hi) == ((SPLIT, HIGH) if backward else (LOW, SPLIT))
    (ask,) = of(reads.reply(ask.replica, ScanReply(ask.message.id, ReadStatus.OK, False, b""), 0.1), Ask)
    assert ask.replica.startswith(second)
    row = entry(LOW)
    answer = only(reads.reply(ask.replica, ScanReply(ask.message.id, ReadStatus.OK, False, row), 0.1))
    assert answer == Answer("c", ScanReply(4, ReadStatus.OK, False, row))
    # rows of the first shard: the range goes on behind them
    (ask,) = of(reads.ask("c", scan, 0.0), Ask)
    answer = only(reads.reply(ask.replica, ScanReply(ask.message.id, ReadStatus.OK, False, row), 0.1))
    assert answer == Answer("c", ScanReply(4, ReadStatus.OK, True, row, SPLIT))
    # a filter let nothing through yet: it goes on where the replica says
    (ask,) = of(reads.ask("c", scan, 0.0), Ask)
    answer = only(reads.reply(ask.replica, ScanReply(ask.message.id, ReadStatus.OK, True, b"", LOW + b"3"), 0.1))
    assert answer == Answer("c", ScanReply(4, ReadStatus.OK, True, b"", LOW + b"3"))
    # no other replica would take a filter that one refused
    (ask,) = of(reads.ask("c", scan, 0.0), Ask)
    answer = only(reads.reply(ask.replica, ScanReply(ask.message.id, ReadStatus.REFUSED, False, b""), 0.1))
    assert answer == Answer("c", ScanReply(4, ReadStatus.REFUSED, False, b""))


def test_statistics_are_added_up() -> None:
    reads = reading()
    asks = of(reads.ask("c", Stats(4, [7, 8]), 0.0), Ask)
    assert len(asks) == 2
    reads.reply(asks[0].replica, StatsReply(asks[0].message.id, [(7, 1, 10), (8, 0, 0)]), 0.0)
    answer = only(reads.reply(asks[1].replica, StatsReply(asks[1].message.id, [(7, 2, 20)]), 0.0))
    assert answer == Answer("c", StatsReply(4, [(7, 3, 30), (8, 0, 0)]))


def test_a_slow_replica_costs_one_hedge_and_is_avoided_then() -> None:
    reads = reading()
    (ask,) = of(reads.ask("c", Get(4, 60, [LOW]), 0.0), Ask)
    assert reads.wake(FIRST_HEDGE - 0.01) == []
    (hedge,) = of(reads.wake(FIRST_HEDGE), Ask)
    assert hedge.replica != ask.replica
    answer = only(reads.reply(hedge.replica, GetReply(hedge.message.id, ReadStatus.OK, b"x"), 0.06))
    assert isinstance(answer, Answer)
    assert reads.reply(ask.replica, GetReply(ask.message.id, ReadStatus.OK, b"x"), 0.07) == [], "one answer only"
    for number in range(20):
        (next_ask,) = of(reads.ask("c", Get(number, 60, [LOW]), 0.1), Ask)
        assert next_ask.replica == hedge.replica
        reads.reply(hedge.replica, GetReply(next_ask.message.id, ReadStatus.OK, b"x"), 0.1)
    assert reads.hedged == 1
    (next_ask,) = of(reads.ask("c", Get(9, 60, [LOW]), 0.1 + AVOID_SECONDS), Ask)
    assert next_ask.replica == ask.replica, "later it gets another chance"
    (again,) = of(reads.wake(0.1 + AVOID_SECONDS + 10 * FIRST_HEDGE), Ask)
    reads.reply(again.replica, GetReply(again.message.id, ReadStatus.OK, b"x"), 1.7)
    (next_ask,) = of(reads.ask("c", Get(9, 60, [LOW]), 0.7 + 2 * AVOID_SECONDS), Ask)
    assert next_ask.replica == hedge.replica, "each time later"


def test_a_dead_replica_costs_nothing_but_a_try_elsewhere() -> None:
    reads = reading()
    (ask,) = of(reads.ask("c", Get(4, 60, [LOW]), 0.0), Ask)
    (again,) = of(reads.down(ask.replica, 0.0), Ask)
    assert again.replica != ask.replica
    assert of(reads.down(again.replica, 0.0), Ask) == []
    assert of(reads.wake(RETRY_SECONDS), Ask) == []
    (back,) = of(reads.up(ask.replica, RETRY_SECONDS) + reads.wake(3 * RETRY_SECONDS), Ask)
    assert back.replica == ask.replica


@pytest.mark.parametrize("status", [ReadStatus.NOT_FRESH, ReadStatus.BELOW_HORIZON, ReadStatus.ERROR])
def test_what_no_replica_can_answer_is_refused_once_all_were_asked(status: ReadStatus) -> None:
    reads = reading()
    (ask,) = of(reads.ask("c", Get(4, 60, [LOW]), 0.0), Ask)
    (again,) = of(reads.reply(ask.replica, GetReply(ask.message.id, status, b""), 0.01), Ask)
    assert again.replica != ask.replica
    answer = only(reads.reply(again.replica, GetReply(again.message.id, status, b""), 0.02))
    assert answer == Answer("c", GetReply(4, status, b""))


def test_an_old_map_costs_a_retry_and_not_held_never_leaves_the_gateway() -> None:
    reads = reading()
    (ask,) = of(reads.ask("c", Get(4, 60, [LOW]), 0.0), Ask)
    effects = reads.reply(ask.replica, GetReply(ask.message.id, ReadStatus.NOT_HELD, b""), 0.0)
    (ask,) = of(effects, Ask)  # the other replica may know better
    assert reads.reply(ask.replica, GetReply(ask.message.id, ReadStatus.NOT_HELD, b""), 0.0) == []
    moved = partition(2)
    shards = [Range(b"", KEYSPACE_END, 1)]
    reads.new_map(PartitionMap(2, [0, 1], moved.keys, moved.shards, shards))
    (ask,) = of(reads.wake(RETRY_SECONDS), Ask)
    assert ask.replica.startswith("s1")
    answer = only(reads.reply(ask.replica, GetReply(ask.message.id, ReadStatus.OK, b"x"), 0.1))
    assert isinstance(answer, Answer)


def test_without_any_replica_a_read_fails_in_the_end() -> None:
    reads = Reads(partition())
    assert of(reads.ask("c", Get(4, 60, [LOW]), 0.0), Answer) == []
    at = 0.0
    answers: list[Effect] = []
    while not answers and at < 2 * PATIENCE:
        assert reads.wake_at is not None
        at = reads.wake_at
        answers = reads.wake(at)
    assert PATIENCE < at < PATIENCE + 0.1
    assert answers == [Answer("c", GetReply(4, ReadStatus.NOT_FRESH, b""))]


# -------------------------------------------------------------------------------------------------------------- barrier


def test_a_schema_change_waits_for_all_hosts() -> None:
    barrier = Barrier()
    reply = CommitReply(b"t" * 16, Outcome.COMMITTED, 60, "")
    assert barrier.begin("c", reply, 4, 0.0) == [Answer("c", reply, 60)], "there is nobody else"
    barrier.up("b")
    barrier.up("a")
    effects = barrier.begin("c", reply, 4, 0.0)
    assert effects == [TellPeer("a", CatalogWait(1, 4, 60)), TellPeer("b", CatalogWait(1, 4, 60))]
    assert barrier.done("a", 1) == []
    assert barrier.done("a", 1) == []
    assert barrier.done("b", 1) == [Answer("c", reply, 60)]


def test_a_host_that_is_gone_or_stalled_does_not_hold_up_schema_changes() -> None:
    barrier = Barrier()
    reply = CommitReply(b"t" * 16, Outcome.COMMITTED, 60, "")
    barrier.up("a")
    barrier.begin("c", reply, 4, 0.0)
    assert barrier.down("a") == [Answer("c", reply, 60)]
    barrier.up("a")
    barrier.begin("c", reply, 5, 1.0)
    assert barrier.wake(0.9 + BARRIER_SECONDS) == []
    assert barrier.wake(1.0 + BARRIER_SECONDS) == [Answer("c", reply, 60)]
    effects = barrier.begin("c", reply, 6, 4.0)
    assert Answer("c", reply, 60) in effects, "it costs that time once"
    barrier.done("a", 2)
    assert of(barrier.begin("c", reply, 7, 5.0), Answer) == []


def test_sequences_are_recognised() -> None:
    assert touches_sequences(commit([LOW, relation_prefix(SystemRelation.SEQUENCES) + b"x"]))
    assert not touches_sequences(commit([LOW]))
