"""The fleet: what each worker is, whether it is alive, and which may be given a request."""

from __future__ import annotations

from sgl_router.workers.breaker import BreakerState, CircuitBreaker, Permit
from sgl_router.workers.info import WorkerInfo
from sgl_router.workers.introspect import IntrospectionError, introspect
from sgl_router.workers.kv_source import KvEventSource
from sgl_router.workers.manager import WorkerManager, worker_api_key
from sgl_router.workers.monitor import PendingWorker
from sgl_router.workers.registry import RegistryListener, WorkerRegistry
from sgl_router.workers.worker import HealthState, Target, Worker, WorkerMode, WorkerStats, worker_id

__all__ = [
    "BreakerState",
    "CircuitBreaker",
    "HealthState",
    "IntrospectionError",
    "KvEventSource",
    "PendingWorker",
    "Permit",
    "RegistryListener",
    "Target",
    "Worker",
    "WorkerInfo",
    "WorkerManager",
    "WorkerMode",
    "WorkerRegistry",
    "WorkerStats",
    "introspect",
    "worker_api_key",
    "worker_id",
]
