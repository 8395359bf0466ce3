"""One worker's engine: the mock's scheduler with its idle stretches skipped.

`mock.scheduler.EngineModel` steps token by token. Here decode steps between which nothing can change are one phase, and
prompts are pages instead of tokens; what happens, and when, is the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from sgl_router.lab.mock_worker.lease import CacheLease
from sgl_router.lab.mock_worker.ops import CacheOp
from sgl_router.lab.mock_worker.timing import TimingModel
from sgl_router.lab.simulate.cache import open_lease, page_cache, pages
from sgl_router.lab.simulate.job import Job
from sgl_router.load.reports import LoadReport

__all__ = ["Engine", "Run"]


@dataclass(eq=False)
class Run:
    """A job on one engine."""

    job: Job
    arrived_at: float
    started_at: float = math.nan
    first_token_at: float = math.nan
    finished_at: float | None = None
    cached_tokens: int = 0
    prefilled: int = 0
    produced: int = 0
    lease: CacheLease | None = field(default=None, repr=False)


class Engine:
    """First come, first served; prompts before answers. Time comes in through `begin` and `end`.

    `chunk`: tokens of one prefill step, shared by as many prompts as fit, as the mock does it; None computes one whole
    prompt at a time. `ops` is what the cache did since they were last taken.
    """

    def __init__(
        self,
        timing: TimingModel,
        *,
        cache_tokens: int,
        page_size: int,
        max_running: int,
        chunk: int | None = None,
    ) -> None:
        self.ops: list[CacheOp] = []
        self.cache = page_cache(cache_tokens, page_size, self.ops.append)
        self.ops.clear()  # that it starts empty is no news
        self.prefill_secs = 0.0
        self.decode_secs = 0.0
        self.computed_tokens = 0
        self._timing = timing
        self._page = page_size
        self._max_running = max_running
        self._chunk = chunk
        self._waiting: deque[Run] = deque()
        self._prefilling: list[Run] = []
        self._running: list[Run] = []
        self._promised = 0  # pages that the active ones will have taken at their ends
        self._batch: list[tuple[Run, int]] = []
        self._began = 0.0
        self._step = 0.0
        self._steps = 0

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._prefilling or self._running)

    def load(self) -> LoadReport:
        """What a load report says now."""
        cache, page = self.cache, self._page
        return LoadReport(
            running=len(self._prefilling) + len(self._running),
            waiting=len(self._waiting),
            waiting_uncached_tokens=sum(
                run.job.input_tokens - cache.peek((*run.job.keys[: run.job.reusable], 0)) * page
                for run in self._waiting
            ),
            used_tokens=(cache.reserved_tokens + cache.locked_tokens) * page,
            max_tokens=(cache.capacity or 0) * page,
            max_running=self._max_running,
            prefilled_tokens=self.computed_tokens,
            prefill_busy_secs=self.prefill_secs,
        )

    def submit(self, job: Job, now: float) -> Run | None:
        """Queue a job. None where it could never fit."""
        if self._planned(job) > (self.cache.capacity or 0):
            return None
        run = Run(job, now)
        self._waiting.append(run)
        return run

    def begin(self, now: float) -> float | None:
        """Start what comes next and return when it will end if nobody interrupts it; None where there is nothing."""
        self._batch = self._take_prefill_batch(now)
        self._began = now
        if self._batch:
            tokens = sum(upto - run.prefilled for run, upto in self._batch)
            self._steps = 1
            self._step = self._timing.prefill_secs(tokens)
        elif self._running:
            steps = []
            for run in self._running:
                tokens = run.job.input_tokens + run.produced
                held = pages(tokens, self._page)
                _hold(run, held)
                steps.append(min(run.job.output_tokens - run.produced, held * self._page - tokens + 1))
            self._steps = min(steps)
            self._step = self._timing.decode_secs(len(self._running))
        else:
            return None
        return self._end_of_phase()

    def interrupt(self, now: float) -> float:
        """A job came: the phase ends with the step that runs now. Returns when that is."""
        if not self._batch and self._step > 0:
            # An arrival at the very end of a step finds that step done; float noise must not cost it another.
            done = math.ceil((now - self._began) / self._step - 1e-9)
            self._steps = min(self._steps, max(done, 1))
        return self._end_of_phase()

    def end(self, now: float) -> list[Run]:
        """End the phase. Returns the jobs that got their first token or their last."""
        spent = self._steps * self._step
        if self._batch:
            self.prefill_secs += spent
            return self._end_prefill(now)
        self.decode_secs += spent
        told = []
        for run in self._running:
            run.produced += self._steps
            if run.produced >= run.job.output_tokens:
                self._finish(run, now)
                told.append(run)
        if told:
            self._running = [run for run in self._running if run.finished_at is None]
        return told

    def _end_of_phase(self) -> float:
        return self._began + self._steps * self._step

    def _take_prefill_batch(self, now: float) -> list[tuple[Run, int]]:
        batch: list[tuple[Run, int]] = []
        if not (self._prefilling or self._waiting):
            return batch
        budget = math.inf if self._chunk is None else self._chunk
        for run in self._candidates(now):
            upto = int(min(run.job.input_tokens, run.prefilled + budget))
            _hold(run, pages(upto, self._page))
            batch.append((run, upto))
            budget -= upto - run.prefilled
            if budget <= 0 or self._chunk is None:
                break
        return batch

    def _candidates(self, now: float) -> Iterator[Run]:
        yield from tuple(self._prefilling)
        while self._waiting and len(self._prefilling) + len(self._running) < self._max_running:
            run = self._waiting[0]
            # What the active ones may still ask for is at most all they ever will: mostly there is room even so.
            lease = open_lease(self.cache, run.job, headroom=self._promised)
            if lease is None:
                lease = open_lease(self.cache, run.job, headroom=self._growth())
            if lease is None:
                return
            self._waiting.popleft()
            self._promised += self._planned(run.job)
            run.lease, run.started_at = lease, now
            run.cached_tokens = run.prefilled = lease.cached_tokens * self._page
            self._prefilling.append(run)
            yield run

    def _planned(self, job: Job) -> int:
        return pages(job.input_tokens + job.output_tokens, self._page)

    def _growth(self) -> int:
        active = (*self._prefilling, *self._running)
        return sum(run.lease.growth_tokens for run in active if run.lease is not None)

    def _end_prefill(self, now: float) -> list[Run]:
        told = []
        for run, upto in self._batch:
            self.computed_tokens += upto - run.prefilled
            run.prefilled = upto
            if run.lease is not None:
                run.lease.commit(run.job.keys[: upto // self._page])
            if upto < run.job.input_tokens:
                continue
            self._prefilling.remove(run)
            run.produced, run.first_token_at = 1, now
            told.append(run)
            if run.job.output_tokens > 1:
                self._running.append(run)
            else:
                self._finish(run, now)
        self._batch = []
        return told

    def _finish(self, run: Run, now: float) -> None:
        run.finished_at = now
        self._promised -= self._planned(run.job)
        if run.lease is not None:
            run.lease.close(run.job.keys)


def _hold(run: Run, held: int) -> None:
    # Admission kept room for every admitted job's growth, so this cannot fail.
    if run.lease is None or not run.lease.hold(held):
        raise RuntimeError(f"no cache space for admitted {run.job}")
