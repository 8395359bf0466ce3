"""What the mock model says: sentences decided by the prompt, so equal prompts get equal answers."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sgl_router.tokenization import TokenIds


class Tokenizer(Protocol):
    """The part of `ModelTokenizer` a mock worker uses."""

    async def encode_chat(self, body: Mapping[str, Any]) -> TokenIds:
        """Token ids of a rendered chat body."""

    async def encode_text(self, text: str, add_special_tokens: bool = True) -> TokenIds:
        """Token ids of plain text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""


_SUBJECTS = ("The cache", "A router", "The worker", "One replica", "The index", "A scheduler", "The queue")
_VERBS = ("keeps", "finds", "shares", "counts", "moves", "reads", "orders", "returns", "follows", "remembers")
_QUALITIES = ("warm", "shared", "recent", "long", "quiet", "small", "steady", "simple", "second", "early")
_OBJECTS = ("pages", "prefixes", "tokens", "blocks", "answers", "requests", "events", "turns", "streams")
_PLACES = ("in order", "at once", "without waiting", "before noon", "again and again", "under load")


class AnswerBook:
    """Sentences as token ids, one sentence at a time, each encoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._phrases: dict[str, tuple[int, ...]] = {}

    async def answer(self, prompt: Sequence[int], *, variant: int, tokens: int) -> tuple[int, ...]:
        """Exactly `tokens` token ids for a prompt; `variant` tells several answers to it apart."""
        seed = hashlib.sha256(struct.pack("<I", variant) + struct.pack(f"<{len(prompt)}q", *prompt)).digest()
        chooser = random.Random(seed)
        ids: list[int] = []
        while len(ids) < tokens:
            for phrase in self._sentence(chooser, first=not ids):
                ids.extend(await self._encoded(phrase))
        return tuple(ids[:tokens])

    def _sentence(self, chooser: random.Random, *, first: bool) -> list[str]:
        # Phrases start with their space, so that their token ids do not depend on what stands before them.
        space = "" if first else " "
        return [
            space + chooser.choice(_SUBJECTS),
            " " + chooser.choice(_VERBS),
            " " + chooser.choice(_QUALITIES),
            " " + chooser.choice(_OBJECTS),
            " " + chooser.choice(_PLACES),
            ".",
        ]

    async def _encoded(self, phrase: str) -> tuple[int, ...]:
        known = self._phrases.get(phrase)
        if known is None:
            ids = await self._tokenizer.encode_text(phrase, add_special_tokens=False)
            known = self._phrases[phrase] = tuple(int(token) for token in ids)
            if not known:
                raise ValueError(f"the tokenizer has no tokens for {phrase!r}")
        return known


class Detokenizer:
    """Text of a growing token sequence, given out as soon as its characters are complete."""

    _WINDOW = 8

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._settled = 0
        self._given = 0

    def add(self, tokens: Sequence[int]) -> str:
        """The new text; an unfinished character is kept for the next call."""
        self._ids.extend(tokens)
        before = self._tokenizer.decode(self._ids[self._settled : self._given])
        now = self._tokenizer.decode(self._ids[self._settled :])
        if now.endswith("\ufffd"):
            return ""
        self._given = len(self._ids)
        self._settled = max(self._settled, self._given - self._WINDOW)
        return now[len(before) :]

    def rest(self) -> str:
        """What was kept back, as it is, once nothing follows."""
        before = self._tokenizer.decode(self._ids[self._settled : self._given])
        self._given = len(self._ids)
        return self._tokenizer.decode(self._ids[self._settled :])[len(before) :]
