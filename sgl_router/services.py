"""Everything a request handler may use, put together once per process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from sgl_router.descriptors import Descriptors
from sgl_router.errors import ModelNotFound

if TYPE_CHECKING:
    from sgl_router.config import Config, ModelConfig
    from sgl_router.kv_events import KvIndex
    from sgl_router.load import ActiveLoad
    from sgl_router.observability import Metrics
    from sgl_router.policies import Policy
    from sgl_router.routing import Routing
    from sgl_router.tokenization import ModelTokenizer
    from sgl_router.upstream import UpstreamPool
    from sgl_router.workers import WorkerManager, WorkerRegistry

__all__ = ["FleetServices", "InFlight", "Model", "Services"]


@dataclass(frozen=True)
class Model:
    """A configured model with what serves it here."""

    config: ModelConfig
    tokenizer: ModelTokenizer
    policy: Policy

    @property
    def id(self) -> str:
        return self.config.id

    @cached_property
    def session_header(self) -> bytes:
        return self.config.kv_cost.session_header.lower().encode("latin-1")


class InFlight:
    """Counts requests from their first header to their last byte. `with in_flight: ...`"""

    def __init__(self) -> None:
        self.count = 0
        self._idle: asyncio.Event | None = None

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *error: object) -> None:
        self.count -= 1
        if not self.count and self._idle is not None:
            self._idle.set()

    async def drained(self, within_secs: float) -> None:
        """Until nothing is in flight, or `within_secs` have passed."""
        if self.count and within_secs > 0:
            self._idle = asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), within_secs)


@dataclass(kw_only=True)
class Services:
    """One process, one of these. `draining`: shutting down, readiness is off and each connection ends with its next
    response, but requests are still served. `closing`: the port is closed, and idle connections are."""

    config: Config
    models: dict[str, Model]
    registry: WorkerRegistry
    routing: Routing
    pool: UpstreamPool
    metrics: Metrics
    readiness: Callable[[], list[str]]
    """Says why this router is not ready yet, but for draining."""
    worker_api_key: str | None = field(default=None, repr=False)
    descriptors: Descriptors = field(default_factory=Descriptors)
    in_flight: InFlight = field(default_factory=InFlight)
    draining: bool = False
    closing: bool = False
    started_at: float = field(default_factory=time.time)

    def model(self, name: str) -> tuple[Model, str | None]:
        """The model a request names, and the LoRA adapter where it says `model:adapter`. Raises ModelNotFound."""
        model = self.models.get(name)
        if model is not None:
            return model, None
        base, colon, adapter = name.rpartition(":")
        if colon and adapter and base in self.models:
            return self.models[base], adapter
        raise ModelNotFound(f"model {name[:200]!r} is not served here; known models: {sorted(self.models)}", "model")

    def unready(self) -> list[str]:
        """Why requests should not be sent here yet; empty when ready."""
        return ["draining: this router is shutting down"] if self.draining else self.readiness()


@dataclass(kw_only=True)
class FleetServices(Services):
    """Of the process that has the workers, follows their streams and decides."""

    manager: WorkerManager
    index: KvIndex
    load: ActiveLoad
