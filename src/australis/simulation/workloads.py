"""What the simulated sessions do. Each workload has an invariant that the oracle looks at in every snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from australis.keyspace import SystemRelation, ddl_key, relation_id, relation_prefix, relation_range
from australis.protocol.messages import Mode, ModeFlag
from australis.simulation.roles import Ask, Plan, Script, Session

KEY_SHARE, SHARE = int(Mode.KEY_SHARE), int(Mode.SHARE)
NO_KEY_UPDATE, UPDATE = int(Mode.NO_KEY_UPDATE), int(Mode.UPDATE)
BLIND, LOCK, DELETE, VALIDATE = (
    int(ModeFlag.BLIND),
    int(ModeFlag.LOCK_ONLY),
    int(ModeFlag.DELETE),
    int(ModeFlag.VALIDATE_ONLY),
)

DATABASE = 1
RELATIONS = {
    name: relation_id(DATABASE, number)
    for number, name in enumerate(
        ("bank", "append", "register", "unique", "unique_index", "parent", "child", "doctor", "versioned", "tag"), 1
    )
}
SEQUENCE = relation_prefix(SystemRelation.SEQUENCES) + bytes(8)
PROBE = b"\xee"
"""How keys of no workload end: written last, to see that anything can be."""

ROWS = 6
ACCOUNTS = 5
BALANCE = 10


def row(relation: str, number: int) -> bytes:
    """The key of a row."""
    return relation_prefix(RELATIONS[relation]) + bytes([number])


def whole(relation: str) -> tuple[bytes, bytes]:
    """All keys of a relation."""
    return relation_range(RELATIONS[relation])


def split_points() -> list[bytes]:
    """Where ranges of adjudicators and shards may begin: relations, and their middles."""
    points = []
    for relation in RELATIONS:
        points += [whole(relation)[0], row(relation, ROWS // 2)]
    return points


def _two(session: Session, count: int = ROWS) -> tuple[int, int]:
    one, other = session.world.rng.sample(range(count), 2)
    return one, other


def bank(session: Session) -> Script:
    """Move money between accounts, or add it all up. Missing accounts hold BALANCE."""
    if session.world.rng.random() < 0.2:
        yield Ask([row("bank", number) for number in range(ACCOUNTS)])
        return Plan()
    one, other = (row("bank", number) for number in _two(session, ACCOUNTS))
    values, _ = yield Ask([one, other])
    held = {key: BALANCE if values[key] is None else values[key] for key in (one, other)}
    amount = session.world.rng.randint(1, 5)
    return Plan(
        [(one, NO_KEY_UPDATE, held[one] - amount), (other, NO_KEY_UPDATE, held[other] + amount)],
        relations=[RELATIONS["bank"]],
    )


def append(session: Session) -> Script:
    """Read lists, and append to some of them."""
    keys = [row("append", number) for number in session.world.rng.sample(range(4), 2)]
    values, _ = yield Ask(keys)
    writes = [
        (key, NO_KEY_UPDATE, [*(values[key] or []), _stamp(session)])
        for key in keys
        if session.world.rng.random() < 0.7
    ]
    return Plan(writes, relations=[RELATIONS["append"]] if writes else [])


def _stamp(session: Session) -> int:
    assert session.transaction is not None, "asked within a transaction"
    return int.from_bytes(session.transaction.txid[:8], "big")


def register(session: Session) -> Script:
    """Write rows without reading them, or read them all."""
    rng = session.world.rng
    keys = [row("register", number) for number in range(3)]
    if rng.random() < 0.4:
        yield Ask(keys)
        return Plan()
    return Plan(
        [(key, NO_KEY_UPDATE, _stamp(session)) for key in rng.sample(keys, rng.randint(1, 2))],
        relations=[RELATIONS["register"]],
    )


def unique(session: Session) -> Script:
    """Insert rows under one of few unique values, or delete them; the index entry is the lock."""
    rng = session.world.rng
    value = row("unique_index", rng.randrange(ROWS))
    values, _ = yield Ask([value])
    relations = [RELATIONS["unique"]]
    held = values[value]
    if held is None:
        number = rng.randrange(200)
        primary = row("unique", number)
        there, _ = yield Ask([primary])
        if there[primary] is not None:
            return Plan()
        return Plan([(primary, UPDATE, value[-1]), (value, UPDATE, number)], relations=relations)
    primary = row("unique", held)
    return Plan([(primary, UPDATE | DELETE, None), (value, UPDATE | DELETE, None)], relations=relations)


def foreign(session: Session) -> Script:
    """Insert children under parents (KEY SHARE), delete parents that have none, update parents."""
    rng = session.world.rng
    number = rng.randrange(3)
    parent = row("parent", number)
    # children of a parent, by number: 10 * parent + something
    span = row("child", 10 * number), row("child", 10 * number + 10)
    values, rows = yield Ask([parent], [span])
    there = values[parent] is not None
    children = [key for piece in rows.values() for key in piece]
    dice = rng.random()
    relations = [RELATIONS["parent"], RELATIONS["child"]]
    if not there:
        return Plan([(parent, UPDATE, 0)], relations=relations[:1])
    if dice < 0.5:
        child = row("child", 10 * number + rng.randrange(10))
        if child in children:
            return Plan([(child, UPDATE | DELETE, None)], relations=relations[1:])
        return Plan([(child, UPDATE, number), (parent, KEY_SHARE | LOCK, None)], relations=relations)
    if dice < 0.6:  # FOR UPDATE of the parent, and something written elsewhere
        tag = row("tag", rng.randrange(ROWS))
        return Plan([(parent, UPDATE | LOCK, None), (tag, NO_KEY_UPDATE, number)], relations=relations[:1])
    if dice < 0.75:
        return Plan([(parent, NO_KEY_UPDATE, values[parent] + 1)], relations=relations[:1])
    if children:
        child = rng.choice(children)
        return Plan([(child, UPDATE | DELETE, None)], relations=relations[1:])
    return Plan([(parent, UPDATE | DELETE, None)], relations=relations[:1])


def sequence(session: Session) -> Script:
    """Take a range of numbers from a sequence, or set it."""
    values, _ = yield Ask([SEQUENCE])
    bound, epoch = values[SEQUENCE] or (0, 0)
    if session.world.rng.random() < 0.1:
        return Plan([(SEQUENCE, NO_KEY_UPDATE, (0, epoch + 1))])
    return Plan([(SEQUENCE, NO_KEY_UPDATE, (bound + 5, epoch))], note=(epoch, bound))


def doctors(session: Session) -> Script:
    """SERIALIZABLE: go off call only if somebody else stays on (write skew). Read by rows, ranges, or an index."""
    rng = session.world.rng
    keys = [row("doctor", number) for number in (0, ROWS - 1)]
    mine = rng.choice(keys)
    relations = [RELATIONS["doctor"]]
    values, _ = yield Ask(keys)
    on = {key: values[key] is None or values[key] for key in keys}
    other = keys[1 - keys.index(mine)]
    if on[mine] and not on[other]:
        return Plan()  # has read only: ends without a message
    plan = Plan([(mine, NO_KEY_UPDATE, not on[mine])], relations=relations)
    how = rng.randrange(3)
    if how == 0:
        plan.writes.append((other, SHARE | VALIDATE, None))
    elif how == 1:
        plan.checks = [(*whole("doctor"), SHARE)]
    else:
        plan.scans = relations
        plan.parts = [whole("doctor")]
    return plan


def hot(session: Session) -> Script:
    """All kinds of locks on very few rows of several adjudicators: what conflicts, does here."""
    rng = session.world.rng
    keys = [row(relation, 50) for relation in ("bank", "append", "register", "tag")]
    chosen = rng.sample(keys, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.7:
        yield Ask(chosen)
    writes: list[tuple[bytes, int, Any]] = [(chosen[0], rng.choice((NO_KEY_UPDATE, UPDATE)), _stamp(session))]
    for key in chosen[1:]:
        mode = rng.choice((KEY_SHARE | LOCK, KEY_SHARE | LOCK, SHARE | LOCK, SHARE | VALIDATE, NO_KEY_UPDATE, UPDATE))
        writes.append((key, mode, _stamp(session)))
    rng.shuffle(writes)
    return Plan(writes)


def versioned(session: Session) -> Script:
    """DDL and writers of the same relation (A5, Q5). The schema's number is a row of the system range."""
    rng = session.world.rng
    counter = relation_prefix(SystemRelation.CLUSTER)
    relation = RELATIONS["versioned"]
    if rng.random() < 0.35:
        values, rows = yield Ask([counter], [(ddl_key(0), ddl_key(1 << 32))])
        n = 1 + max((int.from_bytes(key[8:], "big") for piece in rows.values() for key in piece), default=0)
        rewrite = rng.random() < 0.4
        keys = [row("versioned", number) for number in (0, ROWS - 1)]
        writes = [(ddl_key(n), UPDATE, n), (counter, NO_KEY_UPDATE, n)]
        if rewrite:  # its result depends on rows
            yield Ask(keys)
            writes.append((row("tag", 1), NO_KEY_UPDATE, n))
        return Plan(
            writes,
            relations=[RELATIONS["tag"]] if rewrite else [],
            ddl=(n, [relation], [relation] if rewrite else []),
            parts=[whole("versioned")] if rng.random() < 0.7 else [],
        )
    key = row("versioned", rng.choice((0, ROWS - 1)))
    values, _ = yield Ask([key, counter])
    return Plan([(key, NO_KEY_UPDATE, values[counter] or 0)], relations=[relation])


WORKLOADS: dict[str, Callable[[Session], Script]] = {
    "bank": bank,
    "append": append,
    "register": register,
    "unique": unique,
    "foreign": foreign,
    "sequence": sequence,
    "doctors": doctors,
    "ddl": versioned,
    "hot": hot,
}

WEIGHTS = {"mix": tuple(WORKLOADS)}


def chooser(workload: str) -> Callable[[Session], tuple[str, Script]]:
    """Return what gives a session its next transaction."""
    names: Any = WEIGHTS.get(workload, (workload,))

    def choose(session: Session) -> tuple[str, Script]:
        name = session.world.rng.choice(names)
        return name, WORKLOADS[name](session)

    return choose
