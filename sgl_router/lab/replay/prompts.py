"""Prompts from `hash_ids`: the same id at the same position is the same text, of the same number of tokens."""

from __future__ import annotations

import hashlib

import numpy as np

from sgl_router.lab.replay.words import Vocabulary
from sgl_router.lab.simulate.trace import TraceRow

__all__ = ["PromptMaker"]

_MOST_WORDS = 1 << 16


class PromptMaker:
    """Token p of a prompt belongs to block p // `block_tokens`, but for what the chat template puts at both ends.

    `seed` makes other texts of the same ids. ValueError where the template leaves nothing of a first block.
    """

    def __init__(self, vocabulary: Vocabulary, *, block_tokens: int, seed: int) -> None:
        if block_tokens <= vocabulary.head:
            raise ValueError(
                f"a block has {block_tokens} tokens, and the chat template begins with {vocabulary.head}: "
                "first blocks could not differ"
            )
        self._vocabulary = vocabulary
        self._words = np.array(vocabulary.words[:_MOST_WORDS], dtype=object)
        self._block = block_tokens
        self._seed = seed

    def tokens(self, row: TraceRow) -> int:
        """The length a row's prompt gets: the trace's, or a few more where the template's end would cover a part of a
        block that is whole in the trace and so may be shared."""
        whole = row.input_length // self._block * self._block
        return max(row.input_length, whole + self._vocabulary.tail, self._vocabulary.head + self._vocabulary.tail)

    def text(self, row: TraceRow, number: int) -> str:
        """The user message of the trace's request `number`."""
        head, tail, block = self._vocabulary.head, self._vocabulary.tail, self._block
        end = self.tokens(row) - tail
        parts = [self._vocabulary.opener]
        for position in range(-(-end // block)):
            first = max(head - position * block, 0)
            last = min(end - position * block, block)
            if first < last:
                parts += self._block_words(row, number, position)[first:last]
        return " ".join(parts)

    def _block_words(self, row: TraceRow, number: int, position: int) -> list[str]:
        """What the trace has no id for (the end of a prompt, in some traces) is the request's own."""
        name = f"id {row.hash_ids[position]}" if position < len(row.hash_ids) else f"request {number}"
        noise = hashlib.shake_128(f"{self._seed}/{position}/{name}".encode()).digest(2 * self._block)
        numbers = np.frombuffer(noise, dtype="<u2").astype(np.uint32) * np.uint32(len(self._words)) >> np.uint32(16)
        words: list[str] = self._words[numbers].tolist()
        return words
