"""The KV space that answers under way have taken, without looking at what is streamed."""

from __future__ import annotations

__all__ = ["DecodeEstimate"]

_DEFAULT_TOKENS_PER_SEC = 30.0
_MIN_SECS = 0.2
_WEIGHT = 0.05


class DecodeEstimate:
    """Answers grow at the speed that those before them had. `now` in seconds, never going back."""

    __slots__ = ("_begun", "count", "tokens_per_sec")

    def __init__(self) -> None:
        self.count = 0
        self.tokens_per_sec = _DEFAULT_TOKENS_PER_SEC
        self._begun = 0.0  # sum of the times at which those under way began

    def begin(self, now: float) -> None:
        """An answer's first byte is here."""
        self.count += 1
        self._begun += now

    def end(self, began: float, now: float, tokens: int | None) -> None:
        """It is over, after `tokens` where that is known."""
        self.count -= 1
        self._begun = self._begun - began if self.count else 0.0
        if tokens is not None and now - began > _MIN_SECS:
            self.tokens_per_sec += _WEIGHT * (tokens / (now - began) - self.tokens_per_sec)

    def tokens(self, now: float) -> float:
        """Tokens generated so far by all that are under way."""
        if not self.count:
            return 0.0
        secs = self.count * now - self._begun
        return secs * self.tokens_per_sec if secs > 0 else 0.0  # rounding: all have begun by now
