"""Text whose token count is known beforehand: words of one token each, and what the chat template puts around them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sgl_router.tokenization import ModelTokenizer, Unrenderable

__all__ = ["Vocabulary", "learn_vocabulary"]

_WANTED = 2_048
_LAST_ID = 1 << 18
# Beyond its last id a tokenizer decodes to nothing, or fails.
_EMPTY_IN_A_ROW = 2_000
_LONGEST_WORD = 9
_FEWEST = 16
_SAMPLE = 64


@dataclass(frozen=True)
class Vocabulary:
    """A chat of one user message `opener word word ...` is `head` tokens, one for each word, and `tail` tokens.

    The opener is part of the head: what follows it stands after a space in every template. `note` says why the counts
    may be off, and is empty where they were verified.
    """

    words: tuple[str, ...]
    opener: str
    head: int
    tail: int
    note: str = ""


def learn_vocabulary(tokenizer: ModelTokenizer) -> Vocabulary:
    """Find words and measure the template: up to a second of blocking work. ValueError where there are no words."""
    words = _single_token_words(tokenizer)
    if len(words) < _FEWEST:
        raise ValueError(f"the tokenizer has {len(words)} plain words of one token each, {_FEWEST} are needed")
    opener, rest = next(iter(words)), list(words)[1:]
    sample = random.Random(0).choices(rest, k=_SAMPLE)
    wanted = [words[word] for word in sample]
    content = " ".join([opener, *sample])
    try:
        chat = tokenizer.render({"messages": [{"role": "user", "content": content}]})
        ids = tokenizer.encode_rendered(chat).tolist()
    except Unrenderable as error:
        note = f"the chat template's own tokens are not counted: {error}"
        return Vocabulary(tuple(rest), opener, head=1, tail=0, note=note)
    head = next((at for at in range(len(ids)) if ids[at : at + _SAMPLE] == wanted), None)
    if head is None:
        note = "this tokenizer does not make one token of each word: blocks are of about the right length"
        return Vocabulary(tuple(rest), opener, head=max(len(ids) - _SAMPLE, 1), tail=0, note=note)
    return Vocabulary(tuple(rest), opener, head=head, tail=len(ids) - head - _SAMPLE)


def _single_token_words(tokenizer: ModelTokenizer) -> dict[str, int]:
    """Lower-case words that are one token each after a space, and that token."""
    words: dict[str, int] = {}
    empty = 0
    for number in range(_LAST_ID):
        try:
            piece = tokenizer.decode([number])
        except (IndexError, KeyError, TypeError, ValueError, OverflowError):
            break
        empty = 0 if piece else empty + 1
        if empty > _EMPTY_IN_A_ROW or len(words) > _WANTED:
            break
        word = piece.strip()
        if word in words or not 2 <= len(word) <= _LONGEST_WORD or not (word.isascii() and word.islower()):
            continue
        if word.isalpha() and (token := _token_after_space(tokenizer, word)) is not None:
            words[word] = token
    return words


def _token_after_space(tokenizer: ModelTokenizer, word: str) -> int | None:
    twice = tokenizer.encode(f"{word} {word}", add_special_tokens=False).tolist()
    thrice = tokenizer.encode(f"{word} {word} {word}", add_special_tokens=False).tolist()
    grown_by_one = len(thrice) == len(twice) + 1 and thrice[:-1] == twice
    return thrice[-1] if grown_by_one and thrice[-1] == twice[-1] else None
