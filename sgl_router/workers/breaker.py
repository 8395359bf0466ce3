"""A circuit breaker per worker: pure, driven by the outcomes of forwarded requests."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

__all__ = ["BreakerState", "CircuitBreaker", "Permit"]


class BreakerState(str, Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Opens after `threshold` consecutive failures; after `cool_down_secs` one probe decides.

    `transitions` is also the epoch of the current state: a permit handed out in another epoch settles into nothing,
    so results that arrive late neither prolong a cool-down nor close a circuit they know nothing about.
    """

    __slots__ = ("_probing", "cool_down_secs", "failures", "moved", "opened_at", "state", "threshold", "transitions")

    def __init__(self, threshold: int = 3, cool_down_secs: float = 30.0) -> None:
        self.threshold = threshold
        self.cool_down_secs = cool_down_secs
        self.state = BreakerState.CLOSED
        self.failures = 0
        self.opened_at = 0.0
        self.transitions = 0
        self.moved: Callable[[BreakerState], None] = lambda state: None
        """Called with every new state. Must not raise."""
        self._probing = False

    def would_allow(self, now: float) -> bool:
        """Whether `acquire` would succeed; changes nothing."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            return now - self.opened_at >= self.cool_down_secs
        return not self._probing

    def acquire(self, now: float) -> Permit | None:
        """A permit for one request, or None. Past the cool-down it is the one probe: it must be settled."""
        if not self.would_allow(now):
            return None
        if self.state is BreakerState.OPEN:
            self._move(BreakerState.HALF_OPEN)
        if self.state is BreakerState.HALF_OPEN:
            self._probing = True
        return Permit(self, self.transitions)

    def _move(self, state: BreakerState) -> None:
        self.state = state
        self.transitions += 1
        self.failures = 0
        self._probing = False
        self.moved(state)

    def _succeeded(self, epoch: int) -> int:
        """The epoch that the success belongs to: the one it has begun, if it has."""
        if epoch != self.transitions:
            return epoch
        if self.state is BreakerState.HALF_OPEN:
            self._move(BreakerState.CLOSED)
        else:
            self.failures = 0
        return self.transitions

    def _failed(self, epoch: int, now: float) -> None:
        if epoch != self.transitions:
            return
        self.failures += 1
        if self.state is BreakerState.HALF_OPEN or self.failures >= self.threshold:
            self._move(BreakerState.OPEN)
            self.opened_at = now

    def _released(self, epoch: int) -> None:
        if epoch == self.transitions:
            self._probing = False


class Permit:
    """The right to send one request. It settles once; every later call does nothing, but for `broke_off`."""

    __slots__ = ("_breaker", "_epoch", "settled")

    def __init__(self, breaker: CircuitBreaker, epoch: int) -> None:
        self._breaker = breaker
        self._epoch = epoch
        self.settled = False

    @property
    def probes(self) -> bool:
        """Whether this is the request on which a half-open circuit depends."""
        return self._breaker.state is BreakerState.HALF_OPEN and self._epoch == self._breaker.transitions

    def success(self, now: float) -> None:
        """The worker did its part."""
        if not self.settled:
            self.settled = True
            self._epoch = self._breaker._succeeded(self._epoch)

    def failure(self, now: float) -> None:
        """The worker is to blame."""
        if not self.settled:
            self.settled = True
            self._breaker._failed(self._epoch, now)

    def broke_off(self, now: float) -> None:
        """The worker is to blame after a `success` that was told at the first byte: a failure like any other, as long
        as the state lasts that the success was told in, or brought about."""
        if self.settled:
            self._breaker._failed(self._epoch, now)

    def release(self, now: float) -> None:
        """Neither: back-pressure, a 4xx, or the client went away. A probe slot is given back."""
        if not self.settled:
            self.settled = True
            self._breaker._released(self._epoch)
