"""Servers that are killed and stopped under load; `python -m tests.journal` does more of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.nats import nats_servers
from tests.journal.rounds import FAULTS_ONE, FAULTS_THREE, Rounds


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("count", "faults"), [(1, FAULTS_ONE), (3, FAULTS_THREE)], ids=["nats1", "nats3"])
def test_faults_under_load(tmp_path: Path, count: int, faults: tuple[str, ...]) -> None:
    with nats_servers(tmp_path / "servers", count) as servers:
        rounds = Rounds(tmp_path, servers)
        rounds.run(list(faults))
        print(rounds.summary())
