"""Small files that one process writes and another reads, or that must survive a crash whole.

What must hold: a reader sees the old content or the new one, never a mixture. Errors are the operating system's own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec


def write_atomically(file: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `file` so that a crash leaves the old content or the new one, durable before this returns."""
    temporary = file.with_name(file.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object written by this machine's own processes; empty when missing or torn."""
    try:
        content = msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def boot_id() -> str:
    """Identity of this boot of the machine (rule S2)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def file_crc32c(file: Path) -> int:
    """CRC-32C of a file's content. Raises OSError."""
    import crc32c  # not needed by every start

    value = 0
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            value = crc32c.crc32c(block, value)
    return value
