"""What `australis status` shows: the supervisor's state file, and what each service says of itself.

What must hold: it answers within two seconds whatever the services do; one that does not answer is shown as such.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from australis.cluster import ClusterDirectory, open_cluster
from australis.control_plane.layout import Cluster, Layout
from australis.errors import AustralisError
from australis.files import read_json
from australis.page import process_lives
from australis.protocol.messages import PROTOCOL_VERSION, Hello, Status, StatusReply, any_decoder, encode

TIMEOUT = 1.0
MAX_REPLY = 1 << 20
RANGES_SHOWN = 2
LONGEST_VALUE = 60


def collect(layout: Layout, cluster: Cluster, *, running: bool) -> dict[str, Any]:
    """All that is known of the cluster as one JSON object; `state`: stopped, starting, ready, degraded, stopping."""
    content: dict[str, Any] = {
        "state": "stopped",
        "data": str(layout.data),
        "cluster": cluster.cluster,
        "profile": cluster.profile,
        "created": cluster.created,
    }
    if not running:
        return content
    state = read_json(layout.run / "state.json")
    content |= state or {"state": "starting"}
    content["memory_kb"] = memory([int(state.get("pid") or 0)])
    if layout.topology_file.exists():
        _many(layout, cluster, content)
        return content
    directory = open_cluster(layout.data, layout.run)
    content["commit"] = _ask(directory.commit_socket, directory)
    content["storage"] = _ask(directory.storage_socket, directory)
    content["warnings"] = list(_warnings(layout, content["commit"], content["storage"]))
    return content


def _many(layout: Layout, cluster: Cluster, content: dict[str, Any]) -> None:
    """Of a cluster of many processes: what each says, the ranges of the newest map, and who is degraded."""
    import asyncio

    from australis.control_plane import survey
    from australis.control_plane.multiprocess import role_configs

    configs = role_configs(layout)
    places = {config.name: config.listen for config in configs if config.listen}
    try:
        identity = survey.tool_identity(cluster.id, layout.roles / survey.TOOL)
        answers, newest = asyncio.run(survey.overview(places, configs, identity, TIMEOUT))
    except AustralisError as error:
        content["warnings"] = [f"the processes cannot be asked: {error}"]
        return
    content["roles"] = answers
    content["map"] = newest
    services = content.get("services", {})
    down = [f"{name} does not run" for name, service in services.items() if not service["serving"]]
    silent = [
        f"{name} does not answer: {answer['error']}"
        for name, answer in answers.items()
        if "error" in answer and services.get(name, {}).get("serving")
    ]
    content["warnings"] = down + silent
    if content["warnings"] and content["state"] == "ready":
        content["state"] = "degraded"


def _warnings(layout: Layout, commit: dict[str, Any], storage: dict[str, Any]) -> Iterator[str]:
    """What the services go on with, but somebody has to mend."""
    if commit.get("journal_full"):
        yield f"no space left on the disk of {layout.data / 'journal'}: commits fail with 53100; free space"
    if storage.get("state") == "disk full":
        yield f"no space left on the disk of {layout.data / 'storage'}: new commits cannot be read yet; free space"


def _ask(path: Path, directory: ClusterDirectory) -> dict[str, Any]:
    """Status of the service behind a socket; {"error": why} when it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(str(path))
            for message in (Hello(PROTOCOL_VERSION, directory.cluster, "status", 0), Status()):
                body = encode(message)
                connection.sendall(struct.pack("<I", len(body)) + body)
            deadline = time.monotonic() + TIMEOUT
            while time.monotonic() < deadline:
                reply = any_decoder.decode(_frame(connection))
                if isinstance(reply, StatusReply):
                    return dict(reply.status)
            return {"error": "no answer in time"}
    except (OSError, EOFError, msgspec.MsgspecError, AustralisError) as error:
        return {"error": str(error) or type(error).__name__}


def _frame(connection: socket.socket) -> bytes:
    (length,) = struct.unpack("<I", _exactly(connection, 4))
    if length > MAX_REPLY:
        raise EOFError(f"a reply of {length} bytes")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise EOFError("connection closed")
        parts += part
    return bytes(parts)


def memory(roots: list[int]) -> dict[str, int]:
    """Proportional set size in kB of these processes and all below them, by program; {} where it may not be read."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total: dict[str, int] = {}
    waiting = [pid for pid in roots if process_lives(pid)]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        name = "postgresql" if b"postgres" in command[0] else "python"
        size = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        total[name] = total.get(name, 0) + size
    return total


def as_json(content: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(content)).decode()


def as_table(content: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = [("state", content["state"])]
    rows += [("WARNING", warning) for warning in content.get("warnings", [])]
    rows += [("data", content["data"])]
    rows += [("cluster", f"{content['cluster']}, made {content['created']}"), ("profile", content["profile"])]
    if content.get("port"):
        direct = f"127.0.0.1:{content['direct_port']}" if content["direct_port"] else "no query processor runs"
        rows.append(("clients", f"{content['host']}:{content['port']} (direct: {direct})"))
        rows.append(("reads", f"{content['storage_driver']} storage"))
        rows.append(("up since", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(content["started"]))))
        rows.append(("started in", _phases(content["phases"])))
    for name, service in content.get("services", {}).items():
        serving = "serving" if service["serving"] else "NOT serving"
        rows.append((name, f"{serving}, pid {service['pid']}, restarted {service['restarts']} times"))
    if content.get("pool"):
        rows.append(("pool", ", ".join(f"{key} {value:g}" for key, value in content["pool"].items())))
    for one in content.get("processors", []):
        if not content.get("pool") and len(content["processors"]) == 1:
            continue
        taken = sum(one["phases"].values())
        started = f", started in {taken} ms ({_phases(one['phases'])})" if one["phases"] else ""
        failed = f"; failed: {one['cause']}" if one.get("cause") else ""
        rows.append((f"processor {one['number']}", f"{one['state']}, started {one['starts']} times{started}{failed}"))
    for name in ("commit", "storage"):
        answers = content.get(name)
        if isinstance(answers, dict):
            rows.append((f"{name} says", ", ".join(f"{key} {_short(value)}" for key, value in answers.items())))
    for name, answer in content.get("roles", {}).items():
        rows.append((f"{name} says", ", ".join(f"{key} {_short(value)}" for key, value in answer.items())))
    if content.get("map"):
        rows += _map_rows(content["map"])
    if content.get("memory_kb"):
        sizes = content["memory_kb"]
        parts = ", ".join(f"{name} {size / 1024:.0f}" for name, size in sizes.items())
        rows.append(("memory", f"{sum(sizes.values()) / 1024:.0f} MB ({parts})"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _phases(phases: dict[str, int]) -> str:
    return ", ".join(f"{name} {taken} ms" for name, taken in phases.items())


def _map_rows(newest: dict[str, Any]) -> list[tuple[str, str]]:
    """Owners, their ranges and their share of the first stripes; not each of hundreds of ranges."""
    rows = [("map", f"version {newest['version']}")]
    for kind in ("adjudicators", "shards"):
        for owner, ranges in newest[kind].items():
            shown = ", ".join(f"{lo or '0'}..{hi}" for lo, hi in ranges[:RANGES_SHOWN])
            more = f" and {len(ranges) - RANGES_SHOWN} more" if len(ranges) > RANGES_SHOWN else ""
            rows.append((f"{kind[:-1]} {owner}", f"{len(ranges)} ranges: {shown}{more}"))
    return rows


def _short(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
