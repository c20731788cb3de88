"""The data directory of a cluster: what lies where, who may use it, and whether it is ours at all.

    <data>/cluster.json      what this cluster is (written once, last, atomically)
    <data>/password          of user admin, mode 0600
    <data>/australis.toml    optional configuration, never written by us
    <data>/lock              held (flock) by the supervisor while the cluster runs; holds its pid
    <data>/journal/          the truth (engine nats: how far it has been durable)
    <data>/nats/             engine nats without configured servers: our own one, with the truth
    <data>/storage/          rebuilt from snapshots and journal
    <data>/snapshots/
    <data>/topology.json     a cluster of many processes: what it was last started with
    <data>/roles/            a cluster of many processes: a directory for each, with its config.json
    <data>/authority/        a cluster of many processes with TLS between them: who signs their certificates
    <data>/query_processor/  image.tar and later ones, data/, boot.json; of more query processors 2/data/, ...
    <data>/run/              sockets, shared page, children.json, state.json; no content outlives a run
    <data>/logs/

What must hold: nothing is written into a directory before it is known to be ours or empty, and a directory that cannot
be used is left exactly as it was. A `run` path too long for a Unix socket (107 bytes) becomes a symbolic link to a
private directory under the system's temporary one; every program uses the resolved path.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import tempfile
import time
from pathlib import Path

import msgspec

from australis.config import load
from australis.errors import AustralisError
from australis.files import boot_id, write_atomically
from australis.journal.reached import FILE as REACHED
from australis.limits import Profile

FORMAT = 1
POSTGRESQL_MAJOR = 18
SOCKET_PATH_BYTES = 107
PAGE = "page"
BOOT_MARK = "boot"
LONGEST_SOCKET_NAME = "/.s.PGSQL.65535"
DIRECTORIES = ("journal", "storage", "snapshots", "query_processor", "logs")
OWN_NAMES = frozenset(
    {
        "cluster.json",
        "password",
        "australis.toml",
        "lock",
        "run",
        "nats",
        "topology.json",
        "roles",
        "authority",
        *DIRECTORIES,
    }
)


class ClusterError(AustralisError):
    """One line: what is wrong with this cluster and what to do about it."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `cluster.json`."""

    format: int
    cluster: str  # 16 bytes in hexadecimal
    profile: Profile
    postgresql: int  # major version
    created: str

    @property
    def id(self) -> bytes:
        return bytes.fromhex(self.cluster)


class Layout:
    """Paths inside one data directory (absolute; existence is not checked)."""

    def __init__(self, data: Path) -> None:
        self.data = Path(os.path.abspath(data))
        self.cluster_file = self.data / "cluster.json"
        self.password_file = self.data / "password"
        self.lock_file = self.data / "lock"
        self.journal = self.data / "journal"
        self.nats = self.data / "nats"
        self.storage = self.data / "storage"
        self.snapshots = self.data / "snapshots"
        self.query_processor = self.data / "query_processor"
        self.logs = self.data / "logs"
        self.topology_file = self.data / "topology.json"
        self.roles = self.data / "roles"
        self.authority = self.data / "authority"

    def processor(self, number: int) -> Path:
        """Directory of a query processor, counted from 0. The first one's has the image of all."""
        return self.query_processor if number == 0 else self.query_processor / str(number + 1)

    @property
    def run(self) -> Path:
        """The run directory's real path: short enough for sockets once `prepare_run` has been called."""
        return Path(os.path.realpath(self.data / "run"))

    def password(self) -> str:
        remedy = "write the password of user admin into it (mode 0600)"
        try:
            password = self.password_file.read_text(encoding="ascii").strip()
        except UnicodeDecodeError as error:
            raise ClusterError(f"{self.password_file} is damaged; {remedy}") from error
        except PermissionError as error:
            raise ClusterError(f"{self.password_file}: not readable by you; run as the user who owns it") from error
        except OSError as error:
            raise ClusterError(f"{self.password_file}: {_cause(error)}; {remedy}") from error
        if not password:
            raise ClusterError(f"{self.password_file} is empty; {remedy}")
        return password


def read_cluster(layout: Layout) -> Cluster | None:
    """The cluster in this directory; None if the directory is missing, empty, or a first start never finished.

    Raises ClusterError for every directory that must not be touched: damaged, of another version, or not ours.
    """
    try:
        names = set(os.listdir(layout.data))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ClusterError(f"{layout.data} is not a directory; name another with --data") from error
    except OSError as error:
        raise ClusterError(f"{layout.data}: {_cause(error)}; use another directory or user") from error
    try:
        content = layout.cluster_file.read_bytes()
    except FileNotFoundError:
        strangers = sorted(names - OWN_NAMES - load(layout.data).files)
        if strangers:
            raise ClusterError(
                f"{layout.data} holds other files ({strangers[0]}) and no cluster; name an empty directory with --data"
            ) from None
        if _has_files(layout.journal):
            raise ClusterError(
                f"{layout.cluster_file} is missing but there is a journal; put it back from a backup"
            ) from None
        return None
    except OSError as error:
        raise ClusterError(f"{layout.cluster_file}: {_cause(error)}; run as the user who owns it") from error
    damaged = f"{layout.cluster_file} is damaged; put it back from a backup (nothing was changed)"
    try:
        fields = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClusterError(damaged) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise ClusterError(damaged)
    if fields["format"] != FORMAT:
        raise ClusterError(
            f"{layout.data} has data format {fields['format']}, this program knows {FORMAT}; "
            "use the version of Australis that made it"
        )
    try:
        cluster = msgspec.convert(fields, Cluster)
        if len(cluster.id) != 16:
            raise ClusterError(damaged)
    except (msgspec.ValidationError, ValueError) as error:
        raise ClusterError(damaged) from error
    if cluster.postgresql != POSTGRESQL_MAJOR:
        raise ClusterError(
            f"{layout.data} was made with PostgreSQL {cluster.postgresql}, this program has {POSTGRESQL_MAJOR}; "
            "use the version of Australis that made it"
        )
    return cluster


def check_journal_exists(layout: Layout, engine: str = "files") -> None:
    """A cluster whose journal is gone, or elsewhere, must not start with an empty one. Raises ClusterError.

    The first start makes the journal before storage.
    """
    other = (layout.journal / REACHED).exists() if engine == "files" else any(layout.journal.glob("*.segment"))
    if other:
        made = "nats" if engine == "files" else "files"
        raise ClusterError(
            f'the journal of {layout.data} is of engine {made}: set engine = "{made}" in section [journal] of '
            f"australis.toml (to change it, dump the cluster and restore it into a new one)"
        )
    if engine == "nats":
        if not (layout.journal / REACHED).exists() and (_has_files(layout.storage) or _has_files(layout.snapshots)):
            raise ClusterError(
                f"{layout.journal / REACHED} is missing, which says how far the journal has been durable; put it back "
                "from a backup (nothing was changed)"
            )
        return
    if not any(layout.journal.glob("*.segment")) and (_has_files(layout.storage) or _has_files(layout.snapshots)):
        raise ClusterError(
            f"{layout.journal} holds no segment, and with it what the cluster holds; put it back from a backup "
            "(nothing was changed)"
        )


def create_cluster(layout: Layout, profile: Profile) -> Cluster:
    """Turn an empty directory (or a first start that never finished) into a cluster. Holds the lock already."""
    cluster = Cluster(
        format=FORMAT,
        cluster=secrets.token_hex(16),
        profile=profile,
        postgresql=POSTGRESQL_MAJOR,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_atomically(layout.password_file, (secrets.token_urlsafe(18) + "\n").encode(), mode=0o600)
    write_atomically(layout.cluster_file, msgspec.json.format(msgspec.json.encode(cluster)) + b"\n")
    return cluster


def prepare_directories(layout: Layout) -> None:
    """Make the directories that are not there yet. Raises ClusterError when the place cannot be written."""
    try:
        layout.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in DIRECTORIES:
            (layout.data / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise unusable(layout, error) from error


def prepare_run(layout: Layout, longest: str = LONGEST_SOCKET_NAME) -> None:
    """Make a run directory whose path fits into a Unix socket address, empty but for the shared page.

    The page of a run that was killed in this boot stays: it remembers what was acknowledged and issued. After a reboot
    it may be torn, and everything it guards against is gone with the processes. `longest` is what is put behind its
    path at most; directories in it are treated alike.
    """
    run = layout.data / "run"
    try:
        if len(os.fsencode(run)) + len(longest) <= SOCKET_PATH_BYTES and not run.is_symlink():
            run.mkdir(mode=0o700, exist_ok=True)
        elif not _private_directory(run):
            run.unlink(missing_ok=True) if not run.is_dir() or run.is_symlink() else run.rmdir()
            run.symlink_to(tempfile.mkdtemp(prefix="australis-"))
        os.chmod(layout.run, 0o700)
        mark = layout.run / BOOT_MARK
        same_boot = mark.exists() and mark.read_text(encoding="ascii") == boot_id()
        _empty(layout.run, PAGE if same_boot else "")
        mark.write_text(boot_id(), encoding="ascii")
    except OSError as error:
        raise unusable(layout, error) from error


def _empty(directory: Path, kept: str) -> None:
    """Remove all files but those of this name."""
    for left in os.scandir(directory):
        if left.is_dir(follow_symlinks=False):
            _empty(Path(left.path), kept)
        elif left.name != kept:
            os.unlink(left.path)


def _private_directory(link: Path) -> bool:
    """Is this a link to a directory of our own? (Another user may have made one of that name after a reboot.)"""
    if not link.is_symlink():
        return False
    try:
        target = os.stat(link)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(target.st_mode) and target.st_uid == os.geteuid()


def remove_run(layout: Layout) -> None:
    """Remove the run directory, wherever it lies."""
    import shutil

    run = layout.data / "run"
    target = layout.run
    shutil.rmtree(target, ignore_errors=True)
    if run.is_symlink():
        run.unlink(missing_ok=True)


def unusable(layout: Layout, error: OSError) -> ClusterError:
    """The one-line error for an operating system error about the data directory."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ClusterError(f"{layout.data}: no space left on the disk; free some and start again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or layout.data
        return ClusterError(f"{where}: {_cause(error)}; name a directory you can write to with --data")
    return ClusterError(f"{error.filename or layout.data}: {_cause(error)}; name another directory with --data")


class DirectoryLock:
    """Exclusive use of a data directory, for as long as the holder lives (flock: the kernel releases it)."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock or raise ClusterError naming the holder."""
        try:
            fd = os.open(self._layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unusable(self._layout, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            pid = holder(self._layout)
            by = f" (process {pid})" if pid else ""
            raise ClusterError(
                f"{self._layout.data} is in use by a running cluster{by}; stop it first: australis stop --data "
                f"{self._layout.data}"
            ) from None
        self._fd = fd
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise unusable(self._layout, error) from error

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holder(layout: Layout) -> int | None:
    """Pid of the supervisor that holds the directory; None when it is not in use."""
    try:
        fd = os.open(layout.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClusterError(f"{layout.lock_file}: {_cause(error)}; run as the user who owns it") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        content = os.pread(fd, 32, 0).strip()
        return int(content) if content.isdigit() else 0
    finally:
        os.close(fd)


def _has_files(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
