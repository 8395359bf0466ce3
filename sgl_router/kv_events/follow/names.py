"""What an engine calls its blocks: a map from its hashes that never grows in one long step.

A dictionary doubles by copying all it holds: 30 ms and more at a million entries. So what outgrows one dictionary is
moved to `_SHARDS` of them, chosen by the hash's high bits, a few entries with each one that is added. Up to there it
is a plain dictionary, and as fast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

from sgl_router.kv_events.follow.wire import EngineHash

__all__ = ["Names"]

V = TypeVar("V")

# A dictionary of 2**18 places holds 174,762 entries; the next one doubles it.
SPLIT_AT = 160_000
_SHARDS = 64
_LAST = _SHARDS - 1
# Not the low bits: a dictionary chooses its places by them. Python hashes integers modulo 2**61 - 1.
_SHIFT = 61 - 6
_MOVED_PER_ENTRY = 2
_GONE: Any = object()


class Names(Generic[V]):
    """Entries in the order in which they were added; once there are shards, in each of them."""

    __slots__ = ("_front", "_left", "_moving", "_old", "_shards", "plain")

    def __init__(self) -> None:
        self.plain: dict[EngineHash, V] | None = {}
        """The only dictionary there is, for quick look-ups; None once there are several."""
        self._shards: list[dict[EngineHash, V]] = []
        # While entries move: where they come from. What was moved or taken out is `_GONE` there, lest the size change
        # under the iterator; `_left` are not.
        self._old: dict[EngineHash, V] = {}
        self._moving: Iterator[tuple[EngineHash, V]] = iter(())
        self._left = 0
        self._front = 0

    def __len__(self) -> int:
        return len(self.plain) if self.plain is not None else sum(map(len, self._shards)) + self._left

    def __contains__(self, name: EngineHash) -> bool:
        return self.get(name, _GONE) is not _GONE

    def get(self, name: EngineHash, default: Any = None) -> V | Any:
        if self.plain is not None:
            return self.plain.get(name, default)
        found = self._shard(name).get(name, _GONE)
        if found is _GONE and self._left:
            found = self._old.get(name, _GONE)
        return default if found is _GONE else found

    def __getitem__(self, name: EngineHash) -> V:
        found: V = self.get(name, _GONE)
        if found is _GONE:
            raise KeyError(name)
        return found

    def __setitem__(self, name: EngineHash, value: V) -> None:
        self.put((name,), (value,))

    def put(self, names: Sequence[EngineHash], values: Sequence[V]) -> list[V]:
        """Add as many of either. Returns the values that names had until now, or earlier in `names`."""
        displaced: list[V] = []
        plain = self.plain
        if plain is not None:
            before = len(plain)
            if plain.keys().isdisjoint(names):
                plain.update(zip(names, values, strict=True))
                if len(plain) - before < len(names):
                    displaced = [value for name, value in zip(names, values, strict=True) if plain[name] != value]
            else:
                for name, value in zip(names, values, strict=True):
                    if (old := plain.setdefault(name, value)) != value:
                        displaced.append(old)
                        plain[name] = value
            if len(plain) >= SPLIT_AT:
                self._split(plain)
            return displaced
        if self._left:
            self._move(_MOVED_PER_ENTRY * len(names))
            for name in names:
                self._fetch(name)
        shards, find = self._shards, hash
        for name, value in zip(names, values, strict=True):
            shard = shards[find(name) >> _SHIFT & _LAST]
            if (old := shard.setdefault(name, value)) != value:
                displaced.append(old)
                shard[name] = value
        return displaced

    def pop(self, name: EngineHash, default: Any = None) -> V | Any:
        """The name's value, taken out."""
        if self.plain is not None:
            return self.plain.pop(name, default)
        if self._left:
            self._fetch(name)
        return self._shard(name).pop(name, default)

    def popitem(self) -> tuple[EngineHash, V]:
        """Some entry, taken out. KeyError where there is none."""
        if self.plain is not None:
            return self.plain.popitem()
        while self._old:
            name, value = self._old.popitem()
            if value is not _GONE:
                self._left -= 1
                return name, value
        while self._shards:
            if self._shards[-1]:
                return self._shards[-1].popitem()
            self._shards.pop()
        raise KeyError("empty")

    def items(self) -> Iterator[tuple[EngineHash, V]]:
        """All entries. RuntimeError where some were added or taken out meanwhile."""
        if self.plain is not None:
            yield from self.plain.items()
            return
        for name, value in self._old.items():
            if value is not _GONE:
                yield name, value
        for shard in self._shards:
            yield from shard.items()

    def oldest(self, most: int) -> list[tuple[EngineHash, V]]:
        """Up to `most` of those that were added first, in another shard each time. Empty only where there is nothing,
        or where entries are still on the move."""
        if self.plain is not None:
            return list(islice(self.plain.items(), most))
        if self._left:
            self._move(_MOVED_PER_ENTRY * most)
        for _ in self._shards:
            self._front = self._front + 1 & _LAST
            found = list(islice(self._shards[self._front].items(), most))
            if found:
                return found
        return []

    def memory_bytes(self) -> int:
        """Bytes of the dictionaries, without what they refer to."""
        tables = [self.plain] if self.plain is not None else [self._old, *self._shards]
        return sum(sys.getsizeof(table) for table in tables)

    def _shard(self, name: EngineHash) -> dict[EngineHash, V]:
        return self._shards[hash(name) >> _SHIFT & _LAST]

    def _split(self, plain: dict[EngineHash, V]) -> None:
        self._shards = [{} for _ in range(_SHARDS)]
        self.plain, self._old, self._left = None, plain, len(plain)
        self._moving = iter(plain.items())

    def _fetch(self, name: EngineHash) -> None:
        """Move this entry, if it is still in its old place."""
        value = self._old.get(name, _GONE)
        if value is not _GONE:
            self._shard(name)[name] = value
            self._old[name] = _GONE
            self._left -= 1

    def _move(self, count: int) -> None:
        old, shards, find, moved = self._old, self._shards, hash, 0
        for name, value in islice(self._moving, count):
            if value is not _GONE:
                shards[find(name) >> _SHIFT & _LAST][name] = value
                old[name] = _GONE
                moved += 1
        self._left -= moved
        if not self._left:
            self._old, self._moving = {}, iter(())
