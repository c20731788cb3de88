"""One client session at the level of libpq: every part of an answer is kept as the server sent it.

Must hold: a session never hangs the suite. A statement without an answer within `HARD_TIMEOUT` is cancelled and counts
as "hang"; a lost connection is an outcome of its own, after which the session reconnects once the server is back.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult

from tests.differential.script import Action, Item
from tests.fixtures.servers import Server

HARD_TIMEOUT = 60.0
RECONNECT_SECONDS = 30.0
MAX_ROWS_KEPT = 200_000
FIRST_USER_OID = 16384

Row = tuple[bytes | None, ...]


@dataclass
class Result:
    """One result of a statement. kind: rows, command, error, copy, empty, lost, hang."""

    kind: str
    tag: str = ""
    columns: list[tuple[str, str, int]] = field(default_factory=list)  # name, type, format
    rows: list[Row] = field(default_factory=list)
    error: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """All that a statement caused, notices included."""

    results: list[Result] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0


class ConnectionLost(RuntimeError):
    """The server closed the connection."""


_FIELDS = {
    "severity": pq.DiagnosticField.SEVERITY_NONLOCALIZED,
    "sqlstate": pq.DiagnosticField.SQLSTATE,
    "message": pq.DiagnosticField.MESSAGE_PRIMARY,
    "detail": pq.DiagnosticField.MESSAGE_DETAIL,
    "hint": pq.DiagnosticField.MESSAGE_HINT,
    "context": pq.DiagnosticField.CONTEXT,
    "position": pq.DiagnosticField.STATEMENT_POSITION,
    "schema": pq.DiagnosticField.SCHEMA_NAME,
    "table": pq.DiagnosticField.TABLE_NAME,
    "column": pq.DiagnosticField.COLUMN_NAME,
    "datatype": pq.DiagnosticField.DATATYPE_NAME,
    "constraint": pq.DiagnosticField.CONSTRAINT_NAME,
}


def _diagnostics(result: PGresult) -> dict[str, str]:
    out = {}
    for name, code in _FIELDS.items():
        value = result.error_field(code)
        if value is not None:
            out[name] = value.decode(errors="backslashreplace")
    if not out:
        out["message"] = result.error_message.decode(errors="backslashreplace").strip()
    return out


class Session:
    """A connection with the suite's settings; `prelude` is run after every (re)connect."""

    def __init__(self, server: Server, prelude: list[str]) -> None:
        self.server = server
        self.prelude = prelude
        self.notices: list[str] = []
        self._connection: PGconn | None = None

    # ------------------------------------------------------------ connection

    def connect(self) -> None:
        """Connect, waiting for a server that is restarting; raises ConnectionLost after RECONNECT_SECONDS."""
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            connection = pq.PGconn.connect(f"{self.server.dsn}?connect_timeout=10".encode())
            if connection.status == pq.ConnStatus.OK:
                break
            message = connection.error_message.decode(errors="replace").strip()
            connection.finish()
            if time.monotonic() > deadline:
                raise ConnectionLost(message)
            time.sleep(0.2)  # the server is starting: nothing to wait on
        connection.notice_handler = self._notice
        connection.nonblocking = 1
        self._connection = connection
        for statement in self.prelude:
            outcome = self.simple(statement.encode(), None)
            for result in outcome.results:
                if result.kind in ("error", "lost", "hang"):
                    raise ConnectionLost(f"prelude {statement!r}: {result.error.get('message', result.kind)}")
        self.notices.clear()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.finish()
            self._connection = None

    @property
    def connection(self) -> PGconn:
        if self._connection is None:
            self.connect()
        assert self._connection is not None
        return self._connection

    def _notice(self, result: PGresult) -> None:
        fields = _diagnostics(result)
        text = f"{fields.get('severity')} {fields.get('sqlstate')}: {fields.get('message')}"
        for extra in ("detail", "hint"):
            if extra in fields:
                text += f" [{extra}: {fields[extra]}]"
        self.notices.append(text)

    # ------------------------------------------------------------- statements

    def run(self, item: Item, text: str) -> Outcome:
        """Run a statement item (its text with variables filled in)."""
        encoded = text.encode()
        started = time.monotonic()
        try:
            if item.action is Action.EXECUTE:
                outcome = self._exchange(
                    lambda c: c.send_query_prepared(encoded, _encode(item.params), result_format=int(item.binary))
                )
            elif item.prepare is not None:
                name = item.prepare.encode()
                outcome = self._exchange(lambda c: c.send_prepare(name, encoded))
            elif item.params is not None or item.binary:
                outcome = self._exchange(
                    lambda c: c.send_query_params(encoded, _encode(item.params), result_format=int(item.binary))
                )
            else:
                outcome = self.simple(encoded, item.copy_data)
        except ConnectionLost as error:
            outcome = Outcome([Result("lost", error={"message": str(error)})])
        outcome.seconds = time.monotonic() - started
        return outcome

    def simple(self, text: bytes, copy_data: bytes | None) -> Outcome:
        return self._exchange(lambda c: c.send_query(text), copy_data)

    def pipeline(self, items: list[tuple[Item, str]]) -> list[Outcome]:
        """Run items in one pipeline; a SYNC item ends an implicit transaction. One outcome per statement."""
        connection = self.connection
        self.notices.clear()
        outcomes: list[Outcome] = []
        try:
            connection.enter_pipeline_mode()
            for queued, text in items:
                if queued.action is Action.SYNC:
                    connection.pipeline_sync()
                elif queued.action is Action.EXECUTE:
                    connection.send_query_prepared(
                        text.encode(), _encode(queued.params), result_format=int(queued.binary)
                    )
                elif queued.prepare is not None:
                    connection.send_prepare(queued.prepare.encode(), text.encode())
                else:
                    connection.send_query_params(
                        text.encode(), _encode(queued.params), result_format=int(queued.binary)
                    )
            connection.pipeline_sync()
            expected: list[Item | None] = [*(item for item, _ in items), None]
            for item in expected:
                results: list[Result] = []
                while (result := self._next(connection)) is not None:
                    if result.status == pq.ExecStatus.PIPELINE_SYNC:
                        break
                    results += self._convert(connection, result, None)
                if item is not None and item.action is not Action.SYNC:
                    outcomes.append(Outcome(results))
            connection.exit_pipeline_mode()
        except TimeoutError:
            outcomes.append(Outcome([self._hang(connection)]))
        except psycopg.Error as error:
            outcomes.append(Outcome([self._lost(connection, error)]))
        if outcomes:
            outcomes[-1].notices = list(self.notices)
        return outcomes

    def _exchange(self, send: Callable[[PGconn], None], copy_data: bytes | None = None) -> Outcome:
        connection = self.connection
        self.notices.clear()
        results: list[Result] = []
        try:
            send(connection)
            while (result := self._next(connection)) is not None:
                results += self._convert(connection, result, copy_data)
            if connection.status == pq.ConnStatus.BAD:
                results.append(self._lost(connection, None))
        except TimeoutError:
            results.append(self._hang(connection))
        except psycopg.Error as error:
            results.append(self._lost(connection, error))
        return Outcome(results, list(self.notices))

    # ---------------------------------------------------------------- results

    def _wait(self, connection: PGconn, write: bool = False) -> None:
        fd = connection.socket
        readable, writable, _ = select.select([fd], [fd] if write else [], [], HARD_TIMEOUT)
        if not readable and not writable:
            raise TimeoutError

    def _flush(self, connection: PGconn) -> None:
        while connection.flush():
            self._wait(connection, write=True)
            connection.consume_input()

    def _next(self, connection: PGconn) -> PGresult | None:
        self._flush(connection)
        while connection.is_busy():
            self._wait(connection)
            connection.consume_input()
        return connection.get_result()

    def _convert(self, connection: PGconn, result: PGresult, copy_data: bytes | None) -> list[Result]:
        status = pq.ExecStatus(result.status)
        tag = (result.command_status or b"").decode()
        if status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE):
            error = _diagnostics(result)
            return [Result("lost" if connection.status == pq.ConnStatus.BAD else "error", error=error)]
        if status == pq.ExecStatus.TUPLES_OK:
            return [Result("rows", tag, _columns(result), _rows(result))]
        if status == pq.ExecStatus.COPY_IN:
            if copy_data is None:
                connection.put_copy_end(b"no data in the test file")
            else:
                for i in range(0, len(copy_data), 65536):
                    connection.put_copy_data(copy_data[i : i + 65536])
                    self._flush(connection)
                connection.put_copy_end()
            return []
        if status == pq.ExecStatus.COPY_OUT:
            rows: list[Row] = []
            while True:
                size, data = connection.get_copy_data(1)
                if size > 0:
                    rows.append((bytes(data),))
                elif size == 0:
                    self._wait(connection)
                    connection.consume_input()
                else:
                    return [Result("copy", rows=rows)]
        if status == pq.ExecStatus.PIPELINE_ABORTED:
            return [Result("aborted")]
        return [Result("command" if status == pq.ExecStatus.COMMAND_OK else status.name.lower(), tag)]

    def _hang(self, connection: PGconn) -> Result:
        self.close()
        return Result("hang", error={"message": f"no answer within {HARD_TIMEOUT:.0f} s"})

    def _lost(self, connection: PGconn, error: psycopg.Error | None) -> Result:
        message = str(error) if error is not None else connection.error_message.decode(errors="replace").strip()
        self.close()
        return Result("lost", error={"message": message})


def _encode(params: list[str | None] | None) -> list[bytes | None]:
    return [None if p is None else p.encode() for p in params or []]


def _columns(result: PGresult) -> list[tuple[str, str, int]]:
    out = []
    for i in range(result.nfields):
        oid = result.ftype(i)
        kind = str(oid) if oid < FIRST_USER_OID else "user"
        out.append(((result.fname(i) or b"").decode(), f"{kind}/{result.fmod(i)}", int(result.fformat(i))))
    return out


def _rows(result: PGresult) -> list[Row]:
    fields = range(result.nfields)
    return [tuple(result.get_value(r, f) for f in fields) for r in range(min(result.ntuples, MAX_ROWS_KEPT))]
