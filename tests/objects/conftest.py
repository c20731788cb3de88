"""A local S3 server (moto's), and stores of both kinds."""

from __future__ import annotations

import logging
import os
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from australis.objects import ObjectStore, open_objects
from tests.objects.faulty import FaultyProxy

REGION = "eu-central-1"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port."""
    moto = pytest.importorskip("moto.server", reason="no local S3 server: pip install australis[test-s3]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def post(server: tuple[str, int], path: str, body: bytes, method: str = "POST") -> None:
    """Tell the server something."""
    request = urllib.request.Request(
        f"http://{server[0]}:{server[1]}{path}",
        data=body,
        method=method,
        headers={"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request) as answer:
        answer.read()


@pytest.fixture
def bucket(s3_server: tuple[str, int]) -> str:
    """A new bucket."""
    name = f"test-{uuid.uuid4().hex}"
    where = f"<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
    post(s3_server, f"/{name}", where.encode(), "PUT")
    return name


@pytest.fixture
def proxy(s3_server: tuple[str, int]) -> Iterator[FaultyProxy]:
    """In front of the server."""
    with FaultyProxy(*s3_server) as proxy:
        yield proxy


@pytest.fixture
def through_proxy(proxy: FaultyProxy, bucket: str) -> ObjectStore:
    """An S3 store behind the proxy, with a short time limit."""
    return open_objects(f"s3://{bucket}/a/b?endpoint={proxy.url}&region={REGION}&timeout=1")


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "file":
        return open_objects(f"file://{tmp_path}/objects")
    host, port = request.getfixturevalue("s3_server")
    bucket = request.getfixturevalue("bucket")
    return open_objects(f"s3://{bucket}/some/prefix?endpoint=http://{host}:{port}&region={REGION}")
