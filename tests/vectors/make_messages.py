"""Writes messages.json: one vector (or more) per message type, for Python and C alike.

    python -m tests.vectors.make_messages

`fields` are the elements after the tag, bytes as {"hex": ...}; a Commit's values and an Ingest's keys and values appear
as the raw msgpack of their array. `frame` is the body with its length in front.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from australis.protocol import messages as m
from australis.protocol.frames import frame
from tests.unit.test_protocol import plain

TXID = bytes(range(16))
KEY = bytes.fromhex("0000000500004001") + b"\x02" + (1 << 63 | 42).to_bytes(8, "big")


def raw(values: list[bytes | None]) -> msgspec.Raw:
    """Values of a write set."""
    return msgspec.Raw(msgspec.msgpack.encode(values))


def vectors() -> list[tuple[str, m.AnyMessage]]:
    """All examples."""
    return [
        ("hello of a client", m.Hello(1, bytes(range(16, 32)), "qp", 0)),
        ("hello of the service", m.Hello(1, bytes(range(16, 32)), "commit", 300)),
        (
            "commit of one row",
            m.Commit(
                7, TXID, 1, 1_795_000_000_000_000_001, 0, [KEY], b"\x02", raw([b"row"]), [], [5 << 32 | 16385], None, []
            ),
        ),
        (
            "commit with everything",
            m.Commit(
                7,
                TXID,
                2,
                1_795_000_000_000_000_001,
                1,
                [KEY, KEY + b"\x01", KEY + b"\x02", KEY + b"\x03", bytes(7) + b"\x01" + (12).to_bytes(8, "big")],
                bytes([0x03, 0x13, 0x08, 0x27, 0x07]),
                raw([b"x" * 300, None, None, None, b"record"]),
                [(KEY, KEY + b"\xff", 0)],
                [5 << 32 | 16385, 0xFFFFFFFF << 32 | 1],
                (12, [5 << 32 | 16385], [5 << 32 | 16390]),
                [5 << 32 | 16400],
            ),
        ),
        ("committed", m.CommitReply(TXID, m.Outcome.COMMITTED, 1_795_000_000_000_000_002, "")),
        ("conflict", m.CommitReply(TXID, m.Outcome.CONFLICT, 0, "change conflicts with another transaction")),
        ("resolve", m.Resolve(TXID, 1_795_000_000_000_000_001)),
        ("resolve reply", m.ResolveReply(TXID, m.Outcome.KILLED, 0)),
        ("ingest", m.Ingest(7, TXID, 3, raw([KEY, KEY + b"\x01"]), b"\x03\x03", raw([b"a", b"b"]))),
        ("ingest reply", m.IngestReply(TXID, 3, 0, 1_795_000_000_000_000_003)),
        ("drop", m.Drop([5 << 32 | 16400, 5 << 32 | 16401])),
        ("error", m.Error("08P01", "not a message of the protocol")),
        (
            "prepare",
            m.Prepare(
                TXID,
                2,
                1_795_000_000_000_000_001,
                [KEY],
                b"\x02",
                [(KEY, KEY + b"\0", 1)],
                [5 << 32 | 16385],
                [5 << 32 | 16386],
                [5 << 32 | 16387],
                [5 << 32 | 16388],
                [(KEY[:8], KEY[:7] + b"\x02")],
            ),
        ),
        ("vote", m.Vote(3, TXID, 2, m.Ballot.YES, 1_795_000_000_000_000_003, 1_795_000_000_200_000_003)),
        ("abandon", m.Abandon(TXID, 2)),
        ("decided", m.Decided(TXID, 2, 1_795_000_000_000_000_004)),
        ("heartbeat", m.Heartbeat(3, 7, 10, 6, TXID, 1_795_000_000_000_000_004)),
        ("heartbeat request", m.HeartbeatRequest(1_795_000_000_000_000_004)),
        ("range move", m.RangeMove(3, 4, 1_795_000_000_000_000_005, KEY[:8], b"\xff" * 8, 0, -1, 11, TXID)),
        ("range acquired", m.RangeAcquired(3, 1_795_000_000_000_000_005)),
        ("get", m.Get(1, 1_795_000_000_000_000_003, [KEY])),
        ("get reply", m.GetReply(1, m.ReadStatus.OK, b"\0\0\0\0\xff\xff\xff\xff" + bytes(8))),
        ("scan", m.Scan(2, 1_795_000_000_000_000_003, KEY[:8], KEY[:7] + b"\x02", True, 65536, 100)),
        (
            "scan with a filter",
            m.Scan(3, 1_795_000_000_000_000_003, KEY[:8], KEY[:7] + b"\x02", False, 65536, 100, b"\x01\x00\x00\x00"),
        ),
        ("scan reply", m.ScanReply(2, m.ReadStatus.OK, True, b"")),
        ("scan reply that goes on elsewhere", m.ScanReply(3, m.ReadStatus.OK, True, b"", KEY)),
        ("stats", m.Stats(3, [5 << 32 | 16400])),
        ("stats reply", m.StatsReply(3, [(5 << 32 | 16400, 10, 1234)])),
        ("status", m.Status()),
        ("status reply", m.StatusReply({"pid": 1, "rate": 1.5, "state": "following"})),
        ("subscribe", m.Subscribe(10, 2, TXID, 1_795_000_000_000_000_003)),
        ("feed start", m.FeedStart(m.FeedStatus.OK, 3, -1, 10, 2, TXID, 4096)),
        ("feed record", m.FeedRecord(11, 3, TXID, 2, 0, 1_795_000_000_000_000_004, TXID, b"body")),
        ("applied", m.Applied(11, 1_795_000_000_000_000_004)),
        ("trim", m.Trim(9)),
        ("journal begins", m.JournalBegins(4, 1_795_000_000_000_000_006)),
        ("journal ends", m.JournalEnds(4, 20, TXID)),
        ("snapshot", m.Snapshot(5)),
        ("snapshot reply", m.SnapshotReply(5, 1_795_000_000_000_000_006, 12)),
        ("shard subscribe", m.ShardSubscribe("s0-1", [(KEY[:8], b"\xff" * 8)], 1_795_000_000_000_000_003, b"p")),
        ("shard start", m.ShardStart(m.FeedStatus.OK, 1_795_000_000_000_000_003)),
        ("shard record", m.ShardRecord(2, 1, 1_795_000_000_000_000_004, TXID, b"body")),
        ("watermark", m.Watermark(1_795_000_000_000_000_005, b"p")),
        ("want watermark", m.WantWatermark(1_795_000_000_000_000_006)),
        ("shard applied", m.ShardApplied(1_795_000_000_000_000_005, b"p")),
        ("oldest snapshot", m.OldestSnapshot(1_795_000_000_000_000_003)),
        ("get map", m.GetMap(3)),
        ("map reply", m.MapReply(b"map")),
        ("move range", m.MoveRange(6, KEY[:8], b"\xff" * 8, 2)),
        ("move reply", m.MoveReply(6, "")),
        ("catalog wait", m.CatalogWait(7, 12)),
        ("catalog done", m.CatalogDone(7)),
        ("owned ranges", m.OwnedRanges(8)),
        ("owned ranges reply", m.OwnedRangesReply(8, [(KEY[:8], b"\xff" * 8)])),
        ("export", m.Export(9, 1_700_000_000_000_000_000, KEY[:8], b"\xff" * 8, 1 << 19)),
        ("export reply", m.ExportReply(9, 1, 1_700_000_000_000_000_001, 7, KEY, b"\x95", b"page")),
        ("move shard", m.MoveShard(10, KEY[:8], KEY, 3)),
        ("shard held", m.ShardHeld("storage-0-1", 0, 12, [(b"", KEY)], 1 << 20, 77, [KEY], [KEY[:8]])),
    ]


def main() -> None:
    """Write the file."""
    content = [
        {
            "name": name,
            "message": type(message).__name__,
            "fields": [plain(item) for item in msgspec.structs.astuple(message)],
            "body": m.encode(message).hex(),
            "frame": frame(m.encode(message)).hex(),
        }
        for name, message in vectors()
    ]
    (Path(__file__).parent / "messages.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
