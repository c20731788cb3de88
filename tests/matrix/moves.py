"""Ranges that move, split and come together again, and replicas that are made anew, all under load; a table."""

from __future__ import annotations

import random
import shutil
import time

from australis.keyspace import KEYSPACE_END, relation_id, relation_prefix, relation_range
from tests.matrix.run import HEAL_SECONDS, Matrix, Row

KINDS = ("move", "split", "merge", "rebuild")


def relations(matrix: Matrix) -> list[int]:
    """Storage ids of the load's tables and indexes."""
    with matrix.cluster.routers[0].connect() as connection:
        rows = connection.execute(
            b"SELECT (SELECT oid FROM pg_database WHERE datname = current_database())::int8, relfilenode::int8 "
            b"FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')"
        ).fetchall()
    return sorted(relation_id(int(str(database)), int(str(number))) for database, number in rows)


def moves(matrix: Matrix, rounds: int, shards: int, seed: int = 5) -> list[Row]:
    """Do each of KINDS `rounds` times."""
    rng = random.Random(seed)
    rows = []
    for number in range(rounds * len(KINDS)):
        kind = KINDS[number % len(KINDS)]
        rows.append(_one(matrix, kind, rng, shards))
    return rows


def _one(matrix: Matrix, kind: str, rng: random.Random, shards: int) -> Row:
    target = rng.randrange(shards)
    relation = rng.choice(relations(matrix))
    lo, hi = relation_range(relation)
    instance = f"shard {target}"
    if kind == "split":
        lo += bytes([rng.choice((0x00, 0x80, 0x80, 0xFF)), *rng.randbytes(3)])
        lo = min(lo, hi[:-1] + bytes([hi[-1] - 1]) + b"\xff")
    elif kind == "merge":
        lo, hi = rng.choice([(b"", relation_prefix(relation)), (relation_prefix(relation), KEYSPACE_END)])
    elif kind == "rebuild":
        instance = rng.choice(matrix.cluster.names("storage"))
    row = Row(kind, instance, "")
    matrix._note(None)
    began = time.monotonic()
    if kind == "rebuild":
        _rebuild(matrix, instance)
    else:
        done = matrix.cluster.cluster.command(
            *("move", "--shard", "--data", str(matrix.cluster.cluster.data)),
            *("--lo", lo.hex(), "--hi", hi.hex(), "--to", str(target)),
            timeout=300,
        )
        if done.returncode != 0:
            row.problem = done.stderr.strip()[-300:]
    row.whole_again = time.monotonic() - began
    for probe in matrix._probes:
        if not probe.waits_until_after(time.monotonic(), HEAL_SECONDS):
            row.problem = f"no success of the {probe.name} within {HEAL_SECONDS:.0f} s"
    now = time.monotonic()
    row.writes_silent = matrix._probes[0].longest_silence(began, now)
    row.reads_silent = matrix._probes[1].longest_silence(began, now)
    matrix._note(row)
    matrix.report.rows.append(row)
    print(row, flush=True)
    return row


def _rebuild(matrix: Matrix, instance: str) -> None:
    """Its store is gone, as after the loss of a disk; it notices, ends, and is started anew."""
    pid = matrix.cluster.services()[instance]
    shutil.rmtree(matrix.cluster.cluster.data / "roles" / instance / "storage")
    deadline = time.monotonic() + HEAL_SECONDS
    while matrix.cluster.services().get(instance, 0) in (0, pid) and time.monotonic() < deadline:
        time.sleep(0.05)  # its supervisor tells nobody: nothing to wait on
    matrix.cluster.wait_serving()
