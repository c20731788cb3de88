"""Merge by commit time, the buffer of recent records, and the horizon: the pure parts between journal and storage."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from australis.crossbar.feed import RecentRecords, frame_record
from australis.crossbar.merge import Merge
from australis.protocol.frames import FrameDecoder
from australis.protocol.messages import FeedRecord, any_decoder
from australis.storage.horizon import SECOND, horizon


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_merge_is_sorted_complete_and_never_early(seed: int, sources: int) -> None:
    rng = random.Random(seed)
    merge: Merge[tuple[int, int]] = Merge(sources, 0)
    times = [0] * sources
    sent: list[int] = []
    taken: list[int] = []
    for _ in range(100):
        source = rng.randrange(sources)
        times[source] += rng.randrange(1, 20) * sources
        tau = times[source] - times[source] % sources + source  # distinct over all sources
        if tau <= 0 or tau in sent:
            continue
        times[source] = tau
        if rng.random() < 0.3:
            merge.promise(source, tau)
        else:
            merge.add(source, tau, (source, tau))
            sent.append(tau)
        for at, item in merge.take():
            assert item[1] == at <= merge.watermark
            taken.append(at)
    assert taken == sorted(taken)
    for source in range(sources):
        merge.promise(source, 1 << 40)
    taken += [at for at, _ in merge.take()]
    assert taken == sorted(sent)


def test_merge_waits_for_every_source() -> None:
    merge: Merge[str] = Merge(2, 10)
    merge.add(0, 20, "a")
    assert merge.take() == []
    assert merge.watermark == 10
    merge.promise(1, 19)
    assert merge.take() == []
    merge.promise(1, 25)
    assert merge.take() == [(20, "a")]


def test_merge_refuses_broken_promises_and_forgets_on_restart() -> None:
    merge: Merge[str] = Merge(2, 0, limit=2)
    merge.promise(0, 30)
    with pytest.raises(ValueError, match="after promising"):
        merge.add(0, 30, "late")
    merge.add(0, 40, "a")
    merge.add(0, 41, "b")
    assert merge.is_full(0)
    merge.restart(0, 35)
    merge.add(0, 36, "c")
    merge.promise(1, 100)
    assert merge.take() == [(36, "c")]


@pytest.mark.parametrize("size", [0, 10, 70_000])
def test_a_framed_record_is_the_message(size: int) -> None:
    body = bytes(size)
    framed = frame_record(1 << 40, 3, b"h" * 16, 2, 1, 1_795_000_000_000_000_000, b"t" * 16, body)
    (received,) = FrameDecoder().feed(b"".join(framed.buffers))
    expected = FeedRecord(1 << 40, 3, b"h" * 16, 2, 1, 1_795_000_000_000_000_000, b"t" * 16, body)
    assert any_decoder.decode(received) == expected
    assert framed.size == len(received) + 4
    assert msgspec.msgpack.decode(received)[0] == 42


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 400), st.booleans()), max_size=200), st.integers(100, 3000))
def test_recent_records(steps: list[tuple[int, int, bool]], limit: int) -> None:
    recent = RecentRecords(10, limit)
    everything: list[int] = []
    sequence, durable = 10, 10
    for step, size, flushed in steps:
        sequence += step
        recent.add(frame_record(sequence, 1, bytes(16), 2, 0, sequence, bytes(16), bytes(size)), durable)
        everything.append(sequence)
        assert recent.covers(durable), "what is not durable is always there"
        got = [record.sequence for record in recent.behind(recent.base, 1 << 30)]
        assert got == [s for s in everything if s > recent.base]
        after = max(recent.base, sequence - 3)
        assert [r.sequence for r in recent.behind(after, 1 << 30)] == [s for s in everything if s > after]
        undurable = sum(1 for s in everything if s > durable)
        assert recent.size <= limit + limit // 16 + undurable * 520
        if flushed:
            durable = sequence


NOW = 1_795_000_000 * SECOND
RET = 300 * SECOND
CAP = 3600 * SECOND


@pytest.mark.parametrize(
    ("acked", "oldest", "before", "expected"),
    [
        (NOW, None, 0, NOW - RET),
        (NOW, NOW - 10, 0, NOW - RET),
        (NOW, NOW - 2 * RET, 0, NOW - 2 * RET),
        (NOW, NOW - 2 * CAP, 0, NOW - CAP),
        (NOW - CAP, None, 0, NOW - CAP),
        (NOW, None, NOW - 5, NOW - 5),
        (0, None, 0, 0),
    ],
)
def test_horizon(acked: int, oldest: int | None, before: int, expected: int) -> None:
    assert horizon(NOW, acked, oldest, before, RET, CAP) == expected
