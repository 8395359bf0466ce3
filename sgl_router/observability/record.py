"""The record of one request: what was decided, why, and how it went. One log line, a few metrics."""

from __future__ import annotations

from bisect import bisect_left
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from sgl_router.observability import logs
from sgl_router.outcome import Outcome
from sgl_router.placement import LOG_FIELDS, LOG_FIRST

if TYPE_CHECKING:
    from sgl_router.errors import RouterError
    from sgl_router.observability.metrics import Metrics
    from sgl_router.placement import Placement

__all__ = ["RequestRecord"]

log = structlog.get_logger("sgl_router.request")

# Looked up once: the members and values of an enum are found through descriptors, some of them slow ones.
_INTERNAL = Outcome.INTERNAL
_COMPLETED = Outcome.COMPLETED
_QUIET = frozenset(
    outcome.value for outcome in (Outcome.COMPLETED, Outcome.CLIENT_ERROR, Outcome.CLIENT_GONE, Outcome.REJECTED)
)


class RequestRecord:
    """Filled in as the request goes along; `finish` is called once, however it ended. Times in seconds."""

    __slots__ = (
        "attempts",
        "bytes_out",
        "cached_tokens",
        "decided_at",
        "ended_at",
        "error",
        "first_byte_at",
        "model_id",
        "outcome",
        "placement",
        "request_id",
        "started_at",
        "status",
        "streamed",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.started_at = self.ended_at = perf_counter()
        self.decided_at: float | None = None
        self.first_byte_at: float | None = None
        self.model_id: str | None = None
        self.placement: Placement | None = None
        self.error: RouterError | None = None
        self.outcome = _INTERNAL
        self.status: int | None = None
        self.streamed = False
        self.bytes_out = 0
        self.cached_tokens: int | None = None
        self.attempts = 0

    def decided(self, placement: Placement, waited_secs: float = 0.0) -> None:
        """`waited_secs`: for a worker to have room. It is no part of what deciding took; nor is a connection that
        could not be made, after which this is called again."""
        self.placement = placement
        if self.decided_at is None:
            self.decided_at = perf_counter() - waited_secs
        self.attempts += 1

    def first_byte(self) -> None:
        self.first_byte_at = perf_counter()

    def finish(self, metrics: Metrics) -> None:
        """Write the log line and the metrics that need the whole request. Never raises: the answer is out already."""
        try:
            ended = self.ended_at = perf_counter()
            if self.model_id is not None:
                started = self.started_at
                duration, decision_time, ttft = metrics.of_model(self.model_id)
                # `observe` written out: three calls are a tenth of what a record costs.
                secs = ended - started
                duration.counts[bisect_left(duration.bounds, secs)] += 1
                duration.total += secs
                if self.decided_at is not None:
                    secs = self.decided_at - started
                    decision_time.counts[bisect_left(decision_time.bounds, secs)] += 1
                    decision_time.total += secs
                if self.first_byte_at is not None and self.streamed:
                    ttft.observe(self.first_byte_at - started)
            lines = logs.requests
            if lines is None:
                self._emit()
            elif self.outcome is _COMPLETED or self.outcome._value_ in _QUIET:
                if lines.info:
                    lines.write(self, lines.info)
            elif lines.warning:
                lines.write(self, lines.warning)
        except Exception:
            metrics.records_lost.inc()

    def fields(self) -> dict[str, object]:
        """The fields of the log line, in its order: what is looked at first, who it was, then what was decided by."""
        started, placement = self.started_at, self.placement
        fields: dict[str, object] = {
            "method": "POST",
            "status": self.status,
            "ms": _milliseconds(self.ended_at - started),
        }
        if placement is not None:
            fields |= placement.log_fields(LOG_FIRST)
        if self.error is not None:
            fields["code"] = self.error.code.value
        fields |= {"request_id": self.request_id, "model": self.model_id, "outcome": self.outcome.value}
        if placement is not None:
            fields |= placement.log_fields(LOG_FIELDS)
            if (unmatched := placement.prefill.unmatched) is not None:
                fields["unmatched"] = unmatched.value
        if self.decided_at is not None:
            fields["decide_ms"] = _milliseconds(self.decided_at - started)
        if self.first_byte_at is not None:
            fields["first_byte_ms"] = _milliseconds(self.first_byte_at - started)
        if self.cached_tokens is not None:
            fields["cached_tokens"] = self.cached_tokens
        if self.streamed:
            fields["streamed"] = True
        if self.attempts > 1:
            fields["attempts"] = self.attempts
        if self.error is not None:
            fields["error"] = self.error.message
        return fields

    def _emit(self) -> None:
        """Through structlog, where its output is not ours (a terminal's colours, a test's capture)."""
        emit = log.info if self.outcome.value in _QUIET else log.warning
        emit("request", **self.fields())


def _milliseconds(secs: float) -> float:
    """To a hundredth, as `lines` has it."""
    return int(secs * 1e5 + 0.5) / 100
