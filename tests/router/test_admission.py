"""Admission under a clock of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from australis.router.admission import Admission
from australis.router.config import RouterConfig
from australis.router.startup import Refused


def test_count() -> None:
    admission = Admission(2, None, 1)
    admission.enter(0.0)
    admission.enter(0.0)
    with pytest.raises(Refused, match="sorry, too many clients already") as error:
        admission.enter(0.0)
    assert error.value.sqlstate == "53300"
    admission.leave()
    admission.enter(0.0)
    assert admission.sessions == 2


def test_rate() -> None:
    admission = Admission(1000, 10.0, 3)
    for _ in range(3):
        admission.enter(100.0)
    with pytest.raises(Refused) as error:
        admission.enter(100.0)
    assert error.value.sqlstate == "53400"
    assert admission.sessions == 3, "a refused client takes no place"
    with pytest.raises(Refused):
        admission.enter(100.05)
    admission.enter(100.15)  # 1.5 have flown in since
    with pytest.raises(Refused):
        admission.enter(100.15)
    for _ in range(3):
        admission.enter(1000.0)  # never more than the burst
    with pytest.raises(Refused):
        admission.enter(1000.0)


def test_refused_by_count_costs_no_rate() -> None:
    admission = Admission(1, 0.001, 2)
    admission.enter(0.0)
    for _ in range(5):
        with pytest.raises(Refused, match="too many"):
            admission.enter(0.0)
    admission.leave()
    admission.enter(0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70000),
        ("max_connections", 0),
        ("max_pending", -1),
        ("login_timeout", 0),
        ("connection_rate", 0.0),
        ("max_lifetime", float("nan")),
        ("tls_key", Path("key")),
    ],
)
def test_configuration_that_is_none(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        RouterConfig(**{"upstreams": (Path("a"),), "handover_socket": Path("b"), name: value})  # type: ignore[arg-type]
