"""Whoever sits between query processor and commit service: every message passes through here.

`Between` takes the place of the commit service's socket, so backends that connect from then on talk through it; storage
and earlier backends keep their connections. A test sets `on_request` and `on_reply`; they get a message's tag and body
and return the frames to pass on (a list of bodies, or raw bytes), or raise Break to close both ends. They run in the
connection's own threads, so a test may let one wait. A commit service that is started again takes its place back.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from australis.protocol.frames import FrameDecoder, frames

Passed = list[bytes] | bytes
Hook = Callable[[int, bytes], Passed]


class Break(Exception):
    """Close the connection, to both sides."""


def passes(_tag: int, body: bytes) -> Passed:
    return [body]


class Between:
    """A relay on the path of the commit service's socket."""

    def __init__(self, run: Path) -> None:
        self.on_request: Hook = passes
        self.on_reply: Hook = passes
        self.failure: BaseException | None = None
        self._path = run / "commit.sock"
        self._service = run / "commit.behind"
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        self._path.rename(self._service)
        self._listener.bind(str(self._path))
        os.chmod(self._path, 0o777)  # the cluster may run as another user
        self._inode = self._path.stat().st_ino
        self._listener.listen(64)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()  # it may have accepted somebody just now
        self._listener.close()
        if self._path.exists() and self._path.stat().st_ino == self._inode:
            self._service.rename(self._path)
        with self._lock:
            for each in self._sockets:
                self._close(each)
        if self.failure is not None:
            raise self.failure

    @staticmethod
    def _close(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other side was faster
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed by __exit__
                return
            service = socket.socket(socket.AF_UNIX)
            with self._lock:
                self._sockets += [client, service]
            try:
                service.connect(str(self._service))
            except OSError:  # the service is down: so are we
                self._close(client)
                self._close(service)
                continue
            for source, sink, name in ((client, service, "on_request"), (service, client, "on_reply")):
                threading.Thread(target=self._relay, args=(source, sink, name), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        decoder = FrameDecoder()
        try:
            while data := source.recv(1 << 20):
                for body in decoder.feed(data):
                    out = getattr(self, name)(body[1], body)
                    sink.sendall(out if isinstance(out, bytes) else frames(out))
        except (OSError, Break):
            pass
        except BaseException as error:  # noqa: BLE001 (raised in __exit__)
            self.failure = error
        self._close(source)
        self._close(sink)
