"""Started by root: become an unprivileged user before anything of the cluster runs.

    root: choose the user -> give it the data directory -> make programs reachable -> setuid + exec of ourselves

What must hold: after `drop` the program is an ordinary start by an ordinary user; nothing later knows about root. Root
writes nothing into a directory that the user owns. PostgreSQL refuses to run as root, and so do we.

Programs and packages often lie where that user cannot go (below /root, say). Then a directory in /var/cache/australis,
owned by root, holds links to them, or copies: our package and what it depends on (PostgreSQL included), and
Python itself if need be. Its name changes whenever the installation does; a directory that no cluster uses any more
(its lock is free) goes when the next one is made.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import os
import pwd
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from australis.control_plane.layout import ClusterError, Layout, unusable
from australis.journal import nats_program

RUNTIMES = Path("/var/cache/australis")
CANDIDATES = ("postgres", "nobody")
NOT_COPIED = shutil.ignore_patterns(
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "config-*"
)


def is_root() -> bool:
    return os.geteuid() == 0


def service_user(layout: Layout) -> pwd.struct_passwd:
    """The user that the cluster runs as: the owner of an existing data directory, else postgres, else nobody."""
    try:
        owner = os.stat(layout.cluster_file).st_uid
        if owner != 0:
            return pwd.getpwuid(owner)
    except (OSError, KeyError):  # no cluster yet, or its owner has no name here
        pass
    for name in CANDIDATES:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        if user.pw_uid != 0:
            return user
    raise ClusterError("no unprivileged user (postgres, nobody) on this machine; run as another user than root")


def can_reach(user: pwd.struct_passwd, directory: Path) -> bool:
    """Could `user` enter this directory, or make it and its missing parents once the existing ones are open to it?"""
    existing = directory
    while not existing.exists():
        existing = existing.parent
    if existing != directory:
        existing = existing / "."  # root makes what is missing and gives it to the user
    return _as_user(user, lambda: os.access(existing, os.X_OK))


class Unprivileged(NamedTuple):
    """How the service user runs this installation."""

    user: pwd.struct_passwd
    program: str
    environment: dict[str, str]
    in_use: int | None  # descriptor to inherit: says that the directory of links is in use


def prepare(layout: Layout) -> Unprivileged:
    """Give the service user its data directory and programs that it can reach. Raises ClusterError."""
    user = service_user(layout)
    _give_data_directory(layout, user)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
    }
    environment |= {"HOME": str(layout.data), "USER": user.pw_name, "LOGNAME": user.pw_name}
    if _as_user(user, _installation_readable):
        return Unprivileged(user, sys.executable, environment, None)
    program, extra, in_use = _runtime(user)
    return Unprivileged(user, program, environment | extra, in_use)


def drop(layout: Layout, arguments: Sequence[str]) -> None:
    """Replace this process by `python -m australis ARGUMENTS` as the service user. Returns only by ClusterError."""
    user, program, environment, in_use = prepare(layout)
    if in_use is not None:
        os.set_inheritable(in_use, True)
    os.chdir(layout.data)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    try:
        os.execve(program, [program, "-P", "-m", "australis", *arguments], environment)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ClusterError(f"user {user.pw_name} cannot run {program}: {reason}; see its limits (ulimit -u)") from error


def _as_user(user: pwd.struct_passwd, question: Callable[[], bool]) -> bool:
    """Ask in a child process that is this user."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
            status = 0 if question() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _give_data_directory(layout: Layout, user: pwd.struct_passwd) -> None:
    """Make a data directory of root the user's, and make sure that the user can get there."""
    try:
        layout.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One that is the user's already is left alone: what root does there, the user could redirect.
        if layout.data.stat().st_uid == 0:
            for folder, directories, files in os.walk(layout.data, topdown=False):
                for name in [*directories, *files, "."]:
                    os.lchown(os.path.join(folder, name), user.pw_uid, user.pw_gid)
    except OSError as error:
        raise unusable(layout, error) from error
    if os.statvfs(layout.data).f_flag & os.ST_RDONLY:
        raise unusable(layout, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if not _as_user(user, lambda: os.access(layout.data, os.R_OK | os.W_OK | os.X_OK)):
        raise ClusterError(
            f"{layout.data}: user {user.pw_name}, whom the cluster runs as, cannot get there; "
            f"name a directory elsewhere, such as --data /var/lib/australis/{layout.data.name}"
        )


def _installation_readable() -> bool:
    """Can this process read all that it would run?"""
    places = [Path(sys.executable), _interpreter(), _stdlib() / "os.py", _package() / "cli.py", _package() / "postgres"]
    places += [Path(entry) for entry in sys.path if os.path.isabs(entry) and os.path.exists(entry)]
    return all(os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0)) for place in places)


def _runtime(user: pwd.struct_passwd) -> tuple[str, dict[str, str], int]:
    """Make what the user cannot reach reachable.

    Returns the interpreter and the environment that use the copy, and the descriptor that keeps it.
    """
    needs_python = not _as_user(
        user, lambda: os.access(_interpreter(), os.X_OK) and os.access(_stdlib() / "os.py", os.R_OK)
    )
    base = _interpreter()
    target = RUNTIMES / _key(needs_python)
    try:
        RUNTIMES.mkdir(mode=0o755, parents=True, exist_ok=True)
        making = os.open(RUNTIMES / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(making, fcntl.LOCK_EX)
        if not target.is_dir():
            _remove_unused()
            _make_runtime(target, base if needs_python else None)
        # Inherited by the cluster, and freed by its end: says that this directory is in use.
        used = os.open(target / "lock", os.O_RDONLY)
        fcntl.flock(used, fcntl.LOCK_SH)
        os.close(making)
    except OSError as error:
        raise ClusterError(
            f"user {user.pw_name}, whom the cluster runs as, cannot read this installation, and it cannot be copied to "
            f"{RUNTIMES}: {error.strerror}; install Australis where everybody can read it"
        ) from error
    environment = {"PYTHONPATH": str(target / "site"), "PYTHONNOUSERSITE": "1"}
    if needs_python:
        environment |= {"PYTHONHOME": str(target / "python"), "LD_LIBRARY_PATH": str(target / "python" / "lib")}
        return str(target / "python" / "bin" / base.name), environment, used
    return str(base), environment, used


def _make_runtime(target: Path, python: Path | None) -> None:
    os.umask(0o022)
    temporary = RUNTIMES / "new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o755)
    (temporary / "lock").touch(mode=0o644)
    _copy_packages(temporary / "site")
    if python is not None:
        _copy_python(python, temporary / "python")
    temporary.rename(target)


def _remove_unused() -> None:
    """Remove the directories of earlier installations that no cluster uses."""
    for old in RUNTIMES.iterdir():
        if old.is_dir():
            try:
                with (old / "lock").open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except FileNotFoundError:
                pass  # never finished
            shutil.rmtree(old)


def _link(source: str, target: str) -> str:
    """Link a file that everybody may read; copy it when it is closed to others or on another file system."""
    if os.stat(source).st_mode & 0o004:
        try:
            os.link(source, target)
            return target
        except OSError:  # another file system, or one without links
            pass
    shutil.copy2(source, target)
    os.chmod(target, os.stat(source).st_mode & 0o755 | 0o444)
    return target


def _key(needs_python: bool) -> str:
    """Names this installation's content: versions, and sizes and times of our own files."""
    digest = hashlib.sha256(f"{sys.version} {needs_python}".encode())
    for found in _distributions():
        digest.update(f"{found.metadata['Name']} {found.version}\n".encode())
    for file in sorted(_package().rglob("*")):
        if file.suffix in (".py", ".so", ".sql"):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _copy_packages(site: Path) -> None:
    site.mkdir(mode=0o755, parents=True)
    for found in _distributions():
        for file in found.files or []:
            source = Path(str(found.locate_file(file)))
            if ".." in file.parts or not source.is_file():
                continue
            target = site / file
            if target.parts[len(site.parts)] != "australis":
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(str(source), str(target))
    shutil.copytree(_package(), site / "australis", copy_function=_link)
    # a program, which its wheel installs beside the interpreter; journal/nats_program.py looks here first
    _link(str(nats_program.program()), str(site / nats_program.NAME))


def _copy_python(base: Path, target: Path) -> None:
    (target / "bin").mkdir(parents=True)
    _link(str(base), str(target / "bin" / base.name))
    shutil.copytree(_stdlib(), target / "lib" / _stdlib().name, ignore=NOT_COPIED, copy_function=_link)
    for library in Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent").glob("libpython*.so*"):
        _link(str(library.resolve()), str(target / "lib" / library.name))


def _interpreter() -> Path:
    """The interpreter itself, not the one of a virtual environment."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))


def _stdlib() -> Path:
    return Path(os.__file__).parent


_EXTRAS = ("traces", "s3")


def _package() -> Path:
    return Path(__file__).resolve().parents[1]


def _distributions() -> list[importlib.metadata.Distribution]:
    """Ours and what it requires, transitively; of extras, those that services use, where they are installed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = ["australis"]
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "australis":
                raise ClusterError("australis is not installed; install it: pip install .") from None
            continue  # required on another platform only
        for requirement in found[name].requires or []:
            extra = re.search(r"extra == ['\"]([^'\"]+)", requirement)
            if extra is None or (name == "australis" and extra[1] in _EXTRAS):
                match = re.match(r"[A-Za-z0-9._-]+", requirement)
                if match:
                    wanted.append(match[0])
    return [found[name] for name in sorted(found)]
