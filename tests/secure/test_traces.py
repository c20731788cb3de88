"""Traces: several roles tell spans of one transaction, and they come out as one tree; off, they cost nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from australis.traces import PARENTS, TraceError, TraceSettings, open_traces, span_id

TXID = bytes(range(16))


class Collector(HTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        super().__init__(("127.0.0.1", 0), _Post)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Post(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_of_several_processes_are_one_tree(collector: Collector) -> None:
    gateway = open_traces(TraceSettings(collector.endpoint), "gateway", "g")
    adjudicator = open_traces(TraceSettings(collector.endpoint), "adjudicator", "a")
    assert gateway.wants(TXID)
    adjudicator.span("adjudicate", TXID, 1_000, 2_000, outcome="committed")
    adjudicator.span("journal", TXID, 2_000, 5_000)
    gateway.span("commit", TXID, 500, 6_000, keys=3)
    gateway.span("transaction", TXID, 100, 6_000)
    gateway.close()
    adjudicator.close()
    spans = {
        span.name: span
        for request in collector.requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert set(spans) == {"adjudicate", "journal", "commit", "transaction"}
    assert {span.trace_id for span in spans.values()} == {TXID}
    for name, span in spans.items():
        parent = PARENTS[name]
        assert span.parent_span_id == (spans[parent].span_id if parent else b"")
        assert span.span_id == span_id(TXID, name).to_bytes(8, "big")
    assert (spans["commit"].start_time_unix_nano, spans["commit"].end_time_unix_nano) == (500, 6_000)


def test_every_role_chooses_the_same_transactions(collector: Collector) -> None:
    roles = [open_traces(TraceSettings(collector.endpoint, 10), role, "x") for role in ("gateway", "storage")]
    txids = [bytes(12) + n.to_bytes(4, "big") for n in range(1000)]
    first, second = ([txid for txid in txids if role.wants(txid)] for role in roles)
    assert first == second and len(first) == 100
    for role in roles:
        role.close()


def test_off_is_off() -> None:
    traces = open_traces(None, "gateway", "g")
    assert not traces.wants(TXID)
    traces.span("commit", TXID, 1, 2)
    traces.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [(TraceSettings("collector:4318"), "expected http"), (TraceSettings("http://h/", 0), "every must be 1 or more")],
)
def test_wrong_settings_are_one_line(settings: TraceSettings, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        open_traces(settings, "gateway", "g")


def test_a_collector_that_is_away_costs_the_spans_only() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        port = gone.server_port
    traces = open_traces(TraceSettings(f"http://127.0.0.1:{port}/v1/traces"), "gateway", "g")
    for n in range(5000):  # more than the queue holds
        traces.span("commit", n.to_bytes(16, "big"), 1, 2)
    traces.close()
