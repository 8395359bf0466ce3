"""The block keys of one prompt: hashed once per request, front to back, only as far as somebody asks; what an earlier
prompt with the same beginning had hashed is not hashed again."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sgl_router.prompt import BlockKeys, Prompt

from .hashing import BlockHasher, Namespace

if TYPE_CHECKING:
    from sgl_router.prompt import SharedPrefix

__all__ = ["PromptKeys"]

_MAX_SHARED_ROOTS = 4


class PromptKeys:
    """Keys of the blocks a cache hit could cover. Several of one prompt and root work on the same memory."""

    __slots__ = ("_hasher", "_prompt", "_root", "blocks", "memo")

    def __init__(self, prompt: Prompt, hasher: BlockHasher, namespace: Namespace) -> None:
        self._prompt = prompt
        self._hasher = hasher
        self._root = root = hasher.root(namespace)
        self.blocks = hasher.prompt_blocks(len(prompt.ids))
        memo = prompt.keys.get(root)
        if memo is None:
            known = prompt.shared.keys.get(root) if prompt.shared is not None else None
            memo = prompt.keys[root] = BlockKeys(array("Q") if known is None else known[: self.blocks])
        self.memo = memo

    @property
    def known(self) -> int:
        """Leading blocks whose keys need no hashing."""
        return len(self.memo.computed)

    def slice(self, start: int, stop: int) -> array[int]:
        """Keys of blocks `start` to `stop`, at most `blocks`."""
        computed = self.memo.computed
        missing = min(stop, self.blocks) - len(computed)
        if missing > 0:
            parent = computed[-1] if computed else self._root
            computed.extend(self._hasher.chain(parent, self._prompt.ids, len(computed), missing))
        return computed[start:stop]

    def share(self) -> None:
        """Leave what was computed from the shared tokens alone to the next prompt that begins with them."""
        shared = self._prompt.shared
        if shared is not None:
            whole = min(self._hasher.whole_blocks(shared.tokens), len(self.memo.computed))
            known = shared.keys.get(self._root)
            if whole > (0 if known is None else len(known)):
                _keep(shared, self._root, self.memo.computed[:whole])


def _keep(shared: SharedPrefix, root: int, keys: array[int]) -> None:
    if root not in shared.keys and len(shared.keys) >= _MAX_SHARED_ROOTS:
        del shared.keys[next(iter(shared.keys))]
    shared.keys[root] = keys
