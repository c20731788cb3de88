"""An HTTP proxy in front of an S3 server that lies, loses and delays as a test says.

    with FaultyProxy(host, port) as proxy:
        proxy.fault = lambda request: "cut" if request.method == "GET" else None

Faults: `500`, `503`, `507` (that status with S3's error document), `cut` (the connection ends in the middle of the
body), `flip` (one byte of the body is another), `lost` (the request is executed, its answer never comes), `hang`
(nothing happens until the proxy is closed), `stale` (the answer that this very request had first).
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_HOP = {"connection", "transfer-encoding", "content-length"}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the server."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]

    @property
    def listing(self) -> bool:
        """Is it a listing?"""
        return "list-type=2" in self.path


class FaultyProxy:
    """Serves on a free port of the loopback."""

    def __init__(self, host: str, port: int) -> None:
        self.fault: Callable[[Request], str | None] = lambda _: None
        self.requests: list[Request] = []
        self.released = threading.Event()
        first: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(
                    self.command, self.path, body, {name.lower(): value for name, value in self.headers.items()}
                )
                proxy.requests.append(request)
                fault = proxy.fault(request)
                if fault == "hang":
                    proxy.released.wait()
                    self.close_connection = True
                    return
                if fault is not None and fault.isdigit():
                    codes = {"500": "InternalError", "503": "SlowDown", "507": "InsufficientStorage"}
                    text = f"<Error><Code>{codes[fault]}</Code><Message>planted</Message></Error>".encode()
                    self.answer(int(fault), [("Content-Type", "application/xml")], text)
                    return
                upstream = http.client.HTTPConnection(host, port)
                try:
                    upstream.request(self.command, self.path, body, dict(self.headers.items()))
                    reply = upstream.getresponse()
                    found = reply.status, reply.getheaders(), reply.read()
                    length = reply.getheader("Content-Length")
                finally:
                    upstream.close()
                if fault == "stale":
                    found = first.setdefault(self.path, found)
                status, headers, content = found
                if fault == "lost":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif fault == "cut":
                    self.answer(status, headers, content, cut=True)
                elif fault == "flip":
                    middle = len(content) // 2
                    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
                    self.answer(status, headers, flipped)
                else:
                    self.answer(status, headers, content, length=length)

            def answer(
                self,
                status: int,
                headers: list[tuple[str, str]],
                content: bytes,
                *,
                cut: bool = False,
                length: str | None = None,
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                size = length if self.command == "HEAD" and length is not None else str(len(content))
                self.send_header("Content-Length", size)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="faulty-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
