"""What the router says about itself: probes, models, workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sgl_router.errors import ModelNotFound

if TYPE_CHECKING:
    from sgl_router.kv_events import RankStatus
    from sgl_router.workers import Target, Worker

    from .services import Model, Services

__all__ = ["LIVENESS_PATHS", "model_view", "models_view", "readiness_view", "workers_view"]

LIVENESS_PATHS = ("/healthz", "/health")


def readiness_view(services: Services) -> tuple[int, dict[str, Any]]:
    """200 while every model has a healthy worker, else 503 with the reasons."""
    reasons = services.unready()
    if reasons:
        return 503, {"status": "not ready", "reasons": reasons}
    return 200, {"status": "ready"}


def models_view(services: Services) -> dict[str, Any]:
    """OpenAI's list, of the configured models that some healthy worker serves."""
    return {"object": "list", "data": [_model(services, model) for model in _served(services)]}


def model_view(services: Services, name: str) -> dict[str, Any]:
    """One entry of that list. Raises ModelNotFound for what is not in it."""
    served = list(_served(services))
    for model in served:
        if model.id == name:
            return _model(services, model)
    raise ModelNotFound(
        f"model {name[:200]!r} is not served here; served models: {sorted(model.id for model in served)}", "model"
    )


def _served(services: Services) -> Iterator[Model]:
    now = time.monotonic()
    for model in services.models.values():
        if any(worker.serves(now) for worker in services.registry.for_model(model.id)):
            yield model


def _model(services: Services, model: Model) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": int(services.started_at),
        "owned_by": "sglang",
        "root": model.id,
    }
    if model.tokenizer.max_model_len is not None:
        entry["max_model_len"] = model.tokenizer.max_model_len
    return entry


def workers_view(services: Services) -> dict[str, Any]:
    """Every registered worker, and every configured one that has not answered yet. For operators: it shows URLs."""
    return {
        "workers": [_worker(services, worker) for worker in services.registry.all()],
        "pending": [
            {
                "id": one.id,
                "url": one.url,
                "attempts": one.attempts,
                "fault": one.fault.value if one.fault else None,
                "last_error": one.last_error,
            }
            for one in services.manager.status()
        ],
    }


def _worker(services: Services, worker: Worker) -> dict[str, Any]:
    streams = {status.dp_rank: status for status in services.index.status(worker)}
    breaker, now = worker.breaker, time.monotonic()
    return {
        "id": worker.id,
        "url": worker.url,
        "generation": worker.generation,
        "model_id": worker.model_id,
        "mode": worker.mode.value,
        "version": worker.info.version,
        "health": worker.health.value,
        "breaker": {
            "state": breaker.state.value,
            "failures": breaker.failures,
            "would_allow": breaker.would_allow(now),
        },
        "busy": worker.busy(now),
        "inflight": sum(target.inflight for target in worker.targets),
        "requests": dict(worker.stats.requests),
        "dp_size": worker.dp_size,
        "page_size": worker.info.block_size,
        "ranks": [
            {
                "dp_rank": target.dp_rank,
                "inflight": target.inflight,
                "processed": target.dispatched,
                "prefill_tokens": target.prefill_tokens,
                "decode_blocks": target.decode_blocks,
                "backed_off_secs": _backed_off_secs(target, now),
                "stream": _stream(streams.get(target.dp_rank)),
                "blocks": streams[target.dp_rank].blocks if target.dp_rank in streams else {},
                "expected_blocks": streams[target.dp_rank].expected_blocks if target.dp_rank in streams else 0,
            }
            for target in worker.targets
        ],
    }


def _backed_off_secs(target: Target, now: float) -> float | None:
    """Until a probe may be sent, 0 while it is one request at a time; None while requests are sent as ever."""
    ends = [one.until for one in (target.worker.refusals, target.refusals) if one.until is not None]
    return round(max(max(ends) - now, 0.0), 3) if ends else None


def _stream(status: RankStatus | None) -> dict[str, Any] | None:
    """None for a worker that publishes no events."""
    if status is None:
        return None
    counters = status.stream.counters
    return {
        "state": status.state.value,
        "untrusted_for": status.untrusted_for.value if status.untrusted_for else None,
        "connected": status.connected,
        "complete": status.complete,
        "next_seq": status.next_seq,
        "page_size": status.page_size,
        "bigram": status.bigram,
        "frames": counters.frames,
        "gaps": counters.gaps,
        "missing": counters.missing,
        "restarts": counters.restarts,
        "orphans": counters.orphans,
        "other_group": counters.other_group,
        "other_page": counters.other_page,
        "left_out": counters.left_out,
        "replayed": counters.replayed,
        "agreement": round(status.agreement.score, 3),
        "predictions": {outcome.value: count for outcome, count in status.agreement.counts.items()},
        "given_up": {verdict.value: count for verdict, count in status.agreement.given_up.items()},
        "withheld_namespaces": status.witness.withheld,
        "coverage": round(status.witness.coverage.score, 3),
        "silent": status.witness.silent,
        "lag_ms": round(status.lag_secs * 1e3, 1),
        "decode_failures": {reason.value: count for reason, count in counters.failures.items()},
    }
