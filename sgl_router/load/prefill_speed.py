"""How fast a target computes prompts, learned from what it does."""

from __future__ import annotations

from bisect import insort
from collections import deque
from math import log

__all__ = ["DEFAULT_TOKENS_PER_SEC", "PrefillSpeed", "Shown"]

DEFAULT_TOKENS_PER_SEC = 8_000.0

_NEVER = float("-inf")

# Short prompts are gathered until they make one observation: each by itself tells of overheads. Those they have are
# part of what such prompts cost; where long ones come too, theirs are the fast observations.
_MIN_TOKENS = 256
_SAMPLES = 32
# What interferes only makes a prompt slower: other routers' prompts, decode steps, a pause. What makes it look faster
# is a hit nobody foresaw, which is rarer. So the truth lies above the median, and well below the fastest.
_QUANTILE = 0.75
# The prior counts as three observations. Otherwise one outlier (say, a request delayed by kernel compilation) would
# make the target look so slow that it never received another prompt to correct it.
_INITIAL_COUNTS = 3
# One report's word against what is known so far.
_TOLD_WEIGHT = 0.3
# After a pause this long, observations from before it say nothing of now.
_FORGET_SECS = 120.0
# How far observations of one target may scatter (as a logarithm: a fourth), and how many observations that is worth.
_PRIOR_VARIANCE = 0.25**2
_PRIOR_COUNTS = 4


class Shown:
    """Observations of one target with prompts of about one size: means of logarithms, and how sure they are."""

    __slots__ = ("_variance", "at", "count", "per_prompt", "per_token")

    def __init__(self) -> None:
        self.count = 0
        self.per_token = 0.0
        """Logarithm of the seconds for one token."""
        self.per_prompt = 0.0
        """Logarithm of the seconds for one prompt."""
        self.at = _NEVER
        self._variance = 0.0

    def add(self, per_token: float, per_prompt: float, now: float) -> None:
        """The last 32 weigh most."""
        if now - self.at > _FORGET_SECS:
            self.count, self._variance = 0, 0.0
        self.at = now
        self.count = min(self.count + 1, _SAMPLES)
        weight = 1.0 / self.count
        off = per_token - self.per_token
        self.per_token += weight * off
        self.per_prompt += weight * (per_prompt - self.per_prompt)
        self._variance = (1.0 - weight) * (self._variance + weight * off * off)

    @property
    def error(self) -> float:
        """Variance of `per_token` as an estimate: from the scatter of the observations and their number."""
        count = self.count
        scatter = (_PRIOR_COUNTS * _PRIOR_VARIANCE + count * self._variance) / (_PRIOR_COUNTS + count)
        return scatter / max(count, 1)


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
    and nothing else. `initial` counts as a few observations. No single one moves it far.

    `tokens_per_sec` is this target's own estimate. `believed` is what to reckon with: it differs from that of its peers
    only by what has been proven (see `speed_comparison`), and is its own estimate as long as it was never compared.
    """

    __slots__ = (
        "_prompts",
        "_recent",
        "_said",
        "_seen",
        "_size",
        "_sorted",
        "_tokens",
        "believed",
        "by_size",
        "compared_at",
        "heard_at",
        "observations",
        "shown",
        "tokens_per_sec",
        "told",
    )

    def __init__(self, initial: float = DEFAULT_TOKENS_PER_SEC) -> None:
        self.tokens_per_sec = self.believed = initial
        self.observations = 0
        self.shown = False
        """Whether it is known from more than hearsay."""
        self.told = False
        self.heard_at = _NEVER
        """When it was last learned from."""
        self.compared_at = _NEVER
        self.by_size: dict[int, Shown] = {}
        """What it has shown with prompts of a size, by the size's binary digits."""
        self._seen = _Gathered()
        self._said = _Gathered()
        self._recent = deque([initial] * _INITIAL_COUNTS)
        self._sorted = [initial] * _INITIAL_COUNTS
        self._tokens = 0  # of prompts computed since the last observation, and ...
        self._prompts = 0  # ... how many these are
        self._size = 0.0  # tokens of a prompt in the last observation

    def compared(self, believed: float, now: float) -> None:
        """Reckon with so many tokens per second, until the next comparison."""
        self.believed, self.compared_at = believed, now

    def learn(self, tokens: int, secs: float, now: float, prompts: int = 1) -> None:
        """`tokens`, of `prompts` prompts, seem to have been computed in `secs`."""
        self._tokens += max(tokens, 0)
        self._prompts += prompts
        speed = None if self.told else self._seen.add(tokens, secs)
        if speed is None:
            return
        self._observed(speed, now)
        self.shown = self.observations >= _INITIAL_COUNTS
        if len(self._recent) >= _SAMPLES:
            self._sorted.remove(self._recent.popleft())
        self._recent.append(speed)
        insort(self._sorted, speed)
        self._estimate(self._sorted[int((len(self._sorted) - 1) * _QUANTILE)])

    def tell(self, tokens: int, secs: float, now: float) -> None:
        """`tokens` were computed in `secs`, as the target itself counts."""
        speed = self._said.add(tokens, secs)
        if speed is None:
            return
        if not self.told:
            self.by_size.clear()  # seen from outside: with the network's time, and others'
        if not self._prompts and not self._size:
            self._size = tokens
        self._observed(speed, now)
        last = self.tokens_per_sec
        self._estimate(last + _TOLD_WEIGHT * (speed - last) if self.told else speed)
        self.told = self.shown = True

    def _estimate(self, tokens_per_sec: float) -> None:
        self.tokens_per_sec = tokens_per_sec
        if self.compared_at == _NEVER:
            self.believed = tokens_per_sec

    def _observed(self, speed: float, now: float) -> None:
        if self._prompts:
            self._size = self._tokens / self._prompts
            self._tokens = self._prompts = 0
        size = max(self._size, 1.0)
        shown = self.by_size.setdefault(int(size).bit_length(), Shown())
        shown.add(-log(speed), log(size / speed), now)
        self.heard_at = now
        self.observations += 1
