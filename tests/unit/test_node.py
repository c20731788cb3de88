"""One adjudicator among several, rule by rule (A1-A8, M1-M5, W1, W4, Q2). What they do together: tests/simulation."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from australis.adjudicator.node import STRIDE, Alarm, Append, Effect, Node, Reply, Send, Settings
from australis.adjudicator.recovery import ClaimBody, Recovered, Recovery
from australis.errors import JournalError
from australis.journal.record import NO_TXID, START, Entry, Kind, Position
from australis.keyspace import KEYSPACE_END, ddl_key, relation_id, relation_prefix
from australis.partition_map import PartitionMap, Range, Shard
from australis.protocol.messages import (
    Abandon,
    Ballot,
    CommitReply,
    Decided,
    Heartbeat,
    HeartbeatRequest,
    JournalBegins,
    Mode,
    ModeFlag,
    Outcome,
    Prepare,
    RangeAcquired,
    RangeMove,
    Resolve,
    ResolveReply,
    Vote,
    WideCommit,
    encode,
)

REL = relation_id(5, 16385)
T = 1_000_000
SETTINGS = Settings(vote=T, hold=10 * T, resend=T, open=4, promises=4, parked=2, readers=2, floors=2)
FLOOR = 1_000 * T
MIDDLE = relation_prefix(REL) + b"\x80"
KEY_SHARE, NO_KEY_UPDATE, UPDATE = int(Mode.KEY_SHARE), int(Mode.NO_KEY_UPDATE), int(Mode.UPDATE)
ERROR = 1000


def mine(number: int) -> bytes:
    """A key of adjudicator 0."""
    return relation_prefix(REL) + bytes([number])


def theirs(number: int) -> bytes:
    """A key of adjudicator 1."""
    return MIDDLE + bytes([number])


PARTITION = PartitionMap(
    1,
    [0, 1, 2],
    [Range(b"", MIDDLE, 0), Range(MIDDLE, KEYSPACE_END, 1)],
    [Shard(0, ["a"])],
    [Range(b"", KEYSPACE_END, 0)],
)


class Host:
    """A node, its clock, and a journal that acknowledges when told."""

    def __init__(self, me: int = 0, **changes: Any) -> None:
        found: dict[str, Any] = {
            "generation": 3,
            "position": Position(7, 3, b"c" * 16),
            "floor": FLOOR,
            "ddl": 5,
            "known": [],
            "known_floor": 0,
            "ranges": PARTITION.owned(me),
            "released": {},
            "acquired": {},
        }
        settings = changes.pop("settings", SETTINGS)
        self.node = Node(me, Recovered(**(found | changes)), PARTITION, settings)
        self.time = FLOOR + 10 * T
        self.unacknowledged: list[Append] = []
        self.sequence = 7

    @property
    def now(self) -> tuple[int, int]:
        return self.time - ERROR, self.time + ERROR

    def keep(self, effects: list[Effect]) -> list[Any]:
        """Put appends into the journal; return messages and alarms."""
        self.unacknowledged += [effect for effect in effects if isinstance(effect, Append)]
        return [effect for effect in effects if not isinstance(effect, Append)]

    def commit(self, message: WideCommit, client: str = "client") -> list[Any]:
        return self.keep(self.node.commit(client, message, encode(message), self.now))

    def receive(self, message: Any, client: str = "peer") -> list[Any]:
        return self.keep(self.node.receive(client, message, self.now))

    def durable(self, count: int | None = None) -> list[Any]:
        """Acknowledge the oldest records."""
        count = len(self.unacknowledged) if count is None else count
        del self.unacknowledged[:count]
        positions = []
        for _ in range(count):
            self.sequence += 1
            positions.append(Position(self.sequence, 3, self.sequence.to_bytes(16, "big")))
        return self.keep(self.node.durable(positions, self.now))

    def wait(self, time: int) -> list[Any]:
        self.time += time
        return self.keep(self.node.wake(self.now))

    def with_horizon(self) -> Host:
        """H far enough for votes, by a commit of its own."""
        self.commit(request(self.time - 5000, (mine(100), NO_KEY_UPDATE)))
        self.durable()
        return self


_txid = iter(range(1, 1 << 40))


def request(tau_start: int, *keys: tuple[bytes, int], **changes: Any) -> WideCommit:
    fields: dict[str, Any] = {
        "generation": 3,
        "txid": next(_txid).to_bytes(16, "big"),
        "attempt": 1,
        "tau_start": tau_start,
        "flags": 0,
        "keys": [key for key, _ in keys],
        "modes": bytes(mode for _, mode in keys),
        "values": msgspec.Raw(msgspec.msgpack.encode([None for _ in keys])),
        "checks": [],
        "relations": [REL] if keys else [],
        "ddl": None,
        "drops": [],
    }
    return WideCommit(**(fields | changes))


def prepare(tau_start: int, *keys: tuple[bytes, int], **changes: Any) -> Prepare:
    fields: dict[str, Any] = {
        "txid": next(_txid).to_bytes(16, "big"),
        "attempt": 1,
        "tau_start": tau_start,
        "keys": [key for key, _ in keys],
        "modes": bytes(mode for _, mode in keys),
        "checks": [],
        "relations": [REL] if keys else [],
        "changed": [],
        "depends": [],
        "scans": [],
        "parts": [],
    }
    return Prepare(**(fields | changes))


def outcome(effects: list[Any]) -> Outcome:
    (reply,) = [effect for effect in effects if isinstance(effect, Reply)]
    assert isinstance(reply.message, CommitReply)
    return Outcome(reply.message.outcome)


def vote(effects: list[Any]) -> Vote:
    (reply,) = effects
    assert isinstance(reply, Reply) and isinstance(reply.message, Vote)
    return reply.message


def sent(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def yes(host: Host, message: Prepare) -> Vote:
    answer = vote(host.receive(message))
    assert answer.ballot == Ballot.YES
    return answer


# --------------------------------------------------------------------------------------------- one range: A1-A8, Q2


def test_a1_snapshots_below_the_floor_are_refused_by_leader_and_participant() -> None:
    host = Host()
    assert outcome(host.commit(request(FLOOR - 1, (mine(1), UPDATE)))) is Outcome.REFUSED
    assert vote(host.receive(prepare(FLOOR - 1, (mine(1), UPDATE)))).ballot == Ballot.FLOOR
    host.commit(request(FLOOR, (mine(1), UPDATE)))
    assert [append.kind for append in host.unacknowledged] == [Kind.TRANSACTION]


def test_a3_times_increase_are_above_the_clock_and_belong_to_one_adjudicator() -> None:
    for me in (0, 1):
        host = Host(me)
        keys = mine if me == 0 else theirs
        for number in range(5):
            host.commit(request(host.time - 5000, (keys(number), UPDATE)))
        taus = [append.tau for append in host.unacknowledged]
        assert taus == sorted(set(taus))
        assert all(tau >= host.now[0] and tau % STRIDE == me for tau in taus)


def test_a3_a_commit_is_held_until_its_snapshot_has_passed() -> None:
    host = Host()
    message = request(host.time + ERROR, (mine(1), UPDATE))
    assert host.commit(message) == []
    assert host.unacknowledged == []
    assert host.node.wake_at == message.tau_start + 1
    host.wait(2 * ERROR)
    assert host.unacknowledged == []
    host.wait(1)
    assert host.unacknowledged[0].tau > message.tau_start


def test_a3_a_snapshot_far_in_the_future_is_refused_and_alarmed() -> None:
    host = Host()
    effects = host.commit(request(host.now[1] + SETTINGS.hold + 1, (mine(1), UPDATE)))
    assert outcome(effects) is Outcome.REFUSED
    assert any(isinstance(effect, Alarm) for effect in effects)
    effects = host.receive(prepare(host.now[1] + SETTINGS.hold + 1, (mine(1), UPDATE)))
    assert any(isinstance(effect, Alarm) for effect in effects)


def test_a6_the_answer_follows_durability_in_order() -> None:
    host = Host()
    first, second = (request(host.time - 5000, (mine(number), UPDATE)) for number in (1, 2))
    assert host.commit(first) == host.commit(second) == []
    (reply,) = host.durable(1)
    assert (reply.message.txid, reply.message.outcome) == (first.txid, Outcome.COMMITTED)
    (reply,) = host.durable(1)
    assert reply.message.txid == second.txid


def test_a8_requests_are_decided_once_and_by_the_generation_they_are_for() -> None:
    host = Host()
    message = request(host.time - 5000, (mine(1), UPDATE))
    assert host.commit(message) == []
    assert host.commit(message) == []  # pending: silence
    assert len(host.unacknowledged) == 1
    tau = host.durable()[0].message.tau
    assert host.commit(message)[0].message.tau == tau
    assert host.commit(request(host.time - 5000, (mine(2), UPDATE), generation=4)) == []
    assert outcome(host.commit(request(host.time - 5000, (mine(2), UPDATE), generation=2))) is Outcome.REFUSED
    assert host.commit(request(host.time - 5000, (mine(2), UPDATE), leader=1)) == []
    assert host.unacknowledged == []


def test_a8_an_older_generation_that_may_have_committed_it_is_not_answered_for() -> None:
    host = Host(known_floor=FLOOR + T)
    assert host.commit(request(FLOOR, (mine(2), UPDATE), generation=2)) == []


def test_q2_resolve_finds_or_kills() -> None:
    host = Host()
    message = request(host.time - 5000, (mine(1), UPDATE))
    (reply,) = host.receive(Resolve(message.txid, message.tau_start, 3))
    assert reply.message == ResolveReply(message.txid, Outcome.KILLED, 0)
    assert outcome(host.commit(message)) is Outcome.REFUSED
    other = request(host.time - 5000, (mine(1), UPDATE))
    host.commit(other)
    (reply,) = host.receive(Resolve(other.txid, other.tau_start, 3))
    assert reply.message.outcome == Outcome.PENDING
    tau = host.durable()[0].message.tau
    (reply,) = host.receive(Resolve(other.txid, other.tau_start, 3))
    assert reply.message == ResolveReply(other.txid, Outcome.COMMITTED, tau)


def test_q2_an_older_generation_or_another_adjudicator_kills_nothing() -> None:
    host = Host()
    txid = bytes(16)
    (reply,) = host.receive(Resolve(txid, host.time, 4))
    assert reply.message.outcome == Outcome.PENDING
    assert host.receive(Resolve(txid, host.time, 3, leader=1)) == []


def test_q2_a_transaction_that_waits_for_votes_is_killed_for_good() -> None:
    host = Host()
    message = request(host.time - 5000, (mine(1), UPDATE), (theirs(1), UPDATE))
    (asked,) = sent(host.commit(message), Prepare)
    effects = host.receive(Resolve(message.txid, message.tau_start, 3))
    assert sent(effects, Abandon) == [Abandon(message.txid, 1)]
    tau = host.time
    assert host.receive(Vote(1, asked.txid, 1, Ballot.YES, tau, tau + T)) == []
    assert host.unacknowledged == []


def test_q10_too_many_undecided_transactions_are_refused() -> None:
    host = Host()
    for number in range(SETTINGS.open):
        host.commit(request(host.time - 5000, (mine(number), UPDATE), (theirs(number), UPDATE)))
    assert outcome(host.commit(request(host.time - 5000, (mine(9), UPDATE)))) is Outcome.REFUSED


# ---------------------------------------------------------------------------------------------------- A2, M1-M5


def test_m3_the_whole_transaction_is_one_record_of_the_leader() -> None:
    host = Host()
    message = request(host.time - 5000, (mine(1), UPDATE), (theirs(1), UPDATE))
    (asked,) = sent(host.commit(message), Prepare)
    assert (asked.keys, asked.modes, asked.tau_start) == ([theirs(1)], bytes([UPDATE]), message.tau_start)
    assert host.unacknowledged == []
    tau = host.time + T // 2
    host.receive(Vote(1, message.txid, 1, Ballot.YES, tau, tau + T))
    (record,) = host.unacknowledged
    assert record.tau >= tau and record.body == encode(message)
    effects = host.durable()
    assert sent(effects, Decided) == [Decided(message.txid, 1, record.tau)]
    assert outcome(effects) is Outcome.COMMITTED


def test_m1_the_leaders_own_keys_are_held_while_it_waits() -> None:
    host = Host().with_horizon()
    host.commit(request(host.time - 5000, (mine(1), UPDATE), (theirs(1), UPDATE)))
    assert vote(host.receive(prepare(host.time, (mine(1), UPDATE)))).ballot == Ballot.BUSY
    assert host.commit(request(host.time - 5000, (mine(1), UPDATE))) == []  # tried again later
    assert host.unacknowledged == []


def test_m3_votes_of_another_attempt_and_late_ones_do_not_count() -> None:
    host = Host()
    message = request(host.time - 5000, (mine(1), UPDATE), (theirs(1), UPDATE))
    host.commit(message)
    effects = host.wait(2 * T)
    assert sent(effects, Abandon) == [Abandon(message.txid, 1)]
    effects = host.wait(T)
    (asked,) = sent(effects, Prepare)
    assert asked.attempt == 2
    tau = host.time
    host.receive(Vote(1, message.txid, 1, Ballot.YES, tau, tau + T))
    assert host.unacknowledged == []
    host.receive(Vote(1, message.txid, 2, Ballot.YES, tau, host.now[0] - 1))  # its tau_max has passed
    assert host.unacknowledged == []


def test_m3_attempts_end() -> None:
    host = Host()
    host.commit(request(host.time - 5000, (mine(1), UPDATE), (theirs(1), UPDATE)))
    effects: list[Any] = []
    for _ in range(20):
        effects += host.wait(T)
    assert len(sent(effects, Prepare)) == SETTINGS.attempts - 1
    assert outcome(effects) is Outcome.REFUSED
    assert host.node.undecided == 0 and len(host.node.promises) == 0


@pytest.mark.parametrize(
    ("ballot", "expected"),
    [
        (Ballot.CONFLICT, Outcome.CONFLICT),
        (Ballot.SCHEMA_CONFLICT, Outcome.SCHEMA_CONFLICT),
        (Ballot.FLOOR, Outcome.REFUSED),
        (Ballot.STALE, Outcome.REFUSED),
    ],
)
def test_m3_one_no_ends_the_transaction(ballot: Ballot, expected: Outcome) -> None:
    host = Host()
    message = request(host.time - 5000, (mine(1), UPDATE), (theirs(1), UPDATE))
    host.commit(message)
    effects = host.receive(Vote(1, message.txid, 1, ballot, 0, 0))
    assert outcome(effects) is expected
    assert sent(effects, Abandon) == [Abandon(message.txid, 1)]
    host.commit(request(host.time - 5000, (mine(1), UPDATE)))
    assert len(host.unacknowledged) == 1  # nothing is held any more


def test_a2_a_vote_waits_until_h_is_acknowledged() -> None:
    host = Host()
    message = prepare(host.time - 5000, (mine(1), UPDATE))
    assert host.receive(message) == []
    (record,) = host.unacknowledged
    assert record.kind == Kind.HORIZON and record.horizon >= host.now[0] + 2 * T
    answer = vote(host.durable())
    assert answer.ballot == Ballot.YES
    assert answer.tau_max <= record.horizon
    host.time += 3 * T
    later = prepare(host.time - 5000, (mine(2), UPDATE))
    assert host.receive(later) == []  # H has passed: renewed on demand


def test_m2_a_promise_conflicts_with_older_snapshots_and_has_no_timer() -> None:
    host = Host().with_horizon()
    promised = yes(host, prepare(host.time - 5000, (mine(1), UPDATE)))
    assert yes(host, prepare(host.time, (mine(2), UPDATE))).tau_max > 0
    assert vote(host.receive(prepare(host.time - 5000, (mine(1), KEY_SHARE)))).ballot == Ballot.BUSY
    host.time += 4 * T
    host.with_horizon()
    assert vote(host.receive(prepare(promised.tau_max - 1, (mine(1), KEY_SHARE)))).ballot == Ballot.BUSY
    assert vote(host.receive(prepare(promised.tau_max, (mine(1), KEY_SHARE)))).ballot == Ballot.YES


def test_m2_compatible_modes_pass() -> None:
    host = Host().with_horizon()
    yes(host, prepare(host.time - 5000, (mine(1), KEY_SHARE)))
    yes(host, prepare(host.time - 5000, (mine(1), NO_KEY_UPDATE)))
    assert vote(host.receive(prepare(host.time - 5000, (mine(1), UPDATE)))).ballot == Ballot.BUSY


def test_m2_the_same_attempt_gets_the_same_vote() -> None:
    host = Host().with_horizon()
    message = prepare(host.time - 5000, (mine(1), UPDATE))
    assert yes(host, message) == yes(host, message)
    again = yes(host, msgspec.structs.replace(message, attempt=2))
    assert again.attempt == 2
    assert host.receive(message) == []  # attempt 1 is over
    host.receive(Abandon(message.txid, 1))
    assert len(host.node.promises) == 1
    host.receive(Abandon(message.txid, 2))
    assert len(host.node.promises) == 0


def test_m2_promises_without_an_outcome_become_entries_at_tau_max() -> None:
    host = Host().with_horizon()
    promised = yes(host, prepare(host.time - 5000, (mine(1), UPDATE)))
    host.time += 100 * T
    host.with_horizon()
    yes(host, prepare(host.time - 5000, (mine(2), UPDATE)))
    assert len(host.node.promises) == 1
    assert vote(host.receive(prepare(promised.tau_max - 1, (mine(1), UPDATE)))).ballot == Ballot.CONFLICT
    yes(host, prepare(promised.tau_max, (mine(1), UPDATE)))


def test_m4_the_outcome_replaces_the_promise_and_raises_the_clock() -> None:
    host = Host().with_horizon()
    message = prepare(host.time - 5000, (mine(1), UPDATE))
    promised = yes(host, message)
    tau = promised.tau + T // 2
    host.receive(Decided(message.txid, 1, tau))
    assert vote(host.receive(prepare(tau - 1, (mine(1), UPDATE)))).ballot == Ballot.CONFLICT
    host.commit(request(host.time - 5000, (mine(3), UPDATE)))
    assert host.unacknowledged[0].tau > tau


def test_m4_a_late_outcome_does_not_hide_a_later_lock() -> None:
    host = Host().with_horizon()
    message = prepare(host.time - 5000, (mine(1), KEY_SHARE))
    promised = yes(host, message)
    host.commit(request(host.time - 5000, (mine(1), KEY_SHARE | ModeFlag.LOCK_ONLY), (mine(2), UPDATE)))
    later = host.unacknowledged[0].tau
    assert later > promised.tau
    host.receive(Decided(message.txid, 1, promised.tau))
    host.time = later + 10 * ERROR
    assert outcome(host.commit(request(later - 1, (mine(1), UPDATE)))) is Outcome.CONFLICT


def test_m4_an_outcome_far_in_the_future_is_not_believed() -> None:
    host = Host()
    (alarm,) = host.receive(Decided(bytes(16), 1, host.now[1] + SETTINGS.hold + 1))
    assert isinstance(alarm, Alarm)
    host.commit(request(host.time - 5000, (mine(1), UPDATE)))
    assert host.unacknowledged[0].tau < host.now[1]


def test_m5_reads_are_promised_too() -> None:
    host = Host().with_horizon()
    read = prepare(host.time - 5000, relations=[], checks=[(mine(1), mine(9), int(Mode.SHARE))])
    yes(host, read)
    assert vote(host.receive(prepare(host.time - 5000, (mine(5), NO_KEY_UPDATE)))).ballot == Ballot.BUSY
    yes(host, prepare(host.time - 5000, (mine(9), NO_KEY_UPDATE)))
    host.receive(Decided(read.txid, 1, host.node.core.last + 5 * STRIDE))
    raised = host.node.core.last
    assert yes(host, prepare(host.time - 5000, (mine(5), NO_KEY_UPDATE))).tau > raised


def test_m5_a_scan_of_an_index_validates_the_last_write_of_its_relation() -> None:
    host = Host().with_horizon()
    scan = prepare(host.time - 9000, relations=[], scans=[REL], parts=[(mine(0), mine(9))])
    assert vote(host.receive(scan)).ballot == Ballot.CONFLICT
    host.time += 10 * ERROR
    yes(host, msgspec.structs.replace(scan, tau_start=host.time))
    assert vote(host.receive(prepare(host.time - 5000, (mine(5), NO_KEY_UPDATE)))).ballot == Ballot.BUSY


# ------------------------------------------------------------------------------------------------------------- DDL


def ddl(host: Host, n: int, depends: list[int] | None = None, **changes: Any) -> WideCommit:
    return request(host.time - 5000, (ddl_key(n), UPDATE), relations=[], ddl=(n, [REL], depends or []), **changes)


def test_a5_ddl_asks_every_owner_of_a_part() -> None:
    host = Host()
    (asked,) = sent(host.commit(ddl(host, 6)), Prepare)  # no parts given: everybody
    assert (asked.changed, asked.parts, asked.keys) == ([REL], [(MIDDLE, KEYSPACE_END)], [])
    host = Host()
    host.commit(ddl(host, 6, parts=[(mine(0), mine(1))]))
    assert len(host.unacknowledged) == 1  # all parts are here


def test_a5_a_writer_with_an_older_snapshot_is_refused_after_ddl_not_before() -> None:
    host = Host()
    host.commit(ddl(host, 6, parts=[(mine(0), mine(1))]))
    tau = host.unacknowledged[0].tau
    assert outcome(host.commit(request(host.time - 5000, (mine(1), UPDATE)))) is Outcome.SCHEMA_CONFLICT
    host.time = tau + 10 * ERROR
    host.commit(request(tau, (mine(1), UPDATE)))
    assert len(host.unacknowledged) == 2
    host.commit(ddl(host, 7, parts=[(mine(0), mine(1))]))  # written meanwhile, which it does not depend on
    assert len(host.unacknowledged) == 3


def test_a5_a_promised_writer_stops_ddl_which_may_get_the_earlier_time() -> None:
    host = Host().with_horizon()
    yes(host, prepare(host.time - 5000, (mine(1), UPDATE)))
    asked = prepare(host.time - 5000, changed=[REL], parts=[(mine(0), mine(9))])
    assert vote(host.receive(asked)).ballot == Ballot.BUSY


def test_a5_writers_wait_for_ddl_that_waits_for_promises() -> None:
    host = Host().with_horizon()
    writer = prepare(host.time - 5000, (mine(1), UPDATE))
    yes(host, writer)
    asked = prepare(host.time - 5000, changed=[REL], parts=[(mine(0), mine(9))])
    assert vote(host.receive(asked)).ballot == Ballot.BUSY
    assert vote(host.receive(prepare(host.time - 5000, (mine(2), UPDATE)))).ballot == Ballot.BUSY
    yes(host, prepare(host.time - 5000, (mine(3), UPDATE), relations=[REL + 1]))  # of another relation
    later = request(host.time - 5000, (mine(4), UPDATE))
    assert host.commit(later) == []  # nor one that is led here
    host.receive(Decided(writer.txid, 1, host.time))
    host.receive(Abandon(asked.txid, 1))
    yes(host, msgspec.structs.replace(asked, attempt=2))
    # another adjudicator was busy: still nobody gets in between
    host.receive(Abandon(asked.txid, 2))
    assert vote(host.receive(prepare(host.time - 5000, (mine(2), UPDATE)))).ballot == Ballot.BUSY
    tau = yes(host, msgspec.structs.replace(asked, attempt=3)).tau
    host.receive(Decided(asked.txid, 3, tau))
    host.time = tau + 10 * ERROR
    host.with_horizon()
    yes(host, prepare(tau, (mine(2), UPDATE)))
    assert outcome(host.wait(T)) is Outcome.SCHEMA_CONFLICT
    assert not host.node._gates


def test_a5_writers_do_not_wait_for_ddl_that_does_not_come_again() -> None:
    host = Host().with_horizon()
    yes(host, prepare(host.time - 5000, (mine(1), UPDATE)))
    for _ in range(2 * SETTINGS.gates):
        asked = prepare(host.time - 5000, changed=[REL], parts=[(mine(0), mine(9))])
        assert vote(host.receive(asked)).ballot == Ballot.BUSY
    assert len(host.node._gates) == SETTINGS.gates
    later = request(host.time - 5000, (mine(4), UPDATE))
    assert host.commit(later) == []
    assert host.wait(T // 16 - ERROR) == []
    assert not host.unacknowledged
    host.wait(T)
    host.wait(T)
    assert [record.txid for record in host.unacknowledged if record.kind == Kind.TRANSACTION] == [later.txid]


def test_a5_ddl_whose_result_depends_on_rows_checks_the_last_write() -> None:
    host = Host().with_horizon()
    asked = prepare(host.time - 9000, changed=[REL], depends=[REL], parts=[(mine(0), mine(9))])
    assert vote(host.receive(asked)).ballot == Ballot.CONFLICT
    yes(host, msgspec.structs.replace(asked, depends=[]))


def test_a5_who_does_not_own_all_parts_says_so() -> None:
    host = Host()
    asked = prepare(host.time - 5000, changed=[REL], parts=[(mine(0), theirs(0))])
    assert vote(host.receive(asked)).ballot == Ballot.STALE


def test_q5_ddl_records_have_no_gaps_and_are_led_by_the_owner_of_the_log() -> None:
    host = Host()
    assert outcome(host.commit(ddl(host, 7, parts=[(mine(0), mine(1))]))) is Outcome.SCHEMA_CONFLICT
    other = Host(1)
    effects = other.commit(
        request(other.time - 5000, (theirs(1), UPDATE), ddl=(6, [REL], []), parts=[(MIDDLE, KEYSPACE_END)])
    )
    assert outcome(effects) is Outcome.REFUSED


# -------------------------------------------------------------------------------------------------- W1: heartbeats


def heartbeat(effects: list[Any]) -> Heartbeat:
    (reply,) = effects
    assert isinstance(reply, Reply) and isinstance(reply.message, Heartbeat)
    return reply.message


def test_w1_h_stays_below_what_is_not_acknowledged() -> None:
    host = Host().with_horizon()
    host.commit(request(host.time - 5000, (mine(1), UPDATE)))
    tau = host.unacknowledged[0].tau
    host.time += 10 * ERROR
    assert heartbeat(host.receive(HeartbeatRequest(tau - 1))).h == tau - 1
    assert host.receive(HeartbeatRequest(tau)) == []
    effects = host.durable()
    (beat,) = [effect.message for effect in effects if isinstance(effect.message, Heartbeat)]
    assert beat.h >= tau and (beat.sequence, beat.hash) == host.node.position[::2]


def test_w1_h_stays_below_the_horizon_and_the_own_latest() -> None:
    host = Host()
    assert host.receive(HeartbeatRequest(host.time)) == []
    assert [record.kind for record in host.unacknowledged] == [Kind.HORIZON]
    assert heartbeat(host.durable()).h >= host.time
    assert host.receive(HeartbeatRequest(host.now[1] + 1)) == []
    assert heartbeat(host.wait(1)).h == host.now[1]
    assert host.receive(HeartbeatRequest(host.now[1] + SETTINGS.hold + 1)) == []
    assert host.node._readers == {}


def test_w1_no_time_at_or_below_a_heartbeat_is_issued() -> None:
    host = Host().with_horizon()
    beat = heartbeat(host.receive(HeartbeatRequest(host.now[1])))
    host.commit(request(host.time - 5000, (mine(1), UPDATE)))
    assert host.unacknowledged[0].tau > beat.h


def test_w1_readers_are_bounded() -> None:
    host = Host()
    for number in range(5):
        host.receive(HeartbeatRequest(host.time), f"reader {number}")
    assert len(host.durable()) == SETTINGS.readers


# ------------------------------------------------------------------------------------------------- W4: range moves


def move(host: Host, lo: bytes, hi: bytes, target: int = 1) -> list[Any]:
    refusal, effects = host.node.release(lo, hi, target, host.now)
    assert refusal == ""
    return host.keep(effects)


def test_w4_a_range_has_at_most_one_owner() -> None:
    old, new = Host().with_horizon(), Host(1)
    promised = yes(old, prepare(old.time - 5000, (mine(1), UPDATE)))
    move(old, mine(0), mine(9))
    assert outcome(old.commit(request(old.time - 5000, (mine(1), UPDATE)))) is Outcome.REFUSED
    (told,) = sent(old.durable(), RangeMove)
    assert (told.sequence, told.hash) == old.node.position[::2]
    assert told.floor >= promised.tau_max
    assert vote(new.receive(prepare(new.time, (mine(1), UPDATE)))).ballot == Ballot.STALE
    assert new.receive(told) == []
    assert vote(new.receive(prepare(new.time, (mine(1), UPDATE)))).ballot == Ballot.STALE  # not written down yet
    (reply,) = new.durable()
    assert reply.message == RangeAcquired(0, told.tau)
    new.time = old.time + 10 * T
    assert outcome(new.commit(request(told.floor - 1, (mine(1), UPDATE)))) is Outcome.REFUSED
    new.commit(request(told.floor, (mine(1), UPDATE)))
    assert [record.kind for record in new.unacknowledged] == [Kind.TRANSACTION]
    assert new.receive(told)[0].message == RangeAcquired(0, told.tau)  # told again
    old.receive(RangeAcquired(0, told.tau))
    assert old.node._released == {}


def test_w4_the_floor_of_an_acquired_range_is_only_its_own_until_there_are_many() -> None:
    new = Host(1)
    floor = new.time + 5 * T
    for number in range(3):
        new.receive(RangeMove(0, 1, new.time + number, mine(number), mine(number) + b"\xff", floor, -1, 9, bytes(16)))
    new.durable(2)
    assert vote(new.receive(prepare(new.time, (mine(0), UPDATE)))).ballot == Ballot.FLOOR
    new.commit(request(new.time - 5000, (theirs(0), UPDATE)))
    new.durable()
    assert outcome(new.commit(request(new.time - 5000, (theirs(1), UPDATE)))) is Outcome.REFUSED


def test_w4_own_undecided_transactions_in_the_range_end() -> None:
    host = Host()
    message = request(host.time - 5000, (mine(1), UPDATE), (theirs(1), UPDATE))
    host.commit(message)
    effects = move(host, mine(0), mine(9))
    assert outcome(effects) is Outcome.REFUSED
    host.receive(Vote(1, message.txid, 1, Ballot.YES, host.time, host.time + T))
    assert [record.kind for record in host.unacknowledged] == [Kind.RELEASE]


def test_w4_what_cannot_be_released() -> None:
    host = Host()
    assert "does not own" in host.node.release(mine(0), theirs(0), 1, host.now)[0]
    assert "cannot take" in host.node.release(mine(0), mine(1), 0, host.now)[0]
    assert "cannot take" in host.node.release(mine(0), mine(1), 9, host.now)[0]
    move(host, mine(0), mine(1))
    assert "not confirmed" in host.node.release(mine(1), mine(2), 1, host.now)[0]


def test_w4_the_ddl_log_moves_with_its_last_number() -> None:
    old, new = Host(), Host(1, ddl=0)
    move(old, b"", relation_prefix(REL))
    (told,) = sent(old.durable(), RangeMove)
    assert told.ddl == 5
    new.receive(told)
    new.durable()
    new.time = old.time + 10 * T
    new.commit(ddl(new, 6, parts=[(MIDDLE, KEYSPACE_END)]))
    assert [record.kind for record in new.unacknowledged] == [Kind.TRANSACTION]


# ------------------------------------------------------------------------------------- take-over, hand-over, births


def test_hand_over_lowers_h_and_stops() -> None:
    host = Host().with_horizon()
    promised = yes(host, prepare(host.time - 5000, (mine(1), UPDATE)))
    host.keep(host.node.hand_over(host.now))
    (record,) = host.unacknowledged
    assert promised.tau_max <= record.horizon < host.now[0] + 2 * T
    assert outcome(host.commit(request(host.time - 5000, (mine(2), UPDATE)))) is Outcome.REFUSED
    assert vote(host.receive(prepare(host.time - 5000, (mine(2), UPDATE)))).ballot == Ballot.BUSY
    assert host.receive(HeartbeatRequest(host.time)) == []


def test_w2_a_new_journal_is_announced_with_the_time_of_its_record() -> None:
    host = Host()
    host.keep(host.node.begin_journal("control", 4, host.now))
    tau = host.unacknowledged[0].tau
    (reply,) = host.durable()
    assert reply.message == JournalBegins(4, tau)


def entry(kind: Kind, tau: int, horizon: int, body: bytes = b"", sequence: int = 1) -> Entry:
    return Entry(START, Position(sequence, 1, bytes(16)), kind, 0, tau, horizon, NO_TXID, body)


def test_a1_the_floor_covers_times_h_and_acquired_ranges() -> None:
    recovery = Recovery([(b"", MIDDLE)], born=5)
    assert recovery.floor == 5
    recovery.add(entry(Kind.TRANSACTION, 10, 50))
    assert recovery.floor == 50
    recovery.add(entry(Kind.HORIZON, 20, 25))  # a planned hand-over
    assert recovery.floor == 25
    acquired = RangeMove(1, 0, 15, MIDDLE, KEYSPACE_END, 70, 9, 3, bytes(16))
    recovery.add(entry(Kind.ACQUIRE, 30, 40, encode(acquired)))
    assert recovery.floor == 70
    recovery.add(entry(Kind.RELEASE, 31, 40, encode(RangeMove(0, 1, 31, mine(0), mine(1), 0, -1, 0, bytes(16)))))
    found = recovery.claimed(Position(9, 2, bytes(16)))
    assert found.ranges == [(b"", mine(0)), (mine(1), KEYSPACE_END)]
    assert (found.ddl, found.acquired, list(found.released)) == (9, {1: 15}, [1])
    # a claim carries all of it
    again = Recovery([])
    again.add(entry(Kind.CLAIM, 70, 70, recovery.claim_body()))
    repeated = again.claimed(Position(9, 2, bytes(16)))
    assert (repeated.floor, repeated.ranges, repeated.ddl) == (found.floor, found.ranges, found.ddl)
    assert (repeated.acquired, repeated.released) == (found.acquired, found.released)


def test_q2_what_a_trimmed_journal_no_longer_holds_is_not_denied() -> None:
    """A commit from before the oldest record may have happened: PENDING, never KILLED."""
    before = Position(7, 1, b"p" * 16)
    recovery = Recovery([])
    checkpoint = entry(Kind.HORIZON, 100, 120, recovery.claim_body(), 8)._replace(previous=before)
    recovery.add(checkpoint)
    recovered = recovery.claimed(Position(9, 2, bytes(16)))
    assert recovered.known_floor == 100
    core = Node(0, recovered, PARTITION).core
    assert core.resolve(b"t" * 16, 50)[0] is Outcome.PENDING
    assert core.resolve(b"t" * 16, 100)[0] is Outcome.KILLED
    whole = Recovery([])  # one that begins with its first record denies what it does not hold
    whole.add(entry(Kind.HORIZON, 100, 120))
    assert whole.claimed(Position(9, 2, bytes(16))).known_floor == 0


def test_w4_a_checkpoint_carries_floors_of_acquired_ranges() -> None:
    recovery = Recovery([])
    body = msgspec.msgpack.encode(ClaimBody(3, [(b"", MIDDLE)], [], {1: 15}, 70))
    recovery.add(entry(Kind.HORIZON, 30, 40, body))
    assert (recovery.floor, recovery.ddl, recovery.ranges.list()) == (70, 3, [(b"", MIDDLE)])


def test_recovery_refuses_bodies_that_it_cannot_read() -> None:
    with pytest.raises(JournalError, match="record 1 of the journal cannot be read"):
        Recovery([]).add(entry(Kind.ACQUIRE, 1, 1, b"\xc1"))
