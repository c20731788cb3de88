"""Answers a Scan from a store, as the storage service of one host and a shard's replica do.

What must hold: one request never looks at more than MAX_EXAMINED rows nor returns more than MAX_SCAN_ROWS or
MAX_SCAN_BYTES, whatever it asks for; a filter that is not well-formed is REFUSED and nothing is read. If the store
fails, the answer is ERROR, and the log says why.
"""

from __future__ import annotations

import structlog

from australis.protocol.messages import ReadStatus, Scan, ScanReply
from australis.storage.store import MalformedError, Store, StoreError, TooOldError

MAX_SCAN_BYTES = 8 << 20
MAX_SCAN_ROWS = 1 << 20
INLINE_ROWS = 128
"""Scans up to this many rows run in the loop; larger ones in a thread."""

EXAMINED_PER_ROW = 16
LEAST_EXAMINED, MAX_EXAMINED = 1024, 1 << 16
"""With a filter: so many rows are looked at per row that may be returned."""

log = structlog.get_logger()


def answer_scan(store: Store, request: Scan) -> ScanReply:
    """Answer a Scan whose time is applied; may run in any thread."""
    max_rows = max(1, min(request.max_rows, MAX_SCAN_ROWS))
    max_bytes = max(1, min(request.max_bytes, MAX_SCAN_BYTES))
    resume = b""
    try:
        if request.filter:
            batch, more, resume = store.scan_where(
                request.lo,
                request.hi,
                request.backward,
                request.tau,
                max_rows,
                max_bytes,
                request.filter,
                max(LEAST_EXAMINED, min(max_rows * EXAMINED_PER_ROW, MAX_EXAMINED)),
            )
        else:
            batch, more = store.scan(request.lo, request.hi, request.backward, request.tau, max_rows, max_bytes)
        return ScanReply(request.id, ReadStatus.OK, more, batch, resume)
    except TooOldError:
        return ScanReply(request.id, ReadStatus.BELOW_HORIZON, False, b"")
    except MalformedError as error:
        log.error("storage.scan_refused", error=str(error))
        return ScanReply(request.id, ReadStatus.REFUSED, False, b"")
    except StoreError as error:
        log.error("storage.read_failed", error=str(error))
        return ScanReply(request.id, ReadStatus.ERROR, False, b"")
