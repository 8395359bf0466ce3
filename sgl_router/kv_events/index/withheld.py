"""Namespaces that are not matched on some ranks for a time, because their claims there do not come true."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.kv_events.follow.stream import EventStream
    from sgl_router.kv_events.index.walk import Depths

__all__ = ["WithheldNamespaces"]

_FIRST_SECS = 60.0
_MAX_SECS = 3_600.0
_MAX_PAIRS = 4_096


class WithheldNamespaces:
    """By the namespace's root key, which streams it is withheld of, and until when (monotonic seconds). False, and
    without cost to a match, while there are none."""

    __slots__ = ("_times", "_until")

    def __init__(self) -> None:
        self._until: dict[int, dict[EventStream, float]] = {}
        # How often each was withheld: every time is twice as long as the one before.
        self._times: dict[tuple[int, EventStream], int] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, root: int, stream: EventStream, now: float) -> bool:
        """Withhold a namespace of a stream. True where this is the first time."""
        times = self._times.pop((root, stream), 0)
        self._times[root, stream] = times + 1
        self._until.setdefault(root, {})[stream] = now + min(_FIRST_SECS * 2 ** min(times, 10), _MAX_SECS)
        if len(self._times) > _MAX_PAIRS:
            self._drop(*next(iter(self._times)))
        return not times

    def without(self, root: int, depths: Depths, now: float) -> Depths:
        """What a match under `root` found, less the streams it is withheld of."""
        streams = self._until.get(root)
        if streams is None:
            return depths
        for stream in [stream for stream, until in streams.items() if until <= now]:
            del streams[stream]
        if not streams:
            del self._until[root]
            return depths
        found = 0
        for levels in depths:
            for slots in levels.values():
                found |= slots
        for stream in streams:
            found &= ~(1 << stream.slot)
        return depths.among(found)

    def count(self, stream: EventStream, now: float) -> int:
        """How many namespaces are withheld of a stream."""
        return sum(streams.get(stream, now) > now for streams in self._until.values())

    def forget(self, stream: EventStream) -> None:
        """The stream is gone."""
        for root, known in list(self._times):
            if known is stream:
                self._drop(root, stream)

    def _drop(self, root: int, stream: EventStream) -> None:
        self._times.pop((root, stream), None)
        streams = self._until.get(root)
        if streams is not None:
            streams.pop(stream, None)
            if not streams:
                del self._until[root]
