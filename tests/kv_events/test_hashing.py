from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.kv_events import BlockHasher, Namespace
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.prompt import Prompt


def prompt_keys(hasher: BlockHasher, tokens: list[int], *, piece: int = 1 << 30, **namespace: str) -> list[int]:
    ids = np.array(tokens, dtype=np.uint32)
    keys = PromptKeys(Prompt(ids), hasher, Namespace(**namespace))
    return [key for start in range(0, keys.blocks, piece) for key in keys.slice(start, start + piece)]


@pytest.mark.parametrize(
    ("page", "length", "blocks"), [(16, 64, 3), (16, 65, 4), (16, 16, 0), (1, 10, 9), (1, 1, 0), (4, 0, 0)]
)
def test_the_last_token_is_never_part_of_a_reusable_block(page: int, length: int, blocks: int) -> None:
    assert BlockHasher(page).prompt_blocks(length) == blocks
    assert len(prompt_keys(BlockHasher(page), list(range(length)))) == blocks


@pytest.mark.parametrize(("page", "length", "blocks"), [(4, 10, 2), (4, 9, 1), (1, 10, 8), (4, 1, 0)])
def test_bigram_prompts_have_one_unit_less(page: int, length: int, blocks: int) -> None:
    hasher = BlockHasher(page, bigram=True)
    assert hasher.prompt_blocks(length) == blocks
    assert len(prompt_keys(hasher, list(range(length)))) == blocks


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=60), st.integers(1, 7), st.booleans())
def test_a_prompt_and_the_event_chain_of_the_same_tokens_have_the_same_keys(
    tokens: list[int], page: int, bigram: bool
) -> None:
    hasher = BlockHasher(page, bigram=bigram)
    keys = prompt_keys(hasher, tokens)
    units: list[object] = [[a, b] for a, b in itertools.pairwise(tokens)] if bigram else list(tokens)
    assert hasher.extend(hasher.root(), units[: len(keys) * page], len(keys)) == keys


@given(st.lists(st.integers(0, 50), min_size=12, max_size=40), st.integers(1, 5))
def test_hashing_in_pieces_or_in_two_events_gives_one_chain(tokens: list[int], piece: int) -> None:
    hasher = BlockHasher(2)
    keys = prompt_keys(hasher, tokens)
    assert prompt_keys(hasher, tokens, piece=piece) == keys
    first = hasher.extend(hasher.root(), tokens[:4], 2)
    assert first + hasher.extend(first[-1], tokens[4:8], 2) == keys[:4]


def test_keys_depend_on_everything_before_them() -> None:
    hasher = BlockHasher(2)
    assert prompt_keys(hasher, [1, 2, 3, 4, 0])[1] != prompt_keys(hasher, [9, 2, 3, 4, 0])[1]
    assert prompt_keys(hasher, [1, 2, 3, 4, 0])[0] == prompt_keys(hasher, [1, 2, 9, 9, 0])[0]


def test_kinds_namespaces_and_processes_do_not_meet() -> None:
    tokens = [0] * 9
    kinds = [
        prompt_keys(BlockHasher(2, secret=1), tokens)[0],
        prompt_keys(BlockHasher(2, secret=2), tokens)[0],
        prompt_keys(BlockHasher(4, secret=1), tokens)[0],
        prompt_keys(BlockHasher(2, bigram=True, secret=1), tokens)[0],
        prompt_keys(BlockHasher(2, secret=1), tokens, cache_salt="a")[0],
        prompt_keys(BlockHasher(2, secret=1), tokens, lora_name="a")[0],
        prompt_keys(BlockHasher(2, secret=1), tokens, cache_salt="a", lora_name="a")[0],
        prompt_keys(BlockHasher(2, secret=1), tokens, cache_salt="1:a|1:a")[0],
        prompt_keys(BlockHasher(2, secret=1), tokens, cache_salt="")[0],
    ]
    assert len(set(kinds)) == len(kinds)


def test_token_ids_above_32_bits_have_keys_of_their_own() -> None:
    hasher = BlockHasher(2)
    wide = hasher.extend(hasher.root(), [1, 2, 2**40, 3, 4, 5], 3)
    assert wide[0] == hasher.extend(hasher.root(), [1, 2], 1)[0]
    assert wide[1] != hasher.extend(wide[0], [0, 3], 1)[0]
    assert wide[2] == hasher.extend(wide[1], [4, 5], 1)[0]


@pytest.mark.parametrize("tokens", [[1], [1, -1], [1, "a"], [1, 1.5], [1, 2**70]])
def test_what_is_not_a_token_id_is_refused(tokens: list[object]) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        BlockHasher(2).extend(0, tokens, 1)
