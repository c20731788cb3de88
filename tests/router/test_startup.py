"""The parser of first packets: accepts what PostgreSQL accepts, never raises anything but its two refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from australis.router.startup import (
    MAX_PACKET,
    TOKEN_LENGTH,
    TOKEN_PARAMETER,
    TOKEN_ROOM,
    CancelRequest,
    EncryptionRequest,
    Garbage,
    Refused,
    Startup,
    UnsupportedProtocol,
    body_length,
    error_response,
    parse,
)

TOKEN = "0123456789abcdef" * 2
V3 = (3 << 16).to_bytes(4, "big")
names = (
    st.binary(min_size=1, max_size=40)
    .map(lambda b: b.replace(b"\0", b"x"))
    .filter(lambda b: b.lower() != TOKEN_PARAMETER)
)
values = st.binary(max_size=80).map(lambda b: b.replace(b"\0", b""))


def fresh(body: bytes) -> object:
    return parse(body, tls_asked=False, gss_asked=False)


@given(st.lists(st.tuples(names, values), max_size=20), st.sampled_from([0x30000, 0x30002, 0x30009]))
def test_round_trip_with_the_token_first(pairs: list[tuple[bytes, bytes]], protocol: int) -> None:
    body = protocol.to_bytes(4, "big") + b"".join(k + b"\0" + v + b"\0" for k, v in pairs) + b"\0"
    startup = fresh(body)
    assert startup == Startup(protocol, tuple(pairs))
    assert isinstance(startup, Startup)
    packet = startup.packet(TOKEN)
    assert int.from_bytes(packet[:4], "big") == len(packet) == 4 + len(body) + TOKEN_ROOM
    assert packet[4:] == body[:4] + TOKEN_PARAMETER + b"\0" + TOKEN.encode() + b"\0" + body[4:]


@given(st.binary(min_size=4, max_size=300), st.booleans(), st.booleans())
def test_any_bytes_are_parsed_or_refused(body: bytes, tls_asked: bool, gss_asked: bool) -> None:
    try:
        request = parse(body, tls_asked=tls_asked, gss_asked=gss_asked)
    except Refused as refused:
        assert refused.packet().startswith(b"E")
    except Garbage:
        pass
    else:
        assert isinstance(request, Startup | EncryptionRequest | CancelRequest)


@given(st.binary(max_size=200))
def test_any_parameters_are_parsed_or_refused(rest: bytes) -> None:
    try:
        request = fresh(V3 + rest)
    except Refused as refused:
        assert refused.sqlstate in ("08P01", "42501")
    else:
        assert isinstance(request, Startup)
        # nothing got lost or moved: PostgreSQL reads the same from the packet we build
        again = parse(request.packet(TOKEN)[4:].replace(TOKEN_PARAMETER, b"t"), tls_asked=True, gss_asked=True)
        assert again == Startup(3 << 16, ((b"t", TOKEN.encode()), *request.parameters))


@pytest.mark.parametrize(
    "rest",
    [b"", b"user", b"user\0", b"user\0a", b"user\0a\0", b"user\0a\0\0\0", b"\0user\0a\0\0", b"user\0\0"],
)
def test_a_layout_that_postgresql_refuses(rest: bytes) -> None:
    with pytest.raises(Refused, match="invalid startup packet layout") as error:
        fresh(V3 + rest)
    assert error.value.sqlstate == "08P01"


@pytest.mark.parametrize("name", [TOKEN_PARAMETER, TOKEN_PARAMETER.upper()])
def test_no_client_brings_its_own_token(name: bytes) -> None:
    with pytest.raises(Refused) as error:
        fresh(V3 + b"user\0admin\0" + name + b"\0" + TOKEN.encode() + b"\0\0")
    assert error.value.sqlstate == "42501"


def test_lengths() -> None:
    assert body_length((8).to_bytes(4, "big")) == 4
    longest = MAX_PACKET - TOKEN_ROOM
    assert body_length((longest + 4).to_bytes(4, "big")) == longest
    for length in (0, 3, 4, 7, longest + 5, 1 << 31, (1 << 32) - 1, int.from_bytes(b"GET ", "big")):
        with pytest.raises(Garbage):
            body_length(length.to_bytes(4, "big"))
    assert len(TOKEN) == TOKEN_LENGTH


def test_encryption_is_asked_for_once() -> None:
    for code, tls in ((80877103, True), (80877104, False)):
        body = code.to_bytes(4, "big")
        assert fresh(body) == EncryptionRequest(tls=tls)
        with pytest.raises(UnsupportedProtocol, match=f"unsupported frontend protocol 1234.{code & 0xFFFF}"):
            parse(body, tls_asked=True, gss_asked=True)


def test_cancel_keys() -> None:
    start = (80877102).to_bytes(4, "big") + b"\0\0\0\7"
    assert fresh(start + b"1234") == CancelRequest(b"\0\0\0\x10" + start + b"1234")
    assert fresh(start + b"k" * 256) == CancelRequest((268).to_bytes(4, "big") + start + b"k" * 256)
    for key in (b"", b"k" * 257):
        with pytest.raises(Garbage):
            fresh(start + key)
    with pytest.raises(Garbage):
        fresh(start[:4])


def test_errors_speak_the_clients_protocol() -> None:
    with pytest.raises(UnsupportedProtocol) as old:
        fresh((2 << 16).to_bytes(4, "big") + b"rest")
    assert old.value.packet() == b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\0"
    with pytest.raises(UnsupportedProtocol) as new:
        fresh((4 << 16).to_bytes(4, "big"))
    assert new.value.packet().startswith(b"E\0\0\0")
    packet = error_response("57P03", "no", "why")
    assert packet == b"E\0\0\0\x23SFATAL\0VFATAL\0C57P03\0Mno\0Dwhy\0\0"
    assert int.from_bytes(packet[1:5], "big") == len(packet) - 1
