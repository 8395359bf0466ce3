"""A hash table from block keys to holder bits: open addressing in numpy arrays, so that looking a whole prompt up is a
few vectorised gathers and not a cache miss per block and object; it grows a slice at a time, never in one step.

A row is a key; its bits are 64-bit words, one column per (kind, word), where a kind is a tier and slot `s` is bit
`s % 64` of word `s // 64`. A row has some bit, or is free, or was given up: then it still leads probes on, and is free
for the next key that comes by. While rehashing, rows of the old space from `_moved` on and all rows of the new one
count; no key is in both. Keys must be spread evenly over 64 bits, as hashes are (others are only slow); 0 and 2**64 - 1
are no keys, nobody holds them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sgl_router.kv_events.index.lookup import Lookup, ShortLookup
from sgl_router.kv_events.index.table_space import BUCKET, GONE, Rows, Space, Words
from sgl_router.prompt import Seen

__all__ = ["WORD_BITS", "HolderTable", "Words", "as_keys"]

WORD_BITS = 64
# From how many keys on a vectorised operation beats a loop.
_VECTOR_KEYS = 40
_VECTOR_STORE = 96
# Up to how many keys are looked up one by one.
_SHORT_KEYS = 120
_ONE = np.uint64(1)
_SLICE_ROWS = 2_048
# Rows moved for a key inserted: looking in two spaces should not last.
_LEAST_PACE = 8


def as_keys(keys: Sequence[int] | Words) -> Words:
    if isinstance(keys, np.ndarray):
        return keys
    packed = keys if isinstance(keys, array) else array("Q", keys)
    return np.frombuffer(packed, dtype=np.uint64) if packed else np.empty(0, dtype=np.uint64)


class HolderTable:
    """Holders of blocks, for `kinds` kinds of holding. `counts[kind]`: keys with a holder."""

    __slots__ = ("_due", "_kinds", "_least_bits", "_moved", "_new", "_old", "_pace", "_words", "counts")

    def __init__(self, kinds: int, *, bits: int = 10) -> None:
        self._kinds = kinds
        self._least_bits = bits
        self._words = 1
        self._new = Space(bits)
        self._old: Space | None = None
        self._moved = self._pace = self._due = 0
        self.counts = [0] * kinds

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def words(self) -> int:
        """Words in which some slot was ever stored."""
        return self._words

    def column(self, kind: int, word: int) -> int:
        return word * self._kinds + kind

    def lookup(self, keys: Words) -> Lookup:
        rows = self._new.rows(keys)
        old = self._old
        if old is None or (rows >= 0).all():
            return Lookup(self._new, rows)
        return Lookup(self._new, rows, old, self._in_old(old, keys))

    def short_lookup(self, keys: Sequence[int] | Words) -> ShortLookup | None:
        """The same; None where there are many keys, or where they are spread over two spaces."""
        if self._old is not None or len(keys) > _SHORT_KEYS:
            return None
        return ShortLookup(self._new, keys.tolist() if isinstance(keys, np.ndarray) else keys)

    def leading(self, kind: int, keys: Iterable[int]) -> list[int] | None:
        """The holders, in the first word, of the leading keys that are there; None where that is not as simple."""
        space = self._new
        cells = space.cells.get(kind)
        if self._old is not None or cells is None:
            return None
        names, shift, last, masks = space.names, space.shift, space.last, list[int]()
        for key in keys:
            row = (key >> shift) * BUCKET
            while (name := names[row]) != key and name:  # as in `ShortLookup`
                row = row + 1 & last
            if not name:
                break
            masks.append(cells[row])
        return masks

    def lookup_at(self, seen: Seen, keys: Words) -> Lookup | None:
        """The same for keys that lie where they were seen; None where one of them does not."""
        if seen.space != self._new.number or not bool((self._new.keys.take(seen.rows) == keys).all()):
            return None
        return Lookup(self._new, seen.rows, complete=True)

    @property
    def space(self) -> int:
        """The number of the space where every key is; 0 while they are spread over two."""
        return self._new.number if self._old is None else 0

    def find(self, key: int) -> tuple[Space, int]:
        """The key's space and row; `~row` of where it would go."""
        new, old = self._new, self._old
        row = (key >> new.shift) * BUCKET  # the usual case, spelt out: in its home
        if new.names[row] == key:
            return new, row
        row = new.find(key)
        if row < 0 and old is not None:
            before = old.find(key)
            if before >= self._moved:
                return old, before
        return new, row

    def mask(self, kinds: Iterable[int], word: int, key: int) -> int:
        """Holders of the key in that word, in any of the kinds."""
        space, row = self.find(key)
        found = 0
        if row >= 0:
            for kind in kinds:
                found |= space.mask(self.column(kind, word), row)
        return found

    def holds_any(self, slot: int, key: int) -> bool:
        """Whether the slot holds the key in any kind."""
        space, row = self.find(key)
        if row >= 0:
            first, bit, columns = slot // WORD_BITS * self._kinds, 1 << slot % WORD_BITS, space.cells
            for number in range(first, first + self._kinds):
                if number in columns and columns[number][row] & bit:
                    return True
        return False

    def holds(self, kind: int, slot: int, key: int) -> bool:
        space, row = self.find(key)
        return row >= 0 and bool(space.mask(self.column(kind, slot // WORD_BITS), row) >> slot % WORD_BITS & 1)

    def held(self, kind: int, slot: int, keys: Sequence[int] | Words) -> npt.NDArray[np.bool_]:
        """For each key, whether the slot holds it."""
        wanted = as_keys(keys)
        result = np.zeros(len(wanted), dtype=np.bool_)
        number, bit = self.column(kind, slot // WORD_BITS), np.uint64(1 << slot % WORD_BITS)
        for space, index, rows in self._located(wanted):
            column = space.columns.get(number)
            if column is not None:
                result[index] = column[rows] & bit != 0
        return result

    def keys_of(self, kind: int, slot: int) -> Iterator[int]:
        """Every key the slot holds. Looks at every row."""
        number, bit = self.column(kind, slot // WORD_BITS), np.uint64(1 << slot % WORD_BITS)
        for space, start in ((self._new, 0), (self._old, self._moved)):
            column = space.columns.get(number) if space is not None else None
            if space is not None and column is not None:
                yield from space.keys[start:][column[start:] & bit != 0].tolist()

    def memory_bytes(self) -> int:
        spaces = [space for space in (self._new, self._old) if space is not None]
        return sum(space.keys.nbytes * (1 + len(space.columns)) for space in spaces)

    # --- writing ------------------------------------------------------------------------------------------------

    def store(self, kind: int, slot: int, keys: Sequence[int]) -> int:
        """Give the slot each of the keys, which are distinct. Returns how many it did not hold before."""
        self._words = max(self._words, slot // WORD_BITS + 1)
        self._make_room(len(keys))
        if len(keys) >= _VECTOR_STORE:
            return self._store_many(kind, slot, as_keys(keys))
        word, bit = slot // WORD_BITS, 1 << slot % WORD_BITS
        number, added, held = self.column(kind, word), 0, 0
        space = self._new
        space.column(number)
        old, moved, alone = self._old, self._moved, self._words == 1
        names, cells, shift, last = space.names, space.cells[number], space.shift, space.last
        for key in keys.tolist() if isinstance(keys, np.ndarray) else keys:
            if not 0 < key < GONE:
                continue
            row = (key >> shift) * BUCKET
            # `Space.find`, spelt out for where nothing is in the way: most events store one block.
            while (name := names[row]) != key and name and name != GONE:
                row = row + 1 & last
            at = space
            if name == GONE and (row := space.find(key)) < 0:
                row, name = ~row, 0
            if not name:
                before = old.find(key) if old is not None else -1
                if old is not None and before >= moved:
                    at, row = old, before
                else:
                    space.insert(row, key)
                    cells[row] = bit
                    held += 1
                    added += 1
                    continue
            masks = cells if at is space else at.column(number).data
            mask = masks[row]
            if not mask & bit:
                if not mask and (alone or not self._elsewhere(at, kind, word, row)):
                    held += 1
                masks[row] = mask | bit
                added += 1
        self.counts[kind] += held
        return added

    def discard(self, kind: int, slot: int, key: int) -> bool:
        """Take one key from the slot. False where it did not hold it."""
        word, bit = slot // WORD_BITS, 1 << slot % WORD_BITS
        space, row = self.find(key)
        if row < 0:
            return False
        number = self.column(kind, word)
        mask = space.mask(number, row)
        if not mask & bit:
            return False
        mask ^= bit
        space.cells[number][row] = mask
        if not mask:
            if not self._elsewhere(space, kind, word, row):
                self.counts[kind] -= 1
            if not any(cells[row] for cells in space.cells.values()):
                space.give_up_one(row)
        return True

    def discard_many(self, kind: int, slot: int, keys: Sequence[int] | Words) -> int:
        """Take distinct keys from the slot. Returns how many it held."""
        if len(keys) < _VECTOR_KEYS:
            plain = keys.tolist() if isinstance(keys, np.ndarray) else keys
            return sum(self.discard(kind, slot, key) for key in plain)
        word, bit = slot // WORD_BITS, np.uint64(1 << slot % WORD_BITS)
        number, removed = self.column(kind, word), 0
        for space, _, rows in self._located(as_keys(keys)):
            column = space.columns.get(number)
            if column is None:
                continue
            masks = column[rows]
            held = np.flatnonzero(masks & bit)
            rows, masks = rows[held], masks[held] ^ bit
            column[rows] = masks
            removed += len(rows)
            rows = rows[masks == 0]
            self.counts[kind] -= self._empty(space, kind, word, rows)
            for other in space.columns.values():
                rows = rows[other[rows] == 0]
            space.give_up(rows)
        return removed

    def _store_many(self, kind: int, slot: int, keys: Words) -> int:
        if not (keys + _ONE > _ONE).all():
            keys = keys[keys + _ONE > _ONE]
        word, bit = slot // WORD_BITS, np.uint64(1 << slot % WORD_BITS)
        number, added = self.column(kind, word), 0
        for space, _, rows in self._located(keys, place=True):
            column = space.column(number)
            masks = column[rows]
            fresh = np.flatnonzero(masks & bit == 0)
            rows, masks = rows[fresh], masks[fresh]
            added += len(rows)
            self.counts[kind] += self._empty(space, kind, word, rows[masks == 0])
            column[rows] = masks | bit
        return added

    # --- rows ---------------------------------------------------------------------------------------------------

    def _in_old(self, old: Space, keys: Words) -> Rows:
        rows = old.rows(keys)
        rows[rows < self._moved] = -1
        return rows

    def _located(self, keys: Words, *, place: bool = False) -> Iterator[tuple[Space, npt.NDArray[np.intp], Rows]]:
        """(space, positions in `keys`, their rows there), for the keys that have a row; with `place`, for all."""
        new, old = self._new, self._old
        rows = new.rows(keys)
        absent = np.flatnonzero(rows < 0)
        if not absent.size:
            yield new, np.arange(len(keys)), rows
            return
        if absent.size < len(keys):
            there = np.flatnonzero(rows >= 0)
            yield new, there, rows[there]
        if old is not None:
            before = self._in_old(old, keys[absent])
            there = np.flatnonzero(before >= 0)
            if there.size:
                yield old, absent[there], before[there]
                absent = absent[before < 0]
        if place and absent.size:
            yield new, absent, new.place(keys[absent], rows[absent])

    def _elsewhere(self, space: Space, kind: int, word: int, row: int) -> bool:
        return self._words > 1 and any(
            space.mask(self.column(kind, other), row) for other in range(self._words) if other != word
        )

    def _empty(self, space: Space, kind: int, word: int, rows: Rows) -> int:
        """How many of the rows, empty in this word, are so in every word."""
        for other in range(self._words):
            column = space.columns.get(self.column(kind, other)) if other != word else None
            if column is not None:
                rows = rows[column[rows] == 0]
        return len(rows)

    # --- growth -------------------------------------------------------------------------------------------------

    def _make_room(self, count: int) -> None:
        """Before `count` keys are inserted: rows must be left, and enough of them for short probes."""
        if self._old is not None:
            self._due += self._pace * count
            while self._old is not None and self._due >= _SLICE_ROWS:
                self._due -= _SLICE_ROWS
                self._move(self._old, _SLICE_ROWS)
        if self._new.used + count <= self._new.limit:
            return
        while self._old is not None:
            self._move(self._old, _SLICE_ROWS)
        old = self._new
        if old.used + count <= old.limit:
            return
        live = min(old.used, sum(self.counts)) + count
        bits = max(self._least_bits, (5 * live // 2 - 1).bit_length(), (old.size // 2 - 1).bit_length())
        self._new, self._old, self._moved = Space(bits), old, 0
        # All old rows are moved before the new space is full.
        self._pace = max(old.size // max(self._new.limit - live, 1) + 2, _LEAST_PACE)
        self._due = 0

    def _move(self, old: Space, count: int) -> None:
        start, stop = self._moved, min(self._moved + count, old.size)
        piece = slice(start, stop)
        live: Words = np.zeros(stop - start, dtype=np.uint64)
        for column in old.columns.values():
            live |= column[piece]
        index = np.flatnonzero(live)
        if index.size:
            keys = old.keys[piece][index]
            rows = self._new.place(keys, self._new.rows(keys))
            for number, column in old.columns.items():
                self._new.column(number)[rows] = column[piece][index]
        self._moved = stop
        if stop == old.size:
            self._old = None
