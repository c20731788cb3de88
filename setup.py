"""Compile what is not Python: the native store as ``australis._native`` and the PostgreSQL extension.

Everything else about the distribution is in pyproject.toml. Both libraries come from the recipe in
``src/australis/build_extension.py``, loaded by path because the package is not installed yet. They are "extension
modules" to setuptools, so that wheels are tagged for the platform and editable installs find them in ``src``.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildNative(build_ext):
    """Build with our recipe instead of setuptools' own."""

    def build_extension(self, ext: Extension) -> None:
        spec = importlib.util.spec_from_file_location("_recipe", ROOT / "src" / "australis" / "build_extension.py")
        assert spec is not None and spec.loader is not None
        recipe = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = recipe
        spec.loader.exec_module(recipe)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        objects = Path(self.build_temp).resolve()
        try:
            recipe.build_module(ROOT, target, objects)
            # An editable install copies the module alone back to the sources: the extension goes there at once.
            package = ROOT / "src" / "australis" if self.editable_mode else target.parent
            recipe.build_extension(ROOT, recipe.pg_config(), package / "postgres", objects)
        except recipe.BuildError as error:
            sys.exit(f"error: {error}")


class BuildFresh(build_py):
    """Copy into an empty directory: setuptools keeps what an earlier build of another commit left there."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(ext_modules=[Extension("australis._native", [])], cmdclass={"build_ext": BuildNative, "build_py": BuildFresh})
