"""Metric families. What belongs to requests is counted here as it happens; what belongs to workers is in `fleet`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sized
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from sgl_router.errors import ErrorCode
from sgl_router.observability.fleet import FleetCollector
from sgl_router.observability.instruments import Counter, Gauge, Histogram, Levels, Spread
from sgl_router.observability.logs import take_lost_lines

if TYPE_CHECKING:
    from sgl_router.kv_events import KvIndex
    from sgl_router.workers import WorkerRegistry

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)
_BLOCKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)
_LAG = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """One per process. Label values are bounded: routes are templates, models are configured, workers registered.

    Everything is counted in the event loop's thread.
    """

    def __init__(
        self, registry: WorkerRegistry, index: KvIndex | None = None, pending: Callable[[], Sized] = tuple
    ) -> None:
        """`index`: None where no event stream is followed: nothing is then shown of workers. `pending`: the workers
        that should exist and are not registered."""
        self.requests = Counter("sgl_router_requests", "Requests received.", ("route", "method"))
        self.responses = Counter(
            "sgl_router_responses",
            "Requests that are over, by the status of the answer (499: the client left before one began).",
            ("route", "method", "status_code"),
        )
        self.errors = Counter("sgl_router_errors", "Errors the router itself answered, by code.", ("code",))
        for code in ErrorCode:
            self.errors.show(code.value)
        self.duration = Histogram(
            "sgl_router_request_duration_seconds",
            "From the whole request body to the end of the response.",
            ("model_id",),
            buckets=_SECONDS,
        )
        self.ttft = Histogram(
            "sgl_router_ttft_seconds",
            "From the whole request body to the first byte of a streamed answer's body.",
            ("model_id",),
            buckets=_SECONDS,
        )
        self.decision_time = Histogram(
            "sgl_router_decision_seconds",
            "Parsing, rendering, tokenizing, matching and choosing.",
            ("model_id",),
            buckets=(0.0001, 0.00025, 0.0005, *_SECONDS),
        )
        self.overlap = Histogram(
            "sgl_router_overlap_blocks",
            "Blocks of the prompt that the chosen worker held.",
            ("model_id",),
            buckets=_BLOCKS,
        )
        self.prompt_tokens = Counter(
            "sgl_router_prompt_tokens", "Prompt tokens of requests that were decided by their prompt.", ("model_id",)
        )
        self.matched_tokens = Counter(
            "sgl_router_matched_tokens", "Those of them that the chosen worker held, by the index.", ("model_id",)
        )
        self.decisions = Counter(
            "sgl_router_cache_aware_decisions",
            "Decisions of policies that go by the cache, by reason. Another attempt is another decision.",
            ("model_id", "decision"),
        )
        self.stale = Counter(
            "sgl_router_stale_requests",
            "Requests older than the stale bound, by what was left to tell the client.",
            ("outcome",),
        )
        self.prompts = Counter(
            "sgl_router_prompt_cache_prompts",
            "Prompts looked up in the conversation cache, by whether a beginning was known.",
            ("model_id", "result"),
        )
        self.prompt_tokens_reused = Counter(
            "sgl_router_prompt_cache_reused_tokens",
            "Prompt tokens that were not encoded again.",
            ("model_id",),
        )
        self.prompt_evictions = Counter(
            "sgl_router_prompt_cache_evictions",
            "Beginnings dropped to stay within conversation_cache_bytes.",
            ("model_id",),
        )
        self.queue_wait = Histogram(
            "sgl_router_queue_wait_seconds",
            "Time that requests were held back until a worker could take them.",
            ("model_id",),
            buckets=_SECONDS,
        )
        self.queue_outcomes = Counter(
            "sgl_router_queue_outcomes",
            "Requests held back, by how it ended: dispatched, full, timeout, left.",
            ("model_id", "outcome"),
        )
        self.loop_lag = Histogram(
            "sgl_router_event_loop_lag_seconds", "How late the event loop ran a timer that was due.", buckets=_LAG
        )
        self.records_lost = Counter("sgl_router_records_lost", "Requests whose log line could not be written.")
        self.token_checks = Counter(
            "sgl_router_worker_token_checks",
            "New workers whose tokens of a few prompts were compared with the router's, by what came of it.",
            ("outcome",),
        )
        self.tokens_differ = Levels(
            "sgl_router_worker_tokens_differ",
            "1 if a worker's tokens of a few prompts were not the router's: what it has cached is not found.",
            ("worker_url",),
        )
        self.process_restarts = Counter(
            "sgl_router_process_restarts",
            "Processes of this router started again, by why: died, hung.",
            ("process", "cause"),
        )
        self.draining = Gauge("sgl_router_draining", "1 while shutting down.")
        self._models: dict[str, tuple[Spread, Spread, Spread]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(_RequestCollector(self))
        if index is not None:
            self._registry.register(FleetCollector(registry, index, pending))

    def of_model(self, model_id: str) -> tuple[Spread, Spread, Spread]:
        """Duration, decision time and TTFT of a model."""
        found = self._models.get(model_id)
        if found is None:
            found = self._models[model_id] = (
                self.duration.labels(model_id),
                self.decision_time.labels(model_id),
                self.ttft.labels(model_id),
            )
        return found

    def register(self, collector: Collector) -> None:
        """Ask this one too when scraped."""
        self._registry.register(collector)

    def families(self) -> list[Metric]:
        """Every family as it stands now."""
        return list(self._registry.collect())

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

    async def render_aside(self) -> bytes:
        """As `render`, but only the numbers are read here: the text, four fifths of the time, is made in a thread."""
        read = _Read(self.families())
        return await asyncio.get_running_loop().run_in_executor(None, generate_latest, read)


class _Read(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _RequestCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        found = self._metrics
        found.records_lost.inc(take_lost_lines())
        yield found.requests.family()
        yield found.responses.family()
        yield found.errors.family()
        yield found.duration.family()
        yield found.ttft.family()
        yield found.decision_time.family()
        yield found.overlap.family()
        yield found.prompt_tokens.family()
        yield found.matched_tokens.family()
        yield found.decisions.family()
        yield found.stale.family()
        yield found.prompts.family()
        yield found.prompt_tokens_reused.family()
        yield found.prompt_evictions.family()
        yield found.queue_wait.family()
        yield found.queue_outcomes.family()
        yield found.loop_lag.family()
        yield found.records_lost.family()
        yield found.token_checks.family()
        yield found.tokens_differ.family()
        yield found.process_restarts.family()
        yield found.draining.family()
