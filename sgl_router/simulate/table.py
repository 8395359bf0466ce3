"""A study as text."""

from __future__ import annotations

from .bounds import FLOOR
from .measure import Summary
from .study import RateStudy, Study

__all__ = ["COLUMNS", "cells", "describe", "format_study", "secs"]

COLUMNS = (
    "TTFT mean",
    "p50",
    "p90",
    "p99",
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
    times = [secs(value) for value in (ttft.mean, ttft.p50, ttft.p90, ttft.p99)]
    if summary.policy == FLOOR:
        return [*times, "-", "-", "-", "-", f"{summary.hit_rate:.1%}", "-", "-"]
    times += [secs(value) for value in (queued.p50, queued.p90, queued.p99, queued.longest)]
    foreseen = "-" if summary.foreseen is None else f"{summary.foreseen:.1%}"
    return [*times, f"{summary.hit_rate:.1%}", f"{summary.imbalance:.3f}", foreseen]


def describe(study: Study) -> str:
    """The workload and the fleet in a line."""
    fleet = study.settings
    requests = study.rates[0].summaries[0].requests
    routers = "1 router" if fleet.routers == 1 else f"{fleet.routers} routers"
    return (
        f"{study.workload}: {requests} requests; {fleet.workers} workers, {fleet.cache_tokens:,} tokens of cache and "
        f"{fleet.prefill_tokens_per_sec:,.0f} tokens/s each; {routers}, events {fleet.event_delay * 1e3:g} ms late; "
        f"seed {study.seed}"
    )


def format_study(study: Study) -> str:
    parts = [describe(study), *(_format_rate(at) for at in study.rates)]
    parts.append(
        "times in seconds; queued: from arrival to the start of prefill; imbalance: variation of prefill time over\n"
        "workers; foreseen: requests whose cached tokens the index knew exactly; one_pooled_worker: the fleet's\n"
        "cache and speed in one piece; floor: no queue, no eviction"
    )
    return "\n\n".join(parts)


def _format_rate(at: RateStudy) -> str:
    rows = [[f"rate {at.rate:g}x", *COLUMNS]]
    rows += [[summary.policy, *cells(summary)] for summary in (*at.summaries, *at.bounds)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    rule = "-" * len(lines[0])
    refused = [f"{summary.policy} refused {summary.refused}" for summary in at.summaries if summary.refused]
    table = [lines[0], rule, *lines[1 : 1 + len(at.summaries)], rule, *lines[1 + len(at.summaries) :]]
    return "\n".join(table + refused)
