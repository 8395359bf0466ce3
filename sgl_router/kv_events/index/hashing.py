"""The router's own block keys: a prefix-chained xxh3 over token ids, seeded per process.

Keys do not depend on an engine's hash algorithm, so every dialect, LoRA wrapping and vLLM meet in one index.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

__all__ = ["DEFAULT_NAMESPACE", "BlockHasher", "Namespace", "pack_units"]

_MAX_U32 = 0xFFFFFFFF


class Namespace(NamedTuple):
    """What separates otherwise equal token prefixes in an engine's cache, as far as its events say so."""

    cache_salt: str | None = None
    lora_name: str | None = None


DEFAULT_NAMESPACE = Namespace()


def pack_units(units: Sequence[Any]) -> array[int]:
    """Token ids, or pairs of them, as one flat array: of 32-bit words, or of 64-bit words where an id needs them.

    Raises ValueError, TypeError or OverflowError for what is neither.
    """
    if len(units) and isinstance(units[0], (list, tuple)):
        flat: list[int] = []
        for pair in units:
            first, second = pair
            flat.append(first)
            flat.append(second)
        units = flat
    try:
        return array("I", units)
    except OverflowError:
        return array("Q", units)


class BlockHasher:
    """Keys for one (page size, key kind). `bigram` is EAGLE's: unit i is the token pair (t[i], t[i+1]).

    Two hashers agree on a key iff they share `secret`, page size, key kind, namespace and the whole token prefix;
    the secret is random per process so that no client can aim for collisions.
    """

    __slots__ = ("_blocks", "_roots", "_secret", "bigram", "page_size")

    def __init__(self, page_size: int, *, bigram: bool = False, secret: int | None = None) -> None:
        self.page_size = page_size
        self.bigram = bigram
        self._secret = secrets.randbits(64) if secret is None else secret
        self._roots: dict[Namespace, int] = {}
        self._blocks = Struct(f"{page_size * 4 * (2 if bigram else 1)}s")

    def root(self, namespace: Namespace = DEFAULT_NAMESPACE) -> int:
        """The key that a namespace's first block extends."""
        known = self._roots.get(namespace)
        if known is None:
            parts = [b"%d/%d" % (self.page_size, self.bigram)]
            for part in namespace:
                # Length-prefixed, so that no salt can spell another (salt, adapter) pair.
                text = b"" if part is None else part.encode("utf-8", "surrogatepass")
                parts.append(b"-" if part is None else b"%d:%b" % (len(text), text))
            known = xxh3_64_intdigest(b"|".join(parts), seed=self._secret)
            # Salts come from clients: the memo is bounded, the key is not affected.
            if len(self._roots) < 1024 and sum(map(len, parts)) < 1024:
                self._roots[namespace] = known
        return known

    def extend(self, parent: int, tokens: Sequence[Any], blocks: int) -> list[int]:
        """Keys of `blocks` consecutive blocks whose units are `tokens`: ints, or pairs in bigram mode, or what
        `pack_units` made of them.

        Raises ValueError where the token count is not blocks x page size, TypeError or OverflowError for what is
        not a token id.
        """
        packed = tokens if isinstance(tokens, array) else pack_units(tokens)
        width = self.page_size * (2 if self.bigram else 1)
        if len(packed) != blocks * width:
            raise ValueError(f"{len(packed)} token ids for {blocks} blocks of {width}")
        if packed.itemsize > 4:
            return self._extend_wide(parent, packed)
        if blocks == 1:
            return [xxh3_64_intdigest(packed, parent)]
        return self._chain(parent, packed)

    def prompt_blocks(self, tokens: int) -> int:
        """How many leading blocks of a prompt of `tokens` tokens a cache hit could cover.

        An engine always computes the last token itself: floor((tokens-1)/page), or floor((tokens-2)/page) in bigram
        mode, where a prompt has one unit less (SGLang 0.5.23, seen in `cached_tokens`).
        """
        reusable = tokens - 2 if self.bigram else tokens - 1
        return reusable // self.page_size if reusable > 0 else 0

    def whole_blocks(self, tokens: int) -> int:
        """How many leading blocks' keys depend on the first `tokens` tokens alone."""
        return max(tokens - self.bigram, 0) // self.page_size

    def chain(self, parent: int, ids: npt.NDArray[np.uint32], first: int, blocks: int) -> list[int]:
        """Keys of a prompt's blocks `first` to `first + blocks`; `parent` is the key before them, or the root.

        `ids`: the whole prompt, 1-D uint32.
        """
        start, units = first * self.page_size, blocks * self.page_size
        if self.bigram:
            raw: npt.NDArray[np.uint32] = np.empty(2 * units, dtype=np.uint32)
            raw[0::2] = ids[start : start + units]
            raw[1::2] = ids[start + 1 : start + units + 1]
            return self._chain(parent, raw.tobytes())
        return self._chain(parent, ids[start : start + units].tobytes())

    def _chain(self, key: int, data: bytes | array[int]) -> list[int]:
        keys = []
        for (block,) in self._blocks.iter_unpack(data):
            key = xxh3_64_intdigest(block, key)
            keys.append(key)
        return keys

    def _extend_wide(self, key: int, words: array[int]) -> list[int]:
        """Blocks holding an id above 32 bits (media pad values) hash as 64-bit words under a marker; others as ever."""
        width = self.page_size * (2 if self.bigram else 1)
        keys = []
        for start in range(0, len(words), width):
            block = words[start : start + width]
            wide = max(block) > _MAX_U32
            data = b"\xff" + block.tobytes() if wide else array("I", block).tobytes()
            key = xxh3_64_intdigest(data, seed=key)
            keys.append(key)
        return keys
