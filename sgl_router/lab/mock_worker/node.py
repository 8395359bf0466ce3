"""A radix tree node, and the queue that knows which leaf to evict next."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from sgl_router.lab.mock_worker.hashing import Unit
from sgl_router.lab.mock_worker.namespace import Namespace

_COMPACT_SLACK = 64


class RadixNode:
    """A run of full pages below its parent. Roots have no parent, no units, and are always resident.

    Residency is closed towards the root on both tiers: a node on the device has its whole path on the
    device, and a host copy has host copies above it.
    """

    __slots__ = (
        "access",
        "children",
        "device",
        "device_children",
        "digests",
        "host",
        "locks",
        "namespace",
        "order",
        "parent",
        "units",
    )

    def __init__(
        self,
        namespace: Namespace,
        parent: RadixNode | None,
        units: tuple[Unit, ...],
        digests: list[bytes],
        order: int,
    ) -> None:
        self.namespace = namespace
        self.parent = parent
        self.units = units
        self.digests = digests
        self.order = order
        self.children: dict[tuple[Unit, ...], RadixNode] = {}
        self.device = parent is None
        self.host = False
        self.device_children = 0
        self.locks = 0
        self.access = 0

    @property
    def tokens(self) -> int:
        """How much of the cache the node takes when resident."""
        return len(self.units)

    def path(self) -> Iterator[RadixNode]:
        """The node and its ancestors, without the root."""
        node: RadixNode | None = self
        while node is not None and node.parent is not None:
            yield node
            node = node.parent

    def common_length(self, units: tuple[Unit, ...], start: int, page_size: int) -> int:
        """How many of this node's units, in whole pages, continue `units` at `start`."""
        limit = min(len(self.units), (len(units) - start) // page_size * page_size)
        if self.units[:limit] == units[start : start + limit]:
            return limit
        matched = 0
        while self.units[matched : matched + page_size] == units[start + matched : start + matched + page_size]:
            matched += page_size
        return matched


class LeafQueue:
    """Evictable leaves, least recently used first.

    Entries are never taken out when a leaf stops qualifying or is touched again: they are recognised as
    outdated when they surface, and swept when they outnumber the live ones.
    """

    def __init__(self, evictable: Callable[[RadixNode], bool]) -> None:
        self._evictable = evictable
        self._heap: list[tuple[int, int, RadixNode]] = []
        self._compact_at = _COMPACT_SLACK

    def offer(self, node: RadixNode) -> None:
        """Consider a node whose place in the order may have changed."""
        if not self._evictable(node):
            return
        heapq.heappush(self._heap, (node.access, node.order, node))
        if len(self._heap) > self._compact_at:
            live = {entry for entry in self._heap if self._current(entry)}
            self._heap = list(live)
            heapq.heapify(self._heap)
            self._compact_at = 2 * len(self._heap) + _COMPACT_SLACK

    def pop(self) -> RadixNode | None:
        """The leaf to evict next, no longer queued; None when nothing is evictable."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            if self._current(entry):
                return entry[2]
        return None

    def clear(self) -> None:
        """Forget every leaf."""
        self._heap.clear()

    def _current(self, entry: tuple[int, int, RadixNode]) -> bool:
        access, _, node = entry
        return access == node.access and self._evictable(node)
