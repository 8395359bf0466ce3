"""Whether a rank that computes prompts says nothing of what it stores: pure, one object per rank."""

from __future__ import annotations

__all__ = ["Silence"]

# So many different prompts, each with a page that the index did not know of, and for at least so long.
_LEAST_PROMPTS = 32
_LEAST_SECS = 5.0
# What a prompt counts for where the engine may have had it cached all the same, from before the stream was followed.
_DOUBTFUL = 0.25
_MAX_PROMPTS = 256


class Silence:
    """An engine publishes each page it has not published before, once the prompt is computed. So prompts with unknown
    pages, completed while nothing is published, mean that the events do not come: no publisher, a publisher that died,
    another port or topic, or stores that this version cannot index.

    `published` is a count that grows with every store that names blocks in a known medium.
    """

    __slots__ = ("_base", "_credit", "_prompts", "_since", "silent")

    def __init__(self) -> None:
        self.silent = False
        self._base = 0
        self._credit = 0.0
        self._since = 0.0
        self._prompts: set[int] = set()

    @property
    def prompts(self) -> int:
        """Different prompts completed since the last store."""
        return len(self._prompts)

    def completed(self, prompt: int, published: int, now: float, *, doubtful: bool = False) -> bool:
        """A prompt with at least one page unknown to the index was computed; `prompt` is its last block's key. True
        where the rank has just come to be silent. `now`: monotonic seconds."""
        if self.heard(published) or self.silent:
            return False
        if prompt in self._prompts or len(self._prompts) >= _MAX_PROMPTS:
            return False
        if not self._prompts:
            self._since = now
        self._prompts.add(prompt)
        self._credit += _DOUBTFUL if doubtful else 1.0
        self.silent = self._credit >= _LEAST_PROMPTS and now - self._since >= _LEAST_SECS
        return self.silent

    def heard(self, published: int) -> bool:
        """Whether something was stored since the last look: then it begins to count anew, and is not `silent`."""
        if published == self._base:
            return False
        self._base = published
        if self._prompts:
            self._prompts.clear()
            self._credit = 0.0
        self.silent = False
        return True
