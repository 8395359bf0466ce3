"""The index as the rest of the router sees it: workers in, prompts in, matched prefixes out."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from sgl_router.kv_events.follow.follower import FollowedRank, StreamFollower
from sgl_router.kv_events.follow.status import RankStatus
from sgl_router.kv_events.index.expectation import Expectation, Expectations
from sgl_router.kv_events.index.hashing import DEFAULT_NAMESPACE, BlockHasher, Namespace
from sgl_router.kv_events.index.matched import MATCHED_STATES, Matched, MatchGroup, PromptMatch
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.kv_events.index.walk import depth_of
from sgl_router.kv_events.index.witness import Sent
from sgl_router.prompt import Prompt

if TYPE_CHECKING:
    from sgl_router.kv_events.index.walk import Depths
    from sgl_router.placement import Leg
    from sgl_router.prompt import Seen, TokenIds
    from sgl_router.workers import Target, Worker

__all__ = ["KvIndex", "RankStatus"]

# A prompt that nobody holds is found out by few blocks; the longer the hit, the larger the steps.
_FIRST_PIECE_BLOCKS = 16
_PIECE_GROWTH = 4
# What a conversation grows by, more often than not, is looked at in one step.
_TURN_BLOCKS = 64
# Up to here all is hashed at once.
_SHORT_BLOCKS = 32
# Up to here all is looked at block by block, where most of it need not be hashed.
_LOOP_BLOCKS = 160
_PIECE_BLOCKS = 2_048
_MAX_EXPECTED_BLOCKS = 8_192


class KvIndex(StreamFollower):
    """Add it as a listener of the registry; then ask it what the workers hold of a prompt."""

    def __init__(self, *, expect_ttl_secs: float = 10.0, **settings: Any) -> None:
        """`settings`: of `StreamFollower`."""
        super().__init__(**settings)
        self._groups: dict[str, dict[BlockHasher, MatchGroup]] = {}
        self._dirty: set[str] = set()
        self._expectations = Expectations(self.tree, expect_ttl_secs)

    def close(self) -> None:
        self._expectations.close()
        super().close()

    # --- streams ------------------------------------------------------------------------------------------------

    def _claims_changed(self, rank: FollowedRank) -> None:
        if rank.slot != rank.stream.slot:
            self._expectations.give_up(rank.slot)  # their bits must not meet the next owner of the slot
        self._dirty.add(rank.target.worker.model_id)

    def _gone(self, rank: FollowedRank) -> None:
        self._expectations.give_up(rank.slot)

    def _ranks_changed(self, worker: Worker) -> None:
        self._dirty.add(worker.model_id)

    def _regroup(self, model_id: str) -> None:
        """Rebuild the masks of one model: O(ranks), before the first match after one of its streams changed."""
        self._dirty.discard(model_id)
        groups: dict[BlockHasher, MatchGroup] = {}
        for worker, ranks in self._ranks.items():
            if worker.model_id != model_id:
                continue
            for rank in ranks:
                if rank.stream.state in MATCHED_STATES:
                    hasher = rank.stream.hasher
                    group = groups.get(hasher)
                    if group is None:
                        group = groups[hasher] = MatchGroup(hasher.page_size)
                    group.add(rank.stream.slot, rank.target, rank.stream)
        if groups:
            self._groups[model_id] = groups
        else:
            self._groups.pop(model_id, None)

    # --- prompts ------------------------------------------------------------------------------------------------

    async def match(
        self, model_id: str, prompt: Prompt | TokenIds, namespace: Namespace = DEFAULT_NAMESPACE
    ) -> PromptMatch:
        """How much of a prompt each rank of a model's workers holds.

        Yields to the loop where much is to be hashed, and stops hashing where no rank holds the next block.
        """
        matching = self._matching(model_id, prompt, namespace)
        while True:
            try:
                next(matching)
            except StopIteration as found:
                match: PromptMatch = found.value
                return match
            await asyncio.sleep(0)

    def match_now(
        self, model_id: str, prompt: Prompt | TokenIds, namespace: Namespace = DEFAULT_NAMESPACE
    ) -> PromptMatch | None:
        """As `match`; None where that would take more than one turn of the loop."""
        matching = self._matching(model_id, prompt, namespace)
        try:
            next(matching)
        except StopIteration as found:
            match: PromptMatch = found.value
            return match
        matching.close()
        return None

    def _matching(
        self, model_id: str, prompt: Prompt | TokenIds, namespace: Namespace
    ) -> Generator[None, None, PromptMatch]:
        """Pauses where the loop is due a turn."""
        prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        parts: list[Matched] = []
        yielded = False
        if model_id in self._dirty:
            self._regroup(model_id)
        # A snapshot: _regroup replaces the mapping, so a stream that changes while we yield cannot shift the walk.
        for hasher, group in self._groups.get(model_id, {}).items():
            keys = PromptKeys(prompt, hasher, namespace)
            blocks = keys.blocks
            if blocks <= _SHORT_BLOCKS or (blocks <= _LOOP_BLOCKS and blocks - keys.known <= _TURN_BLOCKS):
                words = keys.slice(0, blocks)
                depths, seen = self.tree.depths(group.mask, words), None
                if self.bound.watching:
                    self.bound.matched(words)
            else:
                depths, seen, rested = yield from self._walk(group, keys)
                yielded = yielded or rested
            if self._withheld:
                depths = self._withheld.without(hasher.root(namespace), depths, self._clock())
            keys.share(seen)
            parts.append(Matched(group, blocks, depths, keys))
        if yielded:
            # Meanwhile streams may have lost their trust or what they held: then they claim nothing.
            parts = [part._replace(depths=part.depths.among(part.group.trusted())) for part in parts]
        return PromptMatch(parts, prompt, namespace)

    def _walk(self, group: MatchGroup, keys: PromptKeys) -> Generator[None, None, tuple[Depths, Seen | None, bool]]:
        """A long prompt in pieces, as far as some rank holds it: the depths, in which rows the keys are, and whether
        the loop had a turn meanwhile."""
        blocks, memo, yielded = keys.blocks, keys.memo, False
        walk = self.tree.walk(group.mask, learn=keys.known > _SHORT_BLOCKS)
        piece = _TURN_BLOCKS if keys.known > _SHORT_BLOCKS else _FIRST_PIECE_BLOCKS
        walked, rested, going = 0, keys.known, True
        before = len(memo.seen.rows) if memo.seen is not None else 0
        if _SHORT_BLOCKS < before <= min(keys.known, _PIECE_BLOCKS):
            walked = before
            words = keys.slice(0, walked)
            going = walk.feed(words, memo.seen)
            if self.bound.watching:
                self.bound.matched(words)
        while going and walked < blocks:
            # A conversation's known beginning and what must be hashed first are walked together.
            ahead = min(keys.known, walked + _PIECE_BLOCKS)
            stop = min((ahead if ahead > walked + piece else walked) + piece, blocks)
            if stop - rested > _PIECE_BLOCKS:
                yield
                rested, yielded = walked, True
            words = keys.slice(walked, stop)
            going = walk.feed(words)
            if self.bound.watching:
                self.bound.matched(words)
            walked = stop
            piece = min(piece * _PIECE_GROWTH, _PIECE_BLOCKS)
        return walk.finish(), walk.seen, yielded

    def expect(self, target: Target, match: PromptMatch) -> Expectation | None:
        """A prompt has been dispatched to `target`: treat it as about to hold the prompt's blocks. The caller tells
        the first byte and ends it where the request fails. None where the target publishes no events."""
        rank = self._by_target.get(target)
        if rank is None or rank.stream.state not in MATCHED_STATES:
            return None
        stream = rank.stream
        slot = stream.slot
        part = match.part_of(target)
        keys = part.keys if part is not None else None
        held = 0
        if keys is None or keys.hasher is not stream.hasher:  # a stream that was not trusted yet, or has changed
            keys = PromptKeys(match.prompt, stream.hasher, match.namespace)
        elif part is not None:
            # What the match found held need not be expected, if it was this stream's: slots change hands.
            held = depth_of(part.depths.held, slot)
            if held and not self.tree.holds(slot, keys.memo.computed[held - 1]):
                held = 0
        missing = keys.known < keys.blocks
        expected = keys.slice(held, held + _MAX_EXPECTED_BLOCKS)
        if missing:
            keys.share()
        if not expected or (not held and self.tree.holds(slot, expected[-1])):
            return None
        return self._expectations.make(slot, expected, held)

    def sent(self, leg: Leg, match: PromptMatch) -> Sent | None:
        """A prompt that was looked up goes to the leg's target. Its answer is to be told to what this returns;
        None where there is nothing to learn from it."""
        rank = self._by_target.get(leg.target)
        if rank is None or rank.stream.state not in MATCHED_STATES:
            return None
        return rank.witness.sent(leg, match)

    def _expected_blocks(self, rank: FollowedRank) -> int:
        return self._expectations.blocks(rank.slot)
