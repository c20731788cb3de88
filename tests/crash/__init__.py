"""Crash runs: processes killed under load; what was acknowledged must be there, whole, and nothing else."""
