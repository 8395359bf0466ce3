"""A prompt on its way: its token ids, and what earlier prompts with the same beginning left behind."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

__all__ = ["Prompt", "SharedPrefix", "TokenIds"]

TokenIds = npt.NDArray[np.uint32]


class SharedPrefix:
    """The first `tokens` tokens that several prompts have in common, and block keys computed from them alone.

    `keys[root]`: the keys of the leading whole blocks, as far as some prompt had them computed. A root names page size,
    kind of key and namespace (`BlockHasher.root`).
    """

    __slots__ = ("keys", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.keys: dict[int, array[int]] = {}


class Prompt:
    """`ids`: 1-D uint32, whole. `shared`: the longest beginning met before; None where there is none."""

    __slots__ = ("ids", "shared")

    def __init__(self, ids: TokenIds, shared: SharedPrefix | None = None) -> None:
        self.ids = ids
        self.shared = shared

    def __len__(self) -> int:
        return len(self.ids)
