"""Texts on which a fast encoder must agree with the reference before it is trusted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["corpus", "first_difference"]

_SAMPLES = (
    "",
    " ",
    "  \t \n\r\n \n\n\n   x",
    "Hello, world! It's 12:34:56 on 2026-11-20; we've paid $1,234.56 (≈ €1.150,00) — that's 100%.",
    "I'M SURE they'll say: don't, won't, I'd've; \u2018curly\u2019 \u201cquotes\u201d\u2026",
    "def f(x: int) -> dict[str, int]:\n    return {'a': x ** 2, 'b': x // 3}  # \u00a9\n\n\tif x != 0x1F:\n\t\tpass\n",
    '{"name": "get", "arguments": {"q": "z\\n\\u00e9", "n": [1, 2.5e-3, null, true]}}',
    "<div class=\"a\">&amp;</div>\n<!-- c --> #include <stdio.h> /* x */ SELECT * FROM t WHERE a='b';",
    "Zażółć gęślą jaźń. Größe, straße, ÅNGSTRÖM ﬁ ½ Ⅻ Ａ １２３",
    "Съешь ещё этих мягких французских булок. Ελληνικά: ψυχή.",
    "中文分词测试,没有空格。日本語のテキストとカタカナ。 한국어 문장입니다.",
    "مرحبا بالعالم שלום עולם हिन्दी में पाठ ภาษาไทยไม่มีช่องว่าง",
    "e\u0301 vs \u00e9, n\u0303o, \u1e9b\u0323, \u212b, \uac00 vs \u1100\u1161",
    "zero\u200bwidth \ufeff bom \u2028 line \u0085 nel \u00a0 nbsp \u3000 wide",
    "\U0001f600\U0001f469\u200d\U0001f4bb\U0001f44d\U0001f3fd \U0001f1eb\U0001f1f7 \u2764\ufe0f",
    "\U0001f9d1\u200d\U0001f91d\u200d\U0001f9d1 \u0915\u094d\u0937\u093f",
    "\x00\x01\x07\x1b[31m\x7f\ufffd\ue000\U0010fffd",
    "https://example.com/a/b?c=d&e=%20f#g user@example.org C:\\path\\to\\file ../x/./y",
    "camelCaseWords snake_case_words SCREAMING_CASE kebab-case x1y2z3 ABCdef 1st 2nd 3.14.15",
    " leading and trailing  ",
    "1234567890" * 20,
)
_RUN_UNITS = ("a", " ", "\n", "!", "Ab", "7", "\t", "é", "中", "😀", " \n", "a b", "\r\n")
_RUN_LENGTHS = (33, 1200)
_MAX_ADDED_TOKENS = 256
_RANDOM_TEXTS = 96
_RANDOM_LENGTH = 48


def corpus(
    added_tokens: Iterable[str], vocabulary_size: int, decode: Callable[[list[int]], str], extra: Iterable[str] = ()
) -> Iterator[str]:
    """Unicode, whitespace, code, emoji, long runs, added tokens in running text, and text drawn from the vocabulary.

    The same texts for the same tokenizer on every start.
    """
    yield from _SAMPLES
    yield from extra
    for unit in _RUN_UNITS:
        for length in _RUN_LENGTHS:
            yield unit * length
    rng = random.Random(20261120)
    added = [token for token in added_tokens if token]
    if len(added) > _MAX_ADDED_TOKENS:
        added = rng.sample(added, _MAX_ADDED_TOKENS)
    for token in added:
        yield f"{token}start {token} mid{token}{token}end \n{token}\n {token[:-1]} {token.upper()}"
    for _ in range(_RANDOM_TEXTS if vocabulary_size else 0):
        text = decode([rng.randrange(vocabulary_size) for _ in range(_RANDOM_LENGTH)])
        yield text
        if added:
            position = rng.randrange(len(text) + 1)
            yield text[:position] + rng.choice(added) + text[position:]


def first_difference(
    candidate: Callable[[str, bool], Any], reference: Callable[[str, bool], Any], texts: Iterable[str]
) -> str | None:
    """What makes the candidate unfit, None if it agrees everywhere, with and without special tokens."""
    for text in texts:
        for special in (False, True):
            expected = list(reference(text, special))
            try:
                actual = list(candidate(text, special))
            except Exception as error:
                return f"{type(error).__name__} on {text[:60]!r}"
            if actual != expected:
                return f"different ids for {text[:60]!r} (add_special_tokens={special})"
    return None
