"""The workers that exist now, at most one incarnation per URL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import structlog

from sgl_router.workers.breaker import BreakerState
from sgl_router.workers.worker import HealthState, Target, Worker, WorkerMode

__all__ = ["RegistryListener", "WorkerRegistry"]

log = structlog.get_logger(__name__)


class RegistryListener(Protocol):
    """Called synchronously, after the registry has changed. Add listeners before the first worker."""

    def worker_added(self, worker: Worker) -> None: ...
    def worker_removed(self, worker: Worker) -> None: ...


class WorkerRegistry:
    """Changes happen on the event loop between awaits, so readers always see a whole state."""

    def __init__(self) -> None:
        self._by_url: dict[str, Worker] = {}
        self._by_id: dict[str, Worker] = {}
        self._by_model: dict[str, tuple[Worker, ...]] = {}
        self._by_model_and_mode: dict[tuple[str, WorkerMode], tuple[Worker, ...]] = {}
        self._listeners: list[RegistryListener] = []

    def add_listener(self, listener: RegistryListener) -> None:
        self._listeners.append(listener)

    def add(self, worker: Worker) -> None:
        """Register a new incarnation. ValueError while another one holds the URL."""
        if worker.url in self._by_url:
            raise ValueError(f"{worker.id} is registered already: remove the old incarnation first")
        if worker.removed:
            raise ValueError(f"{worker!r} was removed: a worker that returns is a new incarnation")
        self._by_url[worker.url] = worker
        self._by_id[worker.id] = worker
        self._reindex()
        for listener in self._listeners:
            try:
                listener.worker_added(worker)
            except Exception:
                log.exception("registry listener failed", worker=worker.id, change="added")

    def remove(self, url: str) -> Worker | None:
        """Unregister; the returned worker is marked removed and never comes back."""
        worker = self._by_url.pop(url, None)
        if worker is None:
            return None
        del self._by_id[worker.id]
        worker.removed = True
        self._reindex()
        for listener in self._listeners:
            try:
                listener.worker_removed(worker)
            except Exception:
                log.exception("registry listener failed", worker=worker.id, change="removed")
        return worker

    def get(self, url: str) -> Worker | None:
        return self._by_url.get(url)

    def by_id(self, worker_id: str) -> Worker | None:
        return self._by_id.get(worker_id)

    def all(self) -> list[Worker]:
        return list(self._by_url.values())

    def for_model(self, model_id: str) -> Sequence[Worker]:
        """Every registered worker of a model, whatever its health and mode."""
        return self._by_model.get(model_id, ())

    def candidates(
        self,
        model_id: str,
        now: float,
        mode: WorkerMode = WorkerMode.PLAIN,
        without: Collection[Worker] = (),
    ) -> list[Target]:
        """The targets a request may go to: right model and mode, breaker willing, and the best of these classes that
        is not empty: healthy and not backed off; healthy; busy (see `Worker.busy`). None of the workers `without`.
        """
        healthy, closed = HealthState.HEALTHY, BreakerState.CLOSED
        targets: list[Target] = []
        backed_off: list[Worker] = []
        workers = self._by_model_and_mode.get((model_id, mode), ())
        for worker in workers:
            if worker.health is healthy and worker not in without:
                breaker = worker.breaker
                if breaker.state is closed or breaker.would_allow(now):
                    if worker.backed_off:
                        backed_off.append(worker)
                    else:
                        targets += worker.targets
        if backed_off:
            targets += [
                target for worker in backed_off for target in worker.targets if worker.willing(target, now)
            ] or ([] if targets else [target for worker in backed_off for target in worker.targets])
        if not targets:
            for worker in workers:
                if worker.busy(now) and worker not in without and worker.breaker.would_allow(now):
                    targets += worker.targets
        return targets

    def __len__(self) -> int:
        return len(self._by_url)

    def _reindex(self) -> None:
        by_model: dict[str, list[Worker]] = {}
        by_both: dict[tuple[str, WorkerMode], list[Worker]] = {}
        for worker in self._by_url.values():
            by_model.setdefault(worker.model_id, []).append(worker)
            by_both.setdefault((worker.model_id, worker.mode), []).append(worker)
        self._by_model = {key: tuple(workers) for key, workers in by_model.items()}
        self._by_model_and_mode = {key: tuple(workers) for key, workers in by_both.items()}
