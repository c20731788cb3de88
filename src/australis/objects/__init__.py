"""Object stores: where snapshots and other large immutable things of a cluster are kept.

    store = open_objects("file:///var/backups/australis")
    store = open_objects("s3://bucket/prefix?endpoint=https://host:9000&region=eu-central-1")

`interface.py` says what every driver does and which errors there are; `directory.py` and `s3.py` are the drivers.
"""

from australis.objects.interface import (
    ConflictError,
    DamagedObjectError,
    DeniedError,
    Entry,
    InvalidObjectUrlError,
    MissingObjectError,
    ObjectError,
    ObjectStore,
    Stored,
    StoreFullError,
    UnreachableError,
    checksum,
)
from australis.objects.url import open_objects

__all__ = [
    "ConflictError",
    "DamagedObjectError",
    "DeniedError",
    "Entry",
    "InvalidObjectUrlError",
    "MissingObjectError",
    "ObjectError",
    "ObjectStore",
    "StoreFullError",
    "Stored",
    "UnreachableError",
    "checksum",
    "open_objects",
]
