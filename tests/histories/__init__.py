"""SQL workloads whose histories the isolation checker judges; `python -m tests.histories --help`."""
