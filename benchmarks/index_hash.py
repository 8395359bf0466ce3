"""Block keys by chained xxh3 (in use) and by a seeded, vectorised prefix hash: `python benchmarks/index_hash.py`.

The prefix hash sums a 64-bit mix of (token, position) over the prompt and takes the sum at every block's end: a few
numpy passes, whatever the page size. A block of an event needs its parent's sum and position. CPU microseconds.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from index_work import median, table

from sgl_router.kv_events.index.hashing import BlockHasher

_SEED, _A, _B, _C = (np.uint64(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB8))


def _mix(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    words ^= words >> np.uint64(30)
    words *= _A
    words ^= words >> np.uint64(27)
    words *= _B
    words ^= words >> np.uint64(31)
    return words


def prefix(ids: np.ndarray[Any, Any], page: int, start: int = 0, before: int = 0) -> array[int]:
    """Keys of whole blocks; the sum before them and their first token's position."""
    count = len(ids) // page * page
    words = ids[:count].astype(np.uint64)
    words += np.arange(start, start + count, dtype=np.uint64) * _C
    words *= _SEED
    sums = np.cumsum(_mix(words).reshape(-1, page).sum(axis=1, dtype=np.uint64), dtype=np.uint64)
    return array("Q", _mix(sums + np.uint64(before)).tobytes())


def timed(act: Callable[[], object], rounds: int) -> str:
    times = []
    for _ in range(7):
        start = time.process_time()
        for _ in range(rounds):
            act()
        times.append((time.process_time() - start) / rounds)
    return f"{median(times) * 1e6:,.1f}"


def main() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for page in (1, 16, 64):
        hasher = BlockHasher(page)
        for tokens in (1_000, 4_000, 16_000, 32_000):
            ids = rng.integers(0, 150_000, tokens, dtype=np.uint32)
            chained = timed(lambda h=hasher, i=ids, n=tokens // page: array("Q", h.chain(1, i, 0, n)), 20)
            rows.append((f"prompt of {tokens:,}", str(page), chained, timed(lambda i=ids, p=page: prefix(i, p), 20)))
        block = rng.integers(0, 150_000, page).tolist()
        one = timed(lambda h=hasher, b=block: h.extend(1, b, 1), 2_000)
        other = timed(lambda b=block, p=page: prefix(np.frombuffer(array("I", b), dtype=np.uint32), p, 5, 7), 500)
        rows.append(("event of one page", str(page), one, other))
    table("Hashing, CPU us", ("what", "page", "chained xxh3", "prefix hash"), iter(rows))


if __name__ == "__main__":
    main()
