"""What one routing decision costs: body in, worker chosen. No sockets, no HTTP.

    python benchmarks/decision.py [--tokens 1000,4000,16000,32000] [--workers 64] [--runs 9] ...

A decision is what the product does between a request's body and its dispatch: `parse_chat`, `ModelTokenizer.prompt`
(render, encode), `KvIndex.match` (hash, look up) and `CacheAwareZmq.select`. "First seen": a system prompt that every
worker holds, then text that nobody has seen. "Next turn": a conversation one turn longer than the last time, which one
worker holds. The floor to compare with is what routers in Python usually do, in the same run: the template rendered,
HF `tokenizers` encoding all of it, a chained sha256 per page, a dictionary of bitmasks walked block by block.

CPU time is the process's (all threads). Medians. Nothing is asserted about time; a wrong choice ends the run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import itertools
import logging
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import structlog
from decision_tokenizer import Texts, tokenizer_dir
from index_work import root_tokens, stored, table

from sgl_router.api.body import parse_chat
from sgl_router.kv_events import KvIndex
from sgl_router.kv_events.follow.wire import Frame
from sgl_router.policies import PolicyInput
from sgl_router.policies.cache_aware import CacheAwareZmq
from sgl_router.tokenization import ModelTokenizer
from sgl_router.workers import KvEventSource, Target, Worker, WorkerInfo

TARGET_MS = {1_000: 0.1, 4_000: 0.2, 16_000: 0.6, 32_000: 2.0}
MODEL = "m"
SYSTEM_CHARS = 600
TURN_CHARS = 700
# Conversations that take turns, so that none is in the processor's caches when it goes on.
TALKS = 5
STEPS = ("parse", "prompt", "match", "select")
PIECE = 512


class UnconnectedIndex(KvIndex):
    """Streams without sockets: the benchmark hands the events over itself."""

    def _subscribe(self, rank: Any) -> None:
        pass

    def store(self, target: Target, tokens: Sequence[int], page: int, rng: np.random.Generator) -> None:
        """As if the target's engine had said that it holds these tokens."""
        stream = self._by_target[target].stream
        parent = None
        for start in range(0, len(tokens) // page, PIECE):
            piece = tokens[start * page : (start + PIECE) * page]
            blocks = len(piece) // page
            hashes = rng.integers(-(1 << 63), (1 << 63) - 1, blocks, dtype=np.int64).tolist()
            stream.apply(stored(hashes, parent, piece[: blocks * page], page))
            parent = hashes[-1]


class Rig(NamedTuple):
    """A router's inside with a fleet that holds `background` blocks of other prompts."""

    tokenizer: ModelTokenizer
    index: UnconnectedIndex
    policy: CacheAwareZmq
    targets: list[Target]
    page: int
    rng: np.random.Generator
    numbers: Iterator[int]

    async def decide(self, body: bytes) -> tuple[dict[str, float], dict[str, float], Any, Any]:
        """One decision; seconds of wall and processor time by step."""
        walls, cpus = [time.perf_counter()], [time.process_time()]

        def lap() -> None:
            walls.append(time.perf_counter())
            cpus.append(time.process_time())

        chat = parse_chat(body)
        lap()
        prompt = await self.tokenizer.prompt(chat)
        lap()
        match = await self.index.match(MODEL, prompt)
        lap()
        decision = self.policy.select(self.targets, PolicyInput(match=match, prompt_tokens=len(prompt)))
        lap()
        wall = {name: walls[i + 1] - walls[i] for i, name in enumerate(STEPS)}
        cpu = {name: cpus[i + 1] - cpus[i] for i, name in enumerate(STEPS)}
        wall["all"], cpu["all"] = walls[-1] - walls[0], cpus[-1] - cpus[0]
        expected = self.index.expect(decision.target, match)
        lap()
        # As a finished request leaves it: whoever has been chosen is not chosen again at once.
        decision.target.processed += 1
        decision.target.last_selected = next(self.numbers)
        if expected is not None:
            expected.end()
        lap()
        wall["expect"], cpu["expect"] = walls[-1] - walls[-3], cpus[-1] - cpus[-3]
        return wall, cpu, decision, prompt


def build(workers: int, page: int, background: int) -> Rig:
    tokenizer = ModelTokenizer.load(str(tokenizer_dir()))
    index = UnconnectedIndex()
    rng = np.random.default_rng(1)
    targets = []
    for number in range(workers):
        source = KvEventSource(host="127.0.0.1", port_base=1 + number, topic="kv")
        worker = Worker(
            f"http://w{number}:1", WorkerInfo(served_model_name=MODEL, block_size=page, dp_size=1, kv_source=source)
        )
        index.worker_added(worker)
        targets.append(worker.targets[0])
        index._by_target[targets[-1]].stream.observe(Frame(0, msgspec.msgpack.encode([0.0, [], 0])))
    for number in range(background // PIECE):
        index.store(targets[number % workers], root_tokens(rng, PIECE * page, number), page, rng)
    policy = CacheAwareZmq(random.Random(1), cache_threshold=0.5, balance_abs_threshold=32, balance_rel_threshold=1.1)
    return Rig(tokenizer, index, policy, targets, page, rng, itertools.count(1))


class Floor:
    """The same decision as routers in Python usually make it."""

    def __init__(self, rig: Rig, background: int) -> None:
        from tokenizers import Tokenizer

        self._rig = rig
        self._encoder = Tokenizer.from_file(str(tokenizer_dir() / "tokenizer.json"))
        self._holders: dict[bytes, int] = {}
        rng = random.Random(1)
        for number in range(background):
            self._holders[rng.randbytes(32)] = 1 << number // PIECE % len(rig.targets)

    def store(self, tokens: np.ndarray[Any, Any], mask: int) -> None:
        for key in self._keys(tokens):
            self._holders[key] = self._holders.get(key, 0) | mask

    def decide(self, body: bytes) -> None:
        chat = msgspec.json.decode(body)
        text = self._rig.tokenizer.render(chat).text
        ids = np.array(self._encoder.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        alive, depths = (1 << len(self._rig.targets)) - 1, {}
        for depth, key in enumerate(self._keys(ids)):
            still = alive & self._holders.get(key, 0)
            gone = alive ^ still
            while gone:
                low = gone & -gone
                depths[low.bit_length() - 1] = depth
                gone ^= low
            alive = still
            if not alive:
                break
        order = range(len(self._rig.targets))
        max(order, key=lambda number: (depths.get(number, 0), -self._rig.targets[number].inflight))

    def _keys(self, ids: np.ndarray[Any, Any]) -> list[bytes]:
        size, data, key, keys = self._rig.page * 4, ids.tobytes(), b"", []
        for start in range(0, (len(ids) - 1) // self._rig.page * size, size):
            key = hashlib.sha256(key + data[start : start + size]).digest()
            keys.append(key)
        return keys


def encode(messages: Sequence[dict[str, str]]) -> bytes:
    return msgspec.json.encode({"model": MODEL, "messages": messages, "stream": True, "temperature": 0.7})


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class Bodies:
    """Chats of about so many tokens."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._texts = Texts(seed)
        self.turn_chars = TURN_CHARS
        self.system = message("system", Texts(0).some(SYSTEM_CHARS))
        sample = self._texts.some(60_000)
        self._chars = len(sample) / len(rig.tokenizer.encode(sample))

    def first_seen(self, tokens: int) -> bytes:
        chars = int(tokens * self._chars) - SYSTEM_CHARS
        return encode([self.system, message("user", self._texts.some(chars))])

    def conversation(self, tokens: int, *, less_chars: int) -> list[dict[str, str]]:
        """Ends with a question."""
        left = int(tokens * self._chars) - SYSTEM_CHARS - less_chars
        messages = [self.system]
        while left > 0 or messages[-1]["role"] != "user":
            self.add(messages, "user" if messages[-1]["role"] != "user" else "assistant")
            left -= self.turn_chars
        return messages

    def add(self, messages: list[dict[str, str]], role: str) -> None:
        messages.append(message(role, self._texts.some(self.turn_chars)))


Sample = tuple[dict[str, float], dict[str, float]]


async def first_seen(rig: Rig, bodies: Bodies, tokens: int, runs: int) -> tuple[list[Sample], list[bytes], int]:
    samples, used, length = [], [], 0
    for number in range(runs + 2):
        body = bodies.first_seen(tokens)
        wall, cpu, _, prompt = await rig.decide(body)
        length = len(prompt)
        if number >= 2:  # the first ones pay for what is made on first use
            samples.append((wall, cpu))
            used.append(body)
    return samples, used, length


async def next_turn(rig: Rig, bodies: Bodies, tokens: int, runs: int) -> tuple[list[Sample], list[bytes], int]:
    """A conversation goes on where its last prompt and answer are held."""
    bodies.turn_chars = min(TURN_CHARS, tokens // 10)
    # They are of the size asked for in the middle of what is measured.
    ahead = 2 * bodies.turn_chars * (2 + runs // TALKS // 2)
    talks = [bodies.conversation(tokens, less_chars=ahead) for _ in range(TALKS)]
    homes = [rig.targets[7 * number % len(rig.targets)] for number in range(TALKS)]
    samples, used, length = [], [], 0
    for number in range(TALKS * 2 + runs):
        messages, home = talks[number % TALKS], homes[number % TALKS]
        body = encode(messages)
        wall, cpu, decision, prompt = await rig.decide(body)
        length = len(prompt)
        if number >= TALKS * 2:
            if decision.target is not home:
                raise RuntimeError(f"a wrong choice: {decision}")
            samples.append((wall, cpu))
            used.append(body)
        bodies.add(messages, "assistant")
        # The worker computed this prompt and the answer to it.
        whole = await rig.tokenizer.encode_chat({"messages": [*messages], "add_generation_prompt": False})
        rig.index.store(home, whole.tolist(), rig.page, rig.rng)
        bodies.add(messages, "user")
    return samples, used, length


def floor_ms(floor: Floor, bodies: Sequence[bytes], cap: int = 5) -> float:
    times = []
    for body in bodies[:cap]:
        start = time.process_time()
        floor.decide(body)
        times.append(time.process_time() - start)
    return statistics.median(times) * 1e3


COLUMNS = (
    "prompt",
    "tokens",
    "wall ms",
    "CPU ms",
    *(f"{name} us" for name in STEPS),
    "expect us",
    "floor CPU ms",
    "floor / ours",
    "target ms",
    "",
)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(part.replace("_", "")) for part in text.split(",")]

    parser.add_argument("--tokens", type=numbers, default=[1_000, 4_000, 16_000, 32_000])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--background", type=int, default=1_000_000, help="other blocks in the index")
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rig = build(args.workers, args.page, args.background)
    floor = Floor(rig, args.background)
    bodies = Bodies(rig, 2)
    system = await rig.tokenizer.encode_chat({"messages": [bodies.system], "add_generation_prompt": False})
    for target in rig.targets:
        rig.index.store(target, system.tolist(), rig.page, rig.rng)
    floor.store(system, (1 << args.workers) - 1)
    print(
        f"{args.workers} workers, page {args.page}, {args.background:,} other blocks; encoder {rig.tokenizer.backend}; "
        f"medians of {args.runs}; floor: HF tokenizers, chained sha256, dictionary of bitmasks"
    )
    kinds: list[tuple[str, Callable[[Rig, Bodies, int, int], Awaitable[tuple[list[Sample], list[bytes], int]]]]] = [
        ("first seen", first_seen),
        ("next turn", next_turn),
    ]
    rows = []
    for kind, run in kinds:
        for tokens in args.tokens:
            gc.collect()
            gc.freeze()
            samples, used, length = await run(rig, bodies, tokens, args.runs)
            rows.append(row(kind, length, tokens, samples, floor_ms(floor, used)))
    table("Routing decisions", COLUMNS, iter(rows))
    rig.tokenizer.close()


def row(kind: str, length: int, tokens: int, samples: Sequence[Sample], floor: float) -> Sequence[str]:
    def median(which: int, name: str) -> float:
        return statistics.median(sample[which][name] for sample in samples)

    wall, cpu = median(0, "all") * 1e3, median(1, "all") * 1e3
    target = TARGET_MS.get(tokens)
    return (
        kind,
        f"{length:,}",
        f"{wall:.3f}",
        f"{cpu:.3f}",
        *(f"{median(0, name) * 1e6:.0f}" for name in (*STEPS, "expect")),
        f"{floor:.2f}",
        f"{floor / cpu:.0f}",
        "" if target is None else f"{target:g}",
        "" if target is None else "pass" if wall <= target else "FAIL",
    )


if __name__ == "__main__":
    asyncio.run(main())
