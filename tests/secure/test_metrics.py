"""The metrics port: what Prometheus reads is the process's status; strangers read nothing."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from australis.certs import issue, make_authority
from australis.metrics import Metrics, MetricsError, TopCounter
from australis.query_processor.launcher import free_port
from australis.transport import Address


def read(port: int, context: ssl.SSLContext | None = None) -> dict[str, float]:
    scheme = "http" if context is None else "https"
    with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/metrics", timeout=10, context=context) as answer:
        text = answer.read().decode()
    return {
        ",".join([sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k not in ("role", "le"))]): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_shows_status_histograms_and_relations() -> None:
    metrics = Metrics("adjudicator", "a0", lambda: {"commits": 7, "pending": 2, "state": "serving"})
    seconds = metrics.histogram("commit_seconds", "of a commit")
    conflicts = metrics.by_relation("conflicts_by_relation", "conflicts")
    seconds.observe(0.002)
    conflicts.add(16400)
    conflicts.add(16400)
    metrics.refresh()
    server = metrics.serve(Address("127.0.0.1", free_port()))
    try:
        got = read(server.port)
    finally:
        server.close()
    assert got["australis_commits_total,instance_name=a0"] == 7
    assert got["australis_pending,instance_name=a0"] == 2
    assert got["australis_info,instance_name=a0,value=serving,what=state"] == 1
    assert got["australis_commit_seconds_count,instance_name=a0"] == 1
    assert got["australis_conflicts_by_relation_total,instance_name=a0,relation=16400"] == 2


def test_a_port_that_is_taken_is_one_line() -> None:
    metrics = Metrics("storage", "s", dict)
    server = metrics.serve(Address("127.0.0.1", free_port()))
    try:
        with pytest.raises(MetricsError, match="cannot listen on 127"):
            metrics.serve(Address("127.0.0.1", server.port))
    finally:
        server.close()


def test_with_certificates_strangers_read_nothing(tmp_path: Path) -> None:
    make_authority(tmp_path, b"c" * 16)
    mine = issue(tmp_path, "storage", "s", ["127.0.0.1"])
    watcher = issue(tmp_path, "status", "prometheus", ["127.0.0.1"])
    metrics = Metrics("storage", "s", dict)
    server = metrics.serve(Address("127.0.0.1", free_port()), mine)
    try:
        stranger = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            read(server.port, stranger)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            read(server.port)
        stranger.load_cert_chain(str(watcher.certificate), str(watcher.key))
        assert "australis_status_age_seconds,instance_name=s" in read(server.port, stranger)
    finally:
        server.close()


@given(st.lists(st.integers(0, 30)), st.integers(1, 8))
def test_counts_per_key_are_bounded_and_complete(keys: list[int], limit: int) -> None:
    counter = TopCounter(limit)
    for key in keys:
        counter.add(key)
    assert sum(count for _, count in counter.list()) == len(keys)
    assert len(counter.list()) <= limit + 1


def test_a_newcomer_that_is_frequent_gets_its_line() -> None:
    counter = TopCounter(4)
    for key in [1, 2, 3, 4] + [9] * 1000:
        counter.add(key)
    assert dict(counter.list())["9"] > 900
