"""The native store against a plain model, and what happens to it when processes, disks and machines fail.

The model keeps every version of every key in lists; the store must answer like it at every time that it still promises
to know (at or above the horizon), whatever was applied, undone, ingested, dropped and collected before.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from australis._native import MAX_KEY, DamagedError, FullError, Store, StoreError, TooOldError, page_load
from australis.crossbar.feed import frame_record
from australis.journal.record import Kind, Position, RecordFlag
from australis.page import PAGE_BYTES, Word
from australis.protocol.frames import frame
from australis.protocol.messages import Error, encode

CLUSTER = bytes(range(16))
TABLE, INDEX = (5 << 32) | 16384, (5 << 32) | 16390
END = (1 << 63) - 1
Entry = tuple[bytes, bytes, int]


def commit(tau: int, writes: Iterable[tuple[bytes, bytes | None]], extra: Iterable[tuple[bytes, int]] = ()) -> bytes:
    """A Commit message's body: puts and deletes, and further keys with a mode that must not change anything."""
    writes, extra = list(writes), list(extra)
    keys = [key for key, _ in writes] + [key for key, _ in extra]
    modes = bytes(0x13 if value is None else 0x03 for _, value in writes) + bytes(mode for _, mode in extra)
    values = [value for _, value in writes] + [None for _ in extra]
    message = [2, 1, b"t" * 16, 1, tau - 1, 0, keys, modes, values, [], [TABLE], None, [], "from a later version"]
    return msgspec.msgpack.encode(message)


def ingest(writes: Iterable[tuple[bytes, bytes]]) -> bytes:
    writes = list(writes)
    return msgspec.msgpack.encode(
        [6, 1, b"t" * 16, 0, [k for k, _ in writes], bytes(len(writes)), [v for _, v in writes]]
    )


def entries(batch: bytes) -> Iterator[Entry | None]:
    """Decode a batch (docs/formats.md §5); None for a missing key."""
    at = 0
    while at < len(batch):
        key_len, value_len, tau = struct.unpack_from("<IIq", batch, at)
        at += 16
        if value_len == 0xFFFFFFFF:
            assert key_len == 0
            yield None
            continue
        value = batch[at : at + value_len]
        at += -(-value_len // 8) * 8
        key = batch[at : at + key_len]
        at += -(-key_len // 8) * 8
        yield key, value, tau
    assert at == len(batch)


def scan_all(
    store: Store, lo: bytes, hi: bytes, tau: int, backward: bool = False, max_rows: int = 7, max_bytes: int = 500
) -> list[Entry]:
    """Scan a range in small batches, as a query processor does."""
    found: list[Entry] = []
    more = True
    while more:
        batch, more = store.scan(lo, hi, backward, tau, max_rows, max_bytes)
        rows = [entry for entry in entries(batch) if entry is not None]
        assert len(rows) <= max_rows
        assert rows or not more
        assert len(batch) <= max_bytes or len(rows) == 1
        found += rows
        if rows and backward:
            hi = rows[-1][0]
        elif rows:
            lo = rows[-1][0] + b"\0"
    return found


def table_key(number: int, relid: int = TABLE) -> bytes:
    return relid.to_bytes(8, "big") + b"\x02" + number.to_bytes(8, "big")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", CLUSTER)
    yield opened
    opened.close()


# ------------------------------------------------------------------------------------------------------ the model

KEYS = st.builds(
    lambda relid, tail: relid.to_bytes(8, "big") + tail,
    st.sampled_from([TABLE, INDEX]),
    st.one_of(
        st.binary(max_size=2),
        st.sampled_from([b"", b"\0", b"\0\0", b"a", b"ab", b"abc"]),
        st.sampled_from([700, MAX_KEY - 8]).map(lambda length: b"\xff" * length),
    ),
)
VALUES = st.one_of(
    st.none(), st.binary(max_size=20), st.sampled_from([0, 100, 5000, 20000]).map(lambda length: b"x" * length)
)
WRITES = st.dictionaries(KEYS, VALUES, max_size=8)


class StoreModel(RuleBasedStateMachine):
    """Random histories; versions[key] is [(τ, value or None)] in order."""

    @initialize(directory=st.integers(0, 2**63))
    def start(self, directory: int) -> None:
        self.path = Path(os.environ["AUSTRALIS_TEST_DIRECTORY"]) / f"{directory}-{os.urandom(4).hex()}"
        self.store = Store(self.path, CLUSTER)
        self.versions: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self.tau = 0
        self.horizon = 0
        self.undoable = 0  # ingested chunks are not undone: the model does not go below the last one

    def record(self, writes: dict[bytes, bytes | None]) -> tuple[int, bytes]:
        self.tau += 3
        for key, value in writes.items():
            if value is not None or self.at(key, self.tau) is not None:
                self.versions.setdefault(key, []).append((self.tau, value))
        return self.tau, commit(self.tau, writes.items(), [(b"l" * 9, 0x08), (b"v" * 9, 0x22)])

    def at(self, key: bytes, tau: int) -> tuple[int, bytes] | None:
        for version_tau, value in reversed(self.versions.get(key, [])):
            if version_tau <= tau:
                return None if value is None else (version_tau, value)
        return None

    def expected(self, tau: int) -> list[Entry]:
        found = [(key, self.at(key, tau)) for key in sorted(self.versions)]
        return [(key, version[1], version[0]) for key, version in found if version is not None]

    @rule(batch=st.lists(WRITES, max_size=4), again=st.booleans())
    def apply(self, batch: list[dict[bytes, bytes | None]], again: bool) -> None:
        records = [self.record(writes) for writes in batch]
        self.store.apply(records, str(self.tau).encode())
        if again:
            self.store.apply(records)
        assert self.store.applied == self.tau
        assert self.store.meta("position") == str(self.tau).encode()

    @rule(batch=st.dictionaries(st.binary(max_size=3), st.binary(max_size=30), max_size=20), more=WRITES)
    def ingest_unpublished(self, batch: dict[bytes, bytes], more: dict[bytes, bytes | None]) -> None:
        self.tau += 1
        relid = (6 << 32) | self.tau  # no reader knows it before, so it has no older versions
        chunk = [(relid.to_bytes(8, "big") + tail, value) for tail, value in batch.items()]
        for key, value in chunk:
            self.versions[key] = [(self.tau, value)]
        records = [(self.tau, ingest(chunk))]
        overwritten = {key: b"later" for key, _ in chunk[:2]}
        records.append(self.record({**more, **overwritten}))
        self.store.apply(records, b"")
        self.store.ingest(*records[0])
        self.undoable = self.tau

    @precondition(lambda self: self.tau > max(self.horizon, self.undoable))
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        self.tau = data.draw(st.integers(max(self.horizon, self.undoable), self.tau))
        for key in list(self.versions):
            self.versions[key] = [version for version in self.versions[key] if version[0] <= self.tau]
        self.store.rollback(self.tau)
        assert self.store.applied == self.tau

    @rule(data=st.data(), step=st.integers(1, 20))
    def collect(self, data: st.DataObject, step: int) -> None:
        self.horizon = data.draw(st.integers(self.horizon, self.tau))
        while self.store.collect(self.horizon, step) == step:
            pass
        assert self.store.horizon == self.horizon
        if self.horizon == self.tau:
            # nothing but live newest versions is left
            assert self.store.size()["hist_entries"] == 0
            assert self.store.size()["main_entries"] == len(self.expected(self.tau))

    @rule(relid=st.sampled_from([TABLE, INDEX]), step=st.integers(1, 5))
    def drop(self, relid: int, step: int) -> None:
        # as its caller does: only when no reader needs it any more
        self.horizon = self.tau
        while self.store.collect(self.horizon, 100) == 100:
            pass
        while not self.store.drop(relid, step):
            pass
        for key in list(self.versions):
            if key[:8] == relid.to_bytes(8, "big"):
                del self.versions[key]

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        if clean:
            self.store.sync(True)
        self.store.close()
        self.store = Store(self.path, CLUSTER)
        assert self.store.applied == self.tau

    @rule()
    def copy(self) -> None:
        directory = self.path.with_name(self.path.name + "-copy")
        directory.mkdir()
        self.store.copy(directory / "data.mdb")
        with Store(directory, CLUSTER, restored=True) as copied:
            assert scan_all(copied, b"", b"", self.tau, max_rows=100) == self.expected(self.tau)
            assert (copied.applied, copied.horizon) == (self.tau, self.horizon)
        (directory / "lock.mdb").unlink()
        with Store(directory, CLUSTER, read_only=True) as copied:
            assert copied.applied == self.tau
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()

    @rule(data=st.data(), backward=st.booleans(), lo=KEYS, hi=KEYS, max_rows=st.integers(1, 9))
    def read_range(self, data: st.DataObject, backward: bool, lo: bytes, hi: bytes, max_rows: int) -> None:
        tau = data.draw(st.integers(self.horizon, self.tau + 1))
        wanted = [entry for entry in self.expected(tau) if lo <= entry[0] < hi]
        if backward:
            wanted.reverse()
        assert scan_all(self.store, lo, hi, tau, backward, max_rows) == wanted

    @rule(data=st.data(), keys=st.lists(KEYS, max_size=5))
    def read_keys(self, data: st.DataObject, keys: list[bytes]) -> None:
        tau = data.draw(st.integers(self.horizon, self.tau + 1))
        wanted = [(key, self.at(key, tau)) for key in keys]
        got = list(entries(self.store.get_many(keys, tau)))
        assert got == [None if version is None else (key, version[1], version[0]) for key, version in wanted]

    @precondition(lambda self: self.horizon > 0)
    @rule()
    def too_old(self) -> None:
        with pytest.raises(TooOldError):
            self.store.get_many([table_key(1)], self.horizon - 1)
        with pytest.raises(TooOldError):
            self.store.scan(b"", b"", False, self.horizon - 1, 1, 1)
        if self.tau > self.horizon:
            with pytest.raises(TooOldError):
                self.store.rollback(self.horizon - 1)

    @invariant()
    def newest_state_and_statistics(self) -> None:
        if not hasattr(self, "store"):
            return
        wanted = self.expected(self.tau)
        assert scan_all(self.store, b"", b"", self.tau, max_rows=100, max_bytes=1 << 20) == wanted
        relids = [TABLE, INDEX]
        for relid, (rows, size) in zip(relids, self.store.stats(relids), strict=True):
            own = [entry for entry in wanted if entry[0][:8] == relid.to_bytes(8, "big")]
            assert rows == len(own)
            assert size == sum(len(key) + len(value) for key, value, _ in own)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            for file in self.path.iterdir():
                file.unlink()
            self.path.rmdir()


@pytest.mark.timeout(300)
def test_histories_like_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUSTRALIS_TEST_DIRECTORY", str(tmp_path))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        StoreModel,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


# -------------------------------------------------------------------------------------------------- single behaviours


def test_only_whole_records_in_order(store: Store) -> None:
    key = table_key(1)
    store.apply([(10, commit(10, [(key, b"a")]))], b"p")
    good = commit(20, [(key, b"b")])
    for body in (b"", b"\xc1", good[:50], commit(20, [(b"short", b"b")]), commit(20, [(b"k" * (MAX_KEY + 1), b"b")])):
        with pytest.raises(StoreError, match="cannot be applied"):
            store.apply([(15, good), (20, body)], b"q")
    with pytest.raises(StoreError, match="order"):
        store.apply([(30, good), (20, good)], b"q")
    with pytest.raises(StoreError, match="without a value"):
        store.apply([(20, msgspec.msgpack.encode([2, 1, b"", 1, 0, 0, [key], b"\3", [None], [], [], None, []]))], b"q")
    assert store.applied == 10
    assert store.meta("position") == b"p"
    assert list(entries(store.get_many([key], END))) == [(key, b"a", 10)]


def fed(sequence: int, tau: int, body: bytes, kind: int = Kind.TRANSACTION, flags: int = 0) -> bytes:
    """A record as the feed sends it."""
    return b"".join(frame_record(sequence, 7, b"h" * 16, kind, flags, tau, b"t" * 16, body).buffers)


def test_plain_commits_of_the_feed(store: Store) -> None:
    """Exactly the plain commits that are complete and come first are applied; the position is that of the last."""
    key = table_key(1)
    first, second = (fed(n, n * 10, commit(n * 10, [(key, b"%d" % n)])) for n in (1, 2))
    for junk in (b"", b"\x01", first[:-1], b"\xff\xff\xff\xff" + first[4:], b"\x01\x00\x00\x00\xc0"):
        assert store.apply_feed(junk) is None
    assert store.applied < 10
    assert store.apply_feed(first + second + first[:50]) == (2, len(first + second), 20, 2, 7, b"h" * 16)
    assert store.applied == 20
    assert store.meta("position") == Position(2, 7, b"h" * 16).pack()
    assert scan_all(store, key, key + b"\xff", END) == [(key, b"2", 20)]
    assert store.apply_feed(second) is None  # known already

    next_one = fed(3, 30, commit(30, [(key, b"3")]))
    others = [
        fed(4, 40, commit(40, [(key, b"4")]), flags=RecordFlag.DROPS),
        fed(4, 20, commit(20, [(key, b"4")])),  # not in order
        fed(4, 40, ingest([(key, b"4")]), kind=Kind.INGEST),
        fed(4, 40, b"", kind=Kind.CLAIM),
        frame(encode(Error("08P01", "this is an error"))),
        frame(encode([42, 4, 7, b"short", Kind.TRANSACTION, 0, 40, b"t" * 16, commit(40, [])])),
    ]
    for other in others:
        assert store.apply_feed(other + next_one) is None
    for number, other in enumerate(others):
        tau = 30 + number
        good = fed(3, tau, commit(tau, [(key, b"good")]), flags=RecordFlag.DDL)
        assert store.apply_feed(bytearray(good + other)) == (1, len(good), tau, 3, 7, b"h" * 16)
    many = [fed(n, n * 10, commit(n * 10, [(table_key(n), b"x")])) for n in range(10, 5000)]
    data, records = b"".join(many), 0
    while data:
        answer = store.apply_feed(data)
        assert answer is not None
        records, data = records + answer[0], data[answer[1] :]
    assert records == len(many)
    with pytest.raises(StoreError, match="cannot be applied"):
        store.apply_feed(fed(5000, 50000, b"\xc0"))
    assert store.applied == 49990


def test_feed_leaves_commits_that_write_to_garbage(store: Store) -> None:
    """A relation that is being deleted gets its new rows from whoever finishes deleting it."""

    def ids(*relations: int) -> bytes:
        return b"".join(relation.to_bytes(8, "big") for relation in relations)

    here, there = table_key(1), (TABLE + 5).to_bytes(8, "big") + b"1"
    mixed = fed(1, 10, commit(10, [(here, b"x"), (there, b"y"), (here + b"1", b"z")]))
    for avoided in (ids(TABLE), ids(TABLE + 5), ids(1, TABLE, 1 << 63), ids(1, 2, 3, TABLE - 1, TABLE + 5)):
        assert store.apply_feed(mixed, avoided) is None
    assert store.apply_feed(fed(1, 10, b"\xc0"), ids(1)) is None  # whose keys cannot be seen
    with pytest.raises(ValueError, match="8 bytes"):
        store.apply_feed(mixed, b"1234567")
    assert store.applied < 10
    answer = store.apply_feed(mixed, ids(1, 2, TABLE - 1, TABLE + 1, TABLE + 4, TABLE + 6, 1 << 63))
    assert answer is not None and answer[0] == 1
    assert store.apply_feed(fed(2, 20, commit(20, [])), ids(TABLE)) is not None


def test_following_the_feed(store: Store) -> None:
    """Plain commits are applied and published as they come; everything else ends it, and is left in the buffer."""
    page = mmap.mmap(-1, PAGE_BYTES)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # one receive takes one message
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    buffer, watched = bytearray(1 << 16), bytearray(1)

    def follow(until: float = 1e9, avoided: bytes = b"") -> tuple[int, ...]:
        answer = store.follow_feed(ours.fileno(), buffer, avoided, watched, page, Word.APPLIED, until)
        return answer[:8]

    with ours, theirs:
        assert follow() == (0,) * 8  # the socket's time limit
        records = [fed(n, n * 10, commit(n * 10, [(table_key(n), b"v")])) for n in range(1, 8)]
        theirs.sendall(records[0])
        size = len(records[0])
        assert follow(until=0.0) == (1, size, 1, 0, 0, 10, 1, 7)  # too late, but once at least
        theirs.sendall(records[1])
        assert follow() == (1, size, 1, 0, 0, 20, 2, 7)
        assert page_load(page, Word.APPLIED) == store.applied == 20
        claim = fed(3, 20, b"", kind=Kind.CLAIM)
        theirs.sendall(records[2] + claim)
        assert follow() == (1, size, 1, 0, len(claim), 30, 3, 7)
        assert buffer.startswith(claim)
        theirs.sendall(records[3][:20])  # a part of one
        assert follow() == (0, 0, 0, 0, 20, 0, 0, 0)
        assert buffer.startswith(records[3][:20])
        theirs.sendall(records[3])
        assert follow(avoided=TABLE.to_bytes(8, "big")) == (0, 0, 0, 0, size, 0, 0, 0)
        watched[0] = 1
        theirs.sendall(records[4])
        theirs.sendall(records[5])
        assert follow() == (1, size, 1, 0, 0, 50, 5, 7)  # somebody wants to know
        watched[0] = 0
        for arguments in ((buffer, b"1", watched, page, 7), (b"", b"", watched, page, 7), (buffer, b"", b"", page, 7)):
            with pytest.raises((ValueError, TypeError)):
                store.follow_feed(ours.fileno(), *arguments, 0.0)  # type: ignore[call-arg]
        with pytest.raises(IndexError):
            store.follow_feed(ours.fileno(), buffer, b"", watched, page, 1 << 20, 0.0)
        theirs.sendall(records[6])
        theirs.close()
        assert follow() == (2, 2 * size, 2, -1, 0, 70, 7, 7)  # what came before the end counts
    assert follow()[3] == errno.EBADF


def test_position_moves_without_records(store: Store) -> None:
    store.apply([], b"somewhere")
    assert store.meta(b"position") == b"somewhere"
    store.apply([(5, msgspec.msgpack.encode([8, [TABLE]]))], b"after a drop")
    assert (store.applied, store.meta("position")) == (5, b"after a drop")
    store.apply([])
    assert store.meta("position") == b"after a drop"


def test_meta_records(store: Store) -> None:
    assert store.meta("mine") is None
    store.set_meta("mine", b"value")
    assert store.meta("mine") == b"value"
    assert store.meta("cluster") == CLUSTER
    for name in ("applied", "position", "boot", "stats/x", ""):
        with pytest.raises(StoreError):
            store.set_meta(name, b"")


def test_large_values(store: Store) -> None:
    key, value = table_key(1), os.urandom(3 << 20)
    store.apply([(1, commit(1, [(key, value)]))], b"")
    store.apply([(2, commit(2, [(key, value[::-1])]))], b"")
    assert scan_all(store, b"", b"", 1) == [(key, value, 1)]
    assert scan_all(store, b"", b"", 2) == [(key, value[::-1], 2)]
    store.rollback(1)
    assert scan_all(store, b"", b"", 2) == [(key, value, 1)]


def test_undoing_an_insert_over_a_collected_tombstone(store: Store) -> None:
    """Found by the histories: the tombstone came back without its history and stayed for ever."""
    key = table_key(1)
    store.apply([(tau, commit(tau, [(key, value)])) for tau, value in ((1, b"a"), (2, None), (3, b"b"))], b"")
    store.collect(2, 100)
    store.rollback(2)
    assert scan_all(store, b"", b"", 2) == []
    store.collect(2, 100)
    assert (store.size()["main_entries"], store.size()["hist_entries"]) == (0, 0)


def test_used_after_close(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", CLUSTER)
    store.close()
    store.close()
    assert store.closed
    for call in (lambda: store.applied, lambda: store.get_many([b"k"], 1), lambda: store.apply([], b"p")):
        with pytest.raises(StoreError, match="closed"):
            call()


def test_one_writer_one_opening(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store(path, CLUSTER), pytest.raises(StoreError, match="open in this process"):
        Store(path, CLUSTER, read_only=True)
    with Store(path, CLUSTER):
        done = child(f"Store({str(path)!r}, CLUSTER)", check=False)
        assert "another process writes" in done.stderr
    with pytest.raises(StoreError, match="another cluster"):
        Store(path, b"x" * 16)
    with pytest.raises(StoreError, match="there is no store"):
        Store(tmp_path / "missing", CLUSTER, read_only=True)
    with pytest.raises(ValueError, match="16 bytes"):
        Store(path, b"x")


def test_threads(store: Store) -> None:
    """Readers in threads see whole commits while the writer goes on."""
    failures: list[BaseException] = []
    stop = threading.Event()
    lo, hi = TABLE.to_bytes(8, "big"), (TABLE + 1).to_bytes(8, "big")

    def read() -> None:
        try:
            while not stop.is_set():
                rows = [entry for entry in entries(store.scan(lo, hi, False, END, 1000, 1 << 20)[0]) if entry]
                assert len({value for _, value, _ in rows}) <= 1
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for tau in range(1, 400):
        store.apply([(tau, commit(tau, [(table_key(n), str(tau).encode()) for n in range(20)]))], b"")
        store.collect(tau - 1, 100)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


# ------------------------------------------------------------------------------------------------- failing neighbours

PRELUDE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from australis._native import Store
from tests.unit.test_native_store import CLUSTER, END, commit, entries, table_key
"""


def prelude() -> str:
    return PRELUDE.format(root=str(Path(__file__).parents[2]))


def child(code: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    program = prelude() + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=check)


def start_child(code: str) -> subprocess.Popen[str]:
    program = prelude() + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.wait(10)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.close()
    process.stdin.close()


WRITER = """
store = Store({path!r}, CLUSTER)
tau = store.applied
while True:
    tau += 1
    values = str(tau).encode() * 20
    store.apply([(tau, commit(tau, [(table_key(n), values) for n in range(50)]))], str(tau).encode())
    if tau % 5 == 0:
        store.collect(tau - 100000, 1000)
    print(tau)
"""


def test_writer_killed(tmp_path: Path) -> None:
    """kill -9 at any instant: the store holds whole records, and applied, position and data agree."""
    path = tmp_path / "s"
    Store(path, CLUSTER).close()
    last = 0
    for round_ in range(15):
        process = start_child(WRITER.format(path=str(path)))
        for _ in range(10 + round_ * 3):
            last = int(line(process))
        end(process)
        with Store(path, CLUSTER) as store:
            applied = store.applied
            assert applied >= last
            assert store.meta("position") == str(applied).encode()
            for tau in (applied, applied - 1, applied - 5):
                rows = scan_all(store, b"", b"", tau, max_rows=100, max_bytes=1 << 20)
                assert rows == [(table_key(n), str(tau).encode() * 20, tau) for n in range(50)]
            assert store.stats([TABLE]) == [(50, 50 * (17 + 20 * len(str(applied))))]


def test_readers_in_other_processes(tmp_path: Path) -> None:
    """A reader process sees every commit whole, at once and at its time, while the writer runs; reopening finds it."""
    path = tmp_path / "s"
    Store(path, CLUSTER).close()
    writer = start_child(WRITER.format(path=str(path)))
    line(writer)
    done = child(
        f"""
        with Store({str(path)!r}, CLUSTER, read_only=True) as store:
            seen = set()
            while len(seen) < 50:
                tau = store.applied
                rows = list(entries(store.scan(b"", b"", False, tau, 1000, 1 << 20)[0]))
                assert [row[1] for row in rows] == [str(tau).encode() * 20] * 50, (tau, rows)
                seen.add(tau)
            try:
                store.apply([], b"p")
            except Exception as error:
                print(error)
        """
    )
    end(writer)
    assert "opened for reading" in done.stdout


def test_killed_readers_free_their_slots(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store(path, CLUSTER) as store:
        store.apply([(1, commit(1, [(table_key(1), b"v")]))], b"")
        readers = [
            start_child(f"s = Store({str(path)!r}, CLUSTER, read_only=True); print(s.applied); signal.pause()")
            for _ in range(3)
        ]
        for process in readers:
            assert line(process) == "1"
        assert store.reader_check() == 0
        for process in readers:
            end(process)
        assert store.reader_check() == 3
        assert store.reader_check() == 0


def test_writer_restarts_below_an_open_reader(tmp_path: Path) -> None:
    path = tmp_path / "s"
    Store(path, CLUSTER).close()
    with Store(path, CLUSTER, read_only=True) as reader:
        for tau in (1, 2, 3):
            child(f"Store({str(path)!r}, CLUSTER).apply([({tau}, commit({tau}, [(table_key({tau}), b'v')]))], b'')")
            assert reader.applied == tau
            assert len(scan_all(reader, b"", b"", tau)) == tau
            assert not reader.replaced
        # rebuilt from nothing: the reader can tell
        for file in path.iterdir():
            file.unlink()
        child(f"Store({str(path)!r}, CLUSTER)")
        assert reader.replaced


@pytest.mark.parametrize("commits", [4, 5])
def test_data_file_replaced_below_an_open_reader(tmp_path: Path, commits: int) -> None:
    """The lock file of living readers remembers transactions of the old data file; the new one must not believe it."""
    path, copy = tmp_path / "s", tmp_path / "copy"
    with Store(path, CLUSTER) as store:
        for tau in range(1, 4):
            store.apply([(tau, commit(tau, [(table_key(tau), b"v")]))], b"")
        store.copy(copy)
        for tau in range(4, 4 + commits):
            store.apply([(tau, commit(tau, [(table_key(tau), b"v")]))], b"")
    reader = start_child(
        f"s = Store({str(path)!r}, CLUSTER, read_only=True); print(s.applied); input(); print(s.replaced); input()"
    )
    assert line(reader) == str(3 + commits)
    assert reader.stdin is not None
    try:
        (path / "data.mdb").unlink()
        copy.rename(path / "data.mdb")
        with Store(path, CLUSTER, restored=True) as store:
            assert store.applied == 3
            assert len(scan_all(store, b"", b"", 3)) == 3
            store.apply([(4, commit(4, [(table_key(4), b"new")]))], b"")
        with Store(path, CLUSTER, read_only=True) as store:
            assert (store.applied, len(scan_all(store, b"", b"", 4))) == (4, 4)
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert line(reader) == "True"
        (path / "data.mdb").unlink()
        with Store(path, CLUSTER) as store:
            assert (store.applied, scan_all(store, b"", b"", 9)) == (0, [])
            store.apply([(1, commit(1, [(table_key(1), b"v")]))], b"")
            assert store.applied == 1
    finally:
        reader.stdin.close()
        end(reader)


def test_another_boot(tmp_path: Path) -> None:
    """Rule S2: contents written under another boot count only with a clean mark."""
    path = tmp_path / "s"

    def forge(clean: bool) -> None:
        data = bytearray((path / "data.mdb").read_bytes())
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()[:36]
        assert data.count(boot + bytes([clean])) >= 1
        (path / "data.mdb").write_bytes(data.replace(boot, b"0" * 36))

    with Store(path, CLUSTER) as store:
        store.apply([(1, commit(1, [(table_key(1), b"v")]))], b"")
        store.sync(True)
    forge(True)
    with Store(path, CLUSTER) as store:
        assert store.applied == 1
        store.apply([(2, commit(2, [(table_key(1), b"w")]))], b"")  # takes the mark away
    forge(False)
    with pytest.raises(DamagedError, match="machine stopped"):
        Store(path, CLUSTER)
    with Store(path, CLUSTER, restored=True) as store:
        assert store.applied == 2


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store(path, CLUSTER) as store:
        store.apply([(77, commit(77, [(table_key(1), b"v")]))], b"position-record")
    data = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(data.replace(b"position-record", b"position-recorD"))
    with pytest.raises(DamagedError, match="checksum"):
        Store(path, CLUSTER)
    (path / "data.mdb").write_bytes(b"no store at all" * 1000)
    with pytest.raises(DamagedError):
        Store(path, CLUSTER)
    (path / "data.mdb").unlink()
    with Store(path, CLUSTER) as store:
        assert store.applied == 0


def test_map_full_leaves_the_store_usable(tmp_path: Path) -> None:
    with Store(tmp_path / "s", CLUSTER, 1 << 20) as store:
        store.apply([(1, commit(1, [(table_key(1), b"v")]))], b"before")
        with pytest.raises(FullError, match="map size"):
            store.apply([(2, commit(2, [(table_key(n), b"x" * 3000) for n in range(2000)]))], b"too much")
        assert (store.applied, store.meta("position")) == (1, b"before")
        assert scan_all(store, b"", b"", END) == [(table_key(1), b"v", 1)]
        store.apply([(2, commit(2, [(table_key(2), b"w")]))], b"after")
        assert len(scan_all(store, b"", b"", END)) == 2


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the file's size stands in for the disk: write() fails in the same way, at any byte."""
    path = tmp_path / "s"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    body = commit(2, [(table_key(n), b"x" * 3000) for n in range(300)])
    with Store(path, CLUSTER) as store:
        store.apply([(1, commit(1, [(table_key(1), b"v")]))], b"before")
        size = (path / "data.mdb").stat().st_size
        try:
            for room in (0, 1000, 4096, 20000, 500000):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
                with pytest.raises(FullError, match="no space"):
                    store.apply([(2, body)], b"too much")
                assert store.applied == 1
                assert scan_all(store, b"", b"", END) == [(table_key(1), b"v", 1)]
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
            with pytest.raises(FullError, match="no space"):
                store.copy(tmp_path / "copy")
            assert not (tmp_path / "copy").exists()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.apply([(2, body)], b"room again")
        assert store.stats([TABLE])[0][0] == 300
    with Store(path, CLUSTER) as store:
        assert store.applied == 2
