"""Command line of the simulator."""

from __future__ import annotations

import argparse
import sys
import time
from multiprocessing import Pool

from australis.simulation.run import Result, run
from australis.simulation.workloads import WORKLOADS


def _one(task: tuple[int, str | None, str | None]) -> Result:
    seed, workload, mutation = task
    result = run_mutated(seed, workload, mutation)
    result.transactions = []
    return result


def run_mutated(seed: int, workload: str | None, mutation: str | None, *, trace: bool = False) -> Result:
    """Run a seed, with a rule broken on purpose if one is named."""
    if mutation is None:
        return run(seed, workload, trace=trace)
    from australis.simulation.mutations import MUTATIONS, mutated

    with mutated(mutation):
        return run(seed, workload or MUTATIONS[mutation].workload, trace=trace, storm=MUTATIONS[mutation].storm)


def main() -> int:
    """Run seeds; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="australis.simulation", description="A cluster under virtual time.")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--workload", choices=["mix", *WORKLOADS], help="default: each seed chooses")
    parser.add_argument("--mutation", help="break this rule; `list` shows the names")
    parser.add_argument("--mutations", action="store_true", help="break each rule in turn and print what finds it")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="print everything that happens (of one seed)")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many failing seeds")
    options = parser.parse_args()
    if options.mutation == "list":
        from australis.simulation.mutations import MUTATIONS

        print("\n".join(MUTATIONS))
        return 0
    if options.mutations:
        return _table(options)
    if options.trace:
        result = run_mutated(options.first, options.workload, options.mutation, trace=True)
        print("\n".join(result.trace))
        _report(result, options)
        return bool(result.wrong)
    started = time.monotonic()
    tasks = ((seed, options.workload, options.mutation) for seed in range(options.first, options.first + options.seeds))
    failures = seeds = committed = events = 0
    with Pool(options.processes) if options.processes > 1 else _Here() as pool:
        for result in pool.imap(_one, tasks):
            seeds += 1
            committed += result.committed
            events += result.events
            if result.wrong:
                failures += 1
                _report(result, options)
                if failures >= options.failures:
                    break
    seconds = time.monotonic() - started
    print(
        f"{seeds} seeds, {failures} failed; {committed} commits, {events} events; "
        f"{seconds:.1f} s, {seeds / seconds:.1f} seeds/s"
    )
    return int(failures > 0)


def caught(name: str, first: int, seeds: int) -> tuple[int, Result] | None:
    """Run a mutation until a seed fails: how many seeds that took, and the one that did. None: all were clean."""
    for count in range(seeds):
        result = run_mutated(first + count, None, name)
        if result.wrong:
            return count + 1, result
    return None


def _table(options: argparse.Namespace) -> int:
    from australis.simulation.mutations import MUTATIONS

    missed = 0
    print(f"{'mutation':34} {'rule':8} {'seeds':>6}  found by")
    for name, mutation in MUTATIONS.items():
        found = caught(name, options.first, options.seeds)
        if found is None:
            missed += 1
            print(f"{name:34} {mutation.rule:8} {'> ' + str(options.seeds):>6}  -", flush=True)
        else:
            print(f"{name:34} {mutation.rule:8} {found[0]:>6}  {found[1].wrong[0][:110]}", flush=True)
    return int(missed > 0)


def _report(result: Result, options: argparse.Namespace) -> None:
    for line in result.wrong[:10]:
        print(f"seed {result.seed} ({result.workload}): {line}")
    if not result.wrong:
        print(f"seed {result.seed} ({result.workload}): nothing wrong; {result.committed} commits")
        return
    command = f"python -m australis.simulation --from {result.seed} --trace"
    if options.workload:
        command += f" --workload {options.workload}"
    if options.mutation:
        command += f" --mutation {options.mutation}"
    print(f"replay: {command}")


class _Here:
    """What Pool is to several processes."""

    imap = staticmethod(map)

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


if __name__ == "__main__":
    sys.exit(main())
