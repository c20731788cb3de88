"""Owners of a journal that keep appending, what they were told, and the oracle that compares it with what is there.

The oracle: what was reported durable is read back by a fresh reader, in order, byte for byte, exactly once; what was
not is there whole or not at all, and then as a prefix; a fenced owner never reports durable again.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from australis.errors import AustralisError
from australis.journal.interface import Claimed, Journal, OnDurable, OnFailed
from australis.journal.record import Entry, Kind, Position

CLUSTER = bytes(range(16, 32))
PATIENCE = 90.0
"""Seconds until a test says that something never happened."""

Open = Callable[[OnDurable, OnFailed], Journal]


@dataclass
class Appended:
    """One record that was appended."""

    position: Position
    tau: int
    txid: bytes
    body: bytes


@dataclass
class History:
    """All that all owners of one journal did."""

    owners: list[Owner] = field(default_factory=list)
    seed: int = 0
    tau: int = 0

    def next_tau(self, floor: int) -> int:
        self.tau = max(self.tau, floor) + 1
        return self.tau


class Owner:
    """One generation: opens the journal, claims it, appends."""

    def __init__(self, history: History, open_journal: Open) -> None:
        self.appended: list[Appended] = []
        self.failure: AustralisError | None = None
        self.durable = 0
        self.wrong: list[str] = []
        self._news = threading.Condition()
        self._history = history
        self._choose = random.Random(len(history.owners) + history.seed * 1000)
        self.journal = open_journal(self._on_durable, self._on_failed)
        try:
            self.claimed: Claimed = self.journal.claim()
        except BaseException:
            self.journal.close()
            raise
        self.durable = max(self.durable, self.claimed.position.sequence)
        history.owners.append(self)

    def _on_durable(self, sequence: int) -> None:
        with self._news:
            if self.failure is not None:
                self.wrong.append(f"{sequence} reported durable after the failure")
            if sequence <= self.durable:
                self.wrong.append(f"{sequence} reported durable after {self.durable}")
            self.durable = sequence
            self._news.notify_all()

    def _on_failed(self, error: AustralisError) -> None:
        with self._news:
            if self.failure is not None:
                self.wrong.append(f"failed twice: {self.failure}, {error}")
            self.failure = error
            self._news.notify_all()

    def append(self, body: bytes, *, flush: bool = True) -> Appended:
        tau = self._history.next_tau(self.claimed.floor)
        txid = tau.to_bytes(16, "big")
        record = Appended(self.journal.append(Kind.TRANSACTION, 0, tau, txid, body, 0), tau, txid, body)
        self.appended.append(record)
        if flush:
            self.journal.flush()
        return record

    def append_some(self, count: int, largest: int = 4000) -> None:
        for _ in range(count):
            size = self._choose.randrange(largest)
            self.append(self._choose.randbytes(min(size, 64)).ljust(size, b"."), flush=False)
            if self._choose.random() < 0.5:
                self.journal.flush()
        self.journal.flush()

    def wait(self, sequence: int | None = None) -> None:
        """Until everything appended (or up to a sequence) is durable."""
        wanted = sequence if sequence is not None else self.appended[-1].position.sequence
        with self._news:
            done = self._news.wait_for(lambda: self.durable >= wanted or self.failure is not None, PATIENCE)
        assert self.failure is None, self.failure
        assert done, f"{wanted} never became durable, only {self.durable}"

    def wait_failed(self) -> AustralisError:
        with self._news:
            assert self._news.wait_for(lambda: self.failure is not None, PATIENCE), "never failed"
        assert self.failure is not None
        return self.failure

    def run(self, while_: Callable[[], bool], in_flight: int = 64) -> None:
        """Append until told to stop or failed, with so many records unanswered."""
        while while_() and self.failure is None:
            with self._news:
                self._news.wait_for(
                    lambda: (
                        self.failure is not None
                        or not while_()
                        or sum(1 for one in self.appended[-in_flight:] if one.position.sequence > self.durable)
                        < in_flight
                    ),
                    0.1,
                )
            outstanding = sum(1 for one in self.appended[-in_flight:] if one.position.sequence > self.durable)
            if outstanding < in_flight:
                self.append_some(self._choose.randint(1, 8))

    def close(self) -> None:
        self.journal.close()


def check(history: History, entries: Iterable[Entry]) -> None:
    """The oracle; `entries` is all that a fresh reader yields."""
    read = list(entries)
    sequences = [entry.position.sequence for entry in read]
    assert sequences == sorted(set(sequences)), "positions do not increase"
    generations = [entry.position.generation for entry in read]
    assert generations == sorted(generations), "generations do not increase"
    transactions = [entry for entry in read if entry.kind == Kind.TRANSACTION]
    assert len({entry.txid for entry in transactions}) == len(transactions), "something is there twice"
    for before, entry in pairwise(transactions):
        assert before.tau < entry.tau, "times do not increase"
    known = 0
    for owner in history.owners:
        assert not owner.wrong, owner.wrong
        generation = owner.claimed.generation
        there = [entry for entry in transactions if entry.position.generation == generation]
        known += len(there)
        promised = [one for one in owner.appended if one.position.sequence <= owner.durable]
        assert len(there) >= len(promised), (
            f"generation {generation}: {len(promised)} reported durable, {len(there)} are there"
        )
        for one, entry in zip(owner.appended, there, strict=False):
            assert (entry.position, entry.tau, entry.txid) == (one.position, one.tau, one.txid)
            assert entry.body == one.body, f"record {one.position.sequence} is not what was appended"
        assert len(there) <= len(owner.appended)
    assert known == len(transactions), "something is there that nobody appended"
