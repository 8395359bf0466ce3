"""One simulated router: the product's targets, load, index and policy, driven as `routing.LocalRouting` drives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sgl_router.kv_events import BlockTree, PromptMatch, Tier
from sgl_router.kv_events.index.expectation import AFTER_FIRST_BYTE_SECS
from sgl_router.kv_events.index.matched import Matched, MatchGroup
from sgl_router.lab.simulate.brain import PolicyAdapter
from sgl_router.lab.simulate.clock import SimClock, Timer
from sgl_router.lab.simulate.engine import Run
from sgl_router.lab.simulate.fleet import Changes, Fleet
from sgl_router.lab.simulate.job import Job
from sgl_router.lab.simulate.record import Record
from sgl_router.load import ActiveLoad, LoadGuard
from sgl_router.load.reports import LoadReport
from sgl_router.placement import Leg, Unmatched
from sgl_router.policies import PolicyInput
from sgl_router.workers import Target, Worker, WorkerInfo

__all__ = ["RouterModel", "Sent"]


class _Expectation:
    """As `kv_events.Expectation`, on the simulation's clock."""

    def __init__(self, tree: BlockTree, slot: int, keys: Sequence[int], clock: SimClock, ttl_secs: float) -> None:
        self._tree = tree
        self._slot = slot
        self._clock = clock
        self.keys = keys
        self._marks = tree.expect(slot, keys)
        self._timer: Timer | None = clock.later(ttl_secs, self.end)

    @property
    def over(self) -> bool:
        return self._timer is None

    def first_byte(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._clock.later(AFTER_FIRST_BYTE_SECS, self.end)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._tree.unexpect(self._slot, self._marks)


class Sent:
    """A request on its way: what the router knows of it."""

    __slots__ = ("at", "expectation", "guard", "job", "leg", "record")

    def __init__(
        self,
        job: Job,
        leg: Leg,
        at: float,
        guard: LoadGuard,
        expectation: _Expectation | None,
        record: Record,
    ) -> None:
        self.job = job
        self.leg = leg
        self.at = at
        self.guard = guard
        self.expectation = expectation
        self.record = record

    @property
    def target(self) -> Target:
        return self.leg.target

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens to compute, as far as the index knows."""
        return max(self.job.input_tokens - self.leg.matched_tokens, 0)


class RouterModel:
    """`expect_ttl_secs` 0 turns expectations off. `held_tokens` is kept up to date. `done` is told of every request's
    end."""

    def __init__(
        self,
        number: int,
        clock: SimClock,
        fleet: Fleet,
        brain: PolicyAdapter,
        *,
        page_size: int,
        expect_ttl_secs: float,
        held_tokens: dict[Target, int],
        done: Callable[[Record], None],
    ) -> None:
        self.number = number
        self.clock = clock
        self.tree = BlockTree()
        self.load = ActiveLoad(brain.forecasts, clock=clock)
        self._fleet = fleet
        self._page = page_size
        self._ttl = expect_ttl_secs
        self._held_tokens = held_tokens
        self._done = done
        self._policy = brain.policy
        self._observer = brain.observer
        self._slots: dict[Target, int] = {}
        self._expectations: list[list[_Expectation]] = []
        self.candidates: list[Target] = []
        self._group = MatchGroup(page_size)
        for slot in range(len(fleet.workers)):
            info = WorkerInfo(served_model_name="sim", block_size=page_size, max_total_tokens=fleet.cache_tokens)
            worker = Worker(f"http://worker-{slot}", info)
            self.load.worker_added(worker)
            self._slots[worker.targets[0]] = self.tree.acquire()
            self._expectations.append([])
            self.candidates.append(worker.targets[0])
            self._group.add(slot, worker.targets[0])
        self._dispatcher = brain.dispatcher(self, brain.policy)
        fleet.listen(self)

    # --- requests -----------------------------------------------------------------------------------------------

    def arrived(self, job: Job) -> None:
        self._dispatcher.arrived(job)

    def facts(self, job: Job) -> PolicyInput:
        """As `KvIndex.match` and `LocalRouting` would put it."""
        if not self._policy.needs_prompt:
            return PolicyInput(unmatched=Unmatched.NOT_ASKED)
        walk = self.tree.walk(self._group.mask)
        walk.feed(job.prompt_words)
        match = PromptMatch([Matched(self._group, job.reusable, walk.finish())])
        return PolicyInput(match=match, prompt_tokens=job.input_tokens)

    def send(self, job: Job, leg: Leg) -> None:
        target = leg.target
        slot = self._slots[target]
        now = self.clock.now
        record = Record(job, self.number, slot, leg.reason.value, dispatched_at=now)
        if leg.prompt_tokens is not None:
            record.predicted_tokens = leg.matched_tokens
        guard = self.load.acquire(
            target,
            prefill_tokens=leg.uncached_tokens,
            decode_blocks=leg.prompt_blocks,
            now=now,
        )
        expectation = None
        keys = job.keys[: job.reusable]
        if self._ttl and keys and self._policy.needs_prompt and not self.tree.holds(slot, keys[-1]):
            expectation = _Expectation(self.tree, slot, keys, self.clock, self._ttl)
            self._expectations[slot].append(expectation)
        sent = Sent(job, leg, now, guard, expectation, record)
        if self._fleet.workers[slot].submit(job, partial(self._told, sent)) is None:
            guard.release()
            if expectation is not None:
                expectation.end()
            record.worker, record.reason = -1, "too_long"
            self._over(record)
            return
        if self._observer is not None:
            self._observer.dispatched(sent, now)

    def refuse(self, job: Job, reason: str) -> None:
        self._over(Record(job, self.number, reason=reason))

    def _told(self, sent: Sent, run: Run) -> None:
        record, now = sent.record, self.clock.now
        if run.first_token_at == now and record.first_token_at != now:
            record.started_at, record.first_token_at = run.started_at, now
            record.cached_tokens = run.cached_tokens
            sent.guard.first_byte()
            if sent.expectation is not None:
                sent.expectation.first_byte()
            if self._observer is not None:
                self._observer.first_byte(sent, now)
        if run.finished_at is not None:
            record.finished_at = now
            sent.guard.release(sent.job.output_tokens)
            if self._observer is not None:
                self._observer.ended(sent, run.cached_tokens, now)
            self._over(record)
        self._dispatcher.changed()

    def _over(self, record: Record) -> None:
        record.endings += 1
        self._done(record)

    # --- workers ------------------------------------------------------------------------------------------------

    def cache_changed(self, worker: int, changes: Changes) -> None:
        tree, held, target = self.tree, self._held_tokens, self.candidates[worker]
        for stored, keys in changes:
            if stored:
                tree.store(worker, Tier.GPU, keys)
            else:
                tree.remove_many(worker, Tier.GPU, keys)
            held[target] = held.get(target, 0) + (len(keys) if stored else -len(keys)) * self._page
        waiting = self._expectations[worker]
        if waiting:
            for expectation in waiting:
                if not expectation.over and tree.holds(worker, expectation.keys[-1]):
                    expectation.end()
            self._expectations[worker] = [expectation for expectation in waiting if not expectation.over]

    def load_reported(self, worker: int, load: LoadReport) -> None:
        target, now = self.candidates[worker], self.clock.now
        if target.forecast is not None:
            target.forecast.reported(load, now, target.own_tokens(now))
        if self._observer is not None:
            self._observer.load_reported(target, load, now)
        self._dispatcher.changed()
