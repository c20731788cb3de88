"""Objects in a bucket of S3, or of anything that speaks its protocol. The requests are obstore's.

What must hold: an object appears with the last byte of its upload (one PUT, or the completion of a multipart upload,
both atomic at the server); uploads carry a checksum that the server compares. Conditions are the server's own
(If-None-Match, If-Match). A request that fails for a moment is sent again by obstore, RETRIES times at most and within
the time limit; then the call raises one error and nothing has appeared, except that the answer to a put may be lost.

Large objects are read by ranges of one version (If-Match), so that a stalled connection costs one piece only.
An upload in pieces that was interrupted leaves invisible pieces in the bucket; a lifecycle rule of the bucket
(AbortIncompleteMultipartUpload) removes them. Snapshots upload no object in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore.exceptions
from obstore.store import S3Store

from australis.objects.interface import (
    MAX_OBJECT,
    PIECE,
    ConflictError,
    DamagedObjectError,
    DeniedError,
    Entry,
    InvalidObjectUrlError,
    MissingObjectError,
    ObjectError,
    Stored,
    StoreFullError,
    UnreachableError,
    check_key,
    check_size,
    checksum,
    verified,
    verify,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config  # they exist for type checkers only

RETRIES = 3
UPLOADS = 2
"""Pieces of one upload that are on their way at once."""

_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "EntityTooLarge"}
_DENIED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed", "InvalidAccessKeyId"}
_LIES = {"BadDigest", "XAmzContentChecksumMismatch", "InvalidDigest", "IncompleteBody"}


class S3ObjectStore:
    """A bucket, or the part of it below a prefix."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None, region: str | None, seconds: float) -> None:
        """`seconds`: how long one request may take, and all attempts of one call together."""
        config: S3Config = {"checksum_algorithm": "SHA256", "conditional_put": "etag"}
        if endpoint is not None:
            config["endpoint"] = endpoint
            config["virtual_hosted_style_request"] = False
        if region is not None:
            config["region"] = region
        options: ClientConfig = {
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=min(seconds, 5.0)),
        }
        self._url = f"s3://{bucket}/{prefix}".rstrip("/")
        try:
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                config=config,
                client_options=options,
                retry_config={
                    "max_retries": RETRIES,
                    "retry_timeout": timedelta(seconds=seconds),
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=100),
                        "max_backoff": timedelta(seconds=2),
                        "base": 2,
                    },
                },
            )
        except obstore.exceptions.BaseError as error:
            raise InvalidObjectUrlError(f"{self._url}: {_line(error)}") from None

    @property
    def url(self) -> str:
        """Where it is, without its options."""
        return self._url

    # ------------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None) -> str:
        """Store; returns the version."""
        check_size(f"{self._url}/{key}", len(data))
        check_key(key)
        with self._errors("put", key):
            if if_version is not None:
                result = self._store.put(key, data, mode={"e_tag": if_version}, use_multipart=False)
            else:
                result = self._store.put(key, data, mode="create" if if_absent else "overwrite", use_multipart=False)
        return result["e_tag"] or ""

    def put_stream(self, key: str, pieces: Iterable[bytes]) -> Stored:
        """Store an object of any size."""
        check_key(key)
        summing = _Summing(pieces)
        try:
            with self._errors("put", key):
                self._store.put(key, summing, chunk_size=PIECE, max_concurrency=UPLOADS, use_multipart=True)
        except ObjectError:
            if summing.error is not None:
                raise summing.error from None
            raise
        return Stored(summing.size, summing.checksum)

    def delete(self, key: str) -> None:
        """Delete."""
        check_key(key)
        try:
            with self._errors("delete", key):
                self._store.delete(key)
        except MissingObjectError:
            return

    # ------------------------------------------------------------------------------------------------------- reading

    def get(self, key: str, expected: Stored | None = None, *, limit: int = MAX_OBJECT) -> tuple[bytes, str]:
        """A whole object and its version."""
        check_key(key)
        where = f"{self._url}/{key}"
        with self._errors("get", key):
            answer = self._store.get(key)
            size = answer.meta["size"]
            if size > limit:
                raise DamagedObjectError(f"{where} has {size} bytes, more than the {limit} it may have")
            data = bytes(answer.bytes())
        if len(data) != size:
            raise DamagedObjectError(f"{where} came with {len(data)} of {size} bytes")
        verify(where, data, expected)
        return data, answer.meta["e_tag"] or ""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Some bytes of an object."""
        check_key(key)
        if start < 0 or not 0 <= length <= MAX_OBJECT:
            raise InvalidObjectUrlError(f"bytes {start} + {length} are no range of an object")
        if length == 0:
            return b""
        with self._errors("get", key):
            data = bytes(self._store.get_range(key, start=start, length=length))
        if len(data) != length:
            raise DamagedObjectError(f"{self._url}/{key} ends before byte {start + length}")
        return data

    def get_stream(self, key: str, expected: Stored | None = None) -> Iterator[bytes]:
        """An object in pieces."""
        check_key(key)
        return verified(f"{self._url}/{key}", self._pieces(key), expected)

    def _pieces(self, key: str) -> Iterator[bytes]:
        where = f"{self._url}/{key}"
        with self._errors("get", key):
            found = self._store.head(key)
        at, size, version = 0, found["size"], found["e_tag"]
        while at < size:
            end = min(at + PIECE, size)
            with self._errors("get", key):
                if version is None:
                    answer = self._store.get(key, options={"range": (at, end)})
                else:
                    answer = self._store.get(key, options={"range": (at, end), "if_match": version})
                piece = bytes(answer.bytes())
            if len(piece) != end - at:
                raise DamagedObjectError(f"{where} came with {len(piece)} of {end - at} bytes")
            at = end
            yield piece

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects below a folder."""
        prefix = prefix.rstrip("/")
        if prefix:
            check_key(prefix)
        with self._errors("list", prefix):
            listing = iter(self._store.list(prefix=f"{prefix}/" if prefix else None, chunk_size=1000))
        while True:
            with self._errors("list", prefix):
                page = next(listing, None)
            if page is None:
                return
            for item in page:
                yield Entry(item["path"], item["size"])

    # ------------------------------------------------------------------------------------------------------- helpers

    @contextmanager
    def _errors(self, what: str, key: str) -> Iterator[None]:
        where = f"{self._url}/{key}" if key else self._url
        try:
            yield
        except ObjectError:
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise UnreachableError(f"{where}: cannot {what}: there is no such bucket") from None
            if what == "put":
                raise ConflictError(f"{where}: cannot {what}: it does not exist") from None
            raise MissingObjectError(f"{where}: cannot {what}: no such object") from None
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
            raise ConflictError(f"{where}: cannot {what}: it exists, or has another version") from None
        except (obstore.exceptions.BaseError, OSError) as error:
            if "NoSuchBucket" in str(error):  # listings say it in another way
                raise UnreachableError(f"{where}: cannot {what}: there is no such bucket") from None
            raise _translate(error)(f"{where}: cannot {what}: {_line(error)}") from None


class _Summing:
    """Iterates over the caller's pieces, and remembers what they were and what they raised."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.size = self.checksum = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = next(self._pieces)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise
        self.size += len(piece)
        self.checksum = checksum(piece, self.checksum)
        return piece


def _translate(error: Exception) -> type[ObjectError]:
    text = str(error)
    code = _CODE.search(text)
    status = _STATUS.search(text)
    name = code.group(1) if code else ""
    if isinstance(error, (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError)):
        return DeniedError
    if name in _DENIED:
        return DeniedError
    if name in _FULL or (status and status.group(1) == "507"):
        return StoreFullError
    if name in _LIES or (status and status.group(1) == "416"):
        return DamagedObjectError
    return UnreachableError


def _line(error: Exception) -> str:
    """The part of obstore's text that a person can use."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status or code:
        parts = [f"status {status.group(1)}" if status else "", code.group(1) if code else ""]
        return "the server answered " + " ".join(part for part in parts if part)
    first = text.partition("\n")[0]
    return re.sub(r"^Generic \w+ error: ", "", first).strip()[:300]
