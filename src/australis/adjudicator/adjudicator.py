"""The adjudicator's decisions: messages and time in, verdicts out (PROTOCOL A1-A8, Q2, T3).

One instance is one generation. Its host appends every accepted record to the journal *in the order of the verdicts*, at
once, and calls `durable` when the journal says so. What must hold:
- times are issued in increasing order, all above the floor F; a snapshot below F is refused (A1);
- a verdict other than COMMITTED means that nothing of the transaction was or will be appended;
- a transaction that was killed (Q2) is refused for ever; one that is pending is neither committed nor killed;
- memory is bounded: old identifiers are forgotten, and what can then not be answered exactly is answered PENDING.

When the journal fails, the host ends this process and a new generation starts above everything that was issued; nothing
here has to be undone.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

import msgspec

from australis._native import decide_plain
from australis.adjudicator.conflict_table import DEFAULT_BYTES, ConflictTable
from australis.keyspace import SystemRelation, relation_prefix
from australis.protocol.messages import Commit, Outcome

FUTURE_LIMIT = 500_000_000
"""How far (ns) a snapshot may lie above the own time before it is an alarm (rule A3)."""

KNOWN_LIMIT = 200_000
MAX_RELATIONS = 65_536

_REFUSED = -1
_KILLED = -2
"""Killed when T was the last time that had been issued: _KILLED - T."""

_DDL_PREFIX = relation_prefix(SystemRelation.DDL)

CONFLICT_DETAIL = "change conflicts with another transaction, please retry: (OC000)"
SCHEMA_DETAIL = "schema has been updated by another transaction, please retry: (OC001)"


class Action(Enum):
    """What the host does with a verdict."""

    APPEND = 0  # append the record with this tau now, answer when it is durable
    REPLY = 1  # answer at once
    IGNORE = 2  # the same transaction is on its way; its first copy will be answered (A8)
    UNKNOWN = 3  # nothing certain can be said: answer 08007


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """A decision about a commit request."""

    action: Action
    outcome: Outcome
    tau: int
    detail: str


_IGNORE = Verdict(Action.IGNORE, Outcome.PENDING, 0, "")


class Adjudicator:
    """One generation of the adjudicator of one key range."""

    def __init__(
        self,
        generation: int,
        floor: int,
        issued: int,
        ddl: int,
        known: list[tuple[bytes, int]],
        known_floor: int,
        *,
        table_bytes: int = DEFAULT_BYTES,
        known_limit: int = KNOWN_LIMIT,
        max_relations: int = MAX_RELATIONS,
    ) -> None:
        """`floor` is F; `issued` a time that may have been issued by anyone before (T3), at least F.

        `known` are committed transactions above `known_floor`, oldest first, from the journal.
        """
        self.generation = generation
        self.floor = floor
        # 1, not 0: the time at which query processors read a cluster without any commit
        self.last = max(floor, issued, 1)
        self.ddl = ddl
        self.table = ConflictTable(floor, table_bytes)
        self._last_change: dict[int, int] = {}
        self._last_write: dict[int, int] = {}
        self._change_floor = self._write_floor = floor  # for relations that are not in the dictionaries
        self._max_relations = max_relations
        # txid -> commit time, or one of the negative codes; pending ones are in _pending
        self._known: dict[bytes, int] = dict(known)
        self._order: deque[bytes] = deque(txid for txid, _ in known)
        self._pending: dict[bytes, int] = {}
        self._known_limit = known_limit
        self._known_floor = max(known_floor, 0)
        self._killed_floor = 0  # who was killed and forgotten has an older snapshot than this
        # what decide_plain looks at and writes to; none of these is ever exchanged for another
        self._state = (
            generation,
            self._known,
            self._pending,
            self._last_change,
            self._last_write,
            *self.table.dictionaries,
        )
        self.commits = self.conflicts = self.schema_conflicts = self.refusals = 0

    # ------------------------------------------------------------------------------------------------- decisions

    def commit_plain(self, body: bytes, now: int) -> tuple[int, bytes] | None:
        """Decide the commit in a message of any kind if it is plain and nothing is against it: (tau, txid), to append.

        None: nothing was done; decode it and ask `commit`, which accepts all that this accepts, and leaves the same.
        """
        table = self.table
        # no snapshot at or above this is below a floor, or concerned by what was merged
        bound = max(table.merged_until, self._change_floor, self._killed_floor)
        decided = decide_plain(self._state, body, bound, self.last, now)
        if decided is None:
            return None
        self.last, txid, keys, modes, length = decided
        table.recorded(keys, modes, self.last, length)
        self._bound_writes()
        self.commits += 1
        return self.last, txid

    def commit(self, commit: Commit, now: int) -> Verdict:
        """Decide a commit request at time now."""
        txid = commit.txid
        known = self._known.get(txid)
        if known is not None:
            return _again(known)
        if txid in self._pending:
            return _IGNORE
        if commit.generation != self.generation:
            # Meant for another generation, so not processed (A8). Certain only if that one cannot have committed it.
            if commit.generation > self.generation or not self.knows_since(commit.tau_start):
                return Verdict(Action.UNKNOWN, Outcome.PENDING, 0, "the request was addressed to another generation")
            return self._refuse(txid, "the commit service was restarted, please retry")
        tau_start = commit.tau_start
        if tau_start < self.floor or tau_start < self.table.floor:
            floor = max(self.floor, self.table.floor)
            return self._refuse(txid, f"the snapshot is older than the floor {floor}, please retry")
        if self.may_be_killed(tau_start):
            return self._refuse(txid, "the transaction has been open for too long, please retry")
        if tau_start > self.last:
            if tau_start > max(now, self.last) + FUTURE_LIMIT:
                return self._refuse(txid, "the snapshot lies in the future of the commit service: check the clocks")
            # on one host nobody can have been told a time that was not issued (T3)
            return self._refuse(txid, "the snapshot is newer than every commit, please retry")
        verdict = self._conflict(commit)
        if verdict is not None:
            self._remember(txid, _REFUSED)
            return verdict
        tau = self.last + 1
        if now > tau:
            tau = now
        self.last = tau
        changed: list[int] = []
        if commit.ddl is not None:
            self.ddl, changed, _ = commit.ddl
        self.table.record(commit.keys, commit.modes, tau)
        self.touch(commit.relations, changed, tau)
        self.begin(txid, tau)
        return Verdict(Action.APPEND, Outcome.COMMITTED, tau, "")

    def begin(self, txid: bytes, tau: int) -> None:
        """A transaction is decided; `durable` follows, or the generation ends."""
        self._pending[txid] = tau
        self.commits += 1

    def touch(self, relations: list[int], changed: list[int], tau: int) -> None:
        """Remember at which time relations were written or locked, and changed; never above `last`."""
        for times, touched in ((self._last_write, relations), (self._last_change, changed)):
            for relation in touched:
                if times.get(relation, 0) < tau:
                    times[relation] = tau
        if len(self._last_change) > self._max_relations:
            self._last_change.clear()
            self._change_floor = self.last
        self._bound_writes()

    def _bound_writes(self) -> None:
        if len(self._last_write) > self._max_relations:
            self._last_write.clear()
            self._write_floor = self.last

    def _conflict(self, commit: Commit) -> Verdict | None:
        tau_start = commit.tau_start
        if self.schema_changed(commit.relations, tau_start):
            return self._schema_conflict()
        if commit.ddl is not None:
            if commit.ddl[0] != self.ddl + 1:
                return self._schema_conflict()  # records have no gaps (Q5); another one came first
            if self.schema_changed(commit.ddl[1], tau_start):
                return self._schema_conflict()
            if self.rows_written(commit.ddl[2], tau_start):
                return self._data_conflict()
        key = self.table.conflict(commit.keys, commit.modes, tau_start)
        if key is not None:
            # two transactions with DDL both insert record n: the schema moved, not a row
            return self._schema_conflict() if key.startswith(_DDL_PREFIX) else self._data_conflict()
        for lo, hi, _ in commit.checks:
            if self.table.range_conflict(lo, hi, tau_start) is not None:
                return self._data_conflict()
        return None

    def schema_changed(self, relations: list[int], tau_start: int) -> bool:
        """Did DDL change any of these relations after tau_start? (rule A5)"""
        changes, floor = self._last_change, self._change_floor
        if not changes and tau_start >= floor:
            return False
        return any(changes.get(relation, floor) > tau_start for relation in relations)

    def rows_written(self, relations: list[int], tau_start: int) -> bool:
        """Was a row of any of these relations written or locked after tau_start?"""
        writes, floor = self._last_write, self._write_floor
        return any(writes.get(relation, floor) > tau_start for relation in relations)

    def _data_conflict(self) -> Verdict:
        self.conflicts += 1
        return Verdict(Action.REPLY, Outcome.CONFLICT, 0, CONFLICT_DETAIL)

    def _schema_conflict(self) -> Verdict:
        self.schema_conflicts += 1
        return Verdict(Action.REPLY, Outcome.SCHEMA_CONFLICT, 0, SCHEMA_DETAIL)

    def _refuse(self, txid: bytes, detail: str, outcome: Outcome = Outcome.REFUSED) -> Verdict:
        self.refusals += 1
        self._remember(txid, _REFUSED)
        return Verdict(Action.REPLY, outcome, 0, detail)

    def refuse(self, txid: bytes, detail: str, outcome: Outcome = Outcome.REFUSED) -> Verdict:
        """Refuse a request before deciding it (overload, full disk), unless its fate is already known."""
        known = self._known.get(txid)
        if known is not None:
            return _again(known)
        if txid in self._pending:
            return _IGNORE
        return self._refuse(txid, detail, outcome)

    def stamp(self, now: int) -> int:
        """Issue a time for a record that has no conflicts: an ingested chunk (Q8) or a drop."""
        self.last = max(self.last + 1, now)
        return self.last

    def ingest_refusal(self, txid: bytes, generation: int) -> str | None:
        """Say why a chunk of this transaction cannot be taken; None if it can."""
        if generation != self.generation:
            return "the commit service was restarted, please retry"
        if txid in self._known or txid in self._pending:
            return "this transaction has already ended"
        return None

    # ------------------------------------------------------------------------------------------------- outcomes

    def durable(self, txid: bytes) -> None:
        """The record of a transaction is durable, in prefix order."""
        self._remember(txid, self._pending.pop(txid))

    def resolve(self, txid: bytes, tau_start: int, generation: int = 0) -> tuple[Outcome, int]:
        """Answer what became of a transaction, killing it if nothing did (Q2).

        `tau_start` -1: not given; the answer is PENDING if the transaction may be among the forgotten ones, or if its
        commit was addressed to a later generation: that one may have committed it.
        """
        known = self._known.get(txid)
        if known is not None:
            return (Outcome.COMMITTED, known) if known > 0 else (Outcome.KILLED, 0)
        if txid in self._pending:
            return Outcome.PENDING, 0
        if generation > self.generation or not self.knows_since(tau_start):
            return Outcome.PENDING, 0
        self._remember(txid, _KILLED - self.last)
        return Outcome.KILLED, 0

    def fate(self, txid: bytes) -> Verdict | None:
        """What to say to a repeated request (A8); None if this transaction is new."""
        known = self._known.get(txid)
        if known is not None:
            return _again(known)
        return _IGNORE if txid in self._pending else None

    def refused(self, txid: bytes) -> None:
        """It was refused, and will be whenever it comes again."""
        self._remember(txid, _REFUSED)

    def knows_since(self, tau_start: int) -> bool:
        """Would a commit of a transaction with this snapshot be in memory? (Its time is above tau_start.)"""
        return tau_start >= self._known_floor or self._known_floor == 0

    def kill(self, txid: bytes) -> bool:
        """Make sure that a transaction that is not known never commits; False if it is known or pending."""
        if txid in self._known or txid in self._pending:
            return False
        self._remember(txid, _KILLED - self.last)
        return True

    def may_be_killed(self, tau_start: int) -> bool:
        """May a transaction with this snapshot, of which nothing is known, be one that was killed and forgotten?"""
        return tau_start < self._killed_floor

    def committed(self, txid: bytes) -> bool:
        """Is it known to be committed, or about to be?"""
        return self._known.get(txid, 0) > 0 or txid in self._pending

    @property
    def pending(self) -> int:
        """Decided transactions that are not durable yet."""
        return len(self._pending)

    def _remember(self, txid: bytes, fate: int) -> None:
        self._known[txid] = fate
        self._order.append(txid)
        if len(self._order) > self._known_limit:
            forgotten = self._known.pop(self._order.popleft(), 0)
            if forgotten > self._known_floor:  # committed ones only: the others' codes are negative
                self._known_floor = forgotten
            elif forgotten <= _KILLED:
                # its commit may still come; its snapshot was taken before it was killed
                self._killed_floor = max(self._killed_floor, _KILLED - forgotten)


def _again(known: int) -> Verdict:
    """Answer a repeated request as before (A8)."""
    if known > 0:
        return Verdict(Action.REPLY, Outcome.COMMITTED, known, "")
    return Verdict(Action.REPLY, Outcome.REFUSED, 0, "this transaction was refused before")
