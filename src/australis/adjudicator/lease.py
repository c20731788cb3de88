"""Which of several candidates serves an adjudicator: a lease in the key-value store of the NATS servers.

    lease = Lease(settings, "adjudicator-0", "adjudicator-0-1"); await lease.acquire(); ...; await lease.close()

It saves candidates from fencing each other in turn, and no more: who serves is decided by the claim in the journal
(rules A1, J1), whoever thinks that it holds a lease. What must hold: a lease that is not renewed runs out by itself; a
holder that cannot reach the servers goes on until it is fenced; one that learns that another holds its lease stops
(`lost`). A process that was killed and comes back under the same name takes its own lease again at once.
"""

from __future__ import annotations

import asyncio
import contextlib

import nats
import nats.errors
import structlog
from nats.aio.client import Client

from australis.control_plane.coordination import NatsCoordination
from australis.errors import AustralisError
from australis.journal.nats_server import CONNECT_SECONDS, NatsSettings
from australis.journal.stream import UnavailableError

TTL_SECONDS = 3.0
RENEW_SECONDS = 1.0
POLL_SECONDS = 0.25

log = structlog.get_logger()


class LeaseLostError(AustralisError):
    """Another candidate serves."""

    sqlstate = "57P01"


class Lease:
    """One candidate's side."""

    def __init__(self, settings: NatsSettings, key: str, holder: str) -> None:
        self._settings, self._key, self._holder = settings, key, holder.encode()
        self._client: Client | None = None
        self._store: NatsCoordination | None = None
        self._revision = 0
        self._task: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[AustralisError] = asyncio.get_running_loop().create_future()

    async def acquire(self) -> None:
        """Return when the lease is ours; it is renewed from now on. Waits for ever, as candidates do."""
        said = ""
        while True:
            try:
                if await self._try():
                    break
                error = ""
            except (UnavailableError, OSError, nats.errors.Error) as failure:
                error = str(failure) or type(failure).__name__
                await self._disconnect()
            if error and error != said:
                said = error
                log.warning("lease.unavailable", key=self._key, error=error)
            await asyncio.sleep(POLL_SECONDS)  # the store tells no one when a key has run out
        self._task = asyncio.create_task(self._renew(), name="lease")

    async def _try(self) -> bool:
        if self._store is None:
            self._client = await nats.connect(
                list(self._settings.servers),
                connect_timeout=CONNECT_SECONDS,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                error_cb=_quiet,
            )
            self._store = await NatsCoordination.open(self._client, self._settings.replicas)
        store = self._store
        revision = await store.create(self._key, self._holder, TTL_SECONDS)
        if revision is None:
            found = await store.get(self._key)
            if found is not None and found.value == self._holder:  # of our last life
                revision = await store.update(self._key, self._holder, found.revision, TTL_SECONDS)
        if revision is None:
            return False
        self._revision = revision
        return True

    async def _renew(self) -> None:
        store = self._store
        assert store is not None, "it was acquired there"
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                revision = await store.update(self._key, self._holder, self._revision, TTL_SECONDS)
                if revision is None:
                    # run out while we or the servers were away, or an answer of ours was lost: ask who holds it
                    found = await store.get(self._key)
                    if found is not None and found.value == self._holder:
                        revision = found.revision
                    elif found is None:
                        revision = await store.create(self._key, self._holder, TTL_SECONDS)
            except (UnavailableError, OSError, nats.errors.Error):
                continue  # nobody else can have it without the servers
            if revision is None:
                self.lost.set_result(LeaseLostError(f"another process serves {self._key} now"))
                return
            self._revision = revision

    async def close(self) -> None:
        """Give it back, so that another candidate need not wait."""
        held = self._task is not None and not self.lost.done()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if held and self._store is not None:
            with contextlib.suppress(UnavailableError, OSError, nats.errors.Error):
                await self._store.release(self._key, self._revision)
        await self._disconnect()

    async def _disconnect(self) -> None:
        client, self._client, self._store = self._client, None, None
        if client is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await client.close()


async def _quiet(error: Exception) -> None:
    """The client tells of every lost connection; what matters is said by whoever asks for something."""
