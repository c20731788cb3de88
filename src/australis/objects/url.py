"""From a URL to a driver.

    file:///absolute/path
    s3://bucket/prefix?endpoint=https://host:port&region=name&timeout=seconds

Credentials never stand in a URL: URLs are shown and logged. S3 takes them from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or from the machine's role.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from australis.objects.interface import InvalidObjectUrlError, ObjectStore, check_key

SECONDS = 30.0
_S3_OPTIONS = {"endpoint", "region", "timeout"}


def open_objects(url: str) -> ObjectStore:
    """Open an object store. InvalidObjectUrlError for a wrong URL; a directory must be usable (ObjectError).

    An S3 bucket is not contacted: the first call says what is wrong with it.
    """
    return check_url(url)()


def check_url(url: str) -> Callable[[], ObjectStore]:
    """Return what opens it; InvalidObjectUrlError for a wrong URL. Nothing is contacted or made."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise InvalidObjectUrlError(f"{_shown(url)!r} is not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidObjectUrlError(f"{_shown(url)}: credentials do not belong into the URL of an object store")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or options or parts.fragment:
            raise InvalidObjectUrlError(f"{url!r}: a directory is file:///absolute/path")
        return lambda: _directory(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        return _s3(url, parts.netloc, parts.path, options)
    raise InvalidObjectUrlError(f"{_shown(url)!r}: an object store is file:///path or s3://bucket/prefix")


def url_mistake(url: str) -> str:
    """What is wrong with a URL, in one line; "" for nothing."""
    try:
        check_url(url)
    except InvalidObjectUrlError as error:
        return str(error)
    return ""


def _directory(path: Path) -> ObjectStore:
    from australis.objects.directory import DirectoryStore

    return DirectoryStore(path)


def _s3(url: str, bucket: str, path: str, options: dict[str, str]) -> Callable[[], ObjectStore]:
    shown = _shown(url)
    if not bucket:
        raise InvalidObjectUrlError(f"{shown}: an S3 store is s3://bucket/prefix?endpoint=...&region=...")
    for name in options:
        if name not in _S3_OPTIONS:
            raise InvalidObjectUrlError(
                f"{shown}: unknown option {name!r}; there are {', '.join(sorted(_S3_OPTIONS))}, "
                "and credentials come from the environment"
            )
    prefix = path.strip("/")
    if prefix:
        check_key(prefix)
    endpoint = options.get("endpoint")
    if endpoint is not None and not endpoint.startswith(("https://", "http://")):
        raise InvalidObjectUrlError(f"{shown}: the endpoint {endpoint!r} is not https://host:port or http://host:port")
    try:
        seconds = float(options.get("timeout", SECONDS))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise InvalidObjectUrlError(f"{shown}: timeout {options['timeout']!r} is not a number of seconds up to 3600")
    try:
        from australis.objects.s3 import S3ObjectStore
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise InvalidObjectUrlError(f"{shown}: S3 needs the extra: pip install 'australis[s3]'") from None
    return lambda: S3ObjectStore(bucket, prefix, endpoint, options.get("region"), seconds)


def _shown(url: str) -> str:
    """Without what may be secret."""
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"[:200]
