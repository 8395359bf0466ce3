"""Work for the index benchmark: event frames as engines publish them, streams that hold prompts, small statistics."""

from __future__ import annotations

import gc
import secrets
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from sgl_router.kv_events.follow.stream import EventStream
from sgl_router.kv_events.follow.wire import BlockStored, Tier
from sgl_router.kv_events.index.hashing import BlockHasher
from sgl_router.kv_events.index.tree import BlockTree

VOCABULARY = 150_000
BATCH_TOKENS = 2_048
"""Tokens one batch reports: a chunk of prefill."""
BACKGROUND_PIECE = 512
TOPIC = b"kv-events"

_encode = msgspec.msgpack.Encoder().encode


class Wire(NamedTuple):
    """One frame as it comes off a socket, and whose it is."""

    worker: int
    parts: list[bytes]


def encode_batch(
    hashes: Sequence[int], parent: int | None, tokens: Sequence[int], page: int, *, per_page: bool
) -> bytes:
    """A stored chain: one tagged map as 0.5.22 publishes it, or one array per page as 0.5.9 to 0.5.17 do."""
    if not per_page:
        event = {
            "type": "BlockStored",
            "block_hashes": hashes,
            "parent_block_hash": parent,
            "token_ids": tokens,
            "block_size": page,
            "lora_id": None,
            "medium": "GPU",
        }
        return _encode([0.0, [event], 0])
    events: list[list[Any]] = []
    for index, block in enumerate(hashes):
        events.append(["BlockStored", [block], parent, tokens[index * page : (index + 1) * page], page, None, "GPU"])
        parent = block
    return _encode([0.0, events, 0])


def random_hashes(rng: np.random.Generator, count: int) -> list[int]:
    """Engines publish signed 64-bit hashes."""
    hashes: list[int] = rng.integers(-(1 << 63), (1 << 63) - 1, count, dtype=np.int64).tolist()
    return hashes


def random_tokens(rng: np.random.Generator, count: int) -> list[int]:
    tokens: list[int] = rng.integers(0, VOCABULARY, count, dtype=np.int64).tolist()
    return tokens


def root_tokens(rng: np.random.Generator, count: int, number: int) -> list[int]:
    """Tokens of a chain that begins as no chain of another number does: at page 1 random ones would meet by chance."""
    return [VOCABULARY + number, *random_tokens(rng, count - 1)]


def frames(
    blocks: int, *, page: int, workers: int, per_page: bool, seed: int, batch_blocks: int = 0, chain: int = 4
) -> list[Wire]:
    """`blocks` blocks (rounded up to whole batches) in chains of `chain` batches, workers taking turns; none shared."""
    rng = np.random.default_rng(seed)
    size = batch_blocks or max(1, BATCH_TOKENS // page)
    sequence = [0] * workers
    parents: list[int | None] = [None] * workers
    out: list[Wire] = []
    for number in range(-(-blocks // size)):
        worker = number % workers
        hashes, tokens = random_hashes(rng, size), root_tokens(rng, size * page, number)
        if sequence[worker] % chain == 0:
            parents[worker] = None
        payload = encode_batch(hashes, parents[worker], tokens, page, per_page=per_page)
        parents[worker] = hashes[-1]
        out.append(Wire(worker, [TOPIC, sequence[worker].to_bytes(8, "big"), payload]))
        sequence[worker] += 1
    return out


class Fleet:
    """A tree and one stream per worker."""

    def __init__(self, workers: int, page: int, *, stream: type[EventStream] = EventStream) -> None:
        self.tree = BlockTree()
        self.hasher = BlockHasher(page, secret=secrets.randbits(64))
        self.streams = [stream(self.tree, lambda size, bigram: self.hasher, page_size=page) for _ in range(workers)]

    @property
    def mask(self) -> int:
        return sum(1 << stream.slot for stream in self.streams)

    def hold(self, worker: int, tokens: Sequence[int], rng: np.random.Generator) -> None:
        """The worker stores this prompt, through its stream, in pieces as the pump hands them over."""
        page, parent = self.hasher.page_size, None
        for start in range(0, len(tokens) // page, BACKGROUND_PIECE):
            piece = tokens[start * page : (start + BACKGROUND_PIECE) * page]
            hashes = random_hashes(rng, len(piece) // page)
            self.streams[worker].apply(stored(hashes, parent, piece[: len(hashes) * page], page))
            parent = hashes[-1]

    def background(self, blocks: int, rng: np.random.Generator) -> None:
        """Blocks nobody asks for, so that lookups miss the processor's caches as they would."""
        for number in range(blocks // BACKGROUND_PIECE):
            self.hold(
                number % len(self.streams), root_tokens(rng, BACKGROUND_PIECE * self.hasher.page_size, number), rng
            )


def stored(hashes: Sequence[int], parent: int | None, tokens: Sequence[int], page: int) -> BlockStored:
    return BlockStored(hashes, parent, tokens, page, Tier.GPU, True, None, None)


def share(scenario: str, worker: int, workers: int, blocks: int) -> int:
    """Leading blocks of a prompt that a worker holds."""
    return {"all": blocks, "none": 0, "staircase": blocks * (worker + 1) // workers}[scenario]


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def repeat(runs: int, once: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Median of each figure over the runs; the collector starts every run from a clean state."""
    results = []
    for _ in range(runs):
        gc.collect()
        results.append(once())
    return {name: median([result[name] for result in results]) for name in results[0]}


def table(title: str, columns: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """A Markdown table, printed once complete."""
    body = [list(row) for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *body]) for i in range(len(columns))]
    print(f"\n### {title}\n")
    for number, line in enumerate([list(columns), *body]):
        print(
            "| "
            + " | ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            + " |"
        )
        if number == 0:
            print("|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|")
    print(flush=True)
