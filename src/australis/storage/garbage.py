"""Which storage ids are garbage, and when they may go (rule Q8, docs/formats.md §4).

Three sources: `drops` of a commit (older snapshots still read them: they go when the horizon has passed), Drop
messages of aborted transactions and chunks of transactions that ended without publishing them (nobody reads them: they
go at once). The state is written to the store *before* the records that cause it are applied, so that nothing is
forgotten by a crash; executing twice is harmless. System relations are never dropped, whatever a message says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from australis.journal.record import Kind, RecordFlag
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


class Garbage:
    """Storage ids to delete, kept in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        saved = store.meta(META)
        self._state = msgspec.msgpack.decode(saved, type=_State) if saved is not None else _State({}, {}, {}, 0)
        self._changed = False  # not in the store yet (it was full)
        self.avoided = _packed(self._state.due)
        """Storage ids that are garbage, as `Store.apply_feed` takes them: a commit that writes to one concerns us."""

    def __len__(self) -> int:
        return len(self._state.due)

    @property
    def concerned(self) -> bool:
        """May a commit without drops that avoids garbage concern us? It does if it publishes chunks."""
        return bool(self._state.unpublished or self._changed)

    def cut(self, records: Sequence[FeedRecord]) -> int | None:
        """Where a batch must be cut: before a record that writes to garbage, and around one that makes some.

        Query processors don't give out a storage id twice, but one that was rebuilt after an abort may not know what it
        gave out before. Its new rows must not be taken for the old ones. 0: `purge` the first record; None: no cut.
        """
        due = self._state.due
        for index, record in enumerate(records):
            writes = record.kind in (Kind.TRANSACTION, Kind.INGEST)
            if due and writes and not due.keys().isdisjoint(relations_of(record.body)):
                return index
            if record.kind == Kind.DROP or record.flags & _DROPS:
                if index:
                    return index
                return 1 if len(records) > 1 else None
        return None

    def purge(self, record: FeedRecord) -> None:
        """Finish deleting the storage ids that a record is about to write to."""
        if record.kind not in (Kind.TRANSACTION, Kind.INGEST):
            return
        for relation in relations_of(record.body):
            if relation in self._state.due:
                while not self._store.drop(relation, _PURGE_ENTRIES):
                    continue
                del self._state.due[relation], self._state.caused[relation]
                self._save()

    def note(self, records: Iterable[FeedRecord]) -> None:
        """Look at records that are about to be applied, in order."""
        changed = self._changed
        state = self._state
        for record in records:
            kind = record.kind
            if kind == Kind.TRANSACTION:
                if record.flags & _DROPS:
                    commit = client_decoder.decode(record.body)
                    assert isinstance(commit, Commit)
                    self._add(commit.drops, record.tau, record.tau)
                    changed = True
                if state.unpublished and state.unpublished.pop(record.txid, None) is not None:
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
                for relations in state.unpublished.values():
                    self._add(relations, 0, record.tau)
                state.unpublished.clear()
                changed = True
        if changed:
            self._save()

    def _note_chunk(self, record: FeedRecord) -> bool:
        known = self._state.unpublished.setdefault(record.txid, [])
        fresh = relations_of(record.body).difference(known)
        known.extend(relation for relation in fresh if relation >= FIRST_USER_RELATION)
        return bool(fresh)

    def _add(self, relations: Iterable[int], due: int, tau: int) -> None:
        for relation in relations:
            if relation >= FIRST_USER_RELATION:
                self._state.due[relation] = due
                self._state.caused[relation] = tau
                for others in self._state.unpublished.values():
                    if relation in others:
                        others.remove(relation)

    def rolled_back(self, tau: int) -> None:
        """Records above tau never happened."""
        state = self._state
        for relation in [relation for relation, caused in state.caused.items() if caused > tau]:
            del state.due[relation], state.caused[relation]
        self._save()

    def waits_since(self) -> int | None:
        """Time of the first record that made garbage which is still here; None if there is none."""
        return next(iter(self._state.caused.values()), None)

    def collect(self, horizon: int, entries: int) -> bool:
        """Delete up to that many entries of what is due; True if more is due."""
        state = self._state
        relation = next((relation for relation, due in state.due.items() if due <= horizon), None)
        if relation is None:
            return False
        if self._store.drop(relation, entries):
            del state.due[relation], state.caused[relation]
            self._save()
        return True

    def _save(self) -> None:
        self._changed = True
        self.avoided = _packed(self._state.due)
        self._store.set_meta(META, msgspec.msgpack.encode(self._state))
        self._changed = False


def _packed(relations: Iterable[int]) -> bytes:
    return b"".join([relation.to_bytes(8, "big") for relation in sorted(relations)])
