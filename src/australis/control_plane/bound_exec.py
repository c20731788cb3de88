"""Become another program that dies with the process that started it.

    python -I -S bound_exec.py PARENT_PID SIGNAL PROGRAM [ARGUMENT ...]

The kernel sends SIGNAL when the parent dies (PR_SET_PDEATHSIG survives exec), however it dies. A program of its own,
because code between fork and exec must not run Python in a process with threads. Standard library only.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1

parent, death_signal, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
if os.getppid() != parent:  # died before the line above
    sys.exit("the supervisor is gone")
try:
    os.execv(program, sys.argv[3:])
except OSError as error:
    sys.exit(f"{program}: {error.strerror}")
