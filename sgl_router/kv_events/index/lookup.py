"""Where in a `HolderTable` a prompt's keys are, and who holds them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sgl_router.kv_events.index.table_space import BUCKET, Rows, Space, Words

__all__ = ["Lookup", "ShortLookup"]


class Lookup:
    """Where a sequence of keys is. `known`: so many of them, from the first on, have a row, and the next has none."""

    __slots__ = ("_new", "_old", "_rows", "_rows_old", "known")

    def __init__(
        self,
        new: Space,
        rows: Rows,
        old: Space | None = None,
        rows_old: Rows | None = None,
        *,
        complete: bool = False,
    ) -> None:
        self._new, self._rows, self._old, self._rows_old = new, rows, old, rows_old
        if complete:
            self.known = len(rows)
            return
        absent = rows < 0 if rows_old is None else (rows < 0) & (rows_old < 0)
        first = int(absent.argmax())
        self.known = first if absent[first] else len(rows)

    @property
    def rows(self) -> Rows:
        """Of the known keys, where there is one `space`."""
        return self._rows[: self.known]

    def leading(self, number: int) -> Words | None:
        """A column's bits of the known keys; None where there are none."""
        if self._old is not None:
            return self.all(number)[: self.known]
        column = self._new.columns.get(number)
        return None if column is None else column[self._rows[: self.known]]

    def all(self, number: int) -> Words:
        """A column's bits of all the keys."""
        result: Words = np.zeros(len(self._rows), dtype=np.uint64)
        for space, rows in ((self._new, self._rows), (self._old, self._rows_old)):
            column = space.columns.get(number) if space is not None else None
            if column is not None and rows is not None:
                there = np.flatnonzero(rows >= 0)
                result[there] = column[rows[there]]
        return result


class ShortLookup:
    """The same for few keys in one space, one by one: that is quicker than any number of numpy calls."""

    __slots__ = ("_rows", "_space", "known")

    def __init__(self, space: Space, keys: Iterable[int]) -> None:
        self._space = space
        self._rows = found = list[int]()
        names, shift, last = space.names, space.shift, space.last
        for key in keys:
            row = (key >> shift) * BUCKET
            # `Space.find`, spelt out: most keys are in their home or near it.
            while (name := names[row]) != key and name:
                row = row + 1 & last
            if not name:
                break
            found.append(row)
        self.known = len(found)

    @property
    def rows(self) -> Rows:
        return np.array(self._rows, dtype=np.int64)

    def leading(self, number: int) -> list[int] | None:
        cells = self._space.cells.get(number)
        return None if cells is None else [cells[row] for row in self._rows]
