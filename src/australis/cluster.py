"""The directory of a cluster on one machine: where its parts are, and which cluster it is.

`cluster.json` holds at least {"cluster": 32 hex digits, "format": 1}. Anything else about it is the launcher's. A
directory of another format is refused and left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from australis.errors import WrongClusterError

FORMAT = 1


class _ClusterFile(msgspec.Struct):
    cluster: str
    format: int


@dataclass(frozen=True, slots=True)
class ClusterDirectory:
    """Paths below the data directory; `run` may lie elsewhere when its path is too long for a socket."""

    data: Path
    run: Path
    cluster: bytes

    @property
    def journal(self) -> Path:
        """Segments of the journal."""
        return self.data / "journal"

    @property
    def journal_settings(self) -> Path:
        """Where the journal is, if not in `journal`: written by the supervisor before the commit process starts."""
        return self.run / "journal.json"

    @property
    def storage(self) -> Path:
        """The store's files."""
        return self.data / "storage"

    @property
    def snapshots(self) -> Path:
        """Snapshots of the store."""
        return self.data / "snapshots"

    @property
    def page(self) -> Path:
        """The shared page."""
        return self.run / "page"

    @property
    def commit_socket(self) -> Path:
        """Where the commit service listens."""
        return self.run / "commit.sock"

    @property
    def storage_socket(self) -> Path:
        """Where the storage service listens."""
        return self.run / "storage.sock"


def open_cluster(data: Path, run: Path | None = None) -> ClusterDirectory:
    """Read `cluster.json`; raises WrongClusterError with one line if it cannot be used."""
    path = data / "cluster.json"
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_ClusterFile)
        cluster = bytes.fromhex(record.cluster)
    except FileNotFoundError:
        raise WrongClusterError(f"{data} holds no cluster (no cluster.json)") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise WrongClusterError(
            f"{path} is not readable as a cluster record: {error}; restore it from a copy"
        ) from None
    if record.format != FORMAT:
        raise WrongClusterError(
            f"{data} has format {record.format}, this program knows format {FORMAT}; use the matching version"
        )
    if len(cluster) != 16:
        raise WrongClusterError(f"{path}: the cluster id must have 32 hex digits")
    return ClusterDirectory(data, run if run is not None else data / "run", cluster)
