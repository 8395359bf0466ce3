"""The peer's half of the index benchmark, run by an interpreter that has `ai-dynamo-runtime`; imports nothing of ours.

Reads pickled commands from stdin, answers each with a pickled dictionary on stdout. RadixTree takes events as JSON that
names every block by the engine's hash and by the hash of its own tokens; a Python router that uses it must decode the
engine's msgpack, hash the tokens (`compute_block_hash_for_seq`) and write that JSON. `ready` times apply_event alone.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import pickle
import platform
import sys
import time
from typing import Any

from dynamo._core import RadixTree, compute_block_hash_for_seq

try:
    import msgspec
except ImportError:
    msgspec = None

PIECE_BLOCKS = 512
_U64 = (1 << 64) - 1


def stored_json(number: int, hashes: list[int], parent: int | None, local: list[int]) -> bytes:
    blocks = [{"block_hash": h & _U64, "tokens_hash": t} for h, t in zip(hashes, local, strict=True)]
    data = {"stored": {"parent_hash": None if parent is None else parent & _U64, "blocks": blocks}}
    event = {"event_id": number, "data": data}
    return msgspec.json.encode(event) if msgspec is not None else json.dumps(event).encode()


def convert(payload: bytes, number: int, page: int) -> list[bytes]:
    """One frame's events as the tree takes them."""
    out = []
    for item in msgspec.msgpack.decode(payload)[1]:
        if isinstance(item, dict):
            hashes, parent, tokens = item["block_hashes"], item["parent_block_hash"], item["token_ids"]
        else:
            hashes, parent, tokens = item[1], item[2], item[3]
        out.append(stored_json(number, hashes, parent, compute_block_hash_for_seq(tokens, page)))
    return out


def finish(tree: Any) -> None:
    """The tree has a thread of its own: an answer means that everything before it is applied."""
    tree.find_matches([1])


def apply(frames: list[tuple[int, bytes]], page: int) -> dict[str, Any]:
    if msgspec is None:
        return {"missing": "msgspec"}
    gc.collect()
    tree = RadixTree()
    wall, cpu = time.perf_counter(), time.process_time()
    for number, (worker, payload) in enumerate(frames):
        for event in convert(payload, number, page):
            tree.apply_event(worker, event)
    finish(tree)
    result = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    ready = [(worker, convert(payload, n, page)) for n, (worker, payload) in enumerate(frames)]
    tree = RadixTree()
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    for worker, events in ready:
        for event in events:
            tree.apply_event(worker, event)
    finish(tree)
    result["ready_wall"] = time.perf_counter() - wall
    result["ready_cpu"] = time.process_time() - cpu
    return result


class Match:
    """A tree that holds what the chains say."""

    def __init__(self) -> None:
        self.tree = RadixTree()
        self.prompts: list[list[int]] = []
        self.expected: dict[int, int] = {}
        self.page = 1
        self.number = 0

    def setup(self, page: int, chains: list[tuple[int, list[int]]], prompts: list[list[int]], expected: Any) -> None:
        self.__init__()  # type: ignore[misc]
        self.page, self.prompts, self.expected = page, prompts, expected
        for worker, tokens in chains:
            local = compute_block_hash_for_seq(tokens, page)
            parent = above = None
            for start in range(0, len(local), PIECE_BLOCKS):
                piece = local[start : start + PIECE_BLOCKS]
                hashes = []
                for key in piece:  # as an engine's: equal prefixes, equal hashes, whichever worker holds them
                    parent = hash((parent, key))
                    hashes.append(parent)
                self.number += 1
                self.tree.apply_event(worker, stored_json(self.number, hashes, above, piece))
                above = parent
        finish(self.tree)

    def run(self, rounds: int) -> dict[str, Any]:
        clock = time.perf_counter
        walked: list[float] = []
        matched: list[float] = []
        for number in range(rounds):
            tokens = self.prompts[number % len(self.prompts)]
            blocks = (len(tokens) - 1) // self.page
            keys = compute_block_hash_for_seq(tokens, self.page)[:blocks]
            start = clock()
            self.tree.find_matches(keys)
            walked.append(clock() - start)
            tokens = self.prompts[(number + len(self.prompts) // 2) % len(self.prompts)]  # as in our half
            start = clock()
            scores = self.tree.find_matches(compute_block_hash_for_seq(tokens, self.page)[:blocks]).scores
            matched.append(clock() - start)
            if {worker: depth for (worker, _), depth in scores.items()} != self.expected:
                return {"wrong": sorted(scores.items())[:3]}
        return {
            f"{name}{q}": sorted(values)[min(len(values) - 1, len(values) * q // 100)] * 1e6
            for name, values in (("walk", walked), ("match", matched))
            for q in (50, 99)
        }


def main() -> None:
    # Whatever the native library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    match = Match()
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: Any
        if name == "hello":
            answer = {
                "python": platform.python_version(),
                "ai-dynamo-runtime": importlib.metadata.version("ai-dynamo-runtime"),
            }
        elif name == "apply":
            answer = apply(*arguments)
        elif name == "setup":
            answer = match.setup(*arguments)
        else:
            answer = match.run(*arguments)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
