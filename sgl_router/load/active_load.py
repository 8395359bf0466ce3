"""What every target is working on, kept by guards that are released exactly once however a response ends."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from sgl_router.load.backlog import BacklogEstimate

if TYPE_CHECKING:
    from sgl_router.workers import Target, Worker

__all__ = ["ActiveLoad", "LoadGuard"]

# Requests by which one target's turn at ties may lag behind that of its peers.
_FARTHEST_BEHIND = 16


class LoadGuard:
    """One request's share of its target's load. A context manager: leaving it releases. Releasing twice is harmless."""

    __slots__ = (
        "_adopted",
        "_began",
        "_decode_blocks",
        "_owner",
        "_prefill_tokens",
        "expired",
        "on_expire",
        "started",
        "target",
    )

    def __init__(
        self, owner: ActiveLoad, target: Target, prefill_tokens: int, decode_blocks: int, started: float
    ) -> None:
        self._owner: ActiveLoad | None = owner
        self._prefill_tokens = prefill_tokens
        self._decode_blocks = decode_blocks
        self._began: float | None = None
        self._adopted = False
        self.target = target
        self.started = started
        self.expired = False
        self.on_expire: Callable[[], None] | None = None

    def first_byte(self, *, computed: bool = True) -> None:
        """The prompt is computed: only the decode share remains, and grows. `computed` False: it was refused, which
        tells nothing of the target's speed."""
        owner = self._owner
        if owner is None or self._began is not None:
            return
        target = self.target
        target.prefill_tokens -= self._prefill_tokens
        self._prefill_tokens = 0
        forecast = target.forecast
        if forecast is not None:
            now = owner.clock()
            if computed and not self._adopted:
                forecast.prompts.computed(self, now)
            else:
                forecast.prompts.remove(self, now)
            if computed:
                self._began = now
                forecast.answers.begin(now)

    def release(self, output_tokens: int | None = None) -> None:
        """`output_tokens`: the answer's length, where it is known."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        target = self.target
        target.prefill_tokens -= self._prefill_tokens
        target.decode_blocks -= self._decode_blocks
        target.inflight -= 1
        forecast = target.forecast
        if forecast is not None:
            now = owner.clock()
            forecast.prompts.remove(self, now)
            if self._began is not None:
                forecast.answers.end(self._began, now, None if self._adopted else output_tokens)
        self.on_expire = None
        owner._forget(self)

    def __enter__(self) -> LoadGuard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ActiveLoad:
    """Guards in the order they were taken. Add it as a listener of the registry.

    `forecasts`: models whose targets' work is reckoned in tokens, each with the tokens per second its workers are
    thought to prefill until they have shown it. A target's report of its own load counts for `stale_secs`.
    """

    def __init__(
        self,
        forecasts: Mapping[str, float] | None = None,
        *,
        stale_secs: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._forecasts = forecasts or {}
        self._stale_secs = stale_secs
        self._guards: dict[LoadGuard, None] = {}
        self._selections = itertools.count(1)
        self._workers: set[Worker] = set()
        # By model, while it has workers: when the first request was sent, and the most processed by one target.
        self._at_work_since: dict[str, float] = {}
        self._most: dict[str, int] = {}

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._guards)

    def acquire(
        self, target: Target, *, prefill_tokens: int, decode_blocks: int, now: float, streamed: bool = True
    ) -> LoadGuard:
        """Charge a dispatched request to its target: tokens still to prefill, KV blocks it will hold. `streamed`: its
        first byte will tell when its prompt has been computed."""
        guard = self._charge(target, prefill_tokens, decode_blocks, now)
        forecast = target.forecast
        if forecast is not None:
            forecast.prompts.add(guard, prefill_tokens, streamed=streamed, now=now)
        return guard

    def adopt(
        self, target: Target, *, prefill_tokens: int, decode_blocks: int, now: float, streamed: bool, computed: bool
    ) -> LoadGuard:
        """Charge a request that another process dispatched some time ago; `computed`: its first byte has been. When it
        began nobody here knows: how long its prompt and its answer take teaches nothing of the target's speed."""
        guard = self._charge(target, prefill_tokens, decode_blocks, now)
        guard._adopted = True
        forecast = target.forecast
        if computed:
            guard.first_byte()
        elif forecast is not None:
            forecast.prompts.add(guard, prefill_tokens, streamed=streamed, now=now)
        return guard

    def expire(self, now: float, max_age: float) -> int:
        """Expire every request older than `max_age` seconds: its `on_expire` must end it. Returns how many."""
        overdue = []
        for guard in self._guards:  # oldest first
            if now - guard.started <= max_age:
                break
            if not guard.expired:
                overdue.append(guard)
        for guard in overdue:
            guard.expired = True
            if guard.on_expire is not None:
                guard.on_expire()
        return len(overdue)

    def worker_added(self, worker: Worker) -> None:
        """A newcomer starts level with the least used of its peers: "fewest processed" would otherwise send it every
        tie until it had caught up with their whole history. It is thought to be as fast as they are, and is new only
        by as much as they have been at work before it."""
        peers = [target for peer in self._workers if peer.model_id == worker.model_id for target in peer.targets]
        floor = min((peer.processed for peer in peers), default=0)
        initial = self._forecasts.get(worker.model_id)
        if initial is not None:
            speeds = [peer.forecast.prompts.speed for peer in peers if peer.forecast is not None]
            shown = sorted(speed.tokens_per_sec for speed in speeds if speed.observations)
            initial = shown[len(shown) // 2] if shown else initial
        born = self.clock()
        behind = born - self._at_work_since.get(worker.model_id, born)
        for target in worker.targets:
            target.processed = floor
            if initial is not None:
                target.forecast = BacklogEstimate(initial, born, behind_secs=behind, stale_secs=self._stale_secs)
        self._workers.add(worker)

    def worker_removed(self, worker: Worker) -> None:
        """Requests it still serves keep their guards and release them on the removed incarnation."""
        self._workers.discard(worker)
        if all(peer.model_id != worker.model_id for peer in self._workers):
            self._at_work_since.pop(worker.model_id, None)
            self._most.pop(worker.model_id, None)

    def _charge(self, target: Target, prefill_tokens: int, decode_blocks: int, now: float) -> LoadGuard:
        guard = LoadGuard(self, target, prefill_tokens, decode_blocks, now)
        model_id = target.worker.model_id
        most = self._most.get(model_id)
        if most is None:
            self._at_work_since[model_id] = now
            most = 0
        # Who could not be chosen for a while is ahead at ties now, but not until it has caught up with all it missed:
        # that would send everything to it for as long.
        processed = max(target.processed, most - _FARTHEST_BEHIND) + 1
        if processed > most:
            self._most[model_id] = processed
        target.processed = processed
        target.dispatched += 1
        target.inflight += 1
        target.last_selected = next(self._selections)
        target.prefill_tokens += prefill_tokens
        target.decode_blocks += decode_blocks
        self._guards[guard] = None
        return guard

    def _forget(self, guard: LoadGuard) -> None:
        self._guards.pop(guard, None)
