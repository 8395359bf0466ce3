"""Figures as markdown, held against targets and bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sgl_router.lab.simulate.bounds import FLOOR, POOLED
from sgl_router.lab.simulate.catalogue import QUEUED
from sgl_router.lab.simulate.measure import Summary

THRESHOLD, DYNAMO, COST = "cache_aware_zmq", "dynamo_like", "kv_cost"
OURS = (COST, QUEUED)

# Mean TTFT at most so many times a baseline's, by rate.
TARGETS = {
    THRESHOLD: {1.0: 0.50, 1.6: 0.37, 2.0: 0.27},
    DYNAMO: {1.0: 0.90, 1.6: 0.74, 2.0: 0.35},
}
# At rate 1.0, of the hit rate that one cache of the fleet's size has.
LEAST_HITS = 0.85

MET, MISSED, BELOW_FLOOR = "yes", "no", "floor"


@dataclass(frozen=True)
class Passing:
    """How long a request was held in the router, and by whom it was passed. `later`: how long after it the last of
    those came who went before it; `allowed`: how long ageing allows that to be. The first three are of the request that
    was held longest; `over` is the share of requests passed by more than is allowed, `most_share` the worst of them."""

    longest: float
    longest_allowed: float
    longest_later: float
    most_later: float
    over: float
    most_share: float


@dataclass(frozen=True)
class Figures:
    summary: Summary
    passing: Passing | None = None


Rates = Mapping[float, Mapping[str, Figures]]


@dataclass(frozen=True)
class Verdict:
    """One target: what it asks, and what was found. `floor`: what no policy can be below. `pooled`: what the fleet
    would do in one piece, first come, first served."""

    name: str
    wanted: float
    found: float
    floor: float | None = None
    pooled: float | None = None
    at_least: bool = False

    @property
    def result(self) -> str:
        if self.found >= self.wanted if self.at_least else self.found <= self.wanted:
            return MET
        return BELOW_FLOOR if self.floor is not None and self.wanted < self.floor else MISSED

    def __str__(self) -> str:
        result = f"{self.result} {self.floor:.2f}" if self.result == BELOW_FLOOR else self.result
        return f"{self.found:.2f} / {self.wanted:.2f} {result}"


def verdicts(policy: str, rate: float, at: Mapping[str, Figures]) -> list[Verdict]:
    """The targets of one policy at one rate, in the order of the tables' columns."""
    mine, floor, pool = (at[name].summary for name in (policy, FLOOR, POOLED))
    found = []
    for other, targets in TARGETS.items():
        theirs = at[other].summary.ttft.mean
        ours, low, pooled = (summary.ttft.mean / theirs for summary in (mine, floor, pool))
        found.append(Verdict(f"mean / {other}", targets[rate], ours, low, pooled))
    best = min(at[other].summary.ttft.p99 for other in TARGETS)
    found.append(Verdict("p99 / the better p99", 1.0, round(mine.ttft.p99 / best, 2), floor.ttft.p99 / best))
    if rate == 1.0 and pool.hit_rate:
        share = mine.hit_rate / pool.hit_rate
        found.append(Verdict("hit rate / pooled", LEAST_HITS, share, at_least=True))
    return found


def fleet_table(rates: Rates) -> str:
    rows = [
        (
            "rate",
            "policy",
            "mean",
            "p99",
            "longest",
            "hit rate",
            "of pooled",
            "mean / cache_aware",
            "mean / dynamo",
            "p99 / better",
            "hits / pooled",
        )
    ]
    for rate, at in rates.items():
        for policy, figures in at.items():
            summary = figures.summary
            most = at[POOLED].summary.hit_rate
            row = [
                f"{rate:g}",
                policy,
                *(f"{value:.2f}" for value in (summary.ttft.mean, summary.ttft.p99, summary.ttft.longest)),
                f"{summary.hit_rate:.1%}",
                f"{summary.hit_rate / most:.2f}" if most else "-",
            ]
            if policy in OURS:
                cells = [str(verdict) for verdict in verdicts(policy, rate, at)]
            else:
                cells = [f"{summary.ttft.mean / at[other].summary.ttft.mean:.2f}" for other in TARGETS]
            rows.append((*row, *cells, *[""] * (len(rows[0]) - len(row) - len(cells))))
            if summary.refused:
                rows.append((f"{rate:g}", f"{policy} refused {summary.refused:,}", *[""] * (len(rows[0]) - 2)))
    return markdown(rows)


def targets_table(groups: Mapping[str, Rates]) -> str:
    """What is met, over all fleets and traces, and everything that is not."""
    counts: dict[tuple[str, str, float], Counter[str]] = {}
    missed = []
    for name, rates in groups.items():
        for rate, at in rates.items():
            for policy in OURS:
                for verdict in verdicts(policy, rate, at):
                    counts.setdefault((policy, verdict.name, rate), Counter())[verdict.result] += 1
                    if verdict.result == MISSED:
                        wanted, found = f"{verdict.wanted:.2f}", f"{verdict.found:.2f}"
                        low = "" if verdict.floor is None else f"{verdict.floor:.2f}"
                        pool = "" if verdict.pooled is None else f"{verdict.pooled:.2f}"
                        missed.append((name, f"{rate:g}", policy, verdict.name, wanted, found, low, pool))
    rows: list[Sequence[str]] = [("policy", "target", "rate", "met", "missed", "below the floor")]
    for (policy, target, rate), count in counts.items():
        rows.append((policy, target, f"{rate:g}", *(str(count[result]) for result in (MET, MISSED, BELOW_FLOOR))))
    head = ("where", "rate", "policy", "target", "wanted", "found", "floor's own", "pooled worker's own")
    legend = (
        "Cells of the tables below read found / wanted and whether that is met; `floor`: the target is lower than what "
        "is left without any queue and with a cache that forgets nothing, which is the number after it."
    )
    return f"{legend}\n\n{markdown(rows)}\n\nMissed, though not below the floor:\n\n{markdown([head, *missed])}"


def ageing_table(found: Mapping[tuple[str, str, float], tuple[Figures, Figures]]) -> str:
    rows = [
        (
            "trace",
            "fleet",
            "rate",
            "held mean",
            "p99",
            "longest",
            "of it: passed by / allowed",
            "passed by more than allowed",
            "at most",
            "with bounds: held longest",
            "refused",
        )
    ]
    for (trace, fleet, rate), (free, bounded) in found.items():
        held, passing = free.summary.held, free.passing
        assert passing is not None
        summary = bounded.summary
        causes = ", ".join(f"{cause} {count:,}" for cause, count in summary.refusals.items())
        rows.append(
            (
                trace,
                fleet,
                f"{rate:g}",
                f"{held.mean:.2f}",
                f"{held.p99:.2f}",
                f"{held.longest:.2f}",
                f"{passing.longest_later:.1f} / {passing.longest_allowed:.1f}",
                f"{passing.over:.2%}",
                f"{passing.most_share:.2f}x",
                f"{summary.held.longest:.2f}",
                f"{summary.refused / summary.requests:.1%} ({causes})" if summary.refused else "0",
            )
        )
    legend = (
        "`kv_cost+queue` without bounds. A request is passed by such as came later; ageing allows that up to the time "
        "of its whole prompt over `ageing` after it. Of the request held longest: how much later the last of those "
        "came who went before it, and how much that may be, in seconds. Then over all requests: how many were passed "
        "by more, and the worst as a multiple of what is allowed. On the right the queue as it is by default, with its "
        "bounds on number and time."
    )
    return f"{legend}\n\n{markdown(rows)}"


def routers_table(found: Mapping[str, Rates]) -> str:
    """Beside one router, which knows all."""
    rows = [("rate", "policy", *(f"{name}: mean, p99, hits" for name in found))]
    for rate, policies in next(iter(found.values())).items():
        for policy in policies:
            cells = []
            for rates in found.values():
                summary = rates[rate][policy].summary
                cells.append(f"{summary.ttft.mean:.2f}, {summary.ttft.p99:.2f}, {summary.hit_rate:.1%}")
            rows.append((f"{rate:g}", policy, *cells))
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A header and rows."""
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
