"""Several policies, at several rates, on one workload and one fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sgl_router.config import ModelConfig
from sgl_router.lab.simulate.bounds import floor, pooled
from sgl_router.lab.simulate.job import jobs_of
from sgl_router.lab.simulate.measure import Summary, rows_of, summarise
from sgl_router.lab.simulate.simulation import FleetSettings, Outcome, simulate
from sgl_router.lab.simulate.trace import TraceRow

__all__ = ["RateStudy", "Study", "as_json", "run_study"]


@dataclass
class RateStudy:
    """One arrival rate: what each policy made of it, and the two bounds."""

    rate: float
    outcomes: list[Outcome]
    summaries: list[Summary]
    bounds: list[Summary]


@dataclass
class Study:
    """Everything that was asked for. `model`: whose settings the product's policies had, None for their defaults."""

    workload: str
    settings: FleetSettings
    seed: int
    rates: list[RateStudy]
    model: ModelConfig | None = None


def run_study(
    workload: str,
    rows: Sequence[TraceRow],
    policies: Sequence[str],
    rates: Sequence[float],
    settings: FleetSettings,
    *,
    seed: int,
    model: ModelConfig | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Study:
    """Simulate every policy at every rate. `progress` gets requests done, requests to do, and what is running."""
    total = len(rows) * len(policies) * len(rates)
    before = 0
    studies = []
    for rate in rates:
        jobs = jobs_of(rows, rate=rate, page_size=settings.page_size)
        study = RateStudy(rate, [], [], [])
        for policy in policies:
            label = f"{policy} at {rate:g}x"

            def tell(done: int, before: int = before, label: str = label) -> None:
                progress(before + done, total, label)

            outcome = simulate(policy, jobs, settings, seed=seed, model=model, progress=tell)
            before += len(rows)
            outcome.routers = []  # their indexes take far more memory than all that is reported
            study.outcomes.append(outcome)
            study.summaries.append(summarise(outcome))
        study.bounds = [pooled(jobs, settings, seed=seed), floor(jobs, settings)]
        studies.append(study)
    return Study(workload, replace(settings), seed, studies, model)


def as_json(study: Study, *, per_request: bool = False) -> dict[str, Any]:
    """For machines. Times are in seconds."""
    return {
        "workload": study.workload,
        "seed": study.seed,
        "fleet": asdict(study.settings),
        "model": study.model,
        "rates": [
            {
                "rate": at.rate,
                "policies": [
                    {
                        "summary": summary,
                        "workers": [asdict(worker) for worker in outcome.workers],
                        **({"requests": rows_of(outcome)} if per_request else {}),
                    }
                    for outcome, summary in zip(at.outcomes, at.summaries, strict=True)
                ],
                "bounds": at.bounds,
            }
            for at in study.rates
        ],
    }
