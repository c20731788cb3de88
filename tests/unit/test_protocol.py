"""Messages and frames: vectors shared with C, and properties of the codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from australis.errors import ProtocolError
from australis.protocol import messages as m
from australis.protocol.frames import FrameDecoder, frame, frames

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "messages.json").read_text())


def plain(value: Any) -> Any:
    """Bytes as {"hex": ...}, for JSON."""
    if isinstance(value, bytes | msgspec.Raw):
        return {"hex": bytes(value).hex()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vectors(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["body"])
    message = m.any_decoder.decode(body)
    assert type(message).__name__ == vector["message"]
    assert [plain(item) for item in msgspec.structs.astuple(message)] == vector["fields"]
    assert m.encode(message) == body
    assert frame(body).hex() == vector["frame"]
    # elements that a later version appends are ignored
    longer = msgspec.msgpack.decode(body)
    longer += [123, "later"]
    optional = {m.Resolve, m.FeedStart}
    if type(message) not in optional:
        assert m.any_decoder.decode(m.encode(longer)) == message


def test_every_message_has_a_vector() -> None:
    names = {vector["message"] for vector in VECTORS}
    assert names == {kind.__name__ for kind in m.AnyMessage.__args__}


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(1, 50)))
def test_frames_survive_any_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = frames(bodies)
    decoder = FrameDecoder()
    received: list[bytes] = []
    at = 0
    for cut in cuts:
        received += decoder.feed(stream[at : at + cut])
        at += cut
    received += decoder.feed(stream[at:]) if at < len(stream) else []
    assert received == bodies
    assert decoder.pending == 0


@given(st.binary(min_size=4, max_size=64))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    decoder = FrameDecoder(limit=1000)
    try:
        bodies = decoder.feed(data)
    except ProtocolError:
        return
    assert all(len(body) <= 1000 for body in bodies)
    assert decoder.pending <= len(data)


@given(st.binary(max_size=200))
def test_garbage_bodies_raise_only_what_is_caught(data: bytes) -> None:
    try:
        message = m.client_decoder.decode(data)
        if isinstance(message, m.Commit):
            m.check_commit(message)
    except (msgspec.MsgspecError, ProtocolError):
        pass


def test_too_long_a_frame_is_refused_before_it_arrives() -> None:
    with pytest.raises(ProtocolError, match="the limit is 10"):
        FrameDecoder(limit=10).feed(b"\x0b\0\0\0")


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65535, 65536])
def test_values_count(count: int) -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode([None] * count))
    assert m.is_array_of(raw, count)
    assert not m.is_array_of(raw, count + 1)
    assert not m.is_array_of(msgspec.Raw(msgspec.msgpack.encode(count)), count)


def commit(**changes: Any) -> m.Commit:
    fields: dict[str, Any] = {
        "generation": 1,
        "txid": bytes(16),
        "attempt": 1,
        "tau_start": 5,
        "flags": 0,
        "keys": [bytes(8)],
        "modes": b"\x03",
        "values": msgspec.Raw(msgspec.msgpack.encode([b"v"])),
        "checks": [],
        "relations": [],
        "ddl": None,
        "drops": [],
    }
    return m.Commit(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"modes": b""},
        {"txid": b"short"},
        {"keys": [b"short"]},
        {"values": msgspec.Raw(msgspec.msgpack.encode([]))},
        {"values": msgspec.Raw(msgspec.msgpack.encode(7))},
    ],
)
def test_lists_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    m.check_commit(commit())
    with pytest.raises(ProtocolError):
        m.check_commit(commit(**changes))


def test_relations_of_a_message() -> None:
    a, b = (5 << 32 | 7).to_bytes(8, "big"), ((1 << 63) + 1).to_bytes(8, "big")

    def ingest(keys: list[bytes]) -> bytes:
        raw = msgspec.Raw(msgspec.msgpack.encode(keys))
        return m.encode(m.Ingest(1, bytes(16), 1, raw, bytes(len(keys)), msgspec.Raw(msgspec.msgpack.encode(keys))))

    assert m.relations_of(ingest([])) == set()
    assert m.relations_of(ingest([a, a + b"x", b, a + b"y"])) == {5 << 32 | 7, (1 << 63) + 1}
    for bad in (b"", b"\x90", ingest([b"short"]), ingest([a, b])[:-30], b"\x97\x07" + ingest([a])[2:]):
        with pytest.raises(ProtocolError):
            m.relations_of(bad)
