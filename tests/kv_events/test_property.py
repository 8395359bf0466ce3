"""Random histories of a real radix cache, told in each dialect: the index must end up holding what the cache holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.kv_events import Namespace, StreamState
from sgl_router.lab.mock_worker import Dialect, MockWorkerConfig, RadixCache
from sgl_router.lab.mock_worker import Namespace as CacheNamespace
from sgl_router.lab.mock_worker.dialects import encode_batch, encode_events
from sgl_router.lab.mock_worker.hashing import hasher_for
from sgl_router.lab.mock_worker.ops import BlocksStored, CacheOp
from sgl_router.lab.mock_worker.profile import EngineProfile

SALTED = {Dialect.SALT_ARRAY, Dialect.MAP, Dialect.MAP_LORA, Dialect.VLLM, Dialect.VLLM_HYBRID}
LORA = {Dialect.MAP_LORA, Dialect.VLLM, Dialect.VLLM_HYBRID}
PICTURES = {Dialect.VLLM, Dialect.VLLM_HYBRID}

_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=24)  # few ids: prefixes are shared and nodes split
_operation = st.one_of(
    st.tuples(st.just("insert"), _tokens, st.sampled_from([None, "a", "b", "lora", "both"])),
    st.tuples(st.sampled_from(["picture", "stray"]), _tokens, st.none()),
    st.tuples(st.just("match"), _tokens, st.none()),
    st.tuples(st.just("evict"), st.integers(1, 30), st.none()),
    st.tuples(st.just("clear"), st.none(), st.none()),
    st.tuples(st.just("flush"), st.none(), st.none()),
)
_history = st.lists(_operation, max_size=25)


def namespace_of(name: str | None, dialect: Dialect) -> CacheNamespace:
    """One of a few namespaces, as far as the dialect can tell it."""
    salt = {None: None, "lora": None, "both": "a"}.get(name, name)
    adapter = "adapter" if name in ("lora", "both") else None
    return CacheNamespace(
        cache_salt=salt if dialect in SALTED else None,
        lora_name=adapter if dialect in LORA else None,
        lora_id=adapter if dialect in LORA else None,
    )


class Engine:
    """A radix cache whose events reach a follower, one frame per flush."""

    def __init__(self, follower: Any, dialect: Dialect, page: int, *, bigram: bool, host: int) -> None:
        profile = EngineProfile.of(MockWorkerConfig(dialect=dialect, page_size=page))
        self.dialect = dialect
        self.follower = follower
        self.ops: list[CacheOp] = []
        self.extra: list[Any] = []
        self.seq = 0
        self.cache = RadixCache(
            page_size=page,
            capacity=40 // page * page,
            host_capacity=host,
            bigram=bigram,
            removes_on_split=profile.removes_on_split,
            hasher=hasher_for(profile),
            listener=self.ops.append,
        )

    def run(self, history: list[tuple[str, Any, str | None]]) -> None:
        for name, argument, salt in history:
            if name == "insert":
                self.cache.insert(argument, namespace_of(salt, self.dialect))
            elif name in ("picture", "stray"):
                self.foreign(name, argument)
            elif name == "match":
                self.cache.load_back(self.cache.match(argument))
            elif name == "evict":
                self.cache.evict(argument)
            elif name == "clear":
                self.cache.clear()
            else:
                self.flush()
        self.flush()

    def foreign(self, name: str, tokens: list[int]) -> None:
        """A store that claims nothing: blocks behind a picture, or of another size than was announced."""
        page = self.cache.page_size
        units = tuple(zip(tokens, tokens, strict=True)) if self.cache.bigram else tuple(tokens)
        if name == "stray":
            page *= 2
        count = len(units) // page
        if not count or (name == "picture" and self.dialect not in PICTURES):
            return
        hashes = tuple(range(10**6 * self.seq + 1, 10**6 * self.seq + 1 + count))
        op = BlocksStored(hashes, None, units[: count * page], page)
        for event in encode_events([op], self.dialect):
            if name == "picture":
                event["extra_keys"] = [[["picture", 0]], *[None] * (count - 1)]
            self.extra.append(event)

    def payload(self) -> bytes:
        events = encode_events(self.ops, self.dialect) + self.extra
        self.extra = []
        self.ops.clear()
        return encode_batch(events, timestamp=float(self.seq), rank=0)

    def flush(self) -> None:
        if self.ops or self.extra:
            self.follower.frame(self.seq, self.payload())
            self.seq += 1

    def held(self) -> set[tuple[int, str]]:
        """What the cache holds, named by the router's own keys."""
        hasher = self.follower.stream.hasher
        keys: dict[tuple[object, object], int] = {}
        found: set[tuple[int, str]] = set()
        for block in self.cache.blocks():
            space = Namespace(block.namespace.cache_salt, block.namespace.lora_name)
            parent = hasher.root(space) if block.parent is None else keys[space, block.parent]
            (key,) = hasher.extend(parent, [list(u) if isinstance(u, tuple) else u for u in block.units], 1)
            keys[space, block.hash] = key
            found |= {(key, tier.value) for tier in block.tiers}
        return found


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(("page", "bigram"), [(1, False), (3, False), (2, True)])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(history=_history, host=st.sampled_from([0, 12, 60]))
def test_the_index_equals_the_engine(
    make_follower: Any, dialect: Dialect, page: int, bigram: bool, history: list[Any], host: int
) -> None:
    follower = make_follower(page, bigram=bigram)
    legacy = dialect is Dialect.LEGACY
    engine = Engine(follower, dialect, page, bigram=bigram, host=0 if legacy else host)
    engine.run(history)
    truth = engine.held()
    assert follower.stream.state in (StreamState.LIVE, StreamState.WAITING)
    if legacy:  # these versions report a split node as removed: the index may know less, never more
        assert follower.held <= truth
    else:
        assert follower.held == truth
        assert follower.stream.blocks_held == len({key for key, _ in truth})
        assert follower.stream.counters.orphans == 0
    assert sum(follower.stream.held.values()) == len(follower.held)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(history=_history, faults=st.lists(st.sampled_from(["keep", "keep", "keep", "drop", "repeat"]), max_size=25))
def test_lost_and_repeated_frames_never_add_a_claim(make_follower: Any, history: list[Any], faults: list[str]) -> None:
    follower = make_follower(2)
    engine = Engine(follower, Dialect.MAP_LORA, 2, bigram=False, host=12)
    faults_left = list(reversed(faults))
    lost = False

    def flush() -> None:
        nonlocal lost
        if not engine.ops:
            return
        payload, fault = engine.payload(), faults_left.pop() if faults_left else "keep"
        if fault != "drop":
            follower.frame(engine.seq, payload)
        if fault == "repeat":
            follower.frame(engine.seq, payload)
        lost = lost or fault == "drop"
        engine.seq += 1

    engine.flush = flush  # type: ignore[method-assign]
    engine.run(history)
    engine.cache.insert([0, 0, 0, 0])
    faults_left.clear()
    engine.cache.insert([1, 1, 1, 1])
    flush()  # one frame that does arrive shows whether anything is missing
    truth = engine.held()
    assert follower.held <= truth
    if not lost:
        assert follower.held == truth
