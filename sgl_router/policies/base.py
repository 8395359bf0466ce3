"""What a policy is given and what it answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from sgl_router.kv_events import PromptMatch
    from sgl_router.workers import Target

    from .cost import CandidateCost

__all__ = ["DecisionReason", "Facts", "Policy", "RouteDecision", "Unmatched", "least_loaded"]


class DecisionReason(str, Enum):
    """Why a target was chosen: response header, log field and metric label."""

    CACHE_HIT = "cache_hit"
    """The deepest matched prefix was long enough."""
    EXPECTED_HIT = "expected_hit"
    """As cache_hit, counting blocks that requests on their way will make the worker hold."""
    BELOW_THRESHOLD = "below_threshold"
    """Some prefix matched, not enough of it: least load."""
    NO_MATCH = "no_match"
    """Nobody holds even the first block: least load."""
    SPREAD = "spread"
    """Others hold a prefix, but this target starts sooner (kv_cost)."""
    IMBALANCED = "imbalanced"
    """Load was too uneven for prefixes to decide: near the least load, whoever of those holds most of it."""
    UNMATCHABLE = "unmatchable"
    """The prompt's blocks cannot be known here (see `Unmatched`): least load."""
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    POWER_OF_TWO = "power_of_two"
    ROUTING_AWAY = "routing_away"
    """The process that decides could not be asked: least load as far as the data process knows it."""


class Unmatched(str, Enum):
    """Why a prompt was not looked up in the index."""

    MEDIA = "media"
    NO_TEMPLATE = "no_template"
    TEMPLATE_ERROR = "template_error"
    INVALID_MESSAGES = "invalid_messages"
    CODE_ENCODER = "code_encoder"
    TOO_LONG = "too_long"
    """More text than any context has room for."""
    NAMESPACE = "namespace"
    """The request's cache namespace cannot be told from the events (extra_key)."""
    NOT_ASKED = "not_asked"
    """The policy does not look at prefixes."""


class Facts(msgspec.Struct, frozen=True):
    """What is known of a request. `match` is None where the prompt was not looked up, `unmatched` then says why."""

    match: PromptMatch | None = None
    prompt_tokens: int | None = None
    unmatched: Unmatched | None = None
    session: str | None = None
    """What the client calls the conversation this request belongs to."""
    explain: bool = False
    """Whether the decision should carry every candidate's cost, where the policy has costs."""
    dry: bool = False
    """Nothing will be sent: whoever decides must not remember this request."""


class RouteDecision(msgspec.Struct, frozen=True):
    """A choice and why it was made. Blocks count pages of the chosen target; loads are requests in flight."""

    target: Target
    reason: DecisionReason
    candidates: int
    min_load: int
    max_load: int
    matched_blocks: int = 0
    total_blocks: int = 0
    page_size: int = 0
    prompt_tokens: int | None = None
    unmatched: Unmatched | None = None
    epoch: int | None = None
    expected_blocks: int = 0
    """Leading blocks held or about to be; at least `matched_blocks` wherever the prompt was matched."""
    cost_ms: float | None = None
    costs: tuple[CandidateCost, ...] | None = None

    @property
    def matched_tokens(self) -> int:
        return self.matched_blocks * self.page_size

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that the target will have to compute, as far as that is known."""
        held = max(self.matched_blocks, self.expected_blocks) * self.page_size
        return max((self.prompt_tokens or 0) - held, 0)

    @property
    def match_rate(self) -> float:
        """Share of the reusable blocks that the target holds, 0..1."""
        return self.matched_blocks / self.total_blocks if self.total_blocks else 0.0


class Policy(Protocol):
    """Chooses one of `candidates` (never empty). Never raises, never blocks; keeps only its own small state."""

    needs_prompt: bool
    """Whether `facts.match` is looked at: if not, the prompt is not even tokenized."""

    def select(self, candidates: Sequence[Target], facts: Facts) -> RouteDecision: ...


def least_loaded(candidates: Sequence[Target], rng: random.Random) -> Target:
    """Fewest requests in flight; then fewest processed; then longest not chosen; then by lot.

    Never the first of the list: with equal counts that rule would send every first burst to one worker.
    """
    best = candidates[0]
    inflight, processed, last = best.inflight, best.processed, best.last_selected
    for target in candidates:
        load = target.inflight
        if load > inflight:
            continue
        if load == inflight:
            done = target.processed
            if done > processed or (done == processed and target.last_selected >= last):
                continue
        best, inflight, processed, last = target, load, target.processed, target.last_selected
    if last:
        return best  # selections are numbered: nobody else has this one's
    fresh = [target for target in candidates if not target.last_selected]
    return rng.choice([target for target in fresh if target.inflight == inflight and target.processed == processed])
