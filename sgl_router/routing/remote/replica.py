"""The routing process's workers, as a data process knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sgl_router.routing.remote.messages import WorkerState
from sgl_router.workers import CircuitBreaker, Target, Worker, WorkerInfo, WorkerRegistry

if TYPE_CHECKING:
    from sgl_router.config import ModelConfig

__all__ = ["GONE", "WorkerReplica"]


GONE = Worker("http://gone", WorkerInfo(served_model_name="")).targets[0]
"""In the place of a target whose worker has been removed."""


class WorkerReplica:
    """Keeps a registry equal to what is pushed. A worker that another routing process describes alike stays the same
    object, so that requests, breakers and loads here survive a restart there."""

    def __init__(self, registry: WorkerRegistry, models: Mapping[str, ModelConfig]) -> None:
        self.registry = registry
        self._models = models
        self._by_generation: dict[int, Worker] = {}
        self._generations: dict[Worker, int] = {}

    def replace(self, states: Iterable[WorkerState]) -> None:
        """These are all there are. Generations counted by an earlier routing process mean nothing any more."""
        self._by_generation.clear()
        self._generations.clear()
        states = list(states)
        named = {state.url for state in states}
        for worker in self.registry.all():
            if worker.url not in named:
                self.registry.remove(worker.url)
        for state in states:
            self.update(state)

    def update(self, state: WorkerState) -> None:
        worker = self.registry.get(state.url)
        if worker is not None and not self._same(worker, state):
            self._forget(worker)
            worker = None
        if worker is None:
            worker = self._make(state)
            self.registry.add(worker)
        worker.health = state.health
        worker.busy_until = float("inf") if state.busy else float("-inf")
        self._by_generation[state.generation] = worker
        self._generations[worker] = state.generation

    def take_heard(self) -> list[int]:
        """Generations of workers from which a good byte has come since the last call."""
        heard = [generation for worker, generation in self._generations.items() if worker.heard]
        for worker in self._generations:
            worker.heard = False
        return heard

    def gone(self, generation: int) -> None:
        worker = self._by_generation.get(generation)
        if worker is not None:
            self._forget(worker)

    def worker(self, generation: int) -> Worker | None:
        return self._by_generation.get(generation)

    def target(self, generation: int, dp_rank: int) -> Target:
        """GONE for one that is not known (any more)."""
        worker = self._by_generation.get(generation)
        return worker.targets[dp_rank] if worker is not None and 0 <= dp_rank < worker.dp_size else GONE

    def generation(self, worker: Worker) -> int | None:
        """None for a worker the routing process does not know (any more)."""
        return self._generations.get(worker)

    def _forget(self, worker: Worker) -> None:
        generation = self._generations.pop(worker, None)
        if generation is not None:
            self._by_generation.pop(generation, None)
        if self.registry.get(worker.url) is worker:
            self.registry.remove(worker.url)

    def _same(self, worker: Worker, state: WorkerState) -> bool:
        known = self._generations.get(worker)
        if known is not None:
            return known == state.generation
        return (worker.model_id, worker.info) == (state.model_id, _info(state))

    def _make(self, state: WorkerState) -> Worker:
        model = self._models.get(state.model_id)
        rules = model.circuit_breaker if model is not None else None
        breaker = CircuitBreaker(rules.threshold, rules.cool_down_secs) if rules is not None else CircuitBreaker()
        return Worker(state.url, _info(state), model_id=state.model_id, breaker=breaker, health=state.health)


def _info(state: WorkerState) -> WorkerInfo:
    return WorkerInfo(
        served_model_name=state.model_id,
        mode=state.mode,
        dp_size=state.dp_size,
        block_size=state.block_size,
        started_at=state.started_at,
    )
