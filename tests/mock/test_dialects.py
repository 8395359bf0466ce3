"""The same cache history, encoded, is byte for byte what each real engine published."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sgl_router.lab.mock_worker.config import Dialect, MockWorkerConfig
from sgl_router.lab.mock_worker.dialects import encode_batch, encode_events
from sgl_router.lab.mock_worker.hashing import hasher_for
from sgl_router.lab.mock_worker.namespace import DEFAULT_NAMESPACE, Namespace
from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored, CacheCleared, CacheOp, Medium
from sgl_router.lab.mock_worker.profile import EngineProfile
from sgl_router.lab.mock_worker.radix import RadixCache
from sgl_router.lab.mock_worker.scheduler import EngineModel, EngineRequest, Progress
from sgl_router.lab.mock_worker.timing import TimingModel

Golden = Callable[[str], dict[str, Any]]

TOKENS = list(range(100, 250))
FORK = [*range(100, 197), *range(900, 950)]


def assert_same_batch(ops: list[CacheOp], dialect: Dialect, batch: dict[str, Any]) -> None:
    payload = bytes.fromhex(batch["frames_hex"][2])
    timestamp = msgspec.msgpack.decode(payload)[0]
    assert encode_batch(encode_events(ops, dialect), timestamp=timestamp, rank=0) == payload


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("radix_0.5.6_page16", Dialect.LEGACY),
        ("radix_0.5.12_page16", Dialect.MEDIUM),
        ("radix_0.5.12_page1", Dialect.MEDIUM),
        ("radix_0.5.18_page16", Dialect.SALT_ARRAY),
        ("radix_0.5.20_page16", Dialect.MAP),
    ],
)
def test_a_cache_history_is_published_as_that_version_did(name: str, dialect: Dialect, golden: Golden) -> None:
    capture = golden(name)
    profile = EngineProfile(dialect, capture["version"])
    ops: list[CacheOp] = []
    cache = RadixCache(
        page_size=capture["page_size"],
        hasher=hasher_for(profile),
        removes_on_split=profile.removes_on_split,
        listener=ops.append,
    )
    actions: dict[str, Callable[[], object]] = {
        "startup reset": lambda: None,
        "insert 150": lambda: cache.insert(TOKENS),
        "fork at 97": lambda: cache.insert(FORK),
        "extra_key=tenantA, same tokens": lambda: cache.insert(TOKENS, Namespace(extra_key="tenantA")),
        "cache_salt=saltB, same tokens": lambda: cache.insert(TOKENS, Namespace(cache_salt="saltB")),
        "evict 40": lambda: cache.evict(40),
        "reset": cache.clear,
    }
    for sequence, step in enumerate(capture["steps"]):
        actions[step["name"]]()
        (batch,) = step["batches"]
        assert batch["seq"] == sequence
        assert_same_batch(ops, dialect, batch)
        ops.clear()


def test_bigram_keys_are_published_as_pairs(golden: Golden) -> None:
    capture = golden("radix_0.5.12_eagle_page4")
    ops: list[CacheOp] = []
    cache = RadixCache(page_size=4, bigram=True, listener=ops.append)
    cache.insert(range(100, 114))
    assert_same_batch(ops, Dialect.MEDIUM, capture["steps"][0]["batches"][0])


class Engine:
    """The engine model of one rank, run to the end of each request."""

    def __init__(self, page_size: int) -> None:
        self.ops: list[CacheOp] = []
        self.cache = RadixCache(page_size=page_size, capacity=4096, listener=self.ops.append)
        self.model = EngineModel(
            self.cache,
            TimingModel.of(MockWorkerConfig.instant()),
            max_running=8,
            chunked_prefill_size=8192,
        )

    def serve(self, prompt: list[int], output: list[int], namespace: Namespace = DEFAULT_NAMESPACE) -> EngineRequest:
        request = EngineRequest("r", tuple(prompt), tuple(output), namespace=namespace)
        assert self.model.submit(request, 0.0)
        progress: list[Progress] = []
        while self.model.begin_step(0.0) is not None:
            progress += self.model.end_step(0.0).progress
        assert [token for step in progress for token in step.tokens] == output
        return request


@pytest.mark.parametrize("page_size", [16, 64])
def test_a_server_session_is_published_as_the_real_server_did(page_size: int, golden: Golden) -> None:
    capture = golden(f"server_0.5.23_page{page_size}")
    steps = {step["name"].partition(":")[0]: step for step in capture["steps"]}
    chat_event = steps["F"]["batches"][0]["decoded"][1][0]
    chat = chat_event["token_ids"] + [1246, 334, 1203, 201]
    engine = Engine(page_size)
    assert engine.ops == [CacheCleared()]
    engine.ops.clear()

    def check(letter: str, request: EngineRequest | None = None, cached: int | None = None) -> None:
        batches = list(itertools.chain(steps[letter]["batches"]))
        assert bool(batches) == bool(engine.ops)
        if batches:
            assert_same_batch(engine.ops, Dialect.MAP_LORA, batches[0])
        engine.ops.clear()
        if request is not None and cached is None:
            assert request.cached_tokens == steps[letter]["result"]["meta"]["cached_tokens"]
        elif request is not None:
            assert request.cached_tokens == cached

    check("A", engine.serve(TOKENS, [521, 1590]))
    check("B", engine.serve(TOKENS, [521, 1590]))
    check("C", engine.serve(FORK, [234, 1121]))
    check("D", engine.serve(TOKENS, [521, 1590], Namespace(extra_key="saltA")))
    check("E", engine.serve(TOKENS, [521, 1590], Namespace(cache_salt="saltB")))
    check("F", engine.serve(chat, [1, 2, 3]), 0)
    check("G", engine.serve(chat, [1, 2, 3]), 128)
    check("H", engine.serve([1, 2, 3], [30, 268]))
    engine.cache.clear()
    check("I")
    check("J", engine.serve(TOKENS, [521, 1590]))
    for index, batch in enumerate(steps["K"]["batches"]):
        engine.serve([1000 + index, *range(200, 600)], [1, 2])
        assert_same_batch(engine.ops, Dialect.MAP_LORA, batch)
        engine.ops.clear()
    engine.cache.clear()
    check("L")


def test_vllm_batches_are_reproduced_from_their_contents(golden: Golden) -> None:
    batches = [batch for step in golden("vllm_cpu_0.32.0_block32")["steps"] for batch in step.get("batches", [])]
    assert len(batches) >= 4
    for batch in batches:
        ops: list[CacheOp] = []
        for event in batch["decoded"][1]:
            extra = event["extra_keys"][0]
            ops.append(
                BlocksStored(
                    hashes=tuple(event["block_hashes"]),
                    parent=event["parent_block_hash"],
                    units=tuple(event["token_ids"]),
                    page_size=event["block_size"],
                    namespace=Namespace(cache_salt=extra[0] if extra else None),
                )
            )
        assert_same_batch(ops, Dialect.VLLM, batch)


def stored(first: int, count: int, parent: int | None = None, **rest: Any) -> BlocksStored:
    """A chain of one-token blocks whose hashes are their tokens."""
    run = tuple(range(first, first + count))
    return BlocksStored(run, parent, run, 1, **rest)


def shape(ops: list[CacheOp], dialect: Dialect) -> list[tuple[str, int]]:
    """(kind, number of blocks) of each event."""
    found = []
    for event in encode_events(ops, dialect):
        kind, hashes = (event[0], event[1:2]) if isinstance(event, list) else (event["type"], None)
        hashes = hashes[0] if hashes else event["block_hashes"] if isinstance(event, dict) else ()
        found.append((kind, len(hashes)))
    return found


@pytest.mark.parametrize(
    ("dialect", "stores", "removals"),
    [
        (Dialect.LEGACY, [1, 1, 1, 1], [1, 1, 1]),
        (Dialect.MEDIUM, [1, 1, 1, 1], [1, 1, 1]),
        (Dialect.ARRAY17, [1, 1, 1, 1], [2, 1]),
        (Dialect.SALT_ARRAY, [4], [3]),
        (Dialect.MAP, [4], [3]),
        (Dialect.MAP_LORA, [4], [3]),
    ],
)
def test_events_are_as_coarse_as_the_version_made_them(
    dialect: Dialect, stores: list[int], removals: list[int]
) -> None:
    chain: list[CacheOp] = [stored(1, 2), stored(3, 2, parent=2)]
    gone: list[CacheOp] = [BlocksRemoved((1, 2)), BlocksRemoved((9,))]
    assert shape(chain, dialect) == [("BlockStored", count) for count in stores]
    assert shape(gone, dialect) == [("BlockRemoved", count) for count in removals]


def test_stores_of_different_kinds_are_not_merged() -> None:
    ops: list[CacheOp] = [
        stored(1, 1),
        stored(2, 1, parent=1, medium=Medium.CPU_PINNED),
        stored(3, 1, parent=2, medium=Medium.CPU_PINNED, namespace=Namespace(cache_salt="s")),
        stored(4, 1, parent=3, medium=Medium.CPU_PINNED, namespace=Namespace(cache_salt="s"), session_id="a"),
        stored(9, 1),
    ]
    assert shape(ops, Dialect.MAP_LORA) == [("BlockStored", 1)] * 5


def test_only_a_chain_is_merged() -> None:
    assert shape([stored(1, 2), stored(7, 1)], Dialect.MAP_LORA) == [("BlockStored", 2), ("BlockStored", 1)]
    assert shape([stored(1, 2), stored(7, 1, parent=1)], Dialect.MAP) == [("BlockStored", 2), ("BlockStored", 1)]
    mixed: list[CacheOp] = [BlocksRemoved((1,)), BlocksRemoved((1,), Medium.CPU_PINNED)]
    assert shape(mixed, Dialect.MAP) == [("BlockRemoved", 1)] * 2


def test_optional_fields_appear_only_where_the_dialect_has_them() -> None:
    op = stored(1, 1, namespace=Namespace(cache_salt="s", lora_name="l", lora_id="x"), session_id="n")
    assert "cache_salt" not in str(encode_events([op], Dialect.ARRAY17))
    assert encode_events([op], Dialect.SALT_ARRAY)[0][7] == {"cache_salt": "s"}
    assert encode_events([op], Dialect.MAP)[0].keys() >= {"cache_salt", "session_id"}
    assert "lora_name" not in encode_events([op], Dialect.MAP)[0]
    assert encode_events([op], Dialect.MAP_LORA)[0]["lora_name"] == "l"
    assert encode_events([op], Dialect.VLLM)[0]["extra_keys"] == [["l", "s"]]


def test_the_oldest_dialect_has_no_host_tier() -> None:
    ops: list[CacheOp] = [
        stored(1, 1),
        stored(1, 1, medium=Medium.CPU_PINNED),
        BlocksRemoved((1,), Medium.CPU_PINNED),
    ]
    assert shape(ops, Dialect.LEGACY) == [("BlockStored", 1)]
    assert len(encode_events(ops, Dialect.MEDIUM)) == 3
