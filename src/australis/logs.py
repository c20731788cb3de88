"""Logs of a process: JSON lines in a bounded file, one-liners for people on a terminal.

Every Australis process calls `configure` once, first thing. What must hold: a log file never grows beyond
`FILE_BYTES * (KEPT_FILES + 1)`, and a log that cannot be written (full disk) never stops the process that logs. Lines
of libraries that use `logging` take the same way, so nothing is printed into the void of a detached process.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES = 8 << 20
KEPT_FILES = 3

_BEFORE: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


class _BoundedFile(logging.handlers.RotatingFileHandler):
    """A rotating file whose failures are reported once per cause, not once per line."""

    _reported: str | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        cause = repr(sys.exc_info()[1])
        if cause != self._reported:
            self._reported = cause
            print(f"australis: cannot write the log {self.baseFilename}: {cause}", file=sys.stderr, flush=True)


def configure(file: Path | None, *, level: str = "info", terminal: bool = False, process: str = "") -> None:
    """Send this process's log to `file` (JSON lines), and to stderr in words when `terminal`.

    `process` names the process in every line. Safe to call again: the last call counts.
    """
    handlers: list[logging.Handler] = []
    if file is not None:
        bounded = _BoundedFile(file, maxBytes=FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8", delay=True)
        bounded.setFormatter(_formatter(structlog.processors.JSONRenderer()))
        handlers.append(bounded)
    if terminal:
        stream = logging.StreamHandler(sys.stderr)
        stream.setFormatter(_formatter(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)))
        handlers.append(stream)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers or [logging.NullHandler()]:
        root.addHandler(handler)
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_BEFORE,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    if process:
        structlog.contextvars.bind_contextvars(process=process)


def _formatter(renderer: structlog.typing.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_BEFORE,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
