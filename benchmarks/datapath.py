"""How fast the data path is, one core of router, beside sglang-router 0.3.2 in the same run.

    python benchmarks/datapath.py [--only rps-8k,sse] [--runs 3] [--seconds 1.5] [--floor] [--json FILE] ...
    python benchmarks/datapath.py --smoke          everything once, tiny: does the harness work?

Prints one Markdown table of medians with ratio and target, and what shows that every feature was on. Needs Linux, gcc,
two processors and this package; the peer is installed into a virtual environment of its own the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datapath_machine as machine
import datapath_material as material
from datapath_bench import SMOKE, Bench, Row, Scale
from datapath_cells import CELLS
from datapath_rig import Fleet, Load
from datapath_routers import PEER, PEER_VERSION, Floor, Ours, Peer, Router, install_peer

PACKAGES = (
    "sgl-router", "aiohttp", "fastokens", "httptools", "msgspec", "numpy", "pyzmq", "tokenizers", "transformers",
    "uvloop", "xxhash",
)  # fmt: skip
GROUPS = {"rps": ["rps-05k", "rps-8k", "rps-64k"]}


def processors(text: str) -> set[int]:
    return {int(part) for part in text.split(",") if part}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", default=",".join(CELLS), help=f"any of rps,{','.join(CELLS)}")
    add("--runs", type=int, default=Scale.runs, help="of each router and cell, in turns (default 3)")
    add("--seconds", type=float, default=Scale.seconds, help="of one run's window (default 1.5)")
    add("--requests", type=int, default=Scale.memory_requests, help="of the rss cell")
    add("--streams", type=int, default=Scale.idle_streams, help="of the idle cell")
    add("--smoke", action="store_true", help="everything once, tiny; the figures mean nothing")
    add("--no-peer", action="store_true", help="our router alone: no ratios")
    add("--peer-python", help=f"an interpreter that has {PEER}; default: one is installed into the cache")
    add("--floor", action="store_true", help="also a bare relay, to show what Python could do at best")
    add("--router-python", default=sys.executable, help="the interpreter that runs our router")
    add("--processes", type=int, help="server.processes of our router")
    add("--workers", type=int, default=4)
    add("--cached-tokens", type=int, default=-1, help="let workers report so many cached tokens (default: none)")
    add("--router-cpus", type=processors, default={0}, help="processors of a router (default 0)")
    add("--load-cpus", type=processors, default={1}, help="processors of workers and load (default 1)")
    add("--nice", type=int, default=0, help="added to the niceness of everything here; below 0 needs root")
    add("--patience", type=float, default=Scale.patience, help="seconds to spend on repeating disturbed runs")
    add("--cache", type=Path, default=material.default_cache(), help="for the peer, the tokenizer, the compiled tools")
    add("--json", type=Path, metavar="FILE", help="write every sample there")
    add("--keep", action="store_true", help="keep logs and configurations, and say where")
    args = parser.parse_args()
    args.only = [cell for name in args.only.split(",") for cell in GROUPS.get(name, [name])]
    unknown = set(args.only) - set(CELLS)
    if unknown:
        parser.error(f"unknown cells: {', '.join(sorted(unknown))}")
    args.scale = SMOKE
    if not args.smoke:
        args.scale = Scale(
            runs=args.runs,
            seconds=args.seconds,
            memory_requests=args.requests,
            idle_streams=args.streams,
            patience=args.patience,
        )
    return args


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def print_rows(rows: list[Row], *, floor: bool) -> None:
    head = ["measure", "unit", "ours", PEER, "ours/theirs", "target", "met", "CPU theirs/ours"]
    if floor:
        head.append("floor")
    print("\n| " + " | ".join(head) + " |")
    print("|---|---|" + "---:|" * 3 + "---|---|---:|" + "---:|" * floor)
    for row in rows:
        met = "" if row.met is None else "yes" if row.met else "**no**"
        cells = [row.measure, row.unit, number(row.ours, row.digits), number(row.theirs, row.digits)]
        cells += [number(row.ratio, 2), row.target, met, number(row.cpu_ratio, 2)]
        if floor:
            cells.append(number(row.floor, row.digits))
        print("| " + " | ".join(cells) + " |")


def versions(python: str) -> str:
    code = "import importlib.metadata as m; print(m.version('sglang-router'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def routers(args: argparse.Namespace, fleet: Fleet, scratch: Path, tokenizer: Path) -> list[Router]:
    server: dict[str, Any] = {}
    if args.processes is not None:
        server["processes"] = args.processes
    made: list[Router] = []
    if not args.no_peer:
        python = args.peer_python or install_peer(args.cache)
        print(f"peer: {PEER} {versions(python)} (this benchmark is about {PEER_VERSION}), cache_aware, log level warn")
        made.append(Peer("peer", fleet, scratch, args.router_cpus, python=python))
    made.append(
        Ours(
            "ours",
            fleet,
            scratch,
            args.router_cpus,
            python=args.router_python,
            tokenizer=tokenizer,
            server=server,
        )
    )
    print(f"ours: cache_aware_zmq, log level info to a file, every feature on; server settings: {server or 'default'}")
    if args.floor:
        made.append(Floor("floor", fleet, scratch, args.router_cpus, python=args.router_python))
    return made


def main() -> int:
    args = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the clean-up, so that no router is left behind
    began = time.monotonic()
    os.nice(args.nice)
    limit = machine.raise_file_limit()
    args.cache.mkdir(parents=True, exist_ok=True)
    print(machine.describe(PACKAGES))
    print(
        f"a router on processor {sorted(args.router_cpus)}, {args.workers} workers and the load on "
        f"{sorted(args.load_cpus)}; {args.scale.runs} runs of {args.scale.seconds:g} s each, in turns",
        flush=True,
    )
    tokenizer = material.tokenizer(args.cache, args.router_python)
    body_files = [
        material.bodies(args.cache, size, stream=stream) for size in material.SIZES for stream in (False, True)
    ]
    scratch = Path(tempfile.mkdtemp(prefix="datapath-"))
    rows: list[Row] = []
    fleet = Fleet(
        scratch=scratch,
        cache=args.cache,
        python=args.router_python,
        tokenizer=tokenizer,
        body_files=[path for path in body_files if "stream" not in path.name],
        cpus=args.load_cpus,
        count=args.workers,
        cached_tokens=args.cached_tokens,
    )
    try:
        with fleet:
            bench = Bench(
                fleet=fleet,
                load=Load(args.cache, args.load_cpus, fleet),
                routers=routers(args, fleet, scratch, tokenizer),
                cache=args.cache,
                scale=args.scale,
                file_limit=limit,
            )
            try:
                for name in args.only:
                    start = time.monotonic()
                    found = CELLS[name](bench)
                    rows += found
                    for row in found:
                        ours, theirs = number(row.ours, row.digits), number(row.theirs, row.digits)
                        print(f"  {row.measure}: ours {ours}, theirs {theirs} {row.unit}. {row.note}")
                    print(f"({name}: {time.monotonic() - start:.0f} s)", flush=True)
            finally:
                bench.stop()
            print_rows(rows, floor=args.floor)
            if args.smoke:
                print("\nA smoke run: these figures mean nothing.")
            print("\nOur router's own counters:")
            for line in bench.proof:
                print(f"- {line}")
            if bench.disturbed:
                cells = ", ".join(f"{cell} {count}" for cell, count in bench.disturbed.items())
                print(f"\nRuns in which others used the machine all the same: {cells}")
            if bench.invalid:
                print(f"\n**Errors, so not valid:** {', '.join(sorted(bench.invalid))}")
            if args.json:
                everything = {"rows": [asdict(row) for row in rows], "samples": bench.samples}
                args.json.write_text(json.dumps(everything, indent=1))
    finally:
        if args.keep:
            print(f"logs and configurations: {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    print(f"({time.monotonic() - began:.0f} s in all)")
    return 1 if bench.invalid else 0


if __name__ == "__main__":
    sys.exit(main())
