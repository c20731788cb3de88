"""Rules broken on purpose: what the simulator must catch (list at the end of PROTOCOL.md).

Each mutation replaces methods of the product's or the simulation's classes while it is in force; the product has no
switches for this. The oracle keeps the functions that it imported before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from australis.adjudicator import promises as promising
from australis.adjudicator.adjudicator import Adjudicator, Verdict
from australis.adjudicator.conflict_table import CONFLICTS, ConflictTable
from australis.adjudicator.node import Client, Message, Node, Now, _Request
from australis.adjudicator.promises import FOREVER, Promises
from australis.adjudicator.recovery import Recovered, Recovery
from australis.crossbar import follower as following
from australis.journal import validity
from australis.journal.record import Entry, Header, Kind, Position
from australis.protocol.messages import (
    MODE_MASK,
    Decided,
    Mode,
    ModeFlag,
    Outcome,
    Prepare,
    Resolve,
    ResolveReply,
    Vote,
    WideCommit,
    wide_commit_decoder,
)
from australis.simulation.engine import Stored, Writer, _Queued
from australis.simulation.roles import AdjudicatorProcess, Session, ShardProcess, Transaction
from australis.simulation.world import MS, US

Patch = tuple[object, str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Mutation:
    """What is broken, which workload and faults show it soonest, and what takes the place of what."""

    rule: str
    workload: str | None
    storm: dict[str, float]
    patches: Callable[[], list[Patch]]


MUTATIONS: dict[str, Mutation] = {}


def _mutation(
    name: str, rule: str, workload: str | None = None, **storm: float
) -> Callable[[Callable[[], list[Patch]]], None]:
    def register(patches: Callable[[], list[Patch]]) -> None:
        MUTATIONS[name] = Mutation(rule, workload, storm, patches)

    return register


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Break a rule for a while. KeyError if there is no such mutation."""
    replaced: list[Patch] = []
    try:
        for owner, attribute, value in MUTATIONS[name].patches():
            replaced.append((owner, attribute, owner.__dict__[attribute]))
            setattr(owner, attribute, value)
        yield
    finally:
        for owner, attribute, value in reversed(replaced):
            setattr(owner, attribute, value)


# ----------------------------------------------------------------------------------------------- take-over, H, floor


@_mutation("zombie-vote", "A2", "hot", takeover=25 * MS)
def _zombie_vote() -> list[Patch]:
    def may_bind(self: Node, tau: int) -> bool:
        return True

    def promise_end(self: Node, tau: int) -> int:
        return tau + self.settings.vote

    return [(Node, "_may_bind", may_bind), (Node, "_promise_end", promise_end)]


def _claimed(change: Callable[[Recovery, Recovered], Recovered]) -> list[Patch]:
    original = Recovery.claimed

    def claimed(self: Recovery, claim: Position) -> Recovered:
        return change(self, original(self, claim))

    return [(Recovery, "claimed", claimed)]


@_mutation("no-floor", "A1", "hot", takeover=25 * MS)
def _no_floor() -> list[Patch]:
    return _claimed(lambda recovery, found: dataclasses.replace(found, floor=0)) + _last_from_recovery()


def _last_from_recovery() -> list[Patch]:
    """The floor is wrong, but times still increase: only the floor is what is to be caught."""
    original = AdjudicatorProcess._serve

    def serve(self: AdjudicatorProcess, recovery: Recovery, claim: Position, records: list[Stored]) -> None:
        original(self, recovery, claim, records)
        if self.node is not None:
            self.node.core.last = max(self.node.core.last, recovery.floor)

    return [(AdjudicatorProcess, "_serve", serve)]


@_mutation("floor-from-clock", "A1", "hot", takeover=25 * MS)
def _floor_from_clock() -> list[Patch]:
    clock: list[int] = [0]
    original = AdjudicatorProcess._serve

    def serve(self: AdjudicatorProcess, recovery: Recovery, claim: Position, records: list[Stored]) -> None:
        clock[0] = self.clock.now()[0]
        original(self, recovery, claim, records)
        if self.node is not None:
            self.node.core.last = max(self.node.core.last, recovery.floor)

    return [
        *_claimed(lambda recovery, found: dataclasses.replace(found, floor=clock[0])),
        (AdjudicatorProcess, "_serve", serve),
    ]


@_mutation("floor-without-h", "A1", "hot", takeover=12 * MS, delay=1 * MS, sessions=10)
def _floor_without_h() -> list[Patch]:
    return _claimed(lambda recovery, found: dataclasses.replace(found, floor=recovery.last)) + _last_from_recovery()


@_mutation("rebuild-without-row-locks", "A1", "foreign")
def _rebuild() -> list[Patch]:
    """No floor; instead the table is rebuilt from the writes in the journal. Locks are forgotten."""
    original = AdjudicatorProcess._serve

    def serve(self: AdjudicatorProcess, recovery: Recovery, claim: Position, records: list[Stored]) -> None:
        original(self, recovery, claim, records)
        if self.node is None:
            return
        self.node.core.last = max(self.node.core.last, recovery.floor)
        validator = validity.Validator(records[0][0].cluster, Position(0, 0, bytes(16)))
        for entry in validator.entries(iter(records)):
            if entry.kind == Kind.TRANSACTION:
                commit = wide_commit_decoder.decode(entry.body)
                kept = [
                    (key, mode)
                    for key, mode in zip(commit.keys, commit.modes, strict=True)
                    if not mode & ModeFlag.LOCK_ONLY
                ]
                self.node.core.table.insert([key for key, _ in kept], bytes(mode for _, mode in kept), entry.tau)

    return [
        *_claimed(lambda recovery, found: dataclasses.replace(found, floor=0)),
        (AdjudicatorProcess, "_serve", serve),
    ]


# -------------------------------------------------------------------------------------------------- conflict table


@_mutation("key-share-not-recorded", "A4", "foreign")
def _key_share() -> list[Patch]:
    original = Node._enter

    def enter(self: Node, share: Prepare, tau: int) -> None:
        kept = [
            (key, mode) for key, mode in zip(share.keys, share.modes, strict=True) if mode & MODE_MASK != Mode.KEY_SHARE
        ]
        keys, modes = [key for key, _ in kept], bytes(mode for _, mode in kept)
        original(self, msgspec.structs.replace(share, keys=keys, modes=modes), tau)

    return [(Node, "_enter", enter)]


@_mutation("window-ends-now", "A3")
def _window() -> list[Patch]:
    """Conflicts are looked for in (tau_start, own clock]."""
    clock: list[int] = [0]
    commit_at, receive_at, wake_at = Node._try, Node._prepare, ConflictTable.conflict

    def attempt(self: Node, request: _Request, now: Now) -> None:
        clock[0] = now[0]
        commit_at(self, request, now)

    def prepare(self: Node, client: Client, message: Prepare, now: Now) -> None:
        clock[0] = now[0]
        receive_at(self, client, message, now)

    def conflict(self: ConflictTable, keys: list[bytes], modes: bytes, tau_start: int) -> bytes | None:
        key = wake_at(self, keys, modes, tau_start)
        if key is None:
            return None
        for candidate, mode in zip(keys, modes, strict=True):
            for other in CONFLICTS[mode & MODE_MASK]:
                if tau_start < self._latest[other].get(candidate, 0) <= clock[0]:
                    return candidate
        return None

    return [(Node, "_try", attempt), (Node, "_prepare", prepare), (ConflictTable, "conflict", conflict)]


@_mutation("late-outcome-overwrites", "A4, M4", "hot", takeover=0, moves=0, late=0.3, delay=1 * MS)
def _overwrite() -> list[Patch]:
    def insert(self: ConflictTable, keys: list[bytes], modes: bytes, tau: int) -> None:
        self.record(keys, modes, tau)

    return [(ConflictTable, "insert", insert)]


@_mutation("tau-bumped", "A3")
def _bumped() -> list[Patch]:
    original = Node._try

    def attempt(self: Node, request: _Request, now: Now) -> None:
        least = request.commit.tau_start + 1
        original(self, request, (max(now[0], least), max(now[1], least)))

    return [(Node, "_try", attempt), (Session, "must_wait", lambda self, tau: 0)]


@_mutation("tau-below-snapshot", "A3")
def _below_snapshot() -> list[Patch]:
    """Neither held nor bumped."""
    original = Node._try

    def attempt(self: Node, request: _Request, now: Now) -> None:
        commit = request.commit
        request.commit = msgspec.structs.replace(commit, tau_start=min(commit.tau_start, now[0] - 1))
        original(self, request, now)

    return [(Node, "_try", attempt)]


# ------------------------------------------------------------------------------------------------------ heartbeats


@_mutation("heartbeat-above-unacknowledged", "W1")
def _unacknowledged() -> list[Patch]:
    return [(Node, "_limit", lambda self, now: min(now[1], self.horizon))]


@_mutation("heartbeat-above-h", "W1, A2")
def _above_h() -> list[Patch]:
    def limit(self: Node, now: Now) -> int:
        return min(now[1], self._waiting[0].tau - 1) if self._waiting else now[1]

    return [(Node, "_limit", limit)]


@_mutation("heartbeat-above-clock", "W1", "register", error=8 * MS, drift=8 * MS, delay=100 * US, takeover=0)
def _above_clock() -> list[Patch]:
    def limit(self: Node, now: Now) -> int:
        return min(self.horizon, self._waiting[0].tau - 1) if self._waiting else self.horizon

    return [(Node, "_limit", limit)]


@_mutation("heartbeat-without-record", "W1")
def _without_record() -> list[Patch]:
    """Believed at once, whether its record was read or not."""
    return [(following._Journal, "has_read", lambda self, hash: True)]


@_mutation("heartbeat-not-remembered", "A3")
def _not_remembered() -> list[Patch]:
    """Times at or below a heartbeat that was sent are issued."""
    original = Node._heartbeats

    def heartbeats(self: Node, now: Now) -> None:
        issued = self.core.last, len(self._waiting)
        original(self, now)
        if len(self._waiting) == issued[1]:
            self.core.last = issued[0]

    return [(Node, "_heartbeats", heartbeats)]


# --------------------------------------------------------------------------------------------------------- journal


@_mutation("ack-without-prefix", "J2")
def _without_prefix() -> list[Patch]:
    original = Writer.answered

    def answered(self: Writer, item: _Queued, sent_in: int, stored: bool) -> None:
        if stored and sent_in == self._round and item in self._queue:
            for earlier in self._queue:
                if earlier is item:
                    break
                earlier.acked = True
        original(self, item, sent_in, stored)

    return [(Writer, "answered", answered)]


@_mutation("ack-after-failure", "J2", "hot", stray=10 * MS, sessions=10)
def _after_failure() -> list[Patch]:
    """An acknowledgement counts though an earlier append of its round has failed."""
    original = Writer.answered

    def answered(self: Writer, item: _Queued, sent_in: int, stored: bool) -> None:
        original(self, item, self._round if stored and item in self._queue else sent_in, stored)

    return [(Writer, "answered", answered)]


@_mutation("validity-by-generation", "J1", None, stray=10 * MS)
def _by_generation() -> list[Patch]:
    class Mutant(validity.Validator):
        def add(self, header: Header, hash: bytes, body: bytes) -> Entry | None:
            return super().add(header._replace(previous=self.last.hash), hash, body)

    return [(validity, "Validator", Mutant), (following, "Validator", Mutant)]


@_mutation("validity-ignores-generation", "J1")
def _ignores_generation() -> list[Patch]:
    """Everything that lands is believed, as if compare-and-append were a fence (TRAP 1)."""

    class Mutant(validity.Validator):
        def add(self, header: Header, hash: bytes, body: bytes) -> Entry | None:
            if header.kind != Kind.CLAIM:
                header = header._replace(previous=self.last.hash, generation=self.generation)
            return super().add(header, hash, body)

    return [(following, "Validator", Mutant)]


@_mutation("claim-by-number", "J1")
def _by_number() -> list[Patch]:
    """A claimer takes the newest claim for its own."""
    original = AdjudicatorProcess._look_for_claim

    def look(self: AdjudicatorProcess, after: int, records: list[Stored]) -> None:
        if self._claiming > 1:
            for header, _, _ in reversed(records):
                if header.kind == Kind.CLAIM:
                    self._nonce = header.txid
                    break
        original(self, after, records)

    return [(AdjudicatorProcess, "_look_for_claim", look)]


# --------------------------------------------------------------------------------------------------- once, outcomes


@_mutation("another-generation", "A8", "hot", takeover=25 * MS)
def _another_generation() -> list[Patch]:
    original = Node.commit

    def commit(self: Node, client: Client, message: WideCommit, body: bytes, now: Now) -> Any:
        return original(self, client, msgspec.structs.replace(message, generation=self.generation), body, now)

    return [(Node, "commit", commit)]


@_mutation("no-deduplication", "A8")
def _no_deduplication() -> list[Patch]:
    return [(Adjudicator, "fate", lambda self, txid: None)]


@_mutation("absent-means-aborted", "A8")
def _absent() -> list[Patch]:
    original = Session._resolve

    def resolve(self: Session, transaction: Transaction, tries: int) -> None:
        log = self.cluster.engines[self._leader].log
        if transaction is self.transaction and not any(header.txid == transaction.txid for header, _, _ in log):
            self._finish("aborted", 0, "not in the journal")
        else:
            original(self, transaction, tries)

    return [(Session, "_resolve", resolve)]


@_mutation("resolve-does-not-kill", "Q2")
def _does_not_kill() -> list[Patch]:
    original = Adjudicator.resolve

    def resolve(self: Adjudicator, txid: bytes, tau_start: int, generation: int = 0) -> tuple[Outcome, int]:
        new = txid not in self._known
        answer = original(self, txid, tau_start, generation)
        if new:
            self._known.pop(txid, None)
        return answer

    return [(Adjudicator, "resolve", resolve)]


@_mutation("commit-after-resolve", "Q2")
def _after_resolve() -> list[Patch]:
    """The id is remembered as killed, but a commit that comes later is decided all the same."""
    original = Adjudicator.fate

    def fate(self: Adjudicator, txid: bytes) -> Verdict | None:
        return None if self._known.get(txid, 0) < -1 else original(self, txid)

    return [(Adjudicator, "fate", fate)]


@_mutation("resolve-while-voting", "Q2")
def _while_voting() -> list[Patch]:
    """Killed in words, but the attempt goes on."""

    def resolve(self: Node, client: Client, message: Resolve, now: Now) -> None:
        outcome, tau = self.core.resolve(message.txid, message.tau_start, message.generation)
        self._reply(client, ResolveReply(message.txid, outcome, tau))

    return [(Node, "_resolve", resolve)]


@_mutation("resolve-by-older-generation", "Q2")
def _older_generation() -> list[Patch]:
    original = Adjudicator.resolve

    def resolve(self: Adjudicator, txid: bytes, tau_start: int, generation: int = 0) -> tuple[Outcome, int]:
        return original(self, txid, tau_start, 0)

    return [(Adjudicator, "resolve", resolve)]


@_mutation("ack-before-earliest", "A6", None, error=3 * MS, drift=3 * MS, delay=100 * US)
def _before_earliest() -> list[Patch]:
    return [(Session, "must_wait", lambda self, tau: 0)]


# -------------------------------------------------------------------------------------------- several adjudicators


@_mutation("old-attempt", "M3", "hot", delay=3 * MS, takeover=0)
def _old_attempt() -> list[Patch]:
    original = Node._vote

    def vote(self: Node, message: Vote, now: Now) -> None:
        request = self._open.get(message.txid)
        if request is not None:
            message = msgspec.structs.replace(message, attempt=request.attempt)
        original(self, message, now)

    return [(Node, "_vote", vote)]


@_mutation("own-keys-not-held", "M1", "hot")
def _not_held() -> list[Patch]:
    original = Promises.conflict

    def conflict(self: Promises, share: Prepare) -> bool:
        own = [promise for promise in self.open.values() if promise.tau_max == FOREVER]
        for promise in own:
            self.remove((promise.share.txid, promise.share.attempt))
        found = original(self, share)
        for promise in own:
            self.add(promise)
        return found

    return [(Promises, "conflict", conflict)]


@_mutation("promises-do-not-block", "M2")
def _do_not_block() -> list[Patch]:
    return [(Promises, "conflict", lambda self, share: False)]


@_mutation("promise-dropped-by-timer", "M2")
def _dropped() -> list[Patch]:
    commit, receive = Node.commit, Node.receive

    def drop(self: Node, now: Now) -> None:
        for name, promise in list(self.promises.open.items()):
            if promise.tau_max < now[0]:
                self.promises.remove(name)

    def committing(self: Node, client: Client, message: WideCommit, body: bytes, now: Now) -> Any:
        drop(self, now)
        return commit(self, client, message, body, now)

    def receiving(self: Node, client: Client, message: Message, now: Now) -> Any:
        if not isinstance(message, Decided):
            drop(self, now)
        return receive(self, client, message, now)

    return [(Node, "commit", committing), (Node, "receive", receiving)]


@_mutation("tau-max-not-checked", "M3", "hot", error=0, drift=10 * MS, takeover=0)
def _tau_max() -> list[Patch]:
    original = Node._vote

    def vote(self: Node, message: Vote, now: Now) -> None:
        original(self, msgspec.structs.replace(message, tau_max=FOREVER), now)

    return [(Node, "_vote", vote)]


@_mutation("outcome-ignored", "M4")
def _outcome_ignored() -> list[Patch]:
    def decided(self: Node, message: Decided, now: Now) -> None:
        self.promises.remove((message.txid, message.attempt))

    return [(Node, "_decided", decided)]


@_mutation("clock-not-raised", "M4", "hot", error=0, drift=7 * MS, delay=300 * US, takeover=0, moves=0, think=0.8)
def _not_raised() -> list[Patch]:
    original = Node._decided

    def decided(self: Node, message: Decided, now: Now) -> None:
        last = self.core.last
        original(self, message, now)
        self.core.last = last

    return [(Node, "_decided", decided)]


@_mutation("reads-not-promised", "M5", "hot", takeover=0)
def _reads() -> list[Patch]:
    original = Promises.conflict

    def conflict(self: Promises, share: Prepare) -> bool:
        for name, promise in list(self.open.items()):
            other = promise.share
            if other.checks or other.scans or any(mode & ModeFlag.VALIDATE_ONLY for mode in other.modes):
                kept = [
                    (key, mode)
                    for key, mode in zip(other.keys, other.modes, strict=True)
                    if not mode & ModeFlag.VALIDATE_ONLY
                ]
                keys, modes = [key for key, _ in kept], bytes(mode for _, mode in kept)
                less = msgspec.structs.replace(other, keys=keys, modes=modes, checks=[], scans=[])
                self.remove(name)
                self.add(dataclasses.replace(promise, share=less))
        return original(self, share)

    return [(Promises, "conflict", conflict)]


@_mutation("promised-writer-does-not-stop-ddl", "A5", "ddl")
def _promised_writer() -> list[Patch]:
    def relations(one: Prepare, other: Prepare) -> bool:
        return any(relation in other.changed for relation in one.changed)

    return [(promising, "relations_conflict", relations)]


@_mutation("ddl-at-one-owner", "A5", "ddl")
def _one_owner() -> list[Patch]:
    """DDL is told to its leader only."""
    original = Node._shares

    def shares(self: Node, commit: WideCommit, attempt: int) -> tuple[Prepare, dict[int, Prepare]]:
        own, others = original(self, commit, attempt)
        if commit.ddl is not None:
            others = {
                owner: msgspec.structs.replace(share, changed=[], depends=[], parts=[])
                for owner, share in others.items()
                if share.keys
            }
        return own, others

    return [(Node, "_shares", shares)]


# ------------------------------------------------------------------------------------------------- ranges, journals


@_mutation(
    "moved-with-open-promise",
    "W4",
    "hot",
    moves=5 * MS,
    takeover=0,
    delay=1 * MS,
    think=0.9,
    sessions=12,
    loss=0,
    double=0,
)
def _open_promise() -> list[Patch]:
    """The range goes while transactions are promised on it, and the new owner's floor does not cover them."""
    return [(Node, "_touching", lambda self, lo, hi: []), *_without_promises()]


@_mutation("move-without-floor", "W4", "hot", moves=10 * MS, takeover=0)
def _without_floor() -> list[Patch]:
    original = Node._own

    def own(self: Node, move: Any) -> None:
        original(self, msgspec.structs.replace(move, floor=0))

    return [(Node, "_own", own)]


def _without_promises() -> list[Patch]:
    """N's floor covers what O committed, not what it promised."""
    original = Node._own

    def own(self: Node, move: Any) -> None:
        original(self, msgspec.structs.replace(move, floor=move.tau))

    return [(Node, "_own", own)]


@_mutation("move-told-before-durable", "W4", "hot", moves=10 * MS, takeover=25 * MS, sessions=10)
def _before_durable() -> list[Patch]:
    original = Node.release

    def release(self: Node, lo: bytes, hi: bytes, target: int, now: Now) -> Any:
        refusal, effects = original(self, lo, hi, target, now)
        if not refusal:
            self._send_move(target, self._released[target], now)
            effects += self._take()
        return refusal, effects

    return [(Node, "release", release)]


@_mutation("stale-map-believed", "W4", "hot", moves=10 * MS)
def _stale_map() -> list[Patch]:
    """Keys of ranges that were given away are decided all the same."""
    original = Node._shares

    def shares(self: Node, commit: WideCommit, attempt: int) -> tuple[Prepare, dict[int, Prepare]]:
        owned = self.ranges
        for lo, hi in self.map.owned(self.me):
            owned.add(lo, hi)
        return original(self, commit, attempt)

    return [(Node, "_shares", shares)]


@_mutation("journal-born-unnoticed", "W2", "hot", moves=20 * MS)
def _unnoticed() -> list[Patch]:
    return [(following.Follower, "begins", lambda self, journal, tau: None)]


@_mutation("journal-born-in-the-past", "W2", None, moves=20 * MS, error=0, drift=10 * MS)
def _in_the_past() -> list[Patch]:
    """The newcomer issues times without regard to its beginning."""
    original = AdjudicatorProcess._recovery

    def recovery(self: AdjudicatorProcess) -> Recovery:
        found = original(self)
        found.last = 0
        return found

    return [(AdjudicatorProcess, "_recovery", recovery)]


# --------------------------------------------------------------------------------------------------------- storage


@_mutation("applied-apart-from-data", "S1")
def _apart() -> list[Patch]:
    original = ShardProcess.roll_back

    def roll_back(self: ShardProcess, tau: int) -> None:
        applied = self.applied
        original(self, tau)
        self.applied = applied

    return [(ShardProcess, "roll_back", roll_back)]


@_mutation("read-before-watermark", "W2")
def _early_read() -> list[Patch]:
    original = ShardProcess._serve

    def serve(self: ShardProcess, source: Any, read: Any, deadline: int) -> None:
        applied = self.applied
        self.applied = max(applied, read.tau)
        original(self, source, read, deadline)
        self.applied = applied

    return [(ShardProcess, "_serve", serve)]


@_mutation("snapshot-below-told", "T2")
def _below_told() -> list[Patch]:
    return [(Session, "snapshot_time", lambda self: self.clock.now()[0] - 5_000_000)]


@_mutation("commit-of-another-adjudicator", "A8", "hot", takeover=0, double=0.5)
def _another_adjudicator() -> list[Patch]:
    """Addressed by number of the generation alone."""
    original = Node.commit

    def commit(self: Node, client: Client, message: WideCommit, body: bytes, now: Now) -> Any:
        return original(self, client, msgspec.structs.replace(message, leader=-1), body, now)

    return [(Node, "commit", commit)]


@_mutation("seen-before-earliest", "W1, A6", "register", error=8 * MS, drift=8 * MS, delay=100 * US, takeover=0)
def _seen_early() -> list[Patch]:
    """Who has read a commit says so at once, though its time is still to come for slow clocks."""
    return [(Session, "must_wait_seen", lambda self, tau: 0)]
