"""`australis run ROLE --config FILE`: one process of a cluster, until SIGTERM.

What must hold: the file is checked before anything else happens, and is of this role; the process prints one JSON line
on standard output when it serves, ends cleanly on SIGTERM and SIGINT, and when it cannot go on its last line on
standard error says why (exit status 1). Its log goes to standard error as JSON lines; whoever started it keeps them.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from pathlib import Path

import structlog

from australis.config import ConfigError
from australis.control_plane.topology import RoleConfig, load_role
from australis.process import run, tune

MODULES = {
    "adjudicator": "australis.adjudicator.process",
    "crossbar": "australis.crossbar.process",
    "storage": "australis.storage.shard_process",
    "gateway": "australis.query_processor.gateway",
    "router": "australis.router.process",
    "control": "australis.control_plane.controller",
}

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def run_role(role: str, path: Path) -> int:
    """Run the role that `path` configures; returns the exit status. Raises ConfigError."""
    config = load_role(path)
    if config.role != role:
        raise ConfigError(f"{path}: role: this is the configuration of {config.name}, role {config.role}, not {role}")
    if os.geteuid() == 0:
        raise ConfigError("a role does not run as root; start it as an unprivileged user who owns its directory")
    os.umask(0o077)
    try:
        os.makedirs(config.data, mode=0o700, exist_ok=True)
        if config.run:
            os.makedirs(config.run, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: data: {error.filename}: {(error.strerror or str(error)).lower()}") from None
    if role == "nats":
        _run_nats(config)
    log_to_stderr(config)
    serve = importlib.import_module(MODULES[role]).serve

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        tune()
        await serve(config, stop)

    return run(main, config.name)


def log_to_stderr(config: RoleConfig) -> None:
    """Send structlog's lines to standard error, as JSON."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[config.log_level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=config.name)


def _run_nats(config: RoleConfig) -> None:
    """Become a NATS server with the settings that journals need. Returns only by an error."""
    from australis.control_plane.nats_role import server_of

    server = server_of(config)
    server.write_settings()
    command = server.command()
    os.execv(command[0], command)
