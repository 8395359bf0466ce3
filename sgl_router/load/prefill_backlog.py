"""Estimates one target's prefill backlog from what this router has dispatched."""

from __future__ import annotations

from collections.abc import Hashable

from sgl_router.load.prefill_speed import PrefillSpeed

__all__ = ["PrefillBacklog"]

# How long a target may take to begin with a prompt that is alone: while that lasts, "idle" may mean "not yet here". Nor
# does a target count as running what it is computing: for so many times a prompt's own time idle may mean just that.
_LAG_SECS = 1.0
_LAG_TIMES = 2.0
_MEAN_WEIGHT = 0.05
# First bytes of a busy spell that are learned from together: a target computes prompts in batches, whose first bytes
# come at once, and a batch may end in the middle of a prompt.
_TOGETHER = 8


class PrefillBacklog:
    """First come, first computed. A prompt whose answer is streamed is computed when its first byte is here; one whose
    answer comes whole, when the target must be through with it at the speed it has shown.

    The prompt at the head drains in between; no further than to nothing, so that a target that is slower than thought,
    or busy for somebody else, does not look idle while prompts are out. `now` never goes back.
    """

    __slots__ = (
        "_done",
        "_done_prompts",
        "_foreign",
        "_head",
        "_head_since",
        "_learnt_at",
        "_mean",
        "_prompts",
        "_reported_at",
        "_stale_secs",
        "_tokens",
        "_unlearnt",
        "speed",
    )

    def __init__(self, speed: PrefillSpeed | None = None, *, stale_secs: float = 10.0) -> None:
        self.speed = PrefillSpeed() if speed is None else speed
        self._stale_secs = stale_secs
        self._prompts: dict[Hashable, tuple[int, bool]] = {}
        self._tokens = 0
        self._head = 0  # tokens of the prompt at the head
        self._head_since = 0.0
        self._mean = 0.0  # tokens to compute of a prompt
        self._learnt_at = 0.0
        self._done = 0  # tokens computed since `_learnt_at`, ...
        self._done_prompts = 0  # ... of so many prompts, and ...
        self._unlearnt = 0  # ... the first bytes that said so
        self._foreign = 0.0  # tokens that others' prompts had to compute at `_reported_at`
        self._reported_at = 0.0

    def __len__(self) -> int:
        """Own prompts not computed, as far as it was last looked."""
        return len(self._prompts)

    def add(self, prompt: Hashable, tokens: int, *, streamed: bool, now: float) -> None:
        """`tokens` of a prompt are to be computed."""
        self._settle(now)
        if not self._prompts:
            self._head = tokens
            self._begin(now)
        self._prompts[prompt] = (tokens, streamed)
        self._tokens += tokens
        self._mean += (tokens - self._mean) * (_MEAN_WEIGHT if self._mean else 1.0)

    def computed(self, prompt: Hashable, now: float) -> None:
        """The first byte of a prompt's answer is here. Those before it that do not tell are computed too."""
        self._settle(now)
        if prompt not in self._prompts:
            return
        tells = self._prompts[prompt][1]
        at_head, through = True, []
        for other, (_, streamed) in self._prompts.items():
            if other == prompt:
                break
            if streamed:
                at_head = False
            else:
                through.append(other)
        for other in (*through, prompt):
            self._through(other)
        if at_head:
            self._head_since = now
        if tells or at_head:  # a whole answer behind others may have been long in coming
            self._unlearnt += 1
            self._learn(now)

    def remove(self, prompt: Hashable, now: float) -> None:
        """The request is over: nothing of it is left to compute."""
        if prompt not in self._prompts:
            return
        self._settle(now)
        if prompt not in self._prompts:
            return
        if next(iter(self._prompts)) == prompt:
            self._begin(now)
        self._drop(prompt)

    def tokens(self, now: float) -> float:
        """Tokens to compute before a prompt that is sent now."""
        foreign = self._foreign_now(now) if self._foreign else 0.0
        drained = (now - self._head_since) * self.speed.believed
        if drained >= self._head:
            if not self._prompts:
                return foreign
            self._settle(now)
            drained = min((now - self._head_since) * self.speed.believed, self._head)
        return self._tokens - drained + foreign

    def length(self, now: float) -> float:
        """Prompts to compute, others' included: theirs are taken to be as long as one's own."""
        if not self._foreign:
            return len(self._prompts)
        return len(self._prompts) + self._foreign_now(now) / max(self._mean, 1.0)

    def reported(self, waiting: int, waiting_tokens: int | None, *, idle: bool, at: float) -> None:
        """What the target says waits there, whoever sent it. `idle`: nothing runs either.

        Requests beyond the own ones are somebody else's, and theirs is an even share of the tokens: the target counts
        tokens by what is cached now, which an own prompt's share must not be compared with. The report may be older
        than the last prompts sent: that a target is idle is believed of the prompt at the head, if it should have been
        computed long ago.
        """
        self._settle(at)
        if idle and not waiting and self._prompts:
            needed = self._head / self.speed.believed
            if at - self._head_since > _LAG_SECS + _LAG_TIMES * needed:
                self._drop(next(iter(self._prompts)))
                self._begin(at)
        others = max(waiting - len(self._prompts), 0)
        mean = self._mean if waiting_tokens is None or not waiting else waiting_tokens / waiting
        self._foreign = others * mean
        self._reported_at = at

    def _foreign_now(self, now: float) -> float:
        """It drains like the own share, and a report that is too old says nothing."""
        passed = now - self._reported_at
        left = self._foreign - passed * self.speed.believed
        if left <= 0 or passed > self._stale_secs:
            self._foreign = left = 0.0
        return left

    def _settle(self, now: float) -> None:
        """Take those at the head to be computed that will not tell and must be by now."""
        speed = self.speed.believed
        while self._prompts:
            prompt, (tokens, streamed) = next(iter(self._prompts.items()))
            needed = tokens / speed
            if streamed or now - self._head_since < needed:
                return
            self._head_since += needed
            self._through(prompt)

    def _begin(self, now: float) -> None:
        """The prompt at the head is begun now, for all that is known: what came before teaches nothing."""
        self._head_since = self._learnt_at = now
        self._done = self._done_prompts = self._unlearnt = 0

    def _learn(self, now: float) -> None:
        if self._prompts and self._unlearnt < _TOGETHER:
            return
        if not self._foreign:
            self.speed.learn(self._done, now - self._learnt_at, now, self._done_prompts)
        self._learnt_at = now
        self._done = self._done_prompts = self._unlearnt = 0

    def _through(self, prompt: Hashable) -> None:
        """It is computed."""
        self._done += self._drop(prompt)
        self._done_prompts += 1

    def _drop(self, prompt: Hashable) -> int:
        tokens = self._prompts.pop(prompt)[0]
        self._tokens -= tokens
        self._head = next(iter(self._prompts.values()))[0] if self._prompts else 0
        return tokens
