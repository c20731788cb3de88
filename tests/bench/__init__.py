"""The benchmark's own parts: reading pgbench, medians, floors, table and picture."""
