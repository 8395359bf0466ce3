"""The mock's radix cache over block keys: a page is one unit, so that nothing is hashed or compared token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sgl_router.lab.mock_worker.hashing import Unit
from sgl_router.lab.mock_worker.lease import CacheLease
from sgl_router.lab.mock_worker.namespace import DEFAULT_NAMESPACE, Namespace
from sgl_router.lab.mock_worker.ops import CacheOp
from sgl_router.lab.mock_worker.radix import RadixCache
from sgl_router.lab.simulate.job import Job

__all__ = ["open_lease", "page_cache", "pages"]

# In the place of what follows a prompt's last reusable page: a hit always leaves one unit to compute.
_REST: tuple[int, ...] = (0,)


class _KeysAsHashes:
    """Keys name whole prefixes already: what is published for a page is its key."""

    def seed(self, namespace: Namespace) -> bytes:
        return b""

    def extend(self, prior: bytes, page: Sequence[Unit]) -> bytes:
        (key,) = page
        if not isinstance(key, int):
            raise TypeError("bigram keys are not simulated")
        return key.to_bytes(8, "little")

    def wire(self, digest: bytes, namespace: Namespace) -> int:
        return int.from_bytes(digest, "little")


def pages(tokens: int, page_size: int) -> int:
    """The space `tokens` tokens take."""
    return -(-tokens // page_size)


def page_cache(capacity_tokens: int, page_size: int, listener: Callable[[CacheOp], None]) -> RadixCache:
    """A cache that counts in pages. Whatever happens to it, one of `capacity_tokens` with real tokens would do too."""
    return RadixCache(page_size=1, capacity=capacity_tokens // page_size, hasher=_KeysAsHashes(), listener=listener)


def open_lease(cache: RadixCache, job: Job, *, headroom: int) -> CacheLease | None:
    """Admit a job, or None where there is no room for it now."""
    return CacheLease.open(
        cache,
        job.keys[: job.reusable] + _REST,
        DEFAULT_NAMESPACE,
        planned_tokens=pages(job.input_tokens + job.output_tokens, job.page_size),
        headroom=headroom,
    )
