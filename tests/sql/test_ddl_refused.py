"""What docs/sql.md says is refused or runs in another form: the output of ddl_refused.sql is ddl_refused.out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.servers import Server

HERE = Path(__file__).parent


def output(server: Server) -> str:
    """Of the statements, run in an empty database of their own."""
    with server.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS refused")
        connection.execute("CREATE DATABASE refused")
    here = server.database("refused")
    done = here.psql("--echo-all", "--quiet", stdin=(HERE / "ddl_refused.sql").read_text() + "\n\\echo end\n")
    with server.connect() as connection:
        connection.execute("DROP DATABASE refused")
    assert done.stdout.endswith("end\n"), done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def printed(australis: Server) -> str:
    return output(australis)


def test_output(printed: str) -> None:
    assert printed == (HERE / "ddl_refused.out").read_text()


def test_all_refusals_say_so(printed: str) -> None:
    assert "server closed" not in printed
    assert "internal" not in printed
