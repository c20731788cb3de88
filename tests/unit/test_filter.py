"""Filters of scans in the native store: against a plain model, and with bytes that nobody meant.

Must hold: no row that the conditions accept is dropped; a program that is not well-formed is refused with one error;
rows that are not well-formed pass as they are. Built with sanitizers, `make check` runs the same code.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from australis._native import MalformedError, Store
from australis.protocol.messages import ReadStatus, Scan
from australis.storage.scans import answer_scan
from tests.unit.test_native_store import CLUSTER, TABLE, commit, entries

LO, HI = TABLE.to_bytes(8, "big"), (TABLE + 1).to_bytes(8, "big")
Row = tuple[int | None, bytes | None, int | None, float | None]
COLUMNS = [(4, 4), (-1, 4), (2, 2), (8, 8)]
AND, OR, NULL, NOT_NULL, COMPARE = range(1, 6)
SIGNED, UNSIGNED, FLOAT, BYTES = range(1, 5)
OPERATORS: list[Callable[[int], bool]] = [
    lambda c: c == 0, lambda c: c != 0, lambda c: c < 0, lambda c: c <= 0, lambda c: c > 0, lambda c: c >= 0,
]  # fmt: skip


def image(row: Row, natts: int = 4) -> bytes:
    """A row image (docs/formats.md §2)."""
    data = b""
    bitmap = 0
    for i, (value, (length, align)) in enumerate(zip(row[:natts], COLUMNS, strict=False)):
        if value is None:
            continue
        bitmap |= 1 << i
        if isinstance(value, bytes) and len(value) <= 126:
            data += bytes([(len(value) + 1) << 1 | 1]) + value
            continue
        data += b"\0" * (-len(data) % align)
        if isinstance(value, bytes):
            data += struct.pack("<I", (len(value) + 4) << 2) + value
        else:
            data += struct.pack({4: "<i", 2: "<h", 8: "<d"}[length], value)
    nulls = any(value is None for value in row[:natts])
    header = struct.pack("<BBHI", 1, 2 | nulls, natts, 77)
    if nulls:
        header += bytes([bitmap])
    return header + b"\0" * (-len(header) % 8) + data


def program(condition: bytes, wanted: set[int] | None = None) -> bytes:
    """A filter (docs/formats.md §5)."""
    columns = b"".join(
        struct.pack("<hBB", length, align, wanted is not None and i in wanted)
        for i, (length, align) in enumerate(COLUMNS)
    )
    return struct.pack("<BBH", 1, wanted is not None, len(COLUMNS)) + columns + condition


def compared(a: float | bytes, b: float | bytes) -> int:
    return (a > b) - (a < b)  # type: ignore[operator]


def condition(rng: random.Random, depth: int = 0) -> tuple[bytes, Callable[[Row], bool]]:
    """A random condition and the same in Python."""
    if depth < 3 and rng.random() < 0.5:
        what = rng.choice([AND, OR])
        parts = [condition(rng, depth + 1) for _ in range(rng.randrange(0, 4))]
        together = all if what == AND else any
        code = struct.pack("<BH", what, len(parts)) + b"".join(code for code, _ in parts)
        return code, lambda row: together(holds(row) for _, holds in parts)
    column = rng.randrange(4)
    if rng.random() < 0.2:
        what = rng.choice([NULL, NOT_NULL])
        return struct.pack("<BH", what, column), lambda row: (row[column] is None) == (what == NULL)
    constant = rng.choice([value for value in values(column) if value is not None])
    if isinstance(constant, bytes):
        kind, content = BYTES, constant
    elif isinstance(constant, float):
        kind, content = FLOAT, struct.pack("<d", constant)
    else:
        kind, content = SIGNED, struct.pack("<q", constant)
    op = rng.randrange(6)

    def holds(row: Row) -> bool:
        value = row[column]
        return value is not None and OPERATORS[op](compared(value, constant))

    return struct.pack("<BHBBH", COMPARE, column, kind, op, len(content)) + content, holds


def values(column: int) -> list[int | bytes | float | None]:
    """What is in a column."""
    some: list[list[int | bytes | float | None]] = [
        [None, -(1 << 31), 0, 5, 1 << 30], [None, b"", b"a", b"ab", b"b" * 126, b"b" * 127, b"\0\0"],
        [None, -3, 0, 5], [None, -1.5, 0.0, 5.0],
    ]  # fmt: skip
    return some[column]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), CLUSTER)


def key(number: int) -> bytes:
    return LO + number.to_bytes(4, "big")


def read(store: Store, code: bytes, *, backward: bool = False, rows: int = 7, examined: int = 50) -> dict[int, bytes]:
    """All that passes, batch by batch."""
    lo, hi, found = LO, HI, {}
    while True:
        batch, more, resume = store.scan_where(lo, hi, backward, 100, rows, 1 << 20, code, examined)
        for entry in entries(b"" if code[1:2] == b"\x02" else batch):
            assert entry is not None
            found[int.from_bytes(entry[0][8:], "big")] = entry[1]
        if not more:
            return found
        assert lo <= resume <= hi and (resume < hi if backward else resume > lo), "it goes on"
        lo, hi = (lo, resume) if backward else (resume, hi)


@pytest.mark.parametrize("seed", range(10))
def test_what_passes_is_what_the_model_says(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    rows: list[Row] = [tuple(rng.choice(values(i)) for i in range(4)) for _ in range(300)]  # type: ignore[misc]
    store.apply([(50, commit(50, [(key(i), image(row)) for i, row in enumerate(rows)]))])
    for _ in range(100):
        code, holds = condition(rng)
        wanted = set(rng.sample(range(4), rng.randrange(4))) if rng.random() < 0.5 else None
        found = read(store, program(code, wanted), backward=rng.random() < 0.5)
        assert sorted(found) == [i for i, row in enumerate(rows) if holds(row)]
        if wanted is None:
            assert all(value == image(rows[i]) for i, value in found.items())
            continue
        last = max(wanted, default=-1) + 1
        for i, value in found.items():
            cut: Row = tuple(v if n in wanted else None for n, v in enumerate(rows[i]))  # type: ignore[assignment]
            expected = image(cut, last)
            if expected[1] & 1 == 0 or last == 0:  # the bitmap is there in any case
                assert value[1] & 1 == 1 and value[8 + (8 if last else 0) :] == expected[8:]
            else:
                assert value == expected


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_what_passes(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    rows: list[Row] = [tuple(rng.choice(values(i)) for i in range(4)) for _ in range(300)]  # type: ignore[misc]
    store.apply([(50, commit(50, [(key(i), image(row)) for i, row in enumerate(rows)]))])
    for _ in range(50):
        code, holds = condition(rng)
        code = program(code)
        lo, counted, last = LO, 0, b""
        while True:
            batch, more, resume = store.scan_where(lo, HI, False, 100, 40, 1000, b"\x01\x02" + code[2:], 60)
            if batch:
                counted, last = counted + int.from_bytes(batch[:8], "little"), batch[8:]
            if not more:
                break
            assert resume > lo
            lo = resume
        passing = [i for i, row in enumerate(rows) if holds(row)]
        assert counted == len(passing)
        assert last == (key(passing[-1]) if passing else b"")


def test_columns_that_a_row_was_written_without_are_unknown(store: Store) -> None:
    row: Row = (5, b"a", None, None)
    store.apply([(50, commit(50, [(key(1), image(row, 2))]))])
    for what in (NULL, NOT_NULL):
        assert read(store, program(struct.pack("<BH", what, 3)))
    assert not read(store, program(struct.pack("<BH", NULL, 0)))


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_nobody_meant(store: Store, seed: int) -> None:
    """Mutated programs are refused or read; mutated rows pass or not: nothing is read that is not there."""
    rng = random.Random(seed)

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            kind = rng.randrange(3)
            if kind == 0 and changed:
                changed[rng.randrange(len(changed))] = rng.choice([0, 1, 2, 3, 127, 128, 255, rng.randrange(256)])
            elif kind == 1:
                del changed[rng.randrange(len(changed) + 1) :]
            else:
                changed += rng.randbytes(rng.randrange(8))
        return bytes(changed)

    rows: list[Row] = [tuple(rng.choice(values(i)) for i in range(4)) for _ in range(200)]  # type: ignore[misc]
    store.apply([(50, commit(50, [(key(i), damaged(image(row))) for i, row in enumerate(rows)]))])
    refused = 0
    for _ in range(1000):
        wanted = set(rng.sample(range(4), rng.randrange(4))) if rng.random() < 0.5 else None
        code = program(condition(rng)[0], wanted)
        read(store, code)
        try:
            changed = damaged(code)
            if changed[1:2] not in (b"\x02", b"\x03"):  # counts are not rows
                read(store, changed)
        except MalformedError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "code",
    [
        b"\x02\0\0\0", b"\x01\x80\0\0", b"\x01\0\xff\xff", program(b"\x01"), program(b"\x09\0\0"),
        program(b"\x03\x04\0"),
        program(struct.pack("<BHBBH", COMPARE, 0, SIGNED, 0, 4) + b"\0" * 4),
        program(struct.pack("<BHBBH", COMPARE, 1, SIGNED, 0, 8) + b"\0" * 8),
        program(struct.pack("<BHBBH", COMPARE, 0, SIGNED, 6, 8) + b"\0" * 8),
        program(struct.pack("<BHBBH", COMPARE, 1, BYTES, 0, 800)), program(b"\x01\x01\0" * 17 + b"\x01\0\0"),
        program(b"\x01\0\0\0"), program(b"\x01\xff\xff" + b"\x03\0\0" * 2000), b"\x01\0\x01\0" + b"\0\0\x04\0",
    ],
)  # fmt: skip
def test_a_filter_that_is_none_is_refused(store: Store, code: bytes) -> None:
    with pytest.raises(MalformedError, match="the filter of a scan is not well-formed"):
        store.scan_where(LO, HI, False, 100, 10, 1000, code, 10)
    reply = answer_scan(store, Scan(9, 100, LO, HI, False, 1000, 10, code))
    assert (reply.id, reply.status, reply.batch) == (9, ReadStatus.REFUSED, b"")
