"""Helpers for event-stream tests: a tree with one stream, fed with decoded events or captured frames."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from sgl_router.kv_events import BlockHasher, BlockTree, EventStream, FrameOutcome, Namespace, WireError, decode_batch
from sgl_router.kv_events.follow.stream import Remark
from sgl_router.kv_events.follow.wire import Frame
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.kv_events.index.walk import depth_of
from sgl_router.prompt import Prompt


class Follower:
    """One stream over its own tree, driven the way the pump drives it."""

    def __init__(self, page_size: int = 4, *, bigram: bool = False, announced: bool = True) -> None:
        self.tree = BlockTree()
        self.hashers: dict[tuple[int, bool], BlockHasher] = {}
        self.changes = 0
        self.remarks: list[Remark] = []
        self.stream = EventStream(
            self.tree,
            self._hasher,
            page_size=page_size,
            bigram=bigram,
            announced=announced,
            changed=self._changed,
            remarks=lambda stream, remark, number: self.remarks.append(remark),
        )
        self._seq = 0

    def _changed(self, stream: EventStream) -> None:
        self.changes += 1

    def _hasher(self, page_size: int, bigram: bool) -> BlockHasher:
        return self.hashers.setdefault((page_size, bigram), BlockHasher(page_size, bigram=bigram, secret=7))

    def frame(self, seq: int, payload: bytes) -> FrameOutcome:
        outcome = self.stream.observe(Frame(seq, payload))
        if outcome is not FrameOutcome.DUPLICATE:
            try:
                for event in list(decode_batch(payload).events):
                    self.stream.apply(event)
            except WireError as error:
                self.stream.failed(error)
        return outcome

    def send(self, *events: Any, seq: int | None = None) -> FrameOutcome:
        """Encode raw events (lists or dicts, as on the wire) and feed them under the next sequence number."""
        self._seq = self._seq if seq is None else seq
        payload = msgspec.msgpack.encode([float(self._seq), list(events), 0])
        self._seq += 1
        return self.frame(self._seq - 1, payload)

    def depth(self, tokens: list[int], *, device: bool = False, **namespace: str) -> int:
        """Leading blocks of a prompt that the stream's slot holds."""
        walk = self.tree.walk(1 << self.stream.slot)
        keys = PromptKeys(Prompt(np.array(tokens, dtype=np.uint32)), self.stream.hasher, Namespace(**namespace))
        walk.feed(keys.slice(0, keys.blocks))
        depths = walk.finish()
        return depth_of(depths.device if device else depths.held, self.stream.slot)

    @property
    def held(self) -> set[tuple[int, str]]:
        return {(key, tier.value) for key, tier in self.tree.holdings(self.stream.slot)}


@pytest.fixture
def follower() -> Follower:
    return Follower()


@pytest.fixture
def make_follower() -> type[Follower]:
    return Follower
