"""The rows of a `HolderTable`: linear probing over numpy arrays, for one key or for many at once."""

from __future__ import annotations

import itertools
import mmap

import numpy as np
import numpy.typing as npt

__all__ = ["BUCKET", "GONE", "Rows", "Space", "Words"]

Words = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

# From how many keys on a vectorised operation beats a loop.
_VECTOR_KEYS = 40
# Rows of one cache line: a key's home is the first of them.
BUCKET = 8
# The name of a row that was given up.
GONE = 2**64 - 1
_ONE = np.uint64(1)
_numbers = itertools.count(1)


def _zeros(count: int) -> Words:
    """Zeros whose memory is taken a small page at a time as it is touched. With huge pages, which numpy asks for, the
    first keys of a table that has grown would have all of it cleared at once."""
    memory = mmap.mmap(-1, count * 8)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint64)


class Space:
    """2**bits rows with linear probing, from a home that the key's top bits name."""

    __slots__ = ("_wide_shift", "cells", "columns", "keys", "last", "limit", "names", "number", "shift", "size", "used")

    def __init__(self, bits: int) -> None:
        self.number = next(_numbers)
        self.size = 1 << bits
        self.last = self.size - 1
        self.limit = self.size * 5 // 8
        self.shift = 64 - bits + BUCKET.bit_length() - 1
        self._wide_shift = np.uint64(self.shift)
        self.keys = _zeros(self.size)
        # The same memory: one element through a memoryview costs a third of what it costs through the array.
        self.names = self.keys.data
        self.columns: dict[int, Words] = {}
        self.cells: dict[int, memoryview] = {}
        self.used = 0

    def column(self, number: int) -> Words:
        found = self.columns.get(number)
        if found is None:
            found = self.columns[number] = _zeros(self.size)
            self.cells[number] = found.data
        return found

    def find(self, key: int) -> int:
        """The key's row, or `~row` of where it would go."""
        names, last, free = self.names, self.last, -1
        row = (key >> self.shift) * BUCKET
        while (name := names[row]) != key:
            if not name or name == GONE:
                if free < 0:
                    free = row
                if not name:
                    return ~free
            row = (row + 1) & last
        return row

    def rows(self, keys: Words) -> Rows:
        """`find` for each key."""
        if len(keys) < _VECTOR_KEYS:
            return np.array(list(map(self.find, keys.tolist())), dtype=np.int64)
        homes: Rows = (keys >> self._wide_shift).view(np.int64)
        rows, away = self._in_buckets(homes, keys)
        if away.size >= _VECTOR_KEYS:  # their home is full
            beyond = (homes[away] + 1) & (self.last // BUCKET)
            rows[away], further = self._in_buckets(beyond, keys[away])
            away = away[further]
        for index in away.tolist():
            rows[index] = self.find(int(keys[index]))
        return rows

    def _in_buckets(self, buckets: Rows, keys: Words) -> tuple[Rows, Rows]:
        """`find` for each key in a bucket of its own, and the indices of those that lie, or would, in a later one."""
        names = self.keys.reshape(-1, BUCKET).take(buckets, axis=0)
        hits = names == keys[:, None]
        lanes = hits.argmax(1)
        starts = np.arange(0, hits.size, BUCKET)
        rows: Rows = buckets * BUCKET + lanes
        missed = np.flatnonzero(~hits.ravel().take(starts + lanes))
        if not missed.size:
            return rows, missed
        # A key never lies behind a row that was never taken, but perhaps behind one that was given up.
        others = names[missed]
        lanes = (others + _ONE <= _ONE).argmax(1)  # free or given up
        rows[missed] = ~(buckets[missed] * BUCKET + lanes)
        return rows, missed[others.all(1)]

    def place(self, keys: Words, rows: Rows) -> Rows:
        """Insert distinct keys for which `rows` said `rows`, all negative. Returns where they are."""
        rows = ~rows
        lost = self._claim(keys, rows)
        if lost.size >= _VECTOR_KEYS:
            # Keys that move house are neighbours and want the same row: they line up behind it, in its bucket.
            order = lost[np.argsort(rows[lost], kind="stable")]
            first = rows[order]
            places = np.arange(order.size)
            starts = np.concatenate(([True], first[1:] != first[:-1]))
            behind = first + 1 + places - np.maximum.accumulate(np.where(starts, places, 0))
            fits = first // BUCKET == behind // BUCKET
            order, behind = order[fits], behind[fits]
            free = self.keys[behind] == 0
            rows[order[free]] = behind[free]
            self._claim(keys[order[free]], behind[free])
            lost = lost[self.keys[rows[lost]] != keys[lost]]
        for index in lost.tolist():
            key = int(keys[index])
            rows[index] = row = ~self.find(key)
            self.insert(row, key)
        return rows

    def _claim(self, keys: Words, rows: Rows) -> Rows:
        """Write each key into its row; where several want one row, one gets it. Returns the indices of the others."""
        before = self.keys[rows]
        self.keys[rows] = keys
        won = self.keys[rows] == keys
        self.used += int(np.count_nonzero(won & (before == 0)))
        return np.flatnonzero(~won)

    def insert(self, row: int, key: int) -> None:
        self.used += not self.names[row]
        self.names[row] = key

    def give_up(self, rows: Rows) -> None:
        """The rows of keys without bits: free where no probe goes on from there."""
        self.keys[rows] = GONE
        for _ in range(BUCKET):
            at_end = self.keys[rows + 1 & self.last] == 0
            ends = rows[at_end]
            if not ends.size:
                return
            self.keys[ends] = 0
            self.used -= len(ends)
            rows = rows[~at_end]

    def give_up_one(self, row: int) -> None:
        names, last = self.names, self.last
        names[row] = GONE
        if not names[row + 1 & last]:
            while names[row] == GONE:
                names[row] = 0
                self.used -= 1
                row = row - 1 & last

    def mask(self, number: int, row: int) -> int:
        cells = self.cells.get(number)
        return int(cells[row]) if cells is not None else 0
