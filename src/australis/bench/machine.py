"""What the machine does: latency of a durable write, memory of processes."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

WRITES = 300
WRITE_BYTES = 8192


def disk_latency(directory: Path) -> dict[str, float]:
    """Milliseconds of a write of 8 kB and its fdatasync into a preallocated file: p50, p99, max."""
    file = directory / "disk-latency"
    times = []
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(fd, 0, WRITES * WRITE_BYTES)
        os.fsync(fd)
        block = os.urandom(WRITE_BYTES)
        for n in range(WRITES):
            started = time.perf_counter()
            os.pwrite(fd, block, n * WRITE_BYTES)
            os.fdatasync(fd)
            times.append((time.perf_counter() - started) * 1000)
    finally:
        os.close(fd)
        file.unlink()
    times.sort()
    return {"p50": times[WRITES // 2], "p99": times[WRITES * 99 // 100], "max": times[-1]}


def description() -> dict[str, object]:
    """The machine in a few words."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(int(memory) / (1 << 20), 1)}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    out, todo = [], [pid]
    while todo:
        current = todo.pop()
        out.append(current)
        todo += children.get(current, [])
    return out


def proportional_memory(pid: int) -> float:
    """MB of memory (PSS) of a process and its descendants."""
    total = 0
    for process in descendants(pid):
        for line in _lines(f"/proc/{process}/smaps_rollup"):
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024
