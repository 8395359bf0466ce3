"""Load snapshot of all candidates, taken once and shared by every request being placed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sgl_router.load.speed_comparison import compare

if TYPE_CHECKING:
    from sgl_router.config import KvCostConfig
    from sgl_router.workers import Target

__all__ = ["LoadSnapshot"]

_MIN_RAMP = 0.1
# How long a comparison of the candidates' speeds holds.
_COMPARED_SECS = 0.5


class LoadSnapshot:
    """One entry for each candidate, in their order; one pass for any number of requests."""

    __slots__ = (
        "_positions",
        "candidates",
        "decode_ms",
        "fixed_ms",
        "lengths",
        "ms_per_token",
        "others",
        "queued",
        "resident",
    )

    def __init__(self, candidates: Sequence[Target], settings: KvCostConfig, now: float) -> None:
        self.candidates = candidates
        self.others = 0.0
        """What others lose with each millisecond of work, in milliseconds."""
        self._positions: dict[Target, int] | None = None
        ramp_secs, unknown = settings.slow_start_secs, 1000 / settings.prefill_tokens_per_sec
        decode_price = settings.decode_ms_per_1k_tokens / 1000
        self.ms_per_token: list[float] = []
        """A newcomer's is raised until it has been there for a while."""
        self.queued: list[float] = []
        """Tokens of prompts ahead."""
        self.resident: list[float] = []
        """KV tokens of the requests under way."""
        self.decode_ms: list[float] = []
        self.fixed_ms: list[float] = []
        """What every request pays: prompts ahead, answers under way."""
        self.lengths: list[float] = []
        """Prompts ahead, of those candidates of which that is known."""
        oldest = now
        for target in candidates:
            forecast = target.forecast
            if forecast is not None and forecast.prompts.speed.compared_at < oldest:
                oldest = forecast.prompts.speed.compared_at
        if now - oldest > _COMPARED_SECS:
            compare([target.forecast.prompts.speed for target in candidates if target.forecast is not None], now)
        for target in candidates:
            forecast = target.forecast
            if forecast is None:
                ms_per_token, queued, resident = unknown, 0.0, target.own_tokens(now)
            else:
                prompts = forecast.prompts
                queued, resident = prompts.tokens(now), target.own_tokens(now) + forecast.others_tokens(now)
                self.lengths.append(prompts.length(now))
                ms_per_token = 1000 / prompts.speed.believed
                age, ramp = now - forecast.born, min(ramp_secs, forecast.behind_secs)
                if age < ramp:
                    ms_per_token /= max(age / ramp, _MIN_RAMP)
            decode = resident * decode_price
            self.ms_per_token.append(ms_per_token)
            self.queued.append(queued)
            self.resident.append(resident)
            self.decode_ms.append(decode)
            self.fixed_ms.append(queued * ms_per_token + decode)

    @property
    def positions(self) -> dict[Target, int]:
        if self._positions is None:
            self._positions = {target: position for position, target in enumerate(self.candidates)}
        return self._positions

    def calm(self) -> float:
        """Prompts ahead on average, in the least busy quarter of the fleet. Where a hot prefix has made long queues,
        work on an idle target still delays nobody."""
        few = sorted(self.lengths)[: (len(self.lengths) + 3) // 4]
        return sum(few) / len(few) if few else 0.0
