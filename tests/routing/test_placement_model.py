"""Random histories of a fleet over the real routing, in simulated time, beside books kept the plain way."""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sgl_router.config import KvCostConfig, ModelConfig, PolicyName, QueueConfig
from sgl_router.errors import QueueFull, QueueTimeout
from sgl_router.kv_events import DEFAULT_NAMESPACE, KvIndex, MatchedPrefix, PromptMatch
from sgl_router.load import ActiveLoad
from sgl_router.load.reports import LoadReport
from sgl_router.observability import Metrics
from sgl_router.outcome import Outcome
from sgl_router.policies import make_policy
from sgl_router.routing import DecisionLog, LocalRouting, RouteRequest
from sgl_router.routing.local_lease import LocalLease
from sgl_router.routing.views import lease_view
from sgl_router.workers import BreakerState, CircuitBreaker, HealthState, Target, Worker, WorkerInfo, WorkerRegistry

PAGE = 16
LOOK_SECS = 0.0051
"""The waiting room looks at queues that drain every 5 ms."""


class _Jumps(selectors.SelectSelector):
    """Nothing is waited for: the time that would have passed has passed."""

    passed: Callable[[float], None]

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for something that will never be"
        self.passed(max(timeout, 0.0))
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 1_000.0
        selector = _Jumps()
        selector.passed = self._passed
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def _passed(self, secs: float) -> None:
        self.now += secs


class Expected:
    def __init__(self) -> None:
        self.ends = 0

    def first_byte(self) -> None: ...

    def end(self) -> None:
        self.ends += 1


class Index:
    """Says anything, sometimes at once, of whoever is registered."""

    def __init__(self, rng: random.Random, registry: WorkerRegistry) -> None:
        self.rng = rng
        self.registry = registry
        self.expected: list[Expected] = []

    def match_now(self, model_id: str, prompt: bytes, namespace: object) -> PromptMatch | None:
        return None if self.rng.random() < 0.2 else self.matched(prompt)

    async def match(self, model_id: str, prompt: bytes, namespace: object) -> PromptMatch:
        await asyncio.sleep(self.rng.choice([0, 0.001]))
        return self.matched(prompt)

    def matched(self, prompt: bytes) -> PromptMatch:
        rng, whole = self.rng, (len(prompt) - 1) // PAGE
        targets = [target for worker in self.registry.all() for target in worker.targets]
        held = {}
        for target in targets:
            expected = rng.randint(0, whole) if rng.random() < 0.4 else 0
            if expected:
                blocks = rng.randint(0, expected)
                held[target] = MatchedPrefix(blocks, rng.randint(0, blocks), blocks, expected, PAGE)
        return PromptMatch.stated(held, dict.fromkeys(targets, whole))

    def expect(self, target: Target, match: PromptMatch) -> Expected:
        self.expected.append(Expected())
        return self.expected[-1]

    def sent(self, *what: object) -> None: ...


@dataclass
class Sent:
    """What the books say of one lease; `status` is that of its first byte."""

    target: Target
    prefill_tokens: int
    decode_blocks: int
    status: int | None = None


class Scene:
    """A fleet that changes, clients that come and leave. Everything is drawn from `seed`."""

    def __init__(self, seed: int, policy: PolicyName, *, queue: bool) -> None:
        self.rng = rng = random.Random(seed)
        self.clock = asyncio.get_running_loop().time
        self.queue = QueueConfig(
            enabled=queue,
            max_waiting=rng.choice([1, 3, 1_000]),
            max_wait_secs=rng.choice([0.001, 1.0, 20.0, 600.0]),
            order=rng.choice(["fcfs", "shortest_work_first"]),
            ageing=rng.choice([0.0, 0.1, 1_000.0]),
            release_below_ms=rng.choice([0.0, 20.0, 10_000.0]),
        )
        costs = KvCostConfig(
            prefill_tokens_per_sec=rng.choice([1.0, 1_000.0, 10_000_000.0]),
            max_pressure=rng.choice([0.0, 16.0, 1_000.0]),
            smoothing_secs=rng.choice([0.01, 5.0]),
            eviction_ms_per_1k_tokens=rng.choice([0.0, 5.0]),
            session_bonus_ms=rng.choice([0.0, 50.0]),
            temperature_ms=rng.choice([0.0, 1e-9, 5.0]),
        )
        config = ModelConfig(id="m", tokenizer_path="t", policy=policy, kv_cost=costs, queue=self.queue)
        self.registry = WorkerRegistry()
        self.load = ActiveLoad({"m": costs.prefill_tokens_per_sec}, clock=self.clock)
        self.registry.add_listener(self.load)
        self.index = Index(rng, self.registry)
        self.log = DecisionLog(100_000, rng.choice([0.0, 0.01, 1.0]))
        self.metrics = Metrics(self.registry, KvIndex())
        self.routing = LocalRouting(
            self.registry,
            self.index,  # type: ignore[arg-type]
            self.load,
            {"m": make_policy(config, random.Random(seed), clock=self.clock)},
            self.metrics,
            queues={"m": self.queue} if queue else None,
            decisions=self.log,
            clock=self.clock,
        )
        self.room = self.routing.rooms.get("m")
        self.workers: list[Worker] = []
        self.busy_until: dict[Target, float] = {}
        self.leases: dict[LocalLease, Sent] = {}
        self.outcomes: dict[LocalLease, Outcome] = {}
        self.ended: Counter[str] = Counter()
        self.held = 0
        self.add()

    @property
    def targets(self) -> list[Target]:
        """Of workers that went, too."""
        return [target for worker in self.workers for target in worker.targets]

    # --- what happens -------------------------------------------------------------------------------------------

    def add(self) -> None:
        info = WorkerInfo(served_model_name="m", block_size=PAGE, dp_size=self.rng.choice([1, 1, 2]))
        breaker = CircuitBreaker(self.rng.choice([1, 3]), self.rng.choice([0.5, 5.0]))
        url = f"http://w{len(self.workers)}:1"
        self.workers.append(Worker(url, info, breaker=breaker, health=HealthState.HEALTHY))
        self.registry.add(self.workers[-1])

    def change(self) -> None:
        rng, there = self.rng, self.registry.all()
        if not there or rng.random() < 0.4:
            self.add()
        elif rng.random() < 0.5:
            self.registry.remove(rng.choice(there).url)
        else:
            rng.choice(there).health = rng.choice([HealthState.HEALTHY, HealthState.UNHEALTHY])

    def report(self) -> None:
        """Any report, true some time ago; some are absurd."""
        rng, target = self.rng, self.rng.choice(self.targets)
        most = rng.choice([10_000, 10_000, 2**53])
        report = LoadReport(
            running=rng.randrange(3),
            waiting=rng.choice([0, 0, 1, 5, rng.randrange(most)]),
            used_tokens=rng.choice([None, rng.randrange(most)]),
            waiting_uncached_tokens=rng.choice([None, rng.randrange(most)]),
            prefilled_tokens=rng.choice([None, rng.randrange(most)]),
            prefill_busy_secs=rng.choice([None, rng.random(), rng.randrange(most) / 1e6]),
        )
        if target.forecast is not None and not target.worker.removed:
            target.forecast.reported(report, self.clock() - rng.choice([0.0, 0.5, 100.0]))
            self.routing.changed("m")

    async def request(self) -> None:
        rng = self.rng
        known = rng.random() < 0.9
        ask = RouteRequest(
            model_id="m",
            streamed=rng.random() < 0.7,
            priority=rng.choice([0, 0, 1, -1]),
            session=rng.choice([None, "s"]),
            prompt=bytes(round(10 ** rng.uniform(0, 4.5))) if known else None,  # type: ignore[arg-type]
            namespace=DEFAULT_NAMESPACE if known and rng.random() < 0.9 else None,
        )
        held: list[float] = []
        tried: set[Worker] = set()
        for _ in range(3):
            try:
                lease = await self.routing.choose(ask, tried, on_queued=lambda: held.append(self.clock()))
            except (QueueFull, QueueTimeout) as refused:
                self.ended[refused.code.value] += 1
                latest = held[0] + self.queue.max_wait_secs + 2 * LOOK_SECS
                assert isinstance(refused, QueueFull) or self.clock() < latest
                break
            if lease is None:
                break
            assert lease.placement.prefill.target.worker not in tried
            assert lease.waited_secs == (pytest.approx(self.clock() - held[0], abs=1e-6) if held and not tried else 0.0)
            if await self.attempt(ask, lease) is not Outcome.UNREACHABLE:
                break
            tried.add(lease.placement.prefill.target.worker)
        self.held += len(held)

    async def attempt(self, ask: RouteRequest, lease: LocalLease) -> Outcome:
        decision, outcome = lease.placement.prefill, Outcome.CLIENT_GONE
        tokens = decision.prompt_tokens or 0
        blocks = -(-tokens // max(decision.page_size, 1))
        sent = self.leases[lease] = Sent(decision.target, decision.uncached_tokens, blocks)
        try:
            outcome = await self.answer(ask, lease, sent)
        finally:
            del self.leases[lease]
            self.outcomes[lease] = outcome
            lease.end(outcome, self.rng.choice([None, 0, PAGE]), self.rng.choice([None, 0, 10, 10**12]))
            lease.end(Outcome.INTERNAL)
        return outcome

    async def answer(self, ask: RouteRequest, lease: LocalLease, sent: Sent) -> Outcome:
        """One prompt after the other, at 3,000 tokens a second, some cached that nobody knew of."""
        rng, now = self.rng, self.clock()
        if rng.random() < 0.05:
            return Outcome.UNREACHABLE
        secs = sent.prefill_tokens * rng.choice([1.0, 1.0, 0.0]) / 3_000
        done = self.busy_until[sent.target] = max(self.busy_until.get(sent.target, 0.0), now) + secs
        await asyncio.sleep(min(done - now, 60.0))
        if done - now > 60.0:
            return Outcome.TIMEOUT
        answering = rng.choice([0.0, 0.01, 0.5, 20.0])
        await asyncio.sleep(0.0 if ask.streamed else answering)
        sent.status, sent.prefill_tokens = rng.choice([200] * 9 + [400, 500, 503]), 0
        lease.first_byte(sent.status)
        await asyncio.sleep(answering if ask.streamed else 0.0)
        if sent.status == 200:
            return rng.choice([Outcome.COMPLETED] * 9 + [Outcome.INCOMPLETE])
        return {400: Outcome.CLIENT_ERROR, 500: Outcome.WORKER_ERROR, 503: Outcome.BACK_PRESSURE}[sent.status]

    # --- what must hold -----------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Until everybody who was told something has heard it."""
        for turn in range(200):
            if turn > 3 and len(self.load) == len(self.leases):
                break
            await asyncio.sleep(0)

    def check(self) -> None:
        now = self.clock()
        for target in self.targets:
            here = [sent for sent in self.leases.values() if sent.target is target]
            assert target.inflight == len(here)
            assert target.prefill_tokens == sum(sent.prefill_tokens for sent in here)
            assert target.decode_blocks == sum(sent.decode_blocks for sent in here)
            if target.forecast is not None:
                prompts, answers = target.forecast.prompts, target.forecast.answers
                assert len(prompts) <= sum(sent.status is None for sent in here)
                assert prompts._tokens == sum(tokens for tokens, _ in prompts._prompts.values())
                assert answers.count == sum(sent.status is not None and sent.status < 400 for sent in here)
                assert all(0 <= value < math.inf for value in (prompts.length(now), answers.tokens(now)))
                assert -1e-6 <= prompts.tokens(now) < math.inf
                assert 0 < prompts.speed.tokens_per_sec < math.inf
        assert len(self.load) == len(self.leases)
        for worker in self.workers:
            if worker.breaker.state is BreakerState.HALF_OPEN:
                probes = [
                    lease
                    for lease in self.leases
                    if lease.placement.prefill.target.worker is worker
                    and lease._legs[0]._permit._epoch == worker.breaker.transitions
                    and not lease._legs[0]._permit.settled
                ]
                assert len(probes) == worker.breaker._probing

    async def check_line(self) -> None:
        """Nobody waits for long while some target that may be chosen has room."""
        room = self.room
        if room is None or not len(room):
            return
        assert len(room) == len(room._entered) == len(room._line._order) <= self.queue.max_waiting
        before = set(room._entered)
        if room._line.has_room(self.registry.candidates("m", self.clock()), self.clock()):
            await asyncio.sleep(LOOK_SECS)
            await self.settle()
            candidates = self.registry.candidates("m", self.clock())
            assert not (before <= set(room._entered) and room._line.has_room(candidates, self.clock()))

    async def play(self, steps: int) -> None:
        rng, tasks = self.rng, []
        for _ in range(steps):
            chance = rng.random()
            if chance < 0.6:
                tasks += [asyncio.create_task(self.request()) for _ in range(rng.choice([1, 1, 5, 20]))]
            elif chance < 0.75 and tasks:
                rng.choice(tasks).cancel()
            elif chance < 0.85:
                self.change()
            else:
                self.report()
            await asyncio.sleep(rng.choice([0.0, 0.0, 0.004, 0.05, 3.0]))
            await self.settle()
            self.check()
            await self.check_line()
        for task in tasks if rng.random() < 0.3 else []:
            task.cancel()
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if found is not None and not isinstance(found, asyncio.CancelledError):
                raise found
        self.check_end()
        await asyncio.sleep(11.0)  # by when reports are stale
        now = self.clock()
        for target in self.targets:
            forecast = target.forecast
            assert forecast is None or forecast.prompts.tokens(now) == forecast.answers.tokens(now) == 0

    def check_end(self) -> None:
        self.check()
        assert not self.leases
        assert all(expected.ends <= 1 for expected in self.index.expected)
        for lease in self.log.last(100_000):  # who was cancelled in the turn of the dispatch never had a lease
            view, outcome = lease_view(lease), self.outcomes.get(lease, Outcome.CLIENT_GONE)
            assert (view["outcome"], lease._legs) == (outcome.value, ())
        if self.room is not None:
            assert not len(self.room) and not self.room._entered
            counts = {how: self.metrics.queue_outcomes.labels("m", how).value for how in ("full", "timeout")}
            assert counts == {"full": self.ended["queue_full"], "timeout": self.ended["queue_timeout"]}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("policy", "queue"),
    [(PolicyName.KV_COST, True), *[(policy, False) for policy in PolicyName]],
    ids=["queue", *[policy.value for policy in PolicyName]],
)
def test_the_books_are_right_whatever_happens(policy: PolicyName, queue: bool, seed: int) -> None:
    loop, reported = SimulatedLoop(), []
    loop.set_exception_handler(lambda _, context: reported.append(context))

    async def play() -> None:
        await Scene(seed, policy, queue=queue).play(40)

    try:
        loop.run_until_complete(play())
    finally:
        loop.close()
    assert not reported
