"""A router in a process of its own, told what to do on standard input: what the tests run.

argv: settings of RouterConfig as JSON, the event loop (uvloop or asyncio), and a user and a group to become.  Prints
the port when it listens.  Then answers each line of input with a line of JSON: `status`, or `close`, after which it
ends; so it does at end of input.  If anything is left behind in the event loop after close, or an exception got lost,
the exit status is 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import structlog
import uvloop

from australis.router import Router, RouterConfig
from australis.transport import Address

PATHS = ("handover_socket", "unix_socket", "tls_certificate", "tls_key")


async def serve(settings: dict[str, Any]) -> int:
    lost: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: lost.append(str(context)))
    arguments: dict[str, Any] = {name: Path(value) if name in PATHS else value for name, value in settings.items()}
    arguments["upstreams"] = tuple(
        Path(text) if text.startswith("/") else Address.parse(text) for text in arguments["upstreams"]
    )
    router = Router(RouterConfig(**arguments))
    await router.start()
    print(router.port, flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while True:
        command = (await commands.readline()).strip()
        if command == b"status":
            status = router.status()
            print(
                json.dumps(
                    {
                        "pending": status.pending,
                        "sessions": status.sessions,
                        "relayed": status.relayed,
                        "tasks": len(asyncio.all_tasks()),
                        "descriptors": len(os.listdir("/proc/self/fd")),
                        "lost": lost,
                    }
                ),
                flush=True,
            )
        else:
            break
    if command == b"leave":
        await router.leave(1.0)
    else:
        await router.close()
    print("{}", flush=True)
    left = [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for line in left + lost:
        print(line, file=sys.stderr)
    return 1 if left or lost else 0


if __name__ == "__main__":
    if len(sys.argv) > 3:
        os.setgroups([])
        os.setgid(int(sys.argv[4]))
        os.setuid(int(sys.argv[3]))
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[2] == "uvloop" else None)
    with runner:
        sys.exit(runner.run(serve(json.loads(sys.argv[1]))))
