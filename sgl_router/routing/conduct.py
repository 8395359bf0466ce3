"""What the ends of requests say of one model's workers: to their breakers, and to whether they are backed off."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sgl_router.outcome import FAILURES, Outcome
from sgl_router.placement import Unmatched
from sgl_router.workers.odd_one_out import OddOneOut
from sgl_router.workers.suspects import Blame, Suspects

if TYPE_CHECKING:
    from sgl_router.workers import Permit, Target, Worker

__all__ = ["UNRENDERABLE", "Conduct", "End", "Sent"]

UNRENDERABLE = frozenset((Unmatched.TEMPLATE_ERROR, Unmatched.INVALID_MESSAGES))
"""The router could not render these requests itself: neither can the worker be expected to."""


Sent: TypeAlias = tuple[int, int]
"""Tokens of `Refusals`: of all of the worker, and of the target."""


class End(NamedTuple):
    """How a request ended. `status`: of the worker's response, 0 where there was none. `retry_after_secs`: what a
    refusal's Retry-After says. `unrenderable`: the router could not have rendered the request either. `fingerprint`:
    equal for equal bodies, None where unknown."""

    outcome: Outcome
    status: int = 0
    retry_after_secs: float | None = None
    unrenderable: bool = False
    fingerprint: int | None = None


class Conduct:
    """One per model and process that holds leases. Pure: `now` and `rng` are passed in.

    | end | breaker | back-off |
    | --- | --- | --- |
    | completed | success | free (at its first good byte) |
    | 429, 503 | neither | the target, for Retry-After or the growing back-off |
    | 4xx | neither | the worker, where only it answers so (`OddOneOut`) |
    | failure | failure, but for another one of the same request (`Suspects`), or one of a request that the router could
      not render | the target, where the same request failed there before: the next worker shows whose fault it is |
    | anything else | neither | neither |
    """

    def __init__(self, workers: Callable[[], Iterable[Worker]], rng: random.Random) -> None:
        """`workers`: the model's, as they are registered at the moment."""
        self._workers = workers
        self._rng = rng
        self._odd_one_out = OddOneOut()
        self._suspects = Suspects()

    def sent(self, target: Target, now: float) -> Sent:
        """A request is sent to the target."""
        worker = target.worker
        if not worker.backed_off:
            return worker.refusals.era, target.refusals.era
        return worker.refusals.sent(now), target.refusals.sent(now)

    def good_byte(self, target: Target, sent: Sent, now: float) -> None:
        """The first good byte of its response is here."""
        worker = target.worker
        worker.heard = True
        if not worker.troubled:
            return
        worker.refusals.accepted(sent[0])
        target.refusals.accepted(sent[1])
        if worker.client_errors and self._odd_one_out.succeeded(worker, now):
            for peer in self._workers():
                if peer.refusals.until is not None and peer.client_errors < self._odd_one_out.needed(401, now):
                    peer.refusals.forgive()
        worker.troubled = not (worker.refusals.settled and all(one.refusals.settled for one in worker.targets))

    def completed(self, permit: Permit, fingerprint: int | None, now: float) -> None:
        """The request ended well; its first good byte has been told."""
        permit.success(now)
        if self._suspects and fingerprint is not None:
            self._suspects.succeeded(fingerprint)

    def ended(self, target: Target, sent: Sent, permit: Permit, end: End, now: float) -> None:
        """The request ended otherwise."""
        worker, outcome = target.worker, end.outcome
        if outcome is Outcome.BACK_PRESSURE:
            worker.troubled = True
            target.refusals.refused(sent[1], now, self._rng, end.retry_after_secs)
        elif outcome is Outcome.CLIENT_ERROR:
            worker.troubled = True
            if not end.unrenderable and self._odd_one_out.failed(worker, self._workers(), end.status, now):
                worker.refusals.refused(sent[0], now, self._rng)
        elif outcome in FAILURES and self._counts(target, sent, permit, end, now):
            if permit.settled:  # praised at its first byte
                permit.broke_off(now)
            else:
                permit.failure(now)
        permit.release(now)
        worker.refusals.released(sent[0])
        target.refusals.released(sent[1])

    def _counts(self, target: Target, sent: Sent, permit: Permit, end: End, now: float) -> bool:
        """Whether a failure is news of the worker."""
        if end.unrenderable and end.outcome in (Outcome.WORKER_ERROR, Outcome.ERROR_EVENT):
            return False
        if end.fingerprint is None or end.outcome is Outcome.UNREACHABLE:
            return True
        blame = self._suspects.failed(end.fingerprint, target.worker.generation, now)
        if blame is Blame.REPEATED:
            target.worker.troubled = True
            target.refusals.refused(sent[1], now, self._rng)
            return permit.probes  # a half-open breaker's one request decides, whatever it was
        return blame is Blame.WORKER
