"""A study as one HTML file that needs nothing else: tables, plots, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from sgl_router import __version__

from .charts import Line, line_chart
from .measure import Floats, Summary, hit_rate_over_time, queue_over_time, ttft_curve
from .simulation import Outcome
from .study import RateStudy, Study
from .table import COLUMNS, cells, describe

__all__ = ["render_report"]

_COLOURS = (
    ("#2563c9", "#7aa7ff"),
    ("#c2410c", "#ff9d66"),
    ("#15803d", "#6ddc94"),
    ("#9333ea", "#cf9bff"),
    ("#b91c4b", "#ff8fae"),
    ("#0e7c86", "#5fd4de"),
    ("#8a6d00", "#e3c65c"),
    ("#4b5563", "#b6bfcc"),
)

_STYLE = """
:root { --page: #fbfbf9; --card: #ffffff; --ink: #1b1e24; --soft: #626875; --rule: #e3e4e0; --good: #e3f3e6; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1c1f25; --ink: #e9eaee; --soft: #9aa1ae; --rule: #32363e; --good: #203a28; DARK }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; font-weight: 600; }
p { margin: .25rem 0 .75rem; color: var(--soft); max-width: 80ch; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .75rem 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .45rem; }
.swatch { width: 1.4rem; height: .25rem; border-radius: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; background: var(--card); }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
td.best { background: var(--good); font-weight: 600; }
tr.bound td { color: var(--soft); font-style: italic; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem;
  margin-top: 1rem; }
figure { margin: 0; padding: .9rem 1rem .6rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figcaption { color: var(--soft); font-size: .85rem; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick, .label { fill: var(--soft); font-size: 11px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line:hover { stroke-width: 4; }
"""


def render_report(study: Study) -> str:
    """The whole page."""
    names = [summary.policy for summary in study.rates[0].summaries]
    legend = "".join(
        f'<li><span class="swatch" style="background:var(--series-{colour % len(_COLOURS)})"></span>{escape(name)}</li>'
        for colour, name in enumerate(names)
    )
    body = "\n".join(_rate(at) for at in study.rates)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Routing simulation: {escape(study.workload)}</title>
<style>{_style()}</style>
</head>
<body>
<h1>Routing simulation</h1>
<p>{escape(describe(study))}; sgl-router {escape(__version__)}.</p>
<ul class="legend">{legend}</ul>
{body}
<h2>Reading it</h2>
<p>Times are in seconds. TTFT runs from a request's arrival at a router to its first token; queued is the part of it
before its prefill begins, wherever it is spent. Hit rate is the share of all prompt tokens that the chosen workers had
cached. Imbalance is the coefficient of variation of the time workers spend on prompts. Foreseen is the share of
requests for which the router's index named exactly what the worker turned out to have cached.</p>
<p>one_pooled_worker has the fleet's cache and speed in one piece. floor has no queue and evicts nothing: what is left
is one worker's time for tokens that were never seen before.</p>
</body>
</html>
"""


def _style() -> str:
    light, dark = (
        " ".join(f"--series-{number}: {pair[shade]};" for number, pair in enumerate(_COLOURS)) for shade in (0, 1)
    )
    return _STYLE.replace("LIGHT", light).replace("DARK", dark)


def _rate(at: RateStudy) -> str:
    floor = at.bounds[-1].ttft
    plots = [
        _figure(
            "Time to first token",
            "Share of requests answered by then; further left is better.",
            line_chart(
                _lines(at.outcomes, ttft_curve),
                title="Distribution of TTFT",
                x_label="seconds, logarithmic",
                y_label="share of requests",
                log_x=True,
                y_to=1.0,
                percent=True,
            ),
        ),
        _figure(
            "Waiting requests",
            f"Not yet in prefill. Where nobody waits the mean TTFT is at best {floor.mean:.2f} s.",
            line_chart(
                _lines(at.outcomes, queue_over_time),
                title="Requests waiting over time",
                x_label="seconds since the first arrival",
                y_label="requests",
            ),
        ),
        _figure(
            "Cache hits",
            f"Share of prompt tokens cached, by arrival; {at.bounds[0].hit_rate:.1%} in one pooled cache over all.",
            line_chart(
                _lines(at.outcomes, hit_rate_over_time),
                title="Hit rate over time",
                x_label="seconds since the first arrival",
                y_label="hit rate",
                y_to=1.0,
                percent=True,
            ),
        ),
        _figure(
            "Work per worker",
            "Each policy's workers, busiest first; a level line is an even fleet, a low one saves work.",
            line_chart(
                _lines(at.outcomes, _busiest_first),
                title="Prefill time per worker",
                x_label="worker",
                y_label="seconds of prefill",
                x_from=1.0,
            ),
        ),
    ]
    return f"<h2>Arrivals at {at.rate:g}x</h2>\n{_table(at)}\n<div class='plots'>{''.join(plots)}</div>"


def _lines(outcomes: Sequence[Outcome], curve: Callable[[Outcome], tuple[Floats, Floats]]) -> list[Line]:
    lines = []
    for number, outcome in enumerate(outcomes):
        xs, ys = curve(outcome)
        colour, again = number % len(_COLOURS), number >= len(_COLOURS)
        lines.append(Line(outcome.policy, colour, xs.tolist(), ys.tolist(), dashed=again))
    return lines


def _busiest_first(outcome: Outcome) -> tuple[Floats, Floats]:
    busy = sorted((worker.prefill_secs for worker in outcome.workers), reverse=True)
    if len(busy) == 1:
        busy = busy * 2
    return np.arange(1.0, len(busy) + 1.0), np.array(busy)


def _figure(title: str, caption: str, chart: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(at: RateStudy) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in ("policy", *COLUMNS))
    best = _best(at.summaries)
    rows = []
    for row, summary in enumerate(at.summaries):
        marked = "".join(
            f'<td class="best">{cell}</td>' if row in best.get(column, ()) else f"<td>{cell}</td>"
            for column, cell in enumerate(map(escape, cells(summary)))
        )
        refused = f" ({summary.refused} refused)" if summary.refused else ""
        rows.append(f"<tr><td>{escape(summary.policy + refused)}</td>{marked}</tr>")
    for summary in at.bounds:
        plain = "".join(f"<td>{escape(cell)}</td>" for cell in cells(summary))
        rows.append(f'<tr class="bound"><td>{escape(summary.policy)}</td>{plain}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _best(summaries: Sequence[Summary]) -> dict[int, set[int]]:
    """Column -> rows that show the best value, for mean and tail of TTFT, the longest wait and the hit rate."""
    if len(summaries) < 2:
        return {}
    best = {}
    for column in (0, 3, 7, 8):
        shown = [cells(summary)[column] for summary in summaries]
        values = [float(text.rstrip("%")) for text in shown]
        wanted = max(values) if column == 8 else min(values)
        best[column] = {row for row, value in enumerate(values) if value == wanted}
    return best
