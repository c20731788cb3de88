"""Schema changes under load; `python -m tests.processors` does the same for longer and with more clients."""

from __future__ import annotations

from tests.processors.conftest import COUNT, Processors
from tests.processors.load import Load

SECONDS = 12.0


def test_nothing_but_40001(processors: Processors) -> None:
    result = Load(lambda number: processors.connect(number % COUNT), COUNT, clients=18).run(SECONDS)
    print(result.line())
    assert not result.wrong
    assert result.transfers and result.audits and result.changes
