"""A bank over several gateways: money moves between tables of different adjudicators, every transfer is written down.

What must hold at the end: no money came or went; what was acknowledged is there, what was refused is not.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

import psycopg

from tests.fixtures.servers import Server

TABLES, ACCOUNTS, MONEY = 4, 20, 100
WAIT_SECONDS = 60.0


@dataclass
class Bank:
    """Clients of several servers; `commits` counts per client."""

    servers: list[Server]
    clients: int = 2  # of each server
    commits: list[int] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._ids = iter(range(1, 1 << 60))

    def create(self) -> None:
        """Make the tables; each is some relation numbers away from the last."""
        with self.servers[0].connect() as connection:
            for number in range(TABLES):
                connection.execute(f"CREATE TABLE bank{number} (id int PRIMARY KEY, money int NOT NULL)")
                connection.execute(f"INSERT INTO bank{number} SELECT i, {MONEY} FROM generate_series(1, {ACCOUNTS}) i")
                connection.execute(f"CREATE TABLE beside{number} (id serial PRIMARY KEY, t text)")
            connection.execute("CREATE TABLE ledger (id bigint PRIMARY KEY)")

    def __enter__(self) -> Bank:
        self._stop.clear()
        self._threads.clear()
        self.commits.clear()
        for server in self.servers:
            for _ in range(self.clients):
                self.commits.append(0)
                thread = threading.Thread(target=self._client, args=(len(self.commits) - 1, server), daemon=True)
                self._threads.append(thread)
                thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "a client hangs"

    def _client(self, number: int, server: Server) -> None:
        rng = random.Random(number)
        connection: psycopg.Connection[tuple[object, ...]] | None = None
        while not self._stop.is_set():
            if connection is None or connection.closed:
                try:
                    connection = psycopg.connect(server.dsn, connect_timeout=30)
                except psycopg.OperationalError:
                    self._stop.wait(0.05)  # the server is down: there is nothing to wait for but time
                    continue
            with self._news:
                id = next(self._ids)
            connection = self._transfer(connection, rng, id, number)
        if connection is not None:
            connection.close()

    def _transfer(
        self, connection: psycopg.Connection[tuple[object, ...]], rng: random.Random, id: int, number: int
    ) -> psycopg.Connection[tuple[object, ...]] | None:
        source, target = rng.sample(range(TABLES), 2)
        amount = rng.randint(1, 5)
        committing = False
        try:
            connection.execute(
                f"UPDATE bank{source} SET money = money - {amount} WHERE id = {rng.randint(1, ACCOUNTS)}"
            )
            connection.execute(
                f"UPDATE bank{target} SET money = money + {amount} WHERE id = {rng.randint(1, ACCOUNTS)}"
            )
            connection.execute(f"INSERT INTO ledger VALUES ({id})")
            committing = True
            connection.commit()
            with self._news:
                self.acknowledged.add(id)
                self.commits[number] += 1
                self._news.notify_all()
            return connection
        except psycopg.Error as error:
            state = error.sqlstate or ""
            with self._news:
                if committing and (state in ("", "08007") or state.startswith(("57P01", "57P02"))):
                    self.unknown.add(id)
                else:
                    self.refused.add(id)
                if state not in ("40001", "57P03", "57P01", "57P02", "08007", ""):
                    self.errors.append(f"{state} {error}")
            try:
                connection.rollback()
            except psycopg.Error:
                connection.close()
                return None
            return connection

    def go_on(self, commits: int, clients: list[int] | None = None) -> float:
        """Wait until each of these clients has committed so often from now on; the seconds until the first did so."""
        begun = time.monotonic()
        with self._news:
            which = clients if clients is not None else list(range(len(self.commits)))
            before = [self.commits[number] for number in which]
            first = 0.0

            def done() -> bool:
                nonlocal first
                gained = [self.commits[number] - old for number, old in zip(which, before, strict=True)]
                if not first and any(gained):
                    first = time.monotonic() - begun
                return all(more >= commits for more in gained)

            assert self._news.wait_for(done, WAIT_SECONDS), f"commits: {before} -> {self.commits}, {self.errors[:3]}"
        return first

    def check(self) -> None:
        """See the module."""
        assert not self.errors, self.errors[:5]
        for server in self.servers:
            with server.connect() as connection:
                total = " + ".join(f"(SELECT sum(money) FROM bank{number})" for number in range(TABLES))
                rows = connection.execute(f"SELECT {total}, (SELECT array_agg(id) FROM ledger)".encode()).fetchall()
                assert rows[0][0] == TABLES * ACCOUNTS * MONEY
                there = set(rows[0][1] or [])  # type: ignore[call-overload]
                assert self.acknowledged <= there, "an acknowledged commit is lost"
                assert not self.refused & there, "a refused commit is there"
                assert there <= self.acknowledged | self.unknown
