"""The routing process's side of the socket: decides for all data processes, and holds what they have in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from sgl_router.routing.remote.keys import hashing_of
from sgl_router.routing.remote.messages import Fleet, Message, Readiness, WorkerGone, WorkerState
from sgl_router.routing.remote.session import DataSession
from sgl_router.workers.worker import HealthState, Worker

if TYPE_CHECKING:
    from sgl_router.kv_events import KvIndex
    from sgl_router.load import ActiveLoad
    from sgl_router.routing import LocalRouting
    from sgl_router.workers import WorkerRegistry

__all__ = ["RoutingServer"]

log = structlog.get_logger(__name__)

# A registration is pushed at once. What is looked for here can wait: on a health that changed only the fallback's
# candidates depend, and a new kind of key is found cold until it is known.
_LOOK_SECS = 0.1


class RoutingServer:
    """Make it before or after the first worker; it listens to the registry from then on."""

    def __init__(
        self,
        routing: LocalRouting,
        registry: WorkerRegistry,
        load: ActiveLoad,
        index: KvIndex,
        *,
        merge: Callable[[bytes], None] = lambda delta: None,
        readiness: Callable[[], Readiness] = lambda: Readiness([], 0.0),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.routing = routing
        self.registry = registry
        self.load = load
        self._index = index
        self._hashing = hashing_of(index)
        self.merge = merge
        """Takes the counts that data processes send."""
        self._readiness = readiness
        self._told_readiness = readiness()
        self.clock = clock
        self.by_generation: dict[int, Worker] = {}
        self._told_health: dict[Worker, tuple[HealthState, bool]] = {}
        self._sides: set[DataSession] = set()
        self._server: asyncio.AbstractServer | None = None
        self._looking: asyncio.TimerHandle | None = None
        for worker in registry.all():
            self._know(worker)
        registry.add_listener(self)

    @property
    def connected(self) -> int:
        """Data processes on the line."""
        return len(self._sides)

    async def start(self, path: str) -> None:
        """Listen on a unix socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: DataSession(self).link, path)
        self._look()

    async def close(self) -> None:
        """Cut every data process off; their leases end here."""
        if self._looking is not None:
            self._looking.cancel()
        if self._server is not None:
            self._server.close()
        for side in list(self._sides):
            await side.link.close()

    # --- sides --------------------------------------------------------------------------------------------------

    def joined(self, side: DataSession) -> None:
        self._look_now()
        self._sides.add(side)
        side.link.send(self._hashing)
        side.link.send(self._told_readiness)
        side.link.send(Fleet([self._state(worker) for worker in self.registry.all()]))

    def left(self, side: DataSession) -> None:
        self._sides.discard(side)

    def _tell(self, message: Message) -> None:
        for side in self._sides:
            side.link.send(message)

    # --- workers ------------------------------------------------------------------------------------------------

    def worker_added(self, worker: Worker) -> None:
        self._know(worker)
        self._tell(self._state(worker))
        for side in self._sides:
            side.worker_added(worker)

    def worker_removed(self, worker: Worker) -> None:
        self.by_generation.pop(worker.generation, None)
        self._told_health.pop(worker, None)
        self._tell(WorkerGone(worker.generation))

    def _know(self, worker: Worker) -> None:
        self.by_generation[worker.generation] = worker
        self._told_health[worker] = self._health(worker)

    def _look(self) -> None:
        self._look_now()
        self._looking = asyncio.get_running_loop().call_later(_LOOK_SECS, self._look)

    def _look_now(self) -> None:
        hashing = hashing_of(self._index)
        if hashing != self._hashing:
            self._hashing = hashing
            self._tell(hashing)
        readiness = self._readiness()
        if readiness != self._told_readiness:
            self._told_readiness = readiness
            self._tell(readiness)
        for worker, told in self._told_health.items():
            if (health := self._health(worker)) != told:
                self._told_health[worker] = health
                self._tell(self._state(worker))

    def _health(self, worker: Worker) -> tuple[HealthState, bool]:
        return worker.health, worker.busy(self.clock())

    def _state(self, worker: Worker) -> WorkerState:
        health, busy = self._health(worker)
        return WorkerState(
            generation=worker.generation,
            url=worker.url,
            model_id=worker.model_id,
            mode=worker.mode,
            dp_size=worker.dp_size,
            block_size=worker.info.block_size,
            started_at=worker.info.started_at,
            health=health,
            busy=busy,
        )
