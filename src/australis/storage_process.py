"""Storage as a process of its own, for tests and for the day when it is not part of the embedded supervisor.

    python -m australis.storage_process --data DIR

What must hold is said in `storage.service`; it ends on SIGTERM with the store marked as clean.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import structlog

from australis.cluster import ClusterDirectory, open_cluster
from australis.process import announce, die_with_parent, run, tune
from australis.storage.applier import SNAPSHOT_BYTES, Settings
from australis.storage.service import StorageService


async def serve(directory: ClusterDirectory, settings: Settings) -> None:
    """Run the storage service until SIGTERM or a failure (raised)."""
    service = StorageService(directory, settings)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await service.start()
    tune()
    announce(service="storage")
    service.failed.add_done_callback(lambda _: stop.set())
    await stop.wait()
    await service.close()
    if service.failed.done():
        raise service.failed.result()


def main() -> int:
    """Command line of the storage process."""
    parser = argparse.ArgumentParser(prog="australis.storage_process", description="Multi-version storage.")
    parser.add_argument("--data", type=Path, required=True, help="the cluster's data directory")
    parser.add_argument("--run", type=Path, help="directory of sockets and the shared page (default: DATA/run)")
    parser.add_argument("--parent", type=int, help="end when this process, our parent, ends (default: whoever it is)")
    parser.add_argument("--retention", type=float, default=Settings().retention, help="seconds that versions are kept")
    parser.add_argument("--snapshot-bytes", type=int, default=SNAPSHOT_BYTES, help="journal between two snapshots")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout carries the ready line only
    die_with_parent(options.parent)

    async def body() -> None:
        directory = open_cluster(options.data, options.run)
        await serve(directory, Settings(retention=options.retention, snapshot_bytes=options.snapshot_bytes))

    return run(body, "storage")


if __name__ == "__main__":
    raise SystemExit(main())
