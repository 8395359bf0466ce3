"""A run of the data-path benchmark: how much is measured, by whom, what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datapath_material as material
from datapath_rig import PAGE_SIZE, Fleet, Load, Sample
from datapath_routers import Router

FOREIGN_CORES = 0.12


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    runs: int = 3
    seconds: float = 1.5
    warmup: float = 0.5
    slow_streams: int = 1_000
    memory_requests: int = 200_000
    idle_streams: int = 10_000
    idle_seconds: float = 8.0
    fresh: bool = True
    """Routers are started anew for each cell."""
    patience: float = 90.0


SMOKE = Scale(
    runs=1,
    seconds=0.2,
    warmup=0.1,
    slow_streams=50,
    memory_requests=800,
    idle_streams=200,
    idle_seconds=0.4,
    fresh=False,
    patience=0.0,
)


@dataclass
class Row:
    """A line of the result, values in `unit`; `met` is None where there is no target, or nobody to compare with."""

    measure: str
    unit: str
    ours: float | None
    theirs: float | None
    target: str
    met: bool | None
    note: str = ""
    floor: float | None = None
    digits: int = 0
    cpu_ratio: float | None = None
    """Of the CPU time for the same work: theirs by ours."""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.ours is not None and self.theirs else None


@dataclass
class Bench:
    """What the cells share."""

    fleet: Fleet
    load: Load
    routers: Sequence[Router]
    cache: Path
    scale: Scale
    file_limit: int
    samples: list[dict[str, Any]] = field(default_factory=list)
    proof: list[str] = field(default_factory=list)
    invalid: set[str] = field(default_factory=set)
    disturbed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.patience = self.scale.patience
        self._foreign = FOREIGN_CORES

    def bodies(self, size: str, *, stream: bool) -> Path:
        return material.bodies(self.cache, size, stream=stream)

    @contextmanager
    def started(self) -> Iterator[None]:
        """The routers, started afresh for what follows unless one start has to do for everything."""
        if not self.scale.fresh:
            for router in self.routers:
                if router.port == 0:
                    router.start()
            yield
            return
        try:
            for router in self.routers:
                router.start()
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        for router in self.routers:
            router.stop()

    def sample(
        self, cell: str, router: Router | None, parameters: Mapping[str, object], *, repeat: bool = True, **options: Any
    ) -> Sample:
        """One run (router None: straight to a worker), repeated while somebody else used the machine meanwhile."""
        port, pids = (self.fleet.port, []) if router is None else (router.port, router.pids)
        while True:
            began = time.monotonic()
            sample = self.load(port, pids, parameters, **options)
            took = time.monotonic() - began
            quiet = sample.usage.foreign_cores <= self._foreign
            if quiet or not repeat or self.patience < took:
                break
            self.patience -= took
        name = "direct" if router is None else router.name
        if not quiet:
            self.disturbed[cell] = self.disturbed.get(cell, 0) + 1
        if sample.errors:
            self.invalid.add(f"{cell}/{name}")
        self.samples.append({"cell": cell, "router": name, "quiet": quiet, **sample.json()})
        return sample

    def interleaved(
        self, cell: str, parameters: Mapping[str, object], *, direct: bool = False, runs: int | None = None
    ) -> dict[str, list[Sample]]:
        """Samples by router; A, B, A, B, so that a slow minute of the machine is everybody's."""
        taken: dict[str, list[Sample]] = {}
        before = {router.name: router.metrics() for router in self.routers}
        for _ in range(runs or self.scale.runs):
            for router in (*self.routers, *([None] if direct else [])):
                name = "direct" if router is None else router.name
                taken.setdefault(name, []).append(self.sample(cell, router, parameters))
        for router in self.routers:
            self.prove(cell, router, before[router.name])
        return taken

    def prove(self, cell: str, router: Router, before: Mapping[str, float]) -> None:
        now = router.metrics()
        if not now:
            return
        change = {name: value - before.get(name, 0.0) for name, value in now.items()}
        matched, spent = change.pop("matched_blocks", 0.0), change.pop("decision_secs", 0.0)
        logged, stored = change.pop("log_lines", 0.0), change.pop("blocks_stored", 0.0)
        decisions = sum(change.values())
        reasons = ", ".join(f"{name} {value / max(decisions, 1):.1%}" for name, value in change.items() if value)
        each = max(decisions, 1)
        self.proof.append(
            f"{cell}: {decisions:,.0f} decisions ({reasons}), {matched * PAGE_SIZE / each:,.0f} tokens matched, "
            f"{spent / each * 1e6:,.0f} us spent on each; {logged:,.0f} log lines, {stored:,.0f} blocks by events"
        )
        if not change.get("cache_hit"):
            self.invalid.add(f"{cell}/{router.name}")  # fast, perhaps, but not at what is to be measured

    def verdict(self, cell: str, good: bool) -> bool:
        """A run with errors, or without decisions by cached prefix, meets no target."""
        return good and f"{cell}/ours" not in self.invalid
