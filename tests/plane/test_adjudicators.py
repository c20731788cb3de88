"""Adjudicators as services: commits of one and of several owners, take-over, moves, chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from australis.adjudicator import process
from australis.errors import FencedError, JournalError
from australis.protocol.messages import Drop, FeedStatus, Ingest, MoveRange, Outcome, Resolve, Subscribe
from tests.plane.parts import Asker, configs, key, partition, start, write


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


def test_a_deposed_owner_raises_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crossbar that has followed the next candidate may come back to the old one before that knows."""

    async def body() -> None:
        (config,) = configs(tmp_path, 1)
        service = await start(config)
        assert service.node is not None
        newer = Subscribe(1, service.node.generation + 1, b"h" * 16, 0)
        assert service.feed_start(newer)[0].status == FeedStatus.DIVERGED  # of one without other candidates
        service.config = replace(config, candidates=True)
        with pytest.raises(JournalError, match="has read of generation"):
            service.feed_start(newer)
        monkeypatch.setattr(process, "DEPOSED_SECONDS", 0.0)
        assert service.feed_start(newer)[0].status == FeedStatus.DIVERGED  # it would know by now
        service.config = config
        await service.stop()

    run(body)


def test_commits_of_one_and_of_two_owners(tmp_path: Path) -> None:
    async def body() -> None:
        services = [await start(config) for config in configs(tmp_path, 2)]
        asker = Asker()
        for number, service in enumerate(services):
            asker.link(number, service.config.listen)
        await asker.up()
        first = write([key(0, 1)])
        reply = await asker.commit(0, first)
        assert reply.outcome == Outcome.COMMITTED
        # a snapshot from before it conflicts, also through the other owner
        both = write([key(0, 1), key(1, 1)], first.tau_start)
        assert (await asker.commit(1, both)).outcome == Outcome.CONFLICT
        # a newer one does not
        both = write([key(0, 1), key(1, 1)])
        committed = await asker.commit(1, both)
        assert committed.outcome == Outcome.COMMITTED, committed
        # and both owners know of it
        for number in range(2):
            late = write([key(number, 1)], both.tau_start)
            assert (await asker.commit(number, late)).outcome == Outcome.CONFLICT
        found = await asker.ask(1, Resolve(both.txid, both.tau_start, asker.links[1].generation, 1), "ResolveReply")
        assert (found.outcome, found.tau) == (Outcome.COMMITTED, committed.tau)
        unknown = write([key(0, 5)])
        gone = await asker.ask(0, Resolve(unknown.txid, unknown.tau_start, 1, 0, True), "ResolveReply")
        assert gone.outcome == Outcome.KILLED
        assert (await asker.commit(0, unknown)).outcome == Outcome.REFUSED
        await asker.close()
        for service in services:
            await service.stop()

    run(body)


def test_a_successor_knows_what_was_committed(tmp_path: Path) -> None:
    async def body() -> None:
        made = configs(tmp_path, 1)
        service = await start(made[0])
        asker = Asker()
        asker.link(0, made[0].listen)
        await asker.up()
        first = write([key(0, 1)])
        tau = (await asker.commit(0, first)).tau
        candidate = asyncio.create_task(start(made[0]))  # waits for the lock of the journal
        await service.stop()
        second = await candidate
        assert second.node is not None and service.node is not None
        assert second.node.generation == service.node.generation + 1
        await asker.close()
        asker = Asker()
        asker.link(0, made[0].listen)
        await asker.up()
        found = await asker.ask(0, Resolve(first.txid, first.tau_start, 0, 0), "ResolveReply")
        assert (found.outcome, found.tau) == (Outcome.COMMITTED, tau)
        assert (
            await asker.commit(0, write([key(0, 1)], first.tau_start))
        ).outcome == Outcome.REFUSED  # below the floor
        assert (await asker.commit(0, write([key(0, 1)]))).outcome == Outcome.COMMITTED
        await asker.close()
        await second.stop()

    run(body)


@pytest.mark.parametrize("error", [FencedError, JournalError])
def test_a_failed_journal_leaves_whoever_waits_to_the_successor(tmp_path: Path, error: type[JournalError]) -> None:
    """Neither yes nor no: the record may have arrived, and the successor knows (rule Q2)."""

    async def body() -> None:
        made = configs(tmp_path, 1)
        service = await start(made[0])
        asker = Asker()
        asker.link(0, made[0].listen)
        await asker.up()
        commit = write([key(0, 1)])
        flushed = asyncio.Event()
        service._flush = flushed.set  # type: ignore[method-assign]  # the record is queued, and no more is heard of it
        waiting = asyncio.create_task(asker.commit(0, commit))
        await flushed.wait()
        service._journal_failed(error("another process owns the journal"))
        assert isinstance(await service.failed, error)
        assert not waiting.done()
        await service.stop()
        with pytest.raises(ConnectionResetError):
            await waiting
        await asker.close()
        successor = await start(made[0])
        asker = Asker()
        asker.link(0, made[0].listen)
        await asker.up()
        found = await asker.ask(0, Resolve(commit.txid, commit.tau_start, 1, 0, True), "ResolveReply")
        assert found.outcome == Outcome.COMMITTED  # it was written when the journal was closed
        await asker.close()
        await successor.stop()

    run(body)


def test_a_range_moves_and_stays_moved(tmp_path: Path) -> None:
    async def body() -> None:
        made = configs(tmp_path, 2)
        services = [await start(config) for config in made]
        asker = Asker()
        for number, service in enumerate(services):
            asker.link(number, service.config.listen)
        await asker.up()
        lo, hi = key(0, 0)[:8], key(1, 0)[:8]
        old = write([key(0, 1)])
        assert (await asker.commit(0, old)).outcome == Outcome.COMMITTED
        assert (await asker.ask(0, MoveRange(1, lo, hi, 1), "MoveReply")).error == ""
        assert (await asker.ask(0, MoveRange(2, lo, hi, 1), "MoveReply")).error != ""
        assert (await asker.commit(0, write([key(0, 1)]))).outcome == Outcome.REFUSED  # not his any more
        newer = partition(2).moved(lo, hi, 1)
        for service in services:
            service.learn_map(newer.encode())
        assert (await asker.commit(1, write([key(0, 1)], old.tau_start))).outcome == Outcome.REFUSED  # W4: its floor
        assert (await asker.commit(1, write([key(0, 1)]))).outcome == Outcome.COMMITTED
        await asker.close()
        for service in services:
            await service.stop()
        again = [await start(config) for config in made]  # from their journals alone
        assert again[1].node is not None and again[1].node.ranges.holds(key(0, 1))
        assert again[0].node is not None and not again[0].node.ranges.holds(key(0, 1))
        for service in again:
            await service.stop()

    run(body)


def test_chunks_are_dropped_with_their_sender(tmp_path: Path) -> None:
    async def body() -> None:
        import msgspec

        [config] = configs(tmp_path, 1)
        service = await start(config)
        asker = Asker()
        asker.link(0, config.listen)
        await asker.up()
        commit = write([key(3, 1)])
        chunk = Ingest(
            asker.links[0].generation,
            commit.txid,
            0,
            msgspec.Raw(msgspec.msgpack.encode([key(3, 1)])),
            b"\x03",
            msgspec.Raw(msgspec.msgpack.encode([b"v"])),
        )
        assert (await asker.ask(0, chunk, "IngestReply")).outcome == Outcome.COMMITTED
        await asker.close()
        asker = Asker()
        asker.link(0, config.listen)
        await asker.up()
        assert (await asker.commit(0, commit)).outcome == Outcome.REFUSED
        await asker.close()
        await service.stop()
        from australis.journal.files import FilesJournal
        from australis.journal.record import START, Kind

        journal = FilesJournal(config.data / "journal", config.cluster, lambda sequence: None, lambda error: None)
        kinds = {entry.kind: entry for entry in journal.tail(START)}
        journal.close()
        assert msgspec.msgpack.decode(kinds[Kind.DROP].body, type=Drop).relations == [
            int.from_bytes(key(3, 1)[:8], "big")
        ]

    run(body)
