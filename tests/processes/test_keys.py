from __future__ import annotations

import numpy as np
import pytest

from sgl_router.kv_events import DEFAULT_NAMESPACE, BlockHasher, KvIndex, Namespace
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.prompt import Prompt, SharedPrefix
from sgl_router.routing.remote.keys import PromptHasher, hashing_of, keyed_prompt
from sgl_router.routing.remote.messages import MAX_MESSAGE_BYTES, Hashing

SALTED = Namespace("salt", "adapter")


async def test_the_index_finds_the_keys_it_would_have_computed() -> None:
    ids = np.random.default_rng(1).integers(0, 1 << 32, 100_001, dtype=np.uint32)
    data = PromptHasher()
    data.learn(Hashing(77, {"m": [(16, False), (64, True)], "n": []}))
    for namespace in (DEFAULT_NAMESPACE, SALTED):
        keys = await data.keys("m", Prompt(ids), namespace)
        arrived = keyed_prompt(len(ids), keys)
        assert len(arrived) == len(ids)
        for kind in ((16, False), (64, True)):
            hasher = BlockHasher(kind[0], bigram=kind[1], secret=77)
            there = PromptKeys(arrived, hasher, namespace)
            assert there.known == there.blocks == hasher.prompt_blocks(len(ids))
            here = PromptKeys(Prompt(ids), hasher, namespace)
            assert there.slice(0, there.blocks) == here.slice(0, here.blocks)
    assert await data.keys("n", Prompt(ids), DEFAULT_NAMESPACE) == {}
    assert await data.keys("unknown", Prompt(ids), DEFAULT_NAMESPACE) == {}


async def test_a_kind_without_keys_matches_nothing() -> None:
    hasher = BlockHasher(16, secret=77)
    ids = np.arange(100, dtype=np.uint32)
    real = PromptKeys(Prompt(ids), hasher, DEFAULT_NAMESPACE)
    cold = PromptKeys(keyed_prompt(100, {}), hasher, DEFAULT_NAMESPACE)
    assert cold.blocks == real.blocks == 6
    assert not set(cold.slice(0, 6)) & set(real.slice(0, 6))


async def test_what_a_conversation_shares_is_hashed_once() -> None:
    data = PromptHasher()
    data.learn(Hashing(77, {"m": [(16, False)]}))
    shared = SharedPrefix(64)
    ids = np.arange(200, dtype=np.uint32)
    await data.keys("m", Prompt(ids, shared), DEFAULT_NAMESPACE)
    root = BlockHasher(16, secret=77).root()
    assert len(shared.keys[root]) == 4
    shared.keys[root][:] = type(shared.keys[root])("Q", [1, 2, 3, 4])
    [encoded] = (await data.keys("m", Prompt(ids, shared), DEFAULT_NAMESPACE)).values()
    assert np.frombuffer(encoded, dtype=np.uint64)[:4].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("pages", [(1,), (1, 1), (1, 16, 64), (16,), ()])
def test_whatever_is_told_of_a_prompt_fits_into_a_message(pages: tuple[int, ...]) -> None:
    data = PromptHasher()
    data.learn(Hashing(77, {"m": [(page, bool(position)) for position, page in enumerate(pages)]}))
    endless = Prompt(np.broadcast_to(np.zeros(1, dtype=np.uint32), (1 << 30,)))
    told = data.told("m", endless)
    assert sum(told // page * 8 for page in pages) <= MAX_MESSAGE_BYTES // 2
    assert told >= 1_000_000
    assert data.told("m", Prompt(np.zeros(1_000, dtype=np.uint32))) == 1_000
    assert data.told("unknown", endless) == 4 << 20


async def test_an_index_that_follows_nobody_needs_no_keys() -> None:
    index = KvIndex()
    assert hashing_of(index) == Hashing(index.secret, {})
    index.close()
