"""What it costs to send a request to each target, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sgl_router.placement import CandidateCost

if TYPE_CHECKING:
    from sgl_router.kv_events import MatchedPrefix
    from sgl_router.policies.load_snapshot import LoadSnapshot

__all__ = ["Costs"]


class Costs:
    """One request's, in the candidates' order: plain totals, and a candidate's terms for whoever asks.

    `work_ms`: computing and loading. `evictions` and `bonus` (at position `favourite`) are None and 0 where they play
    no part.
    """

    __slots__ = ("_bonus", "_evictions", "_favourite", "_prefixes", "_prompt", "held", "standing", "totals", "work_ms")

    def __init__(
        self,
        standing: LoadSnapshot,
        prompt_tokens: int,
        work_ms: list[float],
        prefixes: Mapping[int, MatchedPrefix],
        evictions: Sequence[float] | None = None,
        favourite: int | None = None,
        bonus: float = 0.0,
    ) -> None:
        self.standing = standing
        self.work_ms = work_ms
        self.held = bool(prefixes)
        """Whether some candidate holds some of the prompt."""
        self._prompt = prompt_tokens
        self._prefixes = prefixes
        self._evictions = evictions
        self._favourite = favourite
        self._bonus = bonus
        weight = 1.0 + standing.others
        totals = [work * weight + fixed for work, fixed in zip(work_ms, standing.fixed_ms, strict=True)]
        if evictions is not None:
            totals = [total + eviction for total, eviction in zip(totals, evictions, strict=True)]
        if favourite is not None:
            totals[favourite] -= bonus
        self.totals = totals

    def prefix(self, position: int) -> MatchedPrefix | None:
        return self._prefixes.get(position)

    def of(self, position: int) -> CandidateCost:
        standing, prefix = self.standing, self._prefixes.get(position)
        ms_per_token, work = standing.ms_per_token[position], self.work_ms[position]
        uncached = max(self._prompt - (prefix.expected_tokens if prefix is not None else 0), 0)
        compute = uncached * ms_per_token
        return CandidateCost(
            standing.candidates[position],
            compute,
            work - compute,
            standing.queued[position] * ms_per_token,
            work * standing.others,
            standing.decode_ms[position],
            self._evictions[position] if self._evictions is not None else 0.0,
            -self._bonus if position == self._favourite else 0.0,
            self.totals[position],
            uncached,
            round(standing.queued[position]),
        )

    def every(self) -> tuple[CandidateCost, ...]:
        return tuple(self.of(position) for position in range(len(self.totals)))
