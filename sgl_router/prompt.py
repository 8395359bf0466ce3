"""A prompt on its way through the router: its token ids, and what prompts with the same beginning left behind."""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["BlockKeys", "Prompt", "Seen", "SharedKeys", "SharedPrefix", "TokenIds"]

TokenIds = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.int64]


class Seen(NamedTuple):
    """In which rows of which space of the index's table a prompt's leading keys were found. It does not keep the space
    alive."""

    space: int
    rows: Rows

    def first(self, count: int) -> Seen:
        return self if len(self.rows) <= count else Seen(self.space, self.rows[:count].copy())


class SharedKeys(array):  # type: ignore[type-arg]
    """Block keys, and where the index found them last: it looks there first."""

    seen: Seen | None = None


class SharedPrefix:
    """The first `tokens` tokens that several prompts have in common, and block keys computed from them alone.

    `keys[root]`: the keys of the leading whole blocks, as far as some prompt had them computed. A root names page size,
    kind of key and namespace (`BlockHasher.root`). Salts come from clients, so only a few roots are kept.
    """

    __slots__ = ("keys", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.keys: dict[int, array[int]] = {}


class BlockKeys:
    """A prompt's leading block keys under one root, as far as computed; `seen`: where the index found those that an
    earlier prompt shares."""

    __slots__ = ("computed", "seen")

    def __init__(self, computed: array[int]) -> None:
        self.computed = computed
        self.seen: Seen | None = None


class Prompt:
    """`ids`: 1-D uint32, whole. `shared`: the longest beginning met before; None where there is none.

    `keys[root]`: what the index has computed for this prompt.
    """

    __slots__ = ("ids", "keys", "shared")

    def __init__(self, ids: TokenIds, shared: SharedPrefix | None = None) -> None:
        self.ids = ids
        self.shared = shared
        self.keys: dict[int, BlockKeys] = {}

    def __len__(self) -> int:
        return len(self.ids)
