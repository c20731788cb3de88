"""Reads the logs of a cluster for `australis logs`: several files in one stream, in words.

Our own files hold JSON lines, PostgreSQL's its own text. What must hold: reading never disturbs the writers, and a line
that is neither is shown as it is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from australis.control_plane.layout import ClusterError

SUFFIX = ".log"
FOLLOW_INTERVAL = 0.3
TIME_LENGTH = len("2026-01-01T00:00:00.000")


def read(directory: Path, name: str | None, lines: int, *, follow: bool) -> Iterator[str]:
    """The last `lines` lines of all logs (or of the one named) by time; then new ones for ever if `follow`."""
    files = {file.name.removesuffix(SUFFIX): file for file in sorted(directory.glob("*" + SUFFIX))}
    if name is not None:
        if name not in files:
            raise ClusterError(f"no log named {name}; there are: {', '.join(files) or 'none'}")
        files = {name: files[name]}
    streams: dict[str, IO[str]] = {}
    try:
        yield from _lines(directory, files, streams, lines, follow=follow)
    finally:
        for stream in streams.values():
            stream.close()


def _lines(
    directory: Path, files: dict[str, Path], streams: dict[str, IO[str]], lines: int, *, follow: bool
) -> Iterator[str]:
    """Opens into `streams`, which the caller closes."""
    entries: list[tuple[str, int, str]] = []
    for source, file in files.items():
        stream: IO[str] = file.open(encoding="utf-8", errors="replace")
        streams[source] = stream
        when = ""
        for number, line in enumerate(deque(stream, maxlen=lines)):
            when, text = _in_words(line, when)
            entries.append((when, number, f"{source:<10} {text}"))
    entries.sort(key=lambda entry: entry[:2])
    yield from (text for _, _, text in entries[-lines:] if lines)
    while follow:
        quiet = True
        for source, stream in streams.items():
            for line in stream:
                quiet = False
                yield f"{source:<10} {_in_words(line, '')[1]}"
            try:
                if files[source].stat().st_ino != _inode(stream):  # rotated
                    streams[source] = files[source].open(encoding="utf-8", errors="replace")
                    stream.close()
            except FileNotFoundError:
                if not directory.exists():  # destroyed
                    return
                # else it is just being rotated
        if quiet:
            time.sleep(FOLLOW_INTERVAL)


def _inode(stream: IO[str]) -> int:
    import os

    return os.fstat(stream.fileno()).st_ino


def _in_words(line: str, before: str) -> tuple[str, str]:
    """(time for sorting, text); a line without a time belongs to the one before it."""
    line = line.rstrip("\n")
    try:
        fields = msgspec.json.decode(line)
    except msgspec.DecodeError:
        fields = None
    if not isinstance(fields, dict):
        when = line[:TIME_LENGTH].replace(" ", "T")
        return (when if when[:2] == "20" else before), line
    when = str(fields.pop("timestamp", before))[:TIME_LENGTH]
    level, event = fields.pop("level", "info"), fields.pop("event", "")
    fields.pop("process", None)
    details = " ".join(f"{key}={value}" for key, value in fields.items())
    return when, f"{when.replace('T', ' ')} {level:<7} {event} {details}".rstrip()
