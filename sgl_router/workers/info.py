"""What introspection finds out about a worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgl_router.discovery.base import WorkerMode
from sgl_router.workers.kv_source import KvEventSource

__all__ = ["WorkerInfo"]


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """Equality is identity of the incarnation: a compared field that differs means another process, or another setup.

    `started_at` is a fingerprint of the process, not a time. Fields that a running server may change are not compared.
    """

    served_model_name: str
    mode: WorkerMode = WorkerMode.PLAIN
    dp_size: int = 1
    block_size: int = 1
    block_size_reported: bool = True  # False: the server does not tell, `block_size` is a guess
    bigram: bool = False
    version: str | None = None
    started_at: float | str | None = None
    kv_source: KvEventSource | None = None
    bootstrap_port: int | None = None
    mode_reported: bool = True  # False: the server has no notion of modes, `mode` is a guess
    max_total_tokens: int | None = field(default=None, compare=False)
    model_path: str | None = field(default=None, compare=False)
    enable_cache_report: bool = field(default=False, compare=False)
    keeps_prefixes: bool = field(default=True, compare=False)  # False: no radix cache, so that no events come
    notes: tuple[str, ...] = field(default=(), compare=False)  # what the operator should know, in sentences
