"""When a target that refused a request may be sent another: pure, driven by what came of the requests sent to it."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["INITIAL_SECS", "MAX_RETRY_AFTER_SECS", "MAX_SECS", "Refusals"]

INITIAL_SECS = 0.25
MAX_SECS = 5.0
# A worker that asks for more is asked again after this all the same.
MAX_RETRY_AFTER_SECS = 60.0
_JITTER = 0.2  # replicas that were refused together must not return together


class Refusals:
    """Free until a refusal; then out of selection for the worker's `Retry-After` or a back-off, whichever is longer;
    then one probe at a time until one of them is accepted.

    The back-off doubles with each probe that is refused, from INITIAL_SECS to MAX_SECS, and shrinks again with what is
    accepted. `sent` gives a token for each request, with which its result is told: results of requests that were sent
    before the latest news change nothing, so that a burst in flight at the first refusal counts as one.
    """

    __slots__ = ("_moved", "_probe_at", "_strikes", "era", "until")

    def __init__(self, moved: Callable[[bool], None] = lambda backed_off: None) -> None:
        """`moved` is called with True when the target is backed off, with False when it is free again."""
        self.until: float | None = None
        """None while free; else from when on probes may be sent, monotonic seconds."""
        self._moved = moved
        self.era = 1
        """What `sent` returns while free."""
        self._strikes = 0
        self._probe_at: float | None = None

    @property
    def settled(self) -> bool:
        """Free, and as if it had never refused anything: what is accepted is no news."""
        return self.until is None and not self._strikes

    def willing(self, now: float) -> bool:
        """Whether a request may be sent while others would take it; changes nothing."""
        if self.until is None:
            return True
        # A refusal comes at once. A probe that says nothing for this long may be computing a long prompt.
        return now >= self.until and (self._probe_at is None or now >= self._probe_at + MAX_SECS)

    def sent(self, now: float) -> int:
        """A request is sent. Its result must be told with the token: the request may be the one probe."""
        if self.until is None:
            return self.era
        if not self.willing(now):
            return -self.era  # no other target was left
        self.era += 1
        self._probe_at = now
        return self.era

    def refused(self, token: int, now: float, rng: random.Random, retry_after_secs: float | None = None) -> None:
        """The request was refused. `retry_after_secs`: the worker's own word on when to come back."""
        stated = min(max(retry_after_secs or 0.0, 0.0), MAX_RETRY_AFTER_SECS)
        if token != self.era:
            if self.until is not None:
                self.until = max(self.until, now + stated)
            return
        was_free = self.until is None
        pause = min(INITIAL_SECS * 2**self._strikes, MAX_SECS) * rng.uniform(1 - _JITTER, 1 + _JITTER)
        if pause < MAX_SECS:
            self._strikes += 1
        self.era += 1
        self._probe_at = None
        self.until = now + max(pause, stated)
        if was_free:
            self._moved(True)

    def accepted(self, token: int) -> None:
        """The first good byte of the request's response is here."""
        if abs(token) != self.era:
            return
        if self._strikes:
            self._strikes -= 1
        self._free()

    def released(self, token: int) -> None:
        """The request ended without a word on whether the target takes requests. A probe's place is given back."""
        if token == self.era:
            self._probe_at = None

    def forgive(self) -> None:
        """The refusals were the requests' fault."""
        self._strikes = 0
        self._free()

    def _free(self) -> None:
        if self.until is not None:
            self.until = self._probe_at = None
            self.era += 1
            self._moved(False)
