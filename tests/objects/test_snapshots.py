"""Snapshots of shards: whole or cut to ranges, damaged, half written, listed late, written by several at once."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from australis._native import Store
from australis.keyspace import KEYSPACE_END, without
from australis.objects import Entry, ObjectError, ObjectStore, Stored, UnreachableError, open_objects
from australis.storage.shard_snapshots import (
    EVERYTHING,
    FORMAT,
    KEEP,
    KeyRange,
    ShardSnapshots,
    SnapshotStoppedError,
)
from tests.objects.faulty import FaultyProxy
from tests.unit.test_native_store import CLUSTER, END, commit, scan_all, table_key

PART = 64 << 10


class Shard:
    """A store that grows, and its snapshots."""

    def __init__(self, path: Path, objects: ObjectStore) -> None:
        self.path = path
        self.store = Store(path / "storage", CLUSTER)
        self.rng = random.Random(1)
        self.snapshots = ShardSnapshots(objects, CLUSTER, 3, part_bytes=PART)

    def grow(self, rows: int = 60) -> None:
        tau = self.store.applied + 10
        writes = [
            (table_key(self.rng.randrange(1000)), self.rng.randbytes(self.rng.randrange(3000))) for _ in range(rows)
        ]
        self.store.apply([(tau, commit(tau, dict(writes).items()))], b"positions at %d" % tau)

    def touch(self) -> None:
        """A commit that makes it no larger."""
        tau = self.store.applied + 10
        self.store.apply([(tau, commit(tau, [(table_key(0), b"%06d" % tau)]))], b"positions at %d" % tau)

    def write(self, snapshots: ShardSnapshots | None = None, name: str = "working") -> str:
        written = (snapshots or self.snapshots).write(self.store, self.path / name, EVERYTHING, 1)
        assert written is not None
        assert not (self.path / name).exists()
        return written.name

    def restored(
        self, snapshots: ShardSnapshots | None = None, ranges: list[KeyRange] | None = None, name: str = "again"
    ) -> tuple[Store, str, list[str]]:
        result = (snapshots or self.snapshots).restore(self.path / name, ranges)
        assert result.snapshot is not None
        assert os.listdir(self.path / name) == ["data.mdb"]
        store = Store(self.path / name, CLUSTER, restored=True)
        assert (store.applied, store.meta("position")) == (result.snapshot.tau, result.snapshot.positions)
        return store, result.snapshot.name, [damage.name for damage in result.damaged]


@pytest.fixture
def shard(tmp_path: Path, store: ObjectStore) -> Iterator[Shard]:
    shard = Shard(tmp_path, store)
    shard.grow()
    yield shard
    shard.store.close()


def everything(store: Store, tau: int = END) -> list[tuple[bytes, bytes, int]]:
    return scan_all(store, b"", b"", tau, max_rows=1000, max_bytes=1 << 20)


def keys(objects: ObjectStore) -> list[str]:
    return [entry.key for entry in objects.list()]


# ------------------------------------------------------------------------------------------------------------ normal


def test_written_and_restored(shard: Shard, store: ObjectStore) -> None:
    shard.grow()
    name = shard.write()
    (found,) = shard.snapshots.snapshots()
    assert (found.name, found.tau, found.positions) == (name, 20, b"positions at 20")
    assert (found.ranges, found.level, found.previous) == (EVERYTHING, 1, "")
    assert found.stored > 0
    assert len([key for key in keys(store) if f"/parts/{name}/" in key]) == -(-found.size // PART) > 1
    again, _, damaged = shard.restored()
    assert damaged == []
    for tau in (10, 20, END):
        assert everything(again, tau) == everything(shard.store, tau)
    again.close()


def test_nothing_to_restore(shard: Shard) -> None:
    (shard.path / "again").mkdir()
    (shard.path / "again/data.mdb").write_bytes(b"old")
    result = shard.snapshots.restore(shard.path / "again")
    assert (result.snapshot, result.damaged) == (None, [])
    assert os.listdir(shard.path / "again") == []


def test_two_are_kept(shard: Shard, store: ObjectStore) -> None:
    other = ShardSnapshots(store, CLUSTER, 4, part_bytes=PART)
    theirs = shard.write(other)
    store.put("not/ours", b"")
    names: list[str] = []
    for number in range(4):
        assert shard.snapshots.needed() == ([b"positions at %d" % tau for tau in names_tau(names)[-2:][::-1]])
        names.append(shard.write())
        shard.grow()
        kept = names[-KEEP:]
        assert [snapshot.name for snapshot in shard.snapshots.snapshots()] == kept[::-1]
        ours = [key for key in keys(store) if "/shard-3/" in key]
        assert {key.split("/")[3].removesuffix(".json") for key in ours if key.count("/") > 2} == set(kept), number
    assert [snapshot.name for snapshot in other.snapshots()] == [theirs]
    assert "not/ours" in keys(store)
    assert shard.snapshots.snapshots()[0].previous == names[-2]


def names_tau(names: list[str]) -> list[int]:
    return [int(name[:20]) for name in names] if len(names) >= KEEP else []


def test_not_acknowledged(shard: Shard, store: ObjectStore) -> None:
    asked: list[tuple[int, bytes]] = []

    def acknowledged(tau: int, positions: bytes) -> bool:
        asked.append((tau, positions))
        return False

    assert shard.snapshots.write(shard.store, shard.path / "working", EVERYTHING, 1, acknowledged) is None
    assert asked == [(10, b"positions at 10")]
    assert keys(store) == []


def test_missing_ranges() -> None:
    a, b, c, d = b"a", b"b", b"c", b"d"
    assert without([(b, d)], [(a, c)]) == [(c, d)]
    assert without([(a, d)], [(b, c)]) == [(a, b), (c, d)]
    assert without([(a, d)], [(a, b), (b, d)]) == []
    assert without([(c, d), (a, b)], []) == [(a, b), (c, d)]
    assert without([], [(a, d)]) == []


@pytest.mark.parametrize(
    "ranges", [[(b"", table_key(500))], [(table_key(200), table_key(300)), (table_key(800), KEYSPACE_END)]]
)
def test_cut_to_ranges(shard: Shard, ranges: list[KeyRange]) -> None:
    """What a split or a move starts from: a part of what a larger shard had, at every time."""
    shard.grow(200)
    shard.write()
    part, _, _ = shard.restored(ranges=ranges)
    for tau in (10, 20, END):
        wanted = [row for row in everything(shard.store, tau) if any(lo <= row[0] < hi for lo, hi in ranges)]
        assert everything(part, tau) == wanted
        assert wanted
    # its own snapshots do not hold the rest any more, and are not taken for it
    shard.store.close()
    shard.store = part
    shard.grow()
    written = shard.snapshots.write(part, shard.path / "working", ranges, 1)
    assert written is not None
    whole, used, _ = shard.restored(ranges=EVERYTHING, name="whole")
    assert used != written.name
    whole.close()
    again, used, _ = shard.restored(ranges=ranges, name="part")
    assert used == written.name
    again.close()


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("how", ["part changed", "part short", "part gone", "manifest changed", "manifest short"])
def test_a_damaged_snapshot_is_passed_over_and_reported(shard: Shard, store: ObjectStore, how: str) -> None:
    older = shard.write()
    wanted = everything(shard.store)
    shard.grow()
    newer = shard.write()
    what, _, way = how.partition(" ")
    key = next(key for key in keys(store) if newer in key and ("/parts/" in key) == (what == "part"))
    data = store.get(key)[0]
    if way == "gone":
        store.delete(key)
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        store.put(key, flipped if way == "changed" else data[:-5])
    again, used, damaged = shard.restored()
    assert (used, damaged) == (older, [newer])
    assert everything(again) == wanted
    again.close()
    if what == "manifest":
        assert shard.snapshots.needed() == []  # one that counts: nothing may be trimmed for it
    # the next ones count, and what is damaged goes when there are two of them
    shard.grow()
    third = shard.write()
    assert older in {snapshot.name for snapshot in shard.snapshots.snapshots()} or what == "part"
    shard.grow()
    fourth = shard.write()
    assert [snapshot.name for snapshot in shard.snapshots.snapshots()] == [fourth, third]
    assert not [key for key in keys(store) if older in key or newer in key]


def test_all_are_damaged(shard: Shard, store: ObjectStore) -> None:
    for _ in range(2):
        shard.write()
        shard.grow()
    for key in keys(store):
        if key.endswith("00000.zst"):
            store.put(key, b"x")
    result = shard.snapshots.restore(shard.path / "again")
    assert result.snapshot is None
    assert len(result.damaged) == 2
    assert all("00000.zst" in damage.error for damage in result.damaged)


def test_of_a_later_version(shard: Shard, store: ObjectStore) -> None:
    """Never taken for damage, nor deleted: a newer program wrote it."""
    name = shard.write()
    key = next(key for key in keys(store) if key.endswith(f"{name}.json"))
    body = store.get(key)[0].rpartition(b"\ncrc32c:")[0].replace(b'"format":%d' % FORMAT, b'"format":%d' % (FORMAT + 1))
    store.put(key, body + f"\ncrc32c:{Stored.of(body).checksum:08x}\n".encode())
    with pytest.raises(Exception, match=f"a snapshot of format {FORMAT + 1}, this program knows {FORMAT}") as caught:
        shard.snapshots.restore(shard.path / "again")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- faults


class Breaking:
    """An object store that goes away after some calls: `lost` says whether the last call still had its effect."""

    def __init__(self, objects: ObjectStore, calls: int, lost: bool) -> None:
        self._objects, self.left, self._lost = objects, calls, lost
        self._lock = threading.Lock()
        self.url = objects.url

    def _call(self) -> bool:
        """Is this the last one?"""
        with self._lock:
            self.left -= 1
            if self.left < 0:
                raise UnreachableError(f"{self.url}: planted")
            return self.left == 0

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None) -> str:
        last = self._call()
        if not last or self._lost:
            version = self._objects.put(key, data, if_absent=if_absent, if_version=if_version)
        if last:
            raise UnreachableError(f"{self.url}/{key}: planted")
        return version

    def put_stream(self, key: str, pieces: Iterable[bytes]) -> Stored:
        raise NotImplementedError

    def get(self, key: str, expected: Stored | None = None, *, limit: int = 1 << 30) -> tuple[bytes, str]:
        self._call()
        return self._objects.get(key, expected, limit=limit)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        raise NotImplementedError

    def get_stream(self, key: str, expected: Stored | None = None) -> Iterator[bytes]:
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[Entry]:
        self._call()
        return self._objects.list(prefix)

    def delete(self, key: str) -> None:
        last = self._call()
        if not last or self._lost:
            self._objects.delete(key)
        if last:
            raise UnreachableError(f"{self.url}/{key}: planted")


@pytest.mark.parametrize("lost", [False, True])
def test_the_store_of_objects_goes_away_at_any_point(tmp_path: Path, lost: bool) -> None:
    """Killed there is the same: what was there before can be restored, what counts is whole, the rest is swept."""
    objects = open_objects(f"file://{tmp_path}/objects")
    shard = Shard(tmp_path, objects)
    for _ in range(2):
        shard.grow(50)
        shard.write()
    calls = before = 0
    while True:
        calls += 1
        shard.touch()
        breaking = Breaking(objects, calls, lost)
        try:
            written = ShardSnapshots(breaking, CLUSTER, 3, part_bytes=PART).write(
                shard.store, tmp_path / "working", EVERYTHING, 1
            )
        except UnreachableError as error:
            assert "planted" in str(error)
            assert not (tmp_path / "working").exists()
        else:
            assert written is not None
            if breaking.left > 0:
                break
        found = shard.snapshots.snapshots()
        assert len(found) >= KEEP
        assert shard.snapshots.needed() == [snapshot.positions for snapshot in found[:KEEP]]
        assert found[KEEP - 1].tau >= before
        before = found[KEEP - 1].tau
        again, used, damaged = shard.restored()
        assert (used, damaged) == (found[0].name, [])
        assert everything(again) == everything(shard.store, found[0].tau)
        again.close()
        shard.snapshots.sweep()  # else each attempt has more to sweep than the one before, and none comes to its end
        assert calls < 300
    assert calls > 15
    shard.touch()
    shard.write()
    shard.touch()
    names = {shard.write(), shard.snapshots.snapshots()[1].name}
    # what the dead ones left is gone
    left = {key.split("/")[3].removesuffix(".json") for key in keys(objects) if key.count("/") > 2}
    assert left == names
    shard.store.close()


def test_restoring_while_the_store_of_objects_is_away(shard: Shard) -> None:
    """No reason for an older snapshot, and none to empty the directory."""
    shard.write()
    shard.grow()
    shard.write()
    (shard.path / "again").mkdir()
    (shard.path / "again/data.mdb").write_bytes(b"old")
    objects = shard.snapshots._objects
    for calls in range(6):
        with pytest.raises(UnreachableError, match="planted"):
            ShardSnapshots(Breaking(objects, calls, False), CLUSTER, 3).restore(shard.path / "again")
        assert (shard.path / "again/data.mdb").read_bytes() == b"old"
        assert not (shard.path / "again.restoring").exists()


def test_wrong_bytes_on_the_way(shard: Shard, proxy: FaultyProxy, through_proxy: ObjectStore) -> None:
    """A snapshot that does not read back right is not listed."""
    lying = ShardSnapshots(through_proxy, CLUSTER, 3, part_bytes=PART)
    proxy.fault = lambda request: "flip" if request.method == "GET" and request.path.endswith("00001.zst") else None
    with pytest.raises(ObjectError, match="other bytes") as caught:
        shard.write(lying)
    assert "\n" not in str(caught.value)
    assert keys(through_proxy) == []
    proxy.fault = lambda request: "flip" if request.method == "GET" and request.path.endswith(".json") else None
    with pytest.raises(ObjectError, match="other bytes"):
        shard.write(lying)
    assert keys(through_proxy) == []
    proxy.fault = lambda _: None
    shard.write(lying)


def test_answers_get_lost(shard: Shard, proxy: FaultyProxy, through_proxy: ObjectStore) -> None:
    """Of every put, once: it is sent again, meets itself, and that is no error."""
    sent: set[str] = set()

    def first(request: object) -> str | None:
        path, method = request.path, request.method  # type: ignore[attr-defined]
        if method == "PUT" and path not in sent:
            sent.add(path)
            return "lost"
        return None

    proxy.fault = first
    snapshots = ShardSnapshots(through_proxy, CLUSTER, 3, part_bytes=PART)
    shard.write(snapshots)
    assert len(sent) > 3
    again, _, damaged = shard.restored(snapshots)
    assert damaged == []
    assert everything(again) == everything(shard.store)
    again.close()


def test_a_listing_that_lags(shard: Shard, proxy: FaultyProxy, through_proxy: ObjectStore) -> None:
    """Nothing is trimmed or deleted for what is not listed yet; the newest is found nevertheless."""
    proxy.fault = lambda request: "stale" if request.method == "GET" and request.listing else None
    snapshots = ShardSnapshots(through_proxy, CLUSTER, 3, part_bytes=PART)
    names = []
    for _ in range(4):
        names.append(shard.write(snapshots))
        assert snapshots.needed() == []
        shard.grow()
    assert [snapshot.name for snapshot in snapshots.snapshots()] == names[::-1]
    again, used, _ = shard.restored(snapshots)
    assert used == names[-1]
    again.close()
    proxy.fault = lambda _: None
    assert len(snapshots.needed()) == 2
    assert snapshots.sweep() > 0
    assert [snapshot.name for snapshot in snapshots.snapshots()] == names[:1:-1]


def test_stopped(shard: Shard, store: ObjectStore) -> None:
    stop = threading.Event()
    stop.set()
    stopping = ShardSnapshots(store, CLUSTER, 3, part_bytes=PART, stop=stop)
    with pytest.raises(SnapshotStoppedError):
        shard.write(stopping)
    assert keys(store) == []
    shard.write()
    with pytest.raises(SnapshotStoppedError):
        stopping.restore(shard.path / "again")


def test_several_replicas_write_and_restore_at_once(tmp_path: Path) -> None:
    objects = open_objects(f"file://{tmp_path}/objects")
    shard = Shard(tmp_path, objects)
    shard.grow(300)
    for _ in range(2):
        shard.write()
        shard.grow(3)

    def write(number: int) -> None:
        for _ in range(5):
            # None: the other one was so much faster that nobody needs ours
            shard.snapshots.write(shard.store, tmp_path / f"working-{number}", EVERYTHING, 1)

    def restore(number: int) -> None:
        for _ in range(8):
            result = shard.snapshots.restore(tmp_path / f"again-{number}")
            assert result.snapshot is not None
            assert result.damaged == []

    with ThreadPoolExecutor(4) as threads:
        for done in [
            threads.submit(write, 0),
            threads.submit(write, 1),
            threads.submit(restore, 2),
            threads.submit(restore, 3),
        ]:
            done.result()
    assert len(shard.snapshots.snapshots()) == KEEP
    shard.store.close()


# -------------------------------------------------------------------------------------------------------------- speed


def test_speed(shard: Shard, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged."""
    rng = random.Random(2)
    words = [rng.randbytes(6).hex().encode() for _ in range(500)]
    for step in range(16):
        tau = 1000 + step
        rows = [(table_key(step * 5000 + n), b" ".join(rng.choices(words, k=30))) for n in range(5000)]
        shard.store.apply([(tau, commit(tau, rows))])
    snapshots = ShardSnapshots(shard.snapshots._objects, CLUSTER, 9)
    began = time.perf_counter()
    written = snapshots.write(shard.store, shard.path / "working", EVERYTHING, 1)
    wrote = time.perf_counter() - began
    assert written is not None
    result = snapshots.restore(shard.path / "again")
    began = time.perf_counter()
    part = snapshots.restore(shard.path / "part", [(b"", table_key(40_000))])
    cut = time.perf_counter() - began
    assert result.snapshot is not None
    assert part.snapshot is not None
    with capsys.disabled():
        print(
            f"\n{snapshots._objects.url.partition(':')[0]}: snapshot of {written.size / 1e6:.0f} MB "
            f"({written.stored / 1e6:.0f} MB stored): written {written.size / wrote / 1e6:.0f} MB/s, "
            f"restored {written.size / result.seconds / 1e6:.0f} MB/s, half of it {written.size / cut / 1e6:.0f} MB/s"
        )
