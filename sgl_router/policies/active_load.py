"""What every target is working on, kept by guards that are released exactly once however a response ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.workers import Target, Worker

__all__ = ["ActiveLoad", "LoadGuard"]


class LoadGuard:
    """One request's share of its target's load. A context manager: leaving it releases. Releasing twice is harmless."""

    __slots__ = ("_decode_blocks", "_owner", "_prefill_tokens", "expired", "on_expire", "started", "target")

    def __init__(
        self, owner: ActiveLoad, target: Target, prefill_tokens: int, decode_blocks: int, started: float
    ) -> None:
        self._owner: ActiveLoad | None = owner
        self._prefill_tokens = prefill_tokens
        self._decode_blocks = decode_blocks
        self.target = target
        self.started = started
        self.expired = False
        self.on_expire: Callable[[], None] | None = None

    def first_byte(self) -> None:
        """The prompt is computed: only the decode share remains."""
        self.target.prefill_tokens -= self._prefill_tokens
        self._prefill_tokens = 0

    def release(self) -> None:
        owner, self._owner = self._owner, None
        if owner is None:
            return
        self.first_byte()
        target = self.target
        target.decode_blocks -= self._decode_blocks
        target.inflight -= 1
        self.on_expire = None
        owner._forget(self)

    def __enter__(self) -> LoadGuard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ActiveLoad:
    """Guards in the order they were taken. Add it as a listener of the registry."""

    def __init__(self) -> None:
        self._guards: dict[LoadGuard, None] = {}
        self._selections = itertools.count(1)
        self._workers: set[Worker] = set()

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._guards)

    def acquire(self, target: Target, *, prefill_tokens: int, decode_blocks: int, now: float) -> LoadGuard:
        """Charge a dispatched request to its target: tokens still to prefill, KV blocks it will hold."""
        guard = LoadGuard(self, target, prefill_tokens, decode_blocks, now)
        target.inflight += 1
        target.processed += 1
        target.last_selected = next(self._selections)
        target.prefill_tokens += prefill_tokens
        target.decode_blocks += decode_blocks
        self._guards[guard] = None
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
        tie until it had caught up with their whole history."""
        peers = [target for peer in self._workers if peer.model_id == worker.model_id for target in peer.targets]
        floor = min((peer.processed for peer in peers), default=0)
        for target in worker.targets:
            target.processed = floor
        self._workers.add(worker)

    def worker_removed(self, worker: Worker) -> None:
        """Requests it still serves keep their guards and release them on the removed incarnation."""
        self._workers.discard(worker)

    def _forget(self, guard: LoadGuard) -> None:
        self._guards.pop(guard, None)
