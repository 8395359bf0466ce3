"""What a prompt's look-up says: who holds how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .stream import EventStream, StreamState

if TYPE_CHECKING:
    from sgl_router.workers import Target

    from .tree import PrefixWalk

__all__ = ["MATCHED_STATES", "MatchGroup", "MatchedPrefix", "PromptMatch"]

# A stream that has not said anything holds nothing, but may be expected to.
MATCHED_STATES = (StreamState.LIVE, StreamState.WAITING)


class MatchedPrefix(NamedTuple):
    """Leading blocks of a prompt that one target holds: in any tier, on the device alone, and together with those that
    requests on their way will make it hold."""

    blocks: int
    device_blocks: int
    page_size: int
    expected_blocks: int = 0
    epoch: int | None = None
    """Of the stream's claims, for `KvIndex.reported`."""

    @property
    def tokens(self) -> int:
        return self.blocks * self.page_size

    @property
    def expected_tokens(self) -> int:
        """Never less than `tokens`."""
        return max(self.blocks, self.expected_blocks) * self.page_size


class PromptMatch(NamedTuple):
    """Targets that hold at least one leading block, and how many blocks of the prompt each could at most hold."""

    by_target: Mapping[Target, MatchedPrefix]
    totals: Mapping[Target, int]

    def blocks_of(self, target: Target) -> int:
        """Blocks of the prompt a full hit on `target` would cover; 0 where its stream is not trusted."""
        return self.totals.get(target, 0)


class MatchGroup:
    """Trusted slots whose streams share one hasher: one walk of the tree serves them all."""

    __slots__ = ("mask", "ranks", "targets")

    def __init__(self) -> None:
        self.mask = 0
        self.ranks: dict[int, tuple[EventStream, int, Target]] = {}
        self.targets: list[Target] = []

    def add(self, stream: EventStream, target: Target) -> None:
        self.mask |= 1 << stream.slot
        self.ranks[stream.slot] = (stream, stream.epoch, target)
        self.targets.append(target)

    def found(self, walk: PrefixWalk, page_size: int, into: dict[Target, MatchedPrefix], *, yielded: bool) -> None:
        """What the walk says of each target. Most have the same in common, so equal prefixes are made once."""
        ranks, held, device = self.ranks, walk.depth, walk.device_depth
        same = held is device and held is walk.expected_depth
        made: dict[tuple[int, int, int, int], MatchedPrefix] = {}
        for slot, expected in walk.expected_depth.items():
            stream, epoch, target = ranks[slot]
            # While we yielded the stream may have lost its trust or what it held: then it claims nothing.
            if yielded and (stream.epoch != epoch or stream.state not in MATCHED_STATES):
                continue
            known = (expected, expected, expected, epoch)
            if not same:
                known = (held.get(slot, 0), device.get(slot, 0), expected, epoch)
            prefix = made.get(known)
            if prefix is None:
                prefix = made[known] = MatchedPrefix(known[0], known[1], page_size, expected, epoch)
            into[target] = prefix
