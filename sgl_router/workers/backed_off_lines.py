"""Log lines about targets that are backed off."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from sgl_router.workers.worker import Target, Worker

__all__ = ["BackedOffLines"]

log = structlog.get_logger(__name__)

# A worker that is full begins and ends many back-offs a minute.
_INTERVAL_SECS = 30.0


class BackedOffLines:
    """A worker's `moved`: one line when a target is backed off and one when it is free again, for the first of both in
    30 s; the next line says how many went without one."""

    def __init__(self, worker: Worker, clock: Callable[[], float]) -> None:
        self._worker = worker
        self._clock = clock
        self._next: dict[Target | None, float] = {}
        self._silent: dict[Target | None, int] = {}
        self._told: set[Target | None] = set()

    def __call__(self, target: Target | None, backed_off: bool) -> None:
        worker, now = self._worker, self._clock()
        about = {"worker": worker.id, "url": worker.url}
        if target is not None and worker.dp_size > 1:
            about["dp_rank"] = str(target.dp_rank)
        if not backed_off:
            if target in self._told:
                self._told.discard(target)
                log.info("worker accepts requests again", **about)
            return
        if now < self._next.get(target, now):
            self._silent[target] = self._silent.get(target, 0) + 1
            return
        self._next[target] = now + _INTERVAL_SECS
        self._told.add(target)
        until = (worker.refusals if target is None else target.refusals).until
        log.warning(
            "worker backed off: it alone answers 4xx, others get its requests; check its key and its model"
            if target is None
            else "worker backed off: it refused a request, or failed one twice; others get its requests for now",
            secs=round(max((until or now) - now, 0.0), 2),
            unlogged_before=self._silent.pop(target, 0),
            **about,
        )
