"""The shared page: words are seen by other mappings, the pair of words 5 and 6 is never torn."""

from __future__ import annotations

import ctypes
import mmap
import platform
import threading
from pathlib import Path

import pytest

from australis._native import (
    StoreError,
    page_load,
    page_load_acked,
    page_open,
    page_store,
    page_store_acked,
    page_wake,
)
from australis.page import PAGE_BYTES, Word

CLUSTER = b"c" * 16


def test_words(tmp_path: Path) -> None:
    path = tmp_path / "page"
    page = page_open(path, CLUSTER)
    again = page_open(path)
    assert path.stat().st_size == PAGE_BYTES
    assert path.read_bytes()[:24] == b"AUSPAGE1" + CLUSTER
    for value in (0, 1, -1, (1 << 63) - 1, -(1 << 63)):
        page_store(page, 7, value)
        assert page_load(again, 7) == value
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE_BYTES) as mapped:
        page_store(mapped, PAGE_BYTES // 8 - 1, 5)
        assert page_load(page, PAGE_BYTES // 8 - 1) == 5
    assert page_wake(page, 7) == 0


FUTEX_SYSCALLS = {"x86_64": 202, "aarch64": 98}


@pytest.mark.skipif(platform.machine() not in FUTEX_SYSCALLS, reason="no number of the futex call for this machine")
def test_wake(tmp_path: Path) -> None:
    """Who sleeps on a word through one mapping is woken through another, and does not sleep on a changed word."""
    page = page_open(tmp_path / "page", CLUSTER)
    with (tmp_path / "page").open("r+b") as file, mmap.mmap(file.fileno(), PAGE_BYTES) as mapped:
        address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mapped, 8 * Word.APPLIED)))
        call = ctypes.CDLL(None, use_errno=True).syscall
        results: list[int] = []

        def sleep() -> None:
            results.append(call(FUTEX_SYSCALLS[platform.machine()], address, 0, 0, None, None, 0))

        sleeper = threading.Thread(target=sleep, daemon=True)
        sleeper.start()
        while page_wake(page, Word.APPLIED) == 0:  # it may not sleep yet
            assert sleeper.is_alive()
        sleeper.join(60)
        assert results == [0]
        page_store(page, Word.APPLIED, 1)
        sleep()
        assert results == [0, -1]  # EAGAIN: another value


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "page"
    with pytest.raises(FileNotFoundError):
        page_open(path)
    page = page_open(path, CLUSTER)
    with pytest.raises(StoreError, match="another cluster"):
        page_open(path, b"d" * 16)
    for word in (-1, PAGE_BYTES // 8):
        with pytest.raises(IndexError):
            page_load(page, word)
    with pytest.raises(OverflowError):
        page_store(page, 7, 1 << 63)
    (tmp_path / "short").write_bytes(b"AUSPAGE1")
    with pytest.raises(StoreError, match="not a shared page"):
        page_open(tmp_path / "short")
    (tmp_path / "other").write_bytes(bytes(PAGE_BYTES))
    with pytest.raises(StoreError, match="not a shared page"):
        page_open(tmp_path / "other")


def test_pair(tmp_path: Path) -> None:
    page = page_open(tmp_path / "page", CLUSTER)
    page_store(page, 4, 3)  # a writer died in the middle
    with pytest.raises(StoreError, match="middle"):
        page_load_acked(page)
    page_store_acked(page, 1, -1)
    stop = threading.Event()

    def write() -> None:
        n = 1
        while not stop.is_set():
            n += 1
            page_store_acked(page, n, -n)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20000):
            acked, ddl = page_load_acked(page)
            assert acked == -ddl
    finally:
        stop.set()
        writer.join()
    assert page_load(page, 4) % 2 == 0
