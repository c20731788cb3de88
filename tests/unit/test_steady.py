"""The verdict of a steady run: what grows is named, what varies is not."""

from __future__ import annotations

from dataclasses import replace

from tests.steady.bounds import Sample, judge

FLAT = Sample(0, 0, 64 << 20, 20 << 20, 40 << 20, 60 << 20, 200 << 20, 20_000, 90_000, 0.0, 8 << 20, 0.0)


def run(**growth: float) -> list[str]:
    samples = []
    for number in range(100):
        values = {name: type(getattr(FLAT, name))(getattr(FLAT, name) + step * number) for name, step in growth.items()}
        samples.append(replace(FLAT, **({"time": number * 5.0, "commits": number * 1000} | values)))
    return judge(samples, 32 << 20)


def test_flat_is_steady() -> None:
    assert run() == []


def test_what_grows_is_named() -> None:
    for name, step in (("pss", 1 << 20), ("history", 500), ("catalog", 1 << 17), ("storage", 1 << 19), ("lag", 0.02)):
        (complaint, *_) = run(**{name: step})
        assert complaint.startswith({"pss": "memory", "catalog": "catalogs"}.get(name, name)), complaint


def test_too_short() -> None:
    assert "too short" in judge([FLAT] * 3, 1)[0]
    assert judge([], 1)
