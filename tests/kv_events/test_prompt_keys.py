from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.kv_events import BlockHasher, Namespace
from sgl_router.kv_events.index import hashing as hashing_module
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.prompt import Prompt, SharedPrefix

HERE = Namespace()


def prompt(tokens: list[int], shared: SharedPrefix | None = None) -> Prompt:
    return Prompt(np.array(tokens, dtype=np.uint32), shared)


def all_keys(one: Prompt, hasher: BlockHasher, namespace: Namespace = HERE) -> list[int]:
    keys = PromptKeys(one, hasher, namespace)
    return keys.slice(0, keys.blocks).tolist()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every block that was hashed; roots are not blocks."""
    counted: list[int] = []
    real = hashing_module.xxh3_64_intdigest

    def digest(data: bytes, seed: int) -> int:
        counted.append(len(data))
        return real(data, seed)

    monkeypatch.setattr(hashing_module, "xxh3_64_intdigest", digest)
    return counted


def test_a_block_is_hashed_once_per_request(hashed: list[int]) -> None:
    hasher, one = BlockHasher(4), prompt(list(range(101)))
    hasher.root(HERE)
    hashed.clear()
    assert len(PromptKeys(one, hasher, HERE).slice(0, 10)) == 10
    assert len(hashed) == 10
    assert len(all_keys(one, hasher)) == 25
    assert len(hashed) == 25


def test_the_next_prompt_hashes_only_what_is_new(hashed: list[int]) -> None:
    hasher, shared = BlockHasher(4), SharedPrefix(50)
    first = prompt(list(range(100)), shared)
    all_keys(first, hasher)
    PromptKeys(first, hasher, HERE).share()
    assert len(shared.keys[hasher.root(HERE)]) == 12  # the thirteenth block reaches beyond the shared tokens
    hashed.clear()
    second = prompt([*range(50), *range(500, 551)], shared)
    keys = all_keys(second, hasher)
    assert len(hashed) == 25 - 12
    assert keys == all_keys(prompt(second.ids.tolist()), hasher)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=50),
    st.lists(st.integers(0, 9), max_size=20),
    st.lists(st.integers(0, 9), max_size=20),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 30),
)
def test_keys_from_a_shared_beginning_are_the_keys(
    begin: list[int], one: list[int], other: list[int], page: int, bigram: bool, asked: int
) -> None:
    hasher, shared = BlockHasher(page, bigram=bigram), SharedPrefix(len(begin))
    first = PromptKeys(prompt(begin + one, shared), hasher, HERE)
    first.slice(0, asked)
    first.share()
    assert all_keys(prompt(begin + other, shared), hasher) == all_keys(prompt(begin + other), hasher)


def test_a_shorter_computation_does_not_shrink_what_is_shared() -> None:
    hasher, shared = BlockHasher(1), SharedPrefix(40)
    for asked in (20, 5):
        keys = PromptKeys(prompt(list(range(50)), shared), hasher, HERE)
        keys.slice(0, asked)
        keys.share()
    assert len(shared.keys[hasher.root(HERE)]) == 20


def test_salts_do_not_meet_and_only_a_few_are_kept() -> None:
    hasher, shared = BlockHasher(1), SharedPrefix(40)
    seen = set()
    for salt in range(20):
        one, namespace = prompt(list(range(50)), shared), Namespace(str(salt))
        seen.add(tuple(all_keys(one, hasher, namespace)))
        PromptKeys(one, hasher, namespace).share()
    assert len(seen) == 20
    assert 0 < len(shared.keys) <= 4
    assert hasher.root(Namespace("19")) in shared.keys
