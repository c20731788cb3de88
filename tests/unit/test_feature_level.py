"""The feature level: nobody that lives ever meets a level that it cannot read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from australis.feature_level import (
    SUPPORTED,
    FeatureLevel,
    FeatureLevelError,
    Levels,
    begin,
    blocked_by,
    check,
    decode,
    finish,
)


def test_this_program_and_a_new_cluster() -> None:
    check(FeatureLevel(), SUPPORTED, "storage-0-0")
    assert SUPPORTED.newest - SUPPORTED.oldest <= 1
    assert decode(FeatureLevel(3, 4).encode()) == FeatureLevel(3, 4)


@pytest.mark.parametrize(
    ("record", "levels", "said"),
    [
        (FeatureLevel(3, 3), Levels(1, 2), "level 3, this program reads up to 2; start a newer version"),
        (FeatureLevel(2, 3), Levels(1, 2), "level 3, this program reads up to 2"),
        (FeatureLevel(1, 1), Levels(2, 3), "level 1, this program reads 2 and later; raise"),
        (FeatureLevel(1, 2), Levels(2, 3), "level 1, this program reads 2 and later; raise"),
    ],
)
def test_a_role_that_cannot_read_it_refuses(record: FeatureLevel, levels: Levels, said: str) -> None:
    with pytest.raises(FeatureLevelError, match=said) as caught:
        check(record, levels, "gateway-a")
    assert str(caught.value).startswith("gateway-a: ")
    assert "\n" not in str(caught.value)


def test_raised_only_when_all_can_read_it() -> None:
    record = begin(FeatureLevel(1, 1))
    announced = {"a": Levels(1, 2), "b": Levels(1, 1), "c": Levels(1, 2)}
    assert blocked_by(record, announced) == ["b"]
    assert finish(record, announced) == FeatureLevel(1, 1)
    assert finish(record, {**announced, "b": Levels(1, 2)}) == FeatureLevel(2, 2)
    assert finish(record, {}) == FeatureLevel(1, 1)  # nobody asked is not everybody agreed
    assert begin(record) == record


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x00\x00", b"\x92\x01\x03", b"\x92\x02\x01", b"\x92\xa1x\x01"])
def test_bytes_that_are_no_record(data: bytes) -> None:
    with pytest.raises(FeatureLevelError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.tuples(st.sampled_from(["start", "stop", "begin", "ask", "finish"]), st.integers(0, 3)), max_size=60)
)
def test_any_order_of_starts_and_raises(steps: list[tuple[str, int]]) -> None:
    """Start = announce, then (perhaps much later) read the record; a raise = begin, ask, finish. Interleaved anyhow."""
    record = FeatureLevel()
    announced: dict[int, Levels] = {}
    running: dict[int, Levels] = {}
    asked: dict[str, Levels] | None = None
    for step, number in steps:
        if step == "start":
            levels = Levels(max(1, number), number + 1)
            if number in announced:  # second half
                try:
                    check(record, announced[number], str(number))
                    running[number] = announced[number]
                except FeatureLevelError:
                    del announced[number]
                    running.pop(number, None)
            else:
                announced[number] = levels
        elif step == "stop":
            announced.pop(number, None)
            running.pop(number, None)
        elif step == "begin":
            record, asked = begin(record), None
        elif step == "ask" and record.target > record.level:
            asked = {str(name): levels for name, levels in announced.items()}
        elif step == "finish" and asked is not None:
            before = record
            record, asked = finish(record, asked), None
            assert before.level <= record.level <= before.level + 1
        assert all(levels.reads(record.level) for levels in running.values())
