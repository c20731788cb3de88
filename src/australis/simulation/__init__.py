"""A cluster without PostgreSQL in one thread, under virtual time and seeded faults.

What runs is the product's decision code: adjudicator (`Node`, `Recovery`), validity of journal records, crossbar
(`Follower`). What is simulated is around it: network, clocks, journal engine and its writer, shards in memory, query
processors that follow T2, A6, A7, Q1 and Q2, and a control plane that takes over, moves ranges and adds journals at
the wrong moments. `oracle.py` knows everything and decides whether what happened is snapshot isolation.

    python -m australis.simulation --seeds 1000

`history.py` and `checker.py` judge histories of clients, simulated or real, that know no commit times.

What must hold: a seed determines everything (no wall clock, no hash order); a failing seed prints the command that
replays it.
"""
