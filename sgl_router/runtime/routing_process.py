"""The routing process: a whole router on a unix socket, and the leases of the data processes."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from sgl_router.config import Config
from sgl_router.policies import Policy, make_policy
from sgl_router.routing.remote.messages import Readiness
from sgl_router.routing.remote.server import RoutingServer
from sgl_router.runtime.control import Cause, Control
from sgl_router.runtime.daemon import Daemon
from sgl_router.runtime.lifecycle import freeze_start_up
from sgl_router.runtime.metric_deltas import merge
from sgl_router.runtime.paths import Paths
from sgl_router.services import Model
from sgl_router.workers import HealthState, Target

if TYPE_CHECKING:
    from sgl_router.services import FleetServices

__all__ = ["run_routing"]

log = structlog.get_logger(__name__)

_SETTLE_SECS = 5.0
_LOOK_SECS = 0.02


async def run_routing(config: Config, paths: Paths, control: Control) -> int:
    """Until the supervisor says stop. Data processes are let in once the workers have been asked who they are: what
    they knew before is better than an empty registry."""
    restarts: dict[tuple[str, str], int] = {}
    control.restarted = lambda name, cause, count: restarts.update({(name, cause): count})
    await control.start()
    daemon = Daemon(config, inner=_inner_socket(paths), models=_without_tokenizers)
    await daemon.start()
    freeze_start_up()
    services = daemon.services
    control.restarted = lambda name, cause, count: _show_restart(services, (name, cause), count)
    for name in ("routing", *(f"data-{number}" for number in range(config.server.processes))):
        for cause in Cause:
            services.metrics.process_restarts.show(name, cause.value)
    for labels, count in restarts.items():
        _show_restart(services, labels, count)
    server = RoutingServer(
        daemon.routing,
        services.registry,
        services.load,
        services.index,
        merge=lambda delta: merge(services.metrics, delta),
        readiness=lambda: Readiness(services.unready(), services.started_at),
    )
    await _settled(services)
    await server.start(paths.leases)
    control.ready()
    log.info("routing process ready", workers=len(services.registry))
    await control.drain()
    daemon.drain()
    await control.stop()
    await server.close()
    await daemon.stop()
    return 0


async def _without_tokenizers(
    config: Config, rng: random.Random, held_tokens: Callable[[Target], int]
) -> tuple[dict[str, Model], dict[str, Policy]]:
    """Only data processes render and tokenize: starting takes a third of the time."""
    return {}, {model.id: make_policy(model, rng, held_tokens=held_tokens) for model in config.models}


def _show_restart(services: FleetServices, labels: tuple[str, str], count: int) -> None:
    services.metrics.process_restarts.labels(*labels).value = count


def _inner_socket(paths: Paths) -> socket.socket:
    for left_behind in (paths.http, paths.leases):
        Path(left_behind).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(paths.http)
    return listener


async def _settled(services: FleetServices) -> None:
    for _ in range(int(_SETTLE_SECS / _LOOK_SECS)):
        if _tried(services):
            return
        await asyncio.sleep(_LOOK_SECS)


def _tried(services: FleetServices) -> bool:
    """Whether every worker that should exist has answered, or failed to, and has replayed what it is going to."""
    workers, pending = services.registry.all(), services.manager.status()
    if not workers and not pending:
        return False  # discovery has not spoken yet
    if any(one.attempts == 0 for one in pending):
        return False
    return not any(worker.health is HealthState.STARTING or services.index.warming(worker) for worker in workers)
