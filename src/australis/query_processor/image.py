"""Images: the data directories that query processors of a cluster start from.

    image 0: initdb -> bootstrap.sql, opclasses.sql in template1 -> its files copied over template0 and postgres
    image n: the files of a query processor that was shut down cleanly with the catalogs of schema change n

What must hold: everything in image 0 is deterministic (same PostgreSQL, same scripts: same OIDs), for the DDL log
names objects by OID. An image is complete and synced before it gets its name, and has a checksum: a torn or damaged one
is found. Image 0 is made again then, with the same content; the others only spare the replay of the log and are
dropped. Image 0 knows only the password of its making; later ones come with the DDL log. A copy of image n must not
think it is its original: the name of the owner of sequence ranges is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import structlog

from australis.errors import AustralisError
from australis.files import file_crc32c, write_atomically
from australis.query_processor.installation import Installation
from australis.query_processor.settings import DISPOSABLE, SMALL, literal

SUPERUSER = "admin"
SCRIPTS = ("bootstrap.sql", "opclasses.sql")
TEMPLATE1, TEMPLATE0, POSTGRES = 1, 4, 5  # fixed OIDs of initdb's databases
TIMEOUT = 60.0
POLL = 0.02
NOT_COPIED = ("australis_sequences", "postmaster.pid", "postmaster.opts", "pg_stat_tmp/*", "pg_dynshmem/*")
NO_SPACE = "no space left on the disk; free some and start again"

log = structlog.get_logger()


class ImageError(AustralisError):
    """The image could not be made; one line with PostgreSQL's own reason."""


def build(image: Path, data: Path, installation: Installation, password: str) -> None:
    """Build the image in `data` (emptied first, a ready data directory afterwards) and write it to `image`."""
    try:
        _build(image, data, installation, password)
    except OSError as error:  # of copying files
        raise ImageError(NO_SPACE if "No space left" in str(error) else str(error)) from error


def _build(image: Path, data: Path, installation: Installation, password: str) -> None:
    clear(data)
    _initdb(data, installation, password)
    if installation.extension is not None:
        _bootstrap(data, installation)
        for database in (TEMPLATE0, POSTGRES):
            # What CREATE DATABASE ... STRATEGY file_copy does, without new OIDs; the server is shut down.
            _copy_database(data / "base" / str(TEMPLATE1), data / "base" / str(database))
    temporary = image.with_name(image.name + ".new")
    _run(["tar", "--create", "--file", str(temporary), "--directory", str(data), "--sort=name", "."])
    checksum = file_crc32c(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(image)
    write_atomically(_checksum_file(image), f"{checksum:08x} {image.stat().st_size}\n".encode())


@dataclass(frozen=True)
class Image:
    file: Path
    version: int  # it has the catalogs of this schema change at least


def newest(base: Path) -> Image:
    """The newest whole image made from image 0, `base`; that one if there is no other. Damaged ones are removed."""
    for version, file in sorted(((_version(file), file) for file in _later(base)), reverse=True):
        try:
            made_from = _checksum_file(file).read_text(encoding="ascii").split()[2]
            fits = int(made_from) == base.stat().st_mtime_ns and whole(file)
        except (OSError, ValueError, IndexError):
            fits = False
        if fits:
            return Image(file, version)
        log.warning("image.dropped", image=file.name, cause="damaged, torn or made from another image")
        _remove(file)
    return Image(base, 0)


def newest_version(base: Path) -> int:
    """Of the newest image, whole or not; cheap."""
    return max(map(_version, _later(base)), default=0)


def drop_later(base: Path) -> None:
    """Trust only image 0."""
    for file in _later(base):
        _remove(file)


def take(base: Path, data: Path, version: int, stop: threading.Event, copied: threading.Event) -> bool:
    """Make image `version` from the files of a server that was shut down cleanly, and drop older ones but image 0.

    `copied` is set when `data` is needed no more. False if `stop` was set before that. Blocking. Raises ImageError.
    """
    image = base.with_name(f"{base.stem}-{version}.tar")
    temporary = base.with_name(f"{base.stem}-{version}.tar.new")
    command = ["tar", "--create", "--file", str(temporary), "--directory", str(data), "--sort=name"]
    try:
        made_from = base.stat().st_mtime_ns
        whole_copy = _run_until([*command, *(f"--exclude=./{name}" for name in NOT_COPIED), "."], stop)
        copied.set()
        if not whole_copy:
            return False
        checksum = file_crc32c(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # the checksum first: an image that is found has one
        write_atomically(_checksum_file(image), f"{checksum:08x} {temporary.stat().st_size} {made_from}\n".encode())
        temporary.replace(image)
        for earlier in _later(base):
            if _version(earlier) < version:
                _remove(earlier)
        return True
    except OSError as error:
        raise ImageError(NO_SPACE if "No space left" in str(error) else str(error)) from error
    finally:
        copied.set()
        temporary.unlink(missing_ok=True)


def _later(base: Path) -> list[Path]:
    return list(base.parent.glob(f"{base.stem}-[0-9]*.tar"))


def _version(image: Path) -> int:
    digits = image.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _checksum_file(image: Path) -> Path:
    return image.with_name(image.name + ".crc32c")


def _remove(image: Path) -> None:
    _checksum_file(image).unlink(missing_ok=True)
    image.unlink(missing_ok=True)


def extract(image: Path, data: Path) -> None:
    """Make `data` a copy of the image. The directory itself stays: PostgreSQL finds its old shared memory by it."""
    clear(data)
    _run(["tar", "--extract", "--file", str(image), "--directory", str(data)])


def clear(data: Path) -> None:
    """Empty a query processor's data directory; it holds nothing durable."""
    data.mkdir(mode=0o700, exist_ok=True)
    for entry in os.scandir(data):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def whole(image: Path) -> bool:
    """Is the image there, complete and undamaged?"""
    try:
        checksum, size = _checksum_file(image).read_text(encoding="ascii").split()[:2]
        if image.stat().st_size != int(size):
            return False
        return file_crc32c(image) == int(checksum, 16)
    except (OSError, ValueError):
        return False


def _initdb(data: Path, installation: Installation, password: str) -> None:
    with tempfile.NamedTemporaryFile("w", prefix="australis-") as secret:
        secret.write(password + "\n")
        secret.flush()
        command = [installation.program("initdb"), f"--pgdata={data}", f"--pwfile={secret.name}"]
        command += [f"--username={SUPERUSER}", "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8"]
        _run([*command, "--wal-segsize=1", "--no-sync", "--no-instructions"])


def _bootstrap(data: Path, installation: Installation) -> None:
    """Run our scripts in template1 on a server that only we can reach; shut down cleanly."""
    assert installation.extension is not None
    with tempfile.TemporaryDirectory(prefix="australis-") as run:
        options = {
            **DISPOSABLE,
            **SMALL,
            "autovacuum": False,
            "shared_buffers": "16MB",
            "max_connections": 5,
            "listen_addresses": "",
            "unix_socket_directories": run,
            "unix_socket_permissions": "0700",
            "port": 5432,
            "hba_file": f"{run}/hba",
            "dynamic_library_path": f"{installation.extension}:$libdir",
        }
        (Path(run) / "hba").write_text("local all all trust\n", encoding="ascii")
        (data / "postgresql.auto.conf").write_text(
            "".join(f"{name} = {literal(value)}\n" for name, value in options.items()), encoding="utf-8"
        )
        control = [installation.program("pg_ctl"), "--silent", f"--log={run}/log"]
        where = {"PGDATA": str(data)}  # --pgdata would go through a shell
        try:
            _run([*control, "--wait", f"--timeout={TIMEOUT:.0f}", "start"], **where)
        except ImageError as error:
            raise ImageError(f"{error}: {_last_line(Path(run) / 'log')}") from error
        psql = [installation.program("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
        psql += [f"--host={run}", f"--username={SUPERUSER}", "--dbname=template1"]
        try:
            for name in SCRIPTS:
                script = installation.extension / name
                if not script.is_file():
                    log.warning("image.script_missing", script=name)
                    continue
                _run(
                    [*psql, f"--file={script}"],
                    PGOPTIONS="-c allow_system_table_mods=on -c client_min_messages=warning",
                )
        finally:
            _run([*control, "--wait", "--mode=fast", "stop"], **where)
        (data / "postgresql.auto.conf").write_text("", encoding="ascii")


def _copy_database(source: Path, target: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target)


def _run(command: list[str], **environment: str) -> None:
    # LC_ALL etc. of the caller must not find their way into the image.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    try:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT + 10,
            env={**clean, "LC_ALL": "C", **environment},
            cwd="/",
        )
    except subprocess.CalledProcessError as error:
        raise ImageError(f"{os.path.basename(command[0])}: {_reason(error)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"{os.path.basename(command[0])}: {error}") from error


def _run_until(command: list[str], stop: threading.Event) -> bool:
    """As `_run`, but False if `stop` is set before the end."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/"
    ) as process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=POLL)
                    break
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        return False
        finally:
            process.kill()
    if process.returncode != 0:
        error = subprocess.CalledProcessError(process.returncode, command, output)
        raise ImageError(f"{os.path.basename(command[0])}: {_reason(error)}")
    return True


def _reason(error: subprocess.CalledProcessError) -> str:
    """The first complaint in a program's output, and what to do if the cause is plain."""
    output: list[str] = error.stdout.decode(errors="replace").strip().splitlines()
    if any("No space left" in line or "Wrote only" in line for line in output):  # the latter is tar's
        return NO_SPACE
    for line in output:
        for mark in ("PANIC:", "FATAL:", "ERROR:", "error:"):
            _, found, reason = line.partition(mark)
            if found:
                return reason.strip()
    return output[-1] if output else f"exit status {error.returncode}"


def _last_line(file: Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "empty log"
