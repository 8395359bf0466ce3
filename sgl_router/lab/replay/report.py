"""A replay as a page: its figures and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sgl_router import __version__
from sgl_router.lab.replay.study import Reading, Replay
from sgl_router.lab.replay.table import describe, format_comparison, format_replay
from sgl_router.lab.simulate.charts import Line, line_chart
from sgl_router.lab.simulate.measure import Floats, hit_rate_by, shares_by
from sgl_router.lab.simulate.page import figure, legend, page

__all__ = ["render_report"]

Curve = tuple[Floats, Floats]
Row = Mapping[str, Any]


def render_report(replay: Replay, other: Reading | None = None) -> str:
    """The whole page; the other run's curves are there where its requests are."""
    runs: list[tuple[str, Sequence[Row]]] = [("this run", replay.rows)]
    if other is not None and other.rows:
        runs.append((other.name, other.rows))
    beside = ""
    if other is not None:
        beside = f"<h2>Beside {escape(other.name)}</h2>\n<pre>{escape(format_comparison(replay, other))}</pre>"
    return page(
        f"Replay: {replay.workload}",
        f"""<h1>Replay</h1>
<p>{escape(describe(replay))}; sgl-router {escape(__version__)}.</p>
<pre>{escape(format_replay(replay).partition(chr(10))[2].strip())}</pre>
{beside}
<h2>Over the run</h2>
{legend([name for name, _ in runs])}
<div class="plots">{_plots(runs)}</div>""",
    )


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
        figure("Time to first token", "Share of requests answered by then, as clients saw it.", ttft)
        + figure("Requests in flight", "Sent, and not ended yet.", open_requests)
        + figure("Cache hits", "Share of prompt tokens that were cached, by arrival.", hits)
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
    return shares_by(_column(told, "first_token_at") - begun)


def _in_flight(rows: Sequence[Row]) -> Curve:
    told = [row for row in rows if row["dispatched_at"] is not None and row["finished_at"] is not None]
    if not told:
        return np.zeros(1), np.zeros(1)
    begun, ended = np.sort(_column(told, "dispatched_at")), np.sort(_column(told, "finished_at"))
    times = np.linspace(0.0, float(ended[-1]), 240)
    return times, (np.searchsorted(begun, times, "right") - np.searchsorted(ended, times, "right")).astype(np.float64)


def _hit_rate(rows: Sequence[Row]) -> Curve:
    told = [row for row in rows if row["cached_tokens"] is not None and row["first_token_at"] is not None]
    return hit_rate_by(_column(told, "arrival"), _column(told, "cached_tokens"), _column(told, "input_tokens"))
