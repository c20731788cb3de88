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
from australis.journal.segments import BLOCK, END, list_segments

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


def test_missing_end(tmp_path: Path) -> None:
    """The last segments are gone: refused, changing nothing, since all was well when the journal was closed."""
    fill(tmp_path, 300)
    *kept, last = sorted(tmp_path.glob("*.segment"))
    content = {path: path.read_bytes() for path in (*kept, last)}
    for lost in ([last], [*kept, last]):
        for path in lost:
            path.unlink()
        said = "the segment is missing" if len(lost) == 1 else "holds no journal segment"
        assert any(said in problem for problem in check_journal(tmp_path, CLUSTER).problems)
        with pytest.raises(JournalDamagedError, match=f"{last.name}.*the segment is missing"):
            open_journal(tmp_path)
        assert sorted(tmp_path.glob("*.segment")) == [path for path in kept if path not in lost]
        for path in lost:
            path.write_bytes(content[path])
    open_journal(tmp_path).close()
    assert check_journal(tmp_path, CLUSTER).problems == []


def test_missing_tail(tmp_path: Path) -> None:
    """Not a torn write: these records were there when the journal was closed."""
    fill(tmp_path, 20)
    segment = sorted(tmp_path.glob("*.segment"))[0]
    whole = segment.read_bytes()
    segment.write_bytes(whole[: SEGMENT // 2])
    assert any("ends here" in problem for problem in check_journal(tmp_path, CLUSTER).problems)
    with pytest.raises(JournalDamagedError, match="the file ends here"):
        open_journal(tmp_path)
    segment.write_bytes(whole[: BLOCK + 10 * 1024] + bytes(SEGMENT - BLOCK - 10 * 1024))
    assert any("but it had 21" in problem for problem in check_journal(tmp_path, CLUSTER).problems)
    with pytest.raises(JournalDamagedError, match="but it had 21"):
        open_journal(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"x" * 512])
def test_nothing_is_missing_without_the_note_of_the_end(tmp_path: Path, content: bytes | None) -> None:
    fill(tmp_path, 3)
    if content is None:
        (tmp_path / END).unlink()
    else:
        (tmp_path / END).write_bytes(content)
    assert check_journal(tmp_path, CLUSTER).problems == []
    fill(tmp_path, 3)
    assert check_journal(tmp_path, CLUSTER).problems == []


def test_a_trimmed_journal_may_begin_within_a_record(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append(Kind.TRANSACTION, 0, 5, bytes(16), os.urandom(SEGMENT * 3), 0)
    journal.append(Kind.TRANSACTION, 0, 6, bytes(16), b"after", 0)
    journal.flush()
    journal.close()
    segments = sorted(tmp_path.glob("*.segment"))
    segments[0].unlink()
    report = check_journal(tmp_path, CLUSTER)
    assert report.problems == []
    assert report.transactions == 1


def test_torn_tail_is_cut_whole(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    journal = open_journal(tmp_path)
    offset = journal._offset
    for tau in (10, 11, 12):
        journal.append(Kind.TRANSACTION, 0, tau, bytes(16), bytes(2000), 0)
    journal.flush()  # one group of three
    path = journal._segments[-1].path
    end = (tmp_path / END).read_bytes()
    journal.close()
    (tmp_path / END).write_bytes(end)  # as a crash leaves it
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
    report = check_journal(tmp_path, CLUSTER)
    try:
        journal = open_journal(tmp_path)
    except AustralisError:
        assert report.problems
        return
    assert report.problems == []
    entries = [entry for entry in journal.tail(START) if entry.kind == Kind.TRANSACTION]
    journal.close()
    # padding between groups is nobody's
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
