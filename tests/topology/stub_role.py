"""A process in the place of a role: checks its configuration, answers Status, ends on SIGTERM.

    python -m tests.topology.stub_role FILE

`<data>/refuse` makes it fail at its start, with that text; `<data>/slow` makes it ready only when that is gone;
`<data>/loop` makes it fall into an endless loop at the next question.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from australis.control_plane.topology import RoleConfig, identity_of, load_role
from australis.errors import AustralisError
from australis.process import announce, run
from australis.protocol.messages import (
    Get,
    GetReply,
    ShardStart,
    ShardSubscribe,
    Status,
    StatusReply,
    WantWatermark,
    Watermark,
    any_decoder,
)
from australis.transport import Address, Connection, listen


class StubError(AustralisError):
    """What the test asked for."""


class _Handler:
    def __init__(self, config: RoleConfig) -> None:
        self._config = config

    def connected(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...

    def writable(self, connection: Connection, yes: bool) -> None: ...

    def received(self, connection: Connection, body: bytes) -> None:
        match any_decoder.decode(body):
            case Status():
                loop = Path(self._config.data) / "loop"
                if loop.exists():
                    loop.unlink()
                    while True:
                        pass
                connection.send(StatusReply({"role": self._config.role, "number": self._config.number}))
            case ShardSubscribe():
                connection.send(ShardStart(0, 0))
            case WantWatermark(tau):
                connection.send(Watermark(tau))
            case Get(id):
                connection.send(GetReply(id, 0, b""))


async def main() -> None:
    config = load_role(Path(sys.argv[1]))
    data = Path(config.data)
    with contextlib.suppress(FileNotFoundError):
        raise StubError((data / "refuse").read_text())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = None
    if config.listen:
        server = await listen(Address.parse(config.listen), identity_of(config, lambda: 1), lambda: _Handler(config))
    announce(service=config.role)
    await stop.wait()
    with (data / "ended").open("a") as file:
        file.write("cleanly\n")
    if server is not None:
        await server.close()


if __name__ == "__main__":
    raise SystemExit(run(main, Path(sys.argv[1]).parent.name))
