"""A page-granular prefix cache: what an engine keeps, what it evicts, and what it says about it.

Pure: no clock, no sockets. Recency is a counter, so equal histories give equal caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from sgl_router.lab.mock_worker.hashing import BlockHasher, SglangHasher, Unit
from sgl_router.lab.mock_worker.namespace import DEFAULT_NAMESPACE, Namespace
from sgl_router.lab.mock_worker.node import LeafQueue, RadixNode
from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored, CacheCleared, CacheOp, Medium
from sgl_router.lab.mock_worker.prefix import CachedBlock, PrefixMatch


class RadixCache:
    """One rank's cache. `capacity` and `host_capacity` count tokens; a None capacity never evicts.

    Space is tree pages on the device plus tokens reserved for running requests; it never exceeds
    `capacity`. Locked nodes are not evicted. With a host tier, every page stored on the device is also
    written to the host (write-through) as far as evicting idle host copies makes room for it.
    """

    def __init__(
        self,
        *,
        page_size: int,
        capacity: int | None = None,
        host_capacity: int = 0,
        bigram: bool = False,
        enabled: bool = True,
        removes_on_split: bool = False,
        hasher: BlockHasher | None = None,
        listener: Callable[[CacheOp], None] | None = None,
    ) -> None:
        self.page_size = page_size
        self.capacity = capacity
        self.host_capacity = host_capacity
        self.bigram = bigram
        self.enabled = enabled
        self.device_tokens = 0
        self.host_tokens = 0
        self.reserved_tokens = 0
        self.locked_tokens = 0
        self._removes_on_split = removes_on_split
        self._hasher: BlockHasher = hasher or SglangHasher()
        self._listener = listener
        self._roots: dict[Namespace, RadixNode] = {}
        self._order = 0
        self._access = 0
        self._device_leaves = LeafQueue(
            lambda node: node.device and not node.device_children and not node.locks and node.parent is not None
        )
        self._host_leaves = LeafQueue(
            lambda node: node.host and not node.device and not node.children and not node.locks
        )
        self._emit(CacheCleared())

    # -- looking ----------------------------------------------------------------------------------

    def units_of(self, tokens: Sequence[int]) -> tuple[Unit, ...]:
        """The cache key of a token sequence: the ids, or their bigrams (one fewer)."""
        if self.bigram:
            return tuple(pairwise(tokens))
        return tuple(tokens)

    def page_units(self, tokens: Sequence[int]) -> tuple[Unit, ...]:
        """The cache key of the full pages of a token sequence."""
        units = self.units_of(tokens)
        return units[: len(units) // self.page_size * self.page_size]

    def round_up(self, tokens: int) -> int:
        """The space `tokens` tokens take: whole pages."""
        return -(-tokens // self.page_size) * self.page_size

    def hit_limit(self, prompt_tokens: int) -> int:
        """The most tokens of a prompt that can be a hit: the last token is always computed."""
        units = max(0, prompt_tokens - 1 - self.bigram)
        return units // self.page_size * self.page_size

    def peek(self, tokens: Sequence[int], namespace: Namespace = DEFAULT_NAMESPACE) -> int:
        """Tokens a request would find on the device now, without touching recency or splitting nodes."""
        root = self._roots.get(namespace)
        if root is None or not self.enabled:
            return 0
        units = self.units_of(tokens)[: self.hit_limit(len(tokens))]
        node, matched = root, 0
        while matched < len(units):
            child = node.children.get(units[matched : matched + self.page_size])
            if child is None or not child.device:
                break
            length = child.common_length(units, matched, self.page_size)
            matched += length
            if length < child.tokens:
                break
            node = child
        return matched

    def blocks(self) -> Iterator[CachedBlock]:
        """Every page held, parents before children."""
        stack = [(root, 0, b"") for root in self._roots.values()]
        while stack:
            node, depth, digest = stack.pop()
            tiers = frozenset(
                medium for medium, held in ((Medium.GPU, node.device), (Medium.CPU_PINNED, node.host)) if held
            )
            for index, page_digest in enumerate(node.digests):
                start = index * self.page_size
                yield CachedBlock(
                    namespace=node.namespace,
                    hash=self._hasher.wire(page_digest, node.namespace),
                    parent=self._hasher.wire(digest, node.namespace) if depth + index else None,
                    units=node.units[start : start + self.page_size],
                    depth=depth + index,
                    tiers=tiers,
                )
                digest = page_digest
            depth += len(node.digests)
            stack.extend((child, depth, digest) for child in node.children.values())

    @property
    def evictable_tokens(self) -> int:
        return self.device_tokens - self.locked_tokens

    @property
    def obtainable_tokens(self) -> float:
        """What could be reserved now, evicting everything idle."""
        if self.capacity is None:
            return float("inf")
        return self.capacity - self.reserved_tokens - self.locked_tokens

    # -- matching and inserting -------------------------------------------------------------------

    def match(self, tokens: Sequence[int], namespace: Namespace = DEFAULT_NAMESPACE) -> PrefixMatch:
        """The longest usable prefix, made recent; a node matched in part is split, as in the engine."""
        root = self._root(namespace)
        if not self.enabled:
            return PrefixMatch(0, 0, root, root)
        units = self.units_of(tokens)[: self.hit_limit(len(tokens))]
        self._access += 1
        node = device_node = root
        matched = device_tokens = 0
        while matched < len(units):
            child = node.children.get(units[matched : matched + self.page_size])
            if child is None:
                break
            length = child.common_length(units, matched, self.page_size)
            if length < child.tokens:
                child = self._split(child, length)
            self._touch(child)
            node = child
            matched += length
            if node.device:
                device_node, device_tokens = node, matched
        return PrefixMatch(device_tokens, matched - device_tokens, device_node, node)

    def insert(
        self,
        tokens: Sequence[int],
        namespace: Namespace = DEFAULT_NAMESPACE,
        *,
        session_id: str | None = None,
    ) -> int:
        """Store the full pages of `tokens`, as far as there is room; returns the tokens now cached."""
        units = self.page_units(tokens)
        node, cached = self._walk_device(units, namespace)
        self.lock(node)
        try:
            room = len(units) - cached
            while room > 0 and not self._make_room(room):
                room -= self.page_size
            self.extend(units[: cached + max(0, room)], namespace, session_id=session_id)
        finally:
            self.unlock(node)
        return cached + max(0, room)

    def extend(self, units: tuple[Unit, ...], namespace: Namespace, *, session_id: str | None = None) -> RadixNode:
        """Make page-aligned `units` resident in space the caller already holds; returns the last node."""
        node = self._root(namespace)
        if not self.enabled:
            return node
        self._access += 1
        start = 0
        while start < len(units):
            child = node.children.get(units[start : start + self.page_size])
            if child is None:
                child = self._grow(node, units[start:])
                start = len(units)
            else:
                length = child.common_length(units, start, self.page_size)
                if length < child.tokens:
                    child = self._split(child, length)
                start += length
            self._touch(child)
            if not child.device:
                self._settle(child, session_id)
            self._back_up(child, session_id)
            node = child
        return node

    def load_back(self, match: PrefixMatch) -> PrefixMatch:
        """Bring the host part of a match onto the device; unchanged when there is no room for it."""
        if not match.host_tokens:
            return match
        self.lock(match.host_node)
        try:
            if not self._make_room(match.host_tokens):
                return match
            missing = [node for node in match.host_node.path() if not node.device]
            for node in reversed(missing):
                self._settle(node, None)
        finally:
            self.unlock(match.host_node)
        return PrefixMatch(match.tokens, 0, match.host_node, match.host_node)

    # -- space ------------------------------------------------------------------------------------

    def reserve(self, tokens: int) -> bool:
        """Take space for tokens not (yet) in the tree, evicting as needed; False changes nothing."""
        if not self._make_room(tokens):
            return False
        self.reserved_tokens += tokens
        return True

    def release(self, tokens: int) -> None:
        """Give back reserved space."""
        if tokens > self.reserved_tokens:
            raise ValueError(f"releasing {tokens} of {self.reserved_tokens} reserved tokens")
        self.reserved_tokens -= tokens

    def lock(self, node: RadixNode) -> None:
        """Keep a node and its ancestors from being evicted."""
        for held in node.path():
            if not held.locks and held.device:
                self.locked_tokens += held.tokens
            held.locks += 1

    def unlock(self, node: RadixNode) -> None:
        """Undo one `lock` of the same node."""
        for held in node.path():
            held.locks -= 1
            if not held.locks:
                if held.device:
                    self.locked_tokens -= held.tokens
                self._offer(held)

    def evict(self, tokens: int) -> int:
        """Evict idle leaves, oldest first, until `tokens` are freed; returns how many were."""
        freed = 0
        while freed < tokens:
            node = self._device_leaves.pop()
            if node is None:
                break
            freed += node.tokens
            self._leave_device(node)
        return freed

    def clear(self) -> None:
        """Forget everything; only an idle cache can be cleared."""
        if self.reserved_tokens or self.locked_tokens:
            raise RuntimeError("the cache is in use")
        self._roots.clear()
        self._device_leaves.clear()
        self._host_leaves.clear()
        self.device_tokens = self.host_tokens = 0
        self._emit(CacheCleared())

    # -- the tree ---------------------------------------------------------------------------------

    def _root(self, namespace: Namespace) -> RadixNode:
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = RadixNode(namespace, None, (), [], 0)
        return root

    def _walk_device(self, units: tuple[Unit, ...], namespace: Namespace) -> tuple[RadixNode, int]:
        """The last node on the device along `units`, and how many units lie on the device."""
        node, matched = self._root(namespace), 0
        while matched < len(units):
            child = node.children.get(units[matched : matched + self.page_size])
            if child is None or not child.device:
                break
            node = child
            length = child.common_length(units, matched, self.page_size)
            matched += length
            if length < child.tokens:
                break
        return node, matched

    def _grow(self, parent: RadixNode, units: tuple[Unit, ...]) -> RadixNode:
        prior = parent.digests[-1] if parent.digests else self._hasher.seed(parent.namespace)
        digests = []
        for start in range(0, len(units), self.page_size):
            prior = self._hasher.extend(prior, units[start : start + self.page_size])
            digests.append(prior)
        self._order += 1
        node = RadixNode(parent.namespace, parent, units, digests, self._order)
        parent.children[units[: self.page_size]] = node
        return node

    def _split(self, node: RadixNode, length: int) -> RadixNode:
        """Cut a node in two; the upper part is new and is returned."""
        if self._removes_on_split and node.device:
            self._emit(BlocksRemoved(self._wire(node), Medium.GPU))
        parent, pages = node.parent, length // self.page_size
        if parent is None:
            raise ValueError("a root cannot be split")
        self._order += 1
        upper = RadixNode(node.namespace, parent, node.units[:length], node.digests[:pages], self._order)
        upper.device, upper.host = node.device, node.host
        upper.locks, upper.access = node.locks, node.access
        upper.device_children = 1 if node.device else 0
        upper.children[node.units[length : length + self.page_size]] = node
        parent.children[node.units[: self.page_size]] = upper
        node.parent = upper
        node.units, node.digests = node.units[length:], node.digests[pages:]
        return upper

    def _touch(self, node: RadixNode) -> None:
        node.access = self._access
        self._offer(node)

    def _offer(self, node: RadixNode) -> None:
        self._device_leaves.offer(node)
        self._host_leaves.offer(node)

    def _settle(self, node: RadixNode, session_id: str | None) -> None:
        """Put a node on the device and say so."""
        node.device = True
        self.device_tokens += node.tokens
        if node.locks:
            self.locked_tokens += node.tokens
        if node.parent is not None:
            node.parent.device_children += 1
        self._offer(node)
        self._emit_stored(node, Medium.GPU, session_id)

    def _leave_device(self, node: RadixNode) -> None:
        node.device = False
        self.device_tokens -= node.tokens
        self._emit(BlocksRemoved(self._wire(node), Medium.GPU))
        parent = node.parent
        if parent is not None:
            parent.device_children -= 1
        if node.host:
            self._offer(node)
        else:
            self._detach(node)
        if parent is not None:
            self._offer(parent)

    def _back_up(self, node: RadixNode, session_id: str | None) -> None:
        """Write a device node through to the host, if there is room below its parent's copy."""
        if not self.host_capacity or node.host or node.parent is None:
            return
        if node.parent.parent is not None and not node.parent.host:
            return
        while self.host_tokens + node.tokens > self.host_capacity:
            victim = self._host_leaves.pop()
            if victim is None:
                return
            self._leave_host(victim)
        node.host = True
        self.host_tokens += node.tokens
        self._emit_stored(node, Medium.CPU_PINNED, session_id)

    def _leave_host(self, node: RadixNode) -> None:
        node.host = False
        self.host_tokens -= node.tokens
        self._emit(BlocksRemoved(self._wire(node), Medium.CPU_PINNED))
        parent = node.parent
        self._detach(node)
        if parent is not None:
            self._offer(parent)

    def _detach(self, node: RadixNode) -> None:
        parent = node.parent
        if parent is None:
            return
        del parent.children[node.units[: self.page_size]]
        if parent.parent is None and not parent.children:
            del self._roots[parent.namespace]

    def _make_room(self, tokens: int) -> bool:
        if self.capacity is None:
            return True
        missing = self.device_tokens + self.reserved_tokens + tokens - self.capacity
        if missing <= 0:
            return True
        if missing > self.evictable_tokens:
            return False
        self.evict(missing)
        return True

    # -- saying what happened ---------------------------------------------------------------------

    def _wire(self, node: RadixNode) -> tuple[int, ...]:
        return tuple(self._hasher.wire(digest, node.namespace) for digest in node.digests)

    def _emit_stored(self, node: RadixNode, medium: Medium, session_id: str | None) -> None:
        if self._listener is None:
            return
        parent = node.parent
        above = parent.digests[-1] if parent is not None and parent.digests else None
        self._listener(
            BlocksStored(
                hashes=self._wire(node),
                parent=None if above is None else self._hasher.wire(above, node.namespace),
                units=node.units,
                page_size=self.page_size,
                medium=medium,
                namespace=node.namespace,
                session_id=session_id,
            )
        )

    def _emit(self, op: CacheOp) -> None:
        if self._listener is not None:
            self._listener(op)
