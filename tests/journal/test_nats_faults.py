"""Lost answers, doubled and late messages, rivals, lost journals: the engine nats tells the truth (J2, C9, C10)."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from australis.errors import AustralisError, FencedError
from australis.journal import nats, reached
from australis.journal.message import Message, Queued, pack_message, unpack_message
from australis.journal.nats import NatsJournal
from australis.journal.nats_server import connect
from australis.journal.record import Kind, Position, encode_record
from tests.fixtures.nats import NatsServers, Relay, relay
from tests.journal.engines import NatsEngine
from tests.journal.owner import CLUSTER, History, Owner, check


@pytest.fixture
def engine(tmp_path: Path, one_server: NatsServers) -> NatsEngine:
    return NatsEngine(tmp_path, one_server)


@pytest.fixture
def between(one_server: NatsServers) -> Iterator[Relay]:
    with relay(one_server.servers[0].port) as between:
        yield between


def messages(engine: NatsEngine) -> list[Message]:
    """All messages of the stream, raw."""

    async def read() -> list[Message]:
        client = await connect(tuple(server.url for server in engine.servers.servers))
        try:
            js = client.jetstream(timeout=5)
            state = (await js.stream_info(engine.stream)).state
            found = []
            for place in range(state.first_seq, state.last_seq + 1):
                message = await js.get_msg(engine.stream, place)
                assert message.data is not None
                found.append(unpack_message(message.data))
            return found
        finally:
            await client.close()

    return asyncio.run(read())


def publish(engine: NatsEngine, *payloads: bytes) -> None:
    """Append behind everybody's back, without any expectation."""

    async def send() -> None:
        client = await connect(tuple(server.url for server in engine.servers.servers))
        try:
            for payload in payloads:
                await client.jetstream(timeout=5).publish(f"journal.{engine.stream}", payload)
        finally:
            await client.close()

    asyncio.run(send())


def repack(message: Message) -> bytes:
    """The bytes of a message again."""
    queued = []
    for header, hash, body in message.records:
        position = Position(header.sequence, header.generation, hash)
        record = encode_record(
            header.kind,
            header.flags,
            header.cluster,
            header.generation,
            header.sequence,
            header.previous,
            header.horizon,
            header.tau,
            header.txid,
            body,
            header.part,
            header.parts,
        )
        assert record.hash == hash
        queued.append(Queued(record.header, body, position, header.tau, 0))
    return pack_message(queued, message.previous_generation, message.summary)[0]


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.002)


def held_appends(engine: NatsEngine, between: Relay, history: History) -> Owner:
    """An owner with four messages that are sent, but have not reached the server."""
    engine.ports = [between.port]
    owner = engine.owner(history)
    engine.ports = None
    owner.append(b"durable")
    owner.wait()
    between.hold()
    for number in range(4):
        owner.append(b"on its way %d" % number)
    until("four messages are held back", lambda: between.held > 4 * 170)
    return owner


def test_a_rival_claims_while_appends_are_in_flight(engine: NatsEngine, between: Relay) -> None:
    """TRAP 1 (C9): the later appends of the old owner are stored behind the claim, since their predictions hold."""
    history = History()
    old = held_appends(engine, between, history)
    new = engine.owner(history)
    between.release()
    error = old.wait_failed()
    assert isinstance(error, FencedError), error
    new.append(b"mine")
    new.wait()
    generations = [message.generation for message in messages(engine)]
    assert generations == [1, 1, 2, 1, 1, 1, 2], "the trap was not set off"
    assert old.durable == old.appended[0].position.sequence
    old.close()
    new.append_some(20)
    new.wait()
    new.close()
    entries = engine.read()
    check(history, entries)
    assert [entry.body for entry in entries if entry.kind == Kind.TRANSACTION][:2] == [b"durable", b"mine"]


def test_what_the_old_owner_stored_before_the_claim_is_durable(engine: NatsEngine, between: Relay) -> None:
    """Its answers are lost, its records are not: they are read, reported, and only then it is fenced."""
    history = History()
    engine.ports = [between.port]
    old = engine.owner(history)
    engine.ports = None
    between.swallow()
    old.append(b"stored, not answered")
    until("it is stored", lambda: len(messages(engine)) == 2)
    new = engine.owner(history)
    between.cut()
    assert isinstance(old.wait_failed(), FencedError)
    assert old.durable == old.appended[0].position.sequence
    assert new.claimed.floor == old.appended[0].tau
    for owner in (old, new):
        owner.close()
    check(history, engine.read())


def test_an_own_late_append_lands_twice(engine: NatsEngine, between: Relay) -> None:
    """C10: junk takes the first one's place, the later ones are stored, void, and are stored again behind it."""
    history = History()
    first = engine.owner(history)
    first.append(b"of the first generation")
    first.wait()
    first.close()
    owner = held_appends(engine, between, history)
    publish(engine, repack(messages(engine)[1]))
    between.release()
    owner.wait()
    stored = [record for message in messages(engine) for _, _, record in message.records]
    assert stored.count(b"on its way 0") == 1
    assert [stored.count(b"on its way %d" % number) for number in (1, 2, 3)] == [2, 2, 2], "it was not set off"
    owner.close()
    check(history, engine.read())


@pytest.mark.parametrize("round_", range(3))
def test_lost_answers(engine: NatsEngine, between: Relay, round_: int) -> None:
    """The server stores, its answers are lost, the connection breaks: again and again under load."""
    history = History(seed=round_)
    engine.ports = [between.port]
    owner = engine.owner(history)
    for cut in range(4):
        owner.append_some(5)
        owner.wait()
        if cut % 2:
            between.swallow()
        owner.append_some(30, largest=70_000)
        if cut % 2:
            until("answers are lost", lambda: between.swallowed > 0)
        between.cut()
        owner.append_some(10)
    owner.wait()
    owner.close()
    engine.ports = None
    check(history, engine.read())


def test_messages_that_are_stored_twice(engine: NatsEngine) -> None:
    """Copies of valid messages, between and behind others, count once."""
    history = History()
    owner = engine.owner(history)
    for _ in range(5):
        owner.append_some(5)
        owner.wait()
        copies = [repack(message) for message in messages(engine)]
        publish(engine, *copies[-3:], copies[0])
    owner.append_some(5)
    owner.wait()
    at = owner.appended[15].position
    assert [entry.body for entry in owner.journal.tail(at)] == [one.body for one in owner.appended[16:]]
    owner.close()
    check(history, engine.read())


def test_trimming_leaves_a_message_that_counts_in_front(engine: NatsEngine) -> None:
    """A fresh reader begins with the first message: void ones must not be it."""
    history = History()
    for generation in range(3):
        owner = engine.owner(history)
        publish(engine, repack(messages(engine)[0]))
        owner.append(bytes(1000))
        owner.wait()
        if generation < 2:
            owner.close()
    claim = owner.claimed.position
    publish(engine, repack(messages(engine)[1]))
    assert owner.journal.trim(owner.appended[-1].position.sequence) > 0
    left = messages(engine)
    assert left[0].last == claim
    owner.append(b"behind")
    owner.wait()
    owner.close()
    assert [entry.body for entry in engine.read(claim)] == [bytes(1000), b"behind"]


def test_claims_at_the_same_time(engine: NatsEngine) -> None:
    """Each is recognised by its nonce; the generations differ; the last one stays."""
    history = History()
    engine.remember = False  # they are on different machines
    journals = [engine.open(lambda _: None, lambda _: None) for _ in range(4)]
    claims = []
    errors = []

    def claim(journal: NatsJournal) -> None:
        try:
            claims.append(journal.claim())
        except AustralisError as error:
            errors.append(error)

    threads = [threading.Thread(target=claim, args=(journal,)) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    generations = [claimed.generation for claimed in claims]
    assert len(set(generations)) == len(generations)
    assert all(isinstance(error, FencedError) for error in errors), errors
    for journal in journals:
        journal.close()
    entries = engine.read()
    assert [entry.position.generation for entry in entries] == list(range(1, len(entries) + 1))
    assert max(generations) == len(entries)
    owner = engine.owner(history)
    owner.append(b"goes on")
    owner.wait()
    owner.close()


def test_a_full_stream_waits_and_nothing_is_lost(engine: NatsEngine) -> None:
    history = History()
    engine.max_bytes = 2 << 20
    owner = engine.owner(history)
    while owner.journal.admits(40_000):
        owner.append(os.urandom(40_000))
        owner.wait()
    more = owner.append(os.urandom(200_000))  # was decided before anybody saw that it is full
    until("it is full", lambda: owner.journal.full)
    assert not owner.journal.admits(1)
    assert owner.failure is None
    assert owner.journal.trim(owner.appended[-5].position.sequence) > 0
    owner.wait(more.position.sequence)
    assert owner.journal.admits(40_000)
    at = owner.appended[-5].position
    owner.close()
    assert [entry.body for entry in engine.read(at)] == [one.body for one in owner.appended[-4:]]


def test_damage_is_reported(engine: NatsEngine) -> None:
    history = History()
    owner = engine.owner(history)
    owner.append(b"a")
    owner.wait()
    owner.close()
    publish(engine, b"not a message of ours")
    with pytest.raises(AustralisError, match=r"message 3 of stream \S+ is damaged: shorter than a preamble"):
        engine.read()


# ------------------------------------------------------------------------------------------------------ loss detector


def admin(engine: NatsEngine, what: str, place: int = 0) -> None:
    """What a person or a bug may do to a stream."""

    async def act() -> None:
        client = await connect(tuple(server.url for server in engine.servers.servers))
        js = client.jetstream(timeout=5)
        try:
            if what == "delete":
                await js.delete_stream(engine.stream)
            elif what == "purge":
                await js.purge_stream(engine.stream)
            else:
                kept = [await js.get_msg(engine.stream, number) for number in range(1, place + 1)]
                config = (await js.stream_info(engine.stream)).config
                await js.delete_stream(engine.stream)
                await js.add_stream(config)
                for message in kept:
                    await js.publish(f"journal.{engine.stream}", message.data or b"")
        finally:
            await client.close()

    asyncio.run(act())


@pytest.mark.parametrize(
    ("what", "place", "alarm"),
    [
        ("delete", 0, "ends at record 0, but record 4 was acknowledged"),
        ("recreate", 0, "ends at record 0, but record 4 was acknowledged"),
        ("truncate", 3, "ends at record 3, but record 4 was acknowledged"),
        ("purge", 0, "is empty, but had 4 messages"),
    ],
)
def test_a_journal_that_lost_its_end_is_refused(engine: NatsEngine, what: str, place: int, alarm: str) -> None:
    history = History()
    owner = engine.owner(history)
    for _ in range(3):
        owner.append(b"acknowledged")
        owner.wait()
    owner.close()
    admin(engine, what, place)
    for _ in range(2):  # not only once
        with pytest.raises(reached.LostRecordsError, match=f"ALARM.*{alarm}"):
            engine.owner(History())


def test_another_journal_of_the_same_length_is_refused(engine: NatsEngine) -> None:
    history = History()
    owner = engine.owner(history)
    owner.append(b"acknowledged")
    owner.wait()
    owner.close()
    admin(engine, "delete")
    engine.remember = False
    other = engine.owner(History())
    other.append_some(10)
    other.wait()
    other.close()
    engine.remember = True
    with pytest.raises(reached.LostRecordsError, match="holds another record 2"):
        engine.owner(History())


def test_a_stream_that_vanishes_in_use_ends_its_owner(engine: NatsEngine) -> None:
    history = History()
    owner = engine.owner(history)
    owner.append(b"acknowledged")
    owner.wait()
    admin(engine, "delete")
    owner.append(b"into the void")
    assert "there is no stream" in str(owner.wait_failed())
    assert owner.durable == owner.appended[0].position.sequence
    owner.close()


def test_what_was_trimmed_is_not_lost(engine: NatsEngine) -> None:
    history = History()
    owner = engine.owner(history)
    for _ in range(60):
        owner.append(os.urandom(40_000))
    owner.wait()
    engine.remember = False
    owner.journal.trim(owner.appended[50].position.sequence)
    owner.close()
    reached.save(engine.directory, CLUSTER, owner.appended[0].position, 1)
    engine.remember = True
    engine.owner(history).close()
    assert engine.read(owner.appended[-1].position)[-1].kind == Kind.CLAIM


def test_closing_while_the_mark_is_written(engine: NatsEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They write the same file: one after the other, and an earlier mark does not replace a later one."""
    save, writing, second = reached.save, threading.Event(), threading.Event()
    overlapped = []

    def slow(directory: Path, cluster: bytes, position: Position, tau: int) -> None:
        if writing.is_set():
            second.set()
        else:
            writing.set()
            overlapped.append(second.wait(0.5))  # what is waited for must not happen
        save(directory, cluster, position, tau)

    owner = engine.owner(History())
    monkeypatch.setattr(nats, "NOTE_SECONDS", 0.0)
    monkeypatch.setattr(reached, "save", slow)
    owner.append(b"noted in the background")
    owner.wait()
    assert writing.wait(20)
    owner.append(b"noted at the end")
    owner.wait()
    owner.close()
    assert overlapped == [False]
    found = reached.load(engine.directory, CLUSTER)
    assert found is not None
    assert found.position == owner.appended[1].position


def test_the_mark_is_of_this_cluster_and_whole(tmp_path: Path) -> None:
    assert reached.load(tmp_path, CLUSTER) is None
    reached.save(tmp_path, CLUSTER, Position(5, 2, bytes(16)), 77)
    found = reached.load(tmp_path, CLUSTER)
    assert found is not None
    assert (found.position, found.tau) == (Position(5, 2, bytes(16)), 77)
    with pytest.raises(AustralisError, match="another cluster"):
        reached.load(tmp_path, bytes(16))
    (tmp_path / reached.FILE).write_bytes(b"{")
    with pytest.raises(AustralisError, match="cannot be read"):
        reached.load(tmp_path, CLUSTER)
