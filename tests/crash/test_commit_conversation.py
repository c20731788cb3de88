"""Everything that can happen between sending a commit and hearing of it (rules Q1, Q2, Q8, A8).

Must hold: the client hears COMMIT, a certain refusal (40001, 57014) or 08007, and what it hears is true; nothing is
half done; the session or the next one works. Messages are held, lost, garbled or sent late by `Between`.
"""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import psycopg
import pytest
from psycopg import errors

from australis.keyspace import relation_prefix
from australis.page import SharedPage, Word
from australis.protocol.messages import (
    Commit,
    CommitReply,
    Error,
    IngestReply,
    Outcome,
    Resolve,
    ResolveReply,
    any_decoder,
    encode,
)
from tests.crash.between import Between, Break, Passed, passes
from tests.fixtures.servers import AustralisCluster, Server, temporary_directory
from tests.unit.services import Client, until

COMMIT, COMMIT_REPLY, RESOLVE, RESOLVE_REPLY, INGEST, INGEST_REPLY, DROP = 2, 3, 4, 5, 6, 7, 8
CHUNKS = "CREATE TABLE fresh AS SELECT g AS id, repeat('x', 1000) AS pad FROM generate_series(1, 40000) g"
"""Is loaded in several chunks of 8 MB."""
FILL = CHUNKS.replace("CREATE TABLE fresh AS", "INSERT INTO fresh")


class World:
    """A cluster and what a test does with it."""

    def __init__(self, cluster: AustralisCluster, server: Server) -> None:
        self.cluster = cluster
        self.server = server
        self.run = cluster.data / "run"

    def page(self, word: Word) -> int:
        raw = (self.run / "page").read_bytes()[word * 8 : word * 8 + 8]
        return int(struct.unpack("<q", raw)[0])

    def signal_commit(self, number: signal.Signals) -> int:
        pid = self.page(Word.COMMIT_PID)
        os.kill(pid, number)
        return pid

    @contextmanager
    def session(self, timeout: str = "1s") -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """A backend that has not talked to the commit service yet."""
        with self.server.connect() as connection:
            connection.execute(f"SET australis.service_timeout = '{timeout}'".encode())
            yield connection

    def rows(self) -> list[int]:
        with self.server.connect() as connection:
            return [int(str(row[0])) for row in connection.execute("SELECT id FROM talk ORDER BY id")]

    def works(self) -> None:
        """The cluster takes a write again."""

        def once() -> bool:
            try:
                with self.server.connect() as connection:
                    connection.execute("SET statement_timeout = '10s'")
                    connection.execute("UPDATE works SET n = n + 1")
                return True
            except psycopg.Error:
                return False

        until("the cluster works", once)

    def generation_after(self, generation: int) -> None:
        until("another generation", lambda: self.page(Word.GENERATION) > generation and self.page(Word.COMMIT_PID) > 0)

    def stored(self, relation: int) -> int:
        """Rows that storage holds for a storage id."""
        page = SharedPage(self.run / "page", (self.run / "page").read_bytes()[8:24], create=False)
        try:
            tau, cluster = page.load(Word.ACKED), (self.run / "page").read_bytes()[8:24]
        finally:
            page.close()
        reader = Client(self.run / "storage.sock", cluster)
        try:
            return len(reader.scan(tau, relation_prefix(relation), relation_prefix(relation + 1)))
        finally:
            reader.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[AustralisCluster]:
    with temporary_directory("talk") as directory:
        made = AustralisCluster(directory, driver=os.environ.get("AUSTRALIS_STORAGE_DRIVER"))
        try:
            with made.start().connect() as connection:
                connection.execute("CREATE TABLE works (n int)")
                connection.execute("INSERT INTO works VALUES (0)")
            yield made
        finally:
            made.stop()


@pytest.fixture
def world(cluster: AustralisCluster) -> World:
    world = World(cluster, cluster.server())
    world.works()
    with world.server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS talk, fresh")
        connection.execute("CREATE TABLE talk (id int PRIMARY KEY)")
    return world


def insert(connection: psycopg.Connection[tuple[object, ...]], value: int = 1) -> None:
    connection.execute("INSERT INTO talk VALUES (%s)", (value,))


def decoded(body: bytes) -> object:
    return any_decoder.decode(body)


def reply_to(body: bytes, outcome: int, tau: int) -> bytes:
    message = decoded(body)
    assert isinstance(message, CommitReply)
    return encode(CommitReply(message.txid, outcome, tau, ""))


GARBLED: dict[str, Callable[[bytes], Passed]] = {
    "empty": lambda body: [b""],
    "no array": lambda body: [b"\xc0\xc0"],
    "cut": lambda body: [body[:-12]],
    "another message": lambda body: [encode(IngestReply(bytes(16), 1, 0, 1))],
    "texts for numbers": lambda body: [msgspec.msgpack.encode([3, bytes(16), "yes", "now", ""])],
    "unknown outcome": lambda body: [reply_to(body, 99, 0)],
    "pending": lambda body: [reply_to(body, Outcome.PENDING, 0)],
    "committed in the past": lambda body: [reply_to(body, Outcome.COMMITTED, 1)],
    "an absurd length": lambda body: struct.pack("<I", 0x3FFFFFF0) + body,
    "an error": lambda body: [encode(Error("XX000", "odd"))],
}


@pytest.mark.parametrize("how", GARBLED)
def test_a_garbled_answer_is_resolved(world: World, how: str) -> None:
    with Between(world.run) as between, world.session() as connection:
        between.on_reply = lambda tag, body: GARBLED[how](body) if tag == COMMIT_REPLY else [body]
        insert(connection)
    assert world.rows() == [1]


REFUSALS = {
    Outcome.CONFLICT: ("40001", "OC000"),
    Outcome.SCHEMA_CONFLICT: ("40001", "OC001"),
    Outcome.REFUSED: ("40001", "refused the transaction"),
    Outcome.TOO_LARGE: ("54000", "too large"),
    Outcome.DISK_FULL: ("53100", "disk of the journal is full"),
}


@pytest.mark.parametrize("outcome", REFUSALS)
def test_every_refusal_has_its_code(world: World, outcome: Outcome) -> None:
    """And ends the conversation: nobody asks what became of a transaction that was refused."""
    asked: list[int] = []

    def request(tag: int, body: bytes) -> Passed:
        asked.append(tag)
        return [body]

    with Between(world.run) as between, world.session() as connection:
        between.on_request = request
        # what the service really answered is exchanged, so the row is there
        between.on_reply = lambda tag, body: [reply_to(body, outcome, 0)] if tag == COMMIT_REPLY else [body]
        with pytest.raises(psycopg.Error) as raised:
            insert(connection)
        code, words = REFUSALS[outcome]
        assert raised.value.sqlstate == code
        assert words in str(raised.value)
        between.on_reply = passes
        insert(connection, 2)
    assert RESOLVE not in asked


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.REFUSED, "40001"), (Outcome.DISK_FULL, "53100")])
def test_a_refused_chunk_has_its_code(world: World, outcome: Outcome, code: str) -> None:
    def refuse(tag: int, body: bytes) -> Passed:
        if tag != INGEST_REPLY:
            return [body]
        reply = decoded(body)
        assert isinstance(reply, IngestReply)
        return [encode(IngestReply(reply.txid, reply.seq, outcome, 0))]

    with Between(world.run) as between, world.session("10s") as connection:
        between.on_reply = refuse
        with pytest.raises(psycopg.Error) as raised:
            connection.execute(CHUNKS)
        assert raised.value.sqlstate == code
        insert(connection)
    assert world.rows() == [1]


def test_nothing_but_garbage_is_unknown(world: World) -> None:
    with Between(world.run) as between, world.session("300ms") as connection:
        between.on_reply = lambda tag, body: [b"\xc1"] if tag in (COMMIT_REPLY, RESOLVE_REPLY) else [body]
        with pytest.raises(psycopg.OperationalError) as raised:
            insert(connection)
        assert raised.value.sqlstate == "08007"
        assert connection.closed
    assert world.rows() == [1]


@pytest.mark.parametrize("closed", [False, True])
def test_a_lost_answer_is_resolved(world: World, closed: bool) -> None:
    def lose(tag: int, body: bytes) -> Passed:
        if tag == COMMIT_REPLY:
            if closed:
                raise Break
            return []
        return [body]

    with Between(world.run) as between, world.session() as connection:
        between.on_reply = lose
        insert(connection)
        insert(connection, 2)
    assert world.rows() == [1, 2]


def test_a_commit_that_comes_too_late_is_refused(world: World) -> None:
    late: list[bytes] = []

    def keep(tag: int, body: bytes) -> Passed:
        if tag == COMMIT and not late:
            late.append(body)
            return []
        return [body]

    with Between(world.run) as between, world.session("300ms") as connection:
        between.on_request = keep
        with pytest.raises(errors.SerializationFailure):
            insert(connection)
        commit = decoded(late[0])
        assert isinstance(commit, Commit)
        client = Client(world.run / "commit.behind", (world.run / "page").read_bytes()[8:24])
        answer = client.call(commit)
        client.close()
        assert isinstance(answer, CommitReply)
        assert answer.outcome == Outcome.REFUSED
        insert(connection, 2)
    assert world.rows() == [2]


def test_a_cancel_during_commit_is_true(world: World) -> None:
    """57014 only if the transaction certainly did not commit."""
    with Between(world.run) as between, world.session("10s") as connection:

        def lose_and_cancel(tag: int, body: bytes) -> Passed:
            if tag == COMMIT:
                connection.cancel_safe()
                return []
            return [body]

        between.on_request = lose_and_cancel
        with pytest.raises(errors.QueryCanceled):
            insert(connection)
        between.on_request = passes

        def cancel(tag: int, body: bytes) -> Passed:
            if tag == COMMIT_REPLY:
                connection.cancel_safe()
                return []
            return [body]

        between.on_reply = cancel
        insert(connection, 2)
    assert world.rows() == [2]


def test_pending_for_too_long_is_unknown_and_no_garbage(world: World) -> None:
    """The disk hangs: the commit is decided, and durable only after its client was told that nobody knows."""
    dropped: list[bytes] = []

    def pend(tag: int, body: bytes) -> Passed:
        if tag == COMMIT_REPLY:
            return []
        if tag == RESOLVE_REPLY:
            message = decoded(body)
            assert isinstance(message, ResolveReply)
            return [encode(ResolveReply(message.txid, Outcome.PENDING, 0))]
        return [body]

    def watch(tag: int, body: bytes) -> Passed:
        if tag == DROP:
            dropped.append(body)
        return [body]

    with Between(world.run) as between, world.session("500ms") as connection:
        between.on_reply, between.on_request = pend, watch
        with pytest.raises(psycopg.OperationalError) as raised:
            connection.execute(CHUNKS)
        assert raised.value.sqlstate == "08007"
        connection.close()
        assert not dropped
    with world.server.connect() as connection:
        assert connection.execute("SELECT count(*) FROM fresh").fetchone() == (40000,)


def test_a_stopped_commit_service(world: World) -> None:
    pids: list[int] = []

    def stop(tag: int, body: bytes) -> Passed:
        if tag == COMMIT and not pids:
            pids.append(world.signal_commit(signal.SIGSTOP))
        return [body]

    with Between(world.run) as between, world.session("500ms") as connection:
        between.on_request = stop
        try:
            with pytest.raises(psycopg.OperationalError) as raised:
                insert(connection)
            assert raised.value.sqlstate == "08007"
        finally:
            os.kill(pids[0], signal.SIGCONT)
    world.works()
    assert world.rows() in ([], [1])
    with world.session() as connection:
        insert(connection, 2)
    assert world.rows()[-1] == 2


@pytest.mark.parametrize("at", ["commit not sent", "commit sent", "answered"])
def test_a_commit_service_killed_during_commit(world: World, at: str) -> None:
    generation = world.page(Word.GENERATION)
    killed: list[int] = []

    def request(tag: int, body: bytes) -> Passed:
        if tag == COMMIT and not killed and at == "commit not sent":
            killed.append(world.signal_commit(signal.SIGKILL))
            raise Break
        if tag == COMMIT and not killed and at == "commit sent":
            threading.Timer(0, lambda: killed.append(world.signal_commit(signal.SIGKILL))).start()
        return [body]

    def reply(tag: int, body: bytes) -> Passed:
        if tag == COMMIT_REPLY and not killed and at == "answered":
            killed.append(world.signal_commit(signal.SIGKILL))
            raise Break
        return [body]

    with Between(world.run) as between, world.session("10s") as connection:
        between.on_request, between.on_reply = request, reply
        try:
            insert(connection)
            told: str | None = None
        except psycopg.Error as error:
            told = error.sqlstate
    world.generation_after(generation)
    world.works()
    rows = world.rows()
    match at:
        case "commit not sent":
            assert (told, rows) == ("40001", [])
        case "answered":
            assert (told, rows) == (None, [1])
        case _:
            assert (told, rows) in ((None, [1]), ("40001", []))


def relation_of(connection: psycopg.Connection[tuple[object, ...]], table: str) -> int:
    row = connection.execute(
        "SELECT d.oid::bigint << 32 | c.relfilenode::bigint FROM pg_database d, pg_class c"
        " WHERE d.datname = current_database() AND c.oid = %s::regclass",
        (table,),
    ).fetchone()
    assert row is not None
    return int(str(row[0]))


@pytest.mark.parametrize("lost", ["chunk", "answer", "garbled"])
def test_a_lost_chunk_ends_the_transaction(world: World, lost: str) -> None:
    def request(tag: int, body: bytes) -> Passed:
        if tag == INGEST and lost == "chunk":
            raise Break
        return [body]

    def reply(tag: int, body: bytes) -> Passed:
        if tag == INGEST_REPLY and lost == "answer":
            raise Break
        return [b"\xc1"] if tag == INGEST_REPLY and lost == "garbled" else [body]

    with Between(world.run) as between, world.session() as connection:
        connection.execute("BEGIN")
        connection.execute(CHUNKS)
        relation = relation_of(connection, "fresh")
        assert connection.execute("SELECT count(*) FROM fresh").fetchone() == (40000,)
        connection.execute("SAVEPOINT loaded")
        between.on_request, between.on_reply = request, reply
        with pytest.raises(psycopg.Error) as raised:
            connection.execute(CHUNKS.replace("fresh", "more"))
            connection.execute("SELECT count(*) FROM more")
        assert raised.value.sqlstate == ("08P01" if lost == "garbled" else "57P03")
        between.on_request, between.on_reply = passes, passes
        # what was loaded before is gone with the connection: no savepoint brings it back
        connection.execute("ROLLBACK TO loaded")
        with pytest.raises(errors.CannotConnectNow):
            connection.execute("COMMIT")
        insert(connection)
        assert connection.execute("SELECT to_regclass('fresh')").fetchone() == (None,)
    until("what was loaded is collected", lambda: world.stored(relation) == 0)
    assert world.rows() == [1]


ENDS = {
    "rolled back, and something else is committed": ["ROLLBACK TO a", "INSERT INTO talk VALUES (1)"],
    "rolled back, and nothing is committed": ["ROLLBACK TO a"],
    "rolled back above": ["RELEASE a", "ROLLBACK TO outside", "INSERT INTO talk VALUES (1)"],
    "dropped": ["DROP TABLE fresh"],
    "dropped beside a write": ["DROP TABLE fresh", "INSERT INTO talk VALUES (1)"],
    "truncated": ["TRUNCATE fresh"],
    "a truncation rolled back": ["RELEASE a", "SAVEPOINT b", "TRUNCATE fresh", FILL, "ROLLBACK TO b", "TRUNCATE fresh"],
}


@pytest.fixture(scope="module")
def brief() -> Iterator[World]:
    """Keeps what is deleted for a second only."""
    with temporary_directory("brief") as directory:
        made = AustralisCluster(
            directory, driver=os.environ.get("AUSTRALIS_STORAGE_DRIVER"), settings={"retention": 1.0}
        )
        try:
            yield World(made, made.start())
        finally:
            made.stop()


@pytest.mark.parametrize("how", ENDS)
def test_what_a_committed_transaction_leaves_behind_is_collected(brief: World, how: str) -> None:
    with brief.session("10s") as connection:
        connection.execute("DROP TABLE IF EXISTS talk, fresh")
        connection.execute("CREATE TABLE talk (id int PRIMARY KEY)")
        for statement in ("BEGIN", "SAVEPOINT outside", "SAVEPOINT a", CHUNKS):
            connection.execute(statement.encode())
        left = {relation_of(connection, "fresh")}
        assert all(brief.stored(relation) for relation in left)
        for statement in ENDS[how]:
            connection.execute(statement.encode())
            if statement == FILL:
                left.add(relation_of(connection, "fresh"))
        connection.execute("COMMIT")
        for relation in left:
            until("what was loaded is collected", lambda relation=relation: brief.stored(relation) == 0)


def test_a_service_killed_before_it_hears_of_garbage(world: World) -> None:
    generation = world.page(Word.GENERATION)

    def kill(tag: int, body: bytes) -> Passed:
        if tag == DROP:
            world.signal_commit(signal.SIGKILL)
            raise Break
        return [body]

    with Between(world.run) as between, world.session() as connection:
        between.on_request = kill
        connection.execute("BEGIN")
        connection.execute(CHUNKS)
        assert connection.execute("SELECT count(*) FROM fresh").fetchone() == (40000,)
        relation = relation_of(connection, "fresh")
        assert world.stored(relation) > 0
        connection.execute("ROLLBACK")
    world.generation_after(generation)
    world.works()
    until("what was loaded is collected", lambda: world.stored(relation) == 0)


def test_resolve_is_asked_of_the_next_generation(world: World) -> None:
    """The answer is lost together with its generation; the next one knows it from the journal."""
    generation = world.page(Word.GENERATION)
    asked: list[object] = []

    def reply(tag: int, body: bytes) -> Passed:
        if tag == COMMIT_REPLY:
            world.signal_commit(signal.SIGKILL)
            world.generation_after(generation)
            raise Break
        return [body]

    def request(tag: int, body: bytes) -> Passed:
        if tag == RESOLVE:
            asked.append(decoded(body))
        return [body]

    with Between(world.run) as between, world.session("10s") as connection:
        between.on_reply, between.on_request = reply, request
        insert(connection)
    assert not [message for message in asked if not isinstance(message, Resolve)]
    assert world.rows() == [1]
