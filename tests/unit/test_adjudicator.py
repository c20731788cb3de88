"""Rules A1, A3-A5, A8, Q2 and T3 of the adjudicator, and its conflict table against a model without bounds."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from australis._native import decide_plain, newer_key, note_keys
from australis.adjudicator.adjudicator import Action, Adjudicator, Verdict
from australis.adjudicator.conflict_table import CONFLICTS, LARGE_WRITE_SET, ConflictTable
from australis.errors import ProtocolError
from australis.keyspace import ddl_key, relation_id, relation_prefix
from australis.protocol.messages import Commit, Mode, ModeFlag, Outcome, check_commit, client_decoder, encode

REL = relation_id(5, 16385)
GENERATION = 3
FLOOR = 1000


def key(number: int, relation: int = REL) -> bytes:
    return relation_prefix(relation) + number.to_bytes(8, "big")


_txid = iter(range(1, 1 << 40))


def request(tau_start: int, *keys: tuple[bytes, int], **changes: Any) -> Commit:
    fields: dict[str, Any] = {
        "generation": GENERATION,
        "txid": next(_txid).to_bytes(16, "big"),
        "attempt": 1,
        "tau_start": tau_start,
        "flags": 0,
        "keys": [item[0] for item in keys],
        "modes": bytes(item[1] for item in keys),
        "values": msgspec.Raw(b"\x90"),
        "checks": [],
        "relations": [],
        "ddl": None,
        "drops": [],
    }
    return Commit(**(fields | changes))


def adjudicator(**changes: Any) -> Adjudicator:
    arguments: dict[str, Any] = {
        "generation": GENERATION,
        "floor": FLOOR,
        "issued": FLOOR,
        "ddl": 5,
        "known": [],
        "known_floor": 0,
    }
    return Adjudicator(**(arguments | changes))


def committed(a: Adjudicator, commit: Commit, now: int = 0) -> int:
    verdict = a.commit(commit, now)
    assert (verdict.action, verdict.outcome) == (Action.APPEND, Outcome.COMMITTED), verdict
    a.durable(commit.txid)
    return verdict.tau


def outcome(a: Adjudicator, commit: Commit, now: int = 0) -> Outcome:
    verdict = a.commit(commit, now)
    if verdict.action is Action.APPEND:
        a.durable(commit.txid)
    return verdict.outcome


# ------------------------------------------------------------------------------------------------ A1, A3: times


def test_a1_snapshots_below_the_floor_are_refused() -> None:
    a = adjudicator()
    assert outcome(a, request(FLOOR - 1, (key(1), 3))) is Outcome.REFUSED
    assert outcome(a, request(FLOOR, (key(1), 3))) is Outcome.COMMITTED


def test_a3_times_increase_whatever_the_clock_says() -> None:
    a = adjudicator()
    times = [committed(a, request(FLOOR, (key(i), 3)), now) for i, now in enumerate([5000, 4000, 4000, 9000, 0])]
    assert times == [5000, 5001, 5002, 9000, 9001]


def test_t3_a_generation_starts_above_everything_that_was_issued() -> None:
    a = adjudicator(issued=8000)
    assert committed(a, request(FLOOR, (key(1), 3)), 10) == 8001


def test_a3_a_snapshot_from_the_future_is_refused() -> None:
    a = adjudicator()
    assert outcome(a, request(FLOOR + 1, (key(1), 3)), FLOOR) is Outcome.REFUSED
    assert outcome(a, request(FLOOR + 10**12, (key(1), 3)), FLOOR) is Outcome.REFUSED
    assert a.last == FLOOR, "the time is never bumped to a snapshot's"


# ------------------------------------------------------------------------------------------------ A4: conflicts


@pytest.mark.parametrize("first", Mode)
@pytest.mark.parametrize("second", Mode)
def test_a4_modes_conflict_as_in_postgresql(first: Mode, second: Mode) -> None:
    # the manual's table 13.3, rows and columns in order of strength
    conflicting = {
        (0, 3), (3, 0), (1, 2), (1, 3), (2, 1), (3, 1), (2, 2), (2, 3), (3, 2), (3, 3),
    }  # fmt: skip
    a = adjudicator()
    committed(a, request(FLOOR, (key(1), first | ModeFlag.LOCK_ONLY)))
    expected = Outcome.CONFLICT if (first, second) in conflicting else Outcome.COMMITTED
    assert outcome(a, request(FLOOR, (key(1), second))) is expected
    assert outcome(a, request(a.last, (key(1), second))) is Outcome.COMMITTED, "not with what the snapshot saw"


def test_a4_blind_and_validate_only() -> None:
    a = adjudicator()
    committed(a, request(FLOOR, (key(1), 3 | ModeFlag.BLIND)))
    committed(a, request(FLOOR, (key(1), 3 | ModeFlag.VALIDATE_ONLY)))
    committed(a, request(FLOOR, (key(1), 3)))
    assert outcome(a, request(FLOOR, (key(1), 1 | ModeFlag.VALIDATE_ONLY))) is Outcome.CONFLICT
    assert outcome(a, request(FLOOR, (key(1), 3 | ModeFlag.BLIND))) is Outcome.COMMITTED


def test_a4_key_share_is_recorded() -> None:
    """A child is inserted, then its parent deleted at an older snapshot: an orphan if KEY SHARE were only checked."""
    a = adjudicator()
    committed(a, request(FLOOR, (key(1), Mode.KEY_SHARE | ModeFlag.LOCK_ONLY), (key(2), 3)))
    assert outcome(a, request(FLOOR, (key(1), 3 | ModeFlag.DELETE))) is Outcome.CONFLICT


def test_serializable_ranges() -> None:
    a = adjudicator()
    committed(a, request(FLOOR, (key(5), 3)))
    committed(a, request(FLOOR, (key(7), 3 | ModeFlag.BLIND)))
    committed(a, request(FLOOR, (key(9), 3 | ModeFlag.LOCK_ONLY), (key(10), 1)))

    def reads(lo: int, hi: int, start: int) -> Outcome:
        return outcome(a, request(start, checks=[(key(lo), key(hi), 0)]))

    assert reads(0, 5, FLOOR) is Outcome.COMMITTED
    assert reads(5, 6, FLOOR) is Outcome.CONFLICT
    assert reads(6, 8, FLOOR) is Outcome.CONFLICT, "entries of secondary indexes are blind, but they are writes"
    assert reads(8, 20, FLOOR) is Outcome.COMMITTED, "locks change nothing"
    assert reads(0, 20, a.last) is Outcome.COMMITTED


def test_write_skew_is_refused_only_under_serializable() -> None:
    a = adjudicator()
    committed(a, request(FLOOR, (key(1), 2), checks=[(key(1), key(3), 0)]))
    assert outcome(a, request(FLOOR, (key(2), 2))) is Outcome.COMMITTED
    assert outcome(a, request(FLOOR, (key(3), 2), checks=[(key(1), key(3), 0)])) is Outcome.CONFLICT


class Model:
    """Remembers everything."""

    def __init__(self) -> None:
        self.commits: list[tuple[int, bytes, int]] = []

    def conflict(self, keys: list[bytes], modes: bytes, start: int) -> bool:
        return any(
            tau > start and k == other and not mode & 0x04 and not m & 0x24 and m & 3 in CONFLICTS[mode & 3]
            for k, mode in zip(keys, modes, strict=True)
            for tau, other, m in self.commits
        )

    def range_conflict(self, lo: bytes, hi: bytes, start: int) -> bool:
        return any(tau > start and lo <= k < hi and m & 3 >= 2 and not m & 0x28 for tau, k, m in self.commits)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2_000, 10_000, 1 << 30]), st.sampled_from([2, 100]))
def test_a4_bounded_table_never_misses(seed: int, limit: int, max_relations: int) -> None:
    rng = random.Random(seed)
    table = ConflictTable(0, limit, max_relations)
    model = Model()
    false_conflicts = 0
    for tau in range(1, 150):
        keys = [key(rng.randrange(12), REL + rng.randrange(4)) for _ in range(rng.randrange(1, 5))]
        modes = bytes(rng.randrange(4) | rng.choice([0, 0, 0, 4, 8, 0x28]) for _ in keys)
        start = rng.randrange(max(0, tau - 40), tau)
        lo, hi = sorted([rng.choice(keys), key(rng.randrange(12), REL + rng.randrange(4))])
        if start >= table.floor:
            found = table.conflict(keys, modes, start) is not None
            expected = model.conflict(keys, modes, start)
            assert found or not expected, "a conflict was missed"
            false_conflicts += found and not expected
            found = table.range_conflict(lo, hi, start) is not None
            expected = model.range_conflict(lo, hi, start)
            assert found or not expected, "a conflict of a range was missed"
            false_conflicts += found and not expected
        if rng.random() < 0.7:
            table.record(keys, modes, tau)
            model.commits += [(tau, k, m) for k, m in zip(keys, modes, strict=True)]
        assert table.size <= limit
    if limit > 1 << 20:
        assert false_conflicts == 0
        assert table.floor == 0


def test_a4_the_loops_over_keys_refuse_what_is_no_write_set() -> None:
    latest: dict[bytes, int] = {key(1): 5}
    probes, records = ((latest,),) * 256, (latest,) * 256
    assert newer_key(probes, [key(2), key(1)], b"\0\0", 4) == key(1)
    assert newer_key(probes, [key(2), key(1)], b"\0\0", 5) is None
    assert newer_key(((),) * 256, [key(1)], b"\0", 4) is None
    for keys, modes in (([key(1)], b""), ([], b"\0")):
        with pytest.raises(ValueError, match="one mode"):
            newer_key(probes, keys, modes, 4)
        with pytest.raises(ValueError, match="one mode"):
            note_keys(records, {}, keys, modes, 6)
    with pytest.raises(ValueError, match="relation id"):
        note_keys(records, {}, [b"short"], b"\0", 6)
    wrongs: tuple[tuple[Any, ...], ...] = (
        (),
        (probes, (), b"", 4),
        (probes[:5], [], b"", 4),
        (probes, [key(1)], b"\0", "4"),
        ((1,) * 256, [key(1)], b"\0", 4),
    )
    for wrong in wrongs:
        with pytest.raises(TypeError):
            newer_key(*wrong)
    with pytest.raises(TypeError):
        newer_key(probes, [[]], b"\0", 4)  # type: ignore[list-item]
    assert latest == {key(1): 5}
    written: dict[bytes, int] = {}
    assert note_keys(records, written, [key(1), key(2), key(1, REL + 1)], b"\0\1\2", 6) == 3 * len(key(1))
    assert latest == {key(1): 6, key(2): 6, key(1, REL + 1): 6}
    assert written == {key(1)[:8]: 6, key(1, REL + 1)[:8]: 6}


def test_a4_memory_of_what_no_snapshot_can_conflict_with_is_given_back() -> None:
    table = ConflictTable(0)
    for tau in range(1, 101):
        table.record([key(tau)], b"\x03", tau)
    assert table.merge_until(90, 50)
    assert not table.merge_until(90, 50)
    assert table.entries == 10
    assert table.conflict([key(1)], b"\x03", 89) is not None, "an older snapshot meets the relation's maximum"
    assert table.conflict([key(1)], b"\x03", 90) is None
    assert table.conflict([key(95)], b"\x03", 90) is not None
    assert table.range_conflict(key(90), key(96), 90) is not None


def test_a4_a_very_large_write_set_is_one_maximum_per_relation() -> None:
    table = ConflictTable(0)
    keys = [key(number) for number in range(LARGE_WRITE_SET + 1)]
    table.record(keys, bytes([3]) * len(keys), 10)
    assert table.entries == 0
    assert table.conflict([key(99)], b"\x02", 9) is not None
    assert table.conflict([key(99)], b"\x02", 10) is None
    assert table.conflict([key(99, REL + 1)], b"\x02", 9) is None
    assert table.range_conflict(key(1), key(5), 9) is not None


# ------------------------------------------------------------------------------------------------ A5: relations


def test_a5_writers_conflict_with_schema_changes() -> None:
    a = adjudicator()
    before = a.last
    committed(a, request(before, (ddl_key(6), 3), ddl=(6, [77], [])))
    assert outcome(a, request(before, (key(1), 3), relations=[77])) is Outcome.SCHEMA_CONFLICT
    assert outcome(a, request(before, (key(1), 0), relations=[77])) is Outcome.SCHEMA_CONFLICT, "lockers too"
    assert outcome(a, request(before, (key(1), 3), relations=[78])) is Outcome.COMMITTED
    assert outcome(a, request(a.last, (key(1), 3), relations=[77])) is Outcome.COMMITTED


def test_a5_ddl_that_depends_on_rows_conflicts_with_writes() -> None:
    a = adjudicator()
    before = a.last
    committed(a, request(before, (key(1), 3), relations=[77]))
    ddl = (6, [77], [77])
    assert outcome(a, request(before, (ddl_key(6), 3), ddl=ddl)) is Outcome.CONFLICT
    assert outcome(a, request(before, (ddl_key(6), 3), ddl=(6, [77], []))) is Outcome.COMMITTED


def test_q5_ddl_records_have_no_gaps_and_no_twins() -> None:
    a = adjudicator()
    before = a.last
    assert outcome(a, request(before, (ddl_key(7), 3), ddl=(7, [1], []))) is Outcome.SCHEMA_CONFLICT
    committed(a, request(before, (ddl_key(6), 3), ddl=(6, [1], [])))
    assert outcome(a, request(before, (ddl_key(6), 3), ddl=(6, [2], []))) is Outcome.SCHEMA_CONFLICT
    assert a.ddl == 6


def test_a5_state_is_bounded() -> None:
    a = adjudicator(max_relations=10)
    before = a.last
    for relation in range(30):
        committed(a, request(a.last, (ddl_key(a.ddl + 1), 3), relations=[relation], ddl=(a.ddl + 1, [relation], [])))
    for relation in range(30):
        assert outcome(a, request(before, (key(1), 3), relations=[relation])) is Outcome.SCHEMA_CONFLICT
    assert outcome(a, request(a.last, (key(1), 3), relations=[3])) is Outcome.COMMITTED


# ------------------------------------------------------------------------------------------ A8, Q2: once, resolve


def test_a8_a_repeated_request_gets_the_same_answer() -> None:
    a = adjudicator()
    first = request(FLOOR, (key(1), 3))
    verdict = a.commit(first, 0)
    assert a.commit(first, 0).action is Action.IGNORE, "pending: its first copy will be answered"
    a.durable(first.txid)
    again = a.commit(first, 0)
    assert (again.action, again.outcome, again.tau) == (Action.REPLY, Outcome.COMMITTED, verdict.tau)
    refused = request(FLOOR, (key(1), 3))
    assert a.commit(refused, 0).outcome is Outcome.CONFLICT
    assert a.commit(msgspec.structs.replace(refused, tau_start=a.last), 0).outcome is Outcome.REFUSED


def test_a8_requests_of_other_generations_are_not_processed() -> None:
    a = adjudicator()
    old = request(FLOOR, (key(1), 3), generation=GENERATION - 1)
    assert a.commit(old, 0).outcome is Outcome.REFUSED
    assert a.commit(msgspec.structs.replace(old, generation=GENERATION), 0).action is Action.REPLY, "killed for good"
    newer = request(FLOOR, (key(1), 3), generation=GENERATION + 1)
    assert a.commit(newer, 0).action is Action.UNKNOWN
    assert a.table.entries == 0


def test_a8_a_commit_of_an_older_generation_is_remembered() -> None:
    done = request(FLOOR - 5, (key(1), 3), generation=GENERATION - 1)
    a = adjudicator(known=[(done.txid, 999)])
    verdict = a.commit(done, 0)
    assert (verdict.action, verdict.outcome, verdict.tau) == (Action.REPLY, Outcome.COMMITTED, 999)
    assert a.resolve(done.txid, -1) == (Outcome.COMMITTED, 999)


def test_q2_resolve_kills() -> None:
    a = adjudicator()
    late = request(FLOOR, (key(1), 3))
    assert a.resolve(late.txid, late.tau_start) == (Outcome.KILLED, 0)
    assert outcome(a, late) is Outcome.REFUSED
    assert a.resolve(late.txid, -1) == (Outcome.KILLED, 0)


def test_q2_resolve_of_a_pending_transaction_is_not_an_answer() -> None:
    a = adjudicator()
    commit = request(FLOOR, (key(1), 3))
    tau = a.commit(commit, 0).tau
    assert a.resolve(commit.txid, FLOOR) == (Outcome.PENDING, 0)
    a.durable(commit.txid)
    assert a.resolve(commit.txid, FLOOR) == (Outcome.COMMITTED, tau)


def test_q2_what_is_forgotten_is_never_called_killed() -> None:
    a = adjudicator(known_limit=10)
    first = request(FLOOR, (key(1), 3))
    committed(a, first)
    for number in range(20):
        committed(a, request(a.last, (key(number), 3)))
    assert a.resolve(first.txid, first.tau_start) == (Outcome.PENDING, 0)
    assert a.resolve(bytes(16), -1) == (Outcome.PENDING, 0)
    assert a.resolve(bytes(16), a.last) == (Outcome.KILLED, 0), "its commit would be remembered"


def test_q10_refused_before_it_is_decided() -> None:
    a = adjudicator()
    commit = request(FLOOR, (key(1), 3))
    assert a.refuse(commit.txid, "overload").outcome is Outcome.REFUSED
    assert outcome(a, commit) is Outcome.REFUSED
    other = request(FLOOR, (key(1), 3))
    tau = committed(a, other)
    assert a.refuse(other.txid, "overload") == Verdict(Action.REPLY, Outcome.COMMITTED, tau, "")


def test_q8_chunks() -> None:
    a = adjudicator()
    commit = request(FLOOR, (key(1), 3))
    assert a.ingest_refusal(commit.txid, GENERATION) is None
    assert a.ingest_refusal(commit.txid, GENERATION - 1) is not None
    assert a.stamp(5000) == 5000
    assert a.stamp(5000) == 5001
    assert a.kill(commit.txid)
    assert a.ingest_refusal(commit.txid, GENERATION) is not None
    assert outcome(a, commit) is Outcome.REFUSED


def test_ranges_are_answered_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("australis.adjudicator.conflict_table.RANGE_KEYS", 10)
    table = ConflictTable(0)
    for tau in range(1, 101):
        table.record([key(tau), key(1, REL + 1)], b"\x03\x03", tau)
    assert table.range_conflict(key(1, REL + 2), key(9, REL + 2), 0) is None, "nobody wrote to this relation"
    assert table.range_conflict(key(500), key(600), 97) is None
    assert table.range_conflict(key(500), key(600), 50) is not None, "too much to look at: the relation's last write"


def test_a4_many_keys_are_decided_like_few() -> None:
    """Large write sets take another path: it must find the one key among them that conflicts, whatever its mode."""
    for others in (3, 4):  # all of one mode; blind entries among them
        for latest, mode in ((3, 0), (2, 1), (0, 3), (1, 2)):
            table = ConflictTable(0)
            table.record([key(7)], bytes([latest]), 10)
            numbers = [number for number in range(600) if number != 7]
            keys, modes = [key(n) for n in numbers], bytes(mode if n % 2 or others == 3 else 4 for n in numbers)
            assert table.conflict(keys, modes, 5) is None
            assert table.conflict([*keys, key(7)], modes + bytes([mode]), 5) == key(7)
            assert table.conflict([*keys, key(7)], modes + bytes([mode]), 10) is None
            assert table.conflict([*keys, key(7)], modes + b"\x04", 5) is None


# ------------------------------------------------------------------------------------------- plain commits, from bytes


def state_of(a: Adjudicator) -> Any:
    """All that later decisions depend on."""
    table = a.table
    return (
        (a.last, a.ddl, a.commits, a.conflicts, a.schema_conflicts, a.refusals),
        (a._known, list(a._order), a._pending, a._last_change, a._last_write, a._change_floor, a._write_floor),
        (table.floor, table.size, table.merged_until, table._latest, table._merged, table._written),
        (table._written_floor, list(table._log)),
    )


_modes = st.sampled_from([0, 1, 2, 3, 3, 3, 0x04 | 3, 0x08 | 1, 0x10 | 3, 0x20 | 2, 0x24])
_commits = st.fixed_dictionaries(
    {
        "generation": st.sampled_from([GENERATION] * 8 + [GENERATION - 1, GENERATION + 1]),
        "txid": st.integers(1, 30).map(lambda n: n.to_bytes(16, "big")),
        "behind": st.sampled_from([-1, 0, 0, 0, 1, 2, 5, 1000]),
        "keys": st.lists(st.tuples(st.integers(0, 6), st.sampled_from([REL, REL + 1]), _modes), max_size=4),
        "relations": st.lists(st.sampled_from([REL, REL + 1, REL + 2]), max_size=3),
        "checks": st.sampled_from([[]] * 5 + [[(key(0), key(3), 0)]]),
        "ddl": st.sampled_from([None] * 6 + [[REL], [REL + 1]]),
        "drops": st.sampled_from([[]] * 6 + [[REL + 9]]),
        "now": st.integers(0, 3000),
        "durable": st.booleans(),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    commits=st.lists(_commits, max_size=25), limit=st.sampled_from([1500, 1 << 20]), relations=st.sampled_from([1, 50])
)
def test_plain_commits_are_decided_as_all_others(commits: list[Any], limit: int, relations: int) -> None:
    """From its bytes or decoded, a commit gets the same time and leaves the same traces; in doubt it leaves none."""
    one, other = (adjudicator(table_bytes=limit, max_relations=relations) for _ in range(2))
    for fields in commits:
        commit = request(
            max(0, one.last - fields["behind"]),
            *((key(number, relation), mode) for number, relation, mode in fields["keys"]),
            generation=fields["generation"],
            txid=fields["txid"],
            values=msgspec.Raw(encode([b"value"] * len(fields["keys"]))),
            relations=fields["relations"],
            checks=fields["checks"],
            ddl=(one.ddl + 1, fields["ddl"], []) if fields["ddl"] else None,
            drops=fields["drops"],
        )
        before = state_of(one)
        decided = one.commit_plain(encode(commit), fields["now"])
        if decided is None:
            assert state_of(one) == before
            verdict = one.commit(commit, fields["now"])
            expected = other.commit(commit, fields["now"])
            assert verdict == expected
        else:
            expected = other.commit(commit, fields["now"])
            assert (expected.action, expected.tau, commit.txid) == (Action.APPEND, *decided)
            assert not (commit.checks or commit.drops or commit.ddl)
        if expected.action is Action.APPEND and fields["durable"]:
            one.durable(commit.txid)
            other.durable(commit.txid)
        assert state_of(one) == state_of(other)


def test_plain_commits_are_taken() -> None:
    """The way round decoding is used at all, and only for messages that are whole."""
    a = adjudicator()
    plain = encode(request(FLOOR, (key(1), 3), (key(2), 2), values=msgspec.Raw(encode([b"a", None])), relations=[REL]))
    for cut in range(len(plain)):
        assert a.commit_plain(plain[:cut], 0) is None
        changed = bytearray(plain)
        changed[cut] ^= 0xFF
        try:
            message = client_decoder.decode(changed)
            if isinstance(message, Commit):
                check_commit(message)
        except (msgspec.MsgspecError, ProtocolError):
            assert a.commit_plain(bytes(changed), 0) is None
    assert a.commit_plain(plain + b"\xc0", 0) is None
    a = adjudicator()
    decided = a.commit_plain(plain, FLOOR + 7)
    assert decided is not None and decided[0] == FLOOR + 7
    assert a.commit_plain(plain, FLOOR + 8) is None  # a repetition
    many = request(FLOOR, *((key(n), 3) for n in range(256)), values=msgspec.Raw(encode([b""] * 256)))
    assert a.commit_plain(encode(many), 0) is None  # for the ways with many keys
    for arguments in ((), (a._state, b"", 0, 0), ((), b"", 0, 0, 0), (a._state, "", 0, 0, 0)):
        with pytest.raises(TypeError):
            decide_plain(*arguments)
