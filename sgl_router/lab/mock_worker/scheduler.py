"""The engine as a discrete-event model: requests in, timed steps, tokens out. No clock of its own.

A driver alternates `begin_step(now)`, waits until the time it returns, and `end_step(now)`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from sgl_router.lab.mock_worker.lease import CacheLease
from sgl_router.lab.mock_worker.namespace import DEFAULT_NAMESPACE, Namespace
from sgl_router.lab.mock_worker.radix import RadixCache
from sgl_router.lab.mock_worker.timing import TimingModel


class FinishReason(str, Enum):
    """Why a generation ended, spelled as in `finish_reason`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(eq=False)
class EngineRequest:
    """One sequence to generate. `output` is decided beforehand: the model of the mock is a script."""

    rid: str
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    finish: FinishReason = FinishReason.LENGTH
    namespace: Namespace = DEFAULT_NAMESPACE
    session_id: str | None = None
    arrived_at: float = 0.0
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    cached_tokens: int = 0
    host_tokens: int = 0
    prefilled: int = 0
    produced: int = 0
    aborted: bool = False
    lease: CacheLease | None = field(default=None, repr=False)

    @property
    def planned_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def computed(self) -> tuple[int, ...]:
        """The tokens whose KV exists: the last sampled token has none yet."""
        if self.produced:
            return self.prompt + self.output[: self.produced - 1]
        return self.prompt[: self.prefilled]


@dataclass(frozen=True)
class Progress:
    """New tokens of one request, and why it ended if it did."""

    request: EngineRequest
    tokens: tuple[int, ...]
    finish: FinishReason | None


@dataclass(frozen=True)
class StepResult:
    """What a step produced, and whether the engine publishes its cache events now."""

    progress: list[Progress]
    flush_events: bool


@dataclass(frozen=True)
class EngineLoad:
    """A snapshot for load reports."""

    running: int
    waiting: int
    waiting_uncached_tokens: int
    used_tokens: int
    max_tokens: int
    max_running: int


class EngineModel:
    """One rank's scheduler: FIFO queue, chunked prefill before decode, one token per request per decode step."""

    def __init__(
        self,
        cache: RadixCache,
        timing: TimingModel,
        *,
        max_running: int,
        chunked_prefill_size: int,
        queue_limit: int | None = None,
        decode_log_interval: int = 1,
    ) -> None:
        self.cache = cache
        self._timing = timing
        self._max_running = max_running
        self._chunk = chunked_prefill_size
        self._queue_limit = queue_limit
        self._log_interval = decode_log_interval
        self._waiting: deque[EngineRequest] = deque()
        self._prefilling: list[EngineRequest] = []
        self._running: list[EngineRequest] = []
        self._batch: list[tuple[EngineRequest, int]] = []
        self._in_step = False
        self._decode_steps = 0
        self.prefilled_tokens = 0
        self.prefill_secs = 0.0

    @property
    def idle(self) -> bool:
        """Nothing running and nothing waiting."""
        return not (self._waiting or self._prefilling or self._running)

    def load(self) -> EngineLoad:
        """What a load report says now."""
        return EngineLoad(
            running=len(self._prefilling) + len(self._running),
            waiting=len(self._waiting),
            waiting_uncached_tokens=sum(
                len(request.prompt) - self.cache.peek(request.prompt, request.namespace) for request in self._waiting
            ),
            used_tokens=self.cache.reserved_tokens + self.cache.locked_tokens,
            max_tokens=self.cache.capacity or 0,
            max_running=self._max_running,
        )

    @property
    def queued_tokens(self) -> int:
        """Prompts of waiting requests, cached or not."""
        return sum(len(request.prompt) for request in self._waiting)

    def submit(self, request: EngineRequest, now: float) -> bool:
        """Queue a request; False when the queue is full or the request could never fit."""
        if self._queue_limit is not None and len(self._waiting) >= self._queue_limit:
            return False
        capacity = self.cache.capacity
        if capacity is not None and self.cache.round_up(request.planned_tokens) > capacity:
            return False
        request.arrived_at = now
        self._waiting.append(request)
        return True

    def abort(self, matches: Callable[[EngineRequest], bool], now: float) -> list[Progress]:
        """Abort matching requests: waiting ones end here, running ones at the end of the current step."""
        ended = [request for request in self._waiting if matches(request)]
        for request in ended:
            self._waiting.remove(request)
            request.aborted, request.finished_at = True, now
        for request in (*self._prefilling, *self._running):
            request.aborted = request.aborted or matches(request)
        return [Progress(request, (), FinishReason.ABORT) for request in ended]

    def begin_step(self, now: float) -> float | None:
        """Start the next step and return when it ends; None when there is nothing to run."""
        if self._in_step:
            raise RuntimeError("the previous step has not ended")
        self._batch = self._take_prefill_batch(now)
        if self._batch:
            tokens = sum(upto - request.prefilled for request, upto in self._batch)
            duration = self._timing.prefill_secs(tokens)
            self.prefilled_tokens += tokens
            self.prefill_secs += duration
        elif self._running:
            for request in self._running:
                self._hold(request, len(request.prompt) + request.produced)
            duration = self._timing.decode_secs(len(self._running))
        else:
            return None
        self._in_step = True
        return now + duration

    def end_step(self, now: float) -> StepResult:
        """Finish the step begun last."""
        if not self._in_step:
            raise RuntimeError("no step has begun")
        self._in_step = False
        if self._batch:
            return StepResult(self._end_prefill(now), flush_events=True)
        self._decode_steps += 1
        progress = [self._produce(request, now) for request in self._running]
        self._running = [request for request in self._running if request.finished_at is None]
        return StepResult(progress, flush_events=self._decode_steps % self._log_interval == 0)

    def _take_prefill_batch(self, now: float) -> list[tuple[EngineRequest, int]]:
        batch: list[tuple[EngineRequest, int]] = []
        budget = self._chunk
        for request in self._candidates(now):
            upto = min(len(request.prompt), request.prefilled + budget)
            self._hold(request, upto)
            batch.append((request, upto))
            budget -= upto - request.prefilled
            if budget <= 0:
                break
        return batch

    def _candidates(self, now: float) -> Iterable[EngineRequest]:
        """Requests in prefill first, then as many waiting ones as have room, strictly in order."""
        yield from tuple(self._prefilling)
        while self._waiting and len(self._prefilling) + len(self._running) < self._max_running:
            request = self._waiting[0]
            lease = CacheLease.open(
                self.cache,
                request.prompt,
                request.namespace,
                planned_tokens=request.planned_tokens,
                headroom=sum(
                    active.lease.growth_tokens
                    for active in (*self._prefilling, *self._running)
                    if active.lease is not None
                ),
                session_id=request.session_id,
            )
            if lease is None:
                return
            self._waiting.popleft()
            request.lease, request.started_at = lease, now
            request.cached_tokens, request.host_tokens = lease.cached_tokens, lease.host_tokens
            request.prefilled = lease.cached_tokens
            self._prefilling.append(request)
            yield request

    def _end_prefill(self, now: float) -> list[Progress]:
        progress: list[Progress] = []
        for request, upto in self._batch:
            request.prefilled = upto
            if upto < len(request.prompt) and not request.aborted:
                if request.lease is not None:
                    request.lease.commit(request.prompt[:upto])
                continue
            self._prefilling.remove(request)
            if not request.aborted and request.lease is not None:
                request.lease.commit(request.prompt)
            step = self._produce(request, now)
            progress.append(step)
            if step.finish is None:
                self._running.append(request)
        self._batch = []
        return progress

    def _produce(self, request: EngineRequest, now: float) -> Progress:
        """Give a request its next token and end it when that was the last one."""
        if request.aborted:
            return self._finish(request, (), FinishReason.ABORT, now)
        tokens = request.output[request.produced : request.produced + 1]
        request.produced += len(tokens)
        if request.first_token_at is None:
            request.first_token_at = now
        if request.produced < len(request.output):
            return Progress(request, tokens, None)
        return self._finish(request, tokens, request.finish, now)

    def _finish(self, request: EngineRequest, tokens: tuple[int, ...], reason: FinishReason, now: float) -> Progress:
        request.finished_at = now
        if request.lease is not None:
            request.lease.close(request.computed)
        return Progress(request, tokens, reason)

    def _hold(self, request: EngineRequest, tokens: int) -> None:
        # Admission kept room for every admitted request's growth, so this cannot fail.
        if request.lease is None or not request.lease.hold(tokens):
            raise RuntimeError(f"no cache space for admitted request {request.rid}")
