"""Whatever happens to the cache, its bookkeeping holds and its operations tell the whole truth."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.lab.mock_worker.lease import CacheLease
from sgl_router.lab.mock_worker.namespace import Namespace
from sgl_router.lab.mock_worker.node import RadixNode
from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored, CacheCleared, CacheOp, Medium
from sgl_router.lab.mock_worker.radix import RadixCache

NAMESPACES = (Namespace(), Namespace(cache_salt="salt"))
PAGE = 3


class NaiveModel:
    """A subscriber's view: which hashes are on which tier, each stored under a parent that is there too."""

    def __init__(self) -> None:
        self.held: dict[Medium, dict[int, int | None]] = {medium: {} for medium in Medium}

    def apply(self, op: CacheOp) -> None:
        if isinstance(op, CacheCleared):
            for tier in self.held.values():
                tier.clear()
        elif isinstance(op, BlocksRemoved):
            tier = self.held[op.medium]
            for block in op.hashes:
                del tier[block]
            assert not set(op.hashes) & set(tier.values()), "a block was removed from under its child"
        else:
            self._store(op)

    def _store(self, op: BlocksStored) -> None:
        tier, parent = self.held[op.medium], op.parent
        assert len(op.units) == len(op.hashes) * op.page_size
        for block in op.hashes:
            assert block not in tier, "a block was stored twice"
            assert parent is None or parent in tier, "a block was stored under a missing parent"
            tier[block] = parent
            parent = block


def check(cache: RadixCache, model: NaiveModel) -> None:
    """The cache's own contents, counters and structure agree with each other and with the model."""
    blocks = list(cache.blocks())
    for medium in Medium:
        held = {block.hash: block.parent for block in blocks if medium in block.tiers}
        assert held == model.held[medium]
    sizes = Counter(medium for block in blocks for medium in block.tiers)
    assert cache.device_tokens == sizes[Medium.GPU] * PAGE
    assert cache.host_tokens == sizes[Medium.CPU_PINNED] * PAGE
    assert 0 <= cache.locked_tokens <= cache.device_tokens
    assert cache.capacity is None or cache.device_tokens + cache.reserved_tokens <= cache.capacity
    assert cache.host_tokens <= cache.host_capacity
    for root in cache._roots.values():
        check_node(root)


def check_node(node: RadixNode) -> None:
    children = node.children.values()
    assert node.device_children == sum(child.device for child in children)
    for first_page, child in node.children.items():
        assert child.parent is node
        assert len(child.units) == len(child.digests) * PAGE > 0
        assert child.units[:PAGE] == first_page
        assert child.device or child.host
        assert node.device or not child.device
        assert node.host or not child.host or node.parent is None
        assert child.locks <= node.locks or node.parent is None
        check_node(child)


# Few distinct pages, so that prompts share prefixes, fork inside nodes and at their edges.
pages = st.sampled_from([(0, 0, 0), (0, 1, 0), (1, 1, 1)])
sequences = st.builds(
    lambda body, rest: [token for page in body for token in page] + rest,
    st.lists(pages, min_size=1, max_size=6),
    st.lists(st.integers(0, 1), max_size=3),
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), sequences, st.sampled_from(NAMESPACES)),
        st.tuples(st.just("match"), sequences, st.sampled_from(NAMESPACES)),
        st.tuples(st.just("open"), sequences, st.sampled_from(NAMESPACES)),
        st.tuples(st.just("commit"), st.integers(0, 5), st.integers(0, 24)),
        st.tuples(st.just("close"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("evict"), st.integers(1, 30), st.none()),
        st.tuples(st.just("clear"), st.none(), st.none()),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    steps=actions,
    capacity=st.sampled_from([None, 12, 30, 60]),
    host_capacity=st.sampled_from([0, 9, 30, 300]),
    bigram=st.booleans(),
)
def test_operations_replayed_equal_the_contents(
    steps: list[tuple[str, Any, Any]], capacity: int | None, host_capacity: int, bigram: bool
) -> None:
    model = NaiveModel()
    cache = RadixCache(
        page_size=PAGE, capacity=capacity, host_capacity=host_capacity, bigram=bigram, listener=model.apply
    )
    leases: list[tuple[CacheLease, list[int]]] = []
    for name, first, second in steps:
        if name == "insert":
            cached = cache.insert(first, second)
            assert cached % PAGE == 0
            assert cache.peek([*first[: cached + bigram], 9], second) == cached
        elif name == "match":
            found = cache.match(first, second)
            assert found.device_tokens == cache.peek(first, second)
            assert found.tokens <= cache.hit_limit(len(first))
            assert found.tokens % PAGE == 0
        elif name == "open":
            lease = CacheLease.open(cache, first, second, planned_tokens=len(first))
            if lease is not None:
                assert lease.hold(0)
                leases.append((lease, first))
        elif name == "commit" and first < len(leases):
            lease, tokens = leases[first]
            if lease.hold(min(second, len(tokens))):
                lease.commit(tokens[: min(second, len(tokens))])
        elif name == "close" and first < len(leases):
            lease, tokens = leases.pop(first)
            lease.close(tokens if second and lease.hold(len(tokens)) else None)
        elif name == "evict":
            cache.evict(first)
        elif name == "clear" and not leases:
            cache.clear()
        check(cache, model)
    for lease, _ in leases:
        lease.close()
    check(cache, model)
    assert cache.reserved_tokens == cache.locked_tokens == 0
    cache.evict(10**6)
    assert cache.device_tokens == 0


@settings(max_examples=100, deadline=None)
@given(prompts=st.lists(sequences, max_size=12))
def test_an_unbounded_cache_finds_the_longest_common_page_run(prompts: list[list[int]]) -> None:
    cache = RadixCache(page_size=PAGE)
    seen: list[list[int]] = []
    for prompt in prompts:
        best = 0
        for other in seen:
            pages = 0
            while (pages + 1) * PAGE <= min(len(other), len(prompt) - 1) and (
                other[pages * PAGE : (pages + 1) * PAGE] == prompt[pages * PAGE : (pages + 1) * PAGE]
            ):
                pages += 1
            best = max(best, pages * PAGE)
        assert cache.match(prompt).device_tokens == best
        cache.insert(prompt)
        seen.append(prompt)
