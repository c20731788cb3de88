"""Leases and small records that all roles of a cluster share: who serves, who is there, what the cluster is.

Two implementations: in this process for the embedded cluster, a NATS key-value bucket for more. What must hold: a key
is created by one of several at most, changed only by who knows its revision, and gone once its time to live has passed
without a renewal. A lease is a hint for liveness and nothing more: whoever holds one that has run out may still write,
and the journal's claim is what fences it (rules A1, J1).

If the servers are away, calls raise UnavailableError; holders go on with what they do until they are fenced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import nats.errors
from nats.aio.client import Client
from nats.js.api import KeyValueConfig, StorageType
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from australis.journal.nats_server import ANSWER_SECONDS
from australis.journal.stream import UnavailableError

BUCKET = "australis"
MARKER_SECONDS = 60.0
"""How long a deletion by age stays visible to watchers."""


@dataclass(frozen=True, slots=True)
class Record:
    """A key's value; `revision` increases with every change of any key."""

    value: bytes
    revision: int


class Coordination(Protocol):
    """What both implementations offer. Times to live in whole seconds; None: for ever."""

    async def create(self, key: str, value: bytes, ttl: float | None = None) -> int | None:
        """Make a key that is not there; its revision, or None if it is there already."""
        ...

    async def update(self, key: str, value: bytes, revision: int, ttl: float | None = None) -> int | None:
        """Replace (or renew) what has this revision; the new one, or None if somebody else was faster or it is gone."""
        ...

    async def release(self, key: str, revision: int) -> bool:
        """Delete what has this revision; False if it is not there any more."""
        ...

    async def get(self, key: str) -> Record | None:
        """Read a key."""
        ...


class LocalCoordination:
    """In this process: for the embedded cluster. Nothing outlives it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[str, tuple[Record, float | None]] = {}
        self._revision = 0

    def _find(self, key: str) -> Record | None:
        record, until = self._records.get(key, (None, None))
        if record is not None and until is not None and self._clock() >= until:
            del self._records[key]
            return None
        return record

    def _put(self, key: str, value: bytes, ttl: float | None) -> int:
        self._revision += 1
        self._records[key] = Record(value, self._revision), None if ttl is None else self._clock() + ttl
        return self._revision

    async def create(self, key: str, value: bytes, ttl: float | None = None) -> int | None:
        """Make a key that is not there."""
        return self._put(key, value, ttl) if self._find(key) is None else None

    async def update(self, key: str, value: bytes, revision: int, ttl: float | None = None) -> int | None:
        """Replace what has this revision."""
        found = self._find(key)
        return self._put(key, value, ttl) if found is not None and found.revision == revision else None

    async def release(self, key: str, revision: int) -> bool:
        """Delete what has this revision."""
        found = self._find(key)
        if found is None or found.revision != revision:
            return False
        del self._records[key]
        return True

    async def get(self, key: str) -> Record | None:
        """Read a key."""
        return self._find(key)


class NatsCoordination:
    """A key-value bucket on NATS servers; use `open`."""

    def __init__(self, js: JetStreamContext, name: str, bucket: KeyValue) -> None:
        self._js, self._name, self._bucket = js, name, bucket

    @classmethod
    async def open(cls, client: Client, replicas: int, bucket: str = BUCKET) -> NatsCoordination:
        """Find the bucket or make it."""
        js = client.jetstream(timeout=ANSWER_SECONDS)
        try:
            try:
                return cls(js, bucket, await js.key_value(bucket))
            except BucketNotFoundError:
                config = KeyValueConfig(
                    bucket=bucket,
                    history=1,
                    replicas=replicas,
                    storage=StorageType.FILE,
                    limit_marker_ttl=MARKER_SECONDS,
                )
                return cls(js, bucket, await js.create_key_value(config))
        except (TimeoutError, nats.errors.Error, JetStreamError, OSError) as error:
            raise UnavailableError(f"bucket {bucket}: {error or type(error).__name__}") from None

    async def create(self, key: str, value: bytes, ttl: float | None = None) -> int | None:
        """Make a key that is not there."""
        try:
            try:
                return await self._publish(key, value, 0, ttl)
            except APIError as error:
                self._lost(error)
            # what is there may be the mark of a key that was deleted or ran out
            last = await self._js.get_last_msg(f"KV_{self._name}", f"$KV.{self._name}.{key}")
            if not (last.headers or {}).keys() & {"KV-Operation", "Nats-Marker-Reason"}:
                return None
            return await self._publish(key, value, int(last.seq or 0), ttl)
        except APIError as error:
            return self._lost(error)
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise _unavailable(error) from None

    async def update(self, key: str, value: bytes, revision: int, ttl: float | None = None) -> int | None:
        """Replace what has this revision."""
        try:
            return await self._publish(key, value, revision, ttl)
        except APIError as error:
            return self._lost(error)
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise _unavailable(error) from None

    async def release(self, key: str, revision: int) -> bool:
        """Delete what has this revision."""
        try:
            return bool(await self._bucket.delete(key, last=revision))
        except APIError as error:
            self._lost(error)
            return False
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise _unavailable(error) from None

    async def get(self, key: str) -> Record | None:
        """Read a key."""
        try:
            entry = await self._bucket.get(key)
            if not entry.value:  # perhaps the mark of one that ran out
                last = await self._js.get_last_msg(f"KV_{self._name}", f"$KV.{self._name}.{key}")
                if "Nats-Marker-Reason" in (last.headers or {}):
                    return None
        except KeyNotFoundError:
            return None
        except (TimeoutError, nats.errors.Error, JetStreamError, OSError) as error:
            raise _unavailable(error) from None
        return Record(entry.value or b"", int(entry.revision or 0))

    async def _publish(self, key: str, value: bytes, revision: int, ttl: float | None) -> int:
        """What the client's own `update` does, with a time to live."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        if ttl is not None:
            headers["Nats-TTL"] = f"{max(1, round(ttl))}s"
        answer = await self._js.publish(f"$KV.{self._name}.{key}", value, headers=headers)
        return int(answer.seq)

    @staticmethod
    def _lost(error: APIError) -> None:
        """Somebody else was faster; anything else is an error."""
        if not isinstance(error, KeyWrongLastSequenceError) and error.err_code != 10071:
            raise _unavailable(error)


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(f"the key-value store: {error or type(error).__name__}")
