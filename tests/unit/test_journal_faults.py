"""The files engine under lost writes, torn writes, full disks and failing disks (rules J2-J4).

The contract: whatever was reported durable is read back, in order, byte for byte; what was not is there completely or
not at all, and only as a prefix of what was appended; a later generation's records follow.
"""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

import pytest

from australis.errors import AustralisError, JournalError, JournalFullError, JournalLockedError
from australis.journal.files import LARGE_BYTES, FilesJournal
from australis.journal.record import START, Entry, Kind
from tests.unit.memory_files import MemoryFiles

CLUSTER = bytes(range(16))
DIRECTORY = Path("/nowhere/journal")
SEGMENT = 32 << 10


@pytest.fixture(autouse=True)
def _no_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)


class Owner:
    """One life of a journal's owner, and what it was told."""

    def __init__(self, layer: MemoryFiles, *, inline: bool = True) -> None:
        self.durable = 0
        self.failure: AustralisError | None = None
        self.ended = threading.Event()
        self.progress = threading.Condition()
        self.journal = FilesJournal(
            DIRECTORY,
            CLUSTER,
            self._on_durable,
            self._on_failed,
            layer=layer,
            segment_bytes=SEGMENT,
            first_segment_bytes=SEGMENT // 2,
        )
        self.claimed = self.journal.claim()
        if not inline:
            self.journal._latency = 10.0  # a slow disk: everything goes through the writer thread

    def _on_durable(self, sequence: int) -> None:
        with self.progress:
            assert sequence > self.durable
            self.durable = sequence
            self.progress.notify_all()

    def _on_failed(self, error: AustralisError) -> None:
        with self.progress:
            self.failure = error
            self.ended.set()
            self.progress.notify_all()

    def wait(self, sequence: int) -> None:
        with self.progress:
            assert self.progress.wait_for(lambda: self.durable >= sequence or self.failure is not None, 20)


def body_of(number: int, rng: random.Random) -> bytes:
    size = rng.choice([0, 1, 100, 300, 600, 2000, 9000, 40000])
    return number.to_bytes(8, "little") + rng.randbytes(size)


def entries_of(journal: FilesJournal) -> list[Entry]:
    first = journal._segments[0].start.position
    return [entry for entry in journal.tail(first) if entry.kind != Kind.CLAIM]


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("mode", ["power", "kill", "error"])
@pytest.mark.parametrize("seed", range(8))
def test_acknowledged_records_survive(seed: int, mode: str, inline: bool) -> None:
    rng = random.Random(seed)
    layer = MemoryFiles(seed)
    written: list[tuple[int, bytes]] = []  # (tau, body) that must be there
    tau = 0
    for _ in range(6):
        ahead = layer.operations + rng.randrange(8, 60)
        if mode == "power":
            layer.power_loss_at = ahead
        elif mode == "error":
            layer.write_error_at = ahead
        appended: list[tuple[int, int, bytes]] = []
        owner: Owner | None = None
        try:
            owner = Owner(layer, inline=inline)
            journal = owner.journal
            assert [(entry.tau, entry.body) for entry in entries_of(journal)] == written
            assert owner.claimed.floor == (written[-1][0] if written else 0)
            for _ in range(rng.randrange(1, 40)):
                for _ in range(rng.randrange(1, 5)):
                    tau += rng.randrange(1, 1000)
                    body = body_of(tau, rng)
                    position = journal.append(Kind.TRANSACTION, 0, tau, tau.to_bytes(16, "big"), body, 0)
                    appended.append((position.sequence, tau, body))
                journal.flush()
                if rng.random() < 0.3:
                    owner.wait(appended[-1][0])
                if owner.failure is not None:
                    break
            if owner.failure is None:
                owner.wait(appended[-1][0])
        except AustralisError:
            pass  # power was lost while opening or claiming
        if owner is not None:
            acknowledged = owner.durable
            with contextlib.suppress(JournalError):  # the fault strikes only now
                owner.journal.close()
        else:
            acknowledged = 0
        if mode == "power":
            layer.reboot()
        else:
            layer.kill()
        # what is there now: all that was acknowledged, then a prefix of the rest
        check = FilesJournal(
            DIRECTORY,
            CLUSTER,
            lambda _: None,
            lambda _: None,
            layer=layer,
            segment_bytes=SEGMENT,
            first_segment_bytes=SEGMENT // 2,
        )
        found = [(entry.tau, entry.body) for entry in entries_of(check)]
        check.close()
        layer.locked = False
        certain = written + [(t, b) for sequence, t, b in appended if sequence <= acknowledged]
        possible = written + [(t, b) for _, t, b in appended]
        assert found[: len(certain)] == certain
        assert found == possible[: len(found)]
        written = found


def test_failed_sync_is_not_believed_after_restart() -> None:
    """After a failed write the page cache may hold what the disk does not: a restart must write it again (J4)."""
    layer = MemoryFiles(5)
    owner = Owner(layer)
    layer.random.random = lambda: 1.0  # type: ignore[method-assign]  # nothing of the failing write reaches the disk
    layer.write_error_at = layer.operations + 1
    owner.journal.append(Kind.TRANSACTION, 0, 10, bytes(16), b"shown by the cache", 0)
    owner.journal.flush()
    assert owner.failure is not None
    owner.journal.close()
    layer.kill()
    again = Owner(layer)
    assert [entry.body for entry in entries_of(again.journal)] == [b"shown by the cache"]
    again.journal.close()
    layer.reboot()
    after = Owner(layer)
    assert [entry.body for entry in entries_of(after.journal)] == [b"shown by the cache"]
    after.journal.close()


def test_nothing_is_written_after_an_error() -> None:
    layer = MemoryFiles()
    owner = Owner(layer)
    layer.write_error_at = layer.operations + 1
    owner.journal.append(Kind.TRANSACTION, 0, 10, bytes(16), b"a", 0)
    owner.journal.flush()
    assert isinstance(owner.failure, JournalError)
    before = layer.operations
    owner.journal.append(Kind.TRANSACTION, 0, 11, bytes(16), b"b", 0)
    owner.journal.flush()
    owner.journal.close()
    assert layer.operations == before
    assert owner.durable == 0


def test_full_disk_refuses_then_recovers() -> None:
    layer = MemoryFiles()
    owner = Owner(layer)
    journal = owner.journal
    layer.space = 0
    tau, sequence, refused = 0, 0, False
    for _ in range(2000):
        tau += 1
        if not journal.admits(500):
            refused = True
            break
        sequence = journal.append(Kind.TRANSACTION, 0, tau, bytes(16), bytes(500), 0).sequence
        journal.flush()
        owner.wait(sequence)
        preparer = journal._preparer
        if preparer is not None and not journal.full:
            # the preparer has been started: it says "full" before anything else happens
            with journal._lock:
                journal._lock.wait_for(lambda: journal._full, 0.2)
    assert refused
    assert owner.durable == sequence, "what was admitted is durable without more space"
    assert owner.failure is None
    layer.space = 1 << 30
    with journal._lock:
        journal._lock.notify_all()
    with journal._lock:
        assert journal._lock.wait_for(lambda: not journal._full, 10)
    assert journal.admits(500)
    sequence = journal.append(Kind.TRANSACTION, 0, tau + 1, bytes(16), bytes(500), 0).sequence
    journal.flush()
    owner.wait(sequence)
    assert owner.durable == sequence
    assert len(entries_of(journal)) == tau
    journal.close()


def test_a_large_record_needs_space_for_all_of_its_segments() -> None:
    layer = MemoryFiles()
    owner = Owner(layer)
    length = LARGE_BYTES + 5 * SEGMENT
    layer.space = length
    assert not owner.journal.admits(length)
    assert not owner.journal.full
    assert owner.journal.admits(500)
    while not owner.journal.admits(length):
        layer.space += SEGMENT
    sequence = owner.journal.append(Kind.TRANSACTION, 0, 1, bytes(16), bytes(length), 0).sequence
    owner.journal.flush()
    owner.wait(sequence)
    assert owner.durable == sequence
    owner.journal.close()


def test_full_disk_at_the_first_start() -> None:
    layer = MemoryFiles()
    layer.space = 0
    with pytest.raises(JournalFullError, match="no space"):
        Owner(layer)


def test_two_owners() -> None:
    layer = MemoryFiles()
    owner = Owner(layer)
    with pytest.raises(JournalLockedError, match="in use"):
        Owner(layer)
    owner.journal.close()


def test_trim_and_recycle_bound_the_journal() -> None:
    layer = MemoryFiles()
    owner = Owner(layer)
    journal = owner.journal
    sequence = 0
    for tau in range(1, 2000):
        sequence = journal.append(Kind.TRANSACTION, 0, tau, bytes(16), bytes(700), 7).sequence
        journal.flush()
        owner.wait(sequence)
        if tau % 50 == 0:
            journal.trim(sequence - 20)
    assert len(journal._segments) <= 4
    assert len(layer.files) <= 8
    tail = list(journal.tail(journal._segments[0].start.position))
    assert tail[-1].tau == 1999
    assert [entry.tau for entry in tail] == list(range(tail[0].tau, 2000))
    with pytest.raises(JournalError, match="no longer reaches"):
        list(journal.tail(START))
    journal.close()
    layer.kill()
    again = Owner(layer)
    assert again.claimed.floor == 1999
    assert again.claimed.ddl == 7
    again.journal.close()


def test_next_claim_names_the_end_of_a_generation() -> None:
    layer = MemoryFiles()
    first = Owner(layer)
    position = first.journal.append(Kind.TRANSACTION, 0, 50, bytes(16), b"x", 0)
    first.journal.flush()
    first.wait(position.sequence)
    first.journal.close()
    layer.kill()
    second = Owner(layer)
    claim = second.journal.next_claim(1)
    assert claim is not None
    assert (claim.previous, claim.tau, claim.position.generation) == (position, 50, 2)
    # known without reading, and the same as what is read
    assert claim in list(second.journal.tail(START))
    assert second.journal.next_claim(2) is None
    second.journal.close()
    layer.kill()
    third = Owner(layer)
    assert third.journal.next_claim(1) == claim
    third.journal.close()
