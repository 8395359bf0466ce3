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

from .expected import ExpectedBlocks
from .table import WORD_BITS, HolderTable, Words, as_keys
from .wire import EngineHash, Tier

__all__ = ["BlockTree", "PrefixWalk"]

_KINDS = {tier: position for position, tier in enumerate(Tier)}
_DEVICE = _KINDS[Tier.GPU]
_WORD_MASK = (1 << WORD_BITS) - 1
_BITS = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))
_TIERS = range(len(Tier))
# Keys times words up to which a piece is walked key by key.
_FEW = 160


class BlockTree:
    """Holders of every block, by tier. Slots are small integers handed out by `acquire`."""

    __slots__ = ("_expected", "_free", "_held", "_next", "_retired", "awaited", "stored")

    def __init__(self) -> None:
        self._held = HolderTable(len(Tier), bits=16)
        self._expected = ExpectedBlocks()
        # Blocks whose being stored somebody waits for, and who is told then: the slot, and all that was stored with it.
        self.awaited: dict[int, Any] = {}
        self.stored: Callable[[int, Sequence[int]], None] = lambda slot, keys: None
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

    def expect(self, slot: int, keys: Sequence[int]) -> None:
        """One more request will make `slot` hold the keys, which are distinct: `unexpect` the same ones once."""
        self._expected.add(slot, keys)

    def unexpect(self, slot: int, keys: Sequence[int]) -> None:
        """Take back what one `expect` marked; what another request expects too stays marked."""
        self._expected.take(slot, keys)

    @property
    def expects(self) -> int:
        """Blocks that some slot is expected to hold."""
        return len(self._expected.masks)

    def holds(self, slot: int, key: int, tier: Tier | None = None) -> bool:
        """Whether the slot holds the key in `tier`, or in any."""
        if tier is not None:
            return self._held.holds(_KINDS[tier], slot, key)
        held = self._held
        return any(held.counts[kind] and held.holds(kind, slot, key) for kind in _TIERS)

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

    def walk(self, slots: int) -> PrefixWalk:
        """Start matching a prompt against the slots whose bits are set in `slots`."""
        return PrefixWalk(self._held, self._expected.masks, slots)


class _Lane:
    """One word of slots on its walk. `device` and `held` are slots whose run of such blocks goes on, the first a subset
    of the second; `soon` are others, whose run goes on if what is expected counts."""

    __slots__ = ("device", "held", "soon", "word")

    def __init__(self, word: int, slots: int) -> None:
        self.word = word
        self.device = self.held = slots
        self.soon = 0


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

    def __init__(self, held: HolderTable, expected: dict[int, int], slots: int) -> None:
        self._held = held
        self._expected = expected
        self._soon = bool(expected)  # decided once: the walk may be interrupted
        self._others = [kind for kind, count in enumerate(held.counts) if count and kind != _DEVICE]
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
        lanes, count = self._lanes, len(keys)
        if not lanes or not count:
            return bool(lanes)
        few = not self._others and count * len(lanes) < _FEW
        carried = [(lane, lane.soon, 0, False) for lane in lanes if lane.soon]
        ended = self._feed_few(keys) if few else self._feed_many(keys)
        if carried or (ended and self._soon):
            plain = keys if not isinstance(keys, np.ndarray) else keys.tolist()
            for lane, _, _, _ in carried:
                lane.soon = 0
            for lane, slots, start, unheld in carried + ended:
                lane.soon |= self._follow(lane.word, slots, plain, start, unheld)
        self._walked += count
        self._lanes = [lane for lane in lanes if lane.held or lane.soon]
        return bool(self._lanes)

    def _feed_many(self, keys: Sequence[int] | Words) -> _Ended:
        found = self._held.lookup(as_keys(keys))
        count, walked, ended = len(keys), self._walked, []
        for lane in self._lanes:
            if not lane.held:
                continue
            word = lane.word
            device = held = found.leading(self._held.column(_DEVICE, word))
            if self._others:
                for kind in self._others:
                    other = found.leading(self._held.column(kind, word))
                    if other is not None:
                        held = other if held is None else held | other
                for slots, at in _narrowed(lane.device, device, count):
                    _settle(self.device_depth, slots, word, walked + at)
                    lane.device ^= slots
            for slots, at in _narrowed(lane.held, held, count):
                _settle(self.depth, slots, word, walked + at)
                lane.held ^= slots
                ended.append((lane, slots, at, True))
        return ended

    def _feed_few(self, keys: Sequence[int] | Words) -> _Ended:
        """The same for few keys: then numpy's calls cost more than they save."""
        walked, ended = self._walked, []
        plain = keys if not isinstance(keys, np.ndarray) else keys.tolist()
        for lane in self._lanes:
            for slots, at in self._held.narrow(_DEVICE, lane.word, lane.held, plain) if lane.held else ():
                _settle(self.depth, slots, lane.word, walked + at)
                lane.held ^= slots
                ended.append((lane, slots, at, True))
        return ended

    def _follow(self, word: int, slots: int, keys: Sequence[int], start: int, unheld: bool) -> int:
        """Walk slots on that do not hold what is before `keys[start]`, by what they hold or are expected to. Returns
        those that come to the end. `unheld`: none of them holds the first of these keys."""
        expected, shift, walked = self._expected, word * WORD_BITS, self._walked
        for at in range(start, len(keys)):
            going = slots & (expected.get(keys[at], 0) >> shift)
            if going != slots and not (unheld and at == start):
                going |= slots & self._any_tier(word, keys[at])
            if going != slots:
                _settle(self.expected_depth, slots & ~going, word, walked + at)
                slots = going
                if not slots:
                    break
        return slots

    def _any_tier(self, word: int, key: int) -> int:
        held = self._held.mask(_DEVICE, word, key)
        for kind in self._others:
            held |= self._held.mask(kind, word, key)
        return held

    def finish(self) -> None:
        """The prompt's blocks are all fed, or `feed` returned False."""
        for lane in self._lanes:
            _settle(self.depth, lane.held, lane.word, self._walked)
            if self._others:
                _settle(self.device_depth, lane.device, lane.word, self._walked)
            if self._soon:
                _settle(self.expected_depth, lane.held | lane.soon, lane.word, self._walked)
        self._lanes = []


_Ended = list[tuple[_Lane, int, int, bool]]


def _narrowed(alive: int, masks: Words | None, count: int) -> list[tuple[int, int]]:
    """Which of the slots in `alive` lack a bit in one of `count` masks (missing ones are 0), and in which first. Where
    nothing changes this is one reduction."""
    lost: list[tuple[int, int]] = []
    known = 0 if masks is None else len(masks)
    if masks is not None and known and int(np.bitwise_and.reduce(masks)) & alive != alive:
        running = np.bitwise_and.accumulate(masks)
        running &= np.uint64(alive)
        changes = np.flatnonzero(running[1:] != running[:-1]) + 1
        if int(running[0]) != alive:
            changes = np.concatenate(([0], changes))
        for at, left in zip(changes.tolist(), running[changes].tolist(), strict=True):
            lost.append((alive ^ left, at))
            alive = left
    if known < count and alive:
        lost.append((alive, known))
    return lost


def _settle(into: dict[int, int], slots: int, word: int, depth: int) -> None:
    if not depth:
        return
    first = word * WORD_BITS
    for byte in slots.to_bytes(WORD_BITS // 8, "little"):
        if byte:
            for bit in _BITS[byte]:
                into[first + bit] = depth
        first += 8
