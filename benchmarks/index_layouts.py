"""Layouts of the map from block keys to holders, side by side: what `kv_events/table.py` was chosen by.

    python benchmarks/index_layouts.py [--background 1000000] [--blocks 2000] [--workers 1,8,64,512]

A prompt's keys are walked from the front until nobody holds the next block; every layout must find the same depths.
"all": every worker holds the prompt; "staircase": each a little more than the one before; "holes": as "all", but every
worker lacks one block somewhere; "none". CPU microseconds, medians; sixteen prompts take turns, so that blocks are not
in the processor's caches. Sets per worker are searched by galloping, which is wrong for "holes" and left out there.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from index_memory import resident, trim
from index_work import median, table

from sgl_router.kv_events.index.table import HolderTable
from sgl_router.kv_events.index.walk import PrefixWalk, by_slot

PIECE = 512
PROMPTS = 16


class Layout(Protocol):
    def keys(self, keys: list[int]) -> Any:
        """As a prompt's keys come out of hashing."""
        ...

    def store(self, slot: int, keys: list[int]) -> None: ...
    def remove(self, slot: int, keys: list[int]) -> None: ...
    def match(self, keys: Any, workers: int) -> dict[int, int]: ...


class Flat:
    """One dictionary from key to an integer of bits, walked in a loop: the layout before."""

    def __init__(self) -> None:
        self.shards: list[dict[int, int]] = [{}]
        self.last = 0

    def keys(self, keys: list[int]) -> list[int]:
        return array("Q", keys).tolist()  # objects of their own, as in a request

    def store(self, slot: int, keys: list[int]) -> None:
        bit, shards, last = 1 << slot, self.shards, self.last
        for key in keys:
            shard = shards[key & last]
            shard[key] = shard.get(key, 0) | bit

    def remove(self, slot: int, keys: list[int]) -> None:
        bit, shards, last = 1 << slot, self.shards, self.last
        for key in keys:
            shard = shards[key & last]
            mask = shard.get(key, 0) & ~bit
            if mask:
                shard[key] = mask
            else:
                shard.pop(key, None)

    def match(self, keys: list[int], workers: int) -> dict[int, int]:
        alive, depths, at = (1 << workers) - 1, {}, 0
        shards, last = self.shards, self.last
        for key in keys:
            still = alive & shards[key & last].get(key, 0)
            gone = alive ^ still
            while gone:
                low = gone & -gone
                depths[low.bit_length() - 1] = at
                gone ^= low
            alive = still
            if not alive:
                break
            at += 1
        while alive:
            low = alive & -alive
            depths[low.bit_length() - 1] = at
            alive ^= low
        return {slot: depth for slot, depth in depths.items() if depth}


class Sharded(Flat):
    """256 of them, by the key's low bits: what grows at once is small."""

    def __init__(self) -> None:
        super().__init__()
        self.shards = [{} for _ in range(256)]
        self.last = 255


class Sets:
    """A set of keys per worker, each searched by galloping: exact only where holdings are closed under prefixes."""

    def __init__(self) -> None:
        self.held: dict[int, set[int]] = {}

    def keys(self, keys: list[int]) -> list[int]:
        return keys

    def store(self, slot: int, keys: list[int]) -> None:
        self.held.setdefault(slot, set()).update(keys)

    def remove(self, slot: int, keys: list[int]) -> None:
        self.held[slot].difference_update(keys)

    def match(self, keys: list[int], workers: int) -> dict[int, int]:
        depths = {}
        for slot in range(workers):
            held = self.held.get(slot, ())
            low, high = 0, 1
            while high <= len(keys) and keys[high - 1] in held:
                low, high = high, high * 2
            high = min(high, len(keys) + 1)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if keys[middle - 1] in held else (low, middle)
            if low:
                depths[slot] = low
        return depths


class Table:
    """The table in use."""

    def __init__(self) -> None:
        self.table = HolderTable(4, bits=16)

    def keys(self, keys: list[int]) -> array[int]:
        return array("Q", keys)

    def store(self, slot: int, keys: list[int]) -> None:
        self.table.store(0, slot, keys)

    def remove(self, slot: int, keys: list[int]) -> None:
        self.table.discard_many(0, slot, keys)

    def match(self, keys: array[int], workers: int) -> dict[int, int]:
        walk = PrefixWalk(self.table, {}, (1 << workers) - 1)
        start, piece = 0, 32
        while start < len(keys) and walk.feed(keys[start : start + piece]):
            start, piece = start + piece, min(piece * 4, 2048)
        return by_slot(walk.finish().held)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "dictionary": Flat,
    "256 dictionaries": Sharded,
    "sets, galloping": Sets,
    "numpy table": Table,
}


def fresh(rng: np.random.Generator, count: int) -> list[int]:
    keys: list[int] = rng.integers(1, (1 << 64) - 1, count, dtype=np.uint64).tolist()
    return keys


def holdings(scenario: str, prompt: list[int], worker: int, workers: int) -> list[int]:
    if scenario == "staircase":
        return prompt[: len(prompt) * (worker + 1) // workers]
    if scenario == "holes":
        hole = random.Random(worker).randrange(len(prompt))
        return prompt[:hole] + prompt[hole + 1 :]
    return prompt if scenario == "all" else []


def background(layout: Layout, blocks: int, workers: int) -> tuple[float, float, float]:
    """Us per block, the slowest step in ms, bytes per block."""
    rng = np.random.default_rng(1)
    pieces = [np.array(fresh(rng, PIECE), dtype=np.uint64) for _ in range(blocks // PIECE)]
    trim()
    before, busy, slowest = resident(), 0.0, 0.0
    for number, piece in enumerate(pieces):
        keys = piece.tolist()  # a layout that keeps the objects keeps them alone
        start = time.thread_time()
        layout.store(number % workers, keys)
        took = time.thread_time() - start
        busy, slowest = busy + took, max(slowest, took)
    del keys
    trim()
    return busy / blocks * 1e6, slowest * 1e3, (resident() - before) / blocks


def timed(act: Callable[[list[int]], object], prompts: Sequence[list[int]], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        for prompt in prompts:
            start = time.thread_time()
            act(prompt)
            times.append(time.thread_time() - start)
    return median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--background", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=2_000)
    parser.add_argument("--workers", default="1,8,64,512")
    args = parser.parse_args()
    matched, changed = [], []
    for workers in map(int, args.workers.split(",")):
        found: dict[tuple[str, int], dict[int, int]] = {}
        for name, make in LAYOUTS.items():
            gc.collect()
            layout = make()
            store_us, slowest_ms, size = background(layout, args.background, workers)
            rng = np.random.default_rng(2)
            times: dict[str, float | None] = {}
            for scenario in ("all", "staircase", "holes", "none"):
                prompts = [fresh(rng, args.blocks) for _ in range(PROMPTS)]
                for prompt in prompts:
                    for worker in range(workers):
                        if held := holdings(scenario, prompt, worker, workers):
                            layout.store(worker, held)
                if name.startswith("sets") and scenario == "holes":
                    times[scenario] = None
                    continue
                prompts = [layout.keys(prompt) for prompt in prompts]
                for number, prompt in enumerate(prompts[:2]):
                    depths = layout.match(prompt, workers)
                    if found.setdefault((scenario, number), depths) != depths:
                        raise RuntimeError(f"{name} finds other depths")
                times[scenario] = timed(lambda keys, layout=layout, n=workers: layout.match(keys, n), prompts)
            pieces = [fresh(rng, PIECE) for _ in range(200)]
            store = timed(lambda keys, layout=layout: layout.store(0, keys), pieces, 1) / PIECE
            remove = timed(lambda keys, layout=layout: layout.remove(0, keys), pieces, 1) / PIECE
            matched.append((name, str(workers), *("" if us is None else f"{us:,.0f}" for us in times.values())))
            changed.append(
                (
                    name,
                    str(workers),
                    *(f"{v:.2f}" for v in (store_us, store, remove)),
                    f"{slowest_ms:.1f}",
                    f"{size:.0f}",
                )
            )
            del layout
    table(
        f"Match, {args.blocks:,} blocks, us", ("layout", "workers", "all", "staircase", "holes", "none"), iter(matched)
    )
    table(
        f"{args.background:,} blocks in pieces of {PIECE}, us a block",
        ("layout", "workers", "fill", "store", "remove", "slowest step ms", "B/block"),
        iter(changed),
    )


if __name__ == "__main__":
    main()
