"""The shared block-hash tree: which slots hold which block, per tier.

A block is named by its chain key, which contains its whole prefix, so a flat map from key to holders *is* the tree:
walking a prompt's keys from the front walks one path of it. A slot is one (worker, rank) stream; its holders are bits
of integers, so a walk narrows 64 workers at once, and only where holders change is there anything to do. Pure,
synchronous, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from sortedcontainers import SortedList

from .table import WORD_BITS, HolderTable, Words, as_keys
from .wire import EngineHash, Tier

__all__ = ["BlockTree", "PrefixWalk"]

_KINDS = {tier: position for position, tier in enumerate(Tier)}
_DEVICE = _KINDS[Tier.GPU]
_WORD_MASK = (1 << WORD_BITS) - 1
_BITS = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))
# Keys times words up to which a piece is walked key by key.
_FEW = 48


class BlockTree:
    """Holders of every block, by tier. Slots are small integers handed out by `acquire`."""

    __slots__ = ("_expected", "_expected_again", "_free", "_held", "_next", "_retired")

    def __init__(self) -> None:
        self._held = HolderTable(len(Tier), bits=16)
        # Blocks that a dispatched request will make a slot hold: no tier, never counted as held.
        self._expected = HolderTable(1, bits=12)
        # How many requests beyond the first expect a (slot, key).
        self._expected_again: dict[tuple[int, int], int] = {}
        self._free: SortedList[int] = SortedList()
        self._next = 0
        self._retired: deque[tuple[int, dict[EngineHash, int]]] = deque()

    def acquire(self) -> int:
        """A slot that holds nothing."""
        if self._free:
            return int(self._free.pop(0))  # low slots share words, and a walk looks at few
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
            keys = list({blocks.popitem()[1] for _ in range(min(budget, len(blocks)))})
            budget -= max(len(keys), 1)
            for kind in range(len(Tier)):
                if self._held.counts[kind]:
                    self._held.discard_many(kind, slot, keys)
            if not blocks:
                self._retired.popleft()
                self._free.add(slot)
        return bool(self._retired)

    def store(self, slot: int, tier: Tier, keys: Sequence[int]) -> int:
        """Mark `slot` as holding each of the keys, which are distinct, in `tier`. Returns how many it did not hold
        there before."""
        return self._held.store(_KINDS[tier], slot, keys)

    def remove(self, slot: int, tier: Tier, key: int) -> bool:
        """Forget one holding. False where the slot did not hold the key in that tier."""
        return self._held.discard(_KINDS[tier], slot, key)

    def remove_many(self, slot: int, tier: Tier, keys: Sequence[int]) -> int:
        """Forget holdings of distinct keys. Returns how many there were."""
        return self._held.discard_many(_KINDS[tier], slot, keys)

    def expect(self, slot: int, keys: Sequence[int]) -> None:
        """One more request will make `slot` hold the keys, which are distinct: `unexpect` the same ones once."""
        more = self._expected_again
        if self._expected.counts[0]:
            again = self._expected.held(0, slot, keys)
            if again.any():
                fresh = []
                for key, known in zip(keys, again.tolist(), strict=True):
                    if known:
                        more[slot, key] = more.get((slot, key), 0) + 1
                    else:
                        fresh.append(key)
                keys = fresh
        self._expected.store(0, slot, keys)

    def unexpect(self, slot: int, keys: Sequence[int]) -> None:
        """Take back what one `expect` marked; what another request expects too stays marked."""
        more = self._expected_again
        if more:
            last = []
            for key in keys:
                others = more.get((slot, key), 0)
                if others > 1:
                    more[slot, key] = others - 1
                elif others:
                    del more[slot, key]
                else:
                    last.append(key)
            keys = last
        self._expected.discard_many(0, slot, keys)

    @property
    def expects(self) -> int:
        """Blocks that some slot is expected to hold."""
        return self._expected.counts[0]

    def holds(self, slot: int, key: int, tier: Tier | None = None) -> bool:
        """Whether the slot holds the key in `tier`, or in any."""
        if tier is not None:
            return self._held.holds(_KINDS[tier], slot, key)
        return any(self._held.holds(kind, slot, key) for kind in range(len(Tier)) if self._held.counts[kind])

    def holdings(self, slot: int) -> Iterator[tuple[int, Tier]]:
        """Every (key, tier) the slot holds. Walks the whole tree: for tests and snapshots, not for requests."""
        for tier, kind in _KINDS.items():
            for key in self._held.keys_of(kind, slot):
                yield key, tier

    def tier_masks(self, slot: int, keys: Sequence[int]) -> bytes:
        """For each key, the tiers the slot holds it in: bit i stands for the i-th Tier."""
        found: npt.NDArray[np.uint8] = np.zeros(len(keys), dtype=np.uint8)
        wanted = as_keys(keys)
        for kind in range(len(Tier)):
            if self._held.counts[kind]:
                found |= self._held.held(kind, slot, wanted).astype(np.uint8) << kind
        return found.tobytes()

    def block_count(self, tier: Tier) -> int:
        """Distinct blocks that at least one slot (retired ones included until swept) holds in `tier`."""
        return self._held.counts[_KINDS[tier]]

    def memory_bytes(self) -> int:
        """Bytes of the tables."""
        return self._held.memory_bytes() + self._expected.memory_bytes()

    def walk(self, slots: int) -> PrefixWalk:
        """Start matching a prompt against the slots whose bits are set in `slots`."""
        return PrefixWalk(self._held, self._expected, slots)


class _Lane:
    """One word of slots on its walk. Each mask is a subset of the next: a slot leaves one where its run of such
    blocks ends."""

    __slots__ = ("alive", "device", "held", "word")

    def __init__(self, word: int, slots: int) -> None:
        self.word = word
        self.device = self.held = self.alive = slots


class PrefixWalk:
    """Leading blocks each slot holds, found by feeding a prompt's keys in order, in as many pieces as wanted.

    `depth[slot]`: leading blocks held in any tier. `device_depth[slot]`: leading blocks held on the device.
    `expected_depth[slot]`: leading blocks held or about to be. Slots whose depth is 0 are absent. Read after `finish`.
    """

    __slots__ = (
        "_expected",
        "_held",
        "_lanes",
        "_others",
        "_soon",
        "_walked",
        "depth",
        "device_depth",
        "expected_depth",
    )

    def __init__(self, held: HolderTable, expected: HolderTable, slots: int) -> None:
        self._held = held
        self._expected = expected
        self._others = [kind for kind, count in enumerate(held.counts) if count and kind != _DEVICE]
        self._soon = expected.counts[0] > 0
        self._lanes: list[_Lane] = []
        word = 0
        while slots:
            if slots & _WORD_MASK:
                self._lanes.append(_Lane(word, slots & _WORD_MASK))
            slots >>= WORD_BITS
            word += 1
        self._walked = 0
        self.depth: dict[int, int] = {}
        # Where no slot can differ they are one and the same.
        self.device_depth: dict[int, int] = {} if self._others else self.depth
        self.expected_depth: dict[int, int] = {} if self._soon else self.depth

    def feed(self, keys: Sequence[int] | Words) -> bool:
        """Walk on. False once no slot holds the next block: the rest of the prompt need not be hashed."""
        count, walked = len(keys), self._walked
        if not self._lanes or not count:
            return bool(self._lanes)
        if not self._others and count * len(self._lanes) < _FEW:
            return self._feed_few(keys)
        wanted = as_keys(keys)
        found = self._held.lookup(wanted)
        soon = None
        going: list[_Lane] = []
        for lane in self._lanes:
            word = lane.word
            device = held = found.leading(self._held.column(_DEVICE, word)) if lane.held else None
            if lane.held and self._others:
                for kind in self._others:
                    other = found.leading(self._held.column(kind, word))
                    if other is not None:
                        held = other if held is None else held | other
                if lane.device:
                    lane.device = _narrow(lane.device, device, count, word, walked, self.device_depth)
            if lane.held:
                lane.held = _narrow(lane.held, held, count, word, walked, self.depth)
            if not self._soon:
                lane.alive = lane.held
            elif lane.held != lane.alive:
                soon = self._expected.lookup(wanted) if soon is None else soon
                union = soon.all(self._expected.column(0, word))
                if held is not None:
                    union[: len(held)] |= held
                lane.alive = _narrow(lane.alive, union, count, word, walked, self.expected_depth)
            if lane.alive:
                going.append(lane)
        self._walked = walked + count
        self._lanes = going
        return bool(going)

    def _feed_few(self, keys: Sequence[int] | Words) -> bool:
        """The same for few keys, one by one: then numpy's calls cost more than they save."""
        find, soon, walked = self._held.find, self._soon, self._walked
        lanes = self._lanes
        for key in keys if not isinstance(keys, np.ndarray) else keys.tolist():
            space, row = find(key)
            for lane in lanes:
                word = lane.word
                held = space.mask(self._held.column(_DEVICE, word), row) if row >= 0 else 0
                before = lane.held
                if before & held != before:
                    _settle(self.depth, before & ~held, word, walked)
                    lane.held = before & held
                if not soon:
                    lane.alive = lane.held
                elif lane.alive != lane.held:
                    going = lane.alive & (held | self._expected.mask(0, word, key))
                    if going != lane.alive:
                        _settle(self.expected_depth, lane.alive & ~going, word, walked)
                        lane.alive = going
            if not all(lane.alive for lane in lanes):
                lanes = self._lanes = [lane for lane in lanes if lane.alive]
                if not lanes:
                    break
            walked += 1
        self._walked = walked
        return bool(lanes)

    def finish(self) -> None:
        """The prompt's blocks are all fed, or `feed` returned False."""
        for lane in self._lanes:
            _settle(self.depth, lane.held, lane.word, self._walked)
            if self._others:
                _settle(self.device_depth, lane.device, lane.word, self._walked)
            if self._soon:
                _settle(self.expected_depth, lane.alive, lane.word, self._walked)
        self._lanes = []


def _narrow(alive: int, masks: Words | None, count: int, word: int, walked: int, into: dict[int, int]) -> int:
    """Of the slots in `alive`, those with a bit in each of `count` masks (missing ones are 0). The others' depths are
    settled. Where nothing changes this is one reduction."""
    known = 0 if masks is None else len(masks)
    if masks is not None and known and int(np.bitwise_and.reduce(masks)) & alive != alive:
        running = np.bitwise_and.accumulate(masks)
        running &= np.uint64(alive)
        changes = np.flatnonzero(running[1:] != running[:-1]) + 1
        if int(running[0]) != alive:
            changes = np.concatenate(([0], changes))
        for at, left in zip(changes.tolist(), running[changes].tolist(), strict=True):
            _settle(into, alive ^ left, word, walked + at)
            alive = left
    if known < count and alive:
        _settle(into, alive, word, walked + known)
        return 0
    return alive


def _settle(into: dict[int, int], slots: int, word: int, depth: int) -> None:
    if not depth:
        return
    first = word * WORD_BITS
    for byte in slots.to_bytes(WORD_BITS // 8, "little"):
        if byte:
            for bit in _BITS[byte]:
                into[first + bit] = depth
        first += 8
