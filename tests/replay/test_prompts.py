"""Prompts are what hash_ids say, token for token."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sgl_router.lab.replay.prompts import PromptMaker
from sgl_router.lab.replay.words import Vocabulary
from sgl_router.lab.simulate.trace import TraceRow, scale_rows
from sgl_router.lab.simulate.workload import WORKLOADS, make_workload
from sgl_router.tokenization import ModelTokenizer

BLOCK = 32


def ids_of(tokenizer: ModelTokenizer, maker: PromptMaker, row: TraceRow, number: int = 0) -> list[int]:
    rendered = tokenizer.render({"messages": [{"role": "user", "content": maker.text(row, number)}]})
    return tokenizer.encode_rendered(rendered).tolist()


def row(tokens: int, *ids: int) -> TraceRow:
    return TraceRow(0.0, tokens, 1, ids)


@pytest.fixture
def maker(vocabulary: Vocabulary) -> PromptMaker:
    return PromptMaker(vocabulary, block_tokens=BLOCK, seed=0)


@pytest.mark.parametrize("tokens", [13, 31, 40, 63, 64 + 20, 1000])
def test_a_prompt_has_the_trace_s_tokens(tokenizer: ModelTokenizer, maker: PromptMaker, tokens: int) -> None:
    wanted = row(tokens, *range(-(-tokens // BLOCK)))
    assert maker.tokens(wanted) == tokens
    assert len(ids_of(tokenizer, maker, wanted)) == tokens


def test_what_is_whole_in_the_trace_is_whole_in_the_prompt(
    tokenizer: ModelTokenizer, maker: PromptMaker, vocabulary: Vocabulary
) -> None:
    """The template's end would stand on the second block's last tokens, which the longer prompt needs as they are."""
    short, long = row(2 * BLOCK + 1, 1, 2, 3), row(3 * BLOCK + 20, 1, 2, 8, 9)
    found = ids_of(tokenizer, maker, short)
    assert len(found) == maker.tokens(short) == 2 * BLOCK + vocabulary.tail
    assert found[: 2 * BLOCK] == ids_of(tokenizer, maker, long)[: 2 * BLOCK]


def test_a_prompt_too_short_for_the_template_is_the_template(
    tokenizer: ModelTokenizer, maker: PromptMaker, vocabulary: Vocabulary
) -> None:
    assert maker.tokens(row(1, 5)) == vocabulary.head + vocabulary.tail == len(ids_of(tokenizer, maker, row(1, 5)))


def test_an_id_is_the_same_text_at_the_same_position_only(tokenizer: ModelTokenizer, maker: PromptMaker) -> None:
    first = ids_of(tokenizer, maker, row(4 * BLOCK, 1, 2, 3, 4))
    other = ids_of(tokenizer, maker, row(4 * BLOCK, 9, 2, 9, 3))
    assert first[BLOCK : 2 * BLOCK] == other[BLOCK : 2 * BLOCK]
    assert first[:BLOCK] != other[:BLOCK]
    assert first[2 * BLOCK : 3 * BLOCK - 8] != other[3 * BLOCK : 4 * BLOCK - 8]


def test_what_has_no_id_is_the_request_s_own(tokenizer: ModelTokenizer, maker: PromptMaker) -> None:
    unnamed = row(BLOCK + 20, 1)
    assert ids_of(tokenizer, maker, unnamed, 0) != ids_of(tokenizer, maker, unnamed, 1)
    assert ids_of(tokenizer, maker, unnamed, 0)[:BLOCK] == ids_of(tokenizer, maker, unnamed, 1)[:BLOCK]


def test_the_seed_changes_every_text(vocabulary: Vocabulary) -> None:
    texts = {PromptMaker(vocabulary, block_tokens=BLOCK, seed=seed).text(row(50, 1, 2), 0) for seed in (0, 0, 1)}
    assert len(texts) == 2


@pytest.mark.parametrize("name", WORKLOADS)
def test_scaled_workloads_share_exactly_the_blocks_they_share(
    tokenizer: ModelTokenizer, maker: PromptMaker, name: str
) -> None:
    rows = scale_rows(make_workload(name, requests=40, per_sec=4.0, seed=0), Fraction(1, 16))
    prompts = [ids_of(tokenizer, maker, row, number) for number, row in enumerate(rows)]
    for row_, prompt in zip(rows, prompts, strict=True):
        assert len(prompt) == maker.tokens(row_)
        assert row_.input_length <= len(prompt) < row_.input_length + 13
    pairs = [(a, b) for a in range(40) for b in range(a)]
    for a, b in pairs:
        whole = min(rows[a].input_length, rows[b].input_length) // BLOCK
        same = [x == y for x, y in zip(rows[a].hash_ids, rows[b].hash_ids, strict=False)][:whole]
        shared = same.index(False) if False in same else len(same)
        assert prompts[a][: shared * BLOCK] == prompts[b][: shared * BLOCK]
        if shared < len(same):
            assert prompts[a][: (shared + 1) * BLOCK] != prompts[b][: (shared + 1) * BLOCK]
