"""What object stores do to us: each fault is one clear error, and nothing is half done."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from australis.objects import (
    ConflictError,
    DamagedObjectError,
    DeniedError,
    InvalidObjectUrlError,
    MissingObjectError,
    ObjectError,
    ObjectStore,
    Stored,
    StoreFullError,
    UnreachableError,
    open_objects,
)
from australis.objects.interface import PIECE
from australis.objects.s3 import RETRIES
from tests.objects.conftest import REGION, post
from tests.objects.faulty import FaultyProxy


def raised(kind: type[ObjectError], call: object) -> str:
    """The one line of its error."""
    assert callable(call)
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


# ---------------------------------------------------------------------------------------------------------------- S3


def test_server_gone(s3_server: tuple[str, int], bucket: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        port = taken.getsockname()[1]
        store = open_objects(f"s3://{bucket}?endpoint=http://127.0.0.1:{port}&region={REGION}&timeout=1")
        for call in (
            lambda: store.put("k", b""),
            lambda: store.put_stream("k", [b""]),
            lambda: store.get("k"),
            lambda: store.get_range("k", 0, 1),
            lambda: list(store.get_stream("k")),
            lambda: list(store.list()),
            lambda: store.delete("k"),
        ):
            assert bucket in raised(UnreachableError, call)


def test_no_such_bucket(s3_server: tuple[str, int]) -> None:
    host, port = s3_server
    store = open_objects(f"s3://never-made?endpoint=http://{host}:{port}&region={REGION}&timeout=1")
    assert "no such bucket" in raised(UnreachableError, lambda: store.get("k"))
    assert "no such bucket" in raised(UnreachableError, lambda: store.put("k", b"", if_absent=True))
    assert "no such bucket" in raised(UnreachableError, lambda: list(store.list()))


def test_wrong_credentials(s3_server: tuple[str, int], bucket: str, proxy: FaultyProxy) -> None:
    store = open_objects(f"s3://{bucket}?endpoint={proxy.url}&region={REGION}&timeout=1")
    store.put("k", b"v")
    post(s3_server, "/moto-api/reset-auth", b"0")  # from now on the server looks at signatures
    try:
        before = len(proxy.requests)
        for call in (lambda: store.get("k"), lambda: store.put("k", b"other"), lambda: list(store.list())):
            assert "InvalidAccessKeyId" in raised(DeniedError, call)
        assert len(proxy.requests) == before + 3  # asking again would not help
    finally:
        post(s3_server, "/moto-api/reset-auth", b"inf")
    assert store.get("k")[0] == b"v"


@pytest.mark.parametrize("status", ["500", "503"])
def test_failing_server(through_proxy: ObjectStore, proxy: FaultyProxy, status: str) -> None:
    through_proxy.put("k", b"v")
    proxy.fault = lambda _: status
    before = len(proxy.requests)
    assert f"status {status}" in raised(UnreachableError, lambda: through_proxy.get("k"))
    assert 1 < len(proxy.requests) - before <= RETRIES + 1
    assert f"status {status}" in raised(UnreachableError, lambda: through_proxy.put("k", b"w"))
    raised(UnreachableError, lambda: through_proxy.put_stream("l", [bytes(PIECE), b"x"]))
    raised(UnreachableError, lambda: list(through_proxy.list()))
    proxy.fault = lambda _: None
    assert through_proxy.get("k")[0] == b"v"
    assert [entry.key for entry in through_proxy.list()] == ["k"]


def test_one_failure_is_not_seen(through_proxy: ObjectStore, proxy: FaultyProxy) -> None:
    failed: list[str] = []

    def once(request: object) -> str | None:
        failed.append("500")
        return "500" if len(failed) == 1 else None

    proxy.fault = once
    through_proxy.put("k", b"v")
    assert len(failed) == 2
    assert through_proxy.get("k")[0] == b"v"


def test_server_that_never_answers(through_proxy: ObjectStore, proxy: FaultyProxy) -> None:
    through_proxy.put("k", b"v")
    proxy.fault = lambda _: "hang"
    for call in (lambda: through_proxy.get("k"), lambda: through_proxy.put("k", b"w")):
        raised(UnreachableError, call)
    proxy.fault = lambda _: None
    assert through_proxy.get("k")[0] == b"v"


def test_truncated_body(through_proxy: ObjectStore, proxy: FaultyProxy) -> None:
    data = os.urandom(100_000)
    through_proxy.put("k", data)
    proxy.fault = lambda request: "cut" if request.method == "GET" else None
    for call in (
        lambda: through_proxy.get("k"),
        lambda: through_proxy.get_range("k", 0, 50_000),
        lambda: list(through_proxy.get_stream("k", Stored.of(data))),
    ):
        raised(UnreachableError, call)
    proxy.fault = lambda _: None
    assert through_proxy.get("k", Stored.of(data))[0] == data


def test_wrong_bytes(through_proxy: ObjectStore, proxy: FaultyProxy) -> None:
    data = os.urandom(100_000)
    through_proxy.put("k", data)
    proxy.fault = lambda request: "flip" if request.method == "GET" else None
    assert "checksum" in raised(DamagedObjectError, lambda: through_proxy.get("k", Stored.of(data)))
    assert "checksum" in raised(DamagedObjectError, lambda: list(through_proxy.get_stream("k", Stored.of(data))))


def test_full(through_proxy: ObjectStore, proxy: FaultyProxy) -> None:
    proxy.fault = lambda request: "507" if request.method in ("PUT", "POST") else None
    raised(StoreFullError, lambda: through_proxy.put("k", b"v"))
    assert list(through_proxy.list()) == []


def test_lost_answer_of_a_conditional_put(through_proxy: ObjectStore, proxy: FaultyProxy) -> None:
    """It may have happened: a conflict with oneself, or unreachable; the object is whole or not there."""
    proxy.fault = lambda request: "lost" if request.method == "PUT" else None
    with pytest.raises((ConflictError, UnreachableError)) as caught:
        through_proxy.put("k", b"mine", if_absent=True)
    assert "\n" not in str(caught.value)
    proxy.fault = lambda _: None
    assert through_proxy.get("k")[0] == b"mine"


def test_an_object_replaced_while_it_is_read(through_proxy: ObjectStore) -> None:
    """A stream never mixes two versions."""
    through_proxy.put_stream("k", [bytes(PIECE), bytes(PIECE)])
    stream = through_proxy.get_stream("k")
    assert next(stream) == bytes(PIECE)
    through_proxy.put_stream("k", [b"\1" * PIECE, b"\1" * PIECE])
    raised(ConflictError, lambda: next(stream))


def test_the_upload_names_its_checksum(through_proxy: ObjectStore, proxy: FaultyProxy) -> None:
    """So that a server can refuse what was changed on the way."""
    through_proxy.put("k", b"v")
    digest = hashlib.sha256(b"v").digest()
    assert base64.b64decode(proxy.requests[-1].headers["x-amz-checksum-sha256"]) == digest


# ------------------------------------------------------------------------------------------------------------- files


def test_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in raised(UnreachableError, lambda: open_objects(f"file://{tmp_path}/no/such"))
    (tmp_path / "file").write_bytes(b"")
    raised(UnreachableError, lambda: open_objects(f"file://{tmp_path}/file"))
    store = open_objects(f"file://{tmp_path}/gone")
    (tmp_path / "gone").rmdir()
    raised(UnreachableError, lambda: list(store.list()))
    raised(MissingObjectError, lambda: store.get("k"))
    raised(UnreachableError, lambda: store.put("k", b""))
    assert not (tmp_path / "gone").exists()  # never made anew in silence: it may be a mount that is away


def test_full_disk(tmp_path: Path) -> None:
    """A file may have 1 MiB only: as on a full disk, writing ends with an error in the middle."""
    program = """
import resource, signal, sys
from australis.objects import StoreFullError, open_objects
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
store = open_objects("file://" + sys.argv[1])
store.put("k", b"v")
for put in (lambda: store.put("k", bytes(2 << 20)), lambda: store.put_stream("new/k", [bytes(1 << 19)] * 4)):
    try:
        put()
    except StoreFullError as error:
        print(error)
assert [entry.key for entry in store.list()] == ["k"] and store.get("k")[0] == b"v"
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "objects")], check=True, capture_output=True, text=True
    )
    assert done.stdout.count("cannot put") == 2
    assert list((tmp_path / "objects").rglob(".writing*")) == []


def test_killed_writer(tmp_path: Path) -> None:
    program = """
import sys
from australis.objects import open_objects
store = open_objects("file://" + sys.argv[1])
def pieces():
    yield bytes(1 << 20)
    print("written", flush=True)
    sys.stdin.read()
store.put_stream("k", pieces())
"""
    root = tmp_path / "objects"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        store = open_objects(f"file://{root}")
        assert len(list(root.rglob(".writing*"))) == 1  # its writer lives
        assert list(store.list()) == []
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(open_objects(f"file://{root}").list()) == []
    assert list(root.rglob(".writing*")) == []


def test_damaged_file(tmp_path: Path) -> None:
    store = open_objects(f"file://{tmp_path}/objects")
    data = os.urandom(5000)
    store.put("a/k", data)
    file = tmp_path / "objects/a/k"
    file.write_bytes(data[:-1])
    raised(DamagedObjectError, lambda: store.get("a/k", Stored.of(data)))
    file.write_bytes(data[:100] + bytes([data[100] ^ 4]) + data[101:])
    raised(DamagedObjectError, lambda: store.get("a/k", Stored.of(data)))


# -------------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "an object store is"),
        ("/tmp/x", "an object store is"),
        ("http://host/x", "an object store is"),
        ("file://host/x", "absolute"),
        ("file:relative", "absolute"),
        ("file:///x?y=z", "absolute"),
        ("s3:///prefix", "s3://bucket"),
        ("s3://b?endpoint=host:9000", "endpoint"),
        ("s3://b?secret_access_key=hush", "unknown option 'secret_access_key'"),
        ("s3://user:hush@bucket/x", "credentials"),
        ("s3://b?timeout=never", "timeout"),
        ("s3://b?timeout=-1", "timeout"),
        ("s3://b/a/../c", "not the key"),
        ("s3://[b", "not a URL"),
    ],
)
def test_urls(url: str, said: str) -> None:
    text = raised(InvalidObjectUrlError, lambda: open_objects(url))
    assert said in text
    assert "hush" not in text
