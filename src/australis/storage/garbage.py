"""Which storage ids are garbage, and when they may go (rule Q8, docs/formats.md §4).

Three sources: `drops` of a commit (older snapshots still read them: they go when the horizon has passed), Drop
messages of aborted transactions and chunks of transactions that ended without publishing them (nobody reads them: they
go at once). The state is written to the store together with the records that cause it, so that it is that of the
store's position whatever is killed when; what a record has settled that never was journaled is open again after
`rolled_back`. System relations are never dropped, whatever a message says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from australis.journal.record import NO_TXID, Kind, RecordFlag
from australis.protocol.messages import Commit, Drop, FeedRecord, client_decoder, relations_of
from australis.storage.store import Store

META = "garbage"
FIRST_USER_RELATION = 1 << 32
_DROPS = int(RecordFlag.DROPS)  # an operator of the enumeration is a call
_PURGE_ENTRIES = 10_000


class _State(msgspec.Struct, array_like=True):
    due: dict[int, int]  # storage id -> time at which the horizon must have arrived; 0: at once
    caused: dict[int, int]  # storage id -> time of the record that made it garbage
    unpublished: dict[bytes, list[int]]  # transaction -> storage ids with chunks of it
    generation: int  # of those transactions
    settled: dict[int, int] = {}  # storage id that had unpublished chunks -> time of the record that published or
    # dropped it; until the horizon, for a record below it is journaled


class Garbage:
    """Storage ids to delete, kept in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        saved = store.meta(META)
        self._state = msgspec.msgpack.decode(saved, type=_State) if saved is not None else _State({}, {}, {}, 0)
        self.avoided = _packed(self._state.due)
        """Storage ids that are garbage, as `Store.apply_feed` takes them: a commit that writes to one concerns us."""

    def __len__(self) -> int:
        return len(self._state.due)

    @property
    def concerned(self) -> bool:
        """May a commit without drops that avoids garbage concern us? It does if it publishes chunks."""
        return bool(self._state.unpublished)

    def cut(self, records: Sequence[FeedRecord]) -> int | None:
        """Where a batch must be cut: before a record that writes to garbage, or may once the ones before it are noted.

        Query processors don't give out a storage id twice, but one that was rebuilt after an abort may not know what it
        gave out before. Its new rows must not be taken for the old ones. 0: `purge` the first record; None: no cut.
        """
        due = self._state.due
        makes = False
        for index, record in enumerate(records):
            if record.kind in (Kind.TRANSACTION, Kind.INGEST) and (
                makes or (due and not due.keys().isdisjoint(relations_of(record.body)))
            ):
                return index
            makes = makes or record.kind in (Kind.DROP, Kind.CLAIM) or bool(record.flags & _DROPS)
        return None

    def purge(self, record: FeedRecord) -> None:
        """Finish deleting the storage ids that a record is about to write to."""
        if record.kind not in (Kind.TRANSACTION, Kind.INGEST):
            return
        for relation in relations_of(record.body):
            if relation in self._state.due:
                while not self._store.drop(relation, _PURGE_ENTRIES):
                    continue
                self._deleted(relation)

    def note(self, records: Iterable[FeedRecord]) -> tuple[str, bytes] | None:
        """Look at records that are about to be applied, in order; returns what to set with them, None: nothing."""
        changed = False
        state = self._state
        for record in records:
            kind = record.kind
            if kind == Kind.TRANSACTION:
                if record.flags & _DROPS:
                    commit = client_decoder.decode(record.body)
                    assert isinstance(commit, Commit)
                    self._add(commit.drops, record.tau, record.tau)
                    changed = True
                if state.unpublished and record.txid in state.unpublished:
                    self._settle(state.unpublished[record.txid], record.tau)
                    changed = True
            elif kind == Kind.INGEST:
                changed |= self._note_chunk(record)
            elif kind == Kind.DROP:
                drop = client_decoder.decode(record.body)
                assert isinstance(drop, Drop)
                self._add(drop.relations, 0, record.tau)
                changed = True
            elif kind == Kind.CLAIM and record.generation > state.generation:
                # chunks of older generations: the floor refuses their transactions, so nobody will publish them
                state.generation = record.generation
                self._add(self._in_chunks(), 0, record.tau)
                changed = True
        return self._changed() if changed else None

    def _note_chunk(self, record: FeedRecord) -> bool:
        fresh = {relation for relation in relations_of(record.body) if relation >= FIRST_USER_RELATION}
        known = self._state.unpublished.get(record.txid, [])
        fresh.difference_update(known)
        if fresh:
            self._state.unpublished[record.txid] = known + sorted(fresh)
        return bool(fresh)

    def _in_chunks(self) -> set[int]:
        return {relation for relations in self._state.unpublished.values() for relation in relations}

    def _add(self, relations: Iterable[int], due: int, tau: int) -> None:
        state = self._state
        garbage = {relation for relation in relations if relation >= FIRST_USER_RELATION}
        for relation in garbage - state.due.keys():  # the first record counts: a later one may be undone
            state.due[relation], state.caused[relation] = due, tau
        self._settle(garbage, tau)

    def _settle(self, relations: Iterable[int], tau: int) -> None:
        """What became of chunks of these storage ids is known."""
        state = self._state
        settled = self._in_chunks().intersection(relations)
        if settled:
            state.settled.update(dict.fromkeys(settled, tau))
            left = {txid: [each for each in known if each not in settled] for txid, known in state.unpublished.items()}
            state.unpublished = {txid: known for txid, known in left.items() if known}

    def rolled_back(self, tau: int) -> tuple[str, bytes]:
        """Records above tau never happened; returns what to set with the position. A claim comes next."""
        state = self._state
        for relation in [relation for relation, caused in state.caused.items() if caused > tau]:
            del state.due[relation], state.caused[relation]
        open_again = [relation for relation, settled in state.settled.items() if settled > tau]
        for relation in open_again:
            del state.settled[relation]
        if open_again:
            state.unpublished[NO_TXID] = state.unpublished.get(NO_TXID, []) + open_again
        return self._changed()

    def exported(self) -> bytes:
        """What another store must know that takes over keys of this one."""
        return _encoded(self._state)[1]

    def joined(self, exported: bytes) -> _State:
        """Ours and what such a store says, which is at least as new. Raises MsgspecError if it is none."""
        ours, theirs = self._state, msgspec.msgpack.decode(exported, type=_State)
        unpublished = {txid: list(known) for txid, known in ours.unpublished.items()}
        for txid, relations in theirs.unpublished.items():
            known = unpublished.setdefault(txid, [])
            known.extend(relation for relation in relations if relation not in known)
        due = ours.due | {relation: tau for relation, tau in theirs.due.items() if relation not in ours.due}
        caused = ours.caused | {relation: tau for relation, tau in theirs.caused.items() if relation in due}
        return _State(due, caused, unpublished, max(ours.generation, theirs.generation), theirs.settled | ours.settled)

    def adopt(self, state: _State) -> None:
        """What `joined` returned is in the store."""
        self._state = state
        self.avoided = _packed(state.due)

    def waits_since(self) -> int | None:
        """Time of the first record that made garbage which is still here; None if there is none."""
        return next(iter(self._state.caused.values()), None)

    def collect(self, horizon: int, entries: int) -> bool:
        """Delete up to that many entries of what is due; True if more is due."""
        state = self._state
        for journaled in [relation for relation, tau in state.settled.items() if tau <= horizon]:
            del state.settled[journaled]
        relation = next((relation for relation, due in state.due.items() if due <= horizon), None)
        if relation is None:
            return False
        if self._store.drop(relation, entries):
            self._deleted(relation)
        return True

    def _deleted(self, relation: int) -> None:
        """Nothing is left of it. Known only when that is written: else new rows in it might be deleted later."""
        state = self._state
        due = {other: tau for other, tau in state.due.items() if other != relation}
        caused = {other: tau for other, tau in state.caused.items() if other != relation}
        state = msgspec.structs.replace(state, due=due, caused=caused)
        self._store.set_meta(*_encoded(state))
        self._state = state
        self.avoided = _packed(state.due)

    def _changed(self) -> tuple[str, bytes]:
        self.avoided = _packed(self._state.due)
        return _encoded(self._state)


def encoded(state: _State) -> bytes:
    """As the store keeps it."""
    return _encoded(state)[1]


def _encoded(state: _State) -> tuple[str, bytes]:
    return META, msgspec.msgpack.encode(state)


def _packed(relations: Iterable[int]) -> bytes:
    return b"".join([relation.to_bytes(8, "big") for relation in sorted(relations)])
