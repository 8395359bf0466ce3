"""What belongs to workers: read off the registry and the index at scrape time, so that a removed worker's series
disappear with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sgl_router.kv_events import DecodeFailure, StreamState
from sgl_router.kv_events.follow.repair import RepairOutcome
from sgl_router.workers import BreakerState, HealthState, WorkerMode

if TYPE_CHECKING:
    from sgl_router.kv_events import KvIndex
    from sgl_router.workers import WorkerRegistry

__all__ = ["FleetCollector"]

# Fields of `StreamCounters`.
_EVENT_KINDS = (
    "stored",
    "removed",
    "cleared",
    "orphans",
    "unindexed",
    "other_page",
    "other_group",
    "left_out",
    "skipped",
)
_BREAKER = {BreakerState.CLOSED: 0, BreakerState.OPEN: 1, BreakerState.HALF_OPEN: 2}


class FleetCollector(Collector):
    """Workers, their load, health, breakers, event streams and cached blocks, as they are at scrape time.

    Faults are there before they happen: see `Counter.show`.
    """

    def __init__(self, registry: WorkerRegistry, index: KvIndex, pending: Callable[[], Sized] = tuple) -> None:
        self._workers = registry
        self._index = index
        self._pending = pending

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        workers = self._workers.all()
        count = GaugeMetricFamily("sgl_router_workers", "Registered workers.", labels=("mode",))
        for mode in WorkerMode:
            count.add_metric((mode.value,), sum(worker.mode is mode for worker in workers))
        yield count
        yield GaugeMetricFamily(
            "sgl_router_workers_pending",
            "Configured workers that are not registered: they have not answered yet.",
            value=len(self._pending()),
        )

        outcomes = CounterMetricFamily(
            "sgl_router_worker_requests",
            "Requests sent to a worker, by how they ended.",
            labels=("worker_url", "model_id", "mode", "outcome"),
        )
        load = GaugeMetricFamily(
            "sgl_router_active_load",
            "What a worker is working on: requests, prompt tokens still to prefill, KV blocks of running requests.",
            labels=("worker_url", "kind"),
        )
        health = GaugeMetricFamily("sgl_router_worker_health", "1 if healthy.", labels=("worker_url",))
        breaker = GaugeMetricFamily(
            "sgl_router_worker_cb_state", "Circuit breaker: 0 closed, 1 open, 2 half-open.", labels=("worker_url",)
        )
        backed_off = GaugeMetricFamily(
            "sgl_router_worker_backed_off",
            "1 while a rank that refused requests gets no more than one at a time to try, or none.",
            labels=("worker_url", "dp_rank"),
        )
        inflight = GaugeMetricFamily(
            "sgl_router_worker_inflight_requests", "Requests in flight.", labels=("worker_url",)
        )
        for worker in workers:
            url = worker.url
            for outcome, value in worker.stats.requests.items():
                outcomes.add_metric((url, worker.model_id, worker.mode.value, outcome), value)
            requests = sum(target.inflight for target in worker.targets)
            load.add_metric((url, "requests"), requests)
            load.add_metric((url, "prefill_tokens"), sum(target.prefill_tokens for target in worker.targets))
            load.add_metric((url, "decode_blocks"), sum(target.decode_blocks for target in worker.targets))
            health.add_metric((url,), worker.health is HealthState.HEALTHY)
            breaker.add_metric((url,), _BREAKER[worker.breaker.state])
            for target in worker.targets:
                held = worker.refusals.until is not None or target.refusals.until is not None
                backed_off.add_metric((url, str(target.dp_rank)), held)
            inflight.add_metric((url,), requests)
        yield from (outcomes, load, health, breaker, backed_off, inflight)
        yield from self._events()

    def _events(self) -> Iterable[Metric]:
        events = CounterMetricFamily(
            "sgl_router_kv_events",
            "Cache events, in blocks (cleared: times), by what they were or why they were not indexed.",
            labels=("worker_url", "dp_rank", "kind"),
        )
        untrusted = GaugeMetricFamily(
            "sgl_router_kv_event_stream_untrusted",
            "1 while a stream's claims are withheld: events were lost, or its connection broke.",
            labels=("worker_url", "dp_rank"),
        )
        blocks = GaugeMetricFamily(
            "sgl_router_kv_tree_blocks", "Blocks a rank holds.", labels=("worker_url", "dp_rank", "tier")
        )
        expected = GaugeMetricFamily(
            "sgl_router_kv_tree_expected_blocks",
            "Blocks that dispatched requests will make a rank hold; not counted as held.",
            labels=("worker_url", "dp_rank"),
        )
        lag = GaugeMetricFamily(
            "sgl_router_kv_event_lag_seconds",
            "From the publication of the last batch (the worker's clock) to its being taken up here.",
            labels=("worker_url", "dp_rank"),
        )
        agreement = GaugeMetricFamily(
            "sgl_router_kv_agreement",
            "Share of recent predicted hits that the worker's own cached_tokens confirmed.",
            labels=("worker_url", "dp_rank"),
        )
        predictions = CounterMetricFamily(
            "sgl_router_kv_predictions",
            "Answers that reported cached_tokens, by how that compares with the prediction.",
            labels=("worker_url", "dp_rank", "result"),
        )
        given_up = CounterMetricFamily(
            "sgl_router_kv_claims_given_up",
            "Times claims were given up because the worker's own cached_tokens contradicted them, by whose.",
            labels=("worker_url", "dp_rank", "of"),
        )
        coverage = GaugeMetricFamily(
            "sgl_router_kv_coverage",
            "Share of recent answers with cached tokens of which the index knew.",
            labels=("worker_url", "dp_rank"),
        )
        silent = GaugeMetricFamily(
            "sgl_router_kv_events_silent",
            "1 while a rank computes prompts and publishes no stores that can be indexed.",
            labels=("worker_url", "dp_rank"),
        )
        for worker in self._workers.all():
            for rank in self._index.status(worker):
                labels = (worker.url, str(rank.dp_rank))
                for kind in _EVENT_KINDS:
                    events.add_metric((*labels, kind), getattr(rank.stream.counters, kind))
                withheld = rank.state in (StreamState.UNTRUSTED, StreamState.SUSPENDED)
                untrusted.add_metric(labels, withheld)
                for tier, held in rank.blocks.items():
                    blocks.add_metric((*labels, tier), held)
                expected.add_metric(labels, rank.expected_blocks)
                lag.add_metric(labels, rank.lag_secs)
                agreement.add_metric(labels, rank.agreement.score)
                for outcome, value in rank.agreement.counts.items():
                    predictions.add_metric((*labels, outcome.value), value)
                for verdict, value in rank.agreement.given_up.items():
                    given_up.add_metric((*labels, verdict.value), value)
                coverage.add_metric(labels, rank.witness.coverage.score)
                silent.add_metric(labels, rank.witness.silent)
        yield from (events, untrusted, blocks, expected, lag, agreement, predictions, given_up, coverage, silent)

        totals = self._index.totals
        failures = CounterMetricFamily(
            "sgl_router_kv_event_decode_failures", "Event frames refused, by reason.", labels=("reason",)
        )
        for reason in DecodeFailure:
            failures.add_metric((reason.value,), totals.failures.get(reason, 0))
        yield failures
        yield CounterMetricFamily(
            "sgl_router_kv_event_sequence_gaps", "Times frames were missing from a stream.", value=totals.gaps
        )
        yield CounterMetricFamily(
            "sgl_router_kv_event_missing_sequences", "Frames missing from streams.", value=totals.missing
        )
        repairs = CounterMetricFamily(
            "sgl_router_kv_event_repairs", "Replays of missed events, by how they ended.", labels=("outcome",)
        )
        for repair in RepairOutcome:
            repairs.add_metric((repair.value,), totals.repairs.get(repair, 0))
        yield repairs
        checks = CounterMetricFamily(
            "sgl_router_kv_event_quiet_checks",
            "Quiet streams whose worker was asked whether frames were lost, by what came of it.",
            labels=("outcome",),
        )
        for found, value in self._index.quiet.outcomes.items():
            checks.add_metric((found.value,), value)
        yield checks
        ranks = CounterMetricFamily(
            "sgl_router_kv_snapshot_ranks",
            "Ranks at a start from a snapshot, by what became of them.",
            labels=("outcome",),
        )
        for became, value in self._index.warm.outcomes.items():
            ranks.add_metric((became.value,), value)
        yield ranks
        kept = self._index.bound.blocks
        yield GaugeMetricFamily(
            "sgl_router_kv_index_blocks", "Blocks the index keeps; one on two ranks counts twice.", value=kept
        )
        size = self._index.memory_bytes()
        yield GaugeMetricFamily("sgl_router_kv_index_bytes", "What they take, reckoned from table sizes.", value=size)
        yield GaugeMetricFamily(
            "sgl_router_kv_index_bytes_per_block", "The same per block.", value=size / kept if kept else 0.0
        )
        yield CounterMetricFamily(
            "sgl_router_kv_index_forgotten_blocks",
            "Blocks forgotten to stay within kv_events.max_blocks.",
            value=self._index.bound.forgotten,
        )
        yield GaugeMetricFamily(
            "sgl_router_kv_event_backlog_streams", "Streams with events waiting.", value=self._index.pump.backlog
        )
        yield CounterMetricFamily(
            "sgl_router_kv_event_resyncs", "Times an untrusted stream started over.", value=totals.resyncs
        )
        yield CounterMetricFamily(
            "sgl_router_kv_event_publisher_resets", "Publishers seen to start anew.", value=totals.restarts
        )
