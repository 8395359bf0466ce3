"""A frame on its way to being applied: all of it is decoded and checked, in bounded steps, before any of it is.

So a frame that turns out bad has changed nothing, and may be asked for once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from sgl_router.kv_events.follow.large import LargeBatch
from sgl_router.kv_events.follow.wire import BlockRemoved, BlocksCleared, BlockStored, Event, Frame, decode_batch

__all__ = ["PIECE_BLOCKS", "PIECE_TOKENS", "SMALL_BYTES", "Opening", "pieces"]

# The largest step when events are applied: this many tokens of a stored chain, this many blocks of a removal.
PIECE_TOKENS = 4_096
PIECE_BLOCKS = 512
# Up to here a payload needs no opening: what can be in it is checked in one step.
SMALL_BYTES = 8 << 10
# Up to here a payload is decoded in one call of msgspec's: a few milliseconds at most.
_WHOLE_BYTES = 96 << 10
# What is checked in one step.
_STEP_BLOCKS = 1_024
_STEP_TOKENS = 32_768


class Opening:
    """`repairable` and `counted` are `EventStream.observe`'s. Call `step` until it is False, then apply `events`."""

    __slots__ = ("_checked", "_parts", "counted", "frame", "repairable", "ts")

    def __init__(self, frame: Frame, *, repairable: bool, counted: bool = False) -> None:
        """Decodes the envelope. Raises WireError."""
        self.frame = frame
        self.repairable = repairable
        self.counted = counted
        payload = frame.payload
        batch = LargeBatch(payload) if len(payload) > _WHOLE_BYTES else decode_batch(payload)
        self.ts = batch.ts
        self._parts = batch.parts() if isinstance(batch, LargeBatch) else _some(batch.events)
        self._checked: deque[Iterable[Event]] = deque()

    def step(self) -> bool:
        """Check a piece more. True while some is left. Raises WireError."""
        for part in self._parts:
            if part is not None:
                self._checked.append(part)
            return True
        return False

    def events(self) -> Iterator[Event]:
        """In pieces, none of which takes long to apply. Once."""
        parts = self._checked
        while parts:
            yield from pieces(parts.popleft())


def _some(events: Iterator[Event]) -> Iterator[list[Event]]:
    """The events, as many at a time as can be checked in one step."""
    part: list[Event] = []
    blocks = tokens = 0
    for event in events:
        part.append(event)
        if not isinstance(event, BlocksCleared):
            blocks += len(event.block_hashes) + 1
            if isinstance(event, BlockStored):
                tokens += len(event.token_ids)
        if blocks >= _STEP_BLOCKS or tokens >= _STEP_TOKENS:
            yield part
            part, blocks, tokens = [], 0, 0
    if part:
        yield part


def pieces(events: Iterable[Event]) -> Iterator[Event]:
    """The same events, long chains and removals cut so that no single step holds the loop."""
    for event in events:
        if isinstance(event, BlocksCleared):
            yield event
            continue
        count = len(event.block_hashes)
        if isinstance(event, BlockRemoved):
            most = PIECE_BLOCKS
        else:
            most = min(PIECE_BLOCKS, max(1, PIECE_TOKENS // event.block_size))
        if count <= most:
            yield event
        else:
            for start in range(0, count, most):
                yield event.piece(start, start + most)
