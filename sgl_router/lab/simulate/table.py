"""A study as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sgl_router.lab.simulate.bounds import FLOOR, POOLED
from sgl_router.lab.simulate.catalogue import DEFAULTS
from sgl_router.lab.simulate.measure import Summary
from sgl_router.lab.simulate.study import RateStudy, Study

if TYPE_CHECKING:
    from sgl_router.config import ModelConfig

__all__ = ["COLUMNS", "cells", "describe", "format_study", "grid", "secs"]

COLUMNS = (
    "refused",
    "TTFT mean",
    "TTFT p50",
    "TTFT p90",
    "TTFT p99",
    "queued p50",
    "p90",
    "p99",
    "longest",
    "hit rate",
    "imbalance",
    "foreseen",
)


def secs(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def cells(summary: Summary) -> list[str]:
    """One row, under COLUMNS."""
    ttft, queued = summary.ttft, summary.queued
    refused = "-" if summary.policy in (FLOOR, POOLED) else f"{summary.refused:,}"
    times = [secs(value) for value in (ttft.mean, ttft.p50, ttft.p90, ttft.p99)]
    if summary.policy == FLOOR:
        return [refused, *times, "-", "-", "-", "-", f"{summary.hit_rate:.1%}", "-", "-"]
    times += [secs(value) for value in (queued.p50, queued.p90, queued.p99, queued.longest)]
    foreseen = "-" if summary.foreseen is None else f"{summary.foreseen:.1%}"
    return [refused, *times, f"{summary.hit_rate:.1%}", f"{summary.imbalance:.3f}", foreseen]


def describe(study: Study) -> str:
    """The workload and the fleet in a line."""
    fleet = study.settings
    requests = study.rates[0].summaries[0].requests
    routers = "1 router" if fleet.routers == 1 else f"{fleet.routers} routers"
    return (
        f"{study.workload}: {requests} requests; {fleet.workers} workers, {fleet.cache_tokens:,} tokens of cache and "
        f"{fleet.prefill_tokens_per_sec:,.0f} tokens/s each; {routers}, events {fleet.event_delay * 1e3:g} ms late; "
        f"seed {study.seed}{_settings(study.model)}"
    )


def _settings(model: ModelConfig | None) -> str:
    """What of the product's policies is not as it is by default."""
    if model is None:
        return ""
    named = "" if model.id == DEFAULTS.id else f"; settings of model {model.id}"
    return named + ("; queue without bounds" if math.isinf(model.queue.max_wait_secs) else "")


def format_study(study: Study) -> str:
    parts = [describe(study), *(_format_rate(at) for at in study.rates)]
    parts.append(
        "times in seconds; queued: from arrival to the start of prefill; imbalance: variation of prefill time over\n"
        "workers; foreseen: requests whose cached tokens the index knew exactly; refused: requests that got an error,\n"
        "which no other figure counts; one_pooled_worker: the fleet's cache and speed in one piece; floor: no queue,\n"
        "no eviction"
    )
    return "\n\n".join(parts)


def _format_rate(at: RateStudy) -> str:
    rows = [[f"rate {at.rate:g}x", *COLUMNS]]
    rows += [[summary.policy, *cells(summary)] for summary in (*at.summaries, *at.bounds)]
    refused = [f"{summary.policy} refused {_causes(summary)}" for summary in at.summaries if summary.refused]
    return "\n".join([grid(rows, rules=(0, len(at.summaries))), *refused])


def _causes(summary: Summary) -> str:
    causes = ", ".join(f"{count:,} {cause}" for cause, count in summary.refusals.items())
    return f"{summary.refused / summary.requests:.1%} of requests: {causes}"


def grid(rows: Sequence[Sequence[str]], *, rules: Sequence[int] = (0,)) -> str:
    """A header and rows, with a rule below those in `rules`; the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        pairs = zip(row, widths, strict=True)
        lines.append(
            "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        )
        if number in rules:
            lines.append("-" * len(lines[0]))
    return "\n".join(lines)
