"""From operations to dependencies: version orders of lists and registers, their edges, and what is wrong at first
sight.

Lists show their whole past, so that one read orders all versions before it. Registers show one value; their versions
are ordered where a transaction replaced what it had read, and, if real time counts, where one write was acknowledged
before the other began.

Unknown outcomes, soundly: such a transaction counts as committed if a committed one read what it wrote, and does not
count at all otherwise; no real-time edge leaves it. Every edge that is left out can only hide an anomaly, never invent
one. Pure; reads of transactions that did not commit are not judged.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from australis.simulation.anomalies import Findings, Name
from australis.simulation.cycles import RW, SESSION, WR, WW, Graph, Key
from australis.simulation.history import Append, Get, HistoryError, Outcome, Read, Transaction, Write

LIST, REGISTER = "list", "register"
MISSING_EDGES = 4096  # per key, between readers of the longest list and appends that nobody read

Place = tuple[Key, int]  # a value of a key


@dataclass
class Dependencies:
    """Who wrote what, who is known to have committed, and the graph that follows."""

    transactions: tuple[Transaction, ...]
    findings: Findings
    real_time: bool
    graph: Graph = field(init=False)
    writer: dict[Place, int] = field(default_factory=dict)
    committed: list[bool] = field(init=False)
    orders: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    _last: dict[tuple[int, Key], int] = field(default_factory=dict)  # what a transaction left in a key
    _reads: dict[Key, list[tuple[int, tuple[int, ...]]]] = field(default_factory=lambda: defaultdict(list))
    _outside: dict[Key, list[tuple[int, tuple[int, ...]]]] = field(default_factory=lambda: defaultdict(list))
    _gets: dict[Key, list[tuple[int, int | None]]] = field(default_factory=lambda: defaultdict(list))
    _written: dict[Key, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    _lost: set[Place] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._index_writes()
        self.committed = [t.outcome is Outcome.OK for t in self.transactions]
        self._recognise_committed()
        self.graph = Graph(
            [t.invoked for t in self.transactions],
            [t.completed if t.outcome is Outcome.OK else None for t in self.transactions],
        )
        for number, committed in enumerate(self.committed):
            if committed:
                self._replay(number)
        for key in sorted(k for k in {*self._reads, *self._written} if k[0] == LIST):
            self._list(key)
        for key in sorted(k for k in {*self._gets, *self._written} if k[0] == REGISTER):
            self._register(key)

    # ------------------------------------------------------------------ who wrote, who committed

    def _index_writes(self) -> None:
        for number, one in enumerate(self.transactions):
            if one.completed < one.invoked:
                raise HistoryError(f"transaction {number} ends before it begins")
            for operation in one.operations:
                if isinstance(operation, Append | Write):
                    key = (LIST if isinstance(operation, Append) else REGISTER, operation.key)
                    if self.writer.setdefault((key, operation.value), number) != number or (
                        (number, key) in self._last and self._last[number, key] == operation.value
                    ):
                        raise HistoryError(f"value {operation.value} is written to {key[0]} {key[1]} twice")
                    self._last[number, key] = operation.value

    def _recognise_committed(self) -> None:
        """Mark unknown transactions whose writes were read by committed ones, and so on."""
        unknown: dict[Key, dict[int, int]] = defaultdict(dict)
        for (key, value), number in self.writer.items():
            if self.transactions[number].outcome is Outcome.UNKNOWN:
                unknown[key][value] = number
        if not unknown:
            return
        waiting = [number for number, committed in enumerate(self.committed) if committed]
        while waiting:
            for operation in self.transactions[waiting.pop()].operations:
                seen: Iterable[int]
                if isinstance(operation, Read):
                    mine = unknown.get((LIST, operation.key))
                    seen = mine.keys() & set(operation.values) if mine else ()
                elif isinstance(operation, Get):
                    mine = unknown.get((REGISTER, operation.key))
                    seen = (operation.value,) if mine and operation.value in mine else ()
                else:
                    continue
                for value in seen:
                    if mine is not None and not self.committed[mine[value]]:
                        self.committed[mine[value]] = True
                        waiting.append(mine[value])

    # ------------------------------------------------------------------ inside one transaction

    def _replay(self, number: int) -> None:
        """Hold a transaction to its own reads and writes, and sort what it read from others."""
        appended: dict[int, list[int]] = {}
        lists: dict[int, tuple[int, ...]] = {}
        written: dict[int, int] = {}
        registers: dict[int, int | None] = {}
        for operation in self.transactions[number].operations:
            if isinstance(operation, Append):
                appended.setdefault(operation.key, []).append(operation.value)
                self._written[LIST, operation.key].append((number, operation.value))
            elif isinstance(operation, Read):
                self._replay_read(number, operation, appended.get(operation.key), lists)
            elif isinstance(operation, Write):
                written[operation.key] = operation.value
                self._written[REGISTER, operation.key].append((number, operation.value))
            elif isinstance(operation, Get):
                key, value = operation.key, operation.value
                if key in written:
                    if value != written[key]:
                        self.findings.add(
                            Name.INTERNAL,
                            f"{{0}} wrote {written[key]} to register {key}, then read {value} from it",
                            number,
                        )
                elif key in registers:
                    if value != registers[key]:
                        self.findings.add(
                            Name.NON_REPEATABLE, f"{{0}} read register {key} as {registers[key]}, then {value}", number
                        )
                else:
                    registers[key] = value
                    self._gets[REGISTER, key].append((number, value))

    def _replay_read(self, number: int, read: Read, mine: list[int] | None, known: dict[int, tuple[int, ...]]) -> None:
        key, values = read.key, read.values
        outside = values
        if mine:
            outside = values[: -len(mine)]
            if values[-len(mine) :] != tuple(mine):
                self.findings.add(
                    Name.INTERNAL,
                    f"{{0}} appended {mine} to list {key}, then read it as {show(values)}",
                    number,
                )
                own = set(mine)
                outside = tuple(v for v in values if v not in own)
        if key in known:
            if known[key] != outside:
                self.findings.add(
                    Name.NON_REPEATABLE,
                    f"{{0}} read list {key} as {show(known[key])}, then {show(outside)} (without its own)",
                    number,
                )
        else:
            known[key] = outside
            self._outside[LIST, key].append((number, outside))
        self._reads[LIST, key].append((number, values))

    # ------------------------------------------------------------------ lists

    def _list(self, key: Key) -> None:
        reads = self._reads[key]
        order = max((values for _, values in reads), key=len, default=())
        self.orders[key] = order
        self._compare(key, order, reads)
        owners = self._owners(key, order, reads)
        self._find_lost_appends(key)
        previous: int | None = None
        for owner in owners:
            if owner is not None:
                if previous is not None:
                    self.graph.add(previous, owner, WW, key)
                previous = owner
        place = {value: i for i, value in enumerate(order)}
        unread = [
            number
            for number, value in self._written[key]
            if value not in place and (key, value) not in self._lost and self.committed[number]
        ]
        if previous is not None:
            for number in unread:
                self.graph.add(previous, number, WW, key)
        following = self._following(owners)
        for reader, values in self._outside[key]:
            self._list_read(key, order, place, owners, following, reader, values)
        self._missing(key, order, unread)
        self._lost_updates(key, order, place, owners)
        if self.real_time:
            self._stale(key, order, owners, unread)

    def _compare(self, key: Key, order: tuple[int, ...], reads: list[tuple[int, tuple[int, ...]]]) -> None:
        """All versions must be prefixes of the longest one, in which nothing is twice."""
        longest = next((n for n, values in reads if values == order), -1)
        for number, values in reads:
            if order[: len(values)] != values:
                at = next(i for i, (a, b) in enumerate(zip(order, values, strict=False)) if a != b)
                self.findings.add(
                    Name.INCOMPATIBLE,
                    f"list {key[1]} was read as {show(values)} by {{0}} and as {show(order)} by {{1}}:"
                    f" they differ at place {at}",
                    number,
                    longest,
                )
            if len(set(values)) != len(values):
                twice = sorted({v for v in values if values.count(v) > 1})
                self.findings.add(
                    Name.DUPLICATE, f"{{0}} read list {key[1]} as {show(values)}: {twice} more than once", number
                )

    def _owners(self, key: Key, order: tuple[int, ...], reads: list[tuple[int, tuple[int, ...]]]) -> list[int | None]:
        """The committed writer of every value of a version order; what has none is reported."""
        owners: list[int | None] = []
        aborted: list[tuple[int, int]] = []
        for value in order:
            owner = self.writer.get((key, value))
            if owner is not None and not self.committed[owner]:
                aborted.append((value, owner))
                owner = None
            owners.append(owner)
        bad = {value for value, _ in aborted}
        unowned = {v for v in order if (key, v) not in self.writer}
        # versions that are no prefix of the longest one may hold what it does not
        for number, values in reads:
            if order[: len(values)] != values:
                for value in values:
                    writer = self.writer.get((key, value))
                    if writer is None:
                        unowned.add(value)
                    elif not self.committed[writer]:
                        bad.add(value)
            for value in bad.intersection(values) if bad else ():
                self.findings.add(
                    Name.G1A,
                    f"{{0}} read {value} in list {key[1]}, which {{1}} had appended, and that did not commit",
                    number,
                    self.writer[key, value],
                )
            for value in unowned.intersection(values) if unowned else ():
                self.findings.add(
                    Name.GARBAGE, f"{{0}} read {value} in list {key[1]}, which nobody had appended", number
                )
        for value, owner in aborted:
            later = next((o for o in owners[order.index(value) + 1 :] if o is not None), None)
            if later is not None:
                self.findings.add(
                    Name.DIRTY_UPDATE,
                    f"{{0}} appended to list {key[1]} behind {value} of {{1}}, which did not commit",
                    later,
                    owner,
                )
        return owners

    @staticmethod
    def _following(owners: list[int | None]) -> list[int | None]:
        """Per place the writer of the first committed value at or behind it."""
        out: list[int | None] = [None] * (len(owners) + 1)
        for i in range(len(owners) - 1, -1, -1):
            out[i] = owners[i] if owners[i] is not None else out[i + 1]
        return out

    def _list_read(
        self,
        key: Key,
        order: tuple[int, ...],
        place: dict[int, int],
        owners: list[int | None],
        following: list[int | None],
        reader: int,
        values: tuple[int, ...],
    ) -> None:
        after = 0
        if values:
            last = values[-1]
            owner = self.writer.get((key, last))
            if owner is not None and owner != reader and self.committed[owner]:
                self.graph.add(owner, reader, WR, key)
                if self._last[owner, key] != last:
                    self.findings.add(
                        Name.G1B,
                        f"{{0}} read list {key[1]} up to {last} of {{1}}, which left {self._last[owner, key]} there",
                        reader,
                        owner,
                    )
            after = place.get(last, len(order)) + 1
        if after < len(following):
            later = following[after]
            if later is not None:
                self.graph.add(reader, later, RW, key)

    def _missing(self, key: Key, order: tuple[int, ...], unread: list[int]) -> None:
        """Committed appends that nobody read come behind the longest version, hence behind its readers."""
        if not unread:
            return
        readers = [number for number, values in self._outside[key] if len(values) == len(order)]
        readers.sort(key=lambda n: -self.transactions[n].invoked)
        for reader in readers[: max(1, MISSING_EDGES // len(unread))]:
            for number in unread:
                self.graph.add(reader, number, RW, key)

    def _lost_updates(self, key: Key, order: tuple[int, ...], place: dict[int, int], owners: list[int | None]) -> None:
        """Whoever read a list and appended to it must have appended to what it read."""
        first: dict[int, int] = {}
        for number, value in self._written[key]:
            at = place.get(value, len(order))
            if (key, value) not in self._lost:
                first[number] = min(at, first.get(number, at))
        for reader, values in self._outside[key]:
            if reader not in first:
                continue
            between = [o for o in owners[len(values) : first[reader]] if o is not None and o != reader]
            if between:
                self.findings.add(
                    Name.LOST_UPDATE,
                    f"{{0}} read list {key[1]} as {show(values)} and appended to it, not knowing of"
                    f" {show(order[len(values) : first[reader]])} by {{1}}, which came before",
                    reader,
                    between[0],
                )

    def _find_lost_appends(self, key: Key) -> None:
        for reader, values in self._outside[key]:
            final = self.transactions[reader]
            if not final.final:
                continue
            there = set(values)
            for number, value in self._written[key]:
                one = self.transactions[number]
                if (
                    one.outcome is Outcome.OK
                    and one.completed < final.invoked
                    and value not in there
                    and (key, value) not in self._lost
                ):
                    self._lost.add((key, value))
                    self.findings.add(
                        Name.LOST,
                        f"{value}, appended to list {key[1]} by {{0}} and acknowledged, is not there in the end:"
                        f" {{1}} read {show(values)}",
                        number,
                        reader,
                    )

    def _stale(self, key: Key, order: tuple[int, ...], owners: list[int | None], unread: list[int]) -> None:
        """Per place the earliest acknowledgement at or behind it: whoever began later must have read up to there."""
        completed = self.graph.completed
        best: tuple[int, int] | None = None
        for number in unread:
            end = completed[number]
            if end is not None and (best is None or end < best[0]):
                best = (end, number)
        earliest: list[tuple[int, int] | None] = [best] * (len(order) + 1)
        for i in range(len(order) - 1, -1, -1):
            owner = owners[i]
            end = completed[owner] if owner is not None else None
            if end is not None and owner is not None and (best is None or end < best[0]):
                best = (end, owner)
            earliest[i] = best
        for reader, values in self._outside[key]:
            missed = earliest[min(len(values), len(order))]
            if missed is not None and missed[1] != reader and missed[0] < self.transactions[reader].invoked:
                self.findings.add(
                    Name.STALE_READ,
                    f"{{0}} read list {key[1]} as {show(values)}, without what {{1}} had appended and was"
                    " acknowledged before the former began",
                    reader,
                    missed[1],
                )

    # ------------------------------------------------------------------ registers

    def _register(self, key: Key) -> None:
        written = [(n, v) for n, v in self._written[key] if self._last[n, key] == v]
        later: dict[int | None, set[int]] = defaultdict(set)  # version -> versions that are known to follow
        owners = {v: n for n, v in written}
        replaced: dict[tuple[int | None], list[int]] = defaultdict(list)
        for reader, value in self._gets[key]:
            self._register_read(key, reader, value)
            mine = self._last.get((reader, key))
            if mine is not None:
                later[value].add(mine)
                replaced[(value,)].append(reader)
        for (read,), rivals in replaced.items():
            if len(rivals) > 1:
                self.findings.add(
                    Name.LOST_UPDATE,
                    f"{{0}} and {{1}} both read {read} from register {key[1]} and replaced it",
                    rivals[0],
                    rivals[1],
                )
        if self.real_time:
            self._order_by_time(written, later)
        preceded = {v for versions in later.values() for v in versions}
        later[None] |= {v for v in owners if v not in preceded}
        # no ww edges: one is known only where a wr edge or real time leads from the one writer to the other anyway
        for reader, value in self._gets[key]:
            for following in later.get(value, ()):
                if following in owners:
                    self.graph.add(reader, owners[following], RW, key)

    def _register_read(self, key: Key, reader: int, value: int | None) -> None:
        if value is None:
            return
        owner = self.writer.get((key, value))
        if owner is None:
            self.findings.add(Name.GARBAGE, f"{{0}} read {value} from register {key[1]}, which nobody wrote", reader)
        elif not self.committed[owner]:
            self.findings.add(
                Name.G1A,
                f"{{0}} read {value} from register {key[1]}, which {{1}} wrote, and that did not commit",
                reader,
                owner,
            )
        else:
            self.graph.add(owner, reader, WR, key)
            if self._last[owner, key] != value and owner != reader:
                self.findings.add(
                    Name.G1B,
                    f"{{0}} read {value} from register {key[1]}, where {{1}} left {self._last[owner, key]}",
                    reader,
                    owner,
                )

    def _order_by_time(self, written: list[tuple[int, int]], later: dict[int | None, set[int]]) -> None:
        """A write acknowledged before another began is an earlier version; only nearest ones are entered."""
        completed = self.graph.completed
        ended = sorted((end, n, v) for n, v in written if (end := completed[n]) is not None)
        begun = sorted((self.transactions[n].invoked, n, v) for n, v in written)
        nearest: list[tuple[int, int]] = []  # (acknowledged, version) of writes that no later one of these follows
        newest_begin = -1
        done = 0
        for invoked, _, version in begun:
            while done < len(ended) and ended[done][0] < invoked:
                end, number, value = ended[done]
                newest_begin = max(newest_begin, self.transactions[number].invoked)
                nearest.append((end, value))
                done += 1
            nearest = [(end, value) for end, value in nearest if end >= newest_begin]
            for _, value in nearest:
                if value != version:
                    later[value].add(version)

    # ------------------------------------------------------------------ sessions

    def add_sessions(self) -> None:
        """Edges from each transaction to the next one of its process, where the first was acknowledged."""
        sessions: dict[int, list[int]] = defaultdict(list)
        for number, one in enumerate(self.transactions):
            if one.outcome is Outcome.OK:
                sessions[one.process].append(number)
        for numbers in sessions.values():
            numbers.sort(key=lambda n: self.transactions[n].invoked)
            for before, after in itertools.pairwise(numbers):
                if self.transactions[before].completed <= self.transactions[after].invoked:
                    self.graph.add(before, after, SESSION)


def show(values: Iterable[int]) -> str:
    """A list, shortened in the middle."""
    items = [str(v) for v in values]
    if len(items) > 16:
        items = [*items[:4], f"… {len(items) - 12} …", *items[-8:]]
    return "[" + ", ".join(items) + "]"
