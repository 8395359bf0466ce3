"""The shared block-hash tree: which slots hold which block, per tier.

A block is named by its chain key, which contains its whole prefix, so a flat map from key to holders *is* the tree:
walking a prompt's keys from the front walks one path of it. A slot is one (worker, rank) stream; its holders are the
bits of one integer, so a walk narrows every worker at once. Pure, synchronous, no clock.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from sortedcontainers import SortedList

from .wire import EngineHash, Tier

__all__ = ["BlockTree", "PrefixWalk"]


class BlockTree:
    """Holders of every block, by tier. Slots are small integers handed out by `acquire`."""

    __slots__ = ("_expected", "_expected_again", "_free", "_next", "_retired", "_tables")

    def __init__(self) -> None:
        self._tables: dict[Tier, dict[int, int]] = {tier: {} for tier in Tier}
        # Blocks that a dispatched request will make a slot hold: no tier, never counted as held.
        self._expected: dict[int, int] = {}
        # How many requests beyond the first expect a (slot, key).
        self._expected_again: dict[tuple[int, int], int] = {}
        self._free: SortedList[int] = SortedList()
        self._next = 0
        self._retired: deque[tuple[int, dict[EngineHash, int]]] = deque()

    def acquire(self) -> int:
        """A slot that holds nothing."""
        if self._free:
            return int(self._free.pop(0))  # low bits keep the holder integers short
        self._next += 1
        return self._next - 1

    def retire(self, slot: int, blocks: dict[EngineHash, int]) -> None:
        """Give `slot` up at once; its bits (on the keys in `blocks`, which is consumed) are swept later.

        The caller must stop matching the slot now: until swept it is not handed out again, so no stream inherits it.
        """
        self._retired.append((slot, blocks))

    def sweep(self, budget: int) -> bool:
        """Clear up to `budget` blocks of retired slots. True while some remain."""
        while self._retired and budget > 0:
            slot, blocks = self._retired[0]
            clear = ~(1 << slot)
            while blocks and budget > 0:
                _, key = blocks.popitem()
                budget -= 1
                for table in self._tables.values():
                    mask = table.get(key)
                    if mask is not None:
                        mask &= clear
                        if mask:
                            table[key] = mask
                        else:
                            del table[key]
            if not blocks:
                self._retired.popleft()
                self._free.add(slot)
        return bool(self._retired)

    def store(self, slot: int, tier: Tier, keys: Iterable[int]) -> int:
        """Mark `slot` as holding each key in `tier`. Returns how many it did not hold there before."""
        table = self._tables[tier]
        get = table.get
        bit = 1 << slot
        added = 0
        for key in keys:
            mask = get(key, 0)
            if not mask & bit:
                table[key] = mask | bit
                added += 1
        return added

    def remove(self, slot: int, tier: Tier, key: int) -> bool:
        """Forget one holding. False where the slot did not hold the key in that tier."""
        table = self._tables[tier]
        mask = table.get(key, 0)
        bit = 1 << slot
        if not mask & bit:
            return False
        mask ^= bit
        if mask:
            table[key] = mask
        else:
            del table[key]
        return True

    def expect(self, slot: int, keys: Iterable[int]) -> None:
        """One more request will make `slot` hold the keys: `unexpect` the same ones once."""
        table, more, bit = self._expected, self._expected_again, 1 << slot
        for key in keys:
            mask = table.get(key, 0)
            if mask & bit:
                more[slot, key] = more.get((slot, key), 0) + 1
            else:
                table[key] = mask | bit

    def unexpect(self, slot: int, keys: Iterable[int]) -> None:
        """Take back what one `expect` marked; what another request expects too stays marked."""
        table, more, clear = self._expected, self._expected_again, ~(1 << slot)
        for key in keys:
            others = more.get((slot, key), 0)
            if others > 1:
                more[slot, key] = others - 1
            elif others:
                del more[slot, key]
            elif mask := table.get(key, 0) & clear:
                table[key] = mask
            else:
                table.pop(key, None)

    def holds(self, slot: int, key: int, tier: Tier | None = None) -> bool:
        """Whether the slot holds the key in `tier`, or in any."""
        tables = self._tables.values() if tier is None else (self._tables[tier],)
        bit = 1 << slot
        return any(table.get(key, 0) & bit for table in tables)

    def holdings(self, slot: int) -> Iterator[tuple[int, Tier]]:
        """Every (key, tier) the slot holds. Walks the whole tree: for tests and snapshots, not for requests."""
        bit = 1 << slot
        for tier, table in self._tables.items():
            for key, mask in table.items():
                if mask & bit:
                    yield key, tier

    def tier_masks(self, slot: int, keys: Sequence[int]) -> bytes:
        """For each key, the tiers the slot holds it in: bit i stands for the i-th Tier."""
        bit, found = 1 << slot, 0
        for position, table in enumerate(self._tables.values()):
            if table:
                get, flag = table.get, 1 << position
                found |= int.from_bytes(bytes([flag if get(key, 0) & bit else 0 for key in keys]), "big")
        return found.to_bytes(len(keys), "big")

    def block_count(self, tier: Tier) -> int:
        """Distinct blocks that at least one slot (retired ones included until swept) holds in `tier`."""
        return len(self._tables[tier])

    def memory_bytes(self) -> int:
        """Bytes of the tables with their masks; the keys are counted where streams hold them."""
        tables = (*self._tables.values(), self._expected)
        mask = sys.getsizeof(1 << max(self._next, 1))
        return sum(sys.getsizeof(table) + len(table) * mask for table in tables)

    def walk(self, slots: int) -> PrefixWalk:
        """Start matching a prompt against the slots whose bits are set in `slots`."""
        device = self._tables[Tier.GPU]
        others = [table for tier, table in self._tables.items() if tier is not Tier.GPU and table]
        return PrefixWalk(device, others, self._expected, slots)


class PrefixWalk:
    """Leading blocks each slot holds, found by feeding a prompt's keys in order, in as many pieces as wanted.

    `depth[slot]`: leading blocks held in any tier. `device_depth[slot]`: leading blocks held on the device.
    `expected_depth[slot]`: leading blocks held or about to be. Slots whose depth is 0 are absent. Read after `finish`.
    """

    __slots__ = (
        "_alive",
        "_device",
        "_device_alive",
        "_expected",
        "_held_alive",
        "_others",
        "_plain",
        "_walked",
        "depth",
        "device_depth",
        "expected_depth",
    )

    def __init__(
        self, device: dict[int, int], others: list[dict[int, int]], expected: dict[int, int], slots: int
    ) -> None:
        self._device = device
        self._others = others
        self._expected = expected
        self._plain = not others and not expected
        # Each is a subset of the next: a slot leaves one where its run of such blocks ends.
        self._device_alive = self._held_alive = self._alive = slots
        self._walked = 0
        self.depth: dict[int, int] = {}
        self.device_depth: dict[int, int] = {}
        self.expected_depth: dict[int, int] = {}

    def feed(self, keys: Sequence[int]) -> bool:
        """Walk on. False once no slot holds the next block: the rest of the prompt need not be hashed."""
        if not self._alive:
            return False
        if not self._plain:
            return self._feed_tiered(keys)
        alive, depth, get = self._alive, self._walked, self._device.get
        for key in keys:
            still = alive & get(key, 0)
            if still != alive:
                _settle(self.depth, alive ^ still, depth)
                alive = still
                if not alive:
                    break
            depth += 1
        self._alive = self._held_alive = self._device_alive = alive
        self._walked = depth
        return bool(alive)

    def _feed_tiered(self, keys: Sequence[int]) -> bool:
        alive, held_alive, on_device, depth = self._alive, self._held_alive, self._device_alive, self._walked
        for key in keys:
            device = self._device.get(key, 0)
            held = device
            for table in self._others:
                held |= table.get(key, 0)
            if on_device & device != on_device:
                _settle(self.device_depth, on_device & ~device, depth)
                on_device &= device
            if held_alive & held != held_alive:
                _settle(self.depth, held_alive & ~held, depth)
                held_alive &= held
            still = alive & (held | self._expected.get(key, 0))
            if still != alive:
                _settle(self.expected_depth, alive & ~still, depth)
                alive = still
                if not alive:
                    break
            depth += 1
        self._alive, self._held_alive, self._device_alive, self._walked = alive, held_alive, on_device, depth
        return bool(alive)

    def finish(self) -> None:
        """The prompt's blocks are all fed, or `feed` returned False."""
        _settle(self.depth, self._held_alive, self._walked)
        if self._plain:
            self.device_depth = self.expected_depth = self.depth
        else:
            _settle(self.device_depth, self._device_alive, self._walked)
            _settle(self.expected_depth, self._alive, self._walked)
        self._alive = self._held_alive = self._device_alive = 0


def _settle(into: dict[int, int], slots: int, depth: int) -> None:
    if not depth:
        return
    while slots:
        low = slots & -slots
        into[low.bit_length() - 1] = depth
        slots ^= low
