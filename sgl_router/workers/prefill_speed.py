"""How fast a target computes prompts, learned from what it does."""

from __future__ import annotations

from bisect import insort
from collections import deque

__all__ = ["DEFAULT_TOKENS_PER_SEC", "PrefillSpeed"]

DEFAULT_TOKENS_PER_SEC = 8_000.0

# Short prompts are gathered until they make one observation: each by itself tells of overheads. Those they have are
# part of what such prompts cost; where long ones come too, theirs are the fast observations.
_MIN_TOKENS = 256
_SAMPLES = 32
# What interferes only makes a prompt slower: other routers' prompts, decode steps, a pause. What makes it look faster
# is a hit nobody foresaw, which is rarer. So the truth lies above the median, and well below the fastest.
_QUANTILE = 0.75
# What was thought at first counts as so many observations: one alone, a prompt that had to wait for a compiler, would
# else leave the target without a second one to prove it wrong.
_INITIAL_COUNTS = 3
_HALF_LIFE_SECS = 30.0
# One report's word against what is known so far.
_TOLD_WEIGHT = 0.3


class _Gathered:
    """Tokens and the time they took, until they are enough to tell something."""

    __slots__ = ("_secs", "_tokens")

    def __init__(self) -> None:
        self._tokens = 0
        self._secs = 0.0

    def add(self, tokens: int, secs: float) -> float | None:
        """Tokens per second of what has come together, once that is enough; then it begins again."""
        self._tokens += max(tokens, 0)
        self._secs += max(secs, 0.0)
        if self._tokens < _MIN_TOKENS or not self._secs:
            return None
        speed = self._tokens / self._secs
        self._tokens, self._secs = 0, 0.0
        return speed


class PrefillSpeed:
    """The upper quartile of the last observations; where the target says itself what it has computed in what time, that
    and nothing else. `initial` counts as a few observations. No single one moves it far."""

    __slots__ = ("_recent", "_said", "_seen", "_sorted", "heard_at", "observations", "shown", "tokens_per_sec", "told")

    def __init__(self, initial: float = DEFAULT_TOKENS_PER_SEC) -> None:
        self.tokens_per_sec = initial
        self.observations = 0
        self.shown = False
        """Whether it is known from more than hearsay."""
        self.told = False
        self.heard_at = float("-inf")
        """When it was last learned from."""
        self._seen = _Gathered()
        self._said = _Gathered()
        self._recent = deque([initial] * _INITIAL_COUNTS)
        self._sorted = [initial] * _INITIAL_COUNTS

    def believed(self, usual: float, now: float) -> float:
        """The speed to reckon with, where `usual` is that of its peers: what was learned long ago gives way to it.

        A target that had only short prompts looks slow. Nobody would send it a long one to correct that, if this did
        not fade.
        """
        weight = 0.5 ** (max(now - self.heard_at, 0.0) / _HALF_LIFE_SECS) if self.shown else 0.0
        return weight * self.tokens_per_sec + (1.0 - weight) * usual

    def learn(self, tokens: int, secs: float, now: float) -> None:
        """`tokens` seem to have been computed in `secs`."""
        speed = None if self.told else self._seen.add(tokens, secs)
        if speed is None:
            return
        self.heard_at = now
        self.observations += 1
        self.shown = self.observations >= _INITIAL_COUNTS
        if len(self._recent) >= _SAMPLES:
            self._sorted.remove(self._recent.popleft())
        self._recent.append(speed)
        insort(self._sorted, speed)
        self.tokens_per_sec = self._sorted[int((len(self._sorted) - 1) * _QUANTILE)]

    def tell(self, tokens: int, secs: float, now: float) -> None:
        """`tokens` were computed in `secs`, as the target itself counts."""
        speed = self._said.add(tokens, secs)
        if speed is None:
            return
        self.tokens_per_sec = speed if not self.told else self.tokens_per_sec + _TOLD_WEIGHT * (
            speed - self.tokens_per_sec
        )
        self.told = self.shown = True
        self.heard_at = now
        self.observations += 1
