"""Prefill work ahead at each worker, as a router can reckon it: what it sent, less what must be done by now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.lab.simulate.router import Sent
    from sgl_router.load.reports import LoadReport
    from sgl_router.workers import Target

__all__ = ["DrainingBacklog"]


class _Queue:
    __slots__ = ("head_since", "prompts", "tokens")

    def __init__(self) -> None:
        self.prompts: dict[Sent, None] = {}
        self.tokens = 0
        self.head_since = 0.0


class DrainingBacklog:
    """An observer. The oldest prompt without a first byte drains at a known speed, the others wait for their turn: a
    worker that is slower than thought, or busy for another router, does not look empty while prompts are out."""

    def __init__(self, clock: Callable[[], float], prefill_tokens_per_sec: float) -> None:
        self._clock = clock
        self._speed = prefill_tokens_per_sec
        self._queues: dict[Target, _Queue] = {}

    def tokens(self, target: Target) -> float:
        queue = self._queues.get(target)
        if queue is None or not queue.prompts:
            return 0.0
        head = next(iter(queue.prompts)).uncached_tokens
        return queue.tokens - min((self._clock() - queue.head_since) * self._speed, head)

    def dispatched(self, sent: Sent, now: float) -> None:
        queue = self._queues.setdefault(sent.target, _Queue())
        if not queue.prompts:
            queue.head_since = now
        queue.prompts[sent] = None
        queue.tokens += sent.uncached_tokens

    def first_byte(self, sent: Sent, now: float) -> None:
        queue = self._queues[sent.target]
        if sent is next(iter(queue.prompts)):
            queue.head_since = now
        del queue.prompts[sent]
        queue.tokens -= sent.uncached_tokens

    def ended(self, sent: Sent, cached_tokens: int, now: float) -> None:
        pass

    def load_reported(self, target: Target, load: LoadReport, now: float) -> None:
        pass
