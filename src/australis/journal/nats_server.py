"""NATS servers: their settings as the journal needs them, and the check that refuses any others.

The engine's promises hold only on servers that sync before they answer and on a stream that nothing else trims
(the reasons are with each setting below). What must hold: a journal is never opened on a server or a stream whose
settings would lose acknowledged records; the refusal is one line that names the setting. A server that is down is not
checked now; it is when a process of ours starts again.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from australis.errors import AustralisError, JournalError
from australis.files import write_atomically
from australis.journal.message import MESSAGE_BYTES
from australis.journal.nats_program import program

OLDEST = (2, 15, 1)
"""Earlier versions lack fixes without which acknowledged messages were lost."""

MAX_PAYLOAD = 8 << 20
STREAM_BYTES = 4 << 30
DUPLICATE_SECONDS = 20.0
"""How long the server recognises a message that is sent again; the comparison of places does so for ever."""

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2.0
OTHERS_SECONDS = 0.25
ACCOUNT, SYSTEM = "australis", "system"


class UnsafeServerError(AustralisError):
    """A server or stream must not carry a journal; the message names the setting."""

    sqlstate = "F0000"


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """Where a journal is.

    `servers` are URLs with user and password; `system` is "user:password" of the servers' system account, needed to
    ask for their settings. `replicas` is 3, or 1 where losing the one server's disk may lose the cluster. `max_bytes`
    is the size at which commits are refused.
    """

    servers: tuple[str, ...]
    system: str
    stream: str
    replicas: int = 3
    max_bytes: int = STREAM_BYTES

    @property
    def subject(self) -> str:
        """What records are published to."""
        return f"journal.{self.stream}"


def read_settings(file: Path) -> NatsSettings:
    """Read what `write_settings` wrote; JournalError if it cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=NatsSettings)
    except (OSError, msgspec.MsgspecError) as error:
        raise JournalError(f"{file} cannot be read: {error}") from None


def write_settings(file: Path, settings: NatsSettings) -> None:
    """Write the settings for another process of this user (mode 0600: they hold passwords)."""
    write_atomically(file, msgspec.json.encode(settings), 0o600)


# ------------------------------------------------------------------------------------------------------- our servers


@dataclass(frozen=True, slots=True)
class Server:
    """A server of ours: its unique, stable name, its directory, where it listens; `routes` are the others' addresses.

    Never use a name again with an empty directory: its replicas would count votes for what it has forgotten.
    """

    name: str
    directory: Path
    port: int
    password: str
    host: str = "127.0.0.1"
    cluster_port: int | None = None
    routes: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{ACCOUNT}:{self.password}@{self.host}:{self.port}"

    @property
    def system(self) -> str:
        """Credentials of the system account."""
        return f"{SYSTEM}:{self.password}"

    @property
    def settings_file(self) -> Path:
        """What `write_settings` writes."""
        return self.directory / "nats.conf"

    def command(self) -> list[str]:
        """How to run it in the foreground; it logs to standard error."""
        return [str(program()), "-c", str(self.settings_file)]

    def write_settings(self) -> None:
        """Write the settings file (mode 0600, it holds the password)."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.settings_file.touch(mode=0o600)
        self.settings_file.write_text(self.settings(), encoding="utf-8")

    def settings(self) -> str:
        """Content of the settings file."""
        quote = json.dumps
        lines = [
            f"server_name: {quote(self.name)}",
            f"listen: {quote(f'{self.host}:{self.port}')}",
            f"max_payload: {MAX_PAYLOAD}",
            "jetstream {",
            f"  store_dir: {quote(str(self.directory / 'store'))}",
            "  sync_interval: always",  # the default answers up to two minutes before the disk has it
            "}",
            "accounts {",
            f"  AUSTRALIS {{ jetstream: enabled, users: [{{user: {ACCOUNT}, password: {quote(self.password)}}}] }}",
            f"  SYSTEM {{ users: [{{user: {SYSTEM}, password: {quote(self.password)}}}] }}",
            "}",
            "system_account: SYSTEM",
        ]
        if self.cluster_port is not None:
            routes = ", ".join(quote(f"nats-route://routes:{self.password}@{route}") for route in self.routes)
            lines += [
                "cluster {",
                "  name: australis",
                f"  listen: {quote(f'{self.host}:{self.cluster_port}')}",
                f"  authorization {{ user: routes, password: {quote(self.password)} }}",
                f"  routes: [{routes}]",
                "  no_advertise: true",  # clients are configured with all servers, by the addresses that reach them
                "}",
            ]
        return "\n".join(lines) + "\n"


async def probe(server: Server) -> bool:
    """Does the server answer, with a working JetStream?"""
    try:
        client = await connect((server.url,), attempts=1)
    except (OSError, nats.errors.Error):
        return False
    try:
        await client.jetstream(timeout=ANSWER_SECONDS).account_info()
    except (nats.errors.Error, TimeoutError):
        return False
    finally:
        await client.close()
    return True


async def connect(servers: tuple[str, ...], *, attempts: int = -1, name: str = "australis", **callbacks: Any) -> Client:
    """Connect to any of the servers; raises what nats-py raises when none answers."""

    async def silent(_: Exception) -> None:
        """Errors of a connection end requests; each of those says so itself."""

    callbacks.setdefault("error_cb", silent)
    client = _Client()
    try:
        async with asyncio.timeout(CONNECT_SECONDS * (1 + len(servers))):
            await client.connect(
                list(servers),
                name=name,
                connect_timeout=int(CONNECT_SECONDS),
                allow_reconnect=attempts != 1,
                max_reconnect_attempts=attempts,
                reconnect_time_wait=0.1,  # type: ignore[arg-type]  # declared as int, used as seconds of sleep
                ping_interval=1,
                max_outstanding_pings=2,  # a server that is stopped, not dead, is left after three seconds
                pending_size=16 << 20,
                **callbacks,
            )
    except BaseException:
        await client.close()
        raise
    return client


class _Client(Client):
    """Closes the socket of a server that accepted and then said nothing, before it tries the next."""

    async def _connect_to_server(self, server: Any) -> None:
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]  # has no annotations
        await super()._connect_to_server(server)


# ------------------------------------------------------------------------------------------------------------- check


async def check_servers(settings: NatsSettings) -> None:
    """Ask every server of the cluster for its settings; UnsafeServerError if one would lose what it acknowledged."""
    if settings.replicas not in (1, 3, 5):
        raise UnsafeServerError(f"replicas = {settings.replicas}: a journal has 3 (or 5; 1 for development)")
    user, _, password = settings.system.partition(":")
    urls = tuple(re.sub(r"//[^@]*@|//", f"//{user}:{password}@", url, count=1) for url in settings.servers)
    try:
        client = await connect(urls, attempts=1)
    except (OSError, nats.errors.Error) as error:
        raise JournalError(
            f"cannot ask the NATS servers for their settings as user {user!r} of the system account: {error}"
        ) from None
    try:
        answers = await _ask(client)
    finally:
        await client.close()
    if not answers:
        raise UnsafeServerError(f"user {user!r} is not one of the system account: the servers do not tell settings")
    names = [str(answer.get("server_name")) for answer in answers]
    for name, answer in zip(names, answers, strict=True):
        if names.count(name) > 1:
            raise UnsafeServerError(f"NATS server {name}: server_name is not unique")
        check_server(name, answer)


async def _ask(client: Client) -> list[dict[str, Any]]:
    """The settings of all servers that answer; the last ones get a moment after the first."""
    answers: list[dict[str, Any]] = []

    async def answered(message: Msg) -> None:
        if message.data:
            content = json.loads(message.data).get("data", {})
            if content:
                answers.append(content)
                arrived.set()

    arrived = asyncio.Event()
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=answered)
    await client.publish("$SYS.REQ.SERVER.PING.VARZ", b"", reply=inbox)
    seconds = ANSWER_SECONDS
    while True:
        try:
            async with asyncio.timeout(seconds):
                await arrived.wait()
        except TimeoutError:
            break
        arrived.clear()
        seconds = OTHERS_SECONDS
    await subscription.unsubscribe()
    return answers


def check_server(name: str, answer: dict[str, Any]) -> None:
    """Refuse one server's settings (the content of its /varz)."""
    found = str(answer.get("version", ""))
    version = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if version < OLDEST:
        raise UnsafeServerError(
            f"NATS server {name}: version {found or 'unknown'} is older than {'.'.join(map(str, OLDEST))}"
        )
    config = (answer.get("jetstream") or {}).get("config")
    if not config:
        return  # carries no stream
    if config.get("sync_always") is not True:
        raise UnsafeServerError(
            f"NATS server {name}: sync_interval is not always: it acknowledges what is not on disk; set "
            "jetstream { sync_interval: always }"
        )
    if int(answer.get("max_payload", 0)) < MAX_PAYLOAD:
        raise UnsafeServerError(f"NATS server {name}: max_payload {answer.get('max_payload')} is below {MAX_PAYLOAD}")


def stream_config(settings: NatsSettings, cluster: bytes) -> StreamConfig:
    """A journal's stream."""
    return StreamConfig(
        name=settings.stream,
        subjects=[settings.subject],
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,  # the default forgets the oldest records at max_bytes
        num_replicas=settings.replicas,
        max_bytes=settings.max_bytes,
        max_age=0,
        max_msgs=-1,
        max_msg_size=-1,
        deny_delete=True,
        deny_purge=False,  # trimming
        allow_direct=True,
        duplicate_window=DUPLICATE_SECONDS,
        metadata={"australis.cluster": cluster.hex(), "australis.format": "1"},
    )


def check_stream(config: StreamConfig, settings: NatsSettings) -> None:
    """Refuse a stream whose settings were altered; the line names the first one."""
    replicas = config.num_replicas or 1
    most = config.max_msg_size
    findings: list[tuple[bool, str, object, str]] = [
        (config.storage == StorageType.FILE, "storage", config.storage, "file"),
        (config.discard == DiscardPolicy.NEW, "discard", config.discard, "new: old would drop acknowledged records"),
        (config.retention == RetentionPolicy.LIMITS, "retention", config.retention, "limits"),
        (not config.max_age, "max_age", config.max_age, "0: records must not expire"),
        ((config.max_msgs or -1) < 0, "max_msgs", config.max_msgs, "-1"),
        ((config.max_msgs_per_subject or -1) < 0, "max_msgs_per_subject", config.max_msgs_per_subject, "-1"),
        ((config.max_bytes or -1) > 0, "max_bytes", config.max_bytes, "a number of bytes"),
        (most is None or most < 0 or most >= 2 * MESSAGE_BYTES, "max_msg_size", most, "-1"),
        (config.deny_delete is True, "deny_delete", config.deny_delete, "true"),
        (config.deny_purge is not True, "deny_purge", config.deny_purge, "false: trimming needs it"),
        (config.allow_direct is True, "allow_direct", config.allow_direct, "true"),
        (not config.allow_rollup_hdrs, "allow_rollup_hdrs", config.allow_rollup_hdrs, "false"),
        (not config.allow_msg_ttl, "allow_msg_ttl", config.allow_msg_ttl, "false"),
        (not config.no_ack, "no_ack", config.no_ack, "false"),
        (not config.sealed, "sealed", config.sealed, "false"),
        (config.mirror is None, "mirror", "set", "none"),
        (not config.sources, "sources", "set", "none"),
        (config.subject_transform is None, "subject_transform", "set", "none"),
        (config.persist_mode in (None, "", "default"), "persist_mode", config.persist_mode, "default"),
        (config.subjects == [settings.subject], "subjects", config.subjects, settings.subject),
        (replicas >= settings.replicas, "num_replicas", replicas, f"{settings.replicas} (as configured)"),
    ]
    for fine, name, value, wanted in findings:
        if not fine:
            shown = getattr(value, "value", value)
            raise UnsafeServerError(f"stream {settings.stream}: {name} is {shown}, must be {wanted}")
