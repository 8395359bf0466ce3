"""What dispatched requests are about to make workers hold: known before the workers' own events say so.

A burst of requests with one new prefix would otherwise scatter, each finding it nowhere. An expectation is no truth:
it is never counted as held, and it ends when the worker's events arrive, the request fails, or its time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from .tree import BlockTree

__all__ = ["Expectation"]

# Prompt blocks leave the engine right after their prefill; a first byte means that prefill is done.
AFTER_FIRST_BYTE_SECS = 1.0


class Expectation:
    """One dispatched prompt's blocks on one slot."""

    __slots__ = ("_done", "_slot", "_timer", "_tree", "keys")

    def __init__(
        self,
        tree: BlockTree,
        slot: int,
        keys: Sequence[int],
        *,
        ttl_secs: float,
        done: Callable[[Expectation], None],
    ) -> None:
        self._tree = tree
        self._slot = slot
        tree.expect(slot, keys)
        self._done: Callable[[Expectation], None] | None = done
        self.keys = keys
        self._timer = asyncio.get_running_loop().call_later(ttl_secs, self.end)

    def first_byte(self) -> None:
        """The prompt is computed: its events are on their way, or the engine publishes none."""
        if self._done is not None:
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(AFTER_FIRST_BYTE_SECS, self.end)

    def end(self) -> None:
        """Expect nothing more. Idempotent."""
        done, self._done = self._done, None
        if done is None:
            return
        self._timer.cancel()
        self._tree.unexpect(self._slot, self.keys)
        done(self)
