"""One deadline per request, moved along as the request progresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from sgl_router.errors import RouterError
from sgl_router.upstream.timer_wheel import SLOTS_PER_SEC, wheel_of

__all__ = ["Deadline"]


class Deadline:
    """Ends the current task with a RouterError when its time is up: `with Deadline() as deadline: deadline.arm(...)`.

    Arming is cheap (no timer of the loop is touched) and re-arming cheaper, so it may be done for every chunk of a
    stream. It fires up to 1/32 s late. On expiry the task is cancelled and leaving the block turns that cancellation
    into the armed error; a cancellation from anywhere else (the client is gone) passes through untouched.
    """

    __slots__ = ("_at", "_error", "_fired", "_looked_at", "_slot", "_task", "_wheel")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a Deadline belongs to a task"
        self._task: asyncio.Task[object] = task
        self._wheel = wheel_of(task.get_loop())
        self._slot = 0
        self._looked_at = _NEVER
        self._error: Callable[[], RouterError] | None = None
        self._fired: RouterError | None = None

    def arm(self, seconds: float, error: Callable[[], RouterError]) -> None:
        """From now on the task has `seconds`; an earlier arming is replaced."""
        now = self._wheel.loop.time()
        self._at = at = now + seconds
        self._error = error
        if at < self._looked_at:
            self._put(now)

    def disarm(self) -> None:
        self._error = None

    def fire(self, error: RouterError) -> None:
        """End the task now. Harmless after the block was left or something else ended it."""
        if self._fired is None and not self._task.done():
            self._fired = error
            self._task.cancel()

    def look(self, now: float) -> None:
        """The wheel's call."""
        self._slot, self._looked_at = 0, _NEVER
        if self._error is None:
            return
        if now >= self._at:
            self.fire(self._error())
        else:
            self._put(now)

    def _put(self, now: float) -> None:
        if self._slot:
            self._wheel.slots[self._slot].discard(self)
        self._slot = self._wheel.put(self, self._at, now)
        self._looked_at = self._slot / SLOTS_PER_SEC

    def __enter__(self) -> Deadline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._slot:
            self._wheel.slots[self._slot].discard(self)
            self._slot = 0
        self._error = None
        fired, self._fired = self._fired, _LEFT
        if fired is None:
            return
        uncancel = getattr(self._task, "uncancel", None)  # Python 3.11 and later count cancellations
        if uncancel is not None:
            uncancel()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            try:
                raise fired from None
            finally:
                del fired, error, trace  # the error holds this frame, which must not hold the error


_NEVER = float("inf")
_LEFT = RouterError("the request was over")
