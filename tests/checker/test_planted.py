"""Every anomaly, planted by hand: found, with its name, its transactions and a text that tells what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from australis.simulation import checker
from australis.simulation.anomalies import LISTED, Level, Name
from australis.simulation.checker import Verdict, check
from australis.simulation.history import (
    Append,
    Balances,
    Constraint,
    Delete,
    Get,
    History,
    Insert,
    Operation,
    Outcome,
    Read,
    Refused,
    Rows,
    Transaction,
    Transfer,
    Write,
    decode,
    encode,
)

OK, FAIL, UNKNOWN = Outcome.OK, Outcome.FAIL, Outcome.UNKNOWN


def a(key: int, value: int) -> Append:
    return Append(key, value)


def r(key: int, *values: int) -> Read:
    return Read(key, values)


def t(
    *operations: Operation,
    at: tuple[int, int] = (0, 1000),
    outcome: Outcome = OK,
    process: int = -1,
    final: bool = False,
) -> Transaction:
    """A transaction; all are concurrent unless `at` says otherwise."""
    return Transaction(process, at[0], at[1], outcome, operations, final=final)


def judge(*transactions: Transaction, level: Level = Level.SNAPSHOT) -> Verdict:
    return check(History(transactions), level)


CYCLES: dict[str, tuple[Name, list[Transaction]]] = {
    "write cycle": (
        Name.G0,
        [t(a(1, 1), a(2, 1)), t(a(1, 2), a(2, 2)), t(r(1, 1, 2)), t(r(2, 2, 1))],
    ),
    "circular flow over an append that nobody read": (
        Name.G1C,
        [t(a(1, 1), r(2, 1)), t(a(1, 2), a(2, 1)), t(r(1, 1))],
    ),
    "circular flow": (Name.G1C, [t(a(1, 1), r(2, 1)), t(a(2, 1), r(1, 1))]),
    "read skew": (Name.G_SINGLE, [t(a(1, 1), a(2, 1)), t(r(1), r(2, 1)), t(r(1, 1))]),
    "read skew over a write": (
        Name.G_SINGLE,
        [t(a(1, 1), a(2, 1)), t(a(2, 2), a(3, 1)), t(r(1), r(3, 1)), t(r(1, 1), r(2, 1, 2))],
    ),
    "read skew beside an aborted append": (
        Name.G_SINGLE,
        [t(a(1, 1), outcome=FAIL), t(a(1, 2), a(2, 5)), t(r(1), r(2, 5)), t(r(1, 1, 2))],
    ),
    "lost update": (Name.LOST_UPDATE, [t(r(1), a(1, 1)), t(r(1), a(1, 2)), t(r(1, 1, 2))]),
    "lost update that nobody read": (Name.LOST_UPDATE, [t(r(1), a(1, 1)), t(r(1), a(1, 2)), t(r(1, 1))]),
    "lost update, read behind the append": (Name.LOST_UPDATE, [t(a(1, 1)), t(a(1, 2), r(1, 2)), t(r(1, 1, 2))]),
    "long fork": (Name.LONG_FORK, [t(a(1, 1)), t(a(2, 1)), t(r(1, 1), r(2)), t(r(1), r(2, 1))]),
    "two anti-dependencies apart": (
        Name.G_NONADJACENT,
        [
            t(r(1), a(2, 1)),
            t(a(1, 1), a(3, 1)),
            t(r(4), a(3, 2)),
            t(a(4, 1), a(2, 0)),
            t(r(1, 1), r(3, 1, 2), r(4, 1), r(2, 0, 1)),
        ],
    ),
    "aborted read": (Name.G1A, [t(a(1, 1), outcome=FAIL), t(r(1, 1))]),
    "aborted read, not in the longest version": (
        Name.G1A,
        [t(a(1, 1), outcome=FAIL), t(r(1, 1)), t(a(1, 2)), t(a(1, 3)), t(r(1, 2, 3))],
    ),
    "intermediate read": (Name.G1B, [t(a(1, 1), a(1, 2)), t(r(1, 1)), t(r(1, 1, 2))]),
    "dirty update": (Name.DIRTY_UPDATE, [t(a(1, 1), outcome=FAIL), t(a(1, 2)), t(r(1, 1, 2))]),
    "own append not seen": (Name.INTERNAL, [t(a(1, 1), r(1))]),
    "own append not last": (Name.INTERNAL, [t(a(1, 1), r(1, 1, 2)), t(a(1, 2))]),
    "read changes": (Name.NON_REPEATABLE, [t(r(1), r(1, 1)), t(a(1, 1))]),
    "orders differ": (Name.INCOMPATIBLE, [t(a(1, 1)), t(a(1, 2)), t(r(1, 1)), t(r(1, 2))]),
    "twice": (Name.DUPLICATE, [t(a(1, 1)), t(r(1, 1, 1))]),
    "nobody wrote it": (Name.GARBAGE, [t(r(1, 7))]),
    "lost append": (Name.LOST, [t(a(1, 1), at=(0, 1)), t(r(1), at=(2, 3), final=True)]),
    "lost after it was read": (
        Name.LOST,
        [t(a(1, 1), at=(0, 1)), t(r(1, 1), at=(0, 1)), t(r(1), at=(2, 3), final=True)],
    ),
    "stale read": (Name.STALE_READ, [t(a(1, 1), at=(0, 1)), t(r(1), at=(2, 3)), t(r(1, 1), at=(4, 5))]),
    "stale read of what nobody read": (Name.STALE_READ, [t(a(1, 1), at=(0, 1)), t(r(1), at=(2, 3))]),
    "effect before cause": (
        Name.REAL_TIME,
        [t(a(1, 1), at=(0, 1)), t(a(2, 1), at=(2, 3)), t(r(1), r(2, 1)), t(r(1, 1))],
    ),
    "order of versions against time": (
        Name.REAL_TIME,
        [t(a(1, 1), at=(0, 1)), t(a(1, 2), at=(2, 3)), t(r(1, 2, 1))],
    ),
    "read from the future": (Name.REAL_TIME, [t(r(1, 1), at=(0, 1)), t(a(1, 1), at=(2, 3))]),
    "half of an unknown commit": (
        Name.G_SINGLE,
        [t(a(1, 1), a(2, 1), outcome=UNKNOWN), t(r(1, 1), r(2)), t(r(2, 1))],
    ),
    "half of a commit, the rest never seen": (Name.G_SINGLE, [t(a(1, 1), a(2, 1)), t(r(1, 1), r(2))]),
    "half of an unknown commit, the rest never seen": (
        Name.G_SINGLE,
        [t(a(1, 1), a(2, 1), outcome=UNKNOWN), t(r(1, 1), r(2))],
    ),
    "register: aborted read": (Name.G1A, [t(Write(1, 1), outcome=FAIL), t(Get(1, 1))]),
    "register: intermediate read": (Name.G1B, [t(Write(1, 1), Write(1, 2)), t(Get(1, 1))]),
    "register: nobody wrote it": (Name.GARBAGE, [t(Get(1, 1))]),
    "register: own write not seen": (Name.INTERNAL, [t(Write(1, 1), Get(1, None))]),
    "register: read changes": (Name.NON_REPEATABLE, [t(Write(1, 1)), t(Get(1, None), Get(1, 1))]),
    "register: circular flow": (Name.G1C, [t(Write(1, 1), Get(2, 1)), t(Write(2, 1), Get(1, 1))]),
    "register: read skew": (Name.G_SINGLE, [t(Write(1, 1), Write(2, 1)), t(Get(1, None), Get(2, 1))]),
    "register: read skew over a replaced value": (
        Name.G_SINGLE,
        [t(Write(1, 1)), t(Get(1, 1), Write(1, 2), Write(2, 1)), t(Get(1, 1), Get(2, 1))],
    ),
    "register: lost update": (Name.LOST_UPDATE, [t(Get(1, None), Write(1, 1)), t(Get(1, None), Write(1, 2))]),
    "register: long fork": (
        Name.LONG_FORK,
        [t(Write(1, 1)), t(Write(2, 1)), t(Get(1, 1), Get(2, None)), t(Get(1, None), Get(2, 1))],
    ),
    "register: stale read": (
        Name.STALE_READ,
        [t(Write(1, 1), at=(0, 1)), t(Write(1, 2), at=(2, 3)), t(Get(1, 1), at=(4, 5))],
    ),
    "a cycle through a list and a register": (Name.G_SINGLE, [t(a(1, 1), Write(1, 1)), t(r(1), Get(1, 1)), t(r(1, 1))]),
}


@pytest.mark.parametrize("what", CYCLES)
def test_planted(what: str) -> None:
    name, transactions = CYCLES[what]
    verdict = judge(*transactions)
    assert name in verdict.names, verdict
    found = next(anomaly for anomaly in verdict.anomalies if anomaly.name is name)
    assert found.transactions
    assert all(f"T{number} (process" in found.explanation for number in found.transactions)
    assert not verdict.valid


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("what", CYCLES)
def test_planted_between_others(what: str, shift: int) -> None:
    """Neither the numbers of transactions nor innocent neighbours matter."""
    name, transactions = CYCLES[what]
    others = [t(a(100 + i, 1), r(200), process=i) for i in range(5)]
    placed = [*others[:shift], *reversed(transactions), *others[shift:]]
    assert name in judge(*placed).names


WRITE_SKEW = [t(r(1), a(2, 1)), t(r(2), a(1, 1)), t(r(1, 1), r(2, 1))]
READ_ONLY_ANOMALY = [  # Fekete, O'Neil, O'Neil 2004
    t(r(1), r(2), a(1, 1)),
    t(r(2), a(2, 1)),
    t(r(1), r(2, 1)),
    t(r(1, 1)),
]


def test_write_skew_is_found_and_allowed_under_snapshot_isolation() -> None:
    verdict = judge(*WRITE_SKEW)
    assert verdict.valid
    assert [anomaly.name for anomaly in verdict.allowed] == [Name.G2_ITEM]
    assert judge(*WRITE_SKEW, level=Level.SERIALIZABLE).names == {Name.G2_ITEM}


def test_real_time_alone_can_make_a_history_unserializable() -> None:
    """`late` before `middle` before `early` by what was read, but `early` was acknowledged before `late` began."""
    early, middle, late = t(a(1, 1), at=(0, 10)), t(r(1), a(2, 1), at=(5, 30)), t(r(2), at=(20, 25))
    both = (early, middle, late, t(r(1, 1), r(2, 1)))
    assert judge(*both).valid
    assert judge(*both, level=Level.SERIALIZABLE).names == {Name.REAL_TIME}


def test_the_anomaly_of_a_read_only_transaction() -> None:
    assert judge(*READ_ONLY_ANOMALY).valid
    assert judge(*READ_ONLY_ANOMALY, level=Level.SERIALIZABLE).names == {Name.G2_ITEM}


def test_sessions_only() -> None:
    """Old snapshots are right for SESSION_SNAPSHOT, except behind the session's own writes."""
    stale = [t(a(1, 1), at=(0, 1), process=1), t(r(1), at=(2, 3), process=2)]
    assert not judge(*stale).valid
    assert judge(*stale, level=Level.SESSION_SNAPSHOT).valid
    own = [t(a(1, 1), at=(0, 1), process=1), t(r(1), at=(2, 3), process=1)]
    assert judge(*own, level=Level.SESSION_SNAPSHOT).names == {Name.SESSION}


def test_unknown_outcomes_are_neither_committed_nor_aborted() -> None:
    lost = t(a(1, 1), a(2, 1), outcome=UNKNOWN, at=(0, 1))
    assert judge(lost, t(r(1), r(2), at=(5, 6)), t(r(1), r(2), at=(8, 9), final=True)).valid  # did not commit
    assert judge(lost, t(r(1), r(2), at=(5, 6)), t(r(1, 1), r(2, 1), at=(8, 9))).valid  # committed late
    assert judge(t(r(3, 9), a(1, 1), outcome=UNKNOWN)).valid  # what it read is not judged …
    assert not judge(t(r(3, 9), a(1, 1), outcome=UNKNOWN), t(r(1, 1))).valid  # … unless it is known to have committed


def test_a_chain_of_unknown_outcomes() -> None:
    """One read the other's write and was read itself: both committed."""
    verdict = judge(t(a(1, 1), a(3, 1), outcome=UNKNOWN), t(r(1, 1), a(2, 1), outcome=UNKNOWN), t(r(2, 1), r(3)))
    assert verdict.names == {Name.G_SINGLE}


@pytest.mark.parametrize("what", ["lost update", "stale read", "register: lost update"])
def test_one_name_for_one_thing(what: str) -> None:
    name, transactions = CYCLES[what]
    assert judge(*transactions).counts.keys() == {name}


def test_what_is_lost_is_told_once() -> None:
    finals = [t(r(1), at=(2, 3), final=True) for _ in range(2)]
    verdict = judge(t(a(1, 1), at=(0, 1)), *finals)
    assert verdict.counts == {Name.LOST: 1}


def test_stale_reads_and_lost_updates_are_all_counted() -> None:
    """Also where no search for cycles goes that far."""
    stale = judge(t(a(1, 1), at=(0, 1)), *(t(r(1), at=(2, 3)) for _ in range(70)), t(r(1, 1), at=(4, 5)))
    assert stale.counts[Name.STALE_READ] == 70
    rivals = [t(r(1), a(1, i)) for i in range(70)]
    lost = judge(*rivals, t(r(1, *range(70))))
    assert lost.counts[Name.LOST_UPDATE] >= 69
    assert len([x for x in lost.anomalies if x.name is Name.LOST_UPDATE]) == LISTED


def test_the_witness_is_the_shortest() -> None:
    ring = [t(a(i, 1), r((i + 1) % 6, 1)) for i in range(6)]  # a cycle of six …
    verdict = judge(*ring, t(a(10, 1), r(11, 1)), t(a(11, 1), r(10, 1), r(0, 1)))
    assert verdict.counts[Name.G1C] == 2
    assert sorted(len(anomaly.transactions) for anomaly in verdict.anomalies) == [2, 6]
    short = judge(*ring[:-1], t(a(5, 1), r(0, 1), r(4, 1)))  # … with a shortcut
    assert min(len(anomaly.transactions) for anomaly in short.anomalies) == 2


def test_a_long_cycle_needs_no_deep_stack() -> None:
    size = 5_000
    ring = [t(a(i, 1), r((i + 1) % size, 1)) for i in range(size)]
    verdict = judge(*ring)
    assert verdict.counts == {Name.G1C: 1}
    assert len(verdict.anomalies[0].transactions) == size


def test_an_explanation_names_transactions_keys_values_and_times() -> None:
    verdict = judge(t(a(1, 7), a(2, 8), at=(0, 2_000_000), process=3), t(r(1), r(2, 8), at=(0, 3_000_000), process=4))
    (found,) = verdict.anomalies
    assert found.explanation == (
        "a cycle of 2:\n"
        "  T0 (process 3, 0.000000-0.002000 s) before T1 (process 4, 0.000000-0.003000 s) (wr):"
        " T1 read [8] from list 2, with [8] of T0\n"
        "  T1 (process 4, 0.000000-0.003000 s) before T0 (process 3, 0.000000-0.002000 s) (rw):"
        " T1 read [] from list 1, without [7] of T0"
    )


# ---------------------------------------------------------------------- bank, rows

OPENING = {1: 10, 2: 10}


def bank(*transactions: Transaction) -> set[Name]:
    return check(History(transactions, total=20, opening=OPENING)).names


MOVE = Transfer(1, 1, 2, 5)


def test_bank() -> None:
    moved = t(MOVE, at=(0, 1))
    assert bank(moved, t(Balances({1: 5, 2: 15}, (1,)), at=(2, 3)), t(Balances({1: 10, 2: 10}))) == set()
    assert bank(moved, t(Balances({1: 5, 2: 10}))) == {Name.TOTAL}
    assert bank(moved, t(Balances({1: -1, 2: 21}))) == {Name.NEGATIVE}
    assert bank(moved, t(Balances({1: 10, 2: 10}, ()), at=(2, 3), final=True)) == {Name.LOST}
    assert bank(moved, t(Balances({1: 10, 2: 10}, ()), at=(2, 3))) == {Name.STALE_READ}
    assert bank(moved, t(Balances({1: 10, 2: 10}, (1,)), at=(2, 3))) == {Name.HALF_APPLIED}
    assert bank(moved, t(Balances({1: 5, 2: 15}, (1, 1)))) == {Name.DUPLICATE}
    assert bank(t(Balances({1: 10, 2: 10}, (9,)))) == {Name.GARBAGE}
    assert bank(t(MOVE, outcome=FAIL), t(Balances({1: 5, 2: 15}, (1,)))) == {Name.G1A}
    for there in ((), (1,)):
        balances = {1: 10 - 5 * len(there), 2: 10 + 5 * len(there)}
        assert bank(t(MOVE, outcome=UNKNOWN, at=(0, 1)), t(Balances(balances, there), at=(2, 3), final=True)) == set()


UNIQUE, CHILD = Constraint("u"), Constraint("child", "parent")


def rows(*transactions: Transaction) -> set[Name]:
    return check(History(transactions, constraints=(UNIQUE, CHILD))).names


def test_rows() -> None:
    one = t(Insert("u", 1, 7), at=(0, 1))
    gone = t(Delete("u", 1), at=(2, 3))
    seen, empty = Rows("u", ((1, 7),)), Rows("u", ())
    assert rows(one, t(seen, at=(2, 3)), gone, t(empty, at=(4, 5), final=True)) == set()
    assert rows(one, t(empty, at=(2, 3))) == {Name.STALE_READ}
    assert rows(one, t(empty, at=(2, 3), final=True)) == {Name.LOST}
    assert rows(one, gone, t(seen, at=(4, 5))) == {Name.RESURRECTED}
    assert rows(t(Insert("u", 1, 7), outcome=FAIL), t(seen)) == {Name.G1A}
    assert rows(t(seen)) == {Name.GARBAGE}
    assert rows(one, t(Rows("u", ((1, 7), (1, 7)), "index"))) == {Name.DUPLICATE}
    assert rows(one, t(seen, Rows("u", (), "index"))) == {Name.NON_REPEATABLE}
    for deleted in (UNKNOWN, OK):
        both = t(Delete("u", 1), at=(2, 9), outcome=deleted)
        assert rows(one, both, t(seen, at=(4, 5))) == rows(one, both, t(empty, at=(4, 5))) == set()


def test_unique_keys() -> None:
    two = (t(Insert("u", 1, 7)), t(Insert("u", 2, 7)))
    assert rows(*two, t(Rows("u", ((1, 7), (2, 7))))) == {Name.NOT_UNIQUE}
    refused = t(Refused("u", 7), outcome=FAIL, at=(2, 3))
    assert rows(refused) == {Name.FALSE_REFUSAL}
    assert rows(refused, t(Insert("u", 1, 7), at=(0, 1))) == set()
    assert rows(refused, t(Insert("u", 1, 7), outcome=UNKNOWN, at=(0, 1))) == set()
    assert rows(refused, t(Insert("u", 1, 7), at=(4, 5))) == {Name.FALSE_REFUSAL}


def test_foreign_keys() -> None:
    family = (t(Insert("parent", 1, 0)), t(Insert("child", 2, 1)), t(Delete("parent", 1)))
    child = Rows("child", ((2, 1),))
    assert rows(*family, t(Rows("parent", ()), child)) == {Name.ORPHAN}
    assert rows(*family, t(Rows("parent", ((1, 0),)), child)) == set()
    assert rows(*family, t(child)) == set()  # the parents were not read


# ---------------------------------------------------------------------- files, bad input


def test_a_stored_history_is_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "history"
    history = History(tuple(WRITE_SKEW), level="snapshot", note="planted")
    file.write_bytes(encode(history))
    assert decode(file.read_bytes()) == history
    assert checker.main([str(file)]) == 0
    assert "allowed: G2-item 1" in capsys.readouterr().out
    assert checker.main([str(file), "--level", "serializable"]) == 1
    assert "G2-item: a cycle of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a history"),
        (b"\xc1\x00", "not a history"),
        (encode(History((), format=99)), "format 99"),
        (encode(History((), level="chaos")), "unknown level 'chaos'"),
        (encode(History((t(a(1, 1)), t(a(1, 1))))), "value 1 is written to list 1 twice"),
        (encode(History((t(a(1, 1), at=(5, 4)),))), "ends before it begins"),
        (encode(History((t(MOVE), t(MOVE)))), "transfer 1 is there twice"),
        (encode(History((t(Insert("u", 1, 7)), t(Insert("u", 1, 7))))), "row 1 of u is inserted twice"),
    ],
)
def test_bad_files(data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "history"
    file.write_bytes(data)
    assert checker.main([str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checker.main([str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
