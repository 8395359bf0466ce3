"""Every policy on real and made-up traffic: `python benchmarks/routing.py TRACE... [--out FILE]`.

Simulates `cache_aware_zmq`, a Dynamo-like cost, `kv_cost` and `kv_cost+queue` (with a queue that refuses nobody) on
each trace, one thing varied at a time around 8 workers of 8,000 tokens/s and 2 M tokens of cache whose events are heard
at once, and prints markdown: the figures, what no policy can beat, and whether the targets (routing_tables.py) are met.
Then made-up workloads, how far the queue's ageing lets requests be passed, what the queue's bounds refuse, and several
routers.

Simulations are deterministic: the tables are the same on every machine. `--limit-small N` takes only the first N
requests where a fleet of two has four times what it can do: its queues grow for as long as requests come.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from routing_tables import Figures, Passing, ageing_table, fleet_table, routers_table, targets_table

from sgl_router.config import LoadReportsConfig, QueueConfig
from sgl_router.lab.simulate.bounds import FLOOR, POOLED, floor, pooled
from sgl_router.lab.simulate.catalogue import QUEUED, without_bounds
from sgl_router.lab.simulate.job import Job, jobs_of
from sgl_router.lab.simulate.measure import served_of, summarise
from sgl_router.lab.simulate.simulation import FleetSettings, Outcome, simulate
from sgl_router.lab.simulate.trace import TraceRow, read_trace
from sgl_router.lab.simulate.workload import WORKLOADS, make_workload

RATES = (1.0, 1.6, 2.0)
POLICIES = ("cache_aware_zmq", "dynamo_like", "kv_cost", QUEUED)
BASE = FleetSettings()
FLEETS = {
    "8 workers, 2 M, events at once": BASE,
    "2 workers": replace(BASE, workers=2),
    "32 workers": replace(BASE, workers=32),
    "0.5 M tokens of cache": replace(BASE, cache_tokens=500_000),
    "events 0.05 s late": replace(BASE, event_delay=0.05),
    "events 1 s late": replace(BASE, event_delay=1.0),
}
ROUTERS = (2, 4)
# Requests a second at rate 1.0: about half of what eight workers can do with a perfect cache.
MADE_UP = {
    "shared_prompt": 30.0,
    "chats": 30.0,
    "unique": 5.0,
    "hot_prefix": 15.0,
    "bimodal": 5.0,
    "bursts": 15.0,
    "bursts, more": 35.0,
}
HURTING = ("unique", "hot_prefix", "bimodal", "bursts", "bursts, more")


@dataclass(frozen=True)
class Cell:
    """One simulation. `source`: a trace's path, or the name of a made-up workload. `bounded`: the queue as it is by
    default, with an end to numbers and time."""

    source: str
    fleet: FleetSettings
    rate: float
    policy: str
    limit: int | None = None
    bounded: bool = False


def main() -> int:
    options = _options()
    began = time.monotonic()
    plans = {
        "fleets": list(_fleet_cells(options)),
        "made up": list(_made_up_cells(options)),
        "bounded": [
            Cell(trace, fleet, rate, QUEUED, _limit(options, fleet), bounded=True)
            for trace in options.traces
            for fleet in (BASE, FLEETS["2 workers"])
            for rate in RATES
        ],
        "routers": list(_router_cells(options)),
    }
    cells = list(dict.fromkeys(cell for plan in plans.values() for cell in plan))
    found: dict[Cell, Figures] = {}
    # The slow ones first, so that no process waits long for the other at the end.
    cells.sort(key=lambda cell: (cell.fleet.workers != 2, cell.fleet.workers != 32, -cell.rate, cell.source))
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        for cell, figures in pool.imap_unordered(_figures, cells):
            found[cell] = figures
            if sys.stderr.isatty():
                print(f"\r{len(found)}/{len(cells)} {cell.policy:<20}", end="", file=sys.stderr, flush=True)
    text = _report(options, found, time.monotonic() - began, len(cells))
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", help="Mooncake-format JSONL")
    parser.add_argument("--limit", type=int, help="requests of a trace (default: all)")
    parser.add_argument("--limit-small", type=int, help="requests of a trace for two workers (default: --limit)")
    parser.add_argument("--requests", type=int, default=3_000, help="of a made-up workload (default 3000)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the markdown here too")
    return parser.parse_args()


def _limit(options: argparse.Namespace, fleet: FleetSettings) -> int | None:
    return (options.limit_small if fleet.workers == 2 else None) or options.limit


def _fleet_cells(options: argparse.Namespace) -> Iterable[Cell]:
    for trace in options.traces:
        for fleet in FLEETS.values():
            for rate in RATES:
                for policy in (*POLICIES, POOLED, FLOOR):
                    yield Cell(trace, fleet, rate, policy, _limit(options, fleet))


def _made_up_cells(options: argparse.Namespace) -> Iterable[Cell]:
    for name in MADE_UP:
        for rate in RATES:
            for policy in (*POLICIES, POOLED, FLOOR):
                yield Cell(name, BASE, rate, policy, options.requests)


def _router_cells(options: argparse.Namespace) -> Iterable[Cell]:
    for trace in options.traces:
        for fleet in (BASE, *_router_fleets().values()):
            for rate in RATES:
                for policy in POLICIES:
                    yield Cell(trace, fleet, rate, policy, options.limit)


def _router_fleets() -> dict[str, FleetSettings]:
    found = {}
    for count in ROUTERS:
        found[f"{count} routers"] = replace(BASE, routers=count)
        for secs in (LoadReportsConfig().interval_secs, 0.1):
            name = f"{count} routers, reports every {secs:g} s"
            found[name] = replace(BASE, routers=count, load_report_interval=secs)
    return found


@lru_cache(8)
def _rows(source: str, limit: int | None) -> list[TraceRow]:
    name = source.partition(",")[0]
    if name in WORKLOADS:
        return make_workload(name, requests=limit or 3_000, per_sec=MADE_UP[source], seed=0)
    return read_trace(source, limit=limit)


@lru_cache(4)
def _jobs(source: str, limit: int | None, rate: float) -> list[Job]:
    return jobs_of(_rows(source, limit), rate=rate, page_size=BASE.page_size)


def _figures(cell: Cell) -> tuple[Cell, Figures]:
    jobs = _jobs(cell.source, cell.limit, cell.rate)
    if cell.policy == POOLED:
        return cell, Figures(pooled(jobs, cell.fleet))
    if cell.policy == FLOOR:
        return cell, Figures(floor(jobs, cell.fleet))
    model = None if cell.bounded else without_bounds(None)
    outcome = simulate(cell.policy, jobs, cell.fleet, model=model)
    passing = _passing(outcome, cell.fleet) if cell.policy == QUEUED else None
    return cell, Figures(summarise(outcome), passing)


def _passing(outcome: Outcome, fleet: FleetSettings) -> Passing:
    """How much later those came who went before a request, beside what ageing allows: a request of `work` is passed by
    such as come up to `work / ageing` after it."""
    served = served_of(outcome)
    arrival = np.array([record.job.arrival for record in served])
    sent = np.array([record.dispatched_at for record in served])
    work = np.array([record.job.input_tokens for record in served]) / fleet.prefill_tokens_per_sec
    held = sent - arrival
    order = np.lexsort((arrival, sent))
    latest = np.empty_like(arrival)
    latest[order] = np.maximum.accumulate(arrival[order])
    later = latest - arrival
    allowed = work / QueueConfig().ageing
    most = int(np.argmax(held))
    return Passing(
        longest=float(held[most]),
        longest_allowed=float(allowed[most]),
        longest_later=float(later[most]),
        most_later=float(later.max()),
        over=float(np.mean(later > allowed + 1e-6)),
        most_share=float((later / allowed).max()),
    )


def _report(options: argparse.Namespace, found: dict[Cell, Figures], secs: float, cells: int) -> str:
    def cell(source: str, fleet: FleetSettings, rate: float, policy: str, *, bounded: bool = False) -> Figures:
        made_up = source in MADE_UP
        limit = options.requests if made_up else _limit(options, fleet)
        return found[Cell(source, fleet, rate, policy, limit, bounded)]

    policies = (*POLICIES, POOLED, FLOOR)

    def group(source: str, fleet: FleetSettings) -> dict[float, dict[str, Figures]]:
        return {rate: {policy: cell(source, fleet, rate, policy) for policy in policies} for rate in RATES}

    parts = [f"{cells} simulations in {secs:.0f} s on {options.processes} processes; times in seconds"]
    groups = {
        f"{Path(trace).stem}: {name}": group(trace, fleet) for trace in options.traces for name, fleet in FLEETS.items()
    }
    if groups:
        parts.append("## Targets\n\n" + targets_table(groups))
    for trace in options.traces:
        parts.append(f"## {Path(trace).name}")
        for name, fleet in FLEETS.items():
            some = _limit(options, fleet)
            note = "" if some is None else f" (the first {some:,} requests)"
            parts.append(f"### {name}{note}\n\n{fleet_table(group(trace, fleet))}")
    for title, names in (
        ("Workloads that hurt", HURTING),
        ("Other made-up workloads", [name for name in MADE_UP if name not in HURTING]),
    ):
        parts.append(f"## {title}\n\n8 workers, 2 M tokens of cache, events at once; {options.requests:,} requests.")
        for name in names:
            parts.append(f"### {name}: {MADE_UP[name]:g} requests/s at rate 1.0\n\n{fleet_table(group(name, BASE))}")
    if options.traces:
        ageing = {
            (Path(trace).stem, f"{fleet.workers} workers", rate): (
                cell(trace, fleet, rate, QUEUED),
                cell(trace, fleet, rate, QUEUED, bounded=True),
            )
            for trace in options.traces
            for fleet in (BASE, FLEETS["2 workers"])
            for rate in RATES
        }
        parts.append("## How long requests are held\n\n" + ageing_table(ageing))
        parts.append("## Several routers")
        for trace in options.traces:
            several = {
                name: {rate: {policy: cell(trace, fleet, rate, policy) for policy in POLICIES} for rate in RATES}
                for name, fleet in {"1 router": BASE, **_router_fleets()}.items()
            }
            parts.append(f"### {Path(trace).name}\n\n{routers_table(several)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
