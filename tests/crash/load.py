"""The load of a crash run: transfers and per-key histories, every outcome remembered by the client.

A transaction is one of four things to its client: acknowledged, refused (certainly not committed), unknown (the
connection broke at COMMIT, or 08007), or never sent to COMMIT (not committed). The checker holds the database to it.
"""

from __future__ import annotations

import contextlib
import enum
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
from psycopg import errors, pq

from tests.fixtures.servers import Server

ACCOUNTS = 40
KEYS = 16
START_BALANCE = 1000
RECONNECT_PAUSE = 0.05

SCHEMA = (
    "DROP TABLE IF EXISTS crash_history, crash_account, crash_log, crash_probe",
    "CREATE TABLE crash_account (id int PRIMARY KEY, balance bigint NOT NULL, pad text)",
    "CREATE TABLE crash_history (client int, seq int, src int NOT NULL, dst int NOT NULL, amount int NOT NULL,"
    " PRIMARY KEY (client, seq))",
    "CREATE INDEX crash_history_src ON crash_history (src) INCLUDE (amount)",
    "CREATE TABLE crash_log (key int, version int, client int NOT NULL, seq int NOT NULL, PRIMARY KEY (key, version))",
    "CREATE UNIQUE INDEX crash_log_once ON crash_log (client, seq)",
    "CREATE TABLE crash_probe (id int PRIMARY KEY, n bigint)",
    "INSERT INTO crash_probe VALUES (1, 0)",
    f"INSERT INTO crash_account SELECT i, {START_BALANCE}, repeat('p', 100) FROM generate_series(1, {ACCOUNTS}) i",
)


class Outcome(enum.Enum):
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass
class Counts:
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    conflicts: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class Client(threading.Thread):
    """One client: runs transactions until told to stop, reconnecting whenever its connection breaks."""

    def __init__(self, number: int, server: Callable[[], Server], seed: int) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self.number = number
        self.server = server
        self.rng = random.Random(seed * 1000 + number)
        self.outcomes: dict[int, Outcome] = {}  # by seq; appended by this thread only
        self.counts = Counts()
        self.failure: BaseException | None = None
        self._stop_now = threading.Event()
        self._run_freely = threading.Event()
        self._run_freely.set()
        self._paused = threading.Event()
        self._sequence = 0

    def pause(self) -> None:
        """No transaction is open when this returns."""
        self._run_freely.clear()
        if not self._paused.wait(60):
            raise TimeoutError(f"{self.name} did not come to rest")

    def resume(self) -> None:
        self._paused.clear()
        self._run_freely.set()

    def stop(self) -> None:
        self._stop_now.set()
        self._run_freely.set()

    def run(self) -> None:
        try:
            while not self._stop_now.is_set():
                self._session()
        except BaseException as error:  # noqa: BLE001 (reported by the run)
            self.failure = error
        finally:
            self._paused.set()

    def _session(self) -> None:
        try:
            connection = psycopg.connect(self.server().dsn, connect_timeout=5, autocommit=True)
        except psycopg.OperationalError as error:
            self._note(error)
            if not self._run_freely.is_set():
                self._rest()
            self._stop_now.wait(RECONNECT_PAUSE)
            return
        with contextlib.closing(connection):  # the connection's own context manager would COMMIT what is still open
            try:
                connection.execute("SET statement_timeout = '20s'")
                while not self._stop_now.is_set() and connection.info.status == pq.ConnStatus.OK:
                    if not self._run_freely.is_set():
                        self._rest()
                    self._transaction(connection)
            except psycopg.OperationalError as error:  # a session may break at any of its statements
                self._note(error)

    def _rest(self) -> None:
        self._paused.set()
        self._run_freely.wait()

    def _note(self, error: psycopg.Error) -> None:
        state = error.sqlstate or "connection lost"
        self.counts.errors[state] = self.counts.errors.get(state, 0) + 1

    def _transaction(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        self._sequence += 1
        seq = self._sequence
        try:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            if self.rng.random() < 0.6:
                self._transfer(connection, seq)
            else:
                self._append(connection, seq)
        except (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation):
            self.counts.conflicts += 1
            self._end(seq, Outcome.REFUSED)
            connection.execute("ROLLBACK")
            return
        except psycopg.OperationalError:
            self._end(seq, Outcome.REFUSED)  # COMMIT was never sent
            raise
        self._commit(connection, seq)

    def _commit(self, connection: psycopg.Connection[tuple[object, ...]], seq: int) -> None:
        try:
            connection.execute("COMMIT")
        except (errors.SerializationFailure, errors.DeadlockDetected):
            self.counts.conflicts += 1
            self._end(seq, Outcome.REFUSED)
        except psycopg.Error as error:
            alive = connection.info.status == pq.ConnStatus.OK
            unknown = not alive or error.sqlstate == "08007"
            self._end(seq, Outcome.UNKNOWN if unknown else Outcome.REFUSED)
            self._note(error)
            if not alive:
                raise psycopg.OperationalError("connection lost at COMMIT") from error
        else:
            self._end(seq, Outcome.ACKNOWLEDGED)

    def _end(self, seq: int, outcome: Outcome) -> None:
        self.outcomes[seq] = outcome
        setattr(self.counts, outcome.value, getattr(self.counts, outcome.value) + 1)

    def _transfer(self, connection: psycopg.Connection[tuple[object, ...]], seq: int) -> None:
        src, dst = self.rng.sample(range(1, ACCOUNTS + 1), 2)
        amount = self.rng.randrange(1, 20)
        connection.execute("UPDATE crash_account SET balance = balance - %s WHERE id = %s", (amount, src))
        connection.execute("UPDATE crash_account SET balance = balance + %s WHERE id = %s", (amount, dst))
        connection.execute(
            "INSERT INTO crash_history VALUES (%s, %s, %s, %s, %s)", (self.number, seq, src, dst, amount)
        )

    def _append(self, connection: psycopg.Connection[tuple[object, ...]], seq: int) -> None:
        key = self.rng.randrange(KEYS)
        connection.execute(
            "INSERT INTO crash_log SELECT %(k)s, COALESCE(max(version), 0) + 1, %(c)s, %(s)s FROM crash_log"
            " WHERE key = %(k)s",
            {"k": key, "c": self.number, "s": seq},
        )
