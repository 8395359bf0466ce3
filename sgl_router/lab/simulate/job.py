"""Requests as the simulation handles them: prompts and answers as chains of block keys."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from xxhash import xxh3_64_intdigest

from sgl_router.kv_events.index.table import Words
from sgl_router.lab.simulate.trace import TraceRow

__all__ = ["Job", "jobs_of"]


class Job:
    """One request. `keys` name the whole pages of prompt and answer; `reusable` of them can be a cache hit, for the
    prompt's last token is always computed."""

    __slots__ = ("arrival", "input_tokens", "keys", "number", "output_tokens", "page_size", "prompt_words", "reusable")

    def __init__(
        self, number: int, arrival: float, input_tokens: int, output_tokens: int, keys: tuple[int, ...], page_size: int
    ) -> None:
        self.number = number
        self.arrival = arrival
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.keys = keys
        self.page_size = page_size
        self.reusable = (input_tokens - 1) // page_size
        self.prompt_words: Words = np.array(keys[: self.reusable], dtype=np.uint64)

    def __repr__(self) -> str:
        return f"Job({self.number}: {self.input_tokens} + {self.output_tokens} tokens at {self.arrival:g} s)"


class _Names:
    """A key per (parent's key, block id): as in the index, a key names the whole prefix up to its block."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], int] = {}

    def extend(self, parent: int, block: int) -> int:
        key = self._known.get((parent, block))
        if key is None:
            key = xxh3_64_intdigest(struct.pack("<Qq", parent, block)) or 1  # 0 is no key
            self._known[parent, block] = key
        return key


def jobs_of(rows: Sequence[TraceRow], *, rate: float = 1.0, page_size: int, answers_return: bool = True) -> list[Job]:
    """The rows as jobs, arriving `rate` times as fast.

    A trace does not name the blocks of answers. Where a later prompt continues a request's whole pages and is long
    enough to contain its answer, the first such prompt is taken to be the conversation's next turn: its blocks there
    are the answer's, as far as the answer goes. Other answers take room in the cache and are never matched; without
    `answers_return` that is all of them, as in a replay, whose prompts are made before there are answers.
    """
    names = _Names()
    turns = _next_turns(rows, page_size) if answers_return else {}
    jobs = []
    for number, row in enumerate(rows):
        output = max(row.output_length, 1)
        pages = row.input_length // page_size
        # The last sampled token is never fed back: it has no KV.
        total = (row.input_length + output - 1) // page_size
        ids = list(row.hash_ids[:pages])
        turn = turns.get(number)
        if turn is not None:
            ids += rows[turn].hash_ids[pages : min(total, rows[turn].input_length // page_size)]
        ids += [~(number << 24 | position) for position in range(total - len(ids))]
        keys, key = [], 0
        for block in ids:
            key = names.extend(key, block)
            keys.append(key)
        arrival = (row.timestamp_ms - rows[0].timestamp_ms) / 1e3 / rate
        jobs.append(Job(number, arrival, row.input_length, output, tuple(keys), page_size))
    return jobs


def _next_turns(rows: Sequence[TraceRow], page_size: int) -> dict[int, int]:
    """For each row that brought its last whole block: the first row that goes on after it, for long enough."""
    found: dict[int, int] = {}
    ends: dict[int, int] = {}
    seen: set[int] = set()
    for number, row in enumerate(rows):
        pages = row.input_length // page_size
        for position, block in enumerate(row.hash_ids):
            owner = ends.get(block)
            if owner is None or position + 1 == len(row.hash_ids):
                continue
            if row.input_length >= rows[owner].input_length + rows[owner].output_length:
                found[owner] = number
                del ends[block]
        if pages and row.hash_ids[pages - 1] not in seen:
            ends[row.hash_ids[pages - 1]] = number
        seen.update(row.hash_ids[:pages])
    return found
