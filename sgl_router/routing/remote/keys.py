"""A prompt as the index looks it up: its block keys, hashed where the prompt is, and no tokens on the socket."""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING

import numpy as np

from sgl_router.kv_events import BlockHasher
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.prompt import BlockKeys, Prompt
from sgl_router.routing.remote.messages import MAX_MESSAGE_BYTES, MAX_TOKENS, Hashing

if TYPE_CHECKING:
    from sgl_router.kv_events import KvIndex, Namespace

__all__ = ["PromptHasher", "hashing_of", "keyed_prompt"]

_PIECE_BLOCKS = 2_048
_KEY_BYTES = 8
_MAX_KEYS_BYTES = MAX_MESSAGE_BYTES // 2
_NO_TOKEN = np.zeros(1, dtype=np.uint32)


def hashing_of(index: KvIndex) -> Hashing:
    """What a data process must know to compute the keys `index` works with."""
    kinds: dict[str, set[tuple[int, bool]]] = {}
    for target, feed in index.followed():
        hasher = feed.stream.hasher
        kinds.setdefault(target.worker.model_id, set()).add((hasher.page_size, hasher.bigram))
    return Hashing(index.secret, {model_id: sorted(found) for model_id, found in kinds.items()})


class PromptHasher:
    """Of a data process. What conversations share is hashed once (`Prompt.shared`), as in a router of one process."""

    def __init__(self) -> None:
        self._hashers: dict[str, list[BlockHasher]] = {}
        self._most_tokens: dict[str, int] = {}

    def learn(self, hashing: Hashing) -> None:
        self._hashers = {
            model_id: [BlockHasher(page_size, bigram=bigram, secret=hashing.secret) for page_size, bigram in kinds]
            for model_id, kinds in hashing.kinds.items()
        }
        self._most_tokens = {
            model_id: min(MAX_TOKENS, int(_MAX_KEYS_BYTES / sum(_KEY_BYTES / page_size for page_size, _ in kinds)))
            for model_id, kinds in hashing.kinds.items()
            if kinds
        }

    def told(self, model_id: str, prompt: Prompt) -> int:
        """How many tokens of a prompt are told of: their keys, of all kinds, must fit into one message."""
        return min(len(prompt), self._most_tokens.get(model_id, MAX_TOKENS))

    async def keys(self, model_id: str, prompt: Prompt, namespace: Namespace) -> dict[int, bytes]:
        """By root. Yields to the loop between pieces of a long prompt."""
        found: dict[int, bytes] = {}
        tokens = self.told(model_id, prompt)
        for hasher in self._hashers.get(model_id, ()):
            keys = PromptKeys(prompt, hasher, namespace)
            blocks = hasher.prompt_blocks(tokens)
            rested = keys.known
            while keys.known < blocks:
                if keys.known - rested >= _PIECE_BLOCKS:
                    await asyncio.sleep(0)
                    rested = keys.known
                keys.slice(0, min(keys.known + _PIECE_BLOCKS, blocks))
            keys.share()
            found[hasher.root(namespace)] = keys.slice(0, blocks).tobytes()
        return found


def keyed_prompt(tokens: int, keys: dict[int, bytes]) -> Prompt:
    """The prompt as the routing process has it. Under a root without keys it matches nothing: a kind of key that has
    just come into use finds its prompts cold until the data processes know it."""
    prompt = Prompt(np.broadcast_to(_NO_TOKEN, (tokens,)))
    for root, encoded in keys.items():
        computed = array("Q")
        computed.frombytes(encoded)
        prompt.keys[root] = BlockKeys(computed)
    return prompt
