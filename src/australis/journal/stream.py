"""Reading a journal's stream on NATS: who asks, and what the messages mean.

`StreamClient` is the connection: requests, answers, reads. `StreamScan` follows messages in the stream's order and says
which records count; it is pure. What must hold: messages are taken without a gap, damage is reported and never skipped,
and reading starts only at a place known to be behind a record that counts (a `Mark`) or at the stream's first message,
which always counts: trimming purges below a message that counts, and the first message of all is a claim.

If the servers are away, requests raise UnavailableError; callers ask again for as long as they can wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig, StreamInfo
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from australis.errors import JournalError, PositionGoneError, ProtocolError
from australis.journal.message import Summary, unpack_message
from australis.journal.nats_server import ANSWER_SECONDS, NatsSettings, connect
from australis.journal.pipeline import Refusal
from australis.journal.record import HEADER_BYTES, START, Entry, Kind, Position
from australis.journal.validity import Validator

READ_MESSAGES = 1024
READ_BYTES = 4 << 20
STREAM_NOT_FOUND = 10059
WRONG_LAST_SEQUENCE = 10071
SPACE = frozenset({10077, 10047, 10023, 10028})
"""Error codes of a server: max_bytes reached, no storage, no resources (of the account)."""


class UnavailableError(JournalError):
    """The servers do not answer at the moment."""


class StreamDamagedError(JournalError):
    """A message of the stream is not what was written; never repaired by guessing."""

    sqlstate = "XX001"


class StreamGoneError(JournalError):
    """There is no such stream."""


class Mark(NamedTuple):
    """The place of a message that counts, and the last record in it: behind it one can read."""

    place: int
    position: Position


class StreamScan:
    """Follows the messages behind a mark."""

    def __init__(
        self, stream: str, cluster: bytes, mark: Mark | None, after: Position = START, watched: Position | None = None
    ) -> None:
        """`mark` None: begin at the first message that comes. Entries at or before `after` are not given out.

        `watched` (default: `after`) is a record that the journal should hold.
        """
        self._stream, self._cluster = stream, cluster
        self._after = after
        self.place = 0
        self.first: Mark | None = None
        self.summary = Summary()
        self.claim: Entry | None = None
        """The last claim that counts."""

        self._watched = watched if watched is not None else after
        self.met = self._watched == START
        """Was the watched record seen, or is it where the reading began?"""

        self.diverged = False
        self.voids = 0
        self._validator: Validator | None = None
        if mark is not None:
            self._start(mark)

    def _start(self, mark: Mark) -> None:
        self.place, self.first = mark.place, mark
        self._validator = Validator(self._cluster, mark.position)
        self._compare(mark.position)

    def _compare(self, position: Position) -> None:
        if position.sequence == self._watched.sequence:
            self.met = self.met or position == self._watched
            self.diverged = position != self._watched

    @property
    def last(self) -> Position:
        """The last record that counts."""
        return self._validator.last if self._validator is not None else START

    def add(self, place: int, payload: bytes) -> list[Entry]:
        """Take the next message; StreamDamagedError if it is none or not the next."""
        try:
            message = unpack_message(payload)
        except ProtocolError as error:
            raise StreamDamagedError(
                f"message {place} of stream {self._stream} is damaged: {error}; "
                "restore the stream from a copy, or restore the cluster from a backup"
            ) from None
        if self._validator is None:
            self._start(Mark(place - 1, message.before))
        if place != self.place + 1:
            raise StreamDamagedError(f"message {self.place + 1} of stream {self._stream} is missing")
        self.place = place
        validator = self._validator
        assert validator is not None
        before = validator.last
        entries = []
        for header, hash, body in message.records:
            last = validator.last
            entry = validator.add(header, hash, body)
            if validator.last is not last:
                self._compare(validator.last)
            if entry is None:
                continue
            if entry.kind == Kind.CLAIM:
                self.claim = entry
            if header.sequence > self._after.sequence:
                entries.append(entry)
        if validator.last is before:
            self.voids += 1
        else:
            self.summary = message.summary
        return entries


class StreamClient:
    """A connection to the servers, for one stream."""

    def __init__(self, settings: NatsSettings, on_answer: Callable[[int, int | Refusal, str], None]) -> None:
        """`on_answer(number, place or refusal, text)` hears the answers to `append`."""
        self.settings = settings
        self._on_answer = on_answer
        self._client: Client | None = None
        self._reads: dict[str, asyncio.Queue[Msg]] = {}
        self._read_number = 0

    async def open(self, on_disconnected: Callable[[], None]) -> None:
        """Connect; UnavailableError if no server answers."""

        async def disconnected() -> None:
            on_disconnected()

        try:
            self._client = await connect(self.settings.servers, disconnected_cb=disconnected)
            self._inbox = self._client.new_inbox()
            await self._client.subscribe(
                f"{self._inbox}.*", cb=self._received, pending_msgs_limit=1 << 20, pending_bytes_limit=1 << 30
            )
        except (OSError, nats.errors.Error) as error:
            raise UnavailableError(f"cannot reach the NATS servers: {error or type(error).__name__}") from None

    @property
    def client(self) -> Client:
        """The connection."""
        assert self._client is not None, "open comes first"
        return self._client

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()

    # ----------------------------------------------------------------------------------------------------- stream

    async def create(self, config: StreamConfig) -> StreamInfo:
        """Create the stream, or find it: an existing one is left as it is."""
        try:
            return await self.info()
        except StreamGoneError:
            pass
        try:
            return await self.client.jetstream(timeout=ANSWER_SECONDS * 5).add_stream(config)
        except APIError as error:
            if error.err_code == 10058:  # another process has made it meanwhile; it is checked like any other
                return await self.info()
            raise JournalError(f"cannot create stream {self.settings.stream}: {error.description}") from None
        except (TimeoutError, nats.errors.Error, JetStreamError, OSError) as error:
            raise UnavailableError(f"stream {self.settings.stream}: {error}") from None

    async def info(self) -> StreamInfo:
        """Ask the stream's leader how it is."""
        try:
            return await self.client.jetstream(timeout=ANSWER_SECONDS).stream_info(self.settings.stream)
        except NotFoundError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise StreamGoneError(f"there is no stream {self.settings.stream}") from None
            raise UnavailableError(f"stream {self.settings.stream}: {error.description}") from None
        except (TimeoutError, nats.errors.Error, JetStreamError, OSError) as error:
            raise UnavailableError(f"stream {self.settings.stream}: {error or type(error).__name__}") from None

    async def purge_below(self, place: int) -> None:
        """Forget the messages below a place."""
        try:
            await self.client.jetstream(timeout=ANSWER_SECONDS).purge_stream(self.settings.stream, seq=place)
        except (TimeoutError, nats.errors.Error, JetStreamError, OSError) as error:
            raise UnavailableError(f"stream {self.settings.stream}: {error or type(error).__name__}") from None

    # ---------------------------------------------------------------------------------------------------- messages

    async def append(self, number: int, message_id: str, expected: int, payload: bytes) -> None:
        """Send one message; the answer, if one comes, names the number. UnavailableError: it was not sent."""
        client = self.client
        if not client.is_connected:
            raise UnavailableError("not connected to the NATS servers")
        headers = {
            "Nats-Msg-Id": message_id,
            "Nats-Expected-Stream": self.settings.stream,
            "Nats-Expected-Last-Sequence": str(expected),
        }
        try:
            await client.publish(self.settings.subject, payload, reply=f"{self._inbox}.{number}", headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise UnavailableError(f"cannot send to the NATS servers: {error}") from None

    async def read(self, after: int, limit: int = READ_BYTES) -> list[tuple[int, bytes]]:
        """Return messages behind a place, about `limit` bytes of them; none: the answering replica has no more.

        Raises UnavailableError, and PositionGoneError if the next one was purged.
        """
        client = self.client
        self._read_number += 1
        token = f"r{self._read_number}"
        answers = self._reads[token] = asyncio.Queue()
        request = json.dumps({"seq": after + 1, "batch": READ_MESSAGES, "max_bytes": limit}).encode()
        messages: list[tuple[int, bytes]] = []
        try:
            if not client.is_connected:
                raise UnavailableError("not connected to the NATS servers")
            await client.publish(f"$JS.API.DIRECT.GET.{self.settings.stream}", request, reply=f"{self._inbox}.{token}")
            while True:
                async with asyncio.timeout(ANSWER_SECONDS):
                    message = await answers.get()
                headers = message.headers or {}
                status = headers.get("Status")
                if status in ("204", "404"):
                    return messages
                if status is not None:
                    raise UnavailableError(f"stream {self.settings.stream}: status {status} instead of messages")
                place = int(headers["Nats-Sequence"])
                if place != after + 1 + len(messages):
                    if not messages and place > after:
                        raise PositionGoneError(f"the journal no longer reaches back to message {after + 1}")
                    # one was lost on the way (a reconnect): what is contiguous is fine
                    return messages
                messages.append((place, message.data))
        except TimeoutError:
            raise UnavailableError(f"stream {self.settings.stream}: no answer") from None
        except (nats.errors.Error, OSError) as error:
            raise UnavailableError(f"stream {self.settings.stream}: {error}") from None
        finally:
            del self._reads[token]

    async def _received(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        if token[0] == "r":
            queue = self._reads.get(token)
            if queue is not None:
                queue.put_nowait(message)
            return
        self._on_answer(int(token), *_answer(message))


def _answer(message: Msg) -> tuple[int | Refusal, str]:
    """What the engine says to an append."""
    if not message.data:
        return Refusal.UNAVAILABLE, "no server leads the stream"
    content: dict[str, Any] = json.loads(message.data)
    error = content.get("error")
    if error is None:
        return int(content["seq"]), ""
    code, text = error.get("err_code"), str(error.get("description"))
    if code == WRONG_LAST_SEQUENCE:
        return Refusal.PLACE_TAKEN, text
    return (Refusal.FULL if code in SPACE else Refusal.UNAVAILABLE), text


def size_of(entries: list[Entry]) -> int:
    """Bytes of entries."""
    return sum([len(entry.body) + HEADER_BYTES for entry in entries])
