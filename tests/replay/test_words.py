"""Words of one token each, and what the template adds."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sgl_router.lab.replay.words import Vocabulary, learn_vocabulary
from sgl_router.tokenization import ModelTokenizer, Unrenderable, UnrenderableReason

FIXTURE = Path(__file__).parent.parent / "fixtures" / "tokenizer"


def chat_ids(tokenizer: ModelTokenizer, content: str) -> list[int]:
    rendered = tokenizer.render({"messages": [{"role": "user", "content": content}]})
    return tokenizer.encode_rendered(rendered).tolist()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_word_is_one_token_wherever_it_stands(
    tokenizer: ModelTokenizer, vocabulary: Vocabulary, seed: int
) -> None:
    words = random.Random(seed).choices(vocabulary.words, k=700)
    ids = chat_ids(tokenizer, " ".join([vocabulary.opener, *words]))
    assert len(ids) == vocabulary.head + 700 + vocabulary.tail
    swapped = chat_ids(tokenizer, " ".join([vocabulary.opener, words[1], words[0], *words[2:]]))
    at = vocabulary.head
    assert (swapped[at], swapped[at + 1]) == (ids[at + 1], ids[at])
    assert swapped[at + 2 :] == ids[at + 2 :] and swapped[:at] == ids[:at]


def test_a_tokenizer_of_another_kind_gives_other_words(vocabulary: Vocabulary) -> None:
    tokenizer = ModelTokenizer.load(str(FIXTURE), conversation_cache_bytes=0)
    found = learn_vocabulary(tokenizer)
    tokenizer.close()
    assert found.note == "" and set(found.words) != set(vocabulary.words)


class Letters:
    """Every letter is a token: no word is one token. With `words`, every word is, and the chat cannot be rendered."""

    def __init__(self, *, words: bool) -> None:
        self.words = [first + second for first in "abcdef" for second in "abcdef"] if words else list("abcdef")

    def decode(self, ids: list[int]) -> str:
        return self.words[ids[0]]

    def encode(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        pieces = text.split() if len(self.words[0]) > 1 else [letter for letter in text if letter != " "]
        return np.array([self.words.index(piece) for piece in pieces])

    def render(self, body: object) -> SimpleNamespace:
        raise Unrenderable(UnrenderableReason.NO_TEMPLATE, "there is none")


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="0 plain words of one token each, 16 are needed"):
        learn_vocabulary(Letters(words=False))  # type: ignore[arg-type]


def test_without_a_template_only_the_words_are_counted() -> None:
    found = learn_vocabulary(Letters(words=True))  # type: ignore[arg-type]
    assert (found.head, found.tail) == (1, 0)
    assert "the chat template's own tokens are not counted: " in found.note
