"""The contract of object stores, on a directory and on a local S3 server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from australis.objects import (
    ConflictError,
    DamagedObjectError,
    InvalidObjectUrlError,
    MissingObjectError,
    ObjectStore,
    Stored,
    StoreFullError,
    checksum,
)
from australis.objects.interface import MAX_KEY, MAX_OBJECT, PIECE


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


def test_put_get_list_delete(store: ObjectStore) -> None:
    assert keys(store) == []
    store.put("a/b/one", b"1")
    store.put("a/b/two", b"")
    store.put("a/bc", b"three")
    store.put("z.json", b"four")
    assert store.get("a/b/one")[0] == b"1"
    assert store.get("a/b/two", Stored.of(b""))[0] == b""
    assert keys(store) == ["a/b/one", "a/b/two", "a/bc", "z.json"]
    assert keys(store, "a/b") == keys(store, "a/b/") == ["a/b/one", "a/b/two"]  # a folder, not any beginning of a name
    assert keys(store, "a/b/one") == keys(store, "nothing") == []
    assert [entry.size for entry in store.list("a")] == [1, 0, 5]
    store.put("a/b/one", b"another")
    assert store.get("a/b/one", Stored.of(b"another"))[0] == b"another"
    store.delete("a/b/one")
    store.delete("a/b/one")
    store.delete("never/there")
    assert keys(store, "a") == ["a/b/two", "a/bc"]
    store.delete("a/b/two")
    assert keys(store, "a") == ["a/bc"]
    for read in (store.get, lambda key: store.get_range(key, 0, 1), lambda key: list(store.get_stream(key))):
        with pytest.raises(MissingObjectError, match="a/b/one") as caught:
            read("a/b/one")
        assert "\n" not in str(caught.value)


def test_conditions(store: ObjectStore) -> None:
    first = store.put("k", b"first", if_absent=True)
    with pytest.raises(ConflictError):
        store.put("k", b"second", if_absent=True)
    assert store.get("k") == (b"first", first)
    second = store.put("k", b"second", if_version=first)
    assert second != first
    for version in (first, "unheard of"):
        with pytest.raises(ConflictError) as caught:
            store.put("k", b"third", if_version=version)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConflictError):
        store.put("absent", b"third", if_version=second)
    assert store.get("k") == (b"second", second)
    assert keys(store) == ["k"]


def test_one_of_many_wins(store: ObjectStore) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        try:
            store.put("leader", str(number).encode(), if_absent=True)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(create, range(8)))
        assert won.count(True) == 1
        assert store.get("leader")[0] == str(won.index(True)).encode()
        version = store.get("leader")[1]

        def replace(number: int) -> bool:
            start.wait()
            try:
                store.put("leader", f"next {number}".encode(), if_version=version)
            except ConflictError:
                return False
            return True

        won = list(threads.map(replace, range(8)))
        assert won.count(True) == 1
        assert store.get("leader")[0] == f"next {won.index(True)}".encode()


def test_ranges(store: ObjectStore) -> None:
    data = os.urandom(100_000)
    store.put("k", data)
    assert store.get_range("k", 0, 5) == data[:5]
    assert store.get_range("k", 99_990, 10) == data[-10:]
    assert store.get_range("k", 17, 0) == b""
    for start, length in ((99_999, 2), (100_000, 1), (200_000, 5)):
        with pytest.raises(DamagedObjectError):
            store.get_range("k", start, length)
    with pytest.raises(InvalidObjectUrlError):
        store.get_range("k", -1, 1)


def test_streams(store: ObjectStore) -> None:
    pieces = [os.urandom(3 << 20) for _ in range(7)]
    stored = store.put_stream("large/one", iter(pieces))
    assert stored == Stored.of(b"".join(pieces))
    value = size = 0
    for piece in store.get_stream("large/one", stored):
        assert len(piece) <= PIECE
        value, size = checksum(piece, value), size + len(piece)
    assert Stored(size, value) == stored
    assert store.put_stream("large/none", []) == Stored.of(b"")
    assert list(store.get_stream("large/none", Stored.of(b""))) == []
    with pytest.raises(DamagedObjectError, match="instead of"):
        list(store.get_stream("large/one", Stored(stored.size + 1, stored.checksum)))
    with pytest.raises(DamagedObjectError, match="more than"):
        list(store.get_stream("large/one", Stored(stored.size - 1, stored.checksum)))
    with pytest.raises(DamagedObjectError, match="checksum"):
        list(store.get_stream("large/one", Stored(stored.size, stored.checksum ^ 1)))


def test_a_stream_that_fails_leaves_nothing(store: ObjectStore) -> None:
    store.put("k", b"before")

    def pieces() -> Iterator[bytes]:
        yield bytes(PIECE + 1)
        raise ZeroDivisionError("of the caller's")

    for key in ("k", "new/one"):
        with pytest.raises(ZeroDivisionError, match="of the caller's"):
            store.put_stream(key, pieces())
    assert store.get("k")[0] == b"before"
    assert keys(store) == ["k"]


def test_other_bytes_than_expected(store: ObjectStore) -> None:
    store.put("k", b"what was written")
    with pytest.raises(DamagedObjectError, match="checksum"):
        store.get("k", Stored.of(b"What was written"))
    with pytest.raises(DamagedObjectError, match="16 bytes instead of 3"):
        store.get("k", Stored.of(b"abc"))
    with pytest.raises(DamagedObjectError, match="more than the 10"):
        store.get("k", limit=10)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "a b", "ä", "a" * (MAX_KEY + 1)]
)
def test_keys(store: ObjectStore, key: str) -> None:
    for call in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.delete(key)):
        with pytest.raises(InvalidObjectUrlError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_too_large_for_one_piece(store: ObjectStore) -> None:
    with pytest.raises(StoreFullError, match="at most"):
        store.put("k", bytes(MAX_OBJECT + 1))
    assert keys(store) == []


def test_many(store: ObjectStore) -> None:
    """More than one page of a listing."""
    names = [f"n/{number:05}" for number in range(1200)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put(name, b"x"), names))
    assert keys(store, "n") == names
