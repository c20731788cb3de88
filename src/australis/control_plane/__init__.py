"""Cluster life cycle on one machine: the data directory, the processes in it, and who watches whom."""
