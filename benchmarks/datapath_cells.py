"""The measurements: each takes turns between the routers and says what came out, against what target."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import datapath_machine as machine
from datapath_bench import Bench, Row
from datapath_rig import Sample

MIB = 1 << 20
# A router that used less of its core was held up: by the workers and the load on theirs, or by other processes.
SATURATED = 0.92
# Descriptors of a router that are not streams, with room to spare.
_SPARE_FILES = 500


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _column(samples: Mapping[str, list[Sample]], name: str, read: Callable[[Sample], float]) -> float | None:
    return median(read(sample) for sample in samples[name]) if name in samples else None


def _utils(samples: Mapping[str, list[Sample]]) -> str:
    parts = [f"{name} {median(s.usage.util for s in taken):.2f}" for name, taken in samples.items() if name != "direct"]
    return "router CPU " + ", ".join(parts)


def _spread(samples: Mapping[str, list[Sample]], read: Callable[[Sample], float]) -> str:
    parts = []
    for name, taken in samples.items():
        values = [read(sample) for sample in taken]
        if len(values) > 1 and median(values):
            parts.append(f"{name} ±{(max(values) - min(values)) / 2 / median(values):.0%}")
    return "spread " + ", ".join(parts) if parts else ""


def _throughput(
    bench: Bench, cell: str, measure: str, parameters: Mapping[str, object], least: float, unit: str
) -> Row:
    with bench.started():
        taken = bench.interleaved(cell, parameters, direct=True)

    def rate(sample: Sample) -> float:
        return float(sample.figures["rps"])

    ours, theirs = _column(taken, "ours", rate), _column(taken, "peer", rate)
    costs = {name: median(s.cpu_per_1000 for s in samples) for name, samples in taken.items() if name != "direct"}
    row = Row(measure, unit, ours, theirs, f">= {least:.1f} x", None, floor=_column(taken, "floor", rate))
    parts = [
        _utils(taken),
        "CPU ms/request " + ", ".join(f"{name} {value:.3f}" for name, value in costs.items()),
        f"direct {_column(taken, 'direct', rate):,.0f}",
        _spread(taken, rate),
    ]
    if costs.get("ours") and costs.get("peer"):
        row.cpu_ratio = costs["peer"] / costs["ours"]
    if ours is not None and theirs is not None:
        idle = min(median(s.usage.util for s in taken[name]) for name in ("ours", "peer")) < SATURATED
        if idle and row.cpu_ratio is not None:
            row.met = bench.verdict(cell, row.cpu_ratio >= least)
            parts.append("a router was not kept busy: judged by CPU")
        else:
            row.met = bench.verdict(cell, ours >= least * theirs > 0)
    row.note = "; ".join(filter(None, parts))
    return row


def requests_per_second(bench: Bench, size: str, least: float) -> list[Row]:
    shown = {"05k": "0.5 KB", "8k": "8 KB", "64k": "64 KB"}[size]
    parameters = {
        "bodies": bench.bodies(size, stream=False),
        "conns": 64,
        "batch": 1,
        "seconds": bench.scale.seconds,
        "warmup": bench.scale.warmup,
    }
    return [_throughput(bench, f"rps-{size}", f"requests/s, {shown}", parameters, least, "1/s")]


def streams_per_second(bench: Bench) -> list[Row]:
    bench.fleet.set(events=16, gap=1_000, spread=0)
    parameters = {
        "bodies": bench.bodies("8k", stream=True),
        "conns": 256,
        "batch": 1,
        "stream": 1,
        "seconds": bench.scale.seconds,
        "warmup": bench.scale.warmup,
    }
    return [_throughput(bench, "sse", "SSE streams/s, 8 KB, 16 events", parameters, 3.0, "1/s")]


def _added(taken: Mapping[str, list[Sample]], name: str, what: str, quantile: str) -> float | None:
    if name not in taken:
        return None
    through = median(float(sample.figures[what][quantile]) for sample in taken[name])
    return through - median(float(sample.figures[what][quantile]) for sample in taken["direct"])


def one_connection(bench: Bench) -> list[Row]:
    parameters = {
        "bodies": bench.bodies("8k", stream=False),
        "conns": 1,
        "seconds": bench.scale.seconds,
        "warmup": bench.scale.warmup,
    }
    with bench.started():
        taken = bench.interleaved("c1", parameters, direct=True)
    rows = []
    for quantile, target in (("p50", "<= 0.8 x"), ("p99", "")):
        ours, theirs, floor = (_added(taken, name, "latency_us", quantile) for name in ("ours", "peer", "floor"))
        row = Row(f"added latency {quantile}, 1 connection, 8 KB", "us", ours, theirs, target, None, floor=floor)
        if target and row.ratio is not None:
            row.met = bench.verdict("c1", row.ratio <= 0.8)
            row.note = _utils(taken)
        rows.append(row)
    return rows


def first_token(bench: Bench) -> list[Row]:
    bench.fleet.set(events=16, gap=5_000, spread=0)
    parameters = {
        "bodies": bench.bodies("8k", stream=True),
        "conns": 8,
        "rate": 30,
        "stream": 1,
        "ordinary": 1,
        "seconds": bench.scale.seconds * 2,
        "warmup": bench.scale.warmup * 2,
    }
    with bench.started():
        taken = bench.interleaved("ttft", parameters, direct=True)
    rows = []
    for quantile, target in (("p50", "< 1 ms"), ("p99", "")):
        ours, theirs, floor = (
            None if value is None else value / 1e3
            for value in (_added(taken, name, "ttft_us", quantile) for name in ("ours", "peer", "floor"))
        )
        row = Row(f"added TTFT {quantile}, ordinary client", "ms", ours, theirs, target, None, floor=floor, digits=2)
        if target and ours is not None:
            row.met = bench.verdict("ttft", ours < 1.0)
        rows.append(row)
    return rows


def slow_streams(bench: Bench) -> list[Row]:
    count = bench.scale.slow_streams
    wanted = 20.0 * count
    bench.fleet.set(events=1_000_000, gap=50_000, spread=1)
    parameters = {
        "bodies": bench.bodies("8k", stream=True),
        "conns": count,
        "hold": 1,
        "ramp": bench.scale.seconds,
        "seconds": bench.scale.seconds * 2,
        "warmup": bench.scale.warmup * 2,
    }
    with bench.started():
        taken = bench.interleaved("slow", parameters, direct=True)

    def rate(sample: Sample) -> float:
        return float(sample.figures["events_per_s"])

    ours, theirs, floor = (_column(taken, name, rate) for name in ("ours", "peer", "floor"))
    row = Row(
        f"events/s, {count:,} streams x 20/s", "1/s", ours, theirs, f"sustained ({wanted:,.0f})", None, floor=floor
    )
    if ours is not None:
        row.met = bench.verdict("slow", ours >= 0.99 * wanted)
    row.note = _utils(taken)
    rows = [row]
    for quantile, target in (("p50", ""), ("p99", "< 10 ms"), ("max", "")):
        added = {
            name: None if (value := _added(taken, name, "delay_us", quantile)) is None else value / 1e3
            for name in ("ours", "peer", "floor")
        }
        row = Row(
            f"added delay {quantile} of an event, {count:,} streams",
            "ms",
            added["ours"],
            added["peer"],
            target,
            None,
            floor=added["floor"],
            digits=2,
        )
        if target and row.ours is not None:
            row.met = bench.verdict("slow", row.ours < 10.0)
        row.note = "in all " + ", ".join(
            f"{name} {median(sample.figures['delay_us'][quantile] for sample in samples) / 1e3:.2f}"
            for name, samples in taken.items()
        )
        rows.append(row)
    return rows


def memory_after_requests(bench: Bench) -> list[Row]:
    """Resident memory in four legs of unique requests."""
    legs, requests = 4, bench.scale.memory_requests
    parameters = {
        "bodies": bench.bodies("8k", stream=False),
        "conns": 64,
        "requests": requests // legs,
        "seconds": 0,
        "warmup": 0,
    }
    above: dict[str, list[float]] = {}
    idle: dict[str, float] = {}
    with bench.started():
        before = {router.name: router.metrics() for router in bench.routers}
        for router in bench.routers:
            idle[router.name] = machine.rss_bytes(router.pids) / MIB
        for _ in range(legs):
            for router in bench.routers:
                bench.sample("rss", router, parameters, repeat=False)
                time.sleep(0.3 if bench.scale.fresh else 0.0)
                above.setdefault(router.name, []).append(machine.rss_bytes(router.pids) / MIB - idle[router.name])
        for router in bench.routers:
            bench.prove("rss", router, before[router.name])
    shown = "; ".join(
        f"{name}: idle {idle[name]:.0f}, then " + ", ".join(f"+{value:.0f}" for value in values)
        for name, values in above.items()
    )
    bench.samples.append({"cell": "rss", "idle_mib": idle, "above_idle_mib": above})

    def last(name: str) -> float | None:
        return above[name][-1] if name in above else None

    def growth(name: str) -> float | None:
        return above[name][-1] - above[name][legs // 2 - 1] if name in above else None

    size = Row(
        f"RSS above idle after {requests:,} unique 8 KB requests",
        "MiB",
        last("ours"),
        last("peer"),
        "<= 200 MiB",
        None,
        shown,
        last("floor"),
    )
    flat = Row("RSS growth in their second half", "MiB", growth("ours"), growth("peer"), "flat (<= 8 MiB)", None)
    flat.floor, flat.digits = growth("floor"), 1
    if size.ours is not None and flat.ours is not None:
        size.met = bench.verdict("rss", size.ours <= 200)
        flat.met = bench.verdict("rss", flat.ours <= 8)
    return [size, flat]


def idle_streams(bench: Bench) -> list[Row]:
    """Many open streams with an event every few seconds; a stream takes two descriptors of a router."""
    wanted = bench.scale.idle_streams
    count = min(wanted, (bench.file_limit - _SPARE_FILES) // 2)
    gap = 3.0 if bench.scale.fresh else 0.2
    bench.fleet.set(events=1_000_000, gap=int(gap * 1e6), spread=1)
    parameters = {
        "bodies": bench.bodies("05k", stream=True),
        "conns": count,
        "hold": 1,
        "ramp": count / 1_000,
        "seconds": bench.scale.idle_seconds,
        "warmup": gap,
    }
    each: dict[str, float] = {}
    held: dict[str, int] = {}
    delay: dict[str, float] = {}
    with bench.started():
        for router in bench.routers:
            before = machine.rss_bytes(router.pids)
            full: list[int] = []
            sample = bench.sample(
                "idle",
                router,
                parameters,
                repeat=False,
                at_end=lambda router=router, full=full: full.append(machine.rss_bytes(router.pids)),
            )
            each[router.name] = (full[0] - before) / 1024 / count
            held[router.name] = int(sample.figures["held"])
            delay[router.name] = float(sample.figures["delay_us"]["p99"]) / 1e3
            if held[router.name] < count:
                bench.invalid.add(f"idle/{router.name}")
            # The routers notice that the clients are gone before anything else is measured.
            limit = time.monotonic() + 20
            while bench.fleet.stats()["active_streams"] and time.monotonic() < limit:
                time.sleep(0.1)
    scaled = f"; {wanted:,} wanted, {bench.file_limit:,} files allowed" if count < wanted else ""
    kept = Row(
        f"open streams held, of {count:,}",
        "",
        held.get("ours"),
        held.get("peer"),
        "all",
        None,
        f"an event every {gap:g} s each{scaled}; p99 delay "
        + ", ".join(f"{name} {value:.1f} ms" for name, value in delay.items()),
        held.get("floor"),
    )
    memory = Row("RSS per open stream", "KiB", each.get("ours"), each.get("peer"), "< 60 KiB", None)
    memory.floor, memory.digits = each.get("floor"), 1
    if "ours" in each:
        kept.met = bench.verdict("idle", held["ours"] == count)
        memory.met = bench.verdict("idle", each["ours"] < 60)
    return [kept, memory]


CELLS: dict[str, Callable[[Bench], list[Row]]] = {
    "rps-05k": lambda bench: requests_per_second(bench, "05k", 3.0),
    "rps-8k": lambda bench: requests_per_second(bench, "8k", 2.0),
    "rps-64k": lambda bench: requests_per_second(bench, "64k", 1.0),
    "sse": streams_per_second,
    "slow": slow_streams,
    "c1": one_connection,
    "ttft": first_token,
    "rss": memory_after_requests,
    "idle": idle_streams,
}
