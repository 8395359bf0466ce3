"""Predicted against reported: what a worker says it took from its cache, held against what the index said it would."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum

__all__ = ["Agreement", "Prediction", "Prefix", "Verdict"]

_WEIGHT = 0.125
_LEAST_SAMPLES = 8
_FINE_ABOVE = 0.95
# How many different prefixes must disagree before more than those prefixes is in doubt, and which share of those met
# lately, and of the answers, they must be.
_LEAST_PREFIXES = 4
_MOST = 2 / 3
_SUSPECT_BELOW = 1 - _MOST
# Answers in a row that one prefix may contradict.
_MOST_MISSES = 3
_MAX_NAMESPACES = 16
_MAX_PREFIXES = 16
_VOTE_SECS = 600.0


class Prediction(str, Enum):
    """How a prediction compares with the worker's own count: the metric label."""

    EXACT = "exact"
    MORE = "more"
    """The worker had more: events still under way, or a neighbour's prefill. Costs affinity, never wrong."""
    LESS = "less"
    """The worker had less: evicted since the decision, or the index claims what is not there."""


class Verdict(str, Enum):
    """Whose claims should no longer be believed: the metric label."""

    NONE = "none"
    PREFIX = "prefix"
    """Of this prefix, which disagrees again and again."""
    NAMESPACE = "namespace"
    """Of this prefix's namespace: most of its prefixes disagree, and those of other namespaces do not."""
    RANK = "rank"
    """Of the whole rank: most prefixes of most namespaces disagree."""


class Prefix:
    """A prompt's beginning as it was last predicted: `depth` leading blocks, the last of them with the key `end`. Its
    prompt may grow: what a conversation's next turn says is said of the same prefix."""

    __slots__ = ("agrees", "at", "depth", "end", "misses")

    def __init__(self) -> None:
        self.depth = self.end = self.misses = 0
        self.agrees = True
        self.at = 0.0


class _Namespace:
    """The prefixes of one namespace that were met lately, by `end`, the last one met at the end."""

    __slots__ = ("prefixes", "samples", "score")

    def __init__(self) -> None:
        self.prefixes: OrderedDict[int, Prefix] = OrderedDict()
        self.score = 1.0
        self.samples = 0

    def lately(self, now: float) -> tuple[int, int]:
        """How many prefixes disagree, of how many."""
        met = [prefix.agrees for prefix in self.prefixes.values() if now - prefix.at < _VOTE_SECS]
        return met.count(False), len(met)


class Agreement:
    """One rank's record. `score` is the moving share of hits that the worker confirmed, 0..1.

    Only predicted hits count: a prediction of nothing cannot overclaim. A few misses are eviction. One prefix, or one
    namespace, that disagrees always is a fault of its own, and takes its own claims with it, however often it is asked
    for; most of what was met lately is a view that has drifted. Bounded: 16 namespaces of 16 prefixes.
    """

    __slots__ = ("_doubts", "_namespaces", "_samples", "counts", "given_up", "score")

    def __init__(self) -> None:
        self.score = 1.0
        self.counts: dict[Prediction, int] = dict.fromkeys(Prediction, 0)
        self.given_up: dict[Verdict, int] = {verdict: 0 for verdict in Verdict if verdict is not Verdict.NONE}
        """Times claims were given up, by whose."""
        self._samples = 0
        self._doubts = False
        self._namespaces: OrderedDict[int, _Namespace] = OrderedDict()

    def prefix_of(self, namespace: int, keys: Sequence[int], depth: int) -> Prefix | None:
        """The longest prefix met before that the first `depth` blocks of a prompt begin with. None as long as all is
        well: then it does not matter which answers belong together. `namespace`: its root key."""
        if not self._doubts:
            return None
        known, found = self._namespaces.get(namespace), None
        if known is not None:
            for prefix in known.prefixes.values():
                longer = found is None or prefix.depth > found.depth
                if prefix.depth <= depth and longer and keys[prefix.depth - 1] == prefix.end:
                    found = prefix
        return found

    def report(
        self,
        predicted: int,
        reported: int,
        *,
        namespace: int = 0,
        depth: int = 0,
        end: int = 0,
        prefix: Prefix | None = None,
        now: float = 0.0,
    ) -> Verdict:
        """Account for one answer, in tokens: what was predicted are the first `depth` blocks, up to the key `end`, and
        `prefix` what `prefix_of` said of them. Says whose claims should no longer be believed. `now`: monotonic
        seconds."""
        if reported < predicted:
            outcome = Prediction.LESS
        elif reported > predicted:
            outcome = Prediction.MORE
        else:
            outcome = Prediction.EXACT
        self.counts[outcome] += 1
        if not predicted:
            return Verdict.NONE
        agrees = outcome is not Prediction.LESS
        self._samples += 1
        self.score += _WEIGHT * (agrees - self.score)
        self._doubts = self.score < _FINE_ABOVE
        known = self._known(namespace)
        known.samples += 1
        known.score += _WEIGHT * (agrees - known.score)
        met = self._meet(known, prefix, depth, end, now)
        met.agrees = agrees
        if agrees:
            met.misses = 0
            return Verdict.NONE
        met.misses += 1
        verdict = self._judge(known, met, now)
        if verdict is Verdict.PREFIX:
            known.prefixes.pop(met.end, None)
        elif verdict is Verdict.NAMESPACE:
            del self._namespaces[namespace]
        if verdict is not Verdict.NONE:
            self.given_up[verdict] += 1
        return verdict

    def forgive(self) -> None:
        """The rank starts over."""
        self.score = 1.0
        self._samples = 0
        self._doubts = False
        self._namespaces.clear()

    def _known(self, namespace: int) -> _Namespace:
        known = self._namespaces.get(namespace)
        if known is None:
            known = self._namespaces[namespace] = _Namespace()
            if len(self._namespaces) > _MAX_NAMESPACES:
                self._namespaces.popitem(last=False)
        elif len(self._namespaces) > 1:
            self._namespaces.move_to_end(namespace)
        return known

    def _meet(self, known: _Namespace, prefix: Prefix | None, depth: int, end: int, now: float) -> Prefix:
        prefixes = known.prefixes
        same = prefixes.pop(end, None)
        if prefix is None or prefixes.get(prefix.end) is not prefix:
            prefix = same or Prefix()
        else:
            del prefixes[prefix.end]
        prefix.depth, prefix.end, prefix.at = depth, end, now
        prefixes[end] = prefix
        if len(prefixes) > _MAX_PREFIXES:
            prefixes.popitem(last=False)
        return prefix

    def _judge(self, known: _Namespace, prefix: Prefix, now: float) -> Verdict:
        wrong, met = known.lately(now)
        if wrong >= _LEAST_PREFIXES and wrong > _MOST * met:
            ballots = [each.lately(now) for each in self._namespaces.values()]
            wrong, met = sum(against for against, _ in ballots), sum(of for _, of in ballots)
            contrary = sum(against > _MOST * of for against, of in ballots if of)
            most = wrong > _MOST * met and 2 * contrary > sum(of > 0 for _, of in ballots)
            if most and self._samples >= _LEAST_SAMPLES and self.score < _SUSPECT_BELOW:
                return Verdict.RANK
            if not most and known.samples >= _LEAST_SAMPLES and known.score < _SUSPECT_BELOW:
                return Verdict.NAMESPACE
        return Verdict.PREFIX if prefix.misses >= _MOST_MISSES else Verdict.NONE
