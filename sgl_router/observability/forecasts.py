"""What the cost policy goes by, for scrapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from sgl_router.load.reports import LoadWatch
    from sgl_router.workers import WorkerRegistry

__all__ = ["ForecastCollector"]

_TARGET = ["worker", "dp_rank", "model_id"]


class ForecastCollector(Collector):
    """`rooms`: by model, the requests held back."""

    def __init__(self, registry: WorkerRegistry, rooms: Mapping[str, Sized], watch: LoadWatch | None) -> None:
        self._workers = registry
        self._rooms = rooms
        self._watch = watch

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        now = monotonic()
        waiting = GaugeMetricFamily(
            "sgl_router_queue_waiting", "Requests held back until a worker can take them.", labels=["model_id"]
        )
        for model_id, room in self._rooms.items():
            waiting.add_metric([model_id], len(room))
        backlog = GaugeMetricFamily(
            "sgl_router_prefill_backlog_tokens", "Prompt tokens a rank has still to compute, reckoned.", labels=_TARGET
        )
        speed = GaugeMetricFamily(
            "sgl_router_prefill_tokens_per_second", "Prefill speed of a rank, learned.", labels=_TARGET
        )
        for worker in self._workers.all():
            for target in worker.targets:
                if target.forecast is not None:
                    prompts, labels = target.forecast.prompts, [worker.id, str(target.dp_rank), worker.model_id]
                    backlog.add_metric(labels, prompts.tokens(now))
                    speed.add_metric(labels, prompts.speed.tokens_per_sec)
        yield waiting
        yield backlog
        yield speed
        reports = CounterMetricFamily(
            "sgl_router_load_reports", "Workers' reports of their own load.", labels=["source", "outcome"]
        )
        if self._watch is not None:
            for (source, outcome), count in self._watch.counts.items():
                reports.add_metric([source.value, outcome.value], count)
        yield reports
