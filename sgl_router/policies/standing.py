"""What candidates are busy with at one moment, whatever is to be sent to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.config import KvCostConfig
    from sgl_router.workers import Target
    from sgl_router.workers.prefill_speed import PrefillSpeed

__all__ = ["Standing"]

_MIN_RAMP = 0.1
_FRESH_SECS = 5.0


class Standing:
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
        shown: list[float] = []
        faded: list[tuple[int, float, PrefillSpeed]] = []  # position, ramp
        for position, target in enumerate(candidates):
            forecast = target.forecast
            if forecast is None:
                ms_per_token, queued, resident = unknown, 0.0, 0.0
            else:
                prompts = forecast.prompts
                queued, resident = prompts.tokens(now), forecast.answers.tokens(now)
                self.lengths.append(prompts.length(now))
                speed, age, ramp = prompts.speed, now - forecast.born, 1.0
                ms_per_token = 1000 / speed.tokens_per_sec
                if age < ramp_secs:
                    ramp = max(age / ramp_secs, _MIN_RAMP)
                if speed.shown:
                    shown.append(speed.tokens_per_sec)
                if now - speed.heard_at > _FRESH_SECS or not speed.shown:
                    faded.append((position, ramp, speed))
                ms_per_token /= ramp
            resident += target.decode_blocks * target.worker.info.block_size
            if forecast is not None and forecast.report is not None:
                resident = max(resident, forecast.used_tokens(now))  # others' requests, too
            decode = resident * decode_price
            self.ms_per_token.append(ms_per_token)
            self.queued.append(queued)
            self.resident.append(resident)
            self.decode_ms.append(decode)
            self.fixed_ms.append(queued * ms_per_token + decode)
        if faded and shown:
            # Whoever has not shown its speed lately is taken to be like the others: it would look slow beside them, if
            # they were faster than had been thought, and never get to show its own.
            usual = sorted(shown)[(len(shown) - 1) // 2]
            for position, ramp, speed in faded:
                ms_per_token = 1000 / (speed.believed(usual, now) * ramp)
                self.ms_per_token[position] = ms_per_token
                self.fixed_ms[position] = self.queued[position] * ms_per_token + self.decode_ms[position]

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
