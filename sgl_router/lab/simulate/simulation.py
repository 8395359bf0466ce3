"""One run: jobs through routers to workers, with one policy."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from sgl_router.config import ModelConfig
from sgl_router.lab.mock_worker.timing import TimingModel
from sgl_router.lab.simulate.brain import PolicyContext
from sgl_router.lab.simulate.catalogue import make_brain
from sgl_router.lab.simulate.clock import SimClock
from sgl_router.lab.simulate.engine import Engine
from sgl_router.lab.simulate.fleet import Fleet
from sgl_router.lab.simulate.job import Job
from sgl_router.lab.simulate.record import Record
from sgl_router.lab.simulate.router import RouterModel

__all__ = ["FleetSettings", "Outcome", "WorkerTotals", "simulate"]


@dataclass(frozen=True)
class FleetSettings:
    """The workers, and what lies between them and the routers. `chunk` None: one whole prompt at a time."""

    workers: int = 8
    cache_tokens: int = 2_000_000
    page_size: int = 512
    prefill_tokens_per_sec: float = 8_000.0
    prefill_overhead_ms: float = 0.0
    decode_ms_per_token: float = 8.0
    decode_ms_per_running: float = 0.1
    max_running: int = 256
    chunk: int | None = None
    routers: int = 1
    event_delay: float = 0.0
    expect_ttl_secs: float = 10.0
    load_report_interval: float | None = None

    @property
    def timing(self) -> TimingModel:
        return TimingModel(
            prefill_tokens_per_sec=self.prefill_tokens_per_sec,
            prefill_overhead_ms=self.prefill_overhead_ms,
            decode_ms_per_token=self.decode_ms_per_token,
            decode_ms_per_running=self.decode_ms_per_running,
        )


@dataclass(frozen=True)
class WorkerTotals:
    """What one worker did."""

    prefill_secs: float
    decode_secs: float
    computed_tokens: int


@dataclass
class Outcome:
    """Everything that came of a run. `records` are in the order of arrival."""

    policy: str
    records: list[Record]
    workers: list[WorkerTotals]
    routers: list[RouterModel] = field(repr=False)


def simulate(
    policy: str,
    jobs: Sequence[Job],
    fleet_settings: FleetSettings,
    *,
    seed: int = 0,
    model: ModelConfig | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Run all jobs to their end. Equal arguments give equal outcomes. KeyError for an unknown policy.

    `model`: the settings of the product's policies; the product's own where there is none.
    """
    clock = SimClock()
    settings = fleet_settings
    engines = [
        Engine(
            settings.timing,
            cache_tokens=settings.cache_tokens,
            page_size=settings.page_size,
            max_running=settings.max_running,
            chunk=settings.chunk,
        )
        for _ in range(settings.workers)
    ]
    fleet = Fleet(
        clock,
        engines,
        event_delay=settings.event_delay,
        load_report_interval=settings.load_report_interval,
        cache_tokens=settings.cache_tokens,
    )
    records: list[Record] = []

    def done(record: Record) -> None:
        records.append(record)
        progress(len(records))

    def router(number: int) -> RouterModel:
        around = PolicyContext(random.Random(f"{seed}/{number}"), clock, {}, settings.prefill_tokens_per_sec)
        return RouterModel(
            number,
            clock,
            fleet,
            make_brain(policy, around, model),
            page_size=settings.page_size,
            expect_ttl_secs=settings.expect_ttl_secs,
            held_tokens=around.held_tokens,
            done=done,
        )

    routers = [router(number) for number in range(settings.routers)]
    balancer = random.Random(f"{seed}/balancer")
    for job in jobs:
        clock.at(job.arrival, partial(balancer.choice(routers).arrived, job))
    fleet.report_loads(lambda: len(records) < len(jobs))
    clock.run()
    records.sort(key=lambda record: record.job.number)
    totals = [WorkerTotals(engine.prefill_secs, engine.decode_secs, engine.computed_tokens) for engine in engines]
    return Outcome(policy, records, totals, routers)
