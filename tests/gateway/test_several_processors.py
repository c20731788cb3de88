"""Two hosts with two query processors each: catalogs and sequences are one."""

from __future__ import annotations

import contextlib

import pytest

from tests.fixtures.plane import plane
from tests.fixtures.postgres import ProgramsMissing
from tests.fixtures.servers import CannotStart


def test_all_query_processors_of_all_hosts_are_one() -> None:
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(plane(adjudicators=2, shards=2, gateways=2, processors=2, simple=True))
        except (CannotStart, ProgramsMissing) as error:
            pytest.skip(f"the cluster can't start: {error}")
        sessions = [
            stack.enter_context(cluster.server(gateway, processor).connect())
            for gateway in range(2)
            for processor in range(2)
        ]
        sessions[0].execute("CREATE TABLE one (id int PRIMARY KEY, drawn serial)")
        for turn in range(12):
            writer, reader = sessions[turn % 4], sessions[(turn + 1) % 4]
            writer.execute(f"ALTER TABLE one ADD COLUMN c{turn} int DEFAULT {turn}")
            assert reader.execute(f"SELECT count(c{turn}) FROM one").fetchone() == (turn,)
            writer.execute(f"INSERT INTO one (id) VALUES ({turn})")
            assert reader.execute("SELECT count(*), count(DISTINCT drawn) FROM one").fetchone() == (turn + 1, turn + 1)
