"""Commit and storage processes for tests, and a blocking client of their sockets."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from australis.cluster import ClusterDirectory, open_cluster
from australis.protocol.frames import FrameDecoder, frame
from australis.protocol.messages import (
    AnyMessage,
    Commit,
    CommitReply,
    Get,
    GetReply,
    Hello,
    Ingest,
    IngestReply,
    Resolve,
    ResolveReply,
    Scan,
    ScanReply,
    Status,
    StatusReply,
    any_decoder,
    encode,
)

RELATION = 5 << 32 | 16385
_ENTRY = struct.Struct("<IIq")


class Disconnected(Exception):
    """The service closed the connection: nothing is known of what was in flight."""


def key(number: int, relation: int = RELATION) -> bytes:
    return struct.pack(">QQ", relation, number)


def raw(values: list[bytes | None]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(values))


def entries(batch: bytes) -> list[tuple[bytes, int, bytes | None]]:
    """Decode a batch (docs/formats.md §5)."""
    found: list[tuple[bytes, int, bytes | None]] = []
    at = 0
    while at < len(batch):
        key_length, value_length, tau = _ENTRY.unpack_from(batch, at)
        at += _ENTRY.size
        value = None
        if value_length != 0xFFFFFFFF:
            value = batch[at : at + value_length]
            at += value_length + 7 & ~7
        found.append((batch[at : at + key_length], tau, value))
        at += key_length + 7 & ~7
    return found


class Client:
    """One connection; raises Disconnected when it breaks."""

    def __init__(self, path: Path, cluster: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._decoder = FrameDecoder()
        self._ready: list[bytes] = []
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self.close()
            raise Disconnected from error
        try:
            answer = self.call(Hello(1, cluster, "qp", 0))
        except Disconnected:
            self.close()
            raise
        if not isinstance(answer, Hello):
            self.close()
            raise AssertionError(answer)
        self.generation = answer.generation

    def send(self, message: AnyMessage) -> None:
        try:
            self._socket.sendall(frame(encode(message)))
        except OSError as error:
            raise Disconnected from error

    def receive(self) -> AnyMessage:
        while not self._ready:
            try:
                data = self._socket.recv(1 << 20)
            except OSError as error:
                raise Disconnected from error
            if not data:
                raise Disconnected
            self._ready += self._decoder.feed(data)
        return any_decoder.decode(self._ready.pop(0))

    def call(self, message: AnyMessage) -> AnyMessage:
        self.send(message)
        return self.receive()

    def request(
        self, tau_start: int, writes: dict[bytes, bytes | None], *, txid: bytes | None = None, mode: int = 3
    ) -> Commit:
        modes = bytes(mode if value is not None else 0x13 for value in writes.values())
        return Commit(
            self.generation,
            txid or os.urandom(16),
            1,
            tau_start,
            0,
            list(writes),
            modes,
            raw(list(writes.values())),
            [],
            [RELATION],
            None,
            [],
        )

    def commit(self, tau_start: int, writes: dict[bytes, bytes | None]) -> CommitReply:
        answer = self.call(self.request(tau_start, writes))
        assert isinstance(answer, CommitReply), answer
        return answer

    def ingest(self, txid: bytes, seq: int, rows: dict[bytes, bytes]) -> IngestReply:
        message = Ingest(self.generation, txid, seq, raw(list(rows)), bytes([3]) * len(rows), raw(list(rows.values())))
        answer = self.call(message)
        assert isinstance(answer, IngestReply), answer
        return answer

    def resolve(self, txid: bytes, tau_start: int) -> ResolveReply:
        answer = self.call(Resolve(txid, tau_start))
        assert isinstance(answer, ResolveReply), answer
        return answer

    def status(self) -> dict[str, int | float | str]:
        answer = self.call(Status())
        assert isinstance(answer, StatusReply), answer
        return answer.status

    def number(self, name: str) -> int:
        value = self.status()[name]
        assert isinstance(value, int), name
        return value

    def get(self, tau: int, *keys: bytes) -> list[bytes | None]:
        answer = self.call(Get(1, tau, list(keys)))
        assert isinstance(answer, GetReply), answer
        assert answer.status == 0, answer
        return [value for _, _, value in entries(answer.batch)]

    def scan(self, tau: int, lo: bytes, hi: bytes) -> dict[bytes, bytes | None]:
        rows: dict[bytes, bytes | None] = {}
        while True:
            answer = self.call(Scan(1, tau, lo, hi, False, 1 << 20, 5000))
            assert isinstance(answer, ScanReply), answer
            assert answer.status == 0, answer
            for name, _, value in entries(answer.batch):
                rows[name] = value
                lo = name + b"\0"
            if not answer.more:
                return rows

    def close(self) -> None:
        self._socket.close()


class Process:
    """A service process that has said that it serves."""

    def __init__(self, module: str, data: Path, *arguments: str) -> None:
        self._errors = (data / f"{module}.err").open("ab")
        self._popen = subprocess.Popen(
            [sys.executable, "-m", f"australis.{module}", "--data", str(data), *arguments],
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self.name = module
        self._data = data

    def wait_ready(self) -> Process:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, f"{self.name} did not start: {self.error()}"
        assert json.loads(line)["ready"] is True
        return self

    @property
    def pid(self) -> int:
        return self._popen.pid

    def error(self) -> str:
        return (self._data / f"{self.name}.err").read_text()

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._close()

    def terminate(self) -> int:
        self._popen.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        status = self._popen.wait(30)
        self._close()
        return status

    def _close(self) -> None:
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        self._errors.close()

    @property
    def running(self) -> bool:
        return self._popen.poll() is None


class Services:
    """Both processes of one cluster."""

    def __init__(self, data: Path) -> None:
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        cluster = os.urandom(16)
        (data / "cluster.json").write_text(json.dumps({"cluster": cluster.hex(), "format": 1}))
        self.directory: ClusterDirectory = open_cluster(data)
        self.commit_arguments: tuple[str, ...] = (
            "--segment-bytes",
            str(1 << 20),
            "--first-segment-bytes",
            str(1 << 19),
        )
        self.storage_arguments: tuple[str, ...] = ()
        self.commit: Process | None = None
        self._clients: list[Client] = []
        self.storage: Process | None = None

    def start_commit(self) -> Process:
        self.commit = Process("commit_process", self.data, *self.commit_arguments).wait_ready()
        return self.commit

    def start_storage(self) -> Process:
        self.storage = Process("storage_process", self.data, *self.storage_arguments).wait_ready()
        return self.storage

    def start(self) -> Services:
        self.start_commit()
        self.start_storage()
        return self

    def client(self) -> Client:
        self._clients.append(Client(self.directory.commit_socket, self.directory.cluster))
        return self._clients[-1]

    def reader(self) -> Client:
        self._clients.append(Client(self.directory.storage_socket, self.directory.cluster))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for process in (self.storage, self.commit):
            if process is not None and process.running:
                process.kill()


@contextmanager
def services(data: Path) -> Iterator[Services]:
    """Services that are not started yet, and are gone afterwards."""
    both = Services(data)
    try:
        yield both
    finally:
        both.close()


def until(what: str, condition: object, seconds: float = 90.0) -> None:
    """Ask again and again until a condition of another process holds."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        select.select([], [], [], 0.01)
