"""The KV event side of the fake workers: `python datapath_kv.py SPEC.json`, until standard input ends.

Publishes in SGLang 0.5.23's format: at first the blocks of the bodies' shared beginnings, spread over the workers, and
then a trickle of stores and removals. What was published before a router came is replayed to it.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import zmq.asyncio

from sgl_router.lab.mock_worker.config import Dialect
from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored, CacheCleared
from sgl_router.lab.mock_worker.profile import EngineProfile
from sgl_router.lab.mock_worker.publisher import EventPublisher, open_publishers
from sgl_router.tokenization import ModelTokenizer

TRICKLE_SECS = 0.25
TRICKLE_BLOCKS = 8
TRICKLE_KEPT = 40


@dataclass
class Engine:
    """One worker's cache, as far as its events tell."""

    publisher: EventPublisher
    page: int
    rng: random.Random
    chains: list[tuple[int, ...]] = field(default_factory=list)

    def store(self, tokens: list[int]) -> tuple[int, ...]:
        hashes = tuple(self.rng.getrandbits(63) for _ in range(len(tokens) // self.page))
        units = tuple(tokens[: len(hashes) * self.page])
        if hashes:
            self.publisher.publish([BlocksStored(hashes=hashes, parent=None, units=units, page_size=self.page)])
        return hashes

    def trickle(self) -> None:
        tokens = [self.rng.randrange(30_000) for _ in range(TRICKLE_BLOCKS * self.page)]
        self.chains.append(self.store(tokens))
        if len(self.chains) > TRICKLE_KEPT:
            self.publisher.publish([BlocksRemoved(hashes=self.chains.pop(0))])


async def beginnings(tokenizer: ModelTokenizer, lines: list[str], groups: int) -> list[list[int]]:
    """The token ids that all bodies with one system prompt share."""
    members: list[list[dict[str, Any]]] = [[] for _ in range(groups)]
    for number, line in enumerate(lines):
        members[number % groups].append(json.loads(line))
    shared = []
    for bodies in members:
        encoded = [list(map(int, await tokenizer.encode_chat(body))) for body in bodies[:4]]
        length = 0
        for ids in zip(*encoded, strict=False):
            if len(set(ids)) > 1:
                break
            length += 1
        shared.append(encoded[0][:length])
    return shared


async def main(spec: dict[str, Any], bodies: list[list[str]]) -> None:
    context = zmq.asyncio.Context()
    engines = []
    for number, worker in enumerate(spec["workers"]):
        publishers, _, _ = await open_publishers(
            context,
            ranks=1,
            host="127.0.0.1",
            kv_port=worker["kv_port"],
            replay_port=worker["replay_port"],
            replay_send_high_water_mark=0,
            profile=EngineProfile(Dialect.MAP_LORA, "0.5.23"),
            topic="",
            buffer_steps=10_000,
        )
        engines.append(Engine(publishers[0], spec["page"], random.Random(number)))
        publishers[0].publish([CacheCleared()])
    tokenizer = ModelTokenizer.load(spec["tokenizer"])
    for lines in bodies:
        for group, tokens in enumerate(await beginnings(tokenizer, lines, spec["groups"])):
            engines[group % len(engines)].store(tokens)
    print("ready", flush=True)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not ended.done():
        await asyncio.wait([ended], timeout=TRICKLE_SECS)
        for engine in engines:
            engine.trickle()
    context.destroy(linger=0)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output says "ready"
    given = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(main(given, [Path(path).read_text().splitlines() for path in given["bodies"]]))
