"""What every engine of the journal must do (rules J1-J3, A1); no faults here."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from australis.errors import PositionGoneError, WrongClusterError
from australis.journal.record import START, Kind, Position
from tests.journal.engines import Engine, NatsEngine
from tests.journal.owner import History, check


@pytest.fixture
def history() -> History:
    return History()


def test_what_is_durable_is_read_back(engine: Engine, history: History) -> None:
    owner = engine.owner(history)
    owner.append_some(300)
    owner.append(os.urandom(200_000))  # in parts
    owner.append_some(10, largest=120_000)
    owner.append(b"")
    owner.wait()
    owner.close()
    check(history, engine.read())
    assert len([one for one in owner.appended if one.position.sequence <= owner.durable]) == 312


def test_tail_behind_every_entry(engine: Engine, history: History) -> None:
    owner = engine.owner(history)
    for size in (10, 120_000, 20, 60_000, 30):
        owner.append(bytes(size))
    owner.wait()
    entries = list(owner.journal.tail(START))
    assert [entry.kind for entry in entries] == [Kind.CLAIM] + [Kind.TRANSACTION] * 5
    assert entries[0].previous == START
    for index, entry in enumerate(entries):
        assert list(owner.journal.tail(entry.position)) == entries[index + 1 :]
        if index:
            assert entry.previous.sequence >= entries[index - 1].position.sequence
    owner.close()
    with engine.opened() as journal:
        for index, entry in enumerate(entries):
            assert list(journal.tail(entry.position)) == entries[index + 1 :]


def test_a_reader_comes_back_for_more(engine: Engine, history: History) -> None:
    owner = engine.owner(history)
    reader = owner.journal.reader(owner.claimed.position)
    assert reader.read(owner.journal.durable, 1 << 20) == []
    for round_ in range(3):
        owner.append_some(20)
        owner.wait()
        taken = []
        while entries := reader.read(owner.journal.durable, 1000):
            taken += entries
        assert [entry.body for entry in taken] == [one.body for one in owner.appended[round_ * 20 :]]
    assert not reader.diverged
    last = owner.appended[9].position
    wrong = owner.journal.reader(Position(last.sequence, last.generation, bytes(16)))
    wrong.read(owner.journal.durable, 1 << 20)
    assert wrong.diverged
    wrong.close()
    reader.close()
    owner.close()


def test_claims(engine: Engine, history: History) -> None:
    """A1: the next generation knows the times, the DDL number and the transactions before it."""
    first = engine.owner(history)
    assert first.claimed.generation == 1
    assert (first.claimed.floor, first.claimed.ddl, first.claimed.known) == (0, 0, [])
    first.append(b"a")
    tau = history.next_tau(0)
    first.journal.append(Kind.TRANSACTION, 1, tau, b"d" * 16, bytes(130_000), 7)
    first.journal.flush()
    last = first.append(b"b")
    first.wait()
    first.close()
    second = engine.owner(History(tau=tau + 10))
    assert second.claimed.generation == 2
    assert second.claimed.floor == last.tau
    assert second.claimed.ddl == 7
    known = [(first.appended[0].txid, 1), (b"d" * 16, tau), (last.txid, last.tau)]
    assert second.claimed.known == known
    assert second.claimed.known_floor == 0
    assert second.claimed.position.sequence == last.position.sequence + 1
    claim = second.journal.next_claim(1)
    assert claim is not None
    assert claim.previous == last.position
    assert claim.position == second.claimed.position
    assert claim.tau == last.tau
    assert second.journal.next_claim(2) is None
    assert claim in list(second.journal.tail(START))
    second.close()
    third = engine.owner(History(tau=tau + 20))
    assert third.claimed.generation == 3
    assert third.claimed.floor == last.tau
    found = third.journal.next_claim(1)
    assert found == claim
    third.close()


def test_trimming_keeps_what_is_behind(engine: Engine, history: History) -> None:
    owner = engine.owner(history)
    for number in range(60):
        owner.append(os.urandom(40_000))
        if number % 5 == 4:
            owner.wait()  # whatever the engine's unit is, it is smaller than what is trimmed
    size = owner.journal.size()[0]
    at = owner.appended[40].position
    assert owner.journal.trim(at.sequence) > 0
    assert owner.journal.size()[0] < size
    behind = [one.body for one in owner.appended[41:]]
    assert [entry.body for entry in owner.journal.tail(at)] == behind
    with pytest.raises(PositionGoneError):
        list(owner.journal.tail(START))
    owner.append_some(5)
    owner.wait()
    owner.close()
    with engine.opened() as journal:
        assert [entry.body for entry in journal.tail(at)][: len(behind)] == behind
        with pytest.raises(PositionGoneError):
            list(journal.tail(START))
        assert journal.next_claim(0) is None
    second = engine.owner(History(tau=history.tau))
    assert second.claimed.floor == history.tau
    assert second.claimed.known_floor > 0
    assert all(tau > second.claimed.known_floor for _, tau in second.claimed.known)
    assert second.claimed.known[-1] == (owner.appended[-1].txid, owner.appended[-1].tau)
    second.close()


def test_an_owner_that_is_gone_leaves_whole_records(engine: Engine, history: History) -> None:
    """Many short lives, each with something still on its way when it ends."""
    for _ in range(5):
        owner = engine.owner(history)
        owner.append_some(30)
        owner.append(os.urandom(150_000))
        owner.close()
    check(history, engine.read())


def test_another_clusters_journal_is_refused(engine: Engine, history: History) -> None:
    owner = engine.owner(history)
    owner.close()
    with pytest.raises(WrongClusterError):
        engine.open(_ignore, _ignore, bytes(16))
    if isinstance(engine, NatsEngine):
        engine.remember = False  # the stream says so too
        with pytest.raises(WrongClusterError, match="belongs to cluster"):
            engine.open(_ignore, _ignore, bytes(16))


_ignore: Callable[[object], None] = lambda _: None  # noqa: E731
