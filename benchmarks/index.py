"""How fast and how large the KV index is: events applied, prompts matched, bytes per block, event lag, and a peer.

    python benchmarks/index.py [--quick] [--sections apply,match,memory,lag,peer,profile] [--runs 3] ...
    python benchmarks/index.py --sections peer --install-peer peer-venv

Prints one Markdown table per section, medians of the runs. `peer` compares with ai-dynamo-runtime's RadixTree and is
left out where no interpreter has it. Nothing is asserted about time; wrong answers and lost frames end the run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import index_cpu
import index_lag
import index_memory
import index_peer
import structlog
from index_work import BATCH_TOKENS, table

SECTIONS = ("apply", "match", "memory", "lag", "peer", "profile")
SHAPES = {"1": (1, "disjoint"), "8": (8, "disjoint"), "8=": (8, "equal"), "64": (64, "disjoint")}


def numbers(text: str) -> list[int]:
    return [int(part.replace("_", "")) for part in text.split(",")]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sections", default="apply,match,memory,lag,peer", help=f"any of {','.join(SECTIONS)}")
    add("--quick", action="store_true", help="small sizes, one run: under a minute")
    add("--runs", type=int, default=3)
    add("--workers", type=numbers, default=[1, 8, 64])
    add("--pages", type=numbers, default=[1, 64], help="page sizes of apply, lag and peer")
    add("--blocks", type=int, default=400_000, help="blocks per cell of apply at page 1; a quarter at other pages")
    add("--prompts", type=numbers, default=[2_000, 32_000], help="prompt lengths of match, in blocks")
    add("--match-page", type=int, default=1)
    add("--rounds", type=int, default=200, help="matches per run and cell")
    add("--background", type=int, default=1_000_000, help="other blocks in the index while matching")
    add("--memory-blocks", type=numbers, default=[1_000_000, 10_000_000])
    add("--memory-shapes", default="1,8,8=,64", help="workers; = for equal blocks on all")
    add("--memory-runs", type=int, default=1, help="memory hardly varies between runs")
    add("--lag-workers", type=int, default=8)
    add("--lag-rate", type=float, default=50, help="batches of 64 blocks per second and worker")
    add("--lag-secs", type=float, default=10)
    add("--lag-burst", type=int, default=2_000)
    add("--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="auto: uvloop where installed, as serve")
    add("--peer-python", help="an interpreter that has ai-dynamo-runtime and msgspec")
    add("--install-peer", type=Path, metavar="DIR", help="make a virtual environment there with ai-dynamo-runtime")
    args = parser.parse_args()
    if args.quick:
        quick = {
            "runs": 1,
            "blocks": 80_000,
            "rounds": 40,
            "background": 100_000,
            "workers": [1, 8],
            "memory_blocks": [1_000_000],
            "memory_shapes": "1,8=",
            "lag_secs": 2.0,
        }
        for name, value in quick.items():
            if getattr(args, name) == parser.get_default(name):
                setattr(args, name, value)
    args.sections = args.sections.split(",")
    unknown = set(args.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    args.use_uvloop = args.loop == "uvloop" or (args.loop == "auto" and importlib.util.find_spec("uvloop") is not None)
    return args


def machine(use_uvloop: bool) -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        load = f", load average {os.getloadavg()[0]:.1f} at the start"
    except OSError:
        load = ""
    packages = ["msgspec", "xxhash", "numpy", "pyzmq"] + (["uvloop"] if use_uvloop else [])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{os.cpu_count()} cores ({model}){load}; {platform.system()} {platform.release()}; "
        f"{platform.python_implementation()} {platform.python_version()}; {versions}"
    )


def apply_section(args: argparse.Namespace) -> None:
    table(
        f"Events applied: decode, observe, apply; batches of {BATCH_TOKENS:,} tokens; median of {args.runs}",
        index_cpu.APPLY_COLUMNS,
        index_cpu.apply_rows(args.blocks, args.pages, args.workers, args.runs),
    )


def match_section(args: argparse.Namespace) -> None:
    table(
        f"Prompts matched: page {args.match_page}, {args.background:,} other blocks; median of {args.runs}",
        index_cpu.MATCH_COLUMNS,
        index_cpu.match_rows(
            args.prompts, args.match_page, args.workers, args.runs, background=args.background, rounds=args.rounds
        ),
    )


def memory_section(args: argparse.Namespace) -> None:
    shapes = [SHAPES[name] for name in args.memory_shapes.split(",")]
    table(
        f"Memory: tree and per-stream maps, a process each; median of {args.memory_runs}",
        index_memory.COLUMNS,
        index_memory.rows(args.memory_blocks, shapes, args.memory_runs),
    )


def lag_section(args: argparse.Namespace) -> None:
    table(
        f"Event lag: send to applied, batches of {index_lag.BATCH_BLOCKS} blocks, "
        f"{'uvloop' if args.use_uvloop else 'asyncio'}; median of {args.runs}",
        index_lag.COLUMNS,
        index_lag.rows(
            args.pages,
            args.lag_workers,
            args.lag_rate,
            args.lag_secs,
            args.lag_burst,
            args.runs,
            use_uvloop=args.use_uvloop,
        ),
    )


def peer_section(args: argparse.Namespace) -> None:
    python = index_peer.install(args.install_peer) if args.install_peer else index_peer.find(args.peer_python)
    if python is None:
        print("peer: no interpreter with ai-dynamo-runtime (--peer-python PATH, or --install-peer DIR); left out")
        return
    peer = index_peer.Peer(python)
    try:
        print("peer: " + ", ".join(f"{name} {version}" for name, version in peer.ask("hello").items()))
        table(
            f"Peer, events applied (rates: above 1 we are faster; CPU: below 1); median of {args.runs}",
            index_peer.APPLY_COLUMNS,
            index_peer.apply_rows(peer, args.blocks // 2, args.pages, args.workers, args.runs),
        )
        table(
            f"Peer, prompts matched, page {args.match_page} (times: below 1 we are faster); median of {args.runs}",
            index_peer.MATCH_COLUMNS,
            index_peer.match_rows(
                peer,
                args.prompts,
                args.match_page,
                args.workers,
                args.runs,
                background=args.background // 4,
                rounds=args.rounds // 2,
            ),
        )
    finally:
        peer.close()


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    args = options()
    print(machine(args.use_uvloop), flush=True)
    run: dict[str, Callable[[argparse.Namespace], None]] = {
        "apply": apply_section,
        "match": match_section,
        "memory": memory_section,
        "lag": lag_section,
        "peer": peer_section,
        "profile": lambda args: index_cpu.profile(args.blocks // 2),
    }
    for name in SECTIONS:
        if name in args.sections:
            start = time.perf_counter()
            run[name](args)
            print(f"({name}: {time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
