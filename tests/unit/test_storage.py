"""Storage against a feed that the test plays: what was never journaled is undone, garbage is deleted in time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from australis._native import DamagedError, FullError, Store
from australis.cluster import ClusterDirectory, open_cluster
from australis.journal.record import Kind, Position, RecordFlag
from australis.page import DISK_FULL, SharedPage, Word
from australis.protocol.frames import FrameDecoder, frame
from australis.protocol.messages import (
    Commit,
    Drop,
    FeedRecord,
    FeedStart,
    FeedStatus,
    Get,
    Hello,
    Ingest,
    ReadStatus,
    Subscribe,
    any_decoder,
    encode,
)
from australis.storage.applier import Applier, Settings
from australis.storage.garbage import Garbage, encoded
from australis.storage.service import StorageService
from australis.storage.snapshots import checksum, intact, write_snapshot
from tests.unit.services import RELATION, entries, key, raw

OTHER = RELATION + 7


def hash_of(sequence: int, generation: int) -> bytes:
    return bytes([generation]) * 8 + sequence.to_bytes(8, "big")


def commit(writes: dict[bytes, bytes], drops: Iterable[int] = (), txid: bytes | None = None) -> Commit:
    modes = bytes([3]) * len(writes)
    values = raw(list(writes.values()))
    return Commit(1, txid or os.urandom(16), 1, 0, 0, list(writes), modes, values, [], [], None, list(drops))


def record(sequence: int, generation: int, tau: int, message: Commit | Ingest | Drop | None) -> FeedRecord:
    kinds = {Commit: Kind.TRANSACTION, Ingest: Kind.INGEST, Drop: Kind.DROP, type(None): Kind.CLAIM}
    flags = RecordFlag.DROPS if isinstance(message, Commit) and message.drops else 0
    txid = message.txid if isinstance(message, Commit | Ingest) else bytes(16)
    body = encode(message) if message is not None else b""
    return FeedRecord(sequence, generation, hash_of(sequence, generation), kinds[type(message)], flags, tau, txid, body)


class Feed:
    """The commit process's place, played by the test: one connection after the other."""

    def __init__(self, directory: ClusterDirectory) -> None:
        directory.run.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.page = SharedPage(directory.page, directory.cluster)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory.commit_socket.unlink(missing_ok=True)
        self._listener.bind(str(directory.commit_socket))
        self._listener.listen()
        self._listener.setblocking(False)
        self._connection: socket.socket | None = None

    async def accept(self, answer: Callable[[Subscribe], FeedStart]) -> Subscribe:
        """Take the next subscription and answer it."""
        loop = asyncio.get_running_loop()
        if self._connection is not None:
            self._connection.close()
        self._connection, _ = await loop.sock_accept(self._listener)
        self._connection.setblocking(False)
        decoder = FrameDecoder()
        while True:
            for body in decoder.feed(await loop.sock_recv(self._connection, 1 << 16)):
                message = any_decoder.decode(body)
                if isinstance(message, Subscribe):
                    await loop.sock_sendall(self._connection, frame(encode(answer(message))))
                    return message
                assert isinstance(message, Hello)

    async def send(self, *records: FeedRecord) -> None:
        assert self._connection is not None
        data = b"".join(frame(encode(item)) for item in records)
        await asyncio.get_running_loop().sock_sendall(self._connection, data)

    def acknowledge(self, tau: int, generation: int) -> None:
        self.page.store(Word.GENERATION, generation)
        self.page.publish(tau, 0)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._listener.close()
        self.page.close()


def go_on(generation: int) -> Callable[[Subscribe], FeedStart]:
    return lambda s: FeedStart(FeedStatus.OK, generation, -1, s.sequence, s.generation, s.hash)


def make_cluster(data: Path) -> ClusterDirectory:
    data.mkdir(exist_ok=True)
    if not (data / "cluster.json").exists():
        (data / "cluster.json").write_text(json.dumps({"cluster": os.urandom(16).hex(), "format": 1}))
    return open_cluster(data)


@asynccontextmanager
async def storage(data: Path, **settings: float) -> AsyncIterator[tuple[StorageService, Feed]]:
    directory = make_cluster(data)
    feed = Feed(directory)
    service = StorageService(directory, Settings(**settings), fresh_seconds=30)  # type: ignore[arg-type]
    await service.start()
    try:
        yield service, feed
    finally:
        await service.close()
        feed.close()


async def read(service: StorageService, tau: int, *keys: bytes) -> list[bytes | None]:
    assert await service.fresh(tau)
    reply = service.get(Get(1, tau, list(keys)))
    assert reply.status == ReadStatus.OK
    return [value for _, _, value in entries(reply.batch)]


async def eventually(condition: Callable[[], bool]) -> None:
    """Ask again and again: what is asked for happens in the applier's thread, which tells nobody."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 60
    while not condition():
        assert loop.time() < deadline, "never happened"
        await asyncio.sleep(0.01)


def run(test: Callable[[], object]) -> None:
    """Run an async test."""
    asyncio.run(test())  # type: ignore[arg-type]


def test_t3_what_was_never_journaled_is_undone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            subscription = await feed.accept(go_on(1))
            assert (subscription.sequence, subscription.applied) == (0, 0)
            await feed.send(
                record(1, 1, 0, None),
                record(2, 1, 100, commit({key(1): b"durable"})),
                record(3, 1, 110, commit({key(1): b"never journaled", key(2): b"neither"}, drops=[OTHER])),
            )
            feed.acknowledge(100, 1)
            assert await service.fresh(110)
            # The process dies before record 3 is durable; generation 2 claims right behind record 2.
            previous = Position(2, 1, hash_of(2, 1))
            subscription = await feed.accept(lambda s: FeedStart(FeedStatus.OK, 2, 100, *previous))
            assert (subscription.sequence, subscription.generation, subscription.applied) == (3, 1, 110)
            await feed.send(record(3, 2, 100, None), record(4, 2, 120, commit({key(3): b"new"})))
            feed.acknowledge(120, 2)
            assert await read(service, 120, key(1), key(2), key(3)) == [b"durable", None, b"new"]
            await eventually(lambda: service.applier.garbage == 0)
            assert service.applier.position == Position(4, 2, hash_of(4, 2))
        # the position survives, also that of a rollback
        async with storage(tmp_path / "d") as (service, feed):
            subscription = await feed.accept(go_on(2))
            assert (subscription.sequence, subscription.generation, subscription.applied) == (4, 2, 120)
            assert await read(service, 120, key(1), key(2), key(3)) == [b"durable", None, b"new"]

    run(scenario)


def test_a_journal_that_ends_before_a_snapshot_lost_its_end(tmp_path: Path) -> None:
    """All that a snapshot holds was acknowledged: it is never undone."""

    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            await feed.send(record(1, 1, 0, None), *(record(n, 1, n * 10, commit({key(n): b"x"})) for n in (2, 3)))
            feed.acknowledge(30, 1)
            assert await service.fresh(30)
            store, directory = service.applier.store, feed.directory
            assert store is not None
            killed = directory.snapshots / "1.writing"
            killed.mkdir(parents=True)
            (killed / "data.mdb").write_bytes(b"half a copy")
            made = write_snapshot(store, directory.snapshots, directory.cluster, lambda _, __: True)
            assert made is not None and made.tau == 30
            assert not killed.exists()
            await feed.accept(lambda _: FeedStart(FeedStatus.OK, 2, 20, 2, 1, hash_of(2, 1)))
            error = await asyncio.wait_for(asyncio.shield(service.failed), 10)
            assert "its last segments are missing" in str(error)

    run(scenario)


def test_drops_wait_for_the_horizon(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with storage(tmp_path / "d", retention=1e-9, cap=1e10) as (service, feed):
            await feed.accept(go_on(1))
            await feed.send(
                record(1, 1, 0, None),
                record(2, 1, 100, commit({key(1, OTHER): b"old", key(1): b"x"})),
                record(3, 1, 200, commit({key(1): b"y"}, drops=[OTHER, 3])),
            )
            feed.page.store(Word.SLOTS, 100)  # somebody reads as of 100
            feed.page.store(Word.SLOTS + 1, os.getpid())
            feed.acknowledge(200, 1)
            assert await service.fresh(200)
            await eventually(lambda: service.applier.garbage == 1)
            assert await read(service, 100, key(1, OTHER)) == [b"old"]
            feed.page.store(Word.SLOTS, 0)
            await feed.send(record(4, 1, 300, commit({key(1): b"z"})))
            feed.acknowledge(300, 1)
            await eventually(lambda: service.applier.garbage == 0)
            assert await read(service, 300, key(1, OTHER), key(1)) == [None, b"z"]

    run(scenario)


def test_a_dead_readers_slot_does_not_hold_the_horizon(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with storage(tmp_path / "d", retention=1e-9, cap=1e10) as (service, feed):
            await feed.accept(go_on(1))
            feed.page.store(Word.SLOTS, 100)
            feed.page.store(Word.SLOTS + 1, 1 << 22)  # above the largest pid
            await feed.send(record(1, 1, 0, None), record(2, 1, 100, commit({key(1): b"x"})))
            await feed.send(record(3, 1, 200, commit({key(1): b"y"})))
            feed.acknowledge(200, 1)
            await eventually(lambda: feed.page.load(Word.HORIZON) == 200)
            assert service.get(Get(1, 100, [key(1)])).status == ReadStatus.BELOW_HORIZON

    run(scenario)


@pytest.mark.parametrize("how", ["ingest", "commit"])
def test_a_storage_id_that_is_used_again_keeps_its_new_rows(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            txid = os.urandom(16)
            new: Commit | Ingest
            if how == "ingest":
                new = Ingest(1, txid, 1, raw([key(2, OTHER)]), b"\x03", raw([b"new"]))
            else:
                new = commit({key(2, OTHER): b"new"}, txid=txid)
            await feed.send(
                record(1, 1, 0, None),
                record(2, 1, 100, commit({key(1, OTHER): b"old"})),
                record(3, 1, 200, commit({key(1): b"y"}, drops=[OTHER])),
                record(4, 1, 300, new),
                record(5, 1, 310, commit({key(9): b"publishes"}, txid=txid)),
            )
            feed.acknowledge(310, 1)
            assert await read(service, 310, key(1, OTHER), key(2, OTHER)) == [None, b"new"]
            await eventually(lambda: service.applier.garbage == 0)
            assert await read(service, 310, key(2, OTHER)) == [b"new"]

    run(scenario)


def ingest(txid: bytes, chunk: int, *relations: int, row: bytes = b"row") -> Ingest:
    keys = [key(chunk, relation) for relation in relations]
    values: list[bytes | None] = [row for _ in keys]
    return Ingest(1, txid, chunk, raw([*keys]), bytes([3]) * len(keys), raw(values))


def test_all_tables_of_a_transaction_of_an_ended_generation_are_garbage(tmp_path: Path) -> None:
    relations = [OTHER + n for n in range(5)]

    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            first, second = os.urandom(16), os.urandom(16)
            await feed.send(
                record(1, 1, 0, None),
                record(2, 1, 100, ingest(first, 1, *relations[:4])),
                record(3, 1, 110, ingest(second, 1, *relations[3:])),
            )
            feed.acknowledge(110, 1)
            assert await service.fresh(110)
            assert [rows(service, relation) for relation in relations] == [1] * 5
            await feed.send(record(4, 2, 110, None))
            for relation in relations:
                await eventually(lambda relation=relation: rows(service, relation) == 0)  # type: ignore[misc]
            await eventually(lambda: service.applier.garbage == 0)

    run(scenario)


def rows(service: StorageService, relation: int) -> int:
    """Entries of a storage id, whether anybody could read them or not."""
    assert service.applier.store is not None
    batch, _ = service.applier.store.scan(key(0, relation), key(1 << 40, relation), False, 1 << 60, 1 << 20, 1 << 20)
    return len(entries(batch))


@pytest.mark.parametrize("how", ["published", "dropped"])
def test_what_was_settled_but_never_journaled_is_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The end of a transaction is fed before it is durable. If it is lost, nobody else tells of the chunks."""

    async def scenario() -> None:
        monkeypatch.setattr(Garbage, "collect", lambda *_: False)  # not yet
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            txid = os.urandom(16)
            end = commit({key(1): b"publishes"}, txid=txid) if how == "published" else Drop([OTHER])
            await feed.send(record(1, 1, 0, None), record(2, 1, 100, ingest(txid, 1, OTHER)), record(3, 1, 110, end))
            feed.acknowledge(100, 1)
            assert await service.fresh(110)
            previous = Position(2, 1, hash_of(2, 1))
            await feed.accept(lambda _: FeedStart(FeedStatus.OK, 2, 100, *previous))
            assert rows(service, OTHER) == 1
            monkeypatch.undo()
            await feed.send(record(3, 2, 100, None))
            await eventually(lambda: rows(service, OTHER) == 0)

    run(scenario)


def test_a_storage_id_that_is_used_again_after_a_claim_keeps_its_new_rows(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            txid = os.urandom(16)
            await feed.send(
                record(1, 1, 0, None),
                record(2, 1, 100, ingest(os.urandom(16), 1, OTHER, row=b"old")),
                record(3, 2, 100, None),
                record(4, 2, 200, ingest(txid, 2, OTHER, row=b"new")),
                record(5, 2, 210, commit({key(9): b"publishes"}, txid=txid)),
            )
            feed.acknowledge(210, 2)
            assert await read(service, 210, key(1, OTHER), key(2, OTHER)) == [None, b"new"]
            await eventually(lambda: service.applier.garbage == 0)
            assert await read(service, 210, key(2, OTHER)) == [b"new"]

    run(scenario)


def test_garbage_is_that_of_the_position(tmp_path: Path) -> None:
    """What was looked at, but not applied before everything was killed, may never have been journaled."""
    with Store(tmp_path / "store", bytes(16)) as store:
        dropping = record(2, 1, 100, commit({key(1): b"x"}, drops=[OTHER]))
        noted = Garbage(store).note([dropping])
        assert noted is not None
        assert len(Garbage(store)) == 0
        store.apply([(100, dropping.body)], None, noted)
        assert len(Garbage(store)) == 1


def test_garbage_goes_with_the_keys_that_another_store_takes_over(tmp_path: Path) -> None:
    """What is dropped but not deleted there, and chunks that nobody has published, are the taker's to delete."""
    txid = os.urandom(16)
    with Store(tmp_path / "from", bytes(16)) as source, Store(tmp_path / "to", bytes(16)) as target:
        theirs, ours = Garbage(source), Garbage(target)
        chunk, dropping = record(2, 1, 100, ingest(txid, 1, OTHER)), record(3, 1, 110, commit({}, drops=[OTHER + 1]))
        apply(source, theirs, record(1, 1, 0, None), chunk, dropping)
        apply(target, ours, record(1, 1, 0, None), record(3, 1, 105, commit({key(1): b"x"}, drops=[OTHER + 2])))
        page, following, applied, horizon = source.export(b"", b"\xff" * 8, 1 << 20)
        assert following == b""
        state = ours.joined(theirs.exported())
        target.import_page(page, b"", b"\xff" * 8, applied, horizon, b"", encoded(state))
        ours.adopt(state)
        for garbage in (ours, Garbage(target)):  # the second one reads what is in the store
            assert len(garbage) == 2 and garbage.concerned
        apply(target, ours, record(4, 1, 120, Drop([OTHER])))
        while ours.collect(1 << 60, 1000):
            continue
        assert target.scan(key(0, OTHER), key(1 << 40, OTHER), False, 1 << 60, 10, 1 << 20)[0] == b""
    with pytest.raises(msgspec.MsgspecError):
        ours.joined(b"\xc1")


def test_garbage_is_remembered(tmp_path: Path) -> None:
    """Nothing tells of it again: the records are below the position."""

    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            await feed.send(record(1, 1, 0, None), record(2, 1, 100, commit({key(1): b"x"}, drops=[OTHER])))
            await eventually(lambda: service.applier.garbage == 1)
        async with storage(tmp_path / "d") as (service, feed):
            assert (await feed.accept(go_on(1))).sequence == 2
            await eventually(lambda: service.applier.garbage == 1)

    run(scenario)


def apply(store: Store, garbage: Garbage, *records: FeedRecord) -> None:
    """As the applier does, one by one."""
    for each in records:
        if garbage.cut([each]) == 0:
            garbage.purge(each)
        batch = [(each.tau, each.body)] if each.kind != Kind.CLAIM else []
        store.apply(batch, None, garbage.note([each]))


def rolled_back(store: Store, garbage: Garbage, tau: int) -> None:
    store.rollback(tau)
    store.apply([], bytes(32), garbage.rolled_back(tau))


@pytest.mark.parametrize("first", ["drop", "claim"])
@pytest.mark.parametrize("again", ["drop", "commit"])
def test_dropped_again_by_what_never_was_journaled(tmp_path: Path, first: str, again: str) -> None:
    """A backend drops at its abort, the commit process once more when the connection ends."""
    with Store(tmp_path / "store", bytes(16)) as store:
        garbage = Garbage(store)
        apply(store, garbage, record(1, 1, 0, None), record(2, 1, 100, ingest(os.urandom(16), 1, OTHER)))
        apply(store, garbage, record(3, 1, 110, Drop([OTHER])) if first == "drop" else record(3, 2, 100, None))
        lost = Drop([OTHER]) if again == "drop" else commit({key(1): b"x"}, drops=[OTHER])
        durable = store.applied
        apply(store, garbage, record(4, 2, 130, lost))
        rolled_back(store, garbage, durable)
        apply(store, garbage, record(4, 3, durable, None))
        while garbage.collect(110, 1000):
            continue
        assert len(garbage) == 0
        assert store.scan(key(0, OTHER), key(1 << 40, OTHER), False, 1 << 60, 10, 1 << 20)[0] == b""


def test_published_chunks_are_nobody_elses_garbage(tmp_path: Path) -> None:
    """A storage id that was used again while chunks of another transaction were in it."""
    with Store(tmp_path / "store", bytes(16)) as store:
        garbage = Garbage(store)
        txid = os.urandom(16)
        apply(store, garbage, record(1, 1, 0, None), record(2, 1, 100, ingest(os.urandom(16), 1, OTHER)))
        apply(store, garbage, record(3, 1, 110, ingest(txid, 1, OTHER, row=b"new")))
        apply(store, garbage, record(4, 1, 120, commit({key(1): b"publishes"}, txid=txid)), record(5, 2, 120, None))
        assert not garbage.collect(120, 1000)
        assert len(entries(store.scan(key(0, OTHER), key(1 << 40, OTHER), False, 1 << 60, 10, 1 << 20)[0])) == 1


def test_transactions_that_have_ended_are_forgotten(tmp_path: Path) -> None:
    """Every commit that comes while there are chunks is looked at: not for ever after an abort."""
    with Store(tmp_path / "store", bytes(16)) as store:
        garbage = Garbage(store)
        aborted, published = os.urandom(16), os.urandom(16)
        garbage.note([record(1, 1, 100, ingest(aborted, 1, OTHER, OTHER + 1))])
        garbage.note([record(2, 1, 110, ingest(published, 1, OTHER + 2, 3))])
        assert garbage.concerned
        garbage.note([record(3, 1, 120, Drop([OTHER, OTHER + 1]))])
        assert garbage.concerned
        garbage.note([record(4, 1, 130, commit({key(1): b"x"}, txid=published))])
        assert not garbage.concerned
        assert garbage._state.settled.keys() == {OTHER, OTHER + 1, OTHER + 2}
        garbage.collect(120, 1000)
        assert garbage._state.settled == {OTHER + 2: 130}


def test_deleting_slowly_does_not_stop_what_is_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice that takes longer than the pause behind it."""

    def collect(_: Applier) -> float:
        time.sleep(0.002)
        return 0.001

    monkeypatch.setattr(Applier, "_collect", collect)

    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            await eventually(lambda: service.applier.state == "following")
            await feed.send(record(1, 1, 0, None), record(2, 1, 100, commit({key(1): b"x"})))
            feed.acknowledge(100, 1)
            assert await read(service, 100, key(1)) == [b"x"]

    run(scenario)


def test_a_full_disk_is_no_longer_said_when_the_store_is_rebuilt_or_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("australis.storage.applier.FULL_RETRY_SECONDS", 0.001)
    said: list[int] = []

    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            applier = service.applier
            await eventually(lambda: applier.state == "following")
            answers: list[Exception] = [FullError("no space"), DamagedError("a page")]

            def write() -> None:
                said.append(feed.page.load(Word.STORAGE_PID))
                raise answers.pop(0) if answers else FullError("no space")

            with monkeypatch.context() as patch:
                patch.setattr(applier, "_rebuild", lambda _: None)
                with pytest.raises(Exception, match=r"^$") as raised:
                    applier._persist(write)
            assert raised.type.__name__ == "_RebuiltError"
            assert said == [os.getpid(), DISK_FULL]
            assert feed.page.load(Word.STORAGE_PID) == os.getpid()
            monkeypatch.setattr(applier, "_take_plain", lambda *_: applier._persist(write))
            await feed.send(record(1, 1, 0, None))
            await eventually(lambda: feed.page.load(Word.STORAGE_PID) == DISK_FULL)
        page = SharedPage(feed.directory.page, feed.directory.cluster)
        assert page.load(Word.STORAGE_PID) == 0
        page.close()

    run(scenario)


def test_only_commits_that_write_to_garbage_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage waits for minutes: plain commits leave the short way only if they write to it, and then they must."""
    looked_at: list[int] = []
    take = Applier._take

    def noting(applier: Applier, feed: Any, merge: Any, bodies: list[bytes]) -> None:
        looked_at.extend(any_decoder.decode(body).sequence for body in bodies)  # type: ignore[union-attr]
        take(applier, feed, merge, bodies)

    monkeypatch.setattr(Applier, "_take", noting)

    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            await feed.send(
                record(1, 1, 0, None),
                record(2, 1, 100, commit({key(1, OTHER): b"old"})),
                record(3, 1, 200, commit({key(1): b"y"}, drops=[OTHER])),
            )
            await eventually(lambda: service.applier.garbage == 1)  # counted now and then
            looked_at.clear()
            await feed.send(record(4, 1, 300, commit({key(1): b"z"})))
            assert await read(service, 300, key(1)) == [b"z"]
            assert looked_at == []
            await feed.send(record(5, 1, 400, commit({key(2, OTHER): b"new"})))
            assert await read(service, 400, key(1, OTHER), key(2, OTHER)) == [None, b"new"]
            assert looked_at == [5]
            await eventually(lambda: service.applier.garbage == 0)

    run(scenario)


def test_many_drops_in_one_batch(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            await feed.send(
                record(1, 1, 0, None),
                *(record(n, 1, n * 10, Drop([OTHER + n])) for n in range(2, 3000)),
                record(3000, 1, 30_000, commit({key(1): b"x"})),
            )
            feed.acknowledge(30_000, 1)
            assert await read(service, 30_000, key(1)) == [b"x"]

    run(scenario)


def test_a_subscription_that_cannot_be_served_ends_the_service_with_the_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(lambda s: FeedStart(FeedStatus.GONE, 1, -1, s.sequence, s.generation, s.hash))
            error = await asyncio.wait_for(asyncio.shield(service.failed), 10)
            assert "does not reach back" in str(error)
            with pytest.raises(Exception, match="does not reach back"):
                await service.ready()
            assert msgspec.json.encode(service.status())

    run(scenario)


def test_reads_wait_for_their_time_and_give_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with storage(tmp_path / "d") as (service, feed):
            await feed.accept(go_on(1))
            waiting = asyncio.ensure_future(read(service, 100, key(1)))
            await feed.send(record(1, 1, 0, None))
            await asyncio.sleep(0)
            assert not waiting.done()
            await feed.send(record(2, 1, 100, commit({key(1): b"x"})))
            assert await waiting == [b"x"]
            service.fresh_seconds = 0.05
            assert not await service.fresh(101)

    run(scenario)


def test_snapshots_of_either_checksum_are_told_from_damaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "data.mdb"
    file.write_bytes(b"pages")
    early = hashlib.blake2b(b"pages", digest_size=32).hexdigest()
    now = checksum(file)
    assert intact(file, early) and intact(file, now)
    file.write_bytes(b"pagez")
    assert not intact(file, early) and not intact(file, now)
