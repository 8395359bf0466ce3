"""`cache_aware_zmq`: the longest cached prefix unless load says otherwise, least load when nothing matches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sgl_router.placement import DecisionReason, Leg
from sgl_router.policies.base import LoadPolicy, PolicyInput, least_loaded

if TYPE_CHECKING:
    from sgl_router.workers import Target

__all__ = ["CacheAwareZmq"]


class CacheAwareZmq(LoadPolicy):
    """(1) Load too uneven (max - min > `balance_abs_threshold` and max > `balance_rel_threshold` x min): of the targets
    near the least load (at most `balance_abs_threshold` / 8 requests above it, at least one), the least loaded of those
    with the deepest match; where none of them holds anything, least load. (2) Best match rate > `cache_threshold`:
    least loaded of the targets with the deepest match. (3) Least load.

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
        self._near = max(1, balance_abs_threshold // 8)

    def select(self, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
        loads = [candidate.inflight for candidate in candidates]
        low, high = min(loads), max(loads)
        match = facts.match
        among: Sequence[Target] = candidates
        least = 0.0
        if high - low > self._abs and high > self._rel * low:
            reason = DecisionReason.IMBALANCED
            if match is not None:
                near = low + self._near
                among = match.deepest([target for target in candidates if target.inflight <= near]).targets
        elif match is None:
            reason = DecisionReason.UNMATCHABLE
        else:
            tokens, reusable, deepest = match.deepest(candidates)
            least = self._cache_threshold * reusable
            if not tokens:
                reason = DecisionReason.NO_MATCH
            elif tokens > least:
                reason, among = DecisionReason.EXPECTED_HIT, deepest
            else:
                reason = DecisionReason.BELOW_THRESHOLD
        target = least_loaded(among or candidates, self._rng)

        part = match.part_of(target) if match is not None else None
        blocks = expected = total = 0
        epoch = None
        if part is None:
            page = target.worker.info.block_size
        else:
            group, total = part.group, part.blocks
            page, slot = group.page_size, group.slots[target]
            blocks, expected = part.blocks_of(slot)
            if expected:
                epoch = group.epoch(slot)
                if reason is DecisionReason.EXPECTED_HIT and blocks * page > least:
                    reason = DecisionReason.CACHE_HIT
        if match is not None and not total and facts.prompt_tokens:
            total = (facts.prompt_tokens - 1) // page  # nothing was heard of this target yet
        return Leg(
            target,
            reason,
            len(candidates),
            low,
            high,
            blocks,
            total,
            page,
            facts.prompt_tokens,
            facts.unmatched,
            epoch,
            expected,
        )
