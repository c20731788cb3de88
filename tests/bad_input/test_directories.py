"""Wrong directories, files, ports, disks: what `australis start` says, and that the cluster is whole afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.servers import AustralisCluster, CannotStart, free_port, temporary_directory, unprivileged

ROWS = 500
REMEDY = re.compile(r"; |known keys|must be|expected|one of")


def skip_or_fail(error: CannotStart) -> None:
    if os.environ.get("AUSTRALIS_TEST_REQUIRE") == "1":
        raise error
    pytest.skip(str(error))


@pytest.fixture
def scratch() -> Iterator[Path]:
    with temporary_directory("bad") as directory:
        yield directory


@pytest.fixture(scope="module")
def sample() -> Iterator[Path]:
    """The data directory of a stopped cluster with a table in it; tests work on copies."""
    with temporary_directory("sample") as directory:
        cluster = AustralisCluster(directory)
        try:
            server = cluster.start()
        except CannotStart as error:
            skip_or_fail(error)
        with server.connect() as connection:
            connection.execute("CREATE TABLE kept (id int PRIMARY KEY, v text)")
            connection.execute("INSERT INTO kept SELECT i, md5(i::text) FROM generate_series(1, %s) i", (ROWS,))
        cluster.stop()
        yield directory


@pytest.fixture
def cluster(sample: Path, scratch: Path) -> Iterator[AustralisCluster]:
    """A copy of the sample, stopped."""
    subprocess.run(["cp", "-a", str(sample / "data"), str(scratch / "data")], check=True)
    copy = AustralisCluster(scratch)
    yield copy
    copy.stop()


def whole(cluster: AustralisCluster) -> None:
    """The cluster starts and holds exactly what it held."""
    server = cluster.start()
    with server.connect() as connection:
        row = connection.execute("SELECT count(*), md5(string_agg(v, '' ORDER BY id)) FROM kept").fetchone()
        expected = connection.execute(
            "SELECT md5(string_agg(md5(i::text), '' ORDER BY i)) FROM generate_series(1, %s) i", (ROWS,)
        ).fetchone()
    assert row is not None
    assert expected is not None
    assert row == (ROWS, expected[0])
    cluster.stop()


def refusal(cluster: AustralisCluster, pattern: str, *arguments: str) -> None:
    """`start` fails with one line that names cause and remedy."""
    done = cluster.command("start", "--detach", "--port", str(cluster.port), *arguments)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode not in (0, -1), done.stdout
    assert "Traceback" not in done.stderr
    assert len([line for line in lines if line.startswith("Error: ")]) == 1, done.stderr
    assert re.search(pattern, lines[-1]), lines[-1]
    assert REMEDY.search(lines[-1]), f"no word on what to do: {lines[-1]}"


def snapshot(directory: Path) -> dict[str, bytes]:
    """Content of all files, to see that nothing changed (sockets and the like left out)."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_two_starts_on_one_directory(cluster: AustralisCluster) -> None:
    server = cluster.start()
    second = AustralisCluster(cluster.directory)
    refusal(second, r"in use by a running cluster|already running")
    with server.connect() as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (ROWS,)
    cluster.stop()
    whole(cluster)


def test_port_taken(cluster: AustralisCluster) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        cluster.port = other.getsockname()[1]
        refusal(cluster, r"port \d+ is in use")
    cluster.port = free_port()
    whole(cluster)


def truncate(name: str) -> Callable[[Path], None]:
    def cut(data: Path) -> None:
        file = data / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


def write(name: str, content: str) -> Callable[[Path], None]:
    def act(data: Path) -> None:
        (data / name).write_text(content)

    return act


def replace(name: str, pattern: str, by: str) -> Callable[[Path], None]:
    def act(data: Path) -> None:
        file = data / name
        changed = re.sub(pattern, by, file.read_text())
        assert changed != file.read_text()
        file.write_text(changed)

    return act


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        pytest.param(truncate("cluster.json"), r"cluster\.json", id="truncated cluster.json"),
        pytest.param(write("cluster.json", ""), r"cluster\.json", id="empty cluster.json"),
        pytest.param(replace("cluster.json", r'"format": *\d+', '"format": 99'), r"format 99", id="newer format"),
        pytest.param(replace("cluster.json", r'"postgresql": *\d+', '"postgresql": 17'), r"17", id="other PostgreSQL"),
        pytest.param(write("australis.toml", "max_conn"), r"australis\.toml", id="truncated config"),
        pytest.param(write("australis.toml", "nonsense = 1\n"), r"unknown key", id="unknown key"),
        pytest.param(write("australis.toml", "port = 'many'\n"), r"port", id="ill-typed key"),
        pytest.param(write("australis.toml", "storage_driver = 'ftp'\n"), r"storage_driver", id="unknown value"),
        pytest.param(write("australis.toml", "\x00\x01"), r"australis\.toml", id="binary config"),
    ],
)
def test_damaged_files_are_named_and_left_alone(
    cluster: AustralisCluster, damage: Callable[[Path], None], pattern: str
) -> None:
    good = {name: (cluster.data / name).read_bytes() for name in ("cluster.json", "password")}
    damage(cluster.data)
    before = snapshot(cluster.data)
    refusal(cluster, pattern)
    after = {k: v for k, v in snapshot(cluster.data).items() if not k.startswith("logs/")}
    assert after == {k: v for k, v in before.items() if not k.startswith("logs/")}
    (cluster.data / "australis.toml").unlink(missing_ok=True)
    for name, content in good.items():
        (cluster.data / name).write_bytes(content)
    whole(cluster)


def last_segment(data: Path) -> None:
    sorted((data / "journal").glob("*.segment"))[-1].unlink()


def whole_journal(data: Path) -> None:
    for file in (data / "journal").iterdir():
        file.unlink()


def half_a_segment(data: Path) -> None:
    file = sorted((data / "journal").glob("*.segment"))[-1]
    os.truncate(file, file.stat().st_size // 2)


def tail_of_zeros(data: Path) -> None:
    """What the last write left there is gone, as if it had never been."""
    file = sorted((data / "journal").glob("*.segment"))[-1]
    content = file.read_bytes()
    used = content.rstrip(b"\0")
    file.write_bytes(used[: used.rindex(b"AUSGROUP")].ljust(len(content), b"\0"))


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        pytest.param(last_segment, "the segment is missing|holds no segment", id="last segment"),
        pytest.param(whole_journal, "journal holds no segment", id="whole journal"),
        pytest.param(half_a_segment, "the file ends here", id="half a segment"),
        pytest.param(tail_of_zeros, "the journal ends with record", id="tail of zeros"),
    ],
)
def test_lost_ends_of_the_journal_are_refused(
    cluster: AustralisCluster, damage: Callable[[Path], None], pattern: str
) -> None:
    """Never taken for a journal that just ends there; check says so, too, and nothing is changed."""
    subprocess.run(["cp", "-a", str(cluster.data / "journal"), str(cluster.directory / "copy")], check=True)
    damage(cluster.data)
    damaged = snapshot(cluster.data / "journal")
    checked = cluster.command("check")
    assert checked.returncode == 1 and "PROBLEM" in checked.stdout
    refusal(cluster, pattern)
    left = snapshot(cluster.data / "journal")
    assert {name: left.get(name) for name in damaged} == damaged
    shutil.rmtree(cluster.data / "journal")
    (cluster.directory / "copy").rename(cluster.data / "journal")
    assert cluster.command("check").returncode == 0
    whole(cluster)


def test_check_names_a_flipped_bit_of_the_store(cluster: AustralisCluster) -> None:
    store = cluster.data / "storage" / "data.mdb"
    content = bytearray(store.read_bytes())
    at = content.rindex(hashlib.md5(b"77").hexdigest().encode())  # a row; the pages that LMDB copied lie before it
    content[at] ^= 1
    store.write_bytes(content)
    said = cluster.command("check")
    assert said.returncode == 1
    assert re.search(r"PROBLEM: key [0-9a-f]+: the store's value of \d+ is not the journal's", said.stdout), said.stdout
    assert f"note: remove {store.parent}: the next start makes it again" in said.stdout
    shutil.rmtree(store.parent)
    whole(cluster)
    assert cluster.command("check").returncode == 0


def test_check_names_a_damaged_manifest(cluster: AustralisCluster) -> None:
    manifest = cluster.data / "snapshots" / "1" / "manifest.json"
    manifest.parent.mkdir(mode=0o755)
    manifest.write_text('{"format": 1, "clus')
    assert f"note: {manifest.parent} is no snapshot" in cluster.command("check").stdout
    whole(cluster)


def test_a_directory_with_other_files(scratch: Path) -> None:
    cluster = AustralisCluster(scratch)
    cluster.data.mkdir()
    (cluster.data / "letter.txt").write_text("mine")
    refusal(cluster, r"holds other files|not empty")
    assert snapshot(cluster.data) == {"letter.txt": b"mine"}


def test_a_file_instead_of_a_directory(scratch: Path) -> None:
    cluster = AustralisCluster(scratch)
    cluster.data.write_text("mine")
    refusal(cluster, r"not a directory|is a file")
    assert cluster.data.read_text() == "mine"


def test_a_place_where_nothing_can_be_made(scratch: Path) -> None:
    cluster = AustralisCluster(Path("/proc/self"))
    done = subprocess.run(
        [sys.executable, "-m", "australis", "start", "--data", "/proc/australis-test", "--detach"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=scratch,
    )
    assert cluster.data == Path("/proc/self/data")
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert lines[-1].startswith("Error: ")
    assert REMEDY.search(lines[-1]), f"no word on what to do: {lines[-1]}"


def test_an_unwritable_directory_as_plain_user(scratch: Path) -> None:
    identity = unprivileged()
    if identity is None:
        pytest.skip("needs root to become another user")
    try:
        subprocess.run([sys.executable, "-c", ""], check=True, user=identity[0], group=identity[1], extra_groups=[])
    except PermissionError:
        pytest.skip("this Python lies where no other user can run it")
    done = subprocess.run(
        [sys.executable, "-m", "australis", "start", "--data", str(scratch / "data"), "--detach"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=scratch,
        user=identity[0],
        group=identity[1],
        extra_groups=[],
        env={**os.environ, "HOME": str(scratch)},
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(r"^Error: .*(permission|writ)", lines[-1], re.IGNORECASE)
    assert not (scratch / "data").exists()


@contextlib.contextmanager
def small_file_system(place: Path, megabytes: int) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("megabytes", [2, 30, 45, 60])
def test_full_disk_at_the_first_start(scratch: Path, megabytes: int) -> None:
    """Too small for the journal, for PostgreSQL's directory, for its image."""
    with small_file_system(scratch / "small", megabytes) as small:
        refusal(AustralisCluster(small), "no space")


def test_read_only_file_system(sample: Path, scratch: Path) -> None:
    with small_file_system(scratch / "small", 500) as small:
        cluster = AustralisCluster(small)
        subprocess.run(["cp", "-a", str(sample / "data"), str(cluster.data)], check=True)
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        refusal(cluster, "read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        whole(cluster)


@pytest.mark.timeout(240)
def test_full_disk(sample: Path, scratch: Path) -> None:
    """Commits fail clearly while the disk is full, nothing acknowledged is lost, and the cluster goes on afterwards."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    small = scratch / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=500m,mode=755", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount here")
    cluster = AustralisCluster(small)
    try:
        subprocess.run(["cp", "-a", str(sample / "data"), str(cluster.data)], check=True)
        server = cluster.start()
        ballast = small / "ballast"
        free = shutil.disk_usage(small).free
        with ballast.open("wb") as file:
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, max(0, free - (4 << 20)))
        acknowledged, failure = fill(server.dsn)
        assert failure is not None, "the disk never became full"
        said = str(failure)
        assert failure.sqlstate == "53100", said
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for rows in (1, 400):  # of 100 kB
                with pytest.raises(psycopg.errors.DiskFull, match=r"the disk of (the journal|storage) is full"):
                    connection.execute(
                        "INSERT INTO filler SELECT -i, repeat('x', 100000) FROM generate_series(1, %s) i", (rows,)
                    )
        assert "no space left on the disk" in cluster.command("status").stdout
        ballast.unlink()
        back = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(server.dsn, autocommit=True, connect_timeout=5) as connection:
                    connection.execute("INSERT INTO filler VALUES (-1, 'space again')")
                    count = connection.execute("SELECT count(*) FROM filler WHERE id > 0").fetchone()
                    kept = connection.execute("SELECT count(*) FROM kept").fetchone()
                break
            except psycopg.Error:
                if time.monotonic() > back:
                    raise
                time.sleep(0.2)  # the cluster heals by itself: nothing to wait on
        assert count is not None
        assert acknowledged <= int(str(count[0])) <= acknowledged + 1  # the last one's outcome may be unknown
        assert kept == (ROWS,)
        cluster.stop()
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small).free)
        refusal(cluster, "no space left on the disk; free some and start again")
        ballast.unlink()
        whole(cluster)
    finally:
        cluster.stop()
        subprocess.run(["umount", "-l", str(small)], check=False)


def fill(dsn: str) -> tuple[int, psycopg.Error | None]:
    """Insert until an error: acknowledged rows, and that error (at most 2,000 rows of 100 kB)."""
    acknowledged = 0
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SET statement_timeout = '30s'")
            connection.execute("CREATE TABLE filler (id int PRIMARY KEY, v text)")
            for n in range(1, 2001):
                connection.execute("INSERT INTO filler VALUES (%s, %s)", (n, os.urandom(50_000).hex()))
                acknowledged = n
    except psycopg.Error as error:
        return acknowledged, error
    return acknowledged, None
