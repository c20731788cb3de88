"""Stores that are cut to a range and take another one over: at every time the answers of where they come from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from australis._native import Store, StoreError
from tests.unit.test_native_store import CLUSTER, END, INDEX, TABLE, commit, scan_all, table_key


def history(path: Path, seed: int, steps: int = 60) -> tuple[Store, int]:
    """A store with puts, deletes and some garbage collected; and its horizon."""
    rng = random.Random(seed)
    store = Store(path, CLUSTER)
    keys = [table_key(number, relid) for relid in (TABLE, INDEX) for number in range(40)]
    for step in range(1, steps + 1):
        tau = step * 10
        writes = {key: rng.choice([None, b"%d" % tau, bytes(rng.randrange(6000))]) for key in rng.sample(keys, 5)}
        store.apply([(tau, commit(tau, writes.items()))], b"at %d" % tau)
    horizon = rng.randrange(0, steps * 10)
    while store.collect(horizon, 7) == 7:
        pass
    return store, horizon


def copied(store: Store, path: Path) -> Store:
    path.mkdir()
    store.copy(path / "data.mdb")
    return Store(path, CLUSTER, restored=True)


def erase(store: Store, lo: bytes, hi: bytes) -> None:
    while not store.erase(lo, hi, 3):
        pass


def same(left: Store, right: Store, lo: bytes, hi: bytes, horizon: int, tau: int) -> None:
    for at in [*range(horizon, tau + 10, 10), END]:
        assert scan_all(left, lo, hi, at) == scan_all(right, lo, hi, at)


@pytest.mark.parametrize("seed", range(8))
def test_cut_and_joined(tmp_path: Path, seed: int) -> None:
    whole, horizon = history(tmp_path / "whole", seed)
    cut = random.Random(seed).choice([table_key(20), INDEX.to_bytes(8, "big"), table_key(7, INDEX), b"\xff" * 8])
    left, right = copied(whole, tmp_path / "left"), copied(whole, tmp_path / "right")
    erase(right, b"", cut)
    erase(left, cut, b"")
    assert scan_all(left, cut, b"", END) == scan_all(right, b"", cut, END) == []
    same(left, whole, b"", cut, horizon, 600)
    same(right, whole, cut, b"", horizon, 600)
    for store in (left, right):
        for relid, (rows, size) in zip((TABLE, INDEX), store.stats([TABLE, INDEX]), strict=True):
            own = [entry for entry in scan_all(store, b"", b"", END) if entry[0][:8] == relid.to_bytes(8, "big")]
            assert (rows, size) == (len(own), sum(len(key) + len(value) for key, value, _ in own))
        assert (store.applied, store.meta("position")) == (600, b"at 600")
    taken(right, left, cut, b"\xff" * 9, 1 << 10)
    right.close()
    same(left, whole, b"", b"", horizon, 600)
    assert left.stats([TABLE, INDEX]) == whole.stats([TABLE, INDEX])
    assert left.horizon == whole.horizon
    # and it goes on like the one that was never cut, until nothing but the newest versions is left
    rng = random.Random(seed)
    for tau in range(610, 700, 10):
        body = commit(tau, [(table_key(rng.randrange(40)), rng.choice([None, b"x"])) for _ in range(1)])
        for store in (left, whole):
            store.apply([(tau, body)], b"")
    same(left, whole, b"", b"", horizon, 690)
    for store in (left, whole):
        while store.collect(690, 100) == 100:
            pass
    same(left, whole, b"", b"", 690, 690)
    assert left.size()["hist_entries"] == 0
    assert left.size()["main_entries"] == whole.size()["main_entries"] == len(scan_all(left, b"", b"", END))
    left.close()
    whole.close()


def test_sampled_split_keys(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", CLUSTER)
    assert store.split(b"", b"", 8) == []
    for number in range(2000):
        store.apply([(number + 1, commit(number + 1, [(table_key(number), bytes(100))]))])
    found = store.split(b"", b"\xff" * 8, 16)
    assert 4 <= len(found) <= 16
    assert found == sorted(found)
    middle = table_key(1000)
    assert all(table_key(0) <= key < middle for key in store.split(b"", middle, 16))
    counts = [len(scan_all(store, lo, hi, END)) for lo, hi in zip([b"", *found], [*found, b""], strict=True)]
    assert sum(counts) == 2000
    assert max(counts) < 2000 / 2
    store.close()


def taken(source: Store, target: Store, lo: bytes, hi: bytes, page_bytes: int, applied: int | None = None) -> int:
    """Take [lo, hi) over page by page; returns how many pages that were."""
    pages, at = 0, lo
    while True:
        page, following, newest, horizon = source.export(at, hi, page_bytes)
        end = following or hi
        target.import_page(page, at, end, newest if applied is None else applied, horizon, b"", b"garbage")
        pages += 1
        if not following:
            return pages
        assert at < following < hi
        at = following


@pytest.mark.parametrize("seed", range(8))
def test_a_range_taken_over_answers_alike_at_every_time(tmp_path: Path, seed: int) -> None:
    whole, horizon = history(tmp_path / "whole", seed)
    target = Store(tmp_path / "target", CLUSTER)
    lo, hi = table_key(7), INDEX.to_bytes(8, "big") + b"\x80"
    assert taken(whole, target, lo, hi, 1 << random.Random(seed).randrange(2, 16)) >= 1
    assert target.horizon == whole.horizon
    same(whole, target, lo, hi, max(horizon, whole.horizon), 600)
    assert scan_all(target, b"", lo, END) == [] == scan_all(target, hi, b"\xff" * 9, END)
    counted = len(scan_all(whole, table_key(7), INDEX.to_bytes(8, "big"), END))
    assert target.stats([TABLE])[0][0] == counted
    # garbage goes there too, tombstones included
    while target.collect(END, 100):
        pass
    assert target.size()["hist_entries"] == 0
    assert target.size()["main_entries"] == len(scan_all(whole, lo, hi, END))
    whole.close()
    target.close()


def test_records_that_a_page_holds_change_nothing(tmp_path: Path) -> None:
    source, target = Store(tmp_path / "source", CLUSTER), Store(tmp_path / "target", CLUSTER)
    batches = [
        (tau, commit(tau, [(table_key(n % 5), None if n % 7 == 3 else b"%d" % tau)]))
        for n, tau in enumerate(range(10, 400, 10))
    ]
    source.apply(batches[:30], b"")
    target.set_ranges(b"\x00\x01\xfe\x00\x01\xff")  # nothing of it
    target.apply(batches[:20], b"")
    assert taken(source, target, b"", b"\xff" * 8, 64) > 1
    target.set_ranges(b"")
    for store, rest in ((target, batches[20:]), (source, batches[30:])):
        for batch in rest:
            store.apply([batch], b"")
    same(source, target, b"", b"\xff" * 8, 0, 400)
    source.close()
    target.close()


def test_pages_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source, _ = history(tmp_path / "source", 1)
    target = Store(tmp_path / "target", CLUSTER)
    hi = b"\xff" * 8
    page, following, newest, horizon = source.export(b"", hi, 1 << 20)
    assert following == b""
    target.apply([(newest + 1, commit(newest + 1, [(table_key(1000), b"x")]))], b"")
    with pytest.raises(StoreError, match="has applied"):
        target.import_page(page, b"", hi, newest, horizon, b"", b"")
    rng = random.Random(3)
    for _ in range(300):
        damaged = bytearray(page)
        if rng.random() < 0.5:
            del damaged[rng.randrange(len(damaged)) :]
        for _ in range(rng.randrange(1, 4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        # whatever happens, it is all or nothing
        before = target.size()["main_entries"]
        try:
            target.import_page(bytes(damaged), b"", hi, newest + 1, horizon, b"", b"")
        except StoreError:
            assert target.size()["main_entries"] == before
        else:
            erase(target, b"", table_key(999))
            erase(target, INDEX.to_bytes(8, "big"), hi)
            while target.collect(END, 1000) == 1000:
                pass
    for bounds in ((table_key(3), hi), (b"", table_key(3))):
        with pytest.raises(StoreError, match="outside of its range"):
            target.import_page(page, *bounds, newest + 1, horizon, b"", b"")
    target.import_page(page, b"", hi, newest + 1, horizon, b"", b"")
    with pytest.raises(StoreError, match="holds keys"):
        target.import_page(page, b"", hi, newest + 1, horizon, b"", b"")
    source.close()
    target.close()
