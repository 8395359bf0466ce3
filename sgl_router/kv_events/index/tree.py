"""The shared block-hash tree: which slots hold which block, per tier.

A block is named by its chain key, which contains its whole prefix, so a flat map from key to holders *is* the tree:
walking a prompt's keys from the front walks one path of it. A slot is one (worker, rank) stream; its holders are bits
of integers, so a walk narrows 64 workers at once, and only where holders change is there anything to do. Pure,
synchronous, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sortedcontainers import SortedList

from sgl_router.kv_events.follow.names import Names
from sgl_router.kv_events.follow.wire import Tier
from sgl_router.kv_events.index.expected import ExpectedBlocks, landmarks
from sgl_router.kv_events.index.table import HolderTable, as_keys
from sgl_router.kv_events.index.walk import Depths, PrefixWalk, short_walk

__all__ = ["BlockTree"]

_KINDS = {tier: position for position, tier in enumerate(Tier)}
_TIERS = range(len(Tier))


class BlockTree:
    """Holders of every block, by tier. Slots are small integers handed out by `acquire`."""

    __slots__ = ("_expected", "_free", "_held", "_next", "_retired", "awaited", "retired_blocks", "stored")

    def __init__(self) -> None:
        self._held = HolderTable(len(Tier), bits=16)
        self._expected = ExpectedBlocks()
        # Blocks whose being stored somebody waits for, and who is told then: the slot, and all that was stored with it.
        self.awaited: dict[int, Any] = {}
        self.stored: Callable[[int, Sequence[int]], None] = lambda slot, keys: None
        self._free: SortedList[int] = SortedList()
        self._next = 0
        self._retired: deque[tuple[int, Names[int], Names[Any] | None]] = deque()
        # Of slots that were given up, and not yet swept.
        self.retired_blocks = 0

    def acquire(self) -> int:
        """A slot that holds nothing."""
        if self._free:
            return int(self._free.pop(0))  # low slots share words, and a walk looks at few
        self._next += 1
        return self._next - 1

    def retire(self, slot: int, blocks: Names[int], parents: Names[Any] | None = None) -> None:
        """Give `slot` up at once; its bits (on the keys in `blocks`, which is consumed) are swept later, and `parents`
        emptied on the way: freeing a million entries is no small step either.

        The caller must stop matching the slot now: until swept it is not handed out again, so no stream inherits it.
        """
        self.retired_blocks += len(blocks)
        self._retired.append((slot, blocks, parents))

    def sweep(self, budget: int) -> bool:
        """Clear up to `budget` blocks of retired slots. True while some remain."""
        while self._retired and budget > 0:
            slot, blocks, parents = self._retired[0]
            count = min(budget, len(blocks))
            keys = list({blocks.popitem()[1] for _ in range(count)})
            self.retired_blocks -= count
            budget -= max(count, 1)
            if parents is not None:
                for _ in range(min(count, len(parents))):
                    parents.popitem()
            for kind in _TIERS:
                if self._held.counts[kind]:
                    self._held.discard_many(kind, slot, keys)
            if not blocks:
                self._retired.popleft()
                self._free.add(slot)
        return bool(self._retired)

    def store(self, slot: int, tier: Tier, keys: Sequence[int]) -> int:
        """Mark `slot` as holding each of the keys, which are distinct, in `tier`. Returns how many it did not hold
        there before."""
        added = self._held.store(_KINDS[tier], slot, keys)
        if self.awaited and not self.awaited.keys().isdisjoint(keys):
            self.stored(slot, keys)
        return added

    def remove(self, slot: int, tier: Tier, key: int) -> bool:
        """Forget one holding. False where the slot did not hold the key in that tier."""
        return self._held.discard(_KINDS[tier], slot, key)

    def remove_many(self, slot: int, tier: Tier, keys: Sequence[int]) -> int:
        """Forget holdings of distinct keys. Returns how many there were."""
        return self._held.discard_many(_KINDS[tier], slot, keys)

    def expect(self, slot: int, keys: Sequence[int], first: int = 0) -> Sequence[int]:
        """One more request will make `slot` hold the keys of a prompt's blocks from number `first` on. Returns what to
        `unexpect` once."""
        marks = landmarks(keys, first)
        self._expected.add(slot, marks)
        return marks

    def unexpect(self, slot: int, marks: Sequence[int]) -> None:
        """Take back what one `expect` marked; what another request expects too stays marked."""
        self._expected.take(slot, marks)

    @property
    def expects(self) -> bool:
        """Whether some slot is expected to hold something."""
        return bool(self._expected.masks)

    def holds(self, slot: int, key: int, tier: Tier | None = None) -> bool:
        """Whether the slot holds the key in `tier`, or in any."""
        if tier is not None:
            return self._held.holds(_KINDS[tier], slot, key)
        return self._held.holds_any(slot, key)

    def holdings(self, slot: int) -> Iterator[tuple[int, Tier]]:
        """Every (key, tier) the slot holds. Walks the whole tree: for tests and snapshots, not for requests."""
        for tier, kind in _KINDS.items():
            for key in self._held.keys_of(kind, slot):
                yield key, tier

    def tier_masks(self, slot: int, keys: Sequence[int]) -> bytes:
        """For each key, the tiers the slot holds it in: bit i stands for the i-th Tier."""
        found: npt.NDArray[np.uint8] = np.zeros(len(keys), dtype=np.uint8)
        wanted = as_keys(keys)
        for kind in _TIERS:
            if self._held.counts[kind]:
                found |= self._held.held(kind, slot, wanted).astype(np.uint8) << kind
        return found.tobytes()

    def block_count(self, tier: Tier) -> int:
        """Distinct blocks that at least one slot (retired ones included until swept) holds in `tier`."""
        return self._held.counts[_KINDS[tier]]

    def memory_bytes(self) -> int:
        """Bytes of the tables."""
        return self._held.memory_bytes() + self._expected.memory_bytes()

    def walk(self, slots: int, *, learn: bool = False) -> PrefixWalk:
        """Start matching a prompt against the slots whose bits are set in `slots`. `learn`: to be asked for `seen`."""
        return PrefixWalk(self._held, self._expected.masks, slots, learn=learn)

    def depths(self, slots: int, keys: Sequence[int]) -> Depths:
        """The same for all of a prompt's keys at once."""
        found = short_walk(self._held, self._expected.masks, slots, keys)
        if found is not None:
            return found
        walk = self.walk(slots)
        walk.feed(keys)
        return walk.finish()
