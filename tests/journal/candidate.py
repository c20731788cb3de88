"""A candidate in a process of its own: says "acquired" once it holds the lease, "lost" when another does.

python -m tests.journal.candidate URL[,URL...] REPLICAS KEY HOLDER
"""

from __future__ import annotations

import asyncio
import sys

from australis.adjudicator.lease import Lease
from australis.journal.nats_server import NatsSettings


async def main() -> None:
    """End only by a signal, or with the lease."""
    servers, replicas, key, holder = sys.argv[1:]
    lease = Lease(NatsSettings(tuple(servers.split(",")), "", "unused", int(replicas)), key, holder)
    print("waits", flush=True)
    await lease.acquire()
    print("acquired", flush=True)
    await lease.lost
    print("lost", flush=True)
    await lease.close()


asyncio.run(main())
