"""Decisions, and what would be decided, as operators are shown them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from sgl_router.placement import Placement
from sgl_router.workers import BreakerState, HealthState, WorkerMode

if TYPE_CHECKING:
    from sgl_router.kv_events import PromptMatch
    from sgl_router.placement import CandidateCost, Leg
    from sgl_router.routing.local_lease import LocalLease
    from sgl_router.workers import Target, Worker

__all__ = ["explanation_view", "lease_view"]

# One reading for all, so that an entry has the same time whenever it is shown.
_MONOTONIC_ZERO = time.time() - time.monotonic()


def lease_view(lease: LocalLease) -> dict[str, Any]:
    """A decision that was made, and what has come of it so far."""
    at = lease.decided_at + _MONOTONIC_ZERO
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": lease.request_id,
        "model": lease.model_id,
        **lease.placement.view(),
        "waited_ms": _ms(lease.waited_secs),
        "first_byte_ms": _ms(lease.first_byte_secs),
        "cached_tokens": lease.cached_tokens,
        "outcome": lease.outcome.value if lease.outcome is not None else None,
    }
    if (costs := lease.placement.prefill.costs) is not None:
        found["costs"] = [_cost(cost) for cost in costs]
    return found


def explanation_view(
    leg: Leg | None,
    candidates: Sequence[Target],
    match: PromptMatch | None,
    workers: Iterable[Worker],
    *,
    would_wait: bool,
    waiting: int,
) -> dict[str, Any]:
    """A decision that would be made: None where there is no candidate. `workers`: all of the model's."""
    eligible = {target.worker for target in candidates}
    return {
        "decision": None if leg is None else Placement((leg,)).view(),
        "would_wait": would_wait,
        "waiting": waiting,
        "candidates": _candidates(leg, candidates, match),
        "excluded": [{"worker": worker.id, "why": _why_not(worker)} for worker in workers if worker not in eligible],
    }


def _candidates(leg: Leg | None, candidates: Sequence[Target], match: PromptMatch | None) -> list[dict[str, Any]]:
    costs = {} if leg is None or leg.costs is None else {cost.target: cost for cost in leg.costs}
    found = []
    for target in candidates:
        prefix = match.by_target.get(target) if match is not None else None
        entry: dict[str, Any] = {
            "worker": target.worker.id,
            "dp_rank": target.dp_rank,
            "inflight": target.inflight,
            "matched_blocks": prefix.blocks if prefix is not None else 0,
            "device_blocks": prefix.device_blocks if prefix is not None else 0,
            "expected_blocks": prefix.expected_blocks if prefix is not None else 0,
        }
        if target in costs:
            entry["cost"] = _terms(costs[target])
        found.append(entry)
    return found


def _cost(cost: CandidateCost) -> dict[str, Any]:
    return {"worker": cost.target.worker.id, "dp_rank": cost.target.dp_rank, **_terms(cost)}


def _terms(cost: CandidateCost) -> dict[str, Any]:
    return {
        "total_ms": _round(cost.total_ms),
        "compute_ms": _round(cost.compute_ms),
        "load_back_ms": _round(cost.load_back_ms),
        "queue_ms": _round(cost.queue_ms),
        "others_ms": _round(cost.others_ms),
        "decode_ms": _round(cost.decode_ms),
        "eviction_ms": _round(cost.eviction_ms),
        "session_ms": _round(cost.session_ms),
        "uncached_tokens": cost.uncached_tokens,
        "queued_tokens": cost.queued_tokens,
    }


def _why_not(worker: Worker) -> str:
    if worker.mode is not WorkerMode.PLAIN:
        return f"{worker.mode.value} worker"
    if worker.health is not HealthState.HEALTHY:
        return str(worker.health.value)
    if worker.breaker.state is not BreakerState.CLOSED:
        return "circuit open"
    return "backed off" if worker.backed_off else "not a candidate"


def _ms(secs: float | None) -> float | None:
    return None if secs is None else round(secs * 1e3, 3)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
