"""What a prompt's look-up says: who holds how much of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sgl_router.kv_events.follow.stream import EventStream, StreamState
from sgl_router.kv_events.index.hashing import DEFAULT_NAMESPACE, Namespace
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.kv_events.index.walk import Depths, bits, by_slot, depth_of
from sgl_router.prompt import Prompt

if TYPE_CHECKING:
    from sgl_router.workers import Target

__all__ = ["MATCHED_STATES", "MatchGroup", "MatchedPrefix", "PromptMatch"]

# A stream that has not said anything holds nothing, but may be expected to.
MATCHED_STATES = (StreamState.LIVE, StreamState.WAITING)
_MAX_KNOWN_MASKS = 256
# A list of fewer is searched as it is.
_FEW_TARGETS = 8


class MatchedPrefix(NamedTuple):
    """Leading blocks of a prompt that one target holds: in any tier, on the device alone, on device or host, and
    together with those that requests on their way will make it hold, which are never less than `blocks`."""

    blocks: int
    device_blocks: int
    host_blocks: int
    expected_blocks: int
    page_size: int

    @property
    def tokens(self) -> int:
        return self.blocks * self.page_size

    @property
    def expected_tokens(self) -> int:
        return self.expected_blocks * self.page_size


class MatchGroup:
    """Slots that one walk of the tree serves, and whose they are: their streams share one hasher."""

    __slots__ = ("_known", "_streams", "mask", "page_size", "slots", "targets")

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.mask = 0
        self.slots: dict[Target, int] = {}
        self.targets: dict[int, Target] = {}
        self._streams: dict[int, tuple[EventStream, int]] = {}
        self._known: dict[int, list[Target]] = {}

    def add(self, slot: int, target: Target, stream: EventStream | None = None) -> None:
        self.mask |= 1 << slot
        self.slots[target] = slot
        self.targets[slot] = target
        if stream is not None:
            self._streams[slot] = (stream, stream.epoch)

    def of(self, slots: int) -> list[Target]:
        """The targets that have these slots. Not to be changed: the same few sets come up again and again."""
        found = self._known.get(slots)
        if found is None:
            if len(self._known) >= _MAX_KNOWN_MASKS:
                self._known.clear()
            targets = self.targets
            found = self._known[slots] = [targets[slot] for slot in bits(slots)]
        return found

    def trusted(self) -> int:
        """The slots whose streams are still what they were when the group was made."""
        mask = 0
        for slot, (stream, epoch) in self._streams.items():
            if stream.epoch == epoch and stream.state in MATCHED_STATES:
                mask |= 1 << slot
        return mask

    def epoch(self, slot: int) -> int | None:
        """Of the stream's claims when the group was made; None where no stream is behind the slot."""
        followed = self._streams.get(slot)
        return followed[1] if followed is not None else None


class Matched(NamedTuple):
    """What one walk found. `blocks`: how many a full hit would be; `keys`: of the prompt's blocks, None where what is
    held is known without an index."""

    group: MatchGroup
    blocks: int
    depths: Depths
    keys: PromptKeys | None = None

    def blocks_of(self, slot: int) -> tuple[int, int]:
        """Leading blocks one slot holds, and holds or will hold."""
        _, _, held, expected = self.depths
        coming = depth_of(expected, slot)
        return (coming if held is expected else depth_of(held, slot)), coming

    def prefix(self, slot: int) -> MatchedPrefix | None:
        """What one slot holds."""
        device, host, held, expected = self.depths
        coming = depth_of(expected, slot)
        if not coming:
            return None
        page = self.group.page_size
        if held == expected and device == held:
            return MatchedPrefix(coming, coming, coming, coming, page)
        return MatchedPrefix(depth_of(held, slot), depth_of(device, slot), depth_of(host, slot), coming, page)

    def prefixes(self) -> Iterable[tuple[Collection[Target], MatchedPrefix]]:
        """What each set of targets has in common."""
        group, depths = self.group, self.depths
        device, host, held, expected = depths
        page = group.page_size
        if held == expected and device == held:
            for depth, slots in held.items():
                yield group.of(slots), MatchedPrefix(depth, depth, depth, depth, page)
            return
        alike: dict[tuple[int, ...], list[Target]] = {}
        views = [by_slot(levels) for levels in (held, device, host)]
        for slot, coming in by_slot(expected).items():
            key = (*[view.get(slot, 0) for view in views], coming)
            alike.setdefault(key, []).append(group.targets[slot])
        for (blocks, on_device, on_host, coming), targets in alike.items():
            yield targets, MatchedPrefix(blocks, on_device, on_host, coming, page)


class Deepest(NamedTuple):
    """The targets that hold most: so many tokens, where a full hit would be `reusable`. 0 tokens where none does."""

    tokens: int
    reusable: int
    targets: list[Target]


_NONE = Deepest(0, 0, [])
_NO_PROMPT = Prompt(np.zeros(0, dtype=np.uint32))


class PromptMatch:
    """Who holds how much of a prompt. Asked for one target, for the best of some, or for all that hold anything; and
    what `KvIndex.expect` and `sent` go on from."""

    __slots__ = ("_by_target", "namespace", "parts", "prompt")

    def __init__(
        self, parts: Sequence[Matched], prompt: Prompt | None = None, namespace: Namespace = DEFAULT_NAMESPACE
    ) -> None:
        self.parts = parts
        self.prompt = _NO_PROMPT if prompt is None else prompt
        self.namespace = namespace
        self._by_target: dict[Target, MatchedPrefix] | None = None

    @classmethod
    def stated(cls, by_target: Mapping[Target, MatchedPrefix], totals: Mapping[Target, int]) -> PromptMatch:
        """From what is known without an index; `totals` is what `blocks_of` says, of each trusted target."""
        parts: dict[tuple[int, int], Matched] = {}
        for slot, (target, blocks) in enumerate(totals.items()):
            prefix = by_target.get(target)
            page = prefix.page_size if prefix is not None else target.worker.info.block_size
            part = parts.get((page, blocks))
            if part is None:
                part = parts[page, blocks] = Matched(MatchGroup(page), blocks, Depths({}, {}, {}, {}))
            part.group.add(slot, target)
            if prefix is not None:
                depths = (prefix.device_blocks, prefix.host_blocks, prefix.blocks, prefix.expected_blocks)
                for levels, depth in zip(part.depths, depths, strict=True):
                    if depth:
                        levels[depth] = levels.get(depth, 0) | 1 << slot
        return cls(list(parts.values()))

    def part_of(self, target: Target) -> Matched | None:
        """The walk that asked for the target; None where its stream is not trusted."""
        for part in self.parts:
            if target in part.group.slots:
                return part
        return None

    def of(self, target: Target) -> MatchedPrefix | None:
        """What one target holds; None where it holds nothing, or its stream is not trusted."""
        part = self.part_of(target)
        return part.prefix(part.group.slots[target]) if part is not None else None

    def blocks_of(self, target: Target) -> int:
        """Blocks of the prompt a full hit on `target` would cover; 0 where its stream is not trusted."""
        part = self.part_of(target)
        return part.blocks if part is not None else 0

    def epoch_of(self, target: Target) -> int | None:
        """Of the target's claims, for `KvIndex.reported`."""
        part = self.part_of(target)
        return part.group.epoch(part.group.slots[target]) if part is not None else None

    @property
    def by_target(self) -> Mapping[Target, MatchedPrefix]:
        """Targets that hold, or will hold, at least one leading block: made at once for all, when first asked for."""
        found = self._by_target
        if found is None:
            found = self._by_target = {}
            for part in self.parts:
                for targets, prefix in part.prefixes():
                    found.update(dict.fromkeys(targets, prefix))
        return found

    def deepest(self, candidates: Sequence[Target]) -> Deepest:
        """Which candidates hold, or will hold, the most leading tokens."""
        parts, steps = self.parts, []
        for number, part in enumerate(parts):
            page = part.group.page_size
            for depth, slots in part.depths.expected.items():
                steps.append((depth * page, number, slots))
        if len(steps) > 1:
            steps.sort(reverse=True)
        asked = candidates if len(candidates) < _FEW_TARGETS else set(candidates)
        best = _NONE
        for tokens, number, slots in steps:
            if tokens < best.tokens:
                break
            group, blocks = parts[number][:2]
            found = [target for target in group.of(slots) if target in asked]
            if found:
                reusable = blocks * group.page_size
                if best is not _NONE:
                    reusable, found = max(reusable, best.reusable), best.targets + found
                best = Deepest(tokens, reusable, found)
        return best
