"""A child's output: every line reaches its log in order, however it is cut, and a flood of it is no problem."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from signal import SIGKILL

import pytest

from australis.control_plane.processes import KEPT_LINES, Child

LINES = [f"line {n} " + "x" * (n % 300) for n in range(5000)]
FLOOD = """
import sys
lines = [f"line {n} " + "x" * (n % 300) for n in range(5000)]
for line in lines:
    sys.stdout.write(line + "\\n"); sys.stdout.flush()
sys.stderr.write("no end of line"); sys.stderr.flush()
"""


async def output(name: str, program: str, file: Path, *, plain: bool) -> Child:
    child = await Child.spawn(name, [sys.executable, "-c", program], file, directory=file.parent, plain=plain)
    assert await asyncio.wait_for(child.wait(), 60) == 0
    await asyncio.wait_for(child._output.ended, 60)
    return child


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "json"])
def test_flood(tmp_path: Path, plain: bool) -> None:
    file = tmp_path / "log"
    child = asyncio.run(output(f"flood {tmp_path}", FLOOD, file, plain=plain))
    expected = [*LINES, "no end of line"]
    assert list(child.last_lines) == expected[-KEPT_LINES:]
    written = file.read_text().splitlines()
    assert [line if plain else json.loads(line)["event"] for line in written] == expected


def test_endless_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    asyncio.run(output(f"endless {tmp_path}", "print('é' * 500_000)", file, plain=True))
    assert file.read_text().replace("\n", "").replace("\ufffd", "").count("é") > 499_000  # cut at bytes, not at letters


def test_first_line_comes_at_once(tmp_path: Path) -> None:
    async def first() -> str:
        program = "import sys\nprint('ready', flush=True)\nsys.stdin.read()\nimport time\ntime.sleep(600)"
        child = await Child.spawn(
            f"ready {tmp_path}", [sys.executable, "-c", program], tmp_path / "log", directory=tmp_path
        )
        try:
            return await asyncio.wait_for(child.line("ready"), 60)
        finally:
            child.signal(SIGKILL)
            await child.wait()

    assert asyncio.run(first()) == "ready"
