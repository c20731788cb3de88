"""All messages between query processors and services, and between services (docs/formats.md §6).

A message is one msgpack array whose first element is its tag. Receivers ignore additional elements at the end, so a
later version may append fields. What must hold: a decoded message is checked in shape (types and lengths of parallel
lists) before anything acts on it; `decode` raises ProtocolError otherwise and the connection is closed by its owner.

Values of a write set are never decoded here (`msgspec.Raw`): the bytes of the whole message are what the journal keeps
and what storage applies.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

import msgspec

from australis._native import StoreError, message_relations
from australis.errors import ProtocolError

PROTOCOL_VERSION = 1

Natural = Annotated[int, msgspec.Meta(ge=0)]
"""Storage ids and the like: the store and the journal's readers take them as unsigned."""


class Mode(IntEnum):
    """Row lock modes of PostgreSQL, weakest first; bits 0-1 of a mode byte."""

    KEY_SHARE = 0
    SHARE = 1
    NO_KEY_UPDATE = 2
    UPDATE = 3


class ModeFlag(IntFlag):
    """Flags of a mode byte."""

    BLIND = 0x04  # neither checked nor recorded
    LOCK_ONLY = 0x08  # no value is applied
    DELETE = 0x10  # tombstone
    VALIDATE_ONLY = 0x20  # checked, not recorded; implies LOCK_ONLY


MODE_MASK = 0x03


class Outcome(IntEnum):
    """What became of a transaction."""

    COMMITTED = 0
    CONFLICT = 1  # 40001, OC000
    SCHEMA_CONFLICT = 2  # 40001, OC001
    REFUSED = 3  # certainly not committed, may be tried again
    TOO_LARGE = 4  # 54000
    PENDING = 5  # ResolveReply only: nothing certain is known
    KILLED = 6  # ResolveReply only: certainly never commits
    DISK_FULL = 7  # 53100; certainly not committed


class ReadStatus(IntEnum):
    """How a read ended."""

    OK = 0
    BELOW_HORIZON = 1
    NOT_FRESH = 2
    ERROR = 3
    NOT_HELD = 4  # not all of it is of this shard's: the asker's map is old
    REFUSED = 5  # the filter is not well-formed; no replica would take it


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages."""


class Hello(Message, frozen=True, array_like=True, gc=False, tag=1):
    """First message of a connection, and its answer. Clients send generation 0, the service its own."""

    protocol: int
    cluster: bytes
    role: str
    generation: int


class Greeting(Hello, frozen=True, array_like=True, gc=False, tag=1):
    """A Hello between processes of a cluster; every Hello is one. `level` is the newest feature level it can write."""

    name: str = ""
    level: int = 1


class Commit(Message, frozen=True, array_like=True, gc=False, tag=2):
    """A write set to decide (rules A3-A8).

    `keys[i]` has mode `modes[i]`; `checks` are half-open key ranges of SERIALIZABLE reads; `ddl` is (n, changed
    relations, relations whose rows it depends on); `drops` are storage ids that this commit makes garbage.
    """

    generation: int
    txid: bytes
    attempt: int
    tau_start: int
    flags: int
    keys: list[bytes]
    modes: bytes
    values: msgspec.Raw
    checks: list[tuple[bytes, bytes, int]]
    relations: list[int]
    ddl: tuple[int, list[int], list[int]] | None
    drops: list[Natural]


class CommitReply(Message, frozen=True, array_like=True, gc=False, tag=3):
    """The answer to Commit."""

    txid: bytes
    outcome: int
    tau: int
    detail: str


class WideCommit(Commit, frozen=True, array_like=True, gc=False, tag=2):
    """A Commit as a cluster with several adjudicators reads it; every Commit is one.

    `scans`: relations of which no row may have been written after tau_start (rule M5: what a SERIALIZABLE scan of a
    secondary index has read; the index entries are blind). `parts`: the key ranges [lo, hi) of the relations in `ddl`
    and `scans`; their owners are asked. No parts means all owners. (Query processors send neither yet: for such a scan
    they validate the range of the whole table, and a schema change asks everybody.) `leader`: the adjudicator that this
    is addressed to, as generations of different adjudicators have the same numbers; -1: whoever has the connection.
    """

    scans: list[int] = []
    parts: list[tuple[bytes, bytes]] = []
    leader: int = -1


class Resolve(Message, frozen=True, array_like=True, gc=False, tag=4):
    """What became of txid? If it has not committed, it never will after the answer KILLED (rule Q2).

    With `tau_start` of the transaction the answer is exact however long ago it was; with -1 it may be PENDING. An
    adjudicator older than `generation`, the one that the Commit was addressed to, cannot know and says PENDING; one
    that is not `leader` (if that is given) says nothing. With `prove` it is answered only after a record that was
    appended later is durable: one that has been replaced without knowing never answers.
    """

    txid: bytes
    tau_start: int = -1
    generation: int = 0
    leader: int = -1
    prove: bool = False


class ResolveReply(Message, frozen=True, array_like=True, gc=False, tag=5):
    """The answer to Resolve: COMMITTED with its time, KILLED, or PENDING."""

    txid: bytes
    outcome: int
    tau: int


class Ingest(Message, frozen=True, array_like=True, gc=False, tag=6):
    """A chunk of rows of a storage id that nobody can read yet (rule Q8). Its keys are not decoded either."""

    generation: int
    txid: bytes
    seq: int
    keys: msgspec.Raw
    modes: bytes
    values: msgspec.Raw


class IngestReply(Message, frozen=True, array_like=True, gc=False, tag=7):
    """The chunk is durable and readable at tau (or was refused)."""

    txid: bytes
    seq: int
    outcome: int
    tau: int


class Drop(Message, frozen=True, array_like=True, gc=False, tag=8):
    """Storage ids that an aborted transaction left behind; no answer."""

    relations: list[Natural]


class Error(Message, frozen=True, array_like=True, gc=False, tag=9):
    """The request was not understood or nothing certain can be said about it."""

    sqlstate: str
    message: str


class Prepare(Message, frozen=True, array_like=True, gc=False, tag=10):
    """From the leader: will these keys and ranges of a transaction stand until tau_max? (rules M1, M2)

    All of it is the receiver's: `checks` are ranges that were read, `parts` ranges that it must own in full because
    relations in `changed`, `depends` (DDL) or `scans` lie there. `relations` are all that the transaction touches.
    """

    txid: bytes
    attempt: int
    tau_start: int
    keys: list[bytes]
    modes: bytes
    checks: list[tuple[bytes, bytes, int]]
    relations: list[int]
    changed: list[int]
    depends: list[int]
    scans: list[int]
    parts: list[tuple[bytes, bytes]]


class Ballot(IntEnum):
    """What a participant says to a Prepare."""

    YES = 0
    CONFLICT = 1  # OC000
    SCHEMA_CONFLICT = 2  # OC001
    BUSY = 3  # somebody else's promise stands in the way, or no room: another attempt may succeed
    FLOOR = 4  # the snapshot is older than the floor
    STALE = 5  # not the owner of all of it: the asker's map is old


class Vote(Message, frozen=True, array_like=True, gc=False, tag=11):
    """The answer to Prepare: YES holds for this attempt, at commit times from tau to tau_max."""

    voter: int
    txid: bytes
    attempt: int
    ballot: int
    tau: int
    tau_max: int


class Abandon(Message, frozen=True, array_like=True, gc=False, tag=12):
    """From the leader: this attempt never commits; its promise may go. No answer."""

    txid: bytes
    attempt: int


class Decided(Message, frozen=True, array_like=True, gc=False, tag=13):
    """From the leader: the transaction of this attempt is committed at tau (rule M4). No answer; may be lost."""

    txid: bytes
    attempt: int
    tau: int


class Heartbeat(Message, frozen=True, array_like=True, gc=False, tag=14):
    """My journal's records up to (sequence, record_generation, hash), then nothing at or below h (rule W1)."""

    journal: int
    generation: int
    sequence: int
    record_generation: int
    hash: bytes
    h: int


class HeartbeatRequest(Message, frozen=True, array_like=True, gc=False, tag=15):
    """Somebody wants to read at tau: send a Heartbeat when it reaches there."""

    tau: int


class RangeMove(Message, frozen=True, array_like=True, gc=False, tag=16):
    """A key range [lo, hi) goes from one adjudicator to another (rule W4).

    The body of the records of release and acquire, and the old owner's message once its release is durable; `sequence`
    and `hash` then say where in its journal (0 and nothing in the release itself). `tau` is the release's time and,
    with `source`, the name of this move; `floor` is what no snapshot of the new owner's requests lies below; `ddl` is
    the number of the last DDL record, -1 unless the range holds the DDL log.
    """

    source: int
    target: int
    tau: int
    lo: bytes
    hi: bytes
    floor: int
    ddl: int
    sequence: int
    hash: bytes


class RangeAcquired(Message, frozen=True, array_like=True, gc=False, tag=17):
    """The new owner's answer: the move named (source, tau) is durable in its journal."""

    source: int
    tau: int


class Get(Message, frozen=True, array_like=True, gc=False, tag=20):
    """Read keys as of tau."""

    id: int
    tau: int
    keys: list[bytes]


class GetReply(Message, frozen=True, array_like=True, gc=False, tag=21):
    """One entry per key, in order (docs/formats.md §5)."""

    id: int
    status: int
    batch: bytes


class Scan(Message, frozen=True, array_like=True, gc=False, tag=22):
    """Read up to max_rows entries or max_bytes of [lo, hi) as of tau, of row images those that pass a filter."""

    id: int
    tau: int
    lo: bytes
    hi: bytes
    backward: bool
    max_bytes: int
    max_rows: int
    filter: bytes = b""


class ScanReply(Message, frozen=True, array_like=True, gc=False, tag=23):
    """A batch; `more`: the range goes on, at `resume` (backward: below it) or, if that is empty, after its last key."""

    id: int
    status: int
    more: bool
    batch: bytes
    resume: bytes = b""


class Stats(Message, frozen=True, array_like=True, gc=False, tag=24):
    """Ask for rows and bytes of storage ids, with at least everything at or below tau."""

    id: int
    relations: list[Natural]
    tau: int = 0


class StatsReply(Message, frozen=True, array_like=True, gc=False, tag=25):
    """(storage id, rows, bytes) per relation asked for."""

    id: int
    stats: list[tuple[int, int, int]]


class Status(Message, frozen=True, array_like=True, gc=False, tag=30):
    """Ask a service how it is."""


class StatusReply(Message, frozen=True, array_like=True, gc=False, tag=31):
    """Names and numbers (or texts) of a service's state."""

    status: dict[str, int | float | str]


class Subscribe(Message, frozen=True, array_like=True, gc=False, tag=40):
    """Feed: send every valid record behind this position (sequence 0 = from the very first)."""

    sequence: int
    generation: int
    hash: bytes
    applied: int


class FeedStatus(IntEnum):
    """Whether a subscription can be served."""

    OK = 0
    GONE = 1  # the journal no longer reaches back to this position: restore a snapshot
    DIVERGED = 2  # the subscriber holds something that the journal never held: rebuild


class FeedStart(Message, frozen=True, array_like=True, gc=False, tag=41):
    """Feed: the answer to Subscribe.

    `rollback` >= 0: first discard everything above that time (it was fed before it was journaled and never was
    journaled, rule T3), then continue behind (sequence, record_generation, hash).
    `journal_bytes` is the size of the journal.
    """

    status: int
    generation: int
    rollback: int
    sequence: int
    record_generation: int
    hash: bytes
    journal_bytes: int = 0


class FeedRecord(Message, frozen=True, array_like=True, gc=False, tag=42):
    """Feed: one record. `body` is the message as the query processor sent it."""

    sequence: int
    generation: int
    hash: bytes
    kind: int
    flags: int
    tau: int
    txid: bytes
    body: bytes


class Applied(Message, frozen=True, array_like=True, gc=False, tag=43):
    """Feed, back: everything up to here is applied."""

    sequence: int
    tau: int


class Trim(Message, frozen=True, array_like=True, gc=False, tag=44):
    """Feed, back: records up to this sequence are in two durable snapshots or in none that counts (rule S3)."""

    sequence: int


class JournalBegins(Message, frozen=True, array_like=True, gc=False, tag=45):
    """Body of a record of the system journal: from tau, its time, on there is another journal to follow (rule W2)."""

    journal: int
    tau: int


class JournalEnds(Message, frozen=True, array_like=True, gc=False, tag=46):
    """Body of a record of the system journal: that journal ended with the record of this sequence and hash."""

    journal: int
    sequence: int
    hash: bytes


class Snapshot(Message, frozen=True, array_like=True, gc=False, tag=50):
    """From a query processor to its gateway: as of which time may a transaction read now? (rule T2)"""

    id: int


class SnapshotReply(Message, frozen=True, array_like=True, gc=False, tag=51):
    """tau_start, and the number of the last DDL record at or below it, which catalogs must have applied (rule Q5)."""

    id: int
    tau: int
    ddl: int


class ShardSubscribe(Message, frozen=True, array_like=True, gc=False, tag=52):
    """To a crossbar: feed me what concerns these ranges, behind `applied`.

    `positions` is what the last Watermark carried that the subscriber has made its own (opaque; empty: from the first
    record of every journal). `applied` -1: only what is new; `ShardStart` then says from which time on. `name` is the
    subscriber's, for status and trimming.
    """

    name: str
    ranges: list[tuple[bytes, bytes]]
    applied: int
    positions: bytes


class ShardStart(Message, frozen=True, array_like=True, gc=False, tag=53):
    """From a crossbar: everything concerning the ranges above `tau` follows, or (FeedStatus) why that cannot be."""

    status: int
    tau: int


class ShardRecord(Message, frozen=True, array_like=True, gc=False, tag=54):
    """A committed transaction, chunk or drop, in order of time. `body` is the query processor's message.

    It may hold keys outside the subscriber's ranges; those are not the subscriber's.
    """

    kind: int
    flags: int
    tau: int
    txid: bytes
    body: bytes


class Watermark(Message, frozen=True, array_like=True, gc=False, tag=55):
    """Everything at or below tau has been sent. With `positions` a later subscription may go on from here."""

    tau: int
    positions: bytes = b""


class WantWatermark(Message, frozen=True, array_like=True, gc=False, tag=56):
    """To a crossbar: somebody here wants to read at tau; send a Watermark as soon as it reaches there."""

    tau: int


class ShardApplied(Message, frozen=True, array_like=True, gc=False, tag=57):
    """To a crossbar, now and then: applied up to tau; `kept` are the positions that snapshots still need (b'': all)."""

    tau: int
    kept: bytes


class OldestSnapshot(Message, frozen=True, array_like=True, gc=False, tag=58):
    """To storage, now and then, from a gateway: no session of mine reads below tau (rule S4)."""

    tau: int


class GetMap(Message, frozen=True, array_like=True, gc=False, tag=60):
    """To the control plane: send a MapReply when there is a map newer than `version`; at once if there is now."""

    version: int


class MapReply(Message, frozen=True, array_like=True, gc=False, tag=61):
    """The newest partition map, encoded."""

    map: bytes


class MoveRange(Message, frozen=True, array_like=True, gc=False, tag=62):
    """From the control plane to an adjudicator: give [lo, hi) to another one (rule W4)."""

    id: int
    lo: bytes
    hi: bytes
    target: int


class MoveReply(Message, frozen=True, array_like=True, gc=False, tag=63):
    """`error` '' once the new owner has confirmed; else why the range was not moved."""

    id: int
    error: str


class CatalogWait(Message, frozen=True, array_like=True, gc=False, tag=64):
    """Between gateways: answer when you know everything at or below tau, and your query processors DDL record n."""

    id: int
    n: int
    tau: int = 0


class CatalogDone(Message, frozen=True, array_like=True, gc=False, tag=65):
    """The answer to CatalogWait."""

    id: int


class OwnedRanges(Message, frozen=True, array_like=True, gc=False, tag=90):
    """From the control plane to an adjudicator that serves: which ranges does your journal give you?"""

    id: int


class OwnedRangesReply(Message, frozen=True, array_like=True, gc=False, tag=91):
    """Ranges [lo, hi); adjacent ones may be one. A range that is on its way to somebody else is nobody's."""

    id: int
    ranges: list[tuple[bytes, bytes]]


class Export(Message, frozen=True, array_like=True, gc=False, tag=92):
    """To a storage replica, from one that takes over keys: all versions of the first keys of [lo, hi).

    To be answered when everything at or below tau is applied.
    """

    id: int
    tau: int
    lo: bytes
    hi: bytes
    max_bytes: int


class ExportReply(Message, frozen=True, array_like=True, gc=False, tag=93):
    """A page (docs/formats.md §5) that holds everything at or below `applied`, and what the taker must know.

    `next` b'': it reaches to hi; else the key to go on with. `garbage`: dropped and unpublished storage ids.
    """

    id: int
    status: int
    applied: int
    horizon: int
    next: bytes
    garbage: bytes
    page: bytes


class MoveShard(Message, frozen=True, array_like=True, gc=False, tag=94):
    """To the control plane: have [lo, hi) held by another shard. Answered by MoveReply, which may take minutes."""

    id: int
    lo: bytes
    hi: bytes
    target: int


class ShardHeld(Message, frozen=True, array_like=True, gc=False, tag=95):
    """From a storage replica to the control plane, now and then: which ranges it can answer for, and its load.

    `version`: of the map it goes by. `samples` cut what it holds into parts of about the same size; `heat` are keys
    that were asked for lately; `operations` counts reads and records since it was started.
    """

    name: str
    shard: int
    version: int
    held: list[tuple[bytes, bytes]]
    bytes_held: int
    operations: int
    samples: list[bytes]
    heat: list[bytes]


ClientMessage = Hello | Commit | Resolve | Ingest | Drop | Status | Subscribe | Applied | Trim
"""What the commit service accepts."""

ReadMessage = Hello | Get | Scan | Stats | Status
"""What the storage service accepts."""

AdjudicatorMessage = Resolve | Prepare | Vote | Abandon | Decided | HeartbeatRequest | RangeMove | RangeAcquired
"""What an adjudicator among several accepts beside Commit (which it decodes as WideCommit)."""

AnyMessage = (
    Hello
    | Commit
    | CommitReply
    | Resolve
    | ResolveReply
    | Ingest
    | IngestReply
    | Drop
    | Error
    | Prepare
    | Vote
    | Abandon
    | Decided
    | Heartbeat
    | HeartbeatRequest
    | RangeMove
    | RangeAcquired
    | Get
    | GetReply
    | Scan
    | ScanReply
    | Stats
    | StatsReply
    | Status
    | StatusReply
    | Subscribe
    | FeedStart
    | FeedRecord
    | Applied
    | Trim
    | JournalBegins
    | JournalEnds
    | Snapshot
    | SnapshotReply
    | ShardSubscribe
    | ShardStart
    | ShardRecord
    | Watermark
    | WantWatermark
    | ShardApplied
    | OldestSnapshot
    | GetMap
    | MapReply
    | MoveRange
    | MoveReply
    | CatalogWait
    | CatalogDone
    | OwnedRanges
    | OwnedRangesReply
    | Export
    | ExportReply
    | MoveShard
    | ShardHeld
)

encoder = msgspec.msgpack.Encoder()
client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
read_decoder: msgspec.msgpack.Decoder[ReadMessage] = msgspec.msgpack.Decoder(ReadMessage)
any_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)

wide_commit_decoder: msgspec.msgpack.Decoder[WideCommit] = msgspec.msgpack.Decoder(WideCommit)

encode = encoder.encode


def check_commit(commit: Commit) -> None:
    """Raise ProtocolError unless the lists of a commit belong together."""
    if len(commit.keys) != len(commit.modes) or len(commit.txid) != 16:
        raise ProtocolError("Commit: keys, modes and txid do not fit together")
    if not is_array_of(commit.values, len(commit.keys)):
        raise ProtocolError("Commit: one value (or nil) per key expected")
    if commit.keys and min(map(len, commit.keys)) < 8:
        raise ProtocolError("Commit: a key is shorter than a relation id")


def check_ingest(ingest: Ingest) -> None:
    """Raise ProtocolError unless the lists of a chunk belong together."""
    if not is_array_of(ingest.keys, len(ingest.modes)) or len(ingest.txid) != 16:
        raise ProtocolError("Ingest: keys, modes and txid do not fit together")
    if not is_array_of(ingest.values, len(ingest.modes)):
        raise ProtocolError("Ingest: one value (or nil) per key expected")


def relations_of(body: bytes) -> set[int]:
    """Relation ids of the keys of a Commit or Ingest, without decoding it; ProtocolError if it is malformed."""
    try:
        return message_relations(body)
    except StoreError as error:
        raise ProtocolError(str(error)) from None


def is_array_of(raw: msgspec.Raw, count: int) -> bool:
    """Is raw a msgpack array with `count` elements? Looks at its header only."""
    view = memoryview(raw)
    if len(view) == 0:
        return False
    first = view[0]
    if 0x90 <= first <= 0x9F:
        return first - 0x90 == count
    if first == 0xDC:
        return int.from_bytes(view[1:3], "big") == count
    if first == 0xDD:
        return int.from_bytes(view[1:5], "big") == count
    return False


def decode_keys(message: Commit | Ingest) -> list[bytes]:
    """Keys of a write set: for tools and tests."""
    if isinstance(message, Commit):
        return message.keys
    return msgspec.msgpack.decode(message.keys, type=list[bytes])


def decode_values(message: Commit | Ingest) -> list[bytes | None]:
    """Values of a write set: for tools and tests, never on the path of a commit."""
    return msgspec.msgpack.decode(message.values, type=list[bytes | None])
