"""The engines that the contract tests run on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from australis.journal.files import FilesJournal
from australis.journal.interface import Journal, OnDurable, OnFailed
from australis.journal.nats import NatsJournal
from australis.journal.record import START, Entry, Position
from tests.fixtures.nats import NatsServers, scratch_name
from tests.journal.owner import CLUSTER, History, Owner

SEGMENT = 1 << 18
SMALL_PART = 50_000


class Engine:
    """One journal that owners open one after the other (or at the same time)."""

    name: str
    directory: Path

    def open(self, on_durable: OnDurable, on_failed: OnFailed, cluster: bytes = CLUSTER) -> Journal:
        raise NotImplementedError

    def owner(self, history: History) -> Owner:
        return Owner(history, self.open)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Journal]:
        """The journal as a fresh process sees it, not claimed."""
        journal = self.open(lambda _: None, lambda _: None)
        try:
            yield journal
        finally:
            journal.close()

    def read(self, after: Position = START) -> list[Entry]:
        with self.opened() as journal:
            return list(journal.tail(after))


class FilesEngine(Engine):
    """Segments in a directory."""

    name = "files"

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "journal"

    def open(self, on_durable: OnDurable, on_failed: OnFailed, cluster: bytes = CLUSTER) -> Journal:
        return FilesJournal(
            self.directory, cluster, on_durable, on_failed, segment_bytes=SEGMENT, first_segment_bytes=SEGMENT
        )


class NatsEngine(Engine):
    """A stream on servers; through other ports if there is a relay in between."""

    def __init__(self, directory: Path, servers: NatsServers, stream: str | None = None) -> None:
        self.directory = directory / "journal"
        self.servers = servers
        self.stream = stream or scratch_name()
        self.name = f"nats{len(servers.servers)}"
        self.ports: list[int] | None = None
        self.max_bytes = 128 << 20
        self.remember = True
        self._opened: list[tuple[NatsJournal, Path]] = []

    def _own_directory(self) -> Path:
        """`directory`, unless another owner lives there: rivals are on different machines."""
        self._opened = [(journal, where) for journal, where in self._opened if journal._thread.is_alive()]
        taken = {where for _, where in self._opened}
        places = (self.directory.with_name(f"{self.directory.name}{n or ''}") for n in range(len(taken) + 1))
        return next(place for place in places if place not in taken)

    def open(self, on_durable: OnDurable, on_failed: OnFailed, cluster: bytes = CLUSTER) -> NatsJournal:
        directory = self._own_directory()
        journal = NatsJournal(
            self.servers.settings(self.stream, ports=self.ports, max_bytes=self.max_bytes),
            cluster,
            on_durable,
            on_failed,
            directory=directory if self.remember else None,
            check=False,  # test_nats_server.py does
            part_bytes=SMALL_PART,
        )
        self._opened.append((journal, directory))
        return journal
