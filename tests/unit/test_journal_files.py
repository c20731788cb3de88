"""The files engine on real files: damage is refused with its place, torn tails are cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from australis.errors import AustralisError, JournalDamagedError, JournalLockedError, WrongClusterError
from australis.journal.check import check_journal
from australis.journal.file_layer import OsFiles
from australis.journal.files import FilesJournal
from australis.journal.record import START, Kind
from australis.journal.segments import BLOCK, list_segments

CLUSTER = bytes(range(16))
SEGMENT = 64 << 10


def open_journal(directory: Path, *, dsync: bool = True) -> FilesJournal:
    journal = FilesJournal(
        directory,
        CLUSTER,
        lambda _: None,
        lambda _: None,
        layer=OsFiles(dsync=dsync),
        segment_bytes=SEGMENT,
        first_segment_bytes=SEGMENT,
    )
    journal.claim()
    return journal


def fill(directory: Path, count: int, size: int = 700) -> None:
    journal = open_journal(directory)
    start = journal._state.tau
    for tau in range(start + 1, start + count + 1):
        journal.append(Kind.TRANSACTION, 0, tau, tau.to_bytes(16, "big"), bytes([tau % 251]) * size, 0)
        journal.flush()
    journal.close()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


@pytest.mark.parametrize("dsync", [True, False])
def test_round_trip(tmp_path: Path, dsync: bool) -> None:
    journal = open_journal(tmp_path, dsync=dsync)
    bodies = [os.urandom(size) for size in (0, 1, 511, 512, 5000, 50_000, 200_000)]
    for tau, body in enumerate(bodies, start=1):
        journal.append(Kind.TRANSACTION, 3, tau, tau.to_bytes(16, "big"), body, tau)
    journal.flush()
    journal.close()
    journal = open_journal(tmp_path, dsync=dsync)
    entries = [entry for entry in journal.tail(START) if entry.kind != Kind.CLAIM]
    assert [entry.body for entry in entries] == bodies
    assert [entry.tau for entry in entries] == list(range(1, 8))
    assert {entry.flags for entry in entries} == {3}
    journal.close()
    report = check_journal(tmp_path, CLUSTER)
    assert report.problems == []
    assert (report.transactions, report.generation, report.last_tau) == (7, 2, 7)


def test_a_body_larger_than_a_segment_is_one_record(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    body = os.urandom(SEGMENT * 5 + 123)
    journal.append(Kind.TRANSACTION, 0, 5, bytes(16), body, 0)
    journal.flush()
    journal.append(Kind.TRANSACTION, 0, 6, bytes(16), b"after", 0)
    journal.flush()
    journal.close()
    journal = open_journal(tmp_path)
    assert journal.durable > 20
    assert [entry.body for entry in journal.tail(START)][1:3] == [body, b"after"]
    journal.close()


def test_an_incomplete_set_of_parts_is_dropped(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    journal = open_journal(tmp_path)
    journal.append(Kind.TRANSACTION, 0, 100, bytes(16), os.urandom(SEGMENT), 0)
    journal._batch.pop()  # the process dies before the last record, the one with tau, is written
    journal.flush()
    journal.close()
    journal = open_journal(tmp_path)
    journal.append(Kind.TRANSACTION, 0, 101, bytes(16), b"next", 0)
    journal.flush()
    journal.close()
    journal = open_journal(tmp_path)
    assert [entry.tau for entry in journal.tail(START) if entry.kind == Kind.TRANSACTION] == [1, 2, 101]
    journal.close()


@pytest.mark.parametrize("at", [BLOCK + 600, BLOCK + 5 * 1024 + 30, BLOCK + 20 * 1024 + 200])
def test_damage_in_the_middle_is_refused_with_its_place(tmp_path: Path, at: int) -> None:
    fill(tmp_path, 30)
    segment = sorted(tmp_path.glob("*.segment"))[0]
    flip(segment, at)
    with pytest.raises(JournalDamagedError) as caught:
        open_journal(tmp_path)
    assert caught.value.segment == segment.name
    assert caught.value.offset <= at < caught.value.offset + 1024
    assert str(caught.value.offset) in str(caught.value)
    assert any(segment.name in problem for problem in check_journal(tmp_path, CLUSTER).problems)
    flip(segment, at)  # nothing was changed by the attempt
    open_journal(tmp_path).close()


def test_damage_in_an_older_segment(tmp_path: Path) -> None:
    fill(tmp_path, 300)
    segments = sorted(tmp_path.glob("*.segment"))
    assert len(segments) > 2
    flip(segments[0], BLOCK + 3000)
    with pytest.raises(JournalDamagedError, match=segments[0].name):
        open_journal(tmp_path)


def test_missing_segment(tmp_path: Path) -> None:
    fill(tmp_path, 300)
    segments = sorted(tmp_path.glob("*.segment"))
    segments[1].unlink()
    with pytest.raises(JournalDamagedError, match=segments[1].name):
        open_journal(tmp_path)


def test_torn_tail_is_cut_whole(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    journal = open_journal(tmp_path)
    offset = journal._offset
    for tau in (10, 11, 12):
        journal.append(Kind.TRANSACTION, 0, tau, bytes(16), bytes(2000), 0)
    journal.flush()  # one group of three
    path = journal._segments[-1].path
    journal.close()
    flip(path, offset + 5000)  # within the last record: none of the group was acknowledged before all were durable
    journal = open_journal(tmp_path)
    assert [entry.tau for entry in journal.tail(START) if entry.kind == Kind.TRANSACTION] == [1, 2, 3]
    journal.append(Kind.TRANSACTION, 0, 20, bytes(16), b"goes on", 0)
    journal.flush()
    journal.close()
    journal = open_journal(tmp_path)
    assert [entry.tau for entry in journal.tail(START) if entry.kind == Kind.TRANSACTION] == [1, 2, 3, 20]
    journal.close()


@pytest.mark.parametrize("seed", range(40))
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, seed: int) -> None:
    """Any changed byte of a segment's used part is refused, or cuts the very last group."""
    fill(tmp_path, 20)
    segment = sorted(tmp_path.glob("*.segment"))[0]
    used = list_segments(OsFiles(), tmp_path, CLUSTER)
    assert len(used) == 1
    journal = open_journal(tmp_path)
    end = journal._offset
    journal.close()
    at = (seed * 7919) % (end - BLOCK) + BLOCK
    flip(segment, at)
    try:
        journal = open_journal(tmp_path)
    except AustralisError:
        return
    entries = [entry for entry in journal.tail(START) if entry.kind == Kind.TRANSACTION]
    journal.close()
    # padding between groups is nobody's, and the last group may be torn
    assert [entry.body for entry in entries] == [bytes([tau % 251]) * 700 for tau in range(1, 21)]


def test_segment_header_damage(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    segment = sorted(tmp_path.glob("*.segment"))[0]
    flip(segment, 40)
    with pytest.raises(JournalDamagedError, match="header"):
        open_journal(tmp_path)


def test_another_cluster(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    with pytest.raises(WrongClusterError, match="belongs to cluster"):
        FilesJournal(tmp_path, bytes(16), lambda _: None, lambda _: None)


def test_lock_excludes_other_processes_and_ends_with_ours(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    pid = os.fork()
    if pid == 0:
        try:
            FilesJournal(tmp_path, CLUSTER, lambda _: None, lambda _: None)
        except JournalLockedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    journal.close()
    open_journal(tmp_path).close()


def test_known_transactions_are_found_again(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    journal = FilesJournal(tmp_path, CLUSTER, lambda _: None, lambda _: None, segment_bytes=SEGMENT)
    claimed = journal.claim()
    assert claimed.known == [(tau.to_bytes(16, "big"), tau) for tau in range(1, 11)]
    assert claimed.known_floor == 0
    journal.close()
