"""`cache_aware_zmq`: the longest cached prefix unless load says otherwise, least load when nothing matches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import DecisionReason, Facts, RouteDecision, least_loaded

if TYPE_CHECKING:
    from sgl_router.kv_events import PromptMatch
    from sgl_router.workers import Target

__all__ = ["CacheAwareZmq"]


class CacheAwareZmq:
    """(1) Load too uneven (max - min > `balance_abs_threshold` and max > `balance_rel_threshold` x min): least load.
    (2) Best match rate > `cache_threshold`: least loaded of the targets with the deepest match. (3) Least load.

    A block counts as held from the moment a request that will store it is dispatched, so that a burst of requests with
    one new prefix converges; which of the two it was, the reason says. Loads are requests in flight. Depth is compared
    in tokens, so that workers with unlike page sizes compare.
    """

    needs_prompt = True

    def __init__(
        self,
        rng: random.Random,
        *,
        cache_threshold: float,
        balance_abs_threshold: int,
        balance_rel_threshold: float,
    ) -> None:
        self._rng = rng
        self._cache_threshold = cache_threshold
        self._abs = balance_abs_threshold
        self._rel = balance_rel_threshold

    def select(self, candidates: Sequence[Target], facts: Facts) -> RouteDecision:
        loads = [candidate.inflight for candidate in candidates]
        low, high = min(loads), max(loads)
        match = facts.match
        if high - low > self._abs and high > self._rel * low:
            reason, target = DecisionReason.IMBALANCED, least_loaded(candidates, self._rng)
        elif match is None:
            reason, target = DecisionReason.UNMATCHABLE, least_loaded(candidates, self._rng)
        else:
            depth, deepest = _deepest(candidates, match)
            if not deepest:
                reason, target = DecisionReason.NO_MATCH, least_loaded(candidates, self._rng)
            else:
                best = max(deepest, key=lambda candidate: match.by_target[candidate].tokens)
                reusable = match.blocks_of(best) * match.by_target[best].page_size
                if depth > self._cache_threshold * reusable:
                    target = least_loaded(deepest, self._rng)
                    held = match.by_target[target].tokens > self._cache_threshold * reusable
                    reason = DecisionReason.CACHE_HIT if held else DecisionReason.EXPECTED_HIT
                else:
                    reason, target = DecisionReason.BELOW_THRESHOLD, least_loaded(candidates, self._rng)

        prefix = match.by_target.get(target) if match is not None else None
        page = prefix.page_size if prefix else target.worker.info.block_size
        total = match.blocks_of(target) if match is not None else 0
        if match is not None and not total and facts.prompt_tokens:
            total = (facts.prompt_tokens - 1) // page  # nothing was heard of this target yet
        return RouteDecision(
            target,
            reason,
            candidates=len(candidates),
            min_load=low,
            max_load=high,
            matched_blocks=prefix.blocks if prefix else 0,
            total_blocks=total,
            page_size=page,
            prompt_tokens=facts.prompt_tokens,
            unmatched=facts.unmatched,
            epoch=prefix.epoch if prefix else None,
            expected_blocks=max(prefix.blocks, prefix.expected_blocks) if prefix else 0,
        )


def _deepest(candidates: Sequence[Target], match: PromptMatch) -> tuple[int, list[Target]]:
    """The most leading tokens that any candidate holds or will hold, and which candidates those are."""
    depth = 0
    deepest: list[Target] = []
    held = match.by_target
    if held:
        get = held.get
        for candidate in candidates:
            prefix = get(candidate)
            if prefix is not None:
                # `expected_tokens`, spelt out: this runs for every target of every request.
                blocks, _, page, expected, _ = prefix
                tokens = (expected if expected > blocks else blocks) * page
                if tokens > depth:
                    depth, deepest = tokens, [candidate]
                elif tokens == depth and tokens:
                    deepest.append(candidate)
    return depth, deepest
