"""Made-up workloads, as traces: what routing is good for, and what hurts it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

from sgl_router.lab.simulate.trace import BLOCK_TOKENS, TraceRow

__all__ = ["WORKLOADS", "make_workload"]


class _Blocks:
    """Numbers that were never used before."""

    def __init__(self) -> None:
        self._next = itertools.count()

    def take(self, count: int) -> list[int]:
        return list(itertools.islice(self._next, count))

    def prompt(self, shared: list[int], tokens: int) -> tuple[int, ...]:
        """Blocks of a prompt of `tokens` tokens that begins with `shared` (whole blocks) and goes on like no other."""
        whole = -(-tokens // BLOCK_TOKENS)
        return tuple(shared[:whole] + self.take(max(whole - len(shared), 0)))


def make_workload(name: str, *, requests: int, per_sec: float, seed: int) -> list[TraceRow]:
    """`requests` requests at `per_sec` a second on average. Equal arguments, equal workloads. KeyError by name."""
    rows = WORKLOADS[name](random.Random(f"{name}/{seed}"), requests, per_sec)
    return sorted(itertools.islice(rows, requests), key=lambda row: row.timestamp_ms)


def _arrivals(rng: random.Random, per_sec: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now * 1e3
        now += rng.expovariate(per_sec)


def _length(rng: random.Random, median: int, spread: float, most: int) -> int:
    return max(16, min(int(rng.lognormvariate(0.0, spread) * median), most))


def _answer(rng: random.Random) -> int:
    return _length(rng, 200, 0.8, 2_000)


def shared_prompt(rng: random.Random, requests: int, per_sec: float) -> Iterator[TraceRow]:
    """Eight system prompts of 4,096 tokens, a few of them popular, each followed by a question of its own."""
    blocks = _Blocks()
    systems = [blocks.take(8) for _ in range(8)]
    weights = [1 / rank for rank in range(1, 9)]
    for at in _arrivals(rng, per_sec):
        system = rng.choices(systems, weights)[0]
        tokens = len(system) * BLOCK_TOKENS + _length(rng, 800, 0.7, 8_000)
        yield TraceRow(at, tokens, _answer(rng), blocks.prompt(system, tokens))


def chats(rng: random.Random, requests: int, per_sec: float) -> Iterator[TraceRow]:
    """Conversations of about eight turns after one system prompt; each turn repeats all that was said before."""
    blocks = _Blocks()
    system = blocks.take(2)
    rows: list[TraceRow] = []
    for at in _arrivals(rng, per_sec / 8):
        if len(rows) >= requests:
            break
        said, tokens = list(system), len(system) * BLOCK_TOKENS
        for _ in range(1 + min(int(rng.expovariate(1 / 7)), 40)):
            tokens += _length(rng, 600, 1.0, 12_000)
            answer = _answer(rng)
            rows.append(TraceRow(at, tokens, answer, blocks.prompt(said, tokens)))
            said = list(rows[-1].hash_ids[: tokens // BLOCK_TOKENS])
            tokens += answer
            said += blocks.take(tokens // BLOCK_TOKENS - len(said))
            at += (answer * 0.02 + rng.expovariate(1 / 20)) * 1e3
    rows.sort(key=lambda row: row.timestamp_ms)
    return iter(rows)


def unique(rng: random.Random, requests: int, per_sec: float) -> Iterator[TraceRow]:
    """No prompt has anything in common with another."""
    blocks = _Blocks()
    for at in _arrivals(rng, per_sec):
        tokens = _length(rng, 4_000, 1.0, 60_000)
        yield TraceRow(at, tokens, _answer(rng), blocks.prompt([], tokens))


def hot_prefix(rng: random.Random, requests: int, per_sec: float) -> Iterator[TraceRow]:
    """Nine in ten requests begin with the same 16,384 tokens."""
    blocks = _Blocks()
    hot = blocks.take(32)
    for at in _arrivals(rng, per_sec):
        shared = hot if rng.random() < 0.9 else []
        tokens = len(shared) * BLOCK_TOKENS + _length(rng, 1_500, 0.8, 16_000)
        yield TraceRow(at, tokens, _answer(rng), blocks.prompt(shared, tokens))


def bimodal(rng: random.Random, requests: int, per_sec: float) -> Iterator[TraceRow]:
    """Four in five prompts are short, the fifth is fifty times as long; half of each kind goes on after a known one."""
    blocks = _Blocks()
    known: dict[bool, list[list[int]]] = {True: [], False: []}
    for at in _arrivals(rng, per_sec):
        long = rng.random() < 0.2
        past = known[long]
        shared = rng.choice(past[-50:]) if past and rng.random() < 0.5 else []
        new = rng.randrange(20_000, 40_000) if long else rng.randrange(400, 800)
        tokens = len(shared) * BLOCK_TOKENS // 2 + new
        ids = blocks.prompt(shared[: len(shared) // 2], tokens)
        past.append(list(ids[: tokens // BLOCK_TOKENS]))
        yield TraceRow(at, tokens, _answer(rng), ids)


def bursts(rng: random.Random, requests: int, per_sec: float) -> Iterator[TraceRow]:
    """Forty requests within a tenth of a second, all with one new prefix of 4,096 tokens; then nothing for a while."""
    blocks = _Blocks()
    for at in _arrivals(rng, per_sec / 40):
        shared = blocks.take(8)
        for _ in range(40):
            tokens = len(shared) * BLOCK_TOKENS + _length(rng, 600, 0.7, 8_000)
            yield TraceRow(at + rng.random() * 100, tokens, _answer(rng), blocks.prompt(shared, tokens))


WORKLOADS: dict[str, Callable[[random.Random, int, float], Iterator[TraceRow]]] = {
    "shared_prompt": shared_prompt,
    "chats": chats,
    "unique": unique,
    "hot_prefix": hot_prefix,
    "bimodal": bimodal,
    "bursts": bursts,
}
