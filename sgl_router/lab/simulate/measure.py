"""From records to numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sgl_router.lab.simulate.record import Record
from sgl_router.lab.simulate.simulation import Outcome

__all__ = [
    "Floats",
    "Spread",
    "Summary",
    "finite",
    "hit_rate_by",
    "hit_rate_over_time",
    "queue_over_time",
    "rows_of",
    "shares_by",
    "spread",
    "summarise",
    "ttft_curve",
]

Floats = npt.NDArray[np.float64]


class Spread(msgspec.Struct, frozen=True):
    """A distribution, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    longest: float


class Summary(msgspec.Struct, frozen=True):
    """One run. `queued`: from arrival to the start of prefill; `held`: the part of it spent in the router.

    `hit_rate`: cached of all prompt tokens. `imbalance`: coefficient of variation of the workers' time spent on
    prompts. `foreseen`: share of requests for which the index named exactly the tokens the worker then had cached;
    None where nobody asked it. `refusals`: refused requests by cause.
    """

    policy: str
    requests: int
    refused: int
    ttft: Spread
    queued: Spread
    held: Spread
    hit_rate: float
    imbalance: float
    foreseen: float | None
    reasons: dict[str, int]
    refusals: dict[str, int]


def spread(values: Sequence[float] | Floats) -> Spread:
    if not len(values):
        return Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    array = np.asarray(values, dtype=np.float64)
    p50, p90, p99 = np.quantile(array, (0.5, 0.9, 0.99)).tolist()
    return Spread(float(array.mean()), p50, p90, p99, float(array.max()))


def summarise(outcome: Outcome) -> Summary:
    served = served_of(outcome)
    prompt = sum(record.job.input_tokens for record in served)
    busy = np.array([worker.prefill_secs for worker in outcome.workers])
    return Summary(
        policy=outcome.policy,
        requests=len(outcome.records),
        refused=len(outcome.records) - len(served),
        ttft=spread([record.ttft for record in served]),
        queued=spread([record.queued for record in served]),
        held=spread([record.held for record in served]),
        hit_rate=sum(record.cached_tokens for record in served) / prompt if prompt else 0.0,
        imbalance=float(busy.std() / busy.mean()) if busy.any() else 0.0,
        foreseen=_share([r.predicted_tokens == r.cached_tokens for r in served if r.predicted_tokens is not None]),
        reasons=dict(Counter(record.reason for record in served).most_common()),
        refusals=dict(Counter(record.reason for record in outcome.records if record.worker < 0).most_common()),
    )


def _share(truths: list[bool]) -> float | None:
    return sum(truths) / len(truths) if truths else None


def served_of(outcome: Outcome) -> list[Record]:
    return [record for record in outcome.records if record.worker >= 0]


def ttft_curve(outcome: Outcome, points: int = 200) -> tuple[Floats, Floats]:
    """(seconds, share of requests whose first token came by then)."""
    return shares_by(np.array([record.ttft for record in served_of(outcome)]), points)


def shares_by(values: Floats, points: int = 200) -> tuple[Floats, Floats]:
    """(value, share of the values that are not above it)."""
    if not len(values):
        return np.zeros(1), np.zeros(1)
    shares = np.linspace(0.0, 1.0, points)
    return np.quantile(values, shares), shares


def queue_over_time(outcome: Outcome, points: int = 120) -> tuple[Floats, Floats]:
    """(seconds, mean number of requests then waiting, in the router or at a worker, for their prefill to begin)."""
    served = served_of(outcome)
    if not served:
        return np.zeros(1), np.zeros(1)
    arrived = np.sort(np.array([record.job.arrival for record in served]))
    started = np.sort(np.array([record.started_at for record in served]))
    edges = np.linspace(0.0, max(float(started[-1]), 1e-9), points + 1)
    waited = _integral(arrived, edges) - _integral(started, edges)
    return (edges[1:] + edges[:-1]) / 2, np.maximum(np.diff(waited) / np.diff(edges), 0.0)


def _integral(times: Floats, edges: Floats) -> Floats:
    """The integral up to each edge of the number of `times` (sorted) passed so far."""
    sums = np.concatenate(([0.0], np.cumsum(times)))
    passed = np.searchsorted(times, edges, side="right")
    result: Floats = passed * edges - sums[passed]
    return result


def hit_rate_over_time(outcome: Outcome, points: int = 40) -> tuple[Floats, Floats]:
    """(seconds, share of prompt tokens cached among the requests that arrived around then); gaps are left out."""
    served = served_of(outcome)
    return hit_rate_by(
        np.array([record.job.arrival for record in served]),
        np.array([record.cached_tokens for record in served], dtype=np.float64),
        np.array([record.job.input_tokens for record in served], dtype=np.float64),
        points,
    )


def hit_rate_by(arrival: Floats, cached: Floats, prompt: Floats, points: int = 40) -> tuple[Floats, Floats]:
    """(seconds, share cached of the prompt tokens that arrived around then); one entry of each for every request."""
    if not len(arrival):
        return np.zeros(1), np.zeros(1)
    edges = np.linspace(0.0, max(float(arrival.max()), 1e-9), points + 1)
    bins = np.clip(np.searchsorted(edges, arrival, side="right") - 1, 0, points - 1)
    of_cached, of_prompt = np.bincount(bins, cached, points), np.bincount(bins, prompt, points)
    there = of_prompt > 0
    middle = (edges[1:] + edges[:-1]) / 2
    return middle[there], of_cached[there] / of_prompt[there]


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Every request, for whoever wants to compare placements."""
    return [
        {
            "number": record.job.number,
            "arrival": record.job.arrival,
            "input_tokens": record.job.input_tokens,
            "output_tokens": record.job.output_tokens,
            "router": record.router,
            "worker": record.worker if record.worker >= 0 else None,
            "reason": record.reason,
            "dispatched_at": finite(record.dispatched_at),
            "started_at": finite(record.started_at),
            "first_token_at": finite(record.first_token_at),
            "finished_at": finite(record.finished_at),
            "predicted_tokens": record.predicted_tokens,
            "cached_tokens": record.cached_tokens,
        }
        for record in outcome.records
    ]


def finite(value: float) -> float | None:
    """What did not happen is None on disk."""
    return value if value == value else None
