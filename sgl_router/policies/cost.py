"""What it costs to send a request to each target, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sgl_router.kv_events import MatchedPrefix
    from sgl_router.workers import Target

    from .standing import Standing

__all__ = ["CandidateCost", "Costs"]


class CandidateCost(msgspec.Struct, frozen=True):
    """One candidate's terms; the least `total_ms` wins. Tokens are as the index and the load tracker know them."""

    target: Target
    compute_ms: float
    """Prompt tokens that the target has to compute, at the speed it has shown."""
    load_back_ms: float
    """Cached tokens that it must bring back to the device first."""
    queue_ms: float
    """Prompts ahead."""
    others_ms: float
    """What those who come after will wait for this prompt: computing and loading times the pressure."""
    decode_ms: float
    """Answers under way."""
    eviction_ms: float
    """Cached tokens that this prompt would push out."""
    session_ms: float
    """Below 0 for the target that the session's last request went to."""
    total_ms: float
    """The sum of the above."""
    uncached_tokens: int
    queued_tokens: int


class Costs:
    """One request's, in the candidates' order: plain totals, and a candidate's terms for whoever asks.

    `work_ms`: computing and loading. `evictions` and `bonus` (at position `favourite`) are None and 0 where they play
    no part.
    """

    __slots__ = ("_bonus", "_evictions", "_favourite", "_prefixes", "_prompt", "held", "standing", "totals", "work_ms")

    def __init__(
        self,
        standing: Standing,
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
