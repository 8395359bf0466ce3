"""Why requests should not be sent to this router yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.kv_events import KvIndex
    from sgl_router.workers import PendingWorker, WorkerRegistry

__all__ = ["FleetReadiness"]

_SHOWN = 8


class FleetReadiness:
    """Called: one reason for each model without a healthy worker, or whose workers' caches are not known yet."""

    def __init__(
        self,
        models: Sequence[str],
        registry: WorkerRegistry,
        index: KvIndex,
        pending: Callable[[], Sequence[PendingWorker]],
    ) -> None:
        self._models = models
        self._registry = registry
        self._index = index
        self._pending = pending

    def __call__(self) -> list[str]:
        reasons = []
        now = time.monotonic()
        for model_id in self._models:
            workers = self._registry.for_model(model_id)
            healthy = [worker for worker in workers if worker.serves(now)]
            warming = [worker.id for worker in healthy if self._index.warming(worker)]
            if warming:
                reasons.append(f"model {model_id!r} is warming up: the KV events of {warming} are being replayed")
            if healthy:
                continue
            if workers:
                states = ", ".join(f"{worker.id} is {worker.health.value}" for worker in workers)
                reasons.append(f"no healthy worker for model {model_id!r}: {states}")
            else:
                pending = self._pending()
                detail = "; ".join(f"{one.id}: {one.last_error or 'not asked yet'}" for one in pending[:_SHOWN])
                suffix = f" ({len(pending)} configured workers do not answer yet: {detail})" if pending else ""
                reasons.append(f"no worker registered for model {model_id!r}{suffix}")
        return reasons
