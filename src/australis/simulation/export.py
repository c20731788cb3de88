"""A run's history as plain lists, for a checker that knows nothing of the simulator.

`export` returns {"workload", "level", "transactions"}; a transaction is [process, invoked, completed, outcome,
operations, error, final], an operation ["append" | "write", key, value], ["read", key, [values]] or ["get", key, value
or nil]. Keys are numbers, times nanoseconds of virtual time. Only what clients know is in it; outcome is "ok", "fail"
(certainly not committed) or "unknown". Workloads `append` and `register` can be exported: the others have no operations
of these kinds, and transactions of other workloads in a mix are left out.
"""

from __future__ import annotations

from typing import Any

from australis.keyspace import relation_of
from australis.simulation.roles import Transaction
from australis.simulation.workloads import PROBE, RELATIONS

_OUTCOMES = {"committed": "ok", "aborted": "fail"}
_READS = {RELATIONS["append"]: "read", RELATIONS["register"]: "get"}


def export(workload: str, transactions: list[Transaction]) -> dict[str, Any]:
    """Return the history of a run. Transactions that never ended are unknown, completed at their beginning."""
    processes = {name: number for number, name in enumerate(sorted({item.process for item in transactions}))}
    return {
        "workload": workload,
        "level": "snapshot",
        "transactions": [
            [
                processes[item.process],
                item.start,
                item.end or item.start,
                _OUTCOMES.get(item.outcome, "unknown"),
                operations,
                item.detail if item.outcome != "committed" else "",
                False,
            ]
            for item in transactions
            if (operations := _operations(item))
        ],
    }


def _operations(item: Transaction) -> list[list[Any]]:
    operations: list[list[Any]] = []
    for key, value in item.reads.items():
        kind = _READS.get(relation_of(key))
        if kind is not None and not key.endswith(PROBE):
            operations.append([kind, _number(key), value if kind == "get" else value or []])
    for key, _, value in item.plan.writes if item.plan is not None else []:
        if key.endswith(PROBE):
            continue
        if relation_of(key) == RELATIONS["append"]:
            operations.append(["append", _number(key), value[-1]])
        elif relation_of(key) == RELATIONS["register"]:
            operations.append(["write", _number(key), value])
    return operations


def _number(key: bytes) -> int:
    return int.from_bytes(key[7:], "big")
