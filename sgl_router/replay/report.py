"""A replay as one HTML file that needs nothing else, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from sgl_router import __version__
from sgl_router.simulate.charts import Line, line_chart

from .study import Reading, Replay
from .table import describe, format_comparison, format_replay

__all__ = ["render_report"]

Floats = npt.NDArray[np.float64]
Curve = tuple[Floats, Floats]
Row = Mapping[str, Any]

_STYLE = """
:root { --page: #fbfbf9; --card: #fff; --ink: #1b1e24; --soft: #626875; --rule: #e3e4e0;
  --series-0: #2563c9; --series-1: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1c1f25; --ink: #e9eaee; --soft: #9aa1ae; --rule: #32363e;
    --series-0: #7aa7ff; --series-1: #ff9d66; }
}
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; }
p, figcaption { color: var(--soft); }
pre { overflow-x: auto; padding: 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  font: 13px/1.45 ui-monospace, monospace; }
.legend { display: flex; gap: 1.2rem; padding: 0; list-style: none; }
.swatch { display: inline-block; width: 1.4rem; height: .25rem; border-radius: 2px; margin-right: .45rem;
  vertical-align: middle; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .9rem 1rem .6rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick, .label { fill: var(--soft); font-size: 11px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
"""


def render_report(replay: Replay, other: Reading | None = None) -> str:
    """The whole page; the other run's curves are there where its requests are."""
    runs: list[tuple[str, Sequence[Row]]] = [("this run", replay.rows)]
    if other is not None and other.rows:
        runs.append((other.name, other.rows))
    legend = "".join(
        f'<li><span class="swatch" style="background:var(--series-{colour})"></span>{escape(name)}</li>'
        for colour, (name, _) in enumerate(runs)
    )
    beside = ""
    if other is not None:
        beside = f"<h2>Beside {escape(other.name)}</h2>\n<pre>{escape(format_comparison(replay, other))}</pre>"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Replay: {escape(replay.workload)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Replay</h1>
<p>{escape(describe(replay))}; sgl-router {escape(__version__)}.</p>
<pre>{escape(format_replay(replay).partition(chr(10))[2].strip())}</pre>
{beside}
<h2>Over the run</h2>
<ul class="legend">{legend}</ul>
<div class="plots">{_plots(runs)}</div>
</body>
</html>
"""


def _plots(runs: Sequence[tuple[str, Sequence[Row]]]) -> str:
    since = "seconds since the first arrival"
    ttft = line_chart(
        _lines(runs, _ttft_curve),
        title="Distribution of TTFT",
        x_label="seconds, logarithmic",
        y_label="share of requests",
        log_x=True,
        y_to=1.0,
        percent=True,
    )
    open_requests = line_chart(_lines(runs, _in_flight), title="In flight over time", x_label=since, y_label="requests")
    hits = line_chart(
        _lines(runs, _hit_rate),
        title="Hit rate over time",
        x_label=since,
        y_label="hit rate",
        y_to=1.0,
        percent=True,
    )
    return (
        _figure("Time to first token", "Share of requests answered by then, as clients saw it.", ttft)
        + _figure("Requests in flight", "Sent, and not ended yet.", open_requests)
        + _figure("Cache hits", "Share of prompt tokens that were cached, by arrival.", hits)
    )


def _lines(runs: Sequence[tuple[str, Sequence[Row]]], curve: Callable[[Sequence[Row]], Curve]) -> list[Line]:
    lines = []
    for colour, (name, rows) in enumerate(runs):
        xs, ys = curve(rows)
        lines.append(Line(name, colour, xs.tolist(), ys.tolist()))
    return lines


def _column(rows: Sequence[Row], name: str) -> Floats:
    return np.array([row[name] for row in rows], dtype=np.float64)


def _ttft_curve(rows: Sequence[Row]) -> Curve:
    told = [row for row in rows if row["first_token_at"] is not None]
    if not told:
        return np.zeros(1), np.zeros(1)
    # A simulated request's clock starts with its arrival: it may be held before it is dispatched.
    begun = _column(told, "dispatched_at" if "result" in told[0] else "arrival")
    shares = np.linspace(0.0, 1.0, 200)
    # To the microsecond: the axis would spread what differs by float noise over its whole width.
    return np.quantile(np.round(_column(told, "first_token_at") - begun, 6), shares), shares


def _in_flight(rows: Sequence[Row]) -> Curve:
    told = [row for row in rows if row["dispatched_at"] is not None and row["finished_at"] is not None]
    if not told:
        return np.zeros(1), np.zeros(1)
    begun, ended = np.sort(_column(told, "dispatched_at")), np.sort(_column(told, "finished_at"))
    times = np.linspace(0.0, float(ended[-1]), 240)
    return times, (np.searchsorted(begun, times, "right") - np.searchsorted(ended, times, "right")).astype(np.float64)


def _hit_rate(rows: Sequence[Row]) -> Curve:
    told = [row for row in rows if row["cached_tokens"] is not None and row["first_token_at"] is not None]
    if not told:
        return np.zeros(1), np.zeros(1)
    arrival = _column(told, "arrival")
    edges = np.linspace(0.0, max(float(arrival.max()), 1e-9), 41)
    bins = np.clip(np.searchsorted(edges, arrival, "right") - 1, 0, 39)
    cached = np.bincount(bins, _column(told, "cached_tokens"), 40)
    prompt = np.bincount(bins, _column(told, "input_tokens"), 40)
    there = prompt > 0
    return ((edges[1:] + edges[:-1]) / 2)[there], cached[there] / prompt[there]


def _figure(title: str, caption: str, chart: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{chart}<figcaption>{escape(caption)}</figcaption></figure>"
