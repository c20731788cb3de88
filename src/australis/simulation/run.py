"""One seed: builds a cluster, lets it suffer, heals it, asks the oracle."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from australis.errors import AustralisError
from australis.keyspace import KEYSPACE_END
from australis.partition_map import PartitionMap, Range, Shard
from australis.protocol.messages import JournalBegins
from australis.simulation import workloads
from australis.simulation.engine import Engine
from australis.simulation.oracle import judge
from australis.simulation.roles import (
    AdjudicatorProcess,
    Ask,
    Cluster,
    Plan,
    Script,
    Session,
    ShardProcess,
    Transaction,
)
from australis.simulation.world import BEGIN, MS, US, Faults, HostClock, Process, World

TRANSACTIONS = 6
HEAL_AT = 400 * MS
END_AT = 900 * MS


@dataclass(slots=True)
class Result:
    """What came of a seed."""

    seed: int
    workload: str
    wrong: list[str]
    digest: int
    events: int
    committed: int
    transactions: list[Transaction]
    trace: list[str] = field(default_factory=list)


def draw_faults(rng: random.Random) -> Faults:
    """Some runs are nearly calm, others are not; one in six has clocks that break their bound."""
    hard = rng.random()
    error = rng.choice((0, 1, 3)) * MS
    drift = error if rng.random() < 5 / 6 else error + rng.randint(1, 20) * MS
    return Faults(
        loss=rng.choice((0, 0.02, 0.1)) * hard,
        double=rng.choice((0, 0.05, 0.2)) * hard,
        delay=rng.choice((300 * US, 1 * MS, 3 * MS)),
        late=rng.choice((0, 0.04, 0.15)) * hard,
        takeover=rng.choice((0, 25, 50, 100)) * MS,
        pause=rng.choice((0, 0.5)),
        error=error,
        drift=drift,
        slow_disk=rng.choice((0, 0, 0.15)),
        stray=rng.choice((0, 0, 20)) * MS,
        moves=rng.choice((0, 20, 80)) * MS,
        think=0.35,
        sessions=5,
    )


def draw_map(rng: random.Random, adjudicators: int, shards: int) -> PartitionMap:
    """Ranges dealt out at random; several per owner."""
    points = workloads.split_points()

    def deal(owners: int, most: int) -> list[Range]:
        bounds = [b"", *sorted(rng.sample(points, rng.randint(owners, most))), KEYSPACE_END]
        return [Range(lo, hi, rng.randrange(owners)) for lo, hi in pairwise(bounds)]

    return PartitionMap(
        1,
        range(adjudicators),
        deal(adjudicators, len(points)),
        [Shard(number, [f"s{number}"]) for number in range(shards)],
        deal(shards, 4),
    )


class Control(Process):
    """The control plane: take-overs, moves, new journals, at the wrong moments."""

    def __init__(self, cluster: Cluster, clocks: list[HostClock]) -> None:
        super().__init__(cluster.world, "control")
        self.cluster, self._clocks = cluster, clocks
        faults = cluster.world.faults
        self._newcomer: int | None = None
        self._schedule(faults.takeover, self._take_over)
        self._schedule(faults.moves, self._move)
        self._schedule(faults.stray, self._stray)
        self._schedule(60 * MS if faults.pause or faults.loss else 0, self._disturb)
        if faults.moves and cluster.world.rng.random() < 0.4:
            self._newcomer = len(cluster.engines)
            cluster.world.at(int(cluster.world.rng.random() * 200 * MS), self._announce)

    def _schedule(self, mean: int, action: Any) -> None:
        if mean:
            self.world.at(int(self.world.rng.expovariate(1 / mean)) + 1, self._do, mean, action)

    def _do(self, mean: int, action: Any) -> None:
        if not self.world.calm:
            if self.cluster.serving:
                action()
            self._schedule(mean, action)

    def _take_over(self) -> None:
        """Another process claims a journal; the old one is dead, paused, or knows nothing of it."""
        world, rng = self.world, self.world.rng
        number = rng.choice(sorted(self.cluster.serving))
        old = self.cluster.serving[number]
        dice = rng.random()
        if dice < 0.3:
            old.kill()
        elif dice < 0.3 + world.faults.pause * 0.5:
            old.pause(int(rng.random() * 60 * MS))
        elif dice < 0.8:
            world.note(f"{old.name} is left alone")
        else:
            old.hand_over()
        AdjudicatorProcess(self.cluster, number, rng.choice(self._clocks))

    def _disturb(self) -> None:
        world, rng = self.world, self.world.rng
        dice = rng.random()
        cluster = self.cluster
        processes: list[Process] = [*cluster.serving.values()]
        shards = [shard for group in cluster.shards.values() for shard in group]
        if dice < 0.25:
            rng.choice(shards).lose_unsynced()
        elif dice < 0.4:
            rng.choice(list(cluster.engines.values())).crash()
        elif dice < 0.6:
            rng.choice(self._clocks).jump()
        elif dice < 0.8 and world.faults.pause:
            rng.choice([*processes, *shards]).pause(int(rng.random() * 40 * MS))
        else:
            one = rng.choice(processes).name
            others = [process.name for process in processes] + [engine.name for engine in cluster.engines.values()]
            world.cut(one, rng.choice(others), world.now + int(rng.random() * 60 * MS))
            world.note(f"{one} is cut off")

    def _stray(self) -> None:
        self.world.rng.choice(list(self.cluster.engines.values())).stray()

    def _move(self) -> None:
        cluster, rng = self.cluster, self.world.rng
        piece = rng.choice(cluster.map.keys)
        lo, hi = piece.lo, piece.hi
        inside = [point for point in workloads.split_points() if lo < point < hi]
        if inside and rng.random() < 0.5:
            lo = rng.choice(inside)
        if lo == b"" and rng.random() < 0.7:
            return  # the system range moves rarely
        target = rng.choice(sorted(cluster.serving))
        owner = cluster.serving.get(piece.owner)
        if owner is not None and target != piece.owner and target in cluster.map.adjudicators:
            owner.enter(owner.release, lo, hi, target)

    def _announce(self) -> None:
        """Another adjudicator: its journal begins with a record of the system journal (W2).

        Said again until it is answered: once the record is there, every watermark waits for the newcomer.
        """
        number, cluster = self._newcomer, self.cluster
        if number is None or number in cluster.born:
            return
        owner = cluster.serving.get(cluster.system)
        if owner is not None:
            cluster.engines.setdefault(number, Engine(self.world, number))
            owner.enter(owner.announce, self, number)
        self.world.at(20 * MS, self._announce)

    def receive(self, source: Process, message: Any) -> None:
        """The system journal has it: start the newcomer."""
        number = self._newcomer
        if isinstance(message, JournalBegins) and number is not None and number not in self.cluster.born:
            cluster = self.cluster
            cluster.born[number] = message.tau
            known = cluster.map
            cluster.map = PartitionMap(
                known.version + 1, [*known.adjudicators, number], known.keys, known.shards, known.placement
            )
            for process in cluster.serving.values():
                process.learn_map(cluster.map)
            AdjudicatorProcess(cluster, number, self.world.rng.choice(self._clocks))

    def heal(self) -> None:
        """No faults any more; everybody who is needed is there."""
        world, cluster = self.world, self.cluster
        world.note("healed")
        world.calm = True
        for clock in self._clocks:
            clock.jump()  # who is ahead by more than T leads no vote: wrong clocks cost availability
        for number in [*cluster.first_ranges, *cluster.born]:
            AdjudicatorProcess(cluster, number, self._clocks[0])


def _everything(session: Session) -> Script:
    yield Ask([], [(b"", KEYSPACE_END)])
    return Plan()


def _last_write(session: Session) -> Script:
    """One transaction over all adjudicators must get through when all is well."""
    keys = [
        piece.lo + workloads.PROBE if piece.lo else bytes(8) + workloads.PROBE for piece in session.cluster.map.keys
    ]
    yield Ask(keys)
    return Plan([(key, workloads.NO_KEY_UPDATE, 1) for key in keys])


def run(
    seed: int, workload: str | None = None, *, trace: bool = False, storm: Mapping[str, float] | None = None
) -> Result:
    """Run one seed; `storm` sets some of its faults. What the code under test asserts or refuses is an error, too."""
    lines: list[str] = []
    world: list[World] = []
    try:
        return _run(seed, workload, lines if trace else None, world, storm or {})
    except (AssertionError, AustralisError, ValueError) as error:
        text = f"at {(world[0].now - BEGIN) / MS:.3f} ms: {type(error).__name__}: {error}"
        return Result(seed, workload or "?", [text], world[0].digest, world[0].events, 0, [], lines)


def _run(
    seed: int, workload: str | None, lines: list[str] | None, made: list[World], storm: Mapping[str, float]
) -> Result:
    rng = random.Random(seed * 2 + 1)
    faults = replace(draw_faults(rng), **storm)  # type: ignore[arg-type]
    world = World(seed, faults, lines)
    made.append(world)
    adjudicators = rng.choice((2, 2, 3))
    shards = rng.choice((1, 2))
    chosen = workload if workload is not None else rng.choice(("mix", "mix", *workloads.WORKLOADS))
    partition = draw_map(rng, adjudicators, shards)
    cluster = Cluster(world, partition)
    clocks = [HostClock(world) for _ in range(adjudicators + 1)]
    world.note(f"seed {seed} workload {chosen} {faults}")
    for number in range(adjudicators):
        cluster.engines[number] = Engine(world, number)
    for number in range(adjudicators):
        AdjudicatorProcess(cluster, number, clocks[number])
    for number in range(shards):
        pieces = [piece for piece in partition.placement if piece.owner == number]
        cluster.shards[number] = [
            ShardProcess(cluster, number, [(piece.lo, piece.hi) for piece in pieces])
            for _ in range(rng.choice((1, 1, 2)))
        ]
    history: list[Transaction] = []
    world.run(BEGIN + 10 * MS)
    host = HostClock(world)
    sessions = [
        Session(
            cluster,
            number,
            host if number < 2 else HostClock(world),
            workloads.chooser(chosen),
            TRANSACTIONS,
            history,
        )
        for number in range(faults.sessions)
    ]
    control = Control(cluster, clocks)
    world.run(BEGIN + HEAL_AT)
    control.heal()
    for session in sessions:
        session.left = 0
    world.run(BEGIN + HEAL_AT + 200 * MS)
    clock = HostClock(world)
    last = iter([("last write", _last_write), ("last write", _last_write), ("last read", _everything)])

    def scripts(session: Session) -> tuple[str, Script]:
        session.map = cluster.map
        name, script = next(last)
        return name, script(session)

    Session(cluster, faults.sessions, clock, scripts, 3, history)
    world.run(BEGIN + END_AT)
    wrong = judge(list(cluster.engines.values()), history, faults.drift <= faults.error)
    if all(item.outcome != "committed" for item in history if item.workload == "last write"):
        wrong.append("healed, but nothing commits: " + str([item.detail for item in history[-3:]]))
    if history[-1].outcome != "committed":
        wrong.append(f"healed, but nothing can be read: {history[-1].outcome} {history[-1].detail}")
    for item in history[-1:]:
        item.end = item.end or world.now
    wrong += [f"{item.txid[-2:].hex()} ({item.workload}) never ended" for item in history if item.outcome == "open"]
    committed = sum(item.outcome == "committed" for item in history)
    return Result(seed, chosen, wrong, world.digest, world.events, committed, history, lines or [])
