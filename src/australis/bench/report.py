"""The table and the picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from australis.bench.command import Result


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _median(values: Sequence[float]) -> str:
    return _number(statistics.median(values)) if values else "-"


def _verdict(result: Result) -> str:
    return {True: "ok", False: "BELOW", None: ""}[result.reached]


def _floor(result: Result) -> str:
    w = result.workload
    if w.most_extra_ms is not None:
        return f"+{w.most_extra_ms} ms"
    return "" if w.floor is None else f"{w.floor:.2f}"


def line(result: Result) -> str:
    """One workload as soon as it is measured."""
    if result.error:
        return f"  {result.workload.title}: {result.error}"
    ratio = f"{result.ratio:.2f}" if result.ratio is not None else "-"
    return (
        f"  {result.workload.title}: {_median(result.stock)} / {_median(result.australis)} {result.unit}, "
        f"ratio {ratio} {_verdict(result)}"
    )


def table(results: Sequence[Result], document: Mapping[str, Any]) -> str:
    """The whole comparison in plain text."""
    head = ("workload", "PostgreSQL", "Australis", "", "ratio", "low-high", "floor", "", "remarks")
    rows = [head]
    for r in results:
        low_high = f"{min(r.ratios):.2f}-{max(r.ratios):.2f}" if r.ratios else ""
        ratio = f"{r.ratio:.2f}" if r.ratio is not None else "-"
        cells = (_median(r.stock), _median(r.australis), r.unit, ratio, low_high, _floor(r), _verdict(r), _remarks(r))
        rows.append((r.workload.title, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = {1, 2, 4, 6}
    lines = [
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(len(x) for x in lines))
    host = document["machine"]
    disk = document["disk_latency_ms"]
    lines += [
        "",
        f"machine: {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB; {document['postgresql']}, fsync on",
        f"{document['rows']:,} rows; {document['rounds']} alternating rounds of {document['seconds']:g} s each; "
        "ratio = median of the rounds' ratios (durations: PostgreSQL's time to Australis's)",
        "disk, 8 kB write + fdatasync: "
        + "; ".join(f"{when} p50 {d['p50']:.2f} ms, p99 {d['p99']:.2f} ms" for when, d in disk.items()),
    ]
    memory = document["idle_memory_mb"]
    if memory is not None:
        limit = document["idle_memory_limit_mb"]
        verdict = "ok" if memory <= limit else "ABOVE"
        lines.append(
            f"memory of the idle cluster (PSS of all processes): {memory:.0f} MB, limit {limit:.0f} MB: {verdict}"
        )
    starts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in document["first_start_seconds"].items())
    lines.append(f"first start: {starts}")
    return "\n".join(lines)


def _remarks(result: Result) -> str:
    if result.error:
        return "failed: " + result.error
    out = []
    stock_ms, australis_ms = result.latency_ms
    if result.workload.most_extra_ms is not None and result.extra_ms is not None:
        out.append(
            f"latency {statistics.median(stock_ms):.2f} / {statistics.median(australis_ms):.2f} ms "
            f"({result.extra_ms:+.2f} ms)"
        )
    aborts = [statistics.median(x) if x else 0.0 for x in result.abort_share]
    if max(aborts) > 0:
        out.append(f"aborted tries {100 * aborts[0]:.2f} % / {100 * aborts[1]:.2f} %")
    if any(result.background):
        out.append(f"beside: {_median(result.background[0])} / {_median(result.background[1])} commits/s")
    return "; ".join(out)


ROW = 26
LEFT, BAR, RIGHT = 330, 420, 150
LONGEST = 1.6  # ratios beyond are cut, with their number shown


def svg(results: Sequence[Result], document: Mapping[str, Any]) -> str:
    """Bars of the ratios, PostgreSQL = 1 as a line, floors as ticks; readable in light and dark."""
    top = 62
    height = top + ROW * len(results) + 46
    width = LEFT + BAR + RIGHT

    def x(ratio: float) -> float:
        return LEFT + BAR * min(ratio, LONGEST) / LONGEST

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="16" font-weight="600" fill="#1f2430">Australis against PostgreSQL 18</text>',
        f'<text x="16" y="46" fill="#5b6472">ratio of speed, median of {document["rounds"]} alternating rounds; '
        "the line is PostgreSQL, ticks are floors, whiskers lowest and highest round</text>",
    ]
    for n, r in enumerate(results):
        y = top + n * ROW
        out.append(
            f'<text x="{LEFT - 12}" y="{y + 17}" text-anchor="end" fill="#1f2430">{escape(r.workload.title)}</text>'
        )
        if r.ratio is None:
            out.append(
                f'<text x="{LEFT + 6}" y="{y + 17}" fill="#b4232a">{escape(r.error[:60] or "not measured")}</text>'
            )
            continue
        color = {True: "#2f7d5b", False: "#c0392b", None: "#4a6fa5"}[r.reached]
        out.append(
            f'<rect x="{LEFT}" y="{y + 5}" width="{x(r.ratio) - LEFT:.1f}" height="{ROW - 10}" rx="2" fill="{color}"/>'
        )
        low, high = x(min(r.ratios)), x(max(r.ratios))
        middle = y + ROW / 2
        out.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#1f2430" stroke-width="1.2"/>')
        if r.workload.floor is not None:
            at = x(r.workload.floor)
            out.append(f'<path d="M{at:.1f} {y + 2}V{y + ROW - 2}" stroke="#e0a100" stroke-width="2.5"/>')
        label = f"{r.ratio:.2f}" + (
            f"  ({r.extra_ms:+.2f} ms)" if r.workload.most_extra_ms and r.extra_ms is not None else ""
        )
        out.append(f'<text x="{LEFT + BAR + 14}" y="{y + 17}" fill="#1f2430">{label}</text>')
    bottom = top + ROW * len(results)
    out.append(f'<path d="M{x(1.0):.1f} {top}V{bottom}" stroke="#1f2430" stroke-dasharray="3 3"/>')
    disk = document["disk_latency_ms"]["before"]
    host = document["machine"]
    foot = (
        f"{host['cpu']}, {host['cores']} cores; {document['rows']:,} rows; "
        f"fdatasync p50 {disk['p50']:.2f} ms, p99 {disk['p99']:.2f} ms; {document['when'][:10]}"
    )
    out.append(f'<text x="16" y="{bottom + 28}" fill="#5b6472">{escape(foot)}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
