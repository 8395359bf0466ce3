"""Blocks that dispatched requests will make slots hold: few, short-lived, and never counted as held."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import repeat

__all__ = ["STRIDE", "ExpectedBlocks", "landmarks"]

STRIDE = 8
"""Every so many blocks of a prompt one is marked for all of them; a power of two."""


def landmarks(keys: Sequence[int], first: int) -> Sequence[int]:
    """The keys, of a prompt's blocks from number `first` on, that stand for all of them: where a stride of the prompt
    ends, and the first and the last few. A key contains its prefix, so that a marked block tells of those before it."""
    if len(keys) <= 3 * STRIDE:
        return keys
    begin = (-first - 1) % STRIDE + STRIDE
    return [*keys[:STRIDE], *keys[begin:-STRIDE:STRIDE], *keys[-STRIDE:]]


class ExpectedBlocks:
    """`masks[key]`: the slots expected to hold the block, as bits. Several requests may expect the same of a slot.

    Whole prompts come and go with every request, so what nobody else expects is handled without a step per block.
    """

    __slots__ = ("_again", "masks")

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        # By slot, how many requests beyond the first expect a key.
        self._again: dict[int, dict[int, int]] = {}

    def add(self, slot: int, keys: Sequence[int]) -> None:
        """One more request will make `slot` hold the keys, which are distinct: `take` the same ones once."""
        masks, bit, known = self.masks, 1 << slot, 0
        # What others expect too is mostly the beginning of a prompt.
        while known < len(keys) and keys[known] in masks:
            self._add_one(slot, bit, keys[known])
            known += 1
        rest = keys[known:] if known else keys
        if masks.keys().isdisjoint(rest):
            masks.update(dict.fromkeys(rest, bit))
        else:
            for key in rest:
                self._add_one(slot, bit, key)

    def _add_one(self, slot: int, bit: int, key: int) -> None:
        mask = self.masks.get(key, 0)
        if mask & bit:
            again = self._again.setdefault(slot, {})
            again[key] = again.get(key, 0) + 1
        else:
            self.masks[key] = mask | bit

    def take(self, slot: int, keys: Sequence[int]) -> None:
        """Take back what one `add` marked; what another request expects too stays marked."""
        masks, bit, again = self.masks, 1 << slot, self._again.get(slot)
        if again is not None and not again.keys().isdisjoint(keys):
            last = []
            for key in keys:
                others = again.get(key, 0)
                if others > 1:
                    again[key] = others - 1
                elif others:
                    del again[key]
                else:
                    last.append(key)
            if not again:
                del self._again[slot]
            keys = last
        taken = list(map(masks.pop, keys, repeat(0)))
        if taken.count(bit) != len(taken):
            for key, mask in zip(keys, taken, strict=True):
                if mask & ~bit:
                    masks[key] = mask & ~bit

    def memory_bytes(self) -> int:
        return sys.getsizeof(self.masks) + sum(map(sys.getsizeof, self._again.values()))
