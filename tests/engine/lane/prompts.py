"""Seeded text of a chosen length in the tokens of the model at hand."""

from __future__ import annotations

import random
from typing import Any

from kit.worker import WorkerClient

_WORD_LIST = """
amber anchor autumn basket beacon bridge candle canyon cellar cinder copper corner desert distant donkey ember
fabric falcon feather forest garden gentle glacier granite hammer harbour hollow island jacket journey kettle
ladder lantern marble meadow mirror mountain needle orchard oyster paper pebble pillow planet quarry quiet river
saddle shadow silver spider thunder timber tunnel umbrella valley velvet walnut whistle window winter yellow
"""
_WORDS = _WORD_LIST.split()


class Prompts:
    """Texts that share nothing unless their seeds are equal: the seed decides the very first words."""

    def __init__(self, worker: WorkerClient, model: str) -> None:
        sample = self._words(random.Random("sample"), 400)
        reply = worker.tokenize({"model": model, "messages": [{"role": "user", "content": sample}]})
        assert reply.status == 200, f"{worker.url}/v1/tokenize: {reply}"
        self._tokens_per_word = reply.json()["count"] / 400

    def text(self, seed: object, tokens: int) -> str:
        """About `tokens` tokens; the same text for the same arguments."""
        rng = random.Random(repr(seed))
        label = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        return f"{label} {self._words(rng, max(1, round(tokens / self._tokens_per_word)))}"

    def user(self, seed: object, tokens: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.text(seed, tokens)}]

    @staticmethod
    def _words(rng: random.Random, count: int) -> str:
        return " ".join(rng.choices(_WORDS, k=count))
