"""One run: clients in threads, their history, the checker's verdict.

Made to be run while somebody kills, stops and cuts off the database: a client whose connection breaks makes another
one, through the next DSN if need be; one that hears nothing for `patience` seconds is cut off by a watchdog, and what
it had sent is unknown if it was its COMMIT. Only what a client was told counts:

- told nothing, 08xxx, 40003, a shutdown, or an internal error at COMMIT: unknown;
- any other error at COMMIT, or whatever happened before COMMIT was sent: certainly not committed;
- a single statement outside of a block is its own COMMIT.

Times are of the monotonic clock of this process, taken before the first byte is sent and after the answer to COMMIT.
When the load has ended everything is read through every DSN that answers within `heal` seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Self

import psycopg
from psycopg import pq, sql

from australis.simulation.anomalies import Level
from australis.simulation.checker import Verdict, check
from australis.simulation.history import History, Operation, Outcome, Transaction, encode
from tests.histories.workloads import WORKLOADS, Connection, Workload

LEVELS = {
    "read-committed": Level.SNAPSHOT,  # judged by what it does not promise: shows what the checker finds
    "repeatable-read": Level.SNAPSHOT,
    "serializable": Level.SERIALIZABLE,
}
ALONE = 0.1  # share of transactions that are one statement outside of a block
PAUSE = 0.05  # seconds before a new attempt to connect
UNKNOWN_CLASSES = ("08", "XX", "40003", "57P01", "57P02", "57P05")


class NoDatabase(RuntimeError):
    """The database could not be set up."""


def outcome_at_commit(sqlstate: str | None, alive: bool) -> Outcome:
    """What a client knows after an error at COMMIT; `alive`: the connection still is."""
    if sqlstate is None or sqlstate.startswith(UNKNOWN_CLASSES):
        return Outcome.UNKNOWN
    certain = alive or sqlstate.startswith(("40", "23"))
    return Outcome.FAIL if certain else Outcome.UNKNOWN


@dataclass
class Report:
    """What a run showed. `problems`: why it may have shown less than it should."""

    workload: str
    level: str
    seconds: float
    history: History
    verdict: Verdict
    errors: Counter[str]
    problems: list[str] = field(default_factory=list)
    stored: Path | None = None

    @property
    def good(self) -> bool:
        return self.verdict.valid and not self.problems

    @property
    def abort_rate(self) -> float:
        """Share of transactions that failed, of those whose end is known."""
        ok, fail = (self.verdict.outcomes[o] for o in (Outcome.OK, Outcome.FAIL))
        return fail / max(1, ok + fail)

    def __str__(self) -> str:
        """One line, and below it what is wrong."""
        outcomes, counts = self.verdict.outcomes, self.verdict.counts
        told = ", ".join(f"{state} {n}" for state, n in self.errors.most_common(8))
        found = sum(counts[name] for name in self.verdict.names)
        allowed = ", ".join(sorted({f"{a.name.value} {counts[a.name]}" for a in self.verdict.allowed}))
        line = (
            f"{self.workload} {self.level}: {sum(outcomes.values())} transactions in {self.seconds:.1f} s:"
            f" ok {outcomes[Outcome.OK]}, fail {outcomes[Outcome.FAIL]}, unknown {outcomes[Outcome.UNKNOWN]}"
            f"{f' ({told})' if told else ''}; aborted {self.abort_rate:.1%}; anomalies {found}"
            f"{f' (allowed: {allowed})' if allowed else ''}"
        )
        below = [f"  {a.name.value}: {a.explanation}" for a in self.verdict.anomalies[:10]]
        if self.stored:
            below.append(f"  stored: {self.stored} (python -m australis.simulation.checker {self.stored})")
        return "\n".join([line, *below, *(f"  problem: {p}" for p in self.problems)])


class Client(threading.Thread):
    """One client; its transactions are appended by this thread only."""

    def __init__(self, number: int, run: Run) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self._run = run
        self._rng = random.Random(run.seed * 1000 + number)
        self._place = number
        self.transactions: list[Transaction] = []
        self.errors: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self.connection: Connection | None = None
        self.busy_since: float | None = None

    def run(self) -> None:
        try:
            while not self._run.ended():
                self._session()
        except BaseException as error:  # noqa: BLE001 (reported by the run)
            self.failure = error

    def cut_off(self) -> None:
        """End a wait for an answer that does not come; called by other threads."""
        connection = self.connection
        if connection is not None:
            _cut(connection)

    def _session(self) -> None:
        process = next(self._run.processes)
        try:
            connection = self._run.connect(self._place)
        except psycopg.Error as error:
            self.errors[error.sqlstate or "cannot connect"] += 1
            self._place += 1
            self._run.stopping.wait(PAUSE)
            return
        self.connection = connection
        with contextlib.closing(connection):
            while not self._run.ended() and connection.info.status == pq.ConnStatus.OK:
                self.busy_since = time.monotonic()
                alone = self._rng.random() < ALONE
                self.transactions.append(self._transact(connection, process, alone))
                self.busy_since = None
        self.connection = None

    def _transact(self, connection: Connection, process: int, alone: bool) -> Transaction:
        notes: list[Operation] = []
        workload, committing = self._run.workload, alone
        outcome, said = Outcome.OK, ""
        invoked = time.monotonic_ns()
        try:
            if alone:
                workload.alone(connection, self._rng, notes)
            else:
                connection.execute("BEGIN")
                workload.play(connection, self._rng, notes)
                committing = True
                if connection.execute("COMMIT").statusmessage != "COMMIT":
                    outcome, said = Outcome.FAIL, "rolled back"
        except psycopg.Error as error:
            alive = connection.info.status == pq.ConnStatus.OK
            outcome = outcome_at_commit(error.sqlstate, alive) if committing else Outcome.FAIL
            said = error.sqlstate or "connection lost"
        completed = time.monotonic_ns()
        if said:
            self.errors[said] += 1
            with contextlib.suppress(psycopg.Error):  # a broken connection is noticed by the caller
                connection.rollback()
        return Transaction(process, invoked, completed, outcome, tuple(notes), said)


class Run:
    """A load on one or several query processors: `start`, do harm, `stop`.

    `seconds` and `limit` (transactions, roughly) end the load by themselves; `stop` waits for neither.
    """

    def __init__(
        self,
        workload: str,
        level: str,
        dsns: Sequence[str],
        *,
        clients: int = 8,
        seed: int = 1,
        seconds: float | None = None,
        limit: int | None = None,
        patience: float = 30.0,
        heal: float = 60.0,
        keep: Path | None = None,
    ) -> None:
        self.workload: Workload = WORKLOADS[workload]()
        self.level = level
        self.seed = seed
        self.processes = count()
        self.stopping = threading.Event()
        self._dsns = tuple(dsns)
        self._seconds = seconds
        self._limit = limit
        self._patience = patience
        self._heal = heal
        self._keep = keep
        self.schema = f"history_{workload.replace('-', '_')}_{secrets.token_hex(4)}"
        self._clients = [Client(n, self) for n in range(clients)]
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watched = threading.Event()
        self._began = 0.0

    def connect(self, place: int) -> Connection:
        """A session through one of the DSNs, with the run's schema and level."""
        connection: Connection = psycopg.connect(
            self._dsns[place % len(self._dsns)], autocommit=True, connect_timeout=5, application_name="histories"
        )
        try:
            connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(self.schema)))
            connection.execute(f"SET default_transaction_isolation = '{self.level.replace('-', ' ')}'".encode())
            connection.execute(f"SET statement_timeout = '{int(self._patience * 1000)}'".encode())
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def ended(self) -> bool:
        """Should clients stop?"""
        if self.stopping.is_set():
            return True
        late = self._seconds is not None and time.monotonic() > self._began + self._seconds
        enough = self._limit is not None and sum(len(c.transactions) for c in self._clients) >= self._limit
        return late or enough

    def committed(self) -> int:
        """Transactions acknowledged so far."""
        return sum(t.outcome is Outcome.OK for c in self._clients for t in c.transactions[:])

    def backends(self) -> set[int]:
        """Pids of the servers' processes that clients talk to now."""
        found = set()
        for client in self._clients:
            connection = client.connection
            if connection is not None and not connection.closed:
                found.add(connection.info.backend_pid)
        return found

    def lost_connections(self) -> int:
        """Connections that broke inside a transaction so far."""
        return sum(c.errors["connection lost"] for c in self._clients)

    # ------------------------------------------------------------------ before, during, after

    def start(self) -> Self:
        """Create the tables and begin. NoDatabase if that fails for `heal` seconds."""

        def create(connection: Connection) -> None:
            name = sql.Identifier(self.schema)
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
            for statement in self.workload.schema:
                connection.execute(statement.encode())

        error = self._insist(create, range(len(self._dsns)))
        if error is not None:
            raise NoDatabase(f"the tables could not be created: {error}")
        self._began = time.monotonic()
        for thread in (*self._clients, self._watchdog):
            thread.start()
        return self

    def stop(self) -> Report:
        """End the load, read everything, judge. A client's own failure is raised."""
        self.stopping.set()
        return self.finish()

    def finish(self) -> Report:
        """Wait until the load has ended by itself, read everything, judge."""
        for client in self._clients:
            while client.is_alive() and not self.ended():
                client.join(0.2)
        deadline = time.monotonic() + self._patience
        for client in self._clients:
            client.join(max(0.0, deadline - time.monotonic()))
            if client.is_alive():
                client.cut_off()
                client.join(15)
            if client.is_alive():
                raise RuntimeError(f"{client.name} hangs")
        seconds = time.monotonic() - self._began
        self._watched.set()
        for client in self._clients:
            if client.failure is not None:
                raise client.failure
        finals, problems = self._read_finally()
        return self._judge(finals, problems, seconds)

    def _watch(self) -> None:
        while not self._watched.wait(0.5):
            for client in self._clients:
                since = client.busy_since
                if since is not None and time.monotonic() - since > self._patience:
                    client.busy_since = time.monotonic()  # once per wait
                    client.cut_off()

    def _insist(self, work: Callable[[Connection], None], places: Sequence[int]) -> psycopg.Error | None:
        """Do it through one of these DSNs, again for `heal` seconds; the last error if it never worked."""
        deadline = time.monotonic() + self._heal
        for attempt in count():
            try:
                connection = self.connect(places[attempt % len(places)])
                guard = threading.Timer(self._patience, lambda c=connection: _cut(c))
                guard.start()
                try:
                    with contextlib.closing(connection):
                        work(connection)
                    return None
                finally:
                    guard.cancel()
            except psycopg.Error as error:
                if time.monotonic() > deadline:
                    return error
                time.sleep(PAUSE)  # polling a database that comes back: nothing to wait on
        raise AssertionError

    def _read_finally(self) -> tuple[list[Transaction], list[str]]:
        finals: list[Transaction] = []
        problems: list[str] = []
        for place in range(len(self._dsns)):

            def read(connection: Connection) -> None:
                notes: list[Operation] = []
                invoked = time.monotonic_ns()
                connection.execute("BEGIN READ ONLY")
                self.workload.read_all(connection, notes)
                connection.execute("COMMIT")
                finals.append(
                    Transaction(
                        next(self.processes), invoked, time.monotonic_ns(), Outcome.OK, tuple(notes), final=True
                    )
                )

            error = self._insist(read, [place])
            if error is not None:
                problems.append(f"no final read through DSN {place + 1}: {str(error).strip()}")
        return finals, problems

    def _judge(self, finals: list[Transaction], problems: list[str], seconds: float) -> Report:
        transactions = [t for client in self._clients for t in client.transactions]
        transactions.sort(key=lambda t: t.invoked)
        history = History(
            (*transactions, *finals),
            LEVELS[self.level].value,
            self.workload.name,
            self.workload.total,
            self.workload.opening,
            self.workload.constraints,
            f"{self.level}, {len(self._clients)} clients, seed {self.seed}, schema {self.schema}",
        )
        if not transactions:
            problems.append("no transaction at all")
        errors = sum((c.errors for c in self._clients), Counter[str]())
        verdict = check(history)
        report = Report(self.workload.name, self.level, seconds, history, verdict, errors, problems)
        if self._keep is not None or not verdict.valid:
            report.stored = self._store(history)
        if report.good:
            self._drop()
        return report

    def _store(self, history: History) -> Path:
        directory = self._keep or Path(tempfile.mkdtemp(prefix="au-history-"))
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.schema}.history"
        path.write_bytes(encode(history))
        return path

    def _drop(self) -> None:
        """Leave nothing behind; after a bad run the tables stay for whoever looks."""
        with contextlib.suppress(psycopg.Error), contextlib.closing(self.connect(0)) as connection:  # best effort
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.schema)))


def _cut(connection: Connection) -> None:
    """Make everybody who waits for this connection fail at once."""
    with (
        contextlib.suppress(OSError, psycopg.Error),  # it has been closed
        socket.socket(fileno=os.dup(connection.fileno())) as twin,
    ):
        twin.shutdown(socket.SHUT_RDWR)
