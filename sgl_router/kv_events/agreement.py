"""Predicted against reported: what a worker says it took from its cache, held against what the index said it would."""

from __future__ import annotations

from enum import Enum

__all__ = ["Agreement", "Prediction"]

_WEIGHT = 0.125
_LEAST_SAMPLES = 8
_SUSPECT_BELOW = 0.5


class Prediction(str, Enum):
    """How a prediction compares with the worker's own count: the metric label."""

    EXACT = "exact"
    MORE = "more"
    """The worker had more: events still under way, or a neighbour's prefill. Costs affinity, never wrong."""
    LESS = "less"
    """The worker had less: evicted since the decision, or the index claims what is not there."""


class Agreement:
    """One rank's record. `score` is the moving share of hits that the worker confirmed, 0..1.

    Only predicted hits count: a prediction of nothing cannot overclaim. A few misses are eviction; most of the last
    dozen or so are a view that has drifted.
    """

    __slots__ = ("_samples", "counts", "score")

    def __init__(self) -> None:
        self.score = 1.0
        self.counts: dict[Prediction, int] = dict.fromkeys(Prediction, 0)
        self._samples = 0

    def report(self, predicted: int, reported: int) -> bool:
        """Account for one answer, in tokens. True when the rank's claims should no longer be believed."""
        if reported < predicted:
            outcome = Prediction.LESS
        elif reported > predicted:
            outcome = Prediction.MORE
        else:
            outcome = Prediction.EXACT
        self.counts[outcome] += 1
        if not predicted:
            return False
        self._samples += 1
        self.score += _WEIGHT * ((outcome is not Prediction.LESS) - self.score)
        return self._samples >= _LEAST_SAMPLES and self.score < _SUSPECT_BELOW

    def forgive(self) -> None:
        """The rank starts over."""
        self.score = 1.0
        self._samples = 0
