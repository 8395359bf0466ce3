"""CPU-bound sections of the index benchmark: applying events, matching prompts, and a profile of both."""

from __future__ import annotations

import cProfile
import gc
import pstats
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from index_work import Fleet, Wire, frames, quantile, repeat, root_tokens, share

from sgl_router.kv_events.follow.opening import Opening
from sgl_router.kv_events.follow.wire import BlockStored, decode_batch, decode_frame
from sgl_router.kv_events.index.hashing import DEFAULT_NAMESPACE
from sgl_router.kv_events.index.index import _FIRST_PIECE_BLOCKS, _PIECE_BLOCKS, _PIECE_GROWTH
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.kv_events.index.walk import by_slot
from sgl_router.prompt import Prompt

MAX_BYTES = 64 << 20


def apply_frames(fleet: Fleet, work: Sequence[Wire]) -> float:
    """What the pump does with frames, without the pump. Returns the processor seconds that decoding took, in which
    events are checked and their tokens packed."""
    streams, clock = fleet.streams, time.process_time
    decoding = 0.0
    for worker, parts in work:
        stream = streams[worker]
        start = clock()
        frame = decode_frame(parts, MAX_BYTES)
        opening = Opening(frame, repairable=False)
        while opening.step():
            pass
        decoding += clock() - start
        stream.observe(frame)
        for event in opening.events():
            stream.apply(event)
    return decoding


def apply_once(work: Sequence[Wire], workers: int, page: int) -> dict[str, float]:
    """Seconds (wall and processor) for all of `work` on an empty index; of these, msgpack's; and hashing's alone."""
    fleet = Fleet(workers, page)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    decoding = apply_frames(fleet, work)
    result = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "decode": decoding}
    result["blocks"] = float(sum(stream.blocks_held for stream in fleet.streams))
    if any(stream.counters.orphans or stream.counters.failures for stream in fleet.streams):
        raise RuntimeError("the index refused part of the work")
    hasher = fleet.hasher
    del fleet
    result["hash"] = 0.0
    for _, parts in work:
        events = list(decode_batch(parts[2]).events)
        cpu = time.process_time()
        for event in events:
            assert isinstance(event, BlockStored)
            hasher.extend(1, event.token_ids, len(event.block_hashes))
        result["hash"] += time.process_time() - cpu
    return result


def apply_rows(blocks: int, pages: Sequence[int], workers: Sequence[int], runs: int) -> Iterator[Sequence[str]]:
    for per_page in (False, True):
        for page in pages:
            total = blocks if page == 1 else blocks // 4
            for count in workers:
                work = frames(total, page=page, workers=count, per_page=per_page, seed=count)
                got = repeat(runs, partial(apply_once, work, count, page))
                held = got["blocks"]
                us = got["cpu"] / held * 1e6
                decode, hashing = got["decode"] / held * 1e6, got["hash"] / held * 1e6
                yield (
                    "one event per page" if per_page else "chains",
                    str(page),
                    str(count),
                    f"{held:,.0f}",
                    f"{held / got['wall']:,.0f}",
                    f"{us:.2f}",
                    f"{decode:.2f}",
                    f"{hashing:.2f}",
                    f"{max(0.0, us - decode - hashing):.2f}",
                )


APPLY_COLUMNS = (
    "events",
    "page",
    "workers",
    "blocks",
    "blocks/s",
    "CPU us/block",
    "msgpack",
    "hash",
    "the rest",
)


class Prompts:
    """Prompts of one length and a fleet that holds them as the scenario says, among background blocks."""

    def __init__(self, scenario: str, blocks: int, workers: int, page: int, *, background: int, count: int) -> None:
        rng = np.random.default_rng(blocks + workers)
        self.blocks = blocks
        self.fleet = Fleet(workers, page)
        self.fleet.background(background, rng)
        # One token more than the blocks: an engine always computes the last token itself.
        roots = range(background, background + count)
        self.ids = [np.array(root_tokens(rng, blocks * page + 1, number), dtype=np.uint32) for number in roots]
        self.expected: dict[int, int] = {}
        for worker in range(workers):
            held = share(scenario, worker, workers, blocks)
            if held:
                self.expected[self.fleet.streams[worker].slot] = held
                for ids in self.ids:
                    self.fleet.hold(worker, ids[: held * page].tolist(), rng)

    def match(self, ids: np.ndarray[Any, Any]) -> dict[int, int]:
        """Hash and walk in growing pieces, stopping where nobody holds the next block, as the index does it."""
        walk = self.fleet.tree.walk(self.fleet.mask)
        keys = PromptKeys(Prompt(ids), self.fleet.hasher, DEFAULT_NAMESPACE)
        start, piece = 0, _FIRST_PIECE_BLOCKS
        while start < keys.blocks and walk.feed(keys.slice(start, start + piece)):
            start, piece = start + piece, min(piece * _PIECE_GROWTH, _PIECE_BLOCKS)
        return by_slot(walk.finish().held)


def match_once(prompts: Prompts, rounds: int) -> dict[str, float]:
    """Microseconds, prompts in turn: hashing the whole prompt, walking ready keys, and both as a request does."""
    hasher, tree, mask = prompts.fleet.hasher, prompts.fleet.tree, prompts.fleet.mask
    clock = time.perf_counter
    hashed: list[float] = []
    walked: list[float] = []
    matched: list[float] = []
    for number in range(rounds):
        ids = prompts.ids[number % len(prompts.ids)]
        start = clock()
        keys = PromptKeys(Prompt(ids), hasher, DEFAULT_NAMESPACE)
        ready = keys.slice(0, keys.blocks)
        hashed.append(clock() - start)
        start = clock()
        walk = tree.walk(mask)
        for first in range(0, len(ready), _PIECE_BLOCKS):
            if not walk.feed(ready[first : first + _PIECE_BLOCKS]):
                break
        depths = walk.finish()
        walked.append(clock() - start)
        # Another prompt, or the walk before would have brought its blocks into the processor's caches.
        ids = prompts.ids[(number + len(prompts.ids) // 2) % len(prompts.ids)]
        start = clock()
        depth = prompts.match(ids)
        matched.append(clock() - start)
        if depth != prompts.expected or by_slot(depths.held) != depth:
            raise RuntimeError("a wrong match")
    return {
        f"{name}{q}": quantile(values, q / 100) * 1e6
        for name, values in (("hash", hashed), ("walk", walked), ("match", matched))
        for q in (50, 99)
    }


MATCH_COLUMNS = (
    "prompt",
    "workers",
    "held by",
    "hash all p50 us",
    "walk p50 us",
    "walk p99 us",
    "match p50 us",
    "match p99 us",
)


def match_rows(
    lengths: Sequence[int], page: int, workers: Sequence[int], runs: int, *, background: int, rounds: int
) -> Iterator[Sequence[str]]:
    for blocks in lengths:
        for count in workers:
            for scenario in ("all", "staircase", "none"):
                prompts = Prompts(
                    scenario, blocks, count, page, background=background, count=16 if blocks <= 4_000 else 4
                )
                got = repeat(runs, partial(match_once, prompts, rounds))
                yield (
                    f"{blocks:,} blocks",
                    str(count),
                    scenario,
                    *(f"{got[name]:,.1f}" for name in ("hash50", "walk50", "walk99", "match50", "match99")),
                )
                del prompts


def profile(blocks: int) -> None:
    """Where applying goes, by function, for the four shapes of work."""
    for per_page in (False, True):
        for page in (1, 64):
            work = frames(blocks if page == 1 else blocks // 4, page=page, workers=8, per_page=per_page, seed=1)
            fleet = Fleet(8, page)
            profiler = cProfile.Profile()
            profiler.runcall(apply_frames, fleet, work)
            print(f"\n### Profile: {'one event per page' if per_page else 'chains'}, page {page}")
            pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(12)
