"""Which key ranges a replica holds, and bringing that to what the map wants: leaving some, taking over others.

    map --wanted--> `RangeKeeper` --Export--> a replica that holds the range --ExportReply--> the store, page by page

What a store holds is a record in it ("ranges"), changed in the transaction that brings the keys: a range in it is
complete, with its history down to the store's horizon, whatever is killed when. What must hold:
- the feed covers a range before its first page is asked for, and nothing is applied between the question and the
  import (a source that is behind is waited for before that, so that it holds nobody up): so a page holds all that was
  applied here, and what comes later is applied on top of it (a record that the page already holds changes nothing);
- keys of a range are applied only once their page is here; before, they are not this store's;
- nothing is left because of a map that is older than one that was followed before ("map" in the store);
- a range that is left is refused to readers first, then erased in bounded transactions ("leaving" survives a crash),
  and taken over again only when nothing of it is left.

A source that dies or does not hold the range any more is left for another one; what was taken stays. The range of a
shard without any other holder waits and says so.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from australis.asker import Asker, AskError
from australis.errors import AustralisError
from australis.keyspace import KEYSPACE_END, KeyRanges, without
from australis.partition_map import PartitionMap
from australis.protocol.messages import Export, ExportReply, ReadStatus
from australis.role_config import RoleConfig
from australis.storage.garbage import Garbage, encoded
from australis.storage.store import Store, StoreError, pack_ranges
from australis.transport import Address, Identity

HELD, LEAVING, MAP = "ranges", "leaving", "map"
PAGE_BYTES = 512 << 10
FRESH_SECONDS, PAGE_SECONDS = 5.0, 1.0
"""How long a source may take to be where we are, and then to answer while nothing is applied here."""

CONNECT_SECONDS = 2.0
RETRY_SECONDS = 1.0
ERASE_ENTRIES = 5000
NOTHING = [(KEYSPACE_END, KEYSPACE_END + b"\x00")]
"""For a store that holds nothing: no ranges at all means everything."""

log = structlog.get_logger()


def unpack_ranges(packed: bytes) -> list[tuple[bytes, bytes]]:
    """Reverse of pack_ranges. Raises ValueError."""
    bounds: list[bytes] = []
    at = 0
    while at < len(packed):
        length = int.from_bytes(packed[at : at + 2], "big")
        at += 2 + length
        if at > len(packed):
            raise ValueError("ranges of keys that are cut short")
        bounds.append(packed[at - length : at])
    return list(zip(bounds[::2], bounds[1::2], strict=True))


class Holdings:
    """What is recorded in a store. Changed by its owner, in its writer's thread."""

    def __init__(self, store: Store) -> None:
        """Raises ValueError or MapError if the records are damaged."""
        held, leaving, followed = store.meta(HELD), store.meta(LEAVING), store.meta(MAP)
        self.map = PartitionMap.decode(followed) if followed is not None else None
        """The newest one that was followed here."""
        self.known = held is not None
        self.leaving = KeyRanges(unpack_ranges(leaving or b""))
        self.held = KeyRanges(without(unpack_ranges(held or b""), self.leaving.list))
        self._store = store

    def follow(self, partition: PartitionMap) -> None:
        """What is left and taken over from now on is by this map."""
        self._store.set_meta(MAP, partition.encode())
        self.map = partition

    def keep(self, held: KeyRanges) -> None:
        """Record these."""
        self._store.set_meta(HELD, pack_ranges(held.list))
        self.apply_to(held)

    def apply_to(self, held: KeyRanges) -> None:
        """They are recorded already."""
        self._store.set_ranges(pack_ranges(held.list or NOTHING))
        self.held, self.known = held, True

    def leave(self, ranges: list[tuple[bytes, bytes]]) -> None:
        """Not held any more, and to be erased."""
        self.leaving = KeyRanges([*self.leaving.list, *ranges])
        self._store.set_meta(LEAVING, pack_ranges(self.leaving.list))
        self.keep(KeyRanges(without(self.held.list, ranges)))

    def erase(self, entries: int) -> None:
        """Remove some of what was left."""
        lo, hi = self.leaving.list[0]
        if self._store.erase(lo, hi, entries):
            left = self.leaving.list[1:]
            self._store.set_meta(LEAVING, pack_ranges(left))
            self.leaving = KeyRanges(left)


class Replica(Protocol):
    """What `RangeKeeper` needs of its process."""

    config: RoleConfig
    identity: Identity
    map: PartitionMap
    store: Store
    garbage: Garbage
    holdings: Holdings
    writing: asyncio.Lock
    """Held while anything is applied or collected."""

    @property
    def reached(self) -> int:
        """Everything at or below this time was applied here, and maybe more."""

    def subscribed_to(self, ranges: list[tuple[bytes, bytes]]) -> bool:
        """Does the feed that runs now cover them?"""

    def subscribe_again(self) -> None:
        """With what the map wants now."""

    async def write(self, work: Callable[[], None]) -> None:
        """In the writer's thread, waiting for space if there is none; `writing` is held."""


class _ElsewhereError(AustralisError):
    """This source cannot give the range."""


class RangeKeeper:
    """Runs beside the feed of a replica."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._changed = asyncio.Event()
        self._ids = itertools.count(1)
        self._complained = 0.0
        self.pages = self.bytes_taken = 0
        self.waiting_for = ""

    def changed(self) -> None:
        """The map has, or the feed began."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled. Raises StoreError."""
        while True:
            await self._follow()
            await self._leave()
            done = await self._take()
            if done:
                await self._changed.wait()
            else:
                try:
                    async with asyncio.timeout(RETRY_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    pass
            self._changed.clear()

    async def _follow(self) -> None:
        replica, holdings = self._replica, self._replica.holdings
        if holdings.map is None or replica.map.version > holdings.map.version:
            async with replica.writing:
                await replica.write(functools.partial(holdings.follow, replica.map))

    async def _leave(self) -> None:
        replica, holdings = self._replica, self._replica.holdings
        async with replica.writing:
            # By the newest map too, and without a pause until readers are refused: a range that is to come back was
            # reported as held by that map.
            extra = without(holdings.held.list, [*self._wanted(), *replica.map.wanted(replica.config.number)])
            if extra:
                holdings.held = KeyRanges(without(holdings.held.list, extra))
                await replica.write(functools.partial(holdings.leave, extra))
        if extra:
            log.info("storage.left", ranges=len(extra))
            replica.subscribe_again()
        while holdings.leaving.list:
            async with replica.writing:
                await replica.write(functools.partial(holdings.erase, ERASE_ENTRIES))

    def _wanted(self) -> list[tuple[bytes, bytes]]:
        followed = self._replica.holdings.map
        assert followed is not None, "a map is followed"
        return followed.wanted(self._replica.config.number)

    async def _take(self) -> bool:
        """True: all that is wanted is held."""
        replica = self._replica
        partition = replica.holdings.map
        assert partition is not None, "a map is followed"
        gaps = without(partition.wanted(replica.config.number), replica.holdings.held.list)
        self.waiting_for = ""
        if not gaps:
            return True
        if not replica.subscribed_to(gaps):
            replica.subscribe_again()
            return False
        for lo, hi in gaps:
            for piece in partition.shard_pieces(lo, hi):
                if not await self._pull(partition, piece.owner, piece.lo, piece.hi):
                    return False
        return True

    async def _pull(self, partition: PartitionMap, owner: int, lo: bytes, hi: bytes) -> bool:
        """Take [lo, hi) over from a replica of its owner; False: later again."""
        replica = self._replica
        config = replica.config
        names = [name for name in partition.replicas[owner] if name != config.name]
        first = sum(config.name.encode()) % len(names) if names else 0
        cause = "there is no other replica"
        began, taken = time.monotonic(), self.bytes_taken
        for name in names[first:] + names[:first]:
            place = config.peers.storage.get(name)
            if place is None:
                cause = f"no address of {name} is configured"
                continue
            at = lo
            try:
                async with asyncio.timeout(CONNECT_SECONDS) as patience:
                    async with Asker.open(Address.parse(place), replica.identity) as source:
                        while at < hi:
                            patience.reschedule(asyncio.get_running_loop().time() + FRESH_SECONDS + 2 * PAGE_SECONDS)
                            if replica.map.version > partition.version:
                                return False
                            at = await self._page(source, at, hi)
            except TimeoutError:
                cause = f"{name} did not answer in time"
            except (OSError, _ElsewhereError, AskError) as error:
                cause = f"{name}: {error}"
            else:
                seconds = time.monotonic() - began
                log.info("storage.took_over", source=name, bytes=self.bytes_taken - taken, seconds=round(seconds, 3))
                return True
            lo = at
        self.waiting_for = cause
        if time.monotonic() - self._complained > 10 * RETRY_SECONDS:
            self._complained = time.monotonic()
            log.warning("storage.range_not_taken_over", lo=lo.hex(), hi=hi.hex(), cause=cause)
        return False

    async def _page(self, source: Asker, lo: bytes, hi: bytes) -> bytes:
        """Take one page over; returns where to go on."""
        replica = self._replica
        holdings, store, garbage = replica.holdings, replica.store, replica.garbage
        async with asyncio.timeout(FRESH_SECONDS):
            await source.ask(Export(next(self._ids), replica.reached, lo, lo + b"\x00", 1))
        async with replica.writing:
            async with asyncio.timeout(PAGE_SECONDS):
                reply = await source.ask(Export(next(self._ids), replica.reached, lo, hi, PAGE_BYTES))
            if not isinstance(reply, ExportReply):
                raise _ElsewhereError(f"it answered {type(reply).__name__}")
            if reply.status != ReadStatus.OK:
                raise _ElsewhereError(f"it answered {ReadStatus(reply.status).name}")
            end = reply.next or hi
            if not lo < end <= hi:
                raise _ElsewhereError("it answered with a page of other keys")
            try:
                state = garbage.joined(reply.garbage)
            except msgspec.MsgspecError as error:
                raise _ElsewhereError(f"what it says of dropped tables is damaged ({error})") from None
            held = KeyRanges([*holdings.held.list, (lo, end)])

            def take() -> None:
                store.import_page(
                    reply.page, lo, end, reply.applied, reply.horizon, pack_ranges(held.list), encoded(state)
                )
                garbage.adopt(state)
                holdings.apply_to(held)

            try:
                await replica.write(take)
            except StoreError as error:
                if type(error) is StoreError:  # the page is not what it should be, or is older than what we have
                    raise _ElsewhereError(str(error)) from None
                raise
            self.pages += 1
            self.bytes_taken += len(reply.page)
            return end
