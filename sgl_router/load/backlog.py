"""What is reckoned of one target's work, for policies that count tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_router.load.decode_estimate import DecodeEstimate
from sgl_router.load.prefill_backlog import PrefillBacklog
from sgl_router.load.prefill_speed import PrefillSpeed

if TYPE_CHECKING:
    from sgl_router.load.reports import LoadReport

__all__ = ["BacklogEstimate"]


class BacklogEstimate:
    """Kept up by `policies.ActiveLoad`, corrected by what the target says of itself. `born`: when it joined the
    fleet; `behind_secs`: how long the others had been at work by then, 0 for one that was there before the work."""

    __slots__ = ("_others", "_stale_secs", "answers", "behind_secs", "born", "prompts", "report", "reported_at")

    def __init__(
        self, tokens_per_sec: float, born: float, *, behind_secs: float = 0.0, stale_secs: float = 10.0
    ) -> None:
        self.prompts = PrefillBacklog(PrefillSpeed(tokens_per_sec), stale_secs=stale_secs)
        self.answers = DecodeEstimate()
        self.born = born
        self.behind_secs = behind_secs
        self.report: LoadReport | None = None
        self.reported_at = float("-inf")
        self._stale_secs = stale_secs
        self._others = 0.0

    def reported(self, report: LoadReport, at: float, own_tokens: float = 0.0) -> None:
        """The target's own word on its load, true at `at`. One that is older than the last is dropped. `own_tokens`: KV
        tokens of this router's own requests there: what it says beyond them is others'."""
        last, passed = self.report, at - self.reported_at
        if passed < 0:
            return
        self.report, self.reported_at = report, at
        self._others = max((report.used_tokens or 0) - own_tokens, 0.0)
        if last is not None:
            self._learn(last, report)
        self.prompts.reported(report.waiting, report.waiting_uncached_tokens, idle=not report.running, at=at)

    def others_tokens(self, now: float) -> float:
        """KV tokens that others' requests use, as the target last said; 0 where it has not said anything lately.

        Own ones are not looked for in a report: what it counted of them may have ended since, and a target would seem
        busy until the next report for having been at work at the last one.
        """
        return self._others if self._others and now - self.reported_at <= self._stale_secs else 0.0

    def _learn(self, last: LoadReport, report: LoadReport) -> None:
        tokens, secs = report.prefilled_tokens, report.prefill_busy_secs
        if tokens is None or secs is None or last.prefilled_tokens is None or last.prefill_busy_secs is None:
            return
        self.prompts.speed.tell(tokens - last.prefilled_tokens, secs - last.prefill_busy_secs, self.reported_at)
