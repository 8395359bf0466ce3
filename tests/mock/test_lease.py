"""A running request's hold on the cache."""

from __future__ import annotations

from sgl_router.lab.mock_worker.lease import CacheLease
from sgl_router.lab.mock_worker.namespace import DEFAULT_NAMESPACE
from sgl_router.lab.mock_worker.radix import RadixCache


def open_lease(cache: RadixCache, tokens: list[int], planned: int, headroom: int = 0) -> CacheLease | None:
    return CacheLease.open(cache, tokens, DEFAULT_NAMESPACE, planned_tokens=planned, headroom=headroom)


def test_private_pages_become_shared_ones_without_taking_more_space() -> None:
    cache = RadixCache(page_size=4, capacity=32)
    lease = open_lease(cache, list(range(10)), 16)
    assert lease is not None
    assert lease.hold(10)
    assert (cache.reserved_tokens, cache.device_tokens) == (12, 0)
    lease.commit(range(10))
    assert (cache.reserved_tokens, cache.device_tokens, cache.locked_tokens) == (4, 8, 8)
    lease.close(range(13))
    assert (cache.reserved_tokens, cache.device_tokens, cache.locked_tokens) == (0, 12, 0)


def test_pages_computed_twice_are_kept_once() -> None:
    cache = RadixCache(page_size=4, capacity=64)
    leases = [open_lease(cache, list(range(8)), 12) for _ in range(2)]
    for lease in leases:
        assert lease is not None
        assert lease.cached_tokens == 0
        assert lease.hold(8)
    for lease in leases:
        assert lease is not None
        lease.commit(range(8))
    assert (cache.device_tokens, cache.reserved_tokens) == (8, 0)
    for lease in leases:
        assert lease is not None
        lease.close()
    assert cache.locked_tokens == 0


def test_a_request_that_cannot_fit_beside_the_others_is_not_admitted() -> None:
    cache = RadixCache(page_size=4, capacity=32)
    first = open_lease(cache, list(range(8)), 20)
    assert first is not None
    assert first.growth_tokens == 20
    assert open_lease(cache, list(range(50, 58)), 16, headroom=first.growth_tokens) is None
    assert cache.locked_tokens == 0
    assert open_lease(cache, list(range(50, 58)), 12, headroom=first.growth_tokens) is not None


def test_a_host_hit_is_reported_by_tier() -> None:
    cache = RadixCache(page_size=4, capacity=16, host_capacity=64)
    cache.insert(range(8))
    cache.evict(8)
    lease = open_lease(cache, list(range(10)), 12)
    assert lease is not None
    assert (lease.cached_tokens, lease.host_tokens) == (8, 8)


def test_closing_twice_is_closing_once() -> None:
    cache = RadixCache(page_size=4, capacity=16)
    lease = open_lease(cache, list(range(8)), 8)
    assert lease is not None
    lease.close()
    lease.close(range(8))
    assert cache.device_tokens == cache.reserved_tokens == 0
