"""Rule J2 in the pure: the owner's state machine against a made-up stream that delays, doubles and loses (seeded)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from australis.journal.message import Queued, Summary, pack_message, unpack_message
from australis.journal.pipeline import Durable, Effect, Failed, Pipeline, Read, Refusal, Send
from australis.journal.record import START, Kind, Position, encode_record
from australis.journal.validity import Validator

CLUSTER = bytes(range(16))
SIZES = (1, 200, 1000)


def record(kind: Kind, last: Position, generation: int, txid: bytes, body: bytes) -> Queued:
    """A record behind another one."""
    encoded = encode_record(kind, 0, CLUSTER, generation, last.sequence + 1, last.hash, 0, 1, txid, body)
    return Queued(encoded.header, body, Position(last.sequence + 1, generation, encoded.hash), last.sequence + 1, 0)


def valid_bodies(stream: list[bytes]) -> list[bytes]:
    """What a fresh reader sees."""
    validator = Validator(CLUSTER, START)
    found = []
    for payload in stream:
        for header, hash, body in unpack_message(payload).records:
            entry = validator.add(header, hash, body)
            if entry is not None and entry.kind != Kind.CLAIM:
                found.append(entry.body)
    return found


class Owner:
    """A pipeline that has claimed the stream, and what it said."""

    def __init__(
        self, stream: list[bytes], generation: int, name: str, *, message_bytes: int = 1 << 20, patient: bool = False
    ) -> None:
        last = START
        if stream:
            validator = Validator(CLUSTER, START)
            for payload in stream:
                for header, hash, body in unpack_message(payload).records:
                    validator.add(header, hash, body)
            last = validator.last
        claim = record(Kind.CLAIM, last, generation, name.encode().ljust(16), b"")
        stream.append(pack_message([claim], last.generation, Summary())[0])
        self.name = name
        self.newest = claim.position
        self.pipeline = Pipeline(CLUSTER, name, claim.position, len(stream), Summary(), message_bytes=message_bytes)
        if patient:  # where time passes at random, an owner that gives up would be no finding
            self.pipeline.answer_seconds, self.pipeline.stall_seconds = 10.0, 1e9
        self.submitted: list[tuple[int, bytes]] = []
        self.durable = claim.position.sequence
        self.failed: Failed | None = None

    def records(self, count: int, size: int = 10) -> list[Queued]:
        made = []
        for _ in range(count):
            body = f"{self.name}.{self.newest.sequence + 1}".encode().ljust(size)
            one = record(Kind.TRANSACTION, self.newest, self.newest.generation, bytes(16), body)
            self.newest = one.position
            self.submitted.append((one.position.sequence, body))
            made.append(one)
        return made

    def note(self, effects: list[Effect]) -> list[Effect]:
        """Check what must hold of any list of effects, remember what was promised; the rest is returned."""
        rest: list[Effect] = []
        for effect in effects:
            assert self.failed is None, "an effect after Failed"
            if isinstance(effect, Durable):
                assert effect.sequence > self.durable, "said twice, or for less"
                self.durable = effect.sequence
            elif isinstance(effect, Failed):
                self.failed = effect
            else:
                rest.append(effect)
        return rest

    @property
    def promised(self) -> list[bytes]:
        return [body for sequence, body in self.submitted if sequence <= self.durable]


def sends(effects: list[Effect]) -> list[Send]:
    return [effect for effect in effects if isinstance(effect, Send)]


def after(stream: list[bytes], place: int) -> list[tuple[int, bytes]]:
    return [(index + 1, payload) for index, payload in enumerate(stream) if index >= place]


def test_acknowledgements_in_prefix_order() -> None:
    stream: list[bytes] = []
    owner = Owner(stream, 1, "a", message_bytes=1)
    sent = sends(owner.note(owner.pipeline.submit(owner.records(6), 0.0)))
    assert [send.expected for send in sent] == [1, 2, 3, 4]  # the window
    assert owner.pipeline.stored(sent[1].number, 3, 0.0) == []
    assert owner.pipeline.stored(sent[2].number, 4, 0.0) == []
    effects = owner.note(owner.pipeline.stored(sent[0].number, 2, 0.0))
    assert owner.durable == 4
    assert [send.expected for send in sends(effects)] == [5, 6]


def test_a_deposed_owners_later_appends_do_not_count() -> None:
    """TRAP 1: the rival's one record makes all later predictions true."""
    stream: list[bytes] = []
    old = Owner(stream, 1, "old", message_bytes=1)
    sent = sends(old.note(old.pipeline.submit(old.records(4), 0.0)))
    new = Owner(stream, 2, "new")  # takes place 2, which the first of the four was for
    answers: list[Effect] = []
    for send in sent:
        if send.expected == len(stream):
            stream.append(send.payload)
            answers += old.pipeline.stored(send.number, len(stream), 0.0)
        else:
            answers += old.pipeline.refused(send.number, Refusal.PLACE_TAKEN, 0.0)
    assert len(stream) == 5, "three of the four landed behind the claim"
    assert old.note(answers) == [Read(1)]
    assert old.note(old.pipeline.read(after(stream, 1), 5, 0.0)) == []
    assert old.failed is not None
    assert old.failed.fenced
    assert old.promised == []
    [mine] = sends(new.pipeline.submit(new.records(1), 0.0))
    assert new.note(new.pipeline.refused(mine.number, Refusal.PLACE_TAKEN, 0.0)) == [Read(2)]
    [again] = sends(new.note(new.pipeline.read(after(stream, 2), 5, 0.0)))
    assert again.expected == 5
    assert again.message_id != mine.message_id
    stream.append(again.payload)
    new.note(new.pipeline.stored(again.number, 6, 0.0))
    assert new.promised == valid_bodies(stream) == [b"new.3     "]


def test_an_own_copy_that_lands_late_does_not_count_twice() -> None:
    """C10: refused because of junk, sent again, and then the first copy of the second message lands too."""
    stream: list[bytes] = []
    owner = Owner(stream, 2, "a", message_bytes=1)
    junk = record(Kind.TRANSACTION, Position(1, 1, bytes(16)), 1, bytes(16), b"of the generation before")
    sent = sends(owner.note(owner.pipeline.submit(owner.records(2), 0.0)))
    stream.append(pack_message([junk], 1, Summary())[0])
    owner.note(owner.pipeline.refused(sent[0].number, Refusal.PLACE_TAKEN, 0.0))
    stream.append(sent[1].payload)  # "expect 2" is true by now
    again = sends(owner.note(owner.pipeline.read(after(stream, 1), 3, 0.0)))
    assert [send.expected for send in again] == [3, 4]
    for send in again:
        stream.append(send.payload)
        owner.note(owner.pipeline.stored(send.number, len(stream), 0.0))
    assert stream.count(sent[1].payload) == 2
    assert valid_bodies(stream) == owner.promised == [body for _, body in owner.submitted]


def test_silence_sends_the_same_message_to_the_same_place() -> None:
    stream: list[bytes] = []
    owner = Owner(stream, 1, "a")
    [send] = sends(owner.pipeline.submit(owner.records(1), 0.0))
    due = owner.pipeline.due()
    assert due is not None
    assert owner.note(owner.pipeline.tick(due)) == [Read(1)]
    assert owner.note(owner.pipeline.read([], 1, due)) == []  # waits first: nothing is new
    due = owner.pipeline.due()
    assert due is not None
    assert owner.note(owner.pipeline.tick(due)) == [Read(1)]
    [again] = sends(owner.note(owner.pipeline.read([], 1, due)))
    assert (again.message_id, again.expected, again.payload) == (send.message_id, send.expected, send.payload)
    assert again.number != send.number
    assert owner.pipeline.stored(send.number, 2, due) == []  # void
    assert owner.note(owner.pipeline.stored(again.number, 2, due)) == []
    assert owner.promised == [b"a.2       "]


def test_found_is_durable() -> None:
    stream: list[bytes] = []
    owner = Owner(stream, 1, "a")
    [send] = sends(owner.pipeline.submit(owner.records(1), 0.0))
    stream.append(send.payload)
    assert owner.note(owner.pipeline.disconnected()) == [Read(1)]
    assert owner.note(owner.pipeline.read(after(stream, 1), 2, 0.0)) == []
    assert owner.promised == [b"a.2       "]
    assert owner.pipeline.idle


def test_no_progress_ends_it_but_want_of_space_does_not() -> None:
    owner = Owner([], 1, "a")
    [send] = sends(owner.pipeline.submit(owner.records(1), 0.0))
    owner.note(owner.pipeline.refused(send.number, Refusal.FULL, 1.0))
    assert owner.pipeline.full
    owner.note(owner.pipeline.read([], 1, 1.0))
    owner.note(owner.pipeline.tick(100.0))
    [send] = sends(owner.note(owner.pipeline.read([], 1, 100.0)))
    owner.note(owner.pipeline.stored(send.number, 2, 100.0))
    assert not owner.pipeline.full
    assert owner.failed is None
    owner.note(owner.pipeline.submit(owner.records(1), 200.0))
    owner.note(owner.pipeline.tick(202.0))
    owner.note(owner.pipeline.unreadable(202.0))
    owner.note(owner.pipeline.tick(261.0))
    assert owner.failed is not None
    assert not owner.failed.fenced


@pytest.mark.parametrize(
    ("messages", "end", "cause"),
    [
        ([(3, b"")], 3, "message 2 of the stream is missing"),
        ([(2, b"garbage")], 2, "damaged"),
        ([], 0, "but 1 was acknowledged"),
    ],
)
def test_a_stream_that_is_not_ours_ends_it(messages: list[tuple[int, bytes]], end: int, cause: str) -> None:
    owner = Owner([], 1, "a")
    owner.pipeline.submit(owner.records(1), 0.0)
    owner.note(owner.pipeline.disconnected())
    owner.note(owner.pipeline.read(messages, end, 0.0))
    assert owner.failed is not None
    assert cause in owner.failed.cause


@dataclass
class World:
    """A stream, owners one after the other, and messages between them that are late, doubled or lost."""

    seed: int
    check_places: bool = True
    stream: list[bytes] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    owners: list[Owner] = field(default_factory=list)
    now: float = 0.0

    def run(self, steps: int) -> None:
        choose = random.Random(self.seed)
        self.owners.append(Owner(self.stream, 1, "a", message_bytes=choose.choice(SIZES), patient=True))
        requests: list[tuple[Owner, Send]] = []
        answers: list[tuple[Owner, int, int | Refusal]] = []
        reads: list[Owner] = []

        def act(owner: Owner, effects: list[Effect]) -> None:
            for effect in owner.note(effects):
                if isinstance(effect, Send):
                    requests.append((owner, effect))
                else:
                    assert isinstance(effect, Read)
                    reads.append(owner)

        for step in range(steps + 5000):
            calm = step >= steps  # at the end everything arrives, so that all must be settled
            if calm and all(owner.failed or owner.pipeline.idle for owner in self.owners):
                break
            self.now += choose.random() * 0.5
            owner = choose.choice(self.owners)
            what = choose.randrange(7)
            if what == 0 and not calm:
                act(owner, owner.pipeline.submit(owner.records(choose.randint(1, 3)), self.now))
            elif what == 1 and requests:
                sender, send = requests.pop(0 if calm else choose.randrange(min(len(requests), 3)))
                self._deliver(choose, calm, sender, send, requests, answers)
            elif what == 2 and answers:
                to, number, answer = answers.pop(choose.randrange(len(answers)))
                if calm or choose.random() > 0.2:
                    act(
                        to,
                        to.pipeline.stored(number, answer, self.now)
                        if isinstance(answer, int)
                        else to.pipeline.refused(number, answer, self.now),
                    )
            elif what == 3 and reads:
                reader = reads.pop()
                if not calm and choose.random() < 0.2:
                    act(reader, reader.pipeline.unreadable(self.now))
                else:
                    # not necessarily the newest end: another server may lag
                    end = len(self.stream) if calm else choose.randint(reader.pipeline.place, len(self.stream))
                    act(reader, reader.pipeline.read(after(self.stream[:end], reader.pipeline.place), end, self.now))
            elif what == 4:
                act(owner, owner.pipeline.tick(self.now))
            elif what == 5 and not calm and choose.random() < 0.05:
                name = chr(ord("a") + len(self.owners))
                self.owners.append(
                    Owner(self.stream, len(self.owners) + 1, name, message_bytes=choose.choice(SIZES), patient=True)
                )
            elif what == 6 and not calm and choose.random() < 0.1:
                act(owner, owner.pipeline.disconnected())

    def _deliver(
        self,
        choose: random.Random,
        calm: bool,
        sender: Owner,
        send: Send,
        requests: list[tuple[Owner, Send]],
        answers: list[tuple[Owner, int, int | Refusal]],
    ) -> None:
        if not calm and choose.random() < 0.1:
            return  # lost
        if not calm and choose.random() < 0.1:
            requests.append((sender, send))  # comes again, later
        if send.message_id in self.ids and choose.random() < 0.9:  # the window of duplicates is bounded
            answers.append((sender, send.number, self.ids[send.message_id]))
        elif send.expected == len(self.stream) or not self.check_places:
            self.stream.append(send.payload)
            self.ids[send.message_id] = len(self.stream)
            answers.append((sender, send.number, len(self.stream)))
        else:
            answers.append((sender, send.number, Refusal.PLACE_TAKEN))


@pytest.mark.parametrize("check_places", [True, False])
def test_random_faults(check_places: bool) -> None:
    """Without the engine's comparison of places nothing is less safe, only slower."""
    resends = voids = promised = fenced = 0
    for seed in range(300):
        world = World(seed, check_places)
        world.run(300)
        everything = valid_bodies(world.stream)
        assert len(everything) == len(set(everything)), f"seed {seed}: something counts twice"
        for owner in world.owners:
            mine = [body for body in everything if body.startswith(f"{owner.name}.".encode())]
            submitted = [body for _, body in owner.submitted]
            assert mine == submitted[: len(mine)], f"seed {seed}: not a prefix of what was appended"
            assert owner.promised == mine[: len(owner.promised)], f"seed {seed}: a promise was broken"
            assert owner.failed is None or owner.failed.fenced, f"seed {seed}: {owner.failed}"
            resends += owner.pipeline.resends
            voids += owner.pipeline.voids
            promised += len(owner.promised)
            fenced += owner.failed is not None
        last = world.owners[-1]
        assert last.failed is None
        assert last.promised == [body for _, body in last.submitted], f"seed {seed}: the last owner is not done"
    assert min(resends, voids, promised, fenced) > 100, (resends, voids, promised, fenced)
