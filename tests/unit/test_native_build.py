"""The build recipe: corrections apply exactly or not at all, wrong inputs are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from australis.build_extension import BuildError, apply_patch, build_extension, lmdb_source, source_root

TEXT = "one\ntwo\nthree\nfour\nfive\n"
PATCH = """--- a/x/mdb.c
+++ b/x/mdb.c
@@ -1,3 +1,4 @@
 one
+one and a half
 two
 three
@@ -4,2 +5,1 @@
-four
 five
"""


def test_patch() -> None:
    assert apply_patch(TEXT, PATCH) == "one\none and a half\ntwo\nthree\nfive\n"
    with pytest.raises(BuildError, match="does not apply"):
        apply_patch(TEXT.replace("two", "2"), PATCH)
    with pytest.raises(BuildError, match="does not apply"):
        apply_patch("zero\n" + TEXT, PATCH)


def test_wrong_inputs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUSTRALIS_LMDB_SOURCE", str(tmp_path))
    with pytest.raises(BuildError, match=r"holds no mdb\.c"):
        lmdb_source(tmp_path / "out")
    with pytest.raises(BuildError, match="--source"):
        source_root(tmp_path)
    fake = tmp_path / "pg_config"
    with pytest.raises(BuildError, match="not installed"):
        build_extension(tmp_path, fake, tmp_path, tmp_path)
    fake.write_text("#!/bin/sh\necho PostgreSQL 17.2\n")
    fake.chmod(0o755)
    with pytest.raises(BuildError, match=r"17\.2.*for PostgreSQL 18"):
        build_extension(tmp_path, fake, tmp_path, tmp_path)
