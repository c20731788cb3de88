"""Commit and storage process together: acknowledged means durable, each heals when the other is back."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from australis.journal.segments import BLOCK
from australis.page import SharedPage, Word
from australis.protocol.frames import pack_length
from australis.protocol.messages import Drop, Error, GetReply, Hello, Outcome, ReadStatus, Stats
from australis.protocol.messages import Get as GetMessage
from australis.storage import check as storage_check
from australis.storage.check import check_storage
from tests.unit.services import RELATION, Client, Disconnected, Services, key, services, until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Services]:
    with services(tmp_path / "data") as both:
        yield both


def test_commit_then_read(cluster: Services) -> None:
    cluster.start()
    client, reader = cluster.client(), cluster.reader()
    floor = client.number("floor_tau")
    first = client.commit(floor, {key(1): b"one", key(2): b"two"})
    assert first.outcome == Outcome.COMMITTED
    assert reader.get(first.tau, key(1), key(2), key(3)) == [b"one", b"two", None]
    second = client.commit(first.tau, {key(1): b"new", key(2): None})
    assert reader.get(second.tau, key(1), key(2)) == [b"new", None]
    assert reader.get(first.tau, key(1), key(2)) == [b"one", b"two"]
    assert client.commit(floor, {key(1): b"lost"}).outcome == Outcome.CONFLICT
    page = SharedPage(cluster.directory.page, cluster.directory.cluster)
    assert page.load(Word.ACKED) == second.tau
    assert page.load(Word.COMMIT_PID) == client.number("pid")
    assert page.load(Word.STORAGE_PID) == reader.number("pid")
    page.close()


class Writer(threading.Thread):
    """Writes its own keys as fast as it can; knows what was acknowledged and what it doesn't know."""

    def __init__(self, cluster: Services, number: int) -> None:
        super().__init__()
        self.cluster = cluster
        self.number = number
        self.stop = threading.Event()
        self.acknowledged: dict[bytes, tuple[int, bytes]] = {}
        self.unknown: list[tuple[bytes, int, bytes, bytes]] = []  # txid, tau_start, key, value
        self.error: BaseException | None = None
        self.commits = 0

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.error = error

    def work(self) -> None:
        rng = random.Random(self.number)
        client: Client | None = None
        tau = 0
        while not self.stop.is_set():
            if client is None:
                try:
                    client = self.cluster.client()
                    for txid, start, name, value in self.unknown:
                        answer = client.resolve(txid, start)
                        if answer.outcome == Outcome.COMMITTED:
                            self.acknowledged[name] = answer.tau, value
                        else:
                            assert answer.outcome == Outcome.KILLED, answer
                    self.unknown.clear()
                    tau = client.number("acked_tau")
                except Disconnected:
                    client = None
                    self.stop.wait(0.01)
                    continue
            name, value = key(self.number * 1000 + rng.randrange(20)), os.urandom(rng.randrange(1, 400))
            message = client.request(tau, {name: value})
            try:
                reply = client.call(message)
            except Disconnected:
                self.unknown.append((message.txid, tau, name, value))
                client = None
                continue
            assert reply.outcome == Outcome.COMMITTED, reply  # type: ignore[union-attr]
            tau = reply.tau  # type: ignore[union-attr]
            self.acknowledged[name] = tau, value
            self.commits += 1


@pytest.mark.parametrize("victims", ["commit", "storage", "both"])
def test_nothing_acknowledged_is_lost(cluster: Services, victims: str) -> None:
    cluster.start()
    writers = [Writer(cluster, number) for number in range(1, 5)]
    for writer in writers:
        writer.start()
    for _ in range(4):
        before = [writer.commits for writer in writers]
        until(
            "all make progress",
            lambda b=before: all(w.error or w.commits > n + 20 for w, n in zip(writers, b, strict=True)),
        )
        if victims in ("commit", "both"):
            assert cluster.commit is not None
            cluster.commit.kill()
        if victims in ("storage", "both"):
            assert cluster.storage is not None
            cluster.storage.kill()
        if victims in ("commit", "both"):
            cluster.start_commit()
        if victims in ("storage", "both"):
            cluster.start_storage()
    for writer in writers:
        before_stop = writer.commits
        until("heals", lambda w=writer, n=before_stop: w.error or w.commits > n)
        writer.stop.set()
        writer.join()
        assert writer.error is None, writer.error
    client, reader = cluster.client(), cluster.reader()
    tau = client.number("acked_tau")
    for writer in writers:
        assert not writer.unknown
        names = list(writer.acknowledged)
        assert reader.get(tau, *names) == [writer.acknowledged[name][1] for name in names]
        # and nothing that was not acknowledged
        rows = reader.scan(tau, key(writer.number * 1000), key(writer.number * 1000 + 999))
        assert set(rows) == set(names)
    assert cluster.storage is not None
    assert cluster.storage.terminate() == 0
    assert cluster.commit is not None
    assert cluster.commit.terminate() == 0
    report = check_storage(cluster.directory)
    assert report.problems == []
    assert report.notes == []
    assert report.compared > 20


def test_check_compares_as_many_of_the_newest_keys_as_it_holds(
    cluster: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_check, "MAX_KEYS", 40)
    cluster.start()
    client, reader = cluster.client(), cluster.reader()
    tau = client.number("floor_tau")
    for numbers in (range(30), range(20, 70), range(10), range(0, 10, 3)):
        tau = client.commit(tau, {key(number): b"%d" % len(numbers) for number in numbers}).tau
    assert reader.get(tau, key(9)) == [b"4"]
    assert cluster.storage is not None
    assert cluster.storage.terminate() == 0
    assert cluster.commit is not None
    assert cluster.commit.terminate() == 0
    report = check_storage(cluster.directory)
    assert (report.problems, report.compared) == ([], 40)
    assert report.not_compared == 30 + 10  # 0-29, when 20-69 had come, and 30-39 behind 0-9


def test_storage_is_rebuilt_when_its_files_are_gone(cluster: Services) -> None:
    cluster.start()
    client, reader = cluster.client(), cluster.reader()
    tau = client.number("floor_tau")
    for number in range(50):
        tau = client.commit(tau, {key(number): b"%d" % number}).tau
    shutil.rmtree(cluster.directory.storage)
    until("noticed", (cluster.directory.storage / "data.mdb").exists)
    assert len(reader.scan(tau, key(0), key(100))) == 50
    assert cluster.storage is not None
    cluster.storage.kill()
    shutil.rmtree(cluster.directory.storage)
    cluster.start_storage()
    reader = cluster.reader()
    assert len(reader.scan(tau, key(0), key(100))) == 50


def _snapshots(cluster: Services) -> list[Path]:
    if not cluster.directory.snapshots.exists():
        return []
    return sorted(p for p in cluster.directory.snapshots.iterdir() if (p / "manifest.json").exists())


def test_snapshots_bound_the_journal_and_restore(cluster: Services) -> None:
    cluster.storage_arguments = ("--snapshot-bytes", str(3 << 20), "--retention", "0")
    cluster.start()
    client = cluster.client()
    tau = client.number("floor_tau")
    seen: set[Path] = set()
    number = 0
    while len(seen) < 4:
        for _ in range(40):
            number += 1
            tau = client.commit(tau, {key(number % 100): os.urandom(9000)}).tau
        seen.update(_snapshots(cluster))
        assert number < 20_000

    def trimmed() -> bool:
        # How far the journal runs ahead while a snapshot is written is a matter of the disk, and what has run ahead
        # goes with the next snapshots: a writer that leaves them time sees it small.
        nonlocal tau
        tau = client.commit(tau, {key(row): os.urandom(9000) for row in range(20)}).tau
        return client.number("journal_size") < min(16 << 20, number * 9000)

    until("the journal is trimmed", trimmed)
    until("two snapshots stay", lambda: len(_snapshots(cluster)) == 2)
    tau = client.commit(tau, {key(7): b"seven"}).tau
    expected = cluster.reader().scan(tau, key(0), key(1000))
    assert cluster.storage is not None
    cluster.storage.kill()
    # the newest snapshot is damaged and the store is gone: the one before it and the journal are enough
    newest = _snapshots(cluster)[-1]
    with (newest / "data.mdb").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    shutil.rmtree(cluster.directory.storage)
    cluster.start_storage()
    reader = cluster.reader()
    assert reader.scan(tau, key(0), key(1000)) == expected
    assert reader.number("rebuilds") == 1
    # and without any snapshot that is whole the reason is said
    assert cluster.storage is not None
    cluster.storage.kill()
    for snapshot in _snapshots(cluster):
        with (snapshot / "data.mdb").open("r+b") as file:
            file.seek(5000)
            file.write(b"damage")
    shutil.rmtree(cluster.directory.storage)
    process = cluster.start_storage()
    assert process.wait() == 1
    assert "all snapshots" in process.error()
    for snapshot in _snapshots(cluster):
        shutil.rmtree(snapshot)
    shutil.rmtree(cluster.directory.storage)
    process = cluster.start_storage()
    assert process.wait() == 1
    assert "does not reach back" in process.error()
    assert cluster.commit is not None
    cluster.commit.terminate()
    assert any("what came before is lost" in problem for problem in check_storage(cluster.directory).problems)


def test_damage_that_a_snapshot_meets_is_mended(cluster: Services) -> None:
    """Pages of the store have no checksums: who reads a damaged one is told, and the next snapshot ends it."""
    cluster.storage_arguments = ("--snapshot-bytes", str(1 << 20), "--retention", "0")
    cluster.start()
    client = cluster.client()
    tau = client.number("floor_tau")
    while not _snapshots(cluster):
        tau = client.commit(tau, {key(n): os.urandom(100) for n in range(5000)}).tau
    assert cluster.storage is not None
    assert cluster.storage.terminate() == 0
    file = cluster.directory.storage / "data.mdb"
    middle = file.stat().st_size // 8192 * 4096
    with file.open("r+b") as store:
        store.seek(middle)
        store.write(os.urandom(16 * 4096))
    cluster.start_storage()
    reader = cluster.reader()
    rebuilds = 0
    while not rebuilds:
        tau = client.commit(tau, {key(10_000 + n): os.urandom(100) for n in range(5000)}).tau
        rebuilds = reader.number("rebuilds")
    assert len(reader.scan(tau, key(0), key(10_000))) == 5000


def test_chunks_are_readable_when_answered_and_garbage_when_abandoned(cluster: Services) -> None:
    cluster.start()
    client, reader = cluster.client(), cluster.reader()
    fresh, published = RELATION + 1, RELATION + 2
    tau = client.number("floor_tau")
    txid = os.urandom(16)
    replies = [
        client.ingest(txid, seq, {key(seq * 1000 + n, fresh): b"row" for n in range(1000)}) for seq in range(1, 4)
    ]
    assert [reply.outcome for reply in replies] == [0, 0, 0]
    assert len(reader.scan(replies[-1].tau, key(0, fresh), key(1 << 40, fresh))) == 3000
    other = os.urandom(16)
    client.ingest(other, 1, {key(n, published): b"row" for n in range(10)})
    request = client.request(tau, {key(1): b"publishes"}, txid=other)
    assert client.call(request).outcome == Outcome.COMMITTED  # type: ignore[union-attr]
    client.close()  # without a commit of the first transaction
    client = cluster.client()

    def rows(relation: int) -> int:
        return len(reader.scan(client.number("acked_tau"), key(0, relation), key(1 << 40, relation)))

    until("abandoned chunks are deleted", lambda: rows(fresh) == 0)
    assert rows(published) == 10
    late = client.request(tau, {key(2): b"late"}, txid=txid)
    assert client.call(late).outcome == Outcome.REFUSED  # type: ignore[union-attr]
    # what a killed commit process leaves is garbage too: nobody can publish it under the next generation
    client.ingest(os.urandom(16), 1, {key(n, fresh): b"row" for n in range(10)})
    assert rows(fresh) == 10
    assert cluster.commit is not None
    cluster.commit.kill()
    cluster.start_commit()
    client = cluster.client()
    until("chunks of the last generation are deleted", lambda: rows(fresh) == 0)
    assert rows(published) == 10
    client.send(Drop([published, 3]))
    until("dropped", lambda: rows(published) == 0)


def test_a_large_transaction_is_one(cluster: Services) -> None:
    cluster.start()
    client, reader = cluster.client(), cluster.reader()
    tau = client.number("floor_tau")
    value = os.urandom(30 << 20)
    reply = client.commit(tau, {key(1): value, key(2): b"small"})
    assert reply.outcome == Outcome.COMMITTED
    assert reader.get(reply.tau, key(1)) == [value]
    assert cluster.commit is not None
    assert cluster.storage is not None
    cluster.storage.kill()
    cluster.commit.kill()
    shutil.rmtree(cluster.directory.storage)
    cluster.start()
    assert cluster.reader().get(reply.tau, key(1), key(2)) == [value, b"small"]


def test_reads_that_cannot_be_answered_are_refused(cluster: Services) -> None:
    cluster.storage_arguments = ("--retention", "0")
    cluster.start()
    client, reader = cluster.client(), cluster.reader()
    first = client.commit(client.number("floor_tau"), {key(1): b"a"}).tau
    second = client.commit(first, {key(1): b"b"}).tau
    until("the horizon follows", lambda: reader.number("horizon_tau") >= second)
    answer = reader.call(GetMessage(9, first, [key(1)]))
    assert isinstance(answer, GetReply)
    assert (answer.id, answer.status) == (9, ReadStatus.BELOW_HORIZON)
    assert reader.get(second, key(1)) == [b"b"]


@pytest.mark.parametrize("name", ["commit", "storage"])
def test_bad_bytes(cluster: Services, name: str) -> None:
    cluster.start()
    path = cluster.directory.commit_socket if name == "commit" else cluster.directory.storage_socket
    rng = random.Random(1)
    for garbage in [b"\xff" * 100, pack_length(3) + b"\x91\x05\xc0", pack_length(0), rng.randbytes(5000)]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(path))
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    with pytest.raises(AssertionError, match="08004"):
        Client(path, bytes(16))
    client = cluster.client() if name == "commit" else cluster.reader()
    answer = client.call(Hello(99, cluster.directory.cluster, "qp", 0))
    assert isinstance(answer, Error)
    assert answer.sqlstate == "08P01"
    assert cluster.client().commit(cluster.client().number("floor_tau"), {key(1): b"x"}).outcome == 0


@pytest.mark.parametrize("message", [Drop([-1]), Stats(1, [-1])], ids=["Drop", "Stats"])
def test_ids_that_none_can_have(cluster: Services, message: Drop | Stats) -> None:
    """Refused where they arrive: in the journal they would stop storage for good."""
    cluster.start()
    client, reader = cluster.client(), cluster.reader()
    answer = (client if isinstance(message, Drop) else reader).call(message)
    assert isinstance(answer, Error)
    assert answer.sqlstate == "08P01"
    client, reader = cluster.client(), cluster.reader()
    tau = client.commit(client.number("floor_tau"), {key(1): b"x"}).tau
    assert reader.get(tau, key(1)) == [b"x"]


def test_two_commit_processes(cluster: Services) -> None:
    cluster.start_commit()
    command = [sys.executable, "-m", "australis.commit_process", "--data", str(cluster.data)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert "in use by another process" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert cluster.client().commit(cluster.client().number("floor_tau"), {key(1): b"x"}).outcome == 0


def test_lost_acknowledged_commits_are_noticed(cluster: Services) -> None:
    """The last group is damaged, which alone looks like a torn tail; the shared page knows better."""
    cluster.start_commit()
    client = cluster.client()
    tau = client.number("floor_tau")
    for number in range(5):
        tau = client.commit(tau, {key(number): b"v" * 100}).tau
    assert cluster.commit is not None
    cluster.commit.kill()
    segment = sorted(cluster.directory.journal.glob("*.segment"))[-1]
    content = bytearray(segment.read_bytes())
    last = content.rfind(b"AUSGROUP")
    assert last > BLOCK
    content[last + 150] ^= 1
    segment.write_bytes(content)
    command = [sys.executable, "-m", "australis.commit_process", "--data", str(cluster.data)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 1
    assert "commits are missing" in refused.stderr
    content[last + 150] ^= 1
    segment.write_bytes(content)
    cluster.start()
    assert cluster.reader().get(tau, key(4)) == [b"v" * 100]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(mount)], check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        with services(mount / "data") as cluster:
            cluster.start()
            client = cluster.client()
            filler = mount / "filler"
            with filler.open("wb") as file:
                file.truncate(0)
                os.posix_fallocate(file.fileno(), 0, 20 << 20)
            tau = client.number("floor_tau")
            acknowledged: dict[bytes, bytes | None] = {}
            refusal = None
            for number in range(20_000):
                value = os.urandom(2000)
                reply = client.commit(tau, {key(number): value})
                if reply.outcome != Outcome.COMMITTED:
                    refusal = reply
                    break
                tau = reply.tau
                acknowledged[key(number)] = value
            assert refusal is not None
            assert refusal.outcome == Outcome.DISK_FULL
            assert "free space" in refusal.detail
            assert cluster.commit is not None
            assert cluster.commit.running
            filler.unlink()
            until("space is noticed", lambda: client.commit(tau, {key(1 << 30): b"back"}).outcome == 0)
            tau = client.number("acked_tau")
            until("storage is back", lambda: cluster.reader().number("applied_tau") >= tau)
            rows = cluster.reader().scan(tau, key(0), key(1 << 29))
            assert rows == acknowledged
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_processes_end_with_their_parent(cluster: Services) -> None:
    starter = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-m', 'australis.commit_process', '--data', {str(cluster.data)!r}],"
        " stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdin is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    until("the child has ended", lambda: not _lives(child))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
