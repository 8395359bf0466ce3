"""Blocks that dispatched requests will make slots hold: few, short-lived, and never counted as held."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ExpectedBlocks"]


class ExpectedBlocks:
    """`masks[key]`: the slots expected to hold the block, as bits. Several requests may expect the same of a slot."""

    __slots__ = ("_again", "masks")

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        # How many requests beyond the first expect a (slot, key).
        self._again: dict[tuple[int, int], int] = {}

    def add(self, slot: int, keys: Sequence[int]) -> None:
        """One more request will make `slot` hold the keys, which are distinct: `take` the same ones once."""
        masks, bit = self.masks, 1 << slot
        if masks.keys().isdisjoint(keys):
            masks.update(dict.fromkeys(keys, bit))
            return
        again = self._again
        for key in keys:
            mask = masks.get(key, 0)
            if mask & bit:
                again[slot, key] = again.get((slot, key), 0) + 1
            else:
                masks[key] = mask | bit

    def take(self, slot: int, keys: Sequence[int]) -> None:
        """Take back what one `add` marked; what another request expects too stays marked."""
        masks, again, bit = self.masks, self._again, 1 << slot
        for key in keys:
            if again and (slot, key) in again:
                others = again[slot, key]
                if others > 1:
                    again[slot, key] = others - 1
                else:
                    del again[slot, key]
            elif rest := masks.pop(key, 0) & ~bit:
                masks[key] = rest

    def memory_bytes(self) -> int:
        return self.masks.__sizeof__() + self._again.__sizeof__()
