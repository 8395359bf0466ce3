"""`GET /workers`: every worker with its load, its breaker and its event streams. It shows URLs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sgl_router.http.answer import send_json

if TYPE_CHECKING:
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.kv_events import RankStatus
    from sgl_router.services import FleetServices
    from sgl_router.workers import Target, Worker

__all__ = ["serve_workers", "workers_view"]


async def serve_workers(services: FleetServices, request: Request, writer: ResponseWriter) -> None:
    await send_json(writer, workers_view(services))


def workers_view(services: FleetServices) -> dict[str, Any]:
    """Every registered worker, and every configured one that has not answered yet."""
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


def _worker(services: FleetServices, worker: Worker) -> dict[str, Any]:
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
