"""One incarnation of one worker, and its dp ranks as routing targets."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from sgl_router.discovery.base import WorkerMode
from sgl_router.workers.breaker import CircuitBreaker
from sgl_router.workers.info import WorkerInfo
from sgl_router.workers.refusals import Refusals

if TYPE_CHECKING:
    from sgl_router.load.backlog import BacklogEstimate

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
        "dispatched",
        "dp_rank",
        "forecast",
        "inflight",
        "last_selected",
        "prefill_tokens",
        "processed",
        "refusals",
        "worker",
    )

    def __init__(self, worker: Worker, dp_rank: int) -> None:
        self.worker = worker
        self.dp_rank = dp_rank
        self.inflight = 0
        self.dispatched = 0
        """Requests sent here."""
        self.processed = 0
        """The same for ties between equals: kept near that of its peers (see `ActiveLoad`)."""
        self.last_selected = 0
        self.prefill_tokens = 0
        self.decode_blocks = 0
        self.forecast: BacklogEstimate | None = None
        self.refusals = Refusals(lambda backed_off: worker._moved(self, backed_off))

    def own_tokens(self, now: float) -> float:
        """KV tokens of the requests that this router has there."""
        forecast = self.forecast
        grown = forecast.answers.tokens(now) if forecast is not None else 0.0
        return self.decode_blocks * self.worker.info.block_size + grown

    def __repr__(self) -> str:
        return f"Target({self.worker.id}#{self.worker.generation} rank {self.dp_rank})"


class Worker:
    """Lives from its registration to its removal; a restarted server is a new Worker with a higher generation.

    Requests may hold on to a removed worker until they end: what they release goes to it, never to its successor.
    """

    __slots__ = (
        "__weakref__",
        "backed_off",
        "breaker",
        "busy_until",
        "client_errors",
        "dp_size",
        "generation",
        "health",
        "heard",
        "id",
        "info",
        "mode",
        "model_id",
        "moved",
        "refusals",
        "removed",
        "stats",
        "targets",
        "troubled",
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
        self.refusals = Refusals(lambda backed_off: self._moved(None, backed_off))
        """What it alone refuses among its peers; what a rank's queue refuses is with its target."""
        self.backed_off = 0
        """How many of these, its own and its targets', are not free: 0 for nearly all workers, nearly always."""
        self.moved: Callable[[Target | None, bool], None] = lambda target, backed_off: None
        """Called when a target, or all of the worker (None), is backed off (True) or free again. Must not raise."""
        self.client_errors = 0
        self.troubled = False
        """Whether a good response is news: after a refusal or a 4xx, until what is accepted has made up for it."""
        self.heard = False
        """Set by each good byte of a response; taken back by whoever probes the worker's health."""
        self.busy_until = float("-inf")
        """Until when an unhealthy worker counts as busy rather than dead, monotonic seconds."""
        self.targets = tuple(Target(self, rank) for rank in range(info.dp_size))
        self.removed = False

    def serves(self, now: float) -> bool:
        """Whether it may be sent requests, as far as its health goes: healthy, or busy."""
        return self.health is HealthState.HEALTHY or self.busy(now)

    def busy(self, now: float) -> bool:
        """Unhealthy because it is slow to answer probes, but alive not long ago: better than no worker."""
        return self.health is HealthState.UNHEALTHY and now < self.busy_until

    def willing(self, target: Target, now: float) -> bool:
        """Whether the target is not backed off."""
        return not self.backed_off or (self.refusals.willing(now) and target.refusals.willing(now))

    def _moved(self, target: Target | None, backed_off: bool) -> None:
        self.backed_off += 1 if backed_off else -1
        self.moved(target, backed_off)

    def __repr__(self) -> str:
        return f"Worker({self.id}#{self.generation} {self.model_id} {self.mode.value} {self.health.value})"


def worker_id(url: str) -> str:
    """Stable for a URL and safe to show to clients."""
    return "w-" + hashlib.sha256(url.encode()).hexdigest()[:12]
