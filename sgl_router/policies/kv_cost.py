"""`kv_cost`: the target where the request, and those after it, lose the least time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import structs

from sgl_router.placement import DecisionReason, Leg
from sgl_router.policies.base import CostModel, PolicyInput, least_loaded
from sgl_router.policies.cost import Costs
from sgl_router.policies.load_snapshot import LoadSnapshot
from sgl_router.policies.pressure import Pressure
from sgl_router.policies.sessions import Sessions

if TYPE_CHECKING:
    from sgl_router.config import KvCostConfig
    from sgl_router.kv_events import MatchedPrefix
    from sgl_router.workers import Target

__all__ = ["KvCost"]

# Costs this close are equal: which of them is less is rounding.
_EQUAL_MS = 1e-6


class KvCost:
    """Every target's cost in milliseconds; the cheapest gets the request, among equals the least loaded.

    A token to compute costs its time at the target's learned speed, for the request itself and for everyone who waits
    behind it; a token queued ahead costs its time once. So a fleet at leisure goes by what starts soonest, and one
    under pressure by what is least work, without a threshold between. Targets are expected to carry a `forecast`.
    """

    needs_prompt = True

    def __init__(
        self,
        rng: random.Random,
        settings: KvCostConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        held_tokens: Callable[[Target], int] = lambda target: 0,
        bound_late: bool = False,
    ) -> None:
        """`bound_late`: requests wait in the router while everybody is busy. A newcomer then gets one prompt at a time
        anyway; were it dear besides, all that waits would be sent to the busy rather than the first to it."""
        self.needs_session = bool(settings.session_bonus_ms)
        self.prefill_tokens_per_sec: float | None = settings.prefill_tokens_per_sec
        self.costs: CostModel | None = self
        self._rng = rng
        self._settings = structs.replace(settings, slow_start_secs=0.0) if bound_late else settings
        self._clock = clock
        self._held_tokens = held_tokens
        self._sessions = Sessions()
        self._pressure = Pressure(smoothing_secs=settings.smoothing_secs, limit=settings.max_pressure)
        self.waiting = 0
        """Requests that wait in the router for a target: whoever holds them says so."""

    def select(self, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
        costs = self.costs_of(self.standing(candidates, self._clock()), facts)
        return self.decide(self.cheapest(costs), costs, facts)

    def standing(self, candidates: Sequence[Target], now: float) -> LoadSnapshot:
        """What the candidates are busy with, and how much that makes of others' time. The pressure is how many requests
        wait for each prompt that is computed: those in the queues of the calm quarter of the fleet, and those held in
        the router."""
        standing = LoadSnapshot(candidates, self._settings, now)
        level = standing.calm() + self.waiting / max(len(candidates), 1)
        standing.others = self._pressure.observe(level, now) * self._settings.others_weight
        return standing

    def costs_of(self, standing: LoadSnapshot, facts: PolicyInput) -> Costs:
        """A request's at every candidate."""
        settings, match = self._settings, facts.match
        prompt = facts.prompt_tokens or 0
        ms_per_token = standing.ms_per_token
        work = [prompt * each for each in ms_per_token]
        prefixes: dict[int, MatchedPrefix] = {}
        if match is not None and (by_target := match.by_target):
            positions = standing.positions
            for target, prefix in by_target.items():
                position = positions.get(target)
                if position is not None:
                    prefixes[position] = prefix
                    each = ms_per_token[position]
                    left = prompt - prefix.expected_tokens
                    work[position] = left * each if left > 0 else 0.0
                    if prefix.device_blocks < prefix.blocks:
                        work[position] += self._load_back_ms(prefix, each)
        evictions = favourite = None
        if settings.eviction_ms_per_1k_tokens:
            evictions = [
                self._eviction_ms(standing, position, prompt, prefixes.get(position)) for position in range(len(work))
            ]
        if settings.session_bonus_ms and facts.session is not None:
            last = self._sessions.target(facts.session)
            favourite = standing.positions.get(last) if last is not None else None
        return Costs(standing, prompt, work, prefixes, evictions, favourite, settings.session_bonus_ms)

    def _load_back_ms(self, prefix: MatchedPrefix, ms_per_token: float) -> float:
        """To bring to the device what is not there; what is slower to fetch than to compute is computed."""
        settings = self._settings
        host = max(prefix.host_blocks - prefix.device_blocks, 0)
        disk = prefix.blocks - prefix.device_blocks - host
        return prefix.page_size * (
            host * min(settings.host_load_back_ms_per_1k_tokens / 1000, ms_per_token)
            + disk * min(settings.disk_load_back_ms_per_1k_tokens / 1000, ms_per_token)
        )

    def _eviction_ms(self, standing: LoadSnapshot, position: int, prompt: int, prefix: MatchedPrefix | None) -> float:
        """For what a prompt would push out of the target's cache."""
        target = standing.candidates[position]
        capacity = target.worker.info.max_total_tokens
        if not capacity:
            return 0.0
        tokens = max(prompt - (prefix.expected_tokens if prefix is not None else 0), 0)
        used = max(self._held_tokens(target), standing.resident[position])
        pushed = min(max(tokens + used - capacity, 0.0), tokens)
        return pushed * self._settings.eviction_ms_per_1k_tokens / 1000

    def cheapest(self, costs: Costs, among: Sequence[int] | None = None) -> int:
        """The position of the least total (`among` some of them), among equals of the least loaded. With a temperature:
        by lot, the cheaper the likelier."""
        totals, temperature = costs.totals, self._settings.temperature_ms
        if among is None:
            among = range(len(totals))
        least = min([totals[position] for position in among])
        if temperature:
            weights = [math.exp((least - totals[position]) / temperature) for position in among]
            return self._rng.choices(among, weights)[0]
        most = least + _EQUAL_MS
        best = [position for position in among if totals[position] <= most]
        if len(best) == 1:
            return best[0]
        candidates = costs.standing.candidates
        return costs.standing.positions[least_loaded([candidates[position] for position in best], self._rng)]

    def decide(self, position: int, costs: Costs, facts: PolicyInput) -> Leg:
        """The decision for a candidate, with everyone's cost where the facts ask for it. The session goes there."""
        candidates, match = costs.standing.candidates, facts.match
        target, prefix = candidates[position], costs.prefix(position)
        blocks, expected = (prefix.blocks, prefix.expected_blocks) if prefix is not None else (0, 0)
        if match is None:
            reason = DecisionReason.UNMATCHABLE
        elif expected:
            reason = DecisionReason.CACHE_HIT if blocks == expected else DecisionReason.EXPECTED_HIT
        else:
            reason = DecisionReason.SPREAD if costs.held else DecisionReason.NO_MATCH
        if facts.session is not None and self._settings.session_bonus_ms and not facts.dry:
            self._sessions.went(facts.session, target)
        loads = [candidate.inflight for candidate in candidates]
        page = prefix.page_size if prefix is not None else target.worker.info.block_size
        total = match.blocks_of(target) if match is not None else 0
        if match is not None and not total and facts.prompt_tokens:
            total = (facts.prompt_tokens - 1) // page  # nothing was heard of this target yet
        return Leg(
            target,
            reason,
            candidates=len(candidates),
            min_load=min(loads),
            max_load=max(loads),
            matched_blocks=blocks,
            total_blocks=total,
            page_size=page,
            prompt_tokens=facts.prompt_tokens,
            unmatched=facts.unmatched,
            epoch=match.epoch_of(target) if match is not None and prefix is not None else None,
            expected_blocks=expected,
            cost_ms=costs.totals[position],
            costs=costs.every() if facts.explain else None,
        )
