"""Traces of transactions over all roles, for OpenTelemetry; off unless a process is told where to send them.

    traces = open_traces(TraceSettings("http://127.0.0.1:4318/v1/traces", every=100), "adjudicator", "adjudicator-0")
    if traces.wants(txid): traces.span("adjudicate", txid, began_ns, ended_ns, outcome="committed")

A transaction's identifier is its trace's: no message carries anything for it, and all roles choose the same
transactions (one in `every`). A span is told when it is over, with the times at which things happened, so that nothing
is kept for those that are not chosen. Its parent is the span of the role that asked (`PARENTS`), named by a hash.

What must hold: without settings `wants` is one comparison; spans leave in a thread of their own from a bounded queue,
and when the collector is slow or away they are dropped, never waited for.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from australis.errors import AustralisError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

QUEUE = 2048
"""Spans that may wait for the collector."""

TIMEOUT_SECONDS = 5
CLOSE_SECONDS = 2.0

PARENTS = {
    "transaction": "",  # the gateway: from the first snapshot to the answer
    "snapshot": "transaction",
    "read": "transaction",
    "commit": "transaction",  # the gateway: from the request to the answer
    "storage read": "read",
    "adjudicate": "commit",  # the leader: from the request to the decision
    "vote": "adjudicate",
    "journal": "commit",  # from appended to durable
    "apply": "journal",  # storage
}


class TraceError(AustralisError):
    """Traces cannot be sent as configured; one line."""

    sqlstate = "F0000"


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where to (an OTLP/HTTP endpoint), and how many: one transaction in `every`."""

    endpoint: str
    every: int = 1


class Traces(Protocol):
    """What a process does with traces."""

    def wants(self, txid: bytes) -> bool:
        """Is this transaction one of those that are traced?"""
        ...

    def span(self, name: str, txid: bytes, began: int, ended: int, **attributes: str | int | float | bool) -> None:
        """Tell one span; times in nanoseconds since the Unix epoch. `name` is one of PARENTS."""
        ...

    def close(self) -> None:
        """Send what waits, within a bounded time."""
        ...


class NoTraces:
    """When traces are off."""

    def wants(self, txid: bytes) -> bool:
        """No."""
        return False

    def span(self, name: str, txid: bytes, began: int, ended: int, **attributes: str | int | float | bool) -> None:
        """Forgotten."""

    def close(self) -> None:
        """Nothing to do."""


class OpenTelemetry:
    """Sends spans to a collector."""

    def __init__(self, exporter: SpanExporter, every: int, role: str, name: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import IdGenerator

        chosen = self._chosen = threading.local()

        class Identifiers(IdGenerator):
            """The identifiers that the next span is to have."""

            def generate_trace_id(self) -> int:
                trace: int = chosen.trace
                return trace

            def generate_span_id(self) -> int:
                span: int = chosen.span
                return span

        self._every, self._exporter = every, exporter
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"australis-{role}", "service.instance.id": name}),
            id_generator=Identifiers(),
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE))
        self._tracer = self._provider.get_tracer("australis")

    def wants(self, txid: bytes) -> bool:
        """One in `every`, the same ones everywhere."""
        return self._every == 1 or int.from_bytes(txid[-4:], "big") % self._every == 0

    def span(self, name: str, txid: bytes, began: int, ended: int, **attributes: str | int | float | bool) -> None:
        """Tell one span."""
        from opentelemetry import trace

        trace_id = int.from_bytes(txid, "big") or 1
        self._chosen.trace, self._chosen.span = trace_id, span_id(txid, name)
        parent = PARENTS[name]
        context = None
        if parent:
            sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            above = trace.SpanContext(trace_id, span_id(txid, parent), is_remote=True, trace_flags=sampled)
            context = trace.set_span_in_context(trace.NonRecordingSpan(above))
        span = self._tracer.start_span(name, context=context, start_time=began, attributes=attributes)
        span.end(end_time=max(began, ended))

    def close(self) -> None:
        """Send what waits."""
        limit = threading.Timer(CLOSE_SECONDS, self._exporter.shutdown)  # ends its tries
        limit.start()
        self._provider.shutdown()
        limit.cancel()


def span_id(txid: bytes, name: str) -> int:
    """The identifier of the span of this name in a transaction's trace."""
    return int.from_bytes(hashlib.blake2b(txid + name.encode(), digest_size=8).digest(), "big") or 1


def open_traces(settings: TraceSettings | None, role: str, name: str) -> Traces:
    """Raises TraceError if the settings or the installation do not allow it."""
    if settings is None:
        return NoTraces()
    if settings.every < 1:
        raise TraceError(f"traces: every must be 1 or more, got {settings.every}")
    if not settings.endpoint.startswith(("http://", "https://")):
        raise TraceError(f"traces: endpoint: expected http://host:port/path, got {settings.endpoint!a}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise TraceError("traces: needs the packages of `pip install 'australis[traces]'`") from None
    return OpenTelemetry(
        OTLPSpanExporter(endpoint=settings.endpoint, timeout=TIMEOUT_SECONDS), settings.every, role, name
    )
