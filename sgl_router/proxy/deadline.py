"""One timer per request, moved along as the request progresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from sgl_router.errors import RouterError

__all__ = ["Deadline"]


class Deadline:
    """Ends the current task with a RouterError when its time is up: `with Deadline() as deadline: deadline.arm(...)`.

    Re-arming is cheap (the loop's timer is moved lazily), so it may be done for every chunk of a stream. On expiry the
    task is cancelled and leaving the block turns that cancellation into the armed error; a cancellation from anywhere
    else (the client is gone) passes through untouched.
    """

    __slots__ = ("_at", "_error", "_fired", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "a Deadline belongs to a task"
        self._task: asyncio.Task[object] = task
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._error: Callable[[], RouterError] | None = None
        self._fired: RouterError | None = None

    def arm(self, seconds: float, error: Callable[[], RouterError]) -> None:
        """From now on the task has `seconds`; an earlier arming is replaced."""
        self._at = self._loop.time() + seconds
        self._error = error
        if self._timer is None:
            self._timer = self._loop.call_at(self._at, self._tick)
        elif self._timer.when() > self._at:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._at, self._tick)

    def disarm(self) -> None:
        self._error = None

    def fire(self, error: RouterError) -> None:
        """End the task now. Harmless after the block was left or something else ended it."""
        if self._fired is None and not self._task.done():
            self._fired = error
            self._task.cancel()

    def _tick(self) -> None:
        self._timer = None
        if self._error is None:
            return
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._tick)
        else:
            self.fire(self._error())

    def __enter__(self) -> Deadline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._error = None
        fired = self._fired
        if fired is None:
            self._fired = _LEFT
            return
        uncancel = getattr(self._task, "uncancel", None)  # Python 3.11 and later count cancellations
        if uncancel is not None:
            uncancel()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            raise fired from None


_LEFT = RouterError("the request was over")
