"""A study as a page: tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from sgl_router import __version__
from sgl_router.lab.simulate.charts import Line, line_chart
from sgl_router.lab.simulate.measure import Floats, Summary, hit_rate_over_time, queue_over_time, ttft_curve
from sgl_router.lab.simulate.page import COLOURS, figure, legend, page
from sgl_router.lab.simulate.simulation import Outcome
from sgl_router.lab.simulate.study import RateStudy, Study
from sgl_router.lab.simulate.table import COLUMNS, cells, describe

__all__ = ["render_report"]

_EXPLANATION = """<h2>Reading it</h2>
<p>Times are in seconds. TTFT runs from a request's arrival at a router to its first token; queued is the part of it
before its prefill begins, wherever it is spent. Hit rate is the share of all prompt tokens that the chosen workers had
cached. Imbalance is the coefficient of variation of the time workers spend on prompts. Foreseen is the share of
requests for which the router's index named exactly what the worker turned out to have cached. Refused requests got an
error instead of an answer and are in no other figure: of two policies, only the one that refuses fewer can be best.</p>
<p>one_pooled_worker has the fleet's cache and speed in one piece. floor has no queue and evicts nothing: what is left
is one worker's time for tokens that were never seen before.</p>"""


def render_report(study: Study) -> str:
    """The whole page."""
    body = "\n".join(_rate(at) for at in study.rates)
    names = [summary.policy for summary in study.rates[0].summaries]
    return page(
        f"Routing simulation: {study.workload}",
        f"""<h1>Routing simulation</h1>
<p>{escape(describe(study))}; sgl-router {escape(__version__)}.</p>
{legend(names)}
{body}
{_EXPLANATION}""",
    )


def _rate(at: RateStudy) -> str:
    floor = at.bounds[-1].ttft
    plots = [
        figure(
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
        figure(
            "Waiting requests",
            f"Not yet in prefill. Where nobody waits the mean TTFT is at best {floor.mean:.2f} s.",
            line_chart(
                _lines(at.outcomes, queue_over_time),
                title="Requests waiting over time",
                x_label="seconds since the first arrival",
                y_label="requests",
            ),
        ),
        figure(
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
        figure(
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
        colour, again = number % COLOURS, number >= COLOURS
        lines.append(Line(outcome.policy, colour, xs.tolist(), ys.tolist(), dashed=again))
    return lines


def _busiest_first(outcome: Outcome) -> tuple[Floats, Floats]:
    busy = sorted((worker.prefill_secs for worker in outcome.workers), reverse=True)
    if len(busy) == 1:
        busy = busy * 2
    return np.arange(1.0, len(busy) + 1.0), np.array(busy)


def _table(at: RateStudy) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in ("policy", *COLUMNS))
    best = _best(at.summaries)
    rows = []
    for row, summary in enumerate(at.summaries):
        marked = "".join(
            f'<td class="best">{cell}</td>' if row in best.get(column, ()) else f"<td>{cell}</td>"
            for column, cell in enumerate(map(escape, cells(summary)))
        )
        rows.append(f"<tr><td>{escape(summary.policy)}</td>{marked}</tr>")
    for summary in at.bounds:
        plain = "".join(f"<td>{escape(cell)}</td>" for cell in cells(summary))
        rows.append(f'<tr class="bound"><td>{escape(summary.policy)}</td>{plain}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _best(summaries: Sequence[Summary]) -> dict[int, set[int]]:
    """Column -> rows that show the best value, for mean and tail of TTFT, the longest wait and the hit rate, among
    those that refuse the fewest requests."""
    if len(summaries) < 2:
        return {}
    fewest = min(summary.refused for summary in summaries)
    shown = {row: cells(summary) for row, summary in enumerate(summaries) if summary.refused == fewest}
    best = {}
    for name, wanted in (("TTFT mean", min), ("TTFT p99", min), ("longest", min), ("hit rate", max)):
        column = COLUMNS.index(name)
        values = {row: float(texts[column].rstrip("%")) for row, texts in shown.items()}
        least_or_most = wanted(values.values())
        best[column] = {row for row, value in values.items() if value == least_or_most}
    return best
