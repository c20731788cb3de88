"""Merging journals by commit time (PROTOCOL W1, W2): pure, no sockets.

Every source delivers its records in increasing time and promises, by a record or a watermark at h, that nothing at or
below h follows. What must hold: records leave in increasing time over all sources, and only when no source can still
deliver an earlier one; the watermark never passes a source that has not promised it. A source that is full is not taken
from until it has been drained (the caller stops reading it), so memory is bounded by sources x limit.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

NEVER = (1 << 63) - 1
"""Promised by a source that has ended."""


class Merge(Generic[T]):
    """Merges items of type T from numbered sources."""

    def __init__(self, sources: int, start: int, limit: int = 10_000) -> None:
        """`start` is a time that all sources have been followed up to; `limit` items are kept per source."""
        self._queues: list[deque[tuple[int, T]]] = [deque() for _ in range(sources)]
        self._promised = [start] * sources
        self._limit = limit
        self._heap: list[tuple[int, int]] = []  # (time of the first item, source)

    def add(self, source: int, tau: int, item: T) -> None:
        """Take a record; ValueError if it breaks the source's promise."""
        if tau <= self._promised[source]:
            raise ValueError(f"source {source} delivers {tau} after promising {self._promised[source]}")
        queue = self._queues[source]
        if not queue:
            heapq.heappush(self._heap, (tau, source))
        queue.append((tau, item))
        self._promised[source] = tau

    def promise(self, source: int, tau: int) -> None:
        """A source has nothing at or below tau any more."""
        if tau > self._promised[source]:
            self._promised[source] = tau

    def promised(self, source: int) -> int:
        """What a source has promised."""
        return self._promised[source]

    @property
    def newest(self) -> int:
        """Time of the newest item that waits; 0 if none does."""
        return max((queue[-1][0] for queue in self._queues if queue), default=0)

    def is_full(self, source: int) -> bool:
        """Should the caller stop reading this source for now?"""
        return len(self._queues[source]) >= self._limit

    @property
    def watermark(self) -> int:
        """Largest time at or below which nothing new can arrive."""
        return min(self._promised)

    def take(self) -> list[tuple[int, T]]:
        """Return all items at or below the watermark, in order."""
        taken: list[tuple[int, T]] = []
        watermark = self.watermark
        while self._heap and self._heap[0][0] <= watermark:
            _, source = heapq.heappop(self._heap)
            queue = self._queues[source]
            taken.append(queue.popleft())
            if queue:
                heapq.heappush(self._heap, (queue[0][0], source))
        return taken

    def follow(self, tau: int) -> int:
        """Another source begins, all its times above tau; return its number. The watermark waits for it from now on."""
        self._queues.append(deque())
        self._promised.append(tau)
        return len(self._queues) - 1

    def end(self, source: int) -> None:
        """A source has delivered its last record."""
        self._promised[source] = NEVER

    def restart(self, source: int, tau: int) -> None:
        """A source begins again behind tau (its journal has a new owner): forget what was not taken yet."""
        self._queues[source].clear()
        self._heap = [(queue[0][0], index) for index, queue in enumerate(self._queues) if queue]
        heapq.heapify(self._heap)
        self._promised[source] = tau
