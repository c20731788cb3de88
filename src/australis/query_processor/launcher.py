"""One query processor: its data directory, its command line, and whether it answers.

    prepare -> command/environment (the supervisor spawns and watches) -> wait_ready -> ... -> mark_clean

What must hold (rule S2): a data directory that the machine may have left half-written is never opened again.
`boot.json` says in which boot it was last open and whether it was closed and synced since; if that boot is another one
and the mark is missing, or the directory is damaged, it is made again from the newest image and catches up from the DDL
log, with the same OIDs; likewise if an image is ahead of it by more than a start should replay. Nothing of it is worth
a repair.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from australis.files import boot_id, read_json
from australis.query_processor import image
from australis.query_processor.installation import Installation
from australis.query_processor.probe import NotReadyError, query
from australis.query_processor.settings import CONFIG_FILE, HBA, Settings, render

PROBE_INTERVAL = 0.005
REFRESH_CHANGES = 200
"""Schema changes that a start may have to replay before a newer image is worth its making: about 50 ms."""

FAR_BEHIND: Final = "an image is far ahead of it"

USAGE = """
SELECT count(*) FILTER (WHERE pid <> pg_backend_pid() AND (backend_type = 'client backend' OR
         (state = 'active' AND backend_type NOT IN ('autovacuum worker', 'australis catalog applier')))),
       (SELECT count(*) FROM pg_proc WHERE proname = 'au_catalog_applied')
FROM pg_stat_activity"""
APPLIED = "SELECT au_catalog_applied()"
CANNOT_CONNECT_NOW: Final = "57P03"

log = structlog.get_logger()


class QueryProcessor:
    """PostgreSQL in `directory`. Not thread-safe; one per directory and process."""

    stop_signal = signal.SIGINT  # fast shutdown: sessions end with 57P01
    # The supervisor's death must not leave a server behind. Immediate shutdown: it also frees its shared memory.
    death_signal = signal.SIGQUIT
    drain_signal = (
        signal.SIGTERM
    )  # smart shutdown: new sessions are refused, those that are there may end by themselves

    def __init__(
        self, directory: Path, installation: Installation, password: str, *, image: Path | None = None
    ) -> None:
        """`image` is where the cluster's image is, if it is not in `directory`."""
        self.directory = directory
        self.data = directory / "data"
        self.image = directory / "image.tar" if image is None else image
        self._boot = directory / "boot.json"
        self._installation = installation
        self._password = password
        self.fresh = False  # the data directory is a copy of the image that was never opened
        self.version = 0  # the catalogs in it are at this schema change at least
        self._socket: Path | None = None

    def prepare(self, *, rebuild: bool = False, first_image: bool = False, trusted: bool = False) -> str:
        """Make the data directory usable; returns what that took ("built", "rebuilt: <why>" or "kept").

        No server may run on it. `rebuild` makes it again whatever it looks like, `first_image` from image 0 then.
        `trusted`: image 0 was looked at in this run, and is looked at again only if it is needed. Blocking.
        """
        self.directory.mkdir(mode=0o700, exist_ok=True)
        done = "kept"
        reason = "asked for" if rebuild else self._unusable()
        if first_image:
            image.drop_later(self.image)
        source = None if reason is None or not self.image.exists() else image.newest(self.image)
        if source is not None and reason == FAR_BEHIND and not self._far_behind(source.version):
            source = None  # that image was a damaged one
        relies = source is not None and source.file == self.image  # on image 0; others were looked at
        if (not trusted or relies or not self.image.exists()) and not image.whole(self.image):
            image.build(self.image, self.data, self._installation, self._password)
            image.drop_later(self.image)
            done, self.version = "built", 0
        elif source is not None:
            image.extract(source.file, self.data)
            done, self.version = f"rebuilt: {reason}", source.version
        else:
            self.version = self._noted_version()
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # nothing runs: whatever it says is stale
        self._mark(clean=False)
        self.fresh = done != "kept"
        return done

    def _unusable(self) -> str | None:
        """Why the data directory must not be opened, if so."""
        if not (self.data / "PG_VERSION").is_file() or not (self.data / "global" / "pg_control").is_file():
            return "missing or incomplete"
        mark = read_json(self._boot)
        if not mark.get("clean") and mark.get("boot") != boot_id():
            return "the machine stopped without closing it"
        try:
            made = self.image.stat().st_mtime_ns
        except FileNotFoundError:
            return "there is no image"
        if mark.get("image") != made:
            return "made from another image"
        if self._far_behind(image.newest_version(self.image)):
            return FAR_BEHIND
        return None

    def _far_behind(self, version: int) -> bool:
        return version - self._noted_version() > REFRESH_CHANGES

    def _noted_version(self) -> int:
        return int(read_json(self._boot).get("version") or 0)

    def _mark(self, *, clean: bool) -> None:
        mark = {
            "boot": boot_id(),
            "clean": clean,
            "image": self.image.stat().st_mtime_ns,
            "version": self.version,
        }
        temporary = self._boot.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(mark))
        temporary.replace(self._boot)

    def configure(self, settings: Settings) -> None:
        """Write the server's configuration files."""
        self._socket = settings.run / f".s.PGSQL.{settings.port}"
        (self.data / CONFIG_FILE).write_text(render(settings, self._installation), encoding="utf-8")
        (self.data / "pg_hba.conf").write_text(HBA, encoding="ascii")

    @property
    def socket(self) -> Path:
        assert self._socket is not None, "configure comes first"
        return self._socket

    def command(self) -> list[str]:
        return [self._installation.program("postgres"), "-D", str(self.data)]

    @staticmethod
    def environment() -> dict[str, str]:
        """The caller's environment without what would change the server's behaviour."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return {**clean, "LC_ALL": "C", "TZ": "UTC"}

    async def wait_ready(self, seconds: float, *, answered: Callable[[], None] = lambda: None) -> None:
        """Return once a session is admitted and answers. Raises NotReadyError with the last reason after `seconds`.

        `answered` is called when the server lets sessions in, whose log-in waits for the catalogs.
        """
        last = NotReadyError("not started")
        accepts = False
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        if not accepts:  # to ask it now would only make it start processes
                            accepts = self._accepts()
                            if accepts:
                                answered()
                        if accepts:
                            await query(self.socket, "SELECT 1")
                            return
                    except NotReadyError as error:
                        # Anything but "starting up" and "nobody listens yet" will not go away by waiting.
                        if error.sqlstate not in ("", CANNOT_CONNECT_NOW):
                            raise
                        last = error
                    await asyncio.sleep(PROBE_INTERVAL)
        except TimeoutError:
            raise NotReadyError(f"PostgreSQL did not serve within {seconds:.0f} s: {last}", last.sqlstate) from None

    def _accepts(self) -> bool:
        """Does the server say that it accepts connections? (Its file has that in the eighth line, for pg_ctl.)"""
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    async def in_use(self) -> int:
        """How many sessions and jobs it has, whoever they came through; `version` is brought up to date.

        Raises NotReadyError; cancel it to bound its time.
        """
        ((used, ours),) = await query(self.socket, USAGE)
        if ours != "0":
            ((applied,),) = await query(self.socket, APPLIED)
            self.version = max(self.version, int(applied or 0))
        return int(used or 0)

    def take_image(self, stop: threading.Event, copied: threading.Event) -> bool:
        """After a clean shutdown: make an image of it, if it is far ahead of the newest. See `image.take`. Blocking."""
        if self.version - image.newest_version(self.image) <= REFRESH_CHANGES:
            copied.set()
            return False
        start = time.monotonic()
        taken = image.take(self.image, self.data, self.version, stop, copied)
        seconds = round(time.monotonic() - start, 3)
        log.info("query_processor.image", version=self.version, taken=taken, seconds=seconds)
        return taken

    def mark_clean(self, stop: threading.Event | None = None) -> bool:
        """After a clean shutdown: sync the files and note it, so that the next boot may use them. Blocking.

        False if `stop` was set meanwhile; nothing is noted then.
        """
        start = time.monotonic()
        files = 0
        for folder, _, names in os.walk(self.data):
            for name in [*names, "."]:
                if stop is not None and stop.is_set():
                    return False
                fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                files += 1
        self._mark(clean=True)
        log.info("query_processor.clean", files=files, seconds=round(time.monotonic() - start, 3))
        return True


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port nobody uses at this moment."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
        return port


def free_shared_memory(data: Path) -> None:
    """Remove the System V segment (a few bytes, PostgreSQL's interlock) that a killed server left for `data`.

    A later server on the same directory would do it itself; this is for directories that are deleted. No server may
    run.
    """
    import ctypes

    try:
        lines = (data / "postmaster.pid").read_text(encoding="ascii", errors="replace").splitlines()
        key, segment = (int(number) for number in lines[6].split())
    except (OSError, IndexError, ValueError):  # stopped cleanly, or killed before it had one
        return
    libc = ctypes.CDLL(None)
    if libc.shmget(ctypes.c_int(key), ctypes.c_size_t(0), 0) == segment:
        libc.shmctl(segment, 0, None)  # IPC_RMID; nothing else has this key
