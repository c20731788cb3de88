"""What every service process does at its start and end.

What must hold: a process never outlives the one that started it, prints exactly one JSON line on standard output when
it serves, ends on SIGTERM after finishing what it acknowledged, and says in one line on standard error why it failed.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import uvloop

from australis.errors import AustralisError

_PR_SET_PDEATHSIG = 1

SLICE_NANOSECONDS = 100_000
"""Scheduler's slice of a service's threads (Linux 6.12 and later; older kernels ignore it)."""

_SCHED_ATTR = struct.Struct("=IIQiIQQQII")
_SCHED_SYSCALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr, sched_getattr


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
    _ask_for_short_slices()


def _ask_for_short_slices() -> None:
    """Let the scheduler run our threads soon after they wake, for less time each: the same share, less waiting.

    A commit wakes four processes one after the other; on a busy machine most of its latency is waiting for a processor.
    It is a hint: where it cannot be given, nothing else changes.
    """
    numbers = _SCHED_SYSCALLS.get(platform.machine())
    if numbers is None:
        return
    set_attributes, get_attributes = numbers
    call = ctypes.CDLL(None).syscall
    size = _SCHED_ATTR.size
    for thread in [int(name) for name in os.listdir("/proc/self/task")]:
        buffer = ctypes.create_string_buffer(size)
        if call(get_attributes, thread, buffer, size, 0) != 0:
            continue
        fields = list(_SCHED_ATTR.unpack(buffer.raw))
        if fields[1] == os.SCHED_OTHER:
            fields[0], fields[5] = size, SLICE_NANOSECONDS
            call(set_attributes, thread, _SCHED_ATTR.pack(*fields), 0)


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
