"""The data directory: ours or refused, and refused means untouched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from australis.control_plane.layout import (
    SOCKET_PATH_BYTES,
    Cluster,
    ClusterError,
    DirectoryLock,
    Layout,
    check_journal_exists,
    create_cluster,
    holder,
    prepare_directories,
    prepare_run,
    read_cluster,
    remove_run,
)


@pytest.fixture
def layout(directory: Path) -> Layout:
    made = Layout(directory / "data")
    prepare_directories(made)
    return made


def test_nothing_there(directory: Path) -> None:
    assert read_cluster(Layout(directory / "none")) is None
    assert read_cluster(Layout(directory)) is None
    assert os.listdir(directory) == []


def test_create_and_read(layout: Layout) -> None:
    cluster = create_cluster(layout, "dsql")
    assert read_cluster(layout) == cluster
    assert len(cluster.id) == 16
    assert layout.password_file.stat().st_mode & 0o777 == 0o600
    assert len(layout.password()) >= 20


@pytest.mark.parametrize(("content", "expected"), [(b"\xff\xfe", "is damaged"), (b"\n", "is empty")])
def test_damaged_password(layout: Layout, content: bytes, expected: str) -> None:
    layout.password_file.write_bytes(content)
    with pytest.raises(ClusterError, match=f"{expected}; write the password of user admin into it"):
        layout.password()


def test_first_start_that_never_finished(layout: Layout) -> None:
    layout.password_file.write_text("x")
    assert read_cluster(layout) is None


def test_other_files(directory: Path) -> None:
    (directory / "thesis.tex").write_text("important")
    with pytest.raises(ClusterError, match=r"holds other files \(thesis.tex\)"):
        read_cluster(Layout(directory))
    assert os.listdir(directory) == ["thesis.tex"]


def test_files_that_the_configuration_names(directory: Path) -> None:
    """They must be there before the first start, so they are no strangers."""
    (directory / "australis.toml").write_text('[tls]\ncertificate = "tls/server.crt"\nkey = "/etc/x/server.key"\n')
    (directory / "tls").mkdir()
    assert read_cluster(Layout(directory)) is None
    (directory / "thesis.tex").write_text("important")
    with pytest.raises(ClusterError, match=r"holds other files \(thesis.tex\)"):
        read_cluster(Layout(directory))


def test_not_a_directory(directory: Path) -> None:
    (directory / "file").write_text("")
    with pytest.raises(ClusterError, match="is not a directory"):
        read_cluster(Layout(directory / "file"))


def test_journal_without_cluster_file(layout: Layout) -> None:
    (layout.journal / "0001").write_text("committed")
    with pytest.raises(ClusterError, match="is missing but there is a journal"):
        read_cluster(layout)


def test_journal_is_gone(layout: Layout) -> None:
    create_cluster(layout, "postgres")
    check_journal_exists(layout)  # a first start that never finished
    (layout.storage / "data.mdb").touch()
    with pytest.raises(ClusterError, match=r"journal holds no segment.*put it back"):
        check_journal_exists(layout)
    layout.journal.rmdir()
    with pytest.raises(ClusterError, match=r"journal holds no segment.*put it back"):
        check_journal_exists(layout)


@pytest.mark.parametrize(
    "content", ["", "{", '{"format": 1}', "[]", "null", '{"format": "1"}', '{"cluster": "00"}', "\0" * 100]
)
def test_damaged(layout: Layout, content: str) -> None:
    layout.cluster_file.write_text(content)
    with pytest.raises(ClusterError, match=r"is damaged; put it back"):
        read_cluster(layout)
    assert layout.cluster_file.read_text() == content


def test_every_truncation(layout: Layout) -> None:
    create_cluster(layout, "postgres")
    whole = layout.cluster_file.read_bytes().rstrip()
    for length in range(len(whole)):
        layout.cluster_file.write_bytes(whole[:length])
        with pytest.raises(ClusterError):
            read_cluster(layout)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("format", 2, "has data format 2, this program knows 1"),
        ("postgresql", 17, "made with PostgreSQL 17"),
        ("cluster", "abcd", "is damaged"),
        ("cluster", "zz" * 16, "is damaged"),
        ("profile", "oracle", "is damaged"),
    ],
)
def test_other_version(layout: Layout, field: str, value: object, expected: str) -> None:
    create_cluster(layout, "postgres")
    content = json.loads(layout.cluster_file.read_text())
    layout.cluster_file.write_text(json.dumps(content | {field: value}))
    with pytest.raises(ClusterError, match=expected):
        read_cluster(layout)


def test_fields_of_later_versions_are_kept_out(layout: Layout) -> None:
    create_cluster(layout, "postgres")
    content = json.loads(layout.cluster_file.read_text())
    layout.cluster_file.write_text(json.dumps(content | {"region": "x"}))
    assert isinstance(read_cluster(layout), Cluster)


def test_lock(layout: Layout) -> None:
    create_cluster(layout, "postgres")
    assert holder(layout) is None
    lock = DirectoryLock(layout)
    lock.acquire()
    assert holder(layout) == os.getpid()
    with pytest.raises(ClusterError, match=f"in use by a running cluster .process {os.getpid()}."):
        DirectoryLock(layout).acquire()
    lock.release()
    assert holder(layout) is None
    DirectoryLock(layout).acquire()


def test_run_directory_is_emptied(layout: Layout) -> None:
    prepare_run(layout)
    (layout.run / "commit.sock").write_text("stale")
    (layout.run / "page").write_text("what was acknowledged")
    prepare_run(layout)
    assert sorted(os.listdir(layout.run)) == ["boot", "page"]
    assert layout.run == layout.data / "run"
    (layout.run / "boot").write_text("another")
    prepare_run(layout)
    assert os.listdir(layout.run) == ["boot"]


def test_long_path_gets_a_short_run_directory(directory: Path) -> None:
    layout = Layout(directory / ("d" * 100))
    prepare_directories(layout)
    prepare_run(layout)
    first = layout.run
    assert len(os.fsencode(first / "commit.sock")) <= SOCKET_PATH_BYTES
    assert first.stat().st_mode & 0o777 == 0o700
    prepare_run(layout)
    assert layout.run == first, "kept from run to run"
    shutil.rmtree(first)
    prepare_run(layout)
    assert layout.run.is_dir(), "made again after a reboot emptied the temporary directory"
    remove_run(layout)
    assert not layout.run.exists() and not (layout.data / "run").is_symlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable(directory: Path) -> None:
    directory.chmod(0o555)
    with pytest.raises(ClusterError, match="name a directory you can write to"):
        prepare_directories(Layout(directory / "data"))
