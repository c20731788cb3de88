"""What every service process does at its start and end.

What must hold: a process never outlives the one that started it, prints exactly one JSON line on standard output when
it serves, ends on SIGTERM after finishing what it acknowledged, and says in one line on standard error why it failed.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import uvloop

from australis.errors import AustralisError

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None) -> None:
    """Let the kernel send SIGTERM when the parent dies; end at once if it already has.

    `parent` is the pid that is expected to be the parent (None: whoever it is now).
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        raise SystemExit(1)


def announce(**fields: int | float | str) -> None:
    """Print the line that says that this process serves."""
    sys.stdout.write(msgspec.json.encode({"ready": True, "pid": os.getpid(), **fields}).decode() + "\n")
    sys.stdout.flush()


def tune() -> None:
    """Settle the interpreter for a service that handles many small messages."""
    # Messages hold no cycles: collecting rarely costs no memory and saves pauses. What exists now stays for ever.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 1000)
    # The journal's writer must get the interpreter soon after a write has ended, also while the loop is busy.
    sys.setswitchinterval(0.0002)


def run(main: Callable[[], Coroutine[Any, Any, None]], name: str) -> int:
    """Run a service's main coroutine; return the exit status."""
    try:
        uvloop.run(main())
    except AustralisError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0
