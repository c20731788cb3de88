"""What clients did and were told: the data that the checker judges.

A history is a list of transactions, each with the times at which its client began it and heard of its end, by one
clock for all clients (nanoseconds; virtual time in the simulator, the monotonic clock for real clients).

What must hold, else the checker's verdict means nothing:
- `ok` is said only after the client was told so, `fail` only when the transaction certainly did not commit, and
  everything else is `unknown`;
- `invoked` is taken before the first byte of the transaction is sent, `completed` after the answer to COMMIT arrived;
- values appended or written to one key are unique, and so are the rows inserted into one table and the transfers.
`HistoryError` names what breaks this or cannot be decoded.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from australis.errors import AustralisError

FORMAT = 1


class HistoryError(AustralisError):
    """A file is no history, or a history breaks the rules above."""


class Outcome(StrEnum):
    """What the client knows of a transaction's end."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Append(msgspec.Struct, frozen=True, array_like=True, tag="append"):
    """Add a value at the end of a key's list."""

    key: int
    value: int


class Read(msgspec.Struct, frozen=True, array_like=True, tag="read"):
    """A key's list as it was read; empty when there is none."""

    key: int
    values: tuple[int, ...]


class Write(msgspec.Struct, frozen=True, array_like=True, tag="write"):
    """Replace a register's value."""

    key: int
    value: int


class Get(msgspec.Struct, frozen=True, array_like=True, tag="get"):
    """A register's value as it was read; None when it was never written."""

    key: int
    value: int | None


class Transfer(msgspec.Struct, frozen=True, array_like=True, tag="transfer"):
    """Move an amount between two accounts of a bank; `number` is unique."""

    number: int
    source: int
    destination: int
    amount: int


class Balances(msgspec.Struct, frozen=True, array_like=True, tag="balances"):
    """All accounts of the bank and the numbers of its transfers, in one snapshot; no transfers: they were not read."""

    accounts: dict[int, int]
    transfers: tuple[int, ...] | None = None


class Insert(msgspec.Struct, frozen=True, array_like=True, tag="insert"):
    """A new row. `row` is unique per table; `reference` is its unique key, or the row of the parent table it names."""

    table: str
    row: int
    reference: int


class Delete(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    """A row that was there, deleted."""

    table: str
    row: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """An insert refused because its unique key is taken; the transaction failed."""

    table: str
    reference: int


class Rows(msgspec.Struct, frozen=True, array_like=True, tag="rows"):
    """All rows of a table as (row, reference). `path` says how they were read, for people."""

    table: str
    rows: tuple[tuple[int, int], ...]
    path: str = ""


Operation = Append | Read | Write | Get | Transfer | Balances | Insert | Delete | Refused | Rows


class Transaction(msgspec.Struct, frozen=True, array_like=True):
    """One transaction. `process`: who ran it, one after the other (a client's session). `final`: it only reads, after
    the load has ended. `error`: SQLSTATE or what else the client was told."""

    process: int
    invoked: int
    completed: int
    outcome: Outcome
    operations: tuple[Operation, ...]
    error: str = ""
    final: bool = False


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What rows of a table must keep: `parent` is the table that `reference` names, "" if `reference` is unique."""

    table: str
    parent: str = ""


class History(msgspec.Struct, frozen=True):
    """Transactions in any order. `total`: what all accounts of the bank hold together; `opening`: what each began
    with."""

    transactions: tuple[Transaction, ...]
    level: str = "snapshot"
    workload: str = ""
    total: int = 0
    opening: dict[int, int] = {}
    constraints: tuple[Constraint, ...] = ()
    note: str = ""
    format: int = FORMAT


def encode(history: History) -> bytes:
    """MessagePack."""
    return msgspec.msgpack.encode(history)


def decode(data: bytes) -> History:
    """The inverse of `encode`. HistoryError on anything else."""
    try:
        history = msgspec.msgpack.decode(data, type=History)
    except msgspec.DecodeError as error:
        raise HistoryError(f"not a history: {error}") from error
    if history.format != FORMAT:
        raise HistoryError(f"history of format {history.format}; this program reads {FORMAT}")
    return history
