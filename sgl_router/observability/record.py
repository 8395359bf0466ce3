"""The record of one request: what was decided, why, and how it went. One log line, a few metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from .outcome import Outcome

if TYPE_CHECKING:
    from sgl_router.errors import RouterError
    from sgl_router.policies import RouteDecision

    from .metrics import Metrics

__all__ = ["RequestRecord"]

log = structlog.get_logger("sgl_router.request")


class RequestRecord:
    """Filled in as the request goes along; `finish` is called once, however it ended. Times in seconds."""

    __slots__ = (
        "attempts",
        "bytes_out",
        "cached_tokens",
        "decided_at",
        "decision",
        "error",
        "first_byte_at",
        "model_id",
        "outcome",
        "request_id",
        "started_at",
        "status",
        "streamed",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.started_at = time.perf_counter()
        self.decided_at: float | None = None
        self.first_byte_at: float | None = None
        self.model_id: str | None = None
        self.decision: RouteDecision | None = None
        self.error: RouterError | None = None
        self.outcome = Outcome.INTERNAL
        self.status: int | None = None
        self.streamed = False
        self.bytes_out = 0
        self.cached_tokens: int | None = None
        self.attempts = 0

    def decided(self, decision: RouteDecision) -> None:
        self.decision = decision
        self.decided_at = time.perf_counter()
        self.attempts += 1

    def first_byte(self) -> None:
        self.first_byte_at = time.perf_counter()

    def finish(self, metrics: Metrics) -> None:
        """Write the log line and the metrics that need the whole request. Never raises: the answer is out already."""
        try:
            self._finish(metrics)
        except Exception:
            metrics.records_lost.inc()  # above all: a log that is full or closed

    def _finish(self, metrics: Metrics) -> None:
        took = time.perf_counter() - self.started_at
        decision = self.decision
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "model": self.model_id,
            "outcome": self.outcome.value,
            "status": self.status,
            "ms": round(took * 1e3, 2),
        }
        if self.model_id is not None:
            metrics.duration.labels(self.model_id).observe(took)
            if self.decided_at is not None:
                metrics.decision_time.labels(self.model_id).observe(self.decided_at - self.started_at)
            if self.first_byte_at is not None and self.streamed:
                metrics.ttft.labels(self.model_id).observe(self.first_byte_at - self.started_at)
        if decision is not None:
            fields |= {
                "worker": decision.target.worker.id,
                "dp_rank": decision.target.dp_rank,
                "reason": decision.reason.value,
                "matched_blocks": decision.matched_blocks,
                "total_blocks": decision.total_blocks,
                "page": decision.page_size,
                "prompt_tokens": decision.prompt_tokens,
                "candidates": decision.candidates,
                "load_min": decision.min_load,
                "load_max": decision.max_load,
            }
            if decision.unmatched is not None:
                fields["unmatched"] = decision.unmatched.value
        if self.decided_at is not None:
            fields["decide_ms"] = round((self.decided_at - self.started_at) * 1e3, 2)
        if self.first_byte_at is not None:
            fields["first_byte_ms"] = round((self.first_byte_at - self.started_at) * 1e3, 2)
        if self.cached_tokens is not None:
            fields["cached_tokens"] = self.cached_tokens
        if self.streamed:
            fields["streamed"] = True
        if self.attempts > 1:
            fields["attempts"] = self.attempts
        if self.error is not None:
            fields |= {"code": self.error.code.value, "error": self.error.message}
        if self.outcome in _QUIET:
            log.info("request", **fields)
        else:
            log.warning("request", **fields)


_QUIET = frozenset((Outcome.COMPLETED, Outcome.CLIENT_ERROR, Outcome.CLIENT_GONE, Outcome.REJECTED))
