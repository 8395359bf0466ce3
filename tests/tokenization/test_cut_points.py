from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_router.tokenization.cut_points import choose_cut, clean_tokens, conversation_cut, first_bad_cut
from sgl_router.tokenization.template import ChatTemplate

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, **SPECIAL, **flags}


def spec(*tokens: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"model": {"type": "BPE", "dropout": None}, "added_tokens": list(tokens), **parts}


def test_plain_specials_are_clean() -> None:
    assert clean_tokens(spec(token("<s>"), token("</s>"))) == ["<s>", "</s>"]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_tokens_that_take_space_with_them_are_not(flag: str) -> None:
    assert clean_tokens(spec(token("<s>", **{flag: True}), token("</s>"))) == ["</s>"]


def test_a_token_that_asks_for_its_neighbours_spoils_all() -> None:
    assert clean_tokens(spec(token("<s>"), token("word", single_word=True))) == []


@pytest.mark.parametrize("other", ["<s>s>", "<s", "s", "x<", ">x", "a<s>b", "s>"])
def test_tokens_that_others_may_overlap_are_not(other: str) -> None:
    assert "<s>" not in clean_tokens(spec(token("<s>"), token(other)))


@pytest.mark.parametrize("text", ["aba", "<<", " <s>", "<s>\n"])
def test_tokens_that_overlap_themselves_or_end_in_space_are_not(text: str) -> None:
    assert clean_tokens(spec(token(text))) == []


def test_a_normalizer_spoils_the_tokens_that_are_looked_for_after_it() -> None:
    lower = {"type": "Lowercase"}
    assert clean_tokens(spec(token("<s>"), token("[X]", normalized=True), normalizer=lower)) == ["<s>"]
    assert clean_tokens(spec(token("<s>"), token("[X]", normalized=True))) == ["<s>", "[X]"]


@pytest.mark.parametrize(
    "parts",
    [
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"model": {"type": "Novel"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "Novel"}]}},
        {"post_processor": {"type": "Novel"}},
    ],
)
def test_parts_not_known_to_work_piece_by_piece_spoil_all(parts: dict[str, Any]) -> None:
    assert clean_tokens({**spec(token("<s>")), **parts}) == []


def test_the_cut_is_in_most_gaps_the_last_above_all_and_early() -> None:
    assert choose_cut(["<a>", "<b>"], ["<b><a>", "<b><a>"]) == "<b>"
    assert choose_cut(["<a>", "<b>"], ["<a><a>", "<b>"]) == "<b>"
    assert choose_cut(["<a>", "<b>"], ["<a><b>", "<b><a>"]) == "<b>"
    assert choose_cut(["<a>", "<b>"], ["<a>", "<a><b>"]) == "<a>"
    assert choose_cut(["<c>"], ["<a>", "<b>"]) is None


def test_a_cut_that_changes_ids_is_found() -> None:
    def encode(text: str) -> list[int]:
        return [len(word) for word in text.split(" ")]

    assert first_bad_cut(encode, "<s>", ["a b", "c d"]) is not None
    assert first_bad_cut(lambda text: list(text.encode()), "<s>", ["a b", "c d"]) is None


def test_the_fixture_tokenizer_is_cut_between_messages(hf: Any) -> None:
    def encode(text: str) -> list[int]:
        return list(hf.encode(text))

    assert conversation_cut(hf, encode, ChatTemplate(CHATML, {})) == "<|im_end|>"
    assert conversation_cut(hf, encode, ChatTemplate("{{ messages[0].content }}", {})) is None
    assert conversation_cut(hf, encode, ChatTemplate("{{ raise_exception('x') }}", {})) is None
    # What encodes the texts does not agree that it can be cut.
    assert conversation_cut(hf, lambda text: [len(text)] * 2, ChatTemplate(CHATML, {})) is None


def test_a_tokenizer_that_splits_specials_is_not_cut(tokenizer_dir: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_dir / "tokenizer.json"), split_special_tokens=True)
    assert conversation_cut(tokenizer, tokenizer.encode, ChatTemplate(CHATML, {})) is None


def test_refused_flags_do_change_ids(tokenizer_dir: Path) -> None:
    """The conditions are not idle: cutting at a stripping token is wrong."""
    from tokenizers import Tokenizer

    raw = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    for added in raw["added_tokens"]:
        added["lstrip"] = True
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    assert clean_tokens(raw) == []
    assert first_bad_cut(lambda text: tokenizer.encode(text).ids, "<|im_end|>", ["a ", "b "]) is not None
