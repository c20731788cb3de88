"""Keys and row images in Python."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from australis import keyspace as k

COLUMN = st.sampled_from(
    [k.Column(1, 1), k.Column(2, 2), k.Column(4, 4), k.Column(8, 8), k.Column(16, 1), k.Column(-1, 4)]
)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[k.Column], list[bytes | None]]:
    columns = draw(st.lists(COLUMN, max_size=20))
    values: list[bytes | None] = []
    for column in columns:
        if draw(st.booleans()) and draw(st.booleans()):
            values.append(None)
        elif column.length < 0:
            values.append(draw(st.binary(max_size=300)))
        else:
            values.append(draw(st.binary(min_size=column.length, max_size=column.length)))
    return columns, values


@given(rows(), st.integers(0, 2**32 - 1))
def test_rows_round_trip(row: tuple[list[k.Column], list[bytes | None]], xmin: int) -> None:
    columns, values = row
    image = k.encode_row(columns, values, xmin)
    assert k.decode_row(image, columns) == k.RowImage(xmin, values)


@given(st.binary(max_size=60))
def test_garbage_is_a_value_error(image: bytes) -> None:
    with contextlib.suppress(ValueError):
        k.decode_row(image, [k.Column(-1, 4), k.Column(8, 8), k.Column(-2, 1)])


def test_row_image_of_the_format() -> None:
    """The example of docs/formats.md §2, byte by byte: (int4 7, NULL, text 'ab')."""
    columns = [k.Column(4, 4), k.Column(8, 8), k.Column(-1, 4)]
    image = k.encode_row(columns, [(7).to_bytes(4, "little"), None, b"ab"], 9)
    assert image.hex() == "0103030009000000" + "0500000000000000" + "07000000" + "076162"


def test_fewer_columns_than_the_table_has() -> None:
    image = k.encode_row([k.Column(4, 4)], [b"\1\0\0\0"], 1)
    assert k.decode_row(image, [k.Column(4, 4), k.Column(-1, 4)]).columns == [b"\1\0\0\0"]
    with pytest.raises(ValueError, match="2 columns"):
        k.decode_row(k.encode_row([k.Column(4, 4)] * 2, [b"\1\0\0\0"] * 2, 1), [k.Column(4, 4)])


@given(st.binary(min_size=1, max_size=12), st.binary(max_size=12))
def test_prefix_successor(prefix: bytes, rest: bytes) -> None:
    successor = k.prefix_successor(prefix)
    if successor is None:
        assert set(prefix) == {255}
    else:
        assert prefix + rest < successor
        assert successor[:-1] == prefix[: len(successor) - 1]


def test_relations() -> None:
    relation = k.relation_id(5, 16385)
    lo, hi = k.relation_range(relation)
    assert k.relation_of(lo + b"anything") == relation
    assert hi == k.relation_prefix(relation + 1)
    assert k.ddl_key(12).hex() == "0000000000000001000000000000000c"
    assert k.layout_key(relation).hex() == "0000000000000003" + "0000000500004001"
    assert k.sequence_key(5, 16390).hex() == "0000000000000002" + "0000000500004006"
    assert k.cluster_key("a").hex() == "0000000000000004" + "61"
