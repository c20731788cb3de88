"""`australis bench`: this machine's Australis against this machine's PostgreSQL.

Must hold: both run the same binaries of PostgreSQL on the same disk under the same client (pgbench), stock with fsync
on; rounds alternate between the two, and a figure is the median of the rounds' ratios. What a workload could not do is
said, not left out. Servers are started in a directory of their own and removed afterwards.

    command.py    options, the whole run          servers.py  the two servers
    workloads.py  what is measured                pgbench.py  one run of the client
    machine.py    disk latency, memory            report.py   table, JSON, SVG
"""

from australis.bench.command import main

__all__ = ["main"]
