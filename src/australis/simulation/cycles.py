"""Dependency graphs between transactions, and shortest witnesses of their cycles. Pure.

The theory is that of Adya (Weak Consistency, 1999), Cerone and Gotsman (Analysing Snapshot Isolation, 2016) and
Kingsbury and Alvaro (Elle, 2020). Edges: *ww* (the next version of a key), *wr* (read that version), *rw* (read the
version before that one), *session* (same process, later), *real time* (began after the other was acknowledged).

A history is serializable if the graph of all edges has no cycle. It is possible under snapshot isolation if there is
no cycle without two rw edges in a row. That is the same as: the graph in which every transaction is two nodes, start
and commit, has no cycle, where start precedes commit, rw leads from a start to a commit (the reader's snapshot was
taken before the other's commit) and every other edge from a commit to a start (its snapshot was taken after that
commit).

Real-time order is not stored as edges, of which there would be n², but as a chain of moments: a transaction leads to
the moment of its acknowledgement, each moment to the next, and the last moment before a transaction's begin to its
start.

Everything is iterative, and linear but for the search of witnesses, which is bounded by `SEARCH_STEPS`: a witness is
the shortest of those looked at, and a cyclic component is never left without one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

WW, WR, RW, SESSION, REAL_TIME = 1, 2, 4, 8, 16
DATA = WW | WR | RW
KIND_NAMES = {WW: "ww", WR: "wr", RW: "rw", SESSION: "session", REAL_TIME: "real time"}

SEARCH_STEPS = 500_000
WITNESSES = 20  # per question

_WITHIN, _TO_MOMENT, _MOMENTS = -1, -2, -3  # edges of a view that are no edges of the graph

Key = tuple[str, int]


@dataclass(frozen=True)
class Edge:
    """`target` must come after `source`."""

    source: int
    target: int
    kind: int
    key: Key | None = None


Cycle = tuple[Edge, ...]


@dataclass
class Graph:
    """Transactions are numbers below len(invoked). `completed` is None for those whose end nobody was told."""

    invoked: Sequence[int]
    completed: Sequence[int | None]
    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    key: list[Key | None] = field(default_factory=list)

    def add(self, source: int, target: int, kind: int, key: Key | None = None) -> None:
        """An edge; of a transaction to itself: nothing."""
        if source != target:
            self.source.append(source)
            self.target.append(target)
            self.kind.append(kind)
            self.key.append(key)

    def edge(self, number: int) -> Edge:
        return Edge(self.source[number], self.target[number], self.kind[number], self.key[number])


class View:
    """The graph of one question: edges of some kinds between some transactions, each one node or two (`split`)."""

    def __init__(self, graph: Graph, kinds: int, members: Iterable[int], *, split: bool) -> None:
        self.graph = graph
        self.kinds = kinds
        self.members = sorted(set(members))
        self._width = 2 if split else 1
        self._index = {t: i for i, t in enumerate(self.members)}
        nodes = self._width * len(self.members)
        self.out: list[list[int]] = [[] for _ in range(nodes)]
        self.via: list[list[int]] = [[] for _ in range(nodes)]
        if split:
            for i in range(len(self.members)):
                self._add(2 * i, 2 * i + 1, _WITHIN)
        self._add_data(split)
        if kinds & REAL_TIME:
            self._add_moments(split)
        self.components = self._components()

    def _add(self, source: int, target: int, via: int) -> None:
        self.out[source].append(target)
        self.via[source].append(via)

    def _add_data(self, split: bool) -> None:
        index, graph, kinds = self._index, self.graph, self.kinds
        for number, kind in enumerate(graph.kind):
            if not kind & kinds:
                continue
            source, target = index.get(graph.source[number]), index.get(graph.target[number])
            if source is None or target is None:
                continue
            if not split:
                self._add(source, target, number)
            elif kind == RW:
                self._add(2 * source, 2 * target + 1, number)
            else:
                self._add(2 * source + 1, 2 * target, number)

    def _add_moments(self, split: bool) -> None:
        ends: list[tuple[int, int]] = []
        for i, t in enumerate(self.members):
            completed = self.graph.completed[t]
            if completed is not None:
                ends.append((completed, i))
        ends.sort()
        first = len(self.out)
        times = [time for time, _ in ends]
        self.out.extend([] for _ in ends)
        self.via.extend([] for _ in ends)
        for moment, (_, i) in enumerate(ends):
            self._add(2 * i + 1 if split else i, first + moment, _TO_MOMENT)
            if moment + 1 < len(ends):
                self._add(first + moment, first + moment + 1, _MOMENTS)
        for i, t in enumerate(self.members):
            before = bisect_left(times, self.graph.invoked[t])
            if before:
                self._add(first + before - 1, 2 * i if split else i, _MOMENTS)

    def transactions(self, component: Iterable[int]) -> list[int]:
        """The transactions of a component's nodes."""
        last = self._width * len(self.members)
        return sorted({self.members[node // self._width] for node in component if node < last})

    def cyclic(self) -> list[int]:
        """All transactions that are on some cycle."""
        return sorted({t for component in self.components for t in self.transactions(component)})

    def _uncertain(self) -> set[int]:
        """Nodes that remain when those without a predecessor are taken away again and again."""
        waiting = [0] * len(self.out)
        for targets in self.out:
            for target in targets:
                waiting[target] += 1
        free = [node for node, count in enumerate(waiting) if not count]
        taken = len(free)
        while free:
            for target in self.out[free.pop()]:
                waiting[target] -= 1
                if not waiting[target]:
                    free.append(target)
                    taken += 1
        return set() if taken == len(self.out) else {node for node, count in enumerate(waiting) if count}

    def _components(self) -> list[list[int]]:
        """Strongly connected components of more than one node (Tarjan 1972, with a stack of its own)."""
        remaining = self._uncertain()
        number: dict[int, int] = {}
        low: dict[int, int] = {}
        stack: list[int] = []
        on_stack: set[int] = set()
        found: list[list[int]] = []
        for root in sorted(remaining):
            if root in number:
                continue
            work: list[tuple[int, int]] = [(root, 0)]
            while work:
                node, place = work.pop()
                if place == 0:
                    number[node] = low[node] = len(number)
                    stack.append(node)
                    on_stack.add(node)
                targets = self.out[node]
                while place < len(targets):
                    target = targets[place]
                    place += 1
                    if target not in remaining:
                        continue
                    if target not in number:
                        work += [(node, place), (target, 0)]
                        break
                    if target in on_stack:
                        low[node] = min(low[node], number[target])
                else:
                    if low[node] == number[node]:
                        component: list[int] = []
                        while not component or component[-1] != node:
                            component.append(stack.pop())
                            on_stack.discard(component[-1])
                        if len(component) > 1:
                            found.append(component)
                    if work:
                        parent = work[-1][0]
                        low[parent] = min(low[parent], low[node])
        return found

    def witnesses(self, wanted: int, accept: Callable[[Cycle], bool] = lambda _: True) -> list[Cycle]:
        """Short cycles with an edge of kind `wanted` (all others being of any kind in the view), shortest first.

        Per component the shortest ones found, at most WITNESSES in all.
        """
        out: dict[frozenset[int], Cycle] = {}
        steps = SEARCH_STEPS
        for component in sorted(self.components, key=len):
            inside = set(component)
            best = len(inside) + 1
            looked = 0
            for node in sorted(component):
                for target, via in zip(self.out[node], self.via[node], strict=True):
                    if target not in inside or not self._is_kind(via, wanted):
                        continue
                    if steps <= 0 and looked:
                        break
                    looked += 1
                    path, used = self._path(target, node, inside, best - 1)
                    steps -= used
                    if path is None:
                        continue
                    cycle = self._cycle([(node, via), *path])
                    if accept(cycle):
                        best = min(best, len(cycle))
                        out.setdefault(frozenset(e.source for e in cycle), cycle)
                if len(out) >= 4 * WITNESSES:
                    break
        return sorted(out.values(), key=len)[:WITNESSES]

    def _is_kind(self, via: int, wanted: int) -> bool:
        if via >= 0:
            return bool(self.graph.kind[via] & wanted)
        return via == _TO_MOMENT and bool(wanted & REAL_TIME)

    def _path(self, start: int, goal: int, inside: set[int], limit: int) -> tuple[list[tuple[int, int]] | None, int]:
        """A shortest path as (node, edge that leaves it), of at most `limit` edges between transactions."""
        came: dict[int, tuple[int, int]] = {}
        distance = {start: 0}
        queue = deque([start])
        done: set[int] = set()
        while queue:
            node = queue.popleft()
            if node in done:
                continue
            done.add(node)
            if node == goal:
                path: list[tuple[int, int]] = []
                while node != start:
                    path.append(came[node])
                    node = came[node][0]
                return path[::-1], len(done)
            for target, via in zip(self.out[node], self.via[node], strict=True):
                if target not in inside or target in done:
                    continue
                free = via in (_WITHIN, _MOMENTS)
                length = distance[node] + (0 if free else 1)
                if length <= limit and length < distance.get(target, limit + 1):
                    distance[target] = length
                    came[target] = (node, via)
                    if free:
                        queue.appendleft(target)
                    else:
                        queue.append(target)
        return None, len(done)

    def _cycle(self, walk: list[tuple[int, int]]) -> Cycle:
        """A closed walk over nodes as edges between transactions, smallest transaction first."""
        first = next(i for i, (_, via) in enumerate(walk) if via >= 0 or via == _TO_MOMENT)
        walk = walk[first:] + walk[:first]
        edges: list[Edge] = []
        leaving: int | None = None
        for node, via in walk:
            transaction = self._transaction(node)
            if leaving is not None and transaction is not None:
                edges.append(Edge(leaving, transaction, REAL_TIME))
                leaving = None
            if via >= 0:
                edges.append(self.graph.edge(via))
            elif via == _TO_MOMENT:
                leaving = transaction
        closing = self._transaction(walk[0][0])
        if leaving is not None and closing is not None:
            edges.append(Edge(leaving, closing, REAL_TIME))
        start = min(range(len(edges)), key=lambda i: edges[i].source)
        return tuple(edges[start:] + edges[:start])

    def _transaction(self, node: int) -> int | None:
        """Whose node this is; None for a moment."""
        place = node // self._width
        return self.members[place] if place < len(self.members) else None


def has_adjacent_anti_dependencies(cycle: Cycle) -> bool:
    """Are two rw edges in a row? Only then snapshot isolation allows the cycle."""
    return any(a.kind == RW and b.kind == RW for a, b in zip(cycle, (*cycle[1:], cycle[0]), strict=True))
