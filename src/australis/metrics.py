"""Metrics of a process for Prometheus: its status as gauges and counters, latencies as histograms, one HTTP port.

    metrics = Metrics("adjudicator", "adjudicator-0", status)
    seconds = metrics.histogram("commit_seconds", "From the arrival of a commit to its answer")
    server = metrics.serve(Address("127.0.0.1", 9400), files)

What must hold: collecting never disturbs the process that is looked at: a scrape runs in a thread of its own and reads
a picture that the process's loop makes at most once a second; labels are bounded (relations beyond the most frequent
ones are one); the port serves metrics only, and with certificates only to clients of the cluster's authority.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from australis.certs import Files
from australis.errors import AustralisError
from australis.transport import Address

PREFIX = "australis"

Status = Mapping[str, int | float | str]

LATENCY_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
"""Seconds."""

COUNTERS = frozenset(
    {
        "acknowledged", "attempts", "batches", "bytes_sent", "commits", "conflicts", "gets", "ingested_chunks",
        "journal_groups", "journal_records", "journal_written_bytes", "rebuilds", "records", "refusals", "restarts",
        "scans", "schema_conflicts", "sessions_total", "snapshots",
    }
)  # fmt: skip
"""Numbers of a status that only grow while the process lives."""

LABELLED = 50
"""How many relations have a line of their own."""


class MetricsError(AustralisError):
    """The metrics port cannot be served; one line."""

    sqlstate = "F0000"


class TopCounter:
    """Counts per key for the most frequent keys, the rest together; memory is bounded, totals are exact."""

    def __init__(self, keys: int = LABELLED) -> None:
        self._keys = keys
        self._counts: dict[int, int] = {}
        self.others = 0

    def add(self, key: int) -> None:
        """Count one."""
        counts = self._counts
        if key in counts:
            counts[key] += 1
        elif len(counts) < self._keys:
            counts[key] = 1
        else:
            rarest = min(counts, key=counts.__getitem__)
            # the newcomer takes the place of the rarest once it has been seen as often, on average, among the others
            self.others += 1
            if counts[rarest] <= self.others // self._keys // 4:
                self.others += counts.pop(rarest) - 1
                counts[key] = 1

    def list(self) -> list[tuple[str, int]]:
        """(key, count), and ("other", the rest) if there is any."""
        known = [(str(key), count) for key, count in self._counts.items()]
        return [*known, ("other", self.others)] if self.others else known


class Metrics:
    """What one process shows."""

    def __init__(self, role: str, name: str, status: Callable[[], Status]) -> None:
        """`status` is called in the thread of the owner's choice: by `refresh`."""
        self._labels = {"role": role, "instance_name": name}
        self._status = status
        self._picture: dict[str, int | float | str] = {}
        self._taken = 0.0
        self._counted: dict[str, tuple[str, str, TopCounter]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(_StatusCollector(self))

    def refresh(self) -> None:
        """Take a picture of the status; the owner's loop calls this about once a second."""
        self._picture = dict(self._status())
        self._taken = time.time()

    def histogram(self, name: str, help: str, buckets: Iterable[float] = LATENCY_BUCKETS) -> Histogram:
        """A histogram; `observe(seconds)` from any thread."""
        made = Histogram(f"{PREFIX}_{name}", help, sorted(self._labels), buckets=tuple(buckets), registry=self.registry)
        return made.labels(**self._labels)

    def by_relation(self, name: str, help: str) -> TopCounter:
        """A counter with a label `relation` (its storage id)."""
        counter = TopCounter()
        self._counted[name] = name, help, counter
        return counter

    def collect(self) -> Iterable[Metric]:
        """All but the histograms."""
        names, values = sorted(self._labels), [self._labels[name] for name in sorted(self._labels)]
        up = GaugeMetricFamily(f"{PREFIX}_status_age_seconds", "Age of the numbers below", labels=names)
        up.add_metric(values, max(0.0, time.time() - self._taken))
        yield up
        info = {key: value for key, value in self._picture.items() if isinstance(value, str)}
        for key, value in self._picture.items():
            if isinstance(value, str):
                continue
            family: CounterMetricFamily | GaugeMetricFamily
            if key in COUNTERS:
                family = CounterMetricFamily(f"{PREFIX}_{key}", f"{key} since the process started", labels=names)
            else:
                family = GaugeMetricFamily(f"{PREFIX}_{key}", key.replace("_", " "), labels=names)
            family.add_metric(values, float(value))
            yield family
        if info:
            texts = GaugeMetricFamily(f"{PREFIX}_info", "Words of the status", labels=[*names, "what", "value"])
            for key, text in info.items():
                texts.add_metric([*values, key, text], 1)
            yield texts
        for name, help, counter in list(self._counted.values()):
            family = CounterMetricFamily(f"{PREFIX}_{name}", help, labels=[*names, "relation"])
            for relation, count in counter.list():
                family.add_metric([*values, relation], count)
            yield family

    def serve(self, address: Address, files: Files | None = None) -> MetricsServer:
        """Serve `GET /metrics`; with `files`, over TLS and to certificates of the same authority only."""
        secure = (
            {
                "certfile": str(files.certificate),
                "keyfile": str(files.key),
                "client_cafile": str(files.ca),
                "client_auth_required": True,
            }
            if files is not None
            else {}
        )
        try:
            server, thread = start_http_server(
                address.port,
                address.host,
                self.registry,
                **secure,  # type: ignore[arg-type]
            )
        except (OSError, socket.gaierror) as error:
            raise MetricsError(f"metrics: cannot listen on {address}: {error.strerror or error}") from None
        return MetricsServer(server, thread)


class MetricsServer:
    """The port, until it is closed."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server, self._thread = server, thread
        self.port = server.server_port

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _StatusCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.collect()

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names follow the status."""
        return []
