"""What no policy can beat, to hold the policies against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sgl_router.lab.simulate.cache import pages
from sgl_router.lab.simulate.job import Job
from sgl_router.lab.simulate.measure import Spread, Summary, spread, summarise
from sgl_router.lab.simulate.simulation import FleetSettings, simulate

__all__ = ["FLOOR", "POOLED", "floor", "pooled"]

POOLED = "one_pooled_worker"
FLOOR = "floor"


def pooled(jobs: Sequence[Job], settings: FleetSettings, *, seed: int = 0) -> Summary:
    """One worker with the fleet's cache and speed: what the workers' caches could hit if they were one."""
    count = settings.workers
    jobs = _fitting(jobs, settings)
    whole = replace(
        settings,
        workers=1,
        routers=1,
        cache_tokens=settings.cache_tokens * count,
        prefill_tokens_per_sec=settings.prefill_tokens_per_sec * count,
        prefill_overhead_ms=settings.prefill_overhead_ms / count,
        decode_ms_per_running=settings.decode_ms_per_running / count,
        max_running=settings.max_running * count,
        chunk=None if settings.chunk is None else settings.chunk * count,
    )
    outcome = simulate("round_robin", jobs, whole, seed=seed)
    outcome.policy = POOLED
    return summarise(outcome)


def floor(jobs: Sequence[Job], settings: FleetSettings) -> Summary:
    """No queue at all, and one cache without bounds that holds a request's blocks from its arrival on: what remains is
    the time one worker needs for tokens never seen before."""
    timing, held = settings.timing, set[int]()
    secs, cached = [], 0
    jobs = _fitting(jobs, settings)
    for job in jobs:
        known = 0
        while known < job.reusable and job.keys[known] in held:
            known += 1
        held.update(job.keys)
        cached += known * job.page_size
        secs.append(timing.prefill_secs(job.input_tokens - known * job.page_size))
    none = Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    prompt = sum(job.input_tokens for job in jobs)
    return Summary(FLOOR, len(secs), 0, spread(secs), none, none, cached / prompt if prompt else 0.0, 0.0, None, {}, {})


def _fitting(jobs: Sequence[Job], settings: FleetSettings) -> list[Job]:
    """Those that one worker of the fleet can take: the others are refused whatever the policy."""
    room = settings.cache_tokens // settings.page_size
    return [job for job in jobs if pages(job.input_tokens + job.output_tokens, job.page_size) <= room]
