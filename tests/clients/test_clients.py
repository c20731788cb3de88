"""Each program runs on both servers, ends well and prints the same (acceptance line A9)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.servers import Server

HERE = Path(__file__).parent
PROGRAMS = {
    "use_psycopg": "psycopg",
    "use_asyncpg": "asyncpg",
    "use_sqlalchemy": "sqlalchemy",
    "use_xmin": "sqlalchemy",
    "use_django": "django",
    "use_pg8000": "pg8000",
    "use_psycopg2": "psycopg2",
}
SECONDS = 120


def run(command: list[str], server: Server) -> str:
    env = {**os.environ, "PYTHONWARNINGS": "default", "TZ": "UTC"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=env, check=False)
    assert done.returncode == 0, f"on {server.kind}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert done.stdout.count("\n") > 5, "the program must show what it saw"
    return done.stdout


@pytest.mark.timeout(3 * SECONDS)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("path", ["router", "direct"])
def test_python_client(program: str, path: str, stock: Server, australis: Server) -> None:
    if importlib.util.find_spec(PROGRAMS[program]) is None:
        pytest.skip(f"{PROGRAMS[program]} is not installed (pip install '.[test]')")
    script = str(HERE / "programs" / f"{program}.py")
    expected = run([sys.executable, script, stock.dsn], stock)
    url = australis.direct_dsn if path == "direct" else australis.dsn
    assert run([sys.executable, script, url], australis) == expected


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with node_modules/pg: AUSTRALIS_TEST_NODE_MODULES' parent, or freshly installed by npm."""
    named = os.environ.get("AUSTRALIS_TEST_NODE_MODULES")
    if named:
        return Path(named).parent
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("node and npm are not installed (Debian: nodejs, npm)")
    directory = tmp_path_factory.mktemp("node")
    shutil.copy(HERE / "node" / "package.json", directory)
    command = [npm, "install", "--no-audit", "--no-fund", "--silent"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install pg took too long")
    if done.returncode:
        pytest.skip(f"npm install pg failed: {done.stderr.strip()[-200:]}")
    return directory


@pytest.mark.timeout(3 * SECONDS)
def test_node_postgres(node_modules: Path, stock: Server, australis: Server) -> None:
    command = ["node", str(HERE / "node" / "program.js")]
    expected = run([*command, stock.dsn, str(node_modules)], stock)
    assert run([*command, australis.dsn, str(node_modules)], australis) == expected
