"""One request's hold on the cache: a locked prefix plus the private space it computes into."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_router.lab.mock_worker.namespace import Namespace
from sgl_router.lab.mock_worker.node import RadixNode
from sgl_router.lab.mock_worker.radix import RadixCache


class CacheLease:
    """Opened when a request is scheduled, closed once when it ends.

    `cached_tokens` is the hit found at opening, `host_tokens` the part of it loaded back from the host.
    The lease never takes more than `planned_tokens` of the cache, its prefix included.
    """

    def __init__(
        self,
        cache: RadixCache,
        node: RadixNode,
        namespace: Namespace,
        *,
        cached_tokens: int,
        host_tokens: int,
        planned_tokens: int,
        session_id: str | None,
    ) -> None:
        self.cached_tokens = cached_tokens
        self.host_tokens = host_tokens
        self._cache = cache
        self._namespace = namespace
        self._session_id = session_id
        self._planned = cache.round_up(planned_tokens)
        self._owned = cached_tokens
        self._reserved = 0
        self._node = node
        self._open = True
        cache.lock(node)

    @classmethod
    def open(
        cls,
        cache: RadixCache,
        tokens: Sequence[int],
        namespace: Namespace,
        *,
        planned_tokens: int,
        headroom: int = 0,
        session_id: str | None = None,
    ) -> CacheLease | None:
        """Admit a request, or None when `planned_tokens` and `headroom` for others cannot both be had."""
        found = cache.match(tokens, namespace)
        cache.lock(found.device_node)
        try:
            wanted = cache.round_up(planned_tokens) - found.device_tokens
            if wanted + headroom > cache.obtainable_tokens:
                return None
            match = cache.load_back(found)
            return cls(
                cache,
                match.device_node,
                namespace,
                cached_tokens=match.device_tokens,
                host_tokens=match.device_tokens - found.device_tokens,
                planned_tokens=planned_tokens,
                session_id=session_id,
            )
        finally:
            cache.unlock(found.device_node)

    @property
    def growth_tokens(self) -> int:
        """Space the request may still ask for."""
        return max(0, self._planned - self._owned - self._reserved)

    def hold(self, tokens: int) -> bool:
        """Have space for the first `tokens` tokens of the request; False when there is none."""
        missing = self._cache.round_up(tokens) - self._owned - self._reserved
        if missing <= 0:
            return True
        if not self._cache.reserve(missing):
            return False
        self._reserved += missing
        return True

    def commit(self, tokens: Sequence[int]) -> None:
        """Hand the full pages of `tokens` (held before) to the tree; the request keeps them locked."""
        units = self._cache.page_units(tokens)
        if not self._cache.enabled or len(units) <= self._owned:
            return
        self._give_back(len(units) - self._owned)
        node = self._cache.extend(units, self._namespace, session_id=self._session_id)
        self._cache.lock(node)
        self._cache.unlock(self._node)
        self._node, self._owned = node, len(units)

    def close(self, tokens: Sequence[int] | None = None) -> None:
        """End the hold, keeping the full pages of `tokens` in the cache; closing again does nothing."""
        if not self._open:
            return
        if tokens is not None:
            self.commit(tokens)
        self._open = False
        self._give_back(self._reserved)
        self._cache.unlock(self._node)

    def _give_back(self, tokens: int) -> None:
        tokens = min(tokens, self._reserved)
        self._cache.release(tokens)
        self._reserved -= tokens
