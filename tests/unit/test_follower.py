"""The follower of all journals: validity (J1), heartbeats (W1), journals that begin and end (W2)."""

from __future__ import annotations

from australis.crossbar.follower import Follower
from australis.crossbar.merge import NEVER
from australis.journal.record import NO_TXID, START, Kind, Position, decode_header, encode_record
from australis.protocol.messages import Heartbeat, JournalBegins, JournalEnds, encode

CLUSTER = bytes(range(16))


class Journal:
    """Writes records of one journal, straight into a follower."""

    def __init__(self, follower: Follower, number: int) -> None:
        self.follower, self.number = follower, number
        self.last = START

    def write(self, kind: Kind, tau: int, body: bytes = b"", generation: int = 1, *, chained: bool = True) -> Position:
        previous = self.last.hash if chained else bytes(16)
        sequence = self.last.sequence + 1
        record = encode_record(kind, 0, CLUSTER, generation, sequence, previous, 0, tau, NO_TXID, body)
        position = Position(sequence, generation, record.hash)
        if chained:
            self.last = position
        self.follower.record(self.number, decode_header(record.header), record.hash, body)
        return position

    def heartbeat(self, position: Position, h: int, generation: int = 1) -> None:
        sequence, record_generation, hash = position
        self.follower.heartbeat(Heartbeat(self.number, generation, sequence, record_generation, hash, h))


def two() -> tuple[Follower, Journal, Journal]:
    follower = Follower(CLUSTER, 0, [0, 1])
    journals = Journal(follower, 0), Journal(follower, 1)
    for journal in journals:
        journal.write(Kind.CLAIM, 0)
    return follower, *journals


def taus(follower: Follower) -> list[int]:
    return [tau for tau, _ in follower.take()]


def test_w2_the_watermark_is_the_minimum_over_all_journals() -> None:
    follower, one, other = two()
    one.write(Kind.TRANSACTION, 10)
    assert (taus(follower), follower.watermark) == ([], 0)
    other.write(Kind.TRANSACTION, 7)
    assert (taus(follower), follower.watermark) == ([7], 7)
    other.write(Kind.TRANSACTION, 12)
    assert (taus(follower), follower.watermark) == ([10], 10)


def test_w1_a_heartbeat_counts_once_its_record_was_read() -> None:
    follower, one, other = two()
    one.write(Kind.TRANSACTION, 10)
    unread = Journal(Follower(CLUSTER, 0, [0, 1]), 1)
    unread.write(Kind.CLAIM, 0)
    position = unread.write(Kind.TRANSACTION, 8)
    other.heartbeat(position, 20)
    assert (taus(follower), follower.watermark) == ([], 0)  # its record, at 8, is still to come
    other.write(Kind.TRANSACTION, 8)
    assert (taus(follower), follower.watermark) == ([8, 10], 10)


def test_w1_a_heartbeat_of_another_generation_does_not_count() -> None:
    follower, one, other = two()
    one.write(Kind.TRANSACTION, 10)
    old = other.last
    other.write(Kind.CLAIM, 5, generation=2)
    other.heartbeat(old, 20)
    assert follower.watermark == 5
    other.heartbeat(other.last, 20, generation=2)
    assert (taus(follower), follower.watermark) == ([10], 10)


def test_j1_records_of_a_deposed_owner_do_not_count() -> None:
    follower, one, other = two()
    one.write(Kind.TRANSACTION, 10)
    other.write(Kind.CLAIM, 5, generation=2)
    other.write(Kind.TRANSACTION, 9, generation=1, chained=False)
    other.write(Kind.TRANSACTION, 9, generation=2, chained=False)
    assert (taus(follower), follower.watermark) == ([], 5)
    other.write(Kind.TRANSACTION, 11, generation=2)
    assert (taus(follower), follower.watermark) == ([10], 10)


def test_w2_nobody_passes_the_beginning_of_a_journal_without_following_it() -> None:
    follower, one, other = two()
    one.write(Kind.JOURNAL_BEGINS, 10, encode(JournalBegins(2, 10)))
    assert follower.journals == [0, 1, 2]
    one.write(Kind.TRANSACTION, 20)
    other.write(Kind.TRANSACTION, 30)
    assert (taus(follower), follower.watermark) == ([10], 10)
    newcomer = Journal(follower, 2)
    newcomer.write(Kind.CLAIM, 10)
    newcomer.write(Kind.TRANSACTION, 15)
    newcomer.heartbeat(newcomer.last, 40)
    assert (taus(follower), follower.watermark) == ([15, 20], 20)


def test_w2_a_journal_that_ended_holds_nothing_back_once_it_was_read() -> None:
    follower, one, other = two()
    other.write(Kind.TRANSACTION, 5)
    unread = Journal(Follower(CLUSTER, 0, [0, 1]), 1)
    unread.last = other.last
    last = unread.write(Kind.HORIZON, 8)
    one.write(Kind.JOURNAL_ENDS, 10, encode(JournalEnds(1, last.sequence, last.hash)))
    one.write(Kind.TRANSACTION, 20)
    assert (taus(follower), follower.watermark) == ([5], 5)
    other.write(Kind.HORIZON, 8)
    assert (taus(follower), follower.watermark) == ([8, 10, 20], 20)
    one.heartbeat(one.last, NEVER)
    assert follower.watermark == NEVER
