"""Playing an interleaving of several sessions, one step after the other.

Each session is a thread with its own connection, so that a step that waits for a lock (stock PostgreSQL) does not stop
the others: a step that another session blocks, as the server's lock table says, is noted as waiting and collected when
its session is needed again. On Australis only schema changes wait. After an error a session's further steps are
skipped, as a client would.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from dataclasses import dataclass, field

import psycopg

from tests.fixtures.servers import Server

LOOK_AGAIN = 0.02  # between looks at the lock table
GIVE_UP = 20.0
BLOCKED = "SELECT cardinality(pg_blocking_pids(%(pid)s)) + cardinality(pg_safe_snapshot_blocking_pids(%(pid)s)) > 0"

Rows = list[tuple[object, ...]]
Connection = psycopg.Connection[tuple[object, ...]]


@dataclass(frozen=True)
class Step:
    """One statement of one session; `expected` rows are compared when given."""

    session: str
    sql: str
    expected: str | None = None


@dataclass(frozen=True)
class Case:
    """An interleaving and what Australis must make of it.

    outcome: session -> "commit", "rollback" or the SQLSTATEs or OC codes (joined by |) it may end with. final: a
    query; its result must be one of `results`. `stock`: overrides of outcome for stock PostgreSQL; "*" accepts all;
    `stock_results` are allowed there besides.
    """

    group: str
    name: str
    level: str
    setup: str
    steps: tuple[Step, ...]
    outcome: dict[str, str]
    final: str
    results: tuple[str, ...]
    stock: dict[str, str] = field(default_factory=dict)
    stock_results: tuple[str, ...] = ()
    waits: bool = False  # a schema change may wait for open transactions


@dataclass
class Played:
    """What happened."""

    ends: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    reads: list[tuple[Step, str]] = field(default_factory=list)
    waited: bool = False
    final: str = ""


class _Session(threading.Thread):
    def __init__(self, server: Server, schema: str) -> None:
        super().__init__(daemon=True)
        self.connection = server.connect()
        self.connection.execute(f"SET search_path = {schema}")
        self.connection.execute("SET statement_timeout = '15s'")
        (self.pid,) = self.connection.execute("SELECT pg_backend_pid()").fetchone() or (None,)
        self.todo: queue.Queue[str | None] = queue.Queue(maxsize=4)
        self.done: queue.Queue[Rows | psycopg.Error | None] = queue.Queue(maxsize=4)
        self.pending = 0
        self.failed = False
        self.start()

    def run(self) -> None:
        while (sql := self.todo.get()) is not None:
            try:
                cursor = self.connection.execute(sql.encode())
                self.done.put(cursor.fetchall() if cursor.description else None)
            except psycopg.Error as error:
                self.done.put(error)

    def close(self) -> None:
        self.todo.put(None)
        self.join(GIVE_UP)
        self.connection.close()


def show(rows: Rows | None) -> str:
    """Rows in short: (1, 10) (2, 20)."""
    return " ".join("(" + ", ".join(str(v) for v in row) + ")" for row in rows or [])


def play(case: Case, server: Server, schema: str) -> Played:
    """Run a case in a fresh schema."""
    with server.connect() as owner:
        owner.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        owner.execute(f"CREATE SCHEMA {schema}")
        owner.execute(f"SET search_path = {schema}")
        for statement in filter(str.strip, case.setup.split(";")):
            owner.execute(statement.encode())
        sessions = {name: _Session(server, schema) for name in dict.fromkeys(s.session for s in case.steps)}
        out = Played()
        try:
            _interleave(case, owner, sessions, out)
        finally:
            for session in sessions.values():
                session.close()
        if case.final:
            out.final = show(owner.execute(case.final.encode()).fetchall())
        owner.execute(f"DROP SCHEMA {schema} CASCADE")
    return out


def _interleave(case: Case, watcher: Connection, sessions: dict[str, _Session], out: Played) -> None:
    """All steps in order; those of a session that waits for a lock are put off until it goes on."""
    left = list(case.steps)
    waiting: dict[str, Step] = {}
    idle_since = time.monotonic()
    while left or waiting:
        for name in list(waiting):
            if _collect(sessions[name], waiting[name], out, watcher):
                del waiting[name]
                idle_since = time.monotonic()
        step = next((s for s in left if s.session not in waiting), None)
        if step is None:
            if waiting and time.monotonic() - idle_since > GIVE_UP:
                raise TimeoutError(f"no answer to {', '.join(f'{n}: {s.sql}' for n, s in waiting.items())}")
            continue
        left.remove(step)
        session = sessions[step.session]
        if session.failed:
            continue
        session.todo.put(f"BEGIN ISOLATION LEVEL {case.level}" if step.sql == "BEGIN" else step.sql)
        if not _collect(session, step, out, watcher):
            waiting[step.session] = step
            out.waited = True
        idle_since = time.monotonic()


def _collect(session: _Session, step: Step, out: Played, watcher: Connection) -> bool:
    """Take the step's answer; False if its session is blocked by another one."""
    deadline = time.monotonic() + GIVE_UP
    while True:
        try:
            answer = session.done.get(timeout=LOOK_AGAIN)
            break
        except queue.Empty:
            if watcher.execute(BLOCKED, {"pid": session.pid}).fetchone() == (True,):
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer to {step.session}: {step.sql}") from None
    if isinstance(answer, psycopg.Error):
        session.failed = True
        out.ends[step.session] = answer.sqlstate or "lost"
        out.messages[step.session] = str(answer).splitlines()[0]
    elif step.sql in ("COMMIT", "ROLLBACK"):
        out.ends[step.session] = step.sql.lower()
    elif step.expected is not None:
        out.reads.append((step, show(answer)))
    return True


def steps(text: str) -> tuple[Step, ...]:
    """Parse lines `session: statement [=> rows]`."""
    out = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        match = re.fullmatch(r"(\w+): (.*?)(?: => (.*))?", line)
        if match is None:
            raise ValueError(f"not a step: {line!r}")
        expected = match.group(3)
        out.append(Step(match.group(1), match.group(2), None if expected is None else expected.replace("none", "")))
    return tuple(out)


def problems(case: Case, played: Played, kind: str) -> list[str]:
    """How the played case deviates from what is expected of this server."""
    out = []
    expected = {**case.outcome, **case.stock} if kind == "stock" else case.outcome
    for session, allowed in expected.items():
        end = played.ends.get(session, "open")
        message = played.messages.get(session, "")
        code = re.search(r"OC\d{3}", message)
        if (
            allowed != "*"
            and end not in allowed.split("|")
            and (code is None or code.group() not in allowed.split("|"))
        ):
            out.append(f"session {session} ended with {end} {message}, expected {allowed}")
    if kind == "australis":
        for step, got in played.reads:
            if got != step.expected:
                out.append(f"{step.session}: {step.sql} read {got or 'nothing'}, expected {step.expected or 'nothing'}")
        if played.waited and not case.waits:
            out.append("a step waited")
        for session, message in played.messages.items():
            if played.ends[session] == "40001" and "OC00" not in message:
                out.append(f"session {session}: the message of 40001 names no OC code: {message}")
    allowed_results = case.results + (case.stock_results if kind == "stock" else ())
    if case.final and played.final not in allowed_results:
        out.append(f"final state {played.final or 'nothing'}, expected {' or '.join(allowed_results) or 'nothing'}")
    return out
