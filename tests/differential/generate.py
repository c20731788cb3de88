"""Generated test files: the same questions over every type, with edge values."""

from __future__ import annotations

from collections.abc import Callable


def generated_scripts() -> dict[str, Callable[[], str]]:
    """Name -> maker of the file's text."""
    return {}
