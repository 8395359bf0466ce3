"""Why requests went where they went: the last decisions, and what would be decided now."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from sgl_router.errors import BadRequest
from sgl_router.proxy.connection import Headers
from sgl_router.workers import BreakerState, HealthState

from .ask import make_ask
from .body import parse_chat

if TYPE_CHECKING:
    from sgl_router.policies import CandidateCost, RouteDecision
    from sgl_router.routing import LocalRouting
    from sgl_router.routing.local import Explanation, LocalLease
    from sgl_router.workers import Worker

    from .services import Services

__all__ = ["MAX_DECISIONS", "decisions_view", "explain_view"]

MAX_DECISIONS = 1_000
# One reading for all, so that an entry has the same time whenever it is shown.
_MONOTONIC_ZERO = time.time() - time.monotonic()
_DEFAULT_LIMIT = 100


def decisions_view(routing: LocalRouting, limit: str | None) -> dict[str, Any]:
    """The last decisions, newest first. Raises BadRequest."""
    count = _DEFAULT_LIMIT
    if limit is not None:
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MAX_DECISIONS:
            raise BadRequest(f"limit is {limit[:50]!r}, expected a number from 1 to {MAX_DECISIONS}", "limit")
        count = int(limit)
    return {"decisions": [_entry(entry) for entry in routing.decisions.last(count)]}


async def explain_view(services: Services, routing: LocalRouting, headers: Headers, body: bytes) -> dict[str, Any]:
    """Where a chat would go now, and why; nothing is sent. Raises what a chat completion would be refused with."""
    chat = parse_chat(body)
    model, adapter = services.model(chat["model"])
    ask = await make_ask(model, adapter, chat, headers, request_id="")
    explanation = await routing.explain(ask)
    decision = explanation.decision
    candidates = {target.worker for target in explanation.candidates}
    return {
        "model": model.id,
        "policy": model.config.policy.value,
        "decision": None if decision is None else _decision(decision),
        "would_wait": explanation.would_wait,
        "waiting": explanation.waiting,
        "candidates": _candidates(explanation),
        "excluded": [
            {"worker": worker.id, "why": _why_not(worker)}
            for worker in services.registry.for_model(model.id)
            if worker not in candidates
        ],
    }


def _entry(entry: LocalLease) -> dict[str, Any]:
    at = entry.decided_at + _MONOTONIC_ZERO
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": entry.request_id,
        "model": entry.model_id,
        **_decision(entry.decision),
        "waited_ms": _ms(entry.waited_secs),
        "first_byte_ms": _ms(entry.first_byte_secs),
        "cached_tokens": entry.cached_tokens,
        "outcome": entry.outcome.value if entry.outcome is not None else None,
    }
    if entry.decision.costs is not None:
        found["costs"] = [_cost(cost) for cost in entry.decision.costs]
    return found


def _decision(decision: RouteDecision) -> dict[str, Any]:
    return {
        "worker": decision.target.worker.id,
        "dp_rank": decision.target.dp_rank,
        "reason": decision.reason.value,
        "unmatched": decision.unmatched.value if decision.unmatched is not None else None,
        "prompt_tokens": decision.prompt_tokens,
        "page_size": decision.page_size,
        "matched_blocks": decision.matched_blocks,
        "expected_blocks": decision.expected_blocks,
        "total_blocks": decision.total_blocks,
        "candidates": decision.candidates,
        "min_load": decision.min_load,
        "max_load": decision.max_load,
        "cost_ms": _round(decision.cost_ms),
    }


def _candidates(explanation: Explanation) -> list[dict[str, Any]]:
    match, decision = explanation.match, explanation.decision
    costs = {} if decision is None or decision.costs is None else {cost.target: cost for cost in decision.costs}
    found = []
    for target in explanation.candidates:
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
    if worker.health is not HealthState.HEALTHY:
        return str(worker.health.value)
    return "circuit open" if worker.breaker.state is not BreakerState.CLOSED else "not a candidate"


def _ms(secs: float | None) -> float | None:
    return None if secs is None else round(secs * 1e3, 3)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
