"""`python -m tests.matrix.probe DSN...`: write one row again and again, a line with the monotonic time per success."""

from __future__ import annotations

import itertools
import sys
import time

import psycopg

for dsn in itertools.cycle(sys.argv[1:]):
    try:
        with psycopg.connect(dsn, connect_timeout=2, autocommit=True) as connection:
            connection.execute("SET statement_timeout = '3s'")
            while True:
                connection.execute("INSERT INTO probe VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = probe.n + 1")
                print(time.monotonic(), flush=True)
                time.sleep(0.02)  # the load is somebody else's
    except psycopg.Error:
        time.sleep(0.05)
