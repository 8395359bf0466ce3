"""How far a prompt's blocks are held: all slots at once, front to back, as far as any of them goes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sgl_router.kv_events.index.expected import STRIDE
from sgl_router.kv_events.index.lookup import Lookup, ShortLookup
from sgl_router.kv_events.index.table import WORD_BITS, HolderTable, Words, as_keys
from sgl_router.kv_events.index.table_space import Rows
from sgl_router.prompt import Seen

__all__ = ["Depths", "Levels", "PrefixWalk", "bits", "by_slot", "depth_of", "short_walk"]

Levels = dict[int, int]
"""`levels[depth]`: the slots, as bits, whose leading blocks end there. Depth 0 is left out, and no slot is in two."""

_WORD_MASK = (1 << WORD_BITS) - 1
_IN_STRIDE = STRIDE - 1
_BITS = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))
# Kinds of holding, from the quickest tier to the slowest: on the device, on the device or the host, anywhere.
_DEVICE = (0,)
_HOST = (0, 1)
_DEVICE_ALONE = (_DEVICE,)
# Rows up to which a loop over what was looked up beats numpy.
_SHORT = 256


class Depths(NamedTuple):
    """Leading blocks of a prompt, by slot: on the device, on device or host, in any tier, and together with those that
    are about to be. Where no slot can differ they are one and the same object."""

    device: Levels
    host: Levels
    held: Levels
    expected: Levels

    def among(self, slots: int) -> Depths:
        """Of these slots alone."""
        return Depths(*({depth: left for depth, of in levels.items() if (left := of & slots)} for levels in self))


def by_slot(levels: Levels) -> dict[int, int]:
    """The depth of each slot that has one."""
    return {slot: depth for depth, slots in levels.items() for slot in bits(slots)}


def depth_of(levels: Levels, slot: int) -> int:
    """One slot's depth."""
    for depth, slots in levels.items():
        if slots >> slot & 1:
            return depth
    return 0


def bits(mask: int) -> list[int]:
    """The positions of the bits that are set, in order."""
    if not mask & (mask - 1):
        return [mask.bit_length() - 1] if mask else []
    found: list[int] = []
    first = 0
    for byte in mask.to_bytes((mask.bit_length() + 7) // 8, "little"):
        if byte:
            found += [first + bit for bit in _BITS[byte]]
        first += 8
    return found


def short_walk(held: HolderTable, expected: dict[int, int], slots: int, keys: Sequence[int]) -> Depths | None:
    """What a `PrefixWalk` finds, in fewer steps: for slots of one word and holdings on the device alone. None where it
    is not as simple as that."""
    counts = held.counts
    masks = held.leading(0, keys) if slots <= _WORD_MASK and not (counts[1] or counts[2] or counts[3]) else None
    if masks is None:
        return None
    if len(masks) < len(keys):
        masks.append(0)  # nobody holds the next one
    levels: Levels = {}
    runs = []
    for at, mask in enumerate(masks):
        if slots & mask != slots:
            lost = slots & ~mask
            if at:
                levels[at] = lost
            runs.append((lost, at))
            slots &= mask
            if not slots:
                break
    if slots and masks:
        levels[len(masks)] = slots
    if not expected:
        return Depths(levels, levels, levels, levels)
    soon: Levels = {len(masks): slots} if slots and masks else {}
    for rest, at in _follow(expected, soon, 0, runs, keys, 0):
        _stop_within(expected, soon, 0, rest, keys[at:], at)
    return Depths(levels, levels, levels, levels if soon == levels else soon)


class _Lane:
    """One word of slots on its walk. `alive[view]`: slots whose run of blocks seen in that view goes on, each a subset
    of the next. `soon`: others, whose run goes on if what is expected counts, and from which block on that is to be
    seen."""

    __slots__ = ("alive", "soon", "word")

    def __init__(self, word: int, slots: int, views: int) -> None:
        self.word = word
        self.alive = [slots] * views
        self.soon: list[tuple[int, int]] = []


class PrefixWalk:
    """Feed a prompt's keys in order, in as many pieces as wanted, then `finish`; others may write between pieces."""

    __slots__ = (
        "_expected",
        "_found",
        "_held",
        "_lanes",
        "_learns",
        "_recent",
        "_rows",
        "_soon",
        "_space",
        "_views",
        "_walked",
    )

    def __init__(self, held: HolderTable, expected: dict[int, int], slots: int, *, learn: bool = False) -> None:
        self._held = held
        self._learns = learn
        self._space = held.space if learn else 0
        self._rows: list[Rows] = []
        self._expected = expected
        _, host, *slower = held.counts
        # Which tiers are in use, and whether anything is expected, is decided once.
        views: tuple[tuple[int, ...], ...] = _DEVICE_ALONE
        if host or any(slower):
            everywhere = tuple(range(len(held.counts)))
            views = (_DEVICE, *((_HOST,) if host else ()), *((everywhere,) if any(slower) else ()))
        self._views = views
        self._found: list[Levels] = [{} for _ in views]
        self._soon: Levels | None = {} if expected else None
        self._recent: Sequence[int] = ()  # at least what has been fed of the stride that `_walked` is in
        count = len(views)
        if slots <= _WORD_MASK:
            self._lanes = [_Lane(0, slots, count)] if slots else []
        else:
            words = slots.bit_length() // WORD_BITS + 1
            parts = ((word, slots >> word * WORD_BITS & _WORD_MASK) for word in range(words))
            self._lanes = [_Lane(word, part, count) for word, part in parts if part]
        self._walked = 0

    def feed(self, keys: Sequence[int] | Words, seen: Seen | None = None) -> bool:
        """Walk on. False once no slot holds the next block: the rest of the prompt need not be hashed. `seen`: where
        exactly these keys were before."""
        lanes, count = self._lanes, len(keys)
        if not lanes or not count:
            return bool(lanes)
        held = self._held
        found: Lookup | ShortLookup | None = held.lookup_at(seen, as_keys(keys)) if seen is not None else None
        self._feed(count, found or held.short_lookup(keys) or held.lookup(as_keys(keys)))
        if self._soon is not None:
            fed, first = _joined(self._recent, keys), self._walked - len(self._recent)
            for lane in lanes:
                if lane.soon:
                    lane.soon = _follow(self._expected, self._soon, lane.word, lane.soon, fed, first)
            self._recent = fed[len(fed) - (self._walked + count) % STRIDE :]
        self._walked += count
        self._lanes = lanes = [lane for lane in lanes if lane.alive[-1] or lane.soon]
        return bool(lanes)

    def _feed(self, count: int, found: Lookup | ShortLookup) -> None:
        if self._learns and self._space:
            self._learned(found.rows, count)
        walked, last = self._walked, len(self._views) - 1
        for lane in self._lanes:
            alive, word = lane.alive, lane.word
            if not alive[-1]:
                continue
            masks: _Masks | None = None
            seen = 0
            for view, kinds in enumerate(self._views):
                for kind in kinds[seen:]:
                    masks = _either(masks, found.leading(self._held.column(kind, word)))
                seen = len(kinds)
                for slots, at in _narrowed(alive[view], masks, count) if alive[view] else ():
                    _settle(self._found[view], slots, word, walked + at)
                    alive[view] ^= slots
                    if view == last and self._soon is not None:
                        lane.soon.append((slots, walked + at))

    def _learned(self, rows: Rows, asked: int) -> None:
        self._rows.append(rows)
        self._learns = len(rows) == asked  # what comes after a key that was not found is not leading

    @property
    def seen(self) -> Seen | None:
        """Where the leading keys are, as far as the walk came; None while the table grows, or where it has grown."""
        if not self._rows or not self._space or self._space != self._held.space:
            return None
        return Seen(self._space, self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows))

    def finish(self) -> Depths:
        """The prompt's blocks are all fed, or `feed` returned False."""
        walked, found, soon = self._walked, self._found, self._soon
        for lane in self._lanes:
            for view, levels in enumerate(found):
                if lane.alive[view]:
                    _settle(levels, lane.alive[view], lane.word, walked)
            if soon is not None:
                _settle(soon, lane.alive[-1], lane.word, walked)
                for slots, at in lane.soon:
                    left = self._recent[at - walked + len(self._recent) :]
                    _stop_within(self._expected, soon, lane.word, slots, left, at)
        self._lanes = []
        held = found[-1]
        host = found[1] if _HOST in self._views else found[0]
        return Depths(found[0], host, held, held if soon is None or soon == held else soon)


def _follow(
    expected: dict[int, int],
    levels: Levels,
    word: int,
    runs: list[tuple[int, int]],
    keys: Sequence[int],
    first: int,
) -> list[tuple[int, int]]:
    """Take runs on from where they are (slots, block) by what is expected of these slots, as far as the strides are
    whole. `keys` are those of the blocks from number `first` on. Returns what is not at its end."""
    shift, stop, going = word * WORD_BITS, first + len(keys), []
    for slots, at in runs:
        while (end := at | _IN_STRIDE) < stop:
            on = slots & expected.get(keys[end - first], 0) >> shift
            if on != slots:
                _stop_within(expected, levels, word, slots & ~on, keys[at - first : end - first], at)
                slots = on
                if not slots:
                    break
            at = end + 1
        if slots:
            going.append((slots, at))
    return going


def _stop_within(expected: dict[int, int], levels: Levels, word: int, slots: int, keys: Sequence[int], at: int) -> None:
    """These slots are not expected to hold all of a stride. `keys`: its blocks from number `at` on."""
    shift = word * WORD_BITS
    for depth in range(len(keys), 0, -1):
        far = slots & expected.get(keys[depth - 1], 0) >> shift
        if far:
            _settle(levels, far, word, at + depth)
            slots ^= far
    _settle(levels, slots, word, at)


_Masks = list[int] | Words


def _either(one: _Masks | None, other: _Masks | None) -> _Masks | None:
    if one is None or other is None:
        return one if other is None else other
    if isinstance(one, list) or isinstance(other, list):
        return [mask | more for mask, more in zip(one, other, strict=True)]
    return one | other


def _joined(keys: Sequence[int], more: Sequence[int] | Words) -> Sequence[int]:
    if isinstance(more, array):
        return array("Q", keys) + more if keys else more
    return [*keys, *(more.tolist() if isinstance(more, np.ndarray) else more)]


def _narrowed(alive: int, masks: _Masks | None, count: int) -> list[tuple[int, int]]:
    """Which of the slots in `alive` lack a bit in one of `count` masks (missing ones are 0), and in which first. Where
    nothing changes in many this is one reduction."""
    lost: list[tuple[int, int]] = []
    known = 0 if masks is None else len(masks)
    if masks is not None and known < _SHORT:
        for at, mask in enumerate(masks if isinstance(masks, list) else masks.tolist()):
            if alive & mask != alive:
                lost.append((alive & ~mask, at))
                alive &= mask
                if not alive:
                    return lost
    elif masks is not None and int(np.bitwise_and.reduce(masks)) & alive != alive:
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


def _settle(levels: Levels, slots: int, word: int, depth: int) -> None:
    if depth and slots:
        levels[depth] = levels.get(depth, 0) | slots << word * WORD_BITS
