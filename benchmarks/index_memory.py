"""Memory of the index, measured in a process of its own: `python benchmarks/index_memory.py BLOCKS WORKERS SHAPE`.

The blocks are held through streams, so the engine-hash map of every stream is included. BLOCKS counts holdings: eight
workers with equal blocks hold BLOCKS/8 distinct ones. Prints one JSON object.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from index_work import BACKGROUND_PIECE, Fleet, encode_batch, median, random_hashes, random_tokens

from sgl_router.kv_events.follow.wire import Tier, decode_batch

COLUMNS = (
    "holdings",
    "workers",
    "blocks",
    "distinct",
    "B/holding",
    "B/distinct",
    "RSS MiB",
    "peak MiB",
    "gc.collect ms",
    "slowest 512-block step ms",
)


def resident() -> int:
    """Bytes resident now; the peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Most bytes resident so far. getrusage would count the parent's too, from before the exec."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trim() -> None:
    """Hand freed memory back, so that what is left is in use."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass


def hold(blocks: int, workers: int, shape: str) -> dict[str, float]:
    rng = np.random.default_rng(1)
    fleet = Fleet(workers, 1)
    fleet.background(BACKGROUND_PIECE * workers, rng)  # whatever is allocated on first use
    trim()
    before = resident()
    slowest = 0.0
    equal = shape == "equal"
    already = sum(stream.blocks_held for stream in fleet.streams)
    for number in range(blocks // (BACKGROUND_PIECE * (workers if equal else 1))):
        payload = encode_batch(
            random_hashes(rng, BACKGROUND_PIECE), None, random_tokens(rng, BACKGROUND_PIECE), 1, per_page=False
        )
        for stream in fleet.streams if equal else (fleet.streams[number % workers],):
            (event,) = decode_batch(payload).events  # each stream decodes its own frame
            start = time.perf_counter()
            stream.apply(event)
            slowest = max(slowest, time.perf_counter() - start)
            del event
    trim()
    used = resident() - before
    start = time.perf_counter()
    gc.collect()
    collect = time.perf_counter() - start
    return {
        "held": sum(stream.blocks_held for stream in fleet.streams) - already,
        "distinct": fleet.tree.block_count(Tier.GPU) - already,
        "bytes": used,
        "peak": peak() - before,
        "collect": collect,
        "slowest": slowest,
    }


def rows(sizes: Sequence[int], shapes: Sequence[tuple[int, str]], runs: int) -> Iterator[Sequence[str]]:
    for size in sizes:
        for workers, shape in shapes:
            results: list[dict[str, Any]] = []
            for _ in range(runs):
                done = subprocess.run(
                    [sys.executable, __file__, str(size), str(workers), shape],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                results.append(json.loads(done.stdout))
            got = {name: median([result[name] for result in results]) for name in results[0]}
            yield (
                f"{size:,}",
                str(workers),
                shape,
                f"{got['distinct']:,.0f}",
                f"{got['bytes'] / got['held']:.1f}",
                f"{got['bytes'] / got['distinct']:.1f}",
                f"{got['bytes'] / 2**20:,.0f}",
                f"{got['peak'] / 2**20:,.0f}",
                f"{got['collect'] * 1e3:.1f}",
                f"{got['slowest'] * 1e3:,.1f}",
            )


if __name__ == "__main__":
    print(json.dumps(hold(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
