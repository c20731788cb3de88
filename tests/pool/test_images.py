"""Images of later catalogs, and the choice between a data directory and a copy; without a server."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from australis.files import file_crc32c
from australis.query_processor import image
from australis.query_processor.installation import Installation
from australis.query_processor.launcher import REFRESH_CHANGES, QueryProcessor

FAR = REFRESH_CHANGES + 1


def fill(data: Path, mark: str) -> None:
    (data / "global").mkdir(parents=True, exist_ok=True)
    (data / "PG_VERSION").write_text("18\n")
    (data / "global" / "pg_control").write_text("control")
    (data / "mark").write_text(mark)
    (data / "australis_sequences").write_text("12345678")
    (data / "postmaster.opts").write_text("x")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Image 0."""
    fill(tmp_path / "first", "image 0")
    (tmp_path / "first" / "australis_sequences").unlink()
    file = tmp_path / "image.tar"
    subprocess.run(["tar", "-cf", str(file), "-C", str(tmp_path / "first"), "."], check=True)
    file.with_name("image.tar.crc32c").write_text(f"{file_crc32c(file):08x} {file.stat().st_size}\n")
    return file


def take(base: Path, version: int) -> bool:
    data = base.parent / "data"
    fill(data, f"image {version}")
    copied = threading.Event()
    taken = image.take(base, data, version, threading.Event(), copied)
    assert copied.is_set()
    return taken


def processor(base: Path, number: int = 1) -> QueryProcessor:
    return QueryProcessor(base.parent / str(number), Installation(Path("/nowhere"), None), "secret", image=base)


def test_a_copy_is_not_its_original(base: Path, tmp_path: Path) -> None:
    assert take(base, 7)
    assert image.newest(base) == image.Image(tmp_path / "image-7.tar", 7)
    image.extract(tmp_path / "image-7.tar", tmp_path / "copy")
    assert sorted(os.listdir(tmp_path / "copy")) == ["PG_VERSION", "global", "mark"]
    assert image.whole(base) and image.whole(tmp_path / "image-7.tar")


def test_the_newest_replaces_earlier_ones_and_not_image_0(base: Path, tmp_path: Path) -> None:
    take(base, 7)
    take(base, 30)
    left = sorted(file.name for file in tmp_path.glob("image*"))
    assert left == ["image-30.tar", "image-30.tar.crc32c", "image.tar", "image.tar.crc32c"]
    image.drop_later(base)
    assert image.newest(base) == image.Image(base, 0)


@pytest.mark.parametrize("how", ["damaged", "torn", "without checksum", "of another image 0"])
def test_one_that_is_not_whole_is_dropped(base: Path, tmp_path: Path, how: str) -> None:
    take(base, 7)
    file = tmp_path / "image-7.tar"
    if how == "damaged":
        with file.open("r+b") as content:
            content.seek(700)
            content.write(b"damage")
    elif how == "torn":
        os.truncate(file, 1000)
    elif how == "without checksum":
        file.with_name("image-7.tar.crc32c").unlink()
    else:
        os.utime(base, ns=(1, 1))
    assert image.newest(base) == image.Image(base, 0)
    assert not file.exists()


def test_taking_is_abandoned(base: Path, tmp_path: Path) -> None:
    """Nothing is left of it, and what was there stays."""
    take(base, 7)
    data = tmp_path / "data"
    with (data / "large").open("wb") as file:
        file.truncate(1 << 32)  # tar takes a while with it
    stop, copied = threading.Event(), threading.Event()
    stop.set()
    assert not image.take(base, data, 9, stop, copied)
    assert copied.is_set() and image.newest(base).version == 7
    assert not list(tmp_path.glob("*.new"))


def test_what_a_start_is_made_from(base: Path) -> None:
    one = processor(base)
    assert one.prepare() == "rebuilt: missing or incomplete" and one.version == 0
    assert one.prepare(trusted=True) == "kept"
    one.version = 10
    one.mark_clean()
    take(base, REFRESH_CHANGES)
    assert one.prepare(trusted=True) == "kept" and one.version == 10, "not far behind"
    one.mark_clean()
    take(base, 10 + FAR)
    assert one.prepare(trusted=True) == "rebuilt: an image is far ahead of it"
    assert one.version == 10 + FAR and (one.data / "mark").read_text() == f"image {10 + FAR}"
    assert one.prepare(rebuild=True) == "rebuilt: asked for" and one.version == 10 + FAR
    assert one.prepare(rebuild=True, first_image=True) == "rebuilt: asked for" and one.version == 0
    assert image.newest(base).version == 0, "the later one is not trusted any more"


def test_a_damaged_image_does_not_cost_a_good_directory(base: Path) -> None:
    one = processor(base)
    one.prepare()
    one.version = 10
    one.mark_clean()
    take(base, 10 + FAR)
    os.truncate(base.with_name(f"image-{10 + FAR}.tar"), 1000)
    assert one.prepare(trusted=True) == "kept" and one.version == 10


def test_syncing_is_abandoned(base: Path) -> None:
    one = processor(base)
    one.prepare()
    stop = threading.Event()
    stop.set()
    assert not one.mark_clean(stop)
    assert b'"clean":false' in (one.directory / "boot.json").read_bytes()
