"""Requests to a running supervisor of many processes, over its socket: one JSON object out, JSON lines back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from australis.control_plane.layout import ClusterError

LINE_BYTES = 64 << 10


def request(path: Path, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Send a request; yield what comes until it is done. Raises ClusterError with what the supervisor says."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(content) + b"\n")
            with connection.makefile("rb") as lines:
                while line := lines.readline(LINE_BYTES):
                    answer = msgspec.json.decode(line)
                    if "error" in answer:
                        raise ClusterError(str(answer["error"]))
                    if answer.get("done"):
                        return
                    yield answer
    except (OSError, msgspec.DecodeError) as error:
        raise ClusterError(f"{path}: the supervisor does not answer: {error}") from error
    raise ClusterError("the supervisor ended before it was done; see australis logs")
