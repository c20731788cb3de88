"""One generation of one adjudicator among several: messages and time in, effects out (PROTOCOL A1-A8, M1-M5, W1, W4).

Its host passes messages with the clock's (earliest, latest), carries out the effects in their order, calls `durable`
as the journal acknowledges in prefix order, and `wake` when its clock's earliest has reached `wake_at`. What must hold:
- nothing is bound above the largest H that was acknowledged: no vote, no heartbeat (A2);
- a time is issued in the same step that queues its record, above everything issued, learned and sent (A3);
- between a check and its outcome nothing that conflicts gets past the promise, the leader's own included (M1, M2);
- a request is decided once and by the generation it was addressed to (A8); what was killed never commits (Q2);
- keys of ranges that the journal does not give to this adjudicator are refused (W4);
- everything is bounded: open transactions, promises, parked votes, waiting readers. Beyond that requests are refused.

When another adjudicator is silent, attempts end after T and are tried again a few times; when the journal is, nothing
is acknowledged. When the journal has another owner, or fails, the host throws this value away and answers nobody.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import msgspec

from australis.adjudicator.adjudicator import CONFLICT_DETAIL, SCHEMA_DETAIL, Action, Adjudicator
from australis.adjudicator.conflict_table import DEFAULT_BYTES
from australis.adjudicator.promises import FOREVER, Promise, Promises, relations_conflict
from australis.adjudicator.recovery import DDL_RANGE, ClaimBody, KeyRange, RangeSet, Recovered
from australis.journal.record import NO_HASH, NO_TXID, Kind, Position, RecordFlag
from australis.keyspace import KEYSPACE_END
from australis.partition_map import PartitionMap
from australis.protocol.messages import (
    Abandon,
    Ballot,
    CommitReply,
    Decided,
    Drop,
    Heartbeat,
    HeartbeatRequest,
    Ingest,
    IngestReply,
    JournalBegins,
    JournalEnds,
    ModeFlag,
    Outcome,
    Prepare,
    RangeAcquired,
    RangeMove,
    Resolve,
    ResolveReply,
    Vote,
    WideCommit,
    encode,
)

MILLISECOND = 1_000_000
STRIDE = 256
"""An adjudicator issues times that are its number modulo this, so that no two of them issue the same."""

Now = tuple[int, int]
"""(earliest, latest) of the host's clock."""

Client = Hashable
"""Where an answer goes: whatever the host knows a connection by."""

Message = Resolve | Prepare | Vote | Abandon | Decided | HeartbeatRequest | RangeMove | RangeAcquired

_STALE = "a key belongs to another adjudicator: fetch the partition map and retry"
_OVERLOAD = "the adjudicator is overloaded; nothing was changed, please retry"
_STOPPING = "the adjudicator is shutting down; nothing was changed, please retry"
_MOVED = "the adjudicator was replaced; nothing was changed, please retry"
_TOO_OLD = "the transaction has been open for too long; nothing was changed, please retry"
_BUSY = "keys are promised to another transaction; nothing was changed, please retry"
_FUTURE = "the snapshot lies in the future of the adjudicator: check the clocks"


class Append(msgspec.Struct, frozen=True, gc=False):
    """Queue this record behind all others, now."""

    kind: int
    flags: int
    tau: int
    horizon: int
    txid: bytes
    body: bytes


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send a message to whoever serves adjudicator `to`; it may be lost."""

    to: int
    message: msgspec.Struct


class Reply(msgspec.Struct, frozen=True, gc=False):
    """Answer a client, if it is still there."""

    client: Client
    message: msgspec.Struct


class Alarm(msgspec.Struct, frozen=True, gc=False):
    """Something that an operator must see; one line."""

    text: str


Effect = Append | Send | Reply | Alarm


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in nanoseconds."""

    vote: int = 200 * MILLISECOND  # T: the round trip of a vote, and how far a promise reaches
    hold: int = 500 * MILLISECOND  # how far ahead of the own clock a time from elsewhere may be (A3)
    resend: int = 200 * MILLISECOND
    attempts: int = 6
    open: int = 10_000  # transactions that are not decided
    promises: int = 10_000
    parked: int = 1_000  # votes that wait for H
    readers: int = 1_000  # who may wait for heartbeats
    floors: int = 64  # ranges with a floor of their own
    gates: int = 64  # schema changes that writers wait for
    table_bytes: int = DEFAULT_BYTES


@dataclass(slots=True)
class _Request:
    """A transaction that is led here and not decided yet."""

    client: Client
    commit: WideCommit
    body: bytes
    attempt: int = 0
    due: int = 0  # of its timer
    voting: bool = False
    participants: list[int] = field(default_factory=list)
    outstanding: set[int] = field(default_factory=set)
    tau: int = 0  # largest of the votes
    tau_max: int = FOREVER  # smallest of the votes


class _Waiting(msgspec.Struct, frozen=True, gc=False):
    """A record that is not acknowledged."""

    kind: int
    tau: int
    horizon: int
    txid: bytes
    attempt: int
    participants: list[int]
    client: Client
    move: RangeMove | None
    message: msgspec.Struct | None


class Node:
    """See the module."""

    def __init__(
        self, me: int, recovered: Recovered, partition: PartitionMap, settings: Settings | None = None
    ) -> None:
        """`me` is the number of this adjudicator and of its journal, below STRIDE."""
        if not 0 <= me < STRIDE:
            raise ValueError(f"adjudicator {me}: numbers are below {STRIDE}")
        self.me = me
        self.map = partition
        self.settings = settings if settings is not None else Settings()
        self.generation = recovered.generation
        self.position = recovered.position  # of the last acknowledged record
        self.core = Adjudicator(
            recovered.generation,
            recovered.floor,
            recovered.floor,
            recovered.ddl,
            recovered.known,
            recovered.known_floor,
            table_bytes=self.settings.table_bytes,
        )
        self.ranges = RangeSet(recovered.ranges)
        self.promises = Promises()
        self.horizon = recovered.floor  # H: acknowledged
        self.bound = recovered.floor  # the largest time that anything here was promised up to
        self._submitted = recovered.floor  # largest H that was appended
        self._renewing = False
        self._closing = False
        self._floors: list[tuple[bytes, bytes, int]] = []
        self._open: dict[bytes, _Request] = {}
        self._waiting: deque[_Waiting] = deque()
        self._parked: list[tuple[Client, Prepare]] = []
        self._gates: dict[bytes, tuple[Prepare, int]] = {}  # schema changes that found promises, and until when
        self._readers: dict[Client, int] = {}
        self._released: dict[int, RangeMove] = dict(recovered.released)
        self._releasing: set[int] = set()  # targets of releases that are not acknowledged by the journal
        self._acquired: dict[int, int] = dict(recovered.acquired)
        self._acquiring: set[tuple[int, int]] = set()
        self._timers: list[tuple[int, int, bytes | int]] = []
        self._timer_count = 0
        self._unpublished = list(recovered.unpublished)
        self.conflicted = b""  # the key at which a request met its last conflict here: for statistics
        self._out: list[Effect] = []

    # ------------------------------------------------------------------------------------------------ entrances

    def start(self, now: Now) -> list[Effect]:
        """Finish what the last generation had begun: drop chunks, tell the new owners of ranges that it released."""
        if self._unpublished:
            self._drop(encode(Drop(self._unpublished)), now)
        for target, move in self._released.items():
            self._send_move(target, move, now)
        return self._take()

    def commit(self, client: Client, commit: WideCommit, body: bytes, now: Now) -> list[Effect]:
        """Decide a commit request, perhaps later; `body` is its message as received, for the journal."""
        txid = commit.txid
        if commit.leader not in (-1, self.me):
            return []  # another adjudicator's: nothing that is said here would be about it (A8)
        fate = self.core.fate(txid)
        if fate is not None:
            if fate.action is Action.REPLY:
                self._reply(client, CommitReply(txid, fate.outcome, fate.tau, fate.detail))
            return self._take()
        if txid in self._open:
            return []
        request = _Request(client, commit, body)
        if commit.generation != self.generation:
            # meant for another generation: certain only if that one is over and did not commit it (A8)
            if commit.generation < self.generation and self.core.knows_since(commit.tau_start):
                self._refuse(request, Outcome.REFUSED, _MOVED)
            return self._take()
        if self._closing:
            self._refuse(request, Outcome.REFUSED, _STOPPING)
        elif len(self._open) >= self.settings.open:
            self._refuse(request, Outcome.REFUSED, _OVERLOAD)
        elif self.core.may_be_killed(commit.tau_start):
            self._refuse(request, Outcome.REFUSED, _TOO_OLD)
        else:
            self._open[txid] = request
            self._try(request, now)
        return self._take()

    def receive(self, client: Client, message: Message, now: Now) -> list[Effect]:
        """Take a message of another adjudicator, a crossbar or a query processor; `client` is where answers go."""
        if isinstance(message, Prepare):
            self._prepare(client, message, now)
        elif isinstance(message, Vote):
            self._vote(message, now)
        elif isinstance(message, Decided):
            self._decided(message, now)
        elif isinstance(message, Abandon):
            self.promises.remove((message.txid, message.attempt))
        elif isinstance(message, HeartbeatRequest):
            self._heartbeat_request(client, message.tau, now)
        elif isinstance(message, Resolve):
            self._resolve(client, message, now)
        elif isinstance(message, RangeMove):
            self._acquire(client, message, now)
        else:
            self._acquired_by_target(message)
        return self._take()

    def durable(self, positions: list[Position], now: Now) -> list[Effect]:
        """So many of the oldest appended records are durable, at these positions."""
        for position in positions:
            self.position = position
            item = self._waiting.popleft()
            self._raise_horizon(item)
            self._acknowledge(item, now)
        parked, self._parked = self._parked, []
        for client, prepare in parked:
            self._prepare(client, prepare, now)
        if self._readers:
            self._heartbeats(now)
        return self._take()

    def wake(self, now: Now) -> list[Effect]:
        """Do what is due."""
        timers = self._timers
        while timers and timers[0][0] <= now[0]:
            due, _, what = heapq.heappop(timers)
            if isinstance(what, bytes):
                request = self._open.get(what)
                if request is not None and request.due == due:
                    if request.voting:
                        self._retry(request, now, "no answer from another adjudicator in time; please retry")
                    else:
                        self._try(request, now)
            elif what < 0:
                self._heartbeats(now)
            elif what in self._released and what not in self._releasing:
                self._send_move(what, self._released[what], now)
        return self._take()

    @property
    def wake_at(self) -> int | None:
        """When `wake` has something to do, in terms of the clock's earliest; None: never."""
        return self._timers[0][0] if self._timers else None

    def hand_over(self, now: Now) -> list[Effect]:
        """Stop, and append an H that is no larger than needed, so that the successor need not wait (A2)."""
        self._closing = True
        for request in list(self._open.values()):
            self._abandon(request)
            self._refuse(request, Outcome.REFUSED, _STOPPING)
        self._parked.clear()
        self._readers.clear()
        tau = self._issue(now)
        self._submitted = self.horizon = max(self.bound, tau)
        self._append(Kind.HORIZON, 0, tau, NO_TXID, b"", horizon=self._submitted)
        return self._take()

    def refuse(self, client: Client, txid: bytes, outcome: Outcome, detail: str) -> list[Effect]:
        """Refuse a request that the host cannot take (no space), unless its fate is known or being decided."""
        if txid not in self._open:
            verdict = self.core.refuse(txid, detail, outcome)
            if verdict.action is Action.REPLY:
                self._reply(client, CommitReply(txid, verdict.outcome, verdict.tau, verdict.detail))
        return self._take()

    def ingest(self, client: Client, ingest: Ingest, body: bytes, now: Now) -> list[Effect]:
        """Append a chunk of unpublished rows (rule Q8); `body` is its message. Answered when it is durable.

        Chunks go to the owner of the system range, which leads whatever publishes them (Q5): so one that was killed
        here is not published by somebody who does not know.
        """
        txid, seq = ingest.txid, ingest.seq
        if self._closing or not self.ranges.holds(DDL_RANGE) or self.core.ingest_refusal(txid, ingest.generation):
            self._reply(client, IngestReply(txid, seq, Outcome.REFUSED, 0))
        else:
            tau = self._issue(now)
            reply = IngestReply(txid, seq, Outcome.COMMITTED, tau)
            self._append(Kind.INGEST, 0, tau, txid, body, now, client, message=reply)
        return self._take()

    def drop(self, body: bytes, now: Now) -> list[Effect]:
        """Storage ids that an aborted transaction left behind become garbage; `body` is the message."""
        self._drop(body, now)
        return self._take()

    def _drop(self, body: bytes, now: Now) -> None:
        if not self._closing:
            self._append(Kind.DROP, 0, self._issue(now), NO_TXID, body, now)

    def abandon(self, txid: bytes) -> bool:
        """Whoever sent chunks of this transaction is gone: it never commits now. False: it has, or is about to."""
        request = self._open.get(txid)
        if request is not None:
            self._abandon(request)
            del self._open[txid]
        return self.core.kill(txid)

    def checkpoint(self, now: Now) -> list[Effect]:
        """Append what a claim would carry: the journal may then be trimmed up to that record.

        Not while a range is on its way: that record is not in our state yet, or not with its place.
        """
        if not self._closing and not self._acquiring and not self._releasing:
            floor = max([self.core.floor, *(floor for _, _, floor in self._floors)])
            moves = list(self._released.values())
            body = ClaimBody(self.core.ddl, self.ranges.list(), moves, dict(self._acquired), floor)
            self._append(Kind.HORIZON, 0, self._issue(now), NO_TXID, msgspec.msgpack.encode(body), now)
        return self._take()

    def releasing(self, target: int) -> bool:
        """Has this adjudicator not confirmed yet that it has the last range that was released to it?"""
        return target in self._released

    def begin_journal(self, client: Client, journal: int, now: Now) -> list[Effect]:
        """Announce another journal (W2); answered with the same message once that is durable.

        For the owner of the system journal, the one that every follower knows from the beginning.
        """
        message = JournalBegins(journal, self._issue(now))
        self._append(Kind.JOURNAL_BEGINS, 0, message.tau, NO_TXID, encode(message), now, client, message=message)
        return self._take()

    def end_journal(self, client: Client, ends: JournalEnds, now: Now) -> list[Effect]:
        """Announce that a journal has ended; its owner must own nothing and issue no more times."""
        self._append(Kind.JOURNAL_ENDS, 0, self._issue(now), NO_TXID, encode(ends), now, client, message=ends)
        return self._take()

    def release(self, lo: bytes, hi: bytes, target: int, now: Now) -> tuple[str, list[Effect]]:
        """Give a range to another adjudicator (W4). Returns why that is not possible ('': it is), and effects."""
        if target == self.me or target not in self.map.adjudicators:
            return f"adjudicator {target} cannot take a range", []
        if self._closing or not lo < hi or not self.ranges.covers(lo, hi):
            return f"adjudicator {self.me} does not own all of this range", []
        if target in self._released:
            return f"adjudicator {target} has not confirmed the last range yet", []
        for request in self._touching(lo, hi):
            # its own promise has no end, so no floor would cover its commit
            self._abandon(request)
            self._refuse(request, Outcome.REFUSED, _STALE)
        self.ranges.remove(lo, hi)
        tau = self._issue(now)
        ddl = self.core.ddl if lo <= DDL_RANGE < hi else -1
        move = RangeMove(self.me, target, tau, lo, hi, max(self.bound, tau), ddl, 0, NO_HASH)
        self._released[target] = move
        self._releasing.add(target)
        self._append(Kind.RELEASE, 0, tau, NO_TXID, encode(move), now, move=move)
        return "", self._take()

    @property
    def undecided(self) -> int:
        """Transactions that are led here and neither committed nor refused."""
        return len(self._open) + self.core.pending

    # ---------------------------------------------------------------------------------------------------- leader

    def _try(self, request: _Request, now: Now) -> None:
        """Begin an attempt (A6, M1), or wait until the snapshot has passed (A3)."""
        commit = request.commit
        tau_start = commit.tau_start
        if tau_start >= now[0]:
            if tau_start > now[1] + self.settings.hold:
                self._out.append(Alarm(f"a snapshot {tau_start - now[1]} ns ahead of the clock was refused"))
                self._refuse(request, Outcome.REFUSED, _FUTURE)
            else:
                self._timer(request, tau_start + 1)
            return
        request.attempt += 1
        own, others = self._shares(commit, request.attempt)
        ballot = self._admit(own, now)
        if ballot is Ballot.YES and commit.ddl is not None:
            if not self.ranges.holds(DDL_RANGE):
                ballot = Ballot.STALE
            elif commit.ddl[0] != self.core.ddl + 1:
                ballot = Ballot.SCHEMA_CONFLICT  # records have no gaps; another one came first (Q5)
        if ballot is not Ballot.YES:
            self._not_now(request, ballot, now)
        elif not others:
            self._commit(request, own, self._next(now), now)
        else:
            self.promises.add(Promise(own, self.core.last, FOREVER))
            request.voting = True
            request.participants = sorted(others)
            request.outstanding = set(others)
            request.tau, request.tau_max = 0, FOREVER
            self._timer(request, now[0] + self.settings.vote)
            for participant in request.participants:
                self._out.append(Send(participant, others[participant]))

    def _shares(self, commit: WideCommit, attempt: int) -> tuple[Prepare, dict[int, Prepare]]:
        """Cut a transaction by owner: what its journal says is ours is ours, else the map decides."""
        keys: dict[int, tuple[list[bytes], bytearray]] = {self.me: ([], bytearray())}
        checks: dict[int, list[tuple[bytes, bytes, int]]] = {}
        parts: dict[int, list[KeyRange]] = {}
        owner_of = self._owner
        for key, mode in zip(commit.keys, commit.modes, strict=True):
            if mode & ModeFlag.BLIND:
                continue
            share = keys.setdefault(owner_of(key), ([], bytearray()))
            share[0].append(key)
            share[1].append(mode)
        for lo, hi, mode in commit.checks:
            for owner, start, end in self._pieces(lo, hi):
                checks.setdefault(owner, []).append((start, end, mode))
        changed: list[int] = []
        depends: list[int] = []
        if commit.ddl is not None:
            _, changed, depends = commit.ddl
        if changed or depends or commit.scans:
            for lo, hi in commit.parts or [(b"", KEYSPACE_END)]:
                for owner, start, end in self._pieces(lo, hi):
                    parts.setdefault(owner, []).append((start, end))
        shares = {}
        for owner in keys.keys() | checks.keys() | parts.keys():
            mine, modes = keys.get(owner, ([], bytearray()))
            whole = owner in parts
            shares[owner] = Prepare(
                commit.txid,
                attempt,
                commit.tau_start,
                mine,
                bytes(modes),
                checks.get(owner, []),
                commit.relations if mine else [],
                changed if whole else [],
                depends if whole else [],
                commit.scans if whole else [],
                parts.get(owner, []),
            )
        return shares.pop(self.me), shares

    def _owner(self, key: bytes) -> int:
        return self.me if self.ranges.holds(key) else self.map.adjudicator(key)

    def _pieces(self, lo: bytes, hi: bytes) -> list[tuple[int, bytes, bytes]]:
        """Cut a range by owner."""
        pieces = []
        left = RangeSet([(lo, hi)]) if lo < hi else RangeSet([])
        for own_lo, own_hi in self.ranges.list():
            start, end = max(lo, own_lo), min(hi, own_hi)
            if start < end:
                pieces.append((self.me, start, end))
                left.remove(start, end)
        for start, end in left.list():
            pieces += [(piece.owner, piece.lo, piece.hi) for piece in self.map.pieces(start, end)]
        return pieces

    def _vote(self, vote: Vote, now: Now) -> None:
        request = self._open.get(vote.txid)
        if request is None or not request.voting or vote.attempt != request.attempt:
            return  # of another attempt: that one was abandoned (M3)
        if vote.voter not in request.outstanding:
            return
        if vote.ballot != Ballot.YES:
            self._not_now(request, Ballot(vote.ballot), now)
            return
        if vote.tau > now[1] + self.settings.hold:
            self._out.append(Alarm(f"adjudicator {vote.voter} is {vote.tau - now[1]} ns ahead of the clock"))
            self._not_now(request, Ballot.BUSY, now)
            return
        request.outstanding.remove(vote.voter)
        request.tau = max(request.tau, vote.tau)
        request.tau_max = min(request.tau_max, vote.tau_max)
        if request.outstanding:
            return
        tau = self._next(now, request.tau)
        if tau > request.tau_max:
            self._retry(request, now, _BUSY)
            return
        promise = self.promises.remove((vote.txid, request.attempt))
        assert promise is not None, "the leader's promise to itself ends with the attempt only"
        self._commit(request, promise.share, tau, now)

    def _commit(self, request: _Request, own: Prepare, tau: int, now: Now) -> None:
        """The decision: from here on only the journal can prevent it."""
        commit = request.commit
        flags = 0
        if commit.ddl is not None:
            self.core.ddl = commit.ddl[0]
            flags |= RecordFlag.DDL
        if commit.drops:
            flags |= RecordFlag.DROPS
        self._enter(own, tau)
        self._gates.pop(commit.txid, None)
        del self._open[commit.txid]
        self.core.begin(commit.txid, tau)
        self._append(
            Kind.TRANSACTION,
            flags,
            tau,
            commit.txid,
            request.body,
            now,
            request.client,
            request.attempt,
            request.participants,
        )

    def _not_now(self, request: _Request, ballot: Ballot, now: Now) -> None:
        """A check failed, here or elsewhere."""
        if ballot is Ballot.BUSY:
            self._retry(request, now, _BUSY)
            return
        self._abandon(request)
        if ballot is Ballot.CONFLICT:
            self.core.conflicts += 1
            self._refuse(request, Outcome.CONFLICT, CONFLICT_DETAIL)
        elif ballot is Ballot.SCHEMA_CONFLICT:
            self.core.schema_conflicts += 1
            self._refuse(request, Outcome.SCHEMA_CONFLICT, SCHEMA_DETAIL)
        elif ballot is Ballot.STALE:
            self._refuse(request, Outcome.REFUSED, _STALE)
        else:
            self._refuse(request, Outcome.REFUSED, "the snapshot is older than the floor, please retry")

    def _retry(self, request: _Request, now: Now, detail: str) -> None:
        """Give this attempt up; another one after a pause, or none."""
        self._abandon(request)
        if request.attempt >= self.settings.attempts:
            self._refuse(request, Outcome.REFUSED, detail)
            return
        # a pause that differs from that of the transaction in the way
        spread = int.from_bytes(request.commit.txid[-2:], "big") + 7919 * request.attempt
        self._timer(request, now[0] + self.settings.vote // 16 + self.settings.vote // 4 * (spread % 64) // 64)

    def _abandon(self, request: _Request) -> None:
        """End an attempt whose record was not appended."""
        if request.voting:
            request.voting = False
            name = request.commit.txid, request.attempt
            self.promises.remove(name)
            for participant in request.participants:
                self._out.append(Send(participant, Abandon(*name)))
        request.participants = []

    def _refuse(self, request: _Request, outcome: Outcome, detail: str) -> None:
        """Certainly not committed, and never will be."""
        txid = request.commit.txid
        self._open.pop(txid, None)
        self._gates.pop(txid, None)
        self.core.refused(txid)
        self.core.refusals += outcome is Outcome.REFUSED
        self._reply(request.client, CommitReply(txid, outcome, 0, detail))

    def _resolve(self, client: Client, message: Resolve, now: Now) -> None:
        """Answer a transaction's fate, killing it if it has none (Q2)."""
        if message.leader not in (-1, self.me):
            return
        request = self._open.get(message.txid)
        if request is not None:
            self._abandon(request)
            del self._open[message.txid]
        outcome, tau = self.core.resolve(message.txid, message.tau_start, message.generation)
        reply = ResolveReply(message.txid, outcome, tau)
        if message.prove and not self._closing:
            self._append(Kind.HORIZON, 0, self._issue(now), NO_TXID, b"", now, client, message=reply)
        elif not message.prove:
            self._reply(client, reply)

    # ----------------------------------------------------------------------------------------------- participant

    def _prepare(self, client: Client, prepare: Prepare, now: Now) -> None:
        txid = prepare.txid
        attempt = self.promises.attempt(txid)
        if attempt is not None:
            if attempt > prepare.attempt:
                return
            if attempt == prepare.attempt:
                promise = self.promises.open[txid, attempt]
                self._reply(client, Vote(self.me, txid, attempt, Ballot.YES, promise.tau, promise.tau_max))
                return
            self.promises.remove((txid, attempt))  # a new attempt says that the old one was abandoned
        ballot = self._ballot(prepare, now)
        tau = tau_max = 0
        if ballot is Ballot.YES:
            tau = self._next(now)
            if not self._may_bind(tau + self.settings.vote // 2):
                if len(self._parked) < self.settings.parked:
                    self._parked.append((client, prepare))
                    self._renew(now)
                    return
                ballot, tau = Ballot.BUSY, 0
            else:
                tau_max = self._promise_end(tau)
                self.core.last = tau
                self.bound = max(self.bound, tau_max)
                self.promises.add(Promise(prepare, tau, tau_max))
        self._reply(client, Vote(self.me, txid, prepare.attempt, ballot, tau, tau_max))

    def _ballot(self, prepare: Prepare, now: Now) -> Ballot:
        if self._closing:
            return Ballot.BUSY
        if prepare.tau_start > now[1] + self.settings.hold:
            self._out.append(Alarm(f"a snapshot {prepare.tau_start - now[1]} ns ahead of the clock was refused"))
            return Ballot.FLOOR
        self._settle_old(now)
        if len(self.promises) >= self.settings.promises:
            return Ballot.BUSY
        return self._admit(prepare, now)

    def _may_bind(self, tau: int) -> bool:
        """May something be promised up to tau without an append? (A2)"""
        return tau <= self.horizon

    def _promise_end(self, tau: int) -> int:
        return min(tau + self.settings.vote, self.horizon)

    def _settle_old(self, now: Now) -> None:
        """Turn promises whose outcome was lost into entries of the table at tau_max: that covers it (M2)."""
        while True:
            name = self.promises.oldest()
            if name is None:
                return
            tau_max = self.promises.open[name].tau_max
            full = len(self.promises) >= self.settings.promises and tau_max < now[0]
            if not full and tau_max + 16 * self.settings.vote > now[0]:
                return
            promise = self.promises.remove(name)
            assert promise is not None, "it was just found"
            self._enter(promise.share, tau_max)

    def _decided(self, decided: Decided, now: Now) -> None:
        """M4: the promise becomes an entry at the commit's time, and no earlier time is issued here any more."""
        self._gates.pop(decided.txid, None)
        promise = self.promises.remove((decided.txid, decided.attempt))
        if promise is not None:
            self._enter(promise.share, decided.tau)
        elif decided.tau <= now[1] + self.settings.hold:
            self._learn(decided.tau)
        else:
            self._out.append(Alarm(f"a commit {decided.tau - now[1]} ns ahead of the clock was not believed"))

    # --------------------------------------------------------------------------------------------------- checks

    def _admit(self, share: Prepare, now: Now) -> Ballot:
        """Check a share; and let writers wait for a schema change of their relation that waits for promises.

        Otherwise a table that is written all the time, with a promise open at every moment, could never be changed.
        Writers lose nothing by that: those before the change are refused after it anyway (A5). It changes no rule, as
        BUSY only means another attempt, and ends by itself a while after the last attempt of the schema change.
        """
        ballot = self._check(share)
        gates, txid = self._gates, share.txid
        if share.changed or share.depends:
            if (ballot is Ballot.BUSY and len(gates) < self.settings.gates) or (ballot is Ballot.YES and txid in gates):
                gates[txid] = share, now[0] + self.settings.vote
            elif ballot is not Ballot.BUSY:
                gates.pop(txid, None)
        elif ballot is Ballot.YES and gates:
            for name in [name for name, (_, until) in gates.items() if until <= now[0]]:
                del gates[name]
            for change, _ in gates.values():
                if relations_conflict(change, share) or relations_conflict(share, change):
                    return Ballot.BUSY
        return ballot

    def _check(self, share: Prepare) -> Ballot:
        """May this share commit, as far as is known here? Changes nothing."""
        core, tau_start = self.core, share.tau_start
        holds, covers = self.ranges.holds, self.ranges.covers
        if not all(map(holds, share.keys)):
            return Ballot.STALE
        for lo, hi, _ in share.checks:
            if not covers(lo, hi):
                return Ballot.STALE
        for lo, hi in share.parts:
            if not covers(lo, hi):
                return Ballot.STALE
        if tau_start < core.floor or tau_start < core.table.floor or self._below_floors(share):
            return Ballot.FLOOR
        if core.schema_changed(share.relations, tau_start) or core.schema_changed(share.changed, tau_start):
            return Ballot.SCHEMA_CONFLICT
        if core.rows_written(share.depends, tau_start) or core.rows_written(share.scans, tau_start):
            return Ballot.CONFLICT
        key = core.table.conflict(share.keys, share.modes, tau_start)
        if key is not None:
            self.conflicted = key
            return Ballot.SCHEMA_CONFLICT if key.startswith(DDL_RANGE) else Ballot.CONFLICT
        for lo, hi, _ in share.checks:
            if core.table.range_conflict(lo, hi, tau_start) is not None:
                return Ballot.CONFLICT
        if self.promises.conflict(share):
            return Ballot.BUSY
        return Ballot.YES

    def _below_floors(self, share: Prepare) -> bool:
        """Is the snapshot below the floor of a range that came from another adjudicator? (W4)"""
        for lo, hi, floor in self._floors:
            if share.tau_start < floor and (
                any(lo <= key < hi for key in share.keys)
                or any(start < hi and lo < end for start, end, _ in share.checks)
                or any(start < hi and lo < end for start, end in share.parts)
            ):
                return True
        return False

    def _enter(self, share: Prepare, tau: int) -> None:
        """Remember that this share is committed at tau."""
        self._learn(tau)
        self.core.table.insert(share.keys, share.modes, tau)
        self.core.touch(share.relations, share.changed, tau)

    # ----------------------------------------------------------------------------------------------- time and H

    def _next(self, now: Now, least: int = 0) -> int:
        """The next time that may be issued (A3). Congruent to the own number, so that nobody else issues it."""
        tau = max(self.core.last + 1, now[0], least)
        return tau + (self.me - tau) % STRIDE

    def _issue(self, now: Now) -> int:
        tau = self.core.last = self._next(now)
        return tau

    def _learn(self, tau: int) -> None:
        """Nothing at or below tau is issued any more."""
        if tau > self.core.last:
            self.core.last = tau

    def _append(
        self,
        kind: Kind,
        flags: int,
        tau: int,
        txid: bytes,
        body: bytes,
        now: Now | None = None,
        client: Client = None,
        attempt: int = 0,
        participants: list[int] | None = None,
        move: RangeMove | None = None,
        message: msgspec.Struct | None = None,
        horizon: int | None = None,
    ) -> None:
        """Queue a record; every one carries H = now + 2T unless the last word about it was said."""
        if horizon is None:
            assert now is not None, "H needs a time"
            if not self._closing:
                self._submitted = max(self._submitted, max(now[0], tau) + 2 * self.settings.vote)
            horizon = self._submitted
        self._learn(tau)
        self._waiting.append(_Waiting(kind, tau, horizon, txid, attempt, participants or [], client, move, message))
        self._out.append(Append(kind, flags, tau, horizon, txid, body))

    def _renew(self, now: Now) -> None:
        """Append H alone, unless a record that carries one is on its way."""
        if not self._renewing and not self._closing:
            self._renewing = True
            self._append(Kind.HORIZON, 0, self._issue(now), NO_TXID, b"", now)

    def _raise_horizon(self, item: _Waiting) -> None:
        if item.kind == Kind.HORIZON:
            self._renewing = False
        if not self._closing and item.horizon > self.horizon:
            self.horizon = item.horizon

    def _acknowledge(self, item: _Waiting, now: Now) -> None:
        """A record is durable, and all before it."""
        if item.kind == Kind.TRANSACTION:
            self.core.durable(item.txid)
            for participant in item.participants:
                self._out.append(Send(participant, Decided(item.txid, item.attempt, item.tau)))
            self._reply(item.client, CommitReply(item.txid, Outcome.COMMITTED, item.tau, ""))
        elif item.kind == Kind.RELEASE:
            assert item.move is not None, "a release is a move"
            sequence, _, hash = self.position
            move = msgspec.structs.replace(item.move, sequence=sequence, hash=hash)
            self._releasing.discard(move.target)
            self._released[move.target] = move
            self._send_move(move.target, move, now)
        elif item.kind == Kind.ACQUIRE:
            assert item.move is not None, "an acquisition is a move"
            self._own(item.move)
            self._reply(item.client, RangeAcquired(item.move.source, item.move.tau))
        elif item.message is not None:
            self._reply(item.client, item.message)

    # ------------------------------------------------------------------------------------------------ heartbeats

    def _heartbeat_request(self, client: Client, tau: int, now: Now) -> None:
        if tau > now[1] + self.settings.hold or self._closing:
            return  # the reader waits, and gives up with an error (W3)
        if client in self._readers or len(self._readers) < self.settings.readers:
            self._readers[client] = max(tau, self._readers.get(client, 0))
            self._heartbeats(now)

    def _limit(self, now: Now) -> int:
        """The largest h that may be sent (W1)."""
        h = min(now[1], self.horizon)
        return min(h, self._waiting[0].tau - 1) if self._waiting else h

    def _heartbeats(self, now: Now) -> None:
        """Answer the readers whose time has come; see to it that it comes for the others."""
        limit = self._limit(now)
        later = 0
        for client, tau in list(self._readers.items()):
            if tau <= limit:
                del self._readers[client]
                h = max(tau, min(now[0], limit))
                self._learn(h)
                self.bound = max(self.bound, h)
                sequence, generation, hash = self.position
                self._reply(client, Heartbeat(self.me, self.generation, sequence, generation, hash, h))
            else:
                later = max(later, tau)
        if not later:
            return
        if later > now[1]:
            self._schedule(now[0] + later - now[1], -1)
        if later > self.horizon and later > self._submitted:
            self._renewing = False  # what is on its way is not enough
            self._submitted = later  # at least that: clocks may be further apart than 2T
            self._renew(now)
        elif later > self.horizon and not self._waiting:
            self._renew(now)

    # --------------------------------------------------------------------------------------------- range moves

    def _touching(self, lo: bytes, hi: bytes) -> list[_Request]:
        """Undecided transactions with an open promise to ourselves in a range."""
        return [
            request
            for request in self._open.values()
            if request.voting and _touches(self.promises.open[request.commit.txid, request.attempt].share, lo, hi)
        ]

    def _send_move(self, target: int, move: RangeMove, now: Now) -> None:
        self._out.append(Send(target, move))
        self._schedule(now[0] + self.settings.resend, target)

    def _acquired_by_target(self, message: RangeAcquired) -> None:
        for target, move in list(self._released.items()):
            if (message.source, message.tau) == (self.me, move.tau):
                del self._released[target]

    def _acquire(self, client: Client, move: RangeMove, now: Now) -> None:
        """Another adjudicator's release is durable: the range is ours once we have written that down."""
        name = move.source, move.tau
        if move.target != self.me or name in self._acquiring or self._closing:
            return
        if self._acquired.get(move.source, 0) >= move.tau:
            self._reply(client, RangeAcquired(*name))
            return
        self._acquiring.add(name)
        self._append(Kind.ACQUIRE, 0, self._issue(now), NO_TXID, encode(move), now, client, move=move)

    def _own(self, move: RangeMove) -> None:
        self._acquiring.discard((move.source, move.tau))
        self._acquired[move.source] = move.tau
        self.ranges.add(move.lo, move.hi)
        if move.ddl >= 0:
            self.core.ddl = move.ddl
        self.bound = max(self.bound, move.floor)
        if len(self._floors) >= self.settings.floors:
            # one floor for all: it refuses more than needed, for a moment
            self.core.floor = max(self.core.floor, *(floor for _, _, floor in self._floors))
            self._floors.clear()
        self._floors.append((move.lo, move.hi, move.floor))

    # ---------------------------------------------------------------------------------------------------- timers

    def _timer(self, request: _Request, due: int) -> None:
        request.due = due
        self._schedule(due, request.commit.txid)

    def _schedule(self, due: int, what: bytes | int) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (due, self._timer_count, what))

    def _reply(self, client: Client, message: msgspec.Struct) -> None:
        self._out.append(Reply(client, message))

    def _take(self) -> list[Effect]:
        out, self._out = self._out, []
        return out


def _touches(share: Prepare, lo: bytes, hi: bytes) -> bool:
    return (
        any(lo <= key < hi for key in share.keys)
        or any(start < hi and lo < end for start, end, _ in share.checks)
        or any(start < hi and lo < end for start, end in share.parts)
    )
