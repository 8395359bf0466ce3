"""One incarnation of one worker, and its dp ranks as routing targets."""

from __future__ import annotations

import hashlib
import itertools
from enum import Enum
from typing import TYPE_CHECKING

from sgl_router.discovery.base import WorkerMode
from sgl_router.workers.breaker import CircuitBreaker
from sgl_router.workers.info import WorkerInfo

if TYPE_CHECKING:
    from sgl_router.workers.forecast import Forecast

__all__ = ["HealthState", "Target", "Worker", "WorkerInfo", "WorkerMode", "WorkerStats", "worker_id"]

_generations = itertools.count(1)


class HealthState(str, Enum):
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class WorkerStats:
    """Plain counters; the data path writes them, metrics read them."""

    __slots__ = ("requests",)

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}

    def count(self, outcome: str) -> None:
        """One more request with this outcome."""
        self.requests[outcome] = self.requests.get(outcome, 0) + 1


class Target:
    """The routing unit: one dp rank of one worker. Attributes are plain because policies read them in a hot loop."""

    __slots__ = (
        "decode_blocks",
        "dp_rank",
        "forecast",
        "inflight",
        "last_selected",
        "prefill_tokens",
        "processed",
        "worker",
    )

    def __init__(self, worker: Worker, dp_rank: int) -> None:
        self.worker = worker
        self.dp_rank = dp_rank
        self.inflight = 0
        self.processed = 0
        self.last_selected = 0
        self.prefill_tokens = 0
        self.decode_blocks = 0
        self.forecast: Forecast | None = None

    def __repr__(self) -> str:
        return f"Target({self.worker.id}#{self.worker.generation} rank {self.dp_rank})"


class Worker:
    """Lives from its registration to its removal; a restarted server is a new Worker with a higher generation.

    Requests may hold on to a removed worker until they end: what they release goes to it, never to its successor.
    """

    __slots__ = (
        "__weakref__",
        "breaker",
        "dp_size",
        "generation",
        "health",
        "id",
        "info",
        "mode",
        "model_id",
        "removed",
        "stats",
        "targets",
        "url",
    )

    def __init__(
        self,
        url: str,
        info: WorkerInfo,
        *,
        model_id: str | None = None,
        mode: WorkerMode | None = None,
        breaker: CircuitBreaker | None = None,
        health: HealthState = HealthState.STARTING,
    ) -> None:
        self.url = url
        self.id = worker_id(url)
        self.generation = next(_generations)
        self.info = info
        self.model_id = info.served_model_name if model_id is None else model_id
        self.mode = info.mode if mode is None else mode
        self.dp_size = info.dp_size
        self.health = health
        self.breaker = CircuitBreaker() if breaker is None else breaker
        self.stats = WorkerStats()
        self.targets = tuple(Target(self, rank) for rank in range(info.dp_size))
        self.removed = False

    def __repr__(self) -> str:
        return f"Worker({self.id}#{self.generation} {self.model_id} {self.mode.value} {self.health.value})"


def worker_id(url: str) -> str:
    """Stable for a URL and safe to show to clients."""
    return "w-" + hashlib.sha256(url.encode()).hexdigest()[:12]
