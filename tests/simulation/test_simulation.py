"""The simulator: the code as it is passes, every broken rule is found, and a seed is a seed.

`make simulate SEEDS=10000` runs more. What this file runs is bounded in seeds, never in time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest

from australis.simulation.__main__ import caught, run_mutated
from australis.simulation.export import export
from australis.simulation.mutations import MUTATIONS
from australis.simulation.run import run
from australis.simulation.workloads import WORKLOADS

SEEDS_PER_WORKLOAD = 15
SEEDS_PER_MUTATION = 400

PAST = {
    5: "the answer to the announcement of a journal was lost, and every watermark waited for ever",
    249: "the map said that a range had moved before its release was durable",
    1447: "a commit reached an adjudicator that was not meant, but had a generation of the same number",
}
"""Seeds that failed once."""

CATCHING = {
    "zombie-vote": 9,
    "floor-from-clock": 13,
    "floor-without-h": 156,
    "rebuild-without-row-locks": 84,
    "window-ends-now": 9,
    "late-outcome-overwrites": 109,
    "tau-bumped": 13,
    "heartbeat-above-h": 33,
    "ack-without-prefix": 102,
    "ack-after-failure": 145,
    "another-generation": 137,
    "resolve-does-not-kill": 122,
    "commit-after-resolve": 96,
    "resolve-by-older-generation": 40,
    "old-attempt": 67,
    "tau-max-not-checked": 35,
    "clock-not-raised": 107,
    "moved-with-open-promise": 124,
    "move-without-floor": 15,
    "move-told-before-durable": 41,
    "stale-map-believed": 11,
    "journal-born-unnoticed": 72,
    "journal-born-in-the-past": 31,
    "commit-of-another-adjudicator": 16,
    "seen-before-earliest": 74,
}
"""Seeds to try first, where a search from 0 is long; `python -m australis.simulation --mutations` finds others."""


@pytest.mark.parametrize("workload", ["mix", *WORKLOADS])
def test_seeds_are_clean(workload: str) -> None:
    committed = 0
    for seed in range(SEEDS_PER_WORKLOAD):
        result = run(seed, workload)
        assert result.wrong == [], f"python -m australis.simulation --from {seed} --workload {workload} --trace"
        committed += result.committed
    assert committed > 5 * SEEDS_PER_WORKLOAD  # refusing everything would be clean, too


@pytest.mark.parametrize("seed", PAST)
def test_seeds_that_failed_once_are_clean(seed: int) -> None:
    assert run(seed).wrong == []


def test_the_same_seed_is_the_same_run() -> None:
    command = [sys.executable, "-m", "australis.simulation", "--from", "7", "--trace"]
    runs = [
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) > 100
    assert run(7).digest == run(7, trace=True).digest != run(8).digest


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_found(name: str) -> None:
    found = caught(name, CATCHING[name], 1) if name in CATCHING else None
    found = found or caught(name, 0, SEEDS_PER_MUTATION)
    assert found is not None, f"{name} ({MUTATIONS[name].rule}) was not found within {SEEDS_PER_MUTATION} seeds"
    # and it is the mutation that is found: the same seed, workload and faults are clean without it
    mutation = MUTATIONS[name]
    assert run(found[1].seed, mutation.workload, storm=mutation.storm).wrong == []


def test_a_failing_seed_prints_what_replays_it() -> None:
    command = [sys.executable, "-m", "australis.simulation", "--seeds", "5", "--mutation", "read-before-watermark"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    (line,) = [line for line in failed.stdout.splitlines() if line.startswith("replay: python ")]
    again = subprocess.run([sys.executable, *line.split()[2:]], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert [text for text in failed.stdout.splitlines() if text.startswith("seed ")] == [
        text for text in again.stdout.splitlines() if text.startswith("seed ")
    ]
    assert "tau_start" in again.stdout


def test_a_mutation_ends() -> None:
    assert run_mutated(3, "bank", "no-floor").seed == 3
    assert run_mutated(3, "bank", None).digest == run(3, "bank").digest


@pytest.mark.parametrize(("workload", "kinds"), [("append", {"append", "read"}), ("register", {"write", "get"})])
def test_histories_can_be_judged_by_others(workload: str, kinds: set[str]) -> None:
    result = run(11, workload)
    history = export(workload, result.transactions)
    operations = [operation for item in history["transactions"] for operation in item[4]]
    assert {operation[0] for operation in operations} == kinds
    assert {item[3] for item in history["transactions"]} <= {"ok", "fail", "unknown"}
    assert all(item[1] <= item[2] for item in history["transactions"])
    # one session, one transaction after the other
    for process in {item[0] for item in history["transactions"]}:
        own = [item for item in history["transactions"] if item[0] == process]
        assert all(before[2] <= after[1] for before, after in pairwise(own))
